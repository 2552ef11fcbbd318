/* Pseudo numerical methods (arXiv 2202.09778): Runge-Kutta warm-up (prk) and linear multistep (plms), or
 * multistep alone (skip_prk_steps, as Stable Diffusion has it): diffusers' PNDMScheduler. Makes more calls
 * than steps. */
#include <math.h>
#include <stdlib.h>

#include "internal.h"

enum { ORDER = 4, PRK_CALLS = 12 };

/* The warm-up visits the four noisiest steps with their midpoints, each twice but the ends. */
static void prk_timesteps(struct scheduler *s, const float *up, int count)
{
    float pairs[2 * ORDER];
    float half = (float)(s->config->num_train_timesteps / s->steps / 2);
    for (int i = 0; i < 2 * ORDER; i++)
        pairs[i] = up[count - ORDER + i / 2] + (i % 2 ? half : 0);
    for (int i = 0; i < PRK_CALLS; i++)
        s->timesteps[PRK_CALLS - 1 - i] = pairs[(i + 1) / 2];
}

static int prk_start(struct scheduler *s, const float *up, int count, struct error *err)
{
    if (count < ORDER)
        return error_set(err, ERR_INVALID,
                         "`num_inference_steps`: %d is too few for PNDMScheduler with skip_prk_steps false; "
                         "it needs at least %d",
                         s->steps, ORDER);
    int rc = run_alloc(s, PRK_CALLS + count - 3, 0, err);
    if (rc < 0)
        return rc;
    prk_timesteps(s, up, count);
    for (int i = 0; i < count - 3; i++)
        s->timesteps[PRK_CALLS + i] = up[count - 4 - i];
    return check_timesteps(s, err);
}

/* Multistep alone: the second timestep comes twice, for one Heun-like start. */
static int plms_start(struct scheduler *s, const float *up, int count, struct error *err)
{
    int calls = count < 2 ? count : count + 1, rc = run_alloc(s, calls, 0, err);
    if (rc < 0)
        return rc;
    for (int i = 0; i < calls; i++)
        s->timesteps[i] = up[count - 1 - (i < 2 ? i : i - 1)];
    return check_timesteps(s, err);
}

static int pndm_start(struct scheduler *s, struct error *err)
{
    const struct scheduler_config *c = s->config;
    int count = spaced_count(c, s->steps);
    float *up = malloc((size_t)count * sizeof *up);
    if (!up)
        return error_set(err, ERR_NOMEM, "no memory for a schedule of %d steps", count);
    for (int i = 0; i < count; i++)
        up[i] = (float)rint(spaced_timestep(c, s->steps, count, count - 1 - i));
    int rc = c->skip_prk_steps ? plms_start(s, up, count, err) : prk_start(s, up, count, err);
    free(up);
    return rc;
}

/* Formula (9): from x at T to timestep BEFORE along the combined output sum of coef[k] * e[k]. COUNT <= 5. */
static tensor transfer(pass *p, const struct scheduler *s, int t, int before, tensor x, int count,
                       const double *coef, const tensor *e)
{
    const struct scheduler_config *c = s->config;
    double alpha = (double)alpha_at(c, t), to = (double)alpha_at(c, before);
    double denominator = alpha * sqrt(1 - to) + sqrt(alpha * (1 - alpha) * to);
    double along = -(to - alpha) / denominator;
    double all[LINCOMB_MAX] = {sqrt(to / alpha)};
    tensor x_and_e[LINCOMB_MAX] = {x};
    bool v = c->prediction_type == PREDICT_V;
    if (v)
        all[0] += along * sqrt(1 - alpha);
    for (int k = 0; k < count; k++) {
        all[k + 1] = along * coef[k] * (v ? sqrt(alpha) : 1);
        x_and_e[k + 1] = e[k];
    }
    return combine_output(p, s, count + 1, all, x_and_e);
}

/* Runge-Kutta: four calls a step; the last one goes along the weighted sum of all four. */
static tensor prk_step(pass *p, struct scheduler *s, int i, tensor e, tensor x)
{
    const struct scheduler_config *c = s->config;
    /* The step's own timestep is counted in calls made, also when the run begins late; half a step back is
     * taken from the call's. */
    int made = i - s->first, stage = made % 4;
    int half = made % 2 ? 0 : c->num_train_timesteps / s->steps / 2;
    int before = (int)s->timesteps[i] - half, t = (int)s->timesteps[made / 4 * 4];
    const double weights[] = {1.0 / 6, 1.0 / 3, 1.0 / 3, 1.0 / 6}, one = 1;
    if (stage == 0) {
        keep(p, s, combine_output(p, s, 1, &one, &e), ORDER);
        if (s->sample.data)
            tensor_free(p, &s->sample);
        s->sample = copy_of(p, x);
        s->sum = combine_output(p, s, 1, weights, &e);
    } else if (stage < 3) {
        tensor sum = combine_output(p, s, 2, (double[]){1, weights[stage]}, (tensor[]){s->sum, e});
        tensor_free(p, &s->sum);
        s->sum = sum;
    }
    if (stage < 3)
        return transfer(p, s, t, before, s->sample, 1, &one, &e);
    tensor y = transfer(p, s, t, before, s->sample, 2, (double[]){1, weights[3]}, (tensor[]){s->sum, e});
    tensor_free(p, &s->sum);
    return y;
}

/* Adams-Bashforth over the outputs at hand, newest last. */
static tensor plms_step(pass *p, struct scheduler *s, int i, tensor e, tensor x)
{
    static const double weights[ORDER + 1][ORDER] = {
        {0},
        {1},
        {-1.0 / 2, 3.0 / 2},
        {5.0 / 12, -16.0 / 12, 23.0 / 12},
        {-9.0 / 24, 37.0 / 24, -59.0 / 24, 55.0 / 24},
    };
    const struct scheduler_config *c = s->config;
    const double one = 1;
    int t = (int)s->timesteps[i], stride = c->num_train_timesteps / s->steps;
    if (i - s->first == 1) { /* the same step again from its beginning, along the mean of both outputs */
        tensor y =
            transfer(p, s, t + stride, t, s->sample, 2, (double[]){0.5, 0.5}, (tensor[]){s->kept[0], e});
        tensor_free(p, &s->sample);
        return y;
    }
    keep(p, s, combine_output(p, s, 1, &one, &e), ORDER);
    if (i == s->first)
        s->sample = copy_of(p, x);
    return transfer(p, s, t, t - stride, x, s->kept_count, weights[s->kept_count], s->kept);
}

static tensor pndm_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    (void)noise;
    if (!s->config->skip_prk_steps && i - s->first < PRK_CALLS)
        return prk_step(p, s, i, e, x);
    return plms_step(p, s, i, e, x);
}

const struct scheduler_class pndm_class = {
    .name = "PNDMScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LEADING,
    .reads = READS_SPACING,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_V,
    .start = pndm_start,
    .mix = mix_alpha,
    .step = pndm_step,
};
