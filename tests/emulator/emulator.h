/* The GPU's instructions on the host: kernels/cuda compiled by an ordinary compiler and run one block after
 * the other, each thread a fiber. This shows on any machine that a kernel computes the right numbers, stays
 * inside its tensors, and does not lean on an order that the GPU does not promise:
 *
 *  - fibers run until they wait; which of them runs first, and the order of blocks, changes with the seed
 *    (EMULATOR_SEED), so a missing barrier gives another result or a NaN;
 *  - cp.async copies at once or as late as its wait allows, by the seed: a missing wait reads old data, a
 * buffer filled too early loses what others still read;
 *  - shared memory holds NaN at first, and ends where the launch said;
 *  - a box that TMA copies comes at once or late, by the seed, and what stood in its place is gone from the
 * start; a wait that names the wrong phase reads NaN, bytes that nobody announced or that never come end the
 * program;
 *  - a warp's instructions need all 32 lanes, at the same instruction; a barrier that nobody can reach ends
 * the program with the kernel's name.
 *
 * It says nothing of speed, and is no proof for the hardware: memory order between threads is stronger here.
 */
#ifndef LATENTD_EMULATOR_H
#define LATENTD_EMULATOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "half.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define SHARED_MEMORY(name) unsigned char *name = emulator_shared()

struct emulator_index {
    unsigned x, y, z;
};

/* Of the running fiber. */
struct emulator_place {
    emulator_index thread, block, block_dim, grid;
};
extern emulator_place *emulator_here;

extern const float *emulator_halves; /* every f16 as a float, by its bits */
unsigned char *emulator_shared();
void __syncthreads();
void __syncwarp();
/* All threads of the block: how many gave a value that is not 0. */
int __syncthreads_count(int predicate);
/* Named barrier ID (1..15) of COUNT threads. */
void emulator_barrier(int id, int count);
void __threadfence();
[[noreturn]] void emulator_fail(const char *what);

/* All 32 lanes meet; the last one runs WORK on what the lanes gave, in the order of lanes. OP names the
 * instruction, which must be the same for all. */
void emulator_warp(const char *op, void *mine, void (*work)(void *lane[32]));

void emulator_copy_async(void *dst, const void *src, bool valid);
void emulator_copy_commit();
void emulator_copy_wait(int groups);

/* A warp's part of a wgmma (wgmma.h): RUN adds to the sums of its lanes. */
struct emulator_product {
    float *d[32];
    uint64_t a, b;
    int warp; /* of the warpgroup */
    void (*run)(const emulator_product *);
};
/* Of the running warp; products are computed at once, or when they are waited for, by the seed. */
void emulator_multiply(const emulator_product *p);
void emulator_multiply_commit();
void emulator_multiply_wait(int groups);
void emulator_multiply_fence();
/* What this thread copied is meant for products from the next barrier on: without it a product fails. */
void emulator_publish();

/* Barriers in shared memory (tma.h). */
void emulator_barrier_init(const void *barrier, unsigned count);
void emulator_barrier_publish();
/* One arrival, with BYTES announced before it. */
void emulator_barrier_arrive(const void *barrier, unsigned bytes);
/* A millisecond later at every look: nobody waits in real time. */
extern "C" uint64_t emulator_nanoseconds(void);
/* The clock of events goes on by MS at once: a kernel that a test wants slow, however busy the machine is. */
extern "C" void emulator_take(double ms);
/* Waits until the phase of PARITY has ended; false only where EMULATOR_TMA loses copies and nothing moves any
 * more. */
bool emulator_barrier_passed(const void *barrier, unsigned parity);
/* The box of MAP at AT, RANK numbers. */
void emulator_box_load(void *shared, const CUtensorMap *map, const void *barrier, int rank, const int at[5]);

static inline float __uint_as_float(uint32_t x)
{
    float f;
    memcpy(&f, &x, 4);
    return f;
}

static inline uint32_t __float_as_uint(float f)
{
    uint32_t x;
    memcpy(&x, &f, 4);
    return x;
}

static inline float __fmul_rn(float a, float b)
{
    return a * b;
}

static inline float __fadd_rn(float a, float b)
{
    return a + b;
}

static inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}

static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}

template <class T> static inline T atomicAdd(T *p, T x)
{
    T old = *p;
    *p = old + x;
    return old;
}

template <class T> static inline T __ldg(const T *p)
{
    return *p;
}

#endif
