/* The networks of Stable Video Diffusion against diffusers and transformers, on every tier: the video UNet,
 * the VAE with the temporal decoder, the image encoder. */
#include "golden.h"
#include "networks.h"
#include "plan.h"
#include "video_model.h"

static const char unet_stem[] = "diffusion_pytorch_model", vision_stem[] = "model";

/* One walk of a network over run RUN of G, on any pass; what it gives is freed by the caller. */
typedef tensor network_walk(pass *p, const void *net, const struct golden *g, int run);

static tensor image(pass *p, const struct golden_array *a)
{
    const int *d = a->shape;
    return tensor_from_host(p, a->f, d[0], d[1], d[2], d[3], DTYPE_F32);
}

/* The same walk on the plan backend, over no memory: its peak must be what the real run needed. */
static void check_plan(struct stage *s, network_walk *walk, const void *net, const struct golden *g, int run)
{
    static struct region none;
    struct backend *plan = NULL;
    struct error err = {0};
    if (!CHECK(backend_open(&plan, &(struct backend_options){.kind = "plan"}, &err) == 0, "%s", err.msg))
        return;
    plan_set_target(plan, s->be);
    region_init(&none, NULL, SIZE_MAX);
    pass p = {.be = plan, .mem = &none, .err = &err};
    walk(&p, net, g, run);
    CHECK(err.code == 0 && none.peak == s->mem.peak, "planned %zu bytes, the run took %zu: %s", none.peak,
          s->mem.peak, err.msg);
    backend_close(&plan);
}

/* Walks run RUN, compares with the array WANT (of relative error ROUGH in bf16), and plans it. */
static void check_walk(struct stage *s, network_walk *walk, const void *net, const struct golden *g, int run,
                       const char *name, const char *want, const char *rough)
{
    const struct golden_array *out = golden_find(g, run, want), *bf16 = golden_find(g, run, rough);
    char what[80];
    stage_reset(s);
    if (!CHECK(out && bf16, "%s is missing", want))
        return;
    snprintf(what, sizeof what, "%s run %d", name, run);
    tensor y = walk(&s->p, net, g, run);
    CHECK(y.dtype == DTYPE_F32, "%s: the output is not fp32", what);
    size_t peak = s->mem.peak;
    golden_compare(s, what, y, out, bf16->f[0]);
    s->mem.peak = peak;
    check_plan(s, walk, net, g, run);
    tensor_free(&s->p, &y);
    CHECK(s->mem.count == 0 || s->err.code, "%s: %d tensors were not given back", what, s->mem.count);
}

/* ---- The video UNet ---- */

static struct unet_video_conditions conditions(const struct golden *g, int run)
{
    const struct golden_array *x = golden_find(g, run, "x"), *t = golden_find(g, run, "t");
    int frames = golden_find(g, run, "frames")->i[0];
    return (struct unet_video_conditions){.videos = x->shape[0] / frames,
                                          .frames = frames,
                                          .image = golden_find(g, run, "image")->f,
                                          .timesteps = t->f,
                                          .count = (int)t->count,
                                          .ids = golden_find(g, run, "ids")->f};
}

/* The golden has all calls of a run one behind the other; this walk does call CALL of them all, the rest for
 * the memory alone. */
static int compared_call;

static tensor walk_unet(pass *p, const void *net, const struct golden *g, int run)
{
    struct unet_video_conditions c = conditions(g, run);
    struct unet_video_request *req = unet_video_begin(p, net, &c);
    tensor x = image(p, golden_find(g, run, "x")), y = {0};
    for (int k = 0; k < c.count; k++) { /* the compared one last */
        tensor_free(p, &y);
        y = unet_video_forward(p, net, req, x, (compared_call + 1 + k) % c.count);
    }
    tensor_free(p, &x);
    unet_video_end(p, &req);
    return y;
}

/* Array A cut to the part PART of COUNT, as an array of its own that shares the numbers. */
static struct golden_array part_of(const struct golden_array *a, int part, int count)
{
    struct golden_array cut = *a;
    cut.count /= (size_t)count;
    cut.shape[0] /= count;
    cut.f += cut.count * (size_t)part;
    return cut;
}

static void check_unet_run(struct stage *s, const struct unet_video *net, const struct golden *g, int run,
                           const char *name)
{
    int calls = conditions(g, run).count;
    for (compared_call = 0; compared_call < calls; compared_call++) {
        struct golden_array out = part_of(golden_find(g, run, "out"), compared_call, calls), list[8];
        struct golden one = {.array = list};
        for (int i = 0; i < g->count && one.count < 8; i++) {
            if (g->array[i].name[0] == '0' + run)
                list[one.count++] = g->array[i];
            if (one.count && strcmp(list[one.count - 1].name + 2, "out") == 0)
                list[one.count - 1] = out;
        }
        check_walk(s, walk_unet, net, &one, run, name, "out", "bf16_error");
    }
}

static void check_unet(struct stage *s, const char *folder)
{
    struct golden g;
    struct unet_video *net = NULL;
    char dir[64];
    if (!golden_open(&g, folder))
        return;
    video_model_open(dir, folder, unet_stem, NULL);
    if (CHECK(unet_video_load(&net, s->be, dir, NULL, &s->err) == 0, "%s", s->err.msg)) {
        for (int run = 0; golden_find(&g, run, "x"); run++)
            check_unet_run(s, net, &g, run, folder + strlen("tests/golden/data/"));
    }
    unet_video_close(&net);
    CHECK(s->be->weight_bytes == 0, "%zu bytes of weights are left", s->be->weight_bytes);
    video_model_close(dir);
    golden_close(&g);
}

TEST(unet_two_videos_odd_sizes_one_frame)
{
    golden_each_tier(check_unet, "tests/golden/data/video/unet");
}

TEST(unet_three_levels_two_layers_other_orders)
{
    golden_each_tier(check_unet, "tests/golden/data/video/unet_deep");
}

/* ---- Full size: scripts/parity_video.py ---- */

static void say_memory(const struct stage *s)
{
    printf("  %-19s %zu MiB of weights, %zu MiB of job memory\n", s->name, s->be->weight_bytes >> 20,
           s->mem.peak >> 20);
}

static void check_full_unet(struct stage *s, const char *folder)
{
    struct golden g;
    struct unet_video *net = NULL;
    if (!golden_open(&g, folder))
        return;
    if (CHECK(unet_video_load(&net, s->be, getenv("GOLDEN_VIDEO_MODEL"), "fp16", &s->err) == 0, "%s",
              s->err.msg)) {
        compared_call = 0;
        check_walk(s, walk_unet, net, &g, 0, "full size unet", "out", "bf16_error");
        say_memory(s);
    }
    unet_video_close(&net);
    golden_close(&g);
}

TEST(full_size_unet)
{
    if (!getenv("GOLDEN_VIDEO_MODEL"))
        SKIP("there is no GOLDEN_VIDEO_MODEL");
    golden_memory = (size_t)1 << 30;
    golden_each_tier(check_full_unet, getenv("GOLDEN_VIDEO_DATA"));
}

/* ---- The VAE ---- */

static tensor walk_decoder(pass *p, const void *net, const struct golden *g, int run)
{
    tensor z = image(p, golden_find(g, run, "z"));
    tensor y = vae_video_decode(p, net, z, golden_find(g, run, "frames")->i[0]);
    tensor_free(p, &z);
    return y;
}

static tensor walk_encoder(pass *p, const void *net, const struct golden *g, int run)
{
    tensor x = image(p, golden_find(g, run, "pixels")), y = vae_video_encode(p, net, x);
    tensor_free(p, &x);
    return y;
}

static void check_vae(struct stage *s, const char *folder)
{
    struct golden g;
    struct vae_video *net = NULL;
    char dir[64];
    bool first = strcmp(folder, "tests/golden/data/video/vae") == 0;
    if (!golden_open(&g, folder))
        return;
    video_model_open(dir, folder, unet_stem, NULL);
    if (CHECK(vae_video_load(&net, s->be, dir, NULL, &s->err) == 0, "%s", s->err.msg)) {
        CHECK(vae_video_latent_channels(net) == 4 && vae_video_scale(net) == (first ? 2 : 4));
        CHECK(vae_video_scaling_factor(net) == (first ? 0.25f : 0.18215f));
        CHECK(vae_video_force_upcast(net) == first);
        for (int run = 0; golden_find(&g, run, "z"); run++) {
            check_walk(s, walk_decoder, net, &g, run, "video decoder", "out", "bf16_error");
            check_walk(s, walk_encoder, net, &g, run, "video encoder", "moments", "moments.bf16_error");
        }
    }
    vae_video_close(&net);
    CHECK(s->be->weight_bytes == 0, "%zu bytes of weights are left", s->be->weight_bytes);
    video_model_close(dir);
    golden_close(&g);
}

TEST(vae_chunks_of_frames_and_two_videos)
{
    golden_each_tier(check_vae, "tests/golden/data/video/vae");
}

TEST(vae_one_layer_has_no_attention_three_levels)
{
    golden_each_tier(check_vae, "tests/golden/data/video/vae_shallow");
}

/* ---- The image encoder ---- */

static tensor walk_vision(pass *p, const void *net, const struct golden *g, int run)
{
    return clip_vision_embed(p, net, golden_find(g, run, "pixels")->f);
}

static void check_vision(struct stage *s, const char *folder)
{
    struct golden g;
    struct clip_vision *net = NULL;
    char dir[64];
    if (!golden_open(&g, folder))
        return;
    video_model_open(dir, folder, vision_stem, NULL);
    if (CHECK(clip_vision_load(&net, s->be, dir, NULL, &s->err) == 0, "%s", s->err.msg)) {
        CHECK(clip_vision_side(net) == 20 && clip_vision_projection(net) == 24);
        check_walk(s, walk_vision, net, &g, -1, "image encoder", "out", "bf16_error");
    }
    clip_vision_close(&net);
    CHECK(s->be->weight_bytes == 0, "%zu bytes of weights are left", s->be->weight_bytes);
    video_model_close(dir);
    golden_close(&g);
}

TEST(image_encoder)
{
    golden_each_tier(check_vision, "tests/golden/data/video/vision");
}

/* ---- What is not there, or does not fit ---- */

/* The UNet without the tensor LESS is refused by its name; with LESS NULL it loads. */
static void check_missing(struct stage *s, const char *less)
{
    struct unet_video *net = NULL;
    char dir[64];
    stage_reset(s);
    video_model_open(dir, "tests/golden/data/video/unet", unet_stem, less);
    CHECK(unet_video_load(&net, s->be, dir, NULL, &s->err) == ERR_FORMAT && !net && strstr(s->err.msg, less),
          "%s: %s", less, s->err.msg);
    CHECK(s->be->weight_bytes == 0, "%zu bytes of weights are left", s->be->weight_bytes);
    video_model_close(dir);
}

/* Also what changes no number: queries of an attention over one token. */
static void check_all_missing(struct stage *s, const char *folder)
{
    static const char block[] = "mid_block.attentions.0.";
    static const char *const names[] = {"temporal_transformer_blocks.0.attn2.to_q.weight",
                                        "transformer_blocks.0.norm2.weight", "time_mixer.mix_factor",
                                        "time_pos_embed.linear_2.bias"};
    (void)folder;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s%s", block, names[i]);
        check_missing(s, name);
    }
    check_missing(s, "up_blocks.0.resnets.0.temporal_res_block.conv2.weight");
    stage_reset(s);
}

TEST(tensors_that_are_missing)
{
    golden_each_tier(check_all_missing, NULL);
}

static void check_misfits(struct stage *s, const char *folder)
{
    struct golden g;
    struct unet_video *net = NULL;
    struct error err = {0};
    char dir[64];
    if (!golden_open(&g, folder))
        return;
    video_model_open(dir, folder, unet_stem, NULL);
    if (CHECK(unet_video_load(&net, s->be, dir, NULL, &s->err) == 0, "%s", s->err.msg)) {
        CHECK(unet_video_in_channels(net) == 8 && unet_video_out_channels(net) == 4 &&
              unet_video_frames(net) == 3 && unet_video_sample_size(net) == 8 &&
              unet_video_token_width(net) == 24 && unet_video_ids(net) == 3);
        struct unet_video_conditions c = conditions(&g, 0), none = c;
        none.image = NULL;
        struct unet_video_request *req = unet_video_begin(&s->p, net, &none);
        CHECK(!req && s->err.code == ERR_INTERNAL && strstr(s->err.msg, "must be given"), "%s", s->err.msg);
        stage_reset(s);
        req = unet_video_begin(&s->p, net, &c);
        tensor x = image(&s->p, golden_find(&g, 1, "x")); /* 5 frames, where 6 were begun */
        unet_video_forward(&s->p, net, req, x, 0);
        CHECK(s->err.code == ERR_INTERNAL && strstr(s->err.msg, "5 frames was not begun"), "%s", s->err.msg);
        unet_video_end(&s->p, &req);
        CHECK(!req);
    }
    unet_video_close(&net);
    stage_reset(s);
    struct vae_video *vae = NULL;
    CHECK(vae_video_load(&vae, s->be, dir, NULL, &err) == ERR_UNSUPPORTED && !vae &&
              strstr(err.msg, "AutoencoderKLTemporalDecoder"),
          "%s", err.msg);
    video_model_close(dir);
    golden_close(&g);
}

TEST(conditions_and_models_that_do_not_fit)
{
    golden_each_tier(check_misfits, "tests/golden/data/video/unet");
}

static void check_full_vae(struct stage *s, const char *folder)
{
    struct golden g;
    struct vae_video *net = NULL;
    if (!golden_open(&g, folder))
        return;
    if (CHECK(vae_video_load(&net, s->be, getenv("GOLDEN_VIDEO_MODEL"), "fp16", &s->err) == 0, "%s",
              s->err.msg)) {
        check_walk(s, walk_decoder, net, &g, 0, "full size decoder", "out", "bf16_error");
        say_memory(s);
        check_walk(s, walk_encoder, net, &g, 0, "full size encoder", "moments", "moments.bf16_error");
        say_memory(s);
    }
    vae_video_close(&net);
    golden_close(&g);
}

TEST(full_size_vae)
{
    if (!getenv("GOLDEN_VIDEO_MODEL"))
        SKIP("there is no GOLDEN_VIDEO_MODEL");
    golden_memory = (size_t)1 << 30;
    golden_each_tier(check_full_vae, getenv("GOLDEN_VIDEO_DATA"));
}

TEST_MAIN()
