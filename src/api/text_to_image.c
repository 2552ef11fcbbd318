/* POST /text-to-image: its parameters, its checks in the contract's order, and its runs. */
#include "text_to_image.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "loras.h"
#include "pictures.h"
#include "text.h"

enum { PROMPT_PARTS_MAX = 4, PROMPTS_USED = 2 };

struct params {
    struct param_string model_id, loras, prompt, negative_prompt, response_format;
    struct param_integer height, width, seed, steps, images;
    double guidance_scale;
    bool safety_check;
};

#define ROW(json_name, title, type, required, fallback, field, description)                                  \
    {                                                                                                        \
        json_name, title, type, required, fallback, description, offsetof(struct params, field)              \
    }

static const struct param rows[] = {
    ROW("model_id", "Model Id", PARAM_STRING, false, "\"\"", model_id,
        "Hugging Face model ID used for image generation."),
    ROW("loras", "Loras", PARAM_STRING, false, "\"\"", loras,
        "A LoRA (Low-Rank Adaptation) model and its corresponding weight for image generation. Example: { "
        "\"latent-consistency/lcm-lora-sdxl\": 1.0, \"nerijs/pixel-art-xl\": 1.2}."),
    ROW("prompt", "Prompt", PARAM_STRING, true, NULL, prompt,
        "Text prompt(s) to guide image generation. Separate multiple prompts with '|' if supported by the "
        "model."),
    ROW("height", "Height", PARAM_INTEGER, false, "576", height,
        "The height in pixels of the generated image."),
    ROW("width", "Width", PARAM_INTEGER, false, "1024", width, "The width in pixels of the generated image."),
    ROW("guidance_scale", "Guidance Scale", PARAM_NUMBER, false, "7.5", guidance_scale,
        "Encourages model to generate images closely linked to the text prompt (higher values may reduce "
        "image "
        "quality)."),
    ROW("negative_prompt", "Negative Prompt", PARAM_STRING, false, "\"\"", negative_prompt,
        "Text prompt(s) to guide what to exclude from image generation. Ignored if guidance_scale < 1."),
    ROW("safety_check", "Safety Check", PARAM_BOOLEAN, false, "true", safety_check,
        "Perform a safety check to estimate if generated images could be offensive or harmful."),
    ROW("seed", "Seed", PARAM_INTEGER, false, NULL, seed, "Seed for random number generation."),
    ROW("num_inference_steps", "Num Inference Steps", PARAM_INTEGER, false, "50", steps,
        "Number of denoising steps. More steps usually lead to higher quality images but slower inference. "
        "Modulated "
        "by strength."),
    ROW("num_images_per_prompt", "Num Images Per Prompt", PARAM_INTEGER, false, "1", images,
        "Number of images to generate per prompt."),
    ROW("response_format", "Response Format", PARAM_STRING, false, "\"\"", response_format,
        "\"url\": the images as URLs of this server, kept for a while, not as data URLs."),
};

const struct param_table text_to_image_table = {"TextToImageParams", rows, sizeof(rows) / sizeof(*rows),
                                                false};

struct work {
    struct pictures p;
    struct params given;
    char *prompt[PROMPTS_USED], *negative[PROMPTS_USED]; /* the parts that count; NULL: none */
    struct text_to_image_params run;
};

static void work_free(struct pictures *p)
{
    struct work *w = (struct work *)p;

    params_free(&text_to_image_table, &w->given);
    for (int i = 0; i < PROMPTS_USED; i++) {
        free(w->prompt[i]);
        free(w->negative[i]);
    }
    free(w);
}

/* ---- Prompts ---- */

/* Splits TEXT at '|' into at most four parts, strips them and drops the empty ones. OUT gets the first two
 * that are left: for the first text encoder, and for SDXL's second; those behind them belong to models with
 * more encoders. Returns 0 or ERR_NOMEM. */
static int split_prompt(const struct param_string *text, char *out[PROMPTS_USED])
{
    const char *at = text->data, *end = text->data + text->len;
    int found = 0;

    for (int part = 1; part <= PROMPT_PARTS_MAX && found < PROMPTS_USED; part++) {
        const char *bar = part < PROMPT_PARTS_MAX ? memchr(at, '|', (size_t)(end - at)) : NULL;
        const char *s = at;
        size_t len = (size_t)((bar ? bar : end) - at);
        text_strip(&s, &len, true);
        if (len && !(out[found++] = prompt_text(s, len)))
            return ERR_NOMEM;
        if (!bar)
            break;
        at = bar + 1;
    }
    return 0;
}

static bool resolve_prompts(struct work *w, struct reply *reply)
{
    if (split_prompt(&w->given.prompt, w->prompt) || split_prompt(&w->given.negative_prompt, w->negative)) {
        reply->body.failed = true;
        return false;
    }
    if (!w->prompt[0]) {
        reply_error(reply, 500, "%s", w->p.kind->failed); /* only bars and blanks */
        return false;
    }
    w->run.prompt = w->prompt[0];
    w->run.prompt_2 = w->prompt[1];
    w->run.negative_prompt = w->negative[0];
    w->run.negative_prompt_2 = w->negative[1];
    return true;
}

/* ---- Checks that need the model ---- */

static int clamp(wide v)
{
    return v > INT_MAX ? INT_MAX : v < INT_MIN ? INT_MIN : (int)v;
}

/* Width and height as the pipeline wants them; sizes that no int holds are answered here. */
static bool resolve_size(struct work *w, struct model *m, struct reply *reply)
{
    struct params *g = &w->given;
    char height[44], width[44];
    int default_width, default_height;

    model_default_size(m, &default_width, &default_height);
    if (!g->height.given)
        g->height.value = default_height;
    if (!g->width.given)
        g->width.value = default_width;
    w->run.height = clamp(g->height.value);
    w->run.width = clamp(g->width.value);
    if (w->run.height == g->height.value && w->run.width == g->width.value)
        return true;
    wide_format(height, g->height.value);
    wide_format(width, g->width.value);
    if (g->height.value % 8 || g->width.value % 8 || g->height.value < 0 || g->width.value < 0)
        reply_error(
            reply, 400,
            "Error during model execution: `height` and `width` have to be divisible by 8 but are %s and %s.",
            height, width);
    else
        reply_error(reply, 500, "Out of memory error. Try reducing output image resolution.");
    reply->no_room = reply->status == 500;
    return false;
}

/* Says early what the worker would say later; the worker checks again. */
static bool admit(struct work *w, struct model *m, struct reply *reply)
{
    struct error err = {0};

    return text_to_image_admit(m, &w->run, &err) == 0 || pictures_refused(&w->p, &err, reply);
}

/* ---- On the worker ---- */

static int work_prepare(struct pictures *p, struct model *m, struct error *err)
{
    struct work *w = (struct work *)p;

    (void)err;
    p->cut = model_prompt_cut(m, w->prompt[0], w->negative[0]);
    if (w->prompt[1] || w->negative[1])
        p->cut += model_prompt_cut(m, w->prompt[1] ? w->prompt[1] : "", w->negative[1]);
    return 0;
}

static int work_make(struct pictures *p, struct model *m, int64_t seed, const struct watcher *watch,
                     struct image *out, struct error *err)
{
    struct text_to_image_params run = ((struct work *)p)->run;

    run.seed = seed;
    return text_to_image(m, &run, watch, out, err);
}

static const struct pictures_kind kind = {
    .name = "text-to-image",
    .failed = "Text-to-image pipeline error.",
    .memory = "Out of memory error. Try reducing output image resolution.",
    .prepare = work_prepare,
    .make = work_make,
    .free = work_free,
};

/* ---- The endpoint ---- */

/* The checks that come before the model is asked, in the order of the contract; the token comes before the
 * empty prompt here. */
static bool check_request(struct service *s, const struct api_request *request, const struct params *g,
                          struct reply *reply)
{
    if (!pictures_token(request, reply))
        return false;
    if (g->prompt.len == 0) {
        reply_error(reply, 400, "Prompt must be provided.");
        return false;
    }
    return pictures_model_id(s, &g->model_id, reply) && pictures_wanted(&g->images, reply);
}

/* The checks that the original makes while it runs. */
static bool check_run(struct service *s, struct work *w, struct reply *reply)
{
    struct params *g = &w->given;

    if (!loras_read(&g->loras, kind.failed, &w->p.loras, reply) || !resolve_prompts(w, reply))
        return false;
    struct model *m = pictures_model(s, reply);
    if (!m)
        return false;
    w->run.loras = w->p.loras;
    w->run.safety_check = g->safety_check;
    w->run.guidance_scale = g->guidance_scale;
    w->run.steps = pictures_steps(&g->steps);
    if (!resolve_size(w, m, reply))
        return false;
    text_to_image_rules(m, &w->run);
    w->p.width = w->run.width;
    w->p.height = w->run.height;
    w->p.steps = w->run.steps;
    return pictures_format(&w->p, s, &g->response_format, reply) &&
           pictures_count(&w->p, &g->images, reply) && pictures_seed(&w->p, &g->seed, reply) &&
           admit(w, m, reply);
}

struct job *text_to_image_job(struct service *s, const struct api_request *request, struct reply *reply)
{
    struct work *w = calloc(1, sizeof(*w));

    if (!w) {
        reply->body.failed = true;
        return NULL;
    }
    pictures_init(&w->p, &kind);
    w->p.png = request->wants_png;
    if (params_read(&text_to_image_table, request, &w->given, reply) &&
        check_request(s, request, &w->given, reply) && check_run(s, w, reply)) {
        log_debug("request_id=%s prompt=%.300s", request->id, w->prompt[0]);
        return &w->p.job;
    }
    job_put(&w->p.job);
    return NULL;
}
