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
    bool wanted;               /* unproven candidates may compete */
};

/* CHOICES: the file of choices, or NULL. HEAD lives as long as T. */
void trial_open(struct trial *t, const char *choices, const char *head);

/* Part of an output, on the host. */
struct sample {
    unsigned char *bytes;
    size_t count;
};

/* Fills OUT with what no kernel writes. */
int trial_clear(struct backend *be, const struct choice *c, void *out, struct error *err);
/* What candidate 0 has left in OUT. ERR_NOMEM leaves the sample empty, and nothing is tried. */
int trial_expect(struct backend *be, const struct choice *c, const void *out, struct sample *expected,
                 struct error *err);
/* Runs candidate I into OUT. 0: it may compete. ERR_UNSUPPORTED: it may not, ERR says why; when its output is
 * another one no unproven candidate is tried again. ERR_DEVICE leaves the note where it is. */
int trial_run(struct backend *be, struct trial *t, const struct choice *c, int i, void *out,
              const struct sample *expected, struct error *err);
/* After the last candidate of a shape: the process lives. */
void trial_end(const struct trial *t);

#endif
