/* LoRA files: the names of their tensors, where they lie, what they hold. Private to src/weights. */
#ifndef LATENTD_LORA_H
#define LATENTD_LORA_H

#include <sys/types.h>

#include "weights_private.h"

enum { LORA_NAME_SIZE = 256, LORA_FILES_MAX = 12 /* kept open */ };

/* ---- lora_name.c: what the name of a tensor says ---- */

enum lora_role {
    LORA_DOWN,   /* [rank, in], [rank, in, k, k] */
    LORA_UP,     /* [out, rank], [out, rank, 1, 1] */
    LORA_ALPHA,  /* one number */
    LORA_IGNORED /* DoRA's magnitude, which diffusers leaves out too */
};
/* The module's name as diffusers has it, each '.' as '_' (kohya's names cannot be told apart otherwise), and
 * without the text encoder's "text_model_". */
struct lora_key {
    enum lora_part part;
    enum lora_role role;
    char module[LORA_NAME_SIZE];
};
/* Reads the name of a tensor in diffusers', PEFT's or kohya's naming; UNet blocks also by their SGM (LDM)
 * names, of which LAYERS is the UNet's layers_per_block. ERR_FORMAT: none of these; ERR_UNSUPPORTED: a kind
 * of adapter that is not built. */
int lora_key_parse(const char *name, int layers, struct lora_key *key, struct error *err);
/* The same spelling of a module's NAME as the loader knows it. False when it is too long. */
bool lora_module_name(enum lora_part part, const char *name, char *module);

/* ---- lora_find.c: from an id to a file ---- */

struct lora_path {
    char file[4096];   /* the real path */
    char config[4096]; /* of the adapter_config.json beside it, or "" */
};
/* Finds the LoRA ID below ROOT. ERR_NOT_FOUND: no such id, a hostile one, or a link that leaves ROOT. */
int lora_find(const char *root, const char *id, struct lora_path *path, struct error *err);

/* ---- lora_file.c: one file, its layers bound to the weights of the model ---- */

struct lora_module {
    enum lora_part part;
    char *name;     /* spelled as lora_key's */
    int item, slot; /* weight of the list, and which of its stacked parts */
};
struct lora_layer {
    const struct lora_module *module;
    const struct st_tensor *down, *up;
    int rank;
    double alpha; /* of its own tensor; NAN: there is none */
    float scale;  /* alpha / rank; NAN: not known yet */
};
struct lora_file {
    char *id;
    dev_t dev;
    ino_t ino;
    off_t size;
    struct timespec changed;
    struct safetensors st;
    struct lora_layer *layer; /* by part, item, slot */
    int layers;
    unsigned long number; /* of the load, never used twice */
    unsigned long used;   /* time of the last use */
};

struct lora_shelf {
    char *root, *base;
    struct weight_list *list[LORA_PARTS];
    struct pool *pool;
    struct lora_module *module; /* sorted by part and name */
    int modules;
    int unet_layers; /* layers_per_block */
    struct lora_file *file[LORA_FILES_MAX];
    unsigned long clock;
    struct lora_set *wanted, *merged; /* see lora_merge.c */
};

/* Opens and checks a file. ERR_INVALID: made for another base. Frees nothing of the caller's. */
int lora_file_open(struct lora_file **file, const struct lora_shelf *shelf, const char *id,
                   const struct lora_path *path, struct error *err);
void lora_file_close(struct lora_file **file);
/* NULL when the model has no such module. */
const struct lora_module *lora_module_find(const struct lora_shelf *shelf, enum lora_part part,
                                           const char *name);

/* ---- lora_scale.c: alpha where a layer has no tensor of it ---- */

struct lora_scales;
/* PEFT's configuration: of the file that ST has parsed, else from CONFIG, a path or "". *SCALES is NULL when
 * there is none. ST must outlive it. */
int lora_scales_open(struct lora_scales **scales, const struct safetensors *st, const char *config,
                     struct error *err);
void lora_scales_close(struct lora_scales **scales);
/* alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA, of the tensor NAME; NAN when SCALES has no
 * word on it. ERR_UNSUPPORTED: a regular expression that is not built. */
int lora_scale_of(const struct lora_scales *scales, enum lora_part part, const char *name, int rank,
                  float *scale, struct error *err);
/* Sets the scales that are still NAN, of all layers of a file. */
void lora_scales_fill(struct lora_layer *layer, int layers);

/* ---- lora_merge.c ---- */

enum { LORA_USES_MAX = 16 };
/* A set of LoRAs, and the weights made from it. */
struct lora_set {
    int uses;
    struct {
        const struct lora_file *file; /* valid while wanted; afterwards only NUMBER counts */
        unsigned long number;
        float strength;
    } use[LORA_USES_MAX];
    struct lora_made {
        weight *at;              /* of the network */
        weight original, merged; /* either is at AT */
    } * made;
    int count;
    bool in_use;
};
bool lora_set_same(const struct lora_set *a, const struct lora_set *b);
/* Memory that merging SET would take. */
void lora_set_need(const struct lora_shelf *shelf, const struct lora_set *set, enum dtype dtype,
                   struct lora_need *need);
/* Packs the merged weights of SET. */
int lora_set_make(const struct lora_shelf *shelf, struct lora_set *set, pass *p, struct error *err);
/* Puts the merged weights (USE) or the originals into the networks. */
void lora_set_use(struct lora_set *set, bool use);
void lora_set_free(struct lora_set **set, struct backend *be);

#endif
