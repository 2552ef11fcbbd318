/* Break it on purpose: the k-th allocation fails, for every k in turn, while a sent picture of each format is
 * decoded and resized. Each time the answer is an error with words or the right picture, and nothing is left
 * allocated. The allocator is replaced here through glibc's own __libc_* names, so this file does not run
 * under ASan. */
#include "test.h"

#include <errno.h>
#include <stdint.h>

#include "image.h"

#if defined(__SANITIZE_ADDRESS__)

TEST(needs_the_plain_allocator)
{
    SKIP("the allocator is the sanitizer's here; the plain build runs this file");
}

#else

/* The allocator's own names in glibc: malloc and the others below stand in front of them. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t align, size_t size);
void __libc_free(void *p);

static long allocations; /* since counting began */
static long fail_at;     /* 0: none fails */
static long live;        /* allocated and not freed */
static int failed_once;

static int fails_now(void)
{
    if (++allocations != fail_at)
        return 0;
    failed_once = 1;
    errno = ENOMEM;
    return 1;
}

static void *counted(void *p)
{
    live += p != NULL;
    return p;
}

void *malloc(size_t size)
{
    return fails_now() ? NULL : counted(__libc_malloc(size));
}

void *calloc(size_t n, size_t size)
{
    return fails_now() ? NULL : counted(__libc_calloc(n, size));
}

void *realloc(void *p, size_t size)
{
    if (fails_now())
        return NULL;
    void *q = __libc_realloc(p, size);
    live += !p && q;
    return q;
}

int posix_memalign(void **p, size_t align, size_t size)
{
    *p = fails_now() ? NULL : counted(__libc_memalign(align, size));
    return *p ? 0 : ENOMEM;
}

void free(void *p)
{
    live -= p != NULL;
    __libc_free(p);
}

static unsigned char bytes[1 << 16];
static size_t len;

static int read_file(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "tests/unit/data/images/%s", name);
    FILE *in = fopen(path, "rb");
    len = in ? fread(bytes, 1, sizeof bytes, in) : 0;
    if (in)
        fclose(in);
    return CHECK(len > 0, "%s", path);
}

/* Decodes and resizes; OUT is the smaller picture. */
static int whole_way(struct image *out, struct error *err)
{
    struct image im;
    int rc = image_decode(bytes, len, &im, err);
    *out = (struct image){0};
    if (!rc)
        rc = image_resize(&im, 16, 8, FILTER_LANCZOS, out, err);
    image_free(&im);
    return rc;
}

static void fail_each(const char *name)
{
    struct image want, got;
    struct error err = {0};
    if (!read_file(name))
        return;
    CHECK(whole_way(&want, &err) == 0, "%s: %s", name, err.msg);
    failed_once = 1;
    for (long k = 1; failed_once && k < 2000; k++) {
        long before = live;
        err = (struct error){0};
        failed_once = 0;
        allocations = 0;
        fail_at = k;
        int rc = whole_way(&got, &err);
        fail_at = 0;
        if (rc == 0)
            CHECK(memcmp(got.rgb, want.rgb, 16 * 8 * 3) == 0, "%s, allocation %ld: another picture", name, k);
        else
            CHECK((rc == ERR_NOMEM || rc == ERR_FORMAT) && err.msg[0] && !got.rgb,
                  "%s, allocation %ld: %d %s", name, k, rc, err.msg);
        image_free(&got);
        CHECK(live == before, "%s, allocation %ld: %ld left", name, k, live - before);
    }
    CHECK(!failed_once, "%s: never came to the end", name);
    image_free(&want);
}

/* Without lossless WebP, which needs a libwebp newer than 1.2.4 for this: see src/media/webp.c. */
TEST(no_memory_while_a_picture_is_decoded)
{
    static const char *const names[] = {"colour2-8bit.png",
                                        "colour3-4bit-interlaced.png",
                                        "quality90-subsampling1.jpg",
                                        "progressive.jpg",
                                        "cmyk.jpg",
                                        "arithmetic.jpg",
                                        "lossy.webp",
                                        "interlaced-18x21.gif",
                                        "animated.gif",
                                        "rle8.bmp",
                                        "24bit.bmp"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        fail_each(names[i]);
}

#endif

TEST_MAIN()
