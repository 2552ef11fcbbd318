/* A libFuzzer target for pictures that clients send: header, decoding, resizing. `make fuzz` builds it; then
 *
 *   build/fuzz/fuzz_image -max_len=4096 CORPUS tests/unit/data/images
 *
 * Pictures of more than a million pixels are left out, as they take long and say nothing more. */
#include <stdint.h>
#include <stdlib.h>

#include "image.h"

enum { PIXELS_MAX = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = {0};
    struct image im, small;
    int width, height, rc = image_probe(data, size, &width, &height, &err);

    if (rc == 0 && (int64_t)width * height > PIXELS_MAX)
        return 0;
    if (rc != 0 && (err.code != rc || !err.msg[0]))
        abort();
    int decoded = image_decode(data, size, &im, NULL);
    if (rc != 0 && decoded != rc)
        abort();
    if (decoded == 0) {
        if (im.width != width || im.height != height || !im.rgb)
            abort();
        if (image_resize(&im, 1 + size % 40, 1 + size / 40 % 40, size % 2 ? FILTER_LANCZOS : FILTER_BICUBIC,
                         &small, NULL) != 0)
            abort();
        image_free(&small);
        image_free(&im);
    } else if (im.rgb)
        abort();
    return 0;
}
