/* The blocked matrix product behind conv2d and linear. */
#ifndef LATENTD_CPU_GEMM_H
#define LATENTD_CPU_GEMM_H

#include "tier.h"

struct gemm_args {
    tensor y, x; /* [N, OH, OW, O], [N, H, W, I] */
    const weight *w;
    int stride; /* 0 means 1 */
    bool upsample, pad_end;
    tensor add_bc, residual; /* data NULL: none */
    size_t add_positions;    /* outputs that share a row of add_bc; 0: those of a picture */
    enum act act;
    bool geglu;
    const weight *layer_norm; /* of x's rows, in place of x, where gemm_takes_layer_norm(); NULL: none */
    float layer_eps;
    bool normed;                          /* as in struct conv2d_args */
    const float *norm_scale, *norm_shift; /* NULL, or of x's norm, which SiLU follows: conv_few_run(), and, as
                                             in struct wr_input, winograd_rows_run() */
};

/* Those of a convolution. */
static inline struct gemm_args gemm_conv2d(tensor y, tensor x, const weight *w, const struct conv2d_args *a)
{
    return (struct gemm_args){.y = y,
                              .x = x,
                              .w = w,
                              .stride = a->stride,
                              .upsample = a->upsample,
                              .pad_end = a->pad_end,
                              .add_bc = a->add_bc,
                              .residual = a->residual,
                              .act = a->act,
                              .normed = a->normed};
}

/* Those of a linear layer. */
static inline struct gemm_args gemm_linear(tensor y, tensor x, const weight *w, const struct linear_args *a)
{
    return (struct gemm_args){
        .y = y, .x = x, .w = w, .residual = a->residual, .act = a->act, .geglu = w->kind == WEIGHT_GEGLU};
}

int gemm_run(struct backend *be, const struct gemm_args *a, struct error *err);
/* Whether a linear layer W of x can norm its rows on the way, and no item does that again for columns of its
 * own. Of x the shape and type count, of W the shape. */
bool gemm_takes_layer_norm(const struct backend *be, tensor x, const weight *w);

/* What ends COUNT positions of one picture, as below; its c is not set. */
struct finish gemm_end(const struct gemm_args *a, int nr, int p, size_t first, int count);
/* BASE [nr]: what all outputs of panel P of the picture of FIRST have added: the bias, and its row of add. */
void gemm_base(const struct gemm_args *a, const struct row_ops *rows, int nr, int p, size_t first,
               float *base);
/* Writes outputs of panel P of A's weights for ROWS positions of one picture, FIRST the first counted over N,
 * OH, OW: bias, add_bc, activation and residual applied to c [rows][nr]. */
void gemm_finish(const struct gemm_args *a, const struct row_ops *rows, int nr, int p, const float *c,
                 size_t first, int count);

/* ---- Joined panels. A row of a panel of bf16 is a line, of a GEGLU's half a line. But a line alone takes as
 * long to memory as the pair of them that begins at a multiple of 128 bytes, and half a line has to be
 * fetched first. So rows of several panels are stored together: those of all but the last are kept back, in
 * the caches. ---- */

/* Panels of PANEL_COLS outputs that A stores together: a pair of lines where y goes PAST_CACHES, or a line of
 * a GEGLU; 1: each by itself. */
int gemm_joins(const struct gemm_args *a, int panel_cols, bool past_caches);
/* Whether A's y is written past the caches. Where whole LINES are, one panel after the other, that begins
 * earlier: a line that is fetched to be overwritten takes one of the few places that loads of the tiles'
 * lines wait in. */
bool gemm_past_caches(const struct gemm_args *a, int panel_cols, bool lines);
/* Bytes from a row that is kept back to the next. */
int gemm_kept_stride(const struct gemm_args *a, int panel_cols, int joins);
/* Whether panel P is kept back, of an item's that end at P1. */
static inline bool gemm_kept_back(int p, int p1, int joins)
{
    return (p + 1) % joins != 0 && p + 1 < p1;
}
/* Lets F, the end of panel P of P0 to P1, write to KEPT, its first row's place, or take along what waits
 * there.
 */
void gemm_join(struct finish *f, char *kept, int kept_stride, int p, int p0, int p1, int joins);
/* F by row_ops.finish, with what it takes along and where its rows jump. */
void gemm_finish_joined(const struct row_ops *rows, const struct finish *f);

/* The same convolution by Winograd's method, where it suits: see winograd.c, and for bf16 winograd_rows.c,
 * winograd_up.c and winograd_2x4.c. */
bool winograd_suits(const struct cpu_state *st, const struct gemm_args *a);
int winograd_run(struct backend *be, const struct gemm_args *a);
bool winograd_rows_suits(const struct gemm_args *a);
int winograd_rows_run(struct backend *be, const struct gemm_args *a);
bool winograd_up_suits(const struct gemm_args *a);
int winograd_up_run(struct backend *be, const struct gemm_args *a);
bool winograd_2x4_suits(const struct cpu_state *st, const struct gemm_args *a);
int winograd_2x4_run(struct backend *be, const struct gemm_args *a);

/* The same to few outputs, where the weights were packed for that: see conv_few.c. */
int conv_few_run(struct backend *be, const struct gemm_args *a);

#endif
