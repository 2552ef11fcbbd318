/* Pillow's Image.resize() for 8-bit RGB, to the byte (libImaging/Resample.c): a convolution along the rows,
 * then one along the columns, with the filter stretched when it shrinks, and its weights rounded to 22 bits
 * after the point. The first pass covers only the rows that the second reads; a side that keeps its length
 * has no pass. Refuses sides below 1, and pictures of more than IMAGE_PIXELS_MAX pixels. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

/* 8 bits of the sample and 2 of head room in a 32-bit sum: the weights of one pixel may be negative. */
enum { PRECISION_BITS = 32 - 8 - 2 };

struct kernel {
    double (*value)(double x);
    double support; /* zero beyond it */
};

/* What one output row or column reads: SIZE samples at most, and its weights. */
struct weights {
    int size;           /* room for so many weights an output sample */
    struct span *spans; /* one an output sample */
    int32_t *fixed;     /* SIZE an output sample, the first COUNT of its span are used */
};

struct span {
    int first, count;
};

static double bicubic(double x)
{
    static const double a = -0.5;
    x = fabs(x);
    if (x < 1.0)
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double sinc(double x)
{
    if (x == 0.0)
        return 1.0;
    x *= M_PI;
    return sin(x) / x;
}

static double lanczos(double x)
{
    return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

static void weights_free(struct weights *w)
{
    free(w->spans);
    free(w->fixed);
    *w = (struct weights){0};
}

/* The weights of one output sample, normalised to a sum of 1, then rounded half away from zero. W is room for
 * as many doubles as there are weights. */
static struct span weigh(const struct kernel *k, int in, double center, double stretch, double *w,
                         int32_t *fixed)
{
    double support = k->support * stretch, sum = 0.0;
    int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
    if (first < 0)
        first = 0;
    if (end > in)
        end = in;
    for (int i = 0; i < end - first; i++)
        sum += w[i] = k->value((i + first - center + 0.5) * (1.0 / stretch));
    for (int i = 0; i < end - first; i++) {
        double share = (sum != 0.0 ? w[i] / sum : w[i]) * (1 << PRECISION_BITS);
        fixed[i] = (int32_t)(share < 0 ? share - 0.5 : share + 0.5);
    }
    return (struct span){first, end - first};
}

/* Weights for a side of IN samples that becomes OUT samples long. */
static int weights_make(struct weights *w, const struct kernel *k, int in, int out, struct error *err)
{
    double scale = (double)in / out, stretch = scale < 1.0 ? 1.0 : scale;
    double *room = NULL;
    w->size = (int)ceil(k->support * stretch) * 2 + 1;
    if (out > INT_MAX / w->size / (int)sizeof(double)) /* Pillow's own bound */
        return error_set(err, ERR_NOMEM, "no memory to resize %d pixels to %d", in, out);
    w->spans = malloc((size_t)out * sizeof *w->spans);
    w->fixed = malloc((size_t)out * (size_t)w->size * sizeof *w->fixed);
    room = malloc((size_t)w->size * sizeof *room);
    if (!w->spans || !w->fixed || !room) {
        free(room);
        weights_free(w);
        return error_set(err, ERR_NOMEM, "no memory to resize %d pixels to %d", in, out);
    }
    for (int i = 0; i < out; i++)
        w->spans[i] = weigh(k, in, (i + 0.5) * scale, stretch, room, w->fixed + (size_t)i * (size_t)w->size);
    free(room);
    return 0;
}

static uint8_t clip8(int32_t sum)
{
    int32_t v = sum >> PRECISION_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* One row: IN any width, OUT of WIDTH pixels. */
static void resize_row(const struct weights *w, const uint8_t *in, int width, uint8_t *out)
{
    for (int x = 0; x < width; x++) {
        const int32_t *k = w->fixed + (size_t)x * (size_t)w->size;
        const uint8_t *p = in + (size_t)w->spans[x].first * 3;
        int32_t r = 1 << (PRECISION_BITS - 1), g = r, b = r;
        for (int i = 0; i < w->spans[x].count; i++) {
            r += p[3 * i] * k[i];
            g += p[3 * i + 1] * k[i];
            b += p[3 * i + 2] * k[i];
        }
        out[3 * x] = clip8(r);
        out[3 * x + 1] = clip8(g);
        out[3 * x + 2] = clip8(b);
    }
}

/* One output row from the COUNT rows at IN, each of N bytes. Sums are kept for a block of columns, so that
 * the compiler works on many at once. */
static void blend_rows(const uint8_t *restrict in, size_t n, const int32_t *restrict k, int count,
                       uint8_t *restrict out)
{
    enum { BLOCK = 512 };
    int32_t sum[BLOCK];
    for (size_t x = 0; x < n; x += BLOCK) {
        size_t len = n - x < BLOCK ? n - x : BLOCK;
        for (size_t i = 0; i < BLOCK; i++)
            sum[i] = 1 << (PRECISION_BITS - 1);
        for (int y = 0; y < count; y++) {
            const uint8_t *row = in + (size_t)y * n + x;
            for (size_t i = 0; i < len; i++)
                sum[i] += row[i] * k[y];
        }
        for (size_t i = 0; i < len; i++)
            out[x + i] = clip8(sum[i]);
    }
}

static int new_picture(struct image *im, int width, int height, struct error *err)
{
    *im = (struct image){.width = width, .height = height};
    im->rgb = malloc((size_t)width * (size_t)height * 3);
    if (!im->rgb)
        return error_set(err, ERR_NOMEM, "no memory for a picture of %d x %d", width, height);
    return 0;
}

/* ROWS rows of IN from row FIRST on, each WIDTH pixels wide afterwards. */
static int pass_along_rows(const struct image *in, const struct kernel *k, int width, int first, int rows,
                           struct image *out, struct error *err)
{
    struct weights w = {0};
    int rc = weights_make(&w, k, in->width, width, err);
    if (!rc)
        rc = new_picture(out, width, rows, err);
    for (int y = 0; !rc && y < rows; y++)
        resize_row(&w, in->rgb + (size_t)(first + y) * (size_t)in->width * 3, width,
                   out->rgb + (size_t)y * (size_t)width * 3);
    weights_free(&w);
    return rc;
}

/* IN holds the rows of the whole picture from row FIRST on. */
static int pass_along_columns(const struct image *in, const struct weights *w, int first, int height,
                              struct image *out, struct error *err)
{
    size_t n = (size_t)in->width * 3;
    int rc = new_picture(out, in->width, height, err);
    for (int y = 0; !rc && y < height; y++)
        blend_rows(in->rgb + (size_t)(w->spans[y].first - first) * n, n,
                   w->fixed + (size_t)y * (size_t)w->size, w->spans[y].count, out->rgb + (size_t)y * n);
    return rc;
}

static int check_sizes(const struct image *in, int width, int height, struct error *err)
{
    if (!in->rgb || in->width < 1 || in->height < 1)
        return error_set(err, ERR_INVALID, "a picture of %d x %d cannot be resized", in->width, in->height);
    if (width < 1 || height < 1 || width > IMAGE_PIXELS_MAX / height)
        return error_set(err, ERR_INVALID,
                         "a picture cannot be resized to %d x %d: accepted are sides from 1, and at most %d "
                         "pixels",
                         width, height, IMAGE_PIXELS_MAX);
    return 0;
}

int image_resize(const struct image *in, int width, int height, enum image_filter filter, struct image *out,
                 struct error *err)
{
    struct kernel k =
        filter == FILTER_BICUBIC ? (struct kernel){bicubic, 2.0} : (struct kernel){lanczos, 3.0};
    struct image between = {0};
    const struct image *from = in;
    struct weights down = {0};
    int first = 0, end = in->height;
    *out = (struct image){0};
    int rc = check_sizes(in, width, height, err);
    if (rc)
        return rc;
    if (height != in->height) {
        rc = weights_make(&down, &k, in->height, height, err);
        if (rc)
            return rc;
        first = down.spans[0].first;
        end = down.spans[height - 1].first + down.spans[height - 1].count;
    }
    if (width != in->width) {
        rc = pass_along_rows(in, &k, width, first, end - first, &between, err);
        from = &between;
    } else
        first = 0;
    if (!rc && height != in->height)
        rc = pass_along_columns(from, &down, first, height, out, err);
    else if (!rc && width != in->width) {
        *out = between;
        between.rgb = NULL;
    } else if (!rc) {
        rc = new_picture(out, width, height, err);
        if (!rc)
            memcpy(out->rgb, in->rgb, (size_t)width * (size_t)height * 3);
    }
    free(between.rgb);
    weights_free(&down);
    if (rc)
        image_free(out);
    return rc;
}
