/* Both endpoints over every model family: what a request says reaches the pipeline. The pictures are those
 * that diffusers makes (tests/golden/data/families, see tests/golden/test_image_to_image.c), on the reference
 * backend. */
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <unistd.h>

#include "client.h"
#include "image.h"
#include "test.h"

#define FOLDER "tests/golden/data/families/"

enum { INPUT_WIDTH = 70, INPUT_HEIGHT = 53, WIDTH = 64, HEIGHT = 48 };

static uint8_t *read_rgb(const char *name, size_t count)
{
    char path[200];
    uint8_t *rgb = malloc(count);

    snprintf(path, sizeof(path), FOLDER "%s.rgb", name);
    FILE *f = fopen(path, "rb");
    CHECK(f && fread(rgb, 1, count, f) == count, "%s", path);
    if (f)
        fclose(f);
    return rgb;
}

static void start(struct daemon *d, const char *pipeline, const char *model)
{
    char as[64], id[128];

    snprintf(as, sizeof(as), "PIPELINE=%s", pipeline);
    snprintf(id, sizeof(id), "MODEL_ID=%s", model);
    if (!daemon_ready(d, (const char *[]){as, id, "MODEL_DIR=" FOLDER, "LATENTD_BACKEND=ref", NULL}))
        exit(1);
}

/* The reply is a PNG of WIDTH x HEIGHT, like the golden NAME. */
static void check_picture(struct answer *a, const char *name)
{
    struct image im = {0};
    struct error err = {0};
    uint8_t *want = read_rgb(name, 3 * WIDTH * HEIGHT);
    double sum = 0;

    if (CHECK(a->status == 200 && image_decode(a->body, a->len, &im, &err) == 0, "%s: %d %.200s %s", name,
              a->status, a->body, err.msg) &&
        CHECK(im.width == WIDTH && im.height == HEIGHT, "%s: %d x %d", name, im.width, im.height)) {
        for (int i = 0; i < 3 * WIDTH * HEIGHT; i++)
            sum += (im.rgb[i] - want[i]) * (im.rgb[i] - want[i]);
        double db = sum > 0 ? 10 * log10(255.0 * 255.0 * 3 * WIDTH * HEIGHT / sum) : 99;
        CHECK(db >= 60, "%s: %.1f dB from diffusers", name, db);
    }
    image_free(&im);
    free(want);
    answer_free(a);
}

static void text_to_image(const char *model, const char *name, const char *fields)
{
    struct daemon d;
    char body[500];

    start(&d, "text-to-image", model);
    snprintf(body, sizeof(body), "{\"width\":%d,\"height\":%d,%s}", WIDTH, HEIGHT, fields);
    struct answer a = client_ask(&d, "POST", "/text-to-image",
                                 "Content-Type: application/json\r\nAccept: image/png\r\n", body);
    check_picture(&a, name);
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
}

static void image_to_image(const char *model, const char *name, const char *const *fields)
{
    struct image input = {.width = INPUT_WIDTH, .height = INPUT_HEIGHT};
    struct buffer form = {0};
    struct error err = {0};
    struct daemon d;

    input.rgb = read_rgb("input", 3 * INPUT_WIDTH * INPUT_HEIGHT);
    buffer_puts(&form, "--B\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\n");
    CHECK(png_encode(&input, &form, &err) == 0);
    for (; *fields; fields++) {
        int name_len = (int)strcspn(*fields, "=");
        buffer_printf(&form, "\r\n--B\r\nContent-Disposition: form-data; name=%.*s\r\n\r\n%s", name_len,
                      *fields, *fields + name_len + 1);
    }
    buffer_puts(&form, "\r\n--B--\r\n");
    start(&d, "image-to-image", model);
    int fd = client_begin_bytes(&d, "/image-to-image",
                                "Content-Type: multipart/form-data; boundary=B\r\nAccept: image/png\r\n",
                                form.data, form.len, form.len);
    struct answer a = client_read(fd, 60);
    close(fd);
    check_picture(&a, name);
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    buffer_free(&form);
    image_free(&input);
}

TEST(text_to_image_families)
{
    text_to_image(
        "latentd/sd1", "sd1_text",
        "\"prompt\":\" | a red apple |two pears\",\"negative_prompt\":\"blue\",\"seed\":3,\"num_inference_"
        "steps\":5");
    text_to_image("latentd/sd2", "sd2_text",
                  "\"prompt\":\"two pears\",\"seed\":4,\"num_inference_steps\":5,\"guidance_scale\":2.5");
}

/* The part of a prompt behind the first bar is for the second text encoder. */
TEST(bars_in_prompts)
{
    text_to_image(
        "stabilityai/stable-diffusion-xl-base-1.0", "xl_text_2",
        "\"prompt\":\"a house| in the snow \",\"negative_prompt\":\"rain\",\"seed\":5,\"num_inference_"
        "steps\":4,\"guidance_scale\":6");
    text_to_image("stabilityai/stable-diffusion-xl-base-1.0", "xl_text",
                  "\"prompt\":\"a house|\",\"seed\":5,\"num_inference_steps\":4,\"guidance_scale\":6");
}

TEST(image_to_image_families)
{
    image_to_image("latentd/sd1", "sd1_image",
                   (const char *[]){"prompt=a red apple", "negative_prompt=blue", "seed=3", "strength=0.6",
                                    "num_inference_steps=7", NULL});
    image_to_image("stabilityai/stable-diffusion-xl-base-1.0", "xl_image_empty",
                   (const char *[]){"prompt=a house", "seed=7", "strength=0.7", "num_inference_steps=5",
                                    "guidance_scale=6", NULL});
    image_to_image("timbrooks/instruct-pix2pix", "pix2pix",
                   (const char *[]){"prompt=make it snow", "negative_prompt=sun", "seed=10", "strength=0.1",
                                    "num_inference_steps=5", NULL});
    image_to_image("timbrooks/instruct-pix2pix", "pix2pix_unguided",
                   (const char *[]){"prompt=make it snow", "seed=10", "image_guidance_scale=0.9",
                                    "num_inference_steps=4", NULL});
}

static struct answer read_file(const char *path)
{
    struct answer a = {0};
    FILE *f = fopen(path, "rb");

    a.body = calloc(1, 1 << 20);
    if (CHECK(a.body && f, "%s", path)) {
        a.len = fread(a.body, 1, (1 << 20) - 1, f);
        a.status = 200;
    }
    if (f)
        fclose(f);
    return a;
}

/* latentd generate --image sends no negative prompt as the endpoint does: empty, which SDXL tells from none.
 */
TEST(generate_from_a_picture_of_an_sdxl_model)
{
    char folder[] = "/tmp/latentd-test-XXXXXX", path[64], command[600];
    struct image input = {.width = INPUT_WIDTH, .height = INPUT_HEIGHT};
    struct buffer png = {0};
    struct error err = {0};
    const char *bin = getenv("LATENTD_BIN");

    input.rgb = read_rgb("input", 3 * INPUT_WIDTH * INPUT_HEIGHT);
    if (!CHECK(mkdtemp(folder) && png_encode(&input, &png, &err) == 0, "%s", err.msg))
        return;
    snprintf(path, sizeof(path), "%s/in.png", folder);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(png.data, 1, png.len, f) == png.len && fclose(f) == 0);
    snprintf(command, sizeof(command),
             "MODEL_DIR=" FOLDER
             " LATENTD_BACKEND=ref %s generate 'a house' --image %s/in.png --seed 7 --strength 0.7 "
             "--steps 5 --guidance 6 --model_id stabilityai/stable-diffusion-xl-base-1.0 -o %s/out.png",
             bin ? bin : "build/latentd", folder, folder);
    CHECK(system(command) == 0, "%s", command);
    snprintf(path, sizeof(path), "%s/out.png", folder);
    struct answer a = read_file(path);
    check_picture(&a, "xl_image_empty");
    snprintf(command, sizeof(command), "rm -r %s", folder);
    CHECK(system(command) == 0);
    buffer_free(&png);
    image_free(&input);
}

/* Guidance, and for SDXL-Lightning the steps, are the model's own whatever a request says. */
TEST(rules_by_id)
{
    text_to_image("stabilityai/sdxl-turbo", "turbo_text",
                  "\"prompt\":\"a cat\",\"seed\":8,\"num_inference_steps\":3");
    image_to_image("stabilityai/sdxl-turbo", "turbo_image",
                   (const char *[]){"prompt=a cat", "seed=8", "strength=0.5", "num_inference_steps=4", NULL});
    text_to_image("ByteDance/SDXL-Lightning-2step", "lightning_text", "\"prompt\":\"a boat\",\"seed\":9");
    image_to_image(
        "ByteDance/SDXL-Lightning-2step", "lightning_image",
        (const char *[]){"prompt=a boat", "seed=9", "strength=0.5", "num_inference_steps=30", NULL});
}

TEST_MAIN()
