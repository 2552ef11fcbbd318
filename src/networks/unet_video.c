/* UNetSpatioTemporalConditionModel's forward pass: a UNet whose blocks work on every frame and over the
 * frames of every position. Source: diffusers models/unets/unet_spatio_temporal_condition.py and
 * unet_3d_blocks.py. It reads no tensor's numbers, so the plan backend can walk it. */
#include "unet_video.h"

#include <stdlib.h>
#include <string.h>

#include "networks.h"

enum { SKIPS_MAX = LEVELS_MAX * (LAYERS_MAX + 1) + 1 };

/* diffusers fixes it in code. */
static const float NORM_OUT_EPS = 1e-5f;

struct unet_video_request {
    int n, frames, calls;     /* frames of all videos, of one; UNet calls */
    tensor time[RESNETS_MAX]; /* [calls, 1, 1, O]: the same for all frames */
    struct video_vectors vectors;
};

/* One forward pass: what its blocks share. */
struct video_call {
    pass *p;
    const struct unet_video *net;
    const struct unet_video_request *req;
    int k;
    tensor skip[SKIPS_MAX];
    int skips;
};

/* ---- Once a request ---- */

/* The sinusoids of the added time ids through two linears -> [1, 1, 1, time_c]. */
static tensor added_embedding(pass *p, const struct unet_video *net, const float *ids)
{
    const struct unet_video_config *u = &net->cfg;
    tensor t = timestep_embedding(p, ids, u->ids, u->id_c, true, 0);                /* ids 1 1 id_c */
    tensor all = tensor_as_vectors(t, 1, u->ids * u->id_c);                         /* 1 1 1 ids*id_c */
    tensor h = linear(p, &net->added1, all, (struct linear_args){.act = ACT_SILU}); /* 1 1 1 time_c */
    replace(p, &h, linear(p, &net->added2, h, (struct linear_args){0}));            /* 1 1 1 time_c */
    tensor_free(p, &t);
    return h;
}

/* SiLU of the time embedding, which is what every resnet reads -> [calls, 1, 1, time_c]. */
static tensor time_embedding(pass *p, const struct unet_video *net, const struct unet_video_conditions *c)
{
    tensor added = added_embedding(p, net, c->ids); /* 1 1 1 time_c */
    tensor t = timestep_embedding(p, c->timesteps, c->count, net->cfg.channels[0], true, 0);
    replace(p, &added, repeat_batch(p, added, c->count));                               /* calls 1 1 time_c */
    replace(p, &t, linear(p, &net->time1, t, (struct linear_args){.act = ACT_SILU}));   /* calls 1 1 time_c */
    replace(p, &t, linear(p, &net->time2, t, (struct linear_args){.residual = added})); /* calls 1 1 time_c */
    replace(p, &t, silu(p, t));                                                         /* calls 1 1 time_c */
    tensor_free(p, &added);
    return t;
}

/* The token of each frame's video: image [B, token_c] on the host -> [BF, 1, 1, token_c]. */
static tensor token_of_frames(pass *p, const struct unet_video *net, const struct unet_video_conditions *c)
{
    int n = c->videos * c->frames;
    size_t width = (size_t)net->cfg.cross_c;
    float *rows = calloc((size_t)n * width, sizeof(*rows));
    if (!rows) {
        error_set(p->err, ERR_NOMEM, "out of memory starting a request");
        return (tensor){.n = n, .h = 1, .w = 1, .c = (int)width};
    }
    for (int i = 0; i < n; i++)
        memcpy(rows + (size_t)i * width, c->image + (size_t)(i / c->frames) * width, width * sizeof(*rows));
    tensor token = tensor_from_host(p, rows, n, 1, 1, (int)width, pass_dtype(p));
    free(rows);
    return token;
}

struct unet_video_request *unet_video_begin(pass *p, const struct unet_video *net,
                                            const struct unet_video_conditions *c)
{
    if (p->err->code)
        return NULL;
    if (c->videos < 1 || c->frames < 1 || c->count < 1 || !c->image || !c->timesteps || !c->ids) {
        error_set(p->err, ERR_INTERNAL,
                  "unet_video_begin: %d videos of %d frames, %d timesteps; image, timesteps and ids must be "
                  "given",
                  c->videos, c->frames, c->count);
        return NULL;
    }
    struct unet_video_request *req = calloc(1, sizeof(*req));
    if (!req) {
        error_set(p->err, ERR_NOMEM, "out of memory starting a request");
        return NULL;
    }
    req->n = c->videos * c->frames;
    req->frames = c->frames;
    req->calls = c->count;
    tensor t = time_embedding(p, net, c);
    for (int i = 0; i < net->once.times; i++)
        req->time[i] = linear(p, net->once.time[i], t, (struct linear_args){0}); /* calls 1 1 O */
    tensor_free(p, &t);
    tensor token = token_of_frames(p, net, c); /* BF 1 1 token_c */
    video_vectors_begin(p, &net->transformers, token, c->frames, &req->vectors);
    tensor_free(p, &token);
    return req;
}

void unet_video_end(pass *p, struct unet_video_request **req)
{
    if (!*req)
        return;
    for (int i = 0; i < RESNETS_MAX; i++)
        tensor_free(p, &(*req)->time[i]);
    video_vectors_end(p, &(*req)->vectors);
    free(*req);
    *req = NULL;
}

/* ---- One call ---- */

/* The projected time embedding number I of this call, for every frame: [BF, 1, 1, O]. */
static tensor time_at(const struct video_call *c, int i)
{
    return tensor_for_all(tensor_batch(c->req->time[i], c->k, 1), c->req->n);
}

static tensor resnet_at(const struct video_call *c, const struct video_resnet *r, tensor x)
{
    return video_resnet_forward(c->p, r, x, c->req->frames, time_at(c, r->spatial.time), time_at(c, r->time));
}

static tensor transformer_at(const struct video_call *c, const struct video_transformer *t, tensor x)
{
    return video_transformer_forward(c->p, t, x, c->req->frames, &c->req->vectors);
}

/* Keeps X for the up path, which frees it. */
static tensor push(struct video_call *c, tensor x)
{
    c->skip[c->skips++] = x;
    return x;
}

/* DownBlockSpatioTemporal, CrossAttnDownBlockSpatioTemporal: x [BF, H, W, in_c] -> [BF, H/2, W/2, C], rounded
 * up; the last block does not halve. Every tensor it makes is a skip, its result too. */
static tensor down_block(struct video_call *c, const struct unet_video_down *b, tensor x)
{
    for (int i = 0; i < b->layers; i++) {
        x = resnet_at(c, &b->resnet[i], x); /* BF H W C */
        if (b->cross)
            replace(c->p, &x, transformer_at(c, &b->attn[i], x));
        push(c, x);
    }
    if (b->down) /* BF H/2 W/2 C */
        x = push(c, conv2d(c->p, &b->downsample, x, (struct conv2d_args){.stride = 2}));
    return x;
}

/* UNetMidBlockSpatioTemporal: [BF, H, W, C] -> a new tensor of the same shape. */
static tensor middle_block(struct video_call *c, tensor x)
{
    tensor h = resnet_at(c, &c->net->mid_resnet[0], x);
    replace(c->p, &h, transformer_at(c, &c->net->mid_attn, h));
    replace(c->p, &h, resnet_at(c, &c->net->mid_resnet[1], h));
    return h;
}

/* X beside the next skip, which goes last and is freed: BF H W (in_c + skip_c). */
static tensor join_skip(struct video_call *c, tensor x)
{
    tensor *skip = &c->skip[--c->skips];
    tensor both = concat_channels(c->p, x, *skip);
    tensor_free(c->p, skip);
    return both;
}

/* Layer I of B behind its skip. */
static void up_layer(struct video_call *c, const struct unet_video_up *b, int i, tensor *x)
{
    replace(c->p, x, resnet_at(c, &b->resnet[i], *x)); /* BF H W C */
    if (b->cross)
        replace(c->p, x, transformer_at(c, &b->attn[i], *x));
}

/* UpBlockSpatioTemporal, CrossAttnUpBlockSpatioTemporal: *x [BF, H, W, in_c] becomes [BF, 2H, 2W, C]; the
 * last block does not double, and leaves its last layer to the caller. */
static void up_block(struct video_call *c, const struct unet_video_up *b, tensor *x)
{
    for (int i = 0; i < b->layers - !b->up; i++) {
        replace(c->p, x, join_skip(c, *x));
        up_layer(c, b, i, x);
    }
    if (b->up)
        replace(c->p, x, upsample_to(c->p, &b->upsample, *x, c->skip[c->skips - 1]));
}

/* The whole U below its outermost pair of layers: BF H W C0 -> BF H W C, what the last up layer reads beside
 * the outermost skip. */
static tensor deep_layers(struct video_call *c, tensor h)
{
    int levels = c->net->cfg.levels;
    for (int i = 0; i < levels; i++)
        h = down_block(c, &c->net->down[i], h);
    h = middle_block(c, h);
    for (int i = 0; i < levels; i++)
        up_block(c, &c->net->up[i], &h);
    return h;
}

tensor unet_video_forward(pass *p, const struct unet_video *net, const struct unet_video_request *req,
                          tensor x, int k)
{
    return unet_video_forward_cached(p, net, req, x, k, NULL);
}

tensor unet_video_forward_cached(pass *p, const struct unet_video *net, const struct unet_video_request *req,
                                 tensor x, int k, tensor *deep)
{
    const struct unet_video_up *last = &net->up[net->cfg.levels - 1];
    struct video_call c = {.p = p, .net = net, .req = req, .k = k};
    if (!req || k < 0 || k >= req->calls || x.n != req->n) {
        error_set(p->err, ERR_INTERNAL, "unet_video_forward: call %d with %d frames was not begun", k, x.n);
        return (tensor){0};
    }
    tensor h = convert(p, x, pass_dtype(p));                              /* BF H W in_c */
    replace(p, &h, conv2d(p, &net->conv_in, h, (struct conv2d_args){0})); /* BF H W C0 */
    push(&c, h);
    tensor below = deep && deep->n ? *deep : deep_layers(&c, h); /* BF H W C */
    h = join_skip(&c, below);
    if (deep)
        *deep = below;
    else
        tensor_free(p, &below);
    up_layer(&c, last, last->layers - 1, &h); /* BF H W C0 */
    return norm_silu_conv2d(p, (struct norm_silu){&net->norm_out, VIDEO_GROUPS, NORM_OUT_EPS, true, false},
                            &net->conv_out, h, (struct conv2d_args){.f32_out = true}); /* BF H W out_c */
}
