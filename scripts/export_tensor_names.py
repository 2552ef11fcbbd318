#!/usr/bin/env python3
"""Writes tests/unit/data/published: the configs of the repositories that the ai-runner loads, and the names and shapes of
the tensors that diffusers and transformers expect for them.

    export_tensor_names.py [OUT_DIR]

Each architecture is built on PyTorch's meta device, which has shapes and no numbers; nothing is fetched. The configs were
written down from the published repositories, with the keys that their versions of diffusers wrote.

published.json: repository -> component -> {"config": …, "tensors": NAME, "extra": {name: [type, shape]}}. `extra` are
tensors that published files carry and no network reads. NAME.txt holds a line for each group of tensors of one shape:
"320x320x3x3 down_blocks.0.resnets.{0-1}.conv{1-2}.weight"; braces hold lists of numbers and ranges. walks.json holds
[repository, component, half, [N, H, W] of the input, FLOPs of one pass as PyTorch counts them: 2 for each multiply-add of
convolutions, matrix products and attention].
"""
import json
import os
import re
import sys

import torch
from diffusers import (AutoencoderKL, AutoencoderKLTemporalDecoder, UNet2DConditionModel,
                       UNetSpatioTemporalConditionModel)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch.utils.flop_counter import FlopCounterMode
from transformers import (CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionConfig,
                          CLIPVisionModelWithProjection)

HERE = os.path.dirname(os.path.abspath(__file__))

# ---- What the config files say. Later versions of diffusers write more keys, most of them null. ----

CROSS_DOWN, PLAIN_DOWN, CROSS_UP, PLAIN_UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"

UNET_SD15 = dict(
    _class_name="UNet2DConditionModel", _diffusers_version="0.6.0", act_fn="silu", attention_head_dim=8,
    block_out_channels=[320, 640, 1280, 1280], center_input_sample=False, cross_attention_dim=768,
    down_block_types=[CROSS_DOWN] * 3 + [PLAIN_DOWN], downsample_padding=1, flip_sin_to_cos=True, freq_shift=0,
    in_channels=4, layers_per_block=2, mid_block_scale_factor=1, norm_eps=1e-05, norm_num_groups=32, out_channels=4,
    sample_size=64, up_block_types=[PLAIN_UP] + [CROSS_UP] * 3)
# diffusers 0.10 to 0.13
UNET_KEYS_2022 = dict(
    _diffusers_version="0.11.0", class_embed_type=None, dual_cross_attention=False,
    mid_block_type="UNetMidBlock2DCrossAttn", num_class_embeds=None, only_cross_attention=False,
    resnet_time_scale_shift="default", upcast_attention=False, use_linear_projection=False)
# diffusers 0.19 and later
UNET_KEYS_2023 = dict(
    UNET_KEYS_2022, _diffusers_version="0.19.0.dev0", addition_embed_type=None, addition_embed_type_num_heads=64,
    addition_time_embed_dim=None, attention_type="default", class_embeddings_concat=False, conv_in_kernel=3,
    conv_out_kernel=3, cross_attention_norm=None, encoder_hid_dim=None, encoder_hid_dim_type=None,
    mid_block_only_cross_attention=None, num_attention_heads=None, projection_class_embeddings_input_dim=None,
    resnet_out_scale_factor=1.0, resnet_skip_time_act=False, time_cond_proj_dim=None, time_embedding_act_fn=None,
    time_embedding_dim=None, time_embedding_type="positional", timestep_post_act=None, transformer_layers_per_block=1)
UNET_KEYS_2024 = dict(
    UNET_KEYS_2023, _diffusers_version="0.26.3", dropout=0.0, reverse_transformer_layers_per_block=None)
UNET_SD21 = dict(
    UNET_SD15, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024)
UNET_SDXL = dict(
    UNET_SD15, addition_embed_type="text_time", addition_time_embed_dim=256, attention_head_dim=[5, 10, 20],
    block_out_channels=[320, 640, 1280], cross_attention_dim=2048, down_block_types=[PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN],
    projection_class_embeddings_input_dim=2816, sample_size=128, transformer_layers_per_block=[1, 2, 10],
    up_block_types=[CROSS_UP, CROSS_UP, PLAIN_UP], upcast_attention=None, use_linear_projection=True)

# Its attention looks at the prompt alone, but for the last level's.
UNET_X4 = dict(
    UNET_SD15, _diffusers_version="0.10.0.dev0", block_out_channels=[256, 512, 512, 1024], cross_attention_dim=1024,
    down_block_types=[PLAIN_DOWN] + [CROSS_DOWN] * 3, dual_cross_attention=False, in_channels=7, num_class_embeds=1000,
    only_cross_attention=[True, True, True, False], sample_size=128, up_block_types=[CROSS_UP] * 3 + [PLAIN_UP],
    use_linear_projection=True)

VAE_SD = dict(
    _class_name="AutoencoderKL", _diffusers_version="0.6.0", act_fn="silu", block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4, in_channels=3, latent_channels=4, layers_per_block=2, norm_num_groups=32,
    out_channels=3, sample_size=512, up_block_types=["UpDecoderBlock2D"] * 4)
VAE_X4 = dict(
    VAE_SD, _diffusers_version="0.10.0.dev0", block_out_channels=[128, 256, 512], down_block_types=["DownEncoderBlock2D"] * 3,
    sample_size=256, scaling_factor=0.08333, up_block_types=["UpDecoderBlock2D"] * 3)
VAE_SDXL = dict(VAE_SD, _diffusers_version="0.19.0.dev0", force_upcast=True, sample_size=1024, scaling_factor=0.13025)
VAE_SDXL_2024 = dict(VAE_SDXL, _diffusers_version="0.26.3", latents_mean=None, latents_std=None)

TEXT_L = dict(
    architectures=["CLIPTextModel"], attention_dropout=0.0, bos_token_id=0, dropout=0.0, eos_token_id=2,
    hidden_act="quick_gelu", hidden_size=768, initializer_factor=1.0, initializer_range=0.02, intermediate_size=3072,
    layer_norm_eps=1e-05, max_position_embeddings=77, model_type="clip_text_model", num_attention_heads=12,
    num_hidden_layers=12, pad_token_id=1, projection_dim=768, torch_dtype="float32", transformers_version="4.22.0.dev0",
    vocab_size=49408)
TEXT_H = dict(
    TEXT_L, hidden_act="gelu", hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=23,
    projection_dim=512, torch_dtype="float16", transformers_version="4.35.0")
TEXT_BIGG = dict(
    TEXT_L, architectures=["CLIPTextModelWithProjection"], hidden_act="gelu", hidden_size=1280, intermediate_size=5120,
    num_attention_heads=20, num_hidden_layers=32, projection_dim=1280, torch_dtype="float16",
    transformers_version="4.32.0.dev0")

SAFETY = dict(
    architectures=["StableDiffusionSafetyChecker"], initializer_factor=1.0, logit_scale_init_value=2.6592,
    model_type="clip", projection_dim=768, torch_dtype="float32", transformers_version=None,
    text_config=dict(hidden_size=768, intermediate_size=3072, model_type="clip_text_model", num_attention_heads=12),
    text_config_dict=dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12),
    vision_config=dict(
        attention_dropout=0.0, hidden_act="quick_gelu", hidden_size=1024, image_size=224, initializer_factor=1.0,
        initializer_range=0.02, intermediate_size=4096, layer_norm_eps=1e-05, model_type="clip_vision_model",
        num_attention_heads=16, num_channels=3, num_hidden_layers=24, patch_size=14),
    vision_config_dict=dict(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24, patch_size=14))

UNET_SVD = dict(
    _class_name="UNetSpatioTemporalConditionModel", _diffusers_version="0.24.0.dev0", addition_time_embed_dim=256,
    block_out_channels=[320, 640, 1280, 1280], cross_attention_dim=1024,
    down_block_types=["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"], in_channels=8,
    layers_per_block=2, num_attention_heads=[5, 10, 20, 20], num_frames=25, out_channels=4,
    projection_class_embeddings_input_dim=768, sample_size=96, transformer_layers_per_block=1,
    up_block_types=["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3)
VAE_SVD = dict(
    _class_name="AutoencoderKLTemporalDecoder", _diffusers_version="0.24.0.dev0", block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4, force_upcast=True, in_channels=3, latent_channels=4, layers_per_block=2,
    out_channels=3, sample_size=768, scaling_factor=0.18215)
VISION_H = dict(
    architectures=["CLIPVisionModelWithProjection"], attention_dropout=0.0, dropout=0.0, hidden_act="gelu",
    hidden_size=1280, image_size=224, initializer_factor=1.0, initializer_range=0.02, intermediate_size=5120,
    layer_norm_eps=1e-05, model_type="clip_vision_model", num_attention_heads=16, num_channels=3, num_hidden_layers=32,
    patch_size=14, projection_dim=1024, torch_dtype="float16", transformers_version="4.34.0.dev0")

# Files of before transformers 4.31 hold the positions' numbers.
TEXT_IDS = {"text_model.embeddings.position_ids": ["I64", [1, 77]]}
VISION_IDS = {"vision_model.vision_model.embeddings.position_ids": ["I64", [1, 257]]}


def part(tensors, config, extra=None, **more):
    return {"config": dict(config, **more), "tensors": tensors, "extra": extra or {}}


SAFETY_PART = part("safety_checker", SAFETY, VISION_IDS)
TEXT_L_OLD = part("text_l", TEXT_L, TEXT_IDS)
TEXT_L_XL = part("text_l", TEXT_L, torch_dtype="float16", transformers_version="4.32.0.dev0")
BIGG_PART = part("text_bigg", TEXT_BIGG)
LAYOUT_SD15 = dict(unet=part("unet_sd15", UNET_SD15), vae=part("vae_old", VAE_SD), text_encoder=TEXT_L_OLD)
LAYOUT_SDXL = dict(
    unet=part("unet_sdxl", dict(UNET_KEYS_2023, **{**UNET_SDXL, "_diffusers_version": "0.19.0.dev0"})),
    vae=part("vae", VAE_SDXL), text_encoder=TEXT_L_XL, text_encoder_2=BIGG_PART)
LAYOUT_SVD = dict(
    unet=part("unet_svd", UNET_SVD), vae=part("vae_svd", VAE_SVD), image_encoder=part("vision_h", VISION_H))
LAYOUT_REALVISXL = dict(
    LAYOUT_SDXL, unet=part("unet_sdxl", dict(UNET_KEYS_2024, **{**UNET_SDXL, "_diffusers_version": "0.26.3"})),
    vae=part("vae", VAE_SDXL_2024))

REPOSITORIES = {
    "runwayml/stable-diffusion-v1-5": dict(LAYOUT_SD15, safety_checker=SAFETY_PART),
    "prompthero/openjourney-v4": dict(LAYOUT_SD15, unet=part("unet_sd15", {**UNET_SD15, **UNET_KEYS_2022}),
                                      safety_checker=SAFETY_PART),
    "SG161222/Realistic_Vision_V6.0_B1_noVAE": dict(
        LAYOUT_SD15, unet=part("unet_sd15", {**UNET_SD15, **UNET_KEYS_2023}), vae=part("vae", VAE_SD, force_upcast=True),
        text_encoder=part("text_l", TEXT_L)),
    "stabilityai/sd-vae-ft-ema": dict(vae=part("vae_old", VAE_SD, _diffusers_version="0.4.2", sample_size=256)),
    "stabilityai/sd-turbo": dict(
        unet=part("unet_sd21", {**UNET_SD21, **UNET_KEYS_2023, "use_linear_projection": True, "dropout": 0.0}),
        vae=part("vae", VAE_SD, force_upcast=True, sample_size=768, scaling_factor=0.18215),
        text_encoder=part("text_h", TEXT_H)),
    "stabilityai/sdxl-turbo": dict(
        LAYOUT_SDXL, unet=part("unet_sdxl", {**UNET_KEYS_2024, **UNET_SDXL, "sample_size": 64}),
        vae=part("vae", VAE_SDXL)),
    "stabilityai/stable-diffusion-xl-base-1.0": LAYOUT_SDXL,
    "SG161222/RealVisXL_V4.0": LAYOUT_REALVISXL,
    "SG161222/RealVisXL_V4.0_Lightning": LAYOUT_REALVISXL,
    # the UNet file alone, with the base model's config
    "ByteDance/SDXL-Lightning": dict(unet=LAYOUT_SDXL["unet"]),
    "timbrooks/instruct-pix2pix": dict(
        LAYOUT_SD15, unet=part("unet_pix2pix", {**UNET_SD15, **UNET_KEYS_2022, "in_channels": 8}),
        safety_checker=SAFETY_PART),
    "stabilityai/stable-diffusion-x4-upscaler": dict(
        unet=part("unet_x4", UNET_X4), vae=part("vae_old_x4", VAE_X4),
        text_encoder=part("text_h", TEXT_H, TEXT_IDS, transformers_version="4.25.0.dev0")),
    "CompVis/stable-diffusion-safety-checker": dict(safety_checker=SAFETY_PART),
    "stabilityai/stable-video-diffusion-img2vid": dict(LAYOUT_SVD, unet=part("unet_svd", UNET_SVD, num_frames=14)),
    "stabilityai/stable-video-diffusion-img2vid-xt": LAYOUT_SVD,
    "stabilityai/stable-video-diffusion-img2vid-xt-1-1": LAYOUT_SVD,
}

# ---- Names and shapes ----

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
PARAMETERS = {  # as published, to know that a config was written down right
    "unet_sd15": 859_520_964, "unet_sdxl": 2_567_463_684, "unet_sd21": 865_910_724, "unet_pix2pix": 859_532_484,
    "vae": 83_653_863, "text_l": 123_060_480, "text_h": 340_387_840, "text_bigg": 694_659_840,
    "unet_svd": 1_524_623_082, "vision_h": 632_076_800}


def construct(component, config):
    with torch.device("meta"):
        if config.get("_class_name") == "UNetSpatioTemporalConditionModel":
            return UNetSpatioTemporalConditionModel.from_config(config)
        if config.get("_class_name") == "AutoencoderKLTemporalDecoder":
            return AutoencoderKLTemporalDecoder.from_config(config)
        if component == "image_encoder":
            return CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
        if component == "unet":
            return UNet2DConditionModel.from_config(config)
        if component == "vae":
            return AutoencoderKL.from_config(config)
        if component == "safety_checker":
            return StableDiffusionSafetyChecker(CLIPConfig(**config))
        cls = CLIPTextModelWithProjection if "WithProjection" in config["architectures"][0] else CLIPTextModel
        return cls(CLIPTextConfig(**config))


def published_name(component, tensors, name):
    """The name in published files, for which newer classes have a shorter one."""
    if component.startswith("text_encoder") and not name.startswith(("text_model.", "text_projection.")):
        return "text_model." + name
    if component == "safety_checker" and name.startswith("vision_model.") and ".vision_model." not in name:
        return "vision_model." + name
    if tensors.startswith("vae_old"):
        for new, old in OLD_ATTENTION.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def names_and_shapes(component, entry):
    model = construct(component, entry["config"])
    return {published_name(component, entry["tensors"], k): tuple(v.shape) for k, v in model.state_dict().items()
            if not k.endswith("position_ids")}


# ---- The work of one pass at full size. Sizes are those of the input: latents, or pixels of the encoder. ----

WALKS = [
    ("runwayml/stable-diffusion-v1-5", "unet", "", (2, 64, 64)),
    ("runwayml/stable-diffusion-v1-5", "text_encoder", "", (2, 1, 77)),
    ("stabilityai/sd-turbo", "unet", "", (1, 72, 128)),
    ("stabilityai/sd-turbo", "text_encoder", "", (1, 1, 77)),
    ("stabilityai/stable-diffusion-xl-base-1.0", "unet", "", (2, 128, 128)),
    ("stabilityai/stable-diffusion-xl-base-1.0", "unet", "", (1, 75, 125)),
    ("stabilityai/stable-diffusion-xl-base-1.0", "text_encoder_2", "", (2, 1, 77)),
    ("stabilityai/stable-diffusion-xl-base-1.0", "vae", "decoder", (1, 128, 128)),
    ("stabilityai/stable-diffusion-xl-base-1.0", "vae", "encoder", (1, 1024, 1024)),
    ("stabilityai/stable-diffusion-x4-upscaler", "unet", "", (2, 128, 128)),
    ("stabilityai/stable-diffusion-x4-upscaler", "vae", "decoder", (1, 128, 128)),
    ("timbrooks/instruct-pix2pix", "unet", "", (3, 64, 64)),
    ("timbrooks/instruct-pix2pix", "vae", "encoder", (1, 512, 768)),
]


def one_pass(model, half, n, h, w):
    def empty(*shape, dtype=torch.float32):
        return torch.empty(*shape, device="meta", dtype=dtype)
    cfg = model.config
    if half == "decoder":
        return model.decode(empty(n, cfg.latent_channels, h, w))
    if half == "encoder":
        return model.encode(empty(n, 3, h, w))
    if not isinstance(model, UNet2DConditionModel):
        return model(empty(n, w, dtype=torch.long))
    added = {}
    if cfg.addition_embed_type:
        pooled = cfg.projection_class_embeddings_input_dim - 6 * cfg.addition_time_embed_dim
        added["added_cond_kwargs"] = {"text_embeds": empty(n, pooled), "time_ids": empty(n, 6)}
    if cfg.num_class_embeds:
        added["class_labels"] = empty(n, dtype=torch.long)
    return model(empty(n, cfg.in_channels, h, w), empty(n), empty(n, 77, cfg.cross_attention_dim), **added)


def walks():
    for repository, component, half, size in WALKS:
        model = construct(component, REPOSITORIES[repository][component]["config"]).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            one_pass(model, half, *size)
        yield [repository, component, half, list(size), counter.get_total_flops()]


def merge(rows):
    """Tuples of sets of numbers, merged where they differ at one place only: the last place first."""
    for place in reversed(range(len(rows[0]) if rows else 0)):
        groups = {}
        for row in rows:
            groups.setdefault(row[:place] + row[place + 1:], set()).update(row[place])
        rows = [rest[:place] + (frozenset(numbers),) + rest[place:] for rest, numbers in groups.items()]
    return rows


def braces(numbers):
    numbers, runs = sorted(numbers), []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(numbers) == 1 else "{" + text + "}"


def grouped(shapes):
    groups = {}
    for name, shape in shapes.items():
        key = ("x".join(map(str, shape)), tuple(re.split(r"\d+", name)))
        groups.setdefault(key, []).append(tuple(frozenset([int(n)]) for n in re.findall(r"\d+", name)))
    for (shape, words), rows in groups.items():
        for row in merge(rows):
            yield shape + " " + words[0] + "".join(braces(n) + w for n, w in zip(row, words[1:]))


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "..", "tests", "unit", "data", "published")
    os.makedirs(out, exist_ok=True)
    known = {}
    for repository, parts in REPOSITORIES.items():
        for component, entry in parts.items():
            shapes = names_and_shapes(component, entry)
            name = entry["tensors"]
            assert known.setdefault(name, shapes) == shapes, f"{repository}: {component} is not {name}"
            count = sum(torch.Size(s).numel() for s in shapes.values())
            assert count == PARAMETERS.get(name, count), f"{name} has {count} parameters"
    for name, shapes in known.items():
        with open(os.path.join(out, f"{name}.txt"), "w", encoding="utf-8") as f:
            f.writelines(line + "\n" for line in sorted(grouped(shapes)))
        print(f"{name}: {len(shapes)} tensors, {sum(torch.Size(s).numel() for s in shapes.values()):,} parameters")
    with open(os.path.join(out, "published.json"), "w", encoding="utf-8") as f:
        rows = []
        for repository, parts in REPOSITORIES.items():
            inner = ",\n".join(f"  {json.dumps(c)}: {json.dumps(e)}" for c, e in parts.items())
            rows.append(f" {json.dumps(repository)}: {{\n{inner}\n }}")
        f.write("{\n" + ",\n".join(rows) + "\n}\n")
    with open(os.path.join(out, "walks.json"), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(" " + json.dumps(w) for w in walks()) + "\n]\n")


if __name__ == "__main__":
    main()
