/* The LoRAs of a model: the files that are open, the set that a request asks for, the set that is merged. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "log.h"
#include "lora.h"

/* ---- The modules of the model ---- */

static int by_module(const void *a, const void *b)
{
    const struct lora_module *x = a, *y = b;
    return x->part != y->part ? (x->part < y->part ? -1 : 1) : strcmp(x->name, y->name);
}

const struct lora_module *lora_module_find(const struct lora_shelf *shelf, enum lora_part part,
                                           const char *name)
{
    struct lora_module key = {.part = part, .name = (char *)(uintptr_t)name};
    return bsearch(&key, shelf->module, (size_t)shelf->modules, sizeof(key), by_module);
}

static int add_modules(struct lora_shelf *shelf, enum lora_part part, struct error *err)
{
    const struct weight_list *list = shelf->list[part];
    char name[LORA_NAME_SIZE];
    for (int item = 0; list && item < list->count; item++) {
        const struct weight_origin *o = &list->origin[item];
        for (int slot = 0; slot < WEIGHT_PARTS_MAX && o->name[slot]; slot++) {
            struct lora_module *m = &shelf->module[shelf->modules];
            if (!lora_module_name(part, o->name[slot], name))
                return error_set(err, ERR_INTERNAL, "the module name %.100s... is too long", o->name[slot]);
            *m = (struct lora_module){.part = part, .name = strdup(name), .item = item, .slot = slot};
            if (!m->name)
                return error_set(err, ERR_NOMEM, "out of memory listing the model's modules");
            shelf->modules++;
        }
    }
    return 0;
}

/* layers_per_block: how many ResNet blocks the first down block has. */
static int count_layers(const struct lora_shelf *shelf)
{
    char name[LORA_NAME_SIZE];
    for (int i = 0;; i++) {
        snprintf(name, sizeof(name), "down_blocks_0_resnets_%d_conv1", i);
        if (!lora_module_find(shelf, LORA_UNET, name))
            return i;
    }
}

static int list_modules(struct lora_shelf *shelf, struct error *err)
{
    size_t most = 1;
    for (enum lora_part part = 0; part < LORA_PARTS; part++)
        most += shelf->list[part] ? (size_t)shelf->list[part]->count * WEIGHT_PARTS_MAX : 0;
    shelf->module = calloc(most, sizeof(*shelf->module));
    if (!shelf->module)
        return error_set(err, ERR_NOMEM, "out of memory listing the model's modules");
    for (enum lora_part part = 0; part < LORA_PARTS; part++)
        if (add_modules(shelf, part, err))
            return err->code;
    qsort(shelf->module, (size_t)shelf->modules, sizeof(*shelf->module), by_module);
    shelf->unet_layers = count_layers(shelf);
    return 0;
}

/* ---- Open and close ---- */

int lora_shelf_open(struct lora_shelf **out, const struct lora_shelf_options *opt, struct error *err)
{
    struct lora_shelf *shelf = calloc(1, sizeof(*shelf));
    int rc = 0;
    *out = NULL;
    if (!shelf)
        return error_set(err, ERR_NOMEM, "out of memory opening the LoRA shelf");
    shelf->root = strdup(opt->root);
    shelf->base = strdup(opt->base);
    shelf->pool = opt->pool;
    memcpy(shelf->list, opt->list, sizeof(shelf->list));
    if (!shelf->root || !shelf->base)
        rc = error_set(err, ERR_NOMEM, "out of memory opening the LoRA shelf");
    else
        rc = list_modules(shelf, err);
    *out = shelf;
    if (rc)
        lora_shelf_close(out, NULL);
    return rc;
}

void lora_shelf_close(struct lora_shelf **out, struct backend *be)
{
    struct lora_shelf *shelf = *out;
    if (!shelf)
        return;
    lora_set_free(&shelf->merged, be);
    lora_set_free(&shelf->wanted, be);
    for (int i = 0; i < LORA_FILES_MAX; i++)
        lora_file_close(&shelf->file[i]);
    for (int i = 0; i < shelf->modules; i++)
        free(shelf->module[i].name);
    free(shelf->module);
    free(shelf->root);
    free(shelf->base);
    free(shelf);
    *out = NULL;
}

void lora_shelf_drop(struct lora_shelf *shelf, struct backend *be)
{
    lora_set_free(&shelf->merged, be);
}

/* ---- The files ---- */

static bool is_same_file(const struct lora_file *f, const struct stat *s)
{
    return f->dev == s->st_dev && f->ino == s->st_ino && f->size == s->st_size &&
           f->changed.tv_sec == s->st_mtim.tv_sec && f->changed.tv_nsec == s->st_mtim.tv_nsec;
}

static bool is_wanted(const struct lora_shelf *shelf, const struct lora_file *f)
{
    for (int i = 0; i < shelf->wanted->uses; i++)
        if (shelf->wanted->use[i].file == f)
            return true;
    return false;
}

/* A free place: that of the file whose last use is the longest ago, when all are taken. */
static struct lora_file **free_place(struct lora_shelf *shelf)
{
    struct lora_file **place = NULL;
    for (int i = 0; i < LORA_FILES_MAX; i++) {
        struct lora_file **f = &shelf->file[i];
        if (!*f)
            return f;
        if (!is_wanted(shelf, *f) && (!place || (*f)->used < (*place)->used))
            place = f;
    }
    if (place)
        lora_file_close(place);
    return place;
}

/* The file of ID, opened unless it is and has not changed since. */
static int get_file(struct lora_shelf *shelf, const char *id, struct lora_file **out, struct error *err)
{
    struct lora_path path;
    struct stat info;
    int rc = lora_find(shelf->root, id, &path, err);
    if (rc)
        return rc;
    if (stat(path.file, &info) < 0)
        return error_set(err, ERR_NOT_FOUND, "LoRA \"%.200s\" went away", id);
    for (int i = 0; i < LORA_FILES_MAX; i++) {
        *out = shelf->file[i];
        if (*out && strcmp((*out)->id, id) == 0 && is_same_file(*out, &info)) {
            (*out)->used = ++shelf->clock;
            return 0;
        }
    }
    struct lora_file **place = free_place(shelf);
    if (!place)
        return error_set(err, ERR_INVALID, "more than %d LoRAs at once", (int)LORA_FILES_MAX);
    rc = lora_file_open(place, shelf, id, &path, err);
    if (rc)
        return rc;
    *out = *place;
    (*out)->number = (*out)->used = ++shelf->clock;
    log_info("LoRA %s: %d layers", id, (*out)->layers);
    return 0;
}

/* ---- A request ---- */

/* The client's words for WHY; those go to the log. */
static int refuse(const struct lora_shelf *shelf, const char *id, const struct error *why, struct error *err)
{
    if (why->code == ERR_NOMEM)
        return error_set(err, ERR_NOMEM, "%s", why->msg);
    log_warning("LoRA %.200s: %s", id, why->msg);
    if (why->code == ERR_NOT_FOUND)
        return error_set(err, ERR_LORA, "LoRa repository '%.200s' not found", id);
    if (why->code == ERR_INVALID)
        return error_set(err, ERR_LORA, "LoRa incompatible with base model: '%.200s'", shelf->base);
    return error_set(err, ERR_LORA, "Unable to load LoRas for adapter '%.200s'", id);
}

/* Adds one LoRA to the wanted set; at strength 0 it is checked and left out. */
static int want(struct lora_shelf *shelf, const struct lora_use *use, struct error *err)
{
    struct lora_set *set = shelf->wanted;
    struct lora_file *file = NULL;
    struct error why = {0};
    if (!isfinite(use->strength) || use->strength < 0)
        return error_set(err, ERR_LORA, "All strengths must be numbers greater than or equal to 0.0");
    if (get_file(shelf, use->id, &file, &why))
        return refuse(shelf, use->id, &why, err);
    if (use->strength == 0)
        return 0;
    set->use[set->uses].file = file;
    set->use[set->uses].number = file->number;
    set->use[set->uses++].strength = use->strength;
    return 0;
}

int lora_shelf_prepare(struct lora_shelf *shelf, enum dtype dtype, const struct lora_use *use, int count,
                       struct lora_need *need, struct error *err)
{
    *need = (struct lora_need){0};
    if (count > LORA_USES_MAX || count < 0)
        return error_set(err, ERR_LORA, "Too many LoRas provided. Maximum is %d", (int)LORA_USES_MAX);
    lora_set_free(&shelf->wanted, NULL);
    shelf->wanted = calloc(1, sizeof(*shelf->wanted));
    if (!shelf->wanted)
        return error_set(err, ERR_NOMEM, "out of memory preparing LoRAs");
    for (int i = 0; i < count; i++)
        if (want(shelf, &use[i], err))
            return err->code;
    if (shelf->wanted->uses == 0 || (shelf->merged && lora_set_same(shelf->merged, shelf->wanted)))
        return 0;
    lora_set_use(shelf->merged, false); /* it goes in any case, and sizes are those of the originals */
    lora_set_need(shelf, shelf->wanted, dtype, need);
    return 0;
}

int lora_shelf_apply(struct lora_shelf *shelf, pass *p, struct error *err)
{
    struct lora_set *set = shelf->wanted;
    if (!set)
        return error_set(err, ERR_INTERNAL, "LoRAs are applied before they are prepared");
    bool none = set->uses == 0, known = shelf->merged && lora_set_same(shelf->merged, set);
    if (none || known) {
        lora_set_use(shelf->merged, !none);
        return 0;
    }
    lora_set_free(&shelf->merged, p->be);
    struct error why = {0};
    p->err = &why;
    lora_set_make(shelf, set, p, &why);
    p->err = err;
    if (why.code) {
        int rc = why.code == ERR_DEVICE ? error_set(err, ERR_DEVICE, "%s", why.msg)
                                        : refuse(shelf, set->use[0].file->id, &why, err);
        lora_set_free(&shelf->wanted, p->be);
        return rc;
    }
    shelf->merged = set;
    shelf->wanted = NULL;
    lora_set_use(set, true);
    return 0;
}
