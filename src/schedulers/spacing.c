/* Which timesteps and sigmas a run visits: table 2 of arXiv 2305.08891 for the timesteps, and the sigmas read
 * off at them or taken from a curve. */
#include <math.h>
#include <stdlib.h>

#include "internal.h"

/* numpy.arange(start, 0, -step): how many, and the i-th. */
static int arange_down_count(double start, double step)
{
    return (int)ceil(-start / -step);
}

static double arange_down(double start, double step, int i)
{
    double delta = (start - step) - start;
    return start + i * delta;
}

float alpha_at(const struct scheduler_config *c, int timestep)
{
    if (timestep < 0)
        return c->final_alpha_cumprod;
    return timestep < c->num_train_timesteps ? c->alphas_cumprod[timestep] : NAN;
}

void mix_sigma(const struct scheduler *s, int i, double *of_x0, double *of_noise)
{
    int order = s->config->kind->order ? s->config->kind->order : 1;
    *of_x0 = 1;
    *of_noise = (double)s->sigmas[i / order];
}

void mix_alpha(const struct scheduler *s, int i, double *of_x0, double *of_noise)
{
    double alpha = (double)alpha_at(s->config, (int)s->timesteps[i]);
    *of_x0 = sqrt(alpha);
    *of_noise = sqrt(1 - alpha);
}

/* Last sigma of a run: 0 or that of timestep 0. */
static float sigma_last(const struct scheduler_config *c)
{
    return c->final_sigma_zero ? 0.0f : c->train_sigmas[0];
}

int run_alloc(struct scheduler *s, int count, int sigmas, struct error *err)
{
    s->timesteps = calloc((size_t)count, sizeof *s->timesteps);
    s->sigmas = sigmas ? calloc((size_t)sigmas, sizeof *s->sigmas) : NULL;
    if (!s->timesteps || (sigmas && !s->sigmas))
        return error_set(err, ERR_NOMEM, "no memory for a schedule of %d steps", count);
    s->calls = count;
    s->sigma_count = sigmas;
    return 0;
}

int check_timesteps(const struct scheduler *s, struct error *err)
{
    int n = s->config->num_train_timesteps;
    for (int i = 0; i < s->calls; i++) {
        if (s->timesteps[i] < 0 || s->timesteps[i] >= (float)n)
            return error_set(err, ERR_INVALID, "index %.0f is out of bounds for dimension 0 with size %d",
                             (double)s->timesteps[i], n);
    }
    return 0;
}

/* ERR_INVALID when the run begins with two equal timesteps: diffusers finds its place in the schedule by the
 * first timestep, takes the second of them, and runs past the end. */
static int check_first_timestep(const struct scheduler *s, struct error *err)
{
    if (s->calls > 1 && s->timesteps[0] == s->timesteps[1])
        return error_set(
            err, ERR_INVALID,
            "`num_inference_steps`: %d is too many for this scheduler: its first two timesteps would be "
            "equal",
            s->steps);
    return 0;
}

int spaced_count(const struct scheduler_config *c, int steps)
{
    int n = c->num_train_timesteps;
    return c->timestep_spacing == SPACING_TRAILING ? arange_down_count(n, (double)n / steps) : steps;
}

double spaced_timestep(const struct scheduler_config *c, int steps, int count, int i)
{
    int n = c->num_train_timesteps;
    switch (c->timestep_spacing) {
    case SPACING_LINSPACE:
        return np_linspace(0, n - 1, count, count - 1 - i);
    case SPACING_LEADING:
        return (count - 1 - i) * (n / steps) + c->steps_offset;
    default:
        return rint(arange_down(n, (double)n / steps, i)) - 1;
    }
}

int spaced_start(struct scheduler *s, struct error *err)
{
    int count = spaced_count(s->config, s->steps), rc = run_alloc(s, count, 0, err);
    if (rc < 0)
        return rc;
    for (int i = 0; i < count; i++)
        s->timesteps[i] = (float)rint(spaced_timestep(s->config, s->steps, count, i));
    return check_timesteps(s, err);
}

/* ---- k-diffusion's schedulers ---- */

/* Replaces the sigmas read off the timesteps by the curve that the config asks for. */
static void k_curve(struct scheduler *s)
{
    const struct scheduler_config *c = s->config;
    int n = s->sigma_count - 1;
    double first = sigma_at(c, (double)s->timesteps[0]),
           last = sigma_at(c, (double)s->timesteps[s->calls - 1]);
    if (c->log_linear) { /* the curve then starts from interpolated fp32 sigmas, n + 1 of them */
        first = (double)expf(logf(c->train_sigmas[c->num_train_timesteps - 1]));
        last = (double)expf(logf(c->train_sigmas[0]));
    }
    for (int i = 0; i < n; i++) {
        double sigma = sigma_on_curve(c, first, last, n, i), t = sigma_to_timestep(c, sigma);
        s->sigmas[i] = (float)sigma;
        s->timesteps[i] = (float)(c->curve == CURVE_KARRAS && c->kind->rounds_karras ? rint(t) : t);
    }
}

static void k_sigmas(struct scheduler *s)
{
    const struct scheduler_config *c = s->config;
    int n = s->sigma_count - 1;
    float top = logf(c->train_sigmas[c->num_train_timesteps - 1]), bottom = logf(c->train_sigmas[0]);
    if (c->curve != CURVE_TRAINED) {
        k_curve(s);
    } else if (c->log_linear) {
        for (int i = 0; i < n; i++)
            s->sigmas[i] = expf(torch_linspace(top, bottom, n, i));
    } else {
        for (int i = 0; i < n; i++)
            s->sigmas[i] = (float)sigma_at(c, (double)s->timesteps[i]);
    }
    s->sigmas[n] = sigma_last(c);
}

/* Timesteps and sigmas, one a step. */
static int k_steps(struct scheduler *s, struct error *err)
{
    const struct scheduler_config *c = s->config;
    int count = spaced_count(c, s->steps);
    /* diffusers' log-linear interpolation yields one sigma more than there are steps; the last two are never
     * reached in full. Its curves have as many as steps were asked for. */
    bool curved = c->curve != CURVE_TRAINED;
    int sigmas = curved ? s->steps : c->log_linear ? s->steps + 1 : count;
    int rc = run_alloc(s, count, sigmas + 1, err);
    if (rc < 0)
        return rc;
    for (int i = 0; i < count; i++)
        s->timesteps[i] = (float)spaced_timestep(c, s->steps, count, i);
    k_sigmas(s);
    if (curved)
        s->calls = s->steps; /* numpy.arange may have counted one more */
    float max = 0;
    for (int i = 0; i < s->sigma_count; i++)
        max = fmaxf(max, s->sigmas[i]);
    s->init_noise_sigma = c->timestep_spacing == SPACING_LEADING ? sqrtf(max * max + 1.0f) : max;
    return 0;
}

int k_start(struct scheduler *s, struct error *err)
{
    const struct scheduler_config *c = s->config;
    int rc = k_steps(s, err);
    if (rc < 0)
        return rc;
    if (c->continuous && c->prediction_type == PREDICT_V) {
        for (int i = 0; i < s->calls; i++)
            s->timesteps[i] = 0.25f * logf(s->sigmas[i]);
    }
    return check_first_timestep(s, err);
}

int k_start_twofold(struct scheduler *s, float (*middle)(const struct scheduler *s, int k), struct error *err)
{
    int rc = k_steps(s, err), steps = s->calls;
    float *timesteps = rc < 0 ? NULL : calloc((size_t)(2 * steps), sizeof *timesteps);
    if (rc < 0)
        return rc;
    if (!timesteps)
        return error_set(err, ERR_NOMEM, "no memory for a schedule of %d steps", steps);
    for (int k = 0; k < steps; k++) {
        timesteps[2 * k] = s->timesteps[k];
        if (k < steps - 1)
            timesteps[2 * k + 1] =
                middle ? (float)sigma_to_timestep(s->config, (double)middle(s, k)) : s->timesteps[k + 1];
    }
    free(s->timesteps);
    s->timesteps = timesteps;
    s->calls = 2 * steps - 1; /* the last step goes to sigma 0 in one */
    return check_first_timestep(s, err);
}

/* ---- solvers in log-SNR ---- */

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

/* These visit STEPS of STEPS + 1 even points, so that the last step ends near timestep 0. */
static double solver_timestep(const struct scheduler_config *c, int steps, int last, int i)
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
static void solver_curve(struct scheduler *s, int i)
{
    const struct scheduler_config *c = s->config;
    float top = c->train_sigmas[c->num_train_timesteps - 1], bottom = c->train_sigmas[0];
    double sigma = sigma_on_curve(c, (double)top, (double)bottom, s->steps, i);
    double t = sigma_to_timestep(c, sigma);
    bool rounds = (c->curve == CURVE_KARRAS || c->curve == CURVE_LU) &&
                  !(c->kind->keeps_cosine_curves && c->beta_schedule == BETA_SQUAREDCOS);
    s->sigmas[i] = (float)sigma;
    s->timesteps[i] = (float)(rounds ? rint(t) : trunc(t));
}

int solver_start(struct scheduler *s, struct error *err)
{
    const struct scheduler_config *c = s->config;
    int last = last_timestep(c), count = s->steps;
    bool curved = c->curve != CURVE_TRAINED;
    if (last < 1)
        return error_set(err, ERR_INVALID, "lambda_min_clipped leaves no timestep");
    if (c->timestep_spacing == SPACING_TRAILING && !curved)
        count = arange_down_count(last, (double)c->num_train_timesteps / s->steps);
    int rc = run_alloc(s, count, count + 1, err);
    if (rc < 0)
        return rc;
    for (int i = 0; i < count; i++) {
        if (curved) {
            solver_curve(s, i);
        } else {
            s->timesteps[i] = (float)solver_timestep(c, s->steps, last, i);
            s->sigmas[i] = (float)sigma_at(c, (double)s->timesteps[i]);
        }
    }
    bool repeats = c->kind->repeats_last_sigma && curved && !c->final_sigma_zero;
    s->sigmas[count] = repeats ? s->sigmas[count - 1] : sigma_last(c);
    return check_first_timestep(s, err);
}
