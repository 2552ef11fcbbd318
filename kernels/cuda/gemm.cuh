/* The host's half of the matrix product: what describes one, which tile, split or library runs it, and the launch.
 * The kernels stand in gemm_tile.cuh (every GPU from sm_80 on), gemm_hopper.cuh and gemm_tma.cuh (compute capability
 * 9.0).
 *
 * Tile and splits are the candidates of choose.h: timed once a shape, the model below is the first guess and what serves
 * when nothing is timed. Hopper's tiles and the libraries are never a guess: only a clock chooses them. */
#ifndef LATENTD_CUDA_GEMM_CUH
#define LATENTD_CUDA_GEMM_CUH

#include <stdio.h>

#include "choose.h"
#include "gemm_hopper.cuh"
#include "gemm_tile.cuh"
#include "library.h"
#include "weights.cuh"

/* Fills in A from the tensors and the matrix, with the geometry of a linear layer: all rows of X are one line of a
 * picture, and the kernel is 1x1. ADD and RESIDUAL may be absent. */
int gemm_begin(struct backend *be, struct gemm *a, tensor y, tensor x, const weight *w, tensor add, tensor residual,
               struct error *err);
int gemm_rows(struct backend *be, const struct gemm &a, struct error *err);      /* linear.cu: y's rows are x's */
int gemm_positions(struct backend *be, const struct gemm &a, struct error *err); /* conv2d.cu: by the geometry in A */
int gemm_reduce(struct backend *be, const struct gemm &a, struct error *err);    /* linear.cu: sums the splits */
/* gemm_tma.cu: whether its kernels can run A here, and the launch of the one with BN columns. ERR_UNSUPPORTED: the driver
 * will not. TRIAL: into memory that does not count yet. */
bool gemm_tma_serves(const struct backend *be, const struct gemm &a);
int gemm_tma_launch(struct backend *be, const struct gemm &a, int bn, bool trial, struct error *err);

/* Whether x can be copied 16 bytes at a time. */
static inline bool gemm_in_vectors(const struct gemm &a)
{
    return a.in_c % 8 == 0 && a.x_ld % 8 == 0 && (uintptr_t)a.x % 16 == 0;
}

/* Tiles of gemm_tile.cuh, then those of gemm_hopper.cuh, then those of gemm_tma.cuh. */
enum { GEMM_SHAPES = 4, GEMM_TMA = GEMM_SHAPES + 2, GEMM_TILES = GEMM_TMA + 2, GEMM_SPLITS_MAX = 32 };

/* What the choice of a tile weighs. RATE: share of the tensor cores' speed that full multiprocessors reach. */
struct gemm_shape {
    int bm, bn, bk, blocks;
    float rate;
};

static const struct gemm_shape gemm_shapes[GEMM_TILES] = {
    {256, 128, 32, 1, 0.85f}, {128, 128, 32, 2, 0.80f}, {128, 64, 32, 3, 0.65f},
    {64, 64, 64, 3, 0.45f},   {128, 256, 64, 1, 0.85f}, {128, 128, 64, 1, 0.75f},
    {128, 256, 64, 1, 0.85f}, {128, 128, 64, 2, 0.80f}};

/* Steps along k: those of gemm_tma.cuh end with every tap. */
static inline int gemm_steps(const struct gemm *a, int shape)
{
    size_t bk = (size_t)gemm_shapes[shape].bk;
    return shape < GEMM_TMA ? (int)blocks_of((size_t)a->depth, bk)
                            : a->kh * a->kw * (int)blocks_of((size_t)a->channels, bk);
}

/* Estimated cycles of A with a tile and a number of splits, on SMS multiprocessors of 1024 multiply-adds a cycle (an
 * A100; for the others the proportions are what counts). A model to choose by, not a measurement. */
static inline float gemm_cycles(const struct gemm *a, const struct gemm_shape *s, unsigned tiles, int splits, int sms)
{
    unsigned steps = blocks_of((size_t)a->depth, (size_t)(s->bk * splits));
    float most = (float)((tiles * (unsigned)splits + (unsigned)sms - 1) / (unsigned)sms); /* on the busiest one */
    float rate = s->rate; /* fewer blocks than fit cannot keep it busy */
    if (most < (float)s->blocks)
        rate *= 0.6f + 0.4f * most / (float)s->blocks;
    float multiply = (float)(s->bm * s->bn * s->bk) / (1024 * rate), copy = (float)((s->bm + s->bn) * s->bk * 2) / 40;
    float block = (float)steps * (multiply > copy ? multiply : copy) + (float)(s->bm * s->bn) / 16;
    float cycles = 1500 + most * block;
    if (splits > 1) /* a second launch, and the partial sums written and read through L2 */
        cycles += 2500 + (float)splits * (float)a->rows * (float)a->cols * 8 / (32.0f * (float)sms);
    return cycles;
}

/* Behind the shapes of gemm_shapes: what the libraries hold for the fastest, and cuBLASLt's second choice. */
enum { GEMM_CUBLASLT = GEMM_TILES, GEMM_CUBLASLT_NEXT, GEMM_CUDNN, GEMM_KINDS };

/* One way to run a product: a tile and a number of splits, or a library. */
struct gemm_option {
    int shape, splits;
    float cycles;
};

/* Fills in of A what depends on the option. */
static inline void gemm_set(struct backend *be, struct gemm *a, const struct gemm_option *o)
{
    const struct gemm_shape *s = &gemm_shapes[o->shape];
    int steps = gemm_steps(a, o->shape);
    a->split_tiles = (int)blocks_of((size_t)steps, (size_t)o->splits);
    a->splits = (int)blocks_of((size_t)steps, (size_t)a->split_tiles);
    a->tiles_m = (int)blocks_of((size_t)a->rows, (size_t)s->bm);
    a->tiles_n = (int)blocks_of((size_t)a->cols, (size_t)s->bn);
    /* Three steps where four would cost a block: each takes 1 KB more, and a multiprocessor has 1 KB more than a block. */
    size_t step_bytes = (size_t)(s->bm + s->bn) * (size_t)s->bk * 2;
    a->stages = (4 * step_bytes + 1024) * (size_t)s->blocks <= cuda_of(be)->shared_max + 1024 ? 4 : 3;
    a->partial = a->splits > 1 ? (float *)cuda_of(be)->workspace : NULL;
}

/* The two numbers of splits that the model likes best for a shape, into O; returns how many there are. Tried are no
 * split, and as many as give every multiprocessor a whole number of blocks. */
static inline int gemm_splits(struct backend *be, const struct gemm *a, int shape, struct gemm_option o[2])
{
    const struct gemm_shape *g = &gemm_shapes[shape];
    int sms = cuda_of(be)->multiprocessors, count = 0;
    size_t bytes = (size_t)a->rows * (size_t)a->cols * sizeof(float);
    int most = CUDA_WORKSPACE / bytes < GEMM_SPLITS_MAX ? (int)(CUDA_WORKSPACE / bytes) : GEMM_SPLITS_MAX;
    unsigned tiles = blocks_of((size_t)a->rows, (size_t)g->bm) * blocks_of((size_t)a->cols, (size_t)g->bn);
    int limit = a->depth / (2 * g->bk) < most ? a->depth / (2 * g->bk) : most;
    for (int wave = 0; wave <= 2 * g->blocks; wave++) {
        int fit = (int)((unsigned)(wave * sms) / tiles), s = wave == 0 ? 1 : fit < limit ? fit : limit;
        if ((wave > 0 && s < 2) || (count > 0 && o[0].splits == s) || (count > 1 && o[1].splits == s))
            continue;
        struct gemm_option now = {shape, s, gemm_cycles(a, g, tiles, s, sms)};
        if (count < 2)
            o[count++] = now;
        else if (now.cycles < o[1].cycles)
            o[1] = now;
        if (count == 2 && o[1].cycles < o[0].cycles) {
            struct gemm_option better = o[1];
            o[1] = o[0];
            o[0] = better;
        }
    }
    return count;
}

/* A as the libraries want it described. */
static inline struct gemm_call gemm_as_call(struct backend *be, const struct gemm &a, int rank)
{
    struct gemm_call c;
    memset(&c, 0, sizeof c);
    c.rows = a.rows;
    c.cols = a.outputs;
    c.depth = a.in_c;
    c.x = a.x;
    c.x_ld = a.x_ld;
    c.w = a.w;
    c.w_stride = a.depth;
    c.bias = a.bias16 ? a.bias : NULL;
    c.bias16 = a.bias16;
    c.residual = a.residual;
    c.residual_ld = a.residual_ld;
    c.y = a.y;
    c.y_ld = a.y_ld;
    c.dtype = be->dtype;
    c.f32_out = a.f32_out;
    c.rank = rank;
    return c;
}

static inline struct conv_call gemm_as_conv(struct backend *be, const struct gemm &a)
{
    struct conv_call c;
    memset(&c, 0, sizeof c);
    c.n = a.rows / a.positions;
    c.h = a.height;
    c.w = a.width;
    c.c = a.in_c;
    c.oh = a.positions / a.out_w;
    c.ow = a.out_w;
    c.o = a.outputs;
    c.kh = a.kh;
    c.kw = a.kw;
    c.stride = a.stride;
    c.pad_top = a.pad_y;
    c.pad_left = a.pad_x;
    c.pad_bottom = (c.oh - 1) * a.stride + a.kh - a.height - a.pad_y; /* no more than the last window needs */
    c.pad_right = (c.ow - 1) * a.stride + a.kw - a.width - a.pad_x;
    c.channels = a.channels;
    c.upsample = a.up != 0;
    c.x = a.x;
    c.weight = a.w;
    c.x_ld = a.x_ld;
    c.bias = a.bias16 ? a.bias : NULL;
    c.bias16 = a.bias16;
    c.add = a.add;
    c.add_ld = a.add_ld;
    c.residual = a.residual;
    c.residual_ld = a.residual_ld;
    c.y = a.y;
    c.y_ld = a.y_ld;
    c.act = a.act;
    c.dtype = be->dtype;
    c.f32_out = a.f32_out;
    return c;
}

enum { GEMM_OPTIONS = 2 * GEMM_TILES + 2 };
static_assert((int)GEMM_OPTIONS <= (int)CANDIDATES_MAX, "all can compete");

/* A product with the ways to run it, best guess first. */
struct gemm_options {
    struct gemm a;
    int count;
    struct gemm_option o[GEMM_OPTIONS];
};

/* FIRST: the first shape that the caller has. */
static inline void gemm_list(struct backend *be, struct gemm_options *list, int first)
{
    list->count = 0;
    for (int i = first; i < GEMM_SHAPES; i++)
        list->count += gemm_splits(be, &list->a, i, list->o + list->count);
    for (int i = 1; i < list->count; i++)
        for (int j = i; j > 0 && list->o[j].cycles < list->o[j - 1].cycles; j--) {
            struct gemm_option t = list->o[j];
            list->o[j] = list->o[j - 1];
            list->o[j - 1] = t;
        }
}

/* Hopper's tiles come behind the others, and the libraries' ways last. */
static inline void gemm_list_hopper(struct backend *be, struct gemm_options *list)
{
    if (!gemm_hopper_serves(be))
        return;
    int end = gemm_tma_serves(be, list->a) ? GEMM_TILES : GEMM_TMA;
    for (int i = GEMM_SHAPES; i < end; i++)
        list->count += gemm_splits(be, &list->a, i, list->o + list->count);
}

template <int GATHER> static void gemm_list_libraries(struct backend *be, struct gemm_options *list)
{
    const struct gemm &a = list->a;
    if (GATHER == ROWS && !a.geglu && a.act == ACT_NONE && !a.add) {
        struct gemm_call c = gemm_as_call(be, a, 0);
        if (cublaslt_can(be, &c)) {
            list->o[list->count++] = {GEMM_CUBLASLT, 1, 0};
            list->o[list->count++] = {GEMM_CUBLASLT_NEXT, 1, 0};
        }
    }
    if (GATHER == POSITIONS && (a.act == ACT_NONE || a.act == ACT_SILU) && a.add_positions == a.positions) {
        struct conv_call c = gemm_as_conv(be, a);
        if (c.pad_bottom >= 0 && c.pad_right >= 0 && cudnn_can_conv(be, &c))
            list->o[list->count++] = {GEMM_CUDNN, 1, 0};
    }
}

template <class T, class S, int GATHER> static int gemm_launch(struct backend *be, const struct gemm &a, struct error *err)
{
    dim3 grid((unsigned)a.tiles_m * (unsigned)a.tiles_n, (unsigned)a.splits);
    return launch(be, gemm_tile<T, S, GATHER>, grid, S::THREADS, (size_t)(a.stages * S::STAGE_BYTES), a, err);
}

/* Launches A, set for SHAPE. TRIAL: into memory that does not count yet. */
template <class T, int GATHER>
static int gemm_tiles(struct backend *be, int shape, const struct gemm &a, bool trial, struct error *err)
{
    if constexpr (GATHER != NUMBERS) {
        if (shape == 0)
            return gemm_launch<T, tile_256x128, GATHER>(be, a, err);
        if (shape == 1)
            return gemm_launch<T, tile_128x128, GATHER>(be, a, err);
        if (shape == 2)
            return gemm_launch<T, tile_128x64, GATHER>(be, a, err);
        if (shape == GEMM_SHAPES)
            return gemm_hopper_launch<T, hopper_128x256, GATHER>(be, a, trial, err);
        if (shape == GEMM_SHAPES + 1)
            return gemm_hopper_launch<T, hopper_128x128, GATHER>(be, a, trial, err);
    }
    return gemm_launch<T, tile_64x64, GATHER>(be, a, err);
}

/* Runs option I of CTX, a struct gemm_options: the product, and behind it the sum of its splits. OUT: where to, instead
 * of y (to time it); NULL: to y. */
template <int GATHER>
static int gemm_run_option(struct backend *be, const void *ctx, int i, void *out, struct error *err)
{
    const struct gemm_options *list = (const struct gemm_options *)ctx;
    struct gemm a = list->a;
    int shape = list->o[i].shape;
    if (shape == GEMM_CUDNN) {
        struct conv_call c = gemm_as_conv(be, a);
        return cudnn_conv(be, &c, out, err);
    }
    if (shape >= GEMM_CUBLASLT) {
        struct gemm_call c = gemm_as_call(be, a, shape - GEMM_CUBLASLT);
        return cublaslt_gemm(be, &c, out, err);
    }
    if (out)
        a.y = out;
    gemm_set(be, &a, &list->o[i]);
    int rc = shape >= GEMM_TMA          ? gemm_tma_launch(be, a, gemm_shapes[shape].bn, out != NULL, err)
             : be->dtype == DTYPE_F16 ? gemm_tiles<f16, GATHER>(be, shape, a, out != NULL, err)
                                        : gemm_tiles<bf16, GATHER>(be, shape, a, out != NULL, err);
    return rc || a.splits == 1 ? rc : gemm_reduce(be, a, err);
}

/* All that the speed of A depends on, and which of the candidates can serve it at all, as a number. */
static inline uint64_t gemm_key(struct backend *be, const struct gemm &a, int gather)
{
    const int parts[] = {gather,         be->dtype, a.rows,    a.cols,           a.depth,           a.outputs, a.kh,
                         a.kw,           a.stride,  a.pad_y,   a.pad_x,          a.height,          a.width,   a.up,
                         a.geglu,        a.f32_out, a.act,     a.vectors,        a.add != nullptr,  a.add_positions,
                         a.bias16 != nullptr, a.residual != nullptr, a.y_ld};
    uint64_t key = 0xcbf29ce484222325u; /* FNV-1a, word by word */
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        key = (key ^ (uint64_t)(unsigned)parts[i]) * 0x100000001b3u;
    return key;
}

/* What A reads beside its weights, up to the last number of the last row. */
static inline void gemm_inputs(struct choice *c, const struct gemm &a)
{
    size_t pixels = (size_t)(a.rows / a.positions) * (size_t)a.height * (size_t)a.width, last = (size_t)a.rows - 1;
    const void *data[CHOICE_INPUTS] = {a.x, a.residual, a.add};
    size_t count[CHOICE_INPUTS] = {(pixels - 1) * (size_t)a.x_ld + (size_t)a.in_c,
                                   last * (size_t)a.residual_ld + (size_t)a.outputs,
                                   last / (size_t)a.add_positions * (size_t)a.add_ld + (size_t)a.outputs};
    for (int i = 0; i < CHOICE_INPUTS; i++)
        c->in[i] = {(void *)(uintptr_t)data[i], count[i]};
}

/* Has the candidates of LIST compete (choose.h); the winner's place in the list, or a negative code. */
template <int GATHER> static int gemm_compete(struct backend *be, const struct gemm_options *list, struct error *err)
{
    static const char *const gathers[] = {"rows", "conv", "numbers"};
    const struct gemm &a = list->a;
    struct choice c;
    c.count = list->count < CANDIDATES_MAX ? list->count : CANDIDATES_MAX;
    c.unproven = 0;
    for (int i = 0; i < c.count; i++) {
        static const char *const libraries[] = {"cublaslt", "cublaslt1", "cudnn"};
        const struct gemm_option *o = &list->o[i];
        if (o->shape >= GEMM_TILES)
            snprintf(c.name[i], sizeof c.name[i], "%s", libraries[o->shape - GEMM_TILES]);
        else
            snprintf(c.name[i], sizeof c.name[i], "%s%dx%d/%d",
                     o->shape >= GEMM_TMA      ? "tma"
                     : o->shape >= GEMM_SHAPES ? "wgmma"
                                               : "",
                     gemm_shapes[o->shape].bm, gemm_shapes[o->shape].bn, o->splits);
        if (o->shape >= GEMM_SHAPES && o->shape < GEMM_TILES)
            c.unproven |= 1u << i;
    }
    snprintf(c.key, sizeof c.key, "%s %s %dx%dx%d k%dx%d s%d %dx%d ld%d%s%s%s%s%s%s", gathers[GATHER],
             be->dtype == DTYPE_F16 ? "fp16" : "bf16", a.rows, a.cols, a.depth, a.kh, a.kw, a.stride, a.height, a.width,
             a.y_ld, a.up ? " up" : "", a.geglu ? " geglu" : "", a.act ? " act" : "", a.add ? " add" : "",
             a.residual ? " residual" : "", a.f32_out ? " f32" : "");
    c.out_bytes = (size_t)a.rows * (size_t)a.y_ld * (a.f32_out ? 4 : 2);
    c.out_type = a.f32_out ? DTYPE_F32 : be->dtype;
    gemm_inputs(&c, a);
    c.in_type = be->dtype;
    c.run = gemm_run_option<GATHER>;
    c.ctx = list;
    return choose(be, &c, err);
}

/* Launches A in the fastest way. The contest is for the first time; later a look into a table is enough, since a step
 * is hundreds of products. */
template <int GATHER> static int gemm_run(struct backend *be, const struct gemm &a, struct error *err)
{
    struct gemm_options list;
    list.a = a;
    uint64_t key = gemm_key(be, a, GATHER);
    int known = choose_known(be, key), first = GATHER == NUMBERS ? GEMM_SHAPES - 1 : 0;
    if (known < 0) {
        gemm_list(be, &list, first);
        if (GATHER != NUMBERS)
            gemm_list_hopper(be, &list);
        gemm_list_libraries<GATHER>(be, &list);
        int best = gemm_compete<GATHER>(be, &list, err);
        if (best < 0)
            return best;
        list.o[0] = list.o[best];
    } else {
        list.o[0].shape = known % GEMM_KINDS;
        list.o[0].splits = known / GEMM_KINDS;
    }
    if (list.o[0].shape >= GEMM_TMA) {
        /* A library, or the driver, may refuse today what was chosen before: another version, less memory. */
        struct error why;
        memset(&why, 0, sizeof why);
        int rc = gemm_run_option<GATHER>(be, &list, 0, NULL, &why);
        if (rc == 0 && known < 0)
            choose_remember(be, key, list.o[0].shape + GEMM_KINDS * list.o[0].splits);
        if (rc != ERR_UNSUPPORTED)
            return rc ? error_set(err, rc, "%s", why.msg) : 0;
        if (list.o[0].shape < GEMM_TILES)
            choose_without("a product by TMA", &why);
        gemm_list(be, &list, first);
        known = -1;
    }
    if (known < 0)
        choose_remember(be, key, list.o[0].shape + GEMM_KINDS * list.o[0].splits);
    return gemm_run_option<GATHER>(be, &list, 0, NULL, err);
}

#endif
