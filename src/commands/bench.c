/* latentd bench: flags and lines of the ai-runner's bench.py, and more: phases, percentiles, FLOP/s against a
 * measured peak, memory, JSON. The work is that of a request without HTTP: prompt or picture to PNG. */
#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "commands.h"

static const char usage[] =
    "usage: latentd bench [--pipeline P] [--model_id ID] [--runs N] [--num_inference_steps N] [--batch_size "
    "N]\n"
    "                     [--warmup N] [--width W] [--height H] [--guidance_scale G] [--isa TIER]\n"
    "                     [--precision int8|bf16|fp32] [--json]\n"
    "  --pipeline P      text-to-image, image-to-image, which starts from a picture of W x H at\n"
    "                    strength 0.8, image-to-video, which starts from one too, or upscale,\n"
    "                    which enlarges one (128 x 128); default: PIPELINE, else text-to-image\n"
    "  --model_id ID     default: MODEL_ID, else latentd/emoji\n"
    "  --runs N          runs that are measured (1)\n"
    "  --batch_size N    pictures or videos in a run, one after the other, as the daemon makes them (1)\n"
    "  --warmup N        runs before them (0; 3 with SFAST or TORCH_COMPILE)\n"
    "  --json            one line of JSON in the place of all others\n";

enum { RUNS_MAX = 10000, BATCH_MAX = 100, SIDE_MAX = 16384, WARMUP_SFAST = 3 };

/* What each run does. */
struct work {
    struct session *s;
    struct text_to_image_params text;
    struct image_to_image_params from_image;
    struct image_to_video_params video;
    struct upscale_params upscale;
    struct image input;
    struct buffer png;
    double encode;
};

static bool take_number(struct bench_options *o, const char *name, const char *value)
{
    const struct {
        const char *name;
        long lo, hi, *out;
    } numbers[] = {{"--runs", 1, RUNS_MAX, &o->runs},         {"--num_inference_steps", 1, 1000, &o->steps},
                   {"--batch_size", 1, BATCH_MAX, &o->batch}, {"--warmup", 0, RUNS_MAX, &o->warmup},
                   {"--width", 8, SIDE_MAX, &o->width},       {"--height", 8, SIDE_MAX, &o->height}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcmp(name, numbers[i].name) == 0)
            return flag_int(name, value, numbers[i].lo, numbers[i].hi, numbers[i].out);
    fprintf(stderr, "latentd bench: %s is unknown\n%s", name, usage);
    return false;
}

static bool take_option(struct bench_options *o, int argc, char **argv, int *i)
{
    const char *a = argv[*i], *v;
    if (strcmp(a, "--json") == 0)
        return o->json = true;
    if (!(v = flag_value(argc, argv, i)))
        return false;
    if (strcmp(a, "--pipeline") == 0)
        return (o->pipeline = v) != NULL;
    if (strcmp(a, "--model_id") == 0)
        return (o->model_id = v) != NULL;
    if (strcmp(a, "--isa") == 0)
        return (o->isa = v) != NULL;
    if (strcmp(a, "--precision") == 0)
        return (o->precision = v) != NULL;
    if (strcmp(a, "--guidance_scale") == 0)
        return flag_number(a, v, &o->guidance);
    return take_number(o, a, v);
}

/* ---- The work ---- */

/* The picture as PNG, as a reply holds it. */
static int encode(struct work *w, const struct image *im, struct error *err)
{
    double start = clock_seconds();
    buffer_free(&w->png);
    int rc = png_encode(im, &w->png, err);
    w->encode += clock_seconds() - start;
    return rc;
}

static int encode_frame(void *ctx, int index, int count, const struct image *frame, struct error *err)
{
    (void)index;
    (void)count;
    return encode(ctx, frame, err);
}

static int run_one(struct work *w, const struct bench_options *o, int64_t seed)
{
    struct session *s = w->s;
    struct frame_sink sink = {.frame = encode_frame, .ctx = w};
    struct image im = {0};
    w->text.seed = w->from_image.seed = w->video.seed = w->upscale.seed = seed;
    if (o->kind == PIPELINE_IMAGE_TO_VIDEO)
        return image_to_video(s->model, &w->video, NULL, &sink, &s->err);
    int rc = o->kind == PIPELINE_UPSCALE ? upscale(s->model, &w->upscale, NULL, &im, &s->err)
             : o->kind == PIPELINE_IMAGE_TO_IMAGE
                 ? image_to_image(s->model, &w->from_image, NULL, &im, &s->err)
                 : text_to_image(s->model, &w->text, NULL, &im, &s->err);
    if (!rc)
        rc = encode(w, &im, &s->err);
    image_free(&im);
    return rc;
}

static int plan_one(struct work *w, const struct bench_options *o, struct plan_report *plan)
{
    struct session *s = w->s;
    if (o->kind == PIPELINE_IMAGE_TO_VIDEO)
        return image_to_video_plan(s->model, &w->video, plan, &s->err);
    if (o->kind == PIPELINE_UPSCALE)
        return upscale_plan(s->model, &w->upscale, plan, &s->err);
    return o->kind == PIPELINE_IMAGE_TO_IMAGE ? image_to_image_plan(s->model, &w->from_image, plan, &s->err)
                                              : text_to_image_plan(s->model, &w->text, plan, &s->err);
}

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int run_batch(struct work *w, const struct bench_options *o, struct bench_sample *out)
{
    double start = clock_seconds(), cpu = cpu_seconds();
    int rc = 0;
    w->encode = 0;
    for (long i = 0; i < o->batch && !rc; i++) {
        rc = run_one(w, o, i);
        const struct phase_times *t = model_last_times(w->s->model);
        out->phase.text += t->text;
        out->phase.steps += t->steps;
        out->phase.decode += t->decode;
        out->phase.calls += t->calls;
    }
    out->seconds = clock_seconds() - start;
    out->cpu_seconds = cpu_seconds() - cpu;
    out->encode = w->encode;
    if (o->kind == PIPELINE_IMAGE_TO_VIDEO) /* its frames are encoded while they are decoded */
        out->phase.decode -= w->encode;
    return rc;
}

/* The input picture: a grey ramp, since times do not depend on what it shows. */
static bool make_input(struct image *im, int width, int height)
{
    size_t count = 3 * (size_t)width * (size_t)height;
    *im = (struct image){.width = width, .height = height, .rgb = malloc(count)};
    for (size_t i = 0; im->rgb && i < count; i++)
        im->rgb[i] = (uint8_t)(i / 3 % 256);
    return im->rgb != NULL;
}

static bool make_work(struct work *w, const struct bench_options *o)
{
    const struct model *m = w->s->model;
    /* the upscaler's is that of what it makes; its examples start from 128 */
    int native = o->kind == PIPELINE_UPSCALE ? 128 : model_native_size(m);
    int width = o->width ? (int)o->width : native;
    int height = o->height ? (int)o->height : native;
    w->text = (struct text_to_image_params){.prompt = "a mountain lion",
                                            .width = width,
                                            .height = height,
                                            .guidance_scale = o->guidance,
                                            .steps = o->steps,
                                            .safety_check = true,
                                            .exact_times = true};
    w->from_image = (struct image_to_image_params){.prompt = w->text.prompt,
                                                   .image = &w->input,
                                                   .strength = 0.8,
                                                   .guidance_scale = o->guidance,
                                                   .image_guidance_scale = 1.5,
                                                   .steps = o->steps,
                                                   .safety_check = true,
                                                   .exact_times = true};
    w->video = (struct image_to_video_params){.image = &w->input,
                                              .width = width,
                                              .height = height,
                                              .fps = 6,
                                              .motion_bucket_id = 127,
                                              .noise_aug_strength = 0.02,
                                              .steps = o->steps,
                                              .safety_check = true,
                                              .exact_times = true};
    w->upscale = (struct upscale_params){.prompt = w->text.prompt,
                                         .image = &w->input,
                                         .guidance_scale = o->guidance,
                                         .steps = o->steps,
                                         .safety_check = true,
                                         .exact_times = true};
    text_to_image_rules(m, &w->text);
    image_to_image_rules(m, &w->from_image);
    return o->kind == PIPELINE_TEXT_TO_IMAGE || make_input(&w->input, width, height);
}

/* ---- The runs ---- */

/* COUNT runs into OUT, each printed when it is over. */
static int run_some(struct work *w, const struct bench_result *r, long count, struct bench_sample *out)
{
    for (long i = 0; i < count; i++) {
        int rc = run_batch(w, r->options, &out[i]);
        if (rc)
            return rc;
        if (!r->options->json)
            bench_print_run(r, (int)i, &out[i]);
    }
    return 0;
}

static int measure(struct work *w, struct bench_result *r, struct bench_sample *samples)
{
    const struct bench_options *o = r->options;
    r->warmup = samples;
    r->run = samples + o->warmup;
    int rc = plan_one(w, o, &r->plan);
    if (rc)
        return rc;
    if (!o->json)
        bench_print_start(r);
    r->peak = backend_peak_flops(w->s->be, r->peak_what, sizeof r->peak_what);
    if ((rc = run_some(w, r, o->warmup, samples)) || (rc = run_some(w, r, o->runs, samples + o->warmup)))
        return rc;
    if (o->json)
        return bench_print_json(r);
    bench_print_aggregate(r);
    return 0;
}

static int bench(struct session *s, const struct bench_options *o)
{
    struct work w = {.s = s};
    struct bench_sample *samples = calloc((size_t)(o->warmup + o->runs), sizeof *samples);
    int frames = o->kind == PIPELINE_IMAGE_TO_VIDEO ? model_frames(s->model) : 1, rc = 1;
    if (!samples || !make_work(&w, o)) {
        fputs("latentd: no memory for the samples\n", stderr);
    } else {
        const struct text_to_image_params *q = &w.text;
        struct bench_result r = {.options = o,
                                 .session = s,
                                 .width = q->width,
                                 .height = q->height,
                                 .outputs = frames * (int)o->batch,
                                 .steps = q->steps,
                                 .guidance = q->guidance_scale};
        rc = measure(&w, &r, samples);
        if (s->err.code)
            fprintf(stderr, "latentd: %s\n", s->err.msg);
    }
    buffer_free(&w.png);
    image_free(&w.input);
    free(samples);
    return rc ? 1 : 0;
}

static bool take_options(struct bench_options *o, int argc, char **argv)
{
    struct error err = {0};
    const char *set = getenv("PIPELINE");
    o->pipeline = set && *set ? set : CONFIG_PIPELINE_DEFAULT; /* as config_read has it */
    for (int i = 1; i < argc; i++)
        if (!take_option(o, argc, argv, &i))
            return false;
    if (pipeline_named(o->pipeline, &o->kind, &err)) {
        fprintf(stderr, "latentd bench: %s\n", err.msg);
        return false;
    }
    return true;
}

int command_bench(int argc, char **argv)
{
    static const enum session_kind kinds[] = {[PIPELINE_TEXT_TO_IMAGE] = SESSION_TEXT_TO_IMAGE,
                                              [PIPELINE_IMAGE_TO_IMAGE] = SESSION_IMAGE_TO_IMAGE,
                                              [PIPELINE_IMAGE_TO_VIDEO] = SESSION_IMAGE_TO_VIDEO,
                                              [PIPELINE_UPSCALE] = SESSION_UPSCALE};
    struct bench_options o = {.runs = 1, .batch = 1, .warmup = -1, .guidance = NAN};
    struct session s;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(usage, stdout);
            return 0;
        }
    if (!take_options(&o, argc, argv))
        return 2;
    if (isnan(o.guidance))
        o.guidance = o.kind == PIPELINE_UPSCALE ? 9 : 7.5;
    int status = session_open(&s, o.model_id, o.isa, o.precision, kinds[o.kind]);
    if (status)
        return status;
    if (o.warmup < 0)
        o.warmup = s.config.warm_up ? WARMUP_SFAST : 0;
    status = bench(&s, &o);
    session_close(&s);
    return status;
}
