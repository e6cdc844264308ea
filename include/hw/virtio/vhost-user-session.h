/*
 * What a vhost-user back-end has been told over one connection
 *
 * A session watches the messages of a connection and so knows the state that
 * the back-end is in.  It can be saved, and loaded by another QEMU that takes
 * the connection over.  There, and in a QEMU that takes its own connection
 * back, the session is held: the device runs its ordinary code to set the
 * back-end up, and the session answers in the back-end's place.  In the end
 * it sends what the back-end does not know yet; that may be nothing.
 *
 * Messages and their effects: docs/interop/vhost-user.rst, "Front-end message
 * types".
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_VHOST_USER_SESSION_H
#define HW_VIRTIO_VHOST_USER_SESSION_H

#include "migration/vmstate.h"

/* "Vring descriptor indices": messages with a file have 8 bits for a ring */
#define VHOST_USER_SESSION_RINGS    256
#define VHOST_USER_SESSION_REGIONS  512
/* Request numbers that a session can keep a value for */
#define VHOST_USER_SESSION_VALUES   48
/* "Virtio device config space" */
#define VHOST_USER_SESSION_CONFIG   256

typedef struct VhostUserSession VhostUserSession;

/**
 * VhostUserSessionOps: how a session talks to the back-end by itself
 * @send: send @len bytes at @msg with @nfds files; the files stay the
 *        caller's.
 * @receive: receive one message of at most @size bytes into @msg.
 *
 * Both return false and set @errp if the connection fails.
 */
typedef struct VhostUserSessionOps {
    bool (*send)(void *opaque, const void *msg, size_t len,
                 const int *fds, size_t nfds, Error **errp);
    bool (*receive)(void *opaque, void *msg, size_t size, Error **errp);
} VhostUserSessionOps;

/**
 * vhost_user_session_new: create the session of a connection to be made
 * @ops: the connection
 * @opaque: for @ops
 *
 * A session is used under the BQL.
 *
 * Returns: the session, free it with vhost_user_session_free()
 */
VhostUserSession *vhost_user_session_new(const VhostUserSessionOps *ops,
                                         void *opaque);

/**
 * vhost_user_session_free: free a session and close its files
 * @s: a session or NULL
 */
void vhost_user_session_free(VhostUserSession *s);

/**
 * vhost_user_session_begin: a device begins to set its back-end up
 * @s: the session
 *
 * Forgets what a former connection was told.  A held session goes on: it
 * stands for the connection that was taken over.
 */
void vhost_user_session_begin(VhostUserSession *s);

/**
 * vhost_user_session_reset: forget what the back-end was told, close all files
 * @s: the session; it is not held afterwards
 *
 * The config space stays: a device that connects again does not ask for it
 * again, as the guest goes on with what it has seen.
 */
void vhost_user_session_reset(VhostUserSession *s);

/**
 * vhost_user_session_write: a device sends a message to the back-end
 * @s: the session
 * @msg: the message, header first.  Addresses in it are replaced by those
 *       that the back-end knows the memory by.
 * @fds: files that go with it; they stay the caller's
 * @nfds: how many
 *
 * Returns: 0 if the caller is to send the message, 1 if the session has
 *          taken it and vhost_user_session_answer() has the reply, if it
 *          wants one; -errno on error
 */
int vhost_user_session_write(VhostUserSession *s, void *msg,
                             const int *fds, size_t nfds);

/**
 * vhost_user_session_read: a reply came from the back-end
 * @s: the session
 * @msg: the reply, header first
 */
void vhost_user_session_read(VhostUserSession *s, const void *msg);

/**
 * vhost_user_session_has_replies: has the back-end ever replied?
 * @s: the session
 */
bool vhost_user_session_has_replies(const VhostUserSession *s);

/**
 * vhost_user_session_answer: get the reply to a message that was not sent
 * @s: the session
 * @msg: filled in, header first
 * @size: space at @msg, in bytes
 *
 * Returns: true if there was a reply
 */
bool vhost_user_session_answer(VhostUserSession *s, void *msg, size_t size);

/**
 * vhost_user_session_has_inflight: does the back-end have an inflight region?
 * @s: the session
 */
bool vhost_user_session_has_inflight(const VhostUserSession *s);

/**
 * vhost_user_session_answer_fd: get the file that goes with the last reply
 * @s: the session
 *
 * Returns: the file, owned by the caller, or -1 if the reply was not the
 *          session's
 */
int vhost_user_session_answer_fd(VhostUserSession *s);

/**
 * vhost_user_session_hold: from now on, answer in the back-end's place
 * @s: the session
 *
 * Messages that would change something are kept for the commit.
 */
void vhost_user_session_hold(VhostUserSession *s);

/**
 * vhost_user_session_held: does the session answer in the back-end's place?
 * @s: the session
 */
bool vhost_user_session_held(const VhostUserSession *s);

/**
 * vhost_user_session_owned: may this QEMU speak to the back-end?
 * @s: the session
 */
bool vhost_user_session_owned(const VhostUserSession *s);

/**
 * vhost_user_session_own: say whether the connection is ours
 * @s: a held session
 * @owned: true if this QEMU may speak to the back-end
 *
 * While it is not, nothing is ever sent; a request that the session cannot
 * answer fails.  When it is, such a request goes to the back-end.
 */
void vhost_user_session_own(VhostUserSession *s, bool owned);

/**
 * vhost_user_session_rewind: the device was reset
 * @s: the session
 *
 * Rings that the back-end is running, and that nobody has stopped, are not
 * those that the device will start next, even if they look the same.  No
 * effect on a session that is not held: there, the rings have been stopped.
 */
void vhost_user_session_rewind(VhostUserSession *s);

/**
 * vhost_user_session_commit: tell the back-end what changed; end the hold
 * @s: a held session whose connection is ours
 * @errp: error
 *
 * Rings whose set-up changed, or that were not started again, are stopped.
 *
 * Returns: how many messages were sent, or -1 and @errp set if the connection
 *          failed or the back-end refused; the session is not held any more
 */
int vhost_user_session_commit(VhostUserSession *s, Error **errp);

/**
 * vhost_user_session_ring_running: is the back-end processing a ring?
 * @s: the session
 * @ring: its index
 */
bool vhost_user_session_ring_running(const VhostUserSession *s, unsigned ring);

/**
 * vhost_user_session_ring_base: the last base of a ring, as in
 * GET_VRING_BASE or SET_VRING_BASE
 * @s: the session
 * @ring: its index
 */
uint32_t vhost_user_session_ring_base(const VhostUserSession *s,
                                      unsigned ring);

/**
 * vhost_user_session_lend_kick: the file with which a running ring is kicked
 * @s: a held session
 * @ring: the ring's index
 *
 * A device that starts the ring with the very descriptor that this returns
 * changes nothing.
 *
 * Returns: a descriptor for the caller, or -1 if the back-end has none
 */
int vhost_user_session_lend_kick(VhostUserSession *s, unsigned ring);

/**
 * vhost_user_session_lend_call: the file with which a running ring interrupts
 *
 * As vhost_user_session_lend_kick().
 */
int vhost_user_session_lend_call(VhostUserSession *s, unsigned ring);

/**
 * vhost_user_session_kick: have the back-end look at the running rings
 * @s: the session
 */
void vhost_user_session_kick(VhostUserSession *s);

/**
 * vhost_user_session_set_channel: keep our end of the back-end's channel
 * @s: the session
 * @fd: the socket (see VHOST_USER_SET_BACKEND_REQ_FD), owned by the session
 */
void vhost_user_session_set_channel(VhostUserSession *s, int fd);

/**
 * vhost_user_session_take_channel: take our end of the back-end's channel
 * @s: the session
 *
 * Returns: the socket, owned by the caller, or -1 if the back-end has none
 */
int vhost_user_session_take_channel(VhostUserSession *s);

/**
 * vhost_user_session_check: may the session be handed over?
 * @s: the session
 * @errp: error, says what is in the way
 */
bool vhost_user_session_check(const VhostUserSession *s, Error **errp);

/**
 * VhostUserSessionFits: what the device that adopts a session is like
 * @rings: number of its rings
 * @ring_size: the most entries a ring may have
 * @config_size: size of the config space in bytes
 * @has_file: is (@dev, @ino) memory of this guest, here and at the source?
 * @opaque: for @has_file
 */
typedef struct VhostUserSessionFits {
    unsigned rings;
    unsigned ring_size;
    unsigned config_size;
    bool (*has_file)(void *opaque, uint64_t dev, uint64_t ino);
    void *opaque;
} VhostUserSessionFits;

/**
 * vhost_user_session_adopt: stand for the connection that was loaded
 * @s: a session that was loaded
 * @fits: the device
 * @errp: error, says what does not fit
 *
 * The session is held, and the connection is not ours yet.
 */
bool vhost_user_session_adopt(VhostUserSession *s,
                              const VhostUserSessionFits *fits, Error **errp);

/* A session with its files; load it into a session that was just reset. */
extern const VMStateDescription vmstate_vhost_user_session;

#endif
