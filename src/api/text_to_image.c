/* POST /text-to-image: its parameters, its checks in the contract's order, its job and its reply. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "image.h"
#include "log.h"
#include "loras.h"
#include "text.h"
#include "text_to_image.h"

enum { ADMIT_STEPS_MAX = 20, PROMPT_PARTS_MAX = 4 };
/* All pictures of one reply together, uncompressed and as base64. */
#define REPLY_BYTES_MAX ((wide)256 << 20)
#define PIPELINE_ERROR  "Text-to-image pipeline error."

struct params {
    struct param_string model_id, loras, prompt, negative_prompt;
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
};

const struct param_table text_to_image_table = {"TextToImageParams", rows, sizeof(rows) / sizeof(*rows),
                                                false};

/* One request, from its checks to its reply. */
struct text_to_image_work {
    struct job job;
    struct params given;
    char *prompt, *negative_prompt; /* the parts that count, NUL-terminated */
    struct text_to_image_params run;
    wide seed;
    int images;
    bool png;
};

static void work_destroy(struct job *job)
{
    struct text_to_image_work *w = (struct text_to_image_work *)job;

    params_free(&text_to_image_table, &w->given);
    free(w->prompt);
    free(w->negative_prompt);
    free(w);
}

/* ---- Prompts ---- */

/* Splits TEXT at '|' into at most four parts, strips them and drops the empty ones. The first that is left is
 * the prompt of the one text encoder that SD 1.x and 2.x have; NUL characters are taken out as the tokenizer
 * would. *OUT is NULL when nothing is left. Returns 0 or ERR_NOMEM. */
static int first_prompt(const struct param_string *text, char **out)
{
    const char *at = text->data, *end = text->data + text->len;

    *out = NULL;
    for (int part = 1; part <= PROMPT_PARTS_MAX; part++) {
        const char *bar = part < PROMPT_PARTS_MAX ? memchr(at, '|', (size_t)(end - at)) : NULL;
        const char *s = at;
        size_t len = (size_t)((bar ? bar : end) - at);
        text_strip(&s, &len, true);
        if (len) {
            char *o = *out = malloc(len + 1);
            if (!o)
                return ERR_NOMEM;
            for (size_t i = 0; i < len; i++)
                if (s[i])
                    *o++ = s[i];
            *o = '\0';
            return 0;
        }
        if (!bar)
            return 0;
        at = bar + 1;
    }
    return 0;
}

/* ---- Checks that need the model ---- */

static int clamp(wide v)
{
    return v > INT_MAX ? INT_MAX : v < INT_MIN ? INT_MIN : (int)v;
}

/* Width and height as the pipeline wants them; sizes that no int holds are answered here. */
static bool resolve_size(struct text_to_image_work *w, struct model *m, struct reply *reply)
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
    if (g->height.value % 8 || g->width.value % 8 || g->height.value <= 0 || g->width.value <= 0)
        reply_error(
            reply, 400,
            "Error during model execution: `height` and `width` have to be divisible by 8 but are %s and %s.",
            height, width);
    else
        reply_error(reply, 500, "Out of memory error. Try reducing output image resolution.");
    return false;
}

/* The first seed: the given one, or a random one of 32 bits. All seeds of the request must be 64-bit numbers
 * for torch. */
static bool resolve_seed(struct text_to_image_work *w, struct reply *reply)
{
    uint32_t random = 0;
    char shown[44];

    w->seed = w->given.seed.value;
    if (!w->given.seed.given) {
        if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
            log_error("no random numbers from the system");
            reply_error(reply, 500, PIPELINE_ERROR);
            return false;
        }
        w->seed = random;
    }
    wide last = w->seed + w->images - 1;
    if (w->seed >= INT64_MIN && last <= UINT64_MAX)
        return true;
    wide_format(shown, w->seed < INT64_MIN ? w->seed : last);
    log_warning("seed %s does not fit into 64 bits", shown);
    reply_error(reply, 500, PIPELINE_ERROR);
    return false;
}

static bool resolve_prompts(struct text_to_image_work *w, struct reply *reply)
{
    if (first_prompt(&w->given.prompt, &w->prompt) ||
        first_prompt(&w->given.negative_prompt, &w->negative_prompt)) {
        reply->body.failed = true;
        return false;
    }
    if (!w->prompt) {
        reply_error(reply, 500, PIPELINE_ERROR); /* only bars and blanks */
        return false;
    }
    w->run.prompt = w->prompt;
    w->run.negative_prompt = w->negative_prompt;
    return true;
}

/* So many pictures that their reply would not fit in memory are refused before the first is made. */
static bool check_count(struct text_to_image_work *w, struct reply *reply)
{
    wide each = (wide)w->run.width * w->run.height * 4; /* 3 bytes a pixel, 4/3 as base64 */
    wide most = each > 0 ? REPLY_BYTES_MAX / each : 1;
    char asked[44];

    most = most < 1 ? 1 : most;
    if (w->given.images.value <= most) {
        w->images = (int)w->given.images.value;
        return true;
    }
    wide_format(asked, w->given.images.value);
    reply_error(reply, 400,
                "num_images_per_prompt is %s, but at most %d images of %d x %d fit into one reply.", asked,
                (int)most, w->run.width, w->run.height);
    return false;
}

/* What a failed run is called on the wire. Details that could tell about the machine stay in the log. */
static void failure_reply(const struct error *err, struct reply *reply)
{
    if (err->code == ERR_INVALID)
        reply_error(reply, 400, "Error during model execution: %s.", err->msg);
    else if (err->code == ERR_NOMEM)
        reply_error(reply, 500, "Out of memory error. Try reducing output image resolution.");
    else if (err->code == ERR_CANCELLED)
        reply_error(reply, 500, "insufficient capacity: the server is shutting down");
    else
        reply_error(reply, 500, PIPELINE_ERROR);
}

/* Says early what the worker would say later. The plan's cost grows with the steps but its memory hardly
 * does, so a long run is tried with few of them; the worker checks again. */
static bool admit(struct text_to_image_work *w, struct model *m, struct reply *reply)
{
    struct text_to_image_params trial = w->run;
    struct error err = {0};

    if (trial.steps < 1 || trial.steps > ADMIT_STEPS_MAX)
        trial.steps = ADMIT_STEPS_MAX;
    if (text_to_image_admit(m, &trial, &err) == 0)
        return true;
    log_info("refused: %s", err.msg);
    failure_reply(&err, reply);
    return false;
}

/* ---- The job ---- */

static void add_image(struct text_to_image_work *w, int i, const struct image *image,
                      struct job_result *result)
{
    struct buffer png = {0};
    char seed[44];

    if (png_encode(image, w->png ? &result->body : &png, &result->err) || w->png)
        goto out;
    wide_format(seed, w->seed + i);
    buffer_puts(&result->body,
                i ? ",{\"url\":\"data:image/png;base64," : "{\"url\":\"data:image/png;base64,");
    buffer_base64(&result->body, png.data, png.len);
    buffer_printf(&result->body, "\",\"seed\":%s,\"nsfw\":false}", seed);
out:
    buffer_free(&png);
    result->images++;
    result->pixels += (uint64_t)image->width * (uint64_t)image->height;
}

static void work_run(struct job *job, struct model *model, const struct watcher *watch,
                     struct job_result *result)
{
    struct text_to_image_work *w = (struct text_to_image_work *)job;
    struct text_to_image_params params = w->run;

    if (!w->png)
        buffer_puts(&result->body, "{\"images\":[");
    for (int i = 0; i < w->images && result->err.code == 0; i++) {
        struct image image = {0};
        params.seed = (int64_t)(uint64_t)(w->seed + i);
        if (text_to_image(model, &params, watch, &image, &result->err))
            break;
        if (watch->cancelled(watch->ctx)) {
            error_set(&result->err, ERR_CANCELLED, "cancelled before %s", phase_names[PHASE_ENCODE]);
        } else {
            watch->entered(watch->ctx, PHASE_ENCODE, 0, 0);
            add_image(w, i, &image, result);
        }
        image_free(&image);
    }
    if (!w->png)
        buffer_puts(&result->body, "]}");
    if (result->body.failed)
        error_set(&result->err, ERR_NOMEM, "no memory for the reply");
    if (result->err.code && result->err.code != ERR_CANCELLED)
        log_error("text-to-image failed: %s", result->err.msg);
}

/* ---- The endpoint ---- */

/* The checks that come before the model is asked, in the order of the contract; auth comes before the empty
 * prompt here. */
static bool check_request(struct service *s, const struct api_request *request, const struct params *g,
                          struct reply *reply)
{
    if (!request->authorized) {
        reply_error(reply, 401, "Invalid bearer token.");
        reply_header(reply, "WWW-Authenticate", "Bearer");
    } else if (g->prompt.len == 0) {
        reply_error(reply, 400, "Prompt must be provided.");
    } else if (g->model_id.len && (strlen(s->config->model_id) != g->model_id.len ||
                                   memcmp(g->model_id.data, s->config->model_id, g->model_id.len) != 0)) {
        reply_error(reply, 400, "pipeline configured with %s but called with %.300s.", s->config->model_id,
                    g->model_id.data);
    } else if (g->images.value <= 0) {
        reply->status = 200;
        reply->content_type = CONTENT_JSON;
        buffer_puts(&reply->body, "{\"images\":[]}");
    } else {
        return true;
    }
    return false;
}

/* The checks that the original makes while it runs. */
static bool check_run(struct service *s, struct text_to_image_work *w, struct reply *reply)
{
    struct params *g = &w->given;

    if (!loras_check(&g->loras, reply) || !resolve_prompts(w, reply))
        return false;
    enum refusal why = worker_refuses(s->worker);
    struct model *m = worker_model(s->worker);
    if (why || !m) {
        refusal_reply(why ? why : REFUSED_FAILED, reply);
        return false;
    }
    w->run.guidance_scale = g->guidance_scale;
    w->run.steps = g->steps.value < 1 ? 0 : g->steps.value > INT64_MAX ? INT64_MAX : (int64_t)g->steps.value;
    if (!resolve_size(w, m, reply))
        return false;
    text_to_image_rules(m, &w->run);
    return check_count(w, reply) && resolve_seed(w, reply) && admit(w, m, reply);
}

struct job *text_to_image_job(struct service *s, const struct api_request *request, struct reply *reply)
{
    struct text_to_image_work *w = calloc(1, sizeof(*w));

    if (!w) {
        reply->body.failed = true;
        return NULL;
    }
    job_init(&w->job);
    w->job.run = work_run;
    w->job.destroy = work_destroy;
    if (params_read(&text_to_image_table, request, &w->given, reply) &&
        check_request(s, request, &w->given, reply)) {
        w->png = request->wants_png;
        if (w->png)
            w->given.images.value = 1; /* the reply holds one picture, so only one is made */
        if (check_run(s, w, reply)) {
            log_debug("request_id=%s prompt=%.300s", request->id, w->prompt);
            return &w->job;
        }
    }
    job_put(&w->job);
    return NULL;
}

void text_to_image_reply(struct job *job, struct reply *reply)
{
    struct text_to_image_work *w = (struct text_to_image_work *)job;
    char seed[44];

    if (job->result.err.code) {
        failure_reply(&job->result.err, reply);
        return;
    }
    reply->status = 200;
    reply->content_type = w->png ? "image/png" : CONTENT_JSON;
    reply->body = job->result.body;
    memset(&job->result.body, 0, sizeof(job->result.body));
    if (w->png) {
        wide_format(seed, w->seed);
        reply_header(reply, "X-Seed", "%s", seed);
    }
}

void text_to_image_describe(const struct job *job, char *out, size_t size)
{
    const struct text_to_image_work *w = (const struct text_to_image_work *)job;
    char seed[44];

    wide_format(seed, w->seed);
    snprintf(out, size, "size=%dx%d steps=%lld seed=%s images=%d", w->run.width, w->run.height,
             (long long)w->run.steps, seed, w->images);
}
