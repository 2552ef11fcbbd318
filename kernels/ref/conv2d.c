/* torch.nn.Conv2d over NHWC, any kernel size: x [N, H, W, I] -> y [N, OH, OW, O]; and the temporal
 * convolution, over the frames instead of the rows and columns.
 * Epilogue in this order: bias, add_bc, activation, residual; one rounding at the store. */
#include "../int8.h"
#include "ref.h"

struct conv {
    tensor y, x;
    const weight *w;
    const struct conv2d_args *a;
    int stride, pad_y, pad_x; /* rows above and columns to the left */
    struct int8_scale scale;  /* of the output's inputs, where w->int8 */
};

/* Sums block BLOCK of output position (n, oy, ox) over the kernel and the input channels. */
static void conv_sum(const struct conv *cv, int block, int n, int oy, int ox, float acc[REF_LANES])
{
    int scale = cv->a->upsample ? 2 : 1;
    for (int ky = 0; ky < cv->w->kh; ky++) {
        for (int kx = 0; kx < cv->w->kw; kx++) {
            int iy = oy * cv->stride - cv->pad_y + ky, ix = ox * cv->stride - cv->pad_x + kx;
            if (iy < 0 || ix < 0 || iy >= cv->x.h * scale || ix >= cv->x.w * scale)
                continue; /* zero padding */
            const void *row = ref_row(cv->x, ref_row_index(cv->x, n, iy / scale, ix / scale));
            ref_accumulate(acc, row, cv->x.dtype, cv->x.c, ref_block(cv->w, block, ky * cv->w->kw + kx));
        }
    }
}

/* The same in int8. */
static void int8_sum(const struct conv *cv, int block, int n, int oy, int ox, float acc[REF_LANES])
{
    int scale = cv->a->upsample ? 2 : 1;
    int32_t sum[REF_LANES] = {0};
    for (int ky = 0; ky < cv->w->kh; ky++) {
        for (int kx = 0; kx < cv->w->kw; kx++) {
            int iy = oy * cv->stride - cv->pad_y + ky, ix = ox * cv->stride - cv->pad_x + kx;
            if (iy < 0 || ix < 0 || iy >= cv->x.h * scale || ix >= cv->x.w * scale)
                continue;
            const void *row = ref_row(cv->x, ref_row_index(cv->x, n, iy / scale, ix / scale));
            ref_int8_accumulate(sum, row, cv->x.dtype, cv->x.c,
                                ref_int8_block(cv->w, block, ky * cv->w->kw + kx), cv->scale.inverse);
        }
    }
    ref_int8_scaled(acc, sum, cv->w, block, cv->scale.scale);
}

/* One scale for each input of a 1x1 kernel, one for the picture where the kernel is larger. */
static void set_scale(struct conv *cv, int n, int oy, int ox)
{
    int scale = cv->a->upsample ? 2 : 1;
    size_t picture = (size_t)cv->x.h * (size_t)cv->x.w;
    if (cv->w->kh * cv->w->kw == 1)
        cv->scale = int8_scale_of(ref_int8_most(
            cv->x, ref_row_index(cv->x, n, oy * cv->stride / scale, ox * cv->stride / scale), 1));
    else if (oy == 0 && ox == 0)
        cv->scale = int8_scale_of(ref_int8_most(cv->x, (size_t)n * picture, picture));
}

static void conv_store(const struct conv *cv, int block, size_t row, int n, const float acc[REF_LANES])
{
    const float *bias = ref_bias(cv->w, block);
    const struct conv2d_args *a = cv->a;
    for (int j = 0; j < REF_LANES; j++) {
        size_t o = (size_t)(block * REF_LANES + j);
        if ((int)o >= cv->y.c)
            break;
        float v = acc[j] + bias[j];
        if (a->add_bc.data)
            v += half_load(ref_row(a->add_bc, (size_t)n), a->add_bc.dtype, o);
        v = ref_activate(a->act, v);
        if (a->residual.data)
            v += half_load(ref_row(a->residual, row), a->residual.dtype, o);
        half_store(ref_row(cv->y, row), cv->y.dtype, o, v);
    }
}

int ref_conv2d(struct backend *be, tensor y, tensor x, const weight *w, const struct conv2d_args *a,
               struct error *err)
{
    (void)be;
    (void)err;
    struct conv cv = {y, x, w, a, a->stride ? a->stride : 1, 0, 0, {0, 0}};
    if (!a->pad_end) {
        cv.pad_y = (w->kh - 1) / 2;
        cv.pad_x = (w->kw - 1) / 2;
    }
    for (int block = 0; block < ref_blocks(w); block++) {
        for (size_t row = 0; row < tensor_rows(y); row++) {
            int ox = (int)(row % (size_t)y.w), oy = (int)(row / (size_t)y.w % (size_t)y.h);
            int n = (int)(row / (size_t)y.w / (size_t)y.h);
            float acc[REF_LANES] = {0};
            if (w->int8) {
                set_scale(&cv, n, oy, ox);
                int8_sum(&cv, block, n, oy, ox, acc);
            } else {
                conv_sum(&cv, block, n, oy, ox, acc);
            }
            conv_store(&cv, block, row, n, acc);
        }
    }
    return 0;
}

/* Sums block BLOCK of position PLACE of frame FRAME, counted over all videos. */
static void temporal_sum(const struct conv *cv, int block, int frames, size_t frame, size_t place,
                         float acc[REF_LANES])
{
    size_t places = (size_t)cv->x.h * (size_t)cv->x.w;
    for (int k = 0; k < cv->w->kh; k++) {
        int f = (int)(frame % (size_t)frames) + k - cv->pad_y;
        if (f < 0 || f >= frames)
            continue; /* zero padding */
        size_t row = (frame - frame % (size_t)frames + (size_t)f) * places + place;
        ref_accumulate(acc, ref_row(cv->x, row), cv->x.dtype, cv->x.c, ref_block(cv->w, block, k));
    }
}

int ref_conv_temporal(struct backend *be, tensor y, tensor x, const weight *w, int frames,
                      const struct conv2d_args *a, struct error *err)
{
    (void)be;
    (void)err;
    struct conv cv = {y, x, w, a, 1, (w->kh - 1) / 2, 0, {0, 0}};
    size_t places = (size_t)y.h * (size_t)y.w;
    for (int block = 0; block < ref_blocks(w); block++) {
        for (size_t row = 0; row < tensor_rows(y); row++) {
            float acc[REF_LANES] = {0};
            temporal_sum(&cv, block, frames, row / places, row % places, acc);
            conv_store(&cv, block, row, (int)(row / places), acc);
        }
    }
    return 0;
}
