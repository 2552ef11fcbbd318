/* DDIM (arXiv 2010.02502, formulas 12 and 16) with eta 0: diffusers' DDIMScheduler. */
#include <math.h>

#include "internal.h"

/* x_0 clipped, then the direction pointing to x_t: two combinations instead of one. */
static tensor clipped_step(pass *p, const struct scheduler *s, const double x0[2], const double eps[2],
                           const double to[2], tensor x, tensor e)
{
    float range = (float)s->config->clip_sample_range;
    tensor raw = combine_output(p, s, 2, x0, (tensor[]){x, e});
    tensor clipped = clip(p, raw, -range, range);
    tensor_free(p, &raw);
    double coef[] = {to[0], to[1] * eps[0], to[1] * eps[1]};
    tensor y = combine_output(p, s, 3, coef, (tensor[]){clipped, x, e});
    tensor_free(p, &clipped);
    return y;
}

static tensor ddim_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    const struct scheduler_config *c = s->config;
    int t = (int)s->timesteps[i];
    double alpha = (double)alpha_at(c, t),
           before = (double)alpha_at(c, t - c->num_train_timesteps / s->steps);
    double x0[2], eps[2], to[] = {sqrt(before), sqrt(1 - before)};
    (void)noise;
    predict_x0(c->prediction_type, alpha, &x0[0], &x0[1]);
    /* pred_epsilon, of x and of the model output; it is not derived again from the clipped x_0. */
    predict_noise(c->prediction_type, alpha, &eps[0], &eps[1]);
    if (c->clip_sample)
        return clipped_step(p, s, x0, eps, to, x, e);
    double coef[] = {to[0] * x0[0] + to[1] * eps[0], to[0] * x0[1] + to[1] * eps[1]};
    return combine_output(p, s, 2, coef, (tensor[]){x, e});
}

const struct scheduler_class ddim_class = {
    .name = "DDIMScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LEADING,
    .set_alpha_to_one = true,
    .clip_sample = true,
    .reads = READS_RESCALE | READS_THRESHOLDING | READS_SPACING,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .start = spaced_start,
    .mix = mix_alpha,
    .step = ddim_step,
};
