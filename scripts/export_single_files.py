#!/usr/bin/env python3
"""What latentd must make of checkpoints in one file, original (LDM, SGM) naming.

    export_single_files.py

tests/unit/data/single_file/{sd1,sd2,sdxl}.txt: names and shapes of the published original files, as patterns (see
export_tensor_names.py). They come from inverting diffusers' converters (diffusers.loaders.single_file_utils) on the
state dicts of the published configs; the script checks that those converters give back what went in.

tests/golden/data/single_file/latentd/{sd1,sd2,sdxl,pix2pix}/: the tiny models of tests/api/data and of
tests/golden/data/families in one file each, with the configs beside that differ from the published ones, and tensors.txt:
component, name, shape and FNV-1a hash of every tensor that diffusers' converters make of it.
"""
import json
import os
import re
import shutil

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as single
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from export_goldens import HERE, save_part, write_json
from export_tensor_names import grouped

UNET_SD = dict(
    block_out_channels=[320, 640, 1280, 1280], layers_per_block=2, attention_head_dim=8, cross_attention_dim=768,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
UNETS = {
    "sd1": UNET_SD,
    "sd2": dict(UNET_SD, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True),
    "sdxl": dict(
        block_out_channels=[320, 640, 1280], layers_per_block=2, attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048, down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"], use_linear_projection=True,
        transformer_layers_per_block=[1, 2, 10], addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816),
}
VAE = dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4,
           down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
VIT_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
VIT_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu")
BIG_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
             projection_dim=1280)

UNET, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."


# ---- the names of the original code (CompVis/stable-diffusion, Stability-AI/generative-models) ----

def unet_original(sd, layers):
    """Diffusers' UNet state dict under the original names. LAYERS: layers_per_block."""
    ends = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
            "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
            "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
              "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}

    def part(rest):
        head, tail = rest.split(".", 1)
        return f"{resnet[head]}.{tail}"

    out = {}
    for name, t in sd.items():
        base, leaf = name.rsplit(".", 1)
        m = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
        mid = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name)
        if base in ends:
            new = f"{ends[base]}.{leaf}"
        elif mid:
            kind, k, rest = mid.groups()
            new = f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(k)}.{part(rest)}"
        else:
            side, block, kind, layer, rest = m.groups()
            block, layer = int(block), int(layer)
            i = (1 + block * (layers + 1) if side == "down" else block * (layers + 1)) + layer
            where = "input_blocks" if side == "down" else "output_blocks"
            if kind == "resnets":
                new = f"{where}.{i}.0.{part(rest)}"
            elif kind == "attentions":
                new = f"{where}.{i}.1.{rest}"
            elif kind == "downsamplers":
                new = f"{where}.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
            else:
                last = (block + 1) * (layers + 1) - 1
                attends = f"up_blocks.{block}.attentions.0.norm.weight" in sd
                new = f"{where}.{last}.{2 if attends else 1}.{rest}"
        out[UNET + new] = t
    return out


def vae_original(sd, levels, prefix=VAE_PREFIX):
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    out = {}
    for name, t in sd.items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        m = re.search(r"mid_block\.attentions\.0\.(.*)\.(weight|bias)$", new)
        if m:
            new = new[:m.start()] + f"mid.attn_1.{attention[m[1]]}.{m[2]}"
            if t.ndim == 2:
                t = t[:, :, None, None]
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        out[prefix + new] = t
    return out


def clip_original(sd, prefix):
    """transformers' names with the inner module that older versions had."""
    return {prefix + ("" if k.startswith("text_model.") else "text_model.") + k: t for k, t in sd.items()}


def open_clip_original(sd, prefix):
    ends = {"embeddings.position_embedding.weight": "positional_embedding",
            "embeddings.token_embedding.weight": "token_embedding.weight",
            "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias"}
    out = {}
    sd = {k.removeprefix("text_model."): t for k, t in sd.items()}
    for name, t in sd.items():
        m = re.match(r"encoder\.layers\.(\d+)\.(.*)", name)
        if name in ends:
            out[prefix + ends[name]] = t
        elif name == "text_projection.weight":
            out[prefix + "text_projection"] = t.T.contiguous()
        else:
            where, rest = f"{prefix}transformer.resblocks.{m[1]}.", m[2]
            p = re.match(r"self_attn\.([qkv])_proj\.(weight|bias)", rest)
            if p:
                if p[1] == "q":
                    stack = [sd[f"encoder.layers.{m[1]}.self_attn.{c}_proj.{p[2]}"] for c in "qkv"]
                    out[f"{where}attn.in_proj_{p[2]}"] = torch.cat(stack)
                continue
            for a, b in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
                         ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj")):
                rest = rest.replace(a, b)
            out[where + rest] = t
    return out


# ---- full size, names and shapes ----

def empty(cls, *args, **kw):
    with torch.device("meta"):
        return cls(*args, **kw)


def text_model(cls, **config):
    return empty(cls, CLIPTextConfig(**config))


def state(model):
    return {k: v for k, v in model.state_dict().items() if not k.endswith("position_ids")}


def family(name):
    """(tensors of the original file, {component: diffusers state dict made by diffusers' converters})."""
    unet, vae = empty(UNet2DConditionModel, **UNETS[name]), empty(AutoencoderKL, **VAE)
    original = unet_original(state(unet), 2)
    original.update(vae_original(state(vae), 4))
    want = {}
    if name == "sd1":
        text = text_model(CLIPTextModel, **VIT_L)
        original.update(clip_original(state(text), "cond_stage_model.transformer."))
        original["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.empty(1, 77, device="meta")
        original["model_ema.decay"] = torch.empty(1, device="meta")
        for k in [k for k in original if k.startswith(UNET)][:3]:
            original["model_ema." + k.removeprefix("model.").replace(".", "")] = original[k]
        want["text_encoder"] = single.convert_ldm_clip_checkpoint(original)
    elif name == "sd2":
        text = text_model(CLIPTextModel, **dict(VIT_H, num_hidden_layers=24))
        prefix = "cond_stage_model.model."
        original.update(open_clip_original(state(text), prefix))
        original[prefix + "text_projection"] = torch.empty(1024, 1024, device="meta")
        original[prefix + "logit_scale"] = torch.empty(1, device="meta")
        want["text_encoder"] = single.convert_open_clip_checkpoint(text, original, prefix)
    else:
        text = text_model(CLIPTextModel, **VIT_L)
        second = text_model(CLIPTextModelWithProjection, **BIG_G)
        prefix = "conditioner.embedders.1.model."
        original.update(clip_original(state(text), "conditioner.embedders.0.transformer."))
        original.update(open_clip_original(state(second), prefix))
        original[prefix + "logit_scale"] = torch.empty(1, device="meta")
        want["text_encoder"] = single.convert_ldm_clip_checkpoint(original)
        want["text_encoder_2"] = single.convert_open_clip_checkpoint(second, original, prefix)
    for k in ("alphas_cumprod", "betas", "sqrt_one_minus_alphas_cumprod"):
        original[k] = torch.empty(1000, device="meta")
    want["unet"] = single.convert_ldm_unet_checkpoint(dict(original), dict(unet.config))
    want["vae"] = single.convert_ldm_vae_checkpoint(dict(original), dict(vae.config))
    check = {"unet": state(unet), "vae": state(vae)}
    for part, sd in check.items():  # the inversion is one: diffusers' converters give back what went in
        assert {k: v.shape for k, v in sd.items()} == {k: v.shape for k, v in want[part].items()}, (name, part)
    return original, want


def write_names(path, name):
    """Patterns as in export_tensor_names.py: tensors that differ in numbers only share a line."""
    original, want = family(name)
    with open(path, "w", encoding="utf-8") as f:
        for line in grouped({k: tuple(t.shape) for k, t in original.items()}):
            f.write(line + "\n")
    return len(original), {p: len(sd) for p, sd in want.items()}


# ---- tiny models ----

DATA = os.path.join(HERE, "..", "tests")


def fnv(t):
    """64-bit FNV-1a over the bytes, as they are stored."""
    h = 0xCBF29CE484222325
    for b in t.contiguous().view(torch.uint8).numpy().tobytes():
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def read_part(source, part):
    """One component of a model in diffusers layout: its config and its numbers as stored."""
    with open(f"{source}/{part}/config.json", encoding="utf-8") as f:
        config = json.load(f)
    file = next(f for f in sorted(os.listdir(f"{source}/{part}")) if f.endswith(".safetensors"))
    return config, {k: t for k, t in load_file(f"{source}/{part}/{file}").items() if not k.endswith("position_ids")}


def add_text(original, want, parts, kind):
    """The text encoders under their original names, and what diffusers' converters make of them."""
    config, text = parts["text_encoder"]
    if kind == "sd2":
        prefix = "cond_stage_model.model."
        more = {k.replace("layers.1.", "layers.2."): t for k, t in text.items() if ".layers.1." in k}
        original.update(open_clip_original(text | more, prefix))  # one layer more than is read
        original[prefix + "logit_scale"] = torch.tensor(4.6)
        model = CLIPTextModel(CLIPTextConfig(**config))
        want["text_encoder"] = single.convert_open_clip_checkpoint(model, original, prefix)
        original[prefix + "text_projection"] = torch.zeros(16, 16, dtype=torch.float16)
        return
    prefix = "conditioner.embedders.0.transformer." if kind == "sdxl" else "cond_stage_model.transformer."
    original.update(clip_original(text, prefix))
    want["text_encoder"] = single.convert_ldm_clip_checkpoint(original)
    if kind == "sdxl":
        prefix, (config, second) = "conditioner.embedders.1.model.", parts["text_encoder_2"]
        original.update(open_clip_original(second, prefix))
        original[prefix + "logit_scale"] = torch.tensor(4.6)
        model = CLIPTextModelWithProjection(CLIPTextConfig(**config))
        want["text_encoder_2"] = single.convert_open_clip_checkpoint(model, original, prefix)


def tiny(kind, source, file, beside):
    """The model in the folder SOURCE as one FILE, with its configs and the folders BESIDE."""
    folder = f"{DATA}/golden/data/single_file/latentd/{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    parts = {p: read_part(source, p) for p in ("unet", "vae", "text_encoder", "text_encoder_2")
             if os.path.isdir(f"{source}/{p}")}
    (unet_config, unet), (vae_config, vae) = parts["unet"], parts["vae"]
    levels = len(vae_config["block_out_channels"])
    original = unet_original(unet, 1) | vae_original(vae, levels)
    original |= {"model_ema.decay": torch.tensor(0.9999), "alphas_cumprod": torch.linspace(1, 0, 8)}
    want = {"unet": single.convert_ldm_unet_checkpoint(dict(original), unet_config),
            "vae": single.convert_ldm_vae_checkpoint(dict(original), vae_config)}
    for part, sd in (("unet", unet), ("vae", vae)):
        assert all(torch.equal(sd[k], want[part][k]) for k in sd) and len(sd) == len(want[part])
    add_text(original, want, parts, kind)
    for part, (config, _) in parts.items():
        write_json_in(f"{folder}/{part}", config)
    for part in beside:
        shutil.copytree(f"{source}/{part}", f"{folder}/{part}")
    save_part({k: t.clone().contiguous() for k, t in original.items()}, f"{folder}/{file}")
    with open(f"{folder}/tensors.txt", "w", encoding="utf-8") as f:
        for part, sd in want.items():
            for k, t in sorted(sd.items()):
                f.write(f"{part} {k} {'x'.join(map(str, t.shape))} {fnv(t)}\n")
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(folder) for f in files)
    print(f"{folder}: {len(original)} tensors, {size / 1024:.0f} KiB")


def write_json_in(folder, config):
    os.makedirs(folder)
    write_json(f"{folder}/config.json", config)


def main():
    torch.set_num_threads(1)
    families = f"{DATA}/golden/data/families"
    tiny("sd1", f"{DATA}/api/data/latentd/tiny", "checkpoint.safetensors", ["tokenizer", "scheduler"])
    tiny("sd2", f"{families}/latentd/sd2", "checkpoint.fp16.safetensors", ["tokenizer"])
    tiny("sdxl", f"{families}/stabilityai/stable-diffusion-xl-base-1.0", "checkpoint.fp16.safetensors", ["tokenizer"])
    tiny("pix2pix", f"{families}/timbrooks/instruct-pix2pix", "checkpoint.safetensors", ["tokenizer", "scheduler"])
    path = f"{DATA}/golden/data/single_file/latentd/pix2pix/scheduler/scheduler_config.json"
    with open(path, encoding="utf-8") as f:  # which the id forces upon the folder
        scheduler = dict(json.load(f), _class_name="EulerAncestralDiscreteScheduler")
    write_json(path, scheduler)
    out = f"{DATA}/unit/data/single_file"
    os.makedirs(out, exist_ok=True)
    for name in ("sd1", "sd2", "sdxl"):
        path = f"{out}/{name}.txt"
        print(name, *write_names(path, name), f"{os.path.getsize(path) / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
