/* The CUDA runtime over host memory: everything happens at once, in the order of the calls. See emulator.h.
 *
 * The environment says what kind of machine it is:
 *   EMULATOR_NO_DEVICE=1     no GPU            EMULATOR_MAJOR=N   compute capability N.0 (9)
 *   EMULATOR_DRIVER=N        CUDA version of the driver, 1000 major + 10 minor (13000); 0: no driver
 *   EMULATOR_MEMORY=BYTES    of the GPU (8 GiB)            EMULATOR_SMS=N  multiprocessors (132)
 *   EMULATOR_FAIL_SIZES=A-B  the first cudaMalloc of A to B bytes finds no memory, whatever was free
 *   EMULATOR_TMA=refused     the driver encodes no tensor map; lost: boxes never come; wrong: they come from one row on
 *   EMULATOR_WGMMA=lost      products of wgmma never come
 *   EMULATOR_SHARED=BYTES    launches with more shared memory are refused, whatever the device says of itself
 *   EMULATOR_FAIL_LAUNCH=N   from the Nth launch on everything says that the device failed */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <map>
#include <vector>

#include "emulator.h"
#include "launch.h"

namespace {

struct entry {
    void (*call)(const void *kernel, const void *args);
    size_t bytes;
    int shared_max = 48 << 10;
};

std::map<const void *, entry> kernels;
size_t in_use;
long launches;
bool refused_one;
bool failed;

bool nth(const char *name, long count)
{
    const char *n = getenv(name);
    return n && atol(n) > 0 && count >= atol(n);
}

struct pending {
    void (*host)(void *); /* instead of a kernel */
    void *data;
    const void *kernel;
    dim3 grid, block;
    unsigned shared;
    std::vector<uint64_t> args;
};

cudaError_t run_now(const pending &p)
{
    if (failed || nth("EMULATOR_FAIL_LAUNCH", ++launches)) {
        failed = true;
        return cudaErrorLaunchFailure;
    }
    if (p.host) {
        p.host(p.data);
        return cudaSuccess;
    }
    auto k = kernels.find(p.kernel);
    if (k == kernels.end())
        return cudaErrorInvalidValue;
    const char *most = getenv("EMULATOR_SHARED");
    if ((int)p.shared > k->second.shared_max || (most && (int)p.shared > atoi(most)) || p.grid.x == 0 ||
        p.grid.y == 0 || p.grid.z == 0 || p.grid.y > 65535 || p.grid.z > 65535 || p.block.y != 1 || p.block.z != 1)
        return cudaErrorInvalidValue; /* as the hardware refuses it */
    emulator_launch l = {p.kernel, k->second.call, {p.grid.x, p.grid.y, p.grid.z}, p.block.x, p.shared, p.args.data()};
    emulator_run(&l);
    return cudaSuccess;
}

pending make(const void *f, dim3 grid, dim3 block, unsigned shared, void **args)
{
    pending p = {nullptr, nullptr, f, grid, block, shared, {}};
    auto k = kernels.find(f);
    if (k != kernels.end()) {
        p.args.resize((k->second.bytes + 7) / 8 + 1);
        memcpy(p.args.data(), args[0], k->second.bytes);
    }
    return p;
}

} // namespace

struct emulated_stream {
    int unused;
};
struct emulated_event {
    double ms;
};
struct emulated_node {
    std::vector<pending> work; /* one kernel, or a child graph's */
    emulated_node *after;
};
struct emulated_graph {
    std::vector<emulated_node *> nodes;
};
struct emulated_graph_exec {
    std::map<emulated_node *, size_t> at;
    std::vector<std::vector<pending>> work;
};

static bool capturing;
static std::vector<pending> captured;

static cudaError_t enqueue(const pending &p)
{
    if (!capturing)
        return run_now(p);
    captured.push_back(p);
    return cudaSuccess;
}

static std::vector<pending> all_work(cudaGraph_t g)
{
    std::vector<pending> all;
    for (auto *n : g->nodes)
        all.insert(all.end(), n->work.begin(), n->work.end());
    return all;
}

extern "C" {

void emulator_register(const void *kernel, void (*call)(const void *, const void *), size_t bytes)
{
    entry &e = kernels[kernel];
    e.call = call;
    e.bytes = bytes;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    int driver, runtime;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    *count = getenv("EMULATOR_NO_DEVICE") ? 0 : 1;
    if (driver < runtime)
        return cudaErrorInsufficientDriver;
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device)
{
    if (device != 0)
        return cudaErrorInvalidValue;
    memset(prop, 0, sizeof *prop);
    strcpy(prop->name, "emulated GPU");
    prop->totalGlobalMem = (size_t)8 << 30;
    prop->major = getenv("EMULATOR_MAJOR") ? atoi(getenv("EMULATOR_MAJOR")) : 9;
    prop->multiProcessorCount = getenv("EMULATOR_SMS") ? atoi(getenv("EMULATOR_SMS")) : 132;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device)
{
    cudaDeviceProp p;
    cudaError_t rc = cudaGetDeviceProperties(&p, device);
    *value = attr == cudaDevAttrMultiProcessorCount           ? p.multiProcessorCount
             : attr == cudaDevAttrComputeCapabilityMajor      ? p.major
             : attr == cudaDevAttrComputeCapabilityMinor      ? p.minor
             : attr == cudaDevAttrMaxSharedMemoryPerBlockOptin ? EMULATOR_SHARED_MAX
                                                               : 0;
    return rc;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = getenv("EMULATOR_DRIVER") ? atoi(getenv("EMULATOR_DRIVER")) : 13000;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int)
{
    snprintf(id, (size_t)length, "0000:00:00.0");
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    *total = getenv("EMULATOR_MEMORY") ? strtoull(getenv("EMULATOR_MEMORY"), NULL, 10) : (size_t)8 << 30;
    *free = *total > in_use ? *total - in_use : 0;
    return cudaSuccess;
}

/* The size stands before the block, so that cudaFree can give it back. */
cudaError_t cudaMalloc(void **p, size_t bytes)
{
    size_t free_bytes, total;
    cudaMemGetInfo(&free_bytes, &total);
    *p = nullptr;
    const char *sizes = getenv("EMULATOR_FAIL_SIZES");
    size_t least, most;
    if (sizes && !refused_one && sscanf(sizes, "%zu-%zu", &least, &most) == 2 && bytes >= least && bytes <= most) {
        refused_one = true;
        return cudaErrorMemoryAllocation;
    }
    if (bytes > free_bytes)
        return cudaErrorMemoryAllocation;
    size_t whole = (bytes + 512 + 255) / 256 * 256;
    unsigned char *base = (unsigned char *)aligned_alloc(256, whole);
    if (!base)
        return cudaErrorMemoryAllocation;
    memset(base, 0xff, whole); /* fresh device memory holds anything: here NaN */
    memcpy(base, &bytes, sizeof bytes);
    in_use += bytes;
    *p = base + 256;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (p) {
        unsigned char *base = (unsigned char *)p - 256;
        size_t bytes;
        memcpy(&bytes, base, sizeof bytes);
        in_use -= bytes;
        free(base);
    }
    return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    *p = malloc(bytes ? bytes : 1);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind, cudaStream_t)
{
    if (failed)
        return cudaErrorLaunchFailure;
    if (bytes)
        memcpy(dst, src, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t)
{
    if (failed)
        return cudaErrorLaunchFailure;
    memset(dst, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    *s = new emulated_stream();
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    delete s;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = new emulated_event();
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}

static double taken; /* by emulator_take(), milliseconds */

void emulator_take(double ms)
{
    taken += ms;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    e->ms = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6 + taken;
    return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t)
{
    return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    *ms = (float)(b->ms - a->ms);
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute attr, int value)
{
    if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return cudaSuccess; /* a hint */
    if (value > EMULATOR_SHARED_MAX)
        return cudaErrorInvalidValue;
    kernels[f].shared_max = value;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attr, const void *)
{
    attr->numRegs = 168;
    return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned, unsigned long long,
                                             enum cudaDriverEntryPointQueryResult *found)
{
    *function = strcmp(symbol, "cuTensorMapEncodeTiled") == 0 ? (void *)(uintptr_t)cuTensorMapEncodeTiled : nullptr;
    *found = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

/* Refuses what the driver's documentation forbids. */
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *dim, const cuuint64_t *stride, const cuuint32_t *box,
                                const cuuint32_t *step, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill)
{
    const char *how = getenv("EMULATOR_TMA");
    const unsigned spans[] = {256 * 2, 32, 64, 128};
    if ((how && strcmp(how, "refused") == 0) || (uintptr_t)map % 64 != 0 || (uintptr_t)address % 16 != 0 || rank < 1 ||
        rank > 5 || (type != CU_TENSOR_MAP_DATA_TYPE_FLOAT16 && type != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16) ||
        swizzle > CU_TENSOR_MAP_SWIZZLE_128B || box[0] * 2 % 16 != 0 || box[0] * 2 > spans[swizzle])
        return CUDA_ERROR_INVALID_VALUE;
    memset(map, 0, sizeof *map);
    for (cuuint32_t i = 0; i < rank; i++) {
        if (dim[i] < 1 || dim[i] >= (cuuint64_t)1 << 32 || box[i] < 1 || box[i] > 256 || step[i] != 1)
            return CUDA_ERROR_INVALID_VALUE; /* steps the driver has, but nobody here asks for */
        if (i && (stride[i - 1] % 16 != 0 || stride[i - 1] >= (cuuint64_t)1 << 40 ||
                  stride[i - 1] < (i > 1 ? stride[i - 2] : 2) * dim[i - 1]))
            return CUDA_ERROR_INVALID_VALUE;
        map->dim[i] = (uint32_t)dim[i];
        map->box[i] = (uint16_t)box[i];
        if (i)
            map->stride[i - 1] = stride[i - 1];
    }
    map->address = (uintptr_t)address;
    map->rank = rank;
    map->swizzle = swizzle;
    map->magic = EMULATED_MAP;
    return CUDA_SUCCESS;
}

cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t)
{
    return enqueue(make(f, grid, block, (unsigned)shared, args));
}

cudaError_t cudaLaunchHostFunc(cudaStream_t, void (*fn)(void *), void *data)
{
    return enqueue(pending{fn, data, nullptr, dim3(), dim3(), 0, {}});
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, enum cudaStreamCaptureMode)
{
    if (capturing)
        return cudaErrorInvalidValue;
    capturing = true;
    captured.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *g)
{
    if (!capturing)
        return cudaErrorInvalidValue;
    capturing = false;
    *g = new emulated_graph();
    (*g)->nodes.push_back(new emulated_node{captured, nullptr});
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t e)
{
    return e == cudaSuccess                  ? "no error"
           : e == cudaErrorMemoryAllocation  ? "out of memory"
           : e == cudaErrorNoDevice          ? "no CUDA-capable device is detected"
           : e == cudaErrorInsufficientDriver ? "CUDA driver version is insufficient for CUDA runtime version"
           : e == cudaErrorLaunchFailure     ? "unspecified launch failure"
                                             : "invalid argument";
}

cudaError_t cudaGraphCreate(cudaGraph_t *g, unsigned)
{
    *g = new emulated_graph();
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    for (auto *n : g->nodes)
        delete n;
    delete g;
    return cudaSuccess;
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *n, cudaGraph_t g, const cudaGraphNode_t *after, size_t count,
                                   const struct cudaKernelNodeParams *p)
{
    if (count > 1)
        return cudaErrorInvalidValue; /* chains are all that is built */
    *n = new emulated_node{{make(p->func, p->gridDim, p->blockDim, p->sharedMemBytes, p->kernelParams)},
                           count ? after[0] : nullptr};
    g->nodes.push_back(*n);
    return cudaSuccess;
}

cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t *n, cudaGraph_t g, const cudaGraphNode_t *after, size_t count,
                                       cudaGraph_t child)
{
    if (count > 1)
        return cudaErrorInvalidValue;
    *n = new emulated_node{all_work(child), count ? after[0] : nullptr};
    g->nodes.push_back(*n);
    return cudaSuccess;
}

cudaError_t cudaGraphExecChildGraphNodeSetParams(cudaGraphExec_t e, cudaGraphNode_t n, cudaGraph_t child)
{
    auto at = e->at.find(n);
    if (at == e->at.end() || e->work[at->second].size() != all_work(child).size())
        return cudaErrorInvalidValue;
    e->work[at->second] = all_work(child);
    return cudaSuccess;
}

/* Follows the chain from its first node: a wrong dependency shows as a missing or repeated kernel. */
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long)
{
    auto *x = new emulated_graph_exec();
    emulated_node *last = nullptr;
    for (size_t i = 0; i < g->nodes.size(); i++) {
        emulated_node *next = nullptr;
        for (auto *n : g->nodes)
            if (n->after == last && !x->at.count(n))
                next = next ? (emulated_node *)-1 : n;
        if (!next || next == (emulated_node *)-1) {
            delete x;
            return cudaErrorInvalidValue;
        }
        x->at[next] = x->work.size();
        x->work.push_back(next->work);
        last = next;
    }
    *e = x;
    return cudaSuccess;
}

cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t e, cudaGraphNode_t n,
                                             const struct cudaKernelNodeParams *p)
{
    auto at = e->at.find(n);
    if (at == e->at.end() || e->work[at->second].size() != 1 || e->work[at->second][0].kernel != p->func)
        return cudaErrorInvalidValue;
    e->work[at->second][0] = make(p->func, p->gridDim, p->blockDim, p->sharedMemBytes, p->kernelParams);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
    delete e;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t)
{
    for (const auto &node : e->work)
        for (const auto &p : node) {
            cudaError_t rc = run_now(p);
            if (rc)
                return rc;
        }
    return cudaSuccess;
}

} // extern "C"
