/* 3x3 convolution of stride 1 by Winograd's F(2x4, 3x3) on tiers with a kernel for it
 * (winograd_2x4_avx512bf16.c): 24 products of transformed tiles instead of 72 (Lavin and Gray, arXiv
 * 1509.09308). The output is cut into tiles of 2 x 4, each computed from 4 x 6 inputs; 16 tiles that follow
 * each other, row by row and picture by picture, are a group. For a block of groups:
 *   V = B' d B of all channels, once, into memory that all threads share;
 *   for each panel of 32 outputs and slice of channels U = G g G', made from the weights as they are packed
 * for direct sums and left in the second level; then products of U with V, which passes by, and their sums.
 *
 * FLOPs: a third of the direct sum. U takes 12 to 35 % of the time below 64x64, V as long as a quarter of a
 * panel's products (measured, SPEED.md), so a picture of few tiles gains less. Bytes: V is 3 times the
 * block's inputs and comes from the last level once a panel at 2 bytes a cycle; weights are read once a
 * block, as stored, so the method needs no memory of the model's.
 *
 * Rounding: V and U once to bf16. For inputs and weights of random signs a product's two roundings, each 0.41
 * * 2^-8 of it in the mean square, become 4.0 times that of the output: F(4, 3)'s 2.19 (WR_POINT in
 * winograd_rows.h) times F(2, 3)'s 1.29 times the root of two.
 *
 * Whether it is taken depends on the shape of one picture alone, slices on the channels, and tiles do not
 * depend on each other: same bits in any batch and with any number of threads. */
#include "winograd_2x4.h"

#include <string.h>

#include "winograd_tiles.h"

enum {
    TILES_MIN = 8,        /* of a picture */
    CHANNELS_MAX = 32768, /* V of a group then fits what there is for it */
    SLICE_CHANNELS = 320, /* most of a slice */
    PAD = 5 * W24_LINE,   /* bytes between places, so that they do not share cache sets */
    NEAR_U = 4 << 20,     /* of all panels, that are made once and read block by block */
    NEAR_V = 450 << 10,   /* of a block that one thread takes through all panels */
    NEAR_BLOCKS = 4       /* least of them for each thread */
};

struct job {
    struct winograd_tiles tiles;
    const struct winograd_2x4_kernel *kernel;
    const struct row_ops *rows;
    const struct cpu_weight *w;
    struct pool *pool;
    const struct gemm_args *a;
    char *v; /* [groups of a block][places] */
    char *u; /* NULL, or [panels][places]: then each block is one thread's, V in its scratch */
    size_t v_place, v_group, u_place, u_panel;
    int slices, slice;      /* of the channels; channels of one, the last may have fewer */
    bool streams;           /* y is stored past the caches */
    int part_groups, parts; /* of a block: groups that an item takes for its panel */
    int input_parts;        /* of a group: items that make its V */
};

/* What a thread works in. */
struct memory {
    char *zeros, *v, *u; /* V of a block, or U of a slice of a panel */
    float *m, *work;     /* WORK: where there are slices, of all groups of an item */
};

bool winograd_2x4_suits(const struct cpu_state *st, const struct gemm_args *a)
{
    const struct cpu_weight *w = a->w->packed;
    if (!st->tier->winograd_2x4 || a->x.dtype != DTYPE_BF16 || a->w->kh != 3 || a->w->kw != 3 ||
        a->stride > 1 || a->pad_end)
        return false;
    return w->channels == a->x.c && w->channels % W24_STEP == 0 && w->channels <= CHANNELS_MAX &&
           a->y.c >= W24_PANEL && div_up(a->y.h, W24_ROWS) * div_up(a->y.w, W24_COLS) >= TILES_MIN;
}

static struct memory memory_of(const struct job *job, int worker)
{
    struct memory m = {.zeros = pool_scratch(job->pool, worker)};
    m.u = m.v = m.zeros + div_up(job->w->channels * 2, 4096) * 4096;
    const size_t bytes = job->u ? (size_t)job->tiles.block * job->v_group : job->u_panel;
    m.m = (float *)(void *)(m.u + bytes);
    m.work = m.m + W24_M;
    return m;
}

/* ---- V ---- */

/* Tiles of the last group that there are none of are left as they are: their products are not read. */
static void make_v(const struct job *job, struct winograd_range tiles, int worker)
{
    const tensor x = job->a->x;
    const size_t column = (size_t)x.ld * dtype_size(x.dtype);
    const char *zeros = memset(memory_of(job, worker).zeros, 0, (size_t)job->w->channels * 2);
    const int shift = job->a->upsample ? 1 : 0, h = x.h << shift, w = x.w << shift;
    struct w24_input in = {.place = job->v_place,
                           .channels = job->w->channels,
                           .ahead = 2 * W24_COLS * column >> shift,
                           .doubled = job->a->upsample};
    for (int i = tiles.first; i < tiles.end; i++) {
        const struct winograd_tile t = winograd_tile_at(&job->tiles, tiles.group, i);
        for (int r = 0; r < W24_IN_ROWS; r++)
            for (int c = 0; c < W24_IN_COLS; c++) {
                const int iy = t.y - 1 + r, ix = t.x - 1 + c;
                const bool inside = iy >= 0 && iy < h && ix >= 0 && ix < w;
                in.src[r][c] =
                    inside ? (const char *)x.data + tensor_position(x, t.n, iy >> shift, ix >> shift) * column
                           : zeros;
            }
        in.dst = job->v + (size_t)tiles.group * job->v_group + (size_t)i * W24_LINE;
        job->kernel->input(&in);
    }
}

static void input_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    make_v(job, winograd_input_range(&job->tiles, job->input_parts, item), worker);
}

/* ---- Products and y ---- */

/* Whether the kernel itself can end outputs of panel P like F. */
static bool ends_directly(const struct job *job, const struct finish *f)
{
    const struct gemm_args *a = job->a;
    return f->cols == W24_PANEL && f->y_type == DTYPE_BF16 && a->act == ACT_NONE &&
           (!f->residual || f->residual_type == DTYPE_BF16);
}

/* The end of a group's tiles of panel P that lie inside; BASES [W24_TILES][W24_PANEL] is its to fill. False:
 * it is for gemm_finish(). */
static bool make_end(const struct job *job, int group, int p, float *bases, struct w24_end *e)
{
    const tensor y = job->a->y;
    const struct winograd_tile t0 = winograd_tile_at(&job->tiles, group, 0);
    const struct finish f = gemm_end(job->a, W24_PANEL, p, tensor_position(y, t0.n, t0.y, t0.x), 1);
    if (!ends_directly(job, &f))
        return false;
    *e = (struct w24_end){.y = f.y,
                          .residual = f.residual,
                          .y_column = f.y_stride,
                          .y_row = (size_t)y.w * f.y_stride,
                          .residual_column = f.residual_stride,
                          .residual_row = (size_t)y.w * f.residual_stride,
                          .stream = job->streams && (((uintptr_t)f.y | f.y_stride) & 63) == 0};
    size_t of = SIZE_MAX; /* the picture that the base is of */
    for (int i = 0; i < winograd_group_tiles(&job->tiles, group); i++) {
        const struct winograd_tile t = winograd_tile_at(&job->tiles, group, i);
        e->at[i] = tensor_position(y, t.n, t.y, t.x) - tensor_position(y, t0.n, t0.y, t0.x);
        if (t.y + W24_ROWS <= y.h && t.x + W24_COLS <= y.w)
            e->whole |= 1u << i;
        if (t.n != of)
            gemm_base(job->a, job->rows, W24_PANEL, p, tensor_position(y, t.n, t.y, t.x),
                      bases + (size_t)i * W24_PANEL);
        e->base[i] = t.n != of ? bases + (size_t)i * W24_PANEL : e->base[i - 1];
        of = t.n;
    }
    return true;
}

/* U of panel P, channels FIRST to FIRST + COUNT. */
static void make_u(const struct job *job, int p, int first, int count, char *u)
{
    const struct cpu_weight *w = job->w;
    const struct w24_weights weights = {.dst = u,
                                        .place = job->u_place,
                                        .src = weight_data(w) + (size_t)p * w->panel_bytes,
                                        .channels = w->channels,
                                        .chunk = w->chunk,
                                        .first = first,
                                        .count = count,
                                        .doubled = job->a->upsample};
    job->kernel->weights(&weights);
}

/* Weights that are read after some products, which ask for them: memory would rest meanwhile. */
struct coming {
    const char *at;
    size_t bytes;
};

/* What a thread reads after the channels before FIRST of panel P: the next slice, or the first one of NEXT_P,
 * the panel that it probably takes then. */
static struct coming next_weights(const struct job *job, int p, int next_p, int first)
{
    const struct cpu_weight *w = job->w;
    const size_t channel = 9 * W24_PANEL * 2;
    if (first >= w->channels) {
        first = 0;
        p = min_int(next_p, w->panels - 1);
    }
    return (struct coming){weight_data(w) + (size_t)p * w->panel_bytes + (size_t)first * channel,
                           (size_t)min_int(job->slice, w->channels - first) * channel};
}

/* Groups G0 to G1 of panel P by its U of channels FIRST to FIRST + COUNT; NEXT is asked for. */
static void run_groups(const struct job *job, const struct memory *m, int p, const char *u, int first,
                       int count, int g0, int g1, struct coming next)
{
    const int places = job->a->upsample ? W24_PLACES - W24_IN_COLS : W24_PLACES,
              steps = places * (count / W24_STEP); /* for each W24_TOGETHER tiles */
    const int tiles = (g1 - g0 - 1) * W24_TILES + winograd_group_tiles(&job->tiles, g1 - 1),
              lines = div_up((int)(next.bytes / 64), steps * div_up(tiles, W24_TOGETHER));
    struct w24_product product = {.u = u,
                                  .v_place = job->v_place,
                                  .u_place = job->u_place,
                                  .channels = count,
                                  .m = m->m,
                                  .begun = first > 0,
                                  .coming = next.at,
                                  .coming_lines = lines,
                                  .doubled = job->a->upsample};
    const bool ends = first + count == job->w->channels;
    float bases[W24_TILES * W24_PANEL];
    struct w24_end end;
    for (int g = g0; g < g1; g++) {
        product.v = job->v + (size_t)g * job->v_group + (size_t)(first / W24_STEP) * W24_V;
        product.tiles = winograd_group_tiles(&job->tiles, g);
        product.work = m->work + (job->slices > 1 ? (size_t)(g - g0) * W24_WORK : 0);
        product.end = ends && make_end(job, g, p, bases, &end) ? &end : NULL;
        job->kernel->product(&product);
        product.coming += (size_t)(steps * div_up(product.tiles, W24_TOGETHER) * lines) * 64;
        if (ends)
            winograd_end_group(&job->tiles, job->a, job->rows, W24_PANEL, g, p, product.work,
                               product.end ? end.whole : 0);
    }
}

static void product_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    const struct memory m = memory_of(job, worker);
    const int p = item / job->parts, g0 = item % job->parts * job->part_groups,
              g1 = min_int(winograd_groups(&job->tiles), g0 + job->part_groups),
              next_p = (item + pool_threads(job->pool)) / job->parts;
    for (int first = 0; first < job->w->channels; first += job->slice) {
        const int count = min_int(job->slice, job->w->channels - first);
        const struct coming next = next_weights(job, p, next_p, first + count);
        make_u(job, p, first, count, m.u);
        run_groups(job, &m, p, m.u, first, count, g0, g1, next);
    }
    job->rows->fence();
}

static void run_shared(struct job *job)
{
    winograd_choose_block(&job->tiles, job->pool, job->v_group);
    while (winograd_block(&job->tiles)) {
        const int groups = winograd_groups(&job->tiles);
        job->part_groups = winograd_part(groups, job->w->panels, groups, job->pool);
        job->parts = div_up(groups, job->part_groups);
        job->input_parts = winograd_input_parts(&job->tiles, job->pool);
        pool_run(job->pool, groups * job->input_parts, input_item, job);
        pool_run(job->pool, job->w->panels * job->parts, product_item, job);
    }
}

/* ---- Near: where U of all panels is small and the picture large, U is made once and shared, and each thread
 * takes blocks of its own through all panels, so that V does not leave the second level ---- */

static bool suits_near(struct job *job)
{
    job->tiles.block = (int)(NEAR_V / job->v_group);
    return job->slices == 1 && (size_t)job->w->panels * job->u_panel <= NEAR_U && job->tiles.block > 0 &&
           winograd_blocks(&job->tiles) >= NEAR_BLOCKS * pool_threads(job->pool);
}

static void weights_item(void *ctx, int p, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    make_u(job, p, 0, job->w->channels, job->u + (size_t)p * job->u_panel);
}

static void block_item(void *ctx, int item, int worker)
{
    struct job job = *(const struct job *)ctx;
    const struct memory m = memory_of(&job, worker);
    job.v = m.v;
    winograd_go_to_block(&job.tiles, item);
    const int groups = winograd_groups(&job.tiles);
    for (int g = 0; g < groups; g++)
        make_v(&job, winograd_input_range(&job.tiles, 1, g), worker);
    for (int p = 0; p < job.w->panels; p++)
        run_groups(&job, &m, p, job.u + (size_t)p * job.u_panel, 0, job.w->channels, 0, groups,
                   (struct coming){0});
    job.rows->fence();
}

static void run_near(struct job *job, char *u)
{
    job->u = u;
    pool_run(job->pool, job->w->panels, weights_item, job);
    pool_run(job->pool, winograd_blocks(&job->tiles), block_item, job);
}

int winograd_2x4_run(struct backend *be, const struct gemm_args *a)
{
    const struct cpu_state *st = be->state;
    struct job job = {.kernel = st->tier->winograd_2x4,
                      .rows = st->tier->rows,
                      .w = a->w->packed,
                      .pool = be->pool,
                      .a = a,
                      .v = st->winograd,
                      .streams = tensor_streams(a->y),
                      .tiles = winograd_cut(a->y, W24_ROWS, W24_COLS, W24_TILES)};
    job.v_place = (size_t)(job.w->channels / W24_STEP) * W24_V + PAD;
    job.v_group = W24_PLACES * job.v_place;
    job.slices = div_up(job.w->channels, SLICE_CHANNELS);
    job.slice = div_up(job.w->channels / W24_STEP, job.slices) * W24_STEP;
    job.u_place = (size_t)(job.slice / W24_STEP) * W24_U + PAD;
    job.u_panel = W24_PLACES * job.u_place;
    if (suits_near(&job))
        run_near(&job, st->winograd);
    else
        run_shared(&job);
    return 0;
}
