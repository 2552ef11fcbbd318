/* Compares what a kernel gave with what it should have given, and says where it did not. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

double sum_bound(double n)
{
    return (8 + 3 * sqrt(n)) * FP32_UNIT;
}

double tensor_core_bound(const struct check *ck, double n)
{
    return ck->type == DTYPE_F32 ? 0 : n / 8 * FP32_UNIT;
}

struct array bound_units(struct check *ck, struct array want, double units)
{
    struct array bound = array_new(ck, want.n, want.h, want.w, want.c);
    for (size_t i = 0; i < array_count(want); i++)
        bound.v[i] = (float)(units * FP32_UNIT * fabs((double)want.v[i]));
    return bound;
}

/* The first byte of [from, to) that is not 0xff any more, or -1. */
static long first_touched(const char *memory, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++)
        if ((unsigned char)memory[i] != 0xff)
            return (long)i;
    return -1;
}

/* Bands of every placed tensor, gaps between the rows of an output, and the contents of inputs. */
static const char *find_damage(const struct check *ck)
{
    for (const struct block *b = ck->placed; b; b = b->next) {
        if (first_touched(b->memory, 0, BAND) >= 0)
            return "wrote before a tensor";
        if (first_touched(b->memory, BAND + b->bytes, b->bytes + 2 * BAND) >= 0)
            return "wrote behind a tensor";
        if (b->copy && memcmp(b->copy, b->memory + BAND, b->bytes) != 0)
            return "changed an input";
        size_t size = dtype_size(b->view.dtype), pitch = (size_t)b->view.ld * size,
               used = (size_t)b->view.c * size;
        for (size_t row = 0; !b->copy && b->view.ld > b->view.c && row < tensor_rows(b->view); row++)
            if (first_touched(b->memory + BAND, row * pitch + used, (row + 1) * pitch) >= 0)
                return "wrote between the rows of the output";
    }
    return NULL;
}

/* Half a unit in the last place of TYPE at V, and half the smallest number it can hold. */
static double store_error(enum dtype type, double v)
{
    if (type == DTYPE_BF16)
        return fabs(v) * 0x1p-8 * 1.02 + 0x1p-126;
    if (type == DTYPE_F16)
        return fabs(v) * 0x1p-11 * 1.02 + 0x1p-25;
    return fabs(v) * FP32_UNIT + 0x1p-126;
}

static void score(struct check *ck, struct tier *t, const char *what)
{
    t->cases++;
    if (!what) {
        ck->passed++;
        return;
    }
    ck->failed++;
    if (++t->failed <= 5)
        fprintf(stderr, "FAIL %s, tier %s, %s: %s\n", op_names[ck->op->id], t->name, ck->label, what);
    if (t->failed == 6)
        fprintf(stderr, "FAIL %s, tier %s: more failures, not shown\n", op_names[ck->op->id], t->name);
}

/* The slot's own error or damage around the tensors; WHAT has room for SIZE. */
static const char *call_failure(struct check *ck, int rc, char *what, size_t size)
{
    const char *damage = find_damage(ck);
    if (rc || ck->err.code)
        snprintf(what, size, "returned %d: %.300s", rc, ck->err.msg);
    else if (damage)
        snprintf(what, size, "%s", damage);
    ck->err.code = 0;
    return *what ? what : NULL;
}

/* Share of the tolerance that element GOT uses; infinite when only one of them is a NaN. */
static double share(double got, double want, double bound)
{
    if (isnan(got) && isnan(want))
        return 0;
    double error = got == want ? 0 : fabs(got - want);
    return isnan(error) ? INFINITY : error / bound;
}

void verify(struct check *ck, struct tier *t, int rc, tensor got, const float *want, const float *bound)
{
    char what[400] = "";
    double worst = 0;
    size_t wrong = 0, count = tensor_count(got);
    if (!rc) /* the device may say only now that a kernel failed */
        rc = fetch_placed(ck, &got);
    if (rc) {
        score(ck, t, call_failure(ck, rc, what, sizeof what));
        block_free_all(&ck->placed);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        size_t row = i / (size_t)got.c, c = i % (size_t)got.c;
        double g = (double)half_load(got.data, got.dtype, row * (size_t)got.ld + c), w = (double)want[i];
        double s = share(g, w, (double)bound[i] + store_error(got.dtype, w));
        if (s > 1 && wrong++ == 0)
            snprintf(what, sizeof what, "element [%zu, %zu, %zu, %zu] is %.9g, should be %.9g within %.3g",
                     row / (size_t)got.w / (size_t)got.h, row / (size_t)got.w % (size_t)got.h,
                     row % (size_t)got.w, c, g, w, (double)bound[i] + store_error(got.dtype, w));
        worst = fmax(worst, s);
    }
    if (wrong)
        snprintf(what + strlen(what), sizeof what - strlen(what), " (%zu of %zu wrong)", wrong, count);
    t->worst = fmax(t->worst, worst);
    score(ck, t, call_failure(ck, rc, what, sizeof what));
    block_free_all(&ck->placed);
}

void verify_bytes(struct check *ck, struct tier *t, int rc, const void *got, const void *want, size_t bytes)
{
    char what[400] = "";
    const unsigned char *g = got, *w = want;
    if (!rc)
        rc = fetch_placed(ck, NULL);
    for (size_t i = 0; i < bytes && !*what; i++)
        if (g[i] != w[i])
            snprintf(what, sizeof what, "byte %zu is %d, should be %d", i, g[i], w[i]);
    score(ck, t, call_failure(ck, rc, what, sizeof what));
    block_free_all(&ck->placed);
}

void verify_golden(struct check *ck, int rc, tensor got, struct array want, double atol, double rtol)
{
    float *bound = case_alloc(ck, array_count(want) * sizeof(float));
    for (size_t i = 0; i < array_count(want); i++)
        bound[i] = (float)(atol + rtol * fabs((double)want.v[i]));
    if (tensor_count(got) != array_count(want)) {
        score(ck, &ck->golden, "the golden has another shape");
        return;
    }
    verify(ck, &ck->golden, rc, got, want.v, bound);
}
