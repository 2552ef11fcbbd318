/* DPM-Solver and DPM-Solver++ (arXiv 2206.00927, 2211.01095), multistep, order 1 to 3, and their SDE forms:
 * diffusers' DPMSolverMultistepScheduler. DPM++ 2M is algorithm_type dpmsolver++ with solver_order 2. */
#include "internal.h"

static int dpm_check(const struct scheduler_config *c, const char *file, struct error *err)
{
    if (!is_pp(c) && c->final_sigma_zero)
        return error_set(err, ERR_UNSUPPORTED,
                         "%s: \"final_sigmas_type\" is \"zero\", which dpmsolver and sde-dpmsolver cannot "
                         "reach; accepted is "
                         "\"sigma_min\"",
                         file);
    if (c->algorithm_type == SDE_DPMSOLVER && c->solver_order == 3)
        return error_set(
            err, ERR_UNSUPPORTED,
            "%s: \"solver_order\" is 3, which \"algorithm_type\" \"sde-dpmsolver\" does not have", file);
    return 0;
}

/* Turns coefficients of the differences D0, D1, D2 into coefficients of the kept outputs m0 (newest), m1, m2.
 */
static void of_outputs(const struct scheduler *s, int i, float h, int order, const float d[3], double m[3])
{
    m[0] = (double)d[0], m[1] = m[2] = 0;
    if (order < 2)
        return;
    float l0 = level_at(s, i).lambda, l1 = level_at(s, i - 1).lambda;
    float r0 = (l0 - l1) / h;
    double d10[3] = {1 / (double)r0, -1 / (double)r0, 0}; /* D1_0 = (m0 - m1) / r0 */
    if (order == 2) {
        for (int k = 0; k < 3; k++)
            m[k] += (double)d[1] * d10[k];
        return;
    }
    float r1 = (l1 - level_at(s, i - 2).lambda) / h;
    double d11[3] = {0, 1 / (double)r1, -1 / (double)r1}; /* D1_1 = (m1 - m2) / r1 */
    double both = (double)r0 + (double)r1;
    for (int k = 0; k < 3; k++) {
        double d1 = d10[k] + (double)r0 / both * (d10[k] - d11[k]), d2 = (d10[k] - d11[k]) / both;
        m[k] += (double)d[1] * d1 + (double)d[2] * d2;
    }
}

static int order_at(const struct scheduler *s, int i)
{
    const struct scheduler_config *c = s->config;
    bool few = c->lower_order_final && s->calls < 15;
    int known = i - s->first + 1, order = c->solver_order < known ? c->solver_order : known;
    if (i == s->calls - 1 && (c->euler_at_final || few || c->final_sigma_zero))
        return 1;
    if (i == s->calls - 2 && few && order > 2)
        return 2;
    return order;
}

tensor dpm_multistep_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    const struct scheduler_config *c = s->config;
    struct level t = level_at(s, i + 1), s0 = level_at(s, i);
    float h = t.lambda - s0.lambda;
    int order = order_at(s, i);
    double m[3];
    tensor fresh = {0};
    keep(p, s, solver_output(p, s, i, e, x), c->solver_order);
    struct update u = solver_update(c, t, s0, h, order, !c->heun && order < 3);
    of_outputs(s, i, h, order, u.d, m);
    if (is_sde(c)) {
        /* diffusers draws this noise in fp32 whatever the model's type is, but not so under EDM. */
        struct noise drawn = *noise;
        if (c->kind == &dpmsolver_multistep_class)
            drawn.round = DTYPE_F32;
        fresh = noise_draw(p, &drawn, x.n, x.h, x.w, x.c);
        noise->offset = drawn.offset;
    }
    tensor y = solver_move(p, s, &u, m, order, x, fresh);
    if (is_sde(c))
        tensor_free(p, &fresh);
    return y;
}

const struct scheduler_class dpmsolver_multistep_class = {
    .name = "DPMSolverMultistepScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .has_sigmas = true,
    .lower_order_final = true,
    .keeps_cosine_curves = true,
    .reads = READS_RESCALE | READS_THRESHOLDING | READS_SPACING | READS_CURVES | READS_LU |
             READS_FINAL_SIGMA | READS_SOLVER | READS_ALGORITHM | READS_LAMBDA_MIN,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .check = dpm_check,
    .start = solver_start,
    .mix = mix_level,
    .step = dpm_multistep_step,
};
