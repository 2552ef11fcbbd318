/* The AutoencoderKL decoder against diffusers, on every tier. */
#include "golden.h"
#include "networks.h"
#include "plan.h"
#include "test.h"

/* The same walk on the plan backend, over no memory: its peak must be what the real run needed. */
static void check_plan(struct stage *s, const struct vae *net, const struct golden_array *z)
{
    static struct region none;
    struct backend *plan = NULL;
    struct error err = {0};
    const int *d = z->shape;
    if (!CHECK(backend_open(&plan, &(struct backend_options){.kind = "plan"}, &err) == 0, "%s", err.msg))
        return;
    plan_set_dtype(plan, s->be->dtype);
    region_init(&none, NULL, SIZE_MAX);
    pass p = {.be = plan, .mem = &none, .err = &err};
    vae_decode(&p, net, tensor_from_host(&p, z->f, d[0], d[1], d[2], d[3], DTYPE_F32));
    CHECK(err.code == 0 && none.peak == s->mem.peak, "planned %zu bytes, the run took %zu: %s", none.peak,
          s->mem.peak, err.msg);
    backend_close(&plan);
}

static void check_vae(struct stage *s, const char *folder)
{
    struct golden g;
    struct vae *net = NULL;
    if (!golden_open(&g, folder))
        return;
    if (CHECK(vae_load(&net, s->be, folder, "fp16", false, &s->err) == 0, "%s", s->err.msg)) {
        for (int run = 0; golden_find(&g, run, "z"); run++) {
            const struct golden_array *z = golden_find(&g, run, "z"), *out = golden_find(&g, run, "out");
            char what[80];
            snprintf(what, sizeof(what), "%s run %d", folder + strlen("tests/golden/data/"), run);
            stage_reset(s);
            CHECK(z->shape[1] * vae_scale(net) == out->shape[1] && z->shape[3] == vae_latent_channels(net));
            tensor x =
                tensor_from_host(&s->p, z->f, z->shape[0], z->shape[1], z->shape[2], z->shape[3], DTYPE_F32);
            tensor y = vae_decode(&s->p, net, x);
            CHECK(y.dtype == DTYPE_F32 && y.h == out->shape[1] && y.w == out->shape[2] && y.c == 3);
            golden_compare(s, what, y, out, golden_find(&g, run, "bf16_error")->f[0]);
            check_plan(s, net, z);
            tensor_free(&s->p, &x);
            tensor_free(&s->p, &y);
            CHECK(s->mem.count == 0, "%d tensors were not given back", s->mem.count);
        }
    }
    vae_close(&net);
    golden_close(&g);
}

TEST(old_attention_names_and_shapes)
{
    golden_each_tier(check_vae, "tests/golden/data/vae_old_names");
}

TEST(no_post_quant_no_attention)
{
    golden_each_tier(check_vae, "tests/golden/data/vae_plain");
}

static void check_factors(struct stage *s, const char *folder)
{
    struct vae *net = NULL;
    if (CHECK(vae_load(&net, s->be, folder, NULL, false, &s->err) == 0, "%s", s->err.msg))
        CHECK(vae_scaling_factor(net) == 0.5f && vae_shift_factor(net) == 0.25f && vae_scale(net) == 4);
    vae_close(&net);
}

TEST(scaling_and_shift_factor)
{
    golden_each_tier(check_factors, "tests/golden/data/vae_plain");
}

TEST_MAIN()
