/* The stages of a whole model folder, each fed with the reference's own inputs: text states from token ids,
 * one UNet call, the decoded picture. The model is the shipped one, unless GOLDEN_MODEL and GOLDEN_DATA name
 * another folder and its golden values, as scripts/parity.py does for models of full size. */
#include <time.h>

#include "golden.h"
#include "networks.h"

static const char *from_env(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

/* MODEL/NAME */
static const char *component(const char *name)
{
    static char path[1024];
    snprintf(path, sizeof(path), "%s/%s", from_env("GOLDEN_MODEL", "models/latentd/emoji"), name);
    return path;
}

/* The sum of a file's 32-bit words, each times its place counted from 1: tells one export of a model from
 * another. */
static uint32_t fingerprint(const char *path)
{
    uint32_t sum = 0, place = 0;
    unsigned char word[4] = {0};
    FILE *f = fopen(path, "rb");
    while (f && fread(word, 1, 4, f) > 0) {
        sum +=
            ++place * (word[0] | (uint32_t)word[1] << 8 | (uint32_t)word[2] << 16 | (uint32_t)word[3] << 24);
        memset(word, 0, 4);
    }
    if (f)
        fclose(f);
    return sum;
}

/* Without this, golden values of another export of the model would look like wrong kernels. */
static void check_fingerprint(const struct golden *g, const char *name, const char *file)
{
    char path[1100], key[64];
    snprintf(key, sizeof(key), "%s.fingerprint", name);
    snprintf(path, sizeof(path), "%s/%s", component(name), file);
    const struct golden_array *want = golden_find(g, -1, key);
    CHECK(want && (uint32_t)want->i[0] == fingerprint(path),
          "%s is not the file that the golden values were made from: run scripts/export_goldens.py --only "
          "emoji",
          path);
}

TEST(golden_values_belong_to_the_model)
{
    struct golden g;
    if (getenv("GOLDEN_MODEL") || !golden_open(&g, "tests/golden/data/emoji"))
        return;
    check_fingerprint(&g, "text_encoder", "model.safetensors");
    check_fingerprint(&g, "unet", "diffusion_pytorch_model.safetensors");
    check_fingerprint(&g, "vae", "diffusion_pytorch_model.safetensors");
    golden_close(&g);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void each_tier(void (*fn)(struct stage *s, const char *folder))
{
    golden_memory = getenv("GOLDEN_MODEL") ? (size_t)2 << 30 : (size_t)128 << 20;
    golden_each_tier(fn, from_env("GOLDEN_DATA", "tests/golden/data/emoji"));
}

/* Compares, and says how long the stage took and how much memory. */
static void finish(struct stage *s, const struct golden *g, const char *what, tensor y, double started)
{
    char error[64];
    double took = seconds() - started;
    snprintf(error, sizeof(error), "%s.bf16_error", what);
    golden_compare(s, what, y, golden_find(g, -1, what), golden_find(g, -1, error)->f[0]);
    printf("  %-19s %-24s %.2f s, %.0f MiB of job memory, %.0f MiB of weights\n", s->name, what, took,
           (double)s->mem.peak / 1048576, (double)s->be->weight_bytes / 1048576);
}

static void check_states(struct stage *s, const char *folder)
{
    struct golden g;
    struct clip_text *net = NULL;
    if (!golden_open(&g, folder))
        return;
    const struct golden_array *ids = golden_find(&g, -1, "ids");
    bool two = golden_find(&g, -1, "ids_2") != NULL; /* SDXL */
    if (CHECK(clip_text_load(&net, s->be, component("text_encoder"), NULL, &s->err) == 0, "%s", s->err.msg)) {
        double started = seconds();
        tensor y = two ? clip_text_forward_penultimate(&s->p, net, ids->i, ids->shape[0], NULL)
                       : clip_text_forward(&s->p, net, ids->i, ids->shape[0]);
        finish(s, &g, "states", y, started);
    }
    clip_text_close(&net);
    ids = two ? golden_find(&g, -1, "ids_2") : NULL;
    if (two && CHECK(clip_text_load(&net, s->be, component("text_encoder_2"), NULL, &s->err) == 0, "%s",
                     s->err.msg)) {
        tensor pooled = {0};
        double started = seconds();
        finish(s, &g, "states_2", clip_text_forward_penultimate(&s->p, net, ids->i, ids->shape[0], &pooled),
               started);
        finish(s, &g, "pooled", pooled, started);
    }
    clip_text_close(&net);
    golden_close(&g);
}

/* The text as the UNet reads it: [N, 1, T, C], of two encoders side by side. */
static tensor text_of(struct stage *s, const struct golden *g)
{
    const struct golden_array *a = golden_find(g, -1, "states");
    tensor text = tensor_from_host(&s->p, a->f, a->shape[0], 1, a->shape[1], a->shape[2], pass_dtype(&s->p));
    if (!golden_find(g, -1, "states_2"))
        return text;
    a = golden_find(g, -1, "states_2");
    return concat_channels(
        &s->p, text,
        tensor_from_host(&s->p, a->f, a->shape[0], 1, a->shape[1], a->shape[2], pass_dtype(&s->p)));
}

static void check_noise(struct stage *s, const char *folder)
{
    struct golden g;
    struct unet *net = NULL;
    if (!golden_open(&g, folder))
        return;
    const struct golden_array *x = golden_find(&g, -1, "x"), *pooled = NULL;
    const int *d = x->shape;
    if (CHECK(unet_load(&net, s->be, component("unet"), NULL, &s->err) == 0, "%s", s->err.msg)) {
        double started = seconds();
        struct unet_conditions c = {.timesteps = golden_find(&g, -1, "t")->f, .count = 1};
        c.text = text_of(s, &g);
        if (golden_find(&g, -1, "pooled") != NULL) {
            pooled = golden_find(&g, -1, "pooled");
            c.pooled = tensor_from_host(&s->p, pooled->f, d[0], 1, 1, pooled->shape[1], pass_dtype(&s->p));
            c.time_ids = golden_find(&g, -1, "time_ids")->f;
        }
        tensor sample = tensor_from_host(&s->p, x->f, d[0], d[1], d[2], d[3], DTYPE_F32);
        struct unet_request *req = unet_begin(&s->p, net, &c);
        finish(s, &g, "noise", unet_forward(&s->p, net, req, sample, 0), started);
        unet_end(&s->p, &req);
    }
    unet_close(&net);
    golden_close(&g);
}

static void check_picture(struct stage *s, const char *folder)
{
    struct golden g;
    struct vae *net = NULL;
    if (!golden_open(&g, folder))
        return;
    const struct golden_array *z = golden_find(&g, -1, "z");
    const int *d = z->shape;
    if (CHECK(vae_load(&net, s->be, component("vae"), NULL, false, &s->err) == 0, "%s", s->err.msg)) {
        double started = seconds();
        tensor latents = tensor_from_host(&s->p, z->f, d[0], d[1], d[2], d[3], DTYPE_F32);
        finish(s, &g, "picture", vae_decode(&s->p, net, latents), started);
    }
    vae_close(&net);
    golden_close(&g);
}

static void check_moments(struct stage *s, const char *folder)
{
    struct golden g;
    struct vae *net = NULL;
    if (!golden_open(&g, folder))
        return;
    const struct golden_array *x = golden_find(&g, -1, "pixels");
    const int *d = x->shape;
    if (CHECK(vae_load(&net, s->be, component("vae"), NULL, true, &s->err) == 0, "%s", s->err.msg)) {
        double started = seconds();
        tensor pixels = tensor_from_host(&s->p, x->f, d[0], d[1], d[2], d[3], DTYPE_F32);
        finish(s, &g, "moments", vae_encode(&s->p, net, pixels), started);
    }
    vae_close(&net);
    golden_close(&g);
}

TEST(text_states)
{
    each_tier(check_states);
}

TEST(unet_call)
{
    each_tier(check_noise);
}

TEST(decoded_picture)
{
    each_tier(check_picture);
}

TEST(encoded_picture)
{
    each_tier(check_moments);
}

TEST_MAIN()
