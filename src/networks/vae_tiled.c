/* AutoencoderKL in tiles: large pictures in the memory of a small one. Each tile goes through the network by
 * itself and fades into those above and to the left of it, where they overlap by a quarter. The finished
 * picture, the lower edges of one row of tiles and the right edge of one tile are kept; no more. Pictures are
 * made one at a time (N = 1).
 * Source: diffusers AutoencoderKL.tiled_decode, _tiled_encode, blend_v, blend_h. */
#include "networks.h"
#include "vae.h"

enum { OVERLAP = 4 }; /* tiles overlap by one part in so many */

int vae_tile_side(const struct vae *v, int height, int width)
{
    int unit = OVERLAP * vae_scale(v), side = v->sample_size;
    if ((size_t)height * (size_t)width <= VAE_UNTILED_PIXELS)
        return 0;
    side = side < VAE_TILE_MIN ? VAE_TILE_MIN : side;
    return side / unit * unit;
}

typedef tensor vae_half(pass *p, const struct vae *net, tensor x);

/* Sides in positions: of what the half reads (in) and of what it writes (out). */
struct grid {
    int in, in_step, out, out_step, overlap; /* overlap: of out */
    int rows, columns;
    tensor picture; /* [1, H, W, C]: what is finished */
    tensor below;   /* [1, overlap, columns out, C]: the lower edges of the last row of tiles */
    tensor right;   /* [1, out, overlap, C]: the right edge of the last tile */
};

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* Tile (i, j) of X through HALF. */
static tensor make_tile(pass *p, const struct vae *v, vae_half *half, tensor x, const struct grid *g, int i,
                        int j)
{
    int top = i * g->in_step, left = j * g->in_step;
    tensor area = tensor_area(x, top, left, least(g->in, x.h - top), least(g->in, x.w - left));
    tensor cut = convert(p, area, DTYPE_F32);
    tensor tile = half(p, v, tensor_of_area(cut, x.c));
    tensor_free(p, &cut);
    return tile;
}

/* blend_v with the tile above, then blend_h with the one to the left. */
static void fade(pass *p, const struct grid *g, tensor tile, int i, int j)
{
    int h = least(g->overlap, tile.h), w = least(g->overlap, tile.w);
    if (i > 0)
        ramp(p, tensor_area(g->below, g->overlap - h, j * g->out, h, tile.w),
             tensor_area(tile, 0, 0, h, tile.w), 0);
    if (j > 0)
        ramp(p, tensor_area(g->right, 0, g->overlap - w, tile.h, w), tensor_area(tile, 0, 0, tile.h, w),
             tile.c);
}

/* Keeps what the neighbours need of a faded tile, and puts it into the picture. The last of a row or column
 * has no neighbour there and may be smaller than the overlap. */
static void keep(pass *p, const struct grid *g, tensor tile, int i, int j)
{
    int h = least(g->out_step, tile.h), w = least(g->out_step, tile.w);
    if (i + 1 < g->rows)
        copy_to(p, tensor_area(g->below, 0, j * g->out, g->overlap, tile.w),
                tensor_area(tile, tile.h - g->overlap, 0, g->overlap, tile.w));
    if (j + 1 < g->columns)
        copy_to(p, tensor_area(g->right, 0, 0, tile.h, g->overlap),
                tensor_area(tile, 0, tile.w - g->overlap, tile.h, g->overlap));
    copy_to(p, tensor_area(g->picture, i * g->out_step, j * g->out_step, h, w),
            tensor_area(tile, 0, 0, h, w));
}

static tensor run_tiles(pass *p, const struct vae *v, vae_half *half, tensor x, struct grid *g,
                        const struct vae_tiles *t)
{
    int tiles = g->rows * g->columns;
    for (int k = 0; k < tiles && !p->err->code; k++) {
        if (t->enter && !t->enter(t->ctx, k + 1, tiles))
            break;
        int i = k / g->columns, j = k % g->columns;
        tensor tile = make_tile(p, v, half, x, g, i, j);
        fade(p, g, tile, i, j);
        keep(p, g, tile, i, j);
        tensor_free(p, &tile);
    }
    tensor_free(p, &g->right);
    tensor_free(p, &g->below);
    return g->picture;
}

/* A grid for X [1, ...]; the picture is [1, H, W, C]. Its tensors are taken before any tile, so that they lie
 * together. */
static struct grid lay_out(pass *p, const struct vae *v, tensor x, int in, int out, int h, int w, int c,
                           const struct vae_tiles *t)
{
    struct grid g = {.in = in, .out = out, .overlap = out / OVERLAP};
    if (x.n != 1 || t->side < 1 || t->side % (OVERLAP * vae_scale(v)) != 0) {
        error_set(p->err, ERR_INTERNAL, "vae_tiled: %d pictures in tiles of %d pixels", x.n, t->side);
        return g;
    }
    g.in_step = in - in / OVERLAP;
    g.out_step = out - out / OVERLAP;
    g.rows = (x.h + g.in_step - 1) / g.in_step;
    g.columns = (x.w + g.in_step - 1) / g.in_step;
    g.picture = tensor_new(p, 1, h, w, c, DTYPE_F32);
    g.below = tensor_new(p, 1, g.overlap, g.columns * out, c, DTYPE_F32);
    g.right = tensor_new(p, 1, out, g.overlap, c, DTYPE_F32);
    return g;
}

tensor vae_decode_tiled(pass *p, const struct vae *v, tensor z, const struct vae_tiles *t)
{
    int s = vae_scale(v);
    struct grid g = lay_out(p, v, z, t->side / s, t->side, z.h * s, z.w * s, 3, t);
    return run_tiles(p, v, vae_decode, z, &g, t);
}

tensor vae_encode_tiled(pass *p, const struct vae *v, tensor x, const struct vae_tiles *t)
{
    int s = vae_scale(v);
    struct grid g = lay_out(p, v, x, t->side, t->side / s, x.h / s, x.w / s, 2 * v->latent_c, t);
    return run_tiles(p, v, vae_encode, x, &g, t);
}
