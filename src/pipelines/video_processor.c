/* Source: diffusers pipelines/stable_video_diffusion/pipeline_stable_video_diffusion.py
 * (_resize_with_antialiasing, _gaussian_blur2d), torch's bicubic interpolation. See video_processor.h. */
#include "video_processor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One axis of the picture: LENGTH numbers at STRIDE from each other become another LENGTH at OUT_STRIDE. */
struct axis {
    int length, out_length;
    size_t stride, out_stride;
};

/* The index I of a row of N numbers that is reflected at its ends, which are not repeated. */
static int reflect(int i, int n)
{
    if (n == 1)
        return 0;
    int period = 2 * (n - 1);
    i = abs(i) % period;
    return i < n ? i : period - i;
}

/* WEIGHT gets the kernel, at most ROOM numbers; returns how many, which is odd. */
static int gaussian(int length, int side, float *weight, int room)
{
    double factor = (double)length / side, sigma = fmax((factor - 1) / 2, 0.001);
    int size = (int)fmax(4 * sigma, 3);
    float sum = 0;
    size += size % 2 == 0;
    if (size > room)
        size = room;
    for (int i = 0; i < size; i++) {
        float x = (float)(i - size / 2), s = (float)sigma;
        weight[i] = expf(-(x * x) / (2 * (s * s)));
        sum += weight[i];
    }
    for (int i = 0; i < size; i++)
        weight[i] /= sum;
    return size;
}

static void blur_row(const struct axis *a, const float *in, const float *weight, int size, float *out)
{
    for (int i = 0; i < a->length; i++) {
        float sum = 0;
        for (int k = 0; k < size; k++)
            sum += weight[k] * in[(size_t)reflect(i + k - size / 2, a->length) * a->stride];
        out[(size_t)i * a->stride] = sum;
    }
}

/* The four weights of bicubic interpolation (A = -0.75) at T, 0 to 1 behind the second of them. */
static void cubic(float t, float w[4])
{
    const float a = -0.75f;
    float x[4] = {t + 1, t, 1 - t, 2 - t};
    for (int i = 0; i < 4; i++)
        w[i] = i == 1 || i == 2 ? ((a + 2) * x[i] - (a + 3)) * x[i] * x[i] + 1
                                : ((a * x[i] - 5 * a) * x[i] + 8 * a) * x[i] - 4 * a;
}

static void interpolate_row(const struct axis *a, const float *in, float *out)
{
    float step = a->out_length > 1 ? (float)(a->length - 1) / (float)(a->out_length - 1) : 0, w[4];
    for (int i = 0; i < a->out_length; i++) {
        float at = step * (float)i, sum = 0;
        int first = (int)floorf(at);
        cubic(at - (float)first, w);
        for (int k = 0; k < 4; k++) {
            int from = first - 1 + k, last = a->length - 1;
            sum += w[k] * in[(size_t)(from < 0 ? 0 : from > last ? last : from) * a->stride];
        }
        out[(size_t)i * a->out_stride] = sum;
    }
}

/* X [h, w, 3] → BLURRED of the same size, T its scratch. */
static void blur(const float *x, int h, int w, int side, float *weight, int room, float *t, float *blurred)
{
    struct axis across = {.length = w, .stride = 3}, down = {.length = h, .stride = 3 * (size_t)w};
    int size = gaussian(w, side, weight, room);
    for (size_t i = 0; i < 3 * (size_t)h; i++) {
        size_t row = i / 3 * 3 * (size_t)w + i % 3;
        blur_row(&across, x + row, weight, size, t + row);
    }
    size = gaussian(h, side, weight, room);
    for (size_t i = 0; i < 3 * (size_t)w; i++)
        blur_row(&down, t + i, weight, size, blurred + i);
}

/* X [h, w, 3] → OUT [side, side, 3]; T [h, side, 3] is scratch. */
static void interpolate(const float *x, int h, int w, int side, float *t, float *out)
{
    size_t line = 3 * (size_t)side;
    struct axis across = {.length = w, .out_length = side, .stride = 3, .out_stride = 3};
    struct axis down = {.length = h, .out_length = side, .stride = line, .out_stride = line};
    for (size_t i = 0; i < 3 * (size_t)h; i++)
        interpolate_row(&across, x + i / 3 * 3 * (size_t)w + i % 3, t + i / 3 * line + i % 3);
    for (size_t i = 0; i < line; i++)
        interpolate_row(&down, t + i, out + i);
}

int resize_with_antialiasing(const struct image *im, int side, float *out, struct error *err)
{
    int h = im->height, w = im->width, room = 2 * (h > w ? h : w) + 3;
    size_t count = 3 * (size_t)h * (size_t)w, between = 3 * (size_t)h * (size_t)side;
    float *x = malloc(count * sizeof *x), *t = malloc((count > between ? count : between) * sizeof *t);
    float *weight = malloc((size_t)room * sizeof *weight);
    int rc = 0;
    if (!x || !t || !weight) {
        rc = error_set(err, ERR_NOMEM, "no memory to resize a picture of %d x %d", w, h);
    } else {
        for (size_t i = 0; i < count; i++)
            x[i] = (float)im->rgb[i] / 255.0f * 2.0f - 1.0f;
        blur(x, h, w, side, weight, room, t, x);
        interpolate(x, h, w, side, t, out);
        for (size_t i = 0; i < 3 * (size_t)side * (size_t)side; i++)
            out[i] = (out[i] + 1.0f) / 2.0f;
    }
    free(weight);
    free(t);
    free(x);
    return rc;
}
