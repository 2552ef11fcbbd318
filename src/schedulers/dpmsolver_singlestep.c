/* DPM-Solver and DPM-Solver++ (arXiv 2206.00927, 2211.01095), singlestep, order 1 to 3, and the SDE form of
 * the latter: diffusers' DPMSolverSinglestepScheduler. A group of calls of order 1, 2, 3 begins anew from the
 * latents of its first. */
#include "internal.h"

static int single_check(const struct scheduler_config *c, const char *file, struct error *err)
{
    if (c->algorithm_type == SDE_DPMSOLVER)
        return error_set(err, ERR_UNSUPPORTED,
                         "%s: \"algorithm_type\" is \"sde-dpmsolver\", which %s does not know", file,
                         c->kind->name);
    if (!is_pp(c) && c->final_sigma_zero)
        return error_set(err, ERR_UNSUPPORTED,
                         "%s: \"final_sigmas_type\" is \"zero\", which dpmsolver cannot reach; accepted is "
                         "\"sigma_min\"",
                         file);
    return 0;
}

/* The order of call I of the whole schedule: get_order_list. Where the last step goes to sigma 0, or should
 * be of a lower order and would not be, it is of order 1. */
static int listed_order(const struct scheduler *s, int i)
{
    const struct scheduler_config *c = s->config;
    bool even = s->steps % c->solver_order == 0;
    if (i == s->steps - 1 && (c->final_sigma_zero || (c->lower_order_final && even)))
        return 1;
    return i % c->solver_order + 1;
}

/* Outputs kept, newest first, in D0 = the group's first, D1 and D2 = differences to it. R[k] is how far
 * output k is from the beginning, as a part of the step. */
static void of_outputs(bool midpoint, int order, const double r[2], const float d[3], double m[3])
{
    m[0] = m[1] = m[2] = 0;
    m[order - 1] = (double)d[0];
    if (order == 2 || (order == 3 && midpoint)) { /* D1 = (m0 - first) / r0 */
        m[0] += (double)d[1] / r[0];
        m[order - 1] -= (double)d[1] / r[0];
    } else if (order == 3) { /* through both differences, near = D1_0 and far = D1_1 */
        double apart = r[0] - r[1];
        double near = ((double)d[1] * r[0] - 2 * (double)d[2]) / apart;
        double far = (2 * (double)d[2] - (double)d[1] * r[1]) / apart;
        m[0] = far / r[0];
        m[1] = near / r[1];
        m[2] -= far / r[0] + near / r[1];
    }
}

static tensor single_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    const struct scheduler_config *c = s->config;
    bool midpoint = !c->heun;
    keep(p, s, solver_output(p, s, i, e, x), c->solver_order);
    int order = listed_order(s, i);
    if (order > s->kept_count) /* a run that begins late */
        order = s->kept_count;
    if (order == 1)
        keep_sample(p, s, x);
    struct level t = level_at(s, i + 1), first = level_at(s, i + 1 - order);
    float h = t.lambda - first.lambda;
    double r[2] = {0}, m[3];
    for (int k = 0; k < order - 1; k++)
        r[k] = (double)((level_at(s, i - k).lambda - first.lambda) / h);
    struct update u = solver_update(c, t, first, h, order, midpoint && order < 3);
    of_outputs(midpoint, order, r, u.d, m);
    tensor fresh = {0};
    if (is_sde(c))
        fresh = noise_draw(p, noise, x.n, x.h, x.w, x.c);
    tensor y = solver_move(p, s, &u, m, order, s->sample, fresh);
    if (is_sde(c))
        tensor_free(p, &fresh);
    return y;
}

const struct scheduler_class dpmsolver_singlestep_class = {
    .name = "DPMSolverSinglestepScheduler",
    .beta_start = 0.0001,
    .beta_end = 0.02,
    .beta_schedule = BETA_LINEAR,
    .timestep_spacing = SPACING_LINSPACE,
    .reads = READS_THRESHOLDING | READS_CURVES | READS_FINAL_SIGMA | READS_SOLVER | READS_ALGORITHM |
             READS_LAMBDA_MIN,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .check = single_check,
    .start = solver_start,
    .mix = mix_level,
    .step = single_step,
};
