/* UniPC (arXiv 2302.04867), order 1 to 3, on x_0 or on the noise: a multistep predictor, and a corrector that
 * redoes the step before with what the model said at its end; diffusers' UniPCMultistepScheduler. */
#include <math.h>

#include "internal.h"

enum { MOST = 3 };

/* The right-hand side of the paper's conditions on rho: phi_(k+1)(hh) k! / B(hh) for k = 1 … COUNT, in fp32
 * in diffusers' order. */
static void conditions(float hh, float b_h, int count, double b[MOST])
{
    float phi = expm1f(hh) / hh - 1;
    float factorial = 1;
    for (int k = 1; k <= count; k++) {
        b[k - 1] = (double)(phi * factorial / b_h);
        factorial *= (float)(k + 1);
        phi = phi / hh - 1 / factorial;
    }
}

/* Solves sum over j of r[j]^i rho[j] = b[i] for i below COUNT, by elimination. */
static void solve(int count, const double r[MOST], const double b[MOST], double rho[MOST])
{
    double a[MOST][MOST + 1];
    for (int i = 0; i < count; i++) {
        for (int j = 0; j < count; j++)
            a[i][j] = pow(r[j], i);
        a[i][count] = b[i];
    }
    for (int i = 0; i < count; i++) { /* the leading minors of such a matrix are not 0 */
        for (int k = i + 1; k < count; k++) {
            double by = a[k][i] / a[i][i];
            for (int j = i; j <= count; j++)
                a[k][j] -= by * a[i][j];
        }
    }
    for (int i = count - 1; i >= 0; i--) {
        rho[i] = a[i][count];
        for (int j = i + 1; j < count; j++)
            rho[i] -= a[i][j] * rho[j];
        rho[i] /= a[i][i];
    }
}

/* The step of ORDER from call AT, whose output is the newest kept, to the next, from latents X. Corrects with
 * the output that the model gave there, or predicts where that is empty. A new tensor. */
static tensor bh_update(pass *p, const struct scheduler *s, int at, int order, tensor x, tensor output)
{
    const struct scheduler_config *c = s->config;
    struct level t = level_at(s, at + 1), s0 = level_at(s, at);
    float h = t.lambda - s0.lambda, hh = is_pp(c) ? -h : h, b_h = c->bh1 ? hh : expm1f(hh);
    double scale = (double)(is_pp(c) ? t.alpha : t.sigma);
    double r[MOST] = {0}, b[MOST] = {0}, rho[MOST] = {0.5};
    double coef[LINCOMB_MAX] = {(double)(is_pp(c) ? t.sigma / s0.sigma : t.alpha / s0.alpha)};
    tensor from[LINCOMB_MAX] = {x};
    int count = order - 1, terms = 2;
    for (int k = 0; k < order; k++)
        from[k + 1] = s->kept[s->kept_count - 1 - k];
    for (int k = 0; k < count; k++)
        r[k] = (double)((level_at(s, at - 1 - k).lambda - s0.lambda) / h);
    if (output.data)
        r[count++] = 1;
    if (count > 1) { /* with one unknown the paper and diffusers take 1/2 */
        conditions(hh, b_h, count, b);
        solve(count, r, b, rho);
    }
    coef[1] = -scale * (double)expm1f(hh);
    for (int k = 0; k < count; k++, terms++) { /* rho_k (m_k - m_0) / r_k */
        coef[terms] = -scale * (double)b_h * rho[k] / r[k];
        coef[1] -= coef[terms];
    }
    if (output.data)
        from[terms - 1] = output;
    return combine(p, terms, coef, from);
}

static bool corrects(const struct scheduler *s, int i)
{
    for (int k = 0; k < s->config->disabled; k++) {
        if (s->config->disable_corrector[k] == i - 1)
            return false;
    }
    return i > s->first;
}

static tensor unipc_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    const struct scheduler_config *c = s->config;
    tensor output = solver_output(p, s, i, e, x), corrected = {0};
    int order = c->solver_order, known = i - s->first + 1;
    (void)noise;
    if (corrects(s, i))
        corrected = bh_update(p, s, i - 1, s->last_order, s->sample, output);
    keep_sample(p, s, corrected.data ? corrected : x);
    if (corrected.data)
        tensor_free(p, &corrected);
    keep(p, s, output, c->solver_order);
    if (c->lower_order_final && order > s->calls - i)
        order = s->calls - i;
    s->last_order = order < known ? order : known;
    return bh_update(p, s, i, s->last_order, s->sample, (tensor){0});
}

const struct scheduler_class unipc_class = {
    .name = "UniPCMultistepScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .has_sigmas = true,
    .lower_order_final = true,
    .repeats_last_sigma = true,
    .reads = READS_RESCALE | READS_THRESHOLDING | READS_SPACING | READS_CURVES | READS_FINAL_SIGMA |
             READS_SOLVER | READS_UNIPC,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .start = solver_start,
    .mix = mix_level,
    .step = unipc_step,
};
