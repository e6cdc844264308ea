/*
 * Fuzzing of the vhost-user session that another QEMU sends
 *
 * The stream of an input is the migration stream of a session, with files of
 * all kinds. The script decides what the back-end and the device do afterwards.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/sockets.h"
#include "fuzz-files.h"
#include "fuzz-vhost-user.h"
#include "vhost-user-backend.h"

#define SOURCE_LOCAL        0x7f1000000000
#define DESTINATION_LOCAL   0x7f2000000000

/*
 * A session identifies guest memory by device and inode number, which differ
 * in each run. Inputs contain a placeholder of the same size instead.
 */
#define IDENTITY_SIZE   16

static void memory_identity(unsigned n, uint8_t *real, uint8_t *portable)
{
    struct stat st;

    g_assert(!fstat(memory_file(n), &st));
    stq_be_p(real, st.st_dev);
    stq_be_p(real + 8, st.st_ino);
    memcpy(portable, "guest-memory-of-", IDENTITY_SIZE);
    portable[0] += n;
}

static void swap_identities(uint8_t *stream, size_t size, bool to_real)
{
    for (unsigned n = 0; n < MEMORY_FILES; n++) {
        uint8_t real[IDENTITY_SIZE], portable[IDENTITY_SIZE];
        const uint8_t *from = to_real ? portable : real;
        const uint8_t *to = to_real ? real : portable;

        memory_identity(n, real, portable);
        for (size_t i = 0; i + IDENTITY_SIZE <= size; i++) {
            if (!memcmp(stream + i, from, IDENTITY_SIZE)) {
                memcpy(stream + i, to, IDENTITY_SIZE);
            }
        }
    }
}

/*
 * A back-end with any answers
 */

typedef struct AnyBackend {
    Wire wire;
    FuzzScript *script;
    Msg last;
} AnyBackend;

static bool any_send(void *opaque, const void *msg, size_t len,
                     const int *fds, size_t nfds, Error **errp)
{
    AnyBackend *b = opaque;

    memcpy(&b->last, msg, MIN(len, sizeof(b->last)));
    if ((fuzz_next(b->script) & 0x3f) == 0x3f) {
        error_setg(errp, "the connection is gone");
        return false;
    }
    return true;
}

static bool any_receive(void *opaque, void *data, size_t size, Error **errp)
{
    AnyBackend *b = opaque;
    uint8_t how = fuzz_next(b->script);
    Msg *msg = data;

    g_assert_cmpuint(size, <=, sizeof(*msg));
    *msg = b->last;
    msg->flags = MSG_VERSION | MSG_REPLY;
    switch (how & 0xf) {
    default:
        /* Most replies make sense. */
        if (msg->request == MSG_GET_FEATURES ||
            msg->request == MSG_GET_PROTOCOL_FEATURES ||
            msg->request == MSG_GET_QUEUE_NUM ||
            msg->request == MSG_GET_MAX_MEM_SLOTS) {
            msg->u64 = UINT64_MAX;
        } else if (b->last.flags & MSG_NEED_REPLY) {
            msg->size = sizeof(msg->u64);
            msg->u64 = 0;
        }
        msg->size = MAX(msg->size, sizeof(msg->u64));
        break;
    case 0xc:
        error_setg(errp, "the connection is gone");
        return false;
    case 0xd:
        msg->request = fuzz_next(b->script);
        break;
    case 0xe:
        msg->size = fuzz_next(b->script);
        fuzz_next_bytes(b->script, msg->payload, MIN(msg->size, 32));
        break;
    case 0xf:
        fuzz_next_bytes(b->script, data, size);
        break;
    }
    /* A real connection refuses a longer message */
    msg->size = MIN(msg->size, size - MSG_HEADER);
    return true;
}

static int any_take_fd(Wire *wire)
{
    AnyBackend *b = container_of(wire, AnyBackend, wire);

    return fuzz_new_file(fuzz_next(b->script) & 1 ? fuzz_next(b->script) :
                                                    FILE_INFLIGHT);
}

/*
 * The device
 */

/* Send any message that a device could send. */
static void any_message(Device *d, FuzzScript *script)
{
    g_autofree Msg *msg = g_malloc0(FUZZ_MESSAGE);
    int fds[MSG_REGIONS];
    size_t nfds = 0, want = fuzz_next(script) % (MSG_REGIONS + 1);

    msg->request = fuzz_next(script) % (MSG_LAST + 4);
    msg->flags = MSG_VERSION | (fuzz_next(script) & MSG_NEED_REPLY);
    msg->size = lduw_he_p((uint8_t[]) {
        fuzz_next(script), fuzz_next(script) & 3
    });
    fuzz_next_bytes(script, msg->payload, fuzz_next(script) & 0x3f);
    fuzz_limit_memory(msg);
    while (nfds < want) {
        fds[nfds] = fuzz_new_file(fuzz_next(script) % FILE_EVENTFD_BLOCKING);
        if (fds[nfds] < 0) {
            break;
        }
        nfds++;
    }
    device_write(d, msg, fds, nfds);
    while (nfds) {
        close(fds[--nfds]);
    }
}

static void any_reply(Device *d, FuzzScript *script)
{
    Msg msg = {
        .request = fuzz_next(script) % (MSG_LAST + 4),
        .flags = MSG_VERSION | MSG_REPLY,
    };

    msg.size = MIN(fuzz_next(script) | fuzz_next(script) << 8,
                   sizeof(msg) - MSG_HEADER);
    fuzz_next_bytes(script, msg.payload, MIN(msg.size, 24));
    vhost_user_session_read(d->session, &msg);
}

static void commit(Device *d)
{
    if (vhost_user_session_held(d->session)) {
        vhost_user_session_own(d->session, true);
        if (device_open_channel(d)) {
            vhost_user_session_commit(d->session, NULL);
        }
    }
}

static bool adopt(Device *d)
{
    VhostUserSessionFits fits = device_fits(d);

    /* Accept any size: streams of real devices have other config spaces */
    fits.config_size = 0;
    return vhost_user_session_adopt(d->session, &fits, NULL);
}

static void save(Device *d)
{
    int sv[2];

    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    /* The stream is not needed: only run the code that saves it */
    close(sv[0]);
    session_save_end(session_save_begin(d->session, sv[1]));
}

static void any_step(Device *d, FuzzScript *script)
{
    VhostUserSession *s = d->session;
    uint8_t how = fuzz_next(script);

    switch (how % 20) {
    case 0:
    case 1:
        any_message(d, script);
        break;
    case 2:
        any_reply(d, script);
        break;
    case 3:
        device_connect(d);
        break;
    case 4:
        device_lend(d);
        break;
    case 5:
        device_start(d);
        break;
    case 6:
        device_stop(d);
        break;
    case 7:
        commit(d);
        break;
    case 8:
        vhost_user_session_hold(s);
        break;
    case 9:
        if (vhost_user_session_held(s)) {
            vhost_user_session_own(s, how & 0x80);
        }
        break;
    case 10:
        vhost_user_session_rewind(s);
        break;
    case 11:
        vhost_user_session_kick(s);
        break;
    case 12:
        d->memory[1].file = fuzz_next(script) % MEMORY_FILES;
        d->nmemory = 1 + (how & 0x80) / 0x80;
        device_set_memory(d);
        break;
    case 13:
        device_set_config(d, fuzz_next(script) % CONFIG_SIZE, how);
        break;
    case 14:
        vhost_user_session_check(s, NULL);
        break;
    case 15:
        if (!vhost_user_session_held(s) && !adopt(d)) {
            vhost_user_session_reset(s);
        }
        break;
    case 16:
        vhost_user_session_reset(s);
        break;
    case 17:
        save(d);
        break;
    case 18:
        vhost_user_session_set_channel(s, fuzz_new_file(FILE_STREAM_SOCKET));
        break;
    case 19:
        vhost_user_session_ring_base(s, fuzz_next(script));
        vhost_user_session_ring_running(s, fuzz_next(script));
        break;
    }
}

static void init(void)
{
    for (unsigned i = 0; i < MEMORY_FILES; i++) {
        memory_file(i);
    }
    fuzz_set_memory(memory_file(0));
}

/* The options are the features of the device that takes the session over. */
static bool run(const FuzzInput *input)
{
    g_autofree uint8_t *stream = g_memdup2(input->stream, input->size);
    AnyBackend b = {
        .wire.ops = { .send = any_send, .receive = any_receive },
        .wire.take_fd = any_take_fd,
    };
    FuzzScript script = fuzz_script(input);
    bool accepted = false;
    Device d;
    int sv[2];

    b.script = &script;
    device_init_fields(&d, &b.wire, DESTINATION_LOCAL);
    fuzz_set_features(&d, input->options);
    swap_identities(stream, input->size, true);

    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    fuzz_send(input, stream, sv[1]);
    if (session_load(d.session, sv[0]) && adopt(&d)) {
        accepted = true;
        if (device_connect(&d)) {
            vhost_user_session_own(d.session, true);
            device_lend(&d);
            if (!(input->options & FUZZ_STARTED) || device_start(&d)) {
                commit(&d);
            }
            vhost_user_session_kick(d.session);
        }
    } else {
        vhost_user_session_reset(d.session);
    }
    while (script.left) {
        any_step(&d, &script);
    }
    device_cleanup(&d);
    fuzz_close_peers();
    return accepted;
}

/* Make the stream that a real session saves. */
static bool make(unsigned n, FuzzInput *input)
{
    Backend *b;
    SessionSave *saving;
    Device d;
    int sv[2];

    if (n == ARRAY_SIZE(fuzz_features)) {
        return false;
    }
    b = backend_new();
    input->options = fuzz_features[n];
    device_init_fields(&d, &b->wire, SOURCE_LOCAL);
    fuzz_set_features(&d, input->options);
    g_assert_true(device_connect(&d));
    if (input->options & FUZZ_STARTED) {
        g_assert_true(device_start(&d));
    }
    device_release(&d);

    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    saving = session_save_begin(d.session, sv[1]);
    fuzz_receive(input, sv[0]);
    g_assert_true(session_save_end(saving));
    swap_identities(input->stream, input->size, false);
    device_cleanup(&d);
    backend_free(b);
    return true;
}

const FuzzTarget fuzz_target = {
    .name = "vhost-user-session",
    .init = init,
    .make = make,
    .run = run,
};
