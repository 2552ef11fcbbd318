/* What this program's HTTP interface consists of, as tables: the OpenAPI document and the documentation pages
 * are made from them. A new pipeline is a row in `endpoints`, with its parameter table. */
#ifndef LATENTD_API_SPEC_H
#define LATENTD_API_SPEC_H

#include "params.h"

enum field_kind {
    FIELD_STRING,
    FIELD_INTEGER,
    FIELD_BOOLEAN,
    FIELD_REF,      /* an object of schema ref */
    FIELD_LIST,     /* of ref */
    FIELD_LISTS,    /* a list of lists of ref */
    FIELD_MAP,      /* of ref, by any key */
    FIELD_STATUS,   /* one of status_names */
    FIELD_LOCATION, /* a list of strings and integers */
};

struct field {
    const char *name, *title;
    enum field_kind kind;
    const char *ref; /* name of a schema */
    const char *description;
    bool optional;
};

/* A schema of replies. Those of requests are parameter tables. */
enum { SCHEMA_FIELDS_MAX = 8 };
struct schema {
    const char *name, *description;
    struct field field[SCHEMA_FIELDS_MAX]; /* ends at the first without a name */
};
extern const struct schema schemas[];
extern const int schema_count;
/* NULL: there is none of that name. */
const struct schema *schema_find(const char *name);

enum { STATUS_NAMES = 4 };
extern const char *const status_names[STATUS_NAMES];

/* A generation route; a process serves the one that PIPELINE names. Names are those that generated clients
 * depend on. */
struct endpoint {
    const char *path, *summary;
    const char *id;       /* operationId */
    const char *override; /* x-speakeasy-name-override */
    const char *response; /* schema of the 200 */
    const char *description;
    const struct param_table *table;
};
extern const struct endpoint endpoints[];
extern const int endpoint_count;
/* PIPELINE NULL: all are served. */
bool endpoint_served(const struct endpoint *e, const char *pipeline);

/* Routes that answer at once, in the OpenAPI document. */
struct lookup {
    const char *path, *summary, *id, *response, *description;
};
extern const struct lookup lookups[];
extern const int lookup_count;

/* What a generation route answers besides 200. */
struct failure_reply {
    const char *status, *summary, *response, *description;
};
enum { FAILURE_REPLIES = 4 };
extern const struct failure_reply failure_replies[FAILURE_REPLIES];

#endif
