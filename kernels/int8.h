/* Matrices in int8: the arithmetic that ref and the CPU tiers share, to the last bit.
 *
 * Weights: q = round(w * (127 / most)), most the greatest |w| of an output channel, which keeps the scale
 * most / 127. Activations, at each call: the same, with a scale for each position where the kernel is 1x1
 * (linear layers too), for each picture where it is larger: one scale for all that an output sums. Symmetric,
 * to nearest even, so -128 never occurs. y = ((float)sum of q q' * scale of the output) * scale of the input,
 * then what every matrix product ends with, in fp32. Inputs that are no numbers make the scale no number, and
 * so the outputs. */
#ifndef LATENTD_INT8_H
#define LATENTD_INT8_H

#include <math.h>
#include <stdint.h>

#include "backend.h"

/* Whether SRC goes to int8 on a backend that was opened for it. Sums of 65536 products fit 32 bits whatever
 * their signs; a convolution that is computed as four smaller ones (upsample) is not worth a second kind of
 * those. */
static inline bool int8_takes(const struct weight_source *src)
{
    bool matrix = src->kind == WEIGHT_CONV2D || src->kind == WEIGHT_LINEAR || src->kind == WEIGHT_GEGLU;
    return src->int8 && matrix && !src->upsample && src->kh == src->kw &&
           (double)src->in_c * src->kh * src->kw <= 65536;
}

/* Whether BE keeps and multiplies it so. */
static inline bool int8_serves(const struct backend *be, const struct weight_source *src)
{
    return be->int8 && int8_takes(src) && !(be->int8_leaves && be->int8_leaves(src));
}

/* What numbers are divided by, and its inverse. */
struct int8_scale {
    float scale, inverse;
};

/* MOST: the greatest magnitude. Numbers so small that the inverse would be none are taken as zeros. */
static inline struct int8_scale int8_scale_of(float most)
{
    if (most < 0x1p-100f)
        return (struct int8_scale){0, 0};
    return (struct int8_scale){most / 127, 127 / most};
}

static inline int8_t int8_of(float x, float inverse)
{
    float q = rintf(x * inverse);
    return (int8_t)(q >= 127 ? 127 : q > -127 ? q : -127); /* no number: -127 */
}

#endif
