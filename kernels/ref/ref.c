/* The table of the ref backend: every slot in plain C. Other backends start from it and overwrite what they
 * improve. */
#include "ref.h"

int ops_ref(struct backend *be)
{
#define REF_SERVE(name, args) SERVE(be, name, ref_##name, "ref");
    OPS_LIST(REF_SERVE)
    be->mem_alloc = ref_mem_alloc;
    be->mem_free = ref_mem_free;
    return OP_COUNT;
}
