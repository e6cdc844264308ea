/*
 * A log of what the user has created, with which options
 *
 * QEMU can tell with it how the VM can be created again.  Functions that
 * create something for the user add a record.  A record does not keep what
 * was created alive: it has the address, to compare it with what has the id
 * when the log is read.
 *
 * There is no log in programs that do not call creation_log_start().  All
 * functions must be called in the main thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_CREATION_LOG_H
#define QEMU_CREATION_LOG_H

#include "qapi/qapi-types-created.h"

/* What the log has to ask the program */
typedef struct CreationLogOps {
    /* Returns true until the machine is ready */
    bool (*at_startup)(void);
    /* Returns what has this id, or NULL */
    const void *(*find)(CreatedKind kind, const char *id);
} CreationLogOps;

/* Begin to log.  @ops must remain valid. */
void creation_log_start(const CreationLogOps *ops);

/* Forget all records, and end logging */
void creation_log_stop(void);

bool creation_log_is_on(void);

/*
 * Add a record of @thing, which was created with @options.
 *
 * It replaces a record of the same kind and id.
 *
 * @id: for a device without an id, its QOM path
 * @keyval: are all values in @options strings, as from the command line?
 */
void creation_log_add(CreatedKind kind, const char *id, const void *thing,
                      bool keyval, const QDict *options);

/*
 * Replace the options, which are not in keyval form, in the record of @id.
 *
 * The record keeps its place in the order.  If there is no record, one is
 * added.
 *
 * @thing: what has the id from now on
 */
void creation_log_change(CreatedKind kind, const char *id, const void *thing,
                         const QDict *options);

/* Set an option in the record of @thing, if it is a device or an object */
void creation_log_set(const void *thing, const char *option, QObject *value);

/* Returns the records of what exists now, oldest first */
CreatedThingList *creation_log_query(void);

#endif
