/* Euler steps down to sigma_down, then fresh noise up to the next sigma (k-diffusion's
 * sample_euler_ancestral): diffusers' EulerAncestralDiscreteScheduler. Draws noise at every step. */
#include "internal.h"

static tensor euler_ancestral_step(pass *p, struct scheduler *s, int i, tensor e, tensor x,
                                   struct noise *noise)
{
    float up, down;
    double d[2];
    ancestral_parts(s->sigmas[i], s->sigmas[i + 1], &up, &down);
    double dt = (double)(down - s->sigmas[i]);
    k_derivative(s->config->prediction_type, (double)s->sigmas[i], d);
    tensor fresh = noise_draw(p, noise, x.n, x.h, x.w, x.c);
    tensor y =
        combine_output(p, s, 3, (double[]){1 + dt * d[0], dt * d[1], (double)up}, (tensor[]){x, e, fresh});
    tensor_free(p, &fresh);
    return y;
}

const struct scheduler_class euler_ancestral_class = {
    .name = "EulerAncestralDiscreteScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .has_sigmas = true,
    .reads = READS_RESCALE | READS_SPACING,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_V,
    .start = k_start,
    .mix = mix_sigma,
    .scale_input = k_scale_input,
    .step = euler_ancestral_step,
};
