/* The repositories that the ai-runner loads: their configs are accepted, and the tensors that diffusers and
 * transformers expect are those that are bound here, none left over and none missing. The lists come from
 * scripts/export_tensor_names.py. A file here is a header over a hole of the data's size, and the plan
 * backend packs without looking at numbers, so the full sizes cost nothing. */
#include <cjson/cJSON.h>
#include <unistd.h>

#include "json.h"
#include "networks.h"
#include "plan.h"
#include "region.h"
#include "tensor_list.h"
#include "test.h"

static const char published[] = "tests/unit/data/published";

/* One published component: where its files are for now, and what is in them. */
struct component {
    const char *kind; /* "unet", "vae", "text_encoder", "text_encoder_2", "safety_checker", "image_encoder" */
    char dir[64];
    const cJSON *config;
    struct entries list;
};

/* ---- The lists ---- */

static void read_extra(struct entries *l, const cJSON *extra)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, extra)
    {
        char shape[64] = "";
        const cJSON *dim;
        cJSON_ArrayForEach(dim, cJSON_GetArrayItem(item, 1)) snprintf(
            shape + strlen(shape), sizeof shape - strlen(shape), "%s%d", *shape ? ", " : "", dim->valueint);
        add_entry(l, item->string, shape, "I64", 8, true);
    }
}

/* ---- The files ---- */

/* Writes the weights without the entry LEFT_OUT (negative: all). */
static void write_weights(const struct component *c, int left_out)
{
    char path[256];
    bool diffusers = strcmp(c->kind, "unet") == 0 || strcmp(c->kind, "vae") == 0;
    snprintf(path, sizeof path, "%s/%s.fp16.safetensors", c->dir,
             diffusers ? "diffusion_pytorch_model" : "model");
    write_list(&c->list, left_out, path);
}

static void write_config(const struct component *c)
{
    char path[256], *text = cJSON_Print(c->config);
    snprintf(path, sizeof path, "%s/config.json", c->dir);
    FILE *f = fopen(path, "wb");
    if (!f || !text || fputs(text, f) < 0 || fclose(f) != 0)
        abort();
    cJSON_free(text);
}

static void open_component(struct component *c, const char *kind, const cJSON *json)
{
    *c = (struct component){.kind = kind, .config = cJSON_GetObjectItem(json, "config")};
    strcpy(c->dir, "/tmp/latentd-test-XXXXXX");
    if (!mkdtemp(c->dir))
        abort();
    read_list(&c->list, published, cJSON_GetObjectItem(json, "tensors")->valuestring);
    read_extra(&c->list, cJSON_GetObjectItem(json, "extra"));
    write_config(c);
    write_weights(c, -1);
}

static void close_component(struct component *c)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", c->dir);
    if (system(command) != 0)
        abort();
}

/* ---- Loading ---- */

struct networks {
    struct unet *unet;
    struct vae *vae;
    struct clip_text *text[2];
    struct safety_checker *checker;
    struct unet_video *unet_video;
    struct vae_video *vae_video;
    struct clip_vision *image_encoder;
};

/* Whether C is of the class NAME of diffusers. */
static bool is_class(const struct component *c, const char *name)
{
    const cJSON *class = cJSON_GetObjectItem(c->config, "_class_name");
    return class && strcmp(class->valuestring, name) == 0;
}

static int load(struct networks *n, struct backend *be, const struct component *c, struct error *err)
{
    if (is_class(c, "UNetSpatioTemporalConditionModel"))
        return unet_video_load(&n->unet_video, be, c->dir, "fp16", err);
    if (is_class(c, "AutoencoderKLTemporalDecoder"))
        return vae_video_load(&n->vae_video, be, c->dir, "fp16", err);
    if (strcmp(c->kind, "image_encoder") == 0)
        return clip_vision_load(&n->image_encoder, be, c->dir, "fp16", err);
    if (strcmp(c->kind, "unet") == 0)
        return unet_load(&n->unet, be, c->dir, "fp16", err);
    if (strcmp(c->kind, "vae") == 0)
        return vae_load(&n->vae, be, c->dir, "fp16", true, err);
    if (strcmp(c->kind, "safety_checker") == 0)
        return safety_checker_load(&n->checker, be, c->dir, "fp16", err);
    return clip_text_load(&n->text[strcmp(c->kind, "text_encoder") != 0], be, c->dir, "fp16", err);
}

static void close_networks(struct networks *n)
{
    unet_close(&n->unet);
    vae_close(&n->vae);
    clip_text_close(&n->text[0]);
    clip_text_close(&n->text[1]);
    safety_checker_close(&n->checker);
    unet_video_close(&n->unet_video);
    vae_video_close(&n->vae_video);
    clip_vision_close(&n->image_encoder);
}

/* A plan backend whose packed weights take four bytes a number. */
static struct backend *open_plan(void)
{
    struct backend *be = NULL;
    struct error err = {0};
    if (backend_open(&be, &(struct backend_options){.kind = "plan"}, &err) < 0)
        abort();
    plan_set_dtype(be, DTYPE_F32);
    return be;
}

/* All but what is read as numbers (tables of the vision tower, concepts, shares of a mixture), and what an
 * attention over one token does not need: checked like the rest and then left alone. */
static bool is_packed(const struct component *c, const struct entry *e)
{
    if (is_class(c, "UNetSpatioTemporalConditionModel") &&
        (strstr(e->name, "attn2.to_q") || strstr(e->name, "attn2.to_k") ||
         (strstr(e->name, "transformer_blocks") && strstr(e->name, ".norm2."))))
        return false;
    return !strstr(e->name, "mix_factor") && !strstr(e->name, "class_embedding") &&
           !strstr(e->name, "vision_model.embeddings.position_embedding") &&
           !strstr(e->name, "concept_embeds") && !strstr(e->name, "special_care_embeds");
}

/* Loads C into N and CHECKs that all that the list holds was packed. */
static void check_bound(struct networks *n, struct backend *be, const struct component *c,
                        const char *repository)
{
    struct error err = {0};
    size_t before = be->weight_bytes, numbers = 0;
    for (int i = 0; i < c->list.count; i++)
        numbers += !c->list.item[i].extra && is_packed(c, &c->list.item[i]) ? c->list.item[i].numbers : 0;
    CHECK(load(n, be, c, &err) == 0, "%s, %s: %s", repository, c->kind, err.msg);
    size_t packed = (be->weight_bytes - before) / sizeof(float);
    CHECK(packed == numbers, "%s, %s: %zu numbers are bound, its %d tensors hold %zu", repository, c->kind,
          packed, c->list.count, numbers);
}

static cJSON *read_published(const char *name)
{
    char path[256];
    struct error err = {0};
    snprintf(path, sizeof path, "%s/%s", published, name);
    cJSON *all = json_read_file(path, 1 << 20, &err);
    if (!all)
        abort();
    return all;
}

/* ---- Tests ---- */

/* What the parts of a whole model must say of each other. */
static const struct {
    const char *repository;
    int in_c, side;
    float scaling_factor;
} models[] = {
    {"runwayml/stable-diffusion-v1-5", 4, 512, 0.18215f},
    {"prompthero/openjourney-v4", 4, 512, 0.18215f},
    {"SG161222/Realistic_Vision_V6.0_B1_noVAE", 4, 512, 0.18215f},
    {"stabilityai/sd-turbo", 4, 512, 0.18215f},
    {"stabilityai/sdxl-turbo", 4, 512, 0.13025f},
    {"stabilityai/stable-diffusion-xl-base-1.0", 4, 1024, 0.13025f},
    {"SG161222/RealVisXL_V4.0", 4, 1024, 0.13025f},
    {"SG161222/RealVisXL_V4.0_Lightning", 4, 1024, 0.13025f},
    {"timbrooks/instruct-pix2pix", 8, 512, 0.18215f},
    {"stabilityai/stable-diffusion-x4-upscaler", 7, 512, 0.08333f},
};

static void check_fit(const struct networks *n, const char *repository)
{
    if (n->text[0] && (!n->unet || !n->vae)) /* told already */
        return;
    int width = n->text[0] ? clip_text_width(n->text[0]) : 0, pooled = 0;
    if (n->text[1]) {
        width += clip_text_width(n->text[1]);
        pooled = clip_text_projection(n->text[1]);
    }
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        if (strcmp(models[i].repository, repository) != 0)
            continue;
        CHECK(unet_cross_attention_dim(n->unet) == width && unet_pooled_dim(n->unet) == pooled, "%s",
              repository);
        CHECK(unet_in_channels(n->unet) == models[i].in_c && vae_latent_channels(n->vae) == 4, "%s",
              repository);
        CHECK(unet_sample_size(n->unet) * vae_scale(n->vae) == models[i].side, "%s", repository);
        CHECK(vae_scaling_factor(n->vae) == models[i].scaling_factor && vae_shift_factor(n->vae) == 0, "%s",
              repository);
        CHECK(unet_time_ids(n->unet) == (pooled ? 6 : 0) && clip_text_projection(n->text[0]) == 0, "%s",
              repository);
        return;
    }
    CHECK(!n->text[0], "%s has no row above", repository);
}

static void check_video_fit(const struct networks *n, const char *repository)
{
    if (!n->vae_video || !n->image_encoder)
        return; /* told already */
    const struct unet_video *u = n->unet_video;
    bool short_one = strcmp(repository, "stabilityai/stable-video-diffusion-img2vid") == 0;
    CHECK(unet_video_frames(u) == (short_one ? 14 : 25) && unet_video_ids(u) == 3, "%s", repository);
    CHECK(unet_video_in_channels(u) == 8 && unet_video_out_channels(u) == 4, "%s", repository);
    CHECK(unet_video_token_width(u) == clip_vision_projection(n->image_encoder), "%s", repository);
    CHECK(clip_vision_side(n->image_encoder) == 224, "%s", repository);
    CHECK(unet_video_sample_size(u) * vae_video_scale(n->vae_video) == 768, "%s", repository);
    CHECK(vae_video_latent_channels(n->vae_video) == 4 && vae_video_force_upcast(n->vae_video) &&
              vae_video_scaling_factor(n->vae_video) == 0.18215f,
          "%s", repository);
}

TEST(all_tensors_of_published_repositories_are_bound)
{
    static struct component c;
    cJSON *all = read_published("published.json");
    const cJSON *repository, *part;
    cJSON_ArrayForEach(repository, all)
    {
        struct backend *be = open_plan();
        struct networks n = {0};
        cJSON_ArrayForEach(part, repository)
        {
            open_component(&c, part->string, part);
            check_bound(&n, be, &c, repository->string);
            close_component(&c);
        }
        if (n.unet_video)
            check_video_fit(&n, repository->string);
        else
            check_fit(&n, repository->string);
        close_networks(&n);
        CHECK(be->weight_bytes == 0, "%zu bytes of weights are left", be->weight_bytes);
        backend_close(&be);
    }
    cJSON_Delete(all);
}

/* The sums above could hide one tensor bound twice in place of another. Here some are left out in turn,
 * and must be missed by its name. */
static void check_missed(const cJSON *all, const char *repository, const char *kind)
{
    static struct component c;
    struct backend *be = open_plan();
    open_component(&c, kind, cJSON_GetObjectItem(cJSON_GetObjectItem(all, repository), kind));
    int step = c.list.count / 40 + 1;
    for (int i = step / 2; i < c.list.count; i += step) {
        const struct entry *e = &c.list.item[i];
        struct networks n = {0};
        struct error err = {0};
        char words[NAME_MAX_LENGTH + 32];
        write_weights(&c, i);
        snprintf(words, sizeof words, "\"%s\" is missing", e->name);
        int rc = load(&n, be, &c, &err);
        CHECK(e->extra ? rc == 0 : rc == ERR_FORMAT && strstr(err.msg, words) != NULL, "without %s: %d %s",
              e->name, rc, err.msg);
        close_networks(&n);
    }
    close_component(&c);
    backend_close(&be);
}

TEST(a_tensor_that_is_left_out_is_missed)
{
    cJSON *all = read_published("published.json");
    check_missed(all, "runwayml/stable-diffusion-v1-5", "unet");
    check_missed(all, "runwayml/stable-diffusion-v1-5", "text_encoder");
    check_missed(all, "runwayml/stable-diffusion-v1-5", "safety_checker");
    check_missed(all, "stabilityai/sd-turbo", "vae");
    check_missed(all, "stabilityai/sd-turbo", "text_encoder");
    check_missed(all, "stabilityai/stable-diffusion-xl-base-1.0", "unet");
    check_missed(all, "stabilityai/stable-diffusion-xl-base-1.0", "text_encoder_2");
    check_missed(all, "stabilityai/stable-video-diffusion-img2vid-xt", "unet");
    check_missed(all, "stabilityai/stable-video-diffusion-img2vid-xt", "vae");
    check_missed(all, "stabilityai/stable-video-diffusion-img2vid-xt", "image_encoder");
    cJSON_Delete(all);
}

/* One pass of the network in N over SIZE = [N, H, W] on the plan backend: FLOPs of all its ops. */
static double walk(const struct networks *n, struct backend *be, bool encoder, const int size[3])
{
    static struct region none;
    static const float zeros[3 * 6];
    struct error err = {0};
    pass p = {.be = be, .mem = &none, .err = &err};
    region_init(&none, NULL, SIZE_MAX);
    plan_reset(be);
    if (n->unet) {
        int pooled = unet_pooled_dim(n->unet);
        tensor text = tensor_new(&p, size[0], 1, 77, unet_cross_attention_dim(n->unet), pass_dtype(&p));
        struct unet_conditions c = {.text = text, .timesteps = zeros, .count = 1};
        if (pooled) {
            c.pooled = tensor_new(&p, size[0], 1, 1, pooled, pass_dtype(&p));
            c.time_ids = zeros;
        }
        tensor x = tensor_new(&p, size[0], size[1], size[2], unet_in_channels(n->unet), DTYPE_F32);
        struct unet_request *req = unet_begin(&p, n->unet, &c);
        unet_forward(&p, n->unet, req, x, 0);
        unet_end(&p, &req);
    } else if (n->vae) {
        int c = encoder ? 3 : vae_latent_channels(n->vae);
        tensor x = tensor_new(&p, size[0], size[1], size[2], c, DTYPE_F32);
        encoder ? vae_encode(&p, n->vae, x) : vae_decode(&p, n->vae, x);
    } else {
        int32_t ids[2 * 77] = {0};
        tensor pooled;
        if (n->text[1])
            clip_text_forward_penultimate(&p, n->text[1], ids, size[0], &pooled);
        else
            clip_text_forward(&p, n->text[0], ids, size[0]);
    }
    CHECK(err.code == 0, "%s", err.msg);
    return plan_report(be)->total.flops;
}

TEST(work_of_a_pass_is_what_pytorch_counts)
{
    static struct component c;
    cJSON *all = read_published("published.json"), *walks = read_published("walks.json");
    const cJSON *row;
    cJSON_ArrayForEach(row, walks)
    {
        const char *repository = cJSON_GetArrayItem(row, 0)->valuestring;
        const char *kind = cJSON_GetArrayItem(row, 1)->valuestring;
        bool encoder = strcmp(cJSON_GetArrayItem(row, 2)->valuestring, "encoder") == 0;
        double want = cJSON_GetArrayItem(row, 4)->valuedouble;
        int size[3];
        for (int i = 0; i < 3; i++)
            size[i] = cJSON_GetArrayItem(cJSON_GetArrayItem(row, 3), i)->valueint;
        struct backend *be = open_plan();
        struct networks n = {0};
        struct error err = {0};
        open_component(&c, kind, cJSON_GetObjectItem(cJSON_GetObjectItem(all, repository), kind));
        if (CHECK(load(&n, be, &c, &err) == 0, "%s, %s: %s", repository, kind, err.msg)) {
            double flops = walk(&n, be, encoder, size);
            CHECK(flops == want, "%s, %s %dx%dx%d: %.0f FLOPs, expected %.0f", repository, kind, size[0],
                  size[1], size[2], flops, want);
        }
        close_networks(&n);
        close_component(&c);
        backend_close(&be);
    }
    cJSON_Delete(walks);
    cJSON_Delete(all);
}

TEST_MAIN()
