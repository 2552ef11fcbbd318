#!/usr/bin/env python3
"""Frames of videos of the shipped model, as diffusers makes them in fp32.

    scripts/export_emoji_video_goldens.py [--model models/latentd/emoji-video] [--out tests/golden/data/emoji_video]

The first pictures are those of tests/golden/data/pictures. videos.txt has one request a line; NAME.rgb are the frames that it
names, one behind the other: 8-bit RGB, row by row, without a header. tests/golden/test_emoji_video.c reads both. Noise is
drawn as torch does on a CUDA generator. Needs torch, diffusers, transformers, pillow.
"""
import argparse
import pathlib

import numpy as np
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

from export_family_goldens import CudaGenerator

# name (of the picture, too), its width and height, seed, steps, fps, motion, noise, width, height, frames
CASES = [("pizza", 128, 128, 2**33 + 1, 3, 12, 100, 0.1, 64, 64, (0, 7, 13)),
         ("heart", 128, 128, 3, 6, 6, 255, 0.02, 128, 128, (0, 4, 13))]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="models/latentd/emoji-video")
    ap.add_argument("--pictures", type=pathlib.Path, default="tests/golden/data/pictures")
    ap.add_argument("--out", type=pathlib.Path, default="tests/golden/data/emoji_video")
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    pipe = StableVideoDiffusionPipeline.from_pretrained(a.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    lines = []
    for name, in_width, in_height, seed, steps, fps, motion, noise, width, height, frames in CASES:
        rgb = np.frombuffer((a.pictures / f"{name}.rgb").read_bytes(), np.uint8).reshape(in_height, in_width, 3)
        CudaGenerator(seed, False, False).install()
        video = pipe(Image.fromarray(rgb), width=width, height=height, num_inference_steps=steps, fps=fps, motion_bucket_id=motion,
                     noise_aug_strength=noise, decode_chunk_size=4, output_type="np").frames[0]
        (a.out / f"{name}.rgb").write_bytes((video[list(frames)] * 255).round().astype(np.uint8).tobytes())
        chosen = ",".join(map(str, frames))
        lines.append(f"{name} {in_width} {in_height} {seed} {steps} {fps} {motion} {noise} {width} {height} {chosen}")
        print(lines[-1])
    (a.out / "videos.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
