/* Several kernels can serve one shape of an op: our own tiles, cuBLASLt, cuDNN. The first time a shape comes
 * they are timed on this GPU, the fastest is kept for the life of the process, and written to a file that the
 * next start reads. The file belongs to one GPU model, driver and version of latentd; any other content is
 * thrown away.
 *
 *   LATENTD_CACHE   the folder of that file (XDG_CACHE_HOME/latentd, HOME/.cache/latentd); empty: no file
 *                   (beside it the note of a trial, trial.h: no folder, no trials)
 *   LATENTD_TUNE    0: nothing is timed, the first candidate serves */
#ifndef LATENTD_CUDA_CHOOSE_H
#define LATENTD_CUDA_CHOOSE_H

#include <stdio.h>

#include "cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CHOICE_KEY_MAX = 120, CANDIDATES_MAX = 18, CANDIDATE_NAME_MAX = 24, CHOICE_INPUTS = 3 };

/* 16-bit numbers of a type that candidates read. */
struct choice_input {
    void *data; /* NULL: none */
    size_t count;
};

/* One op at one shape. The first candidate is the one that a rule of thumb would take. */
struct choice {
    char key[CHOICE_KEY_MAX]; /* op, types, sizes, epilogue: all that the speed depends on; no tab, no newline
                               */
    int count;
    char name[CANDIDATES_MAX][CANDIDATE_NAME_MAX];
    /* Bit I: no GPU that we know of has run candidate I. It is taken only where its output is candidate 0's,
     * and not tried again after a trial that went wrong. */
    unsigned unproven;
    struct choice_input in[CHOICE_INPUTS]; /* where some are unproven: all but the weights */
    enum dtype in_type;
    size_t out_bytes; /* of the output */
    enum dtype out_type;
    /* Enqueues candidate I with OUT in place of the output. */
    int (*run)(struct backend *be, const void *ctx, int i, void *out, struct error *err);
    const void *ctx;
};

struct chooser;

/* Reads the file, if there is one. Never fails: without memory or file everything is timed anew. With ONLY
 * that candidate serves wherever it exists, and no file is read or written. */
struct chooser *chooser_open(struct backend *be, const char *only);
void chooser_close(struct chooser **c);
/* The device has failed for good. */
void chooser_failed(struct chooser *c);
/* The candidate to use, or a negative code. Times them if the shape is new; the GPU is waited for then. */
int choose(struct backend *be, const struct choice *c, struct error *err);
/* What choose_remember() was told for KEY, a hash of a shape; negative: nothing. */
int choose_known(const struct backend *be, uint64_t key);
void choose_remember(struct backend *be, uint64_t key, int value);
/* Says in the log that NAME, which was chosen, will not run today; another candidate serves. */
void choose_without(const char *name, const struct error *why);
/* One line a shape: its key, who won, the time, and how far the next one is behind. */
void chooser_print(const struct chooser *c, FILE *out);

#ifdef __cplusplus
}
#endif

#endif
