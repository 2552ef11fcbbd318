/* Winograd's F(2x4, 3x3) of the tiers that multiply pairs of bf16 in vectors: how its operands lie, and what
 * a kernel for it (winograd_2x4_avx512bf16.c) is asked to do. Inputs and weights are bf16. */
#ifndef LATENTD_CPU_WINOGRAD_2X4_H
#define LATENTD_CPU_WINOGRAD_2X4_H

#include "tier.h"

enum {
    W24_ROWS = 2, /* of outputs of a tile */
    W24_COLS = 4,
    W24_IN_ROWS = 4, /* of inputs that it takes */
    W24_IN_COLS = 6,
    W24_PLACES = 24,  /* products of a tile: W24_IN_COLS times the row's place, and the column's */
    W24_TILES = 16,   /* of a group */
    W24_TOGETHER = 8, /* that are multiplied at a time */
    W24_STEP = 32,    /* channels that lie side by side */
    W24_PANEL = 32,   /* outputs of a panel */
    W24_LINE = 64,    /* bytes of V for a tile, place and step */
    W24_V = W24_TILES * W24_LINE,                          /* of V for a group, place and step */
    W24_U = W24_STEP * W24_PANEL * 2,                      /* of U for a panel, place and step */
    W24_M = W24_PLACES * W24_TOGETHER * W24_PANEL,         /* floats of their sums */
    W24_WORK = W24_TILES * W24_ROWS * W24_COLS * W24_PANEL /* of a group's outputs */
};

/* Of the columns the points are 0, a, -a, 1 / a, -1 / a and infinity, as in winograd_rows.h; of the rows 0,
 * 1, -1 and infinity. */
#define W24_POINT 0.65f

/* Of a picture whose sides are doubled by repeating positions, the tile's rows of inputs are a, b, b, c: the
 * row's third place, d2 - d1, is zero, and V, U and M of it are left out. Its columns are a, b, b, c, c, d,
 * of which F(2, 3) takes three places for two outputs likewise: two of these are as few products as F(4, 3)
 * and lose half as much to rounding. */
enum { W24_DOUBLED_ZERO = 2 };

/* V of a group and place: [channels / W24_STEP][W24_TILES][W24_STEP]. U of a panel and place: [channels /
 * W24_STEP][W24_STEP / 2][W24_PANEL][2]. Of W24_STEP channels the even ones come first, then the odd: so the
 * widened halves of 32-bit words need not be shuffled. */

struct w24_input {
    char *dst;                                 /* tile's line of the first step */
    size_t place;                              /* bytes from a place to the next */
    const char *src[W24_IN_ROWS][W24_IN_COLS]; /* positions; zeros beyond the picture */
    size_t ahead;                              /* bytes to a tile further on in the row, which is asked for */
    int channels;
    bool doubled; /* here and below: there are no places of row W24_DOUBLED_ZERO */
};

struct w24_weights {
    char *dst;       /* U of place 0 */
    size_t place;    /* bytes from a place to the next */
    const char *src; /* the panel's weights, as in struct cpu_weight: [chunk][9][chunk / 2][W24_PANEL][2] */
    int channels, chunk; /* of all, of a chunk */
    int first, count;    /* the channels wanted, multiples of W24_STEP */
    bool doubled;
};

/* How outputs end that need no more than this: bf16 rows of whole lines, of tiles that lie inside of the
 * picture. Y and RESIDUAL (or NULL) are the panel's first output of the position that AT counts from. */
struct w24_end {
    const float *base[W24_TILES]; /* of each tile [W24_PANEL], is added to all its outputs */
    char *y;
    const char *residual;                                  /* bf16 */
    size_t y_column, y_row, residual_column, residual_row; /* bytes from one to the next */
    size_t at[W24_TILES];                                  /* positions of the tiles' first outputs */
    unsigned whole;                                        /* bit I: tile I ends here; others stay in WORK */
    bool stream;                                           /* y is aligned, and stored past the caches */
};

struct w24_product {
    const char *v, *u; /* place 0 */
    size_t v_place, u_place;
    int channels, tiles;
    float *m;    /* [W24_M]: room for the kernel */
    float *work; /* [W24_ROWS][W24_TILES][W24_COLS][W24_PANEL] */
    bool begun;  /* WORK holds the sums of channels before, which are added */
    bool doubled;
    const struct w24_end *end; /* NULL: all outputs stay in WORK */
    const char *coming; /* what is read after this: so many of its lines are asked for, into the second */
    int coming_lines;   /* level, with each W24_STEP channels of 8 tiles and a place */
};

struct winograd_2x4_kernel {
    void (*input)(const struct w24_input *in);    /* V of a tile */
    void (*weights)(const struct w24_weights *w); /* U of a panel */
    void (*product)(const struct w24_product *p); /* outputs of a group and panel */
};

#endif
