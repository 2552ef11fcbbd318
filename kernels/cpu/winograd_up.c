/* 3x3 convolution of a picture whose sides are doubled by repeating positions, by Winograd's F(2x2, 3x3)
 * (Lavin and Gray, arXiv 1509.09308) on tiers with a kernel for its inputs and outputs (winograd_up_amx.c).
 * Of the 16 products of a tile the seven of repeated positions are of zeros, so four outputs take nine where
 * four 2x2 convolutions take 16 and a direct sum 36. See winograd_up.h for the arrays and places.
 *
 * The picture is cut into blocks of up to 256 cells, positions before they are doubled. An item fills the
 * four arrays of its block; then for each panel of 32 outputs every place is one matrix product on the
 * tier's micro-kernel, whose rows are cells: places differ in the array and in whether its rows begin a cell
 * or a row of cells later. U of a place and slice of channels stays in the first level while tiles of the
 * array pass; the arrays and nine sums stay in the second.
 *
 * FLOPs: a quarter of the direct sum's. Bytes: x is read 1.3 times (halo), U once a block, from the last
 * level: 2 bytes a cycle or so beside the products of 256 cells. What is added to a panel's products is its
 * sums' way through the second level, 1152 bytes a cell.
 *
 * Rounding: differences and sums of weights once to bf16. For inputs and weights of random signs, where a
 * direct sum has 9 products of variance 1, x K K has 9 and one rounding, the two places of a difference and a
 * K 6 and two, that of two differences 4 and one: together the root of 37 / 9, 2.0 times the rounding of the
 * output. For pictures, whose neighbours are alike, less.
 *
 * Blocks depend on the shape of one picture alone, but that small ones share one, and cells do not depend on
 * each other: same bits in any batch and with any number of threads. */
#include "winograd_up.h"

#include <string.h>

#include "gemm.h"
#include "thread_pool.h"

enum {
    CELLS = 256,                /* most of a block */
    ARRAY_BYTES = 7 << 18,      /* of all arrays of a block, where it has several rows */
    WIDTH = 64,                 /* most columns of a block */
    TILE = 16,                  /* cells: the micro-kernel takes two tiles at a time */
    SLICE_CHANNELS = 640,       /* most of a slice, of whose U 40 KB are in use at a time */
    SLACK = 2 * TILE * WU_LINE, /* behind an array: the last tile may reach so far */
    PAD = 5 * WU_COLS,          /* floats between places, so that they do not share cache sets */
    ITEMS_A_THREAD = 2
};

struct job {
    const struct winograd_up_kernel *kernel;
    const struct gemm_kernel *g;
    const struct row_ops *rows;
    const struct cpu_weight *w;
    struct pool *pool;
    const struct gemm_args *a;
    int block_w, block_h, blocks_x, blocks_y;
    int pictures;       /* of a block: more than one are whole and small */
    int line;           /* cells of a row of the arrays: block_w and one more */
    int picture_lines;  /* rows of the arrays for each picture */
    int half, next;     /* cells from a tile to the second of its pair, and to the next pair */
    int m_line;         /* cells of a row, as the products give them */
    size_t step, array; /* bytes of the arrays: from a step of channels to the next, from one array to the
                           next */
    size_t place;       /* floats of the sums, from a place to the next */
    int slice;          /* channels of one */
    int blocks, part_panels;
    float *sums; /* NULL, or those of struct kept_sums: a part is a block */
};

struct block {
    int n, y, x; /* its first cell */
    int pictures, h, w;
};

/* What a thread works in. */
struct memory {
    char *zeros, *arrays;
    float *m, *work;
};

bool winograd_up_suits(const struct gemm_args *a)
{
    const struct cpu_weight *w = a->w->packed;
    return w->form == FORM_WINOGRAD_UP && tensor_count(a->x) > 0 && a->upsample && a->x.dtype == DTYPE_BF16 &&
           a->stride <= 1 && !a->pad_end;
}

static struct memory memory_of(const struct job *job, int worker)
{
    struct memory m = {.zeros = pool_scratch(job->pool, worker)};
    m.arrays = m.zeros + round_up(job->w->channels * 2, 4096);
    m.m = (float *)(void *)(m.arrays + WU_ARRAYS * job->array);
    m.work = m.m + WU_PLACES * job->place;
    return m;
}

/* ---- Blocks ---- */

/* Pairs of tiles lie at equal distances: those of a row of 32 cells, of two rows of 16, or, where rows do not
 * divide into tiles, of all cells one after the other, with the one more of each row between. */
static void choose_width(struct job *job)
{
    const int w = job->a->x.w;
    const bool one_row = w % (2 * TILE) == 0, two_rows = !one_row && w % TILE == 0;
    job->block_w = one_row ? 2 * TILE : two_rows ? TILE : div_up(w, div_up(w, WIDTH));
    job->blocks_x = div_up(w, job->block_w);
    job->line = job->block_w + 1;
    job->half = two_rows ? job->line : TILE;
    job->next = one_row ? job->line : 2 * job->half;
    job->m_line = one_row || two_rows ? job->block_w : job->line;
}

/* Rows of arrays that fit. */
static int lines_that_fit(const struct job *job)
{
    const size_t line = (size_t)job->line * WU_ARRAYS * (size_t)job->w->channels * 2;
    return (int)(ARRAY_BYTES / line);
}

static void choose_height(struct job *job)
{
    const int h = job->a->x.h, pair = job->half == job->line ? 2 : 1, fit = lines_that_fit(job) - 1;
    int most = min_int(CELLS / job->m_line, fit);
    most = most < pair ? 1 : most / pair * pair;
    job->block_h = div_up(h, div_up(h, most));
    job->block_h = min_int(most, round_up(job->block_h, pair));
    job->blocks_y = div_up(h, job->block_h);
    job->picture_lines = job->block_h + 1;
}

/* Several, where they are small and their cells lie one after the other: U comes from memory once. */
static void choose_pictures(struct job *job)
{
    const bool whole = job->blocks_x * job->blocks_y == 1 && job->m_line == job->line;
    const int fit = min_int(CELLS / job->line, lines_that_fit(job)) / job->picture_lines;
    job->pictures = whole && fit > 1 ? min_int(fit, job->a->x.n) : 1;
    job->blocks = div_up(job->a->x.n, job->pictures) * job->blocks_x * job->blocks_y;
}

static void choose_blocks(struct job *job)
{
    choose_width(job);
    choose_height(job);
    choose_pictures(job);
    const int channels = job->w->channels, lines = job->pictures * job->picture_lines;
    job->step = (size_t)(lines * job->line) * WU_LINE;
    job->array = (size_t)(channels / WU_STEP) * job->step + SLACK;
    job->place = (size_t)round_up(lines * job->m_line, 2 * TILE) * WU_COLS + PAD;
    job->slice = round_up(div_up(channels, div_up(channels, SLICE_CHANNELS)), WU_STEP);
    const int panels = job->w->panels, want = ITEMS_A_THREAD * pool_threads(job->pool);
    job->part_panels = div_up(panels, min_int(panels, div_up(want, job->blocks)));
}

static struct block block_at(const struct job *job, int i)
{
    const tensor x = job->a->x;
    struct block b = {.x = i % job->blocks_x * job->block_w,
                      .y = i / job->blocks_x % job->blocks_y * job->block_h,
                      .n = i / job->blocks_x / job->blocks_y * job->pictures};
    b.pictures = min_int(job->pictures, x.n - b.n);
    b.h = min_int(job->block_h, x.h - b.y);
    b.w = min_int(job->block_w, x.w - b.x);
    return b;
}

/* ---- The arrays ---- */

/* X of a cell of picture N; ZEROS beyond it. */
static const char *cell(tensor x, int n, int y, int x0, const char *zeros)
{
    if (y < 0 || y >= x.h || x0 < 0 || x0 >= x.w)
        return zeros;
    return (const char *)x.data + tensor_position(x, (size_t)n, y, x0) * (size_t)x.ld * dtype_size(x.dtype);
}

/* A row and a column more than the block has: the differences behind its last. */
static void fill_arrays(const struct job *job, const struct block *b, const struct memory *m)
{
    const tensor x = job->a->x;
    struct wu_input in = {.array = job->array,
                          .step = job->step,
                          .ahead = 2 * (size_t)x.ld * dtype_size(x.dtype),
                          .channels = job->w->channels};
    memset(m->zeros, 0, (size_t)job->w->channels * 2);
    for (int i = 0; i < b->pictures * (b->h + 1); i++) {
        const int n = b->n + i / (b->h + 1), row = i % (b->h + 1), y = b->y + row;
        in.dst = m->arrays + (size_t)((i / (b->h + 1) * job->picture_lines + row) * job->line) * WU_LINE;
        for (int c = 0; c <= b->w; c++, in.dst += WU_LINE) {
            for (int k = 0; k < 4; k++)
                in.src[k / 2][k % 2] = cell(x, n, y - 1 + k / 2, b->x + c - 1 + k % 2, m->zeros);
            job->kernel->input(&in);
        }
    }
}

/* ---- Products ---- */

/* What the micro-kernel reads next: U, as it lies. */
static void ask_for(struct gemm_tile *t, const char *next, int channels, int steps)
{
    const int lines = div_up(channels, steps); /* U of a channel is one */
    t->prefetch = next;
    t->prefetch_lines = lines;
    t->prefetch_apart = (size_t)div_up(channels, lines) * 64;
    t->prefetch_step = 64;
    t->prefetch_steps = div_up(channels, lines);
}

static const char *u_of(const struct job *job, int place, int p, int first)
{
    const struct cpu_weight *u = weight_place(job->w, place);
    return weight_data(u) + (size_t)p * u->panel_bytes + (size_t)first * WU_COLS * 2;
}

/* Sums of TILES tiles of panel P's PLACE, channels FIRST to FIRST + COUNT; NEXT is asked for. */
static void multiply(const struct job *job, const struct memory *m, int place, int p, int first, int count,
                     int tiles, const char *next)
{
    static const size_t tap[] = {0};
    const int down = place / WU_SIDE, along = place % WU_SIDE, pairs = tiles / 2;
    const int array = 2 * (down != 1) + (along != 1),
              shift = (down == 2 ? job->line : 0) + (along == 2 ? 1 : 0);
    float *c = m->m + (size_t)place * job->place;
    struct gemm_tile t = {.a = m->arrays + (size_t)array * job->array + (size_t)shift * WU_LINE +
                               (size_t)(first / WU_STEP) * job->step,
                          .lda = WU_LINE,
                          .a_half = (size_t)job->half * WU_LINE,
                          .a_next = (size_t)job->next * WU_LINE,
                          .a_chunk = job->step,
                          .tap = tap,
                          .taps = 1,
                          .k = WU_STEP,
                          .channels = count,
                          .b = u_of(job, place, p, first),
                          .c = c,
                          .c_next = (size_t)(2 * TILE) * WU_COLS,
                          .add = first > 0,
                          .more = pairs - 1,
                          .next_sums = first > 0 ? c : NULL};
    if (pairs) {
        ask_for(&t, next, count, pairs * (count / WU_STEP));
        job->g->run(2 * TILE, &t);
    }
    if (tiles % 2) {
        t.a += (size_t)pairs * t.a_next;
        t.c += (size_t)pairs * t.c_next;
        t.more = 0;
        t.prefetch_lines = t.prefetch_steps = 0;
        t.prefetch = t.b;
        t.next_sums = NULL;
        job->g->run(TILE, &t);
    }
}

/* All nine. */
static void multiply_panel(const struct job *job, const struct memory *m, int p, int next_p, int tiles)
{
    const int channels = job->w->channels;
    for (int place = 0; place < WU_PLACES; place++)
        for (int first = 0, end; first < channels; first = end) {
            end = min_int(channels, first + job->slice);
            const char *next = end < channels          ? u_of(job, place, p, end)
                               : place + 1 < WU_PLACES ? u_of(job, place + 1, p, 0)
                                                       : u_of(job, 0, next_p, 0);
            multiply(job, m, place, p, first, end - first, tiles, next);
        }
}

/* ---- y ---- */

/* Whether the kernel itself can end outputs of a panel like F. */
static bool ends_directly(const struct job *job, const struct finish *f)
{
    return f->cols == WU_COLS && f->y_type == DTYPE_BF16 && job->a->act == ACT_NONE && !f->residual;
}

/* Ends a row of CELLS, O's but for where they go, FIRST their first output. */
static void end_row(const struct job *job, const struct memory *m, struct wu_output *o, int p, size_t first)
{
    const struct gemm_args *a = job->a;
    const size_t row = (size_t)a->y.w;
    const struct finish f = gemm_end(a, WU_COLS, p, first, 1);
    if (!ends_directly(job, &f)) {
        o->work = m->work;
        job->kernel->output(o);
        for (int i = 0; i < 2; i++)
            gemm_finish(a, job->rows, WU_COLS, p, m->work + (size_t)(i * 2 * o->cells) * WU_COLS,
                        first + (size_t)i * row, 2 * o->cells);
        return;
    }
    float base[WU_COLS];
    gemm_base(a, job->rows, WU_COLS, p, first, base);
    o->base = base;
    o->y = f.y;
    o->y_column = f.y_stride;
    o->y_row = row * f.y_stride;
    o->stream = f.stream && (((uintptr_t)f.y | f.y_stride) & 63) == 0;
    job->kernel->output(o);
}

static void end_panel(const struct job *job, const struct block *b, const struct memory *m, int p,
                      float *sums)
{
    const tensor y = job->a->y;
    if (sums)
        memset(sums, 0, 2 * WU_COLS * sizeof *sums);
    for (int i = 0; i < b->pictures * b->h; i++) {
        const int n = i / b->h, row = i % b->h;
        struct wu_output o = {.m = m->m + (size_t)((n * job->picture_lines + row) * job->m_line) * WU_COLS,
                              .place = job->place,
                              .cells = b->w,
                              .sums = sums};
        end_row(job, m, &o, p, tensor_position(y, (size_t)(b->n + n), 2 * (b->y + row), 2 * b->x));
    }
}

/* ---- Items ---- */

/* Tiles of the block's cells. */
static int tiles_of(const struct job *job, const struct block *b)
{
    const int lines = (b->pictures - 1) * job->picture_lines + b->h;
    return div_up((lines - 1) * job->m_line + (job->m_line < job->line ? job->m_line : b->w), TILE);
}

static void run_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    const int index = item % job->blocks, panels = job->w->panels, p0 = item / job->blocks * job->part_panels,
              p1 = min_int(panels, p0 + job->part_panels);
    const struct block b = block_at(job, index);
    const struct memory m = memory_of(job, worker);
    fill_arrays(job, &b, &m);
    job->g->begin();
    for (int p = p0; p < p1; p++) {
        multiply_panel(job, &m, p, p + 1 < p1 ? p + 1 : p0, tiles_of(job, &b));
        end_panel(job, &b, &m, p,
                  job->sums ? job->sums + ((size_t)index * (size_t)panels + (size_t)p) * 2 * WU_COLS : NULL);
    }
    job->g->end();
    job->rows->fence();
}

int winograd_up_run(struct backend *be, const struct gemm_args *a)
{
    const struct tier *tier = cpu_tier(be);
    struct job job = {.kernel = tier->winograd_up,
                      .g = tier->gemm,
                      .rows = tier->rows,
                      .w = a->w->packed,
                      .pool = be->pool,
                      .a = a};
    choose_blocks(&job);
    const struct finish last = gemm_end(a, WU_COLS, job.w->panels - 1, 0, 1);
    if (a->normed && ends_directly(&job, &last))
        job.sums = keep_sums(be, a->y, job.blocks);
    pool_run(be->pool, job.blocks * div_up(job.w->panels, job.part_panels), run_item, &job);
    return 0;
}
