/* Pictures in host memory, and PNG. */
#ifndef LATENTD_IMAGE_H
#define LATENTD_IMAGE_H

#include <stdint.h>

#include "buffer.h"

struct image {
    int width, height;
    uint8_t *rgb; /* 3 * width * height bytes, rows top to bottom; owned, malloc */
};

void image_free(struct image *im);
/* 8-bit RGB, no alpha, no metadata. Appends to OUT, or leaves it as it was: sides beyond 65536 are
 * ERR_INVALID. */
int png_encode(const struct image *im, struct buffer *out, struct error *err);

#endif
