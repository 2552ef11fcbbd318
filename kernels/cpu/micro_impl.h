/* The matrix micro-kernel of the tiers that have vector multiply-adds: rows x 2 vectors of outputs held in
 * registers, one broadcast of A and two loads of B a step. Included by one file a tier, which defines
 * beforehand: MICRO_ROWS           most rows: 2 * MICRO_ROWS accumulators + 2 vectors of B + a broadcast fit
 * the register file micro_b              vector type of B;  micro_load(p), micro_broadcast(p)  32-bit lanes
 *   micro_fma(a, b, c)   c + a * b, for bf16 over the two products of a lane
 *   MICRO_STEP           channels in a lane: 1 (F32) or 2 (BF16 pairs)
 *
 * Bytes and FLOPs: a step of 14 x 32 on AVX-512 makes 28 multiply-adds (14 cycles on two ports) and 16 loads
 * (8 cycles), so it is bound by arithmetic as long as A and B come from the first-level cache; B (k_block x
 * nr) stays there for all row tiles of a block, A (rows x k_block) streams from the second level at 4 bytes a
 * cycle. */
#include <time.h>

#include "tier.h"

/* VECS is 2, or 1 where only the first half of the panel is wanted. */
VEC void micro_run(const int rows, const int vecs, const struct gemm_tile *t)
{
    vf acc[MICRO_ROWS][2];
    const char *b = t->b, *next = t->prefetch;
    const size_t lda = t->lda;
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
        acc[i][0] = acc[i][1] = v_zero();
    for (int tap = 0; tap < t->taps; tap++) {
        /* Rows are addressed as three strides from every third pointer: there are not enough registers for
         * all. */
        const char *a[(MICRO_ROWS + 2) / 3];
#pragma GCC unroll 16
        for (int i = 0; i < (rows + 2) / 3; i++)
            a[i] = t->a + t->tap[tap] + (size_t)(3 * i) * lda;
#pragma GCC unroll 4
        for (int k = t->k; k > 0; k -= MICRO_STEP) {
            micro_b b0 = micro_load(b), b1 = vecs > 1 ? micro_load(b + VL * 4) : b0;
            __builtin_prefetch(next, 0, 2);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                micro_b x = micro_broadcast(a[i / 3] + (size_t)(i % 3) * lda);
                acc[i][0] = micro_fma(x, b0, acc[i][0]);
                if (vecs > 1)
                    acc[i][1] = micro_fma(x, b1, acc[i][1]);
            }
#pragma GCC unroll 16
            for (int i = 0; i < (rows + 2) / 3; i++)
                a[i] += 4;
            b += (size_t)VL * 8;
            next += 64;
        }
    }
    float *c = t->c;
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++, c += 2 * VL) {
#pragma GCC unroll 2
        for (int j = 0; j < vecs; j++)
            v_store(c + j * VL, t->add ? v_add(v_load(c + j * VL), acc[i][j]) : acc[i][j]);
    }
}

#define MICRO_CASE(n)                                                                                        \
    case n:                                                                                                  \
        micro_run(n, vecs, t);                                                                               \
        break;

VEC void run_rows(int rows, const int vecs, const struct gemm_tile *t)
{
    switch (rows) {
        MICRO_CASE(1)
        MICRO_CASE(2)
        MICRO_CASE(3)
        MICRO_CASE(4)
        MICRO_CASE(5)
        MICRO_CASE(6)
#if MICRO_ROWS > 6
        MICRO_CASE(7)
        MICRO_CASE(8)
        MICRO_CASE(9)
        MICRO_CASE(10)
        MICRO_CASE(11)
        MICRO_CASE(12)
        MICRO_CASE(13)
        MICRO_CASE(14)
#endif
    }
}

static void run(int rows, const struct gemm_tile *t)
{
    if (t->half)
        run_rows(rows, 1, t);
    else
        run_rows(rows, 2, t);
}

/* Ten independent chains of multiply-adds in registers for about five milliseconds. The best of short
 * stretches counts: another process may have the core for most of them. */
static double peak(void)
{
    enum { STRETCHES = 20, LOOPS = 50000 };
    double least = 0;
    struct timespec t0, t1;
    static const float start[VL * 2];
    vf a0 = v_zero(), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0, a8 = a0, a9 = a0;
    micro_b x = micro_load((const char *)start), y = micro_load((const char *)(start + VL));
    for (int s = 0; s < STRETCHES; s++) {
        clock_gettime(CLOCK_MONOTONIC, &t0);
        for (int i = 0; i < LOOPS; i++) {
            a0 = micro_fma(x, y, a0), a1 = micro_fma(x, y, a1), a2 = micro_fma(x, y, a2),
            a3 = micro_fma(x, y, a3);
            a4 = micro_fma(x, y, a4), a5 = micro_fma(x, y, a5), a6 = micro_fma(x, y, a6),
            a7 = micro_fma(x, y, a7);
            a8 = micro_fma(x, y, a8), a9 = micro_fma(x, y, a9);
            __asm__ volatile(""
                             : "+x"(a0), "+x"(a1), "+x"(a2), "+x"(a3), "+x"(a4), "+x"(a5), "+x"(a6),
                               "+x"(a7));
            __asm__ volatile("" : "+x"(a8), "+x"(a9));
        }
        clock_gettime(CLOCK_MONOTONIC, &t1);
        const double seconds = (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
        least = s == 0 || seconds < least ? seconds : least;
    }
    return 10.0 * VL * MICRO_STEP * 2 * LOOPS / least;
}
