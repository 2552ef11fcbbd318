/* Settings from the environment (see README, "Settings"), read once at start-up by every command. */
#ifndef LATENTD_CONFIG_H
#define LATENTD_CONFIG_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include "error.h"

/* Packed weights are kept of components of so many bytes: smaller ones load at once anyway. */
enum { CONFIG_PACKED_MIB = 16384, CONFIG_PACKED_LEAST = 64 << 20 };
enum { CONFIG_QUEUE_DEFAULT = 8, CONFIG_QUEUE_MAX = 1024, CONFIG_PORT_DEFAULT = 8000 };
enum { CONFIG_STREAM_MIB = 256, CONFIG_STREAM_SECONDS = 600 };
#define CONFIG_MODEL_DEFAULT    "latentd/emoji"
#define CONFIG_PIPELINE_DEFAULT "text-to-image"
#define CONFIG_IMAGE_TO_IMAGE   "image-to-image"
#define CONFIG_IMAGE_TO_VIDEO   "image-to-video"

enum { CONFIG_STUCK_DEFAULT = 600 };
/* The shipped models of an installed program, from the folder above its own: /usr/bin/latentd has
 * /usr/share/latentd/models. */
#define CONFIG_INSTALLED_MODELS "share/latentd/models"
/* Whether activations are to be bf16. */
enum bf16_wish { BF16_ANY, BF16_YES, BF16_NO };
/* What matrices are multiplied in. */
enum precision { PRECISION_ANY, PRECISION_FP32, PRECISION_BF16, PRECISION_INT8 };

struct config {
    const char *pipeline;     /* PIPELINE */
    const char *model_id;     /* MODEL_ID */
    char model_dir[PATH_MAX]; /* MODEL_DIR, or the first shelf that holds the model */
    const char *shelf;        /* MODEL_DIR, wherever the model is; NULL: unset */
    const char *host;         /* HOST */
    int port;                 /* PORT */
    const char *auth_token;   /* AUTH_TOKEN; NULL: open */
    const char *version;      /* VERSION, else "undefined" as the contract says */
    bool verbose;             /* VERBOSE_LOGGING=1 */
    const char *backend;      /* LATENTD_BACKEND; NULL: auto */
    const char *isa;          /* LATENTD_ISA; NULL: the best */
    int threads;              /* LATENTD_THREADS; 0: all cores */
    int queue;                /* LATENTD_QUEUE */
    int stuck;                /* LATENTD_STUCK: seconds without a step until a job counts as hung; 0: never */
    size_t noise_wave;        /* LATENTD_NOISE_GPU, as backend_options.noise_wave */
    size_t memory;            /* LATENTD_MEMORY in bytes; 0: what is free */
    size_t store_most;        /* LATENTD_PACKED_MIB in bytes; 0: packed weights are not kept */
    char store[PATH_MAX];     /* where they are */
    size_t stream_bytes;      /* LATENTD_STREAM_MIB in bytes; 0: nothing is kept */
    int stream_seconds;       /* LATENTD_STREAM_SECONDS */
    bool response_url;        /* LATENTD_RESPONSE_FORMAT is "url" */
    /* The ai-runner's optimisation flags: docs/settings.md. */
    bool deepcache;           /* DEEPCACHE */
    bool warm_up;             /* SFAST, unless SFAST_WARMUP is false; TORCH_COMPILE */
    bool safety_on_cpu;       /* SAFETY_CHECKER_DEVICE is cpu */
    enum bf16_wish bfloat16;  /* BFLOAT16 */
    enum precision precision; /* LATENTD_PRECISION */
    enum bf16_wish bf16;      /* what follows from the two */
};

/* Reads the environment. Strings are borrowed from it. A value that cannot be used is ERR_INVALID and names
 * the variable, the value and what is accepted. Without PIPELINE text-to-image, without MODEL_ID the shipped
 * model. */
int config_read(struct config *c, struct error *err);
/* For the daemon: PIPELINE without MODEL_ID, or the other way round, is refused as the ai-runner does. A
 * command has its own pipeline, and may be told a model. */
int config_check_served(struct error *err);
/* Sets c->precision and c->bf16 to what VALUE says, which came by NAME, a variable or a flag; NULL: unset. A
 * value that is unknown, or that BFLOAT16 contradicts, is ERR_INVALID. config_read calls it; a command with a
 * flag calls it again.
 */
int config_set_precision(struct config *c, const char *name, const char *value, struct error *err);
/* Fills c->model_dir: MODEL_DIR, unless only the installed shelf (CONFIG_INSTALLED_MODELS) holds c->model_id;
 * where it is unset ./models, then <folder of the program>/../models, the installed shelf, ~/.lpData/models,
 * whichever holds c->model_id first (the last one when none does). config_read calls it; a command that
 * changes model_id calls it again. */
int config_find_models(struct config *c, struct error *err);

#endif
