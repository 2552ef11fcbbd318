/* A libcublasLt.so.13 for the emulator: it checks what it is asked as the real one would, and computes it
 * with plain loops when the stream gets there. So which side is transposed, strides, epilogues and captured
 * graphs are tested.
 *
 * Its plans: the first is one that cannot be used, two more are good; for products of REFUSED rows it has
 * none. */
#include <cublasLt.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"

enum { REFUSED = 3, MAGIC = 0x51ab, PLANS = 3 };

const int emulated_library = 1;

struct fake_desc {
    cublasOperation_t transposed[2];
    cublasLtEpilogue_t epilogue;
    const void *bias;
};

struct fake_layout {
    enum dtype type;
    uint64_t rows, cols;
    int64_t ld;
};

struct fake_preference {
    uint64_t workspace;
    uint32_t reduction, alignment[4];
};

struct cublasLtContext {
    int unused;
};

struct job {
    struct job *next; /* jobs of a graph run again and again: kept until the end */
    struct fake_desc desc;
    struct fake_layout layout[4];
    const void *a, *b, *c;
    void *d;
    float alpha, beta;
};

static struct job *jobs;

size_t cublasLtGetVersion(void)
{
    return 130199;
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_NOT_SUPPORTED ? "not supported (fake)" : "an error (fake)";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    *handle = calloc(1, sizeof **handle);
    return *handle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    free(handle);
    while (jobs) {
        struct job *next = jobs->next;
        free(jobs);
        jobs = next;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    *desc = calloc(1, sizeof **desc);
    if (!*desc)
        return CUBLAS_STATUS_ALLOC_FAILED;
    (*desc)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    free(desc);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t copy(void *to, size_t size, const void *value, size_t bytes)
{
    if (size != bytes)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name,
                                              const void *value, size_t bytes)
{
    switch (name) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return copy(&desc->transposed[name - CUBLASLT_MATMUL_DESC_TRANSA], sizeof desc->transposed[0], value,
                    bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return copy(&desc->epilogue, sizeof desc->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return copy(&desc->bias, sizeof desc->bias, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld)
{
    *layout = NULL;
    if (ld < (int64_t)rows || rows == 0 || cols == 0)
        return CUBLAS_STATUS_INVALID_VALUE;
    *layout = calloc(1, sizeof **layout);
    if (!*layout)
        return CUBLAS_STATUS_ALLOC_FAILED;
    **layout = (struct fake_layout){type == CUDA_R_16F    ? DTYPE_F16
                                    : type == CUDA_R_16BF ? DTYPE_BF16
                                                          : DTYPE_F32,
                                    rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    *preference = calloc(1, sizeof **preference);
    if (!*preference)
        return CUBLAS_STATUS_ALLOC_FAILED;
    **preference = (struct fake_preference){0, 7, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t name,
                                                    const void *value, size_t bytes)
{
    switch (name) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return copy(&preference->workspace, sizeof preference->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return copy(&preference->reduction, sizeof preference->reduction, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return copy(&preference->alignment[name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES],
                    sizeof preference->alignment[0], value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

/* op(A) is m x k, op(B) k x n, C and D m x n; C has D's type. */
static bool fits(const struct fake_desc *desc, const struct fake_layout *const l[4])
{
    bool ta = desc->transposed[0] == CUBLAS_OP_T, tb = desc->transposed[1] == CUBLAS_OP_T;
    uint64_t m = ta ? l[0]->cols : l[0]->rows, k = ta ? l[0]->rows : l[0]->cols;
    uint64_t n = tb ? l[1]->rows : l[1]->cols;
    return (tb ? l[1]->cols : l[1]->rows) == k && l[0]->type == l[1]->type && l[0]->type != DTYPE_F32 &&
           l[2]->type == l[3]->type && l[2]->rows == m && l[3]->rows == m && l[2]->cols == n &&
           l[3]->cols == n && (l[3]->type == DTYPE_F32 || l[3]->type == l[0]->type) &&
           (desc->epilogue == CUBLASLT_EPILOGUE_DEFAULT ||
            (desc->epilogue == CUBLASLT_EPILOGUE_BIAS && desc->bias));
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t result[], int *count)
{
    const struct fake_layout *const layout[4] = {a, b, c, d};
    *count = 0;
    if (!handle || !fits(desc, layout))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (d->cols == REFUSED || preference->reduction != CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < PLANS && i < wanted; i++) {
        memset(&result[i], 0, sizeof result[i]);
        result[i].algo.data[0] = MAGIC + (unsigned)i;
        for (int j = 0; j < 4; j++)
            result[i].algo.data[1 + j] = preference->alignment[j];
        result[i].algo.data[5] = desc->bias ? (uintptr_t)desc->bias & -(uintptr_t)desc->bias : 1;
        result[i].workspaceSize = result[i].algo.data[6] = preference->workspace / 2;
        result[i].state = i == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
        *count = i + 1;
    }
    return CUBLAS_STATUS_SUCCESS;
}

static void run(void *data)
{
    const struct job *j = data;
    const struct fake_layout *a = &j->layout[0], *b = &j->layout[1], *c = &j->layout[2], *d = &j->layout[3];
    bool ta = j->desc.transposed[0] == CUBLAS_OP_T, tb = j->desc.transposed[1] == CUBLAS_OP_T;
    uint64_t depth = ta ? a->rows : a->cols;
    for (uint64_t n = 0; n < d->cols; n++) {
        for (uint64_t m = 0; m < d->rows; m++) {
            float sum = 0;
            for (uint64_t k = 0; k < depth; k++) {
                uint64_t at_a = ta ? m * (uint64_t)a->ld + k : k * (uint64_t)a->ld + m;
                uint64_t at_b = tb ? k * (uint64_t)b->ld + n : n * (uint64_t)b->ld + k;
                sum += half_load(j->a, a->type, at_a) * half_load(j->b, b->type, at_b);
            }
            sum *= j->alpha;
            if (j->beta != 0)
                sum += j->beta * half_load(j->c, c->type, n * (uint64_t)c->ld + m);
            if (j->desc.epilogue == CUBLASLT_EPILOGUE_BIAS)
                sum += half_load(j->desc.bias, d->type, m);
            half_store(j->d, d->type, n * (uint64_t)d->ld + m, sum);
        }
    }
}

/* With a bias there are two launches, as a split has: such a graph cannot be updated to one without. */
static void rest(void *data)
{
    (void)data;
}

static bool aligned(const void *p, uint64_t to)
{
    return p && (uintptr_t)p % to == 0;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                              cudaStream_t stream)
{
    const struct fake_layout *const layout[4] = {a_layout, b_layout, c_layout, d_layout};
    if (!handle || !fits(desc, layout) || algo->data[0] <= MAGIC || algo->data[0] >= MAGIC + PLANS ||
        !aligned(a, algo->data[1]) || !aligned(b, algo->data[2]) || !aligned(c, algo->data[3]) ||
        !aligned(d, algo->data[4]) || workspace_bytes < algo->data[6] || !workspace ||
        (desc->bias && !aligned(desc->bias, algo->data[5])))
        return CUBLAS_STATUS_INVALID_VALUE;
    struct job *job = calloc(1, sizeof *job);
    if (!job)
        return CUBLAS_STATUS_ALLOC_FAILED;
    *job = (struct job){jobs, *desc, {*a_layout, *b_layout, *c_layout, *d_layout}, a, b, c, d, 0, 0};
    memcpy(&job->alpha, alpha, sizeof job->alpha);
    memcpy(&job->beta, beta, sizeof job->beta);
    jobs = job;
    memset(workspace, 0xab, 64);
    cudaError_t rc = cudaLaunchHostFunc(stream, run, job);
    if (rc == cudaSuccess && desc->bias)
        rc = cudaLaunchHostFunc(stream, rest, NULL);
    return rc == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
