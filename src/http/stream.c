/* GET and HEAD /stream/<id>.png and .mp4: what replies name by URL, whole or one range of it (RFC 9110,
 * sections 13 and 14). No token is asked for: whoever has the id was given it, and a browser that shows a
 * picture could not send one. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "streams.h"

struct sent {
    struct streams *streams;
    const struct stream_blob *blob;
};

static void sent_free(void *ctx)
{
    struct sent *sent = ctx;

    streams_release(sent->streams, sent->blob);
    free(sent);
}

static const char *header(const struct request *r, const char *name)
{
    return MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, name);
}

/* Decimal digits at *AT, which moves behind them. False: none. What no size_t holds saturates. */
static bool read_number(const char **at, size_t *out)
{
    const char *begin = *at;

    for (*out = 0; isdigit((unsigned char)**at); (*at)++)
        *out = *out > SIZE_MAX / 10 - 1 ? SIZE_MAX - 9 : *out * 10 + (size_t)(**at - '0');
    return *at > begin;
}

enum range { RANGE_NONE, RANGE_PART, RANGE_OUTSIDE };

/* One range of LEN bytes, from *FIRST to *LAST. Several ranges, and what is no range, are ignored, as a
 * server may: the reply is the whole. */
static enum range read_range(const char *text, size_t len, size_t *first, size_t *last)
{
    size_t from = 0, to = SIZE_MAX;

    if (!text || strncmp(text, "bytes=", 6) != 0)
        return RANGE_NONE;
    text += 6;
    bool has_from = read_number(&text, &from);
    if (*text++ != '-')
        return RANGE_NONE;
    bool has_to = read_number(&text, &to);
    if (*text || (!has_from && !has_to) || (has_from && has_to && to < from))
        return RANGE_NONE;
    if (!has_from) { /* the last bytes */
        if (to == 0)
            return RANGE_OUTSIDE;
        from = to < len ? len - to : 0;
        to = SIZE_MAX;
    }
    if (from >= len)
        return RANGE_OUTSIDE;
    *first = from;
    *last = has_to && to < len - 1 ? to : len - 1;
    return RANGE_PART;
}

/* True when LIST, a header of entity tags, names ETAG. */
static bool names_etag(const char *list, const char *etag)
{
    return list && (strcmp(list, "*") == 0 || strstr(list, etag));
}

/* The blob of "/stream/<id>.<ext>", or NULL. */
static const struct stream_blob *find(struct streams *s, const char *path, char id[STREAM_ID_MAX])
{
    const char *name = path + strlen("/stream/"), *dot = strchr(name, '.');
    const struct stream_blob *blob;

    if (!s || !dot || dot - name >= STREAM_ID_MAX)
        return NULL;
    memcpy(id, name, (size_t)(dot - name));
    id[dot - name] = '\0';
    blob = streams_get(s, id);
    if (blob && strcmp(dot + 1, strrchr(blob->type, '/') + 1) == 0)
        return blob;
    if (blob)
        streams_release(s, blob);
    return NULL;
}

/* Queues the bytes FIRST to LAST of SENT's blob, which the response takes over. */
static enum MHD_Result send_bytes(struct request *r, struct sent *sent, size_t first, size_t last)
{
    size_t len = last - first + 1;
    struct MHD_Response *response = MHD_create_response_from_buffer_with_free_callback_cls(
        len, (void *)(sent->blob->data + first), sent_free, sent);

    if (!response) {
        sent_free(sent);
        return MHD_NO;
    }
    r->sent = strcmp(r->method, "HEAD") == 0 ? 0 : len;
    connection_deadline(r->connection, clock_now() + REPLY_SECONDS + (double)len / REPLY_RATE);
    return request_respond(r, response);
}

enum MHD_Result stream_serve(struct request *r)
{
    struct service *service = r->server->service;
    struct reply *reply = &r->reply;
    char id[STREAM_ID_MAX], etag[STREAM_ID_MAX + 2];
    const struct stream_blob *blob = find(service->streams, r->path, id);
    struct sent *sent;

    if (!blob) {
        reply_error(reply, 404, "There is nothing here, or no longer.");
        return request_send(r);
    }
    snprintf(etag, sizeof(etag), "\"%s\"", id);
    size_t first = 0, last = blob->len - 1;
    const char *if_range = header(r, "If-Range");
    enum range range = RANGE_NONE;
    if (strcmp(r->method, "GET") == 0 && (!if_range || strcmp(if_range, etag) == 0)) /* HEAD has no ranges */
        range = read_range(header(r, "Range"), blob->len, &first, &last);
    reply_header(reply, "ETag", "%s", etag);
    reply_header(reply, "Accept-Ranges", "bytes");
    if (names_etag(header(r, "If-None-Match"), etag)) {
        streams_release(service->streams, blob);
        reply_header(reply, "Cache-Control", "private, max-age=%d", service->config->stream_seconds);
        reply->status = 304;
        return request_send(r);
    }
    if (range == RANGE_OUTSIDE) {
        reply_header(reply, "Content-Range", "bytes */%zu", blob->len);
        streams_release(service->streams, blob);
        reply_error(reply, 416, "The range lies outside of the file.");
        return request_send(r);
    }
    sent = malloc(sizeof(*sent));
    if (!sent) {
        streams_release(service->streams, blob);
        reply->body.failed = true;
        return request_send(r);
    }
    *sent = (struct sent){service->streams, blob};
    reply_header(reply, "Cache-Control", "private, max-age=%d", service->config->stream_seconds);
    reply->status = range == RANGE_PART ? 206 : 200;
    reply->content_type = blob->type;
    if (range == RANGE_PART)
        reply_header(reply, "Content-Range", "bytes %zu-%zu/%zu", first, last, blob->len);
    return send_bytes(r, sent, first, last);
}
