/* Row functions for 8-float vectors. */
#include "vec_avx2.h"

#include "rows_impl.h"

const struct row_ops rows_avx2 = ROW_OPS;
