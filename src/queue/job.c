/* A job's references, and the histograms that count how long things took. See job.h. */
#include <string.h>
#include <time.h>

#include "job.h"

const double histogram_bounds[HISTOGRAM_BUCKETS] = {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,
                                                    2.5,  5,     10,   30,  60,   120};

void histogram_observe(struct histogram *h, double seconds)
{
    int i = 0;

    while (i < HISTOGRAM_BUCKETS && seconds > histogram_bounds[i])
        i++;
    h->bucket[i]++;
    h->sum += seconds;
}

double clock_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void job_init(struct job *job)
{
    memset(&job->result, 0, sizeof(job->result));
    job->state = JOB_NEW;
    job->next = NULL;
    job->pipe = NULL;
    job->queued_at = job->started_at = job->done_at = 0;
    atomic_init(&job->cancelled, CANCEL_NONE);
    atomic_init(&job->references, 1);
}

void job_get(struct job *job)
{
    atomic_fetch_add(&job->references, 1);
}

void job_put(struct job *job)
{
    if (atomic_fetch_sub(&job->references, 1) != 1)
        return;
    buffer_free(&job->result.body);
    job->destroy(job);
}
