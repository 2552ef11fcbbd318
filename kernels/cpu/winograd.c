/* 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3): 36 products of transformed tiles instead of 144
 * (Lavin and Gray, arXiv 1509.09308). fp32 tiers only; its error stays in the range of a direct sum's.
 *
 * The output is cut into tiles of 4 x 4, each computed from 6 x 6 inputs; tiles that follow each other, row
 * by row and picture by picture, are a group. For a block of groups: V = B' d B of all channels, once, into
 * memory that all threads share; for each panel of outputs and slice of channels U = G g G', made from the
 * weights as they are packed for direct sums and left in the second level; then M += V * U for each of the 36
 * places, group by group, with the same micro-kernel as all else; y = A' M A, with bias, activation and
 * residual.
 *
 * FLOPs: a quarter of the direct sum. U takes 16 to 27 % of the time at 32x32 and 16x16 (measured, SPEED.md),
 * so a picture of few tiles gains less. Bytes: V is 2.25 times the block's inputs and comes from the last
 * level once a panel; weights are read once a block, as stored, so the method needs no memory of the model's.
 *
 * Which path a convolution takes depends on the shape of one picture alone, slices on the channels, and tiles
 * do not depend on each other: same bits in any batch and with any number of threads. */
#include "gemm.h"
#include "winograd_tiles.h"

#include <string.h>

#include "thread_pool.h"

enum {
    TILE = 4,
    INPUTS = 6,
    POINTS = 36,
    POSITIONS_MIN = 256, /* of a picture's outputs */
    CHANNELS_MIN = 32,
    CHANNELS_MAX = 32768,    /* V of a group then fits what there is for it */
    SLICE_BYTES = 600 << 10, /* of U */
    GROUP_ROWS = 12,         /* least tiles of a group, in whole row tiles of the micro-kernel */
    PAD = 80,                /* floats between the 36 places, so that they do not share cache sets */
    NEAR_U = 6 << 20,        /* of all panels, that are made once and read block by block */
    NEAR_V = 800 << 10,      /* of a block that one thread takes through all panels */
    NEAR_BLOCKS = 4          /* least of them for each thread */
};

struct job {
    struct winograd_tiles tiles;
    const struct gemm_kernel *g;
    const struct row_ops *rows;
    const struct cpu_weight *w;
    struct pool *pool;
    const struct gemm_args *a;
    float *u; /* NULL, or [panels][POINTS][channels][nr]: then each block is one thread's, V in its scratch */
    float *v; /* [groups of a block][slices][POINTS][tiles][channels] */
    size_t v_place, v_slice, v_group; /* floats */
    size_t u_place, m_place;          /* floats from one of the 36 places to the next */
    int slices, slice;                /* of the channels; channels of one, the last may have fewer */
    int part_groups, parts;           /* of a block: groups that an item takes for its panel */
    int input_parts;                  /* of a group: items that make its V */
};

/* What a thread works in. */
struct memory {
    float *u, *v; /* U of a slice, or V of a block */
    float *c, *m; /* M: where there are slices, of all groups of an item */
};

bool winograd_suits(const struct cpu_state *st, const struct gemm_args *a)
{
    const struct gemm_kernel *g = st->tier->gemm;
    const struct cpu_weight *w = a->w->packed;
    if (g->dtype != DTYPE_F32 || a->x.dtype != DTYPE_F32 || a->w->kh != 3 || a->w->kw != 3 || a->stride > 1 ||
        a->pad_end)
        return false;
    return w->channels >= CHANNELS_MIN && w->channels <= CHANNELS_MAX && a->y.c >= CHANNELS_MIN &&
           (size_t)a->y.h * (size_t)a->y.w >= POSITIONS_MIN;
}

static int slice_channels(const struct job *job, int slice)
{
    return min_int(job->slice, job->w->channels - slice * job->slice);
}

/* ---- V ---- */

/* The input positions of a tile (row by row), NULL outside of the picture. */
static void tile_inputs(const struct job *job, struct winograd_tile t, const float *src[POINTS])
{
    const tensor x = job->a->x;
    const int shift = job->a->upsample ? 1 : 0, h = x.h << shift, w = x.w << shift;
    for (int i = 0; i < POINTS; i++) {
        const int iy = t.y - 1 + i / INPUTS, ix = t.x - 1 + i % INPUTS;
        const bool inside = iy >= 0 && iy < h && ix >= 0 && ix < w;
        src[i] =
            inside ? (const float *)x.data + tensor_position(x, t.n, iy >> shift, ix >> shift) * (size_t)x.ld
                   : NULL;
    }
}

static void make_v(const struct job *job, struct winograd_range tiles)
{
    for (int i = tiles.first; i < tiles.end; i++) {
        const float *src[POINTS];
        tile_inputs(job, winograd_tile_at(&job->tiles, tiles.group, i), src);
        float *v = job->v + (size_t)tiles.group * job->v_group;
        for (int s = 0; s < job->slices; s++, v += job->v_slice) {
            const int c = slice_channels(job, s);
            job->rows->winograd_input(v + (size_t)i * (size_t)c, job->v_place, src, c);
            for (int k = 0; k < POINTS; k++)
                src[k] = src[k] ? src[k] + c : NULL;
        }
    }
}

static void input_item(void *ctx, int item, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    make_v(job, winograd_input_range(&job->tiles, job->input_parts, item));
}

/* ---- U, M and y ---- */

static size_t group_floats(const struct job *job)
{
    return POINTS * job->m_place;
}

static size_t u_panel(const struct job *job)
{
    return POINTS * job->u_place;
}

static size_t fixed_floats(const struct job *job)
{
    const size_t first = job->u ? (size_t)job->tiles.block * job->v_group : u_panel(job);
    return first + (size_t)(TILE * TILE * job->tiles.group * job->g->nr);
}

static struct memory memory_of(const struct job *job, int worker)
{
    struct memory m = {.u = pool_scratch(job->pool, worker)};
    m.v = m.u;
    m.m = m.u + fixed_floats(job);
    m.c = m.m - TILE * TILE * job->tiles.group * job->g->nr;
    return m;
}

/* U of panel P and a slice, a chunk of its weights at a time. */
static void make_u(const struct job *job, int p, int slice, float *u)
{
    const struct cpu_weight *w = job->w;
    const size_t channel = (size_t)job->g->nr * 9 * dtype_size(w->dtype);
    const int first = slice * job->slice, count = slice_channels(job, slice);
    const char *src = weight_data(w) + (size_t)p * w->panel_bytes + (size_t)first * channel;
    for (int c = 0; c < count; c += w->chunk) {
        const int k = min_int(w->chunk, count - c);
        job->rows->winograd_weights(u + (size_t)c * (size_t)job->g->nr, job->u_place, src, w->dtype, k,
                                    job->g->nr);
        src += (size_t)k * channel;
    }
}

/* Adds a slice's products of a group to M at all places. */
static void multiply(const struct job *job, const float *u, int p, int slice, int group, float *sums)
{
    const struct gemm_kernel *g = job->g;
    const size_t zero = 0, channels = (size_t)slice_channels(job, slice),
                 bytes = channels * (size_t)g->nr * 4;
    const float *v = job->v + (size_t)group * job->v_group + (size_t)slice * job->v_slice;
    const int count = winograd_group_tiles(&job->tiles, group), calls = div_up(count, g->mr);
    struct gemm_tile t = {.lda = channels * sizeof(float),
                          .tap = &zero,
                          .taps = 1,
                          .k = (int)channels,
                          .add = slice > 0,
                          .half = job->a->y.c - p * g->nr <= g->nr / 2};
    for (int place = 0; place < POINTS; place++, v += job->v_place) {
        t.a = (const char *)v;
        t.b = u + (size_t)place * job->u_place;
        t.c = sums + (size_t)place * job->m_place;
        for (int i = 0, done = 0; i < calls; i++) {
            const int rows = (count - done) / (calls - i);
            t.prefetch = i == 0 ? (const char *)t.b + bytes : t.b;
            g->run(rows, &t);
            done += rows;
            t.a += (size_t)rows * t.lda;
            t.c += (size_t)rows * (size_t)g->nr;
        }
    }
}

static void combine(const struct job *job, const struct memory *m, int p, int group, const float *sums)
{
    const size_t nr = (size_t)job->g->nr, line = (size_t)(job->tiles.group * TILE) * nr;
    for (int i = 0; i < winograd_group_tiles(&job->tiles, group); i++)
        job->rows->winograd_output(m->c + (size_t)(i * TILE) * nr, line, sums + (size_t)i * nr, job->m_place,
                                   (int)nr);
    winograd_end_group(&job->tiles, job->a, job->rows, job->g->nr, group, p, m->c, 0);
}

static void product_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    const struct memory m = memory_of(job, worker);
    const int p = item / job->parts, g0 = item % job->parts * job->part_groups,
              g1 = min_int(winograd_groups(&job->tiles), g0 + job->part_groups);
    for (int slice = 0; slice < job->slices; slice++) {
        make_u(job, p, slice, m.u);
        for (int g = g0; g < g1; g++) {
            float *sums = m.m + (job->slices > 1 ? (size_t)(g - g0) * group_floats(job) : 0);
            multiply(job, m.u, p, slice, g, sums);
            if (slice == job->slices - 1)
                combine(job, &m, p, g, sums);
        }
    }
    job->rows->fence();
}

/* Slices of whole chunks of the weights. */
static void choose_slices(struct job *job)
{
    const struct cpu_weight *w = job->w;
    const int most = SLICE_BYTES / (POINTS * job->g->nr * (int)sizeof(float)) / w->chunk * w->chunk;
    const int slices = div_up(w->channels, most < w->chunk ? w->chunk : most);
    job->slice = div_up(div_up(w->channels, slices), w->chunk) * w->chunk;
    job->slices = div_up(w->channels, job->slice);
}

static void lay_out(struct job *job)
{
    const int nr = job->g->nr;
    job->u_place = (size_t)job->slice * (size_t)nr + PAD;
    job->m_place = (size_t)(job->tiles.group * nr) + PAD;
    job->v_place = (size_t)(job->tiles.group * job->slice) + PAD;
    job->v_slice = POINTS * job->v_place;
    job->v_group = (size_t)job->slices * job->v_slice;
}

static void run_shared(struct job *job)
{
    const size_t room = POOL_SCRATCH / sizeof(float) - fixed_floats(job);
    winograd_choose_block(&job->tiles, job->pool, job->v_group * sizeof(float));
    while (winograd_block(&job->tiles)) {
        const int groups = winograd_groups(&job->tiles), most = (int)(room / group_floats(job));
        job->part_groups = winograd_part(groups, job->w->panels, job->slices > 1 ? most : groups, job->pool);
        job->parts = div_up(groups, job->part_groups);
        job->input_parts = winograd_input_parts(&job->tiles, job->pool);
        pool_run(job->pool, groups * job->input_parts, input_item, job);
        pool_run(job->pool, job->w->panels * job->parts, product_item, job);
    }
}

/* ---- Near: as in winograd_2x4.c ---- */

/* Sums are rounded as they are in slices, so there may be but one. */
static bool suits_near(struct job *job)
{
    const size_t v = job->v_group * sizeof(float), u = (size_t)job->w->panels * u_panel(job) * sizeof(float);
    job->tiles.block = (int)(NEAR_V / v);
    return job->slices == 1 && u <= NEAR_U && job->tiles.block > 0 &&
           winograd_blocks(&job->tiles) >= NEAR_BLOCKS * pool_threads(job->pool);
}

static void weights_item(void *ctx, int p, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    make_u(job, p, 0, job->u + (size_t)p * u_panel(job));
}

static void block_item(void *ctx, int item, int worker)
{
    struct job job = *(const struct job *)ctx;
    const struct memory m = memory_of(&job, worker);
    job.v = m.v;
    winograd_go_to_block(&job.tiles, item);
    for (int g = 0; g < winograd_groups(&job.tiles); g++)
        make_v(&job, winograd_input_range(&job.tiles, 1, g));
    for (int p = 0; p < job.w->panels; p++)
        for (int g = 0; g < winograd_groups(&job.tiles); g++) {
            multiply(&job, job.u + (size_t)p * u_panel(&job), p, 0, g, m.m);
            combine(&job, &m, p, g, m.m);
        }
    job.rows->fence();
}

static void run_near(struct job *job, float *u)
{
    job->u = u;
    pool_run(job->pool, job->w->panels, weights_item, job);
    pool_run(job->pool, winograd_blocks(&job->tiles), block_item, job);
}

int winograd_run(struct backend *be, const struct gemm_args *a)
{
    const struct cpu_state *st = be->state;
    const struct gemm_kernel *g = st->tier->gemm;
    struct job job = {.g = g,
                      .rows = st->tier->rows,
                      .w = a->w->packed,
                      .pool = be->pool,
                      .a = a,
                      .v = st->winograd,
                      .tiles = winograd_cut(a->y, TILE, TILE, div_up(GROUP_ROWS, g->mr) * g->mr)};
    choose_slices(&job);
    lay_out(&job);
    if (suits_near(&job))
        run_near(&job, st->winograd);
    else
        run_shared(&job);
    return 0;
}
