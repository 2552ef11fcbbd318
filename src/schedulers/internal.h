/* What the schedulers share: the parsed config, its tables, one run's state, and the helpers that keep each
 * scheduler's file down to its own formulas. Private to src/schedulers. */
#ifndef LATENTD_SCHEDULERS_INTERNAL_H
#define LATENTD_SCHEDULERS_INTERNAL_H

#include "scheduler.h"

enum beta_schedule { BETA_LINEAR, BETA_SCALED_LINEAR, BETA_SQUAREDCOS };
enum prediction { PREDICT_EPSILON, PREDICT_SAMPLE, PREDICT_V };
enum spacing { SPACING_LINSPACE, SPACING_LEADING, SPACING_TRAILING };
enum sigma_curve { CURVE_TRAINED, CURVE_KARRAS, CURVE_EXPONENTIAL, CURVE_LU };
enum algorithm { DPMSOLVER, DPMSOLVER_PP, SDE_DPMSOLVER, SDE_DPMSOLVER_PP };

struct scheduler_class;

/* Field names are those of scheduler_config.json. Lifetime "model". */
struct scheduler_config {
    const struct scheduler_class *kind;
    int num_train_timesteps;
    double beta_start, beta_end;
    enum beta_schedule beta_schedule;
    float *trained_betas; /* [num_train_timesteps] or NULL */
    bool rescale_betas_zero_snr;
    enum prediction prediction_type;
    enum spacing timestep_spacing;
    int steps_offset;
    bool set_alpha_to_one;
    bool clip_sample;
    double clip_sample_range;
    bool skip_prk_steps;
    bool log_linear;             /* interpolation_type */
    bool continuous;             /* timestep_type */
    bool final_sigma_zero;       /* final_sigmas_type */
    enum sigma_curve curve;      /* use_karras_sigmas, use_exponential_sigmas, use_lu_lambdas */
    double sigma_min, sigma_max; /* NAN: taken from the schedule */
    double lambda_min_clipped;   /* -inf: not clipped */
    enum algorithm algorithm_type;
    bool heun; /* solver_type */
    int solver_order;
    bool lower_order_final, euler_at_final;
    int original_inference_steps;
    double timestep_scaling;

    /* Tables, [num_train_timesteps] fp32 as diffusers keeps them. */
    float *alphas_cumprod;
    float *train_sigmas; /* sqrt((1 - alpha) / alpha) */
    float final_alpha_cumprod;
};

enum { KEPT_MAX = 4 };

/* One run. Lifetime "job". The config must outlive it. */
struct scheduler {
    const struct scheduler_config *config;
    int steps;        /* as asked; calls may differ */
    int calls;        /* of the whole run; a class's functions number them from 0 to here */
    int first;        /* the call that the run begins with: 0, or more under scheduler_skip */
    int next;         /* the call that scheduler_step expects */
    float *timesteps; /* [calls] */
    float *sigmas;    /* [sigma_count], NULL where a scheduler has none */
    int sigma_count;
    float init_noise_sigma;
    tensor kept[KEPT_MAX]; /* outputs of earlier calls, oldest first; owned */
    int kept_count;
    tensor sample, sum; /* PNDM: the latents a step began with, and its running sum; owned */
};

struct scheduler_class {
    const char *name; /* diffusers' _class_name */
    /* Defaults that differ from class to class. */
    double beta_start, beta_end;
    enum beta_schedule beta_schedule;
    enum spacing timestep_spacing;
    bool set_alpha_to_one, clip_sample;
    /* What of the config the class reads. */
    bool has_sigmas;       /* 2^-24 in place of the last alpha under rescale_betas_zero_snr */
    bool has_rescale;      /* reads rescale_betas_zero_snr */
    bool has_thresholding; /* refused when true */
    unsigned predictions;  /* bits 1 << enum prediction */
    int order;             /* calls a step under scheduler_skip; 0 means 1 */
    /* What add_noise mixes x_0 and noise by at call i. */
    void (*mix)(const struct scheduler *s, int i, double *of_x0, double *of_noise);
    /* Refuses combinations that this class cannot do; may be NULL. */
    int (*check)(const struct scheduler_config *c, const char *file, struct error *err);
    /* Fills timesteps, calls and, where it has them, sigmas and init_noise_sigma. */
    int (*start)(struct scheduler *s, struct error *err);
    /* NULL: the model reads x as it is. */
    tensor (*scale_input)(pass *p, const struct scheduler *s, int i, tensor x);
    tensor (*step)(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise);
};

extern const struct scheduler_class pndm_class, ddim_class, euler_class, euler_ancestral_class,
    dpmsolver_multistep_class, lcm_class;

/* ---- tables.c ---- */

/* Computes the tables of C from its beta schedule. */
int tables_make(struct scheduler_config *c, struct error *err);
/* torch.linspace in fp32. */
float torch_linspace(float start, float end, int count, int i);

/* ---- spacing.c ---- */

/* numpy.linspace(start, stop, count)[i]. */
double np_linspace(double start, double stop, int count, int i);
/* numpy.arange(start, 0, -step): how many, and the i-th. */
int arange_down_count(double start, double step);
double arange_down(double start, double step, int i);
/* alphas_cumprod[timestep] with bounds checked; a negative timestep gives final_alpha_cumprod. */
float alpha_at(const struct scheduler_config *c, int timestep);
/* numpy.interp(t, [0, 1, …], train_sigmas). */
double sigma_at(const struct scheduler_config *c, double timestep);
/* The sigma of step I of COUNT on the curve of the config between FIRST (noisiest) and LAST. */
double sigma_on_curve(const struct scheduler_config *c, double first, double last, int count, int i);
/* Where SIGMA lies on the training schedule, as a fractional timestep. */
double sigma_to_timestep(const struct scheduler_config *c, double sigma);
/* Last sigma of a run: 0 or that of timestep 0. */
float sigma_last(const struct scheduler_config *c);
/* Room for COUNT timesteps and SIGMAS sigmas (0: none). Sets calls and sigma_count. */
int run_alloc(struct scheduler *s, int count, int sigmas, struct error *err);
/* ERR_INVALID unless every timestep is an index into the training schedule. */
int check_timesteps(const struct scheduler *s, struct error *err);
/* ERR_INVALID when the run begins with two equal timesteps: diffusers finds its place in the schedule by the
 * first timestep, takes the second of them, and runs past the end. */
int check_first_timestep(const struct scheduler *s, struct error *err);
/* The sigma schedule and timesteps of the two Euler schedulers. */
int euler_start(struct scheduler *s, struct error *err);
/* x / sqrt(sigma^2 + 1). */
tensor euler_scale_input(pass *p, const struct scheduler *s, int i, tensor x);

/* add_noise of the classes that know a sigma: x_0 + sigma noise. */
void mix_sigma(const struct scheduler *s, int i, double *of_x0, double *of_noise);
/* add_noise of those that know a timestep: sqrt(alpha) x_0 + sqrt(1 - alpha) noise. */
void mix_alpha(const struct scheduler *s, int i, double *of_x0, double *of_noise);

/* ---- scheduler.c ---- */

/* lincomb with coefficients worked out in double. A coefficient that is not finite is ERR_INVALID. */
tensor combine(pass *p, int count, const double *coef, const tensor *x);
tensor copy_of(pass *p, tensor x);
/* Takes X over as the newest kept output; the oldest beyond MOST is given back. */
void keep(pass *p, struct scheduler *s, tensor x, int most);
/* Coefficients of x and the model output in the predicted x_0, from alphas_cumprod at the timestep. */
void predict_x0(enum prediction prediction, double alpha, double *of_x, double *of_e);

#endif
