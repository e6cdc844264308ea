/*
 * Saving and loading a vhost-user session
 *
 * The stream is untrusted, since another process sends it: nothing that was
 * loaded is used before vhost_user_session_adopt() has checked it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/range.h"
#include "migration/qemu-file-types.h"
#include "vhost-user-session-internal.h"
#include "trace.h"

enum {
    HAS_KICK = 1,
    HAS_CALL = 2,
    HAS_ERR = 4,
};

static bool ring_has_kick(void *opaque, int version_id)
{
    return ((SessionRing *)opaque)->files & HAS_KICK;
}

static bool ring_has_call(void *opaque, int version_id)
{
    return ((SessionRing *)opaque)->files & HAS_CALL;
}

static bool ring_has_err(void *opaque, int version_id)
{
    return ((SessionRing *)opaque)->files & HAS_ERR;
}

static int ring_pre_save(void *opaque)
{
    SessionRing *ring = opaque;

    ring->files = (ring->kick >= 0 ? HAS_KICK : 0) |
                  (ring->call >= 0 ? HAS_CALL : 0) |
                  (ring->err >= 0 ? HAS_ERR : 0);
    return 0;
}

static const VMStateDescription vmstate_ring = {
    .name = "vhost-user-session/ring",
    .version_id = 1,
    .minimum_version_id = 1,
    .pre_save = ring_pre_save,
    .fields = (const VMStateField[]) {
        VMSTATE_BOOL(running, SessionRing),
        VMSTATE_BOOL(num_known, SessionRing),
        VMSTATE_BOOL(base_known, SessionRing),
        VMSTATE_BOOL(addr_known, SessionRing),
        VMSTATE_BOOL(enabled_known, SessionRing),
        VMSTATE_BOOL(call_known, SessionRing),
        VMSTATE_BOOL(err_known, SessionRing),
        VMSTATE_UINT32(num, SessionRing),
        VMSTATE_UINT32(base, SessionRing),
        VMSTATE_UINT32(enabled, SessionRing),
        VMSTATE_UINT32(flags, SessionRing),
        VMSTATE_UINT64(desc, SessionRing),
        VMSTATE_UINT64(used, SessionRing),
        VMSTATE_UINT64(avail, SessionRing),
        VMSTATE_UINT64(log, SessionRing),
        VMSTATE_BOOL(rewind, SessionRing),
        VMSTATE_UINT8(files, SessionRing),
        VMSTATE_SINGLE_TEST(kick, SessionRing, ring_has_kick, 0,
                            vmstate_info_fd, int32_t),
        VMSTATE_SINGLE_TEST(call, SessionRing, ring_has_call, 0,
                            vmstate_info_fd, int32_t),
        VMSTATE_SINGLE_TEST(err, SessionRing, ring_has_err, 0,
                            vmstate_info_fd, int32_t),
        VMSTATE_END_OF_LIST()
    }
};

static const VMStateDescription vmstate_region = {
    .name = "vhost-user-session/region",
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT64(guest_addr, SessionRegion),
        VMSTATE_UINT64(size, SessionRegion),
        VMSTATE_UINT64(offset, SessionRegion),
        VMSTATE_UINT64(dev, SessionRegion),
        VMSTATE_UINT64(ino, SessionRegion),
        VMSTATE_UINT64(name, SessionRegion),
        VMSTATE_END_OF_LIST()
    }
};

/*
 * Loading may fail after any field, so a size is not used before it has been
 * validated. The arrays have their maximum length, see session_pre_load().
 */
static bool session_valid_config(void *opaque, int version_id)
{
    VhostUserSession *s = opaque;

    if (s->stream_config_size > VHOST_USER_SESSION_CONFIG) {
        return false;
    }
    s->config_size = s->stream_config_size;
    return true;
}

static bool session_valid_regions(void *opaque, int version_id)
{
    VhostUserSession *s = opaque;

    if (s->stream_regions > VHOST_USER_SESSION_REGIONS) {
        return false;
    }
    s->nregions = s->stream_regions;
    return true;
}

static bool session_valid_rings(void *opaque, int version_id)
{
    VhostUserSession *s = opaque;

    if (s->stream_rings > VHOST_USER_SESSION_RINGS) {
        return false;
    }
    s->nrings = s->stream_rings;
    return true;
}

/*
 * Subsections: what the source's session does not know is not in the stream.
 */

/* A stream may contain a subsection with a file twice. */
static int close_loaded_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
    return 0;
}

static int inflight_pre_load(void *opaque)
{
    return close_loaded_fd(&((VhostUserSession *)opaque)->inflight_fd);
}

static int channel_pre_load(void *opaque)
{
    return close_loaded_fd(&((VhostUserSession *)opaque)->channel_fd);
}

#define SUBSECTION(field, is_needed, on_load, ...)                      \
    static bool field##_needed(void *opaque)                            \
    {                                                                   \
        VhostUserSession *s = opaque;                                   \
                                                                        \
        return is_needed;                                               \
    }                                                                   \
                                                                        \
    static const VMStateDescription vmstate_##field = {                 \
        .name = "vhost-user-session/" #field,                           \
        .version_id = 1,                                                \
        .minimum_version_id = 1,                                        \
        .needed = field##_needed,                                       \
        .pre_load = on_load,                                            \
        .fields = (const VMStateField[]) {                              \
            __VA_ARGS__,                                                \
            VMSTATE_END_OF_LIST()                                       \
        }                                                               \
    }

#define VALUE(field)                                                    \
    SUBSECTION(field, s->field.known, NULL,                             \
               VMSTATE_BOOL(field.known, VhostUserSession),             \
               VMSTATE_UINT64(field.u64, VhostUserSession))

VALUE(owner);
VALUE(features);
VALUE(protocol_features);
VALUE(status);
VALUE(mtu);
VALUE(offered_features);
VALUE(offered_protocol_features);
VALUE(max_queues);
VALUE(max_mem_slots);

SUBSECTION(no_inflight, s->no_inflight, NULL,
           VMSTATE_BOOL(no_inflight, VhostUserSession));

SUBSECTION(inflight, s->inflight_fd >= 0, inflight_pre_load,
           VMSTATE_UINT64(inflight.size, VhostUserSession),
           VMSTATE_UINT64(inflight.offset, VhostUserSession),
           VMSTATE_UINT16(inflight.queues, VhostUserSession),
           VMSTATE_UINT16(inflight.queue_size, VhostUserSession),
           VMSTATE_FD(inflight_fd, VhostUserSession));

SUBSECTION(channel, s->channel_fd >= 0, channel_pre_load,
           VMSTATE_FD(channel_fd, VhostUserSession));

SUBSECTION(config, s->config_size, NULL,
           VMSTATE_UINT32(stream_config_size, VhostUserSession),
           VMSTATE_VALIDATE("config space too big", session_valid_config),
           VMSTATE_BUFFER(config, VhostUserSession));

static int session_pre_load(void *opaque)
{
    VhostUserSession *s = opaque;

    vhost_user_session_reset(s);
    s->config_size = 0;
    session_grow_rings(s, VHOST_USER_SESSION_RINGS);
    s->nrings = 0;
    s->region = g_new0(SessionRegion, VHOST_USER_SESSION_REGIONS);
    return 0;
}

static int session_pre_save(void *opaque)
{
    VhostUserSession *s = opaque;

    s->stream_config_size = s->config_size;
    s->stream_regions = s->nregions;
    s->stream_rings = s->nrings;
    return 0;
}

const VMStateDescription vmstate_vhost_user_session = {
    .name = "vhost-user-session",
    .version_id = 1,
    .minimum_version_id = 1,
    .pre_save = session_pre_save,
    .pre_load = session_pre_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32(stream_regions, VhostUserSession),
        VMSTATE_VALIDATE("too many memory regions", session_valid_regions),
        VMSTATE_STRUCT_VARRAY_POINTER_UINT32(region, VhostUserSession,
                                             nregions, vmstate_region,
                                             SessionRegion),
        VMSTATE_UINT32(stream_rings, VhostUserSession),
        VMSTATE_VALIDATE("too many rings", session_valid_rings),
        VMSTATE_STRUCT_VARRAY_POINTER_UINT32(ring, VhostUserSession, nrings,
                                             vmstate_ring, SessionRing),
        VMSTATE_END_OF_LIST()
    },
    .subsections = (const VMStateDescription * const []) {
        &vmstate_owner,
        &vmstate_features,
        &vmstate_protocol_features,
        &vmstate_status,
        &vmstate_mtu,
        &vmstate_offered_features,
        &vmstate_offered_protocol_features,
        &vmstate_max_queues,
        &vmstate_max_mem_slots,
        &vmstate_no_inflight,
        &vmstate_inflight,
        &vmstate_channel,
        &vmstate_config,
        NULL
    }
};

/*
 * Writing to a blocking file could hang the main loop for ever. An eventfd is
 * an anonymous inode, which has no file type. QEMU may have no /proc to look
 * up its kind (option "-run-with chroot"), and must not write to an eventfd
 * that the back-end polls. So a timerfd passes, too: this is as harmless as
 * an eventfd that nobody uses.
 */
static bool is_eventfd(int fd)
{
    struct stat st;

    return !fstat(fd, &st) && !(st.st_mode & S_IFMT) &&
           fcntl(fd, F_GETFL) & O_NONBLOCK;
}

static bool is_stream_socket(int fd)
{
    int type;
    socklen_t len = sizeof(type);

    return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) &&
           type == SOCK_STREAM;
}

static bool is_file_of(int fd, uint64_t offset, uint64_t size)
{
    struct stat st;

    return !fstat(fd, &st) && S_ISREG(st.st_mode) && size &&
           offset <= st.st_size && size <= st.st_size - offset;
}

static bool check_ring_files(const SessionRing *ring, Error **errp)
{
    if ((ring->files & HAS_KICK && !is_eventfd(ring->kick)) ||
        (ring->files & HAS_CALL && !is_eventfd(ring->call)) ||
        (ring->files & HAS_ERR && !is_eventfd(ring->err))) {
        error_setg(errp, "a file of a ring is not a non-blocking eventfd");
        return false;
    }
    return true;
}

static bool check_files(const VhostUserSession *s, Error **errp)
{
    for (unsigned i = 0; i < s->nrings; i++) {
        if (!check_ring_files(&s->ring[i], errp)) {
            return false;
        }
    }
    if (s->inflight_fd >= 0 &&
        !is_file_of(s->inflight_fd, s->inflight.offset, s->inflight.size)) {
        error_setg(errp, "the inflight region has a wrong file or size");
        return false;
    }
    if (s->channel_fd >= 0 && !is_stream_socket(s->channel_fd)) {
        error_setg(errp, "the file of the back-end channel is not a socket");
        return false;
    }
    return true;
}

static bool check_regions(const VhostUserSession *s,
                          const VhostUserSessionFits *fits, bool running,
                          Error **errp)
{
    for (unsigned i = 0; i < s->nregions; i++) {
        const SessionRegion *a = &s->region[i];

        if (!session_valid_region(a->name, a->size) ||
            a->guest_addr > UINT64_MAX - a->size) {
            error_setg(errp, "a memory region has an invalid size");
            return false;
        }
        for (unsigned j = 0; j < i; j++) {
            const SessionRegion *b = &s->region[j];

            if (session_names_clash(a, b) ||
                ranges_overlap(a->guest_addr, a->size,
                               b->guest_addr, b->size)) {
                error_setg(errp, "memory regions overlap");
                return false;
            }
        }
        if (running && !fits->has_file(fits->opaque, a->dev, a->ino)) {
            error_setg(errp, "the back-end uses guest memory that is not "
                       "shared with this QEMU; use the same file or memfd for "
                       "the guest's memory on both sides");
            return false;
        }
    }
    return true;
}

static bool names_memory(const VhostUserSession *s, uint64_t name)
{
    for (unsigned i = 0; i < s->nregions; i++) {
        if (name - s->region[i].name < s->region[i].size) {
            return true;
        }
    }
    return false;
}

static bool check_ring(const VhostUserSession *s, const SessionRing *ring,
                       const VhostUserSessionFits *fits, Error **errp)
{
    bool iommu = s->features.u64 & BIT_ULL(VIRTIO_F_IOMMU_PLATFORM);

    if (!ring->running) {
        return true;
    }
    if (!ring->num_known || !ring->addr_known || !ring->base_known ||
        !ring->num) {
        error_setg(errp, "a running ring is not set up completely");
        return false;
    }
    if (ring->num > fits->ring_size) {
        error_setg(errp, "a ring has %" PRIu32 " entries, but the device "
                   "allows %u; use the same queue-size on both sides",
                   ring->num, fits->ring_size);
        return false;
    }
    if (!iommu && (!names_memory(s, ring->desc) ||
                   !names_memory(s, ring->used) ||
                   !names_memory(s, ring->avail))) {
        error_setg(errp, "a ring is not in the guest's memory");
        return false;
    }
    return true;
}

static bool session_fits(const VhostUserSession *s,
                         const VhostUserSessionFits *fits, Error **errp)
{
    bool running = false;

    if (s->nrings > fits->rings) {
        error_setg(errp, "the back-end uses %" PRIu32 " rings, but the device "
                   "has %u; use the same num-queues on both sides",
                   s->nrings, fits->rings);
        return false;
    }
    if (s->config_size && fits->config_size &&
        s->config_size != fits->config_size) {
        error_setg(errp, "the config space has %" PRIu32 " bytes, but that of "
                   "the device has %u; use the same properties on both sides",
                   s->config_size, fits->config_size);
        return false;
    }
    for (unsigned i = 0; i < s->nrings; i++) {
        if (!check_ring(s, &s->ring[i], fits, errp)) {
            return false;
        }
        running |= s->ring[i].running;
    }
    return check_regions(s, fits, running, errp) && check_files(s, errp);
}

bool vhost_user_session_adopt(VhostUserSession *s,
                              const VhostUserSessionFits *fits, Error **errp)
{
    if (!session_fits(s, fits, errp)) {
        return false;
    }
    s->held = true;
    s->owned = false;
    trace_vhost_user_session_adopt(s, s->nregions, s->nrings);
    return true;
}
