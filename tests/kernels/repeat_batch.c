/* repeat_batch: the whole batch several times, not each picture several times. */
#include "check.h"

static void run_times(struct check *ck, const struct shape *s, int times)
{
    struct array x = shape_array(ck, s), want = array_new(ck, s->n * times, s->h, s->w, s->c);
    ck->ref->ops.repeat_batch(ck->ref, array_tensor(want), array_tensor(x), &ck->err);
    struct array bound = bound_units(ck, want, 0);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        for (int f32 = 0; f32 < 2; f32++) { /* latents are F32 whatever the activations are */
            enum dtype type = f32 ? DTYPE_F32 : ck->type;
            tensor tx = place(ck, x, type, s->first, s->gap);
            tensor y = place_output(ck, t, s->n * times, s->h, s->w, s->c, type);
            verify(ck, t, t->be->ops.repeat_batch(t->be, y, tx, &ck->err), y, want.v, bound.v);
        }
    }
    case_end(ck);
}

static void run(struct check *ck, const struct shape *s)
{
    run_times(ck, s, 2);
    run_times(ck, s, rng_range(ck, 1, 3));
}

static void cases(struct check *ck)
{
    each_shape(ck, run);
}

static void round_case(struct check *ck)
{
    random_shape(ck, run);
}

/* ints: times; arrays: x, y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    struct array x = g->array[0], y = array_new(ck, x.n * g->ints[0], x.h, x.w, x.c);
    int rc = ck->ref->ops.repeat_batch(ck->ref, array_tensor(y), array_tensor(x), &ck->err);
    verify_golden(ck, rc, array_tensor(y), g->array[1], 0, 0);
}

const struct op_check check_repeat_batch = {OP_repeat_batch, cases, round_case, golden, NULL, NULL};
