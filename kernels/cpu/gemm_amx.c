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

#include "line_amx.h"
#include "tier.h"

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

enum { COLUMN = 3 }; /* taps */

/* Those of a column of the kernel, one step, t->shares: what is loaded for the lower rows is the upper ones'
 * at the next tap. */
VEC void shared_column(const struct gemm_tile *t, const char *a, const char *b, struct along *g,
                       enum kind kind)
{
    LOAD_PANEL(b);
    tile_load(4, a, t->lda);
    tile_load(5, a + t->a_half, t->lda);
    DOTS(4, 5);
    go_along(t, g, kind);
    LOAD_PANEL(b + B_STEP);
    tile_load(4, a + 2 * t->a_half, t->lda);
    DOTS(5, 4);
    go_along(t, g, kind);
    LOAD_PANEL(b + 2 * B_STEP);
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
