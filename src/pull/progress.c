/* On a terminal one line that is drawn again: share, bytes, rate, time left. Elsewhere a line now and then,
 * for logs. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pull.h"

#define DRAW_SECONDS 0.2
#define LINE_SECONDS 15.0
#define RATE_SECONDS 1.0

double pull_clock(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void progress_open(struct progress *p, int64_t total, int files, bool quiet)
{
    double now = pull_clock();

    *p = (struct progress){.quiet = quiet,
                           .bar = !quiet && isatty(STDERR_FILENO),
                           .total = total,
                           .files = files,
                           .start = now,
                           .shown = now,
                           .rated = now,
                           .rate = -1};
}

/* Bytes a second, smoothed over some seconds. */
static void measure(struct progress *p, double now)
{
    double seconds = now - p->rated;

    if (seconds < RATE_SECONDS)
        return;
    double rate = (double)(p->got - p->rated_got) / seconds;
    rate = rate < 0 ? 0 : rate;
    p->rate = p->rate < 0 ? rate : 0.7 * p->rate + 0.3 * rate;
    p->rated = now;
    p->rated_got = p->got;
}

/* "0:42", "1:02:03", or "-:--" */
static const char *time_text(double seconds, char text[32])
{
    long s = (long)seconds;

    if (seconds < 0 || seconds > 359999)
        snprintf(text, 32, "-:--");
    else if (s >= 3600)
        snprintf(text, 32, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, 32, "%ld:%02ld", s / 60, s % 60);
    return text;
}

static void state_text(const struct progress *p, char *text, size_t size)
{
    char done[24], total[24], rate[24], left[32];
    int64_t have = p->had + p->got;
    double eta = p->rate > 0 ? (double)(p->total - have) / p->rate : -1;

    snprintf(text, size, "%3.0f %%  %s of %s  %s/s  ETA %s",
             p->total > 0 ? 100.0 * (double)have / (double)p->total : 100.0, size_text((double)have, done),
             size_text((double)p->total, total), size_text(p->rate > 0 ? p->rate : 0, rate),
             time_text(eta, left));
}

static void draw(const struct progress *p)
{
    enum { WIDTH = 24 };
    char text[160];
    int done = p->total > 0 ? (int)((p->had + p->got) * WIDTH / p->total) : WIDTH;

    state_text(p, text, sizeof text);
    fputs("\r[", stderr);
    for (int i = 0; i < WIDTH; i++)
        fputc(i < done ? '#' : '.', stderr);
    fprintf(stderr, "] %s  %.24s\033[K", text, p->name);
    fflush(stderr);
}

void progress_tick(struct progress *p, double now)
{
    char text[160];

    measure(p, now);
    if (p->quiet || now - p->shown < (p->bar ? DRAW_SECONDS : LINE_SECONDS))
        return;
    p->shown = now;
    if (p->bar) {
        draw(p);
        return;
    }
    state_text(p, text, sizeof text);
    fprintf(stderr, "%s  %s\n", text, p->name);
}

void progress_say(struct progress *p, const char *fmt, ...)
{
    va_list ap;

    if (p->quiet)
        return;
    if (p->bar)
        fputs("\r\033[K", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    if (p->bar)
        draw(p);
}

void progress_close(struct progress *p)
{
    if (p->bar)
        fputs("\r\033[K", stderr);
    p->bar = false;
}
