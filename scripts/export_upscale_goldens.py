#!/usr/bin/env python3
"""A tiny random model of the x4 upscaler, and the pictures that diffusers makes with it in fp32.

    scripts/export_upscale_goldens.py [--out tests/golden/data/upscale]

OUT is a MODEL_DIR with latentd/upscaler: the published repository's layout, conditioning and schedulers, with a few
channels. Beside it, pictures.txt has one request a line (name, width and height of the input, seed, steps, guidance, prompt,
negative prompt) and NAME.rgb what it gives: 8-bit RGB, row by row, without a header; NAME.in.rgb is the picture that it
starts from, noised.f32 that of the first request as the UNet sees it: cut, with noise on it, [1, h, w, 3] in fp32.
tests/golden/test_upscale.c reads all of them. Noise is drawn as torch does on a CUDA generator.

Needs torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, pillow.
"""
import argparse
import pathlib
import shutil

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from export_family_goldens import TEXT, CudaGenerator, make_network, write_json, write_tokenizer

# Only the last level attends to itself, as in the published model; the first has no attention.
UNET = dict(sample_size=16, in_channels=7, out_channels=4, block_out_channels=(8, 16, 16), layers_per_block=1,
            norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
            attention_head_dim=4, only_cross_attention=(True, True, False), use_linear_projection=True, num_class_embeds=40)
VAE = dict(block_out_channels=(8, 8, 16), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
           layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=64, scaling_factor=0.08333)
BETAS = dict(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear", num_train_timesteps=1000)

# name, width and height of the input (cut to multiples of 4), seed, steps, guidance, prompt, negative prompt
CASES = [
    ("guided", 27, 18, 5, 4, 9.0, "a cat", None),
    ("negative", 24, 16, 2**33 + 1, 3, 6.0, "a red house", "rain"),
    ("unguided", 16, 20, 7, 3, 1.0, "", None),
    ("one_step", 19, 12, 0, 1, 9.0, "a cat", None),
]


def make_model(folder):
    make_network(UNet2DConditionModel, UNET, folder / "unet", 61, True)
    make_network(AutoencoderKL, VAE, folder / "vae", 62, True)
    make_network(CLIPTextModel, CLIPTextConfig(**TEXT), folder / "text_encoder", 63, True)
    write_tokenizer(folder / "tokenizer", "!")
    DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                  prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    DDPMScheduler(**dict(BETAS, beta_schedule="squaredcos_cap_v2")).save_pretrained(folder / "low_res_scheduler")
    write_json(folder / "model_index.json", dict(
        _class_name="StableDiffusionUpscalePipeline", _diffusers_version="0.31.0", feature_extractor=[None, None],
        low_res_scheduler=["diffusers", "DDPMScheduler"], max_noise_level=350, safety_checker=[None, None],
        scheduler=["diffusers", "DDIMScheduler"], text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"], unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"], watermarker=[None, None]))


def input_picture(width, height):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([(x * 9 + y * 5) % 256, (x * y * 3) % 256, 255 * ((x // 6 + y // 5) % 2)], axis=-1).astype(np.uint8)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=pathlib.Path, default="tests/golden/data/upscale")
    out = ap.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    make_model(out / "latentd/upscaler")
    pipe = StableDiffusionUpscalePipeline.from_pretrained(out / "latentd/upscaler", variant="fp16", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    add_noise, noised, lines = pipe.low_res_scheduler.add_noise, [], []

    def kept(*args):
        noised.append(add_noise(*args))
        return noised[-1]

    pipe.low_res_scheduler.add_noise = kept
    for name, width, height, seed, steps, guidance, prompt, negative in CASES:
        pixels = input_picture(width, height)
        CudaGenerator(seed, True, False).install()
        picture = pipe(prompt=prompt, image=Image.fromarray(pixels), num_inference_steps=steps, guidance_scale=guidance,
                       negative_prompt=negative, output_type="np").images[0]
        rgb = (picture * 255).round().astype(np.uint8)
        assert rgb.shape == (height // 4 * 16, width // 4 * 16, 3)
        (out / f"{name}.in.rgb").write_bytes(pixels.tobytes())
        (out / f"{name}.rgb").write_bytes(rgb.tobytes())
        texts = ["-" if t is None else f"={t}" for t in (prompt, negative)]
        lines.append("\t".join(map(str, [name, width, height, seed, steps, guidance, *texts])))
        print(f"{lines[-1]}    mean {rgb.mean():.0f}, deviation {rgb.std():.0f}, clipped {np.isin(rgb, (0, 255)).mean():.2f}")
    (out / "noised.f32").write_bytes(noised[0].permute(0, 2, 3, 1).contiguous().numpy().astype("<f4").tobytes())
    (out / "pictures.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
