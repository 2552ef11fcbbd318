/* What Winograd's F(2x2, 3x3) of doubled pictures (winograd_up.c) takes beside its products, in vectors: the
 * differences of its inputs, and outputs from nine sums. Both are fp32, differences are rounded once to bf16.
 *
 * Bytes and FLOPs: a cell and step of 32 channels is 4 lines in, mostly from the first level, and 4 out; a
 * cell and panel is 18 lines of sums in, from the second level, for 20 additions and 4 lines of y. */
#ifdef LATENTD_EMULATE
#define KERNEL winograd_up_amx_emulated
#else
#define KERNEL winograd_up_amx
#endif
#include "vec_bf16.h"

#include "winograd_up.h"

/* ---- Inputs ---- */

VEC struct halves less(struct halves a, struct halves b)
{
    return (struct halves){v_sub(a.even, b.even), v_sub(a.odd, b.odd)};
}

static void input(const struct wu_input *in)
{
    char *dst = in->dst;
    for (size_t c = 0; c < (size_t)in->channels * 2; c += WU_LINE, dst += in->step) {
        __builtin_prefetch(in->src[1][1] + in->ahead + c);
        const struct halves corner = halves_load(in->src[0][0] + c), above = halves_load(in->src[0][1] + c),
                            left = halves_load(in->src[1][0] + c), x = halves_load(in->src[1][1] + c);
        const struct halves along = less(left, x);
        halves_store(dst, x);
        halves_store(dst + in->array, along);
        halves_store(dst + 2 * in->array, less(above, x));
        halves_store(dst + 3 * in->array, less(less(corner, above), along));
    }
}

/* ---- Outputs ---- */

/* Half a panel of a cell: [2 rows][2 columns]. */
VEC void outputs(const float *m, size_t place, vf base, vf z[4])
{
    vf row[2][WU_SIDE];
#pragma GCC unroll 3
    for (int j = 0; j < WU_SIDE; j++, m += place) {
        vf k = v_load(m + WU_SIDE * place);
        row[0][j] = v_add(v_load(m), k);
        row[1][j] = v_add(v_load(m + 2 * WU_SIDE * place), k);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        vf k = v_add(row[i][1], base);
        z[2 * i] = v_add(row[i][0], k);
        z[2 * i + 1] = v_add(row[i][2], k);
    }
}

/* Sums of outputs and of their squares of half a panel. */
struct moments {
    vf sum, square;
};

VEC void add_moments(struct moments *s, const vf z[4])
{
    s->sum = v_add(s->sum, v_add(v_add(z[0], z[1]), v_add(z[2], z[3])));
    vf square = v_fma(z[1], z[1], v_mul(z[0], z[0]));
    s->square = v_add(s->square, v_fma(z[3], z[3], v_fma(z[2], z[2], square)));
}

VEC void store_line(char *to, vf lo, vf hi, bool stream)
{
    if (stream)
        _mm512_stream_si512((__m512i *)(void *)to, vb_narrow(lo, hi));
    else
        _mm512_storeu_si512(to, vb_narrow(lo, hi));
}

/* KEEPS: their moments. */
VEC void end_cells(const struct wu_output *o, bool stream, bool keeps)
{
    const vf base[2] = {v_load(o->base), v_load(o->base + 16)};
    const float *m = o->m;
    char *y = o->y;
    struct moments s[2];
    s[0].sum = s[0].square = s[1].sum = s[1].square = v_zero();
    for (int i = 0; i < o->cells; i++, m += WU_COLS, y += 2 * o->y_column) {
        vf lo[4], hi[4];
        outputs(m, o->place, base[0], lo);
        outputs(m + 16, o->place, base[1], hi);
        store_line(y, lo[0], hi[0], stream);
        store_line(y + o->y_column, lo[1], hi[1], stream);
        store_line(y + o->y_row, lo[2], hi[2], stream);
        store_line(y + o->y_row + o->y_column, lo[3], hi[3], stream);
        if (keeps) {
            add_moments(&s[0], lo);
            add_moments(&s[1], hi);
        }
    }
    for (int h = 0; h < 2 && keeps; h++) {
        float *to = o->sums + 16 * h;
        v_store(to, v_add(v_load(to), s[h].sum));
        v_store(to + WU_COLS, v_add(v_load(to + WU_COLS), s[h].square));
    }
}

static void keep_cells(const struct wu_output *o)
{
    const size_t row = (size_t)o->cells * 2 * WU_COLS;
    const float *m = o->m;
    float *work = o->work;
    for (int i = 0; i < o->cells; i++, m += WU_COLS, work += 2 * WU_COLS)
        for (int h = 0; h < WU_COLS; h += 16) {
            vf z[4];
            outputs(m + h, o->place, v_zero(), z);
            v_store(work + h, z[0]);
            v_store(work + WU_COLS + h, z[1]);
            v_store(work + row + h, z[2]);
            v_store(work + row + WU_COLS + h, z[3]);
        }
}

static void output(const struct wu_output *o)
{
    if (o->work)
        keep_cells(o);
    else if (o->sums && o->stream)
        end_cells(o, true, true);
    else if (o->sums)
        end_cells(o, false, true);
    else if (o->stream)
        end_cells(o, true, false);
    else
        end_cells(o, false, false);
}

const struct winograd_up_kernel KERNEL = {input, output};
