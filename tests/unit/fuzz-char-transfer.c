/*
 * Fuzzing of a chardev that takes a connection over
 *
 * The stream of an input is the migration stream of a connection, with files
 * of all kinds. The script decides what happens to the chardev afterwards. The
 * options select the kind of the chardev.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
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
#include "system/runstate.h"
#include "fuzz-files.h"

/* Does this process act as a QEMU that waits for an incoming migration? */
static bool incoming;

bool runstate_check(RunState state)
{
    return state == (incoming ? RUN_STATE_INMIGRATE : RUN_STATE_RUNNING);
}

/*
 * Chardevs, and the properties that a stream must have for each of them
 */

typedef struct Kind {
    ChardevSocket sock;
    bool inet;
    uint8_t telnet;
} Kind;

#define SERVER .has_server = true, .server = true, .has_wait = true

static const Kind kinds[] = {
    { { .has_server = true } },
    { { .has_server = true }, true },
    { { .has_server = true, .has_reconnect_ms = true, .reconnect_ms = 1 } },
    { { SERVER, .wait = true } },
    { { SERVER, .wait = true }, true },
    { { SERVER } },
    { { SERVER }, true },
    { { SERVER, .wait = true, .has_telnet = true, .telnet = true }, false, 1 },
    { { SERVER, .wait = true, .has_tn3270 = true, .tn3270 = true }, false, 1 },
};

/* Its address is unused, so that no client finds a server. */
static Chardev *new_chardev(const Kind *kind)
{
    UnixSocketAddress un = {
        .path = (char *)"fuzz-char-transfer", .has_abstract = true,
        .abstract = true,
    };
    InetSocketAddress inet = {
        .host = (char *)"127.0.0.1", .port = (char *)"0",
    };
    SocketAddressLegacy addr = {
        .type = kind->inet ? SOCKET_ADDRESS_TYPE_INET :
                             SOCKET_ADDRESS_TYPE_UNIX,
    };
    ChardevSocket sock = kind->sock;
    ChardevBackend backend = {
        .type = CHARDEV_BACKEND_KIND_SOCKET,
        .u.socket.data = &sock,
    };
    g_autofree char *path = g_strdup_printf("%s-%d", un.path, getpid());

    un.path = path;
    if (kind->inet) {
        addr.u.inet.data = &inet;
    } else {
        addr.u.q_unix.data = &un;
    }
    sock.addr = &addr;
    incoming = true;
    qapi_free_ChardevReturn(qmp_chardev_add("c", &backend, &error_abort));
    incoming = false;
    return qemu_chr_find("c");
}

/*
 * The stream
 */

static QEMUFile *open_stream(int sock, bool output)
{
    QIOChannelSocket *ioc = qio_channel_socket_new_fd(sock, &error_abort);
    QEMUFile *f = output ? qemu_file_new_output(QIO_CHANNEL(ioc)) :
                           qemu_file_new_input(QIO_CHANNEL(ioc));

    object_unref(OBJECT(ioc));
    return f;
}

/* Returns a socket from which the stream can be read. */
static int save(ChardevTransfer *t)
{
    QEMUFile *f;
    int sv[2];

    g_assert(!qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, sv));
    f = open_stream(sv[1], true);
    g_assert(!vmstate_save_state(f, &vmstate_chardev_transfer, t, NULL,
                                 &error_abort));
    /* Loading looks for a subsection, so the stream must not end here */
    qemu_put_byte(f, QEMU_VM_EOF);
    g_assert(!qemu_fclose(f));
    return sv[0];
}

static bool load(ChardevTransfer *t, int sock)
{
    QEMUFile *f = open_stream(sock, false);
    int ret = vmstate_load_state(f, &vmstate_chardev_transfer, t,
                                 vmstate_chardev_transfer.version_id, NULL);

    ret = ret ?: qemu_file_get_error(f);
    qemu_fclose(f);
    return !ret;
}

/*
 * The front end
 */

typedef struct Guest {
    const FuzzInput *input;
    FuzzScript script;
    Chardev *chr;
    CharFrontend fe;
    bool holds_off;             /* call hold_off() when the connection ends */
    bool held_off;
} Guest;

static int can_read(void *opaque)
{
    return 64;
}

static void read_data(void *opaque, const uint8_t *buf, int size)
{
}

static void on_event(void *opaque, QEMUChrEvent event)
{
    Guest *g = opaque;

    if (event == CHR_EVENT_CLOSED && g->holds_off) {
        qemu_chr_transfer_hold_off(g->chr);
        g->held_off = true;
    }
}

static void run_pending(void)
{
    for (unsigned i = 0; i < 4; i++) {
        main_loop_wait(true);
    }
}

static bool load_and_attach(Guest *g)
{
    ChardevTransfer t;
    int sv[2];
    bool ok;

    qemu_chr_transfer_init(&t);
    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    fuzz_send(g->input, g->input->stream, sv[1]);
    ok = load(&t, sv[0]) && qemu_chr_transfer_attach(g->chr, &t, NULL);
    qemu_chr_transfer_clear(&t);
    return ok;
}

/*
 * Detach the connection. Pass it through a migration stream if @stream, and
 * attach it again if @keep.
 */
static void hand_over(Guest *g, bool stream, bool keep)
{
    ChardevTransfer t = { 0 }, copy = { 0 };

    if (!qemu_chr_transfer_detach(g->chr, &t, NULL)) {
        return;
    }
    if (stream) {
        g_assert_true(load(&copy, save(&t)));
        qemu_chr_transfer_clear(&t);
        t = copy;
    }
    if (keep) {
        qemu_chr_transfer_attach(g->chr, &t, NULL);
    }
    qemu_chr_transfer_clear(&t);
}

static void send_from_peer(uint8_t how)
{
    static const uint8_t data[] = "data\xff\xfb\x01\xff\xfa\x18\xff\xf0";

    if (fuzz_peer() >= 0) {
        send(fuzz_peer(), data, 1 + how % (sizeof(data) - 1), 0);
    }
}

static void any_event(Guest *g)
{
    uint8_t how = fuzz_next(&g->script);

    switch (how % 12) {
    case 0:
    case 1:
        run_pending();
        break;
    case 2:
        send_from_peer(fuzz_next(&g->script));
        break;
    case 3:
        qemu_chr_fe_write(&g->fe, &how, 1);
        break;
    case 4:
        hand_over(g, how & 0x80, true);
        break;
    case 5:
        hand_over(g, how & 0x80, how & 0x40);
        break;
    case 6:
        load_and_attach(g);
        break;
    case 7:
        qemu_chr_transfer_settle(g->chr);
        break;
    case 8:
        g->holds_off = how & 0x80;
        break;
    case 9:
        if (g->held_off) {
            g->held_off = false;
            qemu_chr_transfer_go_on(g->chr, NULL);
        }
        break;
    case 10:
        fuzz_close_peers();
        break;
    case 11:
        /* char-socket asserts that only open chardevs are disconnected */
        if (g->chr->be_open) {
            qemu_chr_fe_disconnect(&g->fe);
        }
        break;
    }
}

/* Wait for the thread that reconnects, because it has a file open. */
static void remove_chardev(Guest *g)
{
    while (SOCKET_CHARDEV(g->chr)->connect_task) {
        main_loop_wait(true);
    }
    qemu_chr_fe_deinit(&g->fe, false);
    qmp_chardev_remove("c", &error_abort);
}

static void init(void)
{
    qemu_init_main_loop(&error_abort);
    socket_init();
    /* Received files that are not used are reported on stderr: be silent */
    g_setenv("QTEST_SILENT_ERRORS", "1", true);
}

static bool run(const FuzzInput *input)
{
    Guest g = {
        .input = input,
        .script = fuzz_script(input),
        .chr = new_chardev(&kinds[input->options % ARRAY_SIZE(kinds)]),
    };
    bool accepted;

    g_assert_true(qemu_chr_fe_init_no_connect(&g.fe, g.chr, &error_abort));
    qemu_chr_fe_set_handlers(&g.fe, can_read, read_data, on_event, NULL, &g,
                             NULL, true);
    accepted = load_and_attach(&g);
    while (g.script.left) {
        any_event(&g);
    }
    remove_chardev(&g);
    fuzz_close_peers();
    return accepted;
}

/* Make the stream of a connection that the chardev of kind @n accepts. */
static bool make(unsigned n, FuzzInput *input)
{
    const Kind *kind = &kinds[n];
    ChardevTransfer t;

    if (n == ARRAY_SIZE(kinds)) {
        return false;
    }
    qemu_chr_transfer_init(&t);
    t.is_server = kind->sock.server;
    t.telnet = kind->telnet;
    t.is_tn3270 = kind->sock.tn3270;
    t.fds[t.num_fds++] = fuzz_new_file(kind->inet ? FILE_INET_CONNECTION :
                                                    FILE_CONNECTION);
    if (t.is_server) {
        t.fds[t.num_fds++] = fuzz_new_file(kind->inet ? FILE_INET_LISTENER :
                                                        FILE_LISTENER);
    }
    input->options = n;
    fuzz_receive(input, save(&t));
    qemu_chr_transfer_clear(&t);
    fuzz_close_peers();
    return true;
}

const FuzzTarget fuzz_target = {
    .name = "char-transfer",
    .init = init,
    .make = make,
    .run = run,
};
