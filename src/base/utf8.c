/* See utf8.h. */
#include "utf8.h"

#include <string.h>

/* Bytes of the character at P, before END; 0 when there is none. */
static size_t character(const unsigned char *p, const unsigned char *end)
{
    unsigned char c = *p++;
    int more = c < 0x80 ? 0 : c < 0xc2 ? -1 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : c < 0xf5 ? 3 : -1;

    if (more < 0 || end - p < more)
        return 0;
    if (more && (p[0] & 0xc0) != 0x80)
        return 0;
    if ((c == 0xe0 && p[0] < 0xa0) || (c == 0xed && p[0] > 0x9f) || (c == 0xf0 && p[0] < 0x90) ||
        (c == 0xf4 && p[0] > 0x8f))
        return 0;
    for (int i = 1; i < more; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return 1 + (size_t)more;
}

bool utf8_valid(const char *text, size_t len)
{
    const unsigned char *p = (const unsigned char *)text, *end = p + len;

    for (size_t n; p < end; p += n)
        if ((n = character(p, end)) == 0)
            return false;
    return true;
}

size_t utf8_repair(char *text)
{
    const unsigned char *p = (const unsigned char *)text, *end = p + strlen(text);
    char *out = text;

    while (p < end) {
        size_t n = character(p, end);
        memmove(out, p, n);
        out += n;
        p += n ? n : 1;
    }
    *out = '\0';
    return (size_t)(out - text);
}
