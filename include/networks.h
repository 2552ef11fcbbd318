/* The networks, backend-free. Each is loaded once (lifetime "model") and only reads its weights afterwards.
 * Every load function checks all names and shapes before it packs the first weight. close sets the pointer to
 * NULL. */
#ifndef LATENTD_NETWORKS_H
#define LATENTD_NETWORKS_H

#include "ops.h"

/* ---- CLIP text encoder: transformers' CLIPTextModel (ViT-L of SD 1.x, OpenCLIP ViT-H of SD 2.x) ---- */

struct clip_text;
/* Reads DIR/config.json and DIR/model*.safetensors. */
int clip_text_load(struct clip_text **net, struct backend *be, const char *dir, const char *variant,
                   struct error *err);
void clip_text_close(struct clip_text **net);
int clip_text_positions(const struct clip_text *net); /* tokens in a prompt: 77 */
int clip_text_vocab(const struct clip_text *net);
int clip_text_width(const struct clip_text *net);
/* ids [N, T] on the host -> last_hidden_state [N, 1, T, C] (after the final layer norm). */
tensor clip_text_forward(pass *p, const struct clip_text *net, const int32_t *ids, int n);

/* ---- UNet2DConditionModel of the SD 1.x and 2.x families ---- */

struct unet;
int unet_load(struct unet **net, struct backend *be, const char *dir, const char *variant, struct error *err);
void unet_close(struct unet **net);
int unet_in_channels(const struct unet *net);
int unet_sample_size(const struct unet *net);
int unet_cross_attention_dim(const struct unet *net);
/* Latents are halved levels - 1 times; odd sides are rounded up, as diffusers does. */
int unet_levels(const struct unet *net);
/* True when time_cond_proj_dim is set (LCM): unet_begin then takes the guidance scale as an embedding. */
int unet_time_cond_proj_dim(const struct unet *net);
enum dtype unet_stored_dtype(const struct unet *net);

/* What depends on the prompt and the timesteps only, computed once a request: text keys and values of every
 * cross-attention, and the time-embedding projection of every resnet for every step. Lives in the pass's
 * memory. */
struct unet_request;
/* text [N, 1, T, C] (n as in the steps to come); timesteps[count] on the host; TIME_COND: the guidance
 * embedding, host [unet_time_cond_proj_dim], or NULL for none. NULL when there is no memory. End with
 * unet_end. */
struct unet_request *unet_begin(pass *p, const struct unet *net, tensor text, const float *timesteps,
                                int count, const float *time_cond);
void unet_end(pass *p, struct unet_request **req);
/* One call: x [N, H, W, Cin], F32 or the pass's type -> model output [N, H, W, Cout] in F32, for
 * timesteps[k]. */
tensor unet_forward(pass *p, const struct unet *net, const struct unet_request *req, tensor x, int k);

/* ---- AutoencoderKL decoder ---- */

struct vae;
int vae_load(struct vae **net, struct backend *be, const char *dir, const char *variant, struct error *err);
void vae_close(struct vae **net);
int vae_scale(const struct vae *net); /* pixels per latent: 2^(levels - 1) */
int vae_latent_channels(const struct vae *net);
float vae_scaling_factor(const struct vae *net);
float vae_shift_factor(const struct vae *net); /* 0 where the config has none */
/* latents already divided by the scaling factor, [N, h, w, C] F32 -> picture [N, scale h, scale w, 3] F32 in
 * about -1..1. */
tensor vae_decode(pass *p, const struct vae *net, tensor z);

#endif
