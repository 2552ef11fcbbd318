/* GET and HEAD /stream/<id>.png and .mp4: pictures and videos by URL for every pipeline, how long and how
 * many are kept, and what RFC 9110 says of ranges and conditions. */
#include <arpa/inet.h>
#include <cjson/cJSON.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../golden/video_model.h"
#include "client.h"
#include "image.h"
#include "video.h"

#define FORM   "Connection: close\r\nContent-Type: multipart/form-data; boundary=B\r\n"
#define PART   "--B\r\nContent-Disposition: form-data; name=\""
#define GOLDEN "tests/golden/data/image_to_video/"
#define TEXT   "{\"prompt\":\"cat\",\"num_inference_steps\":1,\"width\":64,\"height\":64,\"seed\":7"
#define BYTES  "latentd_stream_bytes"

static struct daemon tiny;

static void start_tiny(void)
{
    daemon_shared(&tiny, NULL);
}

/* ---- What replies name ---- */

/* The picture INDEX of a reply's "images", or of its first video's frames; the caller frees it. */
static char *url_of(const struct answer *a, int index)
{
    cJSON *tree = cJSON_ParseWithOpts(a->body, NULL, true);
    const cJSON *list = cJSON_GetObjectItem(tree, "images");
    if (!list)
        list = cJSON_GetArrayItem(cJSON_GetObjectItem(tree, "frames"), 0);
    const char *url = cJSON_GetStringValue(cJSON_GetObjectItem(cJSON_GetArrayItem(list, index), "url"));
    char *copy = strdup(url ? url : "");

    CHECK(a->status == 200 && url, "%d %.200s", a->status, a->body);
    cJSON_Delete(tree);
    return copy;
}

/* "/stream/", 32 hex digits, ENDING. */
static bool is_url(const char *url, const char *ending)
{
    return strlen(url) == strlen("/stream/") + 32 + strlen(ending) && strncmp(url, "/stream/", 8) == 0 &&
           strspn(url + 8, "0123456789abcdef") == 32 && strcmp(url + 40, ending) == 0;
}

/* A picture of the shared daemon under its URL. */
static char *one_picture(void)
{
    start_tiny();
    struct answer a = client_make(&tiny, TEXT ",\"response_format\":\"url\"}");
    char *url = url_of(&a, 0);

    CHECK(is_url(url, ".png"), "%s", url);
    answer_free(&a);
    return url;
}

static struct answer get(const struct daemon *d, const char *url, const char *headers)
{
    return client_ask(d, "GET", url, headers, NULL);
}

static int status_of(const struct daemon *d, const char *url)
{
    struct answer a = get(d, url, NULL);
    int status = a.status;

    answer_free(&a);
    return status;
}

static void check_png(const struct answer *a, int width, int height)
{
    struct image im = {0};
    struct error err = {0};

    CHECK(a->status == 200 && strcmp(answer_header(a, "Content-Type"), "image/png") == 0, "%d %s", a->status,
          answer_header(a, "Content-Type"));
    CHECK(image_decode((const unsigned char *)a->body, a->len, &im, &err) == 0 && im.width == width &&
              im.height == height,
          "%dx%d %s", im.width, im.height, err.msg);
    image_free(&im);
}

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Whether the data URL holds exactly the bytes of A. */
static bool same_as_data(const char *url, const struct answer *a)
{
    const char *text = url + strlen("data:image/png;base64,");
    unsigned bits = 0, n = 0;
    size_t len = 0;

    if (strncmp(url, "data:image/png;base64,", 22) != 0)
        return false;
    for (const char *at; *text && (at = strchr(digits, *text)) != NULL; text++) {
        bits = bits << 6 | (unsigned)(at - digits);
        n = (n + 6) % 8;
        if (n < 6 && (len >= a->len || (unsigned char)a->body[len++] != (unsigned char)(bits >> n)))
            return false;
    }
    return len == a->len;
}

/* ---- Every pipeline ---- */

TEST(text_to_image)
{
    start_tiny();
    struct answer data = client_make(&tiny, TEXT ",\"num_images_per_prompt\":2}"),
                  reply =
                      client_make(&tiny, TEXT ",\"num_images_per_prompt\":2,\"response_format\":\"url\"}");
    CHECK(strstr(reply.body, ".png\",\"seed\":8,\"nsfw\":false}]}"), "%.300s", reply.body);
    for (int i = 0; i < 2; i++) {
        char *url = url_of(&reply, i), *inside = url_of(&data, i);
        CHECK(is_url(url, ".png"), "%s", url);
        struct answer a = get(&tiny, url, NULL);
        check_png(&a, 64, 64);
        CHECK(same_as_data(inside, &a), "picture %d is another one by URL", i);
        CHECK(strcmp(answer_header(&a, "Accept-Ranges"), "bytes") == 0 &&
                  strcmp(answer_header(&a, "Cache-Control"), "private, max-age=600") == 0,
              "%s", a.head);
        answer_free(&a);
        free(url);
        free(inside);
    }
    answer_free(&data);
    answer_free(&reply);
}

static void add_field(struct buffer *form, const char *name, const char *value)
{
    buffer_printf(form, PART "%s\"\r\n\r\n%s\r\n", name, value);
}

/* A form with a small picture, one step, and what the caller adds. */
static struct buffer begin_form(void)
{
    struct image im = {.width = 64, .height = 64, .rgb = malloc(3 * 64 * 64)};
    struct buffer form = {0}, png = {0};
    struct error err = {0};

    for (int i = 0; i < 3 * 64 * 64; i++)
        im.rgb[i] = (unsigned char)(i * 7 + i / 192 * 5);
    png_encode(&im, &png, &err);
    buffer_puts(&form, PART "image\"; filename=\"in.png\"\r\n\r\n");
    buffer_add(&form, png.data, png.len);
    buffer_puts(&form, "\r\n");
    add_field(&form, "num_inference_steps", "1");
    image_free(&im);
    buffer_free(&png);
    return form;
}

/* Sends FORM, and frees it. */
static struct answer send_form(const struct daemon *d, const char *route, struct buffer *form)
{
    buffer_puts(form, "--B--\r\n");
    int fd = client_begin_bytes(d, route, FORM, form->data, form->len, form->len);
    struct answer a = client_read(fd, 120);
    if (fd >= 0)
        close(fd);
    buffer_free(form);
    return a;
}

/* A picture by URL from a daemon of ROUTE, ENV; SIDE: of the result. */
static void check_form_route(const char *route, const char *const *env, int side)
{
    struct daemon d;
    if (!CHECK(daemon_ready(&d, env)))
        return;
    struct buffer form = begin_form();
    add_field(&form, "prompt", "cat");
    add_field(&form, "strength", "1");
    add_field(&form, "response_format", "url");
    struct answer reply = send_form(&d, route, &form);
    char *url = url_of(&reply, 0);
    CHECK(is_url(url, ".png"), "%s", url);
    struct answer a = get(&d, url, NULL);
    check_png(&a, side, side);
    answer_free(&a);
    answer_free(&reply);
    free(url);
    daemon_end(&d, SIGTERM, 20);
}

TEST(image_to_image)
{
    check_form_route("/image-to-image", (const char *[]){"PIPELINE=image-to-image", NULL}, 64);
}

TEST(upscale)
{
    check_form_route("/upscale",
                     (const char *[]){"PIPELINE=upscale", "MODEL_ID=latentd/upscaler",
                                      "MODEL_DIR=tests/golden/data/upscale", NULL},
                     256);
}

/* The tiny video model of the goldens. */
static void make_video_model(const char *shelf)
{
    static const char *const parts[][2] = {
        {"unet", "diffusion_pytorch_model"}, {"vae", "diffusion_pytorch_model"}, {"image_encoder", "model"}};
    char command[300], from[200], to[200];

    snprintf(command, sizeof command, "cp -r " GOLDEN "latentd %s", shelf);
    if (system(command) != 0)
        abort();
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(from, sizeof from, GOLDEN "latentd/svd/%s", parts[i][0]);
        snprintf(to, sizeof to, "%s/latentd/svd/%s", shelf, parts[i][0]);
        write_weights(from, to, parts[i][1], NULL);
    }
}

/* The video's URL stands beside the frames whatever form these have. */
static void check_video(const struct daemon *d, const struct answer *reply)
{
    cJSON *tree = cJSON_ParseWithOpts(reply->body, NULL, true);
    const cJSON *video = cJSON_GetObjectItem(tree, "video");
    const char *url = cJSON_GetStringValue(cJSON_GetObjectItem(video, "url"));

    if (!mp4_encoder()) {
        CHECK(cJSON_GetStringValue(cJSON_GetObjectItem(video, "error")) != NULL);
    } else if (CHECK(url && is_url(url, ".mp4"), "%s", url ? url : "no video")) {
        struct answer a = get(d, url, NULL), part = get(d, url, "Range: bytes=4-7\r\n");
        CHECK(a.status == 200 && strcmp(answer_header(&a, "Content-Type"), "video/mp4") == 0 && a.len > 500 &&
                  memcmp(a.body + 4, "ftyp", 4) == 0,
              "%d, %zu bytes", a.status, a.len);
        CHECK(part.status == 206 && strcmp(part.body, "ftyp") == 0, "%d %s", part.status, part.body);
        answer_free(&a);
        answer_free(&part);
    }
    cJSON_Delete(tree);
}

TEST(image_to_video)
{
    char shelf[] = "/tmp/latentd-streams-XXXXXX", variable[80], command[80];
    struct daemon d;
    if (!mkdtemp(shelf))
        abort();
    make_video_model(shelf);
    snprintf(variable, sizeof variable, "MODEL_DIR=%s", shelf);
    if (CHECK(daemon_ready(
            &d, (const char *[]){"PIPELINE=image-to-video", "MODEL_ID=latentd/svd", variable, NULL}))) {
        struct buffer form = begin_form();
        add_field(&form, "response_format", "url");
        add_field(&form, "width", "64");
        add_field(&form, "height", "48");
        struct answer reply = send_form(&d, "/image-to-video", &form);
        for (int i = 0; i < 6; i++) {
            char *url = url_of(&reply, i);
            CHECK(is_url(url, ".png"), "frame %d: %s", i, url);
            struct answer a = get(&d, url, NULL);
            check_png(&a, 64, 48);
            answer_free(&a);
            free(url);
        }
        check_video(&d, &reply);
        answer_free(&reply);
    }
    daemon_end(&d, SIGTERM, 20);
    snprintf(command, sizeof command, "rm -r %s", shelf);
    if (system(command) != 0)
        abort();
}

/* ---- The request's word and the daemon's ---- */

TEST(the_daemon_may_be_set_to_urls)
{
    struct daemon d;
    if (!CHECK(daemon_ready(&d, (const char *[]){"LATENTD_RESPONSE_FORMAT=url", NULL})))
        return;
    struct answer a = client_make(&d, TEXT "}");
    char *url = url_of(&a, 0);
    CHECK(is_url(url, ".png"), "%s", url);
    free(url);
    answer_free(&a);
    a = client_make(&d, TEXT ",\"response_format\":\"data\"}");
    CHECK(strstr(a.body, "\"url\":\"data:image/png;base64,"), "%.100s", a.body);
    answer_free(&a);
    daemon_end(&d, SIGTERM, 20);
}

TEST(words_that_are_no_format)
{
    start_tiny();
    struct answer a = client_make(&tiny, TEXT ",\"response_format\":\"b64_json\"}");
    CHECK(a.status == 400 && strcmp(a.body, "{\"detail\":{\"msg\":\"response_format is \\\"b64_json\\\", "
                                            "accepted are \\\"url\\\" and \\\"data\\\".\"}}") == 0,
          "%d %s", a.status, a.body);
    answer_free(&a);
    a = client_make(&tiny, TEXT ",\"response_format\":\"\"}");
    CHECK(a.status == 200 && strstr(a.body, "data:image/png"), "%d", a.status);
    answer_free(&a);
    struct daemon d;
    if (!CHECK(daemon_ready(&d, (const char *[]){"LATENTD_STREAM_MIB=0", NULL})))
        return;
    a = client_make(&d, TEXT ",\"response_format\":\"url\"}");
    CHECK(a.status == 400 && strstr(a.body, "keeps no files"), "%d %s", a.status, a.body);
    answer_free(&a);
    CHECK(status_of(&d, "/stream/00000000000000000000000000000000.png") == 404);
    daemon_end(&d, SIGTERM, 20);
}

TEST(settings_that_cannot_be)
{
    static const char *const wrong[] = {"LATENTD_STREAM_MIB=-1", "LATENTD_STREAM_SECONDS=0",
                                        "LATENTD_RESPONSE_FORMAT=png"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct daemon d;
        daemon_start(&d, (const char *[]){wrong[i], NULL});
        char *log = daemon_log(&d), name[40];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(wrong[i], "="), wrong[i]);
        CHECK(d.port == 0 && strstr(log, name), "%s: %s", wrong[i], log);
        free(log);
        CHECK(daemon_end(&d, 0, 5) == 1);
    }
}

/* ---- Ids ---- */

static int bits_of(char c)
{
    int v = c <= '9' ? c - '0' : c - 'a' + 10;
    return (v & 1) + (v >> 1 & 1) + (v >> 2 & 1) + (v >> 3 & 1);
}

/* Not a proof, but counters, clocks and seeds would show: of the same request ids differ in about half of
 * their 128 bits. */
TEST(ids_cannot_be_guessed)
{
    enum { IDS = 24 };
    char *url[IDS];
    long differ = 0;
    for (int i = 0; i < IDS; i++)
        url[i] = one_picture();
    for (int i = 0; i < IDS; i++)
        for (int j = 0; j < i; j++) {
            int bits = 0;
            for (int k = 8; k < 40; k++) {
                int a = url[i][k] <= '9' ? url[i][k] - '0' : url[i][k] - 'a' + 10;
                int b = url[j][k] <= '9' ? url[j][k] - '0' : url[j][k] - 'a' + 10;
                bits += bits_of("0123456789abcdef"[a ^ b]);
            }
            CHECK(bits > 20, "%s and %s differ in %d bits", url[i], url[j], bits);
            differ += bits;
        }
    double mean = (double)differ / (IDS * (IDS - 1) / 2);
    CHECK(mean > 58 && mean < 70, "on average %.1f bits of 128 differ", mean);
    for (int i = 0; i < IDS; i++)
        free(url[i]);
}

TEST(names_that_are_none)
{
    static const char *const wrong[] = {"@.mp4",
                                        "@",
                                        "@.",
                                        "@.png.png",
                                        "@.pn",
                                        "@.PNG",
                                        "@.png/",
                                        "@.png/x",
                                        "@%00.png",
                                        "@0.png",
                                        "@0000000000000000000000000000000000000000.png",
                                        "/stream/.png",
                                        "/stream/png",
                                        "/stream/",
                                        "/stream",
                                        "/stream/../@.png",
                                        "/stream/%2e"};
    char *url = one_picture(), path[200], bare[41];
    snprintf(bare, sizeof bare, "%.40s", url);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const char *at = strchr(wrong[i], '@');
        snprintf(path, sizeof path, "%.*s%s%s", (int)(at ? at - wrong[i] : (long)strlen(wrong[i])), wrong[i],
                 at ? bare : "", at ? at + 1 : "");
        int status = status_of(&tiny, path);
        CHECK(status == 404, "%s: %d", path, status);
    }
    snprintf(path, sizeof path, "%s?download=1", url);
    CHECK(status_of(&tiny, path) == 200);
    CHECK(status_of(&tiny, url) == 200);
    free(url);
}

TEST(other_methods)
{
    static const char *const wrong[] = {"POST", "PUT", "DELETE", "OPTIONS"};
    char *url = one_picture();
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct answer a = client_ask(&tiny, wrong[i], url, NULL, "");
        CHECK(a.status == 405 && strcmp(answer_header(&a, "Allow"), "GET, HEAD") == 0, "%s: %d %s", wrong[i],
              a.status, answer_header(&a, "Allow"));
        answer_free(&a);
    }
    free(url);
}

/* The id is the secret; everything else of a daemon with a token still asks for it. */
TEST(no_token_is_asked_for)
{
    struct daemon d;
    if (!CHECK(daemon_ready(&d, (const char *[]){"AUTH_TOKEN=secret", NULL})))
        return;
    struct answer a = client_make(&d, TEXT ",\"response_format\":\"url\"}");
    CHECK(a.status == 401, "%d", a.status);
    answer_free(&a);
    a = client_ask(&d, "POST", "/text-to-image",
                   "Content-Type: application/json\r\nAuthorization: Bearer secret\r\n",
                   TEXT ",\"response_format\":\"url\"}");
    char *url = url_of(&a, 0);
    CHECK(status_of(&d, url) == 200);
    free(url);
    answer_free(&a);
    daemon_end(&d, SIGTERM, 20);
}

/* ---- RFC 9110 ---- */

static void check_range(const char *url, const struct answer *whole, const char *range, int status,
                        size_t first, size_t len)
{
    char headers[200], want[80];
    snprintf(headers, sizeof headers, "Range: %s\r\n", range);
    struct answer a = get(&tiny, url, headers);

    CHECK(a.status == status, "%s: %d, not %d", range, a.status, status);
    if (status != 416)
        CHECK(a.len == len && memcmp(a.body, whole->body + first, len) == 0, "%s: %zu bytes", range, a.len);
    snprintf(want, sizeof want, status == 416 ? "bytes */%zu" : "bytes %zu-%zu/%zu",
             status == 416 ? whole->len : first, first + len - 1, whole->len);
    CHECK(strcmp(answer_header(&a, "Content-Range"), status == 200 ? "" : want) == 0, "%s: %s", range,
          answer_header(&a, "Content-Range"));
    if (status == 416)
        CHECK(!*answer_header(&a, "Cache-Control") && strstr(a.body, "{\"detail\":{\"msg\":\""), "%s",
              a.body);
    answer_free(&a);
}

TEST(ranges)
{
    char *url = one_picture(), text[80];
    struct answer w = get(&tiny, url, NULL);
    size_t n = w.len;

    CHECK(n > 1000 && n < 99999, "%zu", n);
    check_range(url, &w, "bytes=0-", 206, 0, n);
    check_range(url, &w, "bytes=0-0", 206, 0, 1);
    check_range(url, &w, "bytes=0-99", 206, 0, 100);
    check_range(url, &w, "bytes=500-", 206, 500, n - 500);
    check_range(url, &w, "bytes=500-599", 206, 500, 100);
    check_range(url, &w, "bytes=500-999999999", 206, 500, n - 500);
    check_range(url, &w, "bytes=500-99999999999999999999999999", 206, 500, n - 500);
    check_range(url, &w, "bytes=-1", 206, n - 1, 1);
    check_range(url, &w, "bytes=-700", 206, n - 700, 700);
    check_range(url, &w, "bytes=-999999", 206, 0, n);
    snprintf(text, sizeof text, "bytes=%zu-%zu", n - 1, n - 1);
    check_range(url, &w, text, 206, n - 1, 1);
    snprintf(text, sizeof text, "bytes=%zu-", n);
    check_range(url, &w, text, 416, 0, 0);
    check_range(url, &w, "bytes=-0", 416, 0, 0);
    check_range(url, &w, "bytes=18446744073709551616-", 416, 0, 0);
    /* several, and what is no range: the whole, as a server may */
    static const char *const ignored[] = {"bytes=0-1,5-9", "bytes=",      "bytes=-",     "bytes=9-5",
                                          "bytes=a-b",     "bytes=1-2x",  "bytes=--1",   "bytes 0-5",
                                          "octets=0-5",    "bytes=0x1-2", "bytes=1- 22", "0-5"};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        check_range(url, &w, ignored[i], 200, 0, n);
    answer_free(&w);
    free(url);
}

/* A GET with the header lines, of which '@' is the entity tag. */
static void check_condition(const char *url, const char *headers, int status, size_t len)
{
    char text[300], etag[60];
    const char *at = strchr(headers, '@');
    int before = (int)(at ? at - headers : (long)strlen(headers));
    snprintf(etag, sizeof etag, "\"%.32s\"", url + 8);
    snprintf(text, sizeof text, "%.*s%s%s", before, headers, at ? etag : "", at ? at + 1 : "");
    struct answer a = get(&tiny, url, text);
    CHECK(a.status == status && a.len == len, "%s: %d, %zu bytes", text, a.status, a.len);
    CHECK(strcmp(answer_header(&a, "ETag"), etag) == 0, "%s", answer_header(&a, "ETag"));
    answer_free(&a);
}

TEST(conditions)
{
    char *url = one_picture();
    struct answer w = get(&tiny, url, NULL);
    size_t n = w.len;

    check_condition(url, "If-None-Match: @\r\n", 304, 0);
    check_condition(url, "If-None-Match: W/@\r\n", 304, 0);
    check_condition(url, "If-None-Match: \"other\", @\r\n", 304, 0);
    check_condition(url, "If-None-Match: *\r\n", 304, 0);
    check_condition(url, "If-None-Match: \"other\"\r\n", 200, n);
    check_condition(url, "If-None-Match: @\r\nRange: bytes=0-9\r\n", 304, 0);
    check_condition(url, "If-Range: @\r\nRange: bytes=0-9\r\n", 206, 10);
    check_condition(url, "If-Range: \"other\"\r\nRange: bytes=0-9\r\n", 200, n);
    check_condition(url, "If-Range: W/@\r\nRange: bytes=0-9\r\n", 200, n); /* strong comparison */
    check_condition(url, "If-Range: Sun, 29 Nov 2026 12:00:00 GMT\r\nRange: bytes=0-9\r\n", 200, n);
    answer_free(&w);
    free(url);
}

/* The head of a reply to HEAD on a connection that is kept; client_read would wait for the body. */
static char *head_of(int fd, const char *url, const char *headers)
{
    char text[300], *head = calloc(1, 4096);
    snprintf(text, sizeof text, "HEAD %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", url, headers);
    client_puts(fd, text);
    for (size_t len = 0; len < 4095 && recv(fd, head + len, 1, 0) == 1; len++)
        if (len >= 3 && memcmp(head + len - 3, "\r\n\r\n", 4) == 0)
            return head;
    return head;
}

TEST(head)
{
    char *url = one_picture(), want[80];
    struct answer w = get(&tiny, url, NULL);
    int fd = client_open(&tiny);

    snprintf(want, sizeof want, "Content-Length: %zu\r\n", w.len);
    for (int i = 0; i < 2; i++) { /* HEAD knows no ranges, and leaves no byte of a body on the connection */
        char *head = head_of(fd, url, i ? "Range: bytes=0-9\r\n" : "");
        CHECK(strncmp(head, "HTTP/1.1 200", 12) == 0 && strstr(head, want) && strstr(head, "image/png"), "%s",
              head);
        free(head);
    }
    char *head = head_of(fd, "/stream/00000000000000000000000000000000.png", "");
    CHECK(strncmp(head, "HTTP/1.1 404", 12) == 0, "%s", head);
    free(head);
    close(fd);
    answer_free(&w);
    free(url);
}

/* ---- The bound and the time ---- */

TEST(they_expire)
{
    struct daemon d;
    if (!CHECK(daemon_ready(&d, (const char *[]){"LATENTD_STREAM_SECONDS=1", NULL})))
        return;
    double begun = now_seconds();
    struct answer a = client_make(&d, TEXT ",\"response_format\":\"url\"}");
    char *url = url_of(&a, 0);
    answer_free(&a);
    a = get(&d, url, NULL);
    CHECK(a.status == 200 || now_seconds() - begun > 1, "%d", a.status);
    answer_free(&a);
    sleep_seconds(1.1);
    a = get(&d, url, "If-None-Match: *\r\n");
    CHECK(a.status == 404 &&
              strcmp(a.body, "{\"detail\":{\"msg\":\"There is nothing here, or no longer.\"}}") == 0,
          "%d %s", a.status, a.body);
    answer_free(&a);
    CHECK(daemon_metric(&d, BYTES) == 0 && daemon_metric(&d, "latentd_streams") == 0);
    free(url);
    daemon_end(&d, SIGTERM, 20);
}

/* Four pictures of some 190 KB, of which a store of a mebibyte holds five. */
#define LARGE_AS(count)                                                                                      \
    "{\"prompt\":\"cat\",\"num_inference_steps\":1,\"guidance_scale\":1,\"width\":256,\"height\":256,"       \
    "\"num_images_per_prompt\":" count ",\"response_format\":\"url\"}"
#define LARGE LARGE_AS("4")
#define SENT  "latentd_http_requests_total{route=\"/stream/\",method=\"GET\",code=\"200\"}"

/* A request whose reply cannot all lie in the sockets' buffers: small segments keep the sending one small,
 * too, which over loopback would else hold a megabyte. */
static int begin_slowly(const struct daemon *d, const char *url)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((unsigned short)d->port)};
    char text[200];
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), least = 1, segment = 536;

    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &least, sizeof least);
    setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
    CHECK(connect(fd, (struct sockaddr *)&addr, sizeof addr) == 0);
    snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", url);
    client_puts(fd, text);
    return fd;
}

static void check_slow_reply(int fd, const struct answer *whole)
{
    int large = 1 << 20;

    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
    struct answer slow = client_read(fd, 60);
    CHECK(slow.status == 200 && slow.len == whole->len && memcmp(slow.body, whole->body, whole->len) == 0,
          "%d, %zu of %zu bytes", slow.status, slow.len, whole->len);
    answer_free(&slow);
    close(fd);
}

TEST(the_oldest_goes_and_what_is_being_sent_stays_whole)
{
    struct daemon d;
    char *url[8];
    if (!CHECK(daemon_ready(&d, (const char *[]){"LATENTD_STREAM_MIB=1", NULL})))
        return;
    struct answer a = client_make(&d, LARGE);
    for (int i = 0; i < 4; i++)
        url[i] = url_of(&a, i);
    answer_free(&a);
    struct answer whole = get(&d, url[0], NULL);
    check_png(&whole, 256, 256);
    CHECK(whole.len > 150000 && whole.len < 200000, "%zu bytes do not suit this test", whole.len);
    CHECK(daemon_metric(&d, "latentd_streams") == 4);
    int fd = begin_slowly(&d, url[0]);
    a = client_make(&d, LARGE);
    for (int i = 0; i < 4; i++)
        url[4 + i] = url_of(&a, i);
    answer_free(&a);
    double sent = daemon_metric(&d, SENT);
    CHECK(sent == 1, "%g: the slow reply has left the process already", sent);
    for (int i = 0; i < 8; i++)
        CHECK(status_of(&d, url[i]) == (i < 3 ? 404 : 200), "picture %d", i);
    CHECK(daemon_metric(&d, "latentd_streams") == 5 && daemon_metric(&d, BYTES) <= 1 << 20);
    check_slow_reply(fd, &whole);
    answer_free(&whole);
    fd = begin_slowly(&d, url[7]); /* and a daemon that ends meanwhile ends soundly */
    for (int i = 0; i < 8; i++)
        free(url[i]);
    int status = daemon_end(&d, SIGTERM, 20);
    CHECK(status == 0, "%d", status);
    close(fd);
}

/* No reply names what has gone before it is read. */
TEST(a_reply_that_the_store_cannot_hold)
{
    struct daemon d;
    if (!CHECK(daemon_ready(&d, (const char *[]){"LATENTD_STREAM_MIB=1", NULL})))
        return;
    struct answer a = client_make(&d, LARGE_AS("6"));
    CHECK(a.status == 500 && strstr(a.body, "Out of memory error. Try reducing output image resolution."),
          "%d %.200s", a.status, a.body);
    answer_free(&a);
    CHECK(daemon_logged(&d, "are more than LATENTD_STREAM_MIB lets this server keep", 5));
    a = client_make(&d, LARGE_AS("5"));
    for (int i = 0; i < 5; i++) {
        char *url = url_of(&a, i);
        CHECK(status_of(&d, url) == 200, "picture %d", i);
        free(url);
    }
    answer_free(&a);
    int status = daemon_end(&d, SIGTERM, 20);
    CHECK(status == 0, "%d", status);
}

TEST(end)
{
    start_tiny();
    int status = daemon_end(&tiny, SIGTERM, 20);
    CHECK(status == 0, "%d", status);
}

TEST_MAIN()
