/* Pictures and videos that a reply names by URL, /stream/<id>.png and /stream/<id>.mp4: kept in memory up to
 * a bound and for a time, the oldest thrown out first. Any thread. */
#ifndef LATENTD_STREAMS_H
#define LATENTD_STREAMS_H

#include <stdint.h>

#include "buffer.h"
#include "error.h"

enum { STREAM_ID_MAX = 40 };

struct streams;

/* Holds at most BYTES together, each for SECONDS. */
int streams_open(struct streams **s, size_t bytes, double seconds, struct error *err);
void streams_close(struct streams **s); /* after the last blob is put back */

/* A number for a reply that names what it puts: nothing else has it. */
uint64_t streams_reply(struct streams *s);
/* Keeps BODY, which is moved (left empty), under a new id of 128 random bits from the system, written to ID.
 * TYPE is a constant: "image/png" or "video/mp4". What the same REPLY has put before is not thrown out for
 * it. ERR_NOMEM: with that it is larger than the whole store, or no memory. */
int streams_put(struct streams *s, uint64_t reply, const char *type, struct buffer *body,
                char id[STREAM_ID_MAX], struct error *err);

/* What lies under ID, with a reference that keeps it alive while it is sent, or NULL: unknown, expired or
 * thrown out. */
struct stream_blob {
    const char *type;
    const char *data;
    size_t len;
};
const struct stream_blob *streams_get(struct streams *s, const char *id);
void streams_release(struct streams *s, const struct stream_blob *blob);

/* For the metrics. */
void streams_count(struct streams *s, size_t *blobs, size_t *bytes);

#endif
