#!/usr/bin/env python3
"""Stable Diffusion's networks (1.x and 2.x) in plain PyTorch, under the parameter names that diffusers and transformers give
them: for names and shapes where diffusers is not installed, and as the PyTorch that latentd is timed beside.

    torch_twin.py --names {sd15,sd-turbo}           every parameter: file, name, shape
    torch_twin.py --time FILE.json [--models DIR]   times on a GPU: fp16, channels_last, SDPA (see docs/gpu.md)
                  [--only NAME] [--variants eager graph compile] [--seconds 300] [--runs 200]
    torch_twin.py --check                           against diffusers and transformers, which it needs; no GPU

The networks are built from the config dicts of make_random_model.py. A config key that the twin does not know is refused.
"""
import argparse
import gc
import json
import os
import statistics
import sys
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

# Key: default. A key of the second kind has one value that the twin builds.
UNET_KEYS = dict(in_channels=4, out_channels=4, block_out_channels=None, down_block_types=None, up_block_types=None,
                 layers_per_block=2, cross_attention_dim=None, attention_head_dim=8, use_linear_projection=False,
                 norm_num_groups=32, norm_eps=1e-5, downsample_padding=1, flip_sin_to_cos=True, freq_shift=0, sample_size=None)
UNET_ONLY = dict(act_fn="silu", center_input_sample=False, mid_block_scale_factor=1)
VAE_KEYS = dict(in_channels=3, out_channels=3, latent_channels=4, block_out_channels=None, layers_per_block=1,
                norm_num_groups=32, scaling_factor=0.18215, sample_size=None, down_block_types=None, up_block_types=None)
VAE_ONLY = dict(act_fn="silu")
TEXT_KEYS = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                 max_position_embeddings=77, hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=None,
                 bos_token_id=None, eos_token_id=None, pad_token_id=None)


def settle(config, keys, only):
    """CONFIG over the defaults of KEYS, as attributes."""
    for key, value in config.items():
        if key not in keys and only.get(key) != value:
            raise ValueError(f"the twin does not know {key} = {value!r}")
    return SimpleNamespace(**{**keys, **config})


class Resnet(nn.Module):
    def __init__(self, c_in, c, groups, eps, time_c=0):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c_in, eps), nn.Conv2d(c_in, c, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_c, c) if time_c else None
        self.norm2, self.conv2 = nn.GroupNorm(groups, c, eps), nn.Conv2d(c, c, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c, 1) if c_in != c else None

    def forward(self, x, time=None):
        """time: the SiLU of the time embedding"""
        h = self.conv1(F.silu(self.norm1(x)))
        if time is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    def __init__(self, c, heads, context_c=None, bias=False):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(i, c, bias) for i in (c, context_c or c, context_c or c))
        self.to_out = nn.ModuleList([nn.Linear(c, c)])

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VaeAttention(Attention):
    """One head, over the pixels of a picture, with its own norm and residual."""
    def __init__(self, c, groups):
        super().__init__(c, 1, bias=True)
        self.group_norm = nn.GroupNorm(groups, c, 1e-6)

    def forward(self, x):
        y = super().forward(to_tokens(self.group_norm(x)))
        return x + to_picture(y, x)


def to_tokens(x):
    """[N, C, H, W] -> [N, HW, C], free of charge in channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_picture(tokens, like):
    return tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


class GEGLU(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.proj = nn.Linear(c, 8 * c)

    def forward(self, x):
        h, gate = self.proj(x).chunk(2, -1)
        return h * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.net = nn.Sequential(GEGLU(c), nn.Identity(), nn.Linear(4 * c, c))  # the one between is a dropout in diffusers


class TransformerBlock(nn.Module):
    def __init__(self, c, heads, context_c):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(c), Attention(c, heads)
        self.norm2, self.attn2 = nn.LayerNorm(c), Attention(c, heads, context_c)
        self.norm3, self.ff = nn.LayerNorm(c), FeedForward(c)

    def forward(self, x, text):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff.net(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, c, heads, context_c, groups, linear):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, c, 1e-6)
        self.proj_in, self.proj_out = (nn.Linear(c, c) if linear else nn.Conv2d(c, c, 1) for _ in range(2))
        self.transformer_blocks = nn.ModuleList([TransformerBlock(c, heads, context_c)])

    def forward(self, x, text):
        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))
        h = self.transformer_blocks[0](h, text)
        return x + (to_picture(self.proj_out(h), x) if self.linear else self.proj_out(to_picture(h, x)))


class Sampler(nn.Module):
    """Halves a picture, or doubles it to SIZE."""
    def __init__(self, c, up, padding=1):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(c, c, 3, stride=1 if up else 2, padding=padding)

    def forward(self, x, size=None):
        if self.up:
            x = F.interpolate(x, size=size or [2 * n for n in x.shape[2:]], mode="nearest")
        elif self.conv.padding[0] == 0:
            x = F.pad(x, (0, 1, 0, 1))  # at the right and at the bottom only
        return self.conv(x)


class Level(nn.Module):
    """A down or up block: resnets of channels PAIRS, a transformer behind each where there are any, and a sampler."""
    def __init__(self, pairs, norm, time_c=0, transformer=None, sampler=None):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(*pair, *norm, time_c) for pair in pairs)
        self.attentions = nn.ModuleList(transformer() for _ in pairs) if transformer else None
        self.downsamplers = nn.ModuleList([sampler]) if sampler and not sampler.up else None
        self.upsamplers = nn.ModuleList([sampler]) if sampler and sampler.up else None

    def layer(self, i, x, time=None, text=None):
        x = self.resnets[i](x, time)
        return x if self.attentions is None else self.attentions[i](x, text)

    def forward(self, x):
        for i in range(len(self.resnets)):
            x = self.layer(i, x)
        for sampler in self.downsamplers or self.upsamplers or ():
            x = sampler(x)
        return x


class Middle(nn.Module):
    def __init__(self, c, norm, attention, time_c=0):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(c, c, *norm, time_c) for _ in range(2))
        self.attentions = nn.ModuleList([attention])

    def forward(self, x, time=None, text=()):
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time), *text), time)


class TimeEmbedding(nn.Module):
    def __init__(self, c, time_c):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(c, time_c), nn.Linear(time_c, time_c)


class UNet2DConditionModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.cfg = u = settle(config, UNET_KEYS, UNET_ONLY)
        c, n, time_c = list(u.block_out_channels), len(u.block_out_channels), 4 * u.block_out_channels[0]
        norm, layers = (u.norm_num_groups, u.norm_eps), u.layers_per_block
        # as published: "attention_head_dim" is the number of heads
        heads = [u.attention_head_dim] * n if isinstance(u.attention_head_dim, int) else list(u.attention_head_dim)

        def transformer(i):
            return Transformer(c[i], heads[i], u.cross_attention_dim, u.norm_num_groups, u.use_linear_projection)

        def level(kind, i, pairs, sampler):
            if kind not in ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"):
                raise ValueError(f"the twin does not know the block {kind}")
            return Level(pairs, norm, time_c, (lambda: transformer(i)) if kind.startswith("Cross") else None, sampler)

        self.conv_in = nn.Conv2d(u.in_channels, c[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(c[0], time_c)
        self.down_blocks, self.up_blocks, skips, x = nn.ModuleList(), nn.ModuleList(), [c[0]], c[0]
        for i, kind in enumerate(u.down_block_types):
            last = i == n - 1
            self.down_blocks.append(level(kind, i, [(x if j == 0 else c[i], c[i]) for j in range(layers)],
                                          None if last else Sampler(c[i], False, u.downsample_padding)))
            skips += [c[i]] * (layers + (not last))
            x = c[i]
        self.mid_block = Middle(x, norm, transformer(n - 1), time_c)
        for k, kind in enumerate(u.up_block_types):
            i = n - 1 - k
            pairs = [((x if j == 0 else c[i]) + skips.pop(), c[i]) for j in range(layers + 1)]
            self.up_blocks.append(level(kind, i, pairs, Sampler(c[i], True) if i else None))
            x = c[i]
        self.conv_norm_out = nn.GroupNorm(u.norm_num_groups, c[0], u.norm_eps)
        self.conv_out = nn.Conv2d(c[0], u.out_channels, 3, padding=1)

    def forward(self, x, timestep, text):
        """x [N, 4, H, W], timestep [N] fp32, text [N, S, C]"""
        half = self.cfg.block_out_channels[0] // 2
        turn = torch.exp(torch.arange(half, device=x.device) * (-9.210340371976184 / (half - self.cfg.freq_shift)))  # 1/10000
        t = timestep[:, None].float() * turn
        t = torch.cat([t.cos(), t.sin()] if self.cfg.flip_sin_to_cos else [t.sin(), t.cos()], -1).to(x.dtype)
        time = F.silu(self.time_embedding.linear_2(F.silu(self.time_embedding.linear_1(t))))
        x = self.conv_in(x)
        skips = [x]
        for b in self.down_blocks:
            for i in range(len(b.resnets)):
                x = b.layer(i, x, time, text)
                skips.append(x)
            if b.downsamplers is not None:
                x = b.downsamplers[0](x)
                skips.append(x)
        x = self.mid_block(x, time, (text,))
        for b in self.up_blocks:
            for i in range(len(b.resnets)):
                x = b.layer(i, torch.cat([x, skips.pop()], 1), time, text)
            if b.upsamplers is not None:
                x = b.upsamplers[0](x, skips[-1].shape[2:])  # where halving rounded up, not quite twice the size
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Encoder(nn.Module):
    def __init__(self, v):
        super().__init__()
        c, norm = v.block_out_channels, (v.norm_num_groups, 1e-6)
        self.conv_in = nn.Conv2d(v.in_channels, c[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level([(c[max(i - 1, 0)] if j == 0 else c[i], c[i]) for j in range(v.layers_per_block)], norm,
                  sampler=Sampler(c[i], False, 0) if i + 1 < len(c) else None) for i in range(len(c)))
        self.mid_block = Middle(c[-1], norm, VaeAttention(c[-1], v.norm_num_groups))
        self.conv_norm_out = nn.GroupNorm(v.norm_num_groups, c[-1], 1e-6)
        self.conv_out = nn.Conv2d(c[-1], 2 * v.latent_channels, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for b in self.down_blocks:
            x = b(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, v):
        super().__init__()
        c, norm = v.block_out_channels[::-1], (v.norm_num_groups, 1e-6)
        self.conv_in = nn.Conv2d(v.latent_channels, c[0], 3, padding=1)
        self.mid_block = Middle(c[0], norm, VaeAttention(c[0], v.norm_num_groups))
        self.up_blocks = nn.ModuleList(
            Level([(c[max(i - 1, 0)] if j == 0 else c[i], c[i]) for j in range(v.layers_per_block + 1)], norm,
                  sampler=Sampler(c[i], True) if i + 1 < len(c) else None) for i in range(len(c)))
        self.conv_norm_out = nn.GroupNorm(v.norm_num_groups, c[-1], 1e-6)
        self.conv_out = nn.Conv2d(c[-1], v.out_channels, 3, padding=1)

    def forward(self, x):
        x = self.mid_block(self.conv_in(x))
        for b in self.up_blocks:
            x = b(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.cfg = v = settle(config, VAE_KEYS, VAE_ONLY)
        self.encoder, self.decoder = Encoder(v), Decoder(v)
        self.quant_conv = nn.Conv2d(2 * v.latent_channels, 2 * v.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(v.latent_channels, v.latent_channels, 1)

    def encode(self, x):
        """[N, 3, H, W] -> the mean and log variance of the latents, one after the other"""
        return self.quant_conv(self.encoder(x))

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


class TextAttention(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class TextLayer(nn.Module):
    def __init__(self, t):
        super().__init__()
        self.quick = t.hidden_act == "quick_gelu"
        self.layer_norm1 = nn.LayerNorm(t.hidden_size, t.layer_norm_eps)
        self.self_attn = TextAttention(t.hidden_size, t.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(t.hidden_size, t.layer_norm_eps)
        self.mlp = nn.ModuleDict(dict(fc1=nn.Linear(t.hidden_size, t.intermediate_size),
                                      fc2=nn.Linear(t.intermediate_size, t.hidden_size)))

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        h = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class CLIPTextModel(nn.Module):
    """Under the names of published files: all begin with text_model."""
    def __init__(self, config):
        super().__init__()
        self.cfg = t = settle(config, TEXT_KEYS, {})
        if t.hidden_act not in ("quick_gelu", "gelu"):
            raise ValueError(f"the twin does not know hidden_act = {t.hidden_act!r}")
        self.text_model = nn.ModuleDict(dict(
            embeddings=nn.ModuleDict(dict(token_embedding=nn.Embedding(t.vocab_size, t.hidden_size),
                                          position_embedding=nn.Embedding(t.max_position_embeddings, t.hidden_size))),
            encoder=nn.ModuleDict(dict(layers=nn.ModuleList(TextLayer(t) for _ in range(t.num_hidden_layers)))),
            final_layer_norm=nn.LayerNorm(t.hidden_size, t.layer_norm_eps)))

    def forward(self, ids):
        e = self.text_model["embeddings"]
        x = e["token_embedding"](ids) + e["position_embedding"].weight[:ids.shape[1]]
        for layer in self.text_model["encoder"]["layers"]:
            x = layer(x)
        return self.text_model["final_layer_norm"](x)


NETWORKS = {"text": (CLIPTextModel, "text_encoder/model.fp16.safetensors"),
            "unet": (UNet2DConditionModel, "unet/diffusion_pytorch_model.fp16.safetensors"),
            "vae": (AutoencoderKL, "vae/diffusion_pytorch_model.fp16.safetensors")}


def shapes(cls, config):
    """{name: shape} of every parameter, computing and allocating nothing."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in cls(config).state_dict().items()}


# ---- Schedulers: as many UNet calls as latentd makes, with the same arithmetic between them ----

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32)**2, 0).tolist()


def euler_one_step(denoise, noise):
    """EulerDiscreteScheduler, trailing, one step: from noise at t = 999 to the picture in one go."""
    sigma = ((1 - ALPHAS[999]) / ALPHAS[999])**0.5
    x = noise * sigma
    return x - sigma * denoise(x / (sigma**2 + 1)**0.5, 999)


def pndm_timesteps(steps):
    """PNDM without Runge-Kutta makes one call more than steps: the second timestep comes twice."""
    t = [round(i * (1000 // steps)) + 1 for i in range(steps)]
    return (t[:-1] + t[-2:])[::-1] if steps > 1 else t


def pndm(denoise, x, steps):
    stride, past, first = 1000 // steps, [], x
    for i, t in enumerate(pndm_timesteps(steps)):
        e = denoise(x, t)
        back = t - stride
        if i == 1:  # the same step again, with a better idea of its direction
            back, t, x = t, t + stride, first
            e = (e + past[-1]) / 2
        else:
            past = past[-3:] + [e]
            weights = [(1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24)]
            e = sum(w * p for w, p in zip(weights[len(past) - 1], reversed(past)))
        a, b = ALPHAS[t], ALPHAS[back] if back >= 0 else ALPHAS[0]
        root = a * (1 - b)**0.5 + (a * (1 - a) * b)**0.5
        x = (b / a)**0.5 * x - (b - a) / root * e
    return x


# ---- Times ----

REQUESTS = {"sd-turbo": dict(steps=1, guidance=0.0), "sd15": dict(steps=20, guidance=7.5)}


class Pipeline:
    """One model on one device. PART: {name: callable}; wrap them to time another way of running them."""
    def __init__(self, spec, request, device, dtype, folder=None):
        from make_random_model import randomize
        self.request, self.load_seconds = request, None
        net, started = {}, time.perf_counter()
        for i, (key, (cls, path)) in enumerate(NETWORKS.items()):
            with torch.device("meta"):
                net[key] = cls(spec[key]).requires_grad_(False).eval()
            if folder:
                from safetensors.torch import load_file
                net[key].load_state_dict(load_file(f"{folder}/{path}", device=str(device)), strict=True, assign=True)
            else:
                net[key] = net[key].to_empty(device=device)
                randomize(net[key], i)
            net[key] = net[key].to(dtype=dtype, memory_format=torch.channels_last)
        if folder:
            settle_device(device)
            self.load_seconds = time.perf_counter() - started
        self.part = {"text": net["text"], "unet": net["unet"], "decode": net["vae"].decode}
        self.factor = net["vae"].cfg.scaling_factor
        u, t, g = net["unet"].cfg, net["text"].cfg, torch.Generator().manual_seed(7)
        self.n = n = 2 if request["guidance"] > 1 else 1  # with guidance a second picture, for the negative prompt
        self.ids = torch.randint(0, t.vocab_size, (n, t.max_position_embeddings), generator=g).to(device)
        noise = torch.randn(1, u.in_channels, u.sample_size, u.sample_size, generator=g)
        self.noise = noise.to(device, dtype).contiguous(memory_format=torch.channels_last)
        self.times = {t: torch.full((n,), float(t), device=device) for t in [*pndm_timesteps(request["steps"]), 999]}
        self.inputs = {"text": (self.ids,), "unet": (torch.cat([self.noise] * n), self.times[999], self.states()),
                       "decode": (self.noise,)}

    def states(self):
        return self.part["text"](self.ids).clone()  # a replayed graph writes its next result over this one

    def denoise(self, states):
        def call(x, t):
            e = self.part["unet"](torch.cat([x] * self.n), self.times[t], states)
            return e.clone() if self.n == 1 else e[:1] + self.request["guidance"] * (e[1:] - e[:1])
        return call

    def whole(self):
        """A request from token ids to 8-bit pixels on the host."""
        denoise, steps = self.denoise(self.states()), self.request["steps"]
        z = euler_one_step(denoise, self.noise) if steps == 1 else pndm(denoise, self.noise, steps)
        rgb = self.part["decode"](z / self.factor)
        return ((rgb / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def settle_device(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def graphed(call, inputs):
    """CALL as a CUDA graph over fixed inputs and outputs: PyTorch's own kernels without their launch gaps."""
    fixed = [x.clone() for x in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(*fixed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(*fixed)

    def replay(*given):
        for to, x in zip(fixed, given):
            to.copy_(x)
        graph.replay()
        return out
    return replay


def timed(call, device, runs, seconds):
    """Median, 10th and 90th percentile of CALL in milliseconds, of RUNS runs or as many as SECONDS allow."""
    for _ in range(3):
        call()
    settle_device(device)
    gpu, taken, started = device.type == "cuda", [], time.perf_counter()
    while len(taken) < runs and (len(taken) < 5 or time.perf_counter() - started < seconds):
        if gpu:
            a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            a.record()
            call()
            b.record()
            b.synchronize()  # one at a time, as a server with one request would
            taken.append(a.elapsed_time(b))
        else:
            t = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - t))
    taken.sort()
    return dict(ms=statistics.median(taken), low=taken[len(taken) // 10], high=taken[len(taken) * 9 // 10], runs=len(taken))


def ceilings():
    """What this GPU does at best: a large matrix product and a large copy, on random numbers."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    x = torch.randn(2**30, device="cuda", dtype=torch.float16)
    y = torch.empty_like(x)
    product = timed(lambda: torch.mm(a, b), a.device, 50, 5)["ms"]
    copy = timed(lambda: y.copy_(x), a.device, 50, 5)["ms"]
    return dict(matmul_tflops=2 * 8192**3 / product * 1e-9, copy_tbps=2 * x.numel() * x.element_size() / copy * 1e-9)


def time_model(name, spec, variant, args, device, dtype, save):
    """The three networks and the whole request of one model, run as VARIANT says. SAVE after each figure."""
    folder = f"{args.models}/{spec['id']}" if args.models else None
    out = {}
    p = Pipeline(spec, REQUESTS[name], device, dtype, folder)
    if folder:  # the first load also starts CUDA and fills the page cache
        del p
        p = Pipeline(spec, REQUESTS[name], device, dtype, folder)
        out["load_seconds"] = p.load_seconds
    for part in ["decode", "unet", "text", "whole"]:  # compiling the decoder pays most
        if time.perf_counter() > args.deadline:
            print(f"{name} {variant} {part}: no time left", flush=True)
            continue
        started, error = time.perf_counter(), ""
        try:
            if part == "whole":
                call = p.whole
                out["finite"] = bool(p.part["decode"](p.noise).isfinite().all())
            else:
                if variant == "compile":
                    p.part[part] = torch.compile(p.part[part], mode="max-autotune", fullgraph=True, dynamic=False)
                elif variant == "graph":
                    p.part[part] = graphed(p.part[part], p.inputs[part])

                def call(f=p.part[part], x=p.inputs[part]):
                    return f(*x)
            call()
            settle_device(device)
            started = time.perf_counter() - started
            out[part] = dict(timed(call, device, args.runs, args.each), first_seconds=started)
        except Exception as e:  # one failure must not take the other figures with it
            error = f"{type(e).__name__}: {e}".splitlines()[0]
            out[part] = dict(error=error)
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            out.update(device_used_bytes=total - free, allocated_bytes=torch.cuda.max_memory_allocated())
        save(name, variant, out)
        print(f"{name} {variant} {part}: " + (error or f"{out[part]['ms']:.3f} ms, median of {out[part]['runs']} "
              f"(first call {out[part]['first_seconds']:.1f} s)"), flush=True)


def time_all(args, models, device, dtype):
    found = {}
    args.deadline = time.perf_counter() + args.seconds
    report = dict(torch=torch.__version__, dtype=str(dtype), figures=found,
                  device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu")

    def save(name, variant, out):
        found.setdefault(name, {})[variant] = out
        with open(args.time + ".part", "w", encoding="utf-8") as f:
            json.dump(report, f, indent=1)
        os.replace(args.time + ".part", args.time)

    torch.backends.cudnn.benchmark = True
    if device.type == "cuda":
        report.update(ceilings())
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        for variant in args.variants:
            for name, spec in models.items():
                if time.perf_counter() > args.deadline:
                    print(f"{name} {variant}: no time left", flush=True)
                    continue
                time_model(name, spec, variant, args, device, dtype, save)
                torch.compiler.reset()
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
    parts = [x for by in found.values() for figures in by.values() for x in figures.values() if isinstance(x, dict)]
    return 0 if parts and not any("error" in x for x in parts) else 1


# ---- Against diffusers ----

TINY_UNET = dict(sample_size=16, block_out_channels=[16, 32, 32], cross_attention_dim=24, norm_num_groups=8,
                 down_block_types=["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
                 up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2)
TINY_VAE = dict(down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
                block_out_channels=[8, 16, 24], norm_num_groups=4, scaling_factor=0.18215)
TINY_TEXT = dict(vocab_size=99, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3,
                 max_position_embeddings=13, bos_token_id=0, eos_token_id=2, pad_token_id=1)
TINY = [dict(id="tiny/conv", vae=TINY_VAE, text=dict(TINY_TEXT, hidden_act="quick_gelu"),
             unet=dict(TINY_UNET, attention_head_dim=4)),
        dict(id="tiny/linear", vae=dict(TINY_VAE, layers_per_block=1), text=dict(TINY_TEXT, hidden_act="gelu"),
             unet=dict(TINY_UNET, attention_head_dim=[2, 4, 8], use_linear_projection=True, layers_per_block=1,
                       downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6))]


def reference(key, config):
    """The same network of diffusers or transformers."""
    import diffusers
    import transformers
    if key == "text":
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    return {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[key].from_config(config)


def published_names(state):
    """transformers has left the prefix out since its version 5; files have it."""
    return {k if k.startswith("text_model.") or "embeddings" not in k and "layer" not in k else "text_model." + k: v
            for k, v in state.items() if "position_ids" not in k}


def check(say):
    import diffusers
    from make_random_model import MODELS, randomize
    bad = 0

    def expect(ok, what):
        nonlocal bad
        bad += not ok
        say(f"{'ok  ' if ok else 'FAIL'} {what}")

    def close(a, b, what):
        d = float((a - b).norm() / b.norm())
        expect(d < 1e-5, f"{what}: relative L2 {d:.1e}")

    for name, spec in [*MODELS.items(), *((t["id"], t) for t in TINY)]:
        for key, (cls, _) in NETWORKS.items():
            with torch.device("meta"):
                state = reference(key, spec[key]).state_dict()
            want = {k: tuple(v.shape) for k, v in (published_names(state) if key == "text" else state).items()}
            got = shapes(cls, spec[key])
            size = sum(torch.Size(s).numel() for s in got.values())
            expect(got == want, f"{name} {key}: {len(got)} names and shapes, {size} parameters" + ("" if got == want
                   else f"; differing: {sorted(set(got.items()) ^ set(want.items()))[:6]}"))
    torch.manual_seed(0)
    with torch.no_grad():
        for spec in TINY:
            net = {}
            for i, (key, (cls, _)) in enumerate(NETWORKS.items()):
                a, b = cls(spec[key]).eval(), reference(key, spec[key]).eval()
                randomize(a, i)
                names = b.state_dict() if key == "text" else None
                state = a.state_dict() if names is None else {k: a.state_dict().get(k, a.state_dict().get("text_model." + k))
                                                              for k in names if "position_ids" not in k}
                b.load_state_dict(state, strict=names is None)
                net[key] = a.to(memory_format=torch.channels_last), b
            ids = torch.randint(0, 99, (2, 13))
            text = net["text"][0](ids)
            close(text, net["text"][1](ids).last_hidden_state, f"{spec['id']} text states")
            for h, w in (16, 16), (13, 22):
                x, t = torch.randn(2, 4, h, w), torch.tensor([3.0, 801.0])
                close(net["unet"][0](x, t, text), net["unet"][1](x, t, text).sample, f"{spec['id']} unet {h}x{w}")
            close(net["vae"][0].decode(x), net["vae"][1].decode(x).sample, f"{spec['id']} vae decode")
            x = torch.randn(1, 3, 24, 32)
            want = net["vae"][1].encode(x).latent_dist
            close(net["vae"][0].encode(x)[:, :4], want.mean, f"{spec['id']} vae encode")
        x, fixed = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
        for name, steps, mine in ("sd-turbo", 1, lambda f: euler_one_step(f, x)), ("sd15", 20, lambda f: pndm(f, x, 20)):
            config = MODELS[name]["scheduler"]
            s = getattr(diffusers, config["_class_name"]).from_config(config)
            s.set_timesteps(steps)
            y, calls = x * s.init_noise_sigma, []
            for t in s.timesteps:
                y = s.step(torch.tanh(s.scale_model_input(y, t)) + fixed * t / 1000, t, y).prev_sample
            got = mine(lambda z, t: calls.append(t) or torch.tanh(z) + fixed * t / 1000)
            close(got, y, f"{name} scheduler, {steps} steps")
            expect(calls == [int(t) for t in s.timesteps], f"{name} timesteps, {len(calls)} calls")
    return bad


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--names", choices=["sd15", "sd-turbo"])
    ap.add_argument("--check", action="store_true")
    ap.add_argument("--time", metavar="FILE.json")
    ap.add_argument("--models", help="what make_random_model.py wrote; without it the weights are drawn here")
    ap.add_argument("--only", choices=["sd15", "sd-turbo"])
    ap.add_argument("--variants", nargs="+", default=["eager", "graph", "compile"], choices=["eager", "graph", "compile"])
    ap.add_argument("--seconds", type=float, default=300, help="no new figure is begun after these")
    ap.add_argument("--each", type=float, default=5, help="at most these for one figure, where five runs fit")
    ap.add_argument("--runs", type=int, default=200, help="at most these for one figure")
    ap.add_argument("--tiny", action="store_true", help="a tiny model on any device: tries the code, its times say nothing")
    args = ap.parse_args()
    if args.check:
        sys.exit(1 if check(print) else 0)
    from make_random_model import MODELS
    if args.names:
        for key, (cls, path) in NETWORKS.items():
            for name, shape in shapes(cls, MODELS[args.names][key]).items():
                print(path, name, *shape)
    elif args.time:
        gpu = torch.cuda.is_available()
        if not gpu and not args.tiny:
            sys.exit("torch sees no GPU here")
        models = {n: TINY[n == "sd15"] if args.tiny else MODELS[n] for n in REQUESTS if args.only in (None, n)}
        sys.exit(time_all(args, models, torch.device("cuda" if gpu else "cpu"), torch.float16 if gpu else torch.float32))
    else:
        ap.error("give --names, --time or --check")


if __name__ == "__main__":
    main()
