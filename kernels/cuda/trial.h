/* A kernel that no GPU has run before is not believed: its output is compared with that of one that is,
 * before its speed counts, and a note on disk outlives a trial that takes the process with it. Between
 * choose.c and trial.c. */
#ifndef LATENTD_CUDA_TRIAL_H
#define LATENTD_CUDA_TRIAL_H

#include "choose.h"

enum { TRIAL_PATH_MAX = 520 };

struct trial {
    char path[TRIAL_PATH_MAX]; /* of the note; empty: no folder, and then there are no trials */
    const char *head;          /* GPU, driver and version: a note of others does not count */
    bool mine;                 /* the note on disk is of this process */
    bool wanted;               /* unproven candidates may compete */
    bool used;                 /* one was chosen, so that a device that fails may have failed by it */
};

/* CHOICES: the file of choices, or NULL. HEAD lives as long as T. */
void trial_open(struct trial *t, const char *choices, const char *head);

/* Part of an output, on the host. */
struct sample {
    unsigned char *bytes;
    size_t count;
};

/* What the candidates of C read is a step's, whose earlier ops may not have run yet: leftovers, perhaps zeros
 * or NaN, that say nothing. trial_fill puts numbers in [-1, 1) in their place, trial_restore what was there
 * before. ERR_NOMEM: no room to keep it, nothing has been touched. Restores after every other outcome too. */
struct trial_inputs {
    void *kept[CHOICE_INPUTS];
};
int trial_fill(struct backend *be, const struct choice *c, struct trial_inputs *in, struct error *err);
int trial_restore(struct backend *be, const struct choice *c, struct trial_inputs *in, struct error *err);

/* Fills OUT, and the workspace with its partial sums, with what no kernel writes. */
int trial_clear(struct backend *be, const struct choice *c, void *out, struct error *err);
/* What candidate 0 has left in OUT. ERR_NOMEM leaves the sample empty, and nothing is tried. */
int trial_expect(struct backend *be, const struct choice *c, const void *out, struct sample *expected,
                 struct error *err);
/* Runs candidate I into OUT. 0: it may compete. ERR_UNSUPPORTED: it may not, ERR says why; when its output is
 * another one no unproven candidate is tried again. ERR_DEVICE leaves the note where it is. */
int trial_run(struct backend *be, struct trial *t, const struct choice *c, int i, void *out,
              const struct sample *expected, struct error *err);
/* Whether OUT holds what candidate 0 gave; else as trial_run. */
int trial_compare(struct backend *be, struct trial *t, const struct choice *c, int i, const void *out,
                  const struct sample *expected, struct error *err);
/* After the last candidate of a shape: the process lives. */
void trial_end(struct trial *t);
/* The device has failed: when an unproven kernel was chosen, the next start does without. */
void trial_failed(struct trial *t);

#endif
