/* GIF files -> RGB: the first frame on its canvas, through giflib. Pixels that the frame does not cover have
 * its transparent index if it names one, else index 0; transparent pixels show the colour of their palette
 * entry, as alpha is dropped everywhere. A frame that reaches beyond the canvas makes it larger. */
#include <stdlib.h>
#include <string.h>

#include <gif_lib.h>

#include "formats.h"

enum { GIFLIB_OK = 1 };

struct reader {
    GifFileType *gif;
    struct bytes rest; /* not read yet */
    bool ended;
    int transparent; /* index; -1: none */
};

static bool recognise(struct bytes file)
{
    return file.len >= 6 && (memcmp(file.at, "GIF87a", 6) == 0 || memcmp(file.at, "GIF89a", 6) == 0);
}

static int on_read(GifFileType *gif, GifByteType *to, int n)
{
    struct reader *r = gif->UserData;
    if ((size_t)n > r->rest.len) {
        r->ended = true;
        n = (int)r->rest.len;
    }
    memcpy(to, r->rest.at, (size_t)n);
    r->rest.at += n;
    r->rest.len -= (size_t)n;
    return n;
}

static int read_extension(struct reader *r)
{
    int code, ok;
    GifByteType *block; /* its length first; NULL after the last */
    for (ok = DGifGetExtension(r->gif, &code, &block); ok == GIFLIB_OK && block;
         ok = DGifGetExtensionNext(r->gif, &block)) {
        if (code == GRAPHICS_EXT_FUNC_CODE && block[0] >= 4 && block[1] & 1)
            r->transparent = block[4];
    }
    return ok;
}

/* The kind of the next block. Bytes that begin none are passed over, as Pillow does. */
static int next_block(struct reader *r, GifRecordType *type)
{
    while (r->rest.len && !memchr("!,;", *r->rest.at, 3)) {
        r->rest.at++;
        r->rest.len--;
    }
    return DGifGetRecordType(r->gif, type);
}

static int damaged(const struct reader *r, int code, struct error *err)
{
    const char *why = GifErrorString(code);
    if (code == D_GIF_ERR_NOT_ENOUGH_MEM)
        return error_set(err, ERR_NOMEM, "no memory to decode a GIF file");
    return error_set(err, ERR_FORMAT, "the GIF file %s before its first frame: %s",
                     r->ended ? "ends" : "is damaged", why ? why : "no frame in it");
}

/* Opens the file and reads up to the pixels of its first frame. The caller closes R in every case. */
static int open_first_frame(struct reader *r, struct bytes file, struct error *err)
{
    GifRecordType type = UNDEFINED_RECORD_TYPE;
    int code = 0;
    *r = (struct reader){.rest = file, .transparent = -1};
    r->gif = DGifOpen(r, on_read, &code);
    if (!r->gif)
        return damaged(r, code, err);
    while (next_block(r, &type) == GIFLIB_OK && type == EXTENSION_RECORD_TYPE) {
        if (read_extension(r) != GIFLIB_OK)
            return damaged(r, r->gif->Error, err);
    }
    if (type != IMAGE_DESC_RECORD_TYPE || DGifGetImageDesc(r->gif) != GIFLIB_OK)
        return damaged(r, r->gif->Error, err);
    return 0;
}

static void close_file(struct reader *r)
{
    if (r->gif)
        DGifCloseFile(r->gif, NULL); /* frees it whatever it answers */
    r->gif = NULL;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int size(struct bytes file, int64_t *width, int64_t *height, struct error *err)
{
    struct reader r;
    int rc = open_first_frame(&r, file, err);
    if (!rc) {
        const GifImageDesc *f = &r.gif->Image;
        *width = larger(r.gif->SWidth, (int64_t)f->Left + f->Width);
        *height = larger(r.gif->SHeight, (int64_t)f->Top + f->Height);
    }
    close_file(&r);
    return rc;
}

static void fill_colours(const GifFileType *gif, uint8_t (*rgb)[3])
{
    const ColorMapObject *map = gif->Image.ColorMap ? gif->Image.ColorMap : gif->SColorMap;
    int count = map ? map->ColorCount : 0;
    for (int i = 0; i < count && i < 256; i++) {
        rgb[i][0] = map->Colors[i].Red;
        rgb[i][1] = map->Colors[i].Green;
        rgb[i][2] = map->Colors[i].Blue;
    }
    complete_palette(rgb, count < 256 ? count : 256);
}

/* IN has the rows in the order of the file: interlaced, those are every 8th, the 4th ones between, and so on.
 */
static void place_rows(const GifImageDesc *f, const uint8_t (*rgb)[3], const uint8_t *in, struct image *im)
{
    static const int first[] = {0, 4, 2, 1}, step[] = {8, 8, 4, 2};
    for (int pass = 0; pass < (f->Interlace ? 4 : 1); pass++) {
        int dy = f->Interlace ? step[pass] : 1;
        for (int y = f->Interlace ? first[pass] : 0; y < f->Height; y += dy, in += f->Width)
            colour_row(rgb, in, f->Width, row_of(im, f->Top + y) + 3 * f->Left);
    }
}

static int decode_frame(struct reader *r, struct image *im, struct error *err)
{
    const GifImageDesc *f = &r->gif->Image;
    uint8_t rgb[256][3], blank = (uint8_t)(r->transparent < 0 ? 0 : r->transparent);
    size_t n = (size_t)f->Width * (size_t)f->Height;
    if (n == 0)
        return error_set(err, ERR_FORMAT, "the first frame of the GIF file has no pixels");
    uint8_t *pixels = malloc(n);
    if (!pixels)
        return error_set(err, ERR_NOMEM, "no memory to decode a GIF file of %d x %d", im->width, im->height);
    memset(pixels, blank, n);
    /* One call for all rows, so that a row cut short keeps its beginning. Damage is no error: what came
     * before it is the picture, and the rest is blank. */
    (void)DGifGetLine(r->gif, pixels, (int)n);
    fill_colours(r->gif, rgb);
    fill_picture(im, rgb[blank]);
    place_rows(f, (const uint8_t(*)[3])rgb, pixels, im);
    free(pixels);
    return 0;
}

static int decode(struct bytes file, struct image *im, struct error *err)
{
    struct reader r;
    int rc = open_first_frame(&r, file, err);
    if (!rc)
        rc = decode_frame(&r, im, err);
    close_file(&r);
    return rc;
}

const struct picture_format format_gif = {"GIF", recognise, size, decode};
