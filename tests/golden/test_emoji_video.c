/* Frames of the shipped video model on every tier against diffusers in fp32: at least 35 dB PSNR, from the
 * picture to 8-bit frames. Golden: scripts/export_emoji_video_goldens.py. */
#include "test.h"

#include <math.h>
#include <stdint.h>

#include "log.h"
#include "pipeline.h"
#include "tier.h"

#define FOLDER   "tests/golden/data/emoji_video/"
#define PICTURES "tests/golden/data/pictures/"

enum { FRAMES = 14, CHOSEN_MAX = 4 };
static const double psnr_least = 35.0;

struct video {
    char name[64], chosen[64];
    int in_width, in_height, width, height, steps;
    long long seed, fps, motion;
    double noise;
};

/* Reads one line of videos.txt. */
static bool read_video(FILE *f, struct video *c)
{
    return fscanf(f, "%63s %d %d %lld %d %lld %lld %lf %d %d %63s", c->name, &c->in_width, &c->in_height,
                  &c->seed, &c->steps, &c->fps, &c->motion, &c->noise, &c->width, &c->height,
                  c->chosen) == 11;
}

static uint8_t *read_rgb(const char *folder, const char *name, size_t count)
{
    char path[200];
    uint8_t *rgb = calloc(count, 1);
    snprintf(path, sizeof path, "%s%s.rgb", folder, name);
    FILE *f = fopen(path, "rb");
    bool ok = rgb && f && fread(rgb, 1, count, f) == count && fgetc(f) == EOF;
    if (f)
        fclose(f);
    if (!CHECK(ok, "%s", path)) {
        free(rgb);
        return NULL;
    }
    return rgb;
}

/* The frames that a case names, kept one behind the other. */
struct taken {
    int chosen[CHOSEN_MAX], wanted, kept, seen;
    uint8_t *rgb;
};

static void parse_chosen(struct taken *t, const char *list)
{
    char *end;
    for (const char *s = list; *s && t->wanted < CHOSEN_MAX; s = *end == ',' ? end + 1 : end) {
        t->chosen[t->wanted++] = (int)strtol(s, &end, 10);
        if (end == s)
            break;
    }
}

static int take_frame(void *ctx, int index, int count, const struct image *frame, struct error *err)
{
    struct taken *t = ctx;
    size_t each = 3 * (size_t)frame->width * (size_t)frame->height;
    (void)err;
    CHECK(index == t->seen && count == FRAMES, "frame %d of %d", index, count);
    t->seen++;
    if (t->kept < t->wanted && t->chosen[t->kept] == index)
        memcpy(t->rgb + (size_t)t->kept++ * each, frame->rgb, each);
    return 0;
}

static double psnr(const uint8_t *a, const uint8_t *b, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (double)(a[i] - b[i]) * (a[i] - b[i]);
    return sum == 0 ? 99 : 10 * log10(255.0 * 255.0 * (double)count / sum);
}

static void compare(const char *tier, const struct video *c, const struct taken *t, const uint8_t *want)
{
    size_t each = 3 * (size_t)c->width * (size_t)c->height;
    if (!CHECK(t->seen == FRAMES && t->kept == t->wanted, "%d frames, %d kept", t->seen, t->kept))
        return;
    for (int i = 0; i < t->wanted; i++) {
        double got = psnr(t->rgb + (size_t)i * each, want + (size_t)i * each, each);
        printf("  %-20s %-8s frame %2d  %.1f dB\n", tier, c->name, t->chosen[i], got);
        CHECK(got >= psnr_least, "%s, %s, frame %d: %.1f dB from diffusers", tier, c->name, t->chosen[i],
              got);
    }
}

static void check_video(struct model *m, const char *tier, const struct video *c)
{
    struct error err = {0};
    struct taken t = {0};
    parse_chosen(&t, c->chosen);
    size_t bytes = 3 * (size_t)c->width * (size_t)c->height * (size_t)t.wanted;
    uint8_t *rgb = read_rgb(PICTURES, c->name, 3 * (size_t)c->in_width * (size_t)c->in_height);
    uint8_t *want = read_rgb(FOLDER, c->name, bytes);
    struct image input = {.width = c->in_width, .height = c->in_height, .rgb = rgb};
    struct image_to_video_params q = {.image = &input,
                                      .width = c->width,
                                      .height = c->height,
                                      .fps = c->fps,
                                      .motion_bucket_id = c->motion,
                                      .noise_aug_strength = c->noise,
                                      .steps = c->steps,
                                      .seed = c->seed};
    struct frame_sink sink = {.frame = take_frame, .ctx = &t};
    t.rgb = calloc(bytes, 1);
    if (rgb && want && CHECK(t.rgb != NULL) &&
        CHECK(image_to_video(m, &q, NULL, &sink, &err) == 0, "%s: %s", tier, err.msg))
        compare(tier, c, &t, want);
    free(t.rgb);
    free(want);
    free(rgb);
}

/* Opens the shipped model on a tier; false when this machine lacks it. */
static bool open_tier(const char *tier, struct backend **be, struct model **m)
{
    struct error err = {0};
    struct backend_options opt = tier_options(tier);
    struct model_options from = {
        .pipeline = PIPELINE_IMAGE_TO_VIDEO, .dir = "models", .id = "latentd/emoji-video"};
    int rc = backend_open(be, &opt, &err);
    if (rc == ERR_UNSUPPORTED) {
        CHECK(!getenv("GOLDEN_TIER"), "%s", err.msg); /* a tier that was asked for by name must run */
        return false;
    }
    return CHECK(rc == 0 && model_load(m, *be, &from, &err) == 0, "%s: %s", tier, err.msg);
}

static void check_tier(const char *tier, int most)
{
    struct backend *be = NULL;
    struct model *m = NULL;
    struct video c;
    int videos = 0;
    FILE *f = fopen(FOLDER "videos.txt", "r");
    if (CHECK(f != NULL, "no " FOLDER "videos.txt") && tier_wanted(tier) && open_tier(tier, &be, &m)) {
        while (videos < most && read_video(f, &c)) {
            check_video(m, tier, &c);
            videos++;
        }
        CHECK(videos > 0);
    }
    if (f)
        fclose(f);
    model_close(&m);
    backend_close(&be);
}

/* ref takes its time: the small video is enough there, and each of its ops is checked elsewhere. */
TEST(ref_gives_the_frames_of_diffusers)
{
    check_tier("ref", 1);
}

/* With TEST_SHORT in the environment (under sanitizers) it is everywhere. */
TEST(every_tier_gives_the_frames_of_diffusers)
{
    for (int i = 1; i < TIER_NAMES; i++)
        check_tier(tier_names[i], getenv("TEST_SHORT") ? 1 : 100);
}

/* A request without a size gets the model's own. */
TEST(size_of_the_shipped_model)
{
    struct backend *be = NULL;
    struct model *m = NULL;
    int width = 0, height = 0;
    if (open_tier(getenv("GOLDEN_TIER"), &be, &m)) {
        model_default_size(m, &width, &height);
        CHECK(width == 128 && height == 128 && model_frames(m) == FRAMES, "%d x %d, %d frames", width, height,
              model_frames(m));
    }
    model_close(&m);
    backend_close(&be);
}

TEST_MAIN()
