/* HTTP that is malformed, ambiguous, slow or too much. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "test.h"

static struct daemon tiny;

static void start_tiny(void)
{
    daemon_shared(&tiny, NULL);
}

static double resident(void)
{
    return daemon_metric(&tiny, "process_resident_memory_bytes");
}

/* Whether the daemon's memory grew by less than LIMIT bytes. A sanitizer keeps what was freed, so there the
 * question has no answer. */
static bool grew_less(double before, double limit)
{
    return sanitized() || resident() - before < limit;
}

#define BODY                                                                                                 \
    "{\"prompt\":\"\"}" /* 13 bytes; answered with a 400 of its own words when the request is sound */
#define JSON "Content-Type: application/json\r\n"
#define NEXT "GET /version HTTP/1.1\r\nHost: x\r\n\r\n"

/* Each must be refused and the connection closed, so that nothing behind it is taken for a request. */
static const char *const malformed[] = {
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON
    "Content-Length: 13\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON
    "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON
    "Content-Length: 13\r\nContent-Length: 5\r\n\r\n" BODY NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON
    "Content-Length: 13\r\nContent-Length: 13\r\n\r\n" BODY NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Transfer-Encoding: chunked \r\n\r\n0\r\n\r\n" NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Content-Length: 13 \r\n\r\n" BODY NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON
    "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON
    "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" NEXT,
    "POST /text-to-image HTTP/1.0\r\nHost: x\r\n" JSON "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Content-Length: +13\r\n\r\n" BODY NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Content-Length: -13\r\n\r\n" BODY NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Content-Length: 0x0d\r\n\r\n" BODY NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Content-Length: 13, 13\r\n\r\n" BODY NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Content-Length: 1 3\r\n\r\n" BODY NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Content-Length:\r\n\r\n" BODY NEXT,
    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON
    "Content-Length: 99999999999999999999999\r\n\r\n" BODY NEXT,
    "GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" NEXT,
    "GET /health HTTP/1.1\r\n\r\n" NEXT,
    "GET /health HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n" NEXT,
    "GET /health HTTP/1.1\r\nHost: x\r\nB\xe4r: 1\r\n\r\n" NEXT,
    "GET /health HTTP/1.1\r\nHost: x\r\nX-A: a\x01z\r\n\r\n" NEXT,
    "G(T /health HTTP/1.1\r\nHost: x\r\n\r\n" NEXT,
    "GET /health HTTP/2.0\r\nHost: x\r\n\r\n" NEXT,
    "GET /health HTTP/1.2\r\nHost: x\r\n\r\n" NEXT,
    "GET /health\x01 HTTP/1.1\r\nHost: x\r\n\r\n" NEXT,
};

TEST(malformed_requests)
{
    start_tiny();
    for (size_t i = 0; i < sizeof(malformed) / sizeof(*malformed); i++) {
        int fd = client_open(&tiny);
        client_puts(fd, malformed[i]);
        struct answer a = client_read(fd, 5);
        CHECK(a.status >= 400 && a.status < 600, "case %zu: %d %.300s", i, a.status, malformed[i]);
        CHECK(!strstr(a.body, "\"version\"") && !strstr(a.body, "Prompt must"), "case %zu: %s", i, a.body);
        answer_free(&a);
        a = client_read(fd, 5);
        CHECK(a.status == 0, "case %zu: the bytes behind it were answered", i);
        answer_free(&a);
        CHECK(client_closed(fd, 5), "case %zu: still open", i);
        close(fd);
    }
    struct answer a = client_ask(&tiny, "GET", "/health", NULL, NULL);
    CHECK(a.status == 200);
    answer_free(&a);
}

/* Sound requests in unusual clothes. */
TEST(unusual_but_sound)
{
    static const char *const list[] = {
        "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Transfer-Encoding: chunked\r\n\r\n"
        "5\r\n{\"pro\r\n8;ext=1\r\nmpt\":\"\"}\r\n0\r\nTrailer: x\r\n\r\n" NEXT,
        "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Transfer-Encoding: Chunked\r\n\r\nD\r\n" BODY
        "\r\n0\r\n\r\n" NEXT,
        "POST /text-to-image HTTP/1.1\r\nhost: "
        "x\r\ncontent-type:application/json\r\ncontent-length:13\r\n\r\n" BODY NEXT,
        "POST /text-to-image/?x=%00 HTTP/1.1\r\nHost: x\r\n" JSON "Content-Length: 13\r\n\r\n" BODY NEXT,
        "POST /text-to-image HTTP/1.1\nHost: x\nContent-Type: application/json\nContent-Length: 13\n\n" BODY
            NEXT,
    };
    start_tiny();
    for (size_t i = 0; i < sizeof(list) / sizeof(*list); i++) {
        int fd = client_open(&tiny);
        client_puts(fd, list[i]);
        struct answer a = client_read(fd, 5);
        CHECK(a.status == 400 && strstr(a.body, "Prompt must be provided."), "case %zu: %d %s", i, a.status,
              a.body);
        answer_free(&a);
        a = client_read(fd, 5);
        CHECK(a.status == 200 && strstr(a.body, "latentd/tiny"), "case %zu: the next request got %d", i,
              a.status);
        answer_free(&a);
        close(fd);
    }
}

TEST(http_1_0)
{
    start_tiny();
    int fd = client_open(&tiny);
    client_puts(fd, "GET /health HTTP/1.0\r\n\r\n");
    struct answer a = client_read(fd, 5);
    CHECK(a.status == 200 && strcmp(a.body, "{\"status\":\"OK\"}") == 0);
    answer_free(&a);
    CHECK(client_closed(fd, 5));
    close(fd);
}

TEST(header_flood)
{
    char *head = malloc(80000);
    start_tiny();
    strcpy(head, "GET /health HTTP/1.1\r\nHost: x\r\n");
    for (int i = 0; i < 1000; i++)
        sprintf(head + strlen(head), "X-Header-%d: 0123456789012345678901234567890123456789\r\n", i);
    strcat(head, "\r\n");
    int fd = client_open(&tiny);
    client_puts(fd, head);
    struct answer a = client_read(fd, 5);
    CHECK(a.status == 431 || a.status == 400 || a.status == 413, "%d", a.status);
    answer_free(&a);
    close(fd);
    free(head);
}

/* 10 MB in tiny chunks: answered, and nothing of it is kept. */
TEST(many_chunks)
{
    char piece[6 * 1000 + 1];
    start_tiny();
    double before = resident();
    for (int i = 0; i < 1000; i++)
        memcpy(piece + 6 * i, "1\r\n \r\n", 6);
    for (int round = 0; round < 2; round++) {
        int fd = client_open(&tiny);
        client_puts(fd,
                    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Transfer-Encoding: chunked\r\n\r\n");
        for (int i = 0; i < 300; i++)
            client_write(fd, piece, 6000);
        client_puts(fd, "0\r\n\r\n");
        struct answer a = client_read(fd, 10);
        CHECK(a.status == 422 && strstr(a.body, "Expecting value"), "%d %.200s", a.status, a.body);
        answer_free(&a);
        close(fd);
    }
    CHECK(grew_less(before, 8e6), "grew by %.0f bytes", resident() - before);
}

/* The client writes 20 MB before it reads; it must still get the reply, and memory must not grow with the
 * body. */
TEST(body_far_too_large)
{
    static char block[1 << 20];
    start_tiny();
    memset(block, ' ', sizeof(block));
    double before = resident();
    int fd = client_open(&tiny);
    client_puts(fd, "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Content-Length: 20971520\r\n\r\n");
    for (int i = 0; i < 20; i++)
        CHECK(client_write(fd, block, sizeof(block)), "the server stopped reading after %d MiB", i);
    struct answer a = client_read(fd, 10);
    CHECK(a.status == 400 && strstr(a.body, "The body has more than 2097152 bytes."), "%d %s", a.status,
          a.body);
    answer_free(&a);
    client_puts(fd, NEXT);
    a = client_read(fd, 5);
    CHECK(a.status == 200, "the connection is of no use any more");
    answer_free(&a);
    close(fd);
    CHECK(grew_less(before, 8e6), "grew by %.0f bytes", resident() - before);
}

TEST(expect_continue)
{
    start_tiny();
    int fd = client_open(&tiny);
    client_puts(fd, "POST /text-to-image HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n" JSON
                    "Content-Length: 13\r\n\r\n");
    struct answer a = client_read(fd, 0.5); /* "100 Continue" has no length: read until time is up */
    CHECK(a.head && strncmp(a.head, "HTTP/1.1 100", 12) == 0);
    answer_free(&a);
    client_puts(fd, BODY);
    a = client_read(fd, 5);
    CHECK(a.status == 400);
    answer_free(&a);
    close(fd);
    fd = client_open(&tiny);
    client_puts(fd, "POST /text-to-image HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n" JSON
                    "Content-Length: 5000000\r\n\r\n");
    a = client_read(fd, 5);
    CHECK(a.status == 400 && strstr(a.body, "more than"), "%d", a.status);
    answer_free(&a);
    close(fd);
}

/* One JSON value of many: small in memory, quick to refuse. */
TEST(hostile_json)
{
    size_t n = 2000000;
    char *body = malloc(n + 100);
    start_tiny();
    double before = resident(), start = now_seconds();
    strcpy(body, "{\"x\":[");
    for (size_t i = 6; i < n; i += 2)
        memcpy(body + i, "0,", 2);
    strcpy(body + n, "0]}");
    struct answer a = client_make(&tiny, body);
    CHECK(a.status == 422 && a.len < 10000, "%d, %zu bytes", a.status, a.len);
    answer_free(&a);
    memset(body, '[', n);
    body[n] = '\0';
    a = client_make(&tiny, body);
    CHECK(a.status == 400 && strstr(a.body, "nested deeper than 512 levels"), "%d %.200s", a.status, a.body);
    answer_free(&a);
    size_t len = 1;
    strcpy(body, "{");
    for (int i = 0; i < 100000; i++)
        len += (size_t)sprintf(body + len, "\"k%d\":%d,", i, i);
    strcpy(body + len, "\"prompt\":\"\"}");
    a = client_make(&tiny, body);
    CHECK(a.status == 400 && strstr(a.body, "Prompt must"), "%d %.200s", a.status, a.body);
    answer_free(&a);
    free(body);
    CHECK(now_seconds() - start < (sanitized() ? 15 : 3), "took %.1f s", now_seconds() - start);
    CHECK(grew_less(before, 16e6), "grew by %.0f bytes", resident() - before);
}

/* Clients that send a byte a second are cut off, headers after 10 s and bodies after 20 s; others are served
 * meanwhile. */
TEST(slow_clients)
{
    enum { SLOW = 100 };
    int head[SLOW], body[SLOW];
    double start = now_seconds(), head_end = 0, body_end = 0;
    int asks = 0, late = 0;
    start_tiny();
    for (int i = 0; i < SLOW; i++) {
        head[i] = client_open(&tiny);
        body[i] = client_open(&tiny);
        client_puts(head[i], "GET /health HTTP/1.1\r\nHost: x\r\nX-A: ");
        client_puts(body[i],
                    "POST /text-to-image HTTP/1.1\r\nHost: x\r\n" JSON "Content-Length: 100000\r\n\r\n");
    }
    while (now_seconds() - start < 25 && (!head_end || !body_end)) {
        sleep_seconds(0.5);
        for (int i = 0; i < SLOW; i++) {
            client_puts(head[i], "a");
            client_puts(body[i], " ");
        }
        double asked = now_seconds();
        struct answer a = client_ask(&tiny, "GET", "/health", NULL, NULL);
        CHECK(a.status == 200);
        answer_free(&a);
        asks++;
        late += now_seconds() - asked > (sanitized() ? 0.5 : 0.1);
        if (!head_end && client_closed(head[SLOW - 1], 0.001))
            head_end = now_seconds() - start;
        if (!body_end && client_closed(body[SLOW - 1], 0.001))
            body_end = now_seconds() - start;
    }
    CHECK(head_end > 8 && head_end < 13, "headers cut after %.1f s", head_end);
    CHECK(body_end > 18 && body_end < 24, "bodies cut after %.1f s", body_end);
    CHECK(late <= asks / 10, "%d of %d calls of /health were late", late, asks);
    for (int i = 0; i < SLOW; i++) {
        CHECK(client_closed(head[i], 1) && client_closed(body[i], 1));
        close(head[i]);
        close(body[i]);
    }
    CHECK(daemon_metric(&tiny, "latentd_connections_timed_out_total") >= 2 * SLOW);
}

TEST(stop)
{
    if (tiny.pid)
        CHECK(daemon_end(&tiny, SIGTERM, 8) == 0);
}

TEST_MAIN()
