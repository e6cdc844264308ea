/*
 * What libFuzzer calls
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_FUZZ_TARGET_H
#define TESTS_UNIT_FUZZ_TARGET_H

/**
 * LLVMFuzzerTestOneInput: run the code under test with any input
 * @data: the input
 * @size: its size in bytes; it may be 0
 *
 * Aborts if there is something wrong.  Returns: 0
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
