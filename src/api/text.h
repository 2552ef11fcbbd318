/* White space around text, as Rust (pydantic's numbers) and Python (str.strip) see it. */
#ifndef LATENTD_API_TEXT_H
#define LATENTD_API_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Shrinks [*AT, *AT + *LEN), valid UTF-8, to what lies between the white space at both ends: Unicode's
 * White_Space, and for PYTHON also the separators U+001C to U+001F. */
void text_strip(const char **at, size_t *len, bool python);

#endif
