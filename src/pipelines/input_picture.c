/* The picture of an image-to-image request, from bytes to latents: diffusers' VaeImageProcessor.preprocess
 * and DiagonalGaussianDistribution. See run.h. */
#include <math.h>
#include <stdlib.h>

#include "run.h"

void input_picture_size(const struct model *m, const struct image *im, int *width, int *height)
{
    int unit = vae_scale(m->vae);
    *width = im->width - im->width % unit;
    *height = im->height - im->height % unit;
}

/* 0..255 → -1..1, in fp32 as numpy does it. */
static void normalize(const uint8_t *rgb, size_t count, float *out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = 2.0f * ((float)rgb[i] / 255.0f) - 1.0f;
}

tensor preprocess_picture_to(struct run *r, int width, int height, enum image_filter filter)
{
    pass *p = &r->p;
    size_t count = 3 * (size_t)width * (size_t)height;
    struct image cut = {0};
    const struct image *im = r->q->image;
    float *host = NULL;
    if (r->planning)
        return tensor_from_host(p, NULL, 1, height, width, 3, DTYPE_F32);
    if ((im->width != width || im->height != height) &&
        image_resize(im, width, height, filter, &cut, p->err) == 0)
        im = &cut;
    if (!p->err->code && !(host = malloc(count * sizeof *host)))
        error_set(p->err, ERR_NOMEM, "no memory for the input image");
    if (!p->err->code)
        normalize(im->rgb, count, host);
    tensor x = tensor_from_host(p, host, 1, height, width, 3, DTYPE_F32);
    free(host);
    image_free(&cut);
    return x;
}

tensor preprocess_picture(struct run *r)
{
    return preprocess_picture_to(r, r->q->width, r->q->height, FILTER_LANCZOS);
}

/* MOMENTS [rows, 2 C], mean then logarithm of the variance, and NOISE [rows, C] (NULL: the mode) → OUT [rows,
 * C]. */
static void sample_posterior(const float *moments, const float *noise, size_t rows, size_t c, float *out)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < c; j++) {
            float mean = moments[i * 2 * c + j], logvar = moments[(i * 2 + 1) * c + j];
            float std = expf(0.5f * fminf(fmaxf(logvar, -30.0f), 20.0f));
            out[i * c + j] = noise ? mean + std * noise[i * c + j] : mean;
        }
}

/* Z [rows, C] as the UNet reads it. */
static void scale_latents(const struct model *m, size_t rows, size_t c, float *z)
{
    const float *mean, *std, scale = vae_scaling_factor(m->vae);
    bool stats = m->family == FAMILY_SDXL && vae_latents_stats(m->vae, &mean, &std);
    for (size_t i = 0; i < rows * c; i++)
        z[i] = stats ? (z[i] - mean[i % c]) * scale / std[i % c] : scale * z[i];
}

/* The posterior's draw comes before all others of the request, in the type of the moments. */
static tensor draw_posterior(struct run *r, tensor moments)
{
    enum dtype round = r->noise.round;
    r->noise.round = r->m->posterior_dtype;
    tensor drawn = noise_draw(&r->p, &r->noise, 1, moments.h, moments.w, moments.c / 2);
    r->noise.round = round;
    return drawn;
}

/* On the host: a few thousand numbers, once a request. */
static tensor posterior(struct run *r, tensor moments, bool sample)
{
    pass *p = &r->p;
    size_t rows = tensor_rows(moments), c = (size_t)moments.c / 2;
    float *host = calloc(4 * rows * c + 1, sizeof *host);
    if (!host) {
        error_set(p->err, ERR_NOMEM, "no memory for the input image's latents");
        return tensor_from_host(p, NULL, 1, moments.h, moments.w, (int)c, DTYPE_F32);
    }
    float *noise = host + 2 * rows * c, *out = noise + rows * c;
    if (sample) {
        tensor drawn = draw_posterior(r, moments);
        tensor_to_host(p, drawn, noise);
        tensor_free(p, &drawn);
    }
    tensor_to_host(p, moments, host);
    if (!r->planning && !p->err->code)
        sample_posterior(host, sample ? noise : NULL, rows, c, out);
    if (sample)
        scale_latents(r->m, rows, c, out);
    tensor z = tensor_from_host(p, out, 1, moments.h, moments.w, (int)c, DTYPE_F32);
    free(host);
    return z;
}

static bool enter_tile(void *ctx, int tile, int tiles)
{
    return run_enter(ctx, PHASE_TEXT, tile, tiles);
}

static tensor encode(struct run *r, tensor x)
{
    pass p = run_vae_pass(r);
    int side = vae_tile_side(r->m->vae, x.h, x.w);
    if (side == 0)
        return vae_encode(&p, r->m->vae, x);
    return vae_encode_tiled(&p, r->m->vae, x,
                            &(struct vae_tiles){.side = side, .enter = enter_tile, .ctx = r});
}

tensor encode_picture(struct run *r, bool sample)
{
    pass *p = &r->p;
    tensor x = preprocess_picture(r);
    tensor moments = encode(r, x);
    tensor_free(p, &x);
    tensor z = posterior(r, moments, sample);
    tensor_free(p, &moments);
    return z;
}
