/* Whether text is UTF-8, and making it so. */
#ifndef LATENTD_UTF8_H
#define LATENTD_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* True when LEN bytes at TEXT are UTF-8 (no surrogates, no overlong forms). */
bool utf8_valid(const char *text, size_t len);
/* Takes out of TEXT what is not UTF-8, such as the half of a character before which a precision in a format
 * or the end of an array cut it. Returns the length of what is left. */
size_t utf8_repair(char *text);

#endif
