/* The loras parameter: a string that holds a JSON object, model id -> strength. */
#ifndef LATENTD_API_LORAS_H
#define LATENTD_API_LORAS_H

#include "api.h"
#include "params.h"

/* True when nothing is asked for ("" or an empty object). Otherwise false and a filled REPLY: the contract's
 * words for a string that is wrong, and for one that is right a sentence that LoRA is not built yet. */
bool loras_check(const struct param_string *loras, struct reply *reply);

#endif
