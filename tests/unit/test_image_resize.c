/* Resized pictures against Pillow's, by checksum and in full, and what must hold without it. */
#include "test.h"

#include "image.h"

static struct image noise(int width, int height)
{
    size_t bytes = (size_t)width * (size_t)height * 3;
    struct image im = {.width = width, .height = height, .rgb = malloc(bytes)};
    unsigned state = (unsigned)(width * 7919 + height);
    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        im.rgb[i] = (uint8_t)(state >> 24);
    }
    return im;
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
