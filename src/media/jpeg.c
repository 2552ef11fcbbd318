/* JPEG files -> RGB through libjpeg-turbo, set as Pillow sets it: the accurate integer DCT, smooth
 * upsampling, colour conversion inside the library. Grey, YCbCr and RGB; CMYK and YCCK inverted, as Adobe
 * writes them; sequential, progressive, Huffman and arithmetic. Refuses other than 8 bits a sample and 1, 3
 * or 4 components, and progressive files of so many scans that they can only mean harm. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jerror.h>
#include <jpeglib.h>

#include "formats.h"

enum { MARKER_SOI = 0xd8, MARKER_SOS = 0xda, MARKER_DNL = 0xdc, MARKER_COM = 0xfe };

/* What the library's callbacks see. Lives across longjmp, so nothing in it is a local of the decoding
 * function.
 */
struct reader {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf jump;
    bool ended, no_memory, row; /* ROW: at least one was decoded */
    char words[JMSG_LENGTH_MAX];
    uint8_t *line; /* one row of CMYK samples */
    struct image *im;
};

/* What the header states. */
struct frame {
    int width, height, components;
};

/* ---- The header ---- */

static bool recognise(struct bytes file)
{
    return file.len >= 3 && file.at[0] == 0xff && file.at[1] == MARKER_SOI && file.at[2] == 0xff;
}

/* SOF0 to SOF15, but not DHT, JPG and DAC, which stand among them. */
static bool starts_frame(int marker)
{
    return (marker & 0xf0) == 0xc0 && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
}

/* SOI, EOI and the restart markers stand alone; so do the markers that no standard uses. */
static bool has_segment(int marker)
{
    return (marker >= 0xc0 && marker < 0xd0 && marker != 0xc8) || (marker >= MARKER_SOS && marker < 0xf0) ||
           marker == MARKER_COM;
}

static int read_frame_header(const uint8_t *s, size_t len, struct frame *f, struct error *err)
{
    if (len < 6)
        return error_set(err, ERR_FORMAT, "the header of the JPEG file is damaged");
    if (s[0] != 8)
        return error_set(err, ERR_FORMAT, "a JPEG file of %d bits a sample cannot be decoded: accepted are 8",
                         s[0]);
    if (s[5] != 1 && s[5] != 3 && s[5] != 4)
        return error_set(err, ERR_FORMAT,
                         "a JPEG file of %d components cannot be decoded: accepted are 1, 3 and 4", s[5]);
    *f = (struct frame){.width = (int)be16(s + 3), .height = (int)be16(s + 1), .components = s[5]};
    return 0;
}

/* Walks the markers up to the start of the first scan. */
static int find_frame(struct bytes file, struct frame *f, struct error *err)
{
    for (size_t at = 2; at + 1 < file.len;) {
        int marker = file.at[at + 1];
        if (file.at[at] != 0xff || marker == 0xff || !has_segment(marker)) {
            at += file.at[at] != 0xff || marker == 0xff ? 1 : 2;
            continue;
        }
        size_t there = file.len - at - 2, len = there >= 2 ? be16(file.at + at + 2) : 0;
        if (len < 2 || len > there)
            break;
        if (starts_frame(marker)) {
            int rc = read_frame_header(file.at + at + 4, len - 2, f, err);
            if (rc)
                return rc;
        }
        if (marker == MARKER_SOS && f->components)
            return 0;
        at += 2 + len;
    }
    return error_set(err, ERR_FORMAT, "the JPEG file ends before its image data");
}

static int size(struct bytes file, int64_t *width, int64_t *height, struct error *err)
{
    struct frame f = {0};
    int rc = find_frame(file, &f, err);
    *width = f.width;
    *height = f.height;
    return rc;
}

/* ---- The library's callbacks ---- */

static _Noreturn void on_error(j_common_ptr jpeg)
{
    struct reader *r = jpeg->client_data;
    r->no_memory |= jpeg->err->msg_code == JERR_OUT_OF_MEMORY;
    jpeg->err->format_message(jpeg, r->words);
    longjmp(r->jump, 1);
}

static void on_message(j_common_ptr jpeg)
{
    (void)jpeg;
}

static void on_source(j_decompress_ptr jpeg)
{
    (void)jpeg;
}

/* A file that ends without the marker for it gets one, so that the library makes the most of what it has. It
 * asks again only where that marker fell inside something longer: then there is no more to be had. */
static boolean on_fill(j_decompress_ptr jpeg)
{
    static const JOCTET end[] = {0xff, JPEG_EOI};
    struct reader *r = jpeg->client_data;
    if (r->ended)
        ERREXIT(jpeg, JERR_INPUT_EOF);
    r->ended = true;
    r->source.next_input_byte = end;
    r->source.bytes_in_buffer = sizeof end;
    return TRUE;
}

static void on_skip(j_decompress_ptr jpeg, long n)
{
    struct jpeg_source_mgr *s = jpeg->src;
    while (n > 0 && (size_t)n > s->bytes_in_buffer) {
        n -= (long)s->bytes_in_buffer;
        on_fill(jpeg);
    }
    if (n > 0) {
        s->next_input_byte += n;
        s->bytes_in_buffer -= (size_t)n;
    }
}

/* Each scan of a progressive file goes over the whole picture, however few bytes it has. Real files have
 * about ten; allowed are 20, and for small pictures more. */
static void on_progress(j_common_ptr jpeg)
{
    struct reader *r = jpeg->client_data;
    if (r->jpeg.input_scan_number > 20 + IMAGE_PIXELS_MAX / (r->im->width * r->im->height)) {
        snprintf(r->words, sizeof r->words, "it has more than %d scans", r->jpeg.input_scan_number - 1);
        longjmp(r->jump, 1);
    }
}

/* ---- Pixels ---- */

static uint8_t scale(int a, int b)
{
    int t = a * b + 128;
    return (uint8_t)((t + (t >> 8)) >> 8); /* a * b / 255, rounded */
}

/* The library gives inverted CMYK, so a sample is what passes through each ink. */
static void cmyk_row(const uint8_t *in, int n, uint8_t *restrict out)
{
    for (int x = 0; x < n; x++, in += 4, out += 3) {
        for (int c = 0; c < 3; c++) {
            int v = in[3] - scale(255 - in[c], in[3]);
            out[c] = (uint8_t)(v < 0 ? 0 : v);
        }
    }
}

static void read_rows(struct reader *r)
{
    bool straight = r->jpeg.output_components == 3;
    for (int y = 0; y < r->im->height; y++) {
        JSAMPROW row = straight ? row_of(r->im, y) : r->line;
        jpeg_read_scanlines(&r->jpeg, &row, 1);
        if (!straight)
            cmyk_row(r->line, r->im->width, row_of(r->im, y));
        r->row = true;
    }
}

/* Decodes, or returns early with words. R is not local here, so what it holds survives a jump back. */
static void read_picture(struct reader *r, struct bytes file)
{
    if (setjmp(r->jump))
        return;
    r->jpeg.err = jpeg_std_error(&r->errors);
    r->errors.error_exit = on_error;
    r->errors.output_message = on_message;
    r->jpeg.client_data = r;
    jpeg_create_decompress(&r->jpeg);
    r->source = (struct jpeg_source_mgr){.next_input_byte = file.at,
                                         .bytes_in_buffer = file.len,
                                         .init_source = on_source,
                                         .fill_input_buffer = on_fill,
                                         .skip_input_data = on_skip,
                                         .resync_to_restart = jpeg_resync_to_restart,
                                         .term_source = on_source};
    r->jpeg.src = &r->source;
    r->progress.progress_monitor = on_progress;
    r->jpeg.progress = &r->progress;
    while (jpeg_read_header(&r->jpeg, FALSE) == JPEG_HEADER_TABLES_ONLY)
        continue;
    if ((int)r->jpeg.image_width != r->im->width || (int)r->jpeg.image_height != r->im->height) {
        snprintf(r->words, sizeof r->words, "it states two sizes");
        return;
    }
    r->jpeg.out_color_space = r->jpeg.num_components == 4 ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(&r->jpeg);
    read_rows(r);
}

static int decode(struct bytes file, struct image *im, struct error *err)
{
    struct reader r = {.im = im, .line = malloc((size_t)im->width * 4)};
    struct frame f = {0};
    int rc = 0;
    if (!r.line)
        return error_set(err, ERR_NOMEM, "no memory to decode a JPEG file of %d x %d", im->width, im->height);
    if (find_frame(file, &f, err) == 0 && f.components == 4) /* no ink is white */
        memset(im->rgb, 255, (size_t)im->width * (size_t)im->height * 3);
    read_picture(&r, file);
    if (r.no_memory)
        rc = error_set(err, ERR_NOMEM, "no memory to decode a JPEG file of %d x %d", im->width, im->height);
    else if (!r.row && !r.ended)
        rc = error_set(err, ERR_FORMAT, "the JPEG file cannot be decoded: %s", r.words);
    jpeg_destroy_decompress(&r.jpeg);
    free(r.line);
    return rc;
}

const struct picture_format format_jpeg = {"JPEG", recognise, size, decode};
