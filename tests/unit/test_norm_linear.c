/* linear of layer_norm in one (layer_norm_linear): the bits of the two ops, on every tier that has it, at the
 * shapes of the networks, odd ones, in batches and with several threads; and that a plan knows of it. */
#include "../kernels/cpu/cpu.h"
#include "backend.h"
#include "plan.h"
#include "region.h"
#include "test.h"

struct layer {
    int n, t, c, o; /* x [N, 1, T, C] -> O; O is twice as many where geglu */
    bool geglu, residual;
    enum act act;
    bool f32_out;
};

struct data {
    float *x, *gamma, *beta, *w, *bias, *residual;
};

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

static size_t outputs(const struct layer *l)
{
    return (size_t)l->n * (size_t)l->t * (size_t)(l->geglu ? l->o / 2 : l->o);
}

static struct data make(const struct layer *l)
{
    const size_t c = (size_t)l->c, o = (size_t)l->o;
    return (struct data){.x = numbers((size_t)l->n * (size_t)l->t * c, 1, 1, 0.5f),
                         .gamma = numbers(c, 2, 0.5f, 1),
                         .beta = numbers(c, 3, 1, 0),
                         .w = numbers(o * c, 4, 0.0625f, 0),
                         .bias = numbers(o, 5, 1, 0),
                         .residual = numbers(outputs(l), 6, 1, 0)};
}

static void data_free(struct data *d)
{
    float *all[] = {d->x, d->gamma, d->beta, d->w, d->bias, d->residual};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

static weight pack(struct backend *be, enum weight_kind kind, int o, int c, const float *w, const float *b)
{
    struct error err = {0};
    weight out = {0};
    struct weight_source src = {.kind = kind,
                                .out_c = o,
                                .in_c = c,
                                .kh = 1,
                                .kw = 1,
                                .parts = 1,
                                .w = {{w, DTYPE_F32, (size_t)o * (size_t)c}},
                                .bias = {{b, DTYPE_F32, (size_t)o}}};
    CHECK(weight_pack(be, &out, &src, &err) == 0, "%s", err.msg);
    return out;
}

/* y on BE as fp32, by the one op or by two, in a region of the size that a plan of it found; the caller
 * frees. ONE becomes whether BE computed it as one. */
static float *compute(struct backend *be, const struct layer *l, const struct data *d, bool by_two, bool *one)
{
    struct error err = {0};
    struct backend *plan = NULL;
    struct region region;
    void *mem = NULL;
    size_t bytes = 0;
    weight norm = pack(be, WEIGHT_NORM, l->c, 1, d->gamma, d->beta);
    weight w = pack(be, l->geglu ? WEIGHT_GEGLU : WEIGHT_LINEAR, l->o, l->c, d->w, d->bias);
    float *y = numbers(outputs(l), 9, 1, 0);
    CHECK(backend_open(&plan, &(struct backend_options){.kind = "plan"}, &err) == 0, "%s", err.msg);
    plan_set_target(plan, be);
    for (int planning = 1; planning >= 0; planning--) {
        pass p = {planning ? plan : be, &region, &err};
        if (!planning)
            CHECK(be->mem_alloc(be, bytes, &mem, &err) == 0, "%s", err.msg);
        region_init(&region, mem, planning ? 0 : bytes);
        tensor x = tensor_from_host(&p, d->x, l->n, 1, l->t, l->c, be->dtype);
        tensor residual = tensor_from_host(&p, d->residual, l->n, 1, l->t,
                                           (int)(outputs(l) / (size_t)(l->n * l->t)), be->dtype);
        struct linear_args a = {.act = l->act, .f32_out = l->f32_out};
        if (l->residual)
            a.residual = residual;
        tensor n = {0}, out;
        *one = be->fuses_layer_norm && be->fuses_layer_norm(be, x, &w);
        if (by_two) {
            n = layer_norm(&p, &norm, x, 1e-5f);
            out = linear(&p, &w, n, a);
        } else {
            out = layer_norm_linear(&p, &norm, 1e-5f, &w, x, a);
        }
        if (planning)
            bytes = region.peak;
        else
            CHECK(tensor_to_host(&p, out, y) == 0, "%s", err.msg);
        tensor_free(&p, &out);
        tensor_free(&p, &n);
        tensor_free(&p, &x);
        tensor_free(&p, &residual);
        CHECK(region.count == 0, "%d tensors were not given back", region.count);
        CHECK(region.peak == bytes, "%zu bytes were planned, %zu used", bytes, region.peak);
    }
    CHECK(err.code == 0, "%s", err.msg);
    const struct plan_count *c = &plan_report(plan)->op[OP_layer_norm];
    CHECK(c->calls == 1 && (c->written == 0) == (*one && !by_two));
    backend_close(&plan);
    be->mem_free(be, mem, bytes);
    weight_free(be, &w);
    weight_free(be, &norm);
    return y;
}

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

static bool emulated(const struct backend *be)
{
    return strstr(be->tier, "emulated") != NULL;
}

/* Returns how many backends computed it as one. LARGE: not where tiles are emulated, which takes too long. */
static int check_layer(const struct layer *l, int threads, bool large)
{
    struct data d = make(l);
    int ran = 0;
    bool more = true, one;
    for (int i = 0; more; i++) {
        struct backend *be = open_tier(i, threads, &more);
        if (be && !(large && emulated(be)) && be->layer_norm_linear) {
            float *want = compute(be, l, &d, true, &one), *got = compute(be, l, &d, false, &one);
            CHECK(memcmp(want, got, outputs(l) * sizeof *got) == 0, "%s: %d x [%d, %d] -> %d, %d threads",
                  be->tier, l->n, l->t, l->c, l->o, threads);
            ran += one;
            free(want);
            free(got);
        }
        backend_close(&be);
    }
    data_free(&d);
    return ran;
}

TEST(bits_of_the_two_ops)
{
    static const struct layer small[] = {{1, 1, 32, 32, false, false, ACT_NONE, false},
                                         {1, 77, 64, 192, false, false, ACT_NONE, false},
                                         {2, 77, 96, 128, false, true, ACT_GELU, false},
                                         {3, 45, 64, 1024, true, false, ACT_NONE, false},
                                         {1, 300, 320, 96, false, false, ACT_NONE, true},
                                         {1, 47, 32, 80, false, false, ACT_QUICK_GELU, false},
                                         {2, 600, 64, 64, false, false, ACT_NONE, false},
                                         {1, 2049, 32, 32, false, false, ACT_NONE, false},
                                         {5, 333, 32, 64, true, false, ACT_NONE, false},
                                         {1, 31, 1280, 64, false, true, ACT_NONE, false},
                                         {1, 1041, 160, 40, false, false, ACT_NONE, false}};
    int ran = 0;
    if (!cpu_tier_usable("amx-emulated"))
        SKIP("no tier that has it can run here");
    for (size_t i = 0; i < sizeof small / sizeof small[0]; i++)
        for (int threads = 1; threads <= 3; threads++)
            ran += check_layer(&small[i], threads, false);
    CHECK(ran > (cpu_tier_usable("amx") ? 30 : 15), "only %d were computed as one", ran);
}

TEST(bits_at_the_shapes_of_the_networks)
{
    static const struct layer list[] = {{2, 4096, 320, 960, false, false, ACT_NONE, false},
                                        {1, 4096, 320, 320, false, false, ACT_NONE, false},
                                        {1, 4096, 320, 2560, true, false, ACT_NONE, false},
                                        {1, 4095, 640, 1920, false, false, ACT_NONE, false},
                                        {2, 1024, 640, 640, false, false, ACT_NONE, false},
                                        {1, 1024, 640, 5120, true, false, ACT_NONE, false},
                                        {1, 1024, 1280, 3840, false, false, ACT_NONE, false},
                                        {2, 1023, 1280, 1280, false, false, ACT_NONE, false},
                                        {1, 1024, 1280, 10240, true, false, ACT_NONE, false},
                                        {2, 256, 1280, 1280, false, false, ACT_NONE, false},
                                        {1, 257, 1280, 3840, false, false, ACT_NONE, false},
                                        {1, 77, 1024, 3072, false, false, ACT_NONE, false},
                                        {2, 77, 768, 3072, false, false, ACT_QUICK_GELU, false}};
    int ran = 0;
    if (!cpu_tier_usable("amx"))
        SKIP("this processor has no AMX");
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        for (int threads = 1; threads <= 2; threads++)
            ran += check_layer(&list[i], threads, true);
    CHECK(ran >= 20, "only %d were computed as one", ran);
}

/* Rows that are numbered alike have the same bits wherever they lie. */
TEST(bits_do_not_depend_on_batch_or_threads)
{
    const struct layer two = {2, 1601, 64, 96, false, true, ACT_NONE, false};
    struct layer single = two;
    single.n = 1;
    struct data d = make(&two), second = d;
    bool more = true, one[3];
    second.x += (size_t)two.t * (size_t)two.c;
    second.residual += outputs(&single);
    if (!cpu_tier_usable("amx-emulated"))
        SKIP("no tier that has it can run here");
    for (int i = 0; more; i++) {
        struct backend *few = open_tier(i, 1, &more), *many = more ? open_tier(i, 3, &more) : NULL;
        if (few && many && few->layer_norm_linear) {
            float *both = compute(few, &two, &d, false, &one[0]),
                  *a = compute(many, &single, &d, false, &one[1]),
                  *b = compute(many, &single, &second, false, &one[2]);
            CHECK(one[0] && one[1] && one[2], "%s: computed as two", few->tier);
            CHECK(memcmp(both, a, outputs(&single) * sizeof *a) == 0 &&
                      memcmp(both + outputs(&single), b, outputs(&single) * sizeof *b) == 0,
                  "%s", few->tier);
            free(both);
            free(a);
            free(b);
        }
        backend_close(&few);
        backend_close(&many);
    }
    data_free(&d);
}

/* What does not fit is declined or refused, and computed as two. */
TEST(declined)
{
    static const struct layer list[] = {{1, 40, 36, 64, false, false, ACT_NONE, false},
                                        {1, 40, 2560, 64, false, false, ACT_NONE, false},
                                        {1, 40, 1280, 320, false, false, ACT_NONE, false}};
    bool more = true;
    if (!cpu_tier_usable("amx-emulated"))
        SKIP("no tier that has it can run here");
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        CHECK(check_layer(&list[i], 1, false) == 0, "%d channels", list[i].c);
    for (int i = 0; more; i++) {
        struct backend *be = open_tier(i, 1, &more);
        struct error err = {0};
        struct region region;
        region_init(&region, NULL, 0);
        pass p = {be, &region, &err};
        weight norm = {.kind = WEIGHT_NORM, .out_c = 64},
               w = {.kind = WEIGHT_LINEAR, .out_c = 32, .in_c = 32, .kh = 1, .kw = 1};
        if (be) {
            layer_norm_linear(&p, &norm, 1e-5f, &w,
                              (tensor){.n = 1, .h = 1, .w = 4, .c = 32, .ld = 32, .dtype = be->dtype},
                              (struct linear_args){0});
            CHECK(err.code == ERR_INTERNAL, "%s: %d", be->tier, err.code);
        }
        backend_close(&be);
    }
}

TEST_MAIN()
