/* See session.h. */
#include "session.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "log.h"

double clock_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

size_t peak_resident(void)
{
    struct rusage u;
    return getrusage(RUSAGE_SELF, &u) == 0 ? (size_t)u.ru_maxrss * 1024 : 0;
}

static int session_fail(struct session *s)
{
    fprintf(stderr, "latentd: %s\n", s->err.msg);
    session_close(s);
    return 1;
}

int session_open(struct session *s, const char *model_id, const char *isa, const char *precision,
                 enum session_kind kind)
{
    memset(s, 0, sizeof *s);
    if (config_read(&s->config, &s->err))
        return session_fail(s);
    if (precision && config_set_precision(&s->config, "--precision", precision, &s->err))
        return session_fail(s);
    log_set_level(s->config.verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARNING);
    if (model_id) {
        s->config.model_id = model_id;
        if (config_find_models(&s->config, &s->err))
            return session_fail(s);
    }
    struct backend_options opt = {.kind = s->config.backend ? s->config.backend : "auto",
                                  .isa = isa ? isa : s->config.isa,
                                  .threads = s->config.threads,
                                  .noise_wave = s->config.noise_wave,
                                  .memory_max = s->config.memory,
                                  .store = s->config.store_most ? s->config.store : NULL,
                                  .store_most = s->config.store_most,
                                  .store_least = CONFIG_PACKED_LEAST,
                                  .bf16 = s->config.bf16,
                                  .precision = s->config.precision};
    if (backend_open(&s->be, &opt, &s->err))
        return session_fail(s);
    if (kind == SESSION_BACKEND)
        return 0;
    double start = clock_seconds();
    static const enum pipeline_kind pipelines[] = {[SESSION_TEXT_TO_IMAGE] = PIPELINE_TEXT_TO_IMAGE,
                                                   [SESSION_IMAGE_TO_IMAGE] = PIPELINE_IMAGE_TO_IMAGE,
                                                   [SESSION_IMAGE_TO_VIDEO] = PIPELINE_IMAGE_TO_VIDEO,
                                                   [SESSION_UPSCALE] = PIPELINE_UPSCALE};
    struct model_options from = {.pipeline = pipelines[kind],
                                 .dir = s->config.model_dir,
                                 .shelf = s->config.shelf,
                                 .id = s->config.model_id,
                                 .deepcache = s->config.deepcache,
                                 .safety_on_cpu = s->config.safety_on_cpu};
    if (model_load(&s->model, s->be, &from, &s->err))
        return session_fail(s);
    s->load_seconds = clock_seconds() - start;
    return 0;
}

void session_close(struct session *s)
{
    model_close(&s->model);
    backend_close(&s->be);
}

const char *flag_value(int argc, char **argv, int *i)
{
    if (*i + 1 >= argc) {
        fprintf(stderr, "latentd %s: %s needs a value\n", argv[0], argv[*i]);
        return NULL;
    }
    return argv[++*i];
}

bool flag_int(const char *name, const char *text, long lo, long hi, long *out)
{
    char *end = NULL;
    errno = 0;
    *out = text ? strtol(text, &end, 10) : 0;
    if (text && !errno && end != text && !*end && *out >= lo && *out <= hi)
        return true;
    if (text)
        fprintf(stderr, "latentd: %s is \"%s\", accepted is a number from %ld to %ld\n", name, text, lo, hi);
    return false;
}

bool flag_number(const char *name, const char *text, double *out)
{
    char *end = NULL;
    *out = text ? strtod(text, &end) : 0;
    if (text && end != text && !*end && isfinite(*out))
        return true;
    if (text)
        fprintf(stderr, "latentd: %s is \"%s\", which is not a number\n", name, text);
    return false;
}
