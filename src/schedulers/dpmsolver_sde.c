/* DPM-Solver++ (SDE), k-diffusion's sample_dpmpp_sde: two ancestral steps of the exponential integrator a
 * step, to the geometric mean of two sigmas and, with what the model says there, from the beginning to the
 * next; diffusers' DPMSolverSDEScheduler. Two calls a step but the last.
 *
 * Both calls of a step draw from one Brownian path over sigma. diffusers takes it from torchsde's Brownian
 * tree, whose seed it draws from torch's global generator: the request's seed does not determine the picture
 * there. Here the path's increments, which are independent normals, are drawn from the request's generator,
 * one a call: the same distribution, and the same picture for the same seed. */
#include <math.h>

#include "internal.h"

static float middle(const struct scheduler *s, int k)
{
    float from = -logf(s->sigmas[k]), to = -logf(s->sigmas[k + 1]);
    return expf(-(from + (to - from) * 0.5f));
}

static int sde_start(struct scheduler *s, struct error *err)
{
    return k_start_twofold(s, middle, err);
}

static tensor sde_scale_input(pass *p, const struct scheduler *s, int i, tensor x)
{
    return scale_by_sigma(p, (double)(i % 2 ? middle(s, i / 2) : s->sigmas[i / 2]), x);
}

/* Coefficients of the step from sigma FROM to TO: of the sample it starts from, of x and of the model output
 * (which were seen at sigma AT) and of noise. */
static void ancestral(enum prediction prediction, float from, float to, float at, double coef[4])
{
    float up, down;
    double d[2], sigma = (double)at;
    ancestral_parts(from, to, &up, &down);
    if (up > to) {
        up = to;
        down = 0;
    }
    k_derivative(prediction, sigma, d);
    double stays = (double)(down / from);
    coef[0] = stays;
    coef[1] = (1 - stays) * (1 - sigma * d[0]); /* x_0 = x - sigma d */
    coef[2] = (1 - stays) * -sigma * d[1];
    coef[3] = (double)up;
}

static tensor first_call(pass *p, struct scheduler *s, int k, tensor e, tensor x, struct noise *noise)
{
    enum prediction prediction = s->config->prediction_type;
    double coef[4], d[2], sigma = (double)s->sigmas[k];
    if (s->sigmas[k + 1] == 0) { /* the last step: to x_0 */
        k_derivative(prediction, sigma, d);
        return combine_output(p, s, 2, (double[]){1 - sigma * d[0], -sigma * d[1]}, (tensor[]){x, e});
    }
    ancestral(prediction, s->sigmas[k], middle(s, k), s->sigmas[k], coef);
    keep_sample(p, s, x);
    keep(p, s, noise_draw(p, noise, x.n, x.h, x.w, x.c), 1);
    return combine_output(p, s, 3, (double[]){coef[0] + coef[1], coef[2], coef[3]},
                          (tensor[]){x, e, s->kept[0]});
}

static tensor second_call(pass *p, struct scheduler *s, int k, tensor e, tensor x, struct noise *noise)
{
    float from = s->sigmas[k], mid = middle(s, k), to = s->sigmas[k + 1];
    double coef[4], whole = (double)(from - to);
    ancestral(s->config->prediction_type, from, to, mid, coef);
    /* The path's increment over the whole step: that of the first call, and a fresh one from there on. */
    double first = sqrt((double)(from - mid) / whole), rest = sqrt((double)(mid - to) / whole);
    tensor fresh = noise_draw(p, noise, x.n, x.h, x.w, x.c);
    tensor y = combine_output(p, s, 5, (double[]){coef[0], coef[1], coef[2], coef[3] * first, coef[3] * rest},
                              (tensor[]){s->sample, x, e, s->kept[0], fresh});
    tensor_free(p, &fresh);
    return y;
}

static tensor sde_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    return i % 2 ? second_call(p, s, i / 2, e, x, noise) : first_call(p, s, i / 2, e, x, noise);
}

const struct scheduler_class dpmsolver_sde_class = {
    .name = "DPMSolverSDEScheduler",
    .beta_start = 0.00085,
    .beta_end = 0.012,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .reads = READS_SPACING | READS_KARRAS | READS_EXPONENTIAL | READS_BETA,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_V,
    .order = 2,
    .start = sde_start,
    .mix = mix_sigma,
    .scale_input = sde_scale_input,
    .step = sde_step,
};
