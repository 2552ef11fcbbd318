/* The blocks that the networks of Stable Video Diffusion are made of. Private to src/networks. The F frames
 * of B videos lie one behind the other: image [BF, H, W, C], tokens [BF, 1, T, C]. A forward function never
 * frees what it is given and returns a new tensor. */
#ifndef LATENTD_VIDEO_H
#define LATENTD_VIDEO_H

#include "blocks.h"

enum {
    VIDEO_GROUPS = 32, /* diffusers fixes it in code */
    VIDEO_TRANSFORMERS_MAX = LEVELS_MAX * (2 * LAYERS_MAX + 1) + 1,
    VIDEO_BLOCKS_MAX = VIDEO_TRANSFORMERS_MAX * DEPTH_MAX
};

/* ---- SpatioTemporalResBlock ---- */

/* Its temporal half adds to what the spatial half gave, and AlphaBlender takes a fixed share of both:
 * share * s + (1 - share) * (s + h) = s + (1 - share) * h. So (1 - share) goes into conv2 when it is loaded.
 */
struct video_resnet {
    struct resnet spatial;
    float eps; /* of the temporal half */
    int time;  /* of the temporal half, in once.time; -1: none */
    weight norm1, conv1, norm2, conv2, time_emb_proj;
};

struct video_resnet_shape {
    int in_c, out_c, time_c;
    float eps, temporal_eps;
    bool switched; /* switch_spatial_to_temporal_mix: the shares change places */
};

/* ONCE may be NULL when time_c is 0. */
void video_resnet_load(struct loader *l, struct video_resnet *r, struct video_resnet_shape s,
                       struct once *once, const char *prefix);
/* x [BF, H, W, in_c]; the projected time embeddings of its halves [BF, 1, 1, out_c], data NULL: none -> [BF,
 * H, W, out_c]. */
tensor video_resnet_forward(pass *p, const struct video_resnet *r, tensor x, int frames, tensor spatial_time,
                            tensor temporal_time);

/* ---- TransformerSpatioTemporalModel ---- */

/* A cross-attention over one token: its softmax is 1, so all that it gives is out(v(token)), the same at
 * every position. Queries and keys are not read. */
struct one_token {
    weight v, out; /* [C, token width], [C, C] */
};

/* BasicTransformerBlock over the positions of a frame. `out` and `ff_out` are 1x1 convolutions, which add a
 * vector to each frame: attn2's, and the position of the frame in time. */
struct spatial_block {
    weight norm1, qkv, out;
    struct one_token attn2;
    weight norm3, ff_in, ff_out;
};

/* TemporalBasicTransformerBlock over the frames of each position. ff_out carries AlphaBlender's share, see
 * transformer_video.c. */
struct temporal_block {
    weight norm_in, in_geglu, in_out;
    weight norm1, q, k, v, out;
    struct one_token attn2;
    weight norm3, ff_in, ff_out;
};

struct video_transformer {
    int c, heads, depth;
    int index, first; /* among the network's transformers; of its first block among all blocks */
    float share;      /* of the spatial side */
    weight norm, proj_in, proj_out, time_pos1, time_pos2;
    struct spatial_block spatial[DEPTH_MAX];
    struct temporal_block temporal[DEPTH_MAX];
};

struct video_transformer_shape {
    int c, heads, depth, token_c;
};

/* The transformers of a network, in the order in which they were loaded. */
struct video_transformers {
    const struct video_transformer *item[VIDEO_TRANSFORMERS_MAX];
    int count, blocks;
};

/* What they read that depends on the request only. Rows are frames, BF of them. */
struct video_vectors {
    tensor position[VIDEO_TRANSFORMERS_MAX]; /* time_pos_embed of each frame [BF, 1, 1, C] */
    tensor less[VIDEO_TRANSFORMERS_MAX];     /* -share * position */
    tensor spatial[VIDEO_BLOCKS_MAX];        /* attn2 of the spatial blocks [BF, 1, 1, C] */
    tensor temporal[VIDEO_BLOCKS_MAX];
};

void video_transformer_load(struct loader *l, struct video_transformer *t, struct video_transformer_shape s,
                            struct video_transformers *all, const char *prefix);
/* TOKEN [BF, 1, 1, token_c]: what each frame attends to. */
void video_vectors_begin(pass *p, const struct video_transformers *all, tensor token, int frames,
                         struct video_vectors *v);
void video_vectors_end(pass *p, struct video_vectors *v);
/* x [BF, H, W, C] -> the same shape. */
tensor video_transformer_forward(pass *p, const struct video_transformer *t, tensor x, int frames,
                                 const struct video_vectors *v);

#endif
