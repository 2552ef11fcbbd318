/* DPM-Solver and DPM-Solver++ (arXiv 2206.00927, 2211.01095), multistep, order 1 to 3, and their SDE forms:
 * diffusers' DPMSolverMultistepScheduler. DPM++ 2M is algorithm_type dpmsolver++ with solver_order 2.
 *
 * The coefficients are differences of logarithms; they are worked out in fp32 in diffusers' order, because a
 * rounding there is larger than any later one. */
#include <math.h>

#include "internal.h"

/* alpha, sigma and lambda = log(alpha / sigma) at a sigma of the schedule. */
struct level {
    float alpha, sigma, lambda;
};

static struct level level_at(const struct scheduler *s, int i)
{
    float sigma = s->sigmas[i], alpha = 1.0f / sqrtf(sigma * sigma + 1.0f);
    struct level l = {alpha, sigma * alpha, 0};
    l.lambda = logf(l.alpha) - logf(l.sigma);
    return l;
}

static void dpm_mix(const struct scheduler *s, int i, double *of_x0, double *of_noise)
{
    struct level l = level_at(s, i);
    *of_x0 = (double)l.alpha;
    *of_noise = (double)l.sigma;
}

static bool is_pp(const struct scheduler_config *c)
{
    return c->algorithm_type == DPMSOLVER_PP || c->algorithm_type == SDE_DPMSOLVER_PP;
}

static bool is_sde(const struct scheduler_config *c)
{
    return c->algorithm_type == SDE_DPMSOLVER || c->algorithm_type == SDE_DPMSOLVER_PP;
}

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

/* How many training timesteps remain when those with lambda below lambda_min_clipped are left out. */
static int last_timestep(const struct scheduler_config *c)
{
    int n = c->num_train_timesteps, clipped = 0;
    for (; clipped < n; clipped++) {
        float alpha = c->alphas_cumprod[n - 1 - clipped];
        float lambda = logf(sqrtf(alpha)) - logf(sqrtf(1.0f - alpha));
        if ((double)lambda >= c->lambda_min_clipped)
            break;
    }
    return n - clipped;
}

static double dpm_timestep(const struct scheduler_config *c, int steps, int last, int i)
{
    switch (c->timestep_spacing) {
    case SPACING_LINSPACE:
        return rint(np_linspace(0, last - 1, steps + 1, steps - i));
    case SPACING_LEADING:
        return (steps - i) * (last / (steps + 1)) + c->steps_offset;
    default:
        return rint(arange_down(last, (double)c->num_train_timesteps / steps, i)) - 1;
    }
}

/* Sigma and timestep of step I on the curve of the config. Timesteps become whole: rounded, or cut. */
static void dpm_curve(struct scheduler *s, int i)
{
    const struct scheduler_config *c = s->config;
    float top = c->train_sigmas[c->num_train_timesteps - 1], bottom = c->train_sigmas[0];
    double sigma = sigma_on_curve(c, (double)top, (double)bottom, s->steps, i);
    if (c->curve == CURVE_LU)
        sigma = exp(np_linspace(0, 1, s->steps, i) * ((double)logf(bottom) - (double)logf(top)) +
                    (double)logf(top));
    double t = sigma_to_timestep(c, sigma);
    bool whole = c->curve != CURVE_EXPONENTIAL && c->beta_schedule != BETA_SQUAREDCOS;
    s->sigmas[i] = (float)sigma;
    s->timesteps[i] = (float)(whole ? rint(t) : trunc(t));
}

static int dpm_start(struct scheduler *s, struct error *err)
{
    const struct scheduler_config *c = s->config;
    int last = last_timestep(c), count = s->steps;
    if (last < 1)
        return error_set(err, ERR_INVALID, "lambda_min_clipped leaves no timestep");
    if (c->timestep_spacing == SPACING_TRAILING && c->curve == CURVE_TRAINED)
        count = arange_down_count(last, (double)c->num_train_timesteps / s->steps);
    int rc = run_alloc(s, count, count + 1, err);
    if (rc < 0)
        return rc;
    for (int i = 0; i < count; i++) {
        if (c->curve == CURVE_TRAINED) {
            s->timesteps[i] = (float)dpm_timestep(c, s->steps, last, i);
            s->sigmas[i] = (float)sigma_at(c, (double)s->timesteps[i]);
        } else {
            dpm_curve(s, i);
        }
    }
    s->sigmas[count] = sigma_last(c);
    return check_first_timestep(s, err);
}

/* What the solver integrates: x_0 for the ++ forms, the noise for the others. A new tensor. */
static tensor convert_output(pass *p, const struct scheduler *s, int i, tensor e, tensor x)
{
    struct level l = level_at(s, i);
    double a = (double)l.alpha, b = (double)l.sigma, coef[2] = {0, 1};
    enum prediction prediction = s->config->prediction_type;
    if (is_pp(s->config)) {
        if (prediction == PREDICT_EPSILON)
            coef[0] = 1 / a, coef[1] = -b / a;
        else if (prediction == PREDICT_V)
            coef[0] = a, coef[1] = -b;
    } else {
        if (prediction == PREDICT_SAMPLE)
            coef[0] = 1 / b, coef[1] = -a / b;
        else if (prediction == PREDICT_V)
            coef[0] = b, coef[1] = a;
    }
    return combine(p, 2, coef, (tensor[]){x, e});
}

/* One update: x_t = of_x * x + d[0] * D0 + d[1] * D1 + d[2] * D2 + of_noise * noise. */
struct update {
    float of_x, d[3], of_noise;
};

/* T: where the step goes, S0: where it is, H: lambda_t - lambda_s0. ORDER says which D there are. */
static struct update ode_update(const struct scheduler_config *c, struct level t, struct level s0, float h,
                                int order)
{
    bool pp = is_pp(c), heun = c->heun || order == 3;
    float g = pp ? -h : h, scale = pp ? t.alpha : t.sigma, grow = expf(g) - 1.0f;
    struct update u = {.of_x = pp ? t.sigma / s0.sigma : t.alpha / s0.alpha, .d = {-scale * grow}};
    if (order > 1)
        u.d[1] =
            heun ? (pp ? scale * (grow / h + 1.0f) : -scale * (grow / h - 1.0f)) : -0.5f * (scale * grow);
    if (order > 2)
        u.d[2] = -scale * ((grow - g) / (h * h) - 0.5f);
    return u;
}

static struct update sde_pp_update(const struct scheduler_config *c, struct level t, struct level s0, float h,
                                   int order)
{
    float shrink = 1.0f - expf(-2.0f * h);
    struct update u = {.of_x = t.sigma / s0.sigma * expf(-h),
                       .d = {t.alpha * shrink},
                       .of_noise = t.sigma * sqrtf(1.0f - expf(-2.0f * h))};
    if (order > 1)
        u.d[1] = c->heun || order == 3 ? t.alpha * (shrink / (-2.0f * h) + 1.0f) : 0.5f * (t.alpha * shrink);
    if (order > 2)
        u.d[2] = t.alpha * ((shrink - 2.0f * h) / (4.0f * h * h) - 0.5f);
    return u;
}

static struct update sde_update(const struct scheduler_config *c, struct level t, struct level s0, float h,
                                int order)
{
    float grow = expf(h) - 1.0f;
    struct update u = {.of_x = t.alpha / s0.alpha,
                       .d = {-2.0f * (t.sigma * grow)},
                       .of_noise = t.sigma * sqrtf(expf(2.0f * h) - 1.0f)};
    if (order > 1)
        u.d[1] = c->heun ? -2.0f * (t.sigma * (grow / h - 1.0f)) : -t.sigma * grow;
    return u;
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

static tensor dpm_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise)
{
    const struct scheduler_config *c = s->config;
    struct level t = level_at(s, i + 1), s0 = level_at(s, i);
    float h = t.lambda - s0.lambda;
    int order = order_at(s, i), terms = 1;
    keep(p, s, convert_output(p, s, i, e, x), c->solver_order);
    struct update u = !is_sde(c)                              ? ode_update(c, t, s0, h, order)
                      : c->algorithm_type == SDE_DPMSOLVER_PP ? sde_pp_update(c, t, s0, h, order)
                                                              : sde_update(c, t, s0, h, order);
    double m[3], coef[LINCOMB_MAX] = {(double)u.of_x};
    tensor from[LINCOMB_MAX] = {x}, fresh = {0};
    of_outputs(s, i, h, order, u.d, m);
    for (int k = 0; k < order; k++, terms++) {
        coef[terms] = m[k];
        from[terms] = s->kept[s->kept_count - 1 - k];
    }
    if (is_sde(c)) {
        /* diffusers draws this noise in fp32 whatever the model's type is. */
        struct noise f32 = {noise->seed, noise->offset, DTYPE_F32};
        from[terms] = fresh = noise_draw(p, &f32, x.n, x.h, x.w, x.c);
        coef[terms++] = (double)u.of_noise;
        noise->offset = f32.offset;
    }
    tensor y = combine(p, terms, coef, from);
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
    .has_rescale = true,
    .has_thresholding = true,
    .predictions = 1u << PREDICT_EPSILON | 1u << PREDICT_SAMPLE | 1u << PREDICT_V,
    .check = dpm_check,
    .start = dpm_start,
    .mix = dpm_mix,
    .step = dpm_step,
};
