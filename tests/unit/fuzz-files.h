/*
 * Files of all kinds, which are sent along with the fuzzed streams
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
    /* These have a peer, see fuzz_peer() */
    FILE_CONNECTION,
    FILE_LISTENER,
    FILE_INET_CONNECTION,
    FILE_INET_LISTENER,
    FILE_SEQPACKET,
    /* QEMU's own devices have none of these */
    FILE_EVENTFD_BLOCKING,
    FILE_EVENTFD_FULL,
    FILE_KINDS,
};

/**
 * fuzz_set_memory:
 * @fd: guest memory
 *
 * Set the file that is FILE_MEMORY. Without this call there is no such file.
 */
void fuzz_set_memory(int fd);

/**
 * fuzz_new_file:
 * @kind: any number
 *
 * Open a file of the kind that @kind stands for.
 *
 * Returns: the file, owned by the caller, or -1 if there is no such file
 */
int fuzz_new_file(unsigned kind);

/**
 * fuzz_peer:
 *
 * Get the other end of the connection that was opened last.
 *
 * Returns: a socket that does not block, or -1 if there is none
 */
int fuzz_peer(void);

/**
 * fuzz_close_peers:
 *
 * Close the other ends of all connections.
 */
void fuzz_close_peers(void);

/**
 * fuzz_send:
 * @input: the input, with its files and the size of its stream
 * @stream: the bytes of the stream
 * @sock: the socket to send to; it is closed
 *
 * Send a stream as another QEMU does. One file is sent along with each of the
 * first bytes.
 */
void fuzz_send(const FuzzInput *input, const uint8_t *stream, int sock);

/**
 * fuzz_add_file:
 * @input: the input
 * @fd: a file of one of the kinds that QEMU sends
 *
 * Add the kind of a file to an input.
 */
void fuzz_add_file(FuzzInput *input, int fd);

/**
 * fuzz_receive:
 * @input: the input, whose stream and files must be empty
 * @sock: the socket to receive from; it is closed
 *
 * Receive a whole stream, and the kinds of its files, into an input.
 */
void fuzz_receive(FuzzInput *input, int sock);

#endif /* TESTS_UNIT_FUZZ_FILES_H */
