/* The emulator itself: right kernels give right numbers, and each kind of mistake that it promises to find is found. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device.cuh"
#include "launch.h"
#include "tma.cuh"

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

/* Three boxes of eight rows and 64 columns by TMA through two stages, from a tensor of 20 rows: thread T sums column T.
 * Mistakes, by the copies: 1 no bytes announced; 2 half of the bytes; 3 another swizzle; 4 one row on; 5 one column on;
 * 6 one row too many. By the waits: 7 the other parity for what has come; 8 for what is free; 9 none for what is free;
 * 10 no arrival; 11 barriers not published; 12 no barrier of the block behind them. */
enum { BOX_ROWS = 8, BOX_COLS = 64, BOX_STEPS = 3, BOX_BYTES = BOX_ROWS * BOX_COLS * 2, SOURCE_ROWS = 20 };
static f16 source[SOURCE_ROWS * BOX_COLS];

static CUtensorMap source_map(CUtensorMapSwizzle swizzle, unsigned rows)
{
    CUtensorMap map;
    const cuuint64_t dim[] = {BOX_COLS, SOURCE_ROWS, 1}, stride[] = {BOX_COLS * 2, sizeof source};
    const cuuint32_t box[] = {BOX_COLS, rows, 1}, step[] = {1, 1, 1};
    for (int i = 0; i < SOURCE_ROWS * BOX_COLS; i++)
        source[i] = from_float<f16>((float)(i * 37 % 101) - 50);
    if (cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3, source, dim, stride, box, step,
                               CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
        abort();
    return map;
}

static void copy_boxes(const args &a, unsigned char *memory, uint64_t *full, uint64_t *empty)
{
    CUtensorMap map = source_map(a.mistake == 3 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
                                 a.mistake == 6 ? BOX_ROWS + 1 : BOX_ROWS);
    for (int i = 0; i < BOX_STEPS; i++) {
        unsigned parity = i < 2 ? 1 : 0;
        if (a.mistake != 9)
            barrier_passed(empty + i % 2, a.mistake == 8 ? parity ^ 1 : parity);
        if (a.mistake == 1)
            barrier_arrive(full + i % 2);
        else
            barrier_expect(full + i % 2, a.mistake == 2 ? BOX_BYTES / 2 : BOX_BYTES);
        box_load(memory + i % 2 * BOX_BYTES, &map, full + i % 2, a.mistake == 5, i * BOX_ROWS + (a.mistake == 4), 0);
    }
}

static void boxes(args a)
{
    SHARED_MEMORY(memory);
    uint64_t *full = (uint64_t *)(memory + 3 * BOX_BYTES), *empty = full + 2;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, 2);
        }
        if (a.mistake != 11)
            barrier_publish();
    }
    if (a.mistake != 12)
        __syncthreads();
    if (threadIdx.x >= 64) {
        if (threadIdx.x == 64)
            copy_boxes(a, memory, full, empty);
        return;
    }
    float sum = 0;
    for (int i = 0; i < BOX_STEPS; i++) {
        unsigned parity = i < 2 ? 0 : 1;
        barrier_passed(full + i % 2, a.mistake == 7 ? parity ^ 1 : parity);
        for (unsigned row = 0; row < BOX_ROWS; row++) {
            const f16 *at = (const f16 *)(memory + i % 2 * BOX_BYTES + row * 128 + (threadIdx.x / 8 ^ row) * 16);
            sum += to_float(at[threadIdx.x % 8]) * (float)(i * BOX_ROWS + (int)row + 1);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0 && a.mistake != 10)
            barrier_arrive(empty + i % 2);
    }
    a.out[threadIdx.x] = sum;
}

static float want_boxes(int i)
{
    float sum = 0;
    for (int row = 0; row < SOURCE_ROWS; row++)
        sum += ((float)((row * BOX_COLS + i) * 37 % 101) - 50) * (float)(row + 1);
    return sum;
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

/* True when a mistake in `boxes` gives wrong numbers in one of 20 runs, or ends the program. */
static bool boxes_show(int mistake)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr))
            _exit(0);
        _exit(right(boxes, mistake, 96, 4 * BOX_BYTES, 64, want_boxes) < 20);
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && status != 0;
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
    static const char *const mistakes[] = {
        "bytes that nobody announced show",       "bytes that never come show",
        "another swizzle shows",                  "a box one row on shows",
        "a box one column on shows",              "a box of one row too many shows",
        "a wait for the wrong parity shows",      "a producer's wait for the wrong parity shows",
        "a stage filled before it is free shows", "a stage that nobody frees shows",
        "barriers that are not published show",   "barriers used before they are made show"};
    check(right(boxes, 0, 96, 4 * BOX_BYTES, 64, want_boxes) == 20, "boxes, their bytes and barriers");
    for (int i = 0; i < 12; i++)
        check(boxes_show(i + 1), mistakes[i]);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
