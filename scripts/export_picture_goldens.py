#!/usr/bin/env python3
"""Final pictures of the shipped model, as diffusers makes them in fp32.

    scripts/export_picture_goldens.py [--model models/latentd/emoji] [--out tests/golden/data/pictures]

Each picture is 8-bit RGB, row by row, without a header: tests/golden/test_picture.c knows sizes, prompts and seeds from
pictures.txt beside them. Noise is drawn as torch does on a CUDA generator, so latentd starts from the same latents.
"""
import argparse
import pathlib

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from export_scheduler_goldens import cuda_randn

# name, prompt, negative prompt, seed, steps, guidance, width, height
CASES = [
    ("lion", "a mountain lion", "", 1, 20, 7.5, 128, 128),
    ("heart", "a red heart", "", 7, 10, 3.0, 128, 128),
    ("pizza", "slice of pizza", "a dog", 2**32 + 5, 12, 5.0, 128, 128),
    ("boat", "sailboat on the sea", "", 0, 8, 1.0, 160, 96),
]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="models/latentd/emoji")
    ap.add_argument("--out", default="tests/golden/data/pictures")
    a = ap.parse_args()
    out = pathlib.Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    pipe = StableDiffusionPipeline.from_pretrained(a.model)
    pipe.set_progress_bar_config(disable=True)
    unit, channels = pipe.vae_scale_factor, pipe.unet.config.in_channels
    lines = []
    for name, prompt, negative, seed, steps, guidance, width, height in CASES:
        latents = cuda_randn((1, channels, height // unit, width // unit), seed, 0)
        picture = pipe(prompt, negative_prompt=negative or None, num_inference_steps=steps, guidance_scale=guidance, width=width,
                       height=height, latents=latents, output_type="np").images[0]
        rgb = (picture * 255).round().astype(np.uint8)
        (out / f"{name}.rgb").write_bytes(rgb.tobytes())
        lines.append("\t".join(map(str, (name, seed, steps, guidance, width, height, prompt, negative or "-"))))
        print(lines[-1])
    (out / "pictures.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
