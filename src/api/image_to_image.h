/* The parameter table of image-to-image, for openapi.c and docs.c. */
#ifndef LATENTD_API_IMAGE_TO_IMAGE_H
#define LATENTD_API_IMAGE_TO_IMAGE_H

#include "params.h"

extern const struct param_table image_to_image_table;

#endif
