/* The safety checkers of a model. Private to src/pipelines. */
#ifndef LATENTD_PIPELINES_SAFETY_H
#define LATENTD_PIPELINES_SAFETY_H

#include "image.h"
#include "networks.h"

/* Two kinds (contract 3.8). The model's own, where its repository ships one (SD 1.x): always runs, and what
 * it finds is given out as a black picture. CompVis/stable-diffusion-safety-checker below MODEL_DIR: runs
 * when the request asks, and only says what it found. */
struct safety;

#define SAFETY_MODEL "CompVis/stable-diffusion-safety-checker"

/* ON_CPU: checkers are loaded and run on the CPU where BE is a device of its own. OWN: the folder of the
 * model's own checker, or NULL. MODELS: MODEL_DIR. A checker of MODEL_DIR that is not there, or only as a
 * pickle, is a warning, not an error. Where both are the same network it is kept once. */
int safety_open(struct safety **s, struct backend *be, bool on_cpu, const char *models, const char *own,
                const char *variant, struct error *err);
void safety_close(struct safety **s);
/* Runs the checkers that are due on the finished picture IM (pixels set), sets IM->nsfw, and blackens what
 * the model's own checker finds. IM->rgb NULL: planning on a backend that computes nothing. */
int safety_apply(pass *p, struct safety *s, bool asked, struct image *im);

#endif
