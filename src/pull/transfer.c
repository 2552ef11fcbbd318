/* Files at the same time, each through: its lock, what an earlier pull left of it, the rest by a range
 * request, its digest, its name. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "request.h"

enum { SLOTS = 4, GOOD_BYTES = 1 << 20, HASH_BLOCK = 1 << 20 };
#define LOCK_SECONDS 0.3

struct slot {
    struct transfer *t;
    struct file *f; /* NULL: free */
    struct request q;
    bool active;    /* libcurl has it */
    bool begun;     /* the answer's first bytes have been looked at */
    bool waited;    /* said that another process has the file */
    int mismatches; /* times that the digest was wrong */
    int fd, lock;   /* the part and its lock; -1: none */
    struct digest *digest;
    int64_t have;       /* bytes of the part, all of them in DIGEST */
    int64_t had, got;   /* of these, counted as earlier pulls' and as this one's */
    int64_t at_failure; /* GOT when a connection last failed */
    double go_at;
    struct error err; /* of the sink */
};

struct transfer {
    const struct hub *hub;
    const struct cache *cache;
    struct repository *r;
    struct progress *p;
    CURLM *multi;
    struct slot slots[SLOTS];
    size_t next; /* file to look at */
};

static void slot_free(struct slot *s)
{
    if (s->active)
        curl_multi_remove_handle(s->t->multi, s->q.easy);
    request_close(&s->q);
    digest_close(&s->digest);
    if (s->fd >= 0)
        close(s->fd);
    if (s->lock >= 0)
        close(s->lock);
    *s = (struct slot){.t = s->t, .fd = -1, .lock = -1};
}

static void slot_done(struct slot *s)
{
    char size[24];

    s->t->p->files_done++;
    progress_say(s->t->p, "  %s  %s", s->f->name, size_text((double)s->f->size, size));
    slot_free(s);
}

/* The part is worth nothing: from its first byte again. */
static int start_over(struct slot *s, struct error *err)
{
    s->t->p->had -= s->had;
    s->t->p->got -= s->got;
    s->have = s->had = s->got = s->at_failure = 0;
    if (ftruncate(s->fd, 0) != 0)
        return error_set(err, ERR_IO, "%s cannot be written: %s", s->f->name, strerror(errno));
    return digest_restart(s->digest, err);
}

static int write_all(struct slot *s, const char *data, size_t len, struct error *err)
{
    for (size_t at = 0; at < len;) {
        ssize_t n = pwrite(s->fd, data + at, len - at, (off_t)(s->have + (int64_t)at));
        if (n < 0 && errno == EINTR)
            continue;
        if (n > 0) {
            at += (size_t)n;
            continue;
        }
        int why = n == 0 ? ENOSPC : errno;
        return error_set(err, ERR_IO,
                         "%s cannot be written to %s: %s. What has come so far is kept, and the same command "
                         "goes on from there",
                         s->f->name, s->t->cache->root,
                         why == ENOSPC  ? "the disk is full"
                         : why == EFBIG ? "the system's limit for the size of a file (ulimit -f) is reached"
                                        : strerror(why));
    }
    return 0;
}

/* Before the first byte of an answer: is it what was asked for? */
static int check_answer(struct slot *s, struct error *err)
{
    const struct reply *r = &s->q.reply;
    int64_t from = r->status == 206 ? s->q.from : 0;

    if (r->status == 206 && r->range_start != s->q.from)
        return error_set(err, ERR_FORMAT,
                         "%s: the hub sends bytes from %lld, but was asked for those from %lld", s->f->name,
                         (long long)r->range_start, (long long)s->q.from);
    if (r->length >= 0 && r->length != s->f->size - from)
        return error_set(err, ERR_FORMAT, "%s: the hub lists %lld bytes and sends %lld", s->f->name,
                         (long long)s->f->size, (long long)(r->length + from));
    return from == s->have ? 0 : start_over(s, err); /* a server without ranges sends all of it */
}

static bool take_bytes(void *ctx, const void *data, size_t len)
{
    struct slot *s = ctx;

    if (!s->begun && check_answer(s, &s->err))
        return false;
    s->begun = true;
    if ((int64_t)len > s->f->size - s->have) {
        error_set(&s->err, ERR_FORMAT, "%s: the hub lists %lld bytes and sends more", s->f->name,
                  (long long)s->f->size);
        return false;
    }
    if (write_all(s, data, len, &s->err) || digest_add(s->digest, data, len, &s->err))
        return false;
    s->have += (int64_t)len;
    s->got += (int64_t)len;
    s->t->p->got += (int64_t)len;
    return true;
}

/* Reads the part from the disk into the digest. */
static int hash_part(struct slot *s, int64_t have, struct error *err)
{
    char *block = have ? malloc(HASH_BLOCK) : NULL;
    int rc = have && !block ? error_set(err, ERR_NOMEM, "no memory to read a file") : 0;

    while (!rc && s->have < have) {
        size_t want = have - s->have < HASH_BLOCK ? (size_t)(have - s->have) : HASH_BLOCK;
        ssize_t n = pread(s->fd, block, want, (off_t)s->have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            rc = error_set(err, ERR_IO, "%s cannot be read back: %s", s->f->name,
                           n ? strerror(errno) : "it shrinks");
        else if (!(rc = digest_add(s->digest, block, (size_t)n, err)))
            s->have += n;
    }
    free(block);
    s->had = s->have;
    s->t->p->had += s->had;
    return rc;
}

static int begin_part(struct slot *s, struct error *err)
{
    int64_t have = 0;
    int rc = cache_part_open(s->t->cache, s->f, &s->fd, &have, err);

    rc = rc ? rc : digest_open(&s->digest, s->f, err);
    return rc ? rc : hash_part(s, have, err);
}

/* All bytes are there: right or wrong? */
static int complete(struct slot *s, struct error *err)
{
    char found[DIGEST_MAX];
    int rc = digest_finish(s->digest, found, err);

    if (rc)
        return rc;
    if (strcmp(found, s->f->digest) == 0) {
        rc = cache_part_finish(s->t->cache, s->f, s->fd, err);
        if (!rc)
            slot_done(s);
        return rc;
    }
    bool resumed = s->had > 0;
    rc = start_over(s, err);
    if (!rc && s->mismatches++ >= (resumed ? 1 : 0) + 1)
        rc =
            error_set(err, ERR_FORMAT,
                      "%s is not what the hub lists: its %s is %s, it should be %s. A proxy may have changed "
                      "it on the way",
                      s->f->name, strlen(found) == 40 ? "git SHA-1" : "SHA-256", found, s->f->digest);
    if (!rc)
        progress_say(s->t->p, "%s: the digest is wrong, fetching it again", s->f->name);
    return rc;
}

static int launch(struct slot *s, struct error *err)
{
    s->begun = false;
    int rc = request_start(&s->q, err);
    if (!rc && curl_multi_add_handle(s->t->multi, s->q.easy) != CURLM_OK)
        rc = error_set(err, ERR_NOMEM, "libcurl takes no further request");
    s->active = !rc;
    return rc;
}

/* The lock; without it for now, *HELD is false. */
static int take_lock(struct slot *s, bool *held, struct error *err)
{
    int rc = s->lock >= 0 ? 0 : cache_lock(s->t->cache, s->f->digest, &s->lock, err);

    *held = s->lock >= 0;
    if (!rc && !*held) {
        if (!s->waited)
            progress_say(s->t->p, "%s: another process is fetching it, waiting for that", s->f->name);
        s->waited = true;
        s->go_at = pull_clock() + LOCK_SECONDS;
    }
    return rc;
}

/* The next thing to do for a slot that libcurl does not have. */
static int advance(struct slot *s, struct error *err)
{
    bool held;

    snprintf(s->t->p->name, sizeof s->t->p->name, "%s", s->f->name);
    if (!*s->f->digest) {
        s->q.head = true;
        return launch(s, err);
    }
    int rc = take_lock(s, &held, err);
    if (rc || !held)
        return rc;
    if (s->fd < 0 && cache_has(s->t->cache, s->f)) { /* meanwhile, by whoever had the lock */
        s->t->p->had += s->f->size;
        slot_done(s);
        return 0;
    }
    if (s->fd < 0 && (rc = begin_part(s, err)))
        return rc;
    if (s->have == s->f->size && ((rc = complete(s, err)) || !s->f))
        return rc;
    s->q.head = false;
    s->q.sink = take_bytes;
    s->q.ctx = s;
    s->q.from = s->have;
    return launch(s, err);
}

/* What the headers of a file say that the list did not. */
static int take_headers(struct slot *s, struct error *err)
{
    const struct reply *r = &s->q.reply;
    const char *tag = *r->linked_etag ? r->linked_etag : r->etag;
    int64_t size = *r->linked_etag ? r->linked_size : r->length;

    if (!digest_is(tag) || size < 0)
        return error_set(err, ERR_FORMAT,
                         "%s: the hub says neither size nor digest of it, so it cannot be checked; is "
                         "HF_ENDPOINT (%s) a hub?",
                         s->f->name, s->t->hub->endpoint);
    memcpy(s->f->digest, tag, strlen(tag) + 1);
    s->f->size = size;
    s->t->p->total += size;
    request_rewind(&s->q);
    return 0;
}

/* A failure that waiting may mend. */
static int retry(struct slot *s, double wait, const struct error *why, struct error *err)
{
    if (s->got - s->at_failure >= GOOD_BYTES)
        s->q.failures = 0;
    s->at_failure = s->got;
    if (s->q.failures++ >= s->t->hub->retries)
        return error_set(err, why->code, "%s%s", why->msg,
                         s->have ? ". What has come so far is kept, and the same command goes on from there"
                                 : "");
    progress_say(s->t->p, "%s; trying again in %.1f s", why->msg, wait);
    request_rewind(&s->q);
    s->go_at = pull_clock() + wait;
    return s->q.reply.status == 416 && s->fd >= 0 ? start_over(s, err) : 0;
}

static int ended(struct slot *s, CURLcode result, struct error *err)
{
    struct error why = {0};
    double wait = 0;

    curl_multi_remove_handle(s->t->multi, s->q.easy);
    s->active = false;
    if (s->err.code)
        return error_set(err, s->err.code, "%s", s->err.msg);
    if (!s->q.head && s->have == s->f->size && s->begun)
        return complete(s, err);
    switch (request_judge(&s->q, result, &wait, &why)) {
    case VERDICT_DONE:
        if (s->q.head)
            return take_headers(s, err);
        if (s->have == s->f->size) /* an empty file has no bytes that the sink would see */
            return complete(s, err);
        error_set(&why, ERR_IO, "%s: the connection ended at %lld of %lld bytes", s->f->name,
                  (long long)s->have, (long long)s->f->size);
        return retry(s, 0.5, &why, err);
    case VERDICT_REDIRECT:
        return launch(s, err);
    case VERDICT_RETRY:
        return retry(s, wait, &why, err);
    default:
        return error_set(err, why.code, "%s", why.msg);
    }
}

/* Gives a free slot the next file that is not there. */
static int fill(struct transfer *t, struct slot *s, struct error *err)
{
    while (t->next < t->r->count) {
        struct file *f = &t->r->files[t->next++];
        if (!f->wanted || cache_has(t->cache, f))
            continue;
        s->f = f;
        return request_open(&s->q, t->hub, t->r->id, f->name, hub_file_url(t->hub, t->r, f->name), err);
    }
    return 0;
}

/* Does what can be done at once. *LEFT: whether anything is under way. */
static int step(struct transfer *t, bool *left, struct error *err)
{
    int rc = 0, running, queued;
    CURLMsg *m;

    *left = false;
    for (int i = 0; i < SLOTS && !rc; i++) {
        struct slot *s = &t->slots[i];
        if (!s->f)
            rc = fill(t, s, err);
        if (!rc && s->f && !s->active && s->go_at <= pull_clock())
            rc = advance(s, err);
        *left = *left || s->f || t->next < t->r->count;
    }
    if (!rc && curl_multi_perform(t->multi, &running) != CURLM_OK)
        rc = error_set(err, ERR_INTERNAL, "libcurl fails");
    while (!rc && (m = curl_multi_info_read(t->multi, &queued)))
        for (int i = 0; i < SLOTS; i++)
            if (m->msg == CURLMSG_DONE && t->slots[i].active && t->slots[i].q.easy == m->easy_handle) {
                rc = ended(&t->slots[i], m->data.result, err);
                break;
            }
    return rc;
}

int transfer_files(const struct hub *h, const struct cache *c, struct repository *r, struct progress *p,
                   struct error *err)
{
    struct transfer t = {.hub = h, .cache = c, .r = r, .p = p, .multi = curl_multi_init()};
    bool left = true;
    int rc = t.multi ? 0 : error_set(err, ERR_NOMEM, "no memory for libcurl");

    for (int i = 0; i < SLOTS; i++)
        t.slots[i] = (struct slot){.t = &t, .fd = -1, .lock = -1};
    while (!rc && left) {
        rc = step(&t, &left, err);
        progress_tick(p, pull_clock());
        if (!rc && left)
            curl_multi_poll(t.multi, NULL, 0, 50, NULL);
    }
    for (int i = 0; i < SLOTS; i++)
        if (t.multi)
            slot_free(&t.slots[i]);
    curl_multi_cleanup(t.multi);
    return rc;
}
