/* AutoencoderKL's parts, for those that share them. Private to src/networks. */
#ifndef LATENTD_VAE_H
#define LATENTD_VAE_H

#include "blocks.h"

struct vae_down_block {
    struct resnet resnet[LAYERS_MAX];
    bool down;
    weight downsample;
};

/* One head over all pixels. */
struct vae_attention {
    weight norm, qkv, out;
};

struct vae_middle {
    struct resnet resnet[2];
    struct vae_attention attn; /* where the config has it */
};

struct vae_up_block {
    struct resnet resnet[LAYERS_MAX + 1];
    bool up;
    weight upsample;
};

struct vae_encoder {
    weight conv_in;
    struct vae_down_block down[LEVELS_MAX];
    struct vae_middle mid;
    weight norm_out, conv_out, quant_conv;
};

struct vae_decoder {
    weight post_quant_conv, conv_in;
    struct vae_middle mid;
    struct vae_up_block up[LEVELS_MAX];
    weight norm_out, conv_out;
};

struct vae {
    struct backend *be;
    struct weight_list packed;
    int levels, channels[LEVELS_MAX], layers, groups, latent_c, sample_size;
    bool quant, post_quant, mid_attention, has_encoder;
    float scaling_factor, shift_factor;
    bool has_stats;
    float latents_mean[LATENT_CHANNELS_MAX], latents_std[LATENT_CHANNELS_MAX]; /* [latent_c] */
    struct vae_encoder enc;
    struct vae_decoder dec;
};

/* The encoder, and quant_conv where there is one. V has its config. */
void vae_load_encoder(struct loader *l, struct vae *v);
/* HALF: "encoder" or "decoder". */
void vae_load_attention(struct loader *l, struct vae_attention *a, int c, const char *half);
/* x [N, H, W, C] -> [N, H, W, C]. */
tensor vae_attention_forward(pass *p, const struct vae_attention *a, tensor x, int groups);

#endif
