/*
 * Handing the back-end of a vhost-user device over to another QEMU
 *
 * A device that embeds a VhostUserTransfer, and calls it when the device
 * starts, stops and is reset, can migrate together with its connection. See
 * docs/devel/migration/backend-transfer.rst.
 *
 * All functions are called with the BQL held.
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
 * VhostUserTransferOps:
 * @connect: Connect to the back-end, and do everything that realize does once
 *           it has connected. Called if the incoming migration brings no
 *           connection.
 * @adopt: Do everything that realize does once it has connected, but do not
 *         start the device. The chardev is connected already, and the session
 *         answers in the back-end's place.
 * @disconnect: Undo @connect or @adopt, because the connection is gone.
 *
 * What a device type does for its transfer.
 */
typedef struct VhostUserTransferOps {
    bool (*connect)(VirtIODevice *vdev, Error **errp);
    bool (*adopt)(VirtIODevice *vdev, Error **errp);
    void (*disconnect)(VirtIODevice *vdev);
} VhostUserTransferOps;

/**
 * VhostUserTransfer:
 * @enabled: the device's property "backend-transfer"
 *
 * The transfer of one device. The other fields are private.
 */
typedef struct VhostUserTransfer {
    BackendTransfer backend;
    const VhostUserTransferOps *ops;
    VirtIODevice *vdev;
    struct vhost_dev *dev;
    VhostUserState *user;
    bool enabled;
    bool waiting;               /* realized without the back-end */
    bool detached;              /* @connection was taken out of the chardev */
    bool attached;              /* the chardev got it; we may not own it */
    bool lost;                  /* the connection broke without an owner */
    ChardevTransfer connection;
    VhostUserSession *session;
    /* Must be the same on both sides */
    uint32_t num_queues;
    uint32_t queue_size;
    uint32_t config_size;
    uint64_t host_features;
} VhostUserTransfer;

/**
 * vhost_user_transfer_init:
 * @t: the device's transfer
 * @ops: what to do for the device
 * @vdev: the device, after virtio_init() and with its queues
 * @dev: its vhost device
 * @user: its state, after vhost_user_init()
 *
 * Initialize @t. Call this when the device is realized.
 */
void vhost_user_transfer_init(VhostUserTransfer *t,
                              const VhostUserTransferOps *ops,
                              VirtIODevice *vdev, struct vhost_dev *dev,
                              VhostUserState *user);

/**
 * vhost_user_transfer_cleanup:
 * @t: the device's transfer
 *
 * Undo vhost_user_transfer_init(). Call this when the device is unrealized,
 * and when realizing it fails.
 */
void vhost_user_transfer_cleanup(VhostUserTransfer *t);

/**
 * vhost_user_transfer_waits:
 * @t: the device's transfer; only @enabled needs to be set
 *
 * Check whether the device must be realized without its back-end. This is so
 * in a QEMU that waits for an incoming migration, because the source still
 * uses the back-end.
 *
 * Returns: true if the device must not connect
 */
bool vhost_user_transfer_waits(const VhostUserTransfer *t);

/**
 * vhost_user_transfer_lend:
 * @t: the device's transfer
 *
 * Give the device the kick and call eventfds of the rings that the back-end is
 * running, so that the back-end needs no new ones. Call this when the device
 * is about to start, before its host and guest notifiers are set up.
 */
void vhost_user_transfer_lend(VhostUserTransfer *t);

/**
 * vhost_user_transfer_started:
 * @t: the device's transfer
 * @errp: pointer to a NULL-initialized error object
 *
 * Send the back-end everything that has changed while the session was held.
 * Call this after vhost_dev_start(), and stop the device if this fails.
 *
 * Returns: true on success; false with @errp set on failure
 */
bool vhost_user_transfer_started(VhostUserTransfer *t, Error **errp);

/**
 * vhost_user_transfer_stopping:
 * @t: the device's transfer
 *
 * Call this when the device is about to stop, before vhost_dev_stop(). If the
 * VM is being handed over together with its memory, the back-end keeps running
 * the rings.
 */
void vhost_user_transfer_stopping(VhostUserTransfer *t);

/**
 * vhost_user_transfer_stopped:
 * @t: the device's transfer
 *
 * Call this when the device has stopped, after its host and guest notifiers
 * were removed.
 */
void vhost_user_transfer_stopped(VhostUserTransfer *t);

/**
 * vhost_user_transfer_closed:
 * @t: the device's transfer
 *
 * Call this at CHR_EVENT_CLOSED, when the connection broke. A QEMU that does
 * not own the back-end does not reconnect before it becomes the owner.
 */
void vhost_user_transfer_closed(VhostUserTransfer *t);

/**
 * vhost_user_transfer_disconnected:
 * @t: the device's transfer
 *
 * Call this when the connection broke, before vhost_dev_cleanup(). Requests
 * that were in flight for a stopped device will be submitted again to the next
 * back-end.
 */
void vhost_user_transfer_disconnected(VhostUserTransfer *t);

/**
 * vhost_user_transfer_reset:
 * @t: the device's transfer
 *
 * Call this when the device is reset.
 */
void vhost_user_transfer_reset(VhostUserTransfer *t);

/**
 * vhost_user_transfer_ram_stays:
 * @dev: the vhost device
 *
 * Check whether a migration with backend-transfer is under way that copies
 * none of the memory that a back-end can access. Then the back-end need not
 * log its writes.
 *
 * Returns: true if no such memory is copied
 */
bool vhost_user_transfer_ram_stays(struct vhost_dev *dev);

/**
 * vhost_user_transfer_loaded:
 * @t: the device's transfer
 *
 * Check that the connection was received if one was expected, and report an
 * error if not. Call this when the device's state has been loaded.
 *
 * Returns: false if the connection is missing, true otherwise
 */
bool vhost_user_transfer_loaded(VhostUserTransfer *t);

/**
 * vhost_user_transfer_needed:
 * @t: the device's transfer
 *
 * Check whether the migration stream must contain the connection. For the
 * device's subsection with vmstate_vhost_user_transfer.
 *
 * Returns: true if the subsection is needed
 */
bool vhost_user_transfer_needed(const VhostUserTransfer *t);

/* The connection and the session; follows the virtqueues in the stream */
extern const VMStateDescription vmstate_vhost_user_transfer;

#endif /* HW_VIRTIO_VHOST_USER_TRANSFER_H */
