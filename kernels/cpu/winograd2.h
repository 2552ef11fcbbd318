/* Winograd's F(2, 3) along rows of the tiers that have a kernel of their own for it (winograd2_amx.c): how
 * inputs and weights lie, and what the kernel is asked to do. Inputs and weights are bf16. */
#ifndef LATENTD_CPU_WINOGRAD2_H
#define LATENTD_CPU_WINOGRAD2_H

#include "tier.h"

enum {
    W2_PLACES = 4,                         /* products of two neighbouring outputs */
    W2_PAIRS = 16,                         /* pairs of outputs of a row of a group */
    W2_ROWS = 2,                           /* of outputs of a group */
    W2_STEP = 32,                          /* channels that lie side by side */
    W2_COLS = 32,                          /* outputs of a panel */
    W2_TILE = W2_PAIRS * W2_STEP * 2,      /* bytes of V for a row, place and step */
    W2_SUM = W2_ROWS * W2_PAIRS * W2_COLS, /* floats of a group and panel's sums at one place */
    W2_UNITS = W2_ROWS * W2_PAIRS,
};

/* V of a block: [place][input row][channels / W2_STEP][W2_PAIRS][W2_STEP]. U of a panel and place: [channels
 * / W2_STEP][3 rows of the kernel][W2_STEP / 2][W2_COLS][2]. Of W2_STEP channels the even ones come first,
 * then the odd: so the widened halves of 32-bit words need not be shuffled. */

/* Where channel C of the file lies in V and U. */
static inline int w2_channel(int c)
{
    return c / W2_STEP * W2_STEP + c % 2 * (W2_STEP / 2) + c % W2_STEP / 2;
}

/* Of one input row: V0 = d0 - d2, V1 = d1 + d2, V2 = d2 - d1, V3 = d1 - d3 for columns 2t to 2t + 3. */
struct w2_input {
    char *dst;
    size_t place;     /* bytes */
    const char *row;  /* as if it began at the first pair's first column */
    const char *next; /* the row that follows: asked for */
    size_t stride;    /* bytes from column to column */
    int left, right;  /* columns before LEFT and from RIGHT on are zeros */
    int pairs, channels;
    const char *zeros;          /* [channels] */
    const float *scale, *shift; /* NULL, or [channels] as they lie in V: what is convolved is SiLU of scale *
                                   x + shift inside of the picture */
};

/* Outputs of a group and panel. */
struct w2_output {
    int rows, pairs;   /* that are wanted */
    bool direct;       /* ends as below; else y stays in the work space for the caller to end */
    bool stream;       /* y, which is aligned for that, is stored past the caches */
    const float *bias; /* [W2_COLS] */
    const void *add;   /* [W2_COLS] or NULL */
    enum dtype add_type;
    const char *residual;                                  /* bf16, or NULL */
    char *y;                                               /* bf16 */
    size_t residual_column, residual_row, y_column, y_row; /* bytes from one to the next */
};

/* The work space of a thread, and what waits in it: the sums of the group before. */
struct w2_state {
    float *m; /* [4][W2_SUM] */
    float *y; /* [W2_ROWS][2 * W2_PAIRS][W2_COLS] */
    bool odd; /* how m lies */
    bool waits;
    struct w2_output out;
};

struct w2_product {
    const char *v; /* place 0, the first row's first step */
    size_t v_place, v_row;
    const char *u[W2_PLACES];
    int channels;
    ptrdiff_t
        next; /* bytes from U to what will be U, to be asked for: LINES for each step of three products */
    int lines;
    struct w2_output out;
};

struct winograd2_kernel {
    void (*input)(const struct w2_input *in);
    void (*begin)(void); /* around the products of a work item on a thread */
    void (*product)(struct w2_state *s, const struct w2_product *p); /* and the end of the one before */
    void (*flush)(struct w2_state *s);                               /* the end of the last product */
    void (*end)(void);
};

#endif
