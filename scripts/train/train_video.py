#!/usr/bin/env python3
"""Video stage 3: train the UNetSpatioTemporalConditionModel on clips that are made while it trains.

Noise levels, preconditioning and conditions are those that diffusers' StableVideoDiffusionPipeline uses: v-prediction over
sigma, the timestep 0.25 ln sigma, the code of the noisy input picture beside every frame, the image encoder's projection
as the one token, and (fps - 1, motion bucket, noise strength) as added time ids. The motion of a clip is what the image
encoder's head says of its first frame. Clips do not depend on fps: it is drawn at random.

The pipeline's guidance grows from 1 in the first frame to 3 in the last. A picture that fixes its clip has nothing to gain
from that: where the unconditional half is the weaker one, guidance only overdoes contrast. So the guided output is what is
trained: without conditions the UNet learns to answer 0, with them it learns an answer that is right once it is multiplied by
the guidance of its frame.

Frames are learned one by one. Given the picture, its motion, the bucket and the frame's number, a frame is fixed but for
what the noise hides, so nothing need pass between frames yet: the temporal convolutions and the temporal attention stay
zero until train_video_time.py trains them, the temporal transformer's other parts bring the frame's number in, and a
step sees many clips.
"""
import argparse
import os
import time

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

import train_image_encoder
from common import Clock, Ema, Meter, Muon, Stop, Team, arguments, begin, rate, save
from video_data import FRAMES, background, frame, place_of, sprites
from video_vae import LATENTS, code_of, encode

CONFIG = dict(
    sample_size=16, in_channels=2 * LATENTS, out_channels=LATENTS, num_frames=FRAMES, block_out_channels=(96, 96),
    down_block_types=("DownBlockSpatioTemporal",) * 2, up_block_types=("UpBlockSpatioTemporal",) * 2, layers_per_block=1,
    transformer_layers_per_block=1, num_attention_heads=3, cross_attention_dim=train_image_encoder.CONFIG["projection_dim"],
    addition_time_embed_dim=32, projection_class_embeddings_input_dim=96,
)

# SVD's least is 0.002; a short training is better spent on what is above this.
SIGMA_MIN, SIGMA_MAX = 0.2, 700.0
# Where the sampler stops. Below it the noise that is left hides nothing that the picture does not say better: frames get
# crisper, each in its own way, which flickers.
SIGMA_LAST = 6.0
GUIDANCE = (1.0, 3.0)  # of the first and the last frame, as the pipeline has it


class Clips:
    """Batches of clips as the UNet meets them: SHARED frames of each."""

    SHARED = 4

    def __init__(self, work, rng):
        self.pics, _ = sprites(work)
        self.code, self.rng, self.order = code_of(work, self.pics), rng, []
        st = torch.load(os.path.join(work, "encoder.pt"))
        self.eye = train_image_encoder.build().eval()
        self.eye.load_state_dict(st["model"])
        self.head = torch.nn.Linear(self.eye.config.projection_dim, len(st["head"]["bias"]))
        self.head.load_state_dict(st["head"])

    def pick(self):
        if not self.order:
            self.order = self.rng.permutation(len(self.pics)).tolist()
        return self.order.pop()

    def buckets_and_numbers(self, n):
        return self.rng.integers(0, 256, n), self.rng.integers(0, FRAMES, n)

    @torch.no_grad()
    def __call__(self, n):
        """Frame numbers [N], latents [N, 1, C, h, w], image latents [N, C, h, w], tokens [N, 1, D], time ids [N, 3]"""
        rng, each = self.rng, self.SHARED if n % self.SHARED == 0 else 1
        of = np.repeat(np.arange(n // each), each)
        scenes = [(self.pics[self.pick()], background(rng), place_of(rng)) for _ in range(n // each)]
        first = np.stack([frame(*s, 0, 0, 0) for s in scenes])
        token = self.eye(pixel_values=train_image_encoder.as_pixels(first)).image_embeds
        kinds = self.head(token).argmax(1).tolist()
        bucket, number = self.buckets_and_numbers(n)
        self.frames = frames = np.stack([frame(*scenes[i], kinds[i], b / 255, t) for i, b, t in zip(of, bucket, number)])
        strength = np.where(rng.random(n // each) < 0.5, 0.02, 0.1 * rng.random(n // each)).astype(np.float32)
        noisy = first * 2 - 1 + strength[:, None, None, None] * rng.standard_normal(first.shape, dtype=np.float32)
        noisy, token, strength = noisy[of], token[of], strength[of]
        z = torch.from_numpy(encode(frames * 2 - 1, self.code)).permute(0, 3, 1, 2).contiguous()[:, None]
        c = torch.from_numpy(encode(noisy, self.code)).permute(0, 3, 1, 2).contiguous()
        fps = np.where(rng.random(n) < 0.5, 6, rng.integers(1, 31, n))
        ids = torch.tensor(np.stack([fps - 1, bucket, strength], 1), dtype=torch.float32)
        return torch.from_numpy(number), z, c, token[:, None], ids


class FrameNumber(torch.nn.Module):
    """Stands for the sinusoids of the frame's number in its video: of the numbers that are set."""

    now = None

    def __init__(self, sinusoids):
        super().__init__()
        self.sinusoids = sinusoids

    def forward(self, _):
        return self.sinusoids(FrameNumber.now)


def build():
    """The UNet, with the branches between frames at zero"""
    unet = UNetSpatioTemporalConditionModel(**CONFIG)
    for n, p in unet.named_parameters():
        if "temporal_res_block" in n or "temporal_transformer_blocks.0.attn1" in n or "temporal_transformer_blocks.0.norm1" in n:
            torch.nn.init.zeros_(p)
            p.requires_grad_(False)
    return unet


def norm(m, x):
    """GroupNorm of [N, C, H, W]: PyTorch's is many times faster in this layout than in that of its fast convolutions."""
    if x.dim() != 4:
        return F.group_norm(x, m.num_groups, m.weight, m.bias, m.eps)
    with torch.autocast("cpu", enabled=False):
        x = x.contiguous()
        y = F.group_norm(x, m.num_groups, m.weight.to(x.dtype), m.bias.to(x.dtype), m.eps)
        return y.contiguous(memory_format=torch.channels_last)


def frame_by_frame(unet):
    """Makes UNET compute single frames whose numbers are set in FrameNumber.now"""
    for m in list(unet.modules()):
        if isinstance(m, TransformerSpatioTemporalModel):
            m.time_proj = FrameNumber(m.time_proj)
        if isinstance(m, torch.nn.GroupNorm):
            m.forward = lambda x, m=m: norm(m, x)
        if isinstance(m, SpatioTemporalResBlock):
            m.forward = lambda x, temb=None, image_only_indicator=None, m=m: m.spatial_res_block(x, temb)
            for c in m.spatial_res_block.modules():
                if isinstance(c, torch.nn.Conv2d):
                    c.to(memory_format=torch.channels_last)


def sigmas(n, shift):
    """Log-normal levels as SVD's, and now and then any level; none far below where the sampler stops (SIGMA_MIN)."""
    s = (shift + 1.4 * torch.randn(n)).exp()
    wide = torch.exp(torch.empty(n).uniform_(np.log(SIGMA_MIN), np.log(SIGMA_MAX)))
    return torch.where(torch.rand(n) < 0.15, wide, s).clamp(min=0.7 * SIGMA_MIN)


def noised(z, s):
    """The codes Z with noise of the levels S [N]: what the UNet gets of them, and what v must be for
    x / (s^2 + 1) - s / sqrt(s^2 + 1) v to be z"""
    w, noise = s[:, None, None, None, None], torch.randn_like(z)
    c_in = 1 / (w ** 2 + 1).sqrt()
    return (z + w * noise) * c_in, (w * z - noise) * -c_in


def error_of(v, target, guidance, keep):
    """Of the guided output; without conditions v ought to be 0"""
    return torch.where(keep[:, None, None, None, None], guidance * v - target, (guidance - 1) * v)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    arguments(ap, 80)
    ap.add_argument("--batch", type=int, default=32, help="frames a step of each process")
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--shift", type=float, default=0.9, help="mean of ln sigma")
    ap.add_argument("--drop", type=float, default=0.06, help="share of clips without conditions")
    a = ap.parse_args()
    begin(a.work, a.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(a.seed)
    team = Team(a.device)
    clips = Clips(a.work, np.random.default_rng([int(time.time()), team.rank]))
    unet = build()
    frame_by_frame(unet)
    opt = Muon(unet.named_parameters(), a.lr, plain=("conv_in", "conv_out.", "embed"), team=team)
    ema = Ema(unet.parameters(), 0.995)
    path, step, used = os.path.join(a.work, "video.pt"), 0, 0.0
    if os.path.exists(path) and not a.fresh:
        st = torch.load(path)
        unet.load_state_dict(st["model"])
        opt.load_state_dict(st["opt"])
        ema.load(st["ema"])
        step, used = st["step"], st["used"]
    run = torch.compile(unet, dynamic=False) if a.compile else unet
    clock, stop, last = Clock(a.minutes, a.until, time.time() - used), Stop(), time.time()
    torch.manual_seed(int(time.time()) + 7919 * team.rank)
    meter = Meter(team)

    def store():
        save(path, dict(model=unet.state_dict(), opt=opt.state_dict(), ema=ema.state(), step=step,
                        used=time.time() - clock.start))

    share, done = clock.share(), False
    while share < 1 and not done:
        FrameNumber.now, z, c, token, ids = clips(a.batch)
        guidance = torch.linspace(*GUIDANCE, FRAMES)[FrameNumber.now][:, None, None, None, None]
        keep = torch.rand(a.batch) >= a.drop
        c, token = c * keep[:, None, None, None], token * keep[:, None, None]
        s = sigmas(a.batch, a.shift)
        x, target = noised(z, s)
        for g in opt.param_groups:
            g["lr"] = rate(share, step, a.lr, warm=60, floor=0.01)
        with torch.autocast(a.device, torch.bfloat16):
            v = run(torch.cat([x, c[:, None]], 2), 0.25 * s.log(), token, ids).sample
        each = error_of(v.float(), target, guidance, keep).square().mean((1, 2, 3, 4))
        each.mean().backward()
        share, end, total = team.mean_grads(list(unet.parameters()), (
            0.0 if team.rank else clock.share(), float(stop.now), each.mean().item()))
        done = end > 0
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        ema.update()
        step += 1
        meter.seen += a.batch * team.size
        for k, e, full in zip(s.tolist(), each.tolist(), keep.tolist()):
            b = "bare" if not full else "high" if k > 10 else "mid" if k > 1 else "low"
            meter.note(b, e)
        if team.rank:
            continue
        if step % 25 == 0:
            meter.write(a.work, "video.log", step=step, loss=total / team.size, share=share)
        if time.time() - last > 120:
            store()
            last = time.time()
    if not team.rank:
        store()


if __name__ == "__main__":
    main()
