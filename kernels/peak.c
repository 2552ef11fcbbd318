/* What a backend could do at best, measured. See backend_peak_flops() in backend.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "cpu/cpu.h"
#include "region.h"
#include "thread_pool.h"

enum { TRIES = 12, SIDE_GPU = 4096, SIDE_REF = 384 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The best time of W times X, seconds; the first calls choose a kernel and warm up. */
static double time_product(pass *p, const weight *w, tensor x)
{
    double best = 0;
    for (int i = 0; i < TRIES && !p->err->code; i++) {
        double start = now();
        tensor y = linear(p, w, x, (struct linear_args){0});
        if (p->be->wait)
            p->be->wait(p->be, p->err);
        double t = now() - start;
        best = i == 0 || t < best ? t : best;
        tensor_free(p, &y);
    }
    return best;
}

/* NUMBERS [side, side] of small numbers serve as the matrix and as what it is multiplied with. */
static double product_flops(struct backend *be, int side, const float *numbers, void *mem, size_t size,
                            struct error *err)
{
    struct region *region = malloc(sizeof *region);
    weight w = {.packed = NULL};
    struct weight_source source = {.kind = WEIGHT_LINEAR,
                                   .out_c = side,
                                   .in_c = side,
                                   .kh = 1,
                                   .kw = 1,
                                   .parts = 1,
                                   .w = {{numbers, DTYPE_F32, (size_t)side * (size_t)side}}};
    double seconds = 0;
    if (!region) {
        error_set(err, ERR_NOMEM, "no memory to measure the peak");
    } else if (weight_pack(be, &w, &source, err) == 0) {
        region_init(region, mem, size);
        pass p = {.be = be, .mem = region, .err = err};
        tensor x = tensor_from_host(&p, numbers, 1, 1, side, side, pass_dtype(&p));
        seconds = time_product(&p, &w, x);
        weight_free(be, &w);
    }
    free(region);
    return err->code || seconds <= 0 ? 0 : 2.0 * side * side * (double)side / seconds;
}

static double measure_product(struct backend *be, int side, struct error *err)
{
    size_t count = (size_t)side * (size_t)side, size = 3 * count * sizeof(float);
    float *numbers = malloc(count * sizeof *numbers);
    void *mem = NULL;
    double flops = 0;
    for (size_t i = 0; numbers && i < count; i++)
        numbers[i] = (float)(i % 17) / 64 - 0.125f;
    if (!numbers)
        error_set(err, ERR_NOMEM, "no memory to measure the peak");
    else if (be->mem_alloc(be, size, &mem, err) == 0)
        flops = product_flops(be, side, numbers, mem, size, err);
    if (mem)
        be->mem_free(be, mem, size);
    free(numbers);
    return flops;
}

double backend_peak_flops(struct backend *be, char *what, size_t what_size)
{
    struct error err = {0};
    double flops = be->pool ? cpu_peak_flops(be, false) : 0;
    if (flops > 0) {
        snprintf(what, what_size, "multiply-adds of %s from registers, %d threads", be->tier,
                 pool_threads(be->pool));
        return flops;
    }
    int side = be->upload ? SIDE_GPU : SIDE_REF;
    snprintf(what, what_size, "a matrix product of %d^3 on %s", side, be->name);
    return measure_product(be, side, &err);
}
