/* Matrix micro-kernel of the AMX tier: bf16, fp32 sums, 32 rows x 32 columns in four accumulator tiles.
 *
 * Bytes and FLOPs: a step of 32 channels takes four dot products (64 cycles) and four tile loads (32 cycles
 * from the first level), so it is bound by arithmetic while A and B are near. B of a call (k_block = 288
 * products x 32 columns, 18 KB) stays in the first level for all row tiles of a block. For a 3x3 convolution
 * the call covers 9 positions x 32 channels, whose rows of A overlap: 6.5 KB of new A a call of 576 cycles.
 * Accumulators are loaded and stored once a call (8 KB).
 *
 * Rows come in sixteens; a rest of fewer is run with tiles configured for that many rows. */
#ifdef LATENTD_EMULATE
#define KERNEL gemm_amx_emulated
#define NAME   "amx-emulated"
#else
#define KERNEL gemm_amx
#define NAME   "amx"
#endif
#include "tile_amx.h"

#include <time.h>

#include "tier.h"

enum { NR = 32, ROWS = 16, STEP = 32 };

/* Tiles 0 to 3: sums [row half][column half]; 4, 5: A; 6, 7: B. */
static void configure(int rows)
{
    struct tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.row_bytes[t] = 64;
        c.rows[t] = (uint8_t)(t < 6 ? rows : ROWS);
    }
    tile_configure(&c);
}

static void begin(void)
{
    configure(ROWS);
}

static void end(void)
{
    tile_done();
}

/* 32 rows. */
static void run_two(const struct gemm_tile *t)
{
    const char *b = t->b;
    const size_t line = NR * 4, half = (size_t)ROWS * t->lda;
    float *c0 = t->c, *c1 = t->c + ROWS * NR;
    if (t->add) {
        tile_load(0, c0, line);
        tile_load(1, c0 + ROWS, line);
        tile_load(2, c1, line);
        tile_load(3, c1 + ROWS, line);
    } else {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    }
    for (int tap = 0; tap < t->taps; tap++) {
        const char *a = t->a + t->tap[tap];
        for (int k = 0; k < t->k; k += STEP, a += STEP * 2, b += STEP * NR * 2) {
            tile_load(6, b, line);
            tile_load(4, a, t->lda);
            tile_dot(0, 4, 6);
            tile_load(7, b + 64, line);
            tile_dot(1, 4, 7);
            tile_load(5, a + half, t->lda);
            tile_dot(2, 5, 6);
            tile_dot(3, 5, 7);
        }
    }
    tile_store(0, c0, line);
    tile_store(1, c0 + ROWS, line);
    tile_store(2, c1, line);
    tile_store(3, c1 + ROWS, line);
}

/* Up to 16 rows, as many as the tiles are configured for. */
static void run_one(const struct gemm_tile *t)
{
    const char *b = t->b;
    const size_t line = NR * 4;
    if (t->add) {
        tile_load(0, t->c, line);
        tile_load(1, t->c + ROWS, line);
    } else {
        tile_zero(0);
        tile_zero(1);
    }
    for (int tap = 0; tap < t->taps; tap++) {
        const char *a = t->a + t->tap[tap];
        for (int k = 0; k < t->k; k += STEP, a += STEP * 2, b += STEP * NR * 2) {
            tile_load(4, a, t->lda);
            tile_load(6, b, line);
            tile_load(7, b + 64, line);
            tile_dot(0, 4, 6);
            tile_dot(1, 4, 7);
        }
    }
    tile_store(0, t->c, line);
    tile_store(1, t->c + ROWS, line);
}

static void run(int rows, const struct gemm_tile *tile)
{
    struct gemm_tile t = *tile;
    if (rows == 2 * ROWS) {
        run_two(&t);
        return;
    }
    for (; rows > 0; rows -= ROWS) {
        if (rows < ROWS)
            configure(rows);
        run_one(&t);
        t.a += ROWS * t.lda;
        t.c += ROWS * NR;
        if (rows < ROWS)
            configure(ROWS);
    }
}

/* The dot products of a step on zeros, with its loads, for some milliseconds. */
static double peak(void)
{
    static const char zeros[2][ROWS * 64];
    struct timespec t0, t1;
    const int loops = 100000;
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    clock_gettime(CLOCK_MONOTONIC, &t0);
    for (int i = 0; i < loops; i++) {
        tile_load(4, zeros[0], 64);
        tile_load(6, zeros[1], 64);
        tile_dot(0, 4, 6);
        tile_load(7, zeros[1], 64);
        tile_dot(1, 4, 7);
        tile_load(5, zeros[0], 64);
        tile_dot(2, 5, 6);
        tile_dot(3, 5, 7);
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double seconds = (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
    return 4.0 * ROWS * 16 * STEP * 2 * loops / seconds;
}

const struct gemm_kernel KERNEL = {
    .name = NAME,
    .dtype = DTYPE_BF16,
    .mr = 2 * ROWS,
    .nr = NR,
    .m_align = ROWS,
    .k_unit = STEP,
    .k_block = 288,
    .run = run,
    .begin = begin,
    .end = end,
    .peak = peak,
};
