/* Packed weights from start to start (packed.h), with the shipped model on every tier of this machine: the
 * same picture from a mapped file, and from a fresh start where the file is wrong in any way. */
#include "test.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "job.h"
#include "log.h"
#include "packed.h"
#include "pipeline.h"

enum { SIDE = 64, BYTES = 3 * SIDE * SIDE };

static char folder[64];
static atomic_bool go_on;

struct start {
    struct backend *be;
    struct model *model;
    unsigned char picture[BYTES];
};

static enum precision precision; /* of the starts that follow */

static bool open_as(struct start *s, const char *tier, enum pipeline_kind kind, size_t most)
{
    struct error err = {0};
    struct backend_options opt = {.kind = "cpu",
                                  .isa = tier,
                                  .threads = 2,
                                  .store = folder,
                                  .store_most = most,
                                  .store_least = 0,
                                  .precision = precision};
    struct model_options from = {.pipeline = kind, .dir = "models", .id = "latentd/emoji"};
    struct text_to_image_params q = {.prompt = "a red heart",
                                     .negative_prompt = "",
                                     .width = SIDE,
                                     .height = SIDE,
                                     .guidance_scale = 1,
                                     .steps = 1,
                                     .seed = 3};
    struct image im = {0};

    *s = (struct start){0};
    log_set_level(LOG_LEVEL_ERROR);
    if (!CHECK(backend_open(&s->be, &opt, &err) == 0 && model_load(&s->model, s->be, &from, &err) == 0, "%s",
               err.msg) ||
        !CHECK(text_to_image(s->model, &q, NULL, &im, &err) == 0, "%s", err.msg))
        return false;
    memcpy(s->picture, im.rgb, BYTES);
    image_free(&im);
    return true;
}

static bool open_start(struct start *s, const char *tier)
{
    return open_as(s, tier, PIPELINE_TEXT_TO_IMAGE, (size_t)1 << 30);
}

static int save(struct start *s)
{
    struct error err = {0};
    int files = packed_save(s->be, &go_on, &err);
    CHECK(files >= 0, "%s", err.msg);
    return files;
}

static void close_start(struct start *s)
{
    model_close(&s->model);
    CHECK(s->be->weight_bytes == 0 && s->be->mapped_bytes == 0 && !s->be->stores);
    backend_close(&s->be);
}

/* Calls EACH for every file of the folder; returns how many. */
static int every_file(void (*each)(const char *path))
{
    char path[400];
    int count = 0;
    DIR *dir = opendir(folder);
    struct dirent *e;
    while (dir && (e = readdir(dir))) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (each)
            each(path);
        count++;
    }
    if (dir)
        closedir(dir);
    return count;
}

static void remove_file(const char *path)
{
    CHECK(unlink(path) == 0);
}

static void begin(void)
{
    snprintf(folder, sizeof folder, "/tmp/latentd-packed-XXXXXX");
    CHECK(mkdtemp(folder) != NULL);
}

static void end(void)
{
    every_file(remove_file);
    CHECK(rmdir(folder) == 0);
}

static const char *const tiers[] = {"avx2", "avx512", "avx512bf16", "amx", "ref"};

/* A tier of this machine with int8; NULL: none. */
static const char *int8_tier(void)
{
    static const char *const with[] = {"amx", "avx512", "amx-emulated"};
    for (size_t i = 0; i < sizeof with / sizeof *with; i++) {
        struct error err = {0};
        struct backend *be = NULL;
        struct backend_options opt = {
            .kind = "cpu", .isa = with[i], .threads = 1, .precision = PRECISION_INT8};
        int rc = backend_open(&be, &opt, &err);
        backend_close(&be);
        if (rc == 0)
            return with[i];
    }
    return NULL;
}

TEST(each_precision_has_files_of_its_own)
{
    const char *tier = int8_tier();
    struct start first, other, again;
    if (!tier)
        SKIP("no tier of this machine has int8");
    begin();
    precision = PRECISION_INT8;
    if (open_start(&first, tier))
        CHECK(save(&first) == 3);
    precision = PRECISION_ANY;
    if (open_start(&other, tier)) {
        CHECK(other.be->mapped_bytes == 0, "weights in int8 were taken for others");
        CHECK(other.be->weight_bytes > first.be->weight_bytes, "%zu, in int8 %zu", other.be->weight_bytes,
              first.be->weight_bytes);
        CHECK(save(&other) == 3);
    }
    precision = PRECISION_INT8;
    if (open_start(&again, tier)) {
        CHECK(again.be->mapped_bytes == again.be->weight_bytes);
        CHECK(again.be->weight_bytes == first.be->weight_bytes);
        CHECK(memcmp(first.picture, again.picture, BYTES) == 0);
    }
    precision = PRECISION_ANY;
    close_start(&first);
    close_start(&other);
    close_start(&again);
    end();
}

TEST(the_next_start_maps_what_this_one_packed)
{
    for (size_t i = 0; i < sizeof tiers / sizeof *tiers; i++) {
        struct error err = {0};
        struct backend *be = NULL;
        struct start first, second;
        bool have = backend_open(&be, &(struct backend_options){.kind = "cpu", .isa = tiers[i], .threads = 1},
                                 &err) == 0;
        bool ref = strcmp(tiers[i], "ref") == 0; /* has no layout of its own: nothing is kept */
        backend_close(&be);
        if (!have)
            continue;
        begin();
        if (open_start(&first, tiers[i])) {
            CHECK(first.be->mapped_bytes == 0);
            CHECK(save(&first) == (ref ? 0 : 3), "%s", tiers[i]); /* text encoder, VAE, UNet */
            CHECK(save(&first) == 0, "what is on the disk is not written again");
        }
        if (open_start(&second, tiers[i])) {
            CHECK(second.be->mapped_bytes == (ref ? 0 : second.be->weight_bytes),
                  "%s: %zu of %zu bytes are mapped", tiers[i], second.be->mapped_bytes,
                  second.be->weight_bytes);
            CHECK(second.be->weight_bytes == first.be->weight_bytes);
            CHECK(memcmp(first.picture, second.picture, BYTES) == 0, "%s", tiers[i]);
            CHECK(save(&second) == 0);
        }
        close_start(&first);
        close_start(&second);
        end();
    }
}

TEST(pipelines_and_tiers_have_files_of_their_own)
{
    struct start a, b, c;
    begin();
    if (open_start(&a, "avx2") && save(&a) == 3 &&
        open_as(&b, "avx2", PIPELINE_IMAGE_TO_IMAGE, (size_t)1 << 30)) {
        /* the VAE comes with its encoder there */
        CHECK(b.be->mapped_bytes > 0 && b.be->mapped_bytes < b.be->weight_bytes);
        CHECK(save(&b) == 1 && every_file(NULL) == 4);
        close_start(&b);
    }
    struct error err = {0};
    if (backend_open(&c.be, &(struct backend_options){.kind = "cpu", .isa = "avx512"}, &err) == 0) {
        backend_close(&c.be);
        if (open_start(&c, "avx512"))
            CHECK(c.be->mapped_bytes == 0 && save(&c) == 3 && every_file(NULL) == 7);
        close_start(&c);
    }
    close_start(&a);
    end();
}

/* What is done to every file between two starts, and whether it is used afterwards. */
static void change_at(const char *path, double part, off_t from_end)
{
    struct stat st;
    unsigned char byte;
    int fd = open(path, O_RDWR);
    if (!CHECK(fd >= 0 && fstat(fd, &st) == 0))
        return;
    off_t at = from_end ? st.st_size - from_end : (off_t)((double)st.st_size * part);
    CHECK(pread(fd, &byte, 1, at) == 1);
    byte ^= 0x41;
    CHECK(pwrite(fd, &byte, 1, at) == 1);
    close(fd);
}

static void damage_head(const char *path)
{
    change_at(path, 0, 0);
}

static void damage_identity(const char *path)
{
    change_at(path, 0, 0);
    change_at(path, 0, 0);
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0 && pwrite(fd, "x", 1, 40) == 1);
    close(fd);
}

static void damage_records(const char *path)
{
    int fd = open(path, O_RDWR);
    char junk[256];
    memset(junk, 0xff, sizeof junk);
    CHECK(fd >= 0 && pwrite(fd, junk, sizeof junk, 512) == (ssize_t)sizeof junk);
    close(fd);
}

static void cut(const char *path)
{
    struct stat st;
    CHECK(stat(path, &st) == 0 && truncate(path, st.st_size / 2) == 0);
}

static void cut_to_nothing(const char *path)
{
    CHECK(truncate(path, 3) == 0);
}

/* Every byte behind the records: a layout that changed without its name. (A single wrong byte in the middle
 * of a file does not show, as it does not in the model's own files.) */
static void other_numbers(const char *path)
{
    struct stat st;
    uint32_t lengths[2]; /* of the text, and how many records of 56 bytes */
    int fd = open(path, O_RDWR);
    if (!CHECK(fd >= 0 && fstat(fd, &st) == 0 &&
               pread(fd, lengths, sizeof lengths, 16) == (ssize_t)sizeof lengths))
        return;
    size_t from = (24 + (size_t)lengths[0] + 63) / 64 * 64 + (size_t)lengths[1] * 56,
           len = (size_t)st.st_size - from;
    unsigned char *bytes = malloc(len);
    CHECK(bytes && pread(fd, bytes, len, (off_t)from) == (ssize_t)len);
    for (size_t i = 0; bytes && i < len; i++)
        bytes[i] ^= 0x40;
    CHECK(bytes && pwrite(fd, bytes, len, (off_t)from) == (ssize_t)len);
    free(bytes);
    close(fd);
}

static void open_to_all(const char *path)
{
    CHECK(chmod(path, 0666) == 0);
}

TEST(a_wrong_file_is_not_used_and_the_picture_is_the_same)
{
    static const struct {
        const char *name;
        void (*change)(const char *path);
        bool stays;
    } cases[] = {{"head", damage_head, false},       {"identity", damage_identity, false},
                 {"records", damage_records, false}, {"cut", cut, false},
                 {"nothing", cut_to_nothing, true},  {"numbers", other_numbers, false},
                 {"mode", open_to_all, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct start first, second;
        begin();
        if (open_start(&first, "avx2") && CHECK(save(&first) == 3)) {
            every_file(cases[i].change);
            if (open_start(&second, "avx2")) {
                CHECK(memcmp(first.picture, second.picture, BYTES) == 0, "%s", cases[i].name);
                CHECK(second.be->mapped_bytes < second.be->weight_bytes, "%s", cases[i].name);
                CHECK(every_file(NULL) == (cases[i].stays ? 3 : 0), "%s: %d files", cases[i].name,
                      every_file(NULL));
            }
            close_start(&second);
        }
        close_start(&first);
        end();
    }
}

TEST(files_stay_within_their_bound_and_stop_is_obeyed)
{
    struct start a;
    begin();
    if (open_as(&a, "avx2", PIPELINE_TEXT_TO_IMAGE, 1000)) /* nothing fits */
        CHECK(save(&a) == 0 && every_file(NULL) == 0);
    close_start(&a);
    if (open_start(&a, "avx2")) {
        size_t all = a.be->weight_bytes;
        atomic_store(&go_on, true); /* it is the stop flag */
        CHECK(save(&a) == 0 && every_file(NULL) == 0);
        atomic_store(&go_on, false);
        close_start(&a);
        /* room for one pipeline's files, not for two: the older one goes */
        if (open_as(&a, "avx2", PIPELINE_TEXT_TO_IMAGE, all + (1 << 20))) {
            CHECK(save(&a) == 3 && every_file(NULL) == 3);
            close_start(&a);
        }
        if (open_as(&a, "avx2", PIPELINE_IMAGE_TO_IMAGE, all)) {
            a.be->store_most = a.be->weight_bytes + (1 << 20);
            CHECK(save(&a) == 1 && every_file(NULL) == 3);
        }
    }
    close_start(&a);
    end();
}

/* Or each start would write what the next one throws out. */
TEST(a_model_does_not_throw_out_its_own_files)
{
    struct start a;
    begin();
    if (open_start(&a, "avx2")) {
        const size_t most = a.be->weight_bytes / 10 * 9;
        size_t mapped = 0;
        close_start(&a);
        for (int i = 0; i < 3 && open_as(&a, "avx2", PIPELINE_TEXT_TO_IMAGE, most); i++) {
            const int files = every_file(NULL);
            if (i == 0)
                CHECK(save(&a) == 2 && every_file(NULL) == 2, "of three");
            else
                CHECK(files == 2 && save(&a) == 0 && every_file(NULL) == 2);
            CHECK(i < 2 || a.be->mapped_bytes == mapped);
            mapped = a.be->mapped_bytes;
            CHECK((mapped > 0) == (i > 0));
            close_start(&a);
        }
    }
    end();
}

TEST(a_folder_that_cannot_be_had_is_an_error_with_words)
{
    struct start a;
    struct error err = {0};
    begin();
    CHECK(rmdir(folder) == 0);
    int fd = open(folder, O_WRONLY | O_CREAT, 0600); /* a file is in its place */
    close(fd);
    if (open_start(&a, "avx2"))
        CHECK(packed_save(a.be, &go_on, &err) == ERR_IO && strstr(err.msg, folder), "%s", err.msg);
    close_start(&a);
    CHECK(unlink(folder) == 0);
}

static bool until(struct worker *w, bool (*so)(struct worker *))
{
    for (int i = 0; i < 3000; i++) {
        if (so(w))
            return true;
        usleep(10000);
    }
    return false;
}

static bool ready(struct worker *w)
{
    return worker_state(w) == WORKER_READY;
}

static bool three_files(struct worker *w)
{
    (void)w;
    return every_file(NULL) == 3;
}

TEST(the_worker_keeps_what_it_packed_beside_its_jobs)
{
    struct worker_options opt = {
        .backend =
            {.kind = "cpu", .isa = "avx2", .threads = 1, .store = folder, .store_most = (size_t)1 << 30},
        .model = {.pipeline = PIPELINE_TEXT_TO_IMAGE, .dir = "models", .id = "latentd/emoji"},
        .queue = 1};
    struct worker *w = NULL;
    struct error err = {0};
    struct start second;
    begin();
    if (CHECK(worker_start(&w, &opt, &err) == 0, "%s", err.msg)) {
        CHECK(until(w, ready) && until(w, three_files));
        worker_drain(w);
        worker_stop(&w);
    }
    if (open_start(&second, "avx2"))
        CHECK(second.be->mapped_bytes == second.be->weight_bytes);
    close_start(&second);
    end();
}

TEST_MAIN()
