/* The denoising loop with classifier-free guidance, and the VAE's decoder. See run.h. */
#include <math.h>
#include <stdlib.h>

#include "run.h"
#include "tiles.h"

enum { TIME_COND_MAX = 4096, DEEPCACHE_INTERVAL = 3 };
/* Areas of latents overlap by one part in so many, and begin where all levels of the UNet halve evenly. */
enum { TILE_OVERLAP = 4, TILE_UNIT = 8 };

tensor draw_latents(struct run *r)
{
    int unit = vae_scale(r->m->vae);
    return noise_draw(&r->p, &r->noise, 1, r->q->height / unit, r->q->width / unit,
                      vae_latent_channels(r->m->vae));
}

tensor initial_latents(struct run *r)
{
    tensor noise = draw_latents(r);
    float sigma = scheduler_init_noise_sigma(r->sched);
    tensor x = lincomb(&r->p, 1, &sigma, &noise);
    tensor_free(&r->p, &noise);
    return x;
}

tensor stack_pictures(struct run *r, int count, const tensor *part)
{
    pass *p = &r->p;
    tensor like = part[0];
    for (int i = 1; i < count && !like.n; i++)
        like = part[i];
    size_t each = tensor_count(like);
    float *host = calloc((size_t)count * each + 1, sizeof *host);
    if (!host)
        error_set(p->err, ERR_NOMEM, "no memory to stack tensors");
    for (int i = 0; i < count && host; i++)
        if (part[i].n)
            tensor_to_host(p, part[i], host + (size_t)i * each);
    tensor y = tensor_from_host(p, host, count, like.h, like.w, like.c, like.dtype);
    free(host);
    return y;
}

/* diffusers' get_guidance_scale_embedding for LCM-like UNets, whose guidance is an input: OUT[dim]. */
static void guidance_embedding(double guidance, int dim, float *out)
{
    int half = dim / 2;
    double w = (guidance - 1.0) * 1000.0;
    for (int i = 0; i < half; i++) {
        double f = w * exp(-log(10000.0) / (half - 1) * i);
        out[i] = (float)sin(f);
        out[half + i] = (float)cos(f);
    }
    if (dim % 2)
        out[dim - 1] = 0;
}

/* What the UNet reads at call i: latents [1, h, w, C] → [parts, h, w, C], or with IMAGE beside them 2C
 * channels. Only the latents are scaled, not the image's. */
static tensor model_input(struct run *r, tensor x, tensor image, int i)
{
    pass *p = &r->p;
    tensor scaled = scheduler_scale_input(p, r->sched, i, x);
    tensor batch = scaled;
    if (r->parts > 1) {
        batch = repeat_batch(p, scaled, r->parts);
        tensor_free(p, &scaled);
    }
    if (!image.n)
        return batch;
    tensor narrow = convert(p, batch, pass_dtype(p));
    tensor both = concat_channels(p, narrow, image);
    tensor_free(p, &narrow);
    tensor_free(p, &batch);
    return both;
}

/* InstructPix2Pix: uncond + text_scale (text - image) + image_scale (image - uncond), of the three pictures
 * text, image, uncond of E. */
static tensor guide_by_image(struct run *r, tensor e)
{
    float text = (float)r->q->guidance, image = (float)r->q->image_guidance;
    const float coef[] = {text, image - text, 1 - image};
    const tensor parts[] = {tensor_batch(e, 0, 1), tensor_batch(e, 1, 1), tensor_batch(e, 2, 1)};
    return lincomb(&r->p, 3, coef, parts);
}

/* Calls are numbered as the Python package does, by the first one with the same timestep: some schedulers ask
 * twice for one. */
tensor *run_deep(struct run *r, int i)
{
    const float *timesteps = scheduler_timesteps(r->sched);
    int first = 0;
    if (!r->m->deepcache || r->q->tile) /* each area would need its own */
        return NULL;
    while (timesteps[first] != timesteps[i])
        first++;
    if (first % DEEPCACHE_INTERVAL == 0)
        run_deep_end(r);
    return &r->deep;
}

void run_deep_end(struct run *r)
{
    tensor_free(&r->p, &r->deep);
    r->deep = (tensor){0};
}

/* One model call: latents x [1, h, w, C] at call i → prediction [1, h, w, C], or of two parts [2, h, w, C],
 * which the scheduler guides. */
static tensor predict(struct run *r, const struct unet_request *req, tensor x, tensor image, int i)
{
    pass *p = &r->p;
    tensor input = model_input(r, x, image, i);
    pass_step_begin(p);
    tensor e = unet_forward_cached(p, r->m->unet, req, input, i, run_deep(r, i));
    if (r->parts == 3) {
        tensor all = e;
        e = guide_by_image(r, all);
        tensor_free(p, &all);
    }
    pass_step_end(p);
    tensor_free(p, &input);
    return e;
}

/* ---- Large pictures: the UNet sees one area of the latents after the other at every step, and the scheduler
 * steps all of them together (MultiDiffusion, arXiv 2302.08113), so that no area goes its own way. ---- */

struct tile_step {
    struct run *r;
    const struct unet_request *req;
    tensor image; /* [1, H, W, C] F32 */
    int call;
};

static tensor predict_area(pass *p, void *ctx, tensor cut, int top, int left)
{
    struct tile_step *s = ctx;
    int parts = s->r->parts;
    tensor area = convert(p, tensor_area(s->image, top, left, cut.h, cut.w), pass_dtype(p));
    tensor one = tensor_of_area(area, s->image.c), image = parts > 1 ? repeat_batch(p, one, parts) : one;
    tensor e = predict(s->r, s->req, cut, image, s->call);
    if (parts > 1) {
        tensor pair = e;
        e = guide(p, pair, (float)s->r->q->guidance);
        tensor_free(p, &pair);
        tensor_free(p, &image);
    }
    tensor_free(p, &area);
    return e;
}

static bool enter_area(void *ctx, int tile, int tiles)
{
    (void)tile;
    (void)tiles;
    return run_goes_on(ctx, PHASE_STEP);
}

/* The fewest areas of at most SIDE along LENGTH, all alike but for what the last one lacks. */
static struct tile_axis areas(int length, int side)
{
    int overlap = side / TILE_OVERLAP / TILE_UNIT * TILE_UNIT, rest = length > overlap ? length - overlap : 1;
    int count = (rest + side - overlap - 1) / (side - overlap);
    int step = (rest + count - 1) / count;
    step = (step + TILE_UNIT - 1) / TILE_UNIT * TILE_UNIT;
    count = (rest + step - 1) / step;
    int in = count == 1 ? length : step + overlap;
    return (struct tile_axis){.count = count,
                              .in = in,
                              .in_step = count == 1 ? in : step,
                              .out = in,
                              .out_step = count == 1 ? in : step};
}

/* As predict, in areas; with guidance done: [1, h, w, C]. */
static tensor predict_tiled(struct run *r, const struct unet_request *req, tensor x, tensor image, int i)
{
    struct tile_step s = {.r = r, .req = req, .image = image, .call = i};
    return tiles_run(&r->p, x,
                     &(struct tiling){.rows = areas(x.h, r->q->tile),
                                      .columns = areas(x.w, r->q->tile),
                                      .height = x.h,
                                      .width = x.w,
                                      .channels = x.c,
                                      .make = predict_area,
                                      .ctx = &s,
                                      .enter = enter_area,
                                      .enter_ctx = r});
}

/* What the UNet needs once a request. COND: room for the guidance's embedding. */
static struct unet_request *begin(struct run *r, const struct conditioning *c, float *cond)
{
    int dim = unet_time_cond_proj_dim(r->m->unet);
    if (dim > TIME_COND_MAX)
        error_set(r->p.err, ERR_FORMAT, "time_cond_proj_dim is %d, at most %d is built", dim, TIME_COND_MAX);
    else if (dim > 0)
        guidance_embedding(r->q->guidance, dim, cond);
    struct unet_conditions conditions = {.text = c->text,
                                         .timesteps = scheduler_timesteps(r->sched),
                                         .count = scheduler_calls(r->sched),
                                         .time_cond = dim > 0 ? cond : NULL,
                                         .pooled = c->pooled,
                                         .time_ids = c->pooled.n ? c->time_ids : NULL,
                                         .label = r->q->noise_level};
    return unet_begin(&r->p, r->m->unet, &conditions);
}

tensor denoise(struct run *r, const struct conditioning *c, tensor x, tensor image)
{
    pass *p = &r->p;
    float cond[TIME_COND_MAX];
    int calls = scheduler_calls(r->sched);
    bool tiled = r->q->tile > 0, pair = r->parts == 2 && !tiled;
    struct unet_request *req = begin(r, c, cond);
    for (int i = 0; i < calls && run_enter(r, PHASE_STEP, i + 1, calls); i++) {
        tensor e = tiled ? predict_tiled(r, req, x, image, i) : predict(r, req, x, image, i);
        tensor next = pair ? scheduler_step_guided(p, r->sched, i, e, (float)r->q->guidance, x, &r->noise)
                           : scheduler_step(p, r->sched, i, e, x, &r->noise);
        tensor_free(p, &e);
        tensor_free(p, &x);
        x = next;
        r->times.calls++;
    }
    run_deep_end(r);
    unet_end(p, &req);
    scheduler_end(p, &r->sched);
    run_phase_end(r, &r->times.steps);
    return x;
}

static bool enter_tile(void *ctx, int tile, int tiles)
{
    return run_enter(ctx, PHASE_DECODE, tile, tiles);
}

static tensor decode_picture(struct run *r, tensor z)
{
    const struct vae *vae = r->m->vae;
    int side = vae_tile_side(vae, z.h * vae_scale(vae), z.w * vae_scale(vae));
    pass p = run_vae_pass(r);
    if (side == 0)
        return vae_decode(&p, vae, z);
    return vae_decode_tiled(&p, vae, z, &(struct vae_tiles){.side = side, .enter = enter_tile, .ctx = r});
}

/* StableDiffusionUpscalePipeline takes its own number, whatever the config of the VAE says. */
static float latents_scale(const struct model *m)
{
    return m->family == FAMILY_UPSCALE ? 0.08333f : vae_scaling_factor(m->vae);
}

/* Latents [1, h, w, C] as the VAE reads them. Of SDXL's pipelines each channel may have a mean and a
 * deviation of its own; that is done on the host, once a request. */
static tensor unscale_latents(struct run *r, tensor x)
{
    pass *p = &r->p;
    const float *mean, *std, scale = latents_scale(r->m), coef = 1.0f / scale;
    if (r->m->family != FAMILY_SDXL || !vae_latents_stats(r->m->vae, &mean, &std))
        return lincomb(p, 1, &coef, &x);
    size_t c = (size_t)x.c, count = tensor_count(x);
    float *host = calloc(count + 1, sizeof *host);
    if (!host)
        error_set(p->err, ERR_NOMEM, "no memory for the latents");
    else
        tensor_to_host(p, x, host);
    for (size_t i = 0; host && i < count; i++)
        host[i] = host[i] * std[i % c] / scale + mean[i % c];
    tensor z = tensor_from_host(p, host, x.n, x.h, x.w, x.c, DTYPE_F32);
    free(host);
    return z;
}

tensor decode_latents(struct run *r, tensor x)
{
    run_enter(r, PHASE_DECODE, 0, 0);
    tensor z = unscale_latents(r, x);
    tensor_free(&r->p, &x);
    tensor y = decode_picture(r, z);
    tensor_free(&r->p, &z);
    return y;
}
