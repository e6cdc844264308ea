/*
 * Making inputs for a fuzz target and running them
 *
 * Inputs are made by mutation from good inputs, which the target makes or which
 * are in the folder that --corpus names. No input may cause a crash, a hang, a
 * sanitizer's finding, or a file that stays open.
 *
 * To use libFuzzer, compile the target and this file with -DLIBFUZZER, which
 * leaves main() out, link them with -fsanitize=fuzzer, and begin with the
 * inputs that --write-corpus writes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/monitor.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/module.h"
#include "count-fds.h"
#include "fuzz-target.h"
#ifdef QEMU_SANITIZE_ADDRESS
#include <sanitizer/common_interface_defs.h>
#endif

#define HEADER          4
#define MAX_FILE_SIZE   (HEADER + FUZZ_MAX_FILES + FUZZ_MAX_STREAM + \
                         FUZZ_MAX_SCRIPT)

/* Do not print the errors that bad inputs cause. */
int error_vprintf(const char *fmt, va_list ap)
{
    return 0;
}

int error_vprintf_unless_qmp(const char *fmt, va_list ap)
{
    return 0;
}

FuzzScript fuzz_script(const FuzzInput *input)
{
    return (FuzzScript) { input->script, input->script_size };
}

uint8_t fuzz_next(FuzzScript *script)
{
    if (!script->left) {
        return 0;
    }
    script->left--;
    return *script->data++;
}

void fuzz_next_bytes(FuzzScript *script, void *to, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        ((uint8_t *)to)[i] = fuzz_next(script);
    }
}

static void initialize(void)
{
    static bool initialized;

    if (!initialized) {
        initialized = true;
        module_call_init(MODULE_INIT_QOM);
        signal(SIGPIPE, SIG_IGN);       /* as in QEMU */
        fuzz_target.init();
    }
}

static bool run_input(const FuzzInput *input)
{
    unsigned fds = count_fds();
    bool accepted = fuzz_target.run(input);

    g_assert_cmpuint(count_fds(), ==, fds);
    return accepted;
}

/* Copy up to @most bytes, but not beyond @end. Returns their number. */
static size_t take(const uint8_t **data, const uint8_t *end, void *to,
                   size_t most)
{
    size_t n = MIN(most, end - *data);

    memcpy(to, *data, n);
    *data += n;
    return n;
}

/* Returns false if the input has no stream. */
static bool read_input(FuzzInput *input, const uint8_t *data, size_t size)
{
    const uint8_t *end = data + size;
    size_t files, stream;

    if (size < HEADER) {
        return false;
    }
    files = data[0];
    stream = MIN(lduw_be_p(data + 1), FUZZ_MAX_STREAM);
    input->options = data[3];
    data += HEADER;
    input->files = take(&data, end, input->kind, files);
    input->size = take(&data, end, input->stream, stream);
    input->script_size = take(&data, end, input->script, FUZZ_MAX_SCRIPT);
    return input->size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree FuzzInput *input = g_new0(FuzzInput, 1);

    initialize();
    if (read_input(input, data, size)) {
        run_input(input);
    }
    return 0;
}

#ifndef LIBFUZZER

static size_t write_input(const FuzzInput *input, uint8_t *data)
{
    size_t size = HEADER;

    data[0] = input->files;
    stw_be_p(data + 1, input->size);
    data[3] = input->options;
    memcpy(data + size, input->kind, input->files);
    size += input->files;
    memcpy(data + size, input->stream, input->size);
    size += input->size;
    memcpy(data + size, input->script, input->script_size);
    return size + input->script_size;
}

/*
 * The corpus: good inputs and their names
 */

static GPtrArray *corpus;
static GPtrArray *names;

static void make_corpus(void)
{
    for (unsigned n = 0; ; n++) {
        FuzzInput *input = g_new0(FuzzInput, 1);

        if (!fuzz_target.make(n, input)) {
            g_free(input);
            return;
        }
        g_assert_cmpuint(input->size, >, 0);
        g_ptr_array_add(corpus, input);
        g_ptr_array_add(names, g_strdup_printf("%02u", n));
    }
}

static bool read_file(const char *path, GError **err)
{
    g_autofree FuzzInput *input = g_new0(FuzzInput, 1);
    g_autofree char *data = NULL;
    gsize size;

    if (!g_file_get_contents(path, &data, &size, err)) {
        return false;
    }
    if (!read_input(input, (uint8_t *)data, size)) {
        g_set_error(err, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                    "%s has no stream", path);
        return false;
    }
    g_ptr_array_add(corpus, g_steal_pointer(&input));
    g_ptr_array_add(names, g_strdup(path));
    return true;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char **)a, *(char **)b);
}

/* Sort by name, because a seed needs the same corpus to make the same input. */
static bool read_corpus(const char *folder, GError **err)
{
    g_autoptr(GPtrArray) paths = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GDir) dir = g_dir_open(folder, 0, err);
    const char *name;

    if (!dir) {
        return false;
    }
    while ((name = g_dir_read_name(dir))) {
        g_ptr_array_add(paths, g_build_filename(folder, name, NULL));
    }
    g_ptr_array_sort(paths, compare_names);
    for (unsigned i = 0; i < paths->len; i++) {
        if (!read_file(paths->pdata[i], err)) {
            return false;
        }
    }
    return true;
}

static bool write_corpus(const char *folder, GError **err)
{
    g_autofree uint8_t *data = g_malloc(MAX_FILE_SIZE);

    for (unsigned i = 0; i < corpus->len; i++) {
        g_autofree char *path = g_build_filename(folder, names->pdata[i],
                                                 NULL);
        size_t size = write_input(corpus->pdata[i], data);

        if (!g_file_set_contents(path, (char *)data, size, err)) {
            return false;
        }
    }
    return true;
}

/*
 * Mutation
 */

static const FuzzInput *any_input(GRand *rand)
{
    return corpus->pdata[g_rand_int_range(rand, 0, corpus->len)];
}

static void mutate_number(GRand *rand, FuzzInput *input)
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

static void mutate_stream(GRand *rand, FuzzInput *input)
{
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
        memcpy(input->stream + at, any_input(rand)->stream + at, len);
        break;
    case 7:
        /* Cut the stream, or extend it by stale bytes of the buffer */
        if (g_rand_int_range(rand, 0, 4) == 0) {
            input->size = MAX(1, at);
        } else {
            input->size = MIN(input->size + len, FUZZ_MAX_STREAM);
        }
        break;
    }
}

static void mutate_files(GRand *rand, FuzzInput *input)
{
    size_t at = g_rand_int_range(rand, 0, input->files + 1);

    switch (g_rand_int_range(rand, 0, 3)) {
    case 0:
        if (at < input->files) {
            input->kind[at] = g_rand_int(rand);
        }
        break;
    case 1:
        if (input->files < FUZZ_MAX_FILES) {
            memmove(input->kind + at + 1, input->kind + at,
                    input->files - at);
            input->kind[at] = g_rand_int(rand);
            input->files++;
        }
        break;
    case 2:
        input->files = at;
        break;
    }
}

/* Change little: the code behind the checks only runs for accepted inputs. */
static void mutate(GRand *rand, FuzzInput *input)
{
    int steps = g_rand_int_range(rand, 0, 6);

    *input = *any_input(rand);
    while (steps--) {
        mutate_stream(rand, input);
    }
    if (fuzz_target.mutate && g_rand_boolean(rand)) {
        fuzz_target.mutate(rand, input);
    }
    if (g_rand_int_range(rand, 0, 4) == 0) {
        mutate_files(rand, input);
    }
    if (g_rand_int_range(rand, 0, 8) == 0) {
        input->options = g_rand_int(rand);
    }
    if (g_rand_boolean(rand)) {
        input->script_size = g_rand_int_range(rand, 0, FUZZ_MAX_SCRIPT);
    }
    for (size_t i = 0; i < input->script_size; i++) {
        input->script[i] = g_rand_int(rand);
    }
}

/*
 * The program
 */

/* An input that takes longer counts as a hang. */
#define HANG_SECONDS    20

static uint64_t inputs;
static uint64_t accepted;
/* The name of the unchanged input that is running, or NULL */
static const char *current;

static struct {
    int64_t seed;
    double seconds;
    int64_t inputs;
    char *corpus;
    char *write_corpus;
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
      "Make inputs from the files in DIR, too; all must be good", "DIR" },
    { "write-corpus", 0, 0, G_OPTION_ARG_FILENAME, &options.write_corpus,
      "Only write the target's own good inputs to DIR", "DIR" },
    { "tap", 0, 0, G_OPTION_ARG_NONE, &options.tap,
      "No effect, the output is always TAP", NULL },
    { "keep-going", 'k', 0, G_OPTION_ARG_NONE, &options.keep_going,
      "No effect", NULL },
    { NULL }
};

static void report(void)
{
    dprintf(STDOUT_FILENO, "# %" PRIu64 " inputs, %" PRIu64 " accepted\n",
            inputs, accepted);
}

/* Print how to run the input again that makes this process fail. */
static void report_death(void)
{
    report();
    if (current) {
        dprintf(STDOUT_FILENO, "# failed: input %s of the corpus\n", current);
    } else {
        dprintf(STDOUT_FILENO, "# failed; again: --seed %" PRId64
                " --inputs 1%s%s\n", options.seed + inputs,
                options.corpus ? " --corpus " : "", options.corpus ?: "");
    }
    dprintf(STDOUT_FILENO, "not ok 1 /%s/fuzz\n", fuzz_target.name);
}

static void die_of_signal(int sig)
{
    report_death();
    raise(sig);     /* SA_RESETHAND has removed this handler */
}

static void catch_death(void)
{
    const struct sigaction action = {
        .sa_handler = die_of_signal,
        .sa_flags = SA_RESETHAND | SA_NODEFER,
    };

#ifdef QEMU_SANITIZE_ADDRESS
    /* The sanitizer has its own signal handlers */
    __sanitizer_set_death_callback(report_death);
#else
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
#endif
    sigaction(SIGABRT, &action, NULL);
    sigaction(SIGALRM, &action, NULL);      /* a hang */
}

/*
 * Run the corpus unchanged. Returns false if an input is refused, because
 * inputs made from it would be refused early, too.
 */
static bool run_corpus(void)
{
    bool good = true;

    for (unsigned i = 0; i < corpus->len; i++) {
        current = names->pdata[i];
        alarm(HANG_SECONDS);
        if (!run_input(corpus->pdata[i])) {
            printf("# input %s of the corpus is refused\n", current);
            good = false;
        }
    }
    current = NULL;
    printf("# corpus of %u inputs\n", corpus->len);
    fflush(stdout);
    return good;
}

/* Each input has its own seed, so that it can be run alone. */
static void run_inputs(void)
{
    int64_t end = g_get_monotonic_time() + options.seconds * G_USEC_PER_SEC;
    g_autofree FuzzInput *input = g_new(FuzzInput, 1);

    while (options.inputs ? inputs < options.inputs :
                            g_get_monotonic_time() < end) {
        GRand *rand = g_rand_new_with_seed(options.seed + inputs);

        mutate(rand, input);
        g_rand_free(rand);
        alarm(HANG_SECONDS);
        accepted += run_input(input);
        inputs++;
    }
    alarm(0);
}

static bool fuzz(void)
{
    bool ok;

    printf("1..1\n# seed %" PRId64 "\n", options.seed);
    fflush(stdout);
    catch_death();
    ok = run_corpus();
    run_inputs();
    report();
    printf("%s 1 /%s/fuzz\n", ok ? "ok" : "not ok", fuzz_target.name);
    return ok;
}

static bool prepare_corpus(GError **err)
{
    make_corpus();
    return !options.corpus || read_corpus(options.corpus, err);
}

int main(int argc, char **argv)
{
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) err = NULL;
    bool ok = true;

    g_option_context_add_main_entries(context, option_entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &err)) {
        g_printerr("%s\n", err->message);
        return 2;
    }
    if (options.seed < 0) {
        options.seed = g_random_int();
    }

    initialize();
    corpus = g_ptr_array_new_with_free_func(g_free);
    names = g_ptr_array_new_with_free_func(g_free);
    if (!prepare_corpus(&err) ||
        (options.write_corpus && !write_corpus(options.write_corpus, &err))) {
        g_printerr("%s\n", err->message);
        return 2;
    }
    if (!options.write_corpus) {
        ok = fuzz();
    }
    g_ptr_array_free(corpus, true);
    g_ptr_array_free(names, true);
    return ok ? 0 : 1;
}

#endif
