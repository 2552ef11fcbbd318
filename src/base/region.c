/* See region.h. */
#include "region.h"

#include <stdint.h>
#include <string.h>

/* Planning regions hand out addresses from here on, so that NULL keeps meaning "no tensor". */
#define PLAN_BASE ((char *)(uintptr_t)(1u << 20))

void region_init(struct region *r, void *base, size_t size)
{
    r->base = base ? base : PLAN_BASE;
    r->size = base ? size : SIZE_MAX / 4;
    region_reset(r);
}

void region_reset(struct region *r)
{
    r->count = 0;
    r->peak = 0;
}

void *region_alloc(struct region *r, size_t bytes, struct error *err)
{
    if (bytes == 0)
        bytes = 1;
    if (bytes > r->size) {
        error_set(err, ERR_NOMEM, "out of memory: %zu bytes were asked of a region of %zu", bytes, r->size);
        return NULL;
    }
    bytes = (bytes + REGION_ALIGN - 1) / REGION_ALIGN * REGION_ALIGN;
    size_t at = 0;
    int i = 0;
    for (; i < r->count; i++) {
        if (r->block[i].offset - at >= bytes)
            break;
        at = r->block[i].offset + r->block[i].bytes;
    }
    if (bytes > r->size || at > r->size - bytes) {
        error_set(err, ERR_NOMEM, "out of memory: %zu bytes do not fit into a region of %zu", bytes, r->size);
        return NULL;
    }
    if (r->count == REGION_BLOCKS_MAX) {
        error_set(err, ERR_INTERNAL, "more than %d tensors are alive at once", REGION_BLOCKS_MAX);
        return NULL;
    }
    memmove(&r->block[i + 1], &r->block[i], (size_t)(r->count - i) * sizeof r->block[0]);
    r->block[i].offset = at;
    r->block[i].bytes = bytes;
    r->count++;
    if (at + bytes > r->peak)
        r->peak = at + bytes;
    return r->base + at;
}

int region_free(struct region *r, void *mem, struct error *err)
{
    size_t offset = (size_t)((uintptr_t)mem - (uintptr_t)r->base);
    int lo = 0, hi = r->count;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (r->block[mid].offset < offset)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == r->count || r->block[lo].offset != offset)
        return error_set(err, ERR_INTERNAL, "a tensor was freed twice, or a view was freed");
    r->count--;
    memmove(&r->block[lo], &r->block[lo + 1], (size_t)(r->count - lo) * sizeof r->block[0]);
    return 0;
}
