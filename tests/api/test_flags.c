/* The ai-runner's optimisation flags on a running daemon: what SFAST and TORCH_COMPILE do before the daemon
 * is ready, and that DEEPCACHE and BFLOAT16 change a picture where they should and nowhere else. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "test.h"

#define PICTURE                                                                                              \
    "{\"prompt\":\"a\",\"width\":64,\"height\":64,\"seed\":3,\"num_inference_steps\":7,\"guidance_scale\":"  \
    "7.5}"

/* The reply to PICTURE of a daemon with ENV; the caller frees it. NULL, and a failed check, when there is
 * none. */
static char *reply(const char *const *env)
{
    struct daemon d;
    char *body = NULL;
    if (CHECK(daemon_ready(&d, env), "%s", env[0])) {
        struct answer a = client_make(&d, PICTURE);
        if (CHECK(a.status == 200, "%s: %s", env[0], a.body))
            body = strdup(a.body);
        answer_free(&a);
    }
    daemon_end(&d, SIGTERM, 10);
    return body;
}

static bool same(const char *const *a, const char *const *b)
{
    char *one = reply(a), *other = reply(b);
    bool equal = one && other && strcmp(one, other) == 0;
    free(one);
    free(other);
    return equal;
}

#define ENV(...) ((const char *[]){__VA_ARGS__, NULL})

TEST(deepcache_changes_the_picture_and_false_does_not)
{
    CHECK(!same(ENV("DEEPCACHE=true"), ENV("DEEPCACHE=")), "DeepCache computed everything");
    CHECK(same(ENV("DEEPCACHE=false"), ENV("DEEPCACHE=")));
    CHECK(same(ENV("DEEPCACHE=true", "SFAST=true"), ENV("DEEPCACHE=true")),
          "the warm-up left something behind");
}

TEST(bfloat16_false_computes_in_fp32)
{
    CHECK(same(ENV("BFLOAT16=false", "LATENTD_BACKEND=cpu"),
               ENV("LATENTD_ISA=avx512", "LATENTD_BACKEND=cpu")) ||
          same(ENV("BFLOAT16=false", "LATENTD_BACKEND=cpu"), ENV("LATENTD_ISA=avx2", "LATENTD_BACKEND=cpu")));
}

/* ref has int8 on any machine. */
TEST(precision_int8_is_logged_once_and_computes_the_picture)
{
    struct daemon d;
    CHECK(!same(ENV("LATENTD_PRECISION=int8", "LATENTD_BACKEND=ref"), ENV("LATENTD_BACKEND=ref")),
          "nothing was in int8");
    CHECK(same(ENV("LATENTD_PRECISION=fp32", "LATENTD_BACKEND=cpu"),
               ENV("BFLOAT16=false", "LATENTD_BACKEND=cpu")));
    if (CHECK(daemon_ready(&d, ENV("LATENTD_PRECISION=int8", "LATENTD_BACKEND=ref")))) {
        char *log = daemon_log(&d);
        const char *said = strstr(log, "precision int8: ");
        CHECK(said && !strstr(said + 1, "precision int8: "), "the log is:\n%s", log);
        free(log);
    }
    daemon_end(&d, SIGTERM, 10);
}

/* A tier without int8 ends the start with status 1. */
TEST(precision_int8_is_refused_where_there_is_none)
{
    struct daemon d;
    daemon_start(&d, ENV("LATENTD_PRECISION=int8", "LATENTD_BACKEND=cpu", "LATENTD_ISA=avx2"));
    CHECK(daemon_logged(&d, "CPU tier avx2 ", 10));
    CHECK(daemon_end(&d, 0, 10) == 1);
}

/* The warm-up is over when /health first says OK. */
static void check_warm_up(const char *const *env, bool expected)
{
    struct daemon d;
    if (CHECK(daemon_ready(&d, env), "%s", env[0])) {
        char *log = daemon_log(&d);
        const char *warm = strstr(log, "warmed up in"), *ready = strstr(log, "is ready after");
        CHECK(ready && (warm != NULL) == expected && (!warm || warm < ready), "%s, the log is:\n%s", env[0],
              log);
        CHECK(daemon_metric(&d, "latentd_images_total") <= 0, "the warm-up was counted as a request");
        free(log);
    }
    daemon_end(&d, SIGTERM, 10);
}

TEST(sfast_and_torch_compile_warm_up_before_ready)
{
    check_warm_up(ENV("SFAST=true"), true);
    check_warm_up(ENV("TORCH_COMPILE=true", "SFAST_WARMUP=false"), true);
    check_warm_up(ENV("SFAST=true", "SFAST_WARMUP=false"), false);
    check_warm_up(ENV("SFAST=false"), false);
    check_warm_up(ENV("SFAST=true", "PIPELINE=image-to-image"), true);
    check_warm_up(ENV("SFAST=true", "PIPELINE=upscale", "MODEL_ID=latentd/upscaler",
                      "MODEL_DIR=tests/golden/data/upscale"),
                  true);
}

TEST(a_warm_up_that_fails_ends_the_start)
{
    struct daemon d;
    daemon_start(&d, ENV("SFAST=true", "LATENTD_MEMORY=1", "MODEL_DIR=models", "MODEL_ID=latentd/emoji"));
    CHECK(daemon_logged(&d, "warm-up (SFAST, TORCH_COMPILE): ", 10));
    CHECK(daemon_end(&d, 0, 10) == 1);
}

TEST_MAIN()
