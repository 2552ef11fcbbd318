/* What comes between a picture and the image encoder of Stable Video Diffusion. Private to src/pipelines. */
#ifndef LATENTD_PIPELINES_VIDEO_PROCESSOR_H
#define LATENTD_PIPELINES_VIDEO_PROCESSOR_H

#include "image.h"

/* diffusers' _resize_with_antialiasing on the picture in -1..1, then back to 0..1: a Gaussian blur of each
 * axis that shrinks, then bicubic interpolation with aligned corners. The aspect ratio is not kept. IM -> OUT
 * [side, side, 3]; some numbers lie a little outside of 0..1. ERR_NOMEM. */
int resize_with_antialiasing(const struct image *im, int side, float *out, struct error *err);

#endif
