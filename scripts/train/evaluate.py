#!/usr/bin/env python3
"""Figures for the trained model.

Two sets of 200 prompts: (a) the CLDR names of 200 pictures drawn with a fixed
seed; (b) the hand-written wordings of heldout.json, never used in training.
One picture is generated for each. Distance: mean squared difference of RGB
after averaging both pictures down to 32x32. A prompt counts as right when the
emoji it was written for is nearer than the other emoji of the same set; also
reported is the share that is nearest among all training pictures.
"""
import argparse
import json
import os
import random
import time

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from common import CACHE

HERE = os.path.dirname(os.path.abspath(__file__))


def small(a):
    """N x 128 x 128 x 3 in 0..1, averaged to N x 3072."""
    n = len(a)
    return a.reshape(n, 32, 4, 32, 4, 3).mean((2, 4)).reshape(n, -1)


def generate(pipe, prompts, steps, guidance, seed, batch):
    out = []
    for i in range(0, len(prompts), batch):
        part = prompts[i:i + batch]
        gen = [torch.Generator("cpu").manual_seed(seed + i + j) for j in range(len(part))]
        out.append(pipe(part, num_inference_steps=steps, guidance_scale=guidance, generator=gen,
                        height=128, width=128, output_type="np").images)
    return np.concatenate(out)


def score(pics, want, everything):
    """pics: generated; want: index of the right picture; both shares."""
    g, e = small(pics), small(everything)
    d = ((g[:, None] - e[None]) ** 2).mean(-1)
    own = d[np.arange(len(want)), want]
    among = sorted(set(want))
    few = np.array(among)[d[:, among].argmin(1)] == want
    return few, d.argmin(1) == want, own, d.argmin(1)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--model", default=os.path.join(HERE, "../../models/latentd/emoji"))
    ap.add_argument("--work", default=CACHE)
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--steps", type=int, default=25)
    ap.add_argument("--guidance", type=float, default=4.0)
    ap.add_argument("--seed", type=int, default=1000)
    ap.add_argument("--batch", type=int, default=20)
    ap.add_argument("--count", type=int, default=200)
    ap.add_argument("--sets", default="names,heldout")
    ap.add_argument("--threads", type=int, default=max(1, os.cpu_count() or 1))
    ap.add_argument("--show", action="store_true", help="list the misses")
    ap.add_argument("--png", help="write generated pictures above the wanted ones here")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    with open(os.path.join(a.work, "meta.json")) as f:
        meta = json.load(f)
    every = np.load(os.path.join(a.work, "pictures.npy")).astype(np.float32) / 255
    at = {e["name"]: i for i, e in enumerate(meta)}
    pipe = StableDiffusionPipeline.from_pretrained(a.model).to(a.device)
    pipe.set_progress_bar_config(disable=True)
    sets = {}
    pick = random.Random(7).sample(range(len(meta)), 200)
    sets["names"] = ([meta[i]["name"].lower() for i in pick], pick)
    with open(os.path.join(HERE, "heldout.json")) as f:
        held = json.load(f)
    sets["heldout"] = ([h["prompt"] for h in held], [at[h["name"]] for h in held])
    for key in a.sets.split(","):
        prompts, want = sets[key]
        prompts, want = prompts[:a.count], np.array(want[:a.count])
        t = time.time()
        pics = generate(pipe, prompts, a.steps, a.guidance, a.seed, a.batch)
        t = time.time() - t
        few, alls, own, got = score(pics, want, every)
        print(json.dumps({"set": key, "prompts": len(prompts), "steps": a.steps,
                          "guidance": a.guidance, "right_of_%d" % len(set(want.tolist())): round(float(few.mean()), 4),
                          "right_of_all_%d" % len(every): round(float(alls.mean()), 4),
                          "psnr_to_own": round(float(np.median(-10 * np.log10(((pics - every[want]) ** 2).mean((1, 2, 3))))), 2),
                          "seconds": round(t, 1)}), flush=True)
        if a.show:
            for p, w, g, ok in zip(prompts, want, got, few):
                if not ok:
                    print("  %s: wanted %s, nearest %s" % (p, meta[w]["name"], meta[g]["name"]))
        if a.png:
            from PIL import Image
            rows = []
            for i in range(0, min(len(pics), 40), 10):
                rows += [np.concatenate(list(pics[i:i + 10]), 1), np.concatenate(list(every[want[i:i + 10]]), 1)]
            Image.fromarray((np.concatenate([r for r in rows if r.shape == rows[0].shape]) * 255).astype(np.uint8)).save(
                a.png.replace(".png", "-" + key + ".png"))


if __name__ == "__main__":
    main()
