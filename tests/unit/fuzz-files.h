/*
 * Files of all kinds, which come with what is fuzzed
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_FUZZ_FILES_H
#define TESTS_UNIT_FUZZ_FILES_H

#include "fuzz-target.h"

enum {
    FILE_EVENTFD,
    FILE_INFLIGHT,
    FILE_STREAM_SOCKET,
    FILE_NONE,
    FILE_MEMORY,
    FILE_DATAGRAM_SOCKET,
    FILE_PIPE,
    FILE_NULL,
    FILE_DIRECTORY,
    /* With a peer, see fuzz_peer() */
    FILE_CONNECTION,
    FILE_LISTENER,
    FILE_INET_CONNECTION,
    FILE_INET_LISTENER,
    FILE_SEQPACKET,
    /* A device of our own has none of these */
    FILE_EVENTFD_BLOCKING,
    FILE_EVENTFD_FULL,
    FILE_KINDS,
};

/**
 * fuzz_set_memory: say which file FILE_MEMORY is
 * @fd: guest memory; without this call there is no such file
 */
void fuzz_set_memory(int fd);

/**
 * fuzz_new_file: open a file
 * @kind: any number
 *
 * Returns: the file, owned by the caller, or -1 if there is none of the kind
 */
int fuzz_new_file(unsigned kind);

/**
 * fuzz_peer: the other end of the connection that was opened last
 *
 * Returns: a socket that does not block, or -1
 */
int fuzz_peer(void);

/* Close the other ends of all connections. */
void fuzz_close_peers(void);

/**
 * fuzz_send: send a stream as another QEMU does, the files at its begin
 * @input: has the files, and the size of the stream
 * @stream: its bytes
 * @sock: where to; it is closed
 */
void fuzz_send(const FuzzInput *input, const uint8_t *stream, int sock);

/**
 * fuzz_add_file: note the kind of a file that comes with an input
 * @input: the input to which it is added
 * @fd: a file of one of the kinds that QEMU sends
 */
void fuzz_add_file(FuzzInput *input, int fd);

/* Receive a stream with its files to its end into @input; @sock is closed */
void fuzz_receive(FuzzInput *input, int sock);

#endif
