/* Job memory: one block, taken once, from which tensors are cut and given back without calling the system.
 *
 * First fit over a fixed table, so the same sequence of calls gives the same addresses every time. That makes
 * planning exact: the `plan` backend walks the same network over a region that has no memory behind it (base
 * NULL at set-up), and its high-water mark is what the real run needs. */
#ifndef LATENTD_REGION_H
#define LATENTD_REGION_H

#include <stddef.h>

#include "error.h"

enum { REGION_ALIGN = 256, REGION_BLOCKS_MAX = 4096 };

struct region {
    char *base;  /* never read when the region only plans */
    size_t size; /* SIZE_MAX when planning */
    size_t peak; /* high-water mark since region_reset() */
    int count;   /* live blocks, sorted by offset */
    struct {
        size_t offset, bytes;
    } block[REGION_BLOCKS_MAX];
};

/* BASE NULL: a planning region, whose addresses must not be touched. */
void region_init(struct region *r, void *base, size_t size);
/* Forgets all blocks and the peak. */
void region_reset(struct region *r);
/* Returns REGION_ALIGN-aligned memory, or NULL (ERR_NOMEM, says how much was asked and how much there is). */
void *region_alloc(struct region *r, size_t bytes, struct error *err);
/* MEM must be what region_alloc returned; anything else is ignored and reported as ERR_INTERNAL. */
int region_free(struct region *r, void *mem, struct error *err);

#endif
