/* Safety checkers in the pipelines: who runs when, and what becomes of the picture. The model is the API
 * tests' tiny one, the checkers are the golden tests' with thresholds that find everything or nothing. Runs
 * on every tier. */
#include "test.h"

#include <unistd.h>

#include "checker.h"
#include "log.h"
#include "pipeline.h"
#include "tier.h"

#define SAFETY_NAME "CompVis/stable-diffusion-safety-checker"

static char root[64];

#define SHELL(...)                                                                                           \
    do {                                                                                                     \
        char command[512];                                                                                   \
        must(snprintf(command, sizeof command, __VA_ARGS__) < (int)sizeof command && system(command) == 0);  \
    } while (0)

static void write_index(const char *path, bool checker)
{
    FILE *f = fopen(path, "wb");
    must(f != NULL);
    fprintf(f,
            "{\"_class_name\": \"StableDiffusionPipeline\", \"scheduler\": [\"a\", \"PNDMScheduler\"], "
            "\"tokenizer\": [\"a\", \"b\"], \"text_encoder\": [\"a\", \"b\"], \"unet\": [\"a\", \"b\"], "
            "\"vae\": [\"a\", "
            "\"b\"], \"safety_checker\": %s}\n",
            checker ? "[\"stable_diffusion\", \"StableDiffusionSafetyChecker\"]" : "[null, null]");
    must(fclose(f) == 0);
}

/* MODEL_DIR with the tiny model as latentd/tiny, its own checker, and that of MODEL_DIR. */
static void make_root(int own, int asked)
{
    char dir[160], index[192];
    strcpy(root, "/tmp/latentd-test-XXXXXX");
    must(mkdtemp(root) != NULL);
    SHELL("mkdir %s/latentd && cp -r tests/api/data/latentd/tiny %s/latentd/tiny", root, root);
    snprintf(index, sizeof index, "%s/latentd/tiny/model_index.json", root);
    write_index(index, own != NONE);
    if (own != NONE) {
        snprintf(dir, sizeof dir, "%s/latentd/tiny/safety_checker", root);
        SHELL("cp -r " CHECKER " %s && mkdir %s/../feature_extractor && mv %s/preprocessor_config.json "
              "%s/../feature_extractor/",
              dir, dir, dir, dir);
        checker_finds(dir, own);
    }
    if (asked != NONE) {
        snprintf(dir, sizeof dir, "%s/CompVis/stable-diffusion-safety-checker", root);
        SHELL("mkdir %s/CompVis && cp -r " CHECKER " %s", root, dir);
        checker_finds(dir, asked);
    }
}

static bool is_black(const struct image *im)
{
    for (int i = 0; i < 3 * im->width * im->height; i++)
        if (im->rgb[i])
            return false;
    return true;
}

/* One picture: the one that WANT is, or a black one. */
static void check(struct model *m, const char *what, bool ask, bool nsfw, bool black,
                  const struct image *want)
{
    struct error err = {0};
    struct image im = {0};
    struct text_to_image_params q = {.prompt = "a cat",
                                     .safety_check = ask,
                                     .width = 32,
                                     .height = 24,
                                     .guidance_scale = 1,
                                     .steps = 2,
                                     .seed = 7};
    if (CHECK(text_to_image(m, &q, NULL, &im, &err) == 0, "%s: %s", what, err.msg)) {
        CHECK(im.nsfw == nsfw, "%s: nsfw is %d", what, im.nsfw);
        CHECK(is_black(&im) == black, "%s: black is %d", what, !black);
        if (!black)
            CHECK(memcmp(im.rgb, want->rgb, 3 * 32 * 24) == 0, "%s: another picture", what);
    }
    image_free(&im);
}

static struct model *open_model(struct backend *be)
{
    struct model *m = NULL;
    struct error err = {0};
    struct model_options from = {.dir = root, .id = "latentd/tiny"};
    CHECK(model_load(&m, be, &from, &err) == 0, "%s", err.msg);
    return m;
}

static void plain_picture(struct backend *be, struct image *out)
{
    struct error err = {0};
    struct text_to_image_params q = {
        .prompt = "a cat", .width = 32, .height = 24, .guidance_scale = 1, .steps = 2, .seed = 7};
    make_root(NONE, NONE);
    struct model *m = open_model(be);
    if (m)
        CHECK(text_to_image(m, &q, NULL, out, &err) == 0 && !out->nsfw, "%s", err.msg);
    model_close(&m);
    SHELL("rm -r %s", root);
}

static const struct {
    const char *what;
    int own, asked;
    bool ask, nsfw, black;
} cases[] = {
    {"no checker", NONE, NONE, true, false, false},
    {"asked, and it finds", NONE, FINDS_ALL, true, true, false},
    {"asked, and it does not", NONE, FINDS_NOTHING, true, false, false},
    {"not asked", NONE, FINDS_ALL, false, false, false},
    {"own finds, asked", FINDS_ALL, NONE, true, true, true},
    {"own finds, not asked", FINDS_ALL, NONE, false, true, true},
    {"own does not", FINDS_NOTHING, NONE, true, false, false},
    {"own does not, the other does", FINDS_NOTHING, FINDS_ALL, true, true, false},
    {"own does not, the other is not asked", FINDS_NOTHING, FINDS_ALL, false, false, false},
    {"own finds, the other is the same", FINDS_ALL, FINDS_ALL, true, true, true},
};

static void check_tier(struct backend *be)
{
    struct image plain = {0};
    plain_picture(be, &plain);
    for (size_t i = 0; plain.rgb && i < sizeof cases / sizeof *cases; i++) {
        make_root(cases[i].own, cases[i].asked);
        struct model *m = open_model(be);
        if (m)
            check(m, cases[i].what, cases[i].ask, cases[i].nsfw, cases[i].black, &plain);
        model_close(&m);
        CHECK(be->weight_bytes == 0, "%zu bytes of weights are left", be->weight_bytes);
        SHELL("rm -r %s", root);
    }
    image_free(&plain);
}

TEST(who_runs_and_what_becomes_of_the_picture)
{
    for (int i = 0; i < TIER_NAMES; i++) {
        struct backend_options opt = tier_options(tier_names[i]);
        struct backend *be = NULL;
        struct error err = {0};
        if (!tier_wanted(tier_names[i]) || backend_open(&be, &opt, &err) < 0)
            continue;
        printf("  %s\n", tier_names[i]);
        check_tier(be);
        backend_close(&be);
    }
}

/* SAFETY_CHECKER_DEVICE=cpu: the same answers, and on a GPU none of the checker's weights. */
TEST(checkers_on_the_cpu)
{
    for (int i = 0; i < TIER_NAMES; i++) {
        struct backend_options opt = tier_options(tier_names[i]);
        struct backend *be = NULL;
        struct error err = {0};
        if (!tier_wanted(tier_names[i]) || backend_open(&be, &opt, &err) < 0)
            continue;
        struct image plain = {0};
        plain_picture(be, &plain);
        make_root(NONE, NONE);
        struct model *m = open_model(be);
        size_t without = be->weight_bytes;
        model_close(&m);
        SHELL("rm -r %s", root);
        for (int found = 0; found < 2 && plain.rgb; found++) {
            make_root(FINDS_NOTHING, found ? FINDS_ALL : NONE);
            struct model_options from = {.dir = root, .id = "latentd/tiny", .safety_on_cpu = true};
            if (CHECK(model_load(&m, be, &from, &err) == 0, "%s", err.msg)) {
                check(m, tier_names[i], true, found, false, &plain);
                check(m, tier_names[i], true, found, false, &plain);
                CHECK((be->weight_bytes == without) == (be->upload != NULL), "%zu bytes of weights on %s",
                      be->weight_bytes, tier_names[i]);
            }
            model_close(&m);
            SHELL("rm -r %s", root);
        }
        CHECK(be->weight_bytes == 0, "%zu bytes of weights are left", be->weight_bytes);
        image_free(&plain);
        backend_close(&be);
    }
}

static size_t planned(struct model *m, bool ask)
{
    struct plan_report report;
    struct error err = {0};
    struct text_to_image_params q = {
        .prompt = "x", .safety_check = ask, .width = 8, .height = 8, .guidance_scale = 1, .steps = 1};
    return CHECK(text_to_image_plan(m, &q, &report, &err) == 0, "%s", err.msg)
               ? (size_t)report.op[OP_layer_norm].calls
               : 0;
}

/* The checker is part of the plan; one that repeats the model's own is not kept, one that cannot be read is
 * an error. */
TEST(loading)
{
    struct backend *be = NULL;
    struct error err = {0};
    struct model *m = NULL;
    struct model_options from = {.dir = root, .id = "latentd/tiny"};
    must(backend_open(&be, &(struct backend_options){.kind = "ref"}, &err) == 0);
    make_root(NONE, FINDS_ALL);
    m = open_model(be);
    if (m)
        CHECK(planned(m, true) == planned(m, false) + 6, "%zu %zu", planned(m, true), planned(m, false));
    size_t one = be->weight_bytes;
    model_close(&m);
    SHELL("rm -r %s", root);
    make_root(FINDS_ALL, FINDS_ALL);
    m = open_model(be);
    CHECK(be->weight_bytes == one, "%zu bytes of weights, with one checker %zu", be->weight_bytes, one);
    model_close(&m);
    SHELL("truncate -s 1000 %s/CompVis/stable-diffusion-safety-checker/model.safetensors", root);
    CHECK(model_load(&m, be, &from, &err) == ERR_FORMAT && strstr(err.msg, SAFETY_NAME), "%s", err.msg);
    err = (struct error){0};
    SHELL("rm -r %s/latentd/tiny/safety_checker", root);
    CHECK(model_load(&m, be, &from, &err) == ERR_NOT_FOUND && strstr(err.msg, "safety_checker"), "%s",
          err.msg);
    /* a pickle alone: as if it were not there */
    SHELL("rm -r %s", root);
    make_root(NONE, FINDS_ALL);
    SHELL("cd %s/CompVis/stable-diffusion-safety-checker && mv model.safetensors pytorch_model.bin", root);
    m = open_model(be);
    if (m)
        CHECK(planned(m, true) == planned(m, false));
    model_close(&m);
    SHELL("rm -r %s", root);
    backend_close(&be);
}

TEST_MAIN()
