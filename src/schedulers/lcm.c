/* Multistep sampling of latent consistency models (arXiv 2310.04378, algorithm 3): diffusers' LCMScheduler.
 * Draws noise at every step but the last. */
#include <math.h>

#include "internal.h"

int distilled_start(struct scheduler *s, struct error *err)
{
    const struct scheduler_config *c = s->config;
    int steps = s->steps, original = c->original_inference_steps;
    if (original > c->num_train_timesteps)
        return error_set(
            err, ERR_INVALID,
            "`original_steps`: %d cannot be larger than `self.config.train_timesteps`: %d as the unet model "
            "trained with this scheduler can only handle maximal %d timesteps.",
            original, c->num_train_timesteps, c->num_train_timesteps);
    if (steps > original)
        return error_set(
            err, ERR_INVALID,
            "The combination of `original_steps x strength`: %d x 1.0 is smaller than `num_inference_steps`: "
            "%d. Make sure to either reduce `num_inference_steps` to a value smaller than %d or increase "
            "`strength` to a value higher than %.17g.",
            original, steps, original, (double)steps / original);
    int rc = run_alloc(s, steps, 0, err);
    if (rc < 0)
        return rc;
    /* Every k-th training timestep was distilled; the run visits evenly spread ones of them, noisiest first.
     */
    int k = c->num_train_timesteps / original;
    for (int i = 0; i < steps; i++) {
        int index = (int)floor(i * ((double)original / steps));
        s->timesteps[i] = (float)((original - index) * k - 1);
    }
    return check_timesteps(s, err);
}

/* The consistency function's boundary condition: c_skip x + c_out x_0, exact at t = 0. */
static tensor denoise(pass *p, const struct scheduler *s, int t, tensor e, tensor x)
{
    const struct scheduler_config *c = s->config;
    double scaled = t * c->timestep_scaling, data = 0.5;
    double skip = data * data / (scaled * scaled + data * data);
    double out = scaled / sqrt(scaled * scaled + data * data);
    double x0[2];
    tensor pair[] = {x, e};
    predict_x0(c->prediction_type, (double)alpha_at(c, t), &x0[0], &x0[1]);
    if (!c->clip_sample)
        return combine_output(p, s, 2, (double[]){out * x0[0] + skip, out * x0[1]}, pair);
    tensor raw = combine_output(p, s, 2, x0, pair);
    tensor clipped = clip(p, raw, (float)-c->clip_sample_range, (float)c->clip_sample_range);
    tensor y = combine(p, 2, (double[]){out, skip}, (tensor[]){clipped, x});
    tensor_free(p, &raw);
    tensor_free(p, &clipped);
    return y;
}

static tensor lcm_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    tensor denoised = denoise(p, s, (int)s->timesteps[i], e, x);
    if (i == s->calls - 1)
        return denoised;
    double alpha = (double)alpha_at(s->config, (int)s->timesteps[i + 1]);
    double coef[] = {sqrt(alpha), sqrt(1 - alpha)};
    tensor fresh = noise_draw(p, noise, x.n, x.h, x.w, x.c);
    tensor y = combine(p, 2, coef, (tensor[]){denoised, fresh});
    tensor_free(p, &denoised);
    tensor_free(p, &fresh);
    return y;
}

const struct scheduler_class lcm_class = {
    .name = "LCMScheduler",
    .beta_start = 0.00085,
    .beta_end = 0.012,
    .beta_schedule = BETA_SCALED_LINEAR,
    .timestep_spacing = SPACING_LEADING,
    .set_alpha_to_one = true,
    .reads = READS_RESCALE | READS_THRESHOLDING,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .start = distilled_start,
    .mix = mix_alpha,
    .step = lcm_step,
};
