/* What wgmma.cuh says in PTX, said in C: each warp of a warpgroup computes its own 16 rows, at once or as
 * late as its wait allows (by the seed), so that an operand that is overwritten too early, or sums that are
 * read too early, give wrong numbers. Operands are found through their descriptors, swizzle and all. */
#ifndef LATENTD_EMULATOR_WGMMA_H
#define LATENTD_EMULATOR_WGMMA_H

static inline uint64_t wgmma_operand(const void *shared)
{
    uint64_t at = (uint64_t)((const unsigned char *)shared - emulator_shared());
    if (at % 1024 != 0)
        emulator_fail("an operand of wgmma that is not aligned to 1024");
    return (at >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

/* 16 numbers of row ROW of the operand: two chunks of 16 bytes. */
template <class T> static inline void emulated_operand_row(float to[16], uint64_t operand, int row)
{
    uint64_t start = (operand & 0x3fff) << 4, atoms = (operand >> 32 & 0x3fff) << 4;
    if (operand >> 62 != 1 || (operand >> 49 & 7) != 0)
        emulator_fail("an operand of wgmma in another layout than this emulator knows");
    for (int chunk = 0; chunk < 2; chunk++) {
        uint64_t at = start + (uint64_t)(row / 8) * atoms + (uint64_t)(row % 8) * 128 + (uint64_t)chunk * 16;
        at ^= (at >> 7 & 7) << 4; /* the 128-byte swizzle works on addresses */
        const uint16_t *from = (const uint16_t *)(const void *)(emulator_shared() + at);
        for (int i = 0; i < 8; i++)
            to[8 * chunk + i] = to_float(T{from[i]});
    }
}

template <class T, int SLICES> static void emulated_wgmma_run(const emulator_product *p)
{
    float x[16][16], w[16], d[16];
    for (int row = 0; row < 16; row++)
        emulated_operand_row<T>(x[row], p->a, p->warp * 16 + row);
    for (int col = 0; col < 64 * SLICES; col++) {
        emulated_operand_row<T>(w, p->b, col);
        for (int row = 0; row < 16; row++) {
            d[row] = 0;
            for (int k = 0; k < 16; k++)
                d[row] += x[row][k] * w[k];
        }
        for (int row = 0; row < 16; row++)
            p->d[row % 8 * 4 + col % 8 / 2][(col / 64 * 8 + col % 64 / 8) * 4 + row / 8 * 2 + col % 2] +=
                d[row];
    }
}

struct emulated_wgmma {
    float *d;
    uint64_t a, b;
};

template <class T, int SLICES> static void emulated_wgmma_work(void *lane[32])
{
    const auto *mine = (const emulated_wgmma *)lane[0];
    emulator_product p = {{}, mine->a, mine->b, (int)(threadIdx.x / 32 % 4), emulated_wgmma_run<T, SLICES>};
    for (int l = 0; l < 32; l++) {
        const auto *m = (const emulated_wgmma *)lane[l];
        if (m->a != p.a || m->b != p.b)
            emulator_fail("lanes of wgmma with different operands");
        p.d[l] = m->d;
    }
    emulator_multiply(&p);
}

template <class T, int SLICES> static inline void wgmma(float (&d)[SLICES][8][4], uint64_t a, uint64_t b)
{
    emulated_wgmma mine = {&d[0][0][0], a, b};
    emulator_warp("wgmma", &mine, emulated_wgmma_work<T, SLICES>);
}

static void emulated_wgmma_commit_work(void **)
{
    emulator_multiply_commit();
}

static inline void wgmma_commit()
{
    emulator_warp("wgmma.commit_group", nullptr, emulated_wgmma_commit_work);
}

template <int N> static void emulated_wgmma_wait_work(void **)
{
    emulator_multiply_wait(N);
}

template <int N> static inline void wgmma_wait()
{
    emulator_warp("wgmma.wait_group", nullptr, emulated_wgmma_wait_work<N>);
}

static void emulated_wgmma_fence_work(void **)
{
    emulator_multiply_fence();
}

static inline void wgmma_fence()
{
    emulator_warp("wgmma.fence", nullptr, emulated_wgmma_fence_work);
}

/* Counts against the copies and stores that come after it. */
static inline void wgmma_publish()
{
    emulator_publish();
}

#endif
