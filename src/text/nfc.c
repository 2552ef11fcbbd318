/* Normalization Form C (Unicode Standard Annex 15): decompose, order marks, compose. See unicode.h. */
#include <string.h>

#include "unicode.h"

/* Hangul syllables are computed, not listed (Unicode Standard, section 3.12). */
enum { S0 = 0xac00, L0 = 0x1100, V0 = 0x1161, T0 = 0x11a7, L_COUNT = 19, V_COUNT = 21, T_COUNT = 28 };
enum { S_COUNT = L_COUNT * V_COUNT * T_COUNT };
/* Below this nothing combines and every code point composes to itself. */
enum { FIRST_MARK = 0x300 };
enum { CLASSES = 256, SHORT_RUN = 24 };

static int combining_class(uint32_t c)
{
    int lo = 0, hi = unicode_marks_count;
    if (c < FIRST_MARK)
        return 0;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (c > unicode_marks[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < unicode_marks_count && c >= unicode_marks[lo].first ? unicode_marks[lo].combining_class : 0;
}

static const struct code_pair *find_pair(uint32_t c)
{
    int lo = 0, hi = unicode_pairs_count;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (c > unicode_pairs[mid].whole)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < unicode_pairs_count && unicode_pairs[lo].whole == c ? &unicode_pairs[lo] : NULL;
}

/* What C stands for, or C. */
static uint32_t follow_singleton(uint32_t c)
{
    int lo = 0, hi = unicode_singletons_count;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (c > unicode_singletons[mid].first)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < unicode_singletons_count && unicode_singletons[lo].first == c ? unicode_singletons[lo].last
                                                                              : c;
}

static int decompose_hangul(uint32_t s, struct code_points *out, struct error *err)
{
    uint32_t t = s % T_COUNT, rc = 0;
    rc |= (uint32_t)code_points_add(out, L0 + s / (V_COUNT * T_COUNT), err);
    rc |= (uint32_t)code_points_add(out, V0 + s % (V_COUNT * T_COUNT) / T_COUNT, err);
    if (t)
        rc |= (uint32_t)code_points_add(out, T0 + t, err);
    return rc ? ERR_NOMEM : 0;
}

static int decompose(uint32_t c, struct code_points *out, struct error *err)
{
    if (c < 0xc0)
        return code_points_add(out, c, err);
    if (c >= S0 && c < S0 + S_COUNT)
        return decompose_hangul(c - S0, out, err);
    c = follow_singleton(c);
    const struct code_pair *pair = find_pair(c);
    if (!pair)
        return code_points_add(out, c, err);
    int rc = decompose(pair->first, out, err);
    return rc < 0 ? rc : decompose(pair->second, out, err);
}

/* Stable, by combining class. */
static void sort_short(uint32_t *c, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        uint32_t x = c[i];
        int k = combining_class(x);
        size_t j = i;
        for (; j > 0 && combining_class(c[j - 1]) > k; j--)
            c[j] = c[j - 1];
        c[j] = x;
    }
}

/* The same by counting, for runs so long that insertion would be quadratic. TMP is overwritten. */
static int sort_long(uint32_t *c, size_t n, struct code_points *tmp, struct error *err)
{
    size_t start[CLASSES + 1] = {0};
    int rc = code_points_reserve(tmp, n, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < n; i++)
        start[combining_class(c[i]) + 1]++;
    for (int k = 0; k < CLASSES; k++)
        start[k + 1] += start[k];
    for (size_t i = 0; i < n; i++)
        tmp->at[start[combining_class(c[i])]++] = c[i];
    memcpy(c, tmp->at, n * sizeof *c);
    return 0;
}

/* Puts each run of marks into canonical order. */
static int order_marks(struct code_points *s, struct code_points *tmp, struct error *err)
{
    for (size_t i = 0; i < s->len;) {
        size_t end = i;
        while (end < s->len && combining_class(s->at[end]) != 0)
            end++;
        int rc = 0;
        if (end - i > SHORT_RUN)
            rc = sort_long(s->at + i, end - i, tmp, err);
        else
            sort_short(s->at + i, end - i);
        if (rc < 0)
            return rc;
        i = end + 1;
    }
    return 0;
}

/* The composite of A and B, or 0. */
static uint32_t compose_two(uint32_t a, uint32_t b)
{
    if (a >= L0 && a < L0 + L_COUNT && b >= V0 && b < V0 + V_COUNT)
        return S0 + ((a - L0) * V_COUNT + (b - V0)) * T_COUNT;
    if (a >= S0 && a < S0 + S_COUNT && (a - S0) % T_COUNT == 0 && b > T0 && b < T0 + T_COUNT)
        return a + (b - T0);
    int lo = 0, hi = unicode_compositions_count;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        const struct code_pair *p = &unicode_pairs[unicode_compositions[mid]];
        if (a > p->first || (a == p->first && b > p->second))
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == unicode_compositions_count)
        return 0;
    const struct code_pair *p = &unicode_pairs[unicode_compositions[lo]];
    return p->first == a && p->second == b ? p->whole : 0;
}

/* Joins each starter with the marks after it that nothing of their class or higher keeps away. In place. */
static void compose(struct code_points *s)
{
    size_t n = 0, starter = SIZE_MAX;
    int last = 0; /* class of the code point before, when it is not the starter */
    for (size_t i = 0; i < s->len; i++) {
        uint32_t c = s->at[i], whole = 0;
        int k = combining_class(c);
        if (starter != SIZE_MAX && (n == starter + 1 || last < k))
            whole = compose_two(s->at[starter], c);
        if (whole) {
            s->at[starter] = whole;
            continue;
        }
        if (k == 0)
            starter = n;
        last = k;
        s->at[n++] = c;
    }
    s->len = n;
}

int normalize_nfc(struct code_points *s, struct code_points *tmp, struct error *err)
{
    size_t plain = 0;
    while (plain < s->len && s->at[plain] < FIRST_MARK)
        plain++;
    if (plain == s->len)
        return 0;
    tmp->len = 0;
    for (size_t i = 0; i < s->len; i++) {
        int rc = decompose(s->at[i], tmp, err);
        if (rc < 0)
            return rc;
    }
    struct code_points swap = *s;
    *s = *tmp;
    *tmp = swap;
    int rc = order_marks(s, tmp, err);
    if (rc < 0)
        return rc;
    compose(s);
    return 0;
}
