/* BMP files -> RGB: 1, 4 and 8 bits with a palette, plain or run-length encoded; 16, 24 and 32 bits with any
 * masks; rows bottom up or top down; the headers of OS/2 and of Windows. Its own decoder: no distribution
 * packages a library for it, and the format is a header and rows. Refuses JPEG and PNG inside a BMP.
 *
 * Runs of encoded pixels follow Microsoft's description to the letter where Pillow 10 departs from it (an odd
 * number of literal pixels in RLE4, jumps, lines left out). */
#include <string.h>

#include "formats.h"

enum { FILE_HEADER = 14, MASKS_AT = FILE_HEADER + 40 };
enum { PLAIN, RLE8, RLE4, MASKS };

struct bitmap {
    int64_t width, height;
    bool top_down;
    uint32_t bits, compression;
    uint32_t colours, entry; /* of the palette: how many, bytes each */
    size_t palette, pixels;  /* offsets; the file may end before them */
    uint32_t mask[3];        /* red, green, blue */
};

static bool recognise(struct bytes file)
{
    return file.len >= 2 && file.at[0] == 'B' && file.at[1] == 'M';
}

/* OS/2 1.x: 16-bit sides, palette entries of three bytes. */
static void read_short_header(const uint8_t *h, struct bitmap *b)
{
    b->width = le16(h + 4);
    b->height = le16(h + 6);
    b->bits = le16(h + 10);
    b->entry = 3;
}

static void read_long_header(const uint8_t *h, struct bitmap *b)
{
    b->width = le32(h + 4);
    b->height = le32(h + 8);
    b->top_down = h[11] == 0xff; /* a negative height */
    if (b->top_down)
        b->height = ((int64_t)1 << 32) - b->height;
    b->bits = le16(h + 14);
    b->compression = le32(h + 16);
    b->colours = le32(h + 32);
    b->entry = 4;
}

static bool known_kind(const struct bitmap *b)
{
    switch (b->bits) {
    case 1:
    case 4:
    case 8:
        return b->compression <= RLE4;
    case 16:
    case 24:
    case 32:
        return b->compression == PLAIN || b->compression == MASKS;
    default:
        return false;
    }
}

static bool in_one_piece(uint32_t mask)
{
    return mask == 0 || ((mask / (mask & -mask)) & (mask / (mask & -mask) + 1)) == 0;
}

/* Masks follow a header of 40 bytes, and are part of a longer one: the same place. */
static int read_masks(struct bytes file, struct bitmap *b, struct error *err)
{
    static const uint32_t rgb555[3] = {0x7c00, 0x3e0, 0x1f}, rgb888[3] = {0xff0000, 0xff00, 0xff};
    memcpy(b->mask, b->bits == 16 ? rgb555 : rgb888, sizeof b->mask);
    if (b->compression != MASKS)
        return 0;
    if (file.len < MASKS_AT + 12)
        return error_set(err, ERR_FORMAT, "the BMP file ends in its header");
    uint32_t mask[3] = {le32(file.at + MASKS_AT), le32(file.at + MASKS_AT + 4), le32(file.at + MASKS_AT + 8)};
    for (int c = 0; c < 3; c++) {
        if (!in_one_piece(mask[c]))
            return error_set(err, ERR_FORMAT, "the BMP file has a colour mask with a hole: %#x", mask[c]);
    }
    if (mask[0] | mask[1] | mask[2])
        memcpy(b->mask, mask, sizeof mask);
    return 0;
}

static bool known_header(uint32_t len)
{
    return len == 12 || len == 40 || len == 52 || len == 56 || len == 64 || len == 108 || len == 124;
}

static int read_header(struct bytes file, struct bitmap *b, struct error *err)
{
    const uint8_t *h = file.at + FILE_HEADER;
    uint32_t len = file.len >= FILE_HEADER + 4 ? le32(h) : 0;
    if (!known_header(len) || len > file.len - FILE_HEADER)
        return error_set(err, ERR_FORMAT, "the header of the BMP file is damaged");
    *b = (struct bitmap){.palette = FILE_HEADER + len, .pixels = le32(file.at + 10)};
    if (len == 12)
        read_short_header(h, b);
    else
        read_long_header(h, b);
    if (!known_kind(b))
        return error_set(err, ERR_FORMAT, "a BMP file of %u bits a pixel, compression %u, cannot be decoded",
                         b->bits, b->compression);
    if (b->bits <= 8) {
        b->colours = b->colours ? b->colours : 1u << b->bits;
        if (b->colours > 65536)
            return error_set(err, ERR_FORMAT, "the BMP file has a palette of %u colours", b->colours);
        if (b->pixels == 0)
            b->pixels = b->palette + (size_t)b->entry * b->colours;
        else if (b->pixels == b->palette) /* some writers forget the palette here */
            b->pixels += (size_t)4 * b->colours;
    } else if (b->pixels == 0)
        b->pixels = b->palette + (b->compression == MASKS && len == 40 ? 12 : 0);
    return read_masks(file, b, err);
}

static int size(struct bytes file, int64_t *width, int64_t *height, struct error *err)
{
    struct bitmap b;
    int rc = read_header(file, &b, err);
    if (!rc) {
        *width = b.width;
        *height = b.height;
    }
    return rc;
}

static void read_palette(struct bytes file, const struct bitmap *b, uint8_t (*rgb)[3])
{
    int count = 0;
    for (size_t at = b->palette; count < 256 && (uint32_t)count < b->colours; count++, at += b->entry) {
        if (at > file.len || file.len - at < b->entry)
            break;
        for (int c = 0; c < 3; c++)
            rgb[count][c] = file.at[at + 2 - (size_t)c];
    }
    complete_palette(rgb, count);
}

/* The row that stands at place Y in the file. */
static uint8_t *row_in_file(const struct bitmap *b, const struct image *im, int y)
{
    return row_of(im, b->top_down ? y : im->height - 1 - y);
}

/* 1 or 4 bits a pixel. */
static void indexed_row(const struct bitmap *b, const uint8_t (*rgb)[3], const uint8_t *in, int n,
                        uint8_t *out)
{
    uint32_t each = 8 / b->bits, mask = (1u << b->bits) - 1;
    for (uint32_t x = 0; x < (uint32_t)n; x++) {
        uint32_t byte = in[x / each], shift = 8 - b->bits - x % each * b->bits;
        memcpy(out + 3 * (size_t)x, rgb[byte >> shift & mask], 3);
    }
}

/* The fields of a pixel, cut to 8 bits where they are wider, and scaled to 8 bits. */
struct fields {
    int shift[3];
    uint32_t most[3];
    uint8_t value[3][256];
};

static void make_fields(const struct bitmap *b, struct fields *f)
{
    for (int c = 0; c < 3; c++) {
        uint32_t mask = b->mask[c];
        f->shift[c] = mask ? __builtin_ctz(mask) : 0;
        while (mask >> f->shift[c] > 255)
            f->shift[c]++;
        f->most[c] = mask >> f->shift[c];
        for (uint32_t v = 0; v <= f->most[c]; v++)
            f->value[c][v] = (uint8_t)(f->most[c] ? v * 255 / f->most[c] : 0);
    }
}

/* Whether each field is a byte of its own, as in nearly all files. */
static bool whole_bytes(const struct bitmap *b, const struct fields *f)
{
    bool all = b->bits >= 24;
    for (int c = 0; c < 3; c++)
        all = all && f->most[c] == 255 && f->shift[c] % 8 == 0 && f->shift[c] < (int)b->bits;
    return all;
}

static void byte_row(const struct bitmap *b, const struct fields *f, const uint8_t *in, int n,
                     uint8_t *restrict out)
{
    const uint8_t *red = in + f->shift[0] / 8, *green = in + f->shift[1] / 8, *blue = in + f->shift[2] / 8;
    for (size_t x = 0, step = b->bits / 8; x < (size_t)n; x++) {
        out[3 * x] = red[x * step];
        out[3 * x + 1] = green[x * step];
        out[3 * x + 2] = blue[x * step];
    }
}

static void masked_row(const struct bitmap *b, const struct fields *f, const uint8_t *in, int n,
                       uint8_t *restrict out)
{
    if (whole_bytes(b, f)) {
        byte_row(b, f, in, n, out);
        return;
    }
    for (int x = 0; x < n; x++, in += b->bits / 8, out += 3) {
        uint32_t pixel = b->bits == 32   ? le32(in)
                         : b->bits == 24 ? le16(in) | (uint32_t)in[2] << 16
                                         : le16(in);
        for (int c = 0; c < 3; c++)
            out[c] = f->value[c][pixel >> f->shift[c] & f->most[c]];
    }
}

/* Rows come in multiples of four bytes; the last one's padding may be missing. */
static void read_rows(struct bytes file, const struct bitmap *b, const uint8_t (*rgb)[3], struct image *im)
{
    size_t bytes = ((size_t)im->width * b->bits + 7) / 8, stride = (bytes + 3) / 4 * 4, at = b->pixels;
    struct fields fields;
    make_fields(b, &fields);
    for (int y = 0; y < im->height && at <= file.len && file.len - at >= bytes; y++, at += stride) {
        if (b->bits == 8)
            colour_row(rgb, file.at + at, im->width, row_in_file(b, im, y));
        else if (b->bits < 8)
            indexed_row(b, rgb, file.at + at, im->width, row_in_file(b, im, y));
        else
            masked_row(b, &fields, file.at + at, im->width, row_in_file(b, im, y));
    }
}

/* N pixels from (*X, Y) on; what does not fit into the row is dropped. PIXELS holds one byte (REPEAT) or as
 * many as are needed. */
static void put_run(const struct bitmap *b, const uint8_t (*rgb)[3], const uint8_t *pixels, bool repeat,
                    int n, int64_t *x, int64_t y, struct image *im)
{
    bool half = b->compression == RLE4;
    for (int i = 0; i < n && *x < im->width; i++, ++*x) {
        uint8_t p = pixels[repeat ? 0 : half ? i / 2 : i];
        memcpy(row_in_file(b, im, (int)y) + 3 * *x, rgb[!half ? p : i % 2 ? p & 15 : p >> 4], 3);
    }
}

/* Pairs of bytes: a count and what to repeat; or 0 and: 0 end of line, 1 end of picture, 2 a jump right and
 * up, else that many literal pixels, padded to 16 bits. */
static void read_runs(struct bytes file, const struct bitmap *b, const uint8_t (*rgb)[3], struct image *im)
{
    int64_t x = 0, y = 0;
    for (size_t at = b->pixels; at <= file.len && file.len - at >= 2 && y < im->height;) {
        int n = file.at[at], what = file.at[at + 1];
        const uint8_t *next = file.at + at + 2;
        size_t there = file.len - at - 2;
        at += 2;
        if (n)
            put_run(b, rgb, next - 1, true, n, &x, y, im);
        else if (what == 0) {
            x = 0;
            y++;
        } else if (what == 1)
            break;
        else if (what == 2) {
            if (there < 2)
                break;
            x += next[0];
            y += next[1];
            at += 2;
        } else {
            size_t bytes = b->compression == RLE4 ? ((size_t)what + 1) / 2 : (size_t)what;
            bool cut = bytes > there;
            if (cut)
                what = (int)(b->compression == RLE4 ? 2 * there : there);
            put_run(b, rgb, next, false, what, &x, y, im);
            if (cut)
                break;
            at += (bytes + 1) / 2 * 2;
        }
    }
}

static int decode(struct bytes file, struct image *im, struct error *err)
{
    struct bitmap b;
    uint8_t rgb[256][3];
    int rc = read_header(file, &b, err);
    if (rc)
        return rc;
    read_palette(file, &b, rgb);
    if (b.bits <= 8)
        fill_picture(im, rgb[0]);
    if (b.compression == RLE8 || b.compression == RLE4)
        read_runs(file, &b, (const uint8_t(*)[3])rgb, im);
    else
        read_rows(file, &b, (const uint8_t(*)[3])rgb, im);
    return 0;
}

const struct picture_format format_bmp = {"BMP", recognise, size, decode};
