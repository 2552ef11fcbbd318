/* AutoencoderKL: pictures to latents and back. The encoder is loaded only when it is asked for.
 * Source: diffusers models/autoencoders/autoencoder_kl.py, vae.py (Encoder, Decoder), unet_2d_blocks.py
 * (DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D). */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "config.h"
#include "log.h"
#include "networks.h"
#include "vae.h"

/* diffusers fixes it in code. */
static const float NORM_EPS = 1e-6f;

static const struct config_choice vae_choices[] = {
    {"_class_name", "\"AutoencoderKL\""},
    {"act_fn", "\"silu\"|\"swish\""},
    {"in_channels", "3"},
    {"out_channels", "3"},
    {"norm_type", "\"group\""},
    {NULL, NULL},
};

/* latents_mean and latents_std, both or neither. */
static void read_stats(struct vae *v, const struct config *c)
{
    bool mean = config_floats(c, "latents_mean", v->latents_mean, v->latent_c, -1e6, 1e6);
    bool std = config_floats(c, "latents_std", v->latents_std, v->latent_c, 1e-6, 1e6);
    if (mean != std)
        error_set(c->r.err, ERR_FORMAT, "%s: there is \"%s\" without \"%s\"", c->label,
                  mean ? "latents_mean" : "latents_std", mean ? "latents_std" : "latents_mean");
    v->has_stats = mean && std;
}

/* Fallbacks are AutoencoderKL's. */
static void read_config(struct vae *v, const struct config *c)
{
    static const char *const down[] = {"DownEncoderBlock2D", NULL}, *const up[] = {"UpDecoderBlock2D", NULL};
    int type[LEVELS_MAX];
    config_check(c, vae_choices);
    v->levels = json_ints(&c->r, "block_out_channels", v->channels, LEVELS_MAX, 1, 8192);
    if (v->levels < 1) {
        error_set(c->r.err, ERR_FORMAT, "%s: \"block_out_channels\" should be a list of 1 to %d integers",
                  c->label, (int)LEVELS_MAX);
        return;
    }
    if (v->has_encoder)
        config_types(c, "down_block_types", type, v->levels, down);
    config_types(c, "up_block_types", type, v->levels, up);
    v->layers = json_int(&c->r, "layers_per_block", 1, 1, LAYERS_MAX);
    v->latent_c = json_int(&c->r, "latent_channels", 4, 1, LATENT_CHANNELS_MAX);
    v->groups = json_int(&c->r, "norm_num_groups", 32, 1, 1024);
    v->sample_size = 32;
    if (cJSON_IsNumber(cJSON_GetObjectItemCaseSensitive(
            c->r.object, "sample_size"))) /* a list, or null, leaves tiles at their least */
        v->sample_size = json_int(&c->r, "sample_size", 32, 1, 1 << 16);
    v->quant = json_bool(&c->r, "use_quant_conv", true);
    v->post_quant = json_bool(&c->r, "use_post_quant_conv", true);
    v->mid_attention = json_bool(&c->r, "mid_block_add_attention", true);
    v->scaling_factor = config_float(c, "scaling_factor", 0.18215, 1e-6, 1e6);
    v->shift_factor = config_float(c, "shift_factor", 0, -1e6, 1e6);
    read_stats(v, c);
    for (int i = 0; i < v->levels; i++) {
        if (v->channels[i] % v->groups != 0)
            error_set(c->r.err, ERR_FORMAT, "%s: %d channels do not divide into \"norm_num_groups\" %d",
                      c->label, v->channels[i], v->groups);
    }
}

static struct resnet_shape resnet_of(const struct vae *v, int in_c, int out_c)
{
    return (struct resnet_shape){.in_c = in_c, .out_c = out_c, .groups = v->groups, .eps = NORM_EPS};
}

void vae_load_attention(struct loader *l, struct vae_attention *a, int c, const char *half)
{
    static const char *const qkv[] = {"to_q", "to_k", "to_v"};
    load_norm(l, &a->norm, c, "%s.mid_block.attentions.0.group_norm", half);
    load_linear_parts(l, &a->qkv, 3, qkv, c, c, true, "%s.mid_block.attentions.0", half);
    load_linear(l, &a->out, c, c, true, "%s.mid_block.attentions.0.to_out.0", half);
}

/* HALF: "encoder" or "decoder". */
static void load_middle(struct loader *l, const struct vae *v, struct vae_middle *m, const char *half)
{
    int c = v->channels[v->levels - 1];
    char name[PREFIX_SIZE];
    for (int k = 0; k < 2; k++) {
        snprintf(name, sizeof(name), "%s.mid_block.resnets.%d", half, k);
        resnet_load(l, &m->resnet[k], resnet_of(v, c, c), NULL, name);
    }
    if (v->mid_attention)
        vae_load_attention(l, &m->attn, c, half);
}

void vae_load_encoder(struct loader *l, struct vae *v)
{
    struct vae_encoder *e = &v->enc;
    int c = v->channels[0];
    load_conv2d(l, &e->conv_in, c, 3, 3, "encoder.conv_in");
    for (int i = 0; i < v->levels; i++) {
        int out = v->channels[i];
        for (int k = 0; k < v->layers; k++) {
            char name[PREFIX_SIZE];
            snprintf(name, sizeof(name), "encoder.down_blocks.%d.resnets.%d", i, k);
            resnet_load(l, &e->down[i].resnet[k], resnet_of(v, k ? out : c, out), NULL, name);
        }
        e->down[i].down = i + 1 < v->levels;
        if (e->down[i].down)
            load_conv2d_down(l, &e->down[i].downsample, out, out,
                             "encoder.down_blocks.%d.downsamplers.0.conv", i);
        c = out;
    }
    load_middle(l, v, &e->mid, "encoder");
    load_norm(l, &e->norm_out, c, "encoder.conv_norm_out");
    const bool large = l->large;
    l->large = false; /* eight outputs: nothing is gained, and the latent keeps its digits */
    load_conv2d(l, &e->conv_out, 2 * v->latent_c, c, 3, "encoder.conv_out");
    l->large = large;
    if (v->quant)
        load_conv2d(l, &e->quant_conv, 2 * v->latent_c, 2 * v->latent_c, 1, "quant_conv");
}

static void load_decoder(struct loader *l, struct vae *v)
{
    struct vae_decoder *d = &v->dec;
    int c = v->channels[v->levels - 1];
    if (v->post_quant)
        load_conv2d(l, &d->post_quant_conv, v->latent_c, v->latent_c, 1, "post_quant_conv");
    load_conv2d(l, &d->conv_in, c, v->latent_c, 3, "decoder.conv_in");
    load_middle(l, v, &d->mid, "decoder");
    for (int i = 0; i < v->levels; i++) {
        int out = v->channels[v->levels - 1 - i];
        for (int k = 0; k <= v->layers; k++) {
            char name[PREFIX_SIZE];
            snprintf(name, sizeof(name), "decoder.up_blocks.%d.resnets.%d", i, k);
            resnet_load(l, &d->up[i].resnet[k], resnet_of(v, k ? out : c, out), NULL, name);
        }
        d->up[i].up = i + 1 < v->levels;
        if (d->up[i].up)
            load_conv2d_up(l, &d->up[i].upsample, out, out, UPSAMPLED_ALWAYS,
                           "decoder.up_blocks.%d.upsamplers.0.conv", i);
        c = out;
    }
    load_norm(l, &d->norm_out, c, "decoder.conv_norm_out");
    load_conv2d(l, &d->conv_out, 3, c, 3, "decoder.conv_out");
}

static void load_all(struct loader *l, struct vae *v)
{
    if (v->has_encoder)
        vae_load_encoder(l, v);
    load_decoder(l, v);
}

static int load_weights(struct vae *v, const char *dir, const char *variant, struct error *err)
{
    struct weights *w = NULL;
    if (weights_open(&w, dir, "diffusion_pytorch_model", variant, err) < 0)
        return err->code;
    struct loader l = {
        .weights = w, .be = v->be, .check_only = true, .large = true, .packed = &v->packed, .err = err};
    load_all(&l, v);
    l.check_only = false;
    load_all(&l, v);
    if (!err->code)
        log_debug("vae: %d levels, %s; %d tensors of the file are not used", v->levels,
                  v->has_encoder ? "encoder and decoder" : "decoder only", weights_unused(w, NULL));
    weights_close(&w);
    return err->code;
}

int vae_load(struct vae **out, struct backend *be, const char *dir, const char *variant, bool encoder,
             struct error *err)
{
    struct config c;
    *out = NULL;
    int rc = config_open(&c, dir, err);
    if (rc < 0)
        return rc;
    struct vae *v = calloc(1, sizeof(*v));
    if (!v)
        error_set(err, ERR_NOMEM, "out of memory loading the VAE");
    if (v) {
        v->be = be;
        v->has_encoder = encoder;
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

bool vae_latents_stats(const struct vae *v, const float **mean, const float **std)
{
    *mean = v->latents_mean;
    *std = v->latents_std;
    return v->has_stats;
}

bool vae_has_encoder(const struct vae *v)
{
    return v->has_encoder;
}

tensor vae_attention_forward(pass *p, const struct vae_attention *a, tensor x, int groups)
{
    int c = x.c;
    struct attention_args args = {.heads = 1, .scale = 1 / sqrtf((float)c)};
    tensor h = group_norm(p, &a->norm, x, groups, NORM_EPS);                          /* N H W C */
    replace(p, &h, linear(p, &a->qkv, tensor_as_tokens(h), (struct linear_args){0})); /* N 1 HW 3C */
    replace(p, &h,
            attention(p, tensor_channels(h, 0, c), tensor_channels(h, c, c), tensor_channels(h, 2 * c, c),
                      args)); /* N 1 HW C */
    replace(p, &h, linear(p, &a->out, h, (struct linear_args){.residual = tensor_as_tokens(x)}));
    return tensor_as_image(h, x.h, x.w); /* N H W C */
}

/* UNetMidBlock2D: *x [N, H, W, C] becomes its output, of the same shape. */
static void middle_forward(pass *p, const struct vae *v, const struct vae_middle *m, tensor *x)
{
    replace(p, x, resnet_forward(p, &m->resnet[0], *x, (tensor){0}));
    if (v->mid_attention)
        replace(p, x, vae_attention_forward(p, &m->attn, *x, v->groups));
    replace(p, x, resnet_forward(p, &m->resnet[1], *x, (tensor){0}));
}

/* *x [N, H, W, in_c] becomes [N, H/2, W/2, out_c]; the last block does not halve. */
static void down_block_forward(pass *p, const struct vae *v, const struct vae_down_block *b, tensor *x)
{
    for (int k = 0; k < v->layers; k++)
        replace(p, x, resnet_forward(p, &b->resnet[k], *x, (tensor){0}));
    if (b->down)
        replace(p, x, conv2d(p, &b->downsample, *x, (struct conv2d_args){.stride = 2, .pad_end = true}));
}

/* *x [N, H, W, in_c] becomes [N, 2H, 2W, out_c]; the last block does not double. */
static void up_block_forward(pass *p, const struct vae *v, const struct vae_up_block *b, tensor *x)
{
    for (int k = 0; k <= v->layers; k++)
        replace(p, x, resnet_forward(p, &b->resnet[k], *x, (tensor){0}));
    if (b->up)
        replace(p, x, conv2d(p, &b->upsample, *x, (struct conv2d_args){.upsample = true, .normed = true}));
}

tensor vae_encode(pass *p, const struct vae *v, tensor x)
{
    const struct vae_encoder *e = &v->enc;
    int scale = vae_scale(v);
    if (!v->has_encoder || x.h % scale != 0 || x.w % scale != 0) {
        error_set(p->err, ERR_INTERNAL, "vae_encode: %s",
                  v->has_encoder ? "the sides are not multiples of vae_scale" : "the encoder was not loaded");
        return (tensor){0};
    }
    tensor h = convert(p, x, pass_dtype(p));                            /* N H W 3 */
    replace(p, &h, conv2d(p, &e->conv_in, h, (struct conv2d_args){0})); /* N H W C0 */
    for (int i = 0; i < v->levels; i++)
        down_block_forward(p, v, &e->down[i], &h);
    middle_forward(p, v, &e->mid, &h);                                                      /* N h w C */
    replace(p, &h, group_norm_silu(p, &e->norm_out, h, v->groups, NORM_EPS));               /* N h w C */
    replace(p, &h, conv2d(p, &e->conv_out, h, (struct conv2d_args){.f32_out = !v->quant})); /* N h w 2L */
    if (v->quant)
        replace(p, &h, conv2d(p, &e->quant_conv, h, (struct conv2d_args){.f32_out = true})); /* N h w 2L */
    return h;
}

tensor vae_decode(pass *p, const struct vae *v, tensor z)
{
    const struct vae_decoder *d = &v->dec;
    tensor h = convert(p, z, pass_dtype(p)); /* N h w latent_c */
    if (v->post_quant)
        replace(p, &h, conv2d(p, &d->post_quant_conv, h, (struct conv2d_args){0})); /* N h w latent_c */
    replace(p, &h, conv2d(p, &d->conv_in, h, (struct conv2d_args){0}));             /* N h w C */
    middle_forward(p, v, &d->mid, &h);
    for (int i = 0; i < v->levels; i++)
        up_block_forward(p, v, &d->up[i], &h);
    const struct norm_silu norm_out = {&d->norm_out, v->groups, NORM_EPS, true, false};
    return norm_silu_conv2d(p, norm_out, &d->conv_out, h,
                            (struct conv2d_args){.f32_out = true}); /* N H W 3 */
}
