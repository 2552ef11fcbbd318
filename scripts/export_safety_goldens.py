#!/usr/bin/env python3
"""Writes tests/golden/data/safety*: a tiny random safety checker of diffusers and what it says of three pictures.

    export_safety_goldens.py [OUT]

The concepts are laid so that picture 0 is found by one of them, picture 1 by none, and picture 2 only because a special
concept lowers the bar. Goldens by stage: the 8-bit pictures, the tower's pixels (transformers' CLIPImageProcessorPil),
the projected embedding, all scores, the decision. `safety` has today's names and layout, `safety_old` those of the
published checker (inner module name, vision_config_dict, position_ids, half-precision variant file).
"""
import os
import shutil
import sys

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from PIL import Image
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from export_goldens import HERE, both, save_weights, write_golden, write_json
from make_random_model import randomize

SIZES = [(40, 29), (23, 37), (16, 16)]  # width, height


def pictures(seed):
    rng = np.random.default_rng(seed)
    out = []
    for w, h in SIZES:
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
        noise = rng.integers(-20, 20, (h, w, 3))
        smooth = np.asarray(coarse.resize((w, h), Image.BICUBIC)).astype(int)
        out.append(np.clip(smooth + noise, 0, 255).astype(np.uint8))
    return out


def embed(model, pixels):
    return model.visual_projection(model.vision_model(pixels)[1])


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def lay_concepts(model, e, seed):
    """Thresholds between the pictures' cosines: see above."""
    g = torch.Generator().manual_seed(seed)
    n = e.shape[1]
    concepts = torch.randn(17, n, generator=g)
    specials = torch.randn(3, n, generator=g)
    u = unit(e)
    apart = [u[i] - torch.stack([u[k] for k in range(len(u)) if k != i]).mean(0) for i in range(len(u))]
    concepts[5], concepts[11], specials[1] = 3 * apart[0], 2 * apart[2], 4 * apart[2]
    cos, special = cosine_distance(e, concepts), cosine_distance(e, specials)
    bars, special_bars = cos.amax(0) + 0.1, special.amax(0) + 0.1
    bars[5] = (cos[0, 5] + cos[1:, 5].amax()) / 2
    bars[11] = cos[2, 11] + 0.006  # found at an adjustment of 0.01, not without
    special_bars[1] = (special[2, 1] + special[:2, 1].amax()) / 2
    with torch.no_grad():
        model.concept_embeds.copy_(concepts)
        model.special_care_embeds.copy_(specials)
        model.concept_embeds_weights.copy_(bars)
        model.special_care_embeds_weights.copy_(special_bars)


def scores(model, e):
    """The scores that StableDiffusionSafetyChecker.forward computes on its way, by its own code."""
    class Tower(torch.nn.Module):
        def forward(self, x):
            return None, x

    kept, names = [], ("special_scores", "concept_scores")
    tower, projection = model.vision_model, model.visual_projection
    model.vision_model, model.visual_projection = Tower(), torch.nn.Identity()

    def see(frame, event, _):
        if event == "return" and "special_cos_dist" in frame.f_locals:
            kept.append(frame.f_locals["result"])

    sys.setprofile(see)
    try:
        _, nsfw = model(e, [np.zeros((2, 2, 3)) for _ in e])
    finally:
        sys.setprofile(None)
        model.vision_model, model.visual_projection = tower, projection
    table = [np.array([[r[n][k] for k in sorted(r[n])] for r in kept[-1]], np.float32) for n in names]
    return table[0], table[1], np.array(nsfw, np.int32)


def case(folder, seed, old, dtype, processor, vision, projection):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    config = CLIPConfig(vision_config=vision, projection_dim=projection,
                        text_config=dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))
    model = StableDiffusionSafetyChecker(config).eval()
    randomize(model.vision_model, seed)
    with torch.no_grad():
        model.visual_projection.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed + 3))
    model.to(dtype).float()
    shots = pictures(seed + 1)
    pixels = torch.cat([CLIPImageProcessorPil(**processor)(Image.fromarray(p), return_tensors="pt").pixel_values
                        for p in shots])
    with torch.no_grad():
        lay_concepts(model, embed(model, pixels), seed + 2)
    model.to(dtype).float()
    e, error = both(model, lambda m, t: embed(m, pixels.to(t)))
    special, concept, nsfw = scores(model, e)
    assert list(nsfw) == [1, 0, 1] and (special[2] > 0).sum() == 1 and not (special[:2] > 0).any(), (special, nsfw)
    assert (concept[0] > 0).sum() == 1 and (concept[2] > 0).sum() == 1
    tensors = {k: v.to(dtype) for k, v in model.state_dict().items() if not k.endswith("position_ids")}
    inner = any(k.startswith("vision_model.vision_model.") for k in tensors)
    if old and not inner:
        tensors = {("vision_model." + k if k.startswith("vision_model.") else k): v for k, v in tensors.items()}
    if old:
        tensors["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_weights(folder, "model", tensors, ".fp16" if old else "")
    plain = dict(architectures=["StableDiffusionSafetyChecker"], model_type="clip", projection_dim=projection)
    if old:
        plain.update(vision_config=dict(vision, hidden_size=8), vision_config_dict=vision)
    else:
        plain.update(vision_config=vision)
    write_json(f"{folder}/config.json", plain)
    write_json(f"{folder}/preprocessor_config.json", processor)
    out = {"embeds": e, "special": special, "concept": concept, "nsfw": nsfw, "bf16_error": error}
    for i, (p, x) in enumerate(zip(shots, pixels)):
        out[f"{i}.picture"] = p.astype(np.int32)
        out[f"{i}.pixels"] = x.permute(1, 2, 0).contiguous()
    write_golden(f"{folder}/expected.golden", out)
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{folder}: {size / 1024:.0f} KiB, bf16 error {error:.2e}")
    print("  special", special.tolist(), "\n  concept max", concept.max(1).tolist())


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "..", "tests", "golden", "data")
    torch.set_num_threads(1)
    clip = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
    case(f"{out}/safety", 11, False, torch.float32,
         dict(clip, crop_size=dict(height=16, width=16), size=dict(shortest_edge=18), do_resize=True,
              do_center_crop=True, do_rescale=True, do_normalize=True, rescale_factor=1 / 255, resample=3),
         dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=16,
              patch_size=4, hidden_act="gelu"), 20)
    case(f"{out}/safety_old", 31, True, torch.float16,
         dict(clip, crop_size=28, size=28, do_resize=True, do_center_crop=True, do_normalize=True, resample=3,
              feature_extractor_type="CLIPFeatureExtractor"),
         dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28,
              patch_size=7, hidden_act="quick_gelu"), 16)


if __name__ == "__main__":
    main()
