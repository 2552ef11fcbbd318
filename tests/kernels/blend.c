/* blend: two tensors of one shape, each perhaps a view, in shares that add up to one. */
#include <math.h>

#include "check.h"

static void run(struct check *ck, const struct shape *s)
{
    struct array a = shape_array(ck, s), b = array_random(ck, s->n, s->h, s->w, s->c, 1, 0);
    struct array want = array_new(ck, s->n, s->h, s->w, s->c);
    float share = (float)rng_range(ck, 0, 64) / 64;
    ck->ref->ops.blend(ck->ref, array_tensor(want), array_tensor(a), array_tensor(b), share, &ck->err);
    /* the two products may cancel, and one of them may not be rounded by itself */
    struct array bound = array_new(ck, s->n, s->h, s->w, s->c);
    for (size_t i = 0; i < array_count(want); i++)
        bound.v[i] = 2 * (float)FP32_UNIT * (fabsf(share * a.v[i]) + fabsf((1 - share) * b.v[i]));
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        tensor ta = place(ck, a, ck->type, s->first, s->gap), tb = place(ck, b, ck->type, s->gap, 0);
        tensor y = place_output(ck, t, s->n, s->h, s->w, s->c, ck->type);
        verify(ck, t, t->be->ops.blend(t->be, y, ta, tb, share, &ck->err), y, want.v, bound.v);
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

/* floats: share; arrays: a, b, y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    struct array a = g->array[0], y = array_new(ck, a.n, a.h, a.w, a.c);
    int rc = ck->ref->ops.blend(ck->ref, array_tensor(y), array_tensor(a), array_tensor(g->array[1]),
                                g->floats[0], &ck->err);
    verify_golden(ck, rc, array_tensor(y), g->array[2], 1e-7, 1e-6);
}

static int move(struct backend *be, tensor y, tensor a, tensor b, struct error *err)
{
    return be->ops.blend(be, y, a, b, 0.3f, err);
}

static void bench(struct check *ck, const struct tier *t)
{
    bench_moves(ck, t, move, 2, 1, 1);
}

const struct op_check check_blend = {OP_blend, cases, round_case, golden, bench, NULL};
