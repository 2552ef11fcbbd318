/* What both forms of flash attention in AMX tiles share (attention_amx.c, attention_narrow.h): packing, 2^x,
 * and how outputs leave. */
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

/* 2^x, x <= 127, as numbers whose upper halves are the results rounded to bf16. */
VEC __m512i exp2_bf16(vf x)
{
    return _mm512_castps_si512(v_exp2_rough(x, 0x1p-8f));
}

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

/* Two rows of weights as a row of the B tile that multiplies V': their upper halves, side by side. */
VEC __m512i join_halves(__m512i even, __m512i odd)
{
    const __m512i upper =
        _mm512_set4_epi32(0x0f0e, 0x0b0a, 0x0706, 0x0302); /* halves go to the lower ones' place */
    return _mm512_mask_shuffle_epi8(odd, 0x3333333333333333, even, upper);
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

static void configure(void)
{
    struct tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.row_bytes[t] = 64;
        c.rows[t] = SIDE;
    }
    tile_configure(&c);
}

#endif
