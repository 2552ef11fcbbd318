#!/usr/bin/env python3
"""A tiny random model of Stable Video Diffusion, and the frames that diffusers makes with it in fp32.

    scripts/export_image_to_video_goldens.py [--out tests/golden/data/image_to_video]

OUT is a MODEL_DIR with latentd/svd, with recipes in the place of weights (export_video_goldens.py). Beside it, videos.txt has one request a line and NAME.rgb its frames one behind the
other: 8-bit RGB, row by row, without a header; tests/golden/test_image_to_video.c reads both. Noise is drawn as torch does
on a CUDA generator, in the order in which the pipeline asks for it: fp32 on the picture, then the latents.

Needs torch, diffusers, transformers, pillow.
"""
import argparse
import pathlib
import shutil

import numpy as np
import torch
from diffusers import (AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, StableVideoDiffusionPipeline,
                       UNetSpatioTemporalConditionModel)
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from export_family_goldens import CudaGenerator
from export_video_goldens import CROSS_DOWN, CROSS_UP, DOWN, UP, fill

# of 32 channels each would be a group of its own, whose norm takes out all that the time embedding adds
UNET = dict(in_channels=8, out_channels=4, block_out_channels=(64, 64), layers_per_block=1, sample_size=8, num_frames=6,
            down_block_types=(CROSS_DOWN, DOWN), up_block_types=(UP, CROSS_UP), num_attention_heads=(1, 2),
            cross_attention_dim=16, addition_time_embed_dim=8, projection_class_embeddings_input_dim=24)
VAE = dict(down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=4,
           sample_size=64)
VISION = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56,
              projection_dim=16, hidden_act="gelu")
SCHEDULER = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1,
                 interpolation_type="linear", prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002,
                 timestep_spacing="leading", timestep_type="continuous", use_karras_sigmas=True)

# name, seed, steps, fps, motion, noise, width, height (0: the model's own)
CASES = [("plain", 3, 3, 6, 127, 0.02, 64, 48), ("other", 2**33 + 1, 2, 24, 255, 0.3, 40, 56), ("own", 5, 2, 7, 1, 0.0, 0, 0)]


def make_model(folder):
    parts = dict(unet=UNetSpatioTemporalConditionModel(**UNET), vae=AutoencoderKLTemporalDecoder(**VAE),
                 image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)))
    for name, net in parts.items():
        (folder / name).mkdir(parents=True)
        fill(net, folder / name)
    StableVideoDiffusionPipeline(scheduler=EulerDiscreteScheduler(**SCHEDULER), feature_extractor=CLIPImageProcessor(),
                                 **parts).save_pretrained(folder)


def make_frames(folder, case, source):
    _, seed, steps, fps, motion, noise, width, height = case
    pipe = StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    CudaGenerator(seed, False, False).install()
    frames = pipe(source, width=width, height=height, num_inference_steps=steps, fps=fps, motion_bucket_id=motion,
                  noise_aug_strength=noise, decode_chunk_size=4, output_type="np").frames[0]
    return (frames * 255).round().astype(np.uint8)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=pathlib.Path, default="tests/golden/data/image_to_video")
    out = ap.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    make_model(out / "latentd/svd")
    y, x = np.mgrid[0:53, 0:70]
    pixels = np.stack([(x * 7 + y * 3) % 256, (x * y // 4) % 256, 255 * ((x // 9 + y // 7) % 2)], axis=-1).astype(np.uint8)
    (out / "input.rgb").write_bytes(pixels.tobytes())
    lines = []
    for case in CASES:
        rgb = make_frames(out / "latentd/svd", case, Image.fromarray(pixels))
        (out / f"{case[0]}.rgb").write_bytes(rgb.tobytes())
        lines.append(" ".join(map(str, case)))
        print(lines[-1], rgb.shape, f"mean {rgb.mean():.0f}, deviation {rgb.std():.0f}, clipped {np.isin(rgb, (0, 255)).mean():.2f}")
    for weights in out.rglob("*.safetensors"):  # the recipe beside them gives them back
        weights.unlink()
    (out / "videos.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
