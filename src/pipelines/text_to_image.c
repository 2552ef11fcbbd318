/* Prompt → tokens → text encoder → scheduler steps over the UNet → VAE decoder → pixels.
 * Follows diffusers' StableDiffusionPipeline.__call__. See pipeline.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "log.h"
#include "model.h"

enum { STEPS_DEFAULT = 50, SIDE_MAX = 16384, POSITIONS_MAX = 1024, TIME_COND_MAX = 4096 };

/* One request on its way. The same walk runs on the real backend and on `plan`. */
struct run {
    pass p;
    struct model *m;
    const struct text_to_image_params *params;
    const struct watcher *watch; /* NULL when planning */
    bool guided;                 /* two halves: unconditional, conditional */
    struct scheduler *sched;
    struct noise noise;
    struct phase_times times;
};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Tells the watcher where the run is, and stops it when nobody waits any more. Returns false when it must
 * end. */
static bool enter(struct run *r, enum phase phase, int step, int steps)
{
    const struct watcher *w = r->watch;
    if (r->p.err->code)
        return false;
    if (w && w->cancelled && w->cancelled(w->ctx)) {
        error_set(r->p.err, ERR_CANCELLED, "cancelled before %s", phase_names[phase]);
        return false;
    }
    if (w && w->entered)
        w->entered(w->ctx, phase, step, steps);
    return true;
}

static int check_params(const struct model *m, const struct text_to_image_params *q, struct error *err)
{
    int unit = vae_scale(m->vae);
    if (q->height % 8 != 0 || q->width % 8 != 0)
        return error_set(err, ERR_INVALID, "`height` and `width` have to be divisible by 8 but are %d and %d",
                         q->height, q->width);
    if (q->height < unit || q->width < unit || q->height > SIDE_MAX || q->width > SIDE_MAX)
        return error_set(err, ERR_INVALID, "`height` and `width` have to be %d to %d but are %d and %d", unit,
                         SIDE_MAX, q->height, q->width);
    if (!isfinite(q->guidance_scale))
        return error_set(err, ERR_INVALID, "`guidance_scale` has to be a finite number");
    return 0;
}

static int step_count(const struct text_to_image_params *q, struct error *err)
{
    if (q->steps < 1)
        return STEPS_DEFAULT;
    if (q->steps > 1000000)
        return error_set(err, ERR_INVALID,
                         "`num_inference_steps` is %lld, which is more than any scheduler has",
                         (long long)q->steps);
    return (int)q->steps;
}

/* TEXT: [1 or 2, 1, 77, C], unconditional first. */
static tensor encode_prompt(struct run *r)
{
    int positions = clip_text_positions(r->m->text), n = 0, cut = 0;
    int32_t ids[2 * POSITIONS_MAX];
    const char *texts[2] = {r->params->negative_prompt ? r->params->negative_prompt : "", r->params->prompt};
    if (positions > POSITIONS_MAX)
        error_set(r->p.err, ERR_FORMAT, "the text encoder has %d positions, at most %d are built", positions,
                  POSITIONS_MAX);
    for (int i = r->guided ? 0 : 1; i < 2 && !r->p.err->code; i++, n++) {
        tokenizer_encode(r->m->tokenizer, texts[i], strlen(texts[i]), ids + n * positions, positions, NULL,
                         &cut, r->p.err);
        if (cut > 0 && r->watch)
            log_warning("the %s prompt was cut: %d tokens do not fit into %d", i ? "positive" : "negative",
                        cut, positions);
    }
    return clip_text_forward(&r->p, r->m->text, ids, n);
}

/* diffusers' get_guidance_scale_embedding for LCM-like UNets, whose guidance is an input: OUT[dim]. */
static void guidance_embedding(double guidance, int dim, float *out)
{
    int half = dim / 2;
    double w = (guidance - 1.0) * 1000.0;
    for (int i = 0; i < half; i++) {
        double f = w * exp(-log(10000.0) / (half - 1) * i);
        out[i] = (float)sin(f);
        out[half + i] = (float)cos(f);
    }
    if (dim % 2)
        out[dim - 1] = 0;
}

/* One model call: latents x [1, h, w, C] at call i → prediction [1, h, w, C]. */
static tensor predict(struct run *r, const struct unet_request *req, tensor x, int i)
{
    pass *p = &r->p;
    tensor scaled = scheduler_scale_input(p, r->sched, i, x);
    tensor input = r->guided ? repeat_batch(p, scaled, 2) : scaled;
    pass_step_begin(p);
    tensor e = unet_forward(p, r->m->unet, req, input, i);
    pass_step_end(p);
    if (r->guided) {
        tensor_free(p, &input);
        tensor both = e;
        e = guide(p, both, (float)r->params->guidance_scale);
        tensor_free(p, &both);
    }
    tensor_free(p, &scaled);
    return e;
}

/* STEP k/n: noise → latents [1, h, w, C]. */
static tensor denoise(struct run *r, tensor text)
{
    pass *p = &r->p;
    struct model *m = r->m;
    int calls = scheduler_calls(r->sched), c = unet_in_channels(m->unet);
    float cond[TIME_COND_MAX];
    int dim = unet_time_cond_proj_dim(m->unet);
    if (dim > TIME_COND_MAX)
        error_set(p->err, ERR_FORMAT, "time_cond_proj_dim is %d, at most %d is built", dim, TIME_COND_MAX);
    else if (dim > 0)
        guidance_embedding(r->params->guidance_scale, dim, cond);
    tensor drawn = noise_draw(p, &r->noise, 1, r->params->height / vae_scale(m->vae),
                              r->params->width / vae_scale(m->vae), c);
    float sigma = scheduler_init_noise_sigma(r->sched);
    tensor x = lincomb(p, 1, &sigma, &drawn);
    tensor_free(p, &drawn);
    struct unet_request *req =
        unet_begin(p, m->unet,
                   &(struct unet_conditions){.text = text,
                                             .timesteps = scheduler_timesteps(r->sched),
                                             .count = calls,
                                             .time_cond = dim > 0 ? cond : NULL});
    for (int i = 0; i < calls && enter(r, PHASE_STEP, i + 1, calls); i++) {
        tensor e = predict(r, req, x, i);
        tensor next = scheduler_step(p, r->sched, i, e, x, &r->noise);
        tensor_free(p, &e);
        tensor_free(p, &x);
        x = next;
        r->times.calls++;
    }
    unet_end(p, &req);
    return x;
}

/* DECODE: latents → picture [1, H, W, 3] in about -1..1. */
static tensor decode(struct run *r, tensor x)
{
    float coef = 1.0f / vae_scaling_factor(r->m->vae);
    tensor z = lincomb(&r->p, 1, &coef, &x);
    tensor y = vae_decode(&r->p, r->m->vae, z);
    tensor_free(&r->p, &z);
    return y;
}

/* The time, for phase_times. */
static double phase_end(struct run *r)
{
    if (r->params->exact_times && r->p.be->wait)
        r->p.be->wait(r->p.be, r->p.err);
    return seconds();
}

/* The whole walk. OUT NULL: planning, no pixels are kept. */
static int walk(struct run *r, struct image *out)
{
    pass *p = &r->p;
    double t0 = seconds();
    if (!enter(r, PHASE_TEXT, 0, 0))
        return p->err->code;
    tensor text = encode_prompt(r);
    double t1 = phase_end(r);
    tensor x = denoise(r, text);
    tensor_free(p, &text);
    scheduler_end(p, &r->sched);
    double t2 = phase_end(r);
    if (!enter(r, PHASE_DECODE, 0, 0))
        return p->err->code;
    tensor y = decode(r, x);
    tensor_free(p, &x);
    if (out)
        to_rgb8(p, y, out->rgb);
    tensor_free(p, &y);
    r->times.text = t1 - t0;
    r->times.steps = t2 - t1;
    r->times.decode = phase_end(r) - t2;
    return p->err->code;
}

static int run_init(struct run *r, struct model *m, const struct text_to_image_params *params,
                    struct backend *be, struct region *mem, struct error *err)
{
    *r = (struct run){.p = {.be = be, .mem = mem, .err = err},
                      .m = m,
                      .params = params,
                      .guided = params->guidance_scale > 1.0 && unet_time_cond_proj_dim(m->unet) == 0,
                      .noise = {.seed = (uint64_t)params->seed, .round = m->noise_dtype}};
    int steps = step_count(params, err);
    return steps < 0 ? steps : scheduler_start(&r->sched, m->scheduler, steps, err);
}

/* Plans on BE and REGION, which the caller owns. */
static int plan_walk(struct model *m, const struct text_to_image_params *params, struct backend *be,
                     struct region *region, struct error *err)
{
    struct run r;
    plan_set_dtype(be, m->be->dtype);
    int rc = run_init(&r, m, params, be, region, err);
    if (!rc)
        rc = walk(&r, NULL);
    scheduler_end(&r.p, &r.sched);
    return rc;
}

int text_to_image_plan(struct model *m, const struct text_to_image_params *params, struct plan_report *report,
                       struct error *err)
{
    int rc = check_params(m, params, err);
    if (rc)
        return rc;
    struct backend *be = NULL;
    struct region *region = malloc(sizeof *region);
    if (!region)
        return error_set(err, ERR_NOMEM, "no memory to plan");
    rc = backend_open(&be, &(struct backend_options){.kind = "plan"}, err);
    if (rc)
        goto out;
    region_init(region, NULL, 0);
    rc = plan_walk(m, params, be, region, err);
    *report = *plan_report(be);
    report->region_bytes = region->peak;
out:
    backend_close(&be);
    free(region);
    return rc;
}

/* ERR_NOMEM when a job of PLAN and its picture do not fit beside what the process already holds. */
static int check_memory(struct model *m, const struct plan_report *plan,
                        const struct text_to_image_params *params, struct error *err)
{
    size_t held = atomic_load(&m->mem_size), have = memory_available(), gpu = 0;
    size_t job = plan->region_bytes > held ? plan->region_bytes : 0;     /* replaces what is held */
    size_t picture = 8 * (size_t)params->width * (size_t)params->height; /* pixels, PNG, base64 */
    int rc = m->be->mem_available ? m->be->mem_available(m->be, &gpu, err) : 0;
    if (rc)
        return rc;
    if (m->be->mem_available && job > gpu + held)
        return error_set(err, ERR_NOMEM,
                         "CUDA out of memory: %d x %d needs %zu MiB on the GPU, %zu MiB are free",
                         params->width, params->height, job >> 20, (gpu + held) >> 20);
    size_t need = (m->be->mem_available ? 0 : job) + picture;
    size_t reused = job && !m->be->mem_available ? held : 0;
    size_t rest = have > SIZE_MAX - reused ? SIZE_MAX : have + reused;
    if (need > rest)
        return error_set(err, ERR_NOMEM, "%d x %d needs %zu MiB of memory, %zu MiB are free", params->width,
                         params->height, need >> 20, rest >> 20);
    return 0;
}

int text_to_image_admit(struct model *m, const struct text_to_image_params *params, struct error *err)
{
    struct plan_report plan;
    int rc = text_to_image_plan(m, params, &plan, err);
    return rc ? rc : check_memory(m, &plan, params, err);
}

int text_to_image(struct model *m, const struct text_to_image_params *params, const struct watcher *watch,
                  struct image *out, struct error *err)
{
    struct plan_report plan;
    struct run r;
    memset(out, 0, sizeof *out);
    int rc = text_to_image_plan(m, params, &plan, err);
    if (rc || (rc = check_memory(m, &plan, params, err)) ||
        (rc = model_job_memory(m, plan.region_bytes, err)))
        return rc;
    out->width = params->width;
    out->height = params->height;
    out->rgb = malloc(3 * (size_t)params->width * (size_t)params->height);
    if (!out->rgb)
        return error_set(err, ERR_NOMEM, "no memory for %d x %d pixels", params->width, params->height);
    rc = run_init(&r, m, params, m->be, &m->region, err);
    r.watch = watch;
    if (!rc)
        rc = walk(&r, out);
    scheduler_end(&r.p, &r.sched);
    m->times = r.times;
    if (rc)
        image_free(out);
    return rc;
}

void text_to_image_rules(const struct model *m, struct text_to_image_params *params)
{
    if (strcmp(m->id, "stabilityai/sd-turbo") == 0 || strcmp(m->id, "stabilityai/sdxl-turbo") == 0)
        params->guidance_scale = 0.0;
}
