/* Upscale from the prompt's text and the low-resolution picture to 8-bit pixels, against diffusers in fp32: a
 * tiny random model of the x4 upscaler on every tier. Golden: scripts/export_upscale_goldens.py. Its UNet by
 * itself is in test_unet.c, a VAE of its scale in test_vae.c. Also here: areas of large pictures and their
 * seams, what is refused, and cancellation. */
#include <math.h>
#include <stdint.h>
#include <unistd.h>

#include "image.h"
#include "pipeline.h"
#include "region.h"
#include "scheduler.h"
#include "test.h"
#include "tier.h"

#define FOLDER "tests/golden/data/upscale/"
#define ID     "latentd/upscaler"

enum { SCALE = 4 };

/* One line of pictures.txt. Texts are "=text", or "-" when not given. */
struct picture {
    char name[40], prompt[80], negative[80];
    int width, height, steps;
    long long seed;
    double guidance;
};

static bool read_picture(FILE *f, struct picture *c)
{
    return fscanf(f, "%39s %d %d %lld %d %lf\t%79[^\t]\t%79[^\n]\n", c->name, &c->width, &c->height, &c->seed,
                  &c->steps, &c->guidance, c->prompt, c->negative) == 8;
}

/* COUNT bytes of FOLDER/NAME; NULL when the file is not so long. */
static void *read_bytes(const char *name, size_t count)
{
    char path[200];
    void *bytes = malloc(count);
    snprintf(path, sizeof path, FOLDER "%s", name);
    FILE *f = fopen(path, "rb");
    bool ok = bytes && f && fread(bytes, 1, count, f) == count && fgetc(f) == EOF;
    if (f)
        fclose(f);
    if (CHECK(ok, "%s", path))
        return bytes;
    free(bytes);
    return NULL;
}

static double psnr(const uint8_t *a, const uint8_t *b, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (double)(a[i] - b[i]) * (a[i] - b[i]);
    return sum == 0 ? 99 : 10 * log10(255.0 * 255.0 * (double)count / sum);
}

/* ---- Against diffusers ---- */

static struct upscale_params params_of(const struct picture *c, const struct image *input)
{
    return (struct upscale_params){.prompt = c->prompt[0] == '=' ? c->prompt + 1 : NULL,
                                   .negative_prompt = c->negative[0] == '=' ? c->negative + 1 : NULL,
                                   .image = input,
                                   .guidance_scale = c->guidance,
                                   .steps = c->steps,
                                   .seed = c->seed};
}

static bool read_input(const struct picture *c, struct image *im)
{
    char name[60];
    snprintf(name, sizeof name, "%s.in.rgb", c->name);
    *im = (struct image){.width = c->width, .height = c->height};
    im->rgb = read_bytes(name, 3 * (size_t)c->width * (size_t)c->height);
    return im->rgb != NULL;
}

static void check_picture(struct model *m, const char *tier, double least, const struct picture *c)
{
    struct error err = {0};
    struct image im = {0}, input;
    int width = c->width / 4 * 4 * SCALE, height = c->height / 4 * 4 * SCALE;
    size_t bytes = 3 * (size_t)width * (size_t)height;
    char name[60];
    snprintf(name, sizeof name, "%s.rgb", c->name);
    uint8_t *want = read_bytes(name, bytes);
    if (want && read_input(c, &input)) {
        struct upscale_params q = params_of(c, &input);
        if (CHECK(upscale(m, &q, NULL, &im, &err) == 0, "%s, %s: %s", tier, c->name, err.msg) &&
            CHECK(im.width == width && im.height == height, "%d x %d", im.width, im.height)) {
            double got = psnr(im.rgb, want, bytes);
            printf("  %-20s %-10s %.1f dB\n", tier, c->name, got);
            CHECK(got >= least, "%s, %s: %.1f dB from diffusers", tier, c->name, got);
        }
        image_free(&input);
    }
    free(want);
    image_free(&im);
}

/* False when this machine lacks the tier. */
static bool open_tier(const char *tier, struct backend **be, struct model **m)
{
    struct error err = {0};
    struct backend_options opt = tier_options(tier);
    struct model_options from = {.pipeline = PIPELINE_UPSCALE, .dir = "tests/golden/data/upscale", .id = ID};
    *be = NULL;
    *m = NULL;
    if (!tier_wanted(tier) || backend_open(be, &opt, &err) != 0)
        return false;
    if (CHECK(model_load(m, *be, &from, &err) == 0, "%s: %s", tier, err.msg))
        return true;
    backend_close(be);
    return false;
}

TEST(pictures_of_diffusers)
{
    const char *only = getenv("GOLDEN_PICTURE");
    for (int i = 0; i < TIER_NAMES; i++) {
        struct backend *be;
        struct model *m;
        struct picture c;
        int pictures = 0;
        if (!open_tier(tier_names[i], &be, &m))
            continue;
        FILE *f = fopen(FOLDER "pictures.txt", "r");
        while (CHECK(f != NULL) && read_picture(f, &c)) {
            if (only && strcmp(only, c.name) != 0)
                continue;
            check_picture(m, tier_names[i], be->dtype == DTYPE_F32 ? 65 : 35, &c);
            pictures++;
        }
        CHECK(pictures == (only ? 1 : 4), "%d pictures", pictures);
        if (f)
            fclose(f);
        model_close(&m);
        backend_close(&be);
    }
}

/* ---- On one backend ---- */

static const char *one_tier(void)
{
    return getenv("GOLDEN_TIER") ? getenv("GOLDEN_TIER") : "avx2";
}

/* A photograph's stand-in: soft shapes with some edges. */
static struct image soft_image(int width, int height)
{
    struct image im = {.width = width, .height = height, .rgb = malloc(3 * (size_t)width * (size_t)height)};
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            uint8_t *p = im.rgb + 3 * ((size_t)y * (size_t)width + (size_t)x);
            p[0] = (uint8_t)(128 + 90 * sin(x / 11.0) * cos(y / 17.0));
            p[1] = (uint8_t)(128 + 100 * sin((x + y) / 23.0));
            p[2] =
                (uint8_t)((x - width / 2) * (x - width / 2) + (y - height / 2) * (y - height / 2) < 900 ? 220
                                                                                                        : 60);
        }
    return im;
}

static struct upscale_params plain(const struct image *input)
{
    return (struct upscale_params){
        .prompt = "a cat", .image = input, .guidance_scale = 9, .steps = 2, .seed = 3};
}

/* Stage by stage: the picture that the UNet sees beside the latents, cut to multiples of 4 and noised. */
TEST(the_noised_picture_of_diffusers)
{
    static struct region region;
    struct backend *be;
    struct model *m;
    struct scheduler_config *config = NULL;
    struct error err = {0};
    struct image input, cut = {0};
    struct picture c;
    FILE *f = fopen(FOLDER "pictures.txt", "r");
    bool read = f && read_picture(f, &c);
    if (f)
        fclose(f);
    if (!CHECK(read) || !open_tier(one_tier(), &be, &m))
        return;
    int w = c.width / 4 * 4, h = c.height / 4 * 4, count = 3 * w * h;
    float *want = read_bytes("noised.f32", sizeof(float) * (size_t)count),
          *x = malloc(sizeof *x * (size_t)count);
    void *memory = NULL;
    if (want && read_input(&c, &input) && CHECK(be->mem_alloc(be, 1 << 20, &memory, &err) == 0) &&
        CHECK(image_resize(&input, w, h, FILTER_BICUBIC, &cut, &err) == 0) &&
        CHECK(scheduler_config_load(&config, FOLDER ID "/low_res_scheduler", &err) == 0, "%s", err.msg)) {
        region_init(&region, memory, 1 << 20);
        pass p = {.be = be, .mem = &region, .err = &err};
        struct noise noise = {.seed = (uint64_t)c.seed, .round = DTYPE_F16};
        for (int i = 0; i < count; i++)
            x[i] = 2.0f * ((float)cut.rgb[i] / 255.0f) - 1.0f;
        tensor clean = tensor_from_host(&p, x, 1, h, w, 3, DTYPE_F32);
        tensor drawn = noise_draw(&p, &noise, 1, h, w, 3);
        tensor noised = scheduler_config_add_noise(&p, config, 20, clean, drawn);
        tensor_to_host(&p, noised, x);
        float most = 0;
        for (int i = 0; i < count; i++)
            most = fmaxf(most, fabsf(x[i] - want[i]));
        CHECK(err.code == 0 && most < 1e-5f, "%s: largest difference %g", err.msg, (double)most);
        scheduler_config_add_noise(&p, config, 1000, clean, drawn);
        CHECK(err.code == ERR_UNSUPPORTED, "%d", err.code);
    }
    if (memory)
        be->mem_free(be, memory, 1 << 20);
    scheduler_config_close(&config);
    image_free(&cut);
    image_free(&input);
    free(want);
    free(x);
    model_close(&m);
    backend_close(&be);
}

/* ---- Areas ---- */

/* The mean of |d2| = |x[i - 1] - 3 x[i] + 3 x[i + 1] - x[i + 2]| across the line between the columns (ROWS:
 * rows) AT - 1 and AT: what of a step a smooth picture does not have. */
static double roughness(const struct image *im, int at, bool rows)
{
    int length = rows ? im->width : im->height;
    size_t step = 3 * (rows ? (size_t)im->width : 1), along = 3 * (rows ? 1 : (size_t)im->width);
    double sum = 0;
    for (int i = 0; i < length; i++)
        for (int c = 0; c < 3; c++) {
            const uint8_t *p = im->rgb + (size_t)i * along + (size_t)at * step + c;
            sum += fabs((double)p[-2 * (long)step] - 3 * p[-(long)step] + 3 * p[0] - p[step]);
        }
    return sum / (3 * length);
}

/* How much rougher the roughest line of a seam is than the lines of the picture are: seams begin at multiples
 * of STEP latents and fade for OVERLAP of them, so every line in and beside that band is looked at. Lines of
 * one phase of the 4 pixels of a latent are compared with each other. */
static double worst_seam(const struct image *im, int first, int last, bool rows)
{
    int length = rows ? im->height : im->width;
    double worst = 0;
    for (int phase = 0; phase < SCALE; phase++) {
        double mean = 0, most = 0;
        int count = 0;
        for (int at = SCALE + phase; at < length - SCALE; at += SCALE) {
            double d = roughness(im, at, rows);
            bool seam = at >= first * SCALE - SCALE && at <= last * SCALE + SCALE;
            most = seam && d > most ? d : most;
            mean += seam ? 0 : d;
            count += !seam;
        }
        worst = fmax(worst, most / (mean / count));
    }
    return worst;
}

/* 112 x 64 in two areas of 64 x 64, which overlap by 16. */
TEST(seams_of_areas_do_not_show)
{
    struct backend *be;
    struct model *m;
    struct error err = {0};
    struct image whole = {0}, tiled = {0}, input = soft_image(112, 64);
    if (!open_tier(one_tier(), &be, &m))
        return;
    struct upscale_params q = plain(&input);
    q.steps = 4;
    q.whole_pixels = 112 * 64;
    int rc = upscale(m, &q, NULL, &whole, &err);
    q.whole_pixels = 64 * 64;
    if (CHECK(rc == 0 && upscale(m, &q, NULL, &tiled, &err) == 0, "%s", err.msg)) {
        size_t bytes = 3 * (size_t)tiled.width * (size_t)tiled.height;
        double near = psnr(whole.rgb, tiled.rgb, bytes);
        double seam = worst_seam(&tiled, 48, 64, false), without = worst_seam(&whole, 48, 64, false);
        printf("  %s: in areas %.1f dB from whole; roughest line of the seam %.2f of the mean, without one "
               "%.2f\n",
               one_tier(), near, seam, without);
        CHECK(near > 25, "%.1f dB", near);
        CHECK(seam < 1.15 * without, "%.2f of the mean, without a seam %.2f", seam, without);
    }
    image_free(&whole);
    image_free(&tiled);
    image_free(&input);
    model_close(&m);
    backend_close(&be);
}

/* What the plan of a large picture takes: the picture itself, and not more areas than one at a time. */
TEST(large_pictures_in_the_memory_of_an_area)
{
    struct backend *be;
    struct model *m;
    struct error err = {0};
    struct plan_report area, tiled, whole;
    struct image size = {.width = 512, .height = 512};
    if (!open_tier(one_tier(), &be, &m))
        return;
    struct upscale_params q = plain(&size);
    int rc = upscale_plan(m, &q, &area, &err);
    size.width = size.height = 1024;
    if (!rc)
        rc = upscale_plan(m, &q, &tiled, &err);
    q.whole_pixels = 1024 * 1024;
    if (CHECK(rc == 0 && upscale_plan(m, &q, &whole, &err) == 0, "%s", err.msg)) {
        size_t picture = (size_t)4096 * 4096 * 3 * sizeof(float);
        printf("  %s: 512 x 512 %zu MiB, 1024 x 1024 in areas %zu MiB, whole %zu MiB\n", one_tier(),
               area.region_bytes >> 20, tiled.region_bytes >> 20, whole.region_bytes >> 20);
        CHECK(tiled.region_bytes < picture + 2 * area.region_bytes &&
              tiled.region_bytes < whole.region_bytes);
    }
    model_close(&m);
    backend_close(&be);
}

static void check_refused(struct model *m, const struct upscale_params *q, int code, const char *words)
{
    struct error err = {0}, again = {0};
    struct image im = {0};
    CHECK(upscale_admit(m, q, &err) == code && strstr(err.msg, words), "%d %s", err.code, err.msg);
    CHECK(upscale(m, q, NULL, &im, &again) == code && im.rgb == NULL, "%s", again.msg);
}

TEST(what_is_refused)
{
    struct backend *be;
    struct model *m;
    struct image small = {.width = 3, .height = 50}, large = {.width = 4097, .height = 8};
    if (!open_tier(one_tier(), &be, &m))
        return;
    struct upscale_params q = plain(&small);
    check_refused(m, &q, ERR_INVALID, "the image is 3 x 50; each side has to be from 4 to 4096");
    q.image = &large;
    check_refused(m, &q, ERR_INVALID, "4097 x 8");
    q.guidance_scale = NAN;
    check_refused(m, &q, ERR_INVALID, "`guidance_scale`");
    q = plain(&large);
    large = (struct image){.width = 64, .height = 64};
    q.steps = 2000000;
    check_refused(m, &q, ERR_INVALID, "2000000");
    q.steps = 3;
    large = (struct image){.width = 4096, .height = 4096};
    be->memory_max = (size_t)1 << 30;
    check_refused(m, &q, ERR_NOMEM, "16384 x 16384");
    struct error err = {0};
    struct model_options from = {
        .pipeline = PIPELINE_TEXT_TO_IMAGE, .dir = "tests/golden/data/upscale", .id = ID};
    model_close(&m);
    CHECK(model_load(&m, be, &from, &err) == ERR_UNSUPPORTED && strstr(err.msg, "PIPELINE=upscale"), "%s",
          err.msg);
    err = (struct error){0};
    from = (struct model_options){
        .pipeline = PIPELINE_UPSCALE, .dir = "tests/golden/data/families", .id = "latentd/sd1"};
    CHECK(model_load(&m, be, &from, &err) == ERR_UNSUPPORTED &&
              strstr(err.msg, "StableDiffusionUpscalePipeline"),
          "%s", err.msg);
    backend_close(&be);
}

/* Runs SED on a copy of the model, below SHELF. */
static void check_broken(struct backend *be, const char *sed, int code, const char *words)
{
    char shelf[] = "/tmp/latentd-upscale-XXXXXX", command[400];
    struct error err = {0};
    struct model *m = NULL;
    if (!CHECK(mkdtemp(shelf) != NULL))
        return;
    snprintf(command, sizeof command, "cp -r " FOLDER "latentd %s && cd %s/" ID " && %s", shelf, shelf, sed);
    struct model_options from = {.pipeline = PIPELINE_UPSCALE, .dir = shelf, .id = ID};
    if (CHECK(system(command) == 0, "%s", command))
        CHECK(model_load(&m, be, &from, &err) == code && strstr(err.msg, words), "%s: %s", sed, err.msg);
    model_close(&m);
    snprintf(command, sizeof command, "rm -rf %s", shelf);
    CHECK(system(command) == 0);
}

TEST(models_that_lack_something_say_what)
{
    struct backend *be;
    struct model *m;
    if (!open_tier(one_tier(), &be, &m))
        return;
    model_close(&m);
    check_broken(be, "rm -r low_res_scheduler", ERR_NOT_FOUND, "component \"low_res_scheduler\" is missing");
    check_broken(be, "sed -i '/low_res/s/low_res_scheduler/nothing/' model_index.json", ERR_UNSUPPORTED,
                 "\"low_res_scheduler\" is null or missing");
    check_broken(be, "sed -i s/DDPMScheduler/FlowMatchScheduler/ model_index.json", ERR_UNSUPPORTED,
                 "low_res_scheduler/scheduler_config.json: the scheduler class \"FlowMatchScheduler\" that "
                 "model_index.json names is not built, accepted are \"PNDMScheduler\"");
    check_broken(be, "sed -i 's/\"num_class_embeds\": 40/\"num_class_embeds\": null/' unet/config.json",
                 ERR_FORMAT, "no class labels");
    check_broken(be, "sed -i 's/\"num_class_embeds\": 40/\"num_class_embeds\": 20/' unet/config.json",
                 ERR_FORMAT, "");
    /* the pipeline's own number, whatever the VAE's config says */
    check_broken(be, "sed -i 's/0.08333/0.5/' vae/config.json", 0, "");
    backend_close(&be);
}

struct stop {
    int asked, at;
};

static bool stop_at(void *ctx)
{
    struct stop *s = ctx;
    return ++s->asked >= s->at;
}

/* Between steps, between the areas of one step, and between the VAE's tiles; and nothing is left behind. */
TEST(cancelled_between_areas_and_the_same_bytes_after_it)
{
    struct backend *be;
    struct model *m;
    struct error err = {0};
    struct image first = {0}, again = {0}, input = soft_image(72, 48);
    if (!open_tier(one_tier(), &be, &m))
        return;
    struct upscale_params q = plain(&input);
    q.whole_pixels = 40 * 40; /* areas of 32 */
    CHECK(upscale(m, &q, NULL, &first, &err) == 0, "%s", err.msg);
    struct stop count = {.at = 1 << 30};
    struct watcher watch = {.cancelled = stop_at, .ctx = &count};
    CHECK(upscale(m, &q, &watch, &again, &err) == 0, "%s", err.msg);
    image_free(&again);
    CHECK(count.asked == 1 + 2 * (1 + 6) + 1, "asked %d times", count.asked); /* text, step, areas, decode */
    for (int at = 1; at <= count.asked; at++) {
        struct stop s = {.at = at};
        struct error why = {0};
        watch.ctx = &s;
        CHECK(upscale(m, &q, &watch, &again, &why) == ERR_CANCELLED && !again.rgb, "%d: %s", at, why.msg);
    }
    if (CHECK(upscale(m, &q, NULL, &again, &err) == 0, "%s", err.msg))
        CHECK(memcmp(first.rgb, again.rgb, 3 * (size_t)again.width * (size_t)again.height) == 0);
    image_free(&first);
    image_free(&again);
    image_free(&input);
    model_close(&m);
    backend_close(&be);
}

TEST_MAIN()
