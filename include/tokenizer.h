/* CLIP's byte-pair tokenizer: transformers' CLIPTokenizer, for any Unicode text.
 *
 * The reference is transformers 5 (what current diffusers loads), whose CLIPTokenizer stands on the Rust
 * library `tokenizers` 0.23: NFC, white space to one space, lower case code point by code point, then words.
 * Agreement is exact, down to which version of Unicode each of its parts has. transformers 4.43 loads a
 * Python tokenizer instead, which differs (without ftfy installed) in rare texts: it drops U+0000, U+FFFD,
 * and control, format (the joiner inside an emoji), private and unassigned characters; takes each CJK
 * ideograph as a word; lower-cases a final capital sigma to its final form; recognises <|ENDOFTEXT|> in
 * capitals; and has the Unicode tables of its Python. English prompts give the same ids. */
#ifndef LATENTD_TOKENIZER_H
#define LATENTD_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct tokenizer;

/* Reads DIR/tokenizer.json, or DIR/vocab.json and DIR/merges.txt, and, where present,
 * DIR/tokenizer_config.json and special_tokens_map.json (the pad token differs between SD 1.x and 2.x). */
int tokenizer_load(struct tokenizer **t, const char *dir, struct error *err);
/* The same, padded with the token PAD whatever the files say (NULL: as they say). */
int tokenizer_load_padded(struct tokenizer **t, const char *dir, const char *pad, struct error *err);
void tokenizer_close(struct tokenizer **t);
int tokenizer_vocab(const struct tokenizer *t);      /* highest id + 1 */
int tokenizer_max_length(const struct tokenizer *t); /* model_max_length, 0 when the model does not say */

/* padding="max_length", truncation=True: ids[max] = start, text, end, padding. TEXT is LEN bytes of UTF-8;
 * invalid UTF-8 is ERR_INVALID. *used (may be NULL) gets the number of tokens before padding; *cut (may be
 * NULL) how many tokens of the text did not fit. Takes time linear in LEN (a prompt of a megabyte is cut, not
 * choked on). Thread-safe. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, int32_t *ids, int max,
                     int *used, int *cut, struct error *err);

#endif
