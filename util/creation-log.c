/*
 * A log of what the user has created, with which options
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/creation-log.h"
#include "qemu/queue.h"
#include "qobject/qbool.h"
#include "qobject/qdict.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"

typedef struct Record {
    CreatedKind kind;
    char *id;
    const void *thing;          /* to be compared, not to be used */
    bool at_startup;
    bool changed;
    bool keyval;
    QDict *options;
    QTAILQ_ENTRY(Record) next;
} Record;

/* There are at least so many records before any are looked at for removal */
#define MIN_RECORDS_TO_PRUNE 64

static const CreationLogOps *log_ops;
static QTAILQ_HEAD(, Record) records = QTAILQ_HEAD_INITIALIZER(records);
static unsigned n_records;
static unsigned prune_at;

static void remove_record(Record *record)
{
    QTAILQ_REMOVE(&records, record, next);
    n_records--;
    g_free(record->id);
    qobject_unref(record->options);
    g_free(record);
}

void creation_log_start(const CreationLogOps *ops)
{
    assert(!log_ops);
    log_ops = ops;
    prune_at = MIN_RECORDS_TO_PRUNE;
}

void creation_log_stop(void)
{
    Record *record, *next;

    QTAILQ_FOREACH_SAFE(record, &records, next, next) {
        remove_record(record);
    }
    log_ops = NULL;
}

bool creation_log_is_on(void)
{
    return log_ops;
}

static bool exists(const Record *record)
{
    return log_ops->find(record->kind, record->id) == record->thing;
}

/*
 * Remove the records of what no longer exists.
 *
 * The number of records must double until the next time.  So there are at
 * most twice as many records as things exist, and adding stays cheap.
 */
static void prune(void)
{
    Record *record, *next;

    QTAILQ_FOREACH_SAFE(record, &records, next, next) {
        if (!exists(record)) {
            remove_record(record);
        }
    }
    prune_at = MAX(MIN_RECORDS_TO_PRUNE, 2 * n_records);
}

static Record *find_record(CreatedKind kind, const char *id)
{
    Record *record;

    QTAILQ_FOREACH(record, &records, next) {
        if (record->kind == kind && g_str_equal(record->id, id)) {
            return record;
        }
    }
    return NULL;
}

void creation_log_add(CreatedKind kind, const char *id, const void *thing,
                      bool keyval, const QDict *options)
{
    Record *record;

    if (!log_ops) {
        return;
    }

    record = find_record(kind, id);
    if (record) {
        remove_record(record);
    }
    if (n_records >= prune_at) {
        prune();
    }

    record = g_new(Record, 1);
    *record = (Record) {
        .kind = kind,
        .id = g_strdup(id),
        .thing = thing,
        .at_startup = log_ops->at_startup(),
        .keyval = keyval,
        .options = qdict_clone_shallow(options),
    };
    QTAILQ_INSERT_TAIL(&records, record, next);
    n_records++;
}

void creation_log_change(CreatedKind kind, const char *id, const void *thing,
                         const QDict *options)
{
    Record *record;

    if (!log_ops) {
        return;
    }

    record = find_record(kind, id);
    if (record) {
        qobject_unref(record->options);
        record->options = qdict_clone_shallow(options);
        record->keyval = false;
        record->thing = thing;
    } else {
        creation_log_add(kind, id, thing, false, options);
        record = QTAILQ_LAST(&records);
    }
    record->changed = true;
}

/* Returns the value as a string, as it is in keyval form */
static QObject *to_keyval(QObject *value)
{
    QNum *num = qobject_to(QNum, value);
    QBool *boolean = qobject_to(QBool, value);

    if (num) {
        g_autofree char *text = qnum_to_string(num);

        return QOBJECT(qstring_from_str(text));
    }
    if (boolean) {
        return QOBJECT(qstring_from_str(qbool_get_bool(boolean) ? "on"
                                                                : "off"));
    }
    return qobject_ref(value);
}

void creation_log_set(const void *thing, const char *option, QObject *value)
{
    Record *record;

    QTAILQ_FOREACH(record, &records, next) {
        if (record->thing == thing && exists(record) &&
            (record->kind == CREATED_KIND_DEVICE ||
             record->kind == CREATED_KIND_OBJECT)) {
            qdict_put_obj(record->options, option, record->keyval
                          ? to_keyval(value) : qobject_ref(value));
            record->changed = true;
        }
    }
}

CreatedThingList *creation_log_query(void)
{
    CreatedThingList *list = NULL;
    CreatedThingList **tail = &list;
    Record *record;

    QTAILQ_FOREACH(record, &records, next) {
        CreatedThing *thing;

        if (!exists(record)) {
            continue;
        }
        thing = g_new(CreatedThing, 1);
        *thing = (CreatedThing) {
            .kind = record->kind,
            .id = g_strdup(record->id),
            .at_startup = record->at_startup,
            .changed = record->changed,
            .keyval = record->keyval,
            .options = QOBJECT(qdict_clone_shallow(record->options)),
        };
        QAPI_LIST_APPEND(tail, thing);
    }
    return list;
}
