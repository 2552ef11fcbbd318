/* What data.c, verify.c and main.c of checkkernels share. */
#ifndef LATENTD_CHECK_INTERNAL_H
#define LATENTD_CHECK_INTERNAL_H

#include "check.h"

/* Bytes of NaN before and behind every tensor: more than the widest load or tile row reaches. */
enum { BAND = 4096 };

struct block {
    struct block *next;
    char *memory; /* BAND, bytes, BAND */
    size_t bytes;
    tensor view; /* of a placed tensor */
    char *copy;  /* of an input: what it must still be; NULL for an output */
};

void block_free_all(struct block **list);

#endif
