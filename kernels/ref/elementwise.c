/* Ops that treat each number alone: silu, add, blend, convert, clip, lincomb, guide, ramp. */
#include <math.h>

#include "ref.h"

int ref_silu(struct backend *be, tensor y, tensor x, struct error *err)
{
    (void)be;
    (void)err;
    for (size_t row = 0; row < tensor_rows(x); row++)
        for (size_t i = 0; i < (size_t)x.c; i++)
            half_store(ref_row(y, row), y.dtype, i,
                       ref_activate(ACT_SILU, half_load(ref_row(x, row), x.dtype, i)));
    return 0;
}

int ref_add(struct backend *be, tensor y, tensor a, tensor b, struct error *err)
{
    (void)be;
    (void)err;
    for (size_t row = 0; row < tensor_rows(y); row++)
        for (size_t i = 0; i < (size_t)y.c; i++)
            half_store(ref_row(y, row), y.dtype, i,
                       half_load(ref_row(a, row), a.dtype, i) + half_load(ref_row(b, row), b.dtype, i));
    return 0;
}

int ref_blend(struct backend *be, tensor y, tensor a, tensor b, float share, struct error *err)
{
    (void)be;
    (void)err;
    for (size_t row = 0; row < tensor_rows(y); row++)
        for (size_t i = 0; i < (size_t)y.c; i++)
            half_store(ref_row(y, row), y.dtype, i,
                       share * half_load(ref_row(a, row), a.dtype, i) +
                           (1 - share) * half_load(ref_row(b, row), b.dtype, i));
    return 0;
}

int ref_convert(struct backend *be, tensor y, tensor x, struct error *err)
{
    (void)be;
    (void)err;
    for (size_t row = 0; row < tensor_rows(x); row++)
        for (size_t i = 0; i < (size_t)x.c; i++)
            half_store(ref_row(y, row), y.dtype, i, half_load(ref_row(x, row), x.dtype, i));
    return 0;
}

/* torch.clamp: a NaN stays a NaN. */
int ref_clip(struct backend *be, tensor y, tensor x, float lo, float hi, struct error *err)
{
    (void)be;
    (void)err;
    for (size_t row = 0; row < tensor_rows(x); row++) {
        for (size_t i = 0; i < (size_t)x.c; i++) {
            float v = half_load(ref_row(x, row), x.dtype, i);
            half_store(ref_row(y, row), y.dtype, i, v < lo ? lo : v > hi ? hi : v);
        }
    }
    return 0;
}

/* Number I of row ROW of guide(e, scale); the second half of E begins ROWS rows further on. */
static float guided(tensor e, size_t rows, size_t row, size_t i, float scale)
{
    float u = half_load(ref_row(e, row), e.dtype, i), c = half_load(ref_row(e, rows + row), e.dtype, i);
    return u + scale * (c - u);
}

/* The products are summed in double: the sampler's coefficients often cancel. */
int ref_lincomb(struct backend *be, tensor y, int count, const float *coef, const tensor *x, int pair,
                float scale, struct error *err)
{
    (void)be;
    (void)err;
    size_t rows = tensor_rows(y);
    for (size_t row = 0; row < rows; row++) {
        for (size_t i = 0; i < (size_t)y.c; i++) {
            double sum = 0;
            for (int k = 0; k < count; k++) {
                float v = k == pair ? guided(x[k], rows, row, i, scale)
                                    : half_load(ref_row(x[k], row), x[k].dtype, i);
                sum += (double)coef[k] * (double)v;
            }
            half_store(ref_row(y, row), y.dtype, i, (float)sum);
        }
    }
    return 0;
}

int ref_guide(struct backend *be, tensor y, tensor e, float scale, struct error *err)
{
    (void)be;
    (void)err;
    size_t rows = tensor_rows(y);
    for (size_t row = 0; row < rows; row++)
        for (size_t i = 0; i < (size_t)y.c; i++)
            half_store(ref_row(y, row), y.dtype, i, guided(e, rows, row, i, scale));
    return 0;
}

/* Shares in fp32, as diffusers' products with a Python number have them up to their last bit. */
int ref_ramp(struct backend *be, tensor y, tensor a, tensor b, int unit, struct error *err)
{
    (void)be;
    (void)err;
    float steps = (float)(unit ? y.c / unit : y.w);
    for (size_t row = 0; row < tensor_rows(y); row++) {
        const float *from = ref_row(a, row), *to = ref_row(b, row);
        float *out = ref_row(y, row);
        for (int i = 0; i < y.c; i++) {
            float share = (float)(unit ? i / unit : (int)row) / steps;
            out[i] = (1 - share) * from[i] + share * to[i];
        }
    }
    return 0;
}
