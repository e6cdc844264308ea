/*
 * Handing the live connection of a socket chardev over to another QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/sockets.h"
#include "chardev/char-socket.h"
#include "chardev/char-transfer.h"
#include "io/net-listener.h"
#include "migration/vmstate.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "trace.h"

#include "chardev-internal.h"

void qemu_chr_transfer_init(ChardevTransfer *t)
{
    int i;

    *t = (ChardevTransfer) {};
    for (i = 0; i < ARRAY_SIZE(t->fds); i++) {
        t->fds[i] = -1;
    }
}

void qemu_chr_transfer_clear(ChardevTransfer *t)
{
    /* A stream that was refused may have set any number here */
    int i, n = MIN(t->num_fds, ARRAY_SIZE(t->fds));

    for (i = 0; i < n; i++) {
        if (t->fds[i] >= 0) {
            close(t->fds[i]);
        }
    }
    qemu_chr_transfer_init(t);
}

/*
 * Returns the address family of @fd as a SocketAddressType, or -1 if @fd is
 * not a socket of a family that chardevs support.
 */
static int socket_family(int fd)
{
    g_autoptr(SocketAddress) addr = socket_local_address(fd, NULL);

    return addr ? addr->type : -1;
}

/* A chardev with fd= does not know the family of its socket: accept any. */
static bool family_fits(SocketChardev *s, int fd)
{
    return s->addr && (s->addr->type == SOCKET_ADDRESS_TYPE_FD ||
                       s->addr->type == socket_family(fd));
}

static bool is_stream_socket(int fd, bool listening)
{
    int type = -1, accepts = 0;
    socklen_t len = sizeof(type);

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 ||
        type != SOCK_STREAM) {
        return false;
    }
    len = sizeof(accepts);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &len) < 0) {
        return false;
    }
    return !!accepts == listening;
}

/* The stream is untrusted: check everything. */
static bool transfer_is_valid(const ChardevTransfer *t, Error **errp)
{
    int i;

    if (!t->num_fds) {
        error_setg(errp, "There is no connection to hand over");
        return false;
    }
    if (t->num_fds > ARRAY_SIZE(t->fds) || t->is_server != (t->num_fds > 1)) {
        error_setg(errp, "Wrong number of sockets for a %s chardev: %u",
                   t->is_server ? "server" : "client", t->num_fds);
        return false;
    }
    if (t->telnet > 3 || (t->telnet && !t->is_server) ||
        (t->is_tn3270 && !t->telnet)) {
        error_setg(errp, "Invalid telnet state %u", t->telnet);
        return false;
    }

    for (i = 0; i < t->num_fds; i++) {
        if (t->fds[i] < 0) {
            error_setg(errp, "Socket %d of a chardev is missing: the migration "
                       "channel must be a UNIX socket", i);
            return false;
        }
        if (!is_stream_socket(t->fds[i], i > 0) ||
            socket_family(t->fds[i]) < 0 ||
            socket_family(t->fds[i]) != socket_family(t->fds[0])) {
            error_setg(errp, "File descriptor %d of a chardev is not a %s", i,
                       i > 0 ? "listening socket" : "connection");
            return false;
        }
    }
    return true;
}

static int is_front_end_of(Object *obj, void *opaque)
{
    int i;

    if (CHARDEV_IS_MUX(obj)) {
        return MUX_CHARDEV(obj)->chr.chr == opaque;
    }
    if (CHARDEV_IS_HUB(obj)) {
        for (i = 0; i < HUB_CHARDEV(obj)->be_cnt; i++) {
            if (HUB_CHARDEV(obj)->backends[i].fe.chr == opaque) {
                return true;
            }
        }
    }
    return false;
}

/*
 * Returns why @chr can neither give its connection away nor take another one
 * over, or NULL if it can.
 */
static const char *unfit(Chardev *chr)
{
    SocketChardev *s;

    if (!object_dynamic_cast(OBJECT(chr), TYPE_CHARDEV_SOCKET)) {
        return "it is not a socket";
    }
    s = SOCKET_CHARDEV(chr);
    if (s->tls_creds) {
        return "it uses TLS, and a TLS session cannot leave its process";
    }
    if (s->is_websock) {
        return "it uses websocket; use a plain socket";
    }
    if (chr->gcontext) {
        return "it is served by a thread of its own";
    }
    if (qemu_chr_replay(chr)) {
        return "it is recorded or replayed";
    }
    if (object_child_foreach(get_chardevs_root(), is_front_end_of, chr)) {
        return "it is shared by a mux or hub; connect devices to it directly";
    }
    return NULL;
}

/*
 * Returns why @chr cannot give its connection away, or NULL if it can.
 * chr_write_lock is held.
 */
static const char *cannot_detach(Chardev *chr)
{
    const char *why = unfit(chr);
    SocketChardev *s;
    size_t nsioc;

    if (why) {
        return why;
    }
    s = SOCKET_CHARDEV(chr);
    if (s->telnet_init) {
        return "it is still negotiating telnet options; try again later";
    }
    if (s->state == TCP_CHARDEV_STATE_CONNECTING) {
        return "it is still connecting; try again later";
    }
    if (s->state == TCP_CHARDEV_STATE_DISCONNECTED) {
        return "it is not connected";
    }
    if (s->read_msgfds_num) {
        return "file descriptors from its peer have not been used yet; "
               "try again later";
    }
    if (s->write_msgfds_num) {
        return "file descriptors have not been sent to its peer yet; "
               "try again later";
    }
    if (s->is_listen) {
        nsioc = s->listener ? qio_net_listener_nsioc(s->listener) : 0;
        if (nsioc < 1 || nsioc > CHARDEV_TRANSFER_MAX_LISTEN) {
            return "it does not listen on 1 to "
                   stringify(CHARDEV_TRANSFER_MAX_LISTEN) " sockets";
        }
    }
    if (!family_fits(s, s->sioc->fd)) {
        return "the address family of its connection does not match its "
               "address";
    }
    return NULL;
}

bool qemu_chr_transfer_check(Chardev *chr, Error **errp)
{
    QEMU_LOCK_GUARD(&chr->chr_write_lock);
    const char *why = cannot_detach(chr);

    if (why) {
        error_setg(errp, "Chardev '%s' cannot hand its connection over: %s",
                   chr->label, why);
    }
    return !why;
}

/*
 * Free @listener without closing its sockets or unlinking their paths. Its
 * channels do neither when they have no descriptor.
 */
static void dissolve_listener(QIONetListener *listener)
{
    size_t i;

    for (i = 0; i < qio_net_listener_nsioc(listener); i++) {
        qio_net_listener_sioc(listener, i)->fd = -1;
    }
    object_unref(OBJECT(listener));
}

bool qemu_chr_transfer_detach(Chardev *chr, ChardevTransfer *t, Error **errp)
{
    QEMU_LOCK_GUARD(&chr->chr_write_lock);
    const char *why = cannot_detach(chr);
    SocketChardev *s;
    size_t i;

    assert(!t->num_fds);
    qemu_chr_transfer_init(t);
    if (why) {
        error_setg(errp, "Chardev '%s' cannot hand its connection over: %s",
                   chr->label, why);
        return false;
    }

    s = SOCKET_CHARDEV(chr);
    t->is_server = s->is_listen;
    t->telnet = s->do_telnetopt;
    t->is_tn3270 = s->do_telnetopt && s->is_tn3270;
    t->fds[t->num_fds++] = s->sioc->fd;
    /* Without its descriptor, the channel cannot disturb the peer */
    s->sioc->fd = -1;
    CHARDEV_GET_CLASS(chr)->chr_detach(chr);
    if (s->listener) {
        for (i = 0; i < qio_net_listener_nsioc(s->listener); i++) {
            t->fds[t->num_fds++] = qio_net_listener_sioc(s->listener, i)->fd;
        }
        dissolve_listener(g_steal_pointer(&s->listener));
    }

    chr->be_open = 0;
    /* Using @chr calls qemu_chr_connect(), which fails due to @detached */
    chr->connect_postponed = true;
    s->detached = true;
    trace_chr_transfer_detach(chr->label, t->num_fds);
    return true;
}

/* Returns why @chr cannot take @t over, or NULL if it can. */
static const char *cannot_attach(Chardev *chr, const ChardevTransfer *t)
{
    const char *why = unfit(chr);
    SocketChardev *s;

    if (why) {
        return why;
    }
    s = SOCKET_CHARDEV(chr);
    if (s->state != TCP_CHARDEV_STATE_DISCONNECTED) {
        return "it has a connection of its own";
    }
    if (t->is_server && !s->is_listen) {
        return "it is a client, and the connection is that of a server";
    }
    if (!t->is_server && s->is_listen) {
        return "it is a server, and the connection is that of a client";
    }
    if (!s->is_listen && !chr->connect_postponed) {
        return "it is a client that connects by itself";
    }
    if (!t->telnet != !s->do_telnetopt ||
        (t->telnet && t->is_tn3270 != s->is_tn3270)) {
        return "only one side uses telnet or tn3270; use the same options";
    }
    if (!family_fits(s, t->fds[0])) {
        return "the address family of the connection does not match its "
               "address";
    }
    return NULL;
}

/*
 * Returns a listener that owns the listening sockets in @t. On failure,
 * returns NULL with @errp set, and @t still owns them.
 */
static QIONetListener *make_listener(Chardev *chr, const ChardevTransfer *t,
                                     Error **errp)
{
    QIONetListener *listener = qio_net_listener_new();
    g_autofree char *name = g_strdup_printf("chardev-tcp-listener-%s",
                                            chr->label);
    int i;

    qio_net_listener_set_name(listener, name);
    for (i = 1; i < t->num_fds; i++) {
        QIOChannelSocket *sioc = qio_channel_socket_new_fd(t->fds[i], errp);

        if (!sioc) {
            dissolve_listener(listener);
            return NULL;
        }
        /* Closing the socket then unlinks its path */
        qio_channel_set_feature(QIO_CHANNEL(sioc), QIO_CHANNEL_FEATURE_LISTEN);
        qio_net_listener_add(listener, sioc);
        object_unref(OBJECT(sioc));
    }
    return listener;
}

/* Make @chr use the connection in @t. On failure @chr is unchanged. */
static bool attach_connection(Chardev *chr, const ChardevTransfer *t,
                              Error **errp)
{
    SocketChardev *s = SOCKET_CHARDEV(chr);
    bool was_postponed = chr->connect_postponed;
    bool was_detached = s->detached;
    int telnet = s->do_telnetopt;

    /* chr_add_client() does this, too, but changes @chr when it fails */
    if (!qemu_set_blocking(t->fds[0], false, errp)) {
        return false;
    }

    chr->connect_postponed = false;
    s->detached = false;
    /* Telnet options were negotiated already: do not negotiate again */
    s->do_telnetopt = 0;
    if (CHARDEV_GET_CLASS(chr)->chr_add_client(chr, t->fds[0]) < 0) {
        error_setg(errp, "the socket cannot be used");
        s->do_telnetopt = telnet;
        s->detached = was_detached;
        chr->connect_postponed = was_postponed;
        return false;
    }
    s->do_telnetopt = t->telnet;
    return true;
}

static bool attach(Chardev *chr, ChardevTransfer *t, Error **errp)
{
    SocketChardev *s = SOCKET_CHARDEV(chr);
    bool takes_listener = t->is_server && !s->listener;
    g_autoptr(SocketAddress) addr = NULL;

    if (takes_listener) {
        addr = socket_local_address(t->fds[1], errp);
        s->listener = addr ? make_listener(chr, t, errp) : NULL;
        if (!s->listener) {
            return false;
        }
    }
    if (!attach_connection(chr, t, errp)) {
        if (takes_listener) {
            dissolve_listener(g_steal_pointer(&s->listener));
        }
        return false;
    }

    trace_chr_transfer_attach(chr->label, t->num_fds, takes_listener);
    t->fds[0] = -1;
    if (takes_listener) {
        qapi_free_SocketAddress(s->addr);
        s->addr = g_steal_pointer(&addr);
        t->num_fds = 1;
    }
    /* Closes the listening sockets that are not needed */
    qemu_chr_transfer_clear(t);
    return true;
}

bool qemu_chr_transfer_attach(Chardev *chr, ChardevTransfer *t, Error **errp)
{
    ERRP_GUARD();
    const char *why;

    if (transfer_is_valid(t, errp)) {
        why = cannot_attach(chr, t);
        if (why) {
            error_setg(errp, "%s", why);
        } else if (attach(chr, t, errp)) {
            return true;
        }
    }
    error_prepend(errp, "Chardev '%s' cannot take the connection over: ",
                  chr->label);
    return false;
}

void qemu_chr_transfer_settle(Chardev *chr)
{
    SOCKET_CHARDEV(chr)->shared = true;
}

void qemu_chr_transfer_drop(Chardev *chr)
{
    SocketChardev *s = SOCKET_CHARDEV(chr);
    size_t i;

    QEMU_LOCK_GUARD(&chr->chr_write_lock);

    chr->be_open = 0;
    chr->connect_postponed = true;
    CHARDEV_GET_CLASS(chr)->chr_detach(chr);
    if (s->listener) {
        for (i = 0; i < qio_net_listener_nsioc(s->listener); i++) {
            close(qio_net_listener_sioc(s->listener, i)->fd);
        }
        dissolve_listener(g_steal_pointer(&s->listener));
    }
    trace_chr_transfer_drop(chr->label);
}

void qemu_chr_transfer_hold_off(Chardev *chr)
{
    /* A postponed chardev has no reconnect timer, and it arms no listener */
    chr->connect_postponed = true;
    /* A chardev arms its listener before it reports CHR_EVENT_CLOSED */
    CHARDEV_GET_CLASS(chr)->chr_listener_cleanup(chr);
}

bool qemu_chr_transfer_go_on(Chardev *chr, Error **errp)
{
    SocketChardev *s = SOCKET_CHARDEV(chr);

    if (s->listener) {
        chr->connect_postponed = false;
        /* Arms the listener */
        CHARDEV_GET_CLASS(chr)->chr_update_read_handler(chr);
        return true;
    }
    return !s->reconnect_time_ms || qemu_chr_connect(chr, errp);
}

static bool transfer_num_fds_ok(void *opaque, int version_id)
{
    ChardevTransfer *t = opaque;

    return t->num_fds >= 1 && t->num_fds <= ARRAY_SIZE(t->fds);
}

static int transfer_pre_load(void *opaque)
{
    qemu_chr_transfer_clear(opaque);
    return 0;
}

static bool transfer_post_load(void *opaque, int version_id, Error **errp)
{
    return transfer_is_valid(opaque, errp);
}

static bool transfer_pre_save(void *opaque, Error **errp)
{
    return transfer_is_valid(opaque, errp);
}

const VMStateDescription vmstate_chardev_transfer = {
    .name = "chardev-transfer",
    .version_id = 1,
    .minimum_version_id = 1,
    .pre_load = transfer_pre_load,
    .post_load_errp = transfer_post_load,
    .pre_save_errp = transfer_pre_save,
    .fields = (const VMStateField[]) {
        VMSTATE_BOOL(is_server, ChardevTransfer),
        VMSTATE_BOOL(is_tn3270, ChardevTransfer),
        VMSTATE_UINT8(telnet, ChardevTransfer),
        VMSTATE_UINT16(num_fds, ChardevTransfer),
        VMSTATE_VALIDATE("number of sockets", transfer_num_fds_ok),
        VMSTATE_VARRAY_UINT16_UNSAFE(fds, ChardevTransfer, num_fds, 1,
                                     vmstate_info_fd, int32_t),
        VMSTATE_END_OF_LIST()
    },
};
