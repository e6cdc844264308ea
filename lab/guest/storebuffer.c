/*
 * Do two processes see each other's stores in order, one of them in a guest?
 *
 * usage: storebuffer guest ROUNDS lock|xchg
 *        storebuffer host FILE OFFSET
 *
 * Both sides share a page. In each round, each side stores to its own variable,
 * executes a full memory barrier, and loads the variable of the other side. At
 * least one of them must then load the new value. This is what a virtio driver
 * and its device rely on when they suppress notifications.
 *
 * The guest's side prints the physical address of the page, and waits for the
 * host's side, which maps the file that is the guest's memory. The host's side
 * prints the number of rounds in which both sides loaded the old value.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define MAGIC 0x73746266
#define LINE __attribute__((aligned(64)))       /* a cache line of its own */

struct shared {
    LINE volatile uint32_t magic, rounds;
    LINE volatile uint32_t guest_var;
    LINE volatile uint32_t host_var;
    /* 2n - 1: the side has begun round n; 2n: it has completed round n */
    LINE volatile uint32_t guest_step;
    LINE volatile uint32_t host_step;
    LINE volatile uint32_t guest_loaded;
};

static void __attribute__((noreturn)) fail(const char *what)
{
    perror(what);
    exit(1);
}

static void wait_step(volatile uint32_t *step, uint32_t wanted)
{
    while (*step != wanted) {
    }
}

static uint64_t physical_address(const void *page)
{
    int fd = open("/proc/self/pagemap", O_RDONLY);
    uint64_t entry;

    if (fd < 0 || pread(fd, &entry, sizeof(entry),
                        (uintptr_t)page / PAGE * sizeof(entry)) < 0) {
        fail("pagemap");
    }
    close(fd);
    return (entry & ((UINT64_C(1) << 55) - 1)) * PAGE;
}

static int guest(uint32_t rounds, int use_xchg)
{
    struct shared *s = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (s == MAP_FAILED || mlock(s, PAGE) < 0) {
        fail("page");
    }
    s->rounds = rounds;
    s->magic = MAGIC;
    printf("%" PRIx64 "\n", physical_address(s));
    fflush(stdout);

    for (uint32_t round = 1; round <= rounds; round++) {
        s->guest_step = 2 * round - 1;
        wait_step(&s->host_step, 2 * round - 1);
        if (use_xchg) {
            uint32_t value = round;

            asm volatile("xchg %0, %1" : "+r" (value), "+m" (s->guest_var)
                         :: "memory");
        } else {
            s->guest_var = round;
            asm volatile("lock; addl $0, -4(%%rsp)" ::: "memory", "cc");
        }
        s->guest_loaded = s->host_var;
        s->guest_step = 2 * round;
        wait_step(&s->host_step, 2 * round);
    }
    return 0;
}

static int host(const char *file, off_t offset)
{
    int fd = open(file, O_RDWR);
    struct shared *s = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                            offset);
    uint32_t rounds, random = 1, violations = 0;

    if (fd < 0 || s == MAP_FAILED || s->magic != MAGIC) {
        fail(file);
    }
    rounds = s->rounds;
    for (uint32_t round = 1; round <= rounds; round++) {
        uint32_t loaded;

        wait_step(&s->guest_step, 2 * round - 1);
        s->host_step = 2 * round - 1;
        /* Meet the guest's store at a random time */
        random = random * 1664525 + 1013904223;
        for (volatile uint32_t n = random >> 24; n; n--) {
        }
        s->host_var = round;
        asm volatile("mfence" ::: "memory");
        loaded = s->guest_var;
        wait_step(&s->guest_step, 2 * round);
        violations += loaded != round && s->guest_loaded != round;
        s->host_step = 2 * round;
    }
    printf("%" PRIu32 "\n", violations);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "guest")) {
        return guest(strtoul(argv[2], NULL, 10), !strcmp(argv[3], "xchg"));
    }
    if (argc == 4 && !strcmp(argv[1], "host")) {
        return host(argv[2], strtoull(argv[3], NULL, 16));
    }
    fprintf(stderr, "usage: storebuffer guest ROUNDS lock|xchg\n"
            "       storebuffer host FILE OFFSET\n");
    return 2;
}
