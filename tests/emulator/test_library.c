/* cuBLASLt and cuDNN behind the emulated GPU, as fakes (fake_cublaslt.c, fake_cudnn.c): what
 * kernels/cuda/library.h offers against plain loops, at once and in steps, with other addresses the second
 * time; refusals; libraries that are not there; a device that fails.
 *
 *   test_library [FOLDER]      where the fakes lie; FAKE beside the program when it is not given */
#include <libgen.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "half.h"
#include "library.h"
#include "log.h"
#include "region.h"

/* ---- Memory: the emulated GPU's is the host's ---- */

enum { BUFFERS_MAX = 256 };
static struct backend *be;
static void *buffer[BUFFERS_MAX];
static int buffers;
static uint64_t state = 1;

static float random_number(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int)(state >> 33 & 0xff) / 64.0f - 2.0f; /* few bits, so that it is exact in every type */
}

static void *take(size_t bytes)
{
    void *p = NULL;
    struct error err = {0};
    if (buffers == BUFFERS_MAX || be->mem_alloc(be, bytes, &p, &err)) {
        printf("no memory: %s\n", err.msg);
        exit(1);
    }
    buffer[buffers++] = p;
    return p;
}

static void drop_all(void)
{
    while (buffers > 0)
        be->mem_free(be, buffer[--buffers], 0);
}

/* COUNT random numbers, with NaN between the rows of COLS when LD is more. */
static void *numbers(enum dtype type, size_t rows, int cols, int ld)
{
    char *p = take(rows * (size_t)ld * 4);
    for (size_t i = 0; i < rows * (size_t)ld; i++)
        half_store(p, type, i, i % (size_t)ld < (size_t)cols ? random_number() : NAN);
    return p;
}

static void *nothing(size_t bytes)
{
    return memset(take(bytes), 0xff, bytes);
}

/* ---- Matrix products ---- */

struct gemm_case {
    int rows, cols, depth, x_gap, w_gap, y_gap;
    bool bias, residual, f32_out;
    int rank;
};

static struct gemm_call gemm_call(const struct gemm_case *g)
{
    struct gemm_call c;
    memset(&c, 0, sizeof c);
    c.rows = g->rows;
    c.cols = g->cols;
    c.depth = g->depth;
    c.dtype = be->dtype;
    c.f32_out = g->f32_out;
    c.rank = g->rank;
    c.x_ld = (g->depth + 7) / 8 * 8 + g->x_gap;
    c.w_stride = (g->depth + 7) / 8 * 8 + g->w_gap;
    c.y_ld = (g->cols + 7) / 8 * 8 + g->y_gap;
    c.x = numbers(be->dtype, (size_t)g->rows, g->depth, c.x_ld);
    c.w = numbers(be->dtype, (size_t)g->cols, g->depth, c.w_stride);
    c.y = nothing((size_t)g->rows * (size_t)c.y_ld * 4);
    if (g->bias) {
        float *bias = numbers(DTYPE_F32, 1, g->cols, g->cols);
        void *bias16 = take((size_t)g->cols * 2);
        for (int i = 0; i < g->cols; i++)
            half_store(bias16, be->dtype, (size_t)i, bias[i]);
        c.bias = bias;
        c.bias16 = bias16;
    }
    if (g->residual) {
        c.residual_ld = c.y_ld + 8;
        c.residual = numbers(be->dtype, (size_t)g->rows, g->cols, c.residual_ld);
    }
    return c;
}

static bool near(float got, double expected, enum dtype type)
{
    double bound = type == DTYPE_F32 ? 1e-5 : type == DTYPE_F16 ? 1e-3 : 8e-3;
    return fabs((double)got - expected) <= bound * (fabs(expected) + 1);
}

static bool gemm_right(const struct gemm_call *c, const void *y)
{
    enum dtype out = c->f32_out ? DTYPE_F32 : c->dtype;
    for (size_t r = 0; r < (size_t)c->rows; r++) {
        for (size_t o = 0; o < (size_t)c->y_ld; o++) {
            float got = half_load(y, out, r * (size_t)c->y_ld + o);
            if (o >= (size_t)c->cols) {
                if (!isnan(got))
                    return false; /* between the rows */
                continue;
            }
            double sum = c->bias ? (double)c->bias[o] : 0;
            for (size_t k = 0; k < (size_t)c->depth; k++)
                sum += (double)half_load(c->x, c->dtype, r * (size_t)c->x_ld + k) *
                       (double)half_load(c->w, c->dtype, o * (size_t)c->w_stride + k);
            if (c->residual)
                sum += (double)half_load(c->residual, c->dtype, r * (size_t)c->residual_ld + o);
            if (!near(got, sum, out))
                return false;
        }
    }
    return true;
}

/* ---- Convolutions ---- */

struct conv_case {
    int n, h, w, c, o, k, stride;
    bool pad_end, bias, bias16, add, residual, silu, f32_out;
    int gap, rank;
};

static struct conv_call conv_call(const struct conv_case *s)
{
    struct conv_call c;
    memset(&c, 0, sizeof c);
    c.n = s->n;
    c.h = s->h;
    c.w = s->w;
    c.c = c.channels = s->c;
    c.o = s->o;
    c.kh = c.kw = s->k;
    c.stride = s->stride;
    c.pad_top = c.pad_left = s->pad_end ? 0 : (s->k - 1) / 2;
    c.pad_bottom = c.pad_right = s->pad_end ? 1 : (s->k - 1) / 2;
    c.oh = (c.h + c.pad_top + c.pad_bottom - s->k) / s->stride + 1;
    c.ow = (c.w + c.pad_left + c.pad_right - s->k) / s->stride + 1;
    c.dtype = be->dtype;
    c.f32_out = s->f32_out;
    c.act = s->silu ? ACT_SILU : ACT_NONE;
    c.rank = s->rank;
    c.x_ld = s->c + s->gap;
    c.y_ld = s->o + s->gap;
    c.x = numbers(be->dtype, (size_t)(c.n * c.h * c.w), c.c, c.x_ld);
    c.weight = numbers(be->dtype, (size_t)(c.o * c.kh * c.kw), c.c, c.c);
    c.y = nothing((size_t)(c.n * c.oh * c.ow) * (size_t)c.y_ld * 4);
    if (s->bias) {
        float *bias = numbers(DTYPE_F32, 1, c.o, c.o);
        void *bias16 = take((size_t)c.o * 2);
        for (int i = 0; i < c.o; i++)
            half_store(bias16, be->dtype, (size_t)i, bias[i]);
        c.bias = bias;
        c.bias16 = s->bias16 ? bias16 : NULL;
    }
    c.add_ld = c.o + 8;
    c.residual_ld = c.o + 16;
    c.add = s->add ? numbers(be->dtype, (size_t)c.n, c.o, c.add_ld) : NULL;
    c.residual = s->residual ? numbers(be->dtype, (size_t)(c.n * c.oh * c.ow), c.o, c.residual_ld) : NULL;
    return c;
}

static double conv_sum(const struct conv_call *c, int n, int y, int x, int o)
{
    double sum = 0;
    for (int ky = 0; ky < c->kh; ky++)
        for (int kx = 0; kx < c->kw; kx++)
            for (int i = 0; i < c->c; i++) {
                int iy = y * c->stride - c->pad_top + ky, ix = x * c->stride - c->pad_left + kx;
                if (iy < 0 || ix < 0 || iy >= c->h || ix >= c->w)
                    continue;
                sum +=
                    (double)half_load(c->x, c->dtype,
                                      (size_t)((n * c->h + iy) * c->w + ix) * (size_t)c->x_ld + (size_t)i) *
                    (double)half_load(c->weight, c->dtype,
                                      (size_t)(((o * c->kh + ky) * c->kw + kx) * c->c + i));
            }
    return sum;
}

static bool conv_right(const struct conv_call *c, const void *out)
{
    enum dtype type = c->f32_out ? DTYPE_F32 : c->dtype;
    for (int at = 0; at < c->n * c->oh * c->ow; at++) {
        int n = at / (c->oh * c->ow), y = at / c->ow % c->oh, x = at % c->ow;
        for (int o = 0; o < c->y_ld; o++) {
            float got = half_load(out, type, (size_t)at * (size_t)c->y_ld + (size_t)o);
            if (o >= c->o) {
                if (!isnan(got))
                    return false;
                continue;
            }
            double v = conv_sum(c, n, y, x, o) + (c->bias ? (double)c->bias[o] : 0);
            if (c->add)
                v += (double)half_load(c->add, c->dtype, (size_t)(n * c->add_ld + o));
            if (c->act == ACT_SILU)
                v /= 1 + exp(-v);
            if (c->residual)
                v +=
                    (double)half_load(c->residual, c->dtype, (size_t)at * (size_t)c->residual_ld + (size_t)o);
            if (!near(got, v, type))
                return false;
        }
    }
    return true;
}

/* ---- Attention ---- */

static struct attention_call attention_call(int n, int kv_n, int t, int s, int heads, int size, bool causal)
{
    struct attention_call c;
    int width = heads * size;
    memset(&c, 0, sizeof c);
    c.n = n;
    c.kv_n = kv_n;
    c.t = t;
    c.s = s;
    c.heads = heads;
    c.size = size;
    c.scale = 1 / sqrtf((float)size);
    c.causal = causal;
    c.dtype = be->dtype;
    c.q_ld = width + 8;
    c.k_ld = width + 16;
    c.v_ld = width;
    c.y_ld = width + 8;
    c.q = numbers(be->dtype, (size_t)(n * t), width, c.q_ld);
    c.k = numbers(be->dtype, (size_t)(kv_n * s), width, c.k_ld);
    c.v = numbers(be->dtype, (size_t)(kv_n * s), width, c.v_ld);
    c.y = nothing((size_t)(n * t) * (size_t)c.y_ld * 4);
    return c;
}

static double attend(const struct attention_call *c, int n, int t, int h, int i)
{
    double most = -INFINITY, sum = 0, value = 0, score[64];
    int kn = c->kv_n == 1 ? 0 : n, keys = c->causal && t + 1 < c->s ? t + 1 : c->s;
    for (int s = 0; s < keys; s++) {
        score[s] = 0;
        for (int d = 0; d < c->size; d++)
            score[s] +=
                (double)half_load(c->q, c->dtype, (size_t)((n * c->t + t) * c->q_ld + h * c->size + d)) *
                (double)half_load(c->k, c->dtype, (size_t)((kn * c->s + s) * c->k_ld + h * c->size + d));
        score[s] *= (double)c->scale;
        most = fmax(most, score[s]);
    }
    for (int s = 0; s < keys; s++) {
        double p = exp(score[s] - most);
        sum += p;
        value += p * (double)half_load(c->v, c->dtype, (size_t)((kn * c->s + s) * c->v_ld + h * c->size + i));
    }
    return value / sum;
}

static bool attention_right(const struct attention_call *c, const void *y)
{
    for (int n = 0; n < c->n; n++)
        for (int t = 0; t < c->t; t++)
            for (int i = 0; i < c->y_ld; i++) {
                float got = half_load(y, c->dtype, (size_t)((n * c->t + t) * c->y_ld + i));
                bool inside = i < c->heads * c->size;
                if (inside ? !near(got, attend(c, n, t, i / c->size, i % c->size), DTYPE_BF16) : !isnan(got))
                    return false;
            }
    return true;
}

/* ---- The tests ---- */

static const struct gemm_case gemms[] = {
    {5, 16, 24, 0, 0, 0, false, false, false, 0}, {7, 24, 16, 8, 0, 16, true, false, false, 0},
    {9, 8, 40, 0, 8, 0, true, true, false, 0},    {9, 8, 40, 0, 8, 0, false, true, false, 1},
    {4, 13, 20, 16, 0, 8, true, false, true, 0},  {33, 12, 64, 0, 0, 0, false, false, true, 1},
};

static const struct conv_case convs[] = {
    {1, 5, 6, 8, 16, 3, 1, false, false, false, false, false, false, false, 0, 0},
    {2, 6, 5, 16, 8, 3, 1, false, true, true, false, false, false, false, 8, 0},
    {2, 8, 6, 8, 8, 3, 2, true, true, true, false, false, false, false, 0, 1},
    {1, 8, 6, 8, 8, 3, 2, false, true, false, false, true, false, false, 16, 0},
    {2, 4, 4, 8, 24, 3, 1, false, true, true, true, true, true, false, 0, 0},
    {3, 3, 4, 8, 8, 1, 1, false, true, true, true, false, true, true, 8, 0},
    {1, 4, 4, 24, 8, 3, 1, false, true, true, false, true, false, false, 0, 0}, /* heuristics of mode B */
};

static void eager(void)
{
    struct error err = {0};
    for (size_t i = 0; i < sizeof gemms / sizeof *gemms; i++) {
        struct gemm_call c = gemm_call(&gemms[i]);
        check(cublaslt_can(be, &c), "cublaslt_can");
        check(cublaslt_gemm(be, &c, NULL, &err) == 0 && gemm_right(&c, c.y), "cublaslt_gemm");
        void *other = nothing((size_t)c.rows * (size_t)c.y_ld * 4);
        check(cublaslt_gemm(be, &c, other, &err) == 0 && gemm_right(&c, other),
              "cublaslt_gemm into other memory");
        drop_all();
    }
    for (size_t i = 0; i < sizeof convs / sizeof *convs; i++) {
        struct conv_call c = conv_call(&convs[i]);
        check(cudnn_can_conv(be, &c), "cudnn_can_conv");
        check(cudnn_conv(be, &c, NULL, &err) == 0 && conv_right(&c, c.y), "cudnn_conv");
        drop_all();
    }
    for (int i = 0; i < 6; i++) {
        struct attention_call c = attention_call(i % 2 ? 3 : 2,
                                                 i == 1  ? 1
                                                 : i % 2 ? 3
                                                         : 2,
                                                 9, i < 2 ? 7 : 9, 2, 8 * (1 + i / 2), i > 3);
        check(cudnn_can_attention(be, &c), "cudnn_can_attention");
        check(cudnn_attention(be, &c, NULL, &err) == 0 && attention_right(&c, c.y), "cudnn_attention");
        drop_all();
    }
    if (err.code)
        printf("%s\n", err.msg);
}

/* A product and a convolution in one step; nothing may be computed before its end. */
static void step(const struct gemm_case *g, const struct conv_case *s, const char *what)
{
    struct error err = {0};
    struct gemm_call c = gemm_call(g);
    struct conv_call v = conv_call(s);
    struct attention_call a = attention_call(2, 2, 5, 7, 2, 16, false);
    int rc = be->step_begin(be, &err);
    rc = rc ? rc : cublaslt_gemm(be, &c, NULL, &err);
    rc = rc ? rc : cudnn_conv(be, &v, NULL, &err);
    rc = rc ? rc : cudnn_attention(be, &a, NULL, &err);
    bool untouched = isnan(half_load(c.y, c.f32_out ? DTYPE_F32 : c.dtype, 0)) &&
                     isnan(half_load(v.y, v.f32_out ? DTYPE_F32 : v.dtype, 0)) &&
                     isnan(half_load(a.y, a.dtype, 0));
    rc = rc ? rc : be->step_end(be, &err);
    check(untouched, "nothing is computed before the end of a step");
    check(rc == 0 && gemm_right(&c, c.y) && conv_right(&v, v.y) && attention_right(&a, a.y), what);
    if (rc)
        printf("%s\n", err.msg);
}

static void steps(void)
{
    struct gemm_case g = {6, 24, 48, 0, 0, 8, true, true, false, 0},
                     plain = {6, 32, 48, 0, 0, 8, false, false, false, 0};
    struct conv_case s = {1, 4, 5, 8, 16, 3, 1, false, true, true, false, true, false, false, 8, 0},
                     other = convs[0];
    for (int i = 0; i < 3; i++) {
        step(&g, &s, "a step of libraries, again with other addresses");
        step(&plain, &other, "a step of other shapes");
    }
    drop_all();
}

/* 100 * 100 * 16 is beyond fp16, and not beyond bf16. OUT: y[0] of a linear layer of WIDE. */
static float great_product(struct backend *wide)
{
    float x[16], w[16 * 16], y[16] = {0};
    struct error err = {0};
    struct region mem = {0};
    weight packed;
    for (int i = 0; i < 256; i++)
        x[i % 16] = w[i] = 100;
    struct weight_source src = {.kind = WEIGHT_LINEAR,
                                .out_c = 16,
                                .in_c = 16,
                                .kh = 1,
                                .kw = 1,
                                .parts = 1,
                                .w = {{w, DTYPE_F32, 256}}};
    region_init(&mem, take(1 << 20), 1 << 20);
    int rc = weight_pack(wide, &packed, &src, &err);
    check(rc == 0 && be->weight_bytes > 0, "a weight of either handle is the device's");
    pass p = {wide, &mem, &err};
    tensor in = tensor_from_host(&p, x, 1, 1, 1, 16, wide->dtype);
    pass_step_begin(&p);
    tensor out = linear(&p, &packed, in, (struct linear_args){0});
    pass_step_end(&p);
    check(tensor_to_host(&p, convert(&p, out, DTYPE_F32), y) == 0, "a step of a second handle");
    if (err.code)
        printf("%s\n", err.msg);
    weight_free(wide, &packed);
    check(be->weight_bytes == 0, "all weights are given back");
    return y[0];
}

/* SDXL's VAE beside a UNet in fp16. */
static void wide_range(void)
{
    struct backend *wide = NULL;
    struct error err = {0};
    check(backend_open_wide(&wide, be, &err) == 0, "backend_open_wide");
    check((wide == be) == (be->dtype == DTYPE_BF16) && wide->dtype == DTYPE_BF16, "bf16 on the same device");
    check(isinf(great_product(be)) == (be->dtype == DTYPE_F16), "fp16 overflows");
    check(near(great_product(wide), 160000, DTYPE_BF16), "bf16 does not");
    struct gemm_case g = {4, 16, 16, 0, 0, 0, true, false, false, 0};
    struct gemm_call c = gemm_call(&g);
    check(cublaslt_can(wide, &c), "a second handle finds the libraries");
    if (wide != be)
        backend_close(&wide);
    drop_all();
}

static void refusals(void)
{
    struct gemm_case g = {3, 16,   16,    0,     0,
                          0, true, false, false, 0}; /* the fake has no plan for three rows */
    struct conv_case s = {1, 6, 6, 8, 8, 5, 1, false, true, true, false, false, false, false, 0, 0};
    struct gemm_call c = gemm_call(&g);
    struct conv_call v = conv_call(&s);
    for (int i = 0; i < 2; i++) {
        struct error err = {0}, why = {0};
        check(cublaslt_gemm(be, &c, NULL, &err) == ERR_UNSUPPORTED && strstr(err.msg, "not supported (fake)"),
              "a product without a plan is refused, with the library's words");
        check(cudnn_conv(be, &v, NULL, &why) == ERR_UNSUPPORTED && *why.msg,
              "a convolution without an engine");
    }
    check(!cuda_of(be)->dead, "a refusal is no failure of the device");
    struct error err = {0};
    g.rows = 4;
    struct gemm_call good = gemm_call(&g), bad = good;
    bad.rank = 7;
    check(cublaslt_gemm(be, &bad, NULL, &err) == ERR_UNSUPPORTED, "a rank that the library does not have");
    bad = good;
    bad.x = (const char *)good.x + 2;
    check(!cublaslt_can(be, &bad), "a view that is not aligned");
    bad = good;
    bad.bias16 = NULL;
    check(!cublaslt_can(be, &bad), "no bias in the output's type");
    bad = good;
    bad.residual = good.x;
    bad.residual_ld = 16;
    bad.f32_out = true;
    check(!cublaslt_can(be, &bad), "a residual of another type");
    v.kh = v.kw = 3;
    v.c = 4;
    check(!cudnn_can_conv(be, &v), "channels that are padded in the matrix only");
    v.c = v.channels;
    v.act = ACT_GELU;
    check(!cudnn_can_conv(be, &v), "an activation that is not SiLU");
    v.act = ACT_NONE;
    v.upsample = true;
    check(!cudnn_can_conv(be, &v), "upsampling");
    drop_all();
}

/* From here on every launch fails. */
static void dead_device(void)
{
    struct error err = {0};
    struct gemm_case g = {5, 16, 24, 0, 0, 0, false, false, false, 0};
    struct gemm_call c = gemm_call(&g);
    setenv("EMULATOR_FAIL_LAUNCH", "1", 1);
    check(cublaslt_gemm(be, &c, NULL, &err) == ERR_DEVICE && cuda_of(be)->dead,
          "a device that fails inside a library");
    unsetenv("EMULATOR_FAIL_LAUNCH");
}

static void without(void)
{
    struct error err = {0};
    struct gemm_call c;
    struct conv_call v;
    int lt = 1, dnn = 1;
    memset(&c, 0, sizeof c);
    memset(&v, 0, sizeof v);
    library_versions(be, &lt, &dnn);
    check(lt == 0 && dnn == 0, "no library, no version");
    check(!cublaslt_can(be, &c) && !cudnn_can_conv(be, &v), "no library, no candidate");
    check(cublaslt_gemm(be, &c, NULL, &err) == ERR_UNSUPPORTED, "no library, no product");
}

static void start(const char *type, const char *folder)
{
    struct error err = {0};
    struct backend_options opt = {.kind = "cuda", .isa = type, .threads = 1};
    setenv("LD_LIBRARY_PATH", folder, 1);
    if (backend_open(&be, &opt, &err)) {
        printf("%s\n0 passed, 1 failed\n", err.msg);
        exit(1);
    }
    check(library_open(be) == 0, "library_open");
}

static void stop(void)
{
    drop_all();
    library_close(be);
    backend_close(&be);
}

int main(int argc, char **argv)
{
    static const char *const types[] = {"fp16", "bf16"};
    char path[4096], folder[4200];
    snprintf(path, sizeof path, "%s", argv[0]);
    snprintf(folder, sizeof folder, "%s/fake", dirname(path));
    if (argc > 1)
        snprintf(folder, sizeof folder, "%s", argv[1]);
    log_set_level(LOG_LEVEL_ERROR);
    start("fp16", "/nowhere");
    without();
    stop();
    for (int i = 0; i < 2; i++) {
        int lt = 0, dnn = 0;
        start(types[i], folder);
        library_versions(be, &lt, &dnn);
        check(lt == 130199 && dnn == 91999, "versions of the fakes");
        steps();
        eager();
        wide_range();
        refusals();
        if (i == 1)
            dead_device();
        stop();
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
