/* The table of the ref backend: every slot in plain C. Other backends start from it and overwrite what they
 * improve. */
#include <stdlib.h>
#include <sys/mman.h>

#include "ref.h"

enum { HUGE_PAGE = 2 << 20, SMALL_ALIGN = 256 };

int ref_mem_alloc(struct backend *be, size_t bytes, void **mem, struct error *err)
{
    (void)be;
    size_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : SMALL_ALIGN;
    int rc = posix_memalign(mem, align, bytes ? bytes : 1);
    if (rc) {
        *mem = NULL;
        return error_set(err, ERR_NOMEM, "out of memory: %zu bytes are not to be had", bytes);
    }
#ifdef MADV_HUGEPAGE
    if (bytes >= HUGE_PAGE) /* only a hint: a kernel without huge pages refuses, and ordinary pages serve */
        (void)madvise(*mem, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return 0;
}

void ref_mem_free(struct backend *be, void *mem, size_t bytes)
{
    (void)be;
    (void)bytes;
    free(mem);
}

int ops_ref(struct backend *be)
{
#define REF_SERVE(name, args) SERVE(be, name, ref_##name, "ref");
    OPS_LIST(REF_SERVE)
    be->mem_alloc = ref_mem_alloc;
    be->mem_free = ref_mem_free;
    return OP_COUNT;
}
