/*
 * Fuzzing of the session that watches messages between QEMU and a back-end
 *
 * The stream of an input contains the messages of a connection in both
 * directions. Each message is preceded by the number of its files (1 byte).
 * The files of all messages are in one list. The script decides before which
 * messages the connection moves to another QEMU, or another event happens.
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

#define LOCAL       0x7f1000000000

/* A message in a stream: the number of files, the header, the payload */
#define FILES       1
#define FLAGS_AT    (FILES + 4)
#define SIZE_AT     (FILES + 8)
#define RECORD      (FILES + MSG_HEADER)

static size_t record_size(const FuzzInput *input, size_t at)
{
    size_t left = input->size - at;
    size_t payload;

    if (left < RECORD) {
        return left;
    }
    payload = (uint32_t)ldl_le_p(input->stream + at + SIZE_AT);
    return MIN(left, RECORD + payload);
}

typedef struct Connection {
    const FuzzInput *input;
    size_t at;                  /* position in the stream */
    size_t file;                /* index of the next file */
    FuzzScript script;
    VhostUserSession *session;
} Connection;

/*
 * Take the next message, which may be cut off, and its files. The caller must
 * close_files().
 */
static void take(Connection *c, Msg *msg, size_t space, int *fds,
                 size_t *nfds)
{
    const FuzzInput *input = c->input;
    size_t size = record_size(input, c->at);
    size_t want = input->stream[c->at] % (MSG_REGIONS + 1);

    memcpy(msg, input->stream + c->at + FILES,
           MIN(size - FILES, space));
    c->at += size;
    for (*nfds = 0; *nfds < want && c->file < input->files; (*nfds)++) {
        /* No blocking eventfds: a device would wait for them */
        fds[*nfds] = fuzz_new_file(input->kind[c->file++] %
                                   FILE_EVENTFD_BLOCKING);
        if (fds[*nfds] < 0) {
            break;
        }
    }
}

static void close_file(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

static void close_files(const int *fds, size_t nfds)
{
    while (nfds) {
        close(fds[--nfds]);
    }
}

static bool next_is_reply(const Connection *c)
{
    return record_size(c->input, c->at) >= RECORD &&
           ldl_le_p(c->input->stream + c->at + FLAGS_AT) & MSG_REPLY;
}

/*
 * Messages that the session itself sends and receives
 */

static bool session_send(void *opaque, const void *msg, size_t len,
                         const int *fds, size_t nfds, Error **errp)
{
    return true;
}

static bool session_receive(void *opaque, void *msg, size_t size,
                            Error **errp)
{
    Connection *c = opaque;
    Msg *reply = msg;
    int fds[MSG_REGIONS];
    size_t nfds;

    if (!next_is_reply(c)) {
        error_setg(errp, "the connection is gone");
        return false;
    }
    take(c, reply, size, fds, &nfds);
    close_files(fds, nfds);
    /* A real connection refuses a longer message */
    reply->size = MIN(reply->size, size - MSG_HEADER);
    return true;
}

static const VhostUserSessionOps session_ops = {
    .send = session_send,
    .receive = session_receive,
};

/* Pass the next message to the session: replies are from the back-end. */
static void pass_message(Connection *c)
{
    g_autofree Msg *msg = g_malloc0(FUZZ_MESSAGE);
    int fds[MSG_REGIONS];
    size_t nfds;

    take(c, msg, FUZZ_MESSAGE, fds, &nfds);
    if (msg->flags & MSG_REPLY) {
        msg->size = MIN(msg->size, sizeof(*msg) - MSG_HEADER);
        vhost_user_session_read(c->session, msg);
    } else {
        msg->size = MIN(msg->size, FUZZ_MESSAGE - MSG_HEADER);
        fuzz_limit_memory(msg);
        if (vhost_user_session_write(c->session, msg, fds, nfds) > 0 &&
            vhost_user_session_answer(c->session, msg, sizeof(*msg))) {
            close_file(vhost_user_session_answer_fd(c->session));
        }
    }
    close_files(fds, nfds);
}

/*
 * Events
 */

static bool any_file(void *opaque, uint64_t dev, uint64_t ino)
{
    return true;
}

/*
 * Move the connection to another QEMU. Loading what a session has saved must
 * succeed. Returns false if the session is not adopted, because its state is
 * not valid.
 */
static bool move(Connection *c)
{
    const VhostUserSessionFits fits = {
        .rings = VHOST_USER_SESSION_RINGS,
        .ring_size = UINT16_MAX + 1,
        .has_file = any_file,
    };
    VhostUserSession *next = vhost_user_session_new(&session_ops, c);
    SessionSave *saving;
    int sv[2];

    vhost_user_session_hold(c->session);
    vhost_user_session_own(c->session, false);
    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    saving = session_save_begin(c->session, sv[1]);
    g_assert_true(session_load(next, sv[0]));
    g_assert_true(session_save_end(saving));

    if (!vhost_user_session_adopt(next, &fits, NULL)) {
        vhost_user_session_free(next);
        vhost_user_session_own(c->session, true);
        return false;
    }
    vhost_user_session_free(c->session);
    c->session = next;
    return true;
}

static void commit(Connection *c)
{
    if (vhost_user_session_held(c->session)) {
        vhost_user_session_own(c->session, true);
        vhost_user_session_commit(c->session, NULL);
    }
}

static void any_event(Connection *c)
{
    VhostUserSession *s = c->session;
    uint8_t how = fuzz_next(&c->script);

    switch (how & 0x3f) {
    case 1:
        vhost_user_session_hold(s);
        break;
    case 2:
        if (vhost_user_session_held(s)) {
            vhost_user_session_own(s, how & 0x80);
        }
        break;
    case 3:
        commit(c);
        break;
    case 4:
        vhost_user_session_rewind(s);
        break;
    case 5:
        vhost_user_session_begin(s);
        break;
    case 6:
        vhost_user_session_reset(s);
        break;
    case 7:
        close_file(vhost_user_session_lend_kick(s, how >> 6));
        close_file(vhost_user_session_lend_call(s, how >> 6));
        close_file(vhost_user_session_lend_err(s, how >> 6));
        break;
    case 8:
        vhost_user_session_kick(s);
        break;
    case 9:
        vhost_user_session_set_channel(s, fuzz_new_file(FILE_CONNECTION));
        break;
    case 10:
        close_file(vhost_user_session_take_channel(s));
        break;
    case 11:
        move(c);
        break;
    case 12:
        if (move(c)) {
            commit(c);
        }
        break;
    }
}

static void init(void)
{
    fuzz_set_memory(memory_file(0));
}

static bool run(const FuzzInput *input)
{
    Connection c = { .input = input, .script = fuzz_script(input) };
    bool accepted;

    c.session = vhost_user_session_new(&session_ops, &c);
    while (c.at < input->size) {
        any_event(&c);
        pass_message(&c);
    }
    accepted = move(&c);
    vhost_user_session_free(c.session);
    fuzz_close_peers();
    return accepted;
}

/*
 * Good inputs: the messages between a device and its back-end
 */

typedef struct Tap {
    Wire wire;
    Backend *backend;
    FuzzInput *input;
} Tap;

static void record(FuzzInput *input, const void *msg, size_t len,
                   const int *fds, size_t nfds)
{
    g_assert_cmpuint(input->size + FILES + len, <=, FUZZ_MAX_STREAM);
    input->stream[input->size] = nfds;
    memcpy(input->stream + input->size + FILES, msg, len);
    input->size += FILES + len;
    for (size_t i = 0; i < nfds; i++) {
        fuzz_add_file(input, fds[i]);
    }
}

static bool tap_send(void *opaque, const void *msg, size_t len,
                     const int *fds, size_t nfds, Error **errp)
{
    Tap *tap = opaque;

    record(tap->input, msg, len, fds, nfds);
    return tap->backend->wire.ops.send(tap->backend, msg, len, fds, nfds,
                                       errp);
}

static bool tap_receive(void *opaque, void *data, size_t size, Error **errp)
{
    Tap *tap = opaque;
    Backend *b = tap->backend;
    Msg *msg = data;

    if (!b->wire.ops.receive(b, data, size, errp)) {
        return false;
    }
    record(tap->input, msg, MSG_HEADER + msg->size, &b->reply_fd,
           b->reply_fd >= 0);
    return true;
}

static int tap_take_fd(Wire *wire)
{
    Tap *tap = container_of(wire, Tap, wire);

    return tap->backend->wire.take_fd(&tap->backend->wire);
}

static bool make(unsigned n, FuzzInput *input)
{
    Tap tap = {
        .wire.ops = { .send = tap_send, .receive = tap_receive },
        .wire.take_fd = tap_take_fd,
        .input = input,
    };
    Device d;

    if (n == ARRAY_SIZE(fuzz_features)) {
        return false;
    }
    tap.backend = backend_new();
    device_init_fields(&d, &tap.wire, LOCAL);
    fuzz_set_features(&d, fuzz_features[n]);
    g_assert_true(device_connect(&d));
    g_assert_true(device_start(&d));
    g_assert_true(device_set_config(&d, 1, 1));
    g_assert_true(device_stop(&d));
    d.memory[1].file = 2;
    if (fuzz_features[n] & FUZZ_STARTED) {
        g_assert_true(device_start(&d));
    }
    device_cleanup(&d);
    backend_free(tap.backend);
    return true;
}

/*
 * Mutation: messages that are lost, repeated or in another order
 */

static size_t any_record(GRand *rand, const FuzzInput *input)
{
    size_t records = 0, at;

    for (at = 0; at < input->size; at += record_size(input, at)) {
        records++;
    }
    records = g_rand_int_range(rand, 0, records);
    for (at = 0; records; records--) {
        at += record_size(input, at);
    }
    return at;
}

static void mutate(GRand *rand, FuzzInput *input)
{
    size_t from = any_record(rand, input);
    size_t to = any_record(rand, input);
    size_t size = record_size(input, from);
    g_autofree uint8_t *copy = g_memdup2(input->stream + from, size);

    if (g_rand_boolean(rand) && input->size > size) {
        /* The message is lost, or moves to another position */
        input->size -= size;
        memmove(input->stream + from, input->stream + from + size,
                input->size - from);
        to = MIN(to, input->size);
        if (g_rand_int_range(rand, 0, 4) == 0) {
            return;
        }
    }
    if (input->size + size <= FUZZ_MAX_STREAM) {
        memmove(input->stream + to + size, input->stream + to,
                input->size - to);
        memcpy(input->stream + to, copy, size);
        input->size += size;
    }
}

const FuzzTarget fuzz_target = {
    .name = "vhost-user-messages",
    .init = init,
    .make = make,
    .mutate = mutate,
    .run = run,
};
