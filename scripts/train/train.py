#!/usr/bin/env python3
"""Stage 4: train the text encoder and the UNet together, from nothing.

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

from captions import Captions
from common import Clock, Ema, Muon, Stop, arguments, autocast, begin, log, rate, save

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
    ap = argparse.ArgumentParser(description=__doc__)
    arguments(ap, 60)
    ap.add_argument("--captions", type=int, default=64, help="captions a step")
    ap.add_argument("--noises", type=int, default=2, help="noises a caption: shares the text encoder")
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--drop", type=float, default=0.1, help="share of empty captions, for guidance")
    ap.add_argument("--steps", type=int, default=0, help="stop after so many steps (tests)")
    a = ap.parse_args()
    begin(a.work, a.threads)
    torch.manual_seed(a.seed)
    dev = a.device
    lat = torch.load(os.path.join(a.work, "latents.pt")).to(dev)
    cap = Captions(a.work, np.load(os.path.join(a.work, "pictures.npy")), seed=time.time())
    tok, text, unet = build(a.work)
    text, unet = text.to(dev), unet.to(dev, memory_format=torch.channels_last)
    n_text, n_unet = (sum(p.numel() for p in m.parameters()) for m in (text, unet))
    print("parameters: text encoder %d, unet %d" % (n_text, n_unet))
    both = torch.nn.ModuleDict({"text": text, "unet": unet})
    opt = Muon(both.named_parameters(), a.lr, plain=("embedding.weight", "conv_in", "conv_out"))
    ema = Ema(both.parameters(), 0.998)
    ckpt = os.path.join(a.work, "unet.pt")
    step, used = 0, 0.0
    if os.path.exists(ckpt) and not a.fresh:
        st = torch.load(ckpt, map_location=dev)
        both.load_state_dict(st["model"])
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

    rng = np.random.default_rng()
    n = a.captions * a.noises
    order, last, acc, seen, t0 = [], time.time(), 0.0, 0, time.time()
    while clock.share() < 1 and not stop.now and not (a.steps and step >= a.steps):
        if len(order) < a.captions:
            order = order + rng.permutation(len(lat)).tolist()
        idx, order = order[:a.captions], order[a.captions:]
        words = ["" if rng.random() < a.drop else cap.draw(i) for i in idx]
        ids = tok(words, padding="max_length", max_length=77, truncation=True,
                  return_tensors="pt").input_ids.to(dev)
        x = lat[idx].repeat(a.noises, 1, 1, 1)
        # One timestep from each of n equal slices, mixed: less noise between steps.
        t = (torch.randperm(n) + torch.rand(n)).mul(1000 / n).long().clamp(0, 999).to(dev)
        noise = torch.randn_like(x)
        al, sg = ac[t].sqrt().view(-1, 1, 1, 1), (1 - ac[t]).sqrt().view(-1, 1, 1, 1)
        for g in opt.param_groups:
            g["lr"] = rate(clock.share(), step, a.lr, warm=100, floor=0.005)
        with autocast(dev):
            h = run_text(input_ids=ids).last_hidden_state.repeat(a.noises, 1, 1)
            v = run_unet((al * x + sg * noise).contiguous(memory_format=torch.channels_last),
                         t, encoder_hidden_states=h).sample.float()
        each = (v - (al * noise - sg * x)).square().mean((1, 2, 3))
        loss = each.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        ema.update()
        step += 1
        acc = 0.98 * acc + 0.02 * loss.item() if step > 1 else loss.item()
        seen += n
        if step % 50 == 0:
            with torch.no_grad():
                part = [each[(t >= lo) & (t < lo + 250)].mean().item() for lo in (0, 250, 500, 750)]
            log(a.work, "unet.log", step=step, loss=acc, part=[round(p, 3) for p in part],
                lr=opt.param_groups[0]["lr"], per_s=seen / (time.time() - t0), share=clock.share())
            seen, t0 = 0, time.time()
        if time.time() - last > 240:
            save(ckpt, state())
            last = time.time()
    save(ckpt, state())


if __name__ == "__main__":
    main()
