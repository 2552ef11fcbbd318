/* A checkpoint in one file, original naming, gives the very picture of the same model in a folder of
 * diffusers layout; on every tier. Files: scripts/export_single_files.py, tests/api/make_tiny_model.py. */
#include "test.h"

#include <unistd.h>

#include "log.h"
#include "pipeline.h"
#include "tier.h"

#define SINGLE "tests/golden/data/single_file"

enum { WIDTH = 48, HEIGHT = 32 };

/* False, and a failed check, when there is no picture. */
static bool draw(struct backend *be, const char *dir, const char *id, const char *prompt, struct image *out)
{
    struct model *m = NULL;
    struct error err = {0};
    struct model_options from = {.dir = dir, .id = id};
    struct text_to_image_params q = {.prompt = prompt,
                                     .negative_prompt = "in the cat",
                                     .width = WIDTH,
                                     .height = HEIGHT,
                                     .guidance_scale = 5,
                                     .steps = 3,
                                     .seed = 11};
    bool ok = CHECK(model_load(&m, be, &from, &err) == 0, "%s: %s", id, err.msg) &&
              CHECK(text_to_image(m, &q, NULL, out, &err) == 0, "%s: %s", id, err.msg);
    model_close(&m);
    return ok;
}

static void same_picture(struct backend *be, const char *dir, const char *id, const char *file_dir,
                         const char *file_id, const char *prompt)
{
    struct image a = {0}, b = {0};
    if (draw(be, dir, id, prompt, &a) && draw(be, file_dir, file_id, prompt, &b))
        CHECK(memcmp(a.rgb, b.rgb, 3 * WIDTH * HEIGHT) == 0, "%s and %s differ", id, file_id);
    image_free(&a);
    image_free(&b);
}

static void each_tier(void (*fn)(struct backend *be))
{
    for (int i = 0; i < TIER_NAMES; i++) {
        struct backend_options opt = tier_options(tier_names[i]);
        struct backend *be = NULL;
        struct error err = {0};
        if (!tier_wanted(tier_names[i]) || backend_open(&be, &opt, &err) < 0)
            continue;
        printf("  %s\n", tier_names[i]);
        fn(be);
        backend_close(&be);
    }
}

static void check_sd1(struct backend *be)
{
    same_picture(be, "tests/api/data", "latentd/tiny", SINGLE, "latentd/sd1", "the cat!");
    same_picture(be, "tests/api/data", "latentd/tiny", SINGLE, "latentd/sd1/checkpoint.safetensors", "in");
}

TEST(sd1_as_from_a_folder)
{
    each_tier(check_sd1);
}

/* SD 2.x and SDXL load and draw; their tensors and configs are compared in tests/unit/test_single_file.c. */
static void check_others(struct backend *be)
{
    static const char *const ids[] = {"latentd/sd2", "latentd/sdxl"};
    for (size_t i = 0; i < 2; i++) {
        struct image im = {0};
        if (draw(be, SINGLE, ids[i], "the cat!", &im)) {
            int least = 255, most = 0;
            for (int k = 0; k < 3 * WIDTH * HEIGHT; k++) {
                least = im.rgb[k] < least ? im.rgb[k] : least;
                most = im.rgb[k] > most ? im.rgb[k] : most;
            }
            CHECK(most > least, "%s: one colour, %d", ids[i], least);
        }
        image_free(&im);
    }
}

TEST(others_draw)
{
    each_tier(check_others);
}

TEST_MAIN()
