/* Matrix micro-kernel of the AMX tier: bf16, fp32 sums, 32 rows x 32 columns in four accumulator tiles.
 *
 * Bytes and FLOPs: a step of 32 channels takes four dot products (64 cycles, 80 with numbers that are not
 * zero) and four tile loads (32 cycles from the first level, 64 and more from the second), so it is bound by
 * arithmetic while A or B is near. Linear layers keep B of up to 640 channels there (40 KB) while tiles of A
 * pass, several in a call (gemm_tile.more); convolutions keep A of a chunk, whose taps overlap, while B
 * passes. Sums stay in tiles over all channels of a call and are stored once (4 KB).
 *
 * Rows come in sixteens; a rest of fewer is run with tiles configured for that many rows. */
#ifdef LATENTD_EMULATE
#define KERNEL gemm_amx_emulated
#define NAME   "amx-emulated"
#else
#define KERNEL gemm_amx
#define NAME   "amx"
#endif
#include "tile_amx.h"

#include <time.h>

#include "ending_amx.h"
#include "tier.h"

enum { ROWS = 16, STEP = 32, B_STEP = STEP * NR * 2 };

/* Tiles 0 to 3: sums [row half][column half]; 4, 5: A; 6, 7: B. */
static void configure(int rows)
{
    struct tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.row_bytes[t] = 64;
        c.rows[t] = (uint8_t)(t < 6 ? rows : ROWS);
    }
    tile_configure(&c);
}

static void begin(void)
{
    configure(ROWS);
}

static void end(void)
{
    tile_done();
}

/* Loads sums 0 to TILES - 1 of c, or zeros. */
static void load_sums(const struct gemm_tile *t, bool two)
{
    const size_t line = NR * 4;
    const float *c0 = t->c, *c1 = t->c + ROWS * NR;
    if (t->add) {
        tile_load(0, c0, line);
        tile_load(1, c0 + ROWS, line);
    } else {
        tile_zero(0);
        tile_zero(1);
    }
    if (two && t->add) {
        tile_load(2, c1, line);
        tile_load(3, c1 + ROWS, line);
    } else if (two) {
        tile_zero(2);
        tile_zero(3);
    }
}

static int channels_of(const struct gemm_tile *t)
{
    return t->channels ? t->channels : t->k;
}

static size_t half_of(const struct gemm_tile *t)
{
    return t->a_half ? t->a_half : ROWS * t->lda;
}

/* Asks for the lines of a step of what comes next. Returns where those of the next step begin. */
VEC const char *ask_lines(const struct gemm_tile *t, const char *next)
{
    const char *line = next;
    for (int left = t->prefetch_lines; left > 0; left--, line += t->prefetch_apart)
        __builtin_prefetch(line, 0, 2);
    return next + t->prefetch_step;
}

/* A and B of 32 rows and a step. They are loaded ahead of the products that wait for them. Of A and B one
 * stays in the first level, the other passes by. KEEP, where it is not NULL, takes A's tiles. */
struct step {
    const char *a, *b;
    char *keep;
    size_t lda, half, keep_half; /* of a and keep: to the lower 16 rows */
    bool b_near;
};

VEC void load_a(const struct step *s, bool lower)
{
    const char *a = lower ? s->a + s->half : s->a;
    if (lower && s->b_near)
        tile_load_once(5, a, s->lda);
    else if (lower)
        tile_load(5, a, s->lda);
    else if (s->b_near)
        tile_load_once(4, a, s->lda);
    else
        tile_load(4, a, s->lda);
}

VEC void load_b(const struct step *s, bool right)
{
    const size_t line = NR * 4;
    if (right && s->b_near)
        tile_load(7, s->b + 64, line);
    else if (right)
        tile_load_once(7, s->b + 64, line);
    else if (s->b_near)
        tile_load(6, s->b, line);
    else
        tile_load_once(6, s->b, line);
}

VEC void keep_a(const struct step *s)
{
    if (s->keep) {
        tile_store(4, s->keep, STEP * 2);
        tile_store(5, s->keep + s->keep_half, STEP * 2);
    }
}

VEC void multiply(const struct step *s)
{
    load_b(s, false);
    load_b(s, true);
    load_a(s, false);
    load_a(s, true);
    keep_a(s);
    tile_dot(0, 4, 6);
    tile_dot(1, 4, 7);
    tile_dot(2, 5, 6);
    tile_dot(3, 5, 7);
}

/* Stores the sums of quarter I, whose place in a tile of sums is AT, to DONE, and begins those of the next
 * tile with NEXT's, or with zeros. */
#define TURN(i, done, next, at)                                                                              \
    do {                                                                                                     \
        tile_store(i, (done) + (at), NR * 4);                                                                \
        if (next)                                                                                            \
            tile_load(i, (next) + (at), NR * 4);                                                             \
        else                                                                                                 \
            tile_zero(i);                                                                                    \
    } while (0)

/* The first step of a tile while the sums of the one before it are stored to DONE: a store a product costs a
 * third of what four together do. */
VEC void multiply_first(const struct step *s, float *done, const float *next)
{
    load_b(s, false);
    load_a(s, false);
    TURN(0, done, next, 0);
    tile_dot(0, 4, 6);
    load_b(s, true);
    TURN(1, done, next, ROWS);
    tile_dot(1, 4, 7);
    load_a(s, true);
    TURN(2, done, next, ROWS * NR);
    tile_dot(2, 5, 6);
    TURN(3, done, next, ROWS * NR + ROWS);
    tile_dot(3, 5, 7);
    keep_a(s);
}

static void store_sums(float *c)
{
    const size_t line = NR * 4;
    tile_store(0, c, line);
    tile_store(1, c + ROWS, line);
    tile_store(2, c + ROWS * NR, line);
    tile_store(3, c + ROWS * NR + ROWS, line);
}

/* Whether steps of a are at equal distances. */
static bool in_line(const struct gemm_tile *t)
{
    return t->taps == 1 && (channels_of(t) == t->k || t->k == STEP || t->a_chunk == (size_t)t->k * 2);
}

/* Asks for four lines of sums that the next call loads. Returns those that are left, or END. */
VEC const char *ask_sums(const char *sums, const char *end)
{
    if (sums == end)
        return sums;
    for (int i = 0; i < 4; i++)
        __builtin_prefetch(sums + i * 64);
    return sums + 4 * 64;
}

/* The step behind S. Returns how many are left of LEFT. */
VEC int next_step(struct step *s, size_t step, int left)
{
    s->a += step;
    s->b += STEP * NR * 2;
    s->keep = s->keep ? s->keep + ROWS * STEP * 2 : NULL;
    return left - 1;
}

/* What the tiles of a call ask for while they multiply, but for B: of y and of the residual the rows that
 * they will end in. */
struct asking {
    const char *next; /* of t->prefetch; so many steps of it are left */
    int steps;
    const char *y, *residual;
    int y_bytes, residual_bytes; /* of a row; 0: not asked for */
    size_t y_stride, residual_stride;
    int rows, pace; /* those left in this tile, those a step */
};

VEC struct asking begin_asking(const struct gemm_tile *t, int steps)
{
    const struct finish *f = t->end;
    struct asking q = {.next = t->prefetch, .steps = t->prefetch_lines > 0 ? t->prefetch_steps : 0};
    if (!f)
        return q;
    q.y = f->y;
    q.y_bytes = t->y_asked;
    q.y_stride = f->y_stride;
    q.residual = f->residual;
    q.residual_bytes = t->residual_asked;
    q.residual_stride = f->residual_stride;
    q.pace = q.y_bytes + q.residual_bytes > 0 ? (2 * ROWS + steps - 1) / steps : 0;
    return q;
}

VEC void ask(const struct gemm_tile *t, struct asking *q)
{
    if (q->steps > 0) {
        q->steps--;
        q->next = ask_lines(t, q->next);
    }
    for (int i = 0; i < q->pace && q->rows > 0; i++, q->rows--) {
        for (int b = 0; b < q->y_bytes; b += 64)
            __asm__ volatile("prefetchw %0" : : "m"(q->y[b])); /* no operation where the CPU lacks it */
        for (int b = 0; b < q->residual_bytes; b += 64)
            __builtin_prefetch(q->residual + b, 0, 2);
        q->y += q->y_stride;
        q->residual += q->residual_stride;
    }
}

/* 32 rows, and t->more times as many below them, in_line(). ASKS: for the next sums. Between two tiles
 * nothing may be waited for: a hundred instructions there cost a tenth of a layer of 640 channels. */
VEC void run_line(const struct gemm_tile *t, enum kind kind, bool b_near, bool keeps, bool asks)
{
    const int steps = channels_of(t) / STEP;
    const size_t step = t->k == STEP ? t->a_chunk : STEP * 2;
    const char *a = t->a + t->tap[0];
    char *keep = keeps ? t->keep : NULL;
    float *c = t->c;
    struct step s = {.lda = t->lda, .half = half_of(t), .keep_half = t->keep_half, .b_near = b_near};
    struct ending e = begin_ending(t->pending, steps);
    struct asking q = begin_asking(t, steps);
    load_sums(t, true);
    for (int tile = 0; tile <= t->more; tile++, a += t->a_next, c += t->c_next) {
        const char *sums = (const char *)(tile < t->more ? c + t->c_next : t->next_sums),
                   *sums_end = sums ? sums + 2 * ROWS * NR * 4 : NULL;
        s.a = a;
        s.b = t->b;
        s.keep = keep;
        q.rows = q.pace > 0 ? 2 * ROWS : 0;
        int left = steps;
        if (tile > 0) {
            multiply_first(&s, c - t->c_next, t->add ? c : NULL);
            ask(t, &q);
            left = next_step(&s, step, left);
            if (tile == 1)
                e = begin_ending(t->end, left);
            e.c = c - t->c_next;
            e.left = t->end ? 2 * ROWS : 0;
        }
        for (; left > 0; left = next_step(&s, step, left)) {
            multiply(&s);
            if (asks)
                sums = ask_sums(sums, sums_end);
            ask(t, &q);
            if (e.left > 0)
                end_rows(&e, e.pace, kind, true);
        }
        end_rows(&e, e.left, kind, true);
        keep = keeps ? keep + 2 * t->keep_half : NULL;
    }
    store_sums(c - t->c_next);
}

/* A function of its own for each case: together they have too few registers. */
#define ALONE(name, call)                                                                                    \
    static __attribute__((noinline)) void name(const struct gemm_tile *t)                                    \
    {                                                                                                        \
        call;                                                                                                \
    }

/* ---- Several taps ---- */

/* What is done beside a step. */
struct along {
    const char *next;
    struct ending e;
};

VEC void go_along(const struct gemm_tile *t, struct along *g, enum kind kind)
{
    g->next = ask_lines(t, g->next);
    if (g->e.left <= 0)
        return;
    end_rows(&g->e, g->e.pace, kind, false);
    if (g->e.left == 0 && g->e.lower > 0)
        jump(&g->e);
}

#define LOAD_B(b)                                                                                            \
    do {                                                                                                     \
        tile_load_once(6, (b), NR * 4);                                                                      \
        tile_load_once(7, (b) + 64, NR * 4);                                                                 \
    } while (0)
#define DOTS(upper, lower)                                                                                   \
    do {                                                                                                     \
        tile_dot(0, upper, 6);                                                                               \
        tile_dot(1, upper, 7);                                                                               \
        tile_dot(2, lower, 6);                                                                               \
        tile_dot(3, lower, 7);                                                                               \
    } while (0)

enum { COLUMN = 3 }; /* taps */

/* Those of a column of the kernel, one step, t->shares: what is loaded for the lower rows is the upper ones'
 * at the next tap. */
VEC void shared_column(const struct gemm_tile *t, const char *a, const char *b, struct along *g,
                       enum kind kind)
{
    LOAD_B(b);
    tile_load(4, a, t->lda);
    tile_load(5, a + t->a_half, t->lda);
    DOTS(4, 5);
    go_along(t, g, kind);
    LOAD_B(b + B_STEP);
    tile_load(4, a + 2 * t->a_half, t->lda);
    DOTS(5, 4);
    go_along(t, g, kind);
    LOAD_B(b + 2 * B_STEP);
    tile_load(5, a + 3 * t->a_half, t->lda);
    DOTS(4, 5);
    go_along(t, g, kind);
}

/* 32 rows, t->shares. */
VEC void run_columns_as(const struct gemm_tile *t, enum kind kind)
{
    const char *b = t->b, *slab = t->a;
    struct along g = {.next = t->prefetch, .e = begin_ending(t->pending, t->taps * channels_of(t) / STEP)};
    load_sums(t, true);
    for (int left = channels_of(t); left > 0; left -= STEP, slab += t->a_chunk)
        for (int tap = 0; tap < t->taps; tap += COLUMN, b += COLUMN * B_STEP)
            shared_column(t, slab + t->tap[tap], b, &g, kind);
    end_rest(&g.e, kind, false);
    if (kind == SUMMED)
        end_sums(&g.e);
    store_sums(t->c);
}

/* 32 rows. */
VEC void run_taps_as(const struct gemm_tile *t, enum kind kind)
{
    const char *b = t->b, *next = t->prefetch, *slab = t->a;
    const size_t lda = t->lda, half = half_of(t);
    struct ending e = begin_ending(t->pending, t->taps * channels_of(t) / STEP);
    load_sums(t, true);
    for (int left = channels_of(t); left > 0; left -= t->k, slab += t->a_chunk) {
        const int k = left < t->k ? left : t->k;
        for (int tap = 0; tap < t->taps; tap++) {
            const char *a = slab + t->tap[tap];
            for (int i = 0; i < k; i += STEP, a += STEP * 2, b += B_STEP) {
                multiply(&(struct step){.a = a, .b = b, .lda = lda, .half = half});
                next = ask_lines(t, next);
                if (e.left > 0)
                    end_rows(&e, e.pace, kind, false);
            }
        }
    }
    end_rest(&e, kind, false);
    if (kind == SUMMED)
        end_sums(&e);
    store_sums(t->c);
}

ALONE(run_taps_plain, run_taps_as(t, PLAIN))
ALONE(run_taps_summed, run_taps_as(t, SUMMED))
ALONE(run_columns_plain, run_columns_as(t, PLAIN))
ALONE(run_columns_summed, run_columns_as(t, SUMMED))

static void run_taps(const struct gemm_tile *t)
{
    const enum kind kind = ending_kind(t->pending);
    if (kind != SUMMED && kind != PLAIN) {
        struct gemm_tile rest = *t;
        struct ending e = begin_ending(t->pending, 1);
        end_all(&e);
        rest.pending = NULL;
        run_taps(&rest);
    } else if (kind == SUMMED && t->shares) {
        run_columns_summed(t);
    } else if (kind == SUMMED) {
        run_taps_summed(t);
    } else if (t->shares) {
        run_columns_plain(t);
    } else {
        run_taps_plain(t);
    }
}

/* 32 rows of the first 16 columns. */
static void run_half(const struct gemm_tile *t)
{
    const char *b = t->b, *slab = t->a;
    const size_t line = NR * 4, lda = t->lda, half = half_of(t);
    struct ending e = begin_ending(t->pending, 1);
    end_all(&e);
    load_sums(t, true);
    for (int left = channels_of(t); left > 0; left -= t->k, slab += t->a_chunk) {
        const int k = left < t->k ? left : t->k;
        for (int tap = 0; tap < t->taps; tap++) {
            const char *a = slab + t->tap[tap];
            for (int i = 0; i < k; i += STEP, a += STEP * 2, b += STEP * NR * 2) {
                tile_load(6, b, line);
                tile_load(4, a, lda);
                tile_load(5, a + half, lda);
                tile_dot(0, 4, 6);
                tile_dot(2, 5, 6);
            }
        }
    }
    tile_store(0, t->c, line);
    tile_store(2, t->c + ROWS * NR, line);
}

/* Up to 16 rows, as many as the tiles are configured for. */
static void run_one(const struct gemm_tile *t)
{
    const char *b = t->b, *next = t->prefetch, *slab = t->a;
    char *keep = t->keep;
    const size_t line = NR * 4;
    struct ending e = begin_ending(t->pending, 1);
    end_all(&e);
    load_sums(t, false);
    for (int left = channels_of(t); left > 0; left -= t->k, slab += t->a_chunk) {
        const int k = left < t->k ? left : t->k;
        for (int tap = 0; tap < t->taps; tap++) {
            const char *a = slab + t->tap[tap];
            for (int i = 0; i < k; i += STEP, a += STEP * 2, b += STEP * NR * 2) {
                tile_load(4, a, t->lda);
                if (keep) {
                    tile_store(4, keep, STEP * 2);
                    keep += ROWS * STEP * 2;
                }
                tile_load(6, b, line);
                tile_load(7, b + 64, line);
                next = ask_lines(t, next);
                tile_dot(0, 4, 6);
                tile_dot(1, 4, 7);
            }
        }
    }
    tile_store(0, t->c, line);
    tile_store(1, t->c + ROWS, line);
}

/* 32 rows, in_line(). */
#define RUN_LINE(kind)                                                                                       \
    ALONE(keep_near_##kind, run_line(t, kind, true, true, false))                                            \
    ALONE(keep_far_##kind, run_line(t, kind, false, true, false))                                            \
    ALONE(sums_near_##kind, run_line(t, kind, true, false, true))                                            \
    ALONE(near_##kind, run_line(t, kind, true, false, false))                                                \
    ALONE(far_##kind, run_line(t, kind, false, false, false))                                                \
    static void run_line_##kind(const struct gemm_tile *t)                                                   \
    {                                                                                                        \
        const bool b_near = b_stays_near(t->taps, channels_of(t) * NR * 2);                                  \
        if (t->keep && b_near)                                                                               \
            keep_near_##kind(t);                                                                             \
        else if (t->keep)                                                                                    \
            keep_far_##kind(t);                                                                              \
        else if (b_near && t->next_sums)                                                                     \
            sums_near_##kind(t);                                                                             \
        else if (b_near)                                                                                     \
            near_##kind(t);                                                                                  \
        else                                                                                                 \
            far_##kind(t);                                                                                   \
    }
RUN_LINE(PLAIN)
RUN_LINE(GELU)
RUN_LINE(GEGLU)

/* 32 rows. */
static void run_whole(const struct gemm_tile *t)
{
    const enum kind kind = ending_kind(t->pending ? t->pending : t->end);
    if (t->half && !t->keep)
        run_half(t);
    else if (!in_line(t))
        run_taps(t);
    else if (kind == GEGLU)
        run_line_GEGLU(t);
    else if (kind == GELU)
        run_line_GELU(t);
    else
        run_line_PLAIN(t);
}

static void run(int rows, const struct gemm_tile *tile)
{
    if (rows == 2 * ROWS) {
        run_whole(tile);
        return;
    }
    struct gemm_tile t = *tile;
    for (; rows > 0; rows -= ROWS) {
        if (rows < ROWS)
            configure(rows);
        run_one(&t);
        t.a += half_of(&t);
        t.keep = t.keep ? t.keep + t.keep_half : NULL;
        t.c += ROWS * NR;
        t.pending = NULL;
        if (rows < ROWS)
            configure(ROWS);
    }
}

/* Sixteen chunks at a time: their lines of src are neighbours. */
static void spread(const struct spread *s)
{
    for (int c0 = 0; c0 < s->chunks; c0 += 16) {
        const int n = s->chunks - c0 < 16 ? s->chunks - c0 : 16;
        char *dst = s->dst + (size_t)c0 * s->dst_chunk;
        for (int i = 0; i < s->count; i++, dst += 64) {
            const char *src =
                s->src + (size_t)((s->first + i * s->step) >> s->shift) * s->src_stride + (size_t)c0 * 64;
            char *d = dst;
            for (int c = 0; c < n; c++, d += s->dst_chunk)
                _mm512_storeu_si512(d, _mm512_loadu_si512(src + c * 64));
        }
    }
}

/* The dot products of a step on zeros, with its loads, for some milliseconds. */
static double peak(void)
{
    /* Rows that lie in two cache lines would take three times as long. */
    static const char zeros[2][ROWS * 64] __attribute__((aligned(64)));
    struct timespec t0, t1;
    const int loops = 100000;
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    clock_gettime(CLOCK_MONOTONIC, &t0);
    for (int i = 0; i < loops; i++) {
        tile_load(4, zeros[0], 64);
        tile_load(6, zeros[1], 64);
        tile_dot(0, 4, 6);
        tile_load(7, zeros[1], 64);
        tile_dot(1, 4, 7);
        tile_load(5, zeros[0], 64);
        tile_dot(2, 5, 6);
        tile_dot(3, 5, 7);
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double seconds = (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
    return 4.0 * ROWS * 16 * STEP * 2 * loops / seconds;
}

const struct gemm_kernel KERNEL = {
    .name = NAME,
    .dtype = DTYPE_BF16,
    .mr = 2 * ROWS,
    .nr = NR,
    .m_align = ROWS,
    .k_unit = STEP,
    .k_block = 288,
    .whole_slices = true,
    .pairs_halves = true,
    .keeps_tiles = true,
    .takes_more = true,
    .run = run,
    .spread = spread,
    .defers = defers,
    .begin = begin,
    .end = end,
    .peak = peak,
};
