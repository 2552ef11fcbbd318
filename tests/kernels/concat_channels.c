/* concat_channels: two widths side by side. */
#include "check.h"

static void run_widths(struct check *ck, const struct shape *s, int width)
{
    struct array a = shape_array(ck, s), b = array_random(ck, s->n, s->h, s->w, width, 1, 0);
    struct array want = array_new(ck, s->n, s->h, s->w, s->c + width);
    ck->ref->ops.concat_channels(ck->ref, array_tensor(want), array_tensor(a), array_tensor(b), &ck->err);
    struct array bound = bound_units(ck, want, 0);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        tensor ta = place(ck, a, ck->type, s->first, s->gap), tb = place(ck, b, ck->type, s->gap, s->first);
        tensor y = place_output(ck, t, s->n, s->h, s->w, s->c + width, ck->type);
        verify(ck, t, t->be->ops.concat_channels(t->be, y, ta, tb, &ck->err), y, want.v, bound.v);
    }
    case_end(ck);
}

static void run(struct check *ck, const struct shape *s)
{
    run_widths(ck, s, s->c);
    run_widths(ck, s, rng_range(ck, 1, 70));
}

static void cases(struct check *ck)
{
    each_shape(ck, run);
}

static void round_case(struct check *ck)
{
    random_shape(ck, run);
}

/* arrays: a, b, y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    struct array a = g->array[0], b = g->array[1], y = array_new(ck, a.n, a.h, a.w, a.c + b.c);
    int rc =
        ck->ref->ops.concat_channels(ck->ref, array_tensor(y), array_tensor(a), array_tensor(b), &ck->err);
    verify_golden(ck, rc, array_tensor(y), g->array[2], 0, 0);
}

static int move(struct backend *be, tensor y, tensor a, tensor b, struct error *err)
{
    return be->ops.concat_channels(be, y, a, b, err);
}

static void bench(struct check *ck, const struct tier *t)
{
    bench_moves(ck, t, move, 2, 1, 2);
}

const struct op_check check_concat_channels = {OP_concat_channels, cases, round_case, golden, bench, NULL};
