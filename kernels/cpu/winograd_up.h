/* Winograd's F(2x2, 3x3) of pictures whose sides are doubled by repeating positions (winograd_up.c): how its
 * operands lie, and what a tier's kernel for it (winograd_up_amx.c) is asked to do. Inputs and weights are
 * bf16. */
#ifndef LATENTD_CPU_WINOGRAD_UP_H
#define LATENTD_CPU_WINOGRAD_UP_H

#include "tier.h"

/* Along one side outputs 2i and 2i + 1 of weights k0, k1, k2 meet x[i - 1], x[i], x[i] and x[i], x[i], x[i +
 * 1]. With d[i] = x[i - 1] - x[i] and K = k0 + k1 + k2 they are K x[i] + k0 d[i] and K x[i] - k2 d[i + 1]:
 * three products, places 0 (k0), 1 (K) and 2 (-k2), for two outputs. Along both sides there are nine, place 3
 * * (of the rows) + (of the columns), of four arrays: x, and its differences along the columns, the rows and
 * both. */
enum {
    WU_SIDE = 3,
    WU_PLACES = WU_SIDE * WU_SIDE,
    WU_ARRAYS = 4, /* 2 * (differences of rows) + (of columns) */
    WU_STEP = 32,  /* channels that lie side by side */
    WU_LINE = 64,  /* bytes of them */
    WU_COLS = 32   /* outputs of a panel */
};

/* An array of a block: [channels / WU_STEP][cells][WU_STEP]. U of a panel and place: [channels / WU_STEP]
 * [WU_STEP / 2][WU_COLS][2]. Of WU_STEP channels the even ones come first, then the odd: wr_channel() in
 * winograd_rows.h. */

/* The arrays of one cell. */
struct wu_input {
    char *dst;             /* its line of the first step of x */
    size_t array, step;    /* bytes from one to the next */
    const char *src[2][2]; /* bf16: above on the left, above; on the left, x; zeros beyond the picture */
    size_t ahead;          /* bytes to what is read later, which is asked for */
    int channels;
};

/* Outputs of a panel for neighbouring cells of a row: two rows of twice as many. */
struct wu_output {
    const float *m; /* the sums of place 0: [cells][WU_COLS] */
    size_t place;   /* floats from one place to the next */
    int cells;
    const float *base;      /* [WU_COLS]: added to all outputs that go to y */
    float *work;            /* NULL, or where they go: [2][2 * cells][WU_COLS]; else, in bf16, to */
    char *y;                /* the first of the upper row */
    size_t y_column, y_row; /* bytes from one to the next */
    bool stream;            /* past the caches: y is aligned for that */
    float *sums;            /* NULL, or [2][WU_COLS]: the outputs and their squares are added there */
};

struct winograd_up_kernel {
    void (*input)(const struct wu_input *in);
    void (*output)(const struct wu_output *o);
};

#endif
