/* What comes between a finished picture and the safety checker's network: transformers' CLIPImageProcessor.
 * Private to src/pipelines. */
#ifndef LATENTD_PIPELINES_SAFETY_PROCESSOR_H
#define LATENTD_PIPELINES_SAFETY_PROCESSOR_H

#include "image.h"

/* The fields of preprocessor_config.json. */
struct safety_processor {
    int shortest, crop; /* pixels: the shorter side after resizing, and the square cut from the middle */
    double rescale;
    float mean[3], std[3];
};
/* Reads PATH; where there is no such file, CLIP's defaults. */
int safety_processor_read(struct safety_processor *q, const char *path, struct error *err);
/* IM -> OUT [crop, crop, 3]. */
int safety_processor_run(const struct safety_processor *q, const struct image *im, float *out,
                         struct error *err);

#endif
