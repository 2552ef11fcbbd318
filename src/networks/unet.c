/* UNet2DConditionModel's forward pass: down, middle and up blocks with skip connections, told about the
 * timestep and the text. Source: diffusers models/unets/unet_2d_condition.py and unet_2d_blocks.py. It reads
 * no tensor's numbers, so the plan backend can walk it. */
#include "unet.h"

#include <stdlib.h>

#include "networks.h"

enum { SKIPS_MAX = LEVELS_MAX * (LAYERS_MAX + 1) + 1 };

struct unet_request {
    int n, calls;             /* pictures in a batch, UNet calls */
    tensor time[RESNETS_MAX]; /* [calls * n, 1, 1, O]: rows of call k are k*n .. k*n + n - 1 */
    tensor text[CROSS_MAX];   /* [N, 1, S, 2C]: keys, values */
};

/* One forward pass: what its blocks share. */
struct unet_call {
    pass *p;
    const struct unet *net;
    const struct unet_request *req;
    int k;
    tensor skip[SKIPS_MAX];
    int skips;
};

/* ---- Once a request ---- */

/* Timesteps, plus the guidance embedding where the model has one: timesteps [rows] -> [rows, 1, 1, C0]. */
static tensor time_sinusoids(pass *p, const struct unet *net, const struct unet_conditions *c,
                             const float *timesteps, int rows)
{
    const struct unet_config *u = &net->cfg;
    tensor t = timestep_embedding(p, timesteps, rows, u->channels[0], u->flip_sin_to_cos, u->freq_shift);
    if (c->time_cond && u->time_cond_c) {
        tensor g = tensor_from_host(p, c->time_cond, 1, 1, 1, u->time_cond_c, pass_dtype(p));
        replace(p, &g, linear(p, &net->time_cond, g, (struct linear_args){0})); /* 1 1 1 C0 */
        replace(p, &g, repeat_batch(p, g, rows));                               /* rows 1 1 C0 */
        replace(p, &t, add(p, t, g));                                           /* rows 1 1 C0 */
        tensor_free(p, &g);
    }
    return t;
}

/* addition_embed_type "text_time": the pooled text, then the sinusoids of the time ids, through two linears
 * -> [N, 1, 1, time_c]. */
static tensor added_embedding(pass *p, const struct unet *net, const struct unet_conditions *c)
{
    const struct unet_config *u = &net->cfg;
    int n = c->text.n, ids = u->time_ids, width = u->time_id_c;
    tensor t = timestep_embedding(p, c->time_ids, n * ids, width, u->flip_sin_to_cos, u->freq_shift);
    tensor h = convert(p, c->pooled, pass_dtype(p));                                   /* N 1 1 pooled */
    replace(p, &h, concat_channels(p, h, tensor_as_vectors(t, n, ids * width)));       /* N 1 1 both */
    replace(p, &h, linear(p, &net->added1, h, (struct linear_args){.act = ACT_SILU})); /* N 1 1 time_c */
    replace(p, &h, linear(p, &net->added2, h, (struct linear_args){0}));               /* N 1 1 time_c */
    tensor_free(p, &t);
    return h;
}

/* What is added to the timestep's embedding before its SiLU, one row for each of ROWS: SDXL's pooled text and
 * sizes, or the learned row of a class label. Without either an empty tensor. */
static tensor added_rows(pass *p, const struct unet *net, const struct unet_conditions *c, int rows)
{
    tensor h = {0};
    int count = rows;
    if (net->cfg.pooled_c) {
        h = added_embedding(p, net, c); /* N 1 1 time_c */
        count = c->count;
    } else if (net->cfg.labels) {
        const float *row = net->label + (size_t)c->label * (size_t)net->cfg.time_c;
        h = tensor_from_host(p, row, 1, 1, 1, net->cfg.time_c, pass_dtype(p)); /* 1 1 1 time_c */
    } else {
        return h;
    }
    replace(p, &h, repeat_batch(p, h, count)); /* rows 1 1 time_c */
    return h;
}

/* TimestepEmbedding, plus what the model adds to it -> SiLU of it, which is what every resnet reads.
 * timesteps [count * N], those of call 0 first -> [count * N, 1, 1, time_c]. */
static tensor time_embedding(pass *p, const struct unet *net, const struct unet_conditions *c,
                             const float *timesteps)
{
    tensor t = time_sinusoids(p, net, c, timesteps, c->count * c->text.n);
    replace(p, &t, linear(p, &net->time1, t, (struct linear_args){.act = ACT_SILU})); /* rows 1 1 time_c */
    tensor added = added_rows(p, net, c, c->count * c->text.n);
    if (!added.n) {
        replace(p, &t,
                linear(p, &net->time2, t, (struct linear_args){.act = ACT_SILU})); /* rows 1 1 time_c */
        return t;
    }
    replace(p, &t, linear(p, &net->time2, t, (struct linear_args){.residual = added})); /* rows 1 1 time_c */
    replace(p, &t, silu(p, t));                                                         /* rows 1 1 time_c */
    tensor_free(p, &added);
    return t;
}

/* What is given must be what the model reads: nothing is made up, and nothing left unread. */
static bool check_conditions(pass *p, const struct unet_config *u, const struct unet_conditions *c)
{
    const char *wrong = NULL;
    if (c->text.n < 1 || c->text.c != u->cross_c)
        wrong = "text is not as wide as cross_attention_dim";
    else if (c->count < 1 || !c->timesteps)
        wrong = "there are no timesteps";
    else if (c->time_cond && !u->time_cond_c)
        wrong = "time_cond is given, but the model has no time_cond_proj_dim";
    else if (u->pooled_c && !c->pooled.data)
        wrong = "the pooled text is missing (addition_embed_type \"text_time\")";
    else if (u->pooled_c && !c->time_ids)
        wrong = "the time ids are missing (addition_embed_type \"text_time\")";
    else if (u->pooled_c && (c->pooled.n != c->text.n || c->pooled.h * c->pooled.w != 1))
        wrong = "the pooled text is not one vector for each picture of the text";
    else if (c->pooled.data && c->pooled.c != u->pooled_c)
        wrong = "the pooled text is not as wide as the model reads it";
    else if (u->labels ? c->label < 0 || c->label >= u->labels : c->label != 0)
        wrong = u->labels ? "the class label is not below num_class_embeds"
                          : "a class label is given, but the model has no num_class_embeds";
    else if (c->time_ids && !u->time_ids)
        wrong = "time ids are given, but the model has no addition_embed_type";
    if (wrong && !p->err->code)
        error_set(p->err, ERR_INTERNAL,
                  "unet_begin: %s; text [%d, %d, %d, %d] for %d, pooled [%d, %d, %d, %d] for %d", wrong,
                  c->text.n, c->text.h, c->text.w, c->text.c, u->cross_c, c->pooled.n, c->pooled.h,
                  c->pooled.w, c->pooled.c, u->pooled_c);
    return !p->err->code;
}

struct unet_request *unet_begin(pass *p, const struct unet *net, const struct unet_conditions *c)
{
    if (!check_conditions(p, &net->cfg, c))
        return NULL;
    int n = c->text.n;
    struct unet_request *req = calloc(1, sizeof(*req));
    float *rows = calloc((size_t)c->count * (size_t)n, sizeof(*rows));
    if (!req || !rows) {
        error_set(p->err, ERR_NOMEM, "out of memory starting a request");
        free(rows);
        free(req);
        return NULL;
    }
    req->n = n;
    req->calls = c->count;
    for (int i = 0; i < c->count * n; i++)
        rows[i] = c->timesteps[i / n];
    tensor t = time_embedding(p, net, c, rows);
    for (int i = 0; i < net->once.times; i++)
        req->time[i] = linear(p, net->once.time[i], t, (struct linear_args){0}); /* calls*n 1 1 O */
    for (int i = 0; i < net->once.texts; i++)
        req->text[i] = linear(p, net->once.text[i], c->text, (struct linear_args){0}); /* N 1 S 2C */
    tensor_free(p, &t);
    free(rows);
    return req;
}

void unet_end(pass *p, struct unet_request **req)
{
    if (!*req)
        return;
    for (int i = 0; i < RESNETS_MAX; i++)
        tensor_free(p, &(*req)->time[i]);
    for (int i = 0; i < CROSS_MAX; i++)
        tensor_free(p, &(*req)->text[i]);
    free(*req);
    *req = NULL;
}

/* ---- One call ---- */

static tensor resnet_at(const struct unet_call *c, const struct resnet *r, tensor x)
{
    tensor time = tensor_batch(c->req->time[r->time], c->k * c->req->n, c->req->n); /* N 1 1 O */
    return resnet_forward(c->p, r, x, time);
}

/* Keeps X for the up path, which frees it. */
static tensor push(struct unet_call *c, tensor x)
{
    c->skip[c->skips++] = x;
    return x;
}

/* DownBlock2D, CrossAttnDownBlock2D: x [N, H, W, in_c] -> [N, H/2, W/2, C], rounded up; the last block does
 * not halve. Every tensor it makes is a skip, its result too. */
static tensor down_block(struct unet_call *c, const struct unet_down *b, tensor x)
{
    for (int i = 0; i < b->layers; i++) {
        x = resnet_at(c, &b->resnet[i], x); /* N H W C */
        if (b->cross)
            replace(c->p, &x, transformer_forward(c->p, &b->attn[i], x, c->req->text));
        push(c, x);
    }
    if (b->down) /* N H/2 W/2 C */
        x = push(c, conv2d(c->p, &b->downsample, x,
                           (struct conv2d_args){.stride = 2, .pad_end = c->net->cfg.pad_end}));
    return x;
}

/* UNetMidBlock2DCrossAttn: [N, H, W, C] -> a new tensor of the same shape. */
static tensor middle_block(struct unet_call *c, tensor x)
{
    pass *p = c->p;
    if (!c->net->cfg.middle)
        return convert(p, x, x.dtype); /* x itself is a skip */
    tensor h = resnet_at(c, &c->net->mid_resnet[0], x);
    replace(p, &h, transformer_forward(p, &c->net->mid_attn, h, c->req->text));
    replace(p, &h, resnet_at(c, &c->net->mid_resnet[1], h));
    return h;
}

/* X beside the next skip, which goes last and is freed: N H W (in_c + skip_c). */
static tensor join_skip(struct unet_call *c, tensor x)
{
    tensor *skip = &c->skip[--c->skips];
    tensor both = concat_channels(c->p, x, *skip);
    tensor_free(c->p, skip);
    return both;
}

/* Layer I of B behind its skip. */
static void up_layer(struct unet_call *c, const struct unet_up *b, int i, tensor *x)
{
    replace(c->p, x, resnet_at(c, &b->resnet[i], *x)); /* N H W C */
    if (b->cross)
        replace(c->p, x, transformer_forward(c->p, &b->attn[i], *x, c->req->text));
}

/* UpBlock2D, CrossAttnUpBlock2D: *x [N, H, W, in_c] becomes [N, 2H, 2W, C]; the
 * last block does not double, and leaves its last layer to the caller. */
static void up_block(struct unet_call *c, const struct unet_up *b, tensor *x)
{
    for (int i = 0; i < b->layers - !b->up; i++) {
        replace(c->p, x, join_skip(c, *x));
        up_layer(c, b, i, x);
    }
    if (b->up)
        replace(c->p, x, upsample_to(c->p, &b->upsample, *x, c->skip[c->skips - 1]));
}

/* The whole U below its outermost pair of layers: N H W C0 -> N H W C, what the last up layer reads beside
 * the outermost skip. */
static tensor deep_layers(struct unet_call *c, tensor h)
{
    int levels = c->net->cfg.levels;
    for (int i = 0; i < levels; i++)
        h = down_block(c, &c->net->down[i], h);
    h = middle_block(c, h);
    for (int i = 0; i < levels; i++)
        up_block(c, &c->net->up[i], &h);
    return h;
}

tensor unet_forward(pass *p, const struct unet *net, const struct unet_request *req, tensor x, int k)
{
    return unet_forward_cached(p, net, req, x, k, NULL);
}

tensor unet_forward_cached(pass *p, const struct unet *net, const struct unet_request *req, tensor x, int k,
                           tensor *deep)
{
    const struct unet_config *u = &net->cfg;
    const struct unet_up *last = &net->up[u->levels - 1];
    struct unet_call c = {.p = p, .net = net, .req = req, .k = k};
    if (!req || k < 0 || k >= req->calls || x.n != req->n) {
        error_set(p->err, ERR_INTERNAL, "unet_forward: call %d with %d pictures was not begun", k, x.n);
        return (tensor){0};
    }
    tensor h = convert(p, x, pass_dtype(p));                              /* N H W in_c */
    replace(p, &h, conv2d(p, &net->conv_in, h, (struct conv2d_args){0})); /* N H W C0 */
    push(&c, h);
    tensor below = deep && deep->n ? *deep : deep_layers(&c, h); /* N H W C */
    h = join_skip(&c, below);
    if (deep)
        *deep = below;
    else
        tensor_free(p, &below);
    up_layer(&c, last, last->layers - 1, &h); /* N H W C0 */
    return norm_silu_conv2d(p, (struct norm_silu){&net->norm_out, u->groups, u->eps, true, false},
                            &net->conv_out, h, (struct conv2d_args){.f32_out = true}); /* N H W out_c */
}
