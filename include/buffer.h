/* A growing byte buffer; used for replies, PNG output and log lines. */
#ifndef LATENTD_BUFFER_H
#define LATENTD_BUFFER_H

#include <stddef.h>

#include "error.h"

struct buffer {
    char *data; /* always NUL-terminated once something was added; NULL when empty */
    size_t len, cap;
    bool failed; /* an append ran out of memory; later appends do nothing */
};

/* Each returns 0, or ERR_NOMEM and marks the buffer failed. */
int buffer_add(struct buffer *b, const void *data, size_t len);
int buffer_puts(struct buffer *b, const char *s);
int buffer_printf(struct buffer *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* S as a JSON string with its quotes; LEN bytes of valid UTF-8. */
int buffer_json_string(struct buffer *b, const char *s, size_t len);
int buffer_base64(struct buffer *b, const void *data, size_t len);
void buffer_free(struct buffer *b);

#endif
