/* Where a model is looked for: hub cache, plain folder, and ids that must not leave the shelf. */
#include <sys/stat.h>

#include "test.h"
#include "weights.h"

static char root[64], path[512];
static struct error err;

static void make(const char *fmt, const char *text)
{
    char full[512];
    snprintf(full, sizeof(full), "%s/%s", root, fmt);
    for (char *s = full + 1; *s; s++) {
        if (*s == '/') {
            *s = '\0';
            mkdir(full, 0700);
            *s = '/';
        }
    }
    if (!text)
        mkdir(full, 0700);
    FILE *f = text ? fopen(full, "wb") : NULL;
    if (f) {
        fputs(text, f);
        fclose(f);
    }
}

static void begin(void)
{
    strcpy(root, "/tmp/latentd-test-XXXXXX");
    if (!mkdtemp(root))
        abort();
}

static void end(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    if (system(command) != 0)
        abort();
}

static int find(const char *id)
{
    err = (struct error){0};
    return model_find(root, id, path, sizeof(path), &err);
}

static bool found_at(const char *tail)
{
    size_t len = strlen(root);
    return strncmp(path, root, len) == 0 && strcmp(path + len, tail) == 0;
}

TEST(plain_folder)
{
    begin();
    CHECK(find("org/name") == ERR_NOT_FOUND && strstr(err.msg, "models--org--name") &&
              strstr(err.msg, "/org/name"),
          "%s", err.msg);
    make("org/name", NULL);
    CHECK(find("org/name") == 0 && found_at("/org/name"), "%s %s", path, err.msg);
    end();
}

TEST(hub_cache)
{
    begin();
    make("org/name", NULL);
    make("models--org--name/snapshots/abc", NULL);
    CHECK(find("org/name") == 0 && found_at("/models--org--name/snapshots/abc"), "%s %s", path, err.msg);
    make("models--org--name/snapshots/def", NULL);
    CHECK(find("org/name") == 0 && found_at("/org/name"), "two snapshots and no ref: %s", path);
    make("models--org--name/refs/main", "def\n");
    CHECK(find("org/name") == 0 && found_at("/models--org--name/snapshots/def"), "%s %s", path, err.msg);
    make("models--org--name/refs/main", "../../etc");
    CHECK(find("org/name") == 0 && found_at("/org/name"), "%s", path);
    make("models--org--name/refs/main", "gone");
    CHECK(find("org/name") == 0 && found_at("/org/name"), "%s", path);
    end();
}

TEST(ids_that_are_refused)
{
    static const char *const bad[] = {"",       "/",     "/etc",     "..",     "../x",      "a/../b",
                                      "a//b",   "a/",    "a/.",      "a\\b",   "a b",       "a/b\n",
                                      "a/\x01", "a/b;c", "~/models", "a/b/..", "http://a/b"};
    begin();
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        CHECK(find(bad[i]) == ERR_INVALID && strstr(err.msg, "org/name"), "\"%s\": %s", bad[i], err.msg);
    char long_id[400];
    memset(long_id, 'a', sizeof(long_id) - 1);
    long_id[sizeof(long_id) - 1] = '\0';
    CHECK(find(long_id) == ERR_INVALID);
    end();
}

TEST(a_short_buffer_is_an_error)
{
    char small[8];
    begin();
    make("org/name", NULL);
    err = (struct error){0};
    CHECK(model_find(root, "org/name", small, sizeof(small), &err) == ERR_INVALID, "%s", err.msg);
    end();
}

TEST_MAIN()
