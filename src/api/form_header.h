/* Parameters of a header: form-data; name="image"; filename="in.png". */
#ifndef LATENTD_API_FORM_HEADER_H
#define LATENTD_API_FORM_HEADER_H

#include <stddef.h>

enum { HEADER_ABSENT = 0, HEADER_FOUND = 1, HEADER_BROKEN = -1 };

/* Looks for parameter NAME (lower case) in the LEN bytes of a header's value, as Python's email package reads
 * them: keys of any case, quoted values, RFC 2231 encodings and continuations, the last of several. Copies
 * its value to OUT, cut to CAP bytes, and its whole length to *OUT_LEN. HEADER_BROKEN: RFC 2231 parts that
 * do not fit together. */
int header_param(const char *value, size_t len, const char *name, char *out, size_t cap, size_t *out_len);

#endif
