/* `latentd bench`: the lines of the ai-runner's bench.py, word for word and in their order, the JSON, and
 * what it refuses; for every pipeline. */
#include <cjson/cJSON.h>
#include <regex.h>
#include <stdlib.h>
#include <unistd.h>

#include "../golden/video_model.h"
#include "client.h"

#define GOLDEN "tests/golden/data/image_to_video/"

enum { FRAMES = 6 };

static char shelf[] = "/tmp/latentd-bench-XXXXXX";

/* The tiny video model with its weights. */
static void make_shelf(void)
{
    static const char *const parts[][2] = {
        {"unet", "diffusion_pytorch_model"}, {"vae", "diffusion_pytorch_model"}, {"image_encoder", "model"}};
    char command[200], from[200], to[200];
    if (!mkdtemp(shelf))
        abort();
    snprintf(command, sizeof command, "cp -r " GOLDEN "latentd %s", shelf);
    if (system(command) != 0)
        abort();
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(from, sizeof from, GOLDEN "latentd/svd/%s", parts[i][0]);
        snprintf(to, sizeof to, "%s/latentd/svd/%s", shelf, parts[i][0]);
        write_weights(from, to, parts[i][1], NULL);
    }
}

/* What `ENV latentd bench ARGUMENTS` writes to both streams, and its exit status; the caller frees it. */
static char *bench(const char *env, const char *arguments, int *status)
{
    const char *bin = getenv("LATENTD_BIN");
    char command[600], *text = calloc(1, 1 << 16);
    snprintf(command, sizeof command,
             "env MODEL_DIR=" TINY_DIR " MODEL_ID=" TINY_ID " PIPELINE=text-to-image %s %s bench %s 2>&1",
             env, bin ? bin : "build/latentd", arguments);
    FILE *f = popen(command, "r");
    if (!text || !f)
        abort();
    size_t n = fread(text, 1, (1 << 16) - 1, f);
    text[n] = '\0';
    int end = pclose(f);
    *status = WIFEXITED(end) ? WEXITSTATUS(end) : -1;
    return text;
}

#define S            "[0-9]+\\.[0-9]{3}s\n"
#define GIB          "[0-9]+\\.[0-9]{3}GiB\n"
#define MEMORY(what) what " max GPU memory allocated: " GIB what " max GPU memory reserved: " GIB
#define RUN(i)       "inference " #i " time: " S MEMORY("inference " #i) "inference " #i " phases: [^\n]*\n"

/* TEXT must be a match of PATTERN from its first line of output to the last; log lines before it are left
 * out. */
static void matches(const char *text, const char *pattern)
{
    regex_t r;
    const char *start = strstr(text, "Starting benchmark");
    if (!CHECK(regcomp(&r, pattern, REG_EXTENDED | REG_NOSUB) == 0, "%s", pattern))
        return;
    CHECK(start && regexec(&r, start, 0, NULL, 0) == 0, "not as\n%s\nbut\n%s", pattern, text);
    regfree(&r);
}

#define AGGREGATE_LOAD "\n\n----AGGREGATE METRICS----\n\n\npipeline load time: " S MEMORY("pipeline load")
#define AGGREGATE_RUNS "avg inference time: " S MEMORY("avg inference")
#define OWN                                                                                                  \
    "avg inference time per output: " S "median inference time: " S                                          \
    "percentiles of inference time: [^\n]*\n"                                                                \
    "avg phase times: [^\n]*\nimages per second: [0-9.]+\nwork: [^\n]*\nfloor: [^\n]*\nmemory: [^\n]*\n$"

TEST(lines_of_the_original)
{
    int status;
    char *text = bench("", "--pipeline text-to-image --model_id " TINY_ID " --runs 2 --num_inference_steps 3",
                       &status);
    CHECK(status == 0);
    matches(text, "^Starting benchmark\\.\\.\\.\npipeline=text-to-image, model_id=" TINY_ID
                  ", runs=2, num_inference_steps=3\n(no GPU: the lines of GPU memory [^\n]*\n)?" RUN(0) RUN(1)
                      AGGREGATE_LOAD AGGREGATE_RUNS OWN);
    free(text);
    text = bench("", "", &status);
    matches(text, "^Starting benchmark\\.\\.\\.\npipeline=text-to-image, model_id=" TINY_ID ", runs=1\n");
    free(text);
}

/* The pipeline is that of --pipeline, else of PIPELINE, whatever --model_id says. */
TEST(pipeline_of_the_environment)
{
    static const char *const cases[][3] = {
        {"PIPELINE=image-to-image", "", "pipeline=image-to-image, model_id=" TINY_ID ","},
        {"PIPELINE=image-to-image MODEL_ID=latentd/absent", "--model_id " TINY_ID,
         "pipeline=image-to-image, model_id=" TINY_ID ","},
        {"PIPELINE=image-to-image", "--pipeline text-to-image",
         "pipeline=text-to-image, model_id=" TINY_ID ","},
        {"MODEL_DIR=tests/golden/data/upscale PIPELINE=upscale MODEL_ID=latentd/upscaler",
         "--width 32 --height 24", "pipeline=upscale, model_id=latentd/upscaler,"}};
    int status;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char arguments[200];
        snprintf(arguments, sizeof arguments, "--num_inference_steps 3 %s", cases[i][1]);
        char *text = bench(cases[i][0], arguments, &status);
        CHECK(status == 0 && strstr(text, cases[i][2]), "%s: status %d, %s", cases[i][0], status, text);
        free(text);
    }
    char *text = bench("PIPELINE=text-to-music", "", &status);
    CHECK(status == 2 && strstr(text, "PIPELINE is \"text-to-music\""), "%d, %s", status, text);
    free(text);
}

TEST(sfast_warms_up_three_times)
{
    int status;
    char *text = bench("SFAST=true", "--num_inference_steps 2 --batch_size 2", &status);
    CHECK(status == 0);
    matches(text, "num_inference_steps=2\n(no GPU: [^\n]*\n)?" RUN(0) RUN(1) RUN(2) RUN(0) AGGREGATE_LOAD
            "avg warmup inference time: " S MEMORY("avg warmup inference") AGGREGATE_RUNS OWN);
    free(text);
}

TEST(memory_without_a_gpu_is_that_of_the_process)
{
    int status;
    char *text = bench("LATENTD_BACKEND=cpu", "--num_inference_steps 1", &status), *line;
    double allocated = 0, reserved = 0;
    CHECK(strstr(text, "no GPU: the lines of GPU memory tell of this process's memory") != NULL, "%s", text);
    if (CHECK((line = strstr(text, "avg inference max GPU memory reserved: ")) != NULL, "%s", text))
        sscanf(line, "avg inference max GPU memory reserved: %lfGiB", &reserved);
    if (CHECK((line = strstr(text, "inference 0 max GPU memory allocated: ")) != NULL, "%s", text))
        sscanf(line, "inference 0 max GPU memory allocated: %lfGiB", &allocated);
    CHECK(reserved > 0.005 && reserved < 4 && allocated < reserved, "%g %g", allocated, reserved);
    free(text);
}

static double number(const cJSON *of, const char *name)
{
    const cJSON *n = cJSON_GetObjectItemCaseSensitive(of, name);
    return CHECK(cJSON_IsNumber(n), "no number \"%s\"", name) ? n->valuedouble : NAN;
}

/* The phases must not take more than the run, and the figures must follow from the runs. */
static void check_json(const char *text, int runs, int warmup, int outputs, int calls)
{
    static const char *const parts[] = {"text", "steps", "decode", "encode"};
    const char *start = strchr(text, '{');
    cJSON *all = cJSON_Parse(start ? start : ""), *list = cJSON_GetObjectItem(all, "runs"), *one;
    double sum = 0, least = INFINITY, most = 0;
    if (CHECK(all && cJSON_GetArraySize(list) == runs &&
                  cJSON_GetArraySize(cJSON_GetObjectItem(all, "warmup")) == warmup,
              "%s", text)) {
        cJSON_ArrayForEach(one, list)
        {
            double seconds = number(one, "seconds");
            double phases = 0;
            for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
                CHECK(number(one, parts[k]) > 0, "%s: %s", parts[k], text);
                phases += number(one, parts[k]);
            }
            CHECK(phases <= seconds && number(one, "cpu_seconds") > 0, "%g of %g", phases, seconds);
            CHECK(number(one, "unet_calls") == calls, "%s", text);
            sum += seconds;
            least = fmin(least, seconds);
            most = fmax(most, seconds);
        }
        double median = number(all, "median_seconds");
        CHECK(fabs(number(all, "mean_seconds") - sum / runs) < 1e-9);
        CHECK(median >= least && number(all, "p90_seconds") >= median && number(all, "p99_seconds") <= most);
        CHECK(fabs(number(all, "images_per_second") - outputs * runs / sum) < 1e-6);
        CHECK(fabs(number(all, "floor_seconds") * number(all, "peak_flops") / number(all, "flop") - 1) <
              1e-6);
        CHECK(fabs(number(all, "share_of_floor") * median / number(all, "floor_seconds") - 1) < 1e-6);
        CHECK(number(all, "load_seconds") > 0 && number(all, "weight_bytes") > 0 &&
              number(all, "job_bytes") > 0 && number(all, "peak_resident_bytes") > 0 &&
              cJSON_IsString(cJSON_GetObjectItem(all, "peak")));
    }
    cJSON_Delete(all);
}

TEST(json_of_every_pipeline)
{
    static char video_env[100];
    make_shelf();
    snprintf(video_env, sizeof video_env, "MODEL_DIR=%s MODEL_ID=latentd/svd", shelf);
    const struct { /* calls: PNDM makes one more than steps */
        const char *env, *arguments;
        int runs, warmup, outputs, calls;
    } cases[] = {
        {"", "--json --runs 4 --num_inference_steps 3", 4, 0, 1, 4},
        {"", "--json --runs 2 --warmup 1 --batch_size 3 --width 32 --height 48 --num_inference_steps 2", 2, 1,
         3, 9},
        {"", "--json --pipeline image-to-image --num_inference_steps 5 --guidance_scale 1", 1, 0, 1, 5},
        {"MODEL_DIR=tests/golden/data/upscale MODEL_ID=latentd/upscaler",
         "--json --pipeline upscale --num_inference_steps 3 --width 32 --height 24", 1, 0, 1, 3},
        {video_env,
         "--json --pipeline image-to-video --runs 2 --num_inference_steps 2 --width 64 --height 64", 2, 0,
         FRAMES, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int status;
        char *text = bench(cases[i].env, cases[i].arguments, &status);
        CHECK(status == 0, "%s", text);
        check_json(text, cases[i].runs, cases[i].warmup, cases[i].outputs, cases[i].calls);
        free(text);
    }
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", shelf);
    CHECK(system(command) == 0);
}

TEST(deepcache_is_measured_too)
{
    int status;
    char *text = bench("DEEPCACHE=true", "--json --num_inference_steps 6", &status);
    CHECK(status == 0 && strstr(text, "\"deepcache\":true"), "%s", text);
    free(text);
}

TEST(wrong_usage)
{
    static const char *const bad[][2] = {{"--runs 0", "--runs is \"0\""},
                                         {"--batch_size x", "--batch_size is \"x\""},
                                         {"--pipeline text-to-music", "text-to-music"},
                                         {"--frobnicate 3", "--frobnicate is unknown"},
                                         {"--runs", "--runs needs a value"}};
    int status;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *text = bench("", bad[i][0], &status);
        CHECK(status == 2 && strstr(text, bad[i][1]), "%s: status %d, %s", bad[i][0], status, text);
        free(text);
    }
    char *help = bench("", "-h", &status); /* on which the original crashes */
    CHECK(status == 0 && strstr(help, "usage: latentd bench"), "%s", help);
    free(help);
    char *gone = bench("MODEL_ID=latentd/absent", "", &status);
    CHECK(status == 1 && strstr(gone, "latentd/absent"), "%s", gone);
    free(gone);
}

TEST_MAIN()
