/* See form.h. The order of the checks is that of python-multipart's state machine, so that of two faults the
 * same one is named. On purpose it differs here: the type's case does not count (RFC 9110), and a boundary
 * has at most FORM_BOUNDARY_MAX bytes. */
#include "form.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "form_header.h"
#include "json_scan.h"

static const char MALFORMED[] = "There was an error parsing the body";

enum { NAME_MAX_LEN = 64 }; /* longer names are unknown */

struct form {
    const char *at, *end;
    const char *const *names;
    int count;
    struct form_value *values;
    enum form_encoding encoding;
    char delimiter[4 + FORM_BOUNDARY_MAX]; /* "\r\n--" and the boundary */
    size_t delimiter_len;
    int fields, files;
};

static void keep(const struct form *f, const char *name, size_t len, struct form_value value)
{
    for (int i = 0; i < f->count; i++)
        if (strlen(f->names[i]) == len && memcmp(f->names[i], name, len) == 0)
            f->values[i] = value;
}

/* ---- multipart/form-data ---- */

enum step { STEP_ON, STEP_END, STEP_BROKEN };

/* The two bytes of a line end. */
static enum step line_end(struct form *f)
{
    if (f->at == f->end || f->at + 1 == f->end)
        return f->at < f->end && *f->at != '\r' ? STEP_BROKEN : STEP_END;
    if (f->at[0] != '\r' || f->at[1] != '\n')
        return STEP_BROKEN;
    f->at += 2;
    return STEP_ON;
}

/* "--boundary" and a line end, at the very beginning; only line ends may stand before it. */
static enum step first_boundary(struct form *f)
{
    size_t len = f->delimiter_len - 2;

    while (f->at < f->end && (*f->at == '\r' || *f->at == '\n'))
        f->at++;
    size_t left = (size_t)(f->end - f->at);
    if (memcmp(f->at, f->delimiter + 2, left < len ? left : len) != 0)
        return STEP_BROKEN;
    if (left < len)
        return STEP_END;
    f->at += len;
    return line_end(f);
}

static bool letter(char c)
{
    return ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '-';
}

/* The headers of one part and the empty line behind them. *VALUE, *LEN: the last Content-Disposition. */
static enum step part_headers(struct form *f, const char **value, size_t *len)
{
    static const char wanted[] = "content-disposition";

    *len = 0;
    for (;;) {
        const char *name = f->at;
        while (f->at < f->end && letter(*f->at))
            f->at++;
        if (f->at == f->end)
            return STEP_END;
        if (*f->at == '\r' && f->at == name)
            return line_end(f);
        if (*f->at != ':' || f->at == name)
            return STEP_BROKEN;
        bool ours = (size_t)(f->at - name) == sizeof(wanted) - 1 &&
                    strncasecmp(name, wanted, sizeof(wanted) - 1) == 0;
        for (f->at++; f->at < f->end && *f->at == ' ';)
            f->at++;
        const char *text = f->at;
        f->at = memchr(text, '\r', (size_t)(f->end - text));
        if (!f->at)
            return STEP_END;
        if (ours)
            *value = text, *len = (size_t)(f->at - text);
        enum step step = line_end(f);
        if (step != STEP_ON)
            return step;
    }
}

/* Moves to behind the delimiter that ends the part, which has *LEN bytes. *MORE: another part follows. */
static enum step part_data(struct form *f, size_t *len, bool *more)
{
    const char *data = f->at;

    for (;;) {
        size_t left = (size_t)(f->end - f->at);
        const char *hit = left ? memmem(f->at, left, f->delimiter, f->delimiter_len) : NULL;
        if (!hit) {
            *len = (size_t)(f->end - data);
            return STEP_END;
        }
        *len = (size_t)(hit - data);
        f->at = hit + f->delimiter_len;
        if (f->end - f->at < 2)
            return STEP_END;
        bool next = f->at[0] == '\r' && f->at[1] == '\n';
        if (!next && (f->at[0] != '-' || f->at[1] != '-'))
            continue; /* not a delimiter after all */
        f->at += 2;
        *more = next;
        return STEP_ON;
    }
}

/* One part, from its headers to the delimiter behind it. *FAULT: the words of a fault. */
static enum step one_part(struct form *f, bool *more, const char **fault)
{
    const char *header = "";
    char name[NAME_MAX_LEN], file[1];
    size_t header_len, name_len = 0, file_len;
    enum step step = part_headers(f, &header, &header_len);

    if (step != STEP_ON)
        return step;
    int named = header_param(header, header_len, "name", name, sizeof(name), &name_len);
    int is_file = header_param(header, header_len, "filename", file, 0, &file_len);
    if (named == HEADER_BROKEN)
        return STEP_BROKEN;
    if (named == HEADER_ABSENT)
        *fault = "The Content-Disposition header field \"name\" must be provided.";
    else if (is_file && ++f->files > FORM_FILES_MAX)
        *fault = "Too many files. Maximum number of files is 1000.";
    else if (!is_file && ++f->fields > FORM_FIELDS_MAX)
        *fault = "Too many fields. Maximum number of fields is 1000.";
    if (*fault)
        return STEP_BROKEN;
    struct form_value v = {is_file ? FORM_FILE : FORM_TEXT, f->encoding, f->at, 0};
    step = part_data(f, &v.len, more);
    if (!is_file && v.len > FORM_TEXT_MAX) {
        *fault = "Part exceeded maximum size of 1024KB.";
        return STEP_BROKEN;
    }
    if (step == STEP_ON && name_len <= sizeof(name))
        keep(f, name, name_len, v);
    return step;
}

/* A charset of Content-Type: UTF-8, where nothing is said, or one that is read as Latin-1. */
static enum form_encoding charset(const char *content_type)
{
    char name[8];
    size_t len = 0;

    if (header_param(content_type, strlen(content_type), "charset", name, sizeof(name), &len) != HEADER_FOUND)
        return FORM_UTF8;
    bool utf8 =
        (len == 5 && strncasecmp(name, "utf-8", 5) == 0) || (len == 4 && strncasecmp(name, "utf8", 4) == 0);
    return utf8 ? FORM_UTF8 : FORM_LATIN1;
}

static const char *scan_multipart(struct form *f, const char *content_type)
{
    const char *fault = NULL;
    size_t len = 0;
    bool more = true;
    int found = header_param(content_type, strlen(content_type), "boundary", f->delimiter + 4,
                             FORM_BOUNDARY_MAX, &len);

    if (found == HEADER_ABSENT)
        return "Missing boundary in multipart.";
    if (found == HEADER_BROKEN || len > FORM_BOUNDARY_MAX)
        return MALFORMED;
    memcpy(f->delimiter, "\r\n--", 4);
    f->delimiter_len = 4 + len;
    f->encoding = charset(content_type);
    enum step step = first_boundary(f);
    while (step == STEP_ON && more)
        step = one_part(f, &more, &fault);
    return fault ? fault : step == STEP_BROKEN ? MALFORMED : NULL;
}

/* ---- application/x-www-form-urlencoded ---- */

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 32);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte that S begins with, '+' and %XX undone; moves S behind it. */
static char url_byte(const char **s, const char *end)
{
    const char *p = (*s)++;

    if (*p == '%' && end - p > 2 && hex(p[1]) >= 0 && hex(p[2]) >= 0) {
        *s = p + 3;
        return (char)(hex(p[1]) * 16 + hex(p[2]));
    }
    return *p == '+' ? ' ' : *p;
}

static void keep_urlencoded(const struct form *f, const char *name, const char *name_end, const char *text,
                            size_t len)
{
    char plain[NAME_MAX_LEN];
    size_t n = 0;

    while (name < name_end && n < sizeof(plain))
        plain[n++] = url_byte(&name, name_end);
    if (name == name_end)
        keep(f, plain, n, (struct form_value){FORM_TEXT, FORM_URLENCODED, text, len});
}

/* Fields end at '&', behind the last '&' also at ';'. A name at the very end without '=' is no field. */
static void scan_urlencoded(struct form *f)
{
    const char *last = f->at < f->end ? memrchr(f->at, '&', (size_t)(f->end - f->at)) : NULL;

    while (f->at < f->end) {
        if (*f->at == '&' || *f->at == ';') {
            f->at++;
            continue;
        }
        char separator = last && f->at <= last ? '&' : ';';
        const char *stop = memchr(f->at, separator, (size_t)(f->end - f->at));
        const char *end = stop ? stop : f->end;
        const char *equals = memchr(f->at, '=', (size_t)(end - f->at));
        if (equals)
            keep_urlencoded(f, f->at, equals, equals + 1, (size_t)(end - equals - 1));
        else if (stop)
            keep_urlencoded(f, f->at, stop, stop, 0);
        f->at = end;
    }
}

/* ---- Either ---- */

static bool is_type(const char *content_type, const char *wanted)
{
    size_t len = strcspn(content_type, ";");

    while (len > 0 && (*content_type == ' ' || *content_type == '\t'))
        content_type++, len--;
    while (len > 0 && (content_type[len - 1] == ' ' || content_type[len - 1] == '\t'))
        len--;
    return len == strlen(wanted) && strncasecmp(content_type, wanted, len) == 0;
}

const char *form_scan(const char *content_type, const char *body, size_t len, const char *const *names,
                      int count, struct form_value *values)
{
    struct form f = {
        .at = body, .end = len ? body + len : body, .names = names, .count = count, .values = values};

    for (int i = 0; i < count; i++)
        values[i] = (struct form_value){.kind = FORM_ABSENT};
    if (!len)
        f.at = f.end = "";
    if (!content_type)
        return NULL;
    if (is_type(content_type, "multipart/form-data"))
        return scan_multipart(&f, content_type);
    if (is_type(content_type, "application/x-www-form-urlencoded"))
        scan_urlencoded(&f);
    return NULL;
}

/* ---- Text ---- */

static char *put_latin1(char *out, char c)
{
    unsigned char u = (unsigned char)c;

    if (u < 0x80) {
        *out++ = c;
        return out;
    }
    *out++ = (char)(0xc0 | u >> 6);
    *out++ = (char)(0x80 | (u & 0x3f));
    return out;
}

/* Length of the longest beginning of S that is, or could become, one character of UTF-8; *WHOLE: it is one.
 * The rule by which Python replaces what it cannot read. */
static size_t utf8_part(const unsigned char *s, size_t len, bool *whole)
{
    unsigned char lo = 0x80, hi = 0xbf;
    size_t want = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;

    if (s[0] == 0xe0)
        lo = 0xa0;
    if (s[0] == 0xed)
        hi = 0x9f;
    if (s[0] == 0xf0)
        lo = 0x90;
    if (s[0] == 0xf4)
        hi = 0x8f;
    *whole = want == 1;
    for (size_t i = 1; i < want; i++) {
        if (i >= len || s[i] < lo || s[i] > hi)
            return i;
        lo = 0x80, hi = 0xbf;
        *whole = i + 1 == want;
    }
    return want ? want : 1;
}

/* A run of ASCII from S: undone to bytes at the end of OUT's room, then read as UTF-8. Returns the new end of
 * OUT. BYTES has room for the run. */
static char *put_run(char *out, const char *s, const char *end, unsigned char *bytes)
{
    size_t n = 0;
    bool whole;

    while (s < end)
        bytes[n++] = (unsigned char)url_byte(&s, end);
    for (size_t i = 0; i < n;) {
        size_t len = utf8_part(bytes + i, n - i, &whole);
        memcpy(out, whole ? (const char *)bytes + i : "\xef\xbf\xbd", whole ? len : 3);
        out += whole ? len : 3;
        i += len;
    }
    return out;
}

/* '+' and %XX undone and read as UTF-8; bytes that stand there unescaped are Latin-1, as in the original. */
static char *text_urlencoded(const struct form_value *v, size_t *len)
{
    char *text = malloc(2 * v->len + 4), *out = text;
    unsigned char *bytes = malloc(v->len + 1);
    const char *s = v->at, *end = v->at + v->len;

    if (!text || !bytes) {
        free(text);
        free(bytes);
        return NULL;
    }
    while (s < end) {
        const char *run = s;
        while (s < end && (unsigned char)*s < 0x80)
            s++;
        out = put_run(out, run, s, bytes);
        if (s < end)
            out = put_latin1(out, *s++);
    }
    free(bytes);
    *out = '\0';
    *len = (size_t)(out - text);
    return text;
}

char *form_text(const struct form_value *v, size_t *len)
{
    if (v->encoding == FORM_URLENCODED)
        return text_urlencoded(v, len);
    bool utf8 = v->encoding == FORM_UTF8 && utf8_valid(v->at, v->len);
    char *text = malloc(2 * v->len + 1), *out = text;

    if (!text)
        return NULL;
    for (size_t i = 0; i < v->len; i++)
        if (utf8)
            *out++ = v->at[i];
        else
            out = put_latin1(out, v->at[i]);
    *out = '\0';
    *len = (size_t)(out - text);
    return text;
}
