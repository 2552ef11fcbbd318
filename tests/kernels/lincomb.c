/* lincomb: one to LINCOMB_MAX terms, with coefficients that cancel; one of them a guided pair or none. */
#include <math.h>

#include "check.h"

#define SCALE 7.5f

/* How large what term K adds to number I may be on its way. */
static double size_of(struct array x, size_t i, size_t count, bool guided)
{
    double v = fabs((double)x.v[i]);
    return guided ? v + (double)SCALE * (v + fabs((double)x.v[count + i])) : v;
}

static void run_terms(struct check *ck, const struct shape *s, int terms, int pair)
{
    struct array x[LINCOMB_MAX], want = array_new(ck, s->n, s->h, s->w, s->c);
    struct array bound = array_new(ck, s->n, s->h, s->w, s->c);
    const float coef[LINCOMB_MAX] = {1.5f, -1.5f, 14.6146f, -0.0312f, 0, 1};
    tensor tx[LINCOMB_MAX];
    for (int k = 0; k < terms; k++) {
        struct shape shape = *s;
        shape.n *= k == pair ? 2 : 1;
        x[k] = shape_array(ck, &shape);
        tx[k] = array_tensor(x[k]);
    }
    ck->ref->ops.lincomb(ck->ref, array_tensor(want), terms, coef, tx, pair, SCALE, &ck->err);
    for (size_t i = 0; i < array_count(want); i++) {
        double size = 0;
        for (int k = 0; k < terms; k++)
            size += fabs((double)coef[k]) * size_of(x[k], i, array_count(want), k == pair);
        bound.v[i] = (float)(size * (terms + (pair < 0 ? 1 : 4)) * FP32_UNIT);
    }
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        for (int k = 0; k < terms; k++)
            tx[k] = place(ck, x[k], DTYPE_F32, s->first, s->gap);
        tensor y = place_output(ck, t, s->n, s->h, s->w, s->c, DTYPE_F32);
        int rc = t->be->ops.lincomb(t->be, y, terms, coef, tx, pair, SCALE, &ck->err);
        verify(ck, t, rc, y, want.v, bound.v);
    }
    case_end(ck);
}

static void run(struct check *ck, const struct shape *s)
{
    for (int terms = 1; terms <= LINCOMB_MAX; terms++) {
        run_terms(ck, s, terms, -1);
        run_terms(ck, s, terms, terms / 2);
    }
}

static void cases(struct check *ck)
{
    each_shape(ck, run);
}

static void round_case(struct check *ck)
{
    random_shape(ck, run);
}

/* ints: terms, 1 + the place of a guided pair or 0; floats: coefficients, then at LINCOMB_MAX the scale;
 * arrays: x ..., then at LINCOMB_MAX the sum. */
static void golden(struct check *ck, const struct golden_case *g)
{
    tensor x[LINCOMB_MAX];
    for (int k = 0; k < LINCOMB_MAX; k++)
        x[k] = array_tensor(g->array[k]);
    struct array want = g->array[LINCOMB_MAX], y = array_new(ck, want.n, want.h, want.w, want.c);
    int rc = ck->ref->ops.lincomb(ck->ref, array_tensor(y), g->ints[0], g->floats, x, g->ints[1] - 1,
                                  g->floats[LINCOMB_MAX], &ck->err);
    verify_golden(ck, rc, array_tensor(y), want, 1e-6, 4 * FP32_UNIT);
}

const struct op_check check_lincomb = {OP_lincomb, cases, round_case, golden, NULL, NULL};
