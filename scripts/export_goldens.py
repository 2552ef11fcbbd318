#!/usr/bin/env python3
"""Writes tests/golden/data: tiny random models in diffusers layout, and what diffusers and transformers compute with
them and with the shipped model.

    export_goldens.py [OUT_DIR] [--only NAME ...]

Run it with `--only emoji` whenever models/latentd/emoji is exported anew.

Each case is a folder: config.json, safetensors, and expected.golden with inputs, outputs in fp32, and `bf16_error`: the
relative L2 distance of the same library's own bf16 run from its fp32 run. The outputs come from the weights as stored
(rounded to fp16 or bf16), computed in fp32. Arrays are NHWC. expected.golden is: "LDGOLD01", u32 count, and for each
array u8 name length, name, u8 type (0 f32, 1 i32), u8 dims, u32 shape[dims], data; all little-endian.
"""
import argparse
import copy
import json
import os
import shutil
import struct

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from make_random_model import randomize

HERE = os.path.dirname(os.path.abspath(__file__))
SHARD = 2  # shards of the sharded case


def write_golden(path, arrays):
    with open(path, "wb") as f:
        f.write(b"LDGOLD01" + struct.pack("<I", len(arrays)))
        for name, a in arrays.items():
            a = np.ascontiguousarray(a.numpy() if isinstance(a, torch.Tensor) else a)
            code = {"float32": 0, "int32": 1}[str(a.dtype)]
            f.write(struct.pack("<B", len(name)) + name.encode() + struct.pack("<BB", code, a.ndim))
            f.write(struct.pack(f"<{a.ndim}I", *a.shape) + a.tobytes())


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def nhwc(x):
    return x.permute(0, 2, 3, 1).float().contiguous()


def relative(a, b):
    return np.float32((torch.linalg.vector_norm(a.double() - b.double()) / torch.linalg.vector_norm(b.double())).item())


def both(model, run, bf16=True):
    """run(model, dtype) in fp32 and bf16 -> the fp32 output and the error of bf16 (0 when not asked for)."""
    with torch.no_grad():
        want = run(model, torch.float32)
        if not bf16:
            return want, np.float32(0)
        rough = run(copy.deepcopy(model).bfloat16(), torch.bfloat16)
    return want, relative(rough.float(), want)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def save_part(tensors, path):
    save_file(tensors, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)


def save_weights(folder, stem, tensors, variant="", shards=1):
    """One file, or SHARDS of them with an index. `.position_ids` and the like come from the caller."""
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    if shards == 1:
        save_part(tensors, f"{folder}/{stem}{variant}.safetensors")
        return
    names, index = sorted(tensors), {}
    for i in range(shards):
        part = names[len(names) * i // shards:len(names) * (i + 1) // shards]
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_part({n: tensors[n] for n in part}, f"{folder}/{file}")
        index.update({n: file for n in part})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(f"{folder}/{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def plain(config):
    unstable = ("_name_or_path", "_use_default_values")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dict(config).items() if k not in unstable}


# ---- text encoder ----

def text_case(folder, seed, dtype, prefix, variant="", **config):
    cfg = CLIPTextConfig(**config)
    model = CLIPTextModel(cfg).eval()
    randomize(model, seed)
    model.to(dtype).float()
    tensors = {k.removeprefix("text_model."): v.to(dtype) for k, v in model.state_dict().items()}
    tensors = {prefix + k: v for k, v in tensors.items() if not k.endswith("position_ids")}
    if prefix:  # as old checkpoints carry it
        tensors[prefix + "embeddings.position_ids"] = torch.arange(cfg.max_position_embeddings)[None]
    save_weights(folder, "model", tensors, variant)
    write_json(f"{folder}/config.json", dict(config, architectures=["CLIPTextModel"], model_type="clip_text_model"))
    ids = torch.randint(0, cfg.vocab_size, (2, cfg.max_position_embeddings),
                        generator=torch.Generator().manual_seed(seed + 1))
    want, error = both(model, lambda m, t: m(input_ids=ids).last_hidden_state)
    return {"ids": ids.int(), "states": want, "bf16_error": np.float32(error)}


def projection_case(folder, seed, dtype, prompts, **config):
    """SDXL's kind: the states before the last layer, and the pooled output. PROMPTS: lists of ids, padded with 0; the rest
    of the vocabulary is as it comes."""
    cfg = CLIPTextConfig(**config)
    model = CLIPTextModelWithProjection(cfg).eval()
    randomize(model, seed)
    model.to(dtype).float()
    tensors = {k: v.to(dtype) for k, v in model.state_dict().items() if not k.endswith("position_ids")}
    save_weights(folder, "model", tensors)
    write_json(f"{folder}/config.json",
               dict(config, architectures=["CLIPTextModelWithProjection"], model_type="clip_text_model"))
    ids = torch.tensor([p + [0] * (cfg.max_position_embeddings - len(p)) for p in prompts])
    out = {"ids": ids.int()}
    for name, pick in (("penultimate", lambda o: o.hidden_states[-2]), ("pooled", lambda o: o.text_embeds)):
        want, error = both(model, lambda m, t: pick(m(input_ids=ids, output_hidden_states=True)))
        out.update({name: want, f"{name}.bf16_error": np.float32(error)})
    return out


# ---- UNet ----

def unet_run(out, i, model, seed, n, h, w, timesteps, tokens=7, time_ids=None, label=None):
    """TIME_IDS: a list for each picture (addition_embed_type "text_time"). LABEL: of all pictures (num_class_embeds)."""
    cfg = model.config
    x = normal(seed, n, cfg.in_channels, h, w)
    text = normal(seed + 1, n, tokens, cfg.cross_attention_dim)
    cond = normal(seed + 2, 1, cfg.time_cond_proj_dim) if cfg.time_cond_proj_dim else None

    if time_ids:
        ids = torch.tensor(time_ids, dtype=torch.float32)
        pooled = normal(seed + 3, n, cfg.projection_class_embeddings_input_dim - ids.shape[1] * cfg.addition_time_embed_dim)

    def run(m, t):
        kw = {"timestep_cond": cond.to(t).expand(n, -1)} if cond is not None else {}
        if label is not None:
            kw["class_labels"] = torch.tensor([label] * n)
        if time_ids:
            kw["added_cond_kwargs"] = {"text_embeds": pooled.to(t), "time_ids": ids}
        return torch.cat([m(x.to(t), torch.tensor(k), text.to(t), **kw).sample for k in timesteps])

    want, error = both(model, run)
    out.update({f"{i}.x": nhwc(x), f"{i}.text": text, f"{i}.t": np.array(timesteps, np.float32),
                f"{i}.out": nhwc(want), f"{i}.bf16_error": error})
    if cond is not None:
        out[f"{i}.cond"] = cond
    if time_ids:
        out.update({f"{i}.pooled": pooled, f"{i}.ids": ids})
    if label is not None:
        out[f"{i}.label"] = np.array([label], np.int32)


def unet_case(folder, seed, dtype, runs, variant="", shards=1, **config):
    model = UNet2DConditionModel(**config).eval()
    randomize(model, seed)
    model.to(dtype).float()
    save_weights(folder, "diffusion_pytorch_model", {k: v.to(dtype) for k, v in model.state_dict().items()}, variant,
                 shards)
    write_json(f"{folder}/config.json", plain(model.config))
    out = {}
    for i, run in enumerate(runs):
        unet_run(out, i, model, seed + 10 * (i + 1), **run)
    return out


# ---- VAE ----

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_name(name, tensor):
    """The attention of the VAE as diffusers wrote it before 0.18; with the [C, C, 1, 1] shape of the first files."""
    for new, old in OLD_ATTENTION.items():
        if f"attentions.0.{new}." in name:
            return name.replace(new, old), tensor[:, :, None, None] if tensor.ndim == 2 else tensor
    return name, tensor


def vae_case(folder, seed, dtype, sizes, old=False, variant="", encoder=False, tiled=False, **config):
    """SIZES: latents (n, h, w) a run. ENCODER: the file holds the encoder too, and each run encodes a picture. TILED:
    both in tiles of sample_size."""
    model = AutoencoderKL(**config).eval()
    if tiled:
        model.enable_tiling()
    randomize(model, seed)
    model.to(dtype).float()
    tensors = {k: v.to(dtype) for k, v in model.state_dict().items()
               if encoder or not k.startswith(("encoder.", "quant_conv"))}
    if old:
        tensors = dict(old_name(k, v) for k, v in tensors.items())
    save_weights(folder, "diffusion_pytorch_model", tensors, variant)
    write_json(f"{folder}/config.json", plain(model.config))
    out = {}
    for i, (n, h, w) in enumerate(sizes):
        z = normal(seed + 1 + i, n, config["latent_channels"], h, w)
        want, error = both(model, lambda m, t: m.decode(z.to(t)).sample)
        out.update({f"{i}.z": nhwc(z), f"{i}.out": nhwc(want), f"{i}.bf16_error": error})
        if not encoder:
            continue
        scale = 2 ** (len(config["block_out_channels"]) - 1)
        x = normal(seed + 101 + i, n, 3, h * scale, w * scale).clamp(-1, 1)
        want, error = both(model, lambda m, t: m.encode(x.to(t)).latent_dist.parameters)
        out.update({f"{i}.pixels": nhwc(x), f"{i}.moments": nhwc(want), f"{i}.moments.bf16_error": error})
    return out


# ---- a whole model folder ----

def component(cls, folder, name, has_fp16):
    """One component in fp32, from the files as they are stored."""
    kw = {"variant": "fp16"} if has_fp16 else {}
    return cls.from_pretrained(f"{folder}/{name}", **kw).float().eval()


def text_cases(folder, prompts, has_fp16, bf16):
    """Token ids and states of the model's text encoders; of two (SDXL) the penultimate states, and the second's pooled
    output."""
    out, two = {}, os.path.exists(f"{folder}/text_encoder_2")
    for suffix in ["", "_2"][: 1 + two]:
        tokenizer = CLIPTokenizer.from_pretrained(f"{folder}/tokenizer{suffix}")
        cls = CLIPTextModelWithProjection if suffix else CLIPTextModel
        text = component(cls, folder, f"text_encoder{suffix}", has_fp16)
        ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt",
                        max_length=text.config.max_position_embeddings).input_ids
        states, error = both(text, lambda m, t: m(input_ids=ids, output_hidden_states=True).hidden_states[-2] if two
                             else m(input_ids=ids).last_hidden_state, bf16)
        out.update({f"ids{suffix}": ids.int(), f"states{suffix}": states, f"states{suffix}.bf16_error": error})
        if suffix:
            pooled, error = both(text, lambda m, t: m(input_ids=ids).text_embeds, bf16)
            out.update({"pooled": pooled, "pooled.bf16_error": error})
        del text
    return out


def model_case(folder, prompts, height, width, timestep, bf16=True):
    """Of the model in FOLDER: token ids, text states, one UNet call on them, the decoded picture, and a picture encoded."""
    has_fp16 = any(".fp16." in f for f in os.listdir(f"{folder}/unet"))
    n = len(prompts)
    out = text_cases(folder, prompts, has_fp16, bf16)
    states, conditions = out["states"], {}
    if "pooled" in out:
        states = torch.cat([states, out["states_2"]], dim=-1)
        out["time_ids"] = torch.tensor([[height, width, 0, 0, height, width]] * n).float()
        conditions = {"text_embeds": out["pooled"], "time_ids": out["time_ids"]}
    unet = component(UNet2DConditionModel, folder, "unet", has_fp16)
    with open(f"{folder}/vae/config.json", encoding="utf-8") as f:
        scale = 2 ** (len(json.load(f)["block_out_channels"]) - 1)
    x = normal(1, n, unet.config.in_channels, height // scale, width // scale)
    want, error = both(unet, lambda m, t: m(
        x.to(t), torch.tensor(timestep), states.to(t),
        added_cond_kwargs={k: v.to(t) for k, v in conditions.items()} or None).sample, bf16)
    out.update({"x": nhwc(x), "t": np.array([timestep], np.float32), "noise": nhwc(want), "noise.bf16_error": error})
    del unet
    vae = component(AutoencoderKL, folder, "vae", has_fp16)
    z = normal(2, 1, vae.config.latent_channels, height // scale, width // scale) / vae.config.scaling_factor
    want, error = both(vae, lambda m, t: m.decode(z.to(t)).sample, bf16)
    out.update({"z": nhwc(z), "picture": nhwc(want), "picture.bf16_error": error})
    pixels = normal(3, 1, 3, height, width).clamp(-1, 1)
    want, error = both(vae, lambda m, t: m.encode(pixels.to(t)).latent_dist.parameters, bf16)
    out.update({"pixels": nhwc(pixels), "moments": nhwc(want), "moments.bf16_error": error})
    return out


def fingerprint(path):
    """Tells one export of a model from another: the sum of the file's 32-bit words, each times its place counted from 1."""
    words = np.frombuffer(open(path, "rb").read(), np.uint8)
    words = np.concatenate([words, np.zeros(-len(words) % 4, np.uint8)]).view("<u4").astype(np.uint64)
    total = (words * np.arange(1, len(words) + 1, dtype=np.uint64) & np.uint64(0xFFFFFFFF)).sum() & np.uint64(0xFFFFFFFF)
    return np.array([total], np.uint32).view(np.int32)


def emoji_case():
    """The shipped model; its own files are in models/."""
    out = model_case(EMOJI, ["", "a mountain lion"], 96, 64, 501)
    for name, file in (("text_encoder", "model"), ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        out[f"{name}.fingerprint"] = fingerprint(f"{EMOJI}/{name}/{file}.safetensors")
    return out


EMOJI = os.path.join(HERE, "..", "models", "latentd", "emoji")

BLOCKS = {"x": "CrossAttn", "-": ""}


def types(down, up):
    """"xx-" -> CrossAttnDownBlock2D, CrossAttnDownBlock2D, DownBlock2D."""
    return dict(down_block_types=[BLOCKS[c] + "DownBlock2D" for c in down],
                up_block_types=[BLOCKS[c] + "UpBlock2D" for c in up])


CASES = {
    # ViT-L's kind, with the prefix and the extra tensor of old checkpoints
    "text_quick_gelu": lambda d: text_case(
        d, 1, torch.float16, "text_model.", variant=".fp16", vocab_size=150, hidden_size=48, intermediate_size=96,
        num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu",
        projection_dim=48, bos_token_id=0, eos_token_id=2),
    # ViT-H's kind, without the prefix
    "text_gelu": lambda d: text_case(
        d, 2, torch.float32, "", vocab_size=90, hidden_size=40, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=5, max_position_embeddings=20, hidden_act="gelu", projection_dim=16),
    # SDXL's second encoder, OpenCLIP bigG's kind; both rules of finding the end of the text
    "text_projection_highest_id": lambda d: projection_case(
        d, 12, torch.float16, [[48, 5, 9, 49], [48, 30, 49, 49, 7, 49], [3, 20, 4]], vocab_size=50, hidden_size=24,
        intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, max_position_embeddings=12,
        hidden_act="gelu", projection_dim=20, bos_token_id=0, eos_token_id=2, pad_token_id=1),
    "text_projection_eos": lambda d: projection_case(
        d, 13, torch.float16, [[48, 5, 9, 47, 49, 47], [48, 30, 49]], vocab_size=50, hidden_size=24,
        intermediate_size=40, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=12,
        hidden_act="quick_gelu", projection_dim=24, bos_token_id=48, eos_token_id=47, pad_token_id=0),
    # SD 1.x: heads as one int, convolution projections, three levels
    "unet_sd1": lambda d: unet_case(
        d, 3, torch.float16, [dict(n=2, h=8, w=12, timesteps=[981, 1]), dict(n=1, h=9, w=7, timesteps=[500, 20, 980])],
        variant=".fp16", block_out_channels=(12, 16, 20), layers_per_block=1, cross_attention_dim=24,
        attention_head_dim=4, norm_num_groups=4, sample_size=8, **types("xx-", "-xx")),
    # SD 2.x: list of heads, linear projections, two layers a block, sharded
    "unet_sd2": lambda d: unet_case(
        d, 4, torch.float16, [dict(n=2, h=6, w=5, timesteps=[999, 499, 0], tokens=5)], shards=SHARD,
        block_out_channels=(12, 20), layers_per_block=2, cross_attention_dim=20, attention_head_dim=(2, 5),
        norm_num_groups=4, use_linear_projection=True, upcast_attention=True, sample_size=8, act_fn="swish",
        **types("x-", "-x")),
    # LCM's guidance embedding; deep transformers; the rarer fields
    "unet_lcm": lambda d: unet_case(
        d, 5, torch.bfloat16, [dict(n=1, h=8, w=8, timesteps=[999, 759]), dict(n=2, h=4, w=10, timesteps=[259]),
                               dict(n=1, h=9, w=7, timesteps=[500])],
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12, attention_head_dim=2, norm_num_groups=2,
        time_cond_proj_dim=14, transformer_layers_per_block=(1, 2), downsample_padding=0, flip_sin_to_cos=False,
        freq_shift=1, norm_eps=1e-6, conv_in_kernel=1, conv_out_kernel=1, in_channels=5, out_channels=3, sample_size=8,
        time_embedding_dim=40, **types("-x", "x-")),
    # only_cross_attention in one block, no middle block (distilled models), layers that differ by block
    "unet_small": lambda d: unet_case(
        d, 6, torch.float16, [dict(n=2, h=13, w=21, timesteps=[321, 900])],
        block_out_channels=(8, 12), layers_per_block=(1, 2), cross_attention_dim=10, attention_head_dim=(2, 4),
        norm_num_groups=4, only_cross_attention=(True, False), mid_block_type=None, sample_size=8, **types("xx", "xx")),
    # SDXL: pooled text and time ids, depth and heads that differ by block, odd sizes
    "unet_sdxl": lambda d: unet_case(
        d, 14, torch.float16,
        [dict(n=2, h=8, w=12, timesteps=[999, 249], time_ids=[[512, 768, 0, 0, 512, 768], [1024, 576, 16, 8, 1024, 576]]),
         dict(n=1, h=9, w=7, timesteps=[500, 20, 980], time_ids=[[72, 56, 0, 0, 72, 56]])],
        block_out_channels=(8, 12, 16), layers_per_block=1, cross_attention_dim=20, attention_head_dim=(8, 3, 4),
        norm_num_groups=4, use_linear_projection=True, transformer_layers_per_block=(3, 1, 2), sample_size=8,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=12 + 6 * 8,
        **types("-xx", "xx-")),
    # instruct-pix2pix: the picture's latents beside the noise
    "unet_pix2pix": lambda d: unet_case(
        d, 16, torch.float16, [dict(n=3, h=6, w=10, timesteps=[951, 31])], variant=".fp16", in_channels=8,
        out_channels=4, block_out_channels=(8, 12), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        norm_num_groups=4, sample_size=8, **types("x-", "-x")),
    # the x4 upscaler: the picture beside the latents, its noise level as class label, self-attention in the last block alone
    "unet_upscaler": lambda d: unet_case(
        d, 17, torch.float16, [dict(n=2, h=8, w=12, timesteps=[981, 21], label=20), dict(n=1, h=9, w=6, timesteps=[500], label=0)],
        variant=".fp16", in_channels=7, out_channels=4, block_out_channels=(8, 12, 16), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=4, norm_num_groups=4, sample_size=8, only_cross_attention=(True, True, False),
        use_linear_projection=True, num_class_embeds=30, **types("-xx", "xx-")),
    "vae_old_names": lambda d: vae_case(
        d, 7, torch.float16, [(1, 8, 5), (2, 3, 4)], old=True, block_out_channels=(16, 24), latent_channels=4,
        layers_per_block=1, norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16),
    "vae_plain": lambda d: vae_case(
        d, 8, torch.float16, [(1, 3, 3)], block_out_channels=(8, 8, 12), latent_channels=3, layers_per_block=2,
        norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        use_post_quant_conv=False, mid_block_add_attention=False, scaling_factor=0.5, shift_factor=0.25, sample_size=16),
    # the encoder: old names and shapes in both halves; no quant_conv and no attention, three levels; four levels
    "vae_encoder_old_names": lambda d: vae_case(
        d, 9, torch.float16, [(1, 8, 5), (2, 3, 4)], old=True, encoder=True, block_out_channels=(8, 12),
        latent_channels=4, layers_per_block=1, norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16),
    "vae_encoder_plain": lambda d: vae_case(
        d, 10, torch.float16, [(2, 3, 5)], encoder=True, block_out_channels=(4, 8, 8), latent_channels=3,
        layers_per_block=2, norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=False, sample_size=16),
    "vae_encoder_deep": lambda d: vae_case(
        d, 11, torch.bfloat16, [(1, 3, 2)], encoder=True, block_out_channels=(4, 4, 8, 8), latent_channels=4,
        layers_per_block=2, norm_num_groups=2, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, force_upcast=True, sample_size=16),
    # in tiles: a last tile that is smaller than the overlap, one row of tiles only, sides that are whole tiles
    "vae_tiled": lambda d: vae_case(
        d, 12, torch.float16, [(1, 13, 19), (1, 5, 10), (1, 20, 8)], encoder=True, tiled=True,
        block_out_channels=(8, 12), latent_channels=4, layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16),
    "emoji": lambda d: emoji_case(),
}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", nargs="?", default=os.path.join(HERE, "..", "tests", "golden", "data"))
    ap.add_argument("--only", nargs="+", choices=sorted(CASES), default=sorted(CASES))
    args = ap.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        folder = os.path.join(args.out, name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        golden = CASES[name](folder)
        write_golden(f"{folder}/expected.golden", golden)
        size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
        errors = ", ".join(f"{v:.2e}" for k, v in golden.items() if k.endswith("bf16_error"))
        print(f"{name}: {size / 1024:.0f} KiB, bf16 error {errors}", flush=True)


if __name__ == "__main__":
    main()
