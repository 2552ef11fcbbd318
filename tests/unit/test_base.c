/* base/: errors, buffers, job memory, the thread pool, JSON files, settings. */
#include "test.h"

#include <cjson/cJSON.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

#include "../../src/base/thread_place.h"
#include "buffer.h"
#include "config.h"
#include "json.h"
#include "region.h"
#include "thread_pool.h"

TEST(first_error_sticks)
{
    struct error err = {0};
    CHECK(error_set(&err, ERR_IO, "file %d", 7) == ERR_IO);
    CHECK(error_set(&err, ERR_NOMEM, "later") == ERR_IO);
    CHECK(strcmp(err.msg, "file 7") == 0, "%s", err.msg);
    CHECK(error_prefix(&err, "while %s", "reading") == ERR_IO);
    CHECK(strcmp(err.msg, "while reading: file 7") == 0, "%s", err.msg);
    CHECK(error_set(NULL, ERR_IO, "nobody listens") == ERR_IO);
}

TEST(base64_of_every_remainder)
{
    /* RFC 4648, section 10 */
    static const char *const pairs[][2] = {{"", ""},
                                           {"f", "Zg=="},
                                           {"fo", "Zm8="},
                                           {"foo", "Zm9v"},
                                           {"foob", "Zm9vYg=="},
                                           {"fooba", "Zm9vYmE="},
                                           {"foobar", "Zm9vYmFy"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        struct buffer b = {0};
        CHECK(buffer_base64(&b, pairs[i][0], strlen(pairs[i][0])) == 0);
        CHECK(strcmp(b.data, pairs[i][1]) == 0, "%s gave %s", pairs[i][0], b.data);
        buffer_free(&b);
    }
}

TEST(long_errors_are_cut)
{
    struct error err = {0};
    char long_text[2 * sizeof err.msg];
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    error_set(&err, ERR_IO, "%s", long_text);
    CHECK(strlen(err.msg) == sizeof err.msg - 1);
    error_prefix(&err, "%s", long_text);
    CHECK(strlen(err.msg) == sizeof err.msg - 1 && strstr(err.msg, ": x"), "%zu", strlen(err.msg));
}

TEST(buffers_append_and_fail_for_good)
{
    struct buffer b = {0};
    CHECK(buffer_puts(&b, "ab") == 0 && buffer_printf(&b, "%d", 7) == 0 && strcmp(b.data, "ab7") == 0);
    CHECK(buffer_add(&b, "x", SIZE_MAX - 2) == ERR_NOMEM && b.failed);
    CHECK(buffer_puts(&b, "more") == ERR_NOMEM && b.len == 3 && strcmp(b.data, "ab7") == 0);
    buffer_free(&b);
    CHECK(!b.data && !b.failed);
}

TEST(json_string_escapes)
{
    struct buffer all = {0};
    buffer_json_string(&all, "\t\r\b\f\x1f/", 6);
    CHECK(strcmp(all.data, "\"\\t\\r\\b\\f\\u001f/\"") == 0, "%s", all.data);
    buffer_free(&all);
    struct buffer b = {0};
    buffer_json_string(&b, "a\"b\\c\n\x01\xc3\xa4", 9);
    CHECK(strcmp(b.data, "\"a\\\"b\\\\c\\n\\u0001\xc3\xa4\"") == 0, "%s", b.data);
    buffer_free(&b);
}

TEST(region_gives_back_and_reuses)
{
    static char memory[8192];
    static struct region r;
    struct error err = {0};
    region_init(&r, memory, sizeof memory);
    char *a = region_alloc(&r, 1000, &err), *b = region_alloc(&r, 1000, &err),
         *c = region_alloc(&r, 1000, &err);
    CHECK(a == memory && b == a + 1024 && c == b + 1024);
    CHECK(region_free(&r, b, &err) == 0);
    CHECK(region_alloc(&r, 1024, &err) == b, "a gap of the very size");
    CHECK(region_free(&r, b, &err) == 0);
    CHECK(region_alloc(&r, 300, &err) == b, "first fit");
    CHECK(r.peak == 3072, "peak %zu", r.peak);
    CHECK(region_free(&r, b + 256, &err) == ERR_INTERNAL, "a view is not a block");
    err.code = 0;
    CHECK(region_free(&r, c, &err) == 0 && region_free(&r, c, &err) == ERR_INTERNAL, "twice");
    err.code = 0;
    CHECK(region_alloc(&r, 8192, &err) == NULL && err.code == ERR_NOMEM);
    err.code = 0;
    CHECK(region_alloc(&r, SIZE_MAX - 10, &err) == NULL && err.code == ERR_NOMEM, "no overflow");
}

TEST(region_counts_its_blocks)
{
    static struct region r;
    struct error err = {0};
    region_init(&r, NULL, 0);
    for (int i = 0; i < REGION_BLOCKS_MAX; i++)
        CHECK(region_alloc(&r, 1, &err) != NULL, "%s", err.msg);
    CHECK(region_alloc(&r, 1, &err) == NULL && err.code == ERR_INTERNAL, "one more than there may be");
}

/* Planning and running must give the same offsets: the arena is as large as the plan says, and not a byte
 * more. */
TEST(region_plan_equals_run)
{
    static struct region plan, run;
    struct error err = {0};
    void *live[2][64] = {{0}};
    unsigned seed = 1;
    region_init(&plan, NULL, 0);
    for (int round = 0; round < 2; round++) {
        struct region *r = round ? &run : &plan;
        char *memory = round ? aligned_alloc(REGION_ALIGN, plan.peak) : NULL;
        if (round)
            region_init(&run, memory, plan.peak);
        seed = 1;
        for (int i = 0; i < 5000; i++) {
            seed = seed * 1664525u + 1013904223u;
            int slot = (int)(seed >> 8) % 64;
            if (live[round][slot]) {
                CHECK(region_free(r, live[round][slot], &err) == 0);
                live[round][slot] = NULL;
            } else {
                live[round][slot] = region_alloc(r, seed >> 16, &err);
            }
        }
        CHECK(err.code == 0, "%s", err.msg);
        free(memory);
    }
    CHECK(run.peak == plan.peak);
}

static void count_item(void *ctx, int item, int worker)
{
    _Atomic int *seen = ctx;
    (void)worker;
    atomic_fetch_add(&seen[item], 1);
}

TEST(pool_runs_every_item_once)
{
    struct error err = {0};
    for (int threads = 1; threads <= 5; threads++) {
        struct pool *pool = NULL;
        CHECK(pool_open(&pool, threads, &err) == 0, "%s", err.msg);
        CHECK(pool_threads(pool) == threads);
        for (int round = 0; round < 300; round++) {
            static _Atomic int seen[257];
            int items = round % 257, wrong = 0;
            memset(seen, 0, sizeof seen);
            pool_run(pool, items, count_item, seen);
            for (int i = 0; i < 257; i++)
                wrong += seen[i] != (i < items);
            CHECK(wrong == 0, "%d items on %d threads", items, threads);
        }
        pool_close(&pool);
        CHECK(pool == NULL);
    }
    struct pool *pool = NULL;
    CHECK(pool_open(&pool, -1, &err) == ERR_INVALID);
}

static void slow_item(void *ctx, int item, int worker)
{
    (void)item;
    (void)worker;
    usleep(300);
    atomic_fetch_add((_Atomic int *)ctx, 1);
}

TEST(a_run_ends_when_its_last_item_has)
{
    struct error err = {0};
    struct pool *pool = NULL;
    CHECK(pool_open(&pool, 4, &err) == 0, "%s", err.msg);
    for (int round = 0; round < 50; round++) {
        _Atomic int seen = 0;
        pool_run(pool, 8, slow_item, (void *)&seen);
        CHECK(seen == 8, "%d of 8 items", seen);
    }
    pool_close(&pool);
}

struct sums {
    int sum[64], add;
};

static void add_item(void *ctx, int item, int worker)
{
    struct sums *s = ctx;
    (void)worker;
    s->sum[item] += s->add;
}

/* Short runs of other sizes and contexts one behind the other: workers come late, to the next one or to none.
 */
TEST(late_workers_do_what_there_is_by_then)
{
    struct error err = {0};
    struct pool *pool = NULL;
    CHECK(pool_open(&pool, 4, &err) == 0, "%s", err.msg);
    struct sums all[3] = {{{0}, 1}, {{0}, 2}, {{0}, 3}};
    int want[3][64] = {{0}};
    for (int round = 0; round < 30000; round++) {
        const int of = round % 3, items = 2 + round * 7 % 61;
        pool_run(pool, items, add_item, &all[of]);
        for (int i = 0; i < items; i++)
            want[of][i] += all[of].add;
        if (round % 500 == 0)
            usleep(200); /* they sleep by then */
    }
    for (int i = 0; i < 3; i++)
        CHECK(memcmp(all[i].sum, want[i], sizeof want[i]) == 0, "sums of context %d", i);
    pool_close(&pool);
}

/* A thread that holds an item and does nothing for it until something is written to its pipe. */
struct idler {
    struct thread_place place;
    int pipe[2];
    _Atomic bool ready;
    bool stays, moved, back;
    cpu_set_t mask;
};

static void *idle_main(void *arg)
{
    struct idler *t = arg;
    cpu_set_t now;
    char byte;
    thread_arrives(&t->place);
    thread_takes(&t->place);
    atomic_store(&t->ready, true);
    if (read(t->pipe[0], &byte, 1) != 1 || sched_getaffinity(0, sizeof now, &now) != 0)
        abort();
    t->moved = CPU_COUNT(&now) == 1;
    thread_has_done(&t->place, &t->mask, t->stays);
    if (sched_getaffinity(0, sizeof now, &now) != 0)
        abort();
    t->back = CPU_EQUAL(&now, &t->mask);
    return NULL;
}

TEST(a_thread_that_does_not_come_on_is_brought_here_and_goes_back)
{
    for (int stays = 0; stays < 2; stays++) {
        struct idler t = {.stays = stays};
        struct thread_look look = {0};
        pthread_t thread;
        bool stalled = false;
        CHECK(pipe(t.pipe) == 0 && sched_getaffinity(0, sizeof t.mask, &t.mask) == 0 &&
              pthread_create(&thread, NULL, idle_main, &t) == 0);
        while (!t.ready)
            usleep(100);
        CHECK(!thread_is_stalled(&t.place, &look, 1), "one look says nothing");
        for (int i = 0; i < 10000 && !stalled; i++) {
            usleep(100);
            stalled = thread_is_stalled(&t.place, &look, 1);
        }
        CHECK(stalled);
        CHECK(!thread_is_stalled(&t.place, &look, 2), "nor one at another run");
        CHECK(thread_pull(&t.place) && !thread_pull(&t.place), "once");
        CHECK(write(t.pipe[1], "x", 1) == 1);
        pthread_join(thread, NULL);
        CHECK(CPU_COUNT(&t.mask) == 1 || t.moved);
        CHECK(t.back);
        CHECK(!thread_is_stalled(&t.place, &look, 2) && !thread_pull(&t.place), "it holds nothing");
        close(t.pipe[0]);
        close(t.pipe[1]);
    }
}

struct sleepers {
    int sleeps; /* the worker that sleeps in its items; -1: all but the caller */
    cpu_set_t mask;
    bool is_free[4];
    _Atomic int done;
};

static void sleep_or_look(void *ctx, int item, int worker)
{
    struct sleepers *s = ctx;
    cpu_set_t now;
    (void)item;
    s->is_free[worker] = sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &s->mask);
    if (worker == s->sleeps || (s->sleeps < 0 && worker > 0))
        usleep(2000);
    s->done++;
}

/* One that sleeps looks like one that has lost its core: it is moved, and may go everywhere again afterwards.
 * On a busy machine one may really have lost its core when it looks, so each has many looks. */
TEST(threads_that_were_moved_are_free_again)
{
    struct error err = {0};
    struct pool *pool = NULL;
    struct sleepers s = {0};
    CHECK(sched_getaffinity(0, sizeof s.mask, &s.mask) == 0);
    /* another number than there are cores: workers would be bound to theirs */
    CHECK(pool_open(&pool, CPU_COUNT(&s.mask) == 3 ? 4 : 3, &err) == 0, "%s", err.msg);
    for (int round = 0; round < 60; round++) {
        s.sleeps = round % 3 - 1;
        s.done = 0;
        pool_run(pool, 5, sleep_or_look, &s);
        CHECK(s.done == 5);
    }
    memset(s.is_free, 0, sizeof s.is_free);
    for (int round = 0; round < 300 && !(s.is_free[0] && s.is_free[1] && s.is_free[2]); round++) {
        s.sleeps = round % 3;
        pool_run(pool, 6, sleep_or_look, &s);
    }
    CHECK(s.is_free[0] && s.is_free[1] && s.is_free[2]);
    pool_close(&pool);
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) < 0 || fclose(f) != 0)
        abort();
}

TEST(json_reader_checks_types_and_bounds)
{
    char path[] = "/tmp/latentd-json-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    write_text(path,
               "{\"a\": 5, \"b\": [1, 2], \"c\": \"x\", \"d\": true, \"e\": null, \"f\": 1.5, \"g\": 3e9}");
    struct error err = {0};
    struct cJSON *tree = json_read_file(path, 1000, &err);
    struct json_reader r = {tree, path, &err};
    int list[4] = {0};
    CHECK(json_int(&r, "a", 1, 0, 10) == 5 && json_int(&r, "e", 3, 0, 10) == 3 &&
          json_int(&r, "none", 4, 0, 10) == 4);
    CHECK(json_ints(&r, "b", list, 4, 0, 9) == 2 && list[1] == 2);
    CHECK(json_ints(&r, "a", list, 4, 0, 9) == 4 && list[3] == 5, "one number stands for all");
    CHECK(strcmp(json_string(&r, "c", ""), "x") == 0 && json_bool(&r, "d", false) &&
          json_number(&r, "f", 0) == 1.5);
    CHECK(err.code == 0, "%s", err.msg);
    json_int(&r, "a", 1, 6, 10);
    CHECK(err.code == ERR_FORMAT && strstr(err.msg, "\"a\" is 5"), "%s", err.msg);
    err = (struct error){0};
    json_int(&r, "f", 1, 0, 10);
    CHECK(err.code == ERR_FORMAT);
    err = (struct error){0};
    json_ints(&r, "b", list, 1, 0, 9);
    CHECK(err.code == ERR_FORMAT, "a list that is too long");
    json_int(&r, "a", 1, 0, 10);
    CHECK(strcmp(json_string(&r, "c", "nothing"), "nothing") == 0, "nothing is read behind an error");
    CHECK(strstr(err.msg, "\"b\""), "the first error stays: %s", err.msg);
#define REFUSES(read, words)                                                                                 \
    do {                                                                                                     \
        err = (struct error){0};                                                                             \
        read;                                                                                                \
        CHECK(err.code == ERR_FORMAT && strstr(err.msg, words), "\"%s\" lacks \"%s\"", err.msg, words);      \
    } while (0)
    REFUSES(json_ints(&r, "b", list, 4, 2, 9), "integers from 2 to 9");
    REFUSES(json_ints(&r, "b", list, 4, 0, 1), "integers from 0 to 1");
    REFUSES(json_number(&r, "c", 0), "should be a number");
    REFUSES(json_bool(&r, "a", false), "should be true or false");
    REFUSES(json_string(&r, "a", ""), "should be a string");
    REFUSES(json_int(&r, "g", 0, -5, 5), "should be an integer");
    cJSON_Delete(tree);
    char *large = malloc(200000);
    if (!CHECK(large != NULL))
        return;
    memset(large, ' ', 199999);
    large[199999] = '\0';
    large[0] = '[';
    large[199998] = ']';
    err = (struct error){0};
    write_text(path, large);
    CHECK(json_read_file(path, 1000, &err) == NULL && err.code == ERR_FORMAT && strstr(err.msg, "larger"),
          "%s", err.msg);
    free(large);
    err = (struct error){0};
    write_text(path, "{\"a\": 5} trailing");
    CHECK(json_read_file(path, 1000, &err) == NULL && err.code == ERR_FORMAT, "trailing text");
    err = (struct error){0};
    unlink(path);
    CHECK(json_read_file(path, 1000, &err) == NULL && err.code == ERR_NOT_FOUND);
}

TEST(settings_name_the_bad_variable)
{
    static const char *const bad[][2] = {
        {"PORT", "80x"}, {"PORT", "70000"}, {"LATENTD_QUEUE", "0"}, {"LATENTD_THREADS", "-1"}};
    struct config c;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error err = {0};
        setenv(bad[i][0], bad[i][1], 1);
        CHECK(config_read(&c, &err) == ERR_INVALID && strstr(err.msg, bad[i][0]) &&
                  strstr(err.msg, bad[i][1]),
              "%s", err.msg);
        unsetenv(bad[i][0]);
    }
    struct error err = {0};
    setenv("PORT", "", 1);
    CHECK(config_read(&c, &err) == 0 && c.port == 8000, "an empty variable is one that is not set: %s",
          err.msg);
    unsetenv("PORT");
    CHECK(config_read(&c, &err) == 0, "%s", err.msg);
    CHECK(strcmp(c.model_id, CONFIG_MODEL_DEFAULT) == 0 && strcmp(c.host, "127.0.0.1") == 0 &&
          c.port == 8000 && c.queue == 8);
}

/* The settings with NAME=VALUE set; false when they are refused. */
static bool read_with(struct config *c, const char *name, const char *value)
{
    struct error err = {0};
    setenv(name, value, 1);
    int rc = config_read(c, &err);
    unsetenv(name);
    CHECK(rc == 0 || (rc == ERR_INVALID && strstr(err.msg, name)), "%s=%s: %s", name, value, err.msg);
    return rc == 0;
}

TEST(flags_of_the_ai_runner)
{
    static const char *const yes[] = {"true", "TRUE", " True ", "1", "yes", "on"},
                             *const no[] = {"", " ", "false", "FALSE ", "0", "no", "off"},
                             *const neither[] = {"maybe", "true false", "tru", "2"};
    struct config c;
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        CHECK(read_with(&c, "DEEPCACHE", yes[i]) && c.deepcache, "\"%s\"", yes[i]);
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        CHECK(read_with(&c, "DEEPCACHE", no[i]) && !c.deepcache, "\"%s\"", no[i]);
    for (size_t i = 0; i < sizeof neither / sizeof *neither; i++)
        CHECK(!read_with(&c, "DEEPCACHE", neither[i]), "\"%s\"", neither[i]);
    CHECK(read_with(&c, "SFAST", "true") && c.warm_up);
    CHECK(read_with(&c, "TORCH_COMPILE", "true") && c.warm_up);
    CHECK(read_with(&c, "SFAST_WARMUP", "true") && !c.warm_up, "SFAST_WARMUP alone asks for nothing");
    setenv("SFAST", "true", 1);
    CHECK(read_with(&c, "SFAST_WARMUP", "false") && !c.warm_up);
    unsetenv("SFAST");
    CHECK(read_with(&c, "BFLOAT16", "true") && c.bf16 == BF16_YES);
    CHECK(read_with(&c, "BFLOAT16", "false") && c.bf16 == BF16_NO);
    CHECK(read_with(&c, "BFLOAT16", "") && c.bf16 == BF16_ANY && !c.deepcache && !c.warm_up);
    CHECK(read_with(&c, "LATENTD_PRECISION", "int8") && c.precision == PRECISION_INT8 && c.bf16 == BF16_ANY);
    CHECK(read_with(&c, "LATENTD_PRECISION", "bf16") && c.precision == PRECISION_BF16 && c.bf16 == BF16_YES);
    CHECK(read_with(&c, "LATENTD_PRECISION", "fp32") && c.precision == PRECISION_FP32 && c.bf16 == BF16_NO);
    CHECK(read_with(&c, "LATENTD_PRECISION", "") && c.precision == PRECISION_ANY && c.bf16 == BF16_ANY);
    CHECK(!read_with(&c, "LATENTD_PRECISION", "int4"));
    CHECK(!read_with(&c, "LATENTD_PRECISION", "INT8"));
    setenv("BFLOAT16", "false", 1);
    CHECK(!read_with(&c, "LATENTD_PRECISION", "bf16"), "BFLOAT16 says the opposite");
    CHECK(read_with(&c, "LATENTD_PRECISION", "int8") && c.precision == PRECISION_INT8 && c.bf16 == BF16_NO);
    unsetenv("BFLOAT16");
    CHECK(read_with(&c, "SAFETY_CHECKER_DEVICE", "cpu") && c.safety_on_cpu);
    CHECK(read_with(&c, "SAFETY_CHECKER_DEVICE", "cuda") && !c.safety_on_cpu);
    CHECK(read_with(&c, "SAFETY_CHECKER_DEVICE", "cuda:1") && !c.safety_on_cpu);
    CHECK(!read_with(&c, "SAFETY_CHECKER_DEVICE", "tpu"));
}

TEST_MAIN()
