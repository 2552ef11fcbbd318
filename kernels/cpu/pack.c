/* Weights into the layout of struct cpu_weight, once at load, on all threads. The source is as the file has
 * it: fp32, fp16 or bf16, possibly unaligned, [O][I][taps] for convolutions and [O][I] for linear layers. */
#include <stdlib.h>
#include <string.h>

#include "int8.h"
#include "thread_pool.h"
#include "winograd_2x4.h"
#include "winograd_rows.h"
#include "winograd_up.h"

enum { ALIGN = 64 };

struct pack_job {
    const struct tier *tier;
    struct pool *pool;
    const struct weight_source *src;
    struct cpu_weight *w; /* of a matrix */
    int first_output;     /* that src's numbers begin with; of biases they are all there */
    void *table;          /* of an embedding */
};

/* fp32 tiers store what the file has when all parts agree; bf16 tiers store bf16. */
static enum dtype storage_dtype(const struct tier *t, const struct weight_source *src)
{
    if (t->gemm->dtype == DTYPE_BF16)
        return DTYPE_BF16;
    for (int i = 1; i < src->parts; i++)
        if (src->w[i].dtype != src->w[0].dtype)
            return DTYPE_F32;
    return src->w[0].dtype;
}

/* Channels of a chunk: at most MOST, the same in all chunks as far as possible, in whole cache lines of fp32.
 */
static int chunk_channels(int channels, int most, int unit)
{
    int line = unit > 16 ? unit : 16;
    most = most < unit ? unit : most / unit * unit;
    if (channels <= most || most < line)
        return channels < most ? channels : most;
    most = most / line * line;
    int chunks = (channels + most - 1) / most;
    return ((channels + chunks - 1) / chunks + line - 1) / line * line;
}

/* Whether taps become columns, for conv_few.c. Few channels gain nothing. */
static bool packs_tap_columns(const struct weight_source *src)
{
    return src->kind == WEIGHT_CONV2D && src->kh == 3 && src->kw == 3 && src->parts == 1 && !src->upsample &&
           src->out_c <= FEW_OUTPUTS && src->in_c >= 32 && src->in_c <= FEW_CHANNELS;
}

/* CHUNK: channels of a chunk; 0: as many as suit the kernel. */
static void lay_out(struct cpu_weight *w, const struct tier *t, const struct weight_source *src, int chunk)
{
    const struct gemm_kernel *g = t->gemm;
    const bool tap_columns = packs_tap_columns(src);
    int taps = tap_columns ? 1 : src->kh * src->kw, unit = g->k_unit;
    w->channels = (src->in_c + unit - 1) / unit * unit;
    int slab_taps = src->kh == 2 ? 9 : taps; /* the four of an upsampled convolution share a slab of 3x3 */
    const int most = g->whole_slices && taps > 1 ? unit : g->k_block / slab_taps;
    w->chunk = chunk ? chunk : chunk_channels(w->channels, most, unit);
    w->dtype = storage_dtype(t, src);
    w->taps = taps;
    /* Two rows of outputs then share what they read. A single panel of few outputs gains nothing. */
    w->by_columns = g->pairs_halves && !tap_columns && src->kh == 3 && src->out_c > g->nr / 2;
    w->panel_cols = src->kind == WEIGHT_GEGLU ? g->nr / 2 : g->nr;
    int outputs = src->kind == WEIGHT_GEGLU ? src->out_c / 2 : src->out_c;
    w->panels = (outputs + w->panel_cols - 1) / w->panel_cols;
    if (tap_columns) { /* conv_few.c reads FEW_OUTPUTS columns from a tap's first on */
        w->tap_columns = min_int(9, (g->nr - FEW_OUTPUTS) / src->out_c + 1);
        w->panels = div_up(9, w->tap_columns);
    }
    w->panel_bytes = (size_t)w->channels * (size_t)taps * (size_t)g->nr * dtype_size(w->dtype);
    w->bias = round_up_bytes(sizeof *w, ALIGN);
    w->data = round_up_bytes(w->bias + (size_t)w->panels * (size_t)g->nr * sizeof(float), ALIGN);
}

/* The tap of column J of panel P, where taps are columns; 9: none. */
static int column_tap(const struct pack_job *job, int p, int j)
{
    const int tap = j / job->src->out_c, of = job->w->tap_columns;
    return tap < of && p * of + tap < 9 ? p * of + tap : 9;
}

/* The output that column J of panel P computes, or -1 past the end. */
static int column_output(const struct pack_job *job, int p, int j)
{
    const struct weight_source *src = job->src;
    int cols = job->w->panel_cols;
    if (job->w->tap_columns)
        return column_tap(job, p, j) < 9 ? j % src->out_c : -1;
    if (src->kind != WEIGHT_GEGLU)
        return p * cols + j < src->out_c ? p * cols + j : -1;
    int value = p * cols + j % cols;
    return value < src->out_c / 2 ? value + (j >= cols ? src->out_c / 2 : 0) : -1;
}

/* Numbers of a row that are packed at a time: the lines that all columns of a panel write then stay in the
 * first-level cache. */
enum { BLOCK_NUMBERS = 2048 };

static void scatter32(const struct pack_block *b)
{
    for (int j = 0; j < b->columns; j++) {
        const uint32_t *src = (const uint32_t *)(b->rows + (size_t)j * b->row_bytes);
        for (int c = 0; c < b->channels; c++)
            for (int t = 0; t < b->taps; t++)
                memcpy(b->dst + (size_t)tap_slot(t, b->taps, b->by_columns) * b->tap_bytes +
                           (size_t)c * b->line + (size_t)j * 4,
                       src++, 4);
    }
}

static void scatter16(const struct pack_block *b)
{
    for (int j = 0; j < b->columns; j++) {
        const uint16_t *src = (const uint16_t *)(b->rows + (size_t)j * b->row_bytes);
        for (int c = 0; c < b->channels; c++)
            for (int t = 0; t < b->taps; t++)
                memcpy(b->dst + (size_t)tap_slot(t, b->taps, b->by_columns) * b->tap_bytes +
                           (size_t)c * b->line + (size_t)j * 2,
                       src++, 2);
    }
}

/* Channels 2i and 2i + 1 side by side, as the bf16 dot products want them. */
static void scatter_pairs(const struct pack_block *b)
{
    for (int j = 0; j < b->columns; j++) {
        const uint16_t *src = (const uint16_t *)(b->rows + (size_t)j * b->row_bytes);
        for (int c = 0; c < b->channels; c++)
            for (int t = 0; t < b->taps; t++)
                memcpy(b->dst + (size_t)tap_slot(t, b->taps, b->by_columns) * b->tap_bytes +
                           (size_t)(c / 2) * b->line + (size_t)(2 * j + c % 2) * 2,
                       src++, 2);
    }
}

/* COUNT numbers of A from its AT-th on, every STEPth, in the type that is stored. */
static void read_numbers(const struct pack_job *job, char *dst, const struct host_array *a, size_t at,
                         size_t count, size_t step)
{
    const size_t from = dtype_size(a->dtype), to = dtype_size(job->w->dtype);
    const char *src = (const char *)a->data + at * from;
    if (step == 1)
        job->tier->rows->convert(dst, job->w->dtype, src, a->dtype, count);
    for (size_t i = 0; step != 1 && i < count; i++)
        job->tier->rows->convert(dst + i * to, job->w->dtype, src + i * step * from, a->dtype, 1);
}

/* The numbers of B for COLUMNS columns of panel P from J on, channels FIRST on, as rows of B->rows in the
 * type that is stored; a column that computes nothing is a row of zeros, as are channels past the source's.
 */
static void read_rows(const struct pack_job *job, const struct pack_block *b, char *rows, int p, int j,
                      int first)
{
    const struct weight_source *src = job->src;
    int part_c = src->out_c / src->parts, channels = src->in_c - first;
    size_t size = dtype_size(job->w->dtype);
    channels = channels < b->channels ? channels : b->channels;
    for (int i = 0; i < b->columns; i++, rows += b->row_bytes) {
        int o = column_output(job, p, j + i);
        size_t count = o < 0 || channels < 0 ? 0 : (size_t)channels * (size_t)b->taps;
        if (count) {
            const struct host_array *a = &src->w[o / part_c];
            const bool apart = job->w->tap_columns > 0;
            const size_t step = apart ? 9 : 1, taps = apart ? 9 : (size_t)b->taps;
            size_t at = ((size_t)(o % part_c - job->first_output) * (size_t)src->in_c + (size_t)first) * taps;
            read_numbers(job, rows, a, at + (apart ? (size_t)column_tap(job, p, j + i) : 0), count, step);
        }
        memset(rows + count * size, 0, ((size_t)b->channels * (size_t)b->taps - count) * size);
    }
}

/* Channels [first, first + b->channels) of a chunk whose first is at DST. */
static void pack_columns(const struct pack_job *job, struct pack_block *b, int p, int first, char *scratch)
{
    const struct tier *tier = job->tier;
    int nr = tier->gemm->nr;
    bool pairs = tier->gemm->dtype == DTYPE_BF16;
    size_t size = dtype_size(job->w->dtype);
    char *dst = b->dst;
    b->rows = scratch;
    b->row_bytes = ((size_t)b->channels * (size_t)b->taps * size + ALIGN - 1) / ALIGN * ALIGN;
    for (int j = 0; j < nr; j += PACK_COLUMNS) {
        b->columns = nr - j < PACK_COLUMNS ? nr - j : PACK_COLUMNS;
        b->dst = dst + (size_t)j * size * (pairs ? 2 : 1);
        read_rows(job, b, scratch, p, j, first);
        if (tier->pack && b->columns == PACK_COLUMNS)
            tier->pack(b, pairs, size);
        else if (pairs)
            scatter_pairs(b);
        else if (size == 4)
            scatter32(b);
        else
            scatter16(b);
    }
    b->dst = dst;
}

/* Channels [first, first + padded) of all columns of a panel at DST. */
static void pack_chunk(const struct pack_job *job, int p, int first, int padded, char *dst, char *scratch)
{
    int nr = job->tier->gemm->nr, taps = job->w->taps;
    bool pairs = job->tier->gemm->dtype == DTYPE_BF16;
    size_t size = dtype_size(job->w->dtype), channel = (size_t)nr * size;
    int step = BLOCK_NUMBERS / taps > 2 ? BLOCK_NUMBERS / taps / 2 * 2 : 2;
    for (int c = 0; c < padded; c += step) {
        struct pack_block b = {.dst = dst + (size_t)c * channel,
                               .tap_bytes = (size_t)padded * channel,
                               .line = channel * (pairs ? 2 : 1),
                               .channels = padded - c < step ? padded - c : step,
                               .taps = taps,
                               .by_columns = job->w->by_columns};
        pack_columns(job, &b, p, first + c, scratch);
    }
}

static void pack_panel(void *ctx, int p, int worker)
{
    const struct pack_job *job = ctx;
    struct cpu_weight *w = job->w;
    const struct weight_source *src = job->src;
    int nr = job->tier->gemm->nr;
    char *dst = weight_data(w) + (size_t)p * w->panel_bytes;
    for (int first = 0; first < w->channels && w->panel_bytes; first += w->chunk) {
        int padded = w->channels - first < w->chunk ? w->channels - first : w->chunk;
        pack_chunk(job, p, first, padded, dst, pool_scratch(job->pool, worker));
        dst += (size_t)padded * (size_t)w->taps * (size_t)nr * dtype_size(w->dtype);
    }
    float *bias = (float *)((char *)w + w->bias) + (size_t)p * (size_t)nr;
    int part_c = src->out_c / src->parts;
    for (int j = 0; j < nr; j++) {
        int o = column_output(job, p, j);
        const struct host_array *a = o < 0 ? NULL : &src->bias[o / part_c];
        bias[j] = 0;
        if (a && a->data)
            job->tier->rows->convert(&bias[j], DTYPE_F32,
                                     (const char *)a->data + (size_t)(o % part_c) * dtype_size(a->dtype),
                                     a->dtype, 1);
    }
}

/* ---- Other forms of 3x3 convolutions ---- */

/* Kernels that are made of 3x3 kernels here, in fp32, and rounded once, as the weights themselves are. */
struct form {
    enum weight_form name;
    int kh, kw, places, chunk; /* CHUNK: as in lay_out() */
    /* Of CHANNELS kernels K [3][3] those of all places, PLACE numbers from one place to the next: OUT
     * [channels as they lie there][kh][kw]. */
    void (*kernels)(const float *k, int channels, float *out, size_t place);
};

struct form_job {
    struct pack_job pack;
    const struct form *form;
    const struct cpu_weight *layout;
    const struct weight_source *made; /* one place's, without its numbers */
    char *to;                         /* place 0, the others each BYTES behind */
    size_t bytes;
    float *numbers; /* by worker: [panel_numbers()] */
};

/* A 3x3 convolution of a picture that was doubled sees only 2x2 different inputs at each output: the kernel's
 * rows 0 | 1 + 2 where the output row is even, 0 + 1 | 2 where it is odd, columns likewise. Nine products
 * become four. Place: 2 * (odd row) + (odd column). */
static void up_kernels(const float *k, int channels, float *out, size_t place)
{
    for (int c = 0; c < channels; c++, k += 9, out += 4)
        for (int x = 0; x < 2; x++) {
            float row[2][3]; /* [first, second of the two columns][row] */
            for (int y = 0; y < 3; y++) {
                const float *r = k + 3 * y;
                row[0][y] = x ? r[0] + r[1] : r[0];
                row[1][y] = x ? r[2] : r[1] + r[2];
            }
            for (int b = 0; b < 2; b++) {
                const float *r = row[b];
                out[(size_t)x * place + (size_t)b] = r[0];
                out[(size_t)x * place + 2 + (size_t)b] = r[1] + r[2];
                out[(size_t)(2 + x) * place + (size_t)b] = r[0] + r[1];
                out[(size_t)(2 + x) * place + 2 + (size_t)b] = r[2];
            }
        }
}

/* U of Winograd's F(4, 3) along rows, see winograd_rows.h: for each row of the kernel its polynomial at the
 * place's point, over the product of that point's distances from the others. */
static void winograd_rows_kernels(const float *k, int channels, float *out, size_t place)
{
    const double a = WR_POINT, b = 1 / a, a2 = a * a, b2 = b * b;
    const double over_a = 1 / (2 * a2 * (a2 - b2)), over_b = 1 / (2 * b2 * (b2 - a2));
    for (int c = 0; c < channels; c++, k += 9)
        for (int y = 0; y < 3; y++) {
            const double k0 = k[3 * y], k1 = k[3 * y + 1], k2 = k[3 * y + 2];
            const double even_a = k0 + a2 * k2, odd_a = a * k1, even_b = k0 + b2 * k2, odd_b = b * k1;
            float *to = out + wr_channel(c) * 3 + y;
            to[0] = (float)k0;
            to[place] = (float)((even_a + odd_a) * over_a);
            to[2 * place] = (float)((even_a - odd_a) * over_a);
            to[3 * place] = (float)((even_b + odd_b) * over_b);
            to[4 * place] = (float)((even_b - odd_b) * over_b);
            to[5 * place] = (float)k2;
        }
}

/* U of Winograd's F(2x2, 3x3) of a doubled picture, see winograd_up.h. */
static void winograd_up_kernels(const float *k, int channels, float *out, size_t place)
{
    for (int c = 0; c < channels; c++, k += 9) {
        float row[WU_SIDE][WU_SIDE]; /* [column of the kernel][place of the rows] */
        for (int x = 0; x < 3; x++) {
            row[x][0] = k[x];
            row[x][1] = k[x] + k[3 + x] + k[6 + x];
            row[x][2] = -k[6 + x];
        }
        float *to = out + wr_channel(c);
        for (int i = 0; i < WU_SIDE; i++, to += WU_SIDE * place) {
            to[0] = row[0][i];
            to[place] = row[0][i] + row[1][i] + row[2][i];
            to[2 * place] = -row[2][i];
        }
    }
}

static const struct form up_form = {FORM_UP, 2, 2, 4, 0, up_kernels},
                         winograd_up_form = {FORM_WINOGRAD_UP, 1, 1, WU_PLACES, WU_STEP, winograd_up_kernels},
                         winograd_rows_form = {FORM_WINOGRAD_ROWS, 3,       1,
                                               WR_PLACES,          WR_STEP, winograd_rows_kernels};

/* Numbers of a panel's kernels, all places. */
static size_t panel_numbers(const struct weight_source *made, const struct form *form,
                            const struct cpu_weight *layout)
{
    return (size_t)layout->panel_cols * (size_t)made->in_c * (size_t)(form->kh * form->kw * form->places);
}

/* Panel P of all places. */
static void form_panel(void *ctx, int p, int worker)
{
    const struct form_job *job = ctx;
    const struct weight_source *src = job->pack.src;
    const struct host_array *a = &src->w[0];
    const int cols = job->layout->panel_cols, first = p * cols;
    const int count = src->out_c - first < cols ? src->out_c - first : cols;
    const size_t row = (size_t)src->in_c * 9,
                 made_row = (size_t)src->in_c * (size_t)(job->form->kh * job->form->kw);
    const size_t place = (size_t)cols * made_row;
    float *numbers = job->numbers + (size_t)worker * panel_numbers(job->made, job->form, job->layout);
    float *kernels = pool_scratch(job->pack.pool, worker); /* FORM_CHANNELS_MAX holds it */
    for (int o = 0; o < count; o++) {
        job->pack.tier->rows->convert(
            kernels, DTYPE_F32, (const char *)a->data + (size_t)(first + o) * row * dtype_size(a->dtype),
            a->dtype, row);
        job->form->kernels(kernels, src->in_c, numbers + (size_t)o * made_row, place);
    }
    for (int i = 0; i < job->form->places; i++) {
        struct weight_source one = *job->made;
        one.w[0].data = numbers + (size_t)i * place;
        struct pack_job part = job->pack;
        part.src = &one;
        part.w = (struct cpu_weight *)(void *)(job->to + (size_t)i * job->bytes);
        part.first_output = first;
        pack_panel(&part, p, worker);
    }
}

enum {
    FORM_CHANNELS_MAX = POOL_SCRATCH / 9 / (int)sizeof(float),
    WINOGRAD_MIN = 128,          /* channels: below, the sums' ends cost more than is saved */
    WINOGRAD_UP_MAX = 2560,      /* channels: a row of a block fits the scratch */
    WINOGRAD_ROWS_OUT_MAX = 2048 /* outputs: those of two rows wait for slices of channels in the scratch */
};

/* F(4, 3), where the pictures are large: U is twice as large, so small ones would wait for it. */
static bool suits_winograd_rows(const struct tier *t, const struct weight_source *src)
{
    return t->winograd_rows && src->large && !packs_tap_columns(src) && src->kind == WEIGHT_CONV2D &&
           src->stride <= 1 && src->in_c % WR_STEP == 0 && src->in_c >= WINOGRAD_MIN &&
           src->out_c <= WINOGRAD_ROWS_OUT_MAX;
}

static bool suits_winograd_up(const struct tier *t, const struct weight_source *src)
{
    return t->winograd_up && src->in_c % WU_STEP == 0 && src->in_c >= WINOGRAD_MIN &&
           src->in_c <= WINOGRAD_UP_MAX;
}

/* The form in which a convolution is packed, beside its panels or instead; NULL: none. */
static const struct form *choose_form(const struct tier *t, const struct weight_source *src)
{
    if (t->gemm->dtype != DTYPE_BF16 || src->kh != 3 || src->kw != 3 || src->in_c > FORM_CHANNELS_MAX)
        return NULL;
    if (!src->upsample)
        return suits_winograd_rows(t, src) ? &winograd_rows_form : NULL;
    if (t->winograd_2x4 && src->in_c % W24_STEP == 0 && src->out_c >= W24_PANEL)
        return NULL; /* it makes U on the way */
    return suits_winograd_up(t, src) ? &winograd_up_form : &up_form;
}

/* Whether the panels themselves are never met. */
static bool stands_alone(const struct form *form, const struct weight_source *src)
{
    return form && (src->upsample == UPSAMPLED_ALWAYS || form->name == FORM_WINOGRAD_ROWS);
}

/* SRC with FORM's kernels, which are still to be made. */
static struct weight_source form_source(const struct weight_source *src, const struct form *form)
{
    struct weight_source s = *src;
    s.kh = form->kh;
    s.kw = form->kw;
    s.upsample = UPSAMPLED_NEVER;
    s.w[0] = (struct host_array){NULL, DTYPE_F32,
                                 (size_t)src->out_c * (size_t)src->in_c * (size_t)(form->kh * form->kw)};
    return s;
}

/* FORM's convolutions, each laid out as LAYOUT says, at TO and each BYTES behind. */
static int pack_form(struct backend *be, char *to, size_t bytes, const struct form *form,
                     const struct cpu_weight *layout, const struct weight_source *src, struct error *err)
{
    const struct weight_source made = form_source(src, form);
    struct form_job job = {.pack = {.tier = cpu_tier(be), .pool = be->pool, .src = src},
                           .form = form,
                           .layout = layout,
                           .made = &made,
                           .to = to,
                           .bytes = bytes};
    job.numbers = malloc((size_t)pool_threads(be->pool) * panel_numbers(&made, form, layout) * sizeof(float));
    if (!job.numbers)
        return error_set(err, ERR_NOMEM, "out of memory packing a convolution");
    for (int i = 0; i < form->places; i++, to += bytes) {
        memset(to, 0, layout->data);
        *(struct cpu_weight *)(void *)to = *layout;
    }
    pool_run(be->pool, layout->panels, form_panel, &job);
    free(job.numbers);
    return 0;
}

/* FORM's place behind LAYOUT's matrix of BYTES: sets PLACES, the layout of each, and LAYOUT's form. Returns
 * the bytes with them. */
static size_t lay_out_form(struct backend *be, const struct form *form, const struct weight_source *src,
                           size_t bytes, struct cpu_weight *layout, struct cpu_weight *places)
{
    struct weight_source made = form_source(src, form);
    lay_out(places, cpu_tier(be), &made, form->chunk);
    layout->form = form->name;
    layout->form_at = round_up_bytes(bytes, ALIGN);
    layout->form_bytes = round_up_bytes(places->data + (size_t)places->panels * places->panel_bytes, ALIGN);
    return layout->form_at + (size_t)form->places * layout->form_bytes;
}

int cpu_pack_matrix(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    if (w->int8)
        return int8_pack(be, w, src, err);
    const struct form *form = choose_form(cpu_tier(be), src);
    struct cpu_weight layout, places;
    memset(&layout, 0, sizeof layout);
    memset(&places, 0, sizeof places);
    lay_out(&layout, cpu_tier(be), src, 0);
    if (stands_alone(form, src))
        layout.panel_bytes = 0;
    size_t bytes = layout.data + (size_t)layout.panels * layout.panel_bytes;
    if (form)
        bytes = lay_out_form(be, form, src, bytes, &layout, &places);
    int rc = be->mem_alloc(be, bytes, &w->packed, err);
    if (rc)
        return rc;
    w->bytes = bytes;
    struct cpu_weight *packed = w->packed;
    memset(packed, 0, layout.data); /* the gaps too: equal weights are equal bytes */
    *packed = layout;
    struct pack_job job = {.tier = cpu_tier(be), .pool = be->pool, .src = src, .w = packed};
    pool_run(be->pool, packed->panels, pack_panel, &job);
    if (form)
        rc = pack_form(be, (char *)packed + layout.form_at, layout.form_bytes, form, &places, src, err);
    if (rc) {
        be->mem_free(be, w->packed, bytes);
        w->packed = NULL;
    }
    return rc;
}

unsigned char cpu_form_of(const weight *w)
{
    const struct cpu_weight *packed = w->packed;
    if (w->int8 || w->kind == WEIGHT_NORM || w->kind == WEIGHT_EMBEDDING)
        return FORM_NONE;
    return packed->tap_columns ? FORM_FEW : (unsigned char)packed->form;
}

static void pack_rows(void *ctx, int row, int worker)
{
    (void)worker;
    const struct pack_job *job = ctx;
    const struct host_array *a = &job->src->w[0];
    size_t c = (size_t)job->src->in_c, at = (size_t)row * c;
    job->tier->rows->convert((float *)job->table + at, DTYPE_F32,
                             (const char *)a->data + at * dtype_size(a->dtype), a->dtype, c);
}

int cpu_pack_embedding(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    size_t bytes = (size_t)src->out_c * (size_t)src->in_c * sizeof(float);
    int rc = be->mem_alloc(be, bytes, &w->packed, err);
    if (rc)
        return rc;
    w->bytes = bytes;
    struct pack_job job = {.tier = cpu_tier(be), .pool = be->pool, .src = src, .table = w->packed};
    pool_run(be->pool, src->out_c, pack_rows, &job);
    return 0;
}
