/* How a matrix product is cut into blocks of positions, items of panels and slices of channels. The sizes
 * were measured: SPEED.md; what they are for stands in gemm.c. */
#include "gemm_job.h"

enum {
    BLOCK_ROWS = 256,       /* and twice as many where whole slices are taken */
    BLOCK_COLS = 512,       /* outputs of a work item, where whole slices are not taken */
    BLOCK_WIDTH = 64,       /* positions of one picture row in a block */
    SLAB_BYTES = 512 << 10, /* twice as many where whole slices are taken */
    NEAR_BYTES = 900 << 10, /* of a slab and two panels of B, where whole slices are taken */
    DIRECT_CHANNELS = 640,  /* channels of a slice that is read in place */
    /* Where x is read in place and whole slices are taken: */
    DIRECT_BYTES = 1 << 20,         /* of x in a block */
    DIRECT_SMALL_BYTES = 330 << 10, /* likewise, where B stays in the second level, too */
    NEAR_CHANNELS = 640,            /* B of so many stays in the first level */
    UNSLICED_CHANNELS = 1280,       /* most that are one slice */
    SLICE_CHANNELS = 576,           /* of several: beside B of so many there is room for the next sums */
    SUMS_BYTES = 1400 << 10,        /* of the panels of an item, while slices follow each other */
    KEEP_PANELS = 16,               /* from so many on it pays to leave tiles of x in the slab */
    KEEP_SLICE_PANELS = 8,          /* likewise, of several slices */
    SMALL_B_BYTES = 1 << 20,
    SMALL_BLOCK_BYTES = 640 << 10, /* of x */
    PAIR_CHANNELS = 512,           /* most with which pairs of lines are worth what they take of the caches */
};

static enum mode choose_mode(const struct job *job)
{
    const struct gemm_args *a = job->a;
    const struct gemm_kernel *g = job->g;
    if (job->taps == 1 && job->step == 1 && !job->shift && a->x.dtype == g->dtype && a->x.c % g->k_unit == 0)
        return DIRECT;
    if (job->ow % g->m_align == 0 && job->ow >= 4)
        return PADDED;
    return job->step == 1 && job->ow <= BLOCK_ROWS ? NARROW : FLAT;
}

/* Whether the micro-kernel reads x in place and takes whole slices: then what is packed as chunks lies
 * together as one. */
static bool direct_slices(const struct job *job)
{
    return job->mode == DIRECT && job->g->whole_slices;
}

/* Where direct_slices() are more than one, one after the other is passed over by all panels of an item, whose
 * sums wait in the second level: few rows of all channels would fit there, and B would come from the third
 * level or memory too often. Where there are so few panels that tiles of x are kept for slices only, slices
 * are worth it earlier. */
static bool several_slices(const struct job *job)
{
    const bool few = job->w->panels < KEEP_PANELS && job->w->panels >= KEEP_SLICE_PANELS;
    return direct_slices(job) && job->w->channels > (few ? NEAR_CHANNELS : UNSLICED_CHANNELS);
}

static void choose_chunks(struct job *job)
{
    const int channels = job->w->channels, most = several_slices(job) ? SLICE_CHANNELS : NEAR_CHANNELS;
    job->chunk = direct_slices(job) ? round_up(div_up(channels, div_up(channels, most)), job->g->k_unit)
                                    : job->w->chunk;
    job->chunks = div_up(channels, job->chunk);
}

/* Whether B may stay in the second level while blocks of x pass by. */
static bool small_b(const struct job *job)
{
    return (size_t)job->w->panels * job->w->panel_bytes <= SMALL_B_BYTES;
}

/* Items that are enough for all threads. */
static int items_wanted(const struct job *job)
{
    const int threads = pool_threads(job->pool);
    const bool several = job->mode == PADDED || (job->mode == NARROW && job->blocks_y > 1);
    if (threads == 1 && (job->g->whole_slices || job->mode == DIRECT))
        return 1;
    return threads * (direct_slices(job) || several ? 2 : job->mode == DIRECT ? 4 : 1);
}

/* Of about ROWS positions. */
static void choose_rectangle(struct job *job, int rows)
{
    const bool narrow = job->mode == NARROW;
    int across = narrow ? 1 : div_up(job->ow, BLOCK_WIDTH);
    job->block_w = narrow ? job->ow : round_up(div_up(job->ow, across), job->g->m_align);
    job->blocks_x = div_up(job->ow, job->block_w);
    int down = div_up(job->oh, rows / job->block_w > 0 ? rows / job->block_w : 1);
    job->block_h = div_up(job->oh, down);
    job->blocks_y = div_up(job->oh, job->block_h);
    /* several pictures, where they are small: their weights come from memory once */
    const bool whole = job->g->whole_slices && job->blocks_x * job->blocks_y == 1;
    job->pictures = whole ? min_int(job->a->x.n, rows / (job->block_h * job->block_w)) : 1;
    job->block_rows = job->pictures * job->block_h * job->block_w;
    job->blocks = div_up(job->a->x.n, job->pictures) * job->blocks_x * job->blocks_y;
    job->slab_w = narrow ? job->ow : (job->block_w - 1) * job->step + job->reach_x;
    job->picture_h = (job->block_h - 1) * job->step + job->reach_y;
    job->slab_h = job->pictures * job->picture_h * (narrow ? job->reach_x : 1);
}

static void choose_block(struct job *job)
{
    int rows = job->g->whole_slices ? 2 * BLOCK_ROWS : BLOCK_ROWS;
    if (several_slices(job)) {
        rows = BLOCK_ROWS;
    } else if (direct_slices(job)) { /* x of a block stays in the second level */
        int most = small_b(job) ? DIRECT_SMALL_BYTES : DIRECT_BYTES;
        int fit = most / job->w->channels / 2 / job->g->mr * job->g->mr;
        rows = min_int(rows, fit > 2 * job->g->mr ? fit : 2 * job->g->mr);
        if (job->norms && job->positions / (size_t)items_wanted(job) >= BLOCK_ROWS)
            rows = min_int(rows, (int)(job->positions / (size_t)items_wanted(job)));
    }
    if (in_rectangles(job)) {
        choose_rectangle(job, rows);
        return;
    }
    if (job->mode == FLAT &&
        job->g->whole_slices) { /* a slab of all channels, where that leaves four tiles */
        size_t row = (size_t)(job->reach_y * job->reach_x * job->w->channels) * 2;
        int fit = (int)(2 * (size_t)SLAB_BYTES / row) / job->g->mr * job->g->mr;
        rows = min_int(rows, fit > 4 * job->g->mr ? fit : 4 * job->g->mr);
    }
    size_t blocks = (job->positions + (size_t)rows - 1) / (size_t)rows;
    job->block_rows =
        round_up((int)((job->positions + blocks - 1) / blocks), job->g->m_align > 1 ? job->g->mr : 1);
    job->blocks = (int)((job->positions + (size_t)job->block_rows - 1) / (size_t)job->block_rows);
    job->slab_w = job->block_rows;
    job->slab_h = job->reach_y * job->reach_x;
}

/* Panels of an item: fewer than all where there would be too few items for the threads, or where B comes in
 * chunks, which want outputs (BLOCK_COLS) that stay near. Where whole slices are taken many panels are worth
 * more than many items: each item fills a slab or reads x of its own. */
static void choose_columns(struct job *job)
{
    const bool whole = job->g->whole_slices;
    const int want = items_wanted(job);
    int parts = whole ? 1 : div_up(job->w->panels * job->g->nr, BLOCK_COLS);
    if (job->blocks * parts < want)
        parts = min_int(job->w->panels, div_up(want, job->blocks));
    job->cols_panels = div_up(job->w->panels, parts);
}

/* Chunks of a slab that stay in the second level, where whole slices are taken beside B of this panel and the
 * next one, which is asked for. */
static int chunks_that_fit(const struct job *job)
{
    const size_t slab = slab_chunk_bytes(job), b = (size_t)(job->chunk * job->taps * job->g->nr) * 2;
    size_t fit = SLAB_BYTES / slab;
    if (job->g->whole_slices) {
        const size_t near = NEAR_BYTES / (slab + 2 * b);
        fit = 2 * SLAB_BYTES / slab < near ? 2 * SLAB_BYTES / slab : near;
    }
    return fit < 1024 ? (int)fit : 1024;
}

static void choose_slices(struct job *job)
{
    int most = job->mode == DIRECT ? DIRECT_CHANNELS / job->chunk : chunks_that_fit(job);
    if (direct_slices(job))
        most = several_slices(job) ? 1 : job->chunks;
    job->slices = div_up(job->chunks, most > 0 ? most : 1);
    job->slice_chunks = div_up(job->chunks, job->slices);
}

/* Whether B and two blocks of x fit the second level, and an item has all of B. */
static bool asks_x(const struct job *job)
{
    size_t block = (size_t)job->block_rows * (size_t)job->w->channels * dtype_size(job->g->dtype);
    return direct_slices(job) && job->slices == 1 && job->a->x.ld == job->w->channels &&
           job->cols_panels == job->w->panels && small_b(job) && block <= SMALL_BLOCK_BYTES;
}

/* Bytes of a worker's scratch that come before c, see worker_memory(). */
static size_t scratch_before_c(const struct job *job)
{
    return (size_t)round_up(job->chunk * job->taps * job->g->nr * 4, 4096) + gemm_slab_bytes(job) +
           kept_bytes(job);
}

/* Where there are several slices, the sums of all panels of an item wait in c: no more panels than fit. */
static int fit_columns(struct job *job, struct error *err)
{
    size_t used = scratch_before_c(job), rows = (size_t)job->block_rows, least = 2 * (size_t)job->g->mr;
    size_t panel = (rows > least ? rows : least) * (size_t)job->g->nr * sizeof(float);
    panel *= job->slices > 1 ? (size_t)job->places : 1;
    if (used + panel > POOL_SCRATCH)
        return error_set(err, ERR_INTERNAL, "a convolution of %d channels does not fit a thread's scratch",
                         job->a->x.c);
    size_t fit = POOL_SCRATCH - used;
    if (direct_slices(job) && fit > SUMS_BYTES) /* they stay in the second level */
        fit = SUMS_BYTES > panel ? SUMS_BYTES : panel;
    if (job->slices > 1) {
        int parts = div_up(job->cols_panels, (int)(fit / panel));
        job->cols_panels = div_up(job->cols_panels, parts);
    }
    return 0;
}

/* The kernel as it was given, and the outputs as they are. */
static void set_geometry(struct job *job, const struct gemm_args *a)
{
    int up = a->upsample ? 1 : 0;
    job->places = 1;
    job->kw = a->w->kw;
    job->taps = a->w->kh * a->w->kw;
    job->reach_y = a->w->kh;
    job->reach_x = a->w->kw;
    job->pad_y = a->pad_end ? 0 : (a->w->kh - 1) / 2;
    job->pad_x = a->pad_end ? 0 : (a->w->kw - 1) / 2;
    job->step = a->stride > 0 ? a->stride : 1;
    job->shift = up;
    job->ih = a->x.h << up;
    job->iw = a->x.w << up;
    job->oh = a->y.h;
    job->ow = a->y.w;
}

/* An upsampled convolution as four of 2x2. */
static void set_places(struct job *job, const struct gemm_args *a)
{
    job->places = 4;
    job->w = weight_place(job->w, 0);
    job->kw = 2;
    job->taps = 4;
    job->shift = 0;
    job->ih = job->oh = a->x.h;
    job->iw = job->ow = a->x.w;
}

int gemm_choose_blocks(struct job *job, struct error *err)
{
    const struct gemm_args *a = job->a;
    set_geometry(job, a);
    if (a->upsample && job->w->form == FORM_UP)
        set_places(job, a);
    job->positions = (size_t)a->x.n * (size_t)job->oh * (size_t)job->ow;
    if (job->positions == 0)
        return 0;
    job->mode = choose_mode(job);
    job->norms = a->layer_norm != NULL;
    choose_chunks(job);
    choose_block(job);
    choose_columns(job);
    job->streams = gemm_past_caches(a, job->w->panel_cols, job->g->defers && job->taps == 1);
    const bool pairs = job->streams && job->w->channels <= PAIR_CHANNELS;
    job->joins = job->mode == DIRECT && job->g->defers ? gemm_joins(a, job->w->panel_cols, pairs) : 1;
    choose_slices(job);
    job->keeps = job->norms || (job->mode == DIRECT && job->g->keeps_tiles &&
                                job->cols_panels >= (several_slices(job) ? KEEP_SLICE_PANELS : KEEP_PANELS));
    job->asks_x = asks_x(job);
    return fit_columns(job, err);
}

bool gemm_takes_layer_norm(const struct backend *be, tensor x, const weight *w)
{
    const struct gemm_kernel *g = cpu_tier(be)->gemm;
    const bool geglu = w->kind == WEIGHT_GEGLU;
    if (!g->keeps_tiles || x.c != w->in_c || (!geglu && w->kind != WEIGHT_LINEAR))
        return false;
    const int halves = geglu ? 2 : 1, channels = round_up(x.c, g->k_unit), cols = g->nr / halves;
    const struct cpu_weight shape = {.dtype = g->dtype,
                                     .taps = 1,
                                     .channels = channels,
                                     .chunk = channels,
                                     .panels = div_up(w->out_c / halves, cols),
                                     .panel_cols = cols,
                                     .panel_bytes = (size_t)(channels * g->nr) * dtype_size(g->dtype)};
    tensor y = x;
    y.c = y.ld = w->out_c / halves;
    const struct gemm_args a = {.y = y, .x = x, .w = w, .geglu = geglu, .layer_norm = w};
    struct job job = {.g = g, .w = &shape, .pool = be->pool, .a = &a};
    struct error none = {0};
    return gemm_choose_blocks(&job, &none) == 0 && job.mode == DIRECT && job.slices == 1 &&
           job.cols_panels == shape.panels;
}
