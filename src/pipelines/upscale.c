/* diffusers' StableDiffusionUpscalePipeline: a picture and a prompt in, the picture several times as large
 * out (4 for the published model). The UNet sees the picture beside the latents, with noise on it of a level
 * that it is told as a class label. See pipeline.h. */
#include <math.h>
#include <string.h>

#include "run.h"

enum { STEPS_DEFAULT = 75, NOISE_LEVEL = 20, TILE_LEAST = 32 };

/* The picture with noise on it, the request's first draw: [1, h, w, 3] F32. */
static tensor low_resolution(struct run *r)
{
    pass *p = &r->p;
    int unit = vae_scale(r->m->vae), width = r->q->width / unit, height = r->q->height / unit;
    tensor x = preprocess_picture_to(r, width, height, FILTER_BICUBIC);
    tensor noise = noise_draw(p, &r->noise, 1, height, width, 3);
    tensor noised = scheduler_config_add_noise(p, r->m->low_res_scheduler, r->q->noise_level, x, noise);
    tensor_free(p, &noise);
    tensor_free(p, &x);
    return noised;
}

/* As every step reads it: [parts, h, w, 3] in the pass's type. What is tiled is cut first. */
static tensor beside_latents(struct run *r)
{
    pass *p = &r->p;
    tensor one = low_resolution(r);
    if (r->q->tile)
        return one;
    tensor narrow = convert(p, one, pass_dtype(p)), all = narrow;
    tensor_free(p, &one);
    if (r->parts > 1) {
        all = repeat_batch(p, narrow, r->parts);
        tensor_free(p, &narrow);
    }
    return all;
}

static tensor call(struct run *r)
{
    run_enter(r, PHASE_TEXT, 0, 0);
    struct conditioning c = encode_prompt(r);
    tensor image = beside_latents(r);
    run_phase_end(r, &r->times.text);
    tensor x = denoise(r, &c, initial_latents(r), image);
    tensor_free(&r->p, &image);
    conditioning_free(r, &c);
    return decode_latents(r, x);
}

static int check_inputs(const struct model *m, const struct upscale_params *q, struct error *err)
{
    if (m->family != FAMILY_UPSCALE)
        return error_set(err, ERR_UNSUPPORTED, "%s does not enlarge pictures", m->id);
    if (!isfinite(q->guidance_scale))
        return error_set(err, ERR_INVALID, "`guidance_scale` has to be a finite number");
    int most = m->max_noise_level < unet_labels(m->unet) ? m->max_noise_level : unet_labels(m->unet) - 1;
    if (NOISE_LEVEL > most)
        return error_set(err, ERR_INVALID, "`noise_level` has to be <= %d but is %d", most, NOISE_LEVEL);
    return 0;
}

static int check_size(const struct model *m, const struct image *im, struct request *q, struct error *err)
{
    int unit = vae_scale(m->vae);
    if (im->width < unit || im->height < unit || im->width > SIDE_MAX / unit || im->height > SIDE_MAX / unit)
        return error_set(err, ERR_INVALID, "the image is %d x %d; each side has to be from %d to %d",
                         im->width, im->height, unit, SIDE_MAX / unit);
    input_picture_size(m, im, &q->width, &q->height);
    q->width *= unit;
    q->height *= unit;
    return 0;
}

/* Side of the areas that the UNet sees of WIDTH x HEIGHT latents; 0: all at once. */
static int tile_side(int width, int height, int whole)
{
    int side = (int)sqrt(whole) / TILE_LEAST * TILE_LEAST;
    return (size_t)width * (size_t)height <= (size_t)whole ? 0 : side < TILE_LEAST ? TILE_LEAST : side;
}

static int make_request(const struct model *m, const struct upscale_params *q, struct request *out,
                        struct error *err)
{
    int rc = check_inputs(m, q, err), steps = request_steps(q->steps, STEPS_DEFAULT, err);
    if (rc || steps < 0)
        return err->code;
    *out = (struct request){.call = call,
                            .prompt = {q->prompt},
                            .negative = {q->negative_prompt},
                            .guidance = q->guidance_scale,
                            .image = q->image,
                            .steps = steps,
                            .noise_level = NOISE_LEVEL,
                            .seed = q->seed,
                            .safety_check = q->safety_check,
                            .exact_times = q->exact_times};
    if ((rc = check_size(m, q->image, out, err)))
        return rc;
    int unit = vae_scale(m->vae);
    out->tile = tile_side(out->width / unit, out->height / unit,
                          q->whole_pixels ? q->whole_pixels : UPSCALE_WHOLE_PIXELS);
    return 0;
}

int upscale_plan(struct model *m, const struct upscale_params *params, struct plan_report *report,
                 struct error *err)
{
    struct request q;
    int rc = make_request(m, params, &q, err);
    return rc ? rc : request_plan(m, &q, report, err);
}

int upscale_admit(struct model *m, const struct upscale_params *params, struct error *err)
{
    struct request q;
    int rc = make_request(m, params, &q, err);
    return rc ? rc : request_admit(m, &q, err);
}

int upscale(struct model *m, const struct upscale_params *params, const struct watcher *watch,
            struct image *out, struct error *err)
{
    struct request q;
    memset(out, 0, sizeof *out);
    int rc = make_request(m, params, &q, err);
    return rc ? rc : request_run(m, &q, watch, out, err);
}
