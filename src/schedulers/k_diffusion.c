/* What the schedulers of k-diffusion share: latents x = x_0 + sigma noise, and steps along (x - x_0) / sigma.
 */
#include <math.h>

#include "internal.h"

tensor scale_by_sigma(pass *p, double sigma, tensor x)
{
    double scale = 1 / sqrt(sigma * sigma + 1);
    return combine(p, 1, &scale, &x);
}

tensor k_scale_input(pass *p, const struct scheduler *s, int i, tensor x)
{
    return scale_by_sigma(p, (double)s->sigmas[i], x);
}

void k_derivative(enum prediction prediction, double sigma, double coef[2])
{
    switch (prediction) {
    case PREDICT_EPSILON:
        coef[0] = 0;
        coef[1] = 1;
        break;
    case PREDICT_V:
        coef[0] = sigma / (sigma * sigma + 1);
        coef[1] = 1 / sqrt(sigma * sigma + 1);
        break;
    case PREDICT_SAMPLE:
        coef[0] = 1 / sigma;
        coef[1] = -1 / sigma;
        break;
    }
}

void ancestral_parts(float from, float to, float *up, float *down)
{
    *up = sqrtf(to * to * (from * from - to * to) / (from * from));
    *down = sqrtf(to * to - *up * *up);
}

void keep_sample(pass *p, struct scheduler *s, tensor x)
{
    if (s->sample.data)
        tensor_free(p, &s->sample);
    s->sample = copy_of(p, x);
}
