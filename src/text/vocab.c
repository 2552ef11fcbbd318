/* Reads vocab.json and merges.txt into hash tables. See vocab.h. */
#include "vocab.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* FNV-1a. */
static uint32_t hash_text(const char *s)
{
    uint64_t h = 14695981039346656037u;
    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * 1099511628211u;
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

int vocab_read(struct vocab *v, const char *path, struct error *err)
{
    const cJSON *item;
    struct error local = {0};
    *v = (struct vocab){.file = path, .highest = -1};
    v->tree = json_read_file(path, VOCAB_FILE_MAX, err ? err : &local);
    if (!v->tree)
        return err ? err->code : local.code;
    if (!cJSON_IsObject(v->tree) || !v->tree->child)
        return error_set(err, ERR_FORMAT, "%s: should be a JSON object of tokens and their ids", path);
    v->slots = table_size((size_t)cJSON_GetArraySize(v->tree));
    v->slot = calloc(v->slots, sizeof *v->slot);
    if (!v->slot)
        return error_set(err, ERR_NOMEM, "%s: no memory for its tokens", path);
    cJSON_ArrayForEach(item, v->tree)
    {
        int rc = vocab_add(v, item, err);
        if (rc < 0)
            return rc;
    }
    return check_ids(v, err);
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

/* One line "left right". RANK counts merges, not lines. */
static int merges_add(struct merges *m, const struct vocab *v, const char *path, int line_number, char *line,
                      uint32_t rank, struct error *err)
{
    char joined[2 * TOKEN_BYTES_MAX + 1];
    char *space = strchr(line, ' ');
    if (!space || space == line || !space[1] || strchr(space + 1, ' '))
        return error_set(err, ERR_FORMAT, "%s, line %d: \"%.80s\" is not two tokens with a space between",
                         path, line_number, line);
    *space = '\0';
    const char *right = space + 1;
    if (strlen(line) + strlen(right) > 2 * TOKEN_BYTES_MAX)
        return error_set(err, ERR_FORMAT, "%s, line %d: longer than any token", path, line_number);
    memcpy(joined, line, strlen(line));
    strcpy(joined + strlen(line), right);
    int32_t a = vocab_find(v, line), b = vocab_find(v, right), ab = vocab_find(v, joined);
    if (a < 0 || b < 0 || ab < 0)
        return error_set(err, ERR_FORMAT, "%s, line %d: token \"%.80s\" is not in %s", path, line_number,
                         a < 0   ? line
                         : b < 0 ? right
                                 : joined,
                         v->file);
    uint64_t pair = (uint64_t)(uint32_t)a << 32 | (uint32_t)b;
    m->slot[merge_slot(m, pair)] =
        (struct merge){pair, rank, ab}; /* of two equal lines the later counts, as in transformers */
    return 0;
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
            rc = merges_add(m, v, path, number, line, rank++, err);
    }
    return rc;
}

int merges_read(struct merges *m, const struct vocab *v, const char *path, struct error *err)
{
    int rc = 0;
    *m = (struct merges){0};
    struct error local = {0};
    char *text = read_text(path, err ? err : &local);
    if (!text)
        return err ? err->code : local.code;
    size_t lines = count_lines(text);
    if (lines > MERGES_MAX) {
        rc = error_set(err, ERR_FORMAT, "%s: more than %d lines", path, MERGES_MAX);
    } else {
        m->slots = table_size(lines);
        m->slot = malloc(m->slots * sizeof *m->slot);
        if (!m->slot)
            rc = error_set(err, ERR_NOMEM, "%s: no memory for its merges", path);
    }
    for (size_t i = 0; m->slot && i < m->slots; i++)
        m->slot[i].pair = MERGE_EMPTY;
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
