/* Ops that only move numbers: concat_channels, upsample_nearest, repeat_batch, from_host, to_host, to_rgb8.
 */
#include <math.h>

#include "ref.h"

/* Channels 0 .. x.c of X's row into Y's row from channel FIRST on. */
static void move_row(tensor y, size_t yrow, int first, tensor x, size_t xrow)
{
    for (size_t i = 0; i < (size_t)x.c; i++)
        half_store(ref_row(y, yrow), y.dtype, (size_t)first + i, half_load(ref_row(x, xrow), x.dtype, i));
}

int ref_concat_channels(struct backend *be, tensor y, tensor a, tensor b, struct error *err)
{
    (void)be;
    (void)err;
    for (size_t row = 0; row < tensor_rows(y); row++) {
        move_row(y, row, 0, a, row);
        move_row(y, row, a.c, b, row);
    }
    return 0;
}

int ref_upsample_nearest(struct backend *be, tensor y, tensor x, struct error *err)
{
    (void)be;
    (void)err;
    for (int n = 0; n < y.n; n++)
        for (int h = 0; h < y.h; h++)
            for (int w = 0; w < y.w; w++)
                move_row(y, ref_row_index(y, n, h, w), 0, x,
                         ref_row_index(x, n, h * x.h / y.h, w * x.w / y.w));
    return 0;
}

int ref_repeat_batch(struct backend *be, tensor y, tensor x, struct error *err)
{
    (void)be;
    (void)err;
    for (size_t row = 0; row < tensor_rows(y); row++)
        move_row(y, row, 0, x, row % tensor_rows(x));
    return 0;
}

int ref_from_host(struct backend *be, tensor y, const float *host, struct error *err)
{
    (void)be;
    (void)err;
    for (size_t row = 0; row < tensor_rows(y); row++)
        for (size_t i = 0; i < (size_t)y.c; i++)
            half_store(ref_row(y, row), y.dtype, i, host[row * (size_t)y.c + i]);
    return 0;
}

int ref_to_host(struct backend *be, tensor x, float *host, struct error *err)
{
    (void)be;
    (void)err;
    for (size_t row = 0; row < tensor_rows(x); row++)
        for (size_t i = 0; i < (size_t)x.c; i++)
            host[row * (size_t)x.c + i] = half_load(ref_row(x, row), x.dtype, i);
    return 0;
}

/* diffusers' VaeImageProcessor: denormalize, then numpy_to_pil's (x * 255).round(), which is half to even. A
 * NaN, which numpy leaves undefined, becomes 0. */
int ref_to_rgb8(struct backend *be, tensor x, uint8_t *host, struct error *err)
{
    (void)be;
    (void)err;
    for (size_t row = 0; row < tensor_rows(x); row++) {
        for (size_t i = 0; i < (size_t)x.c; i++) {
            float v = half_load(ref_row(x, row), x.dtype, i) * 0.5f + 0.5f;
            v = fminf(fmaxf(v, 0.0f), 1.0f);
            host[row * (size_t)x.c + i] = (uint8_t)nearbyintf(v * 255.0f);
        }
    }
    return 0;
}
