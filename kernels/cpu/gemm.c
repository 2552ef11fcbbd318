/* Convolution and linear layers as one blocked matrix product: y [positions][O] = A [positions][taps * I] *
 * W.
 *
 * A is never laid out in full (no im2col in memory). Depending on the shape it is read in one of three ways.
 *
 * DIRECT: in place; 1x1, where rows of the product are rows of x. Where many panels follow, the first one
 * leaves the tiles it reads in the slab: rows that are an even number of cache lines apart, as those of x
 * mostly are, come out of the second level at two thirds of the speed of rows that lie together.
 *
 * PADDED: from a slab with the block's input rows and their halo, zeros at the edges, converted to the
 * kernel's type, upsampled if asked; every kernel position is then a constant offset from the output
 * position. Small pictures of a batch share a block, so that their weights come from memory once.
 *
 * FLAT: from a slab that holds each kernel position apart, so that a row tile may run across picture rows and
 * pictures: small or odd widths on kernels that want rows in sixteens.
 *
 * Tiling. A work item is a block of about 256 positions times up to 512 outputs. Its channels are cut into
 * slices whose slab stays in the second-level cache (SLAB_BYTES); in a slice every panel of nr outputs runs
 * over the chunks of the slice, and a chunk (k_block products, 32 KB of fp32 B) stays in the first level
 * while all row tiles of the block pass over it. So per item: x is read 1.3 to 1.6 times (halo), W once, y is
 * written once; at 256 positions a byte of fp32 W feeds 128 FLOPs, 1.4 GB/s a core at 180 GFLOP/s. Sums of
 * unfinished slices wait in the worker's scratch.
 *
 * The order in which a number is summed depends on the packed layout alone (chunks of channels, then taps),
 * not on blocks, threads or the batch: the same picture gets the same bits however it is computed. */
#include "int8.h" /* and gemm.h */

#include <string.h>

#include "thread_pool.h"

enum {
    BLOCK_ROWS = 256,         /* and twice as many where whole slices are taken */
    BLOCK_COLS = 512,         /* outputs of a work item */
    BLOCK_WIDTH = 64,         /* positions of one picture row in a block */
    SLAB_BYTES = 512 << 10,   /* likewise */
    DIRECT_CHANNELS = 640,    /* channels of a slice that is read in place */
    DIRECT_BYTES = 1 << 20,   /* of x in a block that is read in place, where whole slices are taken */
    UNSLICED_CHANNELS = 2560, /* most that are read in place as one slice, where whole slices are taken */
    SLICE_CHANNELS = 1440,    /* of several */
    SUMS_BYTES = 768 << 10,   /* of the panels of an item, while slices follow each other */
    KEEP_PANELS = 16,         /* from so many on it pays to leave tiles of x in the slab */
    NEAR_CHANNELS = 640,      /* B of so many stays in the first level */
    SMALL_B_BYTES = 1 << 20,
    SMALL_BLOCK_BYTES = 640 << 10, /* of x */
    STREAM_LINES_BYTES = 1 << 20,  /* of y, where lines are written whole */
    TAPS_MAX = 121,
};

enum mode { DIRECT, PADDED, FLAT };

struct job {
    const struct gemm_kernel *g;
    const struct row_ops *rows;
    const struct cpu_weight *w; /* of the first of places */
    struct pool *pool;
    const struct gemm_args *a;
    enum mode mode;
    int kw, taps, pad_y, pad_x, step, shift, ih,
        iw; /* ih, iw: input as the kernel sees it, after upsampling */
    int oh, ow;
    /* 1, or 4 for an upsampled convolution that is computed as four of 2x2 at the size of x, one for each
     * place of 2x2 outputs: then oh and ow are x's, and all read one slab, that of a 3x3 kernel. */
    int places;
    int reach_y, reach_x;    /* the kernel's sides, as the slab sees them */
    size_t positions;        /* n * oh * ow */
    int block_h, block_w;    /* PADDED: output rows and columns of a block */
    int blocks_y, blocks_x;  /* PADDED: blocks of a picture */
    int pictures;            /* PADDED: of a block, whole ones where there are several */
    int block_rows;          /* most positions in a block */
    int blocks, cols_panels; /* blocks in all; panels of an item */
    int slab_h, slab_w;      /* PADDED; FLAT uses slab_w = block_rows, slab_h = taps */
    int picture_h;           /* PADDED: rows of the slab for a picture */
    int slice_chunks, slices;
    bool joins;   /* panels of a GEGLU end two by two */
    bool streams; /* past_caches() */
    bool asks_x;  /* x of the next block is asked for while one is computed */
    bool keeps;   /* DIRECT: the first panel leaves tiles of x in the slab, which the others read */
};

/* The part of a block that is regular: `segments` runs of `length` output positions. */
struct block {
    int n, y, x;  /* PADDED: first output position */
    size_t first; /* DIRECT, FLAT: first output position over the whole batch */
    int segments, length;
};

/* The panels of a work item: place by place, P0 to P1. */
struct panels {
    int p0, p1;
};

/* What is needed after this: its lines are asked for a few at a time. */
struct coming {
    const char *at;
    size_t bytes, done;
    int lines; /* for each k_unit products; whole_slices only */
};

struct worker_memory {
    size_t tap[4][TAPS_MAX]; /* by place */
    char *wide;              /* one chunk of B, widened */
    char *slab;
    char *halves; /* [block_rows][GEMM_HALF_LINE], where panels are joined */
    float *c;
    struct panels panels;
    bool asks, asked; /* this item asks for the next one's x, and the last one asked for its x */
    struct coming next_x;
    struct finish panel_end; /* position 0's, where same_end() */
    struct finish pending;   /* the end of the last tile, where it waits */
    bool waits;
};

static int round_up(int a, int b)
{
    return div_up(a, b) * b;
}

/* ---- The slab ---- */

/* COUNT positions of the slab, of input row IY of picture N, from column FIRST on in steps of STEP; channels
 * C0 to C0 + WIDTH, or WIDTH for each of CHUNKS chunks. */
struct line {
    char *dst;
    int n, iy, first, step, count;
    int c0, width, chunks;
};

static size_t slab_chunk_bytes(const struct job *job)
{
    return (size_t)job->slab_h * (size_t)job->slab_w * (size_t)job->w->chunk * dtype_size(job->g->dtype);
}

static void zero_line(const struct job *job, const struct line *l, int first, int count)
{
    size_t bytes = (size_t)l->width * dtype_size(job->g->dtype);
    for (int c = 0; c < l->chunks && count > 0; c++)
        memset(l->dst + (size_t)c * slab_chunk_bytes(job) + (size_t)first * bytes, 0, (size_t)count * bytes);
}

/* Positions [left, end) of the line lie in the picture; SRC is its column 0. */
static void copy_line(const struct job *job, const struct line *l, const char *src, int left, int end)
{
    tensor x = job->a->x;
    size_t xs = dtype_size(x.dtype), bytes = (size_t)l->width * dtype_size(job->g->dtype);
    if (l->chunks > 1) {
        struct spread s = {
            .dst = l->dst + (size_t)left * bytes,
            .dst_chunk = slab_chunk_bytes(job),
            .src = src,
            .src_stride = (size_t)x.ld * xs,
            .first = l->first + left * l->step,
            .step = l->step,
            .shift = job->shift,
            .count = end - left,
            .chunks = l->chunks,
        };
        job->g->spread(&s);
        return;
    }
    struct gather g = {
        .dst = l->dst + (size_t)left * bytes,
        .dst_type = job->g->dtype,
        .width = l->width,
        .channels = min_int(l->width, x.c - l->c0),
        .src = src,
        .src_type = x.dtype,
        .src_stride = (size_t)x.ld * xs,
        .first = l->first + left * l->step,
        .step = l->step,
        .shift = job->shift,
        .count = end - left,
    };
    job->rows->gather(&g);
}

/* Zeros outside of the picture. */
static void fill_line(const struct job *job, const struct line *l)
{
    tensor x = job->a->x;
    if (l->iy < 0 || l->iy >= job->ih) {
        zero_line(job, l, 0, l->count);
        return;
    }
    int left = l->first < 0 ? min_int(div_up(-l->first, l->step), l->count) : 0;
    int end = l->first >= job->iw ? 0 : min_int(l->count, (job->iw - 1 - l->first) / l->step + 1);
    if (end < left)
        end = left;
    zero_line(job, l, 0, left);
    zero_line(job, l, end, l->count - end);
    size_t row = ((size_t)l->n * (size_t)x.h + (size_t)(l->iy >> job->shift)) * (size_t)x.w;
    copy_line(job, l, (const char *)x.data + (row * (size_t)x.ld + (size_t)l->c0) * dtype_size(x.dtype), left,
              end);
}

/* CHUNKS chunks of a PADDED slab, each [picture][picture_h][slab_w][width]. */
static void fill_padded(const struct job *job, const struct block *b, char *dst, int c0, int chunks)
{
    struct line l = {.first = b->x * job->step - job->pad_x,
                     .step = 1,
                     .count = (b->length - 1) * job->step + job->reach_x,
                     .c0 = c0,
                     .width = job->w->chunk,
                     .chunks = chunks};
    const int pictures = div_up(b->segments, job->block_h);
    const int lines = (b->segments / pictures - 1) * job->step + job->reach_y;
    const size_t row = (size_t)job->slab_w * (size_t)job->w->chunk * dtype_size(job->g->dtype);
    for (int i = 0; i < pictures * lines; i++) {
        l.n = b->n + i / lines;
        l.iy = b->y * job->step - job->pad_y + i % lines;
        l.dst = dst + (size_t)(i / lines * job->picture_h + i % lines) * row;
        fill_line(job, &l);
    }
}

/* CHUNKS chunks of a FLAT slab, each [tap][block_rows][width]. */
static void fill_flat(const struct job *job, const struct block *b, char *dst, int c0, int chunks)
{
    size_t bytes = (size_t)job->w->chunk * dtype_size(job->g->dtype);
    struct line l = {.step = job->step, .c0 = c0, .width = job->w->chunk, .chunks = chunks};
    for (int t = 0; t < job->reach_y * job->reach_x; t++) {
        for (int done = 0; done < b->length; done += l.count) {
            size_t at = b->first + (size_t)done;
            int ox = (int)(at % (size_t)job->ow), row = (int)(at / (size_t)job->ow);
            l.n = row / job->oh;
            l.iy = row % job->oh * job->step - job->pad_y + t / job->reach_x;
            l.first = ox * job->step - job->pad_x + t % job->reach_x;
            l.count = min_int(job->ow - ox, b->length - done);
            l.dst = dst + ((size_t)t * (size_t)job->block_rows + (size_t)done) * bytes;
            fill_line(job, &l);
        }
    }
}

/* Whether all chunks of the slice are filled line by line, at once. */
static bool spreads(const struct job *job)
{
    tensor x = job->a->x;
    return job->g->spread && x.dtype == job->g->dtype && (size_t)job->w->chunk * dtype_size(x.dtype) == 64 &&
           x.c == job->w->channels;
}

static void fill_slab(const struct job *job, const struct block *b, struct worker_memory *m, int slice)
{
    int first = slice * job->slice_chunks * job->w->chunk;
    int end = min_int(job->w->channels, first + job->slice_chunks * job->w->chunk);
    int chunks = spreads(job) ? div_up(end - first, job->w->chunk) : 1;
    char *dst = m->slab;
    for (int c = first; c < end; c += chunks * job->w->chunk, dst += slab_chunk_bytes(job))
        if (job->mode == PADDED)
            fill_padded(job, b, dst, c, chunks);
        else
            fill_flat(job, b, dst, c, chunks);
}

static void set_taps(const struct job *job, struct worker_memory *m)
{
    size_t bytes = (size_t)job->w->chunk * dtype_size(job->g->dtype);
    for (int place = 0; place < job->places; place++)
        for (int t = 0; t < job->taps; t++) {
            int y = place / 2 + t / job->kw, x = place % 2 + t % job->kw;
            m->tap[place][t] = job->mode == PADDED
                                   ? (size_t)(y * job->slab_w + x) * bytes
                                   : (size_t)(y * job->reach_x + x) * (size_t)job->block_rows * bytes;
        }
}

/* ---- The product ---- */

/* COUNT outputs of panel P: rows of y from FIRST on, every STEPth. */
struct run {
    int p;
    size_t first;
    int step, count;
};

/* Outputs FIRST to FIRST + COUNT of the job's positions, at PLACE, all in one row of the picture where there
 * are several places. */
static struct run output_run(const struct job *job, int place, int p, size_t first, int count)
{
    if (job->places == 1)
        return (struct run){p, first, 1, count};
    size_t row = first / (size_t)job->ow, x = first % (size_t)job->ow;
    return (struct run){p, (2 * row + (size_t)place / 2) * 2 * (size_t)job->ow + 2 * x + (size_t)place % 2, 2,
                        count};
}

/* Whether y is written past the caches. Where whole lines are, that begins earlier: a line that is fetched to
 * be overwritten takes one of the few places that loads of the tiles' lines wait in. */
static bool past_caches(const struct job *job)
{
    tensor y = job->a->y;
    return tensor_streams(y) || (job->g->defers && (!job->a->geglu || job->joins) && job->taps == 1 &&
                                 tensor_count(y) * dtype_size(y.dtype) >= STREAM_LINES_BYTES);
}

static void prefetch_run(tensor x, int cols, const struct run *r, bool write)
{
    size_t size = dtype_size(x.dtype), bytes = (size_t)cols * size;
    const char *at = (const char *)x.data + (r->first * (size_t)x.ld + (size_t)(r->p * cols)) * size;
    for (int i = 0; i < r->count; i++, at += (size_t)r->step * (size_t)x.ld * size)
        for (size_t b = 0; b < bytes; b += 64)
            if (write)
                __asm__ volatile("prefetchw %0" : : "m"(at[b])); /* no operation where the CPU lacks it */
            else
                __builtin_prefetch(at + b);
}

/* Asks for the lines of y that R will be written to, unless they are written past the caches, and for those
 * of the residual: they arrive during the last chunk. */
static void prefetch_output(const struct job *job, const struct worker_memory *m, struct run r)
{
    const struct gemm_args *a = job->a;
    if (!job->streams && !(job->joins && gemm_kept_back(r.p, m->panels.p1)))
        prefetch_run(a->y, job->w->panel_cols, &r, true);
    if (a->residual.data && job->g->defers)
        prefetch_run(a->residual, job->w->panel_cols, &r, false);
}

/* Positions of the output that share a row of add_bc. */
static size_t add_positions(const struct gemm_args *a)
{
    return a->add_positions ? a->add_positions : (size_t)a->y.h * (size_t)a->y.w;
}

static struct finish make_finish(const struct gemm_args *a, int nr, const float *c, const struct run *r)
{
    const struct cpu_weight *w = a->w->packed;
    int col = r->p * w->panel_cols;
    size_t ys = dtype_size(a->y.dtype);
    struct finish f = {
        .c = c,
        .nr = nr,
        .rows = r->count,
        .cols = min_int(w->panel_cols, a->y.c - col),
        .bias = weight_bias(w) + (size_t)r->p * (size_t)nr,
        .y = (char *)a->y.data + (r->first * (size_t)a->y.ld + (size_t)col) * ys,
        .y_stride = (size_t)r->step * (size_t)a->y.ld * ys,
        .y_type = a->y.dtype,
        .act = a->act,
        .geglu = a->geglu,
        .stream = tensor_streams(a->y),
    };
    if (a->residual.data) {
        size_t rs = dtype_size(a->residual.dtype);
        f.residual = (const char *)a->residual.data + (r->first * (size_t)a->residual.ld + (size_t)col) * rs;
        f.residual_stride = (size_t)r->step * (size_t)a->residual.ld * rs;
        f.residual_type = a->residual.dtype;
    }
    if (a->add_bc.data) {
        size_t n = a->add_bc.n == 1 ? 0 : r->first / add_positions(a);
        f.add = (const char *)a->add_bc.data +
                (n * (size_t)a->add_bc.ld + (size_t)col) * dtype_size(a->add_bc.dtype);
        f.add_type = a->add_bc.dtype;
    }
    return f;
}

/* Whether panels end all their rows in the same way. */
static bool same_end(const struct job *job)
{
    return job->places == 1 && !job->a->add_bc.data;
}

/* The end of R's rows, where F is position 0's. Making it anew for each tile takes 5 % of a layer of
 * 320 channels. */
static struct finish finish_from(const struct finish *f, const float *c, const struct run *r)
{
    struct finish e = *f;
    e.c = c;
    e.rows = r->count;
    e.y += r->first * e.y_stride;
    e.residual = e.residual ? e.residual + r->first * e.residual_stride : NULL;
    return e;
}

struct finish gemm_end(const struct gemm_args *a, int nr, int p, size_t first, int count)
{
    struct run r = {p, first, 1, count};
    return make_finish(a, nr, NULL, &r);
}

void gemm_finish(const struct gemm_args *a, const struct row_ops *rows, int nr, int p, const float *c,
                 size_t first, int count)
{
    struct finish f = gemm_end(a, nr, p, first, count);
    f.c = c;
    rows->finish(&f);
}

/* ---- Whole lines of a GEGLU ---- */

bool gemm_joins(const struct gemm_args *a, int panel_cols)
{
    size_t size = dtype_size(a->y.dtype);
    return a->geglu && (size_t)panel_cols * size == GEMM_HALF_LINE &&
           (((uintptr_t)a->y.data | (size_t)a->y.ld * size) & (2 * GEMM_HALF_LINE - 1)) == 0;
}

void gemm_join(struct finish *f, char *half, int p, int p0, int p1)
{
    if (gemm_kept_back(p, p1)) {
        f->y = half;
        f->y_stride = GEMM_HALF_LINE;
        f->stream = false;
    } else if (p % 2 == 1 && p > p0) {
        f->before = half;
    }
}

void gemm_finish_joined(const struct row_ops *rows, const struct finish *f)
{
    for (int r = 0; f->before && r < f->rows; r++)
        memcpy(f->y + (size_t)r * f->y_stride - GEMM_HALF_LINE, f->before + r * GEMM_HALF_LINE,
               GEMM_HALF_LINE);
    rows->finish(f);
}

/* Finishes what waits, now. */
static void finish_pending(const struct job *job, struct worker_memory *m)
{
    if (m->waits)
        gemm_finish_joined(job->rows, &m->pending);
    m->waits = false;
}

/* Positions from FIRST on whose outputs can be ended together: those of a picture where add_bc differs, those
 * of a picture's row where there are several places; at most ROWS. */
static int together(const struct job *job, size_t first, int rows)
{
    size_t unit = job->places > 1 ? (size_t)job->ow : job->a->add_bc.data ? add_positions(job->a) : 0;
    size_t left = unit ? unit - first % unit : (size_t)rows;
    return left < (size_t)rows ? (int)left : rows;
}

/* ROWS positions from FIRST on, of panel P: at once, or left for the next call of the micro-kernel to do
 * along the way. */
static void finish_rows(const struct job *job, struct worker_memory *m, int place, int p, const float *c,
                        size_t first, int rows)
{
    const int nr = job->g->nr;
    for (int done = 0, count; done < rows; done += count) {
        count = together(job, first + (size_t)done, rows - done);
        struct run r = output_run(job, place, p, first + (size_t)done, count);
        m->pending = same_end(job) ? finish_from(&m->panel_end, c + (size_t)done * (size_t)nr, &r)
                                   : make_finish(job->a, nr, c + (size_t)done * (size_t)nr, &r);
        m->pending.stream = job->streams;
        if (job->joins)
            gemm_join(&m->pending,
                      m->halves + (first + (size_t)done) % (size_t)job->block_rows * GEMM_HALF_LINE, p,
                      m->panels.p0, m->panels.p1);
        m->waits = true;
        if (count < rows || !job->g->defers || !job->g->defers(&m->pending))
            finish_pending(job, m);
    }
}

/* What the micro-kernel asks for while it runs a tile. */
static void set_prefetch(const struct gemm_kernel *g, struct gemm_tile *t, struct coming *next)
{
    bool left = next->done < next->bytes;
    t->prefetch = left ? next->at + next->done : t->b;
    if (!g->whole_slices) {
        next->done += (size_t)t->taps * (size_t)t->k * 64 / (g->dtype == DTYPE_BF16 ? 2 : 1);
        return;
    }
    t->prefetch_lines = left ? next->lines : 0;
    next->done += (size_t)t->taps * (size_t)(t->channels / g->k_unit * next->lines) * 64;
}

/* Runs the tiles of one segment, whose outputs start at row FIRST of y; after the LAST chunk they are
 * finished. Where that is after the first call, too (ONE), c has only a place for one tile: a call ends the
 * earlier tile before it stores its sums. */
static void run_segment(const struct job *job, struct worker_memory *m, struct gemm_tile *t, int length,
                        struct coming *next, int place, int p, size_t first, bool last, bool one)
{
    const struct gemm_kernel *g = job->g;
    float *const c = t->c;
    int tiles = div_up(length, g->mr);
    for (int i = 0, done = 0; i < tiles; i++) {
        int rows = g->m_align > 1 ? min_int(g->mr, length - done) : (length - done) / (tiles - i);
        set_prefetch(g, t, next);
        if (last && together(job, first + (size_t)done, rows) == rows)
            prefetch_output(job, m, output_run(job, place, p, first + (size_t)done, rows));
        t->c = c + (size_t)(one ? 0 : done) * (size_t)g->nr;
        t->pending = m->waits ? &m->pending : NULL;
        g->run(rows, t);
        m->waits = m->waits && !g->defers;
        if (last)
            finish_rows(job, m, place, p, t->c, first + (size_t)done, rows);
        done += rows;
        t->a += t->a_half ? 2 * t->a_half : (size_t)rows * t->lda;
        t->keep = t->keep ? t->keep + 2 * t->keep_half : NULL;
    }
}

/* Where the slab's rows of segment S begin. */
static int slab_row(const struct job *job, int s)
{
    return job->mode == PADDED ? s / job->block_h * job->picture_h + s % job->block_h * job->step : 0;
}

/* The first output row of segment S. */
static size_t segment_row(const struct job *job, const struct block *b, int s)
{
    if (job->mode != PADDED)
        return b->first;
    return ((size_t)b->n * (size_t)job->oh + (size_t)(b->y + s)) * (size_t)job->ow + (size_t)b->x;
}

static const struct cpu_weight *weight_at(const struct job *job, int place)
{
    return job->places == 1 ? job->w : weight_up(job->a->w->packed, place);
}

/* What follows B of panel P in this item, or in the next one on this thread, which has the same panels. */
static struct coming next_panel(const struct job *job, const struct worker_memory *m, const struct block *b,
                                const char *raw, size_t bytes, int p)
{
    const struct panels all = m->panels;
    const struct gemm_kernel *g = job->g;
    tensor x = job->a->x;
    if (job->mode == DIRECT && p == all.p0 && job->slices == 1 && x.ld == job->w->channels &&
        b->length > g->mr && !m->asked) {
        /* The first panel meets x itself far away: each tile asks for the rows of the next one. */
        size_t row = (size_t)x.ld * dtype_size(x.dtype);
        return (struct coming){(const char *)x.data + (b->first + (size_t)g->mr) * row,
                               (size_t)(b->length - g->mr) * row, 0, g->mr};
    }
    ptrdiff_t ahead = p + 1 < all.p1 ? 1 : all.p0 - p;
    int tiles = b->segments * div_up(b->length, g->mr);
    return (struct coming){raw + ahead * (ptrdiff_t)job->w->panel_bytes, bytes, 0,
                           div_up(g->k_unit * g->nr * 2 / 64, tiles)};
}

static int slice_channels(const struct job *job)
{
    return min_int(job->w->channels, job->slice_chunks * job->w->chunk);
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
    const size_t es = dtype_size(g->dtype), position = (size_t)w->chunk * es;
    int c0 = chunk * w->chunk, channels = min_int(count * w->chunk, w->channels - c0);
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
        g->whole_slices ? next_panel(job, m, b, raw, bytes, p) : (struct coming){raw + bytes, bytes, 0, 0};
    const bool own = !m->asks || (p == all.p0 && !m->asked);
    bool last = c0 + channels == w->channels, one = last && chunk == 0;
    if (last && same_end(job))
        m->panel_end = make_finish(job->a, g->nr, NULL, &(struct run){p, 0, 1, 0});
    struct gemm_tile t = {.tap = m->tap[place],
                          .taps = job->taps,
                          .k = min_int(w->chunk, channels),
                          .channels = channels,
                          .a_chunk = job->mode == DIRECT ? position : slab_chunk_bytes(job),
                          .b = data,
                          .add = chunk > 0};
    t.half = !job->a->geglu && job->a->y.c - p * g->nr <= g->nr / 2;
    /* Rows of half a tile that are whole rows of the picture go two by two. */
    const bool pairs = g->pairs_halves && job->mode == PADDED && job->places == 1 && b->length == job->ow &&
                       2 * b->length == g->mr;
    for (int s = 0, lines; s < b->segments; s += lines) {
        lines = pairs && s % job->block_h + 1 < job->block_h && s + 1 < b->segments ? 2 : 1;
        t.a_half = lines == 2 ? (size_t)(job->step * job->slab_w) * position : 0;
        if (job->mode == DIRECT) {
            tensor x = job->a->x;
            t.lda = (size_t)x.ld * es;
            t.a = (const char *)x.data + b->first * t.lda + (size_t)c0 * es;
            if (job->keeps)
                use_tiles(job, m, &t, slice, c0, p == all.p0);
        } else {
            t.lda = position * (size_t)(job->mode == PADDED ? job->step : 1);
            t.a = m->slab + (size_t)(chunk - slice * job->slice_chunks) * slab_chunk_bytes(job) +
                  (size_t)(slab_row(job, s) * job->slab_w) * position;
        }
        t.c = one ? c : c + (size_t)(s * b->length) * (size_t)g->nr;
        run_segment(job, m, &t, lines * b->length, own ? &next : &m->next_x, place, p, segment_row(job, b, s),
                    last, one);
    }
}

static struct block block_at(const struct job *job, int i)
{
    struct block b = {.segments = 1};
    if (job->mode != PADDED) {
        b.first = (size_t)i * (size_t)job->block_rows;
        size_t left = job->positions - b.first;
        b.length = left < (size_t)job->block_rows ? (int)left : job->block_rows;
        return b;
    }
    b.x = i % job->blocks_x * job->block_w;
    b.y = i / job->blocks_x % job->blocks_y * job->block_h;
    b.n = i / job->blocks_x / job->blocks_y * job->pictures;
    b.length = min_int(job->block_w, job->ow - b.x);
    b.segments = min_int(job->block_h, job->oh - b.y) * min_int(job->pictures, job->a->x.n - b.n);
    return b;
}

static size_t halves_bytes(const struct job *job)
{
    return job->joins ? (size_t)job->block_rows * GEMM_HALF_LINE : 0;
}

static size_t slab_bytes(const struct job *job)
{
    size_t bytes = job->mode != DIRECT ? (size_t)job->slice_chunks * slab_chunk_bytes(job)
                   : job->keeps
                       ? (size_t)job->block_rows * (size_t)slice_channels(job) * dtype_size(job->g->dtype)
                       : 0;
    return (bytes + 4095) / 4096 * 4096;
}

static struct worker_memory worker_memory(const struct job *job, int worker)
{
    char *p = pool_scratch(job->pool, worker);
    struct worker_memory m = {.wide = p};
    p += round_up(job->w->chunk * job->taps * job->g->nr * 4, 4096);
    m.slab = p;
    p += slab_bytes(job);
    m.halves = p;
    m.c = (float *)(p + halves_bytes(job));
    set_taps(job, &m);
    return m;
}

/* Chunks of a call of the micro-kernel. Where A's tiles are kept and B is too long for the first level, sums
 * go through memory now and then: that costs less, but for the FIRST panel. */
static int call_chunks(const struct job *job, bool first)
{
    const int near = NEAR_CHANNELS / job->w->chunk;
    if (!job->g->whole_slices)
        return 1;
    if (!job->keeps || first || job->slices > 1 || job->w->channels <= NEAR_CHANNELS || near == 0)
        return job->slice_chunks;
    int chunks = div_up(job->w->channels, job->w->chunk);
    return div_up(chunks, div_up(chunks, near));
}

/* All panels of one slice, whose slab is filled. */
static void run_slice(const struct job *job, const struct block *b, struct worker_memory *m, int slice,
                      struct panels all)
{
    int chunks = div_up(job->w->channels, job->w->chunk), first = slice * job->slice_chunks;
    int end = min_int(chunks, first + job->slice_chunks);
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
    m->next_x =
        (struct coming){(const char *)x.data + b.first * row, bytes, 0, div_up((int)(bytes / 64), steps)};
}

static void run_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    struct block b = block_at(job, item % job->blocks);
    int p0 = item / job->blocks * job->cols_panels, p1 = min_int(job->w->panels, p0 + job->cols_panels);
    struct worker_memory m = worker_memory(job, worker);
    m.panels = (struct panels){p0, p1};
    set_next_x(job, &m, item);
    if (job->g->begin)
        job->g->begin();
    for (int slice = 0; slice < job->slices; slice++) {
        if (job->mode != DIRECT)
            fill_slab(job, &b, &m, slice);
        run_slice(job, &b, &m, slice, m.panels);
    }
    finish_pending(job, &m);
    job->rows->fence();
    if (job->g->end)
        job->g->end();
}

/* ---- Choosing blocks ---- */

static enum mode choose_mode(const struct job *job)
{
    const struct gemm_args *a = job->a;
    const struct gemm_kernel *g = job->g;
    if (job->taps == 1 && job->step == 1 && !job->shift && a->x.dtype == g->dtype && a->x.c % g->k_unit == 0)
        return DIRECT;
    if (job->ow % g->m_align == 0 && job->ow >= 4)
        return PADDED;
    return FLAT;
}

/* Slices where x is read in place and whole slices are taken: one, but then few rows of many channels would
 * fit the second level, and B would come from the third level or memory too often. */
static int direct_slices(const struct job *job)
{
    return job->w->channels > UNSLICED_CHANNELS ? div_up(job->w->channels, SLICE_CHANNELS) : 1;
}

static void choose_block(struct job *job)
{
    int rows = job->g->whole_slices ? 2 * BLOCK_ROWS : BLOCK_ROWS;
    if (job->mode == DIRECT && job->g->whole_slices) { /* x of a block and slice stays in the second level */
        int slice = div_up(job->w->channels, direct_slices(job));
        int fit = DIRECT_BYTES / slice / 2 / job->g->mr * job->g->mr;
        rows = min_int(rows, fit > 2 * job->g->mr ? fit : 2 * job->g->mr);
    }
    if (job->mode == PADDED) {
        int across = div_up(job->ow, BLOCK_WIDTH);
        job->block_w = round_up(div_up(job->ow, across), job->g->m_align);
        job->blocks_x = div_up(job->ow, job->block_w);
        int down = div_up(job->oh, rows / job->block_w > 0 ? rows / job->block_w : 1);
        job->block_h = div_up(job->oh, down);
        job->blocks_y = div_up(job->oh, job->block_h);
        /* several pictures, where they are small: their weights come from memory once */
        const bool whole = job->g->whole_slices && job->blocks_x * job->blocks_y == 1;
        job->pictures = whole ? min_int(job->a->x.n, rows / (job->block_h * job->block_w)) : 1;
        job->block_rows = job->pictures * job->block_h * job->block_w;
        job->blocks = div_up(job->a->x.n, job->pictures) * job->blocks_x * job->blocks_y;
        job->slab_w = (job->block_w - 1) * job->step + job->reach_x;
        job->picture_h = (job->block_h - 1) * job->step + job->reach_y;
        job->slab_h = job->pictures * job->picture_h;
        return;
    }
    if (job->mode == FLAT &&
        job->g->whole_slices) { /* a slab of all channels, where that leaves four tiles */
        size_t row = (size_t)(job->reach_y * job->reach_x * job->w->channels) * 2;
        int fit = (int)(2 * (size_t)SLAB_BYTES / row) / job->g->mr * job->g->mr;
        rows = min_int(rows, fit > 4 * job->g->mr ? fit : 4 * job->g->mr);
    }
    size_t blocks = (job->positions + (size_t)rows - 1) / (size_t)rows;
    job->block_rows =
        round_up((int)((job->positions + blocks - 1) / blocks), job->g->m_align > 1 ? job->g->mr : 1);
    job->blocks = (int)((job->positions + (size_t)job->block_rows - 1) / (size_t)job->block_rows);
    job->slab_w = job->block_rows;
    job->slab_h = job->reach_y * job->reach_x;
}

/* Panels of an item: up to BLOCK_COLS outputs, fewer where there would be too few items for the threads. */
static void choose_columns(struct job *job)
{
    const int threads = pool_threads(job->pool);
    int want = threads * (job->mode == DIRECT ? 4 : job->mode == PADDED ? 2 : 1);
    if (threads == 1 && job->mode == DIRECT)
        want = 1;
    int parts =
        job->mode == DIRECT && job->g->whole_slices ? 1 : div_up(job->w->panels * job->g->nr, BLOCK_COLS);
    if (job->blocks * parts < want)
        parts = min_int(job->w->panels, div_up(want, job->blocks));
    job->cols_panels = div_up(job->w->panels, parts);
}

static void choose_slices(struct job *job)
{
    int chunks = div_up(job->w->channels, job->w->chunk);
    size_t fit = (size_t)SLAB_BYTES * (job->g->whole_slices ? 2 : 1) / slab_chunk_bytes(job);
    int most = job->mode == DIRECT ? DIRECT_CHANNELS / job->w->chunk : fit > 1024 ? 1024 : (int)fit;
    if (job->mode == DIRECT && job->g->whole_slices)
        most = div_up(chunks, direct_slices(job));
    job->slices = div_up(chunks, most > 0 ? most : 1);
    job->slice_chunks = div_up(chunks, job->slices);
}

/* Whether B and two blocks of x fit the second level, and an item has all of B. */
static bool asks_x(const struct job *job)
{
    size_t block = (size_t)job->block_rows * (size_t)job->w->channels * dtype_size(job->g->dtype);
    return job->mode == DIRECT && job->g->whole_slices && job->slices == 1 &&
           job->a->x.ld == job->w->channels && job->cols_panels == job->w->panels &&
           (size_t)job->w->panels * job->w->panel_bytes <= SMALL_B_BYTES && block <= SMALL_BLOCK_BYTES;
}

/* Bytes of a worker's scratch that come before c, see worker_memory(). */
static size_t scratch_before_c(const struct job *job)
{
    return (size_t)round_up(job->w->chunk * job->taps * job->g->nr * 4, 4096) + slab_bytes(job) +
           halves_bytes(job);
}

/* Where there are several slices, the sums of all panels of an item wait in c: no more panels than fit. */
static int fit_columns(struct job *job, struct error *err)
{
    size_t used = scratch_before_c(job), rows = (size_t)job->block_rows, least = 2 * (size_t)job->g->mr;
    size_t panel = (rows > least ? rows : least) * (size_t)job->g->nr * sizeof(float);
    panel *= job->slices > 1 ? (size_t)job->places : 1;
    if (used + panel > POOL_SCRATCH)
        return error_set(err, ERR_INTERNAL, "a convolution of %d channels does not fit a thread's scratch",
                         job->a->x.c);
    size_t fit = POOL_SCRATCH - used;
    if (job->mode == DIRECT && job->g->whole_slices && fit > SUMS_BYTES) /* they stay in the second level */
        fit = SUMS_BYTES > panel ? SUMS_BYTES : panel;
    if (job->slices > 1) {
        int parts = div_up(job->cols_panels, (int)(fit / panel));
        job->cols_panels = div_up(job->cols_panels, parts);
    }
    return 0;
}

/* The kernel as it was given, and the outputs as they are. */
static void set_geometry(struct job *job, const struct gemm_args *a)
{
    int up = a->upsample ? 1 : 0;
    job->places = 1;
    job->kw = a->w->kw;
    job->taps = a->w->kh * a->w->kw;
    job->reach_y = a->w->kh;
    job->reach_x = a->w->kw;
    job->pad_y = a->pad_end ? 0 : (a->w->kh - 1) / 2;
    job->pad_x = a->pad_end ? 0 : (a->w->kw - 1) / 2;
    job->step = a->stride > 0 ? a->stride : 1;
    job->shift = up;
    job->ih = a->x.h << up;
    job->iw = a->x.w << up;
    job->oh = a->y.h;
    job->ow = a->y.w;
}

/* An upsampled convolution as four of 2x2. */
static void set_places(struct job *job, const struct gemm_args *a)
{
    job->places = 4;
    job->w = weight_up(job->w, 0);
    job->kw = 2;
    job->taps = 4;
    job->shift = 0;
    job->ih = job->oh = a->x.h;
    job->iw = job->ow = a->x.w;
}

int gemm_run(struct backend *be, const struct gemm_args *a, struct error *err)
{
    const struct tier *tier = cpu_tier(be);
    const struct cpu_weight *w = a->w->packed;
    struct job job = {.g = tier->gemm, .rows = tier->rows, .w = w, .pool = be->pool, .a = a};
    if (a->w->kh * a->w->kw > TAPS_MAX)
        return error_set(err, ERR_UNSUPPORTED, "a %dx%d kernel has more than %d positions", a->w->kh,
                         a->w->kw, TAPS_MAX);
    set_geometry(&job, a);
    if (a->upsample && w->up)
        set_places(&job, a);
    job.positions = (size_t)a->x.n * (size_t)job.oh * (size_t)job.ow;
    if (job.positions == 0)
        return 0;
    job.mode = choose_mode(&job);
    choose_block(&job);
    choose_columns(&job);
    job.joins = job.mode == DIRECT && job.g->defers && gemm_joins(a, job.w->panel_cols);
    choose_slices(&job);
    job.keeps = job.mode == DIRECT && job.g->keeps_tiles && job.cols_panels >= KEEP_PANELS;
    job.streams = past_caches(&job);
    job.asks_x = asks_x(&job);
    int rc = fit_columns(&job, err);
    if (rc)
        return rc;
    pool_run(be->pool, job.blocks * div_up(w->panels, job.cols_panels), run_item, &job);
    return 0;
}

int cpu_conv2d(struct backend *be, tensor y, tensor x, const weight *w, const struct conv2d_args *a,
               struct error *err)
{
    struct gemm_args g = {
        .y = y,
        .x = x,
        .w = w,
        .stride = a->stride,
        .upsample = a->upsample,
        .pad_end = a->pad_end,
        .add_bc = a->add_bc,
        .residual = a->residual,
        .act = a->act,
    };
    if (w->int8)
        return int8_run(be, &g, err);
    if (winograd_rows_suits(be->state, &g))
        return winograd_rows_run(be, &g);
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
    struct gemm_args g = {
        .y = frames_as_rows(y, frames),
        .x = frames_as_rows(x, frames),
        .w = w,
        .add_bc = a->add_bc,
        .add_positions = (size_t)y.h * (size_t)y.w,
        .residual = a->residual,
        .act = a->act,
    };
    return gemm_run(be, &g, err);
}

int cpu_linear(struct backend *be, tensor y, tensor x, const weight *w, const struct linear_args *a,
               struct error *err)
{
    struct gemm_args g = {
        .y = y,
        .x = x,
        .w = w,
        .residual = a->residual,
        .act = a->act,
        .geglu = w->kind == WEIGHT_GEGLU,
    };
    if (w->int8)
        return int8_run(be, &g, err);
    return gemm_run(be, &g, err);
}
