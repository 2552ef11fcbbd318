/* Matrix micro-kernel of the AVX-512 tier: fp32, 14 rows x 32 columns in 28 of the 32 registers. */
#include "vec_avx512.h"

#define MICRO_ROWS         14
#define MICRO_STEP         1
#define micro_b            vf
#define micro_load(p)      v_load(p)
#define micro_broadcast(p) v_broadcast(p)
#define micro_fma(a, b, c) v_fma(a, b, c)
#include "micro_impl.h"

const struct gemm_kernel gemm_avx512 = {
    .name = "avx512",
    .dtype = DTYPE_F32,
    .mr = MICRO_ROWS,
    .nr = 2 * VL,
    .m_align = 1,
    .k_unit = 1,
    .k_block = 320,
    .run = run,
    .peak = peak,
};
