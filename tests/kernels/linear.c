/* linear: plain, stacked parts (QKV, KV), GEGLU, and every epilogue. */
#include <math.h>
#include <stdio.h>

#include "check.h"

struct linear_case {
    int n, h, w, c, o; /* o: rows of the weight; the output of GEGLU is half as wide */
    int parts;
    bool geglu;
    struct linear_args a; /* residual not set */
    bool bias, residual;
    int first, gap;
};

struct linear_data {
    struct array x, w, bias, residual;
};

static int width(const struct linear_case *s)
{
    return s->geglu ? s->o / 2 : s->o;
}

static enum weight_kind kind(const struct linear_case *s)
{
    return s->geglu ? WEIGHT_GEGLU : WEIGHT_LINEAR;
}

static struct linear_data make_data(struct check *ck, const struct linear_case *s)
{
    weights_begin(ck);
    struct linear_data d = {.x = array_random(ck, s->n, s->h, s->w, s->c, 1, 0)};
    d.w = weight_random(ck, s->o, s->c, 1, 1, 1 / sqrtf((float)s->c));
    if (s->bias)
        d.bias = weight_random(ck, s->o, 1, 1, 1, 1);
    if (s->residual)
        d.residual = array_random(ck, s->n, s->h, s->w, width(s), 1, 0);
    return d;
}

static struct array oracle(struct check *ck, const struct linear_case *s, const struct linear_data *d)
{
    struct array y = array_new(ck, s->n, s->h, s->w, width(s));
    struct linear_args a = s->a;
    a.residual = array_tensor(d->residual);
    weight w = pack_weight(ck, ck->ref, kind(s), d->w, d->bias, s->parts);
    ck->ref->ops.linear(ck->ref, array_tensor(y), array_tensor(d->x), &w, &a, &ck->err);
    weight_free(ck->ref, &w);
    return y;
}

static struct array oracle_int8(struct check *ck, const struct linear_case *s, const struct linear_data *d)
{
    struct backend *ref = ck->ref;
    ck->ref = ck->ref_int8;
    struct array y = oracle(ck, s, d);
    ck->ref = ref;
    return y;
}

/* As for conv2d: the root of the sum of squares times what fp32 may lose. The gate multiplies: each factor's
 * loss counts with the other's size, which is seldom above four roots. */
static struct array tolerance(struct check *ck, const struct linear_case *s, const struct linear_data *d,
                              bool int8)
{
    struct linear_case plain = {s->n, s->h, s->w, s->c, s->o, 1, false, {0}, s->bias, false, 0, 0};
    struct linear_data squares = {
        array_square(ck, d->x), array_square(ck, d->w), array_square(ck, d->bias), {0}};
    enum dtype source = ck->source;
    ck->source = DTYPE_F32; /* the squared weights are no 16-bit numbers */
    struct array sum = oracle(ck, &plain, &squares);
    ck->source = source;
    struct array bound = array_new(ck, s->n, s->h, s->w, width(s));
    double factor = 1.2 * sum_bound(s->c) + tensor_core_bound(ck, s->c);
    factor += s->a.act || s->geglu ? 16 * FP32_UNIT : 0;
    if (int8)
        factor = INT8_BOUND(s->a.act || s->geglu);
    for (size_t i = 0; i < array_count(bound); i++) {
        size_t row = i / (size_t)width(s), c = i % (size_t)width(s);
        const float *p = sum.v + row * (size_t)s->o + c;
        double r = d->residual.v ? fabs((double)d->residual.v[i]) : 0, size = sqrt((double)p[0]);
        if (s->geglu)
            size *= 8 * sqrt((double)p[s->o / 2]);
        bound.v[i] = (float)(factor * (size + r));
    }
    return bound;
}

static void run_tier(struct check *ck, struct tier *t, const struct linear_case *s,
                     const struct linear_data *d, struct array want, struct array bound)
{
    weight w = pack_weight(ck, t->be, kind(s), d->w, d->bias, s->parts);
    if (!w.packed)
        return;
    struct linear_args a = s->a;
    a.residual = place(ck, d->residual, ck->type, s->first, s->gap);
    tensor x = place(ck, d->x, ck->type, s->first, s->gap);
    tensor y = place_output(ck, t, s->n, s->h, s->w, width(s), a.f32_out ? DTYPE_F32 : ck->type);
    int rc = t->be->ops.linear(t->be, y, x, &w, &a, &ck->err);
    verify(ck, t, rc, y, want.v, bound.v);
    weight_free(t->be, &w);
}

static void run_case(struct check *ck, struct linear_case s)
{
    if (s.parts == 0)
        s.parts = 1;
    case_label(ck, "[%d, %d, %d, %d] -> %d in %d%s%s%s%s, act %d, view %d+%d", s.n, s.h, s.w, s.c, s.o,
               s.parts, s.geglu ? ", geglu" : "", s.bias ? ", bias" : "", s.residual ? ", residual" : "",
               s.a.f32_out ? ", f32_out" : "", s.a.act, s.first, s.gap);
    struct linear_data d = make_data(ck, &s);
    struct array want = oracle(ck, &s, &d), bound = tolerance(ck, &s, &d, false), want8 = {0}, bound8 = {0};
    if (any_int8(ck)) {
        want8 = oracle_int8(ck, &s, &d);
        bound8 = tolerance(ck, &s, &d, true);
    }
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t))
        run_tier(ck, t, &s, &d, t->int8 ? want8 : want, t->int8 ? bound8 : bound);
    case_end(ck);
}

static void cases(struct check *ck)
{
    static const struct linear_case list[] = {
        {1, 1, 1, 1, 1, 1, false, {0}, true, false, 0, 0},
        {1, 1, 1, 320, 1280, 1, false, {.act = ACT_SILU}, true, false, 0, 0}, /* time embedding */
        {2, 1, 1, 1280, 320, 1, false, {0}, true, false, 0, 0},
        {1, 1, 1, 17, 3, 1, false, {.f32_out = true}, true, false, 0, 0},
        {1, 1, 77, 64, 192, 3, false, {0}, true, false, 0, 0}, /* QKV of the text encoder */
        {2, 1, 77, 48, 96, 2, false, {0}, false, false, 0, 0}, /* KV of cross-attention */
        {1, 1, 5, 33, 51, 3, false, {0}, true, true, 0, 0},
        {1, 1, 77, 40, 160, 1, false, {.act = ACT_QUICK_GELU}, true, false, 0, 0},
        {1, 1, 77, 40, 160, 1, false, {.act = ACT_GELU}, true, false, 0, 0},
        {2, 1, 13, 160, 40, 1, false, {0}, true, true, 0, 0},
        {2, 3, 5, 31, 33, 1, false, {.act = ACT_SILU, .f32_out = true}, true, true, 0, 0},
        {1, 1, 6, 16, 16, 1, false, {.act = ACT_SILU}, false, true, 0, 0},
        {1, 1, 9, 20, 7, 1, false, {0}, true, true, 3, 6},
        {3, 1, 7, 64, 64, 1, false, {0}, true, true, 64, 64},
        {1, 1, 6, 24, 48, 1, true, {0}, true, false, 0, 0},
        {2, 1, 7, 40, 320, 1, true, {0}, true, false, 0, 0},
        {1, 1, 3, 8, 34, 1, true, {0}, false, false, 0, 0},
        {1, 1, 10, 33, 62, 1, true, {.f32_out = true}, true, true, 5, 2},
        {1, 1, 64, 320, 2560, 1, true, {0}, true, false, 0, 0},
        {1, 1, 64, 320, 960, 3, false, {0}, false, false, 0, 0},
        {1, 1, 16, 1280, 1280, 1, false, {0}, true, true, 0, 0},
        {1, 1, 131, 64, 64, 1, false, {0}, true, true, 0, 0},
        {1, 1, 1500, 40, 80, 1, false, {0}, true, true, 0, 0},
        {2, 1, 513, 33, 70, 1, true, {0}, true, false, 0, 0},
        /* panels of a GEGLU that end in whole lines: two blocks, past the caches; with a residual; where y is
         * a view that lies aside of lines */
        {1, 1, 530, 1024, 2048, 1, true, {0}, true, false, 0, 0},
        {1, 1, 70, 64, 192, 1, true, {0}, true, true, 0, 0},
        {1, 1, 45, 32, 128, 1, true, {0}, true, true, 32, 16},
        {1, 1, 70, 2600, 40, 1, false, {.act = ACT_GELU}, true, true, 0, 0},
        {1, 1, 20, 64, 3000, 1, false, {0}, true, false, 0, 0},
        {1, 1, 9, 5120, 320, 1, false, {0}, true, true, 0, 0},
        {1, 1, 77, 1024, 640, 2, false, {0}, false, false, 0, 0},
        {1, 1, 97, 64, 96, 1, false, {.act = ACT_GELU}, true, true, 0, 0},
        {4, 1, 275, 32, 480, 1, false, {0}, true, true, 0, 0}, /* more than a megabyte of outputs */
        /* few channels and much of y: pairs of lines past the caches, of two and four panels; on two threads
         * items that begin in the middle of a pair */
        {1, 1, 1700, 64, 320, 1, false, {0}, true, true, 0, 0},
        {1, 1, 920, 96, 576, 1, false, {.act = ACT_GELU}, true, false, 0, 32},
        {1, 1, 2050, 64, 640, 1, true, {0}, true, false, 0, 0},
        {1, 1, 500, 64, 2176, 1, true, {0}, true, false, 0, 0},
        /* so many panels that tiles of x are kept: with an odd rest of rows, as a view, in chunks whose sums
         * go through memory, in slices, and both GEGLU and GELU along the way */
        {1, 1, 85, 64, 530, 1, false, {.act = ACT_GELU}, true, true, 0, 0},
        {1, 1, 45, 96, 600, 1, false, {0}, true, false, 32, 64},
        {1, 1, 74, 1280, 530, 1, false, {0}, true, true, 0, 0},
        {2, 1, 67, 768, 1056, 1, true, {0}, true, false, 0, 0},
        {1, 1, 90, 2880, 540, 1, false, {0}, true, true, 0, 0},
        {1, 1, 20, 4096, 640, 1, false, {0}, true, false, 0, 0},
        /* likewise two blocks in slices of unequal length, with GEGLU in pairs of panels and as a view */
        {1, 1, 300, 1312, 288, 1, false, {0}, true, true, 0, 0},
        {1, 1, 270, 1696, 288, 1, true, {0}, true, false, 32, 0},
        {1, 1, 275, 992, 320, 1, false, {0}, true, true, 0, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        run_case(ck, list[i]);
}

static void round_case(struct check *ck)
{
    struct linear_case s = {
        .n = rng_range(ck, 1, 3), .h = 1, .w = rng_range(ck, 1, 140), .parts = rng_range(ck, 1, 3)};
    s.c = rng_range(ck, 1, 6) * (rng_one_in(ck, 2) ? 16 : rng_range(ck, 1, 23));
    s.o = s.parts * rng_range(ck, 1, 6) * (rng_one_in(ck, 2) ? 16 : rng_range(ck, 1, 23));
    s.geglu = s.parts == 1 && s.o % 2 == 0;
    s.a.act = (enum act)(s.geglu || rng_one_in(ck, 2) ? 0 : rng_range(ck, 0, 3));
    s.a.f32_out = rng_one_in(ck, 4);
    s.bias = !rng_one_in(ck, 4);
    s.residual = rng_one_in(ck, 2);
    s.first = rng_one_in(ck, 3) ? rng_range(ck, 0, 33) : 0;
    s.gap = rng_one_in(ck, 3) ? rng_range(ck, 0, 33) : 0;
    run_case(ck, s);
}

/* ints: n h w c o geglu act; arrays: x, w, bias, residual, y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    const int32_t *v = g->ints;
    struct linear_case s = {.n = v[0], .h = v[1], .w = v[2], .c = v[3], .o = v[4], .parts = 1, .geglu = v[5]};
    s.a.act = (enum act)v[6];
    case_label(ck, "[%d, %d, %d, %d] -> %d%s, act %d", s.n, s.h, s.w, s.c, s.o, s.geglu ? ", geglu" : "",
               s.a.act);
    struct linear_data d = {g->array[0], g->array[1], g->array[2], g->array[3]};
    verify_golden(ck, 0, array_tensor(oracle(ck, &s, &d)), g->array[4], 4e-6, 4e-6);
}

struct bench_call {
    struct backend *be;
    tensor y, x;
    const weight *w;
    struct linear_args a;
    struct error *err;
};

static void call(void *ctx)
{
    struct bench_call *b = ctx;
    b->be->ops.linear(b->be, b->y, b->x, b->w, &b->a, b->err);
}

static void bench_shape(struct check *ck, const struct tier *t, const struct linear_case *s)
{
    struct linear_data d = make_data(ck, s);
    weight w = pack_weight(ck, t->be, kind(s), d.w, d.bias, s->parts);
    struct bench_call b = {t->be, {0}, place(ck, d.x, ck->type, 0, 0), &w, s->a, &ck->err};
    b.y = place_output(ck, t, s->n, s->h, s->w, width(s), ck->type);
    b.a.residual = place(ck, d.residual, ck->type, 0, 0);
    char shape[80];
    snprintf(shape, sizeof shape, "%dx%d -> %d%s%s", s->n * s->h * s->w, s->c, s->o, s->geglu ? " geglu" : "",
             s->residual ? " + res" : "");
    double flops = 2.0 * (double)tensor_rows(b.y) * s->c * s->o, size = (double)dtype_size(ck->type);
    double bytes = size * ((double)tensor_count(b.x) + (double)tensor_count(b.y)) + (double)w.bytes;
    bench_report(ck, t, shape, bench_time(call, &b), flops, bytes);
    weight_free(t->be, &w);
}

static void bench(struct check *ck, const struct tier *t)
{
    static const struct linear_case list[] = {
        {1, 1, 512, 512, 512, 1, false, {0}, true, false, 0, 0}, /* stays in a level 2 cache */
        {1, 1, 4096, 320, 960, 3, false, {0}, false, false, 0, 0},
        {1, 1, 4096, 320, 2560, 1, true, {0}, true, false, 0, 0},
        {1, 1, 4096, 1280, 320, 1, false, {0}, true, true, 0, 0},
        {1, 1, 1024, 640, 5120, 1, true, {0}, true, false, 0, 0},
        {1, 1, 1024, 2560, 640, 1, false, {0}, true, true, 0, 0},
        {1, 1, 256, 1280, 10240, 1, true, {0}, true, false, 0, 0},
        {1, 1, 256, 5120, 1280, 1, false, {0}, true, true, 0, 0},
        {1, 1, 64, 1280, 1280, 1, false, {0}, true, true, 0, 0},
        {1, 1, 77, 1024, 4096, 1, false, {.act = ACT_GELU}, true, false, 0, 0}, /* text encoder */
        {1, 1, 1, 1280, 1280, 1, false, {.act = ACT_SILU}, true, false, 0, 0},  /* time embedding */
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        bench_shape(ck, t, &list[i]);
}

const struct op_check check_linear = {OP_linear, cases, round_case, golden, bench, NULL};
