/* See values.h. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json_scan.h"
#include "text.h"
#include "values.h"

const struct fault FAULT_MISSING = {"missing", "Field required", NULL};
const struct fault FAULT_STRING_TYPE = {"string_type", "Input should be a valid string", NULL};
const struct fault FAULT_STRING_UNICODE = {"string_unicode",
                                           "Input should be a valid string, unable to parse raw "
                                           "data as a unicode string",
                                           NULL};
const struct fault FAULT_INT_TYPE = {"int_type", "Input should be a valid integer", NULL};
const struct fault FAULT_INT_PARSING = {
    "int_parsing", "Input should be a valid integer, unable to parse string as an integer", NULL};
const struct fault FAULT_INT_SIZE = {
    "int_parsing_size", "Unable to parse input string as an integer, exceeded maximum size", NULL};
const struct fault FAULT_INT_FRACTION = {
    "int_from_float", "Input should be a valid integer, got a number with a fractional part", NULL};
const struct fault FAULT_INT_FINITE = {"finite_number", "Input should be a finite number", NULL};
const struct fault FAULT_FLOAT_TYPE = {"float_type", "Input should be a valid number", NULL};
const struct fault FAULT_FLOAT_PARSING = {
    "float_parsing", "Input should be a valid number, unable to parse string as a number", NULL};
const struct fault FAULT_BOOL_TYPE = {"bool_type", "Input should be a valid boolean", NULL};
const struct fault FAULT_BOOL_PARSING = {"bool_parsing",
                                         "Input should be a valid boolean, unable to interpret input", NULL};
const struct fault FAULT_NOT_OBJECT = {
    "model_attributes_type", "Input should be a valid dictionary or object to extract fields from", NULL};
const struct fault FAULT_NOT_FILE = {
    "value_error", "Value error, Expected UploadFile, received: <class 'str'>", "{\"error\":{}}"};

void wide_format(char out[44], wide v)
{
    char digits[44];
    int n = 0, o = 0;
    unsigned __int128 u = v < 0 ? -(unsigned __int128)v : (unsigned __int128)v;

    do
        digits[n++] = (char)('0' + (int)(u % 10));
    while (u /= 10);
    if (v < 0)
        out[o++] = '-';
    while (n)
        out[o++] = digits[--n];
    out[o] = '\0';
}

/* ---- Text to numbers ---- */

/* An optional sign and digits, nothing else. */
static bool parse_wide(const char *s, wide *out)
{
    wide v = 0;
    bool minus = *s == '-';

    s += *s == '-' || *s == '+';
    if (!*s)
        return false;
    for (; *s; s++) {
        if (!isdigit((unsigned char)*s))
            return false;
        v = v < WIDE_MAX ? v * 10 + (*s - '0') : v;
    }
    *out = minus ? -v : v;
    return true;
}

/* Takes white space at both ends off TEXT. */
static void trim(char *text)
{
    const char *at = text;
    size_t len = strlen(text);

    text_strip(&at, &len, false);
    memmove(text, at, len);
    text[len] = '\0';
}

/* Takes single underscores between characters out of TEXT; false when there is none or one stands elsewhere.
 */
static bool drop_underscores(char *text)
{
    size_t len = strlen(text);
    char *out = text;

    if (!strchr(text, '_') || text[0] == '_' || text[len - 1] == '_' || strstr(text, "__"))
        return false;
    for (const char *s = text; *s; s++)
        if (*s != '_')
            *out++ = *s;
    *out = '\0';
    return true;
}

/* Cuts ".000" off TEXT; false when there is none. */
static bool drop_zeros(char *text)
{
    char *point = strchr(text, '.');

    if (!point || !point[1] || point == text || strspn(point + 1, "0") != strlen(point + 1))
        return false;
    *point = '\0';
    return true;
}

/* Rust's f64::from_str: decimal numbers, "nan", "inf", "infinity" in any case; no hex. */
static bool parse_double(const char *s, double *out)
{
    char *end;
    const char *body = s + (*s == '-' || *s == '+');

    if (!*body || body[strspn(body, "0123456789.eE+-")]) {
        if (strcasecmp(body, "nan") != 0 && strcasecmp(body, "inf") != 0 && strcasecmp(body, "infinity") != 0)
            return false;
    } else if (!isdigit((unsigned char)*body) && *body != '.') {
        return false;
    }
    *out = strtod(s, &end);
    return end != s && *end == '\0';
}

const struct fault *integer_from_text(char *text, size_t len, wide *out)
{
    if (strlen(text) != len)
        return &FAULT_INT_PARSING;
    trim(text);
    if (strlen(text) > INT_DIGITS_MAX)
        return &FAULT_INT_SIZE;
    if (parse_wide(text, out) || (drop_zeros(text) && parse_wide(text, out)))
        return NULL;
    if (text[*text == '-' || *text == '+'] != '_' && drop_underscores(text) && parse_wide(text, out))
        return NULL;
    return &FAULT_INT_PARSING;
}

const struct fault *number_from_text(char *text, size_t len, double *out)
{
    if (strlen(text) != len)
        return &FAULT_FLOAT_PARSING;
    trim(text);
    if (parse_double(text, out) || (drop_underscores(text) && parse_double(text, out)))
        return NULL;
    return &FAULT_FLOAT_PARSING;
}

const struct fault *boolean_from_text(const char *text, size_t len, bool *out)
{
    static const char *const words[2][6] = {{"0", "off", "f", "false", "n", "no"},
                                            {"1", "on", "t", "true", "y", "yes"}};

    for (int which = 0; which < 2; which++)
        for (int i = 0; i < 6; i++)
            if (len == strlen(words[which][i]) && strncasecmp(text, words[which][i], len) == 0) {
                *out = which;
                return NULL;
            }
    return &FAULT_BOOL_PARSING;
}

/* ---- The reply ---- */

void fault_add(struct reply *reply, const struct fault *fault, const char *field)
{
    struct buffer *b = &reply->body;

    buffer_puts(b, b->len ? "," : "{\"detail\":[");
    buffer_printf(b, "{\"type\":\"%s\",\"loc\":[\"body\"", fault->type);
    if (field)
        buffer_printf(b, ",\"%s\"", field);
    buffer_printf(b, "],\"msg\":\"%s\",\"input\":", fault->msg);
    reply->status = 422;
    reply->content_type = CONTENT_JSON;
}

void fault_close(struct reply *reply, const struct fault *fault)
{
    if (fault->ctx)
        buffer_printf(&reply->body, ",\"ctx\":%s", fault->ctx);
    buffer_puts(&reply->body, "}");
}

void fault_echo(struct buffer *b, const char *text, size_t len)
{
    struct buffer cut = {0};
    size_t keep = len < ECHO_MAX ? len : ECHO_MAX;

    while (keep < len && keep > 0 && ((unsigned char)text[keep] & 0xc0) == 0x80)
        keep--;
    buffer_add(&cut, text, keep);
    if (!utf8_valid(cut.data ? cut.data : "", cut.len))
        for (size_t i = 0; i < cut.len; i++)
            if ((unsigned char)cut.data[i] >= 0x80)
                cut.data[i] = '?';
    if (keep < len)
        buffer_puts(&cut, "…");
    buffer_json_string(b, cut.data ? cut.data : "", cut.len);
    buffer_free(&cut);
}
