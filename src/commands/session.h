/* What generate, bench and kernels share: flags, and a backend with a model on it. Private to src/commands.
 */
#ifndef LATENTD_COMMANDS_SESSION_H
#define LATENTD_COMMANDS_SESSION_H

#include "config.h"
#include "pipeline.h"

struct session {
    struct config config;
    struct backend *be;
    struct model *model;
    double load_seconds;
    struct error err;
};

/* What a command needs: the backend alone, or a model on it too. */
enum session_kind {
    SESSION_BACKEND,
    SESSION_TEXT_TO_IMAGE,
    SESSION_IMAGE_TO_IMAGE,
    SESSION_IMAGE_TO_VIDEO,
    SESSION_UPSCALE
};

/* Reads the environment, then opens what KIND says. ISA and MODEL_ID override the environment when not NULL.
 * On failure prints the sentence to stderr and returns the exit
 * status, else 0. */
int session_open(struct session *s, const char *model_id, const char *isa, const char *precision,
                 enum session_kind kind);
void session_close(struct session *s);

/* "--name VALUE" flags. Takes the next argument as value; NULL and a sentence on stderr when there is none.
 */
const char *flag_value(int argc, char **argv, int *i);
bool flag_int(const char *name, const char *text, long lo, long hi, long *out);
bool flag_number(const char *name, const char *text, double *out);

double clock_seconds(void);
/* Largest resident size of the process so far, in bytes. */
size_t peak_resident(void);

#endif
