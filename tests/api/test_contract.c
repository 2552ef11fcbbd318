/* The wire contract: fields, defaults, coercions, order of checks, statuses, and bodies byte by byte where
 * they are fixed. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "client.h"
#include "test.h"
#include "utf8.h"

static struct daemon tiny;

static void start_tiny(void)
{
    daemon_shared(&tiny, NULL);
}

static void expect(const char *method, const char *path, const char *headers, const char *body, int status,
                   const char *want)
{
    start_tiny();
    struct answer a = client_ask(&tiny, method, path, headers, body);
    CHECK(a.status == status, "%s %s %s: %d %s", method, path, body ? body : "", a.status, a.body);
    CHECK(strcmp(a.body, want) == 0, "%s %s %s:\n  got  %s\n  want %s", method, path, body ? body : "",
          a.body, want);
    CHECK(status == 307 || strstr(answer_header(&a, "Content-Type"), "application/json") != NULL);
    answer_free(&a);
}

static void expect_post(const char *body, int status, const char *want)
{
    expect("POST", "/text-to-image", "Content-Type: application/json\r\n", body, status, want);
}

/* A request that must give pictures; returns the reply. */
static struct answer pictures(const char *body, int count)
{
    start_tiny();
    struct answer a = client_make(&tiny, body);
    int found = 0;

    CHECK(a.status == 200, "%s: %d %s", body, a.status, a.body);
    CHECK(strncmp(a.body, "{\"images\":[", 11) == 0 && a.len > 2 && strcmp(a.body + a.len - 2, "]}") == 0);
    for (const char *p = a.body; (p = strstr(p, "{\"url\":\"data:image/png;base64,iVBORw0KGgo")) != NULL; p++)
        found++;
    CHECK(found == count, "%s: %d pictures", body, found);
    return a;
}

TEST(plain_routes)
{
    expect("GET", "/health", NULL, NULL, 200, "{\"status\":\"OK\"}");
    expect("GET", "/health/", NULL, NULL, 200, "{\"status\":\"OK\"}");
    expect("GET", "/health?x=1", NULL, NULL, 200, "{\"status\":\"OK\"}");
    expect("GET", "/he%61lth", NULL, NULL, 200, "{\"status\":\"OK\"}");
    expect("GET", "/version", NULL, NULL, 200,
           "{\"pipeline\":\"text-to-image\",\"model_id\":\"latentd/tiny\",\"version\":\"undefined\"}");
    expect("GET", "/hardware/info", NULL, NULL, 200,
           "{\"pipeline\":\"text-to-image\",\"model_id\":\"latentd/tiny\",\"gpu_info\":{}}");
    expect("GET", "/hardware/stats/", NULL, NULL, 200,
           "{\"pipeline\":\"text-to-image\",\"model_id\":\"latentd/tiny\",\"gpu_stats\":{}}");
    expect("GET", "/", NULL, NULL, 404, "{\"detail\":\"Not Found\"}");
    expect("POST", "/image-to-image", NULL, "{}", 404, "{\"detail\":\"Not Found\"}");
    expect("GET", "/health%00", NULL, NULL, 404, "{\"detail\":\"Not Found\"}");
    expect("GET", "/hardware%2finfo", NULL, NULL, 404, "{\"detail\":\"Not Found\"}");
    expect("POST", "/health", NULL, "x", 405, "{\"detail\":\"Method Not Allowed\"}");
    expect("GET", "/text-to-image", NULL, NULL, 405, "{\"detail\":\"Method Not Allowed\"}");
    expect("OPTIONS", "/text-to-image", NULL, NULL, 405, "{\"detail\":\"Method Not Allowed\"}");
    expect("GET", "/docs/", NULL, NULL, 307, "");
}

TEST(headers)
{
    start_tiny();
    struct answer a = client_ask(&tiny, "GET", "/text-to-image", "X-Request-Id: abc-1.2_z\r\n", NULL);
    CHECK(strcmp(answer_header(&a, "Allow"), "POST") == 0);
    CHECK(strcmp(answer_header(&a, "X-Request-Id"), "abc-1.2_z") == 0);
    answer_free(&a);
    a = client_ask(&tiny, "GET", "/metrics/", "X-Request-Id: a b\r\n", NULL);
    CHECK(strcmp(answer_header(&a, "Location"), "/metrics") == 0);
    CHECK(strlen(answer_header(&a, "X-Request-Id")) == 16);
    answer_free(&a);
}

/* What a browser makes of them is tests/page's part. */
TEST(pages_work_offline)
{
    static const char *const page[][3] = {{"/docs", "\"docs/page.css\"", "\"docs/docs.js\""},
                                          {"/redoc", "\"docs/page.css\"", "\"docs/redoc.js\""}};
    static const char *const file[][2] = {{"/docs/page.css", "text/css; charset=utf-8"},
                                          {"/docs/docs.js", "text/javascript; charset=utf-8"},
                                          {"/docs/redoc.js", "text/javascript; charset=utf-8"}};
    start_tiny();
    for (int i = 0; i < 2; i++) {
        struct answer a = client_ask(&tiny, "GET", page[i][0], NULL, NULL);
        CHECK(a.status == 200 && strcmp(answer_header(&a, "Content-Type"), "text/html; charset=utf-8") == 0);
        CHECK(strstr(a.body, page[i][1]) && strstr(a.body, page[i][2]) && !strstr(a.body, "https:"));
        CHECK(strncmp(answer_header(&a, "Content-Security-Policy"), "default-src 'none'; script-src 'self';",
                      38) == 0 &&
              strstr(answer_header(&a, "Content-Security-Policy"), "frame-ancestors 'none'"));
        answer_free(&a);
    }
    for (int i = 0; i < 3; i++) {
        struct answer a = client_ask(&tiny, "GET", file[i][0], NULL, NULL);
        CHECK(a.status == 200 && strcmp(answer_header(&a, "Content-Type"), file[i][1]) == 0, "%s",
              file[i][0]);
        CHECK(a.len > 1000 && !strstr(a.body, "http:") && !strstr(a.body, "https:"), "%s", file[i][0]);
        answer_free(&a);
    }
    expect("GET", "/docs/oauth2-redirect", NULL, NULL, 404, "{\"detail\":\"Not Found\"}");
    expect("GET", "/docs/page.css/", NULL, NULL, 307, "");
}

TEST(live_openapi)
{
    start_tiny();
    struct answer a = client_ask(&tiny, "GET", "/openapi.json", NULL, NULL);
    CHECK(strncmp(a.body,
                  "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"FastAPI\",\"version\":\"0.1.0\"},\"paths\":{",
                  72) == 0,
          "%.200s", a.body);
    CHECK(strstr(a.body, "\"genTextToImage\"") && !strstr(a.body, "\"servers\""));
    answer_free(&a);
}

TEST(metrics)
{
    start_tiny();
    struct answer a = client_ask(&tiny, "GET", "/metrics", NULL, NULL);
    CHECK(strcmp(answer_header(&a, "Content-Type"), "text/plain; version=0.0.4; charset=utf-8") == 0);
    CHECK(strstr(a.body, "\nversion{app=\"ai-runner\",version=\"undefined\"} 1\n"));
    CHECK(strstr(a.body, "\nlatentd_model_ready 1\n"));
    CHECK(strstr(a.body, "\nprocess_resident_memory_bytes "));
    answer_free(&a);
}

TEST(defaults)
{
    struct answer a = pictures("{\"prompt\":\"a cat\",\"seed\":7,\"num_inference_steps\":2}", 1);
    CHECK(strstr(a.body, "\",\"seed\":7,\"nsfw\":false}]}"));
    /* no size given: the tiny model's own 32 x 32, as the PNG's header says in base64 */
    CHECK(strstr(a.body, "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2j"));
    answer_free(&a);
    a = pictures("{\"prompt\":\"a cat\",\"seed\":7,\"num_inference_steps\":2,\"width\":64,\"height\":40}", 1);
    CHECK(strstr(a.body, "iVBORw0KGgoAAAANSUhEUgAAAEAAAAAo"));
    answer_free(&a);
    a = pictures("{\"prompt\":\"a cat\",\"seed\":7,\"num_inference_steps\":2,\"width\":64,\"height\":0}", 1);
    CHECK(strstr(a.body, "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2j"),
          "0: both sides are the model's own");
    answer_free(&a);
}

TEST(same_seed_same_picture)
{
    static const char body[] =
        "{\"prompt\":\"the cat\",\"seed\":11,\"num_inference_steps\":3,\"num_images_per_prompt\":%d}";
    char one[200], three[200];
    snprintf(one, sizeof(one), body, 1);
    snprintf(three, sizeof(three), body, 3);
    struct answer a = pictures(one, 1), b = pictures(three, 3), c = pictures(one, 1);
    CHECK(strcmp(a.body, c.body) == 0);
    CHECK(strncmp(a.body, b.body, a.len - 2) == 0, "the first of three differs from the one alone");
    CHECK(strstr(b.body, "\"seed\":11,") && strstr(b.body, "\"seed\":12,") && strstr(b.body, "\"seed\":13,"));
    answer_free(&a);
    answer_free(&b);
    answer_free(&c);
}

TEST(seeds)
{
    struct answer a =
        pictures("{\"prompt\":\"a\",\"seed\":-1,\"num_inference_steps\":1,\"num_images_per_prompt\":2}", 2);
    CHECK(strstr(a.body, "\"seed\":-1,") && strstr(a.body, "\"seed\":0,"));
    answer_free(&a);
    a = pictures("{\"prompt\":\"a\",\"seed\":18446744073709551615,\"num_inference_steps\":1}", 1);
    CHECK(strstr(a.body, "\"seed\":18446744073709551615,"));
    answer_free(&a);
    expect_post("{\"prompt\":\"a\",\"seed\":18446744073709551616}", 500,
                "{\"detail\":{\"msg\":\"Text-to-image pipeline error.\"}}");
    expect_post("{\"prompt\":\"a\",\"seed\":18446744073709551615,\"num_images_per_prompt\":2}", 500,
                "{\"detail\":{\"msg\":\"Text-to-image pipeline error.\"}}");
    /* two random seeds differ */
    a = pictures("{\"prompt\":\"a\",\"num_inference_steps\":1}", 1);
    struct answer b = pictures("{\"prompt\":\"a\",\"num_inference_steps\":1}", 1);
    const char *seed_a = strstr(a.body, "\"seed\":"), *seed_b = strstr(b.body, "\"seed\":");
    CHECK(seed_a && seed_b && strcmp(seed_a, seed_b) != 0);
    CHECK(seed_a && strtoull(seed_a + 7, NULL, 10) <= 0xffffffffull);
    answer_free(&a);
    answer_free(&b);
}

TEST(no_pictures)
{
    expect_post("{\"prompt\":\"a\",\"num_images_per_prompt\":0}", 200, "{\"images\":[]}");
    expect_post("{\"prompt\":\"|\",\"num_images_per_prompt\":-3,\"width\":5}", 200, "{\"images\":[]}");
}

/* The same picture from every way to write the same number. */
TEST(coercions)
{
    struct answer a = pictures(
        "{\"prompt\":\"a\",\"seed\":3,\"num_inference_steps\":1,\"width\":64,\"guidance_scale\":2.0}", 1);
    static const char *const same[] = {
        "{\"prompt\":\"a\",\"seed\":\"3\",\"num_inference_steps\":\" 1 "
        "\",\"width\":64.0,\"guidance_scale\":\"2\"}",
        "{\"prompt\":\"a\",\"seed\":3.0,\"num_inference_steps\":true,\"width\":\"6_4\",\"guidance_scale\":2}",
        "{\"prompt\":\"x\",\"prompt\":\"a\",\"seed\":\"+3\",\"num_inference_steps\":\"1.0\",\"width\":6.4e1,"
        "\"guidance_scale\":\"2e0\"}",
        "{\"unknown\":[1,{\"a\":null}],\"prompt\":\"\\u0061\",\"seed\":3,\"num_inference_steps\":1,\"width\":"
        "64,"
        "\"guidance_scale\":2,\"safety_check\":\"off\",\"model_id\":\"latentd/tiny\",\"loras\":\" { } \"}",
        "{\"prompt\":\" a "
        "|b|c|d|e\",\"seed\":3,\"num_inference_steps\":1,\"width\":64,\"guidance_scale\":2,\"negative_"
        "prompt\":\"||\"}",
        "\xef\xbb\xbf{\"prompt\":\"| | "
        "a\",\"seed\":3,\"num_inference_steps\":1,\"width\":64,\"guidance_scale\":2}\r\n",
    };
    for (size_t i = 0; i < sizeof(same) / sizeof(*same); i++) {
        struct answer b = pictures(same[i], 1);
        CHECK(strcmp(a.body, b.body) == 0, "%s", same[i]);
        answer_free(&b);
    }
    struct answer other = pictures(
        "{\"prompt\":\"a\",\"seed\":4,\"num_inference_steps\":1,\"width\":64,\"guidance_scale\":2}", 1);
    CHECK(strcmp(a.body, other.body) != 0);
    answer_free(&other);
    answer_free(&a);
}

#define ENTRY(type, field, msg, input)                                                                       \
    "{\"type\":\"" type "\",\"loc\":[\"body\",\"" field "\"],\"msg\":\"" msg "\",\"input\":" input "}"

TEST(schema_errors)
{
    expect_post("{}", 422, "{\"detail\":[" ENTRY("missing", "prompt", "Field required", "{}") "]}");
    expect_post(
        "", 422,
        "{\"detail\":[{\"type\":\"missing\",\"loc\":[\"body\"],\"msg\":\"Field required\",\"input\":null}]}");
    expect_post("{\"prompt\":1}", 422,
                "{\"detail\":[" ENTRY("string_type", "prompt", "Input should be a valid string", "1") "]}");
    expect_post("{\"prompt\":\"a\",\"seed\":null}", 422,
                "{\"detail\":[" ENTRY("int_type", "seed", "Input should be a valid integer", "null") "]}");
    expect_post(
        "{\"prompt\":\"a\",\"height\":\"12x\",\"width\":1.5}", 422,
        "{\"detail\":[" ENTRY("int_parsing", "height",
                              "Input should be a valid integer, unable to parse string as an integer",
                              "\"12x\"") "," ENTRY("int_from_float", "width",
                                                   "Input should be a valid integer, got a number with a "
                                                   "fractional part",
                                                   "1.5") "]}");
    expect_post("{\"prompt\":\"a\",\"safety_check\":2}", 422,
                "{\"detail\":[" ENTRY("bool_parsing", "safety_check",
                                      "Input should be a valid boolean, unable to interpret input",
                                      "2") "]}");
    expect_post("[1, 2]", 422,
                "{\"detail\":[{\"type\":\"model_attributes_type\",\"loc\":[\"body\"],\"msg\":\"Input should "
                "be a valid "
                "dictionary or object to extract fields from\",\"input\":[1,2]}]}");
    expect("POST", "/text-to-image", "Content-Type: text/plain\r\n", "{\"prompt\":\"a\"}", 422,
           "{\"detail\":[{\"type\":\"model_attributes_type\",\"loc\":[\"body\"],\"msg\":\"Input should be a "
           "valid "
           "dictionary or object to extract fields from\",\"input\":\"{\\\"prompt\\\":\\\"a\\\"}\"}]}");
}

TEST(broken_json)
{
    expect_post("{\"prompt\": \"\xc3\xa9\", x}", 422,
                "{\"detail\":[{\"type\":\"json_invalid\",\"loc\":[\"body\",16],\"msg\":\"JSON decode "
                "error\",\"input\":{},"
                "\"ctx\":{\"error\":\"Expecting property name enclosed in double quotes\"}}]}");
    expect_post("{\"prompt\":\"a\"} trailing", 422,
                "{\"detail\":[{\"type\":\"json_invalid\",\"loc\":[\"body\",15],\"msg\":\"JSON decode "
                "error\",\"input\":{},"
                "\"ctx\":{\"error\":\"Extra data\"}}]}");
    expect_post("{\"prompt\":\"\xff\"}", 400,
                "{\"detail\":{\"msg\":\"There was an error parsing the body: it is not valid UTF-8\"}}");
}

TEST(checks_of_the_prompt_and_model)
{
    expect_post("{\"prompt\":\"\"}", 400, "{\"detail\":{\"msg\":\"Prompt must be provided.\"}}");
    expect_post(
        "{\"prompt\":\"a\",\"model_id\":\"other/model\"}", 400,
        "{\"detail\":{\"msg\":\"pipeline configured with latentd/tiny but called with other/model.\"}}");
    expect_post("{\"prompt\":\" | |\"}", 500, "{\"detail\":{\"msg\":\"Text-to-image pipeline error.\"}}");
    expect_post("{\"prompt\":\"a\",\"width\":513,\"height\":512}", 400,
                "{\"detail\":{\"msg\":\"Error during model execution: `height` and `width` have to be "
                "divisible by 8 but "
                "are 512 and 513.\"}}");
    expect_post("{\"prompt\":\"a\",\"width\":10000000000000000000000001,\"height\":512}", 400,
                "{\"detail\":{\"msg\":\"Error during model execution: `height` and `width` have to be "
                "divisible by 8 but "
                "are 512 and 10000000000000000000000001.\"}}");
    expect_post("{\"prompt\":\"a\",\"width\":80000000000,\"height\":512}", 500,
                "{\"detail\":{\"msg\":\"Out of memory error. Try reducing output image resolution.\"}}");
    expect_post("{\"prompt\":\"a\",\"num_images_per_prompt\":1000000000}", 400,
                "{\"detail\":{\"msg\":\"num_images_per_prompt is 1000000000, but at most 65536 images of 32 "
                "x 32 fit into "
                "one reply.\"}}");
}

/* What of a request an error repeats is cut between characters: here each limit would fall into one. */
TEST(errors_are_utf8)
{
    static const struct {
        const char *begin, *end;
        int status;
        const char *want;
    } bodies[] = {
        {"\"prompt\":\"", "\"", 200, "\"images\""},
        {"\"model_id\":\"", "\"", 400, "but called with a\xc3\xa9"},
        {"\"response_format\":\"", "\"", 400, "response_format is \\\"a\xc3\xa9"},
        {"\"loras\":\"", "\"", 400, "Unable to parse 'a\xc3\xa9"},
        {"\"loras\":\"{\\\"", "\\\":1}\"", 400, "LoRa repository 'a\xc3\xa9"},
        {"\"loras\":\"{\\\"/", "\\\":1}\"", 400, "LoRa repository '/a\xc3\xa9"},
    };
    char body[2000];

    start_tiny();
    for (size_t i = 0; i < sizeof(bodies) / sizeof(*bodies); i++) {
        sprintf(body, "{\"prompt\":\"a\",\"num_inference_steps\":1,%sa", bodies[i].begin);
        for (int k = 0; k < (i < 4 ? 400 : 250); k++)
            strcat(body, "\xc3\xa9");
        sprintf(body + strlen(body), "%s}", bodies[i].end);
        struct answer a = client_make(&tiny, body);
        CHECK(a.status == bodies[i].status && strstr(a.body, bodies[i].want), "%zu: %d %s", i, a.status,
              a.body);
        CHECK(utf8_valid(a.body, a.len), "%zu: %s", i, a.body);
        answer_free(&a);
    }
    char *log = daemon_log(&tiny);
    CHECK(utf8_valid(log, strlen(log)), "the log is not");
    free(log);
}

/* Memory that cannot be had is an error of that one request: twenty in a row, and the next picture is as
 * before. */
TEST(out_of_memory)
{
    static const char small[] = "{\"prompt\":\"a\",\"seed\":1,\"num_inference_steps\":1}";
    struct daemon d;
    /* a sanitizer reserves more addresses than any limit */
    if (sanitized())
        SKIP("a sanitizer reserves more addresses than any limit");
    if (!CHECK(daemon_ready(&d, (const char *[]){"TEST_ADDRESS_SPACE=2000000000", NULL})))
        return;
    struct answer before = client_make(&d, small);
    CHECK(before.status == 200);
    for (int i = 0; i < 20; i++) {
        struct answer a = client_make(&d, "{\"prompt\":\"a\",\"width\":4096,\"height\":4096}");
        CHECK(a.status == 500 &&
                  strcmp(a.body, "{\"detail\":{\"msg\":\"Out of memory error. Try reducing output image "
                                 "resolution.\"}}") == 0,
              "%d %s", a.status, a.body);
        answer_free(&a);
    }
    struct answer after = client_make(&d, small);
    CHECK(after.status == 200 && strcmp(before.body, after.body) == 0);
    answer_free(&before);
    answer_free(&after);
    CHECK(daemon_metric(&d, "latentd_errors_total{kind=\"oom\"}") == 20);
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
}

TEST(loras)
{
    static const char *const unsound[] = {"-1", "NaN",       "Infinity", "1e999",         "[]",
                                          "{}", "\\\"x\\\"", "\\\"\\\"", "\\\"0x1p3\\\"", "\\\"nan\\\""};
    static const char *const hostile[] = {"../x",   "/etc/passwd", "",   ".",   "..",
                                          "a/../b", "a//b",        "a/", "./a", "a/.."};

    expect_post("{\"prompt\":\"a\",\"loras\":\"{x\"}", 400,
                "{\"detail\":{\"msg\":\"Unable to parse '{x' as JSON..\"}}");
    expect_post("{\"prompt\":\"a\",\"loras\":\"[]\"}", 500,
                "{\"detail\":{\"msg\":\"Text-to-image pipeline error.\"}}");
    expect_post("{\"prompt\":\"a\",\"loras\":\"{\\\"a/b\\\":-1}\"}", 400,
                "{\"detail\":{\"msg\":\"All strengths must be numbers greater than or equal to 0.0..\"}}");
    expect_post(
        "{\"prompt\":\"a\",\"loras\":\"{\\\"a\\\":1,\\\"b\\\":1,\\\"c\\\":1,\\\"d\\\":1,\\\"e\\\":1}\"}", 400,
        "{\"detail\":{\"msg\":\"Too many LoRas provided. Maximum is 4..\"}}");
    expect_post(/* strengths come before their number, and of two equal names the last counts */
                "{\"prompt\":\"a\",\"loras\":\"{\\\"a\\\":1,\\\"b\\\":1,\\\"c\\\":1,\\\"d\\\":1,\\\"e\\\":"
                "null}\"}",
                400,
                "{\"detail\":{\"msg\":\"All strengths must be numbers greater than or equal to 0.0..\"}}");
    for (size_t i = 0; i < sizeof(unsound) / sizeof(*unsound); i++) {
        char body[200];
        snprintf(body, sizeof(body), "{\"prompt\":\"a\",\"loras\":\"{\\\"a/b\\\":%s}\"}", unsound[i]);
        expect_post(
            body, 400,
            "{\"detail\":{\"msg\":\"All strengths must be numbers greater than or equal to 0.0..\"}}");
    }
    for (size_t i = 0; i < sizeof(hostile) / sizeof(*hostile); i++) {
        char body[200], want[200];
        snprintf(body, sizeof(body), "{\"prompt\":\"a\",\"loras\":\"{\\\"%s\\\":1}\"}", hostile[i]);
        snprintf(want, sizeof(want), "{\"detail\":{\"msg\":\"LoRa repository '%s' not found.\"}}",
                 hostile[i]);
        expect_post(body, 400, want);
    }
    expect_post("{\"prompt\":\"a\",\"loras\":\"{\\\"a/b\\\":1.0}\"}", 400,
                "{\"detail\":{\"msg\":\"LoRa repository 'a/b' not found.\"}}");
}

TEST(png_itself)
{
    static const char *const accepts[] = {"image/png", "image/*;q=0.9, application/json;q=0.1"};
    start_tiny();
    for (int i = 0; i < 2; i++) {
        char headers[200];
        snprintf(headers, sizeof(headers), "Content-Type: application/json\r\nAccept: %s\r\n", accepts[i]);
        struct answer a =
            client_ask(&tiny, "POST", "/text-to-image", headers,
                       "{\"prompt\":\"a\",\"seed\":5,\"num_inference_steps\":1,\"num_images_per_prompt\":3}");
        CHECK(a.status == 200 && strcmp(answer_header(&a, "Content-Type"), "image/png") == 0);
        CHECK(a.len > 60 && memcmp(a.body, "\x89PNG\r\n\x1a\n", 8) == 0 &&
              memcmp(a.body + a.len - 8, "IEND", 4) == 0);
        CHECK(strcmp(answer_header(&a, "X-Seed"), "5") == 0);
        answer_free(&a);
    }
    struct answer a = client_ask(&tiny, "POST", "/text-to-image", "Accept: application/json, image/png\r\n",
                                 "{\"prompt\":\"a\",\"num_inference_steps\":1}");
    CHECK(strcmp(answer_header(&a, "Content-Type"), "application/json") == 0);
    answer_free(&a);
    a = client_ask(&tiny, "POST", "/text-to-image", "Accept: image/png\r\n", "{\"prompt\":\"\"}");
    CHECK(a.status == 400 && strcmp(answer_header(&a, "Content-Type"), "application/json") == 0);
    answer_free(&a);
}

TEST(long_prompts)
{
    size_t n = 1 << 20;
    char *body = malloc(n + 100);
    start_tiny();
    strcpy(body, "{\"num_inference_steps\":1,\"prompt\":\"");
    size_t at = strlen(body);
    for (size_t i = 0; i < n; i++)
        body[at + i] = " cat"[i % 4];
    strcpy(body + at + n, "\"}");
    struct answer a = client_make(&tiny, body);
    CHECK(a.status == 200, "a prompt of a megabyte: %d %.200s", a.status, a.body);
    answer_free(&a);
    free(body);
    body = malloc(3 * n);
    memset(body, 'x', 3 * n - 1);
    body[3 * n - 1] = '\0';
    a = client_make(&tiny, body);
    CHECK(a.status == 400 &&
              strcmp(a.body, "{\"detail\":{\"msg\":\"The body has more than 2097152 bytes.\"}}") == 0,
          "%d %s", a.status, a.body);
    answer_free(&a);
    free(body);
}

TEST(auth)
{
    static const struct {
        const char *header;
        bool right;
    } cases[] = {
        {NULL, false},
        {"Authorization: Bearer s3cret\r\n", true},
        {"authorization: bEARER s3cret\r\n", true},
        {"Authorization: Bearer s3cret \t \r\n", true},
        {"Authorization: Bearer  s3cret\r\n", false},
        {"Authorization: Bearer s3cre \r\n", false},
        {"Authorization: Bearer s3cret x\r\n", false},
        {"Authorization: Bearer s3cre\r\n", false},
        {"Authorization: Bearer s3crett\r\n", false},
        {"Authorization: Bearer S3cret\r\n", false},
        {"Authorization: Basic s3cret\r\n", false},
        {"Authorization: Bearer\r\n", false},
        {"Authorization: Bearer \r\n", false},
        {"Authorization: s3cret\r\n", false},
    };
    struct daemon d;
    if (!CHECK(daemon_ready(&d, (const char *[]){"AUTH_TOKEN=s3cret", "VERSION=1.2.3", NULL})))
        return;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct answer a = client_ask(&d, "POST", "/text-to-image", cases[i].header,
                                     "{\"prompt\":\"a\",\"num_inference_steps\":1}");
        const char *challenge = answer_header(&a, "WWW-Authenticate");
        CHECK(a.status == (cases[i].right ? 200 : 401), "%s: %d", cases[i].header ? cases[i].header : "none",
              a.status);
        CHECK(cases[i].right || (challenge && strcmp(challenge, "Bearer") == 0));
        CHECK(cases[i].right || strcmp(a.body, "{\"detail\":{\"msg\":\"Invalid bearer token.\"}}") == 0);
        answer_free(&a);
    }
    /* a body that is wrong is a 422 even without the token; an empty prompt is not told to strangers */
    struct answer a = client_ask(&d, "POST", "/text-to-image", NULL, "{\"prompt\":1}");
    CHECK(a.status == 422);
    answer_free(&a);
    a = client_ask(&d, "POST", "/text-to-image", NULL, "{\"prompt\":\"\"}");
    CHECK(a.status == 401);
    answer_free(&a);
    a = client_ask(&d, "GET", "/version", NULL, NULL);
    CHECK(strstr(a.body, "\"version\":\"1.2.3\""));
    answer_free(&a);
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
}

TEST(keep_alive_and_pipelining)
{
    static const char get[] = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    static const char post[] = "POST /text-to-image HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                               "Content-Length: 40\r\n\r\n{\"prompt\":\"a\",\"num_inference_steps\": 1 }";
    start_tiny();
    int fd = client_open(&tiny);
    for (int i = 0; i < 20; i++) {
        client_puts(fd, i % 4 == 3 ? post : get);
        struct answer a = client_read(fd, 10);
        CHECK(a.status == 200, "request %d: %d", i, a.status);
        answer_free(&a);
    }
    char many[2000] = "";
    for (int i = 0; i < 8; i++)
        strcat(many, i == 3 ? post : get);
    client_puts(fd, many);
    for (int i = 0; i < 8; i++) {
        struct answer a = client_read(fd, 10);
        CHECK(a.status == 200 && !!strstr(a.body, "images") == (i == 3), "pipelined %d: %d", i, a.status);
        answer_free(&a);
    }
    close(fd);
}

static void *parallel_client(void *arg)
{
    int i = *(int *)arg;
    char body[200];
    snprintf(body, sizeof(body), "{\"prompt\":\"a\",\"num_inference_steps\":2,\"seed\":%d}", i);
    struct answer a = i % 2 ? client_make(&tiny, body) : client_ask(&tiny, "GET", "/health", NULL, NULL);
    *(int *)arg = a.status == 200                                              ? 200
                  : a.status == 500 && strstr(a.body, "insufficient capacity") ? 500
                                                                               : -1;
    answer_free(&a);
    return NULL;
}

/* Everyone is answered: health always, pictures unless the queue of 8 is full (it may be before the worker
 * has woken up). */
TEST(hundred_parallel_clients)
{
    pthread_t thread[100];
    int result[100], ok = 0, full = 0;
    start_tiny();
    for (int i = 0; i < 100; i++) {
        result[i] = i;
        pthread_create(&thread[i], NULL, parallel_client, &result[i]);
    }
    for (int i = 0; i < 100; i++) {
        pthread_join(thread[i], NULL);
        ok += result[i] == 200;
        full += result[i] == 500;
    }
    CHECK(ok + full == 100 && ok >= 50 + 8, "%d answered, %d refused", ok, full);
}

static char *read_file(const char *path)
{
    FILE *f = fopen(path, "r");
    char *text = calloc(1, 1 << 18);
    if (f) {
        text[fread(text, 1, (1 << 18) - 1, f)] = '\0';
        fclose(f);
    }
    return text;
}

TEST(checked_in_openapi)
{
    char command[300];
    const char *bin = getenv("LATENTD_BIN");
    snprintf(command, sizeof(command), "env -u VERSION %s openapi --type json", bin ? bin : "build/latentd");
    FILE *p = popen(command, "r");
    char *want = calloc(1, 1 << 18), *have = read_file("openapi.json");
    if (CHECK(p != NULL)) {
        want[fread(want, 1, (1 << 18) - 1, p)] = '\0';
        CHECK(pclose(p) == 0);
    }
    CHECK(strlen(want) > 1000 && strcmp(want, have) == 0,
          "openapi.json is out of date: build/latentd openapi --type json > openapi.json");
    free(want);
    free(have);
}

TEST(stop)
{
    if (tiny.pid)
        CHECK(daemon_end(&tiny, SIGTERM, 8) == 0);
}

TEST_MAIN()
