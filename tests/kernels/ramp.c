/* ramp: from one strip to another, down the rows or along them. */
#include <math.h>

#include "check.h"

static void run_unit(struct check *ck, const struct shape *s, int unit)
{
    struct shape strip = {1, 1, s->h * s->w, s->c, s->first, s->gap};
    struct array a = shape_array(ck, &strip), b = shape_array(ck, &strip);
    struct array want = array_new(ck, 1, 1, strip.w, s->c), bound = array_new(ck, 1, 1, strip.w, s->c);
    ck->ref->ops.ramp(ck->ref, array_tensor(want), array_tensor(a), array_tensor(b), unit, &ck->err);
    for (size_t i = 0; i < array_count(want); i++)
        bound.v[i] = (float)(4 * FP32_UNIT) * (fabsf(a.v[i]) + fabsf(b.v[i]));
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        tensor ta = place(ck, a, DTYPE_F32, s->first, s->gap), tb = place(ck, b, DTYPE_F32, s->gap, 0);
        tensor y = place_output(ck, t, 1, 1, strip.w, s->c, DTYPE_F32);
        verify(ck, t, t->be->ops.ramp(t->be, y, ta, tb, unit, &ck->err), y, want.v, bound.v);
    }
    case_end(ck);
}

static void run(struct check *ck, const struct shape *s)
{
    run_unit(ck, s, 0);
    run_unit(ck, s, 1);
    if (s->c % 3 == 0)
        run_unit(ck, s, 3);
}

static void cases(struct check *ck)
{
    each_shape(ck, run);
}

static void round_case(struct check *ck)
{
    random_shape(ck, run);
}

/* ints: unit; arrays: a, b, y. Computed in place of b, as the networks do. */
static void golden(struct check *ck, const struct golden_case *g)
{
    struct array b = array_new(ck, 1, 1, g->array[1].w, g->array[1].c);
    for (size_t i = 0; i < array_count(b); i++)
        b.v[i] = g->array[1].v[i];
    int rc = ck->ref->ops.ramp(ck->ref, array_tensor(b), array_tensor(g->array[0]), array_tensor(b),
                               g->ints[0], &ck->err);
    verify_golden(ck, rc, array_tensor(b), g->array[2], 1e-7, 4 * FP32_UNIT);
}

const struct op_check check_ramp = {OP_ramp, cases, round_case, golden, NULL, NULL};
