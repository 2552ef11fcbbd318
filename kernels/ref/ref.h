/* Private to kernels/ref, and open to CPU tiers that fall back on one of its bodies: every slot as a
 * function, and how ref reads tensors and packs weights.
 *
 * Every op here takes tensors stored as F32, F16 or BF16 in any mixture, computes in fp32, rounds once at the
 * store, and honours the row pitch `ld` of inputs and outputs. Nothing is allocated outside pack. */
#ifndef LATENTD_REF_H
#define LATENTD_REF_H

#include "backend.h"
#include "half.h"

#define REF_DECLARE(name, args) int ref_##name args;
OPS_LIST(REF_DECLARE)

/* memory.c: memory for regions and packed weights, 64-byte aligned, on huge pages from 64 KB on. Any thread.
 */
int ref_mem_alloc(struct backend *be, size_t bytes, void **mem, struct error *err);
void ref_mem_free(struct backend *be, void *mem, size_t bytes);

/* Row ROW (counted over n, h, w) of X: its C channels. */
static inline void *ref_row(tensor x, size_t row)
{
    return (char *)x.data + row * (size_t)x.ld * dtype_size(x.dtype);
}

static inline size_t ref_row_index(tensor x, int n, int h, int w)
{
    return ((size_t)n * (size_t)x.h + (size_t)h) * (size_t)x.w + (size_t)w;
}

/* A packed matrix: outputs in blocks of REF_LANES so that one input meets REF_LANES weights side by side.
 * w [blocks][KH * KW][I][REF_LANES], then bias [blocks][REF_LANES] (zeros when there is none). The outputs
 * past O are zeros. WEIGHT_GEGLU has the blocks of the value half first and those of the gate half behind
 * them. */
enum { REF_LANES = 32 };

static inline int ref_blocks(const weight *w)
{
    return w->kind == WEIGHT_GEGLU ? 2 * ((w->out_c / 2 + REF_LANES - 1) / REF_LANES)
                                   : (w->out_c + REF_LANES - 1) / REF_LANES;
}

/* The weights of output block BLOCK at kernel position TAP: [I][REF_LANES]. */
static inline float *ref_block(const weight *w, int block, int tap)
{
    size_t taps = (size_t)w->kh * (size_t)w->kw;
    return (float *)w->packed + ((size_t)block * taps + (size_t)tap) * (size_t)w->in_c * REF_LANES;
}

/* Where w->int8: bias [blocks][REF_LANES], scales [blocks][REF_LANES], then the numbers, laid out as above.
 */
static inline float *ref_int8_scale(const weight *w, int block)
{
    return (float *)w->packed + (size_t)(ref_blocks(w) + block) * REF_LANES;
}

static inline int8_t *ref_int8_block(const weight *w, int block, int tap)
{
    size_t taps = (size_t)w->kh * (size_t)w->kw;
    return (int8_t *)ref_int8_scale(w, ref_blocks(w)) +
           ((size_t)block * taps + (size_t)tap) * (size_t)w->in_c * REF_LANES;
}

static inline float *ref_bias(const weight *w, int block)
{
    if (w->int8)
        return (float *)w->packed + (size_t)block * REF_LANES;
    return ref_block(w, ref_blocks(w), 0) + (size_t)block * REF_LANES;
}

/* acc[j] += sum over i of x[i] * w[i][j]; x is a row of C channels stored as TYPE. */
void ref_accumulate(float acc[REF_LANES], const void *x, enum dtype type, int c, const float *w);

/* The same in int8, see kernels/int8.h: the greatest magnitude of ROWS rows, and acc[j] += sum over i of
 * q(x[i]) * w[i][j]. */
float ref_int8_most(tensor x, size_t row, size_t rows);
void ref_int8_accumulate(int32_t acc[REF_LANES], const void *x, enum dtype type, int c, const int8_t *w,
                         float inverse);
/* acc[j] = sum[j] * scale of the output * SCALE */
void ref_int8_scaled(float acc[REF_LANES], const int32_t sum[REF_LANES], const weight *w, int block,
                     float scale);
int ref_int8_pack(struct backend *be, weight *w, const struct weight_source *src, struct error *err);
/* The output that lane LANE of block BLOCK holds, or -1 for padding. */
int ref_lane_output(const weight *w, int block, int lane);

float ref_activate(enum act act, float x);
/* row[c] = (row[c] - mean) * rstd * gamma[c] + beta[c], through ACT, for channels first .. first + count. */
void ref_normalize(tensor y, tensor x, size_t row, int first, int count, double mean, double rstd,
                   const weight *w, enum act act);

#endif
