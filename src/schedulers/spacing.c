/* Which timesteps and sigmas a run visits: table 2 of arXiv 2305.08891, and the curves of Karras et al.
 * (arXiv 2206.00364), in numpy's arithmetic, so that timesteps are equal to diffusers' and not merely close.
 */
#include <math.h>
#include <stdlib.h>

#include "internal.h"

double np_linspace(double start, double stop, int count, int i)
{
    if (count > 1 && i == count - 1)
        return stop;
    double step = count > 1 ? (stop - start) / (count - 1) : stop - start;
    return i * step + start;
}

int arange_down_count(double start, double step)
{
    return (int)ceil(-start / -step);
}

double arange_down(double start, double step, int i)
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

double sigma_at(const struct scheduler_config *c, double timestep)
{
    const float *sigmas = c->train_sigmas;
    int last = c->num_train_timesteps - 1;
    if (timestep >= last)
        return sigmas[last];
    if (timestep <= 0)
        return sigmas[0];
    int j = (int)timestep;
    double low = sigmas[j], slope = (double)sigmas[j + 1] - low;
    return slope * (timestep - j) + low;
}

double sigma_on_curve(const struct scheduler_config *c, double first, double last, int count, int i)
{
    const double rho = 7; /* the paper's value */
    first = isnan(c->sigma_max) ? first : c->sigma_max;
    last = isnan(c->sigma_min) ? last : c->sigma_min;
    if (c->curve == CURVE_EXPONENTIAL)
        return exp(np_linspace(log(first), log(last), count, i));
    double a = pow(first, 1 / rho), b = pow(last, 1 / rho);
    return pow(a + np_linspace(0, 1, count, i) * (b - a), rho);
}

double sigma_to_timestep(const struct scheduler_config *c, double sigma)
{
    double log_sigma = log(fmax(sigma, 1e-10));
    int low = 0, top = c->num_train_timesteps - 1;
    /* The last entry that is not above log_sigma; the table grows with the timestep. */
    for (int end = top; low < end;) {
        int mid = low + (end - low + 1) / 2;
        if (log_sigma - (double)logf(c->train_sigmas[mid]) >= 0)
            low = mid;
        else
            end = mid - 1;
    }
    if (low > top - 1)
        low = top - 1;
    float l = logf(c->train_sigmas[low]), h = logf(c->train_sigmas[low + 1]);
    double w = ((double)l - log_sigma) / (double)(l - h);
    w = fmin(fmax(w, 0), 1);
    return (1 - w) * low + w * (low + 1);
}

void mix_sigma(const struct scheduler *s, int i, double *of_x0, double *of_noise)
{
    *of_x0 = 1;
    *of_noise = (double)s->sigmas[i];
}

void mix_alpha(const struct scheduler *s, int i, double *of_x0, double *of_noise)
{
    double alpha = (double)alpha_at(s->config, (int)s->timesteps[i]);
    *of_x0 = sqrt(alpha);
    *of_noise = sqrt(1 - alpha);
}

float sigma_last(const struct scheduler_config *c)
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

int check_first_timestep(const struct scheduler *s, struct error *err)
{
    if (s->calls > 1 && s->timesteps[0] == s->timesteps[1])
        return error_set(
            err, ERR_INVALID,
            "`num_inference_steps`: %d is too many for this scheduler: its first two timesteps would be "
            "equal",
            s->steps);
    return 0;
}

static double euler_timestep(const struct scheduler_config *c, int steps, int count, int i)
{
    int n = c->num_train_timesteps;
    switch (c->timestep_spacing) {
    case SPACING_LINSPACE:
        return (float)np_linspace(0, n - 1, count, count - 1 - i);
    case SPACING_LEADING:
        return (count - 1 - i) * (n / steps) + c->steps_offset;
    default:
        return rint(arange_down(n, (double)n / steps, i)) - 1;
    }
}

/* Replaces the sigmas read off the timesteps by the curve that the config asks for. */
static void euler_curve(struct scheduler *s)
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
        double sigma = sigma_on_curve(c, first, last, n, i);
        s->sigmas[i] = (float)sigma;
        s->timesteps[i] = (float)sigma_to_timestep(c, sigma);
    }
}

static void euler_sigmas(struct scheduler *s)
{
    const struct scheduler_config *c = s->config;
    int n = s->sigma_count - 1;
    float top = logf(c->train_sigmas[c->num_train_timesteps - 1]), bottom = logf(c->train_sigmas[0]);
    if (c->curve != CURVE_TRAINED) {
        euler_curve(s);
    } else if (c->log_linear) {
        for (int i = 0; i < n; i++)
            s->sigmas[i] = expf(torch_linspace(top, bottom, n, i));
    } else {
        for (int i = 0; i < n; i++)
            s->sigmas[i] = (float)sigma_at(c, (double)s->timesteps[i]);
    }
    s->sigmas[n] = sigma_last(c);
}

int euler_start(struct scheduler *s, struct error *err)
{
    const struct scheduler_config *c = s->config;
    int n = c->num_train_timesteps, count = s->steps;
    if (c->timestep_spacing == SPACING_TRAILING)
        count = arange_down_count(n, (double)n / s->steps);
    /* diffusers' log-linear interpolation yields one sigma more than there are steps; the last two are never
     * reached in full. Its curves have as many as steps were asked for. */
    bool curved = c->curve != CURVE_TRAINED;
    int sigmas = curved ? s->steps : c->log_linear ? s->steps + 1 : count;
    int rc = run_alloc(s, count, sigmas + 1, err);
    if (rc < 0)
        return rc;
    for (int i = 0; i < count; i++)
        s->timesteps[i] = (float)euler_timestep(c, s->steps, count, i);
    euler_sigmas(s);
    if (curved)
        s->calls = s->steps; /* numpy.arange may have counted one more */
    float max = 0;
    for (int i = 0; i < s->sigma_count; i++)
        max = fmaxf(max, s->sigmas[i]);
    s->init_noise_sigma = c->timestep_spacing == SPACING_LEADING ? sqrtf(max * max + 1.0f) : max;
    if (c->continuous && c->prediction_type == PREDICT_V) {
        for (int i = 0; i < s->calls; i++)
            s->timesteps[i] = 0.25f * logf(s->sigmas[i]);
    }
    return check_first_timestep(s, err);
}

tensor euler_scale_input(pass *p, const struct scheduler *s, int i, tensor x)
{
    double sigma = (double)s->sigmas[i], scale = 1 / sqrt(sigma * sigma + 1);
    return combine(p, 1, &scale, &x);
}
