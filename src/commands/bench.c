/* latentd bench: flags and lines of the ai-runner's bench.py, and more: phases, FLOP/s, peak memory. The GPU
 * memory lines stay, with 0 where there is no GPU, so that scripts which read them go on working. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "session.h"
#include "thread_pool.h"

static const char usage[] =
    "usage: latentd bench [--pipeline P] [--model_id ID] [--runs N] [--num_inference_steps N]\n"
    "                     [--guidance_scale G] [--width W] [--height H] [--isa TIER] [--json]\n"
    "P is text-to-image (default), image-to-image, which starts from a picture of W x H at strength 0.8, or\n"
    "image-to-video, which starts from one too\n";

enum { RUNS_MAX = 10000 };
#define PIPELINE_IMAGE "image-to-image"
#define PIPELINE_VIDEO "image-to-video"

struct options {
    const char *pipeline, *model_id, *isa;
    long runs, steps, width, height;
    double guidance;
    bool json;
};

struct sample {
    double seconds;
    struct phase_times phase;
};

/* What each run does. */
struct work {
    struct text_to_image_params q;
    struct image_to_image_params from_image; /* image NULL: text-to-image */
    struct image_to_video_params video;      /* the same */
    struct image input;
};

static bool take_option(struct options *o, int argc, char **argv, int *i)
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
    if (strcmp(a, "--runs") == 0)
        return flag_int(a, v, 1, RUNS_MAX, &o->runs);
    if (strcmp(a, "--num_inference_steps") == 0)
        return flag_int(a, v, 1, 1000, &o->steps);
    if (strcmp(a, "--guidance_scale") == 0)
        return flag_number(a, v, &o->guidance);
    if (strcmp(a, "--width") == 0)
        return flag_int(a, v, 8, 16384, &o->width);
    if (strcmp(a, "--height") == 0)
        return flag_int(a, v, 8, 16384, &o->height);
    fprintf(stderr, "latentd bench: %s is unknown\n%s", a, usage);
    return false;
}

static int compare_seconds(const void *a, const void *b)
{
    double x = ((const struct sample *)a)->seconds, y = ((const struct sample *)b)->seconds;
    return (x > y) - (x < y);
}

static double gib(size_t bytes)
{
    return (double)bytes / (double)(1u << 30);
}

/* GPU memory: what weights and job take, and what is gone from the GPU as a whole. 0 on the CPU. */
static void print_memory(const struct session *s, const char *what, size_t allocated)
{
    struct device_info d;
    bool gpu = s->be->device_info && s->be->device_info(s->be, &d);
    printf("%s max GPU memory allocated: %.3fGiB\n", what, gpu ? gib(allocated) : 0.0);
    printf("%s max GPU memory reserved: %.3fGiB\n", what, gpu ? gib(d.memory_total - d.memory_free) : 0.0);
}

static void print_run(const struct session *s, int i, const struct sample *t, const struct plan_report *plan)
{
    char what[40];
    double flops = plan->total.flops;
    snprintf(what, sizeof what, "inference %d", i);
    printf("%s time: %.3fs\n", what, t->seconds);
    print_memory(s, what, s->be->weight_bytes + plan->region_bytes);
    printf("inference %d phases: text %.3fs, %d UNet calls %.3fs, decode %.3fs, %.1f GFLOP/s\n", i,
           t->phase.text, t->phase.calls, t->phase.steps, t->phase.decode, flops / t->seconds * 1e-9);
    fflush(stdout);
}

static void print_aggregate(const struct session *s, double mean, double median,
                            const struct plan_report *plan)
{
    printf("\n\n----AGGREGATE METRICS----\n\n\n");
    printf("pipeline load time: %.3fs\n", s->load_seconds);
    print_memory(s, "pipeline load", s->be->weight_bytes);
    printf("avg inference time: %.3fs\n", mean);
    print_memory(s, "avg inference", s->be->weight_bytes + plan->region_bytes);
    printf("median inference time: %.3fs\n", median);
    printf("work: %.3f TFLOP, %.1f GFLOP/s at the median\n", plan->total.flops * 1e-12,
           plan->total.flops / median * 1e-9);
    printf("memory: weights %.3fGiB, job %.3fGiB, peak resident %.3fGiB\n", gib(s->be->weight_bytes),
           gib(plan->region_bytes), gib(peak_resident()));
}

static void print_json(const struct session *s, const struct text_to_image_params *q, const struct sample *t,
                       int runs, double mean, double median, const struct plan_report *plan)
{
    printf(
        "{\"model_id\":\"%s\",\"backend\":\"%s\",\"tier\":\"%s\",\"threads\":%d,\"width\":%d,\"height\":%d,",
        model_id(s->model), s->be->name, s->be->tier, pool_threads(s->be->pool), q->width, q->height);
    printf("\"steps\":%lld,\"guidance_scale\":%g,\"runs\":[", (long long)q->steps, q->guidance_scale);
    for (int i = 0; i < runs; i++)
        printf("%s{\"seconds\":%.4f,\"text\":%.4f,\"steps\":%.4f,\"decode\":%.4f}", i ? "," : "",
               t[i].seconds, t[i].phase.text, t[i].phase.steps, t[i].phase.decode);
    printf("],\"load_seconds\":%.4f,\"mean_seconds\":%.4f,\"median_seconds\":%.4f,\"flop\":%.0f,",
           s->load_seconds, mean, median, plan->total.flops);
    printf("\"weight_bytes\":%zu,\"job_bytes\":%zu,\"peak_resident_bytes\":%zu}\n", s->be->weight_bytes,
           plan->region_bytes, peak_resident());
}

static int plan_work(struct session *s, const struct work *w, struct plan_report *plan)
{
    if (w->video.image)
        return image_to_video_plan(s->model, &w->video, plan, &s->err);
    return w->from_image.image ? image_to_image_plan(s->model, &w->from_image, plan, &s->err)
                               : text_to_image_plan(s->model, &w->q, plan, &s->err);
}

static int drop_frame(void *ctx, int index, int count, const struct image *frame, struct error *err)
{
    (void)ctx;
    (void)index;
    (void)count;
    (void)frame;
    (void)err;
    return 0;
}

static int run_work(struct session *s, const struct work *w, struct image *out)
{
    static const struct frame_sink sink = {.frame = drop_frame};
    if (w->video.image)
        return image_to_video(s->model, &w->video, NULL, &sink, &s->err);
    return w->from_image.image ? image_to_image(s->model, &w->from_image, NULL, out, &s->err)
                               : text_to_image(s->model, &w->q, NULL, out, &s->err);
}

static int run_all(struct session *s, const struct options *o, const struct work *w, struct sample *t)
{
    struct plan_report plan;
    double sum = 0;
    int rc = plan_work(s, w, &plan);
    for (int i = 0; i < o->runs && !rc; i++) {
        struct image im = {0};
        double start = clock_seconds();
        rc = run_work(s, w, &im);
        t[i] = (struct sample){clock_seconds() - start, *model_last_times(s->model)};
        sum += t[i].seconds;
        image_free(&im);
        if (!rc && !o->json)
            print_run(s, i, &t[i], &plan);
    }
    if (rc) {
        fprintf(stderr, "latentd: %s\n", s->err.msg);
        return 1;
    }
    int runs = (int)o->runs;
    double mean = sum / runs;
    qsort(t, (size_t)runs, sizeof *t, compare_seconds);
    double median = (t[(runs - 1) / 2].seconds + t[runs / 2].seconds) / 2;
    if (o->json)
        print_json(s, &w->q, t, runs, mean, median, &plan);
    else
        print_aggregate(s, mean, median, &plan);
    return 0;
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

static bool make_work(struct session *s, const struct options *o, struct work *w)
{
    int native = model_native_size(s->model);
    w->q = (struct text_to_image_params){.prompt = "a mountain lion",
                                         .width = o->width ? (int)o->width : native,
                                         .height = o->height ? (int)o->height : native,
                                         .guidance_scale = o->guidance,
                                         .steps = o->steps,
                                         .seed = 0,
                                         .exact_times = true};
    if (strcmp(o->pipeline, PIPELINE_VIDEO) == 0) {
        w->video = (struct image_to_video_params){.image = &w->input,
                                                  .width = w->q.width,
                                                  .height = w->q.height,
                                                  .fps = 6,
                                                  .motion_bucket_id = 127,
                                                  .noise_aug_strength = 0.02,
                                                  .steps = o->steps,
                                                  .exact_times = true};
        return make_input(&w->input, w->q.width, w->q.height);
    }
    text_to_image_rules(s->model, &w->q);
    if (strcmp(o->pipeline, PIPELINE_IMAGE) != 0)
        return true;
    w->from_image = (struct image_to_image_params){.prompt = w->q.prompt,
                                                   .image = &w->input,
                                                   .strength = 0.8,
                                                   .guidance_scale = o->guidance,
                                                   .image_guidance_scale = 1.5,
                                                   .steps = o->steps,
                                                   .exact_times = true};
    image_to_image_rules(s->model, &w->from_image);
    return make_input(&w->input, w->q.width, w->q.height);
}

static int bench(struct session *s, const struct options *o)
{
    struct work w = {0};
    struct sample *t = calloc((size_t)o->runs, sizeof *t);
    if (!t || !make_work(s, o, &w)) {
        fputs("latentd: no memory for the samples\n", stderr);
        free(t);
        return 1;
    }
    if (!o->json) {
        printf("Starting benchmark...\npipeline=%s, model_id=%s, runs=%ld", o->pipeline, s->config.model_id,
               o->runs);
        if (o->steps)
            printf(", num_inference_steps=%ld", o->steps);
        printf("\n");
    }
    int status = run_all(s, o, &w, t);
    image_free(&w.input);
    free(t);
    return status;
}

int command_bench(int argc, char **argv)
{
    struct options o = {.pipeline = CONFIG_PIPELINE_DEFAULT, .runs = 1, .guidance = 7.5};
    struct session s;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(usage, stdout);
            return 0;
        }
        if (!take_option(&o, argc, argv, &i))
            return 2;
    }
    enum session_kind kind = SESSION_TEXT_TO_IMAGE;
    if (strcmp(o.pipeline, PIPELINE_IMAGE) == 0)
        kind = SESSION_IMAGE_TO_IMAGE;
    else if (strcmp(o.pipeline, PIPELINE_VIDEO) == 0)
        kind = SESSION_IMAGE_TO_VIDEO;
    else if (strcmp(o.pipeline, CONFIG_PIPELINE_DEFAULT) != 0) {
        fprintf(stderr,
                "latentd bench: pipeline %s is not built; accepted are text-to-image, image-to-image and "
                "image-to-video\n",
                o.pipeline);
        return 2;
    }
    int status = session_open(&s, o.model_id, o.isa, kind);
    if (status)
        return status;
    status = bench(&s, &o);
    session_close(&s);
    return status;
}
