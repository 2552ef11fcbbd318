/* The beta schedule and what follows from it, in fp32 and in the order torch computes it.
 *
 * Sources: the constructors of diffusers' schedulers, rescale_zero_terminal_snr (arXiv 2305.08891, algorithm
 * 1), betas_for_alpha_bar; torch.linspace and torch.cumprod on the CPU. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

float torch_linspace(float start, float end, int count, int i)
{
    if (count < 2)
        return start;
    float step = (end - start) / (float)(count - 1);
    /* Both halves count from their own end, so that both ends are exact. */
    return i < count / 2 ? start + step * (float)i : end - step * (float)(count - i - 1);
}

/* betas_for_alpha_bar's curves over t from 0 to 1. */
static double alpha_bar(enum beta_schedule schedule, double t)
{
    if (schedule == BETA_EXP)
        return exp(t * -12);
    if (schedule == BETA_LAPLACE) {
        double lambda = -0.5 * copysign(1, 0.5 - t) * log(1 - 2 * fabs(0.5 - t) + 1e-6), snr = exp(lambda);
        return sqrt(snr / (1 + snr));
    }
    double c = cos((t + 0.008) / 1.008 * M_PI / 2);
    return c * c;
}

static float beta_at(const struct scheduler_config *c, int i)
{
    int n = c->num_train_timesteps;
    if (c->trained_betas)
        return c->trained_betas[i];
    if (c->beta_schedule == BETA_LINEAR)
        return torch_linspace((float)c->beta_start, (float)c->beta_end, n, i);
    if (c->beta_schedule == BETA_SCALED_LINEAR) {
        float root = torch_linspace((float)sqrt(c->beta_start), (float)sqrt(c->beta_end), n, i);
        return root * root;
    }
    if (c->beta_schedule == BETA_SIGMOID)
        return 1.0f / (1.0f + expf(-torch_linspace(-6, 6, n, i))) * (float)(c->beta_end - c->beta_start) +
               (float)c->beta_start;
    double beta =
        1 - alpha_bar(c->beta_schedule, (double)(i + 1) / n) / alpha_bar(c->beta_schedule, (double)i / n);
    return (float)fmin(beta, 0.999);
}

/* torch.cumprod(1 - betas): products in double, each result rounded to fp32. */
static void cumulate(const float *betas, float *alphas_cumprod, int n)
{
    double product = 1;
    for (int i = 0; i < n; i++) {
        product *= (double)(1.0f - betas[i]);
        alphas_cumprod[i] = (float)product;
    }
}

/* Moves and stretches sqrt(alphas_cumprod) so that the last one is 0 and the first stays. ROOT is scratch
 * [n]. */
static void rescale_zero_snr(float *betas, float *root, int n)
{
    cumulate(betas, root, n);
    for (int i = 0; i < n; i++)
        root[i] = sqrtf(root[i]);
    float first = root[0], last = root[n - 1], scale = first / (first - last);
    float before = 1;
    for (int i = 0; i < n; i++) {
        float r = (root[i] - last) * scale;
        float bar = r * r;
        betas[i] = 1.0f - (i ? bar / before : bar);
        before = bar;
    }
}

int tables_make(struct scheduler_config *c, struct error *err)
{
    size_t n = (size_t)c->num_train_timesteps;
    float *betas = malloc(n * sizeof *betas);
    c->alphas_cumprod = malloc(n * sizeof *c->alphas_cumprod);
    c->train_sigmas = malloc(n * sizeof *c->train_sigmas);
    if (!betas || !c->alphas_cumprod || !c->train_sigmas) {
        free(betas);
        return error_set(err, ERR_NOMEM, "no memory for a noise schedule of %zu steps", n);
    }
    for (size_t i = 0; i < n; i++)
        betas[i] = beta_at(c, (int)i);
    if (c->rescale_betas_zero_snr)
        rescale_zero_snr(betas, c->alphas_cumprod, (int)n);
    cumulate(betas, c->alphas_cumprod, (int)n);
    /* Close to 0 without being 0, so that the first sigma is finite (4096). */
    if (c->rescale_betas_zero_snr && c->kind->has_sigmas)
        c->alphas_cumprod[n - 1] = 0x1p-24f;
    for (size_t i = 0; i < n; i++)
        c->train_sigmas[i] = sqrtf((1.0f - c->alphas_cumprod[i]) / c->alphas_cumprod[i]);
    c->final_alpha_cumprod = c->set_alpha_to_one ? 1.0f : c->alphas_cumprod[0];
    free(betas);
    return 0;
}
