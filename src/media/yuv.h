/* 8-bit RGB to the planes that H.264 wants. */
#ifndef LATENTD_MEDIA_YUV_H
#define LATENTD_MEDIA_YUV_H

#include "image.h"

/* Weights of R, G and B in 1/65536, limited range. */
struct yuv_matrix {
    int y[3], u[3], v[3];
};

/* The matrix whose luma weighs red by KR and blue by KB: BT.601 0.299, 0.114; BT.709 0.2126, 0.0722. */
void yuv_matrix_init(struct yuv_matrix *m, double kr, double kb);
/* IM to yuv420p: Y of WIDTH x HEIGHT, both even and at most one less than IM's, U and V of half of each.
 * STRIDE: bytes from one row to the next, of each plane. Chroma lies on the left column of its four pixels,
 * as H.264 takes it unless told otherwise. */
void yuv_from_rgb(const struct yuv_matrix *m, const struct image *im, int width, int height,
                  uint8_t *const plane[3], const int stride[3]);

#endif
