/* Which path is answered by whom. */
#include <stdlib.h>
#include <string.h>

#include "docs.h"
#include "internal.h"

static void health(struct server *srv, struct reply *reply)
{
    health_reply(srv->service, reply);
}

static void live(struct server *srv, struct reply *reply)
{
    live_reply(srv->service, reply);
}

static void ready(struct server *srv, struct reply *reply)
{
    ready_reply(srv->service, atomic_load(&srv->draining), reply);
}

static void ping(struct server *srv, struct reply *reply)
{
    ping_reply(srv->service, atomic_load(&srv->draining), reply);
}

static void version(struct server *srv, struct reply *reply)
{
    version_reply(srv->service, reply);
}

static void hardware_info(struct server *srv, struct reply *reply)
{
    hardware_info_reply(srv->service, reply);
}

static void hardware_stats(struct server *srv, struct reply *reply)
{
    hardware_stats_reply(srv->service, reply);
}

static void openapi(struct server *srv, struct reply *reply)
{
    struct error err = {0};

    reply->status = 200;
    reply->content_type = CONTENT_JSON;
    if (openapi_write(OPENAPI_LIVE, OPENAPI_RUNNER, srv->service->config->pipeline, NULL, &reply->body, &err))
        reply->body.failed = true;
}

#define ANSWERS(path, slash, function)                                                                       \
    {                                                                                                        \
        path, "GET", slash, function, NULL, NULL, NULL, 0, NULL                                              \
    }
#define MAKES(path, job, end, describe, body_max)                                                            \
    {                                                                                                        \
        path, "POST", true, NULL, job, end, describe, body_max, NULL                                         \
    }

const struct route routes[] = {
    MAKES("/text-to-image", text_to_image_job, pictures_reply, pictures_describe, BODY_MAX),
    MAKES("/image-to-image", image_to_image_job, pictures_reply, pictures_describe, UPLOAD_MAX),
    MAKES("/image-to-video", image_to_video_job, video_reply, video_describe, UPLOAD_MAX),
    MAKES("/upscale", upscale_job, pictures_reply, pictures_describe, UPLOAD_MAX),
    {"/stream/", "GET", false, NULL, NULL, NULL, NULL, 0, stream_serve},
    ANSWERS("/health", true, health),
    ANSWERS("/health/live", true, live),
    ANSWERS("/health/ready", true, ready),
    ANSWERS("/ping", true, ping),
    ANSWERS("/hardware/info", true, hardware_info),
    ANSWERS("/hardware/stats", true, hardware_stats),
    ANSWERS("/version", true, version),
    ANSWERS("/metrics", false, metrics_reply),
    ANSWERS("/openapi.json", false, openapi),
    ANSWERS("/docs", false, docs_reply),
    ANSWERS("/redoc", false, redoc_reply),
    ANSWERS("/docs/page.css", false, docs_style_reply),
    ANSWERS("/docs/docs.js", false, docs_script_reply),
    ANSWERS("/docs/redoc.js", false, redoc_script_reply),
};
const int route_count = sizeof(routes) / sizeof(*routes);

bool route_served(const struct route *r, const char *pipeline)
{
    return !r->begin || strcmp(r->path + 1, pipeline) == 0;
}

/* Undoes %XX. False for a path that is no route anyway: too long, a broken escape, an escaped slash or
 * control character. */
static bool decode_path(const char *path, char *out, size_t size)
{
    size_t n = 0;

    for (const char *p = path; *p; p++) {
        char c = *p;
        if (c == '%') {
            static const char hex[] = "0123456789abcdef";
            const char *high = p[1] ? strchr(hex, p[1] | 32) : NULL;
            const char *low = high && p[2] ? strchr(hex, p[2] | 32) : NULL;
            if (!high || !low)
                return false;
            c = (char)((high - hex) * 16 + (low - hex));
            if ((unsigned char)c < 0x20 || c == '/')
                return false;
            p += 2;
        }
        if (n + 1 >= size)
            return false;
        out[n++] = c;
    }
    out[n] = '\0';
    return true;
}

static void plain_detail(struct reply *reply, int status, const char *detail)
{
    reply->status = status;
    reply->content_type = CONTENT_JSON;
    buffer_printf(&reply->body, "{\"detail\":\"%s\"}", detail);
}

const struct route *route_find(const char *pipeline, const char *method, const char *path,
                               struct reply *reply)
{
    char plain[64];
    size_t len;

    if (!decode_path(path, plain, sizeof(plain))) {
        plain_detail(reply, 404, "Not Found");
        return NULL;
    }
    len = strlen(plain);
    bool slash = len > 1 && plain[len - 1] == '/';
    if (slash)
        plain[len - 1] = '\0';
    for (int i = 0; i < route_count; i++) {
        const struct route *r = &routes[i];
        size_t own = strlen(r->path);
        bool below = r->serve && len > own && strncmp(plain, r->path, own) == 0;
        if ((strcmp(plain, r->path) != 0 && !below) || !route_served(r, pipeline))
            continue;
        if (below && (strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0))
            return r;
        if (slash && !r->slash) {
            reply->status = 307;
            reply_header(reply, "Location", "%s", r->path);
            return NULL;
        }
        if (strcmp(method, r->method) == 0)
            return r;
        plain_detail(reply, 405, "Method Not Allowed");
        reply_header(reply, "Allow", below ? "%s, HEAD" : "%s", r->method);
        return NULL;
    }
    plain_detail(reply, 404, "Not Found");
    return NULL;
}
