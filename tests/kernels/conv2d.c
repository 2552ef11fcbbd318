/* conv2d: 1x1 and 3x3 and larger kernels, strides, paddings, upsampling, and every epilogue. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "check.h"
#include "winograd.h"

struct conv_case {
    int n, h, w, c, o, k;
    struct conv2d_args a; /* tensors not set */
    bool bias;
    int add_bc; /* 1: a row for each picture; 2: one row for all, tensor_for_all() */
    bool residual;
    int first, gap; /* view: channels before and behind each row of the inputs */
};

struct conv_data {
    struct array x, w, bias, add_bc, residual;
    int oh, ow;
    bool large; /* the weight is said to be for large pictures (weight_source.large) */
};

static int side(int in, const struct conv_case *s)
{
    int full = s->a.upsample ? 2 * in : in, pad = s->a.pad_end ? 1 : (s->k - 1) / 2 * 2;
    return (full + pad - s->k) / s->a.stride + 1;
}

static struct conv_data make_data(struct check *ck, const struct conv_case *s)
{
    struct conv_data d = {.oh = side(s->h, s), .ow = side(s->w, s)};
    weights_begin(ck);
    d.x = array_random(ck, s->n, s->h, s->w, s->c, 1, 0);
    d.w = weight_random(ck, s->o, s->c, s->k, s->k, 1 / sqrtf((float)(s->c * s->k * s->k)));
    if (s->bias)
        d.bias = weight_random(ck, s->o, 1, 1, 1, 1);
    if (s->add_bc)
        d.add_bc = array_random(ck, s->add_bc == 2 ? 1 : s->n, 1, 1, s->o, 1, 0);
    if (s->residual)
        d.residual = array_random(ck, s->n, d.oh, d.ow, s->o, 1, 0);
    return d;
}

static tensor rows_of(tensor add_bc, const struct conv_case *s)
{
    return s->add_bc == 2 ? tensor_for_all(add_bc, s->n) : add_bc;
}

static struct array oracle(struct check *ck, const struct conv_case *s, const struct conv_data *d)
{
    struct array y = array_new(ck, s->n, d->oh, d->ow, s->o);
    struct conv2d_args a = s->a;
    a.add_bc = rows_of(array_tensor(d->add_bc), s);
    a.residual = array_tensor(d->residual);
    weight w = pack_weight(ck, ck->ref, WEIGHT_CONV2D, d->w, d->bias, 1);
    ck->ref->ops.conv2d(ck->ref, array_tensor(y), array_tensor(d->x), &w, &a, &ck->err);
    weight_free(ck->ref, &w);
    return y;
}

static struct array oracle_int8(struct check *ck, const struct conv_case *s, const struct conv_data *d)
{
    struct backend *ref = ck->ref;
    ck->ref = ck->ref_int8;
    struct array y = oracle(ck, s, d);
    ck->ref = ref;
    return y;
}

/* A large 3x3 convolution may be computed by Winograd's F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308): then
 * the rounding of a number depends on all of its 6x6 inputs, and is up to a few times that of a direct sum.
 */
static bool winograd_allowed(const struct check *ck, const struct conv_case *s, const struct conv_data *d)
{
    return ck->type == DTYPE_F32 && s->k == 3 && s->a.stride == 1 && !s->a.pad_end && d->oh * d->ow >= 256;
}

/* Each number becomes twice the greatest of those at most REACH positions away. */
static void widen(struct check *ck, struct array bound, int reach)
{
    struct array old = array_new(ck, bound.n, bound.h, bound.w, bound.c);
    memcpy(old.v, bound.v, array_count(bound) * sizeof(float));
    for (size_t i = 0; i < array_count(bound); i++) {
        int c = (int)(i % (size_t)bound.c), x = (int)(i / (size_t)bound.c % (size_t)bound.w);
        size_t line = i / (size_t)bound.c / (size_t)bound.w;
        int y = (int)(line % (size_t)bound.h), n = (int)(line / (size_t)bound.h);
        float greatest = 0;
        for (int v = y - reach < 0 ? 0 : y - reach; v <= y + reach && v < bound.h; v++)
            for (int u = x - reach < 0 ? 0 : x - reach; u <= x + reach && u < bound.w; u++)
                greatest = fmaxf(greatest, old.v[((n * bound.h + v) * bound.w + u) * bound.c + c]);
        bound.v[i] = 2 * greatest;
    }
}

/* With many bf16 channels, by F(4, 3) along rows. */
static bool winograd_rows_allowed(const struct check *ck, const struct conv_case *s,
                                  const struct conv_data *d)
{
    return d->large && ck->type == DTYPE_BF16 && s->k == 3 && s->c >= 128 && s->c % 32 == 0;
}

/* Tier T takes F(2x4, 3x3) where there are tiles enough, or F(2x2, 3x3) of upsampled pictures: of those the
 * former is the latter twice. */
static bool takes_winograd_2x4(const struct check *ck, const struct tier *t, const struct conv_case *s,
                               const struct conv_data *d)
{
    if (t->int8 || ck->type != DTYPE_BF16 || s->k != 3 || s->a.stride > 1 || s->a.pad_end || s->c % 32)
        return false;
    if (strncmp(t->name, "amx", strlen("amx")) == 0)
        return s->a.upsample && s->c >= 128;
    return strncmp(t->name, "avx512bf16", strlen("avx512bf16")) == 0 && s->o >= 32 &&
           (d->oh + 1) / 2 * ((d->ow + 3) / 4) >= 8;
}

/* The bound of the tiers that may take it: BOUND and more. */
static struct array tolerance_2x4(struct check *ck, const struct conv_case *s, const struct conv_data *d,
                                  struct array bound)
{
    bool any = false;
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t))
        any = any || takes_winograd_2x4(ck, t, s, d);
    if (!any)
        return bound;
    struct array more = array_new(ck, bound.n, bound.h, bound.w, bound.c);
    memcpy(more.v, bound.v, array_count(bound) * sizeof(float));
    add_winograd_2x4_error(ck, d->x, d->w, s->a.upsample, s->a.act != ACT_NONE, more);
    return more;
}

/* The root of the sum of squares of everything that is added (ref itself computes it), times what fp32 may
 * lose; an activation may stretch it by 1.13, and its exp or erf may be off by some units. Inputs in 16 bits
 * are exact here: they were rounded before. */
static struct array tolerance(struct check *ck, const struct conv_case *s, const struct conv_data *d,
                              bool int8)
{
    struct conv_case plain = *s;
    plain.a.act = ACT_NONE;
    struct conv_data squares = {.oh = d->oh, .ow = d->ow};
    squares.x = array_square(ck, d->x);
    squares.w = array_square(ck, d->w);
    squares.bias = array_square(ck, d->bias);
    squares.add_bc = array_square(ck, d->add_bc);
    squares.residual = array_square(ck, d->residual);
    enum dtype source = ck->source;
    ck->source = DTYPE_F32; /* the squared weights are no 16-bit numbers */
    struct array bound = oracle(ck, &plain, &squares);
    ck->source = source;
    double n = (double)s->c * s->k * s->k;
    double factor = 1.2 * sum_bound(n) + tensor_core_bound(ck, n) + (s->a.act ? 16 * FP32_UNIT : 0);
    /* Sums of up to four weights may be made first and rounded to bf16: each is then off by 0.41 * 2^-8 of
     * itself in the mean square, and by none of the others' errors. Six such deviations. */
    if (s->a.upsample && s->k == 3 && ck->type == DTYPE_BF16)
        factor += 6 * 0.41 * 0x1p-8;
    if (int8)
        factor = INT8_BOUND(s->a.act);
    for (size_t i = 0; i < array_count(bound); i++)
        bound.v[i] = (float)(factor * sqrt((double)bound.v[i]));
    if (!int8 && winograd_allowed(ck, s, d))
        widen(ck, bound, 5);
    if (winograd_rows_allowed(ck, s, d))
        add_winograd_rows_error(ck, d->x, d->w, s->a.act != ACT_NONE, bound);
    return bound;
}

static void run_tier(struct check *ck, struct tier *t, const struct conv_case *s, const struct conv_data *d,
                     struct array want, struct array bound)
{
    ck->upsample = s->a.upsample && !t->int8; /* int8 computes them as they are */
    ck->large = d->large;
    weight w = pack_weight(ck, t->be, WEIGHT_CONV2D, d->w, d->bias, 1);
    ck->upsample = ck->large = false;
    if (!w.packed)
        return;
    struct conv2d_args a = s->a;
    a.add_bc = rows_of(place(ck, d->add_bc, ck->type, s->first, s->gap), s);
    a.residual = place(ck, d->residual, ck->type, s->first, s->gap);
    tensor x = place(ck, d->x, ck->type, s->first, s->gap);
    tensor y = place_output(ck, t, s->n, d->oh, d->ow, s->o, a.f32_out ? DTYPE_F32 : ck->type);
    int rc = t->be->ops.conv2d(t->be, y, x, &w, &a, &ck->err);
    verify(ck, t, rc, y, want.v, bound.v);
    weight_free(t->be, &w);
}

/* LARGE: its weight is said to be for large pictures. */
static void run_case(struct check *ck, struct conv_case s, bool large)
{
    if (s.a.stride == 0)
        s.a.stride = 1;
    case_label(ck, "[%d, %d, %d, %d] -> %d, %dx%d%s, stride %d%s%s%s%s%s%s, act %d, view %d+%d", s.n, s.h,
               s.w, s.c, s.o, s.k, s.k, large ? ", large" : "", s.a.stride, s.a.upsample ? ", upsample" : "",
               s.a.pad_end ? ", pad_end" : "", s.bias ? ", bias" : "",
               s.add_bc == 2 ? ", one add_bc"
               : s.add_bc    ? ", add_bc"
                             : "",
               s.residual ? ", residual" : "", s.a.f32_out ? ", f32_out" : "", s.a.act, s.first, s.gap);
    struct conv_data d = make_data(ck, &s);
    d.large = large;
    struct array want = oracle(ck, &s, &d), bound = tolerance(ck, &s, &d, false), want8 = {0}, bound8 = {0};
    if (any_int8(ck)) {
        want8 = oracle_int8(ck, &s, &d);
        bound8 = tolerance(ck, &s, &d, true);
    }
    struct array bound_2x4 = tolerance_2x4(ck, &s, &d, bound);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t))
        run_tier(ck, t, &s, &d, t->int8 ? want8 : want,
                 t->int8                             ? bound8
                 : takes_winograd_2x4(ck, t, &s, &d) ? bound_2x4
                                                     : bound);
    case_end(ck);
}

/* Whether a tier of these may turn to Winograd's methods for bf16: CPU tiers. */
static bool large_matters(struct check *ck)
{
    for (struct tier *t = next_tier(ck, NULL); t && ck->type == DTYPE_BF16; t = next_tier(ck, t))
        if (t->be->pool && !t->is_ref)
            return true;
    return false;
}

/* Of large pictures, where the AMX tier turns to F(4, 3). */
static void large_cases(struct check *ck)
{
    static const struct conv_case list[] = {
        /* odd sides, several pictures, outputs that are no whole panels, every epilogue, views */
        {1, 16, 64, 128, 64, 3, {0}, true, false, true, 0, 0},
        {1, 15, 65, 128, 64, 3, {0}, true, true, false, 0, 0},
        {1, 21, 48, 128, 64, 3, {0}, true, true, false, 0, 0},
        {1, 22, 48, 128, 40, 3, {0}, true, true, true, 0, 0},
        {1, 22, 47, 128, 40, 3, {0}, true, true, true, 0, 0},
        {3, 17, 61, 128, 64, 3, {0}, true, true, true, 0, 0},
        {4, 17, 62, 128, 32, 3, {.act = ACT_SILU}, true, 2, true, 0, 0},
        {2, 17, 64, 256, 65, 3, {.f32_out = true}, false, false, true, 0, 0},
        {1, 7, 149, 128, 96, 3, {0}, true, false, false, 32, 64},
        {2, 23, 49, 256, 33, 3, {0}, true, true, true, 3, 5},
        {1, 65, 64, 128, 128, 3, {0}, true, true, true, 0, 64},
        {1, 24, 56, 128, 64, 3, {0}, true, false, true, 0, 0},
        {1, 10, 103, 128, 64, 3, {0}, true, false, true, 0, 0},
        {1, 16, 64, 160, 64, 3, {0}, true, false, true, 0, 0},
        {1, 17, 63, 128, 3, 3, {.f32_out = true}, true, false, false, 0, 0},
        /* U too large to stay in the cache: several blocks of rows, panels in chunks of two and alone */
        {1, 29, 64, 256, 160, 3, {0}, true, true, true, 0, 0},
        {2, 23, 52, 512, 96, 3, {0}, true, 2, true, 0, 0},
        /* narrow ones, whose rows lie in bands; bands of one row and of none */
        {1, 32, 32, 128, 64, 3, {0}, true, true, true, 0, 0},
        {2, 72, 18, 128, 64, 3, {0}, true, true, true, 0, 64},
        {1, 13, 72, 256, 40, 3, {0}, true, false, true, 0, 0},
        {2, 35, 8, 128, 33, 3, {.act = ACT_SILU}, true, true, true, 3, 5},
        {1, 9, 5, 160, 64, 3, {0}, true, false, true, 0, 0},
        {1, 1, 1, 128, 32, 3, {0}, true, false, false, 0, 0},
        {1, 3, 4, 128, 32, 3, {0}, true, false, true, 0, 0},
        {1, 97, 2, 128, 32, 3, {.f32_out = true}, true, false, false, 0, 0},
        /* slices of channels, the last one shorter */
        {1, 19, 64, 416, 160, 3, {0}, true, true, true, 0, 0},
        {2, 33, 32, 960, 64, 3, {0}, true, true, true, 0, 0},
        {1, 11, 61, 800, 40, 3, {.f32_out = true}, true, true, true, 3, 5},
        {1, 64, 64, 320, 64, 3, {0}, true, true, true, 0, 0},
        {1, 16, 16, 1280, 96, 3, {0}, true, false, true, 0, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        run_case(ck, list[i], true);
}

/* Of upsampled pictures with many channels, where the AMX tier turns to F(2x2, 3x3): rows of 32 and 16 and
 * others, an odd number of them, several blocks and pictures, views, every end; the last has too many. */
static void upsampled_cases(struct check *ck)
{
    static const struct conv_case list[] = {
        {1, 1, 1, 128, 32, 3, {.upsample = true}, true, false, false, 0, 0},
        {1, 19, 32, 128, 64, 3, {.upsample = true}, true, false, false, 0, 0},
        {2, 17, 16, 160, 40, 3, {.upsample = true}, true, true, true, 3, 5},
        {1, 1, 16, 128, 33, 3, {.upsample = true, .act = ACT_SILU}, true, true, false, 0, 0},
        {1, 4, 64, 192, 64, 3, {.upsample = true}, true, true, false, 32, 64},
        {1, 5, 131, 128, 64, 3, {.upsample = true}, true, false, true, 0, 0},
        {5, 7, 9, 128, 32, 3, {.upsample = true}, true, true, false, 0, 0},
        {3, 8, 8, 1280, 64, 3, {.upsample = true}, true, 2, false, 0, 64},
        {1, 16, 16, 1280, 32, 3, {.upsample = true}, true, false, false, 0, 0},
        {1, 3, 70, 672, 20, 3, {.upsample = true, .f32_out = true}, true, 2, true, 0, 0},
        {1, 23, 12, 2560, 32, 3, {.upsample = true}, true, false, false, 0, 0},
        {1, 2, 3, 2592, 32, 3, {.upsample = true}, true, false, false, 0, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        run_case(ck, list[i], false);
}

static void cases(struct check *ck)
{
    static const struct conv_case list[] = {
        /* the smallest, and sides of one */
        {1, 1, 1, 1, 1, 1, {0}, true, false, false, 0, 0},
        {1, 1, 1, 1, 1, 3, {0}, true, false, false, 0, 0},
        {1, 1, 7, 5, 3, 3, {0}, true, false, false, 0, 0},
        {2, 7, 1, 16, 16, 3, {0}, true, false, false, 0, 0},
        {1, 2, 2, 17, 33, 3, {0}, false, false, false, 0, 0},
        /* first and last layers: 4 latents or 3 colours */
        {2, 9, 11, 4, 40, 3, {0}, true, false, false, 0, 0},
        {1, 9, 11, 64, 3, 3, {.f32_out = true}, true, false, false, 0, 0},
        {1, 5, 6, 64, 4, 3, {.f32_out = true}, true, false, false, 0, 0},
        {1, 6, 5, 4, 4, 1, {0}, true, false, false, 0, 0},
        /* few outputs, whose taps CPU tiers make columns of: every way to read x and to end y, edges of
           blocks */
        {1, 1, 1, 32, 1, 3, {0}, true, false, false, 0, 0},
        {2, 13, 11, 40, 2, 3, {.act = ACT_SILU}, true, true, true, 3, 5},
        {1, 37, 70, 64, 3, 3, {0}, true, true, true, 0, 0},
        {3, 12, 33, 33, 4, 3, {.f32_out = true}, false, 2, true, 7, 3},
        {2, 9, 14, 48, 3, 3, {.stride = 2}, true, false, true, 0, 0},
        {1, 10, 8, 36, 4, 3, {.stride = 2, .pad_end = true}, true, true, false, 0, 0},
        {1, 9, 7, 50, 3, 3, {.upsample = true}, true, true, true, 0, 9},
        {1, 2, 1030, 32, 3, 3, {0}, true, false, false, 0, 0},
        {1, 3, 519, 34, 2, 3, {.stride = 2}, true, false, false, 0, 0},
        {1, 2, 300, 32, 4, 3, {.upsample = true}, true, false, false, 0, 0},
        {1, 3, 4, 2560, 4, 3, {0}, true, false, false, 0, 0},
        /* resnet: time embedding, residual, activations, and all together */
        {3, 6, 5, 48, 32, 3, {0}, true, true, false, 0, 0},
        {2, 5, 9, 32, 48, 3, {0}, true, false, true, 0, 0},
        {3, 6, 5, 48, 32, 3, {0}, true, 2, true, 0, 0},
        {3, 9, 8, 32, 64, 1, {0}, true, 2, true, 0, 8},
        {2, 5, 6, 24, 40, 3, {.act = ACT_SILU}, true, true, true, 0, 0},
        {1, 4, 4, 32, 32, 1, {.act = ACT_GELU}, true, true, true, 0, 0},
        /* twins: what was chosen for the first of each must not be taken for the second */
        {2, 5, 6, 32, 24, 1, {0}, true, false, false, 0, 0},
        {2, 5, 6, 32, 24, 1, {0}, true, true, false, 0, 0},
        {1, 8, 8, 16, 24, 3, {.stride = 2}, true, false, false, 0, 0},
        {1, 8, 8, 16, 24, 3, {.stride = 2, .pad_end = true}, true, false, false, 0, 0},
        {1, 4, 7, 31, 31, 1, {.act = ACT_QUICK_GELU}, false, true, true, 0, 0},
        {2, 3, 5, 33, 65, 3, {.act = ACT_SILU, .f32_out = true}, true, true, true, 0, 0},
        /* views */
        {2, 5, 5, 20, 36, 3, {0}, true, true, true, 3, 5},
        {2, 5, 5, 32, 32, 1, {0}, true, true, true, 32, 64},
        {1, 8, 8, 64, 64, 3, {.stride = 2}, true, false, false, 0, 64},
        /* downsampling, both paddings, odd and even */
        {1, 8, 6, 32, 32, 3, {.stride = 2}, true, false, false, 0, 0},
        {2, 7, 9, 20, 24, 3, {.stride = 2}, true, true, true, 0, 0},
        {1, 8, 8, 16, 48, 3, {.stride = 2, .pad_end = true}, true, false, false, 0, 0},
        {1, 9, 7, 16, 20, 3, {.stride = 2, .pad_end = true}, true, false, false, 1, 2},
        {1, 6, 6, 32, 16, 1, {.stride = 2}, true, false, false, 0, 0},
        /* upsampling */
        {1, 4, 5, 32, 32, 3, {.upsample = true}, true, false, false, 0, 0},
        {2, 3, 1, 18, 20, 3, {.upsample = true}, true, true, true, 2, 0},
        {1, 1, 1, 16, 16, 3, {.upsample = true}, true, false, false, 0, 0},
        /* larger kernels */
        {1, 6, 7, 5, 9, 5, {0}, true, false, true, 0, 0},
        {1, 3, 3, 8, 16, 7, {.act = ACT_SILU}, true, false, false, 0, 0},
        /* wide rows: more columns than any tile */
        {1, 3, 67, 16, 32, 3, {0}, true, false, false, 0, 0},
        {1, 2, 131, 32, 8, 1, {0}, true, false, true, 0, 0},
        /* more pixels than one block of work holds, and more input channels */
        {1, 45, 70, 32, 48, 3, {0}, true, false, true, 0, 0},
        {2, 33, 61, 16, 20, 3, {.upsample = true}, true, true, false, 0, 0},
        {1, 50, 131, 24, 16, 3, {.stride = 2, .pad_end = true}, true, false, false, 0, 0},
        {1, 70, 64, 40, 33, 1, {0}, true, false, true, 0, 0},
        {1, 33, 31, 32, 32, 3, {.act = ACT_SILU}, true, true, true, 0, 0},
        {2, 29, 36, 37, 45, 3, {0}, true, true, true, 3, 5},
        {1, 70, 65, 33, 40, 3, {.f32_out = true}, false, false, true, 0, 0},
        {1, 32, 32, 340, 33, 3, {0}, true, false, false, 0, 0},
        {1, 17, 18, 36, 34, 3, {.upsample = true}, true, false, true, 0, 0},
        {1, 3, 5, 2560, 33, 3, {0}, true, false, false, 0, 0},
        /* rows of half a tile, an odd number of them; whole tiles; four pictures */
        {1, 5, 16, 32, 64, 3, {0}, true, true, true, 0, 0},
        {4, 3, 16, 64, 40, 3, {0}, true, true, true, 0, 0},
        {3, 4, 32, 40, 64, 3, {0}, true, true, true, 0, 0},
        {2, 3, 48, 32, 32, 3, {0}, true, false, true, 0, 0},
        {1, 3, 16, 32, 64, 3, {.upsample = true}, true, true, true, 0, 0},
        {4, 2, 32, 64, 32, 3, {.upsample = true}, true, false, false, 0, 0},
        {2, 5, 33, 32, 64, 3, {.upsample = true}, true, 2, false, 0, 0},
        /* two small pictures share a block, or a few; the last block has fewer */
        {3, 16, 16, 64, 64, 3, {0}, true, true, true, 0, 0},
        {5, 9, 16, 32, 40, 3, {.act = ACT_SILU}, true, true, true, 3, 5},
        {3, 32, 32, 32, 40, 3, {.stride = 2}, true, false, true, 0, 0},
        {5, 11, 16, 32, 64, 3, {.upsample = true}, true, true, true, 0, 0},
        {2, 8, 8, 1280, 64, 3, {0}, true, true, true, 0, 0},
        /* the channel counts of SD 1.5 and SD-Turbo, few pixels */
        {1, 9, 8, 320, 320, 3, {0}, true, true, false, 0, 0},
        {1, 4, 4, 960, 640, 3, {0}, true, false, false, 0, 0},
        {2, 2, 2, 1280, 1280, 3, {0}, true, true, false, 0, 0},
        {1, 3, 3, 2560, 1280, 1, {0}, true, false, true, 0, 0},
        {1, 9, 9, 512, 256, 3, {0}, true, false, false, 0, 0},
        {1, 12, 17, 128, 128, 3, {0}, true, false, true, 0, 0},
        {1, 5, 6, 256, 256, 3, {.upsample = true}, true, false, false, 0, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        run_case(ck, list[i], false);
    if (!large_matters(ck))
        return;
    large_cases(ck);
    upsampled_cases(ck);
}

static void round_case(struct check *ck)
{
    static const int kernels[] = {1, 3, 3, 3, 5};
    int most = rng_one_in(ck, 6) ? 45 : 15;
    struct conv_case s = {.n = rng_range(ck, 1, 3), .h = rng_range(ck, 1, most), .w = rng_range(ck, 1, most)};
    s.c = rng_range(ck, 1, 5) * (rng_one_in(ck, 2) ? 16 : rng_range(ck, 1, 19));
    s.o = rng_range(ck, 1, 5) * (rng_one_in(ck, 2) ? 16 : rng_range(ck, 1, 19));
    if (rng_one_in(ck, 5))
        s.o = rng_range(ck, 1, 4);
    s.k = kernels[rng_range(ck, 0, 4)];
    s.a.stride = rng_one_in(ck, 4) ? 2 : 1;
    s.a.upsample = s.a.stride == 1 && rng_one_in(ck, 4);
    s.a.pad_end = s.k == 3 && s.a.stride == 2 && s.h > 1 && s.w > 1 && rng_one_in(ck, 2);
    s.a.act = (enum act)(rng_one_in(ck, 2) ? 0 : rng_range(ck, 0, 3));
    s.a.f32_out = rng_one_in(ck, 4);
    s.bias = !rng_one_in(ck, 4);
    s.add_bc = rng_range(ck, 0, 2);
    s.residual = rng_one_in(ck, 2);
    s.first = rng_one_in(ck, 3) ? rng_range(ck, 0, 33) : 0;
    s.gap = rng_one_in(ck, 3) ? rng_range(ck, 0, 33) : 0;
    const bool large = s.k == 3 && s.a.stride == 1 && !s.a.upsample && rng_one_in(ck, 2);
    if ((large || s.a.upsample) && rng_one_in(ck, 2) && large_matters(ck))
        s.c = rng_range(ck, 4, 30) * 32;
    run_case(ck, s, large);
}

/* ints: n h w c o k stride upsample pad_end act; arrays: x, w, bias, add_bc, residual, y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    const int32_t *v = g->ints;
    struct conv_case s = {.n = v[0], .h = v[1], .w = v[2], .c = v[3], .o = v[4], .k = v[5]};
    s.a = (struct conv2d_args){.stride = v[6], .upsample = v[7], .pad_end = v[8], .act = (enum act)v[9]};
    case_label(ck, "[%d, %d, %d, %d] -> %d, %dx%d, stride %d, act %d", s.n, s.h, s.w, s.c, s.o, s.k, s.k,
               s.a.stride, s.a.act);
    struct conv_data d = {g->array[0], g->array[1],   g->array[2],   g->array[3],
                          g->array[4], side(s.h, &s), side(s.w, &s), false};
    verify_golden(ck, 0, array_tensor(oracle(ck, &s, &d)), g->array[5], 4e-6, 4e-6);
}

struct bench_call {
    struct backend *be;
    tensor y, x;
    const weight *w;
    struct conv2d_args a;
    struct error *err;
};

static void call(void *ctx)
{
    struct bench_call *b = ctx;
    b->be->ops.conv2d(b->be, b->y, b->x, b->w, &b->a, b->err);
}

static void bench_shape(struct check *ck, const struct tier *t, const struct conv_case *s)
{
    struct conv_data d = make_data(ck, s);
    ck->upsample = s->a.upsample && !t->int8;
    ck->large = s->k == 3 && s->w >= 64 && s->a.stride == 1 && !s->a.upsample;
    weight w = pack_weight(ck, t->be, WEIGHT_CONV2D, d.w, d.bias, 1);
    ck->upsample = ck->large = false;
    struct bench_call b = {t->be, {0}, place(ck, d.x, ck->type, 0, 0), &w, s->a, &ck->err};
    b.y = place_output(ck, t, s->n, d.oh, d.ow, s->o, ck->type);
    b.a.residual = place(ck, d.residual, ck->type, 0, 0);
    b.a.add_bc = rows_of(place(ck, d.add_bc, ck->type, 0, 0), s);
    char shape[80];
    snprintf(shape, sizeof shape, "%dx%dx%d -> %d, %dx%d%s%s%s", s->h, s->w, s->c, s->o, s->k, s->k,
             s->a.stride > 1 ? " / 2" : "", s->a.upsample ? " up" : "", s->residual ? " + res" : "");
    double flops = 2.0 * (double)tensor_count(b.y) * s->c * s->k * s->k, size = (double)dtype_size(ck->type);
    double bytes = size * ((double)tensor_count(b.x) + (double)tensor_count(b.y)) + (double)w.bytes;
    bench_report(ck, t, shape, bench_time(call, &b), flops, bytes);
    weight_free(t->be, &w);
}

static void bench(struct check *ck, const struct tier *t)
{
    static const struct conv_case list[] = {
        /* UNet of SD-Turbo at 64x64 latents */
        {1, 64, 64, 4, 320, 3, {.stride = 1}, true, false, false, 0, 0},
        {1, 64, 64, 320, 320, 3, {.stride = 1}, true, true, false, 0, 0},
        {1, 32, 32, 640, 640, 3, {.stride = 1}, true, true, false, 0, 0},
        {1, 16, 16, 1280, 1280, 3, {.stride = 1}, true, true, false, 0, 0},
        {1, 8, 8, 1280, 1280, 3, {.stride = 1}, true, false, true, 0, 0},
        {1, 64, 64, 960, 320, 3, {.stride = 1}, true, true, false, 0, 0},
        {1, 64, 64, 320, 320, 1, {.stride = 1}, true, false, true, 0, 0},
        {1, 64, 64, 320, 320, 3, {.stride = 2}, true, false, false, 0, 0},
        {1, 32, 32, 640, 640, 3, {.stride = 1, .upsample = true}, true, false, false, 0, 0},
        /* VAE decoder at 512x512 */
        {1, 64, 64, 512, 512, 3, {.stride = 1}, true, false, true, 0, 0},
        {1, 128, 128, 512, 512, 3, {.stride = 1}, true, false, false, 0, 0},
        {1, 256, 256, 256, 256, 3, {.stride = 1}, true, false, true, 0, 0},
        {1, 256, 256, 256, 256, 3, {.stride = 1, .upsample = true}, true, false, false, 0, 0},
        {1, 512, 512, 128, 128, 3, {.stride = 1}, true, false, true, 0, 0},
        {1, 512, 512, 128, 3, 3, {.stride = 1}, true, false, false, 0, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        bench_shape(ck, t, &list[i]);
}

const struct op_check check_conv2d = {OP_conv2d, cases, round_case, golden, bench, NULL};
