/* The parameter table of text-to-image, for openapi.c and docs.c. */
#ifndef LATENTD_API_TEXT_TO_IMAGE_H
#define LATENTD_API_TEXT_TO_IMAGE_H

#include "params.h"

extern const struct param_table text_to_image_table;

#endif
