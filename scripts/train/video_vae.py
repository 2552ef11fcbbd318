#!/usr/bin/env python3
"""Video stage 2: the autoencoder. Its encoder is not trained but written down; its decoder is trained.

The encoder is a linear map, the principal components of 8x8 pixels of clips (32 of 192 kept), written into the weights of
an AutoencoderKLTemporalDecoder: residual branches are zero, the three halvings gather 2x2 cells each, and where the
architecture has a norm and a SiLU after the last block, each component z goes through them as the group {z, -z, K}: the
constant K makes the group's spread a constant, and silu(z) - silu(-z) = z. A linear code of cells moves as the picture
moves, which is easier to learn for a small UNet than a code that was itself learned. White is 0.

The decoder sees the code with noise, and pictures alone: its temporal branches add nothing (their last convolutions are
zero), so frames are decoded one by one.
"""
import argparse
import os
import time

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.resnet import SpatioTemporalResBlock

from common import Clock, Ema, Muon, Stop, arguments, begin, log, rate, save
from train_vae import loss_of
from video_data import FRAMES, MOTIONS, background, frame, place_of, sprites

LATENTS, CELL = 32, 32  # channels of the code, and of 4x4 pixels on the way there
# The constant of the norm's groups, and the norm's affine part that undoes it: the group {z, -z, K} has mean K/3 and spread
# sqrt(2) K/3. 577/408 is sqrt(2) to six digits, and all three are exact in fp16.
K, GAMMA, BETA = 3 * 408.0, 577.0, 408.0
CONFIG = dict(latent_channels=LATENTS, block_out_channels=(64, 32, 64, 96), layers_per_block=1,
              down_block_types=("DownEncoderBlock2D",) * 4, sample_size=128, scaling_factor=1.0, force_upcast=True)


def one_frame(pics, rng):
    """A frame of a clip of any motion: float32 [128, 128, 3] in -1..1"""
    i = rng.integers(len(pics))
    f = frame(pics[i], background(rng), place_of(rng), rng.integers(len(MOTIONS)), rng.random() ** 2, rng.integers(FRAMES))
    return f * 2 - 1


def cells(x, k):
    """[N, H, W, C] -> [N, H/k, W/k, k*k*C], the order (dy, dx, c) that the encoder's halvings give for k = 2"""
    n, h, w, c = x.shape
    return x.reshape(n, h // k, k, w // k, k, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // k, w // k, k * k * c)


def components(x, keep):
    """Principal components around 0 of the last axis: matrix [keep, C], spreads [keep]"""
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    val, vec = np.linalg.eigh(x.T @ x / len(x))
    return vec[:, ::-1][:, :keep].T, np.sqrt(val[::-1][:keep])


def code_of(work, pics):
    """The two matrices of the code: [32, 48] of 2x2 cells of 2x2 pixels, [32, 128] of 2x2 of those"""
    path = os.path.join(work, "code.npz")
    if not os.path.exists(path):
        rng = np.random.default_rng(1)
        x = np.stack([one_frame(pics, rng) for _ in range(1200)]) - 1
        quarter = cells(cells(x, 2), 2)
        a, _ = components(quarter, CELL)
        b, spread = components(cells(quarter @ a.T, 2), LATENTS)
        gain = spread ** -0.5  # halfway to white: small components count, but less
        gain /= np.sqrt(np.mean((gain * spread) ** 2))
        np.savez(path, a=a, b=b * gain[:, None], gain=gain)
    z = np.load(path)
    return z["a"], z["b"]


def encode(x, code):
    """What the encoder computes, fast: [N, 128, 128, 3] in -1..1 -> [N, 16, 16, 32]"""
    a, b = code
    return cells(cells(cells(x - 1, 2), 2) @ a.T.astype(np.float32), 2) @ b.T.astype(np.float32)


@torch.no_grad()
def write_encoder(vae, code):
    a, b = (torch.from_numpy(m).float() for m in code)
    e = vae.encoder
    for m in e.modules():
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)):
            m.weight.zero_()
            m.bias.zero_()
    for i in range(3):
        e.conv_in.weight[i, i, 1, 1] = 1
    e.conv_in.bias[:3] = -1
    down = [blk.downsamplers[0].conv for blk in e.down_blocks[:3]]
    eye = torch.eye(12)
    for m, conv, c in ((eye, down[0], 3), (a, down[1], 12), (b, down[2], CELL)):
        w = m.reshape(len(m), 2, 2, c).permute(0, 3, 1, 2)  # out, c, dy, dx
        conv.weight[: len(m), :c, :2, :2] = w
    for level in (1, 2):
        r = e.down_blocks[level].resnets[0].conv_shortcut
        r.weight[:CELL, :CELL, 0, 0] = torch.eye(CELL)
    r = e.down_blocks[3].resnets[0].conv_shortcut
    n, c = e.conv_norm_out, e.conv_out
    for k in range(LATENTS):
        r.weight[3 * k, k], r.weight[3 * k + 1, k], r.bias[3 * k + 2] = 1, -1, K
        n.weight[3 * k:3 * k + 3], n.bias[3 * k:3 * k + 3] = GAMMA, BETA
        c.weight[k, 3 * k, 1, 1], c.weight[k, 3 * k + 1, 1, 1] = 1, -1
    c.bias[LATENTS:] = -12
    vae.quant_conv.weight.copy_(torch.eye(2 * LATENTS)[:, :, None, None])
    vae.quant_conv.bias.zero_()


def build(code):
    vae = AutoencoderKLTemporalDecoder(**CONFIG)
    write_encoder(vae, code)
    with torch.no_grad():
        for m in vae.decoder.modules():
            if isinstance(m, SpatioTemporalResBlock):
                m.temporal_res_block.conv2.weight.zero_()
                m.temporal_res_block.conv2.bias.zero_()
        for r in vae.decoder.up_blocks[-1].resnets:
            r.spatial_res_block.conv2.weight.zero_()
            r.spatial_res_block.conv2.bias.zero_()
        t = vae.decoder.time_conv_out
        t.weight.zero_()
        t.bias.zero_()
        for i in range(3):
            t.weight[i, i, 1, 0, 0] = 1
    return vae


def trained(decoder, full=False):
    """The named parameters that training changes; without FULL not the residual branches at 128x128 either."""
    skip = ("temporal", "time_") + (() if full else tuple("up_blocks.3.resnets.%d.spatial_res_block.%s" % (i, part)
                                                        for i in (0, 1) for part in ("norm", "conv1", "conv2")))
    return [(n, p) for n, p in decoder.named_parameters() if not any(s in n for s in skip)]


def decode_alone(decoder, z, full=False):
    """The decoder without the branches that add nothing: [N, 32, 16, 16] -> [N, 3, 128, 128]"""
    h = decoder.conv_in(z)
    for r in decoder.mid_block.resnets:
        h = r.spatial_res_block(h, None)
    for b in decoder.up_blocks:
        for r in b.resnets:
            if full or b.upsamplers:
                h = r.spatial_res_block(h, None)
            elif r.spatial_res_block.conv_shortcut is not None:
                h = r.spatial_res_block.conv_shortcut(h)
        for u in b.upsamplers or ():
            h = u(h)
    return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(h)))


def quarters(z, x):
    """Of each picture and its code the quarter with most in it: it costs a quarter, and the norms hardly notice, which they
    would where there is background alone."""
    much = (z - z[..., :1, :1]).abs().sum(1, keepdim=True)
    at = F.avg_pool2d(much, 8, 1).flatten(1).argmax(1)
    return (torch.stack([c[:, i // 9:i // 9 + 8, i % 9:i % 9 + 8] for c, i in zip(z, at.tolist())]),
            torch.stack([p[:, i // 9 * 8:i // 9 * 8 + 64, i % 9 * 8:i % 9 * 8 + 64] for p, i in zip(x, at.tolist())]))


class Guesser:
    """Codes of frames as the UNet gives them: its guess from a code with noise of one of the later levels."""

    def __init__(self, work, rng):
        from train_video import GUIDANCE, Clips, FrameNumber, build, frame_by_frame  # they import this module
        self.path, self.clips, self.unet, self.loaded = os.path.join(work, "video.pt"), Clips(work, rng), build().eval(), 0
        frame_by_frame(self.unet)
        self.frame, self.guidance = FrameNumber, torch.linspace(*GUIDANCE, FRAMES)

    def load(self):
        """The newest averaged weights of the training that may be going on."""
        st = torch.load(self.path)
        self.unet.load_state_dict(st["model"])
        for p, e in zip(self.unet.parameters(), st["ema"]["s"]):
            p.data.copy_(e)
        self.loaded = time.time()

    @torch.no_grad()
    def __call__(self, n):
        """Codes [N, 32, 16, 16] and the frames that they stand for [N, 3, 128, 128]"""
        if time.time() - self.loaded > 150:
            self.load()
        self.frame.now, z, c, token, ids = self.clips(n)
        s = torch.exp(torch.empty(n).uniform_(np.log(0.2), np.log(6.0)))
        w = s[:, None, None, None, None]
        x = z + w * torch.randn_like(z)
        c_in = 1 / (w ** 2 + 1).sqrt()
        with torch.autocast("cpu", torch.bfloat16):
            v = self.unet(torch.cat([x * c_in, c[:, None]], 2), 0.25 * s.log(), token, ids).sample
        v = v * self.guidance[self.frame.now][:, None, None, None, None]
        return (x * c_in ** 2 - w * c_in * v.float())[:, 0], torch.from_numpy(self.clips.frames * 2 - 1).permute(0, 3, 1, 2)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    arguments(ap, 30)
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--noise", type=float, default=0.12)
    ap.add_argument("--crops", type=float, default=0.75, help="share of the time in which quarters of pictures are shown")
    ap.add_argument("--denoised", action="store_true", help="half of the codes are guesses of the UNet")
    ap.add_argument("--full", action="store_true", help="the residual branches at 128x128, too: half of the work")
    a = ap.parse_args()
    begin(a.work, a.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(a.seed)
    rng = np.random.default_rng(int(time.time()))
    pics, _ = sprites(a.work)
    code = code_of(a.work, pics)
    vae = build(code)
    decoder = vae.decoder
    for m in decoder.modules():
        if isinstance(m, torch.nn.Conv2d):
            m.to(memory_format=torch.channels_last)
    train = trained(decoder, a.full)
    opt = Muon(train, a.lr, plain=("conv_in", "decoder.conv_out"))
    ema = Ema((p for _, p in train), 0.998)
    path, step, used = os.path.join(a.work, "decoder.pt"), 0, 0.0
    if os.path.exists(path) and not a.fresh:
        st = torch.load(path)
        decoder.load_state_dict(st["model"])
        opt.load_state_dict(st["opt"])
        ema.load(st["ema"])
        step, used = st["step"], st["used"]
    guess = Guesser(a.work, rng) if a.denoised else None
    clock, stop, last, mean, t0 = Clock(a.minutes, a.until, time.time() - used), Stop(), time.time(), 0.0, time.time()

    def keep():
        save(path, dict(model=decoder.state_dict(), opt=opt.state_dict(), ema=ema.state(), step=step,
                        used=time.time() - clock.start))

    while clock.share() < 1 and not stop.now:
        x = np.stack([one_frame(pics, rng) for _ in range(a.batch)])
        z = torch.from_numpy(encode(x, code)).permute(0, 3, 1, 2)
        x = torch.from_numpy(x).permute(0, 3, 1, 2)
        z = z + a.noise * torch.rand(a.batch, 1, 1, 1) * torch.randn_like(z)
        if guess:
            mine, frames = guess(a.batch // 2)
            z, x = torch.cat([z[a.batch // 2:], mine]), torch.cat([x[a.batch // 2:], frames])
        if clock.share() < a.crops:
            z, x = quarters(z, x)
        for g in opt.param_groups:
            g["lr"] = rate(clock.share(), step, a.lr, warm=40, floor=0.005)
        with torch.autocast(a.device, torch.bfloat16):
            y = decode_alone(decoder, z.contiguous(memory_format=torch.channels_last), a.full)
        y = y.float()
        loss = loss_of(y, x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in train], 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        ema.update()
        step += 1
        psnr = -10 * np.log10((y.detach() - x).square().mean((1, 2, 3)).numpy() / 4 + 1e-9).mean()
        mean += max(0.02, 1 / step) * (psnr - mean)
        if step % 50 == 0:
            log(a.work, "decoder.log", step=step, loss=loss.item(), psnr=float(mean), share=clock.share(), cpu=time.process_time() / (step * a.batch),
                per_s=step * a.batch / (time.time() - t0 + used))
        if time.time() - last > 120:
            keep()
            last = time.time()
    keep()


if __name__ == "__main__":
    main()
