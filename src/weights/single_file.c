/* One component of a checkpoint in a single file, presented as if diffusers had saved it: the same numbers in
 * the same mapped file, under other names. What diffusers stores the other way round is copied. See
 * single_file.h. */
#include "single_file.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "weights_private.h"

static const char SUFFIX[] = ".safetensors";

bool single_file_split(const char *dir, char *file, size_t size, const char **component)
{
    struct stat info;
    for (const char *at = strstr(dir, SUFFIX); at; at = strstr(at + 1, SUFFIX)) {
        size_t len = (size_t)(at - dir) + strlen(SUFFIX);
        if ((dir[len] != '/' && dir[len] != '\0') || len >= size)
            continue;
        memcpy(file, dir, len);
        file[len] = '\0';
        if (stat(file, &info) == 0 && S_ISREG(info.st_mode)) {
            *component = dir[len] ? dir + len + 1 : dir + len;
            return true;
        }
    }
    return false;
}

/* The size of dimension I of a tensor; 0: no such tensor or dimension. A negative I counts from the last. */
static uint64_t dimension(const struct safetensors *st, const char *name, int i)
{
    const struct st_tensor *t = safetensors_find(st, name);
    int at = t && i < 0 ? t->dims + i : i;
    return t && at >= 0 && at < t->dims ? t->shape[at] : 0;
}

static bool has(const struct safetensors *st, const char *name)
{
    return safetensors_find(st, name) != NULL;
}

/* Keys that tell other kinds of files, the first of CHECKPOINT_KEY_NAMES that occurs. */
static const char *const others[][2] = {
    {"edm_mean", "Playground v2.5"},
    {"conditioner.embedders.0.model.ln_final.weight", "the SDXL refiner"},
    {"control_model.time_embed.0.weight", "a ControlNet"},
    {"controlnet_cond_embedding.conv_in.weight", "a ControlNet"},
    {"model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias", "Stable Diffusion 3"},
    {"joint_blocks.0.context_block.adaLN_modulation.1.bias", "Stable Diffusion 3"},
    {"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", "FLUX"},
    {"double_blocks.0.img_attn.norm.key_norm.scale", "FLUX"},
    {"clip_txt_mapper.weight", "Stable Cascade"},
    {"down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder"
     ".pe",
     "AnimateDiff"},
    {"down_blocks.0.resnets.0.conv1.weight", "a UNet in diffusers' naming, not a whole checkpoint"},
    {"encoder.conv_in.weight", "a VAE, not a whole checkpoint"},
};

static int refuse(const struct safetensors *st, const char *what, struct error *err)
{
    return error_set(err, ERR_UNSUPPORTED,
                     "%s is %s; single files of Stable Diffusion 1.x, 2.x, SDXL and InstructPix2Pix in the "
                     "original naming can be loaded",
                     st->label, what);
}

int single_file_family(const struct safetensors *st, enum single_family *family, struct error *err)
{
    static const char first[] = "model.diffusion_model.input_blocks.0.0.weight",
                      text_width[] =
                          "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight";
    uint64_t channels = dimension(st, first, 1);
    bool sdxl = has(st, "conditioner.embedders.1.model.ln_final.weight");
    if (channels == 9)
        return refuse(st, "an inpainting checkpoint", err);
    for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++) {
        if (has(st, others[i][0]))
            return refuse(st, others[i][1], err);
    }
    if (channels == 7)
        return refuse(st, "the x4 upscaler", err);
    if (!channels)
        return refuse(st, "not a Stable Diffusion checkpoint", err);
    *family = sdxl                                                ? SINGLE_SDXL
              : dimension(st, text_width, -1) == 1024             ? SINGLE_SD2
              : has(st, "cond_stage_model.model.ln_final.weight") ? SINGLE_SD2
              : channels == 8                                     ? SINGLE_PIX2PIX
                                                                  : SINGLE_SD1;
    return 0;
}

/* ---- Views ---- */

enum kind { KIND_UNET, KIND_VAE, KIND_CLIP, KIND_OPEN_CLIP };

/* Where a component is; the first prefix of a component that occurs in the file counts. */
static const struct place {
    const char *component, *prefix;
    enum kind kind;
} places[] = {
    {"unet", "model.diffusion_model.", KIND_UNET},
    {"vae", "first_stage_model.", KIND_VAE},
    {"vae", "vae.", KIND_VAE},
    {"text_encoder", "cond_stage_model.transformer.", KIND_CLIP},
    {"text_encoder", "conditioner.embedders.0.transformer.", KIND_CLIP},
    {"text_encoder", "cond_stage_model.model.", KIND_OPEN_CLIP},
    {"text_encoder_2", "conditioner.embedders.1.model.", KIND_OPEN_CLIP},
};

static bool has_prefix(const struct safetensors *st, const char *prefix)
{
    for (int i = 0; i < st->count; i++)
        if (strncmp(st->tensor[i].name, prefix, strlen(prefix)) == 0)
            return true;
    return false;
}

static const struct place *find_place(const struct safetensors *st, const char *component, struct error *err)
{
    bool known = false;
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
        if (strcmp(places[i].component, component) != 0)
            continue;
        known = true;
        if (has_prefix(st, places[i].prefix))
            return &places[i];
    }
    error_set(err, ERR_NOT_FOUND, "%s holds no %s%s", st->label, component,
              known ? ": it is not a whole checkpoint" : "");
    return NULL;
}

/* The views being made; ALL[count] are their owner's tensors. */
struct views {
    struct safetensors *from, *to;
    int capacity;
    struct ldm_layout layout;
    void **copy; /* the one tensor that is turned; owned by the weights */
    struct error *err;
};

/* Part PART of PARTS of T, split along its first dimension, as NAME. */
static int add_view(struct views *v, const struct st_tensor *t, const char *name, int part, int parts)
{
    if (v->to->count == v->capacity) {
        int capacity = v->capacity ? 2 * v->capacity : 256;
        struct st_tensor *all = realloc(v->to->tensor, (size_t)capacity * sizeof(*all));
        if (!all)
            return error_set(v->err, ERR_NOMEM, "out of memory opening %s", v->from->label);
        v->to->tensor = all;
        v->capacity = capacity;
    }
    struct st_tensor *view = &v->to->tensor[v->to->count];
    *view = *t;
    view->used = false;
    view->name = strdup(name);
    if (!view->name)
        return error_set(v->err, ERR_NOMEM, "out of memory opening %s", v->from->label);
    uint64_t bytes = (t->end - t->begin) / (uint64_t)parts;
    view->begin = t->begin + (uint64_t)part * bytes;
    view->end = view->begin + bytes;
    view->shape[0] /= (uint64_t)parts;
    v->to->count++;
    return 0;
}

/* A copy of the matrix T with rows and columns exchanged, as NAME. */
static int add_turned(struct views *v, const struct st_tensor *t, const char *name)
{
    size_t rows = (size_t)t->shape[0], columns = (size_t)t->shape[1];
    size_t bytes = (size_t)(t->end - t->begin), each = t->dims == 2 && bytes ? bytes / (rows * columns) : 0;
    if (!each || *v->copy)
        return add_view(v, t, name, 0, 1); /* not what it should be: the loader says so by its shape */
    unsigned char *to = *v->copy = malloc(bytes);
    if (!to)
        return error_set(v->err, ERR_NOMEM, "out of memory opening %s", v->from->label);
    const unsigned char *from = v->from->data + t->begin;
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < columns; k++)
            memcpy(to + (k * rows + i) * each, from + (i * columns + k) * each, each);
    int rc = add_view(v, t, name, 0, 1);
    if (rc)
        return rc;
    struct st_tensor *view = &v->to->tensor[v->to->count - 1];
    view->shape[0] = columns;
    view->shape[1] = rows;
    view->begin = 0;
    view->end = bytes;
    view->file = v->to;
    v->to->data = to;
    return 0;
}

/* OpenCLIP's T, whose name without prefix is NAME. SD 2.x carries a projection that its pipelines do not read
 * and diffusers leaves out. */
static int add_open_clip(struct views *v, const struct st_tensor *t, const char *name, bool projected)
{
    static const char which[] = "qkv";
    char out[LDM_NAME_MAX], part_name[LDM_NAME_MAX];
    int parts, rc = 0;
    bool turn;
    if (!ldm_open_clip_name(name, out, &parts, &turn) || (turn && !projected))
        return 0;
    if (turn)
        return add_turned(v, t, out);
    if (parts == 1)
        return add_view(v, t, out, 0, 1);
    if (t->dims < 1 || t->shape[0] % 3 != 0)
        return error_set(v->err, ERR_FORMAT,
                         "%s: tensor \"%s\" does not divide into queries, keys and values", v->from->label,
                         t->name);
    const char *at = strstr(out, "%c");
    for (int i = 0; i < parts && !rc; i++) {
        snprintf(part_name, sizeof(part_name), "%.*s%c%s", (int)(at - out), out, which[i], at + 2);
        rc = add_view(v, t, part_name, i, parts);
    }
    return rc;
}

static int add_all(struct views *v, const struct place *where)
{
    int rc = 0;
    size_t len = strlen(where->prefix);
    bool projected = strcmp(where->component, "text_encoder_2") == 0;
    for (int i = 0; i < v->from->count && !rc; i++) {
        const struct st_tensor *t = &v->from->tensor[i];
        const char *name = t->name + len;
        char out[LDM_NAME_MAX];
        if (strncmp(t->name, where->prefix, len) != 0)
            continue;
        switch (where->kind) {
        case KIND_OPEN_CLIP:
            rc = add_open_clip(v, t, name, projected);
            break;
        case KIND_CLIP:
            rc = add_view(v, t, name, 0, 1);
            break;
        case KIND_UNET:
            rc = ldm_unet_name(&v->layout, name, out) ? add_view(v, t, out, 0, 1) : 0;
            break;
        case KIND_VAE:
            rc = ldm_vae_name(&v->layout, name, out) ? add_view(v, t, out, 0, 1) : 0;
            break;
        }
    }
    return rc;
}

/* file[0] is the mapped file, file[1] owns the views. */
static int make_views(struct weights *w, const char *component, struct error *err)
{
    struct safetensors *st = &w->file[0];
    const struct place *where = find_place(st, component, err);
    struct views v = {.from = st, .to = &w->file[1], .copy = &w->copy, .err = err};
    if (!where)
        return err->code;
    v.to->label = strdup(st->label);
    if (!v.to->label)
        return error_set(err, ERR_NOMEM, "out of memory opening %s", st->label);
    w->files = 2;
    ldm_layout_read(&v.layout, st);
    int rc = add_all(&v, where);
    return rc ? rc : weights_index(w, 1, err);
}

int single_file_open(struct weights **out, const char *file, const char *component, struct error *err)
{
    enum single_family family;
    const char *slash = strrchr(file, '/');
    *out = NULL;
    struct weights *w = calloc(1, sizeof(*w));
    if (!w || !(w->file = calloc(2, sizeof(*w->file)))) {
        free(w);
        return error_set(err, ERR_NOMEM, "out of memory opening weights");
    }
    int rc = safetensors_open(&w->file[0], file, slash ? slash + 1 : file, err);
    w->files = rc ? 0 : 1;
    if (!rc)
        rc = single_file_family(&w->file[0], &family, err);
    if (!rc)
        rc = make_views(w, component, err);
    if (rc)
        weights_close(&w);
    *out = w;
    return rc;
}
