/* What data.c, verify.c and main.c of checkkernels share. */
#ifndef LATENTD_CHECK_INTERNAL_H
#define LATENTD_CHECK_INTERNAL_H

#include "check.h"

/* Bytes of NaN before and behind every tensor: more than the widest load or tile row reaches. */
enum { BAND = 4096 };

struct block {
    struct block *next;
    char *memory; /* BAND, bytes, BAND */
    char *device; /* the same on the tier's device, where the tier sees it; NULL: the host is the device */
    struct backend *be;
    size_t bytes;
    tensor view; /* of a placed tensor */
    char *copy;  /* of an input: what it must still be; NULL for an output */
};

void block_free_all(struct block **list);
/* Brings the device's side of all placed tensors to the host. GOT, an output there, becomes its host twin. */
int fetch_placed(struct check *ck, tensor *got);

#endif
