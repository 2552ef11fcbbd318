#!/usr/bin/env python3
"""Tiny random models, one a family, and the pictures that diffusers makes with them in fp32.

    scripts/export_family_goldens.py [--out tests/golden/data/families]

OUT is a MODEL_DIR: the published repositories' layout, ids (where a rule goes by the id), block types, conditioning and
schedulers, with a few channels. Beside the models, pictures.txt has one request a line and NAME.rgb what it gives: 8-bit
RGB, row by row, without a header; tests/golden/test_image_to_image.c reads both. input.rgb is the picture that
image-to-image starts from. Noise is drawn as torch does on a CUDA generator, in the order in which the pipelines ask for
it and rounded to the type that they ask for, so latentd draws the same.

Needs torch, diffusers, transformers, pillow.
"""
import argparse
import json
import os
import pathlib
import shutil
import sys

import numpy as np
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, EDMDPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, PNDMScheduler,
                       StableDiffusionImg2ImgPipeline, StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline,
                       StableDiffusionUpscalePipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UNet2DConditionModel)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from export_scheduler_goldens import cuda_randn
from make_random_model import randomize

TOKENIZER = pathlib.Path(__file__).resolve().parent.parent / "tests/api/data/latentd/tiny/tokenizer"
END = 518  # of that tokenizer
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1)
INPUT = (70, 53)  # width, height: cut to 64 x 48

UNET = dict(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=2)
SDXL_UNET = dict(UNET, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                 transformer_layers_per_block=(1, 2), use_linear_projection=True, cross_attention_dim=40, attention_head_dim=(2, 4),
                 addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 20)
VAE = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(8,) * 4,
           layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=64)
TEXT = dict(vocab_size=END + 1, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=END - 1, eos_token_id=END, pad_token_id=END)
TEXT_2 = dict(TEXT, hidden_size=24, hidden_act="gelu", projection_dim=20, num_hidden_layers=3, eos_token_id=2)

# id → pipeline class in model_index.json, configs, scheduler, whether the files are the fp16 variant
MODELS = {
    "latentd/sd1": dict(cls="StableDiffusionPipeline", unet=UNET, scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True), fp16=False),
    "latentd/sd2": dict(cls="StableDiffusionPipeline", fp16=True, pad="!",
                        unet=dict(UNET, use_linear_projection=True, attention_head_dim=(2, 4)), text=dict(TEXT, hidden_act="gelu"),
                        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction")),
    "stabilityai/stable-diffusion-xl-base-1.0": dict(
        cls="StableDiffusionXLPipeline", unet=SDXL_UNET, scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
        fp16=True, text_2=TEXT_2, vae=dict(VAE, scaling_factor=0.13025), extra=dict(force_zeros_for_empty_prompt=True)),
    "timbrooks/instruct-pix2pix": dict(cls="StableDiffusionInstructPix2PixPipeline", unet=dict(UNET, in_channels=8),
                                       scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True), fp16=False),
}
XL, TURBO, LIGHTNING = "stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/sdxl-turbo", "ByteDance/SDXL-Lightning-2step"
PIX = "timbrooks/instruct-pix2pix"
SHORT, SHORT_LENGTH = "latentd/sd1-short", 12
PLAYGROUND = "playgroundai/playground-v2.5-1024px-aesthetic"

# name, model, input picture?, prompt, negative prompt (None: not given), prompt_2, seed, steps, guidance, image guidance, strength
CASES = [
    ("sd1_text", "latentd/sd1", False, "a red apple", "blue", None, 3, 5, 7.5, 0, 0),
    ("sd1_image", "latentd/sd1", True, "a red apple", "blue", None, 3, 7, 7.5, 0, 0.6),
    ("sd1_whole", "latentd/sd1", True, "a red apple", None, None, 2**33 + 1, 4, 3.0, 0, 1.0),
    ("sd1_least", "latentd/sd1", True, "a red apple", None, None, 11, 5, 1.0, 0, 0.0),
    ("sd1_short", SHORT, False, "a red apple beside two green pears in a bowl", "blue", None, 3, 5, 7.5, 0, 0),
    ("sd2_text", "latentd/sd2", False, "two pears", None, None, 4, 5, 2.5, 0, 0),
    ("sd2_image", "latentd/sd2", True, "two pears", "", None, 4, 6, 2.5, 0, 0.75),
    ("xl_text", XL, False, "a house", None, None, 5, 4, 6.0, 0, 0),
    ("xl_text_2", XL, False, "a house", "rain", "in the snow", 5, 4, 6.0, 0, 0),
    ("xl_unguided", XL, False, "a house", "rain", None, 6, 3, 1.0, 0, 0),
    ("xl_image", XL, True, "a house", None, None, 7, 5, 6.0, 0, 0.7),
    ("xl_image_empty", XL, True, "a house", "", None, 7, 5, 6.0, 0, 0.7),
    ("turbo_text", TURBO, False, "a cat", None, None, 8, 3, 0.0, 0, 0),
    ("turbo_image", TURBO, True, "a cat", None, None, 8, 4, 0.0, 0, 0.5),
    ("lightning_text", LIGHTNING, False, "a boat", None, None, 9, 2, 0.0, 0, 0),
    ("lightning_image", LIGHTNING, True, "a boat", None, None, 9, 2, 0.0, 0, 0.5),
    ("playground_text", PLAYGROUND, False, "a lake", "fog", None, 12, 4, 3.0, 0, 0),
    ("playground_image", PLAYGROUND, True, "a lake", None, None, 12, 6, 3.0, 0, 0.6),
    ("pix2pix", PIX, True, "make it snow", "sun", None, 10, 5, 7.5, 1.5, 0),
    ("pix2pix_unguided", PIX, True, "make it snow", None, None, 10, 4, 7.5, 0.9, 0),
]


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_tokenizer(folder, pad):
    folder.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / name, folder / name)
    write_json(folder / "tokenizer_config.json", dict(json.loads((TOKENIZER / "tokenizer_config.json").read_text()), pad_token=pad))


def make_network(cls, config, folder, seed, fp16):
    """Random numbers that are exact in fp16, so that both variants hold the same."""
    net = cls(config) if cls in (CLIPTextModel, CLIPTextModelWithProjection) else cls(**config)
    randomize(net.half().float(), seed)
    net = net.half()
    # quiet pictures: the latents of random weights grow, and 8 bits would clip them
    if cls is AutoencoderKL:
        net.decoder.conv_out.weight.data *= 0.3
    net.save_pretrained(folder, variant="fp16" if fp16 else None)


def make_model(shelf, name, spec, seed):
    folder = shelf / name
    text, fp16 = spec.get("text", TEXT), spec["fp16"]
    make_network(UNet2DConditionModel, spec["unet"], folder / "unet", seed, fp16)
    make_network(AutoencoderKL, spec.get("vae", VAE), folder / "vae", seed + 1, fp16)
    make_network(CLIPTextModel, CLIPTextConfig(**text), folder / "text_encoder", seed + 2, fp16)
    write_tokenizer(folder / "tokenizer", spec.get("pad", "<|endoftext|>"))
    index = dict(_class_name=spec["cls"], _diffusers_version="0.31.0", text_encoder=["transformers", "CLIPTextModel"],
                 tokenizer=["transformers", "CLIPTokenizer"], unet=["diffusers", "UNet2DConditionModel"],
                 vae=["diffusers", "AutoencoderKL"], scheduler=["diffusers", type(spec["scheduler"]).__name__])
    if "text_2" in spec:
        make_network(CLIPTextModelWithProjection, CLIPTextConfig(**spec["text_2"]), folder / "text_encoder_2", seed + 3, fp16)
        write_tokenizer(folder / "tokenizer_2", "!")
        index.update(text_encoder_2=["transformers", "CLIPTextModelWithProjection"], tokenizer_2=["transformers", "CLIPTokenizer"])
    else:
        index.update(safety_checker=[None, None], feature_extractor=[None, None], requires_safety_checker=False)
    spec["scheduler"].save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", dict(index, **spec.get("extra", {})))


def make_short(shelf):
    """sd1's networks (links) behind a tokenizer that cuts prompts to fewer tokens than the text encoder has positions."""
    folder = shelf / SHORT
    folder.mkdir(parents=True)
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        os.symlink(f"../sd1/{part}", folder / part)
    write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    config = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    write_json(folder / "tokenizer/tokenizer_config.json", dict(config, model_max_length=SHORT_LENGTH))
    shutil.copy(shelf / "latentd/sd1/model_index.json", folder)


def make_turbo(shelf):
    """SDXL-Turbo: SDXL's networks (links) under another scheduler."""
    folder = shelf / TURBO
    folder.mkdir(parents=True)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        os.symlink(f"../../{XL}/{part}", folder / part)
    EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing").save_pretrained(folder / "scheduler")
    index = json.loads((shelf / XL / "model_index.json").read_text())
    write_json(folder / "model_index.json", dict(index, scheduler=["diffusers", "EulerAncestralDiscreteScheduler"]))


def make_playground(shelf):
    """Playground v2.5: SDXL's networks (links), latents with a mean and a deviation for each channel, EDM's scheduler."""
    folder = shelf / PLAYGROUND
    (folder / "vae").mkdir(parents=True)
    for part in ("unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        os.symlink(f"../../{XL}/{part}", folder / part)
    weights = "diffusion_pytorch_model.fp16.safetensors"
    os.symlink(f"../../../{XL}/vae/{weights}", folder / "vae" / weights)
    config = json.loads((shelf / XL / "vae/config.json").read_text())
    write_json(folder / "vae/config.json", dict(config, scaling_factor=0.5, latents_mean=[0.5, -0.25, 0.75, -1.0],
                                                latents_std=[0.8, 1.1, 0.6, 1.3]))
    EDMDPMSolverMultistepScheduler().save_pretrained(folder / "scheduler")
    index = json.loads((shelf / XL / "model_index.json").read_text())
    write_json(folder / "model_index.json", dict(index, scheduler=["diffusers", "EDMDPMSolverMultistepScheduler"]))


def make_lightning(shelf):
    unet = UNet2DConditionModel(**SDXL_UNET)
    randomize(unet, 77)
    (shelf / "ByteDance/SDXL-Lightning").mkdir(parents=True)
    save_file({k: v.half() for k, v in unet.state_dict().items()}, shelf / "ByteDance/SDXL-Lightning/sdxl_lightning_2step_unet.safetensors")


def load(shelf, name, image):
    """The pipeline that the ai-runner would load, in fp32, and whether it would have been fp16."""
    base = XL if name == LIGHTNING else name
    index = json.loads((shelf / base / "model_index.json").read_text())
    fp16 = (shelf / base / "unet/diffusion_pytorch_model.fp16.safetensors").exists()
    cls = {"StableDiffusionPipeline": (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline),
           "StableDiffusionXLPipeline": (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline),
           "StableDiffusionInstructPix2PixPipeline": (None, StableDiffusionInstructPix2PixPipeline),
           "StableDiffusionUpscalePipeline": (None, StableDiffusionUpscalePipeline)}[index["_class_name"]][image]
    pipe = cls.from_pretrained(shelf / base, variant="fp16" if fp16 else None, torch_dtype=torch.float32)
    if name == LIGHTNING:
        pipe.unet.load_state_dict(load_file(shelf / "ByteDance/SDXL-Lightning/sdxl_lightning_2step_unet.safetensors"))
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    if name == PIX:
        pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe, fp16


class CudaGenerator:
    """Serves every randn_tensor of diffusers. FP16: of a model in fp16; SDXL's VAE draws in fp32 all the same."""

    def __init__(self, seed, fp16, upcast_vae):
        self.seed, self.fp16, self.upcast_vae, self.offset = seed, fp16, upcast_vae, 0

    def draw(self, shape, fp16):
        count = int(np.prod(shape))
        z = cuda_randn(tuple(shape), self.seed, self.offset)
        grid = min((count + 255) // 256, 132 * 8)
        self.offset += ((count - 1) // (256 * grid * 4) + 1) * 4
        return z.half().float() if fp16 else z

    def install(self):
        for name, module in list(sys.modules.items()):
            if name.startswith("diffusers.") and hasattr(module, "randn_tensor"):
                fp16 = self.fp16 and not (name.endswith("autoencoders.vae") and self.upcast_vae)
                module.randn_tensor = lambda shape, *_, _fp16=fp16, **__: self.draw(shape, _fp16)


def make_picture(shelf, case, source):
    name, model, image, prompt, negative, prompt_2, seed, steps, guidance, image_guidance, strength = case
    pipe, fp16 = load(shelf, model, image)
    CudaGenerator(seed, fp16, isinstance(pipe, StableDiffusionXLImg2ImgPipeline)).install()
    args = dict(prompt=prompt, negative_prompt=negative, num_inference_steps=steps, guidance_scale=guidance, output_type="np")
    if prompt_2:
        args["prompt_2"] = prompt_2
    if not image:
        args.update(width=64, height=48)
    elif model == PIX:
        args.update(image=source, image_guidance_scale=image_guidance)
    else:
        args.update(image=source, strength=strength)
    picture = pipe(**args).images[0]
    return (picture * 255).round().astype(np.uint8)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=pathlib.Path, default="tests/golden/data/families")
    out = ap.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    for i, (name, spec) in enumerate(MODELS.items()):
        make_model(out, name, spec, 100 * (i + 1))
    make_short(out)
    make_turbo(out)
    make_lightning(out)
    make_playground(out)
    y, x = np.mgrid[0:INPUT[1], 0:INPUT[0]]
    pixels = np.stack([(x * 7 + y * 3) % 256, (x * y // 4) % 256, 255 * ((x // 9 + y // 7) % 2)], axis=-1).astype(np.uint8)
    (out / "input.rgb").write_bytes(pixels.tobytes())
    lines = []
    for case in CASES:
        rgb = make_picture(out, case, Image.fromarray(pixels))
        (out / f"{case[0]}.rgb").write_bytes(rgb.tobytes())
        name, model, image, prompt, negative, prompt_2, *numbers = case
        texts = ["-" if t is None else f"={t}" for t in (prompt, negative, prompt_2)]
        lines.append("\t".join(map(str, [name, model, int(image), *numbers, *texts])))
        print(f"{lines[-1]}    mean {rgb.mean():.0f}, deviation {rgb.std():.0f}, clipped {np.isin(rgb, (0, 255)).mean():.2f}")
    (out / "pictures.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
