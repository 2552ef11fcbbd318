/* GELU in the vocabulary of vec_*.h, which is included before.
 *
 * x times the normal distribution function, the exact GELU: erf as a quotient of polynomials of x / sqrt 2 up
 * to
 * +-4, where it is +-1 in fp32 (the coefficients of Eigen's erf). Within 2e-7 of max(|x|, 1). No exponential
 * and no division: it has to keep up with matrix instructions. */
#ifndef LATENTD_CPU_VEC_GELU_H
#define LATENTD_CPU_VEC_GELU_H

/* 1 / a */
VEC vf v_reciprocal(vf a)
{
#ifdef __AVX512F__
    vf r = _mm512_rcp14_ps(a);
    return v_mul(r, v_fnma(a, r, v_set1(2.0f)));
#else
    return v_div(v_set1(1.0f), a);
#endif
}

VEC vf v_gelu(vf x)
{
    vf z = v_max(v_set1(-4.0f), v_min(v_set1(4.0f), v_mul(x, v_set1(0.70710678f)))), s = v_mul(z, z);
    vf p = v_set1(-2.72614225801306e-10f), q = v_set1(-1.45660718464996e-05f);
    p = v_fma(p, s, v_set1(2.77068142495902e-08f));
    q = v_fma(q, s, v_set1(-2.13374055278905e-04f));
    p = v_fma(p, s, v_set1(-2.10102402082508e-06f));
    q = v_fma(q, s, v_set1(-1.68282697438203e-03f));
    p = v_fma(p, s, v_set1(-5.69250639462346e-05f));
    q = v_fma(q, s, v_set1(-7.37332916720468e-03f));
    p = v_fma(p, s, v_set1(-7.34990630326855e-04f));
    q = v_fma(q, s, v_set1(-1.42647390514189e-02f));
    p = v_fma(p, s, v_set1(-2.95459980854025e-03f));
    p = v_fma(p, s, v_set1(-1.60960333262415e-02f));
    vf erf = v_mul(v_mul(z, p), v_reciprocal(q)), half = v_mul(x, v_set1(0.5f));
    return v_fma(half, erf, half);
}

#endif
