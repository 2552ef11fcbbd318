/* Golden values: what diffusers and transformers computed, and the comparison. The files are written by
 * scripts/export_goldens.py; format: "LDGOLD01", u32 count, and for each array u8 name length, name, u8 type
 * (0 f32, 1 i32), u8 dims, u32 shape[dims], data, all little-endian. */
#ifndef LATENTD_GOLDEN_H
#define LATENTD_GOLDEN_H

#include "backend.h"
#include "region.h"
#include "test.h"
#include "tier.h"

#define HELPER __attribute__((unused)) static

struct golden_array {
    char name[64];
    int dims, shape[4];
    size_t count;
    float *f;   /* type f32, else NULL */
    int32_t *i; /* type i32, else NULL */
};

struct golden {
    struct golden_array *array;
    int count;
};

/* Job memory of a stage. A program that runs larger models raises it. */
static size_t golden_memory = 64 << 20;

static bool read_array(FILE *f, struct golden_array *a)
{
    unsigned char len, head[2];
    uint32_t shape[4];
    if (fread(&len, 1, 1, f) != 1 || len >= sizeof(a->name) || fread(a->name, 1, len, f) != len ||
        fread(head, 1, 2, f) != 2 || head[0] > 1 || head[1] > 4 || fread(shape, 4, head[1], f) != head[1])
        return false;
    a->dims = head[1];
    a->count = 1;
    for (int i = 0; i < a->dims; i++) {
        a->shape[i] = (int)shape[i];
        a->count *= shape[i];
    }
    void *data = malloc(4 * a->count);
    if (!data)
        return false;
    if (head[0] == 0)
        a->f = data;
    else
        a->i = data;
    return fread(data, 4, a->count, f) == a->count;
}

HELPER void golden_close(struct golden *g)
{
    for (int i = 0; i < g->count; i++) {
        free(g->array[i].f);
        free(g->array[i].i);
    }
    free(g->array);
    *g = (struct golden){0};
}

/* Reads FOLDER/expected.golden. False, and a failed check, when it cannot. */
HELPER bool golden_open(struct golden *g, const char *folder)
{
    char path[512], magic[8];
    uint32_t count = 0;
    *g = (struct golden){0};
    snprintf(path, sizeof(path), "%s/expected.golden", folder);
    FILE *f = fopen(path, "rb");
    bool ok = f && fread(magic, 1, 8, f) == 8 && memcmp(magic, "LDGOLD01", 8) == 0 &&
              fread(&count, 4, 1, f) == 1 && count < 1000 &&
              (g->array = calloc(count + 1, sizeof(*g->array)));
    for (uint32_t i = 0; ok && i < count; i++)
        ok = read_array(f, &g->array[g->count++]);
    if (f)
        fclose(f);
    if (!ok)
        golden_close(g);
    return CHECK(ok, "%s is missing or broken", path);
}

/* NULL when there is no such array. The name is RUN.NAME, or NAME when RUN is negative. */
HELPER const struct golden_array *golden_find(const struct golden *g, int run, const char *name)
{
    char full[64];
    if (run < 0)
        snprintf(full, sizeof(full), "%s", name);
    else
        snprintf(full, sizeof(full), "%d.%s", run, name);
    for (int i = 0; i < g->count; i++)
        if (strcmp(g->array[i].name, full) == 0)
            return &g->array[i];
    return NULL;
}

/* A backend to test on, with memory for one pass. */
struct stage {
    const char *name; /* "ref", "avx2", …: the tier */
    struct backend *be;
    struct region mem;
    struct error err;
    pass p;
};

/* Empties the stage's memory and error for the next run. */
HELPER void stage_reset(struct stage *s)
{
    region_reset(&s->mem);
    s->err = (struct error){0};
}

/* Fills the stage's memory with NaN: nothing may be read before it is written. */
HELPER void stage_poison(struct stage *s, void *memory)
{
    void *host = s->be->upload ? malloc(golden_memory) : memory;
    if (!CHECK(host != NULL))
        return;
    memset(host, 0xff, golden_memory);
    if (s->be->upload) {
        CHECK(s->be->upload(s->be, memory, host, golden_memory, &s->err) == 0, "%s", s->err.msg);
        free(host);
    }
}

/* Calls FN once for each backend tier this machine has, and for those that emulate what it lacks; prints the
 * tiers it cannot run. With GOLDEN_TIER set in the environment: for that tier alone. */
HELPER void golden_each_tier(void (*fn)(struct stage *s, const char *folder), const char *folder)
{
    static struct stage s; /* a region's table of blocks is too large for the stack */
    for (int i = 0; i < TIER_NAMES; i++) {
        struct backend_options opt = tier_options(tier_names[i]);
        void *memory = NULL;
        if (!tier_wanted(tier_names[i]))
            continue;
        s = (struct stage){.name = tier_names[i]};
        if (backend_open(&s.be, &opt, &s.err) < 0) {
            printf("  %s: not on this machine (%s)\n", tier_names[i], s.err.msg);
            CHECK(s.err.code == ERR_UNSUPPORTED && !getenv("GOLDEN_TIER"), "%s", s.err.msg);
            continue;
        }
        if (CHECK(s.be->mem_alloc(s.be, golden_memory, &memory, &s.err) == 0, "%s", s.err.msg)) {
            stage_poison(&s, memory);
            region_init(&s.mem, memory, golden_memory);
            s.p = (pass){.be = s.be, .mem = &s.mem, .err = &s.err};
            fn(&s, folder);
            s.be->mem_free(s.be, memory, golden_memory);
        }
        backend_close(&s.be);
    }
}

/* Copies X (of COUNT numbers) to the host and CHECKs its distance from WANT: relative L2 at most 1e-4 where
 * the tier computes in fp32, at most 1.5 times BF16_ERROR (the error of the reference library's own bf16 run)
 * where it computes in 16 bits. Where that error is ten times what a rounding costs, the network is a chaotic
 * one, and the reference's one run says no more than about what another's error is: 2.5 times. Prints the
 * distance. */
HELPER void golden_compare(struct stage *s, const char *what, tensor x, const struct golden_array *want,
                           float bf16_error)
{
    if (!CHECK(s->err.code == 0, "%s on %s: %s", what, s->name, s->err.msg) ||
        !CHECK(tensor_count(x) == want->count, "%s on %s: %zu numbers, expected %zu", what, s->name,
               tensor_count(x), want->count))
        return;
    float *got = malloc(want->count * sizeof(float));
    if (!CHECK(got != NULL) || !CHECK(tensor_to_host(&s->p, x, got) == 0, "%s", s->err.msg)) {
        free(got);
        return;
    }
    double difference = 0, size = 0;
    for (size_t i = 0; i < want->count; i++) {
        difference += ((double)got[i] - want->f[i]) * ((double)got[i] - want->f[i]);
        size += (double)want->f[i] * want->f[i];
    }
    double distance = sqrt(difference / size),
           limit = s->be->dtype == DTYPE_F32 ? 1e-4 : (bf16_error > 0.02f ? 2.5 : 1.5) * (double)bf16_error;
    printf("  %-19s %-24s relative L2 %.2e, allowed %.2e\n", s->name, what, distance, limit);
    CHECK(distance <= limit, "%s on %s: relative L2 %.3e, allowed %.3e", what, s->name, distance, limit);
    free(got);
}

#endif
