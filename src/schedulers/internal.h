/* What the schedulers share: the parsed config, its tables, one run's state, and the helpers that keep each
 * scheduler's file down to its own formulas. Private to src/schedulers. */
#ifndef LATENTD_SCHEDULERS_INTERNAL_H
#define LATENTD_SCHEDULERS_INTERNAL_H

#include "scheduler.h"

enum beta_schedule {
    BETA_LINEAR,
    BETA_SCALED_LINEAR,
    BETA_SQUAREDCOS,
    BETA_EXP,     /* HeunDiscreteScheduler alone */
    BETA_LAPLACE, /* this and the next: DDPMScheduler alone */
    BETA_SIGMOID
};
enum prediction { PREDICT_EPSILON, PREDICT_SAMPLE, PREDICT_V };
enum spacing { SPACING_LINSPACE, SPACING_LEADING, SPACING_TRAILING };
enum sigma_curve { CURVE_TRAINED, CURVE_KARRAS, CURVE_EXPONENTIAL, CURVE_BETA, CURVE_LU };
enum algorithm { DPMSOLVER, DPMSOLVER_PP, SDE_DPMSOLVER, SDE_DPMSOLVER_PP };
enum variance { VARIANCE_FIXED_SMALL, VARIANCE_FIXED_SMALL_LOG, VARIANCE_FIXED_LARGE };

/* What of the config a class reads. What it does not read is ignored whatever its value, as in diffusers. */
enum reads {
    READS_RESCALE = 1 << 0, /* rescale_betas_zero_snr */
    READS_THRESHOLDING = 1 << 1,
    READS_SPACING = 1 << 2, /* timestep_spacing */
    READS_KARRAS = 1 << 3,
    READS_EXPONENTIAL = 1 << 4,
    READS_BETA = 1 << 5,
    READS_LU = 1 << 6,
    READS_SIGMA_RANGE = 1 << 7, /* sigma_min and sigma_max also bound Karras' curve */
    READS_FINAL_SIGMA = 1 << 8,
    READS_EULER = 1 << 9,   /* interpolation_type, timestep_type */
    READS_SOLVER = 1 << 10, /* solver_order, solver_type, lower_order_final; refuses flow matching */
    READS_ALGORITHM = 1 << 11,
    READS_LAMBDA_MIN = 1 << 12, /* lambda_min_clipped */
    READS_UNIPC = 1 << 13,      /* predict_x0, disable_corrector */
    READS_VARIANCE = 1 << 14,   /* variance_type of DDPM */
    READS_EDM = 1 << 15,        /* sigma_schedule, sigma_data, rho */
    READS_CURVES = READS_KARRAS | READS_EXPONENTIAL | READS_BETA | READS_SIGMA_RANGE
};

enum { CORRECTOR_STEPS_MAX = 16 };

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
    bool log_linear;        /* interpolation_type */
    bool continuous;        /* timestep_type */
    bool final_sigma_zero;  /* final_sigmas_type */
    enum sigma_curve curve; /* use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, use_lu_lambdas */
    double sigma_min, sigma_max; /* NAN: taken from the schedule */
    double sigma_data, rho;      /* EDM */
    double lambda_min_clipped;   /* -inf: not clipped */
    enum algorithm algorithm_type;
    bool heun, bh1; /* solver_type */
    int solver_order;
    bool lower_order_final, euler_at_final;
    int disable_corrector[CORRECTOR_STEPS_MAX], disabled;
    enum variance variance_type;
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
    float *sigmas;    /* [sigma_count], one a step and the last; NULL where a scheduler has none */
    int sigma_count;
    float init_noise_sigma;
    tensor kept[KEPT_MAX]; /* outputs of earlier calls, oldest first; owned */
    int kept_count;
    int last_order;     /* UniPC: of the step before */
    const void *pair;   /* data of a model output not guided yet, under scheduler_step_guided; else NULL */
    float guidance;     /* its scale */
    tensor sample, sum; /* the latents a step began with; PNDM's running sum; owned */
};

struct scheduler_class {
    const char *name; /* diffusers' _class_name */
    /* Defaults that differ from class to class. */
    double beta_start, beta_end;
    enum beta_schedule beta_schedule;
    enum spacing timestep_spacing;
    bool set_alpha_to_one, clip_sample, lower_order_final;
    unsigned reads;           /* enum reads */
    unsigned predictions;     /* bits 1 << enum prediction */
    unsigned beta_schedules;  /* bits 1 << enum beta_schedule, beyond the three that all know */
    int order;                /* calls a step under scheduler_skip; 0 means 1 */
    bool has_sigmas;          /* 2^-24 in place of the last alpha under rescale_betas_zero_snr */
    bool rounds_karras;       /* timesteps on Karras' curve are whole numbers */
    bool repeats_last_sigma;  /* where a curve does not end with 0, its last sigma comes twice */
    bool keeps_cosine_curves; /* those on Karras' or Lu's curve are cut, not rounded, under squaredcos */
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

extern const struct scheduler_class pndm_class, ddim_class, ddpm_class, euler_class, euler_ancestral_class,
    heun_class, lms_class, k_dpm_2_class, k_dpm_2_ancestral_class, dpmsolver_sde_class,
    dpmsolver_multistep_class, dpmsolver_singlestep_class, deis_class, unipc_class, lcm_class, tcd_class,
    edm_euler_class, edm_dpmsolver_class;

/* ---- tables.c ---- */

/* Computes the tables of C from its beta schedule. */
int tables_make(struct scheduler_config *c, struct error *err);
/* torch.linspace in fp32. */
float torch_linspace(float start, float end, int count, int i);

/* ---- curves.c ---- */

/* numpy.linspace(start, stop, count)[i]. */
double np_linspace(double start, double stop, int count, int i);
/* numpy.interp(t, [0, 1, …], train_sigmas). */
double sigma_at(const struct scheduler_config *c, double timestep);
/* The sigma of step I of COUNT on the curve of the config between FIRST (noisiest) and LAST. */
double sigma_on_curve(const struct scheduler_config *c, double first, double last, int count, int i);
/* Where SIGMA lies on the training schedule, as a fractional timestep. */
double sigma_to_timestep(const struct scheduler_config *c, double sigma);

/* ---- spacing.c ---- */

/* Timesteps of a run under the config's spacing: how many, and the i-th, noisiest first, not yet rounded. */
int spaced_count(const struct scheduler_config *c, int steps);
double spaced_timestep(const struct scheduler_config *c, int steps, int count, int i);
/* alphas_cumprod[timestep] with bounds checked; a negative timestep gives final_alpha_cumprod. */
float alpha_at(const struct scheduler_config *c, int timestep);
/* Room for COUNT timesteps and SIGMAS sigmas (0: none). Sets calls and sigma_count. */
int run_alloc(struct scheduler *s, int count, int sigmas, struct error *err);
/* ERR_INVALID unless every timestep is an index into the training schedule. */
int check_timesteps(const struct scheduler *s, struct error *err);
/* Starts of the classes: those that step from timestep to timestep; k-diffusion's, from sigma to sigma, with
 * one call a step; the same with two; the solvers in log-SNR (DPM-Solver, DEIS, UniPC). MIDDLE is the sigma
 * of the second call of step k; NULL: that of the next step. */
int spaced_start(struct scheduler *s, struct error *err);
int k_start(struct scheduler *s, struct error *err);
int k_start_twofold(struct scheduler *s, float (*middle)(const struct scheduler *s, int k),
                    struct error *err);
int solver_start(struct scheduler *s, struct error *err);
/* add_noise of the classes that know a sigma: x_0 + sigma noise. */
void mix_sigma(const struct scheduler *s, int i, double *of_x0, double *of_noise);
/* add_noise of those that know a timestep: sqrt(alpha) x_0 + sqrt(1 - alpha) noise. */
void mix_alpha(const struct scheduler *s, int i, double *of_x0, double *of_noise);

/* ---- lcm.c ---- */

/* Timesteps of the models distilled from original_inference_steps: LCM and TCD. */
int distilled_start(struct scheduler *s, struct error *err);

/* ---- dpmsolver.c ---- */

/* alpha, sigma and lambda = log(alpha / sigma) at a sigma of the schedule, in fp32 as in diffusers: the
 * solvers' coefficients are differences of logarithms, and a rounding there is larger than any later one. */
struct level {
    float alpha, sigma, lambda;
};

/* alpha is 1 for the EDM classes. */
struct level level_at(const struct scheduler *s, int i);
/* add_noise of the solvers: alpha x_0 + sigma noise. */
void mix_level(const struct scheduler *s, int i, double *of_x0, double *of_noise);
/* What the solver integrates: x_0 for the ++ algorithms, the noise for the others. A new tensor. */
tensor solver_output(pass *p, const struct scheduler *s, int i, tensor e, tensor x);

/* One update: x_t = of_x * x + d[0] * D0 + d[1] * D1 + d[2] * D2 + of_noise * noise. */
struct update {
    float of_x, d[3], of_noise;
};

bool is_pp(const struct scheduler_config *c);
bool is_sde(const struct scheduler_config *c);
/* T: where the step goes, S: where it begins, H: lambda_t - lambda_s. ORDER says which D there are; MIDPOINT
 * picks the midpoint form of D1 over the exact one. */
struct update solver_update(const struct scheduler_config *c, struct level t, struct level s, float h,
                            int order, bool midpoint);
/* The update with its D written out as M, coefficients of the outputs kept (newest first), ORDER of them;
 * FRESH is the noise, empty for an ODE. A new tensor. */
tensor solver_move(pass *p, const struct scheduler *s, const struct update *u, const double m[3], int order,
                   tensor x, tensor fresh);

/* The multistep solver's step. */
tensor dpm_multistep_step(pass *p, struct scheduler *s, int i, tensor e, tensor x, struct noise *noise);

/* ---- edm.c ---- */

/* Coefficients of x and the model output in the predicted x_0 at call i. */
void edm_x0(const struct scheduler *s, int i, double *of_x, double *of_e);

/* ---- k_diffusion.c ---- */

/* x / sqrt(sigma^2 + 1). */
tensor scale_by_sigma(pass *p, double sigma, tensor x);
/* The same at the sigma of call i, for one call a step. */
tensor k_scale_input(pass *p, const struct scheduler *s, int i, tensor x);
/* (x - x_0) / sigma as coefficients of x and of the model output. */
void k_derivative(enum prediction prediction, double sigma, double coef[2]);
/* An ancestral step's parts: down to sigma DOWN, then noise of sigma UP. In fp32 in diffusers' order: under
 * few steps sigma_down loses digits that the picture then shows. */
void ancestral_parts(float from, float to, float *up, float *down);
/* Keeps a copy of the latents that a step of two calls began with. */
void keep_sample(pass *p, struct scheduler *s, tensor x);

/* ---- scheduler.c ---- */

/* lincomb with coefficients worked out in double. A coefficient that is not finite is ERR_INVALID. */
tensor combine(pass *p, int count, const double *coef, const tensor *x);
/* The same where one of X is the model's output, which may still be a pair to be guided. */
tensor combine_output(pass *p, const struct scheduler *s, int count, const double *coef, const tensor *x);
tensor copy_of(pass *p, tensor x);
/* Takes X over as the newest kept output; the oldest beyond MOST is given back. */
void keep(pass *p, struct scheduler *s, tensor x, int most);
/* Coefficients of x and the model output in the predicted x_0, from alphas_cumprod at the timestep. */
void predict_x0(enum prediction prediction, double alpha, double *of_x, double *of_e);
/* The same in the predicted noise. */
void predict_noise(enum prediction prediction, double alpha, double *of_x, double *of_e);

#endif
