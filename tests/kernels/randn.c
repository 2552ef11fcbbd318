/* randn: the numbers that torch.randn draws on a CUDA generator. There is no CUDA where the tests run, so ref
 * is held to published values; tiers are held to ref. */
#include <math.h>

#include "check.h"

static void run_draw(struct check *ck, const struct shape *s, uint64_t seed, uint64_t offset,
                     enum dtype round)
{
    case_label(ck, "[%d, %d, %d, %d], seed %llu, offset %llu, rounded to type %d", s->n, s->h, s->w, s->c,
               (unsigned long long)seed, (unsigned long long)offset, round);
    struct array want = array_new(ck, s->n, s->h, s->w, s->c);
    ck->ref->ops.randn(ck->ref, array_tensor(want), seed, offset, round, &ck->err);
    struct array bound = array_new(ck, s->n, s->h, s->w, s->c);
    double step = round == DTYPE_F32   ? 0
                  : round == DTYPE_F16 ? 0x1p-10
                                       : 0x1p-7;   /* a rounding may fall the other way */
    for (size_t i = 0; i < array_count(want); i++) /* logarithm, sine and cosine may be off by some units */
        bound.v[i] = (float)(1e-6 + (8 * FP32_UNIT + step) * fabs((double)want.v[i]));
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        tensor y = place_output(ck, t, s->n, s->h, s->w, s->c, DTYPE_F32);
        verify(ck, t, t->be->ops.randn(t->be, y, seed, offset, round, &ck->err), y, want.v, bound.v);
    }
    case_end(ck);
}

static void cases(struct check *ck)
{
    static const struct shape list[] = {
        {1, 1, 1, 1, 0, 0}, {1, 64, 64, 4, 0, 0}, {2, 5, 7, 4, 0, 0}, {1, 1, 257, 1, 0, 0}};
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        run_draw(ck, &list[i], 0, 0, DTYPE_F32);
        run_draw(ck, &list[i], 42, 4, DTYPE_F16);
        run_draw(ck, &list[i], UINT64_MAX, (uint64_t)1 << 40, DTYPE_BF16);
    }
    run_draw(ck, &(struct shape){1, 300, 301, 4, 0, 0}, 7, 8, DTYPE_F32); /* more than one wave of threads */
}

static void round_case(struct check *ck)
{
    struct shape s = {
        rng_range(ck, 1, 4), rng_range(ck, 1, 40), rng_range(ck, 1, 40), rng_range(ck, 1, 8), 0, 0};
    run_draw(ck, &s, rng_next(ck), rng_next(ck) % 1000 * 4, (enum dtype)rng_range(ck, 0, 2));
}

const struct op_check check_randn = {OP_randn, cases, round_case, NULL, NULL};
