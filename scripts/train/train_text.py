#!/usr/bin/env python3
"""Stage 4: teach the text encoder, alone, which picture a caption means.

Attention is causal, so every position from the end token on has read the whole
caption. There the states are trained to give the latents of one cell of a 4x4
grid (position mod 16), and the picture's number. Learned through the UNet alone
this link takes most of the training time. The heads are thrown away afterwards.

Only the first 32 positions are run; the others start as copies, 16 apart.
"""
import argparse
import os
import time

import numpy as np
import torch
import torch.nn.functional as F

from captions import Captions, Draw
from common import Clock, Muon, Stop, Team, arguments, autocast, begin, log, rate, save
from train import build

LENGTH = 32


class Heads(torch.nn.Module):
    def __init__(self, width, pictures):
        super().__init__()
        self.cell = torch.nn.Linear(width, 64)
        self.which = torch.nn.Linear(width, pictures)


def cells(lat):
    """N x 16 x 8 x 8 -> N x 16 cells x 64"""
    n, c = lat.shape[:2]
    return lat.view(n, c, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, 16, c * 4)


def guess_loss(heads, h, first, want, target):
    """h: B x L x C; first: index of the end token; target: B x 16 x 64"""
    length = h.size(1)
    pos = torch.arange(length, device=h.device)
    mask = (pos[None] >= first[:, None]).float()
    out = heads.cell(h)
    aim = target[:, pos % 16]
    mse = (((out - aim) ** 2).mean(-1) * mask).sum() / mask.sum()
    # The number is asked at one random position after the end: cheap, covers all.
    at = first + (torch.rand(len(first), device=h.device) * (length - first)).long()
    logits = heads.which(h[torch.arange(len(h), device=h.device), at])
    return mse, F.cross_entropy(logits, want), (logits.argmax(1) == want).float().mean()


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    arguments(ap, 8)
    ap.add_argument("--captions", type=int, default=48)
    ap.add_argument("--lr", type=float, default=4e-3)
    ap.add_argument("--common", type=float, default=0.0, metavar="SHARE",
                    help="share of the draws that goes to the pictures of common.txt")
    ap.add_argument("--which", type=float, default=0.1, help="weight of the picture's number")
    ap.add_argument("--resume", action="store_true", help="go on from text.pt with a new schedule")
    a = ap.parse_args()
    begin(a.work, a.threads)
    torch.manual_seed(a.seed)
    dev = a.device
    team = Team(dev)
    lat = cells(torch.load(os.path.join(a.work, "latents.pt"))).to(dev)
    cap = Captions(a.work, np.load(os.path.join(a.work, "pictures.npy")), seed=time.time() + team.rank)
    tok, text, _ = build(a.work)
    heads = Heads(text.config.hidden_size, len(lat))
    both = torch.nn.ModuleDict({"text": text, "heads": heads}).to(dev)
    opt = Muon(both.named_parameters(), a.lr, plain=("embedding.weight", "heads."), team=team)
    if a.resume:
        st = torch.load(os.path.join(a.work, "text.pt"), map_location=dev)
        text.load_state_dict(st["text"])
        heads.load_state_dict(st["heads"])
    clock, stop = Clock(a.minutes, a.until), Stop()
    rng = np.random.default_rng()
    draw = Draw(cap.meta, a.captions, a.common, rng)
    torch.manual_seed(int(time.time()) + 7919 * team.rank)
    share, done, step, seen, t0 = 0.0, False, 0, 0, time.time()
    mean = [0.0, 0.0, 0.0]
    while share < 1 and not done:
        idx = draw()
        ids = tok([cap.draw(i) for i in idx], padding="max_length", max_length=LENGTH,
                  truncation=True, return_tensors="pt").input_ids
        first = (ids == tok.eos_token_id).int().argmax(1).to(dev)
        for g in opt.param_groups:
            g["lr"] = rate(share, step, a.lr, warm=40, floor=0.02)
        with autocast(dev):
            h = text(input_ids=ids.to(dev)).last_hidden_state
            mse, ce, hit = guess_loss(heads, h, first, torch.tensor(idx, device=dev), lat[idx])
        (mse + a.which * ce).backward()
        share, end, m, c, r = team.mean_grads(both.parameters(), (
            0.0 if team.rank else clock.share(), float(stop.now), mse.item(), ce.item(), hit.item()))
        done = end > 0
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        seen += a.captions * team.size
        mean = [x + (y / team.size - x) * max(0.03, 1 / step) for x, y in zip(mean, (m, c, r))]
        if step % 25 == 0 and not team.rank:
            log(a.work, "text.log", step=step, mse=mean[0], ce=mean[1], right=mean[2],
                per_s=seen / (time.time() - t0), share=share)
            seen, t0 = 0, time.time()
    with torch.no_grad():
        p = text.get_parameter([n for n, _ in text.named_parameters() if "position_embedding" in n][0])
        for i in range(LENGTH, len(p)):
            p[i] = p[LENGTH - 16 + i % 16]
    if not team.rank:
        save(os.path.join(a.work, "text.pt"), dict(text=text.state_dict(), heads=heads.state_dict()))


if __name__ == "__main__":
    main()
