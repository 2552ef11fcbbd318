/* See notify.h. */
#include "notify.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"

/* "/path", or "@name" for a socket without a file. Returns the length of the address, 0 for neither. */
static socklen_t notify_address(struct sockaddr_un *addr)
{
    const char *path = getenv("NOTIFY_SOCKET");
    size_t len = path ? strlen(path) : 0;

    if (len < 2 || len >= sizeof addr->sun_path || (*path != '/' && *path != '@'))
        return 0;
    *addr = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(addr->sun_path, path, len);
    if (*path == '@')
        addr->sun_path[0] = '\0';
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
}

void notify(const char *fmt, ...)
{
    struct sockaddr_un addr;
    socklen_t size = notify_address(&addr);
    char text[500];
    va_list ap;

    if (!size)
        return;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    size_t len = (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
    if (fd < 0 || sendto(fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT, (struct sockaddr *)&addr, size) < 0)
        log_debug("NOTIFY_SOCKET: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
}

double notify_watchdog(void)
{
    const char *pid = getenv("WATCHDOG_PID"), *usec = getenv("WATCHDOG_USEC");
    char *end = NULL;

    if (!usec || !*usec || (pid && *pid && strtol(pid, NULL, 10) != (long)getpid()))
        return 0;
    double seconds = 1e-6 * strtod(usec, &end);
    return *end || seconds < 1e-3 ? 0 : seconds;
}
