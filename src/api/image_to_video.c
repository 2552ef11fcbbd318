/* POST /image-to-video: its parameters, its checks in the contract's order, and its runs. The frames leave as
 * they are decoded, so a request that goes wrong before its first frame is answered with an error, and one
 * that goes wrong later breaks off. */
#include "image_to_video.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frames.h"
#include "log.h"
#include "stream_url.h"
#include "upload.h"

enum { PIPE_BYTES = 512 << 10 };

struct params {
    struct param_string model_id, response_format;
    struct param_file image;
    struct param_integer height, width, fps, motion_bucket_id, seed, steps;
    double noise_aug_strength;
    bool safety_check;
};

#define ROW(json_name, title, type, required, fallback, field, description)                                  \
    {                                                                                                        \
        json_name, title, type, required, fallback, description, offsetof(struct params, field)              \
    }

static const struct param rows[] = {
    ROW("image", "Image", PARAM_FILE, true, NULL, image, "Uploaded image to generate a video from."),
    ROW("model_id", "Model Id", PARAM_STRING, false, "\"\"", model_id,
        "Hugging Face model ID used for video generation."),
    ROW("height", "Height", PARAM_INTEGER, false, "576", height,
        "The height in pixels of the generated video."),
    ROW("width", "Width", PARAM_INTEGER, false, "1024", width, "The width in pixels of the generated video."),
    ROW("fps", "Fps", PARAM_INTEGER, false, "6", fps, "The frames per second of the generated video."),
    ROW("motion_bucket_id", "Motion Bucket Id", PARAM_INTEGER, false, "127", motion_bucket_id,
        "Used for conditioning the amount of motion for the generation. The higher the number the more "
        "motion will be in the video."),
    ROW("noise_aug_strength", "Noise Aug Strength", PARAM_NUMBER, false, "0.02", noise_aug_strength,
        "Amount of noise added to the conditioning image. Higher values reduce resemblance to the "
        "conditioning image and increase motion."),
    ROW("safety_check", "Safety Check", PARAM_BOOLEAN, false, "true", safety_check,
        "Perform a safety check to estimate if generated images could be offensive or harmful."),
    ROW("seed", "Seed", PARAM_INTEGER, false, NULL, seed, "Seed for random number generation."),
    ROW("num_inference_steps", "Num Inference Steps", PARAM_INTEGER, false, "25", steps,
        "Number of denoising steps. More steps usually lead to higher quality images but slower inference. "
        "Modulated by strength."),
    ROW("response_format", "Response Format", PARAM_STRING, false, "\"\"", response_format,
        "\"url\": the frames as URLs of this server, kept for a while, not as data URLs."),
};

const struct param_table image_to_video_table = {"Body_genImageToVideo", rows, sizeof(rows) / sizeof(*rows),
                                                 true};

struct work {
    struct pictures p;
    struct service *service;
    struct params given;
    struct buffer upload; /* the request's body, which holds the picture; empty once that is decoded */
    struct image image;   /* its size from the header, then its pixels */
    struct image_to_video_params run;
    enum frames_form form;
};

static void work_free(struct pictures *p)
{
    struct work *w = (struct work *)p;

    params_free(&image_to_video_table, &w->given);
    buffer_free(&w->upload);
    image_free(&w->image);
    pipe_close(&p->job.pipe);
    free(w);
}

static const struct pictures_kind kind = {
    .name = "image-to-video",
    .failed = "Image-to-video pipeline error.",
    .memory = "Out of memory error. Try reducing input or output video resolution.",
    .free = work_free,
};

/* ---- On the worker ---- */

static int make_video(struct work *w, struct model *model, struct frames *f, struct error *err)
{
    struct frame_sink sink = {frames_add, f};
    int rc = upload_decode(&w->p, &w->given.image, &w->upload, &w->image, err);

    if (rc == 0) {
        w->run.image = &w->image;
        rc = image_to_video(model, &w->run, f->watch, &sink, err);
    }
    return rc ? rc : frames_finish(f, err);
}

static void video_run(struct job *job, struct model *model, const struct watcher *watch,
                      struct job_result *result)
{
    struct work *w = (struct work *)job;
    struct frames *f = calloc(1, sizeof(*f));

    if (!f) {
        error_set(&result->err, ERR_NOMEM, "no memory for the reply");
        return;
    }
    f->service = w->service;
    f->reply = stream_url_reply(w->service);
    f->watch = watch;
    f->form = w->form;
    f->pipe = job->pipe;
    f->body = &result->body;
    f->fps = w->run.fps > INT_MAX ? INT_MAX : (int)w->run.fps;
    wide_format(f->seed, w->p.seed);
    make_video(w, model, f, &result->err);
    w->p.images = result->images = f->images;
    result->pixels = f->pixels;
    if (f->images) {
        w->p.width = f->width;
        w->p.height = f->height;
    }
    frames_free(f);
    free(f);
    if (result->err.code && result->err.code != ERR_CANCELLED)
        log_error("%s failed: %s", kind.name, result->err.msg);
}

/* ---- Checks ---- */

static bool size_error(const struct params *g, struct reply *reply, bool divisible)
{
    char height[44], width[44];

    wide_format(height, g->height.value);
    wide_format(width, g->width.value);
    if (divisible)
        reply_error(reply, 500, "%s", kind.memory);
    else
        reply_error(reply, 400, "`height` and `width` have to be divisible by 8 but are %s and %s.", height,
                    width);
    return false;
}

/* Width and height as the pipeline wants them. Before a model is loaded the contract's defaults stand for
 * those of the model. */
static bool check_size(struct service *s, struct work *w, struct reply *reply)
{
    struct model *m = worker_model(s->worker);
    struct params *g = &w->given;
    int width = 1024, height = 576;

    if (m)
        model_default_size(m, &width, &height);
    if (!g->height.given)
        g->height.value = height;
    if (!g->width.given)
        g->width.value = width;
    if (g->height.value % 8 || g->width.value % 8)
        return size_error(g, reply, false);
    if (g->height.value > INT_MAX || g->width.value > INT_MAX)
        return size_error(g, reply, true);
    w->run.height = g->height.value < INT_MIN ? INT_MIN : (int)g->height.value;
    w->run.width = g->width.value < INT_MIN ? INT_MIN : (int)g->width.value;
    return true;
}

/* What the reply is to be, and whether it can be had here. */
static bool check_form(const struct api_request *request, struct work *w, struct reply *reply)
{
    bool url;

    if (!stream_url_format(w->service, &w->given.response_format, &url, reply))
        return false;
    w->form = request->wants_mp4 ? FRAMES_MP4 : url ? FRAMES_URL : FRAMES_DATA;
    if (w->form != FRAMES_MP4 || mp4_encoder())
        return true;
    reply_error(reply, 400,
                "This server has no H.264 encoder, so it cannot answer with video/mp4; without that in "
                "Accept it answers with the frames as pictures.");
    return false;
}

static int64_t clamp(wide v)
{
    return v > INT64_MAX ? INT64_MAX : v < INT64_MIN ? INT64_MIN : (int64_t)v;
}

/* Says early what the worker would say later. */
static bool admit(struct work *w, struct model *m, struct reply *reply)
{
    struct image_to_video_params trial = w->run;
    struct error err = {0};

    trial.image = &w->image;
    if (w->form == FRAMES_MP4 && mp4_admit_fps(trial.fps, &err))
        return pictures_refused(&w->p, &err, reply);
    return image_to_video_admit(m, &trial, &err) == 0 || pictures_refused(&w->p, &err, reply);
}

static bool open_pipe(struct work *w, struct reply *reply)
{
    struct error err = {0};

    return w->form != FRAMES_DATA || pipe_open(&w->p.job.pipe, PIPE_BYTES, &err) == 0 ||
           pictures_refused(&w->p, &err, reply);
}

static bool check_run(struct service *s, struct work *w, struct reply *reply)
{
    const struct params *g = &w->given;
    struct model *m = pictures_model(s, reply);

    w->p.images = 1;
    if (!m || !pictures_seed(&w->p, &g->seed, reply))
        return false;
    w->run.fps = clamp(g->fps.value);
    w->run.motion_bucket_id = clamp(g->motion_bucket_id.value);
    w->run.noise_aug_strength = g->noise_aug_strength;
    w->run.steps = pictures_steps(&g->steps);
    w->run.seed = (int64_t)(uint64_t)w->p.seed;
    w->run.safety_check = g->safety_check;
    w->p.steps = w->run.steps;
    w->p.width = w->run.width;
    w->p.height = w->run.height;
    return admit(w, m, reply) && open_pipe(w, reply);
}

struct job *image_to_video_job(struct service *s, const struct api_request *request, struct reply *reply)
{
    struct work *w = calloc(1, sizeof(*w));

    if (!w) {
        reply->body.failed = true;
        return NULL;
    }
    pictures_init(&w->p, &kind);
    w->p.job.run = video_run;
    w->service = s;
    if (params_read(&image_to_video_table, request, &w->given, reply) && pictures_token(request, reply) &&
        pictures_model_id(s, &w->given.model_id, reply) && check_size(s, w, reply) &&
        upload_probe(&w->given.image, &w->image, reply) && check_form(request, w, reply) &&
        check_run(s, w, reply)) {
        w->upload = *request->upload;
        memset(request->upload, 0, sizeof(*request->upload));
        return &w->p.job;
    }
    job_put(&w->p.job);
    return NULL;
}

/* ---- The reply ---- */

void video_reply(struct job *job, struct reply *reply)
{
    struct work *w = (struct work *)job;
    char seed[44];

    if (job->result.err.code) {
        pictures_failed(&w->p, &job->result.err, reply);
        return;
    }
    reply->status = 200;
    reply->content_type = w->form == FRAMES_MP4 ? "video/mp4" : CONTENT_JSON;
    reply->body = job->result.body;
    memset(&job->result.body, 0, sizeof(job->result.body));
    if (w->form != FRAMES_MP4)
        return;
    wide_format(seed, w->p.seed);
    reply_header(reply, "X-Seed", "%s", seed);
}

void video_describe(const struct job *job, char *out, size_t size)
{
    const struct work *w = (const struct work *)job;
    char seed[44];

    wide_format(seed, w->p.seed);
    snprintf(out, size, "size=%dx%d steps=%lld seed=%s frames=%d fps=%lld", w->p.width, w->p.height,
             (long long)w->p.steps, seed, w->p.images, (long long)w->run.fps);
}
