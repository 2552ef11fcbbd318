/* Every scheduler over whole trajectories against diffusers, under published configs: see
 * scripts/export_scheduler_goldens.py, whose fake model is repeated here. Then what configs and step counts
 * are refused. */
#include "test.h"

#include <dirent.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend.h"
#include "region.h"
#include "scheduler.h"

#define DATA "tests/golden/data/schedulers"

enum { MEMORY = 1 << 20 };

struct lab {
    struct backend *be;
    struct region region;
    void *memory;
    struct error err;
    pass p;
};

static void lab_open(struct lab *l)
{
    *l = (struct lab){0};
    struct backend_options opt = {.kind = "ref"};
    CHECK(backend_open(&l->be, &opt, &l->err) == 0, "%s", l->err.msg);
    l->memory = aligned_alloc(REGION_ALIGN, MEMORY);
    region_init(&l->region, l->memory, MEMORY);
    l->p = (pass){l->be, &l->region, &l->err};
}

static void lab_close(struct lab *l)
{
    CHECK(l->region.count == 0, "%d tensors were never given back", l->region.count);
    free(l->memory);
    backend_close(&l->be);
}

/* ---- goldens ---- */

struct golden {
    FILE *f;
    uint64_t seed;
    uint32_t shape[4]; /* N H W C */
    uint32_t version, runs;
    size_t count;
};

static int read_exact(FILE *f, void *to, size_t bytes)
{
    return fread(to, 1, bytes, f) == bytes;
}

/* VERSION 1: trajectory.bin, text-to-image; 2: strength.bin, image-to-image. */
static int golden_open(struct golden *g, const char *name, uint32_t version)
{
    char path[300], magic[4];
    snprintf(path, sizeof path, DATA "/%s/%s.bin", name, version == 1 ? "trajectory" : "strength");
    g->f = fopen(path, "rb");
    if (!CHECK(g->f, "%s", path))
        return 0;
    int ok = read_exact(g->f, magic, 4) && memcmp(magic, "LDTR", 4) == 0 &&
             read_exact(g->f, &g->version, 4) && g->version == version && read_exact(g->f, &g->seed, 8) &&
             read_exact(g->f, g->shape, 16) && read_exact(g->f, &g->runs, 4);
    g->count = (size_t)g->shape[0] * g->shape[1] * g->shape[2] * g->shape[3];
    return CHECK(ok, "%s is not a golden file", path);
}

/* 0.35 x + 0.2 w + 0.1 t / 1000 in fp32. */
static void fake_model(float *x, size_t count, float t)
{
    float shift = 0.1f * (t / 1000.0f);
    for (size_t k = 0; k < count; k++) {
        float w = ((float)(k * 37 % 64) - 31.5f) / 20.0f;
        x[k] = 0.35f * x[k] + 0.2f * w + shift;
    }
}

static double distance(const float *a, const float *b, size_t count)
{
    double off = 0, all = 0;
    for (size_t i = 0; i < count; i++) {
        off += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        all += (double)b[i] * (double)b[i];
    }
    return sqrt(off / (all > 0 ? all : 1));
}

static tensor call_model(pass *p, tensor input, float t)
{
    float host[256];
    tensor_to_host(p, input, host);
    fake_model(host, tensor_count(input), t);
    return tensor_from_host(p, host, input.n, input.h, input.w, input.c, DTYPE_F32);
}

/* What a run begins with: noise as strong as the first sigma, or a fixed picture with noise added. */
static tensor first_latents(struct lab *l, const struct scheduler *s, const struct golden *g,
                            struct noise *noise)
{
    pass *p = &l->p;
    int n = (int)g->shape[0], h = (int)g->shape[1], w = (int)g->shape[2], c = (int)g->shape[3];
    float host[256], sigma = scheduler_init_noise_sigma(s);
    tensor x, z = noise_draw(p, noise, n, h, w, c);
    if (g->version == 1) {
        x = lincomb(p, 1, &sigma, &z);
    } else {
        for (size_t k = 0; k < g->count; k++)
            host[k] = ((float)(k * 29 % 32) - 15.5f) / 16.0f;
        tensor image = tensor_from_host(p, host, n, h, w, c, DTYPE_F32);
        x = scheduler_add_noise(p, s, image, z);
        tensor_free(p, &image);
    }
    tensor_free(p, &z);
    return x;
}

/* Walks one run and returns the largest relative distance of its latents from the golden ones. */
static double walk(struct lab *l, struct scheduler *s, const struct golden *g, const float *path)
{
    struct noise noise = {.seed = g->seed, .round = DTYPE_F32};
    pass *p = &l->p;
    double worst = 0;
    float host[256];
    tensor x = first_latents(l, s, g, &noise);
    for (int i = 0;; i++) {
        tensor_to_host(p, x, host);
        double d = distance(host, path + (size_t)i * g->count, g->count);
        worst = d > worst ? d : worst;
        if (i == scheduler_calls(s) || l->err.code)
            break;
        tensor input = scheduler_scale_input(p, s, i, x);
        tensor e = call_model(p, input, scheduler_timesteps(s)[i]);
        tensor next = scheduler_step(p, s, i, e, x, &noise);
        tensor_free(p, &input);
        tensor_free(p, &e);
        tensor_free(p, &x);
        x = next;
    }
    tensor_free(p, &x);
    CHECK(l->err.code == 0, "%s", l->err.msg);
    return worst;
}

/* Timesteps that are whole numbers must be equal; those read off a curve go through a logarithm in fp32. */
static void compare_timesteps(const char *name, int steps, const float *got, const float *want, int calls)
{
    for (int i = 0; i < calls; i++) {
        float slack =
            got[i] == rintf(got[i]) && want[i] == rintf(want[i]) ? 0 : 2e-6f * fabsf(want[i]) + 2e-4f;
        if (!CHECK(fabsf(got[i] - want[i]) <= slack, "%s, %d steps, call %d: timestep %.9g, diffusers %.9g",
                   name, steps, i, (double)got[i], (double)want[i]))
            return;
    }
}

/* Reads and checks the next run of G. Returns the largest distance. */
static double check_run(struct lab *l, const char *name, const struct scheduler_config *c,
                        const struct golden *g)
{
    struct {
        int32_t calls;
        uint32_t latents;
        float sigma;
    } head;
    int32_t steps, skipped = 0;
    struct scheduler *s = NULL;
    struct error err = {0};
    double worst = 0;
    if (!CHECK(read_exact(g->f, &steps, 4) && (g->version == 1 || read_exact(g->f, &skipped, 4)) &&
               read_exact(g->f, &head, sizeof head)))
        return 1;
    int rc = scheduler_start(&s, c, steps, &err);
    if (g->version == 2 && rc == 0)
        rc = scheduler_skip(s, skipped, &err);
    if (head.calls < 0) {
        CHECK(rc == ERR_INVALID && err.msg[0], "%s: %d steps should be refused", name, steps);
        scheduler_end(&l->p, &s);
        return 0;
    }
    float *times = malloc((size_t)head.calls * 4), *path = malloc((size_t)(head.calls + 1) * g->count * 4);
    CHECK(read_exact(g->f, times, (size_t)head.calls * 4));
    CHECK(!head.latents || read_exact(g->f, path, (size_t)(head.calls + 1) * g->count * 4));
    if (CHECK(rc == 0, "%s: %s", name, err.msg) &&
        CHECK(scheduler_calls(s) == head.calls, "%s: %d calls, diffusers %d", name, scheduler_calls(s),
              head.calls)) {
        compare_timesteps(name, steps, scheduler_timesteps(s), times, head.calls);
        float sigma = scheduler_init_noise_sigma(s);
        CHECK(fabsf(sigma - head.sigma) <= 1e-6f * head.sigma, "%s: init_noise_sigma %.9g, diffusers %.9g",
              name, (double)sigma, (double)head.sigma);
        if (head.latents)
            worst = walk(l, s, g, path);
        /* From a first sigma of 4096 (zero terminal SNR) diffusers adds and takes away numbers that large in
         * fp32, and loses the digits below; here both are one coefficient, worked out in double. */
        double bound = fmax(1e-5, 3 * 0x1p-24 * (double)sigma);
        CHECK(worst < bound, "%s, %d steps: relative distance %.3g", name, steps, worst);
    }
    scheduler_end(&l->p, &s);
    free(times);
    free(path);
    return worst;
}

static void check_config(const char *name)
{
    struct lab l;
    struct golden g = {0};
    struct scheduler_config *c = NULL;
    char dir[300];
    double worst = 0;
    lab_open(&l);
    snprintf(dir, sizeof dir, DATA "/%s", name);
    CHECK(scheduler_config_load(&c, dir, &l.err) == 0, "%s", l.err.msg);
    for (uint32_t version = 1; c && version <= 2; version++) {
        if (!golden_open(&g, name, version))
            continue;
        for (uint32_t i = 0; i < g.runs; i++) {
            double d = check_run(&l, name, c, &g);
            worst = d > worst ? d : worst;
        }
        fclose(g.f);
    }
    if (c)
        printf("   %-30s %-32s %.1e\n", name, scheduler_config_class(c), worst);
    scheduler_config_close(&c);
    lab_close(&l);
}

TEST(trajectories_equal_diffusers)
{
    struct dirent **names = NULL;
    int n = scandir(DATA, &names, NULL, alphasort), seen = 0;
    for (int i = 0; i < n; i++) {
        if (names[i]->d_name[0] != '.') {
            check_config(names[i]->d_name);
            seen++;
        }
        free(names[i]);
    }
    free(names);
    CHECK(seen >= 110, "only %d golden configs", seen);
}

/* One run of C whose model outputs are pairs, guided by the op guide (INSIDE false) or inside the scheduler's
 * sums. OUT: its last latents. */
static void guided_run(struct lab *l, const struct scheduler_config *c, bool inside, float out[64])
{
    enum { STEPS = 6, COUNT = 64 };
    struct noise noise = {.seed = 5};
    struct scheduler *s = NULL;
    pass *p = &l->p;
    if (scheduler_start(&s, c, STEPS, &l->err))
        return;
    tensor x = noise_draw(p, &noise, 1, 4, 4, 4);
    for (int i = 0; i < scheduler_calls(s) && !l->err.code; i++) {
        float host[2 * COUNT];
        tensor_to_host(p, x, host);
        memcpy(host + COUNT, host, COUNT * sizeof *host);
        fake_model(host, COUNT, scheduler_timesteps(s)[i]);
        fake_model(host + COUNT, COUNT, 0.7f * scheduler_timesteps(s)[i] + 11);
        tensor pair = tensor_from_host(p, host, 2, 4, 4, 4, DTYPE_F32), next;
        if (inside) {
            next = scheduler_step_guided(p, s, i, pair, 7.5f, x, &noise);
        } else {
            tensor e = guide(p, pair, 7.5f);
            next = scheduler_step(p, s, i, e, x, &noise);
            tensor_free(p, &e);
        }
        tensor_free(p, &pair);
        tensor_free(p, &x);
        x = next;
    }
    tensor_to_host(p, x, out);
    tensor_free(p, &x);
    scheduler_end(p, &s);
}

TEST(guidance_inside_the_sums_gives_the_same_bits)
{
    struct dirent **names = NULL;
    int n = scandir(DATA, &names, NULL, alphasort), compared = 0;
    for (int i = 0; i < n; i++) {
        float apart[64] = {0}, inside[64] = {1};
        struct lab l;
        struct scheduler_config *c = NULL;
        char dir[300];
        lab_open(&l);
        snprintf(dir, sizeof dir, DATA "/%.200s", names[i]->d_name);
        if (names[i]->d_name[0] != '.' && scheduler_config_load(&c, dir, &l.err) == 0) {
            guided_run(&l, c, false, apart);
            if (l.err.code == 0) { /* some cannot take six steps */
                guided_run(&l, c, true, inside);
                CHECK(l.err.code == 0 && memcmp(apart, inside, sizeof apart) == 0, "%s: %s", names[i]->d_name,
                      l.err.msg);
                compared++;
            }
        }
        scheduler_config_close(&c);
        lab_close(&l);
        free(names[i]);
    }
    free(names);
    CHECK(compared >= 100, "only %d configs compared", compared);
}

/* ---- refusals ---- */

/* Loads the config TEXT. The caller closes *C. */
static int load_text(struct scheduler_config **c, const char *text, struct error *err)
{
    char dir[] = "/tmp/latentd-scheduler-XXXXXX", path[100];
    *c = NULL;
    *err = (struct error){0};
    if (!CHECK(mkdtemp(dir) != NULL))
        return ERR_IO;
    snprintf(path, sizeof path, "%s/scheduler_config.json", dir);
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
    int rc = scheduler_config_load(c, dir, err);
    unlink(path);
    rmdir(dir);
    return rc;
}

static void expect_refusal(const char *text, int code, const char *words)
{
    struct scheduler_config *c;
    struct error err;
    int rc = load_text(&c, text, &err);
    CHECK(rc == code && strstr(err.msg, words), "%s -> %d %s", text, rc, err.msg);
    CHECK(c == NULL);
    scheduler_config_close(&c);
}

TEST(bad_configs_are_refused_by_name)
{
    expect_refusal("", ERR_FORMAT, "JSON");
    expect_refusal("[]", ERR_FORMAT, "JSON");
    expect_refusal("{} x", ERR_FORMAT, "JSON");
    expect_refusal("{}", ERR_FORMAT, "_class_name");
    expect_refusal("{\"_class_name\": \"FlowMatchEulerDiscreteScheduler\"}", ERR_UNSUPPORTED,
                   "PNDMScheduler");
    expect_refusal("{\"_class_name\": \"FlowMatchEulerDiscreteScheduler\"}", ERR_UNSUPPORTED,
                   "FlowMatchEulerDiscreteScheduler");
    expect_refusal("{\"_class_name\": 3}", ERR_FORMAT, "_class_name");
    expect_refusal("{\"_class_name\": \"DDIMScheduler\", \"beta_schedule\": \"sigmoid\"}", ERR_UNSUPPORTED,
                   "scaled_linear");
    expect_refusal("{\"_class_name\": \"DDIMScheduler\", \"thresholding\": true}", ERR_UNSUPPORTED,
                   "thresholding");
    expect_refusal("{\"_class_name\": \"DDIMScheduler\", \"num_train_timesteps\": 0}", ERR_FORMAT,
                   "num_train_timesteps");
    expect_refusal("{\"_class_name\": \"DDIMScheduler\", \"num_train_timesteps\": 1e9}", ERR_FORMAT,
                   "num_train_timesteps");
    expect_refusal("{\"_class_name\": \"DDIMScheduler\", \"beta_end\": 1.5}", ERR_FORMAT, "beta_end");
    expect_refusal("{\"_class_name\": \"DDIMScheduler\", \"beta_end\": \"x\"}", ERR_FORMAT, "beta_end");
    expect_refusal("{\"_class_name\": \"DDIMScheduler\", \"trained_betas\": [0.1]}", ERR_FORMAT,
                   "trained_betas");
    expect_refusal(
        "{\"_class_name\": \"DDIMScheduler\", \"num_train_timesteps\": 2, \"trained_betas\": [0.1, \"a\"]}",
        ERR_FORMAT, "trained_betas");
    expect_refusal("{\"_class_name\": \"PNDMScheduler\", \"prediction_type\": \"sample\"}", ERR_UNSUPPORTED,
                   "prediction_type");
    expect_refusal(
        "{\"_class_name\": \"DPMSolverMultistepScheduler\", \"prediction_type\": \"flow_prediction\"}",
        ERR_UNSUPPORTED, "v_prediction");
    expect_refusal("{\"_class_name\": \"DPMSolverMultistepScheduler\", \"algorithm_type\": \"dpmsolver\"}",
                   ERR_UNSUPPORTED, "sigma_min");
    expect_refusal("{\"_class_name\": \"DPMSolverMultistepScheduler\", \"use_flow_sigmas\": true}",
                   ERR_UNSUPPORTED, "use_flow_sigmas");
    expect_refusal("{\"_class_name\": \"DPMSolverMultistepScheduler\", \"solver_order\": 4}", ERR_FORMAT,
                   "solver_order");
    expect_refusal("{\"_class_name\": \"DPMSolverMultistepScheduler\", \"variance_type\": \"learned\"}",
                   ERR_UNSUPPORTED, "variance_type");
    expect_refusal(
        "{\"_class_name\": \"DPMSolverSinglestepScheduler\", \"variance_type\": \"learned_range\"}",
        ERR_UNSUPPORTED, "variance_type");
    expect_refusal("{\"_class_name\": \"DPMSolverSDEScheduler\", \"noise_sampler_seed\": 3}", ERR_UNSUPPORTED,
                   "noise_sampler_seed");
    expect_refusal("{\"_class_name\": \"KDPM2DiscreteScheduler\", \"prediction_type\": \"sample\"}",
                   ERR_UNSUPPORTED, "KDPM2DiscreteScheduler");
    expect_refusal("{\"_class_name\": \"DDPMScheduler\", \"variance_type\": \"learned_range\"}",
                   ERR_UNSUPPORTED, "learned_range");
    expect_refusal("{\"_class_name\": \"DEISMultistepScheduler\", \"algorithm_type\": \"sde-dpmsolver++\"}",
                   ERR_UNSUPPORTED, "algorithm_type");
    expect_refusal(
        "{\"_class_name\": \"DPMSolverSinglestepScheduler\", \"algorithm_type\": \"sde-dpmsolver\"}",
        ERR_UNSUPPORTED, "algorithm_type");
    expect_refusal("{\"_class_name\": \"DPMSolverSinglestepScheduler\", \"algorithm_type\": \"dpmsolver\"}",
                   ERR_UNSUPPORTED, "sigma_min");
    expect_refusal("{\"_class_name\": \"EDMEulerScheduler\", \"sigma_min\": 90}", ERR_FORMAT, "sigma_max");
    expect_refusal("{\"_class_name\": \"EDMDPMSolverMultistepScheduler\", \"algorithm_type\": \"dpmsolver\"}",
                   ERR_UNSUPPORTED, "algorithm_type");
    expect_refusal("{\"_class_name\": \"UniPCMultistepScheduler\", \"solver_p\": {}}", ERR_UNSUPPORTED,
                   "solver_p");
    expect_refusal("{\"_class_name\": \"UniPCMultistepScheduler\", \"disable_corrector\": 3}",
                   ERR_UNSUPPORTED, "disable_corrector");
    expect_refusal("{\"_class_name\": \"UniPCMultistepScheduler\", \"disable_corrector\": [\"a\"]}",
                   ERR_FORMAT, "disable_corrector");
    expect_refusal("{\"_class_name\": \"EulerDiscreteScheduler\", \"use_beta_sigmas\": true, "
                   "\"use_exponential_sigmas\": true}",
                   ERR_FORMAT, "only one");
    expect_refusal("{\"_class_name\": \"EulerDiscreteScheduler\", \"use_karras_sigmas\": true, "
                   "\"use_exponential_sigmas\": true}",
                   ERR_FORMAT, "only one");
    expect_refusal("{\"_class_name\": \"EulerDiscreteScheduler\", \"timestep_spacing\": \"even\"}",
                   ERR_UNSUPPORTED, "trailing");
}

/* What DPMSolver….from_config(ddpm.config) saves: DDPM's variance_type stays in the file. */
TEST(fixed_variances_of_another_class_are_ignored)
{
    static const char *const classes[] = {"DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"};
    for (int i = 0; i < 2; i++) {
        struct scheduler_config *c;
        struct error err;
        char text[200];
        snprintf(text, sizeof text, "{\"_class_name\": \"%s\", \"variance_type\": \"fixed_small\"}",
                 classes[i]);
        CHECK(load_text(&c, text, &err) == 0, "%s", err.msg);
        scheduler_config_close(&c);
    }
}

TEST(missing_config_names_the_file)
{
    struct scheduler_config *c = NULL;
    struct error err = {0};
    CHECK(scheduler_config_load(&c, "/nonexistent", &err) == ERR_NOT_FOUND &&
              strstr(err.msg, "scheduler_config.json"),
          "%s", err.msg);
}

TEST(unknown_keys_and_nulls_and_python_numbers_are_taken)
{
    struct scheduler_config *c;
    struct error err;
    int rc = load_text(
        &c,
        "{\"_class_name\": \"DPMSolverMultistepScheduler\", \"later\": {\"a\": [1]}, \"beta_end\": null,"
        "\"lambda_min_clipped\": -Infinity, \"text\": \"a -Infinity \\\" NaN\", \"more\": [NaN, Infinity]}",
        &err);
    CHECK(rc == 0 && c, "%s", err.msg);
    scheduler_config_close(&c);
    CHECK(c == NULL);
}

static void expect_steps(const char *config, int steps, const char *words)
{
    struct scheduler_config *c;
    struct scheduler *s = NULL;
    struct error err;
    if (!CHECK(load_text(&c, config, &err) == 0, "%s", err.msg))
        return;
    int rc = scheduler_start(&s, c, steps, &err);
    CHECK(rc == ERR_INVALID && strstr(err.msg, words) && !s, "%s with %d steps: %d %s", config, steps, rc,
          err.msg);
    scheduler_end(NULL, &s);
    scheduler_config_close(&c);
}

TEST(step_counts_that_cannot_be_had)
{
    expect_steps("{\"_class_name\": \"DDIMScheduler\"}", 0, "at least 1");
    expect_steps("{\"_class_name\": \"DDIMScheduler\"}", 1001,
                 "`num_inference_steps`: 1001 cannot be larger than `self.config.train_timesteps`: 1000 as "
                 "the unet model trained "
                 "with this scheduler can only handle maximal 1000 timesteps.");
    expect_steps("{\"_class_name\": \"EulerDiscreteScheduler\"}", 2147483647, "cannot be larger");
    expect_steps("{\"_class_name\": \"DDIMScheduler\", \"steps_offset\": 1}", 1000,
                 "index 1000 is out of bounds for dimension 0 with size 1000");
    expect_steps("{\"_class_name\": \"PNDMScheduler\"}", 3, "too few");
    expect_steps("{\"_class_name\": \"LCMScheduler\"}", 51,
                 "The combination of `original_steps x strength`: 50 x 1.0 is smaller than "
                 "`num_inference_steps`: 51. Make sure to "
                 "either reduce `num_inference_steps` to a value smaller than 50 or increase `strength` to a "
                 "value higher than "
                 "1.02.");
    expect_steps("{\"_class_name\": \"LCMScheduler\", \"original_inference_steps\": 2000}", 4,
                 "`original_steps`: 2000");
    expect_steps("{\"_class_name\": \"DPMSolverMultistepScheduler\", \"timestep_spacing\": \"leading\"}",
                 1000, "too many");
}

TEST(pipeline_rule_moves_offset_and_clip)
{
    struct scheduler_config *c;
    struct scheduler *s = NULL;
    struct error err;
    if (!CHECK(load_text(&c, "{\"_class_name\": \"DDIMScheduler\"}", &err) == 0, "%s", err.msg))
        return;
    scheduler_config_stable_diffusion(c);
    CHECK(scheduler_start(&s, c, 2, &err) == 0 && scheduler_timesteps(s)[0] == 501 &&
          scheduler_timesteps(s)[1] == 1);
    scheduler_end(NULL, &s);
    scheduler_config_close(&c);
}

TEST(calls_out_of_order_are_errors)
{
    struct lab l;
    struct scheduler_config *c;
    struct scheduler *s = NULL;
    struct noise noise = {.seed = 1};
    lab_open(&l);
    CHECK(load_text(&c, "{\"_class_name\": \"PNDMScheduler\", \"skip_prk_steps\": true}", &l.err) == 0);
    CHECK(scheduler_start(&s, c, 4, &l.err) == 0);
    tensor x = noise_draw(&l.p, &noise, 1, 2, 2, 4);
    tensor y = scheduler_step(&l.p, s, 1, x, x, &noise);
    CHECK(l.err.code == ERR_INTERNAL && strstr(l.err.msg, "call 0 was due"), "%s", l.err.msg);
    tensor_free(&l.p, &y);
    tensor_free(&l.p, &x);
    scheduler_end(&l.p, &s);
    scheduler_config_close(&c);
    lab_close(&l);
}

TEST(skipped_steps_are_those_of_the_run)
{
    struct lab l;
    struct scheduler_config *c;
    struct scheduler *s = NULL;
    struct noise noise = {.seed = 1};
    struct error err = {0};
    lab_open(&l);
    CHECK(load_text(&c, "{\"_class_name\": \"DDIMScheduler\"}", &l.err) == 0);
    CHECK(scheduler_start(&s, c, 4, &l.err) == 0);
    CHECK(scheduler_skip(s, -1, &err) == ERR_INTERNAL && scheduler_skip(s, 5, &err) == ERR_INTERNAL);
    CHECK(scheduler_skip(s, 3, &l.err) == 0 && scheduler_calls(s) == 1 && scheduler_timesteps(s)[0] == 0);
    tensor x = noise_draw(&l.p, &noise, 1, 2, 2, 4);
    tensor y = scheduler_step(&l.p, s, 0, x, x, &noise);
    CHECK(l.err.code == 0 && scheduler_skip(s, 0, &err) == ERR_INTERNAL, "after a step");
    tensor_free(&l.p, &y);
    scheduler_end(&l.p, &s);
    CHECK(scheduler_start(&s, c, 4, &l.err) == 0 && scheduler_skip(s, 4, &l.err) == 0);
    CHECK(scheduler_calls(s) == 0);
    y = scheduler_add_noise(&l.p, s, x, x);
    CHECK(l.err.code == ERR_INVALID && strstr(l.err.msg, "no step is left"), "%s", l.err.msg);
    tensor_free(&l.p, &y);
    tensor_free(&l.p, &x);
    scheduler_end(&l.p, &s);
    scheduler_config_close(&c);
    lab_close(&l);
}

/* A run that ends early gives back what it kept. lab_close checks that nothing is left. */
TEST(a_run_cut_short_gives_its_memory_back)
{
    static const char *const configs[] = {"sd15_pndm", "ddpm_pndm_prk", "dpmpp_3_karras_v",
                                          "heun",      "dpmpp_sde",     "unipc_3",
                                          "single_3",  "lms",           "k_dpm_2"};
    for (size_t k = 0; k < sizeof configs / sizeof *configs; k++) {
        struct lab l;
        struct scheduler_config *c = NULL;
        struct scheduler *s = NULL;
        struct noise noise = {.seed = 1};
        char dir[200];
        lab_open(&l);
        snprintf(dir, sizeof dir, DATA "/%s", configs[k]);
        CHECK(scheduler_config_load(&c, dir, &l.err) == 0 && scheduler_start(&s, c, 20, &l.err) == 0, "%s",
              l.err.msg);
        tensor x = noise_draw(&l.p, &noise, 1, 2, 2, 4);
        for (int i = 0; i < 3; i++) {
            tensor y = scheduler_step(&l.p, s, i, x, x, &noise);
            tensor_free(&l.p, &x);
            x = y;
        }
        tensor_free(&l.p, &x);
        CHECK(l.region.count > 0);
        scheduler_end(&l.p, &s);
        CHECK(s == NULL && l.err.code == 0, "%s", l.err.msg);
        scheduler_config_close(&c);
        lab_close(&l);
    }
}

TEST_MAIN()
