/* The two instructions of the bf16 tiers that older processors lack, under one name each: the real ones, or
 * (with LATENTD_EMULATE) the same arithmetic in AVX-512F, so that the kernels around them can be tested
 * anywhere. */
#ifndef LATENTD_CPU_VEC_BF16_H
#define LATENTD_CPU_VEC_BF16_H

#include "vec_avx512.h"

typedef __m512i vb; /* 16 pairs of bf16 */

VEC vb vb_load(const void *p)
{
    return _mm512_loadu_si512(p);
}
/* A pair of bf16 anywhere: a channel view may begin at an odd element. */
typedef int pair_anywhere __attribute__((aligned(1), may_alias));

VEC vb vb_broadcast(const void *p)
{
    return _mm512_set1_epi32(*(const pair_anywhere *)p);
}

/* The even or the odd ones of 32 numbers. */
VEC vf vb_even(vb x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
VEC vf vb_odd(vb x)
{
    return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000)));
}

/* c + a.odd * b.odd, then + a.even * b.even, as VDPBF16PS is defined: products of bf16 are exact in fp32, so
 * the fused form rounds as the instruction does. The instruction also flushes denormals; the emulation does
 * not. */
VEC vf vb_dot_emulated(vb a, vb b, vf c)
{
    return v_fma(vb_even(a), vb_even(b), v_fma(vb_odd(a), vb_odd(b), c));
}

/* 32 numbers, rounded to nearest even: LO, then HI. The instruction also makes denormals 0. */
VEC vb vb_narrow_emulated(vf lo, vf hi)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(v_narrow_bf16(lo)), v_narrow_bf16(hi), 1);
}

#ifdef LATENTD_EMULATE
#define vb_dot    vb_dot_emulated
#define vb_narrow vb_narrow_emulated
#else
VEC vb vb_narrow(vf lo, vf hi)
{
    return (vb)_mm512_cvtne2ps_pbh(hi, lo);
}
VEC vf vb_dot(vb a, vb b, vf c)
{
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}
#endif

/* 32 neighbouring numbers, apart: how they are widened without a shuffle. */
struct halves {
    vf even, odd;
};

VEC struct halves halves_load(const char *p)
{
    vb x = vb_load(p);
    return (struct halves){vb_even(x), vb_odd(x)};
}
/* The even ones, then the odd. P is aligned. */
VEC void halves_store(char *p, struct halves x)
{
    _mm512_store_si512(p, vb_narrow(x.even, x.odd));
}

/* 2^x (1 +- 7.5e-5), and LIFT 2^floor(x) more: 2^floor(x) p(x - floor(x)), p of degree 3. For what bf16
 * rounds. */
VEC vf v_exp2_rough(vf x, float lift)
{
    vf r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vf p = v_fma(v_set1(0.078024536f), r, v_set1(0.2260672f));
    p = v_fma(p, r, v_set1(0.6958335f));
    p = v_fma(p, r, v_set1(0.99992526f + lift));
    return _mm512_scalef_ps(p, x);
}

/* exp(x) to 1e-4 of it for x <= 0; 2e-38 where it is less, as results that are not normal numbers take
 * processors long. */
VEC vf v_exp_rough(vf x)
{
    return v_exp2_rough(v_max(v_mul(x, v_set1(1.44269504f)), v_set1(-125)), 0);
}

/* x / (1 + exp(-x)) to 1e-4 of it, for what bf16 then rounds to 2e-3. */
VEC vf v_silu_rough(vf x)
{
    vf e = v_exp2_rough(v_mul(x, v_set1(-1.44269504f)), 0);
    return v_mul(x, _mm512_rcp14_ps(v_add(v_set1(1.0f), e)));
}

/* For rows_impl.h. */
#define SILU_FOR_BF16             v_silu_rough
#define STORE_TWO_BF16(p, lo, hi) _mm512_storeu_si512(p, vb_narrow(lo, hi))

#endif
