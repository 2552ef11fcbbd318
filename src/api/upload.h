/* The picture that a form brings: probed on the HTTP thread from its header alone, so that one never does
 * more than parse, and decoded on the worker. */
#ifndef LATENTD_API_UPLOAD_H
#define LATENTD_API_UPLOAD_H

#include "params.h"
#include "pictures.h"

/* Its size into IMAGE. False, and a 400 with words, for one that cannot be read; the original answers a
 * plain-text 500. */
bool upload_probe(const struct param_file *file, struct image *image, struct reply *reply);
/* Its pixels into IMAGE; frees BODY, which holds the file. */
int upload_decode(struct pictures *p, const struct param_file *file, struct buffer *body, struct image *image,
                  struct error *err);

#endif
