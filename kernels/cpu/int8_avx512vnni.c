/* Matrix micro-kernel in int8 for AVX512-VNNI: 14 rows x 32 columns of 32-bit sums, four products a lane and
 * step. VPDPBUSD multiplies unsigned by signed: rows hold numbers + 128, and sums begin at -128 times the sum
 * of the weights. */
#include <immintrin.h>
#include <time.h>

#include "int8.h"

#ifdef LATENTD_EMULATE
#define KERNEL int8_avx512vnni_emulated
#define SERVES "int8 by AVX512-VNNI, emulated"
/* c + the four products of each lane, a unsigned, b signed. */
static inline __attribute__((always_inline)) __m512i dot(__m512i c, __m512i a, __m512i b)
{
    const __m512i low = _mm512_set1_epi32(0xff);
    for (int i = 0; i < 4; i++) {
        __m512i x = _mm512_and_si512(_mm512_srli_epi32(a, (unsigned)(8 * i)), low);
        __m512i y = _mm512_srai_epi32(_mm512_slli_epi32(b, (unsigned)(24 - 8 * i)), 24);
        c = _mm512_add_epi32(c, _mm512_mullo_epi32(x, y));
    }
    return c;
}
#else
#define KERNEL       int8_avx512vnni
#define SERVES       "int8 by AVX512-VNNI"
#define dot(c, a, b) _mm512_dpbusd_epi32(c, a, b)
#endif

enum { ROWS = 14 };

typedef int word __attribute__((aligned(4), may_alias));

static inline __attribute__((always_inline)) void run_rows(const int rows, const struct int8_tile *t)
{
    __m512i acc[ROWS][2];
    const char *b = (const char *)t->b, *next = t->prefetch;
    const size_t lda = t->lda;
    const __m512i zero = _mm512_setzero_si512();
    const __m512i o0 = _mm512_sub_epi32(zero, _mm512_loadu_si512(t->offset));
    const __m512i o1 = _mm512_sub_epi32(zero, _mm512_loadu_si512(t->offset + 16));
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        acc[i][0] = o0;
        acc[i][1] = o1;
    }
    for (int tap = 0; tap < t->taps; tap++) {
        /* Rows are addressed as three strides from every third pointer. */
        const uint8_t *a[(ROWS + 2) / 3];
#pragma GCC unroll 16
        for (int i = 0; i < (rows + 2) / 3; i++)
            a[i] = t->a + t->tap[tap] + (size_t)(3 * i) * lda;
        for (int k = t->channels; k > 0; k -= 4) {
            __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 64);
            __builtin_prefetch(next, 0, 2);
            next += t->prefetch_lines ? 64 : 0;
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                __m512i x =
                    _mm512_set1_epi32(*(const word *)(const void *)(a[i / 3] + (size_t)(i % 3) * lda));
                acc[i][0] = dot(acc[i][0], x, b0);
                acc[i][1] = dot(acc[i][1], x, b1);
            }
#pragma GCC unroll 16
            for (int i = 0; i < (rows + 2) / 3; i++)
                a[i] += 4;
            b += 4 * INT8_NR;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        _mm512_storeu_si512(t->c + i * INT8_NR, acc[i][0]);
        _mm512_storeu_si512(t->c + i * INT8_NR + 16, acc[i][1]);
    }
}

/* Rows past the last one are computed, too. */
static void run(int rows, const struct int8_tile *t)
{
    if (rows > 11)
        run_rows(14, t);
    else if (rows > 8)
        run_rows(11, t);
    else if (rows > 4)
        run_rows(8, t);
    else if (rows > 2)
        run_rows(4, t);
    else
        run_rows(2, t);
}

/* Dot products of registers for some milliseconds. */
static double peak(void)
{
    enum { SUMS = 12 };
    __m512i acc[SUMS], a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2);
    struct timespec t0, t1;
    const int loops = 200000;
    for (int i = 0; i < SUMS; i++)
        acc[i] = _mm512_setzero_si512();
    clock_gettime(CLOCK_MONOTONIC, &t0);
    for (int i = 0; i < loops; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < SUMS; j++) {
            acc[j] = dot(acc[j], a, b);
            __asm__ volatile("" : "+v"(acc[j]));
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double seconds = (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
    return 2.0 * 64 * SUMS * loops / seconds;
}

const struct int8_kernel KERNEL = {.serves = SERVES, .zero = 128, .mr = ROWS, .run = run, .peak = peak};
