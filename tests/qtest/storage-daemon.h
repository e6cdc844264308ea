/*
 * A qemu-storage-daemon that exports a vhost-user-blk disk to tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_STORAGE_DAEMON_H
#define TESTS_QTEST_STORAGE_DAEMON_H

/* A disk for which each request takes half a second */
#define DISK_SLOW "driver=null-co,node-name=disk,latency-ns=500000000"

/*
 * A disk for which the first request that moves data completes; the next ones
 * wait for storage_daemon_drain()
 */
#define DISK_HELD "driver=throttle,node-name=disk,throttle-group=group," \
                  "file=file"

typedef struct StorageDaemon {
    pid_t pid;
    int qmp;                    /* its monitor */
} StorageDaemon;

/**
 * storage_daemon_init:
 *
 * Initialize the test program, so that SIGALRM aborts a test and ends its
 * daemon. Call this first.
 *
 * Returns: false, after a message, if the build has no qemu-storage-daemon;
 *          true otherwise
 */
bool storage_daemon_init(void);

/**
 * storage_daemon_start:
 * @d: the daemon, which need not be initialized
 * @listener: the socket where the export listens; it is closed here
 * @disk: one of the disks above
 * @options: more options of the export, such as ",num-queues=2"; with
 *           ",iothread=thread" the export runs in an iothread
 *
 * Start a daemon that exports @disk over vhost-user-blk. It is killed when the
 * test ends.
 */
void storage_daemon_start(StorageDaemon *d, int listener, const char *disk,
                          const char *options);

/**
 * storage_daemon_stop:
 * @d: the daemon
 *
 * Let the daemon exit, and check that its exit status is 0.
 */
void storage_daemon_stop(StorageDaemon *d);

/**
 * storage_daemon_qmp:
 * @d: the daemon
 * @command: a QMP command without arguments
 *
 * Execute a command. This only succeeds while the daemon's main loop runs.
 */
void storage_daemon_qmp(StorageDaemon *d, const char *command);

/**
 * storage_daemon_drain:
 * @d: the daemon of a disk DISK_HELD
 *
 * Begin and end a drained section, which completes all requests.
 */
void storage_daemon_drain(StorageDaemon *d);

#endif /* TESTS_QTEST_STORAGE_DAEMON_H */
