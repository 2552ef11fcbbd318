/* The weights of the small video models, made from their recipe: see scripts/export_video_goldens.py. */
#ifndef LATENTD_TEST_VIDEO_MODEL_H
#define LATENTD_TEST_VIDEO_MODEL_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "test.h"

enum { RECIPE_MAX = 2000 };

struct recipe {
    char name[160], shape[64]; /* "32, 8, 3, 3" */
    size_t count;
    int exponent, offset;
};

/* "32x8x3x3" -> "32, 8, 3, 3", and how many numbers that is. */
static void read_shape(struct recipe *r, char *text)
{
    r->count = 1;
    r->shape[0] = '\0';
    for (char *s = strtok(text, "x"); s; s = strtok(NULL, "x")) {
        size_t at = strlen(r->shape);
        snprintf(r->shape + at, sizeof r->shape - at, "%s%s", at ? ", " : "", s);
        r->count *= strtoull(s, NULL, 10);
    }
}

static int read_recipe(struct recipe *list, const char *folder)
{
    char path[256], shape[64];
    int count = 0;
    snprintf(path, sizeof path, "%s/tensors.txt", folder);
    FILE *f = fopen(path, "rb");
    if (!CHECK(f != NULL, "%s is missing", path))
        return 0;
    while (count < RECIPE_MAX && fscanf(f, "%159s %63s %d %d", list[count].name, shape, &list[count].exponent,
                                        &list[count].offset) == 4)
        read_shape(&list[count++], shape);
    CHECK(feof(f), "%s: line %d", path, count + 1);
    fclose(f);
    return count;
}

static void write_numbers(FILE *f, const struct recipe *r)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (const char *s = r->name; *s; s++)
        hash = (hash ^ (unsigned char)*s) * 0x100000001b3;
    for (size_t i = 1; i <= r->count; i++) {
        uint64_t z = hash + i * 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        z = (z ^ (z >> 31)) >> 56;
        int k = z < 128 ? (int)z : (int)z - 256;
        float v = (float)r->offset + ldexpf((float)k, r->exponent);
        if (fwrite(&v, sizeof v, 1, f) != 1)
            abort();
    }
}

/* FOLDER's tensors as DIR/STEM.safetensors; with LESS all but the one of that name. */
static void write_weights(const char *folder, const char *dir, const char *stem, const char *less)
{
    struct recipe *list = calloc(RECIPE_MAX, sizeof *list);
    char path[512], *header = NULL;
    size_t length = 0, at = 0;
    if (!list)
        abort();
    int count = read_recipe(list, folder);
    FILE *h = open_memstream(&header, &length);
    for (int i = 0; h && i < count; i++) {
        if (less && strcmp(list[i].name, less) == 0)
            continue;
        fprintf(h, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", at ? "," : "{",
                list[i].name, list[i].shape, at, at + 4 * list[i].count);
        at += 4 * list[i].count;
    }
    if (!h || fputc('}', h) == EOF || fclose(h) != 0)
        abort();
    snprintf(path, sizeof path, "%s/%s.safetensors", dir, stem);
    FILE *f = fopen(path, "wb");
    uint64_t size = length; /* this machine is little-endian, as the format */
    if (!f || fwrite(&size, 8, 1, f) != 1 || fwrite(header, 1, length, f) != length)
        abort();
    for (int i = 0; i < count; i++)
        if (!less || strcmp(list[i].name, less) != 0)
            write_numbers(f, &list[i]);
    if (fclose(f) != 0)
        abort();
    free(header);
    free(list);
}

/* A folder in /tmp with FOLDER's config and weights; DIR gets its path. End with video_model_close. */
__attribute__((unused)) static void video_model_open(char dir[64], const char *folder, const char *stem,
                                                     const char *less)
{
    char command[512];
    strcpy(dir, "/tmp/latentd-test-XXXXXX");
    if (!mkdtemp(dir))
        abort();
    snprintf(command, sizeof command, "cp '%s/config.json' '%s'", folder, dir);
    if (system(command) != 0)
        abort();
    write_weights(folder, dir, stem, less);
}

__attribute__((unused)) static void video_model_close(const char *dir)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    if (system(command) != 0)
        abort();
}

#endif
