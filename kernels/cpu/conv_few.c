/* 3x3 convolution to a few outputs: conv_out of a UNet (4) and of a VAE's decoder (3).
 *
 * In panels of 16 or 32 outputs such a layer is mostly empty columns, nine times over. Here the taps are
 * columns, too (pack.c): a row of x times [channels][taps x outputs] gives what that position adds to each of
 * the outputs around it, and an output is the sum of nine such numbers. With a norm before it (norm_scale,
 * norm_shift) rows of x are normed on the way into the product.
 *
 * FLOPs: 128 -> 3 channels takes 27 of 32 columns instead of 9 times 3 of 16. Bytes: x is read once, and the
 * two rows around a block of up to 32 twice; a normed picture, which would be written and read again, is not
 * made. The products of three rows stay in the second level: 66 KB each for 512 positions.
 *
 * A number is summed over channels, then over taps: blocks and threads do not matter. */
#include <string.h>

#include "gemm.h"
#include "thread_pool.h"

enum {
    SIDE = 3,            /* of the kernel */
    LANES = FEW_OUTPUTS, /* for the compiler's vectors */
    BLOCK_ROWS = 32,
    BLOCK_ROWS_MIN = 4,
    BLOCK_COLS = 512,
    ITEMS_A_THREAD = 4
};

struct job {
    const struct gemm_kernel *g;
    const struct row_ops *rows;
    const struct cpu_weight *w;
    const struct gemm_args *a;
    struct pool *pool;
    int stride, shift, pad; /* pad: rows and columns of zeros before the first */
    int block_h, block_w, blocks_y, blocks_x;
    int line; /* most columns of x that a block reads */
};

/* Outputs y0 to y1, x0 to x1 of picture n, and the columns of x that they read. */
struct block {
    int n, y0, y1, x0, x1, from, to;
};

/* What a thread works in. */
struct memory {
    char *a;        /* [mr][channels]: rows of x as the kernel wants them */
    const char *b;  /* [panels] of the kernel's type */
    float *sums;    /* [BLOCK_COLS][nr] */
    float *product; /* [SIDE rows of x][panels][line][nr] */
};

/* x's row or column that output I reads at tap K; negative or the side and more: none. */
static int read_at(const struct job *job, int i, int k, int side)
{
    const int at = i * job->stride - job->pad + k;
    return at < 0 || at >= side << job->shift ? -1 : at >> job->shift;
}

static size_t panel_floats(const struct job *job)
{
    return (size_t)(job->line * job->g->nr);
}

static float *product_row(const struct job *job, const struct memory *m, int iy)
{
    return m->product + (size_t)(iy % SIDE * job->w->panels) * panel_floats(job);
}

static struct memory memory_of(const struct job *job, int worker)
{
    const struct cpu_weight *w = job->w;
    const struct gemm_kernel *g = job->g;
    char *p = pool_scratch(job->pool, worker);
    struct memory m = {.a = p, .b = weight_data(w)};
    p += round_up_bytes((size_t)(g->mr * w->channels) * dtype_size(g->dtype), 64);
    if (w->dtype != g->dtype) {
        const size_t numbers = (size_t)(w->panels * w->channels * g->nr);
        job->rows->convert(p, g->dtype, m.b, w->dtype, numbers);
        m.b = p;
        p += round_up_bytes(numbers * dtype_size(g->dtype), 64);
    }
    m.sums = (float *)(void *)p;
    m.product = m.sums + job->block_w * g->nr; /* fits: FEW_CHANNELS */
    return m;
}

/* COUNT rows of the kernel's A, from column IX of row IY on; *LDA: bytes from one to the next. */
static const char *input_rows(const struct job *job, const struct memory *m, int n, int iy, int ix, int count,
                              size_t *lda)
{
    const tensor x = job->a->x;
    const struct gemm_args *a = job->a;
    const enum dtype type = job->g->dtype;
    const size_t position = (size_t)x.ld * dtype_size(x.dtype);
    const char *src =
        (const char *)x.data + (((size_t)n * (size_t)x.h + (size_t)iy) * (size_t)x.w + (size_t)ix) * position;
    if (!a->norm_scale && x.dtype == type && x.c == job->w->channels) {
        *lda = position;
        return src;
    }
    *lda = (size_t)job->w->channels * dtype_size(type);
    if (!a->norm_scale) {
        job->rows->gather(&(struct gather){.dst = m->a,
                                           .dst_type = type,
                                           .width = job->w->channels,
                                           .channels = x.c,
                                           .src = src,
                                           .src_type = x.dtype,
                                           .src_stride = position,
                                           .step = 1,
                                           .count = count});
        return m->a;
    }
    const size_t bytes = (size_t)x.c * dtype_size(type);
    for (int i = 0; i < count; i++) {
        char *to = m->a + (size_t)i * *lda;
        job->rows->affine(to, type, src + (size_t)i * position, x.dtype, x.c, a->norm_scale, a->norm_shift,
                          true, false);
        memset(to + bytes, 0, *lda - bytes);
    }
    return m->a;
}

/* The products of row IY of x. */
static void multiply_row(const struct job *job, const struct memory *m, const struct block *b, int iy)
{
    const struct cpu_weight *w = job->w;
    const struct gemm_kernel *g = job->g;
    const int count = b->to - b->from, calls = div_up(count, g->mr), nr = g->nr;
    const size_t zero = 0, panel_b = (size_t)(w->channels * nr) * dtype_size(g->dtype);
    struct gemm_tile t = {.tap = &zero, .taps = 1, .k = w->channels, .prefetch = m->b};
    float *to = product_row(job, m, iy);
    for (int i = 0, done = 0, rows; i < calls; i++, done += rows) {
        rows = g->m_align > 1 ? min_int(g->mr, count - done) : (count - done) / (calls - i);
        t.a = input_rows(job, m, b->n, iy, b->from + done, rows, &t.lda);
        for (int p = 0; p < w->panels; p++) {
            const int taps = min_int(job->w->tap_columns, SIDE * SIDE - p * job->w->tap_columns);
            t.b = m->b + (size_t)p * panel_b;
            t.c = to + (size_t)p * panel_floats(job) + done * nr;
            t.half = taps * job->a->y.c <= nr / 2;
            g->run(rows, &t);
        }
    }
}

/* Row Y of the block's outputs from the products of the rows of x around it. */
static void end_row(const struct job *job, const struct memory *m, const struct block *b, int y)
{
    const tensor x = job->a->x, out = job->a->y;
    const int nr = job->g->nr;
    const float *tap[SIDE * SIDE];
    bool inside[SIDE];
    for (int k = 0; k < SIDE * SIDE; k++) {
        const int iy = read_at(job, y, k / SIDE, x.h), panel = k / job->w->tap_columns;
        inside[k / SIDE] = iy >= 0;
        tap[k] = product_row(job, m, iy < 0 ? 0 : iy) + (size_t)panel * panel_floats(job) +
                 k % job->w->tap_columns * out.c - (ptrdiff_t)b->from * nr;
    }
    for (int ox = b->x0; ox < b->x1; ox++) {
        float sum[LANES] = {0};
        for (int kx = 0; kx < SIDE; kx++) {
            const int ix = read_at(job, ox, kx, x.w);
            for (int ky = 0; ix >= 0 && ky < SIDE; ky++)
                for (int o = 0; inside[ky] && o < LANES; o++) /* lanes past the outputs are not used */
                    sum[o] += tap[ky * SIDE + kx][(ptrdiff_t)ix * nr + o];
        }
        memcpy(m->sums + (ox - b->x0) * nr, sum, sizeof sum);
    }
    gemm_finish(job->a, job->rows, nr, 0, m->sums,
                ((size_t)b->n * (size_t)out.h + (size_t)y) * (size_t)out.w + (size_t)b->x0, b->x1 - b->x0);
}

static struct block block_at(const struct job *job, int item)
{
    const tensor x = job->a->x, y = job->a->y;
    struct block b = {.n = item / job->blocks_x / job->blocks_y,
                      .y0 = item / job->blocks_x % job->blocks_y * job->block_h,
                      .x0 = item % job->blocks_x * job->block_w};
    b.y1 = min_int(y.h, b.y0 + job->block_h);
    b.x1 = min_int(y.w, b.x0 + job->block_w);
    const int from = read_at(job, b.x0, 0, x.w), to = read_at(job, b.x1 - 1, SIDE - 1, x.w);
    b.from = from < 0 ? 0 : from;
    b.to = to < 0 ? x.w : to + 1;
    return b;
}

static void run_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    const struct block b = block_at(job, item);
    const struct memory m = memory_of(job, worker);
    int next = 0; /* row of x */
    if (job->g->begin)
        job->g->begin();
    for (int y = b.y0; y < b.y1; y++) {
        for (int k = 0; k < SIDE; k++) {
            const int iy = read_at(job, y, k, job->a->x.h);
            if (iy >= next) {
                multiply_row(job, &m, &b, iy);
                next = iy + 1;
            }
        }
        end_row(job, &m, &b, y);
    }
    job->rows->fence();
    if (job->g->end)
        job->g->end();
}

static void choose_blocks(struct job *job)
{
    const tensor y = job->a->y;
    job->blocks_x = div_up(y.w, BLOCK_COLS);
    job->block_w = div_up(y.w, job->blocks_x);
    const size_t rows = (size_t)y.n * (size_t)y.h * (size_t)job->blocks_x,
                 share = rows / (size_t)(ITEMS_A_THREAD * pool_threads(job->pool));
    job->block_h = share > BLOCK_ROWS ? BLOCK_ROWS : share < BLOCK_ROWS_MIN ? BLOCK_ROWS_MIN : (int)share;
    job->blocks_y = div_up(y.h, job->block_h);
    job->line = (job->block_w - 1) * job->stride + SIDE;
}

int conv_few_run(struct backend *be, const struct gemm_args *a)
{
    const struct tier *tier = cpu_tier(be);
    struct job job = {.g = tier->gemm,
                      .rows = tier->rows,
                      .w = a->w->packed,
                      .a = a,
                      .pool = be->pool,
                      .stride = a->stride > 1 ? a->stride : 1,
                      .shift = a->upsample ? 1 : 0,
                      .pad = a->pad_end ? 0 : 1};
    choose_blocks(&job);
    pool_run(be->pool, a->y.n * job.blocks_y * job.blocks_x, run_item, &job);
    return 0;
}
