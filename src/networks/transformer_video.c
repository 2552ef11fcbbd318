/* TransformerSpatioTemporalModel: for each layer a transformer block over the positions of every frame, then
 * one over the frames of every position, and a learned mixture of both. Source: diffusers
 * models/transformers/transformer_temporal.py, models/attention.py (BasicTransformerBlock,
 * TemporalBasicTransformerBlock).
 *
 * Three rearrangements, all exact:
 *   - attention over the frames of a position needs no transposed copy: a row of a frame's positions and
 *     channels is one token with as many heads as there are positions times heads (tensor_over_frames);
 *   - the cross-attentions read one token, so each is a vector a frame, computed once a request;
 *   - the mixture share * x + (1 - share) * (y + ff(y)), where the temporal block began at x + position,
 *     is blend(x + position, y) + (1 - share) * ff(y) - share * position: the last product adds all of it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "video.h"

/* The epsilons that diffusers fixes in code. */
static const float GROUP_EPS = 1e-6f, LAYER_EPS = 1e-5f;

/* ---- Loading ---- */

/* Queries and keys of an attention over one token, and the norm before it, change nothing: they are checked
 * as the rest is, and left in the file. */
static void one_token_load(struct loader *l, struct one_token *a, int c, int token_c, const char *prefix)
{
    struct loader look = *l;
    weight none = {0};
    look.check_only = true;
    load_norm(&look, &none, c, "%s.norm2", prefix);
    load_linear(&look, &none, c, c, false, "%s.attn2.to_q", prefix);
    load_linear(&look, &none, c, token_c, false, "%s.attn2.to_k", prefix);
    load_linear(l, &a->v, c, token_c, false, "%s.attn2.to_v", prefix);
    load_linear(l, &a->out, c, c, true, "%s.attn2.to_out.0", prefix);
}

static void spatial_load(struct loader *l, struct spatial_block *b, struct video_transformer_shape s,
                         const char *prefix)
{
    static const char *const qkv[] = {"to_q", "to_k", "to_v"};
    int c = s.c;
    load_norm(l, &b->norm1, c, "%s.norm1", prefix);
    load_linear_parts(l, &b->qkv, 3, qkv, c, c, false, "%s.attn1", prefix);
    load_conv1x1(l, &b->out, c, c, 1, "%s.attn1.to_out.0", prefix);
    one_token_load(l, &b->attn2, c, s.token_c, prefix);
    load_norm(l, &b->norm3, c, "%s.norm3", prefix);
    load_geglu(l, &b->ff_in, 8 * c, c, "%s.ff.net.0.proj", prefix);
    load_conv1x1(l, &b->ff_out, c, 4 * c, 1, "%s.ff.net.2", prefix);
}

static void temporal_load(struct loader *l, struct temporal_block *b, struct video_transformer_shape s,
                          float share, const char *prefix)
{
    int c = s.c;
    load_norm(l, &b->norm_in, c, "%s.norm_in", prefix);
    load_geglu(l, &b->in_geglu, 8 * c, c, "%s.ff_in.net.0.proj", prefix);
    load_linear(l, &b->in_out, c, 4 * c, true, "%s.ff_in.net.2", prefix);
    load_norm(l, &b->norm1, c, "%s.norm1", prefix);
    load_linear(l, &b->q, c, c, false, "%s.attn1.to_q", prefix);
    load_linear(l, &b->k, c, c, false, "%s.attn1.to_k", prefix);
    load_linear(l, &b->v, c, c, false, "%s.attn1.to_v", prefix);
    load_conv1x1(l, &b->out, c, c, 1, "%s.attn1.to_out.0", prefix);
    one_token_load(l, &b->attn2, c, s.token_c, prefix);
    load_norm(l, &b->norm3, c, "%s.norm3", prefix);
    load_geglu(l, &b->ff_in, 8 * c, c, "%s.ff.net.0.proj", prefix);
    load_conv1x1(l, &b->ff_out, c, 4 * c, 1 - share, "%s.ff.net.2", prefix);
}

void video_transformer_load(struct loader *l, struct video_transformer *t, struct video_transformer_shape s,
                            struct video_transformers *all, const char *prefix)
{
    char name[2 * PREFIX_SIZE];
    float mix = 0;
    t->c = s.c;
    t->heads = s.heads;
    t->depth = s.depth;
    t->index = all->count;
    t->first = all->blocks;
    all->item[all->count++] = t;
    all->blocks += s.depth;
    load_norm(l, &t->norm, s.c, "%s.norm", prefix);
    load_linear(l, &t->proj_in, s.c, s.c, true, "%s.proj_in", prefix);
    load_linear(l, &t->time_pos1, 4 * s.c, s.c, true, "%s.time_pos_embed.linear_1", prefix);
    load_linear(l, &t->time_pos2, s.c, 4 * s.c, true, "%s.time_pos_embed.linear_2", prefix);
    load_floats(l, &mix, 0, 1, "%s.time_mixer.mix_factor", prefix);
    t->share = 1 / (1 + expf(-mix));
    for (int i = 0; i < s.depth; i++) {
        snprintf(name, sizeof(name), "%s.transformer_blocks.%d", prefix, i);
        spatial_load(l, &t->spatial[i], s, name);
        snprintf(name, sizeof(name), "%s.temporal_transformer_blocks.%d", prefix, i);
        temporal_load(l, &t->temporal[i], s, t->share, name);
    }
    load_linear(l, &t->proj_out, s.c, s.c, true, "%s.proj_out", prefix);
}

/* ---- Once a request ---- */

/* token [BF, 1, 1, token_c] -> [BF, 1, 1, C]. */
static tensor one_token_forward(pass *p, const struct one_token *a, tensor token)
{
    tensor v = linear(p, &a->v, token, (struct linear_args){0}); /* BF 1 1 C */
    replace(p, &v, linear(p, &a->out, v, (struct linear_args){0}));
    return v;
}

/* The position of each frame in time, NUMBERS[rows] -> [rows, 1, 1, C] in POSITION, and LESS of it. */
static void time_positions(pass *p, const struct video_transformer *t, const float *numbers, int rows,
                           tensor *position, tensor *less)
{
    tensor e = timestep_embedding(p, numbers, rows, t->c, true, 0);                     /* rows 1 1 C */
    replace(p, &e, linear(p, &t->time_pos1, e, (struct linear_args){.act = ACT_SILU})); /* rows 1 1 4C */
    replace(p, &e, linear(p, &t->time_pos2, e, (struct linear_args){.f32_out = true})); /* rows 1 1 C */
    *position = convert(p, e, pass_dtype(p));
    replace(p, &e, lincomb(p, 1, (float[]){-t->share}, &e));
    *less = convert(p, e, pass_dtype(p));
    tensor_free(p, &e);
}

void video_vectors_begin(pass *p, const struct video_transformers *all, tensor token, int frames,
                         struct video_vectors *v)
{
    float *numbers = calloc((size_t)token.n, sizeof(*numbers));
    if (!numbers) {
        error_set(p->err, ERR_NOMEM, "out of memory starting a request");
        return;
    }
    for (int i = 0; i < token.n; i++)
        numbers[i] = (float)(i % frames);
    for (int i = 0; i < all->count; i++) {
        const struct video_transformer *t = all->item[i];
        time_positions(p, t, numbers, token.n, &v->position[i], &v->less[i]);
        for (int k = 0; k < t->depth; k++) {
            v->spatial[t->first + k] = one_token_forward(p, &t->spatial[k].attn2, token);
            v->temporal[t->first + k] = one_token_forward(p, &t->temporal[k].attn2, token);
        }
    }
    free(numbers);
}

void video_vectors_end(pass *p, struct video_vectors *v)
{
    for (int i = 0; i < VIDEO_TRANSFORMERS_MAX; i++) {
        tensor_free(p, &v->position[i]);
        tensor_free(p, &v->less[i]);
    }
    for (int i = 0; i < VIDEO_BLOCKS_MAX; i++) {
        tensor_free(p, &v->spatial[i]);
        tensor_free(p, &v->temporal[i]);
    }
}

/* ---- One call ---- */

/* x [BF, 1, T, C] -> the spatial block's output, plus POSITION [BF, 1, 1, C]. ATTN2: the cross-attention's
 * vector a frame. */
static tensor spatial_forward(pass *p, const struct spatial_block *b, int heads, tensor x, tensor attn2,
                              tensor position)
{
    int c = x.c;
    struct attention_args args = {.heads = heads, .scale = 1 / sqrtf((float)(c / heads))};
    tensor qkv =
        layer_norm_linear(p, &b->norm1, LAYER_EPS, &b->qkv, x, (struct linear_args){0}); /* BF 1 T 3C */
    tensor n = attention(p, tensor_channels(qkv, 0, c), tensor_channels(qkv, c, c),
                         tensor_channels(qkv, 2 * c, c), args); /* BF 1 T C */
    tensor_free(p, &qkv);
    tensor h = conv2d(p, &b->out, n, (struct conv2d_args){.add_bc = attn2, .residual = x}); /* BF 1 T C */
    tensor_free(p, &n);
    n = layer_norm_linear(p, &b->norm3, LAYER_EPS, &b->ff_in, h, (struct linear_args){0}); /* BF 1 T 4C */
    replace(p, &h, conv2d(p, &b->ff_out, n, (struct conv2d_args){.add_bc = position, .residual = h}));
    tensor_free(p, &n);
    return h;
}

/* n [BF, 1, T, C] already normed -> attention over the frames of each position, before the projection. */
static tensor attention_over_frames(pass *p, const struct temporal_block *b, int heads, tensor n, int frames)
{
    int positions = n.w;
    struct attention_args args = {.heads = positions * heads, .scale = 1 / sqrtf((float)(n.c / heads))};
    tensor q = linear(p, &b->q, n, (struct linear_args){0}); /* BF 1 T C */
    tensor k = linear(p, &b->k, n, (struct linear_args){0}); /* BF 1 T C */
    tensor v = linear(p, &b->v, n, (struct linear_args){0}); /* BF 1 T C */
    tensor y = attention(p, tensor_over_frames(q, frames), tensor_over_frames(k, frames),
                         tensor_over_frames(v, frames), args); /* B 1 F TC */
    tensor_free(p, &q);
    tensor_free(p, &k);
    tensor_free(p, &v);
    return tensor_of_frames(y, frames, positions); /* BF 1 T C */
}

/* x [BF, 1, T, C], the spatial output plus position -> the mixture of both blocks. LESS: -share * position.
 */
static tensor temporal_forward(pass *p, const struct temporal_block *b, int heads, float share, tensor x,
                               int frames, tensor attn2, tensor less)
{
    tensor n = layer_norm_linear(p, &b->norm_in, LAYER_EPS, &b->in_geglu, x,
                                 (struct linear_args){0});                    /* BF 1 T 4C */
    tensor h = linear(p, &b->in_out, n, (struct linear_args){.residual = x}); /* BF 1 T C */
    replace(p, &n, layer_norm(p, &b->norm1, h, LAYER_EPS));                   /* BF 1 T C */
    replace(p, &n, attention_over_frames(p, b, heads, n, frames));            /* BF 1 T C */
    replace(p, &h, conv2d(p, &b->out, n, (struct conv2d_args){.add_bc = attn2, .residual = h}));
    tensor_free(p, &n);
    n = layer_norm_linear(p, &b->norm3, LAYER_EPS, &b->ff_in, h, (struct linear_args){0}); /* BF 1 T 4C */
    replace(p, &h, blend(p, x, h, share));                                                 /* BF 1 T C */
    replace(p, &h, conv2d(p, &b->ff_out, n, (struct conv2d_args){.add_bc = less, .residual = h}));
    tensor_free(p, &n);
    return h;
}

tensor video_transformer_forward(pass *p, const struct video_transformer *t, tensor x, int frames,
                                 const struct video_vectors *v)
{
    tensor h = group_norm(p, &t->norm, x, VIDEO_GROUPS, GROUP_EPS);                       /* BF H W C */
    replace(p, &h, linear(p, &t->proj_in, tensor_as_tokens(h), (struct linear_args){0})); /* BF 1 HW C */
    for (int i = 0; i < t->depth; i++) {
        const tensor *spatial = &v->spatial[t->first + i], *temporal = &v->temporal[t->first + i];
        replace(p, &h, spatial_forward(p, &t->spatial[i], t->heads, h, *spatial, v->position[t->index]));
        replace(p, &h,
                temporal_forward(p, &t->temporal[i], t->heads, t->share, h, frames, *temporal,
                                 v->less[t->index]));
    }
    replace(p, &h, linear(p, &t->proj_out, h, (struct linear_args){.residual = tensor_as_tokens(x)}));
    return tensor_as_image(h, x.h, x.w); /* BF H W C */
}
