/* A strict reader of form bodies, multipart/form-data and application/x-www-form-urlencoded, over a complete
 * body. It answers as Starlette 0.41 with python-multipart 0.0.9 does, whose words clients of the contract
 * see.
 *
 * It allocates nothing and copies nothing: it remembers where the values of a few known names lie in the
 * body. Of two equal names the last one wins, unknown names are passed over. Not libmicrohttpd's
 * MHD_PostProcessor, which finds no parts and no error in `boundary=X; charset=…`, takes nested multiparts
 * apart and hides truncation. */
#ifndef LATENTD_API_FORM_H
#define LATENTD_API_FORM_H

#include <stdbool.h>
#include <stddef.h>

enum {
    FORM_FIELDS_MAX = 1000,     /* text parts of one body */
    FORM_FILES_MAX = 1000,      /* parts with a file name */
    FORM_TEXT_MAX = 1024 << 10, /* bytes of a text part */
    FORM_BOUNDARY_MAX = 256,
    FORM_NAMES_MAX = 32
};

enum form_kind { FORM_ABSENT, FORM_TEXT, FORM_FILE };
enum form_encoding { FORM_UTF8, FORM_LATIN1, FORM_URLENCODED };

/* One value inside the body: LEN bytes at AT, as they were sent. */
struct form_value {
    enum form_kind kind;
    enum form_encoding encoding; /* of a text */
    const char *at;
    size_t len;
};

/* Reads LEN bytes at BODY as what CONTENT_TYPE (may be NULL) says; values[i] gets the value of names[i].
 * Other types than the two have no values. COUNT is at most FORM_NAMES_MAX. Returns NULL, or the words of
 * the fault (HTTP 400). A part that has no end is left out, as the original does. */
const char *form_scan(const char *content_type, const char *body, size_t len, const char *const *names,
                      int count, struct form_value *values);

/* A text value as UTF-8 in memory of its own (malloc), NUL-terminated; it may hold NUL characters. Bytes that
 * are not UTF-8 are read as Latin-1; in urlencoded ones U+FFFD stands for them. NULL: no memory. */
char *form_text(const struct form_value *value, size_t *len);

#endif
