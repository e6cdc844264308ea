/*
 * QTest testcase for the chardevs of option -serial
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"

/* A chardev that two ports want is an error message, and no abort */
static void test_in_use(void)
{
    g_autofree char *command = NULL;
    g_autofree char *err = NULL;
    g_auto(GStrv) argv = NULL;
    int status;

    command = g_strdup_printf("%s -machine pc -accel qtest -nodefaults"
                              " -display none -chardev null,id=c0"
                              " -serial chardev:c0 -serial chardev:c0",
                              qtest_qemu_binary(NULL));
    g_assert_true(g_shell_parse_argv(command, NULL, &argv, NULL));
    g_assert_true(g_spawn_sync(NULL, argv, NULL, G_SPAWN_STDOUT_TO_DEV_NULL,
                               NULL, NULL, NULL, &err, &status, NULL));
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, 1);
    g_assert_nonnull(strstr(err, "'c0' is already in use"));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (qtest_has_machine("pc")) {
        qtest_add_func("serial/in-use", test_in_use);
    }

    return g_test_run();
}
