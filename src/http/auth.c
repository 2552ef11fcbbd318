/* Bearer tokens. */
#include <string.h>
#include <strings.h>

#include "internal.h"

/* Takes the same time wherever the difference is; the length of the secret may show. */
static bool equal(const char *given, const char *secret)
{
    size_t n = strlen(given), len = strlen(secret);
    while (n > len && (given[n - 1] == ' ' || given[n - 1] == '\t'))
        n--; /* blanks behind a header's value are none of it (RFC 9110, section 5.5) */
    volatile unsigned char difference = n != len;

    for (size_t i = 0; i < len; i++)
        difference |= (unsigned char)((i < n ? given[i] : 0) ^ secret[i]);
    return difference == 0;
}

bool auth_ok(const char *header, const char *token)
{
    if (!token)
        return true;
    /* the scheme's case does not count, and exactly one space follows it */
    if (!header || strncasecmp(header, "Bearer ", 7) != 0)
        return false;
    return equal(header + 7, token);
}
