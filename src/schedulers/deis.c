/* DEIS (arXiv 2204.13902) in log rho, multistep, order 1 to 3: diffusers' DEISMultistepScheduler. The
 * integrals of the Lagrange polynomials are worked out in fp32 in diffusers' order: they are differences of
 * near numbers. */
#include <math.h>

#include "internal.h"

static float rho_at(const struct scheduler *s, int i)
{
    struct level l = level_at(s, i);
    return l.sigma / l.alpha;
}

/* Antiderivative in t of the polynomial in log t that is 1 at B and 0 at C. */
static float integral_of_two(float t, float b, float c)
{
    return t * (-logf(c) + logf(t) - 1) / (logf(b) - logf(c));
}

/* The same, 0 at C and D. */
static float integral_of_three(float t, float b, float c, float d)
{
    float lt = logf(t), lb = logf(b), lc = logf(c), ld = logf(d);
    float numerator = t * (lc * (ld - lt + 1) - ld * lt + ld + lt * lt - 2 * lt + 2);
    return numerator / ((lb - lc) * (lb - ld));
}

/* Coefficients of the kept outputs, newest first, before the factor alpha_t. */
static void integrals(const struct scheduler *s, int i, int order, double m[3])
{
    float t = rho_at(s, i + 1), r0 = rho_at(s, i), r1 = rho_at(s, i - 1);
    if (order == 2) {
        m[0] = (double)(integral_of_two(t, r0, r1) - integral_of_two(r0, r0, r1));
        m[1] = (double)(integral_of_two(t, r1, r0) - integral_of_two(r0, r1, r0));
        return;
    }
    float r2 = rho_at(s, i - 2);
    m[0] = (double)(integral_of_three(t, r0, r1, r2) - integral_of_three(r0, r0, r1, r2));
    m[1] = (double)(integral_of_three(t, r1, r2, r0) - integral_of_three(r0, r1, r2, r0));
    m[2] = (double)(integral_of_three(t, r2, r0, r1) - integral_of_three(r0, r2, r0, r1));
}

static int order_at(const struct scheduler *s, int i)
{
    int known = i - s->first + 1, left = s->calls - i;
    int order = s->config->solver_order < known ? s->config->solver_order : known;
    return s->config->lower_order_final && s->calls < 15 && order > left ? left : order;
}

static tensor deis_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    struct level t = level_at(s, i + 1), s0 = level_at(s, i);
    int order = order_at(s, i);
    double m[3] = {0};
    (void)noise;
    keep(p, s, solver_output(p, s, i, e, x), s->config->solver_order);
    struct update u = {.of_x = t.alpha / s0.alpha};
    if (order == 1)
        m[0] = (double)(-t.sigma * (expf(t.lambda - s0.lambda) - 1.0f));
    else
        integrals(s, i, order, m);
    for (int k = 0; k < 3 && order > 1; k++)
        m[k] *= (double)t.alpha;
    return solver_move(p, s, &u, m, order, x, (tensor){0});
}

const struct scheduler_class deis_class = {
    .name = "DEISMultistepScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .lower_order_final = true,
    .repeats_last_sigma = true,
    .reads = READS_THRESHOLDING | READS_SPACING | READS_CURVES | READS_SOLVER | READS_ALGORITHM,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .start = solver_start,
    .mix = mix_level,
    .step = deis_step,
};
