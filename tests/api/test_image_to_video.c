/* POST /image-to-video: the order of its checks, what the Go client of the contract reads, replies that are
 * sent while they are made, and clients that are slow or leave. The model is the tiny one of the goldens with
 * more frames. */
#include <cjson/cJSON.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../golden/video_model.h"
#include "client.h"
#include "image.h"
#include "video.h"

#define ROUTE   "/image-to-video"
#define FORM    "Connection: close\r\nContent-Type: multipart/form-data; boundary=B\r\n"
#define IMAGE   "--B\r\nContent-Disposition: form-data; name=\"image\"; filename=\"in.png\"\r\n\r\n"
#define GOLDEN  "tests/golden/data/image_to_video/"
#define RUNNING "latentd_requests_running"
#define LEFT    "latentd_cancelled_total{reason=\"disconnect\"}"
#define SLOW    "latentd_cancelled_total{reason=\"slow\"}"

enum { FRAMES = 25, SIDE = 64 };

static char shelf[] = "/tmp/latentd-video-api-XXXXXX", shelf_variable[80];
static struct daemon tiny;

/* ---- The model and the daemon ---- */

static void make_shelf(void)
{
    static const char *const parts[][2] = {
        {"unet", "diffusion_pytorch_model"}, {"vae", "diffusion_pytorch_model"}, {"image_encoder", "model"}};
    char command[300], from[200], to[200];

    if (!mkdtemp(shelf))
        abort();
    snprintf(command, sizeof command,
             "cp -r " GOLDEN "latentd %s && sed -i 's/\"num_frames\": 6/\"num_frames\": %d/' "
             "%s/latentd/svd/unet/config.json",
             shelf, FRAMES, shelf);
    if (system(command) != 0)
        abort();
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(from, sizeof from, GOLDEN "latentd/svd/%s", parts[i][0]);
        snprintf(to, sizeof to, "%s/latentd/svd/%s", shelf, parts[i][0]);
        write_weights(from, to, parts[i][1], NULL);
    }
    snprintf(shelf_variable, sizeof shelf_variable, "MODEL_DIR=%s", shelf);
}

#define VIDEO_DAEMON "PIPELINE=image-to-video", "MODEL_ID=latentd/svd", shelf_variable

static void start_tiny(void)
{
    if (tiny.pid == 0)
        make_shelf();
    daemon_shared(&tiny, (const char *[]){VIDEO_DAEMON, NULL});
}

/* ---- Requests ---- */

static struct buffer png_of(int width, int height)
{
    struct image im = {.width = width, .height = height, .rgb = malloc(3 * (size_t)width * (size_t)height)};
    struct buffer png = {0};
    struct error err = {0};

    for (int i = 0; i < 3 * width * height; i++)
        im.rgb[i] = (unsigned char)(i * 7 + i / (3 * width) * 5);
    png_encode(&im, &png, &err);
    image_free(&im);
    return png;
}

/* The picture FILE, its LEN bytes (NULL: none), and FIELDS, "name=value" strings in one, separated by '&'. */
static struct buffer form_of(const char *fields, const void *file, size_t len)
{
    struct buffer form = {0};

    if (file) {
        buffer_puts(&form, IMAGE);
        buffer_add(&form, file, len);
        buffer_puts(&form, "\r\n");
    }
    while (*fields) {
        int name = (int)strcspn(fields, "="), all = (int)strcspn(fields, "&");
        buffer_printf(&form, "--B\r\nContent-Disposition: form-data; name=\"%.*s\"\r\n\r\n%.*s\r\n", name,
                      fields, all - name - 1, fields + name + 1);
        fields += all + (fields[all] == '&');
    }
    buffer_puts(&form, "--B--\r\n");
    return form;
}

/* Sends a request with a good picture and leaves its reply unread. */
static int begin(const struct daemon *d, const char *headers, const char *fields)
{
    struct buffer png = png_of(40, 32), form = form_of(fields, png.data, png.len);
    int fd = client_begin_bytes(d, ROUTE, headers, form.data, form.len, form.len);

    buffer_free(&form);
    buffer_free(&png);
    return fd;
}

/* Takes the chunks' frames out of a body. False when the last chunk is missing. */
static bool dechunk(struct answer *a)
{
    size_t in = 0, out = 0;

    for (;;) {
        char *end;
        unsigned long n = in < a->len ? strtoul(a->body + in, &end, 16) : 0;
        if (in >= a->len || end == a->body + in || strncmp(end, "\r\n", 2) != 0)
            break;
        in = (size_t)(end - a->body) + 2;
        if (n > a->len - in)
            break;
        memmove(a->body + out, a->body + in, n);
        out += n;
        in += n + 2;
        if (n)
            continue;
        a->body[out] = '\0';
        a->len = out;
        return true;
    }
    a->body[out] = '\0';
    a->len = out;
    return false;
}

/* A whole reply, without its chunks; status 0 when it breaks off. */
static struct answer finish(int fd, double seconds)
{
    struct answer a = client_read(fd, seconds);

    close(fd);
    if (strcmp(answer_header(&a, "Transfer-Encoding"), "chunked") == 0 && !dechunk(&a))
        a.status = 0;
    return a;
}

static struct answer ask(const char *headers, const char *fields)
{
    start_tiny();
    return finish(begin(&tiny, headers, fields), 120);
}

static void expect(const char *headers, const char *fields, const void *file, size_t len, int status,
                   const char *want)
{
    struct buffer form = form_of(fields, file, len);

    start_tiny();
    struct answer a = finish(client_begin_bytes(&tiny, ROUTE, headers, form.data, form.len, form.len), 60);
    CHECK(a.status == status && strstr(a.body, want), "%s: %d %.300s\n  want %d %s", fields, a.status, a.body,
          status, want);
    CHECK(strcmp(answer_header(&a, "Content-Type"), "application/json") == 0);
    answer_free(&a);
    buffer_free(&form);
}

/* The worker is free again and makes videos. */
static void check_unharmed(void)
{
    double end = now_seconds() + 30;

    while (daemon_metric(&tiny, RUNNING) != 0 && now_seconds() < end)
        sleep_seconds(0.01);
    CHECK(daemon_metric(&tiny, RUNNING) == 0);
    struct answer a = ask(FORM, "num_inference_steps=1");
    CHECK(a.status == 200, "%d %.200s", a.status, a.body);
    answer_free(&a);
}

/* ---- Replies ---- */

static unsigned char *from_base64(const char *text, size_t *len)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char *out = malloc(strlen(text));
    unsigned bits = 0, n = 0;

    *len = 0;
    for (const char *at; *text && (at = strchr(digits, *text)) != NULL; text++) {
        bits = bits << 6 | (unsigned)(at - digits);
        n = (n + 6) % 8; /* bits beyond the last whole byte */
        if (n < 6)
            out[(*len)++] = (unsigned char)(bits >> n);
    }
    return out;
}

static void check_frame(const cJSON *frame, double seed, int width, int height)
{
    const char *url = cJSON_GetStringValue(cJSON_GetObjectItem(frame, "url"));
    const cJSON *nsfw = cJSON_GetObjectItem(frame, "nsfw");
    struct image im = {0};
    struct error err = {0};
    size_t len;

    CHECK(cJSON_GetNumberValue(cJSON_GetObjectItem(frame, "seed")) == seed && cJSON_IsFalse(nsfw));
    if (!CHECK(url && strncmp(url, "data:image/png;base64,", 22) == 0 && strlen(url) % 4 == 22 % 4))
        return;
    unsigned char *png = from_base64(url + 22, &len);
    CHECK(image_decode(png, len, &im, &err) == 0 && im.width == width && im.height == height, "%dx%d %s",
          im.width, im.height, err.msg);
    free(png);
    image_free(&im);
}

/* What the Go client's rules of the contract, 6.3 and 6.4, ask for. */
static void check_video(const struct answer *a, double seed, int width, int height)
{
    cJSON *tree = cJSON_ParseWithOpts(a->body, NULL, true);
    const cJSON *videos = cJSON_GetObjectItem(tree, "frames"), *video = cJSON_GetObjectItem(tree, "video");
    const cJSON *frames = cJSON_GetArrayItem(videos, 0), *frame;

    CHECK(a->status == 200 && strcmp(answer_header(a, "Content-Type"), "application/json") == 0, "%d %.200s",
          a->status, a->body);
    CHECK(cJSON_GetArraySize(videos) == 1 && cJSON_GetArraySize(frames) == FRAMES, "%d videos, %d frames",
          cJSON_GetArraySize(videos), cJSON_GetArraySize(frames));
    cJSON_ArrayForEach(frame, frames) check_frame(frame, seed, width, height);
    CHECK(cJSON_GetObjectItem(video, "url") || cJSON_GetObjectItem(video, "error"));
    cJSON_Delete(tree);
}

TEST(routes)
{
    start_tiny();
    static const char *const wrong[] = {"GET", "HEAD", "PUT", "OPTIONS"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct answer a = client_ask(&tiny, wrong[i], ROUTE, "Connection: close\r\n", NULL);
        CHECK((a.status == 405 || strcmp(wrong[i], "HEAD") == 0) &&
                  strcmp(answer_header(&a, "Allow"), "POST") == 0,
              "%s: %d", wrong[i], a.status);
        answer_free(&a);
    }
    struct answer a = client_ask(&tiny, "POST", "/text-to-image", NULL, "{\"prompt\":\"a\"}");
    CHECK(a.status == 404, "%d", a.status);
    answer_free(&a);
    a = client_ask(&tiny, "GET", "/openapi.json", NULL, NULL);
    CHECK(strstr(a.body, "\"genImageToVideo\"") && strstr(a.body, "\"Body_genImageToVideo\"") &&
          strstr(a.body, "\"VideoResponse\"") && !strstr(a.body, "ImageResponse") &&
          !strstr(a.body, "TextToImage"));
    answer_free(&a);
}

TEST(a_video)
{
    struct answer a = ask(FORM, "seed=7&num_inference_steps=2&fps=7&width=64&height=48");

    check_video(&a, 7, 64, 48);
    CHECK(!*answer_header(&a, "Content-Length") && *answer_header(&a, "X-Request-Id"));
    answer_free(&a);
    CHECK(daemon_logged(&tiny, " frames=25 fps=7", 10));
    /* a side that is not given, or 0, is the model's own */
    a = ask(FORM, "seed=4294967296&num_inference_steps=1&height=0&safety_check=false");
    check_video(&a, 4294967296, SIDE, SIDE);
    answer_free(&a);
    CHECK(daemon_metric(&tiny, "latentd_images_total") == 2 * FRAMES);
    CHECK(daemon_metric(&tiny, "latentd_pixels_total") == FRAMES * (64 * 48 + SIDE * SIDE));
}

/* Of all but the video, whose URL is new each time. */
static bool same_frames(const struct answer *a, const struct answer *b)
{
    const char *end = strstr(a->body, "]],\"video\"");

    return end && a->len == b->len && memcmp(a->body, b->body, (size_t)(end - a->body)) == 0;
}

TEST(the_same_request_gives_the_same_bytes)
{
    struct answer a = ask(FORM, "seed=5&num_inference_steps=2"),
                  b = ask(FORM, "seed=5&num_inference_steps=2"),
                  c = ask(FORM, "seed=6&num_inference_steps=2"),
                  d = ask(FORM, "seed=5&num_inference_steps=2&motion_bucket_id=200");

    CHECK(a.status == 200 && same_frames(&a, &b) && !same_frames(&a, &c) && !same_frames(&a, &d));
    answer_free(&a);
    answer_free(&b);
    answer_free(&c);
    answer_free(&d);
}

TEST(requests_side_by_side)
{
    struct answer alone = ask(FORM, "seed=9&num_inference_steps=1");
    int fd[3];

    for (int i = 0; i < 3; i++)
        fd[i] = begin(&tiny, FORM, "seed=9&num_inference_steps=1");
    for (int i = 2; i >= 0; i--) { /* the last in the queue is read first */
        struct answer a = finish(fd[i], 120);
        CHECK(a.status == 200 && same_frames(&alone, &a), "request %d: %d", i, a.status);
        answer_free(&a);
    }
    answer_free(&alone);
}

TEST(http_1_0_ends_with_the_connection)
{
    struct buffer png = png_of(16, 16), form = form_of("seed=3&num_inference_steps=1", png.data, png.len);
    char head[200];

    start_tiny();
    int fd = client_open(&tiny);
    snprintf(head, sizeof head,
             "POST " ROUTE " HTTP/1.0\r\nContent-Type: multipart/form-data; boundary=B\r\n"
             "Content-Length: %zu\r\n\r\n",
             form.len);
    client_puts(fd, head);
    client_write(fd, form.data, form.len);
    struct answer a = client_read(fd, 120);
    CHECK(a.closed && !*answer_header(&a, "Transfer-Encoding"));
    check_video(&a, 3, SIDE, SIDE);
    answer_free(&a);
    close(fd);
    buffer_free(&form);
    buffer_free(&png);
}

/* A connection that is kept open carries the next request. */
TEST(keep_alive)
{
    start_tiny();
    struct buffer png = png_of(16, 16), form = form_of("seed=3&num_inference_steps=1", png.data, png.len);
    int fd = client_begin_bytes(&tiny, ROUTE, "Content-Type: multipart/form-data; boundary=B\r\n", form.data,
                                form.len, form.len);
    char piece[4096], tail[8] = "";
    double end = now_seconds() + 120;
    while (strcmp(tail, "0\r\n\r\n") != 0 && now_seconds() < end) {
        ssize_t n = recv(fd, piece, sizeof piece, 0);
        if (!CHECK(n > 0))
            break;
        for (ssize_t i = 0; i < n; i++) {
            memmove(tail, tail + (strlen(tail) == 5), 6);
            tail[strlen(tail)] = piece[i];
        }
    }
    client_puts(fd, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    struct answer a = client_read(fd, 30);
    CHECK(a.status == 200 && strstr(a.body, "OK"), "%d", a.status);
    answer_free(&a);
    close(fd);
    buffer_free(&form);
    buffer_free(&png);
}

TEST(the_video_itself)
{
    if (!mp4_encoder()) {
        struct buffer png = png_of(8, 8);
        expect(FORM "Accept: video/mp4\r\n", "num_inference_steps=1", png.data, png.len, 400,
               "{\"detail\":{\"msg\":\"This server has no H.264 encoder");
        buffer_free(&png);
        return;
    }
    struct answer a = ask(FORM "Accept: video/mp4\r\n", "seed=8&num_inference_steps=1");
    CHECK(a.status == 200 && strcmp(answer_header(&a, "Content-Type"), "video/mp4") == 0 &&
              strcmp(answer_header(&a, "X-Seed"), "8") == 0 && a.len > 64 &&
              memcmp(a.body + 4, "ftyp", 4) == 0,
          "%d %.200s", a.status, a.body);
    answer_free(&a);
}

/* ---- Refusals ---- */

TEST(order_of_checks)
{
    struct buffer png = png_of(8, 8);
    struct daemon d, other;

    start_tiny();
    expect(FORM, "fps=x&seed=", NULL, 0, 422,
           "{\"detail\":[{\"type\":\"missing\",\"loc\":[\"body\",\"image\"],\"msg\":\"Field "
           "required\",\"input\":null},{\"type\":\"int_parsing\",\"loc\":[\"body\",\"fps\"]");
    if (CHECK(daemon_ready(&d,
                           (const char *[]){VIDEO_DAEMON, "AUTH_TOKEN=secret", "LATENTD_MEMORY=16", NULL}))) {
        other = tiny;
        tiny = d;
        expect(FORM, "fps=x", NULL, 0, 422, "\"missing\"");
        expect(FORM, "model_id=x&height=1", "no", 2, 401, "{\"detail\":{\"msg\":\"Invalid bearer token.\"}}");
        expect(FORM "Authorization: Bearer secret\r\n", "model_id=x&height=1", "no", 2, 400,
               "{\"detail\":{\"msg\":\"pipeline configured with latentd/svd but called with x.\"}}");
        expect(
            FORM "Authorization: Bearer secret\r\n", "height=576&width=1024", png.data, png.len, 500,
            "{\"detail\":{\"msg\":\"Out of memory error. Try reducing input or output video resolution.\"}}");
        tiny = other;
        daemon_end(&d, SIGTERM, 8);
    }
    expect(FORM, "height=577&width=1028&fps=0", "no", 2, 400,
           "{\"detail\":{\"msg\":\"`height` and `width` have to be divisible by 8 but are 577 and 1028.\"}}");
    expect(FORM, "fps=0", "no", 2, 400, "{\"detail\":{\"msg\":\"The image cannot be read: ");
    expect(FORM, "fps=0", "", 0, 400, "{\"detail\":{\"msg\":\"The image cannot be read: ");
    expect(FORM, "fps=0", png.data, png.len, 400, "Error during model execution: `fps` has to be at least 1");
    expect(FORM, "fps=-99999999999999999999999", png.data, png.len, 400, "`fps` has to be at least 1");
    if (mp4_encoder())
        expect(FORM "Accept: video/mp4\r\n", "fps=1001", png.data, png.len, 400,
               "{\"detail\":{\"msg\":\"Error during model execution: `fps` has to be at most 1000 in an MP4 "
               "but is 1001");
    expect(FORM, "height=-8", png.data, png.len, 400, "Error during model execution: `height` and `width`");
    expect(FORM, "noise_aug_strength=nan", png.data, png.len, 400, "Error during model execution: ");
    expect(FORM, "seed=99999999999999999999", png.data, png.len, 500,
           "{\"detail\":{\"msg\":\"Image-to-video pipeline error.\"}}");
    expect(FORM, "height=16384&width=16384", png.data, png.len, 500,
           "{\"detail\":{\"msg\":\"Out of memory error. Try reducing input or output video resolution.\"}}");
    expect(FORM, "height=80000000000000", png.data, png.len, 500, "Try reducing input or output video");
    expect(FORM, "response_format=gif", png.data, png.len, 400, "response_format is \\\"gif\\\"");
    buffer_free(&png);
}

/* ---- Clients that are slow or leave ---- */

/* A client with room for little, so that the reply has to wait for it. */
static int begin_narrow(const char *fields)
{
    start_tiny();
    int fd = begin(&tiny, FORM, fields), few = 64 << 10;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &few, sizeof few);
    return fd;
}

/* More than the pipe and the sockets hold. */
#define LARGE "seed=1&num_inference_steps=1&width=320&height=320"

TEST(a_client_that_reads_slowly_gets_everything)
{
    struct answer want = ask(FORM, LARGE);
    int fd = begin_narrow(LARGE);

    CHECK(want.len > 3 << 20, "only %zu bytes", want.len);
    CHECK(daemon_logged(&tiny, "phase=encode", 60));
    sleep_seconds(3); /* the worker waits meanwhile */
    CHECK(daemon_metric(&tiny, RUNNING) == 1, "the worker did not wait");
    struct answer a = finish(fd, 120);
    CHECK(a.status == 200 && same_frames(&want, &a), "%d, %zu bytes", a.status, a.len);
    answer_free(&a);
    answer_free(&want);
}

TEST(a_client_that_stops_reading_is_given_up)
{
    start_tiny();
    double before = daemon_metric(&tiny, SLOW);
    int fd = begin_narrow(LARGE);
    CHECK(daemon_metric_reaches(&tiny, SLOW, before + 1, 90), "still held");
    CHECK(daemon_logged(&tiny, "cancelled=slow incomplete", 10));
    struct answer a = finish(fd, 30);
    CHECK(a.status == 0, "a part was taken for the whole");
    answer_free(&a);
    check_unharmed();
}

TEST(leaves_before_the_first_frame)
{
    start_tiny();
    double before = daemon_metric(&tiny, LEFT);
    int fd = begin(&tiny, FORM, "num_inference_steps=900");
    CHECK(daemon_logged(&tiny, "/900", 60));
    close(fd);
    CHECK(daemon_metric_reaches(&tiny, LEFT, before + 1, 30));
    CHECK(daemon_logged(&tiny, "cancelled=disconnect", 10) && daemon_logged(&tiny, "status=499", 10));
    check_unharmed();
}

/* Reads AFTER bytes of the reply and leaves, with a reset or not. */
static void leave_after(size_t after, bool reset)
{
    struct linger now = {1, 0};
    char *piece = malloc(after);

    start_tiny();
    double before = daemon_metric(&tiny, LEFT);
    int fd = begin_narrow(LARGE);
    CHECK(recv(fd, piece, after, MSG_WAITALL) == (ssize_t)after);
    if (reset)
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
    CHECK(daemon_metric_reaches(&tiny, LEFT, before + 1, 30), "%zu bytes", after);
    free(piece);
}

TEST(leaves_between_frames)
{
    leave_after(1, true);
    leave_after(500000, false);
    check_unharmed();
}

/* ---- Memory, and the end ---- */

static long memory_kib(const char *key)
{
    char path[64], line[200];
    long kib = -1;

    snprintf(path, sizeof path, "/proc/%d/status", (int)tiny.pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0)
            kib = strtol(line + strlen(key) + 1, NULL, 10);
    if (f)
        fclose(f);
    return kib;
}

/* A reply takes no memory of its own: the process does not grow when 25 frames of its size were made before,
 * but for the MP4 that is kept for /stream/; a daemon's first reply grows it by its arena and a few frames.
 */
TEST(memory_does_not_grow_with_the_reply)
{
    start_tiny();
    struct answer a = ask(FORM, LARGE);
    CHECK(a.status == 200);
    size_t reply = a.len;
    answer_free(&a);
    double kept = daemon_metric(&tiny, "latentd_stream_bytes");
    long before = memory_kib("VmHWM:");
    a = ask(FORM, LARGE);
    CHECK(a.status == 200);
    answer_free(&a);
    long grown = memory_kib("VmHWM:") - before;
    kept = (daemon_metric(&tiny, "latentd_stream_bytes") - kept) / 1024;
    printf("  grown %ld KiB, of them %.0f of the video that is kept\n", grown, kept);
    grown -= (long)kept;
    CHECK(sanitized() || grown < 3 * 320 * 320 * 3 / 1024, "%ld KiB for replies of %zu bytes", grown, reply);
}

/* ---- latentd generate ---- */

/* Runs "latentd generate --image in.png ARGS" on a terminal, in the folder of the model; what it wrote there,
 * \0 at its end. */
static int generate(const char *args, char text[16384])
{
    const char *bin = getenv("LATENTD_BIN");
    char *program = realpath(bin ? bin : "build/latentd", NULL), command[600];
    size_t len = 0;
    ssize_t n;
    int fd, status;

    snprintf(command, sizeof command,
             "cd %s && exec env MODEL_DIR=. PIPELINE=image-to-video MODEL_ID=latentd/svd %s generate --image "
             "in.png %s",
             shelf, program, args);
    free(program);
    pid_t pid = forkpty(&fd, NULL, NULL, NULL);
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    while (pid > 0 && len < 16383 && (n = read(fd, text + len, 16383 - len)) > 0)
        len += (size_t)n;
    text[len] = '\0';
    close(fd);
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool starts_as_mp4(const char *name)
{
    char path[100], head[8] = "";
    snprintf(path, sizeof path, "%s/%s", shelf, name);
    FILE *f = fopen(path, "rb");
    bool ok = f && fread(head, 1, 8, f) == 8 && memcmp(head + 4, "ftyp", 4) == 0;
    if (f)
        fclose(f);
    return ok;
}

/* The file, and that the terminal saw the steps and the frames go by. */
TEST(generate_shows_progress_and_writes_the_video)
{
    char text[16384], path[100];
    struct buffer png = png_of(40, 32);

    start_tiny();
    snprintf(path, sizeof path, "%s/in.png", shelf);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(png.data, 1, png.len, f) == png.len && fclose(f) == 0);
    buffer_free(&png);
    int status = generate("-o out.mp4 --steps 2 --seed 4 --width 64 --height 48", text);
    if (!mp4_encoder()) {
        CHECK(status == 1 && strstr(text, "there is no H.264 encoder here"), "%d %s", status, text);
        return;
    }
    CHECK(status == 0 && strstr(text, "out.mp4: 25 frames of 64 x 48, seed 4"), "%d %s", status, text);
    CHECK(strstr(text, "] 1/2 ") && strstr(text, "] 2/2 ") && strstr(text, "frame 1/25 ") &&
              strstr(text, "frame 25/25 "),
          "%s", text);
    CHECK(starts_as_mp4("out.mp4"));
    status = generate("-o bad.mp4 --fps 0", text);
    CHECK(status == 1 && strstr(text, "`fps` has to be at least 1") && !starts_as_mp4("bad.mp4"), "%d %s",
          status, text);
    status = generate("-o bad.mp4 --fps 1001", text);
    CHECK(status == 1 && strstr(text, "`fps` has to be at most 1000 in an MP4 but is 1001") &&
              !strstr(text, "] 1/"),
          "%d %s", status, text);
    status = generate("-o still.png", text);
    CHECK(status == 1 && strstr(text, "neither a folder nor an .mp4 nor"), "%d %s", status, text);
}

/* Without an encoder the frames still come, and "video" says why there is none. */
TEST(no_encoder)
{
    struct buffer png = png_of(40, 32);
    struct daemon d, other;

    start_tiny();
    other = tiny;
    if (!CHECK(daemon_ready(&d, (const char *[]){VIDEO_DAEMON, "LATENTD_H264=none", NULL})))
        return;
    tiny = d;
    struct answer a = ask(FORM, "seed=7&num_inference_steps=1&width=64&height=48");
    check_video(&a, 7, 64, 48);
    CHECK(strstr(a.body, "]],\"video\":{\"error\":\""), "%s", a.len > 200 ? a.body + a.len - 200 : a.body);
    answer_free(&a);
    expect(FORM "Accept: video/mp4\r\n", "num_inference_steps=1", png.data, png.len, 400,
           "{\"detail\":{\"msg\":\"This server has no H.264 encoder");
    tiny = other;
    buffer_free(&png);
    daemon_end(&d, SIGTERM, 20);
}

/* Behind its patience a drain stops the job; the reply breaks off and is never taken for a whole one. */
TEST(a_drain_breaks_the_reply_off)
{
    struct daemon d;

    start_tiny();
    if (!CHECK(daemon_ready(&d, (const char *[]){VIDEO_DAEMON, NULL})))
        return;
    int fd = begin(&d, FORM, LARGE), few = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &few, sizeof few);
    CHECK(daemon_logged(&d, "phase=encode", 60));
    kill(d.pid, SIGTERM);
    sleep_seconds(7); /* longer than a drain waits */
    struct answer a = finish(fd, 30);
    CHECK(a.status == 0, "a part was taken for the whole");
    answer_free(&a);
    CHECK(daemon_end(&d, 0, 10) == 0);
}

TEST(end)
{
    char command[100];

    start_tiny();
    CHECK(daemon_end(&tiny, SIGTERM, 10) == 0);
    snprintf(command, sizeof command, "rm -rf %s", shelf);
    CHECK(system(command) == 0);
}

TEST_MAIN()
