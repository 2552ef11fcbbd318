/* torch.nn.Conv2d over NHWC, any kernel size: x [N, H, W, I] -> y [N, OH, OW, O], as an implicit GEMM through
 * gemm.cuh, where tiling, traffic and registers stand. Every thread keeps the window corners of the few rows that it
 * copies; a tap is two additions and two comparisons, upsampling a shift. A 1x1 kernel without stride is a linear
 * layer. Channels that are not in whole 16 bytes (the first layers: 3 or 4) are gathered number by number.
 *
 * The temporal convolution is the same over another picture: frames are its rows and all pixels of a frame its columns,
 * the kernel is 3x1. Only the rows of add_bc count otherwise, one a frame. SVD's at 25 frames of 72 x 128 x 320: 0.14
 * TFLOP and 295 MB (in and out), compute bound above K = 3 * 320. */
#include "gemm.cuh"

int gemm_positions(struct backend *be, const struct gemm &a, struct error *err)
{
    return gemm_in_vectors(a) ? gemm_run<POSITIONS>(be, a, err) : gemm_run<NUMBERS>(be, a, err);
}

/* What all convolutions share: Y and X as pictures of rows and columns. */
static int set_geometry(struct backend *be, struct gemm *a, tensor y, tensor x, const weight *w,
                        const struct conv2d_args *args, struct error *err)
{
    int rc = gemm_begin(be, a, y, x, w, args->add_bc, args->residual, err);
    if (rc)
        return rc;
    a->act = args->act;
    a->positions = a->add_positions = y.h * y.w;
    a->height = x.h;
    a->width = x.w;
    a->out_w = y.w;
    a->kh = w->kh;
    a->kw = w->kw;
    a->stride = args->stride ? args->stride : 1;
    a->pad_y = args->pad_end ? 0 : (w->kh - 1) / 2;
    a->pad_x = args->pad_end ? 0 : (w->kw - 1) / 2;
    a->up = args->upsample;
    return 0;
}

extern "C" int cuda_conv2d(struct backend *be, tensor y, tensor x, const weight *w, const struct conv2d_args *args,
                           struct error *err)
{
    struct gemm a;
    int rc = set_geometry(be, &a, y, x, w, args, err);
    if (rc)
        return rc;
    bool plain = w->kh == 1 && w->kw == 1 && x.h == y.h && x.w == y.w;
    return plain ? gemm_rows(be, a, err) : gemm_positions(be, a, err);
}

static tensor frames_as_rows(tensor x, int frames)
{
    x.n /= frames;
    x.w *= x.h;
    x.h = frames;
    return x;
}

extern "C" int cuda_conv_temporal(struct backend *be, tensor y, tensor x, const weight *w, int frames,
                                  const struct conv2d_args *args, struct error *err)
{
    struct gemm a;
    int rc = set_geometry(be, &a, frames_as_rows(y, frames), frames_as_rows(x, frames), w, args, err);
    if (rc)
        return rc;
    a.add_positions = y.h * y.w;
    return gemm_positions(be, a, err);
}
