/* Loads a model in diffusers layout: model_index.json and one folder a component. See pipeline.h. */
#include "model.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "log.h"
#include "weights.h"

enum { INDEX_MAX = 1 << 20 };

/* "DIR/NAME" into PATH[PATH_MAX]. */
static int join(char *path, const char *dir, const char *name, struct error *err)
{
    int n = snprintf(path, PATH_MAX, "%s/%s", dir, name);
    return n < 0 || n >= PATH_MAX ? error_set(err, ERR_INVALID, "the path of %s is too long", name) : 0;
}

/* True when any component folder holds a *.fp16.safetensors file: the ai-runner then loads the fp16 variant,
 * and so draws its noise in fp16 (contract 3.2). */
static bool has_fp16_files(const char *dir)
{
    static const char *const folders[] = {"unet", "vae", "text_encoder"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        char path[PATH_MAX];
        struct error ignored = {0};
        if (join(path, dir, folders[i], &ignored))
            continue;
        DIR *d = opendir(path);
        bool found = false;
        for (struct dirent *e; d && !found && (e = readdir(d)) != NULL;)
            found = strstr(e->d_name, ".fp16.safetensors") != NULL;
        if (d)
            closedir(d);
        if (found)
            return true;
    }
    return false;
}

/* model_index.json names the pipeline class; only the plain Stable Diffusion one is built. */
static int check_index(const char *dir, struct error *err)
{
    char path[PATH_MAX];
    int rc = join(path, dir, "model_index.json", err);
    if (rc)
        return rc;
    struct cJSON *tree = json_read_file(path, INDEX_MAX, err);
    if (!tree)
        return err->code;
    struct json_reader r = {.object = tree, .file = path, .err = err};
    const char *class = json_string(&r, "_class_name", "");
    if (!err->code && strcmp(class, "StableDiffusionPipeline") != 0)
        error_set(err, ERR_UNSUPPORTED,
                  "%s: pipeline class \"%s\" is not built; accepted is StableDiffusionPipeline", path, class);
    const cJSON *checker = cJSON_GetObjectItemCaseSensitive(tree, "safety_checker");
    if (!err->code && cJSON_IsArray(checker) && cJSON_IsString(cJSON_GetArrayItem(checker, 1)))
        log_warning(
            "the model ships a safety checker; this version does not run it, so nsfw is always false");
    cJSON_Delete(tree);
    return err->code;
}

static int load_parts(struct model *m, const char *dir, struct error *err)
{
    char path[PATH_MAX];
    bool fp16 = has_fp16_files(dir);
    const char *variant = fp16 ? "fp16" : NULL;
    m->noise_dtype = fp16 ? DTYPE_F16 : DTYPE_F32;
    int rc = check_index(dir, err);
    if (rc || (rc = join(path, dir, "scheduler", err)) ||
        (rc = scheduler_config_load(&m->scheduler, path, err)))
        return rc;
    scheduler_config_stable_diffusion(m->scheduler);
    if ((rc = join(path, dir, "tokenizer", err)) || (rc = tokenizer_load(&m->tokenizer, path, err)))
        return rc;
    if ((rc = join(path, dir, "text_encoder", err)) ||
        (rc = clip_text_load(&m->text, m->be, path, variant, err)))
        return rc;
    if ((rc = join(path, dir, "vae", err)) || (rc = vae_load(&m->vae, m->be, path, variant, false, err)))
        return rc;
    if ((rc = join(path, dir, "unet", err)))
        return rc;
    return unet_load(&m->unet, m->be, path, variant, err);
}

/* The numbers of the components must fit each other; each was checked against its own weights before. */
static int check_fit(const struct model *m, struct error *err)
{
    if (clip_text_width(m->text) != unet_cross_attention_dim(m->unet))
        return error_set(err, ERR_FORMAT,
                         "the text encoder is %d wide, but the UNet's cross_attention_dim is %d",
                         clip_text_width(m->text), unet_cross_attention_dim(m->unet));
    if (unet_in_channels(m->unet) != vae_latent_channels(m->vae))
        return error_set(err, ERR_FORMAT, "the UNet reads %d channels, but the VAE has %d latent channels",
                         unet_in_channels(m->unet), vae_latent_channels(m->vae));
    if (tokenizer_vocab(m->tokenizer) > clip_text_vocab(m->text))
        return error_set(err, ERR_FORMAT, "the tokenizer has %d tokens, but the text encoder knows %d",
                         tokenizer_vocab(m->tokenizer), clip_text_vocab(m->text));
    return 0;
}

int model_load(struct model **out, struct backend *be, const struct model_options *opt, struct error *err)
{
    char dir[PATH_MAX];
    *out = NULL;
    int rc = model_find(opt->dir, opt->id, dir, sizeof dir, err);
    if (rc)
        return rc;
    struct model *m = calloc(1, sizeof *m);
    if (!m)
        return error_set(err, ERR_NOMEM, "no memory for the model");
    m->be = be;
    m->id = strdup(opt->id);
    if (!m->id)
        rc = error_set(err, ERR_NOMEM, "no memory for the model");
    if (!rc)
        rc = load_parts(m, dir, err);
    if (!rc)
        rc = check_fit(m, err);
    if (rc) {
        model_close(&m);
        return rc;
    }
    *out = m;
    return 0;
}

void model_close(struct model **out)
{
    struct model *m = *out;
    if (!m)
        return;
    if (m->mem)
        m->be->mem_free(m->be, m->mem, atomic_load(&m->mem_size));
    unet_close(&m->unet);
    vae_close(&m->vae);
    clip_text_close(&m->text);
    tokenizer_close(&m->tokenizer);
    scheduler_config_close(&m->scheduler);
    free(m->id);
    free(m);
    *out = NULL;
}

const char *model_id(const struct model *m)
{
    return m->id;
}

struct backend *model_backend(const struct model *m)
{
    return m->be;
}

int model_native_size(const struct model *m)
{
    return unet_sample_size(m->unet) * vae_scale(m->vae);
}

void model_default_size(const struct model *m, int *width, int *height)
{
    int native = model_native_size(m);
    *width = native < 512 ? native : 1024;
    *height = native < 512 ? native : 576;
}

const struct phase_times *model_last_times(const struct model *m)
{
    return &m->times;
}
