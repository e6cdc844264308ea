/*
 * The chardev as the connection of a vhost-user session
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "chardev/char-socket.h"
#include "hw/virtio/vhost-user-connection.h"

/* Blocks the monitor: must be shorter than a management tool's time-out */
#define FIRST_REPLY_TIMEOUT_MS 5000

/* "Header" of a message; @size is the size of the payload in bytes */
typedef struct MessageHeader {
    uint32_t request;
    uint32_t flags;
    uint32_t size;
} MessageHeader;

static bool connection_send(void *opaque, const void *msg, size_t len,
                            const int *fds, size_t nfds, Error **errp)
{
    VhostUserState *user = opaque;

    if (qemu_chr_fe_set_msgfds(user->chr, (int *)fds, nfds) < 0 ||
        qemu_chr_fe_write_all(user->chr, msg, len) != len) {
        error_setg(errp, "Cannot send to the vhost-user back-end of chardev "
                   "'%s'", user->chr->chr->label);
        return false;
    }
    return true;
}

static bool connection_receive(void *opaque, void *msg, size_t size,
                               Error **errp)
{
    VhostUserState *user = opaque;
    MessageHeader *hdr = msg;
    uint8_t *payload = (uint8_t *)(hdr + 1);

    if (qemu_chr_fe_read_all(user->chr, msg, sizeof(*hdr)) != sizeof(*hdr) ||
        hdr->size > size - sizeof(*hdr) ||
        (hdr->size &&
         qemu_chr_fe_read_all(user->chr, payload, hdr->size) != hdr->size)) {
        error_setg(errp, "Cannot receive from the vhost-user back-end of "
                   "chardev '%s'", user->chr->chr->label);
        return false;
    }
    return true;
}

static const VhostUserSessionOps connection_ops = {
    .send = connection_send,
    .receive = connection_receive,
};

VhostUserSession *vhost_user_connection_session(VhostUserState *user)
{
    return vhost_user_session_new(&connection_ops, user);
}

/* The chardev's socket, or NULL if it has none */
static QIOChannelSocket *connection_socket(VhostUserState *user)
{
    Object *chr = OBJECT(user->chr->chr);

    return object_dynamic_cast(chr, TYPE_CHARDEV_SOCKET) ?
           SOCKET_CHARDEV(chr)->sioc : NULL;
}

bool vhost_user_connection_lives(VhostUserState *user)
{
    QIOChannelSocket *sioc = connection_socket(user);
    GPollFD pfd = { .events = G_IO_HUP | G_IO_ERR };

    if (!sioc) {
        return user->chr->chr->be_open;
    }
    pfd.fd = sioc->fd;
    return RETRY_ON_EINTR(g_poll(&pfd, 1, 0)) == 0;
}

bool vhost_user_connection_answers(VhostUserState *user)
{
    QIOChannelSocket *sioc = connection_socket(user);
    GPollFD pfd = { .events = G_IO_IN | G_IO_HUP | G_IO_ERR };

    if (vhost_user_session_has_replies(user->session) || !sioc) {
        return true;
    }
    pfd.fd = sioc->fd;
    return RETRY_ON_EINTR(g_poll(&pfd, 1, FIRST_REPLY_TIMEOUT_MS)) != 0;
}
