/* The picture that the image encoder of Stable Video Diffusion reads, against diffusers' resize: smaller,
 * larger, each axis another way. */
#include "../../src/pipelines/video_processor.h"
#include "golden.h"

/* Reads run RUN: pixels [h, w, 3] as ints, out [1, side, side, 3]. */
static void check_run(const struct golden *g, int run)
{
    const struct golden_array *pixels = golden_find(g, run, "pixels"), *want = golden_find(g, run, "out");
    struct image im = {.height = pixels->shape[0], .width = pixels->shape[1]};
    struct error err = {0};
    float *got = calloc(want->count, sizeof *got), worst = 0;
    im.rgb = malloc(pixels->count);
    if (!CHECK(got && im.rgb))
        abort();
    for (size_t i = 0; i < pixels->count; i++)
        im.rgb[i] = (uint8_t)pixels->i[i];
    CHECK(resize_with_antialiasing(&im, want->shape[1], got, &err) == 0, "%s", err.msg);
    for (size_t i = 0; i < want->count; i++)
        worst = fmaxf(worst, fabsf(got[i] - want->f[i]));
    printf("  %d x %d: greatest difference %.2e of 1\n", im.width, im.height, (double)worst);
    CHECK(worst < 5e-6f, "%d x %d: %g", im.width, im.height, (double)worst); /* a few units of fp32 */
    free(im.rgb);
    free(got);
}

TEST(resize_with_antialiasing_as_diffusers)
{
    struct golden g;
    int run = 0;
    if (!golden_open(&g, "tests/golden/data/video/resize"))
        return;
    for (; golden_find(&g, run, "pixels"); run++)
        check_run(&g, run);
    CHECK(run == 4);
    golden_close(&g);
}

TEST_MAIN()
