/* What the forms of flash attention in AMX tiles share (attention_amx.c, attention_narrow.h,
 * attention_text.h): packing, 2^x, and how outputs leave. */
#ifndef LATENTD_CPU_ATTENTION_TILES_H
#define LATENTD_CPU_ATTENTION_TILES_H

#include <limits.h>
#include <math.h>
#include <string.h>

#include "flash.h"
#include "tile_amx.h"

enum {
    SIDE = 16,         /* rows of a tile, columns of fp32 */
    STEP = 32,         /* products of a dot */
    TILE = 1024,       /* bytes */
    BELOW = 16,        /* the first maximum is 2^-16: later ones may be 2^17 times larger */
    ONES = 0x3f803f80, /* a pair of bf16 */
    CAREFUL = 0x8040   /* MXCSR: denormals are zero, in and out: they would cost an assist each */
};

#define ALWAYS static inline __attribute__((always_inline)) /* numbers of tiles are to be constants */

#define BARRIER() __asm__ volatile("" : : : "memory") /* tile loads do not say that they read memory */

/* ---- Packing ---- */

/* 16 x 16 words */
VEC void transpose(__m512i r[SIDE])
{
    __m512i t[SIDE];
    for (int i = 0; i < SIDE; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        for (int h = 0; h < SIDE; h += 8) {
            t[h + i] = _mm512_shuffle_i32x4(r[h + i], r[h + 4 + i], 0x88);
            t[h + 4 + i] = _mm512_shuffle_i32x4(r[h + i], r[h + 4 + i], 0xdd);
        }
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    }
}

/* COUNT numbers of bf16, the rest zeros. */
VEC __m512i load_some(const char *p, int count)
{
    return count >= STEP ? _mm512_loadu_si512(p)
           : count > 0   ? _mm512_maskz_loadu_epi16((__mmask32)((1u << count) - 1), p)
                         : _mm512_setzero_si512();
}

/* 32 keys: K as A tiles [2][d_steps], V' as A tiles [d_tiles] of 16 channels x 32 keys. */
static void pack_keys(char *dst, const char *k, size_t stride, int keys, int d)
{
    const int steps = flash_steps(d);
    for (int key = 0; key < FLASH_KEYS; key++)
        for (int i = 0; i < steps; i++)
            _mm512_storeu_si512(dst + (key / SIDE * steps + i) * TILE + key % SIDE * 64,
                                key < keys
                                    ? load_some(k + (size_t)key * stride + (size_t)i * 64, d - i * STEP)
                                    : _mm512_setzero_si512());
}

VEC __m512i load_pair(const char *v, size_t stride, int keys, int channels)
{
    if (channels <= 0)
        return _mm512_setzero_si512();
    const __mmask16 some = (__mmask16)(channels >= SIDE ? 0xffffu : (1u << channels) - 1);
    __m256i even = keys > 0 ? _mm256_maskz_loadu_epi16(some, v) : _mm256_setzero_si256();
    __m256i odd = keys > 1 ? _mm256_maskz_loadu_epi16(some, v + stride) : _mm256_setzero_si256();
    return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

static void pack_values(char *dst, const char *v, size_t stride, int keys, int d)
{
    for (int i = 0; i < flash_tiles(d); i++) {
        __m512i r[SIDE];
        for (int j = 0; j < SIDE; j++)
            r[j] =
                load_pair(v + (size_t)(2 * j) * stride + (size_t)i * 32, stride, keys - 2 * j, d - i * SIDE);
        transpose(r);
        if (i == d / SIDE)
            r[d % SIDE] = _mm512_set1_epi32(ONES);
        for (int j = 0; j < SIDE; j++)
            _mm512_storeu_si512(dst + i * TILE + j * 64, r[j]);
    }
}

static void pack(char *k_dst, char *v_dst, const struct flash_rows *k, const struct flash_rows *v, int keys,
                 int d)
{
    pack_keys(k_dst, k->data, k->stride, keys, d);
    pack_values(v_dst, v->data, v->stride, keys, d);
}

/* ---- Weights ---- */

/* A weight begins as a 16-bit number with seven places behind the point, log2 of the weight + 127: that is
 * 2^x in bf16 but for the curve of the mantissa, which a table of 128 bytes has. Rounding x to 1/128 adds
 * 0.16 % to the 0.17 % that rounding to bf16 costs a weight in the mean square. */
struct curve {
    __m512i low, high;
};

enum { UNITS = 128 };
#define ZERO    0x1p23f                              /* plus a whole number n: its last 16 bits are n */
#define HIGHEST (ZERO + (127 - BELOW) * UNITS + 0.f) /* what the first maximum becomes */

/* 2^x to the last digits of fp32. */
VEC vf exp2_fp32(vf x)
{
    vf r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf p = v_set1(1.5403530e-4f); /* ln^k 2 / k! */
    p = v_fma(p, r, v_set1(1.3333558e-3f));
    p = v_fma(p, r, v_set1(9.6181291e-3f));
    p = v_fma(p, r, v_set1(5.5504109e-2f));
    p = v_fma(p, r, v_set1(2.4022651e-1f));
    p = v_fma(p, r, v_set1(6.9314718e-1f));
    return _mm512_scalef_ps(v_fma(p, r, v_set1(1)), v_sub(x, r));
}

static struct curve make_curve(void)
{
    struct curve c;
    char mantissa[UNITS];
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = 0; i < UNITS; i += SIDE) {
        vf x = _mm512_cvtepi32_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(i)));
        vf y = v_fma(exp2_fp32(v_mul(x, v_set1(1.f / UNITS))), v_set1(UNITS), v_set1(-UNITS));
        _mm_storeu_si128((void *)(mantissa + i), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(y)));
    }
    memcpy(&c, mantissa, sizeof c);
    return c;
}

/* The byte of the table for the last seven bits of each byte. */
#ifdef LATENTD_EMULATE
VEC __m512i look_up(const struct curve *c, __m512i at)
{
    unsigned char byte[64];
    memcpy(byte, &at, sizeof at);
    for (int i = 0; i < 64; i++)
        byte[i] = ((const unsigned char *)c)[byte[i] % UNITS];
    return _mm512_loadu_si512(byte);
}
#else
VEC __m512i look_up(const struct curve *c, __m512i at)
{
    return _mm512_permutex2var_epi8(c->low, at, c->high);
}
#endif

/* Scores of sixteen queries as whole numbers, to be cut to 16 bits. Far too low ones, -infinity too, are
 * below 0, far too high ones above 65535. */
VEC __m512i exponents(const float *s, vf scale, vf minus)
{
    vf x = v_fma(v_load(s), scale, minus);
    return _mm512_sub_epi32(_mm512_castps_si512(x), _mm512_castps_si512(v_set1(ZERO)));
}

/* Logarithms, cut to 16 bits, to weights. */
VEC vb mantissa_of(const struct curve *c, __m512i x)
{
    return _mm512_ternarylogic_epi32(_mm512_set1_epi16(UNITS - 1), look_up(c, x), x, 0xca); /* mantissa : x */
}

/* Weights of two keys, side by side, as a row of the B tile that multiplies V' wants them. SEEN gets the bits
 * of all. */
VEC __m512i weigh_pair(const struct curve *c, const float *s, vf scale, vf minus, vb *seen)
{
    const __m512i side_by_side = _mm512_set4_epi32(0x0f0e0706, 0x0d0c0504, 0x0b0a0302, 0x09080100);
    __m512i x = _mm512_packus_epi32(exponents(s, scale, minus), exponents(s + SIDE, scale, minus));
    x = _mm512_shuffle_epi8(x, side_by_side);
    *seen = _mm512_or_si512(*seen, x);
    return mantissa_of(c, x);
}

/* Whether one of the weights is 2 or more, which numbers that were cut at 65535 are, too. */
VEC bool overflown(vb seen)
{
    return _mm512_test_epi16_mask(seen, _mm512_set1_epi16((short)0xc000)) != 0;
}

/* What makes the greatest score of a query the weight 2^-BELOW. */
VEC vf minus_for(vf top, vf scale)
{
    return v_fnma(top, scale, v_set1(HIGHEST));
}

/* The factor by which weights become less when MINUS becomes LOWER. */
VEC vf shrink_by(vf lower, vf minus)
{
    return exp2_fp32(v_mul(v_sub(lower, minus), v_set1(1.f / UNITS)));
}

/* ---- Output ---- */

/* Tiles of sums, APART floats from each other, times FACTOR, turned: sixteen queries from number AT on. */
static void put_rows(const struct flash_item *it, const float *o, size_t apart, vf factor, int at)
{
    const int d = it->d;
    for (int i = 0; i * SIDE < d; i++, o += apart) {
        __m512i r[SIDE];
        for (int j = 0; j < SIDE; j++)
            r[j] = _mm512_castps_si512(v_mul(v_load(o + j * SIDE), factor));
        transpose(r);
        for (int j = 0; j < SIDE && at + j < it->queries; j++) {
            char *y = it->y + (size_t)(at + j) * it->y_stride + (size_t)i * 32;
            if (d - i * SIDE >= SIDE)
                v_store_bf16(y, _mm512_castsi512_ps(r[j]));
            else
                v_store_bf16_n(y, _mm512_castsi512_ps(r[j]), d - i * SIDE);
        }
    }
}

/* Sixteen rows for all tiles but 2 and 3, which get ROWS. */
static void configure(int rows)
{
    struct tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.row_bytes[t] = 64;
        c.rows[t] = (uint8_t)(t == 2 || t == 3 ? rows : SIDE);
    }
    tile_configure(&c);
}

#endif
