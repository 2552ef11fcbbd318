/* Pictures and videos that a reply names by URL. */
#ifndef LATENTD_API_STREAM_URL_H
#define LATENTD_API_STREAM_URL_H

#include "params.h"

enum { STREAM_URL_MAX = 64 };

/* False where nothing is kept: response_format "url" is refused. */
bool stream_url_ready(const struct service *s);
/* For stream_url, once for each reply; see streams_reply(). */
uint64_t stream_url_reply(const struct service *s);
/* Keeps BODY, which is moved (left empty), and writes its URL, "/stream/<id>.png" or ".mp4", to URL. TYPE is
 * a constant: "image/png" or "video/mp4". ERR_UNSUPPORTED: nothing is kept here. */
int stream_url(struct service *s, uint64_t reply, const char *type, struct buffer *body,
               char url[STREAM_URL_MAX], struct error *err);
/* Whether a reply names what it made by URL: as GIVEN (the parameter response_format) asks, else as the
 * daemon is set. True, or false and a filled REPLY. */
bool stream_url_format(const struct service *s, const struct param_string *given, bool *url,
                       struct reply *reply);

#endif
