/* Which tiers there are, which of them this machine and its operating system can run, and which slots they
 * take. */
#include "cpu.h"

#include <cpuid.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "int8.h"
#include "log.h"
#include "thread_pool.h"
#include "winograd_2x4.h"

/* What the CPU has and the operating system saves and restores. */
struct features {
    bool avx2, avx512, avx512bf16, amx;
    bool avx512vnni, amx_int8;
};

static unsigned long long read_xcr0(void)
{
    unsigned lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return ((unsigned long long)hi << 32) | lo;
}

/* Linux gives tile registers to processes that ask (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). */
static bool amx_permitted(void)
{
    const int req_xcomp_perm = 0x1023, xtiledata = 18;
    return syscall(SYS_arch_prctl, req_xcomp_perm, xtiledata) == 0;
}

static struct features detect(void)
{
    struct features f = {0};
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return f;
    const unsigned long long xcr0 = read_xcr0(), ymm = 0x6, zmm = 0xe6, tiles = 0x60000;
    bool fma = (c & bit_FMA) && (c & bit_F16C) && (c & bit_AVX);
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return f;
    const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    bool amx_bits = (d & (1u << 22)) && (d & (1u << 24)); /* AMX-BF16, AMX-TILE */
    f.avx2 = fma && (b & bit_AVX2) && (xcr0 & ymm) == ymm;
    f.avx512 = f.avx2 && (b & avx512) == avx512 && (xcr0 & zmm) == zmm;
    bool vbmi_bit = c & (1u << 1);                             /* AVX512_VBMI */
    bool vnni_bit = c & (1u << 11), int8_bit = d & (1u << 25); /* AVX512_VNNI, AMX-INT8 */
    bool bf16_bit = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
    f.avx512bf16 = f.avx512 && bf16_bit;
    f.amx = f.avx512bf16 && vbmi_bit && amx_bits && (xcr0 & tiles) == tiles && amx_permitted();
    f.avx512vnni = f.avx512 && vnni_bit;
    f.amx_int8 = f.amx && int8_bit;
    return f;
}

enum needs { NEEDS_AVX2, NEEDS_AVX512, NEEDS_AVX512BF16, NEEDS_AMX };

static const struct entry {
    struct tier tier;
    enum needs needs;
    bool automatic; /* may be chosen when no tier is named */
} tiers[] = {
    {{"avx2", &gemm_avx2, &rows_avx2, NULL, NULL, NULL, NULL, NULL, NULL}, NEEDS_AVX2, true},
    {{"avx512bf16-emulated", &gemm_avx512bf16_emulated, &rows_avx512, pack_avx512, NULL,
      &int8_avx512vnni_emulated, NULL, &winograd_2x4_avx512bf16_emulated, NULL},
     NEEDS_AVX512,
     false},
    {{"amx-emulated", &gemm_amx_emulated, &rows_avx512, pack_avx512, &flash_amx_emulated, &int8_amx_emulated,
      &winograd_rows_amx_emulated, NULL, &winograd_up_amx_emulated},
     NEEDS_AVX512,
     false},
    {{"avx512", &gemm_avx512, &rows_avx512, pack_avx512, NULL, &int8_avx512vnni, NULL, NULL, NULL},
     NEEDS_AVX512,
     true},
    {{"avx512bf16", &gemm_avx512bf16, &rows_avx512bf16, pack_avx512, NULL, &int8_avx512vnni, NULL,
      &winograd_2x4_avx512bf16, NULL},
     NEEDS_AVX512BF16,
     true},
    {{"amx", &gemm_amx, &rows_amx, pack_avx512, &flash_amx, &int8_amx, &winograd_rows_amx, NULL,
      &winograd_up_amx},
     NEEDS_AMX,
     true},
};

enum { TIERS = sizeof tiers / sizeof *tiers };

static bool usable(const struct entry *e)
{
    struct features f = detect();
    const bool has[] = {f.avx2, f.avx512, f.avx512bf16, f.amx};
    return has[e->needs];
}

const char *cpu_tier_name(int i)
{
    return i >= 0 && i < TIERS ? tiers[i].tier.name : NULL;
}

static const struct entry *find(const char *name)
{
    for (int i = 0; i < TIERS; i++)
        if (strcmp(tiers[i].tier.name, name) == 0)
            return &tiers[i];
    return NULL;
}

bool cpu_tier_usable(const char *name)
{
    const struct entry *e = find(name);
    return e && usable(e);
}

static bool computes_bf16(const struct entry *e)
{
    return e && e->tier.gemm->dtype == DTYPE_BF16;
}

/* The dot products of AVX512-BF16 double the work of a multiply-add on some processors and halve it on others
 * (Sapphire Rapids: 84 against 172 GFLOP/s a thread), and Winograd's method saves plain AVX-512 more
 * products. Some 25 milliseconds say which this is, once in a process. */
static bool pays(const struct entry *e)
{
    static _Atomic int known; /* 0: not yet; 1: it does not; 2: it does */
    if (e->needs != NEEDS_AVX512BF16)
        return true;
    if (!known) {
        double bf16 = 0, fp32 = 0;
        for (int i = 0; i < 4; i++) { /* by turns, on a machine that may be busy */
            bf16 = fmax(bf16, e->tier.gemm->peak());
            fp32 = fmax(fp32, gemm_avx512.peak());
        }
        known = bf16 > 1.5 * fp32 ? 2 : 1;
    }
    return known == 2;
}

static bool has_int8(const struct entry *e)
{
    struct features f = detect();
    const struct int8_kernel *k = e ? e->tier.int8 : NULL;
    return k == &int8_amx ? f.amx_int8 : k == &int8_avx512vnni ? f.avx512vnni : k != NULL;
}

static const struct entry *best_of(enum bf16_wish bf16, bool int8)
{
    for (int i = TIERS - 1; i >= 0; i--) {
        const struct entry *e = &tiers[i];
        if (e->automatic && usable(e) && !(bf16 == BF16_NO && computes_bf16(e)) &&
            (bf16 == BF16_YES || pays(e)) && (!int8 || has_int8(e)))
            return e;
    }
    return NULL;
}

static const struct entry *best(enum bf16_wish bf16)
{
    return best_of(bf16, false);
}

static int check_int8(const char *isa, const struct entry *e, struct error *err)
{
    if (e && has_int8(e))
        return 0;
    return error_set(
        err, ERR_UNSUPPORTED,
        isa ? "precision int8: CPU tier %s has none here; it takes AMX-INT8 (amx) or AVX512-VNNI "
              "(avx512, avx512bf16), or ref"
            : "precision int8: this processor or its operating system has neither AMX-INT8 nor "
              "AVX512-VNNI",
        isa);
}

static int choose(const char *isa, enum bf16_wish bf16, bool int8, const struct entry **e, struct error *err)
{
    *e = isa ? find(isa) : best_of(bf16, int8);
    if (isa && !*e)
        return error_set(err, ERR_UNSUPPORTED,
                         "CPU tier \"%s\" is unknown; accepted are ref, avx2, avx512, avx512bf16 and amx",
                         isa);
    if (*e && !usable(*e))
        return error_set(
            err, ERR_UNSUPPORTED,
            "CPU tier %s cannot run here: the processor or the operating system lacks it; the best is %s",
            isa, best(bf16) ? best(bf16)->tier.name : "ref");
    if (bf16 == BF16_NO && computes_bf16(*e))
        return error_set(err, ERR_INVALID, "CPU tier %s computes in bf16, which BFLOAT16=false rules out",
                         isa);
    if (bf16 == BF16_NO && computes_bf16(best(BF16_ANY)))
        log_warning("BFLOAT16=false: %s computes in fp32; %s would be faster", *e ? (*e)->tier.name : "ref",
                    best(BF16_ANY)->tier.name);
    if (bf16 == BF16_YES && !computes_bf16(*e))
        log_warning("BFLOAT16: %s has no bf16 and computes in fp32", *e ? (*e)->tier.name : "this processor");
    return int8 ? check_int8(isa, *e, err) : 0;
}

static void close_cpu(struct backend *be)
{
    struct cpu_state *st = be->state;
    if (st) {
        free(st->partial);
        be->mem_free(be, st->winograd, WINOGRAD_BYTES);
        free(st->heads);
        free(st->kept.at);
    }
    free(st);
    be->state = NULL;
}

/* By Winograd's F(2x4, 3x3) in bf16 it takes two thirds to nine tenths of the time of its sums in int8
 * (SPEED.md). */
static bool leaves_to_winograd_2x4(const struct weight_source *src)
{
    return src->kind == WEIGHT_CONV2D && src->kh == 3 && src->kw == 3 && src->stride == 1 &&
           src->in_c % W24_STEP == 0 && src->out_c >= W24_PANEL;
}

static void serve(struct backend *be, const struct tier *t)
{
    SERVE(be, conv2d, cpu_conv2d, t->name);
    SERVE(be, conv_temporal, cpu_conv_temporal, t->name);
    SERVE(be, linear, cpu_linear, t->name);
    SERVE(be, attention, cpu_attention, t->name);
    SERVE(be, group_norm, cpu_group_norm, t->name);
    SERVE(be, group_norm_silu, cpu_group_norm_silu, t->name);
    SERVE(be, layer_norm, cpu_layer_norm, t->name);
    SERVE(be, silu, cpu_silu, t->name);
    SERVE(be, add, cpu_add, t->name);
    SERVE(be, blend, cpu_blend, t->name);
    SERVE(be, concat_channels, cpu_concat_channels, t->name);
    SERVE(be, upsample_nearest, cpu_upsample_nearest, t->name);
    SERVE(be, convert, cpu_convert, t->name);
    SERVE(be, pack_conv2d, cpu_pack_matrix, t->name);
    SERVE(be, pack_linear, cpu_pack_matrix, t->name);
    SERVE(be, pack_embedding, cpu_pack_embedding, t->name);
    be->form_of = cpu_form_of;
    be->fuses_norm = cpu_fuses_norm;
    be->norm_silu_conv2d = cpu_norm_silu_conv2d;
    if (t->gemm->keeps_tiles) {
        be->fuses_layer_norm = cpu_fuses_layer_norm;
        be->layer_norm_linear = cpu_layer_norm_linear;
    }
    if (be->int8 && t->winograd_2x4)
        be->int8_leaves = leaves_to_winograd_2x4;
    if (be->int8)
        be->served_by[OP_conv2d] = be->served_by[OP_linear] = t->int8->serves;
}

int ops_cpu(struct backend *be, const struct backend_options *opt, struct error *err)
{
    const struct entry *e;
    int rc = choose(opt->isa, opt->bf16, be->int8, &e, err);
    if (rc || !e)
        return rc; /* a processor without AVX2: ref serves all, and the log says so */
    struct cpu_state *st = calloc(1, sizeof *st);
    if (!st)
        return error_set(err, ERR_NOMEM, "no memory for the CPU backend");
    st->tier = &e->tier;
    st->partial = aligned_alloc(64, PARTIAL_DOUBLES * sizeof(double));
    /* Address space; pages are taken when a layer first uses them. */
    st->heads = aligned_alloc(64, HEADS_BYTES);
    st->kept.at = aligned_alloc(64, KEPT_FLOATS * sizeof(float));
    be->state = st;
    be->close = close_cpu;
    if (!st->partial || !st->heads || !st->kept.at)
        return error_set(err, ERR_NOMEM, "no memory for the CPU backend");
    if ((rc = be->mem_alloc(be, WINOGRAD_BYTES, &st->winograd, err)))
        return rc;
    be->tier = e->tier.name;
    be->dtype = e->tier.gemm->dtype;
    const struct gemm_kernel *g = e->tier.gemm;
    snprintf(be->layout, sizeof be->layout, "cpu %s %s%s", LATENTD_LAYOUT, g->name, be->int8 ? " int8" : "");
    serve(be, &e->tier);
    return 0;
}

struct peak_job {
    void (*begin)(void), (*end)(void);
    double (*peak)(void);
    double flops[256];
};

static void peak_item(void *ctx, int item, int worker)
{
    (void)worker;
    struct peak_job *job = ctx;
    if (job->begin)
        job->begin();
    for (int i = 0; i < 8; i++) {
        double f = job->peak();
        job->flops[item] = f > job->flops[item] ? f : job->flops[item];
    }
    if (job->end)
        job->end();
}

double cpu_peak_flops(const struct backend *be, bool int8)
{
    if (!be->state || !be->pool)
        return 0;
    const struct gemm_kernel *g = cpu_tier(be)->gemm;
    const struct int8_kernel *k = int8 ? cpu_tier(be)->int8 : NULL;
    struct peak_job job = {k ? k->begin : g->begin, k ? k->end : g->end, k ? k->peak : g->peak, {0}};
    int threads = pool_threads(be->pool);
    threads = threads < 256 ? threads : 256;
    pool_run(be->pool, threads, peak_item, &job);
    double sum = 0;
    for (int i = 0; i < threads; i++)
        sum += job.flops[i];
    return sum;
}
