/* A large picture through a network in overlapping tiles, in the memory of a small one: each tile goes
 * through by itself and fades into those above and to the left of it where they overlap. The finished
 * picture, the lower edges of one row of tiles and the right edge of one tile are kept; no more. Pictures are
 * made one at a time (N = 1). */
#ifndef LATENTD_TILES_H
#define LATENTD_TILES_H

#include "ops.h"

/* Along one side: how long a tile is and how far it is to the next, in positions of what the network reads
 * (in) and of what it writes (out); the last one may be shorter. */
struct tile_axis {
    int count, in, in_step, out, out_step;
};

struct tiling {
    struct tile_axis rows, columns;
    int height, width, channels; /* of what is written: [1, H, W, C] F32 */
    /* CUT [1, h, w, C] F32, which lies at TOP and LEFT of the whole, -> its tile, F32. */
    tensor (*make)(pass *p, void *ctx, tensor cut, int top, int left);
    void *ctx;
    /* Unless NULL, called before each tile, TILE from 1 to TILES. False ends the work: then it has set the
     * pass's error. */
    bool (*enter)(void *ctx, int tile, int tiles);
    void *enter_ctx;
};

/* X [1, H, W, C] -> [1, T->height, T->width, T->channels] F32. */
tensor tiles_run(pass *p, tensor x, const struct tiling *t);

#endif
