/* Row functions for 16-float vectors. */
#include "vec_avx512.h"

#include "rows_impl.h"

const struct row_ops rows_avx512 = ROW_OPS;
