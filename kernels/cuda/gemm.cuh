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
 * Tile and splits are the candidates of choose.h: timed once a shape, the model below is the first guess and what serves
 * when nothing is timed. A path for Hopper (wgmma, TMA) belongs beside gemm_tile, as one more candidate of gemm_run(). */
#ifndef LATENTD_CUDA_GEMM_CUH
#define LATENTD_CUDA_GEMM_CUH

#include <limits.h>
#include <stdio.h>

#include "choose.h"
#include "device.cuh"
#include "library.h"
#include "weights.cuh"

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

/* ---- On the host ---- */

/* Fills in A from the tensors and the matrix, with the geometry of a linear layer: all rows of X are one line of a
 * picture, and the kernel is 1x1. ADD and RESIDUAL may be absent. */
int gemm_begin(struct backend *be, struct gemm *a, tensor y, tensor x, const weight *w, tensor add, tensor residual,
               struct error *err);
int gemm_rows(struct backend *be, const struct gemm &a, struct error *err);      /* linear.cu: y's rows are x's */
int gemm_positions(struct backend *be, const struct gemm &a, struct error *err); /* conv2d.cu: by the geometry in A */
int gemm_reduce(struct backend *be, const struct gemm &a, struct error *err);    /* linear.cu: sums the splits */

/* Whether x can be copied 16 bytes at a time. */
static inline bool gemm_in_vectors(const struct gemm &a)
{
    return a.in_c % 8 == 0 && a.x_ld % 8 == 0 && (uintptr_t)a.x % 16 == 0;
}

enum { GEMM_SHAPES = 4, GEMM_SPLITS_MAX = 32 };

/* What the choice of a tile weighs. RATE: share of the tensor cores' speed that full multiprocessors reach. */
struct gemm_shape {
    int bm, bn, bk, blocks;
    float rate;
};

static const struct gemm_shape gemm_shapes[GEMM_SHAPES] = {
    {256, 128, 32, 1, 0.85f}, {128, 128, 32, 2, 0.80f}, {128, 64, 32, 3, 0.65f}, {64, 64, 64, 3, 0.45f}};

/* Estimated cycles of A with a tile and a number of splits, on SMS multiprocessors of 1024 multiply-adds a cycle (an
 * A100; for the others the proportions are what counts). A model to choose by, not a measurement. */
static inline float gemm_cycles(const struct gemm *a, const struct gemm_shape *s, unsigned tiles, int splits, int sms)
{
    unsigned steps = blocks_of((size_t)a->depth, (size_t)(s->bk * splits));
    float most = (float)((tiles * (unsigned)splits + (unsigned)sms - 1) / (unsigned)sms); /* on the busiest one */
    float rate = s->rate; /* fewer blocks than fit cannot keep it busy */
    if (most < (float)s->blocks)
        rate *= 0.6f + 0.4f * most / (float)s->blocks;
    float multiply = (float)(s->bm * s->bn * s->bk) / (1024 * rate), copy = (float)((s->bm + s->bn) * s->bk * 2) / 40;
    float block = (float)steps * (multiply > copy ? multiply : copy) + (float)(s->bm * s->bn) / 16;
    float cycles = 1500 + most * block;
    if (splits > 1) /* a second launch, and the partial sums written and read through L2 */
        cycles += 2500 + (float)splits * (float)a->rows * (float)a->cols * 8 / (32.0f * (float)sms);
    return cycles;
}

/* Behind the shapes of gemm_shapes: what the libraries hold for the fastest, and cuBLASLt's second choice. */
enum { GEMM_CUBLASLT = GEMM_SHAPES, GEMM_CUBLASLT_NEXT, GEMM_CUDNN, GEMM_KINDS };

/* One way to run a product: a tile and a number of splits, or a library. */
struct gemm_option {
    int shape, splits;
    float cycles;
};

/* Fills in of A what depends on the option. */
static inline void gemm_set(struct backend *be, struct gemm *a, const struct gemm_option *o)
{
    const struct gemm_shape *s = &gemm_shapes[o->shape];
    int steps = (int)blocks_of((size_t)a->depth, (size_t)s->bk);
    a->split_tiles = (int)blocks_of((size_t)steps, (size_t)o->splits);
    a->splits = (int)blocks_of((size_t)steps, (size_t)a->split_tiles);
    a->tiles_m = (int)blocks_of((size_t)a->rows, (size_t)s->bm);
    a->tiles_n = (int)blocks_of((size_t)a->cols, (size_t)s->bn);
    /* Three steps where four would cost a block: each takes 1 KB more, and a multiprocessor has 1 KB more than a block. */
    size_t step_bytes = (size_t)(s->bm + s->bn) * (size_t)s->bk * 2;
    a->stages = (4 * step_bytes + 1024) * (size_t)s->blocks <= cuda_of(be)->shared_max + 1024 ? 4 : 3;
    a->partial = a->splits > 1 ? (float *)cuda_of(be)->workspace : NULL;
}

/* The two numbers of splits that the model likes best for a shape, into O; returns how many there are. Tried are no
 * split, and as many as give every multiprocessor a whole number of blocks. */
static inline int gemm_splits(struct backend *be, const struct gemm *a, int shape, struct gemm_option o[2])
{
    const struct gemm_shape *g = &gemm_shapes[shape];
    int sms = cuda_of(be)->multiprocessors, count = 0;
    size_t bytes = (size_t)a->rows * (size_t)a->cols * sizeof(float);
    int most = CUDA_WORKSPACE / bytes < GEMM_SPLITS_MAX ? (int)(CUDA_WORKSPACE / bytes) : GEMM_SPLITS_MAX;
    unsigned tiles = blocks_of((size_t)a->rows, (size_t)g->bm) * blocks_of((size_t)a->cols, (size_t)g->bn);
    int limit = a->depth / (2 * g->bk) < most ? a->depth / (2 * g->bk) : most;
    for (int wave = 0; wave <= 2 * g->blocks; wave++) {
        int fit = (int)((unsigned)(wave * sms) / tiles), s = wave == 0 ? 1 : fit < limit ? fit : limit;
        if ((wave > 0 && s < 2) || (count > 0 && o[0].splits == s) || (count > 1 && o[1].splits == s))
            continue;
        struct gemm_option now = {shape, s, gemm_cycles(a, g, tiles, s, sms)};
        if (count < 2)
            o[count++] = now;
        else if (now.cycles < o[1].cycles)
            o[1] = now;
        if (count == 2 && o[1].cycles < o[0].cycles) {
            struct gemm_option better = o[1];
            o[1] = o[0];
            o[0] = better;
        }
    }
    return count;
}

/* A as the libraries want it described. */
static inline struct gemm_call gemm_as_call(struct backend *be, const struct gemm &a, int rank)
{
    struct gemm_call c;
    memset(&c, 0, sizeof c);
    c.rows = a.rows;
    c.cols = a.outputs;
    c.depth = a.in_c;
    c.x = a.x;
    c.x_ld = a.x_ld;
    c.w = a.w;
    c.w_stride = a.depth;
    c.bias = a.bias16 ? a.bias : NULL;
    c.bias16 = a.bias16;
    c.residual = a.residual;
    c.residual_ld = a.residual_ld;
    c.y = a.y;
    c.y_ld = a.y_ld;
    c.dtype = be->dtype;
    c.f32_out = a.f32_out;
    c.rank = rank;
    return c;
}

static inline struct conv_call gemm_as_conv(struct backend *be, const struct gemm &a)
{
    struct conv_call c;
    memset(&c, 0, sizeof c);
    c.n = a.rows / a.positions;
    c.h = a.height;
    c.w = a.width;
    c.c = a.in_c;
    c.oh = a.positions / a.out_w;
    c.ow = a.out_w;
    c.o = a.outputs;
    c.kh = a.kh;
    c.kw = a.kw;
    c.stride = a.stride;
    c.pad_top = a.pad_y;
    c.pad_left = a.pad_x;
    c.pad_bottom = (c.oh - 1) * a.stride + a.kh - a.height - a.pad_y; /* no more than the last window needs */
    c.pad_right = (c.ow - 1) * a.stride + a.kw - a.width - a.pad_x;
    c.channels = a.channels;
    c.upsample = a.up != 0;
    c.x = a.x;
    c.weight = a.w;
    c.x_ld = a.x_ld;
    c.bias = a.bias16 ? a.bias : NULL;
    c.bias16 = a.bias16;
    c.add = a.add;
    c.add_ld = a.add_ld;
    c.residual = a.residual;
    c.residual_ld = a.residual_ld;
    c.y = a.y;
    c.y_ld = a.y_ld;
    c.act = a.act;
    c.dtype = be->dtype;
    c.f32_out = a.f32_out;
    return c;
}

enum { GEMM_OPTIONS = 2 * GEMM_SHAPES + 2 };

/* A product with the ways to run it, best guess first. */
struct gemm_options {
    struct gemm a;
    int count;
    struct gemm_option o[GEMM_OPTIONS];
};

/* FIRST: the first shape that the caller has. */
static inline void gemm_list(struct backend *be, struct gemm_options *list, int first)
{
    list->count = 0;
    for (int i = first; i < GEMM_SHAPES; i++)
        list->count += gemm_splits(be, &list->a, i, list->o + list->count);
    for (int i = 1; i < list->count; i++)
        for (int j = i; j > 0 && list->o[j].cycles < list->o[j - 1].cycles; j--) {
            struct gemm_option t = list->o[j];
            list->o[j] = list->o[j - 1];
            list->o[j - 1] = t;
        }
}

/* The libraries' ways come last: without timing our own serve. */
template <int GATHER> static void gemm_list_libraries(struct backend *be, struct gemm_options *list)
{
    const struct gemm &a = list->a;
    if (GATHER == ROWS && !a.geglu && a.act == ACT_NONE && !a.add) {
        struct gemm_call c = gemm_as_call(be, a, 0);
        if (cublaslt_can(be, &c)) {
            list->o[list->count++] = {GEMM_CUBLASLT, 1, 0};
            list->o[list->count++] = {GEMM_CUBLASLT_NEXT, 1, 0};
        }
    }
    if (GATHER == POSITIONS && (a.act == ACT_NONE || a.act == ACT_SILU) && a.add_positions == a.positions) {
        struct conv_call c = gemm_as_conv(be, a);
        if (c.pad_bottom >= 0 && c.pad_right >= 0 && cudnn_can_conv(be, &c))
            list->o[list->count++] = {GEMM_CUDNN, 1, 0};
    }
}

template <class T, class S, int GATHER> static int gemm_launch(struct backend *be, const struct gemm &a, struct error *err)
{
    dim3 grid((unsigned)a.tiles_m * (unsigned)a.tiles_n, (unsigned)a.splits);
    return launch(be, gemm_tile<T, S, GATHER>, grid, S::THREADS, (size_t)(a.stages * S::STAGE_BYTES), a, err);
}

/* Launches A, set for SHAPE. */
template <class T, int GATHER> static int gemm_tiles(struct backend *be, int shape, const struct gemm &a, struct error *err)
{
    if constexpr (GATHER != NUMBERS) {
        if (shape == 0)
            return gemm_launch<T, tile_256x128, GATHER>(be, a, err);
        if (shape == 1)
            return gemm_launch<T, tile_128x128, GATHER>(be, a, err);
        if (shape == 2)
            return gemm_launch<T, tile_128x64, GATHER>(be, a, err);
    }
    return gemm_launch<T, tile_64x64, GATHER>(be, a, err);
}

/* Runs option I of CTX, a struct gemm_options: the product, and behind it the sum of its splits. OUT: where to, instead
 * of y (to time it); NULL: to y. */
template <int GATHER>
static int gemm_run_option(struct backend *be, const void *ctx, int i, void *out, struct error *err)
{
    const struct gemm_options *list = (const struct gemm_options *)ctx;
    struct gemm a = list->a;
    int shape = list->o[i].shape;
    if (shape == GEMM_CUDNN) {
        struct conv_call c = gemm_as_conv(be, a);
        return cudnn_conv(be, &c, out, err);
    }
    if (shape >= GEMM_CUBLASLT) {
        struct gemm_call c = gemm_as_call(be, a, shape - GEMM_CUBLASLT);
        return cublaslt_gemm(be, &c, out, err);
    }
    if (out)
        a.y = out;
    gemm_set(be, &a, &list->o[i]);
    int rc = be->dtype == DTYPE_F16 ? gemm_tiles<f16, GATHER>(be, shape, a, err)
                                    : gemm_tiles<bf16, GATHER>(be, shape, a, err);
    return rc || a.splits == 1 ? rc : gemm_reduce(be, a, err);
}

/* All that the speed of A depends on, and which of the candidates can serve it at all, as a number. */
static inline uint64_t gemm_key(struct backend *be, const struct gemm &a, int gather)
{
    const int parts[] = {gather,         be->dtype, a.rows,    a.cols,           a.depth,           a.outputs, a.kh,
                         a.kw,           a.stride,  a.pad_y,   a.pad_x,          a.height,          a.width,   a.up,
                         a.geglu,        a.f32_out, a.act,     a.vectors,        a.add != nullptr,  a.add_positions,
                         a.bias16 != nullptr, a.residual != nullptr, a.y_ld};
    uint64_t key = 0xcbf29ce484222325u; /* FNV-1a, word by word */
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        key = (key ^ (uint64_t)(unsigned)parts[i]) * 0x100000001b3u;
    return key;
}

/* Has the candidates of LIST compete (choose.h); the winner's place in the list, or a negative code. */
template <int GATHER> static int gemm_compete(struct backend *be, const struct gemm_options *list, struct error *err)
{
    static const char *const gathers[] = {"rows", "conv", "numbers"};
    const struct gemm &a = list->a;
    struct choice c;
    c.count = list->count < CANDIDATES_MAX ? list->count : CANDIDATES_MAX;
    for (int i = 0; i < c.count; i++) {
        static const char *const libraries[] = {"cublaslt", "cublaslt1", "cudnn"};
        const struct gemm_option *o = &list->o[i];
        if (o->shape >= GEMM_SHAPES)
            snprintf(c.name[i], sizeof c.name[i], "%s", libraries[o->shape - GEMM_SHAPES]);
        else
            snprintf(c.name[i], sizeof c.name[i], "%dx%d/%d", gemm_shapes[o->shape].bm, gemm_shapes[o->shape].bn, o->splits);
    }
    snprintf(c.key, sizeof c.key, "%s %s %dx%dx%d k%dx%d s%d %dx%d ld%d%s%s%s%s%s%s", gathers[GATHER],
             be->dtype == DTYPE_F16 ? "fp16" : "bf16", a.rows, a.cols, a.depth, a.kh, a.kw, a.stride, a.height, a.width,
             a.y_ld, a.up ? " up" : "", a.geglu ? " geglu" : "", a.act ? " act" : "", a.add ? " add" : "",
             a.residual ? " residual" : "", a.f32_out ? " f32" : "");
    c.out_bytes = (size_t)a.rows * (size_t)a.y_ld * (a.f32_out ? 4 : 2);
    c.run = gemm_run_option<GATHER>;
    c.ctx = list;
    return choose(be, &c, err);
}

/* Launches A in the fastest way. The contest is for the first time; later a look into a table is enough, since a step
 * is hundreds of products. */
template <int GATHER> static int gemm_run(struct backend *be, const struct gemm &a, struct error *err)
{
    struct gemm_options list;
    list.a = a;
    uint64_t key = gemm_key(be, a, GATHER);
    int known = choose_known(be, key), first = GATHER == NUMBERS ? GEMM_SHAPES - 1 : 0;
    if (known < 0) {
        gemm_list(be, &list, first);
        gemm_list_libraries<GATHER>(be, &list);
        int best = gemm_compete<GATHER>(be, &list, err);
        if (best < 0)
            return best;
        list.o[0] = list.o[best];
    } else {
        list.o[0].shape = known % GEMM_KINDS;
        list.o[0].splits = known / GEMM_KINDS;
    }
    if (list.o[0].shape >= GEMM_SHAPES) {
        /* A library may refuse today what was chosen before: another version, less memory. */
        struct error why;
        memset(&why, 0, sizeof why);
        int rc = gemm_run_option<GATHER>(be, &list, 0, NULL, &why);
        if (rc == 0 && known < 0)
            choose_remember(be, key, list.o[0].shape + GEMM_KINDS * list.o[0].splits);
        if (rc != ERR_UNSUPPORTED)
            return rc ? error_set(err, rc, "%s", why.msg) : 0;
        gemm_list(be, &list, first);
        known = -1;
    }
    if (known < 0)
        choose_remember(be, key, list.o[0].shape + GEMM_KINDS * list.o[0].splits);
    return gemm_run_option<GATHER>(be, &list, 0, NULL, err);
}

#endif
