/* Normal numbers as torch.randn draws them on a CUDA generator; kernels/ref/randn.c has the sources and
 * noise.h the order. A thread of ours is a thread of torch's launch, one turn a block row: four numbers from
 * one block of Philox, stored a launch apart, and moved from N C H W to N H W C on the way. All in registers;
 * the logarithm, the sine and the cosine are the accurate ones (the stack frame that the compiler reports is
 * for angles that never come), and sums are fused where ref fuses them.
 *
 * Latents of a picture are 64 KB to write: the launch is what it costs. */
#include "noise.h"
#include "rows.cuh"

namespace
{

enum { THREADS = 256, TURNS_MAX = 65535 };

struct randn_args {
    void *y;
    size_t y_ld, count, threads; /* threads: of torch's launch */
    unsigned long long seed, offset;
    int c, h, w, type, round;
};

struct philox {
    uint32_t v[4];
};

/* One block of four words: COUNTER in units of blocks, within SUBSEQUENCE. */
DEVICE philox philox_4x32_10(unsigned long long seed, unsigned long long subsequence,
                             unsigned long long counter)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    philox c = {
        {(uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)subsequence, (uint32_t)(subsequence >> 32)}};
    UNROLL
    for (int round = 0; round < 10; round++) {
        uint32_t a = __umulhi(0xD2511F53u, c.v[0]), b = __umulhi(0xCD9E8D57u, c.v[2]);
        c = philox{{b ^ c.v[1] ^ k0, 0xCD9E8D57u * c.v[2], a ^ c.v[3] ^ k1, 0xD2511F53u * c.v[0]}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

/* Words OFFSET .. OFFSET + 3 of the stream: from two blocks when the offset is no multiple of 4. */
DEVICE philox four_words(unsigned long long seed, unsigned long long subsequence, unsigned long long offset)
{
    philox a = philox_4x32_10(seed, subsequence, offset / 4);
    unsigned skip = (unsigned)(offset % 4);
    if (skip == 0)
        return a;
    philox b = philox_4x32_10(seed, subsequence, offset / 4 + 1);
    if (skip == 1)
        return philox{{a.v[1], a.v[2], a.v[3], b.v[0]}};
    if (skip == 2)
        return philox{{a.v[2], a.v[3], b.v[0], b.v[1]}};
    return philox{{a.v[3], b.v[0], b.v[1], b.v[2]}};
}

/* Two normals from two words: sine first, as curand has it. The first line's product is exact; the second is
 * fused, as nvcc does it to curand. */
DEVICE void box_muller(uint32_t x, uint32_t y, float *first, float *second)
{
    float u = (float)x * 0x1p-32f + 0x1p-33f;
    float v = fmaf((float)y, 0x1p-32f * 6.2831855f, 0x1p-33f * 6.2831855f);
    float s = sqrtf(-2.0f * logf(u));
    *first = s * sinf(v);
    *second = s * cosf(v);
}

/* Element INDEX in the order N C H W into its place. */
DEVICE void put_nchw(const randn_args &a, size_t index, float v)
{
    if (index >= a.count)
        return;
    size_t w = index % (size_t)a.w, h = index / (size_t)a.w % (size_t)a.h,
           plane = index / (size_t)a.w / (size_t)a.h;
    size_t c = plane % (size_t)a.c, n = plane / (size_t)a.c;
    if (a.round == DTYPE_F16)
        v = to_float(from_float<f16>(v));
    else if (a.round == DTYPE_BF16)
        v = to_float(from_float<bf16>(v));
    store_any(a.y, a.type, ((n * (size_t)a.h + h) * (size_t)a.w + w) * a.y_ld + c, v);
}

__global__ void __launch_bounds__(THREADS) draw_normals(randn_args a)
{
    size_t thread = (size_t)blockIdx.x * THREADS + threadIdx.x;
    for (size_t turn = blockIdx.y; turn * 4 * a.threads + thread < a.count; turn += gridDim.y) {
        size_t base = turn * 4 * a.threads + thread;
        philox word = four_words(a.seed, thread, a.offset + 4 * turn);
        float v[4];
        box_muller(word.v[0], word.v[1], &v[0], &v[1]);
        box_muller(word.v[2], word.v[3], &v[2], &v[3]);
        UNROLL
        for (int i = 0; i < 4; i++)
            put_nchw(a, base + (size_t)i * a.threads, v[i]);
    }
}

} // namespace

int cuda_randn(struct backend *be, tensor y, uint64_t seed, uint64_t offset, enum dtype round,
               struct error *err)
{
    randn_args a;
    memset(&a, 0, sizeof a);
    a.y = y.data;
    a.y_ld = (size_t)y.ld;
    a.type = y.dtype;
    a.c = y.c;
    a.h = y.h;
    a.w = y.w;
    a.count = tensor_count(y);
    a.seed = seed;
    a.offset = offset;
    a.round = round;
    a.threads =
        least((a.count + 255) / 256, be->noise_wave / 256) * 256; /* blocks of torch: at most a wave */
    size_t turns = least((a.count + 4 * a.threads - 1) / (4 * a.threads), TURNS_MAX);
    return launch(be, draw_normals, dim3((unsigned)(a.threads / THREADS), (unsigned)turns), THREADS, 0, a,
                  err);
}
