/* See text.h. */
#include <string.h>

#include "text.h"

/* Length of the white space character at S, or 0. */
static size_t white(const char *s, size_t len, bool python)
{
    static const char *const wide[] = {
        "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", /* U+0085 U+00A0 U+1680 */
        "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf", /* U+2028 U+2029 U+202F */
        "\xe2\x81\x9f", "\xe3\x80\x80",                 /* U+205F U+3000 */
    };

    if (len == 0)
        return 0;
    if (*s == ' ' || (*s >= '\t' && *s <= '\r') || (python && *s >= 0x1c && *s <= 0x1f))
        return 1;
    if (len >= 3 && memcmp(s, "\xe2\x80", 2) == 0 && (unsigned char)s[2] >= 0x80 &&
        (unsigned char)s[2] <= 0x8a)
        return 3; /* U+2000 to U+200A */
    for (size_t i = 0; i < sizeof(wide) / sizeof(*wide); i++)
        if (strlen(wide[i]) <= len && memcmp(s, wide[i], strlen(wide[i])) == 0)
            return strlen(wide[i]);
    return 0;
}

void text_strip(const char **at, size_t *len, bool python)
{
    size_t n;

    while ((n = white(*at, *len, python)) > 0)
        *at += n, *len -= n;
    while (*len) {
        size_t last = *len - 1;
        while (last && ((unsigned char)(*at)[last] & 0xc0) == 0x80)
            last--;
        if (white(*at + last, *len - last, python) != *len - last)
            return;
        *len = last;
    }
}
