/* Group norm (with and without SiLU) and layer norm, in fp32 whatever the storage.
 *
 * Bytes: group norm reads x twice and writes it once; it is bound by memory (512 x 512 x 128 fp32: 400 MB).
 * Sums are taken a channel at a time, so that vectors run along channels whatever the group size, and in
 * double (bf16: a few rows exactly, then in double), so that a large mean does not cancel the variance away.
 * Rows are cut into chunks by the shape alone; each chunk's sums are kept apart and added in order, so the
 * result does not depend on the threads. Where the convolution before has kept its output's sums (struct
 * kept_sums), x is not read for them.
 */
#include <math.h>
#include <string.h>

#include "../ref/ref.h"
#include "thread_pool.h"
#include "tier.h"

enum { CHUNKS_MAX = 128, CHUNK_ROWS = 16 }; /* most chunks of a picture; fewest rows in one */

struct job {
    const struct row_ops *rows;
    tensor y, x;
    const float *gamma, *beta;
    int groups;
    float eps;
    bool act;
    int chunks;                   /* of a picture's rows */
    int n;                        /* picture */
    const struct kept_sums *kept; /* of x; NULL: none */
    double *partial;              /* [chunks][2][c]: sums and sums of squares */
    float *scale, *shift;         /* [c] */
};

static size_t chunk_first(const struct job *job, int chunk)
{
    size_t rows = (size_t)job->x.h * (size_t)job->x.w;
    return rows * (size_t)chunk / (size_t)job->chunks;
}

static const char *row_of(tensor x, int n, size_t row)
{
    size_t at = (size_t)n * (size_t)x.h * (size_t)x.w + row;
    return (const char *)x.data + at * (size_t)x.ld * dtype_size(x.dtype);
}

static void sum_chunk(void *ctx, int chunk, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    const size_t c = (size_t)job->x.c;
    double *sum = job->partial + (size_t)chunk * 2 * c;
    size_t first = chunk_first(job, chunk), end = chunk_first(job, chunk + 1);
    memset(sum, 0, 2 * c * sizeof *sum);
    job->rows->channel_sums(row_of(job->x, job->n, first), job->x.dtype,
                            (size_t)job->x.ld * dtype_size(job->x.dtype), (int)(end - first), job->x.c, sum,
                            sum + c);
}

float *keep_sums(struct backend *be, tensor y, int parts)
{
    struct kept_sums *kept = &((struct cpu_state *)be->state)->kept;
    if (y.n != 1 || y.c % KEPT_PANEL != 0 || (size_t)parts * (size_t)y.c * 2 > KEPT_FLOATS)
        return NULL;
    if (++be->sums == 0) /* names none */
        be->sums = 1;
    *kept = (struct kept_sums){be->sums, y.h, y.w, y.c, parts, kept->at};
    return kept->at;
}

/* The same from what the convolution before has kept. */
static void add_kept(void *ctx, int chunk, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    const struct kept_sums *kept = job->kept;
    const size_t c = (size_t)job->x.c;
    double *sum = job->partial + (size_t)chunk * 2 * c;
    memset(sum, 0, 2 * c * sizeof *sum);
    const int first = kept->parts * chunk / job->chunks, end = kept->parts * (chunk + 1) / job->chunks;
    const float *at = kept->at + (size_t)first * 2 * c;
    for (int i = first; i < end; i++)
        for (size_t p = 0; p < c; p += KEPT_PANEL, at += 2 * KEPT_PANEL)
            for (size_t j = 0; j < KEPT_PANEL; j++) {
                sum[p + j] += (double)at[j];
                sum[c + p + j] += (double)at[KEPT_PANEL + j];
            }
}

static void take_sums(struct backend *be, struct job *job)
{
    if (!job->kept) {
        pool_run(be->pool, job->chunks, sum_chunk, job);
        return;
    }
    job->chunks = job->chunks < job->kept->parts ? job->chunks : job->kept->parts;
    pool_run(be->pool, job->chunks, add_kept, job);
}

static void group_moments(const struct job *job, int first, int size, double *mean, double *variance)
{
    double count = (double)job->x.h * (double)job->x.w * size, s = 0, q = 0;
    const size_t c = (size_t)job->x.c;
    for (int k = 0; k < job->chunks; k++) {
        const double *sum = job->partial + (size_t)k * 2 * c;
        for (int i = first; i < first + size; i++) {
            s += sum[i];
            q += sum[c + (size_t)i];
        }
    }
    *mean = s / count;
    *variance = q / count - *mean * *mean;
    if (*variance < 0)
        *variance = 0;
}

static void find_scales(const struct job *job)
{
    int size = job->x.c / job->groups;
    for (int g = 0; g < job->groups; g++) {
        double mean, variance;
        group_moments(job, g * size, size, &mean, &variance);
        double r = 1 / sqrt(variance + (double)job->eps);
        for (int i = g * size; i < (g + 1) * size; i++) {
            job->scale[i] = (float)(r * (double)job->gamma[i]);
            job->shift[i] = (float)((double)job->beta[i] - mean * r * (double)job->gamma[i]);
        }
    }
}

static void apply_chunk(void *ctx, int chunk, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    bool stream = tensor_streams(job->y);
    for (size_t r = chunk_first(job, chunk); r < chunk_first(job, chunk + 1); r++)
        job->rows->affine((char *)(uintptr_t)row_of(job->y, job->n, r), job->y.dtype,
                          row_of(job->x, job->n, r), job->x.dtype, job->x.c, job->scale, job->shift, job->act,
                          stream);
    if (stream)
        job->rows->fence();
}

static const struct kept_sums *kept_of(const struct cpu_state *st, tensor x)
{
    const struct kept_sums *k = &st->kept;
    return x.sums && x.sums == k->name && x.n == 1 && x.h == k->h && x.w == k->w && x.c == k->c ? k : NULL;
}

static struct job group_norm_job(struct backend *be, tensor y, tensor x, const weight *w, int groups,
                                 float eps, bool act)
{
    const struct cpu_state *st = be->state;
    size_t rows = (size_t)x.h * (size_t)x.w, c = (size_t)x.c;
    size_t fit = PARTIAL_DOUBLES / (2 * c) - 1, chunks = (rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    chunks = chunks < CHUNKS_MAX ? chunks : CHUNKS_MAX;
    return (struct job){
        .rows = st->tier->rows,
        .y = y,
        .x = x,
        .gamma = w->packed,
        .beta = (const float *)w->packed + w->out_c,
        .groups = groups,
        .eps = eps,
        .act = act,
        .chunks = (int)(chunks < fit ? chunks : fit),
        .kept = kept_of(st, x),
        .scale = (float *)st->partial,
        .shift = (float *)st->partial + c,
        .partial = st->partial + c,
    };
}

void group_norm_factors(struct backend *be, tensor x, const weight *w, int groups, float eps,
                        const float **scale, const float **shift)
{
    struct job job = group_norm_job(be, x, x, w, groups, eps, true);
    take_sums(be, &job);
    find_scales(&job);
    *scale = job.scale;
    *shift = job.shift;
}

static int run_group_norm(struct backend *be, tensor y, tensor x, const weight *w, int groups, float eps,
                          bool act)
{
    struct job job = group_norm_job(be, y, x, w, groups, eps, act);
    for (job.n = 0; job.n < x.n && x.h && x.w; job.n++) {
        take_sums(be, &job);
        find_scales(&job);
        pool_run(be->pool, job.chunks, apply_chunk, &job);
    }
    return 0;
}

/* More channels than the partial sums have room for; no known model comes near. */
static bool too_wide(tensor x)
{
    return (size_t)x.c > PARTIAL_DOUBLES / 8;
}

int cpu_group_norm(struct backend *be, tensor y, tensor x, const weight *w, int groups, float eps,
                   struct error *err)
{
    return too_wide(x) ? ref_group_norm(be, y, x, w, groups, eps, err)
                       : run_group_norm(be, y, x, w, groups, eps, false);
}

int cpu_group_norm_silu(struct backend *be, tensor y, tensor x, const weight *w, int groups, float eps,
                        struct error *err)
{
    return too_wide(x) ? ref_group_norm_silu(be, y, x, w, groups, eps, err)
                       : run_group_norm(be, y, x, w, groups, eps, true);
}

enum { LAYER_ROWS = 16 };

static void layer_item(void *ctx, int item, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    size_t first = (size_t)item * LAYER_ROWS, left = tensor_rows(job->x) - first;
    struct layer_rows r = {
        .y = (char *)(uintptr_t)row_of(job->y, 0, first),
        .x = row_of(job->x, 0, first),
        .y_type = job->y.dtype,
        .x_type = job->x.dtype,
        .y_step = (size_t)job->y.ld * dtype_size(job->y.dtype),
        .x_step = (size_t)job->x.ld * dtype_size(job->x.dtype),
        .ahead = LAYER_AHEAD * (size_t)job->x.ld * dtype_size(job->x.dtype),
        .rows = left < LAYER_ROWS ? (int)left : LAYER_ROWS,
        .c = job->x.c,
        .gamma = job->gamma,
        .beta = job->beta,
        .eps = job->eps,
    };
    job->rows->layer_norm(&r);
}

int cpu_layer_norm(struct backend *be, tensor y, tensor x, const weight *w, float eps, struct error *err)
{
    (void)err;
    struct job job = {
        .rows = cpu_tier(be)->rows,
        .y = y,
        .x = x,
        .gamma = w->packed,
        .beta = (const float *)w->packed + w->out_c,
        .eps = eps,
    };
    pool_run(be->pool, (int)((tensor_rows(x) + LAYER_ROWS - 1) / LAYER_ROWS), layer_item, &job);
    return 0;
}
