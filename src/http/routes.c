/* Which path is answered by whom. */
#include <stdlib.h>
#include <string.h>

#include "docs.h"
#include "internal.h"

static void health(struct server *srv, struct reply *reply)
{
    health_reply(srv->service, reply);
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

    (void)srv;
    reply->status = 200;
    reply->content_type = CONTENT_JSON;
    if (openapi_write(OPENAPI_LIVE, NULL, &reply->body, &err))
        reply->body.failed = true;
}

const struct route routes[] = {
    {"/text-to-image", "POST", true, NULL, text_to_image_job, text_to_image_reply, text_to_image_describe},
    {"/health", "GET", true, health, NULL, NULL, NULL},
    {"/hardware/info", "GET", true, hardware_info, NULL, NULL, NULL},
    {"/hardware/stats", "GET", true, hardware_stats, NULL, NULL, NULL},
    {"/version", "GET", true, version, NULL, NULL, NULL},
    {"/metrics", "GET", false, metrics_reply, NULL, NULL, NULL},
    {"/openapi.json", "GET", false, openapi, NULL, NULL, NULL},
    {"/docs", "GET", false, docs_reply, NULL, NULL, NULL},
    {"/redoc", "GET", false, redoc_reply, NULL, NULL, NULL},
};
const int route_count = sizeof(routes) / sizeof(*routes);

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

const struct route *route_find(const char *method, const char *path, struct reply *reply)
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
        if (strcmp(plain, r->path) != 0)
            continue;
        if (slash && !r->slash) {
            reply->status = 307;
            reply_header(reply, "Location", "%s", r->path);
            return NULL;
        }
        if (strcmp(method, r->method) == 0)
            return r;
        plain_detail(reply, 405, "Method Not Allowed");
        reply_header(reply, "Allow", "%s", r->method);
        return NULL;
    }
    plain_detail(reply, 404, "Not Found");
    return NULL;
}
