/* See fake_hub.h. */
#include "fake_hub.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct hub_scene hub;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_int open_connections;
static int port;

static void pause_shortly(void)
{
    nanosleep(&(struct timespec){0, 10000000}, NULL);
}

/* One of COUNT is used up. */
static bool take(int *count)
{
    pthread_mutex_lock(&lock);
    bool had = *count > 0;
    *count -= had;
    pthread_mutex_unlock(&lock);
    return had;
}

static void add(int *count, int n)
{
    pthread_mutex_lock(&lock);
    *count += n;
    pthread_mutex_unlock(&lock);
}

static bool send_all(int fd, const void *data, size_t len)
{
    for (const char *at = data; len > 0;) {
        ssize_t n = send(fd, at, len, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        at += n;
        len -= (size_t)n;
    }
    return true;
}

static void send_head(int fd, int status, const char *headers, int64_t length)
{
    char text[2048];
    int n =
        snprintf(text, sizeof text, "HTTP/1.1 %d X\r\n%sContent-Length: %lld\r\nConnection: close\r\n\r\n",
                 status, headers ? headers : "", (long long)length);
    send_all(fd, text, (size_t)n);
}

static const char *commit(void)
{
    return hub.commit ? hub.commit : HUB_COMMIT;
}

static void send_list(int fd, bool head)
{
    char *text = calloc(1, 65536);
    size_t n = (size_t)sprintf(text, "{\"sha\":\"%s\",\"siblings\":[", commit());

    for (int i = 0; i < hub.count; i++) {
        const struct hub_file *f = &hub.files[i];
        n += (size_t)sprintf(text + n, "%s{\"rfilename\":\"%s\"", i ? "," : "", f->name);
        if (!hub.no_blobs && f->lfs)
            n += (size_t)sprintf(
                text + n, ",\"size\":%lld,\"blobId\":\"%040d\",\"lfs\":{\"sha256\":\"%s\",\"size\":%lld}",
                (long long)(f->size + hub.size_off), 7, f->digest, (long long)(f->size + hub.size_off));
        else if (!hub.no_blobs)
            n += (size_t)sprintf(text + n, ",\"size\":%lld,\"blobId\":\"%s\"", (long long)f->size, f->digest);
        n += (size_t)sprintf(text + n, "}");
    }
    if (hub.raw_name)
        n += (size_t)sprintf(text + n, "%s{\"rfilename\":\"%s\",\"size\":1,\"blobId\":\"%040d\"}",
                             hub.count ? "," : "", hub.raw_name, 8);
    n += (size_t)sprintf(text + n, "]}");
    send_head(fd, 200, NULL, (int64_t)n);
    if (!head)
        send_all(fd, text, n);
    free(text);
}

static void count_holding(int n)
{
    pthread_mutex_lock(&lock);
    hub.holding += n;
    pthread_mutex_unlock(&lock);
}

/* Stands still at byte AT while the scene says so. False when the client is gone, by a reset where it left
 * bytes unread. */
static bool hold(int fd, int64_t at)
{
    bool here = true;
    if (!hub.hold_at || at < hub.hold_at)
        return true;
    count_holding(1);
    while (here && hub.hold_at && at >= hub.hold_at) {
        hub.held = 1;
        char byte;
        ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);
        here = got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
        pause_shortly();
    }
    count_holding(-1);
    return here;
}

/* The body from FROM on, with what the scene does to it. */
static void send_body(int fd, const struct hub_file *f, int64_t from)
{
    bool bad = f->lfs && take(&hub.corrupt), cut = f->lfs && hub.cut_at && take(&hub.cuts);
    int64_t end = cut && from + hub.cut_at < f->size ? from + hub.cut_at : f->size;

    for (int64_t at = from; at < end;) {
        int64_t n = end - at < 65536 ? end - at : 65536;
        unsigned char block[65536];
        if (f->lfs && !hold(fd, at))
            return;
        memcpy(block, f->data + at, (size_t)n);
        block[0] = (unsigned char)(block[0] ^ (bad && at == from));
        if (!send_all(fd, block, (size_t)n))
            return;
        at += n;
        pthread_mutex_lock(&lock);
        hub.sent += n;
        pthread_mutex_unlock(&lock);
    }
}

static void send_file(int fd, const struct hub_file *f, const char *request, bool head)
{
    char headers[600];
    const char *range = strstr(request, "\r\nRange: bytes=");
    int64_t from = range && !hub.no_ranges ? strtoll(range + 15, NULL, 10) : 0;
    int n = snprintf(headers, sizeof headers, "ETag: \"%s\"\r\nX-Repo-Commit: %s\r\n", f->digest, commit());

    if (from >= f->size && from > 0) {
        send_head(fd, 416, NULL, 0);
        return;
    }
    if (from > 0)
        snprintf(headers + n, sizeof headers - (size_t)n, "Content-Range: bytes %lld-%lld/%lld\r\n",
                 (long long)from, (long long)f->size - 1, (long long)f->size);
    send_head(fd, from > 0 ? 206 : 200, headers, f->size - from);
    add(head ? &hub.heads : &hub.bodies, 1);
    add(&hub.ranges, from > 0);
    if (!head)
        send_body(fd, f, from);
}

/* As the hub does for large files: its storage, under another name. */
static void send_redirect(int fd, const struct hub_file *f)
{
    char headers[600];

    snprintf(headers, sizeof headers,
             "Location: http://localhost:%d/storage/%s\r\nX-Linked-Etag: \"%s\"\r\nX-Linked-Size: %lld\r\n",
             port, f->name, f->digest, (long long)f->size);
    send_head(fd, 302, headers, 0);
}

static const struct hub_file *find(const char *name)
{
    for (int i = 0; i < hub.count; i++)
        if (strcmp(hub.files[i].name, name) == 0)
            return &hub.files[i];
    return NULL;
}

static void answer_file(int fd, const char *name, const char *request, bool head, bool storage)
{
    const struct hub_file *f = find(name);

    if (!f)
        send_head(fd, 404, "X-Error-Code: EntryNotFound\r\n", 0);
    else if (take(&hub.file_errors))
        send_head(fd, hub.file_error, hub.error_headers, 0);
    else if (hub.redirect && f->lfs && !storage)
        send_redirect(fd, f);
    else
        send_file(fd, f, request, head);
}

static void answer(int fd, const char *request)
{
    char path[1024] = "", resolve[64];
    const char *prefix = hub.prefix ? hub.prefix : "", *at;
    bool head = strncmp(request, "HEAD", 4) == 0, token = strstr(request, "\r\nAuthorization: Bearer secret");

    sscanf(request, "%*s %1023s", path);
    if (strncmp(path, "/storage/", 9) == 0) {
        add(&hub.tokens_at_storage, token);
        answer_file(fd, path + 9, request, head, true);
        return;
    }
    add(&hub.tokens_at_hub, token);
    snprintf(resolve, sizeof resolve, "/resolve/%s/", commit());
    if (strncmp(path, prefix, strlen(prefix)) != 0) {
        send_head(fd, 404, NULL, 0);
    } else if (strncmp(path + strlen(prefix), "/api/models/", 12) == 0) {
        add(&hub.lists, 1);
        if (take(&hub.list_errors))
            send_head(fd, hub.list_error, hub.error_headers, 0);
        else
            send_list(fd, head);
    } else if ((at = strstr(path, resolve))) {
        answer_file(fd, at + strlen(resolve), request, head, false);
    } else {
        send_head(fd, 404, NULL, 0);
    }
}

static void *serve_one(void *arg)
{
    int fd = (int)(intptr_t)arg;
    char request[8192];
    size_t n = 0;

    while (n < sizeof request - 1) {
        ssize_t got = recv(fd, request + n, sizeof request - 1 - n, 0);
        if (got <= 0)
            break;
        n += (size_t)got;
        request[n] = '\0';
        if (strstr(request, "\r\n\r\n")) {
            answer(fd, request);
            break;
        }
    }
    shutdown(fd, SHUT_WR);
    close(fd);
    open_connections--;
    return NULL;
}

static void *serve(void *arg)
{
    int fd = (int)(intptr_t)arg;

    for (;;) {
        pthread_t thread;
        int c = accept(fd, NULL, NULL);
        if (c < 0)
            continue;
        open_connections++;
        if (pthread_create(&thread, NULL, serve_one, (void *)(intptr_t)c) == 0) {
            pthread_detach(thread);
        } else {
            open_connections--;
            close(c);
        }
    }
    return NULL;
}

int hub_start(void)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof to;
    pthread_t thread;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (port)
        return port;
    if (bind(fd, (struct sockaddr *)&to, sizeof to) || listen(fd, 64) ||
        getsockname(fd, (struct sockaddr *)&to, &len) ||
        pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd)) {
        perror("the fake hub");
        exit(1);
    }
    pthread_detach(thread);
    port = ntohs(to.sin_port);
    return port;
}

bool hub_quiet(void)
{
    for (int i = 0; i < 6000 && open_connections > 0; i++)
        pause_shortly();
    return open_connections == 0;
}

void hub_reset(void)
{
    hub_quiet();
    memset(&hub, 0, sizeof hub);
}

void hub_add(const char *name, const void *data, size_t size, bool lfs)
{
    struct hub_file *f = &hub.files[hub.count++];
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    char head[64];

    *f = (struct hub_file){.data = data, .size = (int64_t)size, .lfs = lfs};
    snprintf(f->name, sizeof f->name, "%s", name);
    EVP_DigestInit_ex(ctx, lfs ? EVP_sha256() : EVP_sha1(), NULL);
    if (!lfs)
        EVP_DigestUpdate(ctx, head, (size_t)snprintf(head, sizeof head, "blob %zu", size) + 1);
    EVP_DigestUpdate(ctx, data, size);
    EVP_DigestFinal_ex(ctx, bytes, &len);
    EVP_MD_CTX_free(ctx);
    for (unsigned i = 0; i < len; i++)
        snprintf(f->digest + (size_t)2 * i, 3, "%02x", bytes[i]);
}

void hub_add_noise(const char *name, size_t size)
{
    static unsigned char noise[8 << 20];

    if (!noise[1])
        for (uint32_t i = 0, x = 1; i < sizeof noise; i++, x = x * 1664525 + 1013904223)
            noise[i] = (unsigned char)(x >> 24);
    hub_add(name, noise + hub.count, size, true);
}
