/* The ends of rows in bf16 whose lines, or pairs of lines, several panels share (gemm_join() of gemm.h), for
 * tiers that include vec_bf16.h and vec_gelu.h. */
#ifndef LATENTD_CPU_JOINED_H
#define LATENTD_CPU_JOINED_H

#include "gemm.h"

/* Whether rows of F can end along the way: whole panels of NR columns in bf16, what convolutions and linear
 * layers of the networks mostly are. */
static inline bool ends_along(const struct finish *f, int nr)
{
    if (f->y_type != DTYPE_BF16 || (f->residual && f->residual_type != DTYPE_BF16))
        return false;
    if (f->geglu)
        return f->cols == nr / 2 && !f->residual && !f->add;
    return f->cols == nr && (f->act == ACT_NONE || f->act == ACT_GELU);
}

/* STREAM: past the caches; then Y is aligned for that. */
VEC void store_whole(char *y, __m512i line, bool stream)
{
    if (stream)
        _mm512_stream_si512((__m512i *)(void *)y, line);
    else
        _mm512_storeu_si512(y, line);
}

/* LINE to Y. BEFORE: NULL, or the line that belongs before it: memory takes both in the time of one. */
VEC void store_line(char *y, const char *before, __m512i line, bool stream)
{
    if (before)
        store_whole(y - 64, _mm512_loadu_si512(before), stream);
    store_whole(y, line, stream);
}

/* The second half of LINE to Y; BEFORE: so many BYTES that belong before it, whole halves, 96 at most. */
VEC void store_half(char *y, const char *before, int bytes, __m512i line, bool stream)
{
    if (bytes >= 64)
        store_whole(y - bytes, _mm512_loadu_si512(before), stream);
    if (bytes % 64 == 0) {
        _mm256_storeu_si256((__m256i *)(void *)y, _mm512_extracti64x4_epi64(line, 1));
        return;
    }
    line = _mm512_mask_loadu_epi64(line, 0xf, before + bytes - 32);
    store_whole(y - 32, line, stream);
}

/* VALUE * gelu(GATE) to Y, likewise. */
VEC void store_geglu(char *y, const char *before, int bytes, vf value, vf gate, bool stream)
{
    vf v = v_mul(value, v_gelu(gate));
    store_half(y, before, bytes, vb_narrow(v, v), stream);
}

/* Whether lines of F, which begin where its `before` does, may go past the caches. */
static inline bool streams_lines(const struct finish *f)
{
    return f->stream && ((((uintptr_t)f->y - (uintptr_t)f->before_bytes) | f->y_stride) & 63) == 0;
}

#endif
