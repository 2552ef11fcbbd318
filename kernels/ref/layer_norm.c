/* torch.nn.LayerNorm over C, one row at a time. Mean and variance (biased, two passes) in double. */
#include <math.h>

#include "ref.h"

int ref_layer_norm(struct backend *be, tensor y, tensor x, const weight *w, float eps, struct error *err)
{
    (void)be;
    (void)err;
    for (size_t row = 0; row < tensor_rows(x); row++) {
        double sum = 0, squares = 0;
        for (int i = 0; i < x.c; i++)
            sum += (double)half_load(ref_row(x, row), x.dtype, (size_t)i);
        double mean = sum / x.c;
        for (int i = 0; i < x.c; i++) {
            double d = (double)half_load(ref_row(x, row), x.dtype, (size_t)i) - mean;
            squares += d * d;
        }
        ref_normalize(y, x, row, 0, x.c, mean, 1 / sqrt(squares / x.c + (double)eps), w, ACT_NONE);
    }
    return 0;
}
