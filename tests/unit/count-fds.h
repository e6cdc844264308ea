/*
 * How many files this process has open, for tests that must leave none behind
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_COUNT_FDS_H
#define TESTS_UNIT_COUNT_FDS_H

/**
 * count_fds: count the open files, and one that is opened for counting
 *
 * Returns: their number, or 0 where the host does not tell
 */
unsigned count_fds(void);

#endif
