/* Matrix micro-kernel of the AVX512-BF16 tier: pairs of bf16, fp32 sums, 14 rows x 32 columns. Same shape as
 * the fp32 kernel, half the steps: a step does two products a lane. */
#ifdef LATENTD_EMULATE
#define KERNEL gemm_avx512bf16_emulated
#define NAME   "avx512bf16-emulated"
#else
#define KERNEL gemm_avx512bf16
#define NAME   "avx512bf16"
#endif
#include "vec_bf16.h"

#define MICRO_ROWS         14
#define MICRO_STEP         2
#define micro_b            vb
#define micro_load(p)      vb_load(p)
#define micro_broadcast(p) vb_broadcast(p)
#define micro_fma(a, b, c) vb_dot(a, b, c)
#include "micro_impl.h"

const struct gemm_kernel KERNEL = {
    .name = NAME,
    .dtype = DTYPE_BF16,
    .mr = MICRO_ROWS,
    .nr = 2 * VL,
    .m_align = 1,
    .k_unit = 2,
    .k_block = 512,
    .run = run,
    .peak = peak,
};
