/* See pipe.h. A ring of bytes behind one mutex. */
#include "pipe.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LOOK_MS = 50 }; /* how often a writer that waits asks whether to go on */

struct pipe {
    pthread_mutex_t lock;
    pthread_cond_t room;
    char *ring;
    size_t size, first, used; /* used bytes from first on, round the end */
    bool begun, ended, whole;
    void (*wake)(void *ctx);
    void *ctx;
};

int pipe_open(struct pipe **out, size_t bytes, struct error *err)
{
    struct pipe *p = calloc(1, sizeof(*p));
    char *ring = malloc(bytes);
    pthread_condattr_t clock;

    *out = NULL;
    if (!p || !ring) {
        free(p);
        free(ring);
        return error_set(err, ERR_NOMEM, "no memory for the reply");
    }
    p->ring = ring;
    p->size = bytes;
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&p->room, &clock);
    pthread_condattr_destroy(&clock);
    *out = p;
    return 0;
}

void pipe_close(struct pipe **out)
{
    struct pipe *p = *out;

    if (!p)
        return;
    pthread_cond_destroy(&p->room);
    pthread_mutex_destroy(&p->lock);
    free(p->ring);
    free(p);
    *out = NULL;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- The writer ---- */

/* Waits a moment for room. The lock is held. */
static void wait_room(struct pipe *p)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += LOOK_MS * 1000000L;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&p->room, &p->lock, &t);
}

/* Puts in what there is room for, in one piece. The lock is held. */
static size_t put(struct pipe *p, const char *data, size_t len)
{
    size_t at = (p->first + p->used) % p->size;
    size_t n = least(least(len, p->size - p->used), p->size - at);

    memcpy(p->ring + at, data, n);
    p->used += n;
    p->begun = true;
    if (p->wake)
        p->wake(p->ctx);
    return n;
}

int pipe_write(struct pipe *p, const void *data, size_t len, const struct watcher *watch, struct error *err)
{
    const char *at = data;

    while (len) {
        size_t n = 0;
        if (watch->cancelled(watch->ctx))
            return error_set(err, ERR_CANCELLED, "cancelled while the reply was written");
        pthread_mutex_lock(&p->lock);
        bool ended = p->ended;
        if (!ended && p->used == p->size)
            wait_room(p);
        else if (!ended)
            n = put(p, at, len);
        pthread_mutex_unlock(&p->lock);
        if (ended)
            return error_set(err, ERR_CANCELLED, "nobody reads the reply");
        at += n;
        len -= n;
    }
    return 0;
}

/* ---- The reader ---- */

void pipe_on_change(struct pipe *p, void (*wake)(void *ctx), void *ctx)
{
    p->wake = wake;
    p->ctx = ctx;
}

void pipe_end(struct pipe *p, bool whole)
{
    pthread_mutex_lock(&p->lock);
    if (!p->ended) {
        p->ended = true;
        p->whole = whole;
        pthread_cond_signal(&p->room);
        if (p->wake)
            p->wake(p->ctx);
    }
    pthread_mutex_unlock(&p->lock);
}

bool pipe_begun(struct pipe *p)
{
    pthread_mutex_lock(&p->lock);
    bool begun = p->begun;
    pthread_mutex_unlock(&p->lock);
    return begun;
}

bool pipe_ready(struct pipe *p)
{
    pthread_mutex_lock(&p->lock);
    bool ready = p->used || p->ended;
    pthread_mutex_unlock(&p->lock);
    return ready;
}

ssize_t pipe_read(struct pipe *p, char *out, size_t max)
{
    ssize_t result;

    pthread_mutex_lock(&p->lock);
    if (p->ended && !p->whole) {
        result = PIPE_BROKEN;
    } else if (p->used == 0) {
        result = p->ended ? PIPE_END : PIPE_EMPTY;
    } else {
        size_t n = least(least(max, p->used), p->size - p->first);
        memcpy(out, p->ring + p->first, n);
        p->first = (p->first + n) % p->size;
        p->used -= n;
        pthread_cond_signal(&p->room);
        result = (ssize_t)n;
    }
    pthread_mutex_unlock(&p->lock);
    return result;
}
