/* What the checks of group_norm, group_norm_silu and layer_norm share. */
#include "norms.h"

#include <math.h>
#include <stdio.h>

struct norm_data {
    struct array x, gamma, beta;
};

static int call_op(struct backend *be, enum op_id id, tensor y, tensor x, const weight *w,
                   const struct norm_case *s, struct error *err)
{
    if (id == OP_layer_norm)
        return be->ops.layer_norm(be, y, x, w, s->eps, err);
    if (id == OP_group_norm)
        return be->ops.group_norm(be, y, x, w, s->groups, s->eps, err);
    return be->ops.group_norm_silu(be, y, x, w, s->groups, s->eps, err);
}

static struct array oracle(struct check *ck, const struct norm_case *s, const struct norm_data *d)
{
    struct array y = array_new(ck, s->n, s->h, s->w, s->c);
    weight w = pack_weight(ck, ck->ref, WEIGHT_NORM, d->gamma, d->beta, 1);
    call_op(ck->ref, ck->op->id, array_tensor(y), array_tensor(d->x), &w, s, &ck->err);
    weight_free(ck->ref, &w);
    return y;
}

/* Mean and 1/sqrt(variance + eps) of channels first .. first + count of some rows. */
static void statistics(const struct norm_case *s, const struct norm_data *d, size_t row0, size_t rows,
                       int first, int count, double *mean, double *rstd)
{
    double sum = 0, squares = 0, total = (double)rows * count;
    for (size_t row = row0; row < row0 + rows; row++)
        for (int i = first; i < first + count; i++)
            sum += (double)d->x.v[row * (size_t)s->c + (size_t)i];
    *mean = sum / total;
    for (size_t row = row0; row < row0 + rows; row++) {
        for (int i = first; i < first + count; i++) {
            double e = (double)d->x.v[row * (size_t)s->c + (size_t)i] - *mean;
            squares += e * e;
        }
    }
    *rstd = 1 / sqrt(squares / total + (double)s->eps);
}

/* An element is gamma * (x - mean) * rstd + beta. Mean and variance lose what fp32 sums over the set may
 * lose, relative to the size of the numbers without the mean; the mean itself is rounded to fp32, which the
 * size with the mean decides; the rest loses a few units; SiLU stretches by at most 1.1. A variance that
 * cancels, E[x^2] - E[x]^2, is outside of it from a mean of some hundred deviations on. */
static double element_bound(double x, double mean, double rstd, double gamma, double beta, double count)
{
    double size = (fabs(x - mean) * rstd + 1) * fabs(gamma) + fabs(beta);
    double sums = (8 * FP32_UNIT + sum_bound(count) * 2 / 3) * size;
    return 1.1 * (sums + 4 * FP32_UNIT * fabs(mean) * rstd * fabs(gamma));
}

static struct array tolerance(struct check *ck, const struct norm_case *s, const struct norm_data *d)
{
    struct array bound = array_new(ck, s->n, s->h, s->w, s->c);
    size_t rows = s->groups ? (size_t)s->h * (size_t)s->w : 1, sets = tensor_rows(array_tensor(d->x)) / rows;
    int count = s->groups ? s->c / s->groups : s->c;
    for (size_t set = 0; set < sets; set++) {
        for (int first = 0; first < s->c; first += count) {
            double mean, rstd;
            statistics(s, d, set * rows, rows, first, count, &mean, &rstd);
            for (size_t at = set * rows * (size_t)s->c; at < (set + 1) * rows * (size_t)s->c; at++) {
                int i = (int)(at % (size_t)s->c);
                if (i >= first && i < first + count)
                    bound.v[at] = (float)element_bound((double)d->x.v[at], mean, rstd, (double)d->gamma.v[i],
                                                       (double)d->beta.v[i], (double)rows * count);
            }
        }
    }
    return bound;
}

static struct norm_data make_data(struct check *ck, const struct norm_case *s)
{
    struct norm_data d;
    weights_begin(ck);
    d.x = array_random(ck, s->n, s->h, s->w, s->c, s->scale, s->mean);
    d.gamma = weight_random(ck, s->c, 1, 1, 1, 1);
    d.beta = weight_random(ck, s->c, 1, 1, 1, 1);
    return d;
}

void norm_run(struct check *ck, struct norm_case s)
{
    case_label(ck, "[%d, %d, %d, %d], %d groups, mean %g, scale %g, eps %g, view %d+%d", s.n, s.h, s.w, s.c,
               s.groups, (double)s.mean, (double)s.scale, (double)s.eps, s.first, s.gap);
    struct norm_data d = make_data(ck, &s);
    struct array want = oracle(ck, &s, &d), bound = tolerance(ck, &s, &d);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        weight w = pack_weight(ck, t->be, WEIGHT_NORM, d.gamma, d.beta, 1);
        tensor x = place(ck, d.x, ck->type, s.first, s.gap);
        tensor y = place_output(ck, t, s.n, s.h, s.w, s.c, ck->type);
        int rc = call_op(t->be, ck->op->id, y, x, &w, &s, &ck->err);
        verify(ck, t, rc, y, want.v, bound.v);
        weight_free(t->be, &w);
    }
    case_end(ck);
}

void norm_round(struct check *ck)
{
    struct norm_case s = {
        .n = rng_range(ck, 1, 3), .h = rng_range(ck, 1, 12), .w = rng_range(ck, 1, 12), .eps = 1e-5f};
    int width = rng_range(ck, 1, 24);
    s.groups = ck->op->id == OP_layer_norm ? 0 : rng_range(ck, 1, 33);
    s.c = width * (s.groups ? s.groups : rng_range(ck, 1, 60));
    s.mean = rng_one_in(ck, 3) ? 5.0f : 0.0f;
    s.scale = rng_one_in(ck, 4) ? 30.0f : 1.0f;
    s.first = rng_one_in(ck, 3) ? rng_range(ck, 0, 20) : 0;
    s.gap = rng_one_in(ck, 3) ? rng_range(ck, 0, 20) : 0;
    norm_run(ck, s);
}

void norm_golden(struct check *ck, const struct golden_case *g)
{
    const int32_t *v = g->ints;
    struct norm_case s = {.n = v[0], .h = v[1], .w = v[2], .c = v[3], .groups = v[4], .eps = g->floats[0]};
    case_label(ck, "[%d, %d, %d, %d], %d groups, eps %g", s.n, s.h, s.w, s.c, s.groups, (double)s.eps);
    struct norm_data d = {g->array[0], g->array[1], g->array[2]};
    verify_golden(ck, 0, array_tensor(oracle(ck, &s, &d)), g->array[3], 4e-6, 4e-6);
}

struct bench_call {
    struct backend *be;
    enum op_id id;
    tensor y, x;
    const weight *w;
    const struct norm_case *s;
    struct error *err;
};

static void call(void *ctx)
{
    struct bench_call *b = ctx;
    call_op(b->be, b->id, b->y, b->x, b->w, b->s, b->err);
}

void norm_bench(struct check *ck, const struct tier *t, struct norm_case s)
{
    struct norm_data d = make_data(ck, &s);
    weight w = pack_weight(ck, t->be, WEIGHT_NORM, d.gamma, d.beta, 1);
    struct bench_call b = {t->be, ck->op->id, {0}, place(ck, d.x, ck->type, 0, 0), &w, &s, &ck->err};
    b.y = place_output(ck, t, s.n, s.h, s.w, s.c, ck->type);
    char shape[80];
    snprintf(shape, sizeof shape, "%dx%dx%d", s.h, s.w, s.c);
    bench_report(ck, t, shape, bench_time(call, &b), 0,
                 2.0 * (double)dtype_size(ck->type) * (double)tensor_count(b.x));
    weight_free(t->be, &w);
}
