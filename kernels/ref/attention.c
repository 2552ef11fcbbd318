/* softmax(scale * q k^T) v for each picture and head: q [N, 1, T, C], k and v [N or 1, 1, S, C] -> y [N, 1,
 * T, C]. Two walks over the keys, so that no S numbers have to be kept: the first finds the greatest score,
 * the second sums. */
#include <math.h>

#include "ref.h"

enum { HEAD_MAX = 1024 };

struct head {
    tensor q, k, v;
    float scale;
    int first, size; /* channels of this head */
};

static void load_head(const struct head *hd, tensor x, size_t row, float out[HEAD_MAX])
{
    for (int i = 0; i < hd->size; i++)
        out[i] = half_load(ref_row(x, row), x.dtype, (size_t)(hd->first + i));
}

/* Eight sums side by side: as exact as one chain and better, and a compiler can keep them in a vector. */
static float dot(const float *a, const float *b, int n)
{
    float sum[8] = {0};
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++)
            sum[j] += a[i + j] * b[i + j];
    for (; i < n; i++)
        sum[i % 8] += a[i] * b[i];
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

static float score(const struct head *hd, const float *q, size_t key)
{
    float k[HEAD_MAX];
    load_head(hd, hd->k, key, k);
    return hd->scale * dot(q, k, hd->size);
}

/* Query row QROW against key rows key0 .. key0 + count; the result into OUT. */
static void attend(const struct head *hd, size_t qrow, size_t key0, int count, float out[HEAD_MAX])
{
    float q[HEAD_MAX], v[HEAD_MAX], top = -INFINITY;
    double total = 0;
    load_head(hd, hd->q, qrow, q);
    for (int s = 0; s < count; s++)
        top = fmaxf(top, score(hd, q, key0 + (size_t)s));
    for (int i = 0; i < hd->size; i++)
        out[i] = 0;
    for (int s = 0; s < count; s++) {
        float p = expf(score(hd, q, key0 + (size_t)s) - top);
        load_head(hd, hd->v, key0 + (size_t)s, v);
        for (int i = 0; i < hd->size; i++)
            out[i] += p * v[i];
        total += (double)p;
    }
    for (int i = 0; i < hd->size; i++)
        out[i] = (float)((double)out[i] / total);
}

int ref_attention(struct backend *be, tensor y, tensor q, tensor k, tensor v, const struct attention_args *a,
                  struct error *err)
{
    (void)be;
    struct head hd = {q, k, v, a->scale, 0, q.c / a->heads};
    float out[HEAD_MAX];
    if (hd.size > HEAD_MAX)
        return error_set(err, ERR_UNSUPPORTED, "attention: head size %d is above %d", hd.size, HEAD_MAX);
    for (size_t row = 0; row < tensor_rows(q); row++) {
        size_t n = row / (size_t)q.w;
        int t = (int)(row % (size_t)q.w);
        size_t key0 = k.n == 1 ? 0 : n * (size_t)k.w;
        for (hd.first = 0; hd.first < q.c; hd.first += hd.size) {
            attend(&hd, row, key0, a->causal && t + 1 < k.w ? t + 1 : k.w, out);
            for (int i = 0; i < hd.size; i++)
                half_store(ref_row(y, row), y.dtype, (size_t)(hd.first + i), out[i]);
        }
    }
    return 0;
}
