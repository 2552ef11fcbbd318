/* The tiers that goldens run on. Every machine lacks some of them; the emulated ones run anywhere with
 * AVX-512. */
#ifndef LATENTD_TEST_TIER_H
#define LATENTD_TEST_TIER_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"

static const char *const tier_names[] = {
    "ref", "avx2", "avx512", "avx512bf16-emulated", "amx-emulated", "avx512bf16", "amx", "cuda", "cuda+bf16"};
enum { TIER_NAMES = sizeof tier_names / sizeof *tier_names };

__attribute__((unused)) static struct backend_options tier_options(const char *name)
{
    struct backend_options opt = {.kind = "cpu", .isa = name, .threads = 2};
    if (name && strcmp(name, "ref") == 0)
        opt = (struct backend_options){.kind = "ref"};
    if (name && strncmp(name, "cuda", 4) == 0)
        opt = (struct backend_options){.kind = "cuda", .isa = name[4] ? "bf16" : "fp16"};
    return opt;
}

/* True for a tier that only emulates instructions which this machine has. */
__attribute__((unused)) static bool tier_stands_in(const char *name)
{
    char real[32];
    const char *emulated = strstr(name, "-emulated");
    struct backend *be = NULL;
    struct error err = {0};
    if (!emulated)
        return false;
    snprintf(real, sizeof real, "%.*s", (int)(emulated - name), name);
    bool has =
        backend_open(&be, &(struct backend_options){.kind = "cpu", .isa = real, .threads = 1}, &err) == 0;
    backend_close(&be);
    return has;
}

/* Whether to run a tier: with GOLDEN_TIER in the environment that one alone, else all that are here, and
 * those that emulate what is missing. */
__attribute__((unused)) static bool tier_wanted(const char *name)
{
    const char *only = getenv("GOLDEN_TIER");
    bool known = !only;
    for (int i = 0; i < TIER_NAMES && !known; i++)
        known = strcmp(only, tier_names[i]) == 0;
    if (!known) { /* nothing would run, and nothing fail */
        fprintf(stderr, "GOLDEN_TIER=%s is no tier\n", only);
        exit(1);
    }
    return only ? strcmp(only, name) == 0 : !tier_stands_in(name);
}

#endif
