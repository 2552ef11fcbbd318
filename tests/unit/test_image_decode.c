/* Pictures that clients send: what Pillow makes of them, whole and cut (tests/unit/data/images, written by
 * scripts/export_image_goldens.py), hostile headers, and files that are no pictures. */
#include "test.h"

#include <sys/resource.h>
#include <time.h>
#include <zlib.h>

#include "image.h"

enum { FILE_MAX = 1 << 16, LINE = 1 << 14 };
#define FOLDER "tests/unit/data/images/"

struct file {
    unsigned char *bytes;
    size_t len;
};

/* Bytes in memory of their own, so that a sanitizer sees a read beyond the end. */
static struct file copy(const void *bytes, size_t len)
{
    struct file f = {malloc(len ? len : 1), len};
    memcpy(f.bytes, bytes, len);
    return f;
}

static struct file read_file(const char *name)
{
    static unsigned char room[FILE_MAX];
    char path[256];
    snprintf(path, sizeof path, FOLDER "%s", name);
    FILE *in = fopen(path, "rb");
    size_t len = in ? fread(room, 1, sizeof room, in) : 0;
    CHECK(in && len > 0, "%s", path);
    if (in)
        fclose(in);
    return copy(room, len);
}

static unsigned checksum(const struct image *im)
{
    return (unsigned)crc32(crc32(0, NULL, 0), im->rgb, (uInt)(im->width * im->height * 3));
}

/* The pixels of a lossy file may differ a little where the decoder's release does. */
static int as_close(const char *name, const struct image *im)
{
    char path[128];
    int worst = 0;
    snprintf(path, sizeof path, "%s.rgb", name);
    struct file want = read_file(path);
    if (want.len != (size_t)(im->width * im->height * 3))
        worst = 255;
    for (size_t i = 0; i < want.len && worst < 255; i++)
        worst = abs(want.bytes[i] - im->rgb[i]) > worst ? abs(want.bytes[i] - im->rgb[i]) : worst;
    free(want.bytes);
    return worst <= 2;
}

static int is_lossy(const char *name)
{
    return strstr(name, ".jpg") || strncmp(name, "lossy", 5) == 0;
}

TEST(whole_files_are_as_pillow_has_them)
{
    FILE *list = fopen(FOLDER "pictures.txt", "r");
    char name[100];
    int width, height, files = 0;
    unsigned want;
    while (CHECK(list != NULL) && fscanf(list, "%99s %d %d %x", name, &width, &height, &want) == 4) {
        struct file f = read_file(name);
        struct image im;
        struct error err = {0};
        int w = 0, h = 0;
        CHECK(image_probe(f.bytes, f.len, &w, &h, &err) == 0 && w == width && h == height, "%s: %d x %d %s",
              name, w, h, err.msg);
        CHECK(image_decode(f.bytes, f.len, &im, &err) == 0, "%s: %s", name, err.msg);
        CHECK(im.width == width && im.height == height && !im.nsfw, "%s: %d x %d", name, im.width, im.height);
        if (im.rgb)
            CHECK(checksum(&im) == want || (is_lossy(name) && as_close(name, &im)), "%s", name);
        image_free(&im);
        free(f.bytes);
        files++;
    }
    CHECK(files >= 60, "%d files", files);
    if (list)
        fclose(list);
}

/* LENGTH:CRC pairs of the line in TEXT against NAME cut at each length. */
static void check_cuts(const char *name, char *text)
{
    struct file f = read_file(name);
    size_t next = 0;
    char want[16] = "", *at = text;
    for (size_t len = 0; len < f.len; len++) {
        int used = 0;
        char crc[16], got[16] = "-";
        if (sscanf(at, "%zu:%15s%n", &next, crc, &used) == 2 && next == len) {
            memcpy(want, crc, sizeof want);
            at += used;
        }
        struct file part = copy(f.bytes, len);
        struct image im;
        struct error err = {0};
        int rc = image_decode(part.bytes, part.len, &im, &err);
        if (rc == 0)
            snprintf(got, sizeof got, "%08x", checksum(&im));
        CHECK(rc == 0 || ((rc == ERR_FORMAT || rc == ERR_INVALID) && err.msg[0] && !im.rgb), "%s at %zu: %d",
              name, len, rc);
        CHECK(strcmp(got, want) == 0, "%s at %zu of %zu: %s, Pillow %s: %s", name, len, f.len, got, want,
              err.msg);
        image_free(&im);
        free(part.bytes);
    }
    free(f.bytes);
}

TEST(cut_files_are_as_pillow_has_them)
{
    static char line[LINE];
    FILE *list = fopen(FOLDER "cuts.txt", "r");
    int files = 0;
    while (CHECK(list != NULL) && fgets(line, sizeof line, list)) {
        char *name = strtok(line, " ");
        check_cuts(name, strtok(NULL, "\n"));
        files++;
    }
    CHECK(files >= 55, "%d files", files);
    if (list)
        fclose(list);
}

/* Any answer will do that is an answer: a picture of the stated size, or words. */
static void check_sane(const unsigned char *bytes, size_t len, const char *what)
{
    struct file part = copy(bytes, len);
    struct image im;
    struct error err = {0};
    int w = 0, h = 0, rc = image_decode(part.bytes, part.len, &im, &err);
    if (rc == 0)
        CHECK(image_probe(part.bytes, part.len, &w, &h, &err) == 0 && w == im.width && h == im.height &&
                  im.rgb,
              "%s", what);
    else
        CHECK((rc == ERR_FORMAT || rc == ERR_INVALID || rc == ERR_NOMEM) && err.code == rc && err.msg[0] &&
                  !im.rgb,
              "%s: %d", what, rc);
    image_free(&im);
    free(part.bytes);
}

/* Every byte of every file in turn, changed in three ways; sizes that this makes large are left out, as they
 * say nothing and take long. */
TEST(damaged_files_are_answered)
{
    FILE *list = fopen(FOLDER "pictures.txt", "r");
    char name[100];
    while (CHECK(list != NULL) && fscanf(list, "%99s %*d %*d %*x", name) == 1) {
        struct file f = read_file(name);
        for (size_t i = 0; i < f.len; i++) {
            static const unsigned char flips[] = {0xff, 0x01, 0x80};
            for (size_t k = 0; k < 3; k++) {
                int w = 0, h = 0;
                f.bytes[i] ^= flips[k];
                if (image_probe(f.bytes, f.len, &w, &h, NULL) != 0 || (long)w * h < 20000)
                    check_sane(f.bytes, f.len, name);
                f.bytes[i] ^= flips[k];
            }
        }
        free(f.bytes);
    }
    if (list)
        fclose(list);
}

TEST(progressive_and_arithmetic_files_may_be_cut_anywhere)
{
    static const char *const names[] = {"progressive.jpg", "arithmetic.jpg"};
    for (size_t k = 0; k < 2; k++) {
        struct file f = read_file(names[k]);
        for (size_t len = 0; len < f.len; len++)
            check_sane(f.bytes, len, names[k]);
        free(f.bytes);
    }
}

/* What encoded runs miss stays blank, which in a picture with a palette is its first colour. */
TEST(cut_runs_keep_what_they_have)
{
    static const char *const names[] = {"rle8.bmp", "rle4.bmp"};
    for (size_t k = 0; k < 2; k++) {
        struct file f = read_file(names[k]);
        for (size_t len = 0; len < f.len; len++) {
            struct image im;
            int rc = image_decode(f.bytes, len, &im, NULL);
            CHECK(len < 54 ? rc == ERR_FORMAT : rc == 0, "%s at %zu: %d", names[k], len, rc);
            image_free(&im);
        }
        free(f.bytes);
    }
}

/* What Pillow 10.3 does otherwise: an odd number of literal pixels in RLE4, a line left out, a jump, and the
 * end before the last line. Colour i of the palette has i * 10 in all its channels. */
TEST(runs_are_read_as_microsoft_describes_them)
{
    static const unsigned char runs[] = {0, 5,    0x12, 0x34, 0x50, 0x90, /* 1 2 3 4 5, padded */
                                         0, 0,    0,    0, /* next line, and the one after it */
                                         0, 2,    1,    1, /* right 1, up 1 */
                                         9, 0x67,          /* 6 7 6 7 6, and no further than the line */
                                         0, 1};
    static const unsigned char want[4][6] = {
        {0, 6, 7, 6, 7, 6}, {0}, {0}, {1, 2, 3, 4, 5, 0}}; /* from the top */
    unsigned char bmp[54 + 64 + sizeof runs] = "BM";
    struct image im;
    struct error err = {0};
    bmp[10] = 54 + 64;
    bmp[14] = 40;
    bmp[18] = 6;
    bmp[22] = 4;
    bmp[28] = 4;
    bmp[30] = 2;
    for (int i = 0; i < 16; i++)
        memset(bmp + 54 + 4 * i, i * 10, 3);
    memcpy(bmp + 54 + 64, runs, sizeof runs);
    CHECK(image_decode(bmp, sizeof bmp, &im, &err) == 0, "%s", err.msg);
    for (int i = 0; im.rgb && i < 24; i++)
        CHECK(im.rgb[3 * i + 1] == want[i / 6][i % 6] * 10, "pixel %d: %d", i, im.rgb[3 * i + 1]);
    image_free(&im);
}

TEST(what_the_encoder_writes_comes_back)
{
    uint8_t rgb[7 * 5 * 3];
    struct image im = {.width = 7, .height = 5, .rgb = rgb}, back;
    struct buffer file = {0};
    struct error err = {0};
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)(i * 37);
    CHECK(png_encode(&im, &file, &err) == 0);
    CHECK(image_decode(file.data, file.len, &back, &err) == 0, "%s", err.msg);
    CHECK(back.width == 7 && back.height == 5 && memcmp(back.rgb, rgb, sizeof rgb) == 0);
    image_free(&back);
    buffer_free(&file);
}

TEST(not_a_picture)
{
    static const char *const texts[] = {
        "",     "hello",     "\x89PNG\r\n\x1a\n", "\xff\xd8\xff",    "BM",
        "RIFF", "GIF89a",    "RIFF....WEBPVP8 ",  "%PDF-1.7\n%....", "<svg></svg>",
        "BMW",  "II*\0\x08", "\xff\xd8\xff\xd9",  "P6 1 1 255 abc",  "GIF89a;"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct file f = copy(texts[i], strlen(texts[i]));
        struct image im;
        struct error err = {0};
        int w, h;
        CHECK(image_decode(f.bytes, f.len, &im, &err) == ERR_FORMAT && err.msg[0] && !im.rgb, "%s: %d %s",
              texts[i], err.code, err.msg);
        CHECK(image_probe(f.bytes, f.len, &w, &h, NULL) == ERR_FORMAT, "%s", texts[i]);
        free(f.bytes);
    }
    struct image im;
    CHECK(image_decode(NULL, 0, &im, NULL) == ERR_FORMAT && !im.rgb);
}

/* ---- Headers that promise much or nothing ---- */

static void put(unsigned char *at, unsigned long v, int bytes, int big)
{
    for (int i = 0; i < bytes; i++)
        at[big ? bytes - 1 - i : i] = (unsigned char)(v >> (8 * i));
}

/* NAME with the sides in its header changed; the side's offset differs from format to format. */
static struct file with_size(const char *name, unsigned long width, unsigned long height)
{
    struct file f = read_file(name);
    if (strstr(name, ".png")) {
        put(f.bytes + 16, width, 4, 1);
        put(f.bytes + 20, height, 4, 1);
        put(f.bytes + 29, crc32(crc32(0, NULL, 0), f.bytes + 12, 17), 4, 1);
    } else if (strstr(name, ".bmp")) {
        put(f.bytes + 18, width, 4, 0);
        put(f.bytes + 22, height, 4, 0);
    } else if (strstr(name, ".gif")) {
        put(f.bytes + 6, width, 2, 0);
        put(f.bytes + 8, height, 2, 0);
    } else {
        size_t at = 0; /* of a JPEG's SOF0 */
        while (at + 9 < f.len && !(f.bytes[at] == 0xff && f.bytes[at + 1] == 0xc0))
            at++;
        put(f.bytes + at + 5, height, 2, 1);
        put(f.bytes + at + 7, width, 2, 1);
    }
    return f;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

TEST(bombs_are_refused_from_their_header)
{
    static const struct {
        const char *name;
        unsigned long width, height;
    } bombs[] = {
        {"colour2-8bit.png", 30000, 30000},           {"colour3-1bit.png", 2147483647, 2147483647},
        {"colour2-8bit.png", 4294967295u, 1},         {"palette-1bit.bmp", 65535, 65535},
        {"24bit.bmp", 2147483647, 2147483647},        {"plain.gif", 65535, 65535},
        {"quality50-subsampling2.jpg", 65535, 65535}, {"colour0-1bit.png", IMAGE_PIXELS_MAX + 1u, 1}};
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    for (size_t i = 0; i < sizeof bombs / sizeof *bombs; i++) {
        struct file f = with_size(bombs[i].name, bombs[i].width, bombs[i].height);
        struct image im;
        struct error err = {0};
        double start = seconds();
        CHECK(image_decode(f.bytes, f.len, &im, &err) == ERR_INVALID && strstr(err.msg, "178956970"),
              "%s: %d %s", bombs[i].name, err.code, err.msg);
        CHECK(seconds() - start < 0.05, "%s: %.3f s", bombs[i].name, seconds() - start);
        CHECK(!im.rgb);
        free(f.bytes);
    }
    getrusage(RUSAGE_SELF, &after);
    CHECK(after.ru_maxrss - before.ru_maxrss < 8192, "%ld KiB more", after.ru_maxrss - before.ru_maxrss);
}

TEST(sides_of_zero)
{
    static const char *const names[] = {"colour2-8bit.png", "24bit.bmp", "quality50-subsampling2.jpg"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (unsigned side = 0; side < 3; side++) {
            struct file f = with_size(names[i], side == 1 ? 7 : 0, side == 2 ? 7 : 0);
            struct image im;
            struct error err = {0};
            int w, h;
            CHECK(image_decode(f.bytes, f.len, &im, &err) == ERR_INVALID && !im.rgb, "%s: %d %s", names[i],
                  err.code, err.msg);
            CHECK(image_probe(f.bytes, f.len, &w, &h, NULL) == ERR_INVALID);
            free(f.bytes);
        }
    }
}

/* A wrong checksum of the header, a palette that is not there, a size that the data do not have. */
TEST(headers_that_do_not_hold)
{
    struct image im;
    struct error err = {0};
    struct file f = read_file("colour3-8bit.png");
    f.bytes[32] ^= 1;
    CHECK(image_decode(f.bytes, f.len, &im, &err) == ERR_FORMAT, "%s", err.msg);
    f.bytes[32] ^= 1;
    unsigned char *palette = memmem(f.bytes, f.len, "PLTE", 4);
    palette[1] = 'l'; /* an unknown chunk that need not be understood */
    palette[0] = 'p';
    err = (struct error){0};
    CHECK(image_decode(f.bytes, f.len, &im, &err) == ERR_FORMAT && strstr(err.msg, "palette"), "%s", err.msg);
    free(f.bytes);
    f = with_size("24bit.bmp", 19, 26); /* twice the rows: the lower half is the file's, the upper blank */
    CHECK(image_decode(f.bytes, f.len, &im, NULL) == 0 && im.height == 26 && im.rgb[0] == 0);
    image_free(&im);
    free(f.bytes);
}

TEST_MAIN()
