/* The slab of a block: the input that its outputs need, each kernel position at an offset of its own. See
 * gemm.c. */
#include "gemm_job.h"

#include <string.h>

/* COUNT positions of the slab, of input row IY of picture N, from column FIRST on in steps of STEP; channels
 * C0 to C0 + WIDTH, or WIDTH for each of CHUNKS chunks. */
struct line {
    char *dst;
    int n, iy, first, step, count;
    int c0, width, chunks;
};

static void zero_line(const struct job *job, const struct line *l, int first, int count)
{
    size_t bytes = (size_t)l->width * dtype_size(job->g->dtype);
    for (int c = 0; c < l->chunks && count > 0; c++)
        memset(l->dst + (size_t)c * slab_chunk_bytes(job) + (size_t)first * bytes, 0, (size_t)count * bytes);
}

/* Positions [left, end) of the line lie in the picture; SRC is its column 0. */
static void copy_line(const struct job *job, const struct line *l, const char *src, int left, int end)
{
    tensor x = job->a->x;
    size_t xs = dtype_size(x.dtype), bytes = (size_t)l->width * dtype_size(job->g->dtype);
    if (l->chunks > 1) {
        struct spread s = {
            .dst = l->dst + (size_t)left * bytes,
            .dst_chunk = slab_chunk_bytes(job),
            .src = src,
            .src_stride = (size_t)x.ld * xs,
            .first = l->first + left * l->step,
            .step = l->step,
            .shift = job->shift,
            .count = end - left,
            .chunks = l->chunks,
        };
        job->g->spread(&s);
        return;
    }
    struct gather g = {
        .dst = l->dst + (size_t)left * bytes,
        .dst_type = job->g->dtype,
        .width = l->width,
        .channels = min_int(l->width, x.c - l->c0),
        .src = src,
        .src_type = x.dtype,
        .src_stride = (size_t)x.ld * xs,
        .first = l->first + left * l->step,
        .step = l->step,
        .shift = job->shift,
        .count = end - left,
    };
    job->rows->gather(&g);
}

/* Zeros outside of the picture. */
static void fill_line(const struct job *job, const struct line *l)
{
    tensor x = job->a->x;
    if (l->iy < 0 || l->iy >= job->ih) {
        zero_line(job, l, 0, l->count);
        return;
    }
    int left = l->first < 0 ? min_int(div_up(-l->first, l->step), l->count) : 0;
    int end = l->first >= job->iw ? 0 : min_int(l->count, (job->iw - 1 - l->first) / l->step + 1);
    if (end < left)
        end = left;
    zero_line(job, l, 0, left);
    zero_line(job, l, end, l->count - end);
    size_t row = ((size_t)l->n * (size_t)x.h + (size_t)(l->iy >> job->shift)) * (size_t)x.w;
    copy_line(job, l, (const char *)x.data + (row * (size_t)x.ld + (size_t)l->c0) * dtype_size(x.dtype), left,
              end);
}

/* CHUNKS chunks of a PADDED slab, each [picture][picture_h][slab_w][width]. */
static void fill_padded(const struct job *job, const struct block *b, char *dst, int c0, int chunks)
{
    struct line l = {.first = b->x * job->step - job->pad_x,
                     .step = 1,
                     .count = (b->length - 1) * job->step + job->reach_x,
                     .c0 = c0,
                     .width = job->chunk,
                     .chunks = chunks};
    const int pictures = div_up(b->segments, job->block_h);
    const int lines = (b->segments / pictures - 1) * job->step + job->reach_y;
    const size_t row = (size_t)job->slab_w * (size_t)job->chunk * dtype_size(job->g->dtype);
    for (int i = 0; i < pictures * lines; i++) {
        l.n = b->n + i / lines;
        l.iy = b->y * job->step - job->pad_y + i % lines;
        l.dst = dst + (size_t)(i / lines * job->picture_h + i % lines) * row;
        fill_line(job, &l);
    }
}

/* CHUNKS chunks of a NARROW slab, each [kernel column][picture][picture_h][ow][width]. */
static void fill_narrow(const struct job *job, const struct block *b, char *dst, int c0, int chunks)
{
    struct line l = {.step = 1, .count = job->ow, .c0 = c0, .width = job->chunk, .chunks = chunks};
    const int lines = b->length / job->ow + job->reach_y - 1;
    const size_t row = (size_t)job->ow * (size_t)job->chunk * dtype_size(job->g->dtype);
    for (int i = 0; i < b->segments * lines; i++) {
        const int picture = i / lines, line = i % lines;
        l.n = b->n + picture;
        l.iy = b->y - job->pad_y + line;
        for (int x = 0; x < job->reach_x; x++) {
            l.first = x - job->pad_x;
            l.dst = dst + (size_t)((x * job->pictures + picture) * job->picture_h + line) * row;
            fill_line(job, &l);
        }
    }
}

/* CHUNKS chunks of a FLAT slab, each [tap][block_rows][width]. */
static void fill_flat(const struct job *job, const struct block *b, char *dst, int c0, int chunks)
{
    size_t bytes = (size_t)job->chunk * dtype_size(job->g->dtype);
    struct line l = {.step = job->step, .c0 = c0, .width = job->chunk, .chunks = chunks};
    for (int t = 0; t < job->reach_y * job->reach_x; t++) {
        for (int done = 0; done < b->length; done += l.count) {
            size_t at = b->first + (size_t)done;
            int ox = (int)(at % (size_t)job->ow), row = (int)(at / (size_t)job->ow);
            l.n = row / job->oh;
            l.iy = row % job->oh * job->step - job->pad_y + t / job->reach_x;
            l.first = ox * job->step - job->pad_x + t % job->reach_x;
            l.count = min_int(job->ow - ox, b->length - done);
            l.dst = dst + ((size_t)t * (size_t)job->block_rows + (size_t)done) * bytes;
            fill_line(job, &l);
        }
    }
}

/* Whether all chunks of the slice are filled line by line, at once. */
static bool spreads(const struct job *job)
{
    tensor x = job->a->x;
    return job->g->spread && x.dtype == job->g->dtype && (size_t)job->chunk * dtype_size(x.dtype) == 64 &&
           x.c == job->w->channels;
}

void gemm_fill_slab(const struct job *job, const struct block *b, struct worker_memory *m, int slice)
{
    int first = slice * job->slice_chunks * job->chunk;
    int end = min_int(job->w->channels, first + job->slice_chunks * job->chunk);
    int chunks = spreads(job) ? div_up(end - first, job->chunk) : 1;
    char *dst = m->slab;
    for (int c = first; c < end; c += chunks * job->chunk, dst += slab_chunk_bytes(job))
        if (job->mode == PADDED)
            fill_padded(job, b, dst, c, chunks);
        else if (job->mode == NARROW)
            fill_narrow(job, b, dst, c, chunks);
        else
            fill_flat(job, b, dst, c, chunks);
}

/* Where the slab has the input of kernel position Y, X for the block's first output. */
static int slab_position(const struct job *job, int y, int x)
{
    if (job->mode == PADDED)
        return y * job->slab_w + x;
    if (job->mode == NARROW)
        return (x * job->pictures * job->picture_h + y) * job->slab_w;
    return (y * job->reach_x + x) * job->block_rows;
}

void gemm_set_taps(const struct job *job, struct worker_memory *m)
{
    size_t bytes = (size_t)job->chunk * dtype_size(job->g->dtype);
    for (int place = 0; place < job->places; place++)
        for (int t = 0; t < job->taps; t++)
            m->tap[place][tap_slot(t, job->taps, job->w->by_columns)] =
                (size_t)slab_position(job, place / 2 + t / job->kw, place % 2 + t % job->kw) * bytes;
}

size_t gemm_slab_bytes(const struct job *job)
{
    size_t bytes = job->mode != DIRECT ? (size_t)job->slice_chunks * slab_chunk_bytes(job)
                   : job->keeps
                       ? (size_t)job->block_rows * (size_t)slice_channels(job) * dtype_size(job->g->dtype)
                       : 0;
    return (bytes + 4095) / 4096 * 4096;
}

void gemm_norm_rows(const struct job *job, const struct worker_memory *m, size_t first, int at, int count)
{
    const tensor x = job->a->x;
    const weight *w = job->a->layer_norm;
    const size_t line = (size_t)job->g->k_unit * dtype_size(job->g->dtype),
                 tile = line * (size_t)job->g->m_align,
                 strip = (size_t)(job->w->channels / job->g->k_unit) * tile,
                 row = (size_t)x.ld * dtype_size(x.dtype);
    struct layer_rows r = {
        .y = m->slab + (size_t)(at / job->g->m_align) * strip,
        .x = (const char *)x.data + first * row,
        .y_type = job->g->dtype,
        .x_type = x.dtype,
        .y_step = line,
        .x_step = row,
        .y_part = tile,
        .part = job->g->k_unit,
        .ahead = LAYER_AHEAD * row,
        .c = x.c,
        .gamma = w->packed,
        .beta = (const float *)w->packed + w->out_c,
        .eps = job->a->layer_eps,
    };
    for (; count > 0; count -= r.rows) {
        r.rows = min_int(count, job->g->m_align);
        job->rows->layer_norm(&r);
        r.y = (char *)r.y + strip;
        r.x = (const char *)r.x + (size_t)r.rows * row;
    }
}
