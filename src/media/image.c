/* Pictures that clients send: PNG, JPEG, WebP, BMP and GIF files in memory become 8-bit RGB. The size comes
 * from the header and is checked before anything is allocated; the format from the first bytes, never from a
 * name. Refuses everything else that Pillow could open. */
#include <stdlib.h>
#include <string.h>

#include "formats.h"

static const struct picture_format *const formats[] = {&format_png, &format_jpeg, &format_webp, &format_bmp,
                                                       &format_gif};

void image_free(struct image *im)
{
    if (!im)
        return;
    free(im->rgb);
    *im = (struct image){0};
}

static const struct picture_format *find_format(struct bytes file, struct error *err)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if (formats[i]->recognise(file))
            return formats[i];
    }
    error_set(err, ERR_FORMAT, "%s: accepted are PNG, JPEG, WebP, BMP and GIF files",
              file.len ? "this is not a picture of a known format" : "the picture is an empty file");
    return NULL;
}

static int read_size(const struct picture_format *f, struct bytes file, int *width, int *height,
                     struct error *err)
{
    int64_t w = 0, h = 0;
    int rc = f->size(file, &w, &h, err);
    if (rc)
        return rc;
    if (w < 1 || h < 1)
        return error_set(err, ERR_INVALID, "a %s file of %lld x %lld pixels has no picture in it", f->name,
                         (long long)w, (long long)h);
    if (w > IMAGE_PIXELS_MAX / h)
        return error_set(err, ERR_INVALID,
                         "a %s file of %lld x %lld pixels is too large: accepted are %d pixels at most",
                         f->name, (long long)w, (long long)h, IMAGE_PIXELS_MAX);
    *width = (int)w;
    *height = (int)h;
    return 0;
}

int image_probe(const void *bytes, size_t len, int *width, int *height, struct error *err)
{
    struct bytes file = {bytes, len};
    const struct picture_format *f = find_format(file, err);
    return f ? read_size(f, file, width, height, err) : ERR_FORMAT;
}

int image_decode(const void *bytes, size_t len, struct image *out, struct error *err)
{
    struct error local = {0};
    struct bytes file = {bytes, len};
    *out = (struct image){0};
    err = err ? err : &local;
    const struct picture_format *f = find_format(file, err);
    if (!f)
        return ERR_FORMAT;
    int rc = read_size(f, file, &out->width, &out->height, err);
    if (rc)
        return rc;
    out->rgb = calloc((size_t)out->width * (size_t)out->height, 3);
    if (out->rgb)
        rc = f->decode(file, out, err);
    else
        rc = error_set(err, ERR_NOMEM, "no memory for a picture of %d x %d", out->width, out->height);
    if (rc)
        image_free(out);
    return rc;
}
