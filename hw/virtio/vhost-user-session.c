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
 * whichever QEMU owns the connection; see session_translate().
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

static bool has_protocol_feature(const VhostUserSession *s, unsigned bit)
{
    return s->value[SET_PROTOCOL_FEATURES] & BIT_ULL(bit);
}

static bool has_feature(const VhostUserSession *s, unsigned bit)
{
    return s->value[SET_FEATURES] & BIT_ULL(bit);
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
 * Replace @fd by a copy of @from. On EMFILE the device goes on working, but it
 * can no longer be handed over.
 */
static void keep_fd(VhostUserSession *s, unsigned request, int *fd, int from)
{
    close_fd(fd);
    if (from < 0) {
        return;
    }
    *fd = qemu_dup(from);
    if (*fd < 0) {
        s->untracked = request;
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
                .lent_kick = -1, .lent_call = -1,
            };
        }
        s->nrings = n;
    }
    return &s->ring[n - 1];
}

static bool any_ring_runs(const VhostUserSession *s)
{
    for (unsigned i = 0; i < s->nrings; i++) {
        if (ring_runs(&s->ring[i])) {
            return true;
        }
    }
    return false;
}

static void forget_stopped_ring(SessionRing *ring)
{
    ring->known &= BIT(SET_VRING_ENABLE) | BIT(SET_VRING_ERR);
    close_fd(&ring->kick);
    close_fd(&ring->call);
    ring->lent_kick = -1;
    ring->lent_call = -1;
    ring->rewind = false;
}

/* Returns the ring index in a message, or -1 if it is not about one ring. */
static int ring_index(const WireMessage *msg)
{
    switch (msg->request) {
    case SET_VRING_NUM:
    case SET_VRING_BASE:
    case GET_VRING_BASE:
    case SET_VRING_ENABLE:
        return MIN(msg->ring.index, VHOST_USER_SESSION_RINGS);
    case SET_VRING_ADDR:
        return MIN(msg->ring_addr.index, VHOST_USER_SESSION_RINGS);
    case SET_VRING_KICK:
    case SET_VRING_CALL:
    case SET_VRING_ERR:
        return msg->u64 & RING_INDEX_MASK;
    default:
        return -1;
    }
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

static int *ring_file(SessionRing *ring, unsigned request)
{
    switch (request) {
    case SET_VRING_KICK:
        return &ring->kick;
    case SET_VRING_CALL:
        return &ring->call;
    default:
        return &ring->err;
    }
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

bool session_valid_region(uint64_t name, uint64_t size)
{
    return size && size <= INT64_MAX && name <= INT64_MAX - size;
}

/*
 * Returns a name for a new region: @name, unless the range of names from there
 * overlaps that of an older region. Back-ends look up addresses in the ranges
 * of all regions, so the ranges must not overlap.
 */
static uint64_t free_name(const SessionRegion *region, unsigned n,
                          uint64_t name, uint64_t size)
{
    for (unsigned i = 0; i < n; i++) {
        if (ranges_overlap(name, size, region[i].name, region[i].size)) {
            name = ROUND_UP(region[i].name + region[i].size,
                            qemu_real_host_page_size());
            i = -1;     /* compare with all regions again */
        }
    }
    return name;
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
                              free_name(s->region, s->nregions, local,
                                        wire->size);
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

/* Replace our addresses in a message by names, and record new regions. */
static void session_translate(VhostUserSession *s, WireMessage *msg,
                              const int *fds, size_t nfds)
{
    SessionRegion *region;
    uint64_t local;

    if (acknowledges_postcopy(msg, nfds)) {
        return;
    }
    switch (msg->request) {
    case SET_MEM_TABLE:
        if (msg->table.n == nfds) {
            set_table(s, msg, fds);
        } else {
            s->untracked = msg->request;
        }
        break;
    case ADD_MEM_REG:
        local = msg->slot.region.user_addr;
        if (nfds != 1) {
            s->untracked = msg->request;
            break;
        }
        msg->slot.region.user_addr = free_name(s->region, s->nregions, local,
                                               msg->slot.region.size);
        add_region(s, &msg->slot.region, local, fds[0]);
        break;
    case REM_MEM_REG:
        region = find_local(s, msg->slot.region.user_addr);
        if (region) {
            msg->slot.region.user_addr = region->name;
            remove_region(s, region);
        }
        break;
    case SET_VRING_ADDR:
        /* With an IOMMU, the message has guest addresses (IOVAs) */
        if (!has_feature(s, VIRTIO_F_IOMMU_PLATFORM)) {
            msg->ring_addr.desc_user_addr =
                name_of(s, msg->ring_addr.desc_user_addr);
            msg->ring_addr.used_user_addr =
                name_of(s, msg->ring_addr.used_user_addr);
            msg->ring_addr.avail_user_addr =
                name_of(s, msg->ring_addr.avail_user_addr);
        }
        break;
    case IOTLB_MSG:
        if (msg->iotlb.type == VHOST_IOTLB_UPDATE) {
            msg->iotlb.uaddr = name_of(s, msg->iotlb.uaddr);
        }
        break;
    }
}

/*
 * The back-end's current state
 */

static bool is_value(unsigned request)
{
    switch (request) {
    case SET_FEATURES:
    case SET_OWNER:
    case SET_PROTOCOL_FEATURES:
    case NET_SET_MTU:
    case SET_STATUS:
        return true;
    default:
        return false;
    }
}

static uint64_t message_value(const WireMessage *msg)
{
    return msg->size >= sizeof(msg->u64) ? msg->u64 : 0;
}

static void set_value(VhostUserSession *s, unsigned request, uint64_t value)
{
    s->known |= BIT_ULL(request);
    s->value[request] = value;
}

/*
 * A message is about to be sent to the back-end: replace its addresses by
 * names, and record the state that it sets.
 */
static void session_apply(VhostUserSession *s, WireMessage *msg,
                          const int *fds, size_t nfds)
{
    SessionRing *ring = message_ring(s, msg);
    int fd = nfds ? fds[0] : -1;

    session_translate(s, msg, fds, nfds);

    if (is_value(msg->request)) {
        set_value(s, msg->request, message_value(msg));
        if (msg->request == SET_STATUS && !message_value(msg)) {
            /* Status 0 is a reset: the device negotiates features again */
            s->known &= ~BIT_ULL(SET_FEATURES);
        }
        return;
    }
    if (ring) {
        ring->known |= BIT(msg->request) & ~BIT(GET_VRING_BASE);
    } else if (ring_index(msg) >= 0) {
        s->untracked = msg->request;
        return;
    }

    switch (msg->request) {
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
        keep_fd(s, msg->request, ring_file(ring, msg->request), fd);
        break;
    case GET_VRING_BASE:
        forget_stopped_ring(ring);
        break;
    case SET_INFLIGHT_FD:
        s->inflight = msg->inflight;
        keep_fd(s, msg->request, &s->inflight_fd, fd);
        break;
    case SET_CONFIG:
        if (msg->config.offset <= s->config_size &&
            msg->config.size <= s->config_size - msg->config.offset) {
            memcpy(s->config + msg->config.offset, msg->config.data,
                   msg->config.size);
        }
        break;
    case RESET_OWNER:
    case RESET_DEVICE:
        for (unsigned i = 0; i < s->nrings; i++) {
            forget_stopped_ring(&s->ring[i]);
            s->ring[i].known &= ~BIT(SET_VRING_ENABLE);
        }
        break;
    case GET_FEATURES:
    case GET_PROTOCOL_FEATURES:
    case GET_QUEUE_NUM:
    case GET_MAX_MEM_SLOTS:
    case GET_STATUS:
    case GET_CONFIG:
    case GET_INFLIGHT_FD:
    case SET_MEM_TABLE:
    case ADD_MEM_REG:
    case REM_MEM_REG:
    case SET_BACKEND_REQ_FD:
        break;
    /* No state: a log ends with its migration, and the IOTLB is a cache */
    case SET_LOG_BASE:
    case SET_LOG_FD:
    case SEND_RARP:
    case IOTLB_MSG:
    /* No state: the incoming migration has ended before the next one starts */
    case POSTCOPY_ADVISE:
    case POSTCOPY_LISTEN:
    case POSTCOPY_END:
        break;
    default:
        s->untracked = msg->request;
    }
}

void vhost_user_session_read(VhostUserSession *s, const void *reply)
{
    const WireMessage *msg = reply;

    switch (msg->request) {
    case GET_FEATURES:
    case GET_PROTOCOL_FEATURES:
    case GET_QUEUE_NUM:
    case GET_MAX_MEM_SLOTS:
        set_value(s, msg->request, message_value(msg));
        break;
    case GET_STATUS:
        set_value(s, SET_STATUS, message_value(msg));
        break;
    case GET_VRING_BASE:
        if (msg->ring.index < s->nrings) {
            s->ring[msg->ring.index].base = msg->ring.num;
        }
        break;
    case GET_INFLIGHT_FD:
        if (!msg->inflight.size) {
            /* The back-end has no inflight region for any device */
            set_value(s, GET_INFLIGHT_FD, 0);
        }
        break;
    case GET_CONFIG:
        if (msg->config.offset == 0 &&
            msg->config.size <= VHOST_USER_SESSION_CONFIG &&
            msg->size == WIRE_CONFIG_HEADER + msg->config.size) {
            s->config_size = msg->config.size;
            memcpy(s->config, msg->config.data, s->config_size);
        }
        break;
    }
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
    } else if (nfds && msg->request == SET_VRING_ERR && ring->err >= 0) {
        /*
         * The device does not poll the error eventfd yet. So turn its
         * descriptor into the eventfd that the back-end already has.
         */
        held->same_file = dup3(ring->err, fds[0], O_CLOEXEC) >= 0;
    }
    g_queue_push_tail(&s->pending, held);
    return 0;
}

static void start_reply(VhostUserSession *s, unsigned request, uint32_t size)
{
    s->reply = (WireMessage) {
        .request = request,
        .flags = FLAGS_VERSION | FLAGS_REPLY,
        .size = size,
    };
    s->has_reply = true;
}

static void reply_u64(VhostUserSession *s, unsigned request, uint64_t u64)
{
    start_reply(s, request, sizeof(s->reply.u64));
    s->reply.u64 = u64;
}

/* Apply the device's stored SET_CONFIG messages to the reply. */
static void add_pending_config(VhostUserSession *s)
{
    for (GList *l = s->pending.head; l; l = l->next) {
        const WireMessage *msg = ((HeldMessage *)l->data)->msg;

        if (msg->request == SET_CONFIG &&
            msg->config.offset <= s->reply.config.size &&
            msg->config.size <= s->reply.config.size - msg->config.offset) {
            memcpy(s->reply.config.data + msg->config.offset,
                   msg->config.data, msg->config.size);
        }
    }
}

/* Answer in the back-end's place. Returns false if the answer is unknown. */
static bool answer_request(VhostUserSession *s, const WireMessage *msg)
{
    const WireMessage *pending;
    unsigned known = msg->request;
    SessionRing *ring;

    switch (msg->request) {
    case GET_PROTOCOL_FEATURES:
        /* Only a new connection can negotiate other protocol features */
        known = session_knows(s, SET_PROTOCOL_FEATURES) ?
                SET_PROTOCOL_FEATURES : GET_PROTOCOL_FEATURES;
        /* fall through */
    case GET_FEATURES:
    case GET_QUEUE_NUM:
    case GET_MAX_MEM_SLOTS:
        if (!session_knows(s, known)) {
            return false;
        }
        reply_u64(s, msg->request, s->value[known]);
        return true;

    case GET_STATUS:
        pending = find_pending(s, SET_STATUS, 0);
        if (!pending && !session_knows(s, SET_STATUS)) {
            return false;
        }
        reply_u64(s, msg->request,
                  pending ? pending->u64 : s->value[SET_STATUS]);
        return true;

    case GET_CONFIG:
        if (msg->config.size > s->config_size) {
            return false;
        }
        start_reply(s, msg->request, WIRE_CONFIG_HEADER + msg->config.size);
        s->reply.config.size = msg->config.size;
        memcpy(s->reply.config.data, s->config, msg->config.size);
        add_pending_config(s);
        return true;

    case GET_INFLIGHT_FD:
        close_fd(&s->reply_fd);
        s->reply_fd = s->inflight_fd < 0 ? -1 : qemu_dup(s->inflight_fd);
        if (s->reply_fd < 0 && !session_knows(s, GET_INFLIGHT_FD)) {
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

static bool is_question(unsigned request)
{
    switch (request) {
    case GET_FEATURES:
    case GET_PROTOCOL_FEATURES:
    case GET_QUEUE_NUM:
    case GET_MAX_MEM_SLOTS:
    case GET_STATUS:
    case GET_CONFIG:
    case GET_INFLIGHT_FD:
        return true;
    default:
        return false;
    }
}

static bool can_be_held(unsigned request)
{
    switch (request) {
    case SET_MEM_TABLE:
    case ADD_MEM_REG:
    case REM_MEM_REG:
    case SET_VRING_NUM:
    case SET_VRING_ADDR:
    case SET_VRING_BASE:
    case GET_VRING_BASE:
    case SET_VRING_KICK:
    case SET_VRING_CALL:
    case SET_VRING_ERR:
    case SET_VRING_ENABLE:
    case SET_BACKEND_REQ_FD:
    case SET_LOG_BASE:
    case SET_INFLIGHT_FD:
    case SET_CONFIG:
    case RESET_DEVICE:
    case IOTLB_MSG:
        return true;
    default:
        return is_value(request);
    }
}

static bool wants_reply(const VhostUserSession *s, const WireMessage *msg)
{
    return msg->flags & FLAGS_NEED_REPLY ||
           (msg->request == SET_LOG_BASE &&
            has_protocol_feature(s, VHOST_USER_PROTOCOL_F_LOG_SHMFD));
}

static bool remove_lost_regions(VhostUserSession *s, int *sent, Error **errp);

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
    return true;
}

static bool send_message(VhostUserSession *s, WireMessage *msg,
                         const int *fds, size_t nfds, Error **errp)
{
    trace_vhost_user_session_send(msg->request);
    session_apply(s, msg, fds, nfds);
    return s->ops->send(s->opaque, msg, WIRE_HEADER + msg->size, fds, nfds,
                        errp);
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
    if (msg->flags & FLAGS_NEED_REPLY && message_value(&reply)) {
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
        (!ring_knows(ring, SET_VRING_ENABLE) || ring->enabled)) {
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
        !receive_reply(s, GET_VRING_BASE, &reply, errp)) {
        return false;
    }
    (*sent)++;
    vhost_user_session_read(s, &reply);
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

/* Returns 1 if the message need not be sent, 0 if it must be sent, or -errno */
static int withhold(VhostUserSession *s, const WireMessage *msg,
                    const int *fds, size_t nfds)
{
    int ret;

    if (is_question(msg->request) && answer_request(s, msg)) {
        trace_vhost_user_session_answer(msg->request);
        return 1;
    }
    if (can_be_held(msg->request)) {
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
    return session_knows(s, GET_FEATURES);
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

/* Does the later message set the same state, so that @msg has no effect? */
static bool overrides(const WireMessage *later, const WireMessage *msg)
{
    if (ring_index(later) != ring_index(msg)) {
        return false;
    }

    switch (later->request) {
    case ADD_MEM_REG:
    case REM_MEM_REG:
    case SET_CONFIG:
    case IOTLB_MSG:
    case RESET_DEVICE:
        return false;
    case GET_VRING_BASE:
    case SET_VRING_KICK:
        /* GET_VRING_BASE stops the ring, SET_VRING_KICK starts it */
        return msg->request == GET_VRING_BASE ||
               msg->request == SET_VRING_KICK;
    default:
        return later->request == msg->request;
    }
}

static void drop_overridden(VhostUserSession *s)
{
    for (GList *l = s->pending.tail; l; l = l->prev) {
        GList *prev, *next;

        for (prev = l->prev; prev; prev = next) {
            HeldMessage *older = prev->data;

            next = prev->prev;
            if (overrides(((HeldMessage *)l->data)->msg, older->msg)) {
                held_message_free(older);
                g_queue_delete_link(&s->pending, prev);
            }
        }
    }
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
    SessionRing *ring = message_ring(s, msg);

    if (is_value(msg->request)) {
        return session_knows(s, msg->request) &&
               s->value[msg->request] == message_value(msg);
    }
    if (msg->request == GET_VRING_BASE) {
        return !ring_runs(ring);
    }
    if (ring && !ring_knows(ring, msg->request)) {
        return false;
    }

    switch (msg->request) {
    case SET_VRING_NUM:
        return ring->num == msg->ring.num;
    case SET_VRING_BASE:
        /* While a ring runs, only the back-end knows its index */
        return ring_runs(ring) || ring->base == msg->ring.num;
    case SET_VRING_ENABLE:
        return ring->enabled == msg->ring.num;
    case SET_VRING_ADDR: {
        WireMessage named = *msg;

        session_translate(s, &named, NULL, 0);
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
               (!held->nfds && *ring_file(ring, msg->request) < 0);
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

/* Can all rings keep running when this message is sent? */
static bool is_harmless(VhostUserSession *s, const HeldMessage *held)
{
    const WireMessage *msg = held->msg;

    switch (msg->request) {
    case SET_FEATURES:
        /* Only logging can be switched while rings run */
        return !((message_value(msg) ^ s->value[SET_FEATURES]) &
                 ~BIT_ULL(VHOST_F_LOG_ALL));
    case SET_INFLIGHT_FD:
        /* Running rings keep using the region that they started with */
        return is_known(s, held);
    default:
        return true;
    }
}

/* Must a running ring be stopped for the state that the device requests? */
static bool must_stop(VhostUserSession *s, unsigned index)
{
    if (s->ring[index].rewind) {
        return true;
    }
    for (GList *l = s->pending.head; l; l = l->next) {
        const HeldMessage *held = l->data;

        if (!is_harmless(s, held)) {
            return true;
        }
        if (ring_index(held->msg) != (int)index) {
            continue;
        }
        switch (held->msg->request) {
        case SET_VRING_NUM:
        case SET_VRING_ADDR:
        case SET_VRING_KICK:
        case GET_VRING_BASE:
            if (!is_known(s, held)) {
                return true;
            }
        }
    }
    return false;
}

static void set_pending_base(VhostUserSession *s, unsigned index)
{
    for (GList *l = s->pending.head; l; l = l->next) {
        WireMessage *msg = ((HeldMessage *)l->data)->msg;

        if (msg->request == SET_VRING_BASE && msg->ring.index == index) {
            msg->ring.num = s->ring[index].base;
        }
    }
}

static bool stop_changed_rings(VhostUserSession *s, int *sent, Error **errp)
{
    for (unsigned i = 0; i < s->nrings; i++) {
        bool rewind = s->ring[i].rewind;

        if (!ring_runs(&s->ring[i]) || !must_stop(s, i)) {
            continue;
        }
        if (!stop_ring(s, i, sent, errp)) {
            return false;
        }
        if (!rewind) {
            /* The ring continues at the index where the back-end stopped */
            set_pending_base(s, i);
        }
    }
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

    assert(s->held && s->owned);

    drop_overridden(s);
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
        s->ring[i].rewind = ring_runs(&s->ring[i]);
    }
    /* The device has forgotten the requests in the inflight region */
    close_fd(&s->inflight_fd);
}

/*
 * Rings, as the device sees them
 */

bool vhost_user_session_ring_running(const VhostUserSession *s, unsigned ring)
{
    return ring < s->nrings && ring_runs(&s->ring[ring]);
}

uint32_t vhost_user_session_ring_base(const VhostUserSession *s, unsigned ring)
{
    return ring < s->nrings ? s->ring[ring].base : 0;
}

static int lend(VhostUserSession *s, unsigned ring, int fd, int *lent)
{
    *lent = -1;
    /* A ring that was reset must be set up again with new files */
    if (!s->held || s->ring[ring].rewind || fd < 0) {
        return -1;
    }
    *lent = qemu_dup(fd);
    return *lent;
}

int vhost_user_session_lend_kick(VhostUserSession *s, unsigned ring)
{
    return ring < s->nrings ?
           lend(s, ring, s->ring[ring].kick, &s->ring[ring].lent_kick) : -1;
}

int vhost_user_session_lend_call(VhostUserSession *s, unsigned ring)
{
    return ring < s->nrings ?
           lend(s, ring, s->ring[ring].call, &s->ring[ring].lent_call) : -1;
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
