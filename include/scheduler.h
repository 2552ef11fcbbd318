/* Schedulers: one file each under src/schedulers, all behind this door. They compute coefficients on the host
 * in double precision where diffusers does, and move latents only through the ops lincomb, clip and randn. */
#ifndef LATENTD_SCHEDULER_H
#define LATENTD_SCHEDULER_H

#include "noise.h"

struct scheduler_config;
struct scheduler;

/* Reads DIR/scheduler_config.json. An unknown _class_name is ERR_UNSUPPORTED and lists the known ones; so is
 * a field whose value is not built (names it). */
int scheduler_config_load(struct scheduler_config **c, const char *dir, struct error *err);
/* The same file under the class that model_index.json names, or a rule, as diffusers'
 * CLASS.from_config(config, timestep_spacing=SPACING) reads it: fields that it does not give take that
 * class's defaults. CLASS_NAME "" or NULL, SPACING NULL: as the file says. */
int scheduler_config_load_as(struct scheduler_config **c, const char *dir, const char *class_name,
                             const char *spacing, struct error *err);
void scheduler_config_close(struct scheduler_config **c);
const char *scheduler_config_class(const struct scheduler_config *c);
/* What StableDiffusionPipeline and its image-to-image twin change in the config they are given: steps_offset
 * becomes 1 and clip_sample false. (StableDiffusionXLPipeline does not.) */
void scheduler_config_stable_diffusion(struct scheduler_config *c);

/* diffusers' add_noise at a timestep of the training schedule: x0 and noise [N, H, W, C] F32 -> a new tensor.
 * ERR_UNSUPPORTED for a class that adds noise by a sigma. */
tensor scheduler_config_add_noise(pass *p, const struct scheduler_config *c, int timestep, tensor x0,
                                  tensor noise);

/* One run of STEPS steps. ERR_INVALID with diffusers' words when the number of steps cannot be had: more than
 * num_train_timesteps (which every scheduler here refuses; diffusers lets some through to an IndexError or to
 * noise), more than an LCM was distilled for. C must outlive the run. */
int scheduler_start(struct scheduler **s, const struct scheduler_config *c, int steps, struct error *err);
/* Image-to-image: leaves out the first STEP (0 to STEPS) of the run's steps, as diffusers does with
 * timesteps[step * order:] and set_begin_index. Called right after scheduler_start; calls, timesteps and i
 * below then count from there. No call may be left (PNDM keeps one more than the others). */
int scheduler_skip(struct scheduler *s, int step, struct error *err);
/* diffusers' add_noise at the first timestep left: x0 and noise [N, H, W, C] F32 -> latents (a new tensor;
 * not multiplied by init_noise_sigma). ERR_INVALID when no call is left. */
tensor scheduler_add_noise(pass *p, const struct scheduler *s, tensor x0, tensor noise);
void scheduler_end(pass *p, struct scheduler **s); /* gives back latents kept from earlier steps */
/* Model calls: may exceed STEPS (PNDM's warm-up). timesteps[i] is what the UNet is told at call i. */
int scheduler_calls(const struct scheduler *s);
const float *scheduler_timesteps(const struct scheduler *s);
float scheduler_init_noise_sigma(const struct scheduler *s);
/* x [N, H, W, C] F32 -> what the UNet reads at call i (a new tensor; x stays the caller's). */
tensor scheduler_scale_input(pass *p, const struct scheduler *s, int i, tensor x);
/* Model output and latents at call i -> latents for call i + 1 (a new tensor). Draws from NOISE where the
 * scheduler is stochastic, in diffusers' order. */
tensor scheduler_step(pass *p, struct scheduler *s, int i, tensor model_output, tensor x,
                      struct noise *noise);
/* The same for a model output under classifier-free guidance: PAIR [2N, H, W, C], without and with the
 * prompt, is guided by GUIDANCE inside the first sum that reads it, to the bits of the op guide before
 * scheduler_step. */
tensor scheduler_step_guided(pass *p, struct scheduler *s, int i, tensor pair, float guidance, tensor x,
                             struct noise *noise);

#endif
