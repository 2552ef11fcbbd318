#!/usr/bin/env python3
"""Video stage 4: write the StableVideoDiffusionPipeline folder (fp16, safetensors)."""
import argparse
import json
import os
import shutil

import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from transformers import CLIPImageProcessor

import train_image_encoder
import video_vae
from common import CACHE, averaged
from train_video import SIGMA_LAST, SIGMA_MAX, build
from train_video_time import temporal
from video_data import sprites

HERE = os.path.dirname(os.path.abspath(__file__))
# SVD's but for the smallest level (docs/emoji-video-model.md has the figures)
SCHEDULER = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1,
                 interpolation_type="linear", prediction_type="v_prediction", sigma_max=SIGMA_MAX, sigma_min=SIGMA_LAST,
                 timestep_spacing="leading", timestep_type="continuous", use_karras_sigmas=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--work", default=CACHE)
    ap.add_argument("--out", default=os.path.join(HERE, "../../models/latentd/emoji-video"))
    a = ap.parse_args()
    pics, _ = sprites(a.work)
    load = lambda name: torch.load(os.path.join(a.work, name), map_location="cpu")
    vae = video_vae.build(video_vae.code_of(a.work, pics))
    averaged(vae.decoder, video_vae.trained(vae.decoder), load("decoder.pt"))
    unet, st = build(), load("video_time.pt")
    averaged(unet, temporal(unet), st)
    eye = train_image_encoder.build()
    eye.load_state_dict(load("encoder.pt")["model"])
    for m in (vae, unet, eye):
        m.half()
        for n, p in m.named_parameters():
            if not torch.isfinite(p).all():
                raise SystemExit("does not fit fp16: " + n)
    StableVideoDiffusionPipeline(vae=vae, image_encoder=eye, unet=unet, scheduler=EulerDiscreteScheduler(**SCHEDULER),
                                 feature_extractor=CLIPImageProcessor()).save_pretrained(a.out + ".tmp")
    for sub in ("unet", "vae", "image_encoder"):
        p = os.path.join(a.out + ".tmp", sub, "config.json")
        with open(p) as f:
            c = json.load(f)
        c.pop("_name_or_path", None)
        if "dtype" in c:  # else transformers would compute in fp16, the others in fp32
            c["dtype"] = "float32"
        with open(p, "w") as f:
            f.write(json.dumps(c, indent=2) + "\n")
    for f in ("LICENSE", "README.md"):
        shutil.copy(os.path.join(HERE, "card_video", f), os.path.join(a.out + ".tmp", f))
    for d, _, fs in os.walk(a.out + ".tmp"):
        for f in fs:
            os.chmod(os.path.join(d, f), 0o644)
    shutil.rmtree(a.out, ignore_errors=True)
    os.rename(a.out + ".tmp", a.out)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(a.out) for f in fs)
    print("step", st["step"], "written, %.2f MB" % (size / 1e6))


if __name__ == "__main__":
    main()
