/* A strict reader of JSON request bodies that builds no tree.
 *
 * cJSON costs forty times the body in memory, takes invalid UTF-8, raw control characters and trailing text,
 * and lets the first of two equal keys win. This reader checks the whole text in one pass without recursion,
 * and remembers where the values of a few known keys of the outermost object lie; the last of two equal keys
 * wins. Faults carry the words and the offset that Python's json module gives, because clients of the
 * contract see them. */
#ifndef LATENTD_API_JSON_SCAN_H
#define LATENTD_API_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>

#include "buffer.h"
#include "utf8.h"

enum { JSON_DEPTH_MAX = 512, JSON_INT_DIGITS_MAX = 4300, JSON_MEMBERS_MAX = 32 };

enum json_type {
    JSON_ABSENT,
    JSON_NULL,
    JSON_BOOL,
    JSON_INTEGER,
    JSON_FLOAT, /* has a point or an exponent, or is NaN, Infinity or -Infinity, which Python reads too */
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
};

/* A value inside the text that was scanned: LEN bytes at AT, known to be valid. */
struct json_span {
    enum json_type type;
    const char *at;
    size_t len;
};

struct json_fault {
    const char *text; /* as Python's JSONDecodeError.msg; NULL when there is no fault */
    size_t offset;    /* in characters, as Python counts */
    bool unreadable;  /* not a syntax error: invalid UTF-8, nested too deep, an integer of too many digits */
};

/* Checks LEN bytes (a byte order mark is skipped) and describes the outermost value in *DOC. Where that is an
 * object, members[i] gets the value of key names[i] (JSON_ABSENT when it is not there). COUNT is at most
 * JSON_MEMBERS_MAX. Returns 0, or -1 and a fault. */
int json_scan(const char *text, size_t len, const char *const *names, int count, struct json_span *members,
              struct json_span *doc, struct json_fault *fault);

/* Calls EACH for every member of OBJECT in order (duplicates too); stops when it returns non-zero, and
 * returns that. */
int json_each_member(struct json_span object,
                     int (*each)(void *ctx, struct json_span key, struct json_span value), void *ctx);

/* The text of a string value as UTF-8 into OUT, which has room for string.len bytes; the text may hold NUL
 * characters and is not terminated. False when it holds half of a surrogate pair; U+FFFD stands there then.
 */
bool json_decode_string(struct json_span string, char *out, size_t *len);

/* The value of four hex digits at P, or -1. */
int json_hex4(const char *p);

/* VALUE written as Python's json.dumps(ensure_ascii=False, separators=(",", ":")) would write what json.loads
 * read. NaN and infinities, which have no JSON, become null. A value of more than LIMIT bytes becomes a
 * string with its beginning and an ellipsis. */
void json_echo(struct buffer *out, struct json_span value, size_t limit);

/* A float as Python's repr() writes it: the shortest digits that read back as the same number. */
void json_format_float(char out[40], double value);

#endif
