/* Which tokens stand for themselves. See special.h.
 *
 * transformers' rules, in the order of its from_pretrained: "added_tokens_decoder" of tokenizer_config.json,
 * or, where that is absent, special_tokens_map.json over tokenizer_config.json and then added_tokens.json. A
 * plain string is looked for before the prompt is normalised; a record says for itself. Of several records
 * for one token the last counts. */
#include "special.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

enum { SPECIAL_FILE_MAX = 16 << 20 };

enum named_token { BOS, EOS, UNK, SEP, PAD, CLS, MASK, NAMED };

/* In the order in which transformers adds them. FALLBACK NULL: a model need not have it. */
static const struct {
    const char *key, *fallback;
} named[NAMED] = {
    [BOS] = {"bos_token", "<|startoftext|>"},
    [EOS] = {"eos_token", "<|endoftext|>"},
    [UNK] = {"unk_token", "<|endoftext|>"},
    [SEP] = {"sep_token", NULL},
    [PAD] = {"pad_token", "<|endoftext|>"},
    [CLS] = {"cls_token", NULL},
    [MASK] = {"mask_token", NULL},
};

enum { LISTED = 2 };
static const char *const listed[LISTED] = {"additional_special_tokens", "extra_special_tokens"};

struct reader {
    struct special_tokens *s;
    const struct vocab *vocab;
    cJSON *config, *map, *added; /* the three files; NULL: absent */
    bool fixed[ADDED_MAX]; /* listed in added_tokens_decoder or added_tokens.json: later records do not count
                            */
    char path[3][4096];
    struct error *err;
};

static int find_added(const struct special_tokens *s, const char *content)
{
    for (int i = 0; i < s->count; i++) {
        if (strcmp(s->added[i].content, content) == 0)
            return i;
    }
    return -1;
}

/* Ids of tokens that the vocabulary lacks follow its last one. */
static int32_t new_id(const struct reader *r)
{
    int32_t id = r->vocab->count;
    for (int i = 0; i < r->s->count; i++) {
        if (r->s->added[i].id >= id)
            id = r->s->added[i].id + 1;
    }
    return id;
}

/* Adds CONTENT or changes its flag. Returns its index, or -1 with words in r->err. */
static int put(struct reader *r, const char *content, bool normalized)
{
    struct special_tokens *s = r->s;
    int i = find_added(s, content);
    if (i >= 0) {
        if (!r->fixed[i])
            s->added[i].normalized = normalized;
        return i;
    }
    if (!*content || s->count == ADDED_MAX) {
        error_set(r->err, *content ? ERR_UNSUPPORTED : ERR_FORMAT,
                  *content ? "%s: more than %d added tokens" : "%s: an added token is empty", r->path[0],
                  ADDED_MAX);
        return -1;
    }
    int32_t id = vocab_find(r->vocab, content);
    struct added_token *t = &s->added[s->count];
    *t = (struct added_token){.id = id < 0 ? new_id(r) : id, .normalized = normalized};
    t->content = strdup(content);
    if (!t->content) {
        error_set(r->err, ERR_NOMEM, "no memory for the tokenizer's added tokens");
        return -1;
    }
    return s->count++;
}

static bool flag(const struct reader *r, const cJSON *record, const char *key, bool fallback,
                 const char *path)
{
    struct json_reader j = {record, path, r->err};
    return json_bool(&j, key, fallback);
}

/* A token as the files write it: a string, or a record with content and flags. SPECIAL: what the record's
 * "special" is taken for when absent. Returns its index, or -1. */
static int put_item(struct reader *r, const cJSON *item, const char *path, bool special)
{
    static const char *const unbuilt[] = {"lstrip", "rstrip", "single_word"};
    if (cJSON_IsString(item))
        return put(r, item->valuestring, false);
    const cJSON *content = cJSON_GetObjectItemCaseSensitive(item, "content");
    if (!cJSON_IsObject(item) || !cJSON_IsString(content)) {
        error_set(r->err, ERR_FORMAT, "%s: an added token should be a string, or an object with \"content\"",
                  path);
        return -1;
    }
    for (int i = 0; i < 3; i++) {
        if (flag(r, item, unbuilt[i], false, path))
            error_set(r->err, ERR_UNSUPPORTED,
                      "%s: \"%s\" of token \"%.80s\" is not built; accepted is false", path, unbuilt[i],
                      content->valuestring);
    }
    special = flag(r, item, "special", special, path);
    return put(r, content->valuestring, flag(r, item, "normalized", !special, path));
}

static int by_id(const void *a, const void *b)
{
    const cJSON *x = *(const cJSON *const *)a, *y = *(const cJSON *const *)b;
    long i = strtol(x->string, NULL, 10), j = strtol(y->string, NULL, 10);
    return (i > j) - (i < j);
}

/* added_tokens_decoder: {"id": record}, taken in the order of their ids. */
static void read_decoder(struct reader *r, const cJSON *decoder)
{
    const cJSON *items[ADDED_MAX], *item;
    int n = 0;
    cJSON_ArrayForEach(item, decoder)
    {
        if (n == ADDED_MAX) {
            error_set(r->err, ERR_UNSUPPORTED, "%s: more than %d added tokens", r->path[0], ADDED_MAX);
            return;
        }
        items[n++] = item;
    }
    if (n)
        qsort(items, (size_t)n, sizeof *items, by_id);
    for (int i = 0; i < n && !r->err->code; i++) {
        int k = put_item(r, items[i], r->path[0], false);
        if (k >= 0)
            r->fixed[k] = true;
    }
}

/* The value of a named token: special_tokens_map.json goes over tokenizer_config.json, but only where the
 * latter has no added_tokens_decoder. */
static const cJSON *named_value(const struct reader *r, const char *key, const char **path)
{
    const cJSON *item = NULL;
    *path = r->path[1];
    if (!cJSON_GetObjectItemCaseSensitive(r->config, "added_tokens_decoder"))
        item = cJSON_GetObjectItemCaseSensitive(r->map, key);
    if (item)
        return item;
    *path = r->path[0];
    return cJSON_GetObjectItemCaseSensitive(r->config, key);
}

static bool names(const cJSON *item, const char *content)
{
    const cJSON *text = cJSON_IsObject(item) ? cJSON_GetObjectItemCaseSensitive(item, "content") : item;
    return cJSON_IsString(text) && strcmp(text->valuestring, content) == 0;
}

/* Whether the files call CONTENT a special token. */
static bool is_special(const struct reader *r, const char *content)
{
    const char *path;
    for (int i = 0; i < NAMED; i++) {
        if (names(named_value(r, named[i].key, &path), content))
            return true;
    }
    for (int i = 0; i < LISTED; i++) {
        const cJSON *item;
        cJSON_ArrayForEach(item, named_value(r, listed[i], &path))
        {
            if (names(item, content))
                return true;
        }
    }
    return false;
}

/* added_tokens.json: {"token": id}, taken in its own order. */
static void read_added(struct reader *r)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, r->added)
    {
        int k = put(r, item->string, !is_special(r, item->string));
        if (k < 0)
            return;
        r->fixed[k] = true;
    }
}

/* added_tokens of tokenizer.json: records in the order of their ids. vocab.json has no such list. */
static void read_combined(struct reader *r)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(r->vocab->tree, "added_tokens"), *item;
    if (!cJSON_IsArray(list))
        return;
    cJSON_ArrayForEach(item, list)
    {
        int k = put_item(r, item, r->vocab->file, false);
        if (k < 0)
            return;
        r->fixed[k] = true;
    }
}

/* Returns the id of the token under KEY. FALLBACK NULL: the model need not have one. */
static int32_t read_named(struct reader *r, const char *key, const char *fallback)
{
    const char *path;
    const cJSON *item = named_value(r, key, &path);
    if (r->err->code || (!fallback && (!item || cJSON_IsNull(item))))
        return -1;
    if (item && cJSON_IsNull(item)) {
        error_set(r->err, ERR_FORMAT, "%s: \"%s\" is null", path, key);
        return -1;
    }
    int k = item ? put_item(r, item, path, true) : put(r, fallback, false);
    return k < 0 ? -1 : r->s->added[k].id;
}

static void read_extra(struct reader *r, const char *key)
{
    const char *path;
    const cJSON *list = named_value(r, key, &path), *item;
    cJSON_ArrayForEach(item, list)
    {
        if (put_item(r, item, path, true) < 0)
            return;
    }
}

static void read_tokens(struct reader *r)
{
    struct special_tokens *s = r->s;
    const cJSON *decoder = cJSON_GetObjectItemCaseSensitive(r->config, "added_tokens_decoder");
    int32_t ids[NAMED];
    if (decoder)
        read_decoder(r, decoder);
    else
        read_added(r), read_combined(r);
    for (int i = 0; i < NAMED; i++)
        ids[i] = read_named(r, named[i].key, named[i].fallback);
    for (int i = 0; i < LISTED; i++)
        read_extra(r, listed[i]);
    s->start = ids[BOS];
    s->end = ids[EOS];
    s->unk = ids[UNK];
    s->pad = ids[PAD];
    if (!r->err->code && s->unk >= r->vocab->count && s->unk > r->vocab->highest)
        error_set(r->err, ERR_FORMAT, "%s: the unknown token is not in it", r->vocab->file);
    struct json_reader config = {r->config, r->path[0], r->err};
    double longest = r->config ? json_number(&config, "model_max_length", 0) : 0;
    s->max_length = longest >= 1 && longest < 1 << 20 ? (int)longest : 0;
}

/* Tokens that are looked for in the normalised prompt are normalised themselves. */
static void prepare(struct special_tokens *s, struct error *err)
{
    struct code_points tmp = {0};
    for (int i = 0; i < s->count && !err->code; i++) {
        struct added_token *t = &s->added[i];
        utf8_decode(t->content, strlen(t->content), &t->text, err);
        if (t->normalized && !err->code)
            normalize_prompt(&t->text, &tmp, err);
    }
    code_points_free(&tmp);
}

/* A file that need not be there. */
static cJSON *read_optional(const char *path, struct error *err)
{
    struct error why = {0};
    cJSON *tree = json_read_file(path, SPECIAL_FILE_MAX, &why);
    if (!tree && why.code != ERR_NOT_FOUND)
        error_set(err, why.code, "%s", why.msg);
    if (tree && !cJSON_IsObject(tree)) {
        error_set(err, ERR_FORMAT, "%s: should be a JSON object", path);
        cJSON_Delete(tree);
        tree = NULL;
    }
    return tree;
}

/* The files say that PAD pads. */
static void set_pad(struct reader *r, const char *pad)
{
    cJSON_DeleteItemFromObjectCaseSensitive(r->map, "pad_token");
    if (!r->config)
        r->config = cJSON_CreateObject();
    cJSON_DeleteItemFromObjectCaseSensitive(r->config, "pad_token");
    if (!cJSON_AddStringToObject(r->config, "pad_token", pad))
        error_set(r->err, ERR_NOMEM, "no memory for the tokenizer's special tokens");
}

int special_read(struct special_tokens *s, const struct vocab *v, const char *dir, const char *pad,
                 struct error *err)
{
    static const char *const files[] = {"tokenizer_config.json", "special_tokens_map.json",
                                        "added_tokens.json"};
    struct error local = {0};
    struct reader *r = calloc(1, sizeof *r);
    *s = (struct special_tokens){0};
    err = err ? err : &local;
    if (!r)
        return error_set(err, ERR_NOMEM, "no memory for the tokenizer's special tokens");
    r->s = s;
    r->vocab = v;
    r->err = err;
    for (int i = 0; i < 3; i++) {
        if ((size_t)snprintf(r->path[i], sizeof r->path[i], "%s/%s", dir, files[i]) >= sizeof r->path[i])
            error_set(err, ERR_INVALID, "the path to %s is too long", files[i]);
    }
    if (!err->code) {
        r->config = read_optional(r->path[0], err);
        r->map = read_optional(r->path[1], err);
        r->added = read_optional(r->path[2], err);
    }
    if (!err->code && pad)
        set_pad(r, pad);
    if (!err->code)
        read_tokens(r);
    if (!err->code)
        prepare(s, err);
    cJSON_Delete(r->config);
    cJSON_Delete(r->map);
    cJSON_Delete(r->added);
    free(r);
    return err->code;
}

void special_free(struct special_tokens *s)
{
    for (int i = 0; i < s->count; i++) {
        code_points_free(&s->added[i].text);
        free(s->added[i].content);
    }
    s->count = 0;
}

const struct added_token *special_match(const struct special_tokens *s, bool normalized, const uint32_t *at,
                                        size_t len)
{
    const struct added_token *best = NULL;
    for (int i = 0; i < s->count; i++) {
        const struct added_token *t = &s->added[i];
        size_t n = t->text.len;
        if (t->normalized == normalized && n > 0 && n <= len && t->text.at[0] == at[0] &&
            (!best || n > best->text.len) && memcmp(t->text.at, at, n * sizeof *at) == 0)
            best = t;
    }
    return best;
}
