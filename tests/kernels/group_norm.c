/* group_norm and group_norm_silu: the group widths of the networks, odd ones, and large means. */
#include "norms.h"

static void cases(struct check *ck)
{
    static const struct norm_case list[] = {
        {1, 1, 1, 2, 1, 0, 1, 1e-5f, 0, 0},     {1, 1, 1, 32, 32, 0, 1, 1e-5f, 0, 0}, /* variance 0 */
        {1, 1, 7, 33, 11, 0, 1, 1e-5f, 0, 0},   {2, 5, 1, 64, 32, 0, 1, 1e-6f, 0, 0},
        {2, 3, 5, 30, 3, 0, 1, 1e-5f, 0, 0},    {1, 8, 8, 320, 32, 0, 1, 1e-5f, 0, 0},
        {2, 4, 6, 640, 32, 0, 1, 1e-5f, 0, 0},  {1, 4, 4, 1280, 32, 0, 1, 1e-5f, 0, 0},
        {1, 3, 3, 2560, 32, 0, 1, 1e-5f, 0, 0}, {1, 3, 5, 1920, 32, 0, 1, 1e-5f, 0, 0},
        {1, 6, 7, 960, 32, 0, 1, 1e-5f, 0, 0},  {1, 24, 24, 128, 32, 0, 1, 1e-6f, 0, 0},
        {2, 9, 9, 512, 32, 0, 1, 1e-6f, 0, 0},  {1, 11, 13, 256, 32, 0, 1, 1e-6f, 0, 0},
        {1, 9, 9, 320, 32, 6, 1, 1e-5f, 0, 0},  {2, 9, 9, 64, 8, -20, 2, 1e-5f, 0, 0},
        {1, 5, 5, 64, 32, 0, 100, 1e-5f, 0, 0}, {1, 5, 5, 64, 32, 0, 1e-4f, 1e-5f, 0, 0},
        {2, 5, 5, 48, 6, 0, 1, 1e-5f, 5, 3},    {1, 6, 6, 64, 16, 0, 1, 1e-5f, 64, 64},
        {3, 2, 2, 96, 1, 1, 1, 1e-5f, 0, 0},    {1, 2, 3, 40, 40, 0, 1, 1e-5f, 0, 0},
        {1, 40, 33, 32, 4, 3, 1, 1e-5f, 0, 0},
    };
    /* Mostly more than one block of a GPU holds, so that sums are taken in slices; groups narrower and wider
     * than 16 bytes; means that a variance must not feel. */
    static const struct norm_case large[] = {
        {1, 53, 49, 64, 32, 200, 1, 1e-5f, 0, 0}, {2, 53, 49, 16, 4, -9, 2, 1e-6f, 8, 16},
        {1, 23, 23, 320, 32, 0, 1, 1e-5f, 0, 0},  {1, 13, 14, 1920, 32, 1, 1, 1e-5f, 0, 0},
        {1, 3, 5, 1600, 1, 0, 1, 1e-5f, 0, 0},    {1, 2, 5, 1600, 1, 0, 1, 1e-5f, 0, 0},
        {1, 2, 3, 4096, 1, 2, 1, 1e-5f, 0, 0},    {1, 9, 9, 64, 32, -200, 1, 1e-5f, 0, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        norm_run(ck, list[i]);
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++)
        norm_run(ck, large[i]);
}

static void bench(struct check *ck, const struct tier *t)
{
    static const struct norm_case list[] = {
        {1, 64, 64, 320, 32, 0, 1, 1e-5f, 0, 0},   {1, 32, 32, 640, 32, 0, 1, 1e-5f, 0, 0},
        {1, 16, 16, 1280, 32, 0, 1, 1e-5f, 0, 0},  {1, 64, 64, 960, 32, 0, 1, 1e-5f, 0, 0},
        {1, 128, 128, 512, 32, 0, 1, 1e-6f, 0, 0}, {1, 512, 512, 128, 32, 0, 1, 1e-6f, 0, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        norm_bench(ck, t, list[i]);
}

const struct op_check check_group_norm = {OP_group_norm, cases, norm_round, norm_golden, bench, NULL};
const struct op_check check_group_norm_silu = {OP_group_norm_silu, cases, norm_round,
                                               norm_golden,        bench, NULL};
