/* diffusers' StableVideoDiffusionPipeline: a picture in, the frames of a video out, a few at a time. See
 * pipeline.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"
#include "safety.h"
#include "video_processor.h"

/* decode_chunk_size is the ai-runner's; diffusers' own defaults for the rest. */
enum { STEPS_DEFAULT = 25, DECODE_CHUNK = 4, IDS = 3, VIDEOS = 2 };
static const float GUIDANCE_FIRST = 1, GUIDANCE_LAST = 3;

/* ---- What the UNet is told ---- */

/* The picture as the image encoder reads it, into PIXELS [side, side, 3]. */
static void vision_pixels(struct run *r, float *pixels)
{
    const struct model *m = r->m;
    size_t count = 3 * (size_t)clip_vision_side(m->vision) * (size_t)clip_vision_side(m->vision);
    if (r->planning || r->p.err->code ||
        resize_with_antialiasing(r->q->image, clip_vision_side(m->vision), pixels, r->p.err))
        return;
    for (size_t i = 0; i < count; i++)
        pixels[i] = (pixels[i] - m->processor.mean[i % 3]) / m->processor.std[i % 3];
}

/* _encode_image: the picture's embedding into EMBEDS [2, width], behind the zeros of the unconditional video.
 */
static void encode_vision(struct run *r, float *embeds)
{
    pass *p = &r->p;
    const struct clip_vision *net = r->m->vision;
    float *pixels = calloc(3 * (size_t)clip_vision_side(net) * (size_t)clip_vision_side(net), sizeof *pixels);
    if (!pixels) {
        error_set(p->err, ERR_NOMEM, "no memory for the image encoder's picture");
        return;
    }
    vision_pixels(r, pixels);
    tensor y = clip_vision_embed(p, net, pixels);
    tensor_to_host(p, y, embeds + clip_vision_projection(net));
    tensor_free(p, &y);
    free(pixels);
}

/* The mean of the posterior, MOMENTS [1, h, w, 2 C], for every frame behind the zeros of the unconditional
 * video: [2 F, h, w, C] in the pass's type. */
static tensor image_of_frames(struct run *r, tensor moments)
{
    pass *p = &r->p;
    int frames = model_frames(r->m), c = moments.c / 2;
    size_t rows = tensor_rows(moments), each = rows * (size_t)c;
    float *host = r->planning ? NULL : calloc((size_t)(VIDEOS * frames) * each + 2 * each, sizeof *host);
    if (r->planning) { /* it may be far too large for memory, which is what the plan is to tell */
        tensor_to_host(p, moments, NULL);
    } else if (!host) {
        error_set(p->err, ERR_NOMEM, "no memory for the input image's latents");
    } else {
        float *of_image = host + (size_t)frames * each, *read = host + (size_t)(VIDEOS * frames) * each;
        tensor_to_host(p, moments, read);
        for (size_t i = 0; i < rows; i++)
            memcpy(of_image + i * (size_t)c, read + 2 * i * (size_t)c, (size_t)c * sizeof *host);
        for (int f = 1; f < frames; f++)
            memcpy(of_image + (size_t)f * each, of_image, each * sizeof *host);
    }
    tensor y = tensor_from_host(p, host, VIDEOS * frames, moments.h, moments.w, c, pass_dtype(p));
    free(host);
    return y;
}

/* _encode_vae_image of the picture with noise on it, which is the first draw, in fp32 whatever the model is
 * in. */
static tensor encode_noised(struct run *r)
{
    pass *p = &r->p, of_vae = run_vae_pass(r);
    const float coef[] = {1, (float)r->q->video->noise};
    enum dtype round = r->noise.round;
    tensor x = preprocess_picture(r);
    r->noise.round = DTYPE_F32;
    tensor noise = noise_draw(p, &r->noise, 1, r->q->height, r->q->width, 3);
    r->noise.round = round;
    tensor noised = lincomb(p, 2, coef, (tensor[]){x, noise});
    tensor_free(p, &x);
    tensor_free(p, &noise);
    tensor moments = vae_video_encode(&of_vae, r->m->vae_video, noised);
    tensor_free(p, &noised);
    tensor y = image_of_frames(r, moments);
    tensor_free(p, &moments);
    return y;
}

static struct unet_video_request *begin(struct run *r, const float *embeds)
{
    const struct video_request *v = r->q->video;
    const float ids[IDS] = {(float)v->fps, (float)v->motion, (float)v->noise};
    struct unet_video_conditions c = {.videos = VIDEOS,
                                      .frames = model_frames(r->m),
                                      .image = embeds,
                                      .timesteps = scheduler_timesteps(r->sched),
                                      .count = scheduler_calls(r->sched),
                                      .ids = ids};
    return unet_video_begin(&r->p, r->m->unet_video, &c);
}

/* ---- The steps ---- */

/* torch.linspace: counted from both ends. */
static float guidance_at(int frame, int frames)
{
    float step = frames > 1 ? (GUIDANCE_LAST - GUIDANCE_FIRST) / (float)(frames - 1) : 0;
    return frame < frames / 2 || frames == 1 ? GUIDANCE_FIRST + step * (float)frame
                                             : GUIDANCE_LAST - step * (float)(frames - 1 - frame);
}

/* Guidance that grows from frame to frame: E [2 F, h, w, C], unconditional video first -> [F, h, w, C]. On
 * the host: a few megabytes at most, where the step before took thousands of times as long. */
static tensor guide_frames(struct run *r, tensor e)
{
    pass *p = &r->p;
    int frames = e.n / VIDEOS;
    size_t each = tensor_count(e) / (size_t)e.n, half = (size_t)frames * each;
    float *host = r->planning ? NULL : calloc(2 * half, sizeof *host);
    if (!host && !r->planning)
        error_set(p->err, ERR_NOMEM, "no memory for the guidance of %d frames", frames);
    else
        tensor_to_host(p, e, host);
    for (size_t i = 0; host && i < half; i++) {
        float scale = guidance_at((int)(i / each), frames);
        host[i] += scale * (host[half + i] - host[i]);
    }
    tensor y = tensor_from_host(p, host, frames, e.h, e.w, e.c, DTYPE_F32);
    free(host);
    return y;
}

/* One model call: latents x [F, h, w, C], the image's [2 F, h, w, C] -> prediction [F, h, w, C]. */
static tensor predict(struct run *r, const struct unet_video_request *req, tensor x, tensor image, int i)
{
    pass *p = &r->p;
    tensor scaled = scheduler_scale_input(p, r->sched, i, x);
    tensor batch = repeat_batch(p, scaled, VIDEOS);
    tensor_free(p, &scaled);
    tensor narrow = convert(p, batch, pass_dtype(p));
    tensor_free(p, &batch);
    tensor input = concat_channels(p, narrow, image);
    tensor_free(p, &narrow);
    pass_step_begin(p);
    tensor all = unet_video_forward_cached(p, r->m->unet_video, req, input, i, run_deep(r, i));
    pass_step_end(p);
    tensor_free(p, &input);
    tensor e = p->err->code ? (tensor){0} : guide_frames(r, all);
    tensor_free(p, &all);
    return e;
}

static tensor initial_frames(struct run *r)
{
    int unit = vae_video_scale(r->m->vae_video);
    float sigma = scheduler_init_noise_sigma(r->sched);
    tensor noise = noise_draw(&r->p, &r->noise, model_frames(r->m), r->q->height / unit, r->q->width / unit,
                              vae_video_latent_channels(r->m->vae_video));
    tensor x = lincomb(&r->p, 1, &sigma, &noise);
    tensor_free(&r->p, &noise);
    return x;
}

static tensor denoise_frames(struct run *r, const struct unet_video_request *req, tensor image)
{
    pass *p = &r->p;
    tensor x = initial_frames(r);
    int calls = scheduler_calls(r->sched);
    for (int i = 0; i < calls && run_enter(r, PHASE_STEP, i + 1, calls); i++) {
        tensor e = predict(r, req, x, image, i);
        if (p->err->code)
            break;
        tensor next = scheduler_step(p, r->sched, i, e, x, &r->noise);
        tensor_free(p, &e);
        tensor_free(p, &x);
        x = next;
        r->times.calls++;
    }
    run_deep_end(r);
    return x;
}

/* ---- The frames ---- */

/* Frames Y [n, H, W, 3], the first of them number FIRST, to the sink one by one through FRAME. */
static void give_frames(struct run *r, tensor y, int first, struct image *frame)
{
    const struct frame_sink *sink = r->q->video->sink;
    struct error *err = r->p.err;
    for (int i = 0; i < y.n && !err->code; i++) {
        int rc = run_to_rgb8(r, tensor_batch(y, i, 1), frame);
        if (rc || err->code || r->planning)
            continue;
        rc = sink->frame(sink->ctx, first + i, model_frames(r->m), frame, err);
        if (rc < 0 && !err->code)
            error_set(err, rc, "frame %d could not be given out", first + i);
    }
}

/* decode_latents, DECODE_CHUNK frames at a time: no more are alive at once. */
static void decode_frames(struct run *r, tensor x, struct image *frame)
{
    pass *p = &r->p, of_vae = run_vae_pass(r);
    float coef = 1.0f / vae_video_scaling_factor(r->m->vae_video);
    if (p->err->code)
        return;
    tensor z = lincomb(p, 1, &coef, &x);
    for (int f = 0; f < z.n && run_enter(r, PHASE_DECODE, 0, 0); f += DECODE_CHUNK) {
        int n = z.n - f < DECODE_CHUNK ? z.n - f : DECODE_CHUNK;
        tensor y = vae_video_decode(&of_vae, r->m->vae_video, tensor_batch(z, f, n), n);
        if (!p->err->code)
            give_frames(r, y, f, frame);
        tensor_free(p, &y);
    }
    tensor_free(p, &z);
}

/* The safety checker looks at the input picture; what it says goes for every frame. */
static void check_safety(struct run *r, struct image *frame)
{
    struct image input = r->planning ? (struct image){0} : *r->q->image;
    safety_apply(&r->p, r->m->safety, r->q->safety_check, &input);
    frame->nsfw = input.nsfw;
}

/* __call__ from the picture to the last frame. */
static void make_frames(struct run *r, float *embeds, struct image *frame)
{
    pass *p = &r->p;
    run_enter(r, PHASE_TEXT, 0, 0);
    check_safety(r, frame);
    encode_vision(r, embeds);
    tensor image = encode_noised(r);
    struct unet_video_request *req = begin(r, embeds);
    run_phase_end(r, &r->times.text);
    tensor x = p->err->code ? (tensor){0} : denoise_frames(r, req, image);
    unet_video_end(p, &req);
    tensor_free(p, &image);
    scheduler_end(p, &r->sched);
    run_phase_end(r, &r->times.steps);
    decode_frames(r, x, frame);
    tensor_free(p, &x);
    run_phase_end(r, &r->times.decode);
}

static void call_video(struct run *r)
{
    const struct request *q = r->q;
    float *embeds = calloc(VIDEOS * (size_t)clip_vision_projection(r->m->vision), sizeof *embeds);
    struct image frame = {.width = q->width, .height = q->height};
    if (!r->planning)
        frame.rgb = malloc(3 * (size_t)q->width * (size_t)q->height);
    if (!embeds || (!frame.rgb && !r->planning))
        error_set(r->p.err, ERR_NOMEM, "no memory for a frame of %d x %d", q->width, q->height);
    else
        make_frames(r, embeds, &frame);
    image_free(&frame);
    free(embeds);
}

/* ---- The door ---- */

static int check_inputs(const struct model *m, const struct image_to_video_params *q,
                        const struct request *size, struct error *err)
{
    int unit = m->family == FAMILY_VIDEO ? vae_video_scale(m->vae_video) : 0;
    if (!unit)
        return error_set(err, ERR_UNSUPPORTED, "%s makes pictures, not videos", m->id);
    if (unit < 8)
        unit = 8;
    if (size->height % unit != 0 || size->width % unit != 0)
        return error_set(err, ERR_INVALID,
                         "`height` and `width` have to be divisible by %d but are %d and %d", unit,
                         size->height, size->width);
    if (size->height < unit || size->width < unit || size->height > SIDE_MAX || size->width > SIDE_MAX)
        return error_set(err, ERR_INVALID, "`height` and `width` have to be %d to %d but are %d and %d", unit,
                         SIDE_MAX, size->height, size->width);
    if (q->fps < 1)
        return error_set(err, ERR_INVALID, "`fps` has to be at least 1 but is %lld", (long long)q->fps);
    if (!isfinite(q->noise_aug_strength))
        return error_set(err, ERR_INVALID, "`noise_aug_strength` has to be a finite number");
    if (!q->image || q->image->width < 1 || q->image->height < 1)
        return error_set(err, ERR_INVALID, "`image` has no pixels");
    return 0;
}

static int make_request(const struct model *m, const struct image_to_video_params *q,
                        const struct frame_sink *sink, struct video_request *video, struct request *out,
                        struct error *err)
{
    int native = m->family == FAMILY_VIDEO ? model_native_size(m) : 0;
    int steps = request_steps(q->steps, STEPS_DEFAULT, err);
    if (steps < 0)
        return steps;
    *video = (struct video_request){.sink = sink,
                                    .fps = (double)q->fps - 1,
                                    .motion = (double)q->motion_bucket_id,
                                    .noise = q->noise_aug_strength};
    *out = (struct request){.call_video = call_video,
                            .video = video,
                            .width = q->width ? q->width : native,
                            .height = q->height ? q->height : native,
                            .image = q->image,
                            .steps = steps,
                            .seed = q->seed,
                            .safety_check = q->safety_check,
                            .exact_times = q->exact_times};
    return check_inputs(m, q, out, err);
}

int image_to_video_plan(struct model *m, const struct image_to_video_params *params,
                        struct plan_report *report, struct error *err)
{
    struct request q;
    struct video_request video;
    int rc = make_request(m, params, NULL, &video, &q, err);
    return rc ? rc : request_plan(m, &q, report, err);
}

int image_to_video_admit(struct model *m, const struct image_to_video_params *params, struct error *err)
{
    struct request q;
    struct video_request video;
    int rc = make_request(m, params, NULL, &video, &q, err);
    return rc ? rc : request_admit(m, &q, err);
}

int image_to_video(struct model *m, const struct image_to_video_params *params, const struct watcher *watch,
                   const struct frame_sink *sink, struct error *err)
{
    struct request q;
    struct video_request video;
    int rc = make_request(m, params, sink, &video, &q, err);
    return rc ? rc : request_run(m, &q, watch, NULL, err);
}
