/*
 * Handing the live connection of a socket chardev over to another QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef CHAR_TRANSFER_H
#define CHAR_TRANSFER_H

#include "chardev/char.h"

/* A server listens on one socket for each address of its host name */
#define CHARDEV_TRANSFER_MAX_LISTEN 16

/**
 * ChardevTransfer:
 *
 * A connection on its way from one chardev to another. It owns its file
 * descriptors. A migration stream contains it as &vmstate_chardev_transfer.
 * Embed it by value. A ChardevTransfer that is all zeroes is empty, like one
 * that qemu_chr_transfer_init() has initialized.
 */
typedef struct ChardevTransfer {
    /* true: a server accepted the connection, and hands its listener over */
    bool is_server;
    bool is_tn3270;
    /* state of the server's parser of telnet commands, 0 without telnet */
    uint8_t telnet;
    /* number of valid elements of @fds, 0 if empty */
    uint16_t num_fds;
    /* the connection, then the listening sockets; unused elements are -1 */
    int32_t fds[1 + CHARDEV_TRANSFER_MAX_LISTEN];
} ChardevTransfer;

/**
 * qemu_chr_transfer_init:
 * @t: the transfer, whose memory need not be initialized
 *
 * Make @t an empty transfer.
 */
void qemu_chr_transfer_init(ChardevTransfer *t);

/**
 * qemu_chr_transfer_clear:
 * @t: a transfer, which may be empty
 *
 * Close the descriptors that @t holds and make it empty. This does not shut
 * the sockets down and does not unlink the path of a UNIX socket: another
 * process that has received the descriptors can still use the connection and
 * the listening sockets.
 */
void qemu_chr_transfer_clear(ChardevTransfer *t);

/**
 * qemu_chr_transfer_check:
 * @chr: any chardev
 * @errp: pointer to a NULL-initialized error object
 *
 * Check whether the connection of @chr can be handed over now. A later
 * qemu_chr_transfer_detach() can still fail if the state of the connection
 * has changed since this check.
 *
 * To be called with the BQL held.
 *
 * Returns: true if the connection can be handed over; false with the reason
 *          in @errp otherwise
 */
bool qemu_chr_transfer_check(Chardev *chr, Error **errp);

/**
 * qemu_chr_transfer_detach:
 * @chr: the chardev that gives its connection away
 * @t: an empty transfer
 * @errp: pointer to a NULL-initialized error object
 *
 * Move the connection, and the listening sockets of a server, from @chr to
 * @t. Nothing is sent, so the peer does not notice.
 *
 * Afterwards @chr is silent: the front end gets no events and no data, writes
 * fail, no client is accepted, and @chr does not connect again, so that
 * qemu_chr_connect() fails. Only qemu_chr_transfer_attach() with the same
 * connection ends this state. If @chr is deleted in this state, it does not
 * unlink the path of its listening UNIX socket. yank does not reach the
 * connection while it is in @t.
 *
 * The front end must have removed all watches that it added with
 * qemu_chr_fe_add_watch().
 *
 * To be called with the BQL held, from any thread. Takes chr_write_lock.
 *
 * Returns: true on success; false with @errp set if the connection cannot be
 *          handed over, see qemu_chr_transfer_check(). On failure @chr is
 *          unchanged and @t is empty.
 */
bool qemu_chr_transfer_detach(Chardev *chr, ChardevTransfer *t, Error **errp);

/**
 * qemu_chr_transfer_attach:
 * @chr: the chardev that takes the connection over: a client whose connecting
 *       is postponed, a server that waits for a client, or the chardev from
 *       which the connection was detached
 * @t: the transfer that holds the connection
 * @errp: pointer to a NULL-initialized error object
 *
 * Make the connection in @t the connection of @chr. The front end gets
 * CHR_EVENT_OPENED before this function returns, as it does when @chr
 * connects. Afterwards @chr behaves as if it had made the connection itself:
 * connecting is no longer postponed, and reconnect-ms works.
 *
 * @chr and the chardev from which the connection was detached must both be
 * clients or both be servers, use the same address family (unix, inet or
 * vsock), and both use telnet or tn3270 or neither. Their addresses may
 * differ; a server gets the address of the listening socket in @t. If @chr
 * listens already, it keeps its own listening socket, and the listening
 * sockets in @t are closed.
 *
 * To be called with the BQL held, from any thread, without chr_write_lock.
 *
 * Returns: true on success, then @t is empty; false with @errp set on
 *          failure, then both @chr and @t are unchanged
 */
bool qemu_chr_transfer_attach(Chardev *chr, ChardevTransfer *t, Error **errp);

/**
 * qemu_chr_transfer_settle:
 * @chr: a chardev that has taken a connection over
 *
 * Let @chr own the connection for good. The process that gave it away may
 * keep a copy of the socket until it exits. So when @chr disconnects, it shuts
 * the socket down, which ends the connection for both processes.
 */
void qemu_chr_transfer_settle(Chardev *chr);

/**
 * qemu_chr_transfer_drop:
 * @chr: a chardev that has taken a connection over, and has not settled
 *
 * Close the connection, and the listening sockets of a server, in this process
 * only: the process that gave them away keeps its copies. No path is unlinked.
 * Nothing is sent, the front end gets no event, and @chr does not connect
 * again by itself. If the connection is closed already, only the listening
 * sockets are closed.
 *
 * The front end must have removed all watches that it added with
 * qemu_chr_fe_add_watch().
 *
 * To be called with the BQL held. Takes chr_write_lock.
 */
void qemu_chr_transfer_drop(Chardev *chr);

/**
 * qemu_chr_transfer_hold_off:
 * @chr: a chardev whose connection was lost
 *
 * Prevent @chr from reconnecting and from accepting a client until
 * qemu_chr_transfer_go_on() is called, because the lost connection had been
 * attached but another QEMU may still own it. To be called when the front end
 * gets CHR_EVENT_CLOSED.
 */
void qemu_chr_transfer_hold_off(Chardev *chr);

/**
 * qemu_chr_transfer_go_on:
 * @chr: a chardev after qemu_chr_transfer_hold_off()
 * @errp: pointer to a NULL-initialized error object
 *
 * Let @chr connect again, if it has reconnect-ms, or accept a client, if it is
 * a server. To be called with the BQL
 * held, from the thread of the main loop. Does not wait for the peer.
 *
 * Returns: true on success; false with @errp set on failure
 */
bool qemu_chr_transfer_go_on(Chardev *chr, Error **errp);

/*
 * The state of a ChardevTransfer, to be sent over a UNIX socket. After saving,
 * the sender still has the descriptors, and must close them or attach the
 * connection again. Saving an empty transfer is an error. Before loading, the
 * receiver's ChardevTransfer must be initialized; loading first closes the
 * descriptors that it holds. Whether loading succeeds or fails,
 * qemu_chr_transfer_clear() closes all descriptors that were received.
 */
extern const VMStateDescription vmstate_chardev_transfer;

#endif /* CHAR_TRANSFER_H */
