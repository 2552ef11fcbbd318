/* upsample_nearest: each pixel becomes four. */
#include "check.h"

static void run(struct check *ck, const struct shape *s)
{
    struct array x = shape_array(ck, s), want = array_new(ck, s->n, 2 * s->h, 2 * s->w, s->c);
    ck->ref->ops.upsample_nearest(ck->ref, array_tensor(want), array_tensor(x), &ck->err);
    struct array bound = bound_units(ck, want, 0);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        tensor tx = place(ck, x, ck->type, s->first, s->gap);
        tensor y = place_output(ck, t, s->n, 2 * s->h, 2 * s->w, s->c, ck->type);
        verify(ck, t, t->be->ops.upsample_nearest(t->be, y, tx, &ck->err), y, want.v, bound.v);
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

/* arrays: x, y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    struct array x = g->array[0], y = array_new(ck, x.n, 2 * x.h, 2 * x.w, x.c);
    int rc = ck->ref->ops.upsample_nearest(ck->ref, array_tensor(y), array_tensor(x), &ck->err);
    verify_golden(ck, rc, array_tensor(y), g->array[1], 0, 0);
}

const struct op_check check_upsample_nearest = {OP_upsample_nearest, cases, round_case, golden, NULL, NULL};
