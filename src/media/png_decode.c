/* PNG files of every kind -> RGB: libpng inflates and undoes the filters, the rest is here. libpng is handed
 * the header and the image data and nothing else, so no other chunk can reach its code (gamma, profiles,
 * transparency and text are not wanted), and a cut file looks to it like a shorter one. Palette indices go
 * through it as grey samples, which they resemble bit for bit.
 *
 * Differs from Pillow in one thing: 16-bit grey is cut to its high byte as 16-bit colours are, where Pillow
 * turns all but the darkest 256 levels white. */
#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "formats.h"

enum { SIGNATURE = 8, HEADER = SIGNATURE + 12 + 13, CHUNK = 8, CRC = 4 };
enum { GREY = 0, COLOUR = 2, PALETTE = 3, GREY_ALPHA = 4, COLOUR_ALPHA = 6 };

static const uint8_t signature[SIGNATURE] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

/* Where the parts of a file are. */
struct parts {
    const uint8_t *palette; /* NULL: none */
    size_t palette_len;
    size_t data; /* offset of the first IDAT chunk */
    int depth, type, interlaced;
};

/* What libpng's callbacks see. Lives across longjmp, so nothing in it is a local of the decoding function. */
struct reader {
    png_structp png;
    png_infop info;
    jmp_buf jump;
    struct parts parts;
    struct bytes piece[4]; /* the file as libpng sees it */
    uint8_t header[HEADER], length[4];
    int at;                     /* the piece being read */
    bool ended, no_memory, row; /* ROW: at least one was decoded */
    char words[120];
    uint8_t *line; /* one row as libpng gives it */
    uint8_t *to;   /* the pixel where it goes */
    int count, step;
    uint8_t rgb_of[256][3];
    struct image *im;
};

static bool recognise(struct bytes file)
{
    return file.len >= SIGNATURE && memcmp(file.at, signature, SIGNATURE) == 0;
}

static bool sound_crc(const uint8_t *chunk, size_t len)
{
    uint32_t want = be32(chunk + CHUNK + len);
    return crc32(crc32(0, NULL, 0), chunk + 4, (uInt)(len + 4)) == want;
}

static bool known_kind(int depth, int type)
{
    switch (type) {
    case GREY:
        return depth == 1 || depth == 2 || depth == 4 || depth == 8 || depth == 16;
    case PALETTE:
        return depth == 1 || depth == 2 || depth == 4 || depth == 8;
    case COLOUR:
    case GREY_ALPHA:
    case COLOUR_ALPHA:
        return depth == 8 || depth == 16;
    default:
        return false;
    }
}

/* Walks the chunks up to the first IDAT; those that matter (their name starts with a capital) must be sound.
 */
static int find_parts(struct bytes file, struct parts *p, struct error *err)
{
    const uint8_t *h = file.at + SIGNATURE;
    if (file.len < HEADER || be32(h) != 13 || memcmp(h + 4, "IHDR", 4) != 0 || !sound_crc(h, 13))
        return error_set(err, ERR_FORMAT, "the header of the PNG file is damaged");
    *p = (struct parts){.depth = h[16], .type = h[17], .interlaced = h[20]};
    if (!known_kind(p->depth, p->type) || h[18] || h[19] || p->interlaced > 1)
        return error_set(err, ERR_FORMAT,
                         "the header of the PNG file is damaged: depth %d, colour type %d, compression %d, "
                         "filter %d, interlace %d",
                         h[16], h[17], h[18], h[19], h[20]);
    for (size_t at = HEADER; file.len - at >= CHUNK;) {
        const uint8_t *chunk = file.at + at;
        size_t len = be32(chunk);
        if (memcmp(chunk + 4, "IDAT", 4) == 0) {
            p->data = at;
            if (p->type == PALETTE && !p->palette)
                return error_set(err, ERR_FORMAT, "the PNG file has no palette, and its pixels ask for one");
            return 0;
        }
        bool matters = !(chunk[4] & 0x20);
        if (len > file.len - at - CHUNK || CRC > file.len - at - CHUNK - len ||
            memcmp(chunk + 4, "IEND", 4) == 0)
            break;
        if (matters && !sound_crc(chunk, len))
            return error_set(err, ERR_FORMAT,
                             "a chunk of the PNG file is damaged: wrong checksum at byte %zu", at);
        if (memcmp(chunk + 4, "PLTE", 4) == 0) {
            p->palette = chunk + CHUNK;
            p->palette_len = len;
        }
        at += CHUNK + len + CRC;
    }
    return error_set(err, ERR_FORMAT, "the PNG file ends before its image data");
}

static int size(struct bytes file, int64_t *width, int64_t *height, struct error *err)
{
    struct parts p;
    int rc = find_parts(file, &p, err);
    if (rc)
        return rc;
    *width = be32(file.at + SIGNATURE + CHUNK);
    *height = be32(file.at + SIGNATURE + CHUNK + 4);
    return 0;
}

/* The pieces that libpng reads: a header that says grey for palette, then the image data. Where a file ends
 * inside an IDAT chunk, that chunk's length is made what there is. */
static void cut_pieces(struct reader *r, struct bytes file)
{
    size_t at = r->parts.data;
    memcpy(r->header, file.at, HEADER);
    if (r->parts.type == PALETTE)
        r->header[25] = GREY;
    r->piece[0] = (struct bytes){r->header, HEADER};
    while (file.len - at >= CHUNK && memcmp(file.at + at + 4, "IDAT", 4) == 0) {
        size_t len = be32(file.at + at), there = file.len - at - CHUNK;
        if (len > there) {
            for (int i = 0; i < 4; i++)
                r->length[i] = (uint8_t)(there >> (24 - 8 * i));
            r->piece[2] = (struct bytes){r->length, 4};
            r->piece[3] = (struct bytes){file.at + at + 4, file.len - at - 4};
            break;
        }
        if (CRC > there - len) {
            at = file.len;
            break;
        }
        at += CHUNK + len + CRC;
    }
    r->piece[1] = (struct bytes){file.at + r->parts.data, at - r->parts.data};
    if (!r->piece[2].len)
        r->piece[3] = (struct bytes){file.at + at, file.len - at};
}

static _Noreturn void on_error(png_structp png, png_const_charp message)
{
    struct reader *r = png_get_error_ptr(png);
    snprintf(r->words, sizeof r->words, "%s", message);
    longjmp(r->jump, 1);
}

static void on_warning(png_structp png, png_const_charp message)
{
    (void)png;
    (void)message;
}

static png_voidp on_malloc(png_structp png, png_alloc_size_t n)
{
    struct reader *r = png_get_mem_ptr(png);
    void *p = malloc(n);
    if (!p)
        r->no_memory = true;
    return p;
}

static void on_free(png_structp png, png_voidp p)
{
    (void)png;
    free(p);
}

static void on_read(png_structp png, png_bytep to, size_t n)
{
    struct reader *r = png_get_io_ptr(png);
    while (n > 0) {
        struct bytes *p = &r->piece[r->at];
        size_t len = p->len < n ? p->len : n;
        if (len) {
            memcpy(to, p->at, len);
            p->at += len;
            p->len -= len;
            to += len;
            n -= len;
        } else if (++r->at == 4) {
            r->at = 3;
            r->ended = true;
            png_error(png, "the file ends too early");
        }
    }
}

/* What each sample of a picture without colours, or each index of a palette, looks like. Indices beyond the
 * palette are black. */
static void fill_colours(struct reader *r)
{
    const struct parts *p = &r->parts;
    int levels = p->depth < 8 ? 1 << p->depth : 256;
    for (int i = 0; i < 256 && p->type != PALETTE; i++)
        memset(r->rgb_of[i], i * 255 / (levels - 1), 3);
    for (size_t i = 0; p->type == PALETTE && i < 256 && 3 * i + 2 < p->palette_len; i++)
        memcpy(r->rgb_of[i], p->palette + 3 * i, 3);
}

/* The row that libpng gave goes where it belongs, every STEP-th pixel of it. */
static void place_row(struct reader *r)
{
    const uint8_t *in = r->line;
    uint8_t *restrict out = r->to;
    bool colour = r->parts.type == COLOUR || r->parts.type == COLOUR_ALPHA;
    int channels = (colour ? 3 : 1) + (r->parts.type >= GREY_ALPHA), step = 3 * r->step, n = r->count;
    for (int i = 0; i < n && colour; i++, in += channels, out += step)
        memcpy(out, in, 3);
    for (int i = 0; i < n && !colour; i++, in += channels, out += step)
        memcpy(out, r->rgb_of[*in], 3);
    r->row = true;
}

static void read_rows(struct reader *r)
{
    bool straight = r->parts.type == COLOUR; /* what libpng gives is what is wanted */
    r->count = r->im->width;
    r->step = 1;
    for (int y = 0; y < r->im->height; y++) {
        r->to = row_of(r->im, y);
        png_read_row(r->png, straight ? r->to : r->line, NULL);
        if (!straight)
            place_row(r);
        r->row = true;
    }
}

/* Adam7: seven passes, each a smaller picture of its own. */
static void read_passes(struct reader *r)
{
    static const struct pass {
        int x, y, dx, dy; /* its first pixel, and the steps to the next */
    } passes[7] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                   {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};
    for (int i = 0; i < 7; i++) {
        const struct pass *p = &passes[i];
        r->step = p->dx;
        r->count = (r->im->width - p->x + p->dx - 1) / p->dx;
        for (int y = p->y; r->count > 0 && y < r->im->height; y += p->dy) {
            r->to = row_of(r->im, y) + 3 * p->x;
            png_read_row(r->png, r->line, NULL);
            place_row(r);
        }
    }
}

/* libpng reads on after the last row, and where that fails it does not come back with the row that it has. */
static void rescue_last_row(struct reader *r)
{
    if (r->to && r->parts.type != COLOUR && !r->parts.interlaced &&
        png_get_current_row_number(r->png) == (png_uint_32)r->im->height)
        place_row(r);
    if (r->to && r->parts.interlaced && png_get_current_pass_number(r->png) == 7)
        place_row(r);
}

/* Decodes, or returns early with words. R is not local here, so what it holds survives a jump back. */
static void read_picture(struct reader *r)
{
    if (setjmp(r->jump)) {
        rescue_last_row(r);
        return;
    }
    r->png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, r, on_error, on_warning, r, on_malloc, on_free);
    r->info = r->png ? png_create_info_struct(r->png) : NULL;
    r->line = malloc((size_t)r->im->width * 4);
    if (!r->info || !r->line) {
        r->no_memory = true;
        return;
    }
    png_set_read_fn(r->png, r, on_read);
    png_set_user_limits(r->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_crc_action(r->png, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
    png_read_info(r->png, r->info);
    png_set_strip_16(r->png);
    png_set_packing(r->png);
    if (r->parts.interlaced)
        read_passes(r);
    else
        read_rows(r);
}

static int decode(struct bytes file, struct image *im, struct error *err)
{
    struct reader r = {.im = im};
    int rc = find_parts(file, &r.parts, err);
    if (rc)
        return rc;
    cut_pieces(&r, file);
    fill_colours(&r);
    if (r.parts.type == PALETTE)
        fill_picture(im, r.rgb_of[0]);
    read_picture(&r);
    if (r.no_memory)
        rc = error_set(err, ERR_NOMEM, "no memory to decode a PNG file of %d x %d", im->width, im->height);
    else if (!r.row && !r.ended)
        rc = error_set(err, ERR_FORMAT, "the PNG file cannot be decoded: %s", r.words);
    if (r.png)
        png_destroy_read_struct(&r.png, &r.info, NULL);
    free(r.line);
    return rc;
}

const struct picture_format format_png = {"PNG", recognise, size, decode};
