/* See yuv.h. In whole numbers, so that the same frame gives the same bytes on every machine. */
#include "yuv.h"

#include <math.h>

enum { ONE = 1 << 16, LUMA_BLACK = 16, CHROMA_ZERO = 128 };

void yuv_matrix_init(struct yuv_matrix *m, double kr, double kb)
{
    const double luma = 219.0 / 255 * ONE, chroma = 112.0 / 255 * ONE;

    m->y[0] = (int)lrint(luma * kr);
    m->y[2] = (int)lrint(luma * kb);
    m->y[1] = (int)lrint(luma) - m->y[0] - m->y[2];
    m->u[0] = (int)lrint(-chroma * kr / (1 - kb));
    m->u[2] = (int)lrint(chroma);
    m->u[1] = -m->u[0] - m->u[2]; /* grey has no chroma, exactly */
    m->v[0] = (int)lrint(chroma);
    m->v[2] = (int)lrint(-chroma * kb / (1 - kr));
    m->v[1] = -m->v[0] - m->v[2];
}

static void luma_row(const int w[3], const uint8_t *rgb, int width, uint8_t *out)
{
    for (int x = 0; x < width; x++, rgb += 3)
        out[x] =
            (uint8_t)((w[0] * rgb[0] + w[1] * rgb[1] + w[2] * rgb[2] + LUMA_BLACK * ONE + ONE / 2) >> 16);
}

/* The sum of 8 with the weights 1 2 1 around column X of two rows; LEFT is X - 1, or X at the border. */
static int around(const uint8_t *top, const uint8_t *bottom, int left, int x, int c)
{
    int l = left * 3 + c, m = x * 3 + c, r = (x + 1) * 3 + c;

    return top[l] + bottom[l] + 2 * (top[m] + bottom[m]) + top[r] + bottom[r];
}

static void chroma_row(const struct yuv_matrix *m, const uint8_t *top, const uint8_t *bottom, int width,
                       uint8_t *u, uint8_t *v)
{
    const int offset = (CHROMA_ZERO * 8 + 4) * ONE;

    for (int x = 0; x < width; x += 2) {
        int left = x ? x - 1 : 0;
        int r = around(top, bottom, left, x, 0);
        int g = around(top, bottom, left, x, 1);
        int b = around(top, bottom, left, x, 2);
        u[x / 2] = (uint8_t)((m->u[0] * r + m->u[1] * g + m->u[2] * b + offset) >> 19);
        v[x / 2] = (uint8_t)((m->v[0] * r + m->v[1] * g + m->v[2] * b + offset) >> 19);
    }
}

void yuv_from_rgb(const struct yuv_matrix *m, const struct image *im, int width, int height,
                  uint8_t *const plane[3], const int stride[3])
{
    size_t row = (size_t)im->width * 3;

    for (int y = 0; y < height; y++)
        luma_row(m->y, im->rgb + (size_t)y * row, width, plane[0] + (ptrdiff_t)y * stride[0]);
    for (int y = 0; y < height / 2; y++) {
        const uint8_t *top = im->rgb + 2 * (size_t)y * row;
        chroma_row(m, top, top + row, width, plane[1] + (ptrdiff_t)y * stride[1],
                   plane[2] + (ptrdiff_t)y * stride[2]);
    }
}
