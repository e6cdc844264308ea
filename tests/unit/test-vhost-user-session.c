/*
 * Tests of the session with a vhost-user back-end
 *
 * Two devices, like those of two QEMU processes, use one back-end. The first
 * device sets it up, its session goes through a migration stream, and the
 * second device takes the back-end over. The tests check which requests the
 * back-end got after that. The back-end itself aborts if a request violates
 * the protocol.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/eventfd.h>
#include <sys/resource.h>
#include "qapi/error.h"
#include "qemu/module.h"
#include "qemu/range.h"
#include "qemu/sockets.h"
#include "io/channel-socket.h"
#include "count-fds.h"
#include "../migration/qemu-file.h"
#include "../migration/savevm.h"
#include "vhost-user-backend.h"
#include "../hw/virtio/vhost-user-session-internal.h"

/* The user addresses of the guest's memory in the two processes */
#define SOURCE_LOCAL        0x7f1000000000
#define DESTINATION_LOCAL   0x7f2000000000

#define STOP_0              "18.0 11.0"
#define STOP_1              "18.1 11.1"
#define STOP                STOP_0 " " STOP_1
#define SETUP_0             "8.0 10.0 9.0 13.0"
#define SETUP_1             "8.1 10.1 9.1 13.1"
#define START_1             SETUP_1 " 12.1 18.1"
#define START               SETUP_0 " " SETUP_1 " 12.0 12.1 18.0 18.1"

typedef struct Pair {
    Backend *backend;
    Device source;
    Device destination;
} Pair;

/*
 * Helpers
 */

static void limit_fds(bool limited)
{
    static struct rlimit old;
    struct rlimit none = { .rlim_cur = 1 };     /* stdin is open */

    if (limited) {
        g_assert(!getrlimit(RLIMIT_NOFILE, &old));
        none.rlim_max = old.rlim_max;
    }
    g_assert(!setrlimit(RLIMIT_NOFILE, limited ? &none : &old));
}

static Pair *pair_new(void)
{
    Pair *p = g_new0(Pair, 1);

    p->backend = backend_new();
    device_init_fields(&p->source, &p->backend->wire, SOURCE_LOCAL);
    device_init_fields(&p->destination, &p->backend->wire,
                       DESTINATION_LOCAL);
    return p;
}

static void pair_free(Pair *p)
{
    device_cleanup(&p->source);
    device_cleanup(&p->destination);
    backend_free(p->backend);
    g_free(p);
}

static void add_features(Pair *p, uint64_t features, uint64_t protocol)
{
    p->source.features |= features;
    p->source.protocol_features |= protocol;
    p->destination.features |= features;
    p->destination.protocol_features |= protocol;
}

static void set_rings(Pair *p, unsigned rings)
{
    p->source.rings = p->destination.rings = rings;
}

static void start(Device *d)
{
    g_assert_true(device_connect(d));
    g_assert_true(device_start(d));
}

static Pair *pair_start(uint64_t features, uint64_t protocol)
{
    Pair *p = pair_new();

    add_features(p, features, protocol);
    start(&p->source);
    return p;
}

/* Returns false if loading failed. */
static bool copy_session(VhostUserSession *from, VhostUserSession *to)
{
    SessionSave *save;
    bool saved, loaded;
    int sv[2];

    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    save = session_save_begin(from, sv[1]);
    loaded = session_load(to, sv[0]);
    saved = session_save_end(save);
    g_assert_true(saved || !loaded);
    return loaded;
}

static bool adopt(Device *d, Error **errp)
{
    VhostUserSessionFits fits = device_fits(d);

    return vhost_user_session_adopt(d->session, &fits, errp);
}

/* Another QEMU loads the session and runs the device's ordinary code. */
static void load(Device *from, Device *to)
{
    g_assert_true(copy_session(from->session, to->session));
    g_assert_true(adopt(to, &error_abort));
    for (unsigned i = 0; i < from->rings; i++) {
        to->base[i] = from->base[i];
    }
    g_assert_true(device_connect(to));
}

static int commit(Device *d)
{
    g_assert_true(device_open_channel(d));
    return vhost_user_session_commit(d->session, &error_abort);
}

static void hand_over(Device *from, Device *to)
{
    device_release(from);
    load(from, to);
    vhost_user_session_own(to->session, true);
}

/*
 * The back-end of a started device must get no request. A stopped device uses
 * its own call eventfd (the "masked notifier"), which differs in each process,
 * so that its back-end gets SET_VRING_CALL.
 */
static void assert_nothing_told(Backend *b, const Device *d)
{
    g_autoptr(GString) expected = g_string_new(NULL);

    for (unsigned i = 0; !d->started && i < d->rings; i++) {
        g_string_append_printf(expected, "%s13.%u", i ? " " : "", i);
    }
    assert_told(b, expected->str);
}

static void take_over(Device *from, Device *to)
{
    bool started = from->started;

    hand_over(from, to);
    if (started) {
        device_lend(to);
        g_assert_true(device_start(to));
    }
    commit(to);
}

/*
 * Adopting without a difference
 */

static const struct {
    const char *name;
    uint64_t feature;
    uint64_t protocol;
} variants[] = {
    { "slots", 0, PF_SLOTS },
    { "status", 0, PF_STATUS },
    { "inflight", 0, PF_INFLIGHT },
    { "channel", 0, PF_BACKEND_REQ },
    { "packed", F_RING_PACKED, 0 },
    { "iommu", F_IOMMU, 0 },
};

/* Actions of the source before the transfer */
static void only_connect(Device *d)
{
}

static void connect_and_start(Device *d)
{
    g_assert_true(device_start(d));
}

static void start_and_stop(Device *d)
{
    connect_and_start(d);
    g_assert_true(device_stop(d));
}

static void start_again(Device *d)
{
    start_and_stop(d);
    connect_and_start(d);
}

static void write_config(Device *d)
{
    connect_and_start(d);
    g_assert_true(device_set_config(d, 7, 99));
}

static void start_disabled(Device *d)
{
    d->disabled = true;
    connect_and_start(d);
}

static void start_polled(Device *d)
{
    d->no_files = true;
    connect_and_start(d);
}

static void plug_memory(Device *d)
{
    Memory *last = &d->memory[d->nmemory - 1];

    connect_and_start(d);
    d->memory[d->nmemory++] = (Memory) {
        .file = 2,
        .guest_addr = last->guest_addr + last->size,
        .size = 0x10000,
        .local = last->local + last->size,
    };
    g_assert_true(device_set_memory(d));
}

static void unplug_memory(Device *d)
{
    connect_and_start(d);
    d->nmemory--;
    g_assert_true(device_set_memory(d));
}

static void (*const histories[])(Device *) = {
    only_connect, connect_and_start, start_and_stop, start_again,
    write_config, start_disabled, start_polled, plug_memory, unplug_memory,
};

/* Give @to the same guest as @from. */
static void same_guest(const Device *from, Device *to)
{
    uint64_t local = to->memory[0].local;

    to->disabled = from->disabled;
    to->no_files = from->no_files;
    to->nmemory = from->nmemory;
    for (unsigned i = 0; i < from->nmemory; i++) {
        to->memory[i] = from->memory[i];
        to->memory[i].local += local - from->memory[0].local;
    }
}

static void adopt_history(unsigned mask, unsigned rings, unsigned history)
{
    Pair *p = pair_new();
    bool started;

    set_rings(p, rings);
    for (unsigned i = 0; i < ARRAY_SIZE(variants); i++) {
        if (mask & (1 << i)) {
            add_features(p, variants[i].feature, variants[i].protocol);
        }
    }
    g_assert_true(device_connect(&p->source));
    histories[history](&p->source);
    started = p->source.started;
    same_guest(&p->source, &p->destination);
    backend_forget(p->backend);

    hand_over(&p->source, &p->destination);
    if (started) {
        device_lend(&p->destination);
        g_assert_true(device_start(&p->destination));
    }
    commit(&p->destination);
    assert_nothing_told(p->backend, &p->destination);
    assert_agree(p->backend, &p->destination);
    pair_free(p);
}

static void test_adopt_same(void)
{
    static const unsigned rings[] = { 1, 4, MAX_RINGS };

    for (unsigned i = 0; i < ARRAY_SIZE(rings); i++) {
        for (unsigned j = 0; j < ARRAY_SIZE(histories); j++) {
            for (unsigned m = 0; m < 1 << ARRAY_SIZE(variants); m++) {
                /* With more than 4 rings: each feature alone, and all */
                if (rings[i] <= 4 || is_power_of_2(m) ||
                    m == (1 << ARRAY_SIZE(variants)) - 1) {
                    adopt_history(m, rings[i], j);
                }
            }
        }
    }
}

static void random_step(Device *d)
{
    Memory *memory;

    switch (g_test_rand_int_range(0, 7)) {
    case 0:
        if (!d->started) {
            g_assert_true(device_start(d));
        }
        break;
    case 1:
        if (d->started) {
            g_assert_true(device_stop(d));
        }
        break;
    case 2:
        g_assert_true(device_set_config(d, g_test_rand_int_range(0, 60),
                                        g_test_rand_int()));
        break;
    case 3:
        if (d->nmemory < MSG_REGIONS) {
            memory = &d->memory[d->nmemory++];
            *memory = (Memory) {
                .file = g_test_rand_int_range(0, MEMORY_FILES),
                .guest_addr = memory[-1].guest_addr + memory[-1].size,
                .size = 0x1000 * g_test_rand_int_range(1, 16),
                .offset = 0x1000 * g_test_rand_int_range(0, 16),
                .local = memory[-1].local + memory[-1].size,
            };
            g_assert_true(!d->started || device_set_memory(d));
        }
        break;
    case 4:
        if (d->nmemory > 1) {
            d->nmemory--;
            g_assert_true(!d->started || device_set_memory(d));
        }
        break;
    case 5:
        /* The guest moves a ring */
        if (!d->started) {
            unsigned i = g_test_rand_int_range(0, d->rings);

            d->addr[i] = 0x1000 * (i + d->rings * g_test_rand_int_range(0, 3));
        }
        break;
    case 6:
        if (!d->started) {
            d->disabled = !d->disabled;
        }
        break;
    }
}

/* Take the back-end over several times, after random steps of the devices. */
static void test_adopt_random(void)
{
    for (int run = 0; run < 100; run++) {
        Backend *b = backend_new();
        Device *d = g_new(Device, 1);

        device_init_fields(d, &b->wire, SOURCE_LOCAL);
        d->rings = g_test_rand_int_range(1, 5);
        for (unsigned i = 0; i < ARRAY_SIZE(variants); i++) {
            if (g_test_rand_bit()) {
                d->features |= variants[i].feature;
                d->protocol_features |= variants[i].protocol;
            }
        }
        g_assert_true(device_connect(d));

        for (int process = 0; process < 4; process++) {
            Device *next = g_new(Device, 1);
            int steps = g_test_rand_int_range(0, 20);
            bool started;

            while (steps--) {
                random_step(d);
            }
            started = d->started;

            /* Near the addresses of the other processes, so names overlap */
            device_init_fields(next, &b->wire, SOURCE_LOCAL +
                               0x8000 * g_test_rand_int_range(0, 100));
            next->rings = d->rings;
            next->features = d->features;
            next->protocol_features = d->protocol_features;
            memcpy(next->addr, d->addr, sizeof(next->addr));
            same_guest(d, next);

            backend_forget(b);
            hand_over(d, next);
            if (started) {
                device_lend(next);
                g_assert_true(device_start(next));
            }
            commit(next);
            assert_nothing_told(b, next);
            assert_agree(b, next);
            device_cleanup(d);
            g_free(d);
            d = next;
        }
        device_cleanup(d);
        g_free(d);
        backend_free(b);
    }
}

/*
 * Single differences
 */

static void differ_log(Device *d)
{
    d->features |= F_LOG_ALL;
}

static void differ_features(Device *d)
{
    d->features &= ~F_EVENT_IDX;
}

static void differ_ring_size(Device *d)
{
    d->num = 256;
}

static void differ_ring_addr(Device *d)
{
    d->addr[1] += 0x4000;
}

/* The new file must not get the number of the old one. */
static void replace_file(int *fd)
{
    int old = *fd;

    *fd = new_eventfd();
    close(old);
}

static void differ_kick(Device *d)
{
    replace_file(&d->kick[1]);
}

static void differ_call(Device *d)
{
    replace_file(&d->call[1]);
}

static void differ_enable(Device *d)
{
    d->disabled = true;
}

static void differ_memory_added(Device *d)
{
    d->memory[d->nmemory++] =
        (Memory) { 2, 0x200000, 0x10000, 0, DESTINATION_LOCAL + 0x200000 };
}

static void differ_memory_removed(Device *d)
{
    d->nmemory--;
}

static void differ_memory_moved(Device *d)
{
    d->memory[1].guest_addr += 0x1000;
}

static void differ_memory_file(Device *d)
{
    d->memory[1].file = 3;
}

static void differ_memory_offset(Device *d)
{
    d->memory[1].offset = 0;
}

static void differ_memory_size(Device *d)
{
    d->memory[1].size /= 2;
}

static void differ_ring_memory(Device *d)
{
    d->memory[0].offset += 0x1000;
}

static void differ_inflight(Device *d)
{
    Msg msg = { .request = MSG_GET_INFLIGHT_FD, .size = sizeof(msg.inflight) };

    g_assert_true(device_ask(d, &msg));
    msg.inflight.mmap_offset = 0x1000;
    msg.inflight.mmap_size -= 0x1000;
    d->inflight = vhost_user_session_answer_fd(d->session);
    d->inflight_msg = msg;
}

static void differ_config(Device *d)
{
    g_assert_true(device_set_config(d, 3, 200));
}

static const struct {
    const char *name;
    uint64_t protocol;
    void (*change)(Device *d);      /* changes the second device */
    const char *told;
} differences[] = {
    { "nothing", 0, NULL, "" },
    { "log", 0, differ_log, "2" },
    { "features", 0, differ_features, STOP " 2 " START },
    { "ring-size", 0, differ_ring_size, STOP " " START },
    { "ring-addr", 0, differ_ring_addr, STOP_1 " " START_1 },
    { "kick", 0, differ_kick, STOP_1 " " START_1 },
    { "call", 0, differ_call, "13.1" },
    { "enable", 0, differ_enable, "18.0 18.1" },
    { "config", 0, differ_config, "25" },
    { "inflight", PF_INFLIGHT, differ_inflight, STOP " 32 " START },
    { "table/added", 0, differ_memory_added, "5" },
    { "table/removed", 0, differ_memory_removed, "5" },
    { "table/moved", 0, differ_memory_moved, "5" },
    { "table/file", 0, differ_memory_file, "5" },
    { "table/offset", 0, differ_memory_offset, "5" },
    { "table/size", 0, differ_memory_size, "5" },
    { "table/of-rings", 0, differ_ring_memory, STOP " 5 " START },
    { "slots/added", PF_SLOTS, differ_memory_added, "37" },
    { "slots/removed", PF_SLOTS, differ_memory_removed, "38" },
    { "slots/moved", PF_SLOTS, differ_memory_moved, "38 37" },
    { "slots/file", PF_SLOTS, differ_memory_file, "38 37" },
    { "slots/offset", PF_SLOTS, differ_memory_offset, "38 37" },
    { "slots/size", PF_SLOTS, differ_memory_size, "38 37" },
    { "slots/of-rings", PF_SLOTS, differ_ring_memory, STOP " 38 37 " START },
};

static unsigned count_messages(const char *told)
{
    g_auto(GStrv) words = g_strsplit(told, " ", -1);

    return g_strv_length(words);
}

static void test_difference(const void *opaque)
{
    unsigned n = GPOINTER_TO_UINT(opaque);

    /* With and without REPLY_ACK */
    for (int ack = 0; ack < 2; ack++) {
        Pair *p = pair_new();
        Device *d = &p->destination;
        uint32_t base;

        add_features(p, 0, differences[n].protocol);
        if (!ack) {
            p->source.protocol_features &= ~PF_REPLY_ACK;
            d->protocol_features &= ~PF_REPLY_ACK;
        }
        start(&p->source);
        backend_forget(p->backend);
        p->source.base[0] = 11;     /* out of date: must not be used */
        p->backend->ring[0].base = base = 42;
        d->num = 256;               /* the maximum, for adopting */

        hand_over(&p->source, d);
        d->num = p->source.num;
        device_lend(d);
        if (differences[n].change) {
            differences[n].change(d);
        }
        g_assert_true(device_start(d));
        assert_told(p->backend, "");
        g_assert_cmpint(commit(d), ==, count_messages(differences[n].told));
        assert_told(p->backend, differences[n].told);
        assert_agree(p->backend, d);
        /* A ring that had to stop continues with the back-end's base */
        g_assert_cmpuint(p->backend->ring[0].base, ==, base);
        pair_free(p);
    }
}

static void test_difference_err(void)
{
    Pair *p = pair_start(0, 0);
    Msg msg = {
        .request = MSG_SET_VRING_ERR,
        .flags = MSG_VERSION,
        .size = sizeof(msg.u64),
        .u64 = 1 | MSG_NO_FD,
    };

    g_assert_true(device_write(&p->source, &msg, NULL, 0));
    backend_forget(p->backend);
    take_over(&p->source, &p->destination);
    assert_told(p->backend, "14.1");
    assert_agree(p->backend, &p->destination);
    pair_free(p);
}

static void test_difference_status(void)
{
    Pair *p = pair_start(0, PF_STATUS);
    Msg msg = {
        .request = MSG_SET_STATUS,
        .flags = MSG_VERSION,
        .size = sizeof(msg.u64),
        .u64 = 7,
    };

    g_assert_true(device_write(&p->source, &msg, NULL, 0));
    backend_forget(p->backend);
    take_over(&p->source, &p->destination);
    assert_told(p->backend, "39");
    assert_agree(p->backend, &p->destination);
    pair_free(p);
}

static void test_difference_protocol_features(void)
{
    Pair *p = pair_start(0, PF_STATUS);

    p->destination.protocol_features &= ~PF_STATUS;
    backend_forget(p->backend);
    take_over(&p->source, &p->destination);
    assert_told(p->backend, "16");
    assert_agree(p->backend, &p->destination);
    pair_free(p);
}

static void test_more_protocol_features(void)
{
    Pair *p = pair_start(0, 0);

    /* Only a new connection can negotiate more protocol features */
    p->destination.protocol_features |= PF_STATUS | PF_SLOTS;
    backend_forget(p->backend);
    take_over(&p->source, &p->destination);
    assert_told(p->backend, "");
    assert_agree(p->backend, &p->destination);
    pair_free(p);
}

static void test_more_rings(void)
{
    Pair *p = pair_new();

    /* At the source the guest uses one of two rings, then it uses both */
    set_rings(p, 1);
    start(&p->source);
    set_rings(p, 2);
    backend_forget(p->backend);
    take_over(&p->source, &p->destination);
    assert_told(p->backend, "14.1 " START_1);
    assert_agree(p->backend, &p->destination);
    pair_free(p);
}

static void test_channel(void)
{
    Pair *p = pair_new();

    p->source.protocol_features |= PF_BACKEND_REQ;
    p->destination.protocol_features |= PF_BACKEND_REQ;
    start(&p->source);
    backend_forget(p->backend);

    /* The source has closed its channel, so a new one is needed */
    close(p->source.channel);
    p->source.channel = -1;
    take_over(&p->source, &p->destination);
    assert_told(p->backend, "21");
    assert_agree(p->backend, &p->destination);
    pair_free(p);
}

static uint64_t name_of_memory(Backend *b, const Memory *memory)
{
    for (unsigned i = 0; i < b->nregions; i++) {
        if (b->region[i].wire.guest_addr == memory->guest_addr) {
            return b->region[i].wire.user_addr;
        }
    }
    g_assert_not_reached();
}

static void assert_names(Backend *b, const Device *d, uint64_t local)
{
    for (unsigned i = 0; i < 2; i++) {
        g_assert_cmphex(name_of_memory(b, &d->memory[i]), ==,
                        local + (d->memory[i].local - d->memory[0].local));
    }
}

static void test_restart(void)
{
    for (int slots = 0; slots < 2; slots++) {
        Pair *p = pair_start(0, slots ? PF_SLOTS : 0);

        /* The source stopped its rings, and the memory was copied. */
        p->backend->looks_up_rings = true;
        g_assert_true(device_stop(&p->source));
        p->destination.memory[0].file = 2;
        p->destination.memory[1].file = 3;
        backend_forget(p->backend);
        hand_over(&p->source, &p->destination);
        device_lend(&p->destination);
        g_assert_true(device_start(&p->destination));
        commit(&p->destination);
        assert_told(p->backend, "5 " START);
        assert_agree(p->backend, &p->destination);
        /* The regions at the same guest addresses inherit the names */
        assert_names(p->backend, &p->destination, SOURCE_LOCAL);
        pair_free(p);
    }
}

/*
 * The destination commits before the guest has a driver for the device, and
 * does not share the source's memory.
 */
static void test_restart_later(void)
{
    for (int slots = 0; slots < 2; slots++) {
        Pair *p = pair_start(0, slots ? PF_SLOTS : 0);

        g_assert_true(device_stop(&p->source));
        p->destination.memory[0].file = 2;
        p->destination.memory[1].file = 3;
        backend_forget(p->backend);
        take_over(&p->source, &p->destination);
        assert_nothing_told(p->backend, &p->destination);

        g_assert_true(device_start(&p->destination));
        assert_agree(p->backend, &p->destination);
        pair_free(p);
    }
}

static void test_no_inflight(void)
{
    Pair *p = pair_new();

    p->backend->no_inflight = true;
    add_features(p, 0, PF_INFLIGHT);
    start(&p->source);
    g_assert_false(vhost_user_session_has_inflight(p->source.session));
    backend_forget(p->backend);
    take_over(&p->source, &p->destination);
    assert_told(p->backend, "");
    g_assert_false(vhost_user_session_has_inflight(p->destination.session));
    assert_agree(p->backend, &p->destination);
    pair_free(p);
}

/*
 * Names
 */

static void test_names_hotplug(const void *opaque)
{
    bool slots = opaque;
    Pair *p = pair_start(0, slots ? PF_SLOTS : 0);
    Backend *b = p->backend;
    Device *d = &p->destination;

    take_over(&p->source, d);
    backend_forget(b);

    /* The address of the new memory is already the name of older memory */
    d->memory[d->nmemory++] =
        (Memory) { 2, 0x200000, 0x10000, 0, SOURCE_LOCAL + 0x1000 };
    g_assert_true(device_set_memory(d));
    assert_told(b, slots ? "37" : "5");
    assert_agree(b, d);
    assert_names(b, d, SOURCE_LOCAL);

    /* The memory keeps its name when more memory is added */
    d->memory[d->nmemory++] =
        (Memory) { 3, 0x300000, 0x10000, 0, DESTINATION_LOCAL + 0x300000 };
    g_assert_true(device_set_memory(d));
    assert_told(b, slots ? "37" : "5");
    assert_agree(b, d);
    assert_names(b, d, SOURCE_LOCAL);
    g_assert_cmphex(name_of_memory(b, &d->memory[3]), ==,
                    d->memory[3].local);

    d->nmemory -= 2;
    g_assert_true(device_set_memory(d));
    assert_told(b, slots ? "38 38" : "5");
    assert_agree(b, d);
    assert_names(b, d, SOURCE_LOCAL);
    pair_free(p);
}

static void test_names_ring_addr(void)
{
    Pair *p = pair_start(0, 0);
    Device *d = &p->destination;

    take_over(&p->source, d);
    backend_forget(p->backend);

    /* One ring moves while the other runs */
    g_assert_true(device_stop_ring(d, 1));
    d->addr[1] += 0x2000;
    g_assert_true(device_start_ring(d, 1));
    assert_told(p->backend, "11.1 8.1 10.1 9.1 12.1 13.1");
    g_assert_cmphex(p->backend->ring[1].addr[0], ==,
                    SOURCE_LOCAL + d->addr[1]);
    assert_agree(p->backend, d);
    pair_free(p);
}

/* The same memory at two guest addresses, with the same user address */
static void test_names_alias(const void *opaque)
{
    bool slots = opaque;
    Pair *p = pair_new();
    Device *d = &p->source;

    add_features(p, 0, slots ? PF_SLOTS : 0);
    for (int i = 0; i < 2; i++) {
        d = i ? &p->destination : &p->source;
        d->memory[d->nmemory] = d->memory[1];
        d->memory[d->nmemory++].guest_addr = 0x800000;
    }
    start(&p->source);
    /* The back-end gets the addresses that it gets without a session */
    g_assert_cmphex(name_of_memory(p->backend, &p->source.memory[2]), ==,
                    p->source.memory[2].local);
    assert_agree(p->backend, &p->source);

    backend_forget(p->backend);
    take_over(&p->source, d);
    assert_told(p->backend, "");
    assert_agree(p->backend, d);
    assert_names(p->backend, d, SOURCE_LOCAL);

    /* The right one of the two regions is removed */
    d->memory[2].guest_addr += 0x100000;
    g_assert_true(device_set_memory(d));
    assert_told(p->backend, slots ? "38 37" : "5");
    assert_agree(p->backend, d);
    g_assert_true(device_stop(d));
    g_assert_true(device_start(d));
    assert_agree(p->backend, d);
    pair_free(p);
}

static void test_names_iotlb(void)
{
    Pair *p = pair_start(F_IOMMU, 0);
    Device *d = &p->destination;
    Msg msg = {
        .request = MSG_IOTLB,
        .flags = MSG_VERSION,
        .size = sizeof(msg.iotlb),
        .iotlb = {
            .size = 0x1000,
            .user_addr = DESTINATION_LOCAL + 0x5000,
            .type = MSG_IOTLB_UPDATE,
        },
    };

    take_over(&p->source, d);
    backend_forget(p->backend);
    g_assert_true(device_write(d, &msg, NULL, 0));
    assert_told(p->backend, "22");
    g_assert_cmphex(p->backend->iotlb_name, ==, SOURCE_LOCAL + 0x5000);
    /* With an IOMMU, ring addresses are guest addresses */
    g_assert_cmphex(p->backend->ring[0].addr[0], ==, 0);
    pair_free(p);
}

static void test_names_dropped(void)
{
    Pair *p = pair_start(0, 0);
    Device *d = &p->destination;

    take_over(&p->source, d);
    assert_names(p->backend, d, SOURCE_LOCAL);
    g_assert_true(device_stop(d));
    g_assert_true(device_start(d));
    assert_names(p->backend, d, DESTINATION_LOCAL);
    g_assert_cmphex(p->backend->ring[0].addr[0], ==, DESTINATION_LOCAL);
    assert_agree(p->backend, d);
    pair_free(p);
}

static void test_names_of_slots_stay(void)
{
    Pair *p = pair_start(0, PF_SLOTS);
    Device *d = &p->destination;

    take_over(&p->source, d);
    g_assert_true(device_stop(d));
    g_assert_true(device_start(d));
    /* The back-end was not requested to map the memory again */
    assert_names(p->backend, d, SOURCE_LOCAL);
    assert_agree(p->backend, d);

    g_assert_true(device_stop(d));
    d->memory[0].file = 2;
    g_assert_true(device_start(d));
    g_assert_cmphex(name_of_memory(p->backend, &d->memory[0]), ==,
                    DESTINATION_LOCAL);
    assert_agree(p->backend, d);
    pair_free(p);
}

/* The message that acknowledges the memory with postcopy is no new table. */
static void test_names_postcopy(const void *opaque)
{
    bool slots = opaque;
    Pair *p = pair_start(0, slots ? PF_SLOTS : 0);
    Device *d = &p->source;
    Msg msg = {
        .request = slots ? MSG_ADD_MEM_REG : MSG_SET_MEM_TABLE,
        .flags = MSG_VERSION,
        .size = sizeof(msg.u64),
    };

    g_assert_cmpint(vhost_user_session_write(d->session, &msg, NULL, 0), ==,
                    0);
    assert_agree(p->backend, d);
    take_over(&p->source, &p->destination);
    assert_names(p->backend, &p->destination, SOURCE_LOCAL);
    pair_free(p);
}

/*
 * The source
 */

static void test_hold_and_take_back(void)
{
    for (int slots = 0; slots < 2; slots++) {
        Pair *p = pair_start(0, PF_STATUS | PF_INFLIGHT | PF_BACKEND_REQ |
                             (slots ? PF_SLOTS : 0));
        Device *d = &p->source;

        backend_forget(p->backend);
        device_release(d);
        vhost_user_session_own(d->session, true);
        device_lend(d);
        g_assert_true(device_start(d));
        g_assert_cmpint(commit(d), ==, 0);
        assert_told(p->backend, "");
        assert_agree(p->backend, d);

        /* The device can stop and start as usual */
        g_assert_true(device_stop(d));
        g_assert_true(device_start(d));
        assert_agree(p->backend, d);
        pair_free(p);
    }
}

static void test_hold_and_stop(void)
{
    Pair *p = pair_start(0, PF_STATUS);
    Device *d = &p->source;

    p->backend->ring[1].base = 77;
    backend_forget(p->backend);
    device_release(d);
    vhost_user_session_own(d->session, true);
    g_assert_cmpint(commit(d), ==, 5);
    assert_told(p->backend, STOP " 39");
    assert_agree(p->backend, d);
    g_assert_cmpuint(vhost_user_session_ring_base(d->session, 1), ==, 77);
    pair_free(p);
}

static void test_hold_and_reset(void)
{
    Pair *p = pair_start(0, 0);
    Device *d = &p->source;

    p->backend->ring[0].base = p->backend->ring[1].base = 77;
    backend_forget(p->backend);
    device_release(d);
    vhost_user_session_rewind(d->session);
    d->base[0] = d->base[1] = 0;
    vhost_user_session_own(d->session, true);
    device_lend(d);
    g_assert_cmpint(d->kick[0], ==, -1);
    g_assert_true(device_start(d));
    commit(d);
    assert_told(p->backend, STOP " " START);
    g_assert_cmpuint(p->backend->ring[0].base, ==, 0);
    g_assert_cmpuint(p->backend->ring[1].base, ==, 0);
    assert_agree(p->backend, d);
    pair_free(p);
}

/* The source's guest was reset before the other QEMU took over. */
static void test_hand_over_reset(void)
{
    Pair *p = pair_start(0, PF_INFLIGHT);
    Device *d = &p->destination;

    p->backend->ring[0].base = p->backend->ring[1].base = 77;
    device_release(&p->source);
    vhost_user_session_rewind(p->source.session);
    p->source.base[0] = p->source.base[1] = 0;
    load(&p->source, d);
    vhost_user_session_own(d->session, true);
    device_lend(d);
    g_assert_cmpint(d->kick[0], ==, -1);
    backend_forget(p->backend);
    g_assert_true(device_start(d));
    commit(d);
    assert_told(p->backend, STOP " 31 32 " START);
    g_assert_cmpuint(p->backend->ring[0].base, ==, 0);
    g_assert_cmpuint(p->backend->ring[1].base, ==, 0);
    assert_agree(p->backend, d);
    pair_free(p);
}

/* After lending has failed, a new file gets the number of the lent file. */
static void test_lend_fails(void)
{
    Pair *p = pair_start(0, 0);
    Device *d = &p->source;
    int lent;

    device_release(d);
    vhost_user_session_own(d->session, true);
    device_lend(d);
    lent = d->call[1];

    limit_fds(true);
    g_assert_cmpint(vhost_user_session_lend_call(d->session, 1), ==, -1);
    limit_fds(false);

    close(lent);
    d->call[1] = new_eventfd();
    g_assert_cmpint(d->call[1], ==, lent);
    g_assert_true(device_start(d));
    backend_forget(p->backend);
    commit(d);
    assert_told(p->backend, "13.1");
    assert_agree(p->backend, d);
    pair_free(p);
}

/* The session changes none of the device's descriptors. */
static void test_err_stays(void)
{
    Pair *p = pair_start(0, 0);
    Device *d = &p->source;
    Msg msg = {
        .request = MSG_SET_VRING_ERR,
        .flags = MSG_VERSION,
        .size = sizeof(msg.u64),
    };
    uint64_t n = 7;
    int fd = new_eventfd();

    device_release(d);
    g_assert_cmpint(write(fd, &n, sizeof(n)), ==, sizeof(n));
    g_assert_true(device_write(d, &msg, &fd, 1));
    g_assert_cmpint(read(fd, &n, sizeof(n)), ==, sizeof(n));
    g_assert_cmpuint(n, ==, 7);

    /* It is another file than the back-end has, so the back-end gets it */
    close(d->err[0]);
    d->err[0] = fd;
    vhost_user_session_own(d->session, true);
    device_lend(d);
    g_assert_true(device_start(d));
    backend_forget(p->backend);
    commit(d);
    assert_told(p->backend, "14.0");
    assert_agree(p->backend, d);
    pair_free(p);
}

static void test_hold_without_stop(void)
{
    Pair *p = pair_start(0, 0);
    Device *d = &p->source;

    backend_forget(p->backend);
    vhost_user_session_hold(d->session);
    g_assert_cmpint(commit(d), ==, 0);
    assert_told(p->backend, "");
    assert_agree(p->backend, d);
    pair_free(p);
}

static void test_released_is_silent(void)
{
    Pair *p = pair_start(0, PF_STATUS);
    Device *d = &p->source;
    Msg msg = {
        .request = MSG_SEND_RARP,
        .flags = MSG_VERSION,
        .size = sizeof(msg.u64),
    };

    backend_forget(p->backend);
    device_release(d);
    for (int i = 0; i < 3; i++) {
        g_assert_true(device_start(d));
        g_assert_true(device_set_config(d, 3, i));
        g_assert_true(device_stop(d));
        vhost_user_session_rewind(d->session);
    }
    /* A new set-up of the back-end sends nothing, either */
    g_assert_true(device_connect(d));

    /* A request that the session cannot answer fails */
    g_assert_cmpint(vhost_user_session_write(d->session, &msg, NULL, 0), ==,
                    -EBUSY);
    g_assert_true(vhost_user_session_held(d->session));
    assert_told(p->backend, "");
    pair_free(p);
}

static void test_unanswerable_goes_through(void)
{
    Pair *p = pair_start(0, 0);
    Device *d = &p->destination;
    Msg msg = {
        .request = MSG_SEND_RARP,
        .flags = MSG_VERSION,
        .size = sizeof(msg.u64),
    };

    hand_over(&p->source, d);
    device_lend(d);
    differ_call(d);
    g_assert_true(device_start(d));
    backend_forget(p->backend);

    g_assert_true(device_write(d, &msg, NULL, 0));
    assert_told(p->backend, "19");
    g_assert_true(vhost_user_session_held(d->session));
    g_assert_cmpint(commit(d), ==, 1);
    assert_told(p->backend, "13.1");
    assert_agree(p->backend, d);
    pair_free(p);
}

/* Rings must stop before a request that the device sends after a reset. */
static void test_unanswerable_after_reset(void)
{
    Pair *p = pair_start(0, 0);
    Device *d = &p->source;
    Msg msg = {
        .request = MSG_SEND_RARP,
        .flags = MSG_VERSION,
        .size = sizeof(msg.u64),
    };

    backend_forget(p->backend);
    device_release(d);
    vhost_user_session_rewind(d->session);
    vhost_user_session_own(d->session, true);
    g_assert_true(device_write(d, &msg, NULL, 0));
    assert_told(p->backend, STOP " 19");
    g_assert_cmpint(commit(d), ==, 0);
    assert_told(p->backend, "");
    assert_agree(p->backend, d);
    pair_free(p);
}

static void test_held_config(void)
{
    Pair *p = pair_start(0, 0);
    Device *d = &p->destination;
    uint8_t config[CONFIG_SIZE];

    hand_over(&p->source, d);
    g_assert_true(device_set_config(d, 5, 123));
    memcpy(config, d->config, sizeof(config));

    /* The device reads the config space that it has written */
    g_assert_true(device_connect(d));
    g_assert_cmpmem(config, sizeof(config), d->config, CONFIG_SIZE);
    device_lend(d);
    g_assert_true(device_start(d));
    commit(d);
    assert_agree(p->backend, d);
    pair_free(p);
}

/* A device reads any part of the config space that it has written. */
static void test_held_config_offset(void)
{
    static const struct {
        uint32_t offset, size;
    } parts[] = { { 0, 60 }, { 0, 4 }, { 4, 2 }, { 5, 1 }, { 8, 52 } };
    Pair *p = pair_start(0, 0);
    Device *d = &p->source;
    Msg write = {
        .request = MSG_SET_CONFIG,
        .flags = MSG_VERSION,
        .size = offsetof(Msg, config.data) - MSG_HEADER + 5,
        .config = { .offset = 3, .size = 5, .data = { 90, 91, 92, 93, 94 } },
    };
    Msg msg;

    device_release(d);
    g_assert_true(device_write(d, &write, NULL, 0));
    memcpy(d->config + 3, write.config.data, 5);
    for (unsigned i = 0; i < ARRAY_SIZE(parts); i++) {
        msg = (Msg) {
            .request = MSG_GET_CONFIG,
            .size = offsetof(Msg, config.data) - MSG_HEADER + parts[i].size,
            .config = { .offset = parts[i].offset, .size = parts[i].size },
        };
        g_assert_true(device_ask(d, &msg));
        g_assert_cmpuint(msg.config.offset, ==, parts[i].offset);
        g_assert_cmpmem(msg.config.data, msg.config.size,
                        d->config + parts[i].offset, parts[i].size);
    }

    /* The session does not know what is behind the config space */
    msg.config.offset = CONFIG_SIZE - msg.config.size + 1;
    g_assert_cmpint(vhost_user_session_write(d->session, &msg, NULL, 0), ==,
                    -EBUSY);
    msg.config.offset = UINT32_MAX;
    g_assert_cmpint(vhost_user_session_write(d->session, &msg, NULL, 0), ==,
                    -EBUSY);
    pair_free(p);
}

/* The config space is known even if the device has read it in parts. */
static void test_config_parts(void)
{
    Pair *p = pair_new();
    Device *d = &p->source;

    d->protocol_features |= PF_CONFIG;
    g_assert_true(device_connect(d));
    for (unsigned i = 0; i < 2; i++) {
        Msg msg = {
            .request = MSG_GET_CONFIG,
            .flags = MSG_VERSION | MSG_REPLY,
            .size = offsetof(Msg, config.data) - MSG_HEADER + 8,
            .config = { .offset = 8 * i, .size = 8, .data = { 200 + i } },
        };

        vhost_user_session_read(d->session, &msg);
    }
    device_release(d);
    p->destination.config[0] = 200;
    load(d, &p->destination);
    g_assert_cmpuint(p->destination.config[0], ==, 200);
    g_assert_cmpuint(p->destination.config[8], ==, 201);
    g_assert_cmpuint(p->destination.config[CONFIG_SIZE - 1], ==,
                     CONFIG_SIZE - 1);
    pair_free(p);
}

/* A device has a config space, and does not ask the back-end for it. */
static void test_no_config(void)
{
    Pair *p = pair_new();
    VhostUserSessionFits fits;

    p->source.protocol_features &= ~PF_CONFIG;
    p->destination.protocol_features &= ~PF_CONFIG;
    start(&p->source);
    device_release(&p->source);
    g_assert_true(copy_session(p->source.session, p->destination.session));
    fits = device_fits(&p->destination);
    fits.config_size = CONFIG_SIZE;
    g_assert_true(vhost_user_session_adopt(p->destination.session, &fits,
                                           &error_abort));
    pair_free(p);
}

static void test_reset_stops_rings(void)
{
    static const unsigned requests[] = { MSG_RESET_OWNER, MSG_RESET_DEVICE };

    for (unsigned i = 0; i < ARRAY_SIZE(requests); i++) {
        Pair *p = pair_start(0, 0);
        Device *d = &p->source;
        Msg msg = { .request = requests[i], .flags = MSG_VERSION };

        g_assert_true(vhost_user_session_ring_running(d->session, 1));
        g_assert_false(vhost_user_session_ring_running(d->session, 2));
        g_assert_true(device_write(d, &msg, NULL, 0));
        g_assert_false(vhost_user_session_ring_running(d->session, 1));
        d->started = false;

        /* There are no running rings to take over */
        take_over(d, &p->destination);
        g_assert_true(device_start(&p->destination));
        assert_agree(p->backend, &p->destination);
        pair_free(p);
    }
}

static void test_owner(void)
{
    Pair *p = pair_start(0, 0);

    g_assert_true(vhost_user_session_owned(p->source.session));
    device_release(&p->source);
    g_assert_false(vhost_user_session_owned(p->source.session));
    load(&p->source, &p->destination);
    g_assert_false(vhost_user_session_owned(p->destination.session));
    vhost_user_session_own(p->destination.session, true);
    g_assert_true(vhost_user_session_owned(p->destination.session));
    pair_free(p);
}

static void test_kick(void)
{
    Pair *p = pair_start(0, 0);
    uint64_t n;

    vhost_user_session_kick(p->source.session);
    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(read(p->backend->ring[i].kick, &n, sizeof(n)), ==,
                        sizeof(n));
    }
    pair_free(p);
}

/*
 * The commit
 */

static void set_call(Device *d, unsigned ring, int fd)
{
    Msg msg = {
        .request = MSG_SET_VRING_CALL,
        .flags = MSG_VERSION,
        .size = sizeof(msg.u64),
        .u64 = ring,
    };

    g_assert_true(device_write(d, &msg, &fd, 1));
}

/*
 * A device unmasks its call eventfd after it has started its rings. The
 * back-end has no call eventfd for a stopped ring, so it must get one before
 * the ring starts.
 */
static void test_call_before_start(void)
{
    Pair *p = pair_start(0, 0);
    Device *d = &p->source;

    device_release(d);
    vhost_user_session_own(d->session, true);
    d->num /= 2;
    g_assert_true(device_start(d));
    for (unsigned i = 0; i < d->rings; i++) {
        set_call(d, i, d->mask[i]);
        set_call(d, i, d->call[i]);
    }
    backend_forget(p->backend);
    commit(d);
    assert_told(p->backend, STOP " 8.0 10.0 9.0 8.1 10.1 9.1 13.0 13.1"
                " 12.0 12.1 18.0 18.1");
    assert_agree(p->backend, d);
    pair_free(p);
}

/* The device has new features, and logging begins, while it starts. */
static void test_log_before_start(void)
{
    Pair *p = pair_start(0, 0);
    Device *d = &p->source;
    uint64_t addr = d->memory[0].local + d->addr[1];
    Msg features = {
        .request = MSG_SET_FEATURES,
        .flags = MSG_VERSION,
        .size = sizeof(features.u64),
    };
    Msg msg = {
        .request = MSG_SET_VRING_ADDR,
        .flags = MSG_VERSION,
        .size = sizeof(msg.addr),
        .addr = { 1, 1, addr, addr + 0xc00, addr + 0x800, 0x5000 },
    };

    device_release(d);
    vhost_user_session_own(d->session, true);
    d->features &= ~F_EVENT_IDX;
    g_assert_true(device_start(d));
    d->features |= F_LOG_ALL;
    features.u64 = d->features;
    g_assert_true(device_write(d, &features, NULL, 0));
    g_assert_true(device_write(d, &msg, NULL, 0));
    backend_forget(p->backend);
    commit(d);
    assert_told(p->backend, STOP " " SETUP_0 " 8.1 10.1 13.1 2 9.1"
                " 12.0 12.1 18.0 18.1");
    assert_agree(p->backend, d);
    pair_free(p);
}

typedef struct Counter {
    VhostUserSessionOps ops;
    unsigned sent;
    Msg last;
} Counter;

static bool counter_send(void *opaque, const void *msg, size_t len,
                         const int *fds, size_t nfds, Error **errp)
{
    Counter *c = opaque;

    g_assert_cmpuint(len, <=, sizeof(c->last));
    memcpy(&c->last, msg, len);
    c->sent++;
    return true;
}

static bool counter_receive(void *opaque, void *msg, size_t size, Error **errp)
{
    Counter *c = opaque;

    c->last.flags |= MSG_REPLY;
    memcpy(msg, &c->last, MSG_HEADER + c->last.size);
    return true;
}

static void write_ring(VhostUserSession *s, unsigned request, unsigned ring,
                       unsigned num)
{
    Msg msg = {
        .request = request,
        .flags = MSG_VERSION,
        .size = request == MSG_SET_VRING_ADDR ? sizeof(msg.addr) :
                                                sizeof(msg.state),
        .state = { ring, num },
    };

    if (request == MSG_SET_VRING_KICK || request == MSG_SET_VRING_CALL) {
        msg.u64 = ring | MSG_NO_FD;
    }
    g_assert_cmpint(vhost_user_session_write(s, &msg, NULL, 0), >=, 0);
}

static void write_start(VhostUserSession *s, unsigned num)
{
    for (unsigned i = 0; i < VHOST_USER_SESSION_RINGS; i++) {
        write_ring(s, MSG_SET_VRING_NUM, i, num);
        write_ring(s, MSG_SET_VRING_BASE, i, 0);
        write_ring(s, MSG_SET_VRING_ADDR, i, 0);
        write_ring(s, MSG_SET_VRING_KICK, i, 0);
        write_ring(s, MSG_SET_VRING_CALL, i, 0);
    }
    for (unsigned i = 0; i < VHOST_USER_SESSION_RINGS; i++) {
        write_ring(s, MSG_SET_VRING_ENABLE, i, 1);
    }
}

/* The VM is stopped while a commit runs: with all rings it must be short. */
static void test_all_rings(void)
{
    Counter c = { .ops = { counter_send, counter_receive } };
    VhostUserSession *s = vhost_user_session_new(&c.ops, &c);
    gint64 start;

    write_start(s, 128);
    vhost_user_session_hold(s);
    start = g_get_monotonic_time();
    for (unsigned cycle = 0; cycle < 4; cycle++) {
        for (unsigned i = 0; i < VHOST_USER_SESSION_RINGS; i++) {
            write_ring(s, MSG_SET_VRING_ENABLE, i, 0);
            write_ring(s, MSG_GET_VRING_BASE, i, 0);
        }
        write_start(s, 256);
    }
    g_test_message("store: %" PRId64 " us", g_get_monotonic_time() - start);
    start = g_get_monotonic_time();
    /* GET_VRING_BASE, NUM, BASE, ADDR, KICK and CALL of each ring */
    g_assert_cmpint(vhost_user_session_commit(s, &error_abort), ==,
                    6 * VHOST_USER_SESSION_RINGS);
    g_test_message("commit: %" PRId64 " us", g_get_monotonic_time() - start);
    vhost_user_session_free(s);
}

/*
 * Failures
 */

static void test_commit_refused(void)
{
    Pair *p = pair_start(0, PF_SLOTS);
    Device *d = &p->destination;
    Error *err = NULL;

    p->backend->refuse = MSG_ADD_MEM_REG;
    hand_over(&p->source, d);
    device_lend(d);
    differ_memory_added(d);
    g_assert_true(device_start(d));
    g_assert_cmpint(vhost_user_session_commit(d->session, &err), ==, -1);
    error_free_or_abort(&err);
    g_assert_false(vhost_user_session_held(d->session));
    pair_free(p);
}

static void test_commit_removal_refused(void)
{
    Pair *p = pair_start(0, PF_SLOTS);
    Device *d = &p->destination;
    Error *err = NULL;

    p->backend->refuse = MSG_REM_MEM_REG;
    hand_over(&p->source, d);
    device_lend(d);
    differ_memory_removed(d);
    g_assert_true(device_start(d));
    g_assert_cmpint(vhost_user_session_commit(d->session, &err), ==, -1);
    error_free_or_abort(&err);
    pair_free(p);
}

/* A ring must not continue at an index from a reply that is wrong. */
static void test_commit_wrong_reply(void)
{
    static const unsigned requests[] = {
        MSG_ADD_MEM_REG, MSG_GET_VRING_BASE, MSG_SET_VRING_ENABLE,
    };

    for (unsigned i = 0; i < ARRAY_SIZE(requests) * SPOILAGES; i++) {
        Pair *p = pair_start(0, PF_SLOTS);
        Device *d = &p->destination;
        Error *err = NULL;

        hand_over(&p->source, d);
        device_lend(d);
        differ_memory_added(d);
        differ_kick(d);
        g_assert_true(device_start(d));
        p->backend->spoil = requests[i / SPOILAGES];
        p->backend->spoilage = i % SPOILAGES;
        g_assert_cmpint(vhost_user_session_commit(d->session, &err), ==, -1);
        error_free_or_abort(&err);
        g_assert_cmpuint(vhost_user_session_ring_base(d->session, 1), ==, 0);
        pair_free(p);
    }
}

/* A wrong reply to the device is for the device to refuse. */
static void test_wrong_base(void)
{
    for (unsigned i = 0; i < SPOILAGES; i++) {
        Pair *p = pair_start(0, 0);
        Device *d = &p->source;

        p->backend->ring[0].base = 5;
        p->backend->spoil = MSG_GET_VRING_BASE;
        p->backend->spoilage = i;
        device_stop_ring(d, 0);
        g_assert_cmpuint(vhost_user_session_ring_base(d->session, 0), ==, 0);
        g_assert_cmpuint(vhost_user_session_ring_base(d->session, 1), ==, 0);
        pair_free(p);
    }
}

/* A QEMU that does not own the connection runs the VM, by mistake. */
static void test_commit_not_owned(void)
{
    Pair *p = pair_start(0, 0);
    Device *d = &p->source;
    Error *err = NULL;

    backend_forget(p->backend);
    g_assert_cmpint(vhost_user_session_commit(d->session, &err), ==, -1);
    error_free_or_abort(&err);

    device_release(d);
    device_lend(d);
    g_assert_true(device_start(d));
    g_assert_cmpint(vhost_user_session_commit(d->session, &err), ==, -1);
    error_free_or_abort(&err);
    assert_told(p->backend, "");

    /* Nothing is lost */
    vhost_user_session_own(d->session, true);
    g_assert_cmpint(commit(d), ==, 0);
    assert_agree(p->backend, d);
    pair_free(p);
}

/* The device starts after the commit, and must first remove old memory. */
static void test_start_refused(void)
{
    Pair *p = pair_start(0, PF_SLOTS);
    Device *d = &p->destination;

    g_assert_true(device_stop(&p->source));
    d->memory[0].file = 2;
    take_over(&p->source, d);
    p->backend->refuse = MSG_REM_MEM_REG;
    g_assert_false(device_start(d));
    pair_free(p);
}

/* On EMFILE a device goes on working, but can no longer be handed over. */
static void test_observe_without_fds(void)
{
    Pair *p = pair_new();
    Error *err = NULL;
    Msg msg = {
        .request = MSG_SET_VRING_KICK,
        .flags = MSG_VERSION,
        .size = sizeof(msg.u64),
    };
    int fd = new_eventfd();

    limit_fds(true);
    g_assert_cmpint(vhost_user_session_write(p->source.session, &msg, &fd, 1),
                    ==, 0);
    limit_fds(false);
    g_assert_false(vhost_user_session_check(p->source.session, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), strerror(EMFILE)));
    error_free(err);
    close(fd);
    pair_free(p);
}

/* A held session fails a message whose file it cannot keep. */
static void test_hold_without_fds(void)
{
    Pair *p = pair_start(0, PF_INFLIGHT);
    Device *d = &p->source;
    Msg msg = {
        .request = MSG_SET_VRING_CALL,
        .flags = MSG_VERSION,
        .size = sizeof(msg.u64),
    };

    device_release(d);
    limit_fds(true);
    g_assert_cmpint(vhost_user_session_write(d->session, &msg, &d->mask[0], 1),
                    <, 0);
    limit_fds(false);
    vhost_user_session_own(d->session, true);
    device_lend(d);
    g_assert_true(device_start(d));
    g_assert_cmpint(commit(d), ==, 0);
    assert_agree(p->backend, d);
    pair_free(p);
}

static void test_commit_disconnected(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(differences); i++) {
        Pair *p = pair_start(0, differences[i].protocol);
        Device *d = &p->destination;
        Error *err = NULL;

        d->num = 256;
        hand_over(&p->source, d);
        d->num = p->source.num;
        device_lend(d);
        if (differences[i].change) {
            differences[i].change(d);
        }
        g_assert_true(device_start(d));
        p->backend->silent = true;
        if (differences[i].told[0]) {
            g_assert_cmpint(vhost_user_session_commit(d->session, &err), ==,
                            -1);
            error_free_or_abort(&err);
        } else {
            g_assert_cmpint(commit(d), ==, 0);
        }
        g_assert_false(vhost_user_session_held(d->session));

        /* The next connection begins with an empty session */
        vhost_user_session_begin(d->session);
        g_assert_false(vhost_user_session_has_replies(d->session));
        pair_free(p);
    }
}

/* The destination is killed while it reads the stream. */
static void test_save_disconnected(void)
{
    Pair *p = pair_start(0, PF_INFLIGHT | PF_BACKEND_REQ);
    Device *d = &p->source;
    int sv[2];

    device_release(d);
    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    close(sv[0]);
    g_assert_false(session_save_end(session_save_begin(d->session, sv[1])));

    vhost_user_session_own(d->session, true);
    backend_forget(p->backend);
    device_lend(d);
    g_assert_true(device_start(d));
    g_assert_cmpint(commit(d), ==, 0);
    assert_told(p->backend, "");
    assert_agree(p->backend, d);
    pair_free(p);
}

static void test_check_refuses_untracked(void)
{
    /* Requests that set a field of the session, or no state at all */
    static const unsigned tracked[] = {
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
        21, 22, 24, 25, 28, 29, 30, 31, 32, 34, 36, 37, 38, 39, 40,
    };

    for (unsigned request = 1; request <= MSG_LAST; request++) {
        Backend *b = backend_new();
        Device d;
        Msg msg = { .request = request, .flags = MSG_VERSION, .size = 48 };
        int fd = memory_file(0);
        bool ok = false;
        Error *err = NULL;

        for (unsigned i = 0; i < ARRAY_SIZE(tracked); i++) {
            ok |= tracked[i] == request;
        }
        device_init_fields(&d, &b->wire, SOURCE_LOCAL);
        msg.table.num = request == MSG_SET_MEM_TABLE;
        if (msg.table.num) {
            msg.table.region[0].size = 0x1000;
        } else if (request == MSG_ADD_MEM_REG) {
            msg.slot.region.size = 0x1000;
        }
        g_assert_cmpint(vhost_user_session_write(
                            d.session, &msg, &fd,
                            msg.table.num || request == MSG_ADD_MEM_REG),
                        ==, 0);
        g_assert_cmpint(vhost_user_session_check(d.session, &err), ==, ok);
        if (!ok) {
            error_free_or_abort(&err);
        }

        /* A new connection can be handed over again */
        vhost_user_session_reset(d.session);
        g_assert_true(vhost_user_session_check(d.session, &error_abort));
        device_cleanup(&d);
        backend_free(b);
    }
}

static void write_region(Device *d, uint64_t size)
{
    Msg msg = {
        .request = MSG_ADD_MEM_REG,
        .flags = MSG_VERSION,
        .size = sizeof(msg.slot),
        .slot.region = { .size = size, .mmap_offset = size },
    };
    int fd = memory_file(0);

    g_assert_cmpint(vhost_user_session_write(d->session, &msg, &fd, 1), ==, 0);
}

/* A region with an invalid size does not disturb the next region. */
static void test_check_refuses_sizes(void)
{
    static const uint64_t sizes[] = { 0, INT64_MAX, UINT64_MAX };

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        Backend *b = backend_new();
        Device d;
        Error *err = NULL;

        device_init_fields(&d, &b->wire, SOURCE_LOCAL);
        write_region(&d, sizes[i]);
        write_region(&d, 0x1000);
        g_assert_false(vhost_user_session_check(d.session, &err));
        error_free_or_abort(&err);
        device_cleanup(&d);
        backend_free(b);
    }
}

/*
 * Untrusted streams
 */

static void swap_file(int *fd, int with)
{
    g_assert_cmpint(with, >=, 0);
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = with;
}

static int new_socket(int type)
{
    return qemu_socket(AF_UNIX, type, 0);
}

static void bad_rings(VhostUserSession *s)
{
    session_grow_rings(s, 3);
}

static void bad_ring_size(VhostUserSession *s)
{
    s->ring[0].num = 129;
}

static void bad_ring_empty(VhostUserSession *s)
{
    s->ring[1].num = 0;
}

static void bad_ring_half(VhostUserSession *s)
{
    s->ring[1].addr_known = false;
}

static void bad_ring_desc(VhostUserSession *s)
{
    s->ring[1].desc = 0x1000;
}

static void bad_ring_used(VhostUserSession *s)
{
    s->ring[1].used = UINT64_MAX;
}

static void bad_ring_avail(VhostUserSession *s)
{
    s->ring[1].avail += 0x80000000;
}

static void bad_kick(VhostUserSession *s)
{
    swap_file(&s->ring[0].kick, new_socket(SOCK_STREAM));
}

static void bad_kick_blocking(VhostUserSession *s)
{
    swap_file(&s->ring[0].kick, eventfd(0, EFD_CLOEXEC));
}

static void bad_call(VhostUserSession *s)
{
    swap_file(&s->ring[0].call, open("/dev/null", O_RDWR | O_CLOEXEC));
}

static void bad_err(VhostUserSession *s)
{
    swap_file(&s->ring[1].err, dup(memory_file(0)));
}

static void bad_inflight_file(VhostUserSession *s)
{
    swap_file(&s->inflight_fd, new_eventfd());
}

static void bad_inflight_size(VhostUserSession *s)
{
    s->inflight.size += 1;
}

static void bad_inflight_offset(VhostUserSession *s)
{
    s->inflight.offset = UINT64_MAX - 0x1000;
}

static void bad_inflight_empty(VhostUserSession *s)
{
    s->inflight.size = 0;
}

static void bad_channel_file(VhostUserSession *s)
{
    swap_file(&s->channel_fd, new_eventfd());
}

static void bad_channel_type(VhostUserSession *s)
{
    swap_file(&s->channel_fd, new_socket(SOCK_DGRAM));
}

static void bad_config_size(VhostUserSession *s)
{
    s->config_size--;
}

static void bad_region_size(VhostUserSession *s)
{
    s->region[0].size = UINT64_MAX - 0x1000;
}

static void bad_region_name(VhostUserSession *s)
{
    s->region[1].name = UINT64_MAX - s->region[1].size;
}

static void bad_region_empty(VhostUserSession *s)
{
    s->region[1].size = 0;
}

static void bad_region_overlap(VhostUserSession *s)
{
    s->region[1].name = s->region[0].name + s->region[0].size - 1;
}

static void bad_region_guest_overlap(VhostUserSession *s)
{
    s->region[1].guest_addr = s->region[0].guest_addr;
}

static void bad_region_file(VhostUserSession *s)
{
    s->region[1].ino ^= 1 << 30;
}

static const struct {
    const char *name;
    void (*spoil)(VhostUserSession *s);
    const char *error;
} bad_sessions[] = {
    { "rings", bad_rings, "num-queues" },
    { "ring-size", bad_ring_size, "queue-size" },
    { "ring-empty", bad_ring_empty, "not set up" },
    { "ring-half", bad_ring_half, "not set up" },
    { "ring-desc", bad_ring_desc, "not in the guest's memory" },
    { "ring-used", bad_ring_used, "not in the guest's memory" },
    { "ring-avail", bad_ring_avail, "not in the guest's memory" },
    { "kick", bad_kick, "eventfd" },
    { "kick-blocking", bad_kick_blocking, "non-blocking" },
    { "call", bad_call, "eventfd" },
    { "err", bad_err, "eventfd" },
    { "inflight-file", bad_inflight_file, "inflight" },
    { "inflight-size", bad_inflight_size, "inflight" },
    { "inflight-offset", bad_inflight_offset, "inflight" },
    { "inflight-empty", bad_inflight_empty, "inflight" },
    { "channel-file", bad_channel_file, "not a socket" },
    { "channel-type", bad_channel_type, "not a socket" },
    { "config-size", bad_config_size, "config space" },
    { "region-size", bad_region_size, "size" },
    { "region-name", bad_region_name, "size" },
    { "region-empty", bad_region_empty, "size" },
    { "region-overlap", bad_region_overlap, "overlap" },
    { "region-guest-overlap", bad_region_guest_overlap, "overlap" },
    { "region-file", bad_region_file, "not shared" },
};

static void test_bad_session(const void *opaque)
{
    unsigned n = GPOINTER_TO_UINT(opaque);
    Pair *p = pair_start(0, PF_INFLIGHT | PF_BACKEND_REQ);
    Error *err = NULL;

    device_release(&p->source);
    bad_sessions[n].spoil(p->source.session);
    g_assert_true(copy_session(p->source.session, p->destination.session));
    g_assert_false(adopt(&p->destination, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), bad_sessions[n].error));
    error_free(err);
    g_assert_false(vhost_user_session_held(p->destination.session));
    pair_free(p);
}

/* A stream contains a subsection with a file twice. */
static void test_twice(const void *opaque)
{
    g_autofree char *name = g_strdup_printf("vhost-user-session/%s",
                                            (const char *)opaque);
    Pair *p = pair_start(0, PF_INFLIGHT | PF_BACKEND_REQ);
    QIOChannel *ioc;
    QEMUFile *f;
    int sv[2];

    device_release(&p->source);
    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    ioc = QIO_CHANNEL(qio_channel_socket_new_fd(sv[1], &error_abort));
    f = qemu_file_new_output(ioc);
    object_unref(OBJECT(ioc));
    g_assert(!vmstate_save_state(f, &vmstate_vhost_user_session,
                                 p->source.session, NULL, &error_abort));
    qemu_put_byte(f, QEMU_VM_SUBSECTION);
    qemu_put_byte(f, strlen(name));
    qemu_put_buffer(f, (void *)name, strlen(name));
    qemu_put_be32(f, 1);                /* version */
    if (g_str_equal(opaque, "inflight")) {
        qemu_put_be64(f, 0x1000);       /* size */
        qemu_put_be64(f, 0);            /* offset */
        qemu_put_be16(f, 2);            /* queues */
        qemu_put_be16(f, 128);          /* their size */
    }
    qemu_file_put_fd(f, memory_file(0));
    qemu_put_byte(f, QEMU_VM_EOF);
    g_assert(!qemu_fclose(f));

    g_assert_true(session_load(p->destination.session, sv[0]));
    pair_free(p);
}

/* A QEMU with "-run-with chroot=" has no /proc to look files up in. */
static void test_chroot(void)
{
    Pair *p;

    if (!g_test_subprocess()) {
        g_test_trap_subprocess(NULL, 0, G_TEST_SUBPROCESS_INHERIT_STDERR);
        g_test_trap_assert_passed();
        return;
    }
    p = pair_start(0, PF_INFLIGHT | PF_BACKEND_REQ);
    device_release(&p->source);
    if (chroot(g_get_tmp_dir()) == 0) {         /* needs CAP_SYS_CHROOT */
        load(&p->source, &p->destination);
    }
    _exit(0);           /* handlers of exit() may need /proc */
}

static void load_begin(const uint8_t *stream, size_t size)
{
    Pair *p = pair_new();
    Device *d = &p->destination;
    int sv[2];

    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    g_assert_cmpint(write(sv[1], stream, size), ==, size);
    close(sv[1]);
    g_assert_false(session_load(d->session, sv[0]));

    /* The session still works for a later connection */
    vhost_user_session_reset(d->session);
    start(d);
    g_assert_true(device_set_config(d, 1, 2));
    assert_agree(p->backend, d);
    pair_free(p);
}

/* Load streams that end in one of the counts or directly after it. */
static void load_counts(uint32_t config, uint32_t regions, uint32_t rings)
{
    static const char name[] = "vhost-user-session/config";
    const size_t regions_at = 0;
    const size_t rings_at = 4;
    const size_t config_at = 8 + 2 + strlen(name) + 4;
    uint8_t stream[128] = { 0 };

    stl_be_p(stream + regions_at, regions);
    stl_be_p(stream + rings_at, rings);
    stream[8] = QEMU_VM_SUBSECTION;
    stream[9] = strlen(name);
    memcpy(stream + 10, name, strlen(name));
    stl_be_p(stream + config_at - 4, 1);        /* version */
    stl_be_p(stream + config_at, config);
    for (size_t n = 0; n <= 4; n++) {
        load_begin(stream, regions_at + n);
        if (n < 4 || regions || rings) {
            load_begin(stream, rings_at + n);
        }
        load_begin(stream, config_at + n);
    }
}

static void test_bad_counts(void)
{
    load_counts(0, 0, 0);       /* valid counts, but the stream is cut off */
    load_counts(VHOST_USER_SESSION_CONFIG + 1, 0, 0);
    load_counts(UINT32_MAX, 0, 0);
    load_counts(0, VHOST_USER_SESSION_REGIONS + 1, 0);
    load_counts(0, UINT32_MAX, 0);
    load_counts(0, 0, VHOST_USER_SESSION_RINGS + 1);
    load_counts(0, 0, UINT32_MAX);
}

/*
 * Running the tests; each checks that no file is left open
 */

typedef struct Test {
    void (*run)(const void *opaque);
    const void *opaque;
} Test;

static void run_test(const void *opaque)
{
    const Test *test = opaque;
    unsigned before = count_fds();

    test->run(test->opaque);
    g_assert_cmpuint(count_fds(), ==, before);
}

static void run_plain(const void *opaque)
{
    ((void (*)(void))opaque)();
}

static void add_test(const char *path, void (*run)(const void *),
                     const void *opaque)
{
    g_autofree char *full = g_strdup_printf("/vhost-user-session/%s", path);
    Test *test = g_new(Test, 1);

    *test = (Test) { run, opaque };
    g_test_add_data_func_full(full, test, run_test, g_free);
}

static void add(const char *path, void (*run)(void))
{
    add_test(path, run_plain, run);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    module_call_init(MODULE_INIT_QOM);
    signal(SIGPIPE, SIG_IGN);           /* as in QEMU */
    for (unsigned i = 0; i < MEMORY_FILES; i++) {
        memory_file(i);
    }

    add("adopt/same", test_adopt_same);
    add("adopt/random", test_adopt_random);
    for (unsigned i = 0; i < ARRAY_SIZE(differences); i++) {
        g_autofree char *path = g_strdup_printf("difference/%s",
                                                differences[i].name);

        add_test(path, test_difference, GUINT_TO_POINTER(i));
    }
    add("difference/err", test_difference_err);
    add("difference/status", test_difference_status);
    add("difference/protocol-features", test_difference_protocol_features);
    add("difference/more-protocol-features", test_more_protocol_features);
    add("difference/more-rings", test_more_rings);
    add("difference/no-inflight", test_no_inflight);
    add("difference/channel", test_channel);
    add("restart/at-once", test_restart);
    add("restart/later", test_restart_later);
    add_test("names/hotplug/table", test_names_hotplug, NULL);
    add_test("names/hotplug/slots", test_names_hotplug, "slots");
    add("names/ring-addr", test_names_ring_addr);
    add_test("names/alias/table", test_names_alias, NULL);
    add_test("names/alias/slots", test_names_alias, "slots");
    add("names/iotlb", test_names_iotlb);
    add("names/dropped", test_names_dropped);
    add("names/of-slots-stay", test_names_of_slots_stay);
    add_test("names/postcopy/table", test_names_postcopy, NULL);
    add_test("names/postcopy/slots", test_names_postcopy, "slots");
    add("hold/take-back", test_hold_and_take_back);
    add("hold/stop", test_hold_and_stop);
    add("hold/reset", test_hold_and_reset);
    add("hold/hand-over-after-reset", test_hand_over_reset);
    add("hold/lend-fails", test_lend_fails);
    add("hold/err-stays", test_err_stays);
    add("hold/without-stop", test_hold_without_stop);
    add("hold/config", test_held_config);
    add("hold/config-offset", test_held_config_offset);
    add("config/parts", test_config_parts);
    add("config/none", test_no_config);
    add("hold/released-is-silent", test_released_is_silent);
    add("hold/unanswerable-goes-through", test_unanswerable_goes_through);
    add("hold/unanswerable-after-reset", test_unanswerable_after_reset);
    add("hold/without-descriptors", test_hold_without_fds);
    add("owner", test_owner);
    add("reset-stops-rings", test_reset_stops_rings);
    add("kick", test_kick);
    add("commit/call-before-start", test_call_before_start);
    add("commit/log-before-start", test_log_before_start);
    add("commit/all-rings", test_all_rings);
    add("commit/refused", test_commit_refused);
    add("commit/removal-refused", test_commit_removal_refused);
    add("commit/wrong-reply", test_commit_wrong_reply);
    add("wrong-base", test_wrong_base);
    add("commit/not-owned", test_commit_not_owned);
    add("commit/start-refused", test_start_refused);
    add("commit/disconnected", test_commit_disconnected);
    add("save/disconnected", test_save_disconnected);
    add("check/without-descriptors", test_observe_without_fds);
    add("check/untracked", test_check_refuses_untracked);
    add("check/sizes", test_check_refuses_sizes);
    for (unsigned i = 0; i < ARRAY_SIZE(bad_sessions); i++) {
        g_autofree char *path = g_strdup_printf("refused/%s",
                                                bad_sessions[i].name);

        add_test(path, test_bad_session, GUINT_TO_POINTER(i));
    }
    add("chroot", test_chroot);
    add("refused/counts", test_bad_counts);
    add_test("refused/twice/inflight", test_twice, "inflight");
    add_test("refused/twice/channel", test_twice, "channel");
    return g_test_run();
}
