/* DPM2 (k-diffusion's sample_dpm_2 and sample_dpm_2_ancestral, after algorithm 2 of arXiv 2206.00364): half a
 * step to the geometric mean of two sigmas, then the whole step along the derivative found there; diffusers'
 * KDPM2DiscreteScheduler and KDPM2AncestralDiscreteScheduler. Two calls a step but the last; the ancestral
 * form draws noise at the second. */
#include <math.h>

#include "internal.h"

/* exp(torch.lerp(log a, log b, 0.5)) in fp32. */
static float geometric_mean(float a, float b)
{
    float from = logf(a), to = logf(b);
    return expf(to - (to - from) * 0.5f);
}

static float middle(const struct scheduler *s, int k)
{
    if (s->sigmas[k + 1] == 0)
        return 0;
    return geometric_mean(s->sigmas[k + 1], s->sigmas[k]);
}

static float ancestral_middle(const struct scheduler *s, int k)
{
    float up, down;
    if (k >= s->sigma_count - 2)
        return 0;
    ancestral_parts(s->sigmas[k], s->sigmas[k + 1], &up, &down);
    return geometric_mean(s->sigmas[k], down);
}

static float middle_of(const struct scheduler *s, int k)
{
    return s->config->kind == &k_dpm_2_class ? middle(s, k) : ancestral_middle(s, k);
}

static int k_dpm_2_start(struct scheduler *s, struct error *err)
{
    return k_start_twofold(s, middle_of, err);
}

static tensor k_dpm_2_scale_input(pass *p, const struct scheduler *s, int i, tensor x)
{
    return scale_by_sigma(p, (double)(i % 2 ? middle_of(s, i / 2) : s->sigmas[i / 2]), x);
}

static tensor half_step(pass *p, struct scheduler *s, int k, tensor e, tensor x)
{
    double d[2], dt = (double)(middle_of(s, k) - s->sigmas[k]);
    k_derivative(s->config->prediction_type, (double)s->sigmas[k], d);
    keep_sample(p, s, x);
    return combine_output(p, s, 2, (double[]){1 + dt * d[0], dt * d[1]}, (tensor[]){x, e});
}

/* From the kept sample of step K to sigma TO along the derivative at the middle, plus UP times noise. */
static tensor whole_step(pass *p, struct scheduler *s, int k, float to, float up, tensor e, tensor x,
                         tensor fresh)
{
    double d[2], dt = (double)(to - s->sigmas[k]);
    k_derivative(s->config->prediction_type, (double)middle_of(s, k), d);
    return combine_output(p, s, fresh.data ? 4 : 3, (double[]){1, dt * d[0], dt * d[1], (double)up},
                          (tensor[]){s->sample, x, e, fresh});
}

static tensor k_dpm_2_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    (void)noise;
    if (i % 2 == 0)
        return half_step(p, s, i / 2, e, x);
    return whole_step(p, s, i / 2, s->sigmas[i / 2 + 1], 0, e, x, (tensor){0});
}

static tensor k_dpm_2_ancestral_step(pass *p, struct scheduler *s, int i, tensor e, tensor x,
                                     struct noise *noise)
{
    float up, down;
    if (i % 2 == 0)
        return half_step(p, s, i / 2, e, x);
    ancestral_parts(s->sigmas[i / 2], s->sigmas[i / 2 + 1], &up, &down);
    tensor fresh = noise_draw(p, noise, x.n, x.h, x.w, x.c);
    tensor y = whole_step(p, s, i / 2, down, up, e, x, fresh);
    tensor_free(p, &fresh);
    return y;
}

const struct scheduler_class k_dpm_2_class = {
    .name = "KDPM2DiscreteScheduler",
    .beta_start = 0.00085,
    .beta_end = 0.012,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .reads = READS_SPACING | READS_CURVES,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_V,
    .order = 2,
    .rounds_karras = true,
    .start = k_dpm_2_start,
    .mix = mix_sigma,
    .scale_input = k_dpm_2_scale_input,
    .step = k_dpm_2_step,
};

const struct scheduler_class k_dpm_2_ancestral_class = {
    .name = "KDPM2AncestralDiscreteScheduler",
    .beta_start = 0.00085,
    .beta_end = 0.012,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .reads = READS_SPACING | READS_CURVES,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_V,
    .order = 2,
    .rounds_karras = true,
    .start = k_dpm_2_start,
    .mix = mix_sigma,
    .scale_input = k_dpm_2_scale_input,
    .step = k_dpm_2_ancestral_step,
};
