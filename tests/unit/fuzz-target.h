/*
 * The interface between a fuzz target and the driver
 *
 * A fuzz program consists of one target, which defines fuzz_target, and the
 * driver in fuzz-driver.c, which makes inputs and runs the target with them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_FUZZ_TARGET_H
#define TESTS_UNIT_FUZZ_TARGET_H

#define FUZZ_MAX_FILES      255
#define FUZZ_MAX_STREAM     0x8000
#define FUZZ_MAX_SCRIPT     256

/**
 * FuzzInput:
 * @options: selects what receives the stream; its meaning is up to the target
 * @files: the number of files that are sent along with the stream
 * @kind: the kinds of these files, see fuzz-files.h
 * @size: the number of bytes in the stream, at least one
 * @stream: the bytes of the stream
 * @script_size: the number of bytes in the script
 * @script: see FuzzScript
 *
 * A stream that another process sends, and a script of what happens then. The
 * format in a file is: @files (1 byte), @size (2 bytes, big endian), @options
 * (1 byte), the kinds, the stream, and the script up to the end of the file.
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
 * FuzzTarget:
 * @name: the name of the test
 * @init: Initialize the target. Called once, before anything else.
 * @make: Make the good input number @n in @input, which is all zeroes. Returns
 *        false if there are fewer good inputs.
 * @mutate: Change the stream in a way that random changes rarely hit. May be
 *          NULL.
 * @run: Run an input, and abort if the target behaves wrongly. Must leave no
 *       file open. Returns true if the target accepted the stream.
 *
 * The code under test.
 */
typedef struct FuzzTarget {
    const char *name;
    void (*init)(void);
    bool (*make)(unsigned n, FuzzInput *input);
    void (*mutate)(GRand *rand, FuzzInput *input);
    bool (*run)(const FuzzInput *input);
} FuzzTarget;

extern const FuzzTarget fuzz_target;

/* Bytes that decide what happens; when they are used up, zeroes follow */
typedef struct FuzzScript {
    const uint8_t *data;
    size_t left;
} FuzzScript;

FuzzScript fuzz_script(const FuzzInput *input);
uint8_t fuzz_next(FuzzScript *script);
void fuzz_next_bytes(FuzzScript *script, void *to, size_t n);

/**
 * LLVMFuzzerTestOneInput:
 * @data: the input, in the format of a file
 * @size: its size in bytes, which may be 0
 *
 * Run an input, and abort if the target behaves wrongly. libFuzzer calls this.
 *
 * Returns: 0
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif /* TESTS_UNIT_FUZZ_TARGET_H */
