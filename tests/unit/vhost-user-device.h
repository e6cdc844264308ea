/*
 * A vhost-user device that sends the messages of QEMU's devices, for tests
 *
 * Layouts and numbers: docs/interop/vhost-user.rst. All messages are written
 * to a session, and those that the session does not take are sent.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_VHOST_USER_DEVICE_H
#define TESTS_UNIT_VHOST_USER_DEVICE_H

#include "hw/virtio/vhost-user-session.h"

/* "Front-end message types" */
enum {
    MSG_GET_FEATURES = 1,
    MSG_SET_FEATURES = 2,
    MSG_SET_OWNER = 3,
    MSG_RESET_OWNER = 4,
    MSG_SET_MEM_TABLE = 5,
    MSG_SET_LOG_BASE = 6,
    MSG_SET_VRING_NUM = 8,
    MSG_SET_VRING_ADDR = 9,
    MSG_SET_VRING_BASE = 10,
    MSG_GET_VRING_BASE = 11,
    MSG_SET_VRING_KICK = 12,
    MSG_SET_VRING_CALL = 13,
    MSG_SET_VRING_ERR = 14,
    MSG_GET_PROTOCOL_FEATURES = 15,
    MSG_SET_PROTOCOL_FEATURES = 16,
    MSG_GET_QUEUE_NUM = 17,
    MSG_SET_VRING_ENABLE = 18,
    MSG_SEND_RARP = 19,
    MSG_NET_SET_MTU = 20,
    MSG_SET_BACKEND_REQ_FD = 21,
    MSG_IOTLB = 22,
    MSG_GET_CONFIG = 24,
    MSG_SET_CONFIG = 25,
    MSG_POSTCOPY_ADVISE = 28,
    MSG_GET_INFLIGHT_FD = 31,
    MSG_SET_INFLIGHT_FD = 32,
    MSG_RESET_DEVICE = 34,
    MSG_GET_MAX_MEM_SLOTS = 36,
    MSG_ADD_MEM_REG = 37,
    MSG_REM_MEM_REG = 38,
    MSG_SET_STATUS = 39,
    MSG_GET_STATUS = 40,
    MSG_LAST = 44,
};

/* "Header" */
#define MSG_VERSION         0x1
#define MSG_REPLY           0x4
#define MSG_NEED_REPLY      0x8
/* "A u64": bit 8 is set if the message has no file */
#define MSG_NO_FD           0x100

/* "Memory region description" */
typedef struct QEMU_PACKED MsgRegion {
    uint64_t guest_addr;
    uint64_t size;
    uint64_t user_addr;
    uint64_t mmap_offset;
} MsgRegion;

#define MSG_REGIONS         8
#define MSG_CONFIG_SIZE     256

/* "Message Specification" */
typedef struct QEMU_PACKED Msg {
    uint32_t request;
    uint32_t flags;
    uint32_t size;
    union {
        uint64_t u64;
        struct QEMU_PACKED {
            uint32_t index;
            uint32_t num;
        } state;
        struct QEMU_PACKED {
            uint32_t index;
            uint32_t flags;
            uint64_t desc;
            uint64_t used;
            uint64_t avail;
            uint64_t log;
        } addr;
        struct QEMU_PACKED {
            uint32_t num;
            uint32_t padding;
            MsgRegion region[MSG_REGIONS];
        } table;
        struct QEMU_PACKED {
            uint64_t padding;
            MsgRegion region;
        } slot;
        struct QEMU_PACKED {
            uint64_t iova;
            uint64_t size;
            uint64_t user_addr;
            uint8_t perm;
            uint8_t type;
            uint8_t padding[6];
        } iotlb;
        struct QEMU_PACKED {
            uint64_t mmap_size;
            uint64_t mmap_offset;
            uint16_t queues;
            uint16_t queue_size;
            uint32_t padding;
        } inflight;
        struct QEMU_PACKED {
            uint32_t offset;
            uint32_t size;
            uint32_t flags;
            uint8_t data[MSG_CONFIG_SIZE];
        } config;
        uint8_t payload[sizeof(uint64_t) + MSG_REGIONS * sizeof(MsgRegion)];
    };
} Msg;

#define MSG_HEADER          12
#define MSG_IOTLB_UPDATE    2

/* Features and protocol features */
#define F_LOG_ALL           (1ULL << 26)
#define F_EVENT_IDX         (1ULL << 29)
#define F_PROTOCOL          (1ULL << 30)
#define F_VERSION_1         (1ULL << 32)
#define F_IOMMU             (1ULL << 33)
#define F_RING_PACKED       (1ULL << 34)
#define PF_MQ               (1ULL << 0)
#define PF_LOG_SHMFD        (1ULL << 1)
#define PF_REPLY_ACK        (1ULL << 3)
#define PF_BACKEND_REQ      (1ULL << 5)
#define PF_CONFIG           (1ULL << 9)
#define PF_INFLIGHT         (1ULL << 12)
#define PF_SLOTS            (1ULL << 15)
#define PF_STATUS           (1ULL << 16)

#define MAX_RINGS           64
#define MAX_MEMORY          12
#define MEMORY_FILES        4
#define MEMORY_SIZE         0x100000
#define CONFIG_SIZE         60
#define STATUS_OK           0xf

/**
 * Wire:
 * @ops: how the device, and its session, send and receive messages; their
 *       opaque pointer is the Wire
 * @take_fd: Returns the file of the last message that was received, or -1.
 *
 * The connection of a device.
 */
typedef struct Wire Wire;
struct Wire {
    VhostUserSessionOps ops;
    int (*take_fd)(Wire *wire);
};

/* Guest memory: a piece of one of the files of memory_file() */
typedef struct Memory {
    uint64_t file;
    uint64_t guest_addr;
    uint64_t size;
    uint64_t offset;
    uint64_t local;
} Memory;

/**
 * Device:
 * @rings: the number of rings
 * @num: the number of entries of each ring
 * @features: the features that the device requests
 * @protocol_features: the protocol features that it requests if the back-end
 *                     offers them
 * @nmemory: the number of elements of @memory
 * @memory: the guest's memory; the rings are in @memory[0]
 * @base: the base with which each ring starts next
 * @addr: the offset of each ring in @memory[0]
 * @disabled: keep the rings disabled
 * @no_files: send no kick and call eventfds, so that the rings are polled
 *
 * A front-end. Tests may change these fields; the other ones are private.
 */
typedef struct Device {
    unsigned rings;
    unsigned num;
    uint64_t features;
    uint64_t protocol_features;
    unsigned nmemory;
    Memory memory[MAX_MEMORY];
    uint32_t base[MAX_RINGS];
    uint64_t addr[MAX_RINGS];
    bool disabled;
    bool no_files;

    Wire *wire;
    VhostUserSession *session;
    bool started;
    uint64_t negotiated;            /* protocol features */
    unsigned nslots;
    Memory slot[MAX_MEMORY];        /* memory that the back-end has mapped */
    int kick[MAX_RINGS];
    int call[MAX_RINGS];
    int mask[MAX_RINGS];            /* the call eventfd while masked */
    int err[MAX_RINGS];
    int channel;
    int inflight;
    Msg inflight_msg;
    uint8_t config[CONFIG_SIZE];
} Device;

/**
 * memory_file:
 * @n: the number of the file, less than MEMORY_FILES
 *
 * Returns: a file with guest memory, which is the same for each call and stays
 *          open
 */
int memory_file(unsigned n);

/**
 * device_init_fields:
 * @d: the device, to be freed with device_cleanup()
 * @wire: its connection
 * @local: the user address at which its memory begins
 *
 * Initialize a device with two rings, two pieces of memory and an empty
 * session.
 */
void device_init_fields(Device *d, Wire *wire, uint64_t local);
void device_cleanup(Device *d);

/*
 * Each of the following functions returns false if a message failed.
 *
 * device_write() writes @msg to the session, sends it if the session does not
 * take it, and waits for the reply if the message needs one. device_ask()
 * always waits for a reply and stores it in @msg.
 */
bool device_write(Device *d, Msg *msg, const int *fds, size_t nfds);
bool device_ask(Device *d, Msg *msg);

bool device_connect(Device *d);
bool device_open_channel(Device *d);
bool device_set_memory(Device *d);
bool device_start_ring(Device *d, unsigned ring);
bool device_start(Device *d);
bool device_stop_ring(Device *d, unsigned ring);
bool device_stop(Device *d);
bool device_set_config(Device *d, unsigned offset, uint8_t value);

/* Use the kick and call eventfds that the session has for its rings. */
void device_lend(Device *d);

/* Stop the device as a QEMU does that hands it over. */
void device_release(Device *d);

/* The properties of the device for vhost_user_session_adopt() */
VhostUserSessionFits device_fits(const Device *d);

/*
 * Save and load a session. @sock is one end of a socket pair; it is closed.
 * session_save_end() and session_load() return false on failure.
 */
typedef struct SessionSave SessionSave;
SessionSave *session_save_begin(VhostUserSession *session, int sock);
bool session_save_end(SessionSave *save);
bool session_load(VhostUserSession *session, int sock);

/* Returns a new non-blocking eventfd. */
int new_eventfd(void);

#endif /* TESTS_UNIT_VHOST_USER_DEVICE_H */
