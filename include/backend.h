/* A backend: the table of ops, who serves each of them, and the memory they run in. Opened once at start-up.
 */
#ifndef LATENTD_BACKEND_H
#define LATENTD_BACKEND_H

#include <stddef.h>
#include <stdio.h>
#include <time.h>

#include "config.h"
#include "ops.h"

struct pool;

struct backend_options {
    const char *kind;  /* "cpu", "cuda", "ref", "plan" or "auto" (NULL means auto) */
    const char *isa;   /* highest CPU tier allowed: "ref", "avx2", "avx512", "avx512bf16", "amx"; on CUDA the
                          activation type, "fp16" or "bf16", and for tests "/NAME" of a candidate that is to
                          serve  wherever it can; NULL: the best */
    int threads;       /* 0: one for each core the process may use */
    size_t noise_wave; /* threads in one wave of the card whose torch.randn is the reference, a multiple of
                          256; 0: NOISE_WAVE_THREADS */
    size_t memory_max; /* bytes of main memory that one job may take; 0: whatever is free */
    /* Packed weights from start to start (weights.h), on backends that have a layout for them. */
    const char *store;              /* the folder; NULL: they are not kept. Borrowed for the backend's life */
    size_t store_most, store_least; /* bytes of all files together; of a component that is worth a file */
    /* BF16_NO: no tier that computes in bf16. BF16_YES: bf16 on a GPU; a CPU without it says so. An ISA that
     * says otherwise is ERR_INVALID. */
    enum bf16_wish bf16;
    /* PRECISION_INT8: matrices that their networks bear in int8 are kept and multiplied in it
     * (kernels/int8.h); ERR_UNSUPPORTED on a GPU and where no CPU tier, or not the named one, has int8.
     * PRECISION_FP32 is ERR_UNSUPPORTED on a GPU. On a CPU bf16 and fp32 are what BF16 says. */
    enum precision precision;
};

/* A GPU, as /hardware/info and /hardware/stats show it. */
struct device_info {
    char id[96]; /* "GPU-…" */
    char name[256];
    size_t memory_total, memory_free;            /* bytes */
    int major, minor;                            /* compute capability */
    int utilization_compute, utilization_memory; /* per cent of the last second or so */
};

struct backend {
    struct ops ops;
    const char *served_by[OP_COUNT]; /* "ref", "avx2", "avx512", "amx", "cuda", … */
    const char *name;                /* "cpu", "cuda", "ref", "plan" */
    const char *tier;                /* highest tier in use, for the log: "avx512" */
    enum dtype dtype;                /* activation type: pass_dtype() */
    bool int8;                       /* precision is int8 */
    /* Where int8: NULL, or whether the backend multiplies SRC faster in its own type, and so leaves it there.
     */
    bool (*int8_leaves)(const struct weight_source *src);
    struct pool *pool;   /* CPU threads; NULL for ref and plan */
    void *state;         /* the backend's own */
    size_t noise_wave;   /* as in the options, never 0 */
    size_t memory_max;   /* as in the options; SIZE_MAX: whatever is free */
    size_t weight_bytes; /* packed weights alive now; kept by weight_pack and weight_free */
    size_t mapped_bytes; /* of these, in files that are mapped; also kept by weight_map */
    const char *store;   /* as in the options */
    size_t store_most, store_least;
    struct timespec store_since; /* what was used after that is in use */
    char layout[64];             /* names what packed weights look like; "": they cannot be kept in files */
    struct packed_store *stores; /* of the components that were loaded, src/weights/packed.c's own */
    unsigned sums;               /* the name of the last sums that were kept, tensor.sums; 0: none yet */
    struct backend *device;      /* NULL, or the backend whose device this is a second handle on */
    int (*mem_alloc)(struct backend *, size_t bytes, void **mem, struct error *); /* memory for a region */
    void (*mem_free)(struct backend *, void *mem, size_t bytes);
    /* The next eight are NULL on a backend that computes in the host's memory and at once. */
    int (*mem_available)(struct backend *, size_t *bytes, struct error *);
    int (*upload)(struct backend *, void *dst, const void *src, size_t bytes, struct error *); /* to device */
    int (*download)(struct backend *, void *dst, const void *src, size_t bytes, struct error *);
    int (*wait)(struct backend *, struct error *); /* until all that was enqueued is done */
    /* The GPU in use, looked at anew. 1, or 0 when it cannot be asked. Any thread. */
    int (*device_info)(struct backend *, struct device_info *);
    void (*print_choices)(struct backend *,
                          FILE *); /* which of several kernels serves each shape, and the times */
    int (*step_begin)(struct backend *, struct error *); /* see pass_step_begin() in ops.h */
    int (*step_end)(struct backend *, struct error *);
    /* How W is packed, for weight.form, which a planning thread may read while W is replaced. NULL: 0. */
    unsigned char (*form_of)(const weight *w);
    /* norm_silu_conv2d() of ops.h in one, and whether that is possible for these shapes (y: n, h, w, c
     * alone), without a look at what W has packed. Both NULL: never; then group_norm_silu and conv2d serve.
     */
    bool (*fuses_norm)(const struct backend *, tensor y, tensor x, const weight *w,
                       const struct conv2d_args *a);
    int (*norm_silu_conv2d)(struct backend *, tensor y, tensor x, const struct norm_silu *norm,
                            const weight *w, const struct conv2d_args *a, struct error *);
    /* Likewise layer_norm_linear(); then layer_norm and linear serve. */
    bool (*fuses_layer_norm)(const struct backend *, tensor x, const weight *w);
    int (*layer_norm_linear)(struct backend *, tensor y, tensor x, const weight *norm, float eps,
                             const weight *w, const struct linear_args *a, struct error *);
    void (*close)(struct backend *); /* frees state */
};

/* Overwrites one slot and says who serves it now. */
#define SERVE(be, op, function, who) ((be)->ops.op = (function), (be)->served_by[OP_##op] = (who))

/* Opens the backend that OPT names. "auto" takes CUDA where it works and says in the log why not otherwise. A
 * named backend or tier that this machine lacks is ERR_UNSUPPORTED, never a quiet detour. */
int backend_open(struct backend **be, const struct backend_options *opt, struct error *err);
/* Frees *BE and sets it to NULL. All weights must have been freed. */
void backend_close(struct backend **be);

/* For a network that overflows F16 (SDXL's VAE: force_upcast in its config): *OUT is BE itself unless BE
 * computes in F16; then a second handle on the same device, stream and memory, whose activations are BF16.
 * Load the network with *OUT and run it by a pass with .be = *OUT; regions, tensors and steps of the two mix,
 * and tensors go from one to the other through F32 or convert(). Its weights count as BE's. Where it is not
 * BE, close it by backend_close() before BE; not two steps at once. */
int backend_open_wide(struct backend **out, struct backend *be, struct error *err);

/* FLOP/s (2 a multiply-add) that BE can do at best, measured for a fraction of a second: on a CPU the tier's
 * matrix instruction with its operands in registers or first-level cache, on all threads of the pool;
 * elsewhere a large matrix product. WHAT says which. 0 when it cannot be measured. */
double backend_peak_flops(struct backend *be, char *what, size_t what_size);

/* Filled in by the folders of kernels/. Each returns the number of slots it took. */
int ops_ref(struct backend *be);
int ops_plan(struct backend *be);
/* Opens the first NVIDIA GPU. ERR_UNSUPPORTED says why there is none that serves. Only in builds with CUDA.
 */
int backend_open_cuda(struct backend *be, const struct backend_options *opt, struct error *err);

#endif
