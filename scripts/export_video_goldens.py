#!/usr/bin/env python3
"""Writes tests/golden/data/video: what diffusers and transformers compute with small networks of Stable Video Diffusion.

    export_video_goldens.py [OUT_DIR] [--only NAME ...]

Each case is a folder: config.json, expected.golden as export_goldens.py writes it, and tensors.txt in the place of the
weights. A line of it is "name shape exponent offset". Number i of that tensor is offset + k * 2^exponent, where k is the
top byte (signed) of splitmix64 of the name's FNV-1a hash plus i: exact in every type, and made anew by whoever reads it.
"""
import argparse
import math
import os

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from export_goldens import both, nhwc, normal, plain, write_golden, write_json

HERE = os.path.dirname(os.path.abspath(__file__))
MASK = (1 << 64) - 1


def fnv1a(name):
    h = 0xcbf29ce484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001b3 & MASK
    return h


def signed_bytes(name, count):
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a(name)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9e3779b97f4a7c15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(56)).astype(np.uint8).view(np.int8)


def scale_of(name, tensor):
    """Exponent and offset: products keep the size of what goes in, norms lie about 1, shares about a half."""
    if name.endswith("mix_factor"):
        return -6, 0
    if tensor.ndim == 1:
        return -9, int("norm" in name and name.endswith("weight"))
    fan_in = tensor[0].numel()
    return round(-math.log2(74 * math.sqrt(fan_in))), 0


def fill(model, folder):
    """Gives MODEL its numbers, and writes the recipe."""
    with open(f"{folder}/tensors.txt", "w", encoding="utf-8") as f, torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            exponent, offset = scale_of(name, tensor)
            numbers = offset + signed_bytes(name, tensor.numel()).astype(np.float32) * np.float32(2.0**exponent)
            tensor.copy_(torch.from_numpy(numbers).view(tensor.shape))
            f.write(f"{name} {'x'.join(map(str, tensor.shape))} {exponent} {offset}\n")
    return model.eval()


def save_config(folder, model):
    config = {k: v for k, v in plain(model.config).items() if not k.startswith("_")}
    write_json(f"{folder}/config.json", dict(config, _class_name=type(model).__name__))


def unet_case(folder, runs, **config):
    """RUNS: videos, frames, height, width, timesteps, ids. The first of two videos attends to zeros, as the unconditional
    side of guidance does."""
    model = fill(UNetSpatioTemporalConditionModel(**config), folder)
    save_config(folder, model)
    out = {}
    for i, (videos, frames, h, w, timesteps, ids) in enumerate(runs):
        x = normal(10 * i, videos, frames, config["in_channels"], h, w)
        image = normal(10 * i + 1, videos, config["cross_attention_dim"])
        if videos > 1:
            image[0] = 0

        def run(m, t):
            added = torch.tensor([ids] * videos)
            calls = [m(x.to(t), torch.tensor(step), image[:, None].to(t), added).sample for step in timesteps]
            return torch.cat([nhwc(c.flatten(0, 1)) for c in calls])
        want, error = both(model, run)
        out.update({f"{i}.x": nhwc(x.flatten(0, 1)), f"{i}.image": image, f"{i}.t": np.float32(timesteps),
                    f"{i}.ids": np.float32(ids), f"{i}.frames": np.int32([frames]), f"{i}.out": want,
                    f"{i}.bf16_error": error})
    return out


def vae_case(folder, runs, **config):
    """RUNS: videos, frames, height, width of the latents."""
    model = fill(AutoencoderKLTemporalDecoder(**config), folder)
    save_config(folder, model)
    out, scale = {}, 2**(len(config["block_out_channels"]) - 1)
    for i, (videos, frames, h, w) in enumerate(runs):
        z = normal(10 * i, videos * frames, config["latent_channels"], h, w)
        pixels = normal(10 * i + 1, 1, 3, h * scale, w * scale)
        want, error = both(model, lambda m, t: nhwc(m.decode(z.to(t), num_frames=frames).sample))
        moments, rough = both(model, lambda m, t: nhwc(m.encode(pixels.to(t)).latent_dist.parameters))
        out.update({f"{i}.z": nhwc(z), f"{i}.frames": np.int32([frames]), f"{i}.out": want, f"{i}.bf16_error": error,
                    f"{i}.pixels": nhwc(pixels), f"{i}.moments": moments, f"{i}.moments.bf16_error": rough})
    return out


def vision_case(folder, **config):
    model = fill(CLIPVisionModelWithProjection(CLIPVisionConfig(**config)), folder)
    write_json(f"{folder}/config.json", dict(config, architectures=["CLIPVisionModelWithProjection"]))
    pixels = normal(5, 1, 3, config["image_size"], config["image_size"])
    want, error = both(model, lambda m, t: m(pixel_values=pixels.to(t)).image_embeds.float())
    return {"pixels": nhwc(pixels), "out": want, "bf16_error": error}


def resize_case(_folder, sizes, side):
    """SIZES: height, width of pictures, as StableVideoDiffusionPipeline._encode_image resizes them."""
    out = {}
    for i, (h, w) in enumerate(sizes):
        pixels = torch.randint(0, 256, (h, w, 3), generator=torch.Generator().manual_seed(i))
        x = pixels.permute(2, 0, 1)[None].float() / 255 * 2 - 1
        x = (_resize_with_antialiasing(x, (side, side)) + 1) / 2
        out.update({f"{i}.pixels": pixels.int(), f"{i}.out": nhwc(x)})
    return out


DOWN, CROSS_DOWN = "DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"
UP, CROSS_UP = "UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"

CASES = {
    # SVD's own order of blocks at two levels; an odd size, and a video of one frame
    "unet": lambda folder: unet_case(
        folder, [(2, 3, 8, 6, [1.6377, -0.75], [5.0, 127.0, 0.02]), (1, 5, 7, 5, [0.25], [24.0, 255.0, 0.1]),
                 (1, 1, 4, 4, [-1.5], [6.0, 1.0, 0.0])],
        in_channels=8, out_channels=4, block_out_channels=[32, 64], layers_per_block=1, sample_size=8, num_frames=3,
        down_block_types=[CROSS_DOWN, DOWN], up_block_types=[UP, CROSS_UP], num_attention_heads=[2, 4],
        cross_attention_dim=24, addition_time_embed_dim=16, projection_class_embeddings_input_dim=48),
    # other orders, transformers of two layers, lists where the other has one number
    "unet_deep": lambda folder: unet_case(
        folder, [(2, 2, 5, 9, [0.5], [7.0, 60.0, 0.02])],
        in_channels=8, out_channels=4, block_out_channels=[32, 32, 64], layers_per_block=[1, 2, 1], sample_size=8,
        num_frames=2, down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN], up_block_types=[CROSS_UP, UP, CROSS_UP],
        num_attention_heads=4, transformer_layers_per_block=[1, 2, 2], cross_attention_dim=20,
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=24),
    "vae": lambda folder: vae_case(
        folder, [(1, 3, 4, 6), (2, 2, 3, 2), (1, 1, 2, 2)], block_out_channels=[32, 64], layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 2, latent_channels=4, sample_size=8, scaling_factor=0.25),
    "vae_shallow": lambda folder: vae_case(
        folder, [(1, 2, 3, 2)], block_out_channels=[32, 32, 64], layers_per_block=1, force_upcast=False,
        down_block_types=["DownEncoderBlock2D"] * 3, latent_channels=4, sample_size=8),
    "vision": lambda folder: vision_case(
        folder, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=3, image_size=20,
        patch_size=4, projection_dim=24, hidden_act="gelu", layer_norm_eps=1e-5),
    "resize": lambda folder: resize_case(folder, [(45, 71), (13, 9), (16, 60), (97, 24)], 24),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", default=os.path.join(HERE, "..", "tests", "golden", "data", "video"))
    parser.add_argument("--only", nargs="*", default=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        folder = os.path.join(args.out, name)
        os.makedirs(folder, exist_ok=True)
        arrays = CASES[name](folder)
        write_golden(f"{folder}/expected.golden", arrays)
        size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
        print(f"{name}: {size} bytes", {k: float(v) for k, v in arrays.items() if k.endswith("error")})


if __name__ == "__main__":
    main()
