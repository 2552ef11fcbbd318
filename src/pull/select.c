/* Which files of a repository latentd reads. A pipeline is its model_index.json, and of each component that
 * it names the configs, the words of the tokenizer and one set of safetensors: fp16 where there is one. A
 * repository without model_index.json is a component by itself (config.json), a LoRA, or a checkpoint in one
 * file. */
#include <cjson/cJSON.h>
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "pull.h"

#define LIGHTNING      "ByteDance/SDXL-Lightning"
#define SAFETY_CHECKER "CompVis/stable-diffusion-safety-checker"
#define NO_VAE         "SG161222/Realistic_Vision_V6.0_B1_noVAE"

/* A .safetensors larger than this is a whole checkpoint, a smaller one a LoRA. */
static const int64_t CHECKPOINT_MIN = (int64_t)1500 << 20;

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

/* NAME below the folder PREFIX ("unet/", or "" for the top), not deeper; else NULL. */
static const char *inside(const char *name, const char *prefix)
{
    size_t n = strlen(prefix);
    return strncmp(name, prefix, n) == 0 && !strchr(name + n, '/') ? name + n : NULL;
}

enum weights_kind { WEIGHTS_NONE, WEIGHTS_PLAIN, WEIGHTS_FP16, WEIGHTS_PICKLE };

/* What LEAF is: the file names that weights_open() looks for (include/weights.h), shards and their indexes
 * among them; and the pickles that it refuses. */
static enum weights_kind kind_of(const char *leaf)
{
    static const char *const stems[] = {"diffusion_pytorch_model", "model", "pytorch_model"};
    const char *rest = NULL;

    for (size_t i = 0; i < 3 && !rest; i++)
        if (strncmp(leaf, stems[i], strlen(stems[i])) == 0 && strchr(".-", leaf[strlen(stems[i])]))
            rest = leaf + strlen(stems[i]);
    if (!rest)
        return WEIGHTS_NONE;
    if (fnmatch(".safetensors", rest, 0) == 0 || fnmatch(".safetensors.index.json", rest, 0) == 0 ||
        fnmatch("-[0-9]*-of-[0-9]*.safetensors", rest, 0) == 0)
        return WEIGHTS_PLAIN;
    if (fnmatch(".fp16.safetensors", rest, 0) == 0 ||
        fnmatch(".fp16-[0-9]*-of-[0-9]*.safetensors", rest, 0) == 0 ||
        fnmatch(".safetensors.index.fp16.json", rest, 0) == 0 ||
        fnmatch(".fp16.safetensors.index.json", rest, 0) == 0)
        return WEIGHTS_FP16;
    return ends_with(rest, ".bin") || ends_with(rest, ".ckpt") ? WEIGHTS_PICKLE : WEIGHTS_NONE;
}

/* Configs, vocabularies and SentencePiece models; not the indexes of other weights. */
static bool is_text(const char *leaf)
{
    return (ends_with(leaf, ".json") && !strstr(leaf, ".index.")) || ends_with(leaf, ".txt") ||
           (ends_with(leaf, ".model") && strncmp(leaf, "._", 2) != 0);
}

/* Marks the component in the folder PREFIX. Returns how many files that made, or an error: with PICKLES only,
 * it cannot be loaded. */
static int take_component(struct repository *r, const char *prefix, const struct selection *s,
                          struct error *err)
{
    int of[4] = {0}, count = 0;

    for (size_t i = 0; i < r->count; i++) {
        const char *leaf = inside(r->files[i].name, prefix);
        if (leaf)
            of[kind_of(leaf)]++;
    }
    enum weights_kind want =
        of[WEIGHTS_FP16] && (!s->plain || !of[WEIGHTS_PLAIN]) ? WEIGHTS_FP16 : WEIGHTS_PLAIN;
    if (!of[want] && of[WEIGHTS_PICKLE])
        return error_set(
            err, ERR_UNSUPPORTED,
            "%s has the weights of %s as pickles only (.bin, .ckpt), which latentd does not read; "
            "look for a revision with safetensors, or fetch it with --all and convert it",
            r->id, *prefix ? prefix : "the model");
    for (size_t i = 0; i < r->count; i++) {
        const char *leaf = inside(r->files[i].name, prefix);
        if (leaf && (kind_of(leaf) == want || (kind_of(leaf) == WEIGHTS_NONE && is_text(leaf)))) {
            r->files[i].wanted = true;
            count++;
        }
    }
    return count;
}

/* ["diffusers", "UNet2DConditionModel"], not [null, null] and not a setting. */
static bool names_class(const cJSON *item)
{
    return cJSON_IsArray(item) && cJSON_GetArraySize(item) == 2 &&
           cJSON_IsString(cJSON_GetArrayItem(item, 1));
}

static int take_pipeline(struct repository *r, const char *id, const cJSON *index, const struct selection *s,
                         struct error *err)
{
    const cJSON *item;

    for (size_t i = 0; i < r->count; i++)
        if (strcmp(r->files[i].name, "model_index.json") == 0)
            r->files[i].wanted = true;
    cJSON_ArrayForEach(item, index)
    {
        char prefix[200];
        struct error why = {0};
        if (!names_class(item) || strchr(item->string, '/') ||
            snprintf(prefix, sizeof prefix, "%s/", item->string) >= (int)sizeof prefix)
            continue;
        int n = take_component(r, prefix, s, &why);
        if (n < 0 && !(strcmp(id, NO_VAE) == 0 && strcmp(prefix, "vae/") == 0))
            return error_set(err, n, "%s", why.msg);
    }
    return 0;
}

/* SDXL-Lightning's UNet of as many steps as the id says, else of 8 (contract 3.3). */
static int take_lightning(struct repository *r, const char *id, struct error *err)
{
    char name[64];

    snprintf(name, sizeof name, "sdxl_lightning_%sstep_unet.safetensors",
             strstr(id, "2step")   ? "2"
             : strstr(id, "4step") ? "4"
                                   : "8");
    for (size_t i = 0; i < r->count; i++)
        if (strcmp(r->files[i].name, name) == 0) {
            r->files[i].wanted = true;
            return 0;
        }
    return error_set(err, ERR_NOT_FOUND, "%s has no file %s", r->id, name);
}

/* A LoRA or a checkpoint: the usual name, else the only .safetensors at the top. */
static int take_single(struct repository *r, struct error *err)
{
    struct buffer names = {0};
    struct file *only = NULL;
    int found = 0;

    for (size_t i = 0; i < r->count; i++) {
        struct file *f = &r->files[i];
        if (strcmp(f->name, "adapter_config.json") == 0)
            f->wanted = true;
        if (!ends_with(f->name, ".safetensors") || strchr(f->name, '/'))
            continue;
        bool usual = strcmp(f->name, "pytorch_lora_weights.safetensors") == 0;
        if (!usual && found < 8)
            buffer_printf(&names, "%s%s", names.len ? ", " : "", f->name);
        only = usual || !only || strcmp(only->name, "pytorch_lora_weights.safetensors") != 0 ? f : only;
        found++;
    }
    bool clear = only && (found == 1 || strcmp(only->name, "pytorch_lora_weights.safetensors") == 0);
    if (clear)
        only->wanted = true;
    else if (!only)
        error_set(err, ERR_UNSUPPORTED,
                  "%s holds neither model_index.json nor config.json nor a .safetensors file at its top: "
                  "nothing that latentd reads. --include PATTERN or --all fetch it all the same",
                  r->id);
    else
        error_set(err, ERR_INVALID,
                  "%s has %d files to choose from (%s%s): name one as %s/FILE, or say --all", r->id, found,
                  names.data ? names.data : "", found > 8 ? ", …" : "", r->id);
    buffer_free(&names);
    return clear ? 0 : err->code;
}

static int take_included(struct repository *r, const struct selection *s, struct error *err)
{
    for (int p = 0; p < s->includes; p++) {
        int count = 0;
        for (size_t i = 0; i < r->count; i++)
            if (fnmatch(s->include[p], r->files[i].name, 0) == 0) {
                r->files[i].wanted = true;
                count++;
            }
        if (count == 0 && !strpbrk(s->include[p], "*?["))
            return error_set(err, ERR_NOT_FOUND, "%s has no file %s", r->id, s->include[p]);
    }
    for (size_t i = 0; i < r->count; i++)
        if (r->files[i].wanted)
            return 0;
    return error_set(err, ERR_NOT_FOUND, "%s has no file that matches %s", r->id, s->include[0]);
}

static bool has_weights(const struct repository *r)
{
    for (size_t i = 0; i < r->count; i++)
        if (r->files[i].wanted && kind_of(r->files[i].name) != WEIGHTS_NONE)
            return true;
    return false;
}

static bool any_safetensors(const struct repository *r)
{
    for (size_t i = 0; i < r->count; i++)
        if (ends_with(r->files[i].name, ".safetensors") && !strchr(r->files[i].name, '/'))
            return true;
    return false;
}

int select_files(struct repository *r, const char *id, const struct cJSON *index, const struct selection *s,
                 struct error *err)
{
    for (size_t i = 0; i < r->count; i++)
        r->files[i].wanted = s->all;
    if (s->all)
        return 0;
    if (s->includes)
        return take_included(r, s, err);
    if (strcmp(r->id, LIGHTNING) == 0)
        return take_lightning(r, id, err);
    if (index)
        return take_pipeline(r, id, index, s, err);
    int n = repository_find(r, "config.json") ? take_component(r, "", s, err) : 0;
    return n < 0 ? n : n > 0 && (has_weights(r) || !any_safetensors(r)) ? 0 : take_single(r, err);
}

const char *select_repository(const char *id)
{
    /* -2step, -4step, _8step and the like */
    size_t n = strlen(LIGHTNING);
    return strncmp(id, LIGHTNING, n) == 0 && strchr("-_", id[n]) && strstr(id + n, "step") ? LIGHTNING : id;
}

static bool has_checkpoint(const struct repository *r)
{
    for (size_t i = 0; i < r->count; i++)
        if (r->files[i].wanted && r->files[i].size >= CHECKPOINT_MIN && !strchr(r->files[i].name, '/') &&
            ends_with(r->files[i].name, ".safetensors"))
            return true;
    return false;
}

int select_companions(const struct repository *r, const struct cJSON *index, struct companion *out, int max)
{
    static const struct companion base = {
        "stabilityai/stable-diffusion-xl-base-1.0",
        {"model_index.json", "scheduler/*.json", "tokenizer*", "text_encoder/*.json",
         "text_encoder*/model.fp16.safetensors", "text_encoder_2/config.json", "vae/*.json",
         "vae/diffusion_pytorch_model.fp16.safetensors", "unet/config.json"},
        "the rest of the model: Lightning is a UNet alone",
        true};
    static const struct companion words = {
        "openai/clip-vit-large-patch14",
        {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"},
        "the tokenizer: a checkpoint in one file has none",
        true};
    static const struct companion vae = {"stabilityai/sd-vae-ft-ema", {NULL}, "its VAE", true};
    static const struct companion checker = {SAFETY_CHECKER, {NULL}, "what safety_check asks", false};
    const cJSON *class_name = cJSON_GetObjectItemCaseSensitive(index, "_class_name");
    bool lightning = strcmp(r->id, LIGHTNING) == 0, single = !index && !lightning && has_checkpoint(r);
    int n = 0;

    if (lightning && n < max)
        out[n++] = base;
    if (single && n < max)
        out[n++] = words;
    if (strcmp(r->id, NO_VAE) == 0 && n < max)
        out[n++] = vae;
    if ((lightning || single || cJSON_IsString(class_name)) && n < max)
        out[n++] = checker;
    return n;
}
