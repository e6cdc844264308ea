/*
 * The state of a vhost-user back-end, recorded from a connection's messages
 *
 * The session's fields keep the back-end's current state. While the session is
 * held, the queue "pending" keeps the messages with which the device requests
 * a new state. The commit sends those messages that change the state.
 *
 * The user addresses of a memory region and of rings belong to the address
 * space of the process that first sent them. The back-end only uses them to
 * look up its own mappings, so after a transfer they are just names. A region
 * keeps its name while the back-end has the region mapped and uses it,
 * whichever QEMU owns the connection; see translate_addresses().
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/range.h"
#include "hw/virtio/vhost-user.h"
#include "vhost-user-session-internal.h"
#include "trace.h"

#define F_PROTOCOL_FEATURES 30

/*
 * Requests
 */

typedef enum RequestKind {
    UNTRACKED,          /* has an unknown effect on the state */
    QUESTION,           /* asks for state: a held session answers, if it can */
    SETTING,            /* sets state: a held session stores the message */
    ACTION,             /* is sent at once, even if the session is held */
} RequestKind;

/* Where a message contains the index of the ring that it is about */
typedef enum RingPlace {
    NO_RING,
    RING_FIRST,         /* the first 32 bits of the payload */
    RING_LOW_BITS,      /* the low bits of the u64 of a message with a file */
} RingPlace;

/* What must not run while the back-end's state changes */
typedef enum StopRule {
    STOP_NONE,
    STOP_RING,          /* the ring that the message is about */
    STOP_ALL,           /* all rings */
} StopRule;

/**
 * RequestInfo:
 * @kind: how a session treats the request
 * @ring: the place of the ring's index
 * @known: for messages about a ring, the offset in SessionRing of the field
 *         that says whether the message was sent
 * @file: for messages with a file of a ring, the offset in SessionRing
 * @value: if the payload is only a number, the SessionValue's offset in
 *         VhostUserSession
 * @repeats: Each message has its own effect, so that no later message of the
 *           same request overrides it.
 * @same_state: another request that sets the same state
 * @stop: what must be stopped to change the state
 * @starts: The message starts or stops what other messages set up.
 *
 * The properties of one request, see docs/interop/vhost-user.rst.
 */
typedef struct RequestInfo {
    RequestKind kind;
    RingPlace ring;
    size_t known;
    size_t file;
    size_t value;
    bool repeats;
    unsigned same_state;
    StopRule stop;
    bool starts;
} RequestInfo;

#define VALUE(field)        .value = offsetof(VhostUserSession, field)
#define KNOWN(field)        .known = offsetof(SessionRing, field)
#define RING_FILE(field)    .file = offsetof(SessionRing, field)

/* A request that has no row here is untracked. */
static const RequestInfo requests[] = {
    [GET_FEATURES] = { QUESTION, VALUE(offered_features) },
    [GET_PROTOCOL_FEATURES] = { QUESTION, VALUE(offered_protocol_features) },
    [GET_QUEUE_NUM] = { QUESTION, VALUE(max_queues) },
    [GET_MAX_MEM_SLOTS] = { QUESTION, VALUE(max_mem_slots) },
    [GET_STATUS] = { QUESTION, VALUE(status) },
    [GET_CONFIG] = { QUESTION },
    [GET_INFLIGHT_FD] = { QUESTION },

    [SET_OWNER] = { SETTING, VALUE(owner) },
    [SET_FEATURES] = { SETTING, VALUE(features), .stop = STOP_ALL },
    [SET_PROTOCOL_FEATURES] = { SETTING, VALUE(protocol_features) },
    [SET_STATUS] = { SETTING, VALUE(status), .starts = true },
    [NET_SET_MTU] = { SETTING, VALUE(mtu) },
    [SET_MEM_TABLE] = { SETTING },
    [ADD_MEM_REG] = { SETTING, .repeats = true },
    [REM_MEM_REG] = { SETTING, .repeats = true },
    [SET_BACKEND_REQ_FD] = { SETTING },
    [SET_INFLIGHT_FD] = { SETTING, .stop = STOP_ALL },
    [SET_CONFIG] = { SETTING, .repeats = true },
    [RESET_DEVICE] = { SETTING, .repeats = true },

    [SET_VRING_NUM] = {
        SETTING, RING_FIRST, KNOWN(num_known), .stop = STOP_RING,
    },
    [SET_VRING_ADDR] = {
        SETTING, RING_FIRST, KNOWN(addr_known), .stop = STOP_RING,
    },
    [SET_VRING_BASE] = { SETTING, RING_FIRST, KNOWN(base_known) },
    [SET_VRING_ENABLE] = {
        SETTING, RING_FIRST, KNOWN(enabled_known), .starts = true,
    },
    [SET_VRING_CALL] = {
        SETTING, RING_LOW_BITS, KNOWN(call_known), RING_FILE(call),
    },
    [SET_VRING_ERR] = {
        SETTING, RING_LOW_BITS, KNOWN(err_known), RING_FILE(err),
    },
    /* SET_VRING_KICK starts a ring, GET_VRING_BASE stops it */
    [SET_VRING_KICK] = {
        SETTING, RING_LOW_BITS, KNOWN(running), RING_FILE(kick),
        .stop = STOP_RING, .starts = true,
    },
    [GET_VRING_BASE] = {
        SETTING, RING_FIRST, .same_state = SET_VRING_KICK,
        .stop = STOP_RING, .starts = true,
    },

    /* A log ends with its migration, and the IOTLB is a cache */
    [SET_LOG_BASE] = { SETTING },
    [IOTLB_MSG] = { SETTING, .repeats = true },
    [SET_LOG_FD] = { ACTION },
    [SEND_RARP] = { ACTION },
    [RESET_OWNER] = { ACTION },
    /* The incoming migration has ended before the next one starts */
    [POSTCOPY_ADVISE] = { ACTION },
    [POSTCOPY_LISTEN] = { ACTION },
    [POSTCOPY_END] = { ACTION },
};

static const RequestInfo *request_info(const WireMessage *msg)
{
    static const RequestInfo untracked;

    return msg->request < ARRAY_SIZE(requests) ? &requests[msg->request] :
                                                 &untracked;
}

/* The value that a message sets or asks for, or NULL if it is more */
static SessionValue *message_value(VhostUserSession *s,
                                   const WireMessage *msg)
{
    size_t offset = request_info(msg)->value;

    return offset ? (void *)s + offset : NULL;
}

/* The number that is a message's payload */
static uint64_t message_u64(const WireMessage *msg)
{
    return msg->size >= sizeof(msg->u64) ? msg->u64 : 0;
}

/* Returns the ring index in a message, or -1 if it is not about one ring. */
static int ring_index(const WireMessage *msg)
{
    RingPlace place = request_info(msg)->ring;

    if (place == RING_LOW_BITS) {
        return msg->u64 & RING_INDEX_MASK;
    }
    return place == RING_FIRST ?
           MIN(msg->ring.index, VHOST_USER_SESSION_RINGS) : -1;
}

static bool has_protocol_feature(const VhostUserSession *s, unsigned bit)
{
    return s->protocol_features.u64 & BIT_ULL(bit);
}

static bool has_feature(const VhostUserSession *s, unsigned bit)
{
    return s->features.u64 & BIT_ULL(bit);
}

/*
 * Files
 */

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

/*
 * Replace @fd by a copy of @from. On EMFILE the device goes on working, but
 * vhost_user_session_check() fails from then on.
 */
static void keep_fd(VhostUserSession *s, int *fd, int from)
{
    close_fd(fd);
    if (from < 0) {
        return;
    }
    *fd = qemu_dup(from);
    if (*fd < 0) {
        s->file_error = errno;
    }
}

static bool same_inode(int a, int b)
{
    struct stat sa, sb;

    return a >= 0 && b >= 0 && !fstat(a, &sa) && !fstat(b, &sb) &&
           sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

/*
 * Rings
 */

SessionRing *session_grow_rings(VhostUserSession *s, unsigned n)
{
    if (n > s->nrings) {
        s->ring = g_renew(SessionRing, s->ring, n);
        for (unsigned i = s->nrings; i < n; i++) {
            s->ring[i] = (SessionRing) {
                .kick = -1, .call = -1, .err = -1,
                .lent_kick = -1, .lent_call = -1, .lent_err = -1,
            };
        }
        s->nrings = n;
    }
    return &s->ring[n - 1];
}

static bool any_ring_runs(const VhostUserSession *s)
{
    for (unsigned i = 0; i < s->nrings; i++) {
        if (s->ring[i].running) {
            return true;
        }
    }
    return false;
}

static void forget_stopped_ring(SessionRing *ring)
{
    ring->running = false;
    ring->num_known = false;
    ring->base_known = false;
    ring->addr_known = false;
    ring->call_known = false;
    close_fd(&ring->kick);
    close_fd(&ring->call);
    ring->lent_kick = -1;
    ring->lent_call = -1;
    ring->rewind = false;
}

/* Returns the ring that a message is about, or NULL. Creates a new ring. */
static SessionRing *message_ring(VhostUserSession *s, const WireMessage *msg)
{
    int index = ring_index(msg);

    if (index < 0 || index == VHOST_USER_SESSION_RINGS) {
        return NULL;
    }
    return session_grow_rings(s, index + 1);
}

/* Was a message like this sent for the ring since it last stopped? */
static bool *ring_known(SessionRing *ring, const WireMessage *msg)
{
    return (void *)ring + request_info(msg)->known;
}

/* The file of a ring that a message with a file sets */
static int *ring_file(SessionRing *ring, const WireMessage *msg)
{
    return (void *)ring + request_info(msg)->file;
}

/*
 * Memory
 */

static bool same_addresses(const SessionRegion *region, const WireRegion *wire)
{
    return region->guest_addr == wire->guest_addr &&
           region->size == wire->size;
}

static bool same_place(const SessionRegion *region, const WireRegion *wire,
                       int fd)
{
    struct stat st;

    return same_addresses(region, wire) &&
           region->offset == wire->offset &&
           !fstat(fd, &st) &&
           region->dev == st.st_dev && region->ino == st.st_ino;
}

static SessionRegion *find_place(VhostUserSession *s, const WireRegion *wire,
                                 int fd)
{
    for (unsigned i = 0; i < s->nregions; i++) {
        if (same_place(&s->region[i], wire, fd)) {
            return &s->region[i];
        }
    }
    return NULL;
}

static SessionRegion *find_local(VhostUserSession *s, uint64_t addr)
{
    for (unsigned i = 0; i < s->nregions; i++) {
        SessionRegion *region = &s->region[i];

        if (region->mapped && addr - region->local < region->size) {
            return region;
        }
    }
    return NULL;
}

static uint64_t name_of(VhostUserSession *s, uint64_t addr)
{
    SessionRegion *region = find_local(s, addr);

    return region ? region->name + (addr - region->local) : addr;
}

bool session_names_clash(const SessionRegion *a, const SessionRegion *b)
{
    bool aliases = a->dev == b->dev && a->ino == b->ino &&
                   a->name - a->offset == b->name - b->offset;

    return ranges_overlap(a->name, a->size, b->name, b->size) && !aliases;
}

bool session_valid_region(uint64_t name, uint64_t size)
{
    return size && size <= INT64_MAX && name <= INT64_MAX - size;
}

/*
 * Returns the name for a new region: its user address, unless the range of
 * names from there overlaps that of an older region. Back-ends look up
 * addresses in the ranges of all regions, so the ranges must not overlap,
 * except where they are aliases of the same memory.
 */
static uint64_t free_name(const SessionRegion *region, unsigned n,
                          const WireRegion *wire, int fd)
{
    SessionRegion new = {
        .size = wire->size,
        .offset = wire->offset,
        .name = wire->user_addr,
    };
    struct stat st;

    if (!fstat(fd, &st)) {
        new.dev = st.st_dev;
        new.ino = st.st_ino;
    }
    for (unsigned i = 0; i < n; i++) {
        if (session_names_clash(&region[i], &new)) {
            new.name = ROUND_UP(region[i].name + region[i].size,
                                qemu_real_host_page_size());
            i = -1;     /* compare with all regions again */
        }
    }
    return new.name;
}

/*
 * The back-end maps the region in @wire, whose user address is the region's
 * name. This QEMU has the region at @local.
 */
static void add_region(VhostUserSession *s, const WireRegion *wire,
                       uint64_t local, int fd)
{
    struct stat st;

    if (s->nregions == VHOST_USER_SESSION_REGIONS || fstat(fd, &st) < 0 ||
        !session_valid_region(wire->user_addr, wire->size)) {
        s->untracked = ADD_MEM_REG;
        return;
    }
    s->region = g_renew(SessionRegion, s->region, s->nregions + 1);
    s->region[s->nregions++] = (SessionRegion) {
        .guest_addr = wire->guest_addr,
        .size = wire->size,
        .offset = wire->offset,
        .dev = st.st_dev,
        .ino = st.st_ino,
        .name = wire->user_addr,
        .local = local,
        .mapped = true,
    };
}

static void remove_region(VhostUserSession *s, SessionRegion *region)
{
    unsigned i = region - s->region;

    memmove(region, region + 1, (s->nregions - i - 1) * sizeof(*region));
    s->nregions--;
}

/*
 * Does a region of a new table inherit the name of an old region? If our
 * device has sent the old region, the same region inherits its name while
 * rings run. If another QEMU has sent the old region, any region at the same
 * guest address inherits its name, because libvhost-user before QEMU 9.0 also
 * looks up the addresses of stopped rings.
 */
static bool inherits(const SessionRegion *old, const WireRegion *wire, int fd,
                     bool rings_run)
{
    return old->mapped ? rings_run && same_place(old, wire, fd) :
                         same_addresses(old, wire);
}

/*
 * Replace all regions by those of a new table. Regions that inherit no name
 * get this QEMU's addresses as their names.
 */
static void set_table(VhostUserSession *s, WireMessage *msg, const int *fds)
{
    g_autofree SessionRegion *old = s->region;
    unsigned nold = s->nregions;
    bool rings_run = any_ring_runs(s);
    unsigned n = MIN(msg->table.n, TABLE_REGIONS);

    s->region = NULL;
    s->nregions = 0;

    /* First the inherited names, so that no new region gets one of them */
    for (int pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < n; i++) {
            WireRegion *wire = &msg->table.region[i];
            uint64_t local = wire->user_addr;
            const SessionRegion *same = NULL;

            for (unsigned j = 0; j < nold && !same; j++) {
                same = inherits(&old[j], wire, fds[i], rings_run) ? &old[j] :
                                                                    NULL;
            }
            if ((same ? 0 : 1) != pass) {
                continue;
            }
            wire->user_addr = same ? same->name :
                              free_name(s->region, s->nregions, wire, fds[i]);
            add_region(s, wire, local, fds[i]);
        }
    }
}

/*
 * Our device sends the region in @wire. If another QEMU has already sent this
 * region, note our address of it and return true; otherwise return false.
 */
static bool map_region(VhostUserSession *s, const WireRegion *wire, int fd)
{
    SessionRegion *region = find_place(s, wire, fd);

    if (!region || region->mapped) {
        return false;
    }
    region->local = wire->user_addr;
    region->mapped = true;
    return true;
}

/*
 * With postcopy, the front-end sends a table or region, gets the reply, and
 * acknowledges it by another message of the same type, without a region.
 */
static bool acknowledges_postcopy(const WireMessage *msg, size_t nfds)
{
    return (msg->request == SET_MEM_TABLE || msg->request == ADD_MEM_REG) &&
           msg->size == sizeof(msg->u64) && !nfds;
}

static void record_table(VhostUserSession *s, WireMessage *msg,
                         const int *fds, size_t nfds)
{
    if (acknowledges_postcopy(msg, nfds)) {
        return;
    }
    if (msg->table.n == nfds) {
        set_table(s, msg, fds);
    } else {
        s->untracked = msg->request;
    }
}

static void record_new_region(VhostUserSession *s, WireMessage *msg,
                              const int *fds, size_t nfds)
{
    WireRegion *wire = &msg->slot.region;
    uint64_t local = wire->user_addr;

    if (acknowledges_postcopy(msg, nfds)) {
        return;
    }
    if (nfds != 1) {
        s->untracked = msg->request;
        return;
    }
    wire->user_addr = free_name(s->region, s->nregions, wire, fds[0]);
    add_region(s, wire, local, fds[0]);
}

static void record_removed_region(VhostUserSession *s, WireMessage *msg)
{
    WireRegion *wire = &msg->slot.region;

    for (unsigned i = 0; i < s->nregions; i++) {
        SessionRegion *region = &s->region[i];

        if (region->mapped && region->local == wire->user_addr &&
            same_addresses(region, wire)) {
            wire->user_addr = region->name;
            remove_region(s, region);
            return;
        }
    }
}

/* Replace our user addresses of rings and of the IOTLB by names. */
static void translate_addresses(VhostUserSession *s, WireMessage *msg)
{
    /* With an IOMMU, SET_VRING_ADDR has guest addresses (IOVAs) */
    if (msg->request == SET_VRING_ADDR &&
        !has_feature(s, VIRTIO_F_IOMMU_PLATFORM)) {
        msg->ring_addr.desc_user_addr =
            name_of(s, msg->ring_addr.desc_user_addr);
        msg->ring_addr.used_user_addr =
            name_of(s, msg->ring_addr.used_user_addr);
        msg->ring_addr.avail_user_addr =
            name_of(s, msg->ring_addr.avail_user_addr);
    } else if (msg->request == IOTLB_MSG &&
               msg->iotlb.type == VHOST_IOTLB_UPDATE) {
        msg->iotlb.uaddr = name_of(s, msg->iotlb.uaddr);
    }
}

/*
 * The back-end's current state
 */

/* Does the config space of @size bytes contain what a message is about? */
static bool config_contains(uint32_t size, const WireMessage *msg)
{
    return msg->config.offset <= size &&
           msg->config.size <= size - msg->config.offset;
}

/*
 * A message is about to be sent to the back-end: replace its addresses by
 * names, and record the state that it sets.
 */
static void session_apply(VhostUserSession *s, WireMessage *msg,
                          const int *fds, size_t nfds)
{
    RequestKind kind = request_info(msg)->kind;
    SessionValue *value = message_value(s, msg);
    SessionRing *ring = message_ring(s, msg);
    int fd = nfds ? fds[0] : -1;

    translate_addresses(s, msg);

    if (kind == UNTRACKED || (ring_index(msg) >= 0 && !ring)) {
        s->untracked = msg->request;
        return;
    }
    if (kind == SETTING && value) {
        *value = (SessionValue) { true, message_u64(msg) };
    }
    if (ring && msg->request != GET_VRING_BASE) {
        *ring_known(ring, msg) = true;
    }

    switch (msg->request) {
    case SET_STATUS:
        /* Status 0 is a reset: the device negotiates features again */
        s->features.known &= s->status.u64 != 0;
        break;
    case SET_VRING_NUM:
        ring->num = msg->ring.num;
        break;
    case SET_VRING_BASE:
        ring->base = msg->ring.num;
        break;
    case SET_VRING_ENABLE:
        ring->enabled = msg->ring.num;
        break;
    case SET_VRING_ADDR:
        ring->flags = msg->ring_addr.flags;
        ring->desc = msg->ring_addr.desc_user_addr;
        ring->used = msg->ring_addr.used_user_addr;
        ring->avail = msg->ring_addr.avail_user_addr;
        ring->log = msg->ring_addr.log_guest_addr;
        break;
    case SET_VRING_KICK:
    case SET_VRING_CALL:
    case SET_VRING_ERR:
        keep_fd(s, ring_file(ring, msg), fd);
        break;
    case GET_VRING_BASE:
        s->stopping = msg->ring.index;
        forget_stopped_ring(ring);
        break;
    case SET_INFLIGHT_FD:
        s->inflight = msg->inflight;
        keep_fd(s, &s->inflight_fd, fd);
        break;
    case SET_CONFIG:
        if (config_contains(s->config_size, msg)) {
            memcpy(s->config + msg->config.offset, msg->config.data,
                   msg->config.size);
        }
        break;
    case RESET_OWNER:
    case RESET_DEVICE:
        for (unsigned i = 0; i < s->nrings; i++) {
            forget_stopped_ring(&s->ring[i]);
            s->ring[i].enabled_known = false;
        }
        break;
    case SET_MEM_TABLE:
        record_table(s, msg, fds, nfds);
        break;
    case ADD_MEM_REG:
        record_new_region(s, msg, fds, nfds);
        break;
    case REM_MEM_REG:
        record_removed_region(s, msg);
        break;
    }
}

/* Record a part of the config space that borders on the part that is known. */
static void record_config(VhostUserSession *s, const WireMessage *reply)
{
    if (reply->size == WIRE_CONFIG_HEADER + reply->config.size &&
        reply->config.offset <= s->config_size &&
        config_contains(VHOST_USER_SESSION_CONFIG, reply)) {
        memcpy(s->config + reply->config.offset, reply->config.data,
               reply->config.size);
        s->config_size = MAX(s->config_size,
                             reply->config.offset + reply->config.size);
    }
}

void vhost_user_session_read(VhostUserSession *s, const void *reply)
{
    const WireMessage *msg = reply;
    SessionValue *value = message_value(s, msg);

    if (msg->flags != FLAGS_OF_REPLY) {
        return;
    }
    if (request_info(msg)->kind == QUESTION && value) {
        *value = (SessionValue) { true, message_u64(msg) };
    }
    switch (msg->request) {
    case GET_VRING_BASE:
        if (msg->size == sizeof(msg->ring) &&
            msg->ring.index == s->stopping && s->stopping < s->nrings) {
            s->ring[s->stopping].base = msg->ring.num;
        }
        break;
    case GET_INFLIGHT_FD:
        /* Size 0: the back-end has no inflight region for any device */
        s->no_inflight |= !msg->inflight.size;
        break;
    case GET_CONFIG:
        record_config(s, msg);
        break;
    }
}

/*
 * Messages that the session sends itself
 */

static bool wants_reply(const VhostUserSession *s, const WireMessage *msg)
{
    return msg->flags & FLAGS_NEED_REPLY ||
           (msg->request == SET_LOG_BASE &&
            has_protocol_feature(s, VHOST_USER_PROTOCOL_F_LOG_SHMFD));
}

static bool send_message(VhostUserSession *s, WireMessage *msg,
                         const int *fds, size_t nfds, Error **errp)
{
    trace_vhost_user_session_send(msg->request);
    session_apply(s, msg, fds, nfds);
    return s->ops->send(s->opaque, msg, WIRE_HEADER + msg->size, fds, nfds,
                        errp);
}

static bool receive_reply(VhostUserSession *s, unsigned request,
                          WireMessage *reply, Error **errp)
{
    if (!s->ops->receive(s->opaque, reply, sizeof(*reply), errp)) {
        return false;
    }
    if (reply->request != request) {
        error_setg(errp, "The vhost-user back-end replied to request %" PRIu32
                   " instead of %u", reply->request, request);
        return false;
    }
    if (reply->flags != FLAGS_OF_REPLY) {
        error_setg(errp, "The vhost-user back-end's reply to request %u has "
                   "the flags 0x%" PRIx32 " instead of 0x%x", request,
                   reply->flags, FLAGS_OF_REPLY);
        return false;
    }
    return true;
}

static bool check_size(const WireMessage *reply, size_t size, Error **errp)
{
    if (reply->size != size) {
        error_setg(errp, "The vhost-user back-end's reply to request %" PRIu32
                   " has %" PRIu32 " bytes instead of %zu", reply->request,
                   reply->size, size);
        return false;
    }
    return true;
}

static bool check_reply(VhostUserSession *s, const WireMessage *msg,
                        Error **errp)
{
    WireMessage reply = { 0 };

    if (!wants_reply(s, msg)) {
        return true;
    }
    if (!receive_reply(s, msg->request, &reply, errp)) {
        return false;
    }
    if (!(msg->flags & FLAGS_NEED_REPLY)) {
        return true;        /* SET_LOG_BASE: any reply will do */
    }
    if (!check_size(&reply, sizeof(reply.u64), errp)) {
        return false;
    }
    if (reply.u64) {
        error_setg(errp, "The vhost-user back-end refused request %" PRIu32,
                   msg->request);
        return false;
    }
    return true;
}

static bool send_and_check(VhostUserSession *s, WireMessage *msg,
                           const int *fds, size_t nfds, Error **errp)
{
    return send_message(s, msg, fds, nfds, errp) && check_reply(s, msg, errp);
}

static bool stop_ring(VhostUserSession *s, unsigned index, int *sent,
                      Error **errp)
{
    SessionRing *ring = &s->ring[index];
    WireMessage msg = {
        .flags = FLAGS_VERSION,
        .size = sizeof(msg.ring),
        .ring.index = index,
    };
    WireMessage reply = { 0 };

    if (has_feature(s, F_PROTOCOL_FEATURES) &&
        (!ring->enabled_known || ring->enabled)) {
        msg.request = SET_VRING_ENABLE;
        if (has_protocol_feature(s, VHOST_USER_PROTOCOL_F_REPLY_ACK)) {
            msg.flags |= FLAGS_NEED_REPLY;
        }
        if (!send_and_check(s, &msg, NULL, 0, errp)) {
            return false;
        }
        (*sent)++;
        msg.flags = FLAGS_VERSION;
    }

    msg.request = GET_VRING_BASE;
    if (!send_message(s, &msg, NULL, 0, errp) ||
        !receive_reply(s, GET_VRING_BASE, &reply, errp) ||
        !check_size(&reply, sizeof(reply.ring), errp)) {
        return false;
    }
    if (reply.ring.index != index) {
        error_setg(errp, "The vhost-user back-end stopped ring %" PRIu32
                   " instead of ring %u", reply.ring.index, index);
        return false;
    }
    (*sent)++;
    ring->base = reply.ring.num;
    return true;
}

/* Before a message is sent directly, stop rings that a reset left running. */
static bool stop_rewound_rings(VhostUserSession *s)
{
    Error *err = NULL;
    int sent = 0;

    for (unsigned i = 0; i < s->nrings; i++) {
        if (s->ring[i].rewind && !stop_ring(s, i, &sent, &err)) {
            error_report_err(err);
            return false;
        }
    }
    return true;
}

/*
 * Remove the regions that our device has not sent: they belong to the source,
 * and our device sends no REM_MEM_REG for them.
 */
static bool remove_lost_regions(VhostUserSession *s, int *sent, Error **errp)
{
    WireMessage msg = {
        .request = REM_MEM_REG,
        .flags = FLAGS_VERSION,
        .size = sizeof(msg.slot),
    };

    if (!has_protocol_feature(s,
                              VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)) {
        return true;
    }
    if (has_protocol_feature(s, VHOST_USER_PROTOCOL_F_REPLY_ACK)) {
        msg.flags |= FLAGS_NEED_REPLY;
    }
    for (unsigned i = s->nregions; i-- > 0; ) {
        SessionRegion region = s->region[i];

        if (region.mapped) {
            continue;
        }
        msg.slot.region = (WireRegion) {
            .guest_addr = region.guest_addr,
            .size = region.size,
            .user_addr = region.name,
        };
        remove_region(s, &s->region[i]);
        trace_vhost_user_session_send(msg.request);
        if (!s->ops->send(s->opaque, &msg, WIRE_HEADER + msg.size, NULL, 0,
                          errp) ||
            !check_reply(s, &msg, errp)) {
            return false;
        }
        (*sent)++;
    }
    return true;
}

/*
 * Messages of a held session
 */

static void held_message_free(HeldMessage *held)
{
    for (size_t i = 0; i < held->nfds; i++) {
        close_fd(&held->fds[i]);
    }
    g_free(held->msg);
    g_free(held);
}

static void drop_pending(VhostUserSession *s)
{
    HeldMessage *held;

    while ((held = g_queue_pop_head(&s->pending))) {
        held_message_free(held);
    }
}

static const WireMessage *find_pending(const VhostUserSession *s,
                                       unsigned request, unsigned ring)
{
    for (GList *l = s->pending.tail; l; l = l->prev) {
        const WireMessage *msg = ((HeldMessage *)l->data)->msg;

        if (msg->request == request &&
            (ring_index(msg) < 0 || ring_index(msg) == (int)ring)) {
            return msg;
        }
    }
    return NULL;
}

static int hold_message(VhostUserSession *s, const WireMessage *msg,
                        const int *fds, size_t nfds)
{
    SessionRing *ring = message_ring(s, msg);
    HeldMessage *held;

    if (nfds > TABLE_REGIONS || (ring_index(msg) >= 0 && !ring) ||
        msg->size > sizeof(*msg) - WIRE_HEADER) {
        return -EINVAL;
    }
    held = g_new0(HeldMessage, 1);
    held->msg = g_new0(WireMessage, 1);
    memcpy(held->msg, msg, WIRE_HEADER + msg->size);
    for (; held->nfds < nfds; held->nfds++) {
        held->fds[held->nfds] = qemu_dup(fds[held->nfds]);
        if (held->fds[held->nfds] < 0) {
            int err = -errno;

            held_message_free(held);
            return err;
        }
    }
    if (nfds && msg->request == SET_VRING_KICK) {
        held->same_file = fds[0] == ring->lent_kick;
    } else if (nfds && msg->request == SET_VRING_CALL) {
        held->same_file = fds[0] == ring->lent_call;
    } else if (nfds && msg->request == SET_VRING_ERR) {
        held->same_file = fds[0] == ring->lent_err;
    }
    g_queue_push_tail(&s->pending, held);
    return 0;
}

static void start_reply(VhostUserSession *s, unsigned request, uint32_t size)
{
    s->reply = (WireMessage) {
        .request = request,
        .flags = FLAGS_OF_REPLY,
        .size = size,
    };
    s->has_reply = true;
}

static void reply_u64(VhostUserSession *s, unsigned request, uint64_t u64)
{
    start_reply(s, request, sizeof(s->reply.u64));
    s->reply.u64 = u64;
}

/* Answer with the config space as the device's stored messages change it. */
static void reply_config(VhostUserSession *s, const WireMessage *msg)
{
    uint8_t config[VHOST_USER_SESSION_CONFIG];

    memcpy(config, s->config, sizeof(config));
    for (GList *l = s->pending.head; l; l = l->next) {
        const WireMessage *set = ((HeldMessage *)l->data)->msg;

        if (set->request == SET_CONFIG &&
            config_contains(s->config_size, set)) {
            memcpy(config + set->config.offset, set->config.data,
                   set->config.size);
        }
    }
    start_reply(s, msg->request, WIRE_CONFIG_HEADER + msg->config.size);
    s->reply.config.offset = msg->config.offset;
    s->reply.config.size = msg->config.size;
    memcpy(s->reply.config.data, config + msg->config.offset,
           msg->config.size);
}

/* Answer in the back-end's place. Returns false if the answer is unknown. */
static bool answer_request(VhostUserSession *s, const WireMessage *msg)
{
    const SessionValue *value = message_value(s, msg);
    const WireMessage *pending;
    SessionRing *ring;

    switch (msg->request) {
    case GET_PROTOCOL_FEATURES:
        /* Only a new connection can negotiate other protocol features */
        if (s->protocol_features.known) {
            value = &s->protocol_features;
        }
        /* fall through */
    case GET_FEATURES:
    case GET_QUEUE_NUM:
    case GET_MAX_MEM_SLOTS:
        if (!value->known) {
            return false;
        }
        reply_u64(s, msg->request, value->u64);
        return true;

    case GET_STATUS:
        pending = find_pending(s, SET_STATUS, 0);
        if (!pending && !value->known) {
            return false;
        }
        reply_u64(s, msg->request, pending ? pending->u64 : value->u64);
        return true;

    case GET_CONFIG:
        if (!config_contains(s->config_size, msg)) {
            return false;
        }
        reply_config(s, msg);
        return true;

    case GET_INFLIGHT_FD:
        close_fd(&s->reply_fd);
        s->reply_fd = s->inflight_fd < 0 ? -1 : qemu_dup(s->inflight_fd);
        if (s->reply_fd < 0 && !s->no_inflight) {
            return false;
        }
        start_reply(s, msg->request, sizeof(s->inflight));
        if (s->reply_fd >= 0) {
            s->reply.inflight = s->inflight;
        }
        return true;

    case GET_VRING_BASE:
        ring = message_ring(s, msg);
        if (!ring) {
            return false;
        }
        pending = find_pending(s, SET_VRING_BASE, msg->ring.index);
        start_reply(s, msg->request, sizeof(s->reply.ring));
        s->reply.ring.index = msg->ring.index;
        s->reply.ring.num = pending ? pending->ring.num : ring->base;
        return true;

    default:
        return false;
    }
}

/*
 * A device that was not started when this QEMU took the connection over sends
 * its memory regions later. Regions of the source that it does not send do not
 * exist any more, and must be removed before new regions take their place.
 */
static int make_room(VhostUserSession *s, const WireMessage *msg)
{
    Error *err = NULL;
    int sent = 0;

    if ((msg->request == ADD_MEM_REG || msg->request == SET_VRING_NUM) &&
        !any_ring_runs(s) && !remove_lost_regions(s, &sent, &err)) {
        error_report_err(err);
        return -EIO;
    }
    return 0;
}

/* Returns 1 if the message need not be sent, 0 if it must be sent, or -errno */
static int withhold(VhostUserSession *s, const WireMessage *msg,
                    const int *fds, size_t nfds)
{
    int ret;

    if (request_info(msg)->kind == QUESTION && answer_request(s, msg)) {
        trace_vhost_user_session_answer(msg->request);
        return 1;
    }
    if (request_info(msg)->kind == SETTING) {
        if (msg->request == GET_VRING_BASE && !answer_request(s, msg)) {
            return -EINVAL;
        }
        ret = hold_message(s, msg, fds, nfds);
        if (ret < 0) {
            return ret;
        }
        if (msg->request != GET_VRING_BASE && wants_reply(s, msg)) {
            reply_u64(s, msg->request, 0);
        }
        trace_vhost_user_session_withhold(msg->request);
        return 1;
    }
    if (!s->owned) {
        return -EBUSY;
    }
    return stop_rewound_rings(s) ? 0 : -EIO;
}

int vhost_user_session_write(VhostUserSession *s, void *message,
                             const int *fds, size_t nfds)
{
    WireMessage *msg = message;
    int ret;

    s->has_reply = false;
    if (msg->request == ADD_MEM_REG && nfds == 1 &&
        map_region(s, &msg->slot.region, fds[0])) {
        if (wants_reply(s, msg)) {
            reply_u64(s, msg->request, 0);
        }
        return 1;
    }
    if (s->held) {
        ret = withhold(s, msg, fds, nfds);
    } else {
        ret = make_room(s, msg);
    }
    if (!ret) {
        session_apply(s, msg, fds, nfds);
    }
    return ret;
}

bool vhost_user_session_has_replies(const VhostUserSession *s)
{
    /* Every device asks for the features first */
    return s->offered_features.known;
}

bool vhost_user_session_answer(VhostUserSession *s, void *msg, size_t size)
{
    size_t len = WIRE_HEADER + s->reply.size;

    if (!s->has_reply) {
        return false;
    }
    s->has_reply = false;
    assert(len <= size);
    memcpy(msg, &s->reply, len);
    return true;
}

bool vhost_user_session_has_inflight(const VhostUserSession *s)
{
    return s->inflight_fd >= 0;
}

int vhost_user_session_answer_fd(VhostUserSession *s)
{
    int fd = s->reply_fd;

    s->reply_fd = -1;
    return fd;
}

/*
 * The commit
 */

/* The request that represents the state that a message sets */
static unsigned state_of(const WireMessage *msg)
{
    return request_info(msg)->same_state ?: msg->request;
}

/* Drop messages without an effect, because a later one sets the same state. */
static void drop_overridden(VhostUserSession *s)
{
    /* By ring, BIT_ULL(request) of later messages; [0]: not about a ring */
    g_autofree uint64_t *later = g_new0(uint64_t, s->nrings + 1);

    for (GList *l = s->pending.tail, *prev; l; l = prev) {
        HeldMessage *held = l->data;
        uint64_t bit = BIT_ULL(state_of(held->msg));
        int i = ring_index(held->msg) + 1;

        prev = l->prev;
        if (later[i] & bit) {
            held_message_free(held);
            g_queue_delete_link(&s->pending, l);
        } else if (!request_info(held->msg)->repeats) {
            later[i] |= bit;
        }
    }
}

static void append_all(GQueue *to, GQueue *from)
{
    GList *l;

    while ((l = g_queue_pop_head_link(from))) {
        g_queue_push_tail_link(to, l);
    }
}

/*
 * Let the messages that start rings follow those that set them up. A device
 * may have changed the set-up after it had started the rings: with another
 * call eventfd when it unmasked a vector, with the flags of a log when a
 * migration began. The back-end gets the last set-up only, before it starts.
 */
static void start_at_end(VhostUserSession *s)
{
    GQueue sorted = G_QUEUE_INIT, starts = G_QUEUE_INIT;
    GList *l;

    while ((l = g_queue_pop_head_link(&s->pending))) {
        const WireMessage *msg = ((HeldMessage *)l->data)->msg;

        if (msg->request == RESET_DEVICE) {
            append_all(&sorted, &starts);
        }
        g_queue_push_tail_link(request_info(msg)->starts ? &starts : &sorted,
                               l);
    }
    append_all(&sorted, &starts);
    s->pending = sorted;
}

static bool table_unchanged(VhostUserSession *s, const HeldMessage *held)
{
    const WireMessage *msg = held->msg;

    if (msg->table.n != s->nregions || msg->table.n != held->nfds) {
        return false;
    }
    for (unsigned i = 0; i < msg->table.n; i++) {
        if (!find_place(s, &msg->table.region[i], held->fds[i])) {
            return false;
        }
    }
    return true;
}

/* Is the back-end already in the state that a message sets? */
static bool is_known(VhostUserSession *s, const HeldMessage *held)
{
    const WireMessage *msg = held->msg;
    const SessionValue *value = message_value(s, msg);
    SessionRing *ring = message_ring(s, msg);

    if (value) {
        return value->known && value->u64 == message_u64(msg);
    }
    if (msg->request == GET_VRING_BASE) {
        return !ring->running;
    }
    if (ring && !*ring_known(ring, msg)) {
        return false;
    }

    switch (msg->request) {
    case SET_VRING_NUM:
        return ring->num == msg->ring.num;
    case SET_VRING_BASE:
        /* While a ring runs, only the back-end knows its index */
        return ring->running || ring->base == msg->ring.num;
    case SET_VRING_ENABLE:
        return ring->enabled == msg->ring.num;
    case SET_VRING_ADDR: {
        WireMessage named = *msg;

        translate_addresses(s, &named);
        return ring->flags == named.ring_addr.flags &&
               ring->desc == named.ring_addr.desc_user_addr &&
               ring->used == named.ring_addr.used_user_addr &&
               ring->avail == named.ring_addr.avail_user_addr &&
               ring->log == named.ring_addr.log_guest_addr;
    }
    case SET_VRING_KICK:
    case SET_VRING_CALL:
    case SET_VRING_ERR:
        return held->same_file ||
               (!held->nfds && *ring_file(ring, msg) < 0);
    case SET_MEM_TABLE:
        return table_unchanged(s, held);
    case SET_INFLIGHT_FD:
        return held->nfds && same_inode(s->inflight_fd, held->fds[0]) &&
               s->inflight.offset == msg->inflight.offset &&
               s->inflight.size == msg->inflight.size &&
               s->inflight.queues == msg->inflight.queues &&
               s->inflight.queue_size == msg->inflight.queue_size;
    default:
        return false;
    }
}

/* Record the addresses that our device has sent for regions of its table. */
static void match_table(VhostUserSession *s)
{
    for (GList *l = s->pending.head; l; l = l->next) {
        const HeldMessage *held = l->data;
        const WireMessage *msg = held->msg;

        if (msg->request != SET_MEM_TABLE || msg->table.n != held->nfds) {
            continue;
        }
        for (unsigned i = 0; i < held->nfds; i++) {
            map_region(s, &msg->table.region[i], held->fds[i]);
        }
    }
}

/* Logging can be switched on and off while rings run. */
static bool only_switches_log(const VhostUserSession *s,
                              const WireMessage *msg)
{
    return msg->request == SET_FEATURES &&
           !((message_u64(msg) ^ s->features.u64) &
             ~BIT_ULL(VHOST_F_LOG_ALL));
}

/* Find the running rings that must be stopped for what the device requests. */
static void find_changed_rings(VhostUserSession *s, bool *changed)
{
    bool all = false;

    for (GList *l = s->pending.head; l; l = l->next) {
        const HeldMessage *held = l->data;
        StopRule stop = request_info(held->msg)->stop;

        if (stop == STOP_NONE || is_known(s, held) ||
            only_switches_log(s, held->msg)) {
            continue;
        }
        if (stop == STOP_RING) {
            changed[ring_index(held->msg)] = true;
        } else {
            all = true;
        }
    }
    for (unsigned i = 0; i < s->nrings; i++) {
        changed[i] = s->ring[i].running &&
                     (changed[i] || all || s->ring[i].rewind);
    }
}

/* Let rings continue at the index where the back-end has stopped. */
static void set_pending_bases(VhostUserSession *s, const bool *stopped)
{
    for (GList *l = s->pending.head; l; l = l->next) {
        WireMessage *msg = ((HeldMessage *)l->data)->msg;

        if (msg->request == SET_VRING_BASE && stopped[msg->ring.index]) {
            msg->ring.num = s->ring[msg->ring.index].base;
        }
    }
}

static bool stop_changed_rings(VhostUserSession *s, int *sent, Error **errp)
{
    g_autofree bool *stop = g_new0(bool, s->nrings);

    find_changed_rings(s, stop);
    for (unsigned i = 0; i < s->nrings; i++) {
        bool rewind = s->ring[i].rewind;

        if (stop[i] && !stop_ring(s, i, sent, errp)) {
            return false;
        }
        if (rewind) {
            /* The ring starts at the index that the device has requested */
            stop[i] = false;
        }
    }
    set_pending_bases(s, stop);
    return true;
}

/* Has our device sent any memory region? */
static bool named_memory(const VhostUserSession *s)
{
    for (unsigned i = 0; i < s->nregions; i++) {
        if (s->region[i].mapped) {
            return true;
        }
    }
    return false;
}

/*
 * If no ring runs, and the device keeps none of the back-end's regions, replace
 * all ADD_MEM_REG messages by one SET_MEM_TABLE. This is shorter. Moreover,
 * libvhost-user before QEMU 9.0 looks up the addresses of all rings, even of
 * stopped ones, before it adds a single region, and fails if they are in none
 * of its regions.
 */
static void turn_regions_into_table(VhostUserSession *s)
{
    HeldMessage *table;
    unsigned n = 0;

    for (GList *l = s->pending.head; l; l = l->next) {
        const HeldMessage *held = l->data;

        if (held->msg->request == ADD_MEM_REG && held->nfds == 1) {
            n++;
        } else if (held->msg->request == ADD_MEM_REG ||
                   held->msg->request == REM_MEM_REG) {
            return;
        }
    }
    if (!n || n > TABLE_REGIONS || !s->nregions || named_memory(s) ||
        any_ring_runs(s)) {
        return;
    }

    table = g_new0(HeldMessage, 1);
    table->msg = g_new0(WireMessage, 1);
    *table->msg = (WireMessage) {
        .request = SET_MEM_TABLE,
        .flags = FLAGS_VERSION,
        .size = offsetof(WireMessage, table.region[n]) - WIRE_HEADER,
        .table.n = n,
    };
    if (has_protocol_feature(s, VHOST_USER_PROTOCOL_F_REPLY_ACK)) {
        table->msg->flags |= FLAGS_NEED_REPLY;
    }
    for (GList *l = s->pending.head, *next; l; l = next) {
        HeldMessage *held = l->data;

        next = l->next;
        if (held->msg->request == ADD_MEM_REG) {
            table->msg->table.region[table->nfds] = held->msg->slot.region;
            table->fds[table->nfds++] = held->fds[0];
            held->nfds = 0;
            held_message_free(held);
            g_queue_delete_link(&s->pending, l);
        }
    }
    g_queue_push_head(&s->pending, table);
}

static bool send_pending(VhostUserSession *s, int *sent, Error **errp)
{
    HeldMessage *held;

    while ((held = g_queue_pop_head(&s->pending))) {
        bool ok = true;

        if (!is_known(s, held)) {
            ok = send_and_check(s, held->msg, held->fds, held->nfds, errp);
            (*sent)++;
        }
        held_message_free(held);
        if (!ok) {
            return false;
        }
    }
    return true;
}

static bool make_room_for_pending(VhostUserSession *s, int *sent,
                                  Error **errp)
{
    turn_regions_into_table(s);
    if (named_memory(s) || find_pending(s, ADD_MEM_REG, 0)) {
        return remove_lost_regions(s, sent, errp);
    }
    return true;
}

static void end_hold(VhostUserSession *s)
{
    drop_pending(s);
    for (unsigned i = 0; i < s->nrings; i++) {
        s->ring[i].lent_kick = -1;
        s->ring[i].lent_call = -1;
        s->ring[i].lent_err = -1;
        s->ring[i].rewind = false;
    }
    s->held = false;
    s->owned = true;
    s->has_reply = false;
    close_fd(&s->reply_fd);
}

int vhost_user_session_commit(VhostUserSession *s, Error **errp)
{
    int sent = 0;
    bool ok;

    if (!s->held || !s->owned) {
        error_setg(errp, "This QEMU does not own the connection of the "
                   "vhost-user back-end; use command 'cont' to start the VM");
        return -1;
    }

    drop_overridden(s);
    start_at_end(s);
    match_table(s);
    ok = stop_changed_rings(s, &sent, errp) &&
         make_room_for_pending(s, &sent, errp) &&
         send_pending(s, &sent, errp);
    end_hold(s);
    trace_vhost_user_session_commit(s, ok ? sent : -1);
    return ok ? sent : -1;
}

void vhost_user_session_hold(VhostUserSession *s)
{
    if (!s->held) {
        s->held = true;
        s->owned = true;
        trace_vhost_user_session_hold(s);
    }
}

bool vhost_user_session_held(const VhostUserSession *s)
{
    return s->held;
}

bool vhost_user_session_owned(const VhostUserSession *s)
{
    return !s->held || s->owned;
}

void vhost_user_session_own(VhostUserSession *s, bool owned)
{
    assert(s->held);
    s->owned = owned;
}

void vhost_user_session_rewind(VhostUserSession *s)
{
    if (!s->held) {
        return;
    }
    for (unsigned i = 0; i < s->nrings; i++) {
        s->ring[i].rewind = s->ring[i].running;
    }
    /* The device has forgotten the requests in the inflight region */
    close_fd(&s->inflight_fd);
}

/*
 * Rings, as the device sees them
 */

bool vhost_user_session_ring_running(const VhostUserSession *s, unsigned ring)
{
    return ring < s->nrings && s->ring[ring].running;
}

uint32_t vhost_user_session_ring_base(const VhostUserSession *s, unsigned ring)
{
    return ring < s->nrings ? s->ring[ring].base : 0;
}

static int lend(const VhostUserSession *s, int fd, int *lent)
{
    *lent = s->held && fd >= 0 ? qemu_dup(fd) : -1;
    return *lent;
}

/* A ring that was reset must be set up again with new files. */
static int lend_of_running(VhostUserSession *s, unsigned ring, int fd,
                           int *lent)
{
    return lend(s, s->ring[ring].rewind ? -1 : fd, lent);
}

int vhost_user_session_lend_kick(VhostUserSession *s, unsigned ring)
{
    return ring < s->nrings ?
           lend_of_running(s, ring, s->ring[ring].kick,
                           &s->ring[ring].lent_kick) : -1;
}

int vhost_user_session_lend_call(VhostUserSession *s, unsigned ring)
{
    return ring < s->nrings ?
           lend_of_running(s, ring, s->ring[ring].call,
                           &s->ring[ring].lent_call) : -1;
}

int vhost_user_session_lend_err(VhostUserSession *s, unsigned ring)
{
    return ring < s->nrings ?
           lend(s, s->ring[ring].err, &s->ring[ring].lent_err) : -1;
}

void vhost_user_session_kick(VhostUserSession *s)
{
    static const uint64_t one = 1;

    for (unsigned i = 0; i < s->nrings; i++) {
        int fd = s->ring[i].kick;

        /* EAGAIN: the counter is full, so a kick is pending already */
        if (fd >= 0 && RETRY_ON_EINTR(write(fd, &one, sizeof(one))) < 0 &&
            errno != EAGAIN) {
            warn_report("Cannot kick vhost-user ring %u: %s", i,
                        strerror(errno));
        }
    }
}

void vhost_user_session_set_channel(VhostUserSession *s, int fd)
{
    close_fd(&s->channel_fd);
    s->channel_fd = fd;
}

int vhost_user_session_take_channel(VhostUserSession *s)
{
    int fd = s->channel_fd;

    s->channel_fd = -1;
    return fd;
}

bool vhost_user_session_check(const VhostUserSession *s, Error **errp)
{
    if (s->untracked) {
        error_setg(errp, "QEMU could not record the effect of vhost-user "
                   "request %" PRIu32 "; turn parameter 'backend-transfer' "
                   "off", s->untracked);
        return false;
    }
    if (s->file_error) {
        error_setg_errno(errp, s->file_error, "QEMU could not keep a file of "
                         "the vhost-user back-end; start QEMU with a higher "
                         "limit of open files, or turn parameter "
                         "'backend-transfer' off");
        return false;
    }
    return true;
}

/*
 * Life cycle
 */

VhostUserSession *vhost_user_session_new(const VhostUserSessionOps *ops,
                                         void *opaque)
{
    VhostUserSession *s = g_new0(VhostUserSession, 1);

    s->ops = ops;
    s->opaque = opaque;
    s->inflight_fd = s->channel_fd = s->reply_fd = -1;
    g_queue_init(&s->pending);
    return s;
}

void vhost_user_session_reset(VhostUserSession *s)
{
    const VhostUserSession old = *s;

    end_hold(s);
    for (unsigned i = 0; i < s->nrings; i++) {
        close_fd(&s->ring[i].kick);
        close_fd(&s->ring[i].call);
        close_fd(&s->ring[i].err);
    }
    close_fd(&s->inflight_fd);
    close_fd(&s->channel_fd);
    g_free(s->ring);
    g_free(s->region);
    *s = (VhostUserSession) {
        .ops = old.ops,
        .opaque = old.opaque,
        .config_size = old.config_size,
        .inflight_fd = -1,
        .channel_fd = -1,
        .reply_fd = -1,
    };
    memcpy(s->config, old.config, sizeof(s->config));
}

void vhost_user_session_free(VhostUserSession *s)
{
    if (s) {
        vhost_user_session_reset(s);
        g_free(s);
    }
}

void vhost_user_session_begin(VhostUserSession *s)
{
    if (!s->held) {
        vhost_user_session_reset(s);
    }
}
