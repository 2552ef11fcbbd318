#!/usr/bin/env python3
"""Draws docs/emoji-turns.png: image-to-image with the shipped model. Each row is a generated picture, and the same turned
by a prompt at strengths 0.3, 0.6 and 0.9. Needs build/latentd and Pillow."""
import argparse
import os
import subprocess
import tempfile

from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS = [("cat face", "dog face"), ("red apple", "green apple"), ("grinning face", "crying face"),
        ("sun with face", "full moon face"), ("tiger face", "panda")]
STRENGTHS = [0.3, 0.6, 0.9]
SIDE, SEED = 128, 1


def generate(program, prompt, out, *options):
    subprocess.run([program, "generate", prompt, "-o", out, "--seed", str(SEED), "--model_id", "latentd/emoji", *options],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Image.open(out).convert("RGB")


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--latentd", default=os.path.join(HERE, "../../build/latentd"))
    ap.add_argument("--out", default=os.path.join(HERE, "../../docs/emoji-turns.png"))
    args = ap.parse_args()
    sheet = Image.new("RGB", (SIDE * (1 + len(STRENGTHS)), SIDE * len(ROWS)), "white")
    with tempfile.TemporaryDirectory() as folder:
        for row, (source, target) in enumerate(ROWS):
            start = f"{folder}/start.png"
            picture = generate(args.latentd, source, start, "--steps", "25", "--guidance", "3")
            sheet.paste(picture, (0, SIDE * row))
            for column, strength in enumerate(STRENGTHS):
                picture = generate(args.latentd, target, f"{folder}/turned.png", "--image", start, "--strength", str(strength),
                                   "--steps", "40", "--guidance", "1.5")
                sheet.paste(picture, (SIDE * (1 + column), SIDE * row))
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
