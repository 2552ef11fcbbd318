/* What weights.c and loader.c share. */
#ifndef LATENTD_WEIGHTS_PRIVATE_H
#define LATENTD_WEIGHTS_PRIVATE_H

#include "safetensors.h"
#include "weights.h"

struct weights {
    struct safetensors *file; /* one, or one a shard */
    int files;
    struct st_tensor **tensor; /* of all files, sorted by name */
    int count;
};

struct st_tensor *weights_find(const struct weights *w, const char *name);

#endif
