/*
 * Backend-transfer: which devices hand their live back-ends over in a
 * migration, and which QEMU owns these back-ends
 *
 * A device whose back-end can be handed over registers a BackendTransfer.
 * With migration parameter "backend-transfer" on, the device's state in the
 * migration stream includes the connection to the back-end. So both source
 * and destination have the connection, but only the owner may use it. The
 * source is the owner until it saves its state. From then on there is no
 * owner, until one of the two QEMUs starts the VM: this QEMU becomes the
 * owner, once and for all. Therefore the source can take the VM back if, and
 * only if, the destination never started it. It does not matter how the
 * destination failed, or whether it was killed while it was about to start the
 * VM.
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
 * BackendTransferOps:
 * @check: Check whether the device can migrate now. With the parameter on, its
 *         back-end must be one that can be handed over. Called on the source
 *         by command "migrate", and again when the migration channel is
 *         connected, both times before the migration changes anything.
 *         Returns false with @errp set to refuse the migration.
 * @connect: Connect to the back-end, because the incoming migration starts
 *           with the parameter off. Returns true if the device is connected
 *           now, even if it was connected before. Otherwise returns false with
 *           @errp set, and may be called again.
 * @arrived: Check that the connection to the back-end was received, after the
 *           whole VM was loaded with the parameter on. Returns false with
 *           @errp set if it was not; the migration then fails.
 * @incoming_failed: The incoming migration failed, and this QEMU will never
 *                   run the VM. Close everything that was loaded. Send nothing
 *                   to the back-end and do not call shutdown(2), because the
 *                   source shares the connection. The source learns of the
 *                   failure only after this callback has returned.
 * @outgoing_failed: The outgoing migration failed or was cancelled, and this
 *                   QEMU owns the back-end. The VM may be running again
 *                   already, or it may stay paused.
 * @claimed: This QEMU has claimed the VM, and the VM's images can be used. If
 *           this QEMU is killed before @starting, another QEMU may claim the
 *           VM, so send nothing to the back-end yet. Called before each start
 *           of the VM, even without any migration, so there is often nothing
 *           to do. Returns false with @errp set if the VM cannot start with
 *           this back-end. The VM then stays paused, and the next "cont" calls
 *           this again.
 * @starting: The VM starts now, and this QEMU owns the back-end for good.
 *            Called after @claimed, and before the run state changes.
 *
 * What a device does in each step of a migration. All callbacks are optional.
 * They must not add or remove any BackendTransfer.
 */
typedef struct BackendTransferOps {
    bool (*check)(BackendTransfer *bt, Error **errp);
    bool (*connect)(BackendTransfer *bt, Error **errp);
    bool (*arrived)(BackendTransfer *bt, Error **errp);
    void (*incoming_failed)(BackendTransfer *bt);
    void (*outgoing_failed)(BackendTransfer *bt);
    bool (*claimed)(BackendTransfer *bt, Error **errp);
    void (*starting)(BackendTransfer *bt);
} BackendTransferOps;

/**
 * BackendTransfer:
 * @ops: set by the device before backend_transfer_add()
 * @next: private
 *
 * A device that takes part in backend-transfer; embedded in the device's
 * state.
 */
struct BackendTransfer {
    const BackendTransferOps *ops;
    QTAILQ_ENTRY(BackendTransfer) next;
};

/**
 * backend_transfer_init:
 *
 * Register the migration notifier. Called once, when the migration object is
 * created.
 */
void backend_transfer_init(void);

/**
 * backend_transfer_add:
 * @bt: the device; must stay valid until backend_transfer_remove()
 *
 * Let a device take part in migrations. The caller keeps the ownership of @bt.
 */
void backend_transfer_add(BackendTransfer *bt);

/**
 * backend_transfer_remove:
 * @bt: the device
 *
 * Undo backend_transfer_add().
 */
void backend_transfer_remove(BackendTransfer *bt);

/**
 * backend_transfer_waits:
 *
 * Check whether a device must be realized without its back-end, because the
 * migration stream may contain the connection. This is so in a QEMU that waits
 * for an incoming migration: until the migration starts, and afterwards if it
 * has started with the parameter on.
 *
 * Returns: true if devices must be realized without their back-ends
 */
bool backend_transfer_waits(void);

/**
 * backend_transfer_outgoing:
 *
 * Check whether an outgoing migration with the parameter on is under way. It
 * is from notification MIG_EVENT_PRECOPY_SETUP to MIG_EVENT_PRECOPY_DONE or
 * MIG_EVENT_PRECOPY_FAILED. Snapshots are not migrations.
 *
 * Returns: true if this QEMU is handing its back-ends over
 */
bool backend_transfer_outgoing(void);

/**
 * backend_transfer_check:
 * @addr: the address of the main channel
 * @errp: pointer to a NULL-initialized error object
 *
 * Check whether the VM may migrate to @addr. Called by command "migrate"
 * before it changes anything.
 *
 * Returns: true if neither the parameter nor a device forbids the migration;
 *          false with the first reason in @errp otherwise
 */
bool backend_transfer_check(MigrationAddress *addr, Error **errp);

/**
 * backend_transfer_check_channel:
 * @ioc: the main channel, not yet used
 * @errp: pointer to a NULL-initialized error object
 *
 * Check whether @ioc can carry the file descriptors of back-ends. Needed where
 * the address does not tell the type of the channel, as with "fd:".
 *
 * Returns: true if @ioc passes file descriptors or the parameter is off; false
 *          with @errp set otherwise
 */
bool backend_transfer_check_channel(QIOChannel *ioc, Error **errp);

/**
 * backend_transfer_incoming_start:
 * @addr: the address of the main channel
 * @errp: pointer to a NULL-initialized error object
 *
 * Prepare for a migration from @addr. With the parameter off, this connects
 * all devices to their back-ends. Later changes of the parameter have no
 * effect on this migration. May be called again after a failure. Does nothing
 * when postcopy recovers.
 *
 * Returns: true on success; false with @errp set if the migration cannot start
 */
bool backend_transfer_incoming_start(MigrationAddress *addr, Error **errp);

/**
 * backend_transfer_incoming_check:
 * @errp: pointer to a NULL-initialized error object
 *
 * Check whether all connections to back-ends were received.
 *
 * Returns: false with @errp set if the parameter is on here but was off on the
 *          source, or if the stream contained no connection for a device that
 *          waits for one; true otherwise
 */
bool backend_transfer_incoming_check(Error **errp);

/**
 * backend_transfer_set_error:
 * @err: the reason; the caller keeps the ownership
 *
 * Record why the migration fails. To be called by a device that fails while
 * its state is saved or loaded, where the migration core does not get the
 * reason. "query-migrate" reports the first error that was recorded.
 */
void backend_transfer_set_error(const Error *err);

/**
 * backend_transfer_incoming_failed:
 *
 * Close all connections that were loaded. Called before the source can learn
 * that the incoming migration failed.
 */
void backend_transfer_incoming_failed(void);

/**
 * backend_transfer_claim:
 * @errp: pointer to a NULL-initialized error object
 *
 * Become the owner, unless another QEMU is the owner. Called before each start
 * of the VM. If there was no migration with the parameter on, this QEMU is
 * the owner already. On success, backend_transfer_claimed() or
 * backend_transfer_disclaim() must be called next.
 *
 * Returns: true if this QEMU is the owner; false with @errp set if the VM
 *          cannot be started here
 */
bool backend_transfer_claim(Error **errp);

/**
 * backend_transfer_claimed:
 * @errp: pointer to a NULL-initialized error object
 *
 * Get all devices ready to start, now that the VM's images can be used.
 *
 * Returns: true if all devices are ready; false with @errp set if the VM
 *          cannot be started here. This QEMU then stays the owner.
 */
bool backend_transfer_claimed(Error **errp);

/**
 * backend_transfer_start:
 * @errp: pointer to a NULL-initialized error object
 *
 * Become the owner for good. Called at each start of the VM, directly before
 * devices and vCPUs run. Some ways to start the VM do not claim it first, for
 * instance command "continue" of gdb; they fail here if the VM was handed
 * over.
 *
 * Returns: true if the VM can run now; false with @errp set otherwise
 */
bool backend_transfer_start(Error **errp);

/**
 * backend_transfer_disclaim:
 *
 * Called if the VM cannot be started here now. If this QEMU became the owner
 * by the last backend_transfer_claim(), it gives the ownership up, so that
 * either QEMU can claim it again.
 */
void backend_transfer_disclaim(void);

#endif /* MIGRATION_BACKEND_TRANSFER_H */
