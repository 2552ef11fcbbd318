/* LoRAs against diffusers and PEFT, on every tier: each naming, linear layers and convolutions, several at
 * once, both model families; and the originals back afterwards, byte for byte. */
#include "golden.h"
#include "log.h"
#include "networks.h"
#include "pipeline.h"
#include "thread_pool.h"
#include "weights.h"

#define DATA "tests/golden/data/"
#define LORA DATA "lora/"

struct base {
    struct unet *unet;
    struct clip_text *text, *text_2;
    struct lora_shelf *shelf;
};

static bool base_open(struct stage *s, struct base *b, bool xl)
{
    *b = (struct base){0};
    struct lora_shelf_options opt = {.root = LORA "shelf", .base = "test/base", .pool = s->be->pool};
    bool ok = unet_load(&b->unet, s->be, xl ? DATA "unet_sdxl" : DATA "unet_sd1", NULL, &s->err) == 0 &&
              clip_text_load(&b->text, s->be, DATA "text_quick_gelu", NULL, &s->err) == 0 &&
              (!xl || clip_text_load(&b->text_2, s->be, DATA "text_projection_eos", NULL, &s->err) == 0);
    if (ok) {
        opt.list[LORA_UNET] = unet_weights(b->unet);
        opt.list[LORA_TEXT] = clip_text_weights(b->text);
        opt.list[LORA_TEXT_2] = xl ? clip_text_weights(b->text_2) : NULL;
        ok = lora_shelf_open(&b->shelf, &opt, &s->err) == 0;
    }
    return CHECK(ok, "%s", s->err.msg);
}

static void base_close(struct stage *s, struct base *b)
{
    lora_shelf_close(&b->shelf, s->be);
    unet_close(&b->unet);
    clip_text_close(&b->text);
    clip_text_close(&b->text_2);
}

/* Prepares and applies; 0 or the error's code. */
static int apply(struct stage *s, struct base *b, const struct lora_use *use, int count,
                 struct lora_need *need)
{
    int rc = lora_shelf_prepare(b->shelf, s->be->dtype, use, count, need, &s->err);
    return rc ? rc : lora_shelf_apply(b->shelf, &s->p, &s->err);
}

static tensor host(pass *p, const struct golden_array *a, enum dtype dtype)
{
    if (!a)
        return (tensor){0};
    const int *d = a->shape;
    return tensor_from_host(p, a->f, d[0], a->dims == 4 ? d[1] : 1, a->dims == 2 ? 1 : d[a->dims - 2],
                            d[a->dims - 1], dtype);
}

static tensor run_unet(struct stage *s, const struct base *b, const struct golden *g, int run)
{
    pass *p = &s->p;
    const struct golden_array *ids = golden_find(g, run, "time_ids");
    float t = 501;
    tensor x = host(p, golden_find(g, run, "x"), DTYPE_F32);
    struct unet_conditions c = {.text = host(p, golden_find(g, run, "text"), pass_dtype(p)),
                                .timesteps = &t,
                                .count = 1,
                                .pooled = host(p, golden_find(g, run, "pooled"), pass_dtype(p)),
                                .time_ids = ids ? ids->f : NULL};
    struct unet_request *req = unet_begin(p, b->unet, &c);
    pass_step_begin(p);
    tensor y = unet_forward(p, b->unet, req, x, 0);
    pass_step_end(p);
    unet_end(p, &req);
    tensor_free(p, &x);
    tensor_free(p, &c.text);
    tensor_free(p, &c.pooled);
    return y;
}

static void compare(struct stage *s, const char *what, tensor y, const struct golden *g, int run,
                    const char *name)
{
    char error[32], label[48];
    snprintf(error, sizeof(error), "%s.error", name);
    snprintf(label, sizeof(label), "%d %.20s %s", run, what, name);
    const struct golden_array *want = golden_find(g, run, name), *e = golden_find(g, run, error);
    if (CHECK(want && e, "%s", name))
        golden_compare(s, label, y, want, e->f[0]);
    tensor_free(&s->p, &y);
}

/* A line of runs.txt: base, then LoRAs with strengths. */
static bool read_run(FILE *f, bool *xl, struct lora_use *use, char id[][64], int *count)
{
    char line[256], base[8];
    int at = 0, n;
    if (!fgets(line, sizeof(line), f) || sscanf(line, "%7s%n", base, &at) != 1)
        return false;
    *xl = strcmp(base, "xl") == 0;
    for (*count = 0; *count < 4 && sscanf(line + at, "%63s %f%n", id[*count], &use[*count].strength, &n) == 2;
         at += n) {
        use[*count].id = id[*count];
        ++*count;
    }
    return true;
}

static void compare_run(struct stage *s, struct base *b, const struct golden *g, int run, bool xl,
                        const char *what)
{
    compare(s, what, run_unet(s, b, g, run), g, run, "unet");
    stage_reset(s);
    compare(s, what, clip_text_forward(&s->p, b->text, golden_find(g, run, "ids")->i, 1), g, run, "states");
    stage_reset(s);
    if (xl)
        compare(s, what, clip_text_forward(&s->p, b->text_2, golden_find(g, run, "ids_2")->i, 1), g, run,
                "states_2");
    stage_reset(s);
}

static void each_run(struct stage *s, const char *folder)
{
    struct golden g;
    struct base base[2] = {{0}};
    log_set_level(LOG_LEVEL_ERROR);
    FILE *f = fopen(LORA "runs.txt", "r");
    struct lora_use use[4];
    char id[4][64];
    bool xl, ok = golden_open(&g, folder) && CHECK(f != NULL) && base_open(s, &base[0], false) &&
                  base_open(s, &base[1], true);
    int count = 0, run = 0;
    for (; ok && read_run(f, &xl, use, id, &count); run++) {
        struct lora_need need;
        if (CHECK(apply(s, &base[xl], use, count, &need) == 0, "%s", s->err.msg))
            compare_run(s, &base[xl], &g, run, xl, count ? id[0] + 5 : "none");
        stage_reset(s);
    }
    CHECK(run >= 11);
    if (f)
        fclose(f);
    base_close(s, &base[0]);
    base_close(s, &base[1]);
    golden_close(&g);
}

TEST(every_naming_gives_what_diffusers_computes)
{
    golden_each_tier(each_run, DATA "lora");
}

/* ---- Back and forth ---- */

/* The UNet's output on the host. */
static float *unet_numbers(struct stage *s, struct base *b, const struct golden *g, size_t *bytes)
{
    tensor y = run_unet(s, b, g, 0);
    *bytes = tensor_count(y) * sizeof(float);
    float *out = malloc(*bytes);
    CHECK(out && tensor_to_host(&s->p, y, out) == 0, "%s", s->err.msg);
    stage_reset(s);
    return out;
}

static void check_same(struct stage *s, struct base *b, const struct golden *g, const float *want, bool same,
                       const char *when)
{
    size_t bytes;
    float *now = unet_numbers(s, b, g, &bytes);
    CHECK(now && (memcmp(now, want, bytes) == 0) == same, "%s: %s", s->name, when);
    free(now);
}

static void back_and_forth(struct stage *s, const char *folder)
{
    struct golden g;
    struct base b = {0};
    struct lora_need need;
    size_t bytes, held;
    if (!golden_open(&g, folder) || !base_open(s, &b, false)) {
        golden_close(&g);
        base_close(s, &b);
        return;
    }
    struct lora_use one = {"test/locon", 0.8f}, other = {"test/kohya", 1}, off = {"test/locon", 0},
                    missing = {"test/none", 1};
    float *plain = unet_numbers(s, &b, &g, &bytes), *with = NULL;
    CHECK(apply(s, &b, &one, 1, &need) == 0 && need.weights > 0 && need.region > 0, "%s", s->err.msg);
    held = s->be->weight_bytes;
    with = unet_numbers(s, &b, &g, &bytes);
    check_same(s, &b, &g, plain, false, "the LoRA changes nothing");
    CHECK(apply(s, &b, NULL, 0, &need) == 0);
    check_same(s, &b, &g, plain, true, "without LoRA afterwards");
    CHECK(apply(s, &b, &one, 1, &need) == 0 && need.weights == 0, "the last set is merged again");
    check_same(s, &b, &g, with, true, "with it again");
    CHECK(apply(s, &b, &off, 1, &need) == 0);
    check_same(s, &b, &g, plain, true, "strength 0");
    CHECK(apply(s, &b, &other, 1, &need) == 0);
    check_same(s, &b, &g, with, false, "another LoRA");
    CHECK(apply(s, &b, &missing, 1, &need) == ERR_LORA);
    stage_reset(s);
    CHECK(apply(s, &b, &one, 1, &need) == 0 && need.weights > 0);
    check_same(s, &b, &g, with, true, "the first again, after another and a failure");
    CHECK(s->be->weight_bytes == held, "%s: %zu bytes of weights, %zu before", s->name, s->be->weight_bytes,
          held);
    lora_shelf_drop(b.shelf, s->be);
    check_same(s, &b, &g, plain, true, "dropped");
    free(plain);
    free(with);
    base_close(s, &b);
    CHECK(s->be->weight_bytes == 0, "%s: %zu bytes of weights are left", s->name, s->be->weight_bytes);
    golden_close(&g);
}

TEST(without_a_lora_the_bytes_are_those_of_before)
{
    golden_each_tier(back_and_forth, DATA "lora");
}

TEST_MAIN()
