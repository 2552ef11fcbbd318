/* What device.cuh says in PTX, said in C: included by it in the emulated build, after f16 and bf16. */
#ifndef LATENTD_EMULATOR_INSTRUCTIONS_H
#define LATENTD_EMULATOR_INSTRUCTIONS_H

#define threadIdx (emulator_here->thread)
#define blockIdx  (emulator_here->block)
#define blockDim  (emulator_here->block_dim)
#define gridDim   (emulator_here->grid)

static inline float to_float(f16 x)
{
    return emulator_halves[x.bits];
}

static inline float to_float(bf16 x)
{
    return bf16_to_f32(x.bits);
}

template <> inline f16 from_float<f16>(float x)
{
    return f16{f16_from_f32(x)};
}

template <> inline bf16 from_float<bf16>(float x)
{
    return bf16{bf16_from_f32(x)};
}

template <class T> static inline uint32_t pack2(float lo, float hi)
{
    return (uint32_t)from_float<T>(lo).bits | (uint32_t)from_float<T>(hi).bits << 16;
}

static inline void emulator_aligned(const void *p, const char *what)
{
    if ((uintptr_t)p % 16 != 0)
        emulator_fail(what);
}

struct emulated_load_matrix {
    uint32_t *r;
    const uint16_t *row;
};

template <bool TRANSPOSED> static void emulated_load_matrix_work(void *lane[32])
{
    for (int l = 0; l < 32; l++) {
        auto *m = (emulated_load_matrix *)lane[l];
        for (int i = 0; i < 4; i++) {
            uint32_t bits = 0;
            for (int j = 0; j < 2; j++) {
                int row = TRANSPOSED ? 2 * (l % 4) + j : l / 4, col = TRANSPOSED ? l / 4 : 2 * (l % 4) + j;
                bits |= (uint32_t)((emulated_load_matrix *)lane[8 * i + row])->row[col] << (16 * j);
            }
            m->r[i] = bits;
        }
    }
}

static inline void load_matrix_x4(uint32_t r[4], const void *row)
{
    emulator_aligned(row, "ldmatrix of a row that is not aligned to 16");
    uint32_t out[4]; /* r may be where other lanes' addresses come from */
    emulated_load_matrix mine = {out, (const uint16_t *)row};
    emulator_warp("ldmatrix", &mine, emulated_load_matrix_work<false>);
    memcpy(r, out, sizeof out);
}

static inline void load_matrix_x4_transposed(uint32_t r[4], const void *row)
{
    emulator_aligned(row, "ldmatrix.trans of a row that is not aligned to 16");
    uint32_t out[4];
    emulated_load_matrix mine = {out, (const uint16_t *)row};
    emulator_warp("ldmatrix.trans", &mine, emulated_load_matrix_work<true>);
    memcpy(r, out, sizeof out);
}

struct emulated_mma {
    float *d;
    const uint32_t *a, *b;
};

/* The halves of a word as floats. */
template <class T> static inline void emulated_unpack(uint32_t word, float *lo, float *hi)
{
    *lo = to_float(T{(uint16_t)word});
    *hi = to_float(T{(uint16_t)(word >> 16)});
}

template <class T> static void emulated_mma_work(void *lane[32])
{
    typedef float row8 __attribute__((vector_size(32), aligned(4)));
    float a[16][16], b[16][8], d[16][8];
    for (int l = 0; l < 32; l++) {
        const auto *m = (const emulated_mma *)lane[l];
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; i++) {
            float *to = &a[g + 8 * (i % 2)][2 * t + 8 * (i / 2)];
            emulated_unpack<T>(m->a[i], to, to + 1);
        }
        for (int i = 0; i < 2; i++)
            emulated_unpack<T>(m->b[i], &b[2 * t + 8 * i][g], &b[2 * t + 8 * i + 1][g]);
    }
    for (int row = 0; row < 16; row++) {
        row8 sum = {}, of_b;
        for (int k = 0; k < 16; k++) {
            memcpy(&of_b, b[k], sizeof of_b);
            sum += a[row][k] * of_b;
        }
        memcpy(d[row], &sum, sizeof sum);
    }
    for (int l = 0; l < 32; l++) {
        auto *m = (emulated_mma *)lane[l];
        for (int i = 0; i < 4; i++)
            m->d[i] += d[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
    }
}

template <class T> static inline void mma_16816(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    emulated_mma mine = {d, a, b};
    emulator_warp("mma", &mine, emulated_mma_work<T>);
}

static inline void copy_async_16(void *shared, const void *global, bool valid)
{
    emulator_aligned(shared, "cp.async to an address that is not aligned to 16");
    emulator_aligned(global, "cp.async from an address that is not aligned to 16");
    emulator_copy_async(shared, global, valid);
}

static inline void copy_async_commit()
{
    emulator_copy_commit();
}

template <int N> static inline void copy_async_wait()
{
    emulator_copy_wait(N);
}

struct emulated_shuffle {
    float in, out;
    int from;
};

static void emulated_shuffle_work(void *lane[32])
{
    for (int l = 0; l < 32; l++) {
        auto *m = (emulated_shuffle *)lane[l];
        m->out = ((emulated_shuffle *)lane[m->from & 31])->in;
    }
}

static inline float shuffle(float x, int lane)
{
    emulated_shuffle mine = {x, 0, lane};
    emulator_warp("shfl", &mine, emulated_shuffle_work);
    return mine.out;
}

static inline float shuffle_xor(float x, int mask)
{
    return shuffle(x, (int)(threadIdx.x % 32) ^ mask);
}

static inline float fast_exp2(float x)
{
    return exp2f(x);
}

static inline float fast_reciprocal(float x)
{
    float y = 1.0f / x;
    return fabsf(y) < 0x1p-126f ? copysignf(0.0f, y) : y;
}

#endif
