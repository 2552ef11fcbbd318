/* The golden tests' safety checker with thresholds that find everything or nothing. */
#ifndef LATENTD_TESTS_CHECKER_H
#define LATENTD_TESTS_CHECKER_H

#include <stdio.h>
#include <stdlib.h>

#include "../src/weights/safetensors.h"

#define CHECKER "tests/golden/data/safety"

enum checker_kind { NONE, FINDS_NOTHING, FINDS_ALL };

static void must(bool ok)
{
    if (!ok)
        abort();
}

/* The checker in DIR, a copy of CHECKER, becomes one of KIND: a cosine is between -1 and 1. */
static void checker_finds(const char *dir, enum checker_kind kind)
{
    char path[256];
    struct safetensors st;
    struct error err = {0};
    float all[17];
    for (int i = 0; i < 17; i++)
        all[i] = kind == FINDS_ALL ? -2.0f : 2.0f;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    must(safetensors_open(&st, path, "checker", &err) == 0);
    const struct st_tensor *t = safetensors_find(&st, "concept_embeds_weights");
    long at = (long)((const char *)st.data - (const char *)st.map) + (long)t->begin;
    safetensors_close(&st);
    FILE *f = fopen(path, "r+b");
    must(f && fseek(f, at, SEEK_SET) == 0 && fwrite(all, 4, 17, f) == 17 && fclose(f) == 0);
}

#endif
