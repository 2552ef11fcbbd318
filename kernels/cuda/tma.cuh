/* Hopper's copies of whole boxes of a tensor (TMA), the barriers in shared memory that count their bytes, and what else
 * a block needs whose warps have different work. They exist from compute capability 9.0 on; kernels here use them in
 * code for sm_90a only (WGMMA_HERE). tests/emulator/tma.h says the same in C.
 *
 * A barrier is 8 bytes. Its phase ends when COUNT threads have arrived and all bytes that were announced are there; then
 * the next phase begins by itself. Waiting names the parity of a phase, 0 for the first: it returns when that phase has
 * ended. The phase before the first, parity 1, counts as ended: a producer's first round passes at once.
 *
 * Sources: PTX ISA 9.0, "mbarrier", "cp.async.bulk.tensor", "setmaxnreg", "fence"; CUDA driver API,
 * "cuTensorMapEncodeTiled". */
#ifndef LATENTD_CUDA_TMA_CUH
#define LATENTD_CUDA_TMA_CUH

#include "wgmma.cuh"

#ifndef __CUDACC__
#include "tma.h"
#else

#include <cuda.h> /* the toolkit's: CUtensorMap */

#ifdef WGMMA_HERE

DEVICE void barrier_init(uint64_t *barrier, unsigned count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

/* By the thread that made barriers, before the __syncthreads() behind which others and the copies use them. */
DEVICE void barrier_publish()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Arrives, and announces BYTES that copies will bring in this phase. */
DEVICE void barrier_expect(uint64_t *barrier, unsigned bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

DEVICE void barrier_arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/* Whether the phase of PARITY has ended; waits a little. The first look, which ptxas makes shorter without a limit. */
DEVICE bool barrier_passed(uint64_t *barrier, unsigned parity)
{
    uint32_t passed;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(passed)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    return passed != 0;
}

/* The same, asleep for up to a millisecond. */
DEVICE bool barrier_passed_soon(uint64_t *barrier, unsigned parity)
{
    uint32_t passed;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2, 1000000; selp.u32 %0, 1, 0, p; }"
                 : "=r"(passed)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    return passed != 0;
}

/* The box of MAP's tensor at these coordinates (numbers, the innermost first; negative ones too), zeros where the tensor
 * is not, to SHARED, which is aligned to 1024. All of the box counts as arrived bytes. By one thread. */
DEVICE void box_load(void *shared, const CUtensorMap *map, uint64_t *barrier, int c0, int c1, int c2)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}

DEVICE void box_load(void *shared, const CUtensorMap *map, uint64_t *barrier, int c0, int c1, int c2, int c3)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}

/* Has MAP, an argument of the kernel, near before its first use. */
DEVICE void box_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* __syncthreads() of COUNT threads, by barrier ID (1 to 15). */
DEVICE void named_barrier(int id, int count)
{
    asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(count) : "memory");
}

/* From here on a thread of this warpgroup has N registers, and the block's pool the others; all four warps come by. */
template <int N> DEVICE void registers_less()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/* Waits for the pool to have as many. */
template <int N> DEVICE void registers_more()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

DEVICE bool warp_all(bool here)
{
    return __all_sync(0xffffffffu, here) != 0;
}

DEVICE uint64_t nanoseconds()
{
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

[[noreturn]] DEVICE void kernel_failed()
{
    __trap();
}

#endif
#endif

#ifdef WGMMA_HERE

/* Milliseconds that a barrier may take. A block whose copies never come must not hold the GPU for ever. */
enum { BARRIER_PATIENCE = 2000 };

/* Waits until the phase of PARITY has ended; false when it does not. Only milliseconds in which this thread looked are
 * counted: a GPU that was taken away meanwhile is no failure. TOGETHER: by a whole warp, whose lanes agree. */
template <bool TOGETHER> DEVICE bool barrier_wait(uint64_t *barrier, unsigned parity)
{
    bool passed = barrier_passed(barrier, parity);
    if (TOGETHER ? warp_all(passed) : passed)
        return true;
    uint64_t last = nanoseconds();
    for (int waited = 0; waited < BARRIER_PATIENCE;) {
        passed = barrier_passed_soon(barrier, parity);
        if (TOGETHER ? warp_all(passed) : passed)
            return true;
        uint64_t now = nanoseconds();
        bool later = now - last >= 1000000;
        if (TOGETHER ? warp_all(later) : later) {
            last = now;
            waited++;
        }
    }
    return false;
}

#endif
#endif
