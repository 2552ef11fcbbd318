/* Matrix micro-kernel in int8 on AMX tiles: 32 rows x 32 columns in four tiles of 32-bit sums, 64 channels a
 * step. Loop and ending are those of gemm_amx.c. */
#ifdef LATENTD_EMULATE
#define KERNEL int8_amx_emulated
#define SERVES "int8 by AMX-INT8, emulated"
#else
#define KERNEL int8_amx
#define SERVES "int8 by AMX-INT8"
#endif
#include "tile_amx.h"

#include <time.h>

#include "int8.h"
#include "vec_gelu.h"

#include "joined.h"

enum { ROWS = 16, STEP = INT8_UNIT, LINE = INT8_NR * 4, B_BYTES = STEP * INT8_NR };

static void begin(void)
{
    struct tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.row_bytes[t] = 64;
        c.rows[t] = ROWS;
    }
    tile_configure(&c);
}

static void end(void)
{
    tile_done();
}

/* The end of an earlier tile, a row of it now and then. */
struct ending {
    const struct int8_ending *e;
    const int32_t *c;
    const float *row;
    const char *residual, *before;
    char *y;
    int left, pace, before_bytes;
    bool stream;
    vf scale[2], bias[2], add[2];
};

static bool defers(const struct finish *f)
{
    return ends_along(f, INT8_NR);
}

static struct ending begin_ending(const struct int8_ending *p, int steps)
{
    struct ending e = {.e = p};
    if (!p)
        return e;
    const struct finish *f = &p->f;
    e.c = p->c;
    e.row = p->row;
    e.residual = f->residual;
    e.before = f->before;
    e.before_bytes = f->before_bytes;
    e.y = f->y;
    e.left = f->rows;
    e.pace = (f->rows + steps - 1) / steps;
    e.stream = streams_lines(f);
    for (int i = 0; i < 2; i++) {
        e.scale[i] = v_load(p->scale + 16 * i);
        e.bias[i] = v_load(f->bias + 16 * i);
        if (f->add)
            e.add[i] = f->add_type == DTYPE_F32 ? v_load((const float *)f->add + 16 * i)
                                                : v_load_bf16((const char *)f->add + 32 * i);
    }
    return e;
}

/* Sums of a row as floats, with the bias. They are not fused: int8_scale_rows() ends the last tile of an
 * item. */
VEC void row_values(struct ending *e, vf v[2])
{
    vf row = v_set1(*e->row);
    for (int i = 0; i < 2; i++) {
        vf scaled = v_mul(v_mul(_mm512_cvtepi32_ps(_mm512_loadu_si512(e->c + 16 * i)), e->scale[i]), row);
        __asm__("" : "+v"(scaled));
        v[i] = v_add(scaled, e->bias[i]);
    }
    e->row += e->e->step;
    e->c += INT8_NR;
}

VEC void end_row(struct ending *e, enum act act)
{
    vf v[2];
    row_values(e, v);
    for (int i = 0; i < 2; i++) {
        if (e->e->f.add)
            v[i] = v_add(v[i], e->add[i]);
        if (act == ACT_GELU)
            v[i] = v_gelu(v[i]);
        if (e->residual)
            v[i] = v_add(v[i], v_load_bf16(e->residual + 32 * i));
    }
    e->residual = e->residual ? e->residual + e->e->f.residual_stride : NULL;
    __m512i line = vb_narrow(v[0], v[1]);
    store_whole(e->y, line, e->stream);
    e->y += e->e->f.y_stride;
}

VEC void end_geglu_row(struct ending *e)
{
    vf v[2];
    row_values(e, v);
    store_geglu(e->y, e->before, e->before_bytes, v[0], v[1], e->stream);
    e->before = e->before ? e->before + e->e->f.before_stride : NULL;
    e->y += e->e->f.y_stride;
}

static void end_rows(struct ending *e, int rows)
{
    rows = rows < e->left ? rows : e->left;
    e->left -= rows;
    for (; rows > 0; rows--)
        if (e->e->f.geglu)
            end_geglu_row(e);
        else if (e->e->f.act == ACT_GELU)
            end_row(e, ACT_GELU);
        else
            end_row(e, ACT_NONE);
}

/* 32 rows. Loads go ahead of the products that wait for them. B_NEAR: b_stays_near(). */
VEC void run_two(const struct int8_tile *t, bool b_near)
{
    const char *b = (const char *)t->b, *next = t->prefetch;
    const size_t lda = t->lda;
    struct ending e = begin_ending(t->pending, t->taps * t->channels / STEP);
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    for (int tap = 0; tap < t->taps; tap++) {
        const uint8_t *a = t->a + t->tap[tap], *half = t->a_half + t->tap[tap];
        for (int k = 0; k < t->channels; k += STEP, b += B_BYTES) {
            if (b_near) {
                tile_load(6, b, LINE);
                tile_load(7, b + 64, LINE);
                tile_load_once(4, a + k, lda);
                tile_load_once(5, half + k, lda);
            } else {
                tile_load_once(6, b, LINE);
                tile_load_once(7, b + 64, LINE);
                tile_load(4, a + k, lda);
                tile_load(5, half + k, lda);
            }
            for (int l = 0; l < t->prefetch_lines; l++, next += 64)
                __builtin_prefetch(next, 0, 2);
            tile_dot_int8(0, 4, 6);
            tile_dot_int8(1, 4, 7);
            tile_dot_int8(2, 5, 6);
            tile_dot_int8(3, 5, 7);
            if (e.left > 0)
                end_rows(&e, e.pace);
        }
    }
    end_rows(&e, e.left);
    tile_store(0, t->c, LINE);
    tile_store(1, t->c + 16, LINE);
    tile_store(2, t->c + ROWS * INT8_NR, LINE);
    tile_store(3, t->c + ROWS * INT8_NR + 16, LINE);
}

/* Up to 16 rows. */
static void run_one(const struct int8_tile *t)
{
    const char *b = (const char *)t->b, *next = t->prefetch;
    struct ending e = begin_ending(t->pending, t->taps * t->channels / STEP);
    tile_zero(0);
    tile_zero(1);
    for (int tap = 0; tap < t->taps; tap++) {
        const uint8_t *a = t->a + t->tap[tap];
        for (int k = 0; k < t->channels; k += STEP, b += B_BYTES) {
            tile_load(4, a + k, t->lda);
            tile_load(6, b, LINE);
            tile_load(7, b + 64, LINE);
            for (int l = 0; l < t->prefetch_lines; l++, next += 64)
                __builtin_prefetch(next, 0, 2);
            tile_dot_int8(0, 4, 6);
            tile_dot_int8(1, 4, 7);
            if (e.left > 0)
                end_rows(&e, e.pace);
        }
    }
    end_rows(&e, e.left);
    tile_store(0, t->c, LINE);
    tile_store(1, t->c + 16, LINE);
}

static void run(int rows, const struct int8_tile *t)
{
    if (rows > ROWS && b_stays_near(t->taps, t->channels * INT8_NR))
        run_two(t, true);
    else if (rows > ROWS)
        run_two(t, false);
    else
        run_one(t);
}

/* The dot products of a step on zeros, with its loads, for some milliseconds. */
static double peak(void)
{
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
        tile_dot_int8(0, 4, 6);
        tile_load(7, zeros[1], 64);
        tile_dot_int8(1, 4, 7);
        tile_load(5, zeros[0], 64);
        tile_dot_int8(2, 5, 6);
        tile_dot_int8(3, 5, 7);
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double seconds = (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
    return 4.0 * ROWS * 16 * STEP * 2 * loops / seconds;
}

const struct int8_kernel KERNEL = {.serves = SERVES,
                                   .zero = 0,
                                   .mr = 2 * ROWS,
                                   .pairs_halves = true,
                                   .run = run,
                                   .defers = defers,
                                   .begin = begin,
                                   .end = end,
                                   .peak = peak};
