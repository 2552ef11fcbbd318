/* The ends of the AMX kernel's tiles, a row now and then along the products of the next one: bias, add_bc,
 * activation, residual, and y in bf16. Included by gemm_amx.c alone. */
#ifndef LATENTD_CPU_ENDING_AMX_H
#define LATENTD_CPU_ENDING_AMX_H

#include "tier.h"
#include "vec_bf16.h"
#include "vec_gelu.h"

#include "joined.h"

enum { NR = 32 }; /* columns of a panel */

/* The end of an earlier tile, a row of it now and then: while products wait for each other in the tile unit,
 * the vector units are free. */
struct ending {
    const struct finish *f;
    const float *c;
    const char *residual, *before;
    char *y;
    size_t y_stride, residual_stride;
    int left, pace; /* rows to do, rows at a time */
    int before_bytes, before_stride;
    int lower; /* rows to do behind the jump of y and the residual */
    bool stream, adds;
    vf bias[2], add[2];
    vf sum[2], square[2]; /* of the rows so far, where f->sums */
};

static bool defers(const struct finish *f)
{
    return ends_along(f, NR);
}

enum kind { PLAIN, GELU, GEGLU, SUMMED };

static enum kind ending_kind(const struct finish *f)
{
    return !f ? PLAIN : f->geglu ? GEGLU : f->act == ACT_GELU ? GELU : f->sums ? SUMMED : PLAIN;
}

VEC void load_add(struct ending *e, const void *add)
{
    if (!add)
        return;
    for (int i = 0; i < 2; i++)
        e->add[i] = e->f->add_type == DTYPE_F32 ? v_load((const float *)add + 16 * i)
                                                : v_load_bf16((const char *)add + 32 * i);
}

/* F's, whose rows are dealt to STEPS steps; NULL: nothing is to be ended. */
VEC struct ending begin_ending(const struct finish *f, int steps)
{
    struct ending e = {.f = f};
    if (!f)
        return e;
    e.c = f->c;
    e.residual = f->residual;
    e.before = f->before;
    e.before_bytes = f->before_bytes;
    e.before_stride = f->before_stride;
    e.stream = streams_lines(f);
    e.y = f->y;
    e.y_stride = f->y_stride;
    e.residual_stride = f->residual_stride;
    e.adds = f->add;
    e.left = f->jump ? f->jump->first : f->rows;
    e.lower = f->rows - e.left;
    e.pace = steps > 0 ? (f->rows + steps - 1) / steps : f->rows;
    e.pace += f->geglu ? e.pace % 2 : 0;
    for (int i = 0; i < 2; i++) {
        e.sum[i] = e.square[i] = v_zero();
        e.bias[i] = v_load(f->bias + 16 * i);
    }
    load_add(&e, f->add);
    return e;
}

VEC void jump(struct ending *e)
{
    const struct finish_jump *j = e->f->jump;
    e->left = e->lower;
    e->lower = 0;
    e->y += j->y;
    e->residual = e->residual ? e->residual + j->residual : NULL;
    load_add(e, e->f->add ? (const char *)e->f->add + j->add : NULL);
}

/* JOINS: there may be lines before. */
VEC void end_row(struct ending *e, enum kind kind, bool joins)
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
    store_line(e->y, joins ? e->before : NULL, vb_narrow(lo, hi), e->stream);
    e->before = joins && e->before ? e->before + e->before_stride : NULL;
    e->y += e->y_stride;
    e->c += NR;
}

VEC vf geglu_row(struct ending *e)
{
    vf value = v_add(v_load(e->c), e->bias[0]), gate = v_add(v_load(e->c + 16), e->bias[1]);
    e->c += NR;
    return v_mul(value, v_gelu(gate));
}

VEC void end_half(struct ending *e, __m512i line)
{
    store_half(e->y, e->before, e->before_bytes, line, e->stream);
    e->before = e->before ? e->before + e->before_stride : NULL;
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
VEC void end_rows(struct ending *e, int rows, enum kind kind, bool joins)
{
    rows = rows < e->left ? rows : e->left;
    e->left -= rows;
    if (kind == GEGLU) {
        end_geglu_rows(e, rows);
        return;
    }
    for (; rows > 0; rows--)
        end_row(e, kind, joins);
}

/* All that are left. */
VEC void end_rest(struct ending *e, enum kind kind, bool joins)
{
    end_rows(e, e->left, kind, joins);
    if (e->lower > 0) {
        jump(e);
        end_rows(e, e->left, kind, joins);
    }
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
        end_rest(e, GEGLU, true);
    else if (kind == GELU)
        end_rest(e, GELU, true);
    else if (kind == SUMMED)
        end_rest(e, SUMMED, true), end_sums(e);
    else
        end_rest(e, PLAIN, true);
}

#endif
