/* Break it on purpose: the k-th allocation of the process fails, for every k in turn, while a model is loaded
 * and a picture is made. Each time the answer must be an error with words, or the right picture; never a
 * crash, never a wrong picture, and afterwards the same request must give the same bytes as before. The
 * allocator is replaced here through glibc's own __libc_* names, so this file does not run under ASan. */
#include "test.h"

#include <errno.h>
#include <stdint.h>

#include "log.h"
#include "pipeline.h"

#if defined(__SANITIZE_ADDRESS__)

TEST(needs_the_plain_allocator)
{
    SKIP("the allocator is the sanitizer's here; the plain build runs this file");
}

#else

/* The allocator's own names in glibc: malloc and the others below stand in front of them. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t align, size_t size);
void *aligned_alloc(size_t align, size_t size);

static _Atomic long allocations; /* since counting began */
static _Atomic long fail_at;     /* 0: none fails */
static _Atomic int failed_once;

static int fails_now(void)
{
    if (++allocations != fail_at)
        return 0;
    failed_once = 1;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return fails_now() ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return fails_now() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
    return fails_now() ? NULL : __libc_realloc(p, size);
}

void *aligned_alloc(size_t align, size_t size)
{
    return fails_now() ? NULL : __libc_memalign(align, size);
}

int posix_memalign(void **p, size_t align, size_t size)
{
    *p = fails_now() ? NULL : __libc_memalign(align, size);
    return *p ? 0 : ENOMEM;
}

static const struct text_to_image_params request = {.prompt = "a b",
                                                    .safety_check = true,
                                                    .width = 16,
                                                    .height = 16,
                                                    .guidance_scale = 2,
                                                    .steps = 2,
                                                    .seed = 3};

static struct loras loras; /* of the text-to-image request */

static uint8_t grey[3 * 16 * 16];
static const struct image input = {.width = 16, .height = 16, .rgb = grey};
static const struct image_to_image_params image_request = {.prompt = "a b",
                                                           .image = &input,
                                                           .strength = 0.5,
                                                           .guidance_scale = 2,
                                                           .image_guidance_scale = 1.5,
                                                           .steps = 2,
                                                           .seed = 3};

/* Loads a tiny model on one thread and makes the picture. */
static int whole_way(const struct model_options *opt, struct image *im, struct error *err)
{
    struct backend *be = NULL;
    struct model *m = NULL;
    int rc = backend_open(&be, &(struct backend_options){.kind = "cpu", .threads = 1}, err);
    if (!rc)
        rc = model_load(&m, be, opt, err);
    if (!rc && opt->pipeline == PIPELINE_TEXT_TO_IMAGE) {
        struct text_to_image_params q = request;
        q.loras = loras;
        rc = text_to_image(m, &q, NULL, im, err);
    } else if (!rc)
        rc = image_to_image(m, &image_request, NULL, im, err);
    model_close(&m);
    backend_close(&be);
    return rc;
}

/* Every STEPth allocation on the way fails in turn. */
static void check_faults(const struct model_options *opt, long step)
{
    struct image want = {0};
    struct error err = {0};
    log_set_level(LOG_LEVEL_ERROR);
    allocations = 0;
    if (!CHECK(whole_way(opt, &want, &err) == 0, "%s", err.msg))
        return;
    long total = allocations;
    size_t bytes = 3 * (size_t)want.width * (size_t)want.height;
    int errors = 0, pictures = 0;
    for (long k = 1; k <= total; k += step) {
        struct image im = {0};
        err = (struct error){0};
        failed_once = 0;
        allocations = 0;
        fail_at = k;
        int rc = whole_way(opt, &im, &err);
        fail_at = 0;
        if (rc) {
            errors++;
            CHECK(rc < 0 && err.code == rc && err.msg[0], "allocation %ld: code %d without words", k, rc);
            CHECK(im.rgb == NULL, "allocation %ld: an error and a picture", k);
        } else {
            pictures++;
            CHECK(memcmp(im.rgb, want.rgb, bytes) == 0, "allocation %ld: a wrong picture", k);
        }
        image_free(&im);
    }
    printf("  %ld allocations: %d gave an error, %d were survived\n", total, errors, pictures);
    CHECK(errors > 20, "the faults never reached the program");
    struct image again = {0};
    err = (struct error){0};
    CHECK(whole_way(opt, &again, &err) == 0 && memcmp(again.rgb, want.rgb, bytes) == 0, "%s", err.msg);
    image_free(&again);
    image_free(&want);
}

/* The allocations between one step and the next. */
struct steps {
    long at, most; /* count at the last step; the largest difference */
    int seen;
};

static void step_entered(void *ctx, enum phase phase, int step, int steps)
{
    struct steps *s = ctx;
    (void)steps;
    if (phase == PHASE_STEP) {
        if (step > 1 && allocations - s->at > s->most)
            s->most = allocations - s->at;
        s->seen++;
    }
    s->at = allocations;
}

/* All of a step lies in the job's memory, which was planned. Every scheduler that keeps earlier outputs has
 * kept some by then. */
TEST(no_allocation_inside_a_step)
{
    static const char *const models[] = {"latentd/sd1",
                                         "latentd/sd2",
                                         "stabilityai/stable-diffusion-xl-base-1.0",
                                         "stabilityai/sdxl-turbo",
                                         "timbrooks/instruct-pix2pix",
                                         "playgroundai/playground-v2.5-1024px-aesthetic"};
    log_set_level(LOG_LEVEL_ERROR);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct backend *be = NULL;
        struct model *m = NULL;
        struct image im = {0};
        struct error err = {0};
        struct steps steps = {0};
        struct watcher watch = {.entered = step_entered, .ctx = &steps};
        struct model_options from = {
            .pipeline = PIPELINE_IMAGE_TO_IMAGE, .dir = "tests/golden/data/families", .id = models[i]};
        struct image_to_image_params q = image_request;
        q.steps = 8;
        q.strength = 1;
        CHECK(backend_open(&be, &(struct backend_options){.kind = "cpu", .threads = 2}, &err) == 0 &&
                  model_load(&m, be, &from, &err) == 0 && image_to_image(m, &q, &watch, &im, &err) == 0,
              "%s: %s", models[i], err.msg);
        CHECK(steps.seen >= 8 && steps.most == 0, "%s: %d steps, up to %ld allocations in one", models[i],
              steps.seen, steps.most);
        image_free(&im);
        model_close(&m);
        backend_close(&be);
    }
}

TEST(every_allocation_fails_in_turn)
{
    check_faults(&(struct model_options){.dir = "tests/api/data", .id = "latentd/tiny"}, 1);
}

/* Two text encoders, the VAE's encoder, pooled text and time ids; most allocations read JSON, as above. */
TEST(allocations_of_sdxl_image_to_image_fail)
{
    check_faults(&(struct model_options){.pipeline = PIPELINE_IMAGE_TO_IMAGE,
                                         .dir = "tests/golden/data/families",
                                         .id = "stabilityai/stable-diffusion-xl-base-1.0"},
                 11);
}

TEST(allocations_of_pix2pix_fail)
{
    check_faults(&(struct model_options){.pipeline = PIPELINE_IMAGE_TO_IMAGE,
                                         .dir = "tests/golden/data/families",
                                         .id = "timbrooks/instruct-pix2pix"},
                 23);
}

TEST(allocations_of_a_single_file_fail)
{
    check_faults(&(struct model_options){.dir = "tests/golden/data/single_file", .id = "latentd/sdxl"}, 97);
}

/* The tiny model beside a safety checker, both by symbolic links. */
TEST(allocations_of_a_safety_checker_fail)
{
    char root[] = "/tmp/latentd-test-XXXXXX", command[512];
    if (!CHECK(mkdtemp(root) != NULL))
        return;
    snprintf(command, sizeof command,
             "mkdir %s/latentd %s/CompVis && ln -s $PWD/tests/api/data/latentd/tiny %s/latentd/tiny && "
             "ln -s $PWD/tests/golden/data/safety %s/CompVis/stable-diffusion-safety-checker",
             root, root, root, root);
    if (CHECK(system(command) == 0))
        check_faults(&(struct model_options){.dir = root, .id = "latentd/tiny"}, 13);
    snprintf(command, sizeof command, "rm -r %s", root);
    CHECK(system(command) == 0);
}

/* Two LoRAs, merged into a tiny model. */
TEST(allocations_of_loras_fail)
{
    char root[] = "/tmp/latentd-test-XXXXXX", command[512];
    if (!CHECK(mkdtemp(root) != NULL))
        return;
    snprintf(command, sizeof command,
             "ln -s $PWD/tests/golden/data/families/latentd %s/latentd && "
             "cp -r $PWD/tests/golden/data/lora/pictures/test %s/test",
             root, root);
    loras = (struct loras){.count = 2, .item = {{"test/style", 0.7f}, {"test/shape", 1.3f}}};
    if (CHECK(system(command) == 0))
        check_faults(&(struct model_options){.dir = root, .id = "latentd/sd1"}, 3);
    loras.count = 0;
    snprintf(command, sizeof command, "rm -r %s", root);
    CHECK(system(command) == 0);
}

#endif

TEST_MAIN()
