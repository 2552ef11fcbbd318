/* A libFuzzer target for the header of safetensors files. `make fuzz` builds it; then
 *
 *   build/fuzz/fuzz_safetensors -max_len=2048 CORPUS
 *
 * Bytes that do not say how long the header is are taken for the header itself, so that little of the search
 * is spent on the first eight. What is accepted must lie inside the file, be sorted and not overlap. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/weights/safetensors.h"

static void check(const struct safetensors *st, size_t size)
{
    uint64_t data = size - (uint64_t)(st->data - (const unsigned char *)st->map), bytes = 0;
    for (int i = 0; i < st->count; i++) {
        const struct st_tensor *t = &st->tensor[i];
        if (t->begin > t->end || t->end > data || t->dims > ST_DIMS_MAX || t->type >= ST_TYPE_COUNT)
            abort();
        if (i > 0 && strcmp(st->tensor[i - 1].name, t->name) >= 0)
            abort();
        if (!safetensors_find(st, t->name))
            abort();
        bytes += t->end - t->begin;
    }
    if (bytes > data)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors st = {0};
    struct error err = {0};
    unsigned char *file = malloc(size + 8 + 64);

    if (!file)
        return 0;
    size_t total = size;
    if (size > 0 && data[0] == '{') { /* a header with room for a little data behind it */
        uint64_t length = size;
        memcpy(file, &length, 8);
        memcpy(file + 8, data, size);
        memset(file + 8 + size, 1, 64);
        total = size + 8 + 64;
    } else if (size > 0) {
        memcpy(file, data, size);
    }
    int rc = safetensors_parse(&st, file, total, "fuzz", &err);
    if (rc == 0) {
        const void *map = st.map;
        st.map = file; /* for the offset of the data alone */
        check(&st, total);
        st.map = (void *)(uintptr_t)map;
        safetensors_close(&st);
    } else if (err.code != rc || !err.msg[0]) {
        abort();
    }
    free(file);
    return 0;
}
