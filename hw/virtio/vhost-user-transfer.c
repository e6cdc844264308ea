/*
 * Handing the back-end of a vhost-user device over to another QEMU
 *
 * This file joins three parts for a virtio device: the chardev's connection
 * (chardev/char-transfer.c), the state of the back-end (vhost-user-session.c),
 * and which QEMU owns the back-end (migration/backend-transfer.c).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/timer.h"
#include "hw/qdev-core.h"
#include "hw/virtio/vhost-user-connection.h"
#include "hw/virtio/vhost-user-transfer.h"
#include "hw/virtio/virtio-access.h"
#include "migration/options.h"
#include "migration/misc.h"
#include "standard-headers/linux/vhost_types.h"
#include "system/address-spaces.h"
#include "system/memory.h"
#include "system/ramblock.h"
#include "trace.h"

/*
 * How long to wait for the requests in flight after the VM has stopped. A
 * guest waits at least as long before it resets a disk that does not respond.
 */
#define DRAIN_TIMEOUT_MS 30000

/*
 * Upper limits of the file descriptors of a device (its connection and the
 * files of its session) and of each queue (its eventfds and their copies)
 */
#define DEVICE_FDS 8
#define QUEUE_FDS 8

/* The user gave the id to the virtio device or to its transport device. */
static char *device_name(const VhostUserTransfer *t)
{
    DeviceState *dev = DEVICE(t->vdev);

    return qdev_get_human_name(dev->id ? dev :
                               qdev_get_parent_bus(dev)->parent);
}

static void prepend_name(const VhostUserTransfer *t, Error **errp)
{
    g_autofree char *name = device_name(t);

    error_prepend(errp, "Cannot hand over the back-end of '%s': ", name);
}

/* virtio_save() and virtio_load() do not pass errors on, they print them. */
static void report_failure(const VhostUserTransfer *t, Error **errp)
{
    prepend_name(t, errp);
    backend_transfer_set_error(*errp);
}

static bool is_connected(const VhostUserTransfer *t)
{
    return t->dev->vhost_ops;
}

/* virtio_load() changes the size of a queue, but not its maximum size. */
static unsigned num_queues(VirtIODevice *vdev)
{
    unsigned n = 0;

    while (n < VIRTIO_QUEUE_MAX && virtio_queue_get_max_num(vdev, n)) {
        n++;
    }
    return n;
}

/*
 * When the descriptor table of a multi-threaded process grows, the kernel
 * blocks the process for some milliseconds. Grow the table now, before the
 * switch-over, for all descriptors that the devices will receive.
 */
static void reserve_descriptors(unsigned n)
{
    static unsigned reserved;
    EventNotifier notifier = { 0 };
    int fd;

    reserved += n;
    if (event_notifier_init(&notifier, 0) < 0) {
        return;
    }
    fd = event_notifier_get_fd(&notifier);
    fd = fcntl(fd, F_DUPFD_CLOEXEC, fd + reserved);
    if (fd >= 0) {
        close(fd);
    }
    event_notifier_cleanup(&notifier);
}

/*
 * Memory
 */

/* Memory without a file is not sent to back-ends, and they only read ROM. */
static int block_is_copied(RAMBlock *block, void *opaque)
{
    return qemu_ram_get_fd(block) >= 0 && !memory_region_is_rom(block->mr) &&
           !migrate_ram_is_ignored(block);
}

/*
 * Check all RAM blocks, not the memory table of a device: the table is still
 * empty when a device reconnects and asks whether it has to log.
 */
static bool ram_is_shared(void)
{
    return !qemu_ram_foreach_block(block_is_copied, NULL);
}

bool vhost_user_transfer_ram_stays(struct vhost_dev *dev)
{
    return backend_transfer_outgoing() && ram_is_shared();
}

typedef struct FindFile {
    uint64_t dev;
    uint64_t ino;
} FindFile;

static int block_has_file(RAMBlock *block, void *opaque)
{
    const FindFile *find = opaque;
    int fd = qemu_ram_get_fd(block);
    struct stat st;

    return fd >= 0 && migrate_ram_is_ignored(block) && !fstat(fd, &st) &&
           st.st_dev == find->dev && st.st_ino == find->ino;
}

static bool guest_has_file(void *opaque, uint64_t dev, uint64_t ino)
{
    FindFile find = { .dev = dev, .ino = ino };

    return qemu_ram_foreach_block(block_has_file, &find);
}

/*
 * Rings
 */

/*
 * While the back-end runs a ring, QEMU does not know its last avail index. Save
 * the driver's avail index instead: virtio_load() accepts it, and the
 * back-end's index never passes it. The value is only used if the back-end
 * dies before GET_VRING_BASE.
 */
static void guess_last_avail(VhostUserTransfer *t, int n)
{
    VirtIODevice *vdev = t->vdev;
    hwaddr avail = virtio_queue_get_avail_addr(vdev, n);
    const hwaddr idx = offsetof(struct vring_avail, idx);

    if (avail && !virtio_vdev_has_feature(vdev, VIRTIO_F_RING_PACKED)) {
        virtio_queue_set_last_avail_idx(vdev, n,
                                        virtio_lduw_phys(vdev, avail + idx));
    }
}

static bool ring_is_busy(VhostUserTransfer *t, int n)
{
    VirtIODevice *vdev = t->vdev;
    hwaddr avail = virtio_queue_get_avail_addr(vdev, n);
    hwaddr used = virtio_queue_get_used_addr(vdev, n);

    return avail && vhost_user_session_ring_running(t->session, n) &&
           virtio_lduw_phys(vdev, avail + offsetof(struct vring_avail, idx)) !=
           virtio_lduw_phys(vdev, used + offsetof(struct vring_used, idx));
}

/*
 * Some back-ends stop a ring without waiting for its requests, and fail when
 * these complete later. The VM is stopped, so the driver adds no requests: wait
 * until the back-end has completed all of them. Packed rings have no used
 * index in memory from which this could be seen.
 */
static void drain(VhostUserTransfer *t)
{
    int64_t end = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + DRAIN_TIMEOUT_MS;

    if (virtio_vdev_has_feature(t->vdev, VIRTIO_F_RING_PACKED)) {
        return;
    }
    /* The guest may have stopped after adding a request, before the kick */
    vhost_user_session_kick(t->session);
    for (int i = 0; i < t->dev->nvqs; i++) {
        while (ring_is_busy(t, i) && vhost_user_connection_lives(t->user) &&
               qemu_clock_get_ms(QEMU_CLOCK_REALTIME) < end) {
            g_usleep(SCALE_MS / SCALE_US);
        }
    }
}

/*
 * Hooks that the device calls when it starts, stops and is reset
 */

void vhost_user_transfer_lend(VhostUserTransfer *t)
{
    for (int i = 0; i < t->dev->nvqs; i++) {
        VirtQueue *vq = virtio_get_queue(t->vdev, i);
        int kick = vhost_user_session_lend_kick(t->session, i);
        int call = vhost_user_session_lend_call(t->session, i);

        if (kick >= 0) {
            event_notifier_init_fd(virtio_queue_get_host_notifier(vq), kick);
        }
        if (call >= 0) {
            event_notifier_init_fd(virtio_queue_get_guest_notifier(vq), call);
        }
    }
}

/* Bring the back-end to the state that the device has requested. */
static bool commit(VhostUserTransfer *t, Error **errp)
{
    int ret;

    if (!vhost_user_session_owned(t->session)) {
        error_setg(errp, "another QEMU may be using the back-end");
        return false;
    }
    ret = vhost_user_resume_channel(t->dev);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Cannot read requests of the back-end");
        return false;
    }
    return vhost_user_session_commit(t->session, errp) >= 0;
}

bool vhost_user_transfer_started(VhostUserTransfer *t, Error **errp)
{
    if (!vhost_user_session_held(t->session)) {
        return true;
    }
    if (!commit(t, errp)) {
        return false;
    }

    /* The other QEMU may have read the eventfds: repeat kicks and calls */
    vhost_user_session_kick(t->session);
    for (int i = 0; i < t->dev->nvqs; i++) {
        VirtQueue *vq = virtio_get_queue(t->vdev, i);

        if (vhost_user_session_ring_running(t->session, i)) {
            event_notifier_set(virtio_queue_get_guest_notifier(vq));
        }
    }
    return true;
}

/* Leave the back-end's requests unread until the VM is started again. */
static void pause_channel(VhostUserTransfer *t)
{
    int channel = vhost_user_pause_channel(t->dev);

    if (channel >= 0) {
        vhost_user_session_set_channel(t->session, channel);
    }
}

void vhost_user_transfer_stopping(VhostUserTransfer *t)
{
    bool stays;

    /* A device that stops while the VM runs is being reset or unplugged */
    if (t->vdev->vm_running || !t->enabled || !backend_transfer_outgoing()) {
        return;
    }
    stays = vhost_user_transfer_ram_stays(t->dev);
    trace_vhost_user_transfer_mode(DEVICE(t->vdev)->canonical_path,
                                   stays ? "live" : "restart",
                                   stays ? "the memory stays where it is" :
                                           "the memory is copied");
    if (stays) {
        vhost_user_session_hold(t->session);
        pause_channel(t);
    } else {
        drain(t);
    }
}

void vhost_user_transfer_stopped(VhostUserTransfer *t)
{
    if (!vhost_user_session_held(t->session)) {
        return;
    }
    for (int i = 0; i < t->dev->nvqs; i++) {
        guess_last_avail(t, i);
    }
    /* Removing the host notifiers may have read a kick off the eventfds */
    vhost_user_session_kick(t->session);
}

void vhost_user_transfer_closed(VhostUserTransfer *t)
{
    if (!vhost_user_session_owned(t->session)) {
        t->lost = true;
        qemu_chr_transfer_hold_off(t->user->chr->chr);
    }
}

void vhost_user_transfer_disconnected(VhostUserTransfer *t)
{
    for (int i = 0; i < t->dev->nvqs; i++) {
        if (vhost_user_session_held(t->session) &&
            vhost_user_session_ring_running(t->session, i)) {
            virtio_queue_restore_last_avail_idx(t->vdev, i);
            virtio_queue_update_used_idx(t->vdev, i);
        }
    }
}

void vhost_user_transfer_reset(VhostUserTransfer *t)
{
    vhost_user_session_rewind(t->session);
}

/*
 * Ownership
 */

static VhostUserTransfer *from_backend(BackendTransfer *bt)
{
    return container_of(bt, VhostUserTransfer, backend);
}

static Chardev *get_chardev(VhostUserTransfer *t)
{
    return t->user->chr->chr;
}

static bool check_blocker(VhostUserTransfer *t, Error **errp)
{
    if (t->dev->migration_blocker) {
        error_propagate(errp, error_copy(t->dev->migration_blocker));
        return false;
    }
    return true;
}

static bool has_host_notifiers(VhostUserTransfer *t)
{
    for (unsigned i = 0; i < t->user->notifiers->len; i++) {
        VhostUserHostNotifier *n = g_ptr_array_index(t->user->notifiers, i);

        if (n && n->addr) {
            return true;
        }
    }
    return false;
}

static bool can_hand_over(VhostUserTransfer *t, Error **errp)
{
    if (!is_connected(t)) {
        error_setg(errp, "it is not connected; wait until it is, or unplug "
                   "the device");
        return false;
    }
    if (has_host_notifiers(t)) {
        error_setg(errp, "the guest's memory contains host notifiers of the "
                   "back-end; turn parameter 'backend-transfer' off");
        return false;
    }
    return vhost_user_session_check(t->session, errp) &&
           qemu_chr_transfer_check(get_chardev(t), errp);
}

static bool transfer_check(BackendTransfer *bt, Error **errp)
{
    ERRP_GUARD();
    VhostUserTransfer *t = from_backend(bt);

    if (!t->enabled || !migrate_backend_transfer()) {
        /* Only the normal mode logs; the blocker concerns logging */
        return migrate_mode() != MIG_MODE_NORMAL || check_blocker(t, errp);
    }
    if (!can_hand_over(t, errp)) {
        prepend_name(t, errp);
        return false;
    }
    /* The blocker concerns logging, which shared RAM does not need */
    return ram_is_shared() || check_blocker(t, errp);
}

/* The device was realized before the features of its back-end were known. */
static bool update_features(VhostUserTransfer *t, Error **errp)
{
    VirtIODevice *vdev = t->vdev;
    VirtioDeviceClass *vdc = VIRTIO_DEVICE_GET_CLASS(vdev);
    Error *err = NULL;
    uint64_t features;

    features = vdc->get_features(vdev, vdev->host_features, &err);
    if (err) {
        error_propagate(errp, err);
        return false;
    }
    if (virtio_host_has_feature(vdev, VIRTIO_F_IOMMU_PLATFORM) &&
        !virtio_has_feature(features, VIRTIO_F_IOMMU_PLATFORM)) {
        /* Without an IOMMU the back-end needs no support, see virtio-bus.c */
        if (vdev->dma_as != &address_space_memory) {
            error_setg(errp, "its back-end cannot work behind an IOMMU; set "
                       "the device's property 'iommu_platform' to off");
            return false;
        }
        virtio_add_feature(&features, VIRTIO_F_IOMMU_PLATFORM);
    }
    vdev->host_features = features;
    return true;
}

static bool transfer_connect(BackendTransfer *bt, Error **errp)
{
    VhostUserTransfer *t = from_backend(bt);

    if (!t->waiting) {
        return true;
    }
    if (!t->ops->connect(t->vdev, errp)) {
        return false;
    }
    if (!update_features(t, errp)) {
        /* The next call connects again */
        t->ops->disconnect(t->vdev);
        qemu_chr_fe_disconnect(t->user->chr);
        return false;
    }
    t->waiting = false;
    return true;
}

static bool transfer_arrived(BackendTransfer *bt, Error **errp)
{
    ERRP_GUARD();
    VhostUserTransfer *t = from_backend(bt);

    if (t->waiting) {
        error_setg(errp, "its connection did not come with the migration "
                   "stream; start this QEMU with the same devices and the "
                   "same properties 'backend-transfer' as the source");
        prepend_name(t, errp);
        return false;
    }
    return true;
}

static bool transfer_claimed(BackendTransfer *bt, Error **errp)
{
    ERRP_GUARD();
    VhostUserTransfer *t = from_backend(bt);
    VirtIODevice *vdev = t->vdev;

    if (t->detached) {
        trace_vhost_user_transfer_take_back(DEVICE(vdev)->canonical_path);
        if (!qemu_chr_transfer_attach(get_chardev(t), &t->connection, errp)) {
            error_prepend(errp, "Cannot take the back-end back: ");
            return false;
        }
        t->detached = false;
        t->attached = true;
    }
    if (t->attached) {
        qemu_chr_transfer_settle(get_chardev(t));
        t->attached = false;
    }
    if (t->lost) {
        t->lost = false;
        if (is_connected(t)) {
            /* The bottom half that cleans the device up has not run yet */
            vhost_user_transfer_disconnected(t);
            t->ops->disconnect(t->vdev);
        }
        return qemu_chr_transfer_go_on(get_chardev(t), errp);
    }
    if (vhost_user_session_held(t->session)) {
        vhost_user_session_own(t->session, true);
    }
    return true;
}

static void transfer_starting(BackendTransfer *bt)
{
    VhostUserTransfer *t = from_backend(bt);
    Error *err = NULL;

    if (!vhost_user_session_held(t->session) ||
        virtio_device_started(t->vdev, t->vdev->status)) {
        /* A started device starts together with the VM, and commits then */
        return;
    }
    if (!commit(t, &err)) {
        prepend_name(t, &err);
        error_report_err(err);
        qemu_chr_fe_disconnect(t->user->chr);
    }
}

/* The VM stays stopped here, so stop the rings that kept running. */
static void transfer_outgoing_failed(BackendTransfer *bt)
{
    VhostUserTransfer *t = from_backend(bt);
    Error *err = NULL;

    if (!vhost_user_session_held(t->session) || t->detached ||
        t->vdev->vm_running) {
        return;
    }
    vhost_user_session_own(t->session, true);
    if (!commit(t, &err)) {
        error_report_err(err);
        return;
    }
    if (!virtio_device_started(t->vdev, t->vdev->status)) {
        return;
    }
    for (int i = 0; i < t->dev->nvqs; i++) {
        if (virtio_queue_get_desc_addr(t->vdev, i)) {
            virtio_queue_set_last_avail_idx(t->vdev, i,
                vhost_user_session_ring_base(t->session, i));
            virtio_queue_update_used_idx(t->vdev, i);
            /* No QEMU has handled the calls since the VM was stopped */
            virtio_queue_invalidate_signalled_used(t->vdev, i);
            virtio_notify(t->vdev, virtio_get_queue(t->vdev, i));
        }
    }
}

/* Close our copy of a connection that this QEMU never owned. */
static void drop_connection(VhostUserTransfer *t)
{
    if (t->attached) {
        qemu_chr_transfer_drop(get_chardev(t));
        t->attached = false;
    }
}

static void transfer_incoming_failed(BackendTransfer *bt)
{
    VhostUserTransfer *t = from_backend(bt);

    /*
     * If the device failed while it adopted the connection, the session is
     * not held any more, and the chardev has the connection.
     */
    drop_connection(t);
    if (vhost_user_session_held(t->session) && is_connected(t)) {
        t->ops->disconnect(t->vdev);
    }
    qemu_chr_transfer_clear(&t->connection);
    vhost_user_session_reset(t->session);
}

static const BackendTransferOps transfer_ops = {
    .check = transfer_check,
    .connect = transfer_connect,
    .arrived = transfer_arrived,
    .claimed = transfer_claimed,
    .starting = transfer_starting,
    .outgoing_failed = transfer_outgoing_failed,
    .incoming_failed = transfer_incoming_failed,
};

bool vhost_user_transfer_waits(const VhostUserTransfer *t)
{
    return t->enabled && backend_transfer_waits();
}

void vhost_user_transfer_init(VhostUserTransfer *t,
                              const VhostUserTransferOps *ops,
                              VirtIODevice *vdev, struct vhost_dev *dev,
                              VhostUserState *user)
{
    t->ops = ops;
    t->vdev = vdev;
    t->dev = dev;
    t->user = user;
    t->session = user->session;
    t->waiting = vhost_user_transfer_waits(t);
    t->detached = false;
    t->attached = false;
    t->lost = false;
    t->backend.ops = &transfer_ops;
    qemu_chr_transfer_init(&t->connection);
    backend_transfer_add(&t->backend);
    if (t->waiting) {
        reserve_descriptors(DEVICE_FDS + QUEUE_FDS * num_queues(vdev));
    }
}

void vhost_user_transfer_cleanup(VhostUserTransfer *t)
{
    Error *err = NULL;

    if (vhost_user_session_held(t->session) && !t->detached) {
        /* The device is removed while the VM is stopped: stop its rings */
        if (!vhost_user_session_owned(t->session)) {
            drop_connection(t);
        } else if (vhost_user_session_commit(t->session, &err) < 0) {
            error_report_err(err);
        }
    }
    backend_transfer_remove(&t->backend);
    qemu_chr_transfer_clear(&t->connection);
    t->session = NULL;
}

/*
 * The stream
 */

bool vhost_user_transfer_needed(const VhostUserTransfer *t)
{
    return t->enabled && backend_transfer_outgoing();
}

bool vhost_user_transfer_loaded(VhostUserTransfer *t)
{
    Error *err = NULL;

    if (!transfer_arrived(&t->backend, &err)) {
        backend_transfer_set_error(err);
        error_report_err(err);
        return false;
    }
    return true;
}

static bool transfer_pre_save(void *opaque, Error **errp)
{
    ERRP_GUARD();
    VhostUserTransfer *t = opaque;

    if (!can_hand_over(t, errp)) {
        goto fail;
    }
    t->num_queues = num_queues(t->vdev);
    t->queue_size = virtio_queue_get_max_num(t->vdev, 0);
    t->config_size = t->vdev->config_len;
    t->host_features = t->vdev->host_features;

    vhost_user_session_hold(t->session);
    if (!qemu_chr_transfer_detach(get_chardev(t), &t->connection, errp)) {
        goto fail;
    }
    t->detached = true;
    t->attached = false;
    vhost_user_session_own(t->session, false);
    pause_channel(t);
    trace_vhost_user_transfer_save(DEVICE(t->vdev)->canonical_path);
    return true;

fail:
    report_failure(t, errp);
    return false;
}

static bool transfer_pre_load(void *opaque, Error **errp)
{
    ERRP_GUARD();
    VhostUserTransfer *t = opaque;

    if (!t->waiting) {
        error_setg(errp, "its connection came with the migration stream, but "
                   "the device has connected by itself; set the device's "
                   "property 'backend-transfer' to the same value on both "
                   "sides");
        report_failure(t, errp);
        return false;
    }
    qemu_chr_transfer_clear(&t->connection);
    return true;
}

static bool same_number(const char *what, uint64_t theirs, uint64_t ours,
                        Error **errp)
{
    if (theirs != ours) {
        error_setg(errp, "%s is 0x%" PRIx64 " at the source and 0x%" PRIx64
                   " here; use the same properties on both sides", what,
                   theirs, ours);
        return false;
    }
    return true;
}

static bool adopt(VhostUserTransfer *t, Error **errp)
{
    const VhostUserSessionFits fits = {
        .rings = num_queues(t->vdev),
        .ring_size = virtio_queue_get_max_num(t->vdev, 0),
        .config_size = t->vdev->config_len,
        .has_file = guest_has_file,
    };

    if (!same_number("num-queues", t->num_queues, fits.rings, errp) ||
        !same_number("queue-size", t->queue_size, fits.ring_size, errp) ||
        !same_number("the size of the config space", t->config_size,
                     fits.config_size, errp) ||
        !vhost_user_session_adopt(t->session, &fits, errp) ||
        !qemu_chr_transfer_attach(get_chardev(t), &t->connection, errp)) {
        return false;
    }
    t->attached = true;
    if (!t->ops->adopt(t->vdev, errp) || !update_features(t, errp)) {
        return false;
    }
    return same_number("the set of host features", t->host_features,
                       t->vdev->host_features, errp);
}

static bool transfer_post_load(void *opaque, int version_id, Error **errp)
{
    ERRP_GUARD();
    VhostUserTransfer *t = opaque;

    if (!adopt(t, errp)) {
        report_failure(t, errp);
        return false;
    }
    t->waiting = false;
    trace_vhost_user_transfer_adopt(DEVICE(t->vdev)->canonical_path);
    return true;
}

const VMStateDescription vmstate_vhost_user_transfer = {
    .name = "vhost-user-transfer",
    .version_id = 1,
    .minimum_version_id = 1,
    .pre_save_errp = transfer_pre_save,
    .pre_load_errp = transfer_pre_load,
    .post_load_errp = transfer_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32(num_queues, VhostUserTransfer),
        VMSTATE_UINT32(queue_size, VhostUserTransfer),
        VMSTATE_UINT32(config_size, VhostUserTransfer),
        VMSTATE_UINT64(host_features, VhostUserTransfer),
        VMSTATE_STRUCT(connection, VhostUserTransfer, 1,
                       vmstate_chardev_transfer, ChardevTransfer),
        VMSTATE_STRUCT_POINTER(session, VhostUserTransfer,
                               vmstate_vhost_user_session, VhostUserSession),
        VMSTATE_END_OF_LIST()
    }
};
