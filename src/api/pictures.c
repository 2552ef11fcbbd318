/* See pictures.h. */
#include "pictures.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "log.h"
#include "loras.h"
#include "stream_url.h"

/* All pictures of one reply together, uncompressed and as base64. */
#define REPLY_BYTES_MAX ((wide)256 << 20)

/* ---- Checks ---- */

bool pictures_token(const struct api_request *request, struct reply *reply)
{
    if (request->authorized)
        return true;
    reply_error(reply, 401, "Invalid bearer token.");
    reply_header(reply, "WWW-Authenticate", "Bearer");
    return false;
}

bool pictures_model_id(const struct service *s, const struct param_string *asked, struct reply *reply)
{
    const char *served = s->config->model_id;

    if (!asked->len || (strlen(served) == asked->len && memcmp(asked->data, served, asked->len) == 0))
        return true;
    reply_error(reply, 400, "pipeline configured with %s but called with %.300s.", served, asked->data);
    return false;
}

bool pictures_wanted(const struct param_integer *count, struct reply *reply)
{
    if (count->value > 0)
        return true;
    reply->status = 200;
    reply->content_type = CONTENT_JSON;
    buffer_puts(&reply->body, "{\"images\":[]}");
    return false;
}

struct model *pictures_model(struct service *s, struct reply *reply)
{
    enum refusal why = worker_refuses(s->worker);
    struct model *m = worker_model(s->worker);

    if (!why && m)
        return m;
    refusal_reply(why ? why : REFUSED_FAILED, reply);
    return NULL;
}

bool pictures_count(struct pictures *p, const struct param_integer *count, struct reply *reply)
{
    wide each = (wide)p->width * p->height * 4; /* 3 bytes a pixel, 4/3 as base64 */
    wide most = each > 0 ? REPLY_BYTES_MAX / each : 1;
    wide asked = p->png ? 1 : count->value; /* a picture itself is one picture, so only one is made */
    char shown[44];

    most = most < 1 ? 1 : most;
    if (asked <= most) {
        p->images = (int)asked;
        return true;
    }
    wide_format(shown, asked);
    reply_error(reply, 400,
                "num_images_per_prompt is %s, but at most %d images of %d x %d fit into one reply.", shown,
                (int)most, p->width, p->height);
    return false;
}

bool pictures_seed(struct pictures *p, const struct param_integer *seed, struct reply *reply)
{
    uint32_t random = 0;
    char shown[44];

    p->seed = seed->value;
    if (!seed->given) {
        if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
            log_error("no random numbers from the system");
            reply_error(reply, 500, "%s", p->kind->failed);
            return false;
        }
        p->seed = random;
    }
    wide last = p->seed + p->images - 1;
    if (p->seed >= INT64_MIN && last <= UINT64_MAX)
        return true;
    wide_format(shown, p->seed < INT64_MIN ? p->seed : last);
    log_warning("seed %s does not fit into 64 bits", shown);
    reply_error(reply, 500, "%s", p->kind->failed);
    return false;
}

bool pictures_format(struct pictures *p, struct service *s, const struct param_string *given,
                     struct reply *reply)
{
    p->service = s;
    return stream_url_format(s, given, &p->url, reply);
}

void pictures_failed(const struct pictures *p, const struct error *err, struct reply *reply)
{
    if (err->code == ERR_LORA || (err->code == ERR_INVALID && p->own_words))
        reply_error(reply, 400, "%s.", err->msg);
    else if (err->code == ERR_INVALID)
        reply_error(reply, 400, "Error during model execution: %s.", err->msg);
    else if (err->code == ERR_NOMEM)
        reply_error(reply, 500, "%s", p->kind->memory);
    else if (err->code == ERR_CANCELLED)
        reply_error(reply, 500, "insufficient capacity: the server is shutting down");
    else
        reply_error(reply, 500, "%s", p->kind->failed);
}

bool pictures_refused(const struct pictures *p, const struct error *err, struct reply *reply)
{
    log_info("refused: %s", err->msg);
    reply->no_room = err->code == ERR_NOMEM;
    pictures_failed(p, err, reply);
    return false;
}

/* ---- Values ---- */

int64_t pictures_steps(const struct param_integer *steps)
{
    return steps->value < 1 ? 0 : steps->value > INT64_MAX ? INT64_MAX : (int64_t)steps->value;
}

char *prompt_text(const char *at, size_t len)
{
    char *text = malloc(len + 1), *out = text;

    if (!text)
        return NULL;
    for (size_t i = 0; i < len; i++)
        if (at[i])
            *out++ = at[i];
    *out = '\0';
    return text;
}

/* ---- The job ---- */

static void add_image(struct pictures *p, int i, const struct image *image, struct job_result *result)
{
    struct buffer png = {0};
    char seed[44], url[STREAM_URL_MAX];

    if (png_encode(image, p->png ? &result->body : &png, &result->err) || p->png)
        goto out;
    if (p->url && stream_url(p->service, p->reply, "image/png", &png, url, &result->err))
        goto out;
    wide_format(seed, p->seed + i);
    buffer_puts(&result->body, i ? ",{\"url\":\"" : "{\"url\":\"");
    buffer_puts(&result->body, p->url ? url : "data:image/png;base64,");
    buffer_base64(&result->body, png.data, png.len); /* nothing is left of one that is kept */
    buffer_printf(&result->body, "\",\"seed\":%s,\"nsfw\":%s}", seed, image->nsfw ? "true" : "false");
out:
    buffer_free(&png);
    result->images++;
    result->pixels += (uint64_t)image->width * (uint64_t)image->height;
}

static void make_one(struct pictures *p, int i, struct model *model, const struct watcher *watch,
                     struct job_result *result)
{
    struct image image = {0};

    if (p->kind->make(p, model, (int64_t)(uint64_t)(p->seed + i), watch, &image, &result->err))
        return;
    p->width = image.width;
    p->height = image.height;
    if (watch->cancelled(watch->ctx)) {
        error_set(&result->err, ERR_CANCELLED, "cancelled before %s", phase_names[PHASE_ENCODE]);
    } else {
        watch->entered(watch->ctx, PHASE_ENCODE, 0, 0);
        add_image(p, i, &image, result);
    }
    image_free(&image);
}

static void pictures_run(struct job *job, struct model *model, const struct watcher *watch,
                         struct job_result *result)
{
    struct pictures *p = (struct pictures *)job;

    if (!p->png)
        buffer_puts(&result->body, "{\"images\":[");
    if (p->url)
        p->reply = stream_url_reply(p->service);
    p->kind->prepare(p, model, &result->err);
    for (int i = 0; i < p->images && result->err.code == 0; i++)
        make_one(p, i, model, watch, result);
    if (!p->png)
        buffer_puts(&result->body, "]}");
    if (result->body.failed)
        error_set(&result->err, ERR_NOMEM, "no memory for the reply");
    if (result->err.code && result->err.code != ERR_CANCELLED)
        log_error("%s failed: %s", p->kind->name, result->err.msg);
}

static void pictures_destroy(struct job *job)
{
    struct pictures *p = (struct pictures *)job;

    loras_free(&p->loras);
    p->kind->free(p);
}

void pictures_init(struct pictures *p, const struct pictures_kind *kind)
{
    job_init(&p->job);
    p->job.run = pictures_run;
    p->job.destroy = pictures_destroy;
    p->kind = kind;
}

/* ---- The reply ---- */

void pictures_reply(struct job *job, struct reply *reply)
{
    struct pictures *p = (struct pictures *)job;
    char seed[44];

    if (job->result.err.code) {
        pictures_failed(p, &job->result.err, reply);
        return;
    }
    reply->status = 200;
    reply->content_type = p->png ? "image/png" : CONTENT_JSON;
    reply->body = job->result.body;
    memset(&job->result.body, 0, sizeof(job->result.body));
    if (p->cut > 0)
        reply_header(reply, "X-Prompt-Cut", "%d", p->cut);
    if (p->png) {
        wide_format(seed, p->seed);
        reply_header(reply, "X-Seed", "%s", seed);
    }
}

void pictures_describe(const struct job *job, char *out, size_t size)
{
    const struct pictures *p = (const struct pictures *)job;
    char seed[44];

    wide_format(seed, p->seed);
    snprintf(out, size, "size=%dx%d steps=%lld seed=%s images=%d", p->width, p->height, (long long)p->steps,
             seed, p->images);
}
