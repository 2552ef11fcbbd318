/* Ops that treat each number alone: silu, add, blend, convert, clip, lincomb, guide, ramp.
 *
 * One kernel over all of them: a thread takes two pieces (16 bytes of the narrower side, rows.cuh) a block
 * apart and loads both before it uses the first: 64 KB under way on a full multiprocessor, twice what 4.3
 * TB/s need at the latency of an H200. Tensors without gaps between rows are one long row. No shared memory,
 * under 40 registers. lincomb takes guidance in on its way: one read of both halves in place of a launch that
 * writes what the next one reads.
 *
 * Bytes: silu, convert and clip 1 read and 1 write, add, blend and guide 2 and 1, lincomb one read a term. Our
 * networks fuse all large ones into the matrix products: what is left in SD-Turbo 512 are latents of 64 KB,
 * where the launch is all there is. */
#include "rows.cuh"

namespace {

/* A guided pair's second half has the last place to itself. */
enum { THREADS = 256, INPUTS_MAX = LINCOMB_MAX + 1 };

struct number_args {
    void *y;
    const void *x[INPUTS_MAX];     /* NULL: not there */
    size_t y_ld, x_ld[INPUTS_MAX]; /* numbers from row to row */
    size_t items;                   /* pieces, in all rows */
    size_t columns;                 /* pieces in a row */
    float value[LINCOMB_MAX];       /* coefficients, limits, scale */
    int y_type, x_type[INPUTS_MAX];
    int count, pair; /* of lincomb: terms; which of them is a guided pair, or -1 */
    float scale;     /* of the pair */
};

struct silu_op {
    enum { INPUTS = 1, DEPTH = 2 };
    static DEVICE float run(const number_args &, const float x[])
    {
        return fast_silu(x[0]);
    }
};

struct add_op {
    enum { INPUTS = 2, DEPTH = 2 };
    static DEVICE float run(const number_args &, const float x[])
    {
        return x[0] + x[1];
    }
};

struct blend_op {
    enum { INPUTS = 2, DEPTH = 2 };
    static DEVICE float run(const number_args &a, const float x[])
    {
        return a.value[0] * x[0] + (1 - a.value[0]) * x[1];
    }
};

struct convert_op {
    enum { INPUTS = 1, DEPTH = 2 };
    static DEVICE float run(const number_args &, const float x[])
    {
        return x[0];
    }
};

struct clip_op { /* a NaN stays a NaN */
    enum { INPUTS = 1, DEPTH = 2 };
    static DEVICE float run(const number_args &a, const float x[])
    {
        return x[0] < a.value[0] ? a.value[0] : x[0] > a.value[1] ? a.value[1] : x[0];
    }
};

/* No fused product, so that all backends give the same bits. */
DEVICE float guided(float unconditional, float conditional, float scale)
{
    return __fadd_rn(unconditional, __fmul_rn(scale, __fadd_rn(conditional, -unconditional)));
}

struct guide_op {
    enum { INPUTS = 2, DEPTH = 2 };
    static DEVICE float run(const number_args &a, const float x[])
    {
        return guided(x[0], x[1], a.value[0]);
    }
};

/* In double as ref has it: the coefficients often cancel. A product of two fp32 is exact in it, fused or not,
 * so the bits are ref's. Latents are small enough for GPUs with few double units. */
struct lincomb_op {
    enum { INPUTS = INPUTS_MAX, DEPTH = 1 }; /* so many loads at once are enough */
    static DEVICE float run(const number_args &a, const float x[])
    {
        double sum = 0;
        UNROLL
        for (int k = 0; k < LINCOMB_MAX; k++)
            if (k < a.count)
                sum += (double)a.value[k] * (double)(k == a.pair ? guided(x[k], x[LINCOMB_MAX], a.scale) : x[k]);
        return (float)sum;
    }
};

template <class OP, class TX, class TY, int V>
__global__ void __launch_bounds__(THREADS) number_pieces(number_args a)
{
    piece<TX, V> in[OP::DEPTH][OP::INPUTS];
    size_t first = (size_t)blockIdx.x * (OP::DEPTH * THREADS) + threadIdx.x, to[OP::DEPTH];
    UNROLL
    for (int u = 0; u < OP::DEPTH; u++) {
        size_t item = first + (size_t)u * THREADS, row, at;
        if (item >= a.items)
            break;
        find_item(item, a.columns, &row, &at);
        to[u] = row * a.y_ld + at * V;
        UNROLL
        for (int k = 0; k < OP::INPUTS; k++)
            if ((int)OP::INPUTS < (int)INPUTS_MAX || a.x[k])
                in[u][k] = load_piece<TX, V>(a.x[k], row * a.x_ld[k] + at * V);
            else
                in[u][k] = piece<TX, V>{};
    }
    UNROLL
    for (int u = 0; u < OP::DEPTH; u++) {
        float x[OP::INPUTS][V], out[V];
        if (first + (size_t)u * THREADS >= a.items)
            return;
        UNROLL
        for (int k = 0; k < OP::INPUTS; k++)
            unpack<TX, V>(x[k], in[u][k]);
        UNROLL
        for (int i = 0; i < V; i++) {
            float one[OP::INPUTS];
            UNROLL
            for (int k = 0; k < OP::INPUTS; k++)
                one[k] = x[k][i];
            out[i] = OP::run(a, one);
        }
        store_piece<TY, V>(a.y, to[u], out);
    }
}

/* The same number by number, in any mixture of types and pitches. */
template <class OP> __global__ void __launch_bounds__(THREADS) number_any(number_args a)
{
    size_t item = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (item >= a.items)
        return;
    size_t row, at;
    float x[OP::INPUTS];
    find_item(item, a.columns, &row, &at);
    UNROLL
    for (int k = 0; k < OP::INPUTS; k++)
        x[k] = a.x[k] ? load_any(a.x[k], a.x_type[k], row * a.x_ld[k] + at) : 0;
    store_any(a.y, a.y_type, row * a.y_ld + at, OP::run(a, x));
}

/* ramp: the overlaps of a picture's tiles, once a picture. COUNT is its unit, VALUE[0] its number of steps. Each thread reads the numbers it writes before it
 * writes, so y may be b. No fused product, so that all backends give the same bits. */
__global__ void __launch_bounds__(THREADS) ramp_rows(number_args a)
{
    int unit = a.count;
    size_t item = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (item >= a.items)
        return;
    size_t row, at;
    find_item(item, a.columns, &row, &at);
    float share = (float)(unit ? (int)at / unit : (int)row) / a.value[0];
    float from = ((const float *)a.x[0])[row * a.x_ld[0] + at];
    float to = ((const float *)a.x[1])[row * a.x_ld[1] + at];
    ((float *)a.y)[row * a.y_ld + at] =
        __fadd_rn(__fmul_rn(__fadd_rn(1, -share), from), __fmul_rn(share, to));
}

/* Y = op(X[0], .., X[COUNT - 1]), still without the op's own numbers and without items. Returns whether
 * pieces of V numbers will do; then COLUMNS counts them. */
static bool number_setup(struct number_args *a, tensor y, int count, const tensor *x, int v)
{
    bool flat = rows_touch(y), pieces = rows_aligned(y);
    memset(a, 0, sizeof *a);
    for (int k = 0; k < count; k++) {
        if (!x[k].data)
            continue;
        flat = flat && rows_touch(x[k]);
        pieces = pieces && rows_aligned(x[k]);
        a->x[k] = x[k].data;
        a->x_ld[k] = (size_t)x[k].ld;
        a->x_type[k] = x[k].dtype;
    }
    a->y = y.data;
    a->y_ld = (size_t)y.ld;
    a->y_type = y.dtype;
    a->columns = flat ? tensor_count(y) : (size_t)y.c;
    pieces = pieces && a->columns % (size_t)v == 0;
    if (pieces)
        a->columns /= (size_t)v;
    a->items = flat ? a->columns : a->columns * tensor_rows(y);
    return pieces;
}

template <class OP> static int run_any(struct backend *be, const number_args &a, struct error *err)
{
    return launch(be, number_any<OP>, blocks_of(a.items, THREADS), THREADS, 0, a, err);
}

template <class OP, class TX, class TY, int V>
static int run_pieces(struct backend *be, const number_args &a, struct error *err)
{
    return launch(be, number_pieces<OP, TX, TY, V>, blocks_of(a.items, OP::DEPTH * THREADS), THREADS, 0, a,
                  err);
}

static bool all_of(enum dtype type, tensor y, int count, const tensor *x)
{
    for (int k = 0; k < count; k++)
        if (x[k].data && x[k].dtype != type)
            return false;
    return y.dtype == type;
}

/* silu, add and blend: activations. VALUE: blend's share. */
template <class OP>
static int run_half(struct backend *be, tensor y, int count, const tensor *x, float value, struct error *err)
{
    number_args a;
    bool halves = (y.dtype == DTYPE_F16 || y.dtype == DTYPE_BF16) && all_of(y.dtype, y, count, x);
    bool pieces = number_setup(&a, y, count, x, halves ? 8 : 1);
    a.value[0] = value;
    if (pieces && halves)
        return y.dtype == DTYPE_F16 ? run_pieces<OP, f16, f16, 8>(be, a, err)
                                    : run_pieces<OP, bf16, bf16, 8>(be, a, err);
    return run_any<OP>(be, a, err);
}

/* clip, guide and lincomb: latents. HOW: their own numbers. */
struct float_how {
    int count, pair;
    float value[LINCOMB_MAX], scale;
};

template <class OP>
static int run_float(struct backend *be, tensor y, int count, const tensor *x, const float_how &how,
                     struct error *err)
{
    number_args a;
    bool floats = all_of(DTYPE_F32, y, count, x);
    bool pieces = number_setup(&a, y, count, x, floats ? 4 : 1) && floats;
    memcpy(a.value, how.value, sizeof a.value);
    a.count = how.count;
    a.pair = how.pair;
    a.scale = how.scale;
    return pieces ? run_pieces<OP, float, float, 4>(be, a, err) : run_any<OP>(be, a, err);
}

} // namespace

int cuda_silu(struct backend *be, tensor y, tensor x, struct error *err)
{
    return run_half<silu_op>(be, y, 1, &x, 0, err);
}

int cuda_add(struct backend *be, tensor y, tensor a, tensor b, struct error *err)
{
    tensor x[2] = {a, b};
    return run_half<add_op>(be, y, 2, x, 0, err);
}

int cuda_blend(struct backend *be, tensor y, tensor a, tensor b, float share, struct error *err)
{
    tensor x[2] = {a, b};
    return run_half<blend_op>(be, y, 2, x, share, err);
}

int cuda_convert(struct backend *be, tensor y, tensor x, struct error *err)
{
    number_args a;
    if (y.dtype == x.dtype)
        return cuda_repeat_batch(be, y, x, err); /* a copy */
    bool widths = (y.dtype == DTYPE_F32) != (x.dtype == DTYPE_F32);
    if (number_setup(&a, y, 1, &x, widths ? 8 : 1) && widths) {
        if (y.dtype == DTYPE_F32)
            return x.dtype == DTYPE_F16 ? run_pieces<convert_op, f16, float, 8>(be, a, err)
                                        : run_pieces<convert_op, bf16, float, 8>(be, a, err);
        return y.dtype == DTYPE_F16 ? run_pieces<convert_op, float, f16, 8>(be, a, err)
                                    : run_pieces<convert_op, float, bf16, 8>(be, a, err);
    }
    return run_any<convert_op>(be, a, err);
}

int cuda_clip(struct backend *be, tensor y, tensor x, float lo, float hi, struct error *err)
{
    return run_float<clip_op>(be, y, 1, &x, {1, -1, {lo, hi}, 0}, err);
}

int cuda_guide(struct backend *be, tensor y, tensor e, float scale, struct error *err)
{
    tensor x[2] = {tensor_batch(e, 0, y.n), tensor_batch(e, y.n, y.n)};
    return run_float<guide_op>(be, y, 2, x, {2, -1, {scale}, 0}, err);
}

int cuda_lincomb(struct backend *be, tensor y, int count, const float *coef, const tensor *x, int pair,
                 float scale, struct error *err)
{
    tensor in[INPUTS_MAX] = {};
    float_how how = {count, pair, {}, scale};
    for (int k = 0; k < count; k++) {
        in[k] = k == pair ? tensor_batch(x[k], 0, y.n) : x[k];
        how.value[k] = coef[k];
    }
    if (pair >= 0)
        in[LINCOMB_MAX] = tensor_batch(x[pair], y.n, y.n);
    return run_float<lincomb_op>(be, y, INPUTS_MAX, in, how, err);
}

int cuda_ramp(struct backend *be, tensor y, tensor a, tensor b, int unit, struct error *err)
{
    number_args n;
    memset(&n, 0, sizeof n);
    n.y = y.data;
    n.x[0] = a.data;
    n.x[1] = b.data;
    n.y_ld = (size_t)y.ld;
    n.x_ld[0] = (size_t)a.ld;
    n.x_ld[1] = (size_t)b.ld;
    n.columns = (size_t)y.c;
    n.items = n.columns * tensor_rows(y);
    n.count = unit;
    n.value[0] = (float)(unit ? y.c / unit : y.w);
    return launch(be, ramp_rows, blocks_of(n.items, THREADS), THREADS, 0, n, err);
}
