/* See form_header.h. Quotes are matched and taken off in the way of Python's email.message, quirks included,
 * so that a form means here what it means to the original. */
#include "form_header.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

enum { SEGMENTS_MAX = 16 };

struct span {
    const char *at;
    size_t len;
};

/* The pieces of `name*0="a"; name*1*=b`. */
struct segments {
    struct span value[SEGMENTS_MAX];
    unsigned number[SEGMENTS_MAX];
    bool encoded[SEGMENTS_MAX];
    int count;
    bool alone, broken; /* one `name*=…` without a number */
};

/* White space as Python's str.strip() sees it in Latin-1. */
static bool blank(char c)
{
    unsigned char u = (unsigned char)c;
    return (u >= 0x09 && u <= 0x0d) || (u >= 0x1c && u <= 0x20) || u == 0x85 || u == 0xa0;
}

static struct span strip(struct span s)
{
    while (s.len && blank(s.at[0]))
        s.at++, s.len--;
    while (s.len && blank(s.at[s.len - 1]))
        s.len--;
    return s;
}

/* Takes the next piece up to a ';' outside of quotes off REST. */
static struct span next_piece(struct span *rest)
{
    struct span piece = {rest->at, 0};
    bool quoted = false;

    while (piece.len < rest->len) {
        char c = rest->at[piece.len];
        if (c == ';' && !quoted)
            break;
        if (c == '"' && !(piece.len && rest->at[piece.len - 1] == '\\'))
            quoted = !quoted;
        piece.len++;
    }
    size_t used = piece.len + (piece.len < rest->len);
    rest->at += used;
    rest->len -= used;
    return piece;
}

/* Python's email.utils.unquote: the marks at both ends, then \\ becomes \, then \" becomes ". Into OUT, where
 * at most CAP bytes are kept. Returns the whole length. */
static size_t unquote(struct span s, char *out, size_t cap)
{
    size_t n = 0;
    bool quoted = s.len > 1 && s.at[0] == '"' && s.at[s.len - 1] == '"';
    bool escape = false; /* a backslash is held back */

    if (quoted || (s.len > 1 && s.at[0] == '<' && s.at[s.len - 1] == '>'))
        s.at++, s.len -= 2;
    for (size_t i = 0; i < s.len; i++) {
        char c = s.at[i];
        if (quoted && c == '\\' && i + 1 < s.len && s.at[i + 1] == '\\')
            i++; /* a pair is one backslash */
        if (escape && c != '"') {
            if (n < cap)
                out[n] = '\\';
            n++;
        }
        escape = quoted && c == '\\';
        if (escape)
            continue;
        if (n < cap)
            out[n] = c;
        n++;
    }
    if (escape) {
        if (n < cap)
            out[n] = '\\';
        n++;
    }
    return n;
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 32);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Undoes %XX in place. */
static size_t unescape(char *s, size_t len)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        bool escape = s[i] == '%' && i + 2 < len && hex(s[i + 1]) >= 0 && hex(s[i + 2]) >= 0;
        s[n++] = escape ? (char)(hex(s[i + 1]) * 16 + hex(s[i + 2])) : s[i];
        i += escape ? 2 : 0;
    }
    return n;
}

/* KEY is NAME itself, or takes VALUE into SEG when it is NAME*, NAME*3 or NAME*3*. Returns whether it is NAME
 * itself. */
static bool match_key(struct span key, const char *name, struct span value, struct segments *seg)
{
    size_t n = strlen(name), i = n + 1;
    unsigned number = 0;

    if (key.len < n || strncasecmp(key.at, name, n) != 0)
        return false;
    if (key.len == n)
        return true;
    if (key.at[n] != '*')
        return false;
    while (i < key.len && key.at[i] >= '0' && key.at[i] <= '9')
        number = number < 1000 ? number * 10 + (unsigned)(key.at[i++] - '0') : (i++, number);
    bool numbered = i > n + 1, star = numbered && i < key.len && key.at[i] == '*';
    if (i + star != key.len)
        return false;
    if (seg->count == SEGMENTS_MAX || (seg->count && (!numbered || seg->alone))) {
        seg->broken = true;
        return false;
    }
    seg->alone = !numbered;
    seg->value[seg->count] = value;
    seg->number[seg->count] = number;
    seg->encoded[seg->count++] = star || !numbered;
    return false;
}

/* Joins SEG by number; what an encoded one holds in front of its second tick (charset and language) is left
 * out. */
static int join(const struct segments *seg, char *out, size_t cap, size_t *out_len)
{
    size_t n = 0;
    bool extended = false;

    for (int taken = 0; taken < seg->count; taken++) {
        int next = -1;
        for (int i = 0; i < seg->count; i++) {
            int before = 0, same = 0;
            for (int j = 0; j < seg->count; j++) {
                before += seg->number[j] < seg->number[i];
                same += seg->number[j] == seg->number[i];
            }
            if (same > 1)
                return HEADER_BROKEN;
            if (before == taken)
                next = i;
        }
        size_t room = n < cap ? cap - n : 0;
        size_t len = unquote(seg->value[next], out + (cap - room), room);
        if (seg->encoded[next]) {
            if (len > room) {
                *out_len = cap + 1; /* longer than any name that is looked for */
                return HEADER_FOUND;
            }
            len = unescape(out + n, len);
            extended = true;
        }
        n += len;
    }
    size_t kept = n < cap ? n : cap;
    char *tick = extended ? memchr(out, '\'', kept) : NULL;
    char *second = tick ? memchr(tick + 1, '\'', kept - (size_t)(tick + 1 - out)) : NULL;
    if (second) {
        size_t cut = (size_t)(second + 1 - out);
        memmove(out, second + 1, kept - cut);
        n -= cut;
    }
    *out_len = n;
    return HEADER_FOUND;
}

int header_param(const char *value, size_t len, const char *name, char *out, size_t cap, size_t *out_len)
{
    struct span rest = {value, len};
    struct segments seg = {.count = 0};
    int found = HEADER_ABSENT;

    next_piece(&rest); /* the type itself */
    while (rest.len) {
        struct span piece = strip(next_piece(&rest));
        const char *equals = piece.len ? memchr(piece.at, '=', piece.len) : NULL;
        size_t n = equals ? (size_t)(equals - piece.at) : piece.len;
        struct span key = strip((struct span){piece.at, n});
        struct span text = {piece.at + n, 0};
        if (equals)
            text = strip((struct span){equals + 1, piece.len - n - 1});
        if (!match_key(key, name, text, &seg))
            continue;
        *out_len = unquote(text, out, cap);
        found = HEADER_FOUND;
    }
    if (seg.broken)
        return HEADER_BROKEN;
    return seg.count ? join(&seg, out, cap, out_len) : found;
}
