/*
 * A vhost-user device that sends the messages of QEMU's devices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/eventfd.h>
#include "qapi/error.h"
#include "qemu/memfd.h"
#include "qemu/sockets.h"
#include "io/channel-socket.h"
#include "vhost-user-device.h"
#include "../migration/qemu-file.h"
#include "../migration/savevm.h"

#define RING_BYTES 0x1000

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

int new_eventfd(void)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    g_assert_cmpint(fd, >=, 0);
    return fd;
}

int memory_file(unsigned n)
{
    static int fd[MEMORY_FILES];

    g_assert_cmpuint(n, <, MEMORY_FILES);
    if (!fd[n]) {
        fd[n] = qemu_memfd_create("guest", MEMORY_SIZE, false, 0, 0,
                                  &error_abort);
    }
    return fd[n];
}

void device_init_fields(Device *d, Wire *wire, uint64_t local)
{
    *d = (Device) {
        .rings = 2,
        .num = 128,
        .features = F_PROTOCOL | F_VERSION_1 | F_EVENT_IDX,
        .protocol_features = PF_MQ | PF_CONFIG | PF_REPLY_ACK,
        .nmemory = 2,
        .memory = {
            { 0, 0, 0x80000, 0, local },
            { 1, 0x100000, 0x40000, 0x10000, local + 0x100000 },
        },
        .wire = wire,
        .session = vhost_user_session_new(&wire->ops, wire),
        .channel = -1,
        .inflight = -1,
    };
    for (unsigned i = 0; i < MAX_RINGS; i++) {
        d->addr[i] = i * RING_BYTES;
        d->kick[i] = d->call[i] = d->mask[i] = d->err[i] = -1;
    }
}

void device_cleanup(Device *d)
{
    for (unsigned i = 0; i < MAX_RINGS; i++) {
        close_fd(&d->kick[i]);
        close_fd(&d->call[i]);
        close_fd(&d->mask[i]);
        close_fd(&d->err[i]);
    }
    close_fd(&d->channel);
    close_fd(&d->inflight);
    vhost_user_session_free(d->session);
    d->session = NULL;
}

static bool receive(Device *d, Msg *reply)
{
    if (!vhost_user_session_answer(d->session, reply, sizeof(*reply))) {
        if (!d->wire->ops.receive(d->wire, reply, sizeof(*reply), NULL)) {
            return false;
        }
        vhost_user_session_read(d->session, reply);
    }
    return true;
}

static bool send_message(Device *d, Msg *msg, const int *fds, size_t nfds)
{
    int ret = vhost_user_session_write(d->session, msg, fds, nfds);

    return ret > 0 ||
           (!ret && d->wire->ops.send(d->wire, msg, MSG_HEADER + msg->size,
                                      fds, nfds, NULL));
}

bool device_ask(Device *d, Msg *msg)
{
    uint32_t request = msg->request;

    return send_message(d, msg, NULL, 0) && receive(d, msg) &&
           msg->request == request;
}

bool device_write(Device *d, Msg *msg, const int *fds, size_t nfds)
{
    bool need_reply = msg->flags & MSG_NEED_REPLY;
    Msg reply = { 0 };

    return send_message(d, msg, fds, nfds) &&
           (!need_reply || (receive(d, &reply) && !reply.u64));
}

static bool negotiated(const Device *d, uint64_t feature)
{
    return d->negotiated & feature;
}

static uint32_t flags_ack(const Device *d)
{
    return MSG_VERSION | (negotiated(d, PF_REPLY_ACK) ? MSG_NEED_REPLY : 0);
}

static bool get_u64(Device *d, uint32_t request, uint64_t *u64)
{
    Msg msg = { .request = request, .flags = MSG_VERSION };

    if (!device_ask(d, &msg)) {
        return false;
    }
    *u64 = msg.u64;
    return true;
}

static bool set_u64(Device *d, uint32_t request, uint64_t u64)
{
    Msg msg = {
        .request = request,
        .flags = MSG_VERSION,
        .size = sizeof(u64),
        .u64 = u64,
    };

    return device_write(d, &msg, NULL, 0);
}

static bool set_ring(Device *d, uint32_t request, unsigned ring, uint32_t num)
{
    Msg msg = {
        .request = request,
        .flags = MSG_VERSION,
        .size = sizeof(msg.state),
        .state = { ring, num },
    };

    return device_write(d, &msg, NULL, 0);
}

static bool set_ring_file(Device *d, uint32_t request, unsigned ring, int fd)
{
    Msg msg = {
        .request = request,
        .flags = MSG_VERSION,
        .size = sizeof(msg.u64),
        .u64 = ring | (fd < 0 ? MSG_NO_FD : 0),
    };

    return device_write(d, &msg, &fd, fd < 0 ? 0 : 1);
}

static bool get_config(Device *d)
{
    Msg msg = {
        .request = MSG_GET_CONFIG,
        .flags = MSG_VERSION,
        .size = offsetof(Msg, config.data) - MSG_HEADER + CONFIG_SIZE,
        .config.size = CONFIG_SIZE,
    };

    if (!device_ask(d, &msg)) {
        return false;
    }
    memcpy(d->config, msg.config.data, CONFIG_SIZE);
    return true;
}

bool device_set_config(Device *d, unsigned offset, uint8_t value)
{
    Msg msg = {
        .request = MSG_SET_CONFIG,
        .flags = flags_ack(d),
        .size = offsetof(Msg, config.data) - MSG_HEADER + 1,
        .config = { .offset = offset, .size = 1, .data = { value } },
    };

    d->config[offset] = value;
    return device_write(d, &msg, NULL, 0);
}

bool device_open_channel(Device *d)
{
    Msg msg = { .request = MSG_SET_BACKEND_REQ_FD, .flags = flags_ack(d) };
    int sv[2];
    bool ok;

    if (!negotiated(d, PF_BACKEND_REQ) || d->channel >= 0) {
        return true;
    }
    d->channel = vhost_user_session_take_channel(d->session);
    if (d->channel >= 0) {
        return true;
    }
    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    d->channel = sv[0];
    ok = device_write(d, &msg, &sv[1], 1);
    close_fd(&sv[1]);
    return ok;
}

/* Send the messages of vhost_dev_init(). */
bool device_connect(Device *d)
{
    uint64_t has, unused;
    int err;

    vhost_user_session_begin(d->session);
    if (!get_u64(d, MSG_GET_FEATURES, &has)) {
        return false;
    }
    if (has & F_PROTOCOL) {
        if (!get_u64(d, MSG_GET_PROTOCOL_FEATURES, &has)) {
            return false;
        }
        d->negotiated = has & d->protocol_features;
        if (!set_u64(d, MSG_SET_PROTOCOL_FEATURES, d->negotiated) ||
            (negotiated(d, PF_MQ) &&
             !get_u64(d, MSG_GET_QUEUE_NUM, &unused)) ||
            (negotiated(d, PF_SLOTS) &&
             !get_u64(d, MSG_GET_MAX_MEM_SLOTS, &unused))) {
            return false;
        }
    }
    if (!vhost_user_session_held(d->session) && !device_open_channel(d)) {
        return false;
    }
    if (!set_u64(d, MSG_SET_OWNER, 0) ||
        !get_u64(d, MSG_GET_FEATURES, &unused)) {
        return false;
    }
    for (unsigned i = 0; i < d->rings; i++) {
        if (d->mask[i] < 0) {
            d->mask[i] = new_eventfd();
            d->err[i] = new_eventfd();
        }
        err = vhost_user_session_lend_err(d->session, i);
        if (err >= 0) {
            close_fd(&d->err[i]);
            d->err[i] = err;
        }
        if (!set_ring_file(d, MSG_SET_VRING_CALL, i, d->mask[i]) ||
            !set_ring_file(d, MSG_SET_VRING_ERR, i, d->err[i])) {
            return false;
        }
    }
    return !negotiated(d, PF_CONFIG) || get_config(d);
}

static MsgRegion describe(const Memory *memory)
{
    return (MsgRegion) {
        .guest_addr = memory->guest_addr,
        .size = memory->size,
        .user_addr = memory->local,
        .mmap_offset = memory->offset,
    };
}

static bool set_table(Device *d)
{
    Msg msg = {
        .request = MSG_SET_MEM_TABLE,
        .flags = flags_ack(d),
        .size = offsetof(Msg, table.region) - MSG_HEADER +
                d->nmemory * sizeof(MsgRegion),
        .table.num = d->nmemory,
    };
    int fds[MSG_REGIONS];

    g_assert_cmpuint(d->nmemory, <=, MSG_REGIONS);
    for (unsigned i = 0; i < d->nmemory; i++) {
        msg.table.region[i] = describe(&d->memory[i]);
        fds[i] = memory_file(d->memory[i].file);
    }
    return device_write(d, &msg, fds, d->nmemory);
}

static bool has_memory(const Memory *memory, unsigned n, const Memory *find)
{
    for (unsigned i = 0; i < n; i++) {
        if (!memcmp(&memory[i], find, sizeof(*find))) {
            return true;
        }
    }
    return false;
}

/* Remove old regions from the last to the first, then add new ones, as QEMU. */
static bool set_slots(Device *d)
{
    for (unsigned i = d->nslots; i-- > 0; ) {
        Msg msg = {
            .request = MSG_REM_MEM_REG,
            .flags = flags_ack(d),
            .size = sizeof(msg.slot),
            .slot.region = describe(&d->slot[i]),
        };

        msg.slot.region.mmap_offset = 0;
        if (has_memory(d->memory, d->nmemory, &d->slot[i])) {
            continue;
        }
        if (!device_write(d, &msg, NULL, 0)) {
            return false;
        }
        d->nslots--;
        memmove(&d->slot[i], &d->slot[i + 1],
                (d->nslots - i) * sizeof(d->slot[0]));
    }
    for (unsigned i = 0; i < d->nmemory; i++) {
        Msg msg = {
            .request = MSG_ADD_MEM_REG,
            .flags = flags_ack(d),
            .size = sizeof(msg.slot),
            .slot.region = describe(&d->memory[i]),
        };
        int fd = memory_file(d->memory[i].file);

        if (has_memory(d->slot, d->nslots, &d->memory[i])) {
            continue;
        }
        if (!device_write(d, &msg, &fd, 1)) {
            return false;
        }
        d->slot[d->nslots++] = d->memory[i];
    }
    return true;
}

bool device_set_memory(Device *d)
{
    return negotiated(d, PF_SLOTS) ? set_slots(d) : set_table(d);
}

static bool set_inflight(Device *d)
{
    Msg msg = {
        .request = MSG_GET_INFLIGHT_FD,
        .flags = MSG_VERSION,
        .size = sizeof(msg.inflight),
        .inflight = { .queues = d->rings, .queue_size = d->num },
    };

    if (d->inflight < 0) {
        if (!device_ask(d, &msg)) {
            return false;
        }
        if (!msg.inflight.mmap_size) {
            return true;        /* the back-end has no inflight region */
        }
        d->inflight = vhost_user_session_answer_fd(d->session);
        if (d->inflight < 0) {
            d->inflight = d->wire->take_fd(d->wire);
        }
        if (d->inflight < 0) {
            return false;
        }
        d->inflight_msg = msg;
    }
    msg = d->inflight_msg;
    msg.request = MSG_SET_INFLIGHT_FD;
    msg.flags = MSG_VERSION;
    return device_write(d, &msg, &d->inflight, 1);
}

static bool set_addr(Device *d, unsigned ring)
{
    uint64_t memory = d->features & F_IOMMU ? d->memory[0].guest_addr :
                                              d->memory[0].local;
    uint64_t addr = memory + d->addr[ring];
    Msg msg = {
        .request = MSG_SET_VRING_ADDR,
        .flags = MSG_VERSION,
        .size = sizeof(msg.addr),
        .addr = {
            .index = ring,
            .desc = addr,
            .avail = addr + 0x800,
            .used = addr + 0xc00,
        },
    };

    return device_write(d, &msg, NULL, 0);
}

bool device_start_ring(Device *d, unsigned i)
{
    if (!d->no_files && d->kick[i] < 0) {
        d->kick[i] = new_eventfd();
    }
    if (!d->no_files && d->call[i] < 0) {
        d->call[i] = new_eventfd();
    }
    return set_ring(d, MSG_SET_VRING_NUM, i, d->num) &&
           set_ring(d, MSG_SET_VRING_BASE, i, d->base[i]) &&
           set_addr(d, i) &&
           set_ring_file(d, MSG_SET_VRING_KICK, i, d->kick[i]) &&
           set_ring_file(d, MSG_SET_VRING_CALL, i, d->call[i]);
}

/* Send the messages of vhost_dev_start(). */
bool device_start(Device *d)
{
    uint64_t status;

    if ((negotiated(d, PF_INFLIGHT) && !set_inflight(d)) ||
        !set_u64(d, MSG_SET_FEATURES, d->features) ||
        !device_set_memory(d)) {
        return false;
    }
    for (unsigned i = 0; i < d->rings; i++) {
        if (!device_start_ring(d, i)) {
            return false;
        }
    }
    for (unsigned i = 0; i < d->rings; i++) {
        if (!set_ring(d, MSG_SET_VRING_ENABLE, i, !d->disabled)) {
            return false;
        }
    }
    d->started = true;
    return !negotiated(d, PF_STATUS) ||
           (get_u64(d, MSG_GET_STATUS, &status) &&
            set_u64(d, MSG_SET_STATUS, status | STATUS_OK));
}

bool device_stop_ring(Device *d, unsigned i)
{
    Msg msg = {
        .request = MSG_GET_VRING_BASE,
        .flags = MSG_VERSION,
        .size = sizeof(msg.state),
        .state.index = i,
    };

    if (!device_ask(d, &msg)) {
        return false;
    }
    d->base[i] = msg.state.num;
    return true;
}

/* Send the messages of vhost_dev_stop(). The next start makes new notifiers. */
bool device_stop(Device *d)
{
    for (unsigned i = 0; i < d->rings; i++) {
        Msg msg = {
            .request = MSG_SET_VRING_ENABLE,
            .flags = flags_ack(d),
            .size = sizeof(msg.state),
            .state.index = i,
        };

        if (!device_write(d, &msg, NULL, 0)) {
            return false;
        }
    }
    for (unsigned i = 0; i < d->rings; i++) {
        if (!device_stop_ring(d, i)) {
            return false;
        }
        close_fd(&d->kick[i]);
        close_fd(&d->call[i]);
    }
    d->started = false;
    return !negotiated(d, PF_STATUS) || set_u64(d, MSG_SET_STATUS, 0);
}

void device_lend(Device *d)
{
    for (unsigned i = 0; i < d->rings; i++) {
        int kick = vhost_user_session_lend_kick(d->session, i);
        int call = vhost_user_session_lend_call(d->session, i);

        if (kick >= 0) {
            close_fd(&d->kick[i]);
            d->kick[i] = kick;
        }
        if (call >= 0) {
            close_fd(&d->call[i]);
            d->call[i] = call;
        }
    }
}

void device_release(Device *d)
{
    vhost_user_session_hold(d->session);
    if (d->started) {
        g_assert_true(device_stop(d));
    }
    vhost_user_session_own(d->session, false);
    if (d->channel >= 0) {
        vhost_user_session_set_channel(d->session, d->channel);
        d->channel = -1;
    }
}

static bool has_file(void *opaque, uint64_t dev, uint64_t ino)
{
    const Device *d = opaque;

    for (unsigned i = 0; i < d->nmemory; i++) {
        struct stat st;

        g_assert(!fstat(memory_file(d->memory[i].file), &st));
        if (st.st_dev == dev && st.st_ino == ino) {
            return true;
        }
    }
    return false;
}

VhostUserSessionFits device_fits(const Device *d)
{
    return (VhostUserSessionFits) {
        .rings = d->rings,
        .ring_size = d->num,
        .config_size = d->protocol_features & PF_CONFIG ? CONFIG_SIZE : 0,
        .has_file = has_file,
        .opaque = (void *)d,
    };
}

/*
 * The stream
 */

static QEMUFile *open_stream(int sock, bool output)
{
    QIOChannel *ioc = QIO_CHANNEL(qio_channel_socket_new_fd(sock,
                                                            &error_abort));
    QEMUFile *f = output ? qemu_file_new_output(ioc) :
                           qemu_file_new_input(ioc);

    object_unref(OBJECT(ioc));
    return f;
}

/*
 * A thread saves the session, since the stream may be larger than the socket's
 * buffer. The file is opened before, because only one thread may initialize
 * QOM classes.
 */
struct SessionSave {
    VhostUserSession *session;
    QEMUFile *f;
    GThread *thread;
    bool ok;
};

static void *save_thread(void *opaque)
{
    SessionSave *save = opaque;
    int ret = vmstate_save_state(save->f, &vmstate_vhost_user_session,
                                 save->session, NULL, NULL);

    /* Loading looks for a subsection, so the stream must not end here */
    qemu_put_byte(save->f, QEMU_VM_EOF);
    save->ok = !qemu_fclose(save->f) && !ret;
    return NULL;
}

SessionSave *session_save_begin(VhostUserSession *session, int sock)
{
    SessionSave *save = g_new0(SessionSave, 1);

    save->session = session;
    save->f = open_stream(sock, true);
    save->thread = g_thread_new("save", save_thread, save);
    return save;
}

bool session_save_end(SessionSave *save)
{
    bool ok;

    g_thread_join(save->thread);
    ok = save->ok;
    g_free(save);
    return ok;
}

bool session_load(VhostUserSession *session, int sock)
{
    QEMUFile *f = open_stream(sock, false);
    int ret = vmstate_load_state(f, &vmstate_vhost_user_session, session,
                                 vmstate_vhost_user_session.version_id, NULL);

    ret = ret ?: qemu_file_get_error(f);
    qemu_fclose(f);
    return !ret;
}
