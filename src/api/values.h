/* What JSON and form bodies share: values that come as text, and the details of a 422 reply. */
#ifndef LATENTD_API_VALUES_H
#define LATENTD_API_VALUES_H

#include "params.h"

enum { ECHO_MAX = 4096, INT_DIGITS_MAX = 4300 };

/* What pydantic calls a wrong value. */
struct fault {
    const char *type, *msg;
    const char *ctx; /* JSON of what goes with it; NULL: nothing */
};

extern const struct fault FAULT_MISSING, FAULT_STRING_TYPE, FAULT_STRING_UNICODE, FAULT_INT_TYPE,
    FAULT_INT_PARSING, FAULT_INT_SIZE, FAULT_INT_FRACTION, FAULT_INT_FINITE, FAULT_FLOAT_TYPE,
    FAULT_FLOAT_PARSING, FAULT_BOOL_TYPE, FAULT_BOOL_PARSING, FAULT_NOT_OBJECT, FAULT_NOT_FILE;

#define WIDE_MAX ((wide)1 << 120) /* where integers saturate */

/* LEN bytes of UTF-8, NUL-terminated, which are changed while they are read. NULL, or the fault. */
const struct fault *integer_from_text(char *text, size_t len, wide *out);
const struct fault *number_from_text(char *text, size_t len, double *out);
const struct fault *boolean_from_text(const char *text, size_t len, bool *out);

/* params_read for a table of a form. */
bool params_read_form(const struct param_table *table, const struct api_request *request, void *out,
                      struct reply *reply);
/* Sets the field of P in OUT to its default. */
void param_default(const struct param *p, void *out);

/* Begins or continues {"detail":[…]} with one entry, up to its input. FIELD NULL: the body itself. The caller
 * adds the input and calls fault_close. */
void fault_add(struct reply *reply, const struct fault *fault, const char *field);
void fault_close(struct reply *reply, const struct fault *fault);
/* An input that is not JSON: shown as a string, its first ECHO_MAX bytes. */
void fault_echo(struct buffer *b, const char *text, size_t len);

#endif
