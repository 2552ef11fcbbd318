/* softmax(scale * q k^T) v without a T x S matrix: FlashAttention-2 on mma.sync.
 *
 * A block takes a tile of queries of one head; K and V pass through shared memory in tiles of keys, two
 * stages each filled by cp.async, one barrier a tile. A warp owns 16 or 32 queries: its scores, its weights
 * (which leave the first product in the layout that the second one wants) and its output stay in registers.
 * Softmax is fp32 and online, in powers of two: scale * log2(e) is one factor of one multiply-add before ex2.
 * Weights are rounded to 16 bits for the second product, their sum is not.
 *
 *   attend_tile   heads of up to 40, 64, 80, 128, 160 numbers: the networks' sizes. 40 is padded to 48 in
 *                 the first product only (16 a step); everything else has no waste. Smaller heads are
 *                 filled up with zeros.
 *   attend_wide   up to 512: the VAE. See attention_wide.cuh.
 *   attend_plain  what is not in pieces of 16 bytes, a scale that is not positive, heads of up to 1024:
 *                 fp32 without tensor cores. No published network comes here.
 *
 *   head   keys   bytes of a stage,   of shared memory    registers that matter, of a thread whose warp has
 *                                     (128 / 64 queries)  32 / 16 queries
 *   40     64     12,288              26,624 / 24,576     o 40 + s 64 + q 24 / half
 *   64     64     18,432              36,864 / 36,864     o 64 + s 64 + q 32 / half
 *   80     64     22,528              67,584 / 45,056     o 80 + s 64 / half + q 20
 *   128    32     17,408              69,632 / 52,224     o 128 + s 32 / half
 *   160    32     21,504              - / 64,512          - / o 80 + s 16
 * Where q goes to registers it shares memory with the second stage of keys, which is filled after that.
 *
 * What bounds it, at SD-Turbo 512x512, T = S = 4096, 5 heads of 64: 21.5 GFLOP, 10.5 MB to move (3 us). On an
 * H200 mma.sync gives about 600 TFLOP/s (36 us); 84 M exponentials at 16 a cycle and multiprocessor 23 us, in
 * other warps' shadow; each block reads its head's K and V from the second-level cache, 1 MB: 160 MB for 128
 * queries a block, 320 for 64 (30 and 60 us at 5 TB/s). With 32 queries a warp one ldmatrix feeds 4 mma,
 * which balances 128 bytes a cycle of shared memory with twice an A100's mma; with 16 only once. But 32 leave
 * fewer warps to deal out, and a multiprocessor's scheduler ends when its last warp ends: choose_queries()
 * weighs both. The other levels (1024, 256, 64 tokens) and the 77 keys of cross attention are short, and
 * bound by latency: there every multiprocessor gets a block if that can be had.
 *
 * cuDNN's attention, where it is installed and takes the shape, is the other candidate of choose.h. */
#include "attention.cuh"
#include "attention_wide.cuh"
#include "choose.h"
#include "hash.h"
#include "library.h"

#include <stdio.h>

enum { TILE_THREADS = 128 };

/* SIZE: the head in the first product, steps of 16; COLUMNS of 8 of the output; M times 16 queries a warp. */
template <int SIZE, int COLUMNS, int M> struct tile_shape {
    static constexpr bool q_stays = SIZE <= (M == 2 ? 64 : 80); /* in registers */
    static constexpr int keys = SIZE <= 80 ? 64 : 32;
    static constexpr int k_row = (SIZE / 8 | 1) * 8, v_row = (COLUMNS | 1) * 8;
    static constexpr int stage = keys * (k_row + v_row);
    static constexpr int queries(int warps)
    {
        return 16 * M * warps;
    }
    /* Where q lies, and how much there is; in numbers. The output leaves through the same memory. */
    static constexpr int q_at = q_stays ? stage : 2 * stage;
    static constexpr int numbers(int warps)
    {
        int q = queries(warps) * k_row, stages = 2 * stage;
        return q_at + q > stages ? q_at + q : stages;
    }
};

/* What a warp keeps. s: scores, then weights; o: not divided by the sum of weights yet. Of each m, this thread
 * has parts of two rows. */
template <int SIZE, int COLUMNS, int M> struct tile_state {
    typedef tile_shape<SIZE, COLUMNS, M> shape;
    float s[M][shape::keys / 8][4], o[M][COLUMNS][4];
    float top[M][2], sum[M][2]; /* sum: this thread's part of it */
    uint32_t q[M][shape::q_stays ? SIZE / 16 : 1][4];
};

/* Starts the copy of the tile of keys from KEY on; a group of its own. */
template <class T, int SIZE, int COLUMNS, int M>
DEVICE void tile_fetch(const attention_job &a, const attention_place<T> &at, T *stage, int key)
{
    typedef tile_shape<SIZE, COLUMNS, M> shape;
    const T *k = at.k + (size_t)key * a.ldk, *v = at.v + (size_t)key * a.ldv;
    T *values = stage + shape::keys * shape::k_row;
    int width = a.size / 8, valid = a.s - key;
    if (M == 2 || blockDim.x == TILE_THREADS) { /* known to the compiler: no loop */
        fetch_tile<SIZE / 8, shape::k_row, TILE_THREADS>(stage, shape::keys, k, a.ldk, valid, width, k);
        fetch_tile<COLUMNS, shape::v_row, TILE_THREADS>(values, shape::keys, v, a.ldv, valid, width, v);
    } else {
        fetch_tile<SIZE / 8, shape::k_row, 0>(stage, shape::keys, k, a.ldk, valid, width, k);
        fetch_tile<COLUMNS, shape::v_row, 0>(values, shape::keys, v, a.ldv, valid, width, v);
    }
    copy_async_commit();
}

/* s = q k^T, one tile of keys. Q: the warp's rows in shared memory. */
template <class T, int SIZE, int COLUMNS, int M>
DEVICE void tile_scores(tile_state<SIZE, COLUMNS, M> &w, const T *q, const T *keys)
{
    typedef tile_shape<SIZE, COLUMNS, M> shape;
    UNROLL
    for (int m = 0; m < M; m++)
        UNROLL
        for (int n = 0; n < shape::keys / 8; n++)
            UNROLL
            for (int i = 0; i < 4; i++)
                w.s[m][n][i] = 0;
    UNROLL
    for (int k = 0; k < SIZE / 16; k++) {
        constexpr bool stays = shape::q_stays;
        if (!stays) {
            UNROLL
            for (int m = 0; m < M; m++)
                load_matrix_x4(w.q[m][0], q + lane_by_rows<shape::k_row>() + 16 * m * shape::k_row + 16 * k);
        }
        UNROLL
        for (int n = 0; n < shape::keys / 8; n += 2) {
            uint32_t b[4];
            load_matrix_x4(b, keys + lane_by_columns<shape::k_row>() + 8 * n * shape::k_row + 16 * k);
            UNROLL
            for (int m = 0; m < M; m++) {
                mma_16816<T>(w.s[m][n], w.q[m][stays ? k : 0], b);
                mma_16816<T>(w.s[m][n + 1], w.q[m][stays ? k : 0], b + 2);
            }
        }
    }
}

/* Scores become weights relative to the greatest score so far; what was summed under an older one is
 * scaled. */
template <int SIZE, int COLUMNS, int M> DEVICE void tile_soften(tile_state<SIZE, COLUMNS, M> &w, float scale)
{
    enum { KEYS = tile_shape<SIZE, COLUMNS, M>::keys };
    UNROLL
    for (int i = 0; i < 2 * M; i++) {
        const int m = i / 2, h = i % 2;
        float top = w.top[m][h];
        UNROLL
        for (int n = 0; n < KEYS / 8; n++)
            top = fmaxf(top, fmaxf(w.s[m][n][2 * h], w.s[m][n][2 * h + 1]));
        top = row_max(top);
        float factor = fast_exp2((w.top[m][h] - top) * scale), shift = LIFT - top * scale, sum = 0;
        w.top[m][h] = top;
        UNROLL
        for (int n = 0; n < KEYS / 8; n++) {
            UNROLL
            for (int j = 2 * h; j < 2 * h + 2; j++)
                sum += w.s[m][n][j] = fast_exp2(fmaf(w.s[m][n][j], scale, shift));
        }
        w.sum[m][h] = w.sum[m][h] * factor + sum;
        UNROLL
        for (int n = 0; n < COLUMNS; n++) {
            w.o[m][n][2 * h] *= factor;
            w.o[m][n][2 * h + 1] *= factor;
        }
    }
}

/* o += weights times the tile of V, 32 keys a turn: two steps of the mma, so that an odd last column of eight
 * can take both with one ldmatrix. */
template <class T, int SIZE, int COLUMNS, int M>
DEVICE void tile_weigh(tile_state<SIZE, COLUMNS, M> &w, const T *values)
{
    typedef tile_shape<SIZE, COLUMNS, M> shape;
    UNROLL
    for (int turn = 0; turn < shape::keys / 32; turn++) {
        const T *v = values + 32 * turn * shape::v_row;
        uint32_t p[M][2][4], b[4];
        UNROLL
        for (int i = 0; i < 8 * M; i++) {
            const float *pair = w.s[i / 8][4 * turn + i % 8 / 2];
            p[i / 8][i % 8 / 4][i % 4] = pack2<T>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
        }
        UNROLL
        for (int n = 0; n + 1 < COLUMNS; n += 2) {
            UNROLL
            for (int step = 0; step < 2; step++) {
                const T *row = v + lane_by_rows<shape::v_row>() + 16 * step * shape::v_row;
                load_matrix_x4_transposed(b, row + 8 * n);
                UNROLL
                for (int m = 0; m < M; m++) {
                    mma_16816<T>(w.o[m][n], p[m][step], b);
                    mma_16816<T>(w.o[m][n + 1], p[m][step], b + 2);
                }
            }
        }
        if (COLUMNS % 2) {
            load_matrix_x4_transposed(b, v + threadIdx.x % 32 * shape::v_row + 8 * (COLUMNS - 1));
            UNROLL
            for (int m = 0; m < M; m++) {
                mma_16816<T>(w.o[m][COLUMNS - 1], p[m][0], b);
                mma_16816<T>(w.o[m][COLUMNS - 1], p[m][1], b + 2);
            }
        }
    }
}

/* Divides and stores the warp's rows, COUNT of which exist; through TILE, its own, for whole rows of 16-byte
 * pieces. */
template <class T, int SIZE, int COLUMNS, int M>
DEVICE void tile_store(const attention_job &a, const tile_state<SIZE, COLUMNS, M> &w, T *tile, T *y,
                       int count)
{
    enum { ROW = tile_shape<SIZE, COLUMNS, M>::v_row };
    int lane = (int)threadIdx.x % 32, at = lane / 4 * ROW + lane % 4 * 2;
    UNROLL
    for (int i = 0; i < 2 * M; i++) {
        const int m = i / 2, h = i % 2;
        float f = 1 / row_sum(w.sum[m][h]);
        UNROLL
        for (int n = 0; n < COLUMNS; n++)
            store_pair(tile + at + 8 * i * ROW + 8 * n, w.o[m][n][2 * h] * f, w.o[m][n][2 * h + 1] * f);
    }
    __syncwarp();
    for (int i = lane; i < 16 * M * COLUMNS; i += 32) {
        int row = i / COLUMNS, piece = i % COLUMNS;
        if (row < count && 8 * piece < a.size)
            store_16(y + (size_t)row * a.ldy + 8 * piece, load_16(tile + row * ROW + 8 * piece));
    }
}

/* One tile of queries of one head. Grid: tiles x heads x pictures. */
template <class T, int SIZE, int COLUMNS, int M>
__global__ void __launch_bounds__(TILE_THREADS) attend_tile(attention_job a)
{
    typedef tile_shape<SIZE, COLUMNS, M> shape;
    SHARED_MEMORY(memory);
    const int rows = (M == 1 ? (int)blockDim.x : TILE_THREADS) / 2 * M;
    const int warp_row = (int)threadIdx.x / 32 * 16 * M, width = a.size / 8;
    T *stages = (T *)memory, *q = stages + shape::q_at, *warp_q = q + warp_row * shape::k_row;
    attention_place<T> at = find_place<T>(a, blockIdx.x, rows);
    tile_state<SIZE, COLUMNS, M> w = {};
    UNROLL
    for (int i = 0; i < 2 * M; i++)
        w.top[i / 2][i % 2] = -INFINITY;

    fetch_tile<SIZE / 8, shape::k_row, 0>(q, rows, at.q, a.ldq, a.t - at.row0, width, at.q);
    tile_fetch<T, SIZE, COLUMNS, M>(a, at, stages, 0);
    if (shape::q_stays) {
        copy_async_wait<0>();
        __syncthreads();
        UNROLL
        for (int i = 0; i < M * (SIZE / 16); i++)
            load_matrix_x4(w.q[i / (SIZE / 16)][shape::q_stays ? i % (SIZE / 16) : 0],
                           warp_q + lane_by_rows<shape::k_row>() + i / (SIZE / 16) * 16 * shape::k_row +
                               i % (SIZE / 16) * 16);
    }
    int end = keys_seen(a, at.row0 + rows - 1), stage = 0;
    for (int key = 0; key < end; key += shape::keys, stage = shape::stage - stage) {
        copy_async_wait<0>();
        __syncthreads(); /* this tile is there, and nobody reads the one before it any more */
        if (key + shape::keys < end)
            tile_fetch<T, SIZE, COLUMNS, M>(a, at, stages + shape::stage - stage, key + shape::keys);
        tile_scores<T>(w, warp_q, stages + stage);
        if (key + shape::keys > keys_seen(a, at.row0)) {
            UNROLL
            for (int m = 0; m < M; m++)
                hide_keys(a, w.s[m], at.row0 + warp_row + 16 * m + (int)(threadIdx.x % 32 / 4), key);
        }
        tile_soften(w, a.scale);
        tile_weigh<T>(w, stages + stage + shape::keys * shape::k_row);
    }
    __syncthreads();
    tile_store<T>(a, w, stages + warp_row * shape::v_row, at.y + (size_t)warp_row * a.ldy,
                  a.t - at.row0 - warp_row);
}

/* ---- Any shape, without tensor cores ---- */

enum { PLAIN_THREADS = 128, PLAIN_QUERIES = 4, PLAIN_KEYS = 64, PLAIN_SIZE = 1024 };

/* SCORES [PLAIN_QUERIES][PLAIN_KEYS] of the keys from KEY on. A warp takes every fourth key, its lanes share
 * the channels; Q: [PLAIN_QUERIES][size]. */
template <class T>
DEVICE void plain_scores(const attention_job &a, const attention_place<T> &at, int key, const float *q,
                         float *scores)
{
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    for (int j = warp; j < PLAIN_KEYS; j += PLAIN_THREADS / 32) {
        float sum[PLAIN_QUERIES] = {};
        for (int c = lane; c < a.size && key + j < a.s; c += 32) {
            float k = to_float(at.k[(size_t)(key + j) * a.ldk + (size_t)c]);
            UNROLL
            for (int i = 0; i < PLAIN_QUERIES; i++)
                sum[i] += q[i * a.size + c] * k;
        }
        UNROLL
        for (int i = 0; i < PLAIN_QUERIES; i++) {
            float s = warp_sum(sum[i]) * a.scale;
            if (lane == 0)
                scores[i * PLAIN_KEYS + j] = key + j < keys_seen(a, at.row0 + i) ? s : -INFINITY;
        }
    }
}

/* 4 queries of one head: a warp makes weights of each one's scores, then every thread owns up to 8
 * channels. */
template <class T> __global__ void __launch_bounds__(PLAIN_THREADS, 6) attend_plain(attention_job a)
{
    SHARED_MEMORY(memory);
    float *scores = (float *)memory, *factors = scores + PLAIN_QUERIES * PLAIN_KEYS;
    float *q = factors + PLAIN_QUERIES;
    attention_place<T> at = find_place<T>(a, blockIdx.x, PLAIN_QUERIES);
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    for (int i = (int)threadIdx.x; i < PLAIN_QUERIES * a.size; i += PLAIN_THREADS) {
        int row = i / a.size, c = i % a.size;
        q[i] = at.row0 + row < a.t ? to_float(at.q[(size_t)row * a.ldq + (size_t)c]) : 0.0f;
    }
    float o[PLAIN_SIZE / PLAIN_THREADS][PLAIN_QUERIES] = {}, top = -INFINITY, sum = 0;
    int end = keys_seen(a, at.row0 + PLAIN_QUERIES - 1);
    for (int key = 0; key < end; key += PLAIN_KEYS) {
        __syncthreads(); /* q is there; nobody reads the weights before these any more */
        plain_scores(a, at, key, q, scores);
        __syncthreads();
        float *mine = scores + warp * PLAIN_KEYS, before = top;
        top = fmaxf(top, warp_max(fmaxf(mine[lane], mine[lane + 32])));
        float p0 = expf(mine[lane] - top), p1 = expf(mine[lane + 32] - top), factor = expf(before - top);
        sum = sum * factor + warp_sum(p0 + p1);
        mine[lane] = p0;
        mine[lane + 32] = p1;
        if (lane == 0)
            factors[warp] = factor;
        __syncthreads();
        UNROLL
        for (int i = 0; i < PLAIN_QUERIES * (PLAIN_SIZE / PLAIN_THREADS); i++)
            o[i / PLAIN_QUERIES][i % PLAIN_QUERIES] *= factors[i % PLAIN_QUERIES];
        for (int j = 0; j < PLAIN_KEYS && key + j < end; j++) {
            const T *v = at.v + (size_t)(key + j) * a.ldv;
            UNROLL
            for (int c = 0; c < PLAIN_SIZE / PLAIN_THREADS; c++) {
                int channel = (int)threadIdx.x + c * PLAIN_THREADS;
                float x = channel < a.size ? to_float(v[channel]) : 0.0f;
                UNROLL
                for (int i = 0; i < PLAIN_QUERIES; i++)
                    o[c][i] += scores[i * PLAIN_KEYS + j] * x;
            }
        }
    }
    __syncthreads();
    if (lane == 0)
        factors[warp] = 1 / sum;
    __syncthreads();
    UNROLL
    for (int c = 0; c < PLAIN_SIZE / PLAIN_THREADS; c++) {
        int channel = (int)threadIdx.x + c * PLAIN_THREADS;
        UNROLL
        for (int i = 0; i < PLAIN_QUERIES; i++)
            if (channel < a.size && at.row0 + i < a.t)
                at.y[(size_t)i * a.ldy + (size_t)channel] = from_float<T>(o[c][i] * factors[i]);
    }
}

/* ---- Host ---- */

static int issue_plain(struct backend *be, attention_job a, enum dtype type, struct error *err)
{
    size_t shared = sizeof(float) * (size_t)(PLAIN_QUERIES * (PLAIN_KEYS + 1 + a.size));
    a.tiles = (a.t + PLAIN_QUERIES - 1) / PLAIN_QUERIES;
    dim3 grid((unsigned)(a.rows / (size_t)a.t) * (unsigned)a.tiles);
    return launch(be, type == DTYPE_F16 ? attend_plain<f16> : attend_plain<bf16>, grid, PLAIN_THREADS, shared,
                  a, err);
}

/* How many warps of how many queries. A multiprocessor has four schedulers; its time is that of the one with
 * most queries. A warp of 16 queries costs more for each (twice the ldmatrix), and a scheduler with a single
 * warp waits where two would take turns. Both factors are estimates. */
struct queries_choice {
    int m, warps;
};

static double scheduler_time(size_t heads, int t, size_t processors, int m, double factor)
{
    size_t blocks = heads * blocks_of((size_t)t, (size_t)(64 * m));
    size_t each = (blocks + processors - 1) / processors;
    return (double)(each * 16 * (size_t)m) * factor * (each == 1 ? 1.3 : 1.0);
}

static queries_choice choose_queries(size_t heads, int t, int multiprocessors)
{
    size_t processors = (size_t)multiprocessors;
    queries_choice c = {2, 4};
    if (scheduler_time(heads, t, processors, 2, 1.0) <= scheduler_time(heads, t, processors, 1, 1.2))
        return c;
    c.m = 1;
    while (c.warps > 1 && heads * blocks_of((size_t)t, 16 * (size_t)c.warps) < processors)
        c.warps /= 2;
    return c;
}

template <class T, int SIZE, int COLUMNS>
static int issue_tile(struct backend *be, attention_job a, struct error *err)
{
    constexpr int GREATEST = SIZE < 160 ? 2 : 1; /* the sums of 32 queries would not fit the registers */
    size_t heads = a.rows / (size_t)a.t;
    queries_choice c = choose_queries(heads, a.t, cuda_of(be)->multiprocessors);
    c.m = c.m < GREATEST ? c.m : GREATEST;
    a.tiles = (int)blocks_of((size_t)a.t, (size_t)(16 * c.m * c.warps));
    int numbers = c.m == 2 ? tile_shape<SIZE, COLUMNS, 2>::numbers(c.warps)
                           : tile_shape<SIZE, COLUMNS, 1>::numbers(c.warps);
    return launch(be, c.m == 2 ? attend_tile<T, SIZE, COLUMNS, GREATEST> : attend_tile<T, SIZE, COLUMNS, 1>,
                  dim3((unsigned)heads * (unsigned)a.tiles), 32 * c.warps, 2 * (size_t)numbers, a, err);
}

/* Into how many parts to split the keys, so that the last block ends early. In tiles of keys: a block needs
 * some time to begin and to end, and merging costs what it moves (4096 rows about one tile). The parts must
 * fit the workspace. */
static int choose_splits(const attention_job &a, size_t blocks, int multiprocessors)
{
    size_t tiles = blocks_of((size_t)a.s, WIDE_KEYS), processors = (size_t)multiprocessors;
    int best = 1;
    double least = 0;
    for (int splits = 1; splits <= 8 && (size_t)splits <= tiles; splits++) {
        size_t each = (blocks * (size_t)splits + processors - 1) / processors;
        double time = (double)(each * (blocks_of(tiles, (size_t)splits) + 1));
        time += splits > 1 ? 1 + splits * (double)a.rows / 4096 : 0;
        size_t bytes = (size_t)splits * a.rows * (size_t)(a.size + 2) * sizeof(float);
        if (splits == 1 || (time < least && !a.causal && bytes <= CUDA_WORKSPACE)) {
            least = time;
            best = splits;
        }
    }
    return best;
}

template <class T> static int issue_wide(struct backend *be, attention_job a, struct error *err)
{
    const struct cuda_state *st = cuda_of(be);
    bool large = st->shared_max >= (size_t)wide_shape<4>::bytes;
    int queries = large ? wide_shape<4>::rows : wide_shape<2>::rows;
    a.tiles = (int)blocks_of((size_t)a.t, (size_t)queries);
    size_t blocks = a.rows / (size_t)a.t * (size_t)a.tiles;
    a.splits = choose_splits(a, blocks, st->multiprocessors);
    a.partial = (float *)st->workspace;
    dim3 grid((unsigned)blocks * (unsigned)a.splits);
    int rc = large ? launch(be, attend_wide<T, 4>, grid, WIDE_THREADS, (size_t)wide_shape<4>::bytes, a, err)
                   : launch(be, attend_wide<T, 2>, grid, WIDE_THREADS, (size_t)wide_shape<2>::bytes, a, err);
    if (rc || a.splits == 1)
        return rc;
    dim3 pieces(blocks_of(a.rows * (size_t)a.size / 8, MERGE_THREADS));
    return launch(be, merge_parts<T>, pieces, MERGE_THREADS, 0, a, err);
}

template <class T> static int issue(struct backend *be, const attention_job &a, struct error *err)
{
    if (a.size <= 40)
        return issue_tile<T, 48, 5>(be, a, err);
    if (a.size <= 64)
        return issue_tile<T, 64, 8>(be, a, err);
    if (a.size <= 80)
        return issue_tile<T, 80, 10>(be, a, err);
    if (a.size <= 128)
        return issue_tile<T, 128, 16>(be, a, err);
    if (a.size <= 160)
        return issue_tile<T, 160, 20>(be, a, err);
    return issue_wide<T>(be, a, err);
}

/* One call as its candidates see it: our kernels first, then cuDNN. */
struct attention_options {
    attention_job a;
    attention_call call;
};

enum { ATTENTION_OURS, ATTENTION_CUDNN, ATTENTION_CANDIDATES };

static int run_option(struct backend *be, const void *ctx, int i, void *out, struct error *err)
{
    const attention_options *o = (const attention_options *)ctx;
    if (i == ATTENTION_CUDNN)
        return cudnn_attention(be, &o->call, out, err);
    attention_job a = o->a;
    a.y = out ? out : a.y;
    return be->dtype == DTYPE_F16 ? issue<f16>(be, a, err) : issue<bf16>(be, a, err);
}

/* All that the speed depends on, as a number. */
static uint64_t attention_key(const attention_call &c)
{
    const int parts[] = {-1, /* no product's key */
                         c.n,    c.kv_n, c.t,    c.s,    c.heads,  c.size,
                         c.q_ld, c.k_ld, c.v_ld, c.y_ld, c.causal, (int)c.dtype};
    uint64_t key = HASH_BEGIN;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        key = hash_number(key, (uint32_t)parts[i]);
    return key;
}

static int compete(struct backend *be, const attention_options &o, struct error *err)
{
    const attention_call &call = o.call;
    struct choice c;
    c.count = ATTENTION_CANDIDATES;
    c.unproven = 0;
    snprintf(c.name[ATTENTION_OURS], sizeof c.name[0], "flash");
    snprintf(c.name[ATTENTION_CUDNN], sizeof c.name[0], "cudnn");
    snprintf(c.key, sizeof c.key, "attention %s %d/%dx%dx%d h%dx%d ld%d,%d,%d,%d%s",
             call.dtype == DTYPE_F16 ? "fp16" : "bf16", call.n, call.kv_n, call.t, call.s, call.heads, call.size,
             call.q_ld, call.k_ld, call.v_ld, call.y_ld, call.causal ? " causal" : "");
    c.out_bytes = (size_t)call.n * (size_t)call.t * (size_t)call.y_ld * 2;
    c.out_type = call.dtype;
    c.run = run_option;
    c.ctx = &o;
    return choose(be, &c, err);
}

/* The faster of the two; timed when a shape is new, later a look into a table. */
static int run_best(struct backend *be, const attention_options &o, struct error *err)
{
    if (!cudnn_can_attention(be, &o.call))
        return run_option(be, &o, ATTENTION_OURS, NULL, err);
    uint64_t key = attention_key(o.call);
    int known = choose_known(be, key), best = known < 0 ? compete(be, o, err) : known;
    if (best < 0)
        return best;
    if (best == ATTENTION_CUDNN) {
        /* It may refuse today what was chosen before: another version, less memory. */
        struct error why;
        memset(&why, 0, sizeof why);
        int rc = run_option(be, &o, ATTENTION_CUDNN, NULL, &why);
        if (rc == 0 && known < 0)
            choose_remember(be, key, ATTENTION_CUDNN);
        if (rc != ERR_UNSUPPORTED)
            return rc ? error_set(err, rc, "%s", why.msg) : 0;
        known = -1;
    }
    if (known < 0)
        choose_remember(be, key, ATTENTION_OURS);
    return run_option(be, &o, ATTENTION_OURS, NULL, err);
}

/* Rows in pieces of 16 bytes. */
static bool in_pieces(tensor x)
{
    return (uintptr_t)x.data % 16 == 0 && x.ld % 8 == 0;
}

static attention_call as_call(tensor y, tensor q, tensor k, tensor v, const struct attention_args *args)
{
    attention_call c;
    memset(&c, 0, sizeof c);
    c.n = q.n;
    c.kv_n = k.n;
    c.t = q.w;
    c.s = k.w;
    c.heads = args->heads;
    c.size = q.c / args->heads;
    c.q = q.data;
    c.k = k.data;
    c.v = v.data;
    c.y = y.data;
    c.q_ld = q.ld;
    c.k_ld = k.ld;
    c.v_ld = v.ld;
    c.y_ld = y.ld;
    c.scale = args->scale;
    c.causal = args->causal;
    c.dtype = q.dtype;
    return c;
}

extern "C" int cuda_attention(struct backend *be, tensor y, tensor q, tensor k, tensor v,
                              const struct attention_args *args, struct error *err)
{
    attention_job a;
    memset(&a, 0, sizeof a);
    a.q = q.data;
    a.k = k.data;
    a.v = v.data;
    a.y = y.data;
    a.ldq = (size_t)q.ld;
    a.ldk = (size_t)k.ld;
    a.ldv = (size_t)v.ld;
    a.ldy = (size_t)y.ld;
    a.t = q.w;
    a.s = k.w;
    a.heads = args->heads;
    a.size = q.c / args->heads;
    a.splits = 1;
    a.causal = args->causal;
    a.shared_keys = k.n == 1;
    a.rows = (size_t)q.n * (size_t)q.w * (size_t)args->heads;
    a.scale = args->scale;
    if (a.size > PLAIN_SIZE)
        return error_set(err, ERR_UNSUPPORTED, "attention: head size %d is above %d", a.size, PLAIN_SIZE);
    bool pieces = a.size % 8 == 0 && in_pieces(q) && in_pieces(k) && in_pieces(v) && in_pieces(y);
    if (!pieces || a.size > WIDE || !(a.scale > 0))
        return issue_plain(be, a, q.dtype, err);
    a.scale *= 1.44269504f;
    return run_best(be, {a, as_call(y, q, k, v, args)}, err);
}
