/* The LoRAs of a request. See loras.h. */
#include "loras.h"

int apply_loras(struct model *m, const struct loras *loras, struct error *err)
{
    (void)m;
    if (!loras || loras->count == 0)
        return 0;
    return error_set(err, ERR_LORA, "LoRa repository '%.200s' not found", loras->item[0].id);
}
