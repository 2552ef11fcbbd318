/* A daemon under mixed clients for a while: those that want pictures, those that send nonsense, those that
 * leave in the middle, those that are slow. Afterwards its memory must not have grown, its descriptors be
 * those of the start, /health have answered, its log hold no error, and the same request give the same bytes.
 *
 *   build/tests/soak/soak [MINUTES]        `make soak MINUTES=10`; without a number: 1 */
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

#include "../api/client.h"
#include "test.h"

#define SAME "{\"prompt\":\"a cat\",\"num_inference_steps\":3,\"seed\":7}"

enum { PICTURES, NONSENSE, LEAVING, SLOW, KINDS };

static const char *const kind_names[KINDS] = {"pictures", "nonsense", "leaving", "slow"};
static struct daemon d;
static atomic_bool over;
static atomic_long requests[KINDS], wrong[KINDS];
static double minutes = 1;

static unsigned next(unsigned *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* Counts a request, and as wrong when it got another status. 500: the queue may be full. */
static void count(int kind, int status, int want, int or)
{
    atomic_fetch_add(&requests[kind], 1);
    if (status == want || status == or)
        return;
    if (atomic_fetch_add(&wrong[kind], 1) < 5)
        fprintf(stderr, "%s: status %d, not %d\n", kind_names[kind], status, want);
}

/* ---- Clients ---- */

static void *wants_pictures(void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    while (!over) {
        char body[200];
        snprintf(body, sizeof body,
                 "{\"prompt\":\"a %u\",\"width\":%u,\"height\":%u,\"num_inference_steps\":%u,"
                 "\"num_images_per_prompt\":%u}",
                 next(&seed), 16 + 8 * (next(&seed) % 13), 16 + 8 * (next(&seed) % 13), 1 + next(&seed) % 4,
                 1 + next(&seed) % 3);
        struct answer a = client_make(&d, body);
        count(PICTURES, a.status, 200, 500);
        answer_free(&a);
    }
    return NULL;
}

static void *sends_nonsense(void *arg)
{
    static const char *const bodies[] = {"",
                                         "{",
                                         "[1,2",
                                         "{\"prompt\":7}",
                                         "{\"prompt\":\"a\",\"width\":\"wide\"}",
                                         "{\"prompt\":\"\xff\xfe\"}",
                                         "\x7f\x45LF"};
    unsigned seed = (unsigned)(uintptr_t)arg;
    char *noise = malloc(100000);
    while (noise && !over) {
        size_t len = next(&seed) % 100000;
        for (size_t i = 0; i + 1 < len; i++)
            noise[i] = (char)(32 + next(&seed) % 95);
        noise[len ? len - 1 : 0] = '\0';
        struct answer a = client_make(&d, bodies[next(&seed) % 7]);
        count(NONSENSE, a.status, 422, 400);
        answer_free(&a);
        a = client_make(&d, noise);
        count(NONSENSE, a.status, 422, 400);
        answer_free(&a);
        a = client_make(&d, "{\"prompt\":\"a\",\"width\":13}");
        count(NONSENSE, a.status, 400, 500);
        answer_free(&a);
        int fd = client_open(&d); /* not HTTP at all */
        client_write(fd, noise, len);
        close(fd);
        sleep_seconds(0.01);
    }
    free(noise);
    return NULL;
}

/* In the upload, in the queue, in a step, in the reply. */
static void *leaves(void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    while (!over) {
        int fd = client_begin(&d, "{\"prompt\":\"a\",\"width\":96,\"height\":96,\"num_inference_steps\":40}");
        sleep_seconds(0.001 * (next(&seed) % 200));
        if (fd >= 0)
            close(fd);
        fd = client_begin_bytes(&d, "/text-to-image", "Content-Type: application/json\r\n", SAME, 1000, 20);
        sleep_seconds(0.001 * (next(&seed) % 20));
        if (fd >= 0)
            close(fd);
        atomic_fetch_add(&requests[LEAVING], 2);
    }
    return NULL;
}

/* A byte at a time, given up by the daemon in the end or by the client. */
static void *is_slow(void *arg)
{
    static const char head[] = "POST /text-to-image HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n";
    unsigned seed = (unsigned)(uintptr_t)arg;
    while (!over) {
        int fd = client_open(&d);
        size_t most = next(&seed) % sizeof head;
        for (size_t i = 0; i < most && !over && client_write(fd, head + i, 1); i++)
            sleep_seconds(0.05);
        if (fd >= 0)
            close(fd);
        atomic_fetch_add(&requests[SLOW], 1);
    }
    return NULL;
}

/* ---- What is watched ---- */

enum { SAMPLES_MAX = 1 << 16 };
static double rss_mib[SAMPLES_MAX], health_ms[SAMPLES_MAX];
static int samples;

static double resident_mib(void)
{
    char path[64], line[200];
    double kib = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)d.pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmRSS: %lf", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib / 1024;
}

static int descriptors(void)
{
    char path[64];
    int n = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)d.pid);
    DIR *dir = opendir(path);
    while (dir && readdir(dir))
        n++;
    if (dir)
        closedir(dir);
    return n;
}

static void watch(void)
{
    double end = now_seconds() + 60 * minutes, pause = 60 * minutes / 2000;
    for (pause = pause < 0.05 ? 0.05 : pause; now_seconds() < end && samples < SAMPLES_MAX; samples++) {
        double start = now_seconds();
        struct answer a = client_ask(&d, "GET", "/health", NULL, NULL);
        health_ms[samples] = 1e3 * (now_seconds() - start);
        CHECK(a.status == 200, "/health: %d", a.status);
        answer_free(&a);
        rss_mib[samples] = resident_mib();
        sleep_seconds(pause);
    }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value that SHARE of the samples FROM .. TO do not exceed. */
static double quantile(const double *x, int from, int to, double share)
{
    static double sorted[SAMPLES_MAX];
    int n = to - from;
    memcpy(sorted, x + from, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    return sorted[(int)(share * (n - 1))];
}

/* The second quarter stands for the beginning: the first fills caches and arenas. */
static void judge(void)
{
    int q = samples / 4;
    if (!CHECK(q > 10, "%d samples", samples))
        return;
    double before = quantile(rss_mib, q, 2 * q, 0.5), after = quantile(rss_mib, 3 * q, 4 * q, 0.5);
    double early = quantile(health_ms, q, 2 * q, 0.99), late = quantile(health_ms, 3 * q, 4 * q, 0.99);
    double pictures = daemon_metric(&d, "latentd_images_total");
    CHECK(pictures > minutes, "%.0f pictures", pictures);
    printf("  %.0f pictures; resident %.1f MiB in the second quarter, %.1f in the last; /health p99 %.1f and "
           "%.1f ms\n",
           pictures, before, after, early, late);
    double allowed = 1 + minutes / 60;
    CHECK(sanitized() || after - before <= allowed, "grew by %.1f MiB, allowed %.1f", after - before,
          allowed);
    CHECK(early < 100 && late < 100, "/health is slow");
    for (int i = 0; i < KINDS; i++) {
        printf("  %-8s %ld requests\n", kind_names[i], requests[i]);
        CHECK(requests[i] > 0 && wrong[i] == 0, "%s: %ld of %ld with a wrong status", kind_names[i], wrong[i],
              requests[i]);
    }
}

static char *same_picture(void)
{
    struct answer a = client_make(&d, SAME);
    CHECK(a.status == 200, "%d", a.status);
    free(a.head);
    return a.body;
}

static void run_clients(void)
{
    void *(*const kinds[])(void *) = {wants_pictures, wants_pictures, wants_pictures, sends_nonsense,
                                      leaves,         leaves,         is_slow,        is_slow};
    enum { CLIENTS = sizeof kinds / sizeof *kinds };
    pthread_t thread[CLIENTS];
    for (int i = 0; i < CLIENTS; i++)
        if (pthread_create(&thread[i], NULL, kinds[i], (void *)(uintptr_t)(i + 1)))
            abort();
    watch();
    over = true;
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(thread[i], NULL);
}

TEST(mixed_clients)
{
    if (!CHECK(daemon_ready(&d, (const char *[]){"VERBOSE_LOGGING=", NULL})))
        return;
    char *first = same_picture();
    int before = descriptors();
    run_clients();
    double end = now_seconds() + 30; /* for the daemon to see that the last ones have left */
    while (descriptors() > before && now_seconds() < end)
        sleep_seconds(0.05);
    CHECK(descriptors() <= before, "%d descriptors at the start, %d now", before, descriptors());
    char *last = same_picture();
    CHECK(first && last && strcmp(first, last) == 0, "another picture than before");
    judge();
    char *log = daemon_log(&d);
    CHECK(!strstr(log, "level=ERROR"), "the log: %.500s", strstr(log, "level=ERROR"));
    free(log);
    free(first);
    free(last);
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        minutes = atof(argv[1]);
    test_list->run();
    printf("%d passed, %d failed\n", !test_failures, test_failures > 0);
    return test_failures > 0;
}
