/* The seam between networks and kernels.
 *
 * Above it: a network is written once, one op a line, and never says CPU, AVX or CUDA. Each function below
 * checks shapes, takes the output from the job's memory, and calls the backend's slot of the same name. Below
 * it: a backend is a table of slots (struct ops). `ref` fills every slot in plain C and is the truth; each
 * CPU tier overwrites what it improves; `plan` computes nothing and counts; `cuda` enqueues on a stream.
 *
 * Errors are sticky: the first failure is kept in pass->err, and later ops on that pass do nothing and return
 * a tensor of the right shape whose data must not be read. So a forward pass reads straight through, and its
 * caller checks pass->err->code once, at the end. No op allocates from the system: outputs come from
 * pass->mem.
 *
 * Ownership: every op returns a new tensor; give it back with tensor_free() as soon as its last reader ran.
 */
#ifndef LATENTD_OPS_H
#define LATENTD_OPS_H

#include <stdbool.h>

#include "error.h"
#include "tensor.h"

struct backend;
struct region;

typedef struct pass {
    struct backend *be;
    struct region *mem; /* job memory, see region.h */
    struct error *err;  /* the first error sticks */
} pass;

/* ---- Weights: handed to the backend once, opaque afterwards. Lifetime "model". ---- */

enum weight_kind {
    WEIGHT_CONV2D, /* kernel [O, I, KH, KW], bias [O] or none */
    WEIGHT_LINEAR, /* [O, I] (torch layout), bias [O] or none; several parts are stacked along O (QKV, KV) */
    WEIGHT_GEGLU,  /* a linear whose rows are [value half; gate half]; the op writes value * gelu(gate), O/2
                      wide */
    WEIGHT_NORM,   /* gamma [O], beta [O]; I, KH, KW = 1 */
    WEIGHT_EMBEDDING /* table [rows = O, C = I] */
};

enum { WEIGHT_PARTS_MAX = 3 };

/* ALWAYS: a call without it is ERR_INTERNAL where the backend keeps no other form. */
enum upsampling { UPSAMPLED_NEVER, UPSAMPLED_MOSTLY, UPSAMPLED_ALWAYS };

/* Numbers in host memory, as the file has them (often inside an mmap, so possibly unaligned). */
struct host_array {
    const void *data; /* NULL: absent */
    enum dtype dtype;
    size_t count;
};

/* What pack() gets. Each part has out_c / parts outputs. */
struct weight_source {
    enum weight_kind kind;
    int out_c, in_c, kh, kw;
    int parts; /* 1, or up to WEIGHT_PARTS_MAX for WEIGHT_LINEAR */
    struct host_array w[WEIGHT_PARTS_MAX];
    struct host_array bias[WEIGHT_PARTS_MAX]; /* beta for WEIGHT_NORM */
    int stride;               /* 1, 2: the convolution will be called with that; 0: with none that is known */
    enum upsampling upsample; /* a 3x3 convolution that will be called with .upsample: a backend may prepare
                                 for it */
    bool large; /* a 3x3 convolution of stride 1 whose pictures, in the backend's own type, mostly have
                   some thousand positions: a backend may prepare for them and keep no other form. A call
                   with a stride, .upsample, .pad_end or x of another type may then be ERR_INTERNAL */
    bool int8;  /* the network bears this matrix in int8 (kernels/int8.h), where the backend was asked to */
};

typedef struct weight {
    enum weight_kind kind;
    int out_c, in_c, kh, kw;
    bool has_bias, int8;
    unsigned char form; /* the backend's name for how it is packed; the same for all of one source */
    void *packed;       /* the backend's own layout; NULL: no weight */
    size_t bytes;       /* size of packed */
    bool mapped; /* packed lies in a file that is mapped: not to be written, nor the backend's to free */
} weight;

/* Copies SRC into the backend's layout. The source may be unmapped afterwards. On failure *W is empty. */
int weight_pack(struct backend *be, weight *w, const struct weight_source *src, struct error *err);
/* The same from BYTES that weight_pack() made of SRC on a backend of this layout (backend.h), which must
 * outlive the weight and are not copied. */
void weight_map(struct backend *be, weight *w, const struct weight_source *src, const void *bytes,
                size_t size);
void weight_free(struct backend *be, weight *w);

/* ---- Memory of the pass ---- */

/* Activation type of the backend: F32, or BF16/F16 where the tier computes in 16 bits. */
enum dtype pass_dtype(const pass *p);
/* Threads in one wave of the card whose draws randn gives; see noise.h. */
size_t pass_noise_wave(const pass *p);
tensor tensor_new(pass *p, int n, int h, int w, int c, enum dtype dtype);
/* Gives X's memory back to the pass and empties X. Only for tensors that an op returned, not for views. */
void tensor_free(pass *p, tensor *x);

/* Around one pass of a network that repeats with the same shapes, a denoising step: a backend with a device
 * may run what lies between as one piece. No tensor_from_host, tensor_to_host or to_rgb8 in between, and
 * nothing is computed before the end. */
void pass_step_begin(pass *p);
void pass_step_end(pass *p);

/* ---- Ops of the networks. Accumulation, norms and softmax are fp32 on every backend. ---- */

enum act { ACT_NONE, ACT_SILU, ACT_GELU, ACT_QUICK_GELU };

struct conv2d_args {
    int stride;      /* 0 means 1 */
    bool upsample;   /* read X as if nearest-neighbour upsampled 2x (Upsample2D), then convolve */
    bool pad_end;    /* pad (0, 1, 0, 1) instead of the symmetric (k-1)/2: the VAE encoder's Downsample2D */
    tensor add_bc;   /* optional [N, 1, 1, O]: added to every position (the time embedding); its rows may be
                        one and the same, see tensor_for_all() */
    tensor residual; /* optional [N, OH, OW, O]: added last, after ACT */
    enum act act;    /* applied after bias and add_bc */
    bool f32_out;    /* write F32 whatever the activation type is */
    bool normed;     /* a group norm mostly reads the output next: a backend may keep the sums that it needs
                        while it has the numbers at hand */
};
/* torch.nn.Conv2d, kernel 1x1 or 3x3 (others: ref only). x [N, H, W, I] -> [N, OH, OW, O]. */
tensor conv2d(pass *p, const weight *w, tensor x, struct conv2d_args a);

struct linear_args {
    enum act act;    /* applied after the bias; must be ACT_NONE for WEIGHT_GEGLU */
    tensor residual; /* optional [N, H, W, O]: added last */
    bool f32_out;
};
/* torch.nn.Conv3d with a kernel of (3, 1, 1) and padding (1, 0, 0), as diffusers' TemporalResnetBlock has it:
 * x [B * F, H, W, I], the F frames of a video one behind the other -> [B * F, H, W, O],
 * y[b, f] = sum over k of w[k] x[b, f + k - 1], zeros before the first frame and behind the last. W: a
 * WEIGHT_CONV2D [O, I, 3, 1], which is torch's [O, I, 3, 1, 1] as it lies. Of A: add_bc, one row a frame
 * [B * F, 1, 1, O], residual, act and f32_out; the rest must be 0. */
tensor conv_temporal(pass *p, const weight *w, tensor x, int frames, struct conv2d_args a);

/* torch.nn.Linear over the channels. x [N, H, W, I] -> [N, H, W, O]; WEIGHT_GEGLU -> [N, H, W, O/2],
 * value * gelu(gate) with the exact (erf) gelu, as diffusers' GEGLU. */
tensor linear(pass *p, const weight *w, tensor x, struct linear_args a);

struct attention_args {
    int heads;   /* C = heads * head size, heads outermost */
    float scale; /* usually 1/sqrt(head size) */
    bool causal; /* token i sees tokens 0..i only (the text encoder) */
};
/* softmax(scale * q k^T) v per picture and head. q [N, 1, T, C], k and v [N, 1, S, C] -> [N, 1, T, C].
 * q, k, v may be channel views of one QKV tensor. k and v may have n = 1 or q.n. */
tensor attention(pass *p, tensor q, tensor k, tensor v, struct attention_args a);

/* torch.nn.GroupNorm over [H, W, C/groups]; the second also applies SiLU. w: WEIGHT_NORM. */
tensor group_norm(pass *p, const weight *w, tensor x, int groups, float eps);
tensor group_norm_silu(pass *p, const weight *w, tensor x, int groups, float eps);
/* conv2d of group_norm_silu, as one op where a backend can: what a ResnetBlock2D does twice. LAST: nobody
 * reads X afterwards; its memory is given back as soon as it may be. LAST_RESIDUAL: likewise a.residual,
 * whose memory the output takes where it may. */
struct norm_silu {
    const weight *w;
    int groups;
    float eps;
    bool last, last_residual;
};
tensor norm_silu_conv2d(pass *p, struct norm_silu norm, const weight *w, tensor x, struct conv2d_args a);
/* torch.nn.LayerNorm over C. */
tensor layer_norm(pass *p, const weight *w, tensor x, float eps);
/* linear of layer_norm, as one op where a backend can, with the same bits: torch.nn.LayerNorm whose output
 * only one torch.nn.Linear reads, as in diffusers' BasicTransformerBlock and transformers' CLIPEncoderLayer.
 */
tensor layer_norm_linear(pass *p, const weight *norm, float eps, const weight *w, tensor x,
                         struct linear_args a);
tensor silu(pass *p, tensor x);
/* a + b, same shape. */
tensor add(pass *p, tensor a, tensor b);
/* share * a + (1 - share) * b, same shape: diffusers' AlphaBlender. */
tensor blend(pass *p, tensor a, tensor b, float share);
/* [N, H, W, A] and [N, H, W, B] -> [N, H, W, A + B]. */
tensor concat_channels(pass *p, tensor a, tensor b);
/* [N, H, W, C] -> [N, 2H, 2W, C]. */
tensor upsample_nearest(pass *p, tensor x);
/* The same to [N, H, W, C] with H, W twice x's, one less or one more: diffusers' upsample_size, for odd
 * sizes. Both ops share one slot, y[n][i][j] = x[n][i * x.h / y.h][j * x.w / y.w] (i / 2 but for one more);
 * it gets one picture when y.h is odd. */
tensor upsample_nearest_to(pass *p, tensor x, int h, int w);
/* tokens[ids[n][t]] + positions[t]; ids is host memory [N, T] -> [N, 1, T, C]. An id out of range is
 * ERR_INVALID. */
tensor embed_tokens(pass *p, const weight *tokens, const weight *positions, const int32_t *ids, int n, int t);
/* diffusers' get_timestep_embedding (sinusoidal, max_period 10000) for host timesteps[n] -> [N, 1, 1, dim].
 */
tensor timestep_embedding(pass *p, const float *timesteps, int n, int dim, bool flip_sin_to_cos,
                          float freq_shift);
/* x [N, ...] -> [times * N, ...]: whole batch repeated (torch.cat([x] * times)). */
tensor repeat_batch(pass *p, tensor x, int times);
/* A copy of X stored as DTYPE. */
tensor convert(pass *p, tensor x, enum dtype dtype);
/* The same into Y, which there is already: a tensor or a view of X's shape. */
void copy_to(pass *p, tensor y, tensor x);

/* ---- Ops of the sampler: always F32 ---- */

/* The draw that torch.randn makes on a CUDA generator for a tensor [N, C, H, W] (note the order), written as
 * NHWC. SEED is the generator's seed, OFFSET its Philox offset before the draw; see noise.h. When ROUND is
 * F16 or BF16 the draw is rounded to it first, as torch does for a model in that type. */
tensor randn(pass *p, int n, int h, int w, int c, uint64_t seed, uint64_t offset, enum dtype round);
enum { LINCOMB_MAX = 6 };
/* sum over i of coef[i] * x[i], all F32 and of one shape, count <= LINCOMB_MAX. */
tensor lincomb(pass *p, int count, const float *coef, const tensor *x);
/* The same with guide(x[pair], scale) in the place of x[pair], which is [2N, ...]: guidance and the
 * scheduler's step in one pass over the latents, with the bits that the two ops give. */
tensor lincomb_guided(pass *p, int count, const float *coef, const tensor *x, int pair, float scale);
/* Classifier-free guidance: e [2N, ...] = unconditional half, conditional half -> u + scale * (c - u), [N,
 * ...], F32. */
tensor guide(pass *p, tensor e, float scale);
tensor clip(pass *p, tensor x, float lo, float hi);
/* From a to b in equal steps, in place of b: diffusers' blend_v and blend_h, where two tiles overlap. a and b
 * [1, 1, H, W unit], F32, are the overlap as views (tensor_area). UNIT 0: down the rows,
 * b = (1 - t) a + t b with t = row / H; else along each row with t = column / W, a column being UNIT numbers.
 */
void ramp(pass *p, tensor a, tensor b, int unit);

/* ---- Between host and device ---- */

/* Host numbers [N, H, W, C] fp32, contiguous -> tensor of DTYPE. */
tensor tensor_from_host(pass *p, const float *host, int n, int h, int w, int c, enum dtype dtype);
/* Tensor -> host fp32, contiguous NHWC. Waits for the device. */
int tensor_to_host(pass *p, tensor x, float *host);
/* x [N, H, W, 3] in -1..1 -> host bytes, diffusers' VaeImageProcessor: clamp(x/2 + 0.5, 0, 1) * 255, rounded
 * half to even. Waits for the device. */
int to_rgb8(pass *p, tensor x, uint8_t *host);

/* ---- The table below the seam ---- */

/* Slots get outputs already allocated with the right shape (y), and checked arguments. X-macro so that the
 * table, its names, the "who serves" list and the tests cannot drift apart. */
#define OPS_LIST(X)                                                                                          \
    X(conv2d,                                                                                                \
      (struct backend *, tensor y, tensor x, const weight *w, const struct conv2d_args *a, struct error *))  \
    X(conv_temporal, (struct backend *, tensor y, tensor x, const weight *w, int frames,                     \
                      const struct conv2d_args *a, struct error *))                                          \
    X(linear,                                                                                                \
      (struct backend *, tensor y, tensor x, const weight *w, const struct linear_args *a, struct error *))  \
    X(attention, (struct backend *, tensor y, tensor q, tensor k, tensor v, const struct attention_args *a,  \
                  struct error *))                                                                           \
    X(group_norm,                                                                                            \
      (struct backend *, tensor y, tensor x, const weight *w, int groups, float eps, struct error *))        \
    X(group_norm_silu,                                                                                       \
      (struct backend *, tensor y, tensor x, const weight *w, int groups, float eps, struct error *))        \
    X(layer_norm, (struct backend *, tensor y, tensor x, const weight *w, float eps, struct error *))        \
    X(silu, (struct backend *, tensor y, tensor x, struct error *))                                          \
    X(add, (struct backend *, tensor y, tensor a, tensor b, struct error *))                                 \
    X(blend, (struct backend *, tensor y, tensor a, tensor b, float share, struct error *))                  \
    X(concat_channels, (struct backend *, tensor y, tensor a, tensor b, struct error *))                     \
    X(upsample_nearest, (struct backend *, tensor y, tensor x, struct error *))                              \
    X(embed_tokens, (struct backend *, tensor y, const weight *tokens, const weight *positions,              \
                     const int32_t *ids, struct error *))                                                    \
    X(timestep_embedding, (struct backend *, tensor y, const float *timesteps, bool flip_sin_to_cos,         \
                           float freq_shift, struct error *))                                                \
    X(repeat_batch, (struct backend *, tensor y, tensor x, struct error *))                                  \
    X(convert, (struct backend *, tensor y, tensor x, struct error *))                                       \
    X(randn, (struct backend *, tensor y, uint64_t seed, uint64_t offset, enum dtype round, struct error *)) \
    X(lincomb, (struct backend *, tensor y, int count, const float *coef, const tensor *x, int pair,         \
                float scale, struct error *)) /* pair < 0: none */                                           \
    X(guide, (struct backend *, tensor y, tensor e, float scale, struct error *))                            \
    X(clip, (struct backend *, tensor y, tensor x, float lo, float hi, struct error *))                      \
    X(ramp, (struct backend *, tensor y, tensor a, tensor b, int unit, struct error *)) /* y may be b */     \
    X(from_host, (struct backend *, tensor y, const float *host, struct error *))                            \
    X(to_host, (struct backend *, tensor x, float *host, struct error *))                                    \
    X(to_rgb8, (struct backend *, tensor x, uint8_t * host, struct error *))                                 \
    X(pack_conv2d, (struct backend *, weight * w, const struct weight_source *src, struct error *))          \
    X(pack_linear, (struct backend *, weight * w, const struct weight_source *src, struct error *))          \
    X(pack_norm, (struct backend *, weight * w, const struct weight_source *src, struct error *))            \
    X(pack_embedding, (struct backend *, weight * w, const struct weight_source *src, struct error *))       \
    X(unpack, (struct backend *, weight * w, struct error *))

#define OPS_ENUM(name, args)  OP_##name,
#define OPS_FIELD(name, args) int(*name) args;

enum op_id { OPS_LIST(OPS_ENUM) OP_COUNT };

struct ops {
    OPS_LIST(OPS_FIELD)
};

extern const char *const op_names[OP_COUNT];

#endif
