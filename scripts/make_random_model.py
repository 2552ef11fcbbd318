#!/usr/bin/env python3
"""Builds a model of true shapes with random weights, in diffusers layout, for benchmarks and for full-size parity.

    make_random_model.py OUT_DIR {sd15,sd-turbo,pix2pix,sdxl,x4-upscaler} ... [--seed 0] [--vocab bpe_simple_vocab_16e6.txt.gz | none]

Writes OUT_DIR/runwayml/stable-diffusion-v1-5, OUT_DIR/stabilityai/sd-turbo and so on: the configs that the published
models have, fp16 files (the `.fp16.` variant), and CLIP's tokenizer. Nothing is fetched from a model hub. The vocabulary is
the one that the Python package open_clip_torch carries (open_clip/bpe_simple_vocab_16e6.txt.gz); it is found there
when that package is installed. `--vocab none` writes a tokenizer of the same size that knows single bytes only: enough
for times and memory, not for comparing pictures with other programs' tokenizers.

Needs torch and safetensors; sdxl and x4-upscaler also diffusers and transformers. Names and shapes of the others are those of
torch_twin.py; where diffusers is installed, the config files hold its defaults too. Weights are drawn on the GPU where there is one, which gives other numbers than the CPU does for
the same seed (`--device cpu` for the same everywhere).

Weights are normal with variance 1 / fan-in, so that every layer keeps the size of what it reads, as a trained model's
do. The pictures are noise; times, memory and rounding are those of the real thing.
"""
import argparse
import gzip
import json
import os
import sys

import torch
from safetensors.torch import save_file

from torch_twin import NETWORKS

UNET = dict(
    sample_size=64, in_channels=4, out_channels=4, center_input_sample=False, flip_sin_to_cos=True, freq_shift=0,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, block_out_channels=[320, 640, 1280, 1280],
    layers_per_block=2, downsample_padding=1, mid_block_scale_factor=1, act_fn="silu", norm_num_groups=32,
    norm_eps=1e-5, cross_attention_dim=768, attention_head_dim=8)
VAE = dict(
    in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    block_out_channels=[128, 256, 512, 512], layers_per_block=2, act_fn="silu", latent_channels=4, norm_num_groups=32,
    sample_size=512, scaling_factor=0.18215)
TEXT = dict(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
    max_position_embeddings=77, hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=768, bos_token_id=0,
    eos_token_id=2, pad_token_id=1)
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
             set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1, trained_betas=None, clip_sample=False)

X4_BETAS = dict(_diffusers_version="0.10.0.dev0", beta_start=0.0001, beta_end=0.02, num_train_timesteps=1000, trained_betas=None)

MODELS = {
    "sd15": dict(
        id="runwayml/stable-diffusion-v1-5", unet=UNET, vae=VAE, text=TEXT, pad_token="<|endoftext|>",
        scheduler=dict(BETAS, _class_name="PNDMScheduler", _diffusers_version="0.6.0")),
    "sd-turbo": dict(
        id="stabilityai/sd-turbo",
        unet=dict(UNET, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
        vae=dict(VAE, sample_size=768),
        text=dict(TEXT, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
                  hidden_act="gelu", projection_dim=512),
        pad_token="!",
        scheduler=dict(BETAS, _class_name="EulerDiscreteScheduler", _diffusers_version="0.24.0.dev0",
                       interpolation_type="linear", prediction_type="epsilon", sample_max_value=1.0,
                       timestep_spacing="trailing", use_karras_sigmas=False)),
    "pix2pix": dict(
        id="timbrooks/instruct-pix2pix", pipeline="StableDiffusionInstructPix2PixPipeline",
        unet=dict(UNET, in_channels=8), vae=VAE, text=TEXT, pad_token="<|endoftext|>",
        scheduler=dict(BETAS, _class_name="EulerAncestralDiscreteScheduler", _diffusers_version="0.12.0.dev0",
                       prediction_type="epsilon")),
    "sdxl": dict(
        id="stabilityai/stable-diffusion-xl-base-1.0", pipeline="StableDiffusionXLPipeline",
        unet=dict(UNET, sample_size=128, down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
                  up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"], block_out_channels=[320, 640, 1280],
                  transformer_layers_per_block=[1, 2, 10], cross_attention_dim=2048, attention_head_dim=[5, 10, 20],
                  use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
                  projection_class_embeddings_input_dim=2816),
        vae=dict(VAE, sample_size=1024, scaling_factor=0.13025, force_upcast=True), text=TEXT,
        text_2=dict(TEXT, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
                    hidden_act="gelu", projection_dim=1280),
        pad_token="<|endoftext|>", pad_token_2="!",
        scheduler=dict(BETAS, _class_name="EulerDiscreteScheduler", _diffusers_version="0.19.0.dev0",
                       interpolation_type="linear", prediction_type="epsilon", sample_max_value=1.0,
                       timestep_spacing="leading", use_karras_sigmas=False)),
    "x4-upscaler": dict(
        id="stabilityai/stable-diffusion-x4-upscaler", pipeline="StableDiffusionUpscalePipeline",
        unet=dict(UNET, sample_size=128, in_channels=7, block_out_channels=[256, 512, 512, 1024],
                  down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
                  up_block_types=["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"], cross_attention_dim=1024,
                  only_cross_attention=[True, True, True, False], num_class_embeds=1000, use_linear_projection=True),
        vae=dict(VAE, down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
                 block_out_channels=[128, 256, 512], sample_size=256, scaling_factor=0.08333),
        text=dict(TEXT, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
                  hidden_act="gelu", projection_dim=512),
        pad_token="<|endoftext|>",
        scheduler=dict(X4_BETAS, _class_name="DDIMScheduler", beta_schedule="scaled_linear", set_alpha_to_one=False,
                       steps_offset=1, clip_sample=False, prediction_type="v_prediction"),
        low_res_scheduler=dict(X4_BETAS, _class_name="DDPMScheduler", beta_schedule="squaredcos_cap_v2", clip_sample=True,
                               prediction_type="epsilon", variance_type="fixed_small")),
}


def randomize(model, seed):
    """Fills every parameter of MODEL, in the order of its names, on the device where it is."""
    g = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        norm = "norm" in name.rsplit(".", 2)[-2]
        with torch.no_grad():
            if name.endswith("bias"):
                p.normal_(0, 0.1 if norm else 0.02, generator=g)
            elif norm:
                p.normal_(1, 0.1, generator=g)
            elif "embedding" in name and "time" not in name:
                p.normal_(0, 0.5, generator=g)
            else:
                fan_in = p[0].numel()
                # queries and keys a little larger: the softmax should choose, not average
                gain = 1.5 if name.split(".")[-2] in ("to_q", "to_k", "q_proj", "k_proj") else 1.0
                p.normal_(0, gain * fan_in**-0.5, generator=g)


def network(key, config):
    """The class and file of a component; diffusers' and transformers' own where torch_twin.py has none."""
    if key == "text_2":
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection
        return lambda c: CLIPTextModelWithProjection(CLIPTextConfig(**c)), "text_encoder_2/model.fp16.safetensors"
    cls, path = NETWORKS[key]
    if "addition_embed_type" in config or "num_class_embeds" in config:
        from diffusers import UNet2DConditionModel
        return UNet2DConditionModel.from_config, path
    return cls, path


def build(make_model, config, seed, device):
    with torch.device("meta"):
        model = make_model(config)
    model = model.to_empty(device=device)
    randomize(model, seed)
    return model.half().eval()


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def byte_symbols():
    """CLIP's table of 256 printable characters, one for each byte (bytes_to_unicode)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def clip_words(bpe):
    """CLIP's 49,406 words before the two specials, and its merges."""
    merges = gzip.open(bpe).read().decode("utf-8").split("\n")[1:49152 - 256 - 2 + 1]
    symbols = byte_symbols()
    return symbols + [s + "</w>" for s in symbols] + ["".join(m.split()) for m in merges], merges


def byte_words():
    """As many words, of which only those of a single byte can come out: there is no merge that leads to the rest."""
    symbols = byte_symbols()
    words = symbols + [s + "</w>" for s in symbols]
    return words + [f"unused{i}" for i in range(len(words), 49406)], []


def write_tokenizer(folder, bpe, pad):
    words, merges = byte_words() if bpe == "none" else clip_words(bpe)
    words += ["<|startoftext|>", "<|endoftext|>"]
    write_json(f"{folder}/vocab.json", {w: i for i, w in enumerate(words)})
    with open(f"{folder}/merges.txt", "w", encoding="utf-8") as f:
        f.write("\n".join(["#version: 0.2", *merges]) + "\n")
    token = dict(lstrip=False, normalized=True, rstrip=False, single_word=False)
    bos, eos = dict(token, content="<|startoftext|>"), dict(token, content="<|endoftext|>")
    write_json(f"{folder}/special_tokens_map.json",
               dict(bos_token=bos, eos_token=eos, pad_token=pad, unk_token=eos))
    write_json(f"{folder}/tokenizer_config.json",
               dict(add_prefix_space=False, bos_token=bos, clean_up_tokenization_spaces=True, do_lower_case=True,
                    eos_token=eos, errors="replace", model_max_length=77, pad_token=pad,
                    tokenizer_class="CLIPTokenizer", unk_token=eos))


def write_config(path, kind, config):
    """With the defaults that diffusers adds, where it is installed: the model is the same without them."""
    try:
        import diffusers
    except ImportError:
        write_json(path, dict(config, _class_name=kind, _diffusers_version="0.24.0"))
        return
    with torch.device("meta"):
        getattr(diffusers, kind).from_config(config).save_config(os.path.dirname(path))


def make(out, name, seed, bpe, device):
    spec = MODELS[name]
    folder = f"{out}/{spec['id']}"
    print(f"{name}: {folder}", flush=True)
    index = dict(_class_name=spec.get("pipeline", "StableDiffusionPipeline"), _diffusers_version="0.24.0",
                 scheduler=["diffusers", spec["scheduler"]["_class_name"]])
    for i, key in enumerate(k for k in ("unet", "vae", "text", "text_2") if k in spec):
        make_model, path = network(key, spec[key])
        component = os.path.dirname(path)
        path = f"{folder}/{path}"
        config = f"{folder}/{component}/config.json"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if key.startswith("text"):
            kind = "CLIPTextModelWithProjection" if key == "text_2" else "CLIPTextModel"
            write_json(config, dict(TEXT, **spec[key], architectures=[kind], model_type="clip_text_model",
                                    torch_dtype="float16"))
            tokenizer = component.replace("text_encoder", "tokenizer")
            write_tokenizer(f"{folder}/{tokenizer}", bpe, spec["pad_token" + key[4:]])
            index.update({component: ["transformers", kind], tokenizer: ["transformers", "CLIPTokenizer"]})
        else:
            kind = "UNet2DConditionModel" if key == "unet" else "AutoencoderKL"
            write_config(config, kind, spec[key])
            index[component] = ["diffusers", kind]
        # says how to run the VAE, not what it is
        shape = {k: v for k, v in spec[key].items() if k != "force_upcast"}
        state = build(make_model, shape, seed + i, device).state_dict()
        save_file({k: v.cpu().contiguous() for k, v in state.items()}, path, metadata={"format": "pt"})
        del state
    write_json(f"{folder}/scheduler/scheduler_config.json", spec["scheduler"])
    if "low_res_scheduler" in spec:
        write_json(f"{folder}/low_res_scheduler/scheduler_config.json", spec["low_res_scheduler"])
        index.update(low_res_scheduler=["diffusers", spec["low_res_scheduler"]["_class_name"]], max_noise_level=350)
    if "text_2" in spec:
        index["force_zeros_for_empty_prompt"] = True
    else:
        index.update(feature_extractor=[None, None], safety_checker=[None, None], requires_safety_checker=False)
    write_json(f"{folder}/model_index.json", dict(sorted(index.items())))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("models", nargs="+", choices=sorted(MODELS))
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--vocab", help="bpe_simple_vocab_16e6.txt.gz, or none")
    ap.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = ap.parse_args()
    bpe = args.vocab
    if not bpe:
        try:
            import importlib.util
            bpe = os.path.join(os.path.dirname(importlib.util.find_spec("open_clip").origin),
                               "bpe_simple_vocab_16e6.txt.gz")
        except AttributeError:
            sys.exit("the vocabulary is missing: pip install --no-deps open_clip_torch, or give --vocab (or --vocab none)")
    for name in args.models:
        make(args.out, name, args.seed, bpe, args.device)


if __name__ == "__main__":
    main()
