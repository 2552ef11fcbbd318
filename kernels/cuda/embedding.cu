/* Token and timestep embeddings. Ids and timesteps are the host's: they travel in the arguments of the
 * launch, so nothing of the host is read later.
 *
 * embed_tokens: a block a token, a piece of 8 numbers a thread. 77 tokens of 1024 numbers are 473 KB read and
 * written: the launch is what it costs. timestep_embedding: a thread for a sine and its cosine; accurate
 * functions, for an angle of 999 has lost ten bits before the sine is taken. */
#include "rows.cuh"
#include "weights.cuh"

namespace {

enum { THREADS = 128, TIMES_MAX = CUDA_IDS_MAX };

struct tokens_args {
    void *y;
    const void *table, *positions; /* T; rows of STRIDE numbers */
    size_t y_ld, stride, first;    /* first: row of y that ids[0] makes */
    int c, tokens, type;           /* tokens in a prompt */
    int ids[CUDA_IDS_MAX];
};

/* Eight numbers a thread; y is T too. */
template <class T> __global__ void __launch_bounds__(THREADS) embed_pieces(tokens_args a)
{
    size_t row = a.first + blockIdx.x, token = (size_t)a.ids[blockIdx.x] * a.stride,
           position = row % (size_t)a.tokens * a.stride;
    for (int i = (int)threadIdx.x * 8; i < a.c; i += THREADS * 8) {
        float x[8], p[8];
        unpack<T, 8>(x, load_piece<T, 8>(a.table, token + (size_t)i));
        unpack<T, 8>(p, load_piece<T, 8>(a.positions, position + (size_t)i));
        UNROLL
        for (int j = 0; j < 8; j++)
            x[j] += p[j];
        store_piece<T, 8>(a.y, row * a.y_ld + (size_t)i, x);
    }
}

template <class T> __global__ void __launch_bounds__(THREADS) embed_numbers(tokens_args a)
{
    size_t row = a.first + blockIdx.x, token = (size_t)a.ids[blockIdx.x] * a.stride,
           position = row % (size_t)a.tokens * a.stride;
    for (size_t i = threadIdx.x; i < (size_t)a.c; i += THREADS)
        store_any(a.y, a.type, row * a.y_ld + i,
                  to_float(((const T *)a.table)[token + i]) +
                      to_float(((const T *)a.positions)[position + i]));
}

template <class T>
static int embed(struct backend *be, tensor y, tokens_args *a, const int32_t *ids, struct error *err)
{
    bool pieces = y.dtype == be->dtype && y.c % 8 == 0 && rows_aligned(y);
    size_t rows = tensor_rows(y);
    int rc = 0;
    for (a->first = 0; a->first < rows && !rc; a->first += CUDA_IDS_MAX) {
        size_t count = least(rows - a->first, CUDA_IDS_MAX);
        memset(a->ids, 0, sizeof a->ids);
        memcpy(a->ids, ids + a->first, count * sizeof *ids);
        rc = launch(be, pieces ? embed_pieces<T> : embed_numbers<T>, (unsigned)count, THREADS, 0, *a, err);
    }
    return rc;
}

struct times_args {
    void *y;
    size_t y_ld;
    int c, type, flip;
    float shift;
    float time[TIMES_MAX];
};

/* One thread: frequency I of picture blockIdx.y; the thread behind the last frequency writes an odd width's
 * zero. Step by step in fp32 as torch computes it, see kernels/ref/embedding.c. The stack frame that the
 * compiler reports belongs to the reduction of angles beyond 100000, which never come. */
__global__ void __launch_bounds__(THREADS) sinusoids(times_args a)
{
    int pairs = a.c / 2, i = (int)(blockIdx.x * THREADS + threadIdx.x);
    size_t row = blockIdx.y * a.y_ld;
    if (i == pairs && a.c % 2)
        store_any(a.y, a.type, row + (size_t)a.c - 1, 0.0f);
    if (i >= pairs)
        return;
    float exponent = __fmul_rn(-9.2103403719761836f, (float)i) / ((float)pairs - a.shift);
    float angle = a.time[blockIdx.y] * expf(exponent);
    store_any(a.y, a.type, row + (size_t)(a.flip ? pairs + i : i), sinf(angle));
    store_any(a.y, a.type, row + (size_t)(a.flip ? i : pairs + i), cosf(angle));
}

} // namespace

int cuda_embed_tokens(struct backend *be, tensor y, const weight *tokens, const weight *positions,
                      const int32_t *ids, struct error *err)
{
    tokens_args a;
    memset(&a, 0, sizeof a);
    a.y = y.data;
    a.y_ld = (size_t)y.ld;
    a.type = y.dtype;
    a.table = embedding_table(tokens);
    a.positions = embedding_table(positions);
    a.stride = embedding_stride(tokens);
    a.c = y.c;
    a.tokens = y.w;
    return be->dtype == DTYPE_F16 ? embed<f16>(be, y, &a, ids, err) : embed<bf16>(be, y, &a, ids, err);
}

int cuda_timestep_embedding(struct backend *be, tensor y, const float *timesteps, bool flip_sin_to_cos,
                            float freq_shift, struct error *err)
{
    times_args a;
    int rc = 0;
    memset(&a, 0, sizeof a);
    a.y_ld = (size_t)y.ld;
    a.c = y.c;
    a.type = y.dtype;
    a.flip = flip_sin_to_cos;
    a.shift = freq_shift;
    for (int first = 0; first < y.n && !rc; first += TIMES_MAX) {
        int count = (int)least((size_t)(y.n - first), TIMES_MAX);
        a.y = (char *)y.data + (size_t)first * a.y_ld * dtype_size(y.dtype);
        memset(a.time, 0, sizeof a.time);
        memcpy(a.time, timesteps + first, (size_t)count * sizeof *timesteps);
        rc = launch(be, sinusoids, dim3(blocks_of((size_t)y.c / 2 + 1, THREADS), (unsigned)count), THREADS, 0,
                    a, err);
    }
    return rc;
}
