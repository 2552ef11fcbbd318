/* Row functions for 16-float vectors, with the instruction that rounds to bf16, and functions that are no
 * more exact than it needs. */
#include "vec_bf16.h"

#define EXP_FOR_BF16 v_exp_rough
#include "rows_impl.h"

const struct row_ops rows_avx512bf16 = ROW_OPS;
