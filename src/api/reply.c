/* Replies that every endpoint shares. See api.h. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "api.h"
#include "utf8.h"

void reply_error(struct reply *reply, int status, const char *fmt, ...)
{
    char msg[2048];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(msg, sizeof(msg), fmt, ap);
    va_end(ap);
    reply->status = status;
    reply->content_type = CONTENT_JSON;
    buffer_puts(&reply->body, "{\"detail\":{\"msg\":");
    buffer_json_string(&reply->body, msg, utf8_repair(msg));
    buffer_puts(&reply->body, "}}");
}

void reply_header(struct reply *reply, const char *name, const char *fmt, ...)
{
    va_list ap;

    for (int i = 0; i < REPLY_HEADERS_MAX; i++) {
        if (reply->header[i].name)
            continue;
        reply->header[i].name = name;
        va_start(ap, fmt);
        vsnprintf(reply->header[i].value, sizeof(reply->header[i].value), fmt, ap);
        va_end(ap);
        return;
    }
}

void reply_settle(struct reply *reply)
{
    static const char text[] = "{\"detail\":{\"msg\":\"Out of memory.\"}}";

    if (!reply->body.failed)
        return;
    buffer_free(&reply->body);
    reply->status = 500;
    reply->content_type = CONTENT_JSON;
    buffer_puts(&reply->body, text); /* when even this fails the body stays empty */
}

void refusal_reply(enum refusal why, struct reply *reply)
{
    static const char *const text[REFUSAL_COUNT] = {
        [REFUSED_FULL] = "the queue is full, try again later",
        [REFUSED_LOADING] = "the model is still loading, try again later",
        [REFUSED_DRAINING] = "the server is shutting down",
        [REFUSED_FAILED] = "the server has failed and is about to end",
    };

    reply_error(reply, 500, "insufficient capacity: %s", text[why]);
}
