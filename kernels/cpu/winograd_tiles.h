/* Winograd's method: outputs cut into tiles, tiles dealt out in groups and blocks (winograd.c,
 * winograd_2x4.c). */
#ifndef LATENTD_CPU_WINOGRAD_TILES_H
#define LATENTD_CPU_WINOGRAD_TILES_H

#include "gemm.h"
#include "thread_pool.h"

struct winograd_tiles {
    tensor y;
    int rows, cols;   /* of outputs of a tile */
    int across, down; /* tiles of a picture */
    size_t all;       /* of the batch */
    int group;        /* tiles of a group, which follow each other row by row, picture by picture */
    int block;        /* groups of a block */
    size_t first;     /* of the running block */
    int count;        /* tiles in it; 0: none runs yet */
};

struct winograd_tile {
    size_t n;
    int y, x; /* its first output */
};

/* Tiles FIRST to END of a group of the block. */
struct winograd_range {
    int group, first, end;
};

struct winograd_tiles winograd_cut(tensor y, int rows, int cols, int group);
/* Groups of a block: so many that U is made seldom, and their V, GROUP_BYTES each, stays in the last level
 * and in cpu_state.winograd. */
void winograd_choose_block(struct winograd_tiles *t, const struct pool *pool, size_t group_bytes);
/* The next block; false: there is none. */
bool winograd_block(struct winograd_tiles *t);
/* Where blocks are dealt out instead, by T->block: how many there are; the Ith becomes the running one. */
int winograd_blocks(const struct winograd_tiles *t);
void winograd_go_to_block(struct winograd_tiles *t, int i);
/* Groups of a block that an item takes for one of PANELS, MOST or fewer, so that all threads have work. */
int winograd_part(int groups, int panels, int most, const struct pool *pool);

/* Items that V of each group of a block is made in, so that all threads have work; which tiles are item I's.
 */
int winograd_input_parts(const struct winograd_tiles *t, const struct pool *pool);
struct winograd_range winograd_input_range(const struct winograd_tiles *t, int parts, int i);

static inline int winograd_groups(const struct winograd_tiles *t)
{
    return div_up(t->count, t->group);
}

static inline int winograd_group_tiles(const struct winograd_tiles *t, int group)
{
    return min_int(t->group, t->count - group * t->group);
}

/* The Ith tile of a group of the block. */
static inline struct winograd_tile winograd_tile_at(const struct winograd_tiles *t, int group, int i)
{
    const size_t at = t->first + (size_t)(group * t->group + i), line = at / (size_t)t->across;
    return (struct winograd_tile){line / (size_t)t->down, (int)(line % (size_t)t->down) * t->rows,
                                  (int)(at % (size_t)t->across) * t->cols};
}

/* Ends outputs [rows of a tile][tiles of the group][columns of a tile][nr] of a group and panel P, all but
 * those of the tiles in ENDED (bit I: tile I): runs of tiles in a row of the picture. */
void winograd_end_group(const struct winograd_tiles *t, const struct gemm_args *a, const struct row_ops *rows,
                        int nr, int group, int p, const float *outputs, unsigned ended);

#endif
