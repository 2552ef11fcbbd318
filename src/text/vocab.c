/* Reads vocabulary and merges into hash tables. See vocab.h. */
#include "vocab.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hash.h"
#include "json.h"
#include "unicode.h"

enum { VOCAB_FILE_MAX = 64 << 20, MERGES_FILE_MAX = 64 << 20, MERGES_MAX = 1 << 22 };

static size_t table_size(size_t entries)
{
    size_t n = 64;
    while (n < entries * 2)
        n *= 2;
    return n;
}

static uint32_t hash_text(const char *s)
{
    uint64_t h = hash_bytes(HASH_BEGIN, s, strlen(s));
    return (uint32_t)(h ^ h >> 32);
}

/* The slot of TEXT, or the empty one where it would go. */
static size_t vocab_slot(const struct vocab *v, const char *text, uint32_t hash)
{
    size_t i = hash & (v->slots - 1);
    while (v->slot[i].text && (v->slot[i].hash != hash || strcmp(v->slot[i].text, text) != 0))
        i = (i + 1) & (v->slots - 1);
    return i;
}

int32_t vocab_find(const struct vocab *v, const char *text)
{
    size_t i = vocab_slot(v, text, hash_text(text));
    return v->slot[i].text ? v->slot[i].id : -1;
}

static bool valid_utf8(const char *s)
{
    struct code_points c = {0};
    bool ok = utf8_decode(s, strlen(s), &c, NULL) == 0;
    code_points_free(&c);
    return ok;
}

static bool is_ascii(const char *s)
{
    while (*s > 0)
        s++;
    return *s == 0;
}

static int vocab_add(struct vocab *v, const cJSON *item, struct error *err)
{
    const char *text = item->string;
    double id = item->valuedouble;
    if (strlen(text) > TOKEN_BYTES_MAX)
        return error_set(err, ERR_FORMAT, "%s: a token is longer than %d bytes", v->file, TOKEN_BYTES_MAX);
    if (!is_ascii(text) && !valid_utf8(text))
        return error_set(err, ERR_FORMAT, "%s: a token is not valid UTF-8", v->file);
    if (!cJSON_IsNumber(item) || !(id >= 0 && id < VOCAB_MAX) || id != floor(id))
        return error_set(err, ERR_FORMAT, "%s: token \"%.80s\" should have an id from 0 to %d", v->file, text,
                         VOCAB_MAX - 1);
    uint32_t hash = hash_text(text);
    size_t i = vocab_slot(v, text, hash);
    if (v->slot[i].text)
        return error_set(err, ERR_FORMAT, "%s: token \"%.80s\" comes twice", v->file, text);
    v->slot[i].text = text;
    v->slot[i].hash = hash;
    v->slot[i].id = (int32_t)id;
    v->count++;
    if (v->slot[i].id > v->highest)
        v->highest = v->slot[i].id;
    return 0;
}

/* ERR_FORMAT when two tokens share an id. */
static int check_ids(const struct vocab *v, struct error *err)
{
    int rc = 0;
    unsigned char *seen = calloc((size_t)v->highest / 8 + 1, 1);
    if (!seen)
        return error_set(err, ERR_NOMEM, "%s: no memory for %d tokens", v->file, v->count);
    for (size_t i = 0; i < v->slots && rc == 0; i++) {
        int32_t id = v->slot[i].id;
        if (!v->slot[i].text)
            continue;
        if (seen[id / 8] & 1 << id % 8)
            rc = error_set(err, ERR_FORMAT, "%s: two tokens have id %d", v->file, id);
        seen[id / 8] |= (unsigned char)(1 << id % 8);
    }
    free(seen);
    return rc;
}

/* Fills V from OBJECT, a part of v->tree. */
static int vocab_fill(struct vocab *v, const cJSON *object, struct error *err)
{
    const cJSON *item;
    if (!cJSON_IsObject(object) || !object->child)
        return error_set(err, ERR_FORMAT, "%s: should have a JSON object of tokens and their ids", v->file);
    v->slots = table_size((size_t)cJSON_GetArraySize(object));
    v->slot = calloc(v->slots, sizeof *v->slot);
    if (!v->slot)
        return error_set(err, ERR_NOMEM, "%s: no memory for its tokens", v->file);
    cJSON_ArrayForEach(item, object)
    {
        int rc = vocab_add(v, item, err);
        if (rc < 0)
            return rc;
    }
    return check_ids(v, err);
}

int vocab_read(struct vocab *v, const char *path, struct error *err)
{
    struct error local = {0};
    *v = (struct vocab){.file = path, .highest = -1};
    v->tree = json_read_file(path, VOCAB_FILE_MAX, err ? err : &local);
    if (!v->tree)
        return err ? err->code : local.code;
    return vocab_fill(v, v->tree, err);
}

static const cJSON *combined(const struct vocab *v, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(v->tree, "model"), key);
}

int vocab_read_combined(struct vocab *v, const char *path, struct error *err)
{
    struct error local = {0};
    *v = (struct vocab){.file = path, .highest = -1};
    v->tree = json_read_file(path, VOCAB_FILE_MAX, err ? err : &local);
    if (!v->tree)
        return err ? err->code : local.code;
    return vocab_fill(v, combined(v, "vocab"), err);
}

void vocab_free(struct vocab *v)
{
    cJSON_Delete(v->tree);
    free(v->slot);
    *v = (struct vocab){0};
}

/* GPT-2's byte alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards. */
void vocab_bytes(const struct vocab *v, int32_t unk, int32_t ids[2][256])
{
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        char text[16] = {0};
        size_t n = utf8_encode(printable ? b : next++, (unsigned char *)text);
        int32_t inside = vocab_find(v, text);
        memcpy(text + n, "</w>", 5);
        int32_t end = vocab_find(v, text);
        ids[0][b] = inside < 0 ? unk : inside;
        ids[1][b] = end < 0 ? unk : end;
    }
}

/* ---- merges ---- */

static size_t merge_slot(const struct merges *m, uint64_t pair)
{
    uint64_t h = pair * 0x9e3779b97f4a7c15u;
    size_t i = (size_t)(h >> 32) & (m->slots - 1);
    while (m->slot[i].pair != MERGE_EMPTY && m->slot[i].pair != pair)
        i = (i + 1) & (m->slots - 1);
    return i;
}

const struct merge *merges_find(const struct merges *m, int32_t left, int32_t right)
{
    size_t i = merge_slot(m, (uint64_t)(uint32_t)left << 32 | (uint32_t)right);
    return m->slot[i].pair == MERGE_EMPTY ? NULL : &m->slot[i];
}

static char *read_text(const char *path, struct error *err)
{
    char *text = NULL;
    long size = -1;
    FILE *f = fopen(path, "rb");
    if (!f) {
        error_set(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%s: %s", path, strerror(errno));
        return NULL;
    }
    if (fseek(f, 0, SEEK_END) == 0)
        size = ftell(f);
    if (size < 0 || size > MERGES_FILE_MAX || fseek(f, 0, SEEK_SET) != 0) {
        error_set(err, ERR_FORMAT, "%s: not a file of at most %d bytes", path, MERGES_FILE_MAX);
    } else if (!(text = malloc((size_t)size + 1))) {
        error_set(err, ERR_NOMEM, "%s: no memory to read it", path);
    } else if (fread(text, 1, (size_t)size, f) != (size_t)size) {
        error_set(err, ERR_IO, "%s: cannot be read", path);
        free(text);
        text = NULL;
    } else {
        text[size] = '\0';
        if (strlen(text) != (size_t)size) {
            error_set(err, ERR_FORMAT, "%s: holds a NUL byte", path);
            free(text);
            text = NULL;
        }
    }
    fclose(f);
    return text;
}

/* RANK counts merges from the best; NUMBER is the line or item, for errors. */
static int merges_put(struct merges *m, const struct vocab *v, const char *path, int number, const char *left,
                      const char *right, uint32_t rank, struct error *err)
{
    char joined[2 * TOKEN_BYTES_MAX + 1];
    size_t n = strlen(left), k = strlen(right);
    if (n + k > 2 * TOKEN_BYTES_MAX)
        return error_set(err, ERR_FORMAT, "%s, merge %d: longer than any token", path, number);
    memcpy(joined, left, n);
    memcpy(joined + n, right, k + 1);
    int32_t a = vocab_find(v, left), b = vocab_find(v, right), ab = vocab_find(v, joined);
    if (a < 0 || b < 0 || ab < 0)
        return error_set(err, ERR_FORMAT, "%s, merge %d: token \"%.80s\" is not in %s", path, number,
                         a < 0   ? left
                         : b < 0 ? right
                                 : joined,
                         v->file);
    uint64_t pair = (uint64_t)(uint32_t)a << 32 | (uint32_t)b;
    /* Of two equal merges the later counts, as in transformers. */
    m->slot[merge_slot(m, pair)] = (struct merge){pair, rank, ab};
    return 0;
}

/* "left right", cut in two in place. */
static int merges_put_line(struct merges *m, const struct vocab *v, const char *path, int number, char *line,
                           uint32_t rank, struct error *err)
{
    char *space = strchr(line, ' ');
    if (!space || space == line || !space[1] || strchr(space + 1, ' '))
        return error_set(err, ERR_FORMAT, "%s, line %d: \"%.80s\" is not two tokens with a space between",
                         path, number, line);
    *space = '\0';
    return merges_put(m, v, path, number, line, space + 1, rank, err);
}

static int merges_alloc(struct merges *m, size_t count, const char *path, struct error *err)
{
    if (count > MERGES_MAX)
        return error_set(err, ERR_FORMAT, "%s: more than %d merges", path, MERGES_MAX);
    m->slots = table_size(count);
    m->slot = malloc(m->slots * sizeof *m->slot);
    if (!m->slot)
        return error_set(err, ERR_NOMEM, "%s: no memory for its merges", path);
    for (size_t i = 0; i < m->slots; i++)
        m->slot[i].pair = MERGE_EMPTY;
    return 0;
}

int merges_take(struct merges *m, const struct vocab *v, struct error *err)
{
    const cJSON *list = combined(v, "merges"), *item;
    *m = (struct merges){0};
    if (!cJSON_IsArray(list))
        return error_set(err, ERR_FORMAT, "%s: model.merges should be a list", v->file);
    int number = 0, rc = merges_alloc(m, (size_t)cJSON_GetArraySize(list), v->file, err);
    cJSON_ArrayForEach(item, list)
    {
        const cJSON *left = item->child, *right = left ? left->next : NULL;
        uint32_t rank = (uint32_t)number++;
        if (rc < 0)
            break;
        if (cJSON_IsString(item))
            rc = merges_put_line(m, v, v->file, number, item->valuestring, rank, err);
        else if (cJSON_IsArray(item) && cJSON_IsString(left) && cJSON_IsString(right) && !right->next)
            rc = merges_put(m, v, v->file, number, left->valuestring, right->valuestring, rank, err);
        else
            rc = error_set(err, ERR_FORMAT, "%s, merge %d: is not two tokens", v->file, number);
    }
    return rc;
}

static size_t count_lines(const char *s)
{
    size_t n = 1;
    for (; *s; s++)
        n += *s == '\n';
    return n;
}

static int merges_parse(struct merges *m, const struct vocab *v, const char *path, char *text,
                        struct error *err)
{
    int number = 0, rc = 0;
    uint32_t rank = 0;
    for (char *line = text, *next; line && rc == 0; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        size_t len = strlen(line);
        if (len > 0 && line[len - 1] == '\r')
            line[len - 1] = '\0';
        number++;
        if (*line && (*line != '#' || strncmp(line, "#version", 8) != 0))
            rc = merges_put_line(m, v, path, number, line, rank++, err);
    }
    return rc;
}

int merges_read(struct merges *m, const struct vocab *v, const char *path, struct error *err)
{
    *m = (struct merges){0};
    struct error local = {0};
    char *text = read_text(path, err ? err : &local);
    if (!text)
        return err ? err->code : local.code;
    int rc = merges_alloc(m, count_lines(text), path, err);
    if (rc == 0)
        rc = merges_parse(m, v, path, text, err);
    free(text);
    return rc;
}

void merges_free(struct merges *m)
{
    free(m->slot);
    *m = (struct merges){0};
}
