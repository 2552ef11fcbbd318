/* Request bodies against parameter tables, with the coercions and the 422 texts of FastAPI and pydantic (lax
 * mode). See params.h. Differences, on purpose: NaN in an echoed input becomes null and half a surrogate pair
 * U+FFFD, where the original answers a plain-text 500; an input of more than 4 KiB is cut in the echo; bodies
 * are UTF-8 only. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json_scan.h"
#include "params.h"
#include "text.h"

enum { ECHO_MAX = 4096 };
#define WIDE_MAX ((wide)1 << 120) /* where integers saturate */

struct fault {
    const char *type, *msg;
};

static const struct fault
    MISSING = {"missing", "Field required"},
    STRING_TYPE = {"string_type", "Input should be a valid string"},
    STRING_UNICODE = {"string_unicode", "Input should be a valid string, unable to parse raw "
                                        "data as a unicode string"},
    INT_TYPE = {"int_type", "Input should be a valid integer"},
    INT_PARSING = {"int_parsing", "Input should be a valid integer, unable to parse string as an integer"},
    INT_SIZE = {"int_parsing_size", "Unable to parse input string as an integer, exceeded maximum size"},
    INT_FRACTION = {"int_from_float", "Input should be a valid integer, got a number with a fractional part"},
    INT_FINITE = {"finite_number", "Input should be a finite number"},
    FLOAT_TYPE = {"float_type", "Input should be a valid number"},
    FLOAT_PARSING = {"float_parsing", "Input should be a valid number, unable to parse string as a number"},
    BOOL_TYPE = {"bool_type", "Input should be a valid boolean"},
    BOOL_PARSING = {"bool_parsing", "Input should be a valid boolean, unable to interpret input"},
    NOT_OBJECT = {"model_attributes_type", "Input should be a valid dictionary or object to "
                                           "extract fields from"};

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

/* ---- One value ---- */

static char *decoded(struct json_span value, size_t *len, bool *whole)
{
    char *text = malloc(value.len + 1);

    if (!text)
        return NULL;
    *whole = json_decode_string(value, text, len);
    text[*len] = '\0';
    return text;
}

static const struct fault *read_string(struct json_span value, struct param_string *out)
{
    bool whole = true;

    if (value.type != JSON_STRING)
        return &STRING_TYPE;
    out->data = decoded(value, &out->len, &whole);
    return whole ? NULL : &STRING_UNICODE;
}

static const struct fault *integer_from_text(struct json_span value, wide *out)
{
    size_t len = 0;
    bool whole = true;
    char *text = decoded(value, &len, &whole);
    const struct fault *fault = NULL;

    if (!text || strlen(text) != len || !whole) {
        fault = &INT_PARSING;
    } else {
        trim(text);
        if (strlen(text) > JSON_INT_DIGITS_MAX)
            fault = &INT_SIZE;
        else if (!parse_wide(text, out) && !(drop_zeros(text) && parse_wide(text, out)) &&
                 !(text[*text == '-' || *text == '+'] != '_' && drop_underscores(text) &&
                   parse_wide(text, out)))
            fault = &INT_PARSING;
    }
    free(text);
    return fault;
}

static const struct fault *integer_from_float(double v, wide *out)
{
    if (isnan(v) || isinf(v))
        return &INT_FINITE;
    if (v != floor(v))
        return &INT_FRACTION;
    if (v <= -0x1p63 || v >= 0x1p63)
        return &INT_SIZE;
    *out = (wide)v;
    return NULL;
}

/* The number that a scanned JSON_INTEGER or JSON_FLOAT spells. */
static double span_number(struct json_span value)
{
    if (value.at[0] == 'N')
        return NAN;
    if (value.at[value.len - 1] == 'y')
        return value.at[0] == '-' ? -INFINITY : INFINITY;
    return strtod(value.at, NULL); /* ends at the delimiter that follows every JSON number */
}

static void span_integer(struct json_span value, wide *out)
{
    wide v = 0;

    for (size_t i = value.at[0] == '-'; i < value.len; i++)
        v = v < WIDE_MAX ? v * 10 + (value.at[i] - '0') : v;
    *out = value.at[0] == '-' ? -v : v;
}

static const struct fault *read_integer(struct json_span value, wide *out)
{
    switch (value.type) {
    case JSON_INTEGER:
        span_integer(value, out);
        return NULL;
    case JSON_BOOL:
        *out = value.at[0] == 't';
        return NULL;
    case JSON_FLOAT:
        return integer_from_float(span_number(value), out);
    case JSON_STRING:
        return integer_from_text(value, out);
    default:
        return &INT_TYPE;
    }
}

static const struct fault *number_from_text(struct json_span value, double *out)
{
    size_t len = 0;
    bool whole = true, read = false;
    char *text = decoded(value, &len, &whole);

    if (text && whole && strlen(text) == len) {
        trim(text);
        read = parse_double(text, out) || (drop_underscores(text) && parse_double(text, out));
    }
    free(text);
    return read ? NULL : &FLOAT_PARSING;
}

static const struct fault *read_number(struct json_span value, double *out)
{
    switch (value.type) {
    case JSON_INTEGER:
    case JSON_FLOAT:
        *out = span_number(value);
        if (value.type == JSON_INTEGER && *out == 0)
            *out = 0; /* the integer -0 has no sign */
        return NULL;
    case JSON_BOOL:
        *out = value.at[0] == 't';
        return NULL;
    case JSON_STRING:
        return number_from_text(value, out);
    default:
        return &FLOAT_TYPE;
    }
}

static const struct fault *boolean_from_text(struct json_span value, bool *out)
{
    static const char *const words[2][6] = {{"0", "off", "f", "false", "n", "no"},
                                            {"1", "on", "t", "true", "y", "yes"}};
    char text[32];
    size_t len = 0;

    if (value.len > sizeof(text))
        return &BOOL_PARSING;
    json_decode_string(value, text, &len);
    text[len] = '\0'; /* the two quotes left room */
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < 6; i++)
            if (len == strlen(words[which][i]) && strcasecmp(text, words[which][i]) == 0) {
                *out = which;
                return NULL;
            }
    return &BOOL_PARSING;
}

static const struct fault *read_boolean(struct json_span value, bool *out)
{
    double v;

    switch (value.type) {
    case JSON_BOOL:
        *out = value.at[0] == 't';
        return NULL;
    case JSON_INTEGER:
    case JSON_FLOAT:
        v = span_number(value);
        *out = v == 1;
        if (v == 0 || v == 1)
            return NULL;
        return value.type == JSON_INTEGER && fabs(v) < 0x1p63 ? &BOOL_PARSING : &BOOL_TYPE;
    case JSON_STRING:
        return boolean_from_text(value, out);
    default:
        return &BOOL_TYPE;
    }
}

static const struct fault *read_param(const struct param *p, struct json_span value, void *out)
{
    void *field = (char *)out + p->offset;
    struct param_integer *integer = field;

    switch (p->type) {
    case PARAM_STRING:
        return read_string(value, field);
    case PARAM_INTEGER:
        integer->given = true;
        return read_integer(value, &integer->value);
    case PARAM_NUMBER:
        return read_number(value, field);
    case PARAM_BOOLEAN:
        return read_boolean(value, field);
    }
    return &MISSING;
}

static void set_default(const struct param *p, void *out)
{
    void *field = (char *)out + p->offset;
    struct json_span value = {JSON_INTEGER, p->fallback, strlen(p->fallback)};

    value.type = p->type == PARAM_STRING    ? JSON_STRING
                 : p->type == PARAM_BOOLEAN ? JSON_BOOL
                 : p->type == PARAM_NUMBER  ? JSON_FLOAT
                                            : JSON_INTEGER;
    read_param(p, value, out);
    if (p->type == PARAM_INTEGER)
        ((struct param_integer *)field)->given = false;
}

/* ---- The whole body ---- */

/* Begins or continues {"detail":[…]} with one entry; the caller adds the input and "}". FIELD NULL: the body
 * itself. */
static void add_detail(struct reply *reply, const struct fault *fault, const char *field)
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

/* An input that is not JSON: shown as a string. */
static void echo_text(struct buffer *b, const char *text, size_t len)
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

/* FastAPI reads a body as JSON when there is no Content-Type, or application/json, or application/…+json. */
static bool is_json(const char *content_type)
{
    if (!content_type || !*content_type)
        return true;
    size_t len = strcspn(content_type, ";");
    while (len > 0 && isspace((unsigned char)content_type[len - 1]))
        len--;
    while (len > 0 && isspace((unsigned char)*content_type))
        content_type++, len--;
    if (len < 12 || strncasecmp(content_type, "application/", 12) != 0 ||
        memchr(content_type + 12, '/', len - 12))
        return false;
    return (len == 16 && strncasecmp(content_type + 12, "json", 4) == 0) ||
           (len >= 17 && strncasecmp(content_type + len - 5, "+json", 5) == 0);
}

static void json_fault_reply(const struct json_fault *fault, struct reply *reply)
{
    if (fault->unreadable) {
        reply_error(reply, 400, "There was an error parsing the body: %s", fault->text);
        return;
    }
    reply->status = 422;
    reply->content_type = CONTENT_JSON;
    buffer_printf(
        &reply->body,
        "{\"detail\":[{\"type\":\"json_invalid\",\"loc\":[\"body\",%zu],\"msg\":\"JSON decode error\","
        "\"input\":{},\"ctx\":{\"error\":",
        fault->offset);
    buffer_json_string(&reply->body, fault->text, strlen(fault->text));
    buffer_puts(&reply->body, "}}]}");
}

/* Every parameter in the table's order; all faults of one request are listed together. */
static void read_members(const struct param_table *table, const struct json_span *members,
                         struct json_span doc, void *out, struct reply *reply)
{
    for (int i = 0; i < table->count; i++) {
        const struct param *p = &table->param[i];
        const struct fault *fault = NULL;

        if (members[i].type != JSON_ABSENT)
            fault = read_param(p, members[i], out);
        else if (p->required)
            fault = &MISSING;
        else if (p->fallback)
            set_default(p, out);
        if (!fault && p->type == PARAM_STRING && !((struct param_string *)((char *)out + p->offset))->data)
            reply->body.failed = true;
        if (!fault)
            continue;
        add_detail(reply, fault, p->name);
        json_echo(&reply->body, fault == &MISSING ? doc : members[i], ECHO_MAX);
        buffer_puts(&reply->body, "}");
    }
    if (reply->body.len)
        buffer_puts(&reply->body, "]}");
}

bool params_read(const struct param_table *table, const struct api_request *request, void *out,
                 struct reply *reply)
{
    const char *names[JSON_MEMBERS_MAX];
    struct json_span members[JSON_MEMBERS_MAX], doc;
    struct json_fault fault;

    if (request->len == 0) {
        add_detail(reply, &MISSING, NULL);
        buffer_puts(&reply->body, "null}]}");
        return false;
    }
    if (!is_json(request->content_type)) {
        add_detail(reply, &NOT_OBJECT, NULL);
        echo_text(&reply->body, request->body, request->len);
        buffer_puts(&reply->body, "}]}");
        return false;
    }
    for (int i = 0; i < table->count; i++)
        names[i] = table->param[i].name;
    if (json_scan(request->body, request->len, names, table->count, members, &doc, &fault)) {
        json_fault_reply(&fault, reply);
        return false;
    }
    if (doc.type != JSON_OBJECT) {
        add_detail(reply, doc.type == JSON_NULL ? &MISSING : &NOT_OBJECT, NULL);
        json_echo(&reply->body, doc, ECHO_MAX);
        buffer_puts(&reply->body, "}]}");
        return false;
    }
    read_members(table, members, doc, out, reply);
    return reply->body.len == 0 && !reply->body.failed;
}

void params_free(const struct param_table *table, void *out)
{
    for (int i = 0; i < table->count; i++)
        if (table->param[i].type == PARAM_STRING)
            free(((struct param_string *)((char *)out + table->param[i].offset))->data);
}
