#!/usr/bin/env python3
"""Exports what PyTorch and diffusers compute for each op, for build/checkkernels to hold ref to.

    python scripts/export_op_goldens.py [--out tests/kernels/golden] [--seed 20]

Needs torch and diffusers, on the CPU. Writes one OP.bin for each op, little-endian:
"LDOP", version, seed (u32), torch version [16], op [24], number of cases (u32), then for each case
16 ints (i32), 8 floats (f32), and 8 arrays: n, h, w, c (i32; n = 0: absent) and n*h*w*c numbers (f32).
Activations are NHWC; weights are [O, I, KH, KW] as torch has them. What the ints and floats mean stands above each
function here and above golden() in tests/kernels/OP.c.
"""

import argparse
import os
import struct

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import AlphaBlender, TemporalResnetBlock
from diffusers.models.upsampling import Upsample2D

VERSION, INTS, FLOATS, ARRAYS = 1, 16, 8, 8
ACTS = [lambda x: x, F.silu, F.gelu, lambda x: x * torch.sigmoid(1.702 * x)]


def nhwc(x):
    """[N, C, H, W] -> [N, H, W, C]."""
    return x.permute(0, 2, 3, 1).contiguous()


def tokens(x):
    """[N, T, C] -> [N, 1, T, C]."""
    return x.unsqueeze(1)


def case(ints=(), floats=(), arrays=()):
    out = struct.pack(f"<{INTS}i", *(list(ints) + [0] * (INTS - len(ints))))
    out += struct.pack(f"<{FLOATS}f", *(list(floats) + [0.0] * (FLOATS - len(floats))))
    for a in list(arrays) + [None] * (ARRAYS - len(arrays)):
        if a is None:
            out += struct.pack("<4i", 0, 0, 0, 0)
            continue
        a = np.ascontiguousarray(a.detach().numpy() if torch.is_tensor(a) else a, dtype="<f4")
        shape = list(a.shape) + [1] * (4 - a.ndim)
        out += struct.pack("<4i", *shape) + a.tobytes()
    return out


def conv_case(n, h, w, c, o, k, stride=1, upsample=False, pad_end=False, act=0, bias=True, bc=False, res=False):
    """ints: n h w c o k stride upsample pad_end act; arrays: x, w, bias, add_bc, residual, y."""
    x, wt = torch.randn(n, c, h, w), torch.randn(o, c, k, k) / (c * k * k) ** 0.5
    b = torch.randn(o) if bias else None
    wide = F.interpolate(x, scale_factor=2.0, mode="nearest") if upsample else x
    wide = F.pad(wide, (0, 1, 0, 1)) if pad_end else wide
    y = F.conv2d(wide, wt, b, stride=stride, padding=0 if pad_end else (k - 1) // 2)
    add = torch.randn(n, o, 1, 1) if bc else None
    y = ACTS[act](y + add if bc else y)
    residual = torch.randn_like(y) if res else None
    y = y + residual if res else y
    ints = [n, h, w, c, o, k, stride, int(upsample), int(pad_end), act]
    return case(ints, [], [nhwc(x), wt, b, nhwc(add) if bc else None, nhwc(residual) if res else None, nhwc(y)])


def conv_module_case(module, x, upsample, stride, pad_end):
    """A resampler of diffusers as one conv2d."""
    wt, b = module.conv.weight, module.conv.bias
    n, c, h, w = x.shape
    ints = [n, h, w, c, wt.shape[0], 3, stride, int(upsample), int(pad_end), 0]
    return case(ints, [], [nhwc(x), wt, b, None, None, nhwc(module(x))])


def conv2d():
    yield conv_case(2, 5, 7, 6, 10, 3)
    yield conv_case(1, 1, 1, 3, 5, 3, bias=False)
    yield conv_case(1, 6, 5, 7, 33, 1, act=1)
    yield conv_case(2, 7, 5, 8, 12, 3, stride=2)
    yield conv_case(1, 8, 6, 8, 12, 3, stride=2, pad_end=True)
    yield conv_case(1, 3, 4, 9, 34, 3, upsample=True)
    yield conv_case(2, 4, 3, 5, 8, 3, act=1, bc=True, res=True)
    yield conv_case(2, 4, 3, 5, 8, 3, act=2, bc=True)
    yield conv_case(1, 4, 3, 5, 8, 1, act=3, res=True)
    yield conv_case(1, 6, 7, 4, 6, 5)
    yield conv_case(1, 2, 9, 4, 6, 3, stride=2)
    yield conv_case(1, 4, 4, 320, 33, 3)
    yield conv_module_case(Upsample2D(12, use_conv=True), torch.randn(1, 12, 3, 5), True, 1, False)
    yield conv_module_case(Downsample2D(12, use_conv=True, padding=1), torch.randn(1, 12, 7, 6), False, 2, False)
    yield conv_module_case(Downsample2D(12, use_conv=True, padding=0), torch.randn(1, 12, 6, 8), False, 2, True)


def conv_temporal_case(b, f, h, w, c, o, act=0, bias=True, bc=False, res=False):
    """ints: videos frames h w c o act; arrays: x, w, bias, add_bc, residual, y."""
    conv = torch.nn.Conv3d(c, o, (3, 1, 1), padding=(1, 0, 0), bias=bias)
    x = torch.randn(b, c, f, h, w)
    y = conv(x)
    add = torch.randn(b, f, o) if bc else None
    y = ACTS[act](y + add.permute(0, 2, 1)[..., None, None] if bc else y)
    residual = torch.randn_like(y) if res else None
    y = y + residual if res else y

    def frames(v):
        """[B, C, F, H, W] -> [B * F, H, W, C]."""
        return None if v is None else nhwc(v.transpose(1, 2).flatten(0, 1))

    arrays = [frames(x), conv.weight.reshape(o, c, 3, 1), conv.bias, add.reshape(b * f, 1, 1, o) if bc else None]
    return case([b, f, h, w, c, o, act], [], arrays + [frames(residual), frames(y)])


def temporal_resnet_case(b, f, h, w, c):
    """The second half of diffusers' TemporalResnetBlock: a convolution of frames and the sum with its input."""
    block = TemporalResnetBlock(c, c, temb_channels=None, eps=1e-5)
    x = torch.randn(b, c, f, h, w)
    hidden = block.nonlinearity(block.norm2(block.conv1(block.nonlinearity(block.norm1(x)))))
    arrays = [hidden, x, block(x, None)]
    hidden, x, y = [nhwc(v.transpose(1, 2).flatten(0, 1)) for v in arrays]
    return case([b, f, h, w, c, c, 0], [], [hidden, block.conv2.weight.reshape(c, c, 3, 1), block.conv2.bias, None, x, y])


def conv_temporal():
    yield conv_temporal_case(1, 1, 2, 3, 5, 7)
    yield conv_temporal_case(2, 5, 3, 2, 8, 12, bc=True, res=True)
    yield conv_temporal_case(1, 4, 3, 3, 6, 33, act=1, bc=True)
    yield conv_temporal_case(2, 2, 1, 4, 16, 8, bias=False)
    yield temporal_resnet_case(2, 3, 3, 4, 32)


def linear_case(n, h, w, c, o, act=0, bias=True, res=False):
    """ints: n h w c o geglu act; arrays: x, w, bias, residual, y."""
    x, wt = torch.randn(n, h, w, c), torch.randn(o, c) / c**0.5
    b = torch.randn(o) if bias else None
    y = ACTS[act](F.linear(x, wt, b))
    residual = torch.randn_like(y) if res else None
    return case([n, h, w, c, o, 0, act], [], [x, wt, b, residual, y + residual if res else y])


def geglu_case(n, t, c, o, res=False):
    module = GEGLU(c, o // 2)
    torch.nn.init.normal_(module.proj.weight, std=c**-0.5)
    torch.nn.init.normal_(module.proj.bias)
    x = torch.randn(n, t, c)
    y = tokens(module(x))
    residual = torch.randn_like(y) if res else None
    arrays = [tokens(x), module.proj.weight, module.proj.bias, residual, y + residual if res else y]
    return case([n, 1, t, c, o, 1, 0], [], arrays)


def linear():
    for act in range(4):
        yield linear_case(2, 1, 5, 12, 34, act=act, res=act % 2 == 0)
    yield linear_case(1, 1, 1, 1, 1)
    yield linear_case(1, 2, 3, 70, 7, bias=False, res=True)
    yield linear_case(1, 1, 3, 1280, 33)
    yield geglu_case(1, 5, 20, 80)
    yield geglu_case(2, 3, 9, 34, res=True)


def attention_case(n, t, s, heads, size, causal=False, kn=None):
    """ints: n t s heads size causal kn; arrays: q, k, v, y."""
    kn, c = kn or n, heads * size
    q, k, v = torch.randn(n, t, c), torch.randn(kn, s, c), torch.randn(kn, s, c)
    split = lambda x: x.view(x.shape[0], -1, heads, size).transpose(1, 2)
    wide = lambda x: split(x.expand(n, -1, -1))
    y = F.scaled_dot_product_attention(split(q), wide(k), wide(v), is_causal=causal)
    y = y.transpose(1, 2).reshape(n, t, c)
    return case([n, t, s, heads, size, int(causal), kn], [], [tokens(x) for x in (q, k, v, y)])


def attention_module_case(n, t, s, heads, size):
    """diffusers' Attention with identity projections: which channels make a head, and the scale."""
    c = heads * size
    module = Attention(c, c, heads=heads, dim_head=size, bias=False, processor=AttnProcessor2_0())
    for part in (module.to_q, module.to_k, module.to_v, module.to_out[0]):
        torch.nn.init.eye_(part.weight)
    torch.nn.init.zeros_(module.to_out[0].bias)
    q, k = torch.randn(n, t, c), torch.randn(n, s, c)
    y = module(q, encoder_hidden_states=k)
    return case([n, t, s, heads, size, 0, n], [], [tokens(x) for x in (q, k, k, y)])


def attention():
    yield attention_case(1, 1, 1, 1, 4)
    yield attention_case(2, 7, 7, 3, 8)
    yield attention_case(1, 9, 9, 2, 40, causal=True)
    yield attention_case(2, 5, 77, 2, 16)
    yield attention_case(2, 6, 11, 2, 10, kn=1)
    yield attention_case(1, 4, 6, 1, 160)
    yield attention_case(1, 5, 5, 1, 512)
    yield attention_module_case(2, 5, 9, 3, 12)


def group_norm_cases(act):
    """ints: n h w c groups; floats: eps; arrays: x, gamma, beta, y."""
    for n, h, w, c, groups, eps, mean, scale in [
        (2, 3, 5, 12, 3, 1e-5, 0, 1),
        (1, 4, 4, 64, 32, 1e-6, 5, 2),
        (1, 1, 7, 30, 30, 1e-5, 0, 1),
        (2, 6, 2, 40, 1, 1e-5, -3, 0.5),
        (1, 1, 1, 8, 4, 1e-5, 0, 100),
    ]:
        x = torch.randn(n, c, h, w) * scale + mean
        gamma, beta = torch.randn(c), torch.randn(c)
        y = ACTS[act](F.group_norm(x.double(), groups, gamma.double(), beta.double(), eps))
        yield case([n, h, w, c, groups], [eps], [nhwc(x), gamma, beta, nhwc(y.float())])


def layer_norm():
    """As group_norm, groups 0."""
    for n, t, c, mean in [(2, 5, 33, 0), (1, 3, 320, 4), (1, 1, 2, 0), (3, 2, 768, -1)]:
        x, gamma, beta = torch.randn(n, t, c) + mean, torch.randn(c), torch.randn(c)
        y = F.layer_norm(x.double(), (c,), gamma.double(), beta.double(), 1e-5).float()
        yield case([n, 1, t, c, 0], [1e-5], [tokens(x), gamma, beta, tokens(y)])


def silu():
    """arrays: x, y."""
    x = torch.cat([torch.randn(50) * 5, torch.tensor([0.0, -0.0, 88.0, -87.0, 1e-30, 30.0])]).view(1, 2, 4, 7)
    yield case(arrays=[x, F.silu(x.double()).float()])


def add():
    """arrays: a, b, y."""
    a, b = torch.randn(2, 3, 2, 5), torch.randn(2, 3, 2, 5)
    yield case(arrays=[a, b, a + b])


def blend():
    """floats: the share of a; arrays: a, b, y. AlphaBlender in video networks, where image_only_indicator is zero."""
    for mix in (0.0, 0.7, -3.0):
        a, b = torch.randn(2, 3, 2, 5), torch.randn(2, 3, 2, 5)
        blender = AlphaBlender(mix, merge_strategy="learned")
        share = torch.sigmoid(blender.mix_factor).item()
        yield case([], [share], [a, b, blender(a, b)])


def concat_channels():
    """arrays: a, b, y."""
    a, b = torch.randn(2, 5, 3, 2), torch.randn(2, 7, 3, 2)
    yield case(arrays=[nhwc(a), nhwc(b), nhwc(torch.cat([a, b], dim=1))])


def upsample_nearest():
    """arrays: x, y."""
    x = torch.randn(2, 5, 3, 4)
    yield case(arrays=[nhwc(x), nhwc(F.interpolate(x, scale_factor=2.0, mode="nearest"))])
    # Upsample2D with output_size, as for latents of odd size; one more than twice after a UNet with downsample_padding 0
    for h, w in [(6, 7), (5, 8), (5, 7), (7, 9), (6, 9), (7, 7)]:
        yield case(arrays=[nhwc(x[:1]), nhwc(F.interpolate(x[:1], size=(h, w), mode="nearest"))])
    wide = torch.randn(1, 2, 13, 29)
    yield case(arrays=[nhwc(wide), nhwc(F.interpolate(wide, size=(25, 57), mode="nearest"))])


def embed_tokens():
    """arrays: tokens [rows, C], positions [rows, C], ids [N, 1, T, 1] as numbers, y."""
    table, places = torch.randn(40, 19), torch.randn(9, 19)
    ids = torch.randint(0, 40, (3, 7))
    y = F.embedding(ids, table) + places[:7]
    yield case(arrays=[table, places, ids.float().view(3, 1, 7, 1), tokens(y)])


def timestep_embedding():
    """ints: flip; floats: shift; arrays: timesteps [N], y [N, 1, 1, dim]."""
    t = torch.tensor([0.0, 1.0, 999.0, 500.5, 37.0])
    for dim, flip, shift in [(320, True, 0), (32, False, 1), (33, True, 0), (8, False, 0)]:
        y = get_timestep_embedding(t, dim, flip_sin_to_cos=flip, downscale_freq_shift=shift)
        yield case([int(flip)], [shift], [t, y.view(5, 1, 1, dim)])


def repeat_batch():
    """ints: times; arrays: x, y."""
    x = torch.randn(2, 3, 2, 5)
    yield case([3], [], [x, torch.cat([x] * 3)])


def convert():
    """ints: type (1 F16, 2 BF16); arrays: x, and x as that type, widened again."""
    hard = [1.00048828125, 1.00146484375, 1.00390625, 1.01171875, 65519.0, 65520.0, 2.0**-14, 2.0**-24, 2.0**-25]
    hard += [1.5 * 2.0**-24, 3.0e38, -3.4e38, float("inf"), float("-inf"), float("nan"), 0.0, -0.0, 1e-38, 1e30]
    x = torch.cat([torch.tensor(hard), torch.randn(81) * 10]).view(1, 4, 5, 5)
    for i, kind in enumerate([torch.float32, torch.float16, torch.bfloat16]):
        yield case([i], [], [x, x.to(kind).float()])


def lincomb():
    """ints: terms, 1 + the place of a guided pair or 0; floats: coefficients, then at 6 the scale; arrays: x ..., then
    at 6 the sum."""
    for terms in (1, 2, 6):
        coef = torch.randn(terms)
        x = [torch.randn(1, 3, 4, 5) for _ in range(terms)]
        total = sum(c.double() * v.double() for c, v in zip(coef, x)).float()
        yield case([terms], coef.tolist(), x + [None] * (6 - terms) + [total])
    # A step of Euler under guidance, as StableDiffusionPipeline and EulerDiscreteScheduler have it.
    coef, sample, pair = [1.0, -0.73], torch.randn(1, 3, 4, 5), torch.randn(2, 3, 4, 5)
    uncond, text = pair.chunk(2)
    e = uncond + 7.5 * (text - uncond)
    total = (sample.double() + float(np.float32(coef[1])) * e.double()).float()
    yield case([2, 2], coef + [0.0] * 4 + [7.5], [sample, pair] + [None] * 4 + [total])


def guide():
    """floats: scale; arrays: e, y. The line of StableDiffusionPipeline."""
    e = torch.randn(4, 3, 2, 4)
    uncond, text = e.chunk(2)
    for scale in (7.5, 1.0, 0.0):
        yield case([], [scale], [e, uncond + scale * (text - uncond)])


def clip():
    """floats: lo, hi; arrays: x, y."""
    x = torch.cat([torch.randn(56), torch.tensor([1.0, -1.0, float("inf"), float("nan")])]).view(1, 3, 4, 5)
    yield case([], [-1.0, 1.0], [x, x.clamp(-1, 1)])


def ramp():
    """ints: unit; arrays: a, b, y. AutoencoderKL.blend_v and blend_h over the whole of two strips."""
    vae = AutoencoderKL(norm_num_groups=1)
    for h, w in ((5, 4), (4, 7), (1, 1)):
        a, b = torch.randn(1, 3, h, w), torch.randn(1, 3, h, w)
        down, along = vae.blend_v(a, b.clone(), h), vae.blend_h(a, b.clone(), w)
        rows = [nhwc(x).view(1, 1, h, 3 * w) for x in (a, b, down, along)]
        yield case([0], [], [rows[0], rows[1], rows[2]])
        yield case([3], [], [rows[0], rows[1], rows[3]])


def to_rgb8():
    """arrays: x, bytes as numbers. The last steps of StableDiffusionPipeline with output_type "pil"."""
    steps = torch.arange(0, 511).float() / 255 - 1
    x = torch.cat([steps, torch.randn(243) * 0.7]).view(1, 754, 1).reshape(1, 13, 58).repeat(3, 1, 1).unsqueeze(0)
    x[:, 1] = x[:, 1].flip(0)
    x = x[..., :58].contiguous()
    image = VaeImageProcessor().postprocess(x.clone(), output_type="pil")[0]
    yield case(arrays=[nhwc(x), torch.tensor(np.asarray(image)).float().unsqueeze(0)])


OPS = {
    "conv2d": conv2d,
    "conv_temporal": conv_temporal,
    "linear": linear,
    "attention": attention,
    "group_norm": lambda: group_norm_cases(0),
    "group_norm_silu": lambda: group_norm_cases(1),
    "layer_norm": layer_norm,
    "silu": silu,
    "add": add,
    "blend": blend,
    "concat_channels": concat_channels,
    "upsample_nearest": upsample_nearest,
    "embed_tokens": embed_tokens,
    "timestep_embedding": timestep_embedding,
    "repeat_batch": repeat_batch,
    "convert": convert,
    "lincomb": lincomb,
    "guide": guide,
    "clip": clip,
    "ramp": ramp,
    "to_rgb8": to_rgb8,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="tests/kernels/golden")
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    torch.set_num_threads(1)
    for op, make in OPS.items():
        torch.manual_seed(args.seed)
        with torch.no_grad():
            cases = list(make())
        header = struct.pack("<4sII16s24sI", b"LDOP", VERSION, args.seed, torch.__version__.encode()[:16],
                             op.encode(), len(cases))
        with open(os.path.join(args.out, op + ".bin"), "wb") as f:
            f.write(header + b"".join(cases))
        print(f"{op}: {len(cases)} cases, {sum(map(len, cases))} bytes")


if __name__ == "__main__":
    main()
