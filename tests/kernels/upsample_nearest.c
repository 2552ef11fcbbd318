/* upsample_nearest: each pixel becomes four; the last row or column may be cut off, or one more be there
 * (upsample_nearest_to). */
#include "check.h"

static void run_cut(struct check *ck, const struct shape *s, int cut_rows, int cut_columns)
{
    int h = 2 * s->h - cut_rows, w = 2 * s->w - cut_columns;
    struct array x = shape_array(ck, s), want = array_new(ck, s->n, h, w, s->c);
    ck->ref->ops.upsample_nearest(ck->ref, array_tensor(want), array_tensor(x), &ck->err);
    struct array bound = bound_units(ck, want, 0);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        tensor tx = place(ck, x, ck->type, s->first, s->gap);
        tensor y = place_output(ck, t, s->n, h, w, s->c, ck->type);
        verify(ck, t, t->be->ops.upsample_nearest(t->be, y, tx, &ck->err), y, want.v, bound.v);
    }
    case_end(ck);
}

static void run(struct check *ck, const struct shape *s)
{
    run_cut(ck, s, 0, 0);
    run_cut(ck, s, 0, 1);
    run_cut(ck, s, 0, -1);
    if (s->n == 1) { /* a slot gets one picture when a row is cut off */
        run_cut(ck, s, 1, 0);
        run_cut(ck, s, 1, 1);
        run_cut(ck, s, -1, 0);
        run_cut(ck, s, -1, 1);
        run_cut(ck, s, -1, -1);
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

/* arrays: x, y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    struct array x = g->array[0], want = g->array[1], y = array_new(ck, want.n, want.h, want.w, want.c);
    int rc = ck->ref->ops.upsample_nearest(ck->ref, array_tensor(y), array_tensor(x), &ck->err);
    verify_golden(ck, rc, array_tensor(y), want, 0, 0);
}

static int move(struct backend *be, tensor y, tensor a, tensor b, struct error *err)
{
    (void)b;
    return be->ops.upsample_nearest(be, y, a, err);
}

static void bench(struct check *ck, const struct tier *t)
{
    bench_moves(ck, t, move, 1, 2, 1);
}

const struct op_check check_upsample_nearest = {OP_upsample_nearest, cases, round_case, golden, bench, NULL};
