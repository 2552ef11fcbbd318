/* CLIP's vision tower, for the networks that have one. Private to src/networks. */
#ifndef LATENTD_CLIP_VISION_H
#define LATENTD_CLIP_VISION_H

#include "blocks.h"
#include "config.h"

enum { VISION_LAYERS_MAX = 64 };

struct vision_layer {
    weight norm1, qkv, out;
    weight norm2, fc1, fc2;
};

struct clip_vision {
    struct backend *be;
    struct weight_list packed;
    int side, patch, width, hidden, layers, heads, projection;
    float eps;
    enum act act;
    weight patches, pre_norm, post_norm, projected;
    struct vision_layer layer[VISION_LAYERS_MAX];
    float *start;       /* [1 + patches, width]: what the tokens are before the patches are added */
    float *class_token; /* [width], behind start; only while loading */
};

/* Reads a CLIPVisionConfig into NET. PROJECTION: the width of the picture's embedding. */
void clip_vision_read_config(struct clip_vision *net, const struct config *v, int projection);
/* Takes memory for what is read as numbers. clip_vision_free_numbers gives it back. */
int clip_vision_alloc_numbers(struct clip_vision *net, struct error *err);
void clip_vision_free_numbers(struct clip_vision *net);
/* The tower under PREFIX ("vision_model." or the like), and visual_projection. */
void clip_vision_load_tower(struct loader *l, struct clip_vision *net, const char *prefix);
/* After the last load: token 0 is the class token, which has no patch to be added. */
void clip_vision_finish(struct clip_vision *net);
/* 1 + the patches of a picture. */
int clip_vision_tokens(const struct clip_vision *net);

#endif
