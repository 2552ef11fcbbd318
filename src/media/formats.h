/* What image.c, the one door, asks of each file format. A decoder gets the whole file in memory and a picture
 * of the size that it reported, its pixels black; it fills in what the file holds.
 *
 * Every decoder here answers a damaged file as Pillow does when it is told to tolerate truncation: what came
 * before the damage stays. A file that ends too early is a picture, if need be a blank one; a file that its
 * decoder refuses before the first row, with the data all there, is none (ERR_FORMAT). */
#ifndef LATENTD_MEDIA_FORMATS_H
#define LATENTD_MEDIA_FORMATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "image.h"

/* A file in memory; the caller's. */
struct bytes {
    const uint8_t *at;
    size_t len;
};

struct picture_format {
    const char *name;
    /* By its first bytes. */
    bool (*recognise)(struct bytes file);
    /* Width and height as the header has them, unchecked against any limit. Allocates nothing. ERR_FORMAT. */
    int (*size)(struct bytes file, int64_t *width, int64_t *height, struct error *err);
    /* IM has that size, and its pixels are black. ERR_FORMAT, ERR_NOMEM; IM stays the caller's. */
    int (*decode)(struct bytes file, struct image *im, struct error *err);
};

extern const struct picture_format format_png, format_jpeg, format_webp, format_bmp, format_gif;

static inline uint32_t be16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static inline uint32_t be32(const uint8_t *p)
{
    return be16(p) << 16 | be16(p + 2);
}

static inline uint32_t le16(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8;
}

static inline uint32_t le32(const uint8_t *p)
{
    return le16(p) | le16(p + 2) << 16;
}

/* The pixels of row Y. */
static inline uint8_t *row_of(const struct image *im, int y)
{
    return im->rgb + (size_t)y * (size_t)im->width * 3;
}

/* A palette whose entries are all their own index, or none at all (COUNT 0), means grey levels, and then
 * every index has one. In any other palette the indices beyond it are black. */
static inline void complete_palette(uint8_t (*rgb)[3], int count)
{
    bool grey = true;
    for (int i = 0; i < count; i++)
        grey = grey && rgb[i][0] == i && rgb[i][1] == i && rgb[i][2] == i;
    for (int i = count; i < 256; i++)
        rgb[i][0] = rgb[i][1] = rgb[i][2] = (uint8_t)(grey ? i : 0);
}

/* Every pixel of IM gets the colour RGB. */
static inline void fill_picture(struct image *im, const uint8_t rgb[3])
{
    for (int x = 0; x < im->width; x++)
        memcpy(im->rgb + 3 * (size_t)x, rgb, 3);
    for (int y = 1; y < im->height; y++)
        memcpy(row_of(im, y), im->rgb, (size_t)im->width * 3);
}

/* N indices -> N pixels. */
static inline void colour_row(const uint8_t (*rgb)[3], const uint8_t *in, int n, uint8_t *restrict out)
{
    for (int x = 0; x < n; x++, out += 3)
        memcpy(out, rgb[in[x]], 3);
}

#endif
