/* The loras parameter: a string that holds a JSON object, model id -> strength. */
#ifndef LATENTD_API_LORAS_H
#define LATENTD_API_LORAS_H

#include "api.h"
#include "params.h"

/* Reads LORAS into *OUT, which is empty when nothing is asked for ("" or an empty object); loras_free it
 * either way. False and a filled REPLY: the contract's words for a string that is wrong, in its order of
 * checks; FAILED are those for one that is JSON but no object. Names that no model of a shelf can have are
 * said not to be found. */
bool loras_read(const struct param_string *loras, const char *failed, struct loras *out, struct reply *reply);
void loras_free(struct loras *loras);

#endif
