/* Convolution and linear layers as one blocked matrix product: y [positions][O] = A [positions][taps * I] *
 * W.
 *
 * A is never laid out in full (no im2col in memory). Depending on the shape it is read in one of four ways.
 *
 * DIRECT: in place; 1x1, where rows of the product are rows of x. Where many panels follow, the first one
 * leaves the tiles it reads in the slab: rows that are an even number of cache lines apart, as those of x
 * mostly are, come out of the second level at two thirds of the speed of rows that lie together. Behind a
 * layer norm these tiles are made right before (gemm_norm_rows). Many channels go in slices there, each
 * passed over by all panels of the item.
 *
 * PADDED: from a slab with the block's input rows and their halo, zeros at the edges, converted to the
 * kernel's type, upsampled if asked; every kernel position is then a constant offset from the output
 * position. Small pictures of a batch share a block, so that their weights come from memory once. Where the
 * kernel has three rows, a row tile is half a tile of each of two picture rows: what one tap reads of the
 * lower row the next tap reads of the upper, four loads instead of six.
 *
 * NARROW: from a slab that holds each kernel column apart and a picture's rows below each other without a
 * gap, so that a row tile may run across picture rows: widths that are no multiple of what kernels want rows
 * in.
 *
 * FLAT: from a slab that holds each kernel position apart, so that a row tile may run across picture rows and
 * pictures: the same with a stride, or where rows are long.
 *
 * Tiling. A work item is a block of about 256 positions times up to 512 outputs; on kernels that take whole
 * slices (struct gemm_kernel) of up to 512 positions times all outputs, or a share for each thread. Its
 * channels are cut into slices whose slab stays in the second-level cache (SLAB_BYTES); in a slice every
 * panel of nr outputs runs over the chunks of the slice, and a chunk (k_block products, 32 KB of fp32 B)
 * stays in the first level while all row tiles of the block pass over it. So per item: x is read 1.3 to 1.6
 * times (halo), W once, y is written once; at 256 positions a byte of fp32 W feeds 128 FLOPs, 1.4 GB/s a core
 * at 180 GFLOP/s. Sums of unfinished slices wait in the worker's scratch.
 *
 * Memory gives and takes lines in pairs: y and the residual are asked for, and y is written past the caches,
 * two panels' lines at a time (gemm_bytes_asked(), gemm_joins()).
 *
 * The order in which a number is summed depends on the packed layout alone (chunks of channels, then taps),
 * not on blocks, threads or the batch: the same picture gets the same bits however it is computed. */
#include "gemm_job.h"

#include <string.h>

#include "int8.h"

/* One line after the other. */
static struct coming in_order(const char *at, size_t bytes, int lines)
{
    return (struct coming){.at = at, .bytes = bytes, .lines = lines, .apart = 64, .step = (size_t)lines * 64};
}

/* From LINES places at once, each in order: it comes from memory or the third level, whose latency only the
 * processor's own streams hide. They end with each page, and several of them fill each other's gaps. */
static struct coming in_streams(const char *at, size_t bytes, int lines)
{
    size_t apart = (bytes / (size_t)lines + 63) / 64 * 64;
    return (struct coming){.at = at, .bytes = apart, .lines = lines, .apart = apart, .step = 64};
}

/* What the micro-kernel asks for while it runs a tile, or as many as TILES. */
static void set_prefetch(const struct gemm_kernel *g, struct gemm_tile *t, struct coming *next, int tiles)
{
    bool left = next->done < next->bytes;
    t->prefetch = left ? next->at + next->done : t->b;
    if (!g->whole_slices) {
        next->done += (size_t)t->taps * (size_t)t->k * 64 / (g->dtype == DTYPE_BF16 ? 2 : 1);
        return;
    }
    t->prefetch_lines = left ? next->lines : 0;
    t->prefetch_apart = next->apart;
    t->prefetch_step = next->step;
    t->prefetch_steps = left ? (int)((next->bytes - next->done + next->step - 1) / next->step) : 0;
    next->done += (size_t)(tiles * t->taps * (t->channels / g->k_unit)) * next->step;
}

/* Runs the whole tiles of a segment in one call, where the micro-kernel and their ends allow that. Returns
 * how many. Arguments as below. */
static int run_together(const struct job *job, struct worker_memory *m, struct gemm_tile *t, int length,
                        struct coming *next, int place, int p, size_t first, bool last, bool one)
{
    const struct gemm_kernel *g = job->g;
    const int tiles = length / g->mr, rows = tiles * g->mr;
    struct finish end;
    if (!g->takes_more || tiles < 2 || job->mode != DIRECT || t->half || (last && !gemm_same_end(job)))
        return 0;
    gemm_end_of(job, m, place, p, t->c, first, g->mr, &end);
    if (last && !g->defers(&end))
        return 0;
    set_prefetch(g, t, next, tiles);
    struct gemm_tile all = *t;
    all.more = tiles - 1;
    all.a_next = t->a_half ? 2 * t->a_half : (size_t)g->mr * t->lda;
    all.c_next = one ? 0 : (size_t)(g->mr * g->nr);
    all.next_sums = t->add && job->slices > 1 ? t->c + rows * g->nr : NULL;
    all.pending = m->waits ? &m->pending : NULL;
    all.end = last ? &end : NULL;
    all.y_asked = gemm_meets_y(job, m, p) ? gemm_bytes_asked(job, m, job->a->y, p) : 0;
    all.residual_asked = job->a->residual.data ? gemm_bytes_asked(job, m, job->a->residual, p) : 0;
    g->run(g->mr, &all);
    m->waits = false;
    if (last)
        gemm_finish_rows(job, m, place, p, t->c + (size_t)(tiles - 1) * all.c_next,
                         first + (size_t)(rows - g->mr), g->mr);
    t->a += (size_t)tiles * all.a_next;
    t->keep = t->keep ? t->keep + (size_t)tiles * 2 * t->keep_half : NULL;
    return tiles;
}

/* Runs the tiles of one segment, whose outputs start at row FIRST of y; after the LAST chunk they are
 * finished. Where that is after the first call, too (ONE), c has only a place for one tile: a call ends the
 * earlier tile before it stores its sums. */
static void run_segment(const struct job *job, struct worker_memory *m, struct gemm_tile *t, int length,
                        struct coming *next, int place, int p, size_t first, bool last, bool one)
{
    const struct gemm_kernel *g = job->g;
    const bool norms = job->norms && p == m->panels.p0 && !t->add;
    float *const c = t->c;
    const int tiles = div_up(length, g->mr),
              before = norms ? 0 : run_together(job, m, t, length, next, place, p, first, last, one);
    for (int i = before, done = before * g->mr; i < tiles; i++) {
        int rows = g->m_align > 1 ? min_int(g->mr, length - done) : (length - done) / (tiles - i);
        set_prefetch(g, t, next, 1);
        if (last && gemm_together(job, first + (size_t)done, rows) == rows)
            gemm_ask_output(job, m, gemm_output_run(job, place, p, first + (size_t)done, rows));
        t->c = c + (size_t)(one ? 0 : done) * (size_t)g->nr;
        t->next_sums = t->add && job->slices > 1 ? t->c + rows * g->nr : NULL;
        t->pending = m->waits ? &m->pending : NULL;
        if (norms)
            gemm_norm_rows(job, m, first + (size_t)done, done, rows);
        g->run(rows, t);
        m->waits = m->waits && !g->defers;
        if (last)
            gemm_finish_rows(job, m, place, p, t->c, first + (size_t)done, rows);
        done += rows;
        t->a += t->a_half ? 2 * t->a_half : (size_t)rows * t->lda;
        t->keep = t->keep ? t->keep + 2 * t->keep_half : NULL;
    }
}

/* Whether two rows of the picture that lie below each other share what taps read of them. */
static bool shares_rows(const struct job *job)
{
    return job->step == 1 && job->w->by_columns && job->chunk == job->g->k_unit;
}

/* Whether rows of B's outputs go two by two, half a tile of each: where they share, and where a row is half a
 * tile. */
static bool pairs_rows(const struct job *job, const struct block *b)
{
    if (!job->g->pairs_halves || job->mode != PADDED || b->length % (job->g->mr / 2))
        return false;
    return shares_rows(job) || (b->length == job->ow && 2 * b->length == job->g->mr);
}

/* As run_segment(), for two segments of LENGTH, where pairs_rows(); T is at the first. */
static void run_pair(const struct job *job, struct worker_memory *m, struct gemm_tile *t, int length,
                     struct coming *next, int place, int p, size_t first, bool last, bool one)
{
    const struct gemm_kernel *g = job->g;
    const int half = g->mr / 2;
    for (int x = 0; x < length; x += half, first += (size_t)half) {
        const struct run upper = gemm_output_run(job, place, p, first, half),
                         lower = gemm_output_run(job, place, p, first + (size_t)job->ow, half);
        set_prefetch(g, t, next, 1);
        t->pending = m->waits ? &m->pending : NULL;
        if (last) {
            gemm_ask_output(job, m, upper);
            gemm_ask_output(job, m, lower);
        }
        g->run(g->mr, t);
        m->waits = m->waits && !g->defers;
        if (last)
            gemm_finish_pair(job, m, place, p, t->c, first);
        t->a += (size_t)half * t->lda;
        t->c += one ? 0 : g->mr * g->nr;
    }
}

/* Where the slab's rows of segment S begin. */
static int slab_row(const struct job *job, int s)
{
    if (job->mode == NARROW)
        return s * job->picture_h;
    return job->mode == PADDED ? s / job->block_h * job->picture_h + s % job->block_h * job->step : 0;
}

/* The first output row of segment S. */
static size_t segment_row(const struct job *job, const struct block *b, int s)
{
    if (!in_rectangles(job))
        return b->first;
    const int row = job->mode == NARROW ? (b->n + s) * job->oh + b->y : b->n * job->oh + b->y + s;
    return (size_t)row * (size_t)job->ow + (size_t)b->x;
}

static const struct cpu_weight *weight_at(const struct job *job, int place)
{
    return job->places == 1 ? job->w : weight_place(job->a->w->packed, place);
}

/* What follows B of panel P in this slice, or, where there is one, in the next item on this thread, which has
 * the same panels. (Asking for the next slice instead gained nothing.) */
static struct coming next_panel(const struct job *job, const struct worker_memory *m, const struct block *b,
                                const char *raw, size_t bytes, int p)
{
    const struct panels all = m->panels;
    const struct gemm_kernel *g = job->g;
    tensor x = job->a->x;
    if (job->mode == DIRECT && p == all.p0 && job->slices == 1 && x.ld == job->w->channels &&
        b->length > g->mr && !m->asked && !job->norms) {
        /* The first panel meets x itself far away: each tile asks for the rows of the next one. */
        size_t row = (size_t)x.ld * dtype_size(x.dtype);
        return in_order((const char *)x.data + (b->first + (size_t)g->mr) * row,
                        (size_t)(b->length - g->mr) * row, g->mr);
    }
    ptrdiff_t ahead = p + 1 < all.p1 ? 1 : all.p0 - p;
    int tiles = b->segments * div_up(b->length, g->mr);
    return in_streams(raw + ahead * (ptrdiff_t)job->w->panel_bytes, bytes,
                      div_up(g->k_unit * g->nr * 2 / 64, tiles));
}

/* T's rows, from channel C0 on: read in place and left in the slab (KEEP), or as they were kept. */
static void use_tiles(const struct job *job, const struct worker_memory *m, struct gemm_tile *t, int slice,
                      int c0, bool keep)
{
    const size_t line = (size_t)job->g->k_unit * dtype_size(job->g->dtype),
                 tile = line * (size_t)job->g->m_align;
    const size_t half = (size_t)(slice_channels(job) / job->g->k_unit) * tile;
    char *at = m->slab + (size_t)((c0 - slice * slice_channels(job)) / job->g->k_unit) * tile;
    if (keep) {
        t->keep = at;
        t->keep_half = half;
        return;
    }
    t->a = at;
    t->k = job->g->k_unit;
    t->lda = line;
    t->a_chunk = tile;
    t->a_half = half;
}

/* c [positions of the block][nr] (+)= COUNT chunks of panel P, one of ALL. */
static void run_chunks(const struct job *job, const struct block *b, struct worker_memory *m, int slice,
                       int chunk, int count, int place, int p, struct panels all, float *c)
{
    const struct gemm_kernel *g = job->g;
    const struct cpu_weight *w = weight_at(job, place);
    const size_t es = dtype_size(g->dtype), position = (size_t)job->chunk * es;
    int c0 = chunk * job->chunk, channels = min_int(count * job->chunk, w->channels - c0);
    size_t numbers = (size_t)channels * (size_t)job->taps * (size_t)g->nr,
           bytes = numbers * dtype_size(w->dtype);
    const char *raw = weight_data(w) + (size_t)p * w->panel_bytes +
                      (size_t)c0 * (size_t)job->taps * (size_t)g->nr * dtype_size(w->dtype);
    const char *data = raw;
    if (w->dtype != g->dtype) {
        job->rows->convert(m->wide, g->dtype, raw, w->dtype, numbers);
        data = m->wide;
    }
    struct coming next =
        g->whole_slices ? next_panel(job, m, b, raw, bytes, p) : in_order(raw + bytes, bytes, 0);
    const bool own = !m->asks || (p == all.p0 && !m->asked);
    bool last = c0 + channels == w->channels, one = last && chunk == 0;
    struct gemm_tile t = {.tap = m->tap[place],
                          .taps = job->taps,
                          .k = min_int(job->chunk, channels),
                          .channels = channels,
                          .a_chunk = job->mode == DIRECT ? position : slab_chunk_bytes(job),
                          .b = data,
                          .add = chunk > 0};
    t.half = !job->a->geglu && job->a->y.c - p * g->nr <= g->nr / 2;
    const bool pairs = pairs_rows(job, b) && !t.half;
    if (last)
        gemm_begin_panel(job, m, place, p);
    for (int s = 0, lines; s < b->segments; s += lines) {
        lines = pairs && s % job->block_h + 1 < job->block_h && s + 1 < b->segments ? 2 : 1;
        t.a_half = lines == 2 ? (size_t)(job->step * job->slab_w) * position : 0;
        t.shares = lines == 2 && shares_rows(job);
        if (job->mode == DIRECT) {
            tensor x = job->a->x;
            t.lda = (size_t)x.ld * es;
            t.a = (const char *)x.data + b->first * t.lda + (size_t)c0 * es;
            if (job->keeps)
                use_tiles(job, m, &t, slice, c0, p == all.p0 && !job->norms);
        } else {
            t.lda = position * (size_t)(job->mode == PADDED ? job->step : 1);
            t.a = m->slab + (size_t)(chunk - slice * job->slice_chunks) * slab_chunk_bytes(job) +
                  (size_t)(slab_row(job, s) * job->slab_w) * position;
        }
        t.c = one ? c : c + (size_t)(s * b->length) * (size_t)g->nr;
        struct coming *asked = own ? &next : &m->next_x;
        if (lines == 2)
            run_pair(job, m, &t, b->length, asked, place, p, segment_row(job, b, s), last, one);
        else
            run_segment(job, m, &t, b->length, asked, place, p, segment_row(job, b, s), last, one);
    }
}

static struct block block_at(const struct job *job, int i)
{
    struct block b = {.segments = 1};
    if (!in_rectangles(job)) {
        b.first = (size_t)i * (size_t)job->block_rows;
        size_t left = job->positions - b.first;
        b.length = left < (size_t)job->block_rows ? (int)left : job->block_rows;
        return b;
    }
    b.x = i % job->blocks_x * job->block_w;
    b.y = i / job->blocks_x % job->blocks_y * job->block_h;
    b.n = i / job->blocks_x / job->blocks_y * job->pictures;
    const int rows = min_int(job->block_h, job->oh - b.y);
    b.length = min_int(job->block_w, job->ow - b.x) * (job->mode == NARROW ? rows : 1);
    b.segments = min_int(job->pictures, job->a->x.n - b.n) * (job->mode == NARROW ? 1 : rows);
    return b;
}

static struct worker_memory worker_memory(const struct job *job, int worker)
{
    char *p = pool_scratch(job->pool, worker);
    struct worker_memory m = {.wide = p};
    p += round_up(job->chunk * job->taps * job->g->nr * 4, 4096);
    m.slab = p;
    p += gemm_slab_bytes(job);
    m.kept = p;
    m.c = (float *)(p + kept_bytes(job));
    gemm_set_taps(job, &m);
    return m;
}

/* Chunks of a call of the micro-kernel. Where A's tiles are kept and B is too long for the first level, sums
 * go through memory now and then: that costs less, but for the FIRST panel. */
static int call_chunks(const struct job *job, bool first)
{
    return !job->g->whole_slices || (job->keeps && !first) ? 1 : job->slice_chunks;
}

/* All panels of one slice, whose slab is filled. */
static void run_slice(const struct job *job, const struct block *b, struct worker_memory *m, int slice,
                      struct panels all)
{
    int first = slice * job->slice_chunks, end = min_int(job->chunks, first + job->slice_chunks);
    size_t panel_floats = job->slices > 1 ? (size_t)job->block_rows * (size_t)job->g->nr : 0;
    float *c = m->c;
    for (int place = 0; place < job->places; place++)
        for (int p = all.p0; p < all.p1; p++, c += panel_floats) {
            const int step = call_chunks(job, p == all.p0);
            for (int chunk = first; chunk < end; chunk += step)
                run_chunks(job, b, m, slice, chunk, step, place, p, all, c);
        }
}

/* What an item asks for. The first one on a thread asks for B, the others, whose B is near by now, for the x
 * of the one that this thread probably runs next. */
static void set_next_x(const struct job *job, struct worker_memory *m, int item)
{
    const tensor x = job->a->x;
    const int threads = pool_threads(job->pool), next = item + threads;
    m->asks = job->asks_x && item >= threads;
    m->asked = job->asks_x && item >= 2 * threads;
    m->next_x = (struct coming){0};
    if (!m->asks || next >= job->blocks)
        return;
    struct block b = block_at(job, next);
    size_t row = (size_t)x.ld * dtype_size(x.dtype), bytes = (size_t)b.length * row;
    int steps = div_up(job->block_rows, job->g->mr) * job->cols_panels * (job->w->channels / job->g->k_unit);
    m->next_x = in_order((const char *)x.data + b.first * row, bytes, div_up((int)(bytes / 64), steps));
}

static void run_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    struct block b = block_at(job, item % job->blocks);
    int p0 = item / job->blocks * job->cols_panels, p1 = min_int(job->w->panels, p0 + job->cols_panels);
    struct worker_memory m = worker_memory(job, worker);
    m.panels = (struct panels){p0, p1};
    set_next_x(job, &m, item);
    gemm_begin_item(job, &m, item % job->blocks);
    if (job->g->begin)
        job->g->begin();
    for (int slice = 0; slice < job->slices; slice++) {
        if (job->mode != DIRECT)
            gemm_fill_slab(job, &b, &m, slice);
        run_slice(job, &b, &m, slice, m.panels);
    }
    gemm_finish_pending(job, &m);
    job->rows->fence();
    if (job->g->end)
        job->g->end();
}

/* Of upsampled convolutions, which the norms of a VAE's decoder follow, by kernels that end tiles along the
 * way. */
static bool sums_can_be_kept(const struct job *job)
{
    const struct gemm_args *a = job->a;
    if (!a->normed || job->places != 4 || job->g->nr != KEPT_PANEL || a->act != ACT_NONE || !job->g->defers)
        return false;
    const struct run last = {job->w->panels - 1, 0, 1, 1};
    struct finish f;
    gemm_make_finish(&f, a, job->g->nr, NULL, &last);
    return job->g->defers(&f);
}

int gemm_run(struct backend *be, const struct gemm_args *a, struct error *err)
{
    const struct tier *tier = cpu_tier(be);
    const struct cpu_weight *w = a->w->packed;
    struct job job = {.g = tier->gemm, .rows = tier->rows, .w = w, .pool = be->pool, .a = a};
    if (a->w->kh * a->w->kw > TAPS_MAX)
        return error_set(err, ERR_UNSUPPORTED, "a %dx%d kernel has more than %d positions", a->w->kh,
                         a->w->kw, TAPS_MAX);
    if (w->panel_bytes == 0 && !(a->upsample && w->form == FORM_UP))
        return error_set(err, ERR_INTERNAL,
                         "a convolution was packed to be upsampled, or for large pictures, always");
    int rc = gemm_choose_blocks(&job, err);
    if (rc || job.positions == 0)
        return rc;
    if (sums_can_be_kept(&job))
        job.sums = keep_sums(be, a->y, job.blocks * job.places);
    pool_run(be->pool, job.blocks * div_up(w->panels, job.cols_panels), run_item, &job);
    return 0;
}

int cpu_conv2d(struct backend *be, tensor y, tensor x, const weight *w, const struct conv2d_args *a,
               struct error *err)
{
    const struct gemm_args g = gemm_conv2d(y, x, w, a);
    if (w->int8)
        return int8_run(be, &g, err);
    if (((const struct cpu_weight *)w->packed)->tap_columns)
        return conv_few_run(be, &g);
    if (winograd_rows_suits(&g))
        return winograd_rows_run(be, &g);
    if (winograd_up_suits(&g))
        return winograd_up_run(be, &g);
    if (winograd_2x4_suits(be->state, &g))
        return winograd_2x4_run(be, &g);
    return winograd_suits(be->state, &g) ? winograd_run(be, &g) : gemm_run(be, &g, err);
}

/* The frames of a video seen as the rows of a picture whose columns are all pixels of a frame. */
static tensor frames_as_rows(tensor x, int frames)
{
    x.n /= frames;
    x.w *= x.h;
    x.h = frames;
    return x;
}

int cpu_conv_temporal(struct backend *be, tensor y, tensor x, const weight *w, int frames,
                      const struct conv2d_args *a, struct error *err)
{
    struct gemm_args g = gemm_conv2d(frames_as_rows(y, frames), frames_as_rows(x, frames), w, a);
    g.add_positions = (size_t)y.h * (size_t)y.w;
    return gemm_run(be, &g, err);
}

int cpu_linear(struct backend *be, tensor y, tensor x, const weight *w, const struct linear_args *a,
               struct error *err)
{
    struct gemm_args g = gemm_linear(y, x, w, a);
    if (w->int8)
        return int8_run(be, &g, err);
    return gemm_run(be, &g, err);
}
