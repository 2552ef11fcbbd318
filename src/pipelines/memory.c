/* How much memory a job may take, and the taking of it. */
#include <stdio.h>
#include <string.h>

#include "model.h"

/* The number after KEY in /proc/meminfo, in bytes; 0 when it cannot be read. */
static size_t meminfo(const char *key)
{
    char line[128];
    size_t kib = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    if (!f)
        return 0;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0 && sscanf(line + strlen(key), ": %zu", &kib) == 1)
            break;
    fclose(f);
    return kib * 1024;
}

/* A number from a cgroup file; SIZE_MAX for "max" or when there is no such file. */
static size_t cgroup_number(const char *path)
{
    size_t value = SIZE_MAX;
    FILE *f = fopen(path, "r");
    if (!f)
        return SIZE_MAX;
    if (fscanf(f, "%zu", &value) != 1)
        value = SIZE_MAX;
    fclose(f);
    return value;
}

size_t memory_available(const struct backend *be)
{
    size_t free_bytes = meminfo("MemAvailable");
    if (free_bytes == 0)
        free_bytes = SIZE_MAX;
    size_t limit = cgroup_number("/sys/fs/cgroup/memory.max");
    size_t used = cgroup_number("/sys/fs/cgroup/memory.current");
    if (limit != SIZE_MAX && used != SIZE_MAX) {
        size_t rest = limit > used ? limit - used : 0;
        if (rest < free_bytes)
            free_bytes = rest;
    }
    return free_bytes < be->memory_max ? free_bytes : be->memory_max;
}

int model_job_memory(struct model *m, size_t bytes, struct error *err)
{
    size_t have = atomic_load(&m->mem_size);
    if (bytes > have) {
        if (m->mem)
            m->be->mem_free(m->be, m->mem, have);
        m->mem = NULL;
        atomic_store(&m->mem_size, 0);
        int rc = m->be->mem_alloc(m->be, bytes, &m->mem, err);
        if (rc)
            return rc;
        atomic_store(&m->mem_size, bytes);
    }
    region_init(&m->region, m->mem, atomic_load(&m->mem_size));
    return 0;
}
