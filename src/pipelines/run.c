/* Around every pipeline: the plan, the memory check, the run itself. See run.h. */
#include "run.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "loras.h"
#include "safety.h"

enum { ADMIT_STEPS_MAX = 20 };

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool run_goes_on(struct run *r, enum phase phase)
{
    const struct watcher *w = r->watch;
    if (!r->p.err->code && w && w->cancelled && w->cancelled(w->ctx))
        error_set(r->p.err, ERR_CANCELLED, "cancelled before %s", phase_names[phase]);
    return !r->p.err->code;
}

bool run_enter(struct run *r, enum phase phase, int step, int steps)
{
    const struct watcher *w = r->watch;
    if (!run_goes_on(r, phase))
        return false;
    if (w && w->entered)
        w->entered(w->ctx, phase, step, steps);
    return true;
}

pass run_vae_pass(const struct run *r)
{
    pass p = r->p;
    if (!r->planning)
        p.be = r->m->vae_be;
    return p;
}

void run_phase_end(struct run *r, double *spent)
{
    if (r->q->exact_times && r->p.be->wait)
        r->p.be->wait(r->p.be, r->p.err);
    double now = seconds();
    *spent += now - r->phase_start;
    r->phase_start = now;
}

int request_steps(int64_t asked, int otherwise, struct error *err)
{
    if (asked < 1)
        return otherwise;
    if (asked > 1000000)
        return error_set(err, ERR_INVALID,
                         "`num_inference_steps` is %lld, which is more than any scheduler has",
                         (long long)asked);
    return (int)asked;
}

/* Copies of the picture in the batch of one step. */
static int guidance_parts(const struct model *m, const struct request *q)
{
    if (m->family == FAMILY_VIDEO)
        return 2;
    if (m->family == FAMILY_PIX2PIX)
        return q->guidance > 1.0 && q->image_guidance >= 1.0 ? 3 : 1;
    return q->guidance > 1.0 && unet_time_cond_proj_dim(m->unet) == 0 ? 2 : 1;
}

/* The steps of the run. No step at all is an error: diffusers fails on an empty batch, later and without
 * words. The words here are those of its pipelines that check. */
static int start_scheduler(struct run *r)
{
    const struct request *q = r->q;
    struct error *err = r->p.err;
    int rc = scheduler_start(&r->sched, r->m->scheduler, q->steps, err);
    if (rc || (q->first_step > 0 && (rc = scheduler_skip(r->sched, q->first_step, err))))
        return rc;
    if (scheduler_calls(r->sched) < 1)
        return error_set(err, ERR_INVALID,
                         "After adjusting the num_inference_steps by strength parameter, the number of "
                         "pipeline steps is %d which is < 1 and not appropriate for this pipeline",
                         q->steps - q->first_step);
    return 0;
}

int run_to_rgb8(struct run *r, tensor y, struct image *out)
{
    if (!r->p.err->code && (y.w != out->width || y.h != out->height))
        return error_set(r->p.err, ERR_INTERNAL, "the network made %d x %d for a picture of %d x %d", y.w,
                         y.h, out->width, out->height);
    return to_rgb8(&r->p, y, out->rgb);
}

/* What a pipeline of one picture ends with. */
static void finish_picture(struct run *r, tensor y, struct image *out)
{
    if (out)
        run_to_rgb8(r, y, out);
    tensor_free(&r->p, &y);
    safety_apply(&r->p, r->m->safety, r->q->safety_check, out ? out : &(struct image){0});
    run_phase_end(r, &r->times.decode);
}

/* One walk. PLANNING: no pixels are kept, OUT is NULL; it is also for videos. */
static int walk(struct model *m, const struct request *q, const struct watcher *watch, pass p, bool planning,
                struct image *out)
{
    struct run r = {.p = p,
                    .m = m,
                    .q = q,
                    .watch = watch,
                    .planning = planning,
                    .parts = guidance_parts(m, q),
                    .noise = {.seed = (uint64_t)q->seed, .round = m->noise_dtype},
                    .phase_start = seconds()};
    int rc = start_scheduler(&r);
    if (!rc && q->call_video)
        q->call_video(&r);
    else if (!rc)
        finish_picture(&r, q->call(&r), out);
    scheduler_end(&r.p, &r.sched);
    if (!planning)
        m->times = r.times;
    return p.err->code;
}

int request_plan(struct model *m, const struct request *q, struct plan_report *report, struct error *err)
{
    struct backend *be = NULL;
    struct region *region = malloc(sizeof *region);
    if (!region)
        return error_set(err, ERR_NOMEM, "no memory to plan");
    int rc = backend_open(&be, &(struct backend_options){.kind = "plan"}, err);
    if (rc)
        goto out;
    region_init(region, NULL, 0);
    plan_set_target(be, m->be);
    rc = walk(m, q, NULL, (pass){.be = be, .mem = region, .err = err}, true, NULL);
    *report = *plan_report(be);
    report->region_bytes = region->peak;
out:
    backend_close(&be);
    free(region);
    return rc;
}

/* ERR_NOMEM when a job of PLAN and its picture do not fit beside what the process already holds. */
static int check_memory(struct model *m, const struct plan_report *plan, const struct request *q,
                        struct error *err)
{
    size_t held = atomic_load(&m->mem_size), have = memory_available(m->be), gpu = 0;
    size_t job = plan->region_bytes > held ? plan->region_bytes : 0; /* replaces what is held */
    size_t pixels = (size_t)q->width * (size_t)q->height;
    size_t picture = (q->image ? 32 : 8) * pixels; /* pixels, PNG, base64; an input is also floats, twice */
    if (q->video) /* which is resized for the image encoder from its own size */
        picture += 24 * (size_t)q->image->width * (size_t)q->image->height;
    int rc = m->be->mem_available ? m->be->mem_available(m->be, &gpu, err) : 0;
    if (rc)
        return rc;
    if (m->be->mem_available && job > gpu + held)
        return error_set(err, ERR_NOMEM,
                         "CUDA out of memory: %d x %d needs %zu MiB on the GPU, %zu MiB are free", q->width,
                         q->height, job >> 20, (gpu + held) >> 20);
    size_t need = (m->be->mem_available ? 0 : job) + picture;
    size_t reused = job && !m->be->mem_available ? held : 0;
    size_t rest = have > SIZE_MAX - reused ? SIZE_MAX : have + reused;
    if (rest > m->be->memory_max)
        rest = m->be->memory_max;
    if (need > rest)
        return error_set(err, ERR_NOMEM, "%d x %d needs %zu MiB of memory, %zu MiB are free", q->width,
                         q->height, need >> 20, rest >> 20);
    return 0;
}

/* A plan's cost grows with the steps but its memory hardly does, so a long run is tried with few of them;
 * request_run plans all. */
int request_admit(struct model *m, const struct request *q, struct error *err)
{
    struct plan_report plan;
    struct request trial = *q;
    if (q->steps - q->first_step > ADMIT_STEPS_MAX) {
        trial.steps = ADMIT_STEPS_MAX;
        trial.first_step = 0;
    }
    int rc = request_plan(m, &trial, &plan, err);
    return rc ? rc : check_memory(m, &plan, q, err);
}

int request_run(struct model *m, const struct request *q, const struct watcher *watch, struct image *out,
                struct error *err)
{
    struct plan_report plan;
    int rc = request_plan(m, q, &plan, err);
    if (rc == 0)
        model_trim(m, plan.region_bytes);
    if (rc || (rc = apply_loras(m, q->loras, err)) || (rc = check_memory(m, &plan, q, err)) ||
        (rc = model_job_memory(m, plan.region_bytes, err)))
        return rc;
    if (q->call_video)
        return walk(m, q, watch, (pass){.be = m->be, .mem = &m->region, .err = err}, false, NULL);
    out->width = q->width;
    out->height = q->height;
    out->rgb = malloc(3 * (size_t)q->width * (size_t)q->height);
    if (!out->rgb)
        return error_set(err, ERR_NOMEM, "no memory for %d x %d pixels", q->width, q->height);
    rc = walk(m, q, watch, (pass){.be = m->be, .mem = &m->region, .err = err}, false, out);
    if (rc)
        image_free(out);
    return rc;
}
