/* Writes one document of objects, arrays and scalars, event by event, as compact JSON, as JSON indented by 4,
 * or as YAML. */
#ifndef LATENTD_API_DOC_WRITER_H
#define LATENTD_API_DOC_WRITER_H

#include "api.h"

enum { DOC_DEPTH_MAX = 24 };

struct doc {
    struct buffer *out;
    enum openapi_form form;
    int depth;
    struct {
        bool array;
        int count;  /* members or items so far */
        int indent; /* YAML: column of the members */
    } level[DOC_DEPTH_MAX];
    bool after_key, after_dash; /* YAML: the value goes on the line that was begun */
};

void doc_object(struct doc *d);
void doc_array(struct doc *d);
void doc_end(struct doc *d); /* of the innermost object or array, which must not be empty */
void doc_key(struct doc *d, const char *key);
void doc_string(struct doc *d, const char *value);
/* A value that is JSON already: a number, true, false, null, "[]", "{}" or a string without escapes. */
void doc_raw(struct doc *d, const char *json);
/* A key with a string. */
void doc_member(struct doc *d, const char *key, const char *value);

#endif
