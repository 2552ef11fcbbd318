/* The loaded model, as the pipelines see it. Private to src/pipelines. */
#ifndef LATENTD_PIPELINES_MODEL_H
#define LATENTD_PIPELINES_MODEL_H

#include <stdatomic.h>

#include "networks.h"
#include "pipeline.h"
#include "region.h"
#include "safety_processor.h"
#include "scheduler.h"
#include "tokenizer.h"

/* What kind of pipeline the model's files are for, from model_index.json. */
enum family { FAMILY_SD, FAMILY_SDXL, FAMILY_PIX2PIX, FAMILY_VIDEO, FAMILY_UPSCALE };

struct safety;

enum { TEXT_ENCODERS_MAX = 2 };

struct model {
    struct backend *be;
    struct backend *vae_be; /* be, or its twin in bf16 where the VAE overflows fp16 */
    char *id;
    char *root; /* MODEL_DIR */
    enum family family;
    int encoders; /* 1; 2 for SDXL */
    struct tokenizer *tokenizer[TEXT_ENCODERS_MAX];
    struct clip_text *text[TEXT_ENCODERS_MAX];
    struct unet *unet;
    struct vae *vae;
    struct unet_video *unet_video; /* FAMILY_VIDEO has these four in the place of text, UNet and VAE */
    struct vae_video *vae_video;
    struct clip_vision *vision;
    struct safety_processor processor; /* of the picture that VISION reads; mean and std alone */
    struct scheduler_config *scheduler;
    struct scheduler_config *low_res_scheduler; /* FAMILY_UPSCALE: noises the picture that comes in */
    int max_noise_level;                        /* and how far at most */
    bool deepcache;              /* UNet calls in between read what an earlier one computed; see run_deep() */
    bool zeros_for_empty_prompt; /* SDXL's force_zeros_for_empty_prompt */
    bool aesthetics_score;       /* SDXL refiner's requires_aesthetics_score */
    enum dtype noise_dtype;      /* type in which the original draws its latents */
    enum dtype posterior_dtype;  /* and the sample of the input picture's posterior */
    struct safety *safety;       /* the checkers, where there are any */
    /* Job memory, kept between jobs, grown when a job needs more and given back when several need much less.
     * Only the worker changes it; the size is read by admission on other threads. */
    void *mem;
    _Atomic size_t mem_size;
    int small_jobs; /* in a row, that needed less than half of it */
    struct region region;
    struct phase_times times;
    struct lora_shelf *loras; /* NULL until a request has some */
};

/* Bytes that a job on BE could still take: the machine's available memory, cut by the cgroup's limit and by
 * the backend's own. */
size_t memory_available(const struct backend *be);
/* Bytes up to the limit of the cgroup (version 2) whose files lie in FOLDER; SIZE_MAX: it has none. */
size_t memory_cgroup_rest(const char *folder);
/* Job memory of at least BYTES in m->mem, emptied into m->region. ERR_NOMEM when it cannot be had. */
int model_job_memory(struct model *m, size_t bytes, struct error *err);
/* Before a job of BYTES: gives back what one large job left behind, once several small ones followed it. */
void model_trim(struct model *m, size_t bytes);

/* ---- rules.c: what the ai-runner does for models by their id (contract 3.3, 3.4) ---- */

/* Steps of an SDXL-Lightning id: 2, 4 or 8; 0: the id names another model. */
int rules_lightning_steps(const char *id);
bool rules_turbo(const char *id);     /* sd-turbo and sdxl-turbo: guidance 0 */
bool rules_pix2pix(const char *id);   /* instruct-pix2pix by name */
bool rules_few_steps(const char *id); /* turbo and lightning models, which DeepCache would only spoil */
bool rules_extra_vae(const char *id); /* Realistic Vision, which is published without a VAE */

#endif
