/* The plan backend: counts are the ones done by hand, data are never touched, and two plans do not meet. */
#include "plan.h"
#include "region.h"
#include "test.h"

struct walk {
    struct backend *be;
    struct region region;
    struct error err;
    pass p;
};

static int walk_open(struct walk *k)
{
    struct backend_options opt = {.kind = "plan"};
    memset(k, 0, sizeof *k);
    if (!CHECK(backend_open(&k->be, &opt, &k->err) == 0, "%s", k->err.msg))
        return -1;
    region_init(&k->region, NULL, 0);
    k->p = (pass){k->be, &k->region, &k->err};
    return 0;
}

static weight fake_weight(enum weight_kind kind, int o, int i, int k, size_t bytes)
{
    static int something;
    return (weight){
        .kind = kind, .out_c = o, .in_c = i, .kh = k, .kw = k, .packed = &something, .bytes = bytes};
}

TEST(convolution_by_hand)
{
    struct walk k;
    if (walk_open(&k))
        return;
    weight w = fake_weight(WEIGHT_CONV2D, 5, 3, 3, 1000);
    tensor x = tensor_new(&k.p, 2, 8, 6, 3, DTYPE_F32), bc = tensor_new(&k.p, 2, 1, 1, 5, DTYPE_F32);
    tensor y = conv2d(&k.p, &w, x, (struct conv2d_args){.stride = 2, .add_bc = bc});
    const struct plan_report *r = plan_report(k.be);
    CHECK(k.err.code == 0, "%s", k.err.msg);
    CHECK(y.n == 2 && y.h == 4 && y.w == 3 && y.c == 5);
    CHECK(r->op[OP_conv2d].calls == 1);
    CHECK(r->op[OP_conv2d].flops == 2.0 * 2 * 4 * 3 * 5 * 3 * 9);
    CHECK(r->op[OP_conv2d].read == 4.0 * (2 * 8 * 6 * 3 + 2 * 5) + 1000);
    CHECK(r->op[OP_conv2d].written == 4.0 * 2 * 4 * 3 * 5);
    CHECK(r->op[OP_conv2d].weights == 1000);
    backend_close(&k.be);
}

TEST(temporal_convolution_by_hand)
{
    struct walk k;
    if (walk_open(&k))
        return;
    weight w = fake_weight(WEIGHT_CONV2D, 5, 4, 3, 1000);
    w.kw = 1;
    tensor x = tensor_new(&k.p, 6, 2, 3, 4, DTYPE_F32), bc = tensor_new(&k.p, 6, 1, 1, 5, DTYPE_F32);
    tensor y = conv_temporal(&k.p, &w, x, 3, (struct conv2d_args){.add_bc = bc});
    const struct plan_count *c = &plan_report(k.be)->op[OP_conv_temporal];
    CHECK(k.err.code == 0, "%s", k.err.msg);
    CHECK(y.n == 6 && y.h == 2 && y.w == 3 && y.c == 5);
    CHECK(c->calls == 1 && c->flops == 2.0 * 6 * 2 * 3 * 5 * 4 * 3);
    CHECK(c->read == 4.0 * (6 * 2 * 3 * 4 + 6 * 5) + 1000 && c->written == 4.0 * 6 * 2 * 3 * 5);
    conv_temporal(&k.p, &w, x, 4, (struct conv2d_args){0});
    CHECK(k.err.code == ERR_INTERNAL && strstr(k.err.msg, "whole number of videos"), "%s", k.err.msg);
    backend_close(&k.be);
}

TEST(guided_sum_by_hand)
{
    struct walk k;
    if (walk_open(&k))
        return;
    tensor x[2] = {tensor_new(&k.p, 1, 2, 2, 4, DTYPE_F32), tensor_new(&k.p, 2, 2, 2, 4, DTYPE_F32)};
    const float coef[2] = {1, -0.5f};
    tensor y = lincomb_guided(&k.p, 2, coef, x, 1, 7.5f);
    CHECK(k.err.code == 0, "%s", k.err.msg);
    CHECK(y.n == 1 && y.h == 2 && y.w == 2 && y.c == 4 && y.dtype == DTYPE_F32);
    CHECK(plan_report(k.be)->op[OP_lincomb].read == 4.0 * 3 * 16);
    lincomb_guided(&k.p, 2, coef, x, 0, 7.5f); /* the pair is the other one */
    CHECK(k.err.code == ERR_INTERNAL, "%s", k.err.msg);
    backend_close(&k.be);
}

TEST(attention_and_linear_by_hand)
{
    struct walk k;
    if (walk_open(&k))
        return;
    plan_set_dtype(k.be, DTYPE_BF16);
    weight w = fake_weight(WEIGHT_LINEAR, 24, 8, 1, 400), g = fake_weight(WEIGHT_GEGLU, 20, 8, 1, 0);
    tensor x = tensor_new(&k.p, 2, 1, 7, 8, DTYPE_BF16);
    tensor qkv = linear(&k.p, &w, x, (struct linear_args){0});
    tensor y = attention(&k.p, tensor_channels(qkv, 0, 8), tensor_channels(qkv, 8, 8),
                         tensor_channels(qkv, 16, 8), (struct attention_args){.heads = 2, .scale = 1});
    tensor z = linear(&k.p, &g, y, (struct linear_args){.f32_out = true});
    const struct plan_report *r = plan_report(k.be);
    CHECK(k.err.code == 0, "%s", k.err.msg);
    CHECK(qkv.dtype == DTYPE_BF16 && y.dtype == DTYPE_BF16 && z.dtype == DTYPE_F32 && z.c == 10);
    CHECK(r->op[OP_attention].flops == 4.0 * 2 * 7 * 7 * 8);
    CHECK(r->op[OP_attention].read == 2.0 * 3 * 2 * 7 * 8);
    CHECK(r->op[OP_linear].calls == 2);
    CHECK(r->op[OP_linear].flops == 2.0 * 14 * 8 * 24 + 2.0 * 14 * 8 * 20);
    CHECK(r->op[OP_linear].written == 2.0 * 14 * 24 + 4.0 * 14 * 10);
    CHECK(r->total.flops == r->op[OP_linear].flops + r->op[OP_attention].flops);
    CHECK(r->total.calls == 3);
    backend_close(&k.be);
}

/* Every other op once, on addresses that would fault: none may be touched. */
TEST(nothing_is_touched)
{
    struct walk k;
    if (walk_open(&k))
        return;
    weight norm = fake_weight(WEIGHT_NORM, 6, 1, 1, 48), table = fake_weight(WEIGHT_EMBEDDING, 10, 6, 1, 240);
    int32_t ids[4] = {0, 9, 3, 3};
    tensor x = randn(&k.p, 2, 3, 4, 6, 0, 0, DTYPE_F32);
    tensor list[] = {
        group_norm(&k.p, &norm, x, 3, 1e-5f),
        group_norm_silu(&k.p, &norm, x, 3, 1e-5f),
        layer_norm(&k.p, &norm, x, 1e-5f),
        silu(&k.p, x),
        add(&k.p, x, x),
        blend(&k.p, x, x, 0.5f),
        concat_channels(&k.p, x, x),
        upsample_nearest(&k.p, x),
        embed_tokens(&k.p, &table, &table, ids, 2, 2),
        timestep_embedding(&k.p, (const float[]){1, 2}, 2, 32, true, 0),
        repeat_batch(&k.p, x, 2),
        convert(&k.p, x, DTYPE_F16),
        lincomb(&k.p, 1, (const float[]){1}, &x),
        guide(&k.p, x, 7.5f),
        clip(&k.p, x, -1, 1),
        tensor_from_host(&k.p, (const float[]){1}, 1, 1, 1, 1, DTYPE_F32),
    };
    tensor rows = tensor_new(&k.p, 1, 1, 2, 6, DTYPE_F32);
    ramp(&k.p, rows, rows, 3);
    float host[144] = {7};
    uint8_t rgb[8 * 3] = {7};
    CHECK(tensor_to_host(&k.p, x, host) == 0 && host[0] == 7.0f);
    CHECK(to_rgb8(&k.p, tensor_new(&k.p, 1, 2, 4, 3, DTYPE_F32), rgb) == 0 && rgb[0] == 7);
    CHECK(k.err.code == 0, "%s", k.err.msg);
    const struct plan_report *r = plan_report(k.be);
    for (int i = OP_group_norm; i <= OP_to_rgb8; i++)
        CHECK(r->op[i].calls == 1, "%s was counted %d times", op_names[i], (int)r->op[i].calls);
    CHECK(r->op[OP_embed_tokens].weights == 24 * 4 + 24 * 2); /* four rows of tokens, two of positions */
    CHECK(sizeof list / sizeof list[0] + 4 == r->total.calls);
    backend_close(&k.be);
}

TEST(plans_do_not_meet_and_start_anew)
{
    struct walk a, b;
    if (walk_open(&a) || walk_open(&b))
        return;
    tensor x = tensor_new(&a.p, 1, 1, 1, 4, DTYPE_F32);
    silu(&a.p, x);
    CHECK(plan_report(a.be)->total.calls == 1);
    CHECK(plan_report(b.be)->total.calls == 0);
    plan_reset(a.be);
    CHECK(plan_report(a.be)->total.calls == 0 && plan_report(a.be)->total.written == 0);
    backend_close(&a.be);
    backend_close(&b.be);
}

TEST(networks_can_be_loaded_without_numbers)
{
    struct walk k;
    weight w;
    float numbers[2 * 3] = {0};
    if (walk_open(&k))
        return;
    struct weight_source src = {.kind = WEIGHT_LINEAR, .out_c = 2, .in_c = 3, .kh = 1, .kw = 1, .parts = 1};
    src.w[0] = (struct host_array){numbers, DTYPE_F32, 6};
    plan_set_dtype(k.be, DTYPE_BF16);
    CHECK(weight_pack(k.be, &w, &src, &k.err) == 0, "%s", k.err.msg);
    CHECK(w.packed != NULL && w.bytes == 12 && k.be->weight_bytes == 12);
    weight_free(k.be, &w);
    CHECK(k.be->weight_bytes == 0);
    backend_close(&k.be);
}

TEST_MAIN()
