/* The parameter table of upscale, for openapi.c and docs.c. */
#ifndef LATENTD_API_UPSCALE_H
#define LATENTD_API_UPSCALE_H

#include "params.h"

extern const struct param_table upscale_table;

#endif
