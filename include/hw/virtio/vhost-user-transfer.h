/*
 * Hand the back-end of a vhost-user device over to another QEMU
 *
 * A device that embeds a VhostUserTransfer, and calls it when it starts,
 * stops and is reset, can be migrated with its connection.  See
 * docs/devel/migration/backend-transfer.rst.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_VHOST_USER_TRANSFER_H
#define HW_VIRTIO_VHOST_USER_TRANSFER_H

#include "chardev/char-transfer.h"
#include "hw/virtio/vhost.h"
#include "hw/virtio/vhost-user.h"
#include "hw/virtio/vhost-user-session.h"
#include "migration/backend-transfer.h"

/**
 * VhostUserTransferOps: what a device type does for its transfer
 * @connect: connect to the back-end and do what realize does when it is
 *           connected: the incoming migration brings no connection.
 * @adopt: the chardev has a connection, and the session answers in the
 *         back-end's place.  Do what realize does when it is connected; do
 *         not start the device.
 * @disconnect: the connection is gone, clean up what @connect or @adopt did
 */
typedef struct VhostUserTransferOps {
    bool (*connect)(VirtIODevice *vdev, Error **errp);
    bool (*adopt)(VirtIODevice *vdev, Error **errp);
    void (*disconnect)(VirtIODevice *vdev);
} VhostUserTransferOps;

/**
 * VhostUserTransfer: the transfer of one device
 * @enabled: the device's property "backend-transfer"
 *
 * The other fields are private.
 */
typedef struct VhostUserTransfer {
    BackendTransfer backend;
    const VhostUserTransferOps *ops;
    VirtIODevice *vdev;
    struct vhost_dev *dev;
    VhostUserState *user;
    bool enabled;
    bool waiting;               /* realized without the back-end */
    bool detached;              /* @connection is what the chardev had */
    bool attached;              /* and it is not settled whose it is */
    bool lost;                  /* the back-end died when it was nobody's */
    ChardevTransfer connection;
    VhostUserSession *session;
    /* What both sides must agree on */
    uint32_t num_queues;
    uint32_t queue_size;
    uint32_t config_size;
    uint64_t host_features;
} VhostUserTransfer;

/**
 * vhost_user_transfer_init: a device is being realized
 * @t: its transfer
 * @ops: what to do for it
 * @vdev: the device, after virtio_init() and with its queues
 * @dev: its vhost device
 * @user: its state, after vhost_user_init()
 *
 * Called under the BQL, like all of these functions.
 */
void vhost_user_transfer_init(VhostUserTransfer *t,
                              const VhostUserTransferOps *ops,
                              VirtIODevice *vdev, struct vhost_dev *dev,
                              VhostUserState *user);

/**
 * vhost_user_transfer_cleanup: the device is being unrealized, or could not
 * be realized
 * @t: its transfer
 */
void vhost_user_transfer_cleanup(VhostUserTransfer *t);

/**
 * vhost_user_transfer_waits: shall the device be realized without its
 * back-end?
 * @t: its transfer; only @enabled needs to be set
 *
 * True in a QEMU that waits for an incoming migration: the source still uses
 * the back-end.
 */
bool vhost_user_transfer_waits(const VhostUserTransfer *t);

/**
 * vhost_user_transfer_lend: the device is about to start
 * @t: its transfer
 *
 * Call this before the host and guest notifiers are set up: rings that the
 * back-end is running go on with the files that it has.
 */
void vhost_user_transfer_lend(VhostUserTransfer *t);

/**
 * vhost_user_transfer_started: the device has started
 * @t: its transfer
 * @errp: error
 *
 * Call this after vhost_dev_start().  Tells the back-end what it does not
 * know; false if that fails, then stop the device.
 */
bool vhost_user_transfer_started(VhostUserTransfer *t, Error **errp);

/**
 * vhost_user_transfer_stopping: the device is about to stop
 * @t: its transfer
 *
 * Call this before vhost_dev_stop().  If the VM is being handed over together
 * with its memory, the back-end keeps running the rings.
 */
void vhost_user_transfer_stopping(VhostUserTransfer *t);

/**
 * vhost_user_transfer_stopped: the device has stopped
 * @t: its transfer
 *
 * Call this when the host and guest notifiers are gone.
 */
void vhost_user_transfer_stopped(VhostUserTransfer *t);

/**
 * vhost_user_transfer_closed: the chardev says that the connection broke
 * @t: its transfer
 *
 * Call this at CHR_EVENT_CLOSED.  Who does not own the back-end does not
 * connect to the next one either; it waits until it does.
 */
void vhost_user_transfer_closed(VhostUserTransfer *t);

/**
 * vhost_user_transfer_disconnected: the connection broke
 * @t: its transfer
 *
 * Call this before vhost_dev_cleanup().  What a back-end was doing for a
 * device that is stopped has to be done again by the next one.
 */
void vhost_user_transfer_disconnected(VhostUserTransfer *t);

/**
 * vhost_user_transfer_reset: the device is reset
 * @t: its transfer
 */
void vhost_user_transfer_reset(VhostUserTransfer *t);

/**
 * vhost_user_transfer_ram_stays: does a migration leave the memory that a
 * back-end uses where it is?
 * @dev: the vhost device
 *
 * True while a migration with backend-transfer is under way and none of the
 * memory that the back-end has is copied.  There is nothing to log then.
 */
bool vhost_user_transfer_ram_stays(struct vhost_dev *dev);

/**
 * vhost_user_transfer_loaded: did the back-end come, if it was to come?
 * @t: its transfer
 *
 * Call this when the device's state has been loaded; reports an error.
 */
bool vhost_user_transfer_loaded(VhostUserTransfer *t);

/**
 * vhost_user_transfer_needed: does the migration stream have the connection?
 * @t: a device's transfer
 *
 * For the subsection of the device that has vmstate_vhost_user_transfer.
 */
bool vhost_user_transfer_needed(const VhostUserTransfer *t);

/* The connection and the session; in the stream after the virtqueues */
extern const VMStateDescription vmstate_vhost_user_transfer;

#endif
