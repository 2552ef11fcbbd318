/* timestep_embedding: both orders, both shifts, odd widths, whole and broken timesteps. */
#include <math.h>

#include "check.h"

enum { TIMES_MAX = 200 };

static void run_times(struct check *ck, int n, int dim, bool flip, float shift)
{
    static const float some[] = {0, 1, 999, 0.5f, 498.25f};
    float times[TIMES_MAX];
    case_label(ck, "%d timesteps, dim %d, flip %d, shift %g", n, dim, flip, (double)shift);
    struct array want = array_new(ck, n, 1, 1, dim), bound = array_new(ck, n, 1, 1, dim);
    for (int i = 0; i < n; i++)
        times[i] = i < 5 ? some[i] : (float)rng_range(ck, 0, 999);
    ck->ref->ops.timestep_embedding(ck->ref, array_tensor(want), times, flip, shift, &ck->err);
    for (size_t i = 0; i < array_count(want);
         i++) /* the angle reaches t and is a product of two rounded numbers */
        bound.v[i] = 4 * (float)FP32_UNIT * (times[i / (size_t)dim] + 4);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        tensor y = place_output(ck, t, n, 1, 1, dim, ck->type);
        int rc = t->be->ops.timestep_embedding(t->be, y, times, flip, shift, &ck->err);
        verify(ck, t, rc, y, want.v, bound.v);
    }
    case_end(ck);
}

static void cases(struct check *ck)
{
    run_times(ck, 1, 320, true, 0);
    run_times(ck, 5, 320, false, 1);
    run_times(ck, 2, 2, true, 0);
    run_times(ck, 3, 33, true, 0);
    run_times(ck, 8, 64, false, 0);
    run_times(ck, TIMES_MAX, 10, true, 0); /* more than one launch of a GPU takes */
}

static void round_case(struct check *ck)
{
    run_times(ck, rng_range(ck, 1, 8), rng_range(ck, 4, 400), rng_one_in(ck, 2),
              rng_one_in(ck, 2) ? 1.0f : 0.0f);
}

/* ints: flip; floats: shift; arrays: timesteps [N], y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    struct array times = g->array[0], y = array_new(ck, g->array[1].n, 1, 1, g->array[1].c);
    case_label(ck, "dim %d, flip %d, shift %g", y.c, g->ints[0], (double)g->floats[0]);
    int rc = ck->ref->ops.timestep_embedding(ck->ref, array_tensor(y), times.v, g->ints[0], g->floats[0],
                                             &ck->err);
    verify_golden(ck, rc, array_tensor(y), g->array[1], 1.3e-4,
                  0); /* one unit of fp32 at an angle of 999, and exp's */
}

const struct op_check check_timestep_embedding = {
    OP_timestep_embedding, cases, round_case, golden, NULL, NULL};
