/* GET /metrics: Prometheus text format 0.0.4. Names carry their base unit; labels are few and never come from
 * clients. */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "streams.h"

static const int codes[CODES_MAX] = {200, 204, 206, 304,         307, 400, 401, 404,
                                     405, 416, 422, CLIENT_LEFT, 500, 503, 0};
static const char *const methods[METHODS_MAX] = {"GET", "POST", "other"};

static int code_index(int status)
{
    int i = 0;

    while (codes[i] && codes[i] != status)
        i++;
    return i;
}

void http_count(struct http_stats *st, const struct route *route, const char *method, int status,
                double seconds)
{
    int row = route ? (int)(route - routes) : ROUTE_STATIC_MAX;
    int m = 0;

    while (m < METHODS_MAX - 1 && strcmp(methods[m], method) != 0)
        m++;
    pthread_mutex_lock(&st->lock);
    st->requests[row][m][code_index(status)]++;
    histogram_observe(&st->duration[row], seconds);
    pthread_mutex_unlock(&st->lock);
}

void http_reject(struct http_stats *st, enum rejection why)
{
    pthread_mutex_lock(&st->lock);
    st->rejected[why]++;
    pthread_mutex_unlock(&st->lock);
}

/* ---- Writing ---- */

static void family(struct buffer *b, const char *name, const char *type, const char *help)
{
    buffer_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void gauge(struct buffer *b, const char *name, const char *help, double value)
{
    family(b, name, "gauge", help);
    buffer_printf(b, "%s %.17g\n", name, value);
}

static void counter(struct buffer *b, const char *name, const char *help, uint64_t value)
{
    family(b, name, "counter", help);
    buffer_printf(b, "%s %llu\n", name, (unsigned long long)value);
}

/* LABEL is empty or `key="value"`. */
static void histogram(struct buffer *b, const char *name, const char *label, const struct histogram *h)
{
    uint64_t sum = 0;
    const char *comma = *label ? "," : "";

    for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
        sum += h->bucket[i];
        buffer_printf(b, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, label, comma, histogram_bounds[i],
                      (unsigned long long)sum);
    }
    sum += h->bucket[HISTOGRAM_BUCKETS];
    buffer_printf(b, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, label, comma, (unsigned long long)sum);
    buffer_printf(b, *label ? "%s_sum{%s} %.9g\n" : "%s_sum%s %.9g\n", name, label, h->sum);
    buffer_printf(b, *label ? "%s_count{%s} %llu\n" : "%s_count%s %llu\n", name, label,
                  (unsigned long long)sum);
}

static void put_http(struct buffer *b, struct server *srv)
{
    struct http_stats *st = &srv->stats;
    char label[96];

    pthread_mutex_lock(&st->lock);
    family(b, "latentd_http_requests_total", "counter", "Requests answered, by route, method and status.");
    for (int row = 0; row <= ROUTE_STATIC_MAX; row++)
        for (int m = 0; m < METHODS_MAX; m++)
            for (int c = 0; c < CODES_MAX; c++)
                if (st->requests[row][m][c])
                    buffer_printf(
                        b, "latentd_http_requests_total{route=\"%s\",method=\"%s\",code=\"%d\"} %llu\n",
                        row < route_count ? routes[row].path : "other", methods[m], codes[c],
                        (unsigned long long)st->requests[row][m][c]);
    family(b, "latentd_http_request_duration_seconds", "histogram",
           "From the headers to the last byte of the reply.");
    for (int row = 0; row < route_count; row++) {
        if (!route_served(&routes[row], srv->service->config->pipeline))
            continue;
        snprintf(label, sizeof(label), "route=\"%s\"", routes[row].path);
        histogram(b, "latentd_http_request_duration_seconds", label, &st->duration[row]);
    }
    pthread_mutex_unlock(&st->lock);
    gauge(b, "latentd_connections", "Open connections.", atomic_load(&srv->connections.count));
    counter(b, "latentd_connections_timed_out_total", "Connections closed because they were too slow.",
            atomic_load(&srv->connections.reaped));
}

/* One line of a counter family for each of NAMES; those that are NULL are left out. */
static void counters(struct buffer *b, const char *name, const char *label, const char *const *names,
                     const uint64_t *values, int count)
{
    for (int i = 0; i < count; i++)
        if (names[i])
            buffer_printf(b, "%s{%s=\"%s\"} %llu\n", name, label, names[i], (unsigned long long)values[i]);
}

static void put_rejections(struct buffer *b, struct http_stats *st, const struct worker_stats *w)
{
    static const char *const refusals[REFUSAL_COUNT] = {NULL, "queue_full", "loading", "draining", "failed"};
    static const char *const rejections[REJECTION_COUNT] = {"invalid", "auth", "too_large", "uploads_full"};

    family(b, "latentd_rejected_total", "counter", "Requests refused before they became a job.");
    counters(b, "latentd_rejected_total", "reason", refusals, w->refused, REFUSAL_COUNT);
    pthread_mutex_lock(&st->lock);
    counters(b, "latentd_rejected_total", "reason", rejections, st->rejected, REJECTION_COUNT);
    pthread_mutex_unlock(&st->lock);
}

static void put_queue(struct buffer *b, const struct worker_stats *w, const struct config *config)
{
    gauge(b, "latentd_queue_depth", "Jobs that wait.", w->waiting);
    gauge(b, "latentd_queue_capacity", "Jobs that may wait.", config->queue);
    gauge(b, "latentd_requests_running", "Jobs that run.", w->running);
    family(b, "latentd_running_phase", "gauge", "1 for the phase that the running job is in.");
    for (int i = PHASE_TEXT; i <= PHASE_ENCODE; i++)
        buffer_printf(b, "latentd_running_phase{phase=\"%s\"} %d\n", phase_names[i], (int)w->at == i);
    gauge(b, "latentd_running_step", "Step that the running job is in; 0 outside of steps.", w->step);
    gauge(b, "latentd_running_steps", "Steps of the running job; 0 outside of steps.", w->steps);
    family(b, "latentd_queue_wait_seconds", "histogram", "From the queue's end to the worker.");
    histogram(b, "latentd_queue_wait_seconds", "", &w->wait);
}

static void put_jobs(struct buffer *b, const struct worker_stats *w, const char *pipeline)
{
    static const char *const reasons[CANCEL_REASONS] = {NULL, "disconnect", "shutdown", "slow"};
    char label[96];

    counter(b, "latentd_images_total", "Pictures made.", w->images);
    counter(b, "latentd_pixels_total", "Pixels made.", w->pixels);
    family(b, "latentd_cancelled_total", "counter", "Jobs stopped before their end.");
    counters(b, "latentd_cancelled_total", "reason", reasons, w->cancelled, CANCEL_REASONS);
    family(b, "latentd_errors_total", "counter", "Jobs that failed.");
    counters(b, "latentd_errors_total", "kind", failure_names, w->failed, FAILURE_COUNT);
    family(b, "latentd_generation_duration_seconds", "histogram", "Jobs that succeeded, without their wait.");
    snprintf(label, sizeof(label), "pipeline=\"%.60s\"", pipeline);
    histogram(b, "latentd_generation_duration_seconds", label, &w->generation);
    family(b, "latentd_phase_duration_seconds", "histogram", "Each phase, and each single step.");
    for (int i = PHASE_TEXT; i <= PHASE_ENCODE; i++) {
        snprintf(label, sizeof(label), "phase=\"%s\"", phase_names[i]);
        histogram(b, "latentd_phase_duration_seconds", label, &w->phase[i]);
    }
}

/* S with what the text format wants escaped in label values. */
static void put_label(struct buffer *b, const char *s)
{
    for (; *s; s++) {
        if (*s == '\\' || *s == '"')
            buffer_add(b, "\\", 1);
        if (*s == '\n')
            buffer_add(b, "\\n", 2);
        else
            buffer_add(b, s, 1);
    }
}

static void put_streams(struct buffer *b, struct streams *s)
{
    size_t blobs = 0, bytes = 0;

    if (s)
        streams_count(s, &blobs, &bytes);
    gauge(b, "latentd_streams", "Pictures and videos kept under /stream/.", (double)blobs);
    gauge(b, "latentd_stream_bytes", "Their size.", (double)bytes);
}

static void put_identity(struct buffer *b, struct server *srv, const struct worker_stats *w)
{
    const struct config *c = srv->service->config;

    family(b, "version", "gauge", "Version of the runner.");
    buffer_puts(b, "version{app=\"ai-runner\",version=\"");
    put_label(b, c->version);
    buffer_puts(b, "\"} 1\n");
    family(b, "latentd_build_info", "gauge",
           "What runs here; backend and tier are empty until the model is loaded.");
    buffer_printf(b,
                  "latentd_build_info{version=\"" LATENTD_VERSION "\",commit=\"" LATENTD_COMMIT
                  "\",backend=\"%s\",tier=\"%s\"} 1\n",
                  w->backend, w->tier);
    family(b, "latentd_model_info", "gauge", "What is served.");
    buffer_puts(b, "latentd_model_info{pipeline=\"");
    put_label(b, c->pipeline);
    buffer_puts(b, "\",model_id=\"");
    put_label(b, c->model_id);
    buffer_puts(b, "\"} 1\n");
    gauge(b, "latentd_model_ready", "1 when the model is loaded.",
          worker_state(srv->service->worker) == WORKER_READY);
    gauge(b, "latentd_model_load_seconds", "Time that loading took; 0 until it has ended.", w->load_seconds);
    gauge(b, "latentd_model_weight_bytes", "Packed weights in memory.", (double)w->weight_bytes);
    gauge(b, "latentd_job_memory_bytes", "Memory kept for the next job.", (double)w->job_bytes);
}

/* Nothing on the CPU. */
static void put_gpu(struct buffer *b, struct worker *w)
{
    struct device_info d;

    if (!worker_device(w, &d))
        return;
    family(b, "latentd_gpu_memory_bytes", "gauge", "Memory of the GPU, of all its processes.");
    buffer_printf(b,
                  "latentd_gpu_memory_bytes{gpu=\"0\",state=\"used\"} %zu\n"
                  "latentd_gpu_memory_bytes{gpu=\"0\",state=\"free\"} %zu\n",
                  d.memory_total > d.memory_free ? d.memory_total - d.memory_free : 0, d.memory_free);
}

/* ---- The process, as Prometheus' own client libraries name it ---- */

static int count_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = -3; /* ".", ".." and the folder itself */

    if (!dir)
        return 0;
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static void put_process(struct buffer *b, const struct server *srv)
{
    struct rlimit limit = {0};
    struct timespec cpu = {0};
    unsigned long size = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (f && fscanf(f, "%lu %lu", &size, &resident) != 2)
        size = resident = 0;
    if (f)
        fclose(f);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    getrlimit(RLIMIT_NOFILE, &limit);
    family(b, "process_cpu_seconds_total", "counter", "User and system time spent.");
    buffer_printf(b, "process_cpu_seconds_total %.3f\n", (double)cpu.tv_sec + 1e-9 * (double)cpu.tv_nsec);
    gauge(b, "process_start_time_seconds", "Start, in seconds since 1970.", srv->started);
    gauge(b, "process_virtual_memory_bytes", "Virtual memory.", (double)size * (double)sysconf(_SC_PAGESIZE));
    gauge(b, "process_resident_memory_bytes", "Resident memory.",
          (double)resident * (double)sysconf(_SC_PAGESIZE));
    gauge(b, "process_open_fds", "Open files and sockets.", count_fds());
    gauge(b, "process_max_fds", "Limit of open files and sockets.", (double)limit.rlim_cur);
}

void metrics_reply(struct server *srv, struct reply *reply)
{
    struct worker_stats stats;
    struct buffer *b = &reply->body;

    worker_stats(srv->service->worker, &stats);
    put_identity(b, srv, &stats);
    put_gpu(b, srv->service->worker);
    put_queue(b, &stats, srv->service->config);
    put_rejections(b, &srv->stats, &stats);
    put_jobs(b, &stats, srv->service->config->pipeline);
    put_streams(b, srv->service->streams);
    put_http(b, srv);
    put_process(b, srv);
    reply->status = 200;
    reply->content_type = "text/plain; version=0.0.4; charset=utf-8";
}
