/* What the solvers in log-SNR share: the levels of a schedule, what the model's output means to them, and the
 * coefficients of DPM-Solver, DPM-Solver++ (arXiv 2206.00927, 2211.01095) and their SDE forms. */
#include <math.h>

#include "internal.h"

struct level level_at(const struct scheduler *s, int i)
{
    float sigma = s->sigmas[i], alpha = 1.0f / sqrtf(sigma * sigma + 1.0f);
    if (s->config->kind->reads & READS_EDM)
        alpha = 1;
    struct level l = {alpha, sigma * alpha, 0};
    l.lambda = logf(l.alpha) - logf(l.sigma);
    return l;
}

void mix_level(const struct scheduler *s, int i, double *of_x0, double *of_noise)
{
    struct level l = level_at(s, i);
    *of_x0 = (double)l.alpha;
    *of_noise = (double)l.sigma;
}

bool is_pp(const struct scheduler_config *c)
{
    return c->algorithm_type == DPMSOLVER_PP || c->algorithm_type == SDE_DPMSOLVER_PP;
}

bool is_sde(const struct scheduler_config *c)
{
    return c->algorithm_type == SDE_DPMSOLVER || c->algorithm_type == SDE_DPMSOLVER_PP;
}

tensor solver_output(pass *p, const struct scheduler *s, int i, tensor e, tensor x)
{
    struct level l = level_at(s, i);
    double a = (double)l.alpha, b = (double)l.sigma, coef[2] = {0, 1};
    enum prediction prediction = s->config->prediction_type;
    if (s->config->kind->reads & READS_EDM) {
        edm_x0(s, i, &coef[0], &coef[1]);
    } else if (is_pp(s->config)) {
        if (prediction == PREDICT_EPSILON)
            coef[0] = 1 / a, coef[1] = -b / a;
        else if (prediction == PREDICT_V)
            coef[0] = a, coef[1] = -b;
    } else {
        if (prediction == PREDICT_SAMPLE)
            coef[0] = 1 / b, coef[1] = -a / b;
        else if (prediction == PREDICT_V)
            coef[0] = b, coef[1] = a;
    }
    return combine_output(p, s, 2, coef, (tensor[]){x, e});
}

static struct update ode_update(bool pp, struct level t, struct level s, float h, int order, bool midpoint)
{
    float g = pp ? -h : h, scale = pp ? t.alpha : t.sigma, grow = expf(g) - 1.0f;
    struct update u = {.of_x = pp ? t.sigma / s.sigma : t.alpha / s.alpha, .d = {-scale * grow}};
    if (order > 1)
        u.d[1] = midpoint ? -0.5f * (scale * grow)
                 : pp     ? scale * (grow / h + 1.0f)
                          : -scale * (grow / h - 1.0f);
    if (order > 2)
        u.d[2] = -scale * ((grow - g) / (h * h) - 0.5f);
    return u;
}

static struct update sde_pp_update(struct level t, struct level s, float h, int order, bool midpoint)
{
    float shrink = 1.0f - expf(-2.0f * h);
    struct update u = {.of_x = t.sigma / s.sigma * expf(-h),
                       .d = {t.alpha * shrink},
                       .of_noise = t.sigma * sqrtf(1.0f - expf(-2.0f * h))};
    if (order > 1)
        u.d[1] = midpoint ? 0.5f * (t.alpha * shrink) : t.alpha * (shrink / (-2.0f * h) + 1.0f);
    if (order > 2)
        u.d[2] = t.alpha * ((shrink - 2.0f * h) / (4.0f * h * h) - 0.5f);
    return u;
}

static struct update sde_update(struct level t, struct level s, float h, int order, bool midpoint)
{
    float grow = expf(h) - 1.0f;
    struct update u = {.of_x = t.alpha / s.alpha,
                       .d = {-2.0f * (t.sigma * grow)},
                       .of_noise = t.sigma * sqrtf(expf(2.0f * h) - 1.0f)};
    if (order > 1)
        u.d[1] = midpoint ? -t.sigma * grow : -2.0f * (t.sigma * (grow / h - 1.0f));
    return u;
}

struct update solver_update(const struct scheduler_config *c, struct level t, struct level s, float h,
                            int order, bool midpoint)
{
    if (c->algorithm_type == SDE_DPMSOLVER_PP)
        return sde_pp_update(t, s, h, order, midpoint);
    if (c->algorithm_type == SDE_DPMSOLVER)
        return sde_update(t, s, h, order, midpoint);
    return ode_update(is_pp(c), t, s, h, order, midpoint);
}

tensor solver_move(pass *p, const struct scheduler *s, const struct update *u, const double m[3], int order,
                   tensor x, tensor fresh)
{
    double coef[LINCOMB_MAX] = {(double)u->of_x};
    tensor from[LINCOMB_MAX] = {x};
    int terms = 1;
    for (int k = 0; k < order; k++, terms++) {
        coef[terms] = m[k];
        from[terms] = s->kept[s->kept_count - 1 - k];
    }
    if (fresh.data) {
        coef[terms] = (double)u->of_noise;
        from[terms++] = fresh;
    }
    return combine(p, terms, coef, from);
}
