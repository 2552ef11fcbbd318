/* UNet2DConditionModel against diffusers, on every tier: each block type, head and projection variant, odd
 * sizes. */
#include "golden.h"
#include "networks.h"
#include "plan.h"
#include "test.h"

/* What a run feeds the network. */
struct inputs {
    tensor sample, text, pooled;
    struct unet_conditions c;
};

/* Array A, its last dimension as channels: [N, C], [N, T, C] or [N, H, W, C]; empty where there is none. */
static tensor host(pass *p, const struct golden_array *a, enum dtype dtype)
{
    if (!a)
        return (tensor){0};
    const int *d = a->shape;
    int dims = a->dims;
    return tensor_from_host(p, a->f, d[0], dims == 4 ? d[1] : 1, dims == 2 ? 1 : d[dims - 2], d[dims - 1],
                            dtype);
}

static struct inputs inputs_of(pass *p, const struct golden *g, int run)
{
    const struct golden_array *t = golden_find(g, run, "t"), *cond = golden_find(g, run, "cond"),
                              *ids = golden_find(g, run, "ids"), *label = golden_find(g, run, "label");
    struct inputs in = {.sample = host(p, golden_find(g, run, "x"), DTYPE_F32),
                        .text = host(p, golden_find(g, run, "text"), pass_dtype(p)),
                        .pooled = host(p, golden_find(g, run, "pooled"), pass_dtype(p))};
    in.c = (struct unet_conditions){.text = in.text,
                                    .timesteps = t->f,
                                    .count = (int)t->count,
                                    .time_cond = cond ? cond->f : NULL,
                                    .pooled = in.pooled,
                                    .time_ids = ids ? ids->f : NULL,
                                    .label = label ? label->i[0] : 0};
    return in;
}

static void free_inputs(pass *p, struct inputs *in)
{
    tensor_free(p, &in->text);
    tensor_free(p, &in->pooled);
    tensor_free(p, &in->sample);
}

/* Numbers of Y into PART, through the host: both may be on a device. */
static void copy_f32(struct stage *s, tensor part, tensor y)
{
    size_t bytes = tensor_count(y) * sizeof(float);
    float *numbers = malloc(bytes);
    if (CHECK(numbers != NULL) && CHECK(tensor_to_host(&s->p, y, numbers) == 0, "%s", s->err.msg)) {
        if (s->be->upload)
            CHECK(s->be->upload(s->be, part.data, numbers, bytes, &s->err) == 0, "%s", s->err.msg);
        else
            memcpy(part.data, numbers, bytes);
    }
    free(numbers);
}

/* All calls of one run, one after the other in a tensor [calls * N, H, W, C] on the host side of OUT. */
static void run_calls(struct stage *s, const struct unet *net, const struct golden *g, int run,
                      const char *folder)
{
    pass *p = &s->p;
    const struct golden_array *out = golden_find(g, run, "out");
    struct inputs in = inputs_of(p, g, run);
    struct unet_request *req = unet_begin(p, net, &in.c);
    tensor all = tensor_new(p, out->shape[0], out->shape[1], out->shape[2], out->shape[3], DTYPE_F32);
    for (int k = in.c.count - 1; k >= 0; k--) { /* any order will do */
        tensor y = unet_forward(p, net, req, in.sample, k);
        tensor part = tensor_batch(all, k * in.sample.n, in.sample.n);
        CHECK(y.dtype == DTYPE_F32 && y.ld == y.c);
        if (!s->err.code)
            copy_f32(s, part, y);
        tensor_free(p, &y);
    }
    unet_end(p, &req);
    free_inputs(p, &in);
    char what[80];
    snprintf(what, sizeof(what), "%s run %d", folder + strlen("tests/golden/data/"), run);
    golden_compare(s, what, all, out, golden_find(g, run, "bf16_error")->f[0]);
    tensor_free(p, &all);
    CHECK(s->mem.count == 0 || s->err.code, "%d tensors were not given back", s->mem.count);
}

/* The same walk on the plan backend, over no memory: its peak must be what the real run needed. */
static void check_plan(struct stage *s, const struct unet *net, const struct golden *g, size_t peak)
{
    static struct region none;
    struct backend *plan = NULL;
    struct error err = {0};
    const struct golden_array *out = golden_find(g, 0, "out");
    if (!CHECK(backend_open(&plan, &(struct backend_options){.kind = "plan"}, &err) == 0, "%s", err.msg))
        return;
    plan_set_target(plan, s->be);
    region_init(&none, NULL, SIZE_MAX);
    pass p = {.be = plan, .mem = &none, .err = &err};
    struct inputs in = inputs_of(&p, g, 0);
    struct unet_request *req = unet_begin(&p, net, &in.c);
    tensor all = tensor_new(&p, out->shape[0], out->shape[1], out->shape[2], out->shape[3], DTYPE_F32);
    for (int k = in.c.count - 1; k >= 0; k--) {
        tensor y = unet_forward(&p, net, req, in.sample, k);
        tensor_free(&p, &y);
    }
    unet_end(&p, &req);
    tensor_free(&p, &all);
    CHECK(err.code == 0, "%s", err.msg);
    CHECK(none.peak == peak, "planned %zu bytes, the run took %zu", none.peak, peak);
    backend_close(&plan);
}

static void check_unet(struct stage *s, const char *folder)
{
    struct golden g;
    struct unet *net = NULL;
    if (!golden_open(&g, folder))
        return;
    if (CHECK(unet_load(&net, s->be, folder, NULL, &s->err) == 0, "%s", s->err.msg)) {
        for (int run = 0; golden_find(&g, run, "x"); run++) {
            stage_reset(s);
            run_calls(s, net, &g, run, folder);
            if (run == 0)
                check_plan(s, net, &g, s->mem.peak);
        }
    }
    unet_close(&net);
    CHECK(s->be->weight_bytes == 0, "%zu bytes of weights are left", s->be->weight_bytes);
    golden_close(&g);
}

TEST(sd1_heads_as_one_int_conv_projections_odd_sizes)
{
    golden_each_tier(check_unet, "tests/golden/data/unet_sd1");
}

TEST(sd2_list_of_heads_linear_projections_sharded)
{
    golden_each_tier(check_unet, "tests/golden/data/unet_sd2");
}

TEST(lcm_guidance_embedding_deep_transformers_bf16_file)
{
    golden_each_tier(check_unet, "tests/golden/data/unet_lcm");
}

TEST(small_no_middle_block_only_cross_attention)
{
    golden_each_tier(check_unet, "tests/golden/data/unet_small");
}

TEST(sdxl_pooled_text_and_time_ids_depth_and_heads_by_block)
{
    golden_each_tier(check_unet, "tests/golden/data/unet_sdxl");
}

TEST(pix2pix_eight_channels_in_three_pictures)
{
    golden_each_tier(check_unet, "tests/golden/data/unet_pix2pix");
}

/* unet_begin on run 0 of G with one thing changed by BREAK: the error must contain WORDS. */
static void check_refused(struct stage *s, const struct unet *net, const struct golden *g,
                          void (*breaking)(struct unet_conditions *c), const char *words)
{
    stage_reset(s);
    struct inputs in = inputs_of(&s->p, g, 0);
    breaking(&in.c);
    struct unet_request *req = unet_begin(&s->p, net, &in.c);
    CHECK(!req && s->err.code == ERR_INTERNAL && strstr(s->err.msg, words), "\"%s\" lacks \"%s\"", s->err.msg,
          words);
    unet_end(&s->p, &req);
}

static void no_pooled(struct unet_conditions *c)
{
    c->pooled = (tensor){0};
}

static void narrow_pooled(struct unet_conditions *c)
{
    c->pooled = tensor_channels(c->pooled, 0, c->pooled.c - 1);
}

static void one_pooled(struct unet_conditions *c)
{
    c->pooled = tensor_batch(c->pooled, 0, 1);
}

static void no_ids(struct unet_conditions *c)
{
    c->time_ids = NULL;
}

static void narrow_text(struct unet_conditions *c)
{
    c->text = tensor_channels(c->text, 0, c->text.c - 1);
}

static void no_timesteps(struct unet_conditions *c)
{
    c->count = 0;
}

static void guidance(struct unet_conditions *c)
{
    c->time_cond = c->timesteps;
}

static void check_conditions(struct stage *s, const char *folder)
{
    struct golden g;
    struct unet *net = NULL;
    if (!golden_open(&g, folder))
        return;
    if (CHECK(unet_load(&net, s->be, folder, NULL, &s->err) == 0, "%s", s->err.msg)) {
        CHECK(unet_pooled_dim(net) == 12 && unet_time_ids(net) == 6);
        check_refused(s, net, &g, no_pooled, "the pooled text is missing");
        check_refused(s, net, &g, narrow_pooled, "not as wide as the model reads it");
        check_refused(s, net, &g, one_pooled, "not one vector for each picture");
        check_refused(s, net, &g, no_ids, "the time ids are missing");
        check_refused(s, net, &g, narrow_text, "cross_attention_dim");
        check_refused(s, net, &g, no_timesteps, "no timesteps");
        check_refused(s, net, &g, guidance, "time_cond is given");
    }
    unet_close(&net);
    golden_close(&g);
    stage_reset(s);
}

TEST(upscaler_class_label_seven_channels_only_cross_attention)
{
    golden_each_tier(check_unet, "tests/golden/data/unet_upscaler");
}

TEST(conditions_that_are_missing_or_do_not_fit)
{
    golden_each_tier(check_conditions, "tests/golden/data/unet_sdxl");
}

static void more_pooled(struct unet_conditions *c)
{
    c->pooled = tensor_batch(c->text, 0, 1);
}

static void more_ids(struct unet_conditions *c)
{
    c->time_ids = c->timesteps;
}

static void check_unread(struct stage *s, const char *folder)
{
    struct golden g;
    struct unet *net = NULL;
    if (!golden_open(&g, folder))
        return;
    if (CHECK(unet_load(&net, s->be, folder, NULL, &s->err) == 0, "%s", s->err.msg)) {
        CHECK(unet_pooled_dim(net) == 0 && unet_time_ids(net) == 0);
        check_refused(s, net, &g, more_pooled, "not as wide as the model reads it");
        check_refused(s, net, &g, more_ids, "no addition_embed_type");
    }
    unet_close(&net);
    golden_close(&g);
    stage_reset(s);
}

TEST(conditions_that_the_model_does_not_read)
{
    golden_each_tier(check_unread, "tests/golden/data/unet_sd1");
}

TEST_MAIN()
