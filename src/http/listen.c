/* The listening socket, opened by ourselves so that failures have words. */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

static int bound_port(int fd)
{
    struct sockaddr_storage addr;
    socklen_t len = sizeof(addr);

    if (getsockname(fd, (struct sockaddr *)&addr, &len))
        return 0;
    return addr.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)&addr)->sin6_port)
                                      : ntohs(((struct sockaddr_in *)&addr)->sin_port);
}

static int open_one(const struct addrinfo *ai)
{
    int on = 1, fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    /* so that a restart need not wait for old connections to be forgotten; a live listener still refuses us
     */
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) || bind(fd, ai->ai_addr, ai->ai_addrlen) ||
        listen(fd, SOMAXCONN)) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

/* The first of LIST that can be opened, IPv4 before IPv6: of a name that has both, such as localhost, clients
 * know the one, and not all of them the other. None is tried behind one whose port is in use: there would be
 * two servers of one name. */
static int open_any(const struct addrinfo *list)
{
    static const int families[] = {AF_INET, AF_INET6};
    int fd = -1;

    errno = 0;
    for (size_t i = 0; i < sizeof(families) / sizeof(*families); i++)
        for (const struct addrinfo *ai = list; ai && fd < 0 && errno != EADDRINUSE; ai = ai->ai_next)
            if (ai->ai_family == families[i])
                fd = open_one(ai);
    return fd;
}

int listen_open(const char *host, int port, int *fd, int *port_out, struct error *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE},
                    *list;
    char service[16];
    int rc;

    snprintf(service, sizeof(service), "%d", port);
    rc = getaddrinfo(host, service, &hints, &list);
    if (rc)
        return error_set(err, ERR_INVALID, "HOST is \"%s\", which is no address of this machine: %s", host,
                         gai_strerror(rc));
    *fd = open_any(list);
    freeaddrinfo(list);
    if (*fd < 0 && errno == EADDRINUSE)
        return error_set(err, ERR_IO, "port %d of %s is in use by another program; set PORT to a free one",
                         port, host);
    if (*fd < 0)
        return error_set(err, ERR_IO, "cannot listen on %s port %d: %s", host, port, strerror(errno));
    *port_out = bound_port(*fd);
    return 0;
}
