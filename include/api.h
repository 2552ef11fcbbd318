/* What the HTTP side and the endpoints say to each other. Endpoints know nothing of sockets. */
#ifndef LATENTD_API_H
#define LATENTD_API_H

#include "config.h"
#include "job.h"

/* What every endpoint may look at. */
struct service {
    const struct config *config;
    struct worker *worker;
    struct streams *streams; /* NULL: nothing is kept */
};

struct api_request {
    const char *content_type; /* NULL: no such header */
    const char *body;
    size_t len;
    struct buffer *upload; /* the buffer that holds the body: an endpoint that needs its bytes for longer
                              moves it out and leaves an empty one */
    bool authorized;       /* the bearer token is right, or none is asked for */
    bool wants_png;        /* Accept prefers image/png */
    bool wants_mp4;        /* …video/mp4 */
    const char *id;        /* of the request, for the log */
};

enum { REPLY_HEADERS_MAX = 4 };

struct reply {
    int status;
    const char *content_type; /* a constant */
    struct buffer body;
    bool no_room; /* refused because its job would not fit into memory; for the metrics */
    struct {
        const char *name;
        char value[256];
    } header[REPLY_HEADERS_MAX]; /* ends at the first without a name */
};

/* ---- Replies ---- */

#define CONTENT_JSON "application/json"

/* {"detail":{"msg":…}} */
void reply_error(struct reply *reply, int status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void reply_header(struct reply *reply, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Turns a reply whose body ran out of memory into a 500 that needs none. */
void reply_settle(struct reply *reply);

/* ---- Endpoints that answer at once ---- */

void health_reply(struct service *s, struct reply *reply);
/* For orchestrators: is the process sound, and does it take requests now? DRAINING: it is about to end. */
void live_reply(struct service *s, struct reply *reply);
void ready_reply(struct service *s, bool draining, struct reply *reply);
void ping_reply(struct service *s, bool draining, struct reply *reply);
void version_reply(struct service *s, struct reply *reply);
void hardware_info_reply(struct service *s, struct reply *reply);
void hardware_stats_reply(struct service *s, struct reply *reply);

/* ---- Endpoints that make a job ---- */

/* Each checks REQUEST and either fills REPLY and returns NULL, or returns a job for worker_submit, with one
 * reference. */
struct job *text_to_image_job(struct service *s, const struct api_request *request, struct reply *reply);
struct job *image_to_image_job(struct service *s, const struct api_request *request, struct reply *reply);
struct job *upscale_job(struct service *s, const struct api_request *request, struct reply *reply);
/* Fills REPLY from a job of these that is done. Moves the body out of the job. */
void pictures_reply(struct job *job, struct reply *reply);
/* "size=512x512 steps=20 seed=7 images=1" for the log. */
void pictures_describe(const struct job *job, char *out, size_t size);

/* Its frames leave through the job's pipe, so video_reply is for the rest: errors, and replies that are made
 * whole. */
struct job *image_to_video_job(struct service *s, const struct api_request *request, struct reply *reply);
void video_reply(struct job *job, struct reply *reply);
void video_describe(const struct job *job, char *out, size_t size);

/* What a refusal of worker_submit is called on the wire; always a 500 with "insufficient capacity", the words
 * on which the gateways of the contract try elsewhere. */
void refusal_reply(enum refusal why, struct reply *reply);

/* ---- The OpenAPI document ---- */

enum openapi_form {
    OPENAPI_LIVE, /* compact, titled as FastAPI titles it: what /openapi.json serves */
    OPENAPI_JSON, /* indented by 4, with title, version and servers: `latentd openapi --type json` */
    OPENAPI_YAML
};
enum openapi_entrypoint {
    OPENAPI_RUNNER,
    OPENAPI_GATEWAY /* as a gateway offers it: without health, hardware and version; model_id is required; a
                       video is one file */
};
/* PIPELINE: the one that is served, alone; NULL: all. */
int openapi_write(enum openapi_form form, enum openapi_entrypoint entry, const char *pipeline,
                  const char *version, struct buffer *out, struct error *err);

#endif
