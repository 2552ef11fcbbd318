/* Euler steps down to sigma_down, then fresh noise up to the next sigma (k-diffusion's
 * sample_euler_ancestral): diffusers' EulerAncestralDiscreteScheduler. Draws noise at every step. */
#include <math.h>

#include "internal.h"

static int euler_ancestral_start(struct scheduler *s, struct error *err)
{
    return euler_start(s, err);
}

static tensor euler_ancestral_step(pass *p, struct scheduler *s, int i, tensor e, tensor x,
                                   struct noise *noise)
{
    /* fp32 in diffusers' order: under few steps sigma_down loses digits that the picture then shows. */
    float from = s->sigmas[i], to = s->sigmas[i + 1];
    float up = sqrtf(to * to * (from * from - to * to) / (from * from));
    float down = sqrtf(to * to - up * up);
    double sigma = (double)from, dt = (double)(down - from), coef[3];
    if (s->config->prediction_type == PREDICT_V) {
        coef[0] = 1 + dt * sigma / (sigma * sigma + 1);
        coef[1] = dt / sqrt(sigma * sigma + 1);
    } else {
        coef[0] = 1;
        coef[1] = dt;
    }
    coef[2] = (double)up;
    tensor fresh = noise_draw(p, noise, x.n, x.h, x.w, x.c);
    tensor y = combine(p, 3, coef, (tensor[]){x, e, fresh});
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
    .has_rescale = true,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_V,
    .start = euler_ancestral_start,
    .mix = mix_sigma,
    .scale_input = euler_scale_input,
    .step = euler_ancestral_step,
};
