#!/usr/bin/env python3
"""Stage 8: write the StableDiffusionPipeline folder (fp16, safetensors)."""
import argparse
import json
import os
import shutil

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

from common import CACHE, Ema
from train import SCHEDULE, build

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--work", default=CACHE)
    ap.add_argument("--out", default=os.path.join(HERE, "../../models/latentd/emoji"))
    a = ap.parse_args()
    tok, text, unet = build(a.work)
    both = torch.nn.ModuleDict({"text": text, "unet": unet})
    st = torch.load(os.path.join(a.work, "unet.pt"), map_location="cpu")
    both.load_state_dict(st["model"])
    ema = Ema(both.parameters(), 0.998)
    ema.load(st["ema"])
    ema.swap()
    vae = AutoencoderKL.from_pretrained(os.path.join(a.work, "vae"))
    # The exporter's own paths would otherwise end up in the config files.
    for m in (vae, unet):
        m.register_to_config(_name_or_path="")
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tok, unet=unet, scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    for m in (vae, text, unet):
        m.half()
        for n, p in m.named_parameters():
            if not torch.isfinite(p).all():
                raise SystemExit("does not fit fp16: " + n)
    pipe.save_pretrained(a.out + ".tmp", safe_serialization=True)
    # Our own tokenizer files: the same text that the tokenizer stage wrote.
    t = os.path.join(a.out + ".tmp", "tokenizer")
    shutil.rmtree(t)
    shutil.copytree(os.path.join(a.work, "tokenizer"), t)
    for sub in ("unet", "vae", "text_encoder"):
        p = os.path.join(a.out + ".tmp", sub, "config.json")
        with open(p) as f:
            c = json.load(f)
        c.pop("_name_or_path", None)
        if "dtype" in c:  # else transformers would compute in fp16, the others in fp32
            c["dtype"] = "float32"
        with open(p, "w") as f:
            f.write(json.dumps(c, indent=2) + "\n")
    for f in ("LICENSE", "README.md"):
        shutil.copy(os.path.join(HERE, "card", f), os.path.join(a.out + ".tmp", f))
    for d, _, fs in os.walk(a.out + ".tmp"):
        for f in fs:
            os.chmod(os.path.join(d, f), 0o644)
    os.makedirs(os.path.dirname(os.path.abspath(a.out)), exist_ok=True)
    shutil.rmtree(a.out, ignore_errors=True)
    os.rename(a.out + ".tmp", a.out)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(a.out) for f in fs)
    print("step", st["step"], "written, %.2f MB" % (size / 1e6))


if __name__ == "__main__":
    main()
