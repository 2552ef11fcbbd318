/* What the halves of `latentd bench` share. Private to src/commands. */
#ifndef LATENTD_COMMANDS_BENCH_H
#define LATENTD_COMMANDS_BENCH_H

#include "plan.h"
#include "session.h"

struct bench_options {
    const char *pipeline, *model_id, *isa, *precision;
    enum pipeline_kind kind;
    long runs, warmup, batch, steps, width, height;
    double guidance;
    bool json;
};

/* One run: a batch of pictures, or of videos. */
struct bench_sample {
    double seconds, cpu_seconds; /* on the clock; of all threads of the process */
    struct phase_times phase;    /* sums over the batch */
    double encode;               /* PNG */
};

/* What was measured, and of what. */
struct bench_result {
    const struct bench_options *options;
    const struct session *session;
    int width, height, outputs; /* of a run: pictures, or frames */
    long long steps;
    double guidance;
    struct plan_report plan; /* of one picture or video */
    double peak;             /* FLOP/s; 0: unknown */
    char peak_what[100];
    const struct bench_sample *warmup, *run; /* [options.warmup], [options.runs] */
};

/* The lines of the ai-runner's bench.py and more, piece by piece; and the whole as one line of JSON. */
void bench_print_start(const struct bench_result *r);
void bench_print_run(const struct bench_result *r, int i, const struct bench_sample *s);
void bench_print_aggregate(const struct bench_result *r);
int bench_print_json(const struct bench_result *r);

#endif
