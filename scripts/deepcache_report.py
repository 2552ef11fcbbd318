#!/usr/bin/env python3
"""What DEEPCACHE=true gains and costs on this machine: the table of docs/optimisation.md.

    scripts/deepcache_report.py [--model_id latentd/emoji] [--steps 50] [--runs 3] [--pictures 24] [--latentd build/latentd]

Times are medians of `latentd bench`, on the clock and of all threads together; the error is that of pictures of the same seed with and without, as PSNR over their
8-bit pixels. MODEL_DIR and the other settings go by. Needs pillow and numpy.
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np
from PIL import Image

PROMPTS = ["slice of pizza", "red apple", "mountain lion", "sailboat", "crying face", "panda", "full moon face", "dog face",
           "green apple", "heart", "rocket", "bicycle", "hot beverage", "umbrella", "violin", "snowman", "cactus", "owl",
           "airplane", "grapes", "house", "clown face", "fox", "cheese wedge"]


def run(args, options, cached):
    env = dict(os.environ, DEEPCACHE="true" if cached else "false")
    return subprocess.run([args.latentd, *options, "--model_id", args.model_id], env=env, check=True, capture_output=True, text=True).stdout


def bench(args, cached):
    return json.loads(run(args, ["bench", "--runs", str(args.runs), "--num_inference_steps", str(args.steps), "--json"], cached))


def share(b):
    return np.median([r["steps"] / r["seconds"] for r in b["runs"]])


def picture(args, folder, i, cached):
    path = folder / f"{i}-{cached}.png"
    run(args, ["generate", PROMPTS[i % len(PROMPTS)], "-o", str(path), "--seed", str(i), "--steps", str(args.steps)], cached)
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float64)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model_id", default="latentd/emoji")
    ap.add_argument("--steps", type=int, default=50)
    ap.add_argument("--runs", type=int, default=3)
    ap.add_argument("--pictures", type=int, default=24)
    ap.add_argument("--latentd", default="build/latentd")
    args = ap.parse_args()
    without, cached = bench(args, False), bench(args, True)
    print(f"{args.model_id}, {args.steps} steps, {without['width']}x{without['height']}, {without['backend']} {without['tier']}, "
          f"{without['threads']} threads")
    cpu, cpu_cached = (np.median([r["cpu_seconds"] for r in b["runs"]]) for b in (without, cached))
    print(f"CPU time: {cpu:.3f} s without, {cpu_cached:.3f} s with ({cpu / cpu_cached:.2f} times); of it the steps "
          f"{share(without):.0%} and {share(cached):.0%}")
    print(f"time: {without['median_seconds']:.3f} s without, {cached['median_seconds']:.3f} s with "
          f"({without['median_seconds'] / cached['median_seconds']:.2f} times as fast); "
          f"work: {without['flop'] * 1e-12:.3f} and {cached['flop'] * 1e-12:.3f} TFLOP ({without['flop'] / cached['flop']:.2f} times)")
    with tempfile.TemporaryDirectory() as folder:
        scores, errors = [], []
        for i in range(args.pictures):
            a, b = (picture(args, pathlib.Path(folder), i, c) for c in (False, True))
            errors.append(np.abs(a - b).mean())
            scores.append(10 * np.log10(255**2 / max(1e-9, np.mean((a - b) ** 2))))
    if scores:
        print(f"pictures: {args.pictures}; PSNR median {np.median(scores):.1f} dB, worst {min(scores):.1f}, best {max(scores):.1f}; "
              f"mean difference of a pixel {np.mean(errors):.1f} of 255")


if __name__ == "__main__":
    main()
