/* Over the wire: LoRAs that a request names reach its own pictures and no others, and what a safety checker
 * says stands in the reply. The pictures with LoRAs are those of diffusers (tests/golden/data/lora/pictures,
 * see tests/golden/test_lora_picture.c), on the reference backend. */
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "checker.h"
#include "client.h"
#include "image.h"
#include "test.h"

#define FAMILIES "tests/golden/data/families/"
#define PICTURES "tests/golden/data/lora/pictures/"
#define JSON     "Content-Type: application/json\r\n"
#define FORM     "Content-Type: multipart/form-data; boundary=B\r\n"
#define PNG      "Accept: image/png\r\n"
#define STYLE    "{\\\"test/style\\\": \\\"0.9\\\"}"

enum { INPUT_WIDTH = 70, INPUT_HEIGHT = 53, WIDTH = 64, HEIGHT = 48, BYTES = 3 * WIDTH * HEIGHT };

static char shelf[] = "/tmp/latentd-shelf-XXXXXX";
static struct daemon d;

#define SHELL(...)                                                                                           \
    do {                                                                                                     \
        char command[900];                                                                                   \
        must(snprintf(command, sizeof command, __VA_ARGS__) < (int)sizeof command && system(command) == 0);  \
    } while (0)

/* ---- Requests ---- */

static struct answer ask_text(const char *headers, const char *fields)
{
    char body[500];
    snprintf(body, sizeof body,
             "{\"prompt\":\"a red apple\",\"negative_prompt\":\"blue\",\"width\":%d,\"height\":%d,"
             "\"guidance_scale\":5,\"num_inference_steps\":5,\"seed\":3%s}",
             WIDTH, HEIGHT, fields);
    return client_ask(&d, "POST", "/text-to-image", headers, body);
}

static void read_bytes(const char *path, unsigned char *out, size_t count)
{
    FILE *f = fopen(path, "rb");
    must(f && fread(out, 1, count, f) == count && fclose(f) == 0);
}

/* FIELDS: "name=value" strings, NULL-terminated. */
static struct answer ask_image(const char *headers, const char *const *fields)
{
    static unsigned char rgb[3 * INPUT_WIDTH * INPUT_HEIGHT];
    struct image input = {.width = INPUT_WIDTH, .height = INPUT_HEIGHT, .rgb = rgb};
    struct buffer form = {0};
    struct error err = {0};

    read_bytes(FAMILIES "input.rgb", rgb, sizeof rgb);
    buffer_puts(&form, "--B\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\n");
    must(png_encode(&input, &form, &err) == 0);
    for (; *fields; fields++) {
        int name_len = (int)strcspn(*fields, "=");
        buffer_printf(&form, "\r\n--B\r\nContent-Disposition: form-data; name=%.*s\r\n\r\n%s", name_len,
                      *fields, *fields + name_len + 1);
    }
    buffer_puts(&form, "\r\n--B--\r\n");
    int fd = client_begin_bytes(&d, "/image-to-image", headers, form.data, form.len, form.len);
    struct answer a = client_read(fd, 60);
    close(fd);
    buffer_free(&form);
    return a;
}

/* The pixels of a PNG reply, which it frees; all zero when it is none. */
static void pixels_of(struct answer *a, unsigned char out[BYTES])
{
    struct image im = {0};
    struct error err = {0};

    memset(out, 0, BYTES);
    if (CHECK(a->status == 200 && image_decode(a->body, a->len, &im, &err) == 0, "%d %.200s", a->status,
              a->body) &&
        CHECK(im.width == WIDTH && im.height == HEIGHT, "%d x %d", im.width, im.height))
        memcpy(out, im.rgb, BYTES);
    image_free(&im);
    answer_free(a);
}

static double distance_db(const unsigned char *a, const unsigned char *b)
{
    double sum = 0;
    for (int i = 0; i < BYTES; i++)
        sum += (double)(a[i] - b[i]) * (a[i] - b[i]);
    return sum > 0 ? 10 * log10(255.0 * 255.0 * BYTES / sum) : 99;
}

/* ---- LoRAs ---- */

static void start_with_loras(const char *pipeline)
{
    char as[64], dir[64];
    snprintf(as, sizeof as, "PIPELINE=%s", pipeline);
    snprintf(dir, sizeof dir, "MODEL_DIR=%s", shelf);
    if (!daemon_ready(&d, (const char *[]){as, dir, "MODEL_ID=latentd/sd1", "LATENTD_BACKEND=ref", NULL}))
        exit(1);
}

static void make_lora_shelf(void)
{
    char here[256];
    strcpy(shelf, "/tmp/latentd-shelf-XXXXXX");
    must(mkdtemp(shelf) && getcwd(here, sizeof here));
    SHELL("ln -s %s/" FAMILIES "latentd %s/ && cp -r " PICTURES "test %s/", here, shelf, shelf);
}

static void text_pixels(const char *fields, unsigned char out[BYTES])
{
    struct answer a = ask_text(JSON PNG, fields);
    pixels_of(&a, out);
}

struct client {
    bool loras;
    unsigned char pixels[BYTES];
};

static void *one_client(void *arg)
{
    struct client *c = arg;
    text_pixels(c->loras ? ",\"loras\":\"" STYLE "\"" : "", c->pixels);
    return NULL;
}

/* Clients with and without LoRAs at the same time: each gets the picture it asked for. */
static void mixed_clients(const unsigned char *plain, const unsigned char *with)
{
    enum { CLIENTS = 8 };
    static struct client client[CLIENTS];
    pthread_t thread[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        client[i].loras = i % 2 == 1;
        must(pthread_create(&thread[i], NULL, one_client, &client[i]) == 0);
    }
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(thread[i], NULL);
        CHECK(memcmp(client[i].pixels, client[i].loras ? with : plain, BYTES) == 0, "client %d", i);
    }
}

TEST(text_to_image_with_loras)
{
    static unsigned char want[BYTES], plain[BYTES], with[BYTES], again[BYTES];

    make_lora_shelf();
    start_with_loras("text-to-image");
    read_bytes(PICTURES "sd1.rgb", want, BYTES);
    text_pixels("", plain);
    text_pixels(",\"loras\":\"" STYLE "\"", with);
    CHECK(distance_db(with, want) >= 60, "%.1f dB from diffusers", distance_db(with, want));
    CHECK(distance_db(plain, want) < 30, "the LoRAs change next to nothing");
    text_pixels(",\"loras\":\"{}\"", again);
    CHECK(memcmp(plain, again, BYTES) == 0, "another picture after the LoRAs");
    mixed_clients(plain, with);

    struct answer a = ask_text(JSON, ",\"loras\":\"{\\\"test/xl\\\": 1}\"");
    CHECK(a.status == 400 &&
              strcmp(a.body,
                     "{\"detail\":{\"msg\":\"LoRa incompatible with base model: 'latentd/sd1'.\"}}") == 0,
          "%d %s", a.status, a.body);
    answer_free(&a);
    a = ask_text(JSON, ",\"loras\":\"{\\\"test/style\\\": 1, \\\"test/none\\\": 1}\"");
    CHECK(a.status == 400 &&
              strcmp(a.body, "{\"detail\":{\"msg\":\"LoRa repository 'test/none' not found.\"}}") == 0,
          "%d %s", a.status, a.body);
    answer_free(&a);
    text_pixels("", again);
    CHECK(memcmp(plain, again, BYTES) == 0, "another picture after the failures");
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    SHELL("rm -rf %s", shelf);
}

TEST(image_to_image_with_loras)
{
    static unsigned char want[BYTES], with[BYTES], plain[BYTES];
    const char *const fields[] = {"prompt=a red apple",
                                  "negative_prompt=blue",
                                  "strength=0.6",
                                  "guidance_scale=5",
                                  "num_inference_steps=5",
                                  "seed=3",
                                  "loras={\"test/style\": 0.7, \"test/shape\": 1.3}",
                                  NULL};

    make_lora_shelf();
    start_with_loras("image-to-image");
    read_bytes(PICTURES "sd1_image.rgb", want, BYTES);
    struct answer a = ask_image(FORM PNG, fields);
    pixels_of(&a, with);
    CHECK(distance_db(with, want) >= 60, "%.1f dB from diffusers", distance_db(with, want));
    const char *without[8];
    memcpy(without, fields, sizeof without);
    without[6] = NULL;
    a = ask_image(FORM PNG, without);
    pixels_of(&a, plain);
    CHECK(distance_db(plain, want) < 30, "the LoRAs change next to nothing");
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    SHELL("rm -rf %s", shelf);
}

/* ---- Safety checkers ---- */

/* The daemon over latentd/sd1 with a checker of its own and one in MODEL_DIR. */
static void start_with_checkers(const char *pipeline, enum checker_kind own, enum checker_kind asked)
{
    char dir[200];
    strcpy(shelf, "/tmp/latentd-shelf-XXXXXX");
    must(mkdtemp(shelf) != NULL);
    SHELL("mkdir %s/latentd %s/test && cp -r " FAMILIES "latentd/sd1 %s/latentd/sd1", shelf, shelf, shelf);
    if (own != NONE) {
        snprintf(dir, sizeof dir, "%s/latentd/sd1/safety_checker", shelf);
        SHELL("cp -r " CHECKER
              " %s && mkdir %s/latentd/sd1/feature_extractor && mv %s/preprocessor_config.json "
              "%s/latentd/sd1/feature_extractor/ && "
              "sed -i '/\"safety_checker\"/,/]/c\\  \"safety_checker\": [\"stable_diffusion\", "
              "\"StableDiffusionSafetyChecker\"],' %s/latentd/sd1/model_index.json",
              dir, shelf, dir, shelf, shelf);
        checker_finds(dir, own);
    }
    if (asked != NONE) {
        snprintf(dir, sizeof dir, "%s/CompVis/stable-diffusion-safety-checker", shelf);
        SHELL("mkdir %s/CompVis && cp -r " CHECKER " %s", shelf, dir);
        checker_finds(dir, asked);
    }
    start_with_loras(pipeline);
}

static void end_with_checkers(void)
{
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    SHELL("rm -rf %s", shelf);
}

static int count(const char *text, const char *what)
{
    int n = 0;
    for (; (text = strstr(text, what)) != NULL; text++)
        n++;
    return n;
}

/* Two pictures, and what the reply says of both. */
static void expect_nsfw(const char *fields, bool nsfw)
{
    char all[100];
    snprintf(all, sizeof all, ",\"num_images_per_prompt\":2%s", fields);
    struct answer a = ask_text(JSON, all);
    CHECK(a.status == 200 && count(a.body, "\"nsfw\":true") == (nsfw ? 2 : 0) &&
              count(a.body, "\"nsfw\":false") == (nsfw ? 0 : 2),
          "%s: %d, %d true, %d false", fields, a.status, count(a.body, "\"nsfw\":true"),
          count(a.body, "\"nsfw\":false"));
    answer_free(&a);
}

static bool is_black(const unsigned char *pixels)
{
    for (int i = 0; i < BYTES; i++)
        if (pixels[i])
            return false;
    return true;
}

TEST(a_checker_in_model_dir_marks_what_it_finds_and_leaves_the_picture)
{
    static unsigned char checked[BYTES], unchecked[BYTES];

    start_with_checkers("text-to-image", NONE, FINDS_ALL);
    expect_nsfw("", true);
    expect_nsfw(",\"safety_check\":true", true);
    expect_nsfw(",\"safety_check\":false", false);
    text_pixels("", checked);
    text_pixels(",\"safety_check\":false", unchecked);
    CHECK(memcmp(checked, unchecked, BYTES) == 0 && !is_black(checked), "the picture was changed");
    end_with_checkers();

    start_with_checkers("text-to-image", NONE, FINDS_NOTHING);
    expect_nsfw("", false);
    end_with_checkers();
}

TEST(a_checker_of_the_model_blacks_out_what_it_finds)
{
    static unsigned char pixels[BYTES];

    start_with_checkers("text-to-image", FINDS_ALL, NONE);
    expect_nsfw("", true);
    expect_nsfw(",\"safety_check\":false", true);
    text_pixels("", pixels);
    CHECK(is_black(pixels), "not black");
    end_with_checkers();
}

TEST(image_to_image_is_checked_too)
{
    start_with_checkers("image-to-image", NONE, FINDS_ALL);
    struct answer a =
        ask_image(FORM, (const char *[]){"prompt=a", "num_inference_steps=2", "strength=0.5", NULL});
    CHECK(a.status == 200 && count(a.body, "\"nsfw\":true") == 1, "%d %.200s", a.status, a.body);
    answer_free(&a);
    a = ask_image(FORM, (const char *[]){"prompt=a", "num_inference_steps=2", "strength=0.5",
                                         "safety_check=false", NULL});
    CHECK(a.status == 200 && count(a.body, "\"nsfw\":false") == 1, "%d %.200s", a.status, a.body);
    answer_free(&a);
    end_with_checkers();
}

TEST_MAIN()
