/* Row functions of the AMX tier: those of rows_avx512bf16.c, the same SiLU as in its convolutions
 * (winograd_rows_amx.c). */
#include "vec_bf16.h"

#define SILU_FOR_BF16             v_silu_rough
#define STORE_TWO_BF16(p, lo, hi) _mm512_storeu_si512(p, vb_narrow(lo, hi))
#include "rows_impl.h"

const struct row_ops rows_amx = ROW_OPS;
