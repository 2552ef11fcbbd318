/* The networks, backend-free. Each is loaded once (lifetime "model") and only reads its weights afterwards.
 * Every load function checks all names and shapes before it packs the first weight. close sets the pointer to
 * NULL. */
#ifndef LATENTD_NETWORKS_H
#define LATENTD_NETWORKS_H

#include "ops.h"

struct weight_list; /* see weights.h */

/* ---- CLIP text encoder: transformers' CLIPTextModel (ViT-L of SD 1.x, OpenCLIP ViT-H of SD 2.x) ---- */

struct clip_text;
/* Reads DIR/config.json and DIR/model*.safetensors. */
int clip_text_load(struct clip_text **net, struct backend *be, const char *dir, const char *variant,
                   struct error *err);
void clip_text_close(struct clip_text **net);
/* Its packed weights, for LoRAs: names begin with "text_model." or not, as in the file. */
struct weight_list *clip_text_weights(struct clip_text *net);
int clip_text_positions(const struct clip_text *net); /* tokens in a prompt: 77 */
/* From now on at most so many (a tokenizer's model_max_length); 0: no such bound. */
void clip_text_limit(struct clip_text *net, int tokens);
/* Whether the config asks for the padding to be masked (use_attention_mask), which is not built: pipelines of
 * SDXL do not read it, the others do. */
bool clip_text_masks_padding(const struct clip_text *net);
int clip_text_vocab(const struct clip_text *net);
int clip_text_width(const struct clip_text *net);
/* Width of the pooled output (CLIPTextModelWithProjection's text_embeds); 0: the model has no
 * text_projection. */
int clip_text_projection(const struct clip_text *net);
/* ids [N, T] on the host -> last_hidden_state [N, 1, T, C] (after the final layer norm). */
tensor clip_text_forward(pass *p, const struct clip_text *net, const int32_t *ids, int n);
/* As SDXL reads it: hidden_states[-2] [N, 1, T, C], the input of the last layer, not normed. POOLED, unless
 * NULL, gets text_embeds [N, 1, 1, projection]: the final norm's row at the end-of-text token (transformers'
 * rule for finding it), projected. */
tensor clip_text_forward_penultimate(pass *p, const struct clip_text *net, const int32_t *ids, int n,
                                     tensor *pooled);

/* ---- CLIP vision tower with the safety checker's concepts: diffusers' StableDiffusionSafetyChecker ---- */

struct safety_checker;
enum { SAFETY_CONCEPTS = 17, SAFETY_SPECIALS = 3 };
/* Reads DIR/config.json and DIR/model*.safetensors. */
int safety_checker_load(struct safety_checker **net, struct backend *be, const char *dir, const char *variant,
                        struct error *err);
void safety_checker_close(struct safety_checker **net);
/* Whether two checkers are the same network, up to the rounding of a half-precision file: SD 1.x repositories
 * carry copies of the one that CompVis published. */
bool safety_checker_same(const struct safety_checker *a, const struct safety_checker *b);
int safety_checker_side(const struct safety_checker *net);       /* pixels of a side of what it reads: 224 */
int safety_checker_projection(const struct safety_checker *net); /* numbers of a picture's embedding */
/* PIXELS [side, side, 3] on the host, resized and normalised (pipelines/safety.c) -> the picture's projected
 * embedding [1, 1, 1, projection], F32. */
tensor safety_checker_embed(pass *p, const struct safety_checker *net, const float *pixels);
/* The cosine of an embedding [projection] (on the host) with each concept less the concept's threshold,
 * rounded to three digits; nsfw when one of the 17 is above 0. A special concept above 0 adds 0.01 to all
 * scores after it. */
struct safety_scores {
    float special[SAFETY_SPECIALS], concept[SAFETY_CONCEPTS];
    bool nsfw;
};
void safety_checker_score(const struct safety_checker *net, const float *embed, struct safety_scores *s);
/* Both in one. Waits for the device. On the plan backend *NSFW stays false. */
int safety_checker_run(pass *p, const struct safety_checker *net, const float *pixels, bool *nsfw);

/* ---- UNet2DConditionModel of the SD 1.x, 2.x and SDXL families ---- */

struct unet;
int unet_load(struct unet **net, struct backend *be, const char *dir, const char *variant, struct error *err);
/* The same with the config of CONFIG_DIR and the weights WEIGHTS_DIR/STEM.safetensors: SDXL-Lightning, a UNet
 * file without a config of its own. */
int unet_load_from(struct unet **net, struct backend *be, const char *config_dir, const char *weights_dir,
                   const char *stem, const char *variant, struct error *err);
void unet_close(struct unet **net);
/* Its packed weights by their names in diffusers, for LoRAs. */
struct weight_list *unet_weights(struct unet *net);
int unet_in_channels(const struct unet *net);
int unet_sample_size(const struct unet *net);
int unet_cross_attention_dim(const struct unet *net);
/* Latents are halved levels - 1 times; odd sides are rounded up, as diffusers does. */
int unet_levels(const struct unet *net);
/* True when time_cond_proj_dim is set (LCM): unet_begin then takes the guidance scale as an embedding. */
int unet_time_cond_proj_dim(const struct unet *net);
enum dtype unet_stored_dtype(const struct unet *net);

/* Width of the pooled text that an SDXL UNet reads (addition_embed_type "text_time"), and how many time ids
 * beside it: 6; 0: none. */
int unet_pooled_dim(const struct unet *net);
int unet_time_ids(const struct unet *net);
/* Class labels that the model knows (num_class_embeds): 1000 noise levels for the x4 upscaler; 0: it reads
 * none. */
int unet_labels(const struct unet *net);

/* What a request tells the UNet. N is text.n. */
struct unet_conditions {
    tensor text;            /* [N, 1, T, C] */
    const float *timesteps; /* [count] */
    int count;
    const float *time_cond; /* [unet_time_cond_proj_dim], or NULL */
    tensor pooled;          /* SDXL: [N, 1, 1, unet_pooled_dim], F32 or the pass's type */
    const float *time_ids;  /* SDXL: [N, unet_time_ids], on the host */
    int label;              /* of every picture, below unet_labels; 0 where the model has none */
};

/* What depends on the prompt and the timesteps only, computed once a request: text keys and values of every
 * cross-attention, and the time-embedding projection of every resnet for every step. Lives in the pass's
 * memory. */
struct unet_request;
/* N as in the steps to come. NULL, and an error in the pass, when there is no memory, or when a condition
 * that the model reads is missing, of the wrong shape, or given to a model that does not read it
 * (ERR_INTERNAL, says which). End with unet_end. */
struct unet_request *unet_begin(pass *p, const struct unet *net, const struct unet_conditions *c);
void unet_end(pass *p, struct unet_request **req);
/* One call: x [N, H, W, Cin], F32 or the pass's type -> model output [N, H, W, Cout] in F32, for
 * timesteps[k]. */
tensor unet_forward(pass *p, const struct unet *net, const struct unet_request *req, tensor x, int k);
/* The same, keeping what is below the outermost skip (DeepCache with branch 0). *DEEP empty: all is computed,
 * and *DEEP becomes what the last up layer reads from below, the caller's to free. Else that is read from
 * *DEEP, of an earlier call of the same request, and only conv_in, the last up layer and conv_out are
 * computed. */
tensor unet_forward_cached(pass *p, const struct unet *net, const struct unet_request *req, tensor x, int k,
                           tensor *deep);

/* ---- UNetSpatioTemporalConditionModel: Stable Video Diffusion. The F frames of B videos lie one behind the
 * other. ---- */

struct unet_video;
int unet_video_load(struct unet_video **net, struct backend *be, const char *dir, const char *variant,
                    struct error *err);
void unet_video_close(struct unet_video **net);
int unet_video_in_channels(const struct unet_video *net);  /* 8: the noisy latents, then the image's */
int unet_video_out_channels(const struct unet_video *net); /* 4 */
int unet_video_sample_size(const struct unet_video *net);
int unet_video_frames(const struct unet_video *net);      /* num_frames: 14 or 25 */
int unet_video_token_width(const struct unet_video *net); /* of the image's embedding: 1024 */
int unet_video_ids(const struct unet_video *net);         /* added time ids: 3 */
enum dtype unet_video_stored_dtype(const struct unet_video *net);

/* What a request tells the video UNet. All numbers are on the host. Timesteps and ids are the same for all
 * its videos, which are the two sides of guidance. */
struct unet_video_conditions {
    int videos, frames;     /* B, F */
    const float *image;     /* [B, unet_video_token_width]: the image's embedding, or zeros */
    const float *timesteps; /* [count]: 0.25 ln(sigma) */
    int count;
    const float *ids; /* [unet_video_ids]: fps - 1, motion bucket, strength of the noise on the image */
};

/* What depends on these only, computed once a request: the time-embedding projection of every resnet for
 * every step, the position of every frame in time, and the cross-attentions, which over one token are one
 * vector. Lives in the pass's memory. NULL, and an error in the pass, when there is no memory or a condition
 * is missing. End with unet_video_end. */
struct unet_video_request;
struct unet_video_request *unet_video_begin(pass *p, const struct unet_video *net,
                                            const struct unet_video_conditions *c);
void unet_video_end(pass *p, struct unet_video_request **req);
/* One call: x [BF, H, W, Cin], F32 or the pass's type -> model output [BF, H, W, Cout] in F32, for
 * timesteps[k]. */
tensor unet_video_forward(pass *p, const struct unet_video *net, const struct unet_video_request *req,
                          tensor x, int k);
/* With *DEEP as unet_forward_cached. */
tensor unet_video_forward_cached(pass *p, const struct unet_video *net, const struct unet_video_request *req,
                                 tensor x, int k, tensor *deep);

/* ---- AutoencoderKL ---- */

struct vae;
/* ENCODER: whether to load the encoder too. */
int vae_load(struct vae **net, struct backend *be, const char *dir, const char *variant, bool encoder,
             struct error *err);
void vae_close(struct vae **net);
int vae_scale(const struct vae *net); /* pixels per latent: 2^(levels - 1) */
int vae_latent_channels(const struct vae *net);
float vae_scaling_factor(const struct vae *net);
float vae_shift_factor(const struct vae *net); /* 0 where the config has none */
/* latents_mean and latents_std of the config, one a latent channel, which SDXL's pipelines read (Playground
 * v2.5): latents are (z - mean) * scaling factor / std. False where it has none. */
bool vae_latents_stats(const struct vae *net, const float **mean, const float **std);
/* latents already divided by the scaling factor, [N, h, w, C] F32 -> picture [N, scale h, scale w, 3] F32 in
 * about -1..1. */
tensor vae_decode(pass *p, const struct vae *net, tensor z);
/* Whether the encoder was loaded; vae_load leaves it out unless asked. */
bool vae_has_encoder(const struct vae *net);
/* picture [N, H, W, 3] F32 in -1..1, sides multiples of vae_scale -> moments [N, h, w, 2C] F32: the mean,
 * then the logarithm of the variance (diffusers' DiagonalGaussianDistribution, before its clamp). */
tensor vae_encode(pass *p, const struct vae *net, tensor x);

/* Pictures of more than VAE_UNTILED_PIXELS go through the VAE in tiles, as after diffusers'
 * enable_vae_tiling(): a rule of the size alone, so that a picture depends on its request only. The side of a
 * tile is the VAE's sample_size, but at least VAE_TILE_MIN, where diffusers would show more of the seams. */
enum { VAE_UNTILED_PIXELS = 2048 * 2048, VAE_TILE_MIN = 512 };
/* Side of the tiles for a picture of this size, in pixels; 0: it is not tiled. */
int vae_tile_side(const struct vae *net, int height, int width);
struct vae_tiles {
    int side; /* a multiple of 4 vae_scale */
    /* Unless NULL, called before each tile, TILE from 1 to TILES. False ends the work: then it has set the
     * pass's error. */
    bool (*enter)(void *ctx, int tile, int tiles);
    void *ctx;
};
/* As vae_decode and vae_encode, of one picture (N = 1), a tile after the other; tiles overlap by a quarter
 * and fade into each other: diffusers' AutoencoderKL.tiled_decode and _tiled_encode. */
tensor vae_decode_tiled(pass *p, const struct vae *net, tensor z, const struct vae_tiles *tiles);
tensor vae_encode_tiled(pass *p, const struct vae *net, tensor x, const struct vae_tiles *tiles);

/* ---- AutoencoderKLTemporalDecoder: AutoencoderKL's encoder, and a decoder that sees the frames of a video
 * together ---- */

struct vae_video;
int vae_video_load(struct vae_video **net, struct backend *be, const char *dir, const char *variant,
                   struct error *err);
void vae_video_close(struct vae_video **net);
int vae_video_scale(const struct vae_video *net); /* pixels per latent: 2^(levels - 1) */
int vae_video_latent_channels(const struct vae_video *net);
float vae_video_scaling_factor(const struct vae_video *net);
bool vae_video_force_upcast(const struct vae_video *net); /* it overflows fp16 */
/* As vae_encode: pictures [N, H, W, 3] -> moments [N, h, w, 2C] F32. */
tensor vae_video_encode(pass *p, const struct vae_video *net, tensor x);
/* FRAMES frames of each video (the pipeline decodes a few at a time: decode_chunk_size), latents already
 * divided by the scaling factor, [B FRAMES, h, w, C] F32 -> [B FRAMES, scale h, scale w, 3] F32 in about
 * -1..1. */
tensor vae_video_decode(pass *p, const struct vae_video *net, tensor z, int frames);

/* ---- CLIPVisionModelWithProjection: the image encoder of Stable Video Diffusion ---- */

struct clip_vision;
/* Reads DIR/config.json and DIR/model*.safetensors. */
int clip_vision_load(struct clip_vision **net, struct backend *be, const char *dir, const char *variant,
                     struct error *err);
void clip_vision_close(struct clip_vision **net);
int clip_vision_side(const struct clip_vision *net);       /* pixels of a side of what it reads: 224 */
int clip_vision_projection(const struct clip_vision *net); /* numbers of a picture's embedding: 1024 */
/* PIXELS [side, side, 3] on the host, resized and normalised -> image_embeds [1, 1, 1, projection], F32. */
tensor clip_vision_embed(pass *p, const struct clip_vision *net, const float *pixels);

#endif
