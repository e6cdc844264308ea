/*
 * The state of a vhost-user back-end, recorded from a connection's messages
 *
 * A session watches the messages of a connection, and so knows the state of
 * the back-end. It can be saved, and loaded by another QEMU that takes the
 * connection over. After that, the session is held: the device runs its
 * ordinary code to set the back-end up, but the session stores the messages
 * and answers in the back-end's place. The commit then sends only the messages
 * that change the state of the back-end; there may be none. A session is also
 * held in a QEMU that takes its own connection back.
 *
 * Messages and their effects: docs/interop/vhost-user.rst, "Front-end message
 * types".
 *
 * All functions are called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_VHOST_USER_SESSION_H
#define HW_VIRTIO_VHOST_USER_SESSION_H

#include "migration/vmstate.h"

/* "Vring descriptor indices": messages with a file have 8 bits for a ring */
#define VHOST_USER_SESSION_RINGS    256
#define VHOST_USER_SESSION_REGIONS  512
/* "Virtio device config space" */
#define VHOST_USER_SESSION_CONFIG   256

typedef struct VhostUserSession VhostUserSession;

/**
 * VhostUserSessionOps:
 * @send: Send @len bytes at @msg with @nfds files. The caller keeps the
 *        ownership of the files.
 * @receive: Receive one message of at most @size bytes into @msg.
 *
 * How a session exchanges messages with the back-end on its own account. Both
 * return false with @errp set if the connection fails.
 */
typedef struct VhostUserSessionOps {
    bool (*send)(void *opaque, const void *msg, size_t len,
                 const int *fds, size_t nfds, Error **errp);
    bool (*receive)(void *opaque, void *msg, size_t size, Error **errp);
} VhostUserSessionOps;

/**
 * vhost_user_session_new:
 * @ops: the connection
 * @opaque: for @ops
 *
 * Create the session of a connection that is not made yet.
 *
 * Returns: the session, to be freed with vhost_user_session_free()
 */
VhostUserSession *vhost_user_session_new(const VhostUserSessionOps *ops,
                                         void *opaque);

/**
 * vhost_user_session_free:
 * @s: the session, or NULL
 *
 * Free a session and close its files.
 */
void vhost_user_session_free(VhostUserSession *s);

/**
 * vhost_user_session_begin:
 * @s: the session
 *
 * A device begins to set its back-end up. Reset the session, because its state
 * is that of an earlier connection. A held session is not reset: its state is
 * that of the connection that was taken over.
 */
void vhost_user_session_begin(VhostUserSession *s);

/**
 * vhost_user_session_reset:
 * @s: the session; it is not held afterwards
 *
 * Forget the state of the back-end and close all files. The config space is
 * kept: a device that reconnects does not read it again, because the guest
 * keeps using the one that it has read.
 */
void vhost_user_session_reset(VhostUserSession *s);

/**
 * vhost_user_session_write:
 * @s: the session
 * @msg: the message, beginning with its header
 * @fds: the files that belong to the message; the caller keeps the ownership
 * @nfds: the number of files
 *
 * A device writes a message for the back-end. Addresses in the message are
 * replaced by the names under which the back-end knows the memory.
 *
 * Returns: 0 if the caller must send the message; 1 if the session has stored
 *          or answered it, then vhost_user_session_answer() gets the reply if
 *          the message needs one; -errno on failure
 */
int vhost_user_session_write(VhostUserSession *s, void *msg,
                             const int *fds, size_t nfds);

/**
 * vhost_user_session_read:
 * @s: the session
 * @msg: the reply, beginning with its header
 *
 * The device has received a reply from the back-end. A reply that is wrong is
 * not recorded; the device must refuse it.
 */
void vhost_user_session_read(VhostUserSession *s, const void *msg);

/**
 * vhost_user_session_has_replies:
 * @s: the session
 *
 * Returns: true if the back-end has ever replied
 */
bool vhost_user_session_has_replies(const VhostUserSession *s);

/**
 * vhost_user_session_answer:
 * @s: the session
 * @msg: buffer for the reply, which begins with its header
 * @size: size of the buffer in bytes
 *
 * Get the session's own reply to the last message that was written.
 *
 * Returns: true if there was a reply, false otherwise
 */
bool vhost_user_session_answer(VhostUserSession *s, void *msg, size_t size);

/**
 * vhost_user_session_has_inflight:
 * @s: the session
 *
 * Returns: true if the back-end has an inflight region
 */
bool vhost_user_session_has_inflight(const VhostUserSession *s);

/**
 * vhost_user_session_answer_fd:
 * @s: the session
 *
 * Get the file that belongs to the session's own last reply.
 *
 * Returns: the file, owned by the caller, or -1 if there is none
 */
int vhost_user_session_answer_fd(VhostUserSession *s);

/**
 * vhost_user_session_hold:
 * @s: the session
 *
 * From now on, answer in the back-end's place, and store messages that would
 * change the back-end's state for the commit.
 */
void vhost_user_session_hold(VhostUserSession *s);

/**
 * vhost_user_session_held:
 * @s: the session
 *
 * Returns: true if the session answers in the back-end's place
 */
bool vhost_user_session_held(const VhostUserSession *s);

/**
 * vhost_user_session_owned:
 * @s: the session
 *
 * Returns: true if this QEMU may send messages to the back-end
 */
bool vhost_user_session_owned(const VhostUserSession *s);

/**
 * vhost_user_session_own:
 * @s: a held session
 * @owned: true if this QEMU may send messages to the back-end
 *
 * Set whether this QEMU owns the connection. While it does not, nothing is
 * ever sent, and a request that the session cannot answer fails. While it
 * does, such a request is sent to the back-end.
 */
void vhost_user_session_own(VhostUserSession *s, bool owned);

/**
 * vhost_user_session_rewind:
 * @s: the session
 *
 * The device was reset. The back-end may still be running rings that no
 * message has stopped. If the device starts these rings next, they are not
 * the same, even if they are set up in the same way; so the commit stops them
 * first. No effect on a session that is not held, because resetting the device
 * has stopped its rings.
 */
void vhost_user_session_rewind(VhostUserSession *s);

/**
 * vhost_user_session_commit:
 * @s: a held session whose connection this QEMU owns
 * @errp: pointer to a NULL-initialized error object
 *
 * Send the stored messages that change the back-end's state. Running rings
 * whose set-up changed, or that were not started again, are stopped first.
 * Rings are started after all messages that set them up, whatever the order
 * in which the device wrote the messages. The session is not held afterwards.
 *
 * If the commit fails, the state of the back-end is unknown, and the caller
 * must close the connection. In particular, a ring's index is unknown after a
 * wrong reply to VHOST_USER_GET_VRING_BASE; the next connection then starts
 * the ring at its used index. Exception: if the session is not held, or this
 * QEMU does not own the connection, the commit fails without any effect.
 *
 * Returns: the number of messages that were sent, or -1 with @errp set if the
 *          connection failed, the back-end refused a message, or a reply was
 *          wrong
 */
int vhost_user_session_commit(VhostUserSession *s, Error **errp);

/**
 * vhost_user_session_ring_running:
 * @s: the session
 * @ring: the ring's index
 *
 * Returns: true if the back-end is processing the ring
 */
bool vhost_user_session_ring_running(const VhostUserSession *s, unsigned ring);

/**
 * vhost_user_session_ring_base:
 * @s: the session
 * @ring: the ring's index
 *
 * Returns: the ring's last base, from GET_VRING_BASE or SET_VRING_BASE
 */
uint32_t vhost_user_session_ring_base(const VhostUserSession *s,
                                      unsigned ring);

/**
 * vhost_user_session_lend_kick:
 * @s: a held session
 * @ring: the ring's index
 *
 * Get the kick eventfd of a running ring. If the device then starts the ring
 * with the descriptor that this function returns, the back-end keeps its own.
 * The session recognizes the descriptor by its number. So the caller must not
 * close it before it has written the message, except to lend the file again.
 *
 * Returns: a descriptor, owned by the caller, or -1 if the back-end has none
 */
int vhost_user_session_lend_kick(VhostUserSession *s, unsigned ring);

/**
 * vhost_user_session_lend_call:
 * @s: a held session
 * @ring: the ring's index
 *
 * Get the call eventfd of a running ring, like vhost_user_session_lend_kick().
 *
 * Returns: a descriptor, owned by the caller, or -1 if the back-end has none
 */
int vhost_user_session_lend_call(VhostUserSession *s, unsigned ring);

/**
 * vhost_user_session_lend_err:
 * @s: a held session
 * @ring: the ring's index
 *
 * Get the error eventfd of a ring, like vhost_user_session_lend_kick(). The
 * ring need not run, because a back-end keeps this file when a ring stops.
 *
 * Returns: a descriptor, owned by the caller, or -1 if the back-end has none
 */
int vhost_user_session_lend_err(VhostUserSession *s, unsigned ring);

/**
 * vhost_user_session_kick:
 * @s: the session
 *
 * Kick all running rings, so that the back-end processes them.
 */
void vhost_user_session_kick(VhostUserSession *s);

/**
 * vhost_user_session_set_channel:
 * @s: the session
 * @fd: the front-end's end of the socket of VHOST_USER_SET_BACKEND_REQ_FD,
 *      from now on owned by the session
 *
 * Let the session keep the front-end's end of the back-end channel.
 */
void vhost_user_session_set_channel(VhostUserSession *s, int fd);

/**
 * vhost_user_session_take_channel:
 * @s: the session
 *
 * Take the front-end's end of the back-end channel from the session.
 *
 * Returns: the socket, owned by the caller, or -1 if the session has none
 */
int vhost_user_session_take_channel(VhostUserSession *s);

/**
 * vhost_user_session_check:
 * @s: the session
 * @errp: pointer to a NULL-initialized error object
 *
 * Check whether the session can be handed over. It cannot if its connection
 * has seen a request whose effect the session does not record, or if QEMU had
 * no descriptor left for a copy of a file.
 *
 * Returns: true if it can; false with the reason in @errp otherwise
 */
bool vhost_user_session_check(const VhostUserSession *s, Error **errp);

/**
 * VhostUserSessionFits:
 * @rings: the number of the device's rings
 * @ring_size: the maximum number of entries of a ring
 * @config_size: the size of the config space in bytes, which the session must
 *               have if it knows the back-end's config space; 0 for any size
 * @has_file: Returns true if the file (@dev, @ino) is memory of this guest
 *            that the source and this QEMU share.
 * @opaque: for @has_file
 *
 * The properties of the device that adopts a session.
 */
typedef struct VhostUserSessionFits {
    unsigned rings;
    unsigned ring_size;
    unsigned config_size;
    bool (*has_file)(void *opaque, uint64_t dev, uint64_t ino);
    void *opaque;
} VhostUserSessionFits;

/**
 * vhost_user_session_adopt:
 * @s: a session that was loaded
 * @fits: the properties of the device
 * @errp: pointer to a NULL-initialized error object
 *
 * Check that a loaded session fits the device, and let it answer for the
 * connection. The session is held, and this QEMU does not own the connection
 * yet.
 *
 * Returns: true on success; false with @errp set if the session does not fit
 */
bool vhost_user_session_adopt(VhostUserSession *s,
                              const VhostUserSessionFits *fits, Error **errp);

/* A session with its files; load it into a session that was just reset */
extern const VMStateDescription vmstate_vhost_user_session;

#endif /* HW_VIRTIO_VHOST_USER_SESSION_H */
