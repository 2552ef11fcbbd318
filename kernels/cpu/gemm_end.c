/* The ends of a matrix product's panels: bias, add_bc, activation, residual, and where y lies. */
#include "gemm_job.h"

#include <string.h>

void gemm_make_finish(struct finish *f, const struct gemm_args *a, int nr, const float *c,
                      const struct run *r)
{
    const struct cpu_weight *w = a->w->packed;
    int col = r->p * w->panel_cols;
    size_t ys = dtype_size(a->y.dtype);
    *f = (struct finish){
        .c = c,
        .nr = nr,
        .rows = r->count,
        .cols = min_int(w->panel_cols, a->y.c - col),
        .bias = weight_bias(w) + (size_t)r->p * (size_t)nr,
        .y = (char *)a->y.data + (r->first * (size_t)a->y.ld + (size_t)col) * ys,
        .y_stride = (size_t)r->step * (size_t)a->y.ld * ys,
        .y_type = a->y.dtype,
        .act = a->act,
        .geglu = a->geglu,
        .stream = tensor_streams(a->y),
    };
    if (a->residual.data) {
        size_t rs = dtype_size(a->residual.dtype);
        f->residual = (const char *)a->residual.data + (r->first * (size_t)a->residual.ld + (size_t)col) * rs;
        f->residual_stride = (size_t)r->step * (size_t)a->residual.ld * rs;
        f->residual_type = a->residual.dtype;
    }
    if (a->add_bc.data) {
        size_t n = a->add_bc.n == 1 ? 0 : r->first / add_positions(a);
        f->add = (const char *)a->add_bc.data +
                 (n * (size_t)a->add_bc.ld + (size_t)col) * dtype_size(a->add_bc.dtype);
        f->add_type = a->add_bc.dtype;
    }
}

struct finish gemm_end(const struct gemm_args *a, int nr, int p, size_t first, int count)
{
    struct run r = {p, first, 1, count};
    struct finish f;
    gemm_make_finish(&f, a, nr, NULL, &r);
    return f;
}

void gemm_base(const struct gemm_args *a, const struct row_ops *rows, int nr, int p, size_t first,
               float *base)
{
    const struct finish f = gemm_end(a, nr, p, first, 1);
    memset(base, 0, (size_t)nr * sizeof *base);
    if (f.add)
        rows->convert(base, DTYPE_F32, f.add, f.add_type, (size_t)f.cols);
    for (int i = 0; i < nr; i++)
        base[i] += f.bias[i];
}

void gemm_finish(const struct gemm_args *a, const struct row_ops *rows, int nr, int p, const float *c,
                 size_t first, int count)
{
    struct finish f = gemm_end(a, nr, p, first, count);
    f.c = c;
    rows->finish(&f);
}

/* ---- Joined panels ---- */

enum { LINE = 64, PAIR = 128, STREAM_LINES_BYTES = 1 << 20 /* of y, where lines are written whole */ };

int gemm_joins(const struct gemm_args *a, int panel_cols, bool past_caches)
{
    const size_t size = dtype_size(a->y.dtype), row = (size_t)panel_cols * size;
    const uintptr_t at = (uintptr_t)a->y.data | (size_t)a->y.ld * size;
    const bool half = a->geglu && row == LINE / 2;
    if (past_caches && at % PAIR == 0 && (half || row == LINE))
        return (int)(PAIR / row);
    return half && at % LINE == 0 ? 2 : 1;
}

bool gemm_past_caches(const struct gemm_args *a, int panel_cols, bool lines)
{
    const bool whole = lines && (!a->geglu || gemm_joins(a, panel_cols, false) > 1);
    return tensor_streams(a->y) ||
           (whole && tensor_count(a->y) * dtype_size(a->y.dtype) >= STREAM_LINES_BYTES);
}

int gemm_kept_stride(const struct gemm_args *a, int panel_cols, int joins)
{
    const int kept = (joins - 1) * panel_cols * (int)dtype_size(a->y.dtype);
    return kept > LINE ? PAIR : kept;
}

void gemm_join(struct finish *f, char *kept, int kept_stride, int p, int p0, int p1, int joins)
{
    const int first = p / joins * joins > p0 ? p / joins * joins : p0;
    const int before = (p - first) * f->cols * (int)dtype_size(f->y_type);
    if (gemm_kept_back(p, p1, joins)) {
        f->y = kept + before;
        f->y_stride = (size_t)kept_stride;
        f->stream = false;
    } else if (before) {
        f->before = kept;
        f->before_bytes = before;
        f->before_stride = kept_stride;
    }
}

/* The rows of F from ROW on, COUNT of them. */
static struct finish part_of(const struct finish *f, int row, int count)
{
    struct finish part = *f;
    part.jump = NULL;
    part.rows = count;
    part.c += (size_t)row * (size_t)f->nr;
    part.y += (size_t)row * f->y_stride;
    part.residual = f->residual ? f->residual + (size_t)row * f->residual_stride : NULL;
    return part;
}

void gemm_finish_joined(const struct row_ops *rows, const struct finish *f)
{
    if (f->jump) { /* of a convolution, which has no panels that are joined */
        const struct finish_jump *j = f->jump;
        struct finish upper = part_of(f, 0, j->first), lower = part_of(f, j->first, f->rows - j->first);
        lower.y += j->y;
        lower.residual = lower.residual ? lower.residual + j->residual : NULL;
        lower.add = lower.add ? (const char *)lower.add + j->add : NULL;
        rows->finish(&upper);
        rows->finish(&lower);
        return;
    }
    for (int r = 0; f->before && r < f->rows; r++)
        memcpy(f->y + (size_t)r * f->y_stride - f->before_bytes, f->before + r * f->before_stride,
               (size_t)f->before_bytes);
    rows->finish(f);
}
