/* POST /upscale: its parameters, its checks in the contract's order, and its run. One picture, always; the
 * guidance is diffusers' default. Seed 0 is a seed like any other; the original takes it for none. */
#include "upscale.h"

#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "upload.h"

#define GUIDANCE 9.0

struct params {
    struct param_string prompt, model_id, response_format;
    struct param_file image;
    struct param_integer seed, steps;
    bool safety_check;
};

#define ROW(json_name, title, type, required, fallback, field, description)                                  \
    {                                                                                                        \
        json_name, title, type, required, fallback, description, offsetof(struct params, field)              \
    }

static const struct param rows[] = {
    ROW("prompt", "Prompt", PARAM_STRING, true, NULL, prompt,
        "Text prompt(s) to guide upscaled image generation."),
    ROW("image", "Image", PARAM_FILE, true, NULL, image, "Uploaded image to modify with the pipeline."),
    ROW("model_id", "Model Id", PARAM_STRING, false, "\"\"", model_id,
        "Hugging Face model ID used for upscaled image generation."),
    ROW("safety_check", "Safety Check", PARAM_BOOLEAN, false, "true", safety_check,
        "Perform a safety check to estimate if generated images could be offensive or harmful."),
    ROW("seed", "Seed", PARAM_INTEGER, false, NULL, seed, "Seed for random number generation."),
    ROW("num_inference_steps", "Num Inference Steps", PARAM_INTEGER, false, "75", steps,
        "Number of denoising steps. More steps usually lead to higher quality images but slower inference. "
        "Modulated by strength."),
    ROW("response_format", "Response Format", PARAM_STRING, false, "\"\"", response_format,
        "\"url\": the images as URLs of this server, kept for a while, not as data URLs."),
};

const struct param_table upscale_table = {"Body_genUpscale", rows, sizeof(rows) / sizeof(*rows), true};

struct work {
    struct pictures p;
    struct params given;
    char *prompt;         /* NUL-terminated */
    struct buffer upload; /* the request's body, which holds the picture; empty once that is decoded */
    struct image image;   /* its size from the header, then its pixels */
    struct upscale_params run;
};

static void work_free(struct pictures *p)
{
    struct work *w = (struct work *)p;

    params_free(&upscale_table, &w->given);
    free(w->prompt);
    buffer_free(&w->upload);
    image_free(&w->image);
    free(w);
}

/* ---- On the worker ---- */

static int work_prepare(struct pictures *p, struct model *m, struct error *err)
{
    struct work *w = (struct work *)p;

    p->cut = model_prompt_cut(m, w->prompt, NULL);
    return upload_decode(p, &w->given.image, &w->upload, &w->image, err);
}

static int work_make(struct pictures *p, struct model *m, int64_t seed, const struct watcher *watch,
                     struct image *out, struct error *err)
{
    struct work *w = (struct work *)p;
    struct upscale_params run = w->run;

    run.image = &w->image;
    run.seed = seed;
    return upscale(m, &run, watch, out, err);
}

static const struct pictures_kind kind = {
    .name = "upscale",
    .failed = "Upscale pipeline error.",
    .memory = "Out of memory error. Try reducing input image resolution.",
    .prepare = work_prepare,
    .make = work_make,
    .free = work_free,
};

/* ---- Checks ---- */

/* Says early what the worker would say later. */
static bool admit(struct work *w, struct model *m, struct reply *reply)
{
    struct upscale_params trial = w->run;
    struct error err = {0};

    trial.image = &w->image;
    return upscale_admit(m, &trial, &err) == 0 || pictures_refused(&w->p, &err, reply);
}

static bool check_run(struct service *s, struct work *w, struct reply *reply)
{
    static const struct param_integer one = {.value = 1};
    const struct params *g = &w->given;
    struct model *m = pictures_model(s, reply);

    if (!m)
        return false;
    w->prompt = prompt_text(g->prompt.data, g->prompt.len);
    if (!w->prompt) {
        reply->body.failed = true;
        return false;
    }
    w->run = (struct upscale_params){.prompt = w->prompt,
                                     .guidance_scale = GUIDANCE,
                                     .steps = pictures_steps(&g->steps),
                                     .safety_check = g->safety_check};
    w->p.width = w->image.width; /* of the input; the pipeline knows how large the output is */
    w->p.height = w->image.height;
    w->p.steps = w->run.steps;
    return pictures_format(&w->p, s, &g->response_format, reply) && pictures_count(&w->p, &one, reply) &&
           pictures_seed(&w->p, &g->seed, reply) && admit(w, m, reply);
}

struct job *upscale_job(struct service *s, const struct api_request *request, struct reply *reply)
{
    struct work *w = calloc(1, sizeof(*w));

    if (!w) {
        reply->body.failed = true;
        return NULL;
    }
    pictures_init(&w->p, &kind);
    w->p.png = request->wants_png;
    if (params_read(&upscale_table, request, &w->given, reply) && pictures_token(request, reply) &&
        pictures_model_id(s, &w->given.model_id, reply) && upload_probe(&w->given.image, &w->image, reply) &&
        check_run(s, w, reply)) {
        w->upload = *request->upload;
        memset(request->upload, 0, sizeof(*request->upload));
        log_debug("request_id=%s prompt=%.300s", request->id, w->prompt);
        return &w->p.job;
    }
    job_put(&w->p.job);
    return NULL;
}
