/*
 * Files of all kinds, which are sent along with the fuzzed streams
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib-unix.h>
#include <sys/eventfd.h>
#include "qapi/error.h"
#include "io/channel-socket.h"
#include "qemu/memfd.h"
#include "qemu/sockets.h"
#include "fuzz-files.h"

/* The other ends of connections; those that do not fit are closed */
static int peers[FUZZ_MAX_FILES];
static size_t npeers;

static int memory = -1;

void fuzz_set_memory(int fd)
{
    memory = fd;
}

static void keep_peer(int fd)
{
    if (npeers == ARRAY_SIZE(peers)) {
        close(fd);
        return;
    }
    qemu_set_blocking(fd, false, &error_abort);
    peers[npeers++] = fd;
}

int fuzz_peer(void)
{
    return npeers ? peers[npeers - 1] : -1;
}

void fuzz_close_peers(void)
{
    while (npeers) {
        close(peers[--npeers]);
    }
}

/*
 * Kinds of files
 */

static int new_eventfd_with(uint64_t value, int flags)
{
    int fd = eventfd(0, EFD_CLOEXEC | flags);

    g_assert_cmpint(fd, >=, 0);
    if (value) {
        g_assert(write(fd, &value, sizeof(value)) == sizeof(value));
    }
    return fd;
}

static int new_pair(int type)
{
    int sv[2];

    g_assert(!qemu_socketpair(AF_UNIX, type, 0, sv));
    keep_peer(sv[1]);
    return sv[0];
}

static int new_pipe(void)
{
    int fds[2];

    g_assert(g_unix_open_pipe(fds, FD_CLOEXEC, NULL));
    close(fds[1]);
    return fds[0];
}

/* The host chooses the address; a UNIX socket gets an abstract one. */
static int new_listener(int family)
{
    struct sockaddr_in inet = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    struct sockaddr un = { .sa_family = AF_UNIX };
    int fd = qemu_socket(family, SOCK_STREAM, 0);

    g_assert_cmpint(fd, >=, 0);
    if (family == AF_INET) {
        g_assert(!bind(fd, (struct sockaddr *)&inet, sizeof(inet)));
    } else {
        g_assert(!bind(fd, &un, sizeof(un.sa_family)));
    }
    g_assert(!listen(fd, 1));
    return fd;
}

/* Reset the connection when it is closed, since TIME_WAIT keeps the port. */
static void reset_at_close(int fd)
{
    const struct linger linger = { .l_onoff = 1 };

    g_assert(!setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
}

static int new_inet_connection(void)
{
    int listener = new_listener(AF_INET);
    int client = qemu_socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in addr;
    socklen_t len = sizeof(addr);
    int server;

    g_assert(!getsockname(listener, (struct sockaddr *)&addr, &len));
    g_assert(!connect(client, (struct sockaddr *)&addr, len));
    server = qemu_accept(listener, NULL, NULL);
    g_assert_cmpint(server, >=, 0);
    reset_at_close(client);
    reset_at_close(server);
    close(listener);
    keep_peer(client);
    return server;
}

int fuzz_new_file(unsigned kind)
{
    switch (kind % FILE_KINDS) {
    case FILE_EVENTFD:
        return new_eventfd_with(0, EFD_NONBLOCK);
    case FILE_EVENTFD_BLOCKING:
        return new_eventfd_with(0, 0);
    case FILE_EVENTFD_FULL:
        return new_eventfd_with(UINT64_MAX - 1, 0);
    case FILE_INFLIGHT:
        return qemu_memfd_create("inflight", 0x4000, false, 0, 0,
                                 &error_abort);
    case FILE_MEMORY:
        return memory < 0 ? -1 : qemu_dup(memory);
    case FILE_STREAM_SOCKET:
        return qemu_socket(AF_UNIX, SOCK_STREAM, 0);
    case FILE_DATAGRAM_SOCKET:
        return qemu_socket(AF_UNIX, SOCK_DGRAM, 0);
    case FILE_CONNECTION:
        return new_pair(SOCK_STREAM);
    case FILE_LISTENER:
        return new_listener(AF_UNIX);
    case FILE_INET_CONNECTION:
        return new_inet_connection();
    case FILE_INET_LISTENER:
        return new_listener(AF_INET);
    case FILE_SEQPACKET:
        return new_pair(SOCK_SEQPACKET);
    case FILE_PIPE:
        return new_pipe();
    case FILE_NULL:
        return qemu_open("/dev/null", O_RDWR, &error_abort);
    case FILE_DIRECTORY:
        return qemu_open("/", O_RDONLY, &error_abort);
    default:
        return -1;
    }
}

static uint8_t kind_of_socket(int fd)
{
    g_autoptr(SocketAddress) addr = socket_local_address(fd, &error_abort);
    bool inet = addr->type == SOCKET_ADDRESS_TYPE_INET;
    int listens = 0;
    socklen_t len = sizeof(listens);

    g_assert(!getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len));
    if (listens) {
        return inet ? FILE_INET_LISTENER : FILE_LISTENER;
    }
    return inet ? FILE_INET_CONNECTION : FILE_CONNECTION;
}

static bool same_file(int a, int b)
{
    struct stat sa, sb;

    return !fstat(a, &sa) && !fstat(b, &sb) &&
           sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

static uint8_t kind_of_file(int fd)
{
    struct stat st;

    g_assert(!fstat(fd, &st));
    if (S_ISSOCK(st.st_mode)) {
        return kind_of_socket(fd);
    }
    if (!S_ISREG(st.st_mode)) {
        return FILE_EVENTFD;
    }
    return memory >= 0 && same_file(fd, memory) ? FILE_MEMORY : FILE_INFLIGHT;
}

/*
 * Streams
 */

static QIOChannel *new_channel(int sock)
{
    return QIO_CHANNEL(qio_channel_socket_new_fd(sock, &error_abort));
}

void fuzz_send(const FuzzInput *input, const uint8_t *stream, int sock)
{
    QIOChannel *ioc = new_channel(sock);
    size_t done = 0;

    for (size_t i = 0; i < input->files && done < input->size; i++) {
        int fd = fuzz_new_file(input->kind[i]);
        struct iovec iov = { (void *)(input->stream + done), 1 };

        if (fd >= 0) {
            qio_channel_writev_full_all(ioc, &iov, 1, &fd, 1, 0,
                                        &error_abort);
            close(fd);
            done++;
        }
    }
    qio_channel_write_all(ioc, (const char *)stream + done,
                          input->size - done, &error_abort);
    object_unref(OBJECT(ioc));
}

void fuzz_add_file(FuzzInput *input, int fd)
{
    g_assert_cmpuint(input->files, <, FUZZ_MAX_FILES);
    input->kind[input->files++] = kind_of_file(fd);
}

void fuzz_receive(FuzzInput *input, int sock)
{
    QIOChannel *ioc = new_channel(sock);
    ssize_t len;

    do {
        g_autofree int *fds = NULL;
        size_t nfds = 0;
        struct iovec iov = {
            input->stream + input->size, FUZZ_MAX_STREAM - input->size,
        };

        len = qio_channel_readv_full(ioc, &iov, 1, &fds, &nfds, 0,
                                     &error_abort);
        input->size += len;
        for (size_t i = 0; i < nfds; i++) {
            fuzz_add_file(input, fds[i]);
            close(fds[i]);
        }
    } while (len);
    object_unref(OBJECT(ioc));
}
