/* See model_files.h. */
#include "model_files.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"
#include "single_file.h"

static const char SUFFIX[] = ".safetensors";

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a > b && strcmp(text + a - b, end) == 0;
}

static bool is_file(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

/* The only *.safetensors at the top of DIR, into NAME[NAME_MAX + 1]. */
static bool only_checkpoint(const char *dir, char *name)
{
    int found = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        if (e->d_name[0] != '.' && ends_with(e->d_name, SUFFIX) && found++ == 0)
            snprintf(name, NAME_MAX + 1, "%s", e->d_name);
    }
    if (d)
        closedir(d);
    return found == 1;
}

/* PATH[size] is a folder: becomes the checkpoint in it where that is all there is. */
static void take_checkpoint(char *path, size_t size)
{
    char index[PATH_MAX], name[NAME_MAX + 1];
    if (snprintf(index, sizeof(index), "%s/model_index.json", path) >= (int)sizeof(index) ||
        access(index, F_OK) == 0 || !only_checkpoint(path, name))
        return;
    size_t len = strlen(path);
    if (len + 1 + strlen(name) < size)
        snprintf(path + len, size - len, "/%s", name);
}

int model_source(const char *root, const char *id, char *path, size_t size, struct error *err)
{
    const char *slash = strrchr(id, '/');
    char folder[PATH_MAX];
    if (!ends_with(id, SUFFIX) || !slash || slash - id >= (int)sizeof(folder)) {
        int rc = model_find(root, id, path, size, err);
        if (!rc)
            take_checkpoint(path, size);
        return rc;
    }
    /* org/name/file.safetensors, in a hub cache or a plain folder; org/file.safetensors too */
    snprintf(folder, sizeof(folder), "%.*s", (int)(slash - id), id);
    int rc = model_find(root, folder, path, size, err);
    if (rc)
        return rc;
    size_t len = strlen(path);
    if (len + strlen(slash) >= size)
        return error_set(err, ERR_INVALID, "the path of MODEL_DIR is too long");
    memcpy(path + len, slash, strlen(slash) + 1);
    if (is_file(path))
        return 0;
    return error_set(err, ERR_NOT_FOUND, "model %s: there is no file %s in the folder of %s", id, slash + 1,
                     folder);
}

bool model_is_single_file(const char *path)
{
    char file[PATH_MAX];
    const char *component;
    return single_file_split(path, file, sizeof(file), &component) && !*component;
}

/* All of PATH. */
static char *read_text(const char *path, size_t max, struct error *err)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        error_set(err, errno == ENOENT || errno == ENOTDIR ? ERR_NOT_FOUND : ERR_IO, "%s: %s", path,
                  strerror(errno));
        return NULL;
    }
    char *text = malloc(max + 2);
    size_t len = text ? fread(text, 1, max + 1, f) : 0;
    if (!text)
        error_set(err, ERR_NOMEM, "%s: no memory to read it", path);
    else if (ferror(f))
        error_set(err, ERR_IO, "%s: cannot be read", path);
    else if (len > max)
        error_set(err, ERR_FORMAT, "%s: larger than the %zu bytes that are allowed", path, max);
    else
        text[len] = '\0';
    if (text && (ferror(f) || len > max)) {
        free(text);
        text = NULL;
    }
    fclose(f);
    return text;
}

/* DIR_OF_FILE/COMPONENT/NAME, where that is a file. */
static bool beside(const char *file, const char *component, const char *name, char *path, size_t size)
{
    const char *slash = strrchr(file, '/');
    int len = slash ? (int)(slash - file) : 1;
    return *component &&
           snprintf(path, size, "%.*s/%s/%s", len, slash ? file : ".", component, name) < (int)size &&
           is_file(path);
}

static char *built_in(const char *file, const char *component, const char *name, struct error *err)
{
    struct safetensors st;
    enum single_family family;
    const char *slash = strrchr(file, '/'), *text = NULL;
    if (safetensors_open(&st, file, slash ? slash + 1 : file, err) < 0)
        return NULL;
    if (single_file_family(&st, &family, err) == 0) {
        text = single_file_config(family, component, name);
        if (!text)
            error_set(err, ERR_NOT_FOUND, "%s has no %s/%s", st.label, component, name);
    }
    safetensors_close(&st);
    char *copy = text ? strdup(text) : NULL;
    if (text && !copy)
        error_set(err, ERR_NOMEM, "no memory for %s", name);
    return copy;
}

char *model_text(const char *dir, const char *name, size_t max, struct error *err)
{
    char file[PATH_MAX], path[PATH_MAX];
    const char *component;
    bool single = single_file_split(dir, file, sizeof(file), &component);
    if (single && !beside(file, component, name, path, sizeof(path)))
        return built_in(file, component, name, err);
    if (!single && snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path)) {
        error_set(err, ERR_INVALID, "the path of %s is too long", name);
        return NULL;
    }
    return read_text(path, max, err);
}

struct cJSON *model_json(const char *dir, const char *name, size_t max, struct error *err)
{
    char *text = model_text(dir, name, max, err);
    if (!text)
        return NULL;
    const char *end = NULL;
    cJSON *tree = cJSON_ParseWithLengthOpts(text, strlen(text) + 1, &end, 1);
    if (!tree)
        error_set(err, ERR_FORMAT, "%s/%s: not valid JSON at byte %zu", dir, name,
                  end ? (size_t)(end - text) : (size_t)0);
    free(text);
    return tree;
}

/* Repositories of CLIP tokenizers, in the order in which they are looked for. All hold the same words. */
static const char *const tokenizers[] = {
    "openai/clip-vit-large-patch14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "openai/clip-vit-base-patch32"};

static bool has_words(const char *folder)
{
    static const char *const names[] = {"tokenizer.json", "vocab.json"};
    char path[PATH_MAX];
    for (size_t i = 0; i < 2; i++)
        if (snprintf(path, sizeof(path), "%s/%s", folder, names[i]) < (int)sizeof(path) && is_file(path))
            return true;
    return false;
}

/* What SD 2.x and SDXL's second encoder are padded with, token 0; their own tokenizer folders say so too. */
static int family_pad(const char *file, const char *component, const char **pad, struct error *err)
{
    struct safetensors st;
    enum single_family family;
    const char *slash = strrchr(file, '/');
    if (safetensors_open(&st, file, slash ? slash + 1 : file, err) < 0)
        return err->code;
    int rc = single_file_family(&st, &family, err);
    safetensors_close(&st);
    if (!rc)
        *pad = strcmp(component, "tokenizer_2") == 0 || family == SINGLE_SD2 ? "!" : "<|endoftext|>";
    return rc;
}

int model_tokenizer_folder(const char *root, const char *dir, char *folder, size_t size, const char **pad,
                           struct error *err)
{
    char file[PATH_MAX];
    const char *component;
    struct error ignored = {0};
    *pad = NULL;
    if (!single_file_split(dir, file, sizeof(file), &component))
        return snprintf(folder, size, "%s", dir) < (int)size
                   ? 0
                   : error_set(err, ERR_INVALID, "the path of the tokenizer is too long");
    int dir_len = (int)(strrchr(file, '/') ? strrchr(file, '/') - file : 0);
    if (snprintf(folder, size, "%.*s/%s", dir_len, file, component) < (int)size && has_words(folder))
        return 0;
    int rc = family_pad(file, component, pad, err);
    if (rc)
        return rc;
    if (snprintf(folder, size, "%.*s/tokenizer", dir_len, file) < (int)size && has_words(folder))
        return 0;
    for (size_t i = 0; i < sizeof(tokenizers) / sizeof(*tokenizers); i++) {
        ignored = (struct error){0};
        if (model_find(root, tokenizers[i], folder, size, &ignored) == 0 && has_words(folder))
            return 0;
    }
    return error_set(
        err, ERR_NOT_FOUND,
        "%s carries no tokenizer: put CLIP's vocab.json, merges.txt and tokenizer_config.json into a "
        "folder tokenizer/ beside it, or the repository %s into MODEL_DIR",
        strrchr(file, '/') ? strrchr(file, '/') + 1 : file, tokenizers[0]);
}
