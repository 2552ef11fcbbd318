/* Sanitizer builds only: the loops of kernels/ref in which a checked program spends nearly all of its time,
 * at full speed; ref is what everything else is compared with. The linker sends every call of them here
 * (--wrap). What a call reads and writes is asked of ASan in one go for each array, which finds what it would
 * find number by number; then the same source, compiled without instrumentation (the Makefile renames its
 * symbols), does the work. Where something is poisoned, and in one call of 64 for UBSan's sake, the
 * instrumented loop runs, and says what is wrong and where. */
#include <sanitizer/asan_interface.h>

#include "../../kernels/ref/ref.h"

#define ACCUMULATE(name)                                                                                     \
    void name(float acc[REF_LANES], const void *x, enum dtype type, int c, const float *w)
#define INT8_ACCUMULATE(name)                                                                                \
    void name(int32_t acc[REF_LANES], const void *x, enum dtype type, int c, const int8_t *w, float inverse)
#define ATTENTION(name)                                                                                      \
    int name(struct backend *be, tensor y, tensor q, tensor k, tensor v, const struct attention_args *a,     \
             struct error *err)

ACCUMULATE(__real_ref_accumulate);
ACCUMULATE(__wrap_ref_accumulate);
ACCUMULATE(plain_accumulate);
INT8_ACCUMULATE(__real_ref_int8_accumulate);
INT8_ACCUMULATE(__wrap_ref_int8_accumulate);
INT8_ACCUMULATE(plain_int8_accumulate);
ATTENTION(__real_ref_attention);
ATTENTION(__wrap_ref_attention);
ATTENTION(plain_attention);

static bool poisoned(const void *at, size_t bytes)
{
    return __asan_region_is_poisoned((void *)(size_t)at, bytes) != NULL;
}

/* Whether to run the instrumented loop of a sum. */
static bool instrumented(const void *acc, const void *x, enum dtype type, int c, const void *w, size_t lanes)
{
    static _Thread_local unsigned calls;
    return calls++ % 64 == 0 || c < 1 || poisoned(acc, REF_LANES * sizeof(float)) ||
           poisoned(x, (size_t)c * dtype_size(type)) || poisoned(w, (size_t)c * lanes);
}

ACCUMULATE(__wrap_ref_accumulate)
{
    if (instrumented(acc, x, type, c, w, REF_LANES * sizeof *w))
        __real_ref_accumulate(acc, x, type, c, w);
    else
        plain_accumulate(acc, x, type, c, w);
}

INT8_ACCUMULATE(__wrap_ref_int8_accumulate)
{
    if (instrumented(acc, x, type, c, w, REF_LANES * sizeof *w))
        __real_ref_int8_accumulate(acc, x, type, c, w, inverse);
    else
        plain_int8_accumulate(acc, x, type, c, w, inverse);
}

static bool rows_poisoned(tensor x)
{
    size_t rows = tensor_rows(x);
    return rows && poisoned(x.data, ((rows - 1) * (size_t)x.ld + (size_t)x.c) * dtype_size(x.dtype));
}

/* Of attention, whole calls: the instrumented one where there is little to do. What a larger one does is the
 * same, more often. */
ATTENTION(__wrap_ref_attention)
{
    bool little = (double)q.n * q.w * k.w * q.c < 1 << 18;
    if (little || rows_poisoned(y) || rows_poisoned(q) || rows_poisoned(k) || rows_poisoned(v))
        return __real_ref_attention(be, y, q, k, v, a, err);
    return plain_attention(be, y, q, k, v, a, err);
}
