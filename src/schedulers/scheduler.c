/* The door: starts a run, keeps its calls in order, and holds the few helpers that every scheduler's step
 * uses. */
#include <math.h>
#include <stdlib.h>

#include "internal.h"

int scheduler_start(struct scheduler **out, const struct scheduler_config *c, int steps, struct error *err)
{
    *out = NULL;
    if (steps < 1)
        return error_set(err, ERR_INVALID, "`num_inference_steps` has to be at least 1 but is %d", steps);
    if (steps > c->num_train_timesteps)
        return error_set(
            err, ERR_INVALID,
            "`num_inference_steps`: %d cannot be larger than `self.config.train_timesteps`: %d as the unet "
            "model trained with this scheduler can only handle maximal %d timesteps.",
            steps, c->num_train_timesteps, c->num_train_timesteps);
    struct scheduler *s = calloc(1, sizeof *s);
    if (!s)
        return error_set(err, ERR_NOMEM, "no memory for a scheduler");
    s->config = c;
    s->steps = steps;
    s->init_noise_sigma = 1;
    int rc = c->kind->start(s, err);
    if (rc < 0) {
        scheduler_end(NULL, &s);
        return rc;
    }
    *out = s;
    return 0;
}

int scheduler_skip(struct scheduler *s, int step, struct error *err)
{
    int order = s->config->kind->order ? s->config->kind->order : 1;
    if (step < 0 || step > s->steps || s->next > s->first)
        return error_set(err, ERR_INTERNAL, "scheduler_skip: step %d of %d after %d calls", step, s->steps,
                         s->next - s->first);
    s->first = step * order < s->calls ? step * order : s->calls;
    s->next = s->first;
    return 0;
}

tensor scheduler_add_noise(pass *p, const struct scheduler *s, tensor x0, tensor noise)
{
    double coef[2] = {1, 0};
    if (s->first >= s->calls)
        error_set(p->err, ERR_INVALID, "no step is left to add noise at");
    else
        s->config->kind->mix(s, s->first, &coef[0], &coef[1]);
    return combine(p, 2, coef, (tensor[]){x0, noise});
}

tensor scheduler_config_add_noise(pass *p, const struct scheduler_config *c, int timestep, tensor x0,
                                  tensor noise)
{
    double coef[2] = {1, 0};
    if (c->kind->mix != mix_alpha || timestep < 0 || timestep >= c->num_train_timesteps) {
        error_set(p->err, ERR_UNSUPPORTED, "%s adds no noise at timestep %d", c->kind->name, timestep);
    } else { /* in fp32, as diffusers does */
        float alpha = alpha_at(c, timestep);
        coef[0] = (double)sqrtf(alpha);
        coef[1] = (double)sqrtf(1 - alpha);
    }
    return combine(p, 2, coef, (tensor[]){x0, noise});
}

void scheduler_end(pass *p, struct scheduler **s)
{
    if (!s || !*s)
        return;
    for (int i = 0; p && i < (*s)->kept_count; i++)
        tensor_free(p, &(*s)->kept[i]);
    if (p && (*s)->sample.data)
        tensor_free(p, &(*s)->sample);
    if (p && (*s)->sum.data)
        tensor_free(p, &(*s)->sum);
    free((*s)->timesteps);
    free((*s)->sigmas);
    free(*s);
    *s = NULL;
}

int scheduler_calls(const struct scheduler *s)
{
    return s->calls - s->first;
}

const float *scheduler_timesteps(const struct scheduler *s)
{
    return s->timesteps + s->first;
}

float scheduler_init_noise_sigma(const struct scheduler *s)
{
    return s->init_noise_sigma;
}

tensor scheduler_scale_input(pass *p, const struct scheduler *s, int i, tensor x)
{
    i += s->first;
    if (i < s->first || i >= s->calls)
        error_set(p->err, ERR_INTERNAL, "scheduler_scale_input: call %d of %d", i - s->first,
                  scheduler_calls(s));
    if (p->err->code || !s->config->kind->scale_input)
        return copy_of(p, x);
    return s->config->kind->scale_input(p, s, i, x);
}

tensor scheduler_step(pass *p, struct scheduler *s, int i, tensor model_output, tensor x, struct noise *noise)
{
    i += s->first;
    if (i != s->next || i >= s->calls)
        error_set(p->err, ERR_INTERNAL, "scheduler_step: call %d of %d when call %d was due", i - s->first,
                  scheduler_calls(s), s->next - s->first);
    if (p->err->code)
        return copy_of(p, x);
    s->next++;
    return s->config->kind->step(p, s, i, model_output, x, noise);
}

tensor scheduler_step_guided(pass *p, struct scheduler *s, int i, tensor pair, float guidance, tensor x,
                             struct noise *noise)
{
    s->pair = pair.data;
    s->guidance = guidance;
    tensor y = scheduler_step(p, s, i, pair, x, noise);
    s->pair = NULL;
    return y;
}

/* COEF in fp32, as lincomb reads it. */
static void round_coefficients(pass *p, int count, const double *coef, float rounded[LINCOMB_MAX])
{
    for (int i = 0; i < count && i < LINCOMB_MAX; i++) {
        rounded[i] = (float)coef[i];
        if (!isfinite(rounded[i]))
            error_set(p->err, ERR_INVALID,
                      "the scheduler's coefficients are not finite: two of its steps coincide, or its noise "
                      "schedule ends "
                      "without any signal, which only prediction_type v_prediction can start from");
    }
}

tensor combine(pass *p, int count, const double *coef, const tensor *x)
{
    float rounded[LINCOMB_MAX] = {0};
    round_coefficients(p, count, coef, rounded);
    return lincomb(p, count, rounded, x);
}

tensor combine_output(pass *p, const struct scheduler *s, int count, const double *coef, const tensor *x)
{
    float rounded[LINCOMB_MAX] = {0};
    int at = 0;
    while (at < count && (!s->pair || x[at].data != s->pair))
        at++;
    if (at == count)
        return combine(p, count, coef, x);
    round_coefficients(p, count, coef, rounded);
    return lincomb_guided(p, count, rounded, x, at, s->guidance);
}

tensor copy_of(pass *p, tensor x)
{
    const float one = 1;
    return lincomb(p, 1, &one, &x);
}

void keep(pass *p, struct scheduler *s, tensor x, int most)
{
    while (s->kept_count > 0 && s->kept_count >= most) {
        tensor_free(p, &s->kept[0]);
        s->kept_count--;
        for (int i = 0; i < s->kept_count; i++)
            s->kept[i] = s->kept[i + 1];
    }
    s->kept[s->kept_count++] = x;
}

void predict_x0(enum prediction prediction, double alpha, double *of_x, double *of_e)
{
    switch (prediction) {
    case PREDICT_EPSILON:
        *of_x = 1 / sqrt(alpha);
        *of_e = -sqrt((1 - alpha) / alpha);
        break;
    case PREDICT_V:
        *of_x = sqrt(alpha);
        *of_e = -sqrt(1 - alpha);
        break;
    case PREDICT_SAMPLE:
        *of_x = 0;
        *of_e = 1;
        break;
    }
}

void predict_noise(enum prediction prediction, double alpha, double *of_x, double *of_e)
{
    switch (prediction) {
    case PREDICT_EPSILON:
        *of_x = 0;
        *of_e = 1;
        break;
    case PREDICT_V:
        *of_x = sqrt(1 - alpha);
        *of_e = sqrt(alpha);
        break;
    case PREDICT_SAMPLE:
        *of_x = 1 / sqrt(1 - alpha);
        *of_e = -sqrt(alpha / (1 - alpha));
        break;
    }
}
