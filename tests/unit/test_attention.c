/* Bits of attention: the same with any number of threads, in a batch or alone, and wherever rows lie. */
#include <math.h>

#include "../kernels/cpu/cpu.h"
#include "backend.h"
#include "half.h"
#include "ops.h"
#include "test.h"

struct shape {
    int n, t, s, heads, d;
    bool causal, shared; /* SHARED: all pictures have the keys of one */
};

/* [N, 1, T, C], rows LD numbers apart, NaN between them; the caller frees its data. */
static tensor make(const struct backend *be, int n, int t, int c, int ld, unsigned seed)
{
    const size_t count = (size_t)n * (size_t)t * (size_t)ld, size = dtype_size(be->dtype);
    char *data = aligned_alloc(64, (count * size + 63) / 64 * 64);
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        float v = (int)(i % (size_t)ld) < c ? (float)(int)(seed >> 8) / (float)(1 << 23) - 1.0f : NAN;
        const uint16_t half = bf16_from_f32(v);
        if (be->dtype == DTYPE_BF16)
            memcpy(data + 2 * i, &half, 2);
        else
            memcpy(data + 4 * i, &v, 4);
    }
    return (tensor){.n = n, .h = 1, .w = t, .c = c, .ld = ld, .dtype = be->dtype, .data = data};
}

static tensor picture(tensor x, int i)
{
    if (x.n == 1)
        return x;
    x.data = (char *)x.data + (size_t)i * (size_t)x.w * (size_t)x.ld * dtype_size(x.dtype);
    x.n = 1;
    return x;
}

static bool same_rows(tensor a, tensor b)
{
    const size_t size = dtype_size(a.dtype);
    for (size_t r = 0; r < tensor_rows(a); r++)
        if (memcmp((const char *)a.data + r * (size_t)a.ld * size,
                   (const char *)b.data + r * (size_t)b.ld * size, (size_t)a.c * size))
            return false;
    return true;
}

static struct backend *open_tier(const char *isa, int threads)
{
    struct backend_options opt = {.kind = "cpu", .isa = isa, .threads = threads};
    struct error err = {0};
    struct backend *be = NULL;
    return backend_open(&be, &opt, &err) ? NULL : be;
}

static void attend(struct backend *be, const struct shape *s, tensor y, tensor q, tensor k, tensor v)
{
    struct error err = {0};
    const struct attention_args a = {.heads = s->heads, .causal = s->causal, .scale = 1 / sqrtf((float)s->d)};
    CHECK(be->ops.attention(be, y, q, k, v, &a, &err) == 0, "%s: %s", be->tier, err.msg);
}

static void check_shape(const char *isa, const struct shape *s)
{
    struct backend *one = open_tier(isa, 1), *three = open_tier(isa, 3);
    const int c = s->heads * s->d, kn = s->shared ? 1 : s->n;
    if (one && three) {
        tensor q = make(one, s->n, s->t, c, c, 1), far = make(one, s->n, s->t, c, 3 * c + 32, 9);
        tensor k = make(one, kn, s->s, c, c, 2), v = make(one, kn, s->s, c, c, 3);
        tensor want = make(one, s->n, s->t, c, c, 4), got = make(one, s->n, s->t, c, c + 32, 5);
        for (size_t r = 0; r < tensor_rows(q); r++)
            memcpy((char *)far.data + r * (size_t)far.ld * dtype_size(q.dtype),
                   (const char *)q.data + r * (size_t)c * dtype_size(q.dtype),
                   (size_t)c * dtype_size(q.dtype));
        attend(one, s, want, q, k, v);
        attend(three, s, got, far, k, v);
        CHECK(same_rows(want, got), "%s: %d x %d queries, %d keys, %d heads of %d: threads", isa, s->n, s->t,
              s->s, s->heads, s->d);
        for (int i = 0; i < s->n; i++) {
            attend(three, s, picture(got, i), picture(q, i), picture(k, i), picture(v, i));
            CHECK(same_rows(picture(want, i), picture(got, i)),
                  "%s: %d x %d queries, %d keys, %d heads of %d: picture %d alone", isa, s->n, s->t, s->s,
                  s->heads, s->d, i);
        }
        tensor all[] = {q, far, k, v, want, got};
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
            free(all[i].data);
    }
    backend_close(&one);
    backend_close(&three);
}

TEST(bits_do_not_depend_on_threads_batch_or_distances)
{
    static const struct shape shapes[] = {
        {2, 300, 77, 8, 40, false, false},  {2, 300, 77, 5, 64, false, true},
        {3, 70, 77, 8, 80, false, true},    {2, 33, 80, 8, 160, false, false},
        {1, 64, 65, 20, 64, false, true},   {2, 300, 300, 3, 40, false, false},
        {2, 130, 257, 2, 64, false, false}, {2, 77, 77, 3, 64, true, false},
        {2, 100, 100, 2, 80, false, false}, {2, 40, 90, 1, 512, false, false},
        {1, 65, 50, 3, 24, false, false}};
    for (int i = 0; cpu_tier_name(i); i++)
        for (size_t k = 0; k < sizeof shapes / sizeof shapes[0]; k++)
            check_shape(cpu_tier_name(i), &shapes[k]);
}

TEST_MAIN()
