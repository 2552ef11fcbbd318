/* PNG files that libpng reads back with the same pixels, and what cannot be encoded. */
#include "test.h"

#include <png.h>
#include <sys/resource.h>

#include "image.h"

static struct image picture(int width, int height, int kind)
{
    size_t bytes = (size_t)width * (size_t)height * 3;
    struct image im = {.width = width, .height = height, .rgb = malloc(bytes)};
    unsigned state = 12345;
    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        unsigned x = (unsigned)(i / 3 % (size_t)width), y = (unsigned)(i / 3 / (size_t)width);
        im.rgb[i] = (uint8_t)(kind == 0 ? 0 : kind == 1 ? x + 2 * y + i % 3 * 40 : state >> 24);
    }
    return im;
}

static void check_round_trip(int width, int height, int kind)
{
    struct image im = picture(width, height, kind);
    struct buffer out = {0};
    struct error err = {0};
    png_image in = {.version = PNG_IMAGE_VERSION};
    CHECK(png_encode(&im, &out, &err) == 0, "%s", err.msg);
    CHECK(png_image_begin_read_from_memory(&in, out.data, out.len), "%s", in.message);
    CHECK((int)in.width == width && (int)in.height == height && in.format == PNG_FORMAT_RGB);
    uint8_t *back = malloc(PNG_IMAGE_SIZE(in));
    CHECK(png_image_finish_read(&in, NULL, back, 0, NULL), "%s", in.message);
    CHECK(memcmp(back, im.rgb, (size_t)width * (size_t)height * 3) == 0, "%d x %d, kind %d", width, height,
          kind);
    free(back);
    png_image_free(&in);
    buffer_free(&out);
    image_free(&im);
    CHECK(im.rgb == NULL && im.width == 0);
}

TEST(pixels_come_back)
{
    static const int sizes[][2] = {{1, 1},    {1, 7},     {7, 1},     {3, 5},    {64, 64},
                                   {129, 33}, {512, 512}, {65536, 1}, {1, 65536}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int kind = 0; kind < 3; kind++)
            check_round_trip(sizes[i][0], sizes[i][1], kind);
    }
}

/* Chunk names in order, e.g. "IHDR IDAT IEND". */
TEST(only_the_chunks_that_must_be_there)
{
    struct image im = picture(300, 300, 2);
    struct buffer out = {0};
    struct error err = {0};
    CHECK(png_encode(&im, &out, &err) == 0);
    const unsigned char *s = (const unsigned char *)out.data;
    size_t at = 8, idat = 0;
    CHECK(out.len > 33 && memcmp(s, "\x89PNG\r\n\x1a\n", 8) == 0);
    CHECK(memcmp(s + 12, "IHDR", 4) == 0 && s[24] == 8 && s[25] == 2 && s[28] == 0,
          "8 bit RGB, not interlaced");
    while (at + 12 <= out.len) {
        size_t len = (size_t)s[at] << 24 | (size_t)s[at + 1] << 16 | (size_t)s[at + 2] << 8 | s[at + 3];
        const char *name = (const char *)s + at + 4;
        idat += memcmp(name, "IDAT", 4) == 0;
        CHECK(memcmp(name, "IHDR", 4) == 0 || memcmp(name, "IDAT", 4) == 0 || memcmp(name, "IEND", 4) == 0,
              "%.4s", name);
        at += 12 + len;
    }
    CHECK(at == out.len && idat > 0);
    buffer_free(&out);
    image_free(&im);
}

TEST(appends_after_what_is_there)
{
    struct image im = picture(2, 2, 1);
    struct buffer out = {0};
    struct error err = {0};
    buffer_puts(&out, "before");
    CHECK(png_encode(&im, &out, &err) == 0 && memcmp(out.data, "before\x89PNG", 10) == 0);
    buffer_free(&out);
    image_free(&im);
}

TEST(sizes_that_cannot_be_encoded)
{
    uint8_t pixel[3] = {0};
    static const int sizes[][2] = {{0, 1}, {1, 0}, {-1, 1}, {65537, 1}, {1, 65537}, {2147483647, 2147483647}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct image im = {.width = sizes[i][0], .height = sizes[i][1], .rgb = pixel};
        struct buffer out = {0};
        struct error err = {0};
        CHECK(png_encode(&im, &out, &err) == ERR_INVALID && strstr(err.msg, "accepted are") && out.len == 0);
        buffer_free(&out);
    }
    struct image none = {.width = 1, .height = 1};
    struct buffer out = {0};
    struct error err = {0};
    CHECK(png_encode(&none, &out, &err) == ERR_INVALID && png_encode(&none, &out, NULL) == ERR_INVALID);
}

/* A buffer that failed before refuses every append: the encoder stops at its first write, leaks nothing, and
 * leaves what was there. */
TEST(a_write_that_fails_is_out_of_memory)
{
    struct image im = picture(512, 512, 2);
    struct buffer out = {0};
    struct error err = {0};
    buffer_puts(&out, "before");
    out.failed = true;
    CHECK(png_encode(&im, &out, &err) == ERR_NOMEM && strstr(err.msg, "no memory"), "%d %s", err.code,
          err.msg);
    CHECK(out.len == 6);
    out.failed = false;
    buffer_free(&out);
    image_free(&im);
}

TEST_MAIN()
