/* The emulator itself: right kernels give right numbers, and each kind of mistake that it promises to find is found. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device.cuh"
#include "launch.h"

static int passed, failed;

static void check(bool held, const char *what)
{
    (held ? passed : failed)++;
    printf("%s %s\n", held ? "ok  " : "FAIL", what);
}

struct args {
    float *out;
    const float *in;
    int mistake;
};

template <class A> static void run(void (*kernel)(A), A a, unsigned blocks, unsigned threads, unsigned shared)
{
    emulator_launch l = {(const void *)(uintptr_t)kernel, cuda_call<A>, {blocks, 1, 1}, threads, shared, &a};
    emulator_run(&l);
}

/* out[i] = in[threads - 1 - i], through shared memory. Mistake 1: no barrier. */
static void reverse(args a)
{
    SHARED_MEMORY(memory);
    float *tile = (float *)memory;
    unsigned t = threadIdx.x, n = blockDim.x;
    tile[t] = a.in[t];
    if (a.mistake != 1)
        __syncthreads();
    a.out[t] = tile[n - 1 - t];
}

/* Two tiles through one buffer by cp.async. Mistake 1: no wait; 2: no barrier before the buffer is filled again. */
static void stream(args a)
{
    SHARED_MEMORY(memory);
    float *tile = (float *)memory;
    unsigned t = threadIdx.x, n = blockDim.x;
    float sum = 0;
    for (int i = 0; i < 2; i++) {
        if (i && a.mistake != 2)
            __syncthreads();
        if (t < n / 4)
            copy_async_16(tile + 4 * t, a.in + n * i + 4 * t, true);
        copy_async_commit();
        if (a.mistake != 1)
            copy_async_wait<0>();
        __syncthreads();
        sum += tile[n - 1 - t];
    }
    a.out[t] = sum;
}

/* Mistake 1: half a warp leaves; 2: half the threads take another barrier's way. */
static void together(args a)
{
    unsigned t = threadIdx.x;
    if (a.mistake == 1 && t % 32 < 16)
        return;
    if (a.mistake == 2 && t < 16)
        shuffle_xor(1, 1);
    else
        a.out[t] = a.mistake == 2 ? (float)(__syncwarp(), 0) : warp_sum(a.in[t]);
}

static void beyond(args a)
{
    SHARED_MEMORY(memory);
    copy_async_16(memory + 16 * threadIdx.x, a.in, true);
    copy_async_commit();
    copy_async_wait<0>();
    a.out[threadIdx.x] = 0;
}

/* One 16x8x16 product by the layout of device.cuh, against plain loops. */
static void product(args a)
{
    SHARED_MEMORY(memory);
    f16 *ma = (f16 *)memory, *mb = ma + 256; /* a [16][16], b [8][16]: columns */
    unsigned l = threadIdx.x;
    for (unsigned i = l; i < 384; i += 32)
        ma[i] = from_float<f16>(a.in[i]);
    __syncwarp();
    uint32_t ra[4], rb[4];
    load_matrix_x4(ra, ma + (l % 16) * 16 + l / 16 * 8);
    load_matrix_x4(rb, mb + (l % 8) * 16 + l / 8 % 2 * 8); /* matrices 2 and 3 repeat 0 and 1 */
    float d[4] = {0, 0, 0, 0};
    mma_16816<f16>(d, ra, rb);
    for (int i = 0; i < 4; i++)
        a.out[(l / 4 + 8 * (i / 2)) * 8 + 2 * (l % 4) + i % 2] = d[i];
}

/* mb as [16][8], read transposed: the same product. */
static void product_transposed(args a)
{
    SHARED_MEMORY(memory);
    f16 *ma = (f16 *)memory, *mb = ma + 256;
    unsigned l = threadIdx.x;
    for (unsigned i = l; i < 256; i += 32)
        ma[i] = from_float<f16>(a.in[i]);
    for (unsigned i = l; i < 128; i += 32)
        mb[i % 16 * 8 + i / 16] = from_float<f16>(a.in[256 + i]);
    __syncwarp();
    uint32_t ra[4], rb[4];
    load_matrix_x4(ra, ma + (l % 16) * 16 + l / 16 * 8);
    load_matrix_x4_transposed(rb, mb + l % 16 * 8);
    float d[4] = {0, 0, 0, 0};
    mma_16816<f16>(d, ra, rb);
    for (int i = 0; i < 4; i++)
        a.out[(l / 4 + 8 * (i / 2)) * 8 + 2 * (l % 4) + i % 2] = d[i];
}

enum { N = 512 };
static float in[N], out[N];

static void prepare()
{
    for (int i = 0; i < N; i++) {
        in[i] = (float)(i * 37 % 101) - 50;
        out[i] = -1;
    }
}

/* True when all of COUNT outputs are what WANT says. */
static bool equals(int count, float (*want)(int))
{
    for (int i = 0; i < count; i++)
        if (!(out[i] == want(i)))
            return false;
    return true;
}

static float want_reverse(int i)
{
    return in[127 - i];
}

static float want_stream(int i)
{
    return in[127 - i] + in[255 - i];
}

static float want_sum(int i)
{
    float sum = 0;
    for (int k = i / 32 * 32; k < i / 32 * 32 + 32; k++)
        sum += in[k];
    return sum;
}

static float want_product(int i)
{
    float sum = 0;
    for (int k = 0; k < 16; k++)
        sum += in[i / 8 * 16 + k] * in[256 + i % 8 * 16 + k];
    return sum;
}

/* How many of 20 runs are right: the order changes from run to run. */
static int right(void (*kernel)(args), int mistake, unsigned threads, unsigned shared, int count, float (*want)(int))
{
    int n = 0;
    for (int i = 0; i < 20; i++) {
        prepare();
        run(kernel, args{out, in, mistake}, 1, threads, shared);
        n += equals(count, want);
    }
    return n;
}

/* True when the kernel ends the program, as a mistake that stops everything must. */
static bool ends(void (*kernel)(args), int mistake, unsigned shared)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr))
            _exit(1);
        run(kernel, args{out, in, mistake}, 1, 64, shared);
        _exit(0);
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

int main()
{
    check(right(reverse, 0, 128, 512, 128, want_reverse) == 20, "shared memory and a barrier");
    check(right(reverse, 1, 128, 512, 128, want_reverse) < 20, "a missing barrier shows");
    check(right(stream, 0, 128, 512, 128, want_stream) == 20, "cp.async, waits and barriers");
    check(right(stream, 1, 128, 512, 128, want_stream) < 20, "a missing wait shows");
    check(right(stream, 2, 128, 512, 128, want_stream) < 20, "a buffer filled too early shows");
    check(right(together, 0, 64, 0, 64, want_sum) == 20, "a sum over the warp");
    check(ends(together, 1, 0), "a warp that lost lanes ends the program");
    check(ends(together, 2, 0), "lanes at different instructions end the program");
    check(ends(beyond, 0, 512), "cp.async beyond shared memory ends the program");
    check(right(product, 0, 32, 768, 128, want_product) == 20, "mma and ldmatrix");
    check(right(product_transposed, 0, 32, 768, 128, want_product) == 20, "ldmatrix.trans");
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
