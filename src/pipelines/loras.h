/* The LoRAs of a request: the one place where the pipelines switch them. Private to src/pipelines. */
#ifndef LATENTD_PIPELINES_LORAS_H
#define LATENTD_PIPELINES_LORAS_H

#include "model.h"

/* Makes exactly LORAS (NULL or none: none) active in M's networks for the run that follows; the worker's
 * thread only, before the job takes m->region. After ERR_LORA, whose words are for the client, or ERR_NOMEM
 * the next call sets things right. */
int apply_loras(struct model *m, const struct loras *loras, struct error *err);

#endif
