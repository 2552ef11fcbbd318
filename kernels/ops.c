/* The front of the seam: each function checks shapes, cuts the output from the job's memory and calls the
 * backend's slot. It refuses what no backend should have to check again; it computes nothing. */
#include "ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "int8.h"
#include "region.h"

#define OPS_NAME(name, args) [OP_##name] = #name,
const char *const op_names[OP_COUNT] = {OPS_LIST(OPS_NAME)};

/* Above these a shape is a bug, and a size is a request that no machine can hold. */
enum { DIM_MAX = 1 << 28 };
#define COUNT_MAX 1e12

static bool pass_failed(const pass *p)
{
    return p->err->code != 0;
}

/* Records a wrong shape: a bug in a network, or a config whose numbers do not fit together. */
static void bad_shape(pass *p, const char *op, tensor x, const char *why)
{
    error_set(p->err, ERR_INTERNAL, "%s: [%d, %d, %d, %d] %s", op, x.n, x.h, x.w, x.c, why);
}

static bool same_shape(tensor a, tensor b)
{
    return a.n == b.n && a.h == b.h && a.w == b.w && a.c == b.c;
}

enum dtype pass_dtype(const pass *p)
{
    return p->be->dtype;
}

size_t pass_noise_wave(const pass *p)
{
    return p->be->noise_wave;
}

tensor tensor_new(pass *p, int n, int h, int w, int c, enum dtype dtype)
{
    tensor y = {.n = n, .h = h, .w = w, .c = c, .ld = c, .dtype = dtype};
    if (pass_failed(p))
        return y;
    if (n < 1 || h < 1 || w < 1 || c < 1 || n > DIM_MAX || h > DIM_MAX || w > DIM_MAX || c > DIM_MAX) {
        bad_shape(p, "tensor_new", y, "is not a shape");
        return y;
    }
    if ((double)n * h * w * c > COUNT_MAX) {
        error_set(p->err, ERR_NOMEM, "out of memory: [%d, %d, %d, %d] is more than any machine holds", n, h,
                  w, c);
        return y;
    }
    y.data = region_alloc(p->mem, tensor_count(y) * dtype_size(dtype), p->err);
    return y;
}

void tensor_free(pass *p, tensor *x)
{
    if (x->data)
        region_free(p->mem, x->data, p->err);
    x->data = NULL;
}

void pass_step_begin(pass *p)
{
    if (p->be->step_begin && !pass_failed(p))
        p->be->step_begin(p->be, p->err);
}

void pass_step_end(pass *p)
{
    if (p->be->step_end) /* also after a failure: the backend forgets the step */
        p->be->step_end(p->be, p->err);
}

/* An output of X's shape in the pass's activation type. */
static tensor like(pass *p, tensor x)
{
    return tensor_new(p, x.n, x.h, x.w, x.c, p->be->dtype);
}

/* ---- Weights ---- */

static bool array_fits(const struct host_array *a, size_t count)
{
    return a->data && a->count == count;
}

static int check_source(const struct weight_source *src, struct error *err)
{
    if (src->parts < 1 || src->parts > WEIGHT_PARTS_MAX || src->out_c < 1 || src->in_c < 1 || src->kh < 1 ||
        src->kw < 1 || src->out_c % src->parts != 0 || (src->parts > 1 && src->kind != WEIGHT_LINEAR) ||
        (src->kind == WEIGHT_GEGLU && src->out_c % 2 != 0))
        return error_set(err, ERR_INTERNAL, "weight_pack: [%d, %d, %d, %d] in %d parts is not a weight",
                         src->out_c, src->in_c, src->kh, src->kw, src->parts);
    size_t part = (size_t)(src->out_c / src->parts);
    size_t count = part * (size_t)src->in_c * (size_t)src->kh * (size_t)src->kw;
    for (int i = 0; i < src->parts; i++)
        if (!array_fits(&src->w[i], count) || (src->bias[i].data && src->bias[i].count != part) ||
            !src->bias[i].data != !src->bias[0].data)
            return error_set(err, ERR_INTERNAL, "weight_pack: part %d does not hold [%zu, %d, %d, %d]", i,
                             part, src->in_c, src->kh, src->kw);
    return 0;
}

static weight empty_weight(const struct backend *be, const struct weight_source *src)
{
    return (weight){.kind = src->kind,
                    .out_c = src->out_c,
                    .in_c = src->in_c,
                    .kh = src->kh,
                    .kw = src->kw,
                    .has_bias = src->bias[0].data != NULL,
                    .int8 = int8_serves(be, src)};
}

void weight_map(struct backend *be, weight *w, const struct weight_source *src, const void *bytes,
                size_t size)
{
    *w = empty_weight(be, src);
    w->packed = (void *)(uintptr_t)bytes;
    w->bytes = size;
    w->mapped = true;
    w->form = be->form_of ? be->form_of(w) : 0;
    be->weight_bytes += size;
    be->mapped_bytes += size;
}

int weight_pack(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    memset(w, 0, sizeof *w);
    int rc = check_source(src, err);
    if (rc)
        return rc;
    *w = empty_weight(be, src);
    switch (src->kind) {
    case WEIGHT_CONV2D:
        rc = be->ops.pack_conv2d(be, w, src, err);
        break;
    case WEIGHT_LINEAR:
    case WEIGHT_GEGLU:
        rc = be->ops.pack_linear(be, w, src, err);
        break;
    case WEIGHT_NORM:
        rc = be->ops.pack_norm(be, w, src, err);
        break;
    case WEIGHT_EMBEDDING:
        rc = be->ops.pack_embedding(be, w, src, err);
        break;
    }
    if (rc) {
        memset(w, 0, sizeof *w);
        return rc;
    }
    w->form = be->form_of ? be->form_of(w) : 0;
    (be->device ? be->device : be)->weight_bytes += w->bytes;
    return 0;
}

void weight_free(struct backend *be, weight *w)
{
    if (w->packed) {
        (be->device ? be->device : be)->weight_bytes -= w->bytes;
        if (w->mapped)
            be->mapped_bytes -= w->bytes;
        else
            be->ops.unpack(be, w, NULL);
    }
    memset(w, 0, sizeof *w);
}

/* ---- Networks ---- */

/* Side of a convolution's output; 0 when the input is too small. */
static int conv_side(int in, int k, const struct conv2d_args *a)
{
    int side = a->upsample ? 2 * in : in;
    int pad = a->pad_end ? 1 : (k - 1) / 2 * 2;
    return side + pad < k ? 0 : (side + pad - k) / a->stride + 1;
}

/* The shape of the output; the stride of A becomes 1 where it is 0. */
static tensor conv2d_shape(pass *p, const weight *w, tensor x, struct conv2d_args *a)
{
    if (a->stride == 0)
        a->stride = 1;
    tensor y = {.n = x.n, .h = conv_side(x.h, w->kh, a), .w = conv_side(x.w, w->kw, a), .c = w->out_c};
    if (pass_failed(p))
        return y;
    if (w->kind != WEIGHT_CONV2D || x.c != w->in_c || y.h < 1 || y.w < 1)
        bad_shape(p, "conv2d", x, "does not fit the kernel");
    else if (a->add_bc.data &&
             (a->add_bc.n != x.n || a->add_bc.c != w->out_c || tensor_rows(a->add_bc) != (size_t)x.n))
        bad_shape(p, "conv2d", a->add_bc, "is not [N, 1, 1, O]");
    else if (a->residual.data && !same_shape(a->residual, y))
        bad_shape(p, "conv2d", a->residual, "as residual is not the output's shape");
    return y;
}

/* The sums that an op has kept, where it has: BEFORE is be->sums of before it. */
static unsigned kept_sums(const struct backend *be, unsigned before)
{
    return be->sums != before ? be->sums : 0;
}

tensor conv2d(pass *p, const weight *w, tensor x, struct conv2d_args a)
{
    tensor y = conv2d_shape(p, w, x, &a);
    if (pass_failed(p))
        return y;
    y = tensor_new(p, y.n, y.h, y.w, y.c, a.f32_out ? DTYPE_F32 : p->be->dtype);
    const unsigned before = p->be->sums;
    if (!pass_failed(p))
        p->be->ops.conv2d(p->be, y, x, w, &a, p->err);
    y.sums = kept_sums(p->be, before);
    return y;
}

tensor conv_temporal(pass *p, const weight *w, tensor x, int frames, struct conv2d_args a)
{
    tensor y = {.n = x.n, .h = x.h, .w = x.w, .c = w->out_c};
    if (pass_failed(p))
        return y;
    if (w->kind != WEIGHT_CONV2D || x.c != w->in_c || w->kw != 1 || w->kh % 2 == 0)
        bad_shape(p, "conv_temporal", x, "does not fit the kernel");
    else if (frames < 1 || x.n % frames != 0)
        bad_shape(p, "conv_temporal", x, "is no whole number of videos");
    else if (a.stride > 1 || a.upsample || a.pad_end)
        error_set(p->err, ERR_INTERNAL, "conv_temporal: it has no stride, no upsampling and no pad_end");
    else if (a.add_bc.data && (a.add_bc.c != w->out_c || tensor_rows(a.add_bc) != (size_t)x.n))
        bad_shape(p, "conv_temporal", a.add_bc, "is not [B * F, 1, 1, O]");
    else if (a.residual.data && !same_shape(a.residual, y))
        bad_shape(p, "conv_temporal", a.residual, "as residual is not the output's shape");
    y = tensor_new(p, y.n, y.h, y.w, y.c, a.f32_out ? DTYPE_F32 : p->be->dtype);
    if (!pass_failed(p))
        p->be->ops.conv_temporal(p->be, y, x, w, frames, &a, p->err);
    return y;
}

/* The output of a linear layer, from the job's memory. */
static tensor linear_output(pass *p, const weight *w, tensor x, const struct linear_args *a)
{
    bool geglu = w->kind == WEIGHT_GEGLU;
    tensor y = {.n = x.n, .h = x.h, .w = x.w, .c = geglu ? w->out_c / 2 : w->out_c};
    if (pass_failed(p))
        return y;
    if ((w->kind != WEIGHT_LINEAR && !geglu) || x.c != w->in_c || (geglu && a->act != ACT_NONE))
        bad_shape(p, "linear", x, "does not fit the matrix");
    else if (a->residual.data && !same_shape(a->residual, y))
        bad_shape(p, "linear", a->residual, "as residual is not the output's shape");
    return tensor_new(p, y.n, y.h, y.w, y.c, a->f32_out ? DTYPE_F32 : p->be->dtype);
}

tensor linear(pass *p, const weight *w, tensor x, struct linear_args a)
{
    tensor y = linear_output(p, w, x, &a);
    if (!pass_failed(p))
        p->be->ops.linear(p->be, y, x, w, &a, p->err);
    return y;
}

tensor attention(pass *p, tensor q, tensor k, tensor v, struct attention_args a)
{
    tensor y = q;
    if (!pass_failed(p)) {
        if (a.heads < 1 || q.c % a.heads != 0 || q.h != 1)
            bad_shape(p, "attention", q, "as q does not divide into heads");
        else if (!same_shape(k, v) || k.c != q.c || k.h != 1 || k.w < 1 || (k.n != 1 && k.n != q.n))
            bad_shape(p, "attention", k, "as k or v does not fit q");
        else if (a.causal && k.w != q.w)
            bad_shape(p, "attention", k, "must have q's tokens under a causal mask");
    }
    y = like(p, q);
    if (!pass_failed(p))
        p->be->ops.attention(p->be, y, q, k, v, &a, p->err);
    return y;
}

static bool check_norm(pass *p, const char *op, const weight *w, tensor x, int groups)
{
    if (!pass_failed(p) && (w->kind != WEIGHT_NORM || w->out_c != x.c || groups < 1 || x.c % groups != 0))
        bad_shape(p, op, x, "does not fit the norm");
    return !pass_failed(p);
}

tensor group_norm(pass *p, const weight *w, tensor x, int groups, float eps)
{
    check_norm(p, "group_norm", w, x, groups);
    tensor y = like(p, x);
    if (!pass_failed(p))
        p->be->ops.group_norm(p->be, y, x, w, groups, eps, p->err);
    return y;
}

tensor group_norm_silu(pass *p, const weight *w, tensor x, int groups, float eps)
{
    check_norm(p, "group_norm_silu", w, x, groups);
    tensor y = like(p, x);
    if (!pass_failed(p))
        p->be->ops.group_norm_silu(p->be, y, x, w, groups, eps, p->err);
    return y;
}

tensor norm_silu_conv2d(pass *p, struct norm_silu norm, const weight *w, tensor x, struct conv2d_args a)
{
    struct backend *be = p->be;
    check_norm(p, "norm_silu_conv2d", norm.w, x, norm.groups);
    tensor y = conv2d_shape(p, w, x, &a);
    if (pass_failed(p) || !be->fuses_norm || !be->fuses_norm(be, y, x, w, &a)) {
        tensor h = group_norm_silu(p, norm.w, x, norm.groups, norm.eps);
        if (norm.last)
            tensor_free(p, &x);
        y = conv2d(p, w, h, a);
        tensor_free(p, &h);
        if (norm.last_residual)
            tensor_free(p, &a.residual);
        return y;
    }
    const enum dtype type = a.f32_out ? DTYPE_F32 : be->dtype;
    const bool in_place = norm.last_residual && a.residual.dtype == type;
    if (in_place)
        y = a.residual; /* each number is read, then written, by the same thread */
    else
        y = tensor_new(p, y.n, y.h, y.w, y.c, type);
    const unsigned before = be->sums;
    if (!pass_failed(p))
        be->norm_silu_conv2d(be, y, x, &norm, w, &a, p->err);
    y.sums = kept_sums(be, before);
    if (norm.last)
        tensor_free(p, &x);
    if (norm.last_residual && !in_place)
        tensor_free(p, &a.residual);
    return y;
}

tensor layer_norm(pass *p, const weight *w, tensor x, float eps)
{
    check_norm(p, "layer_norm", w, x, 1);
    tensor y = like(p, x);
    if (!pass_failed(p))
        p->be->ops.layer_norm(p->be, y, x, w, eps, p->err);
    return y;
}

tensor layer_norm_linear(pass *p, const weight *norm, float eps, const weight *w, tensor x,
                         struct linear_args a)
{
    struct backend *be = p->be;
    if (pass_failed(p) || !be->fuses_layer_norm || !be->fuses_layer_norm(be, x, w)) {
        tensor n = layer_norm(p, norm, x, eps);
        tensor y = linear(p, w, n, a);
        tensor_free(p, &n);
        return y;
    }
    check_norm(p, "layer_norm_linear", norm, x, 1);
    tensor y = linear_output(p, w, x, &a);
    if (!pass_failed(p))
        be->layer_norm_linear(be, y, x, norm, eps, w, &a, p->err);
    return y;
}

tensor silu(pass *p, tensor x)
{
    tensor y = like(p, x);
    if (!pass_failed(p))
        p->be->ops.silu(p->be, y, x, p->err);
    return y;
}

tensor add(pass *p, tensor a, tensor b)
{
    if (!pass_failed(p) && !same_shape(a, b))
        bad_shape(p, "add", b, "is not the first operand's shape");
    tensor y = like(p, a);
    if (!pass_failed(p))
        p->be->ops.add(p->be, y, a, b, p->err);
    return y;
}

tensor blend(pass *p, tensor a, tensor b, float share)
{
    if (!pass_failed(p) && !same_shape(a, b))
        bad_shape(p, "blend", b, "is not the first operand's shape");
    tensor y = like(p, a);
    if (!pass_failed(p))
        p->be->ops.blend(p->be, y, a, b, share, p->err);
    return y;
}

tensor concat_channels(pass *p, tensor a, tensor b)
{
    if (!pass_failed(p) && (a.n != b.n || a.h != b.h || a.w != b.w))
        bad_shape(p, "concat_channels", b, "has not the first operand's positions");
    tensor y = tensor_new(p, a.n, a.h, a.w, a.c + b.c, p->be->dtype);
    if (!pass_failed(p))
        p->be->ops.concat_channels(p->be, y, a, b, p->err);
    return y;
}

tensor upsample_nearest(pass *p, tensor x)
{
    return upsample_nearest_to(p, x, 2 * x.h, 2 * x.w);
}

tensor upsample_nearest_to(pass *p, tensor x, int h, int w)
{
    tensor y = {.n = x.n, .h = h, .w = w, .c = x.c};
    if (!pass_failed(p) && (abs(h - 2 * x.h) > 1 || abs(w - 2 * x.w) > 1))
        bad_shape(p, "upsample_nearest_to", y, "is not twice the input, one less or one more");
    y = tensor_new(p, x.n, h, w, x.c, p->be->dtype);
    if (!pass_failed(p))
        p->be->ops.upsample_nearest(p->be, y, x, p->err);
    return y;
}

tensor embed_tokens(pass *p, const weight *tokens, const weight *positions, const int32_t *ids, int n, int t)
{
    tensor y = {.n = n, .h = 1, .w = t, .c = tokens->in_c};
    if (!pass_failed(p) && (tokens->kind != WEIGHT_EMBEDDING || positions->kind != WEIGHT_EMBEDDING ||
                            tokens->in_c != positions->in_c || t > positions->out_c))
        bad_shape(p, "embed_tokens", y, "does not fit the tables");
    for (size_t i = 0; !pass_failed(p) && i < (size_t)n * (size_t)t; i++)
        if (ids[i] < 0 || ids[i] >= tokens->out_c)
            error_set(p->err, ERR_INVALID, "token %d is outside the vocabulary of %d", ids[i], tokens->out_c);
    y = tensor_new(p, n, 1, t, tokens->in_c, p->be->dtype);
    if (!pass_failed(p))
        p->be->ops.embed_tokens(p->be, y, tokens, positions, ids, p->err);
    return y;
}

tensor timestep_embedding(pass *p, const float *timesteps, int n, int dim, bool flip_sin_to_cos,
                          float freq_shift)
{
    tensor y = tensor_new(p, n, 1, 1, dim, p->be->dtype);
    if (!pass_failed(p))
        p->be->ops.timestep_embedding(p->be, y, timesteps, flip_sin_to_cos, freq_shift, p->err);
    return y;
}

tensor repeat_batch(pass *p, tensor x, int times)
{
    tensor y = tensor_new(p, x.n * times, x.h, x.w, x.c, x.dtype);
    if (!pass_failed(p))
        p->be->ops.repeat_batch(p->be, y, x, p->err);
    return y;
}

tensor convert(pass *p, tensor x, enum dtype dtype)
{
    tensor y = tensor_new(p, x.n, x.h, x.w, x.c, dtype);
    if (!pass_failed(p))
        p->be->ops.convert(p->be, y, x, p->err);
    return y;
}

void copy_to(pass *p, tensor y, tensor x)
{
    if (!pass_failed(p) && !same_shape(x, y))
        bad_shape(p, "copy_to", x, "is not the shape of where it goes");
    if (!pass_failed(p))
        p->be->ops.convert(p->be, y, x, p->err);
}

/* ---- Sampler ---- */

tensor randn(pass *p, int n, int h, int w, int c, uint64_t seed, uint64_t offset, enum dtype round)
{
    tensor y = tensor_new(p, n, h, w, c, DTYPE_F32);
    if (!pass_failed(p))
        p->be->ops.randn(p->be, y, seed, offset, round, p->err);
    return y;
}

static void check_f32(pass *p, const char *op, tensor x, tensor first)
{
    if (!pass_failed(p) && (x.dtype != DTYPE_F32 || !same_shape(x, first)))
        bad_shape(p, op, x, "is not F32 or not of the first operand's shape");
}

tensor lincomb(pass *p, int count, const float *coef, const tensor *x)
{
    if (!pass_failed(p) && (count < 1 || count > LINCOMB_MAX))
        error_set(p->err, ERR_INTERNAL, "lincomb: %d terms", count);
    for (int i = 0; i < count && !pass_failed(p); i++)
        check_f32(p, "lincomb", x[i], x[0]);
    tensor y = tensor_new(p, x[0].n, x[0].h, x[0].w, x[0].c, DTYPE_F32);
    if (!pass_failed(p))
        p->be->ops.lincomb(p->be, y, count, coef, x, -1, 0, p->err);
    return y;
}

tensor lincomb_guided(pass *p, int count, const float *coef, const tensor *x, int pair, float scale)
{
    if (!pass_failed(p) && (count < 1 || count > LINCOMB_MAX || pair < 0 || pair >= count))
        error_set(p->err, ERR_INTERNAL, "lincomb_guided: %d terms, number %d a pair", count, pair);
    tensor y = {0};
    if (pass_failed(p))
        return y;
    tensor half = tensor_batch(x[pair], 0, x[pair].n / 2);
    check_f32(p, "lincomb_guided", x[pair], x[pair]);
    if (!pass_failed(p) && x[pair].n % 2 != 0)
        bad_shape(p, "lincomb_guided", x[pair], "has no two halves");
    for (int i = 0; i < count && !pass_failed(p); i++)
        if (i != pair)
            check_f32(p, "lincomb_guided", x[i], half);
    y = tensor_new(p, half.n, half.h, half.w, half.c, DTYPE_F32);
    if (!pass_failed(p))
        p->be->ops.lincomb(p->be, y, count, coef, x, pair, scale, p->err);
    return y;
}

tensor guide(pass *p, tensor e, float scale)
{
    check_f32(p, "guide", e, e);
    if (!pass_failed(p) && e.n % 2 != 0)
        bad_shape(p, "guide", e, "has no two halves");
    tensor y = tensor_new(p, e.n / 2, e.h, e.w, e.c, DTYPE_F32);
    if (!pass_failed(p))
        p->be->ops.guide(p->be, y, e, scale, p->err);
    return y;
}

tensor clip(pass *p, tensor x, float lo, float hi)
{
    check_f32(p, "clip", x, x);
    tensor y = tensor_new(p, x.n, x.h, x.w, x.c, DTYPE_F32);
    if (!pass_failed(p))
        p->be->ops.clip(p->be, y, x, lo, hi, p->err);
    return y;
}

void ramp(pass *p, tensor a, tensor b, int unit)
{
    check_f32(p, "ramp", b, b);
    check_f32(p, "ramp", a, b);
    if (!pass_failed(p) && (b.n != 1 || b.h != 1 || unit < 0 || (unit > 0 && b.c % unit != 0)))
        bad_shape(p, "ramp", b, "is not rows of whole columns");
    if (!pass_failed(p))
        p->be->ops.ramp(p->be, b, a, b, unit, p->err);
}

/* ---- Host and device ---- */

tensor tensor_from_host(pass *p, const float *host, int n, int h, int w, int c, enum dtype dtype)
{
    tensor y = tensor_new(p, n, h, w, c, dtype);
    if (!pass_failed(p))
        p->be->ops.from_host(p->be, y, host, p->err);
    return y;
}

int tensor_to_host(pass *p, tensor x, float *host)
{
    if (!pass_failed(p))
        p->be->ops.to_host(p->be, x, host, p->err);
    return p->err->code;
}

int to_rgb8(pass *p, tensor x, uint8_t *host)
{
    if (!pass_failed(p) && x.c != 3)
        bad_shape(p, "to_rgb8", x, "has not three channels");
    if (!pass_failed(p))
        p->be->ops.to_rgb8(p->be, x, host, p->err);
    return p->err->code;
}
