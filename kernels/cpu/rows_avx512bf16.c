/* Row functions for 16-float vectors, with the instruction that rounds to bf16, and functions that are no
 * more exact than it needs. */
#include "vec_bf16.h"

#define SILU_FOR_BF16             v_silu_rough
#define EXP_FOR_BF16              v_exp_rough
#define STORE_TWO_BF16(p, lo, hi) _mm512_storeu_si512(p, vb_narrow(lo, hi))
#include "rows_impl.h"

const struct row_ops rows_avx512bf16 = ROW_OPS;
