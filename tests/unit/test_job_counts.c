/* queue/worker.c with jobs that do nothing: what it counts of their ends and of what it refuses, each by its
 * change. */
#include "test.h"

#include <pthread.h>
#include <time.h>

#include "job.h"

struct fake {
    struct job job;
    int code, images; /* how it ends */
    atomic_bool hold; /* …once this is false, or the job is cancelled */
    bool hung;        /* meanwhile it does not ask whether it is */
    atomic_bool finished;
};

static void run(struct job *job, struct model *model, const struct watcher *watch, struct job_result *result)
{
    struct fake *f = (struct fake *)job;

    (void)model;
    while (atomic_load(&f->hold) && (f->hung || !watch->cancelled(watch->ctx)))
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    if (job->pipe)
        pipe_write(job->pipe, "reply", 5, watch, &result->err);
    if (watch->cancelled(watch->ctx))
        error_set(&result->err, ERR_CANCELLED, "cancelled");
    else if (f->code)
        error_set(&result->err, f->code, "as told");
    result->images = f->images;
    result->pixels = 100 * (uint64_t)f->images;
}

static void finished(struct job *job)
{
    atomic_store(&((struct fake *)job)->finished, true);
}

static void destroy(struct job *job)
{
    (void)job; /* they are the test's own */
}

static void make(struct fake *f, int code, int images, bool hold)
{
    memset(f, 0, sizeof(*f));
    f->job.run = run;
    f->job.finished = finished;
    f->job.destroy = destroy;
    f->code = code;
    f->images = images;
    atomic_store(&f->hold, hold);
    job_init(&f->job);
}

/* Waits up to 10 s until *FLAG. */
static bool soon(atomic_bool *flag)
{
    for (int i = 0; i < 10000 && !atomic_load(flag); i++)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    return atomic_load(flag);
}

static struct worker *start(double stuck)
{
    struct worker_options opt = {
        .backend = {.kind = "ref", .threads = 1},
        .model = {.pipeline = PIPELINE_TEXT_TO_IMAGE, .dir = "tests/api/data", .id = "latentd/tiny"},
        .queue = 1,
        .stuck = stuck};
    struct error err = {0};
    struct worker *w;

    CHECK(worker_start(&w, &opt, &err) == 0, "%s", err.msg);
    for (int i = 0; i < 20000 && worker_state(w) == WORKER_LOADING; i++)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    CHECK(worker_state(w) == WORKER_READY);
    return w;
}

static struct worker_stats stats(struct worker *w)
{
    struct worker_stats st;

    worker_stats(w, &st);
    return st;
}

/* Runs one job to its end. */
static void one(struct worker *w, int code, int images)
{
    struct fake f;

    make(&f, code, images, false);
    CHECK(worker_submit(w, &f.job) == REFUSED_NOT);
    CHECK(soon(&f.finished));
    job_put(&f.job);
}

TEST(ends_are_counted_by_their_kind)
{
    static const struct {
        int code;
        enum failure kind;
    } ends[] = {{ERR_INVALID, FAILURE_INVALID}, {ERR_LORA, FAILURE_INVALID},    {ERR_NOMEM, FAILURE_MEMORY},
                {ERR_IO, FAILURE_IO},           {ERR_FORMAT, FAILURE_INTERNAL}, {ERR_DEVICE, FAILURE_DEVICE}};
    struct worker *w = start(0.05);

    one(w, 0, 3);
    struct worker_stats st = stats(w);
    CHECK(st.images == 3 && st.pixels == 300 && st.cancelled[CANCEL_SHUTDOWN] == 0);
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
        uint64_t before[FAILURE_COUNT];
        memcpy(before, st.failed, sizeof(before));
        one(w, ends[i].code, 1);
        st = stats(w);
        for (int k = 0; k < FAILURE_COUNT; k++)
            CHECK(st.failed[k] == before[k] + (k == (int)ends[i].kind), "code %d: %s", ends[i].code,
                  failure_names[k]);
    }
    CHECK(st.images == 3 && st.pixels == 300, "failed jobs made pictures");
    /* the last one was the device's: nothing is taken any more */
    CHECK(worker_state(w) == WORKER_FAILED && worker_refuses(w) == REFUSED_FAILED);
    CHECK(stats(w).refused[REFUSED_FAILED] == 1);
    worker_stop(&w);
}

TEST(the_end_is_counted)
{
    struct fake f[3];
    struct worker *w = start(0.05);

    for (int i = 0; i < 3; i++)
        make(&f[i], 0, 1, true);
    CHECK(worker_submit(w, &f[0].job) == REFUSED_NOT);
    CHECK(worker_submit(w, &f[1].job) == REFUSED_NOT);
    CHECK(worker_submit(w, &f[2].job) == REFUSED_FULL && stats(w).refused[REFUSED_FULL] == 1);
    worker_drain(w);
    CHECK(worker_submit(w, &f[2].job) == REFUSED_DRAINING && stats(w).refused[REFUSED_DRAINING] == 1);
    worker_cancel_all(w, CANCEL_SHUTDOWN);
    CHECK(soon(&f[0].finished) && soon(&f[1].finished));
    CHECK(stats(w).cancelled[CANCEL_SHUTDOWN] == 2 && stats(w).images == 0);
    for (int i = 0; i < 3; i++)
        job_put(&f[i].job);
    worker_stop(&w);
}

/* 0.05 s without a step is too long here; without a job nothing hangs. */
TEST(a_job_without_steps_hangs)
{
    struct fake f;
    struct worker *w = start(0.05);

    make(&f, 0, 1, true);
    f.hung = true;
    nanosleep(&(struct timespec){0, 100000000}, NULL);
    CHECK(!worker_stuck(w));
    CHECK(worker_submit(w, &f.job) == REFUSED_NOT);
    nanosleep(&(struct timespec){0, 200000000}, NULL);
    CHECK(worker_stuck(w));
    atomic_store(&f.hold, false);
    CHECK(soon(&f.finished) && !worker_stuck(w));
    job_put(&f.job);
    worker_drain(w);
    worker_stop(&w);
}

/* Its client has a time of its own. */
TEST(a_job_whose_reply_waits_for_its_client_does_not_hang)
{
    struct fake f;
    struct error err = {0};
    struct worker *w = start(1);
    char reply[8];

    make(&f, 0, 1, false);
    CHECK(pipe_open(&f.job.pipe, 2, &err) == 0, "%s", err.msg);
    CHECK(worker_submit(w, &f.job) == REFUSED_NOT);
    nanosleep(&(struct timespec){2, 0}, NULL);
    CHECK(!worker_stuck(w) && !atomic_load(&f.finished));
    for (int n = 0; n < 5 && CHECK(!atomic_load(&f.finished) || pipe_ready(f.job.pipe));) {
        ssize_t got = pipe_read(f.job.pipe, reply, sizeof(reply));
        n += got > 0 ? (int)got : 0;
    }
    CHECK(soon(&f.finished));
    pipe_close(&f.job.pipe);
    job_put(&f.job);
    worker_drain(w);
    worker_stop(&w);
}

TEST_MAIN()
