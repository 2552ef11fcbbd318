/* What a CPU tier consists of, and the packed weights that all tiers share.
 *
 * Everything above this header (gemm.c, attention.c, norm.c …) is written once and knows no instruction set;
 * a tier is a matrix micro-kernel (struct gemm_kernel) and a set of row functions (struct row_ops). */
#ifndef LATENTD_CPU_TIER_H
#define LATENTD_CPU_TIER_H

#include "backend.h"

/* Where the rows of a struct finish from FIRST on lie: so many bytes further on than if they followed the
 * others. */
struct finish_jump {
    int first;
    ptrdiff_t y, residual, add;
};

/* The end of a matrix product: c [rows][nr] -> y, `cols` outputs a row.
 * y = act(c + bias + add) + residual, or for geglu (c + bias)[j] * gelu((c + bias)[nr/2 + j]) + residual. */
struct finish {
    const float *c;
    int nr, rows, cols;
    const float *bias; /* [nr], zeros where there is none */
    const void *add;   /* [cols] or NULL, same for all rows */
    enum dtype add_type;
    const char *residual; /* or NULL */
    size_t residual_stride;
    enum dtype residual_type;
    char *y;
    size_t y_stride; /* bytes */
    enum dtype y_type;
    enum act act;
    bool geglu;
    const char *before; /* NULL, or of each row so many bytes of outputs that belong right before y's and are
                           stored with them, as whole lines; BEFORE_STRIDE from row to row */
    int before_bytes, before_stride;
    const struct finish_jump *jump; /* NULL, or where the later rows lie, and which row of `add` is theirs */
    bool stream; /* y is too large for the caches: store past them where that is possible */
    float *sums; /* NULL, or [2][nr]: the rows' sums and those of their squares are added there; cols is
                    nr then */
};

/* One call of the micro-kernel: rows x nr outputs over `taps * channels` products.
 * c[r][j] (+)= sum over t, i of a[r][tap[t] + i] * b[t][i][j], one chunk of k channels after the other. */
struct gemm_tile {
    const char *a; /* first row, in the kernel's dtype */
    size_t lda;    /* bytes from one row to the next */
    size_t a_half; /* bytes from a row to the 16th behind it, where pairs_halves; 0: as lda says */
    char *keep;    /* where keeps_tiles: NULL, or where a's tiles of 16 rows x k_unit are left, one after the
                      other; one tap only */
    size_t keep_half;  /* bytes from a tile's place to that of the same channels 16 rows on */
    const size_t *tap; /* [taps] byte offsets added to every row: kernel positions of a convolution */
    int taps, k;       /* k channels of a chunk from each tap, a multiple of k_unit */
    bool shares; /* where pairs_halves, k is k_unit: taps follow each other by columns of three, and a_half is
                    what a tap of a column has more than the one before it: what one reads of the upper half
                    that one has read of the lower */
    int channels;   /* of all chunks, where the kernel takes whole_slices; 0: k, one chunk */
    size_t a_chunk; /* bytes from one chunk of a to the next */
    const void *b;  /* chunks of F32: [taps][k][nr]; BF16: [taps][k/2][nr][2]; the last may be shorter */
    float *c;       /* [rows][nr] */
    bool add;       /* add to c instead of overwriting it */
    bool half;      /* only the first nr / 2 columns are wanted; the others may be left as they are */
    const char *prefetch;         /* memory that will be read next; any valid address */
    int prefetch_lines;           /* how much of it: lines for each k_unit products; whole_slices only */
    size_t prefetch_apart;        /* bytes between those lines */
    size_t prefetch_step;         /* bytes to those of the next k_unit products */
    int prefetch_steps;           /* how often, where takes_more */
    const float *next_sums;       /* NULL, or [mr][nr] that the next call adds to; whole_slices only */
    const struct finish *pending; /* NULL, or the end of an earlier call that this one does along the way,
                                     before it writes c: both may have the same */
    /* Where takes_more, and rows == mr, one tap, all of its channels at equal distances: as many tiles more,
       each right below the one before. */
    int more;
    size_t a_next; /* bytes from one's first row to the next one's; keep: 2 * keep_half */
    size_t c_next; /* floats from one's sums to the next one's; may be 0 where `end` is given */
    const struct finish
        *end; /* NULL, or the end of each tile but the last, which the next one does along the
                 way: that of the first; the others' rows follow it in y. Of pending's kind. */
    int y_asked, residual_asked; /* bytes of their rows that are asked for, y's to be written */
};

struct spread {
    char *dst;
    size_t dst_chunk; /* bytes from chunk to chunk */
    const char *src;  /* column 0 */
    size_t src_stride;
    int first, step, shift, count, chunks;
};

struct gemm_kernel {
    const char *name;
    enum dtype dtype;  /* of a and b */
    int mr, nr;        /* most rows, columns of a panel */
    int m_align;       /* row counts that are multiples of it run at full speed */
    int k_unit;        /* channels are padded to a multiple of it */
    int k_block;       /* products of a chunk: B of a chunk stays in the first-level cache */
    bool pairs_halves; /* the two halves of mr rows may lie apart: a_half */
    bool keeps_tiles;  /* a call can leave the tiles of a that it reads behind: keep */
    bool whole_slices; /* a call takes all chunks of a slice: sums stay in registers, B comes from the second
                          level */
    bool takes_more;   /* a call can take several tiles: more */
    void (*run)(int rows, const struct gemm_tile *t);
    /* Positions of whole chunks of 64 bytes, given apart: dst[chunk][i][64] = src[(first + i * step) >>
     * shift][chunk][64]. NULL: row_ops.gather does it chunk by chunk. */
    void (*spread)(const struct spread *s);
    bool (*defers)(const struct finish *f); /* whether a call can take F along; NULL: never */
    void (*begin)(void);                    /* around the calls of one work item on a thread; may be NULL */
    void (*end)(void);
    double (*peak)(
        void); /* runs multiply-adds for a few milliseconds; returns FLOPs per second of one thread */
};

/* A run of positions of one picture row: position i reads column (first + i * step) >> shift. */
struct gather {
    char *dst; /* [count][width] of dst_type; channels beyond `channels` become 0 */
    enum dtype dst_type;
    int width, channels;
    const char *src; /* column 0, first channel wanted */
    enum dtype src_type;
    size_t src_stride; /* bytes from column to column */
    int first, step, shift, count;
};

enum { SOFTMAX_ROWS = 32 }; /* most rows of a block */

/* One block of the online softmax: s and p are [panels][rows][nr]; state is per row; nr is two
 * vectors. */
struct softmax_block {
    float *s; /* scores in */
    void *p;  /* exp(scale * s - max) out, p_type; may be s itself */
    enum dtype p_type;
    int rows, keys;
    int panel_rows; /* rows between two panels of s and p */
    float scale;
    int causal_first; /* row r sees keys 0 .. causal_first + r of this block; keys - 1 or more: all */
    float *max, *sum; /* [rows] running maximum (of scale * s) and sum */
    float *o;         /* [o_panels][o_panel_rows][nr] rescaled when the maximum moves */
    int o_panels, o_panel_rows;
};

/* Rows to be normed, each by itself. In memory they come in time when they are asked for LAYER_AHEAD rows
 * ahead: the processor looks no further than the page. */
enum { LAYER_AHEAD = 8 };

struct layer_rows {
    void *y;
    const void *x;
    enum dtype y_type, x_type;
    size_t y_step, x_step; /* bytes from row to row */
    size_t y_part;         /* bytes from PART numbers of a row of y to the next PART */
    int part;              /* 0: c */
    size_t ahead;          /* so many bytes ahead x of bf16 is asked for; 0: it is not */
    int rows, c;
    const float *gamma, *beta;
    float eps;
};

struct row_ops {
    void (*finish)(const struct finish *f);
    void (*fence)(void); /* after the last streaming store of a work item */
    void (*gather)(const struct gather *g);
    /* n numbers from one type to another, any alignment */
    void (*convert)(void *dst, enum dtype dst_type, const void *src, enum dtype src_type, size_t n);
    /* sum[c] += x, square[c] += x^2 over `rows` rows that are `stride` bytes apart */
    void (*channel_sums)(const char *x, enum dtype type, size_t stride, int rows, int c, double *sum,
                         double *square);
    /* y = x * scale[c] + shift[c], then SiLU if asked; scale NULL: y = x; stream as in struct finish */
    void (*affine)(void *y, enum dtype y_type, const void *x, enum dtype x_type, int c, const float *scale,
                   const float *shift, bool silu, bool stream);
    void (*layer_norm)(const struct layer_rows *r);
    void (*add)(void *y, enum dtype y_type, const void *a, enum dtype a_type, const void *b,
                enum dtype b_type, size_t n);
    /* y = share * a + (1 - share) * b, all of TYPE */
    void (*blend)(void *y, const void *a, const void *b, enum dtype type, size_t n, float share);
    void (*softmax)(const struct softmax_block *b);
    /* y[j] = o[j / nr][0][j % nr] * factor for j < c; panels of o are `panel` floats apart */
    void (*output)(void *y, enum dtype y_type, const float *o, size_t panel, int nr, int c, float factor);
    /* dst[i][j] = src row j, element i, as 32-bit words: i < words, j < rows <= nr; other columns become 0 */
    void (*transpose)(uint32_t *dst, int nr, const char *src, size_t stride, int rows, int words);
    /* Winograd's F(4x4, 3x3), 36 places that are `place` floats apart, vectors along channels or outputs:
     * U = G g G' for `channels` channels: src [9][channels][nr] -> dst[place][channel][nr] */
    void (*winograd_weights)(float *dst, size_t place, const void *src, enum dtype type, int channels,
                             int nr);
    /* V = B' d B of one tile: 36 positions of c channels (NULL: zeros) -> dst[place][c] */
    void (*winograd_input)(float *dst, size_t place, const float *const src[36], int c);
    /* y = A' M A of one tile: src[place][nr] -> dst [4 rows, `line` floats apart][4][nr] */
    void (*winograd_output)(float *dst, size_t line, const float *src, size_t place, int nr);
    /* dst = a[0], b[0], a[1], b[1], … for n numbers each */
    void (*interleave)(uint16_t *dst, const uint16_t *a, const uint16_t *b, int n);
};

/* What packing writes at a time: COLUMNS outputs, each a row [channels][taps] of stored numbers, become lines
 * of 16 or more columns. Line c of tap t (with pairs of channels: line c / 2) is at dst + t * tap_bytes + c *
 * line. */
enum { PACK_COLUMNS = 16 };

struct pack_block {
    char *dst;
    size_t tap_bytes, line;
    const char *rows; /* 64-byte aligned, each with room for whole cache lines */
    size_t row_bytes;
    int columns, channels, taps; /* channels is even where pairs are packed */
    bool by_columns;             /* of taps, as in struct cpu_weight */
};

struct flash_kernel;
struct int8_kernel;
struct winograd_rows_kernel;
struct winograd_2x4_kernel;
struct winograd_up_kernel;

struct tier {
    const char *name;
    const struct gemm_kernel *gemm;
    const struct row_ops *rows;
    /* A block of PACK_COLUMNS columns, numbers of SIZE bytes, in pairs of channels or alone; NULL: plain C
     * does it. */
    void (*pack)(const struct pack_block *b, bool pairs, size_t size);
    const struct flash_kernel *flash; /* NULL: attention runs on the matrix micro-kernel */
    const struct int8_kernel *int8;   /* NULL: no int8 */
    /* 3x3 convolutions of bf16 by either; both NULL: they are direct sums */
    const struct winograd_rows_kernel *winograd_rows;
    const struct winograd_2x4_kernel *winograd_2x4;
    /* Upsampled ones, where winograd_2x4 does not take them; NULL: they are four direct sums */
    const struct winograd_up_kernel *winograd_up;
};

void pack_avx512(const struct pack_block *b, bool pairs, size_t size);

/* Sums over the positions of one picture that its convolution took for the group norm behind it, in parts
 * that do not depend on threads. */
struct kept_sums {
    unsigned name; /* tensor.sums of the picture; 0: there are none */
    int h, w, c, parts;
    float *at; /* [KEPT_FLOATS]: [parts][c / KEPT_PANEL][2: sums, sums of squares][KEPT_PANEL] */
};

enum { KEPT_PANEL = 32 }; /* channels */

/* be->state of the CPU backend. */
struct cpu_state {
    const struct tier *tier;
    double *partial; /* [PARTIAL_DOUBLES] group norm's sums by row chunk */
    void *winograd;  /* [WINOGRAD_BYTES] V of a block, or U of a layer */
    char *heads;     /* [HEADS_BYTES] packed keys and values of attention */
    struct kept_sums kept;
};

enum { PARTIAL_DOUBLES = 1 << 20, WINOGRAD_BYTES = 96 << 20, HEADS_BYTES = 64 << 20, KEPT_FLOATS = 8 << 20 };

/* How much of cpu_state.heads is used: HEADS_BYTES. Tests make it less. */
extern size_t cpu_heads_bytes;

/* Outputs of this size are written past the caches: what is written would push out what is still to be read,
 * and each line would be fetched before it is overwritten. Smaller ones wait in the last-level cache for the
 * next op. */
enum { STREAM_BYTES = 32 << 20 };

static inline bool tensor_streams(tensor y)
{
    return tensor_count(y) * dtype_size(y.dtype) >= STREAM_BYTES;
}

/* Column X0 of row Y of picture N, counted over all of X. */
static inline size_t tensor_position(tensor x, size_t n, int y, int x0)
{
    return (n * (size_t)x.h + (size_t)y) * (size_t)x.w + (size_t)x0;
}

static inline const struct tier *cpu_tier(const struct backend *be)
{
    return ((const struct cpu_state *)be->state)->tier;
}

/* In which other form a 3x3 convolution of bf16 is packed, several weights by place. */
enum weight_form {
    FORM_NONE,
    FORM_UP,            /* four 2x2 convolutions: the places (0, 0), (0, 1), (1, 0), (1, 1) of each 2x2
                           outputs of an upsampled 3x3 convolution */
    FORM_WINOGRAD_UP,   /* U of winograd_up.h, by place */
    FORM_WINOGRAD_ROWS, /* U of winograd_rows.h, by place */
    FORM_FEW            /* taps as columns (conv_few.c): struct weight's alone, whose other forms are these */
};

/* A packed convolution or linear layer: this header, then bias, then data, in one block of memory. The
 * outputs are cut into panels of nr; a panel is [channel chunk][tap][channel of the chunk][nr], so that one
 * chunk of all taps is one contiguous B of the micro-kernel. fp32 tiers keep the file's 16-bit numbers, which
 * is exact and halves the memory, and widen one chunk at a time into the cache. A GEGLU panel holds nr/2
 * values, then their nr/2 gates. */
struct cpu_weight {
    enum dtype dtype;       /* of data */
    int taps;               /* kernel positions */
    int tap_columns;        /* 0, or a convolution to few outputs (conv_few.c): columns are outputs of one tap
                               after the other, of so many taps in a panel, and `taps` is 1 */
    bool by_columns;        /* those of a kernel of three rows are packed column by column, not row by row */
    int channels;           /* input channels, padded to k_unit */
    int chunk;              /* channels in a chunk; the last may be shorter */
    int panels, panel_cols; /* outputs written per panel: nr, or nr / 2 for GEGLU */
    size_t panel_bytes;     /* 0: there are none, only those of the form */
    enum weight_form form;  /* that there is beside them or instead */
    size_t form_at, form_bytes; /* bytes from this header to that of its first place, and from one to the
                                   next */
    size_t bias, data;          /* byte offsets from the header: float [panels * nr], and the panels */
};

/* Most outputs and channels of conv_few.c: what it works in then fits a thread's scratch. */
enum { FEW_OUTPUTS = 4, FEW_CHANNELS = 4096 };

/* Where tap T of TAPS lies, counted in taps. */
static inline int tap_slot(int t, int taps, bool by_columns)
{
    const int kw = taps / 3;
    return by_columns ? t % kw * 3 + t / kw : t;
}

static inline const float *weight_bias(const struct cpu_weight *w)
{
    return (const float *)((const char *)w + w->bias);
}

static inline char *weight_data(const struct cpu_weight *w)
{
    return (char *)w + w->data;
}

/* W's form at the Ith place. */
static inline const struct cpu_weight *weight_place(const struct cpu_weight *w, int i)
{
    return (const struct cpu_weight *)(const void *)((const char *)w + w->form_at +
                                                     (size_t)i * w->form_bytes);
}

extern const struct gemm_kernel gemm_avx2, gemm_avx512, gemm_avx512bf16, gemm_avx512bf16_emulated, gemm_amx,
    gemm_amx_emulated;
extern const struct row_ops rows_avx2, rows_avx512, rows_avx512bf16, rows_amx;
extern const struct flash_kernel flash_amx, flash_amx_emulated;
extern const struct winograd_rows_kernel winograd_rows_amx, winograd_rows_amx_emulated;
extern const struct winograd_up_kernel winograd_up_amx, winograd_up_amx_emulated;
extern const struct winograd_2x4_kernel winograd_2x4_avx512bf16, winograd_2x4_avx512bf16_emulated;

/* The slots, in the files named after them. */
int cpu_conv2d(struct backend *, tensor y, tensor x, const weight *w, const struct conv2d_args *a,
               struct error *);
int cpu_conv_temporal(struct backend *, tensor y, tensor x, const weight *w, int frames,
                      const struct conv2d_args *a, struct error *err);
int cpu_linear(struct backend *, tensor y, tensor x, const weight *w, const struct linear_args *a,
               struct error *);
int cpu_attention(struct backend *, tensor y, tensor q, tensor k, tensor v, const struct attention_args *a,
                  struct error *);
/* The same by the tier's flash kernel, where it has one that suits: see flash.c. */
bool flash_suits(const struct backend *be, tensor y, tensor q, tensor k, tensor v,
                 const struct attention_args *a);
int flash_attention(struct backend *be, tensor y, tensor q, tensor k, tensor v,
                    const struct attention_args *a);
int cpu_group_norm(struct backend *, tensor y, tensor x, const weight *w, int groups, float eps,
                   struct error *);
int cpu_group_norm_silu(struct backend *, tensor y, tensor x, const weight *w, int groups, float eps,
                        struct error *);
/* Of one picture: GroupNorm as x * scale[c] + shift[c]. Good until the next norm. */
void group_norm_factors(struct backend *be, tensor x, const weight *w, int groups, float eps,
                        const float **scale, const float **shift);
/* Where the sums of Y, one picture, are to be kept in so many PARTS (struct kept_sums), for the norm behind
 * it; NULL: they cannot be. */
float *keep_sums(struct backend *be, tensor y, int parts);
/* Bytes of x from which on norm and convolution are one: smaller ones gain nothing (SPEED.md). Tests change
 * it. */
extern size_t cpu_fused_bytes;
bool cpu_fuses_norm(const struct backend *, tensor y, tensor x, const weight *w, const struct conv2d_args *a);
int cpu_norm_silu_conv2d(struct backend *, tensor y, tensor x, const struct norm_silu *norm, const weight *w,
                         const struct conv2d_args *a, struct error *);
int cpu_layer_norm(struct backend *, tensor y, tensor x, const weight *w, float eps, struct error *);
bool cpu_fuses_layer_norm(const struct backend *, tensor x, const weight *w);
int cpu_layer_norm_linear(struct backend *, tensor y, tensor x, const weight *norm, float eps,
                          const weight *w, const struct linear_args *a, struct error *);
int cpu_silu(struct backend *, tensor y, tensor x, struct error *);
int cpu_add(struct backend *, tensor y, tensor a, tensor b, struct error *);
int cpu_blend(struct backend *, tensor y, tensor a, tensor b, float share, struct error *);
int cpu_concat_channels(struct backend *, tensor y, tensor a, tensor b, struct error *);
int cpu_upsample_nearest(struct backend *, tensor y, tensor x, struct error *);
int cpu_convert(struct backend *, tensor y, tensor x, struct error *);
/* Convolutions and linear layers. Norms stay as ref packs them: gamma [O], beta [O]. */
int cpu_pack_matrix(struct backend *, weight *w, const struct weight_source *src, struct error *);
unsigned char cpu_form_of(const weight *w); /* enum weight_form */
/* The layout that ref's embed_tokens reads: fp32 [rows][C]. */
int cpu_pack_embedding(struct backend *, weight *w, const struct weight_source *src, struct error *);

/* Asks for P's line in order to write it; no operation where the CPU lacks that. */
__attribute__((always_inline)) static inline void ask_to_write(const char *p)
{
    __asm__ volatile("prefetchw %0" : : "m"(*p));
}

static inline int min_int(int a, int b)
{
    return a < b ? a : b;
}

static inline int div_up(int a, int b)
{
    return (a + b - 1) / b;
}

static inline int round_up(int n, int unit)
{
    return div_up(n, unit) * unit;
}

static inline size_t round_up_bytes(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

#endif
