/* What a service manager hears (sd_notify), played by a socket of the test; and hangs: of the worker, and of
 * the threads that answer HTTP, stopped one by one with ptrace as a hung device or a deadlock would stop
 * them. */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"
#include "test.h"

static char address[100]; /* NOTIFY_SOCKET=… */

/* A socket for one daemon; with ABSTRACT one without a file. */
static int manager_open(bool abstract)
{
    static int count;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    snprintf(address, sizeof(address), "NOTIFY_SOCKET=%s/latentd-notify-%d-%d", abstract ? "@" : "/tmp",
             (int)getpid(), count++);
    const char *path = address + 14;
    memcpy(a.sun_path, path, strlen(path));
    if (abstract)
        a.sun_path[0] = '\0';
    CHECK(bind(fd, (struct sockaddr *)&a,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path))) == 0);
    return fd;
}

static void manager_close(int fd)
{
    close(fd);
    if (address[14] == '/')
        unlink(address + 14);
}

/* The next message within SECONDS, "" when there is none; overwritten by the next call. */
static const char *hear(int fd, double seconds)
{
    static char text[1000];
    struct pollfd p = {fd, POLLIN, 0};

    memset(text, 0, sizeof(text));
    if (poll(&p, 1, (int)(seconds * 1000)) > 0 && recv(fd, text, sizeof(text) - 1, 0) < 0)
        text[0] = '\0';
    return text;
}

/* Keep-alives heard within SECONDS. */
static int keepalives(int fd, double seconds)
{
    double end = now_seconds() + seconds, left;
    int n = 0;

    while ((left = end - now_seconds()) > 0)
        n += strcmp(hear(fd, left), "WATCHDOG=1") == 0;
    return n;
}

/* In order: loading, ready when the model is, stopping; and no keep-alive, since nobody watches. */
static void life(bool abstract)
{
    struct daemon d;
    int fd = manager_open(abstract);

    daemon_start(&d, (const char *[]){address, NULL});
    const char *heard = hear(fd, 10);
    CHECK(strcmp(heard, "STATUS=loading latentd/tiny") == 0, "%s", heard);
    heard = hear(fd, 10);
    char want[100];
    snprintf(want, sizeof(want), "READY=1\nSTATUS=text-to-image with latentd/tiny on port %d", d.port);
    CHECK(strcmp(heard, want) == 0, "%s", heard);
    struct answer a = client_ask(&d, "GET", "/health/ready", NULL, NULL);
    CHECK(a.status == 200, "told before it was ready: %d", a.status);
    answer_free(&a);
    CHECK(*hear(fd, 0.5) == '\0', "nobody watches");
    kill(d.pid, SIGTERM);
    heard = hear(fd, 5);
    CHECK(strcmp(heard, "STOPPING=1") == 0, "%s", heard);
    CHECK(daemon_end(&d, 0, 8) == 0);
    manager_close(fd);
}

TEST(a_life_is_told)
{
    life(false);
    life(true);
}

/* A scheduler that is a pipe which nobody writes to: loading never ends. Without one it fails. */
static void broken(bool fails, const char *want)
{
    struct daemon d;
    char shelf[] = "/tmp/latentd-shelf-XXXXXX", text[300], env[100];
    int fd = manager_open(false);

    CHECK(mkdtemp(shelf) != NULL);
    snprintf(text, sizeof(text), "cp -r %s/latentd %s/", TINY_DIR, shelf);
    CHECK(system(text) == 0);
    snprintf(text, sizeof(text), "%s/latentd/tiny/scheduler/scheduler_config.json", shelf);
    CHECK(unlink(text) == 0 && (fails || mkfifo(text, 0600) == 0));
    snprintf(env, sizeof(env), "MODEL_DIR=%s", shelf);
    daemon_start(&d, (const char *[]){env, address, "WATCHDOG_USEC=300000", NULL});
    CHECK(strstr(hear(fd, 10), "STATUS=loading"));
    const char *heard = hear(fd, 1.5);
    CHECK(*want ? strstr(heard, want) != NULL : *heard == '\0', "%s", heard);
    if (!fails)
        kill(d.pid, SIGTERM);
    CHECK(strcmp(hear(fd, 5), "STOPPING=1") == 0);
    CHECK(daemon_end(&d, 0, 8) == fails);
    manager_close(fd);
    snprintf(text, sizeof(text), "rm -rf %s", shelf);
    CHECK(system(text) == 0);
}

TEST(not_ready_while_loading)
{
    broken(false, "");
}

TEST(a_failure_is_told_in_words)
{
    broken(true, "STATUS=");
}

TEST(unusable_sockets_do_no_harm)
{
    struct daemon d;

    if (CHECK(daemon_ready(
            &d, (const char *[]){"NOTIFY_SOCKET=/tmp/no/such/socket", "WATCHDOG_USEC=200000", NULL})))
        CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    if (CHECK(daemon_ready(&d, (const char *[]){"NOTIFY_SOCKET=nonsense", "WATCHDOG_USEC=x", NULL})))
        CHECK(daemon_end(&d, SIGTERM, 8) == 0);
}

/* ---- The watchdog ---- */

TEST(keepalives_come_while_all_is_well)
{
    struct daemon d;
    int fd = manager_open(false);

    if (!CHECK(daemon_ready(&d, (const char *[]){address, "WATCHDOG_USEC=600000", NULL})))
        return;
    int n = keepalives(fd, 3);
    CHECK(n >= 9 && n <= 17, "%d in 3 s, with a limit of 0.6 s", n);
    /* a long job is well as long as its steps go on */
    int job = client_begin(&d, "{\"prompt\":\"a\",\"width\":128,\"height\":128,\"num_inference_steps\":900,"
                               "\"num_images_per_prompt\":50}");
    CHECK(daemon_metric_reaches(&d, "latentd_running_step", 2, 20));
    n = keepalives(fd, 3);
    CHECK(n >= 9, "%d in 3 s", n);
    double before = daemon_metric(&d, "latentd_connections");
    CHECK(before <= 3, "%g connections are left open", before);
    close(job);
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    manager_close(fd);
}

TEST(another_process_is_not_watched)
{
    struct daemon d;
    int fd = manager_open(false);

    if (!CHECK(daemon_ready(&d, (const char *[]){address, "WATCHDOG_USEC=300000", "WATCHDOG_PID=1", NULL})))
        return;
    CHECK(keepalives(fd, 1) == 0);
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    manager_close(fd);
}

/* Stops, or lets go again, the threads whose name begins with NAME. Returns how many there are; -1 where
 * tracing is not allowed. */
static int threads(const struct daemon *d, const char *name, bool stop)
{
    char path[64], comm[64];
    int n = 0;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)d->pid);
    DIR *dir = opendir(path);
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
        pid_t tid = (pid_t)atoi(e->d_name);
        int status;
        snprintf(path, sizeof(path), "/proc/%d/task/%d/comm", (int)d->pid, (int)tid);
        FILE *f = tid ? fopen(path, "r") : NULL;
        bool wanted = f && fgets(comm, sizeof(comm), f) && strncmp(comm, name, strlen(name)) == 0;
        if (f)
            fclose(f);
        if (!wanted)
            continue;
        n++;
        if (!stop) {
            ptrace(PTRACE_DETACH, tid, 0, 0);
        } else if (ptrace(PTRACE_SEIZE, tid, 0, 0) || ptrace(PTRACE_INTERRUPT, tid, 0, 0) ||
                   waitpid(tid, &status, __WALL) != tid) {
            n = errno == EPERM ? -1 : 0;
            break;
        }
    }
    if (dir)
        closedir(dir);
    return n;
}

static void probe(const struct daemon *d, const char *path, int status, const char *body)
{
    struct answer a = client_ask(d, "GET", path, NULL, NULL);

    CHECK(a.status == status && strcmp(a.body, body) == 0, "%s: %d %s", path, a.status, a.body);
    answer_free(&a);
}

/* The worker stands still in the middle of a job: HTTP goes on, but says so, and the keep-alives end. */
TEST(a_hung_worker_ends_them)
{
    struct daemon d;
    int fd = manager_open(false);

    if (!CHECK(daemon_ready(&d, (const char *[]){address, "WATCHDOG_USEC=300000", "LATENTD_STUCK=1",
                                                 "LATENTD_THREADS=1", NULL})))
        return;
    int job = client_begin(&d, "{\"prompt\":\"a\",\"width\":128,\"height\":128,\"num_inference_steps\":900,"
                               "\"num_images_per_prompt\":50}");
    CHECK(daemon_metric_reaches(&d, "latentd_running_step", 2, 20));
    int stopped = threads(&d, "worker", true);
    if (stopped < 0) {
        close(job);
        daemon_end(&d, SIGTERM, 8);
        SKIP("threads cannot be traced here");
    }
    CHECK(stopped == 1, "%d threads", stopped);
    CHECK(daemon_logged(&d, "/health/live gave no 200", 5));
    keepalives(fd, 0.2); /* those that were on their way */
    CHECK(keepalives(fd, 1.5) == 0);
    probe(&d, "/health/live", 503, "{\"status\":\"stuck\"}");
    probe(&d, "/health/ready", 503, "{\"status\":\"stuck\"}");
    probe(&d, "/ping", 503, "{\"status\":\"stuck\"}");
    probe(&d, "/health", 200, "{\"status\":\"OK\"}");
    /* it was only slow: all is well again */
    threads(&d, "worker", false);
    CHECK(keepalives(fd, 1.5) > 3);
    probe(&d, "/health/live", 200, "{\"status\":\"live\"}");
    close(job);
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    manager_close(fd);
}

/* Without a job the worker waits, however long. */
TEST(an_idle_worker_does_not_hang)
{
    struct daemon d;
    int fd = manager_open(false);

    if (!CHECK(daemon_ready(&d, (const char *[]){address, "WATCHDOG_USEC=300000", "LATENTD_STUCK=1", NULL})))
        return;
    keepalives(fd, 1.5);
    CHECK(keepalives(fd, 1) > 3);
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    manager_close(fd);
}

TEST(hung_http_threads_end_them)
{
    struct daemon d;
    int fd = manager_open(false);

    if (!CHECK(daemon_ready(&d, (const char *[]){address, "WATCHDOG_USEC=300000", NULL})))
        return;
    int stopped = threads(&d, "MHD-", true);
    if (stopped < 0) {
        daemon_end(&d, SIGTERM, 8);
        SKIP("threads cannot be traced here");
    }
    CHECK(stopped > 0, "libmicrohttpd's threads have other names here");
    keepalives(fd, 0.2);
    CHECK(keepalives(fd, 1) == 0);
    threads(&d, "MHD-", false);
    CHECK(keepalives(fd, 1) > 2);
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    manager_close(fd);
}

TEST_MAIN()
