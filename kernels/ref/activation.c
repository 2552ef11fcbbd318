/* The activations, and the product of one row of inputs with one block of weights. */
#include <math.h>

#include "ref.h"

float ref_activate(enum act act, float x)
{
    switch (act) {
    case ACT_SILU:
        return x / (1.0f + expf(-x));
    case ACT_GELU: /* the exact one: x * Phi(x) */
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case ACT_QUICK_GELU:
        return x / (1.0f + expf(-1.702f * x));
    case ACT_NONE:
        break;
    }
    return x;
}

void ref_accumulate(float acc[REF_LANES], const void *x, enum dtype type, int c, const float *w)
{
    float sum[REF_LANES];
    for (int j = 0; j < REF_LANES; j++)
        sum[j] = acc[j];
    for (int i = 0; i < c; i++) {
        float xi = half_load(x, type, (size_t)i);
        for (int j = 0; j < REF_LANES; j++)
            sum[j] += xi * w[i * REF_LANES + j];
    }
    for (int j = 0; j < REF_LANES; j++)
        acc[j] = sum[j];
}
