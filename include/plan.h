/* What the plan backend counts while a pipeline walks over it. */
#ifndef LATENTD_PLAN_H
#define LATENTD_PLAN_H

#include <stdint.h>

#include "backend.h"

struct plan_count {
    uint64_t calls;
    double flops;         /* 2 per multiply-add; convolution, matrix product and attention only */
    double read, written; /* bytes an ideal kernel moves: each input read once, each output written once */
    double weights;       /* of `read`: packed weights */
};

struct plan_report {
    struct plan_count op[OP_COUNT];
    struct plan_count total;
    size_t region_bytes; /* peak of job memory */
};

/* The counts so far of a backend opened with kind "plan", and back to zero. */
const struct plan_report *plan_report(const struct backend *be);
void plan_reset(struct backend *be);
/* The type that activations would have: set before walking, so that sizes are those of the real backend. */
void plan_set_dtype(struct backend *be, enum dtype dtype);
/* The same, and what TARGET does in one op, for which other tensors are alive. TARGET must outlive the walk.
 */
void plan_set_target(struct backend *be, const struct backend *target);

#endif
