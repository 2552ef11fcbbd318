/* Row functions of the AMX tier: those of rows_avx512bf16.c, the same SiLU as in its convolutions
 * (winograd_rows_amx.c). */
#include "vec_bf16.h"

#include "rows_impl.h"

const struct row_ops rows_amx = ROW_OPS;
