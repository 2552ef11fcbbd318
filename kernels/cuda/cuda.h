/* Private to kernels/cuda: the state of the backend and how work gets onto the stream.
 *
 * Every op turns into one or more commands: a kernel, its grid, and one struct of arguments. Outside a step a
 * command is launched at once. Between step_begin and step_end commands are only written down; step_end
 * compares the list with the lists it has seen and replays a CUDA graph, so that a denoising step costs one
 * launch. Addresses repeat from step to step (region.h), and where an argument did change, its node is
 * updated.
 *
 * Nothing here waits for the device except to_host, to_rgb8 and weight packing. */
#ifndef LATENTD_CUDA_H
#define LATENTD_CUDA_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" { /* also for what backend.h declares, it is C */
#endif

#include "backend.h"

enum {
    CUDA_ARGS_MAX = 1024,      /* bytes of one kernel's arguments */
    CUDA_GRAPHS = 8,           /* steps of so many shapes are kept */
    CUDA_WORKSPACE = 64 << 20, /* partial sums of split products, statistics of norms */
    CUDA_STAGING = 16 << 20,   /* pinned; two of them, so that reading ahead and copying overlap */
    CUDA_IDS_MAX = 192         /* token ids in one launch of embed_tokens */
};

/* One launch, or one call of a library. ARGS is a copy: the struct may be gone when the command runs. */
struct cuda_command {
    const void *kernel;                                 /* __global__ void kernel(struct args) */
    void (*call)(const void *kernel, const void *args); /* the emulator's way in; NULL in a real build */
    /* Instead of a kernel: enqueues what ARGS say on STREAM, which may be capturing. What ARGS point to
     * (plans, handles) lives as long as the backend. */
    int (*library)(struct backend *be, const void *args, cudaStream_t stream, struct error *err);
    unsigned grid[3], threads, shared, bytes;
    bool trial; /* outside a step: a launch that CUDA refuses is ERR_UNSUPPORTED, and the device no worse for
                   it */
    unsigned char args[CUDA_ARGS_MAX] __attribute__((aligned(16)));
};

struct cuda_step; /* the commands of a step and its graph */

struct cuda_state {
    int device, multiprocessors;
    int major, minor;  /* compute capability */
    size_t shared_max; /* bytes of shared memory that a block can have */
    char name[256];
    void *encode_box; /* the driver's cuTensorMapEncodeTiled; NULL: it has none */
    cudaStream_t stream;
    void *workspace;   /* CUDA_WORKSPACE bytes; used within one op and free after it, in stream order; behind
                          them a trial's flag, zero before each */
    struct nvml *nvml; /* NULL: not to be had */
    struct chooser *chooser; /* NULL: the first candidate serves; see choose.h */
    void *staging[2];
    cudaEvent_t staged[2];
    int next_staging;
    bool recording;
    struct cuda_step *now;               /* what step_begin opened */
    struct cuda_step *step[CUDA_GRAPHS]; /* seen before, the latest first */
    bool dead;                           /* a sticky error: nothing runs on this device any more */
};

static inline struct cuda_state *cuda_of(const struct backend *be)
{
    return (struct cuda_state *)be->state;
}

/* What a kernel on trial writes when something never came (trial.h). */
static inline unsigned *cuda_trial_flag(const struct backend *be)
{
    return (unsigned *)((char *)cuda_of(be)->workspace + CUDA_WORKSPACE);
}

/* 0, or ERR_NOMEM for memory, or ERR_DEVICE for everything else, with WHAT and CUDA's words in ERR. */
int cuda_check(struct backend *be, cudaError_t rc, const char *what, struct error *err);

/* Launches C, or writes it down inside a step. */
int cuda_issue(struct backend *be, const struct cuda_command *c, struct error *err);

/* Copies between host memory (any, also an mmap) and the device, in stream order. upload returns when SRC has
 * been read, download when DST is complete. */
int cuda_upload(struct backend *be, void *dst, const void *src, size_t bytes, struct error *err);
int cuda_download(struct backend *be, void *dst, const void *src, size_t bytes, struct error *err);

/* The slots; the .cu files define them. */
#define CUDA_DECLARE(name, args) int cuda_##name args;
OPS_LIST(CUDA_DECLARE)

#ifdef __cplusplus
}
#endif

#endif
