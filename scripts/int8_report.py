#!/usr/bin/env python3
"""What --precision int8 gains and costs on this machine: the table of docs/optimisation.md.

    scripts/int8_report.py [--model_id latentd/emoji] [--steps 20] [--runs 3] [--pictures 48] [--latentd build/latentd]
                           [--size 512]

Times are those of `latentd bench` by turns, of all threads together, the least of RUNS each; the error is that of pictures of the same seed, as PSNR over
their 8-bit pixels, of int8 against fp32 and bf16, and of bf16 against fp32. MODEL_DIR and the other settings go by. Needs pillow and numpy.
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np
from deepcache_report import PROMPTS
from PIL import Image


def run(args, options, precision):
    command = [args.latentd, *options, "--model_id", args.model_id, "--precision", precision]
    if args.size:
        command += ["--width", str(args.size), "--height", str(args.size)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def bench(args, precision):
    return json.loads(run(args, ["bench", "--runs", "1", "--num_inference_steps", str(args.steps), "--json"], precision))


def picture(args, folder, i, precision):
    path = folder / f"{i}-{precision}.png"
    run(args, ["generate", PROMPTS[i % len(PROMPTS)], "-o", str(path), "--seed", str(i), "--steps", str(args.steps)], precision)
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float64)


def times(args):
    found = {"bf16": [], "int8": []}
    for _ in range(args.runs):
        for precision, all_runs in found.items():
            b = bench(args, precision)
            all_runs.append(b["runs"][0]["cpu_seconds"])
            if len(all_runs) == args.runs:
                print(f"{precision}: {min(all_runs):.3f} s of CPU time a request, weights {b['weight_bytes'] / 2**20:.0f} MiB, "
                      f"{b['width']}x{b['height']}, {args.steps} steps, {b['tier']}, {b['threads']} threads")


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-9, np.mean((a - b) ** 2)))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model_id", default="latentd/emoji")
    ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--runs", type=int, default=3)
    ap.add_argument("--pictures", type=int, default=48)
    ap.add_argument("--size", type=int, default=0, help="width and height; 0: the model's own")
    ap.add_argument("--latentd", default="build/latentd")
    args = ap.parse_args()
    times(args)
    pairs = [("int8", "fp32"), ("int8", "bf16"), ("bf16", "fp32")]
    scores = {pair: [] for pair in pairs}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.pictures):
            made = {p: picture(args, pathlib.Path(folder), i, p) for p in ("fp32", "bf16", "int8")}
            for a, b in pairs:
                scores[a, b].append(psnr(made[a], made[b]))
    for (a, b), s in scores.items():
        if s:
            print(f"{a} against {b}: {len(s)} pictures, PSNR mean {np.mean(s):.1f} dB, median {np.median(s):.1f}, least {min(s):.1f}")


if __name__ == "__main__":
    main()
