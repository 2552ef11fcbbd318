#!/usr/bin/env python3
"""Video stage 1: the image encoder, a tiny CLIPVisionModelWithProjection that learns which motion a picture calls for.

Its projection is the one token that the UNet reads. A linear head on it tells the motion; the UNet's training makes each
clip by what the head says, so that the same picture always moves the same way.
"""
import argparse
import os
import time

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from common import Clock, Muon, Stop, arguments, begin, log, rate, save
from video_data import MOTIONS, SIDE, background, frame, place_of, sprites

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CONFIG = dict(hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=224,
              patch_size=32, projection_dim=32, hidden_act="quick_gelu")


def build():
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG))


def as_pixels(pictures):
    """[N, 128, 128, 3] in 0..1 -> what the pipeline shows the encoder, or near it: [N, 3, 224, 224]"""
    big = np.stack([cv2.resize(p, (224, 224), interpolation=cv2.INTER_CUBIC) for p in pictures])
    return torch.from_numpy((big - np.float32(MEAN)) / np.float32(STD)).permute(0, 3, 1, 2).contiguous()


def spoil(p, rng):
    """What a picture from elsewhere may have: other light, blur, noise."""
    if rng.random() < 0.3:
        p = p * (0.93 + 0.07 * rng.random(3, dtype=np.float32))
    if rng.random() < 0.3:
        p = cv2.GaussianBlur(p, (0, 0), 0.5 + rng.random())
    if rng.random() < 0.4:
        p = p + 0.1 * rng.random() * rng.standard_normal(p.shape, dtype=np.float32)
    return p.clip(0, 1)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    arguments(ap, 5)
    ap.add_argument("--batch", type=int, default=64)
    ap.add_argument("--lr", type=float, default=3e-3)
    a = ap.parse_args()
    begin(a.work, a.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(a.seed)
    rng = np.random.default_rng(int(time.time()))
    pics, kinds = sprites(a.work)
    model, head = build(), torch.nn.Linear(CONFIG["projection_dim"], len(MOTIONS))
    both = torch.nn.ModuleDict({"model": model, "head": head})
    path = os.path.join(a.work, "encoder.pt")
    if os.path.exists(path) and not a.fresh:
        for n, st in torch.load(path).items():
            both[n].load_state_dict(st)
    opt = Muon(both.named_parameters(), a.lr, plain=("embedding", "head", "norm"))
    clock, stop, step, hit = Clock(a.minutes, a.until), Stop(), 0, 0.0
    order = []
    while clock.share() < 1 and not stop.now:
        if len(order) < a.batch:
            order = rng.permutation(len(pics)).tolist()
        idx = [order.pop() for _ in range(a.batch)]
        x = as_pixels([spoil(frame(pics[i], background(rng), place_of(rng), 0, 0, 0), rng) for i in idx])
        y = torch.from_numpy(kinds[idx])
        for g in opt.param_groups:
            g["lr"] = rate(clock.share(), step, a.lr, warm=30, floor=0.02)
        with torch.autocast(a.device, torch.bfloat16):
            e = model(pixel_values=x).image_embeds
        e = e.float()
        out = head(e)
        loss = F.cross_entropy(out, y, label_smoothing=0.02) + 0.01 * (e.square().mean() - 1).square()
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        hit += (1 / min(step, 100)) * ((out.argmax(1) == y).float().mean().item() - hit)
        if step % 50 == 0:
            log(a.work, "encoder.log", step=step, loss=loss.item(), right=hit, share=clock.share())
    save(path, dict(model=model.state_dict(), head=head.state_dict()))


if __name__ == "__main__":
    main()
