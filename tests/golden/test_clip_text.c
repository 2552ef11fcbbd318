/* The CLIP text encoder against transformers' CLIPTextModel and CLIPTextModelWithProjection, on every tier.
 */
#include "golden.h"
#include "networks.h"
#include "test.h"

static void check_states(struct stage *s, const char *folder)
{
    struct golden g;
    struct clip_text *net = NULL;
    if (!golden_open(&g, folder))
        return;
    const struct golden_array *ids = golden_find(&g, -1, "ids"), *states = golden_find(&g, -1, "states");
    if (CHECK(clip_text_load(&net, s->be, folder, NULL, &s->err) == 0, "%s", s->err.msg)) {
        CHECK(clip_text_positions(net) == ids->shape[1] && clip_text_width(net) == states->shape[2]);
        tensor x = clip_text_forward(&s->p, net, ids->i, ids->shape[0]);
        golden_compare(s, folder + strlen("tests/golden/data/"), x, states,
                       golden_find(&g, -1, "bf16_error")->f[0]);
        tensor_free(&s->p, &x);
        CHECK(s->mem.count == 0, "%d tensors were not given back", s->mem.count);
    }
    clip_text_close(&net);
    CHECK(s->be->weight_bytes == 0, "%zu bytes of weights are left", s->be->weight_bytes);
    golden_close(&g);
}

TEST(quick_gelu_with_prefix_fp16)
{
    golden_each_tier(check_states, "tests/golden/data/text_quick_gelu");
}

TEST(gelu_without_prefix_fp32)
{
    golden_each_tier(check_states, "tests/golden/data/text_gelu");
}

/* SDXL's reading: the states before the last layer, and the pooled output. */
static void check_projection(struct stage *s, const char *folder)
{
    struct golden g;
    struct clip_text *net = NULL;
    if (!golden_open(&g, folder))
        return;
    const struct golden_array *ids = golden_find(&g, -1, "ids"), *states = golden_find(&g, -1, "penultimate"),
                              *pooled = golden_find(&g, -1, "pooled");
    if (CHECK(clip_text_load(&net, s->be, folder, NULL, &s->err) == 0, "%s", s->err.msg)) {
        tensor y, x = clip_text_forward_penultimate(&s->p, net, ids->i, ids->shape[0], &y);
        CHECK(clip_text_projection(net) == pooled->shape[1]);
        CHECK(y.n == ids->shape[0] && y.h == 1 && y.w == 1 && y.c == pooled->shape[1] && y.ld == y.c);
        golden_compare(s, "states before the last layer", x, states,
                       golden_find(&g, -1, "penultimate.bf16_error")->f[0]);
        golden_compare(s, "pooled", y, pooled, golden_find(&g, -1, "pooled.bf16_error")->f[0]);
        tensor_free(&s->p, &x);
        tensor_free(&s->p, &y);
        CHECK(s->mem.count == 0, "%d tensors were not given back", s->mem.count);
        x = clip_text_forward_penultimate(&s->p, net, ids->i, ids->shape[0], NULL);
        golden_compare(s, "the same without pooling", x, states,
                       golden_find(&g, -1, "penultimate.bf16_error")->f[0]);
        tensor_free(&s->p, &x);
        CHECK(s->mem.count == 0, "%d tensors were not given back", s->mem.count);
    }
    clip_text_close(&net);
    golden_close(&g);
}

TEST(pooled_at_the_highest_id)
{
    golden_each_tier(check_projection, "tests/golden/data/text_projection_highest_id");
}

TEST(pooled_at_the_first_end_token_or_the_first_token_one_layer)
{
    golden_each_tier(check_projection, "tests/golden/data/text_projection_eos");
}

/* CLIPTextModel has no text_projection, whatever projection_dim its config gives. */
static void check_no_projection(struct stage *s, const char *folder)
{
    struct clip_text *net = NULL;
    int32_t ids[20] = {0};
    tensor pooled;
    if (CHECK(clip_text_load(&net, s->be, folder, NULL, &s->err) == 0, "%s", s->err.msg)) {
        CHECK(clip_text_projection(net) == 0);
        clip_text_forward_penultimate(&s->p, net, ids, 1, &pooled);
        CHECK(s->err.code == ERR_INTERNAL && strstr(s->err.msg, "no text_projection"), "%s", s->err.msg);
    }
    clip_text_close(&net);
    stage_reset(s);
}

TEST(no_pooled_output_without_projection)
{
    golden_each_tier(check_no_projection, "tests/golden/data/text_gelu");
}

TEST(token_out_of_range_is_refused)
{
    struct error err = {0};
    struct backend *be = NULL;
    struct clip_text *net = NULL;
    static struct region mem;
    static char memory[4 << 20];
    int32_t ids[20] = {0, 90};
    region_init(&mem, memory, sizeof(memory));
    pass p = {.mem = &mem, .err = &err};
    CHECK(backend_open(&be, &(struct backend_options){.kind = "ref"}, &err) == 0, "%s", err.msg);
    p.be = be;
    if (CHECK(clip_text_load(&net, be, "tests/golden/data/text_gelu", "fp16", &err) == 0, "%s", err.msg)) {
        clip_text_forward(&p, net, ids, 1);
        CHECK(err.code == ERR_INVALID && strstr(err.msg, "90"), "%s", err.msg);
    }
    clip_text_close(&net);
    backend_close(&be);
}

TEST_MAIN()
