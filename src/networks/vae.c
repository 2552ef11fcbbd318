/* The decoder of AutoencoderKL: latents to picture.
 * Source: diffusers models/autoencoders/autoencoder_kl.py, vae.py (Decoder), unet_2d_blocks.py
 * (UNetMidBlock2D, UpDecoderBlock2D). The encoder half of the file is not loaded. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "blocks.h"
#include "config.h"
#include "log.h"
#include "networks.h"

/* diffusers fixes it in code. */
static const float NORM_EPS = 1e-6f;

struct vae_up_block {
    struct resnet resnet[LAYERS_MAX + 1];
    bool up;
    weight upsample;
};

struct vae {
    struct backend *be;
    struct weight_list packed;
    int levels, channels[LEVELS_MAX], layers, groups, latent_c;
    bool post_quant, mid_attention;
    float scaling_factor, shift_factor;
    weight post_quant_conv, conv_in;
    struct resnet mid[2];
    weight attn_norm, attn_qkv, attn_out; /* single-head attention of the middle block */
    struct vae_up_block up[LEVELS_MAX];
    weight norm_out, conv_out;
};

static const struct config_choice vae_choices[] = {
    {"_class_name", "\"AutoencoderKL\""},
    {"act_fn", "\"silu\"|\"swish\""},
    {"out_channels", "3"},
    {"norm_type", "\"group\""},
    {"latents_mean", "null"},
    {"latents_std", "null"},
    {NULL, NULL},
};

/* Fallbacks are AutoencoderKL's. */
static void read_config(struct vae *v, const struct config *c)
{
    static const char *const types[] = {"UpDecoderBlock2D", NULL};
    int type[LEVELS_MAX];
    config_check(c, vae_choices);
    v->levels = json_ints(&c->r, "block_out_channels", v->channels, LEVELS_MAX, 1, 8192);
    if (v->levels < 1) {
        error_set(c->r.err, ERR_FORMAT, "%s: \"block_out_channels\" should be a list of 1 to %d integers",
                  c->label, (int)LEVELS_MAX);
        return;
    }
    config_types(c, "up_block_types", type, v->levels, types);
    v->layers = json_int(&c->r, "layers_per_block", 1, 1, LAYERS_MAX);
    v->latent_c = json_int(&c->r, "latent_channels", 4, 1, 64);
    v->groups = json_int(&c->r, "norm_num_groups", 32, 1, 1024);
    v->post_quant = json_bool(&c->r, "use_post_quant_conv", true);
    v->mid_attention = json_bool(&c->r, "mid_block_add_attention", true);
    v->scaling_factor = config_float(c, "scaling_factor", 0.18215, 1e-6, 1e6);
    v->shift_factor = config_float(c, "shift_factor", 0, -1e6, 1e6);
    for (int i = 0; i < v->levels; i++) {
        if (v->channels[i] % v->groups != 0)
            error_set(c->r.err, ERR_FORMAT, "%s: %d channels do not divide into \"norm_num_groups\" %d",
                      c->label, v->channels[i], v->groups);
    }
}

static void load_middle(struct loader *l, struct vae *v)
{
    static const char *const qkv[] = {"to_q", "to_k", "to_v"};
    int c = v->channels[v->levels - 1];
    struct resnet_shape s = {.in_c = c, .out_c = c, .groups = v->groups, .eps = NORM_EPS};
    resnet_load(l, &v->mid[0], s, NULL, "decoder.mid_block.resnets.0");
    if (v->mid_attention) {
        load_norm(l, &v->attn_norm, c, "decoder.mid_block.attentions.0.group_norm");
        load_linear_parts(l, &v->attn_qkv, 3, qkv, c, c, true, "decoder.mid_block.attentions.0");
        load_linear(l, &v->attn_out, c, c, true, "decoder.mid_block.attentions.0.to_out.0");
    }
    resnet_load(l, &v->mid[1], s, NULL, "decoder.mid_block.resnets.1");
}

static void load_all(struct loader *l, struct vae *v)
{
    int c = v->channels[v->levels - 1];
    if (v->post_quant)
        load_conv2d(l, &v->post_quant_conv, v->latent_c, v->latent_c, 1, "post_quant_conv");
    load_conv2d(l, &v->conv_in, c, v->latent_c, 3, "decoder.conv_in");
    load_middle(l, v);
    for (int i = 0; i < v->levels; i++) {
        int out = v->channels[v->levels - 1 - i];
        for (int k = 0; k <= v->layers; k++) {
            char name[PREFIX_SIZE];
            struct resnet_shape s = {.in_c = k ? out : c, .out_c = out, .groups = v->groups, .eps = NORM_EPS};
            snprintf(name, sizeof(name), "decoder.up_blocks.%d.resnets.%d", i, k);
            resnet_load(l, &v->up[i].resnet[k], s, NULL, name);
        }
        v->up[i].up = i + 1 < v->levels;
        if (v->up[i].up)
            load_conv2d(l, &v->up[i].upsample, out, out, 3, "decoder.up_blocks.%d.upsamplers.0.conv", i);
        c = out;
    }
    load_norm(l, &v->norm_out, c, "decoder.conv_norm_out");
    load_conv2d(l, &v->conv_out, 3, c, 3, "decoder.conv_out");
}

static int load_weights(struct vae *v, const char *dir, const char *variant, struct error *err)
{
    struct weights *w = NULL;
    if (weights_open(&w, dir, "diffusion_pytorch_model", variant, err) < 0)
        return err->code;
    struct loader l = {.weights = w, .be = v->be, .check_only = true, .packed = &v->packed, .err = err};
    load_all(&l, v);
    l.check_only = false;
    load_all(&l, v);
    if (!err->code)
        log_debug("vae: %d levels, %d tensors of the file are not used (the encoder's)", v->levels,
                  weights_unused(w, NULL));
    weights_close(&w);
    return err->code;
}

int vae_load(struct vae **out, struct backend *be, const char *dir, const char *variant, bool encoder,
             struct error *err)
{
    struct config c;
    *out = NULL;
    if (encoder)
        return error_set(err, ERR_UNSUPPORTED, "the VAE's encoder is not built yet");
    int rc = config_open(&c, dir, err);
    if (rc < 0)
        return rc;
    struct vae *v = calloc(1, sizeof(*v));
    if (!v)
        error_set(err, ERR_NOMEM, "out of memory loading the VAE");
    if (v) {
        v->be = be;
        read_config(v, &c);
    }
    config_close(&c);
    if (!err->code)
        load_weights(v, dir, variant, err);
    if (err->code)
        vae_close(&v);
    *out = v;
    return err->code;
}

void vae_close(struct vae **v)
{
    if (!*v)
        return;
    weight_list_free(&(*v)->packed, (*v)->be);
    free(*v);
    *v = NULL;
}

int vae_scale(const struct vae *v)
{
    return 1 << (v->levels - 1);
}

int vae_latent_channels(const struct vae *v)
{
    return v->latent_c;
}

float vae_scaling_factor(const struct vae *v)
{
    return v->scaling_factor;
}

float vae_shift_factor(const struct vae *v)
{
    return v->shift_factor;
}

/* One head over all pixels: x [N, H, W, C] -> [N, H, W, C]. */
static tensor attention_forward(pass *p, const struct vae *v, tensor x)
{
    int c = x.c;
    struct attention_args args = {.heads = 1, .scale = 1 / sqrtf((float)c)};
    tensor h = group_norm(p, &v->attn_norm, x, v->groups, NORM_EPS);                       /* N H W C */
    replace(p, &h, linear(p, &v->attn_qkv, tensor_as_tokens(h), (struct linear_args){0})); /* N 1 HW 3C */
    replace(p, &h,
            attention(p, tensor_channels(h, 0, c), tensor_channels(h, c, c), tensor_channels(h, 2 * c, c),
                      args)); /* N 1 HW C */
    replace(p, &h, linear(p, &v->attn_out, h, (struct linear_args){.residual = tensor_as_tokens(x)}));
    return tensor_as_image(h, x.h, x.w); /* N H W C */
}

/* *x [N, H, W, in_c] becomes [N, 2H, 2W, out_c]; the last block does not double. */
static void up_block_forward(pass *p, const struct vae *v, const struct vae_up_block *b, tensor *x)
{
    for (int k = 0; k <= v->layers; k++)
        replace(p, x, resnet_forward(p, &b->resnet[k], *x, (tensor){0}));
    if (b->up)
        replace(p, x, conv2d(p, &b->upsample, *x, (struct conv2d_args){.upsample = true}));
}

tensor vae_decode(pass *p, const struct vae *v, tensor z)
{
    tensor h = convert(p, z, pass_dtype(p)); /* N h w latent_c */
    if (v->post_quant)
        replace(p, &h, conv2d(p, &v->post_quant_conv, h, (struct conv2d_args){0})); /* N h w latent_c */
    replace(p, &h, conv2d(p, &v->conv_in, h, (struct conv2d_args){0}));             /* N h w C */
    replace(p, &h, resnet_forward(p, &v->mid[0], h, (tensor){0}));
    if (v->mid_attention)
        replace(p, &h, attention_forward(p, v, h));
    replace(p, &h, resnet_forward(p, &v->mid[1], h, (tensor){0}));
    for (int i = 0; i < v->levels; i++)
        up_block_forward(p, v, &v->up[i], &h);
    replace(p, &h, group_norm_silu(p, &v->norm_out, h, v->groups, NORM_EPS));          /* N H W C0 */
    replace(p, &h, conv2d(p, &v->conv_out, h, (struct conv2d_args){.f32_out = true})); /* N H W 3 */
    return h;
}
