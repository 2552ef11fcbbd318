/* DDPM (arXiv 2006.11239, formula 7): diffusers' DDPMScheduler with a fixed variance. Draws noise at every
 * call but one at timestep 0. */
#include <math.h>

#include "internal.h"

/* Of x_0, of x and of noise in the next latents, in fp32 in diffusers' order: beta is what is left of 1. */
static void posterior(const struct scheduler *s, int i, double coef[3])
{
    const struct scheduler_config *c = s->config;
    float alpha = alpha_at(c, (int)s->timesteps[i]);
    float before = i + 1 < s->calls ? alpha_at(c, (int)s->timesteps[i + 1]) : 1.0f;
    float current = alpha / before, beta = 1 - current;
    float variance = fmaxf((1 - before) / (1 - alpha) * beta, 1e-20f);
    coef[0] = (double)(sqrtf(before) * beta / (1 - alpha));
    coef[1] = (double)(sqrtf(current) * (1 - before) / (1 - alpha));
    switch (c->variance_type) {
    case VARIANCE_FIXED_SMALL:
        coef[2] = (double)sqrtf(variance);
        break;
    case VARIANCE_FIXED_SMALL_LOG:
        coef[2] = (double)expf(0.5f * logf(variance));
        break;
    case VARIANCE_FIXED_LARGE:
        coef[2] = (double)sqrtf(beta);
        break;
    }
}

static tensor ddpm_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    const struct scheduler_config *c = s->config;
    int t = (int)s->timesteps[i];
    double x0[2], coef[3];
    predict_x0(c->prediction_type, (double)alpha_at(c, t), &x0[0], &x0[1]);
    posterior(s, i, coef);
    tensor raw = combine_output(p, s, 2, x0, (tensor[]){x, e}), fresh = {0};
    tensor clipped = c->clip_sample ? clip(p, raw, (float)-c->clip_sample_range, (float)c->clip_sample_range)
                                    : copy_of(p, raw);
    if (t > 0)
        fresh = noise_draw(p, noise, x.n, x.h, x.w, x.c);
    tensor y = combine(p, t > 0 ? 3 : 2, coef, (tensor[]){clipped, x, fresh});
    if (t > 0)
        tensor_free(p, &fresh);
    tensor_free(p, &clipped);
    tensor_free(p, &raw);
    return y;
}

const struct scheduler_class ddpm_class = {
    .name = "DDPMScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .beta_schedules = 1u << BETA_LAPLACE | 1u << BETA_SIGMOID,
    .timestep_spacing = SPACING_LEADING,
    .clip_sample = true,
    .reads = READS_RESCALE | READS_THRESHOLDING | READS_SPACING | READS_VARIANCE,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .start = spaced_start,
    .mix = mix_alpha,
    .step = ddpm_step,
};
