/* conv2d of group_norm_silu without the normed picture: it is made where the convolution transforms its input
 * (winograd_rows.c) or reads it (conv_few.c), one picture after the other.
 *
 * Bytes of the first: x is read for V, with its halo, and before that for the sums, unless they were kept;
 * writing the normed picture and reading it are saved, 2 of the 5 times that lines of it pass (512 x 512 x
 * 128 in bf16: 67 MB each). SiLU is computed once more for the halo, a tenth of it. */
#include "gemm.h"
#include "winograd_rows.h"

enum { CHANNELS_MAX = 4096 };

size_t cpu_fused_bytes = 1 << 20;

static bool to_few(const weight *w)
{
    return w->form == FORM_FEW;
}

bool cpu_fuses_norm(const struct backend *be, tensor y, tensor x, const weight *w,
                    const struct conv2d_args *a)
{
    (void)be;
    if (to_few(w))
        return true;
    const struct gemm_args g = gemm_conv2d(y, x, w, a);
    x.n = 1; /* a picture's bits do not depend on the batch */
    return !w->int8 && x.c <= CHANNELS_MAX && tensor_count(x) * dtype_size(x.dtype) >= cpu_fused_bytes &&
           winograd_rows_suits(&g);
}

static tensor picture(tensor x, int n)
{
    if (!x.data || x.n == 1)
        return x;
    x.data = (char *)x.data + (size_t)n * (size_t)x.h * (size_t)x.w * (size_t)x.ld * dtype_size(x.dtype);
    x.n = 1;
    x.sums = 0; /* they are of the whole */
    return x;
}

/* By channels as they lie in V. */
static void reorder(float *to, const float *from, int channels)
{
    for (int c = 0; c < channels; c++)
        to[wr_channel(c)] = from[c];
}

int cpu_norm_silu_conv2d(struct backend *be, tensor y, tensor x, const struct norm_silu *norm,
                         const weight *w, const struct conv2d_args *a, struct error *err)
{
    (void)err;
    float scale[CHANNELS_MAX], shift[CHANNELS_MAX];
    for (int n = 0; n < x.n; n++) {
        const float *s, *t;
        group_norm_factors(be, picture(x, n), norm->w, norm->groups, norm->eps, &s, &t);
        struct gemm_args g = gemm_conv2d(picture(y, n), picture(x, n), w, a);
        g.add_bc = picture(a->add_bc, n);
        g.residual = picture(a->residual, n);
        g.normed = a->normed && x.n == 1;
        g.norm_scale = s;
        g.norm_shift = t;
        if (to_few(w)) {
            conv_few_run(be, &g);
            continue;
        }
        reorder(scale, s, x.c);
        reorder(shift, t, x.c);
        g.norm_scale = scale;
        g.norm_shift = shift;
        winograd_rows_run(be, &g);
    }
    return 0;
}
