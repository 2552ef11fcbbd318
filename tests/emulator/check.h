/* What the programs of this folder that are C count. */
#ifndef LATENTD_EMULATOR_CHECK_H
#define LATENTD_EMULATOR_CHECK_H

#include <stdbool.h>
#include <stdio.h>

static int passed, failed;

static void check(bool held, const char *what)
{
    passed += held;
    failed += !held;
    if (!held)
        printf("FAIL %s\n", what);
}

#endif
