/* How much memory a job may take, and the taking of it. */
#include <stdio.h>
#include <string.h>

#include "model.h"

/* Jobs in a row that need less than half of what is held, before the rest is given back. */
enum { SMALL_JOBS = 4 };

/* The number after KEY at the beginning of a line of the file at PATH; 0 when there is none. */
static size_t number_after(const char *path, const char *key)
{
    char line[128];
    size_t value = 0;
    FILE *f = fopen(path, "r");
    if (!f)
        return 0;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0 && sscanf(line + strlen(key), "%zu", &value) == 1)
            break;
    fclose(f);
    return value;
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

/* What files have left in memory counts as used there, up to the limit, and makes way for a job. */
size_t memory_cgroup_rest(const char *folder)
{
    char path[256];
    snprintf(path, sizeof path, "%s/memory.max", folder);
    const size_t limit = cgroup_number(path);
    snprintf(path, sizeof path, "%s/memory.current", folder);
    size_t used = cgroup_number(path);
    if (limit == SIZE_MAX || used == SIZE_MAX)
        return SIZE_MAX;
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    const size_t files = number_after(path, "inactive_file ") + number_after(path, "active_file ");
    used = used > files ? used - files : 0;
    return limit > used ? limit - used : 0;
}

size_t memory_available(const struct backend *be)
{
    size_t free_bytes = number_after("/proc/meminfo", "MemAvailable:") * 1024;
    if (free_bytes == 0)
        free_bytes = SIZE_MAX;
    const size_t rest = memory_cgroup_rest("/sys/fs/cgroup");
    free_bytes = rest < free_bytes ? rest : free_bytes;
    /* Pages of a mapped file count as free to take, but taking them would have them read again at each step.
     */
    free_bytes = free_bytes > be->mapped_bytes ? free_bytes - be->mapped_bytes : 0;
    return free_bytes < be->memory_max ? free_bytes : be->memory_max;
}

size_t model_job_bytes(const struct model *m)
{
    return atomic_load(&m->mem_size);
}

void model_rest(struct model *m)
{
    if (m->mem)
        m->be->mem_free(m->be, m->mem, atomic_load(&m->mem_size));
    m->mem = NULL;
    m->small_jobs = 0;
    atomic_store(&m->mem_size, 0);
}

/* Not at the first: taking the pages anew costs a large job some per cent, and sizes may alternate. */
void model_trim(struct model *m, size_t bytes)
{
    m->small_jobs = bytes < atomic_load(&m->mem_size) / 2 ? m->small_jobs + 1 : 0;
    if (m->small_jobs >= SMALL_JOBS)
        model_rest(m);
}

int model_job_memory(struct model *m, size_t bytes, struct error *err)
{
    if (bytes > atomic_load(&m->mem_size)) {
        model_rest(m);
        int rc = m->be->mem_alloc(m->be, bytes, &m->mem, err);
        if (rc)
            return rc;
        atomic_store(&m->mem_size, bytes);
    }
    region_init(&m->region, m->mem, atomic_load(&m->mem_size));
    return 0;
}
