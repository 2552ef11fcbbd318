/* layer_norm: the widths of the networks, odd ones, and large means. */
#include "norms.h"

static void cases(struct check *ck)
{
    static const struct norm_case list[] = {
        {1, 1, 1, 2, 0, 0, 1, 1e-5f, 0, 0},     {1, 1, 3, 1, 0, 0, 1, 1e-5f, 0, 0}, /* variance 0 */
        {2, 1, 77, 33, 0, 0, 1, 1e-5f, 0, 0},   {1, 1, 77, 768, 0, 0, 1, 1e-5f, 0, 0},
        {1, 1, 77, 1024, 0, 0, 1, 1e-5f, 0, 0}, {1, 1, 40, 320, 0, 0, 1, 1e-5f, 0, 0},
        {2, 1, 16, 640, 0, 0, 1, 1e-5f, 0, 0},  {1, 1, 9, 1280, 0, 0, 1, 1e-5f, 0, 0},
        {3, 1, 5, 17, 0, 0, 1, 1e-5f, 3, 4},    {1, 2, 5, 64, 0, 0, 1, 1e-5f, 64, 64},
        {1, 1, 9, 320, 0, 10, 1, 1e-5f, 0, 0},  {1, 1, 9, 129, 0, -30, 2, 1e-5f, 0, 0},
        {1, 1, 9, 64, 0, 0, 200, 1e-5f, 0, 0},  {1, 1, 9, 64, 0, 0, 1e-4f, 1e-5f, 0, 0},
        {1, 1, 1, 5000, 0, 1, 1, 1e-6f, 0, 0},  {1, 1, 2, 9000, 0, 1, 1, 1e-6f, 8, 8},
        {1, 1, 1, 16400, 0, 0, 1, 1e-6f, 0, 0}, {1, 1, 9, 320, 0, 200, 1, 1e-5f, 0, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        norm_run(ck, list[i]);
}

static void bench(struct check *ck, const struct tier *t)
{
    static const struct norm_case list[] = {
        {1, 1, 4096, 320, 0, 0, 1, 1e-5f, 0, 0},
        {1, 1, 1024, 640, 0, 0, 1, 1e-5f, 0, 0},
        {1, 1, 256, 1280, 0, 0, 1, 1e-5f, 0, 0},
        {1, 1, 77, 1024, 0, 0, 1, 1e-5f, 0, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        norm_bench(ck, t, list[i]);
}

const struct op_check check_layer_norm = {OP_layer_norm, cases, norm_round, norm_golden, bench, NULL};
