/* What the checks of the three norms share. */
#ifndef LATENTD_CHECK_NORMS_H
#define LATENTD_CHECK_NORMS_H

#include "check.h"

struct norm_case {
    int n, h, w, c, groups; /* groups 0: layer norm */
    float mean, scale;      /* of x: a large mean punishes a variance taken as E[x^2] - E[x]^2 */
    float eps;
    int first, gap;
};

/* Runs the op that ck->op names. */
void norm_run(struct check *ck, struct norm_case s);
void norm_round(struct check *ck);
/* ints: n h w c groups; floats: eps; arrays: x, gamma, beta, y. */
void norm_golden(struct check *ck, const struct golden_case *g);
void norm_bench(struct check *ck, const struct tier *t, struct norm_case s);

#endif
