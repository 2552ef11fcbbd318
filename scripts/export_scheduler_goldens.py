#!/usr/bin/env python3
"""Writes tests/golden/data/schedulers: whole trajectories of diffusers' schedulers under published configs.

The model is a fixed function of its input and the timestep (see fake_model, which tests/unit/test_schedulers.c repeats), so
only the scheduler is on trial. Noise is what torch.randn draws on a CUDA generator, redone here in numpy.

Needs: pip install torch diffusers numpy scipy torchsde.   Run: scripts/export_scheduler_goldens.py [OUT [NAME...]]

trajectory.bin, little endian: "LDTR", u32 version 1, u64 seed, u32 n h w c, u32 runs; for each run: i32 steps, i32 calls
(-1: diffusers refuses), u32 whether latents follow, f32 init_noise_sigma, f32 timesteps[calls], and, when they follow,
f32 latents[calls + 1][n h w c]. A run with latents begins with init_noise_sigma times the first draw.

strength.bin: the same with version 2, for image-to-image. Each run's steps are followed by i32 skipped, the steps that its
strength leaves out, and its latents begin with add_noise(fake_image(), the first draw).
"""
import importlib
import inspect
import json
import struct
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch

SEED = 1234567890123
SHAPE = (1, 4, 2, 2)  # N C H W
STEPS = [1, 2, 4, 20, 50]  # with latents
STRENGTHS = [(10, 0.05), (10, 0.1), (10, 0.35), (4, 0.5), (10, 1.0)]  # steps, strength
STEPS_ONLY = [3, 7, 9, 11, 13, 25, 30, 33, 37, 60, 99]  # timesteps alone

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "trained_betas": None}
PNDM = {"_class_name": "PNDMScheduler", **SD, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
DDIM = {"_class_name": "DDIMScheduler", **SD, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
EULER = {"_class_name": "EulerDiscreteScheduler", **SD, "steps_offset": 1, "interpolation_type": "linear", "use_karras_sigmas": False,
         "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "sample_max_value": 1.0}
ANCESTRAL = {"_class_name": "EulerAncestralDiscreteScheduler", **SD, "steps_offset": 1}
DPM = {"_class_name": "DPMSolverMultistepScheduler", **SD, "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint",
       "lower_order_final": True, "euler_at_final": False, "lambda_min_clipped": -float("inf"), "variance_type": None,
       "thresholding": False, "use_karras_sigmas": False, "steps_offset": 1, "timestep_spacing": "leading"}
LCM = {"_class_name": "LCMScheduler", **SD, "original_inference_steps": 50, "timestep_scaling": 10.0, "set_alpha_to_one": True,
       "clip_sample": False, "clip_sample_range": 1.0, "rescale_betas_zero_snr": False, "timestep_spacing": "leading", "steps_offset": 1}
MINIMUM = {"final_sigmas_type": "sigma_min"}
KARRAS = {"use_karras_sigmas": True}

CONFIGS = {
    # as published
    "sd15_pndm": PNDM,
    "sd2_pndm_v": {**PNDM, "prediction_type": "v_prediction"},
    "sd21_ddim_v": {**DDIM, "prediction_type": "v_prediction"},
    "sd_turbo_euler": {**EULER, "timestep_spacing": "trailing", "timestep_type": "discrete"},
    "sdxl_turbo_euler_ancestral": {**ANCESTRAL, "timestep_spacing": "trailing"},
    "sdxl_euler": {**EULER, "timestep_spacing": "leading"},
    "lightning_euler": {**EULER, "timestep_spacing": "trailing", "beta_schedule": "scaled_linear", "final_sigmas_type": "zero"},
    "lcm_dreamshaper": LCM,
    "dpmpp_2m_karras": {**DPM, "use_karras_sigmas": True},
    "dpmpp_2m": DPM,
    "playground_dpmpp_2m_linspace": {**DPM, "timestep_spacing": "linspace"},
    "svd_euler_v_continuous": {**EULER, "prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True,
                               "sigma_min": 0.002, "sigma_max": 700.0, "timestep_spacing": "leading"},
    "pix2pix_euler_ancestral": {**ANCESTRAL, "prediction_type": "epsilon", "timestep_spacing": "leading"},
    "ddpm_pndm_prk": {"_class_name": "PNDMScheduler", "beta_schedule": "linear", "num_train_timesteps": 1000},
    "zero_snr_ddim_v": {**DDIM, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "zero_snr_euler_v": {**EULER, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    # the other values of each field
    "pndm_prk_v_linspace": {**PNDM, "skip_prk_steps": False, "prediction_type": "v_prediction", "timestep_spacing": "linspace"},
    "pndm_prk_trailing": {**PNDM, "skip_prk_steps": False, "timestep_spacing": "trailing"},
    "pndm_trailing_one": {**PNDM, "timestep_spacing": "trailing", "set_alpha_to_one": True},
    "pndm_linspace": {**PNDM, "timestep_spacing": "linspace"},
    "ddim_defaults": {"_class_name": "DDIMScheduler"},
    "ddim_sample_clip": {**DDIM, "prediction_type": "sample", "clip_sample": True, "clip_sample_range": 1.5, "set_alpha_to_one": True},
    "ddim_v_clip_linspace": {**DDIM, "prediction_type": "v_prediction", "clip_sample": True, "timestep_spacing": "linspace"},
    "ddim_trailing": {**DDIM, "timestep_spacing": "trailing"},
    "ddim_cosine": {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
    "ddim_trained_betas": {"_class_name": "DDIMScheduler", "num_train_timesteps": 60, "clip_sample": False,
                           "trained_betas": [round(0.0005 + 0.002 * i + 0.00001 * (i * i % 7), 6) for i in range(60)]},
    "euler_linspace_karras": {**EULER, "use_karras_sigmas": True, "timestep_spacing": "linspace"},
    "euler_linspace": {**EULER, "timestep_spacing": "linspace"},
    "euler_log_linear": {**EULER, "interpolation_type": "log_linear", "timestep_spacing": "linspace"},
    "euler_exponential": {**EULER, "use_exponential_sigmas": True, "timestep_spacing": "trailing"},
    "euler_sample_min": {**EULER, **MINIMUM, "prediction_type": "sample", "timestep_spacing": "leading"},
    "euler_ancestral_v_linspace": {**ANCESTRAL, "prediction_type": "v_prediction"},
    "euler_ancestral_zero_snr_v": {**ANCESTRAL, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "dpmpp_1": {**DPM, "solver_order": 1, "timestep_spacing": "trailing"},
    "dpmpp_3_karras_v": {**DPM, "solver_order": 3, "use_karras_sigmas": True, "prediction_type": "v_prediction"},
    "dpmpp_3_long": {**DPM, **MINIMUM, "solver_order": 3, "lower_order_final": False, "timestep_spacing": "trailing"},
    "dpmpp_2_heun": {**DPM, "solver_type": "heun", "euler_at_final": True},
    "dpmpp_2_sample_exponential": {**DPM, "prediction_type": "sample", "use_exponential_sigmas": True},
    "dpmpp_2_lu": {**DPM, "use_lu_lambdas": True},
    "dpmpp_2_cosine_karras": {**DPM, "beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True, "timestep_spacing": "linspace"},
    "dpmpp_2_cosine_clipped": {**DPM, "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "timestep_spacing": "linspace"},
    "dpm_2": {**DPM, **MINIMUM, "algorithm_type": "dpmsolver"},
    "dpm_2_heun_v": {**DPM, **MINIMUM, "algorithm_type": "dpmsolver", "solver_type": "heun", "prediction_type": "v_prediction"},
    "dpm_3": {**DPM, **MINIMUM, "algorithm_type": "dpmsolver", "solver_order": 3, "prediction_type": "sample"},
    "sde_dpmpp_2_karras": {**DPM, "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    "sde_dpmpp_2_heun": {**DPM, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    "sde_dpmpp_3": {**DPM, "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    "sde_dpm_2": {**DPM, **MINIMUM, "algorithm_type": "sde-dpmsolver"},
    "sde_dpm_2_heun": {**DPM, **MINIMUM, "algorithm_type": "sde-dpmsolver", "solver_type": "heun"},
    "lcm_v_clip": {**LCM, "timestep_scaling": 0.02, "prediction_type": "v_prediction", "clip_sample": True, "original_inference_steps": 20},
    "lcm_sample_zero_snr": {**LCM, "prediction_type": "sample", "rescale_betas_zero_snr": True, "original_inference_steps": 100},
}

V, SAMPLE = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
SIGMAS = {**SD, "steps_offset": 1, "prediction_type": "epsilon"}
HEUN = {"_class_name": "HeunDiscreteScheduler", **SIGMAS, "timestep_spacing": "leading"}
LMS = {"_class_name": "LMSDiscreteScheduler", **SIGMAS, "timestep_spacing": "linspace"}
KDPM2 = {"_class_name": "KDPM2DiscreteScheduler", **SIGMAS, "timestep_spacing": "leading"}
KDPM2A = {"_class_name": "KDPM2AncestralDiscreteScheduler", **SIGMAS, "timestep_spacing": "leading"}
SDE = {"_class_name": "DPMSolverSDEScheduler", **SIGMAS, "timestep_spacing": "leading"}
SINGLE = {"_class_name": "DPMSolverSinglestepScheduler", **SD, "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint",
          "lower_order_final": True, "lambda_min_clipped": -float("inf"), "variance_type": None, "thresholding": False}
DEIS = {"_class_name": "DEISMultistepScheduler", **SD, "algorithm_type": "deis", "solver_order": 2, "solver_type": "logrho",
        "lower_order_final": True, "steps_offset": 1, "timestep_spacing": "leading"}
UNIPC = {"_class_name": "UniPCMultistepScheduler", **SD, "solver_order": 2, "solver_type": "bh2", "predict_x0": True, "lower_order_final": True,
         "disable_corrector": [], "solver_p": None, "steps_offset": 1, "timestep_spacing": "leading", "thresholding": False}
DDPM = {"_class_name": "DDPMScheduler", **SD, "variance_type": "fixed_small", "clip_sample": False, "steps_offset": 1, "timestep_spacing": "leading"}
TCD = {**LCM, "_class_name": "TCDScheduler"}
EDM = {"num_train_timesteps": 1000, "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "rho": 7.0}
EDM_EULER = {"_class_name": "EDMEulerScheduler", **EDM, "sigma_max": 120.0, "sigma_data": 1.0, **V}
EDM_DPM = {"_class_name": "EDMDPMSolverMultistepScheduler", **EDM, "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint",
           "lower_order_final": True, "euler_at_final": False, "final_sigmas_type": "zero", "thresholding": False}

# Configs with fewer step counts, to keep the files small.
FEW = [1, 2, 4, 15]
FEW_ONLY = [3, 7, 25, 60]
MORE_CONFIGS = {
    "euler_beta": {**EULER, "use_beta_sigmas": True, "timestep_spacing": "leading"},
    "euler_ancestral_ignores": {**ANCESTRAL, **KARRAS, **MINIMUM, "interpolation_type": "log_linear"},
    "dpmpp_2_beta": {**DPM, "use_beta_sigmas": True},
    "dpmpp_2_other_solver": {**DPM, **MINIMUM, "solver_type": "bh2", "algorithm_type": "deis"},
    "heun": HEUN,
    "heun_karras": {**HEUN, **KARRAS, "timestep_spacing": "linspace"},
    "heun_v_trailing": {**HEUN, **V, "timestep_spacing": "trailing"},
    "heun_sample_clip": {**HEUN, **SAMPLE, "clip_sample": True, "clip_sample_range": 0.8, "use_exponential_sigmas": True},
    "heun_exp": {"_class_name": "HeunDiscreteScheduler", "beta_schedule": "exp", "use_beta_sigmas": True},
    "lms": LMS,
    "lms_karras": {**LMS, **KARRAS, "sigma_min": 0.1, "sigma_max": 10.0},
    "lms_v_exponential": {**LMS, **V, "use_exponential_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0, "timestep_spacing": "leading"},
    "lms_sample_beta": {**LMS, **SAMPLE, "use_beta_sigmas": True, "timestep_spacing": "trailing"},
    "k_dpm_2": KDPM2,
    "k_dpm_2_karras": {**KDPM2, **KARRAS, "timestep_spacing": "linspace"},
    "k_dpm_2_v_exponential": {**KDPM2, **V, "use_exponential_sigmas": True, "timestep_spacing": "trailing"},
    "k_dpm_2_ancestral": KDPM2A,
    "k_dpm_2_ancestral_karras": {**KDPM2A, **KARRAS, "timestep_spacing": "linspace"},
    "k_dpm_2_ancestral_v_beta": {**KDPM2A, **V, "use_beta_sigmas": True, "timestep_spacing": "trailing"},
    "dpmpp_sde": SDE,
    "dpmpp_sde_karras": {**SDE, **KARRAS, "timestep_spacing": "linspace"},
    "dpmpp_sde_v_trailing": {**SDE, **V, "timestep_spacing": "trailing"},
    "single_2": SINGLE,
    "single_2_karras": {**SINGLE, **KARRAS},
    "single_3": {**SINGLE, "solver_order": 3},
    "single_3_heun_v": {**SINGLE, **V, "solver_order": 3, "solver_type": "heun"},
    "single_2_heun_sample": {**SINGLE, **SAMPLE, "solver_type": "heun", "lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
    "single_3_even": {**SINGLE, **MINIMUM, "solver_order": 3, "lower_order_final": False},
    "single_dpm_2": {**SINGLE, **MINIMUM, "algorithm_type": "dpmsolver"},
    "single_dpm_3_heun_v": {**SINGLE, **MINIMUM, **V, "algorithm_type": "dpmsolver", "solver_order": 3, "solver_type": "heun"},
    "single_dpm_3_exponential": {**SINGLE, **MINIMUM, "algorithm_type": "dpmsolver", "solver_order": 3, "use_exponential_sigmas": True},
    "single_sde_2": {**SINGLE, "algorithm_type": "sde-dpmsolver++"},
    "single_sde_2_heun": {**SINGLE, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    "single_sde_3": {**SINGLE, "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    "single_sde_3_heun": {**SINGLE, "algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"},
    "single_1_beta": {**SINGLE, "solver_order": 1, "use_beta_sigmas": True},
    "deis_2": DEIS,
    "deis_1_v": {**DEIS, **V, "solver_order": 1, "timestep_spacing": "linspace"},
    "deis_3": {**DEIS, "solver_order": 3, "timestep_spacing": "trailing"},
    "deis_3_karras_long": {**DEIS, **KARRAS, "solver_order": 3, "lower_order_final": False},
    "deis_2_sample_exponential": {**DEIS, **SAMPLE, "use_exponential_sigmas": True, "algorithm_type": "dpmsolver++", "solver_type": "midpoint"},
    "unipc_2": UNIPC,
    "unipc_2_karras": {**UNIPC, **KARRAS, "timestep_spacing": "linspace"},
    "unipc_3": {**UNIPC, "solver_order": 3},
    "unipc_1_v": {**UNIPC, **V, "solver_order": 1, "timestep_spacing": "trailing"},
    "unipc_3_bh1": {**UNIPC, **MINIMUM, "solver_order": 3, "solver_type": "bh1"},
    "unipc_2_karras_minimum": {**UNIPC, **KARRAS, **MINIMUM, "lower_order_final": False},
    "unipc_2_noise": {**UNIPC, **MINIMUM, "predict_x0": False, "disable_corrector": [0, 1, 4]},
    "unipc_3_noise_v": {**UNIPC, **MINIMUM, **V, "predict_x0": False, "solver_order": 3, "use_exponential_sigmas": True},
    "unipc_2_noise_sample": {**UNIPC, **MINIMUM, **SAMPLE, "predict_x0": False},
    "unipc_2_zero_snr_v": {**UNIPC, **V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "ddpm": DDPM,
    "ddpm_defaults": {"_class_name": "DDPMScheduler"},
    "ddpm_v_large": {**DDPM, **V, "variance_type": "fixed_large", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    "ddpm_sample_log": {**DDPM, **SAMPLE, "variance_type": "fixed_small_log", "timestep_spacing": "linspace", "clip_sample": True},
    "ddpm_sigmoid": {**DDPM, "beta_schedule": "sigmoid"},
    "ddpm_laplace": {**DDPM, "beta_schedule": "laplace", **SAMPLE},
    "tcd": TCD,
    "tcd_v": {**TCD, **V, "original_inference_steps": 100},
    "cosxl_edm_euler": EDM_EULER,
    "edm_euler_exponential": {**EDM_EULER, **MINIMUM, "prediction_type": "epsilon", "sigma_schedule": "exponential", "sigma_data": 0.5, "sigma_max": 14.6},
    "playground_edm_dpm": EDM_DPM,
    "edm_dpm_3_v": {**EDM_DPM, **V, "solver_order": 3, "sigma_schedule": "exponential", "rho": 5.0},
    "edm_dpm_2_heun_minimum": {**EDM_DPM, "solver_type": "heun", "euler_at_final": True, **MINIMUM},
    "edm_sde_2": {**EDM_DPM, "algorithm_type": "sde-dpmsolver++"},
    "tcd_sample": {**TCD, **SAMPLE, "timestep_spacing": "trailing", "clip_sample": True},
}


def philox(counter, key):
    """Philox 4x32-10; counter [4][n] and key [2] of uint32."""
    c = [x.astype(np.uint64) for x in counter]
    k = [np.uint64(x) for x in key]
    low = np.uint64(0xFFFFFFFF)
    for i in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ k[0], b & low, (a >> np.uint64(32)) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return c


def cuda_randn(shape, seed, offset):
    """torch.randn(shape) on a CUDA generator, for draws that fit one wave of the card."""
    count = int(np.prod(shape))
    i = np.arange(count, dtype=np.uint64)
    block = np.uint64(offset // 4)
    x = philox([i * 0 + (block & 0xFFFFFFFF), i * 0 + (block >> np.uint64(32)), i & 0xFFFFFFFF, i >> np.uint64(32)],
               [seed & 0xFFFFFFFF, seed >> 32])
    unit, f = np.float32(2.0**-32), np.float32
    u = x[0].astype(f) * unit + unit / f(2)
    turn = f(2.0**-32 * 6.2831855)
    v = x[1].astype(f) * turn + turn / f(2)
    z = np.sqrt(f(-2) * np.log(u)) * np.sin(v)
    return torch.from_numpy(z.astype(f).reshape(shape))


class Generator:
    def __init__(self):
        self.offset = 0

    def draw(self, shape, **_):
        count = int(np.prod(shape))
        grid = min((count + 255) // 256, 132 * 8)
        z = cuda_randn(tuple(shape), SEED, self.offset)
        self.offset += ((count - 1) // (256 * grid * 4) + 1) * 4
        return z


class BrownianPath:
    """What DPMSolverSDEScheduler asks of torchsde's Brownian tree, from increments drawn in the order of the questions: first
    from a sigma to the middle, then from the same sigma to the next."""

    def __init__(self, g):
        self.g, self.middle = g, None

    def __call__(self, sigma, to):
        sigma, to = float(sigma), float(to)
        fresh = self.g.draw(SHAPE)
        if self.middle is None:
            self.middle = to, fresh
            return fresh
        (middle, first), self.middle = self.middle, None
        return ((sigma - middle) ** 0.5 * first + (middle - to) ** 0.5 * fresh) / (sigma - to) ** 0.5


def to_nhwc(x):
    return x.permute(0, 2, 3, 1).contiguous().numpy().astype("<f4")


def fake_model(x, t):
    """0.35 x + 0.2 w + 0.1 t / 1000 in fp32, w a fixed pattern over the NHWC index."""
    n, c, h, w = x.shape
    k = torch.arange(n * h * w * c)
    pattern = ((k * 37 % 64).float() - 31.5) / 20
    pattern = pattern.reshape(n, h, w, c).permute(0, 3, 1, 2)
    shift = torch.tensor(0.1, dtype=torch.float32) * (torch.as_tensor(t, dtype=torch.float32) / 1000)
    return 0.35 * x + 0.2 * pattern + shift


def fake_image():
    n, c, h, w = SHAPE
    k = torch.arange(n * h * w * c)
    return (((k * 29 % 32).float() - 15.5) / 16).reshape(n, h, w, c).permute(0, 3, 1, 2)


def first_latents(scheduler, g, skipped):
    """Timesteps and latents that a pipeline's loop begins with; SKIPPED None: text-to-image."""
    if skipped is None:
        return scheduler.timesteps, g.draw(SHAPE) * scheduler.init_noise_sigma
    first = skipped * scheduler.order  # get_timesteps of StableDiffusionImg2ImgPipeline
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    if len(timesteps) == 0:
        return timesteps, None  # diffusers goes on with a batch of no pictures
    return timesteps, scheduler.add_noise(fake_image(), g.draw(SHAPE), timesteps[:1].repeat(SHAPE[0]))


def run(scheduler, steps, latents, skipped=None):
    g = Generator()
    module = importlib.import_module(type(scheduler).__module__)
    module.randn_tensor = g.draw
    module.BrownianTreeNoiseSampler = lambda *_: BrownianPath(g)
    # The pipelines pass their own eta, 0, to the schedulers that know one.
    eta = {"eta": 0.0} if "eta" in inspect.signature(scheduler.step).parameters else {}
    asked = struct.pack("<i", steps) if skipped is None else struct.pack("<ii", steps, skipped)
    try:
        scheduler.set_timesteps(steps)
        if skipped is not None and len(scheduler.timesteps) > 1 and scheduler.timesteps[0] == scheduler.timesteps[1]:
            raise ValueError("the first two timesteps are equal")  # latentd refuses these steps as text-to-image does
        timesteps, x = first_latents(scheduler, g, skipped)
        times = timesteps.to(torch.float32).numpy()
        if x is None:
            return asked + struct.pack("<iIf", 0, 0, float(scheduler.init_noise_sigma))
        path = [to_nhwc(x)]
        for t in timesteps:
            e = fake_model(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(e, t, x, return_dict=False, **eta)[0]
            path.append(to_nhwc(x))
    except (ValueError, IndexError) as e:
        print(f"  {steps} steps: {str(e).splitlines()[0][:90]}")
        return asked + struct.pack("<iIf", -1, 0, 0)
    assert np.isfinite(np.stack(path)).all()
    head = asked + struct.pack("<iIf", len(times), latents, float(scheduler.init_noise_sigma))
    return head + times.astype("<f4").tobytes() + (np.stack(path).tobytes() if latents else b"")


def write(path, version, runs):
    n, c, h, w = SHAPE
    path.write_bytes(b"LDTR" + struct.pack("<IQIIIII", version, SEED, n, h, w, c, len(runs)) + b"".join(runs))


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/data/schedulers")
    for name, config in {**CONFIGS, **MORE_CONFIGS}.items():
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        print(name)
        cls = getattr(diffusers, config["_class_name"])
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scheduler_config.json").write_text(json.dumps(config, indent=2) + "\n")
        steps, steps_only = (STEPS, STEPS_ONLY) if name in CONFIGS else (FEW, FEW_ONLY)
        if name in CONFIGS and name.startswith(("dpm", "sde")):
            steps = steps + [14, 15]  # lower_order_final asks for fewer than 15
        runs = [run(cls.from_config(config), s, True) for s in steps]
        runs += [run(cls.from_config(config), s, False) for s in steps_only]
        write(folder / "trajectory.bin", 1, runs)
        runs = [run(cls.from_config(config), n, True, n - min(int(n * strength), n)) for n, strength in STRENGTHS]
        write(folder / "strength.bin", 2, runs)


if __name__ == "__main__":
    main()
