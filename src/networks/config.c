/* See config.h. */
#include "config.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model_files.h"

enum { CONFIG_MAX = 1 << 20 };

int config_open(struct config *c, const char *dir, struct error *err)
{
    *c = (struct config){.r = {.err = err}};
    const char *slash = strrchr(dir, '/');
    snprintf(c->label, sizeof(c->label), "%.200s/config.json", slash && slash[1] ? slash + 1 : dir);
    c->root = model_json(dir, "config.json", CONFIG_MAX, err);
    if (!c->root)
        return err->code;
    c->r.object = c->root;
    c->r.file = c->label;
    if (!cJSON_IsObject(c->root))
        error_set(err, ERR_FORMAT, "%s: not a JSON object", c->label);
    if (err->code)
        config_close(c);
    return err->code;
}

void config_close(struct config *c)
{
    cJSON_Delete(c->root);
    c->root = NULL;
}

void config_section(const struct config *c, const char *key, struct config *section)
{
    cJSON *object = cJSON_GetObjectItemCaseSensitive(c->root, key);
    if (!cJSON_IsObject(object))
        return;
    *section = *c;
    section->root = object;
    section->r.object = object;
    section->r.file = section->label;
    snprintf(section->label, sizeof(section->label), "%.150s, %.60s", c->label, key);
}

bool config_ok(const struct config *c)
{
    return c->r.err->code == 0;
}

bool config_has(const struct config *c, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(c->root, key) != NULL;
}

/* The value under KEY; NULL when it is absent or null, or when an error stands. */
static const cJSON *get(const struct config *c, const char *key)
{
    const cJSON *item = config_ok(c) ? cJSON_GetObjectItemCaseSensitive(c->root, key) : NULL;
    return item && !cJSON_IsNull(item) ? item : NULL;
}

/* Whether TEXT is one of the entries of LIST, which '|' separates. */
static bool is_listed(const char *text, const char *list)
{
    size_t len = strlen(text);
    for (const char *entry = list; entry; entry = strchr(entry, '|')) {
        entry += *entry == '|';
        if (strncmp(entry, text, len) == 0 && (entry[len] == '|' || entry[len] == '\0'))
            return true;
    }
    return false;
}

static void check_choice(const struct config *c, const struct config_choice *choice)
{
    const cJSON *item = get(c, choice->key);
    if (!item)
        return;
    char *text = cJSON_PrintUnformatted(item);
    if (!text)
        error_set(c->r.err, ERR_NOMEM, "out of memory reading %s", c->label);
    else if (!is_listed(text, choice->accepted))
        error_set(c->r.err, ERR_UNSUPPORTED, "%s: \"%s\" is %.100s; accepted: %s", c->label, choice->key,
                  text, choice->accepted);
    cJSON_free(text);
}

void config_check(const struct config *c, const struct config_choice *choices)
{
    for (; choices->key; choices++)
        check_choice(c, choices);
}

float config_float(const struct config *c, const char *key, double fallback, double lo, double hi)
{
    double v = json_number(&c->r, key, fallback);
    if (v >= lo && v <= hi)
        return (float)v;
    error_set(c->r.err, ERR_FORMAT, "%s: \"%s\" is %g, accepted is %g to %g", c->label, key, v, lo, hi);
    return (float)fallback;
}

static void wrong_length(const struct config *c, const char *key, int found, int expected)
{
    error_set(c->r.err, ERR_FORMAT,
              "%s: \"%s\" has %d entries, expected %d, one for each of \"block_out_channels\"", c->label, key,
              found, expected);
}

void config_each(const struct config *c, const char *key, int *out, int count, int fallback, int lo, int hi)
{
    const cJSON *item = get(c, key);
    for (int i = 0; i < count; i++)
        out[i] = fallback;
    if (!item)
        return;
    if (cJSON_IsArray(item) && cJSON_GetArraySize(item) != count)
        wrong_length(c, key, cJSON_GetArraySize(item), count);
    else
        json_ints(&c->r, key, out, count, lo, hi);
}

void config_flags(const struct config *c, const char *key, bool *out, int count)
{
    const cJSON *item = get(c, key);
    bool list = cJSON_IsArray(item);
    for (int i = 0; i < count; i++)
        out[i] = false;
    if (!item)
        return;
    if (list && cJSON_GetArraySize(item) != count) {
        wrong_length(c, key, cJSON_GetArraySize(item), count);
        return;
    }
    for (int i = 0; i < count; i++) {
        const cJSON *flag = list ? cJSON_GetArrayItem(item, i) : item;
        if (!cJSON_IsBool(flag))
            error_set(c->r.err, ERR_FORMAT, "%s: \"%s\" should be true or false, or a list of them", c->label,
                      key);
        out[i] = cJSON_IsTrue(flag);
    }
}

bool config_floats(const struct config *c, const char *key, float *out, int count, double lo, double hi)
{
    const cJSON *item = get(c, key);
    if (!item)
        return false;
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != count) {
        error_set(c->r.err, ERR_FORMAT, "%s: \"%s\" should be a list of %d numbers", c->label, key, count);
        return false;
    }
    for (int i = 0; i < count; i++) {
        const cJSON *number = cJSON_GetArrayItem(item, i);
        double v = cJSON_IsNumber(number) ? number->valuedouble : NAN;
        if (!(v >= lo && v <= hi))
            error_set(c->r.err, ERR_FORMAT, "%s: \"%s\" should hold numbers from %g to %g", c->label, key, lo,
                      hi);
        out[i] = (float)v;
    }
    return true;
}

/* "A, B" for error texts. */
static void join(char *out, size_t size, const char *const *names)
{
    size_t at = 0;
    out[0] = '\0';
    for (int i = 0; names[i] && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%s", i ? ", " : "", names[i]);
}

void config_types(const struct config *c, const char *key, int *out, int count, const char *const *names)
{
    const cJSON *item = get(c, key);
    char known[256];
    join(known, sizeof(known), names);
    if (!config_ok(c))
        return;
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != count) {
        wrong_length(c, key, cJSON_GetArraySize(item), count);
        return;
    }
    for (int i = 0; i < count; i++) {
        const cJSON *type = cJSON_GetArrayItem(item, i);
        const char *text = cJSON_IsString(type) ? type->valuestring : "not a string";
        for (out[i] = 0; names[out[i]] && strcmp(names[out[i]], text) != 0;)
            out[i]++;
        if (!names[out[i]]) {
            out[i] = 0;
            error_set(c->r.err, ERR_UNSUPPORTED, "%s: \"%s\" has the block type %.60s; accepted: %s",
                      c->label, key, text, known);
        }
    }
}
