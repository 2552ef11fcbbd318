/* A step: the commands between step_begin and step_end, replayed as a CUDA graph. See cuda.h. */
#ifndef LATENTD_CUDA_STEP_H
#define LATENTD_CUDA_STEP_H

#include "cuda.h"

int step_begin(struct backend *be, struct error *err);
/* Enqueues the step. The first time of a sequence of commands takes longer, the graph is made then. */
int step_end(struct backend *be, struct error *err);
int step_record(struct backend *be, const struct cuda_command *c, struct error *err);
int step_launch(struct backend *be, const struct cuda_command *c, struct error *err);
void step_close(struct backend *be);

#endif
