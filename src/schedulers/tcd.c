/* Trajectory consistency distillation (arXiv 2402.19159): diffusers' TCDScheduler with eta 0, which is what
 * the Stable Diffusion pipelines pass unless they are told otherwise. Then it draws no noise, and a step goes
 * along the model's output to the next timestep, the last one to timestep 0. */
#include <math.h>

#include "internal.h"

static tensor tcd_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    const struct scheduler_config *c = s->config;
    int next = i + 1 < s->calls ? (int)s->timesteps[i + 1] : 0;
    double alpha = (double)alpha_at(c, (int)s->timesteps[i]), to = (double)alpha_at(c, next);
    double x0[2], eps[2];
    (void)noise;
    predict_x0(c->prediction_type, alpha, &x0[0], &x0[1]);
    predict_noise(c->prediction_type, alpha, &eps[0], &eps[1]);
    double coef[] = {sqrt(to) * x0[0] + sqrt(1 - to) * eps[0], sqrt(to) * x0[1] + sqrt(1 - to) * eps[1]};
    return combine_output(p, s, 2, coef, (tensor[]){x, e});
}

const struct scheduler_class tcd_class = {
    .name = "TCDScheduler",
    .beta_start = 0.00085,
    .beta_end = 0.012,
    .beta_schedule = BETA_SCALED_LINEAR,
    .timestep_spacing = SPACING_LEADING,
    .set_alpha_to_one = true,
    .reads = READS_RESCALE,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .start = distilled_start,
    .mix = mix_alpha,
    .step = tcd_step,
};
