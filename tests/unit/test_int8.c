/* Matrices in int8 (kernels/int8.h): every tier that has them against sums made here, to the last bit, at the
 * edges of the arithmetic; what goes to int8 and what does not; independence of threads and batch; what is
 * refused. */
#include "../kernels/cpu/cpu.h"
#include "../kernels/int8.h"
#include "backend.h"
#include "log.h"
#include "test.h"

/* Tier I with int8: ref, then those of the CPU. NULL and *MORE set: it has none here. */
static struct backend *open_tier(int i, int threads, bool *more)
{
    struct backend_options opt = {.kind = "cpu", .threads = threads, .precision = PRECISION_INT8};
    struct error err = {0};
    struct backend *be = NULL;
    opt.isa = i == 0 ? "ref" : cpu_tier_name(i - 1);
    *more = opt.isa != NULL;
    if (!opt.isa)
        return NULL;
    return backend_open(&be, &opt, &err) ? NULL : be;
}

struct layer {
    enum weight_kind kind;
    int n, h, w, c, o, k, stride;
    bool upsample;
};

struct data {
    float *x, *w, *bias;
};

static float *numbers(size_t count, unsigned seed)
{
    float *v = aligned_alloc(64, (count * sizeof *v + 63) / 64 * 64);
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        v[i] = (float)(int)(seed >> 8) / (float)(1 << 23) - 1.0f;
    }
    return v;
}

static int out_side(int in, const struct layer *l)
{
    return ((l->upsample ? 2 * in : in) - 1) / l->stride + 1;
}

static size_t outputs(const struct layer *l)
{
    return (size_t)l->n * (size_t)out_side(l->h, l) * (size_t)out_side(l->w, l) * (size_t)l->o;
}

static struct data make(const struct layer *l)
{
    size_t in = (size_t)l->n * (size_t)l->h * (size_t)l->w * (size_t)l->c;
    return (struct data){numbers(in, 1), numbers((size_t)(l->o * l->c * l->k * l->k), 2),
                         numbers((size_t)l->o, 3)};
}

static void data_free(struct data *d)
{
    free(d->x);
    free(d->w);
    free(d->bias);
}

static float most_of(const float *x, size_t count)
{
    float most = 0;
    for (size_t i = 0; i < count; i++)
        if (isnan(x[i]) || fabsf(x[i]) > most) /* nothing is more than a NaN */
            most = fabsf(x[i]);
    return most;
}

/* As the definition says it, one output after the other. PICTURE: the greatest magnitude of picture N. */
static float expected(const struct layer *l, const struct data *d, int n, int oy, int ox, int o,
                      float picture)
{
    size_t taps = (size_t)(l->k * l->k);
    int up = l->upsample ? 2 : 1;
    const float *w = d->w + (size_t)(o * l->c) * taps, *x = d->x + (size_t)(n * l->h * l->w * l->c);
    float w_most = most_of(w, (size_t)l->c * taps), x_most = picture;
    if (l->k == 1)
        x_most = most_of(x + (oy * l->stride / up * l->w + ox * l->stride / up) * l->c, (size_t)l->c);
    if (!isfinite(x_most))
        return NAN;
    float w_by = w_most > 0 ? 127 / w_most : 0, x_by = x_most >= 0x1p-100f ? 127 / x_most : 0;
    long sum = 0;
    for (int t = 0; t < l->k * l->k; t++) {
        int y = oy * l->stride - l->k / 2 + t / l->k, u = ox * l->stride - l->k / 2 + t % l->k;
        if (y < 0 || u < 0 || y >= l->h * up || u >= l->w * up)
            continue;
        for (int c = 0; c < l->c; c++)
            sum += lrintf(x[(y / up * l->w + u / up) * l->c + c] * x_by) *
                   lrintf(w[(size_t)c * taps + (size_t)t] * w_by);
    }
    float scaled = (float)(int)sum * (w_most / 127);
    scaled *= x_by > 0 ? x_most / 127 : 0;
    return scaled + d->bias[o];
}

static weight pack(struct backend *be, const struct layer *l, const struct data *d)
{
    struct error err = {0};
    weight w = {0};
    struct weight_source src = {.kind = l->kind,
                                .out_c = l->o,
                                .in_c = l->c,
                                .kh = l->k,
                                .kw = l->k,
                                .parts = 1,
                                .int8 = true,
                                .w = {{d->w, DTYPE_F32, (size_t)(l->o * l->c * l->k * l->k)}},
                                .bias = {{d->bias, DTYPE_F32, (size_t)l->o}}};
    CHECK(weight_pack(be, &w, &src, &err) == 0 && w.int8, "%s", err.msg);
    return w;
}

/* y of tier BE as fp32; the caller frees. */
static float *compute(struct backend *be, const struct layer *l, const struct data *d)
{
    struct error err = {0};
    weight w = pack(be, l, d);
    tensor x = {.n = l->n, .h = l->h, .w = l->w, .c = l->c, .ld = l->c, .dtype = DTYPE_F32, .data = d->x};
    tensor y = {.n = l->n,
                .h = out_side(l->h, l),
                .w = out_side(l->w, l),
                .c = l->o,
                .ld = l->o,
                .dtype = DTYPE_F32,
                .data = numbers(outputs(l), 9)};
    int rc =
        l->kind == WEIGHT_LINEAR
            ? be->ops.linear(be, y, x, &w, &(struct linear_args){.f32_out = true}, &err)
            : be->ops.conv2d(
                  be, y, x, &w,
                  &(struct conv2d_args){.stride = l->stride, .upsample = l->upsample, .f32_out = true}, &err);
    CHECK(rc == 0, "%s", err.msg);
    weight_free(be, &w);
    return y.data;
}

static void check_bits(const struct layer *l, const struct data *d, const char *what)
{
    int oh = out_side(l->h, l), ow = out_side(l->w, l), ran = 0;
    float *want = numbers(outputs(l), 9);
    bool more = true;
    size_t picture = (size_t)(l->h * l->w * l->c);
    float most = 0;
    for (size_t i = 0; i < outputs(l); i++) {
        int o = (int)(i % (size_t)l->o), at = (int)(i / (size_t)l->o), n = at / ow / oh;
        if (o == 0 && at % (ow * oh) == 0)
            most = most_of(d->x + (size_t)n * picture, picture);
        want[i] = expected(l, d, n, at / ow % oh, at % ow, o, most);
    }
    for (int t = 0; more; t++) {
        struct backend *be = open_tier(t, 2, &more);
        if (!be)
            continue;
        float *got = compute(be, l, d);
        size_t wrong = 0, first = 0;
        for (size_t i = outputs(l); i-- > 0;)
            if (memcmp(&got[i], &want[i], sizeof *got) != 0 && (isfinite(got[i]) || isfinite(want[i]))) {
                wrong++;
                first = i;
            }
        CHECK(wrong == 0, "%s on %s: %zu of %zu, number %zu is %.9g, should be %.9g", what, be->tier, wrong,
              outputs(l), first, (double)got[first], (double)want[first]);
        free(got);
        backend_close(&be);
        ran++;
    }
    CHECK(ran > 0);
    free(want);
}

TEST(sums_are_exact_at_odd_sizes)
{
    log_set_level(LOG_LEVEL_WARNING); /* not a line for each backend */
    static const struct layer layers[] = {
        {WEIGHT_LINEAR, 1, 1, 1, 1, 1, 1, 1, false},     {WEIGHT_LINEAR, 2, 1, 77, 100, 70, 1, 1, false},
        {WEIGHT_LINEAR, 1, 1, 700, 33, 40, 1, 1, false}, {WEIGHT_LINEAR, 1, 1, 13, 2600, 65, 1, 1, false},
        {WEIGHT_CONV2D, 1, 1, 1, 3, 5, 3, 1, false},     {WEIGHT_CONV2D, 2, 8, 8, 96, 64, 3, 1, false},
        {WEIGHT_CONV2D, 1, 7, 16, 80, 33, 3, 1, false},  {WEIGHT_CONV2D, 2, 5, 32, 64, 32, 3, 1, false},
        {WEIGHT_CONV2D, 1, 9, 33, 64, 32, 3, 2, false},  {WEIGHT_CONV2D, 1, 33, 70, 20, 33, 3, 1, false},
        {WEIGHT_CONV2D, 1, 6, 5, 70, 34, 3, 1, true},    {WEIGHT_CONV2D, 2, 6, 7, 65, 31, 1, 2, false},
        {WEIGHT_CONV2D, 1, 5, 6, 17, 9, 5, 1, false},    {WEIGHT_CONV2D, 1, 3, 3, 1280, 32, 3, 1, false},
    };
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++) {
        char what[32];
        struct data d = make(&layers[i]);
        snprintf(what, sizeof what, "layer %zu", i);
        check_bits(&layers[i], &d, what);
        data_free(&d);
    }
}

TEST(edges_of_the_arithmetic)
{
    const struct layer l = {WEIGHT_LINEAR, 1, 1, 40, 128, 48, 1, 1, false};
    struct data d = make(&l);
    for (int c = 0; c < l.c; c++) {
        d.x[0 * l.c + c] = 0;                           /* nothing */
        d.x[1 * l.c + c] = c == 5 ? -30000.0f : d.x[c]; /* one number so large that the others round to 0 */
        d.x[2 * l.c + c] = c % 2 ? 1.0f : -1.0f;        /* all at the ends: 127 and -127 */
        d.x[3 * l.c + c] = 1e-38f * (float)(c - 60);    /* too small for a scale */
        d.x[4 * l.c + c] = (float)(c - 64) / 2;         /* with 63.5 the greatest: ties */
        d.x[5 * l.c + c] = 1e30f * (float)(c % 7 - 3);  /* sums beyond fp32 */
        d.x[6 * l.c + c] = c == 9 ? NAN : 0.5f;         /* no number: the whole row is none */
        d.x[7 * l.c + c] = c == 9 ? INFINITY : 0.5f;
        d.w[0 * l.c + c] = 0;
        d.w[1 * l.c + c] = c % 2 ? -2.0f : 2.0f;
        d.w[2 * l.c + c] = c == 3 ? 1000.0f : d.w[2 * l.c + c];
        d.w[3 * l.c + c] = (float)(c - 64) * 0.5f;
        d.w[4 * l.c + c] = 1e30f * (float)(c % 5 - 2);
    }
    d.x[4 * l.c] = 0; /* -32 would be the greatest magnitude */
    check_bits(&l, &d, "edges");
    bool more = true;
    for (int t = 0; more; t++) { /* what is no number stays one, and in its row */
        struct backend *be = open_tier(t, 1, &more);
        float *y = be ? compute(be, &l, &d) : NULL;
        for (int r = 0; y && r < 9; r++)
            for (int o = 1; o < 4; o++)
                CHECK(isfinite(y[r * l.o + o]) == (r != 6 && r != 7), "row %d, output %d", r, o);
        free(y);
        backend_close(&be);
    }
    data_free(&d);
}

TEST(numbers_round_to_nearest_and_never_to_minus_128)
{
    float *x = numbers(200000, 7);
    for (int i = 0; i < 200000; i++) {
        float most = fabsf(x[i]) * 3 + 1e-6f, at = most * x[(i * 7 + 1) % 200000];
        struct int8_scale s = int8_scale_of(most);
        int q = int8_of(at, s.inverse), low = int8_of(-most, s.inverse), high = int8_of(most, s.inverse);
        CHECK(low == -127 && high == 127 && q >= -127 && q <= 127);
        CHECK(fabs((double)at - q * (double)s.scale) <= 0.5001 * (double)s.scale);
    }
    CHECK(int8_of(0.5f, 1) == 0 && int8_of(1.5f, 1) == 2 && int8_of(-2.5f, 1) == -2);
    CHECK(int8_of(1e9f, 1) == 127 && int8_of(-1e9f, 1) == -127);
    free(x);
}

TEST(bits_do_not_depend_on_threads_or_batch)
{
    static const struct layer layers[] = {{WEIGHT_CONV2D, 1, 24, 24, 72, 96, 3, 1, false},
                                          {WEIGHT_CONV2D, 1, 9, 16, 64, 64, 3, 1, false},
                                          {WEIGHT_LINEAR, 1, 1, 300, 160, 96, 1, 1, false}};
    bool more = true;
    for (int t = 0; more; t++)
        for (size_t i = 0; i < sizeof layers / sizeof *layers; i++) {
            struct backend *one = open_tier(t, 1, &more), *three = open_tier(t, 3, &more);
            struct layer batch = layers[i];
            batch.n = 3;
            struct data d = make(&batch);
            size_t each = outputs(&layers[i]), in = (size_t)(batch.h * batch.w * batch.c);
            for (int n = 1; n < 3; n++)
                memcpy(d.x + (size_t)n * in, d.x, in * sizeof *d.x);
            if (one && three) {
                float *alone = compute(one, &layers[i], &d), *many = compute(three, &batch, &d);
                for (size_t n = 0; n < 3; n++)
                    CHECK(memcmp(alone, many + n * each, each * sizeof *alone) == 0,
                          "layer %zu, picture %zu on %s", i, n, one->tier);
                free(alone);
                free(many);
            }
            data_free(&d);
            backend_close(&one);
            backend_close(&three);
        }
}

/* Packs and frees a matrix; returns whether it went to int8. */
static bool goes(struct backend *be, struct weight_source src, size_t *bytes)
{
    struct error err = {0};
    weight w;
    float *v = numbers((size_t)src.out_c * (size_t)(src.in_c * src.kh * src.kw), 1);
    src.parts = 1;
    src.w[0] = (struct host_array){v, DTYPE_F32, (size_t)src.out_c * (size_t)(src.in_c * src.kh * src.kw)};
    CHECK(weight_pack(be, &w, &src, &err) == 0, "%s", err.msg);
    bool int8 = w.int8;
    *bytes = w.bytes;
    weight_free(be, &w);
    free(v);
    return int8;
}

TEST(only_what_is_marked_goes_to_int8_and_takes_half_of_bf16)
{
    bool more = true;
    struct error err = {0};
    for (int t = 0; more; t++) {
        struct backend *be = open_tier(t, 1, &more);
        size_t bytes, whole;
        struct weight_source conv = {.kind = WEIGHT_CONV2D, .out_c = 64, .in_c = 320, .kh = 3, .kw = 3};
        if (!be)
            continue;
        CHECK(!goes(be, conv, &whole));
        conv.int8 = true;
        CHECK(goes(be, conv, &bytes));
        CHECK(bytes < whole * (be->dtype == DTYPE_BF16 ? 51 : 26) / 100, "%s: %zu of %zu", be->tier, bytes,
              whole);
        conv.stride = 2;
        CHECK(goes(be, conv, &bytes));
        conv.stride = 1; /* one tier has a faster method of its own */
        CHECK(goes(be, conv, &bytes) == (strncmp(be->tier, "avx512bf16", 10) != 0), "%s", be->tier);
        conv.in_c = 330;
        CHECK(goes(be, conv, &bytes), "%s", be->tier);
        conv.in_c = 320;
        conv.stride = 0;
        conv.upsample = true;
        CHECK(!goes(be, conv, &bytes));
        conv.upsample = false;
        conv.kw = 1;
        CHECK(!goes(be, conv, &bytes));
        conv = (struct weight_source){
            .kind = WEIGHT_LINEAR, .out_c = 1, .in_c = 65537, .kh = 1, .kw = 1, .int8 = true};
        CHECK(!goes(be, conv, &bytes), "sums might not fit 32 bits");
        backend_close(&be);
    }
    struct backend *plain = NULL;
    struct weight_source conv = {
        .kind = WEIGHT_CONV2D, .out_c = 8, .in_c = 8, .kh = 3, .kw = 3, .int8 = true};
    size_t bytes;
    if (CHECK(backend_open(&plain, &(struct backend_options){.kind = "cpu", .threads = 1}, &err) == 0, "%s",
              err.msg))
        CHECK(!goes(plain, conv, &bytes), "int8 is on by default");
    backend_close(&plain);
}

static void refused(struct backend_options opt, const char *words)
{
    struct error err = {0};
    struct backend *be = NULL;
    opt.precision = opt.precision ? opt.precision : PRECISION_INT8;
    CHECK(backend_open(&be, &opt, &err) == ERR_UNSUPPORTED && !be, "%s", words);
    CHECK(strstr(err.msg, words) != NULL, "\"%s\"", err.msg);
    backend_close(&be);
}

TEST(a_tier_without_int8_and_a_gpu_are_refused)
{
    refused((struct backend_options){.kind = "cuda"}, "precision int8 is not to be had on a GPU");
    refused((struct backend_options){.kind = "cuda", .precision = PRECISION_FP32},
            "precision fp32 is not to be had on a GPU");
    if (cpu_tier_usable("avx2"))
        refused(
            (struct backend_options){.kind = "cpu", .isa = "avx2", .threads = 1},
            "precision int8: CPU tier avx2 has none here; it takes AMX-INT8 (amx) or AVX512-VNNI (avx512, "
            "avx512bf16), or ref");
}

TEST_MAIN()
