/* One LoRA file: its tensors paired to layers, each bound to a weight of the loaded model and checked against
 * its shape. A file is taken whole or not at all. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "half.h"
#include "log.h"
#include "lora.h"

struct named {
    struct lora_key key;
    const struct st_tensor *t;
};

static int by_key(const void *a, const void *b)
{
    const struct lora_key *x = &((const struct named *)a)->key, *y = &((const struct named *)b)->key;
    if (x->part != y->part)
        return x->part < y->part ? -1 : 1;
    int rc = strcmp(x->module, y->module);
    return rc ? rc : (x->role > y->role) - (x->role < y->role);
}

static bool is_float(const struct st_tensor *t)
{
    return t->type == ST_F32 || t->type == ST_F16 || t->type == ST_BF16;
}

static enum dtype dtype_of(const struct st_tensor *t)
{
    return t->type == ST_F32 ? DTYPE_F32 : t->type == ST_F16 ? DTYPE_F16 : DTYPE_BF16;
}

static uint64_t count_of(const struct st_tensor *t, int from)
{
    uint64_t n = 1; /* cannot overflow: the parser multiplied all of them */
    for (int i = from; i < t->dims; i++)
        n *= t->shape[i];
    return n;
}

/* The one number of an alpha tensor. */
static int read_alpha(const struct safetensors *st, const struct st_tensor *t, double *alpha,
                      struct error *err)
{
    uint64_t raw = 0;
    double wide;
    if (count_of(t, 0) != 1)
        return error_set(err, ERR_FORMAT, "%s: \"%.200s\" is not one number", st->label, t->name);
    int rc = safetensors_read(st, st->data + t->begin, &raw, (size_t)(t->end - t->begin), err);
    if (rc)
        return rc;
    if (is_float(t))
        *alpha = (double)half_load(&raw, dtype_of(t), 0);
    else if (t->type == ST_F64) {
        memcpy(&wide, &raw, sizeof(wide));
        *alpha = wide;
    } else if (t->type == ST_I64 || t->type == ST_I32)
        *alpha = (double)raw;
    else
        return error_set(err, ERR_FORMAT, "%s: \"%.200s\" is stored as %s", st->label, t->name,
                         st_type_names[t->type]);
    return isfinite(*alpha) ? 0
                            : error_set(err, ERR_FORMAT, "%s: \"%.200s\" is not finite", st->label, t->name);
}

/* down [rank, in, (kh, kw)] and up [out, rank, (1, 1)] must fit the weight. */
static int check_shapes(const struct lora_shelf *shelf, const struct lora_layer *l, const char *label,
                        struct error *err)
{
    const struct weight_source *s = &shelf->list[l->module->part]->origin[l->module->item].source;
    const struct st_tensor *d = l->down, *u = l->up;
    uint64_t out = (uint64_t)(s->out_c / s->parts), in = (uint64_t)s->in_c,
             taps = (uint64_t)s->kh * (uint64_t)s->kw;
    if (!is_float(d) || !is_float(u))
        return error_set(err, ERR_FORMAT, "%s: \"%.200s\" is stored as %s; F32, F16 and BF16 can be read",
                         label, d->name, st_type_names[is_float(d) ? u->type : d->type]);
    if (d->dims < 2 || u->dims < 2 || d->shape[0] != u->shape[1] || d->shape[0] < 1 || d->shape[0] > 65536 ||
        count_of(u, 2) != 1)
        return error_set(err, ERR_FORMAT, "%s: \"%.200s\" and \"%.200s\" are not the two halves of a LoRA",
                         label, d->name, u->name);
    uint64_t kernel = count_of(d, 2);
    bool square = d->dims == 4 && d->shape[2] == (uint64_t)s->kh && d->shape[3] == (uint64_t)s->kw;
    if (u->shape[0] != out || d->shape[1] != in || kernel != taps || (taps > 1 && !square))
        return error_set(err, ERR_INVALID,
                         "%s: \"%.200s\" is for %llu x %llu x %llu, the model has %llu x %llu x %llu", label,
                         d->name, (unsigned long long)u->shape[0], (unsigned long long)d->shape[1],
                         (unsigned long long)kernel, (unsigned long long)out, (unsigned long long)in,
                         (unsigned long long)taps);
    return 0;
}

/* The tensors of one module, NAMED[count], become a layer. */
static int add_layer(struct lora_file *f, const struct lora_shelf *shelf, const struct lora_scales *scales,
                     const struct named *named, int count, struct error *err)
{
    const struct st_tensor *t[LORA_IGNORED + 1] = {0};
    const struct lora_key *key = &named[0].key;
    for (int i = 0; i < count; i++) {
        if (t[named[i].key.role])
            return error_set(err, ERR_FORMAT, "%s: \"%.200s\" and \"%.200s\" name the same tensor",
                             f->st.label, t[named[i].key.role]->name, named[i].t->name);
        t[named[i].key.role] = named[i].t;
    }
    if (!t[LORA_DOWN] != !t[LORA_UP])
        return error_set(err, ERR_FORMAT, "%s: \"%.200s\" has only one of its two halves", f->st.label,
                         named[0].t->name);
    if (!t[LORA_DOWN])
        return 0;
    struct lora_layer *l = &f->layer[f->layers];
    *l = (struct lora_layer){.down = t[LORA_DOWN], .up = t[LORA_UP], .alpha = NAN};
    l->module = lora_module_find(shelf, key->part, key->module);
    if (!l->module)
        return error_set(err, ERR_INVALID, "%s: the model has no module for \"%.200s\"", f->st.label,
                         t[LORA_DOWN]->name);
    int rc = check_shapes(shelf, l, f->st.label, err);
    if (rc)
        return rc;
    l->rank = (int)l->down->shape[0];
    if (t[LORA_ALPHA] && (rc = read_alpha(&f->st, t[LORA_ALPHA], &l->alpha, err)))
        return rc;
    if (t[LORA_ALPHA])
        l->scale = (float)(l->alpha / l->rank);
    else if ((rc = lora_scale_of(scales, key->part, l->down->name, l->rank, &l->scale, err)))
        return rc;
    f->layers++;
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const struct lora_module *x = ((const struct lora_layer *)a)->module,
                             *y = ((const struct lora_layer *)b)->module;
    if (x->part != y->part)
        return x->part < y->part ? -1 : 1;
    if (x->item != y->item)
        return x->item < y->item ? -1 : 1;
    return (x->slot > y->slot) - (x->slot < y->slot);
}

/* As PeftModel.save_pretrained names tensors; only beside such a file does adapter_config.json count, as
 * diffusers never reads one. */
static bool is_peft_model(const struct safetensors *st)
{
    static const char head[] = "base_model.model.";
    bool found = false;
    for (int i = 0; i < st->count && !found; i++)
        found = strncmp(st->tensor[i].name, head, strlen(head)) == 0;
    return found;
}

static int bind_layers(struct lora_file *f, const struct lora_shelf *shelf, const char *config,
                       struct error *err)
{
    int n = f->st.count, ignored = 0, rc = 0;
    struct lora_scales *scales = NULL;
    struct named *named = calloc((size_t)n + 1, sizeof(*named));
    f->layer = calloc((size_t)n + 1, sizeof(*f->layer));
    if (!named || !f->layer)
        rc = error_set(err, ERR_NOMEM, "out of memory reading a LoRA");
    else
        rc = lora_scales_open(&scales, &f->st, is_peft_model(&f->st) ? config : "", err);
    for (int i = 0; i < n && !rc; i++) {
        named[i].t = &f->st.tensor[i];
        rc = lora_key_parse(named[i].t->name, shelf->unet_layers, &named[i].key, err);
        ignored += !rc && named[i].key.role == LORA_IGNORED;
    }
    if (!rc)
        qsort(named, (size_t)n, sizeof(*named), by_key);
    for (int i = 0, end; i < n && !rc; i = end) {
        for (end = i + 1; end < n && named[end].key.part == named[i].key.part &&
                          strcmp(named[end].key.module, named[i].key.module) == 0;)
            end++;
        rc = add_layer(f, shelf, scales, named + i, end - i, err);
    }
    if (!rc && f->layers == 0)
        rc = error_set(err, ERR_FORMAT, "%s: there is no LoRA in it", f->st.label);
    if (!rc && ignored)
        log_warning("%s: %d tensors of DoRA are left out, as diffusers does", f->st.label, ignored);
    if (!rc) {
        lora_scales_fill(f->layer, f->layers);
        qsort(f->layer, (size_t)f->layers, sizeof(*f->layer), by_place);
    }
    lora_scales_close(&scales);
    free(named);
    return rc;
}

int lora_file_open(struct lora_file **out, const struct lora_shelf *shelf, const char *id,
                   const struct lora_path *path, struct error *err)
{
    struct stat info;
    *out = NULL;
    struct lora_file *f = calloc(1, sizeof(*f));
    if (!f || !(f->id = strdup(id))) {
        free(f);
        return error_set(err, ERR_NOMEM, "out of memory reading a LoRA");
    }
    int rc = safetensors_open(&f->st, path->file, id, err);
    if (!rc && fstat(f->st.fd, &info) < 0)
        rc = error_set(err, ERR_IO, "%s: cannot be read", id);
    if (!rc) {
        f->dev = info.st_dev;
        f->ino = info.st_ino;
        f->size = info.st_size;
        f->changed = info.st_mtim;
        rc = bind_layers(f, shelf, path->config, err);
    }
    if (rc)
        lora_file_close(&f);
    *out = f;
    return rc;
}

void lora_file_close(struct lora_file **file)
{
    struct lora_file *f = *file;
    if (!f)
        return;
    if (f->st.label)
        safetensors_close(&f->st);
    free(f->layer);
    free(f->id);
    free(f);
    *file = NULL;
}
