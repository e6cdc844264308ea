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
 * vhost_user_connection_session: create a session that speaks through a
 * chardev
 * @user: the state with the chardev; outlives the session
 *
 * Returns: the session, free it with vhost_user_session_free()
 */
VhostUserSession *vhost_user_connection_session(VhostUserState *user);

/**
 * vhost_user_connection_answers: wait for a connection's first reply
 * @user: the state of the connection
 *
 * A back-end that serves one front-end at a time lets others connect, and
 * leaves them without an answer.  So the first reply gets a few seconds; a
 * back-end that has given it may take its time for the others.
 *
 * Returns: false if nothing came; true if something can be read, or was read
 *          before
 */
bool vhost_user_connection_answers(VhostUserState *user);

/**
 * vhost_user_connection_lives: is the back-end still there?
 * @user: the state of the connection
 *
 * Asks the socket: whoever waits with the BQL held gets no events.
 *
 * Returns: false if the connection broke
 */
bool vhost_user_connection_lives(VhostUserState *user);

#endif
