/*
 * QTest testcase for migration parameter backend-transfer: what it refuses,
 * and which QEMU may run the VM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/eventfd.h>
#include "qapi/error.h"
#include "qemu/memfd.h"
#include "qemu/sockets.h"
#include "libqtest.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"

#define TIMEOUT_S 60

/* The section of the stream that contains the token of ownership */
#define SECTION "backend-transfer"

/* The name of an image in the test's folder */
#define IMAGE "image"

/* Parts of the errors of a QEMU that is not the owner, and of a mismatch */
#define NOT_OWNER "handed over to another QEMU"
#define CLAIMED   "about to start it"
#define DIFFERS   "on both sides"

typedef struct Fixture {
    char *dir;
    char *path;             /* where the destination or the test listens */
    char *uri;
    GPtrArray *vms;
    int listener;           /* of the test when it acts as destination */
} Fixture;

/*
 * VMs
 */

G_GNUC_PRINTF(2, 3)
static QTestState *vm_new(Fixture *f, const char *options, ...)
{
    QTestState *vm;
    g_autofree char *str = NULL;
    va_list ap;

    va_start(ap, options);
    str = g_strdup_vprintf(options, ap);
    va_end(ap);
    vm = qtest_initf("-machine none -nodefaults %s", str);
    g_ptr_array_add(f->vms, vm);
    return vm;
}

static void vm_kill(Fixture *f, QTestState *vm)
{
    g_ptr_array_remove(f->vms, vm);
}

/* qtest_quit() sends SIGTERM. */
static void vm_free(void *vm)
{
    qtest_quit(vm);
}

static void set_parameter(QTestState *vm, bool on)
{
    qtest_qmp_assert_success(vm, "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': { 'backend-transfer': %i } }", on);
}

/* Returns false if this QEMU or this host does not support @capability. */
static bool set_capability(QTestState *vm, const char *capability, bool on)
{
    g_autoptr(QDict) resp = NULL;

    resp = qtest_qmp(vm, "{ 'execute': 'migrate-set-capabilities', 'arguments':"
                     " { 'capabilities': [ { 'capability': %s, 'state': %i } ]"
                     " } }", capability, on);
    return qdict_haskey(resp, "return");
}

static bool get_parameter(QTestState *vm)
{
    g_autoptr(QDict) params = NULL;

    params = qtest_qmp_assert_success_ref(vm, "{ 'execute':"
                                          " 'query-migrate-parameters' }");
    return qdict_get_bool(params, "backend-transfer");
}

/* Returns "none" if there was no migration. */
static char *migration_status(QTestState *vm)
{
    g_autoptr(QDict) info = NULL;

    info = qtest_qmp_assert_success_ref(vm, "{ 'execute': 'query-migrate' }");
    return g_strdup(qdict_get_try_str(info, "status") ?: "none");
}

static void wait_migration(QTestState *vm, const char *expected)
{
    gint64 end = g_get_monotonic_time() + TIMEOUT_S * G_USEC_PER_SEC;
    g_autofree char *status = migration_status(vm);

    while (!g_str_equal(status, expected) && g_get_monotonic_time() < end) {
        g_usleep(1000);
        g_free(status);
        status = migration_status(vm);
    }
    g_assert_cmpstr(status, ==, expected);
}

static char *run_state(QTestState *vm)
{
    g_autoptr(QDict) info = NULL;

    info = qtest_qmp_assert_success_ref(vm, "{ 'execute': 'query-status' }");
    return g_strdup(qdict_get_str(info, "status"));
}

static void wait_run_state(QTestState *vm, const char *expected)
{
    gint64 end = g_get_monotonic_time() + TIMEOUT_S * G_USEC_PER_SEC;
    g_autofree char *state = run_state(vm);

    while (!g_str_equal(state, expected) && g_get_monotonic_time() < end) {
        g_usleep(1000);
        g_free(state);
        state = run_state(vm);
    }
    g_assert_cmpstr(state, ==, expected);
}

static void assert_run_state(QTestState *vm, const char *expected)
{
    g_autofree char *state = run_state(vm);

    g_assert_cmpstr(state, ==, expected);
}

/* @command must fail with an error that contains @reason. */
static void assert_error(QTestState *vm, const char *command, QDict *args,
                         const char *reason)
{
    g_autoptr(QDict) err = NULL;
    const char *desc;

    err = qtest_qmp_assert_failure_ref(vm, "{ 'execute': %s, 'arguments': %p }",
                                       command, args);
    desc = qdict_get_str(err, "desc");
    g_test_message("%s", desc);
    g_assert_nonnull(strstr(desc, reason));
}

static void assert_cont_refused(QTestState *vm)
{
    assert_error(vm, "cont", qdict_new(), NOT_OWNER);
    assert_run_state(vm, "postmigrate");
}

static void cont(QTestState *vm)
{
    qtest_qmp_assert_success(vm, "{ 'execute': 'cont' }");
    assert_run_state(vm, "running");
}

/*
 * Migrations
 */

static QDict *uri_args(const char *uri)
{
    return qdict_from_jsonf_nofail("{ 'uri': %s }", uri);
}

static QTestState *new_source(Fixture *f)
{
    QTestState *vm = vm_new(f, "-global migration.backend-transfer=on");

    g_assert_true(set_capability(vm, "events", true));
    return vm;
}

static QTestState *new_destination(Fixture *f, const char *options)
{
    return vm_new(f, "-incoming defer -global migration.backend-transfer=on %s",
                  options);
}

static void listen_for(Fixture *f, QTestState *vm)
{
    qtest_qmp_assert_success(vm, "{ 'execute': 'migrate-incoming', 'arguments':"
                             " { 'uri': %s, 'exit-on-error': false } }",
                             f->uri);
}

static void migrate(Fixture *f, QTestState *vm)
{
    qtest_qmp_assert_success(vm, "{ 'execute': 'migrate', 'arguments':"
                             " { 'uri': %s } }", f->uri);
}

/* Returns the destination, which is running, or paused if @options has -S. */
static QTestState *migrate_to_new(Fixture *f, QTestState *from,
                                  const char *options)
{
    QTestState *to = new_destination(f, options);

    listen_for(f, to);
    migrate(f, from);
    wait_migration(from, "completed");
    wait_migration(to, "completed");
    wait_run_state(from, "postmigrate");
    return to;
}

/* query-migrate of the destination must report an error with @reason. */
static void assert_migration_failed(QTestState *vm, const char *reason)
{
    g_autoptr(QDict) info = NULL;
    const char *desc;

    wait_migration(vm, "failed");
    info = qtest_qmp_assert_success_ref(vm, "{ 'execute': 'query-migrate' }");
    desc = qdict_get_try_str(info, "error-desc") ?: "(none)";
    g_test_message("%s", desc);
    g_assert_nonnull(strstr(desc, reason));
}

/*
 * The test in the place of the source or the destination
 */

typedef struct Stream {
    GByteArray *data;
    int fd;                 /* was sent along with the byte before @fd_end */
    guint fd_end;
} Stream;

static void stream_free(Stream *s)
{
    g_byte_array_free(s->data, true);
    if (s->fd >= 0) {
        close(s->fd);
    }
    g_free(s);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Stream, stream_free)

static bool fd_readable(int fd, int timeout_ms)
{
    GPollFD pfd = { .fd = fd, .events = G_IO_IN };

    return g_poll(&pfd, 1, timeout_ms) == 1;
}

static struct sockaddr_un socket_address(Fixture *f)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    g_assert_cmpuint(strlen(f->path), <, sizeof(addr.sun_path));
    strcpy(addr.sun_path, f->path);
    return addr;
}

static void test_listen(Fixture *f)
{
    struct sockaddr_un addr = socket_address(f);

    f->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    g_assert_cmpint(f->listener, >=, 0);
    unlink(f->path);
    g_assert_cmpint(bind(f->listener, (struct sockaddr *)&addr, sizeof(addr)),
                    ==, 0);
    g_assert_cmpint(listen(f->listener, 1), ==, 0);
}

static int test_accept(Fixture *f)
{
    int fd;

    g_assert_true(fd_readable(f->listener, TIMEOUT_S * 1000));
    fd = accept(f->listener, NULL, NULL);
    g_assert_cmpint(fd, >=, 0);
    close(f->listener);
    f->listener = -1;
    return fd;
}

static int test_connect(Fixture *f)
{
    struct sockaddr_un addr = socket_address(f);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    return fd;
}

static Stream *stream_new(void)
{
    Stream *s = g_new0(Stream, 1);

    s->data = g_byte_array_new();
    s->fd = -1;
    return s;
}

/* Receive more of the stream. Returns false at its end. */
static bool stream_receive(Stream *s, int sock)
{
    char buf[4096], control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof(control),
    };
    struct cmsghdr *cmsg;
    ssize_t len;

    g_assert_true(fd_readable(sock, TIMEOUT_S * 1000));
    len = recvmsg(sock, &msg, 0);
    g_assert_cmpint(len, >=, 0);
    g_byte_array_append(s->data, (guint8 *)buf, len);

    cmsg = CMSG_FIRSTHDR(&msg);
    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS) {
        g_assert_cmpint(s->fd, ==, -1);
        memcpy(&s->fd, CMSG_DATA(cmsg), sizeof(int));
        s->fd_end = s->data->len;
    }
    return len > 0;
}

static void send_bytes(int sock, const guint8 *data, size_t len, int fd)
{
    char control[CMSG_SPACE(sizeof(int))] = { 0 };
    struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    struct cmsghdr *cmsg;

    if (fd >= 0) {
        msg.msg_control = control;
        msg.msg_controllen = sizeof(control);
        cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
    }
    g_assert_cmpint(sendmsg(sock, &msg, MSG_NOSIGNAL), ==, len);
}

/* Send the stream from @start on, with @fd instead of the received fd. */
static void stream_send(Stream *s, int sock, guint start, int fd)
{
    const guint8 *data = s->data->data;
    guint fd_at = s->fd_end - 1;

    if (s->fd >= 0 && fd_at >= start) {
        if (fd_at > start) {
            send_bytes(sock, data + start, fd_at - start, -1);
        }
        send_bytes(sock, data + fd_at, 1, fd);
        start = s->fd_end;
    }
    if (s->data->len > start) {
        send_bytes(sock, data + start, s->data->len - start, -1);
    }
}

static bool stream_has_section(Stream *s)
{
    return memmem(s->data->data, s->data->len, SECTION, strlen(SECTION));
}

/* Migrate to the test. Returns the stream. */
static Stream *capture(Fixture *f, QTestState *vm)
{
    Stream *s = stream_new();
    int sock;

    test_listen(f);
    migrate(f, vm);
    sock = test_accept(f);
    while (stream_receive(s, sock)) {
        ;
    }
    close(sock);
    wait_migration(vm, "completed");
    wait_run_state(vm, "postmigrate");
    return s;
}

/*
 * Set-up
 */

/* SIGALRM's handler; libqtest ends QEMU when the test aborts */
static void time_out(int sig)
{
    abort();
}

/* Also called when the test aborts */
static void remove_files(void *data)
{
    Fixture *f = data;
    g_autofree char *image = g_build_filename(f->dir, IMAGE, NULL);

    unlink(f->path);
    unlink(image);
    rmdir(f->dir);
}

static void setup(Fixture *f, const void *data)
{
    alarm(2 * TIMEOUT_S);
    f->dir = g_dir_make_tmp("backend-transfer-XXXXXX", NULL);
    g_assert_nonnull(f->dir);
    f->path = g_strdup_printf("%s/migrate", f->dir);
    f->uri = g_strdup_printf("unix:%s", f->path);
    f->vms = g_ptr_array_new_with_free_func(vm_free);
    f->listener = -1;
    qtest_add_abrt_handler(remove_files, f);
}

static void teardown(Fixture *f, const void *data)
{
    g_ptr_array_free(f->vms, true);
    qtest_remove_abrt_handler(f);
    remove_files(f);
    g_free(f->dir);
    g_free(f->path);
    g_free(f->uri);
    alarm(0);
}

/*
 * The parameter
 */

static void assert_hmp_shows(QTestState *vm, const char *expected)
{
    g_autofree char *text = qtest_hmp(vm, "info migrate_parameters");

    g_assert_nonnull(strstr(text, expected));
}

static void test_parameter(Fixture *f, const void *data)
{
    QTestState *vm = vm_new(f, "%s", "");

    g_assert_false(get_parameter(vm));
    set_parameter(vm, true);
    g_assert_true(get_parameter(vm));
    set_parameter(vm, false);
    g_assert_false(get_parameter(vm));

    assert_hmp_shows(vm, "backend-transfer: off");
    g_free(qtest_hmp(vm, "migrate_set_parameter backend-transfer on"));
    assert_hmp_shows(vm, "backend-transfer: on");
    g_assert_true(get_parameter(vm));

    vm = vm_new(f, "-global migration.backend-transfer=on");
    g_assert_true(get_parameter(vm));
}

/*
 * Refusals
 */

static const char *const channels[] = {
    "tcp:127.0.0.1:1",
    "vsock:2:1",
    "exec:cat >/dev/null",
    "file:/dev/null",
};

/* The VM runs, and no migration was started. */
static void assert_untouched(QTestState *vm)
{
    g_autofree char *status = migration_status(vm);

    g_assert_cmpstr(status, ==, "none");
    assert_run_state(vm, "running");
}

static void test_refuse_channel(Fixture *f, const void *data)
{
    QTestState *vm = new_source(f);
    int i;

    for (i = 0; i < ARRAY_SIZE(channels); i++) {
        assert_error(vm, "migrate", uri_args(channels[i]), "UNIX socket");
        assert_untouched(vm);
    }
    migrate_to_new(f, vm, "");
}

static void test_refuse_capability(Fixture *f, const void *data)
{
    const char *capability = data;
    QTestState *vm = new_source(f);

    if (!set_capability(vm, capability, true)) {
        g_test_skip("capability not supported");
        return;
    }
    assert_error(vm, "migrate", uri_args(f->uri), capability);
    assert_untouched(vm);

    g_assert_true(set_capability(vm, capability, false));
    migrate_to_new(f, vm, "");
}

static void test_refuse_tls(Fixture *f, const void *data)
{
    QTestState *vm = new_source(f);

    qtest_qmp_assert_success(vm, "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': { 'tls-creds': 'tls0' } }");
    assert_error(vm, "migrate", uri_args(f->uri), "tls-creds");
    assert_untouched(vm);

    qtest_qmp_assert_success(vm, "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': { 'tls-creds': '' } }");
    migrate_to_new(f, vm, "");
}

static void test_refuse_cpr_exec(Fixture *f, const void *data)
{
    QTestState *vm = new_source(f);

    qtest_qmp_assert_success(vm, "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': { 'mode': 'cpr-exec',"
                             " 'cpr-exec-command': [ 'false' ] } }");
    assert_error(vm, "migrate", uri_args(f->uri), "cpr-exec");
    assert_untouched(vm);

    qtest_qmp_assert_success(vm, "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': { 'mode': 'normal' } }");
    migrate_to_new(f, vm, "");
}

static void pass_fd(QTestState *vm, int fd)
{
    qtest_qmp_fds_assert_success(vm, &fd, 1, "{ 'execute': 'getfd',"
                                 " 'arguments': { 'fdname': 'channel' } }");
    close(fd);
}

/* The type of an fd: channel is only known when the channel is used. */
static void test_fd(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    QTestState *to = new_destination(f, "");
    int fds[2];

    g_assert_cmpint(pipe(fds), ==, 0);
    close(fds[0]);
    pass_fd(from, fds[1]);
    assert_error(from, "migrate", uri_args("fd:channel"), "UNIX socket");
    assert_run_state(from, "running");

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), ==, 0);
    pass_fd(from, fds[0]);
    pass_fd(to, fds[1]);
    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': 'fd:channel' } }");
    qtest_qmp_assert_success(from, "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri': 'fd:channel' } }");
    wait_run_state(to, "running");
    wait_run_state(from, "postmigrate");
    assert_cont_refused(from);
}

static void test_refuse_incoming(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    QTestState *to = new_destination(f, "");
    int i;

    for (i = 0; i < ARRAY_SIZE(channels); i++) {
        assert_error(to, "migrate-incoming", uri_args(channels[i]),
                     "UNIX socket");
    }
    g_assert_true(set_capability(to, "postcopy-ram", true));
    assert_error(to, "migrate-incoming", uri_args(f->uri), "postcopy-ram");
    g_assert_true(set_capability(to, "postcopy-ram", false));

    listen_for(f, to);
    migrate(f, from);
    wait_run_state(to, "running");
}

/* Postcopy must also be refused while the migration is under way. */
static void test_refuse_start_postcopy(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    QTestState *to = new_destination(f, "");

    if (!set_capability(from, "dirty-bitmaps", true) ||
        !set_capability(to, "dirty-bitmaps", true)) {
        g_test_skip("capability not supported");
        return;
    }
    g_assert_true(set_capability(from, "pause-before-switchover", true));
    listen_for(f, to);
    migrate(f, from);
    wait_migration(from, "pre-switchover");
    assert_error(from, "migrate-start-postcopy", qdict_new(), SECTION);

    qtest_qmp_assert_success(from, "{ 'execute': 'migrate-continue',"
                             " 'arguments': { 'state': 'pre-switchover' } }");
    wait_migration(from, "completed");
    wait_run_state(to, "running");
}

/*
 * The stream
 */

static void test_stream_off(Fixture *f, const void *data)
{
    QTestState *vm = new_source(f);
    g_autoptr(Stream) s = NULL;

    set_parameter(vm, false);
    s = capture(f, vm);
    g_assert_cmpuint(s->data->len, >, 0);
    g_assert_false(stream_has_section(s));
    g_assert_cmpint(s->fd, ==, -1);
    cont(vm);
}

/* Does the token's byte say that a QEMU has started the VM? */
static bool token_is_used(int fd)
{
    char started;

    g_assert_cmpint(pread(fd, &started, 1, 0), ==, 1);
    return started;
}

static void test_stream_on(Fixture *f, const void *data)
{
    QTestState *vm = new_source(f);
    g_autoptr(Stream) s = capture(f, vm);

    g_assert_true(stream_has_section(s));
    g_assert_cmpint(s->fd, >=, 0);

    /* The test has not used the token, so the source can */
    g_assert_false(token_is_used(s->fd));
    cont(vm);
    g_assert_true(token_is_used(s->fd));
}

typedef enum TokenKind {
    TOKEN_RIGHT,
    TOKEN_NONE,
    TOKEN_PIPE,
    TOKEN_FILE,
    TOKEN_EVENTFD,
    TOKEN_UNSEALED,
    TOKEN_EMPTY,
    TOKEN_READ_ONLY,
    TOKEN_USED,
} TokenKind;

static int memfd_new(size_t size, unsigned seals)
{
    return qemu_memfd_create("token", size, false, 0, seals, &error_abort);
}

static int token_new(TokenKind kind)
{
    g_autofree char *path = NULL;
    int fds[2], fd;

    switch (kind) {
    case TOKEN_NONE:
        return -1;
    case TOKEN_PIPE:
        g_assert_cmpint(pipe(fds), ==, 0);
        close(fds[1]);
        return fds[0];
    case TOKEN_FILE:
        return open("/dev/zero", O_RDONLY);
    case TOKEN_EVENTFD:
        return eventfd(1, EFD_NONBLOCK);
    case TOKEN_UNSEALED:
        return memfd_new(1, 0);
    case TOKEN_EMPTY:
        return memfd_new(0, F_SEAL_SHRINK);
    case TOKEN_READ_ONLY:
        fds[0] = memfd_new(1, F_SEAL_SHRINK);
        path = g_strdup_printf("/proc/self/fd/%d", fds[0]);
        fd = open(path, O_RDONLY);
        close(fds[0]);
        return fd;
    case TOKEN_USED:
        fd = memfd_new(1, F_SEAL_SHRINK);
        g_assert_cmpint(write(fd, "\1", 1), ==, 1);
        return fd;
    default:
        g_assert_not_reached();
    }
}

/* A destination with a wrong token cannot run the VM, but the source can. */
static void test_token(Fixture *f, const void *data)
{
    TokenKind kind = GPOINTER_TO_INT(data);
    QTestState *from = new_source(f);
    QTestState *to = new_destination(f, "");
    g_autoptr(Stream) s = capture(f, from);
    int sock, token;

    token = kind == TOKEN_RIGHT ? dup(s->fd) : token_new(kind);
    listen_for(f, to);
    sock = test_connect(f);
    stream_send(s, sock, 0, token);
    shutdown(sock, SHUT_WR);

    switch (kind) {
    case TOKEN_RIGHT:
        wait_run_state(to, "running");
        assert_cont_refused(from);
        break;
    case TOKEN_EMPTY:
    case TOKEN_READ_ONLY:
    case TOKEN_USED:
        wait_run_state(to, "postmigrate");
        assert_cont_refused(to);
        cont(from);
        break;
    default:
        assert_migration_failed(to, SECTION);
        assert_run_state(to, "inmigrate");
        cont(from);
        break;
    }
    close(sock);
    if (token >= 0) {
        close(token);
    }
}

/* If the stream is cut off anywhere, the source can run the VM. */
static void test_truncated(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    g_autoptr(Stream) s = capture(f, from);
    guint whole = s->data->len;
    guint cut[] = { 4, s->fd_end / 2, s->fd_end - 1, s->fd_end, s->fd_end + 1 };
    int i;

    for (i = 0; i < ARRAY_SIZE(cut); i++) {
        QTestState *to = new_destination(f, "");
        int sock;

        g_assert_cmpuint(cut[i], <, whole);
        listen_for(f, to);
        sock = test_connect(f);
        s->data->len = cut[i];
        if (cut[i] < s->fd_end) {
            send_bytes(sock, s->data->data, cut[i], -1);
        } else {
            stream_send(s, sock, 0, s->fd);
        }
        close(sock);
        wait_migration(to, "failed");
        assert_run_state(to, "inmigrate");
        vm_kill(f, to);
    }
    s->data->len = whole;
    cont(from);
}

/*
 * Ownership
 */

static void test_completed(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    QTestState *to = migrate_to_new(f, from, "");

    assert_run_state(to, "running");
    assert_cont_refused(from);
    assert_cont_refused(from);

    qtest_qmp_assert_success(to, "{ 'execute': 'stop' }");
    assert_cont_refused(from);
    cont(to);

    /* The destination stays the owner even if it is killed later */
    vm_kill(f, to);
    assert_cont_refused(from);
}

static void test_killed(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    QTestState *to = migrate_to_new(f, from, "-S");

    assert_run_state(to, "paused");
    vm_kill(f, to);
    cont(from);

    to = migrate_to_new(f, from, "");
    assert_run_state(to, "running");
    assert_cont_refused(from);
}

static void test_taken_back(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    QTestState *to = migrate_to_new(f, from, "-S");

    cont(from);
    assert_error(to, "cont", qdict_new(), NOT_OWNER);
    assert_run_state(to, "paused");
    assert_error(to, "migrate", uri_args(f->uri), NOT_OWNER);
}

static void test_started_later(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    QTestState *to = migrate_to_new(f, from, "-S");

    cont(to);
    assert_cont_refused(from);
}

/* A QEMU that never started the VM passes the token on to the next one. */
static void test_handed_on(Fixture *f, const void *data)
{
    int starter = GPOINTER_TO_INT(data), i;
    QTestState *vm[3];

    vm[0] = new_source(f);
    vm[1] = migrate_to_new(f, vm[0], "-S");

    set_parameter(vm[1], false);
    assert_error(vm[1], "migrate", uri_args(f->uri), SECTION);
    set_parameter(vm[1], true);
    vm[2] = migrate_to_new(f, vm[1], "-S");

    cont(vm[starter]);
    for (i = 0; i < ARRAY_SIZE(vm); i++) {
        if (i != starter) {
            assert_error(vm[i], "cont", qdict_new(), NOT_OWNER);
        }
    }
}

static void test_paused_source(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    QTestState *to;

    qtest_qmp_assert_success(from, "{ 'execute': 'stop' }");
    to = migrate_to_new(f, from, "");
    assert_run_state(to, "paused");
    cont(to);
    assert_cont_refused(from);
}

/* No process may write to the image while the returned file is open. */
static int lock_image(const char *image)
{
    /* The bytes that block/file-posix.c locks for permissions not shared */
    const int64_t first = 200, n = 64;
    int fd = open(image, O_RDWR | O_CLOEXEC);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(qemu_lock_fd(fd, first, n, false), ==, 0);
    return fd;
}

/* If the destination cannot use its images, the source can start the VM. */
static void test_image_in_use(Fixture *f, const void *data)
{
    bool back = GPOINTER_TO_INT(data);
    g_autofree char *image = g_build_filename(f->dir, IMAGE, NULL);
    g_autofree char *blockdev = NULL;
    QTestState *from, *to;
    int fd;

    if (!have_qemu_img() || !qemu_has_ofd_lock()) {
        g_test_skip("needs qemu-img, and locks that belong to open files");
        return;
    }
    g_assert_true(mkimg(image, "qcow2", 1));
    blockdev = g_strdup_printf("-blockdev driver=qcow2,node-name=disk,"
                               "file.driver=file,file.filename=%s,"
                               "file.locking=on", image);
    from = vm_new(f, "-global migration.backend-transfer=on %s", blockdev);
    fd = lock_image(image);

    to = migrate_to_new(f, from, blockdev);
    wait_run_state(to, "postmigrate");
    assert_error(to, "cont", qdict_new(), "lock");
    assert_error(from, "cont", qdict_new(), "lock");

    close(fd);
    cont(back ? from : to);
    assert_error(back ? to : from, "cont", qdict_new(), NOT_OWNER);
}

/* The destination serves its monitor only after the source has started. */
static void test_cpr_transfer(Fixture *f, const void *data)
{
    QTestState *from = new_source(f), *to;
    g_autofree char *cpr = g_strdup_printf("%s/cpr", f->dir);
    g_autofree char *args = NULL;
    bool started = false;

    args = g_strdup_printf("-machine none -nodefaults"
                           " -global migration.backend-transfer=on"
                           " -incoming %s -incoming channel-type=cpr,"
                           "addr.transport=socket,addr.type=unix,addr.path=%s",
                           f->uri, cpr);
    to = qtest_init_ext(NULL, args, NULL, false);
    g_ptr_array_add(f->vms, to);

    qtest_qmp_assert_success(from, "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': { 'mode': 'cpr-transfer' } }");
    while (!started) {
        g_autoptr(QDict) resp = NULL;

        resp = qtest_qmp(from, "{ 'execute': 'migrate', 'arguments':"
                         " { 'channels': ["
                         " { 'channel-type': 'main', 'addr': {"
                         "   'transport': 'socket', 'type': 'unix',"
                         "   'path': %s } },"
                         " { 'channel-type': 'cpr', 'addr': {"
                         "   'transport': 'socket', 'type': 'unix',"
                         "   'path': %s } } ] } }", f->path, cpr);
        started = qdict_haskey(resp, "return");
        if (!started) {
            g_usleep(1000);             /* "to" does not listen yet */
        }
    }
    qtest_connect(to);
    qtest_qmp_handshake(to, NULL);
    wait_run_state(to, "running");
    wait_run_state(from, "postmigrate");
    assert_cont_refused(from);
    unlink(cpr);
}

/*
 * Failures
 */

/* The test is a destination that dies when it has got the token. */
static void test_lost_destination(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    g_autoptr(Stream) s = stream_new();
    int sock;

    g_assert_true(set_capability(from, "return-path", true));
    test_listen(f);
    migrate(f, from);
    sock = test_accept(f);
    while (s->fd < 0) {
        g_assert_true(stream_receive(s, sock));
    }
    close(sock);
    wait_migration(from, "failed");
    wait_run_state(from, "running");
    g_assert_true(token_is_used(s->fd));

    migrate_to_new(f, from, "");
    assert_cont_refused(from);
}

/*
 * The test is a destination that is killed after it has claimed the VM, and
 * before it has started it.
 */
static void test_lost_claim(Fixture *f, const void *data)
{
    struct flock lock = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1
    };
    QTestState *from = new_source(f);
    g_autoptr(Stream) s = stream_new();
    int sock;

    g_assert_true(set_capability(from, "return-path", true));
    test_listen(f);
    migrate(f, from);
    sock = test_accept(f);
    while (s->fd < 0) {
        g_assert_true(stream_receive(s, sock));
    }
    g_assert_cmpint(fcntl(s->fd, F_SETLK, &lock), ==, 0);
    close(sock);
    wait_migration(from, "failed");
    wait_run_state(from, "postmigrate");
    assert_error(from, "cont", qdict_new(), CLAIMED);

    lock.l_type = F_UNLCK;
    g_assert_cmpint(fcntl(s->fd, F_SETLK, &lock), ==, 0);
    g_assert_false(token_is_used(s->fd));
    cont(from);
    g_assert_true(token_is_used(s->fd));

    migrate_to_new(f, from, "");
    assert_cont_refused(from);
}

/* The source sees a failure after the destination has started the VM. */
static void test_failed_too_late(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    QTestState *to = new_destination(f, "");
    g_autoptr(Stream) s = stream_new();
    g_autofree char *state = run_state(to);
    int in, out;

    g_assert_true(set_capability(from, "return-path", true));
    test_listen(f);
    migrate(f, from);
    in = test_accept(f);
    unlink(f->path);
    listen_for(f, to);
    out = test_connect(f);
    while (!g_str_equal(state, "running")) {
        if (fd_readable(in, 10)) {
            guint start = s->data->len;

            g_assert_true(stream_receive(s, in));
            stream_send(s, out, start, s->fd);
        }
        g_free(state);
        state = run_state(to);
    }
    close(in);

    wait_migration(from, "failed");
    wait_run_state(from, "postmigrate");
    assert_cont_refused(from);
    assert_run_state(to, "running");
    close(out);
}

static void test_cancel(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    QTestState *to = new_destination(f, "");

    g_assert_true(set_capability(from, "pause-before-switchover", true));
    listen_for(f, to);
    migrate(f, from);
    wait_migration(from, "pre-switchover");
    qtest_qmp_assert_success(from, "{ 'execute': 'migrate_cancel' }");
    wait_migration(from, "cancelled");
    wait_run_state(from, "running");
    wait_migration(to, "failed");
    vm_kill(f, to);

    g_assert_true(set_capability(from, "pause-before-switchover", false));
    migrate_to_new(f, from, "");
    assert_cont_refused(from);
}

static void test_one_side(Fixture *f, const void *data)
{
    bool on = GPOINTER_TO_INT(data);    /* on the source */
    QTestState *from = new_source(f);
    QTestState *to = new_destination(f, "");

    g_assert_true(set_capability(from, "return-path", true));
    set_parameter(on ? to : from, false);
    listen_for(f, to);
    migrate(f, from);
    assert_migration_failed(to, DIFFERS);
    assert_run_state(to, "inmigrate");
    wait_migration(from, "failed");
    wait_run_state(from, "running");
    vm_kill(f, to);

    set_parameter(from, true);
    migrate_to_new(f, from, "");
    assert_cont_refused(from);
}

/* Changes of the parameter have no effect on a migration under way. */
static void test_changed_later(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    QTestState *to = new_destination(f, "");

    g_assert_true(set_capability(from, "pause-before-switchover", true));
    listen_for(f, to);
    set_parameter(to, false);
    migrate(f, from);
    wait_migration(from, "pre-switchover");
    set_parameter(from, false);
    qtest_qmp_assert_success(from, "{ 'execute': 'migrate-continue',"
                             " 'arguments': { 'state': 'pre-switchover' } }");
    wait_run_state(to, "running");
    wait_run_state(from, "postmigrate");
    assert_cont_refused(from);
}

static void test_off(Fixture *f, const void *data)
{
    QTestState *from = new_source(f);
    QTestState *to = new_destination(f, "-S");

    set_parameter(from, false);
    set_parameter(to, false);
    listen_for(f, to);
    migrate(f, from);
    wait_migration(from, "completed");
    wait_migration(to, "completed");
    wait_run_state(from, "postmigrate");
    vm_kill(f, to);
    cont(from);
}

static void add_test(const char *name, const void *data,
                     void (*test)(Fixture *f, const void *data))
{
    g_autofree char *path = g_strdup_printf("/%s/backend-transfer/%s",
                                            qtest_get_arch(), name);

    g_test_add(path, Fixture, data, setup, test, teardown);
}

int main(int argc, char **argv)
{
    struct sigaction act = { .sa_handler = time_out };

    g_test_init(&argc, &argv, NULL);
    sigaction(SIGALRM, &act, NULL);

    add_test("parameter", NULL, test_parameter);
    add_test("refuse/channel", NULL, test_refuse_channel);
    add_test("refuse/postcopy", "postcopy-ram", test_refuse_capability);
    add_test("refuse/colo", "x-colo", test_refuse_capability);
    add_test("refuse/snapshot", "background-snapshot", test_refuse_capability);
    add_test("refuse/tls", NULL, test_refuse_tls);
    add_test("refuse/cpr-exec", NULL, test_refuse_cpr_exec);
    add_test("refuse/incoming", NULL, test_refuse_incoming);
    add_test("refuse/start-postcopy", NULL, test_refuse_start_postcopy);
    add_test("fd", NULL, test_fd);
    add_test("stream/off", NULL, test_stream_off);
    add_test("stream/on", NULL, test_stream_on);
    add_test("stream/truncated", NULL, test_truncated);
    add_test("token/right", GINT_TO_POINTER(TOKEN_RIGHT), test_token);
    add_test("token/none", GINT_TO_POINTER(TOKEN_NONE), test_token);
    add_test("token/pipe", GINT_TO_POINTER(TOKEN_PIPE), test_token);
    add_test("token/file", GINT_TO_POINTER(TOKEN_FILE), test_token);
    add_test("token/eventfd", GINT_TO_POINTER(TOKEN_EVENTFD), test_token);
    add_test("token/unsealed", GINT_TO_POINTER(TOKEN_UNSEALED), test_token);
    add_test("token/empty", GINT_TO_POINTER(TOKEN_EMPTY), test_token);
    add_test("token/read-only", GINT_TO_POINTER(TOKEN_READ_ONLY), test_token);
    add_test("token/used", GINT_TO_POINTER(TOKEN_USED), test_token);
    add_test("owner/completed", NULL, test_completed);
    add_test("owner/killed", NULL, test_killed);
    add_test("owner/taken-back", NULL, test_taken_back);
    add_test("owner/started-later", NULL, test_started_later);
    add_test("owner/handed-on/0", GINT_TO_POINTER(0), test_handed_on);
    add_test("owner/handed-on/1", GINT_TO_POINTER(1), test_handed_on);
    add_test("owner/handed-on/2", GINT_TO_POINTER(2), test_handed_on);
    add_test("owner/paused-source", NULL, test_paused_source);
    add_test("owner/image-in-use/back", GINT_TO_POINTER(true),
             test_image_in_use);
    add_test("owner/image-in-use/stay", GINT_TO_POINTER(false),
             test_image_in_use);
    add_test("owner/cpr-transfer", NULL, test_cpr_transfer);
    add_test("failure/lost-destination", NULL, test_lost_destination);
    add_test("failure/lost-claim", NULL, test_lost_claim);
    add_test("failure/too-late", NULL, test_failed_too_late);
    add_test("failure/cancel", NULL, test_cancel);
    add_test("failure/only-source", GINT_TO_POINTER(true), test_one_side);
    add_test("failure/only-destination", GINT_TO_POINTER(false), test_one_side);
    add_test("failure/changed-later", NULL, test_changed_later);
    add_test("off", NULL, test_off);
    return g_test_run();
}
