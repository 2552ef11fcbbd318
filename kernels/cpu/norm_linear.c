/* linear of layer_norm without the normed rows in memory: a work item norms the rows of its block tile by
 * tile, right before its first panel of outputs meets them, and leaves them in its slab as the tiles that all
 * panels read (gemm.c).
 *
 * Bytes: x is read once instead of twice, and the normed rows are neither written nor read: 1 of the 3 or 4
 * times that lines of it pass. Numbers are normed and rounded as cpu_layer_norm() does it: the same bits. */
#include "gemm.h"

bool cpu_fuses_layer_norm(const struct backend *be, tensor x, const weight *w)
{
    return !w->int8 && gemm_takes_layer_norm(be, x, w);
}

int cpu_layer_norm_linear(struct backend *be, tensor y, tensor x, const weight *norm, float eps,
                          const weight *w, const struct linear_args *a, struct error *err)
{
    struct gemm_args g = gemm_linear(y, x, w, a);
    g.layer_norm = norm;
    g.layer_eps = eps;
    return gemm_run(be, &g, err);
}
