/* Request bodies against what FastAPI and pydantic answer (tests/unit/data/requests.txt, made by
 * scripts/export_request_goldens.py), and the few places where latentd differs on purpose. */
#include <stddef.h>

#include "../../src/api/json_scan.h"
#include "../../src/api/params.h"
#include "test.h"

struct values {
    struct param_string text, word;
    struct param_integer whole, seed;
    double number;
    bool flag;
};

static const struct param rows[] = {
    {"text", "", PARAM_STRING, true, NULL, "", offsetof(struct values, text)},
    {"word", "", PARAM_STRING, false, "\"d\"", "", offsetof(struct values, word)},
    {"whole", "", PARAM_INTEGER, false, "1", "", offsetof(struct values, whole)},
    {"seed", "", PARAM_INTEGER, false, NULL, "", offsetof(struct values, seed)},
    {"number", "", PARAM_NUMBER, false, "0.5", "", offsetof(struct values, number)},
    {"flag", "", PARAM_BOOLEAN, false, "true", "", offsetof(struct values, flag)},
};
static const struct param_table table = {"Values", rows, sizeof(rows) / sizeof(*rows), false};

/* "<status> <body>", where the body of a 200 is what the script's endpoint says. */
static void answer(const char *body, size_t len, const char *content_type, struct buffer *out)
{
    struct values v = {0};
    struct reply reply = {0};
    struct api_request request = {.content_type = content_type, .body = body, .len = len};
    char whole[44], seed[44], number[40];

    if (!params_read(&table, &request, &v, &reply)) {
        buffer_printf(out, "%d ", reply.status);
        buffer_add(out, reply.body.data, reply.body.len);
    } else {
        wide_format(whole, v.whole.value);
        wide_format(seed, v.seed.value);
        json_format_float(number, v.number);
        buffer_puts(out, "200 {\"text\":");
        buffer_json_string(out, v.text.data, v.text.len);
        buffer_puts(out, ",\"word\":");
        buffer_json_string(out, v.word.data, v.word.len);
        buffer_printf(out, ",\"whole\":%s,\"seed\":%s,\"number\":\"%s\",\"flag\":%s}", whole,
                      v.seed.given ? seed : "null", number, v.flag ? "true" : "false");
    }
    buffer_free(&reply.body);
    params_free(&table, &v);
}

TEST(as_fastapi)
{
    FILE *f = fopen("tests/unit/data/requests.txt", "rb");
    char content_type[100], *body = malloc(1 << 16), *want = malloc(1 << 16);
    int body_len, want_len, cases = 0;

    if (!CHECK(f && body && want))
        return;
    while (fscanf(f, "%d %d %99[^\n]", &body_len, &want_len, content_type) == 3) {
        struct buffer got = {0};
        fgetc(f);
        if (!CHECK(body_len < 1 << 16 && want_len < 1 << 16 &&
                   fread(body, 1, (size_t)body_len, f) == (size_t)body_len && fgetc(f) == '\n' &&
                   fread(want, 1, (size_t)want_len, f) == (size_t)want_len && fgetc(f) == '\n'))
            break;
        body[body_len] = want[want_len] = '\0';
        answer(body, (size_t)body_len, strcmp(content_type, "-") ? content_type : NULL, &got);
        CHECK(got.len == (size_t)want_len && memcmp(got.data, want, got.len) == 0,
              "%s\n  %.300s\n  got  %.300s\n  want %.300s", content_type, body, got.data, want);
        buffer_free(&got);
        cases++;
    }
    CHECK(cases > 1000, "%d cases", cases);
    fclose(f);
    free(body);
    free(want);
}

static void expect(const char *body, const char *want)
{
    struct buffer got = {0};

    answer(body, strlen(body), NULL, &got);
    CHECK(strcmp(got.data, want) == 0, "%.200s\n  got  %.300s\n  want %.300s", body, got.data, want);
    buffer_free(&got);
}

/* The original answers these with a plain-text 500 or with a 400 that names no fault. */
TEST(differs_on_purpose)
{
    expect("{\"text\":[NaN,-Infinity,1e999]}",
           "422 {\"detail\":[{\"type\":\"string_type\",\"loc\":[\"body\",\"text\"],\"msg\":\"Input should be "
           "a valid "
           "string\",\"input\":[null,null,null]}]}");
    expect("{\"text\":\"\\ud800\"}",
           "422 {\"detail\":[{\"type\":\"string_unicode\",\"loc\":[\"body\",\"text\"],\"msg\":\"Input should "
           "be a valid "
           "string, unable to parse raw data as a unicode string\",\"input\":\"\xef\xbf\xbd\"}]}");
    expect("{\"text\":\"\xed\xa0\x80\"}",
           "400 {\"detail\":{\"msg\":\"There was an error parsing the body: it is not valid UTF-8\"}}");
    expect("{\"k\":1,\"k\":2}",
           "422 {\"detail\":[{\"type\":\"missing\",\"loc\":[\"body\",\"text\"],\"msg\":\"Field "
           "required\",\"input\":{\"k\":1,\"k\":2}}]}");
}

TEST(depth_and_digits)
{
    char *text = malloc(10000);
    struct json_span doc;
    struct json_fault fault;

    for (int depth = JSON_DEPTH_MAX; depth <= JSON_DEPTH_MAX + 1; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        int rc = json_scan(text, 2 * (size_t)depth, NULL, 0, NULL, &doc, &fault);
        CHECK(rc == (depth > JSON_DEPTH_MAX ? -1 : 0) && fault.unreadable == (rc != 0));
    }
    for (int digits = JSON_INT_DIGITS_MAX; digits <= JSON_INT_DIGITS_MAX + 1; digits++) {
        memset(text, '9', (size_t)digits);
        int rc = json_scan(text, (size_t)digits, NULL, 0, NULL, &doc, &fault);
        CHECK(rc == (digits > JSON_INT_DIGITS_MAX ? -1 : 0) && fault.unreadable == (rc != 0));
    }
    free(text);
}

/* Every way to cut a document off, and every byte changed to every other: no crash, no read past the end
 * (ASan watches the allocation), and whatever is accepted is UTF-8. */
TEST(any_bytes)
{
    static const char base[] =
        "{\"text\":\"a\\u00e9\\ud83d\\ude00\xc3\xa9\",\"whole\":-1.5e3,\"x\":[true,{\"y\":null}]}";
    static const char *const names[] = {"text", "whole"};
    size_t len = sizeof(base) - 1;
    long accepted = 0;

    for (size_t at = 0; at < len; at++)
        for (int byte = 0; byte < 257; byte++) {
            struct json_span members[2], doc;
            struct json_fault fault;
            size_t n = byte == 256 ? at : len;
            char *copy = malloc(n + 1);
            memcpy(copy, base, n);
            copy[n] = '\0';
            if (byte < 256)
                copy[at] = (char)byte;
            if (json_scan(copy, n, names, 2, members, &doc, &fault) == 0) {
                accepted++;
                CHECK(utf8_valid(copy, n) && doc.len <= n);
            } else {
                CHECK(fault.text && fault.offset <= n);
            }
            free(copy);
        }
    CHECK(accepted > 1000, "%ld", accepted);
}

TEST(utf8)
{
    static const struct {
        const char *text;
        bool valid;
    } cases[] = {{"", true},
                 {"a\xc2\x80z", true},
                 {"\xc0\x80", false},
                 {"\xc1\xbf", false},
                 {"\xe0\xa0\x80", true},
                 {"\xe0\x9f\xbf", false},
                 {"\xed\x9f\xbf", true},
                 {"\xed\xa0\x80", false},
                 {"\xef\xbf\xbf", true},
                 {"\xf0\x90\x80\x80", true},
                 {"\xf0\x8f\xbf\xbf", false},
                 {"\xf4\x8f\xbf\xbf", true},
                 {"\xf4\x90\x80\x80", false},
                 {"\xf5\x80\x80\x80", false},
                 {"\x80", false},
                 {"\xc3", false},
                 {"\xe2\x82", false},
                 {"\xf0\x9f\x98", false},
                 {"\xff", false}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        CHECK(utf8_valid(cases[i].text, strlen(cases[i].text)) == cases[i].valid, "case %zu", i);
}

TEST(long_inputs_are_cut_in_the_echo)
{
    size_t n = 1 << 20;
    char *body = malloc(n + 100);
    struct buffer got = {0};

    strcpy(body, "{\"text\":[");
    for (size_t i = 9; i < n; i += 2)
        memcpy(body + i, "1,", 2);
    strcpy(body + n, "1]}");
    answer(body, strlen(body), NULL, &got);
    CHECK(strncmp(got.data, "422 ", 4) == 0 && got.len < 6000 && strstr(got.data, "…"), "%zu bytes", got.len);
    buffer_free(&got);
    free(body);
}

TEST_MAIN()
