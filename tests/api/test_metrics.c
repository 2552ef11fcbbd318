/* Each metric by its change: what is counted is what happened. And the probes of orchestrators, in each
 * state. */
#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.h"
#include "test.h"

#define ENDLESS                                                                                              \
    "{\"prompt\":\"a\",\"width\":128,\"height\":128,\"num_inference_steps\":900,\"num_images_per_prompt\":"  \
    "50}"

static struct daemon tiny;

static void start_tiny(void)
{
    daemon_shared(&tiny, (const char *[]){"LATENTD_QUEUE=2", "AUTH_TOKEN=secret", NULL});
}

static int ask(const char *method, const char *path, const char *headers, const char *body)
{
    struct answer a = client_ask(&tiny, method, path, headers, body);
    int status = a.status;

    answer_free(&a);
    return status;
}

#define JSON  "Content-Type: application/json\r\n"
#define TOKEN "Authorization: Bearer secret\r\n"

static int make(const char *body)
{
    return ask("POST", "/text-to-image", JSON TOKEN, body);
}

/* A long job, whose reply is left unread. */
static int begin_long(void)
{
    return client_begin_bytes(&tiny, "/text-to-image", JSON TOKEN, ENDLESS, strlen(ENDLESS), strlen(ENDLESS));
}

/* A request is counted once its last byte is sent, a moment after the client has read it. */
static void grows(const char *name, double before, double by)
{
    CHECK(daemon_metric_reaches(&tiny, name, before + by, 10) && daemon_metric(&tiny, name) == before + by,
          "%s was %g, is %g, should have grown by %g", name, before, daemon_metric(&tiny, name), by);
}

static double value(const char *name)
{
    double v = daemon_metric(&tiny, name);

    CHECK(v >= 0, "there is no %s", name);
    return v;
}

static bool falls_to(const char *name, double want)
{
    double end = now_seconds() + 20;

    while (daemon_metric(&tiny, name) != want && now_seconds() < end)
        sleep_seconds(0.005);
    return daemon_metric(&tiny, name) == want;
}

#define PHASE(name)     "latentd_phase_duration_seconds_count{phase=\"" name "\"}"
#define REJECTED(name)  "latentd_rejected_total{reason=\"" name "\"}"
#define CANCELLED(name) "latentd_cancelled_total{reason=\"" name "\"}"

TEST(a_picture_is_counted)
{
    static const struct {
        const char *name;
        double by;
    } wanted[] = {
        {"latentd_images_total", 2},
        {"latentd_pixels_total", 2 * 40 * 32},
        {PHASE("text"), 2},
        {PHASE("step"), 8}, /* the tiny model's scheduler runs one more */
        {PHASE("decode"), 2},
        {PHASE("encode"), 2},
        {"latentd_queue_wait_seconds_count", 1},
        {"latentd_queue_wait_seconds_bucket{le=\"+Inf\"}", 1},
        {"latentd_generation_duration_seconds_count{pipeline=\"text-to-image\"}", 1},
        {"latentd_http_request_duration_seconds_count{route=\"/text-to-image\"}", 1},
        {"latentd_http_request_duration_seconds_bucket{route=\"/text-to-image\",le=\"120\"}", 1},
        {REJECTED("invalid"), 0},
        {CANCELLED("disconnect"), 0},
    };
    enum { COUNT = sizeof(wanted) / sizeof(*wanted) };
    double before[COUNT], seconds;

    start_tiny();
    for (int i = 0; i < COUNT; i++)
        before[i] = value(wanted[i].name);
    seconds = value("latentd_generation_duration_seconds_sum{pipeline=\"text-to-image\"}");
    CHECK(make("{\"prompt\":\"a\",\"width\":40,\"height\":32,\"num_inference_steps\":3,"
               "\"num_images_per_prompt\":2}") == 200);
    for (int i = 0; i < COUNT; i++)
        grows(wanted[i].name, before[i], wanted[i].by);
    CHECK(value("latentd_generation_duration_seconds_sum{pipeline=\"text-to-image\"}") > seconds);
}

TEST(requests_are_counted_by_route_method_and_status)
{
    static const struct {
        const char *method, *path, *name;
        int status;
    } wanted[] = {
        {"GET", "/health", "{route=\"/health\",method=\"GET\",code=\"200\"}", 200},
        {"GET", "/health/", "{route=\"/health\",method=\"GET\",code=\"200\"}", 200},
        {"GET", "/ping", "{route=\"/ping\",method=\"GET\",code=\"200\"}", 200},
        {"GET", "/nothing", "{route=\"other\",method=\"GET\",code=\"404\"}", 404},
        {"GET", "/text-to-image", "{route=\"other\",method=\"GET\",code=\"405\"}", 405},
        {"PUT", "/health", "{route=\"other\",method=\"other\",code=\"405\"}", 405},
        {"GET", "/docs/", "{route=\"other\",method=\"GET\",code=\"307\"}", 307},
        {"POST", "/text-to-image", "{route=\"/text-to-image\",method=\"POST\",code=\"422\"}", 422},
    };

    start_tiny();
    for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
        char name[200];
        snprintf(name, sizeof(name), "latentd_http_requests_total%s", wanted[i].name);
        double before = daemon_metric(&tiny, name);
        int status = ask(wanted[i].method, wanted[i].path, NULL, NULL);
        CHECK(status == wanted[i].status, "%s: %d", wanted[i].path, status);
        grows(name, before < 0 ? 0 : before, 1);
    }
}

TEST(refusals_are_counted_by_reason)
{
    static const char *const reasons[] = {REJECTED("invalid"), REJECTED("auth"), REJECTED("too_large"),
                                          REJECTED("queue_full")};
    static const double by[] = {2, 1, 2, 0};
    double before[4];

    start_tiny();
    for (int i = 0; i < 4; i++)
        before[i] = value(reasons[i]);
    CHECK(make("{\"prompt\":1}") == 422);
    CHECK(make("{\"prompt\":\"\"}") == 400);
    CHECK(ask("POST", "/text-to-image", JSON, "{\"prompt\":\"a\"}") == 401);
    CHECK(make("{\"prompt\":\"a\",\"width\":80000000000,\"height\":512}") == 500);
    CHECK(ask("POST", "/text-to-image", JSON TOKEN "Expect: 100-continue\r\nContent-Length: 99999999\r\n",
              NULL) == 400);
    for (int i = 0; i < 4; i++)
        grows(reasons[i], before[i], by[i]);
}

/* The queue while it is full: gauges go up, and down again when the clients leave. */
TEST(the_queue_shows)
{
    int fd[3];

    start_tiny();
    double full = value(REJECTED("queue_full")), left = value(CANCELLED("disconnect"));
    CHECK(value("latentd_queue_capacity") == 2 && value("latentd_queue_depth") == 0);
    for (int i = 0; i < 3; i++) {
        fd[i] = begin_long();
        CHECK(daemon_metric_reaches(&tiny, i ? "latentd_queue_depth" : "latentd_requests_running", i ? i : 1,
                                    10));
    }
    CHECK(daemon_metric_reaches(&tiny, "latentd_running_step", 2, 20));
    CHECK(value("latentd_running_steps") == 901);
    CHECK(make("{\"prompt\":\"a\"}") == 500);
    grows(REJECTED("queue_full"), full, 1);
    for (int i = 0; i < 3; i++)
        close(fd[i]);
    grows(CANCELLED("disconnect"), left, 3);
    CHECK(falls_to("latentd_requests_running", 0));
    CHECK(falls_to("latentd_queue_depth", 0) && falls_to("latentd_running_steps", 0));
    CHECK(daemon_metric_reaches(
        &tiny, "latentd_http_requests_total{route=\"/text-to-image\",method=\"POST\",code=\"499\"}", 3, 10));
}

TEST(identity)
{
    start_tiny();
    struct answer a = client_ask(&tiny, "GET", "/metrics", NULL, NULL);
    char *info = strstr(a.body, "\nlatentd_build_info{version=\"");
    CHECK(info && strstr(info, ",commit=\"") && strstr(info, ",backend=\"cpu\",tier=\""));
    CHECK(strstr(a.body, "\nversion{app=\"ai-runner\",version=\"undefined\"} 1\n"));
    CHECK(strstr(a.body, "\nlatentd_model_info{pipeline=\"text-to-image\",model_id=\"latentd/tiny\"} 1\n"));
    CHECK(!strstr(a.body, "latentd_gpu_memory_bytes"), "there is no GPU here");
    answer_free(&a);
    CHECK(value("latentd_model_ready") == 1 && value("latentd_model_load_seconds") > 0 &&
          value("latentd_model_weight_bytes") > 0);
    double cpu = value("process_cpu_seconds_total");
    CHECK(make("{\"prompt\":\"a\",\"num_inference_steps\":5,\"width\":128,\"height\":128}") == 200);
    CHECK(value("process_cpu_seconds_total") > cpu && value("process_start_time_seconds") > 1e9 &&
          value("process_open_fds") > 3);
}

/* The name of the metric that LINE is a sample of, without what a histogram appends; the caller frees it. */
static char *family_of(const char *line)
{
    char *name = strndup(line, strcspn(line, "{ "));

    for (int i = 0; i < 3; i++) {
        static const char *const ends[] = {"_bucket", "_sum", "_count"};
        size_t len = strlen(name), end = strlen(ends[i]);
        if (strstr(name, "_seconds_") && len > end && strcmp(name + len - end, ends[i]) == 0)
            name[len - end] = '\0';
    }
    return name;
}

/* The text format: every sample stands below the HELP and TYPE of its family, which comes once; counters end
 * in _total, names are lower case, values are numbers. */
TEST(the_text_format)
{
    char type[200] = "", *line, *save = NULL;
    int samples = 0;

    start_tiny();
    struct answer a = client_ask(&tiny, "GET", "/metrics", NULL, NULL);
    CHECK(a.len > 0 && a.body[a.len - 1] == '\n');
    char *all = strdup(a.body);
    for (line = strtok_r(a.body, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char kind[20] = "", again[220], *end;
        if (sscanf(line, "# TYPE %199s %19s", type, kind) == 2) {
            snprintf(again, sizeof(again), "# TYPE %s ", type);
            CHECK(!strstr(strstr(all, again) + 1, again), "%s twice", again);
            bool total = strlen(type) > 6 && strcmp(type + strlen(type) - 6, "_total") == 0;
            CHECK(total == (strcmp(kind, "counter") == 0), "%s is a %s", type, kind);
        }
        if (*line == '#')
            continue;
        char *name = family_of(line), *number = strrchr(line, ' ');
        CHECK(strcmp(name, type) == 0, "%s below %s", line, type);
        for (char *c = name; *c; c++)
            CHECK(islower((unsigned char)*c) || *c == '_', "%s", name);
        CHECK(number && (strtod(number, &end), *end == '\0'), "%s", line);
        free(name);
        samples++;
    }
    CHECK(samples > 100, "%d samples", samples);
    free(all);
    answer_free(&a);
}

/* ---- Probes ---- */

static void probe(const struct daemon *d, const char *path, int status, const char *body)
{
    struct answer a = client_ask(d, "GET", path, NULL, NULL);

    CHECK(a.status == status && strcmp(a.body, body) == 0, "%s: %d %s", path, a.status, a.body);
    answer_free(&a);
}

#define SAYS(word) "{\"status\":\"" word "\"}"

TEST(probes_when_ready)
{
    start_tiny();
    probe(&tiny, "/health/live", 200, SAYS("live"));
    probe(&tiny, "/health/ready", 200, SAYS("ready"));
    probe(&tiny, "/health/ready/", 200, SAYS("ready"));
    probe(&tiny, "/ping", 200, SAYS("ready"));
}

/* A shelf whose tiny model has a scheduler that is a pipe that nobody writes to (loading never ends), or none
 * (it fails). */
static void make_shelf(char shelf[64], bool fails)
{
    char text[300];

    strcpy(shelf, "/tmp/latentd-shelf-XXXXXX");
    CHECK(mkdtemp(shelf) != NULL);
    snprintf(text, sizeof(text), "cp -r %s/latentd %s/", TINY_DIR, shelf);
    CHECK(system(text) == 0);
    snprintf(text, sizeof(text), "%s/latentd/tiny/scheduler/scheduler_config.json", shelf);
    CHECK(unlink(text) == 0 && (fails || mkfifo(text, 0600) == 0));
}

static void remove_shelf(const char *shelf)
{
    char text[300];

    snprintf(text, sizeof(text), "rm -rf %s", shelf);
    CHECK(system(text) == 0);
}

TEST(probes_while_loading)
{
    struct daemon d;
    char shelf[64], env[100];

    make_shelf(shelf, false);
    snprintf(env, sizeof(env), "MODEL_DIR=%s", shelf);
    daemon_start(&d, (const char *[]){env, NULL});
    probe(&d, "/health/live", 200, SAYS("live"));
    probe(&d, "/health/ready", 503, SAYS("loading"));
    probe(&d, "/ping", 204, "");
    CHECK(daemon_metric(&d, "latentd_model_ready") == 0 &&
          daemon_metric(&d, "latentd_model_load_seconds") == 0);
    struct answer a = client_make(&d, "{\"prompt\":\"a\"}");
    CHECK(a.status == 500);
    answer_free(&a);
    CHECK(daemon_metric(&d, REJECTED("loading")) == 1);
    daemon_end(&d, SIGTERM, 8);
    remove_shelf(shelf);
}

/* A failed process ends within a second and a half, so it may be gone before all are asked; what it says
 * until then must be right. */
TEST(probes_when_failed)
{
    static const char *const paths[] = {"/health/live", "/health/ready", "/ping"};
    struct daemon d;
    char shelf[64], env[100];
    double end = now_seconds() + 10;
    int seen = 0;

    make_shelf(shelf, true);
    snprintf(env, sizeof(env), "MODEL_DIR=%s", shelf);
    daemon_start(&d, (const char *[]){env, NULL});
    CHECK(daemon_logged(&d, "level=ERROR", 10));
    while (seen < 3 && now_seconds() < end) {
        struct answer a = client_ask(&d, "GET", paths[seen], NULL, NULL);
        if (a.status == 0) /* it has ended */
            break;
        CHECK(a.status == 503 && strcmp(a.body, SAYS("failed")) == 0, "%s: %d %s", paths[seen], a.status,
              a.body);
        answer_free(&a);
        seen++;
    }
    CHECK(seen > 0, "it was gone before it was asked");
    CHECK(daemon_end(&d, 0, 10) == 1);
    remove_shelf(shelf);
}

/* One reply on a connection that stays open. */
static void probe_on(int fd, const char *path, int status, const char *body)
{
    char text[200];

    snprintf(text, sizeof(text), "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path);
    client_puts(fd, text);
    struct answer a = client_read(fd, 20);
    CHECK(a.status == status && strcmp(a.body, body) == 0, "%s: %d %s", path, a.status, a.body);
    answer_free(&a);
    close(fd);
}

/* The value of a metric, asked for on a connection that was opened before. */
static double metric_on(int fd, const char *name)
{
    client_puts(fd, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    struct answer a = client_read(fd, 20);
    const char *line = strstr(a.body, name);
    double v = line ? strtod(line + strlen(name), NULL) : -1;

    answer_free(&a);
    close(fd);
    return v;
}

TEST(probes_when_draining)
{
    struct daemon d;
    int fd[5];

    if (!CHECK(daemon_ready(&d, NULL)))
        return;
    for (int i = 0; i < 5; i++)
        fd[i] = client_open(&d);
    int job = client_begin(&d, ENDLESS);
    CHECK(daemon_metric_reaches(&d, "latentd_running_step", 2, 20));
    kill(d.pid, SIGTERM);
    CHECK(daemon_logged(&d, "stopping", 10));
    /* the log's line comes a moment before the drain begins */
    double end = now_seconds() + 3;
    for (int other; (other = client_open(&d)) >= 0 && now_seconds() < end; close(other))
        sleep_seconds(0.01);
    probe_on(fd[0], "/health/live", 200, SAYS("live"));
    probe_on(fd[1], "/health/ready", 503, SAYS("draining"));
    probe_on(fd[2], "/ping", 503, SAYS("draining"));
    client_puts(fd[3], "POST /text-to-image HTTP/1.1\r\nHost: localhost\r\n" JSON
                       "Content-Length: 14\r\n\r\n{\"prompt\":\"a\"}");
    struct answer a = client_read(fd[3], 20);
    CHECK(a.status == 500);
    answer_free(&a);
    close(fd[3]);
    CHECK(metric_on(fd[4], REJECTED("draining")) == 1);
    close(job);
    CHECK(daemon_end(&d, 0, 10) == 0);
}

TEST(stop)
{
    if (tiny.pid)
        CHECK(daemon_end(&tiny, SIGTERM, 8) == 0);
}

TEST_MAIN()
