/* See client.h. */
#include "client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

double now_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void sleep_seconds(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};

    nanosleep(&t, NULL);
}

bool sanitized(void)
{
    const char *bin = getenv("LATENTD_BIN");

    return bin && strstr(bin, "-san");
}

/* ---- Daemons ---- */

/* A sanitized daemon on a busy machine. */
enum { READY_SECONDS = 60 };

static void become_daemon(const struct daemon *d, const char *const *env)
{
    const char *bin = getenv("LATENTD_BIN");
    int fd = open(d->log, O_WRONLY | O_APPEND);

    if (!bin)
        bin = "build/latentd";
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that crashes leaves no daemon behind */
    dup2(fd, STDERR_FILENO);
    dup2(fd, STDOUT_FILENO);
    setenv("MODEL_DIR", TINY_DIR, 1);
    setenv("MODEL_ID", TINY_ID, 1);
    setenv("PIPELINE", "text-to-image", 1);
    setenv("PORT", "0", 1);
    setenv("VERBOSE_LOGGING", "1", 1);
    for (int i = 0; env && env[i]; i++)
        putenv((char *)(size_t)env[i]);
    const char *limit = getenv("TEST_ADDRESS_SPACE");
    if (limit)
        setrlimit(RLIMIT_AS, &(struct rlimit){strtoull(limit, NULL, 10), strtoull(limit, NULL, 10)});
    execl(bin, bin, (char *)NULL);
    fprintf(stderr, "cannot run %s: %s\n", bin, strerror(errno));
    _exit(127);
}

/* The whole of it: a daemon that is asked for its metrics all the time logs megabytes. */
char *daemon_log(const struct daemon *d)
{
    FILE *f = fopen(d->log, "r");
    struct stat st = {0};
    char *text = NULL;

    if (f && fstat(fileno(f), &st) == 0 && (text = calloc(1, (size_t)st.st_size + 1)))
        text[fread(text, 1, (size_t)st.st_size, f)] = '\0';
    if (f)
        fclose(f);
    return text ? text : calloc(1, 1);
}

static bool has_ended(const struct daemon *d)
{
    siginfo_t info = {0};

    return waitid(P_PID, (id_t)d->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == d->pid;
}

void daemon_start(struct daemon *d, const char *const *env)
{
    double end = now_seconds() + READY_SECONDS;

    signal(SIGPIPE, SIG_IGN);
    memset(d, 0, sizeof(*d));
    snprintf(d->log, sizeof(d->log), "/tmp/latentd-test-XXXXXX");
    close(mkstemp(d->log));
    d->pid = fork();
    if (d->pid == 0)
        become_daemon(d, env);
    while (d->port == 0 && now_seconds() < end) {
        char *log = daemon_log(d), *line = strstr(log, "listening on http://");
        char *colon = line && strchr(line, '\n') ? strchr(line + 20, ':') : NULL;
        if (colon)
            d->port = atoi(colon + 1);
        free(log);
        if (!colon && has_ended(d))
            return;
        if (!colon)
            sleep_seconds(0.005);
    }
}

bool daemon_ready(struct daemon *d, const char *const *env)
{
    double end = now_seconds() + READY_SECONDS;

    daemon_start(d, env);
    while (d->port && now_seconds() < end) {
        struct answer a = client_ask(d, "GET", "/health", NULL, NULL);
        bool ok = a.status == 200 && strstr(a.body, "OK");
        answer_free(&a);
        if (ok)
            return true;
        sleep_seconds(0.02);
    }
    char *log = daemon_log(d);
    fprintf(stderr, "the daemon is not ready; its log:\n%s", log);
    free(log);
    return false;
}

void daemon_shared(struct daemon *d, const char *const *env)
{
    if (d->pid == 0 && !daemon_ready(d, env))
        exit(1);
    if (!has_ended(d))
        return;
    char *log = daemon_log(d);
    size_t len = strlen(log);
    fprintf(stderr, "the daemon has died; the end of its log:\n%s", log + (len > 4000 ? len - 4000 : 0));
    free(log);
    daemon_end(d, 0, 0);
    exit(1);
}

int daemon_end(struct daemon *d, int sig, double seconds)
{
    double end = now_seconds() + seconds;
    int status = 0;
    bool ended;

    if (sig)
        kill(d->pid, sig);
    while (!(ended = has_ended(d)) && now_seconds() < end)
        sleep_seconds(0.005);
    if (!ended)
        kill(d->pid, SIGKILL);
    waitpid(d->pid, &status, 0);
    unlink(d->log);
    if (!ended)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

bool daemon_logged(const struct daemon *d, const char *text, double seconds)
{
    double end = now_seconds() + seconds;

    for (;;) {
        char *log = daemon_log(d);
        bool found = strstr(log, text) != NULL;
        free(log);
        if (found || now_seconds() > end)
            return found;
        sleep_seconds(0.002);
    }
}

double daemon_metric(const struct daemon *d, const char *name)
{
    struct answer a = client_ask(d, "GET", "/metrics", NULL, NULL);
    double value = -1;
    size_t len = strlen(name);

    for (const char *line = a.body; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, len) == 0 && line[len] == ' ')
            value = strtod(line + len, NULL);
    }
    answer_free(&a);
    return value;
}

bool daemon_metric_reaches(const struct daemon *d, const char *name, double value, double seconds)
{
    double end = now_seconds() + seconds;

    while (daemon_metric(d, name) < value) {
        if (now_seconds() > end)
            return false;
        sleep_seconds(0.02);
    }
    return true;
}

/* ---- Clients ---- */

int client_open(const struct daemon *d)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((unsigned short)d->port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
        close(fd);
        return -1;
    }
    return fd;
}

bool client_write(int fd, const void *data, size_t len)
{
    const char *p = data;

    while (len) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

bool client_puts(int fd, const char *text)
{
    return client_write(fd, text, strlen(text));
}

/* Reads more behind *LEN bytes of *DATA. Returns 1, 0 at the end, -1 when nothing came until END. */
static int read_more(int fd, char **data, size_t *len, size_t *cap, double end, size_t most)
{
    struct pollfd p = {fd, POLLIN, 0};
    double left = end - now_seconds();
    ssize_t n;

    if (left < 0 || poll(&p, 1, (int)(left * 1000) + 1) <= 0)
        return -1;
    if (*len + 65536 + 1 > *cap) {
        *cap = 2 * *cap + 65536 + 1;
        *data = realloc(*data, *cap);
    }
    n = recv(fd, *data + *len, most < 65536 ? most : 65536, 0);
    if (n <= 0)
        return 0;
    *len += (size_t)n;
    (*data)[*len] = '\0';
    return 1;
}

/* Reads the status line and headers byte by byte, so that nothing of a pipelined reply behind this one is
 * taken. */
static char *read_head(int fd, double end)
{
    char *head = NULL;
    size_t len = 0, cap = 0;

    for (;;) {
        if (read_more(fd, &head, &len, &cap, end, 1) != 1) {
            free(head);
            return NULL;
        }
        if (len >= 4 && memcmp(head + len - 4, "\r\n\r\n", 4) == 0)
            return head;
    }
}

struct answer client_read(int fd, double seconds)
{
    double end = now_seconds() + seconds;
    struct answer a = {0};
    size_t cap = 1, want = SIZE_MAX;

    a.body = calloc(1, 1);
    a.head = fd < 0 ? NULL : read_head(fd, end);
    if (!a.head)
        return a;
    a.status = atoi(a.head + 9);
    const char *length = answer_header(&a, "Content-Length");
    if (*length)
        want = strtoull(length, NULL, 10);
    if (a.status == 204)
        want = 0;
    while (a.len < want) {
        int got = read_more(fd, &a.body, &a.len, &cap, end, want - a.len);
        if (got == 1)
            continue;
        a.closed = got == 0;
        if (got < 0 || want != SIZE_MAX)
            a.status = 0; /* incomplete */
        break;
    }
    return a;
}

bool client_closed(int fd, double seconds)
{
    double end = now_seconds() + seconds;
    char *data = NULL;
    size_t len = 0, cap = 0;
    int got;

    while ((got = read_more(fd, &data, &len, &cap, end, 65536)) == 1)
        len = 0;
    free(data);
    return got == 0;
}

static int begin(const struct daemon *d, const char *method, const char *path, const char *headers,
                 const char *body)
{
    char head[2048];
    int fd = client_open(d);

    if (fd < 0)
        return -1;
    snprintf(head, sizeof(head), "%s %s HTTP/1.1\r\nHost: localhost\r\n%s", method, path,
             headers ? headers : "");
    if (body)
        snprintf(head + strlen(head), sizeof(head) - strlen(head), "Content-Length: %zu\r\n", strlen(body));
    strncat(head, "\r\n", sizeof(head) - strlen(head) - 1);
    client_puts(fd, head);
    if (body)
        client_puts(fd, body);
    return fd;
}

int client_begin_bytes(const struct daemon *d, const char *path, const char *headers, const void *body,
                       size_t len, size_t sent)
{
    char head[2048];
    int fd = client_open(d);

    if (fd < 0)
        return -1;
    snprintf(head, sizeof(head), "POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %zu\r\n\r\n", path,
             headers ? headers : "", len);
    client_puts(fd, head);
    client_write(fd, body, sent);
    return fd;
}

struct answer client_ask(const struct daemon *d, const char *method, const char *path, const char *headers,
                         const char *body)
{
    int fd = begin(d, method, path, headers, body);
    struct answer a = client_read(fd, 60);

    if (fd >= 0)
        close(fd);
    return a;
}

int client_begin(const struct daemon *d, const char *body)
{
    return begin(d, "POST", "/text-to-image", "Content-Type: application/json\r\n", body);
}

struct answer client_make(const struct daemon *d, const char *body)
{
    return client_ask(d, "POST", "/text-to-image", "Content-Type: application/json\r\n", body);
}

void answer_free(struct answer *a)
{
    free(a->head);
    free(a->body);
    memset(a, 0, sizeof(*a));
}

const char *answer_header(const struct answer *a, const char *name)
{
    static _Thread_local char value[256];
    size_t len = strlen(name);

    for (const char *line = a->head; line && *line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncasecmp(line, name, len) != 0 || line[len] != ':')
            continue;
        line += len + 1;
        line += strspn(line, " ");
        snprintf(value, sizeof(value), "%.*s", (int)strcspn(line, "\r"), line);
        return value;
    }
    return "";
}
