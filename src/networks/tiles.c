/* See tiles.h. Source of the blending: diffusers AutoencoderKL's blend_v and blend_h. */
#include "tiles.h"

struct grid {
    const struct tiling *t;
    int rows_overlap, columns_overlap; /* of what is written */
    tensor picture;                    /* [1, H, W, C]: what is finished */
    tensor below; /* [1, overlap, columns out, C]: the lower edges of the last row of tiles */
    tensor right; /* [1, out, overlap, C]: the right edge of the last tile */
};

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* Tile (i, j) of X. */
static tensor make_tile(pass *p, const struct tiling *t, tensor x, int i, int j)
{
    int top = i * t->rows.in_step, left = j * t->columns.in_step;
    tensor area = tensor_area(x, top, left, least(t->rows.in, x.h - top), least(t->columns.in, x.w - left));
    tensor cut = convert(p, area, DTYPE_F32);
    tensor tile = t->make(p, t->ctx, tensor_of_area(cut, x.c), top, left);
    tensor_free(p, &cut);
    return tile;
}

/* blend_v with the tile above, then blend_h with the one to the left. */
static void fade(pass *p, const struct grid *g, tensor tile, int i, int j)
{
    int h = least(g->rows_overlap, tile.h), w = least(g->columns_overlap, tile.w);
    if (i > 0)
        ramp(p, tensor_area(g->below, g->rows_overlap - h, j * g->t->columns.out, h, tile.w),
             tensor_area(tile, 0, 0, h, tile.w), 0);
    if (j > 0)
        ramp(p, tensor_area(g->right, 0, g->columns_overlap - w, tile.h, w),
             tensor_area(tile, 0, 0, tile.h, w), tile.c);
}

/* Keeps what the neighbours need of a faded tile, and puts it into the picture. The last of a row or column
 * has no neighbour there and may be smaller than the overlap. */
static void keep(pass *p, const struct grid *g, tensor tile, int i, int j)
{
    const struct tile_axis *rows = &g->t->rows, *columns = &g->t->columns;
    bool last_row = i + 1 == rows->count, last_column = j + 1 == columns->count;
    int h = last_row ? tile.h : rows->out_step, w = last_column ? tile.w : columns->out_step;
    h = least(h, g->picture.h - i * rows->out_step);
    w = least(w, g->picture.w - j * columns->out_step);
    if (!last_row)
        copy_to(p, tensor_area(g->below, 0, j * columns->out, g->rows_overlap, tile.w),
                tensor_area(tile, tile.h - g->rows_overlap, 0, g->rows_overlap, tile.w));
    if (!last_column)
        copy_to(p, tensor_area(g->right, 0, 0, tile.h, g->columns_overlap),
                tensor_area(tile, 0, tile.w - g->columns_overlap, tile.h, g->columns_overlap));
    copy_to(p, tensor_area(g->picture, i * rows->out_step, j * columns->out_step, h, w),
            tensor_area(tile, 0, 0, h, w));
}

/* An overlap of 0, where one tile is all, still has a tensor. */
static tensor edge(pass *p, int h, int w, int c)
{
    return tensor_new(p, 1, h ? h : 1, w ? w : 1, c, DTYPE_F32);
}

/* The tensors are taken before any tile, so that they lie together. */
static struct grid lay_out(pass *p, const struct tiling *t)
{
    struct grid g = {.t = t,
                     .rows_overlap = t->rows.out - t->rows.out_step,
                     .columns_overlap = t->columns.out - t->columns.out_step};
    g.picture = tensor_new(p, 1, t->height, t->width, t->channels, DTYPE_F32);
    g.below = edge(p, g.rows_overlap, t->columns.count * t->columns.out, t->channels);
    g.right = edge(p, t->rows.out, g.columns_overlap, t->channels);
    return g;
}

tensor tiles_run(pass *p, tensor x, const struct tiling *t)
{
    struct grid g = lay_out(p, t);
    int columns = t->columns.count, tiles = t->rows.count * columns;
    for (int k = 0; k < tiles && !p->err->code; k++) {
        if (t->enter && !t->enter(t->enter_ctx, k + 1, tiles))
            break;
        tensor tile = make_tile(p, t, x, k / columns, k % columns);
        fade(p, &g, tile, k / columns, k % columns);
        keep(p, &g, tile, k / columns, k % columns);
        tensor_free(p, &tile);
    }
    tensor_free(p, &g.right);
    tensor_free(p, &g.below);
    return g.picture;
}
