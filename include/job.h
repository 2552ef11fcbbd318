/* Jobs, the bounded queue they wait in, and the one worker thread that owns the device and runs them. */
#ifndef LATENTD_JOB_H
#define LATENTD_JOB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "buffer.h"
#include "pipe.h"
#include "pipeline.h"

/* ---- Durations for the metrics ---- */

enum { HISTOGRAM_BUCKETS = 13 };
extern const double histogram_bounds[HISTOGRAM_BUCKETS]; /* seconds, 0.01 to 120 */
struct histogram {
    uint64_t bucket[HISTOGRAM_BUCKETS + 1]; /* not cumulative; the last one is above all bounds */
    double sum;
};
void histogram_observe(struct histogram *h, double seconds);
double clock_now(void); /* monotonic, seconds */

/* ---- A job ---- */

enum job_state { JOB_NEW, JOB_QUEUED, JOB_RUNNING, JOB_DONE };
/* CANCEL_SLOW: the client takes its reply too slowly to hold the device for it. */
enum cancel_reason { CANCEL_NONE, CANCEL_DISCONNECT, CANCEL_SHUTDOWN, CANCEL_SLOW, CANCEL_REASONS };

/* What a job leaves behind. */
struct job_result {
    struct error err;   /* code 0: success */
    struct buffer body; /* owned by the result */
    int images;         /* pictures in body */
    uint64_t pixels;
};

struct job {
    /* Filled in by the maker. run() works on the worker thread and asks WATCH whether to go on; finished() is
     * called once, without locks, on whichever thread ended the job; destroy() frees the job when the last
     * owner lets go of it. */
    void (*run)(struct job *job, struct model *model, const struct watcher *watch, struct job_result *result);
    void (*finished)(struct job *job);
    void (*destroy)(struct job *job);
    void *owner; /* for finished() */
    /* Where run() writes the body of a JSON reply of status 200 while it makes it, or NULL: the reply is made
     * from the result. A job that has written nothing may still fail with a status of its own; one that fails
     * later leaves a reply that breaks off. Owned by the maker. */
    struct pipe *pipe;

    /* Kept by the queue; readable once state is JOB_DONE. */
    struct job_result result;
    double queued_at, started_at, done_at; /* clock_now(); started_at 0: never started */
    enum job_state state;
    struct job *next;
    atomic_int cancelled; /* enum cancel_reason */
    atomic_int references;
};

void job_init(struct job *job); /* one reference, the maker's */
void job_get(struct job *job);
void job_put(struct job *job);

/* ---- The worker ---- */

enum worker_state { WORKER_LOADING, WORKER_READY, WORKER_FAILED };
enum refusal { REFUSED_NOT, REFUSED_FULL, REFUSED_LOADING, REFUSED_DRAINING, REFUSED_FAILED, REFUSAL_COUNT };
/* Kinds of failed jobs, for the metrics. */
enum failure { FAILURE_INVALID, FAILURE_MEMORY, FAILURE_IO, FAILURE_DEVICE, FAILURE_INTERNAL, FAILURE_COUNT };
extern const char *const failure_names[FAILURE_COUNT];

struct worker_options {
    struct backend_options backend;
    struct model_options model;
    int queue;                  /* jobs that may wait */
    double rest;                /* seconds without a job until job memory is given back */
    double stuck;               /* seconds without a step until the running job counts as hung; 0: never */
    bool warm_up;               /* see pipeline_warm_up() */
    void (*changed)(void *ctx); /* called when the state changes or a job ends */
    void *ctx;
};

struct worker_stats {
    int waiting, running;
    enum phase at;   /* of the running job; PHASE_RECEIVED: none is in a phase of its own */
    int step, steps; /* in PHASE_STEP, else 0 */
    uint64_t images, pixels, refused[REFUSAL_COUNT], cancelled[CANCEL_REASONS], failed[FAILURE_COUNT];
    struct histogram wait, generation, phase[PHASE_COUNT];
    double load_seconds; /* 0 until the model is ready */
    size_t weight_bytes; /* packed weights */
    size_t job_bytes;    /* memory kept for the next job */
    char backend[16], tier[16];
};

struct worker;

/* Starts the thread, which opens the backend and loads the model. Strings of OPT are borrowed for the
 * worker's life. */
int worker_start(struct worker **w, const struct worker_options *opt, struct error *err);
enum worker_state worker_state(struct worker *w);
/* Why the worker failed. */
void worker_error(struct worker *w, struct error *err);
/* NULL until the model is ready. */
struct model *worker_model(struct worker *w);
void worker_stats(struct worker *w, struct worker_stats *out);
bool worker_idle(struct worker *w);
/* The running job has neither entered a phase or a step nor asked whether to go on for longer than
 * options.stuck: the device hangs. */
bool worker_stuck(struct worker *w);
/* The GPU that the worker runs on: 1, or 0 when there is none (yet). */
int worker_device(struct worker *w, struct device_info *out);

/* What worker_submit would say now, so that a full queue is told before a request costs anything. A refusal
 * is counted. */
enum refusal worker_refuses(struct worker *w);
/* Queues JOB and takes a reference, or refuses. finished() may run before this returns. */
enum refusal worker_submit(struct worker *w, struct job *job);
/* A waiting job ends at once; a running one before its next step; one that is done stays as it is. */
void worker_cancel(struct worker *w, struct job *job, enum cancel_reason reason);
/* Refuses new jobs from now on. */
void worker_drain(struct worker *w);
/* Ends all waiting jobs and tells the running one to stop. */
void worker_cancel_all(struct worker *w, enum cancel_reason reason);
/* Ends the running job for its owner although the thread still computes; the result is thrown away. */
void worker_abandon(struct worker *w);
/* True when the thread has nothing left to do: drained and idle, or failed. */
bool worker_ended(struct worker *w);
/* Waits for the thread's end and frees everything; *W is NULL then. */
void worker_stop(struct worker **w);

#endif
