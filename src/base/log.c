/* See log.h. */
#include "log.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "utf8.h"

static _Atomic int log_lowest = LOG_LEVEL_INFO;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static size_t log_lost; /* lines that stderr had no room for, until it is told of them */

void log_set_level(enum log_level lowest)
{
    atomic_store(&log_lowest, (int)lowest);
}

/* Copies SRC so that it stays one quoted value on one line. */
static size_t log_escape(char *dst, size_t size, const char *src)
{
    size_t n = 0;
    for (; *src && n + 3 < size; src++) {
        unsigned char c = (unsigned char)*src;
        if (c == '"' || c == '\\')
            dst[n++] = '\\';
        dst[n++] = c == '\n' ? ' ' : c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    dst[n] = '\0';
    return n;
}

/* LINE with its time and level; no more than PIPE_BUF bytes. Returns its length. */
static size_t log_format(char line[PIPE_BUF], enum log_level level, const char *quoted)
{
    static const char *const names[] = {"DEBUG", "INFO", "WARNING", "ERROR"};
    struct timespec now;
    struct tm tm;
    char when[32] = "";
    clock_gettime(CLOCK_REALTIME, &now);
    if (gmtime_r(&now.tv_sec, &tm))
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
    int n = snprintf(line, PIPE_BUF, "timestamp=%s.%03ldZ level=%s message=\"%s\"\n", when,
                     now.tv_nsec / 1000000, names[level], quoted);
    return n < 0 ? 0 : n < PIPE_BUF ? (size_t)n : PIPE_BUF - 1;
}

/* Whether stderr took the line. Nobody waits for one who has stopped reading it, a thread that answers
 * requests least of all: a pipe that can be written to has room for PIPE_BUF bytes, and one that cannot gets
 * nothing. A terminal may have room for less, so it is opened again, not to wait: who else uses it shares the
 * flags of stderr. One write a line keeps the lines of several processes whole. */
static bool log_put(const char *line, size_t len)
{
    int again =
        isatty(STDERR_FILENO) ? open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC) : -1;
    struct pollfd p = {again < 0 ? STDERR_FILENO : again, POLLOUT, 0};
    bool taken = poll(&p, 1, 0) == 1 && (p.revents & POLLOUT) && write(p.fd, line, len) == (ssize_t)len;
    if (again >= 0)
        close(again);
    return taken;
}

void log_write(enum log_level level, const char *fmt, ...)
{
    if ((int)level < atomic_load(&log_lowest))
        return;
    char msg[2000], quoted[2 * sizeof msg], line[PIPE_BUF], lost[PIPE_BUF];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    utf8_repair(msg);
    log_escape(quoted, sizeof quoted, msg);
    size_t len = log_format(line, level, quoted);
    pthread_mutex_lock(&log_lock);
    if (log_lost) {
        snprintf(msg, sizeof msg, "%zu lines of the log are missing here: stderr took no more", log_lost);
        if (log_put(lost, log_format(lost, LOG_LEVEL_WARNING, msg)))
            log_lost = 0;
    }
    if (log_lost || !log_put(line, len))
        log_lost++;
    pthread_mutex_unlock(&log_lock);
}
