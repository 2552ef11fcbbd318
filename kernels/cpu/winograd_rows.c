/* 3x3 convolution of stride 1 by Winograd's F(4, 3) along rows on tiers with a kernel for it
 * (winograd_rows_amx.c): cuts the output into strips of 16 quads of columns, these into blocks of rows, and
 * deals the blocks out. A picture whose rows do not fill strips is cut into bands of rows first, which lie
 * side by side: what is said of rows and strips below is of that wide picture.
 *
 * FLOPs: half of the direct sum's. Bytes: what is met again and again should stay in the second-level cache.
 * Where U (twice the weights, made at load) fits, it does, and V rolls by: of four rows, two are made for
 * each group, and the group meets all panels, so that lines of the residual and of y are met in one go.
 * Otherwise V of a block of rows (1 1/2 times its inputs and a halo, BLOCK_BYTES at most) stays while U
 * passes, a chunk of panels at a time. Many channels go in slices, so that a block has many rows for U to
 * meet; outputs of the slices before wait in fp32.
 *
 * Rounding: V and U once to bf16. For inputs and weights of random signs a product's two roundings, each 0.41
 * * 2^-8 of it in the mean square, become 3.1 times that of the output (WR_POINT in winograd_rows.h).
 *
 * Bands and slices depend on the shape of one picture alone, and quads do not depend on each other: same bits
 * in any batch and with any number of threads. (A norm behind it takes the sums that are kept here for one
 * picture alone, of outputs before they are rounded.) Sides may be odd: what lies beyond the picture is not
 * written.
 */
#include "winograd_rows.h"

#include <string.h>

#include "gemm.h"
#include "thread_pool.h"

enum {
    STRIP = WR_OUT * WR_QUADS,
    V_ROWS = WR_ROWS + 2,  /* that a group meets */
    BLOCK_BYTES = 5 << 18, /* of V, which stays while U passes */
    U_BYTES = 5 << 18,     /* of all panels, which stay while V rolls by */
    CHUNK_BYTES = 5 << 17, /* of U of a chunk */
    SLICE_CHANNELS = 384,  /* most of a slice */
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
    int bands, band_rows;   /* of a picture */
    int strips, block_rows; /* of a picture; output rows of a block */
    int blocks_y, blocks;   /* of a strip, of all */
    int parts, part_panels;
    int slices, slice; /* of the channels; channels of one, the last may have fewer */
    int chunk;         /* panels that a group meets before the next group does */
    bool rolls;        /* U stays and V rolls by */
    float *sums;       /* NULL, or those of struct kept_sums: a part is a strip's group */
    bool past_caches;  /* y is stored past them: as in gemm_blocks.c, which waits for lines that it overwrites
                          as we do */
};

struct block {
    int n, y, rows, strip; /* y: its first row */
};

/* QUADS of BAND, FIRST counted in its rows and AT in the strip's. */
struct piece {
    int band, first, at, quads;
};

struct strip {
    struct wr_strip where;
    struct piece piece[WR_QUADS];
    int pieces;
    bool whole; /* no quad reaches beyond the picture's rows */
};

/* What a thread works in. */
struct memory {
    struct wr_state state;
    struct strip strip;
    char *v, *zeros;
    float *carry, *work; /* WORK: [groups of a block][panels of a part] where there are slices, or one */
    size_t v_row, v_place;
};

/* The slice that is at work. */
struct slice {
    int first, channels;
    bool begins, ends;
};

static size_t row_bytes(int channels)
{
    return (size_t)(channels / WR_STEP) * WR_TILE;
}

bool winograd_rows_suits(const struct gemm_args *a)
{
    return a->w->form == FORM_WINOGRAD_ROWS && a->x.dtype == DTYPE_BF16 && a->stride <= 1 && !a->upsample &&
           !a->pad_end;
}

/* ---- Bands and strips ---- */

static int row_quads(const struct job *job)
{
    return div_up(job->a->y.w, WR_OUT);
}

/* As many bands as leave the fewest rows of strips to compute, each strip's first and last of V counted as
 * one. */
static void choose_bands(struct job *job)
{
    const int h = job->a->y.h, quads = row_quads(job);
    int least = 0;
    for (int bands = 1; bands <= WR_QUADS && (bands - 1) * WR_ROWS < h; bands++) {
        const int rows = div_up(div_up(h, bands), WR_ROWS) * WR_ROWS,
                  strips = div_up(bands * quads, WR_QUADS);
        if (least && strips * (rows + 1) >= least)
            continue;
        least = strips * (rows + 1);
        job->bands = bands;
        job->band_rows = rows;
        job->strips = strips;
    }
}

static void make_strip(const struct job *job, int i, struct strip *s)
{
    const int quads = row_quads(job), w = job->a->y.w, last = min_int((i + 1) * WR_QUADS, job->bands * quads);
    memset(s, 0, sizeof *s);
    s->whole = true;
    for (int q = i * WR_QUADS; q < last; s->pieces++) {
        struct piece *p = &s->piece[s->pieces];
        *p = (struct piece){q / quads, q % quads, q % WR_QUADS, min_int(last - q, quads - q % quads)};
        for (int k = 0; k < p->quads; k++) {
            const int y = p->band * job->band_rows;
            s->where.rows[p->at + k] = min_int(job->band_rows, job->a->y.h - y);
            s->where.at[p->at + k] = y * w + (p->first + k) * WR_OUT;
        }
        s->whole = s->whole && (p->first + p->quads) * WR_OUT <= w;
        q += p->quads;
    }
}

/* ---- V ---- */

/* Where the Ith input row of the block lies. */
static char *v_row(const struct job *job, const struct memory *m, int i)
{
    return m->v + (size_t)(job->rolls ? i % V_ROWS : i) * m->v_row;
}

static void zero_piece(const struct memory *m, const struct piece *p, char *dst, int channels)
{
    for (int j = 0; j < WR_PLACES; j++, dst += m->v_place)
        for (int k = 0; k < channels / WR_STEP; k++)
            memset(dst + k * WR_TILE, 0, (size_t)p->quads * WR_STEP * 2);
}

/* V of the picture's row IY. */
static void fill_piece(const struct job *job, int n, const struct memory *m, const struct slice *slice,
                       const struct piece *p, int iy, char *dst)
{
    tensor x = job->a->x;
    const size_t column = (size_t)x.ld * dtype_size(x.dtype);
    const int x0 = p->first * WR_OUT - 1;
    const float *scale = job->a->norm_scale, *shift = job->a->norm_shift;
    const char *row = (const char *)x.data + (((ptrdiff_t)n * x.h + iy) * x.w + x0) * (ptrdiff_t)column +
                      (size_t)slice->first * dtype_size(x.dtype);
    struct wr_input in = {.dst = dst,
                          .place = m->v_place,
                          .row = row,
                          .next = iy + 1 < x.h ? row + (size_t)x.w * column + column : row + column,
                          .stride = column,
                          .left = x0 < 0 ? -x0 : 0,
                          .right = x.w - x0,
                          .quads = p->quads,
                          .channels = slice->channels,
                          .carry = m->carry,
                          .zeros = m->zeros,
                          .scale = scale ? scale + slice->first : NULL,
                          .shift = shift ? shift + slice->first : NULL};
    job->kernel->input(&in);
}

/* Makes V of the Ith input row of the block. */
static void fill_row(const struct job *job, const struct block *b, const struct memory *m,
                     const struct slice *slice, int i)
{
    for (int k = 0; k < m->strip.pieces; k++) {
        const struct piece *p = &m->strip.piece[k];
        const int iy = p->band * job->band_rows + b->y - 1 + i;
        char *dst = v_row(job, m, i) + (size_t)p->at * WR_STEP * 2;
        if (iy < 0 || iy >= job->a->x.h)
            zero_piece(m, p, dst, slice->channels);
        else
            fill_piece(job, b->n, m, slice, p, iy, dst);
    }
}

/* ---- y ---- */

/* The first position of row IY of the picture. */
static size_t row_position(const struct job *job, const struct block *b, int iy)
{
    tensor y = job->a->y;
    return ((size_t)b->n * (size_t)y.h + (size_t)iy) * (size_t)y.w;
}

/* Whether the kernel itself can end all outputs of a group and panel. */
static bool ends_directly(const struct job *job, const struct strip *s, const struct finish *f)
{
    const struct gemm_args *a = job->a;
    return a->y.dtype == DTYPE_BF16 && f->cols == WR_COLS && a->act == ACT_NONE && s->whole &&
           (!a->residual.data || a->residual.dtype == DTYPE_BF16);
}

/* Where the sums of a group and panel are kept. */
static float *sums_at(const struct job *job, const struct block *b, int row, int p)
{
    const int part = (b->y + row) / WR_ROWS * job->strips + b->strip;
    return job->sums ? job->sums + ((size_t)part * (size_t)job->w->panels + (size_t)p) * 2 * WR_COLS : NULL;
}

static struct wr_output make_output(const struct job *job, const struct block *b, const struct memory *m,
                                    const struct slice *slice, int row, int p)
{
    struct finish f = gemm_end(job->a, WR_COLS, p, row_position(job, b, b->y + row), 1);
    const int kept = job->slices > 1 ? row / WR_ROWS * job->part_panels + p % job->part_panels : 0;
    return (struct wr_output){.strip = &m->strip.where,
                              .row = b->y + row,
                              .direct = slice->ends && ends_directly(job, &m->strip, &f),
                              .begun = !slice->begins,
                              .stream = job->past_caches && (((uintptr_t)f.y | f.y_stride) & 63) == 0,
                              .work = m->work + (size_t)kept * WR_WORK,
                              .sums = slice->ends ? sums_at(job, b, row, p) : NULL,
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

/* Ends what the kernel left in WORK. */
static void end_group(const struct job *job, const struct block *b, const struct memory *m, const float *work,
                      int row, int p)
{
    for (int k = 0; k < m->strip.pieces; k++) {
        const struct piece *piece = &m->strip.piece[k];
        const int column = piece->first * WR_OUT;
        for (int i = 0; i < WR_ROWS && b->y + row + i < m->strip.where.rows[piece->at]; i++) {
            const int iy = piece->band * job->band_rows + b->y + row + i;
            struct finish f = gemm_end(job->a, WR_COLS, p, row_position(job, b, iy) + (size_t)column,
                                       min_int(piece->quads * WR_OUT, job->a->y.w - column));
            f.c = work + (i * WR_QUADS + piece->at) * WR_OUT * WR_COLS;
            job->rows->finish(&f);
        }
    }
}

/* ---- Blocks ---- */

/* Bytes before V. */
static size_t fixed_bytes(const struct job *job)
{
    return WR_SUMS * sizeof(float) + (size_t)div_up(job->slice * 2, 4096) * 4096 +
           2 * (size_t)job->slice * sizeof(float);
}

static size_t work_bytes(const struct job *job)
{
    const int groups = job->slices > 1 ? job->block_rows / WR_ROWS * job->part_panels : 1;
    return (size_t)groups * WR_WORK * sizeof(float);
}

static struct block block_at(const struct job *job, int i)
{
    struct block b = {.y = i % job->blocks_y * job->block_rows, .strip = i / job->blocks_y % job->strips};
    b.n = i / job->blocks_y / job->strips;
    b.rows = min_int(job->block_rows, min_int(job->band_rows, job->a->y.h) - b.y);
    return b;
}

static struct memory memory_of(const struct job *job, const struct block *b, int worker)
{
    char *p = pool_scratch(job->pool, worker);
    struct memory m = {.v_row = row_bytes(job->slice)};
    make_strip(job, b->strip, &m.strip);
    m.state.m = (float *)(void *)p;
    m.zeros = p + WR_SUMS * sizeof(float);
    p += fixed_bytes(job);
    m.carry = (float *)(void *)p - 2 * job->slice;
    memset(m.zeros, 0, (size_t)job->slice * 2);
    m.work = (float *)(void *)p;
    m.v = p + work_bytes(job);
    m.v_place = (size_t)(job->rolls ? V_ROWS : job->block_rows + 2) * m.v_row;
    return m;
}

/* Whether the kernel can end all of them. */
static bool ends_all(const struct job *job)
{
    struct strip last;
    const struct finish f = gemm_end(job->a, WR_COLS, job->w->panels - 1, 0, 1);
    make_strip(job, job->strips - 1, &last);
    return job->a->y.w % WR_OUT == 0 && ends_directly(job, &last, &f);
}

static void run_group(const struct job *job, const struct block *b, struct memory *m,
                      const struct slice *slice, int p, int row)
{
    struct wr_product product = {.v = {v_row(job, m, row), v_row(job, m, row + WR_ROWS)},
                                 .v_place = m->v_place,
                                 .v_row = m->v_row,
                                 .channels = slice->channels,
                                 .out = make_output(job, b, m, slice, row, p)};
    for (int j = 0; j < WR_PLACES; j++) {
        const struct cpu_weight *u = weight_place(job->w, j);
        product.u[j] = weight_data(u) + (size_t)p * u->panel_bytes +
                       (size_t)slice->first * 3 * WR_COLS * dtype_size(u->dtype);
    }
    job->kernel->product(&m->state, &product);
    if (slice->ends && !product.out.direct) {
        job->kernel->flush(&m->state);
        end_group(job, b, m, product.out.work, row, p);
    }
}

/* Panels P0 to P1. */
static void run_slice(const struct job *job, const struct block *b, struct memory *m,
                      const struct slice *slice, int p0, int p1)
{
    const int rows = div_up(b->rows, WR_ROWS) * WR_ROWS;
    int filled = 0;
    for (int q = p0; q < p1; q += job->chunk)
        for (int row = 0; row < rows; row += WR_ROWS) {
            for (int last = job->rolls ? row + V_ROWS : rows + 2; filled < last; filled++)
                fill_row(job, b, m, slice, filled);
            for (int p = q; p < min_int(p1, q + job->chunk); p++)
                run_group(job, b, m, slice, p, row);
        }
}

static void run_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    const struct block b = block_at(job, item % job->blocks);
    const int p0 = item / job->blocks * job->part_panels, p1 = min_int(job->w->panels, p0 + job->part_panels);
    struct memory m = memory_of(job, &b, worker);
    job->kernel->begin();
    for (int first = 0; first < job->w->channels; first += job->slice) {
        const int left = job->w->channels - first;
        const struct slice slice = {first, min_int(job->slice, left), first == 0, left <= job->slice};
        run_slice(job, &b, &m, &slice, p0, p1);
    }
    job->kernel->flush(&m.state);
    job->rows->fence();
    job->kernel->end();
}

/* Rows of a block that is not to roll: as many as fit. */
static int rows_that_fit(const struct job *job)
{
    const size_t row = WR_PLACES * row_bytes(job->slice);
    const size_t work = job->slices > 1 ? (size_t)job->w->panels * WR_WORK / WR_ROWS * sizeof(float) : 0;
    const size_t room = POOL_SCRATCH - fixed_bytes(job) - WR_WORK * sizeof(float) - 2 * row;
    const int rows = min_int((int)(BLOCK_BYTES / row) - 2, (int)(room / (row + work)));
    return rows < WR_ROWS ? WR_ROWS : min_int(rows, ROWS_MAX);
}

/* Rows of a block: few enough that all threads have work; then parts of the panels. */
static void choose_blocks(struct job *job)
{
    const int want = ITEMS_A_THREAD * pool_threads(job->pool), strips = job->strips * job->a->y.n;
    const int panels = job->w->panels, rows = div_up(min_int(job->band_rows, job->a->y.h), WR_ROWS);
    const size_t bytes = weight_place(job->w, 0)->panel_bytes;
    job->rolls = (size_t)panels * WR_PLACES * bytes <= U_BYTES;
    job->slices = job->rolls ? 1 : div_up(job->w->channels, SLICE_CHANNELS);
    job->slice = div_up(job->w->channels / WR_STEP, job->slices) * WR_STEP;
    const size_t panel = WR_PLACES * bytes / (size_t)job->slices;
    job->blocks_y = div_up(rows, (job->rolls ? ROWS_MAX : rows_that_fit(job)) / WR_ROWS);
    if (job->blocks_y * strips < want)
        job->blocks_y = min_int(rows, div_up(want, strips));
    job->block_rows = div_up(rows, job->blocks_y) * WR_ROWS;
    job->blocks_y = div_up(rows * WR_ROWS, job->block_rows);
    job->blocks = strips * job->blocks_y;
    job->part_panels = div_up(panels, min_int(panels, div_up(want, job->blocks)));
    job->parts = div_up(panels, job->part_panels);
    job->chunk = job->rolls ? job->part_panels : panel > CHUNK_BYTES ? 1 : (int)(CHUNK_BYTES / panel);
}

int winograd_rows_run(struct backend *be, const struct gemm_args *a)
{
    const struct tier *tier = cpu_tier(be);
    struct job job = {
        .kernel = tier->winograd_rows, .rows = tier->rows, .w = a->w->packed, .pool = be->pool, .a = a};
    job.past_caches = tensor_count(a->y) * dtype_size(a->y.dtype) >= STREAM_BYTES_MIN;
    choose_bands(&job);
    choose_blocks(&job);
    if (a->normed && ends_all(&job))
        job.sums = keep_sums(be, a->y, div_up(job.band_rows, WR_ROWS) * job.strips);
    pool_run(be->pool, job.blocks * job.parts, run_item, &job);
    return 0;
}
