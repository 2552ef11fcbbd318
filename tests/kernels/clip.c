/* clip: below, inside and above, exactly at the ends, and a NaN stays a NaN. */
#include <math.h>

#include "check.h"

static void run(struct check *ck, const struct shape *s)
{
    struct array x = shape_array(ck, s), want = array_new(ck, s->n, s->h, s->w, s->c);
    if (s->c > 4) {
        x.v[0] = 1;
        x.v[1] = -1;
        x.v[2] = INFINITY;
        x.v[3] = NAN;
    }
    for (size_t i = 0; i < array_count(x); i++)
        want.v[i] = x.v[i] < -1 ? -1 : x.v[i] > 1 ? 1 : x.v[i];
    struct array bound = bound_units(ck, want, 0);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        tensor tx = place(ck, x, DTYPE_F32, s->first, s->gap);
        tensor y = place_output(ck, t, s->n, s->h, s->w, s->c, DTYPE_F32);
        verify(ck, t, t->be->ops.clip(t->be, y, tx, -1, 1, &ck->err), y, want.v, bound.v);
    }
    case_end(ck);
}

static void cases(struct check *ck)
{
    each_shape(ck, run);
}

static void round_case(struct check *ck)
{
    random_shape(ck, run);
}

/* floats: lo, hi; arrays: x, y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    struct array x = g->array[0], y = array_new(ck, x.n, x.h, x.w, x.c);
    int rc =
        ck->ref->ops.clip(ck->ref, array_tensor(y), array_tensor(x), g->floats[0], g->floats[1], &ck->err);
    verify_golden(ck, rc, array_tensor(y), g->array[1], 0, 0);
}

const struct op_check check_clip = {OP_clip, cases, round_case, golden, NULL, NULL};
