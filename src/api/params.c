/* JSON bodies against parameter tables, with the coercions and the 422 texts of FastAPI and pydantic (lax
 * mode). See params.h. Differences, on purpose: NaN in an echoed input becomes null and half a surrogate pair
 * U+FFFD, where the original answers a plain-text 500; an input of more than 4 KiB is cut in the echo; bodies
 * are UTF-8 only. */
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json_scan.h"
#include "params.h"
#include "values.h"

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
        return &FAULT_STRING_TYPE;
    out->data = decoded(value, &out->len, &whole);
    return whole ? NULL : &FAULT_STRING_UNICODE;
}

static const struct fault *integer_from_string(struct json_span value, wide *out)
{
    size_t len = 0;
    bool whole = true;
    char *text = decoded(value, &len, &whole);
    const struct fault *fault = text && whole ? integer_from_text(text, len, out) : &FAULT_INT_PARSING;

    free(text);
    return fault;
}

static const struct fault *integer_from_float(double v, wide *out)
{
    if (isnan(v) || isinf(v))
        return &FAULT_INT_FINITE;
    if (v != floor(v))
        return &FAULT_INT_FRACTION;
    if (v <= -0x1p63 || v >= 0x1p63)
        return &FAULT_INT_SIZE;
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
        return integer_from_string(value, out);
    default:
        return &FAULT_INT_TYPE;
    }
}

static const struct fault *number_from_string(struct json_span value, double *out)
{
    size_t len = 0;
    bool whole = true;
    char *text = decoded(value, &len, &whole);
    const struct fault *fault = text && whole ? number_from_text(text, len, out) : &FAULT_FLOAT_PARSING;

    free(text);
    return fault;
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
        return number_from_string(value, out);
    default:
        return &FAULT_FLOAT_TYPE;
    }
}

static const struct fault *boolean_from_string(struct json_span value, bool *out)
{
    char text[32];
    size_t len = 0;

    if (value.len > sizeof(text))
        return &FAULT_BOOL_PARSING;
    json_decode_string(value, text, &len);
    return boolean_from_text(text, len, out);
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
        return value.type == JSON_INTEGER && fabs(v) < 0x1p63 ? &FAULT_BOOL_PARSING : &FAULT_BOOL_TYPE;
    case JSON_STRING:
        return boolean_from_string(value, out);
    default:
        return &FAULT_BOOL_TYPE;
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
    case PARAM_FILE:
        return &FAULT_NOT_FILE;
    }
    return &FAULT_MISSING;
}

void param_default(const struct param *p, void *out)
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
            fault = &FAULT_MISSING;
        else if (p->fallback)
            param_default(p, out);
        if (!fault && p->type == PARAM_STRING && !((struct param_string *)((char *)out + p->offset))->data)
            reply->body.failed = true;
        if (!fault)
            continue;
        fault_add(reply, fault, p->name);
        json_echo(&reply->body, fault == &FAULT_MISSING ? doc : members[i], ECHO_MAX);
        fault_close(reply, fault);
    }
    if (reply->body.len)
        buffer_puts(&reply->body, "]}");
}

static bool read_json(const struct param_table *table, const struct api_request *request, void *out,
                      struct reply *reply)
{
    const char *names[JSON_MEMBERS_MAX];
    struct json_span members[JSON_MEMBERS_MAX], doc;
    struct json_fault fault;

    if (request->len == 0) {
        fault_add(reply, &FAULT_MISSING, NULL);
        buffer_puts(&reply->body, "null}]}");
        return false;
    }
    if (!is_json(request->content_type)) {
        fault_add(reply, &FAULT_NOT_OBJECT, NULL);
        fault_echo(&reply->body, request->body, request->len);
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
        fault_add(reply, doc.type == JSON_NULL ? &FAULT_MISSING : &FAULT_NOT_OBJECT, NULL);
        json_echo(&reply->body, doc, ECHO_MAX);
        buffer_puts(&reply->body, "}]}");
        return false;
    }
    read_members(table, members, doc, out, reply);
    return reply->body.len == 0 && !reply->body.failed;
}

bool params_read(const struct param_table *table, const struct api_request *request, void *out,
                 struct reply *reply)
{
    return table->form ? params_read_form(table, request, out, reply) : read_json(table, request, out, reply);
}

void params_free(const struct param_table *table, void *out)
{
    for (int i = 0; i < table->count; i++)
        if (table->param[i].type == PARAM_STRING)
            free(((struct param_string *)((char *)out + table->param[i].offset))->data);
}
