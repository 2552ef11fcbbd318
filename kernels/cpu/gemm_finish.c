/* How the tiles of a matrix product end: what is asked for while they multiply, what becomes of their sums
 * and when, and the sums that are kept for a norm. */
#include "gemm_job.h"

#include <string.h>

struct run gemm_output_run(const struct job *job, int place, int p, size_t first, int count)
{
    if (job->places == 1)
        return (struct run){p, first, 1, count};
    size_t row = first / (size_t)job->ow, x = first % (size_t)job->ow;
    return (struct run){p, (2 * row + (size_t)place / 2) * 2 * (size_t)job->ow + 2 * x + (size_t)place % 2, 2,
                        count};
}

/* BYTES of R's rows of x, for its panel. */
static void prefetch_run(tensor x, int cols, int bytes, const struct run *r, bool write)
{
    size_t size = dtype_size(x.dtype);
    const char *at = (const char *)x.data + (r->first * (size_t)x.ld + (size_t)(r->p * cols)) * size;
    for (int i = 0; i < r->count; i++, at += (size_t)r->step * (size_t)x.ld * size)
        for (int b = 0; b < bytes; b += 64)
            if (write)
                ask_to_write(&at[b]);
            else
                __builtin_prefetch(at + b, 0, 2);
}

int gemm_bytes_asked(const struct job *job, const struct worker_memory *m, tensor x, int p)
{
    const int size = (int)dtype_size(x.dtype), row = job->w->panel_cols * size;
    if (row != 64 || (((uintptr_t)x.data | (size_t)(x.ld * size)) & 127) != 0)
        return row;
    if (p % 2 == 0)
        return p + 1 < m->panels.p1 ? 2 * row : row;
    return p == m->panels.p0 ? row : 0;
}

bool gemm_meets_y(const struct job *job, const struct worker_memory *m, int p)
{
    return !job->streams && !gemm_kept_back(p, m->panels.p1, job->joins);
}

void gemm_ask_output(const struct job *job, const struct worker_memory *m, struct run r)
{
    const struct gemm_args *a = job->a;
    if (gemm_meets_y(job, m, r.p))
        prefetch_run(a->y, job->w->panel_cols, gemm_bytes_asked(job, m, a->y, r.p), &r, true);
    if (a->residual.data && job->g->defers)
        prefetch_run(a->residual, job->w->panel_cols, gemm_bytes_asked(job, m, a->residual, r.p), &r, false);
}

bool gemm_same_end(const struct job *job)
{
    const struct gemm_args *a = job->a;
    return !a->add_bc.data || a->add_bc.n == 1 || add_positions(a) >= tensor_rows(a->y);
}

void gemm_finish_pending(const struct job *job, struct worker_memory *m)
{
    if (m->waits)
        gemm_finish_joined(job->rows, &m->pending);
    m->waits = false;
}

int gemm_together(const struct job *job, size_t first, int rows)
{
    size_t unit = job->places > 1 ? (size_t)job->ow : job->a->add_bc.data ? add_positions(job->a) : 0;
    size_t left = unit ? unit - first % unit : (size_t)rows;
    return left < (size_t)rows ? (int)left : rows;
}

static float *sums_of(const struct job *job, const struct worker_memory *m, int place, int p)
{
    const size_t panel = 2 * (size_t)job->g->nr;
    return m->sums ? m->sums + ((size_t)place * (size_t)job->w->panels + (size_t)p) * panel : NULL;
}

/* The end of position 0 of panel P, or of R's. */
static void begin_end(const struct job *job, const struct worker_memory *m, int place, const float *c,
                      const struct run *r, struct finish *f)
{
    gemm_make_finish(f, job->a, job->g->nr, c, r);
    f->stream = job->streams;
    f->sums = sums_of(job, m, place, r->p);
}

void gemm_end_of(const struct job *job, const struct worker_memory *m, int place, int p, const float *c,
                 size_t first, int rows, struct finish *f)
{
    const struct gemm_args *a = job->a;
    const struct run r = gemm_output_run(job, place, p, first, rows);
    if (gemm_same_end(job)) {
        *f = m->panel_end;
        f->c = c;
        f->rows = rows;
        f->y += r.first * (size_t)a->y.ld * dtype_size(a->y.dtype);
        if (f->residual)
            f->residual += r.first * (size_t)a->residual.ld * dtype_size(a->residual.dtype);
    } else {
        begin_end(job, m, place, c, &r, f);
    }
    if (job->joins > 1)
        gemm_join(f, m->kept + first % (size_t)job->block_rows * (size_t)kept_stride(job), kept_stride(job),
                  p, m->panels.p0, m->panels.p1, job->joins);
}

void gemm_finish_rows(const struct job *job, struct worker_memory *m, int place, int p, const float *c,
                      size_t first, int rows)
{
    const int nr = job->g->nr;
    for (int done = 0, count; done < rows; done += count) {
        count = gemm_together(job, first + (size_t)done, rows - done);
        gemm_end_of(job, m, place, p, c + (size_t)done * (size_t)nr, first + (size_t)done, count,
                    &m->pending);
        m->waits = true;
        if (count < rows || !job->g->defers || !job->g->defers(&m->pending))
            gemm_finish_pending(job, m);
    }
}

void gemm_finish_pair(const struct job *job, struct worker_memory *m, int place, int p, const float *c,
                      size_t first)
{
    gemm_end_of(job, m, place, p, c, first, job->g->mr, &m->pending);
    m->pending.jump = &m->jump;
    m->waits = true;
    if (!job->g->defers || !job->g->defers(&m->pending))
        gemm_finish_pending(job, m);
}

/* Where the lower half of a tile's rows lies, as seen from the upper: the same for all panels. */
static struct finish_jump jump_of(const struct job *job)
{
    const struct gemm_args *a = job->a;
    const int half = job->g->mr / 2;
    struct finish upper, lower;
    const struct run first = gemm_output_run(job, 0, 0, 0, half),
                     below = gemm_output_run(job, 0, 0, (size_t)job->ow, half);
    gemm_make_finish(&upper, a, job->g->nr, NULL, &first);
    gemm_make_finish(&lower, a, job->g->nr, NULL, &below);
    struct finish_jump j = {.first = half, .y = lower.y - upper.y - half * (ptrdiff_t)upper.y_stride};
    if (a->residual.data)
        j.residual = lower.residual - upper.residual - half * (ptrdiff_t)upper.residual_stride;
    if (a->add_bc.data)
        j.add = (const char *)lower.add - (const char *)upper.add;
    return j;
}

void gemm_begin_item(const struct job *job, struct worker_memory *m, int block)
{
    const size_t panel = 2 * (size_t)job->g->nr;
    m->sums = job->sums ? job->sums + (size_t)(block * job->places * job->w->panels) * panel : NULL;
    for (int place = 0; m->sums && place < job->places; place++)
        memset(sums_of(job, m, place, m->panels.p0), 0,
               (size_t)(m->panels.p1 - m->panels.p0) * panel * sizeof(float));
    if (job->mode == PADDED)
        m->jump = jump_of(job);
}

void gemm_begin_panel(const struct job *job, struct worker_memory *m, int place, int p)
{
    if (gemm_same_end(job))
        begin_end(job, m, place, NULL, &(struct run){p, 0, job->places > 1 ? 2 : 1, 0}, &m->panel_end);
}
