/* 3x3 convolution of stride 1 by Winograd's F(2, 3) along rows on tiers with a kernel for it
 * (winograd2_amx.c): cuts the output into strips of 16 pairs of columns, these into blocks of rows, and deals
 * the blocks out.
 *
 * FLOPs: two thirds of the direct sum's. Bytes: V of a block (twice its inputs and a halo, BLOCK_BYTES at
 * most) stays in the second-level cache while the panels of U pass over it, so U (4/3 of the weights, made at
 * load) comes from the third level once a block.
 *
 * Rounding: V and U once to bf16. For inputs and weights of random signs a product's two roundings, each 0.41
 * * 2^-8 of it in the mean square, become 1.83 times that of the output: V^2 is 2 d^2, U^2 is 1, 3/4, 3/4, 1
 * g^2, and an output takes three of the four.
 *
 * Which way a convolution goes depends on the shape of one picture alone, and pairs do not depend on each
 * other: same bits in any batch and with any number of threads. Sides may be odd: what lies beyond the
 * picture is not written. */
#include "winograd2.h"

#include <string.h>

#include "gemm.h"
#include "thread_pool.h"

enum {
    POSITIONS_MIN = 1024, /* of a picture */
    STRIP = 2 * W2_PAIRS,
    BLOCK_BYTES = 5 << 18,
    ROWS_MAX = 64,
    ITEMS_A_THREAD = 2,
    STREAM_BYTES_MIN = 1 << 20, /* of y */
};

struct job {
    const struct winograd2_kernel *kernel;
    const struct row_ops *rows;
    const struct cpu_weight *w;
    struct pool *pool;
    const struct gemm_args *a;
    int strips, block_rows; /* of a picture; output rows of a block */
    int blocks_y, blocks;   /* of a strip, of all */
    int parts, part_panels;
    bool past_caches; /* y is stored past them: as in gemm.c, which waits for lines that it overwrites as we
                         do */
};

struct block {
    int n, y, x; /* first output */
    int rows, columns;
};

/* What a thread works in. */
struct memory {
    struct w2_state state;
    char *v, *zeros;
    size_t v_row, v_place;
};

static size_t row_bytes(int channels)
{
    return (size_t)(channels / W2_STEP) * W2_TILE;
}

bool winograd2_suits(const struct cpu_state *st, const struct gemm_args *a)
{
    const struct cpu_weight *w = a->w->packed;
    const int strips = div_up(a->y.w, STRIP); /* a quarter of them may be wasted */
    return st->tier->winograd2 && w->winograd2 && a->x.dtype == DTYPE_BF16 && a->stride <= 1 &&
           !a->upsample && !a->pad_end && 4 * a->y.w >= 3 * STRIP * strips &&
           a->y.h * a->y.w >= POSITIONS_MIN;
}

/* ---- V ---- */

/* Input row IY of picture N, the Ith of the block. */
static void fill_row(const struct job *job, const struct block *b, const struct memory *m, int i)
{
    tensor x = job->a->x;
    const size_t column = (size_t)x.ld * dtype_size(x.dtype);
    const int iy = b->y - 1 + i, x0 = b->x - 1, pairs = div_up(b->columns, 2);
    char *dst = m->v + (size_t)i * m->v_row;
    if (iy < 0 || iy >= x.h) {
        for (int j = 0; j < W2_PLACES; j++)
            memset(dst + (size_t)j * m->v_place, 0, m->v_row);
        return;
    }
    const char *row = (const char *)x.data + (((ptrdiff_t)b->n * x.h + iy) * x.w + x0) * (ptrdiff_t)column;
    struct w2_input in = {.dst = dst,
                          .place = m->v_place,
                          .row = row,
                          .next = iy + 1 < x.h ? row + (size_t)x.w * column + column : row + column,
                          .stride = column,
                          .left = x0 < 0 ? -x0 : 0,
                          .right = x.w - x0,
                          .pairs = pairs,
                          .channels = job->w->channels,
                          .zeros = m->zeros,
                          .scale = job->a->norm_scale,
                          .shift = job->a->norm_shift};
    job->kernel->input(&in);
}

/* ---- y ---- */

static size_t first_position(const struct job *job, const struct block *b, int row)
{
    tensor y = job->a->y;
    return ((size_t)b->n * (size_t)y.h + (size_t)(b->y + row)) * (size_t)y.w + (size_t)b->x;
}

/* Whether the kernel itself can end all outputs of a group and panel. */
static bool ends_directly(const struct job *job, const struct block *b, const struct finish *f)
{
    const struct gemm_args *a = job->a;
    return a->y.dtype == DTYPE_BF16 && f->cols == W2_COLS && a->act == ACT_NONE && b->columns % 2 == 0 &&
           (!a->residual.data || a->residual.dtype == DTYPE_BF16);
}

static struct w2_output make_output(const struct job *job, const struct block *b, int row, int p)
{
    struct finish f = gemm_end(job->a, W2_COLS, p, first_position(job, b, row), 1);
    return (struct w2_output){.rows = min_int(W2_ROWS, b->rows - row),
                              .pairs = div_up(b->columns, 2),
                              .direct = ends_directly(job, b, &f),
                              .stream = job->past_caches && (((uintptr_t)f.y | f.y_stride) & 63) == 0,
                              .bias = f.bias,
                              .add = f.add,
                              .add_type = f.add_type,
                              .y = f.y,
                              .y_column = f.y_stride,
                              .y_row = (size_t)job->a->y.w * f.y_stride,
                              .residual = f.residual,
                              .residual_column = f.residual_stride,
                              .residual_row = (size_t)job->a->y.w * f.residual_stride};
}

/* Ends what the kernel left in the work space. */
static void end_group(const struct job *job, const struct block *b, const struct memory *m, int row, int p)
{
    for (int i = 0; i < min_int(W2_ROWS, b->rows - row); i++) {
        struct finish f = gemm_end(job->a, W2_COLS, p, first_position(job, b, row + i), b->columns);
        f.c = m->state.y + i * STRIP * W2_COLS;
        job->rows->finish(&f);
    }
}

/* ---- Blocks ---- */

static struct memory memory_of(const struct job *job, int worker)
{
    const size_t zeros = ((size_t)job->w->channels * 2 + 4095) / 4096 * 4096;
    char *p = pool_scratch(job->pool, worker);
    struct memory m = {.v_row = row_bytes(job->w->channels)};
    m.state.m = (float *)(void *)p;
    m.state.y = m.state.m + W2_PLACES * W2_SUM;
    m.zeros = (char *)(m.state.y + W2_SUM * 2);
    memset(m.zeros, 0, zeros);
    m.v = m.zeros + zeros;
    m.v_place = (size_t)(job->block_rows + 2) * m.v_row;
    return m;
}

static struct block block_at(const struct job *job, int i)
{
    tensor y = job->a->y;
    struct block b = {.y = i % job->blocks_y * job->block_rows, .x = i / job->blocks_y % job->strips * STRIP};
    b.n = i / job->blocks_y / job->strips;
    b.rows = min_int(job->block_rows, y.h - b.y);
    b.columns = min_int(STRIP, y.w - b.x);
    return b;
}

static void run_panel(const struct job *job, const struct block *b, struct memory *m, int p, int next)
{
    const int groups = div_up(b->rows, W2_ROWS);
    struct w2_product product = {.v_place = m->v_place,
                                 .v_row = m->v_row,
                                 .channels = job->w->channels,
                                 .lines = div_up(3 * W2_STEP, groups)};
    for (int j = 0; j < W2_PLACES; j++) {
        const struct cpu_weight *u = weight_winograd2(job->w, j);
        product.u[j] = weight_data(u) + (size_t)p * u->panel_bytes;
        product.next = (ptrdiff_t)(next - p) * (ptrdiff_t)u->panel_bytes;
    }
    for (int g = 0; g < groups; g++) {
        product.v = m->v + (size_t)(g * W2_ROWS) * m->v_row;
        product.out = make_output(job, b, g * W2_ROWS, p);
        job->kernel->product(&m->state, &product);
        if (!product.out.direct) {
            job->kernel->flush(&m->state);
            end_group(job, b, m, g * W2_ROWS, p);
        }
    }
}

static void run_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    const struct block b = block_at(job, item % job->blocks);
    const int p0 = item / job->blocks * job->part_panels, p1 = min_int(job->w->panels, p0 + job->part_panels);
    struct memory m = memory_of(job, worker);
    for (int i = 0; i < div_up(b.rows, W2_ROWS) * W2_ROWS + 2; i++)
        fill_row(job, &b, &m, i);
    job->kernel->begin();
    for (int p = p0; p < p1; p++)
        run_panel(job, &b, &m, p, p + 1 < p1 ? p + 1 : p0);
    job->kernel->flush(&m.state);
    job->rows->fence();
    job->kernel->end();
}

/* Rows of a block: as many as fit, few enough that all threads have work; then parts of the panels. */
static void choose_blocks(struct job *job)
{
    const int want = ITEMS_A_THREAD * pool_threads(job->pool), strips = job->strips * job->a->y.n;
    const int rows = div_up(job->a->y.h, W2_ROWS);
    int most = (int)((size_t)BLOCK_BYTES / W2_PLACES / row_bytes(job->w->channels)) - 2;
    most = most < W2_ROWS ? 1 : min_int(most, ROWS_MAX) / W2_ROWS;
    job->blocks_y = div_up(rows, most);
    if (job->blocks_y * strips < want)
        job->blocks_y = min_int(rows, div_up(want, strips));
    job->block_rows = div_up(rows, job->blocks_y) * W2_ROWS;
    job->blocks_y = div_up(job->a->y.h, job->block_rows);
    job->blocks = strips * job->blocks_y;
    job->part_panels = div_up(job->w->panels, min_int(job->w->panels, div_up(want, job->blocks)));
    job->parts = div_up(job->w->panels, job->part_panels);
}

int winograd2_run(struct backend *be, const struct gemm_args *a)
{
    const struct tier *tier = cpu_tier(be);
    struct job job = {.kernel = tier->winograd2,
                      .rows = tier->rows,
                      .w = a->w->packed,
                      .pool = be->pool,
                      .a = a,
                      .strips = div_up(a->y.w, STRIP)};
    job.past_caches = tensor_count(a->y) * dtype_size(a->y.dtype) >= STREAM_BYTES_MIN;
    choose_blocks(&job);
    pool_run(be->pool, job.blocks * job.parts, run_item, &job);
    return 0;
}
