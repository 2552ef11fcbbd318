/* The matrix product of gemm_tile.cuh with Hopper's wgmma: linear layers and all convolutions in 16-byte pieces.
 *
 * Copies are gemm_tile.cuh's: cp.async, the rows of x gathered on the way, so padding, stride and upsampling cost no
 * more than there. BK = 64 makes rows of 128 bytes, whose swizzle is the one that wgmma reads. Two warpgroups share a
 * block; each multiplies 64 rows with all BN columns, four wgmma a step, while its threads start the copies of a later
 * step. One barrier a step: behind it the step has arrived everywhere, and the products of the step but one before are
 * done everywhere, whose stage the new copies take.
 *
 *   shape            stages     shared memory   copies ahead   sums of a thread   multiply-adds a byte from L2
 *   128 x 256 x 64   4 x 48 KB  192 KB          2 steps        128                43
 *   128 x 128 x 64   6 x 32 KB  192 KB          4 steps        64                 32
 *
 * A step of 128 x 256 is 512 cycles of an H200's tensor cores (4096 multiply-adds a cycle) and 12 cp.async a thread;
 * 48 KB a step on each of 132 multiprocessors is 22 TB/s at that rate, more than L2 gives (some 5.5 measured on
 * others' machines): blocks that run together share rows of x and w (gemm_place), and what is left is the case for TMA
 * with multicast, which is not written. Producers apart from consumers are gemm_tma.cuh. No GPU has run this file: its
 * products are tried before they are believed (choose.h).
 *
 * Registers: 128 sums, 20 of the loader, operands none. */
#ifndef LATENTD_CUDA_GEMM_HOPPER_CUH
#define LATENTD_CUDA_GEMM_HOPPER_CUH

#include "gemm_tile.cuh"
#include "wgmma.cuh"

/* What gemm_loader wants to know, and the product. */
template <int BN_, int STAGES_> struct hopper_shape {
    static constexpr int BM = 128, BN = BN_, BK = 64, THREADS = 256, STAGES = STAGES_, SLICES = BN / 64;
    static constexpr int ROW_BYTES = 2 * BK, CHUNKS = BK / 8, STEP = THREADS / CHUNKS;
    static constexpr int A_BYTES = BM * ROW_BYTES, STAGE_BYTES = (BM + BN) * ROW_BYTES;
    static constexpr int A_COPIES = BM / STEP, B_COPIES = BN / STEP;
    static constexpr int AHEAD = STAGES - 2; /* steps whose copies are under way */
    static_assert(A_BYTES % 1024 == 0 && STAGE_BYTES % 1024 == 0, "wgmma's operands");
};

/* And gemm_store: 16 rows and 64 columns of a warp at a time. */
struct hopper_store {
    static constexpr int WN = 64, NF = 8, OUT_ROWS = 16, OUT_LD = WN + 8;
};

typedef hopper_shape<256, 4> hopper_128x256;
typedef hopper_shape<128, 6> hopper_128x128;

#ifdef WGMMA_HERE

/* One step of this warpgroup, begun. */
template <class T, class S> DEVICE void hopper_multiply(float (&acc)[S::SLICES][8][4], const unsigned char *stage)
{
    uint64_t x = wgmma_operand(stage + threadIdx.x / 128 * 64 * S::ROW_BYTES);
    uint64_t w = wgmma_operand(stage + S::A_BYTES);
    wgmma_fence();
    UNROLL
    for (int k = 0; k < S::BK / 16; k++)
        wgmma<T>(acc, x + (uint64_t)(k * WGMMA_STEP), w + (uint64_t)(k * WGMMA_STEP));
    wgmma_commit();
}

/* The epilogue of a tile, by way of the stages, which are free by now. */
template <class T, class S>
DEVICE void hopper_end(const struct gemm &a, const float (&acc)[S::SLICES][8][4], unsigned char *memory, int tile_m,
                       int tile_n)
{
    int warp = (int)threadIdx.x / 32, row = tile_m * S::BM + warp * 16;
    float *stage = (float *)memory + warp * hopper_store::OUT_ROWS * hopper_store::OUT_LD;
    UNROLL
    for (int i = 0; i < S::SLICES; i++)
        gemm_store<T, hopper_store>(a, acc + i, stage, row, tile_n * S::BN + i * 64);
}

#endif

template <class T, class S, int GATHER>
__global__ void __launch_bounds__(S::THREADS, 1) gemm_hopper(const struct gemm a)
{
#ifdef WGMMA_HERE
    SHARED_MEMORY(memory);
    int tile_m, tile_n;
    gemm_place(a, &tile_m, &tile_n);
    int all = (a.depth + S::BK - 1) / S::BK, first = (int)blockIdx.y * a.split_tiles;
    int tiles = all - first < a.split_tiles ? all - first : a.split_tiles;

    struct gemm_loader<T, S, GATHER> in;
    in.begin(a, tile_m * S::BM, tile_n * S::BN, first * S::BK);
    for (int i = 0; i < S::AHEAD; i++) {
        if (i < tiles)
            in.copy(a, memory + i * S::STAGE_BYTES);
        copy_async_commit();
    }

    float acc[S::SLICES][8][4] = {};
    int read = 0, write = S::AHEAD;
    for (int tile = 0; tile < tiles; tile++) {
        copy_async_wait<S::AHEAD - 1>();
        wgmma_publish();
        __syncthreads();
        hopper_multiply<T, S>(acc, memory + read * S::STAGE_BYTES);
        if (tile + S::AHEAD < tiles)
            in.copy(a, memory + write * S::STAGE_BYTES);
        copy_async_commit();
        wgmma_wait<1>();
        read = read + 1 == S::STAGES ? 0 : read + 1;
        write = write + 1 == S::STAGES ? 0 : write + 1;
    }
    wgmma_wait<0>();
    copy_async_wait<0>();
    __syncthreads(); /* the epilogue reuses the stages */
    hopper_end<T, S>(a, acc, memory, tile_m, tile_n);
#else
    (void)a;
    __trap(); /* the host does not launch it here */
#endif
}

/* ---- On the host ---- */

/* Whether this GPU has wgmma, and this build its code. */
static inline bool gemm_hopper_serves(const struct backend *be)
{
#if defined(LATENTD_SM90A) || defined(LATENTD_CUDA_EMULATED)
    return cuda_of(be)->major == 9 && cuda_of(be)->minor == 0;
#else
    (void)be;
    return false;
#endif
}

template <class T, class S, int GATHER>
static int gemm_hopper_launch(struct backend *be, const struct gemm &a, bool trial, struct error *err)
{
    dim3 grid((unsigned)a.tiles_m * (unsigned)a.tiles_n, (unsigned)a.splits);
    return launch(be, gemm_hopper<T, S, GATHER>, grid, S::THREADS, (size_t)(S::STAGES * S::STAGE_BYTES), a, err, trial);
}

#endif
