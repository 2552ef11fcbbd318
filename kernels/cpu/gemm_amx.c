/* Matrix micro-kernel of the AMX tier: bf16, fp32 sums, 32 rows x 32 columns in four accumulator tiles.
 *
 * Bytes and FLOPs: a step of 32 channels takes four dot products (64 cycles) and four tile loads (32 cycles
 * from the first level), so it is bound by arithmetic while A and B are near. B of a call (k_block = 288
 * products x 32 columns, 18 KB) stays in the first level for all row tiles of a block. For a 3x3 convolution
 * the call covers 9 positions x 32 channels, whose rows of A overlap: 6.5 KB of new A a call of 576 cycles.
 * Accumulators are loaded and stored once a call (8 KB).
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

#include "tier.h"
#include "vec_gelu.h"

#include "geglu_line.h"

enum { NR = 32, ROWS = 16, STEP = 32 };

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

/* The end of an earlier tile, a row of it now and then: while products wait for each other in the tile unit,
 * the vector units are free. */
struct ending {
    const struct finish *f;
    const float *c;
    const char *residual, *before;
    char *y;
    size_t y_stride, residual_stride;
    int left, pace; /* rows to do, rows at a time */
    bool stream, adds;
    vf bias[2], add[2];
    vf sum[2], square[2]; /* of the rows so far, where f->sums */
};

/* Whole panels of bf16: what convolutions and linear layers of the networks mostly are. */
static bool defers(const struct finish *f)
{
    if (f->y_type != DTYPE_BF16 || (f->residual && f->residual_type != DTYPE_BF16))
        return false;
    if (f->geglu)
        return f->cols == NR / 2 && !f->residual && !f->add;
    return f->cols == NR && (f->act == ACT_NONE || f->act == ACT_GELU);
}

enum kind { PLAIN, GELU, GEGLU, SUMMED };

static enum kind ending_kind(const struct finish *f)
{
    return !f ? PLAIN : f->geglu ? GEGLU : f->act == ACT_GELU ? GELU : f->sums ? SUMMED : PLAIN;
}

VEC struct ending begin_ending(const struct gemm_tile *t, int steps)
{
    const struct finish *f = t->pending;
    struct ending e = {.f = f};
    if (!f)
        return e;
    e.c = f->c;
    e.residual = f->residual;
    e.before = f->before;
    e.stream = streams_lines(f);
    e.y = f->y;
    e.y_stride = f->y_stride;
    e.residual_stride = f->residual_stride;
    e.adds = f->add;
    e.left = f->rows;
    e.pace = (f->rows + steps - 1) / steps;
    e.pace += f->geglu ? e.pace % 2 : 0;
    for (int i = 0; i < 2; i++) {
        e.sum[i] = e.square[i] = v_zero();
        e.bias[i] = v_load(f->bias + 16 * i);
        if (f->add)
            e.add[i] = f->add_type == DTYPE_F32 ? v_load((const float *)f->add + 16 * i)
                                                : v_load_bf16((const char *)f->add + 32 * i);
    }
    return e;
}

VEC void end_line(char *y, __m512i line, bool stream)
{
    if (stream)
        _mm512_stream_si512((__m512i *)(void *)y, line);
    else
        _mm512_storeu_si512(y, line);
}

VEC void end_row(struct ending *e, enum kind kind)
{
    vf lo = v_add(v_load(e->c), e->bias[0]), hi = v_add(v_load(e->c + 16), e->bias[1]);
    if (e->adds) { /* in the order of row_ops.finish, which ends the last tile of an item */
        lo = v_add(lo, e->add[0]);
        hi = v_add(hi, e->add[1]);
    }
    if (kind == GELU) {
        lo = v_gelu(lo);
        hi = v_gelu(hi);
    }
    if (e->residual) {
        lo = v_add(lo, v_load_bf16(e->residual));
        hi = v_add(hi, v_load_bf16(e->residual + 32));
        e->residual += e->residual_stride;
    }
    if (kind == SUMMED) { /* as row_ops.finish does it */
        e->sum[0] = v_add(e->sum[0], lo);
        e->sum[1] = v_add(e->sum[1], hi);
        e->square[0] = v_fma(lo, lo, e->square[0]);
        e->square[1] = v_fma(hi, hi, e->square[1]);
    }
    end_line(e->y, vb_narrow(lo, hi), e->stream);
    e->c += NR;
    e->y += e->y_stride;
}

VEC vf geglu_row(struct ending *e)
{
    vf value = v_add(v_load(e->c), e->bias[0]), gate = v_add(v_load(e->c + 16), e->bias[1]);
    e->c += NR;
    return v_mul(value, v_gelu(gate));
}

VEC void end_half(struct ending *e, __m512i line)
{
    store_half(e->y, e->before, line, e->stream);
    e->before = e->before ? e->before + GEMM_HALF_LINE : NULL;
    e->y += e->y_stride;
}

/* Rows are rounded two by two: while tiles multiply, that instruction costs more than three others. */
VEC void end_geglu_rows(struct ending *e, int rows)
{
    for (; rows > 1; rows -= 2) {
        vf v = geglu_row(e);
        __m512i line = vb_narrow(v, geglu_row(e));
        end_half(e, _mm512_shuffle_i64x2(line, line, 0x44));
        end_half(e, line);
    }
    if (rows > 0) {
        vf v = geglu_row(e);
        end_half(e, vb_narrow(v, v));
    }
}

/* Up to ROWS of them. KIND is one where the caller knows it. */
VEC void end_rows(struct ending *e, int rows, enum kind kind)
{
    rows = rows < e->left ? rows : e->left;
    e->left -= rows;
    if (kind == GEGLU) {
        end_geglu_rows(e, rows);
        return;
    }
    for (; rows > 0; rows--)
        end_row(e, kind);
}

/* After the last row. */
VEC void end_sums(const struct ending *e)
{
    float *at = e->f->sums;
    for (int i = 0; i < 2; i++, at += 16) {
        v_store(at, v_add(v_load(at), e->sum[i]));
        v_store(at + NR, v_add(v_load(at + NR), e->square[i]));
    }
}

/* The rest of them, of any kind. */
static void end_all(struct ending *e)
{
    if (!e->f)
        return;
    enum kind kind = ending_kind(e->f);
    if (kind == GEGLU)
        end_rows(e, e->left, GEGLU);
    else if (kind == GELU)
        end_rows(e, e->left, GELU);
    else if (kind == SUMMED)
        end_rows(e, e->left, SUMMED), end_sums(e);
    else
        end_rows(e, e->left, PLAIN);
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

/* The products of 32 rows and a step. Loads go ahead of the products that wait for them. Of A and B one stays
 * in the first level, the other passes by. KEEP, where it is not NULL, takes A's tiles. */
VEC void multiply(const char *a, size_t lda, size_t half, const char *b, bool b_near, char *keep,
                  size_t keep_half)
{
    const size_t line = NR * 4;
    if (b_near) {
        tile_load(6, b, line);
        tile_load(7, b + 64, line);
        tile_load_once(4, a, lda);
        tile_load_once(5, a + half, lda);
    } else {
        tile_load_once(6, b, line);
        tile_load_once(7, b + 64, line);
        tile_load(4, a, lda);
        tile_load(5, a + half, lda);
    }
    if (keep) {
        tile_store(4, keep, STEP * 2);
        tile_store(5, keep + keep_half, STEP * 2);
    }
    tile_dot(0, 4, 6);
    tile_dot(1, 4, 7);
    tile_dot(2, 5, 6);
    tile_dot(3, 5, 7);
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

/* 32 rows, in_line(). ASKS: for the next sums. */
VEC void run_line(const struct gemm_tile *t, enum kind kind, bool b_near, bool keeps, bool asks)
{
    const char *a = t->a + t->tap[0], *b = t->b, *next = t->prefetch;
    char *keep = keeps ? t->keep : NULL;
    const size_t lda = t->lda, half = half_of(t), step = t->k == STEP ? t->a_chunk : STEP * 2;
    const char *sums = (const char *)t->next_sums, *sums_end = sums ? sums + 2 * ROWS * NR * 4 : NULL;
    struct ending e = begin_ending(t, channels_of(t) / STEP);
    load_sums(t, true);
    for (int left = channels_of(t); left > 0; left -= STEP, a += step, b += STEP * NR * 2) {
        multiply(a, lda, half, b, b_near, keep, t->keep_half);
        if (asks)
            sums = ask_sums(sums, sums_end);
        keep = keeps ? keep + ROWS * STEP * 2 : NULL;
        next = ask_lines(t, next);
        if (e.left > 0)
            end_rows(&e, e.pace, kind);
    }
    end_rows(&e, e.left, kind);
    store_sums(t->c);
}

/* 32 rows, with several taps. */
VEC void run_taps_as(const struct gemm_tile *t, enum kind kind)
{
    const char *b = t->b, *next = t->prefetch, *slab = t->a;
    const size_t lda = t->lda, half = half_of(t);
    struct ending e = begin_ending(t, t->taps * channels_of(t) / STEP);
    load_sums(t, true);
    for (int left = channels_of(t); left > 0; left -= t->k, slab += t->a_chunk) {
        const int k = left < t->k ? left : t->k;
        for (int tap = 0; tap < t->taps; tap++) {
            const char *a = slab + t->tap[tap];
            for (int i = 0; i < k; i += STEP, a += STEP * 2, b += STEP * NR * 2) {
                multiply(a, lda, half, b, false, NULL, 0);
                next = ask_lines(t, next);
                if (e.left > 0)
                    end_rows(&e, e.pace, kind);
            }
        }
    }
    end_rows(&e, e.left, kind);
    if (kind == SUMMED)
        end_sums(&e);
    store_sums(t->c);
}

static void run_taps(const struct gemm_tile *t)
{
    const enum kind kind = ending_kind(t->pending);
    if (kind == SUMMED) {
        run_taps_as(t, SUMMED);
        return;
    }
    struct gemm_tile rest = *t;
    if (kind != PLAIN) {
        struct ending e = begin_ending(t, 1);
        end_all(&e);
        rest.pending = NULL;
    }
    run_taps_as(&rest, PLAIN);
}

/* 32 rows of the first 16 columns. */
static void run_half(const struct gemm_tile *t)
{
    const char *b = t->b, *slab = t->a;
    const size_t line = NR * 4, lda = t->lda, half = half_of(t);
    struct ending e = begin_ending(t, 1);
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
    struct ending e = begin_ending(t, 1);
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
VEC void run_kind(const struct gemm_tile *t, enum kind kind)
{
    const bool b_near = b_stays_near(t->taps, channels_of(t) * NR * 2);
    if (t->keep && b_near)
        run_line(t, kind, true, true, false);
    else if (t->keep)
        run_line(t, kind, false, true, false);
    else if (b_near && t->next_sums)
        run_line(t, kind, true, false, true);
    else if (b_near)
        run_line(t, kind, true, false, false);
    else
        run_line(t, kind, false, false, false);
}

static void run(int rows, const struct gemm_tile *tile)
{
    struct gemm_tile t = *tile;
    const enum kind kind = ending_kind(t.pending);
    if (rows == 2 * ROWS) {
        if (t.half && !t.keep)
            run_half(tile);
        else if (!in_line(tile))
            run_taps(tile);
        else if (kind == GEGLU)
            run_kind(tile, GEGLU);
        else if (kind == GELU)
            run_kind(tile, GELU);
        else
            run_kind(tile, PLAIN);
        return;
    }
    for (; rows > 0; rows -= ROWS) {
        if (rows < ROWS)
            configure(rows);
        run_one(&t);
        t.a += t.a_half ? t.a_half : ROWS * t.lda;
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
    .run = run,
    .spread = spread,
    .defers = defers,
    .begin = begin,
    .end = end,
    .peak = peak,
};
