/*
 * Fuzzing of the vhost-user session: what another process may send
 *
 * An input is a migration stream with files of all kinds, and what the
 * back-end and the device do if the session in the stream is accepted.  Such
 * inputs are made from streams that the session itself has saved.  There must
 * be no crash, no hang, no finding of a sanitizer, and no file left open.
 *
 * The program makes its inputs itself.  With a compiler that has libFuzzer,
 * link it with -fsanitize=fuzzer and without main() (-DLIBFUZZER), and begin
 * with the inputs that "--corpus DIR" writes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib-unix.h>
#include <sys/eventfd.h>
#include "qapi/error.h"
#include "io/channel-socket.h"
#include "monitor/monitor.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/memfd.h"
#include "qemu/module.h"
#include "qemu/sockets.h"
#include "fuzz-target.h"
#include "vhost-user-backend.h"
#ifdef QEMU_SANITIZE_ADDRESS
#include <sanitizer/common_interface_defs.h>
#endif

/* An input: these sizes, the kinds of the files, the stream, the script */
#define MAX_FILES       255
#define MAX_STREAM      0x8000
#define HEADER          4

#define SOURCE_LOCAL        0x7f1000000000
#define DESTINATION_LOCAL   0x7f2000000000

/* A session that hangs is a bug, too. */
#define HANG_SECONDS    20

/* What is wrong with a stream is of no interest here. */
int error_vprintf(const char *fmt, va_list ap)
{
    return 0;
}

int error_vprintf_unless_qmp(const char *fmt, va_list ap)
{
    return 0;
}

static unsigned count_fds(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    unsigned n = 0;

    while (g_dir_read_name(dir)) {
        n++;
    }
    return n;
}

/* Bytes that decide what happens; zeroes follow when they are used up */

typedef struct Script {
    const uint8_t *data;
    size_t left;
} Script;

static uint8_t next(Script *script)
{
    if (!script->left) {
        return 0;
    }
    script->left--;
    return *script->data++;
}

static void next_bytes(Script *script, void *to, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        ((uint8_t *)to)[i] = next(script);
    }
}

/* Files */

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
    /* A device of our own has none of these */
    FILE_EVENTFD_BLOCKING,
    FILE_EVENTFD_FULL,
    FILE_KINDS,
};

static int new_file(unsigned kind)
{
    const uint64_t full = UINT64_MAX - 1;
    int fds[2];

    switch (kind % FILE_KINDS) {
    case FILE_EVENTFD:
        return new_eventfd();
    case FILE_EVENTFD_BLOCKING:
    case FILE_EVENTFD_FULL:
        fds[0] = eventfd(0, EFD_CLOEXEC);
        if (kind % FILE_KINDS == FILE_EVENTFD_FULL) {
            g_assert(write(fds[0], &full, sizeof(full)) == sizeof(full));
        }
        return fds[0];
    case FILE_INFLIGHT:
        return qemu_memfd_create("inflight", 0x4000, false, 0, 0,
                                 &error_abort);
    case FILE_MEMORY:
        return qemu_dup(memory_file(0));
    case FILE_STREAM_SOCKET:
        return qemu_socket(AF_UNIX, SOCK_STREAM, 0);
    case FILE_DATAGRAM_SOCKET:
        return qemu_socket(AF_UNIX, SOCK_DGRAM, 0);
    case FILE_PIPE:
        g_assert(g_unix_open_pipe(fds, FD_CLOEXEC, NULL));
        close(fds[1]);
        return fds[0];
    case FILE_NULL:
        return qemu_open("/dev/null", O_RDWR, &error_abort);
    case FILE_DIRECTORY:
        return qemu_open("/", O_RDONLY, &error_abort);
    default:
        return -1;
    }
}

static uint8_t kind_of_file(int fd)
{
    struct stat st;

    g_assert(!fstat(fd, &st));
    return S_ISSOCK(st.st_mode) ? FILE_STREAM_SOCKET :
           S_ISREG(st.st_mode) ? FILE_INFLIGHT : FILE_EVENTFD;
}

/*
 * Guest memory is known by its inode, which is another one in each run.  In
 * an input this stands for it:
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

/* A back-end that answers anything */

typedef struct AnyBackend {
    Wire wire;
    Script *script;
    Msg last;
} AnyBackend;

static bool any_send(void *opaque, const void *msg, size_t len,
                     const int *fds, size_t nfds, Error **errp)
{
    AnyBackend *b = opaque;

    memcpy(&b->last, msg, MIN(len, sizeof(b->last)));
    if ((next(b->script) & 0x3f) == 0x3f) {
        error_setg(errp, "the connection is gone");
        return false;
    }
    return true;
}

static bool any_receive(void *opaque, void *data, size_t size, Error **errp)
{
    AnyBackend *b = opaque;
    uint8_t how = next(b->script);
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
            msg->u64 = 0;
        }
        msg->size = MAX(msg->size, sizeof(msg->u64));
        break;
    case 0xc:
        error_setg(errp, "the connection is gone");
        return false;
    case 0xd:
        msg->request = next(b->script);
        break;
    case 0xe:
        msg->size = next(b->script);
        next_bytes(b->script, msg->payload, MIN(msg->size, 32));
        break;
    case 0xf:
        next_bytes(b->script, data, size);
        break;
    }
    /* The connection has refused what is longer. */
    msg->size = MIN(msg->size, size - MSG_HEADER);
    return true;
}

static int any_take_fd(Wire *wire)
{
    AnyBackend *b = container_of(wire, AnyBackend, wire);

    return new_file(next(b->script) & 1 ? next(b->script) : FILE_INFLIGHT);
}

/* The device */

/* Memory that a QEMU may have: it is not empty, and has an end */
static void limit_region(MsgRegion *region)
{
    const uint64_t limit = MAKE_64BIT_MASK(0, 46);

    region->guest_addr &= limit;
    region->size = (region->size & limit) | 0x1000;
    region->user_addr &= limit;
}

/* Any message that a device could send: it has space for the longest */
static void any_message(Device *d, Script *script)
{
    g_autofree Msg *msg = g_malloc0(0x1000);
    int fds[MSG_REGIONS];
    size_t nfds = 0, want = next(script) % (MSG_REGIONS + 1);

    msg->request = next(script) % (MSG_LAST + 4);
    msg->flags = MSG_VERSION | (next(script) & MSG_NEED_REPLY);
    msg->size = lduw_he_p((uint8_t[]) { next(script), next(script) & 3 });
    next_bytes(script, msg->payload, next(script) & 0x3f);
    if (msg->request == MSG_SET_MEM_TABLE) {
        for (unsigned i = 0; i < MSG_REGIONS; i++) {
            limit_region(&msg->table.region[i]);
        }
    } else if (msg->request == MSG_ADD_MEM_REG ||
               msg->request == MSG_REM_MEM_REG) {
        limit_region(&msg->slot.region);
    }
    while (nfds < want) {
        fds[nfds] = new_file(next(script) % FILE_EVENTFD_BLOCKING);
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

static void any_reply(Device *d, Script *script)
{
    Msg msg = { .request = next(script) % (MSG_LAST + 4) };

    msg.size = MIN(next(script) | next(script) << 8,
                   sizeof(msg) - MSG_HEADER);
    next_bytes(script, msg.payload, MIN(msg.size, 24));
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

    return vhost_user_session_adopt(d->session, &fits, NULL);
}

static void save(Device *d)
{
    int sv[2];

    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    /* Nobody reads it; what a socket holds is enough to run all the code */
    close(sv[0]);
    session_save_end(session_save_begin(d->session, sv[1]));
}

static void any_step(Device *d, Script *script)
{
    VhostUserSession *s = d->session;
    uint8_t how = next(script);

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
        d->memory[1].file = next(script) % MEMORY_FILES;
        d->nmemory = 1 + (how & 0x80) / 0x80;
        device_set_memory(d);
        break;
    case 13:
        device_set_config(d, next(script) % CONFIG_SIZE, how);
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
        vhost_user_session_set_channel(s, new_file(FILE_STREAM_SOCKET));
        break;
    case 19:
        vhost_user_session_ring_base(s, next(script));
        vhost_user_session_ring_running(s, next(script));
        break;
    }
}

/* Features of the device that takes over; the same bits make the corpus */
static void set_features(Device *d, uint8_t bits)
{
    d->rings = 1 + (bits & 3);
    d->protocol_features |= bits & 4 ? PF_SLOTS : 0;
    d->protocol_features |= bits & 8 ? PF_INFLIGHT : 0;
    d->protocol_features |= bits & 16 ? PF_BACKEND_REQ : 0;
    d->protocol_features |= bits & 32 ? PF_STATUS : 0;
    d->features |= bits & 64 ? F_RING_PACKED : 0;
}

/* Send the stream as a source does, with the files at its begin. */
static void send_stream(int sock, const uint8_t *kinds, size_t nkinds,
                        uint8_t *stream, size_t size)
{
    QIOChannel *ioc = QIO_CHANNEL(qio_channel_socket_new_fd(sock,
                                                            &error_abort));
    size_t done = 0;

    for (size_t i = 0; i < nkinds && done < size; i++) {
        int fd = new_file(kinds[i]);
        struct iovec iov = { stream + done, 1 };

        if (fd >= 0) {
            qio_channel_writev_full_all(ioc, &iov, 1, &fd, 1, 0,
                                        &error_abort);
            close(fd);
            done++;
        }
    }
    qio_channel_write_all(ioc, (char *)stream + done, size - done,
                          &error_abort);
    object_unref(OBJECT(ioc));
}

static unsigned accepted;

static void run_input(const uint8_t *data, size_t size)
{
    AnyBackend b = {
        .wire.ops = { .send = any_send, .receive = any_receive },
        .wire.take_fd = any_take_fd,
    };
    size_t nkinds = data[0];
    size_t stream_size = MIN(lduw_be_p(data + 1), MAX_STREAM);
    g_autofree uint8_t *stream = NULL;
    Script script;
    Device d;
    int sv[2];

    nkinds = MIN(nkinds, size - HEADER);
    stream_size = MIN(stream_size, size - HEADER - nkinds);
    stream = g_memdup2(data + HEADER + nkinds, stream_size);
    script.data = data + HEADER + nkinds + stream_size;
    script.left = size - HEADER - nkinds - stream_size;

    b.script = &script;
    device_init_fields(&d, &b.wire, DESTINATION_LOCAL);
    set_features(&d, data[3]);
    swap_identities(stream, stream_size, true);

    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    send_stream(sv[1], data + HEADER, nkinds, stream, stream_size);
    if (session_load(d.session, sv[0]) && adopt(&d)) {
        accepted++;
        if (device_connect(&d)) {
            vhost_user_session_own(d.session, true);
            device_lend(&d);
            if (!(data[3] & 128) || device_start(&d)) {
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
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool initialized;
    unsigned fds;

    if (!initialized) {
        module_call_init(MODULE_INIT_QOM);
        signal(SIGPIPE, SIG_IGN);       /* as in QEMU */
        for (unsigned i = 0; i < MEMORY_FILES; i++) {
            memory_file(i);
        }
        initialized = true;
    }
    if (size >= HEADER) {
        fds = count_fds();
        run_input(data, size);
        g_assert_cmpuint(count_fds(), ==, fds);
    }
    return 0;
}

#ifndef LIBFUZZER

/* The corpus: streams of real sessions */

typedef struct Input {
    uint8_t kinds[MAX_FILES];
    size_t nkinds;
    uint8_t stream[MAX_STREAM];
    size_t size;
    uint8_t features;
    uint8_t script[256];
    size_t script_size;
} Input;

static const uint8_t corpus_features[] = {
    0x80, 0x81, 0x83, 0x84, 0x88, 0x90, 0xa0, 0xc0, 0xff, 0x00, 0x07, 0x7f,
};

static Input *corpus[ARRAY_SIZE(corpus_features)];

static Input *receive_input(int sock)
{
    QIOChannel *ioc = QIO_CHANNEL(qio_channel_socket_new_fd(sock,
                                                            &error_abort));
    Input *input = g_new0(Input, 1);
    ssize_t len;

    do {
        g_autofree int *fds = NULL;
        size_t nfds = 0;
        struct iovec iov = {
            input->stream + input->size, MAX_STREAM - input->size,
        };

        len = qio_channel_readv_full(ioc, &iov, 1, &fds, &nfds, 0,
                                     &error_abort);
        input->size += len;
        for (size_t i = 0; i < nfds; i++) {
            input->kinds[input->nkinds++] = kind_of_file(fds[i]);
            close(fds[i]);
        }
    } while (len);
    swap_identities(input->stream, input->size, false);
    object_unref(OBJECT(ioc));
    return input;
}

static Input *make_input(uint8_t features)
{
    Backend *b = backend_new();
    SessionSave *saving;
    Input *input;
    Device d;
    int sv[2];

    device_init_fields(&d, &b->wire, SOURCE_LOCAL);
    set_features(&d, features);
    g_assert_true(device_connect(&d));
    if (features & 128) {
        g_assert_true(device_start(&d));
    }
    device_release(&d);

    g_assert(!qemu_socketpair(PF_UNIX, SOCK_STREAM, 0, sv));
    saving = session_save_begin(d.session, sv[1]);
    input = receive_input(sv[0]);
    g_assert_true(session_save_end(saving));
    input->features = features;
    device_cleanup(&d);
    backend_free(b);
    return input;
}

static size_t write_input(const Input *input, uint8_t *data)
{
    size_t size = HEADER;

    data[0] = input->nkinds;
    stw_be_p(data + 1, input->size);
    data[3] = input->features;
    memcpy(data + size, input->kinds, input->nkinds);
    size += input->nkinds;
    memcpy(data + size, input->stream, input->size);
    size += input->size;
    memcpy(data + size, input->script, input->script_size);
    return size + input->script_size;
}

/* Mutation */

static void mutate_number(GRand *rand, Input *input)
{
    static const uint64_t numbers[] = {
        0, 1, 2, 8, 128, 255, 256, 512, 513, 0xffff, 0x10000, INT32_MAX,
        UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_MAX - 0xfff,
    };
    uint8_t number[8];
    size_t len = 1 << g_rand_int_range(rand, 0, 4);
    size_t at;

    if (input->size < len) {
        return;
    }
    at = g_rand_int_range(rand, 0, input->size - len + 1);
    stq_be_p(number, numbers[g_rand_int_range(rand, 0, ARRAY_SIZE(numbers))]);
    memcpy(input->stream + at, number + 8 - len, len);
}

static void mutate_stream(GRand *rand, Input *input)
{
    const Input *other;
    size_t at = g_rand_int_range(rand, 0, input->size);
    size_t to = g_rand_int_range(rand, 0, input->size);
    size_t len = MIN(input->size - MAX(at, to),
                     1 << g_rand_int_range(rand, 0, 10));

    switch (g_rand_int_range(rand, 0, 8)) {
    case 0:
    case 1:
        input->stream[at] ^= 1 << g_rand_int_range(rand, 0, 8);
        break;
    case 2:
        input->stream[at] = g_rand_int(rand);
        break;
    case 3:
    case 4:
        mutate_number(rand, input);
        break;
    case 5:
        memmove(input->stream + to, input->stream + at, len);
        break;
    case 6:
        other = corpus[g_rand_int_range(rand, 0, ARRAY_SIZE(corpus))];
        memcpy(input->stream + at, other->stream + at, len);
        break;
    case 7:
        /* Cut or, with what was behind it, made longer */
        if (g_rand_int_range(rand, 0, 4) == 0) {
            input->size = MAX(1, at);
        } else {
            input->size = MIN(input->size + len, MAX_STREAM);
        }
        break;
    }
}

static void mutate_files(GRand *rand, Input *input)
{
    size_t at = g_rand_int_range(rand, 0, input->nkinds + 1);

    switch (g_rand_int_range(rand, 0, 3)) {
    case 0:
        if (at < input->nkinds) {
            input->kinds[at] = g_rand_int_range(rand, 0, FILE_KINDS);
        }
        break;
    case 1:
        if (input->nkinds < MAX_FILES) {
            memmove(input->kinds + at + 1, input->kinds + at,
                    input->nkinds - at);
            input->kinds[at] = g_rand_int_range(rand, 0, FILE_KINDS);
            input->nkinds++;
        }
        break;
    case 2:
        input->nkinds = at;
        break;
    }
}

/* Many inputs must be accepted, or nothing is learnt of what follows. */
static void mutate(GRand *rand, Input *input)
{
    int steps = g_rand_int_range(rand, 0, 6);

    *input = *corpus[g_rand_int_range(rand, 0, ARRAY_SIZE(corpus))];
    while (steps--) {
        mutate_stream(rand, input);
    }
    if (g_rand_int_range(rand, 0, 4) == 0) {
        mutate_files(rand, input);
    }
    if (g_rand_int_range(rand, 0, 8) == 0) {
        input->features = g_rand_int(rand);
    }
    if (g_rand_boolean(rand)) {
        input->script_size = g_rand_int_range(rand, 0,
                                              sizeof(input->script));
    }
    for (size_t i = 0; i < input->script_size; i++) {
        input->script[i] = g_rand_int(rand);
    }
}

/* The program */

static uint64_t inputs;

static struct {
    int64_t seed;
    double seconds;
    int64_t inputs;
    char *corpus;
    gboolean tap;
    gboolean keep_going;
} options = { .seed = -1, .seconds = 3 };

static const GOptionEntry option_entries[] = {
    { "seed", 0, 0, G_OPTION_ARG_INT64, &options.seed,
      "Begin with the input of number N", "N" },
    { "seconds", 0, 0, G_OPTION_ARG_DOUBLE, &options.seconds,
      "Run for N seconds (default: 3)", "N" },
    { "inputs", 0, 0, G_OPTION_ARG_INT64, &options.inputs,
      "Run N inputs, however long that takes", "N" },
    { "corpus", 0, 0, G_OPTION_ARG_FILENAME, &options.corpus,
      "Only write the streams that inputs are made from to DIR", "DIR" },
    { "tap", 0, 0, G_OPTION_ARG_NONE, &options.tap,
      "No effect, the output is always TAP", NULL },
    { "keep-going", 'k', 0, G_OPTION_ARG_NONE, &options.keep_going,
      "No effect", NULL },
    { NULL }
};

static void make_corpus(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(corpus); i++) {
        corpus[i] = make_input(corpus_features[i]);
    }
}

static void free_corpus(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(corpus); i++) {
        g_free(corpus[i]);
    }
}

static bool write_corpus(const char *dir, uint8_t *data)
{
    for (unsigned i = 0; i < ARRAY_SIZE(corpus); i++) {
        g_autofree char *path = g_strdup_printf("%s/%02x", dir,
                                                corpus_features[i]);
        size_t size = write_input(corpus[i], data);
        GError *err = NULL;

        if (!g_file_set_contents(path, (char *)data, size, &err)) {
            g_printerr("%s\n", err->message);
            g_error_free(err);
            return false;
        }
    }
    return true;
}

/* Says how to run the input that this process dies of */
static void report_death(void)
{
    dprintf(STDOUT_FILENO, "# %" PRIu64 " inputs, %u accepted\n"
            "# failed; again: --seed %" PRId64 " --inputs 1\n"
            "not ok 1 /vhost-user-session/fuzz\n",
            inputs, accepted, options.seed + inputs);
}

static void die_of_signal(int sig)
{
    report_death();
    raise(sig);     /* the handler has gone */
}

static void catch_death(void)
{
    const struct sigaction action = {
        .sa_handler = die_of_signal,
        .sa_flags = SA_RESETHAND | SA_NODEFER,
    };

#ifdef QEMU_SANITIZE_ADDRESS
    /* It has handlers of its own */
    __sanitizer_set_death_callback(report_death);
#else
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
#endif
    sigaction(SIGABRT, &action, NULL);
    sigaction(SIGALRM, &action, NULL);      /* it hung */
}

/* Each input has a seed of its own, so that one can be run alone. */
static void run_inputs(uint8_t *data)
{
    int64_t end = g_get_monotonic_time() + options.seconds * G_USEC_PER_SEC;
    g_autofree Input *input = g_new(Input, 1);

    while (options.inputs ? inputs < options.inputs :
                            g_get_monotonic_time() < end) {
        GRand *rand = g_rand_new_with_seed(options.seed + inputs);

        mutate(rand, input);
        g_rand_free(rand);
        alarm(HANG_SECONDS);
        LLVMFuzzerTestOneInput(data, write_input(input, data));
        inputs++;
    }
    alarm(0);
}

int main(int argc, char **argv)
{
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autofree uint8_t *data = g_malloc(sizeof(Input));
    GError *err = NULL;
    bool ok;

    g_option_context_add_main_entries(context, option_entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &err)) {
        g_printerr("%s\n", err->message);
        g_error_free(err);
        return 2;
    }
    if (options.seed < 0) {
        options.seed = g_random_int();
    }

    /* Opens the files of guest memory, which stay open */
    LLVMFuzzerTestOneInput(NULL, 0);
    make_corpus();
    if (options.corpus) {
        ok = write_corpus(options.corpus, data);
        free_corpus();
        return ok ? 0 : 2;
    }

    printf("1..1\n# seed %" PRId64 "\n", options.seed);
    fflush(stdout);
    catch_death();
    run_inputs(data);
    free_corpus();

    /* Nothing was tested if none was good enough */
    ok = accepted || inputs < 1000;
    printf("# %" PRIu64 " inputs, %u accepted\n", inputs, accepted);
    printf("%s 1 /vhost-user-session/fuzz\n", ok ? "ok" : "not ok");
    return ok ? 0 : 1;
}

#endif
