/* What checkkernels does not see of the CPU tiers: choosing a tier by name, results that do not depend on the
 * batch or on the number of threads, and the error of the convolutions that are large enough for Winograd's
 * method. */
#include "../kernels/cpu/cpu.h"
#include "../kernels/cpu/tier.h"
#include "backend.h"
#include "half.h"
#include "test.h"

/* A backend with its own numbers: ops are called through the table, so no region is needed. */
static struct backend *open_tier(const char *isa, int threads)
{
    struct backend_options opt = {.kind = isa ? "cpu" : "ref", .isa = isa, .threads = threads};
    struct error err = {0};
    struct backend *be = NULL;
    int rc = backend_open(&be, &opt, &err);
    return rc ? NULL : be;
}

static float *numbers(size_t count, unsigned seed)
{
    float *v = aligned_alloc(128, (count * sizeof *v + 127) / 128 * 128);
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        v[i] = (float)(int)(seed >> 8) / (float)(1 << 23) - 1.0f;
    }
    return v;
}

/* INSIDE: as inside a network: read and written in the backend's type, with a row added to each picture;
 * OF_LARGE: and packed for large pictures. */
enum place { ALONE, INSIDE, OF_LARGE };

struct conv {
    int n, h, w, c, o, k;
    enum upsampling upsample;
    enum act act;
    bool residual;
    enum place inside;
};

static tensor make(int n, int h, int w, int c, enum dtype t, void *data)
{
    return (tensor){.n = n, .h = h, .w = w, .c = c, .ld = c, .dtype = t, .data = data};
}

/* In place. */
static void to_bf16(float *v, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t h = bf16_from_f32(v[i]);
        memcpy((char *)v + 2 * i, &h, sizeof h);
    }
}

/* The convolution of seeded numbers, as floats [n, oh, ow, o]; the caller frees. */
static float *convolve(struct backend *be, struct conv s)
{
    struct error err = {0};
    int scale = s.upsample ? 2 : 1;
    size_t in = (size_t)s.n * (size_t)s.h * (size_t)s.w * (size_t)s.c;
    size_t out = (size_t)(s.n * scale * scale) * (size_t)s.h * (size_t)s.w * (size_t)s.o;
    size_t wn = (size_t)s.o * (size_t)s.c * (size_t)(s.k * s.k);
    float *x = numbers(in, 1), *w = numbers(wn, 2), *b = numbers((size_t)s.o, 3), *r = numbers(out, 4);
    /* Every picture of the batch is the same, so that picture 1 must equal picture 0 of a batch of one. */
    for (int i = 1; i < s.n; i++) {
        memcpy(x + (size_t)i * (in / (size_t)s.n), x, in / (size_t)s.n * sizeof *x);
        memcpy(r + (size_t)i * (out / (size_t)s.n), r, out / (size_t)s.n * sizeof *r);
    }
    float *y = numbers(out, 5);
    weight packed = {
        .kind = WEIGHT_CONV2D, .out_c = s.o, .in_c = s.c, .kh = s.k, .kw = s.k, .has_bias = true};
    struct weight_source src = {.kind = WEIGHT_CONV2D,
                                .out_c = s.o,
                                .in_c = s.c,
                                .kh = s.k,
                                .kw = s.k,
                                .parts = 1,
                                .w = {{w, DTYPE_F32, wn}},
                                .bias = {{b, DTYPE_F32, (size_t)s.o}},
                                .upsample = s.upsample,
                                .large = s.inside == OF_LARGE};
    int rc = weight_pack(be, &packed, &src, &err);
    CHECK(rc == 0, "%s", err.msg);
    struct conv2d_args a = {.stride = 1, .upsample = s.upsample, .act = s.act, .f32_out = !s.inside};
    tensor tx = make(s.n, s.h, s.w, s.c, DTYPE_F32, x);
    tensor ty = make(s.n, scale * s.h, scale * s.w, s.o, DTYPE_F32, y);
    if (s.residual)
        a.residual = make(s.n, ty.h, ty.w, s.o, DTYPE_F32, r);
    if (s.inside) {
        if (be->dtype == DTYPE_BF16) {
            to_bf16(x, in);
            to_bf16(r, out);
            tx.dtype = a.residual.dtype = DTYPE_BF16;
        }
        a.add_bc = make(1, 1, 1, s.o, DTYPE_F32, b);
        ty.dtype = be->dtype;
    }
    rc = be->ops.conv2d(be, ty, tx, &packed, &a, &err);
    CHECK(rc == 0, "%s", err.msg);
    weight_free(be, &packed);
    free(x), free(w), free(b), free(r);
    if (ty.dtype == DTYPE_BF16)
        for (size_t i = out; i-- > 0;) {
            uint16_t h;
            memcpy(&h, (char *)y + 2 * i, sizeof h);
            y[i] = bf16_to_f32(h);
        }
    return y;
}

static size_t outputs(struct conv s)
{
    return (size_t)(s.n * (s.upsample ? 4 : 1)) * (size_t)s.h * (size_t)s.w * (size_t)s.o;
}

static double relative_l2(const float *a, const float *b, size_t n)
{
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)b[i] * (double)b[i];
    }
    return sqrt(d / s);
}

/* Tiers that take 3x3 convolutions to F(2x4, 3x3), which reads the direct form. */
static bool takes_winograd_2x4(const struct backend *be)
{
    return strncmp(be->tier, "avx512bf16", strlen("avx512bf16")) == 0;
}

/* 64 tiles and more, sides that are no multiples of 4, channels that are no multiples of a vector. */
static const struct conv large[] = {
    {1, 32, 32, 64, 64, 3, false, ACT_NONE, false, false},
    {1, 37, 41, 48, 40, 3, false, ACT_SILU, true, false},
    {1, 34, 50, 33, 65, 3, false, ACT_GELU, false, false},
    {1, 17, 19, 64, 96, 3, true, ACT_NONE, true, false},
    {2, 33, 70, 96, 128, 3, false, ACT_NONE, true, false},
    {1, 64, 64, 320, 64, 3, false, ACT_NONE, false, false},
    {1, 43, 63, 128, 96, 3, false, ACT_NONE, true, OF_LARGE},  /* bf16: F(4, 3) along rows, an odd side */
    {1, 35, 36, 416, 128, 3, false, ACT_NONE, true, OF_LARGE}, /* in bands and slices */
    {1, 100, 101, 32, 48, 3, false, ACT_NONE, true,
     false}, /* enough tiles for strips that a thread takes by itself
              */
};
enum { LARGE = sizeof large / sizeof *large };

TEST(large_convolutions_stay_within_the_error_of_fp32)
{
    struct backend *ref = open_tier(NULL, 1);
    for (int i = 0; i < LARGE; i++) {
        float *want = convolve(ref, large[i]);
        for (int t = 0; cpu_tier_name(t); t++) {
            struct backend *be = open_tier(cpu_tier_name(t), 2);
            if (!be)
                continue;
            float *got = convolve(be, large[i]);
            /* Winograd's error at 320 channels is 1.5e-6 of a typical output; bf16 rounds inputs to 2^-9, and
             * F(2x4, 3x3) 4 times as much again. */
            double bound = be->dtype == DTYPE_F32   ? 4e-6
                           : takes_winograd_2x4(be) ? 8e-3
                                                    : 6e-3,
                   e = relative_l2(got, want, outputs(large[i]));
            CHECK(e < bound, "case %d on %s: relative L2 %g, at most %g", i, cpu_tier_name(t), e, bound);
            free(got);
            backend_close(&be);
        }
        free(want);
    }
    backend_close(&ref);
}

TEST(a_picture_has_the_same_bits_in_any_batch_and_on_any_number_of_threads)
{
    static const struct conv shapes[] = {
        {1, 60, 60, 48, 64, 3, false, ACT_SILU, true, false},
        {1, 8, 8, 320, 64, 3, false, ACT_NONE, true, false},
        {1, 16, 16, 320, 64, 3, false, ACT_NONE, true, true}, /* two in a block */
        {1, 11, 16, 64, 40, 3, true, ACT_NONE, false, false},
        {1, 9, 7, 40, 33, 3, true, ACT_NONE, false, false},
        {1, 16, 16, 640, 48, 1, false, ACT_NONE, false, false},
        {1, 3, 5, 1280, 64, 3, false, ACT_NONE, true, false},
        {1, 24, 24, 64, 32, 3, false, ACT_NONE, false, false}, /* few tiles alone, many in a batch */
        {1, 9, 9, 64, 64, 3, false, ACT_NONE, false, true},    /* tiles that two pictures share, in a batch */
        {1, 5, 16, 64, 96, 3, false, ACT_GELU, false, true},
        {1, 21, 58, 128, 96, 3, false, ACT_NONE, true, OF_LARGE}, /* bf16: F(4, 3) along rows */
        {1, 25, 62, 256, 40, 3, false, ACT_SILU, true, OF_LARGE},
        {1, 23, 52, 512, 96, 3, false, ACT_NONE, true, OF_LARGE},
        {1, 16, 16, 128, 64, 3, false, ACT_NONE, false, OF_LARGE}, /* in bands */
        {1, 50, 20, 416, 160, 3, false, ACT_NONE, true, OF_LARGE}, /* and in slices */
        {1, 9, 16, 32, 64, 3, true, ACT_NONE, false, true},
        {1, 35, 32, 64, 96, 3, false, ACT_NONE, true, true},  /* two rows a tile, and one alone */
        {1, 23, 40, 96, 576, 1, false, ACT_NONE, true, true}, /* in pairs of lines, by items of six panels */
        {1, 33, 30, 672, 40, 3, false, ACT_NONE, true,
         true}, /* F(2x4, 3x3) of slices; the last group is not full */
        {1, 34, 33, 352, 64, 3, true, ACT_SILU, true, true},
        {1, 8, 8, 160, 64, 3, true, ACT_NONE, false, true},   /* upsampled: three in a block, */
        {1, 19, 48, 672, 96, 3, true, ACT_NONE, false, true}, /* several blocks of one and slices */
    };
    for (int t = 0; cpu_tier_name(t); t++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            struct backend *one = open_tier(cpu_tier_name(t), 1), *three = open_tier(cpu_tier_name(t), 3);
            if (!one || !three)
                continue;
            struct conv batch = shapes[i];
            batch.n = 3;
            size_t bytes = outputs(shapes[i]) * sizeof(float);
            float *alone = convolve(one, shapes[i]), *shared = convolve(three, shapes[i]);
            float *many = convolve(three, batch);
            CHECK(memcmp(alone, shared, bytes) == 0, "shape %zu on %s: three threads differ from one", i,
                  cpu_tier_name(t));
            for (int n = 0; n < batch.n; n++)
                CHECK(memcmp(alone, many + (size_t)n * outputs(shapes[i]), bytes) == 0,
                      "shape %zu, picture %d of 3 on %s differs from the picture alone", i, n,
                      cpu_tier_name(t));
            free(alone), free(shared), free(many);
            backend_close(&one);
            backend_close(&three);
        }
}

/* With C channels, where only the form for upsampling is kept, it gives the same bits, and a call that needs
 * the other is refused. */
static void always_upsampled(int c)
{
    struct conv s = {1, 7, 20, c, 40, 3, UPSAMPLED_MOSTLY, ACT_NONE, false, true};
    for (int t = 0; cpu_tier_name(t); t++) {
        struct backend *be = open_tier(cpu_tier_name(t), 2);
        if (!be)
            continue;
        struct error err = {0};
        const bool has_form = be->dtype == DTYPE_BF16 && !takes_winograd_2x4(be);
        s.upsample = UPSAMPLED_MOSTLY;
        float *mostly = convolve(be, s);
        s.upsample = UPSAMPLED_ALWAYS;
        float *always = convolve(be, s);
        CHECK(memcmp(mostly, always, outputs(s) * sizeof *mostly) == 0, "%s", be->tier);
        const size_t count = (size_t)s.o * (size_t)s.c * 9, positions = (size_t)s.h * (size_t)s.w;
        float *w = numbers(count, 2), *x = numbers(positions * (size_t)s.c, 1);
        struct weight_source src = {.kind = WEIGHT_CONV2D,
                                    .out_c = s.o,
                                    .in_c = s.c,
                                    .kh = 3,
                                    .kw = 3,
                                    .parts = 1,
                                    .w = {{w, DTYPE_F32, count}},
                                    .upsample = UPSAMPLED_MOSTLY};
        weight both = {0}, alone = {0};
        CHECK(weight_pack(be, &both, &src, &err) == 0, "%s", err.msg);
        src.upsample = UPSAMPLED_ALWAYS;
        CHECK(weight_pack(be, &alone, &src, &err) == 0, "%s", err.msg);
        CHECK((alone.bytes < both.bytes) == has_form, "%s: %zu, %zu bytes", be->tier, alone.bytes,
              both.bytes);
        tensor tx = make(1, s.h, s.w, s.c, DTYPE_F32, x), ty = make(1, s.h, s.w, s.o, DTYPE_F32, mostly);
        int rc = be->ops.conv2d(be, ty, tx, &alone, &(struct conv2d_args){.stride = 1}, &err);
        CHECK(rc == (has_form ? ERR_INTERNAL : 0), "%s: %d", be->tier, rc);
        weight_free(be, &both);
        weight_free(be, &alone);
        free(w), free(x), free(mostly), free(always);
        backend_close(&be);
    }
}

TEST(a_convolution_that_is_always_upsampled)
{
    always_upsampled(64);
    always_upsampled(128); /* AMX: nine products instead of sixteen */
}

/* Where F(4, 3) takes the convolutions of large pictures, U is kept, twice the weights, and nothing else. */
TEST(a_convolution_of_large_pictures)
{
    enum { C = 128, O = 64, SIDE = 8 };
    float *w = numbers((size_t)O * C * 9, 2), *x = numbers((size_t)SIDE * SIDE * C, 1),
          *y = numbers((size_t)SIDE * SIDE * O * 4, 3);
    for (int t = 0; cpu_tier_name(t); t++) {
        struct backend *be = open_tier(cpu_tier_name(t), 2);
        if (!be)
            continue;
        struct error err = {0};
        struct weight_source src = {.kind = WEIGHT_CONV2D,
                                    .out_c = O,
                                    .in_c = C,
                                    .kh = 3,
                                    .kw = 3,
                                    .parts = 1,
                                    .w = {{w, DTYPE_F32, (size_t)O * C * 9}}};
        weight direct = {0}, made = {0};
        CHECK(weight_pack(be, &direct, &src, &err) == 0, "%s", err.msg);
        src.large = true;
        CHECK(weight_pack(be, &made, &src, &err) == 0, "%s", err.msg);
        const bool takes = strncmp(be->tier, "amx", 3) == 0;
        const double ratio = (double)made.bytes / (double)direct.bytes;
        CHECK(takes ? ratio > 1.9 && ratio < 2.1 : ratio == 1, "%s: %g times the bytes", be->tier, ratio);
        static const struct {
            struct conv2d_args args;
            bool fp32;
            int side;
        } others[] = {{{.stride = 2}, false, SIDE / 2},
                      {{.stride = 2, .pad_end = true}, false, SIDE / 2},
                      {{.stride = 1, .upsample = true}, false, 2 * SIDE},
                      {{.stride = 1}, true, SIDE}};
        for (int i = 0; i < 4; i++) {
            const int side = others[i].side;
            tensor tx = make(1, SIDE, SIDE, C, others[i].fp32 ? DTYPE_F32 : be->dtype, x);
            tensor ty = make(1, side, side, O, DTYPE_F32, y);
            int rc = be->ops.conv2d(be, ty, tx, &made, &others[i].args, &err);
            CHECK(rc == (takes ? ERR_INTERNAL : 0), "%s, %d: %d", be->tier, i, rc);
        }
        weight_free(be, &direct);
        weight_free(be, &made);
        backend_close(&be);
    }
    free(w), free(x), free(y);
}

/* Attention of seeded numbers with ROOM for packed heads; the caller frees. */
static float *attend(struct backend *be, size_t room)
{
    enum { N = 2, T = 70, KEYS = 300, HEADS = 3, C = HEADS * 40 };
    struct error err = {0};
    float *q = numbers((size_t)N * T * C, 1), *k = numbers((size_t)N * KEYS * C, 2),
          *v = numbers((size_t)N * KEYS * C, 3), *y = numbers((size_t)N * T * C, 4);
    const enum dtype type = be->dtype;
    if (type == DTYPE_BF16) {
        to_bf16(q, (size_t)N * T * C);
        to_bf16(k, (size_t)N * KEYS * C);
        to_bf16(v, (size_t)N * KEYS * C);
    }
    cpu_heads_bytes = room;
    const struct attention_args a = {.heads = HEADS, .scale = 0.3f};
    int rc = be->ops.attention(be, make(N, 1, T, C, type, y), make(N, 1, T, C, type, q),
                               make(N, 1, KEYS, C, type, k), make(N, 1, KEYS, C, type, v), &a, &err);
    CHECK(rc == 0, "%s", err.msg);
    cpu_heads_bytes = HEADS_BYTES;
    free(q), free(k), free(v);
    return y;
}

/* Heads whose keys and values are packed all at once, some at a time, or by each item for itself. */
TEST(the_same_bits_whatever_there_is_room_for)
{
    for (int t = 0; cpu_tier_name(t); t++) {
        struct backend *be = open_tier(cpu_tier_name(t), 4);
        if (!be)
            continue;
        float *all = attend(be, HEADS_BYTES), *some = attend(be, 250 << 10);
        const size_t bytes = (size_t)2 * 70 * 120 * dtype_size(be->dtype);
        CHECK(memcmp(all, some, bytes) == 0, "%s: in passes", be->tier);
        free(some);
        if (strncmp(be->tier, "amx", 3) != 0) { /* another kernel's sums are rounded otherwise */
            float *none = attend(be, 0);
            CHECK(memcmp(all, none, bytes) == 0, "%s: nothing is kept", be->tier);
            free(none);
        }
        free(all);
        backend_close(&be);
    }
}

TEST(bfloat16_can_be_ruled_out)
{
    struct backend *be = NULL;
    struct error err = {0};
    struct backend_options opt = {.kind = "cpu", .threads = 1, .bf16 = BF16_NO};
    if (CHECK(backend_open(&be, &opt, &err) == 0, "%s", err.msg))
        CHECK(be->dtype == DTYPE_F32, "%s", be->tier);
    backend_close(&be);
    opt.isa = "avx512bf16-emulated";
    if (cpu_tier_usable(opt.isa))
        CHECK(backend_open(&be, &opt, &err) == ERR_INVALID && !be && strstr(err.msg, "BFLOAT16"), "%s",
              err.msg);
    opt = (struct backend_options){.kind = "cpu", .isa = "avx2", .threads = 1, .bf16 = BF16_YES};
    err = (struct error){0};
    if (cpu_tier_usable(opt.isa)) /* said, but no reason not to serve */
        CHECK(backend_open(&be, &opt, &err) == 0 && be->dtype == DTYPE_F32, "%s", err.msg);
    backend_close(&be);
}

TEST(a_tier_is_refused_by_name_and_never_emulated_unasked)
{
    struct error err = {0};
    struct backend *be = NULL;
    struct backend_options opt = {.kind = "cpu", .isa = "avx1024", .threads = 1};
    CHECK(backend_open(&be, &opt, &err) == ERR_UNSUPPORTED);
    CHECK(strstr(err.msg, "avx1024") != NULL, "%s", err.msg);
    for (int t = 0; cpu_tier_name(t); t++) {
        struct error e = {0};
        opt.isa = cpu_tier_name(t);
        int rc = backend_open(&be, &opt, &e);
        CHECK(rc == (cpu_tier_usable(opt.isa) ? 0 : ERR_UNSUPPORTED), "%s: %s", opt.isa, e.msg);
        if (!rc)
            CHECK(strcmp(be->tier, opt.isa) == 0, "%s", be->tier);
        backend_close(&be);
    }
    opt.isa = NULL;
    CHECK(backend_open(&be, &opt, &err) == 0);
    CHECK(!be || !strstr(be->tier, "emulated"), "%s", be->tier);
    backend_close(&be);
}

TEST_MAIN()
