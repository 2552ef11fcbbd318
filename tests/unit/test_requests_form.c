/* Form bodies against what FastAPI, Starlette and python-multipart answer (tests/unit/data/forms.txt, made by
 * scripts/export_request_goldens.py), their limits, and bodies of any bytes. */
#include <stddef.h>

#include "../../src/api/form.h"
#include "../../src/api/json_scan.h"
#include "../../src/api/params.h"
#include "test.h"

struct values {
    struct param_string text, word;
    struct param_file file;
    struct param_integer whole, seed;
    double number;
    bool flag;
};

static const struct param rows[] = {
    {"text", "", PARAM_STRING, true, NULL, "", offsetof(struct values, text)},
    {"file", "", PARAM_FILE, true, NULL, "", offsetof(struct values, file)},
    {"word", "", PARAM_STRING, false, "\"d\"", "", offsetof(struct values, word)},
    {"whole", "", PARAM_INTEGER, false, "1", "", offsetof(struct values, whole)},
    {"seed", "", PARAM_INTEGER, false, NULL, "", offsetof(struct values, seed)},
    {"number", "", PARAM_NUMBER, false, "0.5", "", offsetof(struct values, number)},
    {"flag", "", PARAM_BOOLEAN, false, "true", "", offsetof(struct values, flag)},
};
static const struct param_table table = {"Body_values", rows, sizeof(rows) / sizeof(*rows), true};
#define MULTIPART "multipart/form-data; boundary=B"

static void put_values(const struct values *v, struct buffer *out)
{
    char whole[44], seed[44], number[40];
    unsigned long sum = 0;

    for (size_t i = 0; i < v->file.len; i++)
        sum += (unsigned char)v->file.data[i];
    wide_format(whole, v->whole.value);
    wide_format(seed, v->seed.value);
    json_format_float(number, v->number);
    buffer_puts(out, "200 {\"text\":");
    buffer_json_string(out, v->text.data, v->text.len);
    buffer_puts(out, ",\"word\":");
    buffer_json_string(out, v->word.data, v->word.len);
    buffer_printf(out, ",\"whole\":%s,\"seed\":%s,\"number\":\"%s\",\"flag\":%s,\"file\":[%zu,%lu]}", whole,
                  v->seed.given ? seed : "null", number, v->flag ? "true" : "false", v->file.len, sum);
}

/* "<status> <body>", where the body of a 200 is what the script's endpoint says. */
static void answer(const char *body, size_t len, const char *content_type, struct buffer *out)
{
    struct values v = {0};
    struct reply reply = {0};
    struct api_request request = {.content_type = content_type, .body = body, .len = len};

    if (params_read(&table, &request, &v, &reply)) {
        put_values(&v, out);
    } else {
        buffer_printf(out, "%d ", reply.status);
        buffer_add(out, reply.body.data, reply.body.len);
    }
    buffer_free(&reply.body);
    params_free(&table, &v);
}

TEST(as_fastapi)
{
    FILE *f = fopen("tests/unit/data/forms.txt", "rb");
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
              "%s\n  %.400s\n  got  %.300s\n  want %.300s", content_type, body, got.data, want);
        buffer_free(&got);
        cases++;
    }
    CHECK(cases > 700, "%d cases", cases);
    fclose(f);
    free(body);
    free(want);
}

static void expect(const char *content_type, const char *body, size_t len, const char *want)
{
    struct buffer got = {0};

    answer(body, len, content_type, &got);
    CHECK(strcmp(got.data, want) == 0, "%.200s\n  got  %.300s\n  want %.300s", body, got.data, want);
    buffer_free(&got);
}

#define PART(head) "--B\r\nContent-Disposition: form-data; " head "\r\n\r\n"

TEST(differs_on_purpose)
{
    static const char file_as_text[] =
        PART("name=text; filename=x") "ab\r\n" PART("name=file; filename=x") "\r\n--B--";
    static const char sound[] = PART("name=text") "a\r\n" PART("name=file; filename=x") "b\r\n--B--";
    char type[400] = "multipart/form-data; boundary=";

    expect(
        MULTIPART, file_as_text, sizeof(file_as_text) - 1,
        "422 {\"detail\":[{\"type\":\"string_type\",\"loc\":[\"body\",\"text\"],\"msg\":\"Input should be a "
        "valid string\",\"input\":{\"size\":2}}]}");
    expect("Multipart/Form-Data; boundary=B", sound, sizeof(sound) - 1,
           "200 {\"text\":\"a\",\"word\":\"d\",\"whole\":1,\"seed\":null,\"number\":\"0.5\",\"flag\":true,"
           "\"file\":[1,98]}");
    expect(MULTIPART, "--B\r\nX-A\r\n\r\n--B--", 18,
           "400 {\"detail\":\"There was an error parsing the body\"}");
    memset(type + strlen(type), 'x', FORM_BOUNDARY_MAX + 1);
    expect(type, "", 0, "400 {\"detail\":\"There was an error parsing the body\"}");
}

/* COUNT times PART, then the end; the answer to it. */
static void expect_many(const char *part, size_t part_len, int count, const char *want)
{
    struct buffer body = {0};

    for (int i = 0; i < count; i++)
        buffer_add(&body, part, part_len);
    buffer_puts(&body, "--B--");
    struct buffer got = {0};
    answer(body.data, body.len, MULTIPART, &got);
    CHECK(strstr(got.data, want) != NULL, "%d of %s: %.300s", count, part, got.data);
    buffer_free(&got);
    buffer_free(&body);
}

TEST(limits)
{
    static const char field[] = PART("name=x") "\r\n", file[] = PART("name=x; filename=y") "\r\n";
    struct buffer long_text = {0};

    expect_many(field, sizeof(field) - 1, FORM_FIELDS_MAX, "422 ");
    expect_many(field, sizeof(field) - 1, FORM_FIELDS_MAX + 1,
                "400 {\"detail\":\"Too many fields. Maximum number of fields is 1000.\"}");
    expect_many(file, sizeof(file) - 1, FORM_FILES_MAX, "422 ");
    expect_many(file, sizeof(file) - 1, FORM_FILES_MAX + 1,
                "400 {\"detail\":\"Too many files. Maximum number of files is 1000.\"}");
    for (int over = 0; over < 2; over++) {
        long_text.len = 0;
        buffer_puts(&long_text, PART("name=word"));
        for (int i = 0; i < FORM_TEXT_MAX + over; i++)
            buffer_add(&long_text, "a", 1);
        buffer_puts(&long_text, "\r\n");
        expect_many(long_text.data, long_text.len, 1,
                    over ? "400 {\"detail\":\"Part exceeded maximum size of 1024KB.\"}" : "422 ");
    }
    buffer_free(&long_text);
}

/* Scans a copy that ends where its memory ends, so that ASan sees every byte too far; whatever is found lies
 * inside and reads as UTF-8. Returns whether it was a sound form. */
static bool scan_copy(const char *body, size_t len, const char *content_type)
{
    static const char *const names[] = {"text", "file", "word"};
    struct form_value v[3];
    char *copy = malloc(len ? len : 1);
    size_t text_len;

    memcpy(copy, body, len);
    const char *fault = form_scan(content_type, copy, len, names, 3, v);
    for (int i = 0; i < 3 && !fault; i++) {
        if (v[i].kind == FORM_ABSENT)
            continue;
        CHECK(v[i].at >= copy && v[i].at + v[i].len <= copy + len);
        char *text = form_text(&v[i], &text_len);
        CHECK(text && text[text_len] == '\0' && utf8_valid(text, text_len));
        free(text);
    }
    free(copy);
    return !fault;
}

/* Every cut, every byte changed to every other. */
TEST(any_bytes)
{
    static const char base[] = "\r\n" PART("name*0*=utf-8''te; name*1=\"x\\\"t\"") "h\xc3\xa9\r\n" PART(
        "name=\"text\"; x=<y>") "\xff\r\n" PART("name=file; filename*=\"a;b\"") "\r\n--B-\r\n--B--\r\n";
    static const char url[] = "text=%c3%a9+%ff\xe9&wo%72d=;file=x&";
    long sound = 0;

    for (int form = 0; form < 2; form++) {
        const char *body = form ? base : url;
        size_t len = form ? sizeof(base) - 1 : sizeof(url) - 1;
        for (size_t at = 0; at < len; at++)
            for (int byte = 0; byte < 257; byte++) {
                char changed[sizeof(base)];
                memcpy(changed, body, len);
                changed[at] = (char)byte;
                sound += scan_copy(changed, byte == 256 ? at : len,
                                   form ? MULTIPART : "application/x-www-form-urlencoded");
            }
    }
    CHECK(sound > 20000, "%ld", sound);
}

/* Deterministic mutations of several bytes, pieces doubled and moved, and content types cut anywhere. */
TEST(mutations)
{
    static const char base[] = PART("name=\"text\"") "a\r\n" PART(
        "name=file; filename=\"x.png\"") "\x89PNG\r\n--\r\n--B--\r\n" PART("name=word") "b\r\n--B--\r\n";
    static const char pieces[][16] = {"\r\n--B\r\n", "\r\n--B--", "--B", "; name=", "\"", "\\\"",
                                      "*0*=",        ":",         "\r",  "\n",      "%"};
    unsigned random = 1;
    char type[] = "multipart/form-data; charset=\"latin-1\"; boundary=\"B\"";

    for (int round = 0; round < 30000; round++) {
        char body[4 * sizeof(base)];
        size_t len = sizeof(base) - 1;
        memcpy(body, base, len);
        for (int change = 0; change < 1 + round % 6; change++) {
            random = random * 1664525u + 1013904223u;
            const char *piece = pieces[(random >> 8) % (sizeof(pieces) / sizeof(*pieces))];
            size_t at = (random >> 16) % len, n = strlen(piece);
            if (random & 1) {
                memmove(body + at + n, body + at, len - at);
                len += n;
            }
            memcpy(body + at, piece, at + n <= len ? n : len - at);
        }
        scan_copy(body, len, round % 8 ? MULTIPART : type);
    }
    for (size_t cut = 0; cut < sizeof(type); cut++) {
        char *copy = strndup(type, cut);
        scan_copy(base, sizeof(base) - 1, copy);
        free(copy);
    }
}

/* Time is linear in the body, also where every byte could begin a boundary or a field. */
TEST(hostile_lengths)
{
    enum { SIZE = 8 << 20 };
    static const char *const units[] = {"\r\n--B", "\r", "\r\n--B\r", ";", "a;", "=", "--B\r\n", "%"};
    char *body = malloc(SIZE);

    for (size_t u = 0; u < sizeof(units) / sizeof(*units); u++) {
        static const char *const heads[] = {"", PART("name=file; filename=x"),
                                            "--B\r\nContent-Disposition: x;", "--B\r\nA: "};
        for (size_t h = 0; h < sizeof(heads) / sizeof(*heads); h++) {
            size_t head = strlen(heads[h]), n = strlen(units[u]);
            memcpy(body, heads[h], head);
            for (size_t i = head; i < SIZE; i++)
                body[i] = units[u][(i - head) % n];
            scan_copy(body, SIZE, h ? MULTIPART : "application/x-www-form-urlencoded");
        }
    }
    free(body);
}

TEST_MAIN()
