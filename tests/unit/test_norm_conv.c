/* conv2d of group_norm_silu in one (norm_silu_conv2d): every tier that has it against ref, beside the two ops
 * on the same tier; its bits in any batch and with any number of threads; that a plan knows of it; and the
 * sums that a convolution keeps for the norm behind it. */
#include "../kernels/cpu/cpu.h"
#include "../kernels/cpu/tier.h"
#include "backend.h"
#include "plan.h"
#include "region.h"
#include "test.h"

enum { GROUPS = 32 };

/* The Ith CPU tier; NULL and *MORE set: it cannot run here. */
static struct backend *open_tier(int i, int threads, bool *more)
{
    struct backend_options opt = {.kind = "cpu", .isa = cpu_tier_name(i), .threads = threads};
    struct error err = {0};
    struct backend *be = NULL;
    *more = opt.isa != NULL;
    if (!opt.isa || backend_open(&be, &opt, &err))
        return NULL;
    return be;
}

static struct backend *open_ref(void)
{
    struct error err = {0};
    struct backend *be = NULL;
    CHECK(backend_open(&be, &(struct backend_options){.kind = "ref"}, &err) == 0, "%s", err.msg);
    return be;
}

/* Numbers that bf16 holds exactly, around MEAN. */
static float *numbers(size_t count, unsigned seed, float size, float mean)
{
    float *v = aligned_alloc(64, (count * sizeof *v + 63) / 64 * 64);
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        v[i] = ((float)(int)(seed >> 25) / 64.0f - 1.0f) * size + mean;
    }
    return v;
}

struct layer {
    int n, h, w, c, o;
    bool add, residual;
    enum act act;
    bool f32_out;
};

struct data {
    float *x, *gamma, *beta, *w, *bias, *add, *residual;
};

static size_t positions(const struct layer *l)
{
    return (size_t)l->n * (size_t)l->h * (size_t)l->w;
}

static struct data make(const struct layer *l)
{
    const size_t c = (size_t)l->c, o = (size_t)l->o;
    return (struct data){.x = numbers(positions(l) * c, 1, 1, 0.5f),
                         .gamma = numbers(c, 2, 0.5f, 1),
                         .beta = numbers(c, 3, 1, 1), /* SiLU of it is not 0, unlike what lies outside */
                         .w = numbers(o * c * 9, 4, 0.0625f, 0),
                         .bias = numbers(o, 5, 1, 0),
                         .add = numbers((size_t)l->n * o, 6, 1, 0),
                         .residual = numbers(positions(l) * o, 7, 1, 0)};
}

static void data_free(struct data *d)
{
    float *all[] = {d->x, d->gamma, d->beta, d->w, d->bias, d->add, d->residual};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

static weight pack(struct backend *be, enum weight_kind kind, int o, int c, int k, const float *w,
                   const float *b)
{
    struct error err = {0};
    weight out = {0};
    struct weight_source src = {.kind = kind,
                                .out_c = o,
                                .in_c = c,
                                .kh = k,
                                .kw = k,
                                .parts = 1,
                                .w = {{w, DTYPE_F32, (size_t)o * (size_t)c * (size_t)(k * k)}},
                                .bias = {{b, DTYPE_F32, (size_t)o}},
                                .large = true};
    CHECK(weight_pack(be, &out, &src, &err) == 0, "%s", err.msg);
    return out;
}

enum how { IN_ONE, IN_TWO, BY_PASS };

/* Whether BE has norm and convolution of L in one, whatever its size. A planning thread may ask while LoRAs
 * replace the weights: what is packed is not looked at. */
static bool fuses(struct backend *be, const struct layer *l, const struct data *d)
{
    if (!be->fuses_norm)
        return false;
    weight w = pack(be, WEIGHT_CONV2D, l->o, l->c, 3, d->w, d->bias);
    const tensor x = {.n = l->n, .h = l->h, .w = l->w, .c = l->c, .ld = l->c, .dtype = be->dtype},
                 y = {.n = l->n, .h = l->h, .w = l->w, .c = l->o, .ld = l->o, .dtype = be->dtype};
    const size_t least = cpu_fused_bytes;
    cpu_fused_bytes = 0;
    weight gone = w;
    gone.packed = (void *)(uintptr_t)64;
    const bool does = be->fuses_norm(be, y, x, &gone, &(struct conv2d_args){.stride = 1});
    cpu_fused_bytes = least;
    weight_free(be, &w);
    return does;
}

/* y on BE as fp32; the caller frees. BY_PASS: norm_silu_conv2d() of ops.h, in a region of the size that a
 * plan of it found. */
static float *compute(struct backend *be, const struct layer *l, const struct data *d, enum how how)
{
    struct error err = {0};
    weight norm = pack(be, WEIGHT_NORM, l->c, 1, 1, d->gamma, d->beta);
    weight w = pack(be, WEIGHT_CONV2D, l->o, l->c, 3, d->w, d->bias);
    struct region region;
    struct backend *plan = NULL;
    void *mem = NULL;
    size_t bytes = (size_t)64 << 20;
    float *y = numbers(positions(l) * (size_t)l->o, 9, 1, 0);
    struct norm_silu n = {&norm, GROUPS, 1e-6f, true, how == BY_PASS && l->residual};
    if (how == BY_PASS) {
        CHECK(backend_open(&plan, &(struct backend_options){.kind = "plan"}, &err) == 0, "%s", err.msg);
        plan_set_target(plan, be);
    }
    for (int planning = how == BY_PASS; planning >= 0; planning--) {
        pass p = {planning ? plan : be, &region, &err};
        if (!planning)
            CHECK(be->mem_alloc(be, bytes, &mem, &err) == 0, "%s", err.msg);
        region_init(&region, mem, planning ? 0 : bytes);
        tensor x = tensor_from_host(&p, d->x, l->n, l->h, l->w, l->c, be->dtype);
        tensor add = tensor_from_host(&p, d->add, l->n, 1, 1, l->o, be->dtype);
        tensor residual = tensor_from_host(&p, d->residual, l->n, l->h, l->w, l->o, be->dtype);
        struct conv2d_args a = {.act = l->act, .stride = 1, .f32_out = l->f32_out};
        if (l->add)
            a.add_bc = add;
        if (l->residual)
            a.residual = residual;
        tensor out;
        if (how == BY_PASS) {
            out = norm_silu_conv2d(&p, n, &w, x, a);
        } else if (how == IN_ONE) {
            out = tensor_new(&p, l->n, l->h, l->w, l->o, l->f32_out ? DTYPE_F32 : be->dtype);
            CHECK(be->norm_silu_conv2d(be, out, x, &n, &w, &a, &err) == 0, "%s", err.msg);
        } else {
            out = conv2d(&p, &w, group_norm_silu(&p, &norm, x, GROUPS, 1e-6f), a);
        }
        if (planning)
            bytes = region.peak;
        else
            CHECK(tensor_to_host(&p, out, y) == 0, "%s", err.msg);
        if (how == BY_PASS) {
            tensor_free(&p, &out);
            tensor_free(&p, &add);
            if (!n.last_residual)
                tensor_free(&p, &residual);
            CHECK(region.count == 0, "%d tensors were not given back", region.count);
            CHECK(region.peak == bytes, "%zu bytes were planned, %zu used", bytes, region.peak);
        }
    }
    CHECK(err.code == 0, "%s", err.msg);
    backend_close(&plan);
    be->mem_free(be, mem, bytes);
    weight_free(be, &w);
    weight_free(be, &norm);
    return y;
}

struct distance {
    double rms, most;
};

static struct distance distance(const float *a, const float *b, size_t count)
{
    struct distance d = {0, 0};
    for (size_t i = 0; i < count; i++) {
        double e = fabs((double)a[i] - (double)b[i]);
        d.rms += e * e;
        d.most = e > d.most || isnan(e) ? e : d.most;
    }
    d.rms = sqrt(d.rms / (double)count);
    return d;
}

/* In one op the normed picture is not rounded: on the whole it must not be further from ref than two. */
static int check_layer(const struct layer *l)
{
    struct data d = make(l);
    struct backend *ref = open_ref();
    float *want = compute(ref, l, &d, IN_TWO);
    const size_t count = positions(l) * (size_t)l->o;
    int ran = 0;
    bool more = true;
    for (int i = 0; more; i++) {
        struct backend *be = open_tier(i, 2, &more);
        if (!be)
            continue;
        if (fuses(be, l, &d)) {
            float *two = compute(be, l, &d, IN_TWO), *one = compute(be, l, &d, IN_ONE);
            struct distance a = distance(two, want, count), b = distance(one, want, count);
            CHECK(b.rms <= 1.1 * a.rms && b.most <= 1.5 * a.most,
                  "%s, [%d, %d, %d, %d] -> %d: in one off by %g, at most %g; in two by %g, at most %g",
                  be->tier, l->n, l->h, l->w, l->c, l->o, b.rms, b.most, a.rms, a.most);
            free(one);
            free(two);
            ran++;
        }
        backend_close(&be);
    }
    free(want);
    backend_close(&ref);
    data_free(&d);
    return ran;
}

TEST(as_near_to_ref_as_two_ops)
{
    static const struct layer list[] = {
        {1, 16, 64, 128, 64, false, false, ACT_NONE, false},
        {1, 23, 49, 128, 64, true, true, ACT_NONE, false},
        {2, 17, 63, 256, 33, true, false, ACT_SILU, false},
        {1, 22, 48, 128, 40, false, true, ACT_NONE, false},
        {1, 9, 149, 512, 32, true, true, ACT_NONE, false},
        {1, 29, 61, 256, 160, true, true, ACT_NONE, false},
        {1, 17, 63, 128, 3, false, false, ACT_NONE, true},
        {2, 35, 24, 128, 64, true, true, ACT_NONE, false},  /* in bands */
        {1, 19, 64, 416, 160, true, true, ACT_NONE, false}, /* channels in slices */
        {1, 7, 36, 800, 40, true, true, ACT_NONE, false},
        {1, 37, 41, 64, 3, false, false, ACT_NONE, true}, /* to few outputs, which all tiers have */
        {2, 5, 530, 96, 4, true, true, ACT_SILU, false},
        {2, 8, 8, 320, 4, false, false, ACT_NONE, true},
    };
    int ran = 0;
    if (!cpu_tier_usable("avx2"))
        SKIP("no tier that has it can run here");
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        ran += check_layer(&list[i]);
    CHECK(ran > 0, "no tier has it");
}

/* Of TWO pictures: each alone has the same bits. */
static void check_bits(struct layer two)
{
    struct layer one = two;
    one.n = 1;
    struct data d = make(&two), second = d;
    const size_t x = positions(&one) * (size_t)one.c, y = positions(&one) * (size_t)one.o;
    second.x += x;
    second.add += one.o;
    second.residual += y;
    bool more = true;
    for (int i = 0; more; i++) {
        struct backend *few = open_tier(i, 1, &more), *many = more ? open_tier(i, 3, &more) : NULL;
        if (few && many && fuses(few, &two, &d)) {
            float *both = compute(few, &two, &d, IN_ONE), *a = compute(many, &one, &d, IN_ONE),
                  *b = compute(many, &one, &second, IN_ONE);
            CHECK(memcmp(both, a, y * sizeof *a) == 0 && memcmp(both + y, b, y * sizeof *b) == 0, "%s",
                  few->tier);
            free(both);
            free(a);
            free(b);
        }
        backend_close(&few);
        backend_close(&many);
    }
    data_free(&d);
}

TEST(bits_do_not_depend_on_batch_or_threads)
{
    if (!cpu_tier_usable("avx2"))
        SKIP("no tier that has it can run here");
    check_bits((struct layer){2, 21, 52, 128, 64, true, true, ACT_NONE, false});
    check_bits((struct layer){2, 43, 29, 64, 3, true, true, ACT_NONE, false});
}

/* Both ways, by the seam, in the memory that was planned for it. */
TEST(a_plan_knows)
{
    const struct layer l = {1, 32, 64, 128, 64, true, true, ACT_NONE, false},
                       few = {1, 32, 64, 128, 3, true, true, ACT_NONE, false};
    const size_t least = cpu_fused_bytes, count = positions(&l) * (size_t)l.o;
    struct data d = make(&l);
    bool more = true;
    for (int i = 0; more; i++) {
        struct backend *be = open_tier(i, 2, &more);
        if (!be)
            continue;
        float *two = compute(be, &l, &d, BY_PASS);
        cpu_fused_bytes = 0;
        float *one = compute(be, &l, &d, BY_PASS);
        cpu_fused_bytes = least;
        CHECK((memcmp(one, two, count * sizeof *one) != 0) == fuses(be, &l, &d), "%s", be->tier);
        free(compute(be, &few, &d, BY_PASS));
        free(one);
        free(two);
        backend_close(&be);
    }
    data_free(&d);
}

enum sums { NOT_KEPT, KEPT, OVERTAKEN };

/* Two layers of C channels, one behind the other: y as fp32, the caller frees. The first one, UP: an
 * upsampled convolution of half of L's sides, keeps its sums, or not, or another one keeps its own in
 * between. */
static float *two_layers(struct backend *be, const struct layer *l, const struct data *d, bool up,
                         enum sums sums, bool *kept)
{
    struct error err = {0};
    weight norm = pack(be, WEIGHT_NORM, l->c, 1, 1, d->gamma, d->beta);
    weight w = pack(be, WEIGHT_CONV2D, l->c, l->c, 3, d->w, d->bias);
    struct weight_source doubling = {.kind = WEIGHT_CONV2D,
                                     .out_c = l->c,
                                     .in_c = l->c,
                                     .kh = 3,
                                     .kw = 3,
                                     .parts = 1,
                                     .w = {{d->w, DTYPE_F32, (size_t)l->c * (size_t)l->c * 9}},
                                     .bias = {{d->bias, DTYPE_F32, (size_t)l->c}},
                                     .upsample = true};
    weight wide = {0};
    CHECK(weight_pack(be, &wide, &doubling, &err) == 0, "%s", err.msg);
    struct region region;
    void *mem = NULL;
    const size_t bytes = (size_t)64 << 20;
    CHECK(be->mem_alloc(be, bytes, &mem, &err) == 0, "%s", err.msg);
    region_init(&region, mem, bytes);
    pass p = {be, &region, &err};
    const struct norm_silu n = {&norm, GROUPS, 1e-6f, false, false};
    tensor x = tensor_from_host(&p, d->x, l->n, l->h / (up ? 2 : 1), l->w / (up ? 2 : 1), l->c, be->dtype);
    tensor other = tensor_from_host(&p, d->residual, l->n, l->h, l->w, l->c, be->dtype);
    const bool keep = sums != NOT_KEPT;
    tensor first = up ? conv2d(&p, &wide, x, (struct conv2d_args){.upsample = true, .normed = keep})
                      : norm_silu_conv2d(&p, n, &w, x, (struct conv2d_args){.residual = x, .normed = keep});
    if (sums == OVERTAKEN)
        norm_silu_conv2d(&p, n, &w, other, (struct conv2d_args){.normed = true});
    tensor y = norm_silu_conv2d(&p, n, &w, first, (struct conv2d_args){0});
    float *out = numbers(positions(l) * (size_t)l->c, 9, 1, 0);
    CHECK(tensor_to_host(&p, y, out) == 0, "%s", err.msg);
    *kept = first.sums != 0;
    be->mem_free(be, mem, bytes);
    weight_free(be, &wide);
    weight_free(be, &w);
    weight_free(be, &norm);
    return out;
}

/* The sums are of what the convolution has before it is rounded to bf16. */
static void check_kept(const struct layer *l, bool up, bool keeps)
{
    struct data d = make(l);
    struct backend *ref = open_ref();
    bool kept;
    float *want = two_layers(ref, l, &d, up, KEPT, &kept);
    const size_t count = positions(l) * (size_t)l->c;
    bool more = true;
    CHECK(!kept, "ref keeps sums");
    for (int i = 0; more; i++) {
        struct backend *few = open_tier(i, 1, &more), *many = more ? open_tier(i, 3, &more) : NULL;
        if (few && many && fuses(few, l, &d)) {
            float *without = two_layers(few, l, &d, up, NOT_KEPT, &kept);
            CHECK(!kept, "%s: sums that nobody asked for", few->tier);
            float *with = two_layers(few, l, &d, up, KEPT, &kept);
            CHECK(kept == keeps, "%s: sums kept: %d", few->tier, kept);
            float *twice = two_layers(few, l, &d, up, KEPT, &kept),
                  *again = two_layers(many, l, &d, up, KEPT, &kept),
                  *overtaken = two_layers(many, l, &d, up, OVERTAKEN, &kept);
            struct distance a = distance(without, want, count), b = distance(with, want, count);
            CHECK(b.rms <= 1.05 * a.rms && b.most <= 1.5 * a.most,
                  "%s: off by %g, at most %g; without by %g, %g", few->tier, b.rms, b.most, a.rms, a.most);
            CHECK(memcmp(with, twice, count * sizeof *with) == 0, "%s: sums of the time before", few->tier);
            CHECK(memcmp(with, again, count * sizeof *with) == 0, "%s: threads count", few->tier);
            CHECK(memcmp(without, overtaken, count * sizeof *with) == 0, "%s: sums of another", few->tier);
            free(without);
            free(with);
            free(twice);
            free(again);
            free(overtaken);
        }
        backend_close(&few);
        backend_close(&many);
    }
    free(want);
    backend_close(&ref);
    data_free(&d);
}

TEST(sums_that_a_convolution_kept)
{
    static const struct {
        struct layer l;
        bool up, keeps;
    } list[] = {
        {{1, 32, 64, 128, 128, false, true, ACT_NONE, false}, false, true},
        {{1, 23, 116, 128, 128, false, true, ACT_NONE, false}, false, true},
        {{1, 22, 60, 256, 256, false, true, ACT_NONE, false}, false, true},
        {{1, 27, 32, 128, 128, false, true, ACT_NONE, false}, false, true},
        {{1, 18, 72, 416, 416, false, true, ACT_NONE, false}, false, true},
        {{2, 32, 64, 128, 128, false, true, ACT_NONE, false}, false, false}, /* not one picture */
        {{1, 9, 149, 256, 256, false, true, ACT_NONE, false}, false, false}, /* not whole quads */
        {{1, 32, 64, 128, 128, false, true, ACT_NONE, false}, true, true},
        {{1, 46, 124, 256, 256, false, true, ACT_NONE, false}, true, true},
        {{1, 38, 160, 128, 128, false, true, ACT_NONE, false}, true, true},
        {{2, 32, 64, 128, 128, false, true, ACT_NONE, false}, true, false},
    };
    if (!cpu_tier_usable("amx-emulated"))
        SKIP("no tier that has it can run here");
    const size_t least = cpu_fused_bytes;
    for (int fused = 0; fused < 2; fused++) {
        cpu_fused_bytes = fused ? 0 : SIZE_MAX;
        for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
            check_kept(&list[i].l, list[i].up, list[i].keeps);
    }
    cpu_fused_bytes = least;
}

TEST_MAIN()
