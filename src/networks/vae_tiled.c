/* AutoencoderKL in tiles, which overlap by a quarter. See tiles.h.
 * Source: diffusers AutoencoderKL.tiled_decode, _tiled_encode. */
#include "networks.h"
#include "tiles.h"
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

/* One of the network's two halves. */
struct half {
    const struct vae *net;
    tensor (*forward)(pass *p, const struct vae *net, tensor x);
};

static tensor make(pass *p, void *ctx, tensor cut, int top, int left)
{
    const struct half *half = ctx;
    (void)top;
    (void)left;
    return half->forward(p, half->net, cut);
}

static struct tile_axis axis(int length, int in, int out)
{
    struct tile_axis a = {
        .in = in, .in_step = in - in / OVERLAP, .out = out, .out_step = out - out / OVERLAP};
    a.count = a.in_step > 0 ? (length + a.in_step - 1) / a.in_step : 0;
    return a;
}

/* X [1, ...] in tiles of IN positions, of which each becomes OUT. */
static tensor run(pass *p, struct half half, tensor x, int in, int out, struct tiling *t,
                  const struct vae_tiles *tiles)
{
    if (x.n != 1 || tiles->side < 1 || tiles->side % (OVERLAP * vae_scale(half.net)) != 0) {
        error_set(p->err, ERR_INTERNAL, "vae_tiled: %d pictures in tiles of %d pixels", x.n, tiles->side);
        return (tensor){0};
    }
    t->rows = axis(x.h, in, out);
    t->columns = axis(x.w, in, out);
    t->make = make;
    t->ctx = &half;
    t->enter = tiles->enter;
    t->enter_ctx = tiles->ctx;
    return tiles_run(p, x, t);
}

tensor vae_decode_tiled(pass *p, const struct vae *v, tensor z, const struct vae_tiles *t)
{
    int s = vae_scale(v);
    struct tiling to = {.height = z.h * s, .width = z.w * s, .channels = 3};
    return run(p, (struct half){v, vae_decode}, z, t->side / s, t->side, &to, t);
}

tensor vae_encode_tiled(pass *p, const struct vae *v, tensor x, const struct vae_tiles *t)
{
    int s = vae_scale(v);
    struct tiling to = {.height = x.h / s, .width = x.w / s, .channels = 2 * v->latent_c};
    return run(p, (struct half){v, vae_encode}, x, t->side, t->side / s, &to, t);
}
