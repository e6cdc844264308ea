/*
 * The chardev as the connection of a vhost-user session
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_VHOST_USER_CONNECTION_H
#define HW_VIRTIO_VHOST_USER_CONNECTION_H

#include "hw/virtio/vhost-user.h"
#include "hw/virtio/vhost-user-session.h"

/**
 * vhost_user_connection_session:
 * @user: the state with the chardev; outlives the session
 *
 * Create a session that sends and receives through the chardev of @user.
 *
 * Returns: the session, to be freed with vhost_user_session_free()
 */
VhostUserSession *vhost_user_connection_session(VhostUserState *user);

/**
 * vhost_user_connection_answers:
 * @user: the state of the connection
 *
 * Wait a few seconds for the first reply on a connection. A back-end that
 * serves one front-end at a time may let a second one connect, but never
 * replies to it. After the first reply there is no time limit.
 *
 * Returns: false if nothing was received; true if something can be read or was
 *          read before
 */
bool vhost_user_connection_answers(VhostUserState *user);

/**
 * vhost_user_connection_lives:
 * @user: the state of the connection
 *
 * Check whether the connection is still open. Polls the socket, because the
 * chardev delivers no events while its user waits with the BQL held.
 *
 * Returns: false if the connection broke, true otherwise
 */
bool vhost_user_connection_lives(VhostUserState *user);

#endif /* HW_VIRTIO_VHOST_USER_CONNECTION_H */
