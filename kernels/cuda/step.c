/* Steps as CUDA graphs: a chain of kernels, in the order in which the ops issued them. See step.h. */
#include "step.h"

#include <stdlib.h>
#include <string.h>

/* What is compared and kept of a command: its head, then its arguments, rounded up to whole words. */
struct record {
    const void *kernel;
    void (*call)(const void *kernel, const void *args);
    int (*library)(struct backend *be, const void *args, cudaStream_t stream, struct error *err);
    unsigned grid[3], threads, shared, bytes;
};

struct cuda_step {
    unsigned char *data; /* records, one behind the other */
    size_t length, capacity;
    int count;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaGraphNode_t *node; /* [count] */
};

enum { SHARED_PLAIN = 48 << 10 }; /* more must be asked for, kernel by kernel */

static size_t record_size(const struct record *r)
{
    return sizeof *r + (r->bytes + 15) / 16 * 16;
}

static void *record_args(const struct record *r)
{
    return (void *)(uintptr_t)(r + 1);
}

static void step_free(struct cuda_step **step)
{
    struct cuda_step *s = *step;
    if (!s)
        return;
    if (s->exec)
        cudaGraphExecDestroy(s->exec);
    if (s->graph)
        cudaGraphDestroy(s->graph);
    free(s->node);
    free(s->data);
    free(s);
    *step = NULL;
}

void step_close(struct backend *be)
{
    struct cuda_state *st = cuda_of(be);
    step_free(&st->now);
    for (int i = 0; i < CUDA_GRAPHS; i++)
        step_free(&st->step[i]);
}

/* Errors of a launch that did not begin; the context is as it was. */
static bool refused(cudaError_t rc)
{
    return rc == cudaErrorInvalidValue || rc == cudaErrorInvalidConfiguration ||
           rc == cudaErrorInvalidDeviceFunction || rc == cudaErrorNoKernelImageForDevice ||
           rc == cudaErrorLaunchOutOfResources;
}

/* What CUDA says about a launch. In a trial a refusal is no fault of the device. */
static int launched(struct backend *be, cudaError_t rc, bool trial, const char *what, struct error *err)
{
    if (!trial || !refused(rc))
        return cuda_check(be, rc, what, err);
    (void)cudaGetLastError();
    return error_set(err, ERR_UNSUPPORTED, "%s: %s", what, cudaGetErrorString(rc));
}

/* Lets KERNEL have its shared memory. The attribute is a limit, and stays: it is set to all that a block can
 * have, never to what this launch wants, or a smaller one would lower it under the graphs that were built
 * before. Setting it again costs next to nothing. */
static int allow_shared(struct backend *be, const void *kernel, unsigned shared, bool trial,
                        struct error *err)
{
    size_t most = cuda_of(be)->shared_max; /* no kernel has shared memory beside what is asked for here */
    if (shared <= SHARED_PLAIN)
        return 0;
    if (shared > most)
        return error_set(err, trial ? ERR_UNSUPPORTED : ERR_INTERNAL,
                         "a kernel asks for %u bytes of shared memory, a block has %zu", shared, most);
    int rc =
        launched(be, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)most),
                 trial, "shared memory", err);
    /* All of it for shared memory and none for a cache: otherwise only one block may fit where two are meant.
     */
    return rc ? rc
              : launched(be,
                         cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100),
                         trial, "shared memory", err);
}

static void announce(const void *kernel, void (*call)(const void *, const void *), unsigned bytes)
{
#ifdef LATENTD_CUDA_EMULATED
    emulator_register(kernel, call, bytes);
#else
    (void)kernel;
    (void)call;
    (void)bytes;
#endif
}

int step_launch(struct backend *be, const struct cuda_command *c, struct error *err)
{
    if (c->library)
        return c->library(be, c->args, cuda_of(be)->stream, err);
    announce(c->kernel, c->call, c->bytes);
    int rc = allow_shared(be, c->kernel, c->shared, c->trial, err);
    if (rc)
        return rc;
    void *args[1] = {(void *)(uintptr_t)c->args};
    dim3 grid = {c->grid[0], c->grid[1], c->grid[2]}, block = {c->threads, 1, 1};
    return launched(be, cudaLaunchKernel(c->kernel, grid, block, args, c->shared, cuda_of(be)->stream),
                    c->trial, "launching a kernel", err);
}

int step_begin(struct backend *be, struct error *err)
{
    struct cuda_state *st = cuda_of(be);
    if (st->recording)
        return error_set(err, ERR_INTERNAL, "a step inside a step");
    step_free(&st->now); /* of a step that failed in the middle */
    st->now = calloc(1, sizeof *st->now);
    if (!st->now)
        return error_set(err, ERR_NOMEM, "no memory for the commands of a step");
    st->recording = true;
    return 0;
}

int step_record(struct backend *be, const struct cuda_command *c, struct error *err)
{
    struct cuda_step *s = cuda_of(be)->now;
    struct record r;
    memset(&r, 0, sizeof r); /* padding is compared too */
    r.kernel = c->kernel;
    r.call = c->call;
    r.library = c->library;
    memcpy(r.grid, c->grid, sizeof r.grid);
    r.threads = c->threads;
    r.shared = c->shared;
    r.bytes = c->bytes;
    size_t size = record_size(&r);
    if (s->length + size > s->capacity) {
        size_t capacity = s->capacity ? 2 * s->capacity : 1 << 16;
        while (capacity < s->length + size)
            capacity *= 2;
        unsigned char *data = realloc(s->data, capacity);
        if (!data)
            return error_set(err, ERR_NOMEM, "no memory for the commands of a step");
        s->data = data;
        s->capacity = capacity;
    }
    memset(s->data + s->length, 0, size);
    memcpy(s->data + s->length, &r, sizeof r);
    memcpy(s->data + s->length + sizeof r, c->args, c->bytes);
    s->length += size;
    s->count++;
    return 0;
}

static struct cudaKernelNodeParams node_params(const struct record *r, void **args)
{
    struct cudaKernelNodeParams p;
    memset(&p, 0, sizeof p);
    args[0] = record_args(r);
    p.func = (void *)(uintptr_t)r->kernel;
    p.gridDim = (dim3){r->grid[0], r->grid[1], r->grid[2]};
    p.blockDim = (dim3){r->threads, 1, 1};
    p.sharedMemBytes = r->shared;
    p.kernelParams = args;
    return p;
}

/* What the library enqueues for R, as a graph of its own. */
static int capture(struct backend *be, const struct record *r, cudaGraph_t *graph, struct error *err)
{
    cudaStream_t stream = cuda_of(be)->stream;
    *graph = NULL;
    int rc = cuda_check(be, cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                        "cudaStreamBeginCapture", err);
    if (rc)
        return rc;
    int called = r->library(be, record_args(r), stream, err);
    rc = cuda_check(be, cudaStreamEndCapture(stream, graph), "cudaStreamEndCapture", err);
    if (called && *graph) {
        cudaGraphDestroy(*graph);
        *graph = NULL;
    }
    return called ? called : rc;
}

/* Adds R behind AFTER (NULL: R is the first). */
static int add_node(struct backend *be, struct cuda_step *s, const struct record *r, cudaGraphNode_t *node,
                    const cudaGraphNode_t *after, struct error *err)
{
    if (r->library) {
        cudaGraph_t child;
        int rc = capture(be, r, &child, err);
        if (rc)
            return rc;
        rc = cuda_check(be, cudaGraphAddChildGraphNode(node, s->graph, after, after != NULL, child),
                        "cudaGraphAddChildGraphNode", err);
        cudaGraphDestroy(child); /* the node has a copy */
        return rc;
    }
    void *args[1];
    struct cudaKernelNodeParams p = node_params(r, args);
    announce(r->kernel, r->call, r->bytes);
    int rc = allow_shared(be, r->kernel, r->shared, false, err);
    return rc ? rc
              : cuda_check(be, cudaGraphAddKernelNode(node, s->graph, after, after != NULL, &p),
                           "cudaGraphAddKernelNode", err);
}

static int build(struct backend *be, struct cuda_step *s, struct error *err)
{
    s->node = calloc((size_t)s->count, sizeof(cudaGraphNode_t));
    if (!s->node)
        return error_set(err, ERR_NOMEM, "no memory for a graph of %d kernels", s->count);
    int rc = cuda_check(be, cudaGraphCreate(&s->graph, 0), "cudaGraphCreate", err);
    const unsigned char *at = s->data;
    for (int i = 0; i < s->count && !rc; i++) {
        const struct record *r = (const struct record *)(const void *)at;
        rc = add_node(be, s, r, &s->node[i], i ? &s->node[i - 1] : NULL, err);
        at += record_size(r);
    }
    if (!rc)
        rc =
            cuda_check(be, cudaGraphInstantiateWithFlags(&s->exec, s->graph, 0), "cudaGraphInstantiate", err);
    return rc;
}

/* Gives NODE of the graph EXEC the arguments of R. */
static int update_node(struct backend *be, cudaGraphExec_t exec, cudaGraphNode_t node, const struct record *r,
                       struct error *err)
{
    if (r->library) {
        cudaGraph_t child;
        int rc = capture(be, r, &child, err);
        if (rc)
            return rc;
        rc = cuda_check(be, cudaGraphExecChildGraphNodeSetParams(exec, node, child),
                        "cudaGraphExecChildGraphNodeSetParams", err);
        cudaGraphDestroy(child);
        return rc;
    }
    void *args[1];
    struct cudaKernelNodeParams p = node_params(r, args);
    return cuda_check(be, cudaGraphExecKernelNodeSetParams(exec, node, &p),
                      "cudaGraphExecKernelNodeSetParams", err);
}

/* The same kernels in the same order; arguments may differ. */
static bool same_shape(const struct cuda_step *a, const struct cuda_step *b)
{
    if (a->count != b->count || a->length != b->length)
        return false;
    for (size_t at = 0; at < a->length;) {
        const struct record *r = (const struct record *)(const void *)(a->data + at);
        if (memcmp(r, b->data + at, sizeof *r) != 0)
            return false;
        at += record_size(r);
    }
    return true;
}

/* Gives OLD's graph the arguments of S. A node whose update fails spoils the graph. */
static int update(struct backend *be, struct cuda_step *old, const struct cuda_step *s, struct error *err)
{
    size_t at = 0;
    for (int i = 0; i < s->count; i++) {
        const struct record *r = (const struct record *)(const void *)(s->data + at);
        size_t size = record_size(r);
        if (memcmp(old->data + at, s->data + at, size) != 0) {
            int rc = update_node(be, old->exec, old->node[i], r, err);
            if (rc)
                return rc;
            memcpy(old->data + at, s->data + at, size);
        }
        at += size;
    }
    return 0;
}

/* Moves the step at I to the front: the last place is the one to go. */
static void to_front(struct cuda_state *st, int i)
{
    struct cuda_step *s = st->step[i];
    memmove(st->step + 1, st->step, (size_t)i * sizeof *st->step);
    st->step[0] = s;
}

int step_end(struct backend *be, struct error *err)
{
    struct cuda_state *st = cuda_of(be);
    int rc = 0, i = 0;
    st->recording = false;
    if (!st->now || st->now->count == 0 || (err && err->code)) {
        step_free(&st->now); /* the pass failed: half a step is not run */
        return err ? err->code : 0;
    }
    while (i < CUDA_GRAPHS && st->step[i] && !same_shape(st->step[i], st->now))
        i++;
    if (i < CUDA_GRAPHS && st->step[i]) {
        rc = update(be, st->step[i], st->now, err);
        step_free(&st->now);
        to_front(st, i);
    } else {
        rc = build(be, st->now, err);
        if (rc) {
            step_free(&st->now);
            return rc;
        }
        if (st->step[CUDA_GRAPHS - 1]) /* rare; it may still be running */
            rc = cuda_check(be, cudaStreamSynchronize(st->stream), "waiting for an old step", err);
        step_free(&st->step[CUDA_GRAPHS - 1]);
        st->step[CUDA_GRAPHS - 1] = st->now;
        st->now = NULL;
        to_front(st, CUDA_GRAPHS - 1);
    }
    if (!rc)
        rc = cuda_check(be, cudaGraphLaunch(st->step[0]->exec, st->stream), "launching a step", err);
    return rc;
}
