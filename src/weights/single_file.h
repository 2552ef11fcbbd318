/* Checkpoints in one file, original naming. Private to src/weights. */
#ifndef LATENTD_SINGLE_FILE_H
#define LATENTD_SINGLE_FILE_H

#include "safetensors.h"
#include "weights.h"

enum single_family { SINGLE_SD1, SINGLE_SD2, SINGLE_SDXL, SINGLE_PIX2PIX, SINGLE_FAMILIES };

/* When DIR is, or lies in, a *.safetensors file: its path into FILE[size], and the rest ("unet", or "" for
 * the file itself) into *COMPONENT. False: DIR is an ordinary path. */
bool single_file_split(const char *dir, char *file, size_t size, const char **component);
/* The family, as diffusers' infer_diffusers_model_type tells it. ERR_UNSUPPORTED names what it is when it is
 * another one. */
int single_file_family(const struct safetensors *st, enum single_family *family, struct error *err);
/* weights_open() for COMPONENT of FILE. */
int single_file_open(struct weights **w, const char *file, const char *component, struct error *err);

/* ldm_names.c: what the blocks of the UNet and the VAE are called in diffusers depends on where the others
 * end. */
enum { LDM_BLOCKS_MAX = 64 };
struct ldm_layout {
    struct {
        int block, layer;
    } in[LDM_BLOCKS_MAX], out[LDM_BLOCKS_MAX];
    int ups; /* up blocks of the VAE's decoder */
};
void ldm_layout_read(struct ldm_layout *layout, const struct safetensors *st);

enum { LDM_NAME_MAX = 256 };
/* diffusers' name of one tensor into OUT[LDM_NAME_MAX]; NAME is without the component's prefix. False: it has
 * none. */
bool ldm_unet_name(const struct ldm_layout *layout, const char *name, char *out);
bool ldm_vae_name(const struct ldm_layout *layout, const char *name, char *out);
/* OpenCLIP's text encoder. "attn.in_proj_weight" and "_bias" hold queries, keys and values one after the
 * other: *PARTS is then 3, and the name has "%c" where 'q', 'k' or 'v' belongs. TURN: the matrix lies the
 * other way round than diffusers has it. */
bool ldm_open_clip_name(const char *name, char *out, int *parts, bool *turn);

/* single_file_configs.c: the published file NAME of COMPONENT; NULL: there is none. */
const char *single_file_config(enum single_family family, const char *component, const char *name);

#endif
