/* The products of 32 rows x 32 columns and a step of 32 channels, and where their sums go: what all ways of
 * the AMX kernel have in common. Included by gemm_amx.c alone. Tiles 0 to 3: sums; 4, 5: A; 6, 7: B. */
#ifndef LATENTD_CPU_MULTIPLY_AMX_H
#define LATENTD_CPU_MULTIPLY_AMX_H

#include "ending_amx.h"
#include "tile_amx.h"

enum { ROWS = 16, STEP = 32, B_STEP = STEP * NR * 2 };

/* A function of its own for each case: together they have too few registers. */
#define ALONE(name, call)                                                                                    \
    static __attribute__((noinline)) void name(const struct gemm_tile *t)                                    \
    {                                                                                                        \
        call;                                                                                                \
    }

/* Loads sums 0 to TILES - 1 of c, or zeros. */
static void load_sums(const struct gemm_tile *t, bool two)
{
    const size_t line = NR * 4;
    const float *c0 = t->c, *c1 = t->c + ROWS * NR;
    if (t->add) {
        tile_load(0, c0, line);
        tile_load(1, c0 + ROWS, line);
    } else {
        tile_zero(0);
        tile_zero(1);
    }
    if (two && t->add) {
        tile_load(2, c1, line);
        tile_load(3, c1 + ROWS, line);
    } else if (two) {
        tile_zero(2);
        tile_zero(3);
    }
}

static int channels_of(const struct gemm_tile *t)
{
    return t->channels ? t->channels : t->k;
}

static size_t half_of(const struct gemm_tile *t)
{
    return t->a_half ? t->a_half : ROWS * t->lda;
}

/* Asks for the lines of a step of what comes next. Returns where those of the next step begin. */
VEC const char *ask_lines(const struct gemm_tile *t, const char *next)
{
    const char *line = next;
    for (int left = t->prefetch_lines; left > 0; left--, line += t->prefetch_apart)
        __builtin_prefetch(line, 0, 2);
    return next + t->prefetch_step;
}

/* A and B of 32 rows and a step. They are loaded ahead of the products that wait for them. Of A and B one
 * stays in the first level, the other passes by. KEEP, where it is not NULL, takes A's tiles. */
struct step {
    const char *a, *b;
    char *keep;
    size_t lda, half, keep_half; /* of a and keep: to the lower 16 rows */
    bool b_near;
};

VEC void load_a(const struct step *s, bool lower)
{
    const char *a = lower ? s->a + s->half : s->a;
    if (lower && s->b_near)
        tile_load_once(5, a, s->lda);
    else if (lower)
        tile_load(5, a, s->lda);
    else if (s->b_near)
        tile_load_once(4, a, s->lda);
    else
        tile_load(4, a, s->lda);
}

VEC void load_b(const struct step *s, bool right)
{
    const size_t line = NR * 4;
    if (right && s->b_near)
        tile_load(7, s->b + 64, line);
    else if (right)
        tile_load_once(7, s->b + 64, line);
    else if (s->b_near)
        tile_load(6, s->b, line);
    else
        tile_load_once(6, s->b, line);
}

VEC void keep_a(const struct step *s)
{
    if (s->keep) {
        tile_store(4, s->keep, STEP * 2);
        tile_store(5, s->keep + s->keep_half, STEP * 2);
    }
}

VEC void multiply(const struct step *s)
{
    load_b(s, false);
    load_b(s, true);
    load_a(s, false);
    load_a(s, true);
    keep_a(s);
    tile_dot(0, 4, 6);
    tile_dot(1, 4, 7);
    tile_dot(2, 5, 6);
    tile_dot(3, 5, 7);
}

/* Stores the sums of quarter I, whose place in a tile of sums is AT, to DONE, and begins those of the next
 * tile with NEXT's, or with zeros. */
#define TURN(i, done, next, at)                                                                              \
    do {                                                                                                     \
        tile_store(i, (done) + (at), NR * 4);                                                                \
        if (next)                                                                                            \
            tile_load(i, (next) + (at), NR * 4);                                                             \
        else                                                                                                 \
            tile_zero(i);                                                                                    \
    } while (0)

/* The first step of a tile while the sums of the one before it are stored to DONE: a store a product costs a
 * third of what four together do. */
VEC void multiply_first(const struct step *s, float *done, const float *next)
{
    load_b(s, false);
    load_a(s, false);
    TURN(0, done, next, 0);
    tile_dot(0, 4, 6);
    load_b(s, true);
    TURN(1, done, next, ROWS);
    tile_dot(1, 4, 7);
    load_a(s, true);
    TURN(2, done, next, ROWS * NR);
    tile_dot(2, 5, 6);
    TURN(3, done, next, ROWS * NR + ROWS);
    tile_dot(3, 5, 7);
    keep_a(s);
}

static void store_sums(float *c)
{
    const size_t line = NR * 4;
    tile_store(0, c, line);
    tile_store(1, c + ROWS, line);
    tile_store(2, c + ROWS * NR, line);
    tile_store(3, c + ROWS * NR + ROWS, line);
}

#endif
