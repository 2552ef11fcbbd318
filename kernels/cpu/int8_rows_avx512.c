/* Rows of numbers to int8 and back, in AVX-512: see int8.h. */
#include <immintrin.h>

#include "../int8.h"
#include "int8.h"
#include "vec_avx512.h"

static inline __attribute__((always_inline)) __m512 load(const void *x, enum dtype type, int i, __mmask16 m)
{
    if (type == DTYPE_F32)
        return _mm512_maskz_loadu_ps(m, (const float *)x + i);
    __m256i h = _mm256_maskz_loadu_epi16(m, (const uint16_t *)x + i);
    return type == DTYPE_BF16 ? v_widen_bf16(h) : _mm512_cvtph_ps(h);
}

static __mmask16 lanes(int n)
{
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1u);
}

/* Magnitudes of bf16 order as their bits do. */
static uint32_t most_bf16(const uint16_t *x, int n)
{
    const __m512i magnitude = _mm512_set1_epi16(0x7fff);
    __m512i most = _mm512_setzero_si512();
    int i = 0;
    for (; i + 32 <= n; i += 32)
        most = _mm512_max_epu16(most, _mm512_and_si512(magnitude, _mm512_loadu_si512(x + i)));
    if (i < n) {
        __mmask32 m = (__mmask32)((1ull << (n - i)) - 1);
        most = _mm512_max_epu16(most, _mm512_and_si512(magnitude, _mm512_maskz_loadu_epi16(m, x + i)));
    }
    __m512i odd = _mm512_srli_epi32(most, 16), even = _mm512_and_si512(most, _mm512_set1_epi32(0xffff));
    return (uint32_t)_mm512_reduce_max_epu32(_mm512_max_epu32(odd, even)) << 16;
}

uint32_t int8_row_most(const void *x, enum dtype type, int n, uint32_t most)
{
    uint32_t row;
    if (type == DTYPE_BF16) {
        row = most_bf16(x, n);
    } else {
        __m512i all = _mm512_setzero_si512();
        for (int i = 0; i < n; i += 16)
            all =
                _mm512_max_epu32(all, _mm512_and_si512(_mm512_set1_epi32(0x7fffffff),
                                                       _mm512_castps_si512(load(x, type, i, lanes(n - i)))));
        row = (uint32_t)_mm512_reduce_max_epu32(all);
    }
    return row > most ? row : most;
}

static inline __attribute__((always_inline)) void to_int8(uint8_t *dst, const void *x, enum dtype type, int n,
                                                          int padded, float inverse, uint8_t zero)
{
    const __m512 by = _mm512_set1_ps(inverse);
    const __m512i least = _mm512_set1_epi32(-127);
    const __m128i flip = _mm_set1_epi8((char)zero);
    for (int i = 0; i < padded; i += 16) {
        __mmask16 m = i < n ? lanes(n - i) : 0;
        __m512i q = _mm512_maskz_cvtps_epi32(m, _mm512_mul_ps(load(x, type, i, m), by));
        __m128i b = _mm512_cvtsepi32_epi8(_mm512_max_epi32(q, least));
        _mm_storeu_si128((__m128i *)(void *)(dst + i), _mm_xor_si128(b, flip)); /* + 128 and ^ 128 are one */
    }
}

void int8_row(uint8_t *dst, const void *x, enum dtype type, int n, int padded, float inverse, uint8_t zero)
{
    if (type == DTYPE_BF16)
        to_int8(dst, x, DTYPE_BF16, n, padded, inverse, zero);
    else if (type == DTYPE_F32)
        to_int8(dst, x, DTYPE_F32, n, padded, inverse, zero);
    else
        to_int8(dst, x, DTYPE_F16, n, padded, inverse, zero);
}

void int8_scale_rows(float *dst, const struct int8_ending *e, int rows)
{
    const int32_t *c = e->c;
    const __m512 s0 = _mm512_loadu_ps(e->scale), s1 = _mm512_loadu_ps(e->scale + 16);
    for (int r = 0; r < rows; r++, c += INT8_NR, dst += INT8_NR) {
        __m512 row = _mm512_set1_ps(e->row[r * e->step]);
        __m512 lo = _mm512_cvtepi32_ps(_mm512_loadu_si512(c)),
               hi = _mm512_cvtepi32_ps(_mm512_loadu_si512(c + 16));
        _mm512_storeu_ps(dst, _mm512_mul_ps(_mm512_mul_ps(lo, s0), row));
        _mm512_storeu_ps(dst + 16, _mm512_mul_ps(_mm512_mul_ps(hi, s1), row));
    }
}
