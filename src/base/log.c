/* See log.h. */
#include "log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "error.h"

static _Atomic int log_lowest = LOG_LEVEL_INFO;

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

void log_write(enum log_level level, const char *fmt, ...)
{
    static const char *const names[] = {"DEBUG", "INFO", "WARNING", "ERROR"};
    if ((int)level < atomic_load(&log_lowest))
        return;
    char msg[2000], quoted[4000], line[4200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    log_escape(quoted, sizeof quoted, msg);
    struct timespec now;
    struct tm tm;
    char when[32] = "";
    clock_gettime(CLOCK_REALTIME, &now);
    if (gmtime_r(&now.tv_sec, &tm))
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
    int n = snprintf(line, sizeof line, "timestamp=%s.%03ldZ level=%s message=\"%s\"\n", when,
                     now.tv_nsec / 1000000, names[level], quoted);
    if (n <= 0)
        return;
    /* One write a line keeps lines of several threads whole; a full or closed stderr must not stop the
     * daemon. */
    ssize_t ignored = write(STDERR_FILENO, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
    (void)ignored;
}
