#!/usr/bin/env python3
"""Compares latentd with diffusers on models of full size, stage by stage and as a whole, and prints a table.

    parity.py MODELS_DIR {sd15,sd15-image,sd-turbo,pix2pix,sdxl,x4-upscaler} ... [--tier avx512] [--size 512] [--build build] [--keep DIR] [--bf16]

MODELS_DIR is what make_random_model.py wrote. Each stage of latentd (build/tests/golden/test_model) is fed with the
reference's own inputs; the last row runs `latentd generate` against diffusers' pipeline with the same noise. The
reference is fp32 on the CPU from the fp16 files, as latentd reads them. Of the upscaler, which starts from a quarter of SIZE, there
is only the whole picture. Prints GitHub-flavoured Markdown.
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import torch
from PIL import Image

from export_family_goldens import CudaGenerator, load
from export_goldens import model_case, write_golden

RUNS = {
    "sd15": dict(id="runwayml/stable-diffusion-v1-5", prompts=["", "a photo of an astronaut riding a horse on mars"],
                 timestep=601, steps=2, guidance=7.5),
    "sd15-image": dict(id="runwayml/stable-diffusion-v1-5", prompts=["", "a photo of an astronaut riding a horse on mars"],
                       timestep=601, steps=4, guidance=7.5, image=True, strength=0.5),
    "pix2pix": dict(id="timbrooks/instruct-pix2pix", prompts=["make it snowy", "", ""], timestep=601, steps=2,
                    guidance=7.5, image=True),
    "sdxl": dict(id="stabilityai/stable-diffusion-xl-base-1.0", prompts=["a mountain lion, highly detailed"],
                 timestep=601, steps=2, guidance=5.0),
    "sd-turbo": dict(id="stabilityai/sd-turbo", prompts=["a mountain lion, highly detailed"], timestep=999, steps=1,
                     guidance=0.0),
    "x4-upscaler": dict(id="stabilityai/stable-diffusion-x4-upscaler", steps=2, guidance=9.0, image=True, upscale=True),
}
PROMPT, SEED = "a mountain lion", 7
STAGES = {"states": "text states", "states_2": "second encoder's states", "pooled": "pooled text", "noise": "one UNet call",
          "picture": "decoded picture", "moments": "encoded picture"}


def stages(model, golden, tier, build):
    env = dict(os.environ, GOLDEN_MODEL=model, GOLDEN_DATA=golden, GOLDEN_TIER=tier)
    run = subprocess.run([f"{build}/tests/golden/test_model"], env=env, capture_output=True, text=True)
    found = {k: (float(d), float(a)) for k, d, a in re.findall(r" (\w+) +relative L2 (\S+), allowed (\S+)", run.stdout)}
    took = {k: (float(s), int(m)) for k, s, m in re.findall(r" (\w+) +([\d.]+) s, (\d+) MiB of job", run.stdout)}
    if run.returncode or len(found) < 4:
        sys.exit(f"test_model failed:\n{run.stdout}\n{run.stderr}")
    return {k: (*found[k], *took[k]) for k in STAGES if k in found}


def distance_text(tier, distance, allowed):
    """Tiers that compute in bf16 are allowed 1.5 times the error of the reference's own bf16 run."""
    if "bf16" not in tier and "amx" not in tier:
        return f"relative L2 {distance:.1e}"
    own = allowed / 1.5
    return f"relative L2 {distance:.1e}, {distance / own:.2f} times diffusers' own bf16 error of {own:.1e}"


def source_size(run, size):
    return size // 4 if run.get("upscale") else size


def source_picture(size):
    """What image-to-image starts from."""
    y, x = np.mgrid[0:size, 0:size]
    return Image.fromarray(np.stack([(x + y) // 4 % 256, x * y // 512 % 256, 255 * ((x // 64 + y // 64) % 2)], axis=-1)
                           .astype(np.uint8))


def reference_picture(models, run, size):
    pipe, fp16 = load(pathlib.Path(models), run["id"], run.get("image", False))
    # a model whose files are fp16 draws its noise in fp16
    CudaGenerator(SEED, fp16, "XLImg2Img" in type(pipe).__name__).install()
    kw = dict(image=source_picture(source_size(run, size))) if run.get("image") else dict(height=size, width=size)
    if "strength" in run:
        kw["strength"] = run["strength"]
    with torch.no_grad():
        picture = pipe(PROMPT, num_inference_steps=run["steps"], guidance_scale=run["guidance"], output_type="np",
                       **kw).images[0]
    return np.round(picture * 255).astype(np.uint8)


def stage_golden(model, run, folder, args):
    """The reference's stages in FOLDER; kept there, because they take longer than what is compared with them."""
    if not os.path.exists(f"{folder}/expected.golden"):
        write_golden(f"{folder}/expected.golden",
                     model_case(model, run["prompts"], args.size, args.size, run["timestep"], args.bf16))
    return folder


def picture_golden(model, run, folder, args):
    path = f"{folder}/picture.png"
    if not os.path.exists(path):
        Image.fromarray(reference_picture(args.models, run, args.size)).save(path)
    return np.asarray(Image.open(path).convert("RGB"))


def whole(models, run, tier, size, build, want):
    with tempfile.NamedTemporaryFile(suffix=".png") as f:
        options, env = ["--width", str(size), "--height", str(size)], dict(os.environ, MODEL_DIR=models)
        if run.get("image"):
            source_picture(source_size(run, size)).save(f.name)
            options = ["--image", f.name]
        if run.get("upscale"):
            env.update(PIPELINE="upscale", MODEL_ID=run["id"])
        elif run.get("image"):
            options += ["--strength", str(run.get("strength", 0.8))]
        out = subprocess.run([f"{build}/latentd", "generate", PROMPT, "-o", f.name, "--seed", str(SEED), "--steps",
                              str(run["steps"]), "--guidance", str(run["guidance"]), "--model_id", run["id"], "--isa", tier,
                              *options], env=env, capture_output=True, text=True)
        if out.returncode:
            sys.exit(f"latentd generate failed:\n{out.stdout}\n{out.stderr}")
        got = np.asarray(Image.open(f.name).convert("RGB"))
    took = float(re.search(r"([\d.]+) s \(and", out.stdout).group(1))
    difference = got.astype(int) - want.astype(int)
    mse = (difference.astype(float) ** 2).mean()
    psnr = 10 * np.log10(255**2 / mse) if mse else float("inf")
    return psnr, abs(difference).max(), (difference == 0).mean(), took


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models")
    ap.add_argument("names", nargs="+", choices=sorted(RUNS))
    ap.add_argument("--tier", nargs="+", default=["avx512"])
    ap.add_argument("--size", type=int, default=512)
    ap.add_argument("--build", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build"))
    ap.add_argument("--keep", default=os.path.join(tempfile.gettempdir(), "latentd-parity"),
                    help="folder where the reference's results are kept and found again")
    ap.add_argument("--stages", action="store_true", help="leave the whole picture out")
    ap.add_argument("--bf16", action="store_true", help="also the reference's own bf16 error, which tiers of 16 bits are measured by (slow without AMX)")
    args = ap.parse_args()
    print("| model | stage | tier | distance from diffusers (fp32) | time | job memory |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for name in args.names:
        run, model = RUNS[name], f"{args.models}/{RUNS[name]['id']}"
        folder = f"{args.keep}/{name}-{args.size}{'-bf16' * args.bf16}"
        os.makedirs(folder, exist_ok=True)
        golden = None if run.get("upscale") else stage_golden(model, run, folder, args)
        for tier in args.tier if golden else []:
            for stage, (distance, allowed, took, memory) in stages(model, golden, tier, args.build).items():
                print(f"| {name} | {STAGES[stage]} | {tier} | {distance_text(tier, distance, allowed)} | {took:.2f} s | "
                      f"{memory} MiB |", flush=True)
        if args.stages:
            continue
        want = picture_golden(model, run, folder, args)
        for tier in args.tier:
            psnr, worst, equal, took = whole(args.models, run, tier, args.size, args.build, want)
            print(f"| {name} | whole picture, {run['steps']} step{'s' * (run['steps'] > 1)} | {tier} | PSNR {psnr:.1f} dB, "
                  f"{100 * equal:.2f} % of bytes equal, largest difference {worst} | {took:.2f} s | |", flush=True)


if __name__ == "__main__":
    main()
