/* torch.nn.GroupNorm, alone and followed by SiLU. Mean and variance (biased, two passes) in double. */
#include <math.h>

#include "ref.h"

void ref_normalize(tensor y, tensor x, size_t row, int first, int count, double mean, double rstd,
                   const weight *w, enum act act)
{
    const float *gamma = w->packed, *beta = gamma + w->out_c;
    for (int i = first; i < first + count; i++) {
        double v = ((double)half_load(ref_row(x, row), x.dtype, (size_t)i) - mean) * rstd;
        float r = (float)(v * (double)gamma[i] + (double)beta[i]);
        half_store(ref_row(y, row), y.dtype, (size_t)i, ref_activate(act, r));
    }
}

/* Mean over channels first .. first + count of rows row0 .. row0 + rows of (x - center)^power, power 1 or 2.
 */
static double moment(tensor x, size_t row0, size_t rows, int first, int count, double center, int power)
{
    double sum = 0;
    for (size_t row = row0; row < row0 + rows; row++) {
        for (int i = first; i < first + count; i++) {
            double d = (double)half_load(ref_row(x, row), x.dtype, (size_t)i) - center;
            sum += power == 1 ? d : d * d;
        }
    }
    return sum / ((double)rows * count);
}

static void group_norm_act(tensor y, tensor x, const weight *w, int groups, float eps, enum act act)
{
    size_t rows = (size_t)x.h * (size_t)x.w;
    int count = x.c / groups;
    for (int n = 0; n < x.n; n++) {
        for (int g = 0; g < groups; g++) {
            size_t row0 = (size_t)n * rows;
            double mean = moment(x, row0, rows, g * count, count, 0, 1);
            double variance = moment(x, row0, rows, g * count, count, mean, 2);
            double rstd = 1 / sqrt(variance + (double)eps);
            for (size_t row = row0; row < row0 + rows; row++)
                ref_normalize(y, x, row, g * count, count, mean, rstd, w, act);
        }
    }
}

int ref_group_norm(struct backend *be, tensor y, tensor x, const weight *w, int groups, float eps,
                   struct error *err)
{
    (void)be;
    (void)err;
    group_norm_act(y, x, w, groups, eps, ACT_NONE);
    return 0;
}

int ref_group_norm_silu(struct backend *be, tensor y, tensor x, const weight *w, int groups, float eps,
                        struct error *err)
{
    (void)be;
    (void)err;
    group_norm_act(y, x, w, groups, eps, ACT_SILU);
    return 0;
}
