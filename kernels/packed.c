/* See packed.h. */
#include "packed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "buffer.h"
#include "hash.h"
#include "int8.h"
#include "log.h"
#include "packed_file.h"

enum { SEEN_MAX = 32, VERIFY_BYTES_MAX = 32 << 20 };

struct packed_store {
    struct packed_store *next; /* the backend's */
    struct packed_file file;   /* what is to be written: records and where their bytes are */
    struct buffer identity;
    char path[PACKED_PATH_MAX];
    /* What was found; MAP NULL: nothing, or it was given up. The mapping stays until the end. */
    const unsigned char *map;
    size_t size;
    const struct packed_record *record;
    uint32_t records, at;
    bool found;
    bool done; /* nothing is to be written, or nothing more */
    /* Kinds that were compared: kind, kernel, parts. */
    uint32_t seen[SEEN_MAX];
    int seen_count;
};

static void look_up(struct packed_store *s)
{
    struct error err = {0};
    int rc = packed_file_map(s->path, s->identity.data, &s->map, &s->size, &s->record, &s->records, &err);

    s->found = rc == 0 && s->map;
    if (rc < 0)
        log_warning("packed weights: %s; they are packed anew", err.msg);
}

struct packed_store *packed_open(struct backend *be, const char *identity, size_t bytes)
{
    struct packed_store *s;

    if (!be->store || !*be->layout || bytes < be->store_least)
        return NULL;
    s = calloc(1, sizeof(*s));
    if (!s)
        return NULL;
    buffer_printf(&s->identity, "latentd %s, layout %s\n%s", LATENTD_VERSION, be->layout, identity);
    uint64_t hash = hash_bytes(HASH_BEGIN, s->identity.data, s->identity.len);
    int len = snprintf(s->path, sizeof(s->path), "%s/%016llx.weights", be->store, (unsigned long long)hash);
    if (s->identity.failed || len >= (int)sizeof(s->path)) {
        buffer_free(&s->identity);
        free(s);
        return NULL;
    }
    look_up(s);
    s->next = be->stores;
    be->stores = s;
    return s;
}

bool packed_found(const struct packed_store *s)
{
    return s && s->found;
}

void packed_close(struct packed_store **store, struct backend *be)
{
    struct packed_store *s = *store;

    *store = NULL;
    if (!s)
        return;
    for (struct packed_store **at = &be->stores; *at; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            break;
        }
    if (s->map)
        munmap((void *)(uintptr_t)s->map, s->size);
    packed_file_free(&s->file);
    buffer_free(&s->identity);
    free(s);
}

static struct packed_record describe(const struct backend *be, size_t bytes, const struct weight_source *src,
                                     const char *name)
{
    struct packed_record r;

    memset(&r, 0, sizeof(r)); /* padding is compared too */
    r.name = hash_bytes(HASH_BEGIN, name, strlen(name));
    r.bytes = bytes;
    r.kind = (uint32_t)src->kind;
    r.shape[0] = src->out_c;
    r.shape[1] = src->in_c;
    r.shape[2] = src->kh;
    r.shape[3] = src->kw;
    r.parts = src->parts;
    r.bias = src->bias[0].data != NULL;
    r.int8 = int8_serves(be, src);
    return r;
}

/* Whether a weight like SRC was not compared yet. */
static bool first_of_its_kind(struct packed_store *s, const struct weight_source *src)
{
    uint32_t key = (uint32_t)src->kind | (uint32_t)src->int8 << 4 | (uint32_t)src->large << 5 |
                   (uint32_t)src->upsample << 6 | (uint32_t)src->kh << 8 | (uint32_t)src->kw << 16 |
                   (uint32_t)src->parts << 24;

    for (int i = 0; i < s->seen_count; i++)
        if (s->seen[i] == key)
            return false;
    if (s->seen_count < SEEN_MAX)
        s->seen[s->seen_count++] = key;
    return true;
}

/* Packs SRC and compares. 1: the file's bytes are these. */
static int verify(struct backend *be, const struct weight_source *src, const struct packed_record *r,
                  const unsigned char *bytes, struct error *err)
{
    weight fresh;
    int rc = weight_pack(be, &fresh, src, err);

    if (rc)
        return rc;
    rc = fresh.bytes == r->bytes && memcmp(fresh.packed, bytes, r->bytes) == 0;
    weight_free(be, &fresh);
    return rc;
}

/* Takes the next weight from the file. 1: done; 0: it is not the one that was written there. */
static int take(struct packed_store *s, struct backend *be, weight *w, const struct weight_source *src,
                const char *name, struct error *err)
{
    if (!s->found || s->at >= s->records)
        return 0;
    const struct packed_record *r = &s->record[s->at];
    struct packed_record want = describe(be, r->bytes, src, name);
    want.offset = r->offset;
    if (memcmp(r, &want, sizeof(want)) != 0)
        return 0;
    const unsigned char *bytes = s->map + r->offset;
    if (r->bytes <= VERIFY_BYTES_MAX && first_of_its_kind(s, src)) {
        int rc = verify(be, src, r, bytes, err);
        if (rc < 1)
            return rc;
    }
    s->at++;
    weight_map(be, w, src, bytes, r->bytes);
    return 1;
}

int packed_weight(struct packed_store *s, struct backend *be, weight *w, const struct weight_source *src,
                  const char *name, struct error *err)
{
    int rc = s ? take(s, be, w, src, name, err) : 0;

    if (rc)
        return rc < 0 ? rc : 0;
    if (s && s->found) { /* weights already taken from it are right and stay */
        log_warning("packed weights: %s is not what was written for %s; it is removed", s->path, name);
        unlink(s->path);
        s->found = false;
        s->done = true;
    }
    rc = weight_pack(be, w, src, err);
    if (s && rc == 0 && !s->done) {
        struct packed_record r = describe(be, w->bytes, src, name);
        s->done = packed_file_add(&s->file, &r, w->packed) < 0;
    }
    return rc;
}

int packed_save(struct backend *be, const atomic_bool *stop, struct error *err)
{
    int written = 0;

    for (struct packed_store *s = be->stores; s && !atomic_load(stop); s = s->next) {
        if (s->found || s->done || s->file.count == 0)
            continue;
        int rc = packed_file_write(&s->file, s->path, s->identity.data, be->store_most, be->store_since, stop,
                                   err);
        if (rc < 0)
            return rc;
        s->done = rc == 1;
        written += rc;
    }
    return written;
}
