/* The smallest test harness that names what failed. A test file is a list of TEST(name) { … } and ends with
 * TEST_MAIN(). Each prints a line, and the file a closing "N passed, N failed"; exit status 1 when one
 * failed. */
#ifndef LATENTD_TEST_H
#define LATENTD_TEST_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct test_case {
    const char *name;
    void (*run)(void);
    struct test_case *next;
};

static struct test_case *test_list, **test_tail = &test_list;
static int test_failures; /* of the running test */
static const char *test_skipped __attribute__((unused));

#define TEST(id)                                                                                             \
    static void test_##id(void);                                                                             \
    static struct test_case case_##id = {#id, test_##id, NULL};                                              \
    __attribute__((constructor)) static void add_##id(void)                                                  \
    {                                                                                                        \
        *test_tail = &case_##id;                                                                             \
        test_tail = &case_##id.next;                                                                         \
    }                                                                                                        \
    static void test_##id(void)

/* Leaves a test that cannot show anything here; it counts neither as passed nor as failed. */
#define SKIP(why)                                                                                            \
    do {                                                                                                     \
        test_skipped = why;                                                                                  \
        return;                                                                                              \
    } while (0)

/* Goes on after a failure, so that one run shows all of them. Evaluates to whether it held. */
#define CHECK(cond, ...) test_check((cond) ? 1 : 0, __FILE__, __LINE__, #cond, " " __VA_ARGS__)

__attribute__((format(printf, 5, 6), unused)) static int test_check(int held, const char *file, int line,
                                                                    const char *text, const char *fmt, ...)
{
    if (held)
        return 1;
    test_failures++;
    fprintf(stderr, "%s:%d: %s", file, line, text);
    if (fmt[1]) { /* after the space that CHECK puts first */
        va_list ap;
        va_start(ap, fmt);
        fputc(':', stderr);
        vfprintf(stderr, fmt, ap);
        va_end(ap);
    }
    fputc('\n', stderr);
    return 0;
}

/* With arguments: runs the tests whose names contain one of them. */
#define TEST_MAIN()                                                                                          \
    int main(int argc, char **argv)                                                                          \
    {                                                                                                        \
        int passed = 0, failed = 0;                                                                          \
        for (struct test_case *t = test_list; t; t = t->next) {                                              \
            int wanted = argc < 2;                                                                           \
            for (int i = 1; i < argc; i++)                                                                   \
                wanted |= strstr(t->name, argv[i]) != NULL;                                                  \
            if (!wanted)                                                                                     \
                continue;                                                                                    \
            test_failures = 0;                                                                               \
            test_skipped = NULL;                                                                             \
            t->run();                                                                                        \
            if (test_skipped && !test_failures)                                                              \
                printf("skip %s: %s\n", t->name, test_skipped);                                              \
            else                                                                                             \
                printf("%s %s\n", test_failures ? "FAIL" : "ok", t->name);                                   \
            fflush(stdout);                                                                                  \
            failed += test_failures != 0;                                                                    \
            passed += !test_failures && !test_skipped;                                                       \
        }                                                                                                    \
        printf("%d passed, %d failed\n", passed, failed);                                                    \
        return failed != 0;                                                                                  \
    }

#endif
