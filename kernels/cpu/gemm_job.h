/* What a matrix product is cut into: shared by gemm.c and gemm_*.c alone. */
#ifndef LATENTD_CPU_GEMM_JOB_H
#define LATENTD_CPU_GEMM_JOB_H

#include "gemm.h"
#include "thread_pool.h"

enum { TAPS_MAX = 121 };

enum mode { DIRECT, PADDED, NARROW, FLAT };

struct job {
    const struct gemm_kernel *g;
    const struct row_ops *rows;
    const struct cpu_weight *w; /* of the first of places */
    struct pool *pool;
    const struct gemm_args *a;
    enum mode mode;
    int kw, taps, pad_y, pad_x, step, shift, ih,
        iw; /* ih, iw: input as the kernel sees it, after upsampling */
    int oh, ow;
    /* 1, or 4 for an upsampled convolution that is computed as four of 2x2 at the size of x, one for each
     * place of 2x2 outputs: then oh and ow are x's, and all read one slab, that of a 3x3 kernel. */
    int places;
    int reach_y, reach_x; /* the kernel's sides, as the slab sees them */
    size_t positions;     /* n * oh * ow */
    /* PADDED and NARROW: */
    int block_h, block_w;    /* output rows and columns of a block; NARROW: whole rows */
    int blocks_y, blocks_x;  /* blocks of a picture */
    int pictures;            /* of a block, whole ones where there are several */
    int block_rows;          /* most positions in a block */
    int blocks, cols_panels; /* blocks in all; panels of an item */
    int slab_h, slab_w;      /* FLAT: slab_w = block_rows, slab_h = taps; NARROW: of all kernel columns */
    int picture_h;           /* PADDED, NARROW: rows of the slab for a picture (and kernel column) */
    int chunk, chunks;       /* channels of a chunk; how many there are */
    int slice_chunks, slices;
    int joins;    /* panels that are stored together, 1: each by itself */
    bool streams; /* gemm_past_caches() */
    bool asks_x;  /* x of the next block is asked for while one is computed */
    float *sums;  /* NULL, or where those of struct kept_sums go: a part is a block and place */
    bool keeps;   /* DIRECT: the first panel leaves tiles of x in the slab, which the others read */
    bool norms;   /* it leaves those of x's layer norm there, and reads them, too */
};

/* The part of a block that is regular: `segments` runs of `length` output positions, of a row of the picture
 * (PADDED) or of a picture (NARROW). */
struct block {
    int n, y, x;  /* PADDED, NARROW: first output position */
    size_t first; /* DIRECT, FLAT: first output position over the whole batch */
    int segments, length;
};

/* The panels of a work item: place by place, P0 to P1. */
struct panels {
    int p0, p1;
};

/* What is needed after this: its lines are asked for a few at a time. */
struct coming {
    const char *at;
    size_t bytes, done;
    int lines;          /* for each k_unit products; whole_slices only */
    size_t apart, step; /* as in struct gemm_tile */
};

struct worker_memory {
    size_t tap[4][TAPS_MAX]; /* by place */
    char *wide;              /* one chunk of B, widened */
    char *slab;
    char *kept; /* [block_rows] of what is kept back, where panels are joined */
    float *c;
    struct panels panels;
    float *sums;      /* the block's of job->sums: [place][panel][2][nr]; or NULL */
    bool asks, asked; /* this item asks for the next one's x, and the last one asked for its x */
    struct coming next_x;
    struct finish panel_end; /* of the panel, position 0's, where same_end() */
    struct finish_jump jump; /* of rows that go two by two */
    struct finish pending;   /* the end of the last tile, where it waits */
    bool waits;
};

/* COUNT outputs of panel P: rows of y from FIRST on, every STEPth. */
struct run {
    int p;
    size_t first;
    int step, count;
};

static inline int slice_channels(const struct job *job)
{
    return min_int(job->w->channels, job->slice_chunks * job->chunk);
}

static inline size_t slab_chunk_bytes(const struct job *job)
{
    return (size_t)job->slab_h * (size_t)job->slab_w * (size_t)job->chunk * dtype_size(job->g->dtype);
}

/* Whether blocks are rectangles of pictures, or runs of positions across all of them. */
static inline bool in_rectangles(const struct job *job)
{
    return job->mode == PADDED || job->mode == NARROW;
}

static inline int kept_stride(const struct job *job)
{
    return gemm_kept_stride(job->a, job->w->panel_cols, job->joins);
}

static inline size_t kept_bytes(const struct job *job)
{
    return (size_t)(job->block_rows * kept_stride(job));
}

/* Positions of the output that share a row of add_bc. */
static inline size_t add_positions(const struct gemm_args *a)
{
    return a->add_positions ? a->add_positions : (size_t)a->y.h * (size_t)a->y.w;
}

/* gemm_blocks.c: everything of JOB from mode on; its w is the weights as they were packed. */
int gemm_choose_blocks(struct job *job, struct error *err);

/* gemm_slab.c: M's slab with what block B reads of SLICE; the taps' places in it. */
void gemm_fill_slab(const struct job *job, const struct block *b, struct worker_memory *m, int slice);
void gemm_set_taps(const struct job *job, struct worker_memory *m);
/* The layer norm of COUNT positions from FIRST on, the AT-th and following of the block, to M's slab. */
void gemm_norm_rows(const struct job *job, const struct worker_memory *m, size_t first, int at, int count);
size_t gemm_slab_bytes(const struct job *job);

/* gemm_end.c: what ends R's rows, C their sums. */
void gemm_make_finish(struct finish *f, const struct gemm_args *a, int nr, const float *c,
                      const struct run *r);

/* ---- gemm_finish.c ---- */

/* Outputs FIRST to FIRST + COUNT of the job's positions, at PLACE, all in one row of the picture where there
 * are several places. */
struct run gemm_output_run(const struct job *job, int place, int p, size_t first, int count);
/* Bytes of a row of x that are asked for with panel P: a line, or, as memory gives pairs of lines in the time
 * of one, the next panel's, too, and then none with that one. */
int gemm_bytes_asked(const struct job *job, const struct worker_memory *m, tensor x, int p);
/* Whether lines of y are fetched when the end of panel P writes them. */
bool gemm_meets_y(const struct job *job, const struct worker_memory *m, int p);
/* Asks for the lines of y that R will be written to, unless they are written past the caches, and for those
 * of the residual: they arrive during the last chunk. */
void gemm_ask_output(const struct job *job, const struct worker_memory *m, struct run r);
/* Whether panels end all their rows in the same way. */
bool gemm_same_end(const struct job *job);
/* Finishes what waits, now. */
void gemm_finish_pending(const struct job *job, struct worker_memory *m);
/* Positions from FIRST on whose outputs can be ended together: those of a picture where add_bc differs, those
 * of a picture's row where there are several places; at most ROWS. */
int gemm_together(const struct job *job, size_t first, int rows);
/* What all panels of an item have in common; their kept sums begin with zeros. */
void gemm_begin_item(const struct job *job, struct worker_memory *m, int block);
/* F: the end of ROWS positions from FIRST on, of panel P, that can be ended together. Making it anew for each
 * tile takes 5 % of a layer of 320 channels. */
void gemm_end_of(const struct job *job, const struct worker_memory *m, int place, int p, const float *c,
                 size_t first, int rows, struct finish *f);
/* ROWS positions from FIRST on, of panel P: at once, or left for the next call of the micro-kernel to do
 * along the way. */
void gemm_finish_rows(const struct job *job, struct worker_memory *m, int place, int p, const float *c,
                      size_t first, int rows);
/* Likewise half a tile of outputs from FIRST on, and those below them in the picture. */
void gemm_finish_pair(const struct job *job, struct worker_memory *m, int place, int p, const float *c,
                      size_t first);
/* What all tiles of panel P have in common: before the first of them ends. */
void gemm_begin_panel(const struct job *job, struct worker_memory *m, int place, int p);

#endif
