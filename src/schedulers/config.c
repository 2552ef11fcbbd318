/* scheduler_config.json -> struct scheduler_config. Unknown keys are ignored, as diffusers does; an unknown
 * value of a known key, or a known one that is not built, is refused by name. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "json.h"
#include "model_files.h"

enum { CONFIG_BYTES_MAX = 1 << 20, TRAIN_STEPS_MAX = 100000 };

static const struct scheduler_class *const classes[] = {
    &pndm_class,
    &ddim_class,
    &ddpm_class,
    &euler_class,
    &euler_ancestral_class,
    &heun_class,
    &lms_class,
    &k_dpm_2_class,
    &k_dpm_2_ancestral_class,
    &dpmsolver_sde_class,
    &dpmsolver_multistep_class,
    &dpmsolver_singlestep_class,
    &deis_class,
    &unipc_class,
    &lcm_class,
    &tcd_class,
    &edm_euler_class,
    &edm_dpmsolver_class,
};
enum { CLASS_COUNT = sizeof classes / sizeof *classes };

static const char *const beta_schedules[] = {
    "linear", "scaled_linear", "squaredcos_cap_v2", "exp", "laplace", "sigmoid", NULL};
static const char *const predictions[] = {"epsilon", "sample", "v_prediction", NULL};
static const char *const spacings[] = {"linspace", "leading", "trailing", NULL};
static const char *const interpolations[] = {"linear", "log_linear", NULL};
static const char *const timestep_types[] = {"discrete", "continuous", NULL};
static const char *const final_sigmas[] = {"zero", "sigma_min", NULL};
static const char *const algorithms[] = {"dpmsolver",       "dpmsolver++", "sde-dpmsolver",
                                         "sde-dpmsolver++", "deis",        NULL};
static const char *const solvers[] = {"midpoint", "heun", "logrho", "bh1", "bh2", NULL};
static const char *const sigma_schedules[] = {"karras", "exponential", NULL};
static const char *const variances[] = {"fixed_small", "fixed_small_log", "fixed_large", NULL};

/* Python writes infinities and NaN into JSON as bare words ("lambda_min_clipped": -Infinity), which JSON does
 * not have. Blanks them out as null, which stands for the default; the only such value in published configs
 * is a default. */
static void blank_python_numbers(char *text)
{
    static const char *const words[] = {"-Infinity", "Infinity", "NaN"};
    bool in_string = false;
    for (char *c = text; *c; c++) {
        if (in_string && *c == '\\' && c[1])
            c++;
        else if (*c == '"')
            in_string = !in_string;
        else if (!in_string) {
            for (int i = 0; i < 3; i++) {
                size_t len = strlen(words[i]);
                if (strncmp(c, words[i], len) == 0) {
                    memset(c, ' ', len);
                    memcpy(c, i == 2 ? "0  " : "null", i == 2 ? 3 : 4);
                }
            }
        }
    }
}

/* PATH: the file's name for error texts. */
static cJSON *read_config(const char *dir, const char *path, struct error *err)
{
    char *text = model_text(dir, "scheduler_config.json", CONFIG_BYTES_MAX, err);
    if (!text)
        return NULL;
    blank_python_numbers(text);
    cJSON *tree = cJSON_ParseWithLengthOpts(text, strlen(text) + 1, NULL, 1);
    if (!tree || !cJSON_IsObject(tree)) {
        error_set(err, ERR_FORMAT, "%s: not a JSON object", path);
        cJSON_Delete(tree);
        tree = NULL;
    }
    free(text);
    return tree;
}

/* Joins NAMES with commas into OUT. */
static const char *list_names(const char *const *names, char *out, size_t size)
{
    size_t at = 0;
    out[0] = '\0';
    for (int i = 0; names[i] && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s\"%s\"", i ? ", " : "", names[i]);
    return out;
}

/* The index of the string under KEY in NAMES. */
static int pick(const struct json_reader *r, const char *key, const char *const *names, int fallback)
{
    char list[800];
    const char *value = json_string(r, key, NULL);
    if (!value)
        return fallback;
    for (int i = 0; names[i]; i++) {
        if (strcmp(value, names[i]) == 0)
            return i;
    }
    error_set(r->err, ERR_UNSUPPORTED, "%s: \"%s\" is \"%.80s\", accepted are %s", r->file, key, value,
              list_names(names, list, sizeof list));
    return fallback;
}

static void refuse(const struct json_reader *r, const char *key)
{
    if (json_bool(r, key, false))
        error_set(r->err, ERR_UNSUPPORTED, "%s: \"%s\" is not built; accepted is false", r->file, key);
}

/* NAME: the class that the caller asks for; "" or NULL: the file's. */
static const struct scheduler_class *find_class(const struct json_reader *r, const char *name)
{
    bool given = name && *name;
    const char *names[CLASS_COUNT + 1] = {NULL}, *asked = given ? name : json_string(r, "_class_name", NULL);
    char list[800];
    if (!asked) {
        error_set(r->err, ERR_FORMAT, "%s: \"_class_name\" is missing", r->file);
        return NULL;
    }
    for (int i = 0; i < CLASS_COUNT; i++) {
        names[i] = classes[i]->name;
        if (strcmp(asked, names[i]) == 0)
            return classes[i];
    }
    error_set(r->err, ERR_UNSUPPORTED, "%s: the scheduler class \"%.80s\"%s is not built, accepted are %s",
              r->file, asked, given ? " that model_index.json names" : "",
              list_names(names, list, sizeof list));
    return NULL;
}

static void read_trained_betas(const struct json_reader *r, struct scheduler_config *c)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(r->object, "trained_betas"), *e;
    int i = 0;
    if (!list || cJSON_IsNull(list) || r->err->code)
        return;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != c->num_train_timesteps) {
        error_set(r->err, ERR_FORMAT,
                  "%s: \"trained_betas\" should be a list of num_train_timesteps = %d numbers", r->file,
                  c->num_train_timesteps);
        return;
    }
    c->trained_betas = malloc((size_t)c->num_train_timesteps * sizeof *c->trained_betas);
    if (!c->trained_betas) {
        error_set(r->err, ERR_NOMEM, "%s: no memory for trained_betas", r->file);
        return;
    }
    cJSON_ArrayForEach(e, list)
    {
        if (!cJSON_IsNumber(e) || !(e->valuedouble >= 0 && e->valuedouble < 1))
            error_set(r->err, ERR_FORMAT, "%s: \"trained_betas\" should hold numbers from 0 to below 1",
                      r->file);
        c->trained_betas[i++] = (float)e->valuedouble;
    }
}

static void read_betas(const struct json_reader *r, struct scheduler_config *c)
{
    const struct scheduler_class *k = c->kind;
    c->num_train_timesteps = json_int(r, "num_train_timesteps", 1000, 2, TRAIN_STEPS_MAX);
    c->beta_start = json_number(r, "beta_start", k->beta_start);
    c->beta_end = json_number(r, "beta_end", k->beta_end);
    c->beta_schedule = (enum beta_schedule)pick(r, "beta_schedule", beta_schedules, (int)k->beta_schedule);
    if (c->beta_schedule > BETA_SQUAREDCOS && !(k->beta_schedules & 1u << c->beta_schedule))
        error_set(r->err, ERR_UNSUPPORTED,
                  "%s: \"beta_schedule\" is \"%s\", which %s does not know; all know \"linear\", "
                  "\"scaled_linear\", \"squaredcos_cap_v2\"",
                  r->file, beta_schedules[c->beta_schedule], k->name);
    if (!(c->beta_start > 0 && c->beta_start < 1 && c->beta_end > 0 && c->beta_end < 1))
        error_set(r->err, ERR_FORMAT, "%s: \"beta_start\" and \"beta_end\" should lie between 0 and 1",
                  r->file);
    c->rescale_betas_zero_snr = k->reads & READS_RESCALE && json_bool(r, "rescale_betas_zero_snr", false);
    read_trained_betas(r, c);
}

/* The boolean KEY where the class reads it. */
static bool reads_true(const struct json_reader *r, const struct scheduler_config *c, enum reads reads,
                       const char *key)
{
    return c->kind->reads & (unsigned)reads && json_bool(r, key, false);
}

static void read_curve(const struct json_reader *r, struct scheduler_config *c)
{
    bool karras = reads_true(r, c, READS_KARRAS, "use_karras_sigmas");
    bool exponential = reads_true(r, c, READS_EXPONENTIAL, "use_exponential_sigmas");
    bool beta = reads_true(r, c, READS_BETA, "use_beta_sigmas");
    bool lu = reads_true(r, c, READS_LU, "use_lu_lambdas");
    if (karras + exponential + beta > 1)
        error_set(r->err, ERR_FORMAT,
                  "%s: only one of \"use_karras_sigmas\", \"use_exponential_sigmas\" and \"use_beta_sigmas\" "
                  "can be used",
                  r->file);
    c->curve = karras        ? CURVE_KARRAS
               : lu          ? CURVE_LU
               : exponential ? CURVE_EXPONENTIAL
               : beta        ? CURVE_BETA
                             : CURVE_TRAINED;
    c->sigma_min = json_number(r, "sigma_min", NAN);
    c->sigma_max = json_number(r, "sigma_max", NAN);
    if (c->sigma_min <= 0 || c->sigma_max <= 0)
        error_set(r->err, ERR_FORMAT, "%s: \"sigma_min\" and \"sigma_max\" should be above 0", r->file);
    if (c->kind == &dpmsolver_sde_class && !isnan(json_number(r, "noise_sampler_seed", NAN)))
        error_set(
            r->err, ERR_UNSUPPORTED,
            "%s: \"noise_sampler_seed\" is not built; accepted is null (noise follows the request's seed)",
            r->file);
}

static void read_edm(const struct json_reader *r, struct scheduler_config *c)
{
    if (!(c->kind->reads & READS_EDM))
        return;
    c->curve = pick(r, "sigma_schedule", sigma_schedules, 0) ? CURVE_EXPONENTIAL : CURVE_KARRAS;
    c->sigma_min = json_number(r, "sigma_min", 0.002);
    c->sigma_max = json_number(r, "sigma_max", 80);
    c->sigma_data = json_number(r, "sigma_data", 0.5);
    c->rho = json_number(r, "rho", 7);
    if (!(c->sigma_min > 0 && c->sigma_max > c->sigma_min && c->sigma_data > 0 && c->rho > 0))
        error_set(r->err, ERR_FORMAT,
                  "%s: \"sigma_min\", \"sigma_data\" and \"rho\" should be above 0 and \"sigma_max\" above "
                  "\"sigma_min\"",
                  r->file);
}

static void read_common(const struct json_reader *r, struct scheduler_config *c)
{
    const struct scheduler_class *k = c->kind;
    enum spacing spacing = k->timestep_spacing;
    if (k->reads & READS_SPACING)
        spacing = (enum spacing)pick(r, "timestep_spacing", spacings, (int)k->timestep_spacing);
    c->timestep_spacing = spacing;
    c->steps_offset = json_int(r, "steps_offset", 0, -TRAIN_STEPS_MAX, TRAIN_STEPS_MAX);
    c->set_alpha_to_one = json_bool(r, "set_alpha_to_one", k->set_alpha_to_one);
    c->clip_sample = json_bool(r, "clip_sample", k->clip_sample);
    c->clip_sample_range = json_number(r, "clip_sample_range", 1);
    c->skip_prk_steps = json_bool(r, "skip_prk_steps", false);
    c->final_sigma_zero = true;
    if (k->reads & READS_FINAL_SIGMA)
        c->final_sigma_zero = pick(r, "final_sigmas_type", final_sigmas, 0) == 0;
    if (k->reads & READS_EULER) {
        c->log_linear = pick(r, "interpolation_type", interpolations, 0) == 1;
        c->continuous = pick(r, "timestep_type", timestep_types, 0) == 1;
    }
    if (k->reads & READS_VARIANCE)
        c->variance_type = (enum variance)pick(r, "variance_type", variances, 0);
    if (k->reads & READS_THRESHOLDING)
        refuse(r, "thresholding");
    c->original_inference_steps = json_int(r, "original_inference_steps", 50, 1, TRAIN_STEPS_MAX);
    c->timestep_scaling = json_number(r, "timestep_scaling", 10);
    c->prediction_type = (enum prediction)pick(r, "prediction_type", predictions, PREDICT_EPSILON);
    if (!(k->predictions & 1u << c->prediction_type))
        error_set(r->err, ERR_UNSUPPORTED, "%s: \"prediction_type\" is \"%s\", which %s does not know",
                  r->file, predictions[c->prediction_type], k->name);
}

/* algorithm_type. Each class takes its own for those of the others that diffusers lets it take. */
static void read_algorithm(const struct json_reader *r, struct scheduler_config *c)
{
    enum { DEIS = SDE_DPMSOLVER_PP + 1 };
    bool deis = c->kind == &deis_class;
    c->algorithm_type = deis ? DPMSOLVER : DPMSOLVER_PP;
    if (!(c->kind->reads & READS_ALGORITHM))
        return;
    int picked = pick(r, "algorithm_type", algorithms, deis ? (int)DEIS : (int)DPMSOLVER_PP);
    if (!deis)
        c->algorithm_type = picked == DEIS ? DPMSOLVER_PP : (enum algorithm)picked;
    else if (picked == SDE_DPMSOLVER || picked == SDE_DPMSOLVER_PP)
        error_set(r->err, ERR_UNSUPPORTED, "%s: \"algorithm_type\" is \"%s\", which %s does not know",
                  r->file, algorithms[picked], c->kind->name);
}

static void read_unipc(const struct json_reader *r, struct scheduler_config *c)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(r->object, "disable_corrector"), *e;
    const cJSON *solver_p = cJSON_GetObjectItemCaseSensitive(r->object, "solver_p");
    c->algorithm_type = json_bool(r, "predict_x0", true) ? DPMSOLVER_PP : DPMSOLVER;
    if (solver_p && !cJSON_IsNull(solver_p))
        error_set(r->err, ERR_UNSUPPORTED, "%s: \"solver_p\" is not built; accepted is null", r->file);
    if (!list || cJSON_IsNull(list))
        return;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) > CORRECTOR_STEPS_MAX) {
        error_set(r->err, ERR_UNSUPPORTED, "%s: \"disable_corrector\" should be a list of at most %d numbers",
                  r->file, CORRECTOR_STEPS_MAX);
        return;
    }
    cJSON_ArrayForEach(e, list)
    {
        if (!cJSON_IsNumber(e))
            error_set(r->err, ERR_FORMAT, "%s: \"disable_corrector\" should hold numbers", r->file);
        c->disable_corrector[c->disabled++] = e->valueint;
    }
}

static void read_solver(const struct json_reader *r, struct scheduler_config *c)
{
    c->lambda_min_clipped = -INFINITY;
    if (!(c->kind->reads & READS_SOLVER))
        return;
    read_algorithm(r, c);
    /* A solver_type of another class stands for the default, as in diffusers. */
    int solver = pick(r, "solver_type", solvers, 0);
    c->heun = solver == 1;
    c->bh1 = solver == 3;
    c->solver_order = json_int(r, "solver_order", 2, 1, 3);
    c->lower_order_final = json_bool(r, "lower_order_final", c->kind->lower_order_final);
    c->euler_at_final = json_bool(r, "euler_at_final", false);
    refuse(r, "use_flow_sigmas");
    refuse(r, "use_dynamic_shifting");
    if (c->kind->reads & READS_LAMBDA_MIN) {
        c->lambda_min_clipped = json_number(r, "lambda_min_clipped", -INFINITY);
        const char *variance = json_string(r, "variance_type", "");
        /* The fixed ones, left over from a DDPM config, say nothing to these classes. */
        if (strcmp(variance, "learned") == 0 || strcmp(variance, "learned_range") == 0)
            error_set(r->err, ERR_UNSUPPORTED, "%s: \"variance_type\" is \"%s\", which is not built", r->file,
                      variance);
    }
    if (c->kind->reads & READS_UNIPC)
        read_unipc(r, c);
    if (c->kind == &deis_class) /* it cannot reach 0, and has no word for it in its config */
        c->final_sigma_zero = false;
}

/* Sets KEY to VALUE, unless that is NULL. False when there is no memory. */
static bool override(cJSON *tree, const char *key, const char *value)
{
    if (!value)
        return true;
    cJSON_DeleteItemFromObjectCaseSensitive(tree, key);
    return cJSON_AddStringToObject(tree, key, value) != NULL;
}

int scheduler_config_load(struct scheduler_config **out, const char *dir, struct error *err)
{
    return scheduler_config_load_as(out, dir, NULL, NULL, err);
}

int scheduler_config_load_as(struct scheduler_config **out, const char *dir, const char *class_name,
                             const char *spacing, struct error *err)
{
    struct error local = {0};
    char path[4096];
    cJSON *tree = NULL;
    struct scheduler_config *c = NULL;
    *out = NULL;
    if (!err)
        err = &local;
    if ((size_t)snprintf(path, sizeof path, "%s/scheduler_config.json", dir) >= sizeof path)
        return error_set(err, ERR_INVALID, "the path to scheduler_config.json is too long");
    if (!(tree = read_config(dir, path, err)))
        return err->code;
    c = calloc(1, sizeof *c);
    struct json_reader r = {tree, path, err};
    if (!c || !override(tree, "timestep_spacing", spacing))
        error_set(err, ERR_NOMEM, "%s: no memory to hold it", path);
    else if ((c->kind = find_class(&r, class_name))) {
        read_betas(&r, c);
        read_common(&r, c);
        read_curve(&r, c);
        read_solver(&r, c);
        read_edm(&r, c);
        if (!err->code && c->kind->check)
            c->kind->check(c, path, err);
        if (!err->code)
            tables_make(c, err);
    }
    cJSON_Delete(tree);
    if (err->code)
        scheduler_config_close(&c);
    *out = c;
    return err->code;
}

void scheduler_config_close(struct scheduler_config **c)
{
    if (!c || !*c)
        return;
    free((*c)->trained_betas);
    free((*c)->alphas_cumprod);
    free((*c)->train_sigmas);
    free(*c);
    *c = NULL;
}

const char *scheduler_config_class(const struct scheduler_config *c)
{
    return c->kind->name;
}

void scheduler_config_stable_diffusion(struct scheduler_config *c)
{
    c->steps_offset = 1;
    c->clip_sample = false;
}
