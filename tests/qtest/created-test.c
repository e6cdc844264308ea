/*
 * QTest testcase for query-created: things of each kind that are created,
 * removed, created again and changed
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qapi/error.h"
#include "qobject/qbool.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"

/* Returns the entry of this kind and id, or NULL */
static QDict *entry(QTestState *qts, const char *kind, const char *id)
{
    QDict *answer = qtest_qmp(qts, "{ 'execute': 'query-created' }");
    QDict *found = NULL;
    QListEntry *item;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(answer, "return"), item) {
        QDict *thing = qobject_to(QDict, qlist_entry_obj(item));

        if (g_str_equal(qdict_get_str(thing, "kind"), kind) &&
            g_str_equal(qdict_get_str(thing, "id"), id)) {
            g_assert_null(found);
            found = qobject_ref(thing);
        }
    }
    qobject_unref(answer);
    return found;
}

/* @options: JSON; NULL: there must be no such entry */
static void check(QTestState *qts, const char *kind, const char *id,
                  bool at_startup, bool changed, bool keyval,
                  const char *options)
{
    g_autoptr(QDict) thing = entry(qts, kind, id);
    QObject *wanted;

    if (!options) {
        g_assert_null(thing);
        return;
    }
    g_assert_nonnull(thing);
    wanted = qobject_from_json(options, &error_abort);
    if (!qobject_is_equal(qdict_get(thing, "options"), wanted)) {
        g_autoptr(GString) text = qobject_to_json(QOBJECT(thing));

        g_error("expected the options %s, is %s", options, text->str);
    }
    qobject_unref(wanted);
    g_assert(qdict_get_bool(thing, "at-startup") == at_startup);
    g_assert(qdict_get_bool(thing, "changed") == changed);
    g_assert(qdict_get_bool(thing, "keyval") == keyval);
}

static void check_gone(QTestState *qts, const char *kind, const char *id)
{
    check(qts, kind, id, false, false, false, NULL);
}

static void test_chardev(void)
{
    QTestState *qts = qtest_init("-nodefaults -chardev null,id=c "
                                 "-chardev ringbuf,id=r,size=16 "
                                 "-chardev testdev,id=t "
                                 "-serial null");
    const char *null = "{ 'id': 'c',"
                       "  'backend': { 'type': 'null', 'data': {} } }";
    const char *ring = "{ 'id': 'c', 'backend': {"
                       "  'type': 'ringbuf', 'data': { 'size': 32 } } }";

    check(qts, "chardev", "c", true, false, false,
          "{ 'id': 'c', 'backend': { 'type': 'null',"
          "  'data': { 'logappend': false } } }");
    check(qts, "chardev", "r", true, false, false,
          "{ 'id': 'r', 'backend': { 'type': 'ringbuf',"
          "  'data': { 'size': 16, 'logappend': false } } }");
    check(qts, "chardev", "t", true, false, false,
          "{ 'id': 't', 'backend': { 'type': 'testdev',"
          "  'data': { 'logappend': false } } }");
    check(qts, "chardev", "serial0", true, false, false,
          "{ 'id': 'serial0', 'backend': { 'type': 'null',"
          "  'data': { 'logappend': false } } }");

    qtest_qmp_assert_success(qts, "{ 'execute': 'chardev-remove',"
                             "  'arguments': { 'id': 'c' } }");
    check_gone(qts, "chardev", "c");
    qtest_qmp_assert_success(qts, "{ 'execute': 'chardev-add', 'arguments': "
                             "  { 'id': 'c', 'backend': {"
                             "    'type': 'ringbuf',"
                             "    'data': { 'size': 32 } } } }");
    check(qts, "chardev", "c", false, false, false, ring);

    /* Without a front-end, it is created again */
    qtest_qmp_assert_success(qts, "{ 'execute': 'chardev-change',"
                             "  'arguments': { 'id': 'c', 'backend': {"
                             "    'type': 'null', 'data': {} } } }");
    check(qts, "chardev", "c", false, false, false, null);
    qtest_quit(qts);
}

static void test_chardev_change(void)
{
    QTestState *qts = qtest_init("-nodefaults -machine pc "
                                 "-chardev null,id=c -serial chardev:c");

    qtest_qmp_assert_success(qts, "{ 'execute': 'chardev-change',"
                             "  'arguments': { 'id': 'c', 'backend': {"
                             "    'type': 'ringbuf',"
                             "    'data': { 'size': 32 } } } }");
    check(qts, "chardev", "c", true, true, false,
          "{ 'id': 'c', 'backend': { 'type': 'ringbuf',"
          "  'data': { 'size': 32 } } }");
    qtest_quit(qts);
}

static void test_object(void)
{
    QTestState *qts = qtest_init("-nodefaults "
                                 "-object rng-builtin,id=o "
                                 "-object throttle-group,id=t");

    check(qts, "object", "o", true, false, false,
          "{ 'qom-type': 'rng-builtin', 'id': 'o' }");
    check(qts, "object", "t", true, false, false,
          "{ 'qom-type': 'throttle-group', 'id': 't' }");

    qtest_qmp_assert_success(qts, "{ 'execute': 'object-del',"
                             "  'arguments': { 'id': 'o' } }");
    check_gone(qts, "object", "o");
    qtest_qmp_assert_success(qts, "{ 'execute': 'object-add', 'arguments': "
                             "  { 'qom-type': 'iothread', 'id': 'o',"
                             "    'poll-max-ns': 4711 } }");
    check(qts, "object", "o", false, false, false,
          "{ 'qom-type': 'iothread', 'id': 'o', 'poll-max-ns': 4711 }");

    qtest_qmp_assert_success(qts, "{ 'execute': 'qom-set', 'arguments': "
                             "  { 'path': '/objects/t',"
                             "    'property': 'limits',"
                             "    'value': { 'iops-total': 9 } } }");
    check(qts, "object", "t", true, true, false,
          "{ 'qom-type': 'throttle-group', 'id': 't',"
          "  'limits': { 'iops-total': 9 } }");

    /* An object that cannot be created has no entry */
    qobject_unref(qtest_qmp(qts, "{ 'execute': 'object-add', 'arguments': "
                            "  { 'qom-type': 'secret', 'id': 'bad' } }"));
    check_gone(qts, "object", "bad");
    qtest_quit(qts);
}

static void test_netdev(void)
{
    QTestState *qts = qtest_init("-nodefaults -netdev hubport,id=n,hubid=1");

    check(qts, "netdev", "n", true, false, false,
          "{ 'type': 'hubport', 'id': 'n', 'hubid': 1 }");
    qtest_qmp_assert_success(qts, "{ 'execute': 'netdev_del',"
                             "  'arguments': { 'id': 'n' } }");
    check_gone(qts, "netdev", "n");
    qtest_qmp_assert_success(qts, "{ 'execute': 'netdev_add', 'arguments': "
                             "  { 'type': 'hubport', 'id': 'n',"
                             "    'hubid': 2 } }");
    check(qts, "netdev", "n", false, false, false,
          "{ 'type': 'hubport', 'id': 'n', 'hubid': 2 }");
    qtest_quit(qts);
}

static void test_blockdev(void)
{
    QTestState *qts = qtest_init("-nodefaults "
                                 "-blockdev null-co,node-name=n,size=65536 "
                                 "-blockdev raw,node-name=r,file=n");

    check(qts, "blockdev", "n", true, false, false,
          "{ 'driver': 'null-co', 'node-name': 'n', 'size': 65536 }");
    check(qts, "blockdev", "r", true, false, false,
          "{ 'driver': 'raw', 'node-name': 'r', 'file': 'n' }");

    qtest_qmp_assert_success(qts, "{ 'execute': 'blockdev-reopen',"
                             "  'arguments': { 'options': [ {"
                             "    'driver': 'raw', 'node-name': 'r',"
                             "    'file': 'n', 'read-only': true } ] } }");
    check(qts, "blockdev", "r", true, true, false,
          "{ 'driver': 'raw', 'node-name': 'r', 'file': 'n',"
          "  'read-only': true }");

    qtest_qmp_assert_success(qts, "{ 'execute': 'blockdev-del',"
                             "  'arguments': { 'node-name': 'r' } }");
    check_gone(qts, "blockdev", "r");
    qtest_qmp_assert_success(qts, "{ 'execute': 'blockdev-add', 'arguments': "
                             "  { 'driver': 'raw', 'node-name': 'r',"
                             "    'file': { 'driver': 'null-co' } } }");
    check(qts, "blockdev", "r", false, false, false,
          "{ 'driver': 'raw', 'node-name': 'r',"
          "  'file': { 'driver': 'null-co' } }");
    qtest_quit(qts);
}

static void test_device(void)
{
    QTestState *qts = qtest_init("-nodefaults -machine pc "
                                 "-device qemu-xhci,id=x "
                                 "-device usb-kbd,id=d,port=3 "
                                 "-device usb-mouse "
                                 "-device '{\"driver\":\"usb-tablet\","
                                 "          \"id\":\"j\","
                                 "          \"msos-desc\":false}'");

    check(qts, "device", "d", true, false, true,
          "{ 'driver': 'usb-kbd', 'id': 'd', 'port': '3' }");
    check(qts, "device", "/machine/peripheral-anon/device[0]", true, false,
          true, "{ 'driver': 'usb-mouse' }");
    check(qts, "device", "j", true, false, false,
          "{ 'driver': 'usb-tablet', 'id': 'j', 'msos-desc': false }");

    qtest_qmp_device_del(qts, "d");
    check_gone(qts, "device", "d");
    qtest_qmp_device_add(qts, "usb-mouse", "d", "{ 'port': '3' }");
    check(qts, "device", "d", false, false, false,
          "{ 'driver': 'usb-mouse', 'id': 'd', 'port': '3' }");
    qtest_quit(qts);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("created/chardev", test_chardev);
    qtest_add_func("created/chardev-change", test_chardev_change);
    qtest_add_func("created/object", test_object);
    qtest_add_func("created/netdev", test_netdev);
    qtest_add_func("created/blockdev", test_blockdev);
    qtest_add_func("created/device", test_device);
    return g_test_run();
}
