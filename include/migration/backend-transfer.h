/*
 * Backend-transfer: which devices hand their live back-ends over in a
 * migration, and which QEMU owns these
 *
 * A device whose back-end can be handed over registers a BackendTransfer.
 * With migration parameter "backend-transfer" on, its state in the migration
 * stream includes the connection to the back-end, so that source and
 * destination both have it. Only one of them may use it: the owner. That is
 * the source until it saves its state. From then on nobody is, and whoever
 * starts the VM first becomes the owner, once and for all. So the source can
 * take the VM back if, and only if, the destination never started it, however
 * the destination failed.
 *
 * All functions and callbacks are called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_BACKEND_TRANSFER_H
#define MIGRATION_BACKEND_TRANSFER_H

#include "io/channel.h"
#include "qapi/qapi-types-migration.h"
#include "qemu/queue.h"

typedef struct BackendTransfer BackendTransfer;

/**
 * BackendTransferOps: what a device does in each step of a migration
 *
 * Callbacks must not add or remove any BackendTransfer.
 *
 * @check: May this VM migrate, as far as this device is concerned? With the
 *         parameter on: can its back-end be handed over? With it off: can the
 *         device migrate without? Called on the source by command "migrate",
 *         and again when the migration channel is connected, in either case
 *         before anything is touched. Returns false with @errp set to refuse
 *         the migration. Optional.
 * @connect: Connect to the back-end now, because the incoming migration starts
 *           with the parameter off. Returns true if the device is connected,
 *           also if it was before; else false with @errp set, and it may be
 *           called again. Optional.
 * @arrived: All of the VM was loaded, with the parameter on: did the back-end
 *           come? Returns false with @errp set if it did not, and the
 *           migration fails. Optional.
 * @incoming_failed: The incoming migration failed, and this QEMU will never
 *                   run the VM: close what was loaded, without a word to the
 *                   back-end, nor shutdown(2), which ends the source's
 *                   connection, too. The source learns of the failure only
 *                   after this returned. Optional.
 * @outgoing_failed: The outgoing migration failed or was cancelled, and this
 *                   QEMU owns the back-end. The VM may be running again
 *                   already, or stay paused. Optional.
 * @claimed: This QEMU owns the back-end. Called before each start of the VM,
 *           when its images can be used, whether there was a migration or not,
 *           so mostly there is nothing to do. Returns false with @errp set if
 *           the VM cannot start with this back-end; the VM then stays paused,
 *           and this is called again by the next "cont". Optional.
 */
typedef struct BackendTransferOps {
    bool (*check)(BackendTransfer *bt, Error **errp);
    bool (*connect)(BackendTransfer *bt, Error **errp);
    bool (*arrived)(BackendTransfer *bt, Error **errp);
    void (*incoming_failed)(BackendTransfer *bt);
    void (*outgoing_failed)(BackendTransfer *bt);
    bool (*claimed)(BackendTransfer *bt, Error **errp);
} BackendTransferOps;

/**
 * BackendTransfer: a device that takes part; embedded in the device's state
 *
 * @ops: set by the device before backend_transfer_add()
 * @next: private
 */
struct BackendTransfer {
    const BackendTransferOps *ops;
    QTAILQ_ENTRY(BackendTransfer) next;
};

/**
 * backend_transfer_init: Register the migration notifier.
 *
 * Called once, when the migration object is created.
 */
void backend_transfer_init(void);

/**
 * backend_transfer_add: Let a device take part in migrations.
 *
 * @bt: the device; remains its caller's, and must stay valid until
 *      backend_transfer_remove()
 */
void backend_transfer_add(BackendTransfer *bt);

/**
 * backend_transfer_remove: Undo backend_transfer_add().
 *
 * @bt: the device
 */
void backend_transfer_remove(BackendTransfer *bt);

/**
 * backend_transfer_waits: Shall a device realize without its back-end?
 *
 * Returns: true in a QEMU that waits for an incoming migration, as long as
 * the back-end may come with the migration stream: until the incoming
 * migration starts, and also then if it starts with the parameter on.
 */
bool backend_transfer_waits(void);

/**
 * backend_transfer_outgoing: Does this QEMU hand its back-ends over just now?
 *
 * Returns: true while an outgoing migration with the parameter on is under
 * way: from notification MIG_EVENT_PRECOPY_SETUP to MIG_EVENT_PRECOPY_DONE or
 * MIG_EVENT_PRECOPY_FAILED. Snapshots are no migration.
 */
bool backend_transfer_outgoing(void);

/**
 * backend_transfer_check: May the VM migrate to @addr?
 *
 * Called by command "migrate" before anything is touched.
 *
 * @addr: the main channel's address
 * @errp: the first reason to refuse
 *
 * Returns: true if neither the parameter nor a device forbids the migration.
 */
bool backend_transfer_check(MigrationAddress *addr, Error **errp);

/**
 * backend_transfer_check_channel: Can @ioc carry what shall be handed over?
 *
 * For channels that an address tells too little about.
 *
 * @ioc: the main channel, not yet used
 * @errp: why it cannot
 *
 * Returns: true if @ioc passes file descriptors, or the parameter is off.
 */
bool backend_transfer_check_channel(QIOChannel *ioc, Error **errp);

/**
 * backend_transfer_incoming_start: Start to wait for a migration from @addr.
 *
 * With the parameter off, this connects all devices to their back-ends.
 * The parameter has no effect on this migration if it is changed later. May
 * be called again after a failure. Does nothing when postcopy recovers.
 *
 * @addr: the main channel's address
 * @errp: why the migration cannot be started
 *
 * Returns: true on success
 */
bool backend_transfer_incoming_start(MigrationAddress *addr, Error **errp);

/**
 * backend_transfer_incoming_check: Is what was loaded complete?
 *
 * @errp: what is missing
 *
 * Returns: false if the parameter is on here but was off on the source, or if
 * a device waits for a back-end that did not come.
 */
bool backend_transfer_incoming_check(Error **errp);

/**
 * backend_transfer_set_error: Say why the migration fails.
 *
 * For a device in the middle of its state, which migration only knows to have
 * failed. "query-migrate" reports the first error that was set.
 *
 * @err: the reason; remains the caller's
 */
void backend_transfer_set_error(const Error *err);

/**
 * backend_transfer_incoming_failed: Let go of all that was loaded.
 *
 * Called before the source can learn that the incoming migration failed.
 */
void backend_transfer_incoming_failed(void);

/**
 * backend_transfer_claim: Become the owner, if nobody else is.
 *
 * Called before each start of the VM. If there was no migration with the
 * parameter on, this QEMU is the owner already. Then either
 * backend_transfer_claimed() or backend_transfer_disclaim() must be called.
 *
 * @errp: why the VM cannot be started here
 *
 * Returns: true if this QEMU is the owner.
 */
bool backend_transfer_claim(Error **errp);

/**
 * backend_transfer_claimed: The VM's images can be used; get the devices ready.
 *
 * @errp: why the VM cannot be started here
 *
 * Returns: true if all devices are ready. If not, this QEMU stays the owner.
 */
bool backend_transfer_claimed(Error **errp);

/**
 * backend_transfer_disclaim: The VM cannot be started here now.
 *
 * If this QEMU became the owner by the last backend_transfer_claim(), nobody is
 * the owner again: whoever can start the VM becomes it.
 */
void backend_transfer_disclaim(void);

#endif
