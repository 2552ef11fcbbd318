#!/usr/bin/env python3
"""Video stage 5: train what passes between frames, on whole clips; all else stays as train_video.py left it.

Every frame of a video starts from noise of its own, and what the UNet lets through of that noise differs from frame to
frame: it flickers. The temporal convolutions and the temporal attention, zero so far, see the noise of all frames. They
learn the same guided output, at the levels that the sampler visits, and besides that its change in time: the second
difference over the frames of the error counts, too.
"""
import argparse
import os
import time

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.resnet import TemporalResnetBlock

from common import Clock, Ema, Meter, Muon, Stop, Team, arguments, averaged, begin, rate, save
from train_video import GUIDANCE, SIGMA_LAST, SIGMA_MAX, Clips, build, error_of, noised, norm
from video_data import FRAMES

TEMPORAL = ("temporal_res_block", "time_mixer", "temporal_transformer_blocks.0.attn1", "temporal_transformer_blocks.0.norm1")


def temporal(unet):
    """Names and parameters of what passes between frames"""
    return [(n, p) for n, p in unet.named_parameters() if any(t in n for t in TEMPORAL)]


def over_frames(conv, x):
    """A convolution of 3x1x1, [B, C, F, H, W], as three products: many times faster here than PyTorch's"""
    b, c, f, h, w = x.shape
    x = F.pad(x.reshape(b, c, f * h * w), (h * w, h * w))
    k = conv.weight[..., 0, 0]
    y = sum(k[..., i].to(x.dtype) @ x[..., i * h * w:(i + f) * h * w] for i in range(3))
    return (y + conv.bias.to(x.dtype)[:, None]).reshape(b, -1, f, h, w)


def temporal_resnet(m, x, temb):
    """TemporalResnetBlock where input and output have as many channels"""
    x = x.contiguous()
    h = over_frames(m.conv1, F.silu(group_norm(m.norm1, x)))
    h = h + m.time_emb_proj(F.silu(temb)).permute(0, 2, 1)[..., None, None].to(h.dtype)
    return x + over_frames(m.conv2, F.silu(group_norm(m.norm2, h)))


def group_norm(m, x):
    with torch.autocast("cpu", enabled=False):
        return F.group_norm(x, m.num_groups, m.weight.to(x.dtype), m.bias.to(x.dtype), m.eps)


def prepare(unet):
    """Freezes all but the temporal parts; their last layers are zero, so nothing changes at first"""
    for p in unet.parameters():
        p.requires_grad_(False)
    for n, p in temporal(unet):
        p.requires_grad_(True)
        if "time_mixer" in n:
            continue
        if "conv2" in n or "to_out" in n or n.endswith("bias"):
            torch.nn.init.zeros_(p)
        elif "norm" in n:
            torch.nn.init.ones_(p)
        else:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)


def fast(unet):
    """The same sums, in layouts that are fast on a CPU"""
    for m in unet.modules():
        if isinstance(m, torch.nn.GroupNorm):  # of frames; those between frames are called by temporal_resnet()
            m.forward = lambda x, m=m: norm(m, x)
        if isinstance(m, TemporalResnetBlock):
            m.forward = lambda x, temb, m=m: temporal_resnet(m, x, temb)
        if isinstance(m, torch.nn.Conv2d):
            m.to(memory_format=torch.channels_last)


class WholeClips(Clips):
    """Batches of whole clips"""

    SHARED = FRAMES

    def __call__(self, n):
        """Latents [N, F, C, h, w], image latents [N, C, h, w], tokens [N, 1, D], time ids [N, 3]"""
        _, z, c, token, ids = super().__call__(n * FRAMES)
        return z.unflatten(0, (n, FRAMES))[:, :, 0], c[::FRAMES], token[::FRAMES], ids[::FRAMES]

    def buckets_and_numbers(self, n):
        return np.repeat(self.rng.integers(0, 256, n // FRAMES), FRAMES), np.tile(np.arange(FRAMES), n // FRAMES)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    arguments(ap, 60)
    ap.add_argument("--batch", type=int, default=4, help="clips a step of each process")
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--change", type=float, default=0.3, help="what the second difference in time counts")
    ap.add_argument("--drop", type=float, default=0.06, help="share of clips without conditions")
    a = ap.parse_args()
    begin(a.work, a.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(a.seed)
    team = Team(a.device)
    clips = WholeClips(a.work, np.random.default_rng([int(time.time()), team.rank]))
    unet, path, step, used = build(), os.path.join(a.work, "video_time.pt"), 0, 0.0
    averaged(unet, list(unet.named_parameters()), torch.load(os.path.join(a.work, "video.pt")))
    prepare(unet)
    fast(unet)
    parts = temporal(unet)
    opt = Muon(parts, a.lr, plain=("time_mixer",), team=team)
    ema = Ema([p for _, p in parts], 0.995)
    if os.path.exists(path) and not a.fresh:
        st = torch.load(path)
        unet.load_state_dict(st["model"])
        opt.load_state_dict(st["opt"])
        ema.load(st["ema"])
        step, used = st["step"], st["used"]
    clock, stop, last = Clock(a.minutes, a.until, time.time() - used), Stop(), time.time()
    torch.manual_seed(int(time.time()) + 7919 * team.rank)
    meter = Meter(team)
    guidance = torch.linspace(*GUIDANCE, FRAMES)[:, None, None, None]

    def store():
        save(path, dict(model=unet.state_dict(), opt=opt.state_dict(), ema=ema.state(), step=step,
                        used=time.time() - clock.start))

    share, done = clock.share(), False
    while share < 1 and not done:
        z, c, token, ids = clips(a.batch)
        keep = torch.rand(a.batch) >= a.drop
        c, token = c * keep[:, None, None, None], token * keep[:, None, None]
        s = torch.exp(torch.empty(a.batch).uniform_(np.log(0.7 * SIGMA_LAST), np.log(SIGMA_MAX)))
        x, target = noised(z, s)
        x = torch.cat([x, c[:, None].expand(-1, FRAMES, -1, -1, -1)], 2)
        for g in opt.param_groups:
            g["lr"] = rate(share, step, a.lr, warm=60, floor=0.01)
        with torch.autocast(a.device, torch.bfloat16):
            v = unet(x, 0.25 * s.log(), token, ids).sample.float()
        error = error_of(v, target, guidance, keep)
        each = error.square().mean((1, 2, 3, 4))
        change = (error[:, 2:] - 2 * error[:, 1:-1] + error[:, :-2]).square().mean((1, 2, 3, 4))
        (each + a.change * change).mean().backward()
        share, end, total = team.mean_grads([p for _, p in parts], (
            0.0 if team.rank else clock.share(), float(stop.now), each.mean().item()))
        done = end > 0
        torch.nn.utils.clip_grad_norm_([p for _, p in parts], 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        ema.update()
        step += 1
        meter.seen += a.batch * team.size
        for k, e, d, full in zip(s.tolist(), each.tolist(), change.tolist(), keep.tolist()):
            b = "bare" if not full else "high" if k > 60 else "low"
            meter.note(b, e)
            meter.note(b + "_change", d)
        if team.rank:
            continue
        if step % 25 == 0:
            meter.write(a.work, "video_time.log", step=step, loss=total / team.size, share=share)
        if time.time() - last > 120:
            store()
            last = time.time()
    if not team.rank:
        store()


if __name__ == "__main__":
    main()
