/* Reading a network's config.json: numbers with bounds, choices, and refusals by name. Private to
 * src/networks. */
#ifndef LATENTD_NETWORK_CONFIG_H
#define LATENTD_NETWORK_CONFIG_H

#include "error.h"
#include "json.h"

struct config {
    struct json_reader r;
    struct cJSON *root;
    char label[256]; /* "unet/config.json" */
};

/* A key whose value must be one of those listed, as compact JSON separated by '|': "\"silu\"|\"swish\"". A
 * key that is absent or null always passes. */
struct config_choice {
    const char *key, *accepted;
};

/* Opens DIR/config.json. Errors of later reads go to ERR, which must outlive the config. */
int config_open(struct config *c, const char *dir, struct error *err);
void config_close(struct config *c);
bool config_ok(const struct config *c);
/* SECTION reads the object under KEY as C reads the whole file; it stays as it is when there is none. Ends
 * with C; config_close is for C alone. */
void config_section(const struct config *c, const char *key, struct config *section);
/* Whether KEY is there at all, even as null. */
bool config_has(const struct config *c, const char *key);

/* ERR_UNSUPPORTED names the first key of CHOICES (ended by a NULL key) whose value is not accepted. */
void config_check(const struct config *c, const struct config_choice *choices);
/* A number in [lo, hi]. */
float config_float(const struct config *c, const char *key, double fallback, double lo, double hi);
/* COUNT ints from a list of that length, or from one int for all of them. */
void config_each(const struct config *c, const char *key, int *out, int count, int fallback, int lo, int hi);
/* COUNT flags from a list of that length, or from one flag for all of them. */
void config_flags(const struct config *c, const char *key, bool *out, int count);
/* COUNT numbers in [lo, hi]: the list must have that length. False, and OUT as it was, when there is none. */
bool config_floats(const struct config *c, const char *key, float *out, int count, double lo, double hi);
/* A list of block types: out[i] is the index of entry i in NAMES (ended by NULL). The list must have COUNT
 * entries. */
void config_types(const struct config *c, const char *key, int *out, int count, const char *const *names);

#endif
