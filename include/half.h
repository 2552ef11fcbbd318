/* 16-bit floating point in plain C: half (IEEE binary16) and bfloat16, to and from fp32. Rounding is to
 * nearest, ties to even, as PyTorch and the x86 and CUDA conversion instructions round; infinities and NaNs
 * stay what they are (a NaN becomes quiet), and subnormals are kept. Free of includes that need an
 * instruction set. */
#ifndef LATENTD_HALF_H
#define LATENTD_HALF_H

#include <stdint.h>
#include <string.h>

#include "tensor.h"

static inline uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float bf16_to_f32(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t bf16_from_f32(float f)
{
    uint32_t u = f32_bits(f);
    if ((u & 0x7fffffff) > 0x7f800000) /* NaN: rounding could carry it into an infinity */
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 0x1f, mantissa = h & 0x3ff;
    if (exponent == 0) { /* zero or subnormal: mantissa * 2^-24, exact in fp32 */
        float f = (float)mantissa * 0x1p-24f;
        return f32_from_bits(f32_bits(f) | sign);
    }
    if (exponent == 31) /* infinity, or NaN made quiet */
        return f32_from_bits(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
    return f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

static inline uint16_t f16_from_f32(float f)
{
    uint32_t u = f32_bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) /* NaN */
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000) /* 65520 and up round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (a < 0x38800000) { /* below 2^-14: adding 0.5, whose last bit is 2^-24, rounds to a subnormal */
        float sum = f32_from_bits(a) + 0.5f;
        return (uint16_t)(sign | (f32_bits(sum) - 0x3f000000));
    }
    a += 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | (a - 0x38000000) >> 13);
}

/* Element I of an array stored as TYPE; the array may be unaligned (numbers inside an mmapped file). */
static inline float half_load(const void *array, enum dtype type, size_t i)
{
    const char *at = (const char *)array + i * dtype_size(type);
    float f;
    uint16_t h;
    if (type == DTYPE_F32) {
        memcpy(&f, at, sizeof f);
        return f;
    }
    memcpy(&h, at, sizeof h);
    return type == DTYPE_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

static inline void half_store(void *array, enum dtype type, size_t i, float f)
{
    char *at = (char *)array + i * dtype_size(type);
    if (type == DTYPE_F32) {
        memcpy(at, &f, sizeof f);
        return;
    }
    uint16_t h = type == DTYPE_F16 ? f16_from_f32(f) : bf16_from_f32(f);
    memcpy(at, &h, sizeof h);
}

/* F as TYPE can hold it. */
static inline float half_round(float f, enum dtype type)
{
    if (type == DTYPE_F32)
        return f;
    return type == DTYPE_F16 ? f16_to_f32(f16_from_f32(f)) : bf16_to_f32(bf16_from_f32(f));
}

#endif
