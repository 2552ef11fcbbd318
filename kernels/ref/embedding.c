/* Token and timestep embeddings. */
#include <math.h>

#include "ref.h"

/* y[n][t] = tokens[ids[n][t]] + positions[t]. */
int ref_embed_tokens(struct backend *be, tensor y, const weight *tokens, const weight *positions,
                     const int32_t *ids, struct error *err)
{
    (void)be;
    (void)err;
    const float *table = tokens->packed, *place = positions->packed;
    for (size_t row = 0; row < tensor_rows(y); row++) {
        size_t c = (size_t)y.c, id = (size_t)ids[row], t = row % (size_t)y.w;
        for (size_t i = 0; i < c; i++)
            half_store(ref_row(y, row), y.dtype, i, table[id * c + i] + place[t * c + i]);
    }
    return 0;
}

/* diffusers' get_timestep_embedding, step by step in fp32 as torch computes it: with half = dim / 2,
 * frequency[i] = exp(-ln(10000) * i / (half - freq_shift)), then [sin(t f), cos(t f)], or [cos, sin] when
 * flipped; an odd dim ends in a zero. */
int ref_timestep_embedding(struct backend *be, tensor y, const float *timesteps, bool flip_sin_to_cos,
                           float freq_shift, struct error *err)
{
    (void)be;
    (void)err;
    int half = y.c / 2;
    for (int n = 0; n < y.n; n++) {
        void *row = ref_row(y, (size_t)n);
        for (int i = 0; i < half; i++) {
            float exponent = -9.2103403719761836f * (float)i / ((float)half - freq_shift);
            float angle = timesteps[n] * expf(exponent);
            half_store(row, y.dtype, (size_t)(flip_sin_to_cos ? half + i : i), sinf(angle));
            half_store(row, y.dtype, (size_t)(flip_sin_to_cos ? i : half + i), cosf(angle));
        }
        if (y.c % 2)
            half_store(row, y.dtype, (size_t)y.c - 1, 0.0f);
    }
    return 0;
}
