/* Sigmas: read off the training schedule, spread over the curves of Karras et al. (arXiv 2206.00364), Lu et
 * al. and others, and back to timesteps; in numpy's arithmetic, so that timesteps are equal to diffusers' and
 * not merely close. */
#include <math.h>

#include "internal.h"

double np_linspace(double start, double stop, int count, int i)
{
    if (count > 1 && i == count - 1)
        return stop;
    double step = count > 1 ? (stop - start) / (count - 1) : stop - start;
    return i * step + start;
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

/* Regularized incomplete beta function I_x(a, a) for 0 < x <= 1/2: its power series, which converges at least
 * as fast as 2^-n there (Abramowitz and Stegun 26.5.4 with the hypergeometric series of 15.1.1). */
static double incomplete_beta(double a, double x)
{
    double term = 1, sum = 1 / a;
    for (int n = 1; n < 200 && term > 1e-18; n++) {
        term *= (n - a) / n * x;
        sum += term / (a + n);
    }
    return pow(x, a) * sum * (tgamma(2 * a) / (tgamma(a) * tgamma(a)));
}

/* scipy.stats.beta.ppf(q, 0.6, 0.6): where the beta distribution has reached Q. Symmetric about 1/2. */
static double beta_quantile(double q)
{
    const double a = 0.6; /* the value of arXiv 2407.12173 */
    if (q <= 0 || q >= 1)
        return q <= 0 ? 0 : 1;
    if (q > 0.5)
        return 1 - beta_quantile(1 - q);
    double low = 0, high = 0.5;
    for (int i = 0; i < 200 && high - low > 1e-17; i++) {
        double mid = (low + high) / 2;
        if (incomplete_beta(a, mid) < q)
            low = mid;
        else
            high = mid;
    }
    return (low + high) / 2;
}

double sigma_on_curve(const struct scheduler_config *c, double first, double last, int count, int i)
{
    const double rho = 7;     /* the paper's value */
    if (c->curve == CURVE_LU) /* even in log sigma, whatever sigma_min and sigma_max are */
        return exp(np_linspace(0, 1, count, i) * ((double)logf((float)last) - (double)logf((float)first)) +
                   (double)logf((float)first));
    if (c->curve != CURVE_KARRAS || c->kind->reads & READS_SIGMA_RANGE) {
        first = isnan(c->sigma_max) ? first : c->sigma_max;
        last = isnan(c->sigma_min) ? last : c->sigma_min;
    }
    if (c->curve == CURVE_EXPONENTIAL)
        return exp(np_linspace(log(first), log(last), count, i));
    if (c->curve == CURVE_BETA)
        return last + beta_quantile(1 - np_linspace(0, 1, count, i)) * (first - last);
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
