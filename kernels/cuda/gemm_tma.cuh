/* The matrix product of gemm_tile.cuh on Hopper with warps of their own for the copies: linear layers, and convolutions
 * without stride and upsampling. gemm_tma.cu launches it.
 *
 * A block is two warpgroups that do nothing but multiply: 64 rows each with all BN columns by wgmma, then the epilogue;
 * and behind them the warps of one thread that starts the copies of whole boxes (TMA): of x a box of positions by 64
 * channels, moved by the kernel's tap, where the hardware writes zeros for what lies outside of the picture; of w 64
 * channels of one tap by BN outputs. Between them is a ring of STAGES stages with two barriers each: `full`, whose phase
 * ends when the bytes of a step are there, and `empty`, when all eight warps have multiplied it. A step is 64 channels of
 * a tap; behind the last channel of a tap are zeros, not the next tap.
 *
 *   shape            stages     shared memory   blocks on a multiprocessor   sums of a thread   registers, compiled
 *   128 x 256 x 64   4 x 48 KB  192 KB          1                            128                168, then 40 and 232
 *   128 x 128 x 64   3 x 32 KB   96 KB          2                            64                 96
 *
 * The larger shape gives the copies a warpgroup, of which one thread works, so that registers can be moved (setmaxnreg);
 * the smaller one a single warp: two blocks of 384 threads would leave each thread 80 registers, and wgmma wants 90.
 *
 * Bytes and operations are gemm_hopper.cuh's, which see. What this saves is the copies' work: 12 cp.async a thread and
 * step with their addresses become two instructions of one thread; and no barrier of the whole block is in the loop.
 * Where a block is alone its epilogue does not overlap with the next block's copies; blocks that live on from tile to
 * tile and boxes shared by a cluster (multicast) are not written. No GPU has run this file: a product is taken only
 * where it was timed and gave the numbers of another kernel (choose.h).
 *
 * A tile of 128 positions is 1 to 16 boxes: rows of the picture, parts of a row, or whole small pictures, as
 * gemm_tma.cu finds them. Each is a multiple of 8 rows of 128 bytes, that is of wgmma's atoms, whose swizzle the copies
 * write.
 *
 * A copy that never comes does not hold the GPU: the waits end after two seconds (tma.cuh). In a trial the output is
 * then left as it is, blocks that begin later end at once, and the comparison fails; later the kernel fails, and with it
 * the process. */
#ifndef LATENTD_CUDA_GEMM_TMA_CUH
#define LATENTD_CUDA_GEMM_TMA_CUH

#include "gemm_hopper.cuh"
#include "tma.cuh"

/* COPY_REGISTERS: 0 where the registers stay as they are. */
template <int BN_, int STAGES_, int BLOCKS_, int COPY_WARPS_, int COPY_REGISTERS_, int SUM_REGISTERS_> struct tma_shape {
    static constexpr int BM = 128, BN = BN_, BK = 64, STAGES = STAGES_, BLOCKS = BLOCKS_, SLICES = BN / 64;
    static constexpr int MULTIPLY = 256, THREADS = MULTIPLY + 32 * COPY_WARPS_; /* the first MULTIPLY threads multiply */
    static constexpr int ROW_BYTES = 2 * BK, A_BYTES = BM * ROW_BYTES, STAGE_BYTES = (BM + BN) * ROW_BYTES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + 2 * STAGES * (int)sizeof(uint64_t);
    static constexpr int COPY_REGISTERS = COPY_REGISTERS_, SUM_REGISTERS = SUM_REGISTERS_;
    /* What a thread can have at the start: each quarter of a multiprocessor has 16384 for its warps. More than the pool
     * gives would be waited for, for ever. */
    static constexpr int WARPS = (THREADS / 32 * BLOCKS + 3) / 4, REGISTERS = 16384 / (32 * WARPS) / 8 * 8;
    static_assert(COPY_REGISTERS == 0 || COPY_WARPS_ == 4, "setmaxnreg is for whole warpgroups");
    static_assert((THREADS - MULTIPLY) * COPY_REGISTERS + MULTIPLY * SUM_REGISTERS <= THREADS * REGISTERS, "the pool");
    static_assert(COPY_REGISTERS <= REGISTERS && SUM_REGISTERS >= REGISTERS, "less and more");
    static_assert(A_BYTES % 1024 == 0 && STAGE_BYTES % 1024 == 0, "wgmma's operands");
};

typedef tma_shape<256, 4, 1, 4, 40, 232> tma_128x256;
typedef tma_shape<128, 3, 2, 1, 0, 96> tma_128x128;

/* Arguments. No padding between fields: commands are compared byte by byte. */
struct gemm_tma {
    CUtensorMap x, w;
    struct gemm a;
    int box_w, box_h, box_n;  /* positions in a box of x: of a row, rows, pictures */
    int boxes;                /* in a tile */
    int out_h;                /* rows of y */
    int unused;
    unsigned *failed;         /* in a trial, where the output is compared before it counts: something never came */
};

#ifdef WGMMA_HERE

/* The thread that copies: TILES steps from step FIRST on. */
template <class S>
DEVICE void tma_copy(const gemm_tma &p, unsigned char *memory, uint64_t *full, uint64_t *empty, int m0, int n0, int first,
                     int tiles)
{
    const gemm &a = p.a;
    int chunks = (a.channels + S::BK - 1) / S::BK, tap = first / chunks, c = (first - tap * chunks) * S::BK;
    int ky = tap / a.kw, kx = tap - ky * a.kw;
    int n = m0 / a.positions, at = m0 - n * a.positions, y = at / a.out_w, x = at - y * a.out_w;
    int box_bytes = S::A_BYTES / p.boxes, stage = 0;
    unsigned parity = 1;
    for (int i = 0; i < tiles; i++) {
        if (!barrier_wait<false>(empty + stage, parity))
            return; /* those who multiply say so */
        unsigned char *to = memory + stage * S::STAGE_BYTES;
        barrier_expect(full + stage, S::STAGE_BYTES);
        box_load(to + S::A_BYTES, &p.w, full + stage, c, tap, n0);
        int bx = x, by = y, bn = n;
        for (int b = 0; b < p.boxes; b++, to += box_bytes) {
            box_load(to, &p.x, full + stage, c, bx + kx - a.pad_x, by + ky - a.pad_y, bn);
            if ((bx += p.box_w) >= a.out_w) {
                bx = 0;
                if ((by += p.box_h) >= p.out_h) {
                    by = 0;
                    bn += p.box_n;
                }
            }
        }
        if ((c += S::BK) >= a.channels) {
            c = 0;
            tap++;
            if (++kx == a.kw) {
                kx = 0;
                ky++;
            }
        }
        if (++stage == S::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
}

/* A thread that multiplies. False: something did not come; the sums are of no use then. */
template <class T, class S>
DEVICE bool tma_multiply(float (&acc)[S::SLICES][8][4], const unsigned char *memory, uint64_t *full, uint64_t *empty,
                         int tiles)
{
    int stage = 0, before = S::STAGES - 1;
    unsigned parity = 0;
    bool good = true;
    for (int i = 0; i < tiles; i++) {
        good = good && barrier_wait<true>(full + stage, parity);
        hopper_multiply<T, S>(acc, memory + stage * S::STAGE_BYTES);
        wgmma_wait<1>(); /* the step before is done, and its stage free */
        if (i > 0 && threadIdx.x % 32 == 0)
            barrier_arrive(empty + before);
        before = stage;
        if (++stage == S::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    wgmma_wait<0>();
    return good;
}

#endif

template <class T, class S>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS) gemm_tma_tile(const __grid_constant__ struct gemm_tma p)
{
#ifdef WGMMA_HERE
    SHARED_MEMORY(memory);
    uint64_t *full = (uint64_t *)(memory + S::STAGES * S::STAGE_BYTES), *empty = full + S::STAGES;
    if (threadIdx.x == 0) {
        box_prefetch(&p.x);
        box_prefetch(&p.w);
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, S::MULTIPLY / 32);
        }
        barrier_publish();
    }
    if (__syncthreads_count(p.failed && *(volatile unsigned *)p.failed) > 0)
        return;

    const gemm &a = p.a;
    int tile_m, tile_n;
    gemm_place(a, &tile_m, &tile_n);
    int all = a.kh * a.kw * ((a.channels + S::BK - 1) / S::BK), first = (int)blockIdx.y * a.split_tiles;
    int tiles = all - first < a.split_tiles ? all - first : a.split_tiles;
    if (threadIdx.x >= S::MULTIPLY) {
        if constexpr (S::COPY_REGISTERS > 0)
            registers_less<S::COPY_REGISTERS>();
        if (threadIdx.x == S::MULTIPLY)
            tma_copy<S>(p, memory, full, empty, tile_m * S::BM, tile_n * S::BN, first, tiles);
        return;
    }
    if constexpr (S::COPY_REGISTERS > 0)
        registers_more<S::SUM_REGISTERS>();
    float acc[S::SLICES][8][4] = {};
    bool good = tma_multiply<T, S>(acc, memory, full, empty, tiles);
    named_barrier(1, S::MULTIPLY); /* the epilogue reuses the stages; every copy has come */
    if (!good) {
        if (!p.failed)
            kernel_failed();
        *p.failed = 1;
        return;
    }
    hopper_end<T, S>(a, acc, memory, tile_m, tile_n);
#else
    (void)p;
    __trap(); /* the host does not launch it here */
#endif
}

#endif
