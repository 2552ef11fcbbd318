/* to_rgb8: exactly diffusers' rounding, at every half step, beyond both ends, and for a NaN. */
#include <math.h>

#include "check.h"

/* The k-th of 512 half steps: 127.5 x + 127.5 = k / 2, as near as fp32 comes to it. */
static float half_step(int k)
{
    return (float)k / 255.0f - 1.0f;
}

static void run(struct check *ck, const struct shape *s)
{
    struct shape rgb = *s;
    rgb.c = 3;
    struct array x = shape_array(ck, &rgb);
    size_t count = array_count(x);
    uint8_t *want = case_alloc(ck, count);
    for (size_t i = 0; i < count; i++)
        x.v[i] = i % 3 == 0 ? half_step(rng_range(ck, 0, 510)) : x.v[i] / 3;
    x.v[count - 1] = NAN;
    ck->ref->ops.to_rgb8(ck->ref, array_tensor(x), want, &ck->err);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        tensor tx = place(ck, x, DTYPE_F32, s->first, s->gap);
        uint8_t *host = place_host(ck, count);
        verify_bytes(ck, t, t->be->ops.to_rgb8(t->be, tx, host, &ck->err), host, want, count);
    }
    case_end(ck);
}

static void cases(struct check *ck)
{
    each_shape(ck, run);
    run(ck, &(struct shape){1, 3, 120000, 3, 0, 1}); /* more than a GPU moves at a time */
}

static void round_case(struct check *ck)
{
    random_shape(ck, run);
}

/* arrays: x, bytes as numbers. */
static void golden(struct check *ck, const struct golden_case *g)
{
    struct array x = g->array[0], y = array_new(ck, x.n, x.h, x.w, x.c);
    uint8_t *host = case_alloc(ck, array_count(x));
    int rc = ck->ref->ops.to_rgb8(ck->ref, array_tensor(x), host, &ck->err);
    for (size_t i = 0; i < array_count(x); i++)
        y.v[i] = host[i];
    verify_golden(ck, rc, array_tensor(y), g->array[1], 0, 0);
}

const struct op_check check_to_rgb8 = {OP_to_rgb8, cases, round_case, golden, NULL, NULL};
