/*
 * A qemu-storage-daemon that exports a vhost-user-blk disk to tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/prctl.h>
#include "qobject/qdict.h"
#include "libqmp.h"
#include "libqtest.h"
#include "storage-daemon.h"

#define PROGRAM "QTEST_QEMU_STORAGE_DAEMON_BINARY"

/* SIGALRM's handler; libqtest ends the daemon when the test aborts */
static void time_out(int sig)
{
    abort();
}

bool storage_daemon_init(void)
{
    struct sigaction act = { .sa_handler = time_out };

    sigaction(SIGALRM, &act, NULL);
    if (getenv(PROGRAM)) {
        return true;
    }
    g_test_message("%s is not defined, skipping", PROGRAM);
    return false;
}

static void kill_daemon(void *data)
{
    StorageDaemon *d = data;

    kill(d->pid, SIGKILL);
}

/* Does not return. */
static void exec_daemon(int qmp_fd, int listener, const char *disk,
                        const char *options)
{
    const char *program = getenv(PROGRAM);
    g_autofree char *chardev = g_strdup_printf("socket,id=qmp,fd=%d", qmp_fd);
    g_autofree char *export =
        g_strdup_printf("vhost-user-blk,id=export,node-name=disk,"
                        "addr.type=fd,addr.str=%d%s", listener, options);

    qemu_clear_cloexec(listener);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execlp(program, program, "--chardev", chardev, "--monitor", "chardev=qmp",
           "--object", "iothread,id=thread",
           "--object", "throttle-group,id=group,x-bps-total=1",
           "--blockdev", "driver=null-co,node-name=file",
           "--blockdev", disk, "--export", export, NULL);
    _exit(1);
}

void storage_daemon_start(StorageDaemon *d, int listener, const char *disk,
                          const char *options)
{
    int pair[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), ==, 0);
    d->qmp = pair[0];
    qemu_set_cloexec(d->qmp);
    d->pid = fork();
    if (d->pid == 0) {
        exec_daemon(pair[1], listener, disk, options);
    }
    g_assert_cmpint(d->pid, >, 0);
    qtest_add_abrt_handler(kill_daemon, d);
    close(pair[1]);
    close(listener);

    qobject_unref(qmp_fd_receive(d->qmp));      /* the greeting */
    storage_daemon_qmp(d, "qmp_capabilities");
}

void storage_daemon_stop(StorageDaemon *d)
{
    int status;

    kill(d->pid, SIGTERM);
    g_assert_cmpint(waitpid(d->pid, &status, 0), ==, d->pid);
    qtest_remove_abrt_handler(d);
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, 0);
    close(d->qmp);
}

void storage_daemon_qmp(StorageDaemon *d, const char *command)
{
    g_autoptr(QDict) resp = NULL;

    resp = qmp_fd(d->qmp, "{ 'execute': %s }", command);
    g_assert_true(qdict_haskey(resp, "return"));
}

void storage_daemon_drain(StorageDaemon *d)
{
    g_autoptr(QDict) resp = NULL;

    resp = qmp_fd(d->qmp, "{ 'execute': 'blockdev-reopen', 'arguments': {"
                  " 'options': [ { 'driver': 'throttle',"
                  " 'node-name': 'disk', 'throttle-group': 'group',"
                  " 'file': 'file' } ] } }");
    g_assert_true(qdict_haskey(resp, "return"));
}
