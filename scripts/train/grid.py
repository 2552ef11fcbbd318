#!/usr/bin/env python3
"""Draws docs/emoji-grid.png: one generated picture a prompt, with its words."""
import argparse
import os

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from evaluate import HERE, generate

PROMPTS = (
    "a mountain lion", "a red heart", "slice of pizza", "sailboat on the sea",
    "an owl at night", "a cup of coffee", "a red apple", "an old steam train",
    "a snowman", "a cute fox", "a rocket in space", "a birthday cake",
    "a sunflower", "a castle", "a guitar", "smiling face with sunglasses",
    "a green frog", "an astronaut", "a yellow taxi", "a slice of watermelon",
    "an octopus", "a cactus", "a golden key", "a ghost",
)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--model", default=os.path.join(HERE, "../../models/latentd/emoji"))
    ap.add_argument("--out", default=os.path.join(HERE, "../../docs/emoji-grid.png"))
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--steps", type=int, default=25)
    ap.add_argument("--guidance", type=float, default=4.0)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--threads", type=int, default=max(1, os.cpu_count() or 1))
    ap.add_argument("--font", default="DejaVuSans.ttf")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    pipe = StableDiffusionPipeline.from_pretrained(a.model).to(a.device)
    pipe.set_progress_bar_config(disable=True)
    pics = generate(pipe, list(PROMPTS), a.steps, a.guidance, a.seed, 24)
    try:
        font = ImageFont.truetype(a.font, 9)
    except OSError:
        font = ImageFont.load_default(9)
    cols, cell, foot = 8, 136, 16
    rows = (len(PROMPTS) + cols - 1) // cols
    im = Image.new("RGB", (cols * cell, rows * (cell + foot)), "white")
    d = ImageDraw.Draw(im)
    for i, (p, x) in enumerate(zip(PROMPTS, pics)):
        left, top = i % cols * cell, i // cols * (cell + foot)
        im.paste(Image.fromarray((x * 255).round().astype(np.uint8)), (left + 4, top + 4))
        d.text((left + cell / 2, top + cell + 1), p, fill="black", font=font, anchor="ma")
    # 256 colours keep the file small; the pictures are flat art.
    im.quantize(256, dither=Image.Dither.NONE).save(a.out, optimize=True)
    print(a.out, os.path.getsize(a.out), "bytes")


if __name__ == "__main__":
    main()
