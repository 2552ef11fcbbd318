/* checkkernels [--isa TIER] [--op NAME] [--but NAMES] [--candidate NAME] [--seed N] [--rounds N] [--bench]:
 * see check.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../kernels/cpu/cpu.h"
#include "internal.h"
#include "log.h"

static const struct op_check *const ops[] = {
    &check_conv2d,
    &check_conv_temporal,
    &check_linear,
    &check_attention,
    &check_group_norm,
    &check_group_norm_silu,
    &check_layer_norm,
    &check_silu,
    &check_add,
    &check_blend,
    &check_concat_channels,
    &check_upsample_nearest,
    &check_embed_tokens,
    &check_timestep_embedding,
    &check_repeat_batch,
    &check_convert,
    &check_randn,
    &check_lincomb,
    &check_guide,
    &check_clip,
    &check_ramp,
    &check_from_host,
    &check_to_host,
    &check_to_rgb8,
};
enum { OPS = sizeof ops / sizeof ops[0] };
_Static_assert(OPS == OP_COUNT - 5, "every operation but the five that pack weights has its check here");

static bool serves(const struct check *ck, const struct tier *t)
{
    if (t->int8 && ck->op->id != OP_conv2d && ck->op->id != OP_linear)
        return false;
    return t->dtype == ck->type && (t->is_ref || strcmp(t->be->served_by[ck->op->id], "ref") != 0);
}

struct tier *next_tier(struct check *ck, struct tier *t)
{
    for (t = t ? t + 1 : ck->tier; t < ck->tier + ck->tiers; t++)
        if (serves(ck, t))
            return ck->running = t;
    return ck->running = NULL;
}

bool any_int8(struct check *ck)
{
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t))
        if (t->int8)
            return true;
    return false;
}

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

/* Seconds of one call on a device that works on while the host goes ahead: of many in a row, so that neither
 * the launch nor the wait counts; the median of seven such rows. */
static double device_time(struct backend *be, void (*call)(void *), void *ctx)
{
    double row[7];
    struct error err = {0};
    call(ctx);
    be->wait(be, &err); /* kernels may be chosen and loaded in the first call */
    double start = now();
    call(ctx);
    be->wait(be, &err);
    double one = now() - start;
    int calls = one > 0.05 ? 1 : one < 2e-5 ? 500 : (int)(0.01 / one) + 1;
    for (int r = 0; r < 7; r++) {
        start = now();
        for (int i = 0; i < calls; i++)
            call(ctx);
        be->wait(be, &err);
        row[r] = (now() - start) / calls;
        for (int i = r; i > 0 && row[i] < row[i - 1]; i--) {
            double t = row[i];
            row[i] = row[i - 1];
            row[i - 1] = t;
        }
    }
    if (err.code)
        fprintf(stderr, "checkkernels: %s\n", err.msg);
    return row[3];
}

static struct backend *timed; /* the backend that --bench is at */

double bench_time(void (*call)(void *), void *ctx)
{
    if (timed->wait)
        return device_time(timed, call, ctx);
    double best = 1e30, start = now();
    for (int calls = 0; calls < 3 || now() - start < 0.2; calls++) {
        double t0 = now();
        call(ctx);
        double t = now() - t0;
        best = t < best ? t : best;
    }
    return best;
}

void bench_report(struct check *ck, const struct tier *t, const char *shape, double seconds, double flops,
                  double bytes)
{
    printf("%-18s %-19s %-34s %10.3f ms %7.1f GB/s", op_names[ck->op->id], t->name, shape, seconds * 1e3,
           bytes / seconds * 1e-9);
    if (flops > 0)
        printf(" %9.1f GFLOP/s", flops / seconds * 1e-9);
    if (flops > 0 && t->peak > 0)
        printf(" %5.1f %% of peak", 100 * flops / seconds / t->peak);
    putchar('\n');
    fflush(stdout);
    block_free_all(&ck->placed);
    case_end(ck);
}

static int open_tier(struct check *ck, const char *name, const char *kind, const char *isa, enum dtype dtype,
                     bool int8)
{
    struct backend_options opt = {
        .kind = kind, .isa = isa, .precision = int8 ? PRECISION_INT8 : PRECISION_ANY};
    bool is_ref = strcmp(kind, "ref") == 0;
    struct error err = {0};
    if (ck->tiers == TIERS_MAX)
        return error_set(&ck->err, ERR_INTERNAL, "more than %d tiers", TIERS_MAX);
    struct tier *t = &ck->tier[ck->tiers];
    *t = (struct tier){.dtype = dtype, .is_ref = is_ref, .int8 = int8};
    snprintf(t->name, sizeof t->name, int8 ? "%s+int8" : "%s", name);
    int rc = backend_open(&t->be, &opt, &err);
    if (rc == ERR_UNSUPPORTED && !is_ref && (!ck->only_isa || int8)) {
        printf("tier %s: not on this machine (%s)\n", t->name, err.msg);
        return 0;
    }
    if (rc) {
        fprintf(stderr, "tier %s: %s\n", t->name, err.msg);
        return rc;
    }
    if (!is_ref)
        t->dtype = t->be->dtype;
    ck->tiers++;
    return 0;
}

/* The type of the CUDA tier's activations, with the candidate that --candidate names. */
static const char *cuda_isa(const struct check *ck, const char *type, char *out, size_t size)
{
    snprintf(out, size, ck->candidate ? "%s/%s" : "%s", type, ck->candidate);
    return out;
}

static bool wanted(const char *only, const char *name)
{
    return !only || strcmp(only, name) == 0;
}

/* Whether NAME is one of LIST, which commas part. */
static bool named(const char *list, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = list; at; at = strchr(at, ','), at = at ? at + 1 : NULL)
        if (strncmp(at, name, length) == 0 && (at[length] == ',' || !at[length]))
            return true;
    return false;
}

static int open_cpu(struct check *ck, const char *name)
{
    int rc = open_tier(ck, name, "cpu", name, DTYPE_F32, false), tiers = ck->tiers;
    if (!rc && tiers && strcmp(ck->tier[tiers - 1].name, name) == 0)
        rc = open_tier(ck, name, "cpu", name, DTYPE_F32, true);
    return rc;
}

/* ref itself runs in all three storage types; the others in the type that they choose. The emulated tiers
 * compute what the AMX and AVX512-BF16 tiers would, on machines without them. */
static int open_tiers(struct check *ck)
{
    static const char *const stored[] = {"ref", "ref+f16", "ref+bf16"};
    struct backend_options opt = {.kind = "ref"};
    char isa[64];
    int rc = backend_open(&ck->ref, &opt, &ck->err);
    opt.precision = PRECISION_INT8;
    if (!rc)
        rc = backend_open(&ck->ref_int8, &opt, &ck->err);
    for (int i = 0; i < 3 && !rc && wanted(ck->only_isa, "ref"); i++)
        rc = open_tier(ck, stored[i], "ref", NULL, (enum dtype)i, false);
    for (int i = 0; !rc && cpu_tier_name(i); i++)
        if (wanted(ck->only_isa, cpu_tier_name(i)) && strcmp(cpu_tier_name(i), "ref") != 0)
            rc = open_cpu(ck, cpu_tier_name(i));
    if (!rc && wanted(ck->only_isa, "cuda"))
        rc = open_tier(ck, "cuda", "cuda", cuda_isa(ck, "fp16", isa, sizeof isa), DTYPE_F16, false);
    if (!rc && ck->tiers && wanted(ck->only_isa, "cuda") && strcmp(ck->tier[ck->tiers - 1].name, "cuda") == 0)
        rc = open_tier(ck, "cuda+bf16", "cuda", cuda_isa(ck, "bf16", isa, sizeof isa), DTYPE_BF16, false);
    return rc;
}

/* Whether BE took the candidate for any shape: where it cannot serve, another one does without a word. */
static bool candidate_served(struct backend *be, const char *candidate)
{
    char *text = NULL, name[64];
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    snprintf(name, sizeof name, " %s", candidate);
    if (out) {
        be->print_choices(be, out);
        fclose(out);
    }
    bool served = text && strstr(text, name) != NULL;
    free(text);
    return served;
}

static void check_candidate(struct check *ck)
{
    for (int i = 0; ck->candidate && !ck->bench && i < ck->tiers; i++) {
        struct tier *t = &ck->tier[i];
        if (t->be->print_choices && !candidate_served(t->be, ck->candidate)) {
            printf("FAIL %s: %s served nothing\n", t->name, ck->candidate);
            ck->failed++;
        }
    }
}

static void close_tiers(struct check *ck)
{
    for (int i = 0; i < ck->tiers; i++)
        backend_close(&ck->tier[i].be);
    backend_close(&ck->ref);
    backend_close(&ck->ref_int8);
}

/* Prints the score of a tier at the running op and starts it anew. */
static void report(const struct check *ck, struct tier *t)
{
    if (t->cases)
        printf("%s %-19s %-19s %4d cases, worst error %.2f of its tolerance\n", t->failed ? "FAIL" : "ok  ",
               op_names[ck->op->id], t->name, t->cases, t->worst);
    t->cases = t->failed = 0;
    t->worst = 0;
}

static void report_op(struct check *ck)
{
    report(ck, &ck->golden);
    for (int i = 0; i < ck->tiers; i++) {
        ck->skipped += ck->tier[i].cases == 0;
        report(ck, &ck->tier[i]);
    }
    fflush(stdout);
}

static void check_op(struct check *ck)
{
    ck->state = ck->seed * 1000003 + (uint64_t)ck->op->id;
    if (ck->op->golden && wanted(ck->only_isa, "ref"))
        run_goldens(ck, ck->op);
    if (ck->op->published && wanted(ck->only_isa, "ref"))
        ck->op->published(ck);
    for (int type = DTYPE_F32; type <= DTYPE_BF16; type++) {
        ck->type = (enum dtype)type;
        if (!next_tier(ck, NULL))
            continue;
        ck->op->cases(ck);
        for (int i = 0; i < ck->rounds; i++)
            ck->op->round(ck);
    }
    report_op(ck);
}

static void bench_op(struct check *ck)
{
    for (int i = 0; ck->op->bench && i < ck->tiers; i++) {
        struct tier *t = &ck->tier[i];
        ck->type = t->dtype;
        if (t->is_ref || !serves(ck, t))
            continue;
        if (t->peak == 0 && t->be->pool)
            t->peak = cpu_peak_flops(t->be, t->int8);
        timed = t->be;
        ck->running = t;
        ck->op->bench(ck, t);
    }
}

static int usage(void)
{
    fprintf(stderr,
            "checkkernels [--isa TIER] [--op NAME] [--but NAMES] [--candidate NAME] [--seed N] [--rounds N] "
            "[--bench]\n"
            "  --isa     only this tier: ref, avx2, avx512, avx512bf16, amx, an emulated one, or cuda\n"
            "  --op      only this op: conv2d, linear, attention, ...\n"
            "  --but     every op but these: conv2d,linear\n"
            "  --candidate  on a GPU: wherever it can, this kernel or library serves, and it must once\n"
            "  --seed    of the random inputs (default 1)\n"
            "  --rounds  random shapes for each op and type (default 8)\n"
            "  --bench   times instead of checks, at the shapes of SD-Turbo at 512x512\n");
    return 2;
}

static int parse_number(const char *text, uint64_t *number)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    *number = v;
    return errno || end == text || *end ? -1 : 0;
}

static int parse_args(struct check *ck, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        uint64_t number = 0;
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--bench") == 0) {
            ck->bench = true;
            continue;
        }
        if (!value)
            return -1;
        if (strcmp(argv[i], "--isa") == 0)
            ck->only_isa = value;
        else if (strcmp(argv[i], "--op") == 0)
            ck->only_op = value;
        else if (strcmp(argv[i], "--but") == 0)
            ck->but = value;
        else if (strcmp(argv[i], "--candidate") == 0)
            ck->candidate = value;
        else if (parse_number(value, &number))
            return -1;
        else if (strcmp(argv[i], "--seed") == 0)
            ck->seed = number;
        else if (strcmp(argv[i], "--rounds") == 0)
            ck->rounds = (int)(number & 0xffffff);
        else
            return -1;
        i++;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct check ck = {.seed = 1, .rounds = 8, .golden = {.name = "published"}};
    int ran = 0;
    if (parse_args(&ck, argc, argv))
        return usage();
    log_set_level(LOG_LEVEL_WARNING); /* not a line for each backend */
    if (open_tiers(&ck)) {
        fprintf(stderr, "checkkernels: %s\n", ck.err.msg);
        close_tiers(&ck);
        return 2;
    }
    for (int i = 0; i < OPS && ck.tiers; i++) {
        ck.op = ops[i];
        if (!wanted(ck.only_op, op_names[ck.op->id]) || named(ck.but, op_names[ck.op->id]))
            continue;
        ran++;
        if (ck.bench)
            bench_op(&ck);
        else
            check_op(&ck);
    }
    check_candidate(&ck);
    close_tiers(&ck);
    if (!ran) {
        fprintf(stderr, "checkkernels: no such op or tier here\n");
        return 2;
    }
    if (!ck.bench)
        printf("seed %llu; %d pairs of op and tier left to ref\n%d passed, %d failed\n",
               (unsigned long long)ck.seed, ck.skipped, ck.passed, ck.failed);
    return ck.failed != 0;
}
