/* The matrix product behind conv2d and linear, as an implicit GEMM on the tensor cores (mma.sync, sm_80 and newer):
 *
 *   y[row][o] = sum over k of x(row, k) * w[o][k]      row: an output position (n, oy, ox), or a token
 *                                                      k:   kernel tap, then input channel
 *
 * A block computes BM rows and BN outputs in steps of BK along k. Both operands go from global to shared memory by
 * cp.async, 16 bytes a copy, `stages` (3 or 4) steps deep; the rows of x are gathered there (padding, stride,
 * upsampling), so no im2col is ever stored. Rows in shared memory are BK numbers; their 16-byte chunks are swizzled
 * with the row, so that neither the copies nor ldmatrix meet bank conflicts. Each warp holds WM x WN sums in
 * registers and two sets of fragments: while one is multiplied the next comes from shared memory. One barrier a step.
 *
 *   shape             warps  shared memory a step  4 steps  numbers read from shared memory / multiplied (A100)
 *   256 x 128 x 32    8      24 KB                 96 KB    69 %    the decoder's large layers: fewest bytes from L2
 *   128 x 128 x 32    4      16 KB                 64 KB    75 %    two blocks on a multiprocessor
 *    128 x 64 x 32    4      12 KB                 48 KB    112 %   320 outputs are 5 tiles, not 2.5
 *     64 x 64 x 64    4      16 KB                 64 KB    150 %   few rows: bound by the weights' bytes anyway
 * (the last column: cycles of shared memory over cycles of the tensor cores, reads by ldmatrix and writes by cp.async)
 *
 * Traffic: a 128 x 128 tile moves 16 KB from L2 for 1.05 MFLOP, a 256 x 128 tile 24 KB for 2.1 MFLOP. At 250 TFLOP/s
 * of an A100 that is 3.8 and 2.9 TB/s out of L2, within its 5; blocks that run together are a near-square patch of
 * tiles (grouped order), so that what they read stays in L2. SD-Turbo's decoder at 512 is 2.47 TFLOP in M = 262144,
 * N = 128, K = 1152 and its kin: all compute bound. The UNet's 8x8 and 16x16 levels (M = 64, 256; K up to 23040) are
 * bound by weights: 59 MB at most, 14 us of an H200; there the sum over k is split over blocks, partial sums lie in
 * the workspace in fp32, and gemm_reduce adds them in the order of the splits. No result depends on timing.
 *
 * The epilogue goes through shared memory, so that a lane holds 8 outputs of a row side by side: bias, add_bc,
 * activation or gate, residual, one rounding, one 16-byte store; single numbers where the tensor is not aligned.
 *
 * Registers (sm_80): 244 of 255 for the two large shapes, below 168 for the others, so that BLOCKS of tile_shape fit;
 * no spills. The inner loop of 128 x 128 is 64 mma, 16 ldmatrix, 8 cp.async and some 60 (rows) or 140 (windows) more.
 *
 * How a tile is chosen stands in gemm.cuh; the same product with Hopper's own instructions in gemm_hopper.cuh. */
#ifndef LATENTD_CUDA_GEMM_TILE_CUH
#define LATENTD_CUDA_GEMM_TILE_CUH

#include <limits.h>

#include "device.cuh"

/* How rows of x are found. */
enum gather {
    ROWS,      /* row i of y is row i of x: linear and 1x1 */
    POSITIONS, /* a window of a picture */
    NUMBERS    /* the same, number by number: channels or addresses that are not in whole 16 bytes */
};

enum { VECTOR_Y = 1, VECTOR_RESIDUAL = 2, VECTOR_ADD = 4 };

/* Arguments of the kernels. No padding between fields: commands are compared byte by byte. */
struct gemm {
    const void *x, *w;
    const float *bias;  /* [cols] */
    const void *bias16; /* the same in T, for the libraries; NULL: there is none */
    void *y;
    const void *residual, *add; /* NULL: none */
    float *partial;             /* [splits][rows][cols] when splits > 1 */
    int rows, cols, depth;      /* M; N as packed; K: taps * channels */
    int outputs;                /* numbers in a row of y */
    int x_ld, y_ld, residual_ld, add_ld;
    int positions;              /* rows of y in one picture */
    int add_positions;          /* rows of y that share a row of add */
    int height, width, out_w;   /* of x, x, y */
    int in_c, channels;         /* of x, and as packed */
    int kh, kw, stride, pad_y, pad_x;
    int up;                     /* 1 when x is read as upsampled, otherwise 0 */
    int act, geglu, f32_out;
    int vectors;                /* VECTOR_... */
    int tiles_m, tiles_n, splits, split_tiles; /* split_tiles: steps along k of one split */
    int stages;
};

template <int BM_, int BN_, int BK_, int WM_, int WN_, int BLOCKS_> struct tile_shape {
    static constexpr int BM = BM_, BN = BN_, BK = BK_, WM = WM_, WN = WN_;
    static constexpr int BLOCKS = BLOCKS_; /* on a multiprocessor at once, for the compiler's register count */
    static constexpr int THREADS = 32 * (BM / WM) * (BN / WN);
    static constexpr int ROW_BYTES = 2 * BK, CHUNKS = BK / 8;
    static constexpr int A_BYTES = BM * ROW_BYTES, STAGE_BYTES = (BM + BN) * ROW_BYTES;
    static constexpr int STEP = THREADS / CHUNKS; /* rows that one round of copies fills */
    static constexpr int A_COPIES = BM / STEP, B_COPIES = BN / STEP;
    static constexpr int MF = WM / 16, NF = WN / 8, K_STEPS = BK / 16;
    /* The epilogue stages 32 rows of a warp at a time; 8 more columns keep the fragments' stores off each other's
     * banks. */
    static constexpr int OUT_ROWS = 32, OUT_LD = WN + 8;
    static_assert(OUT_ROWS * OUT_LD * 4 * (THREADS / 32) <= 3 * STAGE_BYTES, "the epilogue does not fit");
    static_assert(STEP % 8 == 0 && K_STEPS % 2 == 0 && NF % 2 == 0, "shape");
};

typedef tile_shape<256, 128, 32, 64, 64, 1> tile_256x128;
typedef tile_shape<128, 128, 32, 64, 64, 2> tile_128x128;
typedef tile_shape<128, 64, 32, 64, 32, 3> tile_128x64;
typedef tile_shape<64, 64, 64, 32, 32, 3> tile_64x64;

/* Byte offset of chunk CHUNK of row ROW in a tile. Eight rows at one chunk, or the chunks of one row, lie in
 * different banks. */
template <class S> DEVICE unsigned tile_offset(int row, int chunk)
{
    int swizzle = S::CHUNKS == 8 ? row & 7 : row >> 1 & 3;
    return (unsigned)(row * S::ROW_BYTES + (chunk ^ swizzle) * 16);
}

/* ---- From global to shared memory ---- */

/* What one thread copies: the same 8 numbers along k of every STEP-th row of both operands. */
template <class T, class S, int GATHER> struct gemm_loader {
    int start[S::A_COPIES];                 /* ROWS: the row of x; otherwise the first row of its picture */
    int y0[S::A_COPIES], x0[S::A_COPIES];   /* the window's corner; y0 far outside for rows past the end */
    int weight[S::B_COPIES];                /* rows of w, the last one for those past the end */
    unsigned a_valid, b_valid;              /* bit i: row i exists */
    unsigned offset;                        /* of the first chunk in its tile */
    int k, c, ky, kx;                       /* where along k: as a number, and as tap and channel */

    DEVICE void begin(const gemm &a, int m0, int n0, int first_k)
    {
        int chunk = (int)threadIdx.x % S::CHUNKS, row = (int)threadIdx.x / S::CHUNKS;
        offset = tile_offset<S>(row, chunk);
        k = first_k + chunk * 8;
        if (GATHER != ROWS) {
            int tap = k / a.channels;
            c = k - tap * a.channels;
            ky = tap / a.kw;
            kx = tap - ky * a.kw;
        }
        a_valid = b_valid = 0;
        UNROLL
        for (int i = 0; i < S::A_COPIES; i++) {
            int m = m0 + row + i * S::STEP;
            a_valid |= (unsigned)(m < a.rows) << i;
            m = m < a.rows ? m : a.rows - 1;
            start[i] = m;
            if (GATHER != ROWS) {
                int n = m / a.positions, p = m - n * a.positions, oy = p / a.out_w;
                start[i] = n * a.height * a.width;
                y0[i] = a_valid >> i & 1 ? oy * a.stride - a.pad_y : INT_MIN / 2;
                x0[i] = (p - oy * a.out_w) * a.stride - a.pad_x;
            }
        }
        UNROLL
        for (int i = 0; i < S::B_COPIES; i++) {
            int n = n0 + row + i * S::STEP;
            b_valid |= (unsigned)(n < a.cols) << i;
            weight[i] = n < a.cols ? n : a.cols - 1;
        }
    }

    /* Copies one step of both operands to STAGE, and moves on along k. */
    DEVICE void copy(const gemm &a, unsigned char *stage)
    {
        bool inside = k < a.depth;
        const T *w = (const T *)a.w + (inside ? k : 0);
        UNROLL
        for (int i = 0; i < S::B_COPIES; i++)
            copy_async_16(stage + S::A_BYTES + offset + i * S::STEP * S::ROW_BYTES, w + (int64_t)weight[i] * a.depth,
                          inside && (b_valid >> i & 1));
        UNROLL
        for (int i = 0; i < S::A_COPIES; i++)
            copy_row(a, stage + offset + i * S::STEP * S::ROW_BYTES, i);
        k += S::BK;
        if (GATHER != ROWS) {
            for (c += S::BK; c >= a.channels; c -= a.channels) {
                if (++kx == a.kw) {
                    kx = 0;
                    ky++;
                }
            }
        }
    }

    DEVICE void copy_row(const gemm &a, unsigned char *to, int i)
    {
        const T *x = (const T *)a.x;
        if (GATHER == ROWS) {
            bool inside = k < a.depth;
            copy_async_16(to, x + (int64_t)start[i] * a.x_ld + (inside ? k : 0), inside && (a_valid >> i & 1));
        } else {
            int iy = y0[i] + ky, ix = x0[i] + kx;
            bool inside = (unsigned)iy < (unsigned)(a.height << a.up) && (unsigned)ix < (unsigned)(a.width << a.up) &&
                          ky < a.kh;
            int from = inside ? start[i] + (iy >> a.up) * a.width + (ix >> a.up) : 0;
            const T *row = x + (int64_t)from * a.x_ld + (inside ? c : 0);
            if (GATHER == POSITIONS)
                copy_async_16(to, row, inside);
            else
                *(vec16 *)to = gather_numbers(row, inside ? a.in_c - c : 0);
        }
    }

    DEVICE static vec16 gather_numbers(const T *from, int count)
    {
        vec16 v;
        UNROLL
        for (int j = 0; j < 4; j++) {
            uint32_t lo = 2 * j < count ? from[2 * j].bits : 0, hi = 2 * j + 1 < count ? from[2 * j + 1].bits : 0;
            v.v[j] = lo | hi << 16;
        }
        return v;
    }
};

DEVICE void gemm_wait(int stages)
{
    if (stages == 4)
        copy_async_wait<2>();
    else
        copy_async_wait<1>();
}

/* ---- The warp's part ---- */

template <class S> struct gemm_fragments {
    uint32_t a[S::MF][4], b[S::NF / 2][4];

    /* A and B: byte offsets of this lane's first row in a stage. STEP counts 16 numbers along k: it flips bits of the
     * chunk's number, the swizzle commutes with that. */
    DEVICE void load(const unsigned char *stage, unsigned a_at, unsigned b_at, int step)
    {
        UNROLL
        for (int i = 0; i < S::MF; i++)
            load_matrix_x4(a[i], stage + (a_at ^ (unsigned)(step << 5)) + i * 16 * S::ROW_BYTES);
        UNROLL
        for (int j = 0; j < S::NF / 2; j++)
            load_matrix_x4(b[j], stage + (b_at ^ (unsigned)(step << 5)) + j * 16 * S::ROW_BYTES);
    }
};

template <class T, class S>
DEVICE void gemm_multiply(float acc[S::MF][S::NF][4], const struct gemm_fragments<S> &f)
{
    UNROLL
    for (int i = 0; i < S::MF; i++) {
        UNROLL
        for (int j = 0; j < S::NF; j++)
            mma_16816<T>(acc[i][j], f.a[i], &f.b[j / 2][j % 2 * 2]);
    }
}

/* ---- Epilogue: eight outputs of a row at a time ---- */

DEVICE void read_octet(float v[8], const float *from)
{
    vec16 lo = load_16(from), hi = load_16(from + 4);
    UNROLL
    for (int i = 0; i < 4; i++) {
        v[i] = __uint_as_float(lo.v[i]);
        v[4 + i] = __uint_as_float(hi.v[i]);
    }
}

/* To global memory. */
DEVICE void write_octet(float *to, const float v[8])
{
    vec16 lo, hi;
    UNROLL
    for (int i = 0; i < 4; i++) {
        lo.v[i] = __float_as_uint(v[i]);
        hi.v[i] = __float_as_uint(v[4 + i]);
    }
    store_16(to, lo);
    store_16(to + 4, hi);
}

/* COUNT: numbers from FROM to the end of its row. */
template <class T> DEVICE void add_octet(float v[8], const T *from, bool vector, int count)
{
    if (vector && count >= 8) {
        vec16 bits = load_16(from);
        UNROLL
        for (int i = 0; i < 4; i++) {
            v[2 * i] += low_half<T>(bits.v[i]);
            v[2 * i + 1] += high_half<T>(bits.v[i]);
        }
        return;
    }
    UNROLL
    for (int i = 0; i < 8; i++)
        if (i < count)
            v[i] += to_float(from[i]);
}

template <class T> DEVICE void store_octet(const gemm &a, size_t at, const float v[8], int count)
{
    bool vector = a.vectors & VECTOR_Y && count >= 8;
    if (a.f32_out) {
        float *to = (float *)a.y + at;
        if (vector) {
            write_octet(to, v);
            return;
        }
        UNROLL
        for (int i = 0; i < 8; i++)
            if (i < count)
                to[i] = v[i];
        return;
    }
    T *to = (T *)a.y + at;
    if (vector) {
        vec16 bits;
        UNROLL
        for (int i = 0; i < 4; i++)
            bits.v[i] = pack2<T>(v[2 * i], v[2 * i + 1]);
        store_16(to, bits);
        return;
    }
    UNROLL
    for (int i = 0; i < 8; i++)
        if (i < count)
            to[i] = from_float<T>(v[i]);
}

DEVICE void activate_octet(int act, float v[8])
{
    if (act == ACT_SILU) {
        UNROLL
        for (int i = 0; i < 8; i++)
            v[i] = activate(ACT_SILU, v[i]);
    } else if (act == ACT_GELU) {
        UNROLL
        for (int i = 0; i < 8; i++)
            v[i] = activate(ACT_GELU, v[i]);
    } else if (act == ACT_QUICK_GELU) {
        UNROLL
        for (int i = 0; i < 8; i++)
            v[i] = activate(ACT_QUICK_GELU, v[i]);
    }
}

/* Sums of columns COL.. of row ROW become outputs: V of the value (or of all, without a gate), GATE behind it. */
template <class T> DEVICE void gemm_finish(const gemm &a, int row, int col, float v[8], float gate[8])
{
    float bias[8];
    read_octet(bias, a.bias + col);
    UNROLL
    for (int i = 0; i < 8; i++)
        v[i] += bias[i];
    int o = col;
    if (a.geglu) {
        o = col / 2;
        read_octet(bias, a.bias + col + 8);
        UNROLL
        for (int i = 0; i < 8; i++)
            v[i] *= activate(ACT_GELU, gate[i] + bias[i]);
    }
    int count = a.outputs - o;
    if (a.add)
        add_octet(v, (const T *)a.add + (int64_t)(row / a.add_positions) * a.add_ld + o, a.vectors & VECTOR_ADD, count);
    activate_octet(a.act, v);
    if (a.residual)
        add_octet(v, (const T *)a.residual + (int64_t)row * a.residual_ld + o, a.vectors & VECTOR_RESIDUAL, count);
    store_octet<T>(a, (size_t)row * (size_t)a.y_ld + (size_t)o, v, count);
}

/* Where number COL of row ROW is staged. Fragments are stored in pairs and read in eights: the flip of a bit keeps
 * the eights of one row apart. */
template <class S> DEVICE int staged(int row, int col)
{
    return row * S::OUT_LD + (col ^ (((S::WN == 64 ? col >> 5 : row) & 1) << 2));
}

/* 32 rows of this warp, fragments first_i.. of ACC: first row ROW0 of y, first column COL0. */
template <class T, class S>
DEVICE void gemm_store(const gemm &a, const float acc[][S::NF][4], float *stage, int row0, int col0)
{
    int lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp();
    UNROLL
    for (int i = 0; i < S::OUT_ROWS / 16; i++) {
        UNROLL
        for (int j = 0; j < S::NF; j++) {
            UNROLL
            for (int half = 0; half < 2; half++) {
                float *to = stage + staged<S>(i * 16 + half * 8 + g, j * 8 + t * 2);
                to[0] = acc[i][j][2 * half];
                to[1] = acc[i][j][2 * half + 1];
            }
        }
    }
    __syncwarp();
    int width = a.geglu && a.splits == 1 ? 16 : 8, lanes = S::WN / width;
    int col = lane % lanes * width;
    for (int r = lane / lanes; r < S::OUT_ROWS; r += 32 / lanes) {
        int row = row0 + r;
        if (row >= a.rows || col0 + col >= a.cols)
            continue;
        float v[8], gate[8] = {0};
        UNROLL
        for (int i = 0; i < 8; i += 4) {
            vec16 bits = *(const vec16 *)(stage + staged<S>(r, col + i));
            UNROLL
            for (int j = 0; j < 4; j++)
                v[i + j] = __uint_as_float(bits.v[j]);
        }
        if (width == 16) {
            UNROLL
            for (int i = 0; i < 8; i += 4) {
                vec16 bits = *(const vec16 *)(stage + staged<S>(r, col + 8 + i));
                UNROLL
                for (int j = 0; j < 4; j++)
                    gate[i + j] = __uint_as_float(bits.v[j]);
            }
        }
        if (a.splits > 1)
            write_octet(a.partial + ((size_t)blockIdx.y * (size_t)a.rows + (size_t)row) * (size_t)a.cols + col0 + col, v);
        else
            gemm_finish<T>(a, row, col0 + col, v, gate);
    }
}

/* ---- The kernels ---- */

/* Tile of this block. Blocks with neighbouring numbers run together: eight tiles of rows at a time, so that they share
 * rows of x and of w. */
DEVICE void gemm_place(const gemm &a, int *m, int *n)
{
    const int group = 8;
    int block = (int)blockIdx.x, in_group = group * a.tiles_n, first = block / in_group * group;
    int size = a.tiles_m - first < group ? a.tiles_m - first : group, at = block % in_group;
    *m = first + at % size;
    *n = at / size;
}

template <class T, class S, int GATHER>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS) gemm_tile(const struct gemm a)
{
    SHARED_MEMORY(memory);
    int tile_m, tile_n;
    gemm_place(a, &tile_m, &tile_n);
    int all = (a.depth + S::BK - 1) / S::BK, first = (int)blockIdx.y * a.split_tiles;
    int tiles = all - first < a.split_tiles ? all - first : a.split_tiles;

    struct gemm_loader<T, S, GATHER> in;
    in.begin(a, tile_m * S::BM, tile_n * S::BN, first * S::BK);
    for (int i = 0; i < a.stages - 1; i++) {
        if (i < tiles)
            in.copy(a, memory + i * S::STAGE_BYTES);
        copy_async_commit();
    }

    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int wm = warp / (S::BN / S::WN) * S::WM, wn = warp % (S::BN / S::WN) * S::WN;
    unsigned a_at = tile_offset<S>(wm + lane % 16, lane / 16);
    unsigned b_at = S::A_BYTES + tile_offset<S>(wn + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    float acc[S::MF][S::NF][4] = {};
    struct gemm_fragments<S> f[2];
    int end = a.stages * S::STAGE_BYTES, read = 0, write = end - S::STAGE_BYTES;
    gemm_wait(a.stages);
    __syncthreads();
    f[0].load(memory, a_at, b_at, 0);

    for (int tile = 0; tile < tiles; tile++) {
        UNROLL
        for (int step = 0; step < S::K_STEPS; step++) {
            if (step == S::K_STEPS - 1) {
                /* The next stage has arrived, and all warps have taken what they need of this one. */
                gemm_wait(a.stages);
                __syncthreads();
                read = read + S::STAGE_BYTES == end ? 0 : read + S::STAGE_BYTES;
            }
            f[(step + 1) % 2].load(memory + read, a_at, b_at, (step + 1) % S::K_STEPS);
            if (step == 0) {
                if (tile + a.stages - 1 < tiles)
                    in.copy(a, memory + write);
                copy_async_commit();
                write = write + S::STAGE_BYTES == end ? 0 : write + S::STAGE_BYTES;
            }
            gemm_multiply<T, S>(acc, f[step % 2]);
        }
    }

    copy_async_wait<0>();
    __syncthreads(); /* the epilogue reuses the stages */
    float *stage = (float *)memory + warp * S::OUT_ROWS * S::OUT_LD;
    UNROLL
    for (int i = 0; i < S::MF; i += S::OUT_ROWS / 16)
        gemm_store<T, S>(a, acc + i, stage, tile_m * S::BM + wm + i * 16, tile_n * S::BN + wn);
}

#endif
