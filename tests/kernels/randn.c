/* randn: the numbers that torch.randn draws on a CUDA generator. There is no CUDA where the tests run, so ref
 * is held to published values; tiers are held to ref. */
#include <math.h>

#include "check.h"
#include "noise.h"

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
    for (uint64_t odd = 5; odd < 8; odd++) /* from two blocks of the stream */
        run_draw(ck, &list[2], 3, odd, DTYPE_F32);
    run_draw(ck, &(struct shape){1, 300, 301, 4, 0, 0}, 7, 8, DTYPE_F32); /* more than one wave of threads */
}

static void round_case(struct check *ck)
{
    struct shape s = {
        rng_range(ck, 1, 4), rng_range(ck, 1, 40), rng_range(ck, 1, 40), rng_range(ck, 1, 8), 0, 0};
    run_draw(ck, &s, rng_next(ck), rng_next(ck) % 1000 * 4, (enum dtype)rng_range(ck, 0, 2));
}

/* A stretch of numbers that was published for torch.randn((N, C, H, W), device="cuda"), to the last digit
 * printed. */
struct published {
    const char *source;
    uint64_t seed;
    int h, w, c;  /* of the draw, N = 1 */
    int first;    /* index in NHWC of the first number below */
    double digit; /* half of the last digit printed, and what single-precision sines may add to it */
    int numbers;
    float v[12];
};

static const struct published list[] = {
    {"AUTOMATIC1111/stable-diffusion-webui modules/rng_philox.py, randn((3, 4))",
     0,
     3,
     4,
     1,
     0,
     1e-6,
     12,
     {-0.92466259f, -0.42534415f, -2.6438457f, 0.14518388f, -0.12086647f, -0.57972564f, -0.62285122f,
      -0.32838709f, -1.07454231f, -0.36314407f, -1.67105067f, 2.26550497f}},
    {"pytorch/pytorch#79496, randn(3)", 10, 1, 3, 1, 0, 5.2e-5, 3, {-0.1029f, 1.6810f, -0.2708f}},
    /* of a smaller card, whose last rows come from its second wave */
    {"pytorch/pytorch#158398, row 0", 42, 64, 2048, 1, 0, 5.2e-5, 3, {0.1940f, 2.1614f, -0.1721f}},
    {"pytorch/pytorch#158398, rows 0 and 1",
     42,
     64,
     2048,
     1,
     2045,
     5.2e-5,
     6,
     {1.4540f, -2.7733f, -0.8932f, -0.4574f, 0.8063f, 0.1580f}},
    {"pytorch/pytorch#158398, rows 1 and 2",
     42,
     64,
     2048,
     1,
     4093,
     5.2e-5,
     6,
     {0.1124f, 0.2769f, -1.2535f, 1.1346f, -0.6329f, -0.9147f}},
    /* randn((1, 3, 128, 128))[..., 0, 0]: a plane apart in torch, side by side here */
    {"pytorch/pytorch#62467", 43, 128, 128, 3, 0, 5.2e-5, 3, {1.9983f, 0.8704f, 2.1127f}},
    /* an H100: nine turns of its 132 * 2048 threads */
    {"pytorch/pytorch#143086, the start",
     1,
     49 * 12,
     112 * 144,
     1,
     0,
     5.2e-5,
     3,
     {-0.2963f, 2.6764f, -0.1408f}},
    {"pytorch/pytorch#143086, the end on an H100",
     1,
     49 * 12,
     112 * 144,
     1,
     49 * 12 * 112 * 144 - 3,
     5.2e-5,
     3,
     {-0.6970f, -0.7780f, 0.3267f}},
};

static void published_stretch(struct check *ck, const struct published *p, struct array draw)
{
    struct array want = array_new(ck, 1, 1, 1, p->numbers);
    for (int i = 0; i < p->numbers; i++)
        want.v[i] = p->v[i];
    tensor got = {.n = 1,
                  .h = 1,
                  .w = 1,
                  .c = p->numbers,
                  .ld = p->numbers,
                  .dtype = DTYPE_F32,
                  .data = draw.v + p->first};
    case_label(ck, "%s, seed %llu", p->source, (unsigned long long)p->seed);
    verify_golden(ck, 0, got, want, p->digit, 0);
}

/* Printed by torch.rand(1, 5, device="cuda") for seed 42, twice in a row
 * (being-aerys/Deep_Learning_Marathon_with_PyTorch; mrdbourke/pytorch-deep-learning#759 has 2 u - 1 of both
 * first ones). It shows how far a draw moves the offset. A uniform number is the first word of its thread,
 * which Box-Muller turns into a radius: exp(-(a^2 + b^2) / 2) gives it back, where a and b are the thread's
 * first two normals; in a draw of two waves they lie one wave apart. */
static void published_second_draw(struct check *ck)
{
    static const float uniform[2][5] = {{0.6130f, 0.0101f, 0.3984f, 0.0403f, 0.1563f},
                                        {0.9877f, 0.1289f, 0.5621f, 0.5221f, 0.7445f}};
    for (uint64_t draw = 0; draw < 2; draw++) {
        struct array normal = array_new(ck, 1, 1, 1, 2 * NOISE_WAVE_THREADS), got = array_new(ck, 1, 1, 1, 5);
        struct array want = array_new(ck, 1, 1, 1, 5);
        int rc = ck->ref->ops.randn(ck->ref, array_tensor(normal), 42,
                                    draw * noise_advance(5, NOISE_WAVE_THREADS), DTYPE_F32, &ck->err);
        for (int i = 0; i < 5; i++) {
            double a = (double)normal.v[i], b = (double)normal.v[NOISE_WAVE_THREADS + i];
            got.v[i] = (float)exp(-(a * a + b * b) / 2);
            want.v[i] = uniform[draw][i];
        }
        case_label(ck, "torch.rand(1, 5) with seed 42, draw %d", (int)draw);
        verify_golden(ck, rc, array_tensor(got), want, 5.2e-5, 0);
    }
}

/* A draw in NHWC is the flat draw, moved; rounding to 16 bits comes after drawing. */
static void order_and_rounding(struct check *ck)
{
    struct shape s = {2, 3, 5, 4, 0, 0};
    for (int round = DTYPE_F32; round <= DTYPE_BF16; round++) {
        struct array flat = array_new(ck, 1, 1, 120, 1), got = array_new(ck, s.n, s.h, s.w, s.c);
        struct array want = array_new(ck, s.n, s.h, s.w, s.c);
        ck->ref->ops.randn(ck->ref, array_tensor(flat), 5, 4, DTYPE_F32, &ck->err);
        int rc = ck->ref->ops.randn(ck->ref, array_tensor(got), 5, 4, (enum dtype)round, &ck->err);
        for (int i = 0; i < 120; i++) { /* i counts N H W C */
            int c = i % s.c, place = i / s.c, w = place % s.w, h = place / s.w % s.h, n = place / s.w / s.h;
            want.v[i] = half_round(flat.v[((n * s.c + c) * s.h + h) * s.w + w], (enum dtype)round);
        }
        case_label(ck, "[2, 3, 5, 4] rounded to type %d", round);
        verify_golden(ck, rc, array_tensor(got), want, 0, 0);
    }
}

static void published(struct check *ck)
{
    struct array draw = {0};
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        if (i == 0 || list[i].seed != list[i - 1].seed) {
            case_end(ck);
            draw = array_new(ck, 1, list[i].h, list[i].w, list[i].c);
            ck->ref->ops.randn(ck->ref, array_tensor(draw), list[i].seed, 0, DTYPE_F32, &ck->err);
        }
        published_stretch(ck, &list[i], draw);
    }
    published_second_draw(ck);
    order_and_rounding(ck);
    case_end(ck);
}

const struct op_check check_randn = {OP_randn, cases, round_case, NULL, NULL, published};
