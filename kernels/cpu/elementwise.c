/* Ops that move or map numbers one by one: bound by memory, a few rows an item on all threads. */
#include "../ref/ref.h"
#include "thread_pool.h"
#include "tier.h"

enum { ITEM_BYTES = 64 << 10 };

struct job {
    const struct row_ops *rows;
    tensor y, a, b;
    size_t item_rows, count; /* rows of an item, of y in all */
    void (*row)(const struct job *job, size_t row);
    float share; /* of blend */
};

static char *row_of(tensor x, size_t row)
{
    return (char *)x.data + row * (size_t)x.ld * dtype_size(x.dtype);
}

static void run_item(void *ctx, int item, int worker)
{
    (void)worker;
    const struct job *job = ctx;
    size_t first = (size_t)item * job->item_rows, end = first + job->item_rows;
    for (size_t r = first; r < end && r < job->count; r++)
        job->row(job, r);
}

static int run_job(struct backend *be, struct job *job)
{
    size_t bytes = (size_t)job->y.c * dtype_size(job->y.dtype);
    job->rows = cpu_tier(be)->rows;
    job->count = tensor_rows(job->y);
    job->item_rows = bytes && bytes < ITEM_BYTES ? ITEM_BYTES / bytes : 1;
    pool_run(be->pool, (int)((job->count + job->item_rows - 1) / job->item_rows), run_item, job);
    return 0;
}

static int run(struct backend *be, tensor y, tensor a, tensor b, void (*row)(const struct job *, size_t))
{
    return run_job(be, &(struct job){.y = y, .a = a, .b = b, .row = row});
}

static void silu_row(const struct job *job, size_t r)
{
    job->rows->affine(row_of(job->y, r), job->y.dtype, row_of(job->a, r), job->a.dtype, job->y.c, NULL, NULL,
                      true, false);
}

static void add_row(const struct job *job, size_t r)
{
    job->rows->add(row_of(job->y, r), job->y.dtype, row_of(job->a, r), job->a.dtype, row_of(job->b, r),
                   job->b.dtype, (size_t)job->y.c);
}

static void blend_row(const struct job *job, size_t r)
{
    job->rows->blend(row_of(job->y, r), row_of(job->a, r), row_of(job->b, r), job->y.dtype, (size_t)job->y.c,
                     job->share);
}

static void copy_row(const struct job *job, size_t r)
{
    job->rows->convert(row_of(job->y, r), job->y.dtype, row_of(job->a, r), job->a.dtype, (size_t)job->y.c);
}

static void concat_row(const struct job *job, size_t r)
{
    char *y = row_of(job->y, r);
    job->rows->convert(y, job->y.dtype, row_of(job->a, r), job->a.dtype, (size_t)job->a.c);
    job->rows->convert(y + (size_t)job->a.c * dtype_size(job->y.dtype), job->y.dtype, row_of(job->b, r),
                       job->b.dtype, (size_t)job->b.c);
}

static void upsample_row(const struct job *job, size_t r)
{
    size_t w = (size_t)job->y.w, h = (size_t)job->y.h, x = r % w, line = r / w; /* line = n * H + row */
    size_t a_w = (size_t)job->a.w, a_h = (size_t)job->a.h;
    size_t src = (line / h * a_h + line % h * a_h / h) * a_w + x * a_w / w;
    job->rows->convert(row_of(job->y, r), job->y.dtype, row_of(job->a, src), job->a.dtype, (size_t)job->y.c);
}

int cpu_silu(struct backend *be, tensor y, tensor x, struct error *err)
{
    (void)err;
    return run(be, y, x, x, silu_row);
}

int cpu_add(struct backend *be, tensor y, tensor a, tensor b, struct error *err)
{
    (void)err;
    return run(be, y, a, b, add_row);
}

int cpu_blend(struct backend *be, tensor y, tensor a, tensor b, float share, struct error *err)
{
    if (a.dtype != y.dtype || b.dtype != y.dtype) /* no network blends tensors of two types */
        return ref_blend(be, y, a, b, share, err);
    return run_job(be, &(struct job){.y = y, .a = a, .b = b, .row = blend_row, .share = share});
}

int cpu_concat_channels(struct backend *be, tensor y, tensor a, tensor b, struct error *err)
{
    (void)err;
    return run(be, y, a, b, concat_row);
}

int cpu_upsample_nearest(struct backend *be, tensor y, tensor x, struct error *err)
{
    (void)err;
    return run(be, y, x, x, upsample_row);
}

int cpu_convert(struct backend *be, tensor y, tensor x, struct error *err)
{
    (void)err;
    return run(be, y, x, x, copy_row);
}
