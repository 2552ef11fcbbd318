/* Opens a backend by name and prints who serves what. See backend.h. */
#include "backend.h"

#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "log.h"
#include "noise.h"
#include "thread_pool.h"

static int open_cpu(struct backend *be, const struct backend_options *opt, struct error *err)
{
    be->name = "cpu";
    be->int8 = opt->precision == PRECISION_INT8;
    int rc = pool_open(&be->pool, opt->threads, err);
    if (rc)
        return rc;
    ops_ref(be);
    be->tier = "ref";
    if (opt->isa && strcmp(opt->isa, "ref") == 0)
        return 0;
    return ops_cpu(be, opt, err);
}

/* A GPU computes in fp16 or bf16. */
static int check_gpu_precision(const struct backend_options *opt, struct error *err)
{
    if (opt->precision != PRECISION_INT8 && opt->precision != PRECISION_FP32)
        return 0;
    return error_set(err, ERR_UNSUPPORTED,
                     "precision %s is not to be had on a GPU; LATENTD_BACKEND=cpu computes on the CPU",
                     opt->precision == PRECISION_INT8 ? "int8" : "fp32");
}

#ifdef LATENTD_CUDA
static int open_cuda(struct backend *be, const struct backend_options *opt, struct error *err)
{
    int rc = check_gpu_precision(opt, err);
    if (rc)
        return rc;
    rc = backend_open_cuda(be, opt, err);
    return rc ? error_prefix(err, "backend cuda") : 0;
}

static int open_auto(struct backend *be, const struct backend_options *opt, struct error *err)
{
    struct error why = {0};
    if (backend_open_cuda(be, opt, &why) == 0)
        return check_gpu_precision(opt, err);
    if (be->close)
        be->close(be);
    *be = (struct backend){0};
    if (why.code != ERR_UNSUPPORTED) /* a GPU that is there and fails is no reason for a quiet detour */
        return error_set(err, why.code, "backend auto: %s", why.msg);
    log_info("backend auto: running on the CPU: %s", why.msg);
    return open_cpu(be, opt, err);
}
#else
static int open_cuda(struct backend *be, const struct backend_options *opt, struct error *err)
{
    (void)be;
    int rc = check_gpu_precision(opt, err);
    return rc ? rc
              : error_set(err, ERR_UNSUPPORTED,
                          "backend cuda: this build has no CUDA; accepted are cpu, ref and auto");
}

static int open_auto(struct backend *be, const struct backend_options *opt, struct error *err)
{
    log_info("backend auto: this build has no CUDA; running on the CPU");
    return open_cpu(be, opt, err);
}
#endif

int backend_open(struct backend **out, const struct backend_options *opt, struct error *err)
{
    static const struct backend_options defaults;
    if (!opt)
        opt = &defaults;
    const char *kind = opt->kind ? opt->kind : "auto";
    *out = NULL;
    struct backend *be = calloc(1, sizeof *be);
    if (!be)
        return error_set(err, ERR_NOMEM, "no memory for the backend");
    int rc = 0;
    if (strcmp(kind, "plan") == 0) {
        be->name = be->tier = "plan";
        ops_plan(be);
        if (!be->state)
            rc = error_set(err, ERR_NOMEM, "no memory for the plan");
    } else if (strcmp(kind, "ref") == 0) {
        be->name = be->tier = "ref";
        be->int8 = opt->precision == PRECISION_INT8;
        ops_ref(be);
    } else if (strcmp(kind, "cpu") == 0) {
        rc = open_cpu(be, opt, err);
    } else if (strcmp(kind, "auto") == 0) {
        rc = open_auto(be, opt, err);
    } else if (strcmp(kind, "cuda") == 0) {
        rc = open_cuda(be, opt, err);
    } else {
        rc = error_set(err, ERR_INVALID, "backend \"%s\" is unknown; accepted are auto, cpu, cuda and ref",
                       kind);
    }
    if (rc) {
        backend_close(&be);
        return rc;
    }
    if (be->int8)
        log_info("precision int8: what the networks bear in int8%s is multiplied in it, on %s (%s); the rest "
                 "in %s",
                 be->int8_leaves ? ", but 3x3 convolutions," : "", be->tier, be->served_by[OP_linear],
                 be->dtype == DTYPE_BF16 ? "bf16" : "fp32");
    be->noise_wave = opt->noise_wave ? opt->noise_wave : NOISE_WAVE_THREADS;
    be->memory_max = opt->memory_max ? opt->memory_max : SIZE_MAX;
    be->store = opt->store;
    be->store_most = opt->store_most;
    be->store_least = opt->store_least;
    (void)clock_gettime(CLOCK_REALTIME_COARSE, &be->store_since); /* the clock of the files' times */
    *out = be;
    return 0;
}

int backend_open_wide(struct backend **out, struct backend *be, struct error *err)
{
    *out = be;
    if (be->dtype != DTYPE_F16)
        return 0;
    struct backend *wide = malloc(sizeof *wide);
    if (!wide) {
        *out = NULL;
        return error_set(err, ERR_NOMEM, "no memory for the backend");
    }
    *wide = *be;
    wide->dtype = DTYPE_BF16;
    wide->device = be;
    wide->weight_bytes = 0;
    wide->close = NULL; /* the state and the pool are BE's */
    wide->pool = NULL;
    *out = wide;
    return 0;
}

void backend_close(struct backend **out)
{
    struct backend *be = *out;
    if (!be)
        return;
    if (be->close)
        be->close(be);
    pool_close(&be->pool);
    free(be);
    *out = NULL;
}
