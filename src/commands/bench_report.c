/* What `latentd bench` prints: the lines of the ai-runner's bench.py with its words, so that scripts which
 * read them go on working, and more of our own. See bench.h. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "thread_pool.h"

static double gib(size_t bytes)
{
    return (double)bytes / (double)(1u << 30);
}

static bool on_gpu(const struct bench_result *r, struct device_info *d)
{
    struct backend *be = r->session->be;
    return be->device_info && be->device_info(be, d);
}

/* Allocated: what weights and job take. Reserved: what is gone from the GPU as a whole; without one, what the
 * process has held at most. */
static void memory(const struct bench_result *r, bool job, double *allocated, double *reserved)
{
    struct device_info d;
    *allocated = gib(r->session->be->weight_bytes + (job ? r->plan.region_bytes : 0));
    *reserved = on_gpu(r, &d) ? gib(d.memory_total - d.memory_free) : gib(peak_resident());
}

static void print_memory(const struct bench_result *r, const char *what, bool job)
{
    double allocated, reserved;
    memory(r, job, &allocated, &reserved);
    printf("%s max GPU memory allocated: %.3fGiB\n", what, allocated);
    printf("%s max GPU memory reserved: %.3fGiB\n", what, reserved);
}

/* ---- Numbers over the runs ---- */

static double mean(const struct bench_sample *s, long count, size_t field)
{
    double sum = 0;
    for (long i = 0; i < count; i++)
        sum += *(const double *)(const void *)((const char *)&s[i] + field);
    return count ? sum / (double)count : 0;
}
#define MEAN(samples, count, field) mean(samples, count, offsetof(struct bench_sample, field))

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of the runs' times, with the line between neighbours, as numpy does. 0 when there is no memory. */
static double percentile(const struct bench_result *r, double share)
{
    long n = r->options->runs;
    double *t = malloc((size_t)n * sizeof *t), y = 0;
    if (!t)
        return 0;
    for (long i = 0; i < n; i++)
        t[i] = r->run[i].seconds;
    qsort(t, (size_t)n, sizeof *t, compare);
    double at = share * (double)(n - 1);
    long low = (long)at, high = low + 1 < n ? low + 1 : low;
    y = t[low] + (at - (double)low) * (t[high] - t[low]);
    free(t);
    return y;
}

/* Of a run, all of its batch. */
static double run_flops(const struct bench_result *r)
{
    return r->plan.total.flops * (double)r->options->batch;
}

static double floor_seconds(const struct bench_result *r)
{
    return r->peak > 0 ? run_flops(r) / r->peak : 0;
}

static double outputs_per_second(const struct bench_result *r)
{
    double seconds = MEAN(r->run, r->options->runs, seconds);
    return seconds > 0 ? r->outputs / seconds : 0;
}

/* ---- Lines ---- */

void bench_print_start(const struct bench_result *r)
{
    const struct bench_options *o = r->options;
    struct device_info d;
    printf("Starting benchmark...\npipeline=%s, model_id=%s, runs=%ld", o->pipeline,
           model_id(r->session->model), o->runs);
    if (o->steps)
        printf(", num_inference_steps=%ld", o->steps);
    printf("\n");
    if (!on_gpu(r, &d))
        printf("no GPU: the lines of GPU memory tell of this process's memory, allocated: weights and job, "
               "reserved: "
               "peak resident\n");
}

void bench_print_run(const struct bench_result *r, int i, const struct bench_sample *s)
{
    char what[40];
    snprintf(what, sizeof what, "inference %d", i);
    printf("%s time: %.3fs\n", what, s->seconds);
    print_memory(r, what, true);
    printf("%s phases: text %.3fs, %d UNet calls %.3fs, decode %.3fs, encode %.3fs; CPU %.3fs\n", what,
           s->phase.text, s->phase.calls, s->phase.steps, s->phase.decode, s->encode, s->cpu_seconds);
    fflush(stdout);
}

static void print_floor(const struct bench_result *r, double median)
{
    printf("work: %.3f TFLOP a run, %.1f GFLOP/s at the median\n", run_flops(r) * 1e-12,
           run_flops(r) / median * 1e-9);
    if (r->peak > 0)
        printf("floor: %.3fs at the measured peak of %.1f GFLOP/s (%s); share of the floor: %.1f%%\n",
               floor_seconds(r), r->peak * 1e-9, r->peak_what, 100 * floor_seconds(r) / median);
}

static void print_own(const struct bench_result *r)
{
    const struct bench_options *o = r->options;
    double median = percentile(r, 0.5);
    printf("avg inference time per output: %.3fs\n", MEAN(r->run, o->runs, seconds) / (double)o->batch);
    printf("median inference time: %.3fs\n", median);
    printf("percentiles of inference time: p50 %.3fs, p90 %.3fs, p95 %.3fs, p99 %.3fs\n", median,
           percentile(r, 0.9), percentile(r, 0.95), percentile(r, 0.99));
    printf("avg phase times: text %.3fs, steps %.3fs, decode %.3fs, encode %.3fs\n",
           MEAN(r->run, o->runs, phase.text), MEAN(r->run, o->runs, phase.steps),
           MEAN(r->run, o->runs, phase.decode), MEAN(r->run, o->runs, encode));
    printf("images per second: %.3f\n", outputs_per_second(r));
    print_floor(r, median);
    printf("memory: weights %.3fGiB, job %.3fGiB, peak resident %.3fGiB\n", gib(r->session->be->weight_bytes),
           gib(r->plan.region_bytes), gib(peak_resident()));
}

void bench_print_aggregate(const struct bench_result *r)
{
    const struct bench_options *o = r->options;
    printf("\n\n----AGGREGATE METRICS----\n\n\n");
    printf("pipeline load time: %.3fs\n", r->session->load_seconds);
    print_memory(r, "pipeline load", false);
    if (o->warmup) {
        printf("avg warmup inference time: %.3fs\n", MEAN(r->warmup, o->warmup, seconds));
        print_memory(r, "avg warmup inference", true);
    }
    printf("avg inference time: %.3fs\n", MEAN(r->run, o->runs, seconds));
    print_memory(r, "avg inference", true);
    print_own(r);
}

/* ---- JSON ---- */

static void put_samples(cJSON *to, const char *name, const struct bench_sample *s, long count)
{
    cJSON *list = cJSON_AddArrayToObject(to, name);
    for (long i = 0; i < count && list; i++) {
        cJSON *one = cJSON_CreateObject();
        cJSON_AddNumberToObject(one, "seconds", s[i].seconds);
        cJSON_AddNumberToObject(one, "cpu_seconds", s[i].cpu_seconds);
        cJSON_AddNumberToObject(one, "text", s[i].phase.text);
        cJSON_AddNumberToObject(one, "steps", s[i].phase.steps);
        cJSON_AddNumberToObject(one, "decode", s[i].phase.decode);
        cJSON_AddNumberToObject(one, "encode", s[i].encode);
        cJSON_AddNumberToObject(one, "unet_calls", s[i].phase.calls);
        cJSON_AddItemToArray(list, one);
    }
}

static const char *const type_names[] = {[DTYPE_F32] = "fp32", [DTYPE_F16] = "fp16", [DTYPE_BF16] = "bf16"};

static void put_settings(cJSON *to, const struct bench_result *r)
{
    const struct bench_options *o = r->options;
    const struct backend *be = r->session->be;
    cJSON_AddStringToObject(to, "pipeline", o->pipeline);
    cJSON_AddStringToObject(to, "model_id", model_id(r->session->model));
    cJSON_AddStringToObject(to, "backend", be->name);
    cJSON_AddStringToObject(to, "tier", be->tier);
    cJSON_AddStringToObject(to, "precision", be->int8 ? "int8" : type_names[be->dtype]);
    cJSON_AddNumberToObject(to, "threads", pool_threads(be->pool));
    cJSON_AddNumberToObject(to, "width", r->width);
    cJSON_AddNumberToObject(to, "height", r->height);
    cJSON_AddNumberToObject(to, "steps", (double)r->steps);
    cJSON_AddNumberToObject(to, "guidance_scale", r->guidance);
    cJSON_AddNumberToObject(to, "batch_size", (double)o->batch);
    cJSON_AddBoolToObject(to, "deepcache", r->session->config.deepcache);
}

static void put_times(cJSON *to, const struct bench_result *r)
{
    cJSON_AddNumberToObject(to, "load_seconds", r->session->load_seconds);
    cJSON_AddNumberToObject(to, "mean_seconds", MEAN(r->run, r->options->runs, seconds));
    cJSON_AddNumberToObject(to, "median_seconds", percentile(r, 0.5));
    cJSON_AddNumberToObject(to, "p90_seconds", percentile(r, 0.9));
    cJSON_AddNumberToObject(to, "p95_seconds", percentile(r, 0.95));
    cJSON_AddNumberToObject(to, "p99_seconds", percentile(r, 0.99));
    cJSON_AddNumberToObject(to, "images_per_second", outputs_per_second(r));
    cJSON_AddNumberToObject(to, "flop", run_flops(r));
    cJSON_AddNumberToObject(to, "peak_flops", r->peak);
    cJSON_AddStringToObject(to, "peak", r->peak_what);
    cJSON_AddNumberToObject(to, "floor_seconds", floor_seconds(r));
    cJSON_AddNumberToObject(to, "share_of_floor", floor_seconds(r) / percentile(r, 0.5));
}

static void put_memory(cJSON *to, const struct bench_result *r)
{
    struct device_info d;
    bool gpu = on_gpu(r, &d);
    cJSON_AddNumberToObject(to, "weight_bytes", (double)r->session->be->weight_bytes);
    cJSON_AddNumberToObject(to, "job_bytes", (double)r->plan.region_bytes);
    cJSON_AddNumberToObject(to, "peak_resident_bytes", (double)peak_resident());
    if (gpu)
        cJSON_AddNumberToObject(to, "gpu_used_bytes", (double)(d.memory_total - d.memory_free));
}

int bench_print_json(const struct bench_result *r)
{
    cJSON *all = cJSON_CreateObject();
    put_settings(all, r);
    put_samples(all, "warmup", r->warmup, r->options->warmup);
    put_samples(all, "runs", r->run, r->options->runs);
    put_times(all, r);
    put_memory(all, r);
    char *text = cJSON_PrintUnformatted(all);
    bool ok = text && puts(text) >= 0 && fflush(stdout) == 0;
    if (!ok)
        fputs("latentd: the JSON could not be written\n", stderr);
    cJSON_free(text);
    cJSON_Delete(all);
    return ok ? 0 : 1;
}
