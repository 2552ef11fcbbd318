/* cuDNN 9 as a candidate for convolution and attention, through the backend (graph) API. See library.h.
 *
 *   convolution   conv -> + bias -> + add -> SiLU -> + residual, what is absent left out; one fused kernel
 * where cuDNN has an engine for that chain, otherwise it has no plan and is out attention     the pattern
 * that cuDNN knows as flash attention, as cudnn-frontend writes it down (its CompositeSDPANode and
 * CompositeSoftmaxNode, for inference): P = Q K^T; P * scale; where causal: row index >= column index ? P :
 * -infinity; max over columns, subtract, exp, sum over columns, (max + log of the sum,) divide: S, stored in
 *                 the type of Q; S V
 *
 * Between the operations everything is fp32. The heuristics of mode A, then B, name engines from the fastest
 * down; the first one is taken that keeps fp32 sums, gives the same bits each time, and can be built within
 * the workspace. */
#include "library.h"

#include "log.h"

#if __has_include(<cudnn.h>)
#include <cudnn.h>
#if CUDNN_MAJOR >= 9
#define HAVE_CUDNN 1
#endif
#endif

#ifdef HAVE_CUDNN

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FUNCTIONS(X)                                                                                         \
    X(cudnnGetVersion)                                                                                       \
    X(cudnnGetErrorString)                                                                                   \
    X(cudnnGetLastErrorString)                                                                               \
    X(cudnnCreate)                                                                                           \
    X(cudnnDestroy)                                                                                          \
    X(cudnnSetStream)                                                                                        \
    X(cudnnBackendCreateDescriptor)                                                                          \
    X(cudnnBackendDestroyDescriptor)                                                                         \
    X(cudnnBackendSetAttribute)                                                                              \
    X(cudnnBackendGetAttribute)                                                                              \
    X(cudnnBackendFinalize)                                                                                  \
    X(cudnnBackendExecute)

#define FIELD(name) __typeof__(name) *name;
#define FIND(name)                                                                                           \
    if (!rc)                                                                                                 \
        rc = library_find(dnn->library, #name, &dnn->name, err);

struct cudnn {
    void *library;
    cudnnHandle_t handle; /* made when the first plan is: that takes a moment, and memory of the GPU */
    cudaStream_t stream;  /* of the handle */
    struct plans plans;
    FUNCTIONS(FIELD)
};

typedef cudnnBackendDescriptor_t descriptor;

/* Tensors outside the graph: what the caller has, then numbers. In args they are in this order, from 0. */
enum uid {
    UID_Y,
    UID_X,
    UID_WEIGHT,
    UID_BIAS,
    UID_ADD,
    UID_RESIDUAL,
    UID_Q,
    UID_K,
    UID_V,
    UID_SCALE,
    UID_MASKED,
    UIDS
};

enum { MADE_MAX = 64, OPS_MAX = 16, CONFIGS_MAX = 64, ALIGNMENT = 16 };

struct dnn_plan {
    struct plan base;
    descriptor made[MADE_MAX]; /* all that the plan is built of; freed with it */
    int count;
    descriptor execution;
    bool used[UIDS];
    float scale, masked;
};

struct dnn_args {
    struct plan_args base; /* y: UID_Y */
    const void *pointer[UIDS];
};

static struct dnn_plan *dnn_plan(struct plan *p)
{
    return (struct dnn_plan *)(void *)p;
}

static const struct plan_kind conv_kind, attention_kind;

/* ---- Open and close ---- */

struct cudnn *cudnn_open(void)
{
    static const char *const names[] = {"libcudnn.so.9", NULL};
    struct error why = {0}, *err = &why;
    const char *found = NULL;
    struct cudnn *dnn = calloc(1, sizeof *dnn);
    int rc = dnn ? 0 : error_set(err, ERR_NOMEM, "no memory");
    if (!rc && !(dnn->library = library_load(names, &found, err)))
        rc = why.code;
    FUNCTIONS(FIND)
    if (rc) {
        log_info("cuDNN is not used: %s", why.msg);
        cudnn_close(&dnn);
        return NULL;
    }
    int v = cudnn_version(dnn);
    log_info("cuDNN %d.%d.%d (%s)", v / 10000, v / 100 % 100, v % 100, found);
    return dnn;
}

void cudnn_close(struct cudnn **out)
{
    struct cudnn *dnn = *out;
    if (!dnn)
        return;
    plans_destroy(&dnn->plans, &conv_kind);
    if (dnn->handle)
        dnn->cudnnDestroy(dnn->handle);
    if (dnn->library)
        dlclose(dnn->library);
    free(dnn);
    *out = NULL;
}

int cudnn_version(const struct cudnn *dnn)
{
    return (int)dnn->cudnnGetVersion();
}

/* ---- A graph: the first failure sticks, and what follows does nothing ---- */

struct graph {
    const struct cudnn *dnn;
    struct dnn_plan *plan;
    cudnnStatus_t status;
    const char *at; /* what failed */
    descriptor op[OPS_MAX];
    int ops;
    int64_t inner; /* tensors inside the graph, for their uid */
};

static void fail(struct graph *g, cudnnStatus_t status, const char *at)
{
    if (!g->status) {
        g->status = status;
        g->at = at;
    }
}

static descriptor make(struct graph *g, cudnnBackendDescriptorType_t type)
{
    descriptor d = NULL;
    if (g->plan->count == MADE_MAX)
        fail(g, CUDNN_STATUS_NOT_SUPPORTED, "a graph of that size");
    if (g->status)
        return NULL;
    cudnnStatus_t s = g->dnn->cudnnBackendCreateDescriptor(type, &d);
    if (s) {
        fail(g, s, "making a descriptor");
        return NULL;
    }
    g->plan->made[g->plan->count++] = d;
    return d;
}

static void set(struct graph *g, descriptor d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    cudnnStatus_t s = g->status ? g->status : g->dnn->cudnnBackendSetAttribute(d, name, type, count, values);
    if (s)
        fail(g, s, "an attribute");
}

static void set_descriptor(struct graph *g, descriptor d, cudnnBackendAttributeName_t name, descriptor value)
{
    set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void finish(struct graph *g, descriptor d, const char *what)
{
    cudnnStatus_t s = g->status ? g->status : g->dnn->cudnnBackendFinalize(d);
    if (s)
        fail(g, s, what);
}

static void finish_op(struct graph *g, descriptor d, const char *what)
{
    finish(g, d, what);
    if (g->ops == OPS_MAX)
        fail(g, CUDNN_STATUS_NOT_SUPPORTED, "a graph of that size");
    if (!g->status)
        g->op[g->ops++] = d;
}

struct shape {
    int64_t dim[4], stride[4];
};

static descriptor tensor_of(struct graph *g, int64_t uid, cudnnDataType_t type, const struct shape *s,
                            bool by_value, bool inner)
{
    const int64_t alignment = ALIGNMENT;
    const bool yes = true;
    descriptor d = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, s->dim);
    set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, s->stride);
    set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    if (inner)
        set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &yes);
    if (by_value)
        set(g, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &yes);
    finish(g, d, "a tensor");
    return d;
}

/* In the GPU's memory. */
static descriptor outer(struct graph *g, enum uid uid, cudnnDataType_t type, const struct shape *s)
{
    g->plan->used[uid] = true;
    return tensor_of(g, uid + 1, type, s, false, false);
}

/* Never stored. */
static descriptor inner(struct graph *g, cudnnDataType_t type, const struct shape *s)
{
    return tensor_of(g, UIDS + 1 + g->inner++, type, s, false, true);
}

/* One fp32 number of the plan. */
static descriptor number(struct graph *g, enum uid uid)
{
    static const struct shape one = {{1, 1, 1, 1}, {1, 1, 1, 1}};
    g->plan->used[uid] = true;
    return tensor_of(g, uid + 1, CUDNN_DATA_FLOAT, &one, true, false);
}

/* y = MODE of x, or of x and b, or (selection) t ? x : b. B and T may be NULL. */
static void pointwise(struct graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t math, descriptor x,
                      descriptor b, descriptor t, descriptor y, int64_t axis)
{
    const double swish = 1;
    descriptor how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &math);
    if (mode == CUDNN_POINTWISE_SWISH_FWD)
        set(g, how, CUDNN_ATTR_POINTWISE_SWISH_BETA, CUDNN_TYPE_DOUBLE, 1, &swish);
    if (mode == CUDNN_POINTWISE_GEN_INDEX)
        set(g, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    finish(g, how, "a pointwise mode");
    descriptor op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b)
        set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    if (t)
        set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    finish_op(g, op, "a pointwise operation");
}

static void matmul(struct graph *g, descriptor a, descriptor b, descriptor c)
{
    const cudnnDataType_t math = CUDNN_DATA_FLOAT;
    descriptor how = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &math);
    finish(g, how, "a matrix product");
    descriptor op = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    finish_op(g, op, "a matrix product");
}

/* Y has one column. */
static void reduce(struct graph *g, cudnnReduceTensorOp_t mode, descriptor x, descriptor y)
{
    const cudnnDataType_t math = CUDNN_DATA_FLOAT;
    descriptor how = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode);
    set(g, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &math);
    finish(g, how, "a reduction");
    descriptor op = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    finish_op(g, op, "a reduction");
}

/* ---- From the graph to a plan ---- */

/* Whether the engine of CONFIG adds in fp32 and always in the same order. Winograd and Fourier transforms
 * round what they transform. */
static bool exact(const struct cudnn *dnn, descriptor config)
{
    cudnnBackendNumericalNote_t note[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    descriptor engine = NULL;
    int64_t count = 0;
    bool good =
        dnn->cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine) == CUDNN_STATUS_SUCCESS;
    if (!good)
        return false;
    good = !dnn->cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                          1, &count, &engine) &&
           !dnn->cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                          CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, note);
    for (int64_t i = 0; good && i < count && i < CUDNN_NUMERICAL_NOTE_TYPE_COUNT; i++)
        good = note[i] == CUDNN_NUMERICAL_NOTE_TENSOR_CORE || note[i] == CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP;
    dnn->cudnnBackendDestroyDescriptor(engine);
    return good;
}

/* The plan of CONFIG; NULL when it cannot be built, or not within the workspace. */
static descriptor execution(const struct cudnn *dnn, descriptor config)
{
    descriptor plan = NULL;
    int64_t workspace = 0, count = 0;
    if (dnn->cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &plan))
        return NULL;
    if (!dnn->cudnnBackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1,
                                       &dnn->handle) &&
        !dnn->cudnnBackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                                       CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config) &&
        !dnn->cudnnBackendFinalize(plan) &&
        !dnn->cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                                       &count, &workspace) &&
        workspace <= CUDA_WORKSPACE)
        return plan;
    dnn->cudnnBackendDestroyDescriptor(plan);
    return NULL;
}

/* Takes the first of CONFIG that serves, after RANK others; it stays with the plan, the others are freed. */
static void take(struct graph *g, descriptor *config, int64_t count, int *rank)
{
    const struct cudnn *dnn = g->dnn;
    struct dnn_plan *p = g->plan;
    for (int64_t i = 0; i < count; i++) {
        descriptor x = p->execution || !exact(dnn, config[i]) ? NULL : execution(dnn, config[i]);
        if (x && (*rank)-- == 0 && p->count < MADE_MAX) {
            p->execution = x;
            p->made[p->count++] = config[i];
            continue;
        }
        if (x)
            dnn->cudnnBackendDestroyDescriptor(x);
        dnn->cudnnBackendDestroyDescriptor(config[i]);
    }
}

/* Asks the heuristics MODE for engines. */
static void heuristics(struct graph *g, descriptor operations, cudnnBackendHeurMode_t mode, int *rank)
{
    descriptor config[CONFIGS_MAX] = {NULL}, heuristic = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    int64_t count = 0, got = 0;
    set_descriptor(g, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations);
    set(g, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    finish(g, heuristic, "the choice of an engine");
    while (!g->status && count < CONFIGS_MAX) {
        cudnnStatus_t s =
            g->dnn->cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &config[count]);
        if (s)
            fail(g, s, "making a descriptor");
        else
            count++;
    }
    cudnnStatus_t s =
        g->status ? g->status
                  : g->dnn->cudnnBackendGetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, count, &got, config);
    if (s)
        fail(g, s, "the choice of an engine");
    got = g->status ? 0 : got < count ? got : count;
    for (int64_t i = got; i < count; i++)
        g->dnn->cudnnBackendDestroyDescriptor(config[i]);
    take(g, config, got, rank);
}

static int refused(struct backend *be, const struct graph *g, struct error *err)
{
    char words[512] = "", text[600];
    g->dnn->cudnnGetLastErrorString(words, sizeof words - 1);
    snprintf(text, sizeof text, "%s%s%s", g->dnn->cudnnGetErrorString(g->status), *words ? ": " : "", words);
    for (char *c = text; *c; c++)
        if (*c == '\n')
            *c = ' ';
    return library_failed(be, g->at, (int)g->status, text, err);
}

static int complete(struct backend *be, struct graph *g, int rank, struct error *err)
{
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_B};
    const int asked = rank;
    descriptor operations = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, operations, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &g->dnn->handle);
    set(g, operations, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->ops, g->op);
    finish(g, operations, "a graph for cuDNN");
    if (g->status)
        return refused(be, g, err);
    /* Mode B may name the same engines again: it is asked only when none of A's serves. */
    for (size_t i = 0; i < sizeof modes / sizeof *modes && !g->plan->execution && rank == asked; i++) {
        g->status = CUDNN_STATUS_SUCCESS;
        heuristics(g, operations, modes[i], &rank);
    }
    if (g->plan->execution)
        return 0;
    if (g->status)
        return refused(be, g, err);
    return error_set(err, ERR_UNSUPPORTED, "cuDNN has no engine for the shape");
}

static int begin(struct backend *be, struct graph *g, struct plan *plan, struct error *err)
{
    struct cudnn *dnn = plan->library;
    memset(g, 0, sizeof *g);
    g->dnn = dnn;
    g->plan = dnn_plan(plan);
    if (dnn->handle)
        return 0;
    cudnnStatus_t s = dnn->cudnnCreate(&dnn->handle);
    if (!s)
        return 0;
    dnn->handle = NULL;
    return library_failed(be, "cudnnCreate", (int)s, dnn->cudnnGetErrorString(s), err);
}

static void dnn_destroy(struct plan *plan)
{
    const struct cudnn *dnn = plan->library;
    struct dnn_plan *p = dnn_plan(plan);
    if (p->execution)
        dnn->cudnnBackendDestroyDescriptor(p->execution);
    while (p->count > 0)
        dnn->cudnnBackendDestroyDescriptor(p->made[--p->count]);
    free(p);
}

/* ---- Running a plan ---- */

static cudnnStatus_t fill(const struct cudnn *dnn, descriptor pack, struct dnn_plan *p,
                          const struct dnn_args *a, void *workspace)
{
    const void *pointer[UIDS];
    int64_t uid[UIDS], count = 0;
    for (int i = 0; i < UIDS; i++) {
        if (!p->used[i])
            continue;
        uid[count] = i + 1;
        pointer[count++] = i == UID_Y        ? a->base.y
                           : i == UID_SCALE  ? &p->scale
                           : i == UID_MASKED ? (const void *)&p->masked
                                             : a->pointer[i];
    }
    cudnnStatus_t s = dnn->cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                                                    CUDNN_TYPE_VOID_PTR, count, pointer);
    if (!s)
        s = dnn->cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count,
                                          uid);
    if (!s)
        s = dnn->cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                                          &workspace);
    return s ? s : dnn->cudnnBackendFinalize(pack);
}

static int dnn_run(struct backend *be, const void *args, cudaStream_t stream, struct error *err)
{
    const struct dnn_args *a = args;
    struct dnn_plan *p = dnn_plan(a->base.plan);
    struct cudnn *dnn = p->base.library;
    descriptor pack = NULL;
    cudnnStatus_t s = dnn->stream == stream ? CUDNN_STATUS_SUCCESS : dnn->cudnnSetStream(dnn->handle, stream);
    if (!s) {
        dnn->stream = stream;
        s = dnn->cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    }
    if (!s)
        s = fill(dnn, pack, p, a, cuda_of(be)->workspace);
    if (!s)
        s = dnn->cudnnBackendExecute(dnn->handle, p->execution, pack);
    if (pack)
        dnn->cudnnBackendDestroyDescriptor(pack);
    return s ? library_failed(be, "cudnnBackendExecute", (int)s, dnn->cudnnGetErrorString(s), err) : 0;
}

static cudnnDataType_t type_of(enum dtype t)
{
    return t == DTYPE_F16 ? CUDNN_DATA_HALF : t == DTYPE_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

static bool aligned(const void *p, int ld, int unit)
{
    return p && (uintptr_t)p % ALIGNMENT == 0 && ld % unit == 0;
}

/* ---- Convolution ---- */

/* [n, c, h, w] as cuDNN counts, in our NHWC. */
static struct shape picture(int n, int c, int h, int w, int ld)
{
    int64_t row = (int64_t)w * ld;
    return (struct shape){{n, c, h, w}, {h * row, 1, row, ld}};
}

static void convolution(struct graph *g, const struct conv_call *c, descriptor x, descriptor kernel,
                        descriptor y)
{
    const cudnnDataType_t math = CUDNN_DATA_FLOAT;
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    const int64_t dims = 2, dilation[2] = {1, 1}, stride[2] = {c->stride, c->stride};
    const int64_t before[2] = {c->pad_top, c->pad_left}, after[2] = {c->pad_bottom, c->pad_right};
    const float one = 1, zero = 0;
    descriptor how = make(g, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &math);
    set(g, how, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(g, how, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dims);
    set(g, how, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, before);
    set(g, how, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, after);
    set(g, how, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation);
    set(g, how, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
    finish(g, how, "a convolution");
    descriptor op = make(g, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, kernel);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, how);
    set(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &one);
    set(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, &zero);
    finish_op(g, op, "a convolution");
}

/* What follows the convolution, the last of it into y: in the order of conv2d_args. */
struct step_of_epilogue {
    bool there;
    cudnnPointwiseMode_t mode;
    enum uid uid; /* of what is added */
    cudnnDataType_t type;
    struct shape shape;
};

static int conv_build(struct backend *be, struct plan *plan, const void *call, struct error *err)
{
    const struct conv_call *c = call;
    const cudnnDataType_t in = type_of(c->dtype), out = c->f32_out ? CUDNN_DATA_FLOAT : in;
    const struct shape y = picture(c->n, c->o, c->oh, c->ow, c->y_ld);
    /* Without an activation sums may come in any order, and this is the one that cuDNN has ready-made kernels
     * for. */
    const bool early = c->residual && c->act == ACT_NONE && !c->add;
    const struct shape rest = picture(c->n, c->o, c->oh, c->ow, c->residual_ld);
    const struct step_of_epilogue steps[] = {
        {early, CUDNN_POINTWISE_ADD, UID_RESIDUAL, in, rest},
        {c->bias != NULL, CUDNN_POINTWISE_ADD, UID_BIAS, c->bias16 ? in : CUDNN_DATA_FLOAT,
         picture(1, c->o, 1, 1, c->o)},
        {c->add != NULL, CUDNN_POINTWISE_ADD, UID_ADD, in, picture(c->n, c->o, 1, 1, c->add_ld)},
        {c->act == ACT_SILU, CUDNN_POINTWISE_SWISH_FWD, UIDS, in, {{0}, {0}}},
        {c->residual && !early, CUDNN_POINTWISE_ADD, UID_RESIDUAL, in, rest},
    };
    struct graph g;
    int left = 0, rc = begin(be, &g, plan, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        left += steps[i].there;
    struct shape xs = picture(c->n, c->c, c->h, c->w, c->x_ld), ws = picture(c->o, c->c, c->kh, c->kw, c->c);
    descriptor x = outer(&g, UID_X, in, &xs), kernel = outer(&g, UID_WEIGHT, in, &ws);
    descriptor last = outer(&g, UID_Y, out, &y), at = left ? inner(&g, CUDNN_DATA_FLOAT, &y) : last;
    convolution(&g, c, x, kernel, at);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        const struct step_of_epilogue *s = &steps[i];
        if (!s->there)
            continue;
        descriptor b = s->uid == UIDS ? NULL : outer(&g, s->uid, s->type, &s->shape);
        descriptor to = --left ? inner(&g, CUDNN_DATA_FLOAT, &y) : last;
        pointwise(&g, s->mode, CUDNN_DATA_FLOAT, at, b, NULL, to, 0);
        at = to;
    }
    return complete(be, &g, c->rank, err);
}

static const struct plan_kind conv_kind = {sizeof(struct dnn_plan), conv_build, dnn_destroy, dnn_run};

bool cudnn_can_conv(const struct backend *be, const struct conv_call *c)
{
    int unit = c->f32_out ? 4 : 8;
    return library_cudnn(be) && !c->upsample && c->dtype != DTYPE_F32 && c->n > 0 && c->oh > 0 && c->ow > 0 &&
           c->c == c->channels && c->c % 8 == 0 && c->o % 8 == 0 &&
           (c->act == ACT_NONE || c->act == ACT_SILU) && aligned(c->x, c->x_ld, 8) &&
           aligned(c->weight, 0, 1) && aligned(c->y, c->y_ld, unit) &&
           (!c->bias || aligned(c->bias16 ? c->bias16 : c->bias, 0, 1)) &&
           (!c->add ||
            (aligned(c->add, c->add_ld, 8) && c->add_ld >= c->o)) /* not one row for all pictures */
           && (!c->residual || aligned(c->residual, c->residual_ld, 8)) && c->rank >= 0;
}

int cudnn_conv(struct backend *be, const struct conv_call *c, void *out, struct error *err)
{
    struct cudnn *dnn = library_cudnn(be);
    struct dnn_args a;
    if (!cudnn_can_conv(be, c))
        return error_set(err, ERR_UNSUPPORTED, "not a convolution for cuDNN");
    const int key[PLAN_KEY] = {1,
                               c->n,
                               c->h,
                               c->w,
                               c->c,
                               c->oh,
                               c->ow,
                               c->o,
                               c->kh,
                               c->kw,
                               c->stride,
                               c->pad_top,
                               c->pad_left,
                               c->pad_bottom,
                               c->act,
                               c->x_ld,
                               c->y_ld,
                               c->pad_right,
                               c->rank,
                               c->f32_out,
                               c->residual != NULL,
                               c->residual_ld,
                               c->add != NULL,
                               c->add_ld,
                               c->bias != NULL,
                               c->bias16 != NULL,
                               (int)c->dtype};
    memset(&a, 0, sizeof a);
    a.base.y = out ? out : c->y;
    a.pointer[UID_X] = c->x;
    a.pointer[UID_WEIGHT] = c->weight;
    a.pointer[UID_BIAS] = c->bias16 ? c->bias16 : (const void *)c->bias;
    a.pointer[UID_ADD] = c->add;
    a.pointer[UID_RESIDUAL] = c->residual;
    size_t y_bytes = (size_t)c->n * (size_t)c->oh * (size_t)c->ow * (size_t)c->y_ld * (c->f32_out ? 4 : 2);
    return plan_issue(be, dnn, &dnn->plans, &conv_kind, key, c, &a.base, sizeof a, y_bytes, err);
}

/* ---- Attention ---- */

/* [n, heads, tokens, size] of a tensor whose tokens are LD apart. */
static struct shape heads_of(const struct attention_call *c, int n, int tokens, int ld)
{
    return (struct shape){{n, c->heads, tokens, c->size}, {(int64_t)tokens * ld, c->size, ld, 1}};
}

/* Where the column is past the row: -infinity. */
static descriptor mask(struct graph *g, descriptor scores, const struct shape *s)
{
    descriptor row = inner(g, CUDNN_DATA_INT32, s), col = inner(g, CUDNN_DATA_INT32, s);
    descriptor seen = inner(g, CUDNN_DATA_BOOLEAN, s), masked = inner(g, CUDNN_DATA_FLOAT, s);
    pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, scores, NULL, NULL, row, 2);
    pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, scores, NULL, NULL, col, 3);
    pointwise(g, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, row, col, NULL, seen, 0);
    pointwise(g, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, scores, number(g, UID_MASKED), seen, masked,
              0);
    return masked;
}

static int attention_build(struct backend *be, struct plan *plan, const void *call, struct error *err)
{
    const struct attention_call *c = call;
    const cudnnDataType_t type = type_of(c->dtype), f32 = CUDNN_DATA_FLOAT;
    const int64_t rows = (int64_t)c->t, cols = (int64_t)c->s;
    struct shape q = heads_of(c, c->n, c->t, c->q_ld), k = heads_of(c, c->n, c->s, c->k_ld);
    struct shape v = heads_of(c, c->n, c->s, c->v_ld), y = heads_of(c, c->n, c->t, c->y_ld);
    struct shape kt = {{k.dim[0], k.dim[1], k.dim[3], k.dim[2]},
                       {k.stride[0], k.stride[1], k.stride[3], k.stride[2]}};
    struct shape p = {{c->n, c->heads, rows, cols}, {c->heads * rows * cols, rows * cols, cols, 1}};
    struct shape one = {{c->n, c->heads, rows, 1}, {c->heads * rows, rows, 1, 1}};
    struct graph g;
    int rc = begin(be, &g, plan, err);
    if (rc)
        return rc;
    g.plan->scale = c->scale;
    g.plan->masked = -INFINITY;
    descriptor score = inner(&g, f32, &p), scaled = inner(&g, f32, &p);
    matmul(&g, outer(&g, UID_Q, type, &q), outer(&g, UID_K, type, &kt), score);
    pointwise(&g, CUDNN_POINTWISE_MUL, f32, score, number(&g, UID_SCALE), NULL, scaled, 0);
    if (c->causal)
        scaled = mask(&g, scaled, &p);
    descriptor most = inner(&g, f32, &one), sum = inner(&g, f32, &one);
    descriptor log = inner(&g, f32, &one), statistics = inner(&g, f32, &one);
    descriptor below = inner(&g, f32, &p), power = inner(&g, f32, &p), share = inner(&g, type, &p);
    reduce(&g, CUDNN_REDUCE_TENSOR_MAX, scaled, most);
    pointwise(&g, CUDNN_POINTWISE_SUB, f32, scaled, most, NULL, below, 0);
    pointwise(&g, CUDNN_POINTWISE_EXP, f32, below, NULL, NULL, power, 0);
    reduce(&g, CUDNN_REDUCE_TENSOR_ADD, power, sum);
    /* Nobody reads these two, and without them cuDNN does not know its pattern. */
    pointwise(&g, CUDNN_POINTWISE_LOG, f32, sum, NULL, NULL, log, 0);
    pointwise(&g, CUDNN_POINTWISE_ADD, f32, most, log, NULL, statistics, 0);
    pointwise(&g, CUDNN_POINTWISE_DIV, f32, power, sum, NULL, share, 0);
    matmul(&g, share, outer(&g, UID_V, type, &v), outer(&g, UID_Y, type, &y));
    return complete(be, &g, c->rank, err);
}

static const struct plan_kind attention_kind = {sizeof(struct dnn_plan), attention_build, dnn_destroy,
                                                dnn_run};

bool cudnn_can_attention(const struct backend *be, const struct attention_call *c)
{
    const struct cudnn *dnn = library_cudnn(be);
    int version = dnn ? cudnn_version(dnn) : 0;
    int widest = cuda_of(be)->major == 9 || version > 91001 ? 256 : 128;
    return dnn && version != 91000 && version != 91001 && /* wrong results, says cudnn-frontend */
           c->dtype != DTYPE_F32 && c->n > 0 && c->t > 0 && c->s > 0 && c->heads > 0 && c->size % 8 == 0 &&
           c->size <= widest && (c->kv_n == c->n || (c->kv_n == 1 && !c->causal)) &&
           aligned(c->q, c->q_ld, 8) && aligned(c->k, c->k_ld, 8) && aligned(c->v, c->v_ld, 8) &&
           aligned(c->y, c->y_ld, 8) && c->rank >= 0;
}

int cudnn_attention(struct backend *be, const struct attention_call *c, void *out, struct error *err)
{
    struct cudnn *dnn = library_cudnn(be);
    struct attention_call call = *c;
    struct dnn_args a;
    int scale;
    if (!cudnn_can_attention(be, c))
        return error_set(err, ERR_UNSUPPORTED, "not an attention for cuDNN");
    if (c->kv_n != c->n) { /* all pictures look at the same keys: one long sequence of queries */
        call.t *= c->n;
        call.n = 1;
    }
    memcpy(&scale, &c->scale, sizeof scale);
    const int key[PLAN_KEY] = {2,       call.n,  call.t,  c->s,      c->heads,      c->size, c->q_ld,
                               c->k_ld, c->v_ld, c->y_ld, c->causal, (int)c->dtype, c->rank, scale};
    memset(&a, 0, sizeof a);
    a.base.y = out ? out : c->y;
    a.pointer[UID_Q] = c->q;
    a.pointer[UID_K] = c->k;
    a.pointer[UID_V] = c->v;
    size_t y_bytes = (size_t)call.n * (size_t)call.t * (size_t)c->y_ld * 2;
    return plan_issue(be, dnn, &dnn->plans, &attention_kind, key, &call, &a.base, sizeof a, y_bytes, err);
}

#else /* no cudnn.h of version 9 */

struct cudnn *cudnn_open(void)
{
    log_info("cuDNN is not used: this build has no headers of cuDNN 9");
    return NULL;
}

void cudnn_close(struct cudnn **dnn)
{
    (void)dnn;
}

int cudnn_version(const struct cudnn *dnn)
{
    (void)dnn;
    return 0;
}

bool cudnn_can_conv(const struct backend *be, const struct conv_call *c)
{
    (void)be;
    (void)c;
    return false;
}

int cudnn_conv(struct backend *be, const struct conv_call *c, void *out, struct error *err)
{
    (void)be;
    (void)c;
    (void)out;
    return error_set(err, ERR_UNSUPPORTED, "this build has no cuDNN headers");
}

bool cudnn_can_attention(const struct backend *be, const struct attention_call *c)
{
    (void)be;
    (void)c;
    return false;
}

int cudnn_attention(struct backend *be, const struct attention_call *c, void *out, struct error *err)
{
    (void)be;
    (void)c;
    (void)out;
    return error_set(err, ERR_UNSUPPORTED, "this build has no cuDNN headers");
}

#endif
