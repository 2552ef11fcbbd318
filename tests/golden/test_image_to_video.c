/* Image-to-video from the input picture to 8-bit frames, against diffusers in fp32: a tiny random model of
 * Stable Video Diffusion on every tier. Golden: scripts/export_image_to_video_goldens.py. Also here: what is
 * refused, cancellation, sinks that fail, and the plan. */
#include <math.h>
#include <stdint.h>

#include "pipeline.h"
#include "tier.h"
#include "video_model.h"

#define FOLDER "tests/golden/data/image_to_video/"

enum { INPUT_WIDTH = 70, INPUT_HEIGHT = 53, FRAMES = 6 };

static char shelf[] = "/tmp/latentd-videos-XXXXXX";
static uint8_t input_rgb[3 * INPUT_WIDTH * INPUT_HEIGHT];
static const struct image input = {.width = INPUT_WIDTH, .height = INPUT_HEIGHT, .rgb = input_rgb};

static uint8_t *read_rgb(const char *name, size_t count)
{
    char path[200];
    uint8_t *rgb = malloc(count);
    snprintf(path, sizeof path, FOLDER "%s.rgb", name);
    FILE *f = fopen(path, "rb");
    bool ok = rgb && f && fread(rgb, 1, count, f) == count && fgetc(f) == EOF;
    if (f)
        fclose(f);
    CHECK(ok, "%s", path);
    return rgb;
}

/* The model with its weights, in a folder of /tmp, once for all tests. */
static void make_shelf(void)
{
    static const char *const parts[][2] = {
        {"unet", "diffusion_pytorch_model"}, {"vae", "diffusion_pytorch_model"}, {"image_encoder", "model"}};
    char command[200], from[200], to[200];
    uint8_t *rgb = read_rgb("input", sizeof input_rgb);
    memcpy(input_rgb, rgb, sizeof input_rgb);
    free(rgb);
    if (!mkdtemp(shelf))
        abort();
    snprintf(command, sizeof command, "cp -r " FOLDER "latentd %s", shelf);
    if (system(command) != 0)
        abort();
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(from, sizeof from, FOLDER "latentd/svd/%s", parts[i][0]);
        snprintf(to, sizeof to, "%s/latentd/svd/%s", shelf, parts[i][0]);
        write_weights(from, to, parts[i][1], NULL);
    }
}

/* False when this machine lacks the tier. */
static bool open_model_with(const char *tier, struct backend **be, struct model **m, bool deepcache)
{
    struct error err = {0};
    struct backend_options opt = tier_options(tier);
    struct model_options from = {
        .pipeline = PIPELINE_IMAGE_TO_VIDEO, .dir = shelf, .id = "latentd/svd", .deepcache = deepcache};
    *be = NULL;
    *m = NULL;
    if (!tier_wanted(tier) || backend_open(be, &opt, &err) != 0)
        return false;
    if (CHECK(model_load(m, *be, &from, &err) == 0, "%s: %s", tier, err.msg))
        return true;
    backend_close(be);
    return false;
}

static bool open_model(const char *tier, struct backend **be, struct model **m)
{
    return open_model_with(tier, be, m, false);
}

/* ---- Sinks ---- */

struct taken {
    uint8_t *rgb;
    size_t each;
    int count, fail_at,
        stop_at; /* frames; the one whose sink fails, after which the watcher stops; 0: none */
};

static int take_frame(void *ctx, int index, int count, const struct image *frame, struct error *err)
{
    struct taken *t = ctx;
    CHECK(index == t->count && count == FRAMES, "frame %d of %d", index, count);
    t->each = 3 * (size_t)frame->width * (size_t)frame->height;
    if (!t->rgb)
        t->rgb = malloc(FRAMES * t->each);
    if (!t->rgb)
        abort();
    memcpy(t->rgb + (size_t)index * t->each, frame->rgb, t->each);
    t->count++;
    return t->fail_at && t->count == t->fail_at ? error_set(err, ERR_IO, "the disk is full") : 0;
}

static bool stop_after(void *ctx)
{
    const struct taken *t = ctx;
    return t->stop_at && t->count >= t->stop_at;
}

static struct image_to_video_params plain(void)
{
    return (struct image_to_video_params){.image = &input,
                                          .width = 64,
                                          .height = 48,
                                          .fps = 6,
                                          .motion_bucket_id = 127,
                                          .noise_aug_strength = 0.02,
                                          .steps = 2,
                                          .seed = 3};
}

static int run(struct model *m, const struct image_to_video_params *q, struct taken *t, struct error *err)
{
    struct frame_sink sink = {.frame = take_frame, .ctx = t};
    struct watcher watch = {.cancelled = stop_after, .ctx = t};
    return image_to_video(m, q, &watch, &sink, err);
}

/* ---- The frames ---- */

static double psnr(const uint8_t *a, const uint8_t *b, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (double)(a[i] - b[i]) * (a[i] - b[i]);
    return sum == 0 ? 99 : 10 * log10(255.0 * 255.0 * (double)count / sum);
}

static void check_video(struct model *m, const char *tier, double least, const char *name,
                        const struct image_to_video_params *q)
{
    struct error err = {0};
    struct taken t = {0};
    if (CHECK(run(m, q, &t, &err) == 0 && t.count == FRAMES, "%s, %s: %s", tier, name, err.msg)) {
        uint8_t *want = read_rgb(name, FRAMES * t.each);
        double got = psnr(t.rgb, want, FRAMES * t.each);
        printf("  %-20s %-8s %.1f dB\n", tier, name, got);
        CHECK(got >= least, "%s, %s: %.1f dB from diffusers", tier, name, got);
        free(want);
    }
    free(t.rgb);
}

static void check_tier(const char *tier)
{
    struct backend *be;
    struct model *m;
    char name[64];
    struct image_to_video_params q = plain();
    long long seed, steps, fps, motion;
    int videos = 0;
    if (!open_model(tier, &be, &m))
        return;
    CHECK(model_frames(m) == FRAMES && model_native_size(m) == 64);
    FILE *f = fopen(FOLDER "videos.txt", "r");
    while (f && fscanf(f, "%63s %lld %lld %lld %lld %lf %d %d", name, &seed, &steps, &fps, &motion,
                       &q.noise_aug_strength, &q.width, &q.height) == 8) {
        q.seed = seed;
        q.steps = steps;
        q.fps = fps;
        q.motion_bucket_id = motion;
        check_video(m, tier, be->dtype == DTYPE_F32 ? 65 : 38, name, &q);
        videos++;
    }
    CHECK(videos == 3, "%d videos", videos);
    if (f)
        fclose(f);
    model_close(&m);
    backend_close(&be);
}

TEST(frames_are_those_of_diffusers)
{
    make_shelf(); /* for the tests below too, which run in this order */
    for (int i = 0; i < TIER_NAMES; i++)
        check_tier(tier_names[i]);
}

/* Golden: scripts/export_deepcache_goldens.py. */
TEST(deepcache_gives_the_frames_of_the_python_package)
{
    for (int i = 0; i < TIER_NAMES; i++) {
        struct backend *be;
        struct model *m;
        struct image_to_video_params q = plain();
        q.steps = 5;
        if (!open_model_with(tier_names[i], &be, &m, true))
            continue;
        check_video(m, tier_names[i], be->dtype == DTYPE_F32 ? 65 : 38, "../deepcache/video", &q);
        model_close(&m);
        backend_close(&be);
    }
}

TEST(bad_requests_are_refused)
{
    struct backend *be;
    struct model *m;
    if (!open_model("avx2", &be, &m))
        return;
    static const struct {
        int width, height, fps;
        double noise;
        const char *words;
    } bad[] = {{68, 48, 6, 0, "`height` and `width` have to be divisible by 8 but are 48 and 68"},
               {64, 48, 0, 0, "`fps` has to be at least 1 but is 0"},
               {64, 48, -3, 0, "`fps` has to be at least 1 but is -3"},
               {64, -48, 6, 0, "have to be 8 to"},
               {64, 48, 6, NAN, "`noise_aug_strength`"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct image_to_video_params q = plain();
        struct error err = {0}, again = {0};
        struct taken t = {0};
        q.width = bad[i].width;
        q.height = bad[i].height;
        q.fps = bad[i].fps;
        q.noise_aug_strength = bad[i].noise;
        CHECK(image_to_video_admit(m, &q, &err) == ERR_INVALID && strstr(err.msg, bad[i].words), "%s",
              err.msg);
        CHECK(run(m, &q, &t, &again) == ERR_INVALID && t.count == 0, "%s", again.msg);
    }
    struct image_to_video_params q = plain();
    struct error err = {0}, fits = {0};
    struct image size = {.width = 4000, .height = 3000}; /* an admission needs no pixels */
    q.image = &size;
    CHECK(image_to_video_admit(m, &q, &fits) == 0, "%s", fits.msg);
    q.width = q.height = 16000;
    be->memory_max = (size_t)2 << 30;
    CHECK(image_to_video_admit(m, &q, &err) == ERR_NOMEM, "%s", err.msg);
    model_close(&m);
    backend_close(&be);
}

TEST(same_bytes_after_stops_and_failures)
{
    struct backend *be;
    struct model *m;
    if (!open_model("avx2", &be, &m))
        return;
    struct image_to_video_params q = plain(), large = plain();
    struct error err = {0}, stopped = {0}, failed = {0}, early = {0};
    struct taken first = {0}, cut = {.stop_at = 1}, full = {.fail_at = 2}, none = {.stop_at = 0}, again = {0};
    large.width = 96;
    CHECK(run(m, &q, &first, &err) == 0, "%s", err.msg);
    CHECK(run(m, &large, &cut, &stopped) == ERR_CANCELLED && cut.count == 4 && strstr(stopped.msg, "decode"),
          "%d frames, %s", cut.count, stopped.msg);
    CHECK(run(m, &q, &full, &failed) == ERR_IO && full.count == 2 && strstr(failed.msg, "disk is full"),
          "%d frames, %s", full.count, failed.msg);
    none.stop_at = 1;
    none.count = 1; /* so the watcher stops it before the first phase */
    CHECK(run(m, &q, &none, &early) == ERR_CANCELLED && none.count == 1, "%s", early.msg);
    if (CHECK(run(m, &q, &again, &err) == 0 && again.count == FRAMES, "%s", err.msg))
        CHECK(memcmp(first.rgb, again.rgb, FRAMES * first.each) == 0, "the bytes differ");
    free(first.rgb);
    free(cut.rgb);
    free(full.rgb);
    free(again.rgb);
    model_close(&m);
    backend_close(&be);
}

/* The pipeline and the model must go together. */
static void check_load(const char *dir, enum pipeline_kind pipeline, const char *id, const char *words)
{
    struct backend *be = NULL;
    struct model *m = NULL;
    struct error err = {0};
    struct model_options from = {.pipeline = pipeline, .dir = dir, .id = id};
    if (CHECK(backend_open(&be, &(struct backend_options){.kind = "ref"}, &err) == 0, "%s", err.msg))
        CHECK(model_load(&m, be, &from, &err) == ERR_UNSUPPORTED && !m && strstr(err.msg, words), "%s",
              err.msg);
    backend_close(&be);
}

TEST(models_of_another_pipeline)
{
    check_load(shelf, PIPELINE_TEXT_TO_IMAGE, "latentd/svd",
               "latentd/svd makes videos; set PIPELINE=image-to-video");
    check_load("tests/golden/data/families", PIPELINE_IMAGE_TO_VIDEO, "latentd/sd1",
               "latentd/sd1 makes pictures; PIPELINE=image-to-video needs a StableVideoDiffusionPipeline");
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", shelf);
    CHECK(system(command) == 0);
}

TEST_MAIN()
