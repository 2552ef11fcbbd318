/* latentd: serves one diffusion model over HTTP, or runs one of the commands. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "api.h"
#include "commands/commands.h"
#include "config.h"
#include "http/server.h"
#include "job.h"
#include "log.h"
#include "notify.h"
#include "streams.h"
#include "video.h"

/* Without a job for so long, the memory that jobs ran in is given back. */
#define REST_SECONDS 60.0

/* After SIGTERM: jobs may finish for DRAIN_SECONDS, are told to stop then, and CUT_SECONDS later are answered
 * as cancelled whatever the worker does. The sum with what closing takes stays below the 8 s that a container
 * is given. */
#define DRAIN_SECONDS 6.0
#define CUT_SECONDS   0.8
#define FLUSH_SECONDS 0.4
#define END_SECONDS   0.2 /* for the worker's thread, once it has nothing to do */
/* How long /health says ERROR before the process ends: a client that polls twice a second sees it. */
#define ERROR_SECONDS 1.5

static const char usage[] =
    "latentd " LATENTD_VERSION ": a daemon that makes pictures from text with a diffusion model\n"
    "\n"
    "  latentd                            serve HTTP until SIGTERM\n"
    "  latentd generate PROMPT -o FILE    make one picture without HTTP\n"
    "  latentd bench                      measure\n"
    "  latentd pull ORG/NAME              fetch a model from the Hugging Face hub\n"
    "  latentd kernels                    say who serves each operation on this machine\n"
    "  latentd openapi --type json|yaml [--entrypoint runner|gateway]\n"
    "                                     print the description of the HTTP interface\n"
    "  latentd --help | --version\n"
    "\n"
    "Settings are environment variables:\n"
    "  PIPELINE, MODEL_ID   what is served (text-to-image, " CONFIG_MODEL_DEFAULT "),\n"
    "                       image-to-image, image-to-video or upscale\n"
    "  MODEL_DIR            the folder that holds models\n"
    "  HOST, PORT           where to listen (127.0.0.1, 8000; port 0: any free one)\n"
    "  AUTH_TOKEN           bearer token that generation routes ask for (none)\n"
    "  VERSION              what /version says (undefined)\n"
    "  VERBOSE_LOGGING      1: log everything\n"
    "  LATENTD_BACKEND      cpu, cuda or auto (auto)\n"
    "  LATENTD_ISA          highest CPU tier: ref, avx2, avx512, avx512bf16, amx (the best there is);\n"
    "                       on a GPU the type of activations: fp16, bf16 (fp16)\n"
    "  LATENTD_THREADS      CPU threads (one a core)\n"
    "  LATENTD_QUEUE        requests that may wait (8)\n"
    "  LATENTD_MEMORY       MiB of main memory that one job may take (what is free)\n"
    "  LATENTD_NOISE_GPU    whose noise a seed gives, as multiprocessors x threads of each (132x2048: H100)\n"
    "  LATENTD_STREAM_MIB, LATENTD_STREAM_SECONDS\n"
    "                       how much of what replies name by URL is kept, and how long (256, 600)\n"
    "  LATENTD_RESPONSE_FORMAT\n"
    "                       data or url: what replies hold that do not ask for either (data)\n"
    "  LATENTD_STUCK        seconds without a step until a job counts as hung (600; 0: never)\n"
    "  LATENTD_H264         encoder of MP4s: libx264, libopenh264, h264_nvenc, none (the first there is)\n"
    "  LATENTD_CACHE        where packed weights and the choice of GPU kernels are kept\n"
    "                       (~/.cache/latentd; empty: nowhere)\n"
    "  LATENTD_PACKED_MIB   MiB of packed weights that are kept for the next start (16384; 0: none)\n"
    "  LATENTD_TUNE         0: GPU kernels are chosen by rule, not by timing them\n"
    "  DEEPCACHE            true: most steps reuse what an earlier one computed (false)\n"
    "  SFAST, TORCH_COMPILE true: a run before the daemon is ready (false)\n"
    "  LATENTD_PRECISION    int8, bf16 or fp32: what matrices are multiplied in (as fast as it goes without "
    "int8)\n"
    "  BFLOAT16             true or false: compute in bf16, or not (as fast as it goes)\n"
    "  SAFETY_CHECKER_DEVICE  cpu: safety checkers stay off the GPU (cuda)\n";

struct daemon {
    struct config config;
    enum pipeline_kind kind;
    struct service service;
    struct worker *worker;
    struct server *server;
    struct watchdog *watchdog; /* NULL unless the service manager watches */
    int signals, events;       /* signalfd; eventfd that the worker writes to */
};

static void worker_changed(void *ctx)
{
    struct daemon *d = ctx;
    ssize_t ignored = write(d->events, &(uint64_t){1}, sizeof(uint64_t));

    (void)ignored; /* the counter is full: main will wake up anyway */
}

/* Waits up to SECONDS (negative: for ever) for a signal or news from the worker. Returns true when a signal
 * came. */
static bool wait_event(struct daemon *d, double seconds)
{
    struct pollfd fds[2] = {{d->signals, POLLIN, 0}, {d->events, POLLIN, 0}};
    struct signalfd_siginfo info;
    uint64_t count;

    if (poll(fds, 2, seconds < 0 ? -1 : (int)(seconds * 1e3) + 1) <= 0)
        return false;
    if (fds[1].revents && read(d->events, &count, sizeof(count)) < 0 && errno != EAGAIN)
        log_warning("eventfd: %s", strerror(errno));
    return fds[0].revents && read(d->signals, &info, sizeof(info)) == sizeof(info);
}

/* Waits until OVER says so or SECONDS have passed. Returns false when a second signal asked to hurry. */
static bool wait_answered(struct daemon *d, double seconds, bool (*over)(struct daemon *))
{
    double end = clock_now() + seconds, left;

    while (!over(d) && (left = end - clock_now()) > 0)
        if (wait_event(d, left < 0.02 ? left : 0.02))
            return false;
    return true;
}

static bool answered(struct daemon *d)
{
    return worker_idle(d->worker) && server_active(d->server) == 0;
}

static bool ended(struct daemon *d)
{
    return worker_ended(d->worker);
}

/* Signals are read from a descriptor; threads started later inherit the mask. */
static int prepare(struct daemon *d, struct error *err)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    signal(SIGPIPE, SIG_IGN);
    if (sigprocmask(SIG_BLOCK, &set, NULL))
        return error_set(err, ERR_IO, "sigprocmask: %s", strerror(errno));
    d->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    d->events = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (d->signals < 0 || d->events < 0)
        return error_set(err, ERR_IO, "no descriptors for signals: %s", strerror(errno));
    return 0;
}

static int check_config(const struct config *c, enum pipeline_kind *kind, struct error *err)
{
    static const char *const backends[] = {"auto", "cpu", "cuda", "ref"};
    static const char *const tiers[] = {"ref", "avx2", "avx512", "avx512bf16", "amx", "fp16", "bf16"};
    bool known = !c->backend, tier = !c->isa;

    if (pipeline_named(c->pipeline, kind, err))
        return err->code;
    for (size_t i = 0; i < sizeof(backends) / sizeof(*backends); i++)
        known = known || strcmp(c->backend, backends[i]) == 0;
    if (!known)
        return error_set(err, ERR_INVALID, "LATENTD_BACKEND is \"%s\", accepted are cpu, cuda, ref and auto",
                         c->backend);
    for (size_t i = 0; i < sizeof(tiers) / sizeof(*tiers); i++)
        tier = tier || strcmp(c->isa, tiers[i]) == 0;
    if (!tier)
        return error_set(
            err, ERR_INVALID,
            "LATENTD_ISA is \"%s\", accepted are ref, avx2, avx512, avx512bf16 and amx, on a GPU fp16 "
            "and bf16",
            c->isa);
    return 0;
}

static int start(struct daemon *d, struct error *err)
{
    struct config *c = &d->config;
    struct worker_options options = {
        .backend = {.kind = c->backend,
                    .isa = c->isa,
                    .threads = c->threads,
                    .noise_wave = c->noise_wave,
                    .memory_max = c->memory,
                    .store = c->store_most ? c->store : NULL,
                    .store_most = c->store_most,
                    .store_least = CONFIG_PACKED_LEAST,
                    .bf16 = c->bf16,
                    .precision = c->precision},
        .model = {.pipeline = d->kind,
                  .dir = c->model_dir,
                  .shelf = c->shelf,
                  .id = c->model_id,
                  .deepcache = c->deepcache,
                  .safety_on_cpu = c->safety_on_cpu},
        .queue = c->queue,
        .rest = REST_SECONDS,
        .stuck = c->stuck,
        .warm_up = c->warm_up,
        .changed = worker_changed,
        .ctx = d,
    };

    log_info("latentd " LATENTD_VERSION ": %s with model %s from %s", c->pipeline, c->model_id, c->model_dir);
    if (d->kind == PIPELINE_IMAGE_TO_VIDEO)
        log_info(mp4_encoder() ? "videos are encoded by %s"
                               : "no H.264 encoder (%s): replies hold frames, but no video",
                 mp4_encoder() ? mp4_encoder() : "libavcodec");
    notify("STATUS=loading %s", c->model_id);
    d->service.config = c;
    int rc = worker_start(&d->worker, &options, err);
    if (rc)
        return rc;
    d->service.worker = d->worker;
    if (c->stream_bytes)
        rc = streams_open(&d->service.streams, c->stream_bytes, c->stream_seconds, err);
    if (rc)
        return rc;
    rc = server_start(&d->server, &d->service, err);
    if (rc == 0)
        log_info(strchr(c->host, ':') ? "listening on http://[%s]:%d" : "listening on http://%s:%d", c->host,
                 server_port(d->server));
    return rc;
}

/* The model is loaded: systemd starts what waits for this service, and watches from now on. */
static void tell_ready(struct daemon *d)
{
    struct error err = {0};
    double limit = notify_watchdog();

    notify("READY=1\nSTATUS=%s with %s on port %d", d->config.pipeline, d->config.model_id,
           server_port(d->server));
    if (limit > 0 && watchdog_start(&d->watchdog, d->server, limit, &err))
        log_error("%s", err.msg);
}

/* Until a signal comes or the worker fails. Returns the exit status. */
static int serve_until_told(struct daemon *d)
{
    struct error err = {0};
    bool told = false;

    for (enum worker_state state; !wait_event(d, -1);) {
        state = worker_state(d->worker);
        if (state == WORKER_READY && !told)
            tell_ready(d);
        told = told || state == WORKER_READY;
        if (state == WORKER_FAILED) {
            worker_error(d->worker, &err);
            log_error("%s", err.msg);
            notify("STATUS=%s", err.msg);
            wait_event(d, 0);
            for (double end = clock_now() + ERROR_SECONDS; clock_now() < end;)
                if (wait_event(d, end - clock_now()))
                    break;
            return 1;
        }
    }
    log_info("stopping: %d requests are being answered", server_active(d->server));
    return 0;
}

/* No new connections, no new jobs; then as patient as there is time for. */
static void drain(struct daemon *d)
{
    notify("STOPPING=1");
    watchdog_stop(&d->watchdog);
    server_quiesce(d->server);
    worker_drain(d->worker);
    bool calm = wait_answered(d, DRAIN_SECONDS, answered);
    worker_cancel_all(d->worker, CANCEL_SHUTDOWN);
    if (calm)
        calm = wait_answered(d, CUT_SECONDS, answered);
    worker_abandon(d->worker);
    if (calm)
        wait_answered(d, FLUSH_SECONDS, answered);
}

static int serve(void)
{
    static struct daemon d;
    struct error err = {0};
    int status = 1;

    if (config_check_served(&err) || config_read(&d.config, &err) || check_config(&d.config, &d.kind, &err) ||
        prepare(&d, &err)) {
        fprintf(stderr, "latentd: %s\n", err.msg);
        return 1;
    }
    log_set_level(d.config.verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO);
    if (start(&d, &err)) {
        fprintf(stderr, "latentd: %s\n", err.msg);
        fflush(NULL);
        _exit(1); /* the worker may be in the middle of loading */
    }
    status = serve_until_told(&d);
    drain(&d);
    wait_answered(&d, END_SECONDS, ended);
    if (!answered(&d))
        log_warning("leaving before every request was answered");
    log_info("stopped");
    /* A worker that still computes or loads cannot be joined, and nothing may be freed under it. */
    if (worker_ended(d.worker)) {
        server_stop(&d.server);
        worker_stop(&d.worker);
        streams_close(&d.service.streams);
    } else {
        _exit(status);
    }
    close(d.signals);
    close(d.events);
    return status;
}

static void end_by_signal(int sig)
{
    _exit(128 + sig);
}

/* The kernel drops signals without a handler that are sent to process 1, which a container's command is:
 * Ctrl-C and `docker stop` would do nothing. Elsewhere a shell is to see that a signal ended the command. */
static void heed_signals(void)
{
    if (getpid() != 1)
        return;
    signal(SIGINT, end_by_signal);
    signal(SIGTERM, end_by_signal);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = {{"generate", command_generate},
                    {"bench", command_bench},
                    {"pull", command_pull},
                    {"kernels", command_kernels},
                    {"openapi", command_openapi}};

    if (argc < 2)
        return serve();
    heed_signals();
    for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    if (strcmp(argv[1], "--version") == 0) {
        puts("latentd " LATENTD_VERSION);
        return 0;
    }
    bool help = strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0;
    if (!help)
        fprintf(stderr, "latentd: unknown command \"%s\"\n\n", argv[1]);
    fputs(usage, help ? stdout : stderr);
    return help ? 0 : 2;
}
