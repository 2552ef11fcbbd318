/* From checked parameters to pixels. One model is loaded for the life of the process; one thread runs
 * pipelines. */
#ifndef LATENTD_PIPELINE_H
#define LATENTD_PIPELINE_H

#include "backend.h"
#include "image.h"
#include "phase.h"
#include "plan.h"

struct model;

enum pipeline_kind {
    PIPELINE_TEXT_TO_IMAGE,
    PIPELINE_IMAGE_TO_IMAGE,
    PIPELINE_IMAGE_TO_VIDEO,
    PIPELINE_UPSCALE
};

/* The kind of the pipeline that is called NAME ("image-to-video"). ERR_UNSUPPORTED lists those that are
 * built. */
int pipeline_named(const char *name, enum pipeline_kind *kind, struct error *err);

struct model_options {
    enum pipeline_kind pipeline; /* PIPELINE: image-to-image also loads the VAE's encoder */
    const char *dir;             /* root that holds the model */
    const char *shelf;           /* root of LoRAs and of the safety checker: MODEL_DIR; NULL: DIR */
    const char *id;              /* MODEL_ID */
    bool safety_on_cpu;          /* SAFETY_CHECKER_DEVICE: checkers leave the model's device alone */
    bool deepcache;              /* DEEPCACHE: left off, with a warning, for turbo and lightning ids */
};

/* Finds the model's folder and loads tokenizers, text encoders, UNet, VAE and scheduler config from it
 * (diffusers layout, model_index.json; or one checkpoint file). Checks that their sizes fit together. A
 * pipeline class that is not built, or InstructPix2Pix for text-to-image, is ERR_UNSUPPORTED; a component
 * that is missing is named. The backend must outlive the model. */
int model_load(struct model **m, struct backend *be, const struct model_options *opt, struct error *err);
void model_close(struct model **m);
/* Runs what requests of KIND, the pipeline of the model, will run, at its default size, so that the first of
 * them finds memory taken, kernels chosen and steps captured. Errors as those of a request. */
int pipeline_warm_up(struct model *m, enum pipeline_kind kind, const struct watcher *watch,
                     struct error *err);
const char *model_id(const struct model *m);
/* Native side in pixels: unet.sample_size x vae scale. */
int model_native_size(const struct model *m);
struct backend *model_backend(const struct model *m);
/* Job memory that the model keeps for the next job, in bytes; it is given back when a few jobs in a row need
 * less than half of it. Any thread. */
size_t model_job_bytes(const struct model *m);
/* Gives job memory back: nothing runs for a while. Only the thread that runs pipelines. */
void model_rest(struct model *m);
/* Default size of a text-to-image request: 1024x576, or the native square when the native side is below 512.
 */
void model_default_size(const struct model *m, int *width, int *height);

/* LoRAs of a request: models below MODEL_DIR, each with its strength. */
enum { LORAS_MAX = 4 };
struct lora_choice {
    const char *id;
    float strength;
};
struct loras {
    int count;
    struct lora_choice item[LORAS_MAX];
};

struct text_to_image_params {
    const char *prompt; /* UTF-8, NUL-terminated; split at '|' by the caller: the first part */
    const char *negative_prompt;
    const char *prompt_2,
        *negative_prompt_2; /* the second part, for SDXL's second encoder; NULL: the first again */
    struct loras loras;
    bool safety_check; /* run the safety checker, where there is one; a model's own always runs */
    int width, height;
    double guidance_scale;
    int64_t steps;    /* below 1: the pipeline's default, 50 */
    int64_t seed;     /* negative: 2^64 is added, as torch does */
    bool exact_times; /* waits for the device between phases, so that model_last_times() is theirs; slower */
};

/* Makes one picture. Errors of the parameters are ERR_INVALID with diffusers' words ("`height` and `width`
 * have to be divisible by 8 but are 513 and 512."); too large for memory: ERR_NOMEM before any work; watcher
 * says stop: ERR_CANCELLED before the next step. On success OUT owns its pixels. */
int text_to_image(struct model *m, const struct text_to_image_params *params, const struct watcher *watch,
                  struct image *out, struct error *err);
/* The same checks and the same walk on the plan backend, without computing: what a run would cost. Safe to
 * call from any thread while another one runs text_to_image. */
int text_to_image_plan(struct model *m, const struct text_to_image_params *params, struct plan_report *report,
                       struct error *err);
/* Checks the parameters and whether it fits into memory now: 0, ERR_INVALID or ERR_NOMEM. Any thread. */
int text_to_image_admit(struct model *m, const struct text_to_image_params *params, struct error *err);
/* The model's own rules on parameters, by id (contract 3.3 and 3.4, docs/models.md). Sides of 0 become the
 * model's native one as in diffusers: SDXL's that side, of the others both. */
void text_to_image_rules(const struct model *m, struct text_to_image_params *params);

/* ---- Image-to-image: StableDiffusionImg2ImgPipeline, its SDXL twin, and InstructPix2Pix, by the model ----
 */

struct image_to_image_params {
    const char *prompt, *negative_prompt; /* UTF-8, not split at '|'; NULL: no negative prompt, which SDXL
                                             tells from an empty one */
    const struct image *image; /* as the client sent it, 8-bit RGB; cut down to multiples of 8 here */
    double strength, guidance_scale, image_guidance_scale;
    int64_t steps; /* below 1: the pipeline's default, 50; 100 for InstructPix2Pix */
    int64_t seed;  /* as above */
    struct loras loras;
    bool safety_check, exact_times;
};

/* As their text-to-image twins. Only image->width and height are read for a plan or an admission. Strength
 * outside 0..1, or so low that no step is left, is ERR_INVALID; a model loaded for text-to-image alone
 * ERR_UNSUPPORTED. */
int image_to_image(struct model *m, const struct image_to_image_params *params, const struct watcher *watch,
                   struct image *out, struct error *err);
int image_to_image_plan(struct model *m, const struct image_to_image_params *params,
                        struct plan_report *report, struct error *err);
int image_to_image_admit(struct model *m, const struct image_to_image_params *params, struct error *err);
void image_to_image_rules(const struct model *m, struct image_to_image_params *params);

/* ---- Image-to-video: StableVideoDiffusionPipeline ---- */

struct image_to_video_params {
    const struct image *image; /* as the client sent it, 8-bit RGB */
    int width, height;         /* of the frames; 0: the UNet's own size */
    int64_t fps;               /* at least 1; the UNet is told fps - 1 */
    int64_t motion_bucket_id;
    double noise_aug_strength;
    int64_t steps;     /* below 1: the pipeline's default, 25 */
    int64_t seed;      /* as above */
    bool safety_check; /* of the input picture; the flag is every frame's */
    bool exact_times;
};

/* Takes the frames of a run, in order of time, as chunks of them are decoded: INDEX of COUNT. FRAME is lent
 * for the call. On the worker thread; a negative return (with words in ERR) ends the run with that code. */
struct frame_sink {
    int (*frame)(void *ctx, int index, int count, const struct image *frame, struct error *err);
    void *ctx;
};

/* As text_to_image(), but the frames go to SINK: unet.num_frames of them. Cancelled between steps and between
 * decoded chunks. */
int image_to_video(struct model *m, const struct image_to_video_params *params, const struct watcher *watch,
                   const struct frame_sink *sink, struct error *err);
int image_to_video_plan(struct model *m, const struct image_to_video_params *params,
                        struct plan_report *report, struct error *err);
int image_to_video_admit(struct model *m, const struct image_to_video_params *params, struct error *err);
/* Frames that the model makes: its UNet's num_frames. */
int model_frames(const struct model *m);

/* ---- Upscale: StableDiffusionUpscalePipeline ---- */

/* Pictures of more than UPSCALE_WHOLE_PIXELS, whose results the VAE tiles too, go through the UNet in areas
 * of as many pixels at most, which overlap by a quarter: at every step, and stepped together, so that no
 * seams show. diffusers has no such thing and runs out of memory. */
enum { UPSCALE_WHOLE_PIXELS = 512 * 512 };

struct upscale_params {
    const char *prompt, *negative_prompt; /* as image_to_image_params */
    const struct image *image; /* 8-bit RGB, cut to multiples of vae_scale (4); comes out so many times as
                                  wide and high */
    double guidance_scale;     /* diffusers' default is 9 */
    int64_t steps;             /* below 1: the pipeline's default, 75 */
    int64_t seed;              /* as above */
    int whole_pixels;          /* in the place of UPSCALE_WHOLE_PIXELS; 0: that */
    bool safety_check, exact_times;
};

/* As their image-to-image twins. The noise on the picture that comes in is of level 20, diffusers' default.
 */
int upscale(struct model *m, const struct upscale_params *params, const struct watcher *watch,
            struct image *out, struct error *err);
int upscale_plan(struct model *m, const struct upscale_params *params, struct plan_report *report,
                 struct error *err);
int upscale_admit(struct model *m, const struct upscale_params *params, struct error *err);

/* Tokens of the request's prompts that did not fit into the text encoder, summed; 0: nothing was cut. For the
 * warning header; tokenizes only, so any thread may ask. */
int model_prompt_cut(const struct model *m, const char *prompt, const char *negative_prompt);

/* Seconds spent in each phase of the last run on this model. */
struct phase_times {
    double text, steps, decode; /* text: with the input picture's latents; decode: with the safety check */
    int calls;                  /* UNet calls */
};
const struct phase_times *model_last_times(const struct model *m);

#endif
