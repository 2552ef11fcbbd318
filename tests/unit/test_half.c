/* half.h: every 16-bit number survives the way to fp32 and back, and rounding goes to the nearest, ties to
 * even. */
#include "half.h"
#include "test.h"

static int is_nan16(uint16_t h, uint16_t exponent)
{
    return (h & exponent) == exponent && (h & 0x7fff) != exponent;
}

TEST(every_number_survives)
{
    for (uint32_t i = 0; i <= 0xffff; i++) {
        uint16_t h = (uint16_t)i;
        uint16_t f16 = f16_from_f32(f16_to_f32(h)), bf16 = bf16_from_f32(bf16_to_f32(h));
        if (is_nan16(h, 0x7c00) ? !is_nan16(f16, 0x7c00) : f16 != h)
            CHECK(0, "f16 %04x became %04x", h, f16);
        if (is_nan16(h, 0x7f80) ? !is_nan16(bf16, 0x7f80) : bf16 != h)
            CHECK(0, "bf16 %04x became %04x", h, bf16);
    }
}

TEST(known_numbers)
{
    CHECK(f16_to_f32(0x3c00) == 1.0f);
    CHECK(f16_to_f32(0x0001) == 0x1p-24f);
    CHECK(f16_to_f32(0x7bff) == 65504.0f);
    CHECK(f16_to_f32(0xc000) == -2.0f);
    CHECK(isinf(f16_to_f32(0xfc00)) && f16_to_f32(0xfc00) < 0);
    CHECK(bf16_to_f32(0x3f80) == 1.0f);
    CHECK(bf16_to_f32(0xc040) == -3.0f);
}

/* Walks up TYPE's positive numbers: what lies between two neighbours goes to the nearer, the middle to the
 * even one. */
static void check_between(enum dtype type, uint16_t last)
{
    for (uint16_t h = 0; h < last; h++) {
        uint16_t up = (uint16_t)(h + 1), even = h & 1 ? up : h;
        double a = (double)half_load(&h, type, 0), b = (double)half_load(&up, type, 0);
        float middle = (float)((a + b) / 2);
        uint16_t got[3];
        half_store(got, type, 0, middle);
        half_store(got, type, 1, nextafterf(middle, 0));
        half_store(got, type, 2, nextafterf(middle, INFINITY));
        if (got[0] != even || got[1] != h || got[2] != up)
            CHECK(0, "between %04x and %04x: %04x %04x %04x", h, up, got[1], got[0], got[2]);
        half_store(got, type, 0, -middle);
        if (got[0] != (even | 0x8000))
            CHECK(0, "between -%04x and -%04x: %04x", h, up, got[0]);
    }
}

TEST(f16_rounds_to_nearest_even)
{
    check_between(DTYPE_F16, 0x7bff);
}

/* Subnormal middles of bfloat16 are subnormal in fp32 too, and exact there. */
TEST(bf16_rounds_to_nearest_even)
{
    check_between(DTYPE_BF16, 0x7f7f);
}

TEST(ends_of_the_range)
{
    CHECK(f16_from_f32(65519.996f) == 0x7bff);
    CHECK(f16_from_f32(65520.0f) == 0x7c00);
    CHECK(f16_from_f32(-1e30f) == 0xfc00);
    CHECK(f16_from_f32(0x1p-25f) == 0);
    CHECK(f16_from_f32(0x1.000002p-25f) == 1);
    CHECK(f16_from_f32(-1e-30f) == 0x8000);
    CHECK(bf16_from_f32(0x1.fffffep127f) == 0x7f80);
    CHECK(is_nan16(bf16_from_f32(f32_from_bits(0x7f800001)), 0x7f80));
    CHECK(is_nan16(bf16_from_f32(f32_from_bits(0xffffffff)), 0x7f80));
    CHECK(is_nan16(f16_from_f32(f32_from_bits(0x7f800001)), 0x7c00));
}

TEST(unaligned_arrays_are_read)
{
    unsigned char bytes[9] = {0xff};
    float f = 1.5f;
    memcpy(bytes + 1, &f, sizeof f);
    memcpy(bytes + 5, &f, sizeof f);
    CHECK(half_load(bytes + 1, DTYPE_F32, 1) == 1.5f);
    half_store(bytes + 1, DTYPE_BF16, 1, -2.0f);
    CHECK(half_load(bytes + 1, DTYPE_BF16, 1) == -2.0f);
    CHECK(half_round(1.0f + 0x1p-9f, DTYPE_BF16) == 1.0f);
    CHECK(half_round(1.1f, DTYPE_F32) == 1.1f);
}

TEST_MAIN()
