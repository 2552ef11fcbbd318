/* Resized pictures against Pillow's (resize.txt, written by scripts/export_image_goldens.py), and what must
 * hold without it. */
#include "test.h"

#include <zlib.h>

#include "image.h"

/* 0: noise; 1: only black and white, which drives the filters out of range; 2: a ramp. As the script makes
 * it.
 */
static struct image pattern(int width, int height, int kind)
{
    size_t bytes = (size_t)width * (size_t)height * 3;
    struct image im = {.width = width, .height = height, .rgb = malloc(bytes)};
    unsigned state = (unsigned)(width * 7919 + height);
    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        im.rgb[i] = (uint8_t)(kind == 0 ? state >> 24 : kind == 1 ? (state >> 31) * 255 : i * 7);
    }
    return im;
}

static struct image noise(int width, int height)
{
    return pattern(width, height, 0);
}

TEST(every_byte_is_pillows)
{
    FILE *list = fopen("tests/unit/data/images/resize.txt", "r");
    int w, h, to_w, to_h, filter, kind, lines = 0;
    unsigned want;
    while (CHECK(list != NULL) &&
           fscanf(list, "%d %d %d %d %d %d %x", &w, &h, &to_w, &to_h, &filter, &kind, &want) == 7) {
        struct image in = pattern(w, h, kind), out;
        struct error err = {0};
        CHECK(image_resize(&in, to_w, to_h, (enum image_filter)filter, &out, &err) == 0, "%s", err.msg);
        CHECK(out.width == to_w && out.height == to_h);
        CHECK(crc32(crc32(0, NULL, 0), out.rgb, (uInt)(to_w * to_h * 3)) == want,
              "%d x %d -> %d x %d, filter %d, pattern %d", w, h, to_w, to_h, filter, kind);
        image_free(&out);
        image_free(&in);
        lines++;
    }
    CHECK(lines > 400, "%d lines", lines);
    if (list)
        fclose(list);
}

TEST(the_same_size_is_a_copy)
{
    static const int sizes[][2] = {{1, 1}, {1, 9}, {9, 1}, {31, 17}, {64, 64}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int filter = FILTER_BICUBIC; filter <= FILTER_LANCZOS; filter++) {
            struct image in = noise(sizes[i][0], sizes[i][1]), out;
            struct error err = {0};
            CHECK(image_resize(&in, in.width, in.height, (enum image_filter)filter, &out, &err) == 0, "%s",
                  err.msg);
            CHECK(out.rgb != in.rgb && out.width == in.width && out.height == in.height);
            CHECK(memcmp(out.rgb, in.rgb, (size_t)(in.width * in.height * 3)) == 0, "%d x %d", in.width,
                  in.height);
            image_free(&out);
            image_free(&in);
        }
    }
}

/* The weights of a pixel add up to one: a plain picture stays what it is at any size. */
TEST(a_plain_picture_stays_plain)
{
    for (int n = 1; n < 40; n++) {
        struct image in = noise(n, 41 - n), out;
        struct error err = {0};
        memset(in.rgb, n * 6, (size_t)(in.width * in.height * 3));
        CHECK(image_resize(&in, 40 - n, n + 3, n % 2 ? FILTER_LANCZOS : FILTER_BICUBIC, &out, &err) == 0);
        for (int i = 0; i < out.width * out.height * 3; i++)
            CHECK(out.rgb[i] == n * 6, "%d: %d", n, out.rgb[i]);
        image_free(&out);
        image_free(&in);
    }
}

TEST(sizes_that_cannot_be_had)
{
    static const int sizes[][2] = {{0, 1},  {1, 0},         {-1, 5},
                                   {5, -1}, {65536, 65536}, {2147483647, 2147483647}};
    struct image in = noise(4, 4), none = {.width = 4, .height = 4}, out;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct error err = {0};
        CHECK(image_resize(&in, sizes[i][0], sizes[i][1], FILTER_LANCZOS, &out, &err) == ERR_INVALID &&
                  strstr(err.msg, "accepted are") && !out.rgb,
              "%d %s", err.code, err.msg);
    }
    CHECK(image_resize(&none, 2, 2, FILTER_LANCZOS, &out, NULL) == ERR_INVALID && !out.rgb);
    image_free(&in);
}

TEST_MAIN()
