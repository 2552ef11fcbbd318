/* What the attention kernels share: their arguments, where a block's rows lie, copies of tiles, and what each
 * lane gives to ldmatrix. Tiles in shared memory have rows of an odd number of 16-byte pieces: eight rows
 * below each other then lie in eight different groups of four banks, which is all that ldmatrix needs, and
 * addresses stay sums of constants. */
#ifndef LATENTD_ATTENTION_CUH
#define LATENTD_ATTENTION_CUH

#include "device.cuh"

/* Weights are computed as 2^(x - greatest x + LIFT), and divided by their sum in the end, so LIFT does not
 * matter to fp32. But they are rounded to 16 bits for the tensor cores, and f16 has no small numbers: without
 * it a weight below 2^-14 of the greatest one would lose bits. 2^15 is the last power of two that f16 can
 * hold. */
#define LIFT 15.0f

struct attention_job {
    const void *q, *k, *v; /* [n, t, heads * size], [n or 1, s, heads * size] */
    void *y;
    float *partial;             /* where a block does not see all keys: its output, see attention_wide.cuh */
    size_t ldq, ldk, ldv, ldy;  /* numbers from row to row */
    int t, s, heads, size;
    int tiles;                  /* blocks of queries of a head */
    int splits;                 /* of the keys */
    int causal, shared_keys;    /* shared: k and v have n = 1 */
    size_t rows;                /* n * heads * t */
    float scale;                /* of q k; times log2(e) for the kernels that use fast_exp2 */
    int unused;
};

/* The work of a block: queries row0.. of one head of one picture, and the first of its rows in each
 * tensor. */
template <class T> struct attention_place {
    int row0;
    size_t row; /* of n * heads * t */
    const T *q, *k, *v;
    T *y;
};

template <class T>
DEVICE attention_place<T> find_place(const attention_job &a, unsigned block, int block_rows)
{
    unsigned tile = block % (unsigned)a.tiles, nh = block / (unsigned)a.tiles;
    size_t head = nh % (unsigned)a.heads, n = nh / (unsigned)a.heads, channel = head * (size_t)a.size;
    size_t q = n * (size_t)a.t + (size_t)tile * (size_t)block_rows, k = a.shared_keys ? 0 : n * (size_t)a.s;
    attention_place<T> p;
    p.row0 = (int)tile * block_rows;
    p.row = (size_t)nh * (size_t)a.t + (size_t)p.row0;
    p.q = (const T *)a.q + q * a.ldq + channel;
    p.k = (const T *)a.k + k * a.ldk + channel;
    p.v = (const T *)a.v + k * a.ldv + channel;
    p.y = (T *)a.y + q * a.ldy + channel;
    return p;
}

/* Keys that query ROW sees. */
DEVICE int keys_seen(const attention_job &a, int row)
{
    return a.causal && row + 1 < a.s ? row + 1 : a.s;
}

/* Starts the copy of ROWS rows of PIECES times 8 numbers into a tile of STRIDE; zeros where the row is not
 * below VALID or the piece not below WIDTH. The first row need not exist, SAFE must. All threads of the block
 * take part, THREADS of them or, if that is 0, as many as there are; but for a few where PIECES does not
 * divide them: each keeps its piece, and addresses are one base for all and a sum of 32 bits, for the sake of
 * registers. */
template <int PIECES, int STRIDE, int THREADS, class T>
DEVICE void fetch_tile(T *tile, int rows, const T *from, size_t ld, int valid, int width, const T *safe)
{
    unsigned thread = threadIdx.x;
    asm volatile("" : "+r"(thread)); /* so that offsets are computed anew, not kept for all tiles */
    const unsigned pitch = (unsigned)ld * sizeof(T);
    const int step = (THREADS ? THREADS : (int)blockDim.x) / PIECES, piece = (int)thread % PIECES;
    const bool even = THREADS && THREADS % PIECES == 0 && rows % (THREADS ? THREADS / PIECES : 1) == 0;
    const char *base = (const char *)(valid > 0 ? from : safe);
    unsigned offset = thread / PIECES * pitch + (unsigned)piece * 16;
    int row = (int)thread / PIECES;
    tile += row * STRIDE + piece * 8;
    valid = piece < width ? valid : 0;
    row = even || row < step ? row : rows; /* one of the few */
    UNROLL
    for (int first = 0; first < rows; first += step, offset += (unsigned)step * pitch) {
        bool there = first + row < valid;
        if (even || first + row < rows)
            copy_async_16(tile + first * STRIDE, base + (there ? offset : 0), there);
    }
}

/* The row that a lane gives to ldmatrix, as an offset into a tile. By rows: matrices in the order of the a of
 * an mma, 16x16 of a tile [row][k]; also, transposed, two b of a tile [k][column]. */
template <int STRIDE> DEVICE int lane_by_rows()
{
    return (int)(threadIdx.x % 16 * STRIDE + threadIdx.x % 32 / 16 * 8);
}

/* Two b of a tile [column][k]: 16 columns, 16 k. */
template <int STRIDE> DEVICE int lane_by_columns()
{
    return (int)((threadIdx.x % 32 / 16 * 8 + threadIdx.x % 8) * STRIDE + threadIdx.x / 8 % 2 * 8);
}

/* Two numbers as one word; TO is aligned to 4. */
typedef uint32_t __attribute__((may_alias)) word;

template <class T> DEVICE void store_pair(T *to, float lo, float hi)
{
    *(word *)to = pack2<T>(lo, hi);
}

/* Over the four lanes that hold a row of an mma's d. */
DEVICE float row_max(float x)
{
    x = fmaxf(x, shuffle_xor(x, 1));
    return fmaxf(x, shuffle_xor(x, 2));
}

DEVICE float row_sum(float x)
{
    x += shuffle_xor(x, 1);
    return x + shuffle_xor(x, 2);
}

/* Scores of keys that a query does not see become -inf. S: N columns of mma from KEY0 on, of ROW and ROW + 8.
 * Only the last tiles need it: the empty asm keeps the compiler from doing it, or preparing it, for all of
 * them. */
template <int N> DEVICE void hide_keys(const attention_job &a, float (&s)[N][4], int row, int key0)
{
    unsigned thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    int key = key0 + (int)(thread % 4) * 2, seen[2] = {keys_seen(a, row) - key, keys_seen(a, row + 8) - key};
    UNROLL
    for (int n = 0; n < N; n++) {
        UNROLL
        for (int i = 0; i < 4; i++)
            s[n][i] = 8 * n + i % 2 < seen[i / 2] ? s[n][i] : -INFINITY;
    }
}

#endif
