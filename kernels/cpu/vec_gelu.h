/* GELU in the vocabulary of vec_*.h, which is included before: x times the normal distribution function, the
 * exact GELU, within 2e-7 of max(|x|, 1). No exponential and no division: it has to keep up with matrix
 * instructions. */
#ifndef LATENTD_CPU_VEC_GELU_H
#define LATENTD_CPU_VEC_GELU_H

#ifdef __AVX512F__

/* erf(a / sqrt 2) / 2 for a from 0 on, in sixteen pieces around multiples of 1 / GELU_PIECES: a polynomial of
 * degree 4 of the distance in pieces, Chebyshev's; the last piece is 1 / 2. While tiles multiply, one port
 * only computes floats, and another one permutes: a look-up costs nothing there. */
#define GELU_PIECES 2.85f
#define GELU_END    5.434f
static const float gelu_piece[5][16] __attribute__((aligned(64))) = {
    {0.0f, 0.137159765f, 0.258583844f, 0.353745073f, 0.41976741f, 0.46031782f, 0.482365787f, 0.492978096f,
     0.497499883f, 0.49920544f, 0.499774903f, 0.499943227f, 0.499987274f, 0.499997467f, 0.499999553f, 0.5f},
    {0.139978722f, 0.131622076f, 0.10942807f, 0.0804380253f, 0.0522788242f, 0.0300414283f, 0.015263143f,
     0.00685636327f, 0.00272312481f, 0.000956229691f, 0.000296875543f, 8.1489241e-05f, 1.97758673e-05f,
     4.24302243e-06f, 8.04849151e-07f, 0.0f},
    {0.0f, -0.00810226798f, -0.0134721119f, -0.0148545187f, -0.0128724482f, -0.00924627297f, -0.0056373463f,
     -0.00295446417f, -0.00134108856f, -0.000529816432f, -0.000182778807f, -5.51934718e-05f, -1.46140392e-05f,
     -3.39742314e-06f, -6.94181665e-07f, 0.0f},
    {-0.00285574817f, -0.00235648919f, -0.00113836292f, 0.000170666215f, 0.00103019096f, 0.00127373228f,
     0.00107249792f, 0.000708880078f, 0.000386314554f, 0.000177670765f, 6.98661097e-05f, 2.36822361e-05f,
     6.95740118e-06f, 1.7783068e-06f, 3.96575984e-07f, 0.0f},
    {0.0f, 0.000237681932f, 0.000344767031f, 0.000287334085f, 0.000136185132f, -6.62309503e-06f,
     -8.21128779e-05f, -9.15752171e-05f, -6.71037487e-05f, -3.80017482e-05f, -1.75661498e-05f,
     -6.80114999e-06f, -2.23789129e-06f, -6.31557214e-07f, -1.53809665e-07f, 0.0f}};

VEC vf gelu_coefficient(int i, __m512i piece)
{
    return _mm512_permutexvar_ps(piece, v_load(gelu_piece[i]));
}

VEC vf v_gelu(vf x)
{
    const vf whole = v_set1(0x1.8p23f); /* added to a number, it leaves that rounded in the last bits */
    vf size = _mm512_abs_ps(x), a = _mm512_range_ps(x, v_set1(GELU_END), 0xa); /* the smaller size */
    vf near = v_fma(a, v_set1(GELU_PIECES), whole);
    vf t = _mm512_fmsub_ps(a, v_set1(GELU_PIECES), v_sub(near, whole));
    __m512i piece = _mm512_castps_si512(near);
    vf p = gelu_coefficient(4, piece);
    for (int i = 3; i >= 0; i--)
        p = v_fma(p, t, gelu_coefficient(i, piece));
    return v_fma(size, p, v_mul(x, v_set1(0.5f)));
}

#else

/* erf as a quotient of polynomials of x / sqrt 2 up to +-4, where it is +-1 in fp32 (the coefficients of
 * Eigen's erf). */
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
    vf erf = v_div(v_mul(z, p), q), half = v_mul(x, v_set1(0.5f));
    return v_fma(half, erf, half);
}

#endif

#endif
