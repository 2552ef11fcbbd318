/* Pictures in host memory, and PNG. */
#ifndef LATENTD_IMAGE_H
#define LATENTD_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "buffer.h"

struct image {
    int width, height;
    uint8_t *rgb; /* 3 * width * height bytes, rows top to bottom; owned, malloc */
    bool nsfw;    /* what the safety checker said, where one ran */
};

void image_free(struct image *im);
/* 8-bit RGB, no alpha, no metadata. Appends to OUT, or leaves it as it was: sides beyond 65536 are
 * ERR_INVALID. */
int png_encode(const struct image *im, struct buffer *out, struct error *err);
/* The same file in pieces of some kilobytes, without keeping it: WRITE gets each of them; its negative
 * return, with words in ERR, ends the encoding with that code. */
struct png_sink {
    int (*write)(void *ctx, const void *data, size_t len, struct error *err);
    void *ctx;
};
int png_write(const struct image *im, const struct png_sink *sink, struct error *err);

/* ---- Pictures that clients send ---- */

/* Whole pictures of more pixels are refused from their header, as Pillow refuses decompression bombs: twice
 * its MAX_IMAGE_PIXELS. */
#define IMAGE_PIXELS_MAX 178956970

/* Width and height from the header of a PNG, JPEG, WebP, BMP or GIF file in memory, without decoding it.
 * ERR_FORMAT: none of these, or no sound header; ERR_INVALID: a side of zero, or more than IMAGE_PIXELS_MAX.
 */
int image_probe(const void *bytes, size_t len, int *width, int *height, struct error *err);
/* The picture as Pillow's Image.open(…).convert("RGB") gives it with LOAD_TRUNCATED_IMAGES: alpha dropped,
 * EXIF orientation ignored, first frame of a GIF, 16 bits cut to 8, rows that a truncated file lacks stay
 * blank. The errors of image_probe; on success OUT owns its pixels. */
int image_decode(const void *bytes, size_t len, struct image *out, struct error *err);

enum image_filter { FILTER_BICUBIC, FILTER_LANCZOS };
/* Pillow's Image.resize((width, height), filter) for 8-bit RGB, to the byte. OUT owns its pixels. */
int image_resize(const struct image *in, int width, int height, enum image_filter filter, struct image *out,
                 struct error *err);

#endif
