/* A prompt becomes token ids: cut at added tokens, normalised, split into words, each word byte-pair encoded.
 * See tokenizer.h for what this agrees with. */
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "special.h"

enum { TEXT_MAX = 1 << 26 };

struct tokenizer {
    struct merges merges;
    struct special_tokens special;
    int32_t bytes[2][256]; /* see vocab_bytes */
    int vocab;
};

/* DIR/NAME in OUT[PATH_SIZE]. */
enum { PATH_SIZE = 4096 };
static int join_path(char *out, const char *dir, const char *name, struct error *err)
{
    if ((size_t)snprintf(out, PATH_SIZE, "%s/%s", dir, name) >= PATH_SIZE)
        return error_set(err, ERR_INVALID, "the path to %s is too long", name);
    return 0;
}

/* tokenizer.json counts before the two older files where both are there, as in transformers 5. */
static int load_files(struct tokenizer *t, struct vocab *v, const char *dir, const char *pad,
                      struct error *err)
{
    char path[PATH_SIZE], merges[PATH_SIZE];
    int rc = join_path(path, dir, "tokenizer.json", err);
    if (rc < 0)
        return rc;
    bool one_file = access(path, F_OK) == 0;
    if (!one_file &&
        ((rc = join_path(path, dir, "vocab.json", err)) || (rc = join_path(merges, dir, "merges.txt", err))))
        return rc;
    if ((rc = one_file ? vocab_read_combined(v, path, err) : vocab_read(v, path, err)))
        return rc;
    if ((rc = special_read(&t->special, v, dir, pad, err)))
        return rc;
    if ((rc = one_file ? merges_take(&t->merges, v, err) : merges_read(&t->merges, v, merges, err)))
        return rc;
    vocab_bytes(v, t->special.unk, t->bytes);
    t->vocab = v->highest + 1;
    for (int i = 0; i < t->special.count; i++)
        t->vocab = t->special.added[i].id >= t->vocab ? t->special.added[i].id + 1 : t->vocab;
    return 0;
}

int tokenizer_load(struct tokenizer **out, const char *dir, struct error *err)
{
    return tokenizer_load_padded(out, dir, NULL, err);
}

int tokenizer_load_padded(struct tokenizer **out, const char *dir, const char *pad, struct error *err)
{
    struct vocab v = {0};
    *out = NULL;
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return error_set(err, ERR_NOMEM, "no memory for a tokenizer");
    int rc = load_files(t, &v, dir, pad, err);
    vocab_free(&v);
    if (rc < 0)
        tokenizer_close(&t);
    *out = t;
    return rc;
}

void tokenizer_close(struct tokenizer **t)
{
    if (!t || !*t)
        return;
    merges_free(&(*t)->merges);
    special_free(&(*t)->special);
    free(*t);
    *t = NULL;
}

int tokenizer_vocab(const struct tokenizer *t)
{
    return t->vocab;
}

int tokenizer_max_length(const struct tokenizer *t)
{
    return t->special.max_length;
}

/* ---- encoding ---- */

struct encoder {
    const struct tokenizer *t;
    int32_t *ids;
    size_t room;  /* for tokens of the text: max - 2 */
    size_t count; /* tokens of the text so far, also those that did not fit */
    struct code_points text, piece, tmp;
    int32_t *word;
    size_t word_cap;
    struct bpe_work bpe;
    struct error *err;
};

static void emit(struct encoder *e, int32_t id)
{
    if (e->count < e->room)
        e->ids[1 + e->count] = id;
    e->count++;
}

/* The bytes of the word, as ids, in e->word. */
static int word_bytes(struct encoder *e, const uint32_t *at, size_t len, size_t *bytes)
{
    size_t n = 0;
    if (4 * len > e->word_cap) {
        int32_t *grown = realloc(e->word, 4 * len * sizeof *grown);
        if (!grown)
            return error_set(e->err, ERR_NOMEM, "no memory for a word of %zu characters", len);
        e->word = grown;
        e->word_cap = 4 * len;
    }
    unsigned char last = 0, utf8[4];
    for (size_t i = 0; i < len; i++) {
        size_t k = utf8_encode(at[i], utf8);
        for (size_t j = 0; j < k; j++)
            e->word[n++] = e->t->bytes[0][last = utf8[j]];
    }
    e->word[n - 1] = e->t->bytes[1][last];
    *bytes = n;
    return 0;
}

static int encode_word(struct encoder *e, const uint32_t *at, size_t len)
{
    size_t n = 0;
    int rc = word_bytes(e, at, len, &n);
    if (rc == 0)
        rc = bpe_encode(&e->bpe, &e->t->merges, e->word, &n, e->err);
    for (size_t i = 0; i < n && rc == 0; i++)
        emit(e, e->word[i]);
    return rc;
}

static bool starts_with(const uint32_t *at, size_t len, const char *ascii)
{
    size_t n = strlen(ascii);
    for (size_t i = 0; i < n; i++) {
        if (i >= len || at[i] != (unsigned char)ascii[i])
            return false;
    }
    return true;
}

static bool is_other(uint32_t c)
{
    return !is_space(c) && !is_letter(c) && !is_number(c);
}

/* Length of the word at AT, which is no space: 's|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+ */
static size_t word_length(const uint32_t *at, size_t len)
{
    static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    size_t n = 1;
    for (int i = 0; at[0] == '\'' && i < 7; i++) {
        if (starts_with(at, len, endings[i]))
            return strlen(endings[i]);
    }
    if (is_number(at[0]))
        return 1;
    if (is_letter(at[0])) {
        while (n < len && is_letter(at[n]))
            n++;
        return n;
    }
    while (n < len && is_other(at[n]))
        n++;
    return n;
}

/* Length of the words' own marks when they begin here. The expression that splits words knows them by their
 * text, whatever the config calls them; what follows them then begins a new word. */
static size_t mark_length(const uint32_t *at, size_t len)
{
    return starts_with(at, len, "<|startoftext|>") ? 15 : starts_with(at, len, "<|endoftext|>") ? 13 : 0;
}

/* Normalised text without added tokens. */
static int encode_words(struct encoder *e, const uint32_t *at, size_t len)
{
    size_t mark_end = 0;
    for (size_t i = 0; i < len;) {
        if (is_space(at[i])) {
            i++;
            continue;
        }
        if (i >= mark_end && at[i] == '<')
            mark_end = i + mark_length(at + i, len - i);
        size_t n = word_length(at + i, (i < mark_end ? mark_end : len) - i);
        int rc = encode_word(e, at + i, n);
        if (rc < 0)
            return rc;
        i += n;
    }
    return 0;
}

/* Text [0, len) cut at the added tokens whose flag is NORMALIZED; the pieces between go to NEXT. */
static int cut_at_added(struct encoder *e, bool normalized, const uint32_t *at, size_t len,
                        int (*next)(struct encoder *, const uint32_t *, size_t))
{
    size_t start = 0;
    int rc = 0;
    for (size_t i = 0; i < len && rc == 0;) {
        const struct added_token *t = special_match(&e->t->special, normalized, at + i, len - i);
        if (!t) {
            i++;
            continue;
        }
        rc = next(e, at + start, i - start);
        emit(e, t->id);
        start = i += t->text.len;
    }
    return rc < 0 ? rc : next(e, at + start, len - start);
}

static int encode_piece(struct encoder *e, const uint32_t *at, size_t len)
{
    if (len == 0)
        return 0;
    int rc = code_points_reserve(&e->piece, len, e->err);
    if (rc < 0)
        return rc;
    memcpy(e->piece.at, at, len * sizeof *at);
    e->piece.len = len;
    rc = normalize_prompt(&e->piece, &e->tmp, e->err);
    return rc < 0 ? rc : cut_at_added(e, true, e->piece.at, e->piece.len, encode_words);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, int32_t *ids, int max,
                     int *used, int *cut, struct error *err)
{
    if (max < 2)
        return error_set(err, ERR_INVALID, "a prompt needs room for at least 2 tokens, not %d", max);
    if (len > TEXT_MAX)
        return error_set(err, ERR_INVALID, "a prompt of %zu bytes is too long; accepted are %d", len,
                         TEXT_MAX);
    struct encoder e = {.t = t, .ids = ids, .room = (size_t)max - 2, .err = err};
    int rc = utf8_decode(text, len, &e.text, err);
    if (rc == 0)
        rc = cut_at_added(&e, false, e.text.at, e.text.len, encode_piece);
    code_points_free(&e.text);
    code_points_free(&e.piece);
    code_points_free(&e.tmp);
    free(e.word);
    bpe_free(&e.bpe);
    if (rc < 0)
        return rc;
    int kept = (int)(e.count < e.room ? e.count : e.room);
    ids[0] = t->special.start;
    ids[kept + 1] = t->special.end;
    for (int i = kept + 2; i < max; i++)
        ids[i] = t->special.pad;
    if (used)
        *used = kept + 2;
    if (cut)
        *cut = (int)(e.count - (size_t)kept);
    return 0;
}
