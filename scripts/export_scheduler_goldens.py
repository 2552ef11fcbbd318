#!/usr/bin/env python3
"""Writes tests/golden/data/schedulers: whole trajectories of diffusers' schedulers under published configs.

The model is a fixed function of its input and the timestep (see fake_model, which tests/unit/test_schedulers.c repeats), so
only the scheduler is on trial. Noise is what torch.randn draws on a CUDA generator, redone here in numpy.

Needs: pip install torch diffusers numpy scipy.   Run: scripts/export_scheduler_goldens.py [OUT [NAME...]]

trajectory.bin, little endian: "LDTR", u32 version 1, u64 seed, u32 n h w c, u32 runs; for each run: i32 steps, i32 calls
(-1: diffusers refuses), u32 whether latents follow, f32 init_noise_sigma, f32 timesteps[calls], and, when they follow,
f32 latents[calls + 1][n h w c]. A run with latents begins with init_noise_sigma times the first draw.

strength.bin: the same with version 2, for image-to-image. Each run's steps are followed by i32 skipped, the steps that its
strength leaves out, and its latents begin with add_noise(fake_image(), the first draw).
"""
import importlib
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
    importlib.import_module(type(scheduler).__module__).randn_tensor = g.draw
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
            x = scheduler.step(e, t, x, return_dict=False)[0]
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
    for name, config in CONFIGS.items():
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        print(name)
        cls = getattr(diffusers, config["_class_name"])
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scheduler_config.json").write_text(json.dumps(config, indent=2) + "\n")
        steps = STEPS + [14, 15] * name.startswith(("dpm", "sde"))  # lower_order_final asks for fewer than 15
        runs = [run(cls.from_config(config), s, True) for s in steps]
        runs += [run(cls.from_config(config), s, False) for s in STEPS_ONLY]
        write(folder / "trajectory.bin", 1, runs)
        runs = [run(cls.from_config(config), n, True, n - min(int(n * strength), n)) for n, strength in STRENGTHS]
        write(folder / "strength.bin", 2, runs)


main()
