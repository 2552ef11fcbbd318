/* Tensors of one model component, memory-mapped from safetensors files.
 *
 * File format: https://huggingface.co/docs/safetensors (8-byte header length, JSON header, data). The header
 * is checked in full before any tensor is handed out: known dtype, no overflow, ranges inside the file, not
 * overlapping, sizes that match shapes. Lifetime: open → close; host_arrays point into the mapping. */
#ifndef LATENTD_WEIGHTS_H
#define LATENTD_WEIGHTS_H

#include "ops.h"

struct weights;

/* Opens DIR/STEM.safetensors, DIR/STEM.fp16.safetensors, or the shards that DIR/STEM.safetensors.index.json
 * (or its fp16 twin) lists; VARIANT "fp16" prefers the fp16 files, NULL the plain ones, and each falls back
 * to the other. Pickle files (.bin, .ckpt, .pt) alone are ERR_UNSUPPORTED with a sentence on how to convert
 * them. STEM: "diffusion_pytorch_model" for UNet and VAE, "model" for text encoders. */
int weights_open(struct weights **w, const char *dir, const char *stem, const char *variant,
                 struct error *err);
void weights_close(struct weights **w);
/* Whether the tensor NAME is there; for layouts that come under several names. */
bool weights_has(const struct weights *w, const char *name);

/* The weights that a network has packed so far, so that closing it needs no second list of its fields. The
 * pointers go into the network's own struct, which must not move. */
struct packed_store;
struct weight_list {
    weight **item;
    struct weight_origin *origin; /* of each item, when the loader was told to keep them */
    struct weights *weights;      /* kept open for them, see weight_list_keep() */
    uint64_t asked;               /* a hash of what was checked before anything was packed */
    struct packed_store *store;   /* where they are kept from start to start; NULL: nowhere */
    int count, capacity;
};
/* What a weight was packed from. The arrays point into list->weights. */
struct weight_origin {
    char *name[WEIGHT_PARTS_MAX]; /* of the module, a part each: "mid_block.attentions.0.proj_in" */
    struct weight_source source;
};
/* Leaves *W open with the list, so that its weights can be packed again, and sets *W to NULL. The pages that
 * it has mapped are given back. */
void weight_list_keep(struct weight_list *list, struct weights **w);
/* Frees every weight of the list, what it keeps, and the list. */
void weight_list_free(struct weight_list *list, struct backend *be);

/* Loading reads as a list of names. The loader keeps the first error; when SKIP_PACK is set it only checks,
 * so that every name and shape of a component is checked before the first byte is packed. */
struct loader {
    struct weights *weights;
    struct backend *be;
    bool check_only;
    bool int8;  /* what is loaded next may be kept in int8 (weight_source); see loader_int8() */
    bool large; /* what is loaded next meets large pictures (weight_source); of 3x3 convolutions */
    bool keep;  /* remember the origin of matrices and convolutions; call weight_list_keep() at the end */
    struct weight_list *packed; /* gets every weight packed */
    struct error *err;
};

/* Sets l->int8 and returns what it was. Networks of pictures mark what lies between their first and last
 * convolutions, but neither what runs once a request nor the shortcuts: docs/optimisation.md has the errors
 * that decided it. */
static inline bool loader_int8(struct loader *l, bool int8)
{
    bool was = l->int8;
    l->int8 = int8;
    return was;
}

/* Each finds NAME.weight (and NAME.bias) with exactly the given shape, else ERR_FORMAT that names file,
 * tensor, expected and found. Old names are tried when the new one is absent: VAE attention
 * query/key/value/proj_attn for to_q/to_k/to_v/to_out.0, with their [C, C, 1, 1] or [C, C] shapes. */
void load_conv2d(struct loader *l, weight *w, int out_c, int in_c, int k, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
/* The same, 3x3, for a convolution that is called with .stride = 2 (Downsample2D). */
void load_conv2d_down(struct loader *l, weight *w, int out_c, int in_c, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* The same, 3x3, for a convolution that is called with .upsample (Upsample2D): but for odd sides, or always.
 */
void load_conv2d_up(struct loader *l, weight *w, int out_c, int in_c, enum upsampling how, const char *fmt,
                    ...) __attribute__((format(printf, 6, 7)));
/* torch.nn.Conv3d with a kernel of (3, 1, 1), for conv_temporal: NAME.weight [out_c, in_c, 3, 1, 1]. SCALE
 * multiplies weight and bias. */
void load_conv_temporal(struct loader *l, weight *w, int out_c, int in_c, float scale, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
/* A linear layer (or a 1x1 convolution) with a bias, as the 1x1 convolution that it is: conv2d can add a
 * vector to each picture, linear cannot. SCALE multiplies weight and bias. */
void load_conv1x1(struct loader *l, weight *w, int out_c, int in_c, float scale, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
/* in_c x out_c linear; BIAS: whether NAME.bias must be there. A [O, I, 1, 1] tensor is taken as [O, I]. */
void load_linear(struct loader *l, weight *w, int out_c, int in_c, bool bias, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
void load_geglu(struct loader *l, weight *w, int out_c, int in_c, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* The name made from FMT is followed by "." and each of names[parts], stacked along the outputs (QKV, KV);
 * each part has part_c outputs. */
void load_linear_parts(struct loader *l, weight *w, int parts, const char *const *names, int part_c, int in_c,
                       bool bias, const char *fmt, ...) __attribute__((format(printf, 8, 9)));
void load_norm(struct loader *l, weight *w, int c, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void load_embedding(struct loader *l, weight *w, int rows, int c, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* A convolution without bias whose K x K windows do not overlap (ViT's patches), as a linear layer over
 * windows cut by the caller: NAME.weight [out_c, in_c, K, K] read as [out_c, in_c * K * K]. */
void load_patches(struct loader *l, weight *w, int out_c, int in_c, int k, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
/* The tensor of exactly this NAME, [rows, c] or, when ROWS is 0, [c], as fp32 into OUT. Nothing is written
 * while check_only is set. */
void load_floats(struct loader *l, float *out, int rows, int c, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

/* How many tensors of the file no load_* call asked for (position_ids and the like), for the log. */
int weights_unused(const struct weights *w, const char **first_name);
/* How the first floating-point tensor (by name) is stored. A model stored in fp16 draws its noise in fp16. */
enum dtype weights_dtype(const struct weights *w);

/* Where a model lives. Looks for ROOT/models--org--name/snapshots/<refs/main>/ (Hugging Face hub cache; with
 * one snapshot and no ref, that one), then ROOT/org/name/. Writes the folder into PATH[size]. ID must be
 * org/name-like: no "..", no leading "/", no empty part; else ERR_INVALID. Missing: ERR_NOT_FOUND, says both
 * places. */
int model_find(const char *root, const char *id, char *path, size_t size, struct error *err);

/* ---- LoRA: low-rank additions to the matrices of a loaded model, merged into them (see docs/loras.md) ----
 */

/* W' = W + strength * alpha / rank * up down (Hu et al., 2021; LoCon for convolutions). The touched weights
 * are packed again beside the originals, and pointers are swapped; without LoRAs the originals are back, byte
 * for byte. */
struct lora_shelf;
struct pool;
enum lora_part { LORA_UNET, LORA_TEXT, LORA_TEXT_2, LORA_PARTS };

struct lora_shelf_options {
    const char *root; /* MODEL_DIR: nothing outside it is read */
    const char *base; /* the model's id, for error texts */
    struct weight_list
        *list[LORA_PARTS]; /* weights of the networks, loaded with `keep`; NULL: there is none */
    struct pool *pool;     /* for the additions; may be NULL */
};
struct lora_use {
    const char *id; /* org/name, or org/name/file.safetensors */
    float strength; /* at least 0 */
};
/* What merging would take now; all 0 when the set is in use, or was the last one merged. */
struct lora_need {
    size_t weights; /* bytes of packed weights beside the originals */
    size_t host;    /* of host memory while merging */
    size_t region;  /* of the pass's memory while merging */
};

/* The lists must outlive the shelf. */
int lora_shelf_open(struct lora_shelf **shelf, const struct lora_shelf_options *opt, struct error *err);
/* Puts the originals back and frees what was merged. BE: of the networks. */
void lora_shelf_close(struct lora_shelf **shelf, struct backend *be);
/* Finds, opens and checks the files of a request, and says what merging them takes. The set in use may be
 * taken out. A LoRA that cannot be had is ERR_LORA with the words for the client, the reason goes to the log.
 * Not safe for two threads. */
int lora_shelf_prepare(struct lora_shelf *shelf, enum dtype dtype, const struct lora_use *use, int count,
                       struct lora_need *need, struct error *err);
/* Merges what was prepared last. No pass may be running. After a failure the weights are the originals. */
int lora_shelf_apply(struct lora_shelf *shelf, pass *p, struct error *err);
/* Puts the originals back and frees what was merged, for when memory is short. */
void lora_shelf_drop(struct lora_shelf *shelf, struct backend *be);

#endif
