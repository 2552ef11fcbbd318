/* What the kernels share that go over rows of channels: pieces of 16 bytes and more, numbers of any type, and
 * the sums of a block.
 *
 * A piece is V numbers side by side in one row, moved with accesses of 16 bytes: 8 numbers of 16 bits, 4
 * of 32. Where an address, a pitch or a width does not allow pieces, kernels go number by number and look up
 * the type at run time: no network of ours comes there with anything large. */
#ifndef LATENTD_CUDA_ROWS_CUH
#define LATENTD_CUDA_ROWS_CUH

#include "device.cuh"

template <class T, int V> struct piece {
    static_assert(V * sizeof(T) % 16 == 0, "a piece is moved 16 bytes at a time");
    vec16 part[V * sizeof(T) / 16];
};

template <class T, int V> DEVICE piece<T, V> load_piece(const void *data, size_t at)
{
    piece<T, V> p;
    const vec16 *from = (const vec16 *)((const T *)data + at);
    UNROLL
    for (int i = 0; i < (int)(V * sizeof(T) / 16); i++)
        p.part[i] = load_16(from + i);
    return p;
}

template <class T, int V> DEVICE void unpack(float v[V], const piece<T, V> &p)
{
    UNROLL
    for (int i = 0; i < V; i++) {
        if constexpr (sizeof(T) == 4) {
            v[i] = __uint_as_float(p.part[i / 4].v[i % 4]);
        } else {
            uint32_t word = p.part[i / 8].v[i % 8 / 2];
            v[i] = i % 2 ? high_half<T>(word) : low_half<T>(word);
        }
    }
}

template <class T, int V> DEVICE void store_piece(void *data, size_t at, const float v[V])
{
    vec16 *to = (vec16 *)((T *)data + at);
    UNROLL
    for (int i = 0; i < (int)(V * sizeof(T) / 16); i++) {
        vec16 x;
        UNROLL
        for (int j = 0; j < 4; j++) {
            if constexpr (sizeof(T) == 4)
                x.v[j] = __float_as_uint(v[4 * i + j]);
            else
                x.v[j] = pack2<T>(v[8 * i + 2 * j], v[8 * i + 2 * j + 1]);
        }
        store_16(to + i, x);
    }
}

/* Number AT of an array stored as TYPE (enum dtype). */
DEVICE float load_any(const void *data, int type, size_t at)
{
    if (type == DTYPE_F32)
        return ((const float *)data)[at];
    return type == DTYPE_F16 ? to_float(((const f16 *)data)[at]) : to_float(((const bf16 *)data)[at]);
}

DEVICE void store_any(void *data, int type, size_t at, float v)
{
    if (type == DTYPE_F32)
        ((float *)data)[at] = v;
    else if (type == DTYPE_F16)
        ((f16 *)data)[at] = from_float<f16>(v);
    else
        ((bf16 *)data)[at] = from_float<bf16>(v);
}

/* x * sigmoid(x) to a few units of fp32, in about ten instructions: two of the special function unit and no
 * branch. An accurate exponential and a division take about thirty, which would cost more time than the
 * memory does. Where e^-x is out of range the product is -0 as it should be. */
DEVICE float fast_silu(float x)
{
    return x * fast_reciprocal(1.0f + fast_exp2(-1.44269504f * x));
}

/* Where item ITEM is: its row and its place in it. */
DEVICE void find_item(size_t item, size_t columns, size_t *row, size_t *at)
{
    *row = item / columns;
    *at = item - *row * columns;
}

/* Sum over the block, the same in all threads and in any run. SCRATCH: one float a warp. */
DEVICE float block_sum(float x, float *scratch)
{
    int warps = (int)blockDim.x / 32;
    x = warp_sum(x);
    if (warps == 1)
        return x;
    __syncthreads(); /* all have read the sum before this one */
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < warps; i++)
        sum += scratch[i];
    return sum;
}

/* ---- On the host ---- */

static inline size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* All rows of X as one. */
static inline bool rows_touch(tensor x)
{
    return x.ld == x.c || tensor_rows(x) == 1;
}

/* Whether X's rows start at multiples of 16 bytes. */
static inline bool rows_aligned(tensor x)
{
    return (uintptr_t)x.data % 16 == 0 &&
           (tensor_rows(x) == 1 || (size_t)x.ld * dtype_size(x.dtype) % 16 == 0);
}

/* group_norm.cu: the norm of SETS sets one behind the other, each ROWS rows of X and, in GROUPS groups, all
 * their channels: any type, any layout, no hurry. A layer norm is the one with one row a set and one group.
 */
int norm_any(struct backend *be, tensor y, tensor x, const weight *w, size_t sets, size_t rows, int groups,
             float eps, bool silu, struct error *err);

#endif
