/* See json.h. */
#include "json.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Reads PATH whole into malloc'ed, NUL-terminated memory. */
static char *read_whole(const char *path, size_t max, size_t *len, struct error *err)
{
    char *data = NULL;
    FILE *f = fopen(path, "rb");
    if (!f) {
        error_set(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%s: %s", path, strerror(errno));
        return NULL;
    }
    size_t cap = 1 << 16, n = 0;
    for (;;) {
        char *more = realloc(data, cap + 1);
        if (!more) {
            error_set(err, ERR_NOMEM, "%s: no memory to read it", path);
            goto fail;
        }
        data = more;
        n += fread(data + n, 1, cap - n, f);
        if (n < cap)
            break;
        if (cap > max) {
            error_set(err, ERR_FORMAT, "%s: larger than the %zu bytes that are allowed", path, max);
            goto fail;
        }
        cap *= 2;
    }
    if (ferror(f)) {
        error_set(err, ERR_IO, "%s: cannot be read", path);
        goto fail;
    }
    fclose(f);
    data[n] = '\0';
    *len = n;
    return data;
fail:
    fclose(f);
    free(data);
    return NULL;
}

struct cJSON *json_read_file(const char *path, size_t max, struct error *err)
{
    size_t len = 0;
    char *text = read_whole(path, max, &len, err);
    if (!text)
        return NULL;
    const char *end = NULL;
    cJSON *tree = cJSON_ParseWithLengthOpts(text, len + 1, &end, 1);
    if (!tree)
        error_set(err, ERR_FORMAT, "%s: not valid JSON at byte %zu", path,
                  end ? (size_t)(end - text) : (size_t)0);
    free(text);
    return tree;
}

/* The item under KEY, or NULL when absent or null, or when an error stands. */
static const cJSON *json_get(const struct json_reader *r, const char *key)
{
    if (r->err && r->err->code)
        return NULL;
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(r->object, key);
    return item && !cJSON_IsNull(item) ? item : NULL;
}

static bool json_to_int(const cJSON *item, int *out)
{
    if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble) ||
        fabs(item->valuedouble) > INT_MAX)
        return false;
    *out = (int)item->valuedouble;
    return true;
}

int json_int(const struct json_reader *r, const char *key, int fallback, int lo, int hi)
{
    const cJSON *item = json_get(r, key);
    int v = fallback;
    if (!item)
        return fallback;
    if (!json_to_int(item, &v)) {
        error_set(r->err, ERR_FORMAT, "%s: \"%s\" should be an integer", r->file, key);
        return fallback;
    }
    if (v < lo || v > hi) {
        error_set(r->err, ERR_FORMAT, "%s: \"%s\" is %d, accepted is %d to %d", r->file, key, v, lo, hi);
        return fallback;
    }
    return v;
}

double json_number(const struct json_reader *r, const char *key, double fallback)
{
    const cJSON *item = json_get(r, key);
    if (!item)
        return fallback;
    if (!cJSON_IsNumber(item) || !isfinite(item->valuedouble)) {
        error_set(r->err, ERR_FORMAT, "%s: \"%s\" should be a number", r->file, key);
        return fallback;
    }
    return item->valuedouble;
}

bool json_bool(const struct json_reader *r, const char *key, bool fallback)
{
    const cJSON *item = json_get(r, key);
    if (!item)
        return fallback;
    if (!cJSON_IsBool(item)) {
        error_set(r->err, ERR_FORMAT, "%s: \"%s\" should be true or false", r->file, key);
        return fallback;
    }
    return cJSON_IsTrue(item);
}

const char *json_string(const struct json_reader *r, const char *key, const char *fallback)
{
    const cJSON *item = json_get(r, key);
    if (!item)
        return fallback;
    if (!cJSON_IsString(item)) {
        error_set(r->err, ERR_FORMAT, "%s: \"%s\" should be a string", r->file, key);
        return fallback;
    }
    return item->valuestring;
}

int json_ints(const struct json_reader *r, const char *key, int *out, int max, int lo, int hi)
{
    const cJSON *item = json_get(r, key), *e;
    int count = 0;
    if (!item)
        return 0;
    if (cJSON_IsNumber(item)) {
        int v = json_int(r, key, lo, lo, hi);
        for (count = 0; count < max; count++)
            out[count] = v;
        return max;
    }
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) > max) {
        error_set(r->err, ERR_FORMAT, "%s: \"%s\" should be a list of at most %d integers", r->file, key,
                  max);
        return 0;
    }
    cJSON_ArrayForEach(e, item)
    {
        if (!json_to_int(e, &out[count]) || out[count] < lo || out[count] > hi) {
            error_set(r->err, ERR_FORMAT, "%s: \"%s\" should hold integers from %d to %d", r->file, key, lo,
                      hi);
            return 0;
        }
        count++;
    }
    return count;
}
