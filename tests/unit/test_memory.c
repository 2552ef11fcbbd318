/* Memory of the CPU backends (kernels/ref/memory.c): pieces keep their numbers while others come and go, on
 * several threads, and what is freed is the system's again. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../src/pipelines/model.h"
#include "backend.h"
#include "test.h"

enum { PIECES = 120 };

static struct backend *open_ref(void)
{
    struct error err = {0};
    struct backend *be = NULL;
    CHECK(backend_open(&be, &(struct backend_options){.kind = "ref"}, &err) == 0, "%s", err.msg);
    return be;
}

struct piece {
    unsigned char *at;
    size_t bytes;
    unsigned char mark;
};

static unsigned next(unsigned *seed)
{
    return *seed = *seed * 1664525u + 1013904223u;
}

/* From a hundred bytes to twenty megabytes, small and large ones in turn. */
static size_t some_bytes(unsigned *seed)
{
    static const size_t most[] = {1000, 70000, 200000, 900000, 3500000, 20000000};
    return 100 + next(seed) % most[(next(seed) >> 16) % 6];
}

static void fill(struct backend *be, struct piece *p, unsigned *seed)
{
    struct error err = {0};
    void *mem;
    p->bytes = some_bytes(seed);
    p->mark = (unsigned char)(next(seed) >> 24);
    CHECK(be->mem_alloc(be, p->bytes, &mem, &err) == 0, "%s", err.msg);
    CHECK((uintptr_t)mem % 64 == 0, "%zu bytes at %p", p->bytes, mem);
    p->at = mem;
    memset(p->at, p->mark, p->bytes);
}

static bool whole(const struct piece *p)
{
    for (size_t i = 0; i < p->bytes; i++)
        if (p->at[i] != p->mark)
            return false;
    return true;
}

struct user {
    struct backend *be;
    unsigned seed;
    int broken;
};

static void *use(void *arg)
{
    struct user *u = arg;
    struct piece piece[PIECES] = {0};
    for (int i = 0; i < 4 * PIECES; i++) {
        struct piece *p = &piece[next(&u->seed) / 7 % PIECES];
        if (p->at) {
            u->broken += !whole(p);
            u->be->mem_free(u->be, p->at, p->bytes);
            p->at = NULL;
        } else {
            fill(u->be, p, &u->seed);
        }
    }
    for (int i = 0; i < PIECES; i++)
        if (piece[i].at) {
            u->broken += !whole(&piece[i]);
            u->be->mem_free(u->be, piece[i].at, piece[i].bytes);
        }
    return NULL;
}

TEST(pieces_do_not_meet)
{
    struct backend *be = open_ref();
    struct user user[3] = {{be, 1, 0}, {be, 2, 0}, {be, 3, 0}};
    pthread_t thread[3];
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&thread[i], NULL, use, &user[i]) == 0, "no thread");
    for (int i = 0; i < 3; i++) {
        pthread_join(thread[i], NULL);
        CHECK(user[i].broken == 0, "thread %d: %d pieces changed", i, user[i].broken);
    }
    backend_close(&be);
}

static long resident_kib(void)
{
    long all = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    CHECK(f && fscanf(f, "%ld %ld", &all, &resident) == 2, "no /proc/self/statm");
    fclose(f);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Every second one of many pieces is freed: chunks are not empty then. */
TEST(what_is_freed_is_given_back)
{
#ifdef __SANITIZE_ADDRESS__
    SKIP("freed memory is kept for the sanitizer");
#endif
    enum { COUNT = 60, BYTES = 3 << 20 };
    struct backend *be = open_ref();
    struct error err = {0};
    void *mem[COUNT];
    const long before = resident_kib();
    for (int i = 0; i < COUNT; i++) {
        CHECK(be->mem_alloc(be, BYTES, &mem[i], &err) == 0, "%s", err.msg);
        memset(mem[i], i + 1, BYTES);
    }
    const long full = resident_kib();
    CHECK(full - before >= COUNT * (BYTES >> 10), "only %ld KiB", full - before);
    CHECK(full - before <= COUNT * (BYTES >> 10) + (8 << 10), "%ld KiB", full - before);
    for (int i = 0; i < COUNT; i += 2)
        be->mem_free(be, mem[i], BYTES);
    const long half = resident_kib();
    CHECK(full - half >= COUNT / 2 * (BYTES >> 10) - (8 << 10), "%ld of %ld KiB were given back", full - half,
          full - before);
    for (int i = 1; i < COUNT; i += 2)
        be->mem_free(be, mem[i], BYTES);
    CHECK(resident_kib() - before <= 8 << 10, "%ld KiB are left", resident_kib() - before);
    backend_close(&be);
}

static void write_number(const char *folder, const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0, "%s", path);
}

/* A model's files that were read fill a container up to its limit: the kernel takes them back when a job
 * wants the memory. */
TEST(files_in_memory_make_way_for_jobs)
{
    char folder[] = "/tmp/latentd-cgroup-XXXXXX", command[64];
    CHECK(mkdtemp(folder) != NULL);
    CHECK(memory_cgroup_rest(folder) == SIZE_MAX, "no limit");
    write_number(folder, "memory.max", "4294967296\n");
    write_number(folder, "memory.current", "4294000000\n");
    CHECK(memory_cgroup_rest(folder) == 967296, "nothing said of files");
    write_number(folder, "memory.stat",
                 "anon 60000000\nfile 4200000000\ninactive_anon 5\nactive_anon 7\ninactive_file 4000000000\n"
                 "active_file 100000000\nunevictable 0\n");
    CHECK(memory_cgroup_rest(folder) == 967296 + 4100000000, "%zu", memory_cgroup_rest(folder));
    write_number(folder, "memory.current", "4000000000\n");
    CHECK(memory_cgroup_rest(folder) == 4294967296, "more files than is used, read a moment later");
    write_number(folder, "memory.stat", "inactive_file 0\nactive_file 0\n");
    write_number(folder, "memory.max", "3999999999\n");
    CHECK(memory_cgroup_rest(folder) == 0, "over the limit");
    write_number(folder, "memory.max", "max\n");
    CHECK(memory_cgroup_rest(folder) == SIZE_MAX, "a cgroup without a limit");
    snprintf(command, sizeof command, "rm -rf %s", folder);
    CHECK(system(command) == 0);
}

TEST_MAIN()
