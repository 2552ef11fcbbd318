/* Parameter tables: one row a parameter. Validation, openapi.json and the documentation page are made from
 * them. */
#ifndef LATENTD_API_PARAMS_H
#define LATENTD_API_PARAMS_H

#include <stdbool.h>
#include <stddef.h>

#include "api.h"

/* How a request gives the value, and the C type it is read into. */
enum param_type {
    PARAM_STRING,  /* struct param_string */
    PARAM_INTEGER, /* struct param_integer */
    PARAM_NUMBER,  /* double */
    PARAM_BOOLEAN, /* bool */
    PARAM_FILE     /* struct param_file; forms only */
};

struct param_string {
    char *data; /* UTF-8, NUL-terminated, owned, malloc; may hold NUL characters */
    size_t len;
};

struct param_file {
    const char *data; /* borrowed from the request's body */
    size_t len;
};

/* Python integers have no bound. Ours saturate far outside of what any parameter accepts. */
typedef __int128 wide;
struct param_integer {
    wide value;
    bool given; /* false: the default */
};

struct param {
    const char *name;
    const char *title;
    enum param_type type;
    bool required;
    const char *fallback; /* default as JSON; NULL: none */
    const char *description;
    size_t offset; /* of the field in the struct of checked parameters */
};

struct param_table {
    const char *schema; /* name in openapi.json */
    const struct param *param;
    int count;
    bool form; /* multipart/form-data, not JSON */
};

/* Reads the body of REQUEST, JSON or a form, into *OUT, as pydantic reads a model: with its coercions, and
 * with every fault of every parameter in one 422 reply. Returns true, or false and a filled REPLY. OUT must
 * be zeroed; params_free it either way. */
bool params_read(const struct param_table *table, const struct api_request *request, void *out,
                 struct reply *reply);
void params_free(const struct param_table *table, void *out);

/* The decimal form of V, for error texts and replies. */
void wide_format(char out[44], wide v);

#endif
