/* Rows whose steps of channels are at equal distances: linear layers and 1x1 convolutions, several tiles of
 * rows in a call. Included by gemm_amx.c alone. */
#ifndef LATENTD_CPU_LINE_AMX_H
#define LATENTD_CPU_LINE_AMX_H

#include "multiply_amx.h"

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
            ask_to_write(&q->y[b]);
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

#endif
