/* The daemon of libmicrohttpd: its options, its start and its end. See server.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "log.h"

/* Paths stay as they were sent; route_find() decodes them. */
static size_t keep_escapes(void *ctx, struct MHD_Connection *mhd, char *s)
{
    (void)ctx;
    (void)mhd;
    return strlen(s);
}

static void log_mhd(void *ctx, const char *fmt, va_list ap)
{
    char text[300];

    (void)ctx;
    vsnprintf(text, sizeof(text), fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    log_debug("libmicrohttpd: %s", text);
}

/* As many connections as the limit on open files leaves room for. */
static int connection_limit(void)
{
    struct rlimit limit;
    rlim_t want = CONNECTIONS_MAX + 256;

    if (getrlimit(RLIMIT_NOFILE, &limit))
        return 256;
    if (limit.rlim_cur < want && limit.rlim_max > limit.rlim_cur) {
        limit.rlim_cur = limit.rlim_max < want ? limit.rlim_max : want;
        if (setrlimit(RLIMIT_NOFILE, &limit))
            getrlimit(RLIMIT_NOFILE, &limit);
    }
    if (limit.rlim_cur <= 64 + HTTP_THREADS)
        return HTTP_THREADS;
    return limit.rlim_cur - 64 < CONNECTIONS_MAX ? (int)limit.rlim_cur - 64 : CONNECTIONS_MAX;
}

/* poll, not epoll: with epoll, 0.9.75 does not see the end of a connection whose last bytes came together
 * with it, and keeps the connection until its deadline. */
static struct MHD_Daemon *start_daemon(struct server *srv, int fd)
{
    return MHD_start_daemon(MHD_USE_POLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0,
                            NULL, NULL, request_handle, srv, MHD_OPTION_EXTERNAL_LOGGER, log_mhd, srv,
                            MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_THREAD_POOL_SIZE, (unsigned)HTTP_THREADS,
                            MHD_OPTION_CONNECTION_LIMIT, (unsigned)srv->limit,
                            MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY,
                            MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, srv,
                            MHD_OPTION_NOTIFY_CONNECTION, connection_notify, &srv->connections,
                            MHD_OPTION_NOTIFY_COMPLETED, request_completed, srv, MHD_OPTION_END);
}

int server_start(struct server **out, struct service *service, struct error *err)
{
    struct server *srv = calloc(1, sizeof(*srv));
    struct timespec now = {0};
    int fd = -1, rc;

    *out = NULL;
    if (!srv)
        return error_set(err, ERR_NOMEM, "no memory for the server");
    clock_gettime(CLOCK_REALTIME, &now);
    srv->started = (double)now.tv_sec;
    srv->service = service;
    srv->limit = connection_limit();
    pthread_mutex_init(&srv->stats.lock, NULL);
    rc = listen_open(service->config->host, service->config->port, &fd, &srv->port, err);
    if (rc)
        goto fail;
    rc = connections_start(&srv->connections, service->worker, err);
    if (rc)
        goto fail_fd;
    srv->daemon = start_daemon(srv, fd);
    if (!srv->daemon) {
        rc = error_set(err, ERR_IO, "libmicrohttpd could not start");
        goto fail_connections;
    }
    *out = srv;
    return 0;
fail_connections:
    connections_stop(&srv->connections);
fail_fd:
    close(fd);
fail:
    pthread_mutex_destroy(&srv->stats.lock);
    free(srv);
    return rc;
}

int server_port(const struct server *srv)
{
    return srv->port;
}

void server_quiesce(struct server *srv)
{
    atomic_store(&srv->draining, true);
    MHD_socket fd = MHD_quiesce_daemon(srv->daemon);
    if (fd != MHD_INVALID_SOCKET)
        close(fd);
}

int server_active(const struct server *srv)
{
    return atomic_load(&srv->active);
}

void server_stop(struct server **out)
{
    struct server *srv = *out;

    if (!srv)
        return;
    MHD_stop_daemon(srv->daemon);
    connections_stop(&srv->connections);
    pthread_mutex_destroy(&srv->stats.lock);
    free(srv);
    *out = NULL;
}
