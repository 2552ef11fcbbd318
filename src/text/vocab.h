/* The vocabulary and the merges, and byte-pair encoding with them. Private to src/text. */
#ifndef LATENTD_VOCAB_H
#define LATENTD_VOCAB_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct cJSON;

enum { TOKEN_BYTES_MAX = 4096, VOCAB_MAX = 1 << 24 };

/* Token text -> id. Borrows the text from the parsed file. Needed only while loading. */
struct vocab {
    struct cJSON *tree;
    const char *file;
    struct {
        const char *text; /* NULL: empty slot */
        int32_t id;
        uint32_t hash; /* spares most comparisons of text */
    } * slot;
    size_t slots; /* a power of two */
    int count;
    int32_t highest;
};

/* Reads vocab.json: {"token": id}. */
int vocab_read(struct vocab *v, const char *path, struct error *err);
/* Reads tokenizer.json, which transformers 5 writes instead: the same under model.vocab. V keeps the whole
 * file. */
int vocab_read_combined(struct vocab *v, const char *path, struct error *err);
void vocab_free(struct vocab *v);
/* The id of TEXT, or -1. */
int32_t vocab_find(const struct vocab *v, const char *text);

/* Pair of ids -> its rank and the id of the joined token. Lifetime "model". */
struct merges {
    struct merge {
        uint64_t pair; /* left << 32 | right; MERGE_EMPTY: empty slot */
        uint32_t rank;
        int32_t joined;
    } * slot;
    size_t slots; /* a power of two */
};
#define MERGE_EMPTY UINT64_MAX

/* Reads merges.txt: a line "left right" a merge, best first. */
int merges_read(struct merges *m, const struct vocab *v, const char *path, struct error *err);
/* Takes model.merges of the tokenizer.json that V was read from: "left right" or ["left", "right"]. */
int merges_take(struct merges *m, const struct vocab *v, struct error *err);
void merges_free(struct merges *m);
/* NULL when the two do not merge. */
const struct merge *merges_find(const struct merges *m, int32_t left, int32_t right);

/* Ids of single bytes: [0] inside a word, [1] at its end ("</w>"). A byte the vocabulary lacks gets UNK. */
void vocab_bytes(const struct vocab *v, int32_t unk, int32_t ids[2][256]);

/* Memory of bpe_encode, reused from word to word. */
struct bpe_work {
    struct bpe_symbol *symbols;
    struct bpe_candidate *heap;
    size_t cap;
};
void bpe_free(struct bpe_work *w);
/* One word: ids[n] of its bytes on entry, of its tokens on return; *N shrinks. O(n log n). */
int bpe_encode(struct bpe_work *w, const struct merges *m, int32_t *ids, size_t *n, struct error *err);

#endif
