/* Attention with heads of up to 512 numbers: the VAE's one head over all pixels of its smallest map.
 *
 * The output of 64 queries is 64 x 512 sums, half of a multiprocessor's registers: so a block is 8 warps and
 * 64 queries, warp w owns columns 64 w.. of all of them (128 sums a thread), and the scores are computed
 * once, by all warps together, and go round through shared memory as 16-bit weights. Q stays in shared
 * memory; K and V pass through a ring of stages of 16 KiB, of 64 keys x 128 numbers of K or 16 keys x 512 of
 * V, so that a fifth of the memory prefetches both and there is one barrier a stage.
 *
 *   queries  64 x 65 pieces of 16 bytes   66,560 bytes   (rows of an odd number of pieces: attention.cuh)
 *   ring     5 x 64 x 17 pieces           87,040
 *   weights  64 x 9 pieces                 9,216
 *   rest     greatest scores, factors        768              163,584 together, of 166,912 on an A100
 *
 * GPUs with 99 KiB (8.6, 8.9) take 32 queries and 3 stages: 90,752 bytes, and each key is read twice as
 * often.
 *
 * The price is K and V: every block reads all of them, 64 multiply-adds a number read. At 512x512 pixels (T =
 * S = 4096) that is 64 x 8 MiB = 0.5 GB out of the second-level cache for 34 GFLOP: about 0.1 ms at 5 TB/s,
 * more than the tensor cores need (mma.sync on an H200: about 0.06 ms) and 3 % of the decoder. More queries a
 * block do not fit the registers. Per 64 keys shared memory gives 512 KiB to ldmatrix (4096 cycles) and takes
 * 128 KiB, for 4096 cycles of mma on an A100, about 3300 on an H200.
 *
 * 64 blocks do not fill 132 multiprocessors, so the keys are split too where that ends earlier (2 parts
 * here): a block then leaves its sums in fp32, merge_parts() weighs and adds them in a fixed order. 2 x 8 MiB
 * written and read.
 *
 * Registers: 128 sums, 16 scores, about 40 of operands. */
#ifndef LATENTD_ATTENTION_WIDE_CUH
#define LATENTD_ATTENTION_WIDE_CUH

#include "attention.cuh"

enum {
    WIDE = 512,
    WIDE_THREADS = 256,
    WIDE_KEYS = 64,                  /* of a tile of scores */
    WIDE_DEPTH = 128,                /* numbers of K in a stage */
    WIDE_STEP = 16,                  /* keys of V in a stage */
    WIDE_ROW = WIDE + 8,             /* strides */
    WIDE_DEPTH_ROW = WIDE_DEPTH + 8,
    WIDE_KEYS_ROW = WIDE_KEYS + 8,
    WIDE_STAGE = WIDE_KEYS * WIDE_DEPTH_ROW /* numbers; V's 16 x 520 fit too */
};

/* M: rows of 16 queries. */
template <int M> struct wide_shape {
    static constexpr int rows = 16 * M, stages = M == 4 ? 5 : 3;
    static constexpr int key_groups = 8 / M;             /* warps side by side over the scores */
    static constexpr int group = WIDE_KEYS / key_groups; /* keys of such a warp */
    static constexpr int numbers = rows * WIDE_ROW + stages * WIDE_STAGE + rows * WIDE_KEYS_ROW;
    static constexpr int bytes = 2 * numbers + 4 * (key_groups + 1) * rows;
};

/* The order in which K and V go through the ring: for each tile of keys K's parts, then V's. */
template <class T, int M> struct wide_feed {
    const attention_job &a;
    const T *k, *v;
    T *ring;
    int tile, end, k_parts; /* tiles of keys */
    int part, fill, drain;  /* next part of the tile; stages to be filled and read next */

    DEVICE void fetch()
    {
        int key = tile * WIDE_KEYS;
        T *stage = ring + fill * WIDE_STAGE;
        if (tile >= end) {
            copy_async_commit(); /* so that the count of groups stays right */
            return;
        }
        if (part < k_parts) {
            int first = part * WIDE_DEPTH;
            fetch_tile<WIDE_DEPTH / 8, WIDE_DEPTH_ROW, WIDE_THREADS>(
                stage, WIDE_KEYS, k + (size_t)key * a.ldk + first, a.ldk, a.s - key, (a.size - first) / 8, k);
        } else {
            key += (part - k_parts) * WIDE_STEP;
            fetch_tile<WIDE / 8, WIDE_ROW, WIDE_THREADS>(stage, WIDE_STEP, v + (size_t)key * a.ldv, a.ldv,
                                                         a.s - key, a.size / 8, v);
        }
        copy_async_commit();
        fill = fill + 1 < wide_shape<M>::stages ? fill + 1 : 0;
        if (++part == k_parts + WIDE_KEYS / WIDE_STEP) {
            part = 0;
            tile++;
        }
    }

    /* The next stage, complete; the one before it is free again, and everything that any thread wrote is
     * seen. */
    DEVICE const T *next()
    {
        copy_async_wait<wide_shape<M>::stages - 2>();
        __syncthreads();
        fetch();
        const T *stage = ring + drain * WIDE_STAGE;
        drain = drain + 1 < wide_shape<M>::stages ? drain + 1 : 0;
        return stage;
    }
};

/* s += 16 queries times `group` keys, over the WIDE_DEPTH numbers of a stage. */
template <class T, int M> DEVICE void wide_scores(float (&s)[M][4], const T *queries, const T *keys)
{
    UNROLL
    for (int k = 0; k < WIDE_DEPTH; k += 16) {
        uint32_t q[4];
        load_matrix_x4(q, queries + lane_by_rows<WIDE_ROW>() + k);
        UNROLL
        for (int n = 0; n < M; n += 2) {
            uint32_t b[4];
            load_matrix_x4(b, keys + lane_by_columns<WIDE_DEPTH_ROW>() + 8 * n * WIDE_DEPTH_ROW + k);
            mma_16816<T>(s[n], q, b);
            mma_16816<T>(s[n + 1], q, b + 2);
        }
    }
}

/* o += weights times WIDE_STEP rows of V; both of this stage. */
template <class T, int M> DEVICE void wide_weigh(float (&o)[M][8][4], const T *weights, const T *values)
{
    uint32_t p[M][4];
    UNROLL
    for (int m = 0; m < M; m++)
        load_matrix_x4(p[m], weights + lane_by_rows<WIDE_KEYS_ROW>() + 16 * m * WIDE_KEYS_ROW);
    UNROLL
    for (int n = 0; n < 8; n += 2) {
        uint32_t b[4];
        load_matrix_x4_transposed(b, values + lane_by_rows<WIDE_ROW>() + 8 * n);
        UNROLL
        for (int m = 0; m < M; m++) {
            mma_16816<T>(o[m][n], p[m], b);
            mma_16816<T>(o[m][n + 1], p[m], b + 2);
        }
    }
}

/* What a warp knows of its 16 rows of scores; `row` counts in the block, keys from `key` on in the tile. */
struct wide_rows {
    int row, key;
    float top[2], sum[2]; /* greatest score; sum of the weights this thread computed; of rows row, row + 8 */
};

/* Weights out of scores: 16-bit into WEIGHTS, and by what the output must be multiplied before them into
 * FACTORS. TOPS is for exchange: [key_groups][rows]. Others may read weights and factors after the next
 * barrier. */
template <class T, int M>
DEVICE void wide_soften(const attention_job &a, float (&s)[M][4], wide_rows &r, T *weights, float *tops,
                        float *factors)
{
    enum { GROUPS = wide_shape<M>::key_groups, ROWS = wide_shape<M>::rows };
    int group = r.key / wide_shape<M>::group, lane = (int)(threadIdx.x % 4);
    UNROLL
    for (int h = 0; h < 2; h++) {
        float top = fmaxf(s[0][2 * h], s[0][2 * h + 1]);
        UNROLL
        for (int n = 1; n < M; n++)
            top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        top = row_max(top);
        if (lane == 0)
            tops[group * ROWS + r.row + 8 * h] = top;
    }
    __syncthreads();
    UNROLL
    for (int h = 0; h < 2; h++) {
        int row = r.row + 8 * h;
        float top = r.top[h];
        UNROLL
        for (int i = 0; i < GROUPS; i++)
            top = fmaxf(top, tops[i * ROWS + row]);
        float factor = fast_exp2((r.top[h] - top) * a.scale), shift = LIFT - top * a.scale;
        r.top[h] = top;
        r.sum[h] *= factor;
        if (group == 0 && lane == 0)
            factors[row] = factor;
        UNROLL
        for (int n = 0; n < M; n++) {
            float p0 = fast_exp2(fmaf(s[n][2 * h], a.scale, shift));
            float p1 = fast_exp2(fmaf(s[n][2 * h + 1], a.scale, shift));
            r.sum[h] += p0 + p1;
            store_pair(weights + row * WIDE_KEYS_ROW + r.key + 8 * n + 2 * lane, p0, p1);
        }
    }
}

/* Every row of the output times its factor. */
template <int M> DEVICE void wide_scale(float (&o)[M][8][4], const float *factors)
{
    UNROLL
    for (int i = 0; i < 2 * M; i++) {
        float f = factors[8 * i + (int)(threadIdx.x % 32 / 4)];
        UNROLL
        for (int n = 0; n < 8; n++) {
            o[i / 2][n][i % 2 * 2] *= f;
            o[i / 2][n][i % 2 * 2 + 1] *= f;
        }
    }
}

/* The sums of all weights of each row of the block, into the first row of TOPS. */
template <int M> DEVICE void wide_sums(const wide_rows &r, float *tops)
{
    enum { GROUPS = wide_shape<M>::key_groups, ROWS = wide_shape<M>::rows };
    UNROLL
    for (int h = 0; h < 2; h++) {
        float sum = row_sum(r.sum[h]);
        if (threadIdx.x % 4 == 0)
            tops[r.key / wide_shape<M>::group * ROWS + r.row + 8 * h] = sum;
    }
    __syncthreads();
    if (threadIdx.x < ROWS) {
        float sum = 0;
        for (int i = 0; i < GROUPS; i++)
            sum += tops[i * ROWS + (int)threadIdx.x];
        tops[threadIdx.x] = sum;
    }
    __syncthreads();
}

/* Divides and stores; through TILE, for whole rows of 16-byte pieces. */
template <class T, int M>
DEVICE void wide_store(const attention_job &a, const attention_place<T> &at, float (&o)[M][8][4],
                       const float *sums, T *tile)
{
    int g = (int)(threadIdx.x % 32 / 4), column = (int)(threadIdx.x / 32 * 64 + threadIdx.x % 4 * 2);
    UNROLL
    for (int m = 0; m < M; m++) {
        UNROLL
        for (int h = 0; h < 2; h++) {
            int row = 16 * m + 8 * h + g;
            float f = 1 / sums[row];
            UNROLL
            for (int n = 0; n < 8; n++)
                store_pair(tile + row * WIDE_ROW + column + 8 * n, o[m][n][2 * h] * f,
                           o[m][n][2 * h + 1] * f);
        }
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < 16 * M * (WIDE / 8); i += WIDE_THREADS) {
        int row = i / (WIDE / 8), piece = i % (WIDE / 8);
        if (at.row0 + row < a.t && 8 * piece < a.size)
            store_16(at.y + (size_t)row * a.ldy + 8 * piece, load_16(tile + row * WIDE_ROW + 8 * piece));
    }
}

DEVICE vec16 pack_floats(float a, float b, float c, float d)
{
    return {{__float_as_uint(a), __float_as_uint(b), __float_as_uint(c), __float_as_uint(d)}};
}

/* Part SPLIT of the keys: [splits][rows][size] sums, then [splits][rows] of greatest score (in powers of two)
 * and sum of weights. */
template <class T, int M>
DEVICE void wide_leave(const attention_job &a, const attention_place<T> &at, float (&o)[M][8][4],
                       const wide_rows &r, const float *sums, int split)
{
    size_t first = (size_t)split * a.rows + at.row;
    bool odd = threadIdx.x % 2;
    /* Neighbours swap, so that the even one has four columns of row g and the odd one of row g + 8. */
    int row = (int)(threadIdx.x % 32 / 4) + 8 * odd;
    int column = (int)(threadIdx.x / 32 * 64 + threadIdx.x % 4 / 2 * 4);
    UNROLL
    for (int m = 0; m < M; m++, row += 16) {
        float *to = a.partial + (first + (size_t)row) * (size_t)a.size + column;
        UNROLL
        for (int n = 0; n < 8; n++) {
            const float *d = o[m][n];
            float x = shuffle_xor(odd ? d[0] : d[2], 1), y = shuffle_xor(odd ? d[1] : d[3], 1);
            vec16 out = odd ? pack_floats(x, y, d[2], d[3]) : pack_floats(d[0], d[1], x, y);
            if (at.row0 + row < a.t && column + 8 * n < a.size)
                store_16(to + 8 * n, out);
        }
    }
    float *rest = a.partial + (size_t)a.splits * a.rows * (size_t)a.size + 2 * first;
    UNROLL
    for (int h = 0; h < 2; h++) {
        int mine = r.row + 8 * h;
        if (r.key == 0 && threadIdx.x % 4 == 0 && at.row0 + mine < a.t) {
            rest[2 * mine] = r.top[h] * a.scale;
            rest[2 * mine + 1] = sums[mine];
        }
    }
}

/* One block: 16 M queries of a head, all keys or one part of them. Grid: (queries, heads, pictures) x
 * splits. */
template <class T, int M> __global__ void __launch_bounds__(WIDE_THREADS) attend_wide(attention_job a)
{
    typedef wide_shape<M> shape;
    SHARED_MEMORY(memory);
    T *queries = (T *)memory, *ring = queries + shape::rows * WIDE_ROW;
    T *weights = ring + shape::stages * WIDE_STAGE;
    float *tops = (float *)(weights + shape::rows * WIDE_KEYS_ROW);
    float *factors = tops + shape::key_groups * shape::rows;
    unsigned split = blockIdx.x % (unsigned)a.splits;
    attention_place<T> at = find_place<T>(a, blockIdx.x / (unsigned)a.splits, shape::rows);
    unsigned tiles = (unsigned)(keys_seen(a, at.row0 + shape::rows - 1) + WIDE_KEYS - 1) / WIDE_KEYS;
    int warp = (int)threadIdx.x / 32, row0 = warp % M * 16;
    wide_rows r;
    r.row = row0 + (int)(threadIdx.x % 32 / 4);
    r.key = warp / M * shape::group;
    r.top[0] = r.top[1] = -INFINITY;
    r.sum[0] = r.sum[1] = 0;
    wide_feed<T, M> feed = {a, at.k, at.v, ring, 0, 0, (a.size + WIDE_DEPTH - 1) / WIDE_DEPTH, 0, 0, 0};
    feed.tile = (int)(tiles * split / (unsigned)a.splits);
    feed.end = (int)(tiles * (split + 1) / (unsigned)a.splits);
    fetch_tile<WIDE / 8, WIDE_ROW, WIDE_THREADS>(queries, shape::rows, at.q, a.ldq, a.t - at.row0, a.size / 8,
                                                 at.q);
    for (int i = 0; i < shape::stages - 1; i++)
        feed.fetch();
    float o[M][8][4] = {};
    for (int tile = feed.tile, end = feed.end; tile < end; tile++) {
        float s[M][4] = {};
        for (int part = 0; part < feed.k_parts; part++)
            wide_scores<T, M>(s, queries + row0 * WIDE_ROW + part * WIDE_DEPTH,
                              feed.next() + r.key * WIDE_DEPTH_ROW);
        int key0 = tile * WIDE_KEYS;
        if (key0 + WIDE_KEYS > keys_seen(a, at.row0))
            hide_keys(a, s, at.row0 + r.row, key0 + r.key);
        wide_soften<T, M>(a, s, r, weights, tops, factors);
        for (int part = 0; part < WIDE_KEYS / WIDE_STEP; part++) {
            const T *values = feed.next();
            if (part == 0)
                wide_scale<M>(o, factors);
            wide_weigh<T, M>(o, weights + part * WIDE_STEP, values + 64 * warp);
        }
    }
    wide_sums<M>(r, tops);
    if (a.splits > 1)
        wide_leave<T, M>(a, at, o, r, tops, (int)split);
    else
        wide_store<T, M>(a, at, o, tops, queries);
}

enum { MERGE_THREADS = 256 };

/* 8 numbers a thread: the parts of a row in the order of their keys. */
template <class T> __global__ void __launch_bounds__(MERGE_THREADS) merge_parts(attention_job a)
{
    size_t pieces = (size_t)a.size / 8, i = (size_t)blockIdx.x * MERGE_THREADS + threadIdx.x;
    if (i >= a.rows * pieces)
        return;
    size_t row = i / pieces, piece = i % pieces, nh = row / (size_t)a.t, t = row % (size_t)a.t;
    const float *rest = a.partial + (size_t)a.splits * a.rows * (size_t)a.size;
    float top = -INFINITY, total = 0, sum[8] = {};
    for (int p = 0; p < a.splits; p++)
        top = fmaxf(top, rest[2 * ((size_t)p * a.rows + row)]);
    for (int p = 0; p < a.splits; p++) {
        size_t at = (size_t)p * a.rows + row;
        float f = fast_exp2(rest[2 * at] - top);
        const float *from = a.partial + at * (size_t)a.size + 8 * piece;
        vec16 x[2] = {load_16(from), load_16(from + 4)};
        total += f * rest[2 * at + 1];
        UNROLL
        for (int j = 0; j < 8; j++)
            sum[j] += f * __uint_as_float(x[j / 4].v[j % 4]);
    }
    float f = 1 / total;
    vec16 out;
    UNROLL
    for (int j = 0; j < 4; j++)
        out.v[j] = pack2<T>(sum[2 * j] * f, sum[2 * j + 1] * f);
    size_t n = nh / (size_t)a.heads, head = nh % (size_t)a.heads;
    store_16((T *)a.y + (n * (size_t)a.t + t) * a.ldy + head * (size_t)a.size + 8 * piece, out);
}

#endif
