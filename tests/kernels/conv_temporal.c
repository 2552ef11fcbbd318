/* conv_temporal: videos of one frame and of many, and every epilogue. */
#include <math.h>
#include <stdio.h>

#include "check.h"

struct temporal_case {
    int videos, frames, h, w, c, o;
    struct conv2d_args a; /* tensors not set */
    bool bias, add_bc, residual;
    int first, gap; /* view: channels before and behind each row of the inputs */
};

struct temporal_data {
    struct array x, w, bias, add_bc, residual;
};

static struct temporal_data make_data(struct check *ck, const struct temporal_case *s)
{
    struct temporal_data d = {.x = {0}};
    int n = s->videos * s->frames;
    weights_begin(ck);
    d.x = array_random(ck, n, s->h, s->w, s->c, 1, 0);
    d.w = weight_random(ck, s->o, s->c, 3, 1, 1 / sqrtf((float)(s->c * 3)));
    if (s->bias)
        d.bias = weight_random(ck, s->o, 1, 1, 1, 1);
    if (s->add_bc)
        d.add_bc = array_random(ck, n, 1, 1, s->o, 1, 0);
    if (s->residual)
        d.residual = array_random(ck, n, s->h, s->w, s->o, 1, 0);
    return d;
}

static struct array oracle(struct check *ck, const struct temporal_case *s, const struct temporal_data *d)
{
    struct array y = array_new(ck, d->x.n, d->x.h, d->x.w, s->o);
    struct conv2d_args a = s->a;
    a.add_bc = array_tensor(d->add_bc);
    a.residual = array_tensor(d->residual);
    weight w = pack_weight(ck, ck->ref, WEIGHT_CONV2D, d->w, d->bias, 1);
    ck->ref->ops.conv_temporal(ck->ref, array_tensor(y), array_tensor(d->x), &w, s->frames, &a, &ck->err);
    weight_free(ck->ref, &w);
    return y;
}

/* As for conv2d: the root of the sum of squares of all that is added, times what a sum may lose. */
static struct array tolerance(struct check *ck, const struct temporal_case *s, const struct temporal_data *d)
{
    struct temporal_case plain = *s;
    plain.a.act = ACT_NONE;
    struct temporal_data squares = {array_square(ck, d->x), array_square(ck, d->w), array_square(ck, d->bias),
                                    array_square(ck, d->add_bc), array_square(ck, d->residual)};
    enum dtype source = ck->source;
    ck->source = DTYPE_F32; /* the squared weights are no 16-bit numbers */
    struct array bound = oracle(ck, &plain, &squares);
    ck->source = source;
    double n = 3.0 * s->c;
    double factor = 1.2 * sum_bound(n) + tensor_core_bound(ck, n) + (s->a.act ? 16 * FP32_UNIT : 0);
    for (size_t i = 0; i < array_count(bound); i++)
        bound.v[i] = (float)(factor * sqrt((double)bound.v[i]));
    return bound;
}

static void run_tier(struct check *ck, struct tier *t, const struct temporal_case *s,
                     const struct temporal_data *d, struct array want, struct array bound)
{
    weight w = pack_weight(ck, t->be, WEIGHT_CONV2D, d->w, d->bias, 1);
    if (!w.packed)
        return;
    struct conv2d_args a = s->a;
    a.add_bc = place(ck, d->add_bc, ck->type, s->first, s->gap);
    a.residual = place(ck, d->residual, ck->type, s->first, s->gap);
    tensor x = place(ck, d->x, ck->type, s->first, s->gap);
    tensor y = place_output(ck, t, want.n, want.h, want.w, want.c, a.f32_out ? DTYPE_F32 : ck->type);
    int rc = t->be->ops.conv_temporal(t->be, y, x, &w, s->frames, &a, &ck->err);
    verify(ck, t, rc, y, want.v, bound.v);
    weight_free(t->be, &w);
}

static void run_case(struct check *ck, struct temporal_case s)
{
    case_label(ck, "%d x %d frames of [%d, %d, %d] -> %d%s%s%s%s, act %d, view %d+%d", s.videos, s.frames,
               s.h, s.w, s.c, s.o, s.bias ? ", bias" : "", s.add_bc ? ", add_bc" : "",
               s.residual ? ", residual" : "", s.a.f32_out ? ", f32_out" : "", s.a.act, s.first, s.gap);
    struct temporal_data d = make_data(ck, &s);
    struct array want = oracle(ck, &s, &d), bound = tolerance(ck, &s, &d);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t))
        run_tier(ck, t, &s, &d, want, bound);
    case_end(ck);
}

static void cases(struct check *ck)
{
    static const struct temporal_case list[] = {
        {1, 1, 1, 1, 1, 1, {0}, true, false, false, 0, 0},
        {1, 1, 4, 5, 16, 16, {0}, true, true, false, 0, 0},
        {1, 2, 3, 3, 8, 24, {0}, false, false, true, 0, 0},
        {2, 5, 3, 4, 32, 32, {0}, true, true, true, 0, 0},
        {3, 4, 2, 7, 24, 40, {.act = ACT_SILU}, true, true, true, 0, 0},
        {2, 3, 5, 3, 17, 9, {0}, true, true, true, 3, 5},
        {1, 6, 4, 4, 64, 64, {0}, true, true, false, 0, 64},
        /* the decoder's last layer */
        {1, 5, 6, 7, 3, 3, {.f32_out = true}, true, false, false, 0, 0},
        /* SVD's widths, few pixels; frames as wide as 16 x 16 */
        {1, 14, 2, 2, 320, 320, {0}, true, true, false, 0, 0},
        {1, 3, 2, 3, 1280, 1280, {0}, true, false, true, 0, 0},
        {2, 3, 16, 16, 40, 33, {0}, true, true, true, 0, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        run_case(ck, list[i]);
}

static void round_case(struct check *ck)
{
    struct temporal_case s = {.videos = rng_range(ck, 1, 2), .frames = rng_range(ck, 1, 9)};
    s.h = rng_range(ck, 1, 9);
    s.w = rng_range(ck, 1, 9);
    s.c = rng_range(ck, 1, 5) * (rng_one_in(ck, 2) ? 16 : rng_range(ck, 1, 19));
    s.o = rng_range(ck, 1, 5) * (rng_one_in(ck, 2) ? 16 : rng_range(ck, 1, 19));
    s.a.act = (enum act)(rng_one_in(ck, 2) ? 0 : rng_range(ck, 0, 3));
    s.a.f32_out = rng_one_in(ck, 4);
    s.bias = !rng_one_in(ck, 4);
    s.add_bc = rng_one_in(ck, 2);
    s.residual = rng_one_in(ck, 2);
    s.first = rng_one_in(ck, 3) ? rng_range(ck, 0, 33) : 0;
    s.gap = rng_one_in(ck, 3) ? rng_range(ck, 0, 33) : 0;
    run_case(ck, s);
}

/* ints: videos frames h w c o act; arrays: x, w, bias, add_bc, residual, y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    const int32_t *v = g->ints;
    struct temporal_case s = {v[0], v[1], v[2], v[3], v[4], v[5], .a = {.act = (enum act)v[6]}};
    case_label(ck, "%d x %d frames of [%d, %d, %d] -> %d, act %d", s.videos, s.frames, s.h, s.w, s.c, s.o,
               s.a.act);
    struct temporal_data d = {g->array[0], g->array[1], g->array[2], g->array[3], g->array[4]};
    verify_golden(ck, 0, array_tensor(oracle(ck, &s, &d)), g->array[5], 4e-6, 4e-6);
}

struct bench_call {
    struct backend *be;
    tensor y, x;
    const weight *w;
    struct conv2d_args a;
    int frames;
    struct error *err;
};

static void call(void *ctx)
{
    struct bench_call *b = ctx;
    b->be->ops.conv_temporal(b->be, b->y, b->x, b->w, b->frames, &b->a, b->err);
}

static void bench_shape(struct check *ck, const struct tier *t, const struct temporal_case *s)
{
    struct temporal_data d = make_data(ck, s);
    weight w = pack_weight(ck, t->be, WEIGHT_CONV2D, d.w, d.bias, 1);
    struct bench_call b = {t->be, {0}, place(ck, d.x, ck->type, 0, 0), &w, s->a, s->frames, &ck->err};
    b.y = place_output(ck, t, d.x.n, d.x.h, d.x.w, s->o, ck->type);
    b.a.residual = place(ck, d.residual, ck->type, 0, 0);
    b.a.add_bc = place(ck, d.add_bc, ck->type, 0, 0);
    char shape[80];
    snprintf(shape, sizeof shape, "%d x %dx%dx%d -> %d, 3x1x1%s", s->frames, s->h, s->w, s->c, s->o,
             s->residual ? " + res" : "");
    double flops = 2.0 * (double)tensor_count(b.y) * s->c * 3, size = (double)dtype_size(ck->type);
    double bytes = size * ((double)tensor_count(b.x) + (double)tensor_count(b.y)) + (double)w.bytes;
    bench_report(ck, t, shape, bench_time(call, &b), flops, bytes);
    weight_free(t->be, &w);
}

/* The UNet of SVD-XT at 14 of its 25 frames of 576 x 1024, and a layer of its decoder at 4. */
static void bench(struct check *ck, const struct tier *t)
{
    static const struct temporal_case list[] = {
        {1, 14, 72, 128, 320, 320, {0}, true, true, false, 0, 0},
        {1, 14, 36, 64, 640, 640, {0}, true, false, true, 0, 0},
        {1, 14, 18, 32, 1280, 1280, {0}, true, true, false, 0, 0},
        {1, 4, 288, 512, 256, 256, {0}, true, false, true, 0, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        bench_shape(ck, t, &list[i]);
}

const struct op_check check_conv_temporal = {OP_conv_temporal, cases, round_case, golden, bench, NULL};
