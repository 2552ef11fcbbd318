/* Normal numbers as torch.randn draws them on a CUDA generator: Philox 4x32-10 with curand's Box-Muller.
 * Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The order of
 * the numbers: PyTorch, aten/src/ATen/native/cuda/DistributionTemplates.h; the transform: curand_normal.h,
 * _curand_box_muller. */
#include <math.h>

#include "ref.h"

struct philox {
    uint32_t v[4];
};

/* One block of four numbers: COUNTER in units of blocks, within SUBSEQUENCE. */
static struct philox philox_4x32_10(uint64_t seed, uint64_t subsequence, uint64_t counter)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    struct philox c = {
        {(uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)subsequence, (uint32_t)(subsequence >> 32)}};
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53 * c.v[0], b = (uint64_t)0xCD9E8D57 * c.v[2];
        c = (struct philox){
            {(uint32_t)(b >> 32) ^ c.v[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ c.v[3] ^ k1, (uint32_t)a}};
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return c;
}

/* Two normals from two words: sine first, as curand has it. */
static void box_muller(uint32_t x, uint32_t y, float out[2])
{
    float u = (float)x * 0x1p-32f + 0x1p-33f;
    float v = fmaf((float)y, 0x1p-32f * 6.2831855f, 0x1p-33f * 6.2831855f); /* as nvcc contracts it */
    float s = sqrtf(-2.0f * logf(u));
    out[0] = s * sinf(v);
    out[1] = s * cosf(v);
}

/* Words OFFSET .. OFFSET + 3 of the stream; an offset that is no multiple of 4 straddles two blocks. */
static void four_normals(uint64_t seed, uint64_t thread, uint64_t offset, float out[4])
{
    struct philox block = philox_4x32_10(seed, thread, offset / 4);
    uint32_t word[4];
    for (uint64_t i = 0; i < 4; i++) {
        if (i > 0 && (offset + i) % 4 == 0)
            block = philox_4x32_10(seed, thread, (offset + i) / 4);
        word[i] = block.v[(offset + i) % 4];
    }
    box_muller(word[0], word[1], out);
    box_muller(word[2], word[3], out + 2);
}

/* Element INDEX in the order N C H W into its place in NHWC. */
static void put_nchw(tensor y, size_t index, float v)
{
    size_t w = index % (size_t)y.w, h = index / (size_t)y.w % (size_t)y.h;
    size_t plane = index / (size_t)y.w / (size_t)y.h, c = plane % (size_t)y.c, n = plane / (size_t)y.c;
    half_store(ref_row(y, ref_row_index(y, (int)n, (int)h, (int)w)), y.dtype, c, v);
}

/* The launch of torch: blocks of 256 threads, no more than one wave; each thread draws four numbers a turn
 * and writes them `threads` apart. */
int ref_randn(struct backend *be, tensor y, uint64_t seed, uint64_t offset, enum dtype round,
              struct error *err)
{
    (void)err;
    size_t count = tensor_count(y), blocks = (count + 255) / 256, wave = be->noise_wave / 256;
    size_t threads = (blocks < wave ? blocks : wave) * 256;
    for (size_t thread = 0; thread < threads; thread++) {
        uint64_t word = offset;
        for (size_t base = thread; base < count; base += 4 * threads, word += 4) {
            float four[4];
            four_normals(seed, thread, word, four);
            for (size_t i = 0; i < 4 && base + i * threads < count; i++)
                put_nchw(y, base + i * threads, half_round(four[i], round));
        }
    }
    return 0;
}
