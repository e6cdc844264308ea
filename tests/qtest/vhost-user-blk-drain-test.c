/*
 * QTest testcase for stopping rings of a vhost-user-blk export while requests
 * are in flight
 *
 * The test acts as the front-end of qemu-storage-daemon, and needs no QEMU. So
 * it can check the state of a ring when it gets a reply.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/eventfd.h>
#include <sys/un.h>
#include "qemu/bswap.h"
#include "qemu/memfd.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_ring.h"
#include "subprojects/libvhost-user/libvhost-user.h"
#include "libqmp.h"
#include "storage-daemon.h"

#define TIMEOUT_S       60
#define RINGS           2
#define RING_SIZE       16
#define RING_MEMORY     (256 * KiB)     /* its structures and its buffers */
#define BUFFER_OFFSET   (16 * KiB)
#define BUFFER_SIZE     (64 * KiB)

typedef struct Ring {
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint64_t memory;            /* guest address */
    uint16_t next;              /* index of the next request */
    int kick;
    int call;
} Ring;

typedef struct Fixture {
    bool iothread;
    StorageDaemon daemon;
    struct sockaddr_un addr;
    socklen_t addrlen;
    int sock;                   /* the vhost-user connection */
    int memfd;
    uint8_t *memory;            /* guest address 0 */
    Ring rings[RINGS];
} Fixture;

/*
 * vhost-user
 */

static void vu_send_fd(Fixture *f, VhostUserMsg *msg, int fd)
{
    struct iovec iov = {
        .iov_base = msg,
        .iov_len = VHOST_USER_HDR_SIZE + msg->size,
    };
    char control[CMSG_SPACE(sizeof(int))] = {};
    struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };

    msg->flags = 1;             /* the version */
    if (fd >= 0) {
        struct cmsghdr *cmsg;

        hdr.msg_control = control;
        hdr.msg_controllen = sizeof(control);
        cmsg = CMSG_FIRSTHDR(&hdr);
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
    }
    g_assert_cmpint(sendmsg(f->sock, &hdr, MSG_NOSIGNAL), ==, iov.iov_len);
}

static void vu_send_u64(Fixture *f, int request, uint64_t value, int fd)
{
    VhostUserMsg msg = {
        .request = request,
        .size = sizeof(msg.payload.u64),
        .payload.u64 = value,
    };

    vu_send_fd(f, &msg, fd);
}

static void vu_send_state(Fixture *f, int request, int ring, unsigned num)
{
    VhostUserMsg msg = {
        .request = request,
        .size = sizeof(msg.payload.state),
        .payload.state = { .index = ring, .num = num },
    };

    vu_send_fd(f, &msg, -1);
}

/* Wait for the reply to @request; fail if the connection ends instead. */
static VhostUserMsg vu_receive(Fixture *f, int request)
{
    VhostUserMsg msg = {};
    size_t size;

    size = recv(f->sock, &msg, VHOST_USER_HDR_SIZE, MSG_WAITALL);
    g_assert_cmpuint(size, ==, VHOST_USER_HDR_SIZE);
    g_assert_cmpint(msg.request, ==, request);
    g_assert_cmpuint(msg.size, <=, sizeof(msg.payload));
    size = recv(f->sock, &msg.payload, msg.size, MSG_WAITALL);
    g_assert_cmpuint(size, ==, msg.size);
    return msg;
}

static void vu_connect(Fixture *f)
{
    f->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(f->sock, >=, 0);
    g_assert_cmpint(connect(f->sock, (struct sockaddr *)&f->addr,
                            f->addrlen), ==, 0);
}

static void vu_disconnect(Fixture *f)
{
    close(f->sock);
    f->sock = -1;
}

static void vu_set_memory(Fixture *f)
{
    VhostUserMsg msg = {
        .request = VHOST_USER_SET_MEM_TABLE,
        .size = offsetof(VhostUserMemory, regions[1]),
        .payload.memory = {
            .nregions = 1,
            .regions[0] = {
                .memory_size = RINGS * RING_MEMORY,
                .userspace_addr = (uintptr_t)f->memory,
            },
        },
    };

    vu_send_fd(f, &msg, f->memfd);
}

/* Wait until all messages so far have been processed. */
static uint64_t vu_get_features(Fixture *f)
{
    VhostUserMsg msg = { .request = VHOST_USER_GET_FEATURES };

    vu_send_fd(f, &msg, -1);
    return vu_receive(f, VHOST_USER_GET_FEATURES).payload.u64;
}

static void vu_start_ring(Fixture *f, int index, unsigned base)
{
    Ring *r = &f->rings[index];
    eventfd_t count;
    VhostUserMsg addr = {
        .request = VHOST_USER_SET_VRING_ADDR,
        .size = sizeof(addr.payload.addr),
        .payload.addr = {
            .index = index,
            .desc_user_addr = (uintptr_t)r->desc,
            .avail_user_addr = (uintptr_t)r->avail,
            .used_user_addr = (uintptr_t)r->used,
        },
    };

    vu_send_state(f, VHOST_USER_SET_VRING_NUM, index, RING_SIZE);
    vu_send_state(f, VHOST_USER_SET_VRING_BASE, index, base);
    vu_send_fd(f, &addr, -1);
    vu_send_u64(f, VHOST_USER_SET_VRING_CALL, index, r->call);
    vu_send_u64(f, VHOST_USER_SET_VRING_KICK, index, r->kick);

    /* libvhost-user signals a call fd when it gets it */
    vu_get_features(f);
    g_assert_cmpint(eventfd_read(r->call, &count), ==, 0);
}

/* Connect, and start all rings empty. */
static void vu_start(Fixture *f)
{
    uint64_t features;
    int i;

    memset(f->memory, 0, RINGS * RING_MEMORY);
    vu_connect(f);
    features = vu_get_features(f);
    g_assert_true(features & 1ull << VIRTIO_RING_F_EVENT_IDX);
    vu_send_u64(f, VHOST_USER_SET_FEATURES,
                1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX,
                -1);
    vu_set_memory(f);
    for (i = 0; i < RINGS; i++) {
        f->rings[i].next = 0;
        vu_start_ring(f, i, 0);
    }
}

/*
 * Rings
 */

static void ring_init(Fixture *f, int index)
{
    Ring *r = &f->rings[index];
    uint8_t *memory = f->memory + index * RING_MEMORY;

    r->memory = index * RING_MEMORY;
    r->desc = (void *)memory;
    r->avail = (void *)(memory + 4 * KiB);
    r->used = (void *)(memory + 8 * KiB);
    r->kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    r->call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    g_assert_cmpint(r->kick, >=, 0);
    g_assert_cmpint(r->call, >=, 0);
}

static uint16_t ring_completed(Ring *r)
{
    return le16_to_cpu(qatomic_load_acquire(&r->used->idx));
}

/* Returns how many requests the back-end has taken off the avail ring. */
static uint16_t ring_taken(Ring *r)
{
    uint16_t *event = (uint16_t *)&r->used->ring[RING_SIZE];

    return le16_to_cpu(qatomic_load_acquire(event));
}

static void ring_desc(Ring *r, int desc, unsigned offset, unsigned len,
                      unsigned flags)
{
    r->desc[desc] = (struct vring_desc) {
        .addr = cpu_to_le64(r->memory + BUFFER_OFFSET + offset),
        .len = cpu_to_le32(len),
        .flags = cpu_to_le16(flags),
        .next = cpu_to_le16(desc + 1),
    };
}

/* Submit the request at descriptor @desc; wait until the back-end takes it. */
static void ring_submit(Ring *r, int desc)
{
    r->avail->ring[r->next % RING_SIZE] = cpu_to_le16(desc);
    /* Ask for a call when the next request completes */
    r->avail->ring[RING_SIZE] = cpu_to_le16(ring_completed(r));
    qatomic_store_release(&r->avail->idx, cpu_to_le16(++r->next));
    g_assert_cmpint(eventfd_write(r->kick, 1), ==, 0);
    while (ring_taken(r) != r->next) {
        g_usleep(1000);
    }
}

/* Requests share descriptors and buffers, because they are all the same. */
static void ring_request(Ring *r, unsigned type, unsigned len)
{
    struct virtio_blk_outhdr hdr = { .type = cpu_to_le32(type) };

    memcpy((uint8_t *)r->desc + BUFFER_OFFSET, &hdr, sizeof(hdr));
    ring_desc(r, 0, 0, sizeof(hdr), VRING_DESC_F_NEXT);
    ring_desc(r, 1, 1 * KiB, len, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
    ring_desc(r, 2, 1 * KiB + BUFFER_SIZE, 1, VRING_DESC_F_WRITE);
    ring_submit(r, 0);
}

static void ring_read(Ring *r)
{
    ring_request(r, VIRTIO_BLK_T_IN, BUFFER_SIZE);
}

/* Wait until all requests have completed and there was a call. */
static void ring_wait(Ring *r)
{
    eventfd_t count;

    while (ring_completed(r) != r->next) {
        g_usleep(1000);
    }
    while (eventfd_read(r->call, &count) < 0) {
        g_assert_cmpint(errno, ==, EAGAIN);
        g_usleep(1000);
    }
}

/* Execute a request that completes at once. */
static void ring_get_id(Ring *r)
{
    ring_request(r, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_ID_BYTES);
    ring_wait(r);
}

/* Submit a read that completes only when a drained section begins. */
static void ring_read_held(Ring *r)
{
    ring_read(r);
    ring_wait(r);
    ring_read(r);
}

/* Request to stop a ring. stopped() gets the reply. */
static void stop(Fixture *f, int index)
{
    vu_send_state(f, VHOST_USER_GET_VRING_BASE, index, 0);
}

static unsigned stopped(Fixture *f, int index)
{
    Ring *r = &f->rings[index];
    VhostUserMsg msg = vu_receive(f, VHOST_USER_GET_VRING_BASE);

    /* When the reply arrives, no request may be in flight */
    g_assert_cmpuint(ring_completed(r), ==, r->next);
    g_assert_cmpuint(msg.payload.state.index, ==, index);
    g_assert_cmpuint(msg.payload.state.num, ==, r->next);
    return msg.payload.state.num;
}

static bool has_answer(Fixture *f)
{
    GPollFD poll = { .fd = f->sock, .events = G_IO_IN };

    return g_poll(&poll, 1, 0) == 1;
}

static void start_daemon(Fixture *f, const char *disk)
{
    g_autofree char *options =
        g_strdup_printf(",num-queues=%d%s", RINGS,
                        f->iothread ? ",iothread=thread" : "");
    int listener;

    /* Bind to a unique abstract address */
    f->addr.sun_family = AF_UNIX;
    f->addrlen = sizeof(f->addr);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    g_assert_cmpint(bind(listener, (struct sockaddr *)&f->addr,
                         sizeof(sa_family_t)), ==, 0);
    g_assert_cmpint(getsockname(listener, (struct sockaddr *)&f->addr,
                                &f->addrlen), ==, 0);
    g_assert_cmpint(listen(listener, 1), ==, 0);
    storage_daemon_start(&f->daemon, listener, disk, options);
}

static void setup(Fixture *f, const void *iothread)
{
    Error *err = NULL;
    int i;

    alarm(TIMEOUT_S);
    f->iothread = iothread;
    f->memory = qemu_memfd_alloc("guest", RINGS * RING_MEMORY, 0, &f->memfd,
                                 &err);
    g_assert_null(err);
    for (i = 0; i < RINGS; i++) {
        ring_init(f, i);
    }
}

static void teardown(Fixture *f, const void *iothread)
{
    int i;

    storage_daemon_stop(&f->daemon);
    close(f->sock);
    for (i = 0; i < RINGS; i++) {
        close(f->rings[i].kick);
        close(f->rings[i].call);
    }
    qemu_memfd_free(f->memory, RINGS * RING_MEMORY, f->memfd);
    alarm(0);
}

/*
 * The tests
 */

/* Requests complete before the ring stops, and the ring can start again. */
static void test_stop(Fixture *f, const void *iothread)
{
    int i;

    start_daemon(f, DISK_SLOW);
    vu_start(f);
    for (i = 0; i < RINGS; i++) {
        ring_read(&f->rings[i]);
        ring_read(&f->rings[i]);
    }
    for (i = 0; i < RINGS; i++) {
        unsigned base;

        stop(f, i);
        base = stopped(f, i);
        ring_wait(&f->rings[i]);            /* check for the call */
        vu_start_ring(f, i, base);
    }
    for (i = 0; i < RINGS; i++) {
        ring_read(&f->rings[i]);
        ring_wait(&f->rings[i]);
    }
}

/* Stopping a ring must not wait for a malformed request. */
static void test_malformed(Fixture *f, const void *iothread)
{
    Ring *r = &f->rings[0];
    VhostUserMsg msg;

    start_daemon(f, DISK_HELD);
    vu_start(f);
    ring_desc(r, 3, 0, sizeof(struct virtio_blk_outhdr), 0);
    ring_submit(r, 3);
    stop(f, 0);
    msg = vu_receive(f, VHOST_USER_GET_VRING_BASE);
    g_assert_cmpuint(msg.payload.state.num, ==, 1);
}

/* Let ring 0 wait for a request to stop, while everything else runs. */
static void start_stopping(Fixture *f)
{
    start_daemon(f, DISK_HELD);
    vu_start(f);
    ring_read_held(&f->rings[0]);
    stop(f, 0);
    /* When these requests have completed, the stop has been received, too */
    ring_get_id(&f->rings[1]);
    ring_get_id(&f->rings[1]);
    storage_daemon_qmp(&f->daemon, "query-block-exports");
    g_assert_false(has_answer(f));
}

/* While a ring stops, other rings, the monitor and drained sections work. */
static void test_drained_section(Fixture *f, const void *iothread)
{
    start_stopping(f);
    storage_daemon_drain(&f->daemon);
    vu_start_ring(f, 0, stopped(f, 0));
    ring_get_id(&f->rings[0]);
    ring_get_id(&f->rings[1]);
    storage_daemon_drain(&f->daemon);
    ring_get_id(&f->rings[0]);
}

/* The front-end disconnects while a ring stops. */
static void test_disconnect_stopping(Fixture *f, const void *iothread)
{
    start_stopping(f);
    vu_disconnect(f);
    storage_daemon_drain(&f->daemon);
    vu_start(f);
    ring_get_id(&f->rings[0]);
    ring_get_id(&f->rings[1]);
}

/* The front-end disconnects while a request is in flight. */
static void test_disconnect(Fixture *f, const void *iothread)
{
    start_daemon(f, DISK_HELD);
    vu_start(f);
    ring_read_held(&f->rings[0]);
    vu_disconnect(f);
    storage_daemon_qmp(&f->daemon, "query-block-exports");
    storage_daemon_qmp(&f->daemon, "query-block-exports");
    storage_daemon_drain(&f->daemon);
    vu_start(f);
    ring_get_id(&f->rings[0]);
    ring_get_id(&f->rings[1]);
}

static void test_export_del(Fixture *f, const void *iothread)
{
    bool deleted = false;

    start_daemon(f, DISK_SLOW);
    vu_start(f);
    ring_read(&f->rings[0]);
    ring_read(&f->rings[1]);
    stop(f, 0);
    qmp_fd_send(f->daemon.qmp, "{ 'execute': 'block-export-del', 'arguments': {"
                " 'id': 'export', 'mode': 'hard' } }");
    while (!deleted) {
        g_autoptr(QDict) resp = qmp_fd_receive(f->daemon.qmp);

        g_assert_false(qdict_haskey(resp, "error"));
        deleted = !g_strcmp0(qdict_get_try_str(resp, "event"),
                             "BLOCK_EXPORT_DELETED");
    }
}

/* teardown() ends the daemon while a ring stops. */
static void test_quit(Fixture *f, const void *iothread)
{
    start_daemon(f, DISK_SLOW);
    vu_start(f);
    ring_read(&f->rings[0]);
    ring_read(&f->rings[1]);
    stop(f, 0);
}

static void add(const char *name, void (*test)(Fixture *, const void *))
{
    g_autofree char *main_loop =
        g_strdup_printf("/vhost-user-blk-drain/%s/main-loop", name);
    g_autofree char *iothread =
        g_strdup_printf("/vhost-user-blk-drain/%s/iothread", name);

    g_test_add(main_loop, Fixture, NULL, setup, test, teardown);
    g_test_add(iothread, Fixture, "", setup, test, teardown);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (!storage_daemon_init()) {
        return g_test_run();
    }

    add("stop", test_stop);
    add("malformed", test_malformed);
    add("drained-section", test_drained_section);
    add("disconnect-stopping", test_disconnect_stopping);
    add("disconnect", test_disconnect);
    add("export-del", test_export_del);
    add("quit", test_quit);
    return g_test_run();
}
