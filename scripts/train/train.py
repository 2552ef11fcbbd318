#!/usr/bin/env python3
"""Stages 5 and 7: train the UNet from nothing, and the text encoder on from stage 4.

Works on the stored latents of stage 2, with v-prediction and the noise schedule
of Stable Diffusion. State (model, running mean, optimizer, step) is saved every
few minutes and picked up again; the learning rate follows the time budget.
"""
import argparse
import os
import time

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from captions import Captions, Draw
from common import Clock, Ema, Muon, Stop, Team, arguments, autocast, begin, log, rate, save

TEXT = dict(hidden_size=160, intermediate_size=320, num_hidden_layers=3, num_attention_heads=5,
            max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=160)
# Most weights sit at 4x4, where they are cheap to use; 8x8 has convolutions only.
# attention_head_dim is, as in every published model, the number of heads.
UNET = dict(
    sample_size=8, in_channels=16, out_channels=16, layers_per_block=1,
    block_out_channels=(80, 144),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    mid_block_type="UNetMidBlock2DCrossAttn",
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=160, attention_head_dim=(5, 6), norm_num_groups=16,
)
SCHEDULE = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012,
                beta_schedule="scaled_linear", prediction_type="v_prediction",
                clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                timestep_spacing="leading")


def build(work):
    tok = CLIPTokenizer.from_pretrained(os.path.join(work, "tokenizer"))
    end = tok.convert_tokens_to_ids("<|endoftext|>")
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tok), bos_token_id=tok.convert_tokens_to_ids("<|startoftext|>"),
        eos_token_id=end, pad_token_id=end, **TEXT))
    unet = UNet2DConditionModel(**UNET)
    return tok, text, unet


def main():
    from train_text import Heads, cells, guess_loss  # which itself needs build()
    ap = argparse.ArgumentParser(description=__doc__)
    arguments(ap, 60)
    ap.add_argument("--captions", type=int, default=64, help="captions a step and process")
    ap.add_argument("--noises", type=int, default=2, help="noises a caption: shares the text encoder")
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--drop", type=float, default=0.1, help="share of empty captions, for guidance")
    ap.add_argument("--common", type=float, default=0.0, metavar="SHARE",
                    help="share of the draws that goes to the pictures of common.txt")
    ap.add_argument("--freeze-text", action="store_true", help="a fifth cheaper")
    ap.add_argument("--steps", type=int, default=0, help="stop after so many steps (tests)")
    a = ap.parse_args()
    begin(a.work, a.threads)
    torch.manual_seed(a.seed)
    dev = a.device
    if dev == "cuda" and "LOCAL_RANK" in os.environ:
        dev = "cuda:" + os.environ["LOCAL_RANK"]
        torch.cuda.set_device(dev)
    team = Team(dev)
    lat = torch.load(os.path.join(a.work, "latents.pt")).to(dev)
    grid = cells(lat)
    cap = Captions(a.work, np.load(os.path.join(a.work, "pictures.npy")), seed=time.time() + team.rank)
    tok, text, unet = build(a.work)
    text, unet = text.to(dev), unet.to(dev, memory_format=torch.channels_last)
    n_text, n_unet = (sum(p.numel() for p in m.parameters()) for m in (text, unet))
    print("parameters: text encoder %d, unet %d" % (n_text, n_unet))
    both = torch.nn.ModuleDict({"text": text, "unet": unet})
    pre = torch.load(os.path.join(a.work, "text.pt"), map_location=dev)
    text.load_state_dict(pre["text"])
    # Kept on a little, so that the UNet's noisy gradients do not undo what was learned.
    heads = Heads(text.config.hidden_size, len(lat)).to(dev)
    heads.load_state_dict(pre["heads"])
    heads.requires_grad_(False)
    if a.freeze_text:
        text.requires_grad_(False)
    opt = Muon(both.named_parameters(), a.lr, plain=("embedding.weight", "conv_in", "conv_out"), team=team)
    ema = Ema(both.parameters(), 0.998)
    ckpt = os.path.join(a.work, "unet.pt")
    step, used = 0, 0.0
    if os.path.exists(ckpt) and not a.fresh:
        st = torch.load(ckpt, map_location=dev)
        both.load_state_dict(st["model"])
        if st["opt"]:
            opt.load_state_dict(st["opt"])
        ema.load(st["ema"])
        step, used = st["step"], st["used"]
    clock, stop = Clock(a.minutes, a.until, time.time() - used), Stop()
    ac = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(dev)
    run_text, run_unet = text, unet
    if a.compile:
        run_text, run_unet = torch.compile(text), torch.compile(unet)

    def state():
        return dict(model=both.state_dict(), opt=opt.state_dict(), ema=ema.state(), step=step,
                    used=time.time() - clock.start)

    # Same weights in all processes, other pictures and noise in each.
    torch.manual_seed(int(time.time()) + 7919 * team.rank)
    rng = np.random.default_rng()
    share, done = clock.share(), False
    n = a.captions * a.noises
    draw = Draw(cap.meta, a.captions, a.common, rng)
    last, acc, seen, t0 = time.time(), 0.0, 0, time.time()
    while not done and share < 1 and not (a.steps and step >= a.steps):
        idx = draw()
        words = ["" if rng.random() < a.drop else cap.draw(i) for i in idx]
        ids = tok(words, padding="max_length", max_length=77, truncation=True,
                  return_tensors="pt").input_ids.to(dev)
        x = lat[idx].repeat(a.noises, 1, 1, 1)
        # One timestep from each of n slices, mixed: less noise between steps. More of
        # the late ones: there the words decide, and the little that is wrong is seen.
        t = ((torch.randperm(n) + torch.rand(n)) / n).pow(0.6).mul(1000).long().clamp(0, 999).to(dev)
        noise = torch.randn_like(x)
        al, sg = ac[t].sqrt().view(-1, 1, 1, 1), (1 - ac[t]).sqrt().view(-1, 1, 1, 1)
        for g in opt.param_groups:
            g["lr"] = rate(share, step, a.lr, warm=30, floor=0.02)
        with autocast(dev):
            h = run_text(input_ids=ids).last_hidden_state
            mse = ce = torch.zeros(())
            full = [] if a.freeze_text else [j for j, w in enumerate(words) if w]
            if full:
                first = (ids[full] == tok.eos_token_id).int().argmax(1)
                who = [idx[j] for j in full]
                mse, ce, _ = guess_loss(heads, h[full], first, torch.tensor(who, device=dev), grid[who])
            h = h.repeat(a.noises, 1, 1)
            v = run_unet((al * x + sg * noise).contiguous(memory_format=torch.channels_last),
                         t, encoder_hidden_states=h).sample.float()
        each = (v - (al * noise - sg * x)).square().mean((1, 2, 3))
        loss = each.mean()
        (loss + 0.1 * mse.to(dev) + 0.02 * ce.to(dev)).backward()
        # All must agree on the clock and on stopping, or their weights part.
        share, end, total = team.mean_grads(both.parameters(), (
            0.0 if team.rank else clock.share(), float(stop.now), loss.item()))
        done = end > 0
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        seen += n * team.size
        total /= team.size
        acc = 0.98 * acc + 0.02 * total if acc else total
        if team.rank:
            continue
        ema.update()
        if step % 20 == 0:
            with torch.no_grad():
                part = [each[(t >= lo) & (t < lo + 250)].mean().item() for lo in (0, 250, 500, 750)]
            log(a.work, "unet.log", step=step, loss=acc, part=[round(p, 3) for p in part], ce=ce.item(),
                lr=opt.param_groups[0]["lr"], per_s=seen / (time.time() - t0), share=share)
            seen, t0 = 0, time.time()
        if time.time() - last > 240:
            save(ckpt, state())
            last = time.time()
    if not team.rank:
        save(ckpt, state())


if __name__ == "__main__":
    main()
