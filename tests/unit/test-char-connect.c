/*
 * Chardevs that connect when they are needed, not when they are created
 *
 * The first half tests the generic code with a fake backend class, the second
 * half tests each kind of socket chardev from creation to removal.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#ifdef CONFIG_AF_VSOCK
#include <linux/vm_sockets.h>
#endif
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/sockets.h"
#include "chardev/char-fe.h"
#include "chardev/char-socket.h"
#include "io/channel-socket.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-char.h"
#include "qapi/qapi-commands-yank.h"
#include "qom/object_interfaces.h"
#ifdef CONFIG_TASN1
#include "crypto-tls-x509-helpers.h"
#endif

#define TYPE_CHARDEV_FAKE "chardev-fake"
OBJECT_DECLARE_SIMPLE_TYPE(FakeChardev, CHARDEV_FAKE)

/* A backend for which the test decides whether init and connect succeed */
struct FakeChardev {
    Chardev parent;
    bool connected;
};

static struct {
    int inits;
    int connects;
    int finalized;
    bool refuse_init;
    bool refuse_connect;
} fake;

static bool fake_init(Chardev *chr, ChardevBackend *backend, Error **errp)
{
    fake.inits++;
    if (fake.refuse_init) {
        error_setg(errp, "bad options");
        return false;
    }
    return true;
}

static bool fake_connect(Chardev *chr, Error **errp)
{
    fake.connects++;
    if (fake.refuse_connect) {
        error_setg(errp, "nobody is there");
        return false;
    }
    CHARDEV_FAKE(chr)->connected = true;
    qemu_chr_be_event(chr, CHR_EVENT_OPENED);
    return true;
}

static ChardevConnectionState fake_connection_state(Chardev *chr)
{
    return CHARDEV_FAKE(chr)->connected ? CHARDEV_CONNECTION_STATE_CONNECTED
                                        : CHARDEV_CONNECTION_STATE_DISCONNECTED;
}

static void fake_finalize(Object *obj)
{
    fake.finalized++;
}

static void fake_class_init(ObjectClass *oc, const void *data)
{
    ChardevClass *cc = CHARDEV_CLASS(oc);

    cc->init = fake_init;
    cc->connect = fake_connect;
    cc->chr_connection_state = fake_connection_state;
}

static const TypeInfo fake_type_info = {
    .name = TYPE_CHARDEV_FAKE,
    .parent = TYPE_CHARDEV,
    .instance_size = sizeof(FakeChardev),
    .instance_finalize = fake_finalize,
    .class_init = fake_class_init,
};

/* A front end that records data and events */
typedef struct Front {
    CharFrontend fe;
    GString *in;
    int opened;
    int closed;
    bool refuse_change;
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
}

static int front_change(void *opaque);

static void front_listen(Front *f, GMainContext *context)
{
    if (!f->in) {
        f->in = g_string_new("");
    }
    qemu_chr_fe_set_handlers(&f->fe, front_can_read, front_read, front_event,
                             front_change, f, context, true);
}

static int front_change(void *opaque)
{
    Front *f = opaque;

    if (f->refuse_change) {
        return -1;
    }
    front_listen(f, NULL);
    return 0;
}

static void front_attach(Front *f, Chardev *chr)
{
    g_assert_true(qemu_chr_fe_init(&f->fe, chr, &error_abort));
    front_listen(f, NULL);
}

static void front_detach(Front *f)
{
    qemu_chr_fe_deinit(&f->fe, false);
    if (f->in) {
        g_string_free(f->in, true);
    }
    *f = (Front) {};
}

/* Attaching must fail with an error that contains @reason. */
static void assert_attach_fails(Chardev *chr, const char *reason)
{
    CharFrontend fe = {};
    Error *err = NULL;

    g_assert_false(qemu_chr_fe_init(&fe, chr, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), chr->label));
    g_assert_nonnull(strstr(error_get_pretty(err), reason));
    error_free(err);
    g_assert_null(fe.chr);
    g_assert_null(chr->fe);
}

static ChardevInfo *chardev_info(ChardevInfoList *list, const char *id)
{
    while (list && !g_str_equal(list->value->label, id)) {
        list = list->next;
    }
    g_assert_nonnull(list);
    return list->value;
}

static bool chardev_is(const char *id, ChardevConnectionState state)
{
    g_autoptr(ChardevInfoList) list = qmp_query_chardev(&error_abort);
    ChardevInfo *info = chardev_info(list, id);

    g_assert_true(info->has_state);
    return info->state == state;
}

#define assert_postponed(id) \
    g_assert_true(chardev_is(id, CHARDEV_CONNECTION_STATE_POSTPONED))
#define assert_connecting(id) \
    g_assert_true(chardev_is(id, CHARDEV_CONNECTION_STATE_CONNECTING))
#define assert_connected(id) \
    g_assert_true(chardev_is(id, CHARDEV_CONNECTION_STATE_CONNECTED))
#define assert_disconnected(id) \
    g_assert_true(chardev_is(id, CHARDEV_CONNECTION_STATE_DISCONNECTED))

#define wait_for(condition)         \
    do {                            \
        while (!(condition)) {      \
            main_loop_wait(false);  \
        }                           \
    } while (0)

/* Run everything in the main loop that is ready. */
static void run_pending(void)
{
    int i;

    for (i = 0; i < 10; i++) {
        main_loop_wait(true);
    }
}

static Chardev *fake_new(void)
{
    memset(&fake, 0, sizeof(fake));
    return qemu_chardev_new("fake0", TYPE_CHARDEV_FAKE, NULL, NULL,
                            &error_abort);
}

static void chardev_remove(const char *id)
{
    qmp_chardev_remove(id, &error_abort);
    g_assert_null(qemu_chr_find(id));
}

static void test_create(void)
{
    Chardev *chr = fake_new();

    g_assert_cmpint(fake.inits, ==, 1);
    g_assert_cmpint(fake.connects, ==, 0);
    g_assert_cmpstr(chr->filename, ==, "fake");
    g_assert_false(chr->be_open);
    assert_postponed("fake0");

    chardev_remove("fake0");
    g_assert_cmpint(fake.connects, ==, 0);
    g_assert_cmpint(fake.finalized, ==, 1);
}

static void test_create_fails(void)
{
    Error *err = NULL;

    memset(&fake, 0, sizeof(fake));
    fake.refuse_init = true;
    g_assert_null(qemu_chardev_new("fake0", TYPE_CHARDEV_FAKE, NULL, NULL,
                                   &err));
    error_free_or_abort(&err);
    g_assert_null(qemu_chr_find("fake0"));
    g_assert_cmpint(fake.finalized, ==, 1);
    g_assert_cmpint(fake.connects, ==, 0);
}

static void test_attach(void)
{
    Chardev *chr = fake_new();
    Front f = {};
    CharFrontend second = {};
    Error *err = NULL;

    front_attach(&f, chr);
    g_assert_cmpint(fake.connects, ==, 1);
    g_assert_cmpint(f.opened, ==, 1);
    assert_connected("fake0");

    g_assert_false(qemu_chr_fe_init(&second, chr, &err));
    error_free_or_abort(&err);
    g_assert_true(chr->fe == &f.fe);

    front_detach(&f);
    front_attach(&f, chr);
    g_assert_cmpint(fake.connects, ==, 1);
    g_assert_cmpint(f.opened, ==, 1);

    front_detach(&f);
    chardev_remove("fake0");
}

static void test_attach_nothing(void)
{
    CharFrontend fe = {};

    g_assert_true(qemu_chr_fe_init(&fe, NULL, &error_abort));
    g_assert_true(qemu_chr_fe_init_no_connect(&fe, NULL, &error_abort));
}

static void test_retry(void)
{
    Chardev *chr = fake_new();
    Front f = {};
    Error *err = NULL;

    fake.refuse_connect = true;
    assert_attach_fails(chr, "nobody is there");
    assert_attach_fails(chr, "nobody is there");
    g_assert_cmpint(qemu_chr_wait_connected(chr, &err), <, 0);
    g_assert_nonnull(strstr(error_get_pretty(err), "fake0"));
    error_free(err);
    g_assert_cmpint(fake.connects, ==, 3);
    assert_postponed("fake0");

    fake.refuse_connect = false;
    front_attach(&f, chr);
    g_assert_cmpint(fake.connects, ==, 4);
    g_assert_cmpint(f.opened, ==, 1);
    assert_connected("fake0");

    front_detach(&f);
    chardev_remove("fake0");
}

static void test_remove_after_failure(void)
{
    Chardev *chr = fake_new();

    fake.refuse_connect = true;
    assert_attach_fails(chr, "nobody is there");
    chardev_remove("fake0");
    g_assert_cmpint(fake.finalized, ==, 1);
}

static void test_wait_connected(void)
{
    Chardev *chr = fake_new();

    g_assert_cmpint(qemu_chr_wait_connected(chr, &error_abort), ==, 0);
    g_assert_cmpint(qemu_chr_wait_connected(chr, &error_abort), ==, 0);
    g_assert_cmpint(fake.connects, ==, 1);
    chardev_remove("fake0");
}

static void test_no_connect(void)
{
    Chardev *chr = fake_new();
    Front f = {};

    g_assert_true(qemu_chr_fe_init_no_connect(&f.fe, chr, &error_abort));
    g_assert_true(chr->fe == &f.fe);
    g_assert_true(chr->connect_postponed);
    assert_disconnected("fake0");

    front_detach(&f);
    g_assert_cmpint(fake.connects, ==, 0);
    assert_postponed("fake0");

    g_assert_true(qemu_chr_fe_init_no_connect(&f.fe, chr, &error_abort));
    g_assert_cmpint(qemu_chr_fe_wait_connected(&f.fe, &error_abort), ==, 0);
    g_assert_cmpint(fake.connects, ==, 1);

    front_detach(&f);
    chardev_remove("fake0");
}

static void test_no_connect_any_class(void)
{
    Chardev *chr = qemu_chardev_new("null0", TYPE_CHARDEV_NULL, NULL, NULL,
                                    &error_abort);
    g_autoptr(ChardevInfoList) list = qmp_query_chardev(&error_abort);
    CharFrontend fe = {};

    g_assert_false(chr->connect_postponed);
    g_assert_false(chardev_info(list, "null0")->has_state);
    g_assert_true(qemu_chr_fe_init_no_connect(&fe, chr, &error_abort));
    g_assert_cmpint(qemu_chr_fe_wait_connected(&fe, &error_abort), ==, 0);
    qemu_chr_fe_deinit(&fe, true);
}

/* A mux and a hub are front ends of other chardevs, and connect them. */
static void check_stacked(ChardevBackend *backend)
{
    g_autoptr(ChardevReturn) ret = NULL;
    Chardev *chr = fake_new();
    Error *err = NULL;

    fake.refuse_connect = true;
    g_assert_null(qmp_chardev_add("top0", backend, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "fake0"));
    error_free(err);
    g_assert_null(qemu_chr_find("top0"));
    g_assert_null(chr->fe);
    assert_postponed("fake0");

    fake.refuse_connect = false;
    ret = qmp_chardev_add("top0", backend, &error_abort);
    g_assert_cmpint(fake.connects, ==, 2);
    assert_connected("fake0");

    chardev_remove("top0");
    chardev_remove("fake0");
}

static void test_mux(void)
{
    check_stacked(&(ChardevBackend) {
        .type = CHARDEV_BACKEND_KIND_MUX,
        .u.mux.data = &(ChardevMux) { .chardev = (char *)"fake0" },
    });
}

static void test_hub(void)
{
    check_stacked(&(ChardevBackend) {
        .type = CHARDEV_BACKEND_KIND_HUB,
        .u.hub.data = &(ChardevHub) {
            .chardevs = &(strList) { .value = (char *)"fake0" },
        },
    });
}

/*
 * Socket chardevs
 */

static char *tmpdir;

typedef struct Family {
    const char *name;
    SocketAddressType type;
    bool abstract;
} Family;

static const Family families[] = {
    { "unix", SOCKET_ADDRESS_TYPE_UNIX },
#ifdef CONFIG_LINUX
    { "abstract", SOCKET_ADDRESS_TYPE_UNIX, .abstract = true },
#endif
    { "inet", SOCKET_ADDRESS_TYPE_INET },
#ifdef CONFIG_AF_VSOCK
    { "vsock", SOCKET_ADDRESS_TYPE_VSOCK },
#endif
};

static const Family inet = { "inet", SOCKET_ADDRESS_TYPE_INET };

/* Storage for a unique address */
typedef struct Address {
    SocketAddressLegacy legacy;
    InetSocketAddress inet;
    UnixSocketAddress un;
    VsockSocketAddress vsock;
    FdSocketAddress fd;
    char text[128];
} Address;

static void address_init(Address *a, const Family *family)
{
    static int count;

    *a = (Address) { .legacy.type = family->type };
    switch (family->type) {
    case SOCKET_ADDRESS_TYPE_UNIX:
        snprintf(a->text, sizeof(a->text), "%s/%d.sock", tmpdir, count++);
        a->un.path = a->text;
#ifdef CONFIG_LINUX
        a->un.has_abstract = true;
        a->un.abstract = family->abstract;
#endif
        a->legacy.u.q_unix.data = &a->un;
        break;
    case SOCKET_ADDRESS_TYPE_INET:
        a->inet.host = (char *)"127.0.0.1";
        strcpy(a->text, "0");
        a->inet.port = a->text;
        a->legacy.u.inet.data = &a->inet;
        break;
    case SOCKET_ADDRESS_TYPE_VSOCK:
        a->vsock.cid = (char *)"1";
        snprintf(a->text, sizeof(a->text), "%d", 0x51e00000 + getpid() % 4096 +
                 4096 * count++);
        a->vsock.port = a->text;
        a->legacy.u.vsock.data = &a->vsock;
        break;
    default:
        g_assert_not_reached();
    }
}

static void address_init_fd(Address *a, int fd)
{
    *a = (Address) { .legacy.type = SOCKET_ADDRESS_TYPE_FD };
    snprintf(a->text, sizeof(a->text), "%d", fd);
    a->fd.str = a->text;
    a->legacy.u.fd.data = &a->fd;
}

/*
 * Bind to an address without listening: connecting is refused until listen()
 * is called on the returned socket. Returns -1 if the host does not support
 * the family.
 */
static int address_bind(Address *a, const Family *family)
{
    union {
        struct sockaddr any;
        struct sockaddr_un un;
        struct sockaddr_in in;
#ifdef CONFIG_AF_VSOCK
        struct sockaddr_vm vm;
#endif
    } sa = {};
    socklen_t len = sizeof(sa.in);
    int fd;

    address_init(a, family);
    switch (family->type) {
    case SOCKET_ADDRESS_TYPE_UNIX:
        sa.un.sun_family = AF_UNIX;
        strcpy(sa.un.sun_path + family->abstract, a->text);
        len = offsetof(struct sockaddr_un, sun_path) + strlen(a->text) + 1;
        break;
    case SOCKET_ADDRESS_TYPE_INET:
        sa.in.sin_family = AF_INET;
        sa.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        break;
#ifdef CONFIG_AF_VSOCK
    case SOCKET_ADDRESS_TYPE_VSOCK:
        sa.vm.svm_family = AF_VSOCK;
        sa.vm.svm_cid = atoi(a->vsock.cid);
        sa.vm.svm_port = atoi(a->vsock.port);
        len = sizeof(sa.vm);
        break;
#endif
    default:
        g_assert_not_reached();
    }

    fd = qemu_socket(sa.any.sa_family, SOCK_STREAM, 0);
    if (fd < 0) {
        return -1;
    }
    if (bind(fd, &sa.any, len) < 0) {
        g_assert_cmpint(family->type, ==, SOCKET_ADDRESS_TYPE_VSOCK);
        close(fd);
        return -1;
    }
    if (family->type == SOCKET_ADDRESS_TYPE_INET) {
        g_assert_cmpint(getsockname(fd, &sa.any, &len), ==, 0);
        snprintf(a->text, sizeof(a->text), "%d", ntohs(sa.in.sin_port));
    }
    return fd;
}

static void address_release(Address *a, int fd)
{
    close(fd);
    if (a->un.path && !(a->un.has_abstract && a->un.abstract)) {
        g_unlink(a->un.path);
    }
}

static bool skip_without(const Family *family)
{
    Address a;
    int fd = address_bind(&a, family);

    if (fd < 0) {
        g_test_skip("this host has no such sockets");
        return true;
    }
    address_release(&a, fd);
    return false;
}

static Chardev *socket_add_errp(const char *id, ChardevSocket sock, Address *a,
                                Error **errp)
{
    ChardevBackend backend = {
        .type = CHARDEV_BACKEND_KIND_SOCKET,
        .u.socket.data = &sock,
    };
    g_autoptr(ChardevReturn) ret = NULL;

    sock.addr = &a->legacy;
    sock.has_server = true;
    ret = qmp_chardev_add(id, &backend, errp);
    return ret ? qemu_chr_find(id) : NULL;
}

static Chardev *socket_add(const char *id, ChardevSocket sock, Address *a)
{
    return socket_add_errp(id, sock, a, &error_abort);
}

static const ChardevSocket plain;

static void assert_add_fails(Address *a)
{
    Error *err = NULL;

    g_assert_null(socket_add_errp("c0", plain, a, &err));
    error_free_or_abort(&err);
}

/* A client chardev and the server that it connects to */
typedef struct Client {
    Address address;
    int listener;
    int peer;
    Chardev *chr;
    Front front;
} Client;

/* The server does not listen yet. */
static void client_init(Client *c, const Family *family, ChardevSocket sock)
{
    *c = (Client) { .peer = -1 };
    c->listener = address_bind(&c->address, family);
    c->chr = socket_add("c0", sock, &c->address);
}

static void client_start_server(Client *c)
{
    g_assert_cmpint(listen(c->listener, 1), ==, 0);
}

static void client_accept(Client *c)
{
    c->peer = qemu_accept(c->listener, NULL, NULL);
    g_assert_cmpint(c->peer, >=, 0);
}

static void client_cleanup(Client *c)
{
    front_detach(&c->front);
    chardev_remove("c0");
    if (c->peer >= 0) {
        close(c->peer);
    }
    address_release(&c->address, c->listener);
}

/* A server chardev and a client that has connected to it already */
typedef struct Server {
    int peer;
    Chardev *chr;
    Front front;
} Server;

static int server_connect(Chardev *chr)
{
    int fd = socket_connect(SOCKET_CHARDEV(chr)->addr, &error_abort);

    qemu_set_blocking(fd, true, &error_abort);
    return fd;
}

static void server_init(Server *s, const Family *family, ChardevSocket sock)
{
    Address address;

    *s = (Server) {};
    address_init(&address, family);
    sock.server = true;
    s->chr = socket_add("s0", sock, &address);
    s->peer = server_connect(s->chr);
}

static void server_cleanup(Server *s)
{
    front_detach(&s->front);
    chardev_remove("s0");
    close(s->peer);
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

static bool peer_readable(int fd)
{
    GPollFD pfd = { .fd = fd, .events = G_IO_IN };

    return g_poll(&pfd, 1, 0) == 1;
}

/* Wait until the chardev has closed the connection. */
static void peer_expect_end(int fd)
{
    char c;

    wait_for(peer_readable(fd));
    g_assert_cmpint(recv(fd, &c, 1, 0), ==, 0);
}

/* Check that data passes in both directions. */
static void check_link(Front *f, int peer)
{
    g_string_truncate(f->in, 0);
    g_assert_cmpint(send(peer, "to qemu", 7, 0), ==, 7);
    wait_for(f->in->len == 7);
    g_assert_cmpstr(f->in->str, ==, "to qemu");

    g_assert_cmpint(qemu_chr_fe_write_all(&f->fe, (uint8_t *)"from", 4), ==, 4);
    peer_expect(peer, "from", 4);
}

static void test_client(gconstpointer opaque)
{
    const Family *family = opaque;
    Client c;

    if (skip_without(family)) {
        return;
    }
    client_init(&c, family, plain);
    assert_postponed("c0");
    assert_attach_fails(c.chr, c.address.text);
    assert_postponed("c0");

    client_start_server(&c);
    front_attach(&c.front, c.chr);
    assert_connected("c0");
    g_assert_cmpint(c.front.opened, ==, 1);
    client_accept(&c);
    check_link(&c.front, c.peer);

    shutdown(c.peer, SHUT_RDWR);
    wait_for(c.front.closed);
    assert_disconnected("c0");

    /* The next front end gets a new connection */
    close(c.peer);
    front_detach(&c.front);
    assert_postponed("c0");
    front_attach(&c.front, c.chr);
    client_accept(&c);
    check_link(&c.front, c.peer);
    client_cleanup(&c);
}

/* An invalid address is an error when the chardev is created. */
static void test_client_bad_address(void)
{
    g_autofree char *longest = g_strnfill(sizeof_field(struct sockaddr_un,
                                                       sun_path), 'x');
    g_autofree char *too_long = g_strconcat(longest, "x", NULL);
    const char *bad_path[] = { "", too_long };
    const char *bad_number[] = { "", "x", "-1", "4294967296" };
    Address a;
    size_t i;

    for (i = 0; i < G_N_ELEMENTS(bad_path); i++) {
        address_init(&a, &families[0]);
        a.un.path = (char *)bad_path[i];
        assert_add_fails(&a);
    }
    a.un.path = longest;
    socket_add("c0", plain, &a);
    chardev_remove("c0");

#ifdef CONFIG_LINUX
    a.un.has_abstract = a.un.abstract = true;
    assert_add_fails(&a);
    a.un.path = longest + 1;
    socket_add("c0", plain, &a);
    chardev_remove("c0");
    a.un.path = (char *)"";
    socket_add("c0", plain, &a);
    chardev_remove("c0");
#endif

    address_init(&a, &inet);
    a.inet.has_ipv4 = a.inet.has_ipv6 = true;
    assert_add_fails(&a);

    for (i = 0; i < G_N_ELEMENTS(bad_number); i++) {
        address_init(&a, &(Family) { .type = SOCKET_ADDRESS_TYPE_VSOCK });
        a.vsock.cid = (char *)bad_number[i];
        assert_add_fails(&a);
        address_init(&a, &(Family) { .type = SOCKET_ADDRESS_TYPE_VSOCK });
        a.vsock.port = (char *)bad_number[i];
        assert_add_fails(&a);
    }
}

/* With wait=off, a server accepts a client before a front end attaches. */
static void test_server(gconstpointer opaque)
{
    const Family *family = opaque;
    Server s;

    if (skip_without(family)) {
        return;
    }
    server_init(&s, family, plain);
    assert_disconnected("s0");
    wait_for(chardev_is("s0", CHARDEV_CONNECTION_STATE_CONNECTED));

    front_attach(&s.front, s.chr);
    g_assert_cmpint(s.front.opened, ==, 1);
    check_link(&s.front, s.peer);
    server_cleanup(&s);
}

static const ChardevSocket waiting = { .has_wait = true, .wait = true };

/* With wait=on, a server listens, but accepts only for a front end. */
static void test_server_wait(gconstpointer opaque)
{
    const Family *family = opaque;
    Server s;

    if (skip_without(family)) {
        return;
    }
    server_init(&s, family, waiting);
    run_pending();
    assert_postponed("s0");

    front_attach(&s.front, s.chr);
    g_assert_cmpint(s.front.opened, ==, 1);
    check_link(&s.front, s.peer);
    server_cleanup(&s);
}

/* A front end that attaches without connecting leaves the client waiting. */
static void test_server_wait_no_connect(void)
{
    Server s;

    server_init(&s, &families[0], waiting);
    g_assert_true(qemu_chr_fe_init_no_connect(&s.front.fe, s.chr,
                                              &error_abort));
    front_detach(&s.front);

    run_pending();
    assert_postponed("s0");
    front_attach(&s.front, s.chr);
    check_link(&s.front, s.peer);
    server_cleanup(&s);
}

static void test_server_address(void)
{
    g_autoptr(ChardevInfoList) list = NULL;
    Address a, b;
    Chardev *chr;
    Error *err = NULL;

    address_init(&a, &inet);
    chr = socket_add("s0", (ChardevSocket) { .server = true }, &a);
    address_init(&b, &inet);
    pstrcpy(b.text, sizeof(b.text), SOCKET_CHARDEV(chr)->addr->u.inet.port);
    g_assert_cmpstr(b.text, !=, "0");
    list = qmp_query_chardev(&error_abort);
    g_assert_nonnull(strstr(chardev_info(list, "s0")->filename, b.text));

    g_assert_null(socket_add_errp("s1", (ChardevSocket) { .server = true },
                                  &b, &err));
    error_free_or_abort(&err);

    b.inet.has_to = true;
    b.inet.to = 65535;
    chr = socket_add("s1", (ChardevSocket) { .server = true }, &b);
    g_assert_cmpint(atoi(SOCKET_CHARDEV(chr)->addr->u.inet.port), >,
                    atoi(b.text));
    close(server_connect(chr));

    chardev_remove("s1");
    chardev_remove("s0");
}

/* A chardev with fd= is connected from the start. */
static void test_fd_client(void)
{
    Front f = {};
    Address a;
    Chardev *chr;
    int sv[2];

    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    address_init_fd(&a, sv[0]);
    chr = socket_add("c0", plain, &a);
    assert_connected("c0");
    front_attach(&f, chr);
    check_link(&f, sv[1]);

    front_detach(&f);
    chardev_remove("c0");
    close(sv[1]);
}

static void test_fd_bad(void)
{
    Error *err = NULL;
    Address a;
    int fd = open("/dev/null", O_RDONLY);

    address_init_fd(&a, fd);
    g_assert_null(socket_add_errp("c0", plain, &a, &err));
    error_free_or_abort(&err);
}

static void test_fd_server(void)
{
    Front f = {};
    Address a, b;
    Chardev *chr;
    int listener, peer;

    listener = address_bind(&a, &families[0]);
    address_init_fd(&b, listener);
    chr = socket_add("s0", (ChardevSocket) {
        .server = true, .has_wait = true, .wait = true
    }, &b);
    peer = server_connect(chr);
    front_attach(&f, chr);
    check_link(&f, peer);

    front_detach(&f);
    chardev_remove("s0");
    close(peer);
    g_unlink(a.text);
}

/* File descriptors can be sent along with data. */
static void test_fd_passing(void)
{
    Client c;
    g_autoptr(QIOChannelSocket) ioc = NULL;
    struct iovec iov = { .iov_base = (char [1]) { }, .iov_len = 1 };
    g_autofree int *fds = NULL;
    size_t nfds = 0;
    struct stat sent, got;
    int fd = open("/dev/null", O_RDONLY);

    client_init(&c, &families[0], plain);
    g_assert_true(qemu_chr_has_feature(c.chr, QEMU_CHAR_FEATURE_FD_PASS));
    g_assert_true(qemu_chr_has_feature(c.chr,
                                       QEMU_CHAR_FEATURE_RECONNECTABLE));
    client_start_server(&c);
    front_attach(&c.front, c.chr);
    client_accept(&c);
    ioc = qio_channel_socket_new_fd(dup(c.peer), &error_abort);

    g_assert_cmpint(qemu_chr_fe_set_msgfds(&c.front.fe, &fd, 1), ==, 0);
    g_assert_cmpint(qemu_chr_fe_write_all(&c.front.fe, (uint8_t *)"x", 1),
                    ==, 1);
    g_assert_cmpint(qio_channel_readv_full(QIO_CHANNEL(ioc), &iov, 1, &fds,
                                           &nfds, 0, &error_abort), ==, 1);
    g_assert_cmpint(nfds, ==, 1);
    g_assert_cmpint(fstat(fd, &sent), ==, 0);
    g_assert_cmpint(fstat(fds[0], &got), ==, 0);
    g_assert_true(sent.st_dev == got.st_dev && sent.st_ino == got.st_ino);

    close(fds[0]);
    close(fd);
    client_cleanup(&c);
}

typedef struct Handshake {
    ChardevSocket sock;
    const char *request;
    const char *reply;
    size_t reply_len;
} Handshake;

#define REPLY(text) .reply = text, .reply_len = sizeof(text) - 1

static const Handshake telnet = {
    .sock = { .has_wait = true, .wait = true,
              .has_telnet = true, .telnet = true },
    REPLY("\xff\xfb\x01\xff\xfb\x03\xff\xfb\x00\xff\xfd\x00"),
};

static const Handshake tn3270 = {
    .sock = { .has_wait = true, .wait = true,
              .has_tn3270 = true, .tn3270 = true },
    REPLY("\xff\xfd\x19\xff\xfb\x19\xff\xfd\x00\xff\xfb\x00"
          "\xff\xfd\x18\xff\xfa\x18\x01\xff\xf0"),
};

static const Handshake websocket = {
    .sock = { .has_wait = true, .wait = true,
              .has_websocket = true, .websocket = true },
    .request = "GET / HTTP/1.1\r\n"
               "Host: here\r\n"
               "Connection: Upgrade\r\n"
               "Upgrade: websocket\r\n"
               "Origin: here\r\n"
               "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
               "Sec-WebSocket-Version: 13\r\n"
               "Sec-WebSocket-Protocol: binary\r\n\r\n",
    REPLY("HTTP/1.1 101 Switching Protocols\r\n"),
};

/* The handshake is made in the main loop after a front end has attached. */
static void test_handshake(gconstpointer opaque)
{
    const Handshake *h = opaque;
    Server s;

    server_init(&s, &families[0], h->sock);
    if (h->request) {
        g_assert_cmpint(send(s.peer, h->request, strlen(h->request), 0), ==,
                        strlen(h->request));
    }
    run_pending();
    assert_postponed("s0");

    front_attach(&s.front, s.chr);
    g_assert_cmpint(s.front.opened, ==, 0);
    assert_connecting("s0");
    wait_for(s.front.opened);
    assert_connected("s0");
    peer_expect(s.peer, h->reply, h->reply_len);
    if (!h->request) {
        check_link(&s.front, s.peer);
    }
    server_cleanup(&s);
}

/* If a chardev is removed during a handshake, its peer sees the end. */
static void test_remove_in_handshake(gconstpointer opaque)
{
    const Handshake *h = opaque;
    Server s;

    server_init(&s, &families[0], h->sock);
    front_attach(&s.front, s.chr);
    assert_connecting("s0");
    front_detach(&s.front);
    chardev_remove("s0");
    peer_expect_end(s.peer);
    close(s.peer);
}

static void test_telnet_client(void)
{
    Client c;

    client_init(&c, &families[0],
                (ChardevSocket) { .has_telnet = true, .telnet = true });
    assert_postponed("c0");
    client_start_server(&c);
    front_attach(&c.front, c.chr);
    client_accept(&c);
    check_link(&c.front, c.peer);
    client_cleanup(&c);
}

static const ChardevSocket reconnecting = {
    .has_reconnect_ms = true, .reconnect_ms = 5
};

/*
 * With reconnect-ms, attaching connects a UNIX socket synchronously, so that
 * the front end can write at once, as vhost-user does. TCP connects in the
 * background.
 */
static void test_reconnect_attach(gconstpointer opaque)
{
    const Family *family = opaque;
    bool is_unix = family->type == SOCKET_ADDRESS_TYPE_UNIX;
    CharFrontend fe = {};
    Client c;

    if (skip_without(family)) {
        return;
    }
    client_init(&c, family, reconnecting);
    client_start_server(&c);
    g_assert_true(qemu_chr_fe_init(&fe, c.chr, &error_abort));
    if (is_unix) {
        assert_connected("c0");
        g_assert_cmpint(qemu_chr_fe_write_all(&fe, (uint8_t *)"now", 3), ==, 3);
    } else {
        assert_connecting("c0");
        wait_for(chardev_is("c0", CHARDEV_CONNECTION_STATE_CONNECTED));
    }
    qemu_chr_fe_deinit(&fe, false);

    front_attach(&c.front, c.chr);
    g_assert_cmpint(c.front.opened, ==, 1);
    client_accept(&c);
    if (is_unix) {
        peer_expect(c.peer, "now", 3);
    }
    check_link(&c.front, c.peer);
    client_cleanup(&c);
}

static void test_reconnect(void)
{
    Client c;

    client_init(&c, &families[0], reconnecting);
    run_pending();
    assert_postponed("c0");

    /* The first attempt fails without an error, and so do the next ones */
    front_attach(&c.front, c.chr);
    assert_disconnected("c0");
    g_assert_true(SOCKET_CHARDEV(c.chr)->connect_err_reported);
    wait_for(chardev_is("c0", CHARDEV_CONNECTION_STATE_CONNECTING));
    wait_for(chardev_is("c0", CHARDEV_CONNECTION_STATE_DISCONNECTED));
    g_assert_cmpint(c.front.opened, ==, 0);

    client_start_server(&c);
    wait_for(c.front.opened == 1);
    client_accept(&c);
    check_link(&c.front, c.peer);

    /* The server disappears and listens again */
    address_release(&c.address, c.listener);
    close(c.peer);
    wait_for(c.front.closed == 1);
    wait_for(SOCKET_CHARDEV(c.chr)->connect_err_reported);
    c.listener = socket_listen(SOCKET_CHARDEV(c.chr)->addr, 1, &error_abort);
    wait_for(c.front.opened == 2);
    client_accept(&c);
    check_link(&c.front, c.peer);
    client_cleanup(&c);
}

/* A negative reconnect-ms has the same effect as none. */
static void test_reconnect_negative(void)
{
    Client c;

    client_init(&c, &families[0], (ChardevSocket) {
        .has_reconnect_ms = true, .reconnect_ms = -1
    });
    assert_attach_fails(c.chr, c.address.text);
    client_cleanup(&c);
}

static void *start_server_thread(void *opaque)
{
    client_start_server(opaque);
    return NULL;
}

/* qemu_chr_fe_wait_connected() repeats attempts until the peer listens. */
static void test_reconnect_wait(void)
{
    QemuThread thread;
    Client c;

    client_init(&c, &families[0], reconnecting);
    g_assert_true(qemu_chr_fe_init_no_connect(&c.front.fe, c.chr,
                                              &error_abort));
    qemu_thread_create(&thread, "server", start_server_thread, &c,
                       QEMU_THREAD_JOINABLE);
    g_assert_cmpint(qemu_chr_fe_wait_connected(&c.front.fe, &error_abort),
                    ==, 0);
    qemu_thread_join(&thread);
    assert_connected("c0");
    front_listen(&c.front, NULL);
    client_accept(&c);
    check_link(&c.front, c.peer);
    client_cleanup(&c);
}

/* Fill the queue of connections of a UNIX server that accepts none. */
static unsigned fill_queue(Client *c, int *fds, unsigned n)
{
    g_autoptr(SocketAddress) addr = socket_address_flatten(&c->address.legacy);
    Error *err = NULL;
    unsigned i;

    for (i = 0; i < n; i++) {
        fds[i] = socket_connect_timeout(addr, 1, &err);
        if (fds[i] < 0) {
            error_free(err);
            return i;
        }
    }
    g_assert_not_reached();
}

static void empty_queue(Client *c, int *fds, unsigned n)
{
    while (n--) {
        close(qemu_accept(c->listener, NULL, NULL));
        close(fds[n]);
    }
}

/* A server with a full queue is an error, any number of times. */
static void test_busy(void)
{
    unsigned n;
    int fds[8];
    Client c;

    client_init(&c, &families[0], plain);
    client_start_server(&c);
    n = fill_queue(&c, fds, ARRAY_SIZE(fds));
    for (int i = 0; i < 4; i++) {
        assert_attach_fails(c.chr, "queue of connections is full");
        assert_postponed("c0");
    }
    empty_queue(&c, fds, n);
    front_attach(&c.front, c.chr);
    client_accept(&c);
    check_link(&c.front, c.peer);
    client_cleanup(&c);
}

/* With reconnect-ms, the timer tries again. */
static void test_reconnect_busy(void)
{
    unsigned n;
    int fds[8];
    Client c;

    client_init(&c, &families[0], reconnecting);
    client_start_server(&c);
    n = fill_queue(&c, fds, ARRAY_SIZE(fds));
    front_attach(&c.front, c.chr);
    assert_disconnected("c0");
    wait_for(chardev_is("c0", CHARDEV_CONNECTION_STATE_CONNECTING));
    wait_for(chardev_is("c0", CHARDEV_CONNECTION_STATE_DISCONNECTED));
    g_assert_cmpint(c.front.opened, ==, 0);
    empty_queue(&c, fds, n);
    wait_for(c.front.opened == 1);
    client_accept(&c);
    check_link(&c.front, c.peer);
    client_cleanup(&c);
}

/* qemu_chr_fe_wait_connected() gives a busy server up, the timer does not */
static void test_reconnect_wait_busy(void)
{
    Error *err = NULL;
    unsigned n;
    int fds[8];
    Client c;

    client_init(&c, &families[0], reconnecting);
    client_start_server(&c);
    n = fill_queue(&c, fds, ARRAY_SIZE(fds));
    g_assert_true(qemu_chr_fe_init_no_connect(&c.front.fe, c.chr,
                                              &error_abort));
    g_assert_cmpint(qemu_chr_fe_wait_connected(&c.front.fe, &err), <, 0);
    g_assert_nonnull(strstr(error_get_pretty(err), "queue of connections"));
    error_free(err);
    front_listen(&c.front, NULL);
    empty_queue(&c, fds, n);
    wait_for(c.front.opened == 1);
    client_accept(&c);
    check_link(&c.front, c.peer);
    client_cleanup(&c);
}

/* Call add_client before the chardev connects. Returns the other end. */
static int client_hand_over(Client *c, const ChardevSocket *sock)
{
    int sv[2];

    client_init(c, &families[0], *sock);
    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    g_assert_cmpint(qemu_chr_add_client(c->chr, sv[0]), ==, 0);
    assert_connected("c0");
    return sv[1];
}

static void test_add_client(gconstpointer opaque)
{
    Client c;
    int peer = client_hand_over(&c, opaque);

    front_attach(&c.front, c.chr);
    g_assert_cmpint(c.front.opened, ==, 1);
    check_link(&c.front, peer);
    close(peer);
    client_cleanup(&c);
}

/* The connection is lost before a front end attaches, which then connects. */
static void test_add_client_left(gconstpointer opaque)
{
    Client c;

    close(client_hand_over(&c, opaque));
    wait_for(chardev_is("c0", CHARDEV_CONNECTION_STATE_POSTPONED));
    run_pending();
    assert_postponed("c0");

    client_start_server(&c);
    front_attach(&c.front, c.chr);
    wait_for(c.front.opened == 1);
    client_accept(&c);
    check_link(&c.front, c.peer);
    client_cleanup(&c);
}

static ChardevReturn *socket_change(Address *a, ChardevSocket sock,
                                    Error **errp)
{
    sock.addr = &a->legacy;
    sock.has_server = true;
    return qmp_chardev_change("c0", &(ChardevBackend) {
        .type = CHARDEV_BACKEND_KIND_SOCKET,
        .u.socket.data = &sock,
    }, errp);
}

static void test_change(void)
{
    g_autoptr(ChardevReturn) client = NULL, server = NULL;
    const ChardevSocket a_server = { .server = true };
    Client c;
    Address b, d;
    int second = address_bind(&b, &families[0]), other;
    Error *err = NULL;

    client_init(&c, &families[0], plain);
    client_start_server(&c);
    front_attach(&c.front, c.chr);
    client_accept(&c);
    check_link(&c.front, c.peer);

    /* The new peer cannot be reached */
    g_assert_null(socket_change(&b, plain, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "c0"));
    g_assert_nonnull(strstr(error_get_pretty(err), b.text));
    error_free(err);
    err = NULL;
    check_link(&c.front, c.peer);

    /* The front end refuses the new backend */
    c.front.refuse_change = true;
    g_assert_cmpint(listen(second, 1), ==, 0);
    g_assert_null(socket_change(&b, plain, &err));
    error_free_or_abort(&err);
    close(qemu_accept(second, NULL, NULL));
    check_link(&c.front, c.peer);
    g_assert_cmpint(c.front.closed, ==, 0);

    /* It refuses one with reconnect-ms, too, whose connection is closed */
    g_assert_null(socket_change(&b, reconnecting, &err));
    error_free_or_abort(&err);
    other = qemu_accept(second, NULL, NULL);
    peer_expect_end(other);
    close(other);
    check_link(&c.front, c.peer);

    /* The change succeeds */
    c.front.refuse_change = false;
    client = socket_change(&b, plain, &error_abort);
    other = qemu_accept(second, NULL, NULL);
    check_link(&c.front, other);
    peer_expect_end(c.peer);
    close(c.peer);

    /* If the change fails, a connection that was lost before stays so */
    shutdown(other, SHUT_RDWR);
    wait_for(chardev_is("c0", CHARDEV_CONNECTION_STATE_DISCONNECTED));
    c.front.refuse_change = true;
    address_init(&d, &families[0]);
    g_assert_null(socket_change(&d, a_server, &err));
    error_free_or_abort(&err);
    assert_disconnected("c0");
    c.front.refuse_change = false;

    /* Change to a server, which accepts a client at once */
    server = socket_change(&d, a_server, &error_abort);
    close(other);
    c.peer = server_connect(qemu_chr_find("c0"));
    check_link(&c.front, c.peer);

    client_cleanup(&c);
    address_release(&b, second);
}

/* Events and data arrive in the front end's main loop. */
static void test_gcontext(void)
{
    g_autoptr(GMainContext) context = g_main_context_new();
    Client c;

    client_init(&c, &families[0], plain);
    client_start_server(&c);
    g_assert_true(qemu_chr_fe_init(&c.front.fe, c.chr, &error_abort));
    front_listen(&c.front, context);
    g_assert_cmpint(c.front.opened, ==, 1);
    client_accept(&c);

    g_assert_cmpint(send(c.peer, "hello", 5, 0), ==, 5);
    run_pending();
    g_assert_cmpint(c.front.in->len, ==, 0);
    while (c.front.in->len < 5) {
        g_main_context_iteration(context, true);
    }
    shutdown(c.peer, SHUT_RDWR);
    while (!c.front.closed) {
        g_main_context_iteration(context, true);
    }
    client_cleanup(&c);
}

static void test_yank(void)
{
    YankInstanceList list = {
        .value = &(YankInstance) {
            .type = YANK_INSTANCE_TYPE_CHARDEV,
            .u.chardev.id = (char *)"c0",
        },
    };
    Client c;

    client_init(&c, &families[0], plain);
    qmp_yank(&list, &error_abort);
    assert_postponed("c0");

    client_start_server(&c);
    front_attach(&c.front, c.chr);
    client_accept(&c);
    qmp_yank(&list, &error_abort);
    wait_for(c.front.closed);
    peer_expect_end(c.peer);
    client_cleanup(&c);
}

#ifdef CONFIG_TASN1

static void tls_creds_add(const char *id, const char *endpoint,
                          const char *dir)
{
    object_new_with_props("tls-creds-x509", object_get_objects_root(), id,
                          &error_abort, "endpoint", endpoint, "dir", dir,
                          "verify-peer", "yes", "sanity-check", "no", NULL);
}

static void link_cert(const char *dir, const char *name, const char *file)
{
    g_autofree char *to = g_build_filename(dir, name, NULL);

    g_assert_cmpint(link(file, to), ==, 0);
}

static void unlink_certs(const char *dir, const char *side)
{
    const char *format[] = { "%s/ca-cert.pem", "%s/%s-cert.pem",
                             "%s/%s-key.pem" };
    size_t i;

    for (i = 0; i < G_N_ELEMENTS(format); i++) {
        g_autofree char *path = i ? g_strdup_printf(format[i], dir, side)
                                  : g_strdup_printf(format[i], dir);
        g_assert_cmpint(g_unlink(path), ==, 0);
    }
    g_assert_cmpint(g_rmdir(dir), ==, 0);
}

/* Client and server have certificates; the server admits the name @admitted. */
static void check_tls(const char *admitted, bool expect_success)
{
    g_autofree char *keyfile = g_build_filename(tmpdir, "key.pem", NULL);
    g_autofree char *ca = g_build_filename(tmpdir, "ca.pem", NULL);
    g_autofree char *scert = g_build_filename(tmpdir, "scert.pem", NULL);
    g_autofree char *ccert = g_build_filename(tmpdir, "ccert.pem", NULL);
    g_autofree char *sdir = g_build_filename(tmpdir, "server", NULL);
    g_autofree char *cdir = g_build_filename(tmpdir, "client", NULL);
    Front client = {}, server = {};
    Chardev *schr, *cchr;
    Address a;

    test_tls_init(keyfile);
    TLS_ROOT_REQ_SIMPLE(cacertreq, ca);
    TLS_CERT_REQ_SIMPLE_SERVER(servercertreq, cacertreq, scert, NULL,
                               "127.0.0.1");
    TLS_CERT_REQ_SIMPLE_CLIENT(clientcertreq, cacertreq, "somebody", ccert);
    g_assert_cmpint(g_mkdir(sdir, 0700), ==, 0);
    g_assert_cmpint(g_mkdir(cdir, 0700), ==, 0);
    link_cert(sdir, "ca-cert.pem", ca);
    link_cert(sdir, "server-cert.pem", scert);
    link_cert(sdir, "server-key.pem", keyfile);
    link_cert(cdir, "ca-cert.pem", ca);
    link_cert(cdir, "client-cert.pem", ccert);
    link_cert(cdir, "client-key.pem", keyfile);
    tls_creds_add("screds", "server", sdir);
    tls_creds_add("ccreds", "client", cdir);
    object_new_with_props("authz-simple", object_get_objects_root(), "authz",
                          &error_abort, "identity", admitted, NULL);

    address_init(&a, &inet);
    schr = socket_add("s0", (ChardevSocket) {
        .server = true, .has_wait = true, .wait = true,
        .tls_creds = (char *)"screds", .tls_authz = (char *)"authz",
    }, &a);
    pstrcpy(a.text, sizeof(a.text), SOCKET_CHARDEV(schr)->addr->u.inet.port);
    cchr = socket_add("c0", (ChardevSocket) {
        .tls_creds = (char *)"ccreds",
    }, &a);
    assert_postponed("s0");
    assert_postponed("c0");

    front_attach(&client, cchr);
    front_attach(&server, schr);
    assert_connecting("c0");
    assert_connecting("s0");
    if (expect_success) {
        wait_for(client.opened && server.opened);
        qemu_chr_fe_write_all(&client.fe, (uint8_t *)"to server", 9);
        wait_for(server.in->len == 9);
        qemu_chr_fe_write_all(&server.fe, (uint8_t *)"to client", 9);
        wait_for(client.in->len == 9);
        g_assert_cmpstr(server.in->str, ==, "to server");
        g_assert_cmpstr(client.in->str, ==, "to client");
    } else {
        wait_for(chardev_is("s0", CHARDEV_CONNECTION_STATE_DISCONNECTED));
        wait_for(chardev_is("c0", CHARDEV_CONNECTION_STATE_DISCONNECTED));
        g_assert_cmpint(server.opened, ==, 0);
    }

    front_detach(&client);
    front_detach(&server);
    chardev_remove("c0");
    chardev_remove("s0");
    object_unparent(object_resolve_path_component(object_get_objects_root(),
                                                  "authz"));
    object_unparent(object_resolve_path_component(object_get_objects_root(),
                                                  "ccreds"));
    object_unparent(object_resolve_path_component(object_get_objects_root(),
                                                  "screds"));
    unlink_certs(sdir, "server");
    unlink_certs(cdir, "client");
    test_tls_discard_cert(&clientcertreq);
    test_tls_discard_cert(&servercertreq);
    test_tls_discard_cert(&cacertreq);
    test_tls_cleanup(keyfile);
}

static void test_tls(void)
{
    check_tls("CN=somebody", true);
}

static void test_tls_not_admitted(void)
{
    check_tls("CN=somebody else", false);
}

/* Add credentials that init accepts, but with which no session can start. */
static void bad_creds_add(void)
{
    g_autofree char *path = g_build_filename(tmpdir, "keys.psk", NULL);

    g_assert_true(g_file_set_contents(path, "qemu:00112233445566778899\n", -1,
                                      NULL));
    object_new_with_props("tls-creds-psk", object_get_objects_root(), "psk",
                          &error_abort, "endpoint", "client", "dir", tmpdir,
                          "priority", "NONSENSE", NULL);
}

static void bad_creds_remove(void)
{
    g_autofree char *path = g_build_filename(tmpdir, "keys.psk", NULL);

    object_unparent(object_resolve_path_component(object_get_objects_root(),
                                                  "psk"));
    g_unlink(path);
}

/* If add_client fails, the caller still owns the connection. */
static void test_tls_add_client_fails(void)
{
    Address a;
    Chardev *chr;
    int sv[2];

    bad_creds_add();
    address_init(&a, &inet);
    chr = socket_add("c0", (ChardevSocket) { .tls_creds = (char *)"psk" }, &a);
    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    g_assert_cmpint(qemu_chr_add_client(chr, sv[0]), <, 0);
    assert_postponed("c0");
    g_assert_false(peer_readable(sv[1]));
    g_assert_cmpint(close(sv[0]), ==, 0);
    peer_expect_end(sv[1]);

    close(sv[1]);
    chardev_remove("c0");
    bad_creds_remove();
}

/* If the new backend cannot set TLS up, the old connection is kept. */
static void test_tls_no_session(void)
{
    Error *err = NULL;
    Address a;
    Client c;
    int listener = address_bind(&a, &inet);

    bad_creds_add();
    g_assert_cmpint(listen(listener, 1), ==, 0);

    client_init(&c, &families[0], plain);
    client_start_server(&c);
    front_attach(&c.front, c.chr);
    client_accept(&c);
    g_assert_null(socket_change(&a, (ChardevSocket) {
        .tls_creds = (char *)"psk"
    }, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "c0"));
    error_free(err);
    check_link(&c.front, c.peer);

    client_cleanup(&c);
    address_release(&a, listener);
    bad_creds_remove();
}

/* Unknown credentials are an error when the chardev is created. */
static void test_tls_bad_creds(void)
{
    Error *err = NULL;
    Address a;

    address_init(&a, &inet);
    g_assert_null(socket_add_errp("c0", (ChardevSocket) {
        .tls_creds = (char *)"nothing",
    }, &a, &err));
    error_free_or_abort(&err);
}

#endif /* CONFIG_TASN1 */

static void add_family_tests(const char *what, GTestDataFunc func)
{
    size_t i;

    for (i = 0; i < G_N_ELEMENTS(families); i++) {
        g_autofree char *path = g_strdup_printf("/char/connect/%s/%s", what,
                                                families[i].name);
        g_test_add_data_func(path, &families[i], func);
    }
}

int main(int argc, char **argv)
{
    int ret;

    qemu_init_main_loop(&error_abort);
    socket_init();
    g_test_init(&argc, &argv, NULL);
    module_call_init(MODULE_INIT_QOM);
    type_register_static(&fake_type_info);
    /* Failed attempts with reconnect-ms are reported on stderr: be silent */
    g_setenv("QTEST_SILENT_ERRORS", "1", true);
    tmpdir = g_dir_make_tmp("test-char-connect.XXXXXX", NULL);
    g_assert_nonnull(tmpdir);

    g_test_add_func("/char/connect/create", test_create);
    g_test_add_func("/char/connect/create-fails", test_create_fails);
    g_test_add_func("/char/connect/attach", test_attach);
    g_test_add_func("/char/connect/attach-nothing", test_attach_nothing);
    g_test_add_func("/char/connect/retry", test_retry);
    g_test_add_func("/char/connect/remove-after-failure",
                    test_remove_after_failure);
    g_test_add_func("/char/connect/wait-connected", test_wait_connected);
    g_test_add_func("/char/connect/no-connect", test_no_connect);
    g_test_add_func("/char/connect/no-connect-any-class",
                    test_no_connect_any_class);
    g_test_add_func("/char/connect/mux", test_mux);
    g_test_add_func("/char/connect/hub", test_hub);

    add_family_tests("client", test_client);
    g_test_add_func("/char/connect/client/bad-address",
                    test_client_bad_address);
    add_family_tests("server", test_server);
    add_family_tests("server-wait", test_server_wait);
    g_test_add_func("/char/connect/server-wait/no-connect",
                    test_server_wait_no_connect);
    g_test_add_func("/char/connect/server/address", test_server_address);
    g_test_add_func("/char/connect/fd/client", test_fd_client);
    g_test_add_func("/char/connect/fd/bad", test_fd_bad);
    g_test_add_func("/char/connect/fd/server", test_fd_server);
    g_test_add_func("/char/connect/fd/passing", test_fd_passing);
    g_test_add_data_func("/char/connect/telnet/server", &telnet,
                         test_handshake);
    g_test_add_func("/char/connect/telnet/client", test_telnet_client);
    g_test_add_data_func("/char/connect/tn3270/server", &tn3270,
                         test_handshake);
    g_test_add_data_func("/char/connect/websocket/server", &websocket,
                         test_handshake);
    g_test_add_data_func("/char/connect/websocket/remove", &websocket,
                         test_remove_in_handshake);
    g_test_add_data_func("/char/connect/telnet/remove", &telnet,
                         test_remove_in_handshake);
    add_family_tests("reconnect/attach", test_reconnect_attach);
    g_test_add_func("/char/connect/reconnect/recovers", test_reconnect);
    g_test_add_func("/char/connect/reconnect/negative",
                    test_reconnect_negative);
    g_test_add_func("/char/connect/reconnect/wait", test_reconnect_wait);
#ifdef CONFIG_LINUX
    /* Other hosts have queues of another length, and refuse connections */
    g_test_add_func("/char/connect/client/busy", test_busy);
    g_test_add_func("/char/connect/reconnect/busy", test_reconnect_busy);
    g_test_add_func("/char/connect/reconnect/wait-busy",
                    test_reconnect_wait_busy);
#endif
    g_test_add_data_func("/char/connect/add-client/client", &plain,
                         test_add_client);
    g_test_add_data_func("/char/connect/add-client/reconnect", &reconnecting,
                         test_add_client);
    g_test_add_data_func("/char/connect/add-client/left", &plain,
                         test_add_client_left);
    g_test_add_data_func("/char/connect/add-client/left-reconnect",
                         &reconnecting, test_add_client_left);
    g_test_add_func("/char/connect/change", test_change);
    g_test_add_func("/char/connect/gcontext", test_gcontext);
    g_test_add_func("/char/connect/yank", test_yank);
#ifdef CONFIG_TASN1
    g_test_add_func("/char/connect/tls/admitted", test_tls);
    g_test_add_func("/char/connect/tls/not-admitted", test_tls_not_admitted);
    g_test_add_func("/char/connect/tls/add-client-fails",
                    test_tls_add_client_fails);
    g_test_add_func("/char/connect/tls/no-session", test_tls_no_session);
    g_test_add_func("/char/connect/tls/bad-creds", test_tls_bad_creds);
#endif

    ret = g_test_run();
    g_assert_cmpint(g_rmdir(tmpdir), ==, 0);
    g_free(tmpdir);
    return ret;
}
