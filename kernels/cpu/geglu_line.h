/* The end of a row of a GEGLU panel in bf16, for tiers that include vec_bf16.h and vec_gelu.h: gemm_joins()
 * of gemm.h. */
#ifndef LATENTD_CPU_GEGLU_LINE_H
#define LATENTD_CPU_GEGLU_LINE_H

#include "gemm.h"

/* The second half of LINE to Y; BEFORE: NULL, or the half line that belongs before it. STREAM: the line that
 * then is whole goes past the caches, and is aligned for that. */
VEC void store_half(char *y, const char *before, __m512i line, bool stream)
{
    if (!before) {
        _mm256_storeu_si256((__m256i *)(void *)y, _mm512_extracti64x4_epi64(line, 1));
        return;
    }
    line = _mm512_mask_loadu_epi64(line, 0xf, before);
    if (stream)
        _mm512_stream_si512((__m512i *)(void *)(y - GEMM_HALF_LINE), line);
    else
        _mm512_storeu_si512(y - GEMM_HALF_LINE, line);
}

/* VALUE * gelu(GATE) to Y, likewise. */
VEC void store_geglu(char *y, const char *before, vf value, vf gate, bool stream)
{
    vf v = v_mul(value, v_gelu(gate));
    store_half(y, before, vb_narrow(v, v), stream);
}

/* Whether lines of F, which begin BEFORE's length before y where there is one, may go past the caches. */
static inline bool streams_lines(const struct finish *f)
{
    size_t line = (uintptr_t)f->y - (f->before ? GEMM_HALF_LINE : 0);
    return f->stream && ((line | f->y_stride) & 63) == 0;
}

#endif
