/* lincomb: one to LINCOMB_MAX terms, with coefficients that cancel. */
#include <math.h>

#include "check.h"

static void run_terms(struct check *ck, const struct shape *s, int terms)
{
    struct array x[LINCOMB_MAX], want = array_new(ck, s->n, s->h, s->w, s->c);
    struct array bound = array_new(ck, s->n, s->h, s->w, s->c);
    float coef[LINCOMB_MAX] = {1.5f, -1.5f, 14.6146f, -0.0312f, 0, 1};
    tensor tx[LINCOMB_MAX];
    for (int k = 0; k < terms; k++) {
        x[k] = shape_array(ck, s);
        tx[k] = array_tensor(x[k]);
    }
    ck->ref->ops.lincomb(ck->ref, array_tensor(want), terms, coef, tx, &ck->err);
    for (size_t i = 0; i < array_count(want); i++) {
        double size = 0;
        for (int k = 0; k < terms; k++)
            size += fabs((double)(coef[k] * x[k].v[i]));
        bound.v[i] = (float)(size * (terms + 1) * FP32_UNIT);
    }
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        for (int k = 0; k < terms; k++)
            tx[k] = place(ck, x[k], DTYPE_F32, s->first, s->gap);
        tensor y = place_output(ck, t, s->n, s->h, s->w, s->c, DTYPE_F32);
        verify(ck, t, t->be->ops.lincomb(t->be, y, terms, coef, tx, &ck->err), y, want.v, bound.v);
    }
    case_end(ck);
}

static void run(struct check *ck, const struct shape *s)
{
    for (int terms = 1; terms <= LINCOMB_MAX; terms++)
        run_terms(ck, s, terms);
}

static void cases(struct check *ck)
{
    each_shape(ck, run);
}

static void round_case(struct check *ck)
{
    random_shape(ck, run);
}

/* ints: terms; floats: coefficients; arrays: x ..., then at LINCOMB_MAX the sum. */
static void golden(struct check *ck, const struct golden_case *g)
{
    tensor x[LINCOMB_MAX];
    for (int k = 0; k < LINCOMB_MAX; k++)
        x[k] = array_tensor(g->array[k]);
    struct array y = array_new(ck, x[0].n, x[0].h, x[0].w, x[0].c);
    int rc = ck->ref->ops.lincomb(ck->ref, array_tensor(y), g->ints[0], g->floats, x, &ck->err);
    verify_golden(ck, rc, array_tensor(y), g->array[LINCOMB_MAX], 1e-6, 4 * FP32_UNIT);
}

const struct op_check check_lincomb = {OP_lincomb, cases, round_case, golden, NULL, NULL};
