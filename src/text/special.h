/* The tokens that stand for themselves in a prompt: start, end, padding, and what a model adds (textual
 * inversion). Private to src/text. */
#ifndef LATENTD_SPECIAL_H
#define LATENTD_SPECIAL_H

#include "unicode.h"
#include "vocab.h"

enum { ADDED_MAX = 256 };

struct added_token {
    struct code_points text; /* as it is looked for: normalised when NORMALIZED */
    char *content;           /* as the file has it */
    int32_t id;
    bool normalized; /* looked for after the prompt was normalised, else before */
};

struct special_tokens {
    struct added_token added[ADDED_MAX];
    int count;
    int32_t start, end, unk, pad;
    int max_length; /* model_max_length, or 0 */
};

/* Reads tokenizer_config.json, special_tokens_map.json and added_tokens.json of DIR, each where present, by
 * the rules of transformers' from_pretrained. PAD, unless NULL, takes the place of their pad_token. */
int special_read(struct special_tokens *s, const struct vocab *v, const char *dir, const char *pad,
                 struct error *err);
void special_free(struct special_tokens *s);
/* The longest added token at AT[0, LEN), of those whose normalized flag is NORMALIZED; NULL: none. */
const struct added_token *special_match(const struct special_tokens *s, bool normalized, const uint32_t *at,
                                        size_t len);

#endif
