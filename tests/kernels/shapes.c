/* Shapes for ops that do not care much about them. */
#include <stdio.h>

#include "check.h"

void each_shape(struct check *ck, void (*run)(struct check *, const struct shape *))
{
    static const struct shape list[] = {
        {1, 1, 1, 1, 0, 0},    {1, 1, 7, 3, 0, 0},   {2, 5, 1, 15, 0, 0},   {1, 3, 5, 16, 0, 0},
        {3, 2, 3, 17, 0, 0},   {1, 1, 77, 33, 0, 0}, {2, 4, 3, 320, 0, 0},  {1, 9, 11, 4, 0, 0},
        {1, 2, 2, 1280, 0, 0}, {2, 3, 5, 31, 3, 6},  {1, 4, 4, 64, 64, 64}, {2, 2, 2, 8, 1, 0},
        {1, 13, 67, 48, 0, 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        run(ck, &list[i]);
}

void random_shape(struct check *ck, void (*run)(struct check *, const struct shape *))
{
    struct shape s = {
        rng_range(ck, 1, 4), rng_range(ck, 1, 12), rng_range(ck, 1, 20), rng_range(ck, 1, 150), 0, 0};
    if (rng_one_in(ck, 2)) {
        s.first = rng_range(ck, 0, 40);
        s.gap = rng_range(ck, 0, 40);
    }
    run(ck, &s);
}

struct array shape_array(struct check *ck, const struct shape *s)
{
    case_label(ck, "[%d, %d, %d, %d], view %d+%d", s->n, s->h, s->w, s->c, s->first, s->gap);
    return array_random(ck, s->n, s->h, s->w, s->c, 3, 0);
}

struct bench_call {
    struct backend *be;
    bench_move *move;
    tensor y, a, b;
    struct error *err;
};

static void call_move(void *ctx)
{
    struct bench_call *b = ctx;
    b->move(b->be, b->y, b->a, b->b, b->err);
}

void bench_moves(struct check *ck, const struct tier *t, bench_move *call, int inputs, int height, int width)
{
    static const struct shape list[] = {
        {1, 64, 64, 320, 0, 0}, {1, 16, 16, 1280, 0, 0}, {1, 256, 256, 256, 0, 0}};
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        struct shape s = list[i];
        struct array x = array_random(ck, s.n, s.h, s.w, s.c, 1, 0);
        struct bench_call b = {.be = t->be, .move = call, .err = &ck->err};
        b.a = place(ck, x, ck->type, 0, 0);
        b.b = place(ck, x, ck->type, 0, 0);
        b.y = place_output(ck, t, s.n, s.h * height, s.w * height, s.c * width, ck->type);
        double bytes =
            (double)dtype_size(ck->type) * ((double)tensor_count(b.a) * inputs + (double)tensor_count(b.y));
        char shape[64];
        snprintf(shape, sizeof shape, "%dx%dx%d", s.h, s.w, s.c);
        bench_report(ck, t, shape, bench_time(call_move, &b), 0, bytes);
    }
}
