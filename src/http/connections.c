/* Every open connection has an absolute deadline, and the client of a suspended request is watched. One
 * thread does both. libmicrohttpd tells when a connection opens and, before it closes the socket, when it
 * ends: so a socket in the list is always the one we mean, and shutdown() on it under the lock is safe. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

enum { TICK_MS = 100, EVENTS_MAX = 64 };

void connection_notify(void *ctx, struct MHD_Connection *mhd, void **socket_context,
                       enum MHD_ConnectionNotificationCode code)
{
    struct connections *all = ctx;
    struct connection *c = *socket_context;

    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        c = calloc(1, sizeof(*c));
        *socket_context = c;
        if (!c)
            return; /* the connection is closed at its first request */
        c->all = all;
        c->fd = info ? info->connect_fd : -1;
        c->deadline = clock_now() + HEADER_SECONDS;
        pthread_mutex_lock(&all->lock);
        c->serial = ++all->serial;
        c->next = all->first;
        if (c->next)
            c->next->before = c;
        all->first = c;
        atomic_fetch_add(&all->count, 1);
        pthread_mutex_unlock(&all->lock);
    } else if (c) {
        pthread_mutex_lock(&all->lock);
        if (c->before)
            c->before->next = c->next;
        else
            all->first = c->next;
        if (c->next)
            c->next->before = c->before;
        atomic_fetch_sub(&all->count, 1);
        pthread_mutex_unlock(&all->lock);
        free(c);
        *socket_context = NULL;
    }
}

void connection_deadline(struct connection *c, double when)
{
    pthread_mutex_lock(&c->all->lock);
    c->deadline = when;
    pthread_mutex_unlock(&c->all->lock);
}

bool connection_late(struct connection *c)
{
    pthread_mutex_lock(&c->all->lock);
    bool late = c->late;
    pthread_mutex_unlock(&c->all->lock);
    return late;
}

void connection_watch(struct connection *c, struct job *job)
{
    struct epoll_event ev = {.events = EPOLLRDHUP, .data.u64 = c->serial};

    pthread_mutex_lock(&c->all->lock);
    c->deadline = 0; /* the job decides how long it takes */
    c->waiting = job;
    c->gone = false;
    epoll_ctl(c->all->epoll, EPOLL_CTL_ADD, c->fd, &ev);
    pthread_mutex_unlock(&c->all->lock);
}

void connection_unwatch(struct connection *c)
{
    pthread_mutex_lock(&c->all->lock);
    c->waiting = NULL;
    epoll_ctl(c->all->epoll, EPOLL_CTL_DEL, c->fd, NULL);
    pthread_mutex_unlock(&c->all->lock);
}

/* The client of the connection with this serial has left, or was cut off: its job is cancelled, if the
 * connection still waits for it. The lock is not held meanwhile, since ending a job resumes its connection.
 */
static void departed(struct connections *all, uint64_t serial)
{
    struct job *job = NULL;
    enum cancel_reason reason = CANCEL_DISCONNECT;

    pthread_mutex_lock(&all->lock);
    for (struct connection *c = all->first; c && !job; c = c->next) {
        if (c->serial != serial || !c->waiting || c->gone)
            continue;
        c->gone = true;
        epoll_ctl(all->epoll, EPOLL_CTL_DEL, c->fd, NULL);
        job = c->waiting;
        reason = c->late ? CANCEL_SLOW : CANCEL_DISCONNECT;
        job_get(job);
    }
    pthread_mutex_unlock(&all->lock);
    if (!job)
        return;
    worker_cancel(all->worker, job, reason);
    job_put(job);
}

static void reap(struct connections *all)
{
    double now = clock_now();

    pthread_mutex_lock(&all->lock);
    for (struct connection *c = all->first; c; c = c->next) {
        if (c->deadline == 0 || now < c->deadline)
            continue;
        shutdown(c->fd, SHUT_RDWR);
        c->deadline = 0;
        c->late = true;
        atomic_fetch_add(&all->reaped, 1);
    }
    pthread_mutex_unlock(&all->lock);
}

static void *watch(void *arg)
{
    struct connections *all = arg;
    struct epoll_event ev[EVENTS_MAX];
    double next = 0;

    for (;;) {
        int n = epoll_wait(all->epoll, ev, EVENTS_MAX, TICK_MS);
        for (int i = 0; i < n; i++) {
            if (ev[i].data.u64 == 0)
                return NULL;
            departed(all, ev[i].data.u64);
        }
        if (clock_now() >= next) {
            reap(all);
            next = clock_now() + TICK_MS / 1000.0;
        }
    }
}

int connections_start(struct connections *c, struct worker *worker, struct error *err)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = 0};
    int rc;

    memset(c, 0, sizeof(*c));
    c->worker = worker;
    pthread_mutex_init(&c->lock, NULL);
    c->epoll = epoll_create1(EPOLL_CLOEXEC);
    c->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->epoll < 0 || c->stop < 0 || epoll_ctl(c->epoll, EPOLL_CTL_ADD, c->stop, &ev))
        return error_set(err, ERR_IO, "no epoll: %s", strerror(errno));
    rc = pthread_create(&c->thread, NULL, watch, c);
    return rc ? error_set(err, ERR_IO, "no thread to watch connections: %s", strerror(rc)) : 0;
}

void connections_stop(struct connections *c)
{
    if (write(c->stop, &(uint64_t){1}, sizeof(uint64_t)) == sizeof(uint64_t))
        pthread_join(c->thread, NULL);
    close(c->epoll);
    close(c->stop);
    pthread_mutex_destroy(&c->lock);
}
