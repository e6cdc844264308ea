/*
 * Handing the live connection of a socket chardev to another QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef CHAR_TRANSFER_H
#define CHAR_TRANSFER_H

#include "chardev/char.h"

/* A server listens on as many sockets as its host name has addresses */
#define CHARDEV_TRANSFER_MAX_LISTEN 16

/**
 * ChardevTransfer:
 *
 * A connection on its way from one chardev to another. It owns its file
 * descriptors, and travels in a migration stream as
 * &vmstate_chardev_transfer. To be embedded by value. All zeroes are an empty
 * one, too.
 */
typedef struct ChardevTransfer {
    /* the connection was accepted, not made, and its listener comes along */
    bool is_server;
    bool is_tn3270;
    /* where the server is in a telnet command, 0 if it speaks no telnet */
    uint8_t telnet;
    /* how many of @fds there are, 0 if empty */
    uint16_t num_fds;
    /* the connection, then the listening sockets; -1 in the rest */
    int32_t fds[1 + CHARDEV_TRANSFER_MAX_LISTEN];
} ChardevTransfer;

/**
 * qemu_chr_transfer_init:
 * @t: memory of any content
 *
 * Make @t an empty transfer.
 */
void qemu_chr_transfer_init(ChardevTransfer *t);

/**
 * qemu_chr_transfer_clear:
 * @t: a transfer, which may be empty
 *
 * Close the descriptors that @t holds and make it empty. They are closed, and
 * nothing else: another process that has received them goes on using the
 * connection and the listening sockets, and the path of a UNIX socket stays.
 */
void qemu_chr_transfer_clear(ChardevTransfer *t);

/**
 * qemu_chr_transfer_check:
 * @chr: any chardev
 * @errp: pointer to a NULL-initialised error object
 *
 * Find out whether the connection of @chr can be handed over as it is now. A
 * later qemu_chr_transfer_detach() may fail all the same, if the state of the
 * connection changes in between.
 *
 * To be called with the BQL held.
 *
 * Returns: true if so, false with the reason in @errp if not
 */
bool qemu_chr_transfer_check(Chardev *chr, Error **errp);

/**
 * qemu_chr_transfer_detach:
 * @chr: the chardev that gives its connection away
 * @t: an empty transfer
 * @errp: pointer to a NULL-initialised error object
 *
 * Take the connection, and the listening sockets of a server, out of @chr and
 * into @t. Nothing is sent, the peer sees nothing of it.
 *
 * From then on @chr is silent. The front end gets no event and no data,
 * writing fails, nothing is accepted, and @chr does not connect again:
 * qemu_chr_connect() fails. This ends when qemu_chr_transfer_attach() gives
 * the connection back, or with the life of @chr, which leaves the path of a
 * listening UNIX socket alone. yank does not reach the connection while it
 * is in @t.
 *
 * A front end that has added watches with qemu_chr_fe_add_watch() must have
 * removed them.
 *
 * To be called with the BQL held, from any thread. Takes chr_write_lock.
 *
 * Returns: true on success; false with @errp set if the connection cannot be
 *          handed over, see qemu_chr_transfer_check(). @chr is as before then,
 *          and @t is empty.
 */
bool qemu_chr_transfer_detach(Chardev *chr, ChardevTransfer *t, Error **errp);

/**
 * qemu_chr_transfer_attach:
 * @chr: the chardev that takes the connection over: one that is postponed, or
 *       a server that waits for a client, or the very one that gave it away
 * @t: the transfer that holds the connection
 * @errp: pointer to a NULL-initialised error object
 *
 * Make the connection in @t that of @chr. The front end sees CHR_EVENT_OPENED
 * before this returns, as when @chr connects. From then on @chr behaves as if
 * it had made the connection itself; it is not postponed any more, and
 * reconnect-ms works.
 *
 * @chr must be such as could have made the connection: client or server, unix,
 * inet or vsock, raw or telnet. Its address may be another one; a server
 * takes on the address of the listening socket that it gets. If @chr listens
 * already, it keeps its own listening socket, and that in @t is closed.
 *
 * To be called with the BQL held, from any thread, without chr_write_lock.
 *
 * Returns: true on success, and @t is empty; false with @errp set on failure,
 *          and both @chr and @t are as before
 */
bool qemu_chr_transfer_attach(Chardev *chr, ChardevTransfer *t, Error **errp);

/**
 * qemu_chr_transfer_settle:
 * @chr: a chardev that has taken a connection over
 *
 * The connection belongs to @chr for good. The process that gave it away may
 * have a copy until it ends; when @chr ends the connection, it ends for all.
 */
void qemu_chr_transfer_settle(Chardev *chr);

/**
 * qemu_chr_transfer_hold_off:
 * @chr: a chardev whose connection was lost; called at CHR_EVENT_CLOSED
 *
 * Let @chr not connect again by itself until qemu_chr_transfer_go_on(): its
 * connection was attached, but is that of another QEMU still.
 */
void qemu_chr_transfer_hold_off(Chardev *chr);

/**
 * qemu_chr_transfer_go_on:
 * @chr: a chardev after qemu_chr_transfer_hold_off()
 * @errp: pointer to a NULL-initialised error object
 *
 * Let @chr connect again, if it has reconnect-ms. To be called with the BQL
 * held, from the thread of the main loop; does not wait for the peer.
 *
 * Returns: true on success; false with @errp set on failure
 */
bool qemu_chr_transfer_go_on(Chardev *chr, Error **errp);

/*
 * State of a ChardevTransfer, to be sent over a UNIX socket. Sending leaves
 * the descriptors with the sender, for it to close or to attach again. Sending
 * an empty transfer is an error. The receiver's must have been initialised;
 * what it holds is closed first. Whether loading succeeds or fails,
 * qemu_chr_transfer_clear() leaves nothing behind.
 */
extern const VMStateDescription vmstate_chardev_transfer;

#endif /* CHAR_TRANSFER_H */
