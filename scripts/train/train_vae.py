#!/usr/bin/env python3
"""Stage 2: train the AutoencoderKL (16x16 pixels to one 16-channel latent).

The latents get fixed noise while training, so that the decoder forgives small
errors of the denoiser. At the end the channels are whitened by folding the
transform into quant_conv and post_quant_conv: the latents have mean 0 and
spread 1 in every channel, and scaling_factor is 1.
--decoder trains on with the encoder frozen: latents stay valid, edges sharpen.
"""
import argparse
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from common import Clock, Ema, Muon, Stop, arguments, autocast, begin, log, rate, save

CONFIG = dict(
    in_channels=3, out_channels=3, sample_size=128, latent_channels=16,
    block_out_channels=(16, 32, 64, 96, 96), layers_per_block=1, norm_num_groups=8,
    down_block_types=("DownEncoderBlock2D",) * 5, up_block_types=("UpDecoderBlock2D",) * 5,
    scaling_factor=1.0,
)


def loss_of(y, x):
    """L1 and a bit of L2, plus L1 on edges at two scales: flat art lives on edges."""
    d = y - x
    out = d.abs().mean() + d.square().mean()
    for _ in range(2):
        gx, gy = d[..., 1:] - d[..., :-1], d[..., 1:, :] - d[..., :-1, :]
        out = out + 0.5 * (gx.abs().mean() + gy.abs().mean())
        d = F.avg_pool2d(d, 2)
        out = out + 0.5 * d.abs().mean()
    return out


@torch.no_grad()
def moments(vae, x, dev, size=32):
    out = []
    for i in range(0, len(x), size):
        out.append(vae.encode(x[i:i + size].to(dev)).latent_dist.mean.float().cpu())
    return torch.cat(out)


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
    ap.add_argument("--decoder", action="store_true")
    a = ap.parse_args()
    begin(a.work, a.threads)
    torch.manual_seed(a.seed)
    rng = np.random.default_rng(a.seed + int(time.time()))
    dev = a.device
    pics = torch.from_numpy(np.load(os.path.join(a.work, "pictures.npy")))
    pics = (pics.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    vae = AutoencoderKL(**CONFIG).to(dev, memory_format=torch.channels_last)
    ckpt = os.path.join(a.work, "vae-decoder.pt" if a.decoder else "vae.pt")
    if a.decoder:
        final = os.path.join(a.work, "vae")
        vae = AutoencoderKL.from_pretrained(final).to(dev, memory_format=torch.channels_last)
        with torch.no_grad():
            lat = moments(vae, pics, dev)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    opt = Muon(vae.named_parameters(), a.lr, plain=("conv_in", "decoder.conv_out"))
    ema = Ema(vae.parameters(), 0.998)
    step, used = 0, 0.0
    if os.path.exists(ckpt) and not a.fresh:
        st = torch.load(ckpt, map_location=dev)
        vae.load_state_dict(st["model"])
        opt.load_state_dict(st["opt"])
        ema.load(st["ema"])
        step, used = st["step"], st["used"]
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
        return dict(model=vae.state_dict(), opt=opt.state_dict(), ema=ema.state(),
                    step=step, used=time.time() - clock.start)

    order, last, acc, seen, t0 = [], time.time(), 0.0, 0, time.time()
    while clock.share() < 1 and not stop.now:
        if len(order) < a.batch:
            order = rng.permutation(len(pics)).tolist()
        idx = [order.pop() for _ in range(a.batch)]
        x = pics[idx].to(dev)
        # Mirrored pictures are new pictures for free; the denoiser never sees them.
        flip = torch.rand(a.batch) < (0.0 if a.decoder else 0.3)
        x[flip] = x[flip].flip(-1)
        lr = rate(clock.share(), step, a.lr, warm=50, floor=0.005)
        for g in opt.param_groups:
            g["lr"] = lr
        with autocast(dev):
            inp = lat[idx].to(dev) if a.decoder else x
            n = a.noise * torch.randn(a.batch, CONFIG["latent_channels"], 8, 8, device=dev)
            y, z = run(inp, n)
            loss = loss_of(y.float(), x)
            if not a.decoder:  # keeps the latents near unit size, or noise means nothing
                loss = loss + 1e-3 * z.square().mean() + 0.01 * F.relu(z.square().mean() - 1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        ema.update()
        step += 1
        acc = 0.98 * acc + 0.02 * loss.item() if step > 1 else loss.item()
        seen += a.batch
        if step % 50 == 0:
            with torch.no_grad():
                mse = (y.float() - x).square().mean() / 4
            log(a.work, "vae.log", step=step, loss=acc, psnr=float(-10 * torch.log10(mse)),
                std=z.std().item(), lr=lr, per_s=seen / (time.time() - t0), share=clock.share())
            seen, t0 = 0, time.time()
        if time.time() - last > 180:
            save(ckpt, state())
            last = time.time()
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
