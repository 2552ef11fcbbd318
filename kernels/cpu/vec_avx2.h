/* Eight floats: the vector vocabulary that rows_impl.h and micro_impl.h are written in. */
#ifndef LATENTD_CPU_VEC_H
#define LATENTD_CPU_VEC_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { VL = 8 };
typedef __m256 vf;

#define VEC static inline __attribute__((always_inline))

VEC __m256i v_tail(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VEC vf v_set1(float x)
{
    return _mm256_set1_ps(x);
}
VEC vf v_zero(void)
{
    return _mm256_setzero_ps();
}
VEC vf v_load(const void *p)
{
    return _mm256_loadu_ps(p);
}
VEC vf v_load_n(const void *p, int n)
{
    return _mm256_maskload_ps(p, v_tail(n));
}
VEC void v_store(void *p, vf x)
{
    _mm256_storeu_ps(p, x);
}
/* Half a cache line at a time is no use past the caches: an ordinary store. */
enum { V_STREAMS = 0 };
VEC void v_stream(void *p, vf x)
{
    _mm256_storeu_ps(p, x);
}
VEC void v_store_n(void *p, vf x, int n)
{
    _mm256_maskstore_ps(p, v_tail(n), x);
}
VEC vf v_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
VEC vf v_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
VEC vf v_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
VEC vf v_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
VEC vf v_inverse(vf a) /* the guess that AVX2 has is too rough for one step of Newton's */
{
    return _mm256_div_ps(_mm256_set1_ps(1), a);
}
/* a * b + c */
VEC vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
/* c - a * b */
VEC vf v_fnma(vf a, vf b, vf c)
{
    return _mm256_fnmadd_ps(a, b, c);
}
/* Where either is not a number the result is b. */
VEC vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
VEC vf v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
VEC vf v_abs(vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
/* x, brought to between -limit and limit; a NaN becomes limit. */
VEC vf v_clamp(vf x, vf limit)
{
    return v_max(_mm256_min_ps(x, limit), v_sub(_mm256_setzero_ps(), limit));
}
VEC vf v_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* x < 0 ? a : b */
VEC vf v_where_negative(vf x, vf a, vf b)
{
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
/* p * 2^n for integral n, gradual underflow included; exactly 0 where x < lowest. 2^n in two halves, since
 * neither 2^128 nor 2^-150 is a normal number; lanes far out are scaled by 1, so that they do not cost an
 * underflow assist. */
VEC vf v_scale_pow2(vf p, vf n, vf x, vf lowest)
{
    vf cut = _mm256_cmp_ps(x, lowest, _CMP_LT_OQ);
    __m256i i = _mm256_cvtps_epi32(_mm256_andnot_ps(cut, n)), half = _mm256_srai_epi32(i, 1);
    __m256i rest = _mm256_sub_epi32(i, half), bias = _mm256_set1_epi32(127);
    vf a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    vf b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_andnot_ps(cut, _mm256_mul_ps(_mm256_mul_ps(p, a), b));
}
/* p * 2^n for integral n where p * 2^n and 2^n are normal numbers */
VEC vf v_times_pow2(vf p, vf n)
{
    __m256i i = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return v_mul(p, _mm256_castsi256_ps(_mm256_slli_epi32(i, 23)));
}
VEC __m128 v_low(vf a)
{
    return _mm256_castps256_ps128(a);
}
VEC float v_sum(vf a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
/* sum += x, square += x^2 for two halves of doubles */
typedef struct {
    __m256d lo, hi;
} vd;
VEC vd vd_load_n(const double *p, int n)
{
    double v[8] = {0};
    memcpy(v, p, (size_t)n * sizeof *p);
    vd r = {_mm256_loadu_pd(v), _mm256_loadu_pd(v + 4)};
    return r;
}
VEC void vd_store_n(double *p, vd x, int n)
{
    double v[8];
    _mm256_storeu_pd(v, x.lo);
    _mm256_storeu_pd(v + 4, x.hi);
    memcpy(p, v, (size_t)n * sizeof *p);
}
VEC vd vd_add(vd sum, vf x)
{
    vd r = {_mm256_add_pd(sum.lo, _mm256_cvtps_pd(_mm256_castps256_ps128(x))),
            _mm256_add_pd(sum.hi, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)))};
    return r;
}
VEC void vd_moments(vd *sum, vd *square, vf x)
{
    __m256d lo = _mm256_cvtps_pd(_mm256_castps256_ps128(x)),
            hi = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    sum->lo = _mm256_add_pd(sum->lo, lo), sum->hi = _mm256_add_pd(sum->hi, hi);
    square->lo = _mm256_fmadd_pd(lo, lo, square->lo), square->hi = _mm256_fmadd_pd(hi, hi, square->hi);
}
VEC float v_highest(vf a)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
/* Lanes >= n become x. */
VEC vf v_fill_tail(vf a, int n, vf x)
{
    return _mm256_blendv_ps(x, a, _mm256_castsi256_ps(v_tail(n)));
}

VEC vf v_widen_bf16(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
/* Round to nearest even; a NaN stays a (quiet) NaN. */
VEC __m128i v_narrow_bf16(vf x)
{
    __m256i u = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    r = _mm256_blendv_epi8(r, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    r = _mm256_srli_epi32(r, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
VEC __m128i v_load_half_n(const void *p, int n)
{
    uint16_t h[8] = {0};
    memcpy(h, p, (size_t)n * 2);
    return _mm_loadu_si128((const __m128i *)h);
}
VEC void v_store_half_n(void *p, __m128i x, int n)
{
    uint16_t h[8];
    _mm_storeu_si128((__m128i *)h, x);
    memcpy(p, h, (size_t)n * 2);
}
VEC vf v_load_bf16(const void *p)
{
    return v_widen_bf16(_mm_loadu_si128((const __m128i *)p));
}
VEC vf v_load_bf16_n(const void *p, int n)
{
    return v_widen_bf16(v_load_half_n(p, n));
}
VEC void v_store_bf16(void *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, v_narrow_bf16(x));
}
VEC void v_store_bf16_n(void *p, vf x, int n)
{
    v_store_half_n(p, v_narrow_bf16(x), n);
}
VEC vf v_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
VEC vf v_load_f16_n(const void *p, int n)
{
    return _mm256_cvtph_ps(v_load_half_n(p, n));
}
VEC void v_store_f16(void *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC void v_store_f16_n(void *p, vf x, int n)
{
    v_store_half_n(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), n);
}
VEC vf v_broadcast(const void *p)
{
    return _mm256_broadcast_ss(p);
}

#endif
