/* The LoRAs of a request: finds room, and has them merged into the networks before the run. See weights.h. */
#include "loras.h"

#include "backend.h"
#include "weights.h"

/* What stays free for the system and the job's smaller buffers. */
enum { RESERVE = 64 << 20 };

static int open_shelf(struct model *m, struct error *err)
{
    struct lora_shelf_options opt = {.root = m->root, .base = m->id, .pool = m->be->pool};
    opt.list[LORA_UNET] = unet_weights(m->unet);
    opt.list[LORA_TEXT] = clip_text_weights(m->text[0]);
    opt.list[LORA_TEXT_2] = m->encoders > 1 ? clip_text_weights(m->text[1]) : NULL;
    return lora_shelf_open(&m->loras, &opt, err);
}

/* 0 when BYTES more, and HOST on the host, can be had now. */
static int check_room(struct model *m, size_t bytes, size_t host, struct error *err)
{
    size_t have = memory_available(m->be), gpu = 0;
    if (m->be->mem_available) {
        int rc = m->be->mem_available(m->be, &gpu, err);
        if (rc)
            return rc;
        if (bytes > gpu)
            return error_set(err, ERR_NOMEM,
                             "CUDA out of memory: the LoRAs need %zu MiB on the GPU, %zu MiB are free",
                             bytes >> 20, gpu >> 20);
        bytes = 0;
    }
    if (bytes + host > have || have - bytes - host < RESERVE)
        return error_set(err, ERR_NOMEM, "the LoRAs need %zu MiB of memory, %zu MiB are free",
                         (bytes + host) >> 20, have >> 20);
    return 0;
}

/* Room for NEED. What was merged before makes way first. */
static int make_room(struct model *m, const struct lora_need *need, struct error *err)
{
    size_t held = atomic_load(&m->mem_size), region = need->region > held ? need->region : 0;
    if (need->weights == 0)
        return 0;
    lora_shelf_drop(m->loras, m->be);
    int rc = check_room(m, need->weights + region, need->host, err);
    return rc ? rc : model_job_memory(m, need->region, err);
}

int apply_loras(struct model *m, const struct loras *loras, struct error *err)
{
    struct lora_use use[LORAS_MAX];
    struct lora_need need;
    static const struct loras none = {0};
    int rc = 0;
    if (!loras)
        loras = &none;
    if (!m->loras && loras->count == 0)
        return 0;
    if (loras->count < 0 || loras->count > LORAS_MAX)
        return error_set(err, ERR_LORA, "Too many LoRas provided. Maximum is %d", (int)LORAS_MAX);
    for (int i = 0; i < loras->count; i++)
        use[i] = (struct lora_use){.id = loras->item[i].id, .strength = loras->item[i].strength};
    if ((!m->loras && (rc = open_shelf(m, err))) ||
        (rc = lora_shelf_prepare(m->loras, m->be->dtype, use, loras->count, &need, err)) ||
        (m->be->wait && (rc = m->be->wait(m->be, err))) || (rc = make_room(m, &need, err)))
        return rc;
    pass p = {.be = m->be, .mem = &m->region, .err = err};
    return lora_shelf_apply(m->loras, &p, err);
}
