/* How packed weights lie in the device's memory; pack.cu writes them. T is the activation type (be->dtype), every
 * address below is aligned to 16 bytes, and padding is zeros. These functions run on the host and give device
 * addresses, to be handed to a kernel.
 *
 *   matrix (conv2d, linear, GEGLU)   T w[rows][KH * KW][channels], then float bias[rows] (zeros when absent), then T bias[rows];
 *                                    channels: I rounded up to 8, rows: O rounded up to 8
 *   GEGLU                            rows in groups of 16: 8 of the value half, then the 8 of the gate half that
 *                                    belong to them; each half is rounded up to 8
 *   stacked parts (QKV)              one below the other, as the outputs are counted
 *   norm                             float gamma[O], padding to 4, float beta[O]
 *   embedding                        T table[O][stride], stride: C rounded up to 8 */
#ifndef LATENTD_CUDA_WEIGHTS_CUH
#define LATENTD_CUDA_WEIGHTS_CUH

#include "cuda.h"

static inline size_t round_up(size_t x, size_t unit)
{
    return (x + unit - 1) / unit * unit;
}

/* ---- WEIGHT_CONV2D, WEIGHT_LINEAR, WEIGHT_GEGLU ---- */

/* Rows of the matrix: a multiple of 8, of 16 for GEGLU. */
static inline size_t matrix_rows(const weight *w)
{
    return w->kind == WEIGHT_GEGLU ? 2 * round_up((size_t)w->out_c / 2, 8) : round_up((size_t)w->out_c, 8);
}

/* Input channels with their padding: a multiple of 8. */
static inline size_t matrix_channels(const weight *w)
{
    return round_up((size_t)w->in_c, 8);
}

/* Numbers from one row to the next: KH * KW times the channels. */
static inline size_t matrix_row_stride(const weight *w)
{
    return (size_t)w->kh * (size_t)w->kw * matrix_channels(w);
}

static inline size_t matrix_bytes(const weight *w)
{
    return matrix_rows(w) * (matrix_row_stride(w) * 2 + sizeof(float) + 2);
}

/* float [matrix_rows(w)], in the order of the rows. */
static inline float *matrix_bias(const weight *w)
{
    return (float *)((char *)w->packed + matrix_rows(w) * matrix_row_stride(w) * 2);
}

/* The same in T, for libraries that want it so. */
static inline void *matrix_bias16(const weight *w)
{
    return matrix_bias(w) + matrix_rows(w);
}

/* ---- WEIGHT_NORM ---- */

static inline const float *norm_gamma(const weight *w)
{
    return (const float *)w->packed;
}

static inline const float *norm_beta(const weight *w)
{
    return (const float *)w->packed + round_up((size_t)w->out_c, 4);
}

/* ---- WEIGHT_EMBEDDING: row ID starts at number ID * embedding_stride() of the table, which is of T ---- */

static inline const void *embedding_table(const weight *w)
{
    return w->packed;
}

static inline size_t embedding_stride(const weight *w)
{
    return round_up((size_t)w->in_c, 8);
}

#endif
