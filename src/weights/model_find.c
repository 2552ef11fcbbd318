/* Where a model lives: the Hugging Face hub cache, or a plain folder in diffusers layout. */
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "weights.h"

enum { REF_MAX = 128, ID_MAX = 200 };

/* org/name-like: parts of letters, digits, '.', '_' and '-', none empty, none "." or "..". */
static bool is_model_id(const char *id)
{
    if (strlen(id) > ID_MAX)
        return false;
    const char *part = id;
    for (const char *s = id;; s++) {
        if (*s == '/' || *s == '\0') {
            size_t len = (size_t)(s - part);
            if (len == 0 || (part[0] == '.' && (len == 1 || (len == 2 && part[1] == '.'))))
                return false;
            part = s + 1;
            if (*s == '\0')
                return true;
        } else if (!isalnum((unsigned char)*s) && !strchr("._-", *s)) {
            return false;
        }
    }
}

static bool is_folder(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

/* The revision that refs/main names, when it is a plain name. */
static bool read_ref(const char *cache, char *revision)
{
    char path[4096], text[REF_MAX];
    if (snprintf(path, sizeof(path), "%s/refs/main", cache) >= (int)sizeof(path))
        return false;
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    size_t len = fread(text, 1, sizeof(text) - 1, f);
    fclose(f);
    while (len > 0 && isspace((unsigned char)text[len - 1]))
        len--;
    text[len] = '\0';
    if (len == 0 || text[0] == '.' || strchr(text, '/'))
        return false;
    memcpy(revision, text, len + 1);
    return true;
}

/* The only snapshot of a cache without a ref. False when there is none or more than one. */
static bool only_snapshot(const char *cache, char *revision)
{
    char path[4096];
    if (snprintf(path, sizeof(path), "%s/snapshots", cache) >= (int)sizeof(path))
        return false;
    DIR *d = opendir(path);
    if (!d)
        return false;
    int found = 0;
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        if (e->d_name[0] == '.' || strlen(e->d_name) >= REF_MAX)
            continue;
        found++;
        strcpy(revision, e->d_name);
    }
    closedir(d);
    return found == 1;
}

/* CACHE/snapshots/<revision> into PATH, when it is there. */
static bool find_snapshot(const char *cache, char *path, size_t size)
{
    char revision[REF_MAX];
    if (!read_ref(cache, revision) && !only_snapshot(cache, revision))
        return false;
    return snprintf(path, size, "%s/snapshots/%s", cache, revision) < (int)size && is_folder(path);
}

int model_find(const char *root, const char *id, char *path, size_t size, struct error *err)
{
    char flat[2 * ID_MAX + 1], cache[4096];
    if (!is_model_id(id))
        return error_set(err, ERR_INVALID, "\"%.200s\" is not a model id; one looks like org/name", id);
    size_t at = 0;
    for (const char *s = id; *s; s++) {
        flat[at++] = *s == '/' ? '-' : *s;
        if (*s == '/')
            flat[at++] = '-';
    }
    flat[at] = '\0';
    if (snprintf(cache, sizeof(cache), "%s/models--%s", root, flat) >= (int)sizeof(cache) ||
        strlen(root) + strlen(id) + 2 > size)
        return error_set(err, ERR_INVALID, "the path of MODEL_DIR is too long");
    if (find_snapshot(cache, path, size))
        return 0;
    snprintf(path, size, "%s/%s", root, id);
    if (is_folder(path))
        return 0;
    path[0] = '\0';
    return error_set(err, ERR_NOT_FOUND, "model %s is neither in %s/models--%s/snapshots nor in %s/%s", id,
                     root, flat, root, id);
}
