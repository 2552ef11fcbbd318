/* Pictures that clients send: what Pillow makes of them, cut files, and files that are no pictures. */
#include "test.h"

#include "image.h"

TEST(what_the_encoder_writes_comes_back)
{
    uint8_t rgb[7 * 5 * 3];
    struct image im = {.width = 7, .height = 5, .rgb = rgb}, back;
    struct buffer file = {0};
    struct error err = {0};
    int width = 0, height = 0;
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)(i * 37);
    CHECK(png_encode(&im, &file, &err) == 0);
    CHECK(image_probe(file.data, file.len, &width, &height, &err) == 0 && width == 7 && height == 5);
    CHECK(image_decode(file.data, file.len, &back, &err) == 0, "%s", err.msg);
    CHECK(back.width == 7 && back.height == 5 && memcmp(back.rgb, rgb, sizeof rgb) == 0);
    image_free(&back);
    buffer_free(&file);
}

TEST(not_a_picture)
{
    struct image im;
    struct error err = {0};
    CHECK(image_decode("hello", 5, &im, &err) == ERR_FORMAT && strstr(err.msg, "accepted are"), "%s",
          err.msg);
    CHECK(image_decode("", 0, &im, NULL) == ERR_FORMAT && !im.rgb);
}

TEST_MAIN()
