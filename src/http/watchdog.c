/* Tells the service manager that the process is well for as long as it is. Each time the server is asked as a
 * client would ask it, /health/live on a connection of its own, so that what stops answering clients, or
 * makes a liveness probe fail, ends the keep-alives too. The connection is a socket pair: no address, no
 * port, no network. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "internal.h"
#include "log.h"
#include "notify.h"

struct watchdog {
    struct server *server;
    double every; /* seconds */
    int stop;     /* eventfd */
    pthread_t thread;
};

/* Reads the first bytes of a reply; true when they are those of a 200. Gives up when STOP can be read. */
static bool read_200(int fd, int stop, double seconds)
{
    static const char want[] = "HTTP/1.1 200 ";
    char text[sizeof(want)] = "";
    struct pollfd p[2] = {{fd, POLLIN, 0}, {stop, POLLIN, 0}};
    size_t len = 0;
    double end = clock_now() + seconds, left;

    while (len < sizeof(want) - 1 && (left = end - clock_now()) > 0) {
        if (poll(p, 2, (int)(left * 1e3) + 1) < 0 || p[1].revents)
            return false;
        ssize_t n = p[0].revents ? read(fd, text + len, sizeof(want) - 1 - len) : 0;
        if (n < 0 || (n == 0 && p[0].revents))
            return false;
        len += (size_t)n;
    }
    return strcmp(text, want) == 0;
}

/* One GET /health/live through libmicrohttpd's own loop. */
static bool server_answers(const struct watchdog *w)
{
    static const char request[] = "GET /health/live HTTP/1.1\r\nHost: watchdog\r\nConnection: close\r\n\r\n";
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int pair[2];
    bool ok;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
        return false;
    /* the first one is libmicrohttpd's from here on, whatever it says */
    ok = MHD_add_connection(w->server->daemon, pair[0], (struct sockaddr *)&addr, sizeof(addr)) == MHD_YES &&
         write(pair[1], request, sizeof(request) - 1) == (ssize_t)sizeof(request) - 1 &&
         read_200(pair[1], w->stop, w->every);
    close(pair[1]);
    return ok;
}

static void *watch(void *arg)
{
    struct watchdog *w = arg;
    struct pollfd stop = {w->stop, POLLIN, 0};
    bool was = true;

    pthread_setname_np(pthread_self(), "watchdog");
    for (;;) {
        double next = clock_now() + w->every;
        bool well = server_answers(w);
        double left = next - clock_now();
        if (well)
            notify("WATCHDOG=1");
        if (poll(&stop, 1, left > 0 ? (int)(left * 1e3) + 1 : 0) > 0)
            return NULL;
        if (!well && was)
            log_error("/health/live gave no 200: the service manager hears nothing");
        was = well;
    }
}

int watchdog_start(struct watchdog **out, struct server *srv, double limit, struct error *err)
{
    struct watchdog *w = calloc(1, sizeof(*w));
    int rc;

    *out = NULL;
    if (!w)
        return error_set(err, ERR_NOMEM, "no memory for the watchdog");
    w->server = srv;
    w->every = limit / 3; /* one that is late, and one that waits for its answer, are in time */
    w->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rc = w->stop < 0 ? errno : pthread_create(&w->thread, NULL, watch, w);
    if (rc) {
        if (w->stop >= 0)
            close(w->stop);
        free(w);
        return error_set(err, ERR_IO, "no thread for the watchdog: %s", strerror(rc));
    }
    *out = w;
    return 0;
}

void watchdog_stop(struct watchdog **out)
{
    struct watchdog *w = *out;

    if (!w)
        return;
    if (write(w->stop, &(uint64_t){1}, sizeof(uint64_t)) == sizeof(uint64_t))
        pthread_join(w->thread, NULL);
    close(w->stop);
    free(w);
    *out = NULL;
}
