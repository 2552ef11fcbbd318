/* UTF-8, character classes and lower case. See unicode.h. */
#include "unicode.h"

#include <stdlib.h>
#include <string.h>

int code_points_reserve(struct code_points *s, size_t cap, struct error *err)
{
    if (cap <= s->cap)
        return 0;
    size_t grown = s->cap * 2 > cap ? s->cap * 2 : cap;
    uint32_t *at = realloc(s->at, grown * sizeof *at);
    if (!at)
        return error_set(err, ERR_NOMEM, "no memory for a text of %zu characters", cap);
    s->at = at;
    s->cap = grown;
    return 0;
}

int code_points_add(struct code_points *s, uint32_t c, struct error *err)
{
    if (s->len == s->cap) {
        int rc = code_points_reserve(s, s->len + 64, err);
        if (rc < 0)
            return rc;
    }
    s->at[s->len++] = c;
    return 0;
}

void code_points_free(struct code_points *s)
{
    free(s->at);
    *s = (struct code_points){0};
}

/* Reads one code point from [S, END); returns its bytes, or 0 when it is not valid UTF-8. */
static size_t decode_one(const unsigned char *s, const unsigned char *end, uint32_t *c)
{
    static const uint32_t lowest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (*s < 0x80) {
        *c = *s;
        return 1;
    }
    size_t n = *s >= 0xf0 ? 4 : *s >= 0xe0 ? 3 : 2;
    if (*s < 0xc2 || *s > 0xf4 || (size_t)(end - s) < n)
        return 0;
    *c = *s & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        *c = *c << 6 | (s[i] & 0x3fu);
    }
    bool bad = *c < lowest[n] || *c > 0x10ffff || (*c >= 0xd800 && *c <= 0xdfff);
    return bad ? 0 : n;
}

int utf8_decode(const char *text, size_t len, struct code_points *out, struct error *err)
{
    const unsigned char *start = (const unsigned char *)text, *s = start, *end = start + len;
    int rc = code_points_reserve(out, out->len + len, err);
    if (rc < 0)
        return rc;
    while (s < end) {
        size_t n = decode_one(s, end, &out->at[out->len]);
        if (!n)
            return error_set(err, ERR_INVALID, "invalid UTF-8 at byte %zu", (size_t)(s - start));
        out->len++;
        s += n;
    }
    return 0;
}

size_t utf8_encode(uint32_t c, unsigned char out[4])
{
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n; i-- > 1; c >>= 6)
        out[i] = (unsigned char)(0x80 | (c & 0x3f));
    out[0] = (unsigned char)(lead[n] | c);
    return n;
}

static bool in_ranges(const struct code_range *r, int count, uint32_t c)
{
    int lo = 0, hi = count;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (c > r[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < count && c >= r[lo].first;
}

bool is_letter(uint32_t c)
{
    if (c < 0x80)
        return (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
    return in_ranges(unicode_letters, unicode_letters_count, c);
}

bool is_number(uint32_t c)
{
    if (c < 0x80)
        return c >= '0' && c <= '9';
    return in_ranges(unicode_numbers, unicode_numbers_count, c);
}

bool is_space(uint32_t c)
{
    if (c < 0x80)
        return c == ' ' || (c >= '\t' && c <= '\r');
    return in_ranges(unicode_spaces, unicode_spaces_count, c);
}

static uint32_t lower_one(uint32_t c)
{
    int lo = 0, hi = unicode_lower_count;
    if (c < 0x80)
        return c >= 'A' && c <= 'Z' ? c + 32 : c;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (c > unicode_lower[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    const struct lower_run *r = &unicode_lower[lo];
    if (lo == unicode_lower_count || c < r->first || (c - r->first) % (uint32_t)r->step != 0)
        return c;
    return (uint32_t)((int)c + r->delta);
}

int lower_case(struct code_points *s, struct code_points *tmp, struct error *err)
{
    tmp->len = 0;
    for (size_t i = 0; i < s->len; i++) {
        uint32_t c = s->at[i];
        int rc = code_points_add(tmp, c == 0x130 ? 'i' : lower_one(c), err);
        if (rc == 0 && c == 0x130)
            rc = code_points_add(tmp, 0x307, err);
        if (rc < 0)
            return rc;
    }
    struct code_points swap = *s;
    *s = *tmp;
    *tmp = swap;
    return 0;
}

static void collapse_spaces(struct code_points *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->len; i++) {
        bool space = is_space(s->at[i]);
        if (!space || n == 0 || s->at[n - 1] != ' ')
            s->at[n++] = space ? ' ' : s->at[i];
    }
    s->len = n;
}

int normalize_prompt(struct code_points *s, struct code_points *tmp, struct error *err)
{
    int rc = normalize_nfc(s, tmp, err);
    if (rc < 0)
        return rc;
    collapse_spaces(s);
    return lower_case(s, tmp, err);
}
