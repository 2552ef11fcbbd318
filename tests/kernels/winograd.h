/* What Winograd's method on bf16 may cost, by theory: for tiers that turn 3x3 convolutions to it. */
#ifndef LATENTD_TESTS_WINOGRAD_H
#define LATENTD_TESTS_WINOGRAD_H

#include "check.h"

/* Adds to BOUND [N, H, W, O] what F(4, 3) along rows, or F(2x4, 3x3), may be off from the direct sums of x
 * [N, H, W, I] (DOUBLED: [N, H / 2, W / 2, I], every position repeated) and w [O, I, 3, 3], of which
 * ACTIVATED: the activation is taken. */
void add_winograd_rows_error(struct check *ck, struct array x, struct array w, bool activated,
                             struct array bound);
void add_winograd_2x4_error(struct check *ck, struct array x, struct array w, bool doubled, bool activated,
                            struct array bound);

#endif
