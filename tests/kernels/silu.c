/* silu, also where exp overflows. */
#include "check.h"

static void run(struct check *ck, const struct shape *s)
{
    struct array x = shape_array(ck, s), want = array_new(ck, s->n, s->h, s->w, s->c);
    if (s->c > 2) { /* exp(-x) overflows in fp32 below -88 */
        x.v[0] = half_round(-200, ck->type);
        x.v[1] = half_round(-88, ck->type);
        x.v[2] = half_round(1000, ck->type);
    }
    ck->ref->ops.silu(ck->ref, array_tensor(want), array_tensor(x), &ck->err);
    struct array bound = bound_units(ck, want, 16);
    for (size_t i = 0; i < array_count(bound); i++)
        bound.v[i] += 1e-30f; /* x e^x of a very negative x may flush to zero */
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        tensor tx = place(ck, x, ck->type, s->first, s->gap);
        tensor y = place_output(ck, t, s->n, s->h, s->w, s->c, ck->type);
        verify(ck, t, t->be->ops.silu(t->be, y, tx, &ck->err), y, want.v, bound.v);
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
    struct array x = g->array[0], y = array_new(ck, x.n, x.h, x.w, x.c);
    int rc = ck->ref->ops.silu(ck->ref, array_tensor(y), array_tensor(x), &ck->err);
    verify_golden(ck, rc, array_tensor(y), g->array[1], 1e-30, 8 * FP32_UNIT);
}

static int move(struct backend *be, tensor y, tensor a, tensor b, struct error *err)
{
    (void)b;
    return be->ops.silu(be, y, a, err);
}

static void bench(struct check *ck, const struct tier *t)
{
    bench_moves(ck, t, move, 1, 1, 1);
}

const struct op_check check_silu = {OP_silu, cases, round_case, golden, bench, NULL};
