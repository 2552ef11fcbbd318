/* A libFuzzer target for form bodies. The first byte chooses the content type, the rest is the body; from
 * 0x80 on, the type itself is what stands before the first line feed.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -Iinclude -o fuzz_form \
 *         tests/fuzz/fuzz_form.c src/api/form.c src/api/form_header.c src/api/json_scan.c \
 *         src/api/json_value.c src/base/buffer.c src/base/error.c -lm
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/api/form.h"
#include "../../src/api/json_scan.h"

static const char *const types[] = {
    "multipart/form-data; boundary=B",
    "multipart/form-data; boundary=\"B\"; charset=latin-1",
    "multipart/form-data; boundary=",
    "application/x-www-form-urlencoded",
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"prompt", "image", "seed"};
    struct form_value v[3];
    char type[512];
    size_t len;

    if (size == 0)
        return 0;
    const char *body = (const char *)data + 1, *end = (const char *)data + size;
    strcpy(type, types[data[0] % 4]);
    if (data[0] >= 0x80) {
        const char *line = memchr(body, '\n', (size_t)(end - body));
        size_t n = line ? (size_t)(line - body) : 0;
        n = n < sizeof(type) ? n : sizeof(type) - 1;
        memcpy(type, body, n);
        type[n] = '\0';
        body += n;
    }
    if (form_scan(type, body, (size_t)(end - body), names, 3, v))
        return 0;
    for (int i = 0; i < 3; i++) {
        if (v[i].kind == FORM_ABSENT)
            continue;
        if (v[i].at < body || v[i].len > (size_t)(end - v[i].at))
            abort();
        char *text = form_text(&v[i], &len);
        if (!text || text[len] || !utf8_valid(text, len))
            abort();
        free(text);
    }
    return 0;
}
