/* Transformer2DModel: group norm, projection, transformer blocks over the pixels as tokens, projection,
 * residual. Source: diffusers models/transformers/transformer_2d.py, models/attention.py
 * (BasicTransformerBlock, FeedForward). */
#include <math.h>
#include <stdio.h>

#include "blocks.h"

/* The epsilons that diffusers fixes in code, not in config.json. */
static const float GROUP_EPS = 1e-6f, LAYER_EPS = 1e-5f;

static void attn_load(struct loader *l, struct attn *a, int c, int heads, int text_c, struct once *once,
                      const char *prefix, const char *which)
{
    static const char *const qkv[] = {"to_q", "to_k", "to_v"}, *const kv[] = {"to_k", "to_v"};
    a->heads = heads;
    a->text = -1;
    if (text_c) {
        load_linear(l, &a->q, c, c, false, "%s.%s.to_q", prefix, which);
        bool int8 = loader_int8(l, false); /* once a request */
        load_linear_parts(l, &a->kv, 2, kv, c, text_c, false, "%s.%s", prefix, which);
        loader_int8(l, int8);
        a->text = once->texts;
        once->text[once->texts++] = &a->kv;
    } else {
        load_linear_parts(l, &a->qkv, 3, qkv, c, c, false, "%s.%s", prefix, which);
    }
    load_linear(l, &a->out, c, c, true, "%s.%s.to_out.0", prefix, which);
}

static void block_load(struct loader *l, struct transformer_block *b, struct transformer_shape s,
                       struct once *once, const char *prefix)
{
    load_norm(l, &b->norm1, s.c, "%s.norm1", prefix);
    attn_load(l, &b->attn1, s.c, s.heads, s.only_cross ? s.text_c : 0, once, prefix, "attn1");
    load_norm(l, &b->norm2, s.c, "%s.norm2", prefix);
    attn_load(l, &b->attn2, s.c, s.heads, s.text_c, once, prefix, "attn2");
    load_norm(l, &b->norm3, s.c, "%s.norm3", prefix);
    load_geglu(l, &b->ff_in, 8 * s.c, s.c, "%s.ff.net.0.proj", prefix);
    load_linear(l, &b->ff_out, s.c, 4 * s.c, true, "%s.ff.net.2", prefix);
}

void transformer_load(struct loader *l, struct transformer *t, struct transformer_shape s, struct once *once,
                      const char *prefix)
{
    char name[2 * PREFIX_SIZE];
    t->groups = s.groups;
    t->depth = s.depth;
    load_norm(l, &t->norm, s.c, "%s.norm", prefix);
    /* a linear layer or a 1x1 convolution (use_linear_projection): the same numbers either way */
    load_linear(l, &t->proj_in, s.c, s.c, true, "%s.proj_in", prefix);
    for (int i = 0; i < s.depth; i++) {
        snprintf(name, sizeof(name), "%s.transformer_blocks.%d", prefix, i);
        block_load(l, &t->block[i], s, once, name);
    }
    load_linear(l, &t->proj_out, s.c, s.c, true, "%s.proj_out", prefix);
}

/* x [N, 1, T, C], text as for transformer_forward -> attention of x normed, projected, plus x. */
static tensor attn_forward(pass *p, const weight *norm, const struct attn *a, tensor x, const tensor *text)
{
    int c = x.c;
    struct attention_args args = {.heads = a->heads, .scale = 1 / sqrtf((float)(c / a->heads))};
    tensor h, y;
    if (a->text < 0) {
        h = layer_norm_linear(p, norm, LAYER_EPS, &a->qkv, x, (struct linear_args){0}); /* N 1 T 3C */
        y = attention(p, tensor_channels(h, 0, c), tensor_channels(h, c, c), tensor_channels(h, 2 * c, c),
                      args);
    } else {
        tensor kv = text[a->text];                                                    /* N 1 S 2C */
        h = layer_norm_linear(p, norm, LAYER_EPS, &a->q, x, (struct linear_args){0}); /* N 1 T C */
        y = attention(p, h, tensor_channels(kv, 0, c), tensor_channels(kv, c, c), args);
    }
    tensor_free(p, &h);
    replace(p, &y, linear(p, &a->out, y, (struct linear_args){.residual = x})); /* N 1 T C */
    return y;
}

/* *x [N, 1, T, C] becomes the block's output, of the same shape. */
static void block_forward(pass *p, const struct transformer_block *b, tensor *x, const tensor *text)
{
    replace(p, x, attn_forward(p, &b->norm1, &b->attn1, *x, text));
    replace(p, x, attn_forward(p, &b->norm2, &b->attn2, *x, text));
    tensor h =
        layer_norm_linear(p, &b->norm3, LAYER_EPS, &b->ff_in, *x, (struct linear_args){0}); /* N 1 T 4C */
    replace(p, x, linear(p, &b->ff_out, h, (struct linear_args){.residual = *x}));          /* N 1 T C */
    tensor_free(p, &h);
}

tensor transformer_forward(pass *p, const struct transformer *t, tensor x, const tensor *text)
{
    tensor h = group_norm(p, &t->norm, x, t->groups, GROUP_EPS);                          /* N H W C */
    replace(p, &h, linear(p, &t->proj_in, tensor_as_tokens(h), (struct linear_args){0})); /* N 1 HW C */
    for (int i = 0; i < t->depth; i++)
        block_forward(p, &t->block[i], &h, text);
    replace(p, &h, linear(p, &t->proj_out, h, (struct linear_args){.residual = tensor_as_tokens(x)}));
    return tensor_as_image(h, x.h, x.w); /* N H W C */
}
