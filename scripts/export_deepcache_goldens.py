#!/usr/bin/env python3
"""Pictures and frames that diffusers makes under the Python package DeepCache, in fp32, with tiny random models.

    scripts/export_deepcache_goldens.py [--out tests/golden/data/deepcache]

The package is used as the ai-runner uses it: DeepCacheSDHelper with cache_interval 3 and cache_branch_id 0. OUT is a
MODEL_DIR of links to the models of ../families and of one that runs Heun's scheduler, which calls the UNet twice for a
timestep. pictures.txt has one request a line and NAME.rgb what it gives, as in families (export_family_goldens.py);
tests/golden/test_image_to_image.c reads them. video.rgb holds the frames of the request in make_video() with the model of
../image_to_video; tests/golden/test_image_to_video.c reads it.

Needs torch, diffusers, transformers, pillow, DeepCache==0.1.1 (with `pip install --no-deps`: it asks for nothing else).
"""
import argparse
import os
import pathlib
import shutil
import tempfile

import numpy as np
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import HeunDiscreteScheduler, StableVideoDiffusionPipeline
from PIL import Image

import export_family_goldens as families
import export_image_to_video_goldens as video

HEUN = "latentd/heun"
CASES = [
    ("sd1_text", "latentd/sd1", False, "a red apple", "blue", None, 3, 8, 7.5, 0, 0),
    ("sd1_image", "latentd/sd1", True, "a red apple", "blue", None, 3, 10, 7.5, 0, 0.7),
    ("xl_text", families.XL, False, "a house", "rain", "in the snow", 5, 7, 6.0, 0, 0),
    ("pix2pix", families.PIX, True, "make it snow", "sun", None, 10, 5, 7.5, 1.5, 0),
    ("heun", HEUN, False, "a pear", None, None, 13, 6, 3.0, 0, 0),
]


def make_links(out):
    shelf = out.parent / "families"
    for name in {case[1] for case in CASES} - {HEUN}:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(f"../../families/{name}", out / name)
    heun = out / HEUN
    heun.mkdir(parents=True)
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        os.symlink(f"../../../families/latentd/sd1/{part}", heun / part)
    HeunDiscreteScheduler(**families.BETAS).save_pretrained(heun / "scheduler")
    index = (shelf / "latentd/sd1/model_index.json").read_text()
    (heun / "model_index.json").write_text(index.replace("PNDMScheduler", "HeunDiscreteScheduler"))


def cached(pipe):
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    return pipe


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2)))


def make_video(scratch):
    case, rgb = ("video", 3, 5, 6, 127, 0.02, 64, 48), {}
    source = Image.fromarray(np.frombuffer(pathlib.Path("tests/golden/data/image_to_video/input.rgb").read_bytes(), np.uint8).reshape(53, 70, 3))
    video.make_model(scratch)
    load = StableVideoDiffusionPipeline.from_pretrained
    for key, wrap in (("plain", lambda p: p), ("cached", cached)):
        StableVideoDiffusionPipeline.from_pretrained = lambda *a, _wrap=wrap, **k: _wrap(load(*a, **k))
        rgb[key] = video.make_frames(scratch, case, source)
    print(f"video: {psnr(rgb['cached'], rgb['plain']):.1f} dB from the frames without DeepCache")
    return rgb["cached"]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=pathlib.Path, default="tests/golden/data/deepcache")
    out = ap.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    make_links(out)
    pixels = np.frombuffer((out.parent / "families/input.rgb").read_bytes(), np.uint8).reshape(families.INPUT[1], families.INPUT[0], 3)
    lines, load = [], families.load

    def load_cached(*args):
        pipe, fp16 = load(*args)
        return cached(pipe), fp16

    for case in CASES:
        rgb = {}
        for key, families.load in (("plain", load), ("cached", load_cached)):
            rgb[key] = families.make_picture(out, case, Image.fromarray(pixels))
        (out / f"{case[0]}.rgb").write_bytes(rgb["cached"].tobytes())
        name, model, image, prompt, negative, prompt_2, *numbers = case
        texts = ["-" if t is None else f"={t}" for t in (prompt, negative, prompt_2)]
        lines.append("\t".join(map(str, [name, model, int(image), *numbers, *texts])))
        print(f"{lines[-1]}    {psnr(rgb['cached'], rgb['plain']):.1f} dB from the picture without DeepCache")
    (out / "pictures.txt").write_text("\n".join(lines) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        (out / "video.rgb").write_bytes(make_video(pathlib.Path(scratch) / "svd").tobytes())


if __name__ == "__main__":
    with torch.no_grad():
        main()
