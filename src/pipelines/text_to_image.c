/* diffusers' StableDiffusionPipeline and StableDiffusionXLPipeline. See pipeline.h. */
#include <math.h>
#include <string.h>

#include "run.h"

enum { STEPS_DEFAULT = 50 };

/* __call__, from the prompt to the picture. */
static tensor call(struct run *r)
{
    run_enter(r, PHASE_TEXT, 0, 0);
    struct conditioning c = encode_prompt(r);
    run_phase_end(r, &r->times.text);
    tensor x = denoise(r, &c, initial_latents(r), (tensor){0});
    conditioning_free(r, &c);
    return decode_latents(r, x);
}

static int check_inputs(const struct model *m, const struct text_to_image_params *q, struct error *err)
{
    int unit = vae_scale(m->vae);
    if (m->family == FAMILY_PIX2PIX)
        return error_set(err, ERR_UNSUPPORTED,
                         "%s edits pictures; it serves image-to-image, not text-to-image", m->id);
    if (q->height % 8 != 0 || q->width % 8 != 0)
        return error_set(err, ERR_INVALID, "`height` and `width` have to be divisible by 8 but are %d and %d",
                         q->height, q->width);
    if (q->height < unit || q->width < unit || q->height > SIDE_MAX || q->width > SIDE_MAX)
        return error_set(err, ERR_INVALID, "`height` and `width` have to be %d to %d but are %d and %d", unit,
                         SIDE_MAX, q->height, q->width);
    if (!isfinite(q->guidance_scale))
        return error_set(err, ERR_INVALID, "`guidance_scale` has to be a finite number");
    return 0;
}

static const char *given(const char *text)
{
    return text && *text ? text : NULL;
}

/* An empty negative prompt is one that was not given, as the ai-runner drops it. */
static int make_request(const struct model *m, const struct text_to_image_params *q, struct request *out,
                        struct error *err)
{
    const char *negative = given(q->negative_prompt);
    int rc = check_inputs(m, q, err), steps = request_steps(q->steps, STEPS_DEFAULT, err);
    const int unit = vae_scale(m->vae); /* latents are whole, as in diffusers: the rest is cut */
    *out = (struct request){
        .call = call,
        .prompt = {q->prompt, given(q->prompt_2) ? q->prompt_2 : q->prompt},
        .negative = {negative, given(q->negative_prompt_2) ? q->negative_prompt_2 : negative},
        .guidance = q->guidance_scale,
        .width = q->width / unit * unit,
        .height = q->height / unit * unit,
        .steps = steps,
        .seed = q->seed,
        .loras = &q->loras,
        .safety_check = q->safety_check,
        .exact_times = q->exact_times};
    return rc ? rc : steps < 0 ? steps : 0;
}

int text_to_image_plan(struct model *m, const struct text_to_image_params *params, struct plan_report *report,
                       struct error *err)
{
    struct request q;
    int rc = make_request(m, params, &q, err);
    return rc ? rc : request_plan(m, &q, report, err);
}

int text_to_image_admit(struct model *m, const struct text_to_image_params *params, struct error *err)
{
    struct request q;
    int rc = make_request(m, params, &q, err);
    return rc ? rc : request_admit(m, &q, err);
}

int text_to_image(struct model *m, const struct text_to_image_params *params, const struct watcher *watch,
                  struct image *out, struct error *err)
{
    struct request q;
    memset(out, 0, sizeof *out);
    int rc = make_request(m, params, &q, err);
    return rc ? rc : request_run(m, &q, watch, out, err);
}
