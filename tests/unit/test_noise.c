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
        CHECK(noise_advance(cases[i].count) == cases[i].advance, "%zu: %llu", cases[i].count,
              (unsigned long long)noise_advance(cases[i].count));
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

TEST_MAIN()
