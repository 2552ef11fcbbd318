/* See config.h. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache.h"

/* The variable's value; NULL when unset or empty. */
static const char *env(const char *name)
{
    const char *v = getenv(name);
    return v && *v ? v : NULL;
}

static int env_int(const char *name, int fallback, int lo, int hi, struct error *err)
{
    const char *v = env(name);
    char *end = NULL;
    if (!v)
        return fallback;
    errno = 0;
    long n = strtol(v, &end, 10);
    if (errno || *end || n < lo || n > hi) {
        error_set(err, ERR_INVALID, "%s is \"%s\", accepted is a number from %d to %d", name, v, lo, hi);
        return fallback;
    }
    return (int)n;
}

/* A flag of the ai-runner, in any case and with blanks around it. */
static bool env_flag(const char *name, bool fallback, struct error *err)
{
    static const char *const yes[] = {"true", "1", "yes", "on"}, *const no[] = {"false", "0", "no", "off"};
    const char *v = env(name);
    v = v ? v + strspn(v, " \t") : "";
    size_t n = strcspn(v, " \t");
    if (n == 0)
        return fallback;
    for (size_t i = 0; i < sizeof yes / sizeof *yes && !v[n + strspn(v + n, " \t")]; i++) {
        if (n == strlen(yes[i]) && strncasecmp(v, yes[i], n) == 0)
            return true;
        if (n == strlen(no[i]) && strncasecmp(v, no[i], n) == 0)
            return false;
    }
    error_set(err, ERR_INVALID, "%s is \"%s\", accepted are true and false", name, v);
    return fallback;
}

/* "cuda", the default, means the device of the model, which is the CPU where there is no GPU. */
static bool env_safety_on_cpu(struct error *err)
{
    const char *v = env("SAFETY_CHECKER_DEVICE");
    if (!v || strcmp(v, "cuda") == 0 || strncmp(v, "cuda:", 5) == 0)
        return false;
    if (strcmp(v, "cpu") != 0)
        error_set(err, ERR_INVALID, "SAFETY_CHECKER_DEVICE is \"%s\", accepted are cuda and cpu", v);
    return true;
}

int config_set_precision(struct config *c, const char *name, const char *value, struct error *err)
{
    static const struct {
        const char *name;
        enum precision precision;
        enum bf16_wish bf16;
    } known[] = {{"int8", PRECISION_INT8, BF16_ANY},
                 {"bf16", PRECISION_BF16, BF16_YES},
                 {"fp32", PRECISION_FP32, BF16_NO}};
    c->precision = PRECISION_ANY;
    c->bf16 = c->bfloat16;
    if (!value)
        return 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(value, known[i].name) != 0)
            continue;
        if (known[i].bf16 != BF16_ANY && c->bfloat16 != BF16_ANY && c->bfloat16 != known[i].bf16)
            return error_set(err, ERR_INVALID, "%s is \"%s\", which BFLOAT16=%s contradicts", name, value,
                             c->bfloat16 == BF16_YES ? "true" : "false");
        c->precision = known[i].precision;
        c->bf16 = known[i].bf16 == BF16_ANY ? c->bfloat16 : known[i].bf16;
        return 0;
    }
    return error_set(err, ERR_INVALID, "%s is \"%s\", accepted are int8, bf16 and fp32", name, value);
}

static void read_flags(struct config *c, struct error *err)
{
    bool sfast = env_flag("SFAST", false, err), warm = env_flag("SFAST_WARMUP", true, err);
    c->warm_up = env_flag("TORCH_COMPILE", false, err) || (sfast && warm);
    c->deepcache = env_flag("DEEPCACHE", false, err);
    c->safety_on_cpu = env_safety_on_cpu(err);
    c->bfloat16 = !env("BFLOAT16") ? BF16_ANY : env_flag("BFLOAT16", false, err) ? BF16_YES : BF16_NO;
    config_set_precision(c, "LATENTD_PRECISION", env("LATENTD_PRECISION"), err);
}

/* "132x2048", multiprocessors and threads in each -> threads in one wave of torch's blocks of 256; 0: unset.
 */
static size_t env_wave(const char *name, struct error *err)
{
    const char *v = env(name);
    int processors = 0, threads = 0, used = 0;
    if (!v)
        return 0;
    if (sscanf(v, "%4dx%5d%n", &processors, &threads, &used) == 2 && !v[used] && processors > 0 &&
        threads >= 256)
        return (size_t)processors * (size_t)(threads / 256) * 256;
    error_set(err, ERR_INVALID,
              "%s is \"%s\", accepted is a card's multiprocessors and the threads of each: 132x2048", name,
              v);
    return 0;
}

/* What replies name by URL. */
static void read_streams(struct config *c, struct error *err)
{
    const char *v = env("LATENTD_RESPONSE_FORMAT");
    c->stream_bytes = (size_t)env_int("LATENTD_STREAM_MIB", CONFIG_STREAM_MIB, 0, INT_MAX, err) << 20;
    c->stream_seconds = env_int("LATENTD_STREAM_SECONDS", CONFIG_STREAM_SECONDS, 1, INT_MAX, err);
    c->response_url = v && strcmp(v, "url") == 0;
    if (v && !c->response_url && strcmp(v, "data") != 0)
        error_set(err, ERR_INVALID, "LATENTD_RESPONSE_FORMAT is \"%s\", accepted are url and data", v);
    else if (c->response_url && !c->stream_bytes)
        error_set(err, ERR_INVALID, "LATENTD_RESPONSE_FORMAT cannot be url where LATENTD_STREAM_MIB is 0");
}

/* media/mp4.c reads the variable when it looks for an encoder; a name that it does not know is told here. */
static void check_h264(struct error *err)
{
    static const char *const known[] = {"auto", "none", "libx264", "libopenh264", "h264_nvenc"};
    const char *v = env("LATENTD_H264");

    for (size_t i = 0; v && i < sizeof known / sizeof *known; i++)
        if (strcmp(v, known[i]) == 0)
            return;
    if (v)
        error_set(err, ERR_INVALID,
                  "LATENTD_H264 is \"%s\", accepted are auto, none, libx264, libopenh264 and h264_nvenc", v);
}

/* True when ROOT has a folder for the model, in either layout. */
static bool shelf_holds(const char *root, const char *id)
{
    char path[2 * PATH_MAX];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", root, id);
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return true;
    int n = snprintf(path, sizeof path, "%s/models--", root);
    for (const char *s = id; *s && n >= 0 && n + 3 < (int)sizeof path; s++) {
        if (*s == '/')
            path[n++] = '-';
        path[n++] = *s == '/' ? '-' : *s;
    }
    path[n < 0 ? 0 : n] = '\0';
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* "<folder of the running program>/../FOLDER" */
static bool beside_program(char *path, size_t size, const char *folder)
{
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0)
        return false;
    exe[n] = '\0';
    char *slash = strrchr(exe, '/');
    if (!slash)
        return false;
    *slash = '\0';
    n = snprintf(path, size, "%s/../%s", exe, folder);
    return n > 0 && (size_t)n < size;
}

/* Takes the models that were installed with the program, when the wanted one is among them. */
static bool installed_shelf(struct config *c)
{
    return beside_program(c->model_dir, sizeof c->model_dir, CONFIG_INSTALLED_MODELS) &&
           shelf_holds(c->model_dir, c->model_id);
}

int config_find_models(struct config *c, struct error *err)
{
    const char *dir = env("MODEL_DIR"), *home = env("HOME");
    c->shelf = dir;
    if (dir) {
        if (strlen(dir) >= sizeof c->model_dir)
            return error_set(err, ERR_INVALID, "MODEL_DIR is longer than %d bytes", PATH_MAX);
        if (shelf_holds(dir, c->model_id) || !installed_shelf(c))
            snprintf(c->model_dir, sizeof c->model_dir, "%s", dir);
        return 0;
    }
    snprintf(c->model_dir, sizeof c->model_dir, "models");
    if (shelf_holds(c->model_dir, c->model_id))
        return 0;
    if (beside_program(c->model_dir, sizeof c->model_dir, "models") && shelf_holds(c->model_dir, c->model_id))
        return 0;
    if (installed_shelf(c))
        return 0;
    int n = snprintf(c->model_dir, sizeof c->model_dir, "%s/.lpData/models", home ? home : "");
    return n < 0 || n >= (int)sizeof c->model_dir ? error_set(err, ERR_INVALID, "HOME is too long") : 0;
}

/* Without a folder for what is kept, nothing is. */
static void read_store(struct config *c, struct error *err)
{
    enum { NAME = sizeof "/packed" };
    c->store_most = (size_t)env_int("LATENTD_PACKED_MIB", CONFIG_PACKED_MIB, 0, INT_MAX, err) << 20;
    if (!cache_folder(c->store, sizeof c->store - NAME))
        c->store_most = 0;
    strcat(c->store, "/packed");
}

int config_check_served(struct error *err)
{
    const char *pipeline = env("PIPELINE"), *model_id = env("MODEL_ID");
    if (!pipeline == !model_id)
        return 0;
    return error_set(err, ERR_INVALID, "%s must be provided with %s (or neither, for the shipped model)",
                     pipeline ? "MODEL_ID" : "PIPELINE", pipeline ? "PIPELINE" : "MODEL_ID");
}

int config_read(struct config *c, struct error *err)
{
    const char *host = env("HOST"), *version = env("VERSION"), *verbose = env("VERBOSE_LOGGING"),
               *pipeline = env("PIPELINE"), *model_id = env("MODEL_ID");
    memset(c, 0, sizeof *c);
    c->pipeline = pipeline ? pipeline : CONFIG_PIPELINE_DEFAULT;
    c->model_id = model_id ? model_id : CONFIG_MODEL_DEFAULT;
    c->host = host ? host : "127.0.0.1";
    c->port = env_int("PORT", CONFIG_PORT_DEFAULT, 0, 65535, err);
    c->auth_token = env("AUTH_TOKEN");
    c->version = version ? version : "undefined";
    c->verbose = verbose && strcmp(verbose, "1") == 0;
    c->backend = env("LATENTD_BACKEND");
    c->isa = env("LATENTD_ISA");
    c->threads = env_int("LATENTD_THREADS", 0, 0, 256, err);
    c->queue = env_int("LATENTD_QUEUE", CONFIG_QUEUE_DEFAULT, 1, CONFIG_QUEUE_MAX, err);
    c->stuck = env_int("LATENTD_STUCK", CONFIG_STUCK_DEFAULT, 0, INT_MAX, err);
    c->noise_wave = env_wave("LATENTD_NOISE_GPU", err);
    c->memory = (size_t)env_int("LATENTD_MEMORY", 0, 0, INT_MAX, err) << 20;
    read_store(c, err);
    read_streams(c, err);
    check_h264(err);
    read_flags(c, err);
    return err->code ? err->code : config_find_models(c, err);
}
