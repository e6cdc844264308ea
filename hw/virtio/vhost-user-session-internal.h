/*
 * The state of a vhost-user session, for the files that implement it
 *
 * Layouts and numbers: docs/interop/vhost-user.rst, "Message Specification"
 * and "Front-end message types".
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_VHOST_USER_SESSION_INTERNAL_H
#define HW_VIRTIO_VHOST_USER_SESSION_INTERNAL_H

#include "hw/virtio/vhost-user-session.h"
#include "standard-headers/linux/vhost_types.h"

/* Front-end requests that a session knows */
enum {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6,
    SET_LOG_FD = 7,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    SEND_RARP = 19,
    NET_SET_MTU = 20,
    SET_BACKEND_REQ_FD = 21,
    IOTLB_MSG = 22,
    GET_CONFIG = 24,
    SET_CONFIG = 25,
    POSTCOPY_ADVISE = 28,
    POSTCOPY_LISTEN = 29,
    POSTCOPY_END = 30,
    GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD = 32,
    RESET_DEVICE = 34,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    SET_STATUS = 39,
    GET_STATUS = 40,
};

#define FLAGS_VERSION       0x1
#define FLAGS_REPLY         (1 << 2)
#define FLAGS_NEED_REPLY    (1 << 3)
#define FLAGS_OF_REPLY      (FLAGS_VERSION | FLAGS_REPLY)

/* In the u64 of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR */
#define RING_INDEX_MASK     0xff
#define RING_NO_FD          (1 << 8)

#define TABLE_REGIONS       8

typedef struct QEMU_PACKED WireRegion {
    uint64_t guest_addr;
    uint64_t size;
    uint64_t user_addr;
    uint64_t offset;
} WireRegion;

typedef struct QEMU_PACKED WireInflight {
    uint64_t size;
    uint64_t offset;
    uint16_t queues;
    uint16_t queue_size;
    uint32_t padding;
} WireInflight;

typedef struct QEMU_PACKED WireMessage {
    uint32_t request;
    uint32_t flags;
    uint32_t size;
    union {
        uint64_t u64;
        struct {
            uint32_t index;
            uint32_t num;
        } ring;
        struct vhost_vring_addr ring_addr;
        struct {
            uint32_t n;
            uint32_t padding;
            WireRegion region[TABLE_REGIONS];
        } table;
        struct {
            uint64_t padding;
            WireRegion region;
        } slot;
        struct vhost_iotlb_msg iotlb;
        WireInflight inflight;
        struct {
            uint32_t offset;
            uint32_t size;
            uint32_t flags;
            uint8_t data[VHOST_USER_SESSION_CONFIG];
        } config;
    };
} WireMessage;

#define WIRE_HEADER         offsetof(WireMessage, u64)
#define WIRE_CONFIG_HEADER  (3 * sizeof(uint32_t))

/* Guest memory that the back-end has mapped */
typedef struct SessionRegion {
    uint64_t guest_addr;
    uint64_t size;
    uint64_t offset;        /* in the file */
    uint64_t dev;           /* the file: st_dev, st_ino */
    uint64_t ino;
    uint64_t name;          /* user address that the back-end was told */
    uint64_t local;         /* this QEMU's user address, if @mapped */
    bool mapped;            /* our device has sent the region itself */
} SessionRegion;

/* A number that the device has set, or that the back-end has replied */
typedef struct SessionValue {
    bool known;
    uint64_t u64;
} SessionValue;

/*
 * A ring. When GET_VRING_BASE stops the ring, only the state that all
 * back-ends keep stays known: whether the ring is enabled, and its error file.
 */
typedef struct SessionRing {
    bool running;           /* the kick file was set, see "Ring states" */
    bool num_known;
    bool base_known;
    bool addr_known;
    bool enabled_known;
    bool call_known;
    bool err_known;
    uint32_t num;
    uint32_t base;
    uint32_t enabled;
    uint32_t flags;
    uint64_t desc;          /* addresses as the back-end knows them */
    uint64_t used;
    uint64_t avail;
    uint64_t log;
    int32_t kick;           /* -1: none */
    int32_t call;
    int32_t err;
    /* Only while the session is held */
    bool rewind;            /* the device was reset while the ring ran */
    int lent_kick;
    int lent_call;
    int lent_err;
    /* Only for the stream: which files it contains */
    uint8_t files;
} SessionRing;

/* A message that a held session has stored */
typedef struct HeldMessage {
    WireMessage *msg;
    int fds[TABLE_REGIONS];
    size_t nfds;
    bool same_file;         /* the back-end already has the file */
} HeldMessage;

struct VhostUserSession {
    const VhostUserSessionOps *ops;
    void *opaque;

    SessionValue owner;
    SessionValue features;
    SessionValue protocol_features;
    SessionValue status;
    SessionValue mtu;
    SessionValue offered_features;
    SessionValue offered_protocol_features;
    SessionValue max_queues;
    SessionValue max_mem_slots;
    bool no_inflight;       /* the back-end offers no inflight region */
    uint32_t config_size;
    uint8_t config[VHOST_USER_SESSION_CONFIG];
    uint32_t nregions;
    SessionRegion *region;
    uint32_t nrings;
    SessionRing *ring;
    WireInflight inflight;
    uint32_t stopping;      /* ring of the last GET_VRING_BASE */
    int32_t inflight_fd;    /* -1: none was set */
    int32_t channel_fd;     /* -1: none, or the device has it */
    uint32_t untracked;     /* a request whose effect is not in the session */
    int file_error;         /* errno: a file is not in the session */

    bool held;
    bool owned;
    GQueue pending;         /* of HeldMessage */
    WireMessage reply;
    bool has_reply;
    int reply_fd;

    /* Only for the stream: sizes that are not yet validated */
    uint32_t stream_config_size;
    uint32_t stream_regions;
    uint32_t stream_rings;
};

/*
 * Returns true if a region of this name and size is not empty and leaves space
 * for the names of new regions, which are searched for behind older ones.
 */
bool session_valid_region(uint64_t name, uint64_t size);

/*
 * Do the names of two regions overlap, and mean different memory? Memory may be
 * at several guest addresses, then its regions have the same names.
 */
bool session_names_clash(const SessionRegion *a, const SessionRegion *b);

/* Have at least @n rings; new ones have no state. Returns the ring @n - 1. */
SessionRing *session_grow_rings(VhostUserSession *s, unsigned n);

#endif /* HW_VIRTIO_VHOST_USER_SESSION_INTERNAL_H */
