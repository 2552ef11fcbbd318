/* cuBLASLt as a candidate for linear layers and 1x1 convolutions. See library.h.
 *
 * It counts in columns: our y [rows][cols] is its D of cols x rows with y_ld from one column to the next. So
 * A is the packed matrix, transposed, B is x, and the bias belongs to D's rows, which is one number an
 * output. C is the residual, with beta = 1. Bias and C must have the type of D: an output in fp32 takes the
 * fp32 bias and no residual, one in 16 bits the bias in 16 bits. */
#include "library.h"

#include "log.h"

#if __has_include(<cublasLt.h>)

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define FUNCTIONS(X)                                                                                         \
    X(cublasLtGetVersion)                                                                                    \
    X(cublasLtGetStatusString)                                                                               \
    X(cublasLtCreate)                                                                                        \
    X(cublasLtDestroy)                                                                                       \
    X(cublasLtMatmulDescCreate)                                                                              \
    X(cublasLtMatmulDescDestroy)                                                                             \
    X(cublasLtMatmulDescSetAttribute)                                                                        \
    X(cublasLtMatrixLayoutCreate)                                                                            \
    X(cublasLtMatrixLayoutDestroy)                                                                           \
    X(cublasLtMatmulPreferenceCreate)                                                                        \
    X(cublasLtMatmulPreferenceDestroy)                                                                       \
    X(cublasLtMatmulPreferenceSetAttribute)                                                                  \
    X(cublasLtMatmulAlgoGetHeuristic)                                                                        \
    X(cublasLtMatmul)

#define FIELD(name) __typeof__(name) *name;
#define FIND(name)                                                                                           \
    if (!rc)                                                                                                 \
        rc = library_find(lt->library, #name, &lt->name, err);

struct cublaslt {
    void *library;
    cublasLtHandle_t handle; /* made when the first plan is */
    struct plans plans;
    FUNCTIONS(FIELD)
};

enum { RANKS_MAX = 8, ALIGNMENT = 16 };

struct lt_plan {
    struct plan base;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t w, x, y; /* C has y's type and size, and its own stride */
    cublasLtMatrixLayout_t residual;
    cublasLtMatmulAlgo_t algo;
};

struct lt_args {
    struct plan_args base;
    const void *x, *w, *bias, *residual;
};

static struct lt_plan *lt_plan(struct plan *p)
{
    return (struct lt_plan *)(void *)p;
}

static const struct plan_kind lt_kind;

/* ---- Open and close ---- */

struct cublaslt *cublaslt_open(void)
{
#if defined(CUDART_VERSION) && CUDART_VERSION < 13000
    static const char *const names[] = {"libcublasLt.so.12", "libcublasLt.so.13", NULL};
#else
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", NULL};
#endif
    struct error why = {0}, *err = &why;
    const char *found = NULL;
    struct cublaslt *lt = calloc(1, sizeof *lt);
    int rc = lt ? 0 : error_set(err, ERR_NOMEM, "no memory");
    if (!rc && !(lt->library = library_load(names, &found, err)))
        rc = why.code;
    FUNCTIONS(FIND)
    if (rc) {
        log_info("cuBLASLt is not used: %s", why.msg);
        cublaslt_close(&lt);
        return NULL;
    }
    int v = cublaslt_version(lt);
    log_info("cuBLASLt %d.%d.%d (%s)", v / 10000, v / 100 % 100, v % 100, found);
    return lt;
}

void cublaslt_close(struct cublaslt **out)
{
    struct cublaslt *lt = *out;
    if (!lt)
        return;
    plans_destroy(&lt->plans, &lt_kind);
    if (lt->handle)
        lt->cublasLtDestroy(lt->handle);
    if (lt->library)
        dlclose(lt->library);
    free(lt);
    *out = NULL;
}

int cublaslt_version(const struct cublaslt *lt)
{
    return (int)lt->cublasLtGetVersion();
}

/* ---- Plans ---- */

static int failed(struct backend *be, const struct cublaslt *lt, const char *what, cublasStatus_t s,
                  struct error *err)
{
    return library_failed(be, what, (int)s, lt->cublasLtGetStatusString(s), err);
}

static cublasStatus_t describe(const struct cublaslt *lt, struct lt_plan *p, const struct gemm_call *c,
                               const void *bias)
{
    cudaDataType in = c->dtype == DTYPE_F16 ? CUDA_R_16F : CUDA_R_16BF, out = c->f32_out ? CUDA_R_32F : in;
    uint64_t rows = (uint64_t)c->rows, cols = (uint64_t)c->cols, depth = (uint64_t)c->depth;
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cublasStatus_t s = lt->cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!s)
        s = lt->cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                               sizeof transposed);
    if (!s && bias)
        s = lt->cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                               sizeof epilogue);
    /* Only its alignment counts here; lt_run() sets each call's own. */
    if (!s && bias)
        s = lt->cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                               sizeof bias);
    if (!s)
        s = lt->cublasLtMatrixLayoutCreate(&p->w, in, depth, cols, c->w_stride);
    if (!s)
        s = lt->cublasLtMatrixLayoutCreate(&p->x, in, depth, rows, c->x_ld);
    if (!s)
        s = lt->cublasLtMatrixLayoutCreate(&p->y, out, cols, rows, c->y_ld);
    if (!s && c->residual)
        s = lt->cublasLtMatrixLayoutCreate(&p->residual, out, cols, rows, c->residual_ld);
    return s;
}

static cublasStatus_t prefer(const struct cublaslt *lt, cublasLtMatmulPreference_t *prefer)
{
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    uint64_t workspace = CUDA_WORKSPACE;
    uint32_t alignment = ALIGNMENT; /* the default is 256, which views do not keep */
    /* Splits are summed in fp32, behind the product: not in the output, whose type would round each of them.
     */
    uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasStatus_t s = lt->cublasLtMatmulPreferenceCreate(prefer);
    if (!s)
        s = lt->cublasLtMatmulPreferenceSetAttribute(*prefer, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                     &workspace, sizeof workspace);
    if (!s)
        s = lt->cublasLtMatmulPreferenceSetAttribute(*prefer, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                     &reduction, sizeof reduction);
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments && !s; i++)
        s = lt->cublasLtMatmulPreferenceSetAttribute(*prefer, alignments[i], &alignment, sizeof alignment);
    return s;
}

static int pick(struct backend *be, const struct cublaslt *lt, struct lt_plan *p, int rank, struct error *err)
{
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t result[RANKS_MAX];
    int count = 0;
    memset(result, 0, sizeof result);
    cublasStatus_t s = prefer(lt, &preference);
    if (!s)
        s = lt->cublasLtMatmulAlgoGetHeuristic(lt->handle, p->desc, p->w, p->x,
                                               p->residual ? p->residual : p->y, p->y, preference, RANKS_MAX,
                                               result, &count);
    if (preference)
        lt->cublasLtMatmulPreferenceDestroy(preference);
    if (s)
        return failed(be, lt, "cuBLASLt has no plan", s, err);
    for (int i = 0; i < count; i++) {
        if (result[i].state != CUBLAS_STATUS_SUCCESS || result[i].workspaceSize > CUDA_WORKSPACE ||
            rank-- > 0)
            continue;
        p->algo = result[i].algo;
        return 0;
    }
    return error_set(err, ERR_UNSUPPORTED, "cuBLASLt has no such plan among its %d", count);
}

static int lt_build(struct backend *be, struct plan *plan, const void *call, struct error *err)
{
    struct cublaslt *lt = plan->library;
    struct lt_plan *p = lt_plan(plan);
    const struct gemm_call *c = call;
    /* An address that is aligned as ALIGNMENT says and no better; nobody reads from it. */
    const char *somewhere = (const char *)cuda_of(be)->workspace + ALIGNMENT;
    cublasStatus_t s = lt->handle ? CUBLAS_STATUS_SUCCESS : lt->cublasLtCreate(&lt->handle);
    if (s) {
        lt->handle = NULL;
        return failed(be, lt, "cublasLtCreate", s, err);
    }
    s = describe(lt, p, c, c->bias ? somewhere : NULL);
    if (s)
        return failed(be, lt, "a matrix product for cuBLASLt", s, err);
    return pick(be, lt, p, c->rank, err);
}

static void lt_destroy(struct plan *plan)
{
    const struct cublaslt *lt = plan->library;
    struct lt_plan *p = lt_plan(plan);
    cublasLtMatrixLayout_t layout[] = {p->w, p->x, p->y, p->residual};
    if (p->desc)
        lt->cublasLtMatmulDescDestroy(p->desc);
    for (size_t i = 0; i < sizeof layout / sizeof *layout; i++)
        if (layout[i])
            lt->cublasLtMatrixLayoutDestroy(layout[i]);
    free(p);
}

static int lt_run(struct backend *be, const void *args, cudaStream_t stream, struct error *err)
{
    const struct lt_args *a = args;
    const struct lt_plan *p = lt_plan(a->base.plan);
    const struct cublaslt *lt = p->base.library;
    const float one = 1, beta = a->residual ? 1 : 0;
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    if (a->bias)
        s = lt->cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &a->bias,
                                               sizeof a->bias);
    if (!s)
        s = lt->cublasLtMatmul(lt->handle, p->desc, &one, a->w, p->w, a->x, p->x, &beta,
                               a->residual ? a->residual : a->base.y, a->residual ? p->residual : p->y,
                               a->base.y, p->y, &p->algo, cuda_of(be)->workspace, CUDA_WORKSPACE, stream);
    return s ? failed(be, lt, "cublasLtMatmul", s, err) : 0;
}

static const struct plan_kind lt_kind = {sizeof(struct lt_plan), lt_build, lt_destroy, lt_run};

/* ---- Calls ---- */

static bool aligned(const void *p, int ld, int unit)
{
    return (uintptr_t)p % ALIGNMENT == 0 && ld % unit == 0;
}

bool cublaslt_can(const struct backend *be, const struct gemm_call *c)
{
    if (!library_cublaslt(be) || c->rows < 1 || c->cols < 1 || c->depth < 1 || c->dtype == DTYPE_F32 ||
        c->rank < 0 || c->rank >= RANKS_MAX)
        return false;
    if (!aligned(c->x, c->x_ld, 8) || !aligned(c->w, c->w_stride, 8) ||
        !aligned(c->y, c->y_ld, c->f32_out ? 4 : 8))
        return false;
    if (c->bias && (c->f32_out ? !aligned(c->bias, 0, 1) : !c->bias16 || !aligned(c->bias16, 0, 1)))
        return false;
    return !c->residual || (!c->f32_out && aligned(c->residual, c->residual_ld, 8));
}

int cublaslt_gemm(struct backend *be, const struct gemm_call *c, void *out, struct error *err)
{
    struct cublaslt *lt = library_cublaslt(be);
    struct lt_args a;
    if (!cublaslt_can(be, c))
        return error_set(err, ERR_UNSUPPORTED, "not a product for cuBLASLt");
    const int key[PLAN_KEY] = {c->rows,     c->cols,         c->depth, c->x_ld,
                               c->w_stride, c->residual_ld,  c->y_ld,  (int)c->dtype,
                               c->f32_out,  c->bias != NULL, c->rank,  c->residual != NULL};
    memset(&a, 0, sizeof a);
    a.base.y = out ? out : c->y;
    a.x = c->x;
    a.w = c->w;
    a.bias = !c->bias ? NULL : c->f32_out ? (const void *)c->bias : c->bias16;
    a.residual = c->residual;
    size_t y_bytes = (size_t)c->rows * (size_t)c->y_ld * (c->f32_out ? 4 : 2);
    return plan_issue(be, lt, &lt->plans, &lt_kind, key, c, &a.base, sizeof a, y_bytes, err);
}

#else /* no cublasLt.h */

struct cublaslt *cublaslt_open(void)
{
    log_info("cuBLASLt is not used: this build has no cuBLASLt headers");
    return NULL;
}

void cublaslt_close(struct cublaslt **lt)
{
    (void)lt;
}

int cublaslt_version(const struct cublaslt *lt)
{
    (void)lt;
    return 0;
}

bool cublaslt_can(const struct backend *be, const struct gemm_call *c)
{
    (void)be;
    (void)c;
    return false;
}

int cublaslt_gemm(struct backend *be, const struct gemm_call *c, void *out, struct error *err)
{
    (void)be;
    (void)c;
    (void)out;
    return error_set(err, ERR_UNSUPPORTED, "this build has no cuBLASLt headers");
}

#endif
