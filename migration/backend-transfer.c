/*
 * Backend-transfer: registry of devices, checks, and the token of ownership
 *
 * The token is a memfd with one byte. The source creates it when it saves its
 * state, and sends it to the destination in the stream. A QEMU becomes the
 * owner in two phases:
 *
 * 1. To claim the VM, it takes a record lock on the token, before it opens the
 *    VM's images. Only one process can hold the lock, and the kernel releases
 *    it when this process ends, for whatever reason. A QEMU that cannot open
 *    the images releases the lock.
 * 2. To start the VM, it writes the byte, directly before a device or a vCPU
 *    runs. The byte is never cleared. From now on no other QEMU can claim the
 *    VM.
 *
 * So if the destination is killed before the VM runs there, the source can
 * claim the VM.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "io/channel.h"
#include "migration/backend-transfer.h"
#include "migration/misc.h"
#include "migration/vmstate.h"
#include "migration.h"
#include "options.h"
#include "qemu-file.h"
#include "qemu/memfd.h"
#include "qemu/timer.h"
#include "system/runstate.h"
#include "trace.h"

#define SECTION "backend-transfer"

/* Well above the time that the kernel needs to close a process's files */
#define LOCK_TIMEOUT_MS 100

typedef struct BackendTransferState {
    QTAILQ_HEAD(, BackendTransfer) devices;
    NotifierWithReturn notifier;
    /* The parameter's value when the migration started; it may change later */
    bool incoming_started;
    bool incoming_on;
    bool outgoing_on;
    bool owner;                 /* the lock is held, or there is no token */
    bool claiming;              /* the last claim has taken the lock */
    int32_t token;              /* the memfd, or -1 */
} BackendTransferState;

static BackendTransferState state = {
    .devices = QTAILQ_HEAD_INITIALIZER(state.devices),
    .owner = true,
    .token = -1,
};

/*
 * The token
 */

static void token_close(void)
{
    if (state.token >= 0) {
        close(state.token);
        state.token = -1;
    }
}

/* Returns false if the byte is written, or cannot be read. */
static bool token_is_unused(void)
{
    char started;

    return state.token >= 0 &&
           RETRY_ON_EINTR(pread(state.token, &started, 1, 0)) == 1 && !started;
}

/* Write the byte, and close the token, which releases the lock. */
static bool token_use(void)
{
    const char started = 1;

    if (state.token < 0) {
        return true;
    }
    if (RETRY_ON_EINTR(pwrite(state.token, &started, 1, 0)) != 1) {
        return false;
    }
    token_close();
    return true;
}

static bool token_create(Error **errp)
{
    const char unused = 0;

    /* The QEMU from which this one has received the VM must not start it */
    token_use();
    token_close();
    state.token = qemu_memfd_create("backend-transfer", 1, false, 0,
                                    F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL,
                                    errp);
    if (state.token < 0) {
        error_prepend(errp, "Could not create the file for section '" SECTION
                      "' of the migration stream: ");
        return false;
    }
    /* Allocates the memory, so that token_use() works */
    if (RETRY_ON_EINTR(pwrite(state.token, &unused, 1, 0)) != 1) {
        error_setg_errno(errp, errno, "Could not write the file for section '"
                         SECTION "' of the migration stream");
        token_close();
        return false;
    }
    return true;
}

/*
 * The stream is untrusted. The token must be a memfd, because operations on
 * other files can block.
 */
static bool token_is_valid(Error **errp)
{
    int seals = -1;

    if (state.token < 0) {
        error_setg(errp, "Section '" SECTION "' of the migration stream "
                   "contains no file");
        return false;
    }
#ifdef CONFIG_LINUX
    seals = fcntl(state.token, F_GET_SEALS);
#endif
    if (seals < 0 || !(seals & F_SEAL_SHRINK)) {
        error_setg(errp, "Section '" SECTION "' of the migration stream "
                   "contains another file than a memfd of fixed size");
        return false;
    }
    return true;
}

static bool token_set_lock(short type)
{
    struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_len = 1 };

    return RETRY_ON_EINTR(fcntl(state.token, F_SETLK, &lock)) == 0;
}

/*
 * A QEMU that is being killed closes its connections before its token, so wait
 * a little for the lock.
 */
static bool token_lock(void)
{
    int i;

    for (i = 0; i < LOCK_TIMEOUT_MS && token_is_unused(); i++) {
        if (token_set_lock(F_WRLCK)) {
            /* The byte may have been written before the lock was released */
            if (token_is_unused()) {
                return true;
            }
            token_set_lock(F_UNLCK);
            return false;
        }
        g_usleep(SCALE_MS / SCALE_US);
    }
    return false;
}

/* Returns true if no QEMU has claimed the VM, so that token_lock() works. */
static bool token_is_there(void)
{
    struct flock lock = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1
    };

    return token_is_unused() && fcntl(state.token, F_GETLK, &lock) == 0 &&
           lock.l_type == F_UNLCK;
}

/*
 * The section in the migration stream
 */

static bool section_needed(void *opaque)
{
    return state.outgoing_on;
}

static bool section_pre_save(void *opaque, Error **errp)
{
    /*
     * A QEMU that has received the VM but never started it is not the owner.
     * It passes the token of its source on, because the source may still take
     * the VM back.
     */
    if (state.owner) {
        if (!token_create(errp)) {
            return false;
        }
        state.owner = false;
    }
    trace_backend_transfer_token_saved(state.token);
    return true;
}

static bool section_pre_load(void *opaque, Error **errp)
{
    /* A malformed stream may contain this section twice */
    token_close();
    return true;
}

static bool section_post_load(void *opaque, int version_id, Error **errp)
{
    trace_backend_transfer_token_loaded(state.token);
    if (!runstate_check(RUN_STATE_INMIGRATE) || !state.incoming_on) {
        token_close();
        error_setg(errp, "Parameter 'backend-transfer' is on at the source, "
                   "but off here: set it to the same value on both sides");
        return false;
    }
    if (!token_is_valid(errp)) {
        token_close();
        return false;
    }
    state.owner = false;
    return true;
}

static const VMStateDescription vmstate_backend_transfer = {
    .name = SECTION,
    .version_id = 1,
    .minimum_version_id = 1,
    /* Before all devices, whose errors would not name a wrong parameter */
    .priority = MIG_PRI_MAX,
    .needed = section_needed,
    .pre_save_errp = section_pre_save,
    .pre_load_errp = section_pre_load,
    .post_load_errp = section_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_FD(token, BackendTransferState),
        VMSTATE_END_OF_LIST()
    }
};

/*
 * Registering a section changes the section IDs of all later ones in the
 * stream. Register this section only when it may be needed, so that the
 * stream does not change as long as the parameter is never turned on.
 */
static void section_register(void)
{
    static bool registered;

    if (!registered) {
        vmstate_register(NULL, 0, &vmstate_backend_transfer, &state);
        registered = true;
    }
}

/*
 * Checks
 */

static void error_set_channel(Error **errp)
{
    error_setg(errp, "Parameter 'backend-transfer' needs a UNIX socket as "
               "migration channel: use unix:PATH, or turn the parameter off");
}

static bool check_address(MigrationAddress *addr, Error **errp)
{
    if (addr->transport == MIGRATION_ADDRESS_TYPE_SOCKET &&
        (addr->u.socket.type == SOCKET_ADDRESS_TYPE_UNIX ||
         /* backend_transfer_check_channel() checks the type of the fd */
         addr->u.socket.type == SOCKET_ADDRESS_TYPE_FD)) {
        return true;
    }
    error_set_channel(errp);
    return false;
}

bool backend_transfer_check_channel(QIOChannel *ioc, Error **errp)
{
    if (migrate_backend_transfer() &&
        !qio_channel_has_feature(ioc, QIO_CHANNEL_FEATURE_FD_PASS)) {
        error_set_channel(errp);
        return false;
    }
    return true;
}

/* Refuse settings that save or send the devices' state in another way. */
static bool check_settings(Error **errp)
{
    const char *conflict;

#ifndef CONFIG_LINUX
    error_setg(errp, "Parameter 'backend-transfer' needs a Linux host: "
               "turn it off");
    return false;
#endif
    if (migrate_tls()) {
        conflict = "TLS (parameter 'tls-creds')";
    } else if (migrate_postcopy_ram()) {
        conflict = "capability 'postcopy-ram'";
    } else if (migrate_colo()) {
        conflict = "capability 'x-colo'";
    } else if (migrate_background_snapshot()) {
        conflict = "capability 'background-snapshot'";
    } else if (migrate_mode() == MIG_MODE_CPR_EXEC) {
        conflict = "mode 'cpr-exec'";
    } else {
        return true;
    }
    error_setg(errp, "Parameter 'backend-transfer' cannot be used with %s: "
               "turn one of them off", conflict);
    return false;
}

/*
 * A QEMU that is not the owner has handed the VM over, or has received it and
 * not started it. It may migrate the VM only together with the token, because
 * the other QEMU may still start the VM.
 */
static bool check_owner(Error **errp)
{
    if (state.owner) {
        return true;
    }
    if (!token_is_there()) {
        error_setg(errp, "This VM was handed over to another QEMU, which has "
                   "started it: migrate it from there");
        return false;
    }
    if (!migrate_backend_transfer()) {
        error_setg(errp, "This VM was handed over with parameter "
                   "'backend-transfer' on, but has not been started yet: "
                   "turn the parameter on, or start the VM first");
        return false;
    }
    return true;
}

static bool check_devices(Error **errp)
{
    BackendTransfer *bt;

    QTAILQ_FOREACH(bt, &state.devices, next) {
        if (bt->ops->check && !bt->ops->check(bt, errp)) {
            return false;
        }
    }
    return true;
}

bool backend_transfer_check(MigrationAddress *addr, Error **errp)
{
    if (migrate_backend_transfer() &&
        (!check_address(addr, errp) || !check_settings(errp))) {
        return false;
    }
    return check_owner(errp) && check_devices(errp);
}

/*
 * Source
 */

/*
 * Check everything again: settings and devices may have changed after command
 * "migrate", because connecting the channel may have taken long.
 */
static bool outgoing_setup(Error **errp)
{
    QIOChannel *ioc = qemu_file_get_ioc(migrate_get_current()->to_dst_file);

    if (!backend_transfer_check_channel(ioc, errp) ||
        (migrate_backend_transfer() && !check_settings(errp)) ||
        !check_owner(errp) || !check_devices(errp)) {
        return false;
    }
    state.outgoing_on = migrate_backend_transfer();
    if (state.outgoing_on) {
        section_register();
    }
    return true;
}

static void outgoing_failed(void)
{
    BackendTransfer *bt;

    if (!state.outgoing_on) {
        return;
    }
    state.outgoing_on = false;
    /*
     * If the destination has claimed the VM, it owns the back-ends. Otherwise
     * the devices send messages now, even if the VM stays paused.
     */
    if (state.owner && token_use()) {
        QTAILQ_FOREACH(bt, &state.devices, next) {
            if (bt->ops->outgoing_failed) {
                bt->ops->outgoing_failed(bt);
            }
        }
    }
}

static int outgoing_notify(NotifierWithReturn *notifier, MigrationEvent *e,
                           Error **errp)
{
    switch (e->type) {
    case MIG_EVENT_PRECOPY_SETUP:
        return outgoing_setup(errp) ? 0 : -EINVAL;
    case MIG_EVENT_PRECOPY_FAILED:
        outgoing_failed();
        break;
    default:
        state.outgoing_on = false;
        break;
    }
    return 0;
}

bool backend_transfer_outgoing(void)
{
    return state.outgoing_on;
}

/*
 * Destination
 */

bool backend_transfer_waits(void)
{
    return runstate_check(RUN_STATE_INMIGRATE) &&
           (!state.incoming_started || state.incoming_on);
}

bool backend_transfer_incoming_start(MigrationAddress *addr, Error **errp)
{
    BackendTransfer *bt;
    bool on = migrate_backend_transfer();

    /* When postcopy recovers, there is nothing to prepare */
    if (!runstate_check(RUN_STATE_INMIGRATE)) {
        return true;
    }

    trace_backend_transfer_incoming_start(on);
    if (on) {
        if (!check_address(addr, errp) || !check_settings(errp)) {
            return false;
        }
    } else {
        QTAILQ_FOREACH(bt, &state.devices, next) {
            if (bt->ops->connect && !bt->ops->connect(bt, errp)) {
                return false;
            }
        }
    }
    section_register();
    state.incoming_on = on;
    state.incoming_started = true;
    return true;
}

bool backend_transfer_incoming_check(Error **errp)
{
    BackendTransfer *bt;

    if (state.incoming_on && state.owner) {
        error_setg(errp, "Parameter 'backend-transfer' is on here, but off "
                   "at the source: set it to the same value on both sides");
        return false;
    }
    QTAILQ_FOREACH(bt, &state.devices, next) {
        if (bt->ops->arrived && !bt->ops->arrived(bt, errp)) {
            return false;
        }
    }
    return true;
}

void backend_transfer_set_error(const Error *err)
{
    migrate_set_error(migrate_get_current(), err);
}

void backend_transfer_incoming_failed(void)
{
    BackendTransfer *bt;

    trace_backend_transfer_incoming_failed();
    token_close();
    QTAILQ_FOREACH(bt, &state.devices, next) {
        if (bt->ops->incoming_failed) {
            bt->ops->incoming_failed(bt);
        }
    }
}

/*
 * Source and destination
 */

/* Set a run state in which "cont" tries to start the VM. */
static void stay_stopped(void)
{
    if (runstate_check(RUN_STATE_INMIGRATE) ||
        runstate_check(RUN_STATE_FINISH_MIGRATE)) {
        runstate_set(state.owner ? RUN_STATE_PAUSED : RUN_STATE_POSTMIGRATE);
    }
}

bool backend_transfer_claim(Error **errp)
{
    if (state.owner) {
        return true;
    }
    if (!token_lock()) {
        trace_backend_transfer_refused();
        if (token_is_unused()) {
            error_setg(errp, "This VM was handed over to another QEMU, which "
                       "is about to start it: try again if that QEMU fails");
        } else {
            error_setg(errp, "This VM was handed over to another QEMU, which "
                       "has started it: it can only go on there");
        }
        stay_stopped();
        return false;
    }
    trace_backend_transfer_claimed();
    state.owner = true;
    state.claiming = true;
    return true;
}

bool backend_transfer_claimed(Error **errp)
{
    BackendTransfer *bt;

    state.claiming = false;
    QTAILQ_FOREACH(bt, &state.devices, next) {
        if (bt->ops->claimed && !bt->ops->claimed(bt, errp)) {
            stay_stopped();
            return false;
        }
    }
    return true;
}

void backend_transfer_disclaim(void)
{
    if (state.claiming) {
        state.claiming = false;
        state.owner = false;
        token_set_lock(F_UNLCK);
        trace_backend_transfer_disclaimed();
        stay_stopped();
    }
}

bool backend_transfer_start(Error **errp)
{
    BackendTransfer *bt;

    if (!state.owner) {
        error_setg(errp, "Cannot start the VM, because another QEMU may own "
                   "it; use command 'cont', which claims it");
        return false;
    }
    if (!token_use()) {
        error_setg_errno(errp, errno, "Cannot start the VM, because the file "
                         "from the migration stream cannot be written");
        stay_stopped();
        return false;
    }
    QTAILQ_FOREACH(bt, &state.devices, next) {
        if (bt->ops->starting) {
            bt->ops->starting(bt);
        }
    }
    return true;
}

void backend_transfer_add(BackendTransfer *bt)
{
    QTAILQ_INSERT_TAIL(&state.devices, bt, next);
}

void backend_transfer_remove(BackendTransfer *bt)
{
    QTAILQ_REMOVE(&state.devices, bt, next);
}

void backend_transfer_init(void)
{
    migration_add_notifier_modes(&state.notifier, outgoing_notify,
                                 BIT(MIG_MODE__MAX) - 1);
}
