/* A run before the first request. See pipeline.h. */
#include <stdlib.h>
#include <string.h>

#include "model.h"

/* Both kinds of UNet call that DeepCache makes are among four steps. */
enum { STEPS = 4, GATEWAY_SIDE = 512, UPSCALE_SIDE = 128, GREY = 128 };

static int text(struct model *m, int width, int height, const struct watcher *watch, struct error *err)
{
    struct text_to_image_params q = {.prompt = "a mountain lion",
                                     .width = width,
                                     .height = height,
                                     .guidance_scale = 7.5,
                                     .steps = STEPS,
                                     .safety_check = true};
    struct image im = {0};
    text_to_image_rules(m, &q);
    int rc = text_to_image(m, &q, watch, &im, err);
    image_free(&im);
    return rc;
}

/* The API's default size and, where it is another, the one that a Livepeer gateway fills in. */
static int text_sizes(struct model *m, const struct watcher *watch, struct error *err)
{
    int width, height;
    model_default_size(m, &width, &height);
    int rc = text(m, width, height, watch, err);
    if (!rc && width > GATEWAY_SIDE)
        rc = text(m, GATEWAY_SIDE, GATEWAY_SIDE, watch, err);
    return rc;
}

static int from_picture(struct model *m, const struct image *input, const struct watcher *watch,
                        struct error *err)
{
    struct image_to_image_params q = {.prompt = "a mountain lion",
                                      .image = input,
                                      .strength = 1,
                                      .guidance_scale = 7.5,
                                      .image_guidance_scale = 1.5,
                                      .steps = STEPS,
                                      .safety_check = true};
    struct image im = {0};
    image_to_image_rules(m, &q);
    int rc = image_to_image(m, &q, watch, &im, err);
    image_free(&im);
    return rc;
}

static int drop_frame(void *ctx, int index, int count, const struct image *frame, struct error *err)
{
    (void)ctx;
    (void)index;
    (void)count;
    (void)frame;
    (void)err;
    return 0;
}

static int video(struct model *m, const struct image *input, const struct watcher *watch, struct error *err)
{
    struct frame_sink sink = {.frame = drop_frame};
    struct image_to_video_params q = {.image = input,
                                      .width = input->width,
                                      .height = input->height,
                                      .fps = 6,
                                      .motion_bucket_id = 127,
                                      .noise_aug_strength = 0.02,
                                      .steps = STEPS,
                                      .safety_check = true};
    return image_to_video(m, &q, watch, &sink, err);
}

static int upscaled(struct model *m, const struct image *input, const struct watcher *watch,
                    struct error *err)
{
    struct upscale_params q = {.prompt = "a mountain lion",
                               .image = input,
                               .guidance_scale = 9,
                               .steps = STEPS,
                               .safety_check = true};
    struct image im = {0};
    int rc = upscale(m, &q, watch, &im, err);
    image_free(&im);
    return rc;
}

static int run_with(struct model *m, enum pipeline_kind kind, const struct image *input,
                    const struct watcher *watch, struct error *err)
{
    if (kind == PIPELINE_IMAGE_TO_VIDEO)
        return video(m, input, watch, err);
    return kind == PIPELINE_UPSCALE ? upscaled(m, input, watch, err) : from_picture(m, input, watch, err);
}

int pipeline_warm_up(struct model *m, enum pipeline_kind kind, const struct watcher *watch, struct error *err)
{
    struct image input = {0};
    int rc, native = model_native_size(m);
    if (kind == PIPELINE_TEXT_TO_IMAGE)
        return text_sizes(m, watch, err);
    input.width = input.height = native < GATEWAY_SIDE ? native : GATEWAY_SIDE;
    if (kind == PIPELINE_UPSCALE)
        input.width = input.height = UPSCALE_SIDE;
    if (kind == PIPELINE_IMAGE_TO_VIDEO)
        model_default_size(m, &input.width, &input.height);
    input.rgb = malloc(3 * (size_t)input.width * (size_t)input.height);
    if (!input.rgb)
        return error_set(err, ERR_NOMEM, "no memory for an input picture");
    memset(input.rgb, GREY, 3 * (size_t)input.width * (size_t)input.height);
    rc = run_with(m, kind, &input, watch, err);
    image_free(&input);
    return rc;
}
