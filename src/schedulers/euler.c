/* Euler steps along the probability-flow ODE (arXiv 2206.00364, algorithm 2 without churn): diffusers'
 * EulerDiscreteScheduler. */
#include "internal.h"

static tensor euler_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    double d[2], dt = (double)(s->sigmas[i + 1] - s->sigmas[i]);
    (void)noise;
    k_derivative(s->config->prediction_type, (double)s->sigmas[i], d);
    return combine_output(p, s, 2, (double[]){1 + dt * d[0], dt * d[1]}, (tensor[]){x, e});
}

const struct scheduler_class euler_class = {
    .name = "EulerDiscreteScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .has_sigmas = true,
    .reads = READS_RESCALE | READS_SPACING | READS_CURVES | READS_FINAL_SIGMA | READS_EULER,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .start = k_start,
    .mix = mix_sigma,
    .scale_input = k_scale_input,
    .step = euler_step,
};
