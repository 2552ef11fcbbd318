/* See buffer.h. */
#include "buffer.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for LEN more bytes and a final NUL. */
static int buffer_reserve(struct buffer *b, size_t len)
{
    if (b->failed)
        return ERR_NOMEM;
    if (len > SIZE_MAX / 2 - b->len - 1) {
        b->failed = true;
        return ERR_NOMEM;
    }
    size_t need = b->len + len + 1;
    if (need <= b->cap)
        return 0;
    size_t cap = b->cap ? b->cap : 256;
    while (cap < need)
        cap *= 2;
    char *data = realloc(b->data, cap);
    if (!data) {
        b->failed = true;
        return ERR_NOMEM;
    }
    b->data = data;
    b->cap = cap;
    return 0;
}

int buffer_add(struct buffer *b, const void *data, size_t len)
{
    int rc = buffer_reserve(b, len);
    if (rc)
        return rc;
    if (len)
        memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
    return 0;
}

int buffer_puts(struct buffer *b, const char *s)
{
    return buffer_add(b, s, strlen(s));
}

int buffer_printf(struct buffer *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    int rc = n < 0 ? ERR_INTERNAL : buffer_reserve(b, (size_t)n);
    if (rc == 0) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
    return rc;
}

int buffer_json_string(struct buffer *b, const char *s, size_t len)
{
    static const char hex[] = "0123456789abcdef";
    buffer_add(b, "\"", 1);
    size_t start = 0;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        buffer_add(b, s + start, i - start);
        start = i + 1;
        char esc[7] = {'\\', (char)c, 0};
        switch (c) {
        case '\n':
            esc[1] = 'n';
            break;
        case '\r':
            esc[1] = 'r';
            break;
        case '\t':
            esc[1] = 't';
            break;
        case '\b':
            esc[1] = 'b';
            break;
        case '\f':
            esc[1] = 'f';
            break;
        default:
            if (c < 0x20) {
                memcpy(esc, "\\u00", 4);
                esc[4] = hex[c >> 4];
                esc[5] = hex[c & 15];
            }
        }
        buffer_puts(b, esc);
    }
    buffer_add(b, s + start, len - start);
    buffer_add(b, "\"", 1);
    return b->failed ? ERR_NOMEM : 0;
}

int buffer_base64(struct buffer *b, const void *data, size_t len)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *s = data;
    if (len > SIZE_MAX / 4 || buffer_reserve(b, (len + 2) / 3 * 4)) {
        b->failed = true;
        return ERR_NOMEM;
    }
    char *d = b->data + b->len;
    size_t i = 0;
    for (; i + 3 <= len; i += 3, d += 4) {
        unsigned v = (unsigned)s[i] << 16 | (unsigned)s[i + 1] << 8 | s[i + 2];
        d[0] = digit[v >> 18];
        d[1] = digit[v >> 12 & 63];
        d[2] = digit[v >> 6 & 63];
        d[3] = digit[v & 63];
    }
    if (i < len) {
        unsigned v = (unsigned)s[i] << 16 | (i + 1 < len ? (unsigned)s[i + 1] << 8 : 0);
        d[0] = digit[v >> 18];
        d[1] = digit[v >> 12 & 63];
        d[2] = i + 1 < len ? digit[v >> 6 & 63] : '=';
        d[3] = '=';
        d += 4;
    }
    *d = '\0';
    b->len = (size_t)(d - b->data);
    return 0;
}

void buffer_free(struct buffer *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}
