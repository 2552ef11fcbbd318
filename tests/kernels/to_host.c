/* to_host: a tensor, perhaps a view, as contiguous fp32. */
#include "check.h"

static void run(struct check *ck, const struct shape *s)
{
    struct array x = shape_array(ck, s), bound = bound_units(ck, x, 0);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        for (int f32 = 0; f32 < 2; f32++) {
            tensor tx = place(ck, x, f32 ? DTYPE_F32 : ck->type, s->first, s->gap);
            float *host = place_host(ck, array_count(x) * sizeof(float));
            tensor y = {
                .n = s->n, .h = s->h, .w = s->w, .c = s->c, .ld = s->c, .dtype = DTYPE_F32, .data = host};
            verify(ck, t, t->be->ops.to_host(t->be, tx, host, &ck->err), y, x.v, bound.v);
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

const struct op_check check_to_host = {OP_to_host, cases, round_case, NULL, NULL, NULL};
