/* A checkpoint in one file, original naming, gives the very picture of the same model in a folder of
 * diffusers layout (whose pictures test_image_to_image.c holds against diffusers'); on every tier. Files:
 * scripts/export_single_files.py. */
#include "test.h"

#include "log.h"
#include "pipeline.h"
#include "tier.h"

#define SINGLE   "tests/golden/data/single_file"
#define FAMILIES "tests/golden/data/families"

enum { WIDTH = 48, HEIGHT = 32 };

struct place {
    const char *dir, *id;
};

static int text_picture(struct model *m, struct image *out, struct error *err)
{
    struct text_to_image_params q = {.prompt = "the cat!",
                                     .negative_prompt = "in the cat",
                                     .width = WIDTH,
                                     .height = HEIGHT,
                                     .guidance_scale = 5,
                                     .steps = 3,
                                     .seed = 11};
    return text_to_image(m, &q, NULL, out, err);
}

static int image_picture(struct model *m, struct image *out, struct error *err)
{
    static uint8_t rgb[3 * WIDTH * HEIGHT];
    for (int i = 0; i < 3 * WIDTH * HEIGHT; i++)
        rgb[i] = (uint8_t)(i * 7 % 251);
    struct image input = {.width = WIDTH, .height = HEIGHT, .rgb = rgb};
    struct image_to_image_params q = {.prompt = "the cat!",
                                      .image = &input,
                                      .strength = 0.7,
                                      .guidance_scale = 5,
                                      .image_guidance_scale = 1.5,
                                      .steps = 3,
                                      .seed = 11};
    return image_to_image(m, &q, NULL, out, err);
}

/* False, and a failed check, when there is no picture. */
static bool draw(struct backend *be, enum pipeline_kind kind, struct place from, struct image *out)
{
    struct model *m = NULL;
    struct error err = {0};
    struct model_options opt = {.pipeline = kind, .dir = from.dir, .id = from.id};
    int rc = model_load(&m, be, &opt, &err);
    if (!rc)
        rc = kind == PIPELINE_TEXT_TO_IMAGE ? text_picture(m, out, &err) : image_picture(m, out, &err);
    model_close(&m);
    return CHECK(rc == 0, "%s: %s", from.id, err.msg);
}

static void same_picture(struct backend *be, enum pipeline_kind kind, struct place folder, struct place file)
{
    struct image a = {0}, b = {0};
    if (draw(be, kind, folder, &a) && draw(be, kind, file, &b))
        CHECK(a.width == b.width && a.height == b.height &&
                  memcmp(a.rgb, b.rgb, 3 * (size_t)a.width * (size_t)a.height) == 0,
              "%s and %s differ", folder.id, file.id);
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

static void check_sd(struct backend *be)
{
    same_picture(be, PIPELINE_TEXT_TO_IMAGE, (struct place){"tests/api/data", "latentd/tiny"},
                 (struct place){SINGLE, "latentd/sd1"});
    same_picture(be, PIPELINE_TEXT_TO_IMAGE, (struct place){FAMILIES, "latentd/sd2"},
                 (struct place){SINGLE, "latentd/sd2"});
}

static void check_sdxl(struct backend *be)
{
    same_picture(be, PIPELINE_IMAGE_TO_IMAGE,
                 (struct place){FAMILIES, "stabilityai/stable-diffusion-xl-base-1.0"},
                 (struct place){SINGLE, "latentd/sdxl/checkpoint.fp16.safetensors"});
}

static void check_pix2pix(struct backend *be)
{
    same_picture(be, PIPELINE_IMAGE_TO_IMAGE, (struct place){FAMILIES, "timbrooks/instruct-pix2pix"},
                 (struct place){SINGLE, "latentd/pix2pix"});
}

TEST(sd_as_from_a_folder)
{
    each_tier(check_sd);
}

TEST(sdxl_as_from_a_folder)
{
    each_tier(check_sdxl);
}

TEST(pix2pix_as_from_a_folder)
{
    each_tier(check_pix2pix);
}

TEST_MAIN()
