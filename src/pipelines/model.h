/* The loaded model, as the pipelines see it. Private to src/pipelines. */
#ifndef LATENTD_PIPELINES_MODEL_H
#define LATENTD_PIPELINES_MODEL_H

#include <stdatomic.h>

#include "networks.h"
#include "pipeline.h"
#include "region.h"
#include "scheduler.h"
#include "tokenizer.h"

struct model {
    struct backend *be;
    char *id;
    struct tokenizer *tokenizer;
    struct clip_text *text;
    struct unet *unet;
    struct vae *vae;
    struct scheduler_config *scheduler;
    enum dtype noise_dtype; /* type in which the original draws its latents */
    /* Job memory, kept between jobs and grown when a job needs more. Only the worker changes it; the size is
     * read by admission on other threads. */
    void *mem;
    _Atomic size_t mem_size;
    struct region region;
    struct phase_times times;
};

/* Bytes that this process could still take: the machine's available memory, cut by the cgroup's limit. */
size_t memory_available(void);
/* Job memory of at least BYTES in m->mem, emptied into m->region. ERR_NOMEM when it cannot be had. */
int model_job_memory(struct model *m, size_t bytes, struct error *err);

#endif
