/* The generator's bookkeeping, and that draws follow one another as torch's do. */
#include "test.h"

#include "backend.h"
#include "noise.h"
#include "region.h"

/* torch's calc_execution_policy on a card of 132 multiprocessors x 2048 threads:
 * ((numel - 1) / (256 * grid * 4) + 1) * 4 with grid = min(ceil(numel / 256), 1056). */
TEST(offset_moves_as_the_cuda_generator)
{
    static const struct {
        size_t count;
        uint64_t advance;
    } cases[] = {
        {0, 0},      {1, 4},       {255, 4},     {256, 4},     {257, 4},      {16384, 4},       {270336, 4},
        {270337, 4}, {1081344, 4}, {1081345, 8}, {2162688, 8}, {2162689, 12}, {100000000, 372},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK(noise_advance(cases[i].count, NOISE_WAVE_THREADS) == cases[i].advance, "%zu: %llu",
              cases[i].count, (unsigned long long)noise_advance(cases[i].count, NOISE_WAVE_THREADS));
}

TEST(draws_are_those_of_seed_and_offset)
{
    enum { N = 2 * 3 * 5 * 4 };
    struct backend_options opt = {.kind = "ref"};
    struct backend *be = NULL;
    struct region *region = malloc(sizeof *region);
    struct error err = {0};
    void *memory = aligned_alloc(REGION_ALIGN, 1 << 16);
    float first[N], second[N], again[N], other[N];
    if (!CHECK(backend_open(&be, &opt, &err) == 0, "%s", err.msg))
        return;
    region_init(region, memory, 1 << 16);
    pass p = {be, region, &err};
    struct noise g = {.seed = 42, .round = DTYPE_F32};
    tensor a = noise_draw(&p, &g, 2, 3, 5, 4), b = noise_draw(&p, &g, 2, 3, 5, 4);
    CHECK(g.offset == 8 && a.n == 2 && a.h == 3 && a.w == 5 && a.c == 4);
    tensor c = randn(&p, 2, 3, 5, 4, 42, 4, DTYPE_F32), d = randn(&p, 2, 3, 5, 4, 43, 0, DTYPE_F32);
    tensor_to_host(&p, a, first);
    tensor_to_host(&p, b, second);
    tensor_to_host(&p, c, again);
    tensor_to_host(&p, d, other);
    CHECK(err.code == 0, "%s", err.msg);
    CHECK(memcmp(second, again, sizeof second) == 0);
    CHECK(memcmp(first, second, sizeof first) != 0 && memcmp(first, other, sizeof first) != 0);
    /* torch.randn(1, device="cuda", generator seeded with 42) */
    CHECK(fabsf(first[0] - 0.194018f) < 1e-5f, "%.7f", (double)first[0]);
    tensor_free(&p, &a);
    tensor_free(&p, &b);
    tensor_free(&p, &c);
    tensor_free(&p, &d);
    backend_close(&be);
    free(memory);
    free(region);
}

/* COUNT numbers of seed 42 at OFFSET on a card with WAVE threads; free() them. */
static float *draw(size_t wave, int count, uint64_t offset)
{
    struct backend_options opt = {.kind = "ref", .noise_wave = wave};
    struct backend *be = NULL;
    struct error err = {0};
    float *host = malloc((size_t)count * sizeof *host);
    if (CHECK(host && backend_open(&be, &opt, &err) == 0, "%s", err.msg)) {
        tensor y = {.n = 1, .h = 1, .w = count, .c = 1, .ld = 1, .data = host};
        be->ops.randn(be, y, 42, offset, DTYPE_F32, &err);
        CHECK(err.code == 0, "%s", err.msg);
    }
    backend_close(&be);
    return host;
}

/* A draw larger than a wave: thread t of a card with W threads writes its four normals of turn r at
 * r 4 W + i W + t. Four waves of a large card have all four normals of each thread. */
TEST(a_draw_beyond_one_wave_is_that_of_the_chosen_card)
{
    enum { W = 512, COUNT = 4 * W + 3 * W + 100, BIG = NOISE_WAVE_THREADS };
    float *small = draw(W, COUNT, 8), *first = draw(0, 4 * BIG, 8), *second = draw(0, 4 * BIG, 12);
    int wrong = 0;
    for (size_t i = 0; i < COUNT; i++) {
        const float *turn = i < 4 * W ? first : second;
        size_t rest = i % (4 * W);
        wrong += small[i] != turn[rest / W * BIG + rest % W];
    }
    CHECK(wrong == 0, "%d of %d differ", wrong, (int)COUNT);
    CHECK(noise_advance(COUNT, W) == 8 && noise_advance(4 * W, W) == 4);
    free(small);
    free(first);
    free(second);
}

TEST_MAIN()
