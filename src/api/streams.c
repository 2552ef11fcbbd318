/* See streams.h. A list from the oldest to the newest; all live equally long, so what expires first stands
 * first. */
#include "streams.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "job.h"
#include "log.h"

enum { ID_BYTES = 16 };

struct kept {
    struct stream_blob blob; /* first: what callers hold is the whole */
    char id[STREAM_ID_MAX];
    uint64_t reply; /* that names it */
    double expires; /* clock_now() */
    int users;      /* the store and those who send it */
    struct kept *next;
};

struct streams {
    pthread_mutex_t lock;
    struct kept *first, **end;
    size_t max, bytes, count;
    uint64_t replies;
    double seconds;
};

int streams_open(struct streams **out, size_t bytes, double seconds, struct error *err)
{
    struct streams *s = calloc(1, sizeof(*s));

    *out = s;
    if (!s)
        return error_set(err, ERR_NOMEM, "no memory for the store of pictures and videos");
    pthread_mutex_init(&s->lock, NULL);
    s->end = &s->first;
    s->max = bytes;
    s->seconds = seconds;
    return 0;
}

static void put_back(struct kept *k)
{
    if (--k->users)
        return;
    free((void *)k->blob.data);
    free(k);
}

static void drop(struct streams *s, struct kept **at)
{
    struct kept *k = *at;

    *at = k->next;
    if (!*at)
        s->end = at;
    s->bytes -= k->blob.len;
    s->count--;
    put_back(k);
}

static void drop_expired(struct streams *s)
{
    double now = clock_now();

    while (s->first && s->first->expires <= now)
        drop(s, &s->first);
}

void streams_close(struct streams **out)
{
    struct streams *s = *out;

    *out = NULL;
    if (!s)
        return;
    while (s->first)
        drop(s, &s->first);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static int new_id(char id[STREAM_ID_MAX], struct error *err)
{
    unsigned char random[ID_BYTES];

    if (getrandom(random, sizeof(random), 0) != sizeof(random))
        return error_set(err, ERR_IO, "no random numbers from the system");
    for (int i = 0; i < ID_BYTES; i++)
        snprintf(id + 2 * i, 3, "%02x", random[i]);
    return 0;
}

uint64_t streams_reply(struct streams *s)
{
    pthread_mutex_lock(&s->lock);
    uint64_t reply = ++s->replies;
    pthread_mutex_unlock(&s->lock);
    return reply;
}

/* Room for LEN more bytes, in the place of the oldest that REPLY has not put. The lock is held. */
static int make_room(struct streams *s, uint64_t reply, size_t len, struct error *err)
{
    size_t together = len;
    struct kept **at = &s->first;

    drop_expired(s);
    for (const struct kept *k = s->first; k; k = k->next)
        together += k->reply == reply ? k->blob.len : 0;
    if (together > s->max)
        return error_set(err, ERR_NOMEM, "%zu KiB are more than LATENTD_STREAM_MIB lets this server keep",
                         together >> 10);
    while (s->bytes + len > s->max)
        if ((*at)->reply == reply)
            at = &(*at)->next;
        else
            drop(s, at);
    return 0;
}

/* The newest of all: BODY. The lock is held. */
static void append(struct streams *s, struct kept *k, const char *type, struct buffer *body)
{
    char *fitting = realloc(body->data, body->len); /* a buffer grows in large steps */

    k->blob = (struct stream_blob){type, fitting ? fitting : body->data, body->len};
    *body = (struct buffer){0};
    k->users = 1;
    k->expires = clock_now() + s->seconds;
    *s->end = k;
    s->end = &k->next;
    s->bytes += k->blob.len;
    s->count++;
}

int streams_put(struct streams *s, uint64_t reply, const char *type, struct buffer *body,
                char id[STREAM_ID_MAX], struct error *err)
{
    struct kept *k;
    int rc = new_id(id, err);

    if (rc)
        return rc;
    k = body->failed || body->len == 0 ? NULL : calloc(1, sizeof(*k));
    if (!k)
        return error_set(err, ERR_NOMEM, "no memory for what is to be kept");
    memcpy(k->id, id, STREAM_ID_MAX);
    k->reply = reply;
    pthread_mutex_lock(&s->lock);
    rc = make_room(s, reply, body->len, err);
    if (rc)
        free(k);
    else
        append(s, k, type, body);
    pthread_mutex_unlock(&s->lock);
    return rc;
}

const struct stream_blob *streams_get(struct streams *s, const char *id)
{
    struct kept *k;

    pthread_mutex_lock(&s->lock);
    drop_expired(s);
    for (k = s->first; k && strcmp(k->id, id) != 0;)
        k = k->next;
    if (k)
        k->users++;
    pthread_mutex_unlock(&s->lock);
    return k ? &k->blob : NULL;
}

void streams_release(struct streams *s, const struct stream_blob *blob)
{
    pthread_mutex_lock(&s->lock);
    put_back((struct kept *)blob);
    pthread_mutex_unlock(&s->lock);
}

void streams_count(struct streams *s, size_t *blobs, size_t *bytes)
{
    pthread_mutex_lock(&s->lock);
    drop_expired(s);
    *blobs = s->count;
    *bytes = s->bytes;
    pthread_mutex_unlock(&s->lock);
}
