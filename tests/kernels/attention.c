/* attention: head sizes of the networks and odd ones, self, cross and causal, views of QKV, shared keys. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "check.h"

struct attention_case {
    int n, t, s, heads, size;
    bool causal, shared; /* shared: k and v have n = 1 */
    bool qkv;            /* q, k, v are views of one tensor (needs T = S) */
    float spread;        /* scale of q: large makes softmax sharp */
};

struct attention_data {
    struct array q, k, v;
};

static struct attention_data make_data(struct check *ck, const struct attention_case *s)
{
    int c = s->heads * s->size, kn = s->shared ? 1 : s->n;
    struct attention_data d;
    d.q = array_random(ck, s->n, 1, s->t, c, s->spread, 0);
    d.k = array_random(ck, kn, 1, s->s, c, 1, 0);
    d.v = array_random(ck, kn, 1, s->s, c, 1, 0);
    return d;
}

static struct attention_args args(const struct attention_case *s)
{
    return (struct attention_args){s->heads, 1 / sqrtf((float)s->size), s->causal};
}

static struct array oracle(struct check *ck, const struct attention_case *s, const struct attention_data *d)
{
    struct array y = array_new(ck, s->n, 1, s->t, s->heads * s->size);
    struct attention_args a = args(s);
    ck->ref->ops.attention(ck->ref, array_tensor(y), array_tensor(d->q), array_tensor(d->k),
                           array_tensor(d->v), &a, &ck->err);
    return y;
}

/* Greatest root of the sum of squares that a score of query row T has: scale * |q k|, over all keys. */
static double score_size(const struct attention_case *s, const struct attention_data *d, int n, int t,
                         int head)
{
    size_t c = (size_t)(s->heads * s->size), at = (size_t)head * (size_t)s->size;
    const float *q = d->q.v + ((size_t)n * (size_t)s->t + (size_t)t) * c + at;
    double greatest = 0;
    for (size_t j = 0; j < (size_t)s->s; j++) {
        const float *k = d->k.v + ((s->shared ? 0 : (size_t)n) * (size_t)s->s + j) * c + at;
        double sum = 0;
        for (int i = 0; i < s->size; i++)
            sum += (double)(q[i] * k[i]) * (double)(q[i] * k[i]);
        greatest = fmax(greatest, sum);
    }
    return sqrt(greatest) * (double)args(s).scale;
}

/* cuDNN's weights are at most 1 and, in fp16, lose half a unit of the smallest number where they are small:
 * that much of the sum of |v|. Ours are lifted, see kernels/cuda/attention.cuh. */
static double lost_weights(const struct check *ck, const struct attention_case *s, struct array v, int n,
                           int column)
{
    double sum = 0;
    if (ck->type != DTYPE_F16 || !ck->candidate || strcmp(ck->candidate, "cudnn") != 0)
        return 0;
    for (int j = 0; j < s->s; j++)
        sum += fabs((double)v.v[((s->shared ? 0 : n) * s->s + j) * v.c + column]);
    return 0x1p-25 * sum;
}

/* y is a weighted mean of v. An error e in a score changes its weight by the factor 1 + e, so the mean by at
 * most 2 e times the mean of |v| (M, computed by attention itself over |v|); exp and the sums lose some units
 * more. A tier that computes in 16 bits also rounds the weights to them before the second product: half a
 * unit of each, times M. One that ROUNDS_LOGS rounds their logarithms to 1/128 before that. */
static struct array tolerance(struct check *ck, const struct attention_case *s,
                              const struct attention_data *d, struct array mean, bool rounds_logs)
{
    struct array bound = array_new(ck, s->n, 1, s->t, s->heads * s->size);
    const double log_error = rounds_logs ? log(2) / 256 : 0;
    size_t i = 0;
    for (int row = 0; row < s->n * s->t; row++) {
        for (int head = 0; head < s->heads; head++) {
            double score = score_size(s, d, row / s->t, row % s->t, head) * sum_bound(s->size);
            double factor = 2 * score + sum_bound(s->s) + 32 * FP32_UNIT;
            if (ck->type != DTYPE_F32)
                factor += log_error + (ck->type == DTYPE_BF16 ? 0x1p-8 : 0x1p-11);
            for (int j = 0; j < s->size; j++, i++)
                bound.v[i] = (float)(factor * (double)mean.v[i] + 1e-30 +
                                     lost_weights(ck, s, d->v, row / s->t, head * s->size + j));
        }
    }
    return bound;
}

/* One tensor [N, 1, T, 3C] that holds q, k and v side by side. */
static struct array join(struct check *ck, const struct attention_case *s, const struct attention_data *d)
{
    size_t c = (size_t)(s->heads * s->size);
    struct array a = array_new(ck, s->n, 1, s->t, 3 * (int)c);
    for (size_t row = 0; row < (size_t)s->n * (size_t)s->t; row++) {
        for (size_t i = 0; i < c; i++) {
            a.v[row * 3 * c + i] = d->q.v[row * c + i];
            a.v[row * 3 * c + c + i] = d->k.v[row * c + i];
            a.v[row * 3 * c + 2 * c + i] = d->v.v[row * c + i];
        }
    }
    return a;
}

static void run_tier(struct check *ck, struct tier *t, const struct attention_case *s,
                     const struct attention_data *d, struct array want, struct array bound)
{
    int c = s->heads * s->size;
    tensor q, k, v;
    if (s->qkv) {
        tensor all = place(ck, join(ck, s, d), ck->type, 0, 0);
        q = tensor_channels(all, 0, c);
        k = tensor_channels(all, c, c);
        v = tensor_channels(all, 2 * c, c);
    } else {
        q = place(ck, d->q, ck->type, 0, rng_one_in(ck, 8) ? 3 : 0); /* 3: rows that are not aligned */
        k = place(ck, d->k, ck->type, 0, rng_one_in(ck, 2) ? c : 0);
        v = place(ck, d->v, ck->type, rng_one_in(ck, 2) ? c : 0, 0);
    }
    tensor y = place_output(ck, t, s->n, 1, s->t, c, ck->type);
    struct attention_args a = args(s);
    int rc = t->be->ops.attention(t->be, y, q, k, v, &a, &ck->err);
    verify(ck, t, rc, y, want.v, bound.v);
}

static void run_case(struct check *ck, struct attention_case s)
{
    if (s.spread == 0)
        s.spread = 1;
    case_label(ck, "%d x T %d, S %d, %d heads of %d%s%s%s, spread %g", s.n, s.t, s.s, s.heads, s.size,
               s.causal ? ", causal" : "", s.shared ? ", shared keys" : "", s.qkv ? ", views of QKV" : "",
               (double)s.spread);
    struct attention_data d = make_data(ck, &s);
    struct attention_data m = {d.q, d.k, array_abs(ck, d.v)};
    struct array want = oracle(ck, &s, &d), mean = oracle(ck, &s, &m);
    struct array bound = tolerance(ck, &s, &d, mean, false), logs = tolerance(ck, &s, &d, mean, true);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t))
        run_tier(ck, t, &s, &d, want, strncmp(t->name, "amx", 3) == 0 ? logs : bound);
    case_end(ck);
}

static void cases(struct check *ck)
{
    static const struct attention_case list[] = {
        {1, 1, 1, 1, 1, false, false, false, 1},
        {1, 1, 1, 1, 64, false, false, true, 1},
        {1, 3, 2, 1, 3, false, false, false, 1},
        {2, 7, 7, 3, 8, false, false, true, 1},
        {1, 77, 77, 4, 64, true, false, true, 1}, /* text encoder */
        {2, 77, 77, 3, 8, true, false, false, 1},
        {1, 2, 2, 2, 16, true, false, true, 1},
        {1, 33, 33, 1, 64, true, false, true, 4},
        {1, 64, 64, 5, 64, false, false, true, 1}, /* SD-Turbo */
        {2, 64, 77, 5, 64, false, false, false, 1},
        {2, 36, 77, 2, 64, false, true, false, 1},
        {1, 64, 64, 8, 40, false, false, true, 1}, /* SD 1.5 */
        {2, 64, 77, 8, 40, false, false, false, 1},
        {1, 30, 30, 2, 80, false, false, true, 1},
        {2, 16, 77, 2, 80, false, true, false, 1},
        {2, 9, 9, 2, 160, false, false, true, 1},
        {1, 16, 77, 2, 160, false, false, false, 1},
        {1, 64, 64, 1, 512, false, false, false, 1}, /* VAE */
        {1, 45, 45, 1, 512, false, false, true, 1},
        {1, 15, 15, 1, 128, false, false, true, 1},
        {1, 5, 130, 2, 32, false, false, false, 1},
        {1, 130, 5, 2, 32, false, false, false, 1},
        {1, 200, 300, 1, 64, false, false, false, 1},
        {3, 11, 6, 2, 12, false, true, false, 1},
        {1, 17, 19, 2, 33, false, false, false, 1},
        {1, 257, 257, 1, 16, true, false, false, 1}, /* more than one block of keys, and one behind it */
        {1, 513, 513, 1, 8, true, false, true, 1},
        {1, 300, 300, 1, 40, true, false, true, 1},
        {1, 9, 1025, 1, 64, false, false, false, 1},
        {2, 1100, 70, 1, 40, false, false, false, 1}, /* many queries */
        {1, 1030, 140, 2, 8, false, true, false, 1},
        {1, 130, 300, 1, 512, false, false, false, 1},
        {1, 7, 9, 1, 1024, false, false, false, 1},
        {2, 5, 6, 2, 321, false, false, false, 1},
        {1, 65, 128, 1, 64, false, false, false, 1}, /* edges of tiles of 64 and 128 */
        {1, 70, 77, 2, 128, false, false, false, 1},
        {2, 65, 33, 1, 160, false, false, false, 1},
        {1, 40, 70, 1, 192, false, false, false, 1},
        {2, 33, 77, 1, 512, false, true, false, 1},
        {1, 70, 70, 1, 512, true, false, true, 1},
        {1, 65, 20, 200, 40, false, false, false, 1}, /* so many heads that a GPU is full with large tiles */
        {2, 66, 66, 100, 64, true, false, true, 1},
        {1, 65, 30, 200, 80, false, false, false, 1},
        {2, 65, 31, 100, 128, false, true, false, 1},
        {2, 1100, 77, 2, 40, false, false, false, 1}, /* a text's keys: many queries */
        {1, 100, 65, 3, 40, false, false, false, 40},
        {1, 131, 80, 2, 64, false, true, false, 40},
        {2, 70, 79, 3, 80, false, false, false, 20},
        {3, 33, 66, 2, 160, false, true, false, 60},
        {1, 64, 64, 2, 64, false, false, true, 8}, /* sharp: one weight near 1 */
        {1, 64, 64, 2, 40, false, false, false, 0.001f},
        {1, 70, 700, 2, 64, false, false, false,
         40}, /* far higher scores in later blocks than in the first */
        {1, 300, 300, 1, 200, true, false, true, 40},
        {2, 33, 520, 2, 16, false, true, false, 60},
        {1, 50, 200, 2, 72, false, false, false, 40},
        {1, 400, 6000, 1, 64, false, false, false, 200}, /* more keys than a second-level cache holds */
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        run_case(ck, list[i]);
}

static void round_case(struct check *ck)
{
    static const int sizes[] = {8, 16, 24, 40, 64, 80, 96, 128, 160};
    struct attention_case s = {.n = rng_range(ck, 1, 3),
                               .t = rng_range(ck, 1, rng_one_in(ck, 6) ? 600 : 150),
                               .heads = rng_range(ck, 1, 4)};
    s.size = rng_one_in(ck, 3) ? rng_range(ck, 1, 100) : sizes[rng_range(ck, 0, 8)];
    s.qkv = rng_one_in(ck, 2);
    s.s = s.qkv ? s.t : rng_range(ck, 1, rng_one_in(ck, 6) ? 600 : 150);
    s.causal = s.s == s.t && rng_one_in(ck, 2);
    s.shared = !s.qkv && rng_one_in(ck, 3);
    s.spread = rng_one_in(ck, 4) ? 5.0f : 1.0f;
    run_case(ck, s);
}

/* ints: n t s heads size causal kn; arrays: q, k, v, y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    const int32_t *v = g->ints;
    struct attention_case s = {v[0], v[1], v[2], v[3], v[4], v[5], v[6] != v[0], false, 1};
    case_label(ck, "%d x T %d, S %d, %d heads of %d%s", s.n, s.t, s.s, s.heads, s.size,
               s.causal ? ", causal" : "");
    struct attention_data d = {g->array[0], g->array[1], g->array[2]};
    verify_golden(ck, 0, array_tensor(oracle(ck, &s, &d)), g->array[3], 2e-6, 2e-6);
}

struct bench_call {
    struct backend *be;
    tensor y, q, k, v;
    struct attention_args a;
    struct error *err;
};

static void call(void *ctx)
{
    struct bench_call *b = ctx;
    b->be->ops.attention(b->be, b->y, b->q, b->k, b->v, &b->a, b->err);
}

static void bench_shape(struct check *ck, const struct tier *t, const struct attention_case *s)
{
    struct attention_data d = make_data(ck, s);
    int c = s->heads * s->size;
    struct bench_call b = {.be = t->be, .a = args(s), .err = &ck->err};
    b.q = place(ck, d.q, ck->type, 0, 0);
    b.k = place(ck, d.k, ck->type, 0, c);
    b.v = place(ck, d.v, ck->type, c, 0);
    b.y = place_output(ck, t, s->n, 1, s->t, c, ck->type);
    char shape[80];
    snprintf(shape, sizeof shape, "%d x T %d S %d, %d heads of %d%s", s->n, s->t, s->s, s->heads, s->size,
             s->causal ? ", causal" : "");
    double size = (double)dtype_size(ck->type);
    bench_report(ck, t, shape, bench_time(call, &b), 4.0 * s->n * s->t * s->s * c,
                 size * 2 * c * ((double)s->n * s->t + (double)s->s));
}

static void bench(struct check *ck, const struct tier *t)
{
    static const struct attention_case list[] = {
        {1, 4096, 4096, 5, 64, false, false, false, 1},  {1, 1024, 1024, 10, 64, false, false, false, 1},
        {1, 256, 256, 20, 64, false, false, false, 1},   {1, 64, 64, 20, 64, false, false, false, 1},
        {1, 4096, 77, 5, 64, false, false, false, 1},    {1, 1024, 77, 10, 64, false, false, false, 1},
        {1, 77, 77, 16, 64, true, false, false, 1},      {1, 4096, 4096, 8, 40, false, false, false, 1},
        {1, 1024, 1024, 8, 80, false, false, false, 1},  {1, 256, 256, 8, 160, false, false, false, 1},
        {1, 4096, 4096, 1, 512, false, false, false, 1},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        bench_shape(ck, t, &list[i]);
}

const struct op_check check_attention = {OP_attention, cases, round_case, golden, bench, NULL};
