/* Attention by the tier's flash kernel: packs K and V of as many heads as HEADS_BYTES hold, once each, and
 * deals out heads and chunks of queries.
 *
 * Bytes: a head's packed keys and values (1 MB at 4096 keys of 64) are read once a chunk and stay in the
 * second-level cache for all its blocks of queries; longer ones are met in stretches of keys, each by all
 * queries of a chunk, whose outputs then wait in that cache. Keys of a text are few: those of all heads are
 * packed whole, and an item has some heads of a stretch of queries (run_text). */
#include "flash.h"

#include "thread_pool.h"
#include "tier.h"

enum {
    HEAD_MAX = 1024,
    NEAR_BYTES = 5 << 18,    /* a head that stays in the second-level cache, with room for the rest */
    STRETCH_BYTES = 1 << 19, /* of a longer head */
    WAITING_BYTES = 1 << 20, /* outputs that wait while a stretch is read */
    CHUNK = 512,             /* queries */
    PACK_GROUPS = 16,        /* groups of keys that an item packs */
    TEXT_CHUNK = 1024,       /* most queries of an item with the keys of a text */
};

struct job {
    const struct flash_kernel *kernel;
    struct pool *pool;
    tensor y, q, k, v;
    const struct attention_args *a;
    int d, groups;           /* of keys */
    size_t k_group, v_group; /* bytes */
    char *packed;
    int first, heads; /* of this pass, counted over pictures and heads */
    int shares;       /* pictures that share a packed head */
    int pack_items, chunk, chunks, stretch;
    int parts; /* of the heads */
};

static struct flash_rows rows_from(tensor x, int n, int t, int first)
{
    const size_t size = dtype_size(x.dtype);
    struct flash_rows r = {.stride = (size_t)x.ld * size};
    r.data = (const char *)x.data + ((size_t)n * (size_t)x.w + (size_t)t) * r.stride + (size_t)first * size;
    return r;
}

static char *packed_keys(const struct job *job, int head)
{
    return job->packed + (size_t)head * (size_t)job->groups * (job->k_group + job->v_group);
}

static char *packed_values(const struct job *job, int head)
{
    return packed_keys(job, head) + (size_t)job->groups * job->k_group;
}

static void pack_item(void *ctx, int item, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    int head = item / job->pack_items, first = item % job->pack_items * PACK_GROUPS;
    int n = (job->first + head) / job->a->heads, at = (job->first + head) % job->a->heads * job->d;
    for (int g = first; g < job->groups && g < first + PACK_GROUPS; g++) {
        struct flash_rows k = rows_from(job->k, n, g * FLASH_KEYS, at),
                          v = rows_from(job->v, n, g * FLASH_KEYS, at);
        job->kernel->pack(packed_keys(job, head) + (size_t)g * job->k_group,
                          packed_values(job, head) + (size_t)g * job->v_group, &k, &v,
                          min_int(FLASH_KEYS, job->k.w - g * FLASH_KEYS), job->d);
    }
}

static void run_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    int chunk = item % job->chunks, head = item / job->chunks / job->shares, heads = job->a->heads;
    int n = (job->first + head) / heads + item / job->chunks % job->shares;
    int first = chunk * job->chunk, at = (job->first + head) % heads * job->d;
    struct flash_rows y = rows_from(job->y, n, first, at);
    struct flash_item it = {
        .k = packed_keys(job, head),
        .v = packed_values(job, head),
        .keys = job->k.w,
        .d = job->d,
        .q = rows_from(job->q, n, first, at),
        .first = first,
        .queries = min_int(job->chunk, job->q.w - first),
        .stretch = job->stretch,
        .y = (char *)(uintptr_t)y.data,
        .y_stride = y.stride,
        .scale = job->a->scale,
        .causal = job->a->causal,
        .scratch = pool_scratch(job->pool, worker),
    };
    job->kernel->run(&it);
}

static size_t head_bytes(tensor k, int d)
{
    return (size_t)div_up(k.w, FLASH_KEYS) * 1024 * (size_t)(2 * flash_steps(d) + flash_tiles(d));
}

bool flash_suits(const struct backend *be, tensor y, tensor q, tensor k, tensor v,
                 const struct attention_args *a)
{
    const enum dtype type = DTYPE_BF16;
    return cpu_tier(be)->flash && y.dtype == type && q.dtype == type && k.dtype == type && v.dtype == type &&
           q.c / a->heads <= HEAD_MAX && head_bytes(k, q.c / a->heads) <= cpu_heads_bytes;
}

/* Whole blocks of queries, few enough for their outputs to wait near the core and for all threads to have
 * work. */
static int find_chunk(const struct job *job, size_t bytes)
{
    int most = CHUNK, threads = pool_threads(job->pool);
    if (bytes > NEAR_BYTES)
        most = (int)(WAITING_BYTES / (flash_scratch(job->d, FLASH_QUERIES) - flash_scratch(job->d, 0)) *
                     FLASH_QUERIES);
    int items = job->heads * job->shares, wanted = div_up(4 * threads, items);
    int chunk = div_up(div_up(job->q.w, wanted), FLASH_QUERIES) * FLASH_QUERIES;
    return min_int(chunk, most < FLASH_QUERIES ? FLASH_QUERIES : most);
}

static void run_pass(struct job *job, size_t bytes)
{
    job->chunk = find_chunk(job, bytes);
    job->chunks = div_up(job->q.w, job->chunk);
    pool_run(job->pool, job->heads * job->pack_items, pack_item, job);
    pool_run(job->pool, job->heads * job->shares * job->chunks, run_item, job);
}

/* ---- The keys of a text ---- */

static char *packed_text(const struct job *job, int n, int head)
{
    return job->packed + (size_t)(n * job->a->heads + head) * text_head(job->d);
}

static void pack_text_item(void *ctx, int item, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    int n = item / job->a->heads, head = item % job->a->heads;
    struct flash_rows k = rows_from(job->k, n, 0, head * job->d), v = rows_from(job->v, n, 0, head * job->d);
    job->kernel->pack_text(packed_text(job, n, head), &k, &v, job->k.w, job->d);
}

static void run_text_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    int chunk = item % job->chunks, part = item / job->chunks % job->parts,
        n = item / job->chunks / job->parts;
    int first = chunk * job->chunk, head = part * job->heads, at = head * job->d;
    struct flash_rows y = rows_from(job->y, n, first, at);
    struct flash_text it = {
        .packed = packed_text(job, job->shares > 1 ? 0 : n, head),
        .keys = job->k.w,
        .d = job->d,
        .heads = min_int(job->heads, job->a->heads - head),
        .queries = min_int(job->chunk, job->q.w - first),
        .q = rows_from(job->q, n, first, at),
        .y = (char *)(uintptr_t)y.data,
        .y_stride = y.stride,
        .scale = job->a->scale,
        .scratch = pool_scratch(job->pool, worker),
    };
    job->kernel->run_text(&it);
}

/* All heads of a stretch of queries an item, so that pieces of q and y that share lines are met together; of
 * short pictures fewer heads. */
static void run_text(struct job *job)
{
    const int threads = pool_threads(job->pool), wanted = threads > 1 ? div_up(4 * threads, job->q.n) : 1;
    job->chunk = div_up(div_up(job->q.w, wanted), TEXT_QUERIES) * TEXT_QUERIES;
    job->chunk = min_int(job->chunk, TEXT_CHUNK);
    job->chunks = div_up(job->q.w, job->chunk);
    job->heads = div_up(job->a->heads, div_up(wanted, job->chunks));
    job->parts = div_up(job->a->heads, job->heads);
    pool_run(job->pool, job->k.n * job->a->heads, pack_text_item, job);
    pool_run(job->pool, job->q.n * job->parts * job->chunks, run_text_item, job);
}

static bool suits_text(const struct job *job)
{
    return text_suits(job->k.w, job->d) && !job->a->causal &&
           text_head(job->d) * (size_t)(job->k.n * job->a->heads) <= cpu_heads_bytes;
}

int flash_attention(struct backend *be, tensor y, tensor q, tensor k, tensor v,
                    const struct attention_args *a)
{
    const int d = q.c / a->heads;
    const size_t bytes = head_bytes(k, d);
    const bool shared = k.n == 1 && q.n > 1;
    struct job job = {
        .kernel = cpu_tier(be)->flash,
        .pool = be->pool,
        .y = y,
        .q = q,
        .k = k,
        .v = v,
        .a = a,
        .d = d,
        .groups = div_up(k.w, FLASH_KEYS),
        .k_group = (size_t)(2 * flash_steps(d)) * 1024,
        .v_group = (size_t)flash_tiles(d) * 1024,
        .packed = ((const struct cpu_state *)be->state)->heads,
        .shares = shared ? q.n : 1,
    };
    if (q.w && suits_text(&job)) {
        run_text(&job);
        return 0;
    }
    int unit = flash_unit(d), all = div_up(k.w, unit) * unit, heads = k.n * a->heads;
    int stretch = (int)(STRETCH_BYTES / (bytes / (size_t)job.groups) * FLASH_KEYS) / unit * unit;
    job.stretch = bytes <= NEAR_BYTES ? all : stretch > unit ? stretch : unit;
    job.pack_items = div_up(job.groups, PACK_GROUPS);
    int most = (int)(cpu_heads_bytes / bytes);
    for (; q.w && job.first < heads; job.first += job.heads) {
        job.heads = min_int(most, heads - job.first);
        run_pass(&job, bytes);
    }
    return 0;
}
