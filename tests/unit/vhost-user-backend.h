/*
 * A vhost-user back-end that records the requests that it gets, for tests
 *
 * It aborts if the front-end violates docs/interop/vhost-user.rst or a
 * requirement of real back-ends, see vhost-user-backend.c. It has no thread:
 * each message is handled as soon as it is sent.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_VHOST_USER_BACKEND_H
#define TESTS_UNIT_VHOST_USER_BACKEND_H

#include "vhost-user-device.h"

#define MAX_SLOTS 32

typedef struct BackendRegion {
    MsgRegion wire;
    uint64_t ino;
} BackendRegion;

typedef struct BackendRing {
    bool running;
    bool enabled;
    uint32_t set;               /* BIT(request) of those since the last stop */
    uint32_t num;
    uint32_t base;
    uint64_t addr[3];           /* descriptors, used, avail */
    uint64_t place[3];          /* the offset of @addr in a file */
    uint64_t ino[3];
    int kick;
    int call;
    int err;
} BackendRing;

typedef enum Spoilage {
    SPOIL_REQUEST,              /* another request number */
    SPOIL_FLAGS,                /* not the flags of a reply */
    SPOIL_EMPTY,                /* no payload */
    SPOIL_LONG,                 /* a payload that is too long */
    SPOIL_RING,                 /* another ring's index */
    SPOILAGES,
} Spoilage;

/**
 * Backend:
 * @wire: the connection for a device
 * @features: the features that the back-end offers
 * @protocol_features: the protocol features that it offers
 * @refuse: a request to which the back-end replies with an error, if the
 *          message needs a reply
 * @spoil: a request to which the back-end replies wrongly, see @spoilage
 * @spoilage: what is wrong with that reply
 * @no_inflight: offer no inflight region
 * @looks_up_rings: Look up the addresses of all rings, even of stopped ones,
 *                  at each change of the memory, as libvhost-user before QEMU
 *                  9.0 does. For ADD_MEM_REG this is done before the region is
 *                  added.
 * @silent: close the connection at the next message
 *
 * Tests may change these fields, and read the other ones.
 */
typedef struct Backend {
    Wire wire;
    uint64_t features;
    uint64_t protocol_features;
    uint32_t refuse;
    uint32_t spoil;
    Spoilage spoilage;
    bool no_inflight;
    bool looks_up_rings;
    bool silent;

    int front;                  /* the socket's ends */
    int back;
    int reply_fd;
    GString *log;
    uint64_t acked;
    uint64_t negotiated;
    uint64_t status;
    unsigned nregions;
    BackendRegion region[MAX_SLOTS];
    BackendRing ring[MAX_RINGS];
    uint64_t iotlb_name;
    int inflight;
    int channel;
    uint8_t config[CONFIG_SIZE];
} Backend;

Backend *backend_new(void);
void backend_free(Backend *b);

/**
 * assert_told:
 * @b: the back-end
 * @expected: request numbers; "8.0" is request 8 for ring 0
 *
 * Assert that the back-end got exactly these requests since it last forgot
 * them, and forget them.
 */
void assert_told(Backend *b, const char *expected);

/**
 * backend_forget:
 * @b: the back-end
 *
 * Forget all requests so far.
 */
void backend_forget(Backend *b);

/**
 * assert_agree:
 * @b: the back-end
 * @d: the device
 *
 * Assert that both have the same state: memory, rings, notifiers, config
 * space, inflight region and back-end channel.
 */
void assert_agree(Backend *b, Device *d);

#endif /* TESTS_UNIT_VHOST_USER_BACKEND_H */
