/* The LoRAs of a request: the one place where the pipelines switch them. Private to src/pipelines. */
#ifndef LATENTD_PIPELINES_LORAS_H
#define LATENTD_PIPELINES_LORAS_H

#include "model.h"

/* Makes exactly LORAS (NULL or none: none) active in M's networks for the run that follows; the worker's
 * thread only. ERR_LORA with words for the client. */
int apply_loras(struct model *m, const struct loras *loras, struct error *err);

#endif
