/* The tile instructions that the AMX kernel uses, under one name each: the real ones, or (with
 * LATENTD_EMULATE) the same arithmetic in AVX-512F on a register file in memory, so that the kernel around
 * them can be tested anywhere. */
#ifndef LATENTD_CPU_TILE_AMX_H
#define LATENTD_CPU_TILE_AMX_H

#include <stdbool.h>

#include "vec_bf16.h"

/* Whether B of a call, BYTES of it, had better stay in the first level while tiles of A pass by: it fits, and
 * without several TAPS A is met once a panel. Else the other way round. */
static inline bool b_stays_near(int taps, int bytes)
{
    return taps == 1 && bytes <= 40 << 10;
}

/* Intel SDM, LDTILECFG: palette 1 has eight tiles of up to 16 rows of 64 bytes. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((packed));

#ifdef LATENTD_EMULATE

struct tile_file {
    struct tile_config config;
    _Alignas(64) uint32_t tile[8][16][16];
};

static _Thread_local struct tile_file tile_file;

static void tile_configure(const struct tile_config *c)
{
    __builtin_memset(&tile_file, 0, sizeof tile_file);
    tile_file.config = *c;
}
static void tile_done(void)
{
    __builtin_memset(&tile_file, 0, sizeof tile_file);
}
static void tile_zero_emulated(int t)
{
    __builtin_memset(tile_file.tile[t], 0, sizeof tile_file.tile[t]);
}
static void tile_load_emulated(int t, const void *p, size_t stride)
{
    tile_zero_emulated(t);
    for (int r = 0; r < tile_file.config.rows[t]; r++)
        __builtin_memcpy(tile_file.tile[t][r], (const char *)p + (size_t)r * stride,
                         tile_file.config.row_bytes[t]);
}
static void tile_store_emulated(int t, void *p, size_t stride)
{
    for (int r = 0; r < tile_file.config.rows[t]; r++)
        __builtin_memcpy((char *)p + (size_t)r * stride, tile_file.tile[t][r], tile_file.config.row_bytes[t]);
}
/* TDPBF16PS: for each row, the products of even and of odd positions are summed apart over the tile's 16
 * pairs, then added together, then to the accumulator. */
static inline void tile_dot_emulated(int c, int a, int b)
{
    for (int m = 0; m < tile_file.config.rows[c]; m++) {
        vf even = v_zero(), odd = v_zero();
        for (int k = 0; k < tile_file.config.row_bytes[a] / 4; k++) {
            vb x = _mm512_set1_epi32((int)tile_file.tile[a][m][k]), y = vb_load(tile_file.tile[b][k]);
            even = v_fma(vb_even(x), vb_even(y), even);
            odd = v_fma(vb_odd(x), vb_odd(y), odd);
        }
        float *acc = (float *)tile_file.tile[c][m];
        v_store(acc, v_add(v_load(acc), v_add(even, odd)));
    }
}
/* TDPBSSD: four products of signed bytes a lane. */
static inline void tile_dot_int8_emulated(int c, int a, int b)
{
    for (int m = 0; m < tile_file.config.rows[c]; m++) {
        __m512i acc = _mm512_loadu_si512(tile_file.tile[c][m]);
        for (int k = 0; k < tile_file.config.row_bytes[a] / 4; k++) {
            vb x = _mm512_set1_epi32((int)tile_file.tile[a][m][k]), y = vb_load(tile_file.tile[b][k]);
            for (unsigned i = 0; i < 32; i += 8)
                acc = _mm512_add_epi32(
                    acc, _mm512_mullo_epi32(_mm512_srai_epi32(_mm512_slli_epi32(x, 24 - i), 24),
                                            _mm512_srai_epi32(_mm512_slli_epi32(y, 24 - i), 24)));
        }
        _mm512_storeu_si512(tile_file.tile[c][m], acc);
    }
}
#define tile_dot_int8(c, a, b)  tile_dot_int8_emulated(c, a, b)
#define tile_zero(t)            tile_zero_emulated(t)
#define tile_load(t, p, stride) tile_load_emulated(t, p, stride)
/* what the first level need not keep */
#define tile_load_once(t, p, stride) tile_load_emulated(t, p, stride)
#define tile_store(t, p, stride)     tile_store_emulated(t, p, stride)
#define tile_dot(c, a, b)            tile_dot_emulated(c, a, b)

#else

/* Compilers take LDTILECFG to read eight bytes only: without the barrier they may drop the other stores to C.
 */
#define tile_configure(c)                                                                                    \
    do {                                                                                                     \
        __asm__ volatile("" : : "r"(c) : "memory");                                                          \
        _tile_loadconfig(c);                                                                                 \
    } while (0)
#define tile_done()                  _tile_release()
#define tile_zero(t)                 _tile_zero(t)
#define tile_load(t, p, stride)      _tile_loadd(t, p, stride)
#define tile_load_once(t, p, stride) _tile_stream_loadd(t, p, stride)
#define tile_store(t, p, stride)     _tile_stored(t, p, stride)
#define tile_dot(c, a, b)            _tile_dpbf16ps(c, a, b)
#define tile_dot_int8(c, a, b)       _tile_dpbssd(c, a, b)

#endif

/* A step of a panel of 32 columns, which passes by, to tiles 6 and 7. */
#define LOAD_PANEL(b)                                                                                        \
    do {                                                                                                     \
        tile_load_once(6, (b), 128);                                                                         \
        tile_load_once(7, (b) + 64, 128);                                                                    \
    } while (0)
/* Its products with the 16 rows in tile UPPER, to tiles 0 and 1, and those in LOWER, to 2 and 3. */
#define DOTS(upper, lower)                                                                                   \
    do {                                                                                                     \
        tile_dot(0, upper, 6);                                                                               \
        tile_dot(1, upper, 7);                                                                               \
        tile_dot(2, lower, 6);                                                                               \
        tile_dot(3, lower, 7);                                                                               \
    } while (0)

#endif
