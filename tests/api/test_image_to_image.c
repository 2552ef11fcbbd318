/* POST /image-to-image: the form on the wire, the order of its checks, statuses and words, pictures that are
 * none, and what uploads may cost. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "client.h"
#include "image.h"
#include "test.h"

#define ROUTE "/image-to-image"
#define FORM  "Content-Type: multipart/form-data; boundary=B\r\n"
#define IMAGE "--B\r\nContent-Disposition: form-data; name=\"image\"; filename=\"in.png\"\r\n\r\n"
#define END   "--B--\r\n"

static struct daemon tiny;
static double slow_since;
static int slow_upload = -1;

/* ---- Requests ---- */

static void add_field(struct buffer *form, const char *name, const char *value)
{
    buffer_printf(form, "--B\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n", name);
    buffer_puts(form, value);
    buffer_puts(form, "\r\n");
}

/* FIELDS: "name=value" strings, NULL-terminated; then the picture, when there is one. */
static void make_form(struct buffer *form, const char *const *fields, const struct buffer *picture)
{
    char name[64];

    for (; fields && *fields; fields++) {
        size_t len = strcspn(*fields, "=");
        snprintf(name, sizeof(name), "%.*s", (int)len, *fields);
        add_field(form, name, *fields + len + 1);
    }
    if (picture) {
        buffer_puts(form, IMAGE);
        buffer_add(form, picture->data, picture->len);
        buffer_puts(form, "\r\n");
    }
    buffer_puts(form, END);
}

/* A PNG with some colours in it. */
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

static struct answer send_form(const struct daemon *d, const char *headers, const struct buffer *form)
{
    int fd = client_begin_bytes(d, ROUTE, headers, form->data, form->len, form->len);
    struct answer a = client_read(fd, 60);

    if (fd >= 0)
        close(fd);
    return a;
}

static struct answer ask_with(const char *headers, const char *const *fields, const struct buffer *picture)
{
    struct buffer form = {0};

    make_form(&form, fields, picture);
    struct answer a = send_form(&tiny, headers, &form);
    buffer_free(&form);
    return a;
}

/* The slow upload begins with the daemon and is looked at by the last test. */
static void start_tiny(void)
{
    bool first = tiny.pid == 0;

    daemon_shared(&tiny, (const char *[]){"PIPELINE=image-to-image", NULL});
    if (!first)
        return;
    slow_since = now_seconds();
    slow_upload = client_begin_bytes(&tiny, ROUTE, FORM, IMAGE, 1 << 20, strlen(IMAGE));
}

static void expect(const char *headers, const char *const *fields, const struct buffer *picture, int status,
                   const char *want)
{
    start_tiny();
    struct answer a = ask_with(headers, fields, picture);
    CHECK(a.status == status && strstr(a.body, want), "%s: %d %.300s\n  want %d %s",
          fields && *fields ? *fields : "", a.status, a.body, status, want);
    CHECK(strcmp(answer_header(&a, "Content-Type"), "application/json") == 0);
    answer_free(&a);
}

static int count(const char *text, const char *what)
{
    int n = 0;

    for (; (text = strstr(text, what)) != NULL; text++)
        n++;
    return n;
}

/* ---- The route ---- */

TEST(routes)
{
    start_tiny();
    struct answer a = client_ask(&tiny, "POST", "/text-to-image", NULL, "{\"prompt\":\"a\"}");
    CHECK(a.status == 404, "%d", a.status);
    answer_free(&a);
    a = client_ask(&tiny, "GET", ROUTE, NULL, NULL);
    CHECK(a.status == 405 && strcmp(answer_header(&a, "Allow"), "POST") == 0, "%d", a.status);
    answer_free(&a);
    a = client_ask(&tiny, "POST", ROUTE "/", FORM, "");
    CHECK(a.status == 422, "%d %s", a.status, a.body);
    answer_free(&a);
    a = client_ask(&tiny, "GET", "/version", NULL, NULL);
    CHECK(strstr(a.body, "{\"pipeline\":\"image-to-image\","), "%s", a.body);
    answer_free(&a);
    a = client_ask(&tiny, "GET", "/metrics", NULL, NULL);
    CHECK(strstr(a.body, "{route=\"/image-to-image\"") &&
          !strstr(a.body, "duration_seconds_sum{route=\"/text-to"));
    answer_free(&a);
}

TEST(documents_name_the_served_route_alone)
{
    start_tiny();
    struct answer a = client_ask(&tiny, "GET", "/openapi.json", NULL, NULL);
    CHECK(strstr(a.body, "\"genImageToImage\"") && strstr(a.body, "\"Body_genImageToImage\"") &&
          strstr(a.body, "\"multipart/form-data\"") && strstr(a.body, "\"format\":\"binary\""));
    CHECK(!strstr(a.body, "TextToImage") && !strstr(a.body, "/text-to-image"));
    answer_free(&a);
}

/* ---- Pictures ---- */

/* Width and height in the header of a PNG that is the reply's body. */
static void png_size(const struct answer *a, unsigned *width, unsigned *height)
{
    const unsigned char *p = (const unsigned char *)a->body;

    *width = *height = 0;
    if (a->len < 24 || memcmp(p, "\x89PNG", 4) != 0)
        return;
    *width = (unsigned)p[18] << 8 | p[19];
    *height = (unsigned)p[22] << 8 | p[23];
}

/* Cut down to multiples of what the VAE makes of one latent: 2 in the tiny model. */
TEST(size_follows_the_picture)
{
    static const int sizes[][2] = {{32, 32}, {37, 29}, {64, 40}, {200, 16}};
    static const char *const fields[] = {"prompt=the cat", "seed=7", "num_inference_steps=2", NULL};

    start_tiny();
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        struct buffer png = png_of(sizes[i][0], sizes[i][1]);
        struct answer a = ask_with(FORM "Accept: image/png\r\n", fields, &png);
        unsigned width, height;
        png_size(&a, &width, &height);
        CHECK(a.status == 200 && width == (unsigned)sizes[i][0] / 2 * 2 &&
                  height == (unsigned)sizes[i][1] / 2 * 2,
              "%d: %ux%u %.200s", a.status, width, height, a.body);
        CHECK(strcmp(answer_header(&a, "X-Seed"), "7") == 0);
        answer_free(&a);
        buffer_free(&png);
    }
}

TEST(each_seed_is_a_run_of_its_own)
{
    struct buffer png = png_of(32, 32);
    char one[64], *found[3];

    start_tiny();
    struct answer both = ask_with(
        FORM,
        (const char *[]){"prompt=a", "seed=5", "num_inference_steps=3", "num_images_per_prompt=2", NULL},
        &png);
    CHECK(both.status == 200 && count(both.body, "{\"url\":\"data:image/png;base64,iVBOR") == 2 &&
              strstr(both.body, "\"seed\":5,\"nsfw\":false},{") &&
              strstr(both.body, "\"seed\":6,\"nsfw\":false}]}"),
          "%d %.200s", both.status, both.body);
    for (int i = 0; i < 2; i++) {
        snprintf(one, sizeof(one), "seed=%d", 5 + i);
        struct answer a =
            ask_with(FORM, (const char *[]){"prompt=a", one, "num_inference_steps=3.0", NULL}, &png);
        CHECK(a.status == 200, "%d %.200s", a.status, a.body);
        /* the picture alone, without the brackets around the list */
        found[i] = strndup(a.body + 11, a.len > 13 ? a.len - 13 : 0);
        CHECK(strstr(both.body, found[i]) != NULL, "picture %d differs", i);
        answer_free(&a);
    }
    CHECK(strcmp(found[0], found[1]) != 0);
    free(found[0]);
    free(found[1]);
    answer_free(&both);
    buffer_free(&png);
}

TEST(the_picture_and_the_strength_count)
{
    struct buffer png = png_of(32, 32), other = png_of(40, 32);
    const char *base[] = {"prompt=a", "seed=1", "num_inference_steps=10", "strength=0.3", NULL};
    const char *strong[] = {"prompt=a", "seed=1", "num_inference_steps=10", "strength=0.9", NULL};

    start_tiny();
    struct answer a = ask_with(FORM, base, &png), b = ask_with(FORM, strong, &png),
                  c = ask_with(FORM, base, &png);
    CHECK(a.status == 200 && b.status == 200 && strcmp(a.body, b.body) != 0);
    CHECK(c.status == 200 && strcmp(a.body, c.body) == 0);
    answer_free(&b);
    b = ask_with(FORM, base, &other);
    CHECK(b.status == 200 && strcmp(a.body, b.body) != 0);
    answer_free(&a);
    answer_free(&b);
    answer_free(&c);
    buffer_free(&png);
    buffer_free(&other);
}

/* What the Go client of the contract sends: the picture first, its type, floats with six decimals. */
TEST(as_the_go_client_sends_it)
{
    struct buffer png = png_of(32, 32), form = {0};

    start_tiny();
    buffer_puts(&form, "--B\r\nContent-Disposition: form-data; name=\"image\"; filename=\"in.png\"\r\n"
                       "Content-Type: application/octet-stream\r\n\r\n");
    buffer_add(&form, png.data, png.len);
    buffer_puts(&form, "\r\n");
    make_form(&form,
              (const char *[]){"prompt=a", "model_id=latentd/tiny", "loras=", "strength=0.800000",
                               "guidance_scale=7.500000", "image_guidance_scale=1.500000",
                               "negative_prompt=", "safety_check=true", "seed=9", "num_inference_steps=2",
                               "num_images_per_prompt=1", NULL},
              NULL);
    struct answer a = send_form(&tiny, FORM, &form);
    CHECK(a.status == 200 && strstr(a.body, "\"seed\":9,\"nsfw\":false}]}"), "%d %.300s", a.status, a.body);
    answer_free(&a);
    buffer_free(&form);
    buffer_free(&png);
}

TEST(long_prompts)
{
    struct buffer png = png_of(32, 32);
    char prompt[1200] = "prompt=";

    start_tiny();
    for (int i = 0; i < 100; i++)
        strcat(prompt, "the cat ");
    struct answer a = ask_with(FORM, (const char *[]){prompt, "num_inference_steps=2", NULL}, &png);
    CHECK(a.status == 200 && strcmp(answer_header(&a, "X-Prompt-Cut"), "125") == 0, "%d %s", a.status,
          answer_header(&a, "X-Prompt-Cut"));
    answer_free(&a);
    a = ask_with(FORM, (const char *[]){"prompt=", "num_inference_steps=2", NULL}, &png);
    CHECK(a.status == 200 && !*answer_header(&a, "X-Prompt-Cut"), "%d %.200s", a.status, a.body);
    answer_free(&a);
    buffer_free(&png);
}

/* ---- Refusals ---- */

TEST(schema_errors)
{
    struct buffer png = png_of(8, 8);

    static const char *const unknown[] = {"x=1", NULL};

    expect(FORM, unknown, NULL, 422,
           "{\"detail\":[{\"type\":\"missing\",\"loc\":[\"body\",\"prompt\"],\"msg\":\"Field "
           "required\",\"input\":null},"
           "{\"type\":\"missing\",\"loc\":[\"body\",\"image\"],\"msg\":\"Field required\",\"input\":null}]}");
    expect("Content-Type: application/json\r\n", NULL, NULL, 422, "[\"body\",\"image\"]");
    expect(
        FORM, (const char *[]){"prompt=a", "image=text", "strength=x", "seed=", NULL}, NULL, 422,
        "{\"detail\":[{\"type\":\"value_error\",\"loc\":[\"body\",\"image\"],\"msg\":\"Value error, Expected "
        "UploadFile, received: <class "
        "'str'>\",\"input\":\"text\",\"ctx\":{\"error\":{}}},{\"type\":\"float_parsing\","
        "\"loc\":[\"body\",\"strength\"],\"msg\":\"Input should be a valid number, unable to parse string as "
        "a "
        "number\",\"input\":\"x\"},{\"type\":\"int_parsing\",\"loc\":[\"body\",\"seed\"],\"msg\":\"Input "
        "should be a valid "
        "integer, unable to parse string as an integer\",\"input\":\"\"}]}");
    expect("Content-Type: multipart/form-data\r\n", NULL, &png, 400,
           "{\"detail\":\"Missing boundary in multipart.\"}");
    expect("Content-Type: multipart/form-data; boundary=C\r\n", NULL, &png, 400,
           "{\"detail\":\"There was an error parsing the body\"}");
    expect("Content-Type: application/x-www-form-urlencoded\r\n", NULL, NULL, 422, "[\"body\",\"prompt\"]");
    buffer_free(&png);
}

TEST(order_of_checks)
{
    struct buffer png = png_of(8, 8), none = {0};
    struct daemon d, other = tiny;
    static const char *const bad_model[] = {"prompt=a", "model_id=x/y", "num_images_per_prompt=0", NULL};
    static const char *const no_images[] = {"prompt=a", "num_images_per_prompt=0", "loras={", "strength=9",
                                            NULL};
    static const char *const bad_loras[] = {"prompt=a", "loras={", "strength=9", NULL};

    buffer_puts(&none, "no picture");
    start_tiny();
    if (CHECK(daemon_ready(&d, (const char *[]){"PIPELINE=image-to-image", "AUTH_TOKEN=secret", NULL}))) {
        other = tiny;
        tiny = d;
        expect(FORM, (const char *[]){"x=1", NULL}, NULL, 422, "\"missing\"");
        expect(FORM, bad_model, &none, 401, "{\"detail\":{\"msg\":\"Invalid bearer token.\"}}");
        expect(FORM "Authorization: Bearer secret\r\n", bad_model, &none, 400,
               "{\"detail\":{\"msg\":\"pipeline configured with latentd/tiny but called with x/y.\"}}");
        tiny = other;
        daemon_end(&d, SIGTERM, 8);
    }
    expect(FORM, no_images, &none, 400, "{\"detail\":{\"msg\":\"The image cannot be read: ");
    expect(FORM, no_images, &png, 200, "{\"images\":[]}");
    expect(FORM, bad_loras, &png, 400, "{\"detail\":{\"msg\":\"Unable to parse '{' as JSON..\"}}");
    buffer_free(&png);
    buffer_free(&none);
}

TEST(parameters_of_the_run)
{
    struct buffer png = png_of(16, 16), dot = png_of(1, 200);

    expect(FORM, (const char *[]){"prompt=a", "strength=1.5", NULL}, &png, 400,
           "{\"detail\":{\"msg\":\"Error during model execution: The value of strength should in [0.0, 1.0] "
           "but is 1.5.\"}}");
    expect(FORM, (const char *[]){"prompt=a", "strength=-0.1", NULL}, &png, 400,
           "in [0.0, 1.0] but is -0.1.\"}}");
    expect(FORM, (const char *[]){"prompt=a", "strength=nan", NULL}, &png, 400,
           "Error during model execution: ");
    expect(FORM, (const char *[]){"prompt=a", "seed=99999999999999999999", NULL}, &png, 500,
           "{\"detail\":{\"msg\":\"Image-to-image pipeline error.\"}}");
    expect(FORM, (const char *[]){"prompt=a", "num_images_per_prompt=100000000", NULL}, &png, 400,
           "num_images_per_prompt is 100000000, but at most 262144 images of 16 x 16 fit into one reply.");
    expect(FORM, (const char *[]){"prompt=a", "loras=[]", NULL}, &png, 500,
           "{\"detail\":{\"msg\":\"Image-to-image pipeline error.\"}}");
    expect(FORM, (const char *[]){"prompt=a", "num_inference_steps=2", NULL}, &dot, 400,
           "Error during model execution: the image is 1 x 200; each side has to be at least 2.");
    buffer_free(&png);
    buffer_free(&dot);
}

/* ---- Pictures that are none ---- */

static void put_be32(char *at, unsigned v)
{
    for (int i = 0; i < 4; i++)
        at[i] = (char)(v >> (24 - 8 * i));
}

/* Writes another size into the header of a PNG, with a check sum that fits. */
static void set_size(struct buffer *png, unsigned width, unsigned height)
{
    unsigned crc = ~0u;

    put_be32(png->data + 16, width);
    put_be32(png->data + 20, height);
    for (int i = 12; i < 29; i++) {
        crc ^= (unsigned char)png->data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    put_be32(png->data + 29, ~crc);
}

TEST(pictures_that_cannot_be_read)
{
    struct buffer png = png_of(64, 64);
    static const char *const texts[] = {"",       "x",     "no picture at all", "\x89PNG\r\n\x1a\n",
                                        "GIF89a", "<svg/>"};
    static const char *const fields[] = {"prompt=a", "num_inference_steps=2", NULL};

    start_tiny();
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        struct buffer text = {0};
        buffer_puts(&text, texts[i]);
        expect(FORM, fields, &text, 400, "{\"detail\":{\"msg\":\"The image cannot be read: ");
        buffer_free(&text);
    }
    /* a file that breaks off behind its header is a picture whose rows are blank */
    png.len = 60;
    struct answer a = ask_with(FORM, fields, &png);
    CHECK(a.status == 200, "%d %.200s", a.status, a.body);
    answer_free(&a);
    buffer_free(&png);
}

/* A header that promises more than anyone wants is refused before anything is decoded or queued. */
TEST(decompression_bombs)
{
    static const char *const fields[] = {"prompt=a", NULL};
    static const unsigned sizes[][2] = {{60000, 60000}, {0x7fffffff, 0x7fffffff}, {1, 0x7fffffff}, {0, 8},
                                        {8, 0},         {0xffffffff, 8}};
    start_tiny();
    double resident = daemon_metric(&tiny, "process_resident_memory_bytes");
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        struct buffer png = png_of(8, 8);
        set_size(&png, sizes[i][0], sizes[i][1]);
        double start = now_seconds();
        struct answer a = ask_with(FORM, fields, &png);
        double took = now_seconds() - start;
        CHECK(a.status == 400 && strstr(a.body, "The image cannot be read: "), "%u x %u: %d %.200s",
              sizes[i][0], sizes[i][1], a.status, a.body);
        CHECK(took < (sanitized() ? 0.5 : 0.05), "%.0f ms", 1e3 * took);
        answer_free(&a);
        buffer_free(&png);
    }
    CHECK(sanitized() || daemon_metric(&tiny, "process_resident_memory_bytes") - resident < 8 << 20);
}

TEST(too_large_for_memory)
{
    struct daemon d, other;
    static const char *const fields[] = {"prompt=a", NULL};

    if (sanitized())
        SKIP("a sanitizer reserves more addresses than any limit");
    struct buffer png = png_of(4096, 4096);
    start_tiny();
    if (!CHECK(daemon_ready(
            &d, (const char *[]){"PIPELINE=image-to-image", "TEST_ADDRESS_SPACE=2000000000", NULL})))
        return;
    other = tiny;
    tiny = d;
    for (int i = 0; i < 5; i++)
        expect(FORM, fields, &png, 500,
               "{\"detail\":{\"msg\":\"Out of memory error. Try reducing input image resolution.\"}}");
    tiny = other;
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    buffer_free(&png);
}

/* ---- What uploads may cost ---- */

/* Bytes that the process has for its data. */
static rlim_t data_bytes(pid_t pid)
{
    char path[64], line[200];
    unsigned long kib = 0;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    while (f && kib == 0 && fgets(line, sizeof(line), f))
        sscanf(line, "VmData: %lu", &kib);
    if (f)
        fclose(f);
    return (rlim_t)kib << 10;
}

/* What is left of a body of which a piece found no memory is not taken for the whole. */
TEST(a_body_that_memory_has_no_room_for)
{
    enum { LARGE = 24 << 20, LEFT = 6 << 20 };
    struct buffer form = {0};
    struct daemon d;

    if (sanitized())
        SKIP("a sanitizer ends the process");
    struct buffer png = png_of(16, 16);
    char *fill = calloc(1, LARGE);
    buffer_add(&png, fill, LARGE);
    free(fill);
    make_form(&form, (const char *[]){"prompt=a", "num_inference_steps=2", NULL}, &png);
    if (!CHECK(daemon_ready(&d, (const char *[]){"PIPELINE=image-to-image", NULL})))
        return;
    rlim_t all = data_bytes(d.pid) + LEFT;
    CHECK(prlimit(d.pid, RLIMIT_DATA, &(struct rlimit){all, RLIM_INFINITY}, NULL) == 0);
    struct answer a = send_form(&d, FORM, &form);
    CHECK(a.status == 500 && strcmp(a.body, "{\"detail\":{\"msg\":\"Out of memory.\"}}") == 0, "%d %.200s",
          a.status, a.body);
    answer_free(&a);
    CHECK(prlimit(d.pid, RLIMIT_DATA, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY}, NULL) == 0);
    a = send_form(&d, FORM, &form);
    CHECK(a.status == 200, "%d %.200s", a.status, a.body);
    answer_free(&a);
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    buffer_free(&form);
    buffer_free(&png);
}

TEST(limits_of_the_body)
{
    enum { LARGE = 33 << 20, TEXT = (1 << 20) + 1 };
    struct buffer png = png_of(16, 16), large = {0}, text = {0}, form = {0};
    char *fill = calloc(1, LARGE);

    start_tiny();
    buffer_puts(&large, "png");
    buffer_add(&large, fill, LARGE);
    expect(FORM, (const char *[]){"prompt=a", NULL}, &large, 400,
           "{\"detail\":{\"msg\":\"The body has more than 33554432 bytes.\"}}");
    memset(fill, 'a', TEXT);
    buffer_puts(&text, "prompt=");
    buffer_add(&text, fill, TEXT);
    expect(FORM, (const char *[]){text.data, NULL}, &png, 400,
           "{\"detail\":\"Part exceeded maximum size of 1024KB.\"}");
    /* a picture may have bytes behind it, and 30 MiB of them are not too many */
    buffer_add(&png, fill, 30 << 20);
    make_form(&form, (const char *[]){"prompt=a", "num_inference_steps=2", NULL}, &png);
    struct answer a = send_form(&tiny, FORM, &form);
    CHECK(a.status == 200, "%d %.200s", a.status, a.body);
    answer_free(&a);
    buffer_free(&png);
    buffer_free(&large);
    buffer_free(&text);
    buffer_free(&form);
    free(fill);
}

/* Five clients that hold 30 MiB each do not fit: the fifth is told to come back, once what the four have sent
 * has been read, and the memory is free again when they leave. */
TEST(bodies_together_are_bounded)
{
    enum { SENT = 30 << 20 };
    char *body = calloc(1, SENT);
    int fd[4], full = 0, status = 0;

    start_tiny();
    memcpy(body, IMAGE, strlen(IMAGE));
    for (int i = 0; i < 4; i++)
        fd[i] = client_begin_bytes(&tiny, ROUTE, FORM, body, SENT + 1, SENT);
    for (double end = now_seconds() + 30; !full && now_seconds() < end;) {
        int fifth = client_begin_bytes(&tiny, ROUTE, FORM, body, SENT, SENT);
        struct answer a = client_read(fifth, 30);
        status = a.status;
        full = a.status == 500 && strstr(a.body, "insufficient capacity");
        answer_free(&a);
        close(fifth);
    }
    CHECK(full, "the last status is %d", status);
    for (int i = 0; i < 4; i++)
        close(fd[i]);
    CHECK(daemon_metric_reaches(
        &tiny, "latentd_http_requests_total{route=\"/image-to-image\",method=\"POST\",code=\"499\"}", 4, 30));
    struct answer a = client_ask(&tiny, "POST", ROUTE, FORM, "");
    CHECK(a.status == 422, "%d %.200s", a.status, a.body);
    answer_free(&a);
    free(body);
}

static void *one_client(void *arg)
{
    const struct buffer *form = arg;
    struct answer a = send_form(&tiny, FORM, form);
    long status = a.status == 500 && strstr(a.body, "insufficient capacity") ? 503 : a.status;

    answer_free(&a);
    return (void *)status;
}

TEST(hundred_parallel_uploads)
{
    enum { CLIENTS = 100 };
    struct buffer png = png_of(48, 48), form = {0};
    pthread_t thread[CLIENTS];
    int made = 0, refused = 0;

    start_tiny();
    make_form(&form, (const char *[]){"prompt=a", "seed=1", "num_inference_steps=5", NULL}, &png);
    for (int i = 0; i < CLIENTS; i++)
        pthread_create(&thread[i], NULL, one_client, &form);
    for (int i = 0; i < CLIENTS; i++) {
        void *status;
        pthread_join(thread[i], &status);
        made += (long)status == 200;
        refused += (long)status == 503;
    }
    CHECK(made + refused == CLIENTS && made >= 8, "%d made, %d refused", made, refused);
    buffer_free(&png);
    buffer_free(&form);
}

/* Forty leave; a few sockets more or less are those that were being accepted or closed while somebody
 * counted. */
TEST(leaves_during_the_upload)
{
    enum { SOME = 4 };
    struct buffer png = png_of(64, 64), form = {0};

    start_tiny();
    make_form(&form, (const char *[]){"prompt=a", NULL}, &png);
    double before = daemon_metric(&tiny, "process_open_fds");
    for (size_t sent = 0; sent < form.len; sent += 1 + form.len / 40)
        close(client_begin_bytes(&tiny, ROUTE, FORM, form.data, form.len, sent));
    struct answer a = ask_with(FORM, (const char *[]){"prompt=a", "num_inference_steps=2", NULL}, &png);
    CHECK(a.status == 200, "%d %.200s", a.status, a.body);
    answer_free(&a);
    for (double end = now_seconds() + 15;
         daemon_metric(&tiny, "process_open_fds") > before + SOME && now_seconds() < end;)
        sleep_seconds(0.02);
    double after = daemon_metric(&tiny, "process_open_fds");
    CHECK(after <= before + SOME, "%g before, %g after", before, after);
    buffer_free(&png);
    buffer_free(&form);
}

/* The picture is the job's own: the client leaves while it waits or runs, and nothing of it is read after. */
TEST(leaves_while_the_job_waits)
{
    struct buffer png = png_of(256, 256), form = {0};
    int fd[6];

    start_tiny();
    make_form(&form, (const char *[]){"prompt=a", "num_inference_steps=100", NULL}, &png);
    for (int i = 0; i < 6; i++)
        fd[i] = client_begin_bytes(&tiny, ROUTE, FORM, form.data, form.len, form.len);
    CHECK(daemon_metric_reaches(&tiny, "latentd_queue_depth", 4, 10));
    for (int i = 0; i < 6; i++)
        close(fd[i]);
    CHECK(daemon_metric_reaches(&tiny, "latentd_cancelled_total{reason=\"disconnect\"}", 6, 20));
    buffer_free(&png);
    buffer_free(&form);
}

/* A client that sends a piece now and then is cut off at the deadline of bodies, 20 s. */
TEST(slow_uploads_are_cut_off)
{
    start_tiny();
    while (now_seconds() - slow_since < 19 && client_puts(slow_upload, "x"))
        sleep_seconds(1);
    CHECK(now_seconds() - slow_since >= 19, "closed after %.1f s", now_seconds() - slow_since);
    CHECK(client_closed(slow_upload, 5));
    close(slow_upload);
}

TEST(stop)
{
    CHECK(daemon_end(&tiny, SIGTERM, 8) == 0);
}

TEST_MAIN()
