/*
 * Counting the open files of a process, for tests that must leave none open
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_COUNT_FDS_H
#define TESTS_UNIT_COUNT_FDS_H

/**
 * count_fds:
 *
 * Count the open files of this process. The number includes one file that is
 * opened for counting.
 *
 * Returns: the number of open files, or 0 if the host has no /proc/self/fd
 */
unsigned count_fds(void);

#endif /* TESTS_UNIT_COUNT_FDS_H */
