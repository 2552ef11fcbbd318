/* Linear multistep (Adams-Bashforth over uneven sigmas, k-diffusion's sample_lms): diffusers'
 * LMSDiscreteScheduler. */
#include "internal.h"

enum { ORDER = 4 };

/* The integral from sigma I to the next of the Lagrange polynomial that is 1 at sigma I - J and 0 at the
 * other ORDER last ones. Two Gauss points integrate a cubic exactly. */
static double lagrange_integral(const struct scheduler *s, int i, int order, int j)
{
    static const double gauss = 0.57735026918962576451; /* 1 / sqrt(3) */
    double a = (double)s->sigmas[i], b = (double)s->sigmas[i + 1], half = (b - a) / 2, sum = 0;
    for (int side = -1; side <= 1; side += 2) {
        double tau = (a + b) / 2 + side * gauss * half, product = 1;
        for (int k = 0; k < order; k++) {
            if (k != j)
                product *= (tau - (double)s->sigmas[i - k]) / (double)(s->sigmas[i - j] - s->sigmas[i - k]);
        }
        sum += product * half;
    }
    return sum;
}

static tensor lms_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    double d[2], coef[LINCOMB_MAX] = {1};
    tensor from[LINCOMB_MAX] = {x};
    int order = i + 1 < ORDER ? i + 1 : ORDER;
    (void)noise;
    k_derivative(s->config->prediction_type, (double)s->sigmas[i], d);
    keep(p, s, combine_output(p, s, 2, d, (tensor[]){x, e}), ORDER);
    /* A run that begins late has the order of its place in the schedule from the start; the derivatives that
     * it lacks then count as 0, as in diffusers. */
    int terms = order < s->kept_count ? order : s->kept_count;
    for (int j = 0; j < terms; j++) {
        coef[j + 1] = lagrange_integral(s, i, order, j);
        from[j + 1] = s->kept[s->kept_count - 1 - j];
    }
    return combine(p, terms + 1, coef, from);
}

const struct scheduler_class lms_class = {
    .name = "LMSDiscreteScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .reads = READS_SPACING | READS_KARRAS | READS_EXPONENTIAL | READS_BETA,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .start = k_start,
    .mix = mix_sigma,
    .scale_input = k_scale_input,
    .step = lms_step,
};
