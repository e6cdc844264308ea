/*
 * A vhost-user back-end that records the requests that it gets
 *
 * It checks that requests follow the protocol, and what real back-ends need in
 * addition. Regions must not overlap, neither in guest addresses nor in user
 * addresses, because libvhost-user searches them. When the memory changes, the
 * user addresses of running rings must still mean the same memory, because
 * libvhost-user maps the rings again. While a ring runs, it must not be set up,
 * and the inflight region must not be replaced.
 *
 * User addresses are called names here, see hw/virtio/vhost-user-session.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/memfd.h"
#include "qemu/range.h"
#include "qemu/sockets.h"
#include "vhost-user-backend.h"

#define INFLIGHT_SIZE 0x4000

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

static uint64_t inode(int fd)
{
    struct stat st;

    g_assert(!fstat(fd, &st));
    return st.st_ino;
}

/*
 * The socket; a small message is always sent and received as a whole
 */

static bool send_with_fds(int sock, const void *buf, size_t len,
                          const int *fds, size_t nfds)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(MSG_REGIONS * sizeof(int))];
    } control = { 0 };
    struct iovec iov = { .iov_base = (void *)buf, .iov_len = len };
    struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (nfds) {
        struct cmsghdr *cmsg;

        g_assert_cmpuint(nfds, <=, MSG_REGIONS);
        hdr.msg_control = control.space;
        hdr.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        cmsg = CMSG_FIRSTHDR(&hdr);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, nfds * sizeof(int));
    }
    return sendmsg(sock, &hdr, MSG_NOSIGNAL) == len;
}

/* Returns the number of bytes, or 0 if there is no message. */
static size_t receive_with_fds(int sock, void *buf, size_t size,
                               int *fds, size_t *nfds)
{
    char control[CMSG_SPACE(MSG_REGIONS * sizeof(int))];
    struct iovec iov = { .iov_base = buf, .iov_len = size };
    struct msghdr hdr = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = control, .msg_controllen = sizeof(control),
    };
    ssize_t len = recvmsg(sock, &hdr, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    struct cmsghdr *cmsg;

    *nfds = 0;
    if (len <= 0) {
        return 0;
    }
    for (cmsg = CMSG_FIRSTHDR(&hdr); cmsg; cmsg = CMSG_NXTHDR(&hdr, cmsg)) {
        *nfds = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(fds, CMSG_DATA(cmsg), *nfds * sizeof(int));
    }
    return len;
}

/*
 * Memory
 */

/* Find the file, and the offset in it, that a name means. */
static void resolve(const Backend *b, uint64_t name, uint64_t *ino,
                    uint64_t *place)
{
    for (unsigned i = 0; i < b->nregions; i++) {
        const MsgRegion *wire = &b->region[i].wire;

        if (name - wire->user_addr < wire->size) {
            *ino = b->region[i].ino;
            *place = wire->mmap_offset + (name - wire->user_addr);
            return;
        }
    }
    g_assert_not_reached();     /* no region contains the name */
}

static void check_memory(Backend *b)
{
    for (unsigned i = 0; i < b->nregions; i++) {
        const MsgRegion *x = &b->region[i].wire;

        for (unsigned j = 0; j < i; j++) {
            const MsgRegion *y = &b->region[j].wire;
            bool alias = b->region[i].ino == b->region[j].ino &&
                         x->user_addr - x->mmap_offset ==
                         y->user_addr - y->mmap_offset;

            g_assert_true(alias || !ranges_overlap(x->user_addr, x->size,
                                                   y->user_addr, y->size));
            g_assert_false(ranges_overlap(x->guest_addr, x->size,
                                          y->guest_addr, y->size));
        }
    }
    for (unsigned i = 0; i < MAX_RINGS; i++) {
        const BackendRing *ring = &b->ring[i];

        for (int j = 0; ring->running && j < 3; j++) {
            uint64_t ino, place;

            if (b->acked & F_IOMMU) {
                continue;
            }
            resolve(b, ring->addr[j], &ino, &place);
            g_assert_cmphex(ino, ==, ring->ino[j]);
            g_assert_cmphex(place, ==, ring->place[j]);
        }
    }
}

static void look_up_rings(const Backend *b)
{
    for (unsigned i = 0; i < MAX_RINGS; i++) {
        for (int j = 0; b->looks_up_rings && b->ring[i].addr[0] && j < 3;
             j++) {
            uint64_t ino, place;

            resolve(b, b->ring[i].addr[j], &ino, &place);
        }
    }
}

static void add_region(Backend *b, const MsgRegion *wire, int fd)
{
    g_assert_cmpuint(b->nregions, <, MAX_SLOTS);
    b->region[b->nregions++] = (BackendRegion) { *wire, inode(fd) };
}

static void remove_region(Backend *b, const MsgRegion *wire)
{
    for (unsigned i = 0; i < b->nregions; i++) {
        const MsgRegion *has = &b->region[i].wire;

        if (has->guest_addr == wire->guest_addr && has->size == wire->size &&
            has->user_addr == wire->user_addr) {
            b->region[i] = b->region[--b->nregions];
            return;
        }
    }
    g_assert_not_reached();     /* there is no such region */
}

/*
 * Rings
 */

static bool any_ring_runs(const Backend *b)
{
    for (unsigned i = 0; i < MAX_RINGS; i++) {
        if (b->ring[i].running) {
            return true;
        }
    }
    return false;
}

static BackendRing *get_ring(Backend *b, unsigned index)
{
    g_assert_cmpuint(index, <, MAX_RINGS);
    return &b->ring[index];
}

static BackendRing *stopped_ring(Backend *b, const Msg *msg)
{
    BackendRing *ring = get_ring(b, msg->state.index);

    g_assert_false(ring->running);
    ring->set |= BIT(msg->request);
    return ring;
}

static void start_ring(Backend *b, BackendRing *ring)
{
    const uint32_t all = BIT(MSG_SET_VRING_NUM) | BIT(MSG_SET_VRING_ADDR) |
                         BIT(MSG_SET_VRING_BASE);

    g_assert_false(ring->running);
    g_assert_cmphex(ring->set & all, ==, all);
    for (int j = 0; j < 3; j++) {
        if (!(b->acked & F_IOMMU)) {
            resolve(b, ring->addr[j], &ring->ino[j], &ring->place[j]);
        }
    }
    ring->running = true;
}

static void stop_ring(BackendRing *ring)
{
    ring->running = false;
    ring->set = 0;
    close_fd(&ring->kick);
    close_fd(&ring->call);
}

static int *ring_file(BackendRing *ring, uint32_t request)
{
    switch (request) {
    case MSG_SET_VRING_KICK:
        return &ring->kick;
    case MSG_SET_VRING_CALL:
        return &ring->call;
    default:
        return &ring->err;
    }
}

/*
 * Messages
 */

static void check_negotiated(const Backend *b, const Msg *msg)
{
    uint64_t need = 0;

    switch (msg->request) {
    case MSG_GET_QUEUE_NUM:
        need = PF_MQ;
        break;
    case MSG_SET_BACKEND_REQ_FD:
        need = PF_BACKEND_REQ;
        break;
    case MSG_GET_CONFIG:
    case MSG_SET_CONFIG:
        need = PF_CONFIG;
        break;
    case MSG_GET_INFLIGHT_FD:
    case MSG_SET_INFLIGHT_FD:
        need = PF_INFLIGHT;
        break;
    case MSG_GET_MAX_MEM_SLOTS:
    case MSG_ADD_MEM_REG:
    case MSG_REM_MEM_REG:
        need = PF_SLOTS;
        break;
    case MSG_SET_STATUS:
    case MSG_GET_STATUS:
        need = PF_STATUS;
        break;
    case MSG_SET_VRING_ENABLE:
        g_assert_true(b->acked & F_PROTOCOL);
        break;
    }
    if (msg->flags & MSG_NEED_REPLY) {
        need |= PF_REPLY_ACK;
    }
    g_assert_cmphex(b->negotiated & need, ==, need);
}

static size_t config_msg_size(const Msg *msg)
{
    return offsetof(Msg, config.data) - MSG_HEADER + msg->config.size;
}

static void check_size(const Msg *msg, size_t nfds)
{
    size_t size = 0, want_fds = 0;

    switch (msg->request) {
    case MSG_SET_FEATURES:
    case MSG_SET_PROTOCOL_FEATURES:
    case MSG_SET_STATUS:
    case MSG_NET_SET_MTU:
        size = sizeof(msg->u64);
        break;
    case MSG_SET_OWNER:
        size = msg->size;       /* any payload is ignored */
        break;
    case MSG_SET_VRING_KICK:
    case MSG_SET_VRING_CALL:
    case MSG_SET_VRING_ERR:
        size = sizeof(msg->u64);
        want_fds = msg->u64 & MSG_NO_FD ? 0 : 1;
        break;
    case MSG_SET_VRING_NUM:
    case MSG_SET_VRING_BASE:
    case MSG_SET_VRING_ENABLE:
    case MSG_GET_VRING_BASE:
        size = sizeof(msg->state);
        break;
    case MSG_SET_VRING_ADDR:
        size = sizeof(msg->addr);
        break;
    case MSG_SET_MEM_TABLE:
        want_fds = msg->table.num;
        size = offsetof(Msg, table.region) - MSG_HEADER +
               want_fds * sizeof(MsgRegion);
        break;
    case MSG_SET_BACKEND_REQ_FD:
        want_fds = 1;
        break;
    case MSG_IOTLB:
        size = sizeof(msg->iotlb);
        break;
    case MSG_GET_CONFIG:
    case MSG_SET_CONFIG:
        size = config_msg_size(msg);
        break;
    case MSG_GET_INFLIGHT_FD:
        size = sizeof(msg->inflight);
        break;
    case MSG_SET_INFLIGHT_FD:
        size = sizeof(msg->inflight);
        want_fds = 1;
        break;
    case MSG_ADD_MEM_REG:
        size = sizeof(msg->slot);
        want_fds = 1;
        break;
    case MSG_REM_MEM_REG:
        size = sizeof(msg->slot);
        break;
    default:
        size = msg->size;
        want_fds = nfds;
    }
    g_assert_cmpuint(msg->size, ==, size);
    g_assert_cmpuint(nfds, ==, want_fds);
}

static int *keep_file(int *keep, int *from)
{
    close_fd(keep);
    *keep = *from;
    *from = -1;
    return keep;
}

static void get_inflight(Backend *b, Msg *msg)
{
    if (b->no_inflight) {
        return;
    }
    msg->inflight.mmap_size = INFLIGHT_SIZE;
    msg->inflight.mmap_offset = 0;
    b->reply_fd = qemu_memfd_create("inflight", INFLIGHT_SIZE, false, 0, 0,
                                    &error_abort);
}

/* Returns true if @msg is now a reply. */
static bool get(Backend *b, Msg *msg)
{
    BackendRing *ring;

    switch (msg->request) {
    case MSG_GET_FEATURES:
        msg->u64 = b->features;
        break;
    case MSG_GET_PROTOCOL_FEATURES:
        msg->u64 = b->protocol_features;
        break;
    case MSG_GET_QUEUE_NUM:
        msg->u64 = MAX_RINGS;
        break;
    case MSG_GET_MAX_MEM_SLOTS:
        msg->u64 = MAX_SLOTS;
        break;
    case MSG_GET_STATUS:
        msg->u64 = b->status;
        break;
    case MSG_GET_CONFIG:
        g_assert_cmpuint(msg->config.offset, ==, 0);
        g_assert_cmpuint(msg->config.size, <=, CONFIG_SIZE);
        memcpy(msg->config.data, b->config, msg->config.size);
        return true;
    case MSG_GET_INFLIGHT_FD:
        get_inflight(b, msg);
        return true;
    case MSG_GET_VRING_BASE:
        ring = get_ring(b, msg->state.index);
        msg->state.num = ring->base;
        stop_ring(ring);
        return true;
    default:
        return false;
    }
    msg->size = sizeof(msg->u64);
    return true;
}

static void set(Backend *b, Msg *msg, int *fds)
{
    BackendRing *ring;

    switch (msg->request) {
    case MSG_SET_FEATURES:
        if (any_ring_runs(b)) {
            g_assert_cmphex((b->acked ^ msg->u64) & ~F_LOG_ALL, ==, 0);
        }
        b->acked = msg->u64;
        break;
    case MSG_SET_PROTOCOL_FEATURES:
        g_assert_cmphex(msg->u64 & ~b->protocol_features, ==, 0);
        b->negotiated = msg->u64;
        break;
    case MSG_SET_STATUS:
        g_assert_true(msg->u64 || !any_ring_runs(b));
        b->status = msg->u64;
        break;
    case MSG_SET_MEM_TABLE:
        b->nregions = 0;
        for (unsigned i = 0; i < msg->table.num; i++) {
            add_region(b, &msg->table.region[i], fds[i]);
        }
        look_up_rings(b);
        check_memory(b);
        break;
    case MSG_ADD_MEM_REG:
        look_up_rings(b);
        add_region(b, &msg->slot.region, fds[0]);
        check_memory(b);
        break;
    case MSG_REM_MEM_REG:
        remove_region(b, &msg->slot.region);
        check_memory(b);
        break;
    case MSG_SET_VRING_NUM:
        stopped_ring(b, msg)->num = msg->state.num;
        break;
    case MSG_SET_VRING_BASE:
        stopped_ring(b, msg)->base = msg->state.num;
        break;
    case MSG_SET_VRING_ENABLE:
        get_ring(b, msg->state.index)->enabled = msg->state.num;
        break;
    case MSG_SET_VRING_ADDR:
        ring = stopped_ring(b, msg);
        ring->addr[0] = msg->addr.desc;
        ring->addr[1] = msg->addr.used;
        ring->addr[2] = msg->addr.avail;
        break;
    case MSG_SET_VRING_KICK:
    case MSG_SET_VRING_CALL:
    case MSG_SET_VRING_ERR:
        ring = get_ring(b, msg->u64 & 0xff);
        keep_file(ring_file(ring, msg->request), &fds[0]);
        if (msg->request == MSG_SET_VRING_KICK) {
            start_ring(b, ring);
        }
        break;
    case MSG_SET_BACKEND_REQ_FD:
        keep_file(&b->channel, &fds[0]);
        break;
    case MSG_SET_INFLIGHT_FD:
        g_assert_false(any_ring_runs(b));
        keep_file(&b->inflight, &fds[0]);
        break;
    case MSG_SET_CONFIG:
        g_assert_cmpuint(msg->config.offset + msg->config.size, <=,
                         CONFIG_SIZE);
        memcpy(b->config + msg->config.offset, msg->config.data,
               msg->config.size);
        break;
    case MSG_IOTLB:
        b->iotlb_name = msg->iotlb.user_addr;
        break;
    case MSG_RESET_OWNER:
    case MSG_RESET_DEVICE:
        for (unsigned i = 0; i < MAX_RINGS; i++) {
            stop_ring(&b->ring[i]);
            b->ring[i].enabled = false;
        }
        break;
    }
}

static void note(Backend *b, const Msg *msg)
{
    g_string_append_printf(b->log, "%s%u", b->log->len ? " " : "",
                           msg->request);
    switch (msg->request) {
    case MSG_SET_VRING_NUM:
    case MSG_SET_VRING_ADDR:
    case MSG_SET_VRING_BASE:
    case MSG_GET_VRING_BASE:
    case MSG_SET_VRING_ENABLE:
        g_string_append_printf(b->log, ".%u", msg->state.index);
        break;
    case MSG_SET_VRING_KICK:
    case MSG_SET_VRING_CALL:
    case MSG_SET_VRING_ERR:
        g_string_append_printf(b->log, ".%" PRIu64, msg->u64 & 0xff);
        break;
    }
}

static void spoil(const Backend *b, Msg *msg)
{
    switch (b->spoilage) {
    case SPOIL_REQUEST:
        msg->request++;
        break;
    case SPOIL_FLAGS:
        msg->flags = MSG_VERSION;
        break;
    case SPOIL_EMPTY:
        msg->size = 0;
        break;
    case SPOIL_LONG:
        msg->size += sizeof(msg->u64);
        break;
    case SPOIL_RING:
        msg->state.index++;
        break;
    default:
        g_assert_not_reached();
    }
}

static void handle(Backend *b, Msg *msg, int *fds, size_t nfds)
{
    bool reply;

    g_assert_cmphex(msg->flags & 0x7, ==, MSG_VERSION);
    check_size(msg, nfds);
    check_negotiated(b, msg);
    note(b, msg);

    reply = get(b, msg);
    if (!reply) {
        set(b, msg, fds);
        if (msg->flags & MSG_NEED_REPLY) {
            reply = true;
            msg->size = sizeof(msg->u64);
            msg->u64 = b->refuse == msg->request;
        }
    }
    if (reply) {
        msg->flags = MSG_VERSION | MSG_REPLY;
        if (b->spoil == msg->request) {
            spoil(b, msg);
        }
        g_assert_true(send_with_fds(b->back, msg, MSG_HEADER + msg->size,
                                    &b->reply_fd, b->reply_fd >= 0));
        close_fd(&b->reply_fd);
    }
}

static void handle_all(Backend *b)
{
    int fds[MSG_REGIONS] = { -1 };
    size_t nfds, len;
    Msg msg;

    while ((len = receive_with_fds(b->back, &msg, sizeof(msg), fds, &nfds))) {
        g_assert_cmpuint(len, ==, MSG_HEADER + msg.size);
        handle(b, &msg, fds, nfds);
        for (size_t i = 0; i < nfds; i++) {
            close_fd(&fds[i]);
        }
    }
}

/*
 * The connection
 */

static bool wire_send(void *opaque, const void *msg, size_t len,
                      const int *fds, size_t nfds, Error **errp)
{
    Backend *b = opaque;

    if (b->silent) {
        shutdown(b->back, SHUT_RDWR);
    }
    if (!send_with_fds(b->front, msg, len, fds, nfds)) {
        error_setg(errp, "the connection is gone");
        return false;
    }
    handle_all(b);
    return true;
}

static bool wire_receive(void *opaque, void *msg, size_t size, Error **errp)
{
    Backend *b = opaque;
    size_t nfds;
    int fds[MSG_REGIONS];
    /* One message only: a device waits for a reply before it sends more */
    size_t len = receive_with_fds(b->front, msg, size, fds, &nfds);

    if (!len) {
        error_setg(errp, "the connection is gone");
        return false;
    }
    g_assert_cmpuint(nfds, <=, 1);
    if (nfds) {
        keep_file(&b->reply_fd, &fds[0]);
    }
    return true;
}

static int wire_take_fd(Wire *wire)
{
    Backend *b = container_of(wire, Backend, wire);
    int fd = b->reply_fd;

    b->reply_fd = -1;
    return fd;
}

Backend *backend_new(void)
{
    Backend *b = g_new0(Backend, 1);
    int sv[2];

    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    b->front = sv[0];
    b->back = sv[1];
    b->wire.ops.send = wire_send;
    b->wire.ops.receive = wire_receive;
    b->wire.take_fd = wire_take_fd;
    b->features = F_PROTOCOL | F_VERSION_1 | F_EVENT_IDX | F_RING_PACKED |
                  F_IOMMU | F_LOG_ALL;
    b->protocol_features = PF_MQ | PF_CONFIG | PF_REPLY_ACK |
                           PF_BACKEND_REQ | PF_INFLIGHT | PF_SLOTS |
                           PF_STATUS;
    b->log = g_string_new(NULL);
    b->reply_fd = b->inflight = b->channel = -1;
    for (unsigned i = 0; i < MAX_RINGS; i++) {
        b->ring[i].kick = b->ring[i].call = b->ring[i].err = -1;
    }
    for (unsigned i = 0; i < CONFIG_SIZE; i++) {
        b->config[i] = i;
    }
    return b;
}

void backend_free(Backend *b)
{
    for (unsigned i = 0; i < MAX_RINGS; i++) {
        stop_ring(&b->ring[i]);
        close_fd(&b->ring[i].err);
    }
    close_fd(&b->inflight);
    close_fd(&b->channel);
    close_fd(&b->reply_fd);
    close(b->front);
    close(b->back);
    g_string_free(b->log, true);
    g_free(b);
}

/*
 * Checks for tests
 */

void assert_told(Backend *b, const char *expected)
{
    g_assert_cmpstr(b->log->str, ==, expected);
    backend_forget(b);
}

void backend_forget(Backend *b)
{
    g_string_truncate(b->log, 0);
}

/* An event that is written to @from can be read at @to. */
static void assert_connected(int from, int to)
{
    uint64_t n;

    g_assert_true((from < 0) == (to < 0));
    if (from < 0) {
        return;
    }
    while (read(to, &n, sizeof(n)) > 0) {
        ;
    }
    n = 1;
    g_assert_cmpint(write(from, &n, sizeof(n)), ==, sizeof(n));
    g_assert_cmpint(read(to, &n, sizeof(n)), ==, sizeof(n));
}

static void assert_same_memory(Backend *b, Device *d)
{
    g_assert_cmpuint(b->nregions, ==, d->nmemory);
    for (unsigned i = 0; i < d->nmemory; i++) {
        const Memory *memory = &d->memory[i];
        unsigned j = 0;

        while (b->region[j].wire.guest_addr != memory->guest_addr) {
            g_assert_cmpuint(++j, <, b->nregions);
        }
        g_assert_cmphex(b->region[j].wire.size, ==, memory->size);
        g_assert_cmphex(b->region[j].wire.mmap_offset, ==, memory->offset);
        g_assert_cmphex(b->region[j].ino, ==,
                        inode(memory_file(memory->file)));
    }
}

static void assert_same_ring(Backend *b, Device *d, unsigned i)
{
    BackendRing *ring = &b->ring[i];

    g_assert_cmpint(ring->running, ==, d->started);
    if (!d->started) {
        return;
    }
    g_assert_cmpint(ring->enabled, ==, !d->disabled);
    g_assert_cmpuint(ring->num, ==, d->num);
    if (!(d->features & F_IOMMU)) {
        g_assert_cmphex(ring->ino[0], ==,
                        inode(memory_file(d->memory[0].file)));
        g_assert_cmphex(ring->place[0], ==,
                        d->memory[0].offset + d->addr[i]);
        g_assert_cmphex(ring->place[1], ==, ring->place[0] + 0xc00);
        g_assert_cmphex(ring->place[2], ==, ring->place[0] + 0x800);
    }
    assert_connected(d->kick[i], ring->kick);
    assert_connected(ring->call, d->call[i]);
    assert_connected(ring->err, d->err[i]);
}

void assert_agree(Backend *b, Device *d)
{
    if (d->started) {
        assert_same_memory(b, d);
        g_assert_cmphex(b->acked, ==, d->features);
        if (d->negotiated & PF_INFLIGHT && !b->no_inflight) {
            g_assert_cmphex(inode(b->inflight), ==, inode(d->inflight));
        }
        if (d->negotiated & PF_STATUS) {
            g_assert_cmphex(b->status, ==, STATUS_OK);
        }
    }
    for (unsigned i = 0; i < d->rings; i++) {
        assert_same_ring(b, d, i);
    }
    g_assert_cmphex(b->negotiated, ==, d->negotiated);
    if (d->negotiated & PF_CONFIG) {
        g_assert_cmpmem(b->config, CONFIG_SIZE, d->config, CONFIG_SIZE);
    }
    if (d->negotiated & PF_BACKEND_REQ) {
        char c = 0;

        g_assert_cmpint(write(b->channel, "x", 1), ==, 1);
        g_assert_cmpint(read(d->channel, &c, 1), ==, 1);
        g_assert_cmpint(c, ==, 'x');
    }
}
