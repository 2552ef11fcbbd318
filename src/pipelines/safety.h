/* The safety checkers of a model. Private to src/pipelines. */
#ifndef LATENTD_PIPELINES_SAFETY_H
#define LATENTD_PIPELINES_SAFETY_H

#include "image.h"
#include "networks.h"

struct safety;

/* OWN: the folder of the model's own checker, or NULL. MODELS: MODEL_DIR. */
int safety_open(struct safety **s, struct backend *be, const char *models, const char *own,
                const char *variant, struct error *err);
void safety_close(struct safety **s);
/* Runs the checkers that are due on the finished picture IM (pixels set), sets IM->nsfw, and blackens what
 * the model's own checker finds. IM->rgb NULL: planning on a backend that computes nothing. */
int safety_apply(pass *p, const struct safety *s, bool asked, struct image *im);

#endif
