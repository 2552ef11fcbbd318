/* cuBLASLt and cuDNN 9, opened at run time: they compete with our kernels in choose(). The binary starts
 * without them, and a build without their headers has no more than the words that say so.
 *
 * A call is described by a struct. cublaslt_can() and its sisters say whether the library is there and takes
 * such a call at all; they cost nothing. cublaslt_gemm() and its sisters find or make the plan of the shape
 * and issue one command, which a step records like any other. ERR_UNSUPPORTED, with the library's words, when
 * it has no plan for the shape: known at once the second time. Sums are fp32, and plans whose results may
 * differ from run to run are not taken.
 *
 * Plans live as long as the backend: recorded steps point to them. All calls come from one thread. */
#ifndef LATENTD_CUDA_LIBRARY_H
#define LATENTD_CUDA_LIBRARY_H

#include "cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Looks for the libraries and logs what it found. Always 0: without them our own kernels serve everything. */
int library_open(struct backend *be);
/* After step_close(), and while the stream is still there. */
void library_close(struct backend *be);
/* As the libraries count them, 130100 for cuBLASLt 13.1.0; 0: not there. */
void library_versions(const struct backend *be, int *cublaslt, int *cudnn);

/* y[row][o] = sum over k of x[row][k] * w[o][k], + bias[o], + residual[row][o]. dtype: of x, w, bias16,
 * residual. */
struct gemm_call {
    int rows, cols, depth; /* depth: numbers of x that count; what W holds behind them is not read */
    const void *x;
    int x_ld;
    const void *w;
    int w_stride;       /* from one row of the packed matrix to the next */
    const float *bias;  /* NULL: none */
    const void *bias16; /* the same in dtype: what an output in dtype needs */
    const void *residual;
    int residual_ld;
    void *y;
    int y_ld;
    enum dtype dtype;
    bool f32_out;
    int rank; /* 0: what the library holds for the fastest; 1: its second choice, … */
};

bool cublaslt_can(const struct backend *be, const struct gemm_call *c);
/* OUT: in place of c->y; NULL: c->y. */
int cublaslt_gemm(struct backend *be, const struct gemm_call *c, void *out, struct error *err);

/* Convolution over NHWC with weights [o][kh][kw][channels]: then + bias, + add, ACT, + residual. */
struct conv_call {
    int n, h, w, c, oh, ow, o, kh, kw, stride;
    int pad_top, pad_left, pad_bottom, pad_right;
    int channels; /* of the packed matrix; only channels == c can be served */
    bool upsample;
    const void *x, *weight;
    int x_ld;
    const float *bias; /* NULL: none */
    const void *bias16;
    const void *add; /* [n][o] */
    int add_ld;
    const void *residual;
    int residual_ld;
    void *y;
    int y_ld;
    int act; /* ACT_NONE or ACT_SILU */
    enum dtype dtype;
    bool f32_out;
    int rank;
};

bool cudnn_can_conv(const struct backend *be, const struct conv_call *c);
int cudnn_conv(struct backend *be, const struct conv_call *c, void *out, struct error *err);

/* softmax(scale * q k^T) v. q, y [n, 1, t, heads * size], k and v [kv_n, 1, s, heads * size], heads
 * outermost. */
struct attention_call {
    int n, kv_n, t, s, heads, size;
    const void *q, *k, *v;
    int q_ld, k_ld, v_ld;
    void *y;
    int y_ld;
    float scale;
    bool causal;
    enum dtype dtype;
    int rank;
};

bool cudnn_can_attention(const struct backend *be, const struct attention_call *c);
int cudnn_attention(struct backend *be, const struct attention_call *c, void *out, struct error *err);

/* ---- Between library.c, cublaslt.c and cudnn.c ---- */

struct cublaslt;
struct cudnn;

struct cublaslt *library_cublaslt(const struct backend *be); /* NULL: not there */
struct cudnn *library_cudnn(const struct backend *be);

/* NULL: not there; the log says why. */
struct cublaslt *cublaslt_open(void);
void cublaslt_close(struct cublaslt **lt);
int cublaslt_version(const struct cublaslt *lt);
struct cudnn *cudnn_open(void);
void cudnn_close(struct cudnn **dnn);
int cudnn_version(const struct cudnn *dnn);

/* The first of NAMES (the last one is NULL) that can be loaded; FOUND is then its name. */
void *library_load(const char *const names[], const char **found, struct error *err);
/* Sets *FUNCTION, a pointer to a function. */
int library_find(void *library, const char *name, void *function, struct error *err);

enum { PLAN_KEY = 28, PLANS_MAX = 4096, REFUSAL_MAX = 240 };

/* How one shape is computed; the first member of either library's own struct. */
struct plan {
    int key[PLAN_KEY];         /* all that it depends on */
    char refused[REFUSAL_MAX]; /* why there is none */
    void *library;             /* struct cublaslt or struct cudnn */
};

struct plans {
    struct plan *slot[PLANS_MAX]; /* open addressing */
    int count;
};

/* What the arguments of a call begin with. */
struct plan_args {
    struct plan *plan;
    void *y;
};

struct plan_kind {
    size_t bytes; /* of the library's own struct */
    int (*build)(struct backend *be, struct plan *p, const void *call, struct error *err);
    void (*destroy)(struct plan *p); /* also of one that is half built */
    /* Enqueues a call; the stream may be capturing. */
    int (*run)(struct backend *be, const void *args, cudaStream_t stream, struct error *err);
};

/* Issues CALL by the plan of KEY, which is built when the shape is new. ARGS: BYTES, its plan is filled in.
 */
int plan_issue(struct backend *be, void *library, struct plans *plans, const struct plan_kind *kind,
               const int key[PLAN_KEY], const void *call, struct plan_args *args, size_t bytes,
               size_t y_bytes, struct error *err);
void plans_destroy(struct plans *plans, const struct plan_kind *kind);
/* A library's failure with STATUS, in WORDS: ERR_UNSUPPORTED, unless the device itself has failed. */
int library_failed(struct backend *be, const char *what, int status, const char *words, struct error *err);

#ifdef __cplusplus
}
#endif

#endif
