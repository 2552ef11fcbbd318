/* guide: classifier-free guidance over the two halves of a batch. */
#include <math.h>

#include "check.h"

static void run_scale(struct check *ck, const struct shape *s, float scale)
{
    struct shape both = *s;
    both.n *= 2;
    struct array e = shape_array(ck, &both), want = array_new(ck, s->n, s->h, s->w, s->c);
    struct array bound = array_new(ck, s->n, s->h, s->w, s->c);
    ck->ref->ops.guide(ck->ref, array_tensor(want), array_tensor(e), scale, &ck->err);
    for (size_t i = 0; i < array_count(want); i++) {
        double u = fabs((double)e.v[i]), c = fabs((double)e.v[array_count(want) + i]);
        bound.v[i] = (float)(4 * FP32_UNIT * (u + fabs((double)scale) * (u + c)));
    }
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        tensor te = place(ck, e, DTYPE_F32, s->first, s->gap);
        tensor y = place_output(ck, t, s->n, s->h, s->w, s->c, DTYPE_F32);
        verify(ck, t, t->be->ops.guide(t->be, y, te, scale, &ck->err), y, want.v, bound.v);
    }
    case_end(ck);
}

static void run(struct check *ck, const struct shape *s)
{
    run_scale(ck, s, 7.5f);
    run_scale(ck, s, 1);
    run_scale(ck, s, -2.25f);
}

static void cases(struct check *ck)
{
    each_shape(ck, run);
}

static void round_case(struct check *ck)
{
    random_shape(ck, run);
}

/* floats: scale; arrays: e, y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    struct array e = g->array[0], y = array_new(ck, e.n / 2, e.h, e.w, e.c);
    int rc = ck->ref->ops.guide(ck->ref, array_tensor(y), array_tensor(e), g->floats[0], &ck->err);
    verify_golden(ck, rc, array_tensor(y), g->array[1], 0, 2 * FP32_UNIT);
}

const struct op_check check_guide = {OP_guide, cases, round_case, golden, NULL, NULL};
