/* POST /image-to-image: its parameters, its checks in the contract's order, and its runs. */
#include "image_to_image.h"

#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "loras.h"
#include "upload.h"

struct params {
    struct param_string prompt, model_id, loras, negative_prompt, response_format;
    struct param_file image;
    double strength, guidance_scale, image_guidance_scale;
    struct param_integer seed, steps, images;
    bool safety_check;
};

#define ROW(json_name, title, type, required, fallback, field, description)                                  \
    {                                                                                                        \
        json_name, title, type, required, fallback, description, offsetof(struct params, field)              \
    }

static const struct param rows[] = {
    ROW("prompt", "Prompt", PARAM_STRING, true, NULL, prompt, "Text prompt(s) to guide image generation."),
    ROW("image", "Image", PARAM_FILE, true, NULL, image, "Uploaded image to modify with the pipeline."),
    ROW("model_id", "Model Id", PARAM_STRING, false, "\"\"", model_id,
        "Hugging Face model ID used for image generation."),
    ROW("loras", "Loras", PARAM_STRING, false, "\"\"", loras,
        "A LoRA (Low-Rank Adaptation) model and its corresponding weight for image generation. Example: { "
        "\"latent-consistency/lcm-lora-sdxl\": 1.0, \"nerijs/pixel-art-xl\": 1.2}."),
    ROW("strength", "Strength", PARAM_NUMBER, false, "0.8", strength,
        "Degree of transformation applied to the reference image (0 to 1)."),
    ROW("guidance_scale", "Guidance Scale", PARAM_NUMBER, false, "7.5", guidance_scale,
        "Encourages model to generate images closely linked to the text prompt (higher values may reduce "
        "image quality)."),
    ROW("image_guidance_scale", "Image Guidance Scale", PARAM_NUMBER, false, "1.5", image_guidance_scale,
        "Degree to which the generated image is pushed towards the initial image."),
    ROW("negative_prompt", "Negative Prompt", PARAM_STRING, false, "\"\"", negative_prompt,
        "Text prompt(s) to guide what to exclude from image generation. Ignored if guidance_scale < 1."),
    ROW("safety_check", "Safety Check", PARAM_BOOLEAN, false, "true", safety_check,
        "Perform a safety check to estimate if generated images could be offensive or harmful."),
    ROW("seed", "Seed", PARAM_INTEGER, false, NULL, seed, "Seed for random number generation."),
    ROW("num_inference_steps", "Num Inference Steps", PARAM_INTEGER, false, "100", steps,
        "Number of denoising steps. More steps usually lead to higher quality images but slower inference. "
        "Modulated by strength."),
    ROW("num_images_per_prompt", "Num Images Per Prompt", PARAM_INTEGER, false, "1", images,
        "Number of images to generate per prompt."),
    ROW("response_format", "Response Format", PARAM_STRING, false, "\"\"", response_format,
        "\"url\": the images as URLs of this server, kept for a while, not as data URLs."),
};

const struct param_table image_to_image_table = {"Body_genImageToImage", rows, sizeof(rows) / sizeof(*rows),
                                                 true};

struct work {
    struct pictures p;
    struct params given;
    char *prompt, *negative; /* NUL-terminated */
    struct buffer upload;    /* the request's body, which holds the picture; empty once that is decoded */
    struct image image;      /* its size from the header, then its pixels */
    struct image_to_image_params run;
};

static void work_free(struct pictures *p)
{
    struct work *w = (struct work *)p;

    params_free(&image_to_image_table, &w->given);
    free(w->prompt);
    free(w->negative);
    buffer_free(&w->upload);
    image_free(&w->image);
    free(w);
}

/* ---- On the worker ---- */

static int work_prepare(struct pictures *p, struct model *m, struct error *err)
{
    struct work *w = (struct work *)p;

    p->cut = model_prompt_cut(m, w->prompt, w->negative);
    return upload_decode(p, &w->given.image, &w->upload, &w->image, err);
}

static int work_make(struct pictures *p, struct model *m, int64_t seed, const struct watcher *watch,
                     struct image *out, struct error *err)
{
    struct work *w = (struct work *)p;
    struct image_to_image_params run = w->run;

    run.image = &w->image;
    run.seed = seed;
    return image_to_image(m, &run, watch, out, err);
}

static const struct pictures_kind kind = {
    .name = "image-to-image",
    .failed = "Image-to-image pipeline error.",
    .memory = "Out of memory error. Try reducing input image resolution.",
    .prepare = work_prepare,
    .make = work_make,
    .free = work_free,
};

/* ---- Checks ---- */

/* Says early what the worker would say later. */
static bool admit(struct work *w, struct model *m, struct reply *reply)
{
    struct image_to_image_params trial = w->run;
    struct error err = {0};

    trial.image = &w->image;
    return image_to_image_admit(m, &trial, &err) == 0 || pictures_refused(&w->p, &err, reply);
}

/* The checks that come before the model is asked, in the order of the contract. */
static bool check_request(struct service *s, const struct api_request *request, struct work *w,
                          struct reply *reply)
{
    const struct params *g = &w->given;

    return pictures_token(request, reply) && pictures_model_id(s, &g->model_id, reply) &&
           upload_probe(&g->image, &w->image, reply) && pictures_wanted(&g->images, reply) &&
           loras_read(&g->loras, kind.failed, &w->p.loras, reply);
}

static bool resolve_prompts(struct work *w, struct reply *reply)
{
    const struct params *g = &w->given;

    w->prompt = prompt_text(g->prompt.data, g->prompt.len);
    w->negative = prompt_text(g->negative_prompt.data, g->negative_prompt.len);
    if (w->prompt && w->negative)
        return true;
    reply->body.failed = true;
    return false;
}

static bool check_run(struct service *s, struct work *w, struct reply *reply)
{
    const struct params *g = &w->given;
    struct model *m = pictures_model(s, reply);

    if (!m || !resolve_prompts(w, reply))
        return false;
    w->run = (struct image_to_image_params){
        .prompt = w->prompt,
        .negative_prompt = w->negative,
        .strength = g->strength,
        .guidance_scale = g->guidance_scale,
        .image_guidance_scale = g->image_guidance_scale,
        .steps = pictures_steps(&g->steps),
        .loras = w->p.loras,
        .safety_check = g->safety_check,
    };
    image_to_image_rules(m, &w->run);
    w->p.width = w->image.width; /* at most; what the VAE's scale cuts off is known when a picture is made */
    w->p.height = w->image.height;
    w->p.steps = w->run.steps;
    return pictures_format(&w->p, s, &g->response_format, reply) &&
           pictures_count(&w->p, &g->images, reply) && pictures_seed(&w->p, &g->seed, reply) &&
           admit(w, m, reply);
}

struct job *image_to_image_job(struct service *s, const struct api_request *request, struct reply *reply)
{
    struct work *w = calloc(1, sizeof(*w));

    if (!w) {
        reply->body.failed = true;
        return NULL;
    }
    pictures_init(&w->p, &kind);
    w->p.png = request->wants_png;
    if (params_read(&image_to_image_table, request, &w->given, reply) &&
        check_request(s, request, w, reply) && check_run(s, w, reply)) {
        w->upload = *request->upload;
        memset(request->upload, 0, sizeof(*request->upload));
        log_debug("request_id=%s prompt=%.300s", request->id, w->prompt);
        return &w->p.job;
    }
    job_put(&w->p.job);
    return NULL;
}
