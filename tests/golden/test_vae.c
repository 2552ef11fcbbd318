/* AutoencoderKL against diffusers, both halves, on every tier. */
#include "golden.h"
#include "networks.h"
#include "plan.h"
#include "test.h"

typedef tensor vae_half(pass *p, const struct vae *net, tensor x);

static tensor image(pass *p, const struct golden_array *a)
{
    const int *d = a->shape;
    return tensor_from_host(p, a->f, d[0], d[1], d[2], d[3], DTYPE_F32);
}

/* The same walk on the plan backend, over no memory: its peak must be what the real run needed. */
static void check_plan(struct stage *s, const struct vae *net, vae_half *half, const struct golden_array *in)
{
    static struct region none;
    struct backend *plan = NULL;
    struct error err = {0};
    if (!CHECK(backend_open(&plan, &(struct backend_options){.kind = "plan"}, &err) == 0, "%s", err.msg))
        return;
    plan_set_target(plan, s->be);
    region_init(&none, NULL, SIZE_MAX);
    pass p = {.be = plan, .mem = &none, .err = &err};
    half(&p, net, image(&p, in));
    CHECK(err.code == 0 && none.peak == s->mem.peak, "planned %zu bytes, the run took %zu: %s", none.peak,
          s->mem.peak, err.msg);
    backend_close(&plan);
}

/* One half of the network on the array IN of run RUN, compared with WANT. */
static void check_half(struct stage *s, const struct vae *net, vae_half *half, const char *what,
                       const struct golden_array *in, const struct golden_array *want,
                       const struct golden_array *bf16_error)
{
    stage_reset(s);
    if (!CHECK(in && want && bf16_error, "%s: arrays are missing", what))
        return;
    tensor x = image(&s->p, in), y = half(&s->p, net, x);
    CHECK(y.dtype == DTYPE_F32 && y.h == want->shape[1] && y.w == want->shape[2] && y.c == want->shape[3]);
    golden_compare(s, what, y, want, bf16_error->f[0]);
    check_plan(s, net, half, in);
    tensor_free(&s->p, &x);
    tensor_free(&s->p, &y);
    CHECK(s->mem.count == 0, "%d tensors were not given back", s->mem.count);
}

/* Both halves in tiles of the goldens' size, counting them. */
static int tiles_done;

static bool count_tile(void *ctx, int tile, int tiles)
{
    const int *stop = ctx;
    CHECK(tile == ++tiles_done && tile <= tiles);
    return tile != *stop;
}

static int never = -1;
static const struct vae_tiles tiles_of_16 = {.side = 16, .enter = count_tile, .ctx = &never};

static tensor decode_tiled(pass *p, const struct vae *net, tensor z)
{
    tiles_done = 0;
    return vae_decode_tiled(p, net, z, &tiles_of_16);
}

static tensor encode_tiled(pass *p, const struct vae *net, tensor x)
{
    tiles_done = 0;
    return vae_encode_tiled(p, net, x, &tiles_of_16);
}

static void check_tiled(struct stage *s, const char *folder)
{
    static const int tiles[] = {12, 2, 8};
    struct golden g;
    struct vae *net = NULL;
    if (!golden_open(&g, folder))
        return;
    if (CHECK(vae_load(&net, s->be, folder, NULL, true, &s->err) == 0, "%s", s->err.msg)) {
        for (int run = 0; run < 3; run++) {
            char what[80];
            snprintf(what, sizeof(what), "vae_tiled run %d", run);
            check_half(s, net, decode_tiled, what, golden_find(&g, run, "z"), golden_find(&g, run, "out"),
                       golden_find(&g, run, "bf16_error"));
            CHECK(tiles_done == tiles[run], "%d tiles", tiles_done);
            check_half(s, net, encode_tiled, what, golden_find(&g, run, "pixels"),
                       golden_find(&g, run, "moments"), golden_find(&g, run, "moments.bf16_error"));
        }
        int stop = 3;
        stage_reset(s);
        tiles_done = 0;
        tensor z = image(&s->p, golden_find(&g, 0, "z"));
        vae_decode_tiled(&s->p, net, z, &(struct vae_tiles){.side = 16, .enter = count_tile, .ctx = &stop});
        CHECK(tiles_done == 3, "stopped after %d tiles", tiles_done);
        stage_reset(s);
        vae_decode_tiled(&s->p, net, z, &(struct vae_tiles){.side = 12});
        CHECK(s->err.code == ERR_INTERNAL, "a side that does not divide was taken");
        stage_reset(s);
    }
    vae_close(&net);
    golden_close(&g);
}

TEST(in_tiles)
{
    golden_each_tier(check_tiled, "tests/golden/data/vae_tiled");
}

/* 4096 x 4096 in tiles takes no more than the whole of a tile, the picture and its edges; planned only. */
static void check_large(struct stage *s, const char *folder)
{
    static struct region whole, tiled, tile;
    struct region *mem[] = {&whole, &tiled, &tile};
    const int side[] = {2048, 4096, 512};
    struct vae *net = NULL;
    struct backend *plan = NULL;
    if (!CHECK(vae_load(&net, s->be, folder, NULL, true, &s->err) == 0 &&
                   backend_open(&plan, &(struct backend_options){.kind = "plan"}, &s->err) == 0,
               "%s", s->err.msg))
        return;
    CHECK(vae_tile_side(net, 2048, 2048) == 0 && vae_tile_side(net, 2048, 2056) == 512);
    plan_set_target(plan, s->be);
    for (int i = 0; i < 3; i++) {
        pass p = {.be = plan, .mem = mem[i], .err = &s->err};
        region_init(mem[i], NULL, 0);
        tensor z = tensor_new(&p, 1, side[i] / 2, side[i] / 2, 4, DTYPE_F32);
        if (i == 1)
            vae_decode_tiled(&p, net, z, &(struct vae_tiles){.side = 512});
        else
            vae_decode(&p, net, z);
    }
    size_t picture = (size_t)4096 * 4096 * (3 + 1) * sizeof(float), edges = (size_t)12 * 12 * 128 * 512;
    CHECK(s->err.code == 0, "%s", s->err.msg);
    CHECK(tiled.peak <= picture + edges + 2 * tile.peak && tiled.peak < whole.peak,
          "in tiles %zu bytes, one tile %zu, 2048 x 2048 whole %zu", tiled.peak, tile.peak, whole.peak);
    printf("  %-19s 4096 x 4096 in tiles %zu MiB, 2048 x 2048 whole %zu MiB\n", s->name, tiled.peak >> 20,
           whole.peak >> 20);
    backend_close(&plan);
    vae_close(&net);
}

TEST(large_pictures_in_the_memory_of_a_tile)
{
    golden_each_tier(check_large, "tests/golden/data/vae_tiled");
}

static void check_runs(struct stage *s, const char *folder, bool encoder)
{
    struct golden g;
    struct vae *net = NULL;
    if (!golden_open(&g, folder))
        return;
    if (CHECK(vae_load(&net, s->be, folder, "fp16", encoder, &s->err) == 0, "%s", s->err.msg)) {
        CHECK(vae_has_encoder(net) == encoder);
        for (int run = 0; golden_find(&g, run, "z"); run++) {
            const struct golden_array *z = golden_find(&g, run, "z"), *out = golden_find(&g, run, "out");
            char what[80];
            int at = snprintf(what, sizeof(what), "%s run %d", folder + strlen("tests/golden/data/"), run);
            CHECK(z->shape[1] * vae_scale(net) == out->shape[1] && z->shape[3] == vae_latent_channels(net));
            check_half(s, net, vae_decode, what, z, out, golden_find(&g, run, "bf16_error"));
            snprintf(what + at, sizeof(what) - (size_t)at, ", encoder");
            if (encoder)
                check_half(s, net, vae_encode, what, golden_find(&g, run, "pixels"),
                           golden_find(&g, run, "moments"), golden_find(&g, run, "moments.bf16_error"));
        }
    }
    vae_close(&net);
    CHECK(s->be->weight_bytes == 0, "%zu bytes of weights are left", s->be->weight_bytes);
    golden_close(&g);
}

static void check_vae(struct stage *s, const char *folder)
{
    check_runs(s, folder, false);
}

static void check_both_halves(struct stage *s, const char *folder)
{
    check_runs(s, folder, true);
}

TEST(old_attention_names_and_shapes)
{
    golden_each_tier(check_vae, "tests/golden/data/vae_old_names");
}

TEST(no_post_quant_no_attention)
{
    golden_each_tier(check_vae, "tests/golden/data/vae_plain");
}

TEST(encoder_with_old_attention_names_and_shapes)
{
    golden_each_tier(check_both_halves, "tests/golden/data/vae_encoder_old_names");
}

TEST(encoder_without_quant_conv_and_attention_three_levels)
{
    golden_each_tier(check_both_halves, "tests/golden/data/vae_encoder_plain");
}

TEST(encoder_four_levels_bf16_file)
{
    golden_each_tier(check_both_halves, "tests/golden/data/vae_encoder_deep");
}

/* The decoder alone needs no encoder in the file; with the encoder asked for, what is missing has a name. */
static void check_no_encoder(struct stage *s, const char *folder)
{
    struct vae *net = NULL;
    float pixels[4 * 4 * 3] = {0};
    CHECK(vae_load(&net, s->be, folder, NULL, true, &s->err) == ERR_FORMAT && !net &&
              strstr(s->err.msg, "\"encoder.conv_in.weight\" is missing"),
          "%s", s->err.msg);
    stage_reset(s);
    if (CHECK(vae_load(&net, s->be, folder, NULL, false, &s->err) == 0, "%s", s->err.msg)) {
        vae_encode(&s->p, net, tensor_from_host(&s->p, pixels, 1, 4, 4, 3, DTYPE_F32));
        CHECK(s->err.code == ERR_INTERNAL && strstr(s->err.msg, "the encoder was not loaded"), "%s",
              s->err.msg);
    }
    vae_close(&net);
    stage_reset(s);
    if (CHECK(vae_load(&net, s->be, "tests/golden/data/vae_encoder_plain", NULL, true, &s->err) == 0, "%s",
              s->err.msg)) {
        vae_encode(&s->p, net, tensor_from_host(&s->p, pixels, 1, 2, 8, 3, DTYPE_F32));
        CHECK(s->err.code == ERR_INTERNAL && strstr(s->err.msg, "multiples of vae_scale"), "%s", s->err.msg);
    }
    vae_close(&net);
    stage_reset(s);
}

TEST(encoder_that_is_not_there_or_does_not_fit)
{
    golden_each_tier(check_no_encoder, "tests/golden/data/vae_plain");
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
