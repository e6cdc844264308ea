/*
 * A vhost-user back-end that notes what it is told, for tests
 *
 * It insists on what docs/interop/vhost-user.rst asks of a front-end, and on
 * what real back-ends need: see vhost-user-backend.c.  It has no thread: each
 * message is handled as soon as it is sent.
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
    uint32_t set;               /* BIT(request), since it was stopped */
    uint32_t num;
    uint32_t base;
    uint64_t addr[3];           /* descriptors, used, avail */
    uint64_t place[3];          /* where that is, in a file */
    uint64_t ino[3];
    int kick;
    int call;
    int err;
} BackendRing;

/**
 * Backend: public fields may be changed at will
 * @wire: for the devices
 * @features, @protocol_features: what it offers
 * @refuse: a request to answer with an error, if an answer is wanted
 * @confuse: a request to answer as if it were another one
 * @no_inflight: have no inflight region for anybody
 * @looks_up_rings: at each change of memory look up all rings, stopped ones
 *                  too, as libvhost-user before QEMU 9.0; a region that comes
 *                  by itself counts from the next change only
 * @silent: close the connection at the next message
 *
 * What follows is for tests to look at.
 */
typedef struct Backend {
    Wire wire;
    uint64_t features;
    uint64_t protocol_features;
    uint32_t refuse;
    uint32_t confuse;
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

/* The back-end has seen the requests in @expected ("2 5 8.0": of ring 0) */
void assert_told(Backend *b, const char *expected);

/* Forget what was seen */
void backend_forget(Backend *b);

/*
 * The back-end and the device mean the same: memory, rings, notifiers, config,
 * inflight region and channel.
 */
void assert_agree(Backend *b, Device *d);

#endif
