/* The little Unicode that CLIP's tokenizer needs: UTF-8, canonical composition, lower case, letters and
 * numbers, as the Rust library `tokenizers` has them (see scripts/export_unicode_tables.py). Private to
 * src/text. */
#ifndef LATENTD_UNICODE_H
#define LATENTD_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* A growing array of code points. Zero-initialise; free with code_points_free. */
struct code_points {
    uint32_t *at;
    size_t len, cap;
};

int code_points_reserve(struct code_points *s, size_t cap, struct error *err);
int code_points_add(struct code_points *s, uint32_t c, struct error *err);
void code_points_free(struct code_points *s);

/* Decodes LEN bytes, appending. Overlong forms, surrogates, values above U+10FFFF and cut sequences are
 * ERR_INVALID, which names the byte. */
int utf8_decode(const char *text, size_t len, struct code_points *out, struct error *err);
/* Writes C as 1 to 4 bytes. */
size_t utf8_encode(uint32_t c, unsigned char out[4]);

/* Normalization Form C, in time linear in the length even for long runs of combining marks. TMP is scratch.
 */
int normalize_nfc(struct code_points *s, struct code_points *tmp, struct error *err);
/* Each code point by itself: no final sigma, U+0130 becomes two. TMP is scratch. */
int lower_case(struct code_points *s, struct code_points *tmp, struct error *err);

/* What the tokenizer does to a prompt: composes, makes one space of each run of white space, lower-cases. */
int normalize_prompt(struct code_points *s, struct code_points *tmp, struct error *err);

bool is_letter(uint32_t c); /* \p{L} */
bool is_number(uint32_t c); /* \p{N} */
bool is_space(uint32_t c);  /* \s */

/* ---- generated tables, sorted by their first field ---- */

struct code_range {
    uint32_t first, last; /* in unicode_singletons: code point, what it decomposes into */
};

struct lower_run {
    uint32_t first, last;
    int step; /* every step-th code point from first to last */
    int delta;
};

struct mark_range {
    uint32_t first, last;
    int combining_class;
};

struct code_pair {
    uint32_t whole, first, second;
};

extern const struct code_range unicode_letters[], unicode_numbers[], unicode_spaces[], unicode_singletons[];
extern const struct lower_run unicode_lower[];
extern const struct mark_range unicode_marks[];
extern const struct code_pair unicode_pairs[];
extern const uint16_t unicode_compositions[];
extern const int unicode_letters_count, unicode_numbers_count, unicode_spaces_count, unicode_singletons_count,
    unicode_lower_count, unicode_marks_count, unicode_pairs_count, unicode_compositions_count;

#endif
