/* The AutoencoderKL decoder against diffusers, on every tier. */
#include "golden.h"
#include "networks.h"
#include "test.h"

static void check_vae(struct stage *s, const char *folder)
{
    struct golden g;
    struct vae *net = NULL;
    if (!golden_open(&g, folder))
        return;
    if (CHECK(vae_load(&net, s->be, folder, "fp16", &s->err) == 0, "%s", s->err.msg)) {
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
    if (CHECK(vae_load(&net, s->be, folder, NULL, &s->err) == 0, "%s", s->err.msg))
        CHECK(vae_scaling_factor(net) == 0.5f && vae_shift_factor(net) == 0.25f && vae_scale(net) == 4);
    vae_close(&net);
}

TEST(scaling_and_shift_factor)
{
    golden_each_tier(check_factors, "tests/golden/data/vae_plain");
}

TEST_MAIN()
