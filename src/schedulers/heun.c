/* Heun's method (arXiv 2206.00364, algorithm 1 without churn): an Euler step, then the same step again along
 * the mean of the derivatives at both ends; diffusers' HeunDiscreteScheduler. Two calls a step but the last.
 */
#include "internal.h"

static int heun_start(struct scheduler *s, struct error *err)
{
    return k_start_twofold(s, NULL, err);
}

static tensor heun_scale_input(pass *p, const struct scheduler *s, int i, tensor x)
{
    return scale_by_sigma(p, (double)s->sigmas[(i + 1) / 2], x);
}

/* (x - x_0) / sigma, with x_0 clipped where the config says so. A new tensor. */
static tensor derivative(pass *p, const struct scheduler *s, double sigma, tensor e, tensor x)
{
    const struct scheduler_config *c = s->config;
    double d[2];
    k_derivative(c->prediction_type, sigma, d);
    if (!c->clip_sample)
        return combine_output(p, s, 2, d, (tensor[]){x, e});
    tensor raw = combine_output(p, s, 2, (double[]){1 - sigma * d[0], -sigma * d[1]}, (tensor[]){x, e});
    tensor x0 = clip(p, raw, (float)-c->clip_sample_range, (float)c->clip_sample_range);
    tensor y = combine(p, 2, (double[]){1 / sigma, -1 / sigma}, (tensor[]){x, x0});
    tensor_free(p, &raw);
    tensor_free(p, &x0);
    return y;
}

static tensor heun_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    int k = i / 2;
    double sigma = (double)s->sigmas[k], dt = (double)(s->sigmas[k + 1] - s->sigmas[k]);
    (void)noise;
    if (i % 2 == 0) {
        keep_sample(p, s, x);
        keep(p, s, derivative(p, s, sigma, e, x), 1);
        return combine(p, 2, (double[]){1, dt}, (tensor[]){x, s->kept[0]});
    }
    tensor d = derivative(p, s, (double)s->sigmas[k + 1], e, x);
    tensor y = combine(p, 3, (double[]){1, dt / 2, dt / 2}, (tensor[]){s->sample, s->kept[0], d});
    tensor_free(p, &d);
    return y;
}

const struct scheduler_class heun_class = {
    .name = "HeunDiscreteScheduler",
    .beta_start = 0.00085,
    .beta_end = 0.012,
    .beta_schedule = BETA_LINEAR,
    .beta_schedules = 1u << BETA_EXP,
    .timestep_spacing = SPACING_LINSPACE,
    .reads = READS_SPACING | READS_CURVES,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .order = 2,
    .start = heun_start,
    .mix = mix_sigma,
    .scale_input = heun_scale_input,
    .step = heun_step,
};
