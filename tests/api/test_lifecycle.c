/* Start and end: settings that cannot be used, models that are not there, SIGTERM in every phase. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.h"
#include "test.h"

#define LONG                                                                                                 \
    "{\"prompt\":\"a\",\"width\":128,\"height\":128,\"num_inference_steps\":900,\"num_images_per_prompt\":"  \
    "50}"

/* The daemon must end by itself with a status other than 0 and say WORDS. */
static void refuses_to_start(const char *const *env, const char *words)
{
    struct daemon d;
    double start = now_seconds();

    daemon_start(&d, env);
    double end = now_seconds() + 5;
    while (!daemon_logged(&d, words, 0) && now_seconds() < end)
        sleep_seconds(0.01);
    char *log = daemon_log(&d);
    CHECK(strstr(log, words) != NULL, "%s: wanted \"%s\", the log is:\n%s", env[0], words, log);
    free(log);
    int status = daemon_end(&d, 0, 5);
    CHECK(status == 1, "%s: status %d", env[0], status);
    CHECK(now_seconds() - start < 5, "%s: took %.1f s", env[0], now_seconds() - start);
}

#define REFUSES(words, ...) refuses_to_start((const char *[]){__VA_ARGS__, NULL}, words)

TEST(unusable_settings)
{
    REFUSES("PIPELINE is \"text-to-video\", but only text-to-image, ", "PIPELINE=text-to-video");
    REFUSES("MODEL_ID must be provided with PIPELINE", "MODEL_ID=");
    REFUSES("PIPELINE must be provided with MODEL_ID", "PIPELINE=");
    REFUSES("PORT is", "PORT=http");
    REFUSES("PORT is", "PORT=65536");
    REFUSES("LATENTD_QUEUE is", "LATENTD_QUEUE=-1");
    REFUSES("LATENTD_THREADS is", "LATENTD_THREADS=many");
    REFUSES("LATENTD_BACKEND is", "LATENTD_BACKEND=opencl");
    REFUSES("LATENTD_ISA is", "LATENTD_ISA=sse9");
    REFUSES("LATENTD_PRECISION is \"int4\", accepted are int8, bf16 and fp32", "LATENTD_PRECISION=int4");
    REFUSES("which BFLOAT16=false contradicts", "LATENTD_PRECISION=bf16", "BFLOAT16=false");
    REFUSES("HOST is", "HOST=no.such.host.invalid");
    REFUSES("cannot listen on 192.0.2.1", "HOST=192.0.2.1");
    REFUSES("", "MODEL_ID=../../etc");
    REFUSES("latentd/absent", "MODEL_ID=latentd/absent");
}

TEST(port_in_use)
{
    struct daemon d;
    char port[32];
    if (!CHECK(daemon_ready(&d, NULL)))
        return;
    snprintf(port, sizeof(port), "PORT=%d", d.port);
    REFUSES("is in use by another program", port);
    struct answer a = client_ask(&d, "GET", "/health", NULL, NULL);
    CHECK(a.status == 200);
    answer_free(&a);
    int status = daemon_end(&d, SIGTERM, 8);
    CHECK(status == 0, "status %d", status);
}

static char shelf[64];

/* A shelf of its own with a copy of the tiny model at latentd/tiny. */
static void copy_model(void)
{
    char command[200];
    strcpy(shelf, "/tmp/latentd-shelf-XXXXXX");
    if (!CHECK(mkdtemp(shelf) != NULL))
        return;
    snprintf(command, sizeof(command), "cp -r %s/latentd %s/", TINY_DIR, shelf);
    CHECK(system(command) == 0);
}

static void remove_model(void)
{
    char command[100];
    snprintf(command, sizeof(command), "rm -rf %s", shelf);
    CHECK(system(command) == 0);
}

static void model_file(char *path, size_t size, const char *name)
{
    snprintf(path, size, "%s/latentd/tiny/%s", shelf, name);
}

/* Without, or with half of, each of its files the model must be refused by name, and /health says ERROR
 * meanwhile. */
TEST(broken_models)
{
    static const char *const files[] = {"model_index.json",
                                        "unet/config.json",
                                        "unet/diffusion_pytorch_model.safetensors",
                                        "vae/diffusion_pytorch_model.safetensors",
                                        "text_encoder/model.safetensors",
                                        "tokenizer/vocab.json",
                                        "tokenizer/merges.txt",
                                        "scheduler/scheduler_config.json"};
    for (size_t i = 0; i < 2 * sizeof(files) / sizeof(*files); i++) {
        const char *file = files[i / 2];
        char path[200], env[100];
        struct stat st;
        /* half a list of merges is a shorter list */
        if (i % 2 && strcmp(file, "tokenizer/merges.txt") == 0)
            continue;
        copy_model();
        model_file(path, sizeof(path), file);
        CHECK(stat(path, &st) == 0);
        CHECK((i % 2 ? truncate(path, st.st_size / 2) : unlink(path)) == 0);
        snprintf(env, sizeof(env), "MODEL_DIR=%s", shelf);
        struct daemon d;
        double start = now_seconds();
        daemon_start(&d, (const char *[]){env, NULL});
        bool said = false;
        for (int n = 0; d.port && !said && n < 100; n++) {
            struct answer a = client_ask(&d, "GET", "/health", NULL, NULL);
            said = a.status == 200 && strcmp(a.body, "{\"status\":\"ERROR\"}") == 0;
            answer_free(&a);
            sleep_seconds(0.01);
        }
        CHECK(said, "%s: /health never said ERROR", file);
        CHECK(daemon_logged(&d, "level=ERROR", 1));
        char *log = daemon_log(&d), *error = strstr(log, "level=ERROR");
        CHECK(error && strstr(error, strchr(file, '/') ? strchr(file, '/') + 1 : file), "%s %s: %.500s",
              i % 2 ? "truncated" : "missing", file, error ? error : "no error in the log");
        free(log);
        /* it ends by itself; only the first is waited for */
        CHECK(daemon_end(&d, i ? SIGTERM : 0, 5) == 1 && now_seconds() - start < 5);
        remove_model();
    }
}

/* Starts DIR/bin/latentd with MODEL_DIR: the log must say that the model comes FROM there. */
static void installed_starts(const char *dir, const char *model_dir, const char *from)
{
    char env[100], want[200];
    struct daemon d;

    snprintf(env, sizeof(env), "MODEL_DIR=%s", model_dir);
    snprintf(want, sizeof(want), "with model latentd/tiny from %s", from);
    if (CHECK(daemon_ready(&d, (const char *[]){env, NULL}), "%s: %s", dir, env))
        CHECK(daemon_logged(&d, want, 1), "%s", want);
    /* LoRAs are MODEL_DIR's, wherever the model is: this one is found, and is for another base. */
    struct answer a = client_make(&d, "{\"prompt\":\"a\",\"loras\":\"{\\\"test/xl\\\": 1}\"}");
    CHECK(a.status == 400 && strstr(a.body, "incompatible with base model"), "%d %s", a.status, a.body);
    answer_free(&a);
    daemon_end(&d, SIGTERM, 8);
}

/* An installed program has the shipped models in ../share/latentd/models: they are there besides MODEL_DIR,
 * which is a mounted folder in a container, and MODEL_DIR goes first. */
TEST(installed_models)
{
    const char *bin = getenv("LATENTD_BIN");
    char *before = strdup(bin ? bin : "build/latentd"), dir[] = "/tmp/latentd-prefix-XXXXXX";
    char text[700], empty[100], full[100], installed[100];

    CHECK(mkdtemp(dir) != NULL);
    snprintf(text, sizeof(text),
             "cd %s && mkdir -p bin share/latentd/models empty full && cp %s/%s bin/latentd && "
             "cp -r %s/latentd share/latentd/models/ && cp -r %s/latentd full/ && "
             "cp -r $OLDPWD/tests/golden/data/lora/pictures/test empty/ && cp -r empty/test full/",
             dir, *before == '/' ? "" : "$OLDPWD", before, "$OLDPWD/" TINY_DIR, "$OLDPWD/" TINY_DIR);
    CHECK(system(text) == 0, "%s", text);
    snprintf(text, sizeof(text), "%s/bin/latentd", dir);
    setenv("LATENTD_BIN", text, 1);
    snprintf(empty, sizeof(empty), "%s/empty", dir);
    snprintf(full, sizeof(full), "%s/full", dir);
    snprintf(installed, sizeof(installed), "%s/bin/../share/latentd/models", dir);
    installed_starts(dir, empty, installed);
    installed_starts(dir, full, full);
    setenv("LATENTD_BIN", before, 1);
    free(before);
    snprintf(text, sizeof(text), "rm -rf %s", dir);
    CHECK(system(text) == 0);
}

/* Without a safety checker the daemon says so once, at the start, not for every request. */
TEST(one_warning_without_a_safety_checker)
{
    struct daemon d;
    if (!CHECK(daemon_ready(&d, NULL)))
        return;
    for (int i = 0; i < 2; i++) {
        struct answer a =
            client_make(&d, "{\"prompt\":\"a\",\"num_inference_steps\":1,\"safety_check\":true}");
        CHECK(a.status == 200 && strstr(a.body, "\"nsfw\":false"), "%d", a.status);
        answer_free(&a);
    }
    char *log = daemon_log(&d), *first = strstr(log, "level=WARNING message=\"safety_check has no effect");
    CHECK(first && !strstr(first + 40, "safety_check has no effect"), "%s", log);
    free(log);
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
}

/* A model on a pipe that nobody writes to: loading never ends. */
static void start_loading(struct daemon *d)
{
    char path[200], env[100];
    copy_model();
    model_file(path, sizeof(path), "scheduler/scheduler_config.json");
    unlink(path);
    CHECK(mkfifo(path, 0600) == 0);
    snprintf(env, sizeof(env), "MODEL_DIR=%s", shelf);
    daemon_start(d, (const char *[]){env, NULL});
}

TEST(answers_while_loading)
{
    struct daemon d;
    double start = now_seconds();
    start_loading(&d);
    struct answer a = client_ask(&d, "GET", "/health", NULL, NULL);
    CHECK(now_seconds() - start < 1, "listened after %.3f s", now_seconds() - start);
    CHECK(a.status == 503 && strcmp(a.body, "{\"status\":\"LOADING\"}") == 0, "%d %s", a.status, a.body);
    answer_free(&a);
    a = client_make(&d, "{\"prompt\":\"a\"}");
    CHECK(a.status == 500 &&
              strcmp(a.body, "{\"detail\":{\"msg\":\"insufficient capacity: the model is still loading, try "
                             "again later\"}}") == 0,
          "%d %s", a.status, a.body);
    answer_free(&a);
    a = client_make(&d, "{\"prompt\":1}");
    CHECK(a.status == 422);
    answer_free(&a);
    a = client_ask(&d, "GET", "/version", NULL, NULL);
    CHECK(a.status == 200);
    answer_free(&a);
    CHECK(daemon_metric(&d, "latentd_model_ready") == 0);
    start = now_seconds();
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    CHECK(now_seconds() - start < 1, "SIGTERM while loading took %.2f s", now_seconds() - start);
    remove_model();
}

TEST(sigterm_when_idle)
{
    struct daemon d;
    if (!CHECK(daemon_ready(&d, NULL)))
        return;
    int kept = client_open(&d); /* an idle connection must not hold it up */
    double start = now_seconds();
    CHECK(daemon_end(&d, SIGTERM, 8) == 0 && now_seconds() - start < 1);
    CHECK(client_closed(kept, 1));
    close(kept);
    if (!CHECK(daemon_ready(&d, NULL)))
        return;
    CHECK(daemon_end(&d, SIGINT, 8) == 0);
}

/* Whether new connections are refused within SECONDS. */
static bool listener_closes(const struct daemon *d, double seconds)
{
    double end = now_seconds() + seconds;
    int fd;

    while ((fd = client_open(d)) >= 0) {
        close(fd);
        if (now_seconds() > end)
            return false;
        sleep_seconds(0.002);
    }
    return true;
}

#define STEPS_FORM "{\"prompt\":\"a\",\"num_inference_steps\":%d,\"width\":64,\"height\":64,\"seed\":1}"

/* A request of as many steps as take about half a second here and now. */
static const char *half_a_second(const struct daemon *d)
{
    enum { SOME = 20, MOST = 900 };
    static char body[200];
    double start = now_seconds();
    snprintf(body, sizeof(body), STEPS_FORM, SOME);
    struct answer a = client_make(d, body);
    CHECK(a.status == 200, "%d %s", a.status, a.body);
    answer_free(&a);
    double steps = SOME * 0.5 / (now_seconds() - start);
    snprintf(body, sizeof(body), STEPS_FORM, steps > MOST ? MOST : steps < 1 ? 1 : (int)steps);
    return body;
}

/* What can be finished in time is; the listener is closed at once and other requests on open connections are
 * refused. Two of the three jobs must still wait when the signal comes. */
TEST(sigterm_lets_short_jobs_finish)
{
    struct daemon d;
    int fd[3];
    if (!CHECK(daemon_ready(&d, NULL)))
        return;
    int other = client_open(&d);
    client_puts(other, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    struct answer a = client_read(other, 5);
    answer_free(&a);
    const char *body = half_a_second(&d);
    for (int i = 0; i < 3; i++)
        fd[i] = client_begin(&d, body);
    CHECK(daemon_metric_reaches(&d, "latentd_queue_depth", 2, 5));
    kill(d.pid, SIGTERM);
    CHECK(daemon_logged(&d, "stopping", 1));
    CHECK(listener_closes(&d, 1), "the listener is still open");
    client_puts(other,
                "POST /text-to-image HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{\"prompt\":\"a\"}");
    a = client_read(other, 5);
    CHECK(a.status == 500 && strstr(a.body, "insufficient capacity: the server is shutting down"), "%d %s",
          a.status, a.body);
    const char *connection = answer_header(&a, "Connection");
    CHECK(connection && strcasecmp(connection, "close") == 0);
    answer_free(&a);
    for (int i = 0; i < 3; i++) {
        a = client_read(fd[i], 8);
        CHECK(a.status == 200, "job %d: %d %s", i, a.status, a.body);
        answer_free(&a);
        close(fd[i]);
    }
    close(other);
    CHECK(daemon_end(&d, 0, 8) == 0);
}

/* What cannot is answered as cancelled, running or waiting, within 8 s. */
TEST(sigterm_cancels_long_jobs)
{
    struct daemon d;
    int fd[3];
    if (!CHECK(daemon_ready(&d, NULL)))
        return;
    for (int i = 0; i < 3; i++)
        fd[i] = client_begin(&d, LONG);
    CHECK(daemon_logged(&d, "phase=step step=2/", 10));
    CHECK(daemon_metric_reaches(&d, "latentd_queue_depth", 2, 5));
    double start = now_seconds();
    kill(d.pid, SIGTERM);
    for (int i = 0; i < 3; i++) {
        struct answer a = client_read(fd[i], 9);
        CHECK(a.status == 500 && strstr(a.body, "insufficient capacity: the server is shutting down"),
              "job %d: %d %s", i, a.status, a.body);
        answer_free(&a);
        close(fd[i]);
    }
    CHECK(daemon_end(&d, 0, 8) == 0);
    CHECK(now_seconds() - start < 8, "took %.2f s", now_seconds() - start);
}

/* Wherever a request is: the reply comes whole or as an error, or the connection is closed, and the process
 * ends in time. */
TEST(sigterm_in_each_phase)
{
    static const struct {
        const char *phase, *body;
    } cases[] = {
        {"phase=text", "{\"prompt\":\"a\",\"num_inference_steps\":5}"},
        {"phase=step step=1/", "{\"prompt\":\"a\",\"num_inference_steps\":5}"},
        {"phase=decode", "{\"prompt\":\"a\",\"width\":256,\"height\":256,\"num_inference_steps\":1}"},
        {"phase=encode", "{\"prompt\":\"a\",\"width\":256,\"height\":256,\"num_inference_steps\":1}"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct daemon d;
        if (!CHECK(daemon_ready(&d, NULL)))
            return;
        int fd = client_begin(&d, cases[i].body);
        CHECK(daemon_logged(&d, cases[i].phase, 20), "%s was never logged", cases[i].phase);
        double start = now_seconds();
        kill(d.pid, SIGTERM);
        struct answer a = client_read(fd, 9);
        CHECK(a.status == 200 || (a.status == 500 && strstr(a.body, "shutting down")), "%s: %d %.200s",
              cases[i].phase, a.status, a.body);
        answer_free(&a);
        close(fd);
        CHECK(daemon_end(&d, 0, 8) == 0 && now_seconds() - start < 8, "%s: took %.2f s", cases[i].phase,
              now_seconds() - start);
    }
    /* in the upload: nobody can be answered who has not asked yet */
    struct daemon d;
    if (!CHECK(daemon_ready(&d, NULL)))
        return;
    int fd = client_begin_bytes(&d, "/text-to-image", "Content-Type: application/json\r\n", "{", 1000, 1);
    sleep_seconds(0.2);
    double start = now_seconds();
    CHECK(daemon_end(&d, SIGTERM, 9) == 0 && now_seconds() - start < 8, "took %.2f s", now_seconds() - start);
    CHECK(client_closed(fd, 1));
    close(fd);
}

/* One step of this size takes far longer than there is time: the client is answered and the process ends all
 * the same. */
TEST(sigterm_does_not_wait_for_a_step)
{
    struct daemon d;
    if (!CHECK(daemon_ready(&d, NULL)))
        return;
    int fd = client_begin(&d, "{\"prompt\":\"a\",\"width\":1024,\"height\":1024,\"num_inference_steps\":2}");
    CHECK(daemon_logged(&d, "phase=step step=1/", 20));
    double start = now_seconds();
    kill(d.pid, SIGTERM);
    struct answer a = client_read(fd, 9);
    CHECK(a.status == 500 && strstr(a.body, "insufficient capacity: the server is shutting down"), "%d %s",
          a.status, a.body);
    answer_free(&a);
    close(fd);
    CHECK(daemon_end(&d, 0, 8) == 0);
    CHECK(now_seconds() - start < 8, "took %.2f s", now_seconds() - start);
}

TEST(second_sigterm_hurries)
{
    struct daemon d;
    if (!CHECK(daemon_ready(&d, NULL)))
        return;
    int fd = client_begin(&d, LONG);
    CHECK(daemon_logged(&d, "phase=step step=2/", 10));
    kill(d.pid, SIGTERM);
    CHECK(daemon_logged(&d, "stopping", 2));
    double start = now_seconds();
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    CHECK(now_seconds() - start < 1.5, "took %.2f s", now_seconds() - start);
    close(fd);
}

/* A client that does not read its reply must not keep the daemon from ending. */
TEST(sigterm_with_a_stuck_client)
{
    struct daemon d;
    if (!CHECK(daemon_ready(&d, NULL)))
        return;
    int fd = client_begin(
        &d, "{\"prompt\":\"a\",\"num_inference_steps\":1,\"num_images_per_prompt\":25,\"width\":128,"
            "\"height\":128}");
    CHECK(daemon_metric_reaches(&d, "latentd_images_total", 25, 60));
    double start = now_seconds();
    CHECK(daemon_end(&d, SIGTERM, 9) == 0);
    CHECK(now_seconds() - start < 8, "took %.2f s", now_seconds() - start);
    close(fd);
}

TEST(killed_and_started_again_on_the_same_port)
{
    struct daemon d;
    char port[32];
    if (!CHECK(daemon_ready(&d, NULL)))
        return;
    snprintf(port, sizeof(port), "PORT=%d", d.port);
    int fd = client_begin(&d, LONG);
    CHECK(daemon_end(&d, SIGKILL, 5) == 128 + SIGKILL);
    close(fd);
    if (CHECK(daemon_ready(&d, (const char *[]){port, NULL})))
        CHECK(daemon_end(&d, SIGTERM, 8) == 0);
}

TEST_MAIN()
