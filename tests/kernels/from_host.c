/* from_host: host fp32 into a tensor, rounded to its type. */
#include "check.h"

static void run(struct check *ck, const struct shape *s)
{
    struct array x = shape_array(ck, s);
    for (size_t i = 0; i < array_count(x); i++)
        x.v[i] *= 1.0009765f; /* no 16-bit number any more */
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        for (int f32 = 0; f32 < 2; f32++) {
            enum dtype type = f32 ? DTYPE_F32 : ck->type;
            struct array want = array_new(ck, s->n, s->h, s->w, s->c), bound = bound_units(ck, x, 0);
            for (size_t i = 0; i < array_count(x); i++)
                want.v[i] = half_round(x.v[i], type);
            const float *host = place(ck, x, DTYPE_F32, 0, 0).data;
            tensor y = place_output(ck, t, s->n, s->h, s->w, s->c, type);
            verify(ck, t, t->be->ops.from_host(t->be, y, host, &ck->err), y, want.v, bound.v);
        }
    }
    case_end(ck);
}

static void cases(struct check *ck)
{
    each_shape(ck, run);
    /* More than a GPU moves at a time: cut between rows, and within a row. */
    run(ck, &(struct shape){1, 1, 3, 100000, 3, 2});
    run(ck, &(struct shape){1, 1, 2, 270000, 1, 0});
}

static void round_case(struct check *ck)
{
    random_shape(ck, run);
}

const struct op_check check_from_host = {OP_from_host, cases, round_case, NULL, NULL, NULL};
