/* The blocked matrix product behind conv2d and linear. */
#ifndef LATENTD_CPU_GEMM_H
#define LATENTD_CPU_GEMM_H

#include "tier.h"

struct gemm_args {
    tensor y, x; /* [N, OH, OW, O], [N, H, W, I] */
    const weight *w;
    int stride; /* 0 means 1 */
    bool upsample, pad_end;
    tensor add_bc, residual; /* data NULL: none */
    enum act act;
    bool geglu;
};

int gemm_run(struct backend *be, const struct gemm_args *a, struct error *err);

#endif
