/*
 * Handing the live connection of a socket chardev over
 *
 * Both chardevs are in this process. The connection passes from one to the
 * other through a migration stream.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <glib-unix.h>
#include <netinet/tcp.h>
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/sockets.h"
#include "chardev/char-fe.h"
#include "chardev/char-socket.h"
#include "chardev/char-transfer.h"
#include "io/channel-socket.h"
#include "migration/vmstate.h"
#include "../migration/qemu-file.h"
#include "../migration/savevm.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-char.h"
#include "qapi/qapi-commands-yank.h"
#include "qom/object_interfaces.h"
#include "system/runstate.h"
#include "count-fds.h"

/* Does this process act as a QEMU that waits for an incoming migration? */
static bool incoming;

bool runstate_check(RunState state)
{
    return state == (incoming ? RUN_STATE_INMIGRATE : RUN_STATE_RUNNING);
}

static char *tmpdir;

#define wait_for(condition)         \
    do {                            \
        while (!(condition)) {      \
            main_loop_wait(false);  \
        }                           \
    } while (0)

static gboolean set_true(gpointer opaque)
{
    *(bool *)opaque = true;
    return G_SOURCE_REMOVE;
}

/*
 * Run everything in the main loop that is ready, and all timers of less than
 * 20 ms.
 */
static void run_pending(void)
{
    bool expired = false;
    int i;

    g_timeout_add(20, set_true, &expired);
    wait_for(expired);
    for (i = 0; i < 10; i++) {
        main_loop_wait(true);
    }
}

/* A front end that records data and events */
typedef struct Front {
    CharFrontend fe;
    GString *in;
    int opened;
    int closed;
    bool hold_off;      /* when the connection ends */
} Front;

static int front_can_read(void *opaque)
{
    return 64;
}

static void front_read(void *opaque, const uint8_t *buf, int size)
{
    Front *f = opaque;

    g_string_append_len(f->in, (const char *)buf, size);
}

static void front_event(void *opaque, QEMUChrEvent event)
{
    Front *f = opaque;

    f->opened += event == CHR_EVENT_OPENED;
    f->closed += event == CHR_EVENT_CLOSED;
    if (f->hold_off && event == CHR_EVENT_CLOSED) {
        qemu_chr_transfer_hold_off(f->fe.chr);
    }
}

/* Attach without connecting, like a device that waits for a transfer. */
static void front_attach(Front *f, Chardev *chr)
{
    *f = (Front) { .in = g_string_new("") };
    g_assert_true(qemu_chr_fe_init_no_connect(&f->fe, chr, &error_abort));
    qemu_chr_fe_set_handlers(&f->fe, front_can_read, front_read, front_event,
                             NULL, f, NULL, true);
}

static void front_detach(Front *f)
{
    qemu_chr_fe_deinit(&f->fe, false);
    g_string_free(f->in, true);
}

static void chardev_remove(const char *id)
{
    qmp_chardev_remove(id, &error_abort);
    g_assert_null(qemu_chr_find(id));
}

typedef struct Address {
    SocketAddressLegacy legacy;
    UnixSocketAddress un;
    InetSocketAddress inet;
    char text[128];
} Address;

typedef enum Family {
    UNIX,
    ABSTRACT,
    INET,
} Family;

/* Initialize @a with an unused address. */
static void address_init(Address *a, Family family)
{
    static int count;

    *a = (Address) {};
    if (family == INET) {
        a->legacy.type = SOCKET_ADDRESS_TYPE_INET;
        strcpy(a->text, "0");
        a->inet.host = (char *)"127.0.0.1";
        a->inet.port = a->text;
        a->legacy.u.inet.data = &a->inet;
    } else {
        a->legacy.type = SOCKET_ADDRESS_TYPE_UNIX;
        snprintf(a->text, sizeof(a->text), "%s/%d.sock", tmpdir, count++);
        a->un.path = a->text;
#ifdef CONFIG_LINUX
        a->un.has_abstract = true;
        a->un.abstract = family == ABSTRACT;
#endif
        a->legacy.u.q_unix.data = &a->un;
    }
}

/* Returns a socket that listens at @a. */
static int address_listen(Address *a)
{
    g_autoptr(SocketAddress) addr = socket_address_flatten(&a->legacy);
    g_autoptr(SocketAddress) bound = NULL;
    int fd = socket_listen(addr, 5, &error_abort);

    if (addr->type == SOCKET_ADDRESS_TYPE_INET) {
        bound = socket_local_address(fd, &error_abort);
        pstrcpy(a->text, sizeof(a->text), bound->u.inet.port);
    }
    return fd;
}

static Chardev *socket_add(const char *id, ChardevSocket sock, Address *a)
{
    ChardevBackend backend = {
        .type = CHARDEV_BACKEND_KIND_SOCKET,
        .u.socket.data = &sock,
    };
    g_autoptr(ChardevReturn) ret = NULL;

    sock.addr = &a->legacy;
    sock.has_server = true;
    ret = qmp_chardev_add(id, &backend, &error_abort);
    return qemu_chr_find(id);
}

/* A kind of chardev whose connection can be handed over */
typedef struct Kind {
    const char *name;
    Family family;
    ChardevSocket sock;
    /* what the chardev sends first */
    const char *greeting;
} Kind;

#define WAIT(on) .server = true, .has_wait = true, .wait = on
#define TELNET WAIT(true), .has_telnet = true, .telnet = true
#define TN3270 WAIT(true), .has_tn3270 = true, .tn3270 = true
#define TELNET_GREETING "\xff\xfb\x01\xff\xfb\x03\xff\xfb\0\xff\xfd\0"
#define TN3270_GREETING "\xff\xfd\x19\xff\xfb\x19\xff\xfd\0\xff\xfb\0" \
                        "\xff\xfd\x18\xff\xfa\x18\x01\xff\xf0"
#define RECONNECT .has_reconnect_ms = true, .reconnect_ms = 1

static const Kind kinds[] = {
    { "client/unix", UNIX },
#ifdef CONFIG_LINUX
    { "client/abstract", ABSTRACT },
#endif
    { "client/inet", INET },
    { "client/nodelay", INET, { .has_nodelay = true, .nodelay = true } },
    { "client/reconnect", UNIX, { RECONNECT } },
    { "client/reconnect-inet", INET, { RECONNECT } },
    { "server/unix", UNIX, { .server = true } },
    { "server/inet", INET, { .server = true } },
    { "server-wait/unix", UNIX, { WAIT(true) } },
#ifdef CONFIG_LINUX
    { "server-wait/abstract", ABSTRACT, { WAIT(true) } },
#endif
    { "server-wait/inet", INET, { WAIT(true) } },
    { "telnet/unix", UNIX, { TELNET }, TELNET_GREETING },
    { "telnet/inet", INET, { TELNET }, TELNET_GREETING },
    { "tn3270/unix", UNIX, { TN3270 }, TN3270_GREETING },
};

static const Kind client_unix = { "client", UNIX };
static const Kind client_inet = { "client", INET };
static const Kind client_reconnect = { "client", UNIX, { RECONNECT } };
static const Kind server_unix = { "server", UNIX, { WAIT(true) } };

/* The chardev that gives its connection away, its front end and its peer */
typedef struct Source {
    const Kind *kind;
    Address address;
    Chardev *chr;
    Front front;
    int listener;       /* the peer's listening socket if @chr is a client */
    int peer;
    int fds_before;
} Source;

static bool peer_readable(int fd)
{
    GPollFD pfd = { .fd = fd, .events = G_IO_IN };

    return g_poll(&pfd, 1, 0) == 1;
}

static void peer_expect(int fd, const char *data, size_t len)
{
    g_autofree char *buf = g_malloc(len);
    size_t got = 0;

    while (got < len) {
        ssize_t n = recv(fd, buf + got, len - got, 0);

        g_assert_cmpint(n, >, 0);
        got += n;
    }
    g_assert_cmpmem(buf, len, data, len);
}

static void peer_send(int fd, const char *text)
{
    g_assert_cmpint(send(fd, text, strlen(text), 0), ==, strlen(text));
}

static void front_expect(Front *f, const char *text)
{
    wait_for(f->in->len >= strlen(text));
    g_assert_cmpstr(f->in->str, ==, text);
    g_string_truncate(f->in, 0);
}

/* Check that data passes in both directions, and the peer sees no end. */
static void check_link(Front *f, int peer)
{
    g_assert_false(peer_readable(peer));
    peer_send(peer, "to qemu");
    front_expect(f, "to qemu");
    g_assert_cmpint(qemu_chr_fe_write_all(&f->fe, (uint8_t *)"from", 4), ==, 4);
    peer_expect(peer, "from", 4);
    g_assert_false(peer_readable(peer));
}

static int server_connect(Chardev *chr)
{
    int fd = socket_connect(SOCKET_CHARDEV(chr)->addr, &error_abort);

    qemu_set_blocking(fd, true, &error_abort);
    return fd;
}

static int client_accept(Source *s)
{
    int fd;

    wait_for(peer_readable(s->listener));
    fd = qemu_accept(s->listener, NULL, NULL);
    g_assert_cmpint(fd, >=, 0);
    return fd;
}

static size_t greeting_len(const Kind *kind)
{
    return kind->sock.has_telnet ? sizeof(TELNET_GREETING) - 1
                                 : sizeof(TN3270_GREETING) - 1;
}

/* Create a chardev of the given kind, connect it and use it. */
static void source_init(Source *s, const Kind *kind)
{
    *s = (Source) { .kind = kind, .listener = -1, .fds_before = count_fds() };
    address_init(&s->address, kind->family);
    if (!kind->sock.server) {
        s->listener = address_listen(&s->address);
    }
    s->chr = socket_add("src", kind->sock, &s->address);
    if (kind->sock.server) {
        s->peer = server_connect(s->chr);
    }
    front_attach(&s->front, s->chr);
    g_assert_true(qemu_chr_connect(s->chr, &error_abort));
    wait_for(s->front.opened == 1);
    if (!kind->sock.server) {
        s->peer = client_accept(s);
    }
    if (kind->greeting) {
        peer_expect(s->peer, kind->greeting, greeting_len(kind));
    }
    check_link(&s->front, s->peer);
}

/* Remove the chardev, as the old QEMU does when it quits. */
static void source_remove_chardev(Source *s)
{
    if (s->chr) {
        front_detach(&s->front);
        chardev_remove("src");
        s->chr = NULL;
    }
}

static void source_cleanup(Source *s)
{
    int i;

    source_remove_chardev(s);
    close(s->peer);
    if (s->listener >= 0) {
        close(s->listener);
    }
    if (s->kind->family == UNIX) {
        if (!s->kind->sock.wait) {
            /* The peer's, or dropped by a destination with its own listener */
            g_unlink(s->address.text);
        }
        g_assert_false(g_file_test(s->address.text, G_FILE_TEST_EXISTS));
    }
    /* A chardev that is reconnecting has a file open for some time */
    for (i = 0; i < 100 && count_fds() != s->fds_before; i++) {
        run_pending();
    }
    g_assert_cmpint(count_fds(), ==, s->fds_before);
}

/* The chardev that takes the connection over */
typedef struct Destination {
    Chardev *chr;
    Front front;
} Destination;

static void dest_init(Destination *d, const Kind *kind, Address *address)
{
    incoming = true;
    d->chr = socket_add("dst", kind->sock, address);
    incoming = false;
    front_attach(&d->front, d->chr);
    g_assert_cmpint(d->front.opened, ==, 0);
}

/* A destination that listens at once cannot have the source's address. */
static void dest_init_for(Destination *d, Source *s)
{
    Address other;

    if (s->kind->sock.server && !s->kind->sock.wait) {
        address_init(&other, s->kind->family);
        dest_init(d, s->kind, &other);
    } else {
        dest_init(d, s->kind, &s->address);
        g_assert_true(d->chr->connect_postponed);
    }
}

static void dest_cleanup(Destination *d)
{
    front_detach(&d->front);
    chardev_remove("dst");
}

static void detach(Source *s, ChardevTransfer *t)
{
    qemu_chr_transfer_init(t);
    g_assert_true(qemu_chr_transfer_check(s->chr, &error_abort));
    g_assert_true(qemu_chr_transfer_detach(s->chr, t, &error_abort));
    g_assert_cmpint(t->num_fds, ==, s->kind->sock.server ? 2 : 1);
}

static QEMUFile *file_new(int fd, bool output)
{
    QIOChannelSocket *ioc = qio_channel_socket_new_fd(fd, &error_abort);
    QEMUFile *f = output ? qemu_file_new_output(QIO_CHANNEL(ioc))
                         : qemu_file_new_input(QIO_CHANNEL(ioc));

    object_unref(OBJECT(ioc));
    return f;
}

/* Returns a socket from which the state can be read. */
static int save(ChardevTransfer *t)
{
    int sv[2];
    QEMUFile *f;

    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    f = file_new(sv[1], true);
    g_assert_cmpint(vmstate_save_state(f, &vmstate_chardev_transfer, t, NULL,
                                       &error_abort), ==, 0);
    qemu_put_byte(f, QEMU_VM_EOF);
    g_assert_cmpint(qemu_fclose(f), ==, 0);
    return sv[0];
}

static int load(ChardevTransfer *t, int fd, Error **errp)
{
    QEMUFile *f = file_new(fd, false);
    int ret = vmstate_load_state(f, &vmstate_chardev_transfer, t, 1, errp);

    qemu_fclose(f);
    return ret;
}

/* Pass the connection in @from through a stream, and clear @from. */
static void pass(ChardevTransfer *from, ChardevTransfer *to)
{
    int fd = save(from);

    qemu_chr_transfer_clear(from);
    g_assert_cmpint(from->num_fds, ==, 0);
    qemu_chr_transfer_init(to);
    g_assert_cmpint(load(to, fd, &error_abort), ==, 0);
}

static void attach(Chardev *chr, Front *f, ChardevTransfer *t)
{
    int opened = f->opened;

    g_assert_true(qemu_chr_transfer_attach(chr, t, &error_abort));
    g_assert_cmpint(f->opened, ==, opened + 1);
    g_assert_cmpint(f->closed, ==, 0);
    g_assert_false(chr->connect_postponed);
    g_assert_cmpint(t->num_fds, ==, 0);
    g_assert_true(object_property_get_bool(OBJECT(chr), "connected",
                                           &error_abort));
}

static void move(Source *s, Destination *d)
{
    ChardevTransfer out, in;

    detach(s, &out);
    pass(&out, &in);
    attach(d->chr, &d->front, &in);
}

/* After a move, the destination reads what was sent while it was detached. */
static void test_move(gconstpointer opaque)
{
    ChardevTransfer out, in;
    Destination d;
    Source s;
    int nodelay = 0;
    socklen_t len;

    source_init(&s, opaque);
    dest_init_for(&d, &s);
    detach(&s, &out);
    peer_send(s.peer, "in between");
    pass(&out, &in);
    run_pending();
    g_assert_false(peer_readable(s.peer));
    attach(d.chr, &d.front, &in);
    front_expect(&d.front, "in between");
    check_link(&d.front, s.peer);
    if (s.kind->sock.nodelay) {
        len = sizeof(nodelay);
        g_assert_cmpint(getsockopt(SOCKET_CHARDEV(d.chr)->sioc->fd,
                                   IPPROTO_TCP, TCP_NODELAY, &nodelay, &len),
                        ==, 0);
        g_assert_true(nodelay);
    }

    source_remove_chardev(&s);
    check_link(&d.front, s.peer);
    g_assert_cmpint(d.front.opened, ==, 1);
    dest_cleanup(&d);
    source_cleanup(&s);
}

/* The connection moves several times in a row. */
static void test_move_on(gconstpointer opaque)
{
    ChardevTransfer out, in;
    Destination d;
    Source s;
    int i, fds;

    source_init(&s, opaque);
    dest_init(&d, opaque, &s.address);
    move(&s, &d);
    source_remove_chardev(&s);
    fds = count_fds();

    for (i = 0; i < 3; i++) {
        qemu_chr_transfer_init(&out);
        g_assert_true(qemu_chr_transfer_detach(d.chr, &out, &error_abort));
        pass(&out, &in);
        dest_cleanup(&d);
        dest_init(&d, opaque, &s.address);
        attach(d.chr, &d.front, &in);
        check_link(&d.front, s.peer);
        g_assert_cmpint(count_fds(), ==, fds);
    }
    dest_cleanup(&d);
    source_cleanup(&s);
}

/* The source takes its connection back and continues to use it. */
static void test_take_back(gconstpointer opaque)
{
    ChardevTransfer t;
    Source s;
    Error *err = NULL;

    source_init(&s, opaque);
    detach(&s, &t);
    g_assert_false(qemu_chr_transfer_check(s.chr, &err));
    error_free_or_abort(&err);
    peer_send(s.peer, "in between");
    run_pending();
    attach(s.chr, &s.front, &t);
    front_expect(&s.front, "in between");
    check_link(&s.front, s.peer);

    /* This works more than once */
    detach(&s, &t);
    attach(s.chr, &s.front, &t);
    check_link(&s.front, s.peer);
    source_cleanup(&s);
}

/* The destination has loaded the connection, but dies. */
static void test_take_back_late(gconstpointer opaque)
{
    ChardevTransfer out, in;
    Source s;

    source_init(&s, opaque);
    detach(&s, &out);
    qemu_chr_transfer_init(&in);
    g_assert_cmpint(load(&in, save(&out), &error_abort), ==, 0);
    qemu_chr_transfer_clear(&in);
    attach(s.chr, &s.front, &out);
    check_link(&s.front, s.peer);
    source_cleanup(&s);
}

static void check_closed(Front *f, int peer)
{
    shutdown(peer, SHUT_RDWR);
    close(peer);
    wait_for(f->closed == 1);
}

/* When the peer ends the connection, the chardev can get a new one. */
static void check_lives_on(Source *s, Chardev *chr, Front *f)
{
    int opened = f->opened;

    check_closed(f, s->peer);
    if (s->kind->sock.server) {
        s->peer = server_connect(chr);
    } else if (s->kind->sock.has_reconnect_ms) {
        s->peer = client_accept(s);
    } else {
        g_assert_true(chr->connect_postponed);
        g_assert_true(qemu_chr_connect(chr, &error_abort));
        s->peer = client_accept(s);
    }
    wait_for(f->opened == opened + 1);
    if (s->kind->greeting) {
        peer_expect(s->peer, s->kind->greeting, greeting_len(s->kind));
    }
    check_link(f, s->peer);
}

static void test_next_peer(gconstpointer opaque)
{
    Destination d;
    Source s;

    source_init(&s, opaque);
    dest_init_for(&d, &s);
    move(&s, &d);
    source_remove_chardev(&s);
    if (s.kind->sock.wait && s.kind->family == UNIX) {
        g_assert_true(g_file_test(s.address.text, G_FILE_TEST_EXISTS));
    }
    check_lives_on(&s, d.chr, &d.front);
    dest_cleanup(&d);
    source_cleanup(&s);
}

static void test_next_peer_after_take_back(gconstpointer opaque)
{
    ChardevTransfer t;
    Source s;

    source_init(&s, opaque);
    detach(&s, &t);
    attach(s.chr, &s.front, &t);
    check_lives_on(&s, s.chr, &s.front);
    source_cleanup(&s);
}

/*
 * A destination that does not own the connection yet loses it: the next
 * connection is made only after qemu_chr_transfer_go_on().
 */
static void test_hold_off(gconstpointer opaque)
{
    Destination d;
    Source s;

    source_init(&s, opaque);
    dest_init_for(&d, &s);
    move(&s, &d);
    source_remove_chardev(&s);
    d.front.hold_off = true;
    check_closed(&d.front, s.peer);
    d.front.hold_off = false;
    if (s.kind->sock.server) {
        s.peer = server_connect(d.chr);
    }
    /* As devices do after a disconnect */
    qemu_chr_fe_set_handlers(&d.front.fe, front_can_read, front_read,
                             front_event, NULL, &d.front, NULL, true);
    run_pending();
    g_assert_cmpint(d.front.opened, ==, 1);
    g_assert_true(d.chr->connect_postponed);

    g_assert_true(qemu_chr_transfer_go_on(d.chr, &error_abort));
    if (!s.kind->sock.server) {
        s.peer = client_accept(&s);
    }
    for (int i = 0; i < 3; i++) {
        wait_for(d.front.opened == i + 2);
        g_assert_false(d.chr->connect_postponed);
        check_link(&d.front, s.peer);
        shutdown(s.peer, SHUT_RDWR);
        close(s.peer);
        wait_for(d.front.closed == i + 2);
        s.peer = s.kind->sock.server ? server_connect(d.chr)
                                     : client_accept(&s);
    }
    dest_cleanup(&d);
    source_cleanup(&s);
}

/* A destination that fails closes its copy only. */
static void test_drop(gconstpointer opaque)
{
    ChardevTransfer out, in;
    Destination d;
    Source s;

    source_init(&s, opaque);
    dest_init_for(&d, &s);
    detach(&s, &out);
    qemu_chr_transfer_init(&in);
    g_assert_cmpint(load(&in, save(&out), &error_abort), ==, 0);
    attach(d.chr, &d.front, &in);
    qemu_chr_transfer_drop(d.chr);
    run_pending();
    g_assert_cmpint(d.front.opened, ==, 1);
    g_assert_cmpint(d.front.closed, ==, 0);
    g_assert_false(object_property_get_bool(OBJECT(d.chr), "connected",
                                            &error_abort));
    dest_cleanup(&d);

    attach(s.chr, &s.front, &out);
    check_link(&s.front, s.peer);
    source_cleanup(&s);
}

static void assert_cannot_connect(Chardev *chr)
{
    Error *err = NULL;

    g_assert_false(qemu_chr_connect(chr, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), chr->label));
    error_free(err);
    err = NULL;
    g_assert_cmpint(qemu_chr_wait_connected(chr, &err), <, 0);
    error_free_or_abort(&err);
}

/* While its connection is detached, the chardev does nothing. */
static void test_silent(gconstpointer opaque)
{
    YankInstance instance = {
        .type = YANK_INSTANCE_TYPE_CHARDEV,
        .u.chardev.id = (char *)"src",
    };
    ChardevTransfer t;
    Source s;
    int sv[2];

    source_init(&s, opaque);
    detach(&s, &t);
    g_assert_cmpint(qemu_chr_fe_write(&s.front.fe, (uint8_t *)"x", 1), <, 0);
    g_assert_false(qemu_chr_fe_backend_open(&s.front.fe));
    qemu_chr_fe_disconnect(&s.front.fe);
    qmp_yank(&(YankInstanceList) { .value = &instance }, &error_abort);
    assert_cannot_connect(s.chr);
    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    g_assert_cmpint(qemu_chr_add_client(s.chr, sv[0]), <, 0);
    close(sv[0]);
    close(sv[1]);
    peer_send(s.peer, "to nobody");
    run_pending();
    g_assert_false(peer_readable(s.peer));

    /* Not even when the peer ends the connection, and another one waits */
    shutdown(s.peer, SHUT_RDWR);
    close(s.peer);
    s.peer = s.kind->sock.server ? socket_connect(SOCKET_CHARDEV(s.chr)->addr,
                                                  &error_abort) : -1;
    run_pending();
    g_assert_false(peer_readable(s.listener));
    assert_cannot_connect(s.chr);

    /* Nor for a front end that sets its handlers again */
    qemu_chr_fe_set_handlers(&s.front.fe, NULL, NULL, NULL, NULL, NULL, NULL,
                             true);
    qemu_chr_fe_set_handlers(&s.front.fe, front_can_read, front_read,
                             front_event, NULL, &s.front, NULL, true);
    run_pending();
    g_assert_cmpint(s.front.opened, ==, 1);
    g_assert_cmpint(s.front.closed, ==, 0);
    g_assert_cmpuint(s.front.in->len, ==, 0);

    /* The path stays when the chardev is removed */
    source_remove_chardev(&s);
    if (s.kind->sock.server && s.kind->family == UNIX) {
        g_assert_true(g_file_test(s.address.text, G_FILE_TEST_EXISTS));
        g_unlink(s.address.text);
    }
    qemu_chr_transfer_clear(&t);
    source_cleanup(&s);
}

/* The peer ends the connection while it is detached. */
static void test_peer_gone(gconstpointer opaque)
{
    ChardevTransfer out, in;
    Destination d;
    Source s;

    source_init(&s, opaque);
    dest_init_for(&d, &s);
    detach(&s, &out);
    peer_send(s.peer, "last words");
    shutdown(s.peer, SHUT_RDWR);
    pass(&out, &in);
    attach(d.chr, &d.front, &in);
    wait_for(d.front.closed == 1);
    g_assert_cmpint(d.front.opened, ==, 1);
    g_assert_cmpstr(d.front.in->str, ==, "last words");
    g_assert_cmpint(s.front.closed, ==, 0);

    source_remove_chardev(&s);
    dest_cleanup(&d);
    source_cleanup(&s);
}

/* A server that listens already takes the connection, but not the listener. */
static void test_keeps_listener(void)
{
    static const Kind kind = { "server", UNIX, { WAIT(false) } };
    Destination d;
    Address other;
    Source s;
    int client;

    source_init(&s, &server_unix);
    address_init(&other, UNIX);
    dest_init(&d, &kind, &other);
    move(&s, &d);
    check_link(&d.front, s.peer);
    g_assert_cmpstr(SOCKET_CHARDEV(d.chr)->addr->u.q_unix.path, ==,
                    other.text);
    source_remove_chardev(&s);
    g_unlink(s.address.text);

    check_closed(&d.front, s.peer);
    client = server_connect(d.chr);
    wait_for(d.front.opened == 2);
    check_link(&d.front, client);
    s.peer = client;
    dest_cleanup(&d);
    source_cleanup(&s);
}

/* The destination learns the port that the host has chosen. */
static void test_port(void)
{
    static const Kind kind = { "server", INET, { WAIT(true) } };
    g_autofree char *port = NULL;
    Destination d;
    Source s;

    source_init(&s, &kind);
    g_assert_cmpstr(s.address.text, ==, "0");
    port = g_strdup(SOCKET_CHARDEV(s.chr)->addr->u.inet.port);
    dest_init(&d, &kind, &s.address);
    move(&s, &d);
    g_assert_cmpstr(SOCKET_CHARDEV(d.chr)->addr->u.inet.port, ==, port);
    dest_cleanup(&d);
    source_cleanup(&s);
}

/* The connection moves when one half of a telnet command was received. */
static void test_telnet_command(void)
{
    static const Kind kind = { "telnet", UNIX, { TELNET }, TELNET_GREETING };
    Destination d;
    Source s;

    source_init(&s, &kind);
    dest_init(&d, &kind, &s.address);
    peer_send(s.peer, "a\xff");
    front_expect(&s.front, "a");
    move(&s, &d);
    /* IAC WILL ECHO contains no data */
    peer_send(s.peer, "\xfb\x01" "b");
    front_expect(&d.front, "b");
    check_link(&d.front, s.peer);
    dest_cleanup(&d);
    source_cleanup(&s);
}

/* A connection with fd= can be handed over, too. */
static void test_passed_in(void)
{
    Address a = { .legacy.type = SOCKET_ADDRESS_TYPE_FD };
    FdSocketAddress fd_addr = { .str = a.text };
    ChardevTransfer out, in;
    Destination d;
    Front f;
    Chardev *chr;
    int sv[2], fds = count_fds();

    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    a.legacy.u.fd.data = &fd_addr;
    snprintf(a.text, sizeof(a.text), "%d", sv[0]);
    chr = socket_add("src", client_unix.sock, &a);
    front_attach(&f, chr);
    check_link(&f, sv[1]);
    qemu_chr_transfer_init(&out);
    g_assert_true(qemu_chr_transfer_detach(chr, &out, &error_abort));
    attach(chr, &f, &out);
    check_link(&f, sv[1]);

    address_init(&a, UNIX);
    dest_init(&d, &client_unix, &a);
    g_assert_true(qemu_chr_transfer_detach(chr, &out, &error_abort));
    pass(&out, &in);
    attach(d.chr, &d.front, &in);
    check_link(&d.front, sv[1]);
    front_detach(&f);
    chardev_remove("src");
    dest_cleanup(&d);
    close(sv[1]);
    g_assert_cmpint(count_fds(), ==, fds);
}

static ChardevTransfer detached;

static void *detach_thread(void *opaque)
{
    bql_lock();
    detach(opaque, &detached);
    bql_unlock();
    return NULL;
}

/* Detach in another thread, as the migration thread does. */
static void test_thread(gconstpointer opaque)
{
    ChardevTransfer in;
    Destination d;
    QemuThread thread;
    Source s;

    source_init(&s, opaque);
    dest_init_for(&d, &s);
    qemu_thread_create(&thread, "migration", detach_thread, &s,
                       QEMU_THREAD_JOINABLE);
    qemu_thread_join(&thread);
    run_pending();
    pass(&detached, &in);
    attach(d.chr, &d.front, &in);
    check_link(&d.front, s.peer);
    dest_cleanup(&d);
    source_cleanup(&s);
}

/*
 * Connections that cannot be handed over
 */

static void assert_refused(Chardev *chr, const char *reason)
{
    ChardevTransfer t;
    Error *err = NULL;

    g_assert_false(qemu_chr_transfer_check(chr, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), chr->label));
    g_assert_nonnull(strstr(error_get_pretty(err), reason));
    error_free(err);
    err = NULL;

    qemu_chr_transfer_init(&t);
    g_assert_false(qemu_chr_transfer_detach(chr, &t, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), reason));
    error_free(err);
    g_assert_cmpint(t.num_fds, ==, 0);
}

static void test_refuse_not_a_socket(void)
{
    Chardev *chr = qemu_chardev_new("null0", TYPE_CHARDEV_NULL, NULL, NULL,
                                    &error_abort);

    assert_refused(chr, "not a socket");
    object_unparent(OBJECT(chr));
}

static void test_refuse_not_connected(void)
{
    static const Kind kind = { "server", UNIX, { WAIT(false) } };
    Chardev *chr;
    Front f;
    Address a;
    Source s;
    int fd;

    address_init(&a, UNIX);
    chr = socket_add("c0", client_unix.sock, &a);
    assert_refused(chr, "not connected");
    chardev_remove("c0");

    fd = address_listen(&a);
    chr = socket_add("c0", client_reconnect.sock, &a);
    front_attach(&f, chr);
    g_assert_true(qemu_chr_connect(chr, &error_abort));
    assert_refused(chr, "connecting");
    wait_for(f.opened);
    g_assert_true(qemu_chr_transfer_check(chr, &error_abort));
    front_detach(&f);
    chardev_remove("c0");
    close(fd);
    g_unlink(a.text);

    source_init(&s, &kind);
    check_closed(&s.front, s.peer);
    assert_refused(s.chr, "not connected");
    s.peer = server_connect(s.chr);
    wait_for(s.front.opened == 2);
    check_link(&s.front, s.peer);
    source_cleanup(&s);
}

static void test_refuse_negotiating(void)
{
    static const Kind kind = { "telnet", UNIX, { TELNET } };
    Chardev *chr;
    Front f;
    Address a;
    int peer;

    address_init(&a, UNIX);
    chr = socket_add("s0", kind.sock, &a);
    peer = server_connect(chr);
    front_attach(&f, chr);
    g_assert_true(qemu_chr_connect(chr, &error_abort));
    assert_refused(chr, "negotiating");
    wait_for(f.opened);
    peer_expect(peer, TELNET_GREETING, sizeof(TELNET_GREETING) - 1);
    g_assert_true(qemu_chr_transfer_check(chr, &error_abort));
    check_link(&f, peer);
    front_detach(&f);
    chardev_remove("s0");
    close(peer);
}

static void test_refuse_websocket(void)
{
    Chardev *chr;
    Address a;

    address_init(&a, UNIX);
    chr = socket_add("s0", (ChardevSocket) {
        .server = true, .has_websocket = true, .websocket = true
    }, &a);
    assert_refused(chr, "websocket");
    chardev_remove("s0");
}

#ifdef CONFIG_GNUTLS
static void test_refuse_tls(void)
{
    Chardev *chr;
    Address a;

    object_new_with_props("tls-creds-anon", object_get_objects_root(), "anon",
                          &error_abort, "endpoint", "server", NULL);
    address_init(&a, INET);
    chr = socket_add("s0", (ChardevSocket) {
        .server = true, .tls_creds = (char *)"anon"
    }, &a);
    assert_refused(chr, "TLS");
    chardev_remove("s0");
    object_unparent(object_resolve_path_component(object_get_objects_root(),
                                                  "anon"));
}
#endif

/* The front end must first take the descriptors that were received. */
static void test_refuse_received_fds(void)
{
    g_autoptr(QIOChannelSocket) ioc = NULL;
    struct iovec iov = { .iov_base = (char *)"x", .iov_len = 1 };
    int fd = open("/dev/null", O_RDONLY), got;
    Source s;

    source_init(&s, &client_unix);
    ioc = qio_channel_socket_new_fd(dup(s.peer), &error_abort);
    g_assert_cmpint(qio_channel_writev_full(QIO_CHANNEL(ioc), &iov, 1, &fd, 1,
                                            0, &error_abort), ==, 1);
    front_expect(&s.front, "x");
    assert_refused(s.chr, "from its peer");
    got = qemu_chr_fe_get_msgfd(&s.front.fe);
    g_assert_cmpint(got, >=, 0);
    close(got);
    close(fd);
    g_assert_true(qemu_chr_transfer_check(s.chr, &error_abort));
    check_link(&s.front, s.peer);
    g_clear_pointer(&ioc, object_unref);
    s.fds_before--;
    source_cleanup(&s);
}

static void test_refuse_fds_to_send(void)
{
    int fd = open("/dev/null", O_RDONLY);
    Source s;

    source_init(&s, &client_unix);
    g_assert_cmpint(qemu_chr_fe_set_msgfds(&s.front.fe, &fd, 1), ==, 0);
    assert_refused(s.chr, "have not been sent");
    check_link(&s.front, s.peer);
    g_assert_true(qemu_chr_transfer_check(s.chr, &error_abort));
    close(fd);
    s.fds_before--;
    source_cleanup(&s);
}

static void check_refuse_shared(ChardevBackend *backend)
{
    g_autoptr(ChardevReturn) ret = NULL;
    Source s;

    source_init(&s, &client_unix);
    front_detach(&s.front);
    ret = qmp_chardev_add("top0", backend, &error_abort);
    assert_refused(s.chr, "mux or hub");
    assert_refused(qemu_chr_find("top0"), "not a socket");
    chardev_remove("top0");
    g_assert_true(qemu_chr_transfer_check(s.chr, &error_abort));
    front_attach(&s.front, s.chr);
    source_cleanup(&s);
}

static void test_refuse_mux(void)
{
    check_refuse_shared(&(ChardevBackend) {
        .type = CHARDEV_BACKEND_KIND_MUX,
        .u.mux.data = &(ChardevMux) { .chardev = (char *)"src" },
    });
}

static void test_refuse_hub(void)
{
    check_refuse_shared(&(ChardevBackend) {
        .type = CHARDEV_BACKEND_KIND_HUB,
        .u.hub.data = &(ChardevHub) {
            .chardevs = &(strList) { .value = (char *)"src" },
        },
    });
}

static void test_refuse_thread(void)
{
    g_autoptr(GMainContext) context = g_main_context_new();
    Source s;

    source_init(&s, &client_unix);
    qemu_chr_fe_set_handlers(&s.front.fe, front_can_read, front_read,
                             front_event, NULL, &s.front, context, true);
    assert_refused(s.chr, "thread");
    qemu_chr_fe_set_handlers(&s.front.fe, front_can_read, front_read,
                             front_event, NULL, &s.front, NULL, true);
    check_link(&s.front, s.peer);
    source_cleanup(&s);
}

/* add_client may add a connection of another family than the address. */
static void test_refuse_other_family(void)
{
    Chardev *chr;
    Address a;
    int sv[2];

    address_init(&a, INET);
    chr = socket_add("c0", client_inet.sock, &a);
    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    g_assert_cmpint(qemu_chr_add_client(chr, sv[0]), ==, 0);
    assert_refused(chr, "address family");
    chardev_remove("c0");
    close(sv[1]);
}

/* Attaching to another kind of chardev must fail and change nothing. */
static void check_misfit(const Kind *from, const Kind *to, const char *reason)
{
    bool postponed;
    ChardevTransfer t;
    Destination d;
    Address a;
    Source s;
    Error *err = NULL;

    source_init(&s, from);
    detach(&s, &t);
    address_init(&a, to->family);
    dest_init(&d, to, &a);
    postponed = d.chr->connect_postponed;

    g_assert_false(qemu_chr_transfer_attach(d.chr, &t, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "dst"));
    g_assert_nonnull(strstr(error_get_pretty(err), reason));
    error_free(err);
    g_assert_cmpint(d.front.opened, ==, 0);
    g_assert_true(d.chr->connect_postponed == postponed);
    dest_cleanup(&d);

    attach(s.chr, &s.front, &t);
    check_link(&s.front, s.peer);
    source_cleanup(&s);
}

static void test_misfit(void)
{
    static const Kind server_inet = { "server", INET, { WAIT(true) } };
    static const Kind telnet = { "telnet", UNIX, { TELNET }, TELNET_GREETING };
    static const Kind tn3270 = { "tn3270", UNIX, { TN3270 }, TN3270_GREETING };
    static const Kind websock = { "websocket", UNIX, {
        WAIT(true), .has_websocket = true, .websocket = true
    } };

    check_misfit(&client_unix, &server_unix, "it is a server");
    check_misfit(&server_unix, &client_unix, "it is a client");
    check_misfit(&client_unix, &client_inet, "address family");
    check_misfit(&server_inet, &server_unix, "address family");
    check_misfit(&server_unix, &telnet, "telnet");
    check_misfit(&telnet, &server_unix, "telnet");
    check_misfit(&telnet, &tn3270, "telnet");
    check_misfit(&server_unix, &websock, "websocket");
}

/* A destination that has a connection, or is connecting, is refused. */
static void test_busy(void)
{
    ChardevTransfer t;
    Destination d;
    Source s;
    Error *err = NULL;
    int other;

    source_init(&s, &client_reconnect);
    detach(&s, &t);
    dest_init(&d, s.kind, &s.address);
    g_assert_true(qemu_chr_connect(d.chr, &error_abort));
    g_assert_false(qemu_chr_transfer_attach(d.chr, &t, &err));
    error_free_or_abort(&err);
    wait_for(d.front.opened);
    other = client_accept(&s);
    g_assert_false(qemu_chr_transfer_attach(d.chr, &t, &err));
    error_free_or_abort(&err);
    check_link(&d.front, other);

    /* It has lost its connection and is reconnecting */
    check_closed(&d.front, other);
    g_assert_false(qemu_chr_transfer_attach(d.chr, &t, &err));
    error_free_or_abort(&err);
    wait_for(d.front.opened == 2);
    close(client_accept(&s));
    dest_cleanup(&d);
    qemu_chr_transfer_clear(&t);
    source_cleanup(&s);
}

static void test_empty(void)
{
    Address a;
    ChardevTransfer zeroes = {}, t;
    Destination d;
    Error *err = NULL;

    /* Clearing it must not close descriptor 0 */
    qemu_chr_transfer_clear(&zeroes);
    g_assert_cmpint(fcntl(0, F_GETFD), >=, 0);

    qemu_chr_transfer_init(&t);
    address_init(&a, UNIX);
    dest_init(&d, &client_unix, &a);
    g_assert_false(qemu_chr_transfer_attach(d.chr, &t, &err));
    error_free_or_abort(&err);
    dest_cleanup(&d);
}

/*
 * Malformed streams
 */

/* The bytes of a stream, each with the descriptor sent along with it or -1 */
typedef struct Stream {
    uint8_t data[256];
    int fds[256];
    int len;
} Stream;

static void stream_record(Stream *st, ChardevTransfer *t)
{
    g_autoptr(QIOChannelSocket) ioc = NULL;

    ioc = qio_channel_socket_new_fd(save(t), &error_abort);
    for (st->len = 0; ; st->len++) {
        struct iovec iov = { .iov_base = st->data + st->len, .iov_len = 1 };
        g_autofree int *fds = NULL;
        size_t nfds = 0;

        g_assert_cmpint(st->len, <, sizeof(st->data));
        if (!qio_channel_readv_full(QIO_CHANNEL(ioc), &iov, 1, &fds, &nfds, 0,
                                    &error_abort)) {
            break;
        }
        g_assert_cmpint(nfds, <=, 1);
        st->fds[st->len] = nfds ? fds[0] : -1;
    }
}

static void stream_clear(Stream *st)
{
    int i;

    for (i = 0; i < st->len; i++) {
        if (st->fds[i] >= 0) {
            close(st->fds[i]);
        }
    }
}

static int stream_play(const Stream *st, ChardevTransfer *t, Error **errp)
{
    QIOChannelSocket *ioc;
    int sv[2], i;

    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    ioc = qio_channel_socket_new_fd(sv[1], &error_abort);
    for (i = 0; i < st->len; i++) {
        struct iovec iov = { .iov_base = (void *)&st->data[i], .iov_len = 1 };
        int fd = st->fds[i];

        g_assert_cmpint(qio_channel_writev_full(QIO_CHANNEL(ioc), &iov, 1,
                                                &fd, fd >= 0, 0,
                                                &error_abort), ==, 1);
    }
    object_unref(OBJECT(ioc));
    return load(t, sv[0], errp);
}

/* Load @st and attach it to a chardev of @kind. No file may stay open. */
static bool stream_try(const Stream *st, const Kind *kind)
{
    ChardevTransfer t;
    Destination d;
    Address a;
    Error *err = NULL;
    int fds = count_fds();
    bool ok;

    address_init(&a, kind->family);
    dest_init(&d, kind, &a);
    qemu_chr_transfer_init(&t);
    ok = stream_play(st, &t, &err) >= 0;
    g_assert_true(ok == !err);
    if (ok) {
        ok = qemu_chr_transfer_attach(d.chr, &t, &err);
        g_assert_true(ok == !err);
    }
    if (ok) {
        /* Detach it again, or removing the chardev would unlink the path */
        g_assert_true(qemu_chr_transfer_detach(d.chr, &t, &error_abort));
    }
    error_free(err);
    qemu_chr_transfer_clear(&t);
    dest_cleanup(&d);
    g_assert_cmpint(count_fds(), ==, fds);
    return ok;
}

static void test_stream_mutated(gconstpointer opaque)
{
    const Kind *kind = opaque;
    ChardevTransfer t;
    Stream st, bad;
    Source s;
    int i, bit;

    source_init(&s, kind);
    detach(&s, &t);
    stream_record(&st, &t);
    g_assert_true(stream_try(&st, kind));

    /* Only the last byte may be missing: it follows the state */
    for (i = 0; i < st.len; i++) {
        bad = st;
        bad.len = i;
        g_assert_false(stream_try(&bad, kind) && i < st.len - 1);
    }
    for (i = 0; i < st.len; i++) {
        for (bit = 0; bit < 8; bit++) {
            bad = st;
            bad.data[i] ^= 1 << bit;
            stream_try(&bad, kind);
        }
        bad = st;
        bad.data[i] ^= 0xff;
        stream_try(&bad, kind);
    }

    stream_clear(&st);
    attach(s.chr, &s.front, &t);
    check_link(&s.front, s.peer);
    source_cleanup(&s);
}

/* Replace each of the sockets by each kind of descriptor. */
static void test_stream_other_fds(gconstpointer opaque)
{
    const Kind *kind = opaque;
    g_autofree char *path = g_build_filename(tmpdir, "file", NULL);
    int sv[2], seq[2], pipefd[2];
    Address un, inet;
    ChardevTransfer t;
    Stream st, bad;
    Source s;
    int i, j, n = 0;

    source_init(&s, kind);
    detach(&s, &t);
    stream_record(&st, &t);

    address_init(&un, UNIX);
    address_init(&inet, INET);
    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_SEQPACKET, 0, seq), ==, 0);
    g_assert_true(g_unix_open_pipe(pipefd, FD_CLOEXEC, NULL));
    {
        struct {
            int fd;
            bool connection, listener;
        } others[] = {
            { -1 },
            { open("/dev/null", O_RDWR) },
            { open(path, O_RDWR | O_CREAT, 0600) },
            { dup(pipefd[0]) },
            { dup(seq[0]) },
            { qemu_socket(AF_INET, SOCK_DGRAM, 0) },
            { qemu_socket(AF_UNIX, SOCK_DGRAM, 0) },
            { dup(sv[0]), kind->family == UNIX, false },
            { address_listen(&un), false, kind->family == UNIX },
            { address_listen(&inet), false, kind->family == INET },
        };

        for (i = 0; i < st.len; i++) {
            if (st.fds[i] < 0) {
                continue;
            }
            for (j = 0; j < ARRAY_SIZE(others); j++) {
                bad = st;
                bad.fds[i] = others[j].fd;
                g_assert_true(stream_try(&bad, kind) ==
                              (n ? others[j].listener : others[j].connection));
            }
            n++;
        }
        g_assert_cmpint(n, ==, t.num_fds);
        for (j = 0; j < ARRAY_SIZE(others); j++) {
            if (others[j].fd >= 0) {
                close(others[j].fd);
            }
        }
    }
    close(sv[0]);
    close(sv[1]);
    close(seq[0]);
    close(seq[1]);
    close(pipefd[0]);
    close(pipefd[1]);
    g_unlink(path);
    g_unlink(un.text);

    stream_clear(&st);
    attach(s.chr, &s.front, &t);
    check_link(&s.front, s.peer);
    source_cleanup(&s);
}

/* A stream with too many descriptors, and a state that is loaded twice */
static void test_stream_surplus(void)
{
    ChardevTransfer t, in;
    Stream st, bad;
    Source s;
    int i, fds;

    source_init(&s, &server_unix);
    detach(&s, &t);
    stream_record(&st, &t);
    bad = st;
    for (i = 0; i < st.len; i++) {
        bad.fds[i] = st.fds[i] < 0 ? s.peer : st.fds[i];
    }
    stream_try(&bad, s.kind);

    fds = count_fds();
    qemu_chr_transfer_init(&in);
    g_assert_cmpint(stream_play(&st, &in, &error_abort), ==, 0);
    g_assert_cmpint(stream_play(&st, &in, &error_abort), ==, 0);
    qemu_chr_transfer_clear(&in);
    g_assert_cmpint(count_fds(), ==, fds);

    stream_clear(&st);
    attach(s.chr, &s.front, &t);
    source_cleanup(&s);
}

static void test_save_empty(void)
{
    ChardevTransfer t;
    Error *err = NULL;
    QEMUFile *f;
    int sv[2];

    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    f = file_new(sv[1], true);
    qemu_chr_transfer_init(&t);
    g_assert_cmpint(vmstate_save_state(f, &vmstate_chardev_transfer, &t, NULL,
                                       &err), !=, 0);
    error_free_or_abort(&err);
    qemu_fclose(f);
    close(sv[0]);
}

/*
 * The destination does not take the source's address
 */

static void *connect_thread(void *opaque)
{
    SocketAddress *addr = opaque;
    int fd;

    while ((fd = socket_connect(addr, NULL)) < 0) {
        g_usleep(1000);
    }
    return GINT_TO_POINTER(fd);
}

static void test_listen_late(void)
{
    g_autoptr(SocketAddress) addr = NULL;
    QemuThread client;
    Chardev *chr;
    Front f;
    Address a;
    int fd, peer;
    Error *err = NULL;

    address_init(&a, INET);
    fd = address_listen(&a);
    addr = socket_address_flatten(&a.legacy);
    incoming = true;
    chr = socket_add("s0", server_unix.sock, &a);
    incoming = false;
    g_assert_true(chr->connect_postponed);
    g_assert_nonnull(strstr(chr->filename, a.text));

    /* An address in use is an error in connect, which can be repeated */
    g_assert_false(qemu_chr_connect(chr, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "s0"));
    error_free(err);
    g_assert_true(chr->connect_postponed);
    close(fd);

    front_attach(&f, chr);
    qemu_thread_create(&client, "client", connect_thread, addr,
                       QEMU_THREAD_JOINABLE);
    g_assert_true(qemu_chr_connect(chr, &error_abort));
    g_assert_false(chr->connect_postponed);
    peer = GPOINTER_TO_INT(qemu_thread_join(&client));
    qemu_set_blocking(peer, true, &error_abort);
    check_link(&f, peer);

    /* The next client is accepted in the background */
    check_closed(&f, peer);
    peer = server_connect(chr);
    wait_for(f.opened == 2);
    check_link(&f, peer);
    front_detach(&f);
    chardev_remove("s0");
    close(peer);
}

/* A destination that never connects leaves the path to the source. */
static void test_listen_path(void)
{
    Destination d;
    Source s;

    source_init(&s, &server_unix);
    dest_init(&d, &server_unix, &s.address);
    dest_cleanup(&d);

    check_closed(&s.front, s.peer);
    s.peer = server_connect(s.chr);
    wait_for(s.front.opened == 2);
    check_link(&s.front, s.peer);
    source_cleanup(&s);
}

/* A server that got a connection by add_client listens when it connects. */
static void test_listen_add_client(void)
{
    Chardev *chr;
    Front f;
    Address a;
    int sv[2], peer;

    address_init(&a, UNIX);
    incoming = true;
    chr = socket_add("s0", server_unix.sock, &a);
    incoming = false;
    front_attach(&f, chr);
    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    g_assert_cmpint(qemu_chr_add_client(chr, sv[0]), ==, 0);
    assert_refused(chr, "does not listen");
    g_assert_true(qemu_chr_connect(chr, &error_abort));
    check_link(&f, sv[1]);

    check_closed(&f, sv[1]);
    peer = server_connect(chr);
    wait_for(f.opened == 2);
    check_link(&f, peer);
    front_detach(&f);
    chardev_remove("s0");
    close(peer);
}

/* Servers with wait=off or with fd= listen when they are created. */
static void test_listen_at_once(void)
{
    Address a = { .legacy.type = SOCKET_ADDRESS_TYPE_FD };
    FdSocketAddress fd_addr = { .str = a.text };
    Address b;
    Chardev *chr;

    incoming = true;
    address_init(&b, UNIX);
    chr = socket_add("s0", (ChardevSocket) { .server = true }, &b);
    close(server_connect(chr));
    chardev_remove("s0");

    /* The name of a descriptor is only valid while the chardev is created */
    a.legacy.u.fd.data = &fd_addr;
    snprintf(a.text, sizeof(a.text), "%d", address_listen(&b));
    chr = socket_add("s0", server_unix.sock, &a);
    close(server_connect(chr));
    chardev_remove("s0");
    g_unlink(b.text);
    incoming = false;
}

static void add_kind_tests(const char *what, GTestDataFunc func)
{
    size_t i;

    for (i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autofree char *path = g_strdup_printf("/char/transfer/%s/%s", what,
                                                kinds[i].name);
        g_test_add_data_func(path, &kinds[i], func);
    }
}

int main(int argc, char **argv)
{
    int ret;

    qemu_init_main_loop(&error_abort);
    socket_init();
    g_test_init(&argc, &argv, NULL);
    module_call_init(MODULE_INIT_QOM);
    /* Received files that are not used are reported on stderr: be silent */
    g_setenv("QTEST_SILENT_ERRORS", "1", true);
    tmpdir = g_dir_make_tmp("test-char-transfer.XXXXXX", NULL);
    g_assert_nonnull(tmpdir);

    add_kind_tests("move", test_move);
    add_kind_tests("take-back", test_take_back);
    add_kind_tests("take-back-late", test_take_back_late);
    add_kind_tests("next-peer", test_next_peer);
    add_kind_tests("next-peer-after-take-back",
                   test_next_peer_after_take_back);
    g_test_add_data_func("/char/transfer/hold-off/client", &client_reconnect,
                         test_hold_off);
    g_test_add_data_func("/char/transfer/hold-off/server", &server_unix,
                         test_hold_off);
    g_test_add_data_func("/char/transfer/drop/client", &client_reconnect,
                         test_drop);
    g_test_add_data_func("/char/transfer/drop/server", &server_unix,
                         test_drop);
    add_kind_tests("silent", test_silent);
    add_kind_tests("peer-gone", test_peer_gone);
    g_test_add_data_func("/char/transfer/move-on/client", &client_unix,
                         test_move_on);
    g_test_add_data_func("/char/transfer/move-on/server", &server_unix,
                         test_move_on);
    g_test_add_data_func("/char/transfer/thread/client", &client_reconnect,
                         test_thread);
    g_test_add_data_func("/char/transfer/thread/server", &server_unix,
                         test_thread);
    g_test_add_func("/char/transfer/keeps-listener", test_keeps_listener);
    g_test_add_func("/char/transfer/port", test_port);
    g_test_add_func("/char/transfer/telnet-command", test_telnet_command);
    g_test_add_func("/char/transfer/passed-in", test_passed_in);

    g_test_add_func("/char/transfer/refuse/not-a-socket",
                    test_refuse_not_a_socket);
    g_test_add_func("/char/transfer/refuse/not-connected",
                    test_refuse_not_connected);
    g_test_add_func("/char/transfer/refuse/negotiating",
                    test_refuse_negotiating);
    g_test_add_func("/char/transfer/refuse/websocket", test_refuse_websocket);
#ifdef CONFIG_GNUTLS
    g_test_add_func("/char/transfer/refuse/tls", test_refuse_tls);
#endif
    g_test_add_func("/char/transfer/refuse/received-fds",
                    test_refuse_received_fds);
    g_test_add_func("/char/transfer/refuse/fds-to-send",
                    test_refuse_fds_to_send);
    g_test_add_func("/char/transfer/refuse/mux", test_refuse_mux);
    g_test_add_func("/char/transfer/refuse/hub", test_refuse_hub);
    g_test_add_func("/char/transfer/refuse/thread", test_refuse_thread);
    g_test_add_func("/char/transfer/refuse/other-family",
                    test_refuse_other_family);
    g_test_add_func("/char/transfer/refuse/misfit", test_misfit);
    g_test_add_func("/char/transfer/refuse/busy", test_busy);
    g_test_add_func("/char/transfer/refuse/empty", test_empty);

    g_test_add_data_func("/char/transfer/stream/mutated/client", &client_unix,
                         test_stream_mutated);
    g_test_add_data_func("/char/transfer/stream/mutated/server", &server_unix,
                         test_stream_mutated);
    g_test_add_data_func("/char/transfer/stream/other-fds/client",
                         &client_unix, test_stream_other_fds);
    g_test_add_data_func("/char/transfer/stream/other-fds/server",
                         &server_unix, test_stream_other_fds);
    g_test_add_func("/char/transfer/stream/surplus", test_stream_surplus);
    g_test_add_func("/char/transfer/stream/empty", test_save_empty);

    g_test_add_func("/char/transfer/listen/late", test_listen_late);
    g_test_add_func("/char/transfer/listen/path", test_listen_path);
    g_test_add_func("/char/transfer/listen/add-client",
                    test_listen_add_client);
    g_test_add_func("/char/transfer/listen/at-once", test_listen_at_once);

    ret = g_test_run();
    g_assert_cmpint(g_rmdir(tmpdir), ==, 0);
    g_free(tmpdir);
    return ret;
}
