/* Lists of tensors, and files that have them without their numbers. The lists come from
 * scripts/export_tensor_names.py and export_single_files.py. */
#ifndef LATENTD_TEST_TENSOR_LIST_H
#define LATENTD_TEST_TENSOR_LIST_H

#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "test.h"

enum { TENSORS_MAX = 3000, NAME_MAX_LENGTH = 160 };

struct entry {
    char name[NAME_MAX_LENGTH], shape[64]; /* "320, 320, 3, 3" */
    const char *type;
    uint64_t numbers, bytes;
    bool extra; /* published files carry it, nothing reads it */
};

struct entries {
    struct entry item[TENSORS_MAX];
    int count;
};

static void add_entry(struct entries *l, const char *name, const char *shape, const char *type, size_t size,
                      bool extra)
{
    if (l->count == TENSORS_MAX || strlen(name) >= NAME_MAX_LENGTH || strlen(shape) >= sizeof l->item->shape)
        abort();
    struct entry *e = &l->item[l->count++];
    *e = (struct entry){.type = type, .numbers = 1, .extra = extra};
    strcpy(e->name, name);
    strcpy(e->shape, shape);
    for (const char *s = shape; *s; s += strcspn(s, "0123456789")) {
        char *end;
        e->numbers *= strtoull(s, &end, 10);
        s = end;
    }
    e->bytes = e->numbers * size;
}

/* Every name that PATTERN stands for: "{0-1,4}" is 0, 1 and 4. */
static void expand(struct entries *l, const char *pattern, const char *shape)
{
    const char *open = strchr(pattern, '{');
    if (!open) {
        add_entry(l, pattern, shape, "F16", 2, false);
        return;
    }
    char *s = (char *)(uintptr_t)open;
    while (*s != '}') {
        long from = strtol(s + 1, &s, 10), to = *s == '-' ? strtol(s + 1, &s, 10) : from;
        for (long i = from; i <= to; i++) {
            char name[NAME_MAX_LENGTH];
            snprintf(name, sizeof name, "%.*s%ld%s", (int)(open - pattern), pattern, i,
                     strchr(open, '}') + 1);
            expand(l, name, shape);
        }
    }
}

/* Adds FOLDER/NAME.txt, a line a pattern: its shape, "320x320x3x3", and the names. */
static void read_list(struct entries *l, const char *folder, const char *name)
{
    char path[256], line[512], shape[64], pattern[NAME_MAX_LENGTH];
    snprintf(path, sizeof path, "%s/%s.txt", folder, name);
    FILE *f = fopen(path, "rb");
    if (!CHECK(f != NULL, "%s", path))
        return;
    while (fgets(line, sizeof line, f)) {
        if (!CHECK(sscanf(line, "%63s %159s", shape, pattern) == 2, "%s: %s", path, line))
            break;
        char commas[64] = "";
        for (char *s = strtok(shape, "x"); s; s = strtok(NULL, "x"))
            snprintf(commas + strlen(commas), sizeof commas - strlen(commas), "%s%s", *commas ? ", " : "", s);
        expand(l, pattern, commas);
    }
    fclose(f);
}

/* Writes a safetensors file of all but entry LEFT_OUT (negative: all): a header over a hole. */
static void write_list(const struct entries *l, int left_out, const char *path)
{
    char *header = NULL;
    size_t length = 0;
    uint64_t at = 0;
    FILE *h = open_memstream(&header, &length);
    if (!h)
        abort();
    for (int i = 0; i < l->count; i++) {
        const struct entry *e = &l->item[i];
        if (i == left_out)
            continue;
        fprintf(h, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}", at ? "," : "{",
                e->name, e->type, e->shape, (unsigned long long)at, (unsigned long long)(at + e->bytes));
        at += e->bytes;
    }
    fputc('}', h);
    fclose(h);
    FILE *f = fopen(path, "wb");
    uint64_t size = length; /* this machine is little-endian, as the format */
    if (!f || fwrite(&size, 8, 1, f) != 1 || fwrite(header, 1, length, f) != length || fflush(f) != 0 ||
        ftruncate(fileno(f), (off_t)(8 + size + at)) != 0 || fclose(f) != 0)
        abort();
    free(header);
}

#endif
