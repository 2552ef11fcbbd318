/* Row functions for 16-float vectors, with the instruction that rounds to bf16. */
#include "vec_avx512.h"

#include "rows_impl.h"

const struct row_ops rows_avx512bf16 = ROW_OPS;
