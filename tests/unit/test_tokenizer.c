/* The tokenizer against transformers on hard texts (scripts/export_tokenizer_goldens.py), and what it
 * refuses. */
#include "test.h"

#include <pthread.h>
#include <stdint.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tokenizer.h"

#define DATA "tests/golden/data/tokenizer"

/* The golden folder NAME, or the shipped model's tokenizer. */
static struct tokenizer *load(const char *name)
{
    char dir[200];
    struct tokenizer *t = NULL;
    struct error err = {0};
    snprintf(dir, sizeof dir, strcmp(name, "emoji") == 0 ? "models/latentd/%s/tokenizer" : DATA "/%s", name);
    CHECK(tokenizer_load(&t, dir, &err) == 0 && t, "%s", err.msg);
    return t;
}

/* ---- goldens ---- */

struct golden {
    uint32_t most, count;
    struct golden_case {
        char *text;
        uint32_t bytes, used, cut;
        int32_t *ids;
    } * cases;
};

static uint32_t read_u32(FILE *f)
{
    uint32_t v = 0;
    CHECK(fread(&v, 4, 1, f) == 1, "golden file ends early");
    return v;
}

static void golden_read(struct golden *g, const char *name)
{
    char path[200], magic[4] = {0};
    *g = (struct golden){0};
    snprintf(path, sizeof path, DATA "/%s/cases.bin", name);
    FILE *f = fopen(path, "rb");
    if (!CHECK(f, "%s", path))
        return;
    CHECK(fread(magic, 4, 1, f) == 1 && memcmp(magic, "LDTK", 4) == 0 && read_u32(f) == 1, "%s", path);
    g->most = read_u32(f);
    g->count = read_u32(f);
    g->cases = calloc(g->count, sizeof *g->cases);
    for (uint32_t i = 0; i < g->count; i++) {
        struct golden_case *c = &g->cases[i];
        c->bytes = read_u32(f);
        c->text = malloc(c->bytes + 1);
        CHECK(fread(c->text, 1, c->bytes, f) == c->bytes);
        c->text[c->bytes] = '\0';
        c->used = read_u32(f);
        c->cut = read_u32(f);
        c->ids = malloc(g->most * sizeof *c->ids);
        CHECK(fread(c->ids, sizeof *c->ids, g->most, f) == g->most);
    }
    fclose(f);
}

static void golden_free(struct golden *g)
{
    for (uint32_t i = 0; i < g->count; i++) {
        free(g->cases[i].text);
        free(g->cases[i].ids);
    }
    free(g->cases);
}

/* Returns whether case C came out as it should. */
static int same(const struct tokenizer *t, const struct golden *g, const struct golden_case *c)
{
    int32_t ids[64];
    int used = 0, cut = 0;
    struct error err = {0};
    int rc = tokenizer_encode(t, c->text, c->bytes, ids, (int)g->most, &used, &cut, &err);
    return rc == 0 && used == (int)c->used && cut == (int)c->cut &&
           memcmp(ids, c->ids, g->most * sizeof *ids) == 0;
}

static void check_goldens(const char *name)
{
    struct golden g;
    struct tokenizer *t = load(name);
    golden_read(&g, name);
    CHECK(g.count >= 200 && g.most <= 64);
    for (uint32_t i = 0; i < g.count; i++)
        CHECK(same(t, &g, &g.cases[i]), "%s, case %u: \"%s\"", name, i, g.cases[i].text);
    golden_free(&g);
    tokenizer_close(&t);
    CHECK(t == NULL);
}

TEST(defaults_equal_transformers)
{
    check_goldens("bare");
}

TEST(sd1_equals_transformers)
{
    check_goldens("sd1");
}

TEST(sd2_equals_transformers)
{
    check_goldens("sd2");
}

TEST(added_tokens_decoder_equals_transformers)
{
    check_goldens("turbo");
}

TEST(textual_inversion_tokens_equal_transformers)
{
    check_goldens("inversion");
}

TEST(tokenizer_json_equals_transformers)
{
    check_goldens("fast");
}

TEST(shipped_model_equals_transformers)
{
    check_goldens("emoji");
}

TEST(sizes)
{
    struct tokenizer *bare = load("bare"), *sd1 = load("sd1"), *inversion = load("inversion");
    CHECK(tokenizer_vocab(bare) == 973 && tokenizer_vocab(inversion) == 977);
    CHECK(tokenizer_max_length(bare) == 0 && tokenizer_max_length(sd1) == 77 &&
          tokenizer_max_length(inversion) == 0);
    tokenizer_close(&bare);
    tokenizer_close(&sd1);
    tokenizer_close(&inversion);
}

TEST(shortest_outputs)
{
    struct tokenizer *t = load("sd2");
    int32_t ids[4] = {-7, -7, -7, -7};
    int used = 0, cut = 0;
    struct error err = {0};
    CHECK(tokenizer_encode(t, "a b", 3, ids, 2, &used, &cut, &err) == 0 && used == 2 && cut == 2);
    CHECK(ids[0] == 971 && ids[1] == 972 && ids[2] == -7);
    CHECK(tokenizer_encode(t, "a b", 3, ids, 3, NULL, NULL, &err) == 0 && ids[0] == 971 && ids[2] == 972 &&
          ids[3] == -7);
    CHECK(tokenizer_encode(t, "", 0, ids, 4, &used, &cut, &err) == 0 && used == 2 && cut == 0 &&
          ids[2] == 0 && ids[3] == 0);
    CHECK(tokenizer_encode(t, "a", 1, ids, 1, NULL, NULL, &err) == ERR_INVALID && err.msg[0]);
    tokenizer_close(&t);
}

TEST(invalid_utf8_names_the_byte)
{
    static const char *const bad[] = {"abc\xff",
                                      "abc\x80",
                                      "abc\xc3",
                                      "abc\xc0\xaf",
                                      "abc\xed\xa0\x80",
                                      "abc\xe2\x82",
                                      "abc\xf4\x90\x80\x80",
                                      "abc\xf0\x80\x80\x80",
                                      "abc\xc3(",
                                      "abc\xf8\x88\x80\x80\x80"};
    struct tokenizer *t = load("sd1");
    int32_t ids[8];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error err = {0};
        int rc = tokenizer_encode(t, bad[i], strlen(bad[i]), ids, 8, NULL, NULL, &err);
        CHECK(rc == ERR_INVALID && strstr(err.msg, "byte 3"), "case %zu: %d %s", i, rc, err.msg);
    }
    tokenizer_close(&t);
}

/* ---- size ---- */

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static double time_of(const struct tokenizer *t, const char *unit, size_t bytes)
{
    size_t n = strlen(unit);
    char *text = malloc(bytes + n);
    size_t len = 0;
    for (; len + n <= bytes; len += n)
        memcpy(text + len, unit, n);
    int32_t ids[77];
    struct error err = {0};
    int used = 0, cut = 0;
    double start = seconds();
    CHECK(tokenizer_encode(t, text, len, ids, 77, &used, &cut, &err) == 0, "%s", err.msg);
    double took = seconds() - start;
    CHECK(used == 77 && cut > 0);
    free(text);
    return took;
}

/* Sixteen times the text may take forty times as long (a quadratic step would take 256 times as long). */
TEST(a_megabyte_takes_linear_time)
{
    static const char *const units[] = {
        "a", "qzxj", "!", "a photo of ", "e\xcc\x81\xcc\x96\xcc\x83", "\xe4\xb8\xad", "<|"};
    struct tokenizer *t = load("sd1");
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        double small = time_of(t, units[i], 1 << 16), large = time_of(t, units[i], 1 << 20);
        CHECK(large < 40 * small + 0.05, "\"%s\": %.4f s for 64 KB, %.4f s for 1 MB", units[i], small, large);
    }
    /* One long run of marks after a letter, in an order that has to be sorted. */
    double small = time_of(t, "\xcc\x81\xcc\x96\xcc\xa1\xcc\xb4", 1 << 16),
           large = time_of(t, "\xcc\x81\xcc\x96\xcc\xa1\xcc\xb4", 1 << 20);
    CHECK(large < 40 * small + 0.05, "marks: %.4f s for 64 KB, %.4f s for 1 MB", small, large);
    tokenizer_close(&t);
}

/* ---- threads ---- */

struct job {
    const struct tokenizer *t;
    const struct golden *g;
    int wrong;
};

static void *encode_all(void *arg)
{
    struct job *j = arg;
    for (int round = 0; round < 5; round++) {
        for (uint32_t i = 0; i < j->g->count; i++)
            j->wrong += !same(j->t, j->g, &j->g->cases[i]);
    }
    return NULL;
}

TEST(threads_share_one_tokenizer)
{
    enum { THREADS = 4 };
    struct golden g;
    struct tokenizer *t = load("sd2");
    pthread_t threads[THREADS];
    struct job jobs[THREADS];
    golden_read(&g, "sd2");
    for (int i = 0; i < THREADS; i++) {
        jobs[i] = (struct job){t, &g, 0};
        CHECK(pthread_create(&threads[i], NULL, encode_all, &jobs[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(jobs[i].wrong == 0, "%d wrong", jobs[i].wrong);
    }
    golden_free(&g);
    tokenizer_close(&t);
}

/* ---- bad files ---- */

#define VOCAB  "{\"a\": 0, \"b</w>\": 1, \"ab</w>\": 2, \"<|startoftext|>\": 3, \"<|endoftext|>\": 4}"
#define MERGES "#version: 0.2\na b</w>\n"

static void put(const char *dir, const char *name, const char *text)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = text ? fopen(path, "wb") : NULL;
    if (!f) {
        unlink(path);
        return;
    }
    fputs(text, f);
    fclose(f);
}

/* Loads a tokenizer of the given files (NULL: absent). */
static int load_files(struct tokenizer **t, const char *vocab, const char *merges, const char *config,
                      const char *map, struct error *err)
{
    char dir[] = "/tmp/latentd-tokenizer-XXXXXX";
    *err = (struct error){0};
    *t = NULL;
    if (!CHECK(mkdtemp(dir)))
        return -1;
    put(dir, "vocab.json", vocab);
    put(dir, "merges.txt", merges);
    put(dir, "tokenizer_config.json", config);
    put(dir, "special_tokens_map.json", map);
    int rc = tokenizer_load(t, dir, err);
    const char *const names[] = {"vocab.json", "merges.txt", "tokenizer_config.json",
                                 "special_tokens_map.json"};
    for (int i = 0; i < 4; i++)
        put(dir, names[i], NULL);
    rmdir(dir);
    return rc;
}

static void refuse(const char *vocab, const char *merges, const char *config, const char *map, int code,
                   const char *words)
{
    struct tokenizer *t;
    struct error err;
    int rc = load_files(&t, vocab, merges, config, map, &err);
    CHECK(rc == code && !t && strstr(err.msg, words), "expected \"%s\", got %d \"%s\"", words, rc, err.msg);
    tokenizer_close(&t);
}

TEST(bad_vocab_and_merges_are_refused)
{
    refuse(NULL, MERGES, NULL, NULL, ERR_NOT_FOUND, "vocab.json");
    refuse(VOCAB, NULL, NULL, NULL, ERR_NOT_FOUND, "merges.txt");
    refuse("{", MERGES, NULL, NULL, ERR_FORMAT, "not valid JSON");
    refuse("[1]", MERGES, NULL, NULL, ERR_FORMAT, "JSON object");
    refuse("{}", MERGES, NULL, NULL, ERR_FORMAT, "JSON object");
    refuse("{\"a\": 0, \"a\": 1}", MERGES, NULL, NULL, ERR_FORMAT, "comes twice");
    refuse("{\"a\": 0, \"b\": 0}", MERGES, NULL, NULL, ERR_FORMAT, "two tokens have id 0");
    refuse("{\"a\": -1}", MERGES, NULL, NULL, ERR_FORMAT, "should have an id");
    refuse("{\"a\": 1.5}", MERGES, NULL, NULL, ERR_FORMAT, "should have an id");
    refuse("{\"a\": \"0\"}", MERGES, NULL, NULL, ERR_FORMAT, "should have an id");
    refuse("{\"a\": 1e300}", MERGES, NULL, NULL, ERR_FORMAT, "should have an id");
    refuse("{\"a\": 0, \"\xff\": 1}", MERGES, NULL, NULL, ERR_FORMAT, "not valid UTF-8");
    refuse("{\"a\": 0, \"b</w>\": 1, \"ab</w>\": 2}", MERGES, NULL, NULL, ERR_FORMAT, "unknown token");
    refuse(VOCAB, "a b</w> c\n", NULL, NULL, ERR_FORMAT, "line 1");
    refuse(VOCAB, "#version: 0.2\nab\n", NULL, NULL, ERR_FORMAT, "line 2");
    refuse(VOCAB, " a\n", NULL, NULL, ERR_FORMAT, "line 1");
    refuse(VOCAB, "a \n", NULL, NULL, ERR_FORMAT, "line 1");
    refuse(VOCAB, "a b</w>\na c\n", NULL, NULL, ERR_FORMAT, "\"c\" is not in");
    refuse(VOCAB, "b</w> a\n", NULL, NULL, ERR_FORMAT, "\"b</w>a\" is not in");
}

TEST(bad_special_tokens_are_refused)
{
    refuse(VOCAB, MERGES, "{", NULL, ERR_FORMAT, "tokenizer_config.json");
    refuse(VOCAB, MERGES, "[]", NULL, ERR_FORMAT, "tokenizer_config.json");
    refuse(VOCAB, MERGES, "{\"pad_token\": null}", NULL, ERR_FORMAT, "pad_token");
    refuse(VOCAB, MERGES, "{\"pad_token\": 3}", NULL, ERR_FORMAT, "should be a string");
    refuse(VOCAB, MERGES, NULL, "{\"pad_token\": \"\"}", ERR_FORMAT, "empty");
    refuse(VOCAB, MERGES, NULL, "{\"pad_token\": {\"content\": \"!\", \"lstrip\": true}}", ERR_UNSUPPORTED,
           "lstrip");
    refuse(VOCAB, MERGES, NULL, "{\"pad_token\": {\"content\": \"!\", \"normalized\": 1}}", ERR_FORMAT,
           "normalized");
    refuse(VOCAB, MERGES, "{\"model_max_length\": \"77\"}", NULL, ERR_FORMAT, "model_max_length");
}

static void refuse_combined(const char *text, const char *words)
{
    char dir[] = "/tmp/latentd-tokenizer-XXXXXX";
    struct tokenizer *t = NULL;
    struct error err = {0};
    if (!CHECK(mkdtemp(dir)))
        return;
    put(dir, "tokenizer.json", text);
    int rc = tokenizer_load(&t, dir, &err);
    CHECK(rc == ERR_FORMAT && !t && strstr(err.msg, words), "expected \"%s\", got %d \"%s\"", words, rc,
          err.msg);
    tokenizer_close(&t);
    put(dir, "tokenizer.json", NULL);
    rmdir(dir);
}

TEST(bad_tokenizer_json_is_refused)
{
    refuse_combined("{", "not valid JSON");
    refuse_combined("{}", "JSON object of tokens");
    refuse_combined("{\"model\": {\"vocab\": [[\"a\", 0]]}}", "JSON object of tokens");
    refuse_combined("{\"model\": {\"vocab\": " VOCAB "}}", "model.merges");
    refuse_combined("{\"model\": {\"vocab\": " VOCAB ", \"merges\": [[\"a\"]]}}", "merge 1");
    refuse_combined("{\"model\": {\"vocab\": " VOCAB ", \"merges\": [[\"a\", \"b</w>\", \"a\"]]}}",
                    "merge 1");
    refuse_combined("{\"model\": {\"vocab\": " VOCAB ", \"merges\": [\"a b</w>\", [\"a\", \"x\"]]}}",
                    "\"x\" is not in");
    refuse_combined("{\"model\": {\"vocab\": " VOCAB ", \"merges\": []}, \"added_tokens\": [{\"id\": 3}]}",
                    "content");
}

TEST(odd_but_good_files_load)
{
    struct tokenizer *t;
    struct error err;
    int32_t ids[6];
    /* Ids with gaps, no version line, CRLF, a blank line at the end; a byte that the vocabulary lacks is
     * unknown. */
    CHECK(load_files(&t,
                     "{\"a\": 70, \"b</w>\": 1, \"ab</w>\": 9, \"<|startoftext|>\": 3, \"<|endoftext|>\": 4}",
                     "a b</w>\r\n\r\n", NULL, NULL, &err) == 0,
          "%s", err.msg);
    if (t) {
        CHECK(tokenizer_vocab(t) == 71);
        CHECK(tokenizer_encode(t, "AB c", 4, ids, 6, NULL, NULL, &err) == 0);
        CHECK(ids[0] == 3 && ids[1] == 9 && ids[2] == 4 && ids[3] == 4, "%d %d %d %d", ids[0], ids[1], ids[2],
              ids[3]);
    }
    tokenizer_close(&t);
    tokenizer_close(&t);
}

/* "bc" is joined first; by then "a" no longer stands before "b", and the rule for "ab" must not touch "a" and
 * "bc". */
TEST(a_rule_for_a_pair_that_is_gone_does_nothing)
{
    struct tokenizer *t;
    struct error err;
    int32_t ids[6];
    const char *vocab =
        "{\"a\": 0, \"b\": 1, \"c</w>\": 2, \"ab\": 3, \"bc</w>\": 4, \"abc</w>\": 5, \"<|startoftext|>\": 6,"
        "\"<|endoftext|>\": 7}";
    CHECK(load_files(&t, vocab, "b c</w>\na b\na bc</w>\n", NULL, NULL, &err) == 0, "%s", err.msg);
    CHECK(t && tokenizer_encode(t, "abc", 3, ids, 6, NULL, NULL, &err) == 0 && ids[1] == 5 && ids[2] == 7,
          "%d %d", ids[1], ids[2]);
    tokenizer_close(&t);
}

TEST_MAIN()
