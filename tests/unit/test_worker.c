/* The worker's keeping of job memory: one large picture does not hold its memory for ever. */
#include <pthread.h>
#include <stdio.h>
#include <time.h>

#include "job.h"
#include "log.h"
#include "test.h"

/* A picture of SIDE x SIDE, on the stack of who waits for it. */
struct picture {
    struct job job;
    int side, code;
    char words[200];
    atomic_bool done;
};

static void run(struct job *job, struct model *model, const struct watcher *watch, struct job_result *result)
{
    struct picture *p = job->owner;
    struct image im = {0};
    struct text_to_image_params q = {
        .prompt = "a", .width = p->side, .height = p->side, .guidance_scale = 1, .steps = 1, .seed = 1};
    text_to_image(model, &q, watch, &im, &result->err);
    p->code = result->err.code;
    snprintf(p->words, sizeof p->words, "%.190s", result->err.msg);
    image_free(&im);
}

static void finished(struct job *job)
{
    struct picture *p = job->owner;
    atomic_store(&p->done, true);
}

static void destroy(struct job *job)
{
    (void)job;
}

static void nap(void)
{
    nanosleep(&(struct timespec){0, 1000000}, NULL);
}

static bool make(struct worker *w, int side)
{
    struct picture p = {.side = side};
    job_init(&p.job);
    p.job.run = run;
    p.job.finished = finished;
    p.job.destroy = destroy;
    p.job.owner = &p;
    if (!CHECK(worker_submit(w, &p.job) == REFUSED_NOT))
        return false;
    while (!atomic_load(&p.done) || atomic_load(&p.job.references) > 1)
        nap();
    return CHECK(p.code == 0, "%s", p.words);
}

static size_t held(struct worker *w)
{
    struct worker_stats stats;
    worker_stats(w, &stats);
    return stats.job_bytes;
}

static bool open_worker(struct worker **w, double seconds)
{
    struct error err = {0};
    struct worker_options opt = {.backend = {.kind = "cpu", .threads = 1},
                                 .model = {.dir = "tests/api/data", .id = "latentd/tiny"},
                                 .queue = 4,
                                 .rest = seconds};
    log_set_level(LOG_LEVEL_ERROR);
    if (!CHECK(worker_start(w, &opt, &err) == 0, "%s", err.msg))
        return false;
    while (worker_state(*w) == WORKER_LOADING)
        nap();
    worker_error(*w, &err);
    return CHECK(worker_state(*w) == WORKER_READY, "%s", err.msg);
}

static void close_worker(struct worker **w)
{
    worker_drain(*w);
    worker_stop(w);
}

TEST(a_large_picture_gives_its_memory_back_after_a_few_small_ones)
{
    struct worker *w;
    if (!open_worker(&w, 3600))
        return;
    make(w, 32);
    size_t small = held(w);
    make(w, 256);
    size_t large = held(w);
    CHECK(small > 0 && large > 10 * small, "%zu and %zu bytes", small, large);
    for (int i = 0; i < 3; i++) {
        make(w, 32);
        CHECK(held(w) == large, "small picture %d: %zu bytes", i, held(w));
    }
    make(w, 256); /* sizes that alternate keep what they need */
    for (int i = 0; i < 4; i++) {
        CHECK(held(w) == large, "small picture %d after the second large one: %zu bytes", i, held(w));
        make(w, 32);
    }
    CHECK(held(w) == small, "%zu bytes are held", held(w));
    make(w, 256);
    CHECK(held(w) == large, "%zu bytes", held(w));
    close_worker(&w);
}

TEST(without_jobs_all_of_it_is_given_back)
{
    struct worker *w;
    if (!open_worker(&w, 0.05))
        return;
    make(w, 64);
    for (int i = 0; i < 5000 && held(w) > 0; i++)
        nap();
    CHECK(held(w) == 0, "%zu bytes are held", held(w));
    make(w, 64);
    close_worker(&w);
}

TEST_MAIN()
