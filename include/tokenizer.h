/* CLIP's byte-pair tokenizer: transformers' CLIPTokenizer (the slow, reference one), for any Unicode text. */
#ifndef LATENTD_TOKENIZER_H
#define LATENTD_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct tokenizer;

/* Reads DIR/vocab.json, DIR/merges.txt and, where present, DIR/tokenizer_config.json and
 * special_tokens_map.json (the pad token differs between SD 1.x and 2.x). */
int tokenizer_load(struct tokenizer **t, const char *dir, struct error *err);
void tokenizer_close(struct tokenizer **t);
int tokenizer_vocab(const struct tokenizer *t); /* highest id + 1 */

/* padding="max_length", truncation=True: ids[max] = start, text, end, padding. TEXT is LEN bytes of UTF-8;
 * invalid UTF-8 is ERR_INVALID. *used (may be NULL) gets the number of tokens before padding; *cut (may be
 * NULL) how many tokens of the text did not fit. Takes time linear in LEN (a prompt of a megabyte is cut, not
 * choked on). Thread-safe. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, int32_t *ids, int max,
                     int *used, int *cut, struct error *err);

#endif
