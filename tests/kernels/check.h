/* build/checkkernels: every kernel against its reference.
 *
 * Two questions, one file an op. Is ref right? Its result against numbers exported from PyTorch (golden/). Is
 * every tier of this machine right? Its result against ref, on seeded random inputs rounded to the tier's
 * activation type first, so that both start from the same numbers and what is left is the order of sums and
 * one rounding at the store.
 *
 * What a tier gets is hostile on purpose: channels between the rows of a view and bands around every tensor
 * hold NaN, outputs are filled with NaN, and all bands and inputs are compared afterwards. */
#ifndef LATENTD_CHECK_H
#define LATENTD_CHECK_H

#include "backend.h"
#include "half.h"

enum { TIERS_MAX = 20 };

struct tier {
    char name[40];
    struct backend *be;
    enum dtype dtype; /* of activations; for "ref+bf16" and "ref+f16" not be->dtype */
    bool is_ref;
    bool int8;   /* a second handle on the tier, for conv2d and linear alone: weights are packed in int8 */
    double peak; /* FLOP/s, for --bench; 0: not known */
    /* of the running op */
    int cases, failed;
    double worst; /* greatest error seen, as a share of its tolerance */
};

struct block;
struct op_check;
struct golden_case;

struct check {
    struct tier tier[TIERS_MAX];
    int tiers;
    struct tier golden;       /* the score of ref against PyTorch */
    struct backend *ref;      /* computes what is expected */
    struct backend *ref_int8; /* of a tier in int8 */
    const struct op_check *op;
    enum dtype type;   /* activation type of the tiers that are running */
    enum dtype source; /* how weights are handed over in this case */
    bool upsample;     /* and whether they are said to be of an upsampled convolution */
    bool large;        /* or of one of large pictures */
    uint64_t seed, state;
    const char *only_op, *but, *only_isa, *candidate;
    int rounds;
    bool bench;
    struct tier *running; /* that next_tier gave last: where tensors are placed */
    struct block *arrays; /* memory of the running case */
    struct block *placed; /* tensors of the running call */
    char label[256];      /* of the running case, for messages */
    int passed, failed, skipped;
    struct error err;
};

/* One op: how to check it. The last three may be NULL. */
struct op_check {
    enum op_id id;
    void (*cases)(struct check *ck); /* the fixed shapes, for the tiers of ck->type */
    void (*round)(struct check *ck); /* one random shape */
    void (*golden)(struct check *ck, const struct golden_case *g);
    void (*bench)(struct check *ck, const struct tier *t);
    void (*published)(struct check *ck); /* ref against numbers that others published */
};

extern const struct op_check check_conv2d, check_conv_temporal, check_linear, check_attention,
    check_group_norm, check_group_norm_silu, check_layer_norm, check_silu, check_add, check_blend,
    check_concat_channels, check_upsample_nearest, check_embed_tokens, check_timestep_embedding,
    check_repeat_batch, check_convert, check_randn, check_lincomb, check_guide, check_clip, check_ramp,
    check_from_host, check_to_host, check_to_rgb8;

/* ---- Random numbers: splitmix64, the same for the same --seed ---- */

uint64_t rng_next(struct check *ck);
int rng_range(struct check *ck, int lo, int hi); /* lo..hi, both included */
bool rng_one_in(struct check *ck, int n);
float rng_normal(struct check *ck); /* near enough: the sum of four uniforms */

/* ---- Numbers on the host: fp32, contiguous NHWC; freed when the case ends ---- */

struct array {
    int n, h, w, c;
    float *v; /* NULL: absent */
};

void *case_alloc(struct check *ck, size_t bytes);
struct array array_new(struct check *ck, int n, int h, int w, int c);
/* mean + scale * normal, with one number in 32 an edge (0, -0, +-1, +-16, tiny), rounded to ck->type. */
struct array array_random(struct check *ck, int n, int h, int w, int c, float scale, float mean);
struct array array_abs(struct check *ck, struct array a);
struct array array_square(struct check *ck, struct array a);
size_t array_count(struct array a);
/* The same numbers as a contiguous F32 tensor, for the oracle. Of an absent array: no tensor. */
tensor array_tensor(struct array a);
/* Frees the arrays of the case. */
void case_end(struct check *ck);
__attribute__((format(printf, 2, 3))) void case_label(struct check *ck, const char *fmt, ...);

/* ---- Weights ---- */

/* Numbers for a case's weights, exact in ck->type and ck->source alike, so that no rounding of weights is
 * left. The first call of a case is weights_begin(): it draws the type that the "file" has them in. */
void weights_begin(struct check *ck);
struct array weight_random(struct check *ck, int o, int i, int kh, int kw, float scale);
/* Packs W [O, I, KH, KW] (array n, h, w, c = O, I, KH, KW in C order; a norm's gamma [O, 1, 1, 1]) and BIAS
 * [O] or absent into BE, handed over as ck->source in PARTS pieces at odd addresses, as in a mapped file. On
 * failure the case is a failure and packed is NULL. */
weight pack_weight(struct check *ck, struct backend *be, enum weight_kind kind, struct array w,
                   struct array bias, int parts);

/* ---- Tiers ---- */

/* The tiers of ck->type that serve the running op, one after the other: start with NULL; NULL is the end. */
struct tier *next_tier(struct check *ck, struct tier *t);

/* A as the tier gets it: stored as TYPE, GAP channels of NaN behind each row and FIRST before it (a view).
 * Absent: no tensor. */
tensor place(struct check *ck, struct array a, enum dtype type, int first, int gap);
/* Room for an output, full of NaN. Only ref is asked to honour a gap between output rows, which no network
 * makes. */
tensor place_output(struct check *ck, const struct tier *t, int n, int h, int w, int c, enum dtype type);

/* The same without any gap, for what lies in host memory; BYTES of it. */
void *place_host(struct check *ck, size_t bytes);

/* Ends a call: RC is what the slot returned. Compares GOT with WANT, both counted row by row; element i may
 * differ by BOUND[i] plus half a unit of GOT's type. Looks at all bands and inputs, frees what was placed,
 * and keeps the score. */
void verify(struct check *ck, struct tier *t, int rc, tensor got, const float *want, const float *bound);
/* The same for bytes and for a host array; they must be equal. */
void verify_bytes(struct check *ck, struct tier *t, int rc, const void *got, const void *want, size_t bytes);

/* Whether one of the tiers that run is in int8. */
bool any_int8(struct check *ck);

/* ---- Tolerances ---- */

/* A tier in int8 must find the numbers of ref in int8: the sums are exact and scaled in one order, so only
 * the activations' own error is left, as a share of everything that is added. */
#define INT8_BOUND(act) ((act) ? 16 * FP32_UNIT : 2 * FP32_UNIT)

/* Half a unit in the last place of fp32. */
#define FP32_UNIT 0x1p-24

/* What a sum of n products of random signs may lose in any order of fp32 sums, as a multiple of the root of
 * the sum of their squares. Every step loses at most one unit of the partial sum, which is a random walk
 * about as long as that root, and so is the sum of the losses: three times the root of n is where one in a
 * thousand million would be. A wrong, missing or 16-bit product is far outside of it. */
double sum_bound(double n);
/* What is lost on top of it where a tensor core may have summed, in the same terms; 0 when ck->type is F32.
 * It adds 8 products at a time (16 on later ones) and cuts the sum off instead of rounding it (Fasi, Higham,
 * Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores", 2021), so the losses do not cancel: one
 * unit of half the last place a step, all towards zero. */
double tensor_core_bound(const struct check *ck, double n);
/* UNITS of fp32 of each number of WANT; 0 where the numbers only move. */
struct array bound_units(struct check *ck, struct array want, double units);

/* ---- Goldens ---- */

enum { GOLDEN_INTS = 16, GOLDEN_FLOATS = 8, GOLDEN_ARRAYS = 8 };

/* A case as scripts/export_op_goldens.py wrote it; what the ints and floats mean is agreed between it and the
 * op. */
struct golden_case {
    int32_t ints[GOLDEN_INTS];
    float floats[GOLDEN_FLOATS];
    struct array array[GOLDEN_ARRAYS]; /* absent ones have v == NULL */
};

/* Runs OP's golden file through ref. A missing or foreign file is a failure. */
void run_goldens(struct check *ck, const struct op_check *op);
/* Compares ref's result with what PyTorch gave: |got - want| <= atol + rtol * |want|. */
void verify_golden(struct check *ck, int rc, tensor got, struct array want, double atol, double rtol);

/* ---- Shapes for ops that do not care much ---- */

struct shape {
    int n, h, w, c;
    int first, gap; /* view: channels before and behind each row */
};

/* Calls RUN with a list of odd shapes, and with a random one. */
void each_shape(struct check *ck, void (*run)(struct check *, const struct shape *));
void random_shape(struct check *ck, void (*run)(struct check *, const struct shape *));
struct array shape_array(struct check *ck, const struct shape *s);

/* ---- Bench ---- */

/* Best time of one call in seconds, over at least three calls and 0.2 s of them; on a device the median of
 * seven rows of calls. */
double bench_time(void (*call)(void *), void *ctx);
/* Times CALL(y, a, b) at the widths of SD-Turbo: y is HEIGHT times as high and wide as a and b, and WIDTH
 * times as deep. */
typedef int bench_move(struct backend *be, tensor y, tensor a, tensor b, struct error *err);
void bench_moves(struct check *ck, const struct tier *t, bench_move *call, int inputs, int height, int width);
/* Prints a line: op, tier, shape, time, GFLOP/s, GB/s, share of the tier's peak; then frees arrays and
 * tensors. */
void bench_report(struct check *ck, const struct tier *t, const char *shape, double seconds, double flops,
                  double bytes);

#endif
