/* Steps as graphs (kernels/cuda/step.c) that are kept and run again, with others in between whose kernels are
 * the same and want more or less shared memory. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "cuda.h"
#include "log.h"
#include "ops.h"
#include "region.h"

enum { CHANNELS = 32, GROUPS = 4, SIDE_MAX = 24, MEMORY = 1 << 20 };

/* y [SIDE * SIDE * CHANNELS]: a group norm of SIDE x SIDE positions, as a step. */
static bool norm_step(struct backend *be, void *memory, const weight *w, int side, float *y)
{
    static float x[SIDE_MAX * SIDE_MAX * CHANNELS];
    struct error err = {0};
    struct region mem = {0};
    for (int i = 0; i < side * side * CHANNELS; i++)
        x[i] = (float)(i * 37 % 101 - 50) / 16;
    region_init(&mem, memory, MEMORY);
    pass p = {be, &mem, &err};
    tensor in = tensor_from_host(&p, x, 1, side, side, CHANNELS, be->dtype);
    pass_step_begin(&p);
    tensor out = group_norm(&p, w, in, GROUPS, 1e-5f);
    pass_step_end(&p);
    bool good = tensor_to_host(&p, convert(&p, out, DTYPE_F32), y) == 0;
    if (err.code)
        printf("%s\n", err.msg);
    return good;
}

/* In each group of what has weights 1 and 0. */
static bool normal(const float *y, int side)
{
    enum { EACH = CHANNELS / GROUPS };
    bool right = true;
    for (int g = 0; g < GROUPS; g++) {
        double sum = 0, squares = 0, count = side * side * EACH;
        for (int i = 0; i < side * side * EACH; i++) {
            double v = (double)y[i / EACH * CHANNELS + g * EACH + i % EACH];
            sum += v;
            squares += v * v;
        }
        right = right && fabs(sum / count) < 1e-2 && fabs(squares / count - 1) < 1e-2;
    }
    return right;
}

/* All three want more than the 48 KiB that a kernel has without asking. The graph of the first size is kept,
 * and what the second asks for must not take from it; nor the third's from either. */
static void sizes(const char *isa)
{
    static const int side[] = {24, 23, 24, 22, 23, 24};
    static float y[SIDE_MAX * SIDE_MAX * CHANNELS], one[CHANNELS], zero[CHANNELS];
    struct backend_options opt = {.kind = "cuda", .isa = isa, .threads = 1};
    struct backend *be = NULL;
    struct error err = {0};
    weight w = {0};
    void *memory = NULL;
    for (int i = 0; i < CHANNELS; i++)
        one[i] = 1;
    struct weight_source src = {
        .kind = WEIGHT_NORM, .out_c = CHANNELS, .in_c = 1, .kh = 1, .kw = 1, .parts = 1};
    src.w[0] = (struct host_array){one, DTYPE_F32, CHANNELS};
    src.bias[0] = (struct host_array){zero, DTYPE_F32, CHANNELS};
    if (backend_open(&be, &opt, &err) || be->mem_alloc(be, MEMORY, &memory, &err) ||
        weight_pack(be, &w, &src, &err)) {
        printf("%s\n0 passed, 1 failed\n", err.msg);
        exit(1);
    }
    for (size_t i = 0; i < sizeof side / sizeof *side; i++) {
        char what[80];
        snprintf(what, sizeof what, "%s: step %zu, of %d x %d positions", isa, i + 1, side[i], side[i]);
        check(norm_step(be, memory, &w, side[i], y) && normal(y, side[i]), what);
    }
    check(!cuda_of(be)->dead, "and the device is well");
    weight_free(be, &w);
    be->mem_free(be, memory, MEMORY);
    backend_close(&be);
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    sizes("fp16");
    sizes("bf16");
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
