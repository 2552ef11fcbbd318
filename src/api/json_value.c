/* The value half of the request reader: strings decoded, values written back as Python's json would. See
 * json_scan.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json_scan.h"

int json_hex4(const char *p)
{
    int value = 0;

    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0)
            return -1;
        value = value * 16 + d;
    }
    return value;
}

static size_t utf8_put(char *out, int c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* At the `u` of an escape known to be well formed. Moves *P behind it, and behind the second half of a pair.
 * Returns the character, or -1 for half a pair. */
static int decode_u(const char **p)
{
    int c = json_hex4(*p + 1);

    *p += 5;
    if (c >= 0xd800 && c < 0xdc00 && (*p)[0] == '\\' && (*p)[1] == 'u') {
        int low = json_hex4(*p + 2);
        if (low >= 0xdc00 && low < 0xe000) {
            *p += 6;
            return 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        }
    }
    return c >= 0xd800 && c < 0xe000 ? -1 : c;
}

bool json_decode_string(struct json_span string, char *out, size_t *len)
{
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    const char *p = string.at + 1, *end = string.at + string.len - 1;
    char *o = out;
    bool whole = true;

    while (p < end) {
        const char *run = memchr(p, '\\', (size_t)(end - p));
        size_t plain = (size_t)((run ? run : end) - p);
        memcpy(o, p, plain);
        o += plain;
        p += plain;
        if (!run)
            break;
        p++;
        if (*p == 'u') {
            int c = decode_u(&p);
            whole = whole && c >= 0;
            o += utf8_put(o, c < 0 ? 0xfffd : c);
            continue;
        }
        const char *special = strchr(from, *p);
        *o++ = special ? to[special - from] : *p;
        p++;
    }
    *len = (size_t)(o - out);
    return whole;
}

void json_format_float(char out[40], double value)
{
    char digits[40];
    int precision = 0, exponent;

    if (isnan(value) || isinf(value)) {
        strcpy(out, isnan(value) ? "nan" : value < 0 ? "-inf" : "inf");
        return;
    }
    do
        snprintf(digits, sizeof(digits), "%.*e", precision, value);
    while (strtod(digits, NULL) != value && ++precision < 17);
    exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16) {
        /* "1.5e+20": Python keeps at least two digits in the exponent, as C does */
        strcpy(out, digits);
        return;
    }
    snprintf(out, 40, "%.*f", precision > exponent ? precision - exponent : 0, value);
    if (!strchr(out, '.'))
        strcat(out, ".0");
}

/* ---- Walking and writing a value that was scanned before ---- */

struct walk {
    const char *at;
    struct buffer *out; /* NULL: only walk */
    size_t stop;        /* length of OUT at which writing ends */
};

static void put(struct walk *w, const char *s, size_t len)
{
    if (w->out)
        buffer_add(w->out, s, len);
}

static bool space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static struct json_span scalar(struct walk *w)
{
    const char *begin = w->at;
    enum json_type type = JSON_INTEGER;

    if (*begin == '"') {
        for (w->at++; *w->at != '"'; w->at++)
            w->at += *w->at == '\\';
        w->at++;
        return (struct json_span){JSON_STRING, begin, (size_t)(w->at - begin)};
    }
    while (*w->at && !space(*w->at) && !strchr(",]}", *w->at)) {
        if (strchr(".eENI", *w->at))
            type = JSON_FLOAT;
        w->at++;
    }
    type = *begin == 'n' ? JSON_NULL : *begin == 't' || *begin == 'f' ? JSON_BOOL : type;
    return (struct json_span){type, begin, (size_t)(w->at - begin)};
}

static void put_string(struct walk *w, struct json_span value)
{
    char *text = malloc(value.len);
    size_t len = 0;

    if (!text) {
        w->out->failed = true;
        return;
    }
    json_decode_string(value, text, &len);
    buffer_json_string(w->out, text, len);
    free(text);
}

static void put_number(struct walk *w, struct json_span value)
{
    char text[40];
    double number;

    if (value.type == JSON_INTEGER) {
        bool minus_zero = value.len == 2 && memcmp(value.at, "-0", 2) == 0;
        put(w, value.at + minus_zero, value.len - minus_zero);
        return;
    }
    number = strchr("NI", value.at[0]) || value.at[1] == 'I' ? NAN : strtod(value.at, NULL);
    if (isnan(number) || isinf(number)) {
        put(w, "null", 4);
        return;
    }
    json_format_float(text, number);
    put(w, text, strlen(text));
}

static void put_scalar(struct walk *w, struct json_span value)
{
    if (value.type == JSON_STRING)
        put_string(w, value);
    else if (value.type == JSON_INTEGER || value.type == JSON_FLOAT)
        put_number(w, value);
    else
        put(w, value.at, value.len);
}

/* Writes the compact form of VALUE; false when OUT reached w->stop before the end. */
static bool write_value(struct walk *w, const char *end)
{
    while (w->at < end && w->out->len < w->stop && !w->out->failed) {
        if (space(*w->at)) {
            w->at++;
        } else if (strchr("[]{},:", *w->at)) {
            put(w, w->at++, 1);
        } else {
            put_scalar(w, scalar(w));
        }
    }
    return w->out->len < w->stop;
}

void json_echo(struct buffer *out, struct json_span value, size_t limit)
{
    struct buffer text = {0};
    struct walk w = {value.at, &text, limit};

    if (write_value(&w, value.at + value.len)) {
        buffer_add(out, text.data, text.len);
    } else {
        size_t cut = limit;
        while (cut > 0 && ((unsigned char)text.data[cut] & 0xc0) == 0x80)
            cut--;
        text.len = cut;
        buffer_puts(&text, "…");
        buffer_json_string(out, text.data, text.len);
    }
    out->failed = out->failed || text.failed;
    buffer_free(&text);
}

/* Moves behind the value that begins here. */
static struct json_span next_value(struct walk *w)
{
    const char *begin = w->at;
    int depth = 0;

    if (*begin != '{' && *begin != '[')
        return scalar(w);
    do {
        if (*w->at == '"') {
            scalar(w);
            continue;
        }
        depth += (*w->at == '{' || *w->at == '[') - (*w->at == '}' || *w->at == ']');
        w->at++;
    } while (depth);
    return (struct json_span){*begin == '{' ? JSON_OBJECT : JSON_ARRAY, begin, (size_t)(w->at - begin)};
}

int json_each_member(struct json_span object,
                     int (*each)(void *ctx, struct json_span key, struct json_span value), void *ctx)
{
    struct walk w = {object.at + 1, NULL, 0};
    const char *end = object.at + object.len - 1;
    int result = 0;

    while (result == 0) {
        while (w.at < end && (space(*w.at) || *w.at == ','))
            w.at++;
        if (w.at >= end)
            break;
        struct json_span key = scalar(&w);
        while (space(*w.at) || *w.at == ':')
            w.at++;
        result = each(ctx, key, next_value(&w));
    }
    return result;
}
