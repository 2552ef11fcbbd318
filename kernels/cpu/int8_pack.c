/* Weights to int8, once at load, on all threads: see kernels/int8.h for the numbers, int8.h for the layout.
 */
#include <string.h>

#include "../int8.h"
#include "half.h"
#include "int8.h"
#include "thread_pool.h"

struct pack_job {
    const struct tier *tier;
    struct pool *pool;
    const struct weight_source *src;
    struct int8_weight *w;
};

static size_t line_up(size_t n)
{
    return (n + 63) / 64 * 64;
}

static void lay_out(struct int8_weight *w, const struct weight_source *src)
{
    bool geglu = src->kind == WEIGHT_GEGLU;
    int outputs = geglu ? src->out_c / 2 : src->out_c;
    w->w.taps = src->kh * src->kw;
    w->w.channels = w->w.chunk = (src->in_c + INT8_UNIT - 1) / INT8_UNIT * INT8_UNIT;
    w->w.panel_cols = geglu ? INT8_NR / 2 : INT8_NR;
    w->w.panels = (outputs + w->w.panel_cols - 1) / w->w.panel_cols;
    w->w.panel_bytes = (size_t)w->w.channels * (size_t)w->w.taps * INT8_NR;
    size_t columns = (size_t)w->w.panels * INT8_NR;
    w->w.bias = line_up(sizeof *w);
    w->scale = line_up(w->w.bias + columns * sizeof(float));
    w->offset = line_up(w->scale + columns * sizeof(float));
    w->w.data = line_up(w->offset + columns * sizeof(int32_t));
}

/* The output that column J of panel P computes, or -1 past the end. */
static int column_output(const struct pack_job *job, int p, int j)
{
    const struct weight_source *src = job->src;
    int cols = job->w->w.panel_cols;
    if (src->kind != WEIGHT_GEGLU)
        return p * cols + j < src->out_c ? p * cols + j : -1;
    int value = p * cols + j % cols;
    return value < src->out_c / 2 ? value + (j >= cols ? src->out_c / 2 : 0) : -1;
}

/* Numbers [in_c][taps] -> lines of column J, four channels of a tap side by side. Returns their sum. */
static int32_t scatter(const struct pack_job *job, const uint8_t *q, int8_t *panel, int j)
{
    int taps = job->w->w.taps, channels = job->src->in_c;
    int32_t sum = 0;
    for (int t = 0; t < taps; t++) {
        int8_t *dst = panel + (size_t)t * (size_t)job->w->w.channels * INT8_NR + (size_t)j * 4;
        for (int c = 0; c < channels; c++) {
            int8_t v = (int8_t)q[c * taps + t];
            dst[(size_t)(c / 4) * (INT8_NR * 4) + (size_t)(c % 4)] = v;
            sum += v;
        }
    }
    return sum;
}

/* Column J of panel P; SCRATCH has room for the numbers of an output, as floats and as int8. */
static void pack_column(const struct pack_job *job, int p, int j, float *scratch)
{
    const struct weight_source *src = job->src;
    struct int8_weight *w = job->w;
    int o = column_output(job, p, j), part_c = src->out_c / src->parts;
    if (o < 0)
        return;
    const struct host_array *a = &src->w[o / part_c], *bias = &src->bias[o / part_c];
    int count = src->in_c * w->w.taps;
    size_t row = (size_t)(o % part_c), at = row * (size_t)count, column = (size_t)(p * INT8_NR + j);
    uint8_t *q = (uint8_t *)(scratch + count);
    job->tier->rows->convert(scratch, DTYPE_F32, (const char *)a->data + at * dtype_size(a->dtype), a->dtype,
                             (size_t)count);
    struct int8_scale s = int8_scale_of(f32_from_bits(int8_row_most(scratch, DTYPE_F32, count, 0)));
    int8_row(q, scratch, DTYPE_F32, count, count, s.inverse, 0);
    char *base = (char *)w;
    ((float *)(void *)(base + w->scale))[column] = s.scale;
    ((int32_t *)(void *)(base + w->offset))[column] =
        128 * scatter(job, q, (int8_t *)weight_data(&w->w) + (size_t)p * w->w.panel_bytes, j);
    if (bias->data)
        job->tier->rows->convert((float *)(void *)(base + w->w.bias) + column, DTYPE_F32,
                                 (const char *)bias->data + row * dtype_size(bias->dtype), bias->dtype, 1);
}

static void pack_panel(void *ctx, int p, int worker)
{
    const struct pack_job *job = ctx;
    memset(weight_data(&job->w->w) + (size_t)p * job->w->w.panel_bytes, 0, job->w->w.panel_bytes);
    for (int j = 0; j < INT8_NR; j++)
        pack_column(job, p, j, pool_scratch(job->pool, worker));
}

int int8_pack(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    struct int8_weight layout;
    memset(&layout, 0, sizeof layout);
    lay_out(&layout, src);
    size_t bytes = layout.w.data + (size_t)layout.w.panels * layout.w.panel_bytes;
    int rc = be->mem_alloc(be, bytes, &w->packed, err);
    if (rc)
        return rc;
    w->bytes = bytes;
    memset(w->packed, 0, layout.w.data); /* the gaps too: equal weights are equal bytes */
    memcpy(w->packed, &layout, sizeof layout);
    struct pack_job job = {.tier = cpu_tier(be), .pool = be->pool, .src = src, .w = w->packed};
    pool_run(be->pool, layout.w.panels, pack_panel, &job);
    return 0;
}
