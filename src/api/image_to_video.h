/* The parameter table of image-to-video, for openapi.c and docs.c. */
#ifndef LATENTD_API_IMAGE_TO_VIDEO_H
#define LATENTD_API_IMAGE_TO_VIDEO_H

#include "params.h"

extern const struct param_table image_to_video_table;

#endif
