/* Convolutions and linear layers in int8: y [positions][O] = A [positions][taps * I] * W, for kernels of any
 * size.
 *
 * A work item is a block of positions times the panels of its share of outputs. Its inputs become int8 in a
 * slab in the worker's scratch, at most SLAB_BYTES, which stays in the second-level cache: the rows
 * themselves where the kernel is 1x1, each with its own scale; else the block's input rows with their halo,
 * zeros at the edges, by the scale of the picture, which a pass over x finds before. All sums of an output
 * are made in one call, in 32 bits, exactly: so results do not depend on blocks, threads or the batch.
 *
 * Positions of a tile must be one stride apart. Rows of the picture that are no multiple of 16 wide are
 * computed with the columns of the halo between them, whose sums are thrown away. */
#include "int8.h"

#include "../int8.h"
#include "half.h"
#include "thread_pool.h"

enum {
    BLOCK_ROWS = 512,
    BLOCK_WIDTH = 64,
    SLAB_BYTES = 1 << 20,
    TAPS_MAX = 121,
    MOST_ITEMS = 32, /* parts of a picture whose greatest magnitude is looked for at a time */
    C_BYTES = 2 * 32 * INT8_NR * 4,
};

struct job {
    const struct int8_kernel *k;
    const struct row_ops *rows;
    const struct int8_weight *w;
    const struct gemm_args *a;
    struct pool *pool;
    uint32_t *most; /* [n][MOST_ITEMS] bits of floats; where kernels are larger than 1x1 */
    int kh, kw, pad_y, pad_x, step, shift;
    int channels;            /* padded */
    size_t positions;        /* n * oh * ow */
    int block_h, block_w;    /* output rows and columns of a block; 1x1: block_w positions */
    int blocks_y, blocks_x;  /* of a picture */
    int blocks, cols_panels; /* blocks in all; panels of an item */
    int joins;               /* panels of a GEGLU that are stored together, 1: each by itself */
    bool streams;            /* gemm_past_caches() */
};

struct block {
    int n, y, x, h, w;
    size_t first; /* 1x1: the first position over the whole batch */
};

struct worker_memory {
    size_t tap[TAPS_MAX];
    int slab_w;
    int32_t *c;    /* two tiles, by turns */
    float *scaled; /* the sums of a tile as floats */
    float *scale;  /* of the rows of a 1x1 block, or of the picture */
    uint8_t *slab;
    char *kept;                 /* [block_w] of what is kept back, where panels are joined */
    int p0, p1;                 /* the item's panels */
    struct int8_ending pending; /* the end of the last tile, where it waits */
    bool waits, other;          /* other: which of two places the next tile's sums go to */
};

static bool is_1x1(const struct job *job)
{
    return job->kh * job->kw == 1;
}

/* ---- The slab ---- */

static const char *input_at(const struct job *job, size_t row)
{
    tensor x = job->a->x;
    return (const char *)x.data + row * (size_t)x.ld * dtype_size(x.dtype);
}

/* Part ITEM of a picture: its greatest magnitude. */
static void most_item(void *ctx, int item, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    tensor x = job->a->x;
    size_t picture = (size_t)x.h * (size_t)x.w, part = (size_t)(item % MOST_ITEMS);
    size_t row = part * picture / MOST_ITEMS, end = (part + 1) * picture / MOST_ITEMS;
    size_t first = (size_t)(item / MOST_ITEMS) * picture;
    uint32_t most = 0;
    for (; row < end; row++)
        most = int8_row_most(input_at(job, first + row), x.dtype, x.c, most);
    job->most[item] = most;
}

static struct int8_scale picture_scale(const struct job *job, int n)
{
    uint32_t most = 0;
    for (int i = 0; i < MOST_ITEMS; i++) {
        uint32_t part = job->most[n * MOST_ITEMS + i];
        most = part > most ? part : most;
    }
    return int8_scale_of(f32_from_bits(most));
}

/* The row of x under output position AT of a 1x1 kernel. */
static size_t row_under(const struct job *job, size_t at)
{
    tensor x = job->a->x, y = job->a->y;
    if (job->step == 1 && !job->shift)
        return at;
    size_t ox = at % (size_t)y.w, oy = at / (size_t)y.w % (size_t)y.h, n = at / (size_t)y.w / (size_t)y.h;
    return (n * (size_t)x.h + (oy * (size_t)job->step >> job->shift)) * (size_t)x.w +
           (ox * (size_t)job->step >> job->shift);
}

static void fill_rows(const struct job *job, const struct block *b, struct worker_memory *m)
{
    tensor x = job->a->x;
    uint8_t *dst = m->slab;
    for (int i = 0; i < b->w; i++, dst += job->channels) {
        const char *row = input_at(job, row_under(job, b->first + (size_t)i));
        struct int8_scale s = int8_scale_of(f32_from_bits(int8_row_most(row, x.dtype, x.c, 0)));
        m->scale[i] = s.scale;
        int8_row(dst, row, x.dtype, x.c, job->channels, s.inverse, job->k->zero);
    }
}

/* One row of the slab, of input row IY as the kernel sees it, zeros outside of the picture. */
static void fill_line(const struct job *job, const struct block *b, uint8_t *dst, int iy, int slab_w,
                      float inverse)
{
    tensor x = job->a->x;
    int first = b->x * job->step - job->pad_x;
    size_t row = ((size_t)b->n * (size_t)x.h + (size_t)(iy >> job->shift)) * (size_t)x.w;
    bool inside = iy >= 0 && iy < x.h << job->shift;
    for (int i = 0; i < slab_w; i++, dst += job->channels) {
        int ix = first + i;
        if (!inside || ix < 0 || ix >= x.w << job->shift)
            memset(dst, job->k->zero, (size_t)job->channels);
        else
            int8_row(dst, input_at(job, row + (size_t)(ix >> job->shift)), x.dtype, x.c, job->channels,
                     inverse, job->k->zero);
    }
}

static void fill_picture(const struct job *job, const struct block *b, struct worker_memory *m)
{
    struct int8_scale s = picture_scale(job, b->n);
    int lines = (b->h - 1) * job->step + job->kh;
    uint8_t *dst = m->slab;
    m->scale[0] = s.scale;
    for (int i = 0; i < lines; i++, dst += (size_t)m->slab_w * (size_t)job->channels)
        fill_line(job, b, dst, b->y * job->step - job->pad_y + i, m->slab_w, s.inverse);
}

/* ---- The product ---- */

/* ROWS positions of a block that are computed together: their first input, and where the second half's begin.
 */
struct tile_rows {
    size_t at, half;
    int rows;
    int first; /* among the rows of the slab that have a scale, 1x1; else the position in the grid of the
                  block */
};

static void prefetch(tensor x, size_t row, int rows, int col, int cols, bool write)
{
    size_t size = dtype_size(x.dtype), bytes = (size_t)cols * size;
    const char *at = (const char *)x.data + (row * (size_t)x.ld + (size_t)col) * size;
    for (int i = 0; i < rows; i++, at += (size_t)x.ld * size)
        for (size_t b = 0; b < bytes; b += 64)
            if (write)
                ask_to_write(&at[b]);
            else
                __builtin_prefetch(at + b);
}

/* Asks for the lines of y that are written next, unless past the caches, and those of the residual. */
static void prefetch_output(const struct job *job, const struct worker_memory *m, int p, size_t first,
                            int rows)
{
    const struct gemm_args *a = job->a;
    int cols = job->w->w.panel_cols;
    if (!job->streams && !gemm_kept_back(p, m->p1, job->joins))
        prefetch(a->y, first, rows, p * cols, cols, true);
    if (a->residual.data)
        prefetch(a->residual, first, rows, p * cols, cols, false);
}

static int kept_stride(const struct job *job)
{
    return gemm_kept_stride(job->a, job->w->w.panel_cols, job->joins);
}

static void finish_pending(const struct job *job, struct worker_memory *m)
{
    if (m->waits) {
        int8_scale_rows(m->scaled, &m->pending, m->pending.f.rows);
        m->pending.f.c = m->scaled;
        gemm_finish_joined(job->rows, &m->pending.f);
    }
    m->waits = false;
}

/* Outputs FIRST to FIRST + ROWS, one behind the other in y, whose sums are at C and scales at SCALE: at once,
 * or left for the next call of the micro-kernel to do along the way. */
static void finish_rows(const struct job *job, struct worker_memory *m, int p, const int32_t *c,
                        const float *scale, size_t first, int rows)
{
    const struct gemm_args *a = job->a;
    size_t picture = (size_t)a->y.h * (size_t)a->y.w;
    for (int done = 0, count; done < rows; done += count) {
        size_t at = first + (size_t)done, left = picture - at % picture;
        count = a->add_bc.data && left < (size_t)(rows - done) ? (int)left : rows - done;
        finish_pending(job, m);
        m->pending = (struct int8_ending){.f = gemm_end(a, INT8_NR, p, at, count),
                                          .c = c + (size_t)done * INT8_NR,
                                          .scale = int8_scales(job->w) + (size_t)p * INT8_NR,
                                          .row = is_1x1(job) ? scale + done : scale,
                                          .step = is_1x1(job) ? 1 : 0};
        m->pending.f.stream = job->streams;
        if (job->joins > 1)
            gemm_join(&m->pending.f, m->kept + at % (size_t)job->block_w * (size_t)kept_stride(job),
                      kept_stride(job), p, m->p0, m->p1, job->joins);
        m->waits = true;
    }
    if (!job->k->defers || !job->k->defers(&m->pending.f))
        finish_pending(job, m);
}

/* Where position FIRST of the block's grid, which is slab_w wide, lies in y. */
static size_t output_at(const struct job *job, const struct block *b, int slab_w, int first)
{
    tensor y = job->a->y;
    return ((size_t)b->n * (size_t)y.h + (size_t)(b->y + first / slab_w)) * (size_t)y.w +
           (size_t)(b->x + first % slab_w);
}

/* The outputs among the positions of tile T. */
static void finish_tile(const struct job *job, const struct block *b, struct worker_memory *m, int p,
                        const int32_t *c, const struct tile_rows *t)
{
    if (is_1x1(job)) {
        finish_rows(job, m, p, c, m->scale + t->first, b->first + (size_t)t->first, t->rows);
        return;
    }
    if (t->half) { /* two whole rows of the picture */
        finish_rows(job, m, p, c, m->scale, output_at(job, b, m->slab_w, t->first), t->rows);
        return;
    }
    for (int done = 0, count; done < t->rows; done += count) {
        int x = (t->first + done) % m->slab_w;
        count = min_int(t->rows - done, x < b->w ? b->w - x : m->slab_w - x);
        if (x < b->w)
            finish_rows(job, m, p, c + (size_t)done * INT8_NR, m->scale,
                        output_at(job, b, m->slab_w, t->first + done), count);
    }
}

/* B of the panel that comes next: its lines are asked for a few at a time. */
struct next_b {
    const char *at;
    size_t bytes, done;
    int lines;
};

static void run_tile(const struct job *job, const struct block *b, struct worker_memory *m, int p,
                     struct next_b *next, const struct tile_rows *r)
{
    const struct int8_weight *w = job->w;
    const bool left = next->done < next->bytes;
    int32_t *c = m->c + (m->other ? job->k->mr * INT8_NR : 0);
    size_t lda = (size_t)job->channels * (size_t)(is_1x1(job) ? 1 : job->step);
    struct int8_tile t = {.a = m->slab + r->at,
                          .a_half = m->slab + (r->half ? r->half : r->at + 16 * lda),
                          .lda = lda,
                          .tap = m->tap,
                          .taps = job->kh * job->kw,
                          .channels = job->channels,
                          .b = (const int8_t *)weight_data(&w->w) + (size_t)p * w->w.panel_bytes,
                          .offset = int8_offsets(w) + (size_t)p * INT8_NR,
                          .c = c,
                          .prefetch = left ? next->at + next->done : (const char *)m->slab,
                          .prefetch_lines = left ? next->lines : 0,
                          .pending = m->waits && job->k->defers ? &m->pending : NULL};
    next->done += (size_t)(t.taps * t.channels / INT8_UNIT * next->lines) * 64;
    if (is_1x1(job))
        prefetch_output(job, m, p, b->first + (size_t)r->first, r->rows);
    else if (r->first % m->slab_w + r->rows <= b->w || r->half)
        prefetch_output(job, m, p, output_at(job, b, m->slab_w, r->first), r->rows);
    job->k->run(r->rows, &t);
    m->waits = m->waits && !job->k->defers;
    m->other = !m->other;
    finish_tile(job, b, m, p, c, r);
}

/* A run of COUNT positions from FIRST on, those of a picture's row or of the whole grid. */
static void run_line(const struct job *job, const struct block *b, struct worker_memory *m, int p,
                     struct next_b *next, int first, int count)
{
    int step = is_1x1(job) ? 1 : job->step;
    for (int done = 0, rows; done < count; done += rows) {
        rows = min_int(job->k->mr, count - done);
        int at = first + done, y = at / m->slab_w, x = at % m->slab_w;
        struct tile_rows r = {
            .at = (size_t)(step * (y * m->slab_w + x)) * (size_t)job->channels, .rows = rows, .first = at};
        run_tile(job, b, m, p, next, &r);
    }
}

/* Rows of half a tile that are whole rows of the picture go two by two. */
static void run_pairs(const struct job *job, const struct block *b, struct worker_memory *m, int p,
                      struct next_b *next)
{
    size_t line = (size_t)(job->step * m->slab_w) * (size_t)job->channels;
    for (int y = 0; y + 1 < b->h; y += 2) {
        struct tile_rows r = {
            .at = (size_t)y * line, .half = (size_t)(y + 1) * line, .rows = 32, .first = y * m->slab_w};
        run_tile(job, b, m, p, next, &r);
    }
    if (b->h % 2)
        run_line(job, b, m, p, next, (b->h - 1) * m->slab_w, b->w);
}

static void run_panel(const struct job *job, const struct block *b, struct worker_memory *m, int p,
                      struct next_b *next)
{
    if (is_1x1(job)) {
        run_line(job, b, m, p, next, 0, b->w);
    } else if (job->k->pairs_halves && b->w == 16 && b->w == job->a->y.w) {
        run_pairs(job, b, m, p, next);
    } else if (job->k->pairs_halves && b->w % 16) {
        run_line(job, b, m, p, next, 0, (b->h - 1) * m->slab_w + b->w);
    } else {
        for (int y = 0; y < b->h; y++)
            run_line(job, b, m, p, next, y * m->slab_w, b->w);
    }
}

/* ---- Work items ---- */

static struct block block_at(const struct job *job, int i)
{
    tensor y = job->a->y;
    struct block b = {.h = 1};
    if (is_1x1(job)) {
        b.first = (size_t)i * (size_t)job->block_w;
        size_t left = job->positions - b.first;
        b.w = left < (size_t)job->block_w ? (int)left : job->block_w;
        return b;
    }
    b.x = i % job->blocks_x * job->block_w;
    b.y = i / job->blocks_x % job->blocks_y * job->block_h;
    b.n = i / job->blocks_x / job->blocks_y;
    b.w = min_int(job->block_w, y.w - b.x);
    b.h = min_int(job->block_h, y.h - b.y);
    return b;
}

/* Positions of the slab of a block of H rows of W outputs. */
static size_t slab_positions(const struct job *job, int h, int w)
{
    if (is_1x1(job))
        return (size_t)w;
    return (size_t)((h - 1) * job->step + job->kh) * (size_t)((w - 1) * job->step + job->kw);
}

static size_t scales_bytes(const struct job *job)
{
    return (size_t)round_up((is_1x1(job) ? job->block_w : 1) * (int)sizeof(float), 64);
}

static size_t kept_bytes(const struct job *job)
{
    return job->joins > 1 ? (size_t)(job->block_w * kept_stride(job)) : 0;
}

static struct worker_memory worker_memory(const struct job *job, const struct block *b, int worker)
{
    char *p = pool_scratch(job->pool, worker);
    struct worker_memory m = {.c = (int32_t *)(void *)p, .scaled = (float *)(void *)(p + C_BYTES)};
    p += C_BYTES + C_BYTES / 2;
    m.scale = (float *)(void *)p;
    m.kept = p + scales_bytes(job);
    m.slab = (uint8_t *)m.kept + kept_bytes(job);
    m.slab_w = is_1x1(job) ? b->w : (b->w - 1) * job->step + job->kw;
    for (int t = 0; t < job->kh * job->kw; t++)
        m.tap[t] = (size_t)(t / job->kw * m.slab_w + t % job->kw) * (size_t)job->channels;
    return m;
}

static void run_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    struct block b = block_at(job, item % job->blocks);
    struct worker_memory m = worker_memory(job, &b, worker);
    int p0 = item / job->blocks * job->cols_panels, p1 = min_int(job->w->w.panels, p0 + job->cols_panels);
    int tiles = div_up(b.h * b.w, job->k->mr);
    m.p0 = p0;
    m.p1 = p1;
    if (is_1x1(job))
        fill_rows(job, &b, &m);
    else
        fill_picture(job, &b, &m);
    if (job->k->begin)
        job->k->begin();
    for (int p = p0; p < p1; p++) {
        int following = p + 1 < p1 ? p + 1 : p0; /* the next item has the same panels */
        struct next_b next = {weight_data(&job->w->w) + (size_t)following * job->w->w.panel_bytes,
                              job->w->w.panel_bytes, 0, div_up(INT8_UNIT * INT8_NR / 64, tiles)};
        run_panel(job, &b, &m, p, &next);
    }
    finish_pending(job, &m);
    job->rows->fence();
    if (job->k->end)
        job->k->end();
}

/* ---- Choosing blocks ---- */

static size_t slab_bytes(const struct job *job, int h, int w)
{
    size_t slack = (size_t)INT8_SLACK * (size_t)(job->step * job->channels);
    return slab_positions(job, h, w) * (size_t)job->channels + slack;
}

static void choose_rows(struct job *job)
{
    int fit = SLAB_BYTES / job->channels / 32 * 32;
    int most = min_int(BLOCK_ROWS, fit > 64 ? fit : 64);
    size_t blocks = (job->positions + (size_t)most - 1) / (size_t)most;
    job->block_h = 1;
    job->block_w = round_up((int)((job->positions + blocks - 1) / blocks), 32);
    job->blocks = (int)((job->positions + (size_t)job->block_w - 1) / (size_t)job->block_w);
}

static void choose_block(struct job *job)
{
    tensor y = job->a->y;
    if (is_1x1(job)) {
        choose_rows(job);
        return;
    }
    int across = div_up(y.w, BLOCK_WIDTH), least = 1;
    job->block_w = across > 1 ? round_up(div_up(y.w, across), 16) : y.w;
    while (job->block_w > 16 && slab_bytes(job, least, job->block_w) > POOL_SCRATCH / 2)
        job->block_w = round_up(job->block_w / 2, 16);
    job->blocks_x = div_up(y.w, job->block_w);
    int h = min_int(y.h, BLOCK_ROWS / job->block_w > 0 ? BLOCK_ROWS / job->block_w : 1);
    while (h > 1 && slab_bytes(job, h, job->block_w) > SLAB_BYTES)
        h--;
    job->block_h = div_up(y.h, div_up(y.h, h));
    job->blocks_y = div_up(y.h, job->block_h);
    job->blocks = job->a->x.n * job->blocks_x * job->blocks_y;
}

/* Panels of an item: all, unless there would be too few items for the threads. */
static void choose_columns(struct job *job)
{
    int threads = pool_threads(job->pool), want = threads > 1 ? 2 * threads : 1, parts = 1;
    if (job->blocks < want)
        parts = min_int(job->w->w.panels, div_up(want, job->blocks));
    job->cols_panels = div_up(job->w->w.panels, parts);
}

static int find_most(struct backend *be, struct job *job, struct error *err)
{
    struct cpu_state *st = be->state;
    int n = job->a->x.n;
    job->most = (uint32_t *)(void *)st->partial;
    if ((size_t)n * MOST_ITEMS > PARTIAL_DOUBLES)
        return error_set(err, ERR_UNSUPPORTED, "a batch of %d pictures is too large for int8", n);
    pool_run(be->pool, n * MOST_ITEMS, most_item, job);
    return 0;
}

int int8_run(struct backend *be, const struct gemm_args *a, struct error *err)
{
    const struct tier *tier = cpu_tier(be);
    const struct int8_weight *w = a->w->packed;
    struct job job = {.k = tier->int8,
                      .rows = tier->rows,
                      .w = w,
                      .a = a,
                      .pool = be->pool,
                      .kh = a->w->kh,
                      .kw = a->w->kw,
                      .pad_y = a->pad_end ? 0 : (a->w->kh - 1) / 2,
                      .pad_x = a->pad_end ? 0 : (a->w->kw - 1) / 2,
                      .step = a->stride > 0 ? a->stride : 1,
                      .shift = a->upsample ? 1 : 0,
                      .channels = w->w.channels,
                      .positions = tensor_rows(a->y)};
    if (job.kh * job.kw > TAPS_MAX)
        return error_set(err, ERR_UNSUPPORTED, "a %dx%d kernel has more than %d positions", job.kh, job.kw,
                         TAPS_MAX);
    if (job.positions == 0)
        return 0;
    choose_block(&job);
    choose_columns(&job);
    job.streams = gemm_past_caches(a, job.w->w.panel_cols, job.k->defers && is_1x1(&job));
    job.joins = is_1x1(&job) && job.k->defers ? gemm_joins(a, w->w.panel_cols, false) : 1;
    if (slab_bytes(&job, job.block_h, job.block_w) + scales_bytes(&job) + kept_bytes(&job) + 2 * C_BYTES >
        POOL_SCRATCH)
        return error_set(err, ERR_INTERNAL, "a layer of %d channels does not fit a thread's scratch in int8",
                         a->x.c);
    int rc = is_1x1(&job) ? 0 : find_most(be, &job, err);
    if (rc)
        return rc;
    pool_run(be->pool, job.blocks * div_up(w->w.panels, job.cols_panels), run_item, &job);
    return 0;
}
