/* Matrix micro-kernel of the AVX2 tier: fp32, 6 rows x 16 columns in 12 of the 16 registers. */
#include "vec_avx2.h"

#define MICRO_ROWS         6
#define MICRO_STEP         1
#define micro_b            vf
#define micro_load(p)      v_load(p)
#define micro_broadcast(p) v_broadcast(p)
#define micro_fma(a, b, c) v_fma(a, b, c)
#include "micro_impl.h"

const struct gemm_kernel gemm_avx2 = {
    .name = "avx2",
    .dtype = DTYPE_F32,
    .mr = MICRO_ROWS,
    .nr = 2 * VL,
    .m_align = 1,
    .k_unit = 1,
    .k_block = 320,
    .run = run,
    .peak = peak,
};
