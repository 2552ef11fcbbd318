/* A libcudnn.so.9 for the emulator: descriptors are checked as they are set and finalized, and a graph's
 * operations are computed one after the other, with plain loops, when the stream gets there. So shapes,
 * strides, the order of operations and captured graphs are tested.
 *
 * Its engines: the first gives other bits each time, the second cannot be built, two more are good.
 * Heuristics of mode A know none for convolutions of ONLY_B channels; nobody knows one for 5 x 5 kernels. */
#include <cudnn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"

enum {
    ONLY_B = 24,
    REFUSED = 5,
    ENGINES = 4,
    ATTRIBUTES_MAX = 12,
    OPS_MAX = 24,
    TENSORS_MAX = 64,
    WORKSPACE = 1000
};

const int emulated_library = 1;

struct attribute {
    cudnnBackendAttributeName_t name;
    cudnnBackendAttributeType_t type;
    int64_t count;
    void *value;
};

struct descriptor {
    cudnnBackendDescriptorType_t type;
    bool final;
    int engine; /* of engines, configurations and plans */
    int count;
    struct attribute attribute[ATTRIBUTES_MAX];
};

struct cudnnContext {
    cudaStream_t stream;
};

/* ---- What may be set ---- */

struct rule {
    cudnnBackendDescriptorType_t of;
    cudnnBackendAttributeName_t name;
    cudnnBackendAttributeType_t type;
    int64_t least, most;
    bool needed;
};

#define D(x) CUDNN_BACKEND_##x##_DESCRIPTOR
#define A(x) CUDNN_ATTR_##x
#define T(x) CUDNN_TYPE_##x
static const struct rule rules[] = {
    {D(TENSOR), A(TENSOR_DATA_TYPE), T(DATA_TYPE), 1, 1, true},
    {D(TENSOR), A(TENSOR_DIMENSIONS), T(INT64), 4, 4, true},
    {D(TENSOR), A(TENSOR_STRIDES), T(INT64), 4, 4, true},
    {D(TENSOR), A(TENSOR_UNIQUE_ID), T(INT64), 1, 1, true},
    {D(TENSOR), A(TENSOR_BYTE_ALIGNMENT), T(INT64), 1, 1, true},
    {D(TENSOR), A(TENSOR_IS_VIRTUAL), T(BOOLEAN), 1, 1, false},
    {D(TENSOR), A(TENSOR_IS_BY_VALUE), T(BOOLEAN), 1, 1, false},
    {D(POINTWISE), A(POINTWISE_MODE), T(POINTWISE_MODE), 1, 1, true},
    {D(POINTWISE), A(POINTWISE_MATH_PREC), T(DATA_TYPE), 1, 1, true},
    {D(POINTWISE), A(POINTWISE_SWISH_BETA), T(DOUBLE), 1, 1, false},
    {D(POINTWISE), A(POINTWISE_AXIS), T(INT64), 1, 1, false},
    {D(OPERATION_POINTWISE), A(OPERATION_POINTWISE_PW_DESCRIPTOR), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(OPERATION_POINTWISE), A(OPERATION_POINTWISE_XDESC), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(OPERATION_POINTWISE), A(OPERATION_POINTWISE_BDESC), T(BACKEND_DESCRIPTOR), 1, 1, false},
    {D(OPERATION_POINTWISE), A(OPERATION_POINTWISE_TDESC), T(BACKEND_DESCRIPTOR), 1, 1, false},
    {D(OPERATION_POINTWISE), A(OPERATION_POINTWISE_YDESC), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(MATMUL), A(MATMUL_COMP_TYPE), T(DATA_TYPE), 1, 1, true},
    {D(OPERATION_MATMUL), A(OPERATION_MATMUL_ADESC), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(OPERATION_MATMUL), A(OPERATION_MATMUL_BDESC), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(OPERATION_MATMUL), A(OPERATION_MATMUL_CDESC), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(OPERATION_MATMUL), A(OPERATION_MATMUL_DESC), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(REDUCTION), A(REDUCTION_OPERATOR), T(REDUCTION_OPERATOR_TYPE), 1, 1, true},
    {D(REDUCTION), A(REDUCTION_COMP_TYPE), T(DATA_TYPE), 1, 1, true},
    {D(OPERATION_REDUCTION), A(OPERATION_REDUCTION_DESC), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(OPERATION_REDUCTION), A(OPERATION_REDUCTION_XDESC), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(OPERATION_REDUCTION), A(OPERATION_REDUCTION_YDESC), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(CONVOLUTION), A(CONVOLUTION_COMP_TYPE), T(DATA_TYPE), 1, 1, true},
    {D(CONVOLUTION), A(CONVOLUTION_CONV_MODE), T(CONVOLUTION_MODE), 1, 1, true},
    {D(CONVOLUTION), A(CONVOLUTION_SPATIAL_DIMS), T(INT64), 1, 1, true},
    {D(CONVOLUTION), A(CONVOLUTION_PRE_PADDINGS), T(INT64), 2, 2, true},
    {D(CONVOLUTION), A(CONVOLUTION_POST_PADDINGS), T(INT64), 2, 2, true},
    {D(CONVOLUTION), A(CONVOLUTION_DILATIONS), T(INT64), 2, 2, true},
    {D(CONVOLUTION), A(CONVOLUTION_FILTER_STRIDES), T(INT64), 2, 2, true},
    {D(OPERATION_CONVOLUTION_FORWARD), A(OPERATION_CONVOLUTION_FORWARD_X), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(OPERATION_CONVOLUTION_FORWARD), A(OPERATION_CONVOLUTION_FORWARD_W), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(OPERATION_CONVOLUTION_FORWARD), A(OPERATION_CONVOLUTION_FORWARD_Y), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(OPERATION_CONVOLUTION_FORWARD), A(OPERATION_CONVOLUTION_FORWARD_CONV_DESC), T(BACKEND_DESCRIPTOR), 1,
     1, true},
    {D(OPERATION_CONVOLUTION_FORWARD), A(OPERATION_CONVOLUTION_FORWARD_ALPHA), T(FLOAT), 1, 1, true},
    {D(OPERATION_CONVOLUTION_FORWARD), A(OPERATION_CONVOLUTION_FORWARD_BETA), T(FLOAT), 1, 1, true},
    {D(OPERATIONGRAPH), A(OPERATIONGRAPH_HANDLE), T(HANDLE), 1, 1, true},
    {D(OPERATIONGRAPH), A(OPERATIONGRAPH_OPS), T(BACKEND_DESCRIPTOR), 1, OPS_MAX, true},
    {D(ENGINEHEUR), A(ENGINEHEUR_OPERATION_GRAPH), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(ENGINEHEUR), A(ENGINEHEUR_MODE), T(HEUR_MODE), 1, 1, true},
    {D(EXECUTION_PLAN), A(EXECUTION_PLAN_HANDLE), T(HANDLE), 1, 1, true},
    {D(EXECUTION_PLAN), A(EXECUTION_PLAN_ENGINE_CONFIG), T(BACKEND_DESCRIPTOR), 1, 1, true},
    {D(VARIANT_PACK), A(VARIANT_PACK_UNIQUE_IDS), T(INT64), 1, TENSORS_MAX, true},
    {D(VARIANT_PACK), A(VARIANT_PACK_DATA_POINTERS), T(VOID_PTR), 1, TENSORS_MAX, true},
    {D(VARIANT_PACK), A(VARIANT_PACK_WORKSPACE), T(VOID_PTR), 1, 1, true},
    /* What GetAttribute gives; never set from outside. */
    {D(ENGINECFG), A(OPERATIONGRAPH_OPS), T(BACKEND_DESCRIPTOR), 1, 1, true},
};

static size_t size_of(cudnnBackendAttributeType_t type)
{
    return type == T(BOOLEAN)                                                          ? sizeof(bool)
           : type == T(INT64) || type == T(DOUBLE)                                     ? 8
           : type == T(BACKEND_DESCRIPTOR) || type == T(VOID_PTR) || type == T(HANDLE) ? sizeof(void *)
                                                                                       : 4;
}

static const struct attribute *find(const struct descriptor *d, cudnnBackendAttributeName_t name)
{
    for (int i = 0; i < d->count; i++)
        if (d->attribute[i].name == name)
            return &d->attribute[i];
    return NULL;
}

static int64_t whole(const struct descriptor *d, cudnnBackendAttributeName_t name, int i)
{
    const struct attribute *a = find(d, name);
    return a ? ((const int64_t *)a->value)[i] : 0;
}

static int choice(const struct descriptor *d, cudnnBackendAttributeName_t name) /* an enum */
{
    const struct attribute *a = find(d, name);
    return a ? *(const int *)a->value : -1;
}

static bool flag(const struct descriptor *d, cudnnBackendAttributeName_t name)
{
    const struct attribute *a = find(d, name);
    return a && *(const bool *)a->value;
}

static const struct descriptor *part(const struct descriptor *d, cudnnBackendAttributeName_t name, int i)
{
    const struct attribute *a = find(d, name);
    return a ? ((const struct descriptor *const *)a->value)[i] : NULL;
}

/* ---- Descriptors ---- */

static char last_error[200];

static cudnnStatus_t bad(const char *what, int number)
{
    snprintf(last_error, sizeof last_error, "fake: %s %d", what, number);
    return CUDNN_STATUS_BAD_PARAM;
}

size_t cudnnGetVersion(void)
{
    return 91999;
}

const char *cudnnGetErrorString(cudnnStatus_t status)
{
    return status == CUDNN_STATUS_NOT_SUPPORTED ? "CUDNN_STATUS_NOT_SUPPORTED" : "CUDNN_STATUS_BAD_PARAM";
}

void cudnnGetLastErrorString(char *message, size_t size)
{
    snprintf(message, size, "%s", last_error);
    last_error[0] = '\0';
}

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle)
{
    *handle = calloc(1, sizeof **handle);
    return *handle ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_INITIALIZED;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t *descriptor)
{
    struct descriptor *d = calloc(1, sizeof *d);
    if (!d)
        return CUDNN_STATUS_NOT_INITIALIZED;
    d->type = type;
    *descriptor = d;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor)
{
    struct descriptor *d = descriptor;
    for (int i = 0; i < d->count; i++)
        free(d->attribute[i].value);
    free(d);
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t put(struct descriptor *d, cudnnBackendAttributeName_t name,
                         cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    size_t bytes = (size_t)count * size_of(type);
    void *value = malloc(bytes);
    if (!value || d->count == ATTRIBUTES_MAX) {
        free(value);
        return bad("no room for attribute", (int)name);
    }
    memcpy(value, values, bytes);
    d->attribute[d->count++] = (struct attribute){name, type, count, value};
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    struct descriptor *d = descriptor;
    size_t i = 0, n = sizeof rules / sizeof *rules;
    while (i < n && (rules[i].of != d->type || rules[i].name != name))
        i++;
    if (i == n || d->type == D(ENGINECFG))
        return bad("no such attribute", (int)name);
    if (d->final || find(d, name))
        return bad("too late for attribute", (int)name);
    if (rules[i].type != type || count < rules[i].least || count > rules[i].most)
        return bad("type or count of attribute", (int)name);
    for (int64_t j = 0; type == T(BACKEND_DESCRIPTOR) && j < count; j++) {
        const struct descriptor *p = ((const struct descriptor *const *)values)[j];
        if (!p || !p->final)
            return bad("not finalized, for attribute", (int)name);
    }
    return put(d, name, type, count, values);
}

static const struct descriptor *graph_of(const struct descriptor *config)
{
    return part(config, A(OPERATIONGRAPH_OPS), 0);
}

/* ---- Finalizing: operations that do not fit are refused here ---- */

static int64_t dim(const struct descriptor *t, int i)
{
    return whole(t, A(TENSOR_DIMENSIONS), i);
}

/* Each dimension of B is Y's or 1. */
static bool broadcasts(const struct descriptor *b, const struct descriptor *y)
{
    for (int i = 0; i < 4; i++)
        if (dim(b, i) != dim(y, i) && dim(b, i) != 1)
            return false;
    return true;
}

static cudnnStatus_t check_convolution(const struct descriptor *op)
{
    const struct descriptor *x = part(op, A(OPERATION_CONVOLUTION_FORWARD_X), 0), *how;
    const struct descriptor *w = part(op, A(OPERATION_CONVOLUTION_FORWARD_W), 0);
    const struct descriptor *y = part(op, A(OPERATION_CONVOLUTION_FORWARD_Y), 0);
    how = part(op, A(OPERATION_CONVOLUTION_FORWARD_CONV_DESC), 0);
    if (dim(x, 0) != dim(y, 0) || dim(x, 1) != dim(w, 1) || dim(w, 0) != dim(y, 1))
        return bad("channels of a convolution", (int)dim(w, 1));
    for (int i = 0; i < 2; i++) {
        int64_t padded = dim(x, 2 + i) + whole(how, A(CONVOLUTION_PRE_PADDINGS), i) +
                         whole(how, A(CONVOLUTION_POST_PADDINGS), i);
        if ((padded - dim(w, 2 + i)) / whole(how, A(CONVOLUTION_FILTER_STRIDES), i) + 1 != dim(y, 2 + i))
            return bad("size of a convolution", i);
        if (whole(how, A(CONVOLUTION_DILATIONS), i) != 1)
            return bad("dilation", i);
    }
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t check_matmul(const struct descriptor *op)
{
    const struct descriptor *a = part(op, A(OPERATION_MATMUL_ADESC), 0),
                            *b = part(op, A(OPERATION_MATMUL_BDESC), 0);
    const struct descriptor *c = part(op, A(OPERATION_MATMUL_CDESC), 0);
    for (int i = 0; i < 2; i++)
        if (dim(a, i) != dim(c, i) || dim(b, i) != dim(c, i))
            return bad("batch of a product", i);
    return dim(a, 2) == dim(c, 2) && dim(b, 3) == dim(c, 3) && dim(a, 3) == dim(b, 2)
               ? CUDNN_STATUS_SUCCESS
               : bad("size of a product", 0);
}

static cudnnStatus_t check_pointwise(const struct descriptor *op)
{
    const struct descriptor *x = part(op, A(OPERATION_POINTWISE_XDESC), 0);
    const struct descriptor *b = part(op, A(OPERATION_POINTWISE_BDESC), 0);
    const struct descriptor *t = part(op, A(OPERATION_POINTWISE_TDESC), 0);
    const struct descriptor *y = part(op, A(OPERATION_POINTWISE_YDESC), 0);
    int mode = choice(part(op, A(OPERATION_POINTWISE_PW_DESCRIPTOR), 0), A(POINTWISE_MODE));
    bool two = mode == CUDNN_POINTWISE_ADD || mode == CUDNN_POINTWISE_MUL || mode == CUDNN_POINTWISE_SUB ||
               mode == CUDNN_POINTWISE_DIV || mode == CUDNN_POINTWISE_CMP_GE;
    bool three = mode == CUDNN_POINTWISE_BINARY_SELECT;
    if ((b != NULL) != (two || three) || (t != NULL) != three)
        return bad("operands of mode", mode);
    return broadcasts(x, y) && (!b || broadcasts(b, y)) ? CUDNN_STATUS_SUCCESS : bad("shapes of mode", mode);
}

static cudnnStatus_t check(const struct descriptor *d)
{
    if (d->type == D(OPERATION_CONVOLUTION_FORWARD))
        return check_convolution(d);
    if (d->type == D(OPERATION_MATMUL))
        return check_matmul(d);
    if (d->type == D(OPERATION_POINTWISE))
        return check_pointwise(d);
    if (d->type == D(EXECUTION_PLAN) && part(d, A(EXECUTION_PLAN_ENGINE_CONFIG), 0)->engine == 1) {
        snprintf(last_error, sizeof last_error, "fake: engine 1 cannot be built");
        return CUDNN_STATUS_NOT_SUPPORTED;
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor)
{
    struct descriptor *d = descriptor;
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (rules[i].of == d->type && rules[i].needed && !find(d, rules[i].name))
            return bad("missing attribute", (int)rules[i].name);
    cudnnStatus_t s = check(d);
    if (d->type == D(EXECUTION_PLAN))
        d->engine = part(d, A(EXECUTION_PLAN_ENGINE_CONFIG), 0)->engine;
    d->final = s == CUDNN_STATUS_SUCCESS;
    return s;
}

/* ---- Engines ---- */

/* The real one wants to see the logarithm of the sums, though nobody asks for it. */
static bool knows_attention(const struct descriptor *graph)
{
    const struct attribute *ops = find(graph, A(OPERATIONGRAPH_OPS));
    for (int i = 0; i < ops->count; i++) {
        const struct descriptor *how =
            part(part(graph, A(OPERATIONGRAPH_OPS), i), A(OPERATION_POINTWISE_PW_DESCRIPTOR), 0);
        if (how && choice(how, A(POINTWISE_MODE)) == CUDNN_POINTWISE_LOG)
            return true;
    }
    return false;
}

static int engines_for(const struct descriptor *graph, int mode)
{
    const struct descriptor *op = part(graph, A(OPERATIONGRAPH_OPS), 0);
    if (op->type != D(OPERATION_CONVOLUTION_FORWARD))
        return knows_attention(graph) ? ENGINES : 0;
    const struct descriptor *w = part(op, A(OPERATION_CONVOLUTION_FORWARD_W), 0);
    if (dim(w, 2) == REFUSED || (dim(w, 1) == ONLY_B && mode == CUDNN_HEUR_MODE_A))
        return 0;
    return ENGINES;
}

static cudnnStatus_t get_configs(const struct descriptor *d, int64_t wanted, int64_t *count,
                                 struct descriptor **config)
{
    const struct descriptor *graph = part(d, A(ENGINEHEUR_OPERATION_GRAPH), 0);
    *count = engines_for(graph, choice(d, A(ENGINEHEUR_MODE)));
    for (int64_t i = 0; i < *count && i < wanted; i++) {
        if (config[i]->type != D(ENGINECFG))
            return bad("not a configuration", (int)i);
        config[i]->engine = (int)i;
        config[i]->final = true;
        cudnnStatus_t s = put(config[i], A(OPERATIONGRAPH_OPS), T(BACKEND_DESCRIPTOR), 1, &graph);
        if (s)
            return s;
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const descriptor,
                                       cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                                       int64_t wanted, int64_t *count, void *values)
{
    const struct descriptor *d = descriptor;
    (void)type;
    *count = 1;
    if (!d->final)
        return bad("not finalized", (int)d->type);
    if (d->type == D(ENGINEHEUR) && name == A(ENGINEHEUR_RESULTS))
        return get_configs(d, wanted, count, values);
    if (d->type == D(ENGINECFG) && name == A(ENGINECFG_ENGINE)) {
        struct descriptor *engine = *(struct descriptor **)values;
        engine->engine = d->engine;
        engine->final = true;
        return CUDNN_STATUS_SUCCESS;
    }
    if (d->type == D(ENGINE) && name == A(ENGINE_NUMERICAL_NOTE)) {
        cudnnBackendNumericalNote_t *note = values;
        note[0] = CUDNN_NUMERICAL_NOTE_TENSOR_CORE;
        if (d->engine == 0)
            note[(*count)++] = CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
        return CUDNN_STATUS_SUCCESS;
    }
    if (d->type == D(EXECUTION_PLAN) && name == A(EXECUTION_PLAN_WORKSPACE_SIZE)) {
        *(int64_t *)values = WORKSPACE;
        return CUDNN_STATUS_SUCCESS;
    }
    return bad("no such attribute to get", (int)name);
}

/* ---- Running ---- */

struct value {
    const struct descriptor *tensor;
    int64_t dim[4], stride[4]; /* the tensor's: looking them up for every number takes minutes */
    enum dtype type;
    float *inner; /* of a virtual tensor: all numbers in the order of the dimensions */
    void *outer;  /* in the GPU's memory */
    float number; /* by value */
    bool by_value;
};

struct job {
    struct job *next; /* jobs of a graph run again and again: kept until the end */
    int ops, count;
    float error; /* of the engine that must not be taken */
    const struct descriptor *op[OPS_MAX];
    struct value value[TENSORS_MAX];
};

static struct job *jobs;

cudnnStatus_t cudnnDestroy(cudnnHandle_t handle)
{
    free(handle);
    while (jobs) {
        struct job *next = jobs->next;
        free(jobs);
        jobs = next;
    }
    return CUDNN_STATUS_SUCCESS;
}

static struct value *value_of(struct job *j, const struct descriptor *t)
{
    for (int i = 0; i < j->count; i++)
        if (j->value[i].tensor == t)
            return &j->value[i];
    return NULL;
}

static enum dtype dtype_of(const struct descriptor *t)
{
    int type = choice(t, A(TENSOR_DATA_TYPE));
    return type == CUDNN_DATA_HALF ? DTYPE_F16 : type == CUDNN_DATA_BFLOAT16 ? DTYPE_BF16 : DTYPE_F32;
}

static size_t place_of(const struct value *v, const int64_t at[4])
{
    const int64_t *d = v->dim, *s = v->stride;
    return v->inner ? (size_t)(((at[0] * d[1] + at[1]) * d[2] + at[2]) * d[3] + at[3])
                    : (size_t)(at[0] * s[0] + at[1] * s[1] + at[2] * s[2] + at[3] * s[3]);
}

/* Dimensions of 1 are repeated. */
static float load(const struct value *v, const int64_t where[4])
{
    int64_t at[4];
    if (v->by_value)
        return v->number;
    for (int i = 0; i < 4; i++)
        at[i] = v->dim[i] == 1 ? 0 : where[i];
    return v->inner ? v->inner[place_of(v, at)] : half_load(v->outer, v->type, place_of(v, at));
}

static void store(const struct value *v, const int64_t at[4], float f)
{
    if (v->inner)
        v->inner[place_of(v, at)] = half_round(f, v->type);
    else
        half_store(v->outer, v->type, place_of(v, at), f);
}

static float convolve(struct job *j, const struct descriptor *op, const int64_t at[4])
{
    const struct descriptor *how = part(op, A(OPERATION_CONVOLUTION_FORWARD_CONV_DESC), 0);
    const struct value *x = value_of(j, part(op, A(OPERATION_CONVOLUTION_FORWARD_X), 0));
    const struct value *w = value_of(j, part(op, A(OPERATION_CONVOLUTION_FORWARD_W), 0));
    bool flipped = choice(how, A(CONVOLUTION_CONV_MODE)) != CUDNN_CROSS_CORRELATION;
    int64_t corner[2], kh = w->dim[2], kw = w->dim[3];
    float sum = 0;
    for (int i = 0; i < 2; i++)
        corner[i] = at[2 + i] * whole(how, A(CONVOLUTION_FILTER_STRIDES), i) -
                    whole(how, A(CONVOLUTION_PRE_PADDINGS), i);
    for (int64_t r = 0; r < kh; r++)
        for (int64_t s = 0; s < kw; s++) {
            int64_t from[4] = {at[0], 0, corner[0] + r, corner[1] + s};
            int64_t k[4] = {at[1], 0, flipped ? kh - 1 - r : r, flipped ? kw - 1 - s : s};
            if (from[2] < 0 || from[2] >= x->dim[2] || from[3] < 0 || from[3] >= x->dim[3])
                continue;
            for (int64_t c = 0; c < w->dim[1]; c++) {
                from[1] = k[1] = c;
                sum += load(x, from) * load(w, k);
            }
        }
    return sum;
}

static float multiply(struct job *j, const struct descriptor *op, const int64_t at[4])
{
    const struct value *a = value_of(j, part(op, A(OPERATION_MATMUL_ADESC), 0));
    const struct value *b = value_of(j, part(op, A(OPERATION_MATMUL_BDESC), 0));
    float sum = 0;
    for (int64_t k = 0; k < a->dim[3]; k++)
        sum += load(a, (int64_t[4]){at[0], at[1], at[2], k}) * load(b, (int64_t[4]){at[0], at[1], k, at[3]});
    return sum;
}

static float reduced(struct job *j, const struct descriptor *op, const int64_t at[4])
{
    const struct value *x = value_of(j, part(op, A(OPERATION_REDUCTION_XDESC), 0));
    bool add =
        choice(part(op, A(OPERATION_REDUCTION_DESC), 0), A(REDUCTION_OPERATOR)) == CUDNN_REDUCE_TENSOR_ADD;
    float result = add ? 0 : -INFINITY;
    for (int64_t i = 0; i < x->dim[3]; i++) {
        float f = load(x, (int64_t[4]){at[0], at[1], at[2], i});
        result = add ? result + f : fmaxf(result, f);
    }
    return result;
}

static float pointwise(struct job *j, const struct descriptor *op, const int64_t at[4])
{
    const struct descriptor *how = part(op, A(OPERATION_POINTWISE_PW_DESCRIPTOR), 0);
    const struct descriptor *second = part(op, A(OPERATION_POINTWISE_BDESC), 0);
    const struct descriptor *third = part(op, A(OPERATION_POINTWISE_TDESC), 0);
    float x = load(value_of(j, part(op, A(OPERATION_POINTWISE_XDESC), 0)), at);
    float b = second ? load(value_of(j, second), at) : 0;
    switch (choice(how, A(POINTWISE_MODE))) {
    case CUDNN_POINTWISE_ADD:
        return x + b;
    case CUDNN_POINTWISE_MUL:
        return x * b;
    case CUDNN_POINTWISE_SUB:
        return x - b;
    case CUDNN_POINTWISE_DIV:
        return x / b;
    case CUDNN_POINTWISE_EXP:
        return expf(x);
    case CUDNN_POINTWISE_LOG:
        return logf(x);
    case CUDNN_POINTWISE_SWISH_FWD:
        return x / (1 + expf(-x));
    case CUDNN_POINTWISE_GEN_INDEX:
        return (float)at[whole(how, A(POINTWISE_AXIS), 0)];
    case CUDNN_POINTWISE_CMP_GE:
        return x >= b;
    case CUDNN_POINTWISE_BINARY_SELECT:
        return load(value_of(j, third), at) != 0 ? x : b;
    }
    return NAN;
}

static cudnnBackendAttributeName_t output_name(const struct descriptor *op)
{
    return op->type == D(OPERATION_CONVOLUTION_FORWARD) ? A(OPERATION_CONVOLUTION_FORWARD_Y)
           : op->type == D(OPERATION_MATMUL)            ? A(OPERATION_MATMUL_CDESC)
           : op->type == D(OPERATION_REDUCTION)         ? A(OPERATION_REDUCTION_YDESC)
                                                        : A(OPERATION_POINTWISE_YDESC);
}

static void run_op(struct job *j, const struct descriptor *op)
{
    struct value *y = value_of(j, part(op, output_name(op), 0));
    const struct descriptor *t = y->tensor;
    if (flag(t, A(TENSOR_IS_VIRTUAL)))
        y->inner = malloc((size_t)(dim(t, 0) * dim(t, 1) * dim(t, 2) * dim(t, 3)) * sizeof(float));
    int64_t at[4];
    for (at[0] = 0; at[0] < dim(t, 0); at[0]++)
        for (at[1] = 0; at[1] < dim(t, 1); at[1]++)
            for (at[2] = 0; at[2] < dim(t, 2); at[2]++)
                for (at[3] = 0; at[3] < dim(t, 3); at[3]++)
                    store(y, at,
                          j->error + (op->type == D(OPERATION_CONVOLUTION_FORWARD) ? convolve(j, op, at)
                                      : op->type == D(OPERATION_MATMUL)            ? multiply(j, op, at)
                                      : op->type == D(OPERATION_REDUCTION)         ? reduced(j, op, at)
                                                                                   : pointwise(j, op, at)));
}

static void run(void *data)
{
    struct job *j = data;
    for (int i = 0; i < j->ops; i++)
        run_op(j, j->op[i]);
    for (int i = 0; i < j->count; i++) {
        free(j->value[i].inner);
        j->value[i].inner = NULL;
    }
}

/* What T is in this call; BAD_PARAM when the pack lacks it, or gives what the graph makes itself. */
static cudnnStatus_t bind(struct job *j, const struct descriptor *t, const struct descriptor *pack)
{
    const struct attribute *uids = find(pack, A(VARIANT_PACK_UNIQUE_IDS));
    const struct attribute *pointers = find(pack, A(VARIANT_PACK_DATA_POINTERS));
    int64_t uid = whole(t, A(TENSOR_UNIQUE_ID), 0);
    struct value v = {.tensor = t, .type = dtype_of(t), .by_value = flag(t, A(TENSOR_IS_BY_VALUE))};
    for (int i = 0; i < 4; i++) {
        v.dim[i] = dim(t, i);
        v.stride[i] = whole(t, A(TENSOR_STRIDES), i);
    }
    if (value_of(j, t))
        return CUDNN_STATUS_SUCCESS;
    for (int i = 0; i < j->count; i++)
        if (whole(j->value[i].tensor, A(TENSOR_UNIQUE_ID), 0) == uid)
            return bad("two tensors of uid", (int)uid);
    for (int i = 0; i < uids->count; i++)
        if (((const int64_t *)uids->value)[i] == uid)
            v.outer = ((void *const *)pointers->value)[i];
    if ((v.outer != NULL) == flag(t, A(TENSOR_IS_VIRTUAL)) || j->count == TENSORS_MAX)
        return bad("no address, or one too many, for uid", (int)uid);
    if (v.by_value)
        memcpy(&v.number, v.outer, sizeof v.number);
    else if ((uintptr_t)v.outer % (uintptr_t)whole(t, A(TENSOR_BYTE_ALIGNMENT), 0))
        return bad("alignment of uid", (int)uid);
    j->value[j->count++] = v;
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t bind_all(struct job *j, const struct descriptor *graph, const struct descriptor *pack)
{
    const struct attribute *ops = find(graph, A(OPERATIONGRAPH_OPS));
    for (int i = 0; i < ops->count; i++) {
        const struct descriptor *op = part(graph, A(OPERATIONGRAPH_OPS), i);
        j->op[j->ops++] = op;
        for (int a = 0; a < op->count; a++) {
            const struct descriptor *p = op->attribute[a].type == T(BACKEND_DESCRIPTOR)
                                             ? *(struct descriptor *const *)op->attribute[a].value
                                             : NULL;
            cudnnStatus_t s = p && p->type == D(TENSOR) ? bind(j, p, pack) : CUDNN_STATUS_SUCCESS;
            if (s)
                return s;
        }
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack)
{
    const struct descriptor *p = plan, *v = pack;
    void *workspace = v->final ? *(void *const *)find(v, A(VARIANT_PACK_WORKSPACE))->value : NULL;
    if (!p->final || p->type != D(EXECUTION_PLAN) || !workspace || !handle->stream ||
        find(v, A(VARIANT_PACK_UNIQUE_IDS))->count != find(v, A(VARIANT_PACK_DATA_POINTERS))->count)
        return bad("plan, pack or stream", 0);
    struct job *j = calloc(1, sizeof *j);
    if (!j)
        return CUDNN_STATUS_NOT_INITIALIZED;
    cudnnStatus_t s = bind_all(j, graph_of(part(p, A(EXECUTION_PLAN_ENGINE_CONFIG), 0)), v);
    if (s) {
        free(j);
        return s;
    }
    j->error = p->engine == 0 ? 0.5f : 0;
    j->next = jobs;
    jobs = j;
    memset(workspace, 0xcd, WORKSPACE);
    return cudaLaunchHostFunc(handle->stream, run, j) == cudaSuccess ? CUDNN_STATUS_SUCCESS
                                                                     : CUDNN_STATUS_EXECUTION_FAILED;
}
