/* Loading a UNet: every tensor by its name in diffusers' state dict. */
#include <stdio.h>
#include <stdlib.h>

#include "log.h"
#include "networks.h"
#include "unet.h"

static struct resnet_shape resnet_of(const struct unet_config *u, int in_c, int out_c)
{
    return (struct resnet_shape){
        .in_c = in_c, .out_c = out_c, .time_c = u->time_c, .groups = u->groups, .eps = u->eps};
}

/* The transformer of level I. */
static struct transformer_shape transformer_of(const struct unet_config *u, int i, bool only_cross)
{
    return (struct transformer_shape){.c = u->channels[i],
                                      .heads = u->heads[i],
                                      .depth = u->depth[i],
                                      .text_c = u->cross_c,
                                      .groups = u->groups,
                                      .only_cross = only_cross};
}

static void load_down(struct loader *l, struct unet *net, int i)
{
    const struct unet_config *u = &net->cfg;
    struct unet_down *b = &net->down[i];
    int in_c = u->channels[i ? i - 1 : 0], c = u->channels[i];
    char name[PREFIX_SIZE];
    b->layers = u->layers[i];
    b->cross = u->down_cross[i];
    b->down = i + 1 < u->levels;
    l->large = level_is_large(u->sample_size, i);
    for (int k = 0; k < b->layers; k++) {
        snprintf(name, sizeof(name), "down_blocks.%d.resnets.%d", i, k);
        resnet_load(l, &b->resnet[k], resnet_of(u, k ? c : in_c, c), &net->once, name);
        snprintf(name, sizeof(name), "down_blocks.%d.attentions.%d", i, k);
        if (b->cross)
            transformer_load(l, &b->attn[k], transformer_of(u, i, u->only_cross[i]), &net->once, name);
    }
    if (b->down)
        load_conv2d_down(l, &b->downsample, c, c, "down_blocks.%d.downsamplers.0.conv", i);
}

static void load_middle(struct loader *l, struct unet *net)
{
    const struct unet_config *u = &net->cfg;
    int last = u->levels - 1, c = u->channels[last];
    if (!u->middle)
        return;
    l->large = level_is_large(u->sample_size, last);
    resnet_load(l, &net->mid_resnet[0], resnet_of(u, c, c), &net->once, "mid_block.resnets.0");
    transformer_load(l, &net->mid_attn, transformer_of(u, last, false), &net->once, "mid_block.attentions.0");
    resnet_load(l, &net->mid_resnet[1], resnet_of(u, c, c), &net->once, "mid_block.resnets.1");
}

/* Up block I is at level levels-1-I. Each resnet reads what came before it beside one skip of the down path:
 * its own level's, last the one that entered that level. */
static void load_up(struct loader *l, struct unet *net, int i)
{
    const struct unet_config *u = &net->cfg;
    struct unet_up *b = &net->up[i];
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
        resnet_load(l, &b->resnet[k], resnet_of(u, in_c + skip_c, c), &net->once, name);
        snprintf(name, sizeof(name), "up_blocks.%d.attentions.%d", i, k);
        if (b->cross)
            transformer_load(l, &b->attn[k], transformer_of(u, level, u->only_cross[level]), &net->once,
                             name);
    }
    if (b->up)
        load_conv2d_up(l, &b->upsample, c, c, UPSAMPLED_MOSTLY, "up_blocks.%d.upsamplers.0.conv", i);
}

static void load_all(struct loader *l, struct unet *net)
{
    const struct unet_config *u = &net->cfg;
    int c = u->channels[0];
    net->once.times = net->once.texts = 0;
    load_linear(l, &net->time1, u->time_c, c, true, "time_embedding.linear_1");
    load_linear(l, &net->time2, u->time_c, u->time_c, true, "time_embedding.linear_2");
    if (u->time_cond_c)
        load_linear(l, &net->time_cond, c, u->time_cond_c, false, "time_embedding.cond_proj");
    if (u->labels && !l->check_only)
        net->label = calloc((size_t)u->labels * (size_t)u->time_c, sizeof(*net->label));
    if (u->labels && !l->check_only && !net->label)
        error_set(l->err, ERR_NOMEM, "out of memory loading the UNet");
    else if (u->labels)
        load_floats(l, net->label, u->labels, u->time_c, "class_embedding.weight");
    if (u->pooled_c) {
        int added_c = u->pooled_c + u->time_ids * u->time_id_c;
        load_linear(l, &net->added1, u->time_c, added_c, true, "add_embedding.linear_1");
        load_linear(l, &net->added2, u->time_c, u->time_c, true, "add_embedding.linear_2");
    }
    load_conv2d(l, &net->conv_in, c, u->in_c, u->conv_in_k, "conv_in");
    loader_int8(l, true);
    for (int i = 0; i < u->levels; i++)
        load_down(l, net, i);
    load_middle(l, net);
    for (int i = 0; i < u->levels; i++)
        load_up(l, net, i);
    loader_int8(l, false);
    load_norm(l, &net->norm_out, c, "conv_norm_out");
    l->large = false; /* four outputs: nothing is gained, and the prediction keeps its digits */
    load_conv2d(l, &net->conv_out, u->out_c, c, u->conv_out_k, "conv_out");
}

static int load_weights(struct unet *net, const char *dir, const char *stem, const char *variant,
                        struct error *err)
{
    struct weights *w = NULL;
    if (weights_open(&w, dir, stem, variant, err) < 0)
        return err->code;
    struct loader l = {
        .weights = w, .be = net->be, .check_only = true, .keep = true, .packed = &net->packed, .err = err};
    load_all(&l, net);
    l.check_only = false;
    load_all(&l, net);
    net->stored = weights_dtype(w);
    if (!err->code)
        log_debug("unet: %d levels, %d resnets, %d cross-attentions, %d tensors of the file are not used",
                  net->cfg.levels, net->once.times, net->once.texts, weights_unused(w, NULL));
    if (!err->code)
        weight_list_keep(&net->packed, &w);
    weights_close(&w);
    return err->code;
}

int unet_load_from(struct unet **out, struct backend *be, const char *config_dir, const char *weights_dir,
                   const char *stem, const char *variant, struct error *err)
{
    struct unet_config cfg;
    *out = NULL;
    int rc = unet_config_load(&cfg, config_dir, err);
    if (rc < 0)
        return rc;
    struct unet *net = calloc(1, sizeof(*net));
    if (!net)
        return error_set(err, ERR_NOMEM, "out of memory loading the UNet");
    net->be = be;
    net->cfg = cfg;
    rc = load_weights(net, weights_dir, stem, variant, err);
    if (rc < 0)
        unet_close(&net);
    *out = net;
    return rc;
}

int unet_load(struct unet **out, struct backend *be, const char *dir, const char *variant, struct error *err)
{
    return unet_load_from(out, be, dir, dir, "diffusion_pytorch_model", variant, err);
}

void unet_close(struct unet **net)
{
    if (!*net)
        return;
    weight_list_free(&(*net)->packed, (*net)->be);
    free((*net)->label);
    free(*net);
    *net = NULL;
}

struct weight_list *unet_weights(struct unet *net)
{
    return &net->packed;
}

int unet_in_channels(const struct unet *net)
{
    return net->cfg.in_c;
}

int unet_sample_size(const struct unet *net)
{
    return net->cfg.sample_size;
}

int unet_cross_attention_dim(const struct unet *net)
{
    return net->cfg.cross_c;
}

int unet_levels(const struct unet *net)
{
    return net->cfg.levels;
}

int unet_time_cond_proj_dim(const struct unet *net)
{
    return net->cfg.time_cond_c;
}

int unet_pooled_dim(const struct unet *net)
{
    return net->cfg.pooled_c;
}

int unet_labels(const struct unet *net)
{
    return net->cfg.labels;
}

int unet_time_ids(const struct unet *net)
{
    return net->cfg.time_ids;
}

enum dtype unet_stored_dtype(const struct unet *net)
{
    return net->stored;
}
