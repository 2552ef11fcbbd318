/* The CUDA backend's device: opening it, memory, copies, and the road from an op to the stream. What the ops
 * compute stands in the .cu files. See cuda.h. */
#include "cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "choose.h"
#include "library.h"
#include "log.h"
#include "nvml.h"
#include "step.h"

int cuda_check(struct backend *be, cudaError_t rc, const char *what, struct error *err)
{
    if (rc == cudaSuccess)
        return 0;
    (void)cudaGetLastError(); /* a failed call that is not sticky must not be found by the next one */
    if (rc == cudaErrorMemoryAllocation)
        return error_set(err, ERR_NOMEM, "CUDA out of memory: %s", what);
    if (be->state && !cuda_of(be)->dead) {
        cuda_of(be)->dead = true;
        chooser_failed(cuda_of(be)->chooser);
    }
    return error_set(err, ERR_DEVICE, "CUDA: %s: %s", what, cudaGetErrorString(rc));
}

/* ---- Memory ---- */

static int cuda_mem_alloc(struct backend *be, size_t bytes, void **mem, struct error *err)
{
    size_t free_bytes = 0, total = 0;
    *mem = NULL;
    cudaError_t rc = cudaMalloc(mem, bytes ? bytes : 1);
    if (rc != cudaErrorMemoryAllocation)
        return cuda_check(be, rc, "cudaMalloc", err);
    (void)cudaGetLastError();
    *mem = NULL;
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess)
        (void)cudaGetLastError();
    return error_set(err, ERR_NOMEM, "CUDA out of memory: %zu MiB are asked, %zu MiB of %zu MiB are free",
                     bytes >> 20, free_bytes >> 20, total >> 20);
}

static void cuda_mem_free(struct backend *be, void *mem, size_t bytes)
{
    (void)bytes;
    /* Work that still reads it comes first. */
    if (!cuda_of(be)->dead)
        cuda_check(be, cudaStreamSynchronize(cuda_of(be)->stream), "waiting", NULL);
    cudaFree(mem); /* says again what is known already on a dead device */
}

static int cuda_mem_available(struct backend *be, size_t *bytes, struct error *err)
{
    size_t total;
    return cuda_check(be, cudaMemGetInfo(bytes, &total), "cudaMemGetInfo", err);
}

/* Through pinned memory in two halves: while one is on its way the next is read, from disk when SRC is
 * mapped. */
int cuda_upload(struct backend *be, void *dst, const void *src, size_t bytes, struct error *err)
{
    struct cuda_state *st = cuda_of(be);
    for (size_t at = 0; at < bytes; at += CUDA_STAGING) {
        size_t part = bytes - at < CUDA_STAGING ? bytes - at : CUDA_STAGING;
        int i = st->next_staging;
        int rc = cuda_check(be, cudaEventSynchronize(st->staged[i]), "waiting for a copy", err);
        if (rc)
            return rc;
        memcpy(st->staging[i], (const char *)src + at, part);
        rc = cuda_check(
            be, cudaMemcpyAsync((char *)dst + at, st->staging[i], part, cudaMemcpyHostToDevice, st->stream),
            "copying to the GPU", err);
        if (!rc)
            rc = cuda_check(be, cudaEventRecord(st->staged[i], st->stream), "cudaEventRecord", err);
        if (rc)
            return rc;
        st->next_staging = !i;
    }
    return 0;
}

static int cuda_wait(struct backend *be, struct error *err)
{
    return cuda_check(be, cudaStreamSynchronize(cuda_of(be)->stream), "waiting for the GPU", err);
}

int cuda_download(struct backend *be, void *dst, const void *src, size_t bytes, struct error *err)
{
    struct cuda_state *st = cuda_of(be);
    int rc = cuda_check(be, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, st->stream),
                        "copying from the GPU", err);
    return rc ? rc : cuda_wait(be, err);
}

/* ---- Commands ---- */

int cuda_issue(struct backend *be, const struct cuda_command *c, struct error *err)
{
    struct cuda_state *st = cuda_of(be);
    if (st->dead)
        return error_set(err, ERR_DEVICE, "CUDA: the GPU failed before");
    return st->recording ? step_record(be, c, err) : step_launch(be, c, err);
}

/* ---- The hardware routes ---- */

static void open_nvml(struct cuda_state *st)
{
    struct error why = {0};
    char bus[32] = "";
    if (cudaDeviceGetPCIBusId(bus, sizeof bus, st->device) != cudaSuccess) {
        (void)cudaGetLastError();
        error_set(&why, ERR_IO, "the GPU has no PCI address");
    } else {
        st->nvml = nvml_open(bus, &why);
    }
    if (!st->nvml)
        log_warning("/hardware/info and /hardware/stats will be incomplete: %s", why.msg);
}

/* Without NVML what CUDA itself knows. */
static int cuda_device_info(struct backend *be, struct device_info *out)
{
    const struct cuda_state *st = cuda_of(be);
    if (st->nvml && nvml_read(st->nvml, out))
        return 1;
    memset(out, 0, sizeof *out);
    if (cudaMemGetInfo(&out->memory_free, &out->memory_total) != cudaSuccess)
        return 0;
    snprintf(out->id, sizeof out->id, "%d", st->device);
    snprintf(out->name, sizeof out->name, "%s", st->name);
    out->major = st->major;
    out->minor = st->minor;
    return 1;
}

static void cuda_print_choices(struct backend *be, FILE *out)
{
    chooser_print(cuda_of(be)->chooser, out);
}

/* ---- Open and close ---- */

static void cuda_close(struct backend *be)
{
    struct cuda_state *st = cuda_of(be);
    if (!st)
        return;
    step_close(be);
    library_close(be);
    if (st->stream && !st->dead)
        cudaStreamSynchronize(st->stream);
    for (int i = 0; i < 2; i++) {
        if (st->staged[i])
            cudaEventDestroy(st->staged[i]);
        if (st->staging[i])
            cudaFreeHost(st->staging[i]);
    }
    if (st->workspace)
        cudaFree(st->workspace);
    if (st->stream)
        cudaStreamDestroy(st->stream);
    nvml_close(&st->nvml);
    chooser_close(&st->chooser);
    free(st);
    be->state = NULL;
}

/* The first GPU that this build can serve; ERR_UNSUPPORTED says why there is none. */
static int find_device(struct cuda_state *st, struct error *err)
{
    int count = 0, driver = 0, runtime = 0;
    cudaError_t rc = cudaGetDeviceCount(&count);
    if (rc == cudaErrorInsufficientDriver) {
        (void)cudaGetLastError();
        if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0 &&
            cudaRuntimeGetVersion(&runtime) == cudaSuccess)
            return error_set(err, ERR_UNSUPPORTED,
                             "the NVIDIA driver is too old: it serves CUDA %d.%d, this build needs %d.%d",
                             driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
        return error_set(err, ERR_UNSUPPORTED, "there is no NVIDIA driver (libcuda.so.1)");
    }
    if (rc == cudaErrorNoDevice || (rc == cudaSuccess && count < 1)) {
        (void)cudaGetLastError();
        return error_set(err, ERR_UNSUPPORTED, "there is no NVIDIA GPU");
    }
    if (rc != cudaSuccess) {
        (void)cudaGetLastError();
        return error_set(err, ERR_UNSUPPORTED, "the NVIDIA driver says: %s", cudaGetErrorString(rc));
    }
    struct cudaDeviceProp prop;
    if ((rc = cudaGetDeviceProperties(&prop, 0)) != cudaSuccess)
        return error_set(err, ERR_UNSUPPORTED, "the GPU does not answer: %s", cudaGetErrorString(rc));
    if (prop.major < 8)
        return error_set(err, ERR_UNSUPPORTED,
                         "%s has compute capability %d.%d, this build needs 8.0 (Ampere) or newer", prop.name,
                         prop.major, prop.minor);
    snprintf(st->name, sizeof st->name, "%s", prop.name);
    st->major = prop.major;
    st->minor = prop.minor;
    st->multiprocessors = prop.multiProcessorCount;
    return 0;
}

/* Through the driver that the runtime has loaded: nothing links to it. */
static void find_tensor_maps(struct cuda_state *st)
{
    const char name[] = "cuTensorMapEncodeTiled";
    void *function = NULL;
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaError_t rc = cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found);
#else
    cudaError_t rc = cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found);
#endif
    if (rc != cudaSuccess)
        (void)cudaGetLastError();
    if (rc == cudaSuccess && found == cudaDriverEntryPointSuccess)
        st->encode_box = function;
    else if (st->major >= 9)
        log_warning("the driver has no %s: the kernels that need it are left out", name);
}

static int open_stream(struct backend *be, struct error *err)
{
    struct cuda_state *st = cuda_of(be);
    int shared = 0;
    int rc = cuda_check(be, cudaSetDevice(st->device), "cudaSetDevice", err);
    if (!rc)
        rc = cuda_check(be,
                        cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, st->device),
                        "cudaDeviceGetAttribute", err);
    st->shared_max = (size_t)shared;
    if (!rc)
        rc = cuda_check(be, cudaStreamCreateWithFlags(&st->stream, cudaStreamNonBlocking), "cudaStreamCreate",
                        err);
    if (!rc)
        rc = cuda_check(be, cudaMalloc(&st->workspace, CUDA_WORKSPACE + sizeof(unsigned)), "the workspace",
                        err);
    /* So that no run depends on what was there. Ops write what they read of it; trials fill it with NaN. */
    if (!rc)
        rc = cuda_check(be, cudaMemsetAsync(st->workspace, 0, CUDA_WORKSPACE + sizeof(unsigned), st->stream),
                        "the workspace", err);
    for (int i = 0; i < 2 && !rc; i++) {
        rc = cuda_check(be, cudaHostAlloc(&st->staging[i], CUDA_STAGING, cudaHostAllocDefault),
                        "pinned memory", err);
        if (!rc)
            rc = cuda_check(be, cudaEventCreateWithFlags(&st->staged[i], cudaEventDisableTiming),
                            "cudaEventCreate", err);
    }
    return rc;
}

int backend_open_cuda(struct backend *be, const struct backend_options *opt, struct error *err)
{
    struct cuda_state *st = calloc(1, sizeof *st);
    if (!st)
        return error_set(err, ERR_NOMEM, "no memory for the CUDA backend");
    be->state = st;
    be->close = cuda_close;
    be->name = be->tier = "cuda";
    be->dtype = DTYPE_F16;
    bool fp16 = opt->isa && strncmp(opt->isa, "fp16", 4) == 0,
         bf16 = opt->isa && strncmp(opt->isa, "bf16", 4) == 0;
    if ((fp16 && opt->bf16 == BF16_YES) || (bf16 && opt->bf16 == BF16_NO))
        return error_set(err, ERR_INVALID, "LATENTD_ISA=%s and BFLOAT16 contradict each other", opt->isa);
    if (bf16 || opt->bf16 == BF16_YES)
        be->dtype = DTYPE_BF16;
    if (opt->isa && !fp16 && !bf16)
        log_warning("LATENTD_ISA=%s is for the CPU; on the GPU activations are fp16 or bf16", opt->isa);
    be->mem_alloc = cuda_mem_alloc;
    be->mem_free = cuda_mem_free;
    be->mem_available = cuda_mem_available;
    be->upload = cuda_upload;
    be->download = cuda_download;
    be->wait = cuda_wait;
    be->device_info = cuda_device_info;
    be->print_choices = cuda_print_choices;
    be->step_begin = step_begin;
    be->step_end = step_end;
#define CUDA_SERVE(name, args) SERVE(be, name, cuda_##name, "cuda");
    OPS_LIST(CUDA_SERVE)
    int rc = find_device(st, err);
    if (rc)
        return rc;
    rc = open_stream(be, err);
    if (!rc) {
        find_tensor_maps(st);
        library_open(be);
        const char *only = opt->isa ? strchr(opt->isa, '/') : NULL;
        st->chooser = chooser_open(be, only ? only + 1 : NULL);
        open_nvml(st);
    }
    if (!rc)
        log_info("GPU: %s, compute capability %d.%d, %d multiprocessors", st->name, st->major, st->minor,
                 st->multiprocessors);
    return rc;
}
