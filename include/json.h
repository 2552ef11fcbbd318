/* Reading our own JSON files (config.json and the like) on top of cJSON. Request bodies go through api/
 * instead. */
#ifndef LATENTD_JSON_H
#define LATENTD_JSON_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

struct cJSON;

/* Reads and parses a whole file of at most MAX bytes. Names the file in errors. Free with cJSON_Delete. */
struct cJSON *json_read_file(const char *path, size_t max, struct error *err);

/* A reader that keeps the first error, so that a config reads as a list of fields. */
struct json_reader {
    const struct cJSON *object;
    const char *file; /* for error texts */
    struct error *err;
};

/* Each returns FALLBACK when the key is absent or null; a value of the wrong type or outside the bounds is
 * ERR_FORMAT. */
int json_int(const struct json_reader *r, const char *key, int fallback, int lo, int hi);
double json_number(const struct json_reader *r, const char *key, double fallback);
bool json_bool(const struct json_reader *r, const char *key, bool fallback);
/* Borrowed from the parsed tree. */
const char *json_string(const struct json_reader *r, const char *key, const char *fallback);
/* Reads a list of ints, or one int for the whole list, into out[max]; returns how many (0 when absent). */
int json_ints(const struct json_reader *r, const char *key, int *out, int max, int lo, int hi);

#endif
