/* See doc_writer.h. YAML looks as PyYAML dumps it, except that long strings stay on one line. */
#include <string.h>

#include "doc_writer.h"

static void spaces(struct doc *d, int count)
{
    for (int i = 0; i < count; i++)
        buffer_add(d->out, " ", 1);
}

static void json_line(struct doc *d)
{
    if (d->form != OPENAPI_JSON)
        return;
    buffer_add(d->out, "\n", 1);
    spaces(d, 4 * d->depth);
}

/* Before a key, and before a value in an array. */
static void before_item(struct doc *d)
{
    if (d->depth == 0)
        return;
    int first = d->level[d->depth - 1].count++ == 0, indent = d->level[d->depth - 1].indent;
    if (d->form != OPENAPI_YAML) {
        if (!first)
            buffer_add(d->out, ",", 1);
        json_line(d);
        return;
    }
    if (d->after_dash && first)
        d->after_dash = false;
    else
        spaces(d, indent);
    if (d->level[d->depth - 1].array) {
        buffer_puts(d->out, "- ");
        d->after_dash = true;
    }
}

static void before_value(struct doc *d)
{
    if (!d->after_key)
        before_item(d);
}

static void open_level(struct doc *d, bool array)
{
    int indent = 0;

    before_value(d);
    if (d->depth > 0)
        indent = d->level[d->depth - 1].indent + (array && d->after_key ? 0 : 2);
    if (d->form != OPENAPI_YAML)
        buffer_add(d->out, array ? "[" : "{", 1);
    else if (d->after_key)
        buffer_add(d->out, "\n", 1);
    d->after_key = false;
    d->level[d->depth].array = array;
    d->level[d->depth].count = 0;
    d->level[d->depth].indent = indent;
    d->depth++;
}

void doc_object(struct doc *d)
{
    open_level(d, false);
}

void doc_array(struct doc *d)
{
    open_level(d, true);
}

void doc_end(struct doc *d)
{
    d->depth--;
    if (d->form == OPENAPI_YAML)
        return;
    json_line(d);
    buffer_add(d->out, d->level[d->depth].array ? "]" : "}", 1);
    if (d->depth == 0 && d->form == OPENAPI_JSON)
        buffer_add(d->out, "\n", 1);
}

/* YAML: true when S means itself without quotes. */
static bool plain(const char *s)
{
    static const char *const words[] = {"true", "false", "null", "yes", "no", "on", "off", "~"};

    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
        if (strcmp(s, words[i]) == 0)
            return false;
    return *s && !strchr("!&*-?:,[]{}#|>@`\"'%0123456789. ", *s) && !strstr(s, ": ") && !strstr(s, " #") &&
           s[strlen(s) - 1] != ':' && s[strlen(s) - 1] != ' ';
}

static void yaml_string(struct doc *d, const char *s)
{
    if (plain(s)) {
        buffer_puts(d->out, s);
        return;
    }
    buffer_add(d->out, "'", 1);
    for (; *s; s++)
        buffer_add(d->out, *s == '\'' ? "''" : s, *s == '\'' ? 2 : 1);
    buffer_add(d->out, "'", 1);
}

void doc_key(struct doc *d, const char *key)
{
    before_item(d);
    d->after_key = true;
    d->after_dash = false;
    if (d->form == OPENAPI_YAML) {
        yaml_string(d, key);
        buffer_add(d->out, ":", 1);
        return;
    }
    buffer_json_string(d->out, key, strlen(key));
    buffer_puts(d->out, d->form == OPENAPI_JSON ? ": " : ":");
}

static void begin_scalar(struct doc *d)
{
    before_value(d);
    if (d->form == OPENAPI_YAML && d->after_key)
        buffer_add(d->out, " ", 1);
    d->after_key = d->after_dash = false;
}

static void end_scalar(struct doc *d)
{
    if (d->form == OPENAPI_YAML)
        buffer_add(d->out, "\n", 1);
}

void doc_string(struct doc *d, const char *value)
{
    begin_scalar(d);
    if (d->form == OPENAPI_YAML)
        yaml_string(d, value);
    else
        buffer_json_string(d->out, value, strlen(value));
    end_scalar(d);
}

void doc_raw(struct doc *d, const char *json)
{
    begin_scalar(d);
    buffer_puts(d->out, json);
    end_scalar(d);
}

void doc_member(struct doc *d, const char *key, const char *value)
{
    doc_key(d, key);
    doc_string(d, value);
}
