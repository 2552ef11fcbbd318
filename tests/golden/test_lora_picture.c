/* Whole pictures with LoRAs, from the request to 8-bit pixels, against diffusers with the same files; and a
 * model that is as it was when they are gone. Golden: scripts/export_lora_goldens.py. */
#include "test.h"

#include <unistd.h>

#include "log.h"
#include "pipeline.h"
#include "tier.h"

#define FAMILIES "tests/golden/data/families/"
#define PICTURES "tests/golden/data/lora/pictures/"

enum { INPUT_WIDTH = 70, INPUT_HEIGHT = 53, WIDTH = 64, HEIGHT = 48, BYTES = 3 * WIDTH * HEIGHT };

static char shelf[] = "/tmp/latentd-shelf-XXXXXX";

/* A line of pictures.txt. */
struct picture {
    char name[32], model[64], id[LORAS_MAX][64];
    int image;
    struct loras loras;
};

static bool read_picture(FILE *f, struct picture *c)
{
    char line[400];
    int at = 0, n;
    *c = (struct picture){0};
    if (!fgets(line, sizeof line, f) ||
        sscanf(line, "%31s %63s %d%n", c->name, c->model, &c->image, &at) != 3)
        return false;
    for (int i = 0;
         i < LORAS_MAX && sscanf(line + at, "%63s %f%n", c->id[i], &c->loras.item[i].strength, &n) == 2;
         i++, at += n) {
        c->loras.item[i].id = c->id[i];
        c->loras.count++;
    }
    return c->loras.count > 0;
}

static bool read_bytes(const char *path, uint8_t *out, size_t count)
{
    FILE *f = fopen(path, "rb");
    bool ok = f && fread(out, 1, count, f) == count;
    if (f)
        fclose(f);
    return CHECK(ok, "%s", path);
}

static int make(struct model *m, const struct picture *c, const struct loras *loras, struct image *im,
                struct error *err)
{
    static uint8_t rgb[3 * INPUT_WIDTH * INPUT_HEIGHT];
    struct image input = {.width = INPUT_WIDTH, .height = INPUT_HEIGHT, .rgb = rgb};
    struct text_to_image_params q = {.prompt = "a red apple",
                                     .negative_prompt = "blue",
                                     .loras = *loras,
                                     .width = WIDTH,
                                     .height = HEIGHT,
                                     .guidance_scale = 5,
                                     .steps = 5,
                                     .seed = 3};
    struct image_to_image_params p = {.prompt = "a red apple",
                                      .negative_prompt = "blue",
                                      .image = &input,
                                      .loras = *loras,
                                      .strength = 0.6,
                                      .guidance_scale = 5,
                                      .steps = 5,
                                      .seed = 3};
    if (!read_bytes(FAMILIES "input.rgb", rgb, sizeof rgb))
        return ERR_IO;
    return c->image ? image_to_image(m, &p, NULL, im, err) : text_to_image(m, &q, NULL, im, err);
}

static double psnr(const uint8_t *a, const uint8_t *b)
{
    double sum = 0;
    for (size_t i = 0; i < BYTES; i++)
        sum += (double)(a[i] - b[i]) * (a[i] - b[i]);
    return sum == 0 ? 99 : 10 * log10(255.0 * 255.0 * BYTES / sum);
}

static void expect(struct model *m, const struct picture *c, const struct loras *loras, const uint8_t *want,
                   bool same, const char *when)
{
    struct error err = {0};
    struct image im = {0};
    if (CHECK(make(m, c, loras, &im, &err) == 0, "%s: %s", when, err.msg))
        CHECK((memcmp(im.rgb, want, BYTES) == 0) == same, "%s, %s", c->name, when);
    image_free(&im);
}

/* The picture without LoRAs, with them, without, after a request that fails, and with them again. */
static void check_picture(struct model *m, const char *tier, double least, const struct picture *c)
{
    struct error err = {0};
    struct image plain = {0}, with = {0}, failed = {0};
    struct loras none = {0}, missing = {.count = 1, .item = {{"test/missing", 1}}}, off = c->loras;
    uint8_t want[BYTES];
    char path[128];
    snprintf(path, sizeof path, PICTURES "%s.rgb", c->name);
    if (read_bytes(path, want, BYTES) && CHECK(make(m, c, &none, &plain, &err) == 0, "%s", err.msg) &&
        CHECK(make(m, c, &c->loras, &with, &err) == 0, "%s", err.msg)) {
        double got = psnr(with.rgb, want);
        printf("  %-20s %-10s %.1f dB, without %.1f dB\n", tier, c->name, got, psnr(plain.rgb, want));
        CHECK(got >= least, "%s, %s: %.1f dB from diffusers", tier, c->name, got);
        CHECK(psnr(plain.rgb, want) < 30, "the LoRA changes next to nothing");
        expect(m, c, &none, plain.rgb, true, "without LoRAs afterwards");
        CHECK(make(m, c, &missing, &failed, &err) == ERR_LORA &&
                  strcmp(err.msg, "LoRa repository 'test/missing' not found") == 0,
              "%s", err.msg);
        expect(m, c, &none, plain.rgb, true, "after a failure");
        expect(m, c, &c->loras, with.rgb, true, "with them again");
        for (int i = 0; i < off.count; i++)
            off.item[i].strength = 0;
        expect(m, c, &off, plain.rgb, true, "at strength 0");
    }
    image_free(&plain);
    image_free(&with);
    image_free(&failed);
}

static void make_shelf(void)
{
    char command[900], here[256];
    strcpy(shelf, "/tmp/latentd-shelf-XXXXXX");
    CHECK(mkdtemp(shelf) && getcwd(here, sizeof here));
    snprintf(command, sizeof command,
             "ln -s %s/" FAMILIES "latentd %s/" FAMILIES "stabilityai %s/ && cp -r " PICTURES "test %s/",
             here, here, shelf, shelf);
    CHECK(system(command) == 0);
}

static void remove_shelf(void)
{
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", shelf);
    CHECK(system(command) == 0);
}

static void check_tier(const char *tier)
{
    struct error err = {0};
    struct backend_options opt = tier_options(tier);
    struct backend *be = NULL;
    struct model *m = NULL;
    struct picture c;
    FILE *f = fopen(PICTURES "pictures.txt", "r");
    log_set_level(LOG_LEVEL_ERROR);
    int rc = tier_wanted(tier) ? backend_open(&be, &opt, &err) : ERR_UNSUPPORTED;
    CHECK(f && (rc == 0 || (rc == ERR_UNSUPPORTED && (!getenv("GOLDEN_TIER") || !tier_wanted(tier)))), "%s",
          err.msg);
    make_shelf();
    while (rc == 0 && f && read_picture(f, &c)) {
        struct model_options from = {.pipeline = PIPELINE_IMAGE_TO_IMAGE, .dir = shelf, .id = c.model};
        if (CHECK(model_load(&m, be, &from, &err) == 0, "%s", err.msg))
            check_picture(m, tier, be->dtype == DTYPE_F32 ? 60 : 35, &c);
        model_close(&m);
        CHECK(be->weight_bytes == 0, "%zu bytes of weights are left", be->weight_bytes);
    }
    remove_shelf();
    backend_close(&be);
    if (f)
        fclose(f);
}

TEST(every_tier_gives_the_pictures_of_diffusers)
{
    for (int i = 0; i < TIER_NAMES; i++)
        check_tier(tier_names[i]);
}

TEST_MAIN()
