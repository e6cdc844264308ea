/*
 * QTest testcase for socket chardevs: when they connect, and what QEMU does if
 * connecting fails
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/exit-with-parent.h"
#include "qemu/sockets.h"
#include "libqtest.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"

#define TIMEOUT_S 30

/* Where the tests map the I/O ports of the pci-serial that they plug */
#define SERIAL_SLOT 8
#define SERIAL_PORT 0xc000
#define SERIAL_LSR  (SERIAL_PORT + 5)

/* I/O port through which a guest ejects PCI devices of the pc machine */
#define PCI_EJECT_PORT 0xae08

/* Options of a socket chardev */
#define CLIENT      "{ 'server': false }"
#define RECONNECT   "{ 'server': false, 'reconnect-ms': 20 }"
#define SERVER      "{ 'server': true, 'wait': false }"
#define SERVER_WAIT "{ 'server': true, 'wait': true }"

/*
 * Peers: the test's sockets, which are servers or clients of chardevs
 */

typedef enum PeerType {
    PEER_UNIX,
    PEER_ABSTRACT,
    PEER_INET,
} PeerType;

typedef struct Peer {
    PeerType type;
    char *name;             /* path, abstract name, or port */
    struct sockaddr_storage addr;
    socklen_t addrlen;
    int listener;           /* peer_bind() binds it, peer_listen() listens */
    int fd;                 /* the connection */
} Peer;

typedef struct Fixture {
    QTestState *qts;
    char *dir;
    GPtrArray *peers;
} Fixture;

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

static void peer_free(void *data)
{
    Peer *p = data;

    close_fd(&p->fd);
    close_fd(&p->listener);
    if (p->type == PEER_UNIX) {
        unlink(p->name);
    }
    g_free(p->name);
    g_free(p);
}

/* Pick an unused address. It is not reserved before peer_bind(). */
static Peer *peer_new(Fixture *f, PeerType type)
{
    Peer *p = g_new0(Peer, 1);
    struct sockaddr_un *un = (struct sockaddr_un *)&p->addr;
    struct sockaddr_in *in = (struct sockaddr_in *)&p->addr;

    p->type = type;
    p->listener = -1;
    p->fd = -1;
    if (type == PEER_INET) {
        in->sin_family = AF_INET;
        in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        p->addrlen = sizeof(*in);
    } else {
        p->name = g_strdup_printf("%s/s%u", f->dir, f->peers->len);
        g_assert_cmpuint(strlen(p->name) + 1, <, sizeof(un->sun_path));
        un->sun_family = AF_UNIX;
        p->addrlen = sizeof(*un);
        if (type == PEER_ABSTRACT) {
            strcpy(un->sun_path + 1, p->name);
            p->addrlen = offsetof(struct sockaddr_un, sun_path) + 1 +
                         strlen(p->name);
        } else {
            strcpy(un->sun_path, p->name);
        }
    }
    g_ptr_array_add(f->peers, p);
    return p;
}

/* Bind to the address, but refuse connections until peer_listen(). */
static void peer_bind(Peer *p)
{
    struct sockaddr_in *in = (struct sockaddr_in *)&p->addr;

    p->listener = socket(p->addr.ss_family, SOCK_STREAM, 0);
    g_assert_cmpint(p->listener, >=, 0);
    g_assert_cmpint(bind(p->listener, (struct sockaddr *)&p->addr,
                         p->addrlen), ==, 0);
    if (p->type == PEER_INET) {
        g_assert_cmpint(getsockname(p->listener, (struct sockaddr *)&p->addr,
                                    &p->addrlen), ==, 0);
        g_free(p->name);
        p->name = g_strdup_printf("%d", ntohs(in->sin_port));
    }
}

static Peer *peer_new_bound(Fixture *f, PeerType type)
{
    Peer *p = peer_new(f, type);

    peer_bind(p);
    return p;
}

static void peer_listen(Peer *p)
{
    g_assert_cmpint(listen(p->listener, 1), ==, 0);
}

static bool fd_readable(int fd, int timeout_ms)
{
    GPollFD pfd = { .fd = fd, .events = G_IO_IN };

    return g_poll(&pfd, 1, timeout_ms) == 1;
}

static void peer_accept(Peer *p)
{
    g_assert_true(fd_readable(p->listener, TIMEOUT_S * 1000));
    close_fd(&p->fd);
    p->fd = accept(p->listener, NULL, NULL);
    g_assert_cmpint(p->fd, >=, 0);
}

/* Connect to a server chardev, which must be listening already. */
static void peer_connect(Peer *p)
{
    p->fd = socket(p->addr.ss_family, SOCK_STREAM, 0);
    g_assert_cmpint(p->fd, >=, 0);
    g_assert_cmpint(connect(p->fd, (struct sockaddr *)&p->addr, p->addrlen),
                    ==, 0);
}

static char peer_read(Peer *p)
{
    char c;

    g_assert_true(fd_readable(p->fd, TIMEOUT_S * 1000));
    g_assert_cmpint(read(p->fd, &c, 1), ==, 1);
    return c;
}

static void peer_write(Peer *p, const char *str)
{
    g_assert_cmpint(write(p->fd, str, strlen(str)), ==, strlen(str));
}

static void peer_assert_closed(Peer *p)
{
    char c;

    g_assert_true(fd_readable(p->fd, TIMEOUT_S * 1000));
    g_assert_cmpint(read(p->fd, &c, 1), ==, 0);
}

/* Returns a ChardevBackend for @p with @options. */
static QDict *backend(Peer *p, const char *options)
{
    QDict *data = qobject_to(QDict, qobject_from_json(options, &error_abort));
    QDict *addr;

    if (p->type == PEER_INET) {
        addr = qdict_from_jsonf_nofail("{ 'host': '127.0.0.1', 'port': %s }",
                                       p->name);
    } else {
        addr = qdict_from_jsonf_nofail("{ 'path': %s }", p->name);
        if (p->type == PEER_ABSTRACT) {
            qdict_put_bool(addr, "abstract", true);
        }
    }
    qdict_put_obj(data, "addr", QOBJECT(
        qdict_from_jsonf_nofail("{ 'type': %s, 'data': %p }",
                                p->type == PEER_INET ? "inet" : "unix", addr)));
    return qdict_from_jsonf_nofail("{ 'type': 'socket', 'data': %p }", data);
}

/*
 * Chardevs and front ends
 */

static void chardev_add(Fixture *f, const char *id, Peer *p,
                        const char *options)
{
    qtest_qmp_assert_success(f->qts, "{ 'execute': 'chardev-add', 'arguments':"
                             " { 'id': %s, 'backend': %p } }",
                             id, backend(p, options));
}

static void chardev_change(Fixture *f, const char *id, Peer *p,
                           const char *options)
{
    qtest_qmp_assert_success(f->qts, "{ 'execute': 'chardev-change',"
                             " 'arguments': { 'id': %s, 'backend': %p } }",
                             id, backend(p, options));
}

/* Returns the string @key in query-chardev's result for @id, or NULL. */
static char *chardev_query(Fixture *f, const char *id, const char *key)
{
    g_autoptr(QDict) resp = NULL;
    const QListEntry *e;

    resp = qtest_qmp(f->qts, "{ 'execute': 'query-chardev' }");
    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), e) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(e));

        if (g_str_equal(qdict_get_str(info, "label"), id)) {
            return g_strdup(qdict_get_try_str(info, key));
        }
    }
    return NULL;
}

static void assert_state(Fixture *f, const char *id, const char *expected)
{
    g_autofree char *state = chardev_query(f, id, "state");

    g_assert_cmpstr(state, ==, expected);
}

static void wait_state(Fixture *f, const char *id, const char *expected)
{
    gint64 end = g_get_monotonic_time() + TIMEOUT_S * G_USEC_PER_SEC;
    g_autofree char *state = chardev_query(f, id, "state");

    while (g_strcmp0(state, expected) && g_get_monotonic_time() < end) {
        g_usleep(1000);
        g_free(state);
        state = chardev_query(f, id, "state");
    }
    g_assert_cmpstr(state, ==, expected);
}

static void chardev_remove(Fixture *f, const char *id)
{
    g_autofree char *label = NULL;

    qtest_qmp_assert_success(f->qts, "{ 'execute': 'chardev-remove',"
                             " 'arguments': { 'id': %s } }", id);
    label = chardev_query(f, id, "label");
    g_assert_null(label);
}

/* @message must contain the chardev's id and the peer's address. */
static void assert_blames(const char *message, const char *id, Peer *p)
{
    g_autofree char *quoted_id = g_strdup_printf("'%s'", id);

    g_test_message("%s", message);
    g_assert_nonnull(strstr(message, quoted_id));
    g_assert_nonnull(strstr(message, p->name));
}

/* Execute @command, which must fail. Returns the error's description. */
static char *command_error(Fixture *f, const char *command, QDict *args)
{
    g_autoptr(QDict) err = NULL;

    err = qtest_qmp_assert_failure_ref(f->qts, "{ 'execute': %s,"
                                       " 'arguments': %p }", command, args);
    return g_strdup(qdict_get_str(err, "desc"));
}

static void serial_map(Fixture *f)
{
    static const uint32_t config[][2] = {
        { 0x10, SERIAL_PORT },      /* BAR 0 */
        { 0x04, 1 },                /* command: decode I/O ports */
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(config); i++) {
        qtest_outl(f->qts, 0xcf8,
                   0x80000000 | SERIAL_SLOT << 11 | config[i][0]);
        qtest_outl(f->qts, 0xcfc, config[i][1]);
    }
}

static QDict *serial_args(const char *chardev)
{
    return qdict_from_jsonf_nofail("{ 'driver': 'pci-serial', 'id': 'serial',"
                                   " 'addr': %s, 'chardev': %s }",
                                   stringify(SERIAL_SLOT) ".0", chardev);
}

static void serial_add(Fixture *f, const char *chardev)
{
    qtest_qmp_assert_success(f->qts, "{ 'execute': 'device_add',"
                             " 'arguments': %p }", serial_args(chardev));
    serial_map(f);
}

/* Pass a byte in each direction between the pci-serial and the peer. */
static void assert_data(Fixture *f, Peer *p)
{
    static char out = 'A', in = 'a';
    char str[] = { in, 0 };
    gint64 end = g_get_monotonic_time() + TIMEOUT_S * G_USEC_PER_SEC;

    qtest_outb(f->qts, SERIAL_PORT, out);
    g_assert_cmpint(peer_read(p), ==, out);

    peer_write(p, str);
    while (!(qtest_inb(f->qts, SERIAL_LSR) & 1)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
    g_assert_cmpint(qtest_inb(f->qts, SERIAL_PORT), ==, in);

    out = out == 'Z' ? 'A' : out + 1;
    in = in == 'z' ? 'a' : in + 1;
}

static void device_del_pci(Fixture *f, const char *id, int slot)
{
    bool deleted = false;

    qtest_qmp_device_del_send(f->qts, id);
    qtest_outl(f->qts, PCI_EJECT_PORT, 1 << slot);
    while (!deleted) {
        g_autoptr(QDict) event = NULL;

        /* Ignore the event of the virtio device in a virtio-*-pci */
        event = qtest_qmp_eventwait_ref(f->qts, "DEVICE_DELETED");
        deleted = qdict_haskey(qdict_get_qdict(event, "data"), "device");
    }
}

/* Most devices release their chardev some time after DEVICE_DELETED. */
static void execute_when_released(Fixture *f, const char *command, QDict *args)
{
    gint64 end = g_get_monotonic_time() + TIMEOUT_S * G_USEC_PER_SEC;
    bool done = false;

    while (!done) {
        g_autoptr(QDict) resp = NULL;

        g_assert_cmpint(g_get_monotonic_time(), <, end);
        resp = qtest_qmp(f->qts, "{ 'execute': %s, 'arguments': %p }",
                         command, qobject_ref(args));
        done = qdict_haskey(resp, "return");
        if (!done) {
            const char *desc = qdict_get_str(qdict_get_qdict(resp, "error"),
                                             "desc");

            g_assert_true(strstr(desc, "is already in use") ||
                          strstr(desc, "is busy"));
            g_usleep(1000);
        }
    }
    qobject_unref(args);
}

/*
 * Set-up
 */

/* SIGALRM's handler; libqtest ends QEMU when the test aborts */
static void time_out(int sig)
{
    abort();
}

/* Also called when the test aborts */
static void remove_files(void *data)
{
    Fixture *f = data;

    g_ptr_array_free(f->peers, true);
    rmdir(f->dir);
    g_free(f->dir);
}

static void setup_without_vm(Fixture *f, const void *data)
{
    alarm(2 * TIMEOUT_S);
    f->dir = g_dir_make_tmp("chardev-connect-XXXXXX", NULL);
    g_assert_nonnull(f->dir);
    f->peers = g_ptr_array_new_with_free_func(peer_free);
    qtest_add_abrt_handler(remove_files, f);
}

static void setup_with(Fixture *f, const char *options)
{
    setup_without_vm(f, NULL);
    f->qts = qtest_initf("-machine pc,memory-backend=mem -m 32M"
                         " -object memory-backend-shm,id=mem,size=32M"
                         " -nodefaults -device virtio-serial-pci -usb %s",
                         options);
}

static void setup(Fixture *f, const void *data)
{
    setup_with(f, "-netdev hubport,id=net,hubid=0 -object iothread,id=io"
               " -chardev socket,id=pri,host=127.0.0.1,port=0,server=on,"
               "wait=off"
               " -chardev socket,id=sec,host=127.0.0.1,port=0,server=on,"
               "wait=off");
}

/* The gdbstub needs an accelerator that can run a guest. */
static void setup_tcg(Fixture *f, const void *data)
{
    setup_with(f, "-accel tcg -S");
}

static void teardown(Fixture *f, const void *data)
{
    if (f->qts) {
        qtest_quit(f->qts);
    }
    qtest_remove_abrt_handler(f);
    remove_files(f);
    alarm(0);
}

/*
 * Clients to which a front end attaches
 */

typedef struct Attach {
    const char *name;
    const char *type;       /* QOM type that the command needs */
    const char *command;
    const char *args;
    bool needs_vhost;       /* would need a peer that speaks vhost-user */
} Attach;

static const Attach attachments[] = {
    { "pci-serial", "pci-serial", "device_add",
      "{ 'driver': 'pci-serial', 'id': 'fe', 'chardev': 'c0' }" },
    { "virtserialport", "virtserialport", "device_add",
      "{ 'driver': 'virtserialport', 'id': 'fe', 'chardev': 'c0' }" },
    { "usb-serial", "usb-serial", "device_add",
      "{ 'driver': 'usb-serial', 'id': 'fe', 'chardev': 'c0' }" },
    { "vhost-user-blk-pci", "vhost-user-blk-pci", "device_add",
      "{ 'driver': 'vhost-user-blk-pci', 'id': 'fe', 'chardev': 'c0' }",
      .needs_vhost = true },
    { "vhost-user-net", "chardev-socket", "netdev_add",
      "{ 'type': 'vhost-user', 'id': 'fe', 'chardev': 'c0' }",
      .needs_vhost = true },
    { "cryptodev-vhost-user", "cryptodev-vhost-user", "object-add",
      "{ 'qom-type': 'cryptodev-vhost-user', 'id': 'fe', 'chardev': 'c0' }",
      .needs_vhost = true },
    { "rng-egd", "rng-egd", "object-add",
      "{ 'qom-type': 'rng-egd', 'id': 'fe', 'chardev': 'c0' }" },
    { "filter-mirror", "filter-mirror", "object-add",
      "{ 'qom-type': 'filter-mirror', 'id': 'fe', 'netdev': 'net',"
      "  'outdev': 'c0' }" },
    { "filter-redirector", "filter-redirector", "object-add",
      "{ 'qom-type': 'filter-redirector', 'id': 'fe', 'netdev': 'net',"
      "  'indev': 'c0' }" },
    { "colo-compare", "colo-compare", "object-add",
      "{ 'qom-type': 'colo-compare', 'id': 'fe', 'iothread': 'io',"
      "  'primary_in': 'pri', 'secondary_in': 'sec', 'outdev': 'c0' }" },
#ifdef CONFIG_SLIRP
    { "guestfwd", "chardev-socket", "netdev_add",
      "{ 'type': 'user', 'id': 'fe', 'guestfwd': ["
      "  { 'str': 'tcp:10.0.2.100:80-chardev:c0' } ] }" },
#endif
    { "mux", "chardev-mux", "chardev-add",
      "{ 'id': 'fe', 'backend': { 'type': 'mux', 'data':"
      "  { 'chardev': 'c0' } } }" },
    { "hub", "chardev-hub", "chardev-add",
      "{ 'id': 'fe', 'backend': { 'type': 'hub', 'data':"
      "  { 'chardevs': [ 'c0' ] } } }" },
};

static bool has_type(Fixture *f, const char *type)
{
    g_autoptr(QDict) resp = NULL;

    resp = qtest_qmp(f->qts, "{ 'execute': 'qom-list-types', 'arguments':"
                     " { 'implements': %s } }", type);
    return !qlist_empty(qdict_get_qlist(resp, "return"));
}

static QDict *attach_args(const Attach *a)
{
    return qobject_to(QDict, qobject_from_json(a->args, &error_abort));
}

/* Attaching fails with a reason while the peer is down, and works later. */
static void test_attach(Fixture *f, const void *data)
{
    const Attach *a = data;
    Peer *p = peer_new_bound(f, PEER_UNIX);
    int i;

    if (!has_type(f, a->type)) {
        g_test_skip("not part of this QEMU");
        return;
    }

    chardev_add(f, "c0", p, CLIENT);
    assert_state(f, "c0", "postponed");

    for (i = 0; i < 2; i++) {
        g_autofree char *desc = command_error(f, a->command, attach_args(a));

        assert_blames(desc, "c0", p);
        assert_state(f, "c0", "postponed");
    }

    if (!a->needs_vhost) {
        peer_listen(p);
        qtest_qmp_assert_success(f->qts, "{ 'execute': %s, 'arguments': %p }",
                                 a->command, attach_args(a));
        assert_state(f, "c0", "connected");
        peer_accept(p);
    }
}

/* The life of a client, for each kind of address */
static void test_client(Fixture *f, const void *data)
{
    Peer *p = peer_new_bound(f, GPOINTER_TO_INT(data));
    g_autofree char *desc = NULL;

    chardev_add(f, "c0", p, CLIENT);
    assert_state(f, "c0", "postponed");
    chardev_remove(f, "c0");

    chardev_add(f, "c0", p, CLIENT);
    desc = command_error(f, "device_add", serial_args("c0"));
    assert_blames(desc, "c0", p);
    assert_state(f, "c0", "postponed");
    chardev_remove(f, "c0");

    chardev_add(f, "c0", p, CLIENT);
    peer_listen(p);
    serial_add(f, "c0");
    assert_state(f, "c0", "connected");
    peer_accept(p);
    assert_data(f, p);
}

static void test_add_client(Fixture *f, const void *data)
{
    Peer *p = peer_new(f, PEER_UNIX);
    g_autofree char *desc = NULL;
    int i;

    chardev_add(f, "c0", p, CLIENT);
    for (i = 0; i < 2; i++) {
        int sv[2];

        g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
        qtest_qmp_add_client(f->qts, "c0", sv[0]);
        close(sv[0]);
        p->fd = sv[1];
        assert_state(f, "c0", "connected");

        if (i == 0) {
            /* No front end used this connection: connecting is postponed */
            close_fd(&p->fd);
            wait_state(f, "c0", "postponed");
            desc = command_error(f, "device_add", serial_args("c0"));
            assert_blames(desc, "c0", p);
        }
    }
    serial_add(f, "c0");
    assert_data(f, p);
}

/*
 * With a named fd, the chardev must take the file in chardev-add, because only
 * the monitor of that command knows the name. Passes without deferred
 * connecting, too.
 */
static void test_fd(Fixture *f, const void *data)
{
    Peer *p = peer_new(f, PEER_UNIX);
    int sv[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    qtest_qmp_fds_assert_success(f->qts, &sv[0], 1, "{ 'execute': 'getfd',"
                                 " 'arguments': { 'fdname': 'link' } }");
    close(sv[0]);
    p->fd = sv[1];
    qtest_qmp_assert_success(f->qts, "{ 'execute': 'chardev-add', 'arguments':"
                             " { 'id': 'c0', 'backend': { 'type': 'socket',"
                             " 'data': { 'server': false, 'addr': {"
                             " 'type': 'fd', 'data': { 'str': 'link' } } } } }"
                             " }");
    g_free(qtest_hmp(f->qts, "device_add pci-serial,chardev=c0,"
                     "addr=" stringify(SERIAL_SLOT) ".0"));
    serial_map(f);
    assert_data(f, p);
}

/*
 * Clients that reconnect
 */

static void test_reconnect(Fixture *f, const void *data)
{
    Peer *p = peer_new(f, PEER_UNIX);
    g_autofree char *state = NULL;
    int i;

    chardev_add(f, "c0", p, RECONNECT);
    assert_state(f, "c0", "postponed");
    serial_add(f, "c0");
    /* The state is "disconnected", or "connecting" in the next attempt */
    state = chardev_query(f, "c0", "state");
    if (!g_str_equal(state, "connecting")) {
        g_assert_cmpstr(state, ==, "disconnected");
    }

    for (i = 0; i < 3; i++) {
        peer_bind(p);
        peer_listen(p);
        peer_accept(p);
        wait_state(f, "c0", "connected");
        assert_data(f, p);

        close_fd(&p->listener);
        unlink(p->name);
        close_fd(&p->fd);
        wait_state(f, "c0", "disconnected");
    }
}

/* A chardev can be removed before and while it connects. */
static void test_reconnect_remove(Fixture *f, const void *data)
{
    Peer *p = peer_new(f, PEER_UNIX);
    Peer *busy = peer_new_bound(f, PEER_UNIX);

    /* With its backlog full, connecting to this server takes for ever */
    g_assert_cmpint(listen(busy->listener, 0), ==, 0);
    peer_connect(busy);

    chardev_add(f, "c0", p, RECONNECT);
    assert_state(f, "c0", "postponed");
    chardev_remove(f, "c0");

    chardev_add(f, "c0", p, RECONNECT);
    qtest_qmp_device_add(f->qts, "virtserialport", "port",
                         "{ 'chardev': 'c0' }");
    assert_state(f, "c0", "disconnected");
    g_assert_cmpint(rename(busy->name, p->name), ==, 0);
    wait_state(f, "c0", "connecting");
    qtest_qmp_device_del(f->qts, "port");
    execute_when_released(f, "chardev-remove",
                          qdict_from_jsonf_nofail("{ 'id': 'c0' }"));

    g_assert_cmpint(unlink(p->name), ==, 0);
    peer_bind(p);
    peer_listen(p);
    chardev_add(f, "c0", p, RECONNECT);
    close_fd(&busy->listener);
    serial_add(f, "c0");
    peer_accept(p);
    wait_state(f, "c0", "connected");
    device_del_pci(f, "serial", SERIAL_SLOT);
    chardev_remove(f, "c0");
    peer_assert_closed(p);
}

/*
 * Devices that talk to their peer as soon as they have attached
 */

/* Skip messages of a vhost-user device up to @request, and reply to it. */
static void vhost_user_answer(Peer *p, uint32_t request, uint64_t reply)
{
    struct {
        uint32_t request;
        uint32_t flags;
        uint32_t size;
        uint64_t u64;
    } QEMU_PACKED msg;
    const size_t header = offsetof(typeof(msg), u64);

    do {
        g_assert_true(fd_readable(p->fd, TIMEOUT_S * 1000));
        g_assert_cmpint(recv(p->fd, &msg, header, MSG_WAITALL), ==, header);
        g_assert_cmpuint(msg.size, <=, sizeof(msg.u64));
        if (msg.size) {
            g_assert_cmpint(recv(p->fd, &msg.u64, msg.size, MSG_WAITALL), ==,
                            msg.size);
        }
    } while (msg.request != request);

    msg.flags = 1 | 1 << 2;             /* version 1, a reply */
    msg.size = sizeof(msg.u64);
    msg.u64 = reply;
    g_assert_cmpint(send(p->fd, &msg, sizeof(msg), 0), ==, sizeof(msg));
}

/* Reply to the requests that each vhost-user device needs to be created. */
static void vhost_user_serve(Peer *p)
{
    const uint32_t get_features = 1, get_protocol_features = 15;
    const uint64_t features = 1ULL << 32 | 1 << 30; /* VERSION_1, PROTOCOL */

    vhost_user_answer(p, get_features, features);
    vhost_user_answer(p, get_protocol_features, 0);
    vhost_user_answer(p, get_features, features);
}

/* @data: any device of class vhost-user-base */
static void test_talks_vhost_user(Fixture *f, const void *data)
{
    Peer *p = peer_new_bound(f, PEER_UNIX);
    g_autoptr(QDict) resp = NULL;

    peer_listen(p);
    chardev_add(f, "c0", p, RECONNECT);
    qtest_qmp_send(f->qts, "{ 'execute': 'device_add', 'arguments':"
                   " { 'driver': %s, 'chardev': 'c0' } }", (const char *)data);
    peer_accept(p);
    vhost_user_serve(p);
    resp = qtest_qmp_receive(f->qts);
    g_assert_true(qdict_haskey(resp, "return"));
    assert_state(f, "c0", "connected");
}

static void netdev_add_send(Fixture *f)
{
    qtest_qmp_send(f->qts, "{ 'execute': 'netdev_add', 'arguments':"
                   " { 'type': 'vhost-user', 'id': 'n', 'chardev': 'c0' } }");
}

/* If the back-end closes the connection early, netdev_add can be repeated. */
static void test_talks_vhost_user_net(Fixture *f, const void *data)
{
    Peer *p = peer_new_bound(f, PEER_UNIX);
    g_autoptr(QDict) refused = NULL;
    g_autoptr(QDict) resp = NULL;

    peer_listen(p);
    chardev_add(f, "c0", p, CLIENT);
    netdev_add_send(f);
    peer_accept(p);
    close_fd(&p->listener);
    close_fd(&p->fd);
    refused = qtest_qmp_receive(f->qts);
    assert_blames(qdict_get_str(qdict_get_qdict(refused, "error"), "desc"),
                  "c0", p);
    assert_state(f, "c0", "postponed");

    g_assert_cmpint(unlink(p->name), ==, 0);
    peer_bind(p);
    peer_listen(p);
    netdev_add_send(f);
    peer_accept(p);
    vhost_user_serve(p);
    resp = qtest_qmp_receive(f->qts);
    g_assert_true(qdict_haskey(resp, "return"));
    assert_state(f, "c0", "connected");
}

/* device_add fails if the server is down, or closes the connection early. */
static void test_talks_ivshmem(Fixture *f, const void *data)
{
    QDict *args = qdict_from_jsonf_nofail("{ 'driver': 'ivshmem-doorbell',"
                                          " 'chardev': 'c0' }");
    const char version[8] = { 0 };
    Peer *p = peer_new_bound(f, PEER_UNIX);
    g_autofree char *desc = NULL;
    g_autoptr(QDict) resp = NULL;

    chardev_add(f, "c0", p, RECONNECT);
    desc = command_error(f, "device_add", qobject_ref(args));
    g_assert_nonnull(strstr(desc, "chardev 'c0' is not connected"));
    execute_when_released(f, "chardev-remove",
                          qdict_from_jsonf_nofail("{ 'id': 'c0' }"));

    peer_listen(p);
    chardev_add(f, "c0", p, RECONNECT);
    qtest_qmp_send(f->qts, "{ 'execute': 'device_add', 'arguments': %p }",
                   args);
    peer_accept(p);
    g_assert_cmpint(write(p->fd, version, sizeof(version)), ==,
                    sizeof(version));
    close_fd(&p->fd);
    resp = qtest_qmp_receive(f->qts);
    g_assert_nonnull(strstr(qdict_get_str(qdict_get_qdict(resp, "error"),
                                          "desc"),
                            "chardev 'c0' is not connected"));
}


/*
 * chardev-change
 */

static char *change_error(Fixture *f, const char *id, Peer *p,
                          const char *options)
{
    return command_error(f, "chardev-change",
                         qdict_from_jsonf_nofail("{ 'id': %s, 'backend': %p }",
                                                 id, backend(p, options)));
}

/* Attach the pci-serial to a client of @p. */
static void serial_connect(Fixture *f, const char *id, Peer *p)
{
    chardev_add(f, id, p, CLIENT);
    serial_add(f, id);
    peer_accept(p);
    assert_data(f, p);
}

/* The old connection is closed only after the new one was made. */
static void test_change_client(Fixture *f, const void *data)
{
    Peer *old = peer_new_bound(f, PEER_UNIX);
    Peer *new = peer_new_bound(f, PEER_UNIX);
    int i;

    peer_listen(old);
    serial_connect(f, "c0", old);
    for (i = 0; i < 2; i++) {
        g_autofree char *desc = change_error(f, "c0", new, CLIENT);

        assert_blames(desc, "c0", new);
        assert_state(f, "c0", "connected");
        assert_data(f, old);
    }

    peer_listen(new);
    chardev_change(f, "c0", new, CLIENT);
    assert_state(f, "c0", "connected");
    peer_accept(new);
    assert_data(f, new);
    peer_assert_closed(old);

    device_del_pci(f, "serial", SERIAL_SLOT);
    chardev_remove(f, "c0");
    chardev_add(f, "c0", old, CLIENT);
}

static void test_change_unattached(Fixture *f, const void *data)
{
    Peer *old = peer_new(f, PEER_UNIX);
    Peer *new = peer_new_bound(f, PEER_UNIX);

    chardev_add(f, "c0", old, CLIENT);
    chardev_change(f, "c0", new, CLIENT);
    assert_state(f, "c0", "postponed");
    peer_listen(new);
    serial_add(f, "c0");
    peer_accept(new);
    assert_data(f, new);
}

static void test_change_role(Fixture *f, const void *data)
{
    Peer *client = peer_new_bound(f, PEER_UNIX);
    Peer *server = peer_new(f, PEER_UNIX);
    Peer *again = peer_new_bound(f, PEER_UNIX);
    g_autofree char *desc = NULL;

    peer_listen(client);
    serial_connect(f, "c0", client);

    chardev_change(f, "c0", server, SERVER);
    assert_state(f, "c0", "disconnected");
    peer_connect(server);
    wait_state(f, "c0", "connected");
    assert_data(f, server);
    peer_assert_closed(client);

    desc = change_error(f, "c0", again, CLIENT);
    assert_blames(desc, "c0", again);
    assert_data(f, server);

    peer_listen(again);
    chardev_change(f, "c0", again, CLIENT);
    peer_accept(again);
    assert_data(f, again);
    peer_assert_closed(server);
}

/* Passes without deferred connecting, too. */
static void test_change_address_in_use(Fixture *f, const void *data)
{
    Peer *p = peer_new_bound(f, PEER_UNIX);
    Peer *taken = peer_new_bound(f, PEER_INET);
    g_autofree char *desc = NULL;

    peer_listen(p);
    peer_listen(taken);
    serial_connect(f, "c0", p);
    desc = change_error(f, "c0", taken, SERVER);
    g_assert_nonnull(strstr(desc, strerror(EADDRINUSE)));
    assert_data(f, p);
}

/*
 * Servers; @data is SERVER or SERVER_WAIT
 *
 * Without deferred connecting, the tests of SERVER pass, too, except for the
 * state in query-chardev.
 */

/* A client can connect to the server as soon as chardev-add has returned. */
static void test_server_listens(Fixture *f, const void *data)
{
    const char *options = data;
    bool wait = g_str_equal(options, SERVER_WAIT);
    Peer *p = peer_new(f, PEER_UNIX);
    int i;

    chardev_add(f, "c0", p, options);
    assert_state(f, "c0", wait ? "postponed" : "disconnected");
    chardev_remove(f, "c0");

    chardev_add(f, "c0", p, options);
    peer_connect(p);
    for (i = 0; wait && i < 5; i++) {
        assert_state(f, "c0", "postponed");
    }
    if (!wait) {
        wait_state(f, "c0", "connected");
    }
    serial_add(f, "c0");
    assert_state(f, "c0", "connected");
    assert_data(f, p);
}

/* With wait=on, device_add waits for the client. */
static void test_server_waits(Fixture *f, const void *data)
{
    Peer *p = peer_new(f, PEER_UNIX);
    g_autoptr(QDict) resp = NULL;

    chardev_add(f, "c0", p, SERVER_WAIT);
    qtest_qmp_send(f->qts, "{ 'execute': 'human-monitor-command', 'arguments':"
                   " { 'command-line': 'device_add pci-serial,chardev=c0,"
                   "addr=" stringify(SERIAL_SLOT) ".0' } }");
    peer_connect(p);
    resp = qtest_qmp_receive(f->qts);
    g_assert_nonnull(strstr(qdict_get_str(resp, "return"),
                            "waiting for connection"));
    assert_state(f, "c0", "connected");
    serial_map(f);
    assert_data(f, p);
}

/* chardev-add binds to the port, and fails if there is none. */
static void test_server_port(Fixture *f, const void *data)
{
    static const struct {
        const char *id;
        bool any;           /* port 0, or a range that starts at a taken one */
    } rows[] = { { "c0", true }, { "c1", false } };
    const char *options = data;
    Peer *taken = peer_new_bound(f, PEER_INET);
    g_autofree char *desc = NULL;
    int i;

    peer_listen(taken);
    desc = command_error(f, "chardev-add",
                         qdict_from_jsonf_nofail("{ 'id': 'c0',"
                                                 " 'backend': %p }",
                                                 backend(taken, options)));
    g_assert_nonnull(strstr(desc, strerror(EADDRINUSE)));

    for (i = 0; i < ARRAY_SIZE(rows); i++) {
        Peer *p = peer_new(f, PEER_INET);
        struct sockaddr_in *in = (struct sockaddr_in *)&p->addr;
        int first = rows[i].any ? 1 : atoi(taken->name) + 1;
        int last = rows[i].any ? 65535 : MIN(first + 100, 65535);
        g_autofree char *filename = NULL;
        QDict *args, *addr;
        int port = 0;

        p->name = g_strdup(rows[i].any ? "0" : taken->name);
        args = qdict_from_jsonf_nofail("{ 'id': %s, 'backend': %p }",
                                       rows[i].id, backend(p, options));
        if (!rows[i].any) {
            addr = qdict_get_qdict(args, "backend");
            addr = qdict_get_qdict(qdict_get_qdict(addr, "data"), "addr");
            qdict_put_int(qdict_get_qdict(addr, "data"), "to", last);
        }
        qtest_qmp_assert_success(f->qts, "{ 'execute': 'chardev-add',"
                                 " 'arguments': %p }", args);

        filename = chardev_query(f, rows[i].id, "filename");
        sscanf(filename, "disconnected:tcp:127.0.0.1:%d,", &port);
        g_assert_cmpint(port, >=, first);
        g_assert_cmpint(port, <=, last);
        in->sin_port = htons(port);
        peer_connect(p);
    }
}

/*
 * gdbserver
 */

static char *gdbserver(Fixture *f, const char *device)
{
    return qtest_hmp(f->qts, "gdbserver %s", device);
}

/* Ask why the guest stopped, and read an answer like $T05thread:01;#07 */
static void assert_gdbstub_answers(Peer *p)
{
    GString *answer = g_string_new(NULL);

    peer_write(p, "$?#3f");
    while (answer->len < 3 || answer->str[answer->len - 3] != '#') {
        g_string_append_c(answer, peer_read(p));
    }
    g_assert_true(g_str_has_prefix(answer->str, "+$T"));
    peer_write(p, "+");
    g_string_free(answer, true);
}

/* gdb stays connected until the new chardev is connected. */
static void test_gdbserver(Fixture *f, const void *data)
{
    Peer *old = peer_new_bound(f, PEER_UNIX);
    Peer *new = peer_new_bound(f, PEER_UNIX);
    g_autofree char *unreachable = NULL;
    g_autofree char *same = NULL;

    peer_listen(old);
    chardev_add(f, "old", old, CLIENT);
    g_free(gdbserver(f, "chardev:old"));
    peer_accept(old);
    assert_gdbstub_answers(old);

    chardev_add(f, "new", new, CLIENT);
    unreachable = gdbserver(f, "chardev:new");
    assert_blames(unreachable, "new", new);
    assert_state(f, "new", "postponed");
    assert_gdbstub_answers(old);

    same = gdbserver(f, "chardev:old");
    g_assert_nonnull(strstr(same, "'old' is already in use"));
    assert_gdbstub_answers(old);

    peer_listen(new);
    g_free(gdbserver(f, "chardev:new"));
    peer_accept(new);
    assert_gdbstub_answers(new);
    peer_assert_closed(old);
}

/*
 * vhost-user-blk
 */

static QDict *blk_args(const char *chardev)
{
    return qdict_from_jsonf_nofail("{ 'driver': 'vhost-user-blk-pci',"
                                   " 'id': 'disk', 'addr': '9.0',"
                                   " 'chardev': %s }", chardev);
}

static void storage_daemon_stop(void *data)
{
    GPid *pid = data;

    kill(*pid, SIGTERM);
    waitpid(*pid, NULL, 0);
}

/* Start a vhost-user-blk back-end that serves the listening socket of @p. */
static void storage_daemon_start(const char *binary, Peer *p, GPid *pid)
{
    g_autofree char *export = g_strdup_printf(
        "vhost-user-blk,id=e0,node-name=n0,addr.type=fd,addr.str=%d",
        p->listener);
    const char *argv[] = {
        binary, "--blockdev", "null-co,node-name=n0,size=1048576",
        "--export", export, NULL
    };

    g_assert_true(g_spawn_async(NULL, (char **)argv, NULL,
                                G_SPAWN_DO_NOT_REAP_CHILD |
                                G_SPAWN_LEAVE_DESCRIPTORS_OPEN,
                                NULL, NULL, pid, NULL));
}

/* The chardev is created before the back-end. */
static void test_blk_hotplug(Fixture *f, const void *data)
{
    const char *binary = getenv("QTEST_QEMU_STORAGE_DAEMON_BINARY");
    Peer *p = peer_new_bound(f, PEER_UNIX);
    g_autofree char *desc = NULL;
    GPid pid;
    int i;

    if (!binary) {
        g_test_skip("QTEST_QEMU_STORAGE_DAEMON_BINARY not defined");
        return;
    }

    chardev_add(f, "c0", p, CLIENT);
    desc = command_error(f, "device_add", blk_args("c0"));
    assert_blames(desc, "c0", p);
    assert_state(f, "c0", "postponed");

    peer_listen(p);
    storage_daemon_start(binary, p, &pid);
    qtest_add_abrt_handler(storage_daemon_stop, &pid);
    for (i = 0; i < 2; i++) {
        execute_when_released(f, "device_add", blk_args("c0"));
        assert_state(f, "c0", "connected");
        device_del_pci(f, "disk", 9);
    }
    execute_when_released(f, "chardev-remove",
                          qdict_from_jsonf_nofail("{ 'id': 'c0' }"));
    qtest_remove_abrt_handler(&pid);
    storage_daemon_stop(&pid);
}

/* A device with a bad property fails without connecting to the back-end. */
static void test_blk_bad_property(Fixture *f, const void *data)
{
    static const char * const names[] = { "num-queues", "queue-size" };
    Peer *p = peer_new_bound(f, PEER_UNIX);
    int i;

    peer_listen(p);
    chardev_add(f, "c0", p, CLIENT);
    for (i = 0; i < ARRAY_SIZE(names); i++) {
        QDict *args = blk_args("c0");

        qdict_put_int(args, names[i], 0);
        g_free(command_error(f, "device_add", args));
        assert_state(f, "c0", "postponed");
    }
    g_assert_false(fd_readable(p->listener, 0));
}

/* Passes without deferred connecting, too. */
static void test_blk_null_chardev(Fixture *f, const void *data)
{
    qtest_qmp_assert_success(f->qts, "{ 'execute': 'chardev-add', 'arguments':"
                             " { 'id': 'c0', 'backend':"
                             " { 'type': 'null', 'data': {} } } }");
    g_free(command_error(f, "device_add", blk_args("c0")));
    chardev_remove(f, "c0");
}

/*
 * The command line. QEMU exits with status 1 if it cannot connect, as it does
 * without deferred connect.
 */

#define DEAD_CHARDEV " -chardev socket,id=c0,path=@ "

typedef struct CommandLine {
    const char *name;
    const char *options;    /* @ is replaced by the path of a dead socket */
    const char *message;    /* NULL: one with 'c0' and the path */
} CommandLine;

static const CommandLine command_lines[] = {
    { "serial", DEAD_CHARDEV "-serial chardev:c0" },
    { "serial-first", "-serial chardev:c0" DEAD_CHARDEV },
    { "mon", DEAD_CHARDEV "-mon c0,mode=control" },
    { "mon-first", "-mon c0" DEAD_CHARDEV },
    { "virtserialport", DEAD_CHARDEV "-device virtio-serial-pci"
      " -device virtserialport,chardev=c0" },
    { "virtserialport-first", "-device virtio-serial-pci"
      " -device virtserialport,chardev=c0" DEAD_CHARDEV },
    { "vhost-user-blk", DEAD_CHARDEV "-device vhost-user-blk-pci,chardev=c0" },
    { "vhost-user-blk-first",
      "-device vhost-user-blk-pci,chardev=c0" DEAD_CHARDEV },
    { "vhost-user-net", DEAD_CHARDEV "-netdev vhost-user,id=n,chardev=c0" },
    { "gdb", DEAD_CHARDEV "-gdb chardev:c0" },
    { "parallel", DEAD_CHARDEV "-parallel chardev:c0" },
    { "mux", "-chardev socket,id=c0,path=@,mux=on -serial chardev:c0",
      "'c0-base'" },
    { "hub", DEAD_CHARDEV "-chardev hub,id=h,chardevs.0=c0" },
};

static void test_command_line(Fixture *f, const void *data)
{
    const CommandLine *c = data;
    Peer *p = peer_new_bound(f, PEER_UNIX);
    g_auto(GStrv) parts = g_strsplit(c->options, "@", 2);
    g_autofree char *options = g_strjoinv(p->name, parts);
    g_autofree char *cmd = NULL;
    g_autofree char *err = NULL;
    g_auto(GStrv) argv = NULL;
    int status;

    if (g_str_equal(c->name, "gdb") && !qtest_has_accel("tcg")) {
        g_test_skip("no accelerator that the gdbstub supports");
        return;
    }

    cmd = g_strdup_printf("%s -machine pc -accel %s -S -nodefaults"
                          " -display none %s %s", qtest_qemu_binary(NULL),
                          qtest_has_accel("tcg") ? "tcg" : "qtest",
                          can_exit_with_parent() ?
                          "-run-with exit-with-parent=on" : "", options);
    g_assert_true(g_shell_parse_argv(cmd, NULL, &argv, NULL));
    g_assert_true(g_spawn_sync(NULL, argv, NULL, G_SPAWN_STDOUT_TO_DEV_NULL,
                               NULL, NULL, NULL, &err, &status, NULL));
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, 1);
    if (c->message) {
        g_assert_nonnull(strstr(err, c->message));
    } else {
        assert_blames(err, "c0", p);
    }
}

static void add(const char *group, const char *name, const void *data,
                void (*setup_fn)(Fixture *, const void *),
                void (*test)(Fixture *, const void *))
{
    g_autofree char *full = g_strdup_printf("chardev-connect/%s/%s",
                                            group, name);

    qtest_add(full, Fixture, data, setup_fn, test, teardown);
}

int main(int argc, char **argv)
{
    struct sigaction act = { .sa_handler = time_out };
    int i;

    g_test_init(&argc, &argv, NULL);
    sigaction(SIGALRM, &act, NULL);

    if (!qtest_has_machine("pc")) {
        g_test_skip("machine type pc not available");
        return 0;
    }

    for (i = 0; i < ARRAY_SIZE(attachments); i++) {
        add("attach", attachments[i].name, &attachments[i], setup,
            test_attach);
    }

    add("client", "unix", GINT_TO_POINTER(PEER_UNIX), setup, test_client);
#ifdef CONFIG_LINUX
    add("client", "abstract", GINT_TO_POINTER(PEER_ABSTRACT), setup,
        test_client);
#endif
    add("client", "inet", GINT_TO_POINTER(PEER_INET), setup, test_client);
    add("client", "add-client", NULL, setup, test_add_client);
    add("client", "fd", NULL, setup, test_fd);
    add("client", "reconnect", NULL, setup, test_reconnect);
    add("client", "reconnect-remove", NULL, setup, test_reconnect_remove);

    if (qtest_has_device("vhost-user-rng-pci")) {
        add("talks", "vhost-user-rng", "vhost-user-rng-pci", setup,
            test_talks_vhost_user);
        add("talks", "vhost-user-net", NULL, setup, test_talks_vhost_user_net);
    }
    if (qtest_has_device("ivshmem-doorbell")) {
        add("talks", "ivshmem", NULL, setup, test_talks_ivshmem);
    }

    add("change", "client", NULL, setup, test_change_client);
    add("change", "unattached", NULL, setup, test_change_unattached);
    add("change", "role", NULL, setup, test_change_role);
    add("change", "address-in-use", NULL, setup, test_change_address_in_use);

    add("server", "listens", SERVER, setup, test_server_listens);
    add("server", "listens-wait", SERVER_WAIT, setup, test_server_listens);
    add("server", "port", SERVER, setup, test_server_port);
    add("server", "port-wait", SERVER_WAIT, setup, test_server_port);
    add("server", "waits", NULL, setup, test_server_waits);

    if (qtest_has_accel("tcg")) {
        add("gdbserver", "change", NULL, setup_tcg, test_gdbserver);
    }

    if (qtest_has_device("vhost-user-blk-pci")) {
        add("vhost-user-blk", "hotplug", NULL, setup, test_blk_hotplug);
        add("vhost-user-blk", "bad-property", NULL, setup,
            test_blk_bad_property);
        add("vhost-user-blk", "null-chardev", NULL, setup,
            test_blk_null_chardev);
    }

    for (i = 0; i < ARRAY_SIZE(command_lines); i++) {
        add("command-line", command_lines[i].name, &command_lines[i],
            setup_without_vm, test_command_line);
    }

    return g_test_run();
}
