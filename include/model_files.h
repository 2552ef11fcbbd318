/* The files of a model. It is a folder in diffusers layout, or one checkpoint file in the original naming
 * (LDM of SD 1.x and 2.x, SGM of SDXL), which then stands for such a folder: of "dir/x.safetensors", the
 * component "dir/x.safetensors/unet" gives its tensors through weights_open() under diffusers' names and
 * shapes, and its config.json through the functions here: from dir/unet/config.json where somebody put one,
 * else the published one of the family. So whoever loads a component takes a path and need not know which it
 * is. */
#ifndef LATENTD_MODEL_FILES_H
#define LATENTD_MODEL_FILES_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

struct cJSON;

/* Where the model ID is, into PATH[size]: the folder that model_find() finds; or the one *.safetensors at its
 * top when it holds no model_index.json; or, for an ID that ends in .safetensors, that file. Errors of
 * model_find(). */
int model_source(const char *root, const char *id, char *path, size_t size, struct error *err);
/* Whether PATH is a single-file checkpoint. */
bool model_is_single_file(const char *path);
/* DIR/NAME as malloc'ed, NUL-terminated text. ERR_NOT_FOUND: there is none. */
char *model_text(const char *dir, const char *name, size_t max, struct error *err);
/* The same, parsed. Free with cJSON_Delete. */
struct cJSON *model_json(const char *dir, const char *name, size_t max, struct error *err);
/* The real folder of the tokenizer DIR ("…/tokenizer" or "…/tokenizer_2") into FOLDER[size]. A single file
 * has none inside: it is the folder of that name beside the file, else one of CLIP's in MODEL_DIR (ROOT);
 * they all have the same words, and *PAD says which padding the family wants when it may differ from what the
 * folder says (else NULL). ERR_NOT_FOUND says which folders would do. */
int model_tokenizer_folder(const char *root, const char *dir, char *folder, size_t size, const char **pad,
                           struct error *err);

#endif
