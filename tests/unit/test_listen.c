/* src/http/listen.c: which address of a name is opened. Names are looked up here, so that what /etc/hosts
 * says does not matter. */
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../src/http/internal.h"
#include "test.h"

static struct sockaddr_in four = {.sin_family = AF_INET};
static struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
static struct addrinfo last = {.ai_family = AF_INET,
                               .ai_socktype = SOCK_STREAM,
                               .ai_addrlen = sizeof(four),
                               .ai_addr = (struct sockaddr *)&four};
static struct addrinfo first = {.ai_family = AF_INET6,
                                .ai_socktype = SOCK_STREAM,
                                .ai_addrlen = sizeof(six),
                                .ai_addr = (struct sockaddr *)&six};

/* In front of libc's: "both" is ::1 and 127.0.0.1 in this order, as most systems have localhost, "six" is
 * ::1. */
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **out)
{
    (void)hints;
    four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    four.sin_port = six.sin6_port = htons((unsigned short)atoi(service));
    first.ai_next = strcmp(name, "both") == 0 ? &last : NULL;
    *out = &first;
    return 0;
}

void freeaddrinfo(struct addrinfo *list)
{
    (void)list;
}

static int family(int fd)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);

    getsockname(fd, (struct sockaddr *)&addr, &len);
    return addr.ss_family;
}

TEST(a_name_of_both_kinds_is_opened_as_ipv4)
{
    struct error err = {0};
    int fd, other, port, again;

    if (!CHECK(listen_open("both", 0, &fd, &port, &err) == 0, "%s", err.msg))
        return;
    CHECK(family(fd) == AF_INET && port > 0);
    CHECK(listen_open("both", port, &other, &again, &err) == ERR_IO && strstr(err.msg, "in use by another"),
          "%s", err.msg);
    close(fd);
}

TEST(a_name_of_one_kind_is_opened_as_that)
{
    struct error err = {0};
    int fd, port, probe = socket(AF_INET6, SOCK_STREAM, 0);

    bool here = probe >= 0 && bind(probe, (struct sockaddr *)&six, sizeof(six)) == 0;
    if (probe >= 0)
        close(probe);
    if (!here)
        SKIP("there is no IPv6 here");
    if (!CHECK(listen_open("six", 0, &fd, &port, &err) == 0, "%s", err.msg))
        return;
    CHECK(family(fd) == AF_INET6 && port > 0);
    close(fd);
}

TEST_MAIN()
