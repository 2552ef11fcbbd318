/* What kernels are written in: 16-bit numbers, loads, the warp's matrix instructions, asynchronous copies, and
 * the launch. Everything that is an instruction of the GPU is named here once, so that tests/emulator can stand in
 * for the hardware: there the same kernels are compiled for the CPU, one fiber a thread.
 *
 * Sources: PTX ISA 9.0, "Matrix multiply-accumulate operations using mma instruction", "ldmatrix",
 * "Data movement and conversion: cp.async". */
#ifndef LATENTD_DEVICE_CUH
#define LATENTD_DEVICE_CUH

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cuda.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]
#else
#include "emulator.h"
#endif

#define DEVICE __device__ __forceinline__

/* Before a loop whose index picks registers: it must be unrolled, or they move to memory. */
#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

/* ---- 16-bit numbers: only stored; all arithmetic is fp32 ---- */

struct alignas(2) f16 {
    uint16_t bits;
};
struct alignas(2) bf16 {
    uint16_t bits;
};

DEVICE float to_float(float x)
{
    return x;
}

/* Round to nearest even, as every store of the project. */
template <class T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x)
{
    return x;
}

#ifndef __CUDACC__
#include "instructions.h"
#else

DEVICE float to_float(f16 x)
{
    return __half2float(__ushort_as_half(x.bits));
}

DEVICE float to_float(bf16 x)
{
    return __uint_as_float((uint32_t)x.bits << 16);
}

template <> DEVICE f16 from_float<f16>(float x)
{
    return f16{__half_as_ushort(__float2half_rn(x))};
}

template <> DEVICE bf16 from_float<bf16>(float x)
{
    return bf16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

/* Two numbers as one word, LO in the low half. */
template <class T> DEVICE uint32_t pack2(float lo, float hi);
template <> DEVICE uint32_t pack2<f16>(float lo, float hi)
{
    __half2 v = __floats2half2_rn(lo, hi);
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}
template <> DEVICE uint32_t pack2<bf16>(float lo, float hi)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}

DEVICE uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* Four 8x8 matrices of 16-bit numbers: lane 8 i + r gives the address of row r of matrix i (16 bytes, aligned);
 * lane l gets in r[i] elements (l / 4, 2 (l % 4)) and the one after it. */
DEVICE void load_matrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* The same, each matrix transposed: lane l gets elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4). */
DEVICE void load_matrix_x4_transposed(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* d += a b over 16x8x16. With g = lane / 4 and t = lane % 4:
 *   a[0] (g, 2t..)  a[1] (g + 8, 2t..)  a[2] (g, 2t + 8..)  a[3] (g + 8, 2t + 8..)     16x16, rows of a
 *   b[0] (2t.., g)  b[1] (2t + 8.., g)                                                  16x8, columns of b
 *   d[0] (g, 2t)    d[1] (g, 2t + 1)    d[2] (g + 8, 2t)    d[3] (g + 8, 2t + 1)        16x8 */
template <class T> DEVICE void mma_16816(float d[4], const uint32_t a[4], const uint32_t b[2]);
template <> DEVICE void mma_16816<f16>(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> DEVICE void mma_16816<bf16>(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* 16 bytes from global to shared memory behind the thread's back, zeros when not VALID (then SRC is not read, but
 * must still be an address of global memory). Both aligned to 16. */
DEVICE void copy_async_16(void *shared, const void *global, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

/* Closes the group of copies that this thread started since the last one. */
DEVICE void copy_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most N of this thread's groups are under way. Other threads see the data after a __syncthreads(). */
template <int N> DEVICE void copy_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

DEVICE float shuffle_xor(float x, int mask)
{
    return __shfl_xor_sync(0xffffffffu, x, mask);
}

DEVICE float shuffle(float x, int lane)
{
    return __shfl_sync(0xffffffffu, x, lane);
}

/* 2^x to about 2 units in the last place, in one instruction; results below 2^-126 become 0. (exp2f() saves those,
 * with three more.) */
DEVICE float fast_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 1 / x to one unit in the last place; results below 2^-126 become 0. */
DEVICE float fast_reciprocal(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif /* the GPU's own instructions */

/* 16 bytes at once; the address must be aligned to 16. */
struct alignas(16) vec16 {
    uint32_t v[4];
};

/* 16 bytes of memory as one access: of a plain copy of the struct the compiler sometimes makes four. */
DEVICE vec16 load_16(const void *from)
{
#ifdef __CUDACC__
    uint4 x = *(const uint4 *)from;
    return {{x.x, x.y, x.z, x.w}};
#else
    return *(const vec16 *)from;
#endif
}

/* To global memory. Spelled out, for the compiler splits even some stores of a uint4. */
DEVICE void store_16(void *to, vec16 x)
{
#ifdef __CUDACC__
    __stwb((uint4 *)to, make_uint4(x.v[0], x.v[1], x.v[2], x.v[3]));
#else
    *(vec16 *)to = x;
#endif
}

template <class T> DEVICE float low_half(uint32_t bits)
{
    return to_float(T{(uint16_t)(bits & 0xffff)});
}

template <class T> DEVICE float high_half(uint32_t bits)
{
    return to_float(T{(uint16_t)(bits >> 16)});
}

DEVICE float warp_sum(float x)
{
    for (int mask = 16; mask; mask /= 2)
        x += shuffle_xor(x, mask);
    return x;
}

DEVICE float warp_max(float x)
{
    for (int mask = 16; mask; mask /= 2)
        x = fmaxf(x, shuffle_xor(x, mask));
    return x;
}

DEVICE float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

DEVICE float activate(int act, float x)
{
    switch (act) {
    case ACT_SILU:
        return x * sigmoid(x);
    case ACT_GELU:
        return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case ACT_QUICK_GELU:
        return x * sigmoid(1.702f * x);
    default:
        return x;
    }
}

/* ---- Launch ---- */

template <class A> static void cuda_call(const void *kernel, const void *args)
{
    A copy;
    memcpy(&copy, args, sizeof copy);
    ((void (*)(A))(uintptr_t)kernel)(copy);
}

/* Launches KERNEL with ARGS over GRID blocks of THREADS threads and SHARED bytes of dynamic shared memory. TRIAL: see
 * cuda_command. */
template <class A>
static int launch(struct backend *be, void (*kernel)(A), dim3 grid, int threads, size_t shared, const A &args,
                  struct error *err, bool trial = false)
{
    static_assert(sizeof(A) <= CUDA_ARGS_MAX, "too many arguments for a command");
    struct cuda_command c;
    memset(&c, 0, sizeof c); /* commands are compared byte by byte, padding too */
    c.kernel = (const void *)(uintptr_t)kernel;
#ifndef __CUDACC__
    c.call = cuda_call<A>;
#endif
    c.grid[0] = grid.x;
    c.grid[1] = grid.y;
    c.grid[2] = grid.z;
    c.threads = (unsigned)threads;
    c.shared = (unsigned)shared;
    c.bytes = sizeof(A);
    c.trial = trial;
    memcpy(c.args, &args, sizeof(A));
    return cuda_issue(be, &c, err);
}

/* Blocks of SIZE that cover COUNT. */
static inline unsigned blocks_of(size_t count, size_t size)
{
    return (unsigned)((count + size - 1) / size);
}

#endif
