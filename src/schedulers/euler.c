/* Euler steps along the probability-flow ODE (arXiv 2206.00364, algorithm 2 without churn): diffusers'
 * EulerDiscreteScheduler. */
#include <math.h>

#include "internal.h"

/* x + dt * (x - x_0) / sigma as coefficients of x and of the model output. */
static void euler_coefficients(enum prediction prediction, double sigma, double dt, double coef[2])
{
    switch (prediction) {
    case PREDICT_EPSILON:
        coef[0] = 1;
        coef[1] = dt;
        break;
    case PREDICT_V:
        coef[0] = 1 + dt * sigma / (sigma * sigma + 1);
        coef[1] = dt / sqrt(sigma * sigma + 1);
        break;
    default:
        coef[0] = 1 + dt / sigma;
        coef[1] = -dt / sigma;
        break;
    }
}

static tensor euler_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    double coef[2];
    (void)noise;
    euler_coefficients(s->config->prediction_type, (double)s->sigmas[i],
                       (double)(s->sigmas[i + 1] - s->sigmas[i]), coef);
    return combine(p, 2, coef, (tensor[]){x, e});
}

const struct scheduler_class euler_class = {
    .name = "EulerDiscreteScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .has_sigmas = true,
    .has_rescale = true,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .start = euler_start,
    .mix = mix_sigma,
    .scale_input = euler_scale_input,
    .step = euler_step,
};
