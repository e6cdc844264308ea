/*
 * Unit tests of the log of what the user has created
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-created.h"
#include "qapi/qobject-output-visitor.h"
#include "qemu/creation-log.h"
#include "qobject/qbool.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"

/* What exists: addresses by KIND and ID */
static GHashTable *things;
static bool starting;

static char *key_of(CreatedKind kind, const char *id)
{
    return g_strdup_printf("%s %s", CreatedKind_str(kind), id);
}

static const void *find(CreatedKind kind, const char *id)
{
    g_autofree char *key = key_of(kind, id);

    return g_hash_table_lookup(things, key);
}

static bool at_startup(void)
{
    return starting;
}

static const CreationLogOps ops = {
    .at_startup = at_startup,
    .find = find,
};

static void begin(void)
{
    things = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    starting = false;
    creation_log_start(&ops);
}

static void end(void)
{
    creation_log_stop();
    g_hash_table_unref(things);
}

static void make(CreatedKind kind, const char *id, void *thing)
{
    g_hash_table_replace(things, key_of(kind, id), thing);
}

static void unmake(CreatedKind kind, const char *id)
{
    g_autofree char *key = key_of(kind, id);

    g_hash_table_remove(things, key);
}

static QDict *options(const char *key, int value)
{
    QDict *dict = qdict_new();

    qdict_put_int(dict, key, value);
    return dict;
}

static void create(CreatedKind kind, const char *id, void *thing, int value)
{
    g_autoptr(QDict) dict = options("x", value);

    make(kind, id, thing);
    creation_log_add(kind, id, thing, false, dict);
}

/* Is the log equal to the JSON list @expected? */
static void check(const char *expected)
{
    CreatedThingList *list = creation_log_query();
    Visitor *v;
    QObject *is, *wanted = qobject_from_json(expected, &error_abort);

    v = qobject_output_visitor_new(&is);
    visit_type_CreatedThingList(v, NULL, &list, &error_abort);
    visit_complete(v, &is);
    visit_free(v);
    if (!qobject_is_equal(is, wanted)) {
        g_autoptr(GString) text = qobject_to_json_pretty(is, true);

        g_error("expected %s, the log has %s", expected, text->str);
    }
    qobject_unref(is);
    qobject_unref(wanted);
    qapi_free_CreatedThingList(list);
}

#define THING(kind, id, startup, changed, value)                        \
    "{ 'kind': '" kind "', 'id': '" id "', 'at-startup': " startup      \
    ", 'changed': " changed ", 'keyval': false, 'options': { 'x': "     \
    value " } }"

static void test_order(void)
{
    int a, b, c;

    begin();
    check("[]");
    starting = true;
    create(CREATED_KIND_OBJECT, "o", &a, 1);
    create(CREATED_KIND_CHARDEV, "o", &b, 2);
    starting = false;
    create(CREATED_KIND_NETDEV, "n", &c, 3);
    check("[" THING("object", "o", "true", "false", "1") ","
          THING("chardev", "o", "true", "false", "2") ","
          THING("netdev", "n", "false", "false", "3") "]");
    end();
}

static void test_gone(void)
{
    int a, b;

    begin();
    create(CREATED_KIND_OBJECT, "o", &a, 1);
    create(CREATED_KIND_DEVICE, "d", &b, 2);
    unmake(CREATED_KIND_OBJECT, "o");
    check("[" THING("device", "d", "false", "false", "2") "]");

    /* Another one of that id, which was not logged, is not listed */
    make(CREATED_KIND_OBJECT, "o", &b);
    check("[" THING("device", "d", "false", "false", "2") "]");
    end();
}

static void test_again(void)
{
    int a, b;

    begin();
    starting = true;
    create(CREATED_KIND_OBJECT, "o", &a, 1);
    create(CREATED_KIND_OBJECT, "p", &b, 2);
    starting = false;
    /* It may get the address of the one that it replaces */
    unmake(CREATED_KIND_OBJECT, "o");
    create(CREATED_KIND_OBJECT, "o", &a, 3);
    check("[" THING("object", "p", "true", "false", "2") ","
          THING("object", "o", "false", "false", "3") "]");
    end();
}

static void test_change(void)
{
    int a, b, c;
    g_autoptr(QDict) dict = options("x", 5);

    begin();
    starting = true;
    create(CREATED_KIND_CHARDEV, "c", &a, 1);
    create(CREATED_KIND_CHARDEV, "d", &b, 2);
    starting = false;
    make(CREATED_KIND_CHARDEV, "c", &c);
    creation_log_change(CREATED_KIND_CHARDEV, "c", &c, dict);
    check("[" THING("chardev", "c", "true", "true", "5") ","
          THING("chardev", "d", "true", "false", "2") "]");

    /* A change of what has no record */
    make(CREATED_KIND_BLOCKDEV, "n", &a);
    creation_log_change(CREATED_KIND_BLOCKDEV, "n", &a, dict);
    check("[" THING("chardev", "c", "true", "true", "5") ","
          THING("chardev", "d", "true", "false", "2") ","
          THING("blockdev", "n", "false", "true", "5") "]");
    end();
}

static void test_set(void)
{
    int a, b, c;
    g_autoptr(QDict) dict = qdict_new();
    QNum *number = qnum_from_int(7);
    QBool *boolean = qbool_from_bool(false);
    QString *string = qstring_from_str("s");

    begin();
    create(CREATED_KIND_OBJECT, "o", &a, 1);
    qdict_put_str(dict, "driver", "e");
    make(CREATED_KIND_DEVICE, "d", &b);
    creation_log_add(CREATED_KIND_DEVICE, "d", &b, true, dict);

    creation_log_set(&a, "x", QOBJECT(number));
    creation_log_set(&b, "x", QOBJECT(number));
    creation_log_set(&b, "y", QOBJECT(boolean));
    creation_log_set(&b, "z", QOBJECT(string));
    creation_log_set(&c, "x", QOBJECT(number));
    check("[" THING("object", "o", "false", "true", "7") ","
          "{ 'kind': 'device', 'id': 'd', 'at-startup': false,"
          "  'changed': true, 'keyval': true, 'options': {"
          "  'driver': 'e', 'x': '7', 'y': 'off', 'z': 's' } } ]");

    /* The caller's dictionary has not changed */
    g_assert_cmpint(qdict_size(dict), ==, 1);
    qobject_unref(number);
    qobject_unref(boolean);
    qobject_unref(string);
    end();
}

static unsigned n_found;

static const void *find_and_count(CreatedKind kind, const char *id)
{
    n_found++;
    return find(kind, id);
}

/* Records of what is gone are removed, with few look-ups */
static void test_prune(void)
{
    static const CreationLogOps counting = {
        .at_startup = at_startup,
        .find = find_and_count,
    };
    const int rounds = 10000;
    CreatedThingList *list;
    int kept, other, i;

    begin();
    creation_log_stop();
    creation_log_start(&counting);
    n_found = 0;
    create(CREATED_KIND_OBJECT, "kept", &kept, 0);
    for (i = 0; i < rounds; i++) {
        g_autofree char *id = g_strdup_printf("o%d", i);

        create(CREATED_KIND_OBJECT, id, &other, i);
        unmake(CREATED_KIND_OBJECT, id);
    }
    g_assert_cmpint(n_found, <=, 2 * rounds);

    n_found = 0;
    list = creation_log_query();
    g_assert_cmpint(n_found, <=, 64);
    g_assert_cmpstr(list->value->id, ==, "kept");
    g_assert_null(list->next);
    qapi_free_CreatedThingList(list);
    end();
}

/* A program without a log */
static void test_off(void)
{
    g_autoptr(QDict) dict = options("x", 1);
    int a;

    g_assert_false(creation_log_is_on());
    creation_log_add(CREATED_KIND_OBJECT, "o", &a, false, dict);
    creation_log_change(CREATED_KIND_OBJECT, "o", &a, dict);
    creation_log_set(&a, "x", QOBJECT(dict));
    check("[]");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/creation-log/order", test_order);
    g_test_add_func("/creation-log/gone", test_gone);
    g_test_add_func("/creation-log/again", test_again);
    g_test_add_func("/creation-log/change", test_change);
    g_test_add_func("/creation-log/set", test_set);
    g_test_add_func("/creation-log/prune", test_prune);
    g_test_add_func("/creation-log/off", test_off);
    return g_test_run();
}
