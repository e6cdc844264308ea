/*
 * What is fuzzed: a target, and the inputs that it gets
 *
 * A program is one target, which defines fuzz_target, and the driver in
 * fuzz-driver.c, which makes the inputs and runs them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_FUZZ_TARGET_H
#define TESTS_UNIT_FUZZ_TARGET_H

#define FUZZ_MAX_FILES      255
#define FUZZ_MAX_STREAM     0x8000
#define FUZZ_MAX_SCRIPT     256

/**
 * FuzzInput: what another process sends, and what happens then
 * @options: choose what the stream comes to; up to the target
 * @kind, @files: the files that come with the stream, see fuzz-files.h
 * @stream, @size: the bytes, at least one
 * @script, @script_size: see FuzzScript
 *
 * In a file: @files (1 byte), @size (2 bytes, big endian), @options (1 byte);
 * the kinds; the stream; the script, up to the end.
 */
typedef struct FuzzInput {
    uint8_t options;
    size_t files;
    uint8_t kind[FUZZ_MAX_FILES];
    size_t size;
    uint8_t stream[FUZZ_MAX_STREAM];
    size_t script_size;
    uint8_t script[FUZZ_MAX_SCRIPT];
} FuzzInput;

/**
 * FuzzTarget: the code under test
 * @name: of the test
 * @init: called once, before anything else
 * @make: make the good input of number @n, or return false if there are no
 *        more; @input is all zeroes before
 * @mutate: change the stream where chance would rarely do it; may be NULL
 * @run: run an input.  Aborts if there is something wrong.  Returns true if
 *       the stream was good enough to be accepted.
 *
 * @run must leave no file open.
 */
typedef struct FuzzTarget {
    const char *name;
    void (*init)(void);
    bool (*make)(unsigned n, FuzzInput *input);
    void (*mutate)(GRand *rand, FuzzInput *input);
    bool (*run)(const FuzzInput *input);
} FuzzTarget;

extern const FuzzTarget fuzz_target;

/* Bytes that decide what happens; zeroes follow when they are used up */
typedef struct FuzzScript {
    const uint8_t *data;
    size_t left;
} FuzzScript;

FuzzScript fuzz_script(const FuzzInput *input);
uint8_t fuzz_next(FuzzScript *script);
void fuzz_next_bytes(FuzzScript *script, void *to, size_t n);

/**
 * LLVMFuzzerTestOneInput: run any input; what libFuzzer calls
 * @data: the input as in a file
 * @size: its size in bytes; it may be 0
 *
 * Aborts if there is something wrong.  Returns: 0
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
