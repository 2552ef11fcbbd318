/* The blocks that UNet and VAE are made of. Private to src/networks. Layouts as in tensor.h: image [N, H, W,
 * C], tokens [N, 1, T, C]. A forward function never frees what it is given and returns a new tensor. */
#ifndef LATENTD_BLOCKS_H
#define LATENTD_BLOCKS_H

#include "ops.h"
#include "weights.h"

enum {
    LATENT_CHANNELS_MAX = 64,                                  /* latent_channels */
    LEVELS_MAX = 6,                                            /* entries of block_out_channels */
    LAYERS_MAX = 4,                                            /* layers_per_block */
    DEPTH_MAX = 12,                                            /* transformer_layers_per_block */
    RESNETS_MAX = 2 * (LEVELS_MAX * (2 * LAYERS_MAX + 1) + 2), /* a video resnet counts twice */
    CROSS_MAX = (LEVELS_MAX * (2 * LAYERS_MAX + 1) + 1) * DEPTH_MAX * 2,
    LARGE_SIDE = 64,  /* of a level's pictures */
    PREFIX_SIZE = 160 /* "up_blocks.3.attentions.2.transformer_blocks.0" and the like */
};

/* Frees *X and puts Y there. */
void replace(pass *p, tensor *x, tensor y);
/* Upsample2D to the size of NEXT, a UNet's next skip: twice x's size, or one less where halving had rounded
 * up. W: the 3x3 convolution. */
tensor upsample_to(pass *p, const weight *w, tensor x, tensor next);

/* Whether pictures of level I are large (weight_source) at the size a UNet was made for. */
static inline bool level_is_large(int sample_size, int i)
{
    return sample_size >> i >= LARGE_SIDE;
}

/* What a request computes once, out of all blocks: each resnet projects the time embedding, each
 * cross-attention the text. Blocks remember their index in these lists; the weights are owned by the blocks.
 */
struct once {
    const weight *time[RESNETS_MAX];
    int times;
    const weight *text[CROSS_MAX];
    int texts;
};

/* ---- ResnetBlock2D ---- */

struct resnet {
    int groups;
    float eps;
    bool shortcut; /* in_c != out_c */
    int time;      /* index in once.time; -1: no time embedding (the VAE) */
    weight norm1, conv1, norm2, conv2, conv_shortcut, time_emb_proj;
};

struct resnet_shape {
    int in_c, out_c;
    int time_c; /* width of the time embedding; 0: none */
    int groups;
    float eps;
};

/* ONCE may be NULL when time_c is 0. */
void resnet_load(struct loader *l, struct resnet *r, struct resnet_shape s, struct once *once,
                 const char *prefix);
/* x [N, H, W, in_c], time [N, 1, 1, out_c] (already projected; data NULL: none) -> [N, H, W, out_c]. */
tensor resnet_forward(pass *p, const struct resnet *r, tensor x, tensor time);

/* ---- Transformer2DModel with BasicTransformerBlock ---- */

struct attn {
    int heads;
    int text;     /* index in once.text; -1: self-attention */
    weight qkv;   /* self: [3C, C] */
    weight q, kv; /* cross: [C, C], [2C, text width] */
    weight out;   /* [C, C] */
};

struct transformer_block {
    weight norm1, norm2, norm3;
    struct attn attn1, attn2;
    weight ff_in, ff_out; /* GEGLU [8C, C], linear [C, 4C] */
};

struct transformer {
    int groups, depth;
    weight norm, proj_in, proj_out;
    struct transformer_block block[DEPTH_MAX];
};

struct transformer_shape {
    int c, heads, depth, text_c, groups;
    bool only_cross; /* attn1 reads the text too */
};

void transformer_load(struct loader *l, struct transformer *t, struct transformer_shape s, struct once *once,
                      const char *prefix);
/* x [N, H, W, C]; text[i]: keys and values [N, 1, S, 2C] of cross-attention i -> [N, H, W, C]. */
tensor transformer_forward(pass *p, const struct transformer *t, tensor x, const tensor *text);

#endif
