/* 3x3 convolution of stride 1 by Winograd's F(4, 3) along rows on tiers with a kernel for it
 * (winograd_rows_amx.c): cuts the output into strips of 16 quads of columns, these into blocks of rows, and
 * deals the blocks out.
 *
 * FLOPs: half of the direct sum's. Bytes: what is met again and again should stay in the second-level cache.
 * Where U (twice the weights, made at load) fits, it does, and V rolls by: of four rows, two are made for
 * each group, and the group meets all panels, so that lines of the residual and of y are met in one go.
 * Otherwise V of a block of rows (1 1/2 times its inputs and a halo, BLOCK_BYTES at most) stays while U
 * passes, a chunk of panels at a time.
 *
 * Rounding: V and U once to bf16. For inputs and weights of random signs a product's two roundings, each 0.41
 * * 2^-8 of it in the mean square, become 3.1 times that of the output (WR_POINT in winograd_rows.h).
 *
 * Which way a convolution goes depends on the shape of one picture alone, and quads do not depend on each
 * other: same bits in any batch and with any number of threads. Sides may be odd: what lies beyond the
 * picture is not written. */
#include "winograd_rows.h"

#include <string.h>

#include "gemm.h"
#include "thread_pool.h"

enum {
    POSITIONS_MIN = 1024, /* of a picture */
    STRIP = WR_OUT * WR_QUADS,
    V_ROWS = WR_ROWS + 2,  /* that a group meets */
    BLOCK_BYTES = 5 << 18, /* of V, which stays while U passes */
    U_BYTES = 5 << 18,     /* of all panels, which stay while V rolls by */
    CHUNK_BYTES = 5 << 17, /* of U of a chunk */
    ROWS_MAX = 64,
    ITEMS_A_THREAD = 2,
    STREAM_BYTES_MIN = 1 << 20, /* of y */
};

struct job {
    const struct winograd_rows_kernel *kernel;
    const struct row_ops *rows;
    const struct cpu_weight *w;
    struct pool *pool;
    const struct gemm_args *a;
    int strips, block_rows; /* of a picture; output rows of a block */
    int blocks_y, blocks;   /* of a strip, of all */
    int parts, part_panels;
    int chunk;        /* panels that a group meets before the next group does */
    bool rolls;       /* U stays and V rolls by */
    float *sums;      /* NULL, or those of struct kept_sums: a part is a strip's group */
    bool past_caches; /* y is stored past them: as in gemm_blocks.c, which waits for lines that it overwrites
                         as we do */
};

struct block {
    int n, y, x; /* first output */
    int rows, columns;
};

/* What a thread works in. */
struct memory {
    struct wr_state state;
    char *v, *zeros;
    float *carry;
    size_t v_row, v_place;
};

static size_t row_bytes(int channels)
{
    return (size_t)(channels / WR_STEP) * WR_TILE;
}

bool winograd_rows_suits(const struct cpu_state *st, const struct gemm_args *a)
{
    const struct cpu_weight *w = a->w->packed;
    const int strips = div_up(a->y.w, STRIP); /* a quarter of them may be wasted */
    return st->tier->winograd_rows && w->winograd_rows && a->x.dtype == DTYPE_BF16 && a->stride <= 1 &&
           !a->upsample && !a->pad_end && 4 * a->y.w >= 3 * STRIP * strips &&
           a->y.h * a->y.w >= POSITIONS_MIN;
}

/* ---- V ---- */

/* Where the Ith input row of the block lies. */
static char *v_row(const struct job *job, const struct memory *m, int i)
{
    return m->v + (size_t)(job->rolls ? i % V_ROWS : i) * m->v_row;
}

/* Makes V of the Ith input row of the block. */
static void fill_row(const struct job *job, const struct block *b, const struct memory *m, int i)
{
    tensor x = job->a->x;
    const size_t column = (size_t)x.ld * dtype_size(x.dtype);
    const int iy = b->y - 1 + i, x0 = b->x - 1, quads = div_up(b->columns, WR_OUT);
    char *dst = v_row(job, m, i);
    if (iy < 0 || iy >= x.h) {
        for (int j = 0; j < WR_PLACES; j++)
            memset(dst + (size_t)j * m->v_place, 0, m->v_row);
        return;
    }
    const char *row = (const char *)x.data + (((ptrdiff_t)b->n * x.h + iy) * x.w + x0) * (ptrdiff_t)column;
    struct wr_input in = {.dst = dst,
                          .place = m->v_place,
                          .row = row,
                          .next = iy + 1 < x.h ? row + (size_t)x.w * column + column : row + column,
                          .stride = column,
                          .left = x0 < 0 ? -x0 : 0,
                          .right = x.w - x0,
                          .quads = quads,
                          .channels = job->w->channels,
                          .carry = m->carry,
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
    return a->y.dtype == DTYPE_BF16 && f->cols == WR_COLS && a->act == ACT_NONE && b->columns % WR_OUT == 0 &&
           (!a->residual.data || a->residual.dtype == DTYPE_BF16);
}

/* Where the sums of a group and panel are kept. */
static float *sums_at(const struct job *job, const struct block *b, int row, int p)
{
    const int part = (b->y + row) / WR_ROWS * job->strips + b->x / STRIP;
    return job->sums ? job->sums + ((size_t)part * (size_t)job->w->panels + (size_t)p) * 2 * WR_COLS : NULL;
}

static struct wr_output make_output(const struct job *job, const struct block *b, int row, int p)
{
    struct finish f = gemm_end(job->a, WR_COLS, p, first_position(job, b, row), 1);
    return (struct wr_output){.rows = min_int(WR_ROWS, b->rows - row),
                              .quads = div_up(b->columns, WR_OUT),
                              .direct = ends_directly(job, b, &f),
                              .stream = job->past_caches && (((uintptr_t)f.y | f.y_stride) & 63) == 0,
                              .sums = sums_at(job, b, row, p),
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
    for (int i = 0; i < min_int(WR_ROWS, b->rows - row); i++) {
        struct finish f = gemm_end(job->a, WR_COLS, p, first_position(job, b, row + i), b->columns);
        f.c = m->state.y + i * STRIP * WR_COLS;
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
    m.state.y = m.state.m + WR_SUMS;
    m.zeros = (char *)(m.state.y + WR_UNITS * WR_OUT * WR_COLS);
    memset(m.zeros, 0, zeros);
    m.carry = (float *)(void *)(m.zeros + zeros);
    m.v = (char *)(m.carry + 2 * job->w->channels);
    m.v_place = (size_t)(job->rolls ? V_ROWS : job->block_rows + 2) * m.v_row;
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

/* Whether it can end all of them. */
static bool ends_all(const struct job *job)
{
    const struct block last = block_at(job, job->blocks - 1);
    const struct finish f = gemm_end(job->a, WR_COLS, job->w->panels - 1, 0, 1);
    return ends_directly(job, &last, &f);
}

static void run_group(const struct job *job, const struct block *b, struct memory *m, int p, int row)
{
    struct wr_product product = {.v = {v_row(job, m, row), v_row(job, m, row + WR_ROWS)},
                                 .v_place = m->v_place,
                                 .v_row = m->v_row,
                                 .channels = job->w->channels,
                                 .out = make_output(job, b, row, p)};
    for (int j = 0; j < WR_PLACES; j++) {
        const struct cpu_weight *u = weight_winograd_rows(job->w, j);
        product.u[j] = weight_data(u) + (size_t)p * u->panel_bytes;
    }
    job->kernel->product(&m->state, &product);
    if (!product.out.direct) {
        job->kernel->flush(&m->state);
        end_group(job, b, m, row, p);
    }
}

static void run_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    const struct block b = block_at(job, item % job->blocks);
    const int p0 = item / job->blocks * job->part_panels, p1 = min_int(job->w->panels, p0 + job->part_panels);
    const int rows = div_up(b.rows, WR_ROWS) * WR_ROWS;
    struct memory m = memory_of(job, worker);
    int filled = 0;
    job->kernel->begin();
    for (int q = p0; q < p1; q += job->chunk)
        for (int row = 0; row < rows; row += WR_ROWS) {
            for (int last = job->rolls ? row + V_ROWS : rows + 2; filled < last; filled++)
                fill_row(job, &b, &m, filled);
            for (int p = q; p < min_int(p1, q + job->chunk); p++)
                run_group(job, &b, &m, p, row);
        }
    job->kernel->flush(&m.state);
    job->rows->fence();
    job->kernel->end();
}

/* Rows of a block that is not to roll: as many as fit. */
static int rows_that_fit(const struct job *job)
{
    const int rows = (int)((size_t)BLOCK_BYTES / WR_PLACES / row_bytes(job->w->channels)) - 2;
    return rows < WR_ROWS ? WR_ROWS : min_int(rows, ROWS_MAX);
}

/* Rows of a block: few enough that all threads have work; then parts of the panels. */
static void choose_blocks(struct job *job)
{
    const int want = ITEMS_A_THREAD * pool_threads(job->pool), strips = job->strips * job->a->y.n;
    const int panels = job->w->panels, rows = div_up(job->a->y.h, WR_ROWS);
    const size_t panel = WR_PLACES * weight_winograd_rows(job->w, 0)->panel_bytes;
    job->rolls = (size_t)panels * panel <= U_BYTES;
    job->blocks_y = div_up(rows, (job->rolls ? ROWS_MAX : rows_that_fit(job)) / WR_ROWS);
    if (job->blocks_y * strips < want)
        job->blocks_y = min_int(rows, div_up(want, strips));
    job->block_rows = div_up(rows, job->blocks_y) * WR_ROWS;
    job->blocks_y = div_up(job->a->y.h, job->block_rows);
    job->blocks = strips * job->blocks_y;
    job->part_panels = div_up(panels, min_int(panels, div_up(want, job->blocks)));
    job->parts = div_up(panels, job->part_panels);
    job->chunk = job->rolls ? job->part_panels : panel > CHUNK_BYTES ? 1 : (int)(CHUNK_BYTES / panel);
}

int winograd_rows_run(struct backend *be, const struct gemm_args *a)
{
    const struct tier *tier = cpu_tier(be);
    struct job job = {.kernel = tier->winograd_rows,
                      .rows = tier->rows,
                      .w = a->w->packed,
                      .pool = be->pool,
                      .a = a,
                      .strips = div_up(a->y.w, STRIP)};
    job.past_caches = tensor_count(a->y) * dtype_size(a->y.dtype) >= STREAM_BYTES_MIN;
    choose_blocks(&job);
    if (a->normed && ends_all(&job))
        job.sums = keep_sums(be, a->y, div_up(a->y.h, WR_ROWS) * job.strips);
    pool_run(be->pool, job.blocks * job.parts, run_item, &job);
    return 0;
}
