/*
 * Write numbered blocks to a disk, read each back and report what completed
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Sequence number S is written to block S % BLOCKS, read back as soon as the
 * write completes, and compared.  Several requests are in flight at any
 * time, each with a buffer of its own.  A block holds the seed of the run,
 * its own number and its sequence number, a checksum, and a body that
 * follows from these, so that a lost, stale, torn or misplaced write shows.
 *
 * Each completion is reported as a line "TAG w SEQUENCE" or "TAG r SEQUENCE"
 * (r: read back and found right), so that the host can put its own time on it.
 *
 * With --check nothing is written: every block must hold the last of the
 * first --count sequence numbers that falls on it, or a later one (which was
 * in flight when somebody pulled the plug).
 *
 * SIGTERM and SIGINT end a run once the requests in flight are complete, and
 * so do MAX_ERRORS errors.
 * Exit status: 0 all is well, 1 the disk failed, 2 wrong usage.
 */

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x79667265766b6c62ULL     /* "blkverfy" on disk */
#define MAX_DEPTH 256
#define MAX_BLOCK_SIZE (1024 * 1024)
#define MAX_ERRORS 20

typedef struct {
    uint64_t magic;
    uint64_t seed;
    uint64_t block;
    uint64_t sequence;
    uint64_t checksum;          /* of the whole block with this field 0 */
} Header;

typedef struct {
    struct iocb iocb;
    bool busy;
    bool writing;
    uint64_t sequence;
    uint64_t block;
    void *buffer;
} Request;

static struct {
    const char *device;
    const char *tag;
    uint64_t block_size;
    uint64_t blocks;
    uint64_t depth;
    uint64_t count;             /* 0: no limit */
    uint64_t first;
    uint64_t seconds;           /* 0: no limit */
    uint64_t seed;
    uint64_t report_fd;
    bool check;
} opt = {
    .tag = "disk", .block_size = 4096, .depth = 8, .seed = 1, .report_fd = 1,
};

static Request requests[MAX_DEPTH];
static aio_context_t aio;
static int fd;
static uint64_t written, verified, errors;
static char report[MAX_DEPTH * 64];
static size_t report_len;
static volatile sig_atomic_t stopping;

static void __attribute__((noreturn, format(printf, 2, 3)))
die(int status, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fprintf(stderr, "blkverify: ");
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    exit(status);
}

static void __attribute__((format(printf, 2, 3)))
disk_error(const Request *req, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fprintf(stderr, "blkverify: %s: block %" PRIu64 ": ",
            opt.device, req->block);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    if (++errors == MAX_ERRORS) {
        stopping = 1;
    }
}

static uint64_t mix(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
    return hash ^ hash >> 29;
}

static uint64_t block_checksum(const void *buffer)
{
    const uint64_t *word = buffer;
    uint64_t hash = MAGIC;

    for (size_t i = 0; i < opt.block_size / sizeof(*word); i++) {
        bool is_checksum = i == offsetof(Header, checksum) / sizeof(*word);

        hash = mix(hash, is_checksum ? 0 : word[i]);
    }
    return hash;
}

static void fill_block(Request *req)
{
    Header *header = req->buffer;
    uint64_t *word = req->buffer;
    uint64_t noise = mix(mix(opt.seed, req->block), req->sequence);

    for (size_t i = 0; i < opt.block_size / sizeof(*word); i++) {
        word[i] = noise = mix(noise, i);
    }
    *header = (Header) {
        .magic = MAGIC, .seed = opt.seed, .block = req->block,
        .sequence = req->sequence,
    };
    header->checksum = block_checksum(req->buffer);
}

/* Does the block hold what it should?  Says so if it does not. */
static bool verify_block(const Request *req)
{
    const Header *header = req->buffer;
    uint64_t checksum;

    if (header->magic != MAGIC) {
        disk_error(req, "expected sequence %" PRIu64 ", found no block "
                   "of ours (starts with 0x%016" PRIx64 ")",
                   req->sequence, header->magic);
        return false;
    }
    checksum = block_checksum(header);
    if (header->checksum != checksum) {
        disk_error(req, "expected sequence %" PRIu64 ", found a damaged "
                   "sequence %" PRIu64 " (checksum 0x%016" PRIx64
                   ", recorded 0x%016" PRIx64 ")", req->sequence,
                   header->sequence, checksum, header->checksum);
        return false;
    }
    if (header->seed == opt.seed && header->block == req->block &&
        (header->sequence == req->sequence ||
         (opt.check && header->sequence > req->sequence))) {
        return true;
    }
    disk_error(req, "expected seed %" PRIu64 " sequence %" PRIu64
               ", found seed %" PRIu64 " sequence %" PRIu64
               " of block %" PRIu64, opt.seed, req->sequence,
               header->seed, header->sequence, header->block);
    return false;
}

static void add_report(const Request *req)
{
    report_len += snprintf(report + report_len, sizeof(report) - report_len,
                           "%s %c %" PRIu64 "\n", opt.tag,
                           req->writing ? 'w' : 'r', req->sequence);
}

static void flush_report(void)
{
    size_t done = 0;

    while (done < report_len) {
        ssize_t n = write(opt.report_fd, report + done, report_len - done);

        if (n < 0 && errno != EINTR) {
            die(2, "cannot report to file descriptor %" PRIu64 ": %s",
                opt.report_fd, strerror(errno));
        }
        done += n < 0 ? 0 : n;
    }
    report_len = 0;
}

static void submit(Request *req)
{
    struct iocb *iocb = &req->iocb;
    long ret;

    *iocb = (struct iocb) {
        .aio_data = (uintptr_t)req,
        .aio_lio_opcode = req->writing ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
        .aio_fildes = fd,
        .aio_buf = (uintptr_t)req->buffer,
        .aio_nbytes = opt.block_size,
        .aio_offset = req->block * opt.block_size,
    };
    do {
        ret = syscall(SYS_io_submit, aio, 1, &iocb);
    } while (ret < 0 && (errno == EINTR || errno == EAGAIN));
    if (ret < 0) {
        die(1, "%s: cannot submit a request for block %" PRIu64 ": %s",
            opt.device, req->block, strerror(errno));
    }
    req->busy = true;
}

static void complete(Request *req, int64_t result)
{
    req->busy = false;
    if (result != (int64_t)opt.block_size) {
        disk_error(req, "%s of sequence %" PRIu64 " failed: %s",
                   req->writing ? "write" : "read", req->sequence,
                   result < 0 ? strerror(-result) : "short transfer");
    } else if (req->writing) {
        written++;
        add_report(req);
        req->writing = false;
        memset(req->buffer, 0, opt.block_size);
        submit(req);
    } else if (verify_block(req)) {
        verified++;
        add_report(req);
    }
}

static bool block_is_busy(uint64_t block)
{
    for (uint64_t i = 0; i < opt.depth; i++) {
        if (requests[i].busy && requests[i].block == block) {
            return true;
        }
    }
    return false;
}

/* The sequence number that @block must hold after the first opt.count */
static uint64_t last_sequence(uint64_t block)
{
    return block + (opt.count - 1 - block) / opt.blocks * opt.blocks;
}

/* Starts what can be started; returns false when nothing is in flight. */
static bool start_requests(uint64_t *next, uint64_t end)
{
    bool in_flight = false;

    for (uint64_t i = 0; i < opt.depth; i++) {
        Request *req = &requests[i];
        uint64_t block = *next % opt.blocks;

        if (!req->busy && !stopping && *next < end && !block_is_busy(block)) {
            req->block = block;
            req->sequence = opt.check ? last_sequence(block) : *next;
            req->writing = !opt.check;
            if (req->writing) {
                fill_block(req);
            }
            submit(req);
            (*next)++;
        }
        in_flight |= req->busy;
    }
    return in_flight;
}

static void run(void)
{
    uint64_t next = opt.check ? 0 : opt.first;
    uint64_t end = opt.count ? next + opt.count : UINT64_MAX;
    struct io_event events[MAX_DEPTH];

    if (opt.check && end > opt.blocks) {
        end = opt.blocks;
    }
    while (start_requests(&next, end)) {
        long n = syscall(SYS_io_getevents, aio, 1, opt.depth, events, NULL);

        if (n < 0 && errno != EINTR) {
            die(1, "io_getevents failed: %s", strerror(errno));
        }
        for (long i = 0; i < n; i++) {
            complete((Request *)(uintptr_t)events[i].data, events[i].res);
        }
        flush_report();
    }
}

static void open_device(void)
{
    uint64_t size, available;
    struct stat st;

    fd = open(opt.device, (opt.check ? O_RDONLY : O_RDWR) | O_DIRECT);
    if (fd < 0 || fstat(fd, &st) < 0) {
        die(2, "cannot open %s: %s", opt.device, strerror(errno));
    }
    size = st.st_size;
    if (S_ISBLK(st.st_mode) && ioctl(fd, BLKGETSIZE64, &size) < 0) {
        die(2, "%s: cannot get its size: %s", opt.device, strerror(errno));
    }
    available = size / opt.block_size;
    if (!opt.blocks) {
        opt.blocks = available;
    }
    if (!opt.blocks || opt.blocks > available) {
        die(2, "%s has room for %" PRIu64 " blocks of %" PRIu64 " bytes; "
            "choose another --blocks or --block-size", opt.device, available,
            opt.block_size);
    }
}

static void stop(int sig __attribute__((unused)))
{
    stopping = 1;
}

static void start_signals(void)
{
    struct sigaction action = { .sa_handler = stop };

    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGALRM, &action, NULL);
    alarm(opt.seconds);
}

static uint64_t number(const char *name, uint64_t min, uint64_t max)
{
    char *end;
    uint64_t value;

    errno = 0;
    value = strtoull(optarg, &end, 0);
    if (errno || *end || end == optarg || value < min || value > max) {
        die(2, "--%s must be a number from %" PRIu64 " to %" PRIu64
            ", not '%s'", name, min, max, optarg);
    }
    return value;
}

static void __attribute__((noreturn)) usage(int status)
{
    fprintf(status ? stderr : stdout,
            "usage: blkverify [OPTION]... DEVICE\n"
            "  --block-size BYTES  size of a block (4096)\n"
            "  --blocks N          use the first N blocks (the whole disk)\n"
            "  --depth N           requests in flight (8)\n"
            "  --count N           stop after N blocks (never)\n"
            "  --first N           start with sequence number N (0)\n"
            "  --seconds N         stop after N seconds (never)\n"
            "  --seed N            generation of the contents (1)\n"
            "  --report FD         where to report completions (1)\n"
            "  --tag NAME          first word of the reported lines (disk)\n"
            "  --check             verify what --count blocks have left\n");
    exit(status);
}

static void parse_options(int argc, char **argv)
{
    static const struct option options[] = {
        { "block-size", required_argument, NULL, 'b' },
        { "blocks", required_argument, NULL, 'B' },
        { "depth", required_argument, NULL, 'd' },
        { "count", required_argument, NULL, 'n' },
        { "first", required_argument, NULL, 'f' },
        { "seconds", required_argument, NULL, 't' },
        { "seed", required_argument, NULL, 's' },
        { "report", required_argument, NULL, 'r' },
        { "tag", required_argument, NULL, 'T' },
        { "check", no_argument, NULL, 'c' },
        { "help", no_argument, NULL, 'h' },
        { }
    };
    const uint64_t max = INT64_MAX;
    int c, index;

    while ((c = getopt_long(argc, argv, "", options, &index)) != -1) {
        const char *name = c == '?' ? NULL : options[index].name;

        switch (c) {
        case 'b':
            opt.block_size = number(name, 512, MAX_BLOCK_SIZE);
            break;
        case 'B':
            opt.blocks = number(name, 1, max);
            break;
        case 'd':
            opt.depth = number(name, 1, MAX_DEPTH);
            break;
        case 'n':
            opt.count = number(name, 1, max);
            break;
        case 'f':
            opt.first = number(name, 0, max);
            break;
        case 't':
            opt.seconds = number(name, 1, UINT32_MAX);
            break;
        case 's':
            opt.seed = number(name, 0, max);
            break;
        case 'r':
            opt.report_fd = number(name, 0, 1023);
            break;
        case 'T':
            opt.tag = optarg;
            break;
        case 'c':
            opt.check = true;
            break;
        default:
            usage(c == 'h' ? 0 : 2);
        }
    }
    if (optind != argc - 1) {
        usage(2);
    }
    opt.device = argv[optind];
    if (opt.block_size % 512) {
        die(2, "--block-size must be a multiple of 512");
    }
    if (strlen(opt.tag) > 20) {
        die(2, "--tag must have at most 20 characters");
    }
    if (opt.check && !opt.count) {
        die(2, "--check needs --count, the number of blocks written");
    }
}

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    double start;

    parse_options(argc, argv);
    open_device();
    for (uint64_t i = 0; i < opt.depth; i++) {
        requests[i].buffer = aligned_alloc(4096, (opt.block_size + 4095) &
                                           ~4095ULL);
        if (!requests[i].buffer) {
            die(2, "out of memory: choose a smaller --depth");
        }
    }
    if (syscall(SYS_io_setup, opt.depth, &aio) < 0) {
        die(2, "io_setup failed: %s", strerror(errno));
    }
    start_signals();
    start = now();
    run();
    fprintf(stderr, "blkverify: %s: written %" PRIu64 ", verified %" PRIu64
            ", errors %" PRIu64 ", bytes %" PRIu64 ", seconds %.3f\n",
            opt.device, written, verified, errors,
            verified * opt.block_size, now() - start);
    return errors != 0;
}
