/* AutoencoderKLTemporalDecoder: AutoencoderKL's encoder, and a decoder whose resnets work on every frame and
 * over the frames of every position. Source: diffusers models/autoencoders/autoencoder_kl_temporal_decoder.py
 * (TemporalDecoder), unets/unet_3d_blocks.py (MidBlockTemporalDecoder, UpBlockTemporalDecoder). */
#include <stdio.h>
#include <stdlib.h>

#include "config.h"
#include "log.h"
#include "networks.h"
#include "vae.h"
#include "video.h"

/* diffusers fixes them in code. */
static const float NORM_EPS = 1e-6f, TEMPORAL_EPS = 1e-5f;

struct vae_video_up {
    struct video_resnet resnet[LAYERS_MAX + 1];
    bool up;
    weight upsample;
};

struct vae_video {
    struct vae base; /* the config and the encoder; no decoder in it */
    bool force_upcast;
    weight conv_in;
    struct video_resnet mid_resnet[2];
    struct vae_attention mid_attn;
    struct vae_video_up up[LEVELS_MAX];
    weight norm_out, conv_out, time_conv_out;
};

static const struct config_choice choices[] = {
    {"_class_name", "\"AutoencoderKLTemporalDecoder\""},
    {"in_channels", "3"},
    {"out_channels", "3"},
    {"latents_mean", "null"},
    {"latents_std", "null"},
    {NULL, NULL},
};

/* Fallbacks are AutoencoderKLTemporalDecoder's. */
static void read_config(struct vae_video *net, const struct config *c)
{
    static const char *const down[] = {"DownEncoderBlock2D", NULL};
    struct vae *v = &net->base;
    int type[LEVELS_MAX];
    config_check(c, choices);
    v->levels = json_ints(&c->r, "block_out_channels", v->channels, LEVELS_MAX, 1, 8192);
    if (v->levels < 1) {
        error_set(c->r.err, ERR_FORMAT, "%s: \"block_out_channels\" should be a list of 1 to %d integers",
                  c->label, (int)LEVELS_MAX);
        return;
    }
    config_types(c, "down_block_types", type, v->levels, down);
    v->layers = json_int(&c->r, "layers_per_block", 1, 1, LAYERS_MAX);
    v->latent_c = json_int(&c->r, "latent_channels", 4, 1, 64);
    v->scaling_factor = config_float(c, "scaling_factor", 0.18215, 1e-6, 1e6);
    net->force_upcast = json_bool(&c->r, "force_upcast", true);
    v->groups = VIDEO_GROUPS;
    v->quant = v->mid_attention = v->has_encoder = true;
    for (int i = 0; i < v->levels; i++) {
        if (v->channels[i] % VIDEO_GROUPS != 0)
            error_set(c->r.err, ERR_FORMAT, "%s: %d channels do not divide into the %d groups of the norms",
                      c->label, v->channels[i], (int)VIDEO_GROUPS);
    }
}

/* ---- Loading ---- */

static struct video_resnet_shape resnet_of(int in_c, int out_c)
{
    return (struct video_resnet_shape){
        .in_c = in_c, .out_c = out_c, .eps = NORM_EPS, .temporal_eps = TEMPORAL_EPS, .switched = true};
}

/* diffusers pairs its one attention with the resnets after the first: of one resnet it runs no attention, of
 * more than two only two. */
static int middle_resnets(const struct vae_video *net)
{
    return net->base.layers > 1 ? 2 : 1;
}

static void load_decoder(struct loader *l, struct vae_video *net)
{
    const struct vae *v = &net->base;
    int c = v->channels[v->levels - 1];
    char name[PREFIX_SIZE];
    load_conv2d(l, &net->conv_in, c, v->latent_c, 3, "decoder.conv_in");
    for (int k = 0; k < middle_resnets(net); k++) {
        snprintf(name, sizeof(name), "decoder.mid_block.resnets.%d", k);
        video_resnet_load(l, &net->mid_resnet[k], resnet_of(c, c), NULL, name);
    }
    vae_load_attention(l, &net->mid_attn, c, "decoder");
    for (int i = 0; i < v->levels; i++) {
        struct vae_video_up *b = &net->up[i];
        int out = v->channels[v->levels - 1 - i];
        for (int k = 0; k <= v->layers; k++) {
            snprintf(name, sizeof(name), "decoder.up_blocks.%d.resnets.%d", i, k);
            video_resnet_load(l, &b->resnet[k], resnet_of(k ? out : c, out), NULL, name);
        }
        b->up = i + 1 < v->levels;
        if (b->up)
            load_conv2d_up(l, &b->upsample, out, out, UPSAMPLED_ALWAYS,
                           "decoder.up_blocks.%d.upsamplers.0.conv", i);
        c = out;
    }
    load_norm(l, &net->norm_out, c, "decoder.conv_norm_out");
    load_conv2d(l, &net->conv_out, 3, c, 3, "decoder.conv_out");
    load_conv_temporal(l, &net->time_conv_out, 3, 3, 1, "decoder.time_conv_out");
}

static void load_all(struct loader *l, struct vae_video *net)
{
    vae_load_encoder(l, &net->base);
    load_decoder(l, net);
}

static int load_weights(struct vae_video *net, const char *dir, const char *variant, struct error *err)
{
    struct weights *w = NULL;
    struct vae *v = &net->base;
    if (weights_open(&w, dir, "diffusion_pytorch_model", variant, err) < 0)
        return err->code;
    struct loader l = {
        .weights = w, .be = v->be, .check_only = true, .large = true, .packed = &v->packed, .err = err};
    load_all(&l, net);
    l.check_only = false;
    load_all(&l, net);
    if (!err->code)
        log_debug("video vae: %d levels, %d tensors of the file are not used", v->levels,
                  weights_unused(w, NULL));
    weights_close(&w);
    return err->code;
}

int vae_video_load(struct vae_video **out, struct backend *be, const char *dir, const char *variant,
                   struct error *err)
{
    struct config c;
    *out = NULL;
    int rc = config_open(&c, dir, err);
    if (rc < 0)
        return rc;
    struct vae_video *net = calloc(1, sizeof(*net));
    if (!net)
        error_set(err, ERR_NOMEM, "out of memory loading the video VAE");
    if (net) {
        net->base.be = be;
        read_config(net, &c);
    }
    config_close(&c);
    if (!err->code)
        load_weights(net, dir, variant, err);
    if (err->code)
        vae_video_close(&net);
    *out = net;
    return err->code;
}

void vae_video_close(struct vae_video **net)
{
    if (!*net)
        return;
    weight_list_free(&(*net)->base.packed, (*net)->base.be);
    free(*net);
    *net = NULL;
}

int vae_video_scale(const struct vae_video *net)
{
    return vae_scale(&net->base);
}

int vae_video_latent_channels(const struct vae_video *net)
{
    return net->base.latent_c;
}

float vae_video_scaling_factor(const struct vae_video *net)
{
    return net->base.scaling_factor;
}

bool vae_video_force_upcast(const struct vae_video *net)
{
    return net->force_upcast;
}

/* ---- Both halves ---- */

tensor vae_video_encode(pass *p, const struct vae_video *net, tensor x)
{
    return vae_encode(p, &net->base, x);
}

static tensor resnet_at(pass *p, const struct video_resnet *r, tensor x, int frames)
{
    return video_resnet_forward(p, r, x, frames, (tensor){0}, (tensor){0});
}

/* MidBlockTemporalDecoder: *x [BF, h, w, C] becomes its output, of the same shape. */
static void middle_forward(pass *p, const struct vae_video *net, tensor *x, int frames)
{
    replace(p, x, resnet_at(p, &net->mid_resnet[0], *x, frames));
    if (middle_resnets(net) == 1)
        return;
    replace(p, x, vae_attention_forward(p, &net->mid_attn, *x, VIDEO_GROUPS));
    replace(p, x, resnet_at(p, &net->mid_resnet[1], *x, frames));
}

/* UpBlockTemporalDecoder: *x [BF, H, W, in_c] becomes [BF, 2H, 2W, out_c]; the last block does not double. */
static void up_forward(pass *p, const struct vae_video *net, const struct vae_video_up *b, tensor *x,
                       int frames)
{
    for (int k = 0; k <= net->base.layers; k++)
        replace(p, x, resnet_at(p, &b->resnet[k], *x, frames));
    if (b->up)
        replace(p, x, conv2d(p, &b->upsample, *x, (struct conv2d_args){.upsample = true}));
}

tensor vae_video_decode(pass *p, const struct vae_video *net, tensor z, int frames)
{
    struct conv2d_args plain = {0}, last = {.f32_out = true};
    if (frames < 1 || z.n % frames != 0) {
        error_set(p->err, ERR_INTERNAL, "vae_video_decode: %d pictures are no videos of %d frames", z.n,
                  frames);
        return (tensor){0};
    }
    tensor h = convert(p, z, pass_dtype(p));            /* BF h w latent_c */
    replace(p, &h, conv2d(p, &net->conv_in, h, plain)); /* BF h w C */
    middle_forward(p, net, &h, frames);
    for (int i = 0; i < net->base.levels; i++)
        up_forward(p, net, &net->up[i], &h, frames);
    const struct norm_silu norm_out = {&net->norm_out, VIDEO_GROUPS, NORM_EPS, true, false};
    h = norm_silu_conv2d(p, norm_out, &net->conv_out, h, plain);            /* BF H W 3 */
    replace(p, &h, conv_temporal(p, &net->time_conv_out, h, frames, last)); /* BF H W 3 */
    return h;
}
