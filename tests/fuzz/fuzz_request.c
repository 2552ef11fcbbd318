/* A libFuzzer target for JSON bodies of requests. `make fuzz` builds it; then
 *
 *   build/fuzz/fuzz_request -max_len=1024 CORPUS
 *
 * What is accepted must be UTF-8 and in bounds; what is refused must come with an error that is JSON. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/api/json_scan.h"
#include "../../src/api/params.h"

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct values v = {0};
    struct reply reply = {0};
    char *body = malloc(size + 1);

    if (!body)
        return 0;
    if (size)
        memcpy(body, data, size);
    body[size] = '\0';
    struct api_request request = {.content_type = "application/json", .body = body, .len = size};
    if (params_read(&table, &request, &v, &reply)) {
        if (!v.text.data || !utf8_valid(v.text.data, v.text.len) || v.text.data[v.text.len] ||
            !utf8_valid(v.word.data, v.word.len))
            abort();
    } else {
        struct json_span doc;
        struct json_fault fault;
        if ((reply.status != 422 && reply.status != 400) ||
            json_scan(reply.body.data, reply.body.len, NULL, 0, NULL, &doc, &fault) != 0)
            abort();
    }
    buffer_free(&reply.body);
    params_free(&table, &v);
    free(body);
    return 0;
}
