/* The plan backend: every slot counts calls, FLOPs and bytes into its own struct plan_report and touches no
 * data, so a pipeline can be walked in microseconds to learn whether a request fits, and how long it should
 * take. Tensors carry addresses that must not be read; of weights only the shape and the packed size are
 * looked at. Nothing is shared between two plan backends. */
#include <stdlib.h>
#include <string.h>

#include "plan.h"

struct plan {
    struct plan_report report;
    const struct backend *target; /* NULL: none */
};

static double tensor_bytes(tensor x)
{
    return x.data ? (double)tensor_count(x) * (double)dtype_size(x.dtype) : 0;
}

static void add_count(struct plan_count *to, const struct plan_count *c)
{
    to->calls += c->calls;
    to->flops += c->flops;
    to->read += c->read;
    to->written += c->written;
    to->weights += c->weights;
}

/* One call of op ID. WEIGHTS is counted as read, too. */
static int count(struct backend *be, enum op_id id, double flops, double read, double weights, double written)
{
    struct plan_report *r = &((struct plan *)be->state)->report;
    struct plan_count c = {1, flops, read + weights, written, weights};
    add_count(&r->op[id], &c);
    add_count(&r->total, &c);
    return 0;
}

static int plan_conv2d(struct backend *be, tensor y, tensor x, const weight *w, const struct conv2d_args *a,
                       struct error *err)
{
    (void)err;
    double flops = 2.0 * (double)tensor_count(y) * w->in_c * w->kh * w->kw;
    double read = tensor_bytes(x) + tensor_bytes(a->add_bc) + tensor_bytes(a->residual);
    return count(be, OP_conv2d, flops, read, (double)w->bytes, tensor_bytes(y));
}

static int plan_conv_temporal(struct backend *be, tensor y, tensor x, const weight *w, int frames,
                              const struct conv2d_args *a, struct error *err)
{
    (void)frames;
    (void)err;
    double flops = 2.0 * (double)tensor_count(y) * w->in_c * w->kh;
    double read = tensor_bytes(x) + tensor_bytes(a->add_bc) + tensor_bytes(a->residual);
    return count(be, OP_conv_temporal, flops, read, (double)w->bytes, tensor_bytes(y));
}

static int plan_linear(struct backend *be, tensor y, tensor x, const weight *w, const struct linear_args *a,
                       struct error *err)
{
    (void)err;
    double flops = 2.0 * (double)tensor_rows(y) * w->in_c * w->out_c;
    return count(be, OP_linear, flops, tensor_bytes(x) + tensor_bytes(a->residual), (double)w->bytes,
                 tensor_bytes(y));
}

/* Both matrix products over all keys: a causal mask saves half of it, which the published counts leave out,
 * too. */
static int plan_attention(struct backend *be, tensor y, tensor q, tensor k, tensor v,
                          const struct attention_args *a, struct error *err)
{
    (void)a;
    (void)err;
    double flops = 4.0 * (double)tensor_count(q) * k.w;
    return count(be, OP_attention, flops, tensor_bytes(q) + tensor_bytes(k) + tensor_bytes(v), 0,
                 tensor_bytes(y));
}

static int plan_group_norm(struct backend *be, tensor y, tensor x, const weight *w, int groups, float eps,
                           struct error *err)
{
    (void)groups;
    (void)eps;
    (void)err;
    return count(be, OP_group_norm, 0, tensor_bytes(x), (double)w->bytes, tensor_bytes(y));
}

static int plan_group_norm_silu(struct backend *be, tensor y, tensor x, const weight *w, int groups,
                                float eps, struct error *err)
{
    (void)groups;
    (void)eps;
    (void)err;
    return count(be, OP_group_norm_silu, 0, tensor_bytes(x), (double)w->bytes, tensor_bytes(y));
}

static int plan_layer_norm(struct backend *be, tensor y, tensor x, const weight *w, float eps,
                           struct error *err)
{
    (void)eps;
    (void)err;
    return count(be, OP_layer_norm, 0, tensor_bytes(x), (double)w->bytes, tensor_bytes(y));
}

static int plan_silu(struct backend *be, tensor y, tensor x, struct error *err)
{
    (void)err;
    return count(be, OP_silu, 0, tensor_bytes(x), 0, tensor_bytes(y));
}

static int plan_add(struct backend *be, tensor y, tensor a, tensor b, struct error *err)
{
    (void)err;
    return count(be, OP_add, 0, tensor_bytes(a) + tensor_bytes(b), 0, tensor_bytes(y));
}

static int plan_blend(struct backend *be, tensor y, tensor a, tensor b, float share, struct error *err)
{
    (void)share;
    (void)err;
    return count(be, OP_blend, 0, tensor_bytes(a) + tensor_bytes(b), 0, tensor_bytes(y));
}

static int plan_concat_channels(struct backend *be, tensor y, tensor a, tensor b, struct error *err)
{
    (void)err;
    return count(be, OP_concat_channels, 0, tensor_bytes(a) + tensor_bytes(b), 0, tensor_bytes(y));
}

static int plan_upsample_nearest(struct backend *be, tensor y, tensor x, struct error *err)
{
    (void)err;
    return count(be, OP_upsample_nearest, 0, tensor_bytes(x), 0, tensor_bytes(y));
}

/* Of each table only the rows that are looked up: one for each output row. */
static int plan_embed_tokens(struct backend *be, tensor y, const weight *tokens, const weight *positions,
                             const int32_t *ids, struct error *err)
{
    (void)ids;
    (void)err;
    double rows = (double)tensor_rows(y);
    double table = (double)tokens->bytes / tokens->out_c * rows;
    double places = (double)positions->bytes / positions->out_c * y.w;
    return count(be, OP_embed_tokens, 0, 4 * rows, table + places, tensor_bytes(y));
}

static int plan_timestep_embedding(struct backend *be, tensor y, const float *timesteps, bool flip_sin_to_cos,
                                   float freq_shift, struct error *err)
{
    (void)timesteps;
    (void)flip_sin_to_cos;
    (void)freq_shift;
    (void)err;
    return count(be, OP_timestep_embedding, 0, 4.0 * y.n, 0, tensor_bytes(y));
}

static int plan_repeat_batch(struct backend *be, tensor y, tensor x, struct error *err)
{
    (void)err;
    return count(be, OP_repeat_batch, 0, tensor_bytes(x), 0, tensor_bytes(y));
}

static int plan_convert(struct backend *be, tensor y, tensor x, struct error *err)
{
    (void)err;
    return count(be, OP_convert, 0, tensor_bytes(x), 0, tensor_bytes(y));
}

static int plan_randn(struct backend *be, tensor y, uint64_t seed, uint64_t offset, enum dtype round,
                      struct error *err)
{
    (void)seed;
    (void)offset;
    (void)round;
    (void)err;
    return count(be, OP_randn, 0, 0, 0, tensor_bytes(y));
}

static int plan_lincomb(struct backend *be, tensor y, int terms, const float *coef, const tensor *x, int pair,
                        float scale, struct error *err)
{
    (void)coef;
    (void)x;
    (void)scale;
    (void)err;
    return count(be, OP_lincomb, 0, (terms + (pair >= 0)) * tensor_bytes(y), 0, tensor_bytes(y));
}

static int plan_guide(struct backend *be, tensor y, tensor e, float scale, struct error *err)
{
    (void)scale;
    (void)err;
    return count(be, OP_guide, 0, tensor_bytes(e), 0, tensor_bytes(y));
}

static int plan_clip(struct backend *be, tensor y, tensor x, float lo, float hi, struct error *err)
{
    (void)lo;
    (void)hi;
    (void)err;
    return count(be, OP_clip, 0, tensor_bytes(x), 0, tensor_bytes(y));
}

static int plan_ramp(struct backend *be, tensor y, tensor a, tensor b, int unit, struct error *err)
{
    (void)unit;
    (void)err;
    return count(be, OP_ramp, 0, tensor_bytes(a) + tensor_bytes(b), 0, tensor_bytes(y));
}

static int plan_from_host(struct backend *be, tensor y, const float *host, struct error *err)
{
    (void)host;
    (void)err;
    return count(be, OP_from_host, 0, 4.0 * (double)tensor_count(y), 0, tensor_bytes(y));
}

static int plan_to_host(struct backend *be, tensor x, float *host, struct error *err)
{
    (void)host;
    (void)err;
    return count(be, OP_to_host, 0, tensor_bytes(x), 0, 4.0 * (double)tensor_count(x));
}

static int plan_to_rgb8(struct backend *be, tensor x, uint8_t *host, struct error *err)
{
    (void)host;
    (void)err;
    return count(be, OP_to_rgb8, 0, tensor_bytes(x), 0, (double)tensor_count(x));
}

/* A network loaded onto a plan backend has weights without numbers, of the size they would have in the
 * activation type; `packed` only says that there is a weight. */
static int plan_pack(struct backend *be, enum op_id id, weight *w)
{
    size_t count_of = (size_t)w->out_c * (size_t)w->in_c * (size_t)w->kh * (size_t)w->kw;
    size_t bias = w->kind == WEIGHT_NORM || w->has_bias ? (size_t)w->out_c * sizeof(float) : 0;
    w->bytes = count_of * (w->kind == WEIGHT_NORM ? sizeof(float) : dtype_size(be->dtype)) + bias;
    w->packed = be;
    return count(be, id, 0, 0, 0, (double)w->bytes);
}

static int plan_pack_conv2d(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    (void)src;
    (void)err;
    return plan_pack(be, OP_pack_conv2d, w);
}

static int plan_pack_linear(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    (void)src;
    (void)err;
    return plan_pack(be, OP_pack_linear, w);
}

static int plan_pack_norm(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    (void)src;
    (void)err;
    return plan_pack(be, OP_pack_norm, w);
}

static int plan_pack_embedding(struct backend *be, weight *w, const struct weight_source *src,
                               struct error *err)
{
    (void)src;
    (void)err;
    return plan_pack(be, OP_pack_embedding, w);
}

static int plan_unpack(struct backend *be, weight *w, struct error *err)
{
    (void)err;
    w->packed = NULL;
    w->bytes = 0;
    return count(be, OP_unpack, 0, 0, 0, 0);
}

static bool plan_fuses_norm(const struct backend *be, tensor y, tensor x, const weight *w,
                            const struct conv2d_args *a)
{
    const struct backend *target = ((const struct plan *)be->state)->target;
    return target && target->fuses_norm && target->fuses_norm(target, y, x, w, a);
}

/* The normed picture is neither written nor read again. */
static int plan_norm_silu_conv2d(struct backend *be, tensor y, tensor x, const struct norm_silu *norm,
                                 const weight *w, const struct conv2d_args *a, struct error *err)
{
    count(be, OP_group_norm_silu, 0, tensor_bytes(x), (double)norm->w->bytes, 0);
    return plan_conv2d(be, y, x, w, a, err);
}

static bool plan_fuses_layer_norm(const struct backend *be, tensor x, const weight *w)
{
    const struct backend *target = ((const struct plan *)be->state)->target;
    return target && target->fuses_layer_norm && target->fuses_layer_norm(target, x, w);
}

/* The normed rows are neither written nor read again. */
static int plan_layer_norm_linear(struct backend *be, tensor y, tensor x, const weight *norm, float eps,
                                  const weight *w, const struct linear_args *a, struct error *err)
{
    (void)eps;
    count(be, OP_layer_norm, 0, 0, (double)norm->bytes, 0);
    return plan_linear(be, y, x, w, a, err);
}

/* A region that only plans has no memory behind it. */
static int plan_mem_alloc(struct backend *be, size_t bytes, void **mem, struct error *err)
{
    (void)be;
    (void)bytes;
    (void)err;
    *mem = NULL;
    return 0;
}

static void plan_mem_free(struct backend *be, void *mem, size_t bytes)
{
    (void)be;
    (void)mem;
    (void)bytes;
}

static void plan_close(struct backend *be)
{
    free(be->state);
    be->state = NULL;
}

/* Leaves be->state NULL when there is no memory for the counts: backend_open() refuses then. */
int ops_plan(struct backend *be)
{
#define PLAN_SERVE(name, args) SERVE(be, name, plan_##name, "plan");
    OPS_LIST(PLAN_SERVE)
    be->mem_alloc = plan_mem_alloc;
    be->mem_free = plan_mem_free;
    be->fuses_norm = plan_fuses_norm;
    be->norm_silu_conv2d = plan_norm_silu_conv2d;
    be->fuses_layer_norm = plan_fuses_layer_norm;
    be->layer_norm_linear = plan_layer_norm_linear;
    be->close = plan_close;
    be->state = calloc(1, sizeof(struct plan));
    return OP_COUNT;
}

const struct plan_report *plan_report(const struct backend *be)
{
    return &((const struct plan *)be->state)->report;
}

void plan_reset(struct backend *be)
{
    struct plan *plan = be->state;
    memset(&plan->report, 0, sizeof plan->report);
}

void plan_set_dtype(struct backend *be, enum dtype dtype)
{
    be->dtype = dtype;
}

void plan_set_target(struct backend *be, const struct backend *target)
{
    ((struct plan *)be->state)->target = target;
    be->dtype = target->dtype;
}
