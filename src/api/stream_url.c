/* See stream_url.h. This build has no store for them. */
#include "stream_url.h"

bool stream_url_ready(const struct service *s)
{
    (void)s;
    return false;
}

int stream_url(struct service *s, const char *type, struct buffer *body, char url[STREAM_URL_MAX],
               struct error *err)
{
    (void)s;
    (void)body;
    url[0] = '\0';
    return error_set(err, ERR_UNSUPPORTED, "this server keeps nothing of type %s", type);
}
