/* The tensors of one component: which files hold them (variants, shards), and all of them by name. */
#include "weights_private.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "buffer.h"
#include "json.h"
#include "single_file.h"

enum { SHARDS_MAX = 256, INDEX_MAX = 16 << 20, PATH_SIZE = 4096 };

/* "unet/file" from "/some/where/unet": enough to find the file, and nothing about the machine. */
static void make_label(char *label, size_t size, const char *dir, const char *file)
{
    size_t len = strlen(dir);
    while (len > 1 && dir[len - 1] == '/')
        len--;
    size_t start = len;
    while (start > 0 && dir[start - 1] != '/')
        start--;
    snprintf(label, size, "%.*s/%s", (int)(len - start), dir + start, file);
}

static bool file_exists(const char *dir, const char *file)
{
    char path[PATH_SIZE];
    return snprintf(path, sizeof(path), "%s/%s", dir, file) < (int)sizeof(path) && access(path, F_OK) == 0;
}

static int open_file(struct weights *w, const char *dir, const char *file, struct error *err)
{
    char path[PATH_SIZE], label[PATH_SIZE];
    if (snprintf(path, sizeof(path), "%s/%s", dir, file) >= (int)sizeof(path))
        return error_set(err, ERR_INVALID, "the path of %s is too long", file);
    make_label(label, sizeof(label), dir, file);
    int rc = safetensors_open(&w->file[w->files], path, label, err);
    if (rc == 0)
        w->files++;
    return rc;
}

static int alloc_files(struct weights *w, int count, struct error *err)
{
    w->file = calloc((size_t)count, sizeof(*w->file));
    return w->file ? 0 : error_set(err, ERR_NOMEM, "out of memory opening weights");
}

static bool is_plain_name(const char *s)
{
    return *s && *s != '.' && !strchr(s, '/') && strlen(s) < 256;
}

/* Collects the different file names of a weight_map. Returns how many, or an error. */
static int list_shards(const cJSON *map, const char *label, const char **shard, struct error *err)
{
    int count = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, map)
    {
        if (!cJSON_IsString(item) || !is_plain_name(item->valuestring))
            return error_set(err, ERR_FORMAT, "%s: \"%.200s\" is not mapped to a file name", label,
                             item->string);
        int i = 0;
        while (i < count && strcmp(shard[i], item->valuestring) != 0)
            i++;
        if (i < count)
            continue;
        if (count == SHARDS_MAX)
            return error_set(err, ERR_FORMAT, "%s: more than %d shards", label, (int)SHARDS_MAX);
        shard[count++] = item->valuestring;
    }
    return count ? count : error_set(err, ERR_FORMAT, "%s: weight_map names no file", label);
}

/* Every tensor that the index promises must be in the shard it names. */
static int check_index(const struct weights *w, const cJSON *map, const char *const *shard, const char *label,
                       struct error *err)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, map)
    {
        int i = 0;
        while (strcmp(shard[i], item->valuestring) != 0)
            i++;
        if (!safetensors_find(&w->file[i], item->string))
            return error_set(err, ERR_NOT_FOUND, "%s: tensor \"%.200s\" is not in %.200s", label,
                             item->string, item->valuestring);
    }
    return 0;
}

static int open_shards(struct weights *w, const char *dir, const char *index, struct error *err)
{
    char path[PATH_SIZE], label[PATH_SIZE];
    const char *shard[SHARDS_MAX];
    if (snprintf(path, sizeof(path), "%s/%s", dir, index) >= (int)sizeof(path))
        return error_set(err, ERR_INVALID, "the path of %s is too long", index);
    make_label(label, sizeof(label), dir, index);
    cJSON *json = json_read_file(path, INDEX_MAX, err);
    if (!json)
        return err && err->code ? err->code : ERR_FORMAT;
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(json, "weight_map");
    int rc = cJSON_IsObject(map) ? list_shards(map, label, shard, err)
                                 : error_set(err, ERR_FORMAT, "%s: no object \"weight_map\"", label);
    int count = rc;
    if (rc > 0)
        rc = alloc_files(w, count, err);
    for (int i = 0; i < count && rc == 0; i++)
        rc = open_file(w, dir, shard[i], err);
    if (rc == 0)
        rc = check_index(w, map, shard, label, err);
    cJSON_Delete(json);
    return rc;
}

/* Opens the files of one variant ("" or ".fp16"). Returns 1 when it opened them, 0 when there are none. */
static int open_variant(struct weights *w, const char *dir, const char *stem, bool fp16, struct error *err)
{
    char name[256];
    snprintf(name, sizeof(name), "%s%s.safetensors", stem, fp16 ? ".fp16" : "");
    if (file_exists(dir, name)) {
        int rc = alloc_files(w, 1, err);
        if (rc == 0)
            rc = open_file(w, dir, name, err);
        return rc < 0 ? rc : 1;
    }
    /* diffusers and transformers put the variant before the last dot; older files have it after the stem */
    static const char *const index_tails[2][2] = {
        {".safetensors.index.json", ".safetensors.index.json"},
        {".safetensors.index.fp16.json", ".fp16.safetensors.index.json"},
    };
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof(name), "%s%s", stem, index_tails[fp16][i]);
        if (file_exists(dir, name)) {
            int rc = open_shards(w, dir, name, err);
            return rc < 0 ? rc : 1;
        }
    }
    return 0;
}

/* Says why there is nothing to open: a pickle file that we will not run, or no file at all. */
static int nothing_there(const char *dir, const char *stem, struct error *err)
{
    static const char *const tails[] = {".bin", ".fp16.bin", ".ckpt", ".pt", ".pth", ".bin.index.json"};
    const char *stems[] = {stem, "pytorch_model"};
    char name[256], label[PATH_SIZE];
    for (size_t i = 0; i < 2; i++) {
        for (size_t k = 0; k < sizeof(tails) / sizeof(*tails); k++) {
            snprintf(name, sizeof(name), "%s%s", stems[i], tails[k]);
            if (!file_exists(dir, name))
                continue;
            make_label(label, sizeof(label), dir, name);
            return error_set(
                err, ERR_UNSUPPORTED,
                "%s is a pickle file, which runs code when it is read; convert it first: in Python, load the "
                "model with from_pretrained and write it with save_pretrained(..., safe_serialization=True)",
                label);
        }
    }
    snprintf(name, sizeof(name), "%s.safetensors", stem);
    make_label(label, sizeof(label), dir, name);
    return error_set(err, ERR_NOT_FOUND, "%s is missing (nor is there a .fp16 or a sharded one)", label);
}

static int by_name(const void *a, const void *b)
{
    const struct st_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

int weights_index(struct weights *w, int first, struct error *err)
{
    size_t total = 0;
    for (int i = first; i < w->files; i++)
        total += (size_t)w->file[i].count;
    w->tensor = calloc(total + 1, sizeof(struct st_tensor *));
    if (!w->tensor)
        return error_set(err, ERR_NOMEM, "out of memory opening weights");
    for (int i = first; i < w->files; i++) {
        for (int k = 0; k < w->file[i].count; k++)
            w->tensor[w->count++] = &w->file[i].tensor[k];
    }
    qsort(w->tensor, total, sizeof(struct st_tensor *), by_name);
    for (int i = 1; i < w->count; i++) {
        if (by_name(&w->tensor[i - 1], &w->tensor[i]) == 0)
            return error_set(err, ERR_FORMAT, "%s and %s both hold the tensor \"%.200s\"",
                             w->tensor[i - 1]->file->label, w->tensor[i]->file->label, w->tensor[i]->name);
    }
    return 0;
}

int weights_open(struct weights **out, const char *dir, const char *stem, const char *variant,
                 struct error *err)
{
    char single[PATH_SIZE];
    const char *component;
    *out = NULL;
    if (single_file_split(dir, single, sizeof(single), &component))
        return single_file_open(out, single, component, err);
    bool fp16 = variant && strcmp(variant, "fp16") == 0;
    if (variant && *variant && !fp16)
        return error_set(err, ERR_UNSUPPORTED, "weight variant \"%.40s\" is not known, only \"fp16\" is",
                         variant);
    struct weights *w = calloc(1, sizeof(*w));
    if (!w)
        return error_set(err, ERR_NOMEM, "out of memory opening weights");
    int rc = open_variant(w, dir, stem, fp16, err);
    if (rc == 0)
        rc = open_variant(w, dir, stem, !fp16, err);
    if (rc == 0)
        rc = nothing_there(dir, stem, err);
    else if (rc > 0)
        rc = weights_index(w, 0, err);
    if (rc < 0)
        weights_close(&w);
    *out = w;
    return rc;
}

void weights_close(struct weights **w)
{
    if (!*w)
        return;
    for (int i = 0; i < (*w)->files; i++)
        safetensors_close(&(*w)->file[i]);
    free((*w)->file);
    free((*w)->tensor);
    free((*w)->copy);
    free(*w);
    *w = NULL;
}

struct st_tensor *weights_find(const struct weights *w, const char *name)
{
    struct st_tensor key = {.name = (char *)(uintptr_t)name}, *p = &key;
    struct st_tensor **found = bsearch(&p, w->tensor, (size_t)w->count, sizeof(*w->tensor), by_name);
    return found ? *found : NULL;
}

bool weights_has(const struct weights *w, const char *name)
{
    return weights_find(w, name) != NULL;
}

int weights_unused(const struct weights *w, const char **first_name)
{
    int unused = 0;
    for (int i = 0; i < w->count; i++) {
        if (w->tensor[i]->used)
            continue;
        if (unused++ == 0 && first_name)
            *first_name = w->tensor[i]->name;
    }
    return unused;
}

enum dtype weights_dtype(const struct weights *w)
{
    for (int i = 0; i < w->count; i++) {
        enum st_type t = w->tensor[i]->type;
        if (t == ST_F16 || t == ST_BF16 || t == ST_F32)
            return t == ST_F16 ? DTYPE_F16 : t == ST_BF16 ? DTYPE_BF16 : DTYPE_F32;
    }
    return DTYPE_F32;
}

void weights_drop_pages(struct weights *w)
{
    for (int i = 0; i < w->files; i++)
        if (w->file[i].map) /* a hint: failing costs nothing but memory that the system can take back */
            madvise(w->file[i].map, w->file[i].size, MADV_DONTNEED);
}

void weights_drop_array(const struct weights *w, const struct host_array *a)
{
    enum { PAGE = 4096, LEAST = 16 * PAGE };
    uintptr_t from = ((uintptr_t)a->data + PAGE - 1) / PAGE * PAGE;
    uintptr_t to = ((uintptr_t)a->data + a->count * dtype_size(a->dtype)) / PAGE * PAGE;
    for (int i = 0; i < w->files; i++) {
        uintptr_t map = (uintptr_t)w->file[i].map;
        if (map && from >= map && from < map + w->file[i].size && to >= from + LEAST)
            madvise((void *)from, to - from, MADV_DONTNEED); /* a hint, as above */
    }
}

int weights_identity(const struct weights *w, struct buffer *out, size_t *bytes)
{
    struct stat st;
    *bytes = 0;
    for (int i = 0; i < w->files; i++) {
        if (!w->file[i].map) /* a view of the file before it */
            continue;
        if (fstat(w->file[i].fd, &st))
            return ERR_IO;
        buffer_printf(out, "file %llu %llu, %llu bytes, changed %lld.%09ld\n", (unsigned long long)st.st_dev,
                      (unsigned long long)st.st_ino, (unsigned long long)st.st_size,
                      (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    }
    for (int i = 0; i < w->count; i++)
        *bytes += (size_t)(w->tensor[i]->end - w->tensor[i]->begin);
    return out->failed ? ERR_NOMEM : 0;
}

void weights_read_ahead(const struct weights *w)
{
    for (int i = 0; i < w->files; i++)
        if (w->file[i].map) /* a hint */
            madvise(w->file[i].map, w->file[i].size, MADV_WILLNEED);
}

int weights_read(const struct weights *w, const struct host_array *a, void *out, struct error *err)
{
    size_t bytes = a->count * dtype_size(a->dtype);
    const char *at = a->data;
    for (int i = 0; i < w->files; i++) {
        const char *map = w->file[i].map;
        if (map && at >= map && at < map + w->file[i].size)
            return safetensors_read(&w->file[i], at, out, bytes, err);
    }
    memcpy(out, at, bytes);
    return 0;
}
