/* 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3): 36 products of transformed tiles instead of 144
 * (Lavin and Gray, arXiv 1509.09308). fp32 tiers only; its error stays in the range of a direct sum's.
 *
 * The output is cut into tiles of 4 x 4, each computed from 6 x 6 inputs: V = B' d B per input channel, U = G
 * g G' per weight, M = sum over channels of V * U for each of the 36 places, y = A' M A. A strip of tiles at
 * a time: transform   x -> V [36][tiles][I] multiply    V * U -> M [36][panels][tiles][nr], with the same
 * micro-kernel as all else combine     M -> y, with bias, activation and residual
 *
 * Where U fits the last-level cache and there are enough tiles, each thread takes small strips through all
 * three steps by itself, and V and M stay near its core; else all threads share one large strip at a time, so
 * that U is read less often.
 *
 * FLOPs: a quarter of the direct sum, plus about 10 % of the direct sum's time at 128 channels (2 % at 512)
 * for the transforms. Bytes: V and M are 2.25 times x and y; a strip's (at most STRIP_FLOATS) should stay in
 * the last-level cache. U is made anew in every call (36/9 of the weights, written and read once a strip):
 * kept, it would take 16 times the memory of the file's fp16, and making it costs what 20 tiles cost. So it
 * pays from TILES_MIN tiles a picture on.
 *
 * Which path a convolution takes depends on its shape alone, and tiles do not depend on each other: same bits
 * in any batch and with any number of threads. */
#include "gemm.h"

#include <string.h>

#include "thread_pool.h"

enum {
    TILE = 4,
    POINTS = 36,
    TILES_MIN = 64,
    STRIP_TILES = 256,
    CHANNELS_MIN = 32,
    CHUNK = 320, /* channels of one call of the micro-kernel */
    RUN = 16,    /* tiles of one output run */
    GROUP = 4,   /* tiles of one item of the input transform */
    COMBINE_FLOATS = TILE * TILE * RUN * 32,
    PRIVATE_TILES = 42, /* of a strip that one thread takes by itself: at most, at least */
    PRIVATE_MIN = 28,
    PRIVATE_U_BYTES = 6 << 20,
    PAD = 80 /* floats between the 36 places, so that they do not share cache sets */
};

struct job {
    const struct gemm_kernel *g;
    const struct row_ops *rows;
    const struct cpu_weight *w;
    struct pool *pool;
    const struct gemm_args *a;
    float *u, *v, *m;
    size_t u_place, v_place, m_place; /* floats from one of the 36 places to the next */
    int across, down;                 /* tiles of a picture */
    size_t tiles;                     /* of the batch */
    size_t first;                     /* of the strip */
    float *c;                         /* where runs are combined; NULL: the worker's scratch */
    int count, strip;                 /* tiles in this strip, in a whole one */
    int chunk;                        /* channels of a call */
    int parts, part_panels;           /* panels of a product item */
};

static size_t place_of_u(const struct cpu_weight *w, int nr)
{
    return (size_t)w->panels * (size_t)w->channels * (size_t)nr + PAD;
}

bool winograd_suits(const struct cpu_state *st, const struct gemm_args *a)
{
    const struct gemm_kernel *g = st->tier->gemm;
    const struct cpu_weight *w = a->w->packed;
    if (g->dtype != DTYPE_F32 || a->x.dtype != DTYPE_F32 || a->w->kh != 3 || a->w->kw != 3 || a->stride > 1 ||
        a->pad_end)
        return false;
    if (w->channels < CHANNELS_MIN || a->y.c < CHANNELS_MIN)
        return false;
    if (div_up(a->y.h, TILE) * div_up(a->y.w, TILE) < TILES_MIN)
        return false;
    return POINTS * place_of_u(w, g->nr) <= U_FLOATS;
}

/* ---- U ---- */

static void weights_item(void *ctx, int p, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    const struct cpu_weight *w = job->w;
    const size_t nr = (size_t)job->g->nr, es = dtype_size(w->dtype);
    const char *src = weight_data(w) + (size_t)p * w->panel_bytes;
    float *dst = job->u + (size_t)p * (size_t)w->channels * nr;
    for (int first = 0; first < w->channels; first += w->chunk) {
        int k = min_int(w->chunk, w->channels - first);
        job->rows->winograd_weights(dst + (size_t)first * nr, job->u_place, src, w->dtype, k, (int)nr);
        src += (size_t)k * 9 * nr * es;
    }
}

/* ---- V ---- */

/* The input positions of tile T (row by row), NULL outside of the picture. */
static void tile_inputs(const struct job *job, size_t t, const float *src[POINTS])
{
    tensor x = job->a->x;
    int shift = job->a->upsample ? 1 : 0, h = x.h << shift, w = x.w << shift;
    size_t line = t / (size_t)job->across, n = line / (size_t)job->down;
    int y0 = (int)(line % (size_t)job->down) * TILE - 1, x0 = (int)(t % (size_t)job->across) * TILE - 1;
    for (int i = 0; i < POINTS; i++) {
        int iy = y0 + i / 6, ix = x0 + i % 6;
        bool inside = iy >= 0 && iy < h && ix >= 0 && ix < w;
        size_t row =
            inside ? (n * (size_t)x.h + (size_t)(iy >> shift)) * (size_t)x.w + (size_t)(ix >> shift) : 0;
        src[i] = inside ? (const float *)x.data + row * (size_t)x.ld : NULL;
    }
}

static void input_item(void *ctx, int item, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    const float *src[POINTS];
    const size_t c = (size_t)job->w->channels;
    for (int i = item * GROUP; i < min_int(job->count, (item + 1) * GROUP); i++) {
        tile_inputs(job, job->first + (size_t)i, src);
        job->rows->winograd_input(job->v + (size_t)i * c, job->v_place, src, (int)c);
    }
}

/* ---- M ---- */

/* One chunk of channels of a panel at one place, over all tiles of the strip. */
static void multiply_chunk(const struct job *job, int place, int p, int first)
{
    const struct gemm_kernel *g = job->g;
    const size_t zero = 0, c = (size_t)job->w->channels, nr = (size_t)g->nr;
    int k = min_int(job->chunk, job->w->channels - first);
    const float *b = job->u + (size_t)place * job->u_place + ((size_t)p * c + (size_t)first) * nr;
    struct gemm_tile t = {
        .a = (const char *)(job->v + (size_t)place * job->v_place + (size_t)first),
        .lda = c * sizeof(float),
        .tap = &zero,
        .taps = 1,
        .k = k,
        .b = b,
        .c = job->m + (size_t)place * job->m_place + (size_t)p * (size_t)job->strip * nr,
        .add = first > 0,
        .half = job->a->y.c - p * g->nr <= g->nr / 2,
    };
    const size_t lines = (size_t)k * 64, bytes = (size_t)k * nr * sizeof(float);
    int tiles = div_up(job->count, g->mr);
    for (int i = 0, done = 0; i < tiles; i++) {
        int rows = (job->count - done) / (tiles - i);
        t.prefetch =
            (size_t)i * lines < bytes ? (const char *)b + bytes + (size_t)i * lines : (const char *)b;
        g->run(rows, &t);
        done += rows;
        t.a += (size_t)rows * t.lda;
        t.c += (size_t)rows * nr;
    }
}

static void multiply_item(void *ctx, int item, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    int place = item / job->parts, p0 = item % job->parts * job->part_panels;
    for (int p = p0; p < min_int(job->w->panels, p0 + job->part_panels); p++)
        for (int first = 0; first < job->w->channels; first += job->chunk)
            multiply_chunk(job, place, p, first);
}

/* ---- y ---- */

/* Writes COUNT neighbouring tiles of one tile row, T the first, panel P. C is scratch [4][4 * RUN][nr]. */
static void combine_run(const struct job *job, size_t t, int count, int p, float *c)
{
    const size_t nr = (size_t)job->g->nr, line = (size_t)TILE * RUN * nr;
    const float *m = job->m + ((size_t)p * (size_t)job->strip + (t - job->first)) * nr;
    for (int i = 0; i < count; i++)
        job->rows->winograd_output(c + (size_t)(i * TILE) * nr, line, m + (size_t)i * nr, job->m_place,
                                   (int)nr);
    tensor y = job->a->y;
    size_t row = t / (size_t)job->across, n = row / (size_t)job->down;
    int y0 = (int)(row % (size_t)job->down) * TILE, x0 = (int)(t % (size_t)job->across) * TILE;
    int wide = min_int(count * TILE, y.w - x0);
    for (int i = 0; i < min_int(TILE, y.h - y0); i++)
        gemm_finish(job->a, job->rows, (int)nr, p, c + (size_t)i * line,
                    (n * (size_t)y.h + (size_t)(y0 + i)) * (size_t)y.w + (size_t)x0, wide);
}

/* An item is one panel of a run of RUN tiles, cut where a tile row ends. */
static void combine_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    float *c = job->c ? job->c : pool_scratch(job->pool, worker);
    int p = item % job->w->panels, done = item / job->w->panels * RUN, end = min_int(job->count, done + RUN);
    while (done < end) {
        size_t t = job->first + (size_t)done;
        int left = job->across - (int)(t % (size_t)job->across), count = min_int(left, end - done);
        combine_run(job, t, count, p, c);
        done += count;
    }
    job->rows->fence();
}

/* One strip, by one thread; ITEM counts strips. */
static void strip_item(void *ctx, int item, int worker)
{
    struct job job = *(const struct job *)ctx;
    job.first = (size_t)item * (size_t)job.strip;
    job.count = job.tiles - job.first < (size_t)job.strip ? (int)(job.tiles - job.first) : job.strip;
    job.c = pool_scratch(job.pool, worker);
    job.v = job.c + COMBINE_FLOATS;
    job.m = job.v + POINTS * job.v_place;
    for (int i = 0; i < div_up(job.count, GROUP); i++)
        input_item(&job, i, worker);
    for (int i = 0; i < POINTS * job.parts; i++)
        multiply_item(&job, i, worker);
    for (int i = 0; i < div_up(job.count, RUN) * job.w->panels; i++)
        combine_item(&job, i, worker);
}

static size_t strip_floats(const struct job *job, int tiles)
{
    size_t outputs = (size_t)job->w->panels * (size_t)job->g->nr;
    return POINTS * ((size_t)tiles * ((size_t)job->w->channels + outputs) + 2 * PAD);
}

/* Tiles of a strip that one thread takes by itself, in whole row tiles of the micro-kernel; 0: share strips
 * instead. */
static int private_strip(const struct job *job)
{
    int tiles = PRIVATE_TILES / job->g->mr * job->g->mr;
    while (tiles > 0 && (COMBINE_FLOATS + strip_floats(job, tiles)) * sizeof(float) > POOL_SCRATCH)
        tiles -= job->g->mr;
    if (tiles < PRIVATE_MIN || POINTS * job->u_place * sizeof(float) > PRIVATE_U_BYTES)
        return 0;
    return job->tiles / (size_t)tiles >= 4 * (size_t)pool_threads(job->pool) ? tiles : 0;
}

static void plan_shared(struct job *job, const struct cpu_state *st)
{
    job->strip = STRIP_TILES;
    while (strip_floats(job, job->strip) > STRIP_FLOATS)
        job->strip -= job->g->mr;
    job->v = st->winograd + U_FLOATS;
    int wanted = div_up(4 * pool_threads(job->pool), POINTS);
    job->part_panels = div_up(job->w->panels, min_int(wanted, job->w->panels));
    job->parts = div_up(job->w->panels, job->part_panels);
}

static void run_shared(struct job *job)
{
    for (; job->first < job->tiles; job->first += (size_t)job->strip) {
        size_t left = job->tiles - job->first;
        job->count = left < (size_t)job->strip ? (int)left : job->strip;
        pool_run(job->pool, div_up(job->count, GROUP), input_item, job);
        pool_run(job->pool, POINTS * job->parts, multiply_item, job);
        pool_run(job->pool, div_up(job->count, RUN) * job->w->panels, combine_item, job);
    }
}

int winograd_run(struct backend *be, const struct gemm_args *a)
{
    const struct cpu_state *st = be->state;
    const struct cpu_weight *w = a->w->packed;
    struct job job = {
        .g = st->tier->gemm,
        .rows = st->tier->rows,
        .w = w,
        .pool = be->pool,
        .a = a,
        .u = st->winograd,
        .u_place = place_of_u(w, st->tier->gemm->nr),
        .across = div_up(a->y.w, TILE),
        .down = div_up(a->y.h, TILE),
        .chunk = div_up(div_up(w->channels, div_up(w->channels, CHUNK)), 16) * 16,
        .parts = 1,
        .part_panels = w->panels,
    };
    job.tiles = (size_t)a->y.n * (size_t)job.across * (size_t)job.down;
    job.strip = private_strip(&job);
    bool alone = job.strip > 0;
    if (!alone)
        plan_shared(&job, st);
    job.v_place = (size_t)job.strip * (size_t)w->channels + PAD;
    job.m_place = (size_t)job.strip * (size_t)w->panels * (size_t)job.g->nr + PAD;
    job.m = alone ? NULL : job.v + POINTS * job.v_place;
    pool_run(be->pool, w->panels, weights_item, &job);
    if (alone)
        pool_run(be->pool, (int)((job.tiles + (size_t)job.strip - 1) / (size_t)job.strip), strip_item, &job);
    else
        run_shared(&job);
    return 0;
}
