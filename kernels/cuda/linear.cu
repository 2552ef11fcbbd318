/* torch.nn.Linear over the channels: x [N, H, W, I] -> y [N, H, W, O], through gemm.cuh, where tiling, traffic and
 * registers stand. Stacked parts (QKV) are one product. GEGLU: value and gate lie side by side in the packed matrix
 * (weights.cuh), so that one lane of the epilogue holds both, and only value * gelu(gate) is written.
 *
 * gemm_reduce sums the partial products of a split: a thread an eight of outputs, its splits read four at a time;
 * 64 x 1280 outputs in 16 splits are 5 MB out of L2, some 2 us.
 *
 * gemm_few is for up to four rows, the time embedding: a matrix times a vector, bound by the bytes of the matrix
 * (3.3 MB of 1280 x 1280, 0.8 us of an H200). A warp per output, 2 KB of weights in flight each and about ten warps on
 * a multiprocessor; no tensor cores, no splits, one launch. */
#include "gemm.cuh"

/* 16 bytes at a time at every multiple of 8 numbers. */
static bool in_vectors(tensor x)
{
    size_t numbers = 16 / dtype_size(x.dtype);
    return (uintptr_t)x.data % 16 == 0 && (size_t)x.ld % numbers == 0;
}

/* The kernels count rows, and numbers of one row of the matrix, in int. */
static int check_sizes(tensor y, tensor x, const weight *w, struct error *err)
{
    const size_t most = INT_MAX - (1 << 20);
    if (tensor_rows(y) > most || tensor_rows(x) > most || matrix_rows(w) > most || matrix_row_stride(w) > most)
        return error_set(err, ERR_UNSUPPORTED, "a product of %zu positions with [%zu, %zu] is too large", tensor_rows(y),
                         matrix_rows(w), matrix_row_stride(w));
    return 0;
}

int gemm_begin(struct backend *be, struct gemm *a, tensor y, tensor x, const weight *w, tensor add, tensor residual,
               struct error *err)
{
    int rc = check_sizes(y, x, w, err);
    if (rc)
        return rc;
    if (x.dtype != be->dtype || (add.data && add.dtype != be->dtype) || (residual.data && residual.dtype != be->dtype) ||
        (y.dtype != be->dtype && y.dtype != DTYPE_F32))
        return error_set(err, ERR_INTERNAL, "a product of tensors that are not of the activation type");
    memset(a, 0, sizeof *a);
    a->x = x.data;
    a->w = w->packed;
    a->bias = matrix_bias(w);
    a->bias16 = w->has_bias ? matrix_bias16(w) : NULL;
    a->y = y.data;
    a->residual = residual.data;
    a->add = add.data;
    a->rows = (int)tensor_rows(y);
    a->cols = (int)matrix_rows(w);
    a->depth = (int)matrix_row_stride(w);
    a->outputs = y.c;
    a->x_ld = x.ld;
    a->y_ld = y.ld;
    a->residual_ld = residual.ld;
    a->add_ld = add.ld;
    a->positions = a->add_positions = a->out_w = a->width = a->rows;
    a->height = a->kh = a->kw = a->stride = 1;
    a->in_c = x.c;
    a->channels = (int)matrix_channels(w);
    a->geglu = w->kind == WEIGHT_GEGLU;
    a->f32_out = y.dtype == DTYPE_F32;
    a->vectors = (in_vectors(y) ? VECTOR_Y : 0) | (in_vectors(residual) ? VECTOR_RESIDUAL : 0) |
                 (in_vectors(add) ? VECTOR_ADD : 0);
    return 0;
}

enum { REDUCE_THREADS = 128 };

DEVICE void sum_splits(const gemm &a, float v[8], const float *from)
{
    size_t split = (size_t)a.rows * (size_t)a.cols;
    UNROLL
    for (int i = 0; i < 8; i++)
        v[i] = 0;
    for (int s = 0; s < a.splits; s += 4) {
        float part[4][8];
        UNROLL
        for (int j = 0; j < 4; j++)
            if (s + j < a.splits)
                read_octet(part[j], from + (size_t)(s + j) * split);
        UNROLL
        for (int j = 0; j < 4; j++) {
            UNROLL
            for (int i = 0; i < 8; i++)
                v[i] += s + j < a.splits ? part[j][i] : 0.0f;
        }
    }
}

template <class T> __global__ void __launch_bounds__(REDUCE_THREADS) gemm_sum(const struct gemm a)
{
    int width = a.geglu ? 16 : 8, per_row = a.cols / width;
    size_t at = (size_t)blockIdx.x * REDUCE_THREADS + threadIdx.x, row = at / (size_t)per_row;
    if (row >= (size_t)a.rows)
        return;
    int col = (int)(at % (size_t)per_row) * width;
    const float *from = a.partial + row * (size_t)a.cols + (size_t)col;
    float v[8], gate[8] = {0};
    sum_splits(a, v, from);
    if (a.geglu)
        sum_splits(a, gate, from + 8);
    gemm_finish<T>(a, (int)row, col, v, gate);
}

int gemm_reduce(struct backend *be, const struct gemm &a, struct error *err)
{
    size_t threads = (size_t)a.rows * (size_t)(a.cols / (a.geglu ? 16 : 8));
    return launch(be, be->dtype == DTYPE_F16 ? gemm_sum<f16> : gemm_sum<bf16>, dim3(blocks_of(threads, REDUCE_THREADS)),
                  REDUCE_THREADS, 0, a, err);
}

/* ---- A few rows ---- */

enum { FEW_ROWS = 4, FEW_THREADS = 256, FEW_AHEAD = 4, FEW_STEP = 32 * 8 };

/* SUM[r] = row r of x times row AT of w, over the warp. */
template <class T> DEVICE void few_sums(const gemm &a, float sum[FEW_ROWS], int at)
{
    const T *w = (const T *)a.w + (int64_t)at * a.depth, *x = (const T *)a.x;
    UNROLL
    for (int r = 0; r < FEW_ROWS; r++)
        sum[r] = 0;
    for (int first = (int)threadIdx.x % 32 * 8; first < a.depth; first += FEW_AHEAD * FEW_STEP) {
        vec16 weights[FEW_AHEAD];
        UNROLL
        for (int j = 0; j < FEW_AHEAD; j++)
            weights[j] = first + j * FEW_STEP < a.depth ? load_16(w + first + j * FEW_STEP) : vec16{};
        UNROLL
        for (int j = 0; j < FEW_AHEAD; j++) {
            int k = first + j * FEW_STEP;
            UNROLL
            for (int r = 0; r < FEW_ROWS; r++) {
                if (r >= a.rows || k >= a.depth)
                    continue;
                vec16 numbers = load_16(x + (int64_t)r * a.x_ld + k);
                UNROLL
                for (int i = 0; i < 4; i++) {
                    sum[r] += low_half<T>(weights[j].v[i]) * low_half<T>(numbers.v[i]);
                    sum[r] += high_half<T>(weights[j].v[i]) * high_half<T>(numbers.v[i]);
                }
            }
        }
    }
    UNROLL
    for (int r = 0; r < FEW_ROWS; r++)
        sum[r] = warp_sum(sum[r]);
}

/* A block of eight warps: eight outputs, one a warp, all of k. */
template <class T> __global__ void __launch_bounds__(FEW_THREADS) gemm_few(const struct gemm a)
{
    SHARED_MEMORY(memory);
    float *sums = (float *)memory; /* [value, gate][row][8] */
    int warp = (int)threadIdx.x / 32, halves = a.geglu ? 2 : 1, col = (int)blockIdx.x * 8 * halves;
    for (int half = 0; half < halves; half++) {
        float sum[FEW_ROWS];
        few_sums<T>(a, sum, col + half * 8 + warp);
        UNROLL
        for (int r = 0; r < FEW_ROWS; r++)
            if (threadIdx.x % 32 == 0)
                sums[(half * FEW_ROWS + r) * 8 + warp] = sum[r];
    }
    __syncthreads();
    int row = (int)threadIdx.x;
    if (row >= a.rows)
        return;
    float v[8], gate[8] = {0};
    read_octet(v, sums + row * 8);
    if (a.geglu)
        read_octet(gate, sums + (FEW_ROWS + row) * 8);
    gemm_finish<T>(a, row, col, v, gate);
}

static int run_few(struct backend *be, const struct gemm &a, struct error *err)
{
    return launch(be, be->dtype == DTYPE_F16 ? gemm_few<f16> : gemm_few<bf16>, dim3((unsigned)a.cols / (a.geglu ? 16 : 8)),
                  FEW_THREADS, 2 * FEW_ROWS * 8 * sizeof(float), a, err);
}

int gemm_rows(struct backend *be, const struct gemm &a, struct error *err)
{
    if (!gemm_in_vectors(a))
        return gemm_positions(be, a, err);
    return a.rows <= FEW_ROWS ? run_few(be, a, err) : gemm_run<ROWS>(be, a, err);
}

extern "C" int cuda_linear(struct backend *be, tensor y, tensor x, const weight *w, const struct linear_args *args,
                           struct error *err)
{
    struct gemm a;
    tensor none = {};
    int rc = gemm_begin(be, &a, y, x, w, none, args->residual, err);
    if (rc)
        return rc;
    a.act = args->act;
    return gemm_rows(be, a, err);
}
