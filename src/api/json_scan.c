/* The syntax half of the request reader: see json_scan.h. The states follow CPython's Modules/_json.c, so
 * that faults have its words and offsets. */
#include <string.h>

#include "json_scan.h"

enum state { WANT_VALUE, WANT_KEY, AFTER_VALUE, COMPLETE, FAULT };

struct scanner {
    const char *text, *at, *end;
    unsigned char nest[JSON_DEPTH_MAX / 8]; /* one bit a level: 1 object, 0 array */
    int depth;
    struct json_span value; /* the scalar or string just read */
    const char *const *names;
    int count;
    int key; /* index of the outermost object's current key in names, or -1 */
    struct json_span *members;
    struct json_span *doc;
    struct json_fault *fault;
};

static size_t characters(const char *from, const char *to)
{
    size_t n = 0;

    for (; from < to; from++)
        n += ((unsigned char)*from & 0xc0) != 0x80;
    return n;
}

static enum state fault(struct scanner *s, const char *text, const char *at)
{
    s->fault->text = text;
    s->fault->offset = characters(s->text, at);
    return FAULT;
}

static enum state unreadable(struct scanner *s, const char *text)
{
    s->fault->unreadable = true;
    return fault(s, text, s->at);
}

static void skip_space(struct scanner *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r'))
        s->at++;
}

static bool digit(const char *p, const char *end)
{
    return p < end && *p >= '0' && *p <= '9';
}

/* At the letter after a backslash. Moves past the escape; false when there is a fault. */
static bool scan_escape(struct scanner *s)
{
    if (*s->at != 'u') {
        if (!memchr("\"\\/bfnrt", *s->at, 8)) {
            fault(s, "Invalid \\escape", s->at - 1);
            return false;
        }
        s->at++;
        return true;
    }
    /* Python asks for one character behind the four digits, and points at the digits when they are wrong */
    if (s->end - s->at < 6) {
        fault(s, "Invalid \\uXXXX escape", s->at);
        return false;
    }
    if (json_hex4(s->at + 1) < 0) {
        fault(s, "Invalid \\uXXXX escape", s->at);
        return false;
    }
    s->at += 5;
    return true;
}

/* At the opening quote. */
static bool scan_string(struct scanner *s)
{
    const char *begin = s->at++;

    while (s->at < s->end) {
        unsigned char c = (unsigned char)*s->at;
        if (c == '"') {
            s->at++;
            s->value = (struct json_span){JSON_STRING, begin, (size_t)(s->at - begin)};
            return true;
        }
        if (c < 0x20) {
            fault(s, "Invalid control character at", s->at);
            return false;
        }
        s->at++;
        if (c != '\\')
            continue;
        if (s->at == s->end)
            break;
        if (!scan_escape(s))
            return false;
    }
    fault(s, "Unterminated string starting at", begin);
    return false;
}

/* Takes WORD when it stands here. */
static bool scan_word(struct scanner *s, const char *word, enum json_type type)
{
    size_t len = strlen(word);

    if ((size_t)(s->end - s->at) < len || memcmp(s->at, word, len) != 0)
        return false;
    s->value = (struct json_span){type, s->at, len};
    s->at += len;
    return true;
}

static bool scan_number(struct scanner *s)
{
    const char *begin = s->at, *p = begin, *digits;
    enum json_type type = JSON_INTEGER;

    if (p < s->end && *p == '-')
        p++;
    digits = p;
    if (!digit(p, s->end)) {
        fault(s, "Expecting value", begin);
        return false;
    }
    if (*p == '0')
        p++;
    else
        while (digit(p, s->end))
            p++;
    ptrdiff_t count = p - digits;
    if (p < s->end && *p == '.' && digit(p + 1, s->end)) {
        type = JSON_FLOAT;
        for (p += 2; digit(p, s->end);)
            p++;
    }
    if (p < s->end && (*p == 'e' || *p == 'E')) {
        const char *e = p + 1;
        if (e < s->end && (*e == '-' || *e == '+'))
            e++;
        if (digit(e, s->end)) {
            type = JSON_FLOAT;
            for (p = e; digit(p, s->end);)
                p++;
        }
    }
    if (type == JSON_INTEGER && count > JSON_INT_DIGITS_MAX) {
        unreadable(s, "an integer has more than 4300 digits");
        return false;
    }
    s->value = (struct json_span){type, begin, (size_t)(p - begin)};
    s->at = p;
    return true;
}

static bool in_object(const struct scanner *s)
{
    return s->nest[(s->depth - 1) / 8] >> ((s->depth - 1) % 8) & 1;
}

/* Where the value that begins now is to be remembered, or NULL. */
static struct json_span *slot(const struct scanner *s)
{
    if (s->depth == 0)
        return s->doc;
    return s->depth == 1 && in_object(s) && s->key >= 0 ? &s->members[s->key] : NULL;
}

static enum state enter(struct scanner *s, enum json_type type)
{
    struct json_span *keep = slot(s);

    if (keep)
        *keep = (struct json_span){type, s->at, 0};
    if (s->depth == JSON_DEPTH_MAX)
        return unreadable(s, "it is nested deeper than 512 levels");
    int bit = s->depth % 8;
    unsigned char *byte = &s->nest[s->depth / 8];
    *byte = (unsigned char)((*byte & ~(1 << bit)) | (type == JSON_OBJECT ? 1 << bit : 0));
    s->depth++;
    s->at++;
    skip_space(s);
    if (s->at < s->end && *s->at == (type == JSON_OBJECT ? '}' : ']'))
        return AFTER_VALUE; /* which sees the bracket */
    return type == JSON_OBJECT ? WANT_KEY : WANT_VALUE;
}

/* At the closing bracket of the innermost array or object. */
static enum state leave(struct scanner *s)
{
    s->at++;
    s->depth--;
    struct json_span *keep = slot(s);
    if (keep)
        keep->len = (size_t)(s->at - keep->at);
    return s->depth ? AFTER_VALUE : COMPLETE;
}

static enum state want_value(struct scanner *s)
{
    const char *begin = s->at;
    char c = s->at < s->end ? *s->at : '\0';
    bool taken;

    if (c == '{' || c == '[')
        return enter(s, c == '{' ? JSON_OBJECT : JSON_ARRAY);
    if (c == '"')
        taken = scan_string(s);
    else
        taken = scan_word(s, "null", JSON_NULL) || scan_word(s, "true", JSON_BOOL) ||
                scan_word(s, "false", JSON_BOOL) || scan_word(s, "NaN", JSON_FLOAT) ||
                scan_word(s, "Infinity", JSON_FLOAT) || scan_word(s, "-Infinity", JSON_FLOAT) ||
                scan_number(s);
    if (!taken)
        return FAULT;
    struct json_span *keep = slot(s);
    if (keep)
        *keep = (struct json_span){s->value.type, begin, (size_t)(s->at - begin)};
    return s->depth ? AFTER_VALUE : COMPLETE;
}

static int find_name(const struct scanner *s, struct json_span key)
{
    char name[256];
    size_t len = 0;

    if (key.len > sizeof(name))
        return -1;
    json_decode_string(key, name, &len);
    for (int i = 0; i < s->count; i++)
        if (len == strlen(s->names[i]) && memcmp(s->names[i], name, len) == 0)
            return i;
    return -1;
}

static enum state want_key(struct scanner *s)
{
    if (s->at == s->end || *s->at != '"')
        return fault(s, "Expecting property name enclosed in double quotes", s->at);
    if (!scan_string(s))
        return FAULT;
    if (s->depth == 1)
        s->key = find_name(s, s->value);
    skip_space(s);
    if (s->at == s->end || *s->at != ':')
        return fault(s, "Expecting ':' delimiter", s->at);
    s->at++;
    skip_space(s);
    return WANT_VALUE;
}

/* Behind a value inside an array or object, or at the bracket that closes an empty one. */
static enum state after_value(struct scanner *s)
{
    bool object = in_object(s);

    skip_space(s);
    if (s->at < s->end && *s->at == (object ? '}' : ']'))
        return leave(s);
    if (s->at == s->end || *s->at != ',')
        return fault(s, "Expecting ',' delimiter", s->at);
    s->at++;
    skip_space(s);
    return object ? WANT_KEY : WANT_VALUE;
}

int json_scan(const char *text, size_t len, const char *const *names, int count, struct json_span *members,
              struct json_span *doc, struct json_fault *fault_out)
{
    struct scanner s = {
        .names = names, .count = count, .members = members, .doc = doc, .fault = fault_out, .key = -1};
    enum state state = WANT_VALUE;

    memset(fault_out, 0, sizeof(*fault_out));
    memset(doc, 0, sizeof(*doc));
    if (count)
        memset(members, 0, (size_t)count * sizeof(*members));
    if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
        text += 3, len -= 3;
    s.text = s.at = text;
    s.end = text + len;
    if (!utf8_valid(text, len)) {
        unreadable(&s, "it is not valid UTF-8");
        return -1;
    }
    skip_space(&s);
    while (state < COMPLETE)
        state = state == WANT_VALUE ? want_value(&s) : state == WANT_KEY ? want_key(&s) : after_value(&s);
    if (state == FAULT)
        return -1;
    skip_space(&s);
    if (s.at < s.end) {
        fault(&s, "Extra data", s.at);
        return -1;
    }
    return 0;
}
