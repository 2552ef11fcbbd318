#!/usr/bin/env python3
"""Stage 2: train the AutoencoderKL (16x16 pixels to one 16-channel latent).

The latents get fixed noise while training, so that the decoder forgives small
errors of the denoiser. At the end the channels are whitened by folding the
transform into quant_conv and post_quant_conv: the latents have mean 0 and
spread 1 in every channel, and scaling_factor is 1.
--refine trains on from the finished autoencoder and holds the latents near where
they were, so that what the later stages learned stays of use.
--decoder trains on with the encoder frozen: latents stay valid, edges sharpen. With
--denoised half of the latents are guesses of the trained UNet from noisy ones, so
that the decoder learns to draw clean pictures from what it will really get.
"""
import argparse
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from common import Clock, Ema, Muon, Stop, Team, arguments, autocast, begin, log, rate, save

CONFIG = dict(
    in_channels=3, out_channels=3, sample_size=128, latent_channels=16,
    block_out_channels=(16, 32, 64, 96, 96), layers_per_block=1, norm_num_groups=8,
    down_block_types=("DownEncoderBlock2D",) * 5, up_block_types=("UpDecoderBlock2D",) * 5,
    scaling_factor=1.0,
)


def loss_of(y, x):
    """L1 and a bit of L2, plus L1 on edges at two scales: flat art lives on edges.

    The mean colour of each 16x16 counts squared: L1 settles for the usual colour
    of a shape, and few emoji are green.
    """
    d = y - x
    out = d.abs().mean() + d.square().mean()
    for _ in range(2):
        gx, gy = d[..., 1:] - d[..., :-1], d[..., 1:, :] - d[..., :-1, :]
        out = out + 0.5 * (gx.abs().mean() + gy.abs().mean())
        d = F.avg_pool2d(d, 2)
        out = out + 0.5 * d.abs().mean()
    return out + 2.0 * opponent(F.avg_pool2d(d, 4)).square().mean()


def opponent(rgb):
    """Lightness, green against magenta, red against blue: N x 3 x H x W -> the same"""
    r, g, b = rgb.unbind(1)
    return torch.stack((r + g + b, 2 * g - r - b, r - b), 1) / 3


@torch.no_grad()
def moments(vae, x, dev, size=32):
    out = []
    for i in range(0, len(x), size):
        out.append(vae.encode(x[i:i + size].to(dev)).latent_dist.mean.float().cpu())
    return torch.cat(out)


class Guesser:
    """Latents as the denoiser sees them: its guess of z from z with noise of a late step."""

    def __init__(self, work, pics, dev):
        from captions import Captions  # these import this module's neighbours, not the other way round
        from train import SCHEDULE, build
        from diffusers import DDIMScheduler
        self.tok, text, unet = build(work)
        both = torch.nn.ModuleDict({"text": text, "unet": unet})
        st = torch.load(os.path.join(work, "unet.pt"), map_location="cpu")
        both.load_state_dict(st["model"])
        for p, e in zip(both.parameters(), st["ema"]["s"]):
            p.data.copy_(e)
        self.both, self.dev = both.to(dev).eval().requires_grad_(False), dev
        self.cap = Captions(work, pics, seed=time.time())
        self.ac = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(dev)

    @torch.no_grad()
    def __call__(self, z, idx):
        ids = self.tok([self.cap.draw(i) for i in idx], padding="max_length", max_length=77,
                       truncation=True, return_tensors="pt").input_ids.to(self.dev)
        t = torch.randint(20, 450, (len(idx),), device=self.dev)
        al, sg = self.ac[t].sqrt().view(-1, 1, 1, 1), (1 - self.ac[t]).sqrt().view(-1, 1, 1, 1)
        noisy = al * z + sg * torch.randn_like(z)
        h = self.both["text"](input_ids=ids).last_hidden_state
        v = self.both["unet"](noisy, t, encoder_hidden_states=h).sample.float()
        return al * noisy - sg * v


@torch.no_grad()
def whiten(vae, x, dev):
    """Fold z -> W (z - mu) into the 1x1 convolutions around the latents."""
    z = moments(vae, x, dev)
    c = z.size(1)
    flat = z.permute(0, 2, 3, 1).reshape(-1, c).double()
    mu = flat.mean(0)
    cov = torch.cov(flat.T)
    val, vec = torch.linalg.eigh(cov)
    w = (vec @ torch.diag(val.clamp_min(1e-8).rsqrt()) @ vec.T).to(dev)
    back = (vec @ torch.diag(val.clamp_min(1e-8).sqrt()) @ vec.T).to(dev)
    mu = mu.to(dev)
    q, p = vae.quant_conv, vae.post_quant_conv
    qw, qb = q.weight[:c, :, 0, 0].double(), q.bias[:c].double()
    q.weight[:c, :, 0, 0] = (w @ qw).float()
    q.bias[:c] = (w @ (qb - mu)).float()
    # The spread is no longer learned: say what the decoder was trained with.
    q.weight[c:] = 0
    q.bias[c:] = -6.0
    pw, pb = p.weight[:, :, 0, 0].double(), p.bias.double()
    p.weight[:, :, 0, 0] = (pw @ back).float()
    p.bias.copy_((pb + pw @ mu).float())


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    arguments(ap, 35)
    ap.add_argument("--batch", type=int, default=4)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--noise", type=float, default=0.1)
    ap.add_argument("--refine", action="store_true")
    ap.add_argument("--decoder", action="store_true")
    ap.add_argument("--denoised", action="store_true", help="with --decoder: half the latents are guesses")
    ap.add_argument("--anchor", type=float, default=0.02, help="with --refine: pull towards the old latents")
    a = ap.parse_args()
    begin(a.work, a.threads)
    torch.manual_seed(a.seed)
    team = Team(a.device)
    rng = np.random.default_rng([a.seed + int(time.time()), team.rank])
    dev = a.device
    pics = torch.from_numpy(np.load(os.path.join(a.work, "pictures.npy")))
    pics = (pics.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    vae = AutoencoderKL(**CONFIG).to(dev, memory_format=torch.channels_last)
    name = "vae-decoder.pt" if a.decoder else "vae-refine.pt" if a.refine else "vae.pt"
    ckpt = os.path.join(a.work, name)
    if a.decoder or a.refine:
        final = os.path.join(a.work, "vae")
        vae = AutoencoderKL.from_pretrained(final).to(dev, memory_format=torch.channels_last)
        old = torch.load(os.path.join(a.work, "latents.pt"))  # the means of this autoencoder
    # Reads each cell's mean colour from its latent: a straight way for colour into the encoder.
    probe = torch.nn.Conv2d(CONFIG["latent_channels"], 3, 1).to(dev)
    if a.decoder:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        probe.requires_grad_(False)
    both = torch.nn.ModuleDict({"vae": vae, "probe": probe})
    params = [p for p in both.parameters() if p.requires_grad]
    opt = Muon(both.named_parameters(), a.lr, plain=("conv_in", "decoder.conv_out", "probe"), team=team)
    ema = Ema(vae.parameters(), 0.998)
    step, used = 0, 0.0
    if os.path.exists(ckpt) and not a.fresh:
        st = torch.load(ckpt, map_location=dev)
        both.load_state_dict(st["model"])
        opt.load_state_dict(st["opt"])
        ema.load(st["ema"])
        step, used = st["step"], st["used"]
    guess = Guesser(a.work, np.load(os.path.join(a.work, "pictures.npy")), dev) if a.denoised else None
    clock, stop = Clock(a.minutes, a.until, time.time() - used), Stop()

    def forward(x, n):
        z = vae.encode(x).latent_dist.mean
        return vae.decode(z + n).sample, z

    def forward_decoder(z, n):
        return vae.decode(z + n).sample, z

    run = forward_decoder if a.decoder else forward
    if a.compile:
        run = torch.compile(run)

    def state():
        return dict(model=both.state_dict(), opt=opt.state_dict(), ema=ema.state(),
                    step=step, used=time.time() - clock.start)

    # Same weights in all processes, other pictures and noise in each.
    torch.manual_seed(int(time.time()) + 7919 * team.rank)
    order, last, acc, seen, t0 = [], time.time(), 0.0, 0, time.time()
    share, done = clock.share(), False
    while share < 1 and not done:
        if len(order) < a.batch:
            order = rng.permutation(len(pics)).tolist()
        idx = [order.pop() for _ in range(a.batch)]
        x = pics[idx].to(dev)
        # Mirrored pictures are new pictures for free; the denoiser never sees them.
        flip = torch.rand(a.batch) < (0.0 if a.decoder else 0.3)
        x[flip] = x[flip].flip(-1)
        lr = rate(share, step, a.lr, warm=50, floor=0.005)
        for g in opt.param_groups:
            g["lr"] = lr
        with autocast(dev):
            inp = old[idx].to(dev) if a.decoder else x
            n = a.noise * torch.randn(a.batch, CONFIG["latent_channels"], 8, 8, device=dev)
            if guess:
                half = a.batch // 2
                n[:half] = guess(inp[:half], idx[:half]) - inp[:half]
            y, z = run(inp, n)
            loss = loss_of(y.float(), x)
            if not a.decoder:  # keeps the latents near unit size, or noise means nothing
                loss = loss + 1e-3 * z.square().mean() + 0.01 * F.relu(z.square().mean() - 1)
                loss = loss + opponent(probe(z) - F.avg_pool2d(x, 16)).square().mean()
            if a.refine:  # pictures, not their mirror images
                far = (z - old[idx].to(dev)).square().mean((1, 2, 3))
                loss = loss + a.anchor * (far * ~flip.to(dev)).mean()
        loss.backward()
        # All must agree on the clock and on stopping, or their weights part.
        share, end, total = team.mean_grads(params, (
            0.0 if team.rank else clock.share(), float(stop.now), loss.item()))
        done = end > 0
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        ema.update()
        step += 1
        total /= team.size
        acc = 0.98 * acc + 0.02 * total if acc else total
        seen += a.batch * team.size
        if team.rank:
            continue
        if step % 50 == 0:
            with torch.no_grad():
                mse = (y.float() - x).square().mean() / 4
            log(a.work, "vae.log", step=step, loss=acc, psnr=float(-10 * torch.log10(mse)),
                std=z.std().item(), lr=lr, per_s=seen / (time.time() - t0), share=share,
                moved=(z - old[idx].to(dev)).square().mean().item() if a.refine else 0.0)
            seen, t0 = 0, time.time()
        if time.time() - last > 180:
            save(ckpt, state())
            last = time.time()
    if team.rank:
        return
    save(ckpt, state())
    ema.swap()
    if not a.decoder:
        whiten(vae, pics, dev)
    vae.save_pretrained(os.path.join(a.work, "vae"))
    with torch.no_grad():
        lat = moments(vae, pics, dev)
        mse = []
        for i in range(0, len(pics), 32):
            y = vae.decode(lat[i:i + 32].to(dev)).sample.clamp(-1, 1).cpu()
            mse.append((y - pics[i:i + 32]).square().mean((1, 2, 3)) / 4)
    mse = torch.cat(mse)
    torch.save(lat, os.path.join(a.work, "latents.pt"))
    log(a.work, "vae.log", final_psnr=float(-10 * torch.log10(mse).mean()),
        worst=float(-10 * torch.log10(mse.max())), std=lat.std().item())


if __name__ == "__main__":
    main()
