/* The daemon on a GPU: starting without one, running out of its memory, its death, the hardware routes. The
 * GPU is tests/emulator, so this runs anywhere. */
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "test.h"

#define CUDA  "LATENTD_BACKEND=cuda"
#define SMALL "{\"prompt\":\"a cat\",\"width\":64,\"height\":64,\"num_inference_steps\":2,\"seed\":7}"
#define TINY  "{\"prompt\":\"a cat\",\"width\":16,\"height\":16,\"num_inference_steps\":1,\"seed\":7}"
#define LARGE "{\"prompt\":\"a cat\",\"width\":512,\"height\":512,\"num_inference_steps\":1,\"seed\":7}"

/* $LATENTD_BIN becomes its neighbour that was built over the emulator. */
__attribute__((constructor)) static void choose_binary(void)
{
    char path[500], emulated[520];
    const char *bin = getenv("LATENTD_BIN");
    snprintf(path, sizeof(path), "%s", bin ? bin : "build/latentd");
    snprintf(emulated, sizeof(emulated), "%s/emulated/latentd", dirname(path));
    setenv("LATENTD_BIN", emulated, 1);
}

static void refuses(const char *const *env, const char *words)
{
    struct daemon d;
    daemon_start(&d, env);
    bool said = daemon_logged(&d, words, 10);
    char *log = daemon_log(&d);
    CHECK(said, "%s: wanted \"%s\", the log is:\n%s", env[1], words, log);
    free(log);
    int status = daemon_end(&d, 0, 5);
    CHECK(status == 1, "%s: status %d", env[1], status);
}

#define REFUSES(words, ...) refuses((const char *[]){CUDA, __VA_ARGS__, NULL}, words)

TEST(a_named_gpu_that_cannot_serve_ends_the_start)
{
    REFUSES("backend cuda: there is no NVIDIA GPU", "EMULATOR_NO_DEVICE=1");
    REFUSES("backend cuda: there is no NVIDIA driver (libcuda.so.1)", "EMULATOR_DRIVER=0");
    REFUSES("backend cuda: the NVIDIA driver is too old: it serves CUDA 12.2, this build needs 13.0",
            "EMULATOR_DRIVER=12020");
    REFUSES("backend cuda: emulated GPU has compute capability 7.0, this build needs 8.0 (Ampere) or newer",
            "EMULATOR_MAJOR=7");
    REFUSES("CUDA out of memory", "EMULATOR_MEMORY=67200000");
}

TEST(auto_says_why_it_takes_the_cpu)
{
    struct daemon d;
    if (CHECK(daemon_ready(&d, (const char *[]){"LATENTD_BACKEND=auto", "EMULATOR_NO_DEVICE=1", NULL})))
        CHECK(daemon_logged(&d, "backend auto: running on the CPU: there is no NVIDIA GPU", 1));
    daemon_end(&d, SIGTERM, 8);
}

/* Asks for BODY and checks the status; the answer's body, which the caller frees. */
static char *ask(const struct daemon *d, const char *body, int status, const char *words)
{
    struct answer a = client_make(d, body);
    CHECK(a.status == status && (!words || strstr(a.body, words)), "status %d: %.300s", a.status, a.body);
    char *text = a.body;
    a.body = NULL;
    answer_free(&a);
    return text;
}

static void same_picture(const struct daemon *d, const char *want)
{
    char *got = ask(d, SMALL, 200, NULL);
    CHECK(got && want && strcmp(got, want) == 0, "another picture");
    free(got);
}

TEST(the_same_request_gives_the_same_picture)
{
    struct daemon d;
    if (CHECK(daemon_ready(&d, (const char *[]){CUDA, NULL}))) {
        char *first = ask(&d, SMALL, 200, "data:image/png;base64,");
        same_picture(&d, first);
        free(ask(&d, "{\"prompt\":\"a dog\",\"width\":96,\"height\":64,\"num_inference_steps\":1}", 200,
                 NULL));
        same_picture(&d, first);
        free(first);
    }
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
}

/* Seen coming by the plan, and when it happens anyway. Beside the workspace of 64 MiB there is room for the
 * small picture only. */
TEST(out_of_memory_is_an_answer_and_the_next_picture_is_the_same)
{
    static const char *const machines[] = {"EMULATOR_MEMORY=72000000",
                                           "EMULATOR_FAIL_SIZES=4000000-67000000"};
    for (int i = 0; i < 2; i++) {
        struct daemon d;
        if (CHECK(daemon_ready(&d, (const char *[]){CUDA, machines[i], NULL}))) {
            char *first = ask(&d, SMALL, 200, NULL);
            free(ask(&d, LARGE, 500, "Out of memory error. Try reducing output image resolution."));
            same_picture(&d, first);
            free(first);
        }
        CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    }
}

TEST(a_dead_gpu_ends_the_daemon)
{
    struct daemon d;
    if (!CHECK(daemon_ready(&d, (const char *[]){CUDA, "EMULATOR_FAIL_LAUNCH=100", NULL})))
        return;
    double start = now_seconds();
    free(ask(&d, SMALL, 500, NULL));
    bool said = false;
    for (int n = 0; !said && n < 100; n++) {
        struct answer a = client_ask(&d, "GET", "/health", NULL, NULL);
        said = a.status == 200 && strcmp(a.body, "{\"status\":\"ERROR\"}") == 0;
        answer_free(&a);
        sleep_seconds(0.01);
    }
    CHECK(said, "/health never said ERROR");
    CHECK(daemon_logged(&d, "unspecified launch failure", 1));
    int status = daemon_end(&d, 0, 6);
    CHECK(status == 1, "status %d", status);
    CHECK(now_seconds() - start < 10, "took %.1f s", now_seconds() - start);
}

static char *read_text(const char *path)
{
    char *text = calloc(1, 1 << 20);
    FILE *f = fopen(path, "r");
    if (f && text && fread(text, 1, (1 << 20) - 1, f) == 0)
        text[0] = '\0';
    if (f)
        fclose(f);
    return text;
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0);
    if (f)
        fclose(f);
}

/* A start with kernels chosen by timing, with FOLDER for the file; WORDS in the log afterwards, or NULL: no
 * warning. The picture, which the caller frees. */
static char *tuned_picture(const char *folder, const char *words)
{
    struct daemon d;
    char env[100], *picture = NULL;
    snprintf(env, sizeof(env), "LATENTD_CACHE=%s", folder);
    if (CHECK(daemon_ready(&d, (const char *[]){CUDA, "LATENTD_TUNE=1", env, NULL}))) {
        picture = ask(&d, TINY, 200, NULL);
        char *log = daemon_log(&d);
        CHECK(words ? strstr(log, words) != NULL : strstr(log, "choices of kernels") == NULL, "%s", log);
        free(log);
    }
    daemon_end(&d, SIGTERM, 8);
    return picture;
}

/* The choice of kernels is kept; a file that is damaged or of another GPU is made anew with a warning. */
TEST(the_choice_of_kernels_is_remembered)
{
    char folder[] = "/tmp/latentd-choices-XXXXXX", path[100], command[100];
    if (!CHECK(mkdtemp(folder) != NULL))
        return;
    snprintf(path, sizeof(path), "%s/choices-emulated-GPU.txt", folder);
    char *first = tuned_picture(folder, NULL), *file = read_text(path);
    CHECK(strncmp(file, "latentd choices 1\temulated GPU\t13000\t", 37) == 0, "%.100s", file);
    size_t length = strlen(file);
    char *second = tuned_picture(folder, NULL), *again = read_text(path);
    CHECK(strcmp(file, again) == 0, "the second start timed something");
    CHECK(first && second && strcmp(first, second) == 0, "another picture");
    free(again);
    static const char *const damage = "is damaged or of another GPU, driver or version; it is made anew";
    for (int i = 0; i < 4; i++) {
        char *bad = strdup(file);
        if (i == 0)
            bad[length / 2] = '\0'; /* cut in a line */
        else if (i == 1)
            bad[20] = 'E'; /* another GPU */
        else if (i == 2)
            memset(strchr(bad, '\n') + 1, '\t', 30);
        else
            strcpy(bad, "\x7f\x45LF\x01");
        write_text(path, bad);
        free(bad);
        free(tuned_picture(folder, damage));
        again = read_text(path);
        CHECK(strlen(again) > length / 2 && strncmp(again, file, 37) == 0, "not made anew: %.100s", again);
        free(again);
    }
    free(first);
    free(second);
    free(file);
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    CHECK(system(command) == 0);
}

static void expect_hardware(const struct daemon *d, const char *path, const char *words)
{
    struct answer a = client_ask(d, "GET", path, NULL, NULL);
    CHECK(a.status == 200 && strstr(a.body, words), "%s: %d %s", path, a.status, a.body);
    answer_free(&a);
}

TEST(hardware_routes)
{
    char library[600], path[520];
    struct daemon d;
    snprintf(path, sizeof(path), "%s", getenv("LATENTD_BIN"));
    snprintf(library, sizeof(library), "LD_LIBRARY_PATH=%s/fake", dirname(path));
    if (CHECK(daemon_ready(&d, (const char *[]){CUDA, library, NULL}))) {
#define HEAD                                                                                                 \
    "\"0\":{\"id\":\"GPU-01234567-89ab-cdef-0123-456789abcdef\",\"name\":\"NVIDIA \\\"Test\\\" 1\","         \
    "\"memory_total\":25757220864,\"memory_free\":20000000000,"
        expect_hardware(&d, "/hardware/info", "\"gpu_info\":{" HEAD "\"major\":8,\"minor\":9}}}");
        expect_hardware(&d, "/hardware/stats",
                        "\"gpu_stats\":{" HEAD "\"utilization_compute\":37,\"utilization_memory\":12}}}");
        CHECK(daemon_metric(&d, "latentd_gpu_memory_bytes{gpu=\"0\",state=\"free\"}") == 2e10 &&
              daemon_metric(&d, "latentd_gpu_memory_bytes{gpu=\"0\",state=\"used\"}") == 5757220864);
    }
    daemon_end(&d, SIGTERM, 8);
    /* without NVML: what CUDA knows, and a warning */
    if (CHECK(daemon_ready(&d, (const char *[]){CUDA, NULL}))) {
        expect_hardware(&d, "/hardware/info", "\"0\":{\"id\":\"0\",\"name\":\"emulated GPU\",");
        CHECK(daemon_logged(&d, "libnvidia-ml.so.1", 1));
    }
    daemon_end(&d, SIGTERM, 8);
}

TEST_MAIN()
