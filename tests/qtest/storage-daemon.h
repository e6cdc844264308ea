/*
 * A qemu-storage-daemon that exports a disk to tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_STORAGE_DAEMON_H
#define TESTS_QTEST_STORAGE_DAEMON_H

/* The disk: each request takes half a second */
#define DISK_SLOW "driver=null-co,node-name=disk,latency-ns=500000000"

/*
 * The disk: the first request that moves data completes, the next ones wait
 * for storage_daemon_drain().
 */
#define DISK_HELD "driver=throttle,node-name=disk,throttle-group=group," \
                  "file=file"

typedef struct StorageDaemon {
    pid_t pid;
    int qmp;                    /* its monitor */
} StorageDaemon;

/*
 * To be called first: a SIGALRM then ends a daemon with the test.  Returns
 * false, and says so, if the build has no daemon.
 */
bool storage_daemon_init(void);

/**
 * storage_daemon_start:
 * @d: to be initialized
 * @listener: the socket where the export listens, which is closed
 * @disk: one of the disks above
 * @options: more options of the export, such as ",num-queues=2"; with
 *           ",iothread=thread" it is not in the main loop
 *
 * Export @disk over vhost-user-blk.  The daemon goes away with the test.
 */
void storage_daemon_start(StorageDaemon *d, int listener, const char *disk,
                          const char *options);

/* Have it end, and see that nothing had gone wrong */
void storage_daemon_stop(StorageDaemon *d);

/* Execute a command, and see the daemon's main loop running by that */
void storage_daemon_qmp(StorageDaemon *d, const char *command);

/* Let a drained section begin and end, on a disk that is DISK_HELD */
void storage_daemon_drain(StorageDaemon *d);

#endif
