#!/usr/bin/env python3
"""Compares the video UNet and the temporal decoder of Stable Video Diffusion XT at full size with diffusers, at few frames of
a small size, and prints a table.

    parity_video.py FOLDER [--tier avx512 amx] [--frames 4] [--side 16] [--build build] [--part unet vae]

FOLDER gets the published configs with random weights of a trained model's scale, in fp16 files (3.2 GB), and what diffusers
computes from them in fp32; what is there is found again. The weights repeat a pool of 4 million normal numbers, each from a
place of its own. The reference upcasts one layer at a time, so 4 GB of memory are enough; latentd needs twice the file in
tiers of fp32. Prints GitHub-flavoured Markdown.

Needs torch 2.15.0, diffusers 0.42.1, transformers 5.23.0.
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
import zlib

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

from export_goldens import nhwc, normal, write_golden, write_json
from export_tensor_names import UNET_SVD, VAE_SVD

POOL = torch.randn(4_194_301, generator=torch.Generator().manual_seed(0)).half()
PARTS = {"unet": (UNetSpatioTemporalConditionModel, UNET_SVD), "vae": (AutoencoderKLTemporalDecoder, VAE_SVD)}
STAGES = {"unet": "one UNet call, guided", "decoder": "decoded frames", "encoder": "encoded picture"}


def randomize(model):
    for name, p in model.named_parameters():
        at = zlib.crc32(name.encode()) % POOL.numel()
        numbers = torch.roll(POOL, -at).repeat(p.numel() // POOL.numel() + 1)[:p.numel()].view(p.shape)
        if name.endswith("mix_factor"):
            p.data = 0.5 * numbers
        elif p.ndim == 1:
            norm = "norm" in name.rsplit(".", 2)[-2]
            p.data = (0.1 if norm else 0.02) * numbers + (1 if norm and name.endswith("weight") else 0)
        else:
            p.data = numbers * p[0].numel() ** -0.5


def one_layer_at_a_time(model):
    """fp32 from weights that stay fp16: those of a layer are upcast while it runs."""
    def up(module, _):
        module.kept = {k: p.data for k, p in module.named_parameters(recurse=False)}
        for _, p in module.named_parameters(recurse=False):
            p.data = p.data.float()

    def down(module, _, __):
        for k, p in module.named_parameters(recurse=False):
            p.data = module.kept.pop(k)
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(up)
            module.register_forward_hook(down)


def load(folder, part):
    cls, config = PARTS[part]
    if not (folder / part).exists():
        with torch.device("meta"):
            model = cls.from_config(config)
        model = model.half().to_empty(device="cpu")
        randomize(model)
        model.half().save_pretrained(folder / part, variant="fp16")
    else:
        model = cls.from_pretrained(folder / part, variant="fp16", torch_dtype=torch.float16)
    if part == "vae":  # small enough, and its code asks parameters for their type
        return model.float().eval()
    one_layer_at_a_time(model)
    return model.eval()


def unet_golden(model, frames, side):
    x, image, ids = normal(1, 2, frames, 8, side, side), normal(2, 2, 1024), [5.0, 127.0, 0.02]
    image[0] = 0
    y = model(x, torch.tensor(1.2), image[:, None], torch.tensor([ids] * 2)).sample
    return {"0.x": nhwc(x.flatten(0, 1)), "0.image": image, "0.t": np.float32([1.2]), "0.ids": np.float32(ids),
            "0.frames": np.int32([frames]), "0.out": nhwc(y.flatten(0, 1)), "0.bf16_error": np.float32(0.05)}


def vae_golden(model, frames, side):
    z, pixels = normal(3, frames, 4, side, side), normal(4, 1, 3, 8 * side, 8 * side).clamp(-1, 1)
    y = model.decode(z, num_frames=frames).sample
    moments = model.encode(pixels).latent_dist.parameters
    return {"0.z": nhwc(z), "0.frames": np.int32([frames]), "0.out": nhwc(y), "0.bf16_error": np.float32(0.05),
            "0.pixels": nhwc(pixels), "0.moments": nhwc(moments), "0.moments.bf16_error": np.float32(0.05)}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", type=pathlib.Path)
    ap.add_argument("--tier", nargs="+", default=["avx512"])
    ap.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    ap.add_argument("--frames", type=int, default=4)
    ap.add_argument("--side", type=int, default=16, help="of the latents; pixels have eight times as many")
    ap.add_argument("--build", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build"))
    args = ap.parse_args()
    print("| stage | tier | distance from diffusers (fp32) | job memory |\n| --- | --- | --- | --- |", flush=True)
    for part in args.part:
        golden = args.folder / f"golden-{part}-{args.frames}-{args.side}"
        if not golden.exists() or not (args.folder / part).exists():
            model = load(args.folder, part)
            arrays = (unet_golden if part == "unet" else vae_golden)(model, args.frames, args.side)
            golden.mkdir(exist_ok=True)
            write_golden(golden / "expected.golden", arrays)
            del model
        for tier in args.tier:
            env = dict(os.environ, GOLDEN_VIDEO_MODEL=str(args.folder / part), GOLDEN_VIDEO_DATA=str(golden), GOLDEN_TIER=tier)
            run = subprocess.run([f"{args.build}/tests/golden/test_video", f"full_size_{part}"], env=env, capture_output=True,
                                 text=True)
            found = re.findall(r"full size (\w+) run 0 +relative L2 (\S+), allowed.*\n.* (\d+) MiB of job", run.stdout)
            if run.returncode or not found:
                sys.exit(f"test_video failed:\n{run.stdout}\n{run.stderr}")
            for stage, distance, memory in found:
                print(f"| {STAGES[stage]} | {tier} | relative L2 {distance} | {memory} MiB |", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
