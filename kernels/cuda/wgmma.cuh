/* Hopper's matrix instruction, wgmma: 64 rows by up to 256 columns at once by four warps, both operands straight from
 * shared memory, sums in registers, in the background. It exists on compute capability 9.0 alone, in code compiled for
 * sm_90a; everywhere else a kernel that uses it must not be launched. tests/emulator/wgmma.h says the same in C.
 *
 * Source: PTX ISA 9.0, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions". */
#ifndef LATENTD_CUDA_WGMMA_CUH
#define LATENTD_CUDA_WGMMA_CUH

#include "device.cuh"

/* Where an operand lies: rows of 64 numbers (128 bytes), eight rows of which are an atom of 1024 bytes at a multiple
 * of 1024; in it 16-byte chunk c of row r stands at place c ^ r (the 128-byte swizzle), which tile_offset() makes of
 * BK = 64. The atoms of the next rows follow. 16 numbers further along the row: 32 bytes, WGMMA_STEP more. */
enum { WGMMA_STEP = 2 };

/* Where kernels that use it have a body. */
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WGMMA_HERE 1
#endif

#ifndef __CUDACC__
#include "wgmma.h"
#else

DEVICE uint64_t wgmma_operand(const void *shared)
{
    const uint64_t atoms = 1024 >> 4, swizzle_128 = 1, unused = 1;
    return (uint64_t)(shared_address(shared) >> 4 & 0x3fff) | unused << 16 | atoms << 32 | swizzle_128 << 62;
}

#ifdef WGMMA_HERE

/* Between ordinary accesses to the registers of sums and the next product. */
DEVICE void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* Closes the group of products that this warpgroup began since the last one. */
DEVICE void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N groups are under way: then their sums may be read and their operands overwritten. */
template <int N> DEVICE void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* What this thread wrote to shared memory by ordinary stores and cp.async is seen by wgmma, after the next barrier. */
DEVICE void wgmma_publish()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <class T> struct is_f16 {
    static constexpr bool value = false;
};
template <> struct is_f16<f16> {
    static constexpr bool value = true;
};

#define WGMMA_FOUR(f)  "+f"(f[0]), "+f"(f[1]), "+f"(f[2]), "+f"(f[3])
#define WGMMA_SLICE(s) \
    WGMMA_FOUR(s[0]), WGMMA_FOUR(s[1]), WGMMA_FOUR(s[2]), WGMMA_FOUR(s[3]), WGMMA_FOUR(s[4]), WGMMA_FOUR(s[5]), \
        WGMMA_FOUR(s[6]), WGMMA_FOUR(s[7])

#define WGMMA_128(type) \
    asm volatile("{ .reg .pred add; setp.eq.u32 add, 0, 0; " \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
                 "%64, %65, add, 1, 1, 0, 0; }" \
                 : WGMMA_SLICE(d[0]), WGMMA_SLICE(d[1]) \
                 : "l"(a), "l"(b))

#define WGMMA_256(type) \
    asm volatile("{ .reg .pred add; setp.eq.u32 add, 0, 0; " \
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
                 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
                 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
                 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, " \
                 "%128, %129, add, 1, 1, 0, 0; }" \
                 : WGMMA_SLICE(d[0]), WGMMA_SLICE(d[1]), WGMMA_SLICE(d[2]), WGMMA_SLICE(d[3]) \
                 : "l"(a), "l"(b))

/* Begins d += a b^T over 64 rows of A, 64 * SLICES rows of B and 16 numbers of each. D of a thread, with
 * g = lane / 4, t = lane % 4, w its warp in the warpgroup, in slice s and fragment j:
 *   d[s][j][0] (16 w + g, 64 s + 8 j + 2 t)   [1] one column on   [2] (16 w + g + 8, ..)   [3] */
template <class T, int SLICES> DEVICE void wgmma(float (&d)[SLICES][8][4], uint64_t a, uint64_t b)
{
    static_assert(SLICES == 2 || SLICES == 4, "128 or 256 columns");
    if constexpr (SLICES == 2) {
        if constexpr (is_f16<T>::value)
            WGMMA_128("f16");
        else
            WGMMA_128("bf16");
    } else {
        if constexpr (is_f16<T>::value)
            WGMMA_256("f16");
        else
            WGMMA_256("bf16");
    }
}

#endif /* sm_90a */
#endif
#endif
