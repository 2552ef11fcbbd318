/* softmax(scale * q k^T) v without a T x S matrix (FlashAttention's order: blocks of keys, online softmax).
 *
 * K^T and V are packed as the B of the matrix micro-kernel, once, block of keys by block, for as many heads
 * as HEADS_BYTES hold. A work item is one picture, one head and up to CHUNK queries: block by block it runs
 * all its queries over the keys, a row tile at a time, so that the scores (rows x keys, 14 KB of fp32) never
 * leave the first-level cache. Per key block and query: 4 * d FLOPs a key and one exp. Where one item has all
 * queries of a head, and where a head is too long to be kept (16384 keys of 512 channels in fp32), items pack
 * for themselves, block by block.
 *
 * q, k and v are read in place, also as channel views of one QKV tensor. Sums run over keys in blocks of a
 * size that depends on the head size alone, so results do not depend on how queries are dealt out. */
#include <math.h>
#include <string.h>

#include "../ref/ref.h"
#include "thread_pool.h"
#include "tier.h"

enum { CHUNK = 1024, OUTPUT_FLOATS = 256 << 10, HEAD_MAX = 1024, PANELS_MAX = 32 };

size_t cpu_heads_bytes = HEADS_BYTES;

struct job {
    const struct gemm_kernel *g;
    const struct row_ops *rows;
    struct pool *pool;
    tensor y, q, k, v;
    const struct attention_args *a;
    int d, d_pad;         /* head size; padded to k_unit */
    int d_panels;         /* panels of nr outputs */
    int block_q, block_k; /* queries and keys of a block of scores */
    int chunk, chunks;    /* queries of an item */
    char *packed;         /* [heads][key blocks] of K^T and V; NULL: items pack */
    int first, heads;     /* of this pass, counted over pictures (of k) and heads */
    int shares;           /* pictures that share a head's keys */
};

/* Parts of a worker's scratch. */
struct memory {
    char *q, *kt, *v, *p, *row;
    float *s, *o, *max, *sum;
};

/* Bytes of a packed block. */
static size_t keys_bytes(const struct job *job)
{
    return round_up_bytes((size_t)(job->block_k * job->d_pad) * dtype_size(job->g->dtype), 256);
}

static size_t values_bytes(const struct job *job)
{
    return round_up_bytes((size_t)(job->block_k * job->d_panels * job->g->nr) * dtype_size(job->g->dtype),
                          256);
}

static size_t head_bytes(const struct job *job)
{
    return (size_t)div_up(job->k.w, job->block_k) * (keys_bytes(job) + values_bytes(job));
}

static struct memory lay_out(const struct job *job, int worker)
{
    const size_t nr = (size_t)job->g->nr, es = dtype_size(job->g->dtype), keys = (size_t)job->block_k;
    char *p = pool_scratch(job->pool, worker);
    struct memory m;
#define TAKE(field, bytes) m.field = (void *)p, p += round_up_bytes(bytes, 256)
    TAKE(q, (size_t)job->block_q * (size_t)job->d_pad * es);
    TAKE(kt, keys_bytes(job));
    TAKE(v, values_bytes(job));
    TAKE(s, keys * (size_t)job->block_q * sizeof(float));
    TAKE(p, keys * (size_t)job->block_q * es);
    TAKE(row, nr * ((size_t)job->d_pad + nr) * es);
    TAKE(o, (size_t)job->chunk * (size_t)job->d_panels * nr * sizeof(float));
    TAKE(max, (size_t)job->chunk * sizeof(float));
    TAKE(sum, (size_t)job->chunk * sizeof(float));
#undef TAKE
    return m;
}

/* Channel FIRST of row T of picture N, as the rows of X are stored. */
static const char *element(tensor x, int n, int t, int first)
{
    size_t row = (size_t)(x.n == 1 ? 0 : n) * (size_t)x.h * (size_t)x.w + (size_t)t;
    return (const char *)x.data + (row * (size_t)x.ld + (size_t)first) * dtype_size(x.dtype);
}

/* COUNT rows of X from row T on, channels [first, first + channels), into DST [count][width] of the kernel's
 * type. */
static void copy_rows(const struct job *job, char *dst, tensor x, int n, int t, int count, int first,
                      int channels, int width)
{
    struct gather g = {
        .dst = dst,
        .dst_type = job->g->dtype,
        .width = width,
        .channels = channels,
        .src = element(x, n, t, first),
        .src_type = x.dtype,
        .src_stride = (size_t)x.ld * dtype_size(x.dtype),
        .step = 1,
        .count = count,
    };
    job->rows->gather(&g);
}

static bool in_place(const struct job *job, tensor x)
{
    return x.dtype == job->g->dtype && job->d == job->d_pad;
}

/* K of KEYS keys from k0 on, as panels [d_pad (pairs)][nr keys]. */
static void pack_keys(const struct job *job, struct memory *m, int n, int head, int k0, int keys)
{
    const int nr = job->g->nr;
    const size_t es = dtype_size(job->g->dtype), panel = (size_t)job->d_pad * (size_t)nr * es;
    for (int j = 0; j < keys; j += nr) {
        int rows = min_int(nr, keys - j);
        const char *src = element(job->k, n, k0 + j, head * job->d);
        size_t stride = (size_t)job->k.ld * es;
        if (!in_place(job, job->k)) {
            copy_rows(job, m->row, job->k, n, k0 + j, rows, head * job->d, job->d, job->d_pad);
            src = m->row;
            stride = (size_t)job->d_pad * es;
        }
        job->rows->transpose((uint32_t *)(m->kt + (size_t)(j / nr) * panel), nr, src, stride, rows,
                             (int)((size_t)job->d_pad * es / 4));
    }
}

/* V of KEYS keys from k0 on, as panels [padded keys (pairs)][nr channels]; keys past the end are zeros. */
static void pack_values(const struct job *job, struct memory *m, int n, int head, int k0, int keys)
{
    const int nr = job->g->nr, padded = round_up(keys, nr);
    const size_t es = dtype_size(job->g->dtype), line = (size_t)nr * es;
    for (int p = 0; p < job->d_panels; p++) {
        int first = p * nr, channels = min_int(nr, job->d - first);
        char *dst = m->v + (size_t)p * (size_t)padded * line;
        if (job->g->dtype == DTYPE_F32) {
            copy_rows(job, dst, job->v, n, k0, keys, head * job->d + first, channels, nr);
            memset(dst + (size_t)keys * line, 0, (size_t)(padded - keys) * line);
            continue;
        }
        for (int i = 0; i < padded; i += 2) {
            int rows = i < keys ? min_int(2, keys - i) : 0;
            memset(m->row, 0, 2 * line);
            if (rows)
                copy_rows(job, m->row, job->v, n, k0 + i, rows, head * job->d + first, channels, nr);
            job->rows->interleave((uint16_t *)(dst + (size_t)i * line), (uint16_t *)m->row,
                                  (uint16_t *)(m->row + line), nr);
        }
    }
}

static void pack_block(const struct job *job, struct memory *m, int n, int head, int k0)
{
    const int keys = min_int(job->block_k, job->k.w - k0);
    pack_keys(job, m, n, head, k0, keys);
    pack_values(job, m, n, head, k0, keys);
}

/* All row tiles of one product; T has a, b, c of the first row set. */
static void run_rows(const struct gemm_kernel *g, struct gemm_tile t, int count)
{
    int tiles = (count + g->mr - 1) / g->mr;
    t.prefetch = t.b;
    for (int i = 0, done = 0; i < tiles; i++) {
        int rows = g->m_align > 1 ? min_int(g->mr, count - done) : (count - done) / (tiles - i);
        g->run(rows, &t);
        done += rows;
        t.a += (size_t)rows * t.lda;
        t.c += (size_t)rows * (size_t)g->nr;
    }
}

/* Scores of ROWS queries from q0 on: s [key panels][block_q][nr]. */
static void scores(const struct job *job, struct memory *m, int n, int head, int q0, int rows, int keys)
{
    const int nr = job->g->nr;
    const size_t es = dtype_size(job->g->dtype), zero = 0;
    struct gemm_tile t = {.tap = &zero, .taps = 1, .k = job->d_pad};
    t.lda = (size_t)job->q.ld * es;
    t.a = element(job->q, n, q0, head * job->d);
    if (!in_place(job, job->q)) {
        copy_rows(job, m->q, job->q, n, q0, rows, head * job->d, job->d, job->d_pad);
        t.lda = (size_t)job->d_pad * es;
        t.a = m->q;
    }
    for (int j = 0; j < keys; j += nr) {
        t.b = m->kt + (size_t)j * (size_t)job->d_pad * es;
        t.c = m->s + (size_t)j * (size_t)job->block_q;
        t.half = keys - j <= nr / 2;
        run_rows(job->g, t, rows);
    }
}

/* o += p v for ROWS queries whose first is number AT of the item. */
static void outputs(const struct job *job, struct memory *m, int at, int rows, int keys, bool add)
{
    const size_t nr = (size_t)job->g->nr, es = dtype_size(job->g->dtype);
    const int panels = (keys + job->g->nr - 1) / job->g->nr;
    size_t tap[PANELS_MAX];
    for (int i = 0; i < panels; i++)
        tap[i] = (size_t)i * (size_t)job->block_q * nr * es;
    struct gemm_tile t = {.tap = tap, .taps = panels, .k = job->g->nr, .lda = nr * es, .add = add};
    for (int p = 0; p < job->d_panels; p++) {
        t.half = job->d - p * job->g->nr <= job->g->nr / 2;
        t.a = job->g->dtype == DTYPE_F32 ? (const char *)m->s : m->p;
        t.b = m->v + (size_t)p * (size_t)panels * nr * nr * es;
        t.c = m->o + ((size_t)p * (size_t)job->chunk + (size_t)at) * nr;
        run_rows(job->g, t, rows);
    }
}

/* One block of queries against one block of keys. AT: the first query's number in the item; q0, k0: in the
 * picture. */
static void run_block(const struct job *job, struct memory *m, int n, int head, int at, int q0, int rows,
                      int k0, int keys)
{
    bool causal = job->a->causal;
    if (causal && k0 > q0 + rows - 1)
        return;
    scores(job, m, n, head, q0, rows, keys);
    struct softmax_block b = {
        .s = m->s,
        .p = job->g->dtype == DTYPE_F32 ? (void *)m->s : (void *)m->p,
        .p_type = job->g->dtype,
        .rows = rows,
        .keys = keys,
        .panel_rows = job->block_q,
        .scale = job->a->scale,
        .causal_first = causal ? q0 - k0 : keys,
        .max = m->max + at,
        .sum = m->sum + at,
        .o = m->o + (size_t)at * (size_t)job->g->nr,
        .o_panels = k0 > 0 ? job->d_panels : 0,
        .o_panel_rows = job->chunk,
    };
    job->rows->softmax(&b);
    outputs(job, m, at, rows, keys, k0 > 0);
}

/* Makes M's K^T and V those of the block from key k0 on, of the HEAD-th of this pass. */
static void use_keys(const struct job *job, struct memory *m, int head, int k0)
{
    const size_t block = (size_t)(k0 / job->block_k);
    m->kt = job->packed + (size_t)head * head_bytes(job) + block * (keys_bytes(job) + values_bytes(job));
    m->v = m->kt + keys_bytes(job);
}

static void pack_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    const int blocks = div_up(job->k.w, job->block_k), heads = job->a->heads, head = item / blocks,
              k0 = item % blocks * job->block_k;
    struct memory m = lay_out(job, worker);
    use_keys(job, &m, head, k0);
    pack_block(job, &m, (job->first + head) / heads, (job->first + head) % heads, k0);
}

static void run_item(void *ctx, int item, int worker)
{
    const struct job *job = ctx;
    struct memory m = lay_out(job, worker);
    const int of = item / job->chunks / job->shares, heads = job->a->heads,
              n = (job->first + of) / heads + item / job->chunks % job->shares,
              head = (job->first + of) % heads;
    int q0 = item % job->chunks * job->chunk, count = min_int(job->chunk, job->q.w - q0), keys_all = job->k.w;
    for (int i = 0; i < count; i++) {
        m.max[i] = -INFINITY;
        m.sum[i] = 0;
    }
    if (job->g->begin)
        job->g->begin();
    for (int k0 = 0; k0 < keys_all; k0 += job->block_k) {
        int keys = min_int(job->block_k, keys_all - k0);
        if (job->a->causal && k0 > q0 + count - 1)
            break;
        if (job->packed)
            use_keys(job, &m, of, k0);
        else
            pack_block(job, &m, n, head, k0);
        for (int at = 0; at < count; at += job->block_q)
            run_block(job, &m, n, head, at, q0 + at, min_int(job->block_q, count - at), k0, keys);
    }
    if (job->g->end)
        job->g->end();
    for (int i = 0; i < count; i++)
        job->rows->output((char *)(uintptr_t)element(job->y, n, q0 + i, head * job->d), job->y.dtype,
                          m.o + (size_t)i * (size_t)job->g->nr, (size_t)job->chunk * (size_t)job->g->nr,
                          job->g->nr, job->d, 1.0f / m.sum[i]);
}

static void run_passes(struct job *job, char *room)
{
    const int all = job->k.n * job->a->heads, fit = (int)(cpu_heads_bytes / head_bytes(job));
    job->packed = fit && job->chunks * job->shares > 1 ? room : NULL;
    const int most = job->packed ? min_int(fit, all) : all;
    for (; job->first < all; job->first += job->heads) {
        job->heads = min_int(most, all - job->first);
        if (job->packed)
            pool_run(job->pool, job->heads * div_up(job->k.w, job->block_k), pack_item, job);
        pool_run(job->pool, job->heads * job->shares * job->chunks, run_item, job);
    }
}

int cpu_attention(struct backend *be, tensor y, tensor q, tensor k, tensor v, const struct attention_args *a,
                  struct error *err)
{
    const struct tier *tier = cpu_tier(be);
    const struct gemm_kernel *g = tier->gemm;
    int d = q.c / a->heads, threads = pool_threads(be->pool);
    if (d > HEAD_MAX) /* larger than the scratch is laid out for; no known model has such a head */
        return ref_attention(be, y, q, k, v, a, err);
    /* [N, H, W, C] is as good as [N, 1, T, C]. */
    q = tensor_as_tokens(q), k = tensor_as_tokens(k), v = tensor_as_tokens(v), y = tensor_as_tokens(y);
    if (flash_suits(be, y, q, k, v, a))
        return flash_attention(be, y, q, k, v, a);
    struct job job = {
        .g = g,
        .rows = tier->rows,
        .pool = be->pool,
        .y = y,
        .q = q,
        .k = k,
        .v = v,
        .a = a,
        .d = d,
        .d_pad = round_up(d, g->k_unit),
        .d_panels = (d + g->nr - 1) / g->nr,
        .block_q = g->mr,
        .block_k = d <= 256 ? 256 : 128,
        .shares = k.n == 1 ? q.n : 1,
    };
    int most = min_int(CHUNK, OUTPUT_FLOATS / (job.d_panels * g->nr));
    int wanted = (2 * threads + q.n * a->heads - 1) / (q.n * a->heads);
    int chunk = (q.w + wanted - 1) / wanted;
    chunk = min_int(chunk, most);
    /* Whole blocks of queries, so that only the last tile of a picture is short. */
    job.chunk = round_up(chunk, job.block_q);
    if (job.chunk > most && most > job.block_q)
        job.chunk -= job.block_q;
    job.chunks = (q.w + job.chunk - 1) / job.chunk;
    if (q.w > 0)
        run_passes(&job, ((const struct cpu_state *)be->state)->heads);
    return 0;
}
