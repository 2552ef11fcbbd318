/* From the id of a LoRA to its file. Only what really lies below MODEL_DIR is opened: ids are plain names,
 * and the path is resolved and compared with MODEL_DIR's own. Links of the hub cache, from snapshots to
 * blobs, stay inside. */
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "lora.h"

static const char usual[] = "pytorch_lora_weights.safetensors", tail[] = ".safetensors";

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), m = strlen(with);
    return n > m && strcmp(s + n - m, with) == 0;
}

/* Checkpoints of trainers lie beside the LoRA; diffusers' _best_guess_weight_name leaves them out too. */
static bool is_lora_name(const char *s)
{
    return ends(s, tail) && s[0] != '.' && !strstr(s, "scheduler") && !strstr(s, "optimizer") &&
           !strstr(s, "checkpoint");
}

/* The LoRA file of a folder: the usual name, else the first by name. */
static int choose_file(const char *dir, const char *id, char path[PATH_MAX], struct error *err)
{
    char name[NAME_MAX + 1] = "";
    int found = 0;
    DIR *d = opendir(dir);
    if (!d)
        return error_set(err, ERR_NOT_FOUND, "the folder of LoRA \"%.200s\" cannot be read", id);
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        if (!is_lora_name(e->d_name))
            continue;
        found++;
        if (strcmp(name, usual) != 0 &&
            (strcmp(e->d_name, usual) == 0 || !*name || strcmp(e->d_name, name) < 0))
            snprintf(name, sizeof(name), "%s", e->d_name);
    }
    closedir(d);
    if (found == 0)
        return error_set(
            err, ERR_FORMAT,
            "there is no .safetensors file in the folder of LoRA \"%.200s\"; pickle files (.bin, "
            ".pt) have to be converted",
            id);
    if (found > 1 && strcmp(name, usual) != 0)
        log_warning("LoRA %s has %d files; taking %s. Name one with %s/FILE.safetensors", id, found, name,
                    id);
    if (snprintf(path, PATH_MAX, "%s/%s", dir, name) >= PATH_MAX)
        return error_set(err, ERR_NOT_FOUND, "the path of LoRA \"%.200s\" is too long", id);
    return 0;
}

/* org/name/file.safetensors, or file.safetensors in MODEL_DIR itself. */
static int named_file(const char *root, const char *id, char path[PATH_MAX], struct error *err)
{
    char repo[512], dir[PATH_MAX];
    const char *slash = strchr(id, '/'), *rest = id;
    struct error ignored = {0};
    if (!ends(id, tail) || strlen(id) >= sizeof(repo))
        return ERR_NOT_FOUND;
    if (slash && (slash = strchr(slash + 1, '/'))) {
        snprintf(repo, sizeof(repo), "%.*s", (int)(slash - id), id);
        if (model_find(root, repo, dir, sizeof(dir), &ignored))
            return ERR_NOT_FOUND;
        root = dir;
        rest = slash + 1;
    }
    if (!*rest || rest[0] == '.' || rest[0] == '/' || strstr(rest, "/.") || strstr(rest, "//"))
        return ERR_NOT_FOUND;
    return snprintf(path, PATH_MAX, "%s/%s", root, rest) < PATH_MAX && access(path, F_OK) == 0
               ? 0
               : error_set(err, ERR_NOT_FOUND, "there is no file \"%.200s\" below MODEL_DIR", id);
}

/* PATH without links, when that is inside ROOT. */
static int resolve(const char *root, const char *id, const char *path, char real[PATH_MAX], struct error *err)
{
    char real_root[PATH_MAX];
    if (!realpath(root, real_root) || !realpath(path, real))
        return error_set(err, ERR_NOT_FOUND, "the file of LoRA \"%.200s\" is a link to nothing", id);
    size_t n = strlen(real_root);
    if (n > 1 && (strncmp(real, real_root, n) != 0 || real[n] != '/'))
        return error_set(err, ERR_NOT_FOUND, "LoRA \"%.200s\" is a link that leaves MODEL_DIR", id);
    return 0;
}

/* adapter_config.json in the folder of FOUND, when it is there and inside ROOT. */
static void find_config(const char *root, const char *id, const char *found, char config[PATH_MAX])
{
    char beside[PATH_MAX];
    struct error ignored = {0};
    const char *slash = strrchr(found, '/');
    int n = snprintf(beside, sizeof(beside), "%.*s/adapter_config.json", (int)(slash - found), found);
    if (n >= (int)sizeof(beside) || access(beside, F_OK) != 0 || resolve(root, id, beside, config, &ignored))
        config[0] = '\0';
}

int lora_find(const char *root, const char *id, struct lora_path *path, struct error *err)
{
    _Static_assert(PATH_MAX <= sizeof(path->file), "struct lora_path");
    char dir[PATH_MAX], found[PATH_MAX];
    struct error ignored = {0};
    *path = (struct lora_path){0};
    int rc = named_file(root, id, found, &ignored);
    if (rc && (rc = model_find(root, id, dir, sizeof(dir), err)) == 0)
        rc = choose_file(dir, id, found, err);
    if (rc == ERR_INVALID)
        rc = err->code = ERR_NOT_FOUND; /* not an id: so there is none of that name */
    if (!rc)
        rc = resolve(root, id, found, path->file, err);
    if (!rc)
        find_config(root, id, found, path->config);
    return rc;
}
