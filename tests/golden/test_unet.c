/* UNet2DConditionModel against diffusers, on every tier: each block type, head and projection variant, odd
 * sizes. */
#include "golden.h"
#include "networks.h"
#include "plan.h"
#include "test.h"

static tensor host(pass *p, const struct golden_array *a, bool text)
{
    const int *d = a->shape;
    return text ? tensor_from_host(p, a->f, d[0], 1, d[1], d[2], pass_dtype(p))
                : tensor_from_host(p, a->f, d[0], d[1], d[2], d[3], DTYPE_F32);
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
    const struct golden_array *x = golden_find(g, run, "x"), *t = golden_find(g, run, "t");
    const struct golden_array *out = golden_find(g, run, "out"), *cond = golden_find(g, run, "cond");
    tensor text = host(p, golden_find(g, run, "text"), true), sample = host(p, x, false);
    struct unet_request *req = unet_begin(
        p, net,
        &(struct unet_conditions){
            .text = text, .timesteps = t->f, .count = (int)t->count, .time_cond = cond ? cond->f : NULL});
    tensor all = tensor_new(p, out->shape[0], out->shape[1], out->shape[2], out->shape[3], DTYPE_F32);
    for (int k = (int)t->count - 1; k >= 0; k--) { /* any order will do */
        tensor y = unet_forward(p, net, req, sample, k);
        tensor part = tensor_batch(all, k * sample.n, sample.n);
        CHECK(y.dtype == DTYPE_F32 && y.ld == y.c);
        if (!s->err.code)
            copy_f32(s, part, y);
        tensor_free(p, &y);
    }
    unet_end(p, &req);
    tensor_free(p, &text);
    tensor_free(p, &sample);
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
    const struct golden_array *x = golden_find(g, 0, "x"), *t = golden_find(g, 0, "t"),
                              *c = golden_find(g, 0, "cond");
    const struct golden_array *words = golden_find(g, 0, "text"), *out = golden_find(g, 0, "out");
    if (!CHECK(backend_open(&plan, &(struct backend_options){.kind = "plan"}, &err) == 0, "%s", err.msg))
        return;
    plan_set_dtype(plan, s->be->dtype);
    region_init(&none, NULL, SIZE_MAX);
    pass p = {.be = plan, .mem = &none, .err = &err};
    tensor text = host(&p, words, true), sample = host(&p, x, false);
    struct unet_request *req = unet_begin(
        &p, net,
        &(struct unet_conditions){
            .text = text, .timesteps = t->f, .count = (int)t->count, .time_cond = c ? c->f : NULL});
    tensor all = tensor_new(&p, out->shape[0], out->shape[1], out->shape[2], out->shape[3], DTYPE_F32);
    for (int k = (int)t->count - 1; k >= 0; k--) {
        tensor y = unet_forward(&p, net, req, sample, k);
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

TEST_MAIN()
