/* The formulation of Karras et al. (arXiv 2206.00364): latents x = x_0 + sigma noise, and a model
 * preconditioned by sigma_data, with sigmas of its own instead of a training schedule; diffusers'
 * EDMEulerScheduler and EDMDPMSolverMultistepScheduler. */
#include <math.h>

#include "internal.h"

static int edm_check(const struct scheduler_config *c, const char *file, struct error *err)
{
    if (!is_pp(c) || (is_sde(c) && c->solver_order == 3))
        return error_set(err, ERR_UNSUPPORTED,
                         "%s: \"algorithm_type\" should be \"dpmsolver++\", or \"sde-dpmsolver++\" with "
                         "\"solver_order\" 1 or 2",
                         file);
    return 0;
}

static double edm_sigma(const struct scheduler_config *c, int count, int i)
{
    double a = pow(c->sigma_max, 1 / c->rho), b = pow(c->sigma_min, 1 / c->rho);
    if (c->curve == CURVE_EXPONENTIAL) /* counted from sigma_min, where a run of one step therefore is */
        return (double)expf(
            torch_linspace((float)log(c->sigma_min), (float)log(c->sigma_max), count, count - 1 - i));
    return pow(a + np_linspace(0, 1, count, i) * (b - a), c->rho);
}

static int edm_start(struct scheduler *s, struct error *err)
{
    const struct scheduler_config *c = s->config;
    int n = s->steps, rc = run_alloc(s, n, n + 1, err);
    if (rc < 0)
        return rc;
    for (int i = 0; i < n; i++) {
        s->sigmas[i] = (float)edm_sigma(c, n, i);
        s->timesteps[i] = 0.25f * logf(s->sigmas[i]); /* c_noise of the paper's table 1 */
    }
    s->sigmas[n] = c->final_sigma_zero           ? 0
                   : c->kind->repeats_last_sigma ? s->sigmas[n - 1]
                                                 : (float)c->sigma_min;
    s->init_noise_sigma = (float)sqrt(c->sigma_max * c->sigma_max + 1);
    return 0;
}

static tensor edm_scale_input(pass *p, const struct scheduler *s, int i, tensor x)
{
    double scale = 1 / hypot((double)s->sigmas[i], s->config->sigma_data);
    return combine(p, 1, &scale, &x);
}

void edm_x0(const struct scheduler *s, int i, double *of_x, double *of_e)
{
    double sigma = (double)s->sigmas[i], data = s->config->sigma_data, both = hypot(sigma, data);
    *of_x = data * data / (both * both);
    *of_e = sigma * data / both * (s->config->prediction_type == PREDICT_V ? -1 : 1);
}

static tensor edm_euler_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    double of_x, of_e, sigma = (double)s->sigmas[i], part = (double)s->sigmas[i + 1] / sigma;
    (void)noise;
    edm_x0(s, i, &of_x, &of_e);
    return combine_output(p, s, 2, (double[]){part + (1 - part) * of_x, (1 - part) * of_e}, (tensor[]){x, e});
}

const struct scheduler_class edm_euler_class = {
    .name = "EDMEulerScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .repeats_last_sigma = true,
    .reads = READS_EDM | READS_FINAL_SIGMA,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_V,
    .start = edm_start,
    .mix = mix_sigma,
    .scale_input = edm_scale_input,
    .step = edm_euler_step,
};

const struct scheduler_class edm_dpmsolver_class = {
    .name = "EDMDPMSolverMultistepScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .lower_order_final = true,
    .reads = READS_EDM | READS_THRESHOLDING | READS_FINAL_SIGMA | READS_SOLVER | READS_ALGORITHM,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_V,
    .check = edm_check,
    .start = edm_start,
    .mix = mix_sigma,
    .scale_input = edm_scale_input,
    .step = dpm_multistep_step,
};
