/* Loading a video UNet: every tensor by its name in diffusers' state dict. */
#include <stdio.h>
#include <stdlib.h>

#include "log.h"
#include "networks.h"
#include "unet_video.h"

/* What diffusers passes to, or leaves out for, each kind of block (unet_3d_blocks.py). */
static const float DOWN_EPS = 1e-5f, CROSS_DOWN_EPS = 1e-6f, MIDDLE_EPS = 1e-5f, UP_EPS = 1e-6f;

static struct video_resnet_shape resnet_of(const struct unet_video_config *u, int in_c, int out_c, float eps)
{
    return (struct video_resnet_shape){
        .in_c = in_c, .out_c = out_c, .time_c = 4 * u->channels[0], .eps = eps, .temporal_eps = eps};
}

/* The transformer of level I. */
static struct video_transformer_shape transformer_of(const struct unet_video_config *u, int i)
{
    return (struct video_transformer_shape){
        .c = u->channels[i], .heads = u->heads[i], .depth = u->depth[i], .token_c = u->cross_c};
}

static void load_down(struct loader *l, struct unet_video *net, int i)
{
    const struct unet_video_config *u = &net->cfg;
    struct unet_video_down *b = &net->down[i];
    int in_c = u->channels[i ? i - 1 : 0], c = u->channels[i];
    char name[PREFIX_SIZE];
    b->layers = u->layers[i];
    b->cross = u->down_cross[i];
    b->down = i + 1 < u->levels;
    l->large = level_is_large(u->sample_size, i);
    for (int k = 0; k < b->layers; k++) {
        snprintf(name, sizeof(name), "down_blocks.%d.resnets.%d", i, k);
        video_resnet_load(l, &b->resnet[k],
                          resnet_of(u, k ? c : in_c, c, b->cross ? CROSS_DOWN_EPS : DOWN_EPS), &net->once,
                          name);
        snprintf(name, sizeof(name), "down_blocks.%d.attentions.%d", i, k);
        if (b->cross)
            video_transformer_load(l, &b->attn[k], transformer_of(u, i), &net->transformers, name);
    }
    if (b->down)
        load_conv2d_down(l, &b->downsample, c, c, "down_blocks.%d.downsamplers.0.conv", i);
}

static void load_middle(struct loader *l, struct unet_video *net)
{
    const struct unet_video_config *u = &net->cfg;
    int last = u->levels - 1, c = u->channels[last];
    struct video_resnet_shape shape = resnet_of(u, c, c, MIDDLE_EPS);
    l->large = level_is_large(u->sample_size, last);
    video_resnet_load(l, &net->mid_resnet[0], shape, &net->once, "mid_block.resnets.0");
    video_transformer_load(l, &net->mid_attn, transformer_of(u, last), &net->transformers,
                           "mid_block.attentions.0");
    video_resnet_load(l, &net->mid_resnet[1], shape, &net->once, "mid_block.resnets.1");
}

/* Up block I is at level levels-1-I. Each resnet reads what came before it beside one skip of the down path:
 * its own level's, last the one that entered that level. */
static void load_up(struct loader *l, struct unet_video *net, int i)
{
    const struct unet_video_config *u = &net->cfg;
    struct unet_video_up *b = &net->up[i];
    int level = u->levels - 1 - i, c = u->channels[level];
    int before_c = u->channels[i ? level + 1 : level], below_c = u->channels[level ? level - 1 : 0];
    char name[PREFIX_SIZE];
    b->layers = u->layers[level] + 1;
    b->cross = u->up_cross[i];
    b->up = i + 1 < u->levels;
    l->large = level_is_large(u->sample_size, level);
    for (int k = 0; k < b->layers; k++) {
        int in_c = k ? c : before_c, skip_c = k + 1 == b->layers ? below_c : c;
        snprintf(name, sizeof(name), "up_blocks.%d.resnets.%d", i, k);
        video_resnet_load(l, &b->resnet[k], resnet_of(u, in_c + skip_c, c, UP_EPS), &net->once, name);
        snprintf(name, sizeof(name), "up_blocks.%d.attentions.%d", i, k);
        if (b->cross)
            video_transformer_load(l, &b->attn[k], transformer_of(u, level), &net->transformers, name);
    }
    if (b->up)
        load_conv2d_up(l, &b->upsample, c, c, UPSAMPLED_MOSTLY, "up_blocks.%d.upsamplers.0.conv", i);
}

static void load_all(struct loader *l, struct unet_video *net)
{
    const struct unet_video_config *u = &net->cfg;
    int c = u->channels[0], time_c = 4 * c;
    net->once.times = net->once.texts = 0;
    net->transformers = (struct video_transformers){0};
    load_linear(l, &net->time1, time_c, c, true, "time_embedding.linear_1");
    load_linear(l, &net->time2, time_c, time_c, true, "time_embedding.linear_2");
    load_linear(l, &net->added1, time_c, u->ids * u->id_c, true, "add_embedding.linear_1");
    load_linear(l, &net->added2, time_c, time_c, true, "add_embedding.linear_2");
    load_conv2d(l, &net->conv_in, c, u->in_c, 3, "conv_in");
    for (int i = 0; i < u->levels; i++)
        load_down(l, net, i);
    load_middle(l, net);
    for (int i = 0; i < u->levels; i++)
        load_up(l, net, i);
    load_norm(l, &net->norm_out, c, "conv_norm_out");
    l->large = false; /* four outputs: nothing is gained, and the prediction keeps its digits */
    load_conv2d(l, &net->conv_out, u->out_c, c, 3, "conv_out");
}

static int load_weights(struct unet_video *net, const char *dir, const char *variant, struct error *err)
{
    struct weights *w = NULL;
    if (weights_open(&w, dir, "diffusion_pytorch_model", variant, err) < 0)
        return err->code;
    struct loader l = {.weights = w, .be = net->be, .check_only = true, .packed = &net->packed, .err = err};
    load_all(&l, net);
    l.check_only = false;
    load_all(&l, net);
    net->stored = weights_dtype(w);
    if (!err->code)
        log_debug("video unet: %d levels, %d resnets, %d transformers, %d tensors of the file are not used",
                  net->cfg.levels, net->once.times / 2, net->transformers.count, weights_unused(w, NULL));
    weights_close(&w);
    return err->code;
}

int unet_video_load(struct unet_video **out, struct backend *be, const char *dir, const char *variant,
                    struct error *err)
{
    struct unet_video_config cfg;
    *out = NULL;
    int rc = unet_video_config_load(&cfg, dir, err);
    if (rc < 0)
        return rc;
    struct unet_video *net = calloc(1, sizeof(*net));
    if (!net)
        return error_set(err, ERR_NOMEM, "out of memory loading the video UNet");
    net->be = be;
    net->cfg = cfg;
    rc = load_weights(net, dir, variant, err);
    if (rc < 0)
        unet_video_close(&net);
    *out = net;
    return rc;
}

void unet_video_close(struct unet_video **net)
{
    if (!*net)
        return;
    weight_list_free(&(*net)->packed, (*net)->be);
    free(*net);
    *net = NULL;
}

int unet_video_in_channels(const struct unet_video *net)
{
    return net->cfg.in_c;
}

int unet_video_out_channels(const struct unet_video *net)
{
    return net->cfg.out_c;
}

int unet_video_sample_size(const struct unet_video *net)
{
    return net->cfg.sample_size;
}

int unet_video_frames(const struct unet_video *net)
{
    return net->cfg.frames;
}

int unet_video_token_width(const struct unet_video *net)
{
    return net->cfg.cross_c;
}

int unet_video_ids(const struct unet_video *net)
{
    return net->cfg.ids;
}

enum dtype unet_video_stored_dtype(const struct unet_video *net)
{
    return net->stored;
}
