/* Winograd's F(4, 3) along rows of the tiers that have a kernel of their own for it (winograd_rows_amx.c):
 * how inputs and weights lie, and what the kernel is asked to do. Inputs and weights are bf16. */
#ifndef LATENTD_CPU_WINOGRAD_ROWS_H
#define LATENTD_CPU_WINOGRAD_ROWS_H

#include "tier.h"

enum {
    WR_OUT = 4,                               /* neighbouring outputs that are computed together: a quad */
    WR_PLACES = 6,                            /* products of a quad */
    WR_QUADS = 16,                            /* of a row of a group */
    WR_ROWS = 2,                              /* of outputs of a group */
    WR_STEP = 32,                             /* channels that lie side by side */
    WR_COLS = 32,                             /* outputs of a panel */
    WR_TILE = WR_QUADS * WR_STEP * 2,         /* bytes of V for a row, place and step */
    WR_UNITS = WR_ROWS * WR_QUADS,            /* quads of a group */
    WR_SLOTS = 36,                            /* units and room, a multiple of WR_PLACES */
    WR_SUMS = WR_PLACES * WR_SLOTS * WR_COLS, /* floats of a group and panel's sums */
    WR_WORK = WR_UNITS * WR_OUT * WR_COLS,    /* of its outputs */
};

/* The points of evaluation are 0, a, -a, 1 / a, -1 / a and infinity. Of all a this one makes the rounding of
 * V and U to bf16 count least (for inputs and weights of random signs): 0.66 of what 0, 1, -1, 2, -2 do, in
 * the mean square. */
#define WR_POINT 0.65f

/* V of a block and slice of channels: [place][input row][channels / WR_STEP][WR_QUADS][WR_STEP]. U of a panel
 * and place: [channels / WR_STEP][3 rows of the kernel][WR_STEP / 2][WR_COLS][2]. Of WR_STEP channels the
 * even ones come first, then the odd: so the widened halves of 32-bit words need not be shuffled. */

/* Where channel C of the file lies in V and U. */
static inline int wr_channel(int c)
{
    return c / WR_STEP * WR_STEP + c % 2 * (WR_STEP / 2) + c % WR_STEP / 2;
}

/* Of one input row, for columns d0 to d5 from 4t on, with b = 1 / a and s = a a + b b: V0 = d0 - s d2 + d4;
 * V1, V2 = (d4 - b b d2) +- a (d3 - b b d1); V3, V4 = (d4 - a a d2) +- b (d3 - a a d1); V5 = d1 - s d3 + d5.
 */
struct wr_input {
    char *dst;
    size_t place;     /* bytes */
    const char *row;  /* as if it began at the first quad's first column */
    const char *next; /* the row that follows: asked for */
    size_t stride;    /* bytes from column to column */
    int left, right;  /* columns before LEFT and from RIGHT on are zeros */
    int quads, channels;
    float *carry;               /* [2 * channels]: room for the kernel */
    const char *zeros;          /* [channels] */
    const float *scale, *shift; /* NULL, or [channels] as they lie in V: what is convolved is SiLU of scale *
                                   x + shift inside of the picture */
};

/* Where the quads of a strip lie in the picture. */
struct wr_strip {
    int rows[WR_QUADS]; /* that are wanted */
    int at[WR_QUADS];   /* the first column's position, counted from the picture's first */
};

/* Outputs of a group and panel. */
struct wr_output {
    const struct wr_strip *strip;
    int row;           /* the first */
    bool direct;       /* ends as below; else the outputs stay in WORK */
    bool begun;        /* WORK holds the sums of channels before, which are added */
    bool stream;       /* y, which is aligned for that, is stored past the caches */
    float *work;       /* [WR_ROWS][WR_QUADS * WR_OUT][WR_COLS] */
    float *sums;       /* NULL, or [2][WR_COLS]: gets the sums of the outputs and of their squares */
    const float *bias; /* [WR_COLS] */
    const void *add;   /* [WR_COLS] or NULL */
    enum dtype add_type;
    const char *residual;                                  /* bf16, or NULL: the first row, column 0 */
    char *y;                                               /* bf16, likewise */
    size_t residual_column, residual_row, y_column, y_row; /* bytes from one to the next */
};

/* What waits on a thread: the sums of the group before. */
struct wr_state {
    float *m; /* [WR_SUMS] */
    bool odd; /* how m lies */
    bool waits;
    struct wr_output out;
};

struct wr_product {
    const char *v[2]; /* place 0, the first step of the first row and of the third */
    size_t v_place, v_row;
    const char *u[WR_PLACES];
    int channels;
    struct wr_output out;
};

struct winograd_rows_kernel {
    void (*input)(const struct wr_input *in);
    void (*begin)(void); /* around the products of a work item on a thread */
    void (*product)(struct wr_state *s, const struct wr_product *p); /* and the end of the one before */
    void (*flush)(struct wr_state *s);                               /* the end of the last product */
    void (*end)(void);
};

#endif
