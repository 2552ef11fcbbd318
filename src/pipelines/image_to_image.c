/* diffusers' StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline and
 * StableDiffusionInstructPix2PixPipeline. See pipeline.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

enum { STEPS_DEFAULT = 50, STEPS_PIX2PIX = 100 };

/* __call__ of the first two: the picture's latents, noised as far as the first step expects them. */
static tensor call(struct run *r)
{
    pass *p = &r->p;
    run_enter(r, PHASE_TEXT, 0, 0);
    struct conditioning c = encode_prompt(r);
    tensor picture = encode_picture(r, true);
    run_phase_end(r, &r->times.text);
    tensor noise = draw_latents(r);
    tensor x = scheduler_add_noise(p, r->sched, picture, noise);
    tensor_free(p, &picture);
    tensor_free(p, &noise);
    x = denoise(r, &c, x, (tensor){0});
    conditioning_free(r, &c);
    return decode_latents(r, x);
}

/* The picture's latents beside those of every step: with guidance for text, image and neither, the last
 * without the picture. */
static tensor image_channels(struct run *r)
{
    pass *p = &r->p;
    tensor one = encode_picture(r, false);
    tensor all = r->parts == 3 ? stack_pictures(r, 3, (tensor[]){one, one, {0}}) : one;
    tensor narrow = convert(p, all, pass_dtype(p));
    if (r->parts == 3)
        tensor_free(p, &one);
    tensor_free(p, &all);
    return narrow;
}

/* __call__ of InstructPix2Pix: from noise alone, the picture in the UNet's other channels. */
static tensor call_pix2pix(struct run *r)
{
    pass *p = &r->p;
    run_enter(r, PHASE_TEXT, 0, 0);
    struct conditioning c = encode_prompt(r);
    tensor image = image_channels(r);
    run_phase_end(r, &r->times.text);
    tensor x = denoise(r, &c, initial_latents(r), image);
    tensor_free(p, &image);
    conditioning_free(r, &c);
    return decode_latents(r, x);
}

/* Python's repr of a float. */
static const char *repr(double x, char text[32])
{
    int digits = 1;
    if (isnan(x) || isinf(x))
        return isnan(x) ? "nan" : x < 0 ? "-inf" : "inf";
    do
        snprintf(text, 32, "%.*g", digits, x);
    while (strtod(text, NULL) != x && ++digits <= 17);
    if (!strpbrk(text, ".e"))
        strcat(text, ".0");
    return text;
}

static int check_inputs(const struct model *m, const struct image_to_image_params *q, struct error *err)
{
    char number[32];
    if (!vae_has_encoder(m->vae))
        return error_set(err, ERR_UNSUPPORTED, "%s was loaded for text-to-image alone, without its encoder",
                         m->id);
    if (m->family != FAMILY_PIX2PIX && !(q->strength >= 0.0 && q->strength <= 1.0))
        return error_set(err, ERR_INVALID, "The value of strength should in [0.0, 1.0] but is %s",
                         repr(q->strength, number));
    if (!isfinite(q->guidance_scale))
        return error_set(err, ERR_INVALID, "`guidance_scale` has to be a finite number");
    if (m->family == FAMILY_PIX2PIX && !isfinite(q->image_guidance_scale))
        return error_set(err, ERR_INVALID, "`image_guidance_scale` has to be a finite number");
    return 0;
}

static int check_size(const struct model *m, const struct image *im, struct request *q, struct error *err)
{
    input_picture_size(m, im, &q->width, &q->height);
    if (q->width < 1 || q->height < 1)
        return error_set(err, ERR_INVALID, "the image is %d x %d; each side has to be at least %d", im->width,
                         im->height, vae_scale(m->vae));
    if (q->width > SIDE_MAX || q->height > SIDE_MAX)
        return error_set(err, ERR_INVALID, "the image is %d x %d; each side has to be at most %d", im->width,
                         im->height, SIDE_MAX);
    return 0;
}

static int make_request(const struct model *m, const struct image_to_image_params *q, struct request *out,
                        struct error *err)
{
    bool pix2pix = m->family == FAMILY_PIX2PIX;
    int rc = check_inputs(m, q, err);
    int steps = request_steps(q->steps, pix2pix ? STEPS_PIX2PIX : STEPS_DEFAULT, err);
    if (rc || steps < 0)
        return err->code;
    *out = (struct request){.call = pix2pix ? call_pix2pix : call,
                            .prompt = {q->prompt, q->prompt},
                            .negative = {q->negative_prompt, q->negative_prompt},
                            .guidance = q->guidance_scale,
                            .image_guidance = q->image_guidance_scale,
                            .image = q->image,
                            .steps = steps,
                            .first_step = pix2pix ? 0 : steps - (int)(steps * q->strength),
                            .seed = q->seed,
                            .loras = &q->loras,
                            .safety_check = q->safety_check,
                            .exact_times = q->exact_times};
    return check_size(m, q->image, out, err);
}

int image_to_image_plan(struct model *m, const struct image_to_image_params *params,
                        struct plan_report *report, struct error *err)
{
    struct request q;
    int rc = make_request(m, params, &q, err);
    return rc ? rc : request_plan(m, &q, report, err);
}

int image_to_image_admit(struct model *m, const struct image_to_image_params *params, struct error *err)
{
    struct request q;
    int rc = make_request(m, params, &q, err);
    return rc ? rc : request_admit(m, &q, err);
}

int image_to_image(struct model *m, const struct image_to_image_params *params, const struct watcher *watch,
                   struct image *out, struct error *err)
{
    struct request q;
    memset(out, 0, sizeof *out);
    int rc = make_request(m, params, &q, err);
    return rc ? rc : request_run(m, &q, watch, out, err);
}
