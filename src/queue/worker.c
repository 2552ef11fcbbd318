/* The worker: one thread that opens the backend, loads the model and runs one job after another. It alone
 * touches the device. Everything that several threads see is behind one mutex, which is never held while a
 * job runs or while a job's finished() is called. See job.h. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "job.h"
#include "log.h"
#include "packed.h"

const char *const failure_names[FAILURE_COUNT] = {"invalid", "oom", "io", "device", "internal"};

struct worker {
    struct worker_options opt;
    pthread_t thread;
    pthread_t saver; /* where SAVING says so; started and joined by the worker's thread */
    bool saving;
    atomic_bool stop_saving;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    enum worker_state state;
    struct error err;
    bool draining, ended;
    struct job *first, *last; /* waiting, in order */
    struct job *running;
    struct backend *backend;
    struct model *model;
    struct worker_stats stats;
    double moved; /* when the running job was taken, entered a phase or a step, or asked whether to go on */
    /* of the running job, touched by the worker thread alone */
    enum phase phase;
    double phase_since;
};

static void changed(struct worker *w)
{
    if (w->opt.changed)
        w->opt.changed(w->opt.ctx);
}

/* ---- What the pipeline tells while it runs ---- */

/* Counts the phase that is over and shows where the job is now: in step STEP of STEPS of PHASE. */
static void phase_next(struct worker *w, double now, enum phase phase, int step, int steps)
{
    pthread_mutex_lock(&w->lock);
    if (w->phase > PHASE_STARTED)
        histogram_observe(&w->stats.phase[w->phase], now - w->phase_since);
    w->moved = now;
    w->stats.at = phase;
    w->stats.step = step;
    w->stats.steps = steps;
    pthread_mutex_unlock(&w->lock);
}

static void phase_entered(void *ctx, enum phase phase, int step, int steps)
{
    struct worker *w = ctx;
    double now = clock_now();

    phase_next(w, now, phase, step, steps);
    w->phase = phase;
    w->phase_since = now;
    if (step)
        log_debug("phase=%s step=%d/%d", phase_names[phase], step, steps);
    else
        log_debug("phase=%s", phase_names[phase]);
}

/* Asked on the worker's thread alone: between the parts of a step, and all the time while the reply waits for
 * its client. What hangs does not ask. */
static bool job_cancelled(void *ctx)
{
    struct worker *w = ctx;

    pthread_mutex_lock(&w->lock);
    w->moved = clock_now();
    pthread_mutex_unlock(&w->lock);
    return atomic_load(&w->running->cancelled) != CANCEL_NONE;
}

/* ---- The ends of a job ---- */

static enum failure failure_kind(int code)
{
    switch (code) {
    case ERR_INVALID:
    case ERR_LORA:
        return FAILURE_INVALID;
    case ERR_NOMEM:
        return FAILURE_MEMORY;
    case ERR_IO:
        return FAILURE_IO;
    case ERR_DEVICE:
        return FAILURE_DEVICE;
    default:
        return FAILURE_INTERNAL;
    }
}

/* Counts JOB as done. The lock is held. */
static void count_end(struct worker *w, const struct job *job)
{
    struct worker_stats *st = &w->stats;
    int reason = atomic_load(&job->cancelled);

    if (job->result.err.code == ERR_CANCELLED) {
        st->cancelled[reason]++;
    } else if (job->result.err.code) {
        st->failed[failure_kind(job->result.err.code)]++;
    } else {
        st->images += (uint64_t)job->result.images;
        st->pixels += job->result.pixels;
        histogram_observe(&st->generation, job->done_at - job->started_at);
    }
}

/* Marks JOB as done with RESULT, whose body it takes. The lock is held. Returns false when it was done before
 * (abandoned). */
static bool mark_done(struct worker *w, struct job *job, struct job_result *result)
{
    if (job->state == JOB_DONE)
        return false;
    job->state = JOB_DONE;
    job->done_at = clock_now();
    job->result = *result;
    memset(&result->body, 0, sizeof(result->body));
    count_end(w, job);
    return true;
}

static bool mark_cancelled(struct worker *w, struct job *job, enum cancel_reason reason)
{
    struct job_result result = {0};

    atomic_store(&job->cancelled, (int)reason);
    error_set(&result.err, ERR_CANCELLED, "cancelled");
    return mark_done(w, job, &result);
}

/* Tells the owner and lets go of the queue's reference. */
static void announce(struct worker *w, struct job *job)
{
    job->finished(job);
    job_put(job);
    changed(w);
}

/* ---- The thread ---- */

/* Waits for a job, up to SECONDS. The lock is held. */
static void wait_for_work(struct worker *w, double seconds)
{
    struct timespec end;
    double when = clock_now() + seconds;

    end.tv_sec = (time_t)when;
    end.tv_nsec = (long)((when - (double)end.tv_sec) * 1e9);
    while (!w->first && !w->draining)
        if (pthread_cond_timedwait(&w->wake, &w->lock, &end))
            return;
}

/* Nobody has asked for a while: the memory of jobs goes back to the system. The lock is held before and
 * after. */
static void rest(struct worker *w)
{
    pthread_mutex_unlock(&w->lock);
    log_debug("no job for %g s: %zu MiB of job memory are given back", w->opt.rest,
              model_job_bytes(w->model) >> 20);
    model_rest(w->model);
    pthread_mutex_lock(&w->lock);
    w->stats.job_bytes = 0;
}

static struct job *take(struct worker *w)
{
    struct job *job;

    pthread_mutex_lock(&w->lock);
    wait_for_work(w, w->opt.rest);
    if (!w->first && !w->draining && w->stats.job_bytes > 0)
        rest(w);
    while (!w->first && !w->draining)
        pthread_cond_wait(&w->wake, &w->lock);
    job = w->first;
    if (job) {
        w->first = job->next;
        if (!w->first)
            w->last = NULL;
        w->stats.waiting--;
        w->stats.running = 1;
        w->running = job;
        job->state = JOB_RUNNING;
        job->started_at = w->moved = clock_now();
        histogram_observe(&w->stats.wait, job->started_at - job->queued_at);
        job_get(job); /* the thread's own, since an abandoned job may lose its owner while it runs */
    }
    pthread_mutex_unlock(&w->lock);
    return job;
}

static void run_job(struct worker *w, struct job *job)
{
    struct watcher watch = {phase_entered, job_cancelled, w};
    struct job_result result = {0};
    bool fresh;

    w->phase = PHASE_STARTED;
    job->run(job, w->model, &watch, &result);
    phase_next(w, clock_now(), PHASE_RECEIVED, 0, 0);
    pthread_mutex_lock(&w->lock);
    w->stats.weight_bytes = w->backend->weight_bytes;
    w->stats.job_bytes = model_job_bytes(w->model);
    if (result.err.code == ERR_DEVICE) {
        w->state = WORKER_FAILED;
        w->err = result.err;
    }
    w->stats.running = 0;
    w->running = NULL;
    fresh = mark_done(w, job, &result);
    pthread_mutex_unlock(&w->lock);
    buffer_free(&result.body);
    if (fresh)
        announce(w, job);
    job_put(job);
}

static bool load_cancelled(void *ctx)
{
    struct worker *w = ctx;

    pthread_mutex_lock(&w->lock);
    bool draining = w->draining;
    pthread_mutex_unlock(&w->lock);
    return draining;
}

static int warm_up(struct worker *w, struct error *err)
{
    struct watcher watch = {.cancelled = load_cancelled, .ctx = w};
    double start = clock_now();
    int rc = pipeline_warm_up(w->model, w->opt.model.pipeline, &watch, err);

    if (rc)
        return error_prefix(err, "warm-up (SFAST, TORCH_COMPILE)");
    log_info("warmed up in %.1f s", clock_now() - start);
    return 0;
}

static int load(struct worker *w, struct error *err)
{
    double start = clock_now();
    int rc = backend_open(&w->backend, &w->opt.backend, err);

    if (rc == 0)
        rc = model_load(&w->model, w->backend, &w->opt.model, err);
    if (rc == 0 && w->opt.warm_up)
        rc = warm_up(w, err);
    pthread_mutex_lock(&w->lock);
    if (rc) {
        w->state = WORKER_FAILED;
        w->err = *err;
    } else {
        w->state = WORKER_READY;
        w->stats.load_seconds = clock_now() - start;
        w->stats.weight_bytes = w->backend->weight_bytes;
        snprintf(w->stats.backend, sizeof(w->stats.backend), "%s", w->backend->name);
        snprintf(w->stats.tier, sizeof(w->stats.tier), "%s", w->backend->tier ? w->backend->tier : "");
    }
    pthread_mutex_unlock(&w->lock);
    return rc;
}

/* Keeps what was packed for the next start, while this one serves: at the lowest priority. */
static void *keep_packed(void *arg)
{
    struct worker *w = arg;
    struct error err = {0};
    double start = clock_now();

    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), 19); /* without it the writing is only less polite */
    int files = packed_save(w->backend, &w->stop_saving, &err);
    if (files < 0)
        log_warning("packed weights are not kept for the next start: %s", err.msg);
    else if (files > 0)
        log_info("packed weights of %d components are kept for the next start (%.1f s)", files,
                 clock_now() - start);
    return NULL;
}

static void *work(void *arg)
{
    struct worker *w = arg;
    struct error err = {0};
    struct job *job;

    pthread_setname_np(pthread_self(), "worker"); /* for top -H; threads that it starts inherit the name */
    if (load(w, &err) == 0) {
        log_info("model %s is ready after %.1f s on %s %s", model_id(w->model), w->stats.load_seconds,
                 w->stats.backend, w->stats.tier);
        changed(w);
        w->saving = pthread_create(&w->saver, NULL, keep_packed, w) == 0;
        while (worker_state(w) == WORKER_READY && (job = take(w)) != NULL)
            run_job(w, job);
    }
    if (worker_state(w) == WORKER_FAILED)
        worker_cancel_all(w, CANCEL_SHUTDOWN);
    atomic_store(&w->stop_saving, true);
    if (w->saving)
        pthread_join(w->saver, NULL);
    pthread_mutex_lock(&w->lock);
    w->ended = true;
    pthread_mutex_unlock(&w->lock);
    changed(w);
    return NULL;
}

/* ---- For the other threads ---- */

int worker_start(struct worker **out, const struct worker_options *opt, struct error *err)
{
    struct worker *w = calloc(1, sizeof(*w));
    pthread_condattr_t monotonic;
    int rc;

    *out = NULL;
    if (!w)
        return error_set(err, ERR_NOMEM, "no memory for the worker");
    w->opt = *opt;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC); /* that of clock_now() */
    pthread_cond_init(&w->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    rc = pthread_create(&w->thread, NULL, work, w);
    if (rc) {
        free(w);
        return error_set(err, ERR_IO, "no thread for the worker: %s", strerror(rc));
    }
    *out = w;
    return 0;
}

int worker_device(struct worker *w, struct device_info *out)
{
    pthread_mutex_lock(&w->lock);
    struct backend *be = w->state == WORKER_READY ? w->backend : NULL;
    pthread_mutex_unlock(&w->lock);
    return be && be->device_info ? be->device_info(be, out) : 0;
}

enum worker_state worker_state(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    enum worker_state state = w->state;
    pthread_mutex_unlock(&w->lock);
    return state;
}

void worker_error(struct worker *w, struct error *err)
{
    pthread_mutex_lock(&w->lock);
    *err = w->err;
    pthread_mutex_unlock(&w->lock);
}

struct model *worker_model(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    struct model *model = w->state == WORKER_READY ? w->model : NULL;
    pthread_mutex_unlock(&w->lock);
    return model;
}

void worker_stats(struct worker *w, struct worker_stats *out)
{
    pthread_mutex_lock(&w->lock);
    *out = w->stats;
    pthread_mutex_unlock(&w->lock);
}

bool worker_idle(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    bool idle = !w->first && (!w->running || w->running->state == JOB_DONE);
    pthread_mutex_unlock(&w->lock);
    return idle;
}

bool worker_stuck(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    bool stuck = w->running && w->opt.stuck > 0 && clock_now() - w->moved > w->opt.stuck;
    pthread_mutex_unlock(&w->lock);
    return stuck;
}

static enum refusal refuse(const struct worker *w)
{
    if (w->draining)
        return REFUSED_DRAINING;
    if (w->state != WORKER_READY)
        return w->state == WORKER_LOADING ? REFUSED_LOADING : REFUSED_FAILED;
    /* a free worker takes one besides those that may wait */
    return w->stats.waiting + w->stats.running > w->opt.queue ? REFUSED_FULL : REFUSED_NOT;
}

enum refusal worker_refuses(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    enum refusal why = refuse(w);
    if (why)
        w->stats.refused[why]++;
    pthread_mutex_unlock(&w->lock);
    return why;
}

enum refusal worker_submit(struct worker *w, struct job *job)
{
    pthread_mutex_lock(&w->lock);
    enum refusal why = refuse(w);
    if (why) {
        w->stats.refused[why]++;
    } else {
        job_get(job);
        job->state = JOB_QUEUED;
        job->queued_at = clock_now();
        job->next = NULL;
        if (w->last)
            w->last->next = job;
        else
            w->first = job;
        w->last = job;
        w->stats.waiting++;
        pthread_cond_signal(&w->wake);
    }
    pthread_mutex_unlock(&w->lock);
    return why;
}

/* Takes JOB out of the queue; false when it is not there. The lock is held. */
static bool unlink_job(struct worker *w, struct job *job)
{
    struct job *before = NULL;

    for (struct job *j = w->first; j; before = j, j = j->next) {
        if (j != job)
            continue;
        if (before)
            before->next = j->next;
        else
            w->first = j->next;
        if (w->last == j)
            w->last = before;
        w->stats.waiting--;
        return true;
    }
    return false;
}

void worker_cancel(struct worker *w, struct job *job, enum cancel_reason reason)
{
    bool ended = false;
    int none = CANCEL_NONE;

    pthread_mutex_lock(&w->lock);
    if (unlink_job(w, job))
        ended = mark_cancelled(w, job, reason);
    else if (job->state != JOB_DONE)
        atomic_compare_exchange_strong(&job->cancelled, &none, (int)reason);
    pthread_mutex_unlock(&w->lock);
    if (ended)
        announce(w, job);
}

void worker_drain(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    w->draining = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

void worker_cancel_all(struct worker *w, enum cancel_reason reason)
{
    for (;;) {
        pthread_mutex_lock(&w->lock);
        struct job *job = w->first;
        if (job) {
            unlink_job(w, job);
            mark_cancelled(w, job, reason);
        } else if (w->running) {
            int none = CANCEL_NONE;
            atomic_compare_exchange_strong(&w->running->cancelled, &none, (int)reason);
        }
        pthread_mutex_unlock(&w->lock);
        if (!job)
            return;
        announce(w, job);
    }
}

void worker_abandon(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    struct job *job = w->running;
    bool ended = job && mark_cancelled(w, job, CANCEL_SHUTDOWN);
    pthread_mutex_unlock(&w->lock);
    if (ended)
        announce(w, job);
}

bool worker_ended(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    bool ended = w->ended;
    pthread_mutex_unlock(&w->lock);
    return ended;
}

void worker_stop(struct worker **out)
{
    struct worker *w = *out;

    if (!w)
        return;
    pthread_join(w->thread, NULL);
    if (w->model)
        model_close(&w->model);
    if (w->backend)
        backend_close(&w->backend);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->wake);
    free(w);
    *out = NULL;
}
