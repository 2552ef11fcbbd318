/* One request on its way through a pipeline: what text-to-image and image-to-image share. Private to
 * src/pipelines.
 *
 * A pipeline checks its parameters, fills a struct request and hands it to request_run, request_plan or
 * request_admit. Those call request.call, which reads like the __call__ of its diffusers twin, once on `plan`
 * and, when it fits, once on the real backend. */
#ifndef LATENTD_PIPELINES_RUN_H
#define LATENTD_PIPELINES_RUN_H

#include "model.h"

enum { SIDE_MAX = 16384, GUIDANCE_PARTS_MAX = 3, TIME_IDS_MAX = 6 };

struct run;

/* What a video is asked for beside the rest. */
struct video_request {
    const struct frame_sink *sink; /* NULL: planning */
    double fps, motion, noise;     /* as the UNet is told, fps one less; noise also as it is added */
};

struct request {
    tensor (*call)(struct run *r);           /* → picture [1, H, W, 3] F32 in about -1..1 */
    void (*call_video)(struct run *r);       /* in the place of call: gives its frames away itself */
    const char *prompt[TEXT_ENCODERS_MAX];   /* one for each text encoder */
    const char *negative[TEXT_ENCODERS_MAX]; /* negative[0] NULL: not given */
    double guidance, image_guidance;
    int width, height;                 /* of the picture to make */
    const struct image *image;         /* the input picture; NULL: none */
    const struct video_request *video; /* of call_video */
    int steps, first_step;             /* of the scheduler; the first of them that is run */
    int noise_level;                   /* class label of the UNet: noise on the low-resolution picture */
    int tile;                          /* side of the areas of latents that the UNet sees; 0: it sees all */
    int64_t seed;
    const struct loras *loras;
    bool safety_check, exact_times;
};

/* The batch of one denoising step: 1 picture; 2 with classifier-free guidance: unconditional, conditional; 3
 * with InstructPix2Pix's: conditional, image alone, unconditional. */
struct run {
    pass p;
    struct model *m;
    const struct request *q;
    const struct watcher *watch;
    bool planning;
    int parts;
    struct scheduler *sched;
    struct noise noise;
    tensor deep; /* DeepCache: what the last whole UNet call left for those after it */
    struct phase_times times;
    double phase_start;
};

/* What the UNet is told beside the latents; N = parts. */
struct conditioning {
    tensor text;                                       /* [N, 1, T, C] */
    tensor pooled;                                     /* SDXL: [N, 1, 1, P] */
    float time_ids[GUIDANCE_PARTS_MAX * TIME_IDS_MAX]; /* SDXL: [N, ids] */
};

/* ---- run.c ---- */

/* All of a request. Errors as text_to_image(): pipeline.h. */
int request_run(struct model *m, const struct request *q, const struct watcher *watch, struct image *out,
                struct error *err);
int request_plan(struct model *m, const struct request *q, struct plan_report *report, struct error *err);
int request_admit(struct model *m, const struct request *q, struct error *err);
/* Steps that a request asks for, OTHERWISE when it leaves them to the pipeline. Negative: an error. */
int request_steps(int64_t asked, int otherwise, struct error *err);
/* False when the run must end: it has failed, or nobody waits for it any more. */
bool run_goes_on(struct run *r, enum phase phase);
/* The same, and tells the watcher where the run is. */
bool run_enter(struct run *r, enum phase phase, int step, int steps);
/* The pass for the VAE, which may have a backend of its own. */
pass run_vae_pass(const struct run *r);
/* Ends the time of a phase and adds it to *SECONDS. */
void run_phase_end(struct run *r, double *seconds);
/* to_rgb8() of Y, which has OUT's size, else ERR_INTERNAL: what is not written must not be sent. */
int run_to_rgb8(struct run *r, tensor y, struct image *out);

/* ---- prompt.c ---- */

/* TEXT: the request's prompts → tokens → text encoders → what the UNet reads. */
struct conditioning encode_prompt(struct run *r);
void conditioning_free(struct run *r, struct conditioning *c);

/* ---- input_picture.c ---- */

/* Sides of an input picture cut to what the VAE can take: multiples of vae_scale. */
void input_picture_size(const struct model *m, const struct image *im, int *width, int *height);
/* The input picture stretched to WIDTH x HEIGHT, normalised: [1, H, W, 3] F32. */
tensor preprocess_picture_to(struct run *r, int width, int height, enum image_filter filter);
/* The same to the request's size, with Lanczos. */
tensor preprocess_picture(struct run *r);
/* The input picture as latents [1, h, w, C] F32: the VAE's posterior, sampled and scaled, or its mode as it
 * is. */
tensor encode_picture(struct run *r, bool sample);

/* ---- denoise.c ---- */

/* Noise of the request's size [1, h, w, C] F32, the generator's next draw. */
tensor draw_latents(struct run *r);
/* The same as the scheduler's first step expects it: where a run starts from noise alone. */
tensor initial_latents(struct run *r);
/* STEP k/n: latents X, which it takes over, → latents. IMAGE [parts, h, w, C] in the pass's type:
 * concatenated to the latents of every step (InstructPix2Pix, upscale); [1, h, w, C] in F32 where the request
 * has tiles; n = 0: none. */
tensor denoise(struct run *r, const struct conditioning *c, tensor x, tensor image);
/* DeepCache: where UNet call I reads or leaves what is below the outermost skip, made empty where the call is
 * to compute it: every third, beginning with the first. NULL: the model is run without. */
tensor *run_deep(struct run *r, int i);
/* After the last call. */
void run_deep_end(struct run *r);
/* DECODE: latents X, which it takes over, → picture [1, H, W, 3] in about -1..1. */
tensor decode_latents(struct run *r, tensor x);
/* [1, H, W, C] each, n = 0: zeros → [COUNT, H, W, C] in the type of the first that has numbers. Waits for the
 * device. */
tensor stack_pictures(struct run *r, int count, const tensor *part);

#endif
