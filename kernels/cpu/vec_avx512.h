/* Sixteen floats: the vector vocabulary that rows_impl.h and micro_impl.h are written in. */
#ifndef LATENTD_CPU_VEC_H
#define LATENTD_CPU_VEC_H

#include <immintrin.h>
#include <stdint.h>

enum { VL = 16 };
typedef __m512 vf;

#define VEC static inline __attribute__((always_inline))

VEC __mmask16 v_tail(int n)
{
    return (__mmask16)((1u << n) - 1u);
}
VEC vf v_set1(float x)
{
    return _mm512_set1_ps(x);
}
VEC vf v_zero(void)
{
    return _mm512_setzero_ps();
}
VEC vf v_load(const void *p)
{
    return _mm512_loadu_ps(p);
}
VEC vf v_load_n(const void *p, int n)
{
    return _mm512_maskz_loadu_ps(v_tail(n), p);
}
VEC void v_store(void *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
/* Past the caches; P is 64-byte aligned. A fence must follow before another thread reads. */
enum { V_STREAMS = 1 };
VEC void v_stream(void *p, vf x)
{
    _mm512_stream_ps(p, x);
}
VEC void v_store_n(void *p, vf x, int n)
{
    _mm512_mask_storeu_ps(p, v_tail(n), x);
}
VEC vf v_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
VEC vf v_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
VEC vf v_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
VEC vf v_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
/* 1 / a to about one unit, for 0 < a < infinity: a guess of 14 bits and one step of Newton's, where dividing
 * takes five times as long. */
VEC vf v_inverse(vf a)
{
    vf r = _mm512_rcp14_ps(a);
    return _mm512_fmadd_ps(r, _mm512_fnmadd_ps(a, r, _mm512_set1_ps(1)), r);
}
/* a * b + c */
VEC vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* c - a * b */
VEC vf v_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
/* Where either is not a number the result is b. */
VEC vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
VEC vf v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
VEC vf v_abs(vf a)
{
    return _mm512_abs_ps(a);
}
/* x, brought to between -limit and limit; a NaN becomes limit. */
VEC vf v_clamp(vf x, vf limit)
{
    return _mm512_range_ps(x, limit, 2); /* the lesser magnitude, the sign of x */
}
VEC vf v_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* x < 0 ? a : b */
VEC vf v_where_negative(vf x, vf a, vf b)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), b, a);
}
/* p * 2^n for integral n, gradual underflow included; exactly 0 where x < lowest. Lanes far out are masked
 * instead of left to underflow, which would cost a microcode assist each. */
VEC vf v_scale_pow2(vf p, vf n, vf x, vf lowest)
{
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, lowest, _CMP_NLT_UQ), p, n);
}
/* p * 2^n for integral n where p * 2^n and 2^n are normal numbers */
VEC vf v_times_pow2(vf p, vf n)
{
    return _mm512_scalef_ps(p, n);
}
VEC __m128 v_low(vf a)
{
    return _mm512_castps512_ps128(a);
}
VEC float v_sum(vf a)
{
    return _mm512_reduce_add_ps(a);
}
/* sum += x, square += x^2 for two halves of doubles */
typedef struct {
    __m512d lo, hi;
} vd;
VEC vd vd_load_n(const double *p, int n)
{
    vd r = {_mm512_maskz_loadu_pd((__mmask8)v_tail(n), p),
            _mm512_maskz_loadu_pd((__mmask8)(v_tail(n) >> 8), p + 8)};
    return r;
}
VEC void vd_store_n(double *p, vd x, int n)
{
    _mm512_mask_storeu_pd(p, (__mmask8)v_tail(n), x.lo);
    _mm512_mask_storeu_pd(p + 8, (__mmask8)(v_tail(n) >> 8), x.hi);
}
VEC vd vd_add(vd sum, vf x)
{
    vd r = {_mm512_add_pd(sum.lo, _mm512_cvtps_pd(_mm512_castps512_ps256(x))),
            _mm512_add_pd(sum.hi, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)))};
    return r;
}
VEC void vd_moments(vd *sum, vd *square, vf x)
{
    __m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    __m512d hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    sum->lo = _mm512_add_pd(sum->lo, lo), sum->hi = _mm512_add_pd(sum->hi, hi);
    square->lo = _mm512_fmadd_pd(lo, lo, square->lo), square->hi = _mm512_fmadd_pd(hi, hi, square->hi);
}
VEC float v_highest(vf a)
{
    return _mm512_reduce_max_ps(a);
}
/* Lanes >= n become x. */
VEC vf v_fill_tail(vf a, int n, vf x)
{
    return _mm512_mask_blend_ps(v_tail(n), x, a);
}

VEC vf v_widen_bf16(__m256i h)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
/* Round to nearest even; a NaN stays a (quiet) NaN. The instruction also makes denormals 0. */
#ifdef __AVX512BF16__
VEC __m256i v_narrow_bf16(vf x)
{
    return (__m256i)_mm512_cvtneps_pbh(x);
}
#else
VEC __m256i v_narrow_bf16(vf x)
{
    __m512i u = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
#endif
VEC vf v_load_bf16(const void *p)
{
    return v_widen_bf16(_mm256_loadu_si256((const __m256i *)p));
}
VEC vf v_load_bf16_n(const void *p, int n)
{
    return v_widen_bf16(_mm256_maskz_loadu_epi16(v_tail(n), p));
}
VEC void v_store_bf16(void *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, v_narrow_bf16(x));
}
VEC void v_store_bf16_n(void *p, vf x, int n)
{
    _mm256_mask_storeu_epi16(p, v_tail(n), v_narrow_bf16(x));
}
VEC vf v_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
VEC vf v_load_f16_n(const void *p, int n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v_tail(n), p));
}
VEC void v_store_f16(void *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC void v_store_f16_n(void *p, vf x, int n)
{
    _mm256_mask_storeu_epi16(p, v_tail(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC vf v_broadcast(const void *p)
{
    return _mm512_set1_ps(*(const float *)p);
}

#endif
