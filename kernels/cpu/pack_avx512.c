/* Packing in AVX-512: sixteen rows of weights are turned into lines of sixteen columns, a block of 16 x 16
 * 32-bit words at a time in registers. Rows of 16-bit numbers are turned in words of two; the numbers that
 * belong together, channels 2i and 2i + 1 of a tap, are then picked from the words' halves.
 *
 * Bytes: each number is read and written once, in whole cache lines past the caches: nothing reads them soon,
 * and no line is fetched to be overwritten. */
#include <immintrin.h>

#include "tier.h"

enum { WORDS = 16 };

/* 16 rows of 16 words that are LD bytes apart -> DST[word][row]. */
static inline __attribute__((always_inline)) void turn(__m512i dst[WORDS], const char *src, size_t ld)
{
    __m512i a[WORDS], b[WORDS];
    for (int i = 0; i < WORDS; i++)
        a[i] = _mm512_load_si512(src + (size_t)i * ld);
    for (int i = 0; i < WORDS; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < WORDS; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; i++) { /* a[4k + i]: words i, 4 + i, 8 + i, 12 + i of rows 4k to 4k + 3 */
        b[i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88);
        b[4 + i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
        b[8 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
        b[12 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        dst[i] = _mm512_shuffle_i32x4(b[i], b[8 + i], 0x88);
        dst[8 + i] = _mm512_shuffle_i32x4(b[i], b[8 + i], 0xdd);
        dst[4 + i] = _mm512_shuffle_i32x4(b[4 + i], b[12 + i], 0x88);
        dst[12 + i] = _mm512_shuffle_i32x4(b[4 + i], b[12 + i], 0xdd);
    }
}

/* The 16-bit numbers at place K of all rows, in the low halves of the words. */
static inline __m512i low(const __m512i *word, int k)
{
    return k % 2 ? _mm512_srli_epi32(word[k / 2], 16)
                 : _mm512_and_si512(word[k / 2], _mm512_set1_epi32(0xffff));
}

/* The same in the high halves. */
static inline __m512i high(const __m512i *word, int k)
{
    return k % 2 ? _mm512_andnot_si512(_mm512_set1_epi32(0xffff), word[k / 2])
                 : _mm512_slli_epi32(word[k / 2], 16);
}

static void write_pairs(const struct pack_block *b, const __m512i *word)
{
    for (int t = 0; t < b->taps; t++) {
        char *dst = b->dst + (size_t)tap_slot(t, b->taps, b->by_columns) * b->tap_bytes;
        for (int c = 0; c < b->channels; c += 2, dst += b->line) {
            int k = c * b->taps + t;
            _mm512_stream_si512((__m512i *)dst, b->taps == 1
                                                    ? word[k / 2]
                                                    : _mm512_or_si512(low(word, k), high(word, k + b->taps)));
        }
    }
}

static void write_alone(const struct pack_block *b, const __m512i *word, size_t size)
{
    for (int t = 0; t < b->taps; t++) {
        char *dst = b->dst + (size_t)tap_slot(t, b->taps, b->by_columns) * b->tap_bytes;
        for (int c = 0; c < b->channels; c++, dst += b->line) {
            int k = c * b->taps + t;
            if (size == 4)
                _mm512_stream_si512((__m512i *)dst, word[k]);
            else
                _mm256_storeu_si256((__m256i *)dst, _mm512_cvtepi32_epi16(low(word, k)));
        }
    }
}

void pack_avx512(const struct pack_block *b, bool pairs, size_t size)
{
    enum { MOST = 4096 }; /* words of a row: 512 fp32 numbers, or two channels of as many taps as there are */
    __m512i word[MOST];
    int words = (int)(((size_t)b->channels * (size_t)b->taps * size + 63) / 64 * WORDS);
    for (int i = 0; i < words; i += WORDS)
        turn(word + i, b->rows + (size_t)i * 4, b->row_bytes);
    if (pairs)
        write_pairs(b, word);
    else
        write_alone(b, word, size);
    _mm_sfence();
}
