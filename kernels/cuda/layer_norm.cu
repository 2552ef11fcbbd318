/* torch.nn.LayerNorm over C, one row at a time: y = (x - mean) / sqrt(variance + eps) * gamma + beta.
 *
 * The row is read once and kept in registers as fp32, one or two pieces of 8 numbers a thread, so the
 * variance is taken in a second pass that costs no memory; gamma and beta are under way while its sum goes
 * round, or come from the level 1 cache. What counts at these sizes is the time of one trip to memory and of
 * two sums over the row, so rows are spread thin: up to 512 numbers over one warp (four rows to a block, no
 * barrier), wider ones over the warps of a block: 1280 over five, each thread one piece. Shared memory: one
 * float a warp. Registers: 45 and 50, so a multiprocessor holds 40 warps with 20 KB and more under way, and
 * the 4096 rows of 320 are one wave.
 *
 * Bytes: 1 read, 1 write. In SD-Turbo 512 from 4096 x 320 (5.2 MB, 1.2 us at 4.3 TB/s, all of it in L2) to
 * 256 x 1280 (1.3 MB): the launch costs as much. What no piece of 16 bytes fits, and rows beyond 16384
 * numbers, go to norm_any. */
#include "rows.cuh"
#include "weights.cuh"

namespace {

enum { WARPS = 4 /* rows of a block */, PIECES_MAX = 2, BLOCK_WARPS_MAX = 32 };

struct layer_norm_args {
    void *y;
    const void *x;
    const float *gamma, *beta;
    size_t y_ld, x_ld, rows;
    int c, warps; /* warps: that share a row; with 1, each warp of the block has its own row */
    float eps;
};

DEVICE float row_sum(float v, int warps, float *scratch)
{
    return warps == 1 ? warp_sum(v) : block_sum(v, scratch);
}

/* gamma and beta of the thread's pieces, all at once: also where the row has ended. */
template <int PIECES>
DEVICE void load_affine(float gamma[PIECES][8], float beta[PIECES][8], const layer_norm_args &a, int first,
                        int width)
{
    UNROLL
    for (int p = 0; p < PIECES; p++) {
        size_t at = first + p * width < a.c ? (size_t)(first + p * width) : 0;
        unpack<float, 8>(gamma[p], load_piece<float, 8>(a.gamma, at));
        unpack<float, 8>(beta[p], load_piece<float, 8>(a.beta, at));
    }
}

/* A row of at most 32 * warps * PIECES pieces. */
template <class T, int PIECES>
__global__ void __launch_bounds__(32 * BLOCK_WARPS_MAX) layer_norm_rows(layer_norm_args a)
{
    SHARED_MEMORY(shared);
    float *scratch = (float *)shared;
    size_t row = a.warps == 1 ? (size_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32 : blockIdx.x;
    if (row >= a.rows)
        return; /* a whole warp, and no barrier comes: rows that share a block's barriers fill the grid */
    int width = 32 * a.warps * 8, first = (int)(a.warps == 1 ? threadIdx.x % 32 : threadIdx.x) * 8;
    float v[PIECES][8], gamma[PIECES][8], beta[PIECES][8], sum = 0, squares = 0;
    piece<T, 8> in[PIECES];
    UNROLL
    for (int p = 0; p < PIECES; p++)
        in[p] = first + p * width < a.c ? load_piece<T, 8>(a.x, row * a.x_ld + (size_t)(first + p * width))
                                        : piece<T, 8>{};
    UNROLL
    for (int p = 0; p < PIECES; p++) {
        unpack<T, 8>(v[p], in[p]);
        UNROLL
        for (int i = 0; i < 8; i++)
            sum += v[p][i]; /* zeros behind the row */
    }
    float mean = row_sum(sum, a.warps, scratch) / (float)a.c;
    UNROLL
    for (int p = 0; p < PIECES; p++) {
        UNROLL
        for (int i = 0; i < 8; i++) {
            v[p][i] -= mean;
            squares += first + p * width < a.c ? v[p][i] * v[p][i] : 0;
        }
    }
    if (PIECES == 1) /* on the way while the second sum is taken; two pieces lack the registers */
        load_affine<PIECES>(gamma, beta, a, first, width);
    float rstd = 1.0f / sqrtf(row_sum(squares, a.warps, scratch) / (float)a.c + a.eps);
    if (PIECES > 1)
        load_affine<PIECES>(gamma, beta, a, first, width);
    UNROLL
    for (int p = 0; p < PIECES; p++) {
        if (first + p * width >= a.c)
            return;
        UNROLL
        for (int i = 0; i < 8; i++)
            v[p][i] = v[p][i] * (rstd * gamma[p][i]) + beta[p][i];
        store_piece<T, 8>(a.y, row * a.y_ld + (size_t)(first + p * width), v[p]);
    }
}

template <class T> int run(struct backend *be, layer_norm_args *a, struct error *err)
{
    int pieces = a->c / 8;
    bool two = (pieces > 32 && pieces <= 64) || pieces > 32 * BLOCK_WARPS_MAX;
    a->warps = (pieces + 31) / 32;
    if (two)
        a->warps = (pieces + 63) / 64;
    int threads = 32 * (a->warps == 1 ? WARPS : a->warps);
    unsigned blocks = blocks_of(a->rows, a->warps == 1 ? WARPS : 1);
    return launch(be, two ? layer_norm_rows<T, 2> : layer_norm_rows<T, 1>, blocks, threads,
                  BLOCK_WARPS_MAX * sizeof(float), *a, err);
}

} // namespace

int cuda_layer_norm(struct backend *be, tensor y, tensor x, const weight *w, float eps, struct error *err)
{
    layer_norm_args a;
    bool halves = x.dtype == y.dtype && x.dtype != DTYPE_F32;
    if (!halves || x.c % 8 != 0 || x.c > 32 * BLOCK_WARPS_MAX * PIECES_MAX * 8 || !rows_aligned(x) ||
        !rows_aligned(y))
        return norm_any(be, y, x, w, tensor_rows(x), 1, 1, eps, false, err);
    memset(&a, 0, sizeof a);
    a.y = y.data;
    a.x = x.data;
    a.gamma = norm_gamma(w);
    a.beta = norm_beta(w);
    a.y_ld = (size_t)y.ld;
    a.x_ld = (size_t)x.ld;
    a.rows = tensor_rows(x);
    a.c = x.c;
    a.eps = eps;
    return x.dtype == DTYPE_F16 ? run<f16>(be, &a, err) : run<bf16>(be, &a, err);
}
