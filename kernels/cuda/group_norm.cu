/* torch.nn.GroupNorm, alone and followed by SiLU: y = (x - mean) / sqrt(variance + eps) * gamma + beta, where
 * a group is C / groups channels of all rows of a picture: 20 bytes of every 640 at 64 x 64 x 320.
 *
 * The work is cut into tiles: so many channels that they are whole groups and whole pieces of 16 bytes (4
 * groups of 10 channels are 5 pieces), times some rows. A thread keeps to one piece's column and goes down
 * the rows, so a warp reads runs of 80 to 240 bytes, and the 8 channels' sums stay in registers. Two ways:
 *
 * group_norm_small, where all rows of a tile are at most 40 KB (16 x 16 and 8 x 8 in the UNet): a block has
 * the whole tile in shared memory. All its bytes are under way at once (cp.async), mean and variance are two
 * exact passes over shared memory, and one launch does it all: 1 read, 1 write. Only 16 to 64 multiprocessors
 * work, and SiLU of 20000 numbers takes one of them about 2 us, no more than a second launch would.
 *
 * group_norm_sums, then group_norm_apply, for all others: rows are cut into slices so that the tiles are one
 * wave of two blocks a multiprocessor (512 threads each with 4 loads under way: 64 KB). The sums of a slice
 * are of deviations from the group's first number there, so nothing cancels; each slice leaves mean and M2
 * (the sum of squared deviations from the mean) in the workspace; each block of the second kernel puts its
 * groups' slices together in a fixed order (up to 132 slices of 16 groups, 17 KB, from L2) and goes over its
 * rows from the last to the first: what the first kernel read last is still in L2. Bytes: 2 reads and 1
 * write; the second read is L2's for all of the UNet and for about 30 MB of the VAE's 67 (512 x 512 x 128),
 * 201 MB moved, 45 us at 4.3 TB/s.
 *
 * Shared memory: the tile (small only), 17 or 34 KB for the sums of a block. Registers: 64 for two blocks of
 * 512 a multiprocessor, 80 to 86 in group_norm_small. */
#include "rows.cuh"
#include "weights.cuh"

namespace {

enum {
    SMALL_BYTES = 40 << 10, /* of a tile that one block takes */
    THREADS_MAX = 512,
    COLUMNS = 10,      /* pieces in a tile's row are not more, unless one unit of groups is wider */
    COLUMNS_MAX = 256, /* wider ones go to norm_any */
    DEPTH = 4          /* loads of a thread under way */
};

struct moments {
    float mean, m2; /* m2: sum of squared deviations from the mean */
};

struct group_norm_args {
    void *y;
    const void *x;
    const float *gamma, *beta;
    moments *partial; /* [picture][group][slice] */
    size_t y_ld, x_ld, rows, slice_rows;
    int tiles, slices;   /* of a picture */
    int columns;         /* pieces in a row of a tile */
    int groups, group_c; /* groups of a tile, channels of a group */
    float eps;
};

/* What a block and a thread have to do. */
struct tile_place {
    size_t picture, row, rows; /* first row, counted over all pictures, and how many */
    int tile, slice;
    int column, lane, lanes; /* the thread's column, and its first row of each LANES */
    int channel;             /* the first of the column, in a row of x */
};

DEVICE tile_place find_place(const group_norm_args &a)
{
    tile_place p;
    p.tile = (int)(blockIdx.x % (unsigned)a.tiles);
    p.slice = (int)(blockIdx.x / (unsigned)a.tiles % (unsigned)a.slices);
    p.picture = blockIdx.x / (unsigned)a.tiles / (unsigned)a.slices;
    size_t first = (size_t)p.slice * a.slice_rows;
    p.row = p.picture * a.rows + first;
    p.rows = a.rows - first < a.slice_rows ? a.rows - first : a.slice_rows;
    p.lanes = (int)blockDim.x / a.columns;
    p.column = (int)threadIdx.x % a.columns;
    p.lane = (int)threadIdx.x / a.columns;
    p.channel = (p.tile * a.columns + p.column) * 8;
    return p;
}

/* The group of each of the thread's channels, counted within the tile. */
DEVICE void find_groups(int group[8], const group_norm_args &a, const tile_place &p)
{
    int g = p.column * 8 / a.group_c, within = p.column * 8 % a.group_c;
    UNROLL
    for (int i = 0; i < 8; i++) {
        group[i] = g;
        if (++within == a.group_c) {
            within = 0;
            g++;
        }
    }
}

/* Numbers of shared memory that tile_sums needs. */
__host__ __device__ inline int sums_stride(int threads, int columns)
{
    return threads + columns; /* so that a warp's sums over several numbers of a column hit different banks */
}

__host__ __device__ inline int sums_parts(int threads, int columns, int kinds)
{
    int parts = threads / (8 * kinds * columns);
    return parts < 1 ? 1 : parts;
}

__host__ __device__ inline size_t sums_floats(int threads, int columns, int kinds, int groups)
{
    return (size_t)(8 * kinds) *
               (size_t)(sums_stride(threads, columns) + sums_parts(threads, columns, kinds) * columns) +
           (size_t)(kinds * groups);
}

/* Adds up MINE over the block: KINDS sums for each of the thread's 8 channels -> total[KINDS][groups],
 * through FINISH, which all threads may read until they are in the next call: two barriers come before it is
 * written again. First each channel over some of the lanes, then a group's channels and all lanes, by a warp.
 */
template <int KINDS, class F>
DEVICE const float *tile_sums(const group_norm_args &a, const tile_place &p, const float mine[KINDS][8],
                              float *shared, F finish)
{
    int threads = (int)blockDim.x, stride = sums_stride(threads, a.columns), sums = 8 * KINDS * a.columns,
        parts = sums_parts(threads, a.columns, KINDS), each = (p.lanes + parts - 1) / parts,
        width = 8 * a.columns;
    float *column_sum = shared + 8 * KINDS * stride, *total = column_sum + parts * sums;
    if (p.lane < p.lanes) {
        UNROLL
        for (int i = 0; i < 8 * KINDS; i++)
            shared[i * stride + (int)threadIdx.x] = mine[i / 8][i % 8];
    }
    __syncthreads();
    for (int k = (int)threadIdx.x; k < parts * sums; k += threads) {
        int part = k / sums, number = k % sums / a.columns, column = k % a.columns;
        int lane = part * each, end = lane + each < p.lanes ? lane + each : p.lanes;
        float sum = 0;
        for (; lane < end; lane++)
            sum += shared[number * stride + lane * a.columns + column];
        column_sum[(part * KINDS + number / 8) * width + column * 8 + number % 8] = sum;
    }
    __syncthreads();
    for (int g = (int)threadIdx.x / 32; g < KINDS * a.groups; g += threads / 32) {
        int kind = g / a.groups, first = g % a.groups * a.group_c;
        float sum = 0;
        for (int k = (int)threadIdx.x % 32; k < parts * a.group_c; k += 32)
            sum += column_sum[(k / a.group_c * KINDS + kind) * width + first + k % a.group_c];
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0)
            total[g] = finish(sum);
    }
    __syncthreads();
    return total;
}

/* One product and sum a number. That the mean is taken off only in SHIFT loses no more than its own rounding
 * does. */
template <bool SILU> DEVICE void normalize(float v[8], const float scale[8], const float shift[8])
{
    UNROLL
    for (int i = 0; i < 8; i++) {
        float r = fmaf(v[i], scale[i], shift[i]);
        v[i] = SILU ? fast_silu(r) : r;
    }
}

DEVICE void load_affine(float scale[8], float beta[8], const group_norm_args &a, const tile_place &p)
{
    unpack<float, 8>(scale, load_piece<float, 8>(a.gamma, (size_t)p.channel));
    unpack<float, 8>(beta, load_piece<float, 8>(a.beta, (size_t)p.channel));
}

/* ---- One block for all rows ---- */

/* A thread reads only what it copied itself, so the copies need no barrier. */
template <class T, bool SILU>
__global__ void __launch_bounds__(THREADS_MAX, 1) group_norm_small(group_norm_args a)
{
    SHARED_MEMORY(shared);
    tile_place p = find_place(a);
    vec16 *tile = (vec16 *)shared;
    float *sums = (float *)(tile + a.rows * (size_t)a.columns);
    int rows = p.lane < p.lanes ? (int)p.rows : 0, group[8];
    float v[8], mine[1][8] = {}, mean[8], scale[8], beta[8], count = (float)p.rows * (float)a.group_c;
    for (int row = p.lane; row < rows; row += p.lanes)
        copy_async_16(tile + row * a.columns + p.column,
                      (const T *)a.x + (p.row + (size_t)row) * a.x_ld + (size_t)p.channel, true);
    copy_async_commit();
    find_groups(group, a, p);
    load_affine(scale, beta, a, p);
    copy_async_wait<0>();
    for (int row = p.lane; row < rows; row += p.lanes) {
        unpack<T, 8>(v, piece<T, 8>{{tile[row * a.columns + p.column]}});
        UNROLL
        for (int i = 0; i < 8; i++)
            mine[0][i] += v[i];
    }
    const float *total = tile_sums<1>(a, p, mine, sums, [=](float sum) { return sum / count; });
    UNROLL
    for (int i = 0; i < 8; i++) {
        mean[i] = total[group[i]];
        mine[0][i] = 0;
    }
    for (int row = p.lane; row < rows; row += p.lanes) {
        unpack<T, 8>(v, piece<T, 8>{{tile[row * a.columns + p.column]}});
        UNROLL
        for (int i = 0; i < 8; i++)
            mine[0][i] += (v[i] - mean[i]) * (v[i] - mean[i]);
    }
    float eps = a.eps;
    total = tile_sums<1>(a, p, mine, sums, [=](float sum) { return 1.0f / sqrtf(sum / count + eps); });
    UNROLL
    for (int i = 0; i < 8; i++) {
        scale[i] *= total[group[i]];
        beta[i] -= mean[i] * scale[i];
    }
    for (int row = p.lane; row < rows; row += p.lanes) {
        unpack<T, 8>(v, piece<T, 8>{{tile[row * a.columns + p.column]}});
        normalize<SILU>(v, scale, beta);
        store_piece<T, 8>(a.y, (p.row + (size_t)row) * a.y_ld + (size_t)p.channel, v);
    }
}

/* ---- Many blocks: first the sums ---- */

/* What the slices of one of the tile's groups leave. */
DEVICE moments *group_slices(const group_norm_args &a, const tile_place &p, int group)
{
    size_t tile = p.picture * (size_t)a.tiles + (size_t)p.tile;
    return a.partial + (tile * (size_t)a.groups + (size_t)group) * (size_t)a.slices;
}

/* The number from which the deviations of GROUP are taken. */
template <class T> DEVICE float group_shift(const group_norm_args &a, const tile_place &p, int group)
{
    return to_float(((const T *)a.x)[p.row * a.x_ld + (size_t)(p.tile * a.columns * 8 + group * a.group_c)]);
}

template <class T> __global__ void __launch_bounds__(THREADS_MAX, 2) group_norm_sums(group_norm_args a)
{
    SHARED_MEMORY(shared);
    tile_place p = find_place(a);
    int group[8];
    float shift[8], mine[2][8] = {};
    find_groups(group, a, p);
    UNROLL
    for (int i = 0; i < 8; i++)
        shift[i] = group_shift<T>(a, p, group[i]);
    size_t rows = p.lane < p.lanes ? p.rows : 0, step = (size_t)p.lanes * a.x_ld;
    const T *x = (const T *)a.x + (p.row + (size_t)p.lane) * a.x_ld + (size_t)p.channel;
    for (size_t row = (size_t)p.lane; row < rows; row += (size_t)(DEPTH * p.lanes), x += DEPTH * step) {
        piece<T, 8> in[DEPTH];
        UNROLL
        for (int u = 0; u < DEPTH; u++)
            if (row + (size_t)(u * p.lanes) < rows)
                in[u] = load_piece<T, 8>(x, (size_t)u * step);
        UNROLL
        for (int u = 0; u < DEPTH; u++) {
            float v[8];
            if (row + (size_t)(u * p.lanes) >= rows)
                break;
            unpack<T, 8>(v, in[u]);
            UNROLL
            for (int i = 0; i < 8; i++) {
                float d = v[i] - shift[i];
                mine[0][i] += d;
                mine[1][i] += d * d;
            }
        }
    }
    const float *total = tile_sums<2>(a, p, mine, (float *)shared, [](float sum) { return sum; });
    for (int g = (int)threadIdx.x; g < a.groups; g += (int)blockDim.x) {
        float count = (float)p.rows * (float)a.group_c, sum = total[g], mean = sum / count;
        group_slices(a, p, g)[p.slice] = {group_shift<T>(a, p, g) + mean,
                                          fmaxf(total[a.groups + g] - sum * mean, 0.0f)};
    }
}

/* ---- Many blocks: then the rest ---- */

/* The slices of one group together, by a warp: mean, and 1 / sqrt(variance + eps) as m2. */
DEVICE moments combine(const group_norm_args &a, const moments *slice)
{
    int lane = (int)threadIdx.x % 32;
    float whole = (float)a.slice_rows * (float)a.group_c, count = (float)a.rows * (float)a.group_c;
    size_t last_rows = a.rows - (size_t)(a.slices - 1) * a.slice_rows;
    float last = (float)last_rows * (float)a.group_c;
    float first = slice[0].mean, sum = 0, m2 = 0;
    for (int i = lane; i < a.slices; i += 32)
        sum += (i == a.slices - 1 ? last : whole) * (slice[i].mean - first);
    float mean = first + warp_sum(sum) / count;
    for (int i = lane; i < a.slices; i += 32) {
        float d = slice[i].mean - mean;
        m2 += slice[i].m2 + (i == a.slices - 1 ? last : whole) * d * d;
    }
    return {mean, 1.0f / sqrtf(warp_sum(m2) / count + a.eps)};
}

template <class T, bool SILU>
__global__ void __launch_bounds__(THREADS_MAX, 2) group_norm_apply(group_norm_args a)
{
    SHARED_MEMORY(shared);
    moments *done = (moments *)shared;
    tile_place p = find_place(a);
    int group[8];
    float scale[8], beta[8];
    for (int g = (int)threadIdx.x / 32; g < a.groups; g += (int)blockDim.x / 32) {
        moments m = combine(a, group_slices(a, p, g));
        if (threadIdx.x % 32 == 0)
            done[g] = m;
    }
    find_groups(group, a, p);
    load_affine(scale, beta, a, p);
    __syncthreads();
    UNROLL
    for (int i = 0; i < 8; i++) {
        scale[i] *= done[group[i]].m2;
        beta[i] -= done[group[i]].mean * scale[i];
    }
    size_t rows = p.lane < p.lanes ? p.rows : 0;
    for (size_t row = (size_t)p.lane; row < rows; row += (size_t)(DEPTH * p.lanes)) {
        size_t last = p.row + p.rows - 1 - row; /* from the end: see above */
        piece<T, 8> in[DEPTH];
        UNROLL
        for (int u = 0; u < DEPTH; u++)
            if (row + (size_t)(u * p.lanes) < rows)
                in[u] = load_piece<T, 8>(a.x, (last - (size_t)(u * p.lanes)) * a.x_ld + (size_t)p.channel);
        UNROLL
        for (int u = 0; u < DEPTH; u++) {
            float v[8];
            if (row + (size_t)(u * p.lanes) >= rows)
                break;
            unpack<T, 8>(v, in[u]);
            normalize<SILU>(v, scale, beta);
            store_piece<T, 8>(a.y, (last - (size_t)(u * p.lanes)) * a.y_ld + (size_t)p.channel, v);
        }
    }
}

/* ---- Any layout and type: a block a set and group, three times over global memory ---- */

struct norm_any_args {
    void *y;
    const void *x;
    const float *gamma, *beta;
    size_t y_ld, x_ld, rows, count; /* of a set; count: numbers in it that belong to one group */
    int groups, group_c, y_type, x_type, silu;
    float eps;
};

__global__ void __launch_bounds__(THREADS_MAX) norm_any_group(norm_any_args a)
{
    SHARED_MEMORY(shared);
    float *scratch = (float *)shared, sum = 0, squares = 0;
    size_t row0 = blockIdx.x / (unsigned)a.groups * a.rows;
    int first = (int)(blockIdx.x % (unsigned)a.groups) * a.group_c;
    for (size_t k = threadIdx.x; k < a.count; k += blockDim.x)
        sum += load_any(a.x, a.x_type,
                        (row0 + k / (size_t)a.group_c) * a.x_ld + (size_t)first + k % (size_t)a.group_c);
    float mean = block_sum(sum, scratch) / (float)a.count;
    for (size_t k = threadIdx.x; k < a.count; k += blockDim.x) {
        float d = load_any(a.x, a.x_type,
                           (row0 + k / (size_t)a.group_c) * a.x_ld + (size_t)first + k % (size_t)a.group_c) -
                  mean;
        squares += d * d;
    }
    float rstd = 1.0f / sqrtf(block_sum(squares, scratch) / (float)a.count + a.eps);
    for (size_t k = threadIdx.x; k < a.count; k += blockDim.x) {
        size_t row = row0 + k / (size_t)a.group_c, c = (size_t)first + k % (size_t)a.group_c;
        float r = (load_any(a.x, a.x_type, row * a.x_ld + c) - mean) * (rstd * a.gamma[c]) + a.beta[c];
        store_any(a.y, a.y_type, row * a.y_ld + c, a.silu ? fast_silu(r) : r);
    }
}

/* ---- On the host ---- */

int greatest_divisor(int x, int most)
{
    int d = most < x ? most : x;
    while (d > 1 && x % d != 0)
        d--;
    return d < 1 ? 1 : d;
}

/* Units: the fewest groups that are whole pieces. A tile has WIDTH pieces a row or less, unless a unit is
 * wider. */
void choose_tile(group_norm_args *a, int c, int groups, int width)
{
    int unit_groups = 1;
    while (unit_groups * a->group_c % 8 != 0)
        unit_groups++;
    int unit_columns = unit_groups * a->group_c / 8;
    int units = greatest_divisor(groups / unit_groups, width / unit_columns);
    a->groups = units * unit_groups;
    a->columns = units * unit_columns;
    a->tiles = c / 8 / a->columns;
}

/* Slices of the rows so that all tiles of N pictures are one wave. Returns the threads of a block. */
int choose_slices(struct backend *be, group_norm_args *a, size_t n)
{
    size_t wave = 2 * (size_t)cuda_of(be)->multiprocessors / (n * (size_t)a->tiles);
    size_t worth = a->rows * (size_t)a->columns / THREADS_MAX;
    size_t room = CUDA_WORKSPACE / sizeof(moments) / (n * (size_t)a->tiles * (size_t)a->groups);
    size_t slices = least(least(wave, worth), room);
    a->slice_rows = (a->rows + (slices ? slices : 1) - 1) / (slices ? slices : 1);
    a->slices = (int)((a->rows + a->slice_rows - 1) / a->slice_rows);
    bool wide = a->slice_rows * (size_t)a->columns >= DEPTH * THREADS_MAX || a->columns > THREADS_MAX / 4;
    return wide ? THREADS_MAX : THREADS_MAX / 2;
}

template <class T, bool SILU>
int run_small(struct backend *be, group_norm_args *a, size_t n, struct error *err)
{
    size_t tile = a->rows * (size_t)a->columns * 16;
    int threads = (int)least(round_up(a->rows * (size_t)a->columns, 32), THREADS_MAX);
    size_t shared = tile + sums_floats(threads, a->columns, 1, a->groups) * sizeof(float);
    a->slices = 1;
    a->slice_rows = a->rows;
    return launch(be, group_norm_small<T, SILU>, (unsigned)(n * (size_t)a->tiles), threads, shared, *a, err);
}

template <class T, bool SILU>
int run_large(struct backend *be, group_norm_args *a, size_t n, struct error *err)
{
    int threads = choose_slices(be, a, n);
    unsigned blocks = (unsigned)(n * (size_t)a->tiles * (size_t)a->slices);
    a->partial = (moments *)cuda_of(be)->workspace;
    size_t shared = sums_floats(threads, a->columns, 2, a->groups) * sizeof(float);
    int rc = launch(be, group_norm_sums<T>, blocks, threads, shared, *a, err);
    if (rc)
        return rc;
    shared = (size_t)a->groups * sizeof(moments);
    return launch(be, group_norm_apply<T, SILU>, blocks, threads, shared, *a, err);
}

template <bool SILU>
int group_norm(struct backend *be, tensor y, tensor x, const weight *w, int groups, float eps,
               struct error *err)
{
    group_norm_args a;
    size_t n = (size_t)x.n;
    memset(&a, 0, sizeof a);
    a.y = y.data;
    a.x = x.data;
    a.gamma = norm_gamma(w);
    a.beta = norm_beta(w);
    a.y_ld = (size_t)y.ld;
    a.x_ld = (size_t)x.ld;
    a.rows = (size_t)x.h * (size_t)x.w;
    a.group_c = x.c / groups;
    a.eps = eps;
    bool halves =
        x.dtype == y.dtype && x.dtype != DTYPE_F32 && x.c % 8 == 0 && rows_aligned(x) && rows_aligned(y);
    if (halves) {
        choose_tile(&a, x.c, groups, 4);
        bool small = a.rows * (size_t)a.columns * 16 <= SMALL_BYTES && a.columns <= COLUMNS_MAX;
        if (!small) {
            choose_tile(&a, x.c, groups, 1);
            small = a.rows * (size_t)a.columns * 16 <= SMALL_BYTES && a.columns <= COLUMNS_MAX;
        }
        if (small)
            return x.dtype == DTYPE_F16 ? run_small<f16, SILU>(be, &a, n, err)
                                        : run_small<bf16, SILU>(be, &a, n, err);
        choose_tile(&a, x.c, groups, COLUMNS);
        if (a.columns <= COLUMNS_MAX && n * (size_t)groups * sizeof(moments) <= CUDA_WORKSPACE)
            return x.dtype == DTYPE_F16 ? run_large<f16, SILU>(be, &a, n, err)
                                        : run_large<bf16, SILU>(be, &a, n, err);
    }
    return norm_any(be, y, x, w, n, a.rows, groups, eps, SILU, err);
}

} // namespace

int norm_any(struct backend *be, tensor y, tensor x, const weight *w, size_t sets, size_t rows, int groups,
             float eps, bool silu, struct error *err)
{
    norm_any_args a;
    memset(&a, 0, sizeof a);
    a.y = y.data;
    a.x = x.data;
    a.gamma = norm_gamma(w);
    a.beta = norm_beta(w);
    a.y_ld = (size_t)y.ld;
    a.x_ld = (size_t)x.ld;
    a.rows = rows;
    a.groups = groups;
    a.group_c = x.c / groups;
    a.count = rows * (size_t)a.group_c;
    a.y_type = y.dtype;
    a.x_type = x.dtype;
    a.silu = silu;
    a.eps = eps;
    int threads = (int)least(round_up(a.count, 32), THREADS_MAX);
    return launch(be, norm_any_group, (unsigned)(sets * (size_t)groups), threads,
                  THREADS_MAX / 32 * sizeof(float), a, err);
}

int cuda_group_norm(struct backend *be, tensor y, tensor x, const weight *w, int groups, float eps,
                    struct error *err)
{
    return group_norm<false>(be, y, x, w, groups, eps, err);
}

int cuda_group_norm_silu(struct backend *be, tensor y, tensor x, const weight *w, int groups, float eps,
                         struct error *err)
{
    return group_norm<true>(be, y, x, w, groups, eps, err);
}
