/* See noise.h: bookkeeping of the generator; the numbers themselves come from the backend's randn. */
#include "noise.h"

uint64_t noise_advance(size_t count, size_t wave_threads)
{
    enum { BLOCK = 256, PER_CALL = 4 };
    if (count == 0)
        return 0;
    size_t blocks = (count + BLOCK - 1) / BLOCK, wave = wave_threads / BLOCK;
    size_t grid = blocks < wave ? blocks : wave;
    return ((count - 1) / (BLOCK * grid * PER_CALL) + 1) * PER_CALL;
}

tensor noise_draw(pass *p, struct noise *g, int n, int h, int w, int c)
{
    tensor y = randn(p, n, h, w, c, g->seed, g->offset, g->round);
    g->offset += noise_advance((size_t)n * (size_t)h * (size_t)w * (size_t)c, pass_noise_wave(p));
    return y;
}
