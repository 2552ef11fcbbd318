/* Noise as torch draws it on a CUDA generator: Philox 4x32-10 and Box-Muller.
 *
 * torch launches min(ceil(count / 256), wave) blocks of 256 threads; thread i makes four normals at a time
 * from the Philox stream (seed, subsequence i, offset) and writes them `threads` apart. So while a draw fits
 * one wave of the card, element i is the first normal of subsequence i; a larger draw depends on the card.
 * NOISE_WAVE_THREADS says which is the reference; backend_options.noise_wave chooses another
 * (LATENTD_NOISE_GPU). Sources: pytorch aten/src/ATen/native/cuda/DistributionTemplates.h,
 * curand_philox4x32_x.h, curand_normal.h. */
#ifndef LATENTD_NOISE_H
#define LATENTD_NOISE_H

#include "ops.h"

/* Threads in one wave: multiprocessors x 2048. The reference card is an H100/H200 with 132 multiprocessors.
 */
enum { NOISE_WAVE_THREADS = 132 * 2048 };

struct noise {
    uint64_t seed;
    uint64_t offset;  /* grows with every draw, as the generator's */
    enum dtype round; /* type of the model's latents */
};

/* The next draw, [N, H, W, C] F32 (drawn in the order N C H W), as torch.randn((n, c, h, w)) would. */
tensor noise_draw(pass *p, struct noise *g, int n, int h, int w, int c);
/* How far a draw of COUNT numbers moves the generator's offset, on a card with WAVE_THREADS. */
uint64_t noise_advance(size_t count, size_t wave_threads);

#endif
