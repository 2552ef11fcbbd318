/* Form bodies against parameter tables, as FastAPI 0.115 reads them: a field that is empty or absent gets its
 * default, where it has one. On purpose a file that was sent where text is wanted is shown by its size, where
 * the original shows the insides of Python objects. */
#include <stdlib.h>
#include <string.h>

#include "form.h"
#include "values.h"

/* {"detail":"…"}: forms that cannot be read answer a string, as Starlette does. */
static void broken_form(struct reply *reply, const char *detail)
{
    reply->status = 400;
    reply->content_type = CONTENT_JSON;
    buffer_puts(&reply->body, "{\"detail\":");
    buffer_json_string(&reply->body, detail, strlen(detail));
    buffer_puts(&reply->body, "}");
}

static const struct fault *read_file(const struct form_value *value, struct param_file *out)
{
    if (value->kind != FORM_FILE)
        return &FAULT_NOT_FILE;
    out->data = value->at;
    out->len = value->len;
    return NULL;
}

/* TEXT is taken over by a string parameter. */
static const struct fault *read_text(const struct param *p, char **text, size_t len, void *field)
{
    struct param_integer *integer = field;
    struct param_string *string = field;

    switch (p->type) {
    case PARAM_STRING:
        string->data = *text;
        string->len = len;
        *text = NULL;
        return NULL;
    case PARAM_INTEGER:
        integer->given = true;
        return integer_from_text(*text, len, &integer->value);
    case PARAM_NUMBER:
        return number_from_text(*text, len, field);
    case PARAM_BOOLEAN:
        return boolean_from_text(*text, len, field);
    case PARAM_FILE:
        break;
    }
    return &FAULT_NOT_FILE;
}

static const struct fault *wrong_type(const struct param *p)
{
    switch (p->type) {
    case PARAM_INTEGER:
        return &FAULT_INT_TYPE;
    case PARAM_NUMBER:
        return &FAULT_FLOAT_TYPE;
    case PARAM_BOOLEAN:
        return &FAULT_BOOL_TYPE;
    default:
        return &FAULT_STRING_TYPE;
    }
}

/* One parameter. NULL, or a fault. No memory is marked in REPLY. */
static const struct fault *read_value(const struct param *p, const struct form_value *value, void *out,
                                      struct reply *reply)
{
    void *field = (char *)out + p->offset;
    size_t len = 0;

    if (value->kind == FORM_ABSENT || (value->kind == FORM_TEXT && value->len == 0 && p->fallback)) {
        if (p->required)
            return &FAULT_MISSING;
        if (p->fallback)
            param_default(p, out);
        return NULL;
    }
    if (p->type == PARAM_FILE)
        return read_file(value, field);
    if (value->kind == FORM_FILE)
        return wrong_type(p);
    char *text = form_text(value, &len);
    if (!text) {
        reply->body.failed = true;
        return NULL;
    }
    const struct fault *fault = read_text(p, &text, len, field);
    free(text);
    return fault;
}

static void echo_value(struct buffer *b, const struct form_value *value)
{
    size_t len = 0;
    char *text = NULL;

    if (value->kind == FORM_ABSENT)
        buffer_puts(b, "null");
    else if (value->kind == FORM_FILE)
        buffer_printf(b, "{\"size\":%zu}", value->len);
    else if ((text = form_text(value, &len)) != NULL)
        fault_echo(b, text, len);
    else
        b->failed = true;
    free(text);
}

bool params_read_form(const struct param_table *table, const struct api_request *request, void *out,
                      struct reply *reply)
{
    const char *names[FORM_NAMES_MAX];
    struct form_value values[FORM_NAMES_MAX];

    for (int i = 0; i < table->count; i++)
        names[i] = table->param[i].name;
    const char *broken =
        form_scan(request->content_type, request->body, request->len, names, table->count, values);
    if (broken) {
        broken_form(reply, broken);
        return false;
    }
    for (int i = 0; i < table->count; i++) {
        const struct fault *fault = read_value(&table->param[i], &values[i], out, reply);
        if (!fault)
            continue;
        fault_add(reply, fault, table->param[i].name);
        echo_value(&reply->body, &values[i]);
        fault_close(reply, fault);
    }
    if (reply->body.len)
        buffer_puts(&reply->body, "]}");
    return reply->body.len == 0 && !reply->body.failed;
}
