/* Row functions of a tier: everything that is not a matrix product, written in the vocabulary of vec_*.h and
 * compiled once for each vector width. Each handles any length; tails are masked.
 *
 * Accuracy (fp32, against double): exponential 2e-7 relative, sigmoid and SiLU 3e-7 (1e-4 where a tier has
 * SILU_FOR_BF16 and bf16 is stored), GELU 2e-7 of max(|x|, 1). */
#include <string.h>

#include "tier.h"
#include "vec_gelu.h"

/* ---- Loads and stores by type. TYPE is a constant wherever these are inlined. ---- */

VEC vf load_n(enum dtype type, const char *p, int i, int n)
{
    if (type == DTYPE_F32)
        return n >= VL ? v_load(p + (size_t)i * 4) : v_load_n(p + (size_t)i * 4, n);
    if (type == DTYPE_BF16)
        return n >= VL ? v_load_bf16(p + (size_t)i * 2) : v_load_bf16_n(p + (size_t)i * 2, n);
    return n >= VL ? v_load_f16(p + (size_t)i * 2) : v_load_f16_n(p + (size_t)i * 2, n);
}

VEC void store_n(enum dtype type, char *p, int i, int n, vf x)
{
    if (type == DTYPE_F32)
        n >= VL ? v_store(p + (size_t)i * 4, x) : v_store_n(p + (size_t)i * 4, x, n);
    else if (type == DTYPE_BF16)
        n >= VL ? v_store_bf16(p + (size_t)i * 2, x) : v_store_bf16_n(p + (size_t)i * 2, x, n);
    else
        n >= VL ? v_store_f16(p + (size_t)i * 2, x) : v_store_f16_n(p + (size_t)i * 2, x, n);
}

/* STORE_TWO_BF16(p, lo, hi) is the same as two stores, where a tier has it. */
VEC void store_two(enum dtype type, char *p, int i, vf lo, vf hi)
{
#ifdef STORE_TWO_BF16
    if (type == DTYPE_BF16) {
        STORE_TWO_BF16(p + (size_t)i * 2, lo, hi);
        return;
    }
#endif
    store_n(type, p, i, VL, lo);
    store_n(type, p, i + VL, VL, hi);
}

/* Calls F(constant type, …) for a type known at run time. */
#define BY_TYPE(type, F, ...)                                                                                \
    do {                                                                                                     \
        if ((type) == DTYPE_F32)                                                                             \
            F(DTYPE_F32, __VA_ARGS__);                                                                       \
        else if ((type) == DTYPE_BF16)                                                                       \
            F(DTYPE_BF16, __VA_ARGS__);                                                                      \
        else                                                                                                 \
            F(DTYPE_F16, __VA_ARGS__);                                                                       \
    } while (0)

/* ---- Functions of one vector ---- */

/* exp(x): x = n ln 2 + r, |r| <= ln 2 / 2, polynomial of degree 6 in r (Cephes expf), times 2^n. */
VEC vf v_exp(vf x)
{
    vf lowest = v_set1(-104.0f), c = v_min(v_set1(88.722f), v_max(lowest, x));
    vf n = v_round(v_mul(c, v_set1(1.44269504f)));
    vf r = v_fnma(n, v_set1(0.693359375f), c);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vf p = v_set1(1.9875691500e-4f);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_fma(p, v_mul(r, r), v_add(r, v_set1(1.0f)));
    return v_scale_pow2(p, n, x, lowest);
}

/* exp(k x) where |k x| <= 87, beyond that as there: 2^n p(r), |r| <= 1/2, degree 5 (7.5e-8). r is exact but
 * for the rounding of k log2 e: 1.3e-8 |k x|. */
VEC vf v_exp_near(vf x, float k)
{
    vf e = v_clamp(x, v_set1(87.0f / (k < 0 ? -k : k))), l = v_set1(k * 1.44269504f);
    vf n = v_round(v_mul(e, l)), r = v_fnma(e, l, n); /* minus r */
    vf p = v_set1(-1.32764741e-3f);
    p = v_fma(p, r, v_set1(9.67554214e-3f));
    p = v_fma(p, r, v_set1(-5.55071327e-2f));
    p = v_fma(p, r, v_set1(2.40221197e-1f));
    p = v_fma(p, r, v_set1(-6.93146967e-1f));
    p = v_fma(p, r, v_set1(1.00000007f));
    return v_times_pow2(p, n);
}

/* x / (1 + exp(-k x)): SiLU for k = 1, CLIP's quick_gelu for k = 1.702. */
VEC vf v_sigmoid_times(vf x, float k)
{
    return v_mul(x, v_inverse(v_add(v_set1(1.0f), v_exp_near(x, -k))));
}

/* SiLU of what is then rounded to bf16. */
#ifndef SILU_FOR_BF16
#define SILU_FOR_BF16(x) v_sigmoid_times(x, 1.0f)
#endif
/* exp(x) for x <= 0 likewise. */
#ifndef EXP_FOR_BF16
#define EXP_FOR_BF16(x) v_exp(x)
#endif

VEC vf v_act(enum act act, vf x)
{
    if (act == ACT_SILU)
        return v_sigmoid_times(x, 1.0f);
    if (act == ACT_GELU)
        return v_gelu(x);
    if (act == ACT_QUICK_GELU)
        return v_sigmoid_times(x, 1.702f);
    return x;
}

/* ---- The end of a matrix product ---- */

VEC vf finish_add(const void *x, enum dtype type, int j, int n)
{
    return type == DTYPE_F32 ? load_n(DTYPE_F32, x, j, n) : load_n(DTYPE_BF16, x, j, n);
}

VEC vf finish_value(enum act act, bool geglu, const struct finish *f, const float *c, int j, int n)
{
    vf v = v_add(v_load(c + j), v_load(f->bias + j)); /* c and bias have whole vectors */
    if (f->add)
        v = v_add(v, finish_add(f->add, f->add_type, j, n));
    if (!geglu)
        return v_act(act, v);
    int g = f->nr / 2 + j;
    return v_mul(v, v_gelu(v_add(v_load(c + g), v_load(f->bias + g))));
}

VEC void finish_rows(enum dtype y_type, enum act act, bool geglu, const struct finish *f)
{
    const float *c = f->c;
    char *y = f->y;
    const char *res = f->residual;
    bool stream = V_STREAMS && y_type == DTYPE_F32 && f->stream && f->cols % VL == 0 &&
                  ((uintptr_t)y | f->y_stride) % 64 == 0;
    for (int r = 0; r < f->rows; r++, c += f->nr, y += f->y_stride) {
        for (int j = 0; j < f->cols; j += VL) {
            int n = f->cols - j;
            vf v = finish_value(act, geglu, f, c, j, n);
            if (res)
                v = v_add(v, finish_add(res, f->residual_type, j, n));
            if (stream)
                v_stream((float *)(void *)y + j, v);
            else
                store_n(y_type, y, j, n, v);
        }
        res = res ? res + f->residual_stride : NULL;
    }
}

/* The rows' sums as numbers of fp32, taken apart from what they are added to: other kernels do the same along
 * the way (gemm_amx.c), and the bits must not say who did it. */
VEC void finish_sums(const struct finish *f)
{
    for (int j = 0; j < f->cols; j += VL) {
        vf sum = v_zero(), square = v_zero();
        for (int r = 0; r < f->rows; r++) {
            vf v = finish_value(ACT_NONE, false, f, f->c + (size_t)r * (size_t)f->nr, j, VL);
            if (f->residual)
                v = v_add(v,
                          finish_add(f->residual + (size_t)r * f->residual_stride, f->residual_type, j, VL));
            sum = v_add(sum, v);
            square = v_fma(v, v, square);
        }
        float *at = f->sums + j;
        v_store(at, v_add(v_load(at), sum));
        v_store(at + f->nr, v_add(v_load(at + f->nr), square));
    }
}

VEC void finish_typed(enum dtype y_type, const struct finish *f)
{
    if (f->geglu)
        finish_rows(y_type, ACT_NONE, true, f);
    else if (f->act == ACT_SILU)
        finish_rows(y_type, ACT_SILU, false, f);
    else if (f->act == ACT_GELU)
        finish_rows(y_type, ACT_GELU, false, f);
    else if (f->act == ACT_QUICK_GELU)
        finish_rows(y_type, ACT_QUICK_GELU, false, f);
    else
        finish_rows(y_type, ACT_NONE, false, f);
}

static void row_finish(const struct finish *f)
{
    if (f->sums)
        finish_sums(f);
    if (f->y_type == DTYPE_F32)
        finish_typed(DTYPE_F32, f);
    else
        finish_typed(DTYPE_BF16, f);
}

static void row_fence(void)
{
    _mm_sfence();
}

/* ---- Copies ---- */

VEC void convert_as(enum dtype src_type, enum dtype dst_type, char *dst, const char *src, size_t n)
{
    size_t ds = dtype_size(dst_type), ss = dtype_size(src_type);
    for (; n >= (size_t)VL; n -= (size_t)VL, dst += (size_t)VL * ds, src += (size_t)VL * ss)
        store_n(dst_type, dst, 0, VL, load_n(src_type, src, 0, VL));
    if (n)
        store_n(dst_type, dst, 0, (int)n, load_n(src_type, src, 0, (int)n));
}

static void row_convert(void *dst, enum dtype dst_type, const void *src, enum dtype src_type, size_t n)
{
    if (dst_type == src_type)
        memcpy(dst, src, n * dtype_size(dst_type));
    else if (dst_type == DTYPE_F32)
        BY_TYPE(src_type, convert_as, DTYPE_F32, dst, src, n);
    else if (dst_type == DTYPE_BF16)
        BY_TYPE(src_type, convert_as, DTYPE_BF16, dst, src, n);
    else
        BY_TYPE(src_type, convert_as, DTYPE_F16, dst, src, n);
}

static void row_gather(const struct gather *g)
{
    size_t ds = dtype_size(g->dst_type), used = (size_t)g->channels * ds, width = (size_t)g->width * ds;
    bool same = g->dst_type == g->src_type;
    char *dst = g->dst;
    for (int i = 0; i < g->count; i++, dst += width) {
        const char *src = g->src + (size_t)((g->first + i * g->step) >> g->shift) * g->src_stride;
        if (same) {
            size_t at = 0; /* chunks are a few lines of cache: no call for them */
            for (; at + 32 <= used; at += 32)
                memcpy(dst + at, src + at, 32);
            for (; at < used; at += 2)
                memcpy(dst + at, src + at, 2);
        } else {
            row_convert(dst, g->dst_type, src, g->src_type, (size_t)g->channels);
        }
        if (width > used)
            memset(dst + used, 0, width - used);
    }
}

static void row_transpose(uint32_t *dst, int nr, const char *src, size_t stride, int rows, int words)
{
    if (rows < nr)
        memset(dst, 0, (size_t)nr * (size_t)words * 4);
    /* Eight rows at a time, so that each line of dst is written while it is near. */
    for (int j = 0; j < rows; j += 8) {
        int n = rows - j < 8 ? rows - j : 8;
        const char *s = src + (size_t)j * stride;
        for (int i = 0; i < words; i++)
            for (int q = 0; q < n; q++)
                memcpy(&dst[(size_t)i * (size_t)nr + (size_t)(j + q)], s + (size_t)q * stride + (size_t)i * 4,
                       4);
    }
}

static void row_interleave(uint16_t *dst, const uint16_t *a, const uint16_t *b, int n)
{
    for (int i = 0; i < n; i++) {
        dst[2 * i] = a[i];
        dst[2 * i + 1] = b[i];
    }
}

/* ---- Norms ---- */

/* In double: a difference of large sums must not cost the variance its digits. Loads bound it, not the
 * conversions. */
VEC void channel_sums_as(enum dtype type, const char *x, size_t stride, int rows, int c, double *sum,
                         double *square)
{
    for (int j = 0; j < c; j += VL) {
        int n = c - j < VL ? c - j : VL;
        vd s = vd_load_n(sum + j, n), q = vd_load_n(square + j, n);
        const char *row = x;
        for (int r = 0; r < rows; r++, row += stride)
            vd_moments(&s, &q, load_n(type, row, j, n));
        vd_store_n(sum + j, s, n);
        vd_store_n(square + j, q, n);
    }
}

enum { EXACT_ROWS = 8 };

/* Squares of bf16 are exact in fp32 with eight bits to spare: a few rows are summed in fp32 and then in
 * double. Rows side by side, so that each cache line is read in one go. */
VEC void channel_sums_bf16(const char *x, size_t stride, int rows, int c, double *sum, double *square)
{
    for (int r = 0, n; r < rows; r += n, x += (size_t)n * stride) {
        n = rows - r < EXACT_ROWS ? rows - r : EXACT_ROWS;
        for (int j = 0; j < c; j += VL) {
            const int m = c - j < VL ? c - j : VL;
            vf s = v_zero(), q = v_zero();
            for (int i = 0; i < n; i++) {
                vf v = load_n(DTYPE_BF16, x + (size_t)i * stride, j, m);
                s = v_add(s, v), q = v_fma(v, v, q);
            }
            vd_store_n(sum + j, vd_add(vd_load_n(sum + j, m), s), m);
            vd_store_n(square + j, vd_add(vd_load_n(square + j, m), q), m);
        }
    }
}

static void row_channel_sums(const char *x, enum dtype type, size_t stride, int rows, int c, double *sum,
                             double *square)
{
    if (type == DTYPE_BF16)
        channel_sums_bf16(x, stride, rows, c, sum, square);
    else if (type == DTYPE_F32)
        channel_sums_as(DTYPE_F32, x, stride, rows, c, sum, square);
    else
        channel_sums_as(DTYPE_F16, x, stride, rows, c, sum, square);
}

VEC void affine_as(enum dtype x_type, enum dtype y_type, bool act, char *y, const char *x, int c,
                   const float *scale, const float *shift, bool stream)
{
    stream = V_STREAMS && stream && y_type == DTYPE_F32 && c % VL == 0 && (uintptr_t)y % 64 == 0;
    for (int j = 0; j < c; j += VL) {
        int n = c - j;
        vf v = load_n(x_type, x, j, n);
        if (scale)
            v = v_fma(v, load_n(DTYPE_F32, (const char *)scale, j, n),
                      load_n(DTYPE_F32, (const char *)shift, j, n));
        if (act)
            v = y_type == DTYPE_BF16 ? SILU_FOR_BF16(v) : v_sigmoid_times(v, 1.0f);
        if (stream)
            v_stream((float *)(void *)y + j, v);
        else
            store_n(y_type, y, j, n, v);
    }
}

static void row_affine(void *y, enum dtype y_type, const void *x, enum dtype x_type, int c,
                       const float *scale, const float *shift, bool act, bool stream)
{
    if (y_type == DTYPE_F32 && act)
        BY_TYPE(x_type, affine_as, DTYPE_F32, true, y, x, c, scale, shift, stream);
    else if (y_type == DTYPE_F32)
        BY_TYPE(x_type, affine_as, DTYPE_F32, false, y, x, c, scale, shift, stream);
    else if (act)
        BY_TYPE(x_type, affine_as, DTYPE_BF16, true, y, x, c, scale, shift, false);
    else
        BY_TYPE(x_type, affine_as, DTYPE_BF16, false, y, x, c, scale, shift, false);
}

/* Sums of a row run side by side: one alone would wait for each of its additions. */
enum { CHAINS = 4, LAYER_GROUP = 4 };

VEC vf join_chains(const vf v[CHAINS])
{
    return v_add(v_add(v[0], v[1]), v_add(v[2], v[3]));
}

/* The mean of a row, and that of the squares of the differences from it. Differences are taken from the mean
 * NEAR of the first vector, so that x is read once; of C numbers it is at most sqrt(C / VL) standard
 * deviations from the mean of all, so that little cancels. */
VEC void layer_moments(enum dtype type, const char *x, int c, float *mean, float *variance)
{
    const int head = c < VL ? c : VL;
    const float near = v_sum(load_n(type, x, 0, c)) / (float)head;
    const vf from = v_set1(near);
    vf sum[CHAINS] = {v_zero(), v_zero(), v_zero(), v_zero()};
    vf square[CHAINS] = {v_zero(), v_zero(), v_zero(), v_zero()};
    int j = 0;
    for (; c - j >= CHAINS * VL; j += CHAINS * VL) {
        for (int i = 0; i < CHAINS; i++) {
            vf d = v_sub(load_n(type, x, j + i * VL, VL), from);
            sum[i] = v_add(sum[i], d);
            square[i] = v_fma(d, d, square[i]);
        }
    }
    for (; j < c; j += VL) {
        vf d = v_sub(load_n(type, x, j, c - j), from);
        if (c - j < VL)
            d = v_fill_tail(d, c - j, v_zero());
        sum[0] = v_add(sum[0], d);
        square[0] = v_fma(d, d, square[0]);
    }
    const float off = v_sum(join_chains(sum)) / (float)c;
    *mean = near + off;
    *variance = v_sum(join_chains(square)) / (float)c - off * off;
}

/* Numbers J to J + N of a row, N <= VL, of which a whole vector is read where N is VL. In 16 bits a row whose
 * mean is many times its deviation holds no more than rounding, so that mean times scale may be rounded. */
VEC vf layer_value(enum dtype type, const char *x, int j, int n, vf mean, vf scale)
{
    vf v = load_n(type, x, j, n);
    return type == DTYPE_F32 ? v_mul(v_sub(v, mean), scale) : v_fma(v, scale, mean);
}

/* COUNT rows from X to Y, whose means (times scale, negative, where x has 16 bits) and scales are MEAN and
 * SCALE. */
VEC void layer_write(enum dtype x_type, enum dtype y_type, const struct layer_rows *r, const char *x, char *y,
                     const vf *mean, const vf *scale, const int count)
{
    const size_t x_step = r->x_step, y_step = r->y_step, y_part = r->y_part, ahead = r->ahead;
    const int c = r->c, part = r->part ? r->part : c;
    const char *gamma = (const char *)r->gamma, *beta = (const char *)r->beta;
    for (int j0 = 0; j0 < c; j0 += part, y += y_part) {
        int j = 0;
        for (; j + 2 * VL <= part; j += 2 * VL) {
            const int at = j0 + j;
            const vf g0 = load_n(DTYPE_F32, gamma, at, VL), g1 = load_n(DTYPE_F32, gamma, at + VL, VL),
                     b0 = load_n(DTYPE_F32, beta, at, VL), b1 = load_n(DTYPE_F32, beta, at + VL, VL);
            for (int k = 0; k < count; k++) {
                const char *from = x + (size_t)k * x_step;
                vf lo = layer_value(x_type, from, at, VL, mean[k], scale[k]),
                   hi = layer_value(x_type, from, at + VL, VL, mean[k], scale[k]);
                if (x_type == DTYPE_BF16 && ahead)
                    __builtin_prefetch(from + (size_t)at * 2 + ahead, 0, 2);
                store_two(y_type, y + (size_t)k * y_step, j, v_fma(lo, g0, b0), v_fma(hi, g1, b1));
            }
        }
        for (; j < part; j += VL) {
            const int n = part - j;
            const vf g = load_n(DTYPE_F32, gamma, j0 + j, n), b = load_n(DTYPE_F32, beta, j0 + j, n);
            for (int k = 0; k < count; k++) {
                vf v = layer_value(x_type, x + (size_t)k * x_step, j0 + j, n, mean[k], scale[k]);
                store_n(y_type, y + (size_t)k * y_step, j, n, v_fma(v, g, b));
            }
        }
    }
}

/* A few rows at a time, so that the sums, quotient and root of one are found while others are read. */
VEC void layer_norm_as(enum dtype x_type, enum dtype y_type, const struct layer_rows *r, int first, int count)
{
    const char *x = (const char *)r->x + (size_t)first * r->x_step;
    char *y = (char *)r->y + (size_t)first * r->y_step;
    vf means[LAYER_GROUP], scales[LAYER_GROUP];
    for (int k = 0; k < count; k++) {
        float mean, variance;
        layer_moments(x_type, x + (size_t)k * r->x_step, r->c, &mean, &variance);
        float scale = 1.0f / __builtin_sqrtf(variance + r->eps);
        means[k] = v_set1(x_type == DTYPE_F32 ? mean : -mean * scale);
        scales[k] = v_set1(scale);
    }
    if (count == LAYER_GROUP)
        layer_write(x_type, y_type, r, x, y, means, scales, LAYER_GROUP);
    else
        layer_write(x_type, y_type, r, x, y, means, scales, count);
}

static void row_layer_norm(const struct layer_rows *r)
{
    for (int i = 0; i < r->rows; i += LAYER_GROUP) {
        int n = r->rows - i < LAYER_GROUP ? r->rows - i : LAYER_GROUP;
        if (r->y_type == DTYPE_F32)
            BY_TYPE(r->x_type, layer_norm_as, DTYPE_F32, r, i, n);
        else
            BY_TYPE(r->x_type, layer_norm_as, DTYPE_BF16, r, i, n);
    }
}

VEC void add_as(enum dtype b_type, enum dtype a_type, enum dtype y_type, char *y, const char *a,
                const char *b, size_t n)
{
    size_t sa = dtype_size(a_type), sb = dtype_size(b_type), sy = dtype_size(y_type);
    for (size_t j = 0; j < n; j += (size_t)VL) {
        int m = n - j < (size_t)VL ? (int)(n - j) : VL;
        vf v = v_add(load_n(a_type, a + j * sa, 0, m), load_n(b_type, b + j * sb, 0, m));
        store_n(y_type, y + j * sy, 0, m, v);
    }
}

static void row_add(void *y, enum dtype y_type, const void *a, enum dtype a_type, const void *b,
                    enum dtype b_type, size_t n)
{
    if (y_type == DTYPE_F32 && a_type == DTYPE_F32)
        BY_TYPE(b_type, add_as, DTYPE_F32, DTYPE_F32, y, a, b, n);
    else if (y_type == DTYPE_F32)
        BY_TYPE(b_type, add_as, DTYPE_BF16, DTYPE_F32, y, a, b, n);
    else if (a_type == DTYPE_F32)
        BY_TYPE(b_type, add_as, DTYPE_F32, DTYPE_BF16, y, a, b, n);
    else
        BY_TYPE(b_type, add_as, DTYPE_BF16, DTYPE_BF16, y, a, b, n);
}

VEC void blend_as(enum dtype type, char *y, const char *a, const char *b, size_t n, float share)
{
    size_t size = dtype_size(type);
    vf left = v_set1(share), right = v_set1(1 - share);
    for (size_t j = 0; j < n; j += (size_t)VL) {
        int m = n - j < (size_t)VL ? (int)(n - j) : VL;
        vf v = v_mul(load_n(type, b + j * size, 0, m), right);
        store_n(type, y + j * size, 0, m, v_fma(load_n(type, a + j * size, 0, m), left, v));
    }
}

static void row_blend(void *y, const void *a, const void *b, enum dtype type, size_t n, float share)
{
    BY_TYPE(type, blend_as, y, a, b, n, share);
}

/* ---- Online softmax (Milakov and Gimelshein; used as in FlashAttention) ---- */

/* Done in phases over all rows of the block, since within a row each phase waits for the one before. A panel
 * is two vectors wide on every tier. */
struct softmax_rows {
    int seen[SOFTMAX_ROWS];         /* keys that the row may look at */
    float top[SOFTMAX_ROWS];        /* new maximum */
    float shrink[SOFTMAX_ROWS + 8]; /* exp(old maximum - new); whole vectors */
};

/* Highest of the first `keys` scores of a row; panels are `panel` floats apart. */
VEC float row_highest(const float *s, size_t panel, int keys)
{
    const vf low = v_set1(-__builtin_inff());
    vf a = low, b = low;
    for (; keys >= 2 * VL; keys -= 2 * VL, s += panel) {
        a = v_max(a, v_load(s));
        b = v_max(b, v_load(s + VL));
    }
    for (; keys > 0; keys -= VL, s += VL)
        a = v_max(a, keys >= VL ? v_load(s) : v_fill_tail(v_load_n(s, keys), keys, low));
    return v_highest(v_max(a, b));
}

static void softmax_maxima(const struct softmax_block *b, struct softmax_rows *m)
{
    const size_t panel = (size_t)b->panel_rows * 2 * (size_t)VL;
    for (int r = 0; r < b->rows; r++) {
        int seen = b->causal_first + r + 1 < b->keys ? b->causal_first + r + 1 : b->keys;
        m->seen[r] = seen > 0 ? seen : 0;
        float top = seen > 0 ? b->scale * row_highest(b->s + (size_t)(r * 2 * VL), panel, seen) : b->max[r];
        m->top[r] = top > b->max[r] ? top : b->max[r];
        /* Minus infinity the first time: the old sum and output count for nothing. */
        m->shrink[r] = m->top[r] > b->max[r] ? b->max[r] - m->top[r] : 0;
        b->max[r] = m->top[r];
    }
    for (int r = 0; r < b->rows; r += VL)
        v_store(m->shrink + r, v_exp(v_load(m->shrink + r)));
}

VEC vf weight_exp(enum dtype p_type, vf x)
{
    return p_type == DTYPE_BF16 ? EXP_FOR_BF16(x) : v_exp(x);
}

VEC vf softmax_exp(enum dtype p_type, const float *s, vf scale, vf minus, int seen)
{
    if (seen <= 0)
        return v_zero();
    vf e = weight_exp(p_type, v_fma(v_load(s), scale, minus));
    return seen < VL ? v_fill_tail(e, seen, v_zero()) : e;
}

/* p of one row; returns its sum. */
VEC float softmax_row(enum dtype p_type, const struct softmax_block *b, const struct softmax_rows *m, int r)
{
    const size_t panel = (size_t)b->panel_rows * 2 * (size_t)VL, ps = dtype_size(p_type);
    const float *s = b->s + (size_t)(r * 2 * VL);
    char *p = (char *)b->p + (size_t)(r * 2 * VL) * ps;
    vf scale = v_set1(b->scale), minus = v_set1(-m->top[r]), sum0 = v_zero(), sum1 = v_zero();
    int k = 0;
    for (; k + 2 * VL <= m->seen[r]; k += 2 * VL, s += panel, p += panel * ps) {
        vf e0 = weight_exp(p_type, v_fma(v_load(s), scale, minus)),
           e1 = weight_exp(p_type, v_fma(v_load(s + VL), scale, minus));
        sum0 = v_add(sum0, e0), sum1 = v_add(sum1, e1);
        store_n(p_type, p, 0, VL, e0);
        store_n(p_type, p, VL, VL, e1);
    }
    for (; k < b->keys; k += 2 * VL, s += panel, p += panel * ps) {
        vf e0 = softmax_exp(p_type, s, scale, minus, m->seen[r] - k),
           e1 = softmax_exp(p_type, s + VL, scale, minus, m->seen[r] - k - VL);
        sum0 = v_add(sum0, e0), sum1 = v_add(sum1, e1);
        store_n(p_type, p, 0, VL, e0);
        store_n(p_type, p, VL, VL, e1);
    }
    return v_sum(v_add(sum0, sum1));
}

static void softmax_rescale(const struct softmax_block *b, const struct softmax_rows *m)
{
    for (int i = 0; i < b->o_panels; i++) {
        float *o = b->o + (size_t)i * (size_t)b->o_panel_rows * 2 * (size_t)VL;
        for (int r = 0; r < b->rows; r++, o += 2 * VL) {
            if (m->shrink[r] == 1.0f)
                continue;
            vf shrink = v_set1(m->shrink[r]);
            v_store(o, v_mul(v_load(o), shrink));
            v_store(o + VL, v_mul(v_load(o + VL), shrink));
        }
    }
}

static void row_softmax(const struct softmax_block *b)
{
    struct softmax_rows m;
    memset(m.shrink, 0, sizeof m.shrink);
    softmax_maxima(b, &m);
    for (int r = 0; r < b->rows; r++) {
        float sum =
            b->p_type == DTYPE_F32 ? softmax_row(DTYPE_F32, b, &m, r) : softmax_row(DTYPE_BF16, b, &m, r);
        b->sum[r] = b->sum[r] * m.shrink[r] + sum;
    }
    softmax_rescale(b, &m);
}

VEC void output_as(enum dtype y_type, char *y, const float *o, size_t panel, int nr, int c, float factor)
{
    for (int k = 0; k < c; k += nr, o += panel)
        for (int j = 0; j < nr && k + j < c; j += VL)
            store_n(y_type, y, k + j, c - k - j, v_mul(v_load(o + j), v_set1(factor)));
}

static void row_output(void *y, enum dtype y_type, const float *o, size_t panel, int nr, int c, float factor)
{
    if (y_type == DTYPE_F32)
        output_as(DTYPE_F32, y, o, panel, nr, c, factor);
    else
        output_as(DTYPE_BF16, y, o, panel, nr, c, factor);
}

/* ---- Winograd F(4x4, 3x3) by interpolation at 0, +-A, +-B and infinity ----
 *
 * A = 3/4 and B = 3/2 are exact in fp32 and leave a relative L2 error of 1.5e-6 at 256 channels, where the
 * customary 1 and 2 leave 2.7e-6 and a direct sum in order 0.8e-6. */
#define WINO_A  0.75f
#define WINO_B  1.5f
#define WINO_A2 (WINO_A * WINO_A)
#define WINO_B2 (WINO_B * WINO_B)

/* B' d: coefficients of the product of (x - p) over the other points p. */
VEC void wino_input(const vf d[6], vf r[6])
{
    const vf a2 = v_set1(WINO_A2), b2 = v_set1(WINO_B2), sum = v_set1(WINO_A2 + WINO_B2),
             both = v_set1(WINO_A2 * WINO_B2);
    vf even_a = v_fnma(b2, d[2], d[4]), odd_a = v_mul(v_set1(WINO_A), v_fnma(b2, d[1], d[3]));
    vf even_b = v_fnma(a2, d[2], d[4]), odd_b = v_mul(v_set1(WINO_B), v_fnma(a2, d[1], d[3]));
    r[0] = v_fma(both, d[0], v_fnma(sum, d[2], d[4]));
    r[1] = v_add(even_a, odd_a);
    r[2] = v_sub(even_a, odd_a);
    r[3] = v_add(even_b, odd_b);
    r[4] = v_sub(even_b, odd_b);
    r[5] = v_fma(both, d[1], v_fnma(sum, d[3], d[5]));
}

/* G g: the kernel's polynomial at each point p, over the product of (p - q) for the other finite points q. */
VEC void wino_weight(const vf g[3], vf r[6])
{
    const float at_a = 1 / (2 * WINO_A2 * (WINO_A2 - WINO_B2)),
                at_b = 1 / (2 * WINO_B2 * (WINO_B2 - WINO_A2));
    vf even_a = v_mul(v_set1(at_a), v_fma(v_set1(WINO_A2), g[2], g[0])),
       odd_a = v_mul(v_set1(at_a * WINO_A), g[1]);
    vf even_b = v_mul(v_set1(at_b), v_fma(v_set1(WINO_B2), g[2], g[0])),
       odd_b = v_mul(v_set1(at_b * WINO_B), g[1]);
    r[0] = v_mul(v_set1(1 / (WINO_A2 * WINO_B2)), g[0]);
    r[1] = v_add(even_a, odd_a);
    r[2] = v_sub(even_a, odd_a);
    r[3] = v_add(even_b, odd_b);
    r[4] = v_sub(even_b, odd_b);
    r[5] = g[2];
}

/* A' m: powers of the points. */
VEC void wino_output(const vf m[6], vf r[4])
{
    vf even_a = v_add(m[1], m[2]), odd_a = v_sub(m[1], m[2]), even_b = v_add(m[3], m[4]),
       odd_b = v_sub(m[3], m[4]);
    r[0] = v_add(m[0], v_add(even_a, even_b));
    r[1] = v_fma(v_set1(WINO_A), odd_a, v_mul(v_set1(WINO_B), odd_b));
    r[2] = v_fma(v_set1(WINO_A2), even_a, v_mul(v_set1(WINO_B2), even_b));
    r[3] = v_fma(v_set1(WINO_A * WINO_A2), odd_a, v_fma(v_set1(WINO_B * WINO_B2), odd_b, m[5]));
}

VEC void winograd_weights_as(enum dtype type, float *dst, size_t place, const char *src, int channels, int nr)
{
    size_t es = dtype_size(type), tap = (size_t)channels * (size_t)nr;
    for (size_t at = 0; at < tap; at += (size_t)VL) {
        vf g[3], half[3][6], u[6];
        for (int x = 0; x < 3; x++) {
            for (int y = 0; y < 3; y++) {
                g[y] = load_n(type, src + ((size_t)(3 * y + x) * tap + at) * es, 0, VL);
                /* The same of the next chunk: nine short streams are too many for the processor to see. */
                __builtin_prefetch(src + ((size_t)(9 + 3 * y + x) * tap + at) * es);
            }
            wino_weight(g, half[x]);
        }
        for (int y = 0; y < 6; y++) {
            vf row[3] = {half[0][y], half[1][y], half[2][y]};
            wino_weight(row, u);
            for (int x = 0; x < 6; x++)
                v_store(dst + (size_t)(6 * y + x) * place + at, u[x]);
        }
    }
}

static void row_winograd_weights(float *dst, size_t place, const void *src, enum dtype type, int channels,
                                 int nr)
{
    BY_TYPE(type, winograd_weights_as, dst, place, src, channels, nr);
}

static void row_winograd_input(float *dst, size_t place, const float *const src[36], int c)
{
    for (int j = 0; j < c; j += VL) {
        int n = c - j;
        vf d[6], half[6][6], v[6];
        for (int x = 0; x < 6; x++) {
            for (int y = 0; y < 6; y++)
                d[y] = src[6 * y + x] ? load_n(DTYPE_F32, (const char *)src[6 * y + x], j, n) : v_zero();
            wino_input(d, half[x]);
        }
        for (int y = 0; y < 6; y++) {
            vf row[6] = {half[0][y], half[1][y], half[2][y], half[3][y], half[4][y], half[5][y]};
            wino_input(row, v);
            for (int x = 0; x < 6; x++)
                store_n(DTYPE_F32, (char *)(dst + (size_t)(6 * y + x) * place), j, n, v[x]);
        }
    }
}

static void row_winograd_output(float *dst, size_t line, const float *src, size_t place, int nr)
{
    for (int j = 0; j < nr; j += VL) {
        vf m[6], half[6][4], o[4];
        for (int x = 0; x < 6; x++) {
            for (int y = 0; y < 6; y++)
                m[y] = v_load(src + (size_t)(6 * y + x) * place + (size_t)j);
            wino_output(m, half[x]);
        }
        for (int y = 0; y < 4; y++) {
            vf row[6] = {half[0][y], half[1][y], half[2][y], half[3][y], half[4][y], half[5][y]};
            wino_output(row, o);
            for (int x = 0; x < 4; x++)
                v_store(dst + (size_t)y * line + (size_t)(x * nr + j), o[x]);
        }
    }
}

#define ROW_OPS                                                                                              \
    {                                                                                                        \
        .finish = row_finish, .fence = row_fence, .gather = row_gather, .convert = row_convert,              \
        .channel_sums = row_channel_sums, .affine = row_affine, .layer_norm = row_layer_norm,                \
        .add = row_add, .blend = row_blend, .softmax = row_softmax, .output = row_output,                    \
        .transpose = row_transpose, .interleave = row_interleave, .winograd_weights = row_winograd_weights,  \
        .winograd_input = row_winograd_input, .winograd_output = row_winograd_output                         \
    }
