/* See loras.h. On purpose it differs from the original in one place: a strength that is not finite is
 * refused, since it would only give a picture of nothing. */
#include "loras.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json_scan.h"
#include "values.h"

enum { ID_BYTES_MAX = 512 };

/* The members read so far, each name once: of two equal names the last strength counts, at the place of the
 * first, as in a Python dict. */
struct reading {
    struct loras *out;
    float strength[LORAS_MAX];
    bool sound[LORAS_MAX]; /* the strength is one */
    bool hostile[LORAS_MAX];
    bool more, more_unsound; /* beyond LORAS_MAX */
    bool no_memory;
};

/* What Python's float() reads from VALUE, where that is a strength. */
static bool read_strength(struct json_span value, float *out)
{
    char text[64];
    size_t len = 0;
    double v = -1;

    if (value.type == JSON_BOOL) {
        v = value.at[0] == 't';
    } else if (value.type == JSON_INTEGER || (value.type == JSON_FLOAT && !strchr("NIi", value.at[0]))) {
        v = strtod(value.at, NULL); /* ends at the delimiter that follows every JSON number */
    } else if (value.type == JSON_STRING && value.len <= sizeof(text)) {
        bool whole = json_decode_string(value, text, &len);
        text[len] = '\0'; /* the two quotes left room */
        if (!whole || number_from_text(text, len, &v))
            return false;
    }
    *out = (float)v;
    return v >= 0 && isfinite(*out);
}

/* A path that could only lead out of the shelf, or nowhere. What is below the shelf is the loader's to find.
 */
static bool is_hostile(const char *id, size_t len)
{
    const char *part = id;

    if (len == 0 || len != strlen(id) || len > ID_BYTES_MAX)
        return true;
    for (const char *s = id;; s++) {
        if ((unsigned char)*s < 0x20 && *s)
            return true;
        if (*s && *s != '/')
            continue;
        if (s == part || (s - part <= 2 && strspn(part, ".") >= (size_t)(s - part)))
            return true;
        if (!*s)
            return false;
        part = s + 1;
    }
}

static int read_member(void *ctx, struct json_span key, struct json_span value)
{
    struct reading *r = ctx;
    size_t len = 0;
    int i = 0;
    float strength = 0;
    bool sound = read_strength(value, &strength);
    char *id = malloc(key.len + 1);

    if (!id) {
        r->no_memory = true;
        return -1;
    }
    bool whole = json_decode_string(key, id, &len);
    id[len] = '\0';
    while (i < r->out->count && strcmp(r->out->item[i].id, id) != 0)
        i++;
    if (i == LORAS_MAX) {
        r->more = true;
        r->more_unsound = r->more_unsound || !sound;
        free(id);
        return 0;
    }
    if (i < r->out->count) {
        free(id);
    } else {
        r->out->item[i].id = id;
        r->hostile[i] = !whole || is_hostile(id, len);
        r->out->count++;
    }
    r->out->item[i].strength = strength;
    r->sound[i] = sound;
    return 0;
}

static bool check(const struct reading *r, struct reply *reply)
{
    const struct loras *l = r->out;
    bool sound = !r->more_unsound;

    for (int i = 0; i < l->count; i++)
        sound = sound && r->sound[i];
    if (!sound) {
        reply_error(reply, 400, "All strengths must be numbers greater than or equal to 0.0..");
        return false;
    }
    if (r->more) {
        reply_error(reply, 400, "Too many LoRas provided. Maximum is %d..", LORAS_MAX);
        return false;
    }
    for (int i = 0; i < l->count; i++)
        if (r->hostile[i]) {
            reply_error(reply, 400, "LoRa repository '%.500s' not found.", l->item[i].id);
            return false;
        }
    return true;
}

bool loras_read(const struct param_string *loras, const char *failed, struct loras *out, struct reply *reply)
{
    struct json_span doc;
    struct json_fault fault;
    struct reading r = {.out = out};

    if (loras->len == 0)
        return true;
    if (json_scan(loras->data, loras->len, NULL, 0, NULL, &doc, &fault)) {
        reply_error(reply, 400, "Unable to parse '%.500s' as JSON..", loras->data);
        return false;
    }
    if (doc.type != JSON_OBJECT) {
        reply_error(reply, 500, "%s", failed);
        return false;
    }
    json_each_member(doc, read_member, &r);
    if (r.no_memory)
        reply->body.failed = true;
    return !r.no_memory && check(&r, reply);
}

void loras_free(struct loras *loras)
{
    for (int i = 0; i < loras->count; i++)
        free((char *)(size_t)loras->item[i].id);
    loras->count = 0;
}
