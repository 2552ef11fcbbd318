/* The tiers that goldens run on. Some machine lacks most of them; the emulated ones run anywhere with
 * AVX-512. */
#ifndef LATENTD_TEST_TIER_H
#define LATENTD_TEST_TIER_H

#include <stdlib.h>
#include <string.h>

#include "backend.h"

static const char *const tier_names[] = {
    "ref", "avx2", "avx512", "avx512bf16-emulated", "amx-emulated", "avx512bf16", "amx", "cuda", "cuda+bf16"};
enum { TIER_NAMES = sizeof tier_names / sizeof *tier_names };

/* True unless GOLDEN_TIER in the environment names another one. */
__attribute__((unused)) static bool tier_wanted(const char *name)
{
    const char *only = getenv("GOLDEN_TIER");
    return !only || strcmp(only, name) == 0;
}

__attribute__((unused)) static struct backend_options tier_options(const char *name)
{
    struct backend_options opt = {.kind = "cpu", .isa = name, .threads = 2};
    if (name && strcmp(name, "ref") == 0)
        opt = (struct backend_options){.kind = "ref"};
    if (name && strncmp(name, "cuda", 4) == 0)
        opt = (struct backend_options){.kind = "cuda", .isa = name[4] ? "bf16" : "fp16"};
    return opt;
}

#endif
