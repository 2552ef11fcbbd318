/* See stream_url.h. */
#include "stream_url.h"

#include <stdio.h>
#include <string.h>

#include "streams.h"

bool stream_url_ready(const struct service *s)
{
    return s->streams;
}

uint64_t stream_url_reply(const struct service *s)
{
    return s->streams ? streams_reply(s->streams) : 0;
}

int stream_url(struct service *s, uint64_t reply, const char *type, struct buffer *body,
               char url[STREAM_URL_MAX], struct error *err)
{
    char id[STREAM_ID_MAX];
    int rc;

    url[0] = '\0';
    if (!s->streams)
        return error_set(err, ERR_UNSUPPORTED, "this server keeps nothing (LATENTD_STREAM_MIB is 0)");
    rc = streams_put(s->streams, reply, type, body, id, err);
    if (rc == 0)
        snprintf(url, STREAM_URL_MAX, "/stream/%s.%s", id, strrchr(type, '/') + 1);
    return rc;
}

bool stream_url_format(const struct service *s, const struct param_string *given, bool *url,
                       struct reply *reply)
{
    *url = given->len ? strcmp(given->data, "url") == 0 : s->config->response_url;
    if (!*url && given->len && strcmp(given->data, "data") != 0) {
        reply_error(reply, 400, "response_format is \"%.100s\", accepted are \"url\" and \"data\".",
                    given->data);
        return false;
    }
    if (!*url || s->streams)
        return true;
    reply_error(reply, 400, "This server keeps no files, so response_format cannot be \"url\".");
    return false;
}
