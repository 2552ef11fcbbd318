#!/usr/bin/env python3
"""Writes tests/golden/data/lora: random LoRA files in each naming for the tiny models of export_goldens.py, what diffusers
and PEFT compute with them, and the layer names of SD 1.5 and SDXL in both spellings that kohya's trainer uses.

    export_lora_goldens.py [--names | --pictures | --scales]

Needs diffusers, peft, transformers, torch. The shelf is lora/shelf/test/NAME/…; expected.golden has the format of
export_goldens.py. Each run of it is a base (sd or xl), a list of LoRAs with strengths, and the outputs of UNet and text
encoders with them; `bf16_error` as there.
"""
import copy
import json
import os
import shutil
import sys

import numpy as np
import torch
from diffusers import (DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline,
                       UNet2DConditionModel)
from diffusers.loaders.lora_conversion_utils import (_convert_non_diffusers_lora_to_diffusers,
                                                     _maybe_map_sgm_blocks_to_diffusers)
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import export_family_goldens as families
from export_goldens import normal, relative, write_golden

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "..", "tests", "golden", "data")
SHELF = os.path.join(DATA, "lora", "shelf", "test")
BASES = {"sd": ("unet_sd1", "text_quick_gelu", None), "xl": ("unet_sdxl", "text_quick_gelu", "text_projection_eos")}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LINEAR = ATTENTION + ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
CONV = ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in",
        "conv_out", "linear_1", "linear_2"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


# ---- the base models, in fp32 from the files as stored ----

def weights_file(folder):
    return next(f"{folder}/{f}" for f in sorted(os.listdir(folder)) if f.endswith(".safetensors"))


def load_state(model, folder):
    state = {k.removeprefix("text_model."): v.float() for k, v in load_file(weights_file(folder)).items()}
    own = model.state_dict()
    prefix = "text_model." if any(k.startswith("text_model.") for k in own) else ""
    named = {(k if k in own else prefix + k): v for k, v in state.items() if "position_ids" not in k}
    model.load_state_dict(named, strict=True)
    return model.eval()


def load_text(cls, name):
    with open(f"{DATA}/{name}/config.json", encoding="utf-8") as f:
        return load_state(cls(cls.config_class(**json.load(f))), f"{DATA}/{name}")


def load_base(base):
    unet, text, text_2 = BASES[base]
    with open(f"{DATA}/{unet}/config.json", encoding="utf-8") as f:
        model = load_state(UNet2DConditionModel.from_config(json.load(f)), f"{DATA}/{unet}")
    scheduler = DDIMScheduler()
    first = load_text(CLIPTextModel, text)
    if text_2:
        return StableDiffusionXLPipeline(None, first, load_text(CLIPTextModelWithProjection, text_2), None, None, model,
                                         scheduler)
    return StableDiffusionPipeline(None, first, None, model, scheduler, None, None, requires_safety_checker=False)


# ---- LoRA files ----

def matches(name, targets):
    return any(name == t or name.endswith("." + t) for t in targets)


def make_layers(model, targets, rank, seed, part):
    """Random halves for every layer of MODEL whose name ends in one of TARGETS: {module: (down, up)}."""
    g = torch.Generator().manual_seed(seed)
    layers = {}
    for name, m in model.named_modules():
        if not matches(name, targets) or not hasattr(m, "weight"):
            continue
        w = m.weight
        fan = w[0].numel()
        down = torch.randn(rank, *w.shape[1:], generator=g) / fan**0.5
        up = torch.randn(w.shape[0], rank, *[1] * (w.ndim - 2), generator=g) * 0.4 / rank**0.5
        layers[f"{part}.{name}"] = (down, up)
    return layers


def text_name(module):
    """As PEFT on an older transformers wrote it: with "text_model."."""
    part, name = module.split(".", 1)
    if part.startswith("text_encoder") and not name.startswith(("text_model.", "text_projection")):
        name = "text_model." + name
    return part, name


def diffusers_naming(layers):
    out = {}
    for module, (down, up) in layers.items():
        part, name = text_name(module)
        kind = "lora_linear_layer" if part.startswith("text") else "lora"
        out[f"{part}.{name}.{kind}.down.weight"], out[f"{part}.{name}.{kind}.up.weight"] = down, up
    return out


def processor_naming(layers):
    """diffusers before 0.20: attention processors."""
    out = {}
    for module, (down, up) in layers.items():
        part, name = text_name(module)
        parent, leaf = name.removesuffix(".0").rsplit(".", 1)
        if part == "unet":
            stem = f"{part}.{parent}.processor.{leaf}_lora"
        else:
            stem = f"{part}.{parent}.{leaf.replace('out_proj', 'to_out').replace('_proj', '').replace('to_', '')}"
            stem = stem.rsplit(".", 1)[0] + ".to_" + stem.rsplit(".", 1)[1] + "_lora"
        out[stem + ".down.weight"], out[stem + ".up.weight"] = down, up
    return out


def peft_naming(layers):
    out = {}
    for module, (down, up) in layers.items():
        part, name = text_name(module)
        out[f"{part}.{name}.lora_A.weight"], out[f"{part}.{name}.lora_B.weight"] = down, up
    return out


def kohya_naming(layers, alpha, two_texts=False, rename=lambda name: name):
    heads = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if two_texts else "lora_te_", "text_encoder_2": "lora_te2_"}
    out = {}
    for module, (down, up) in layers.items():
        part, name = text_name(module)
        if part == "unet":
            name = rename(name)
        stem = heads[part] + name.replace(".", "_")
        out[stem + ".lora_down.weight"], out[stem + ".lora_up.weight"] = down, up
        out[stem + ".alpha"] = torch.tensor(float(alpha))
    return out


def to_sgm(name, layers_per_block):
    """A module of UNet2DConditionModel by its name in the original code: down_blocks.1.attentions.0 is
    input_blocks.4.1."""
    outside = {"conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
               "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
               "add_embedding.linear_2": "label_emb.0.2"}
    leaf = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
            "conv_shortcut": "skip_connection"}
    if name in outside:
        return outside[name]
    p, unit = name.split("."), layers_per_block + 1
    if p[0] == "mid_block":
        rest = leaf[p[3]] if p[1] == "resnets" else ".".join(p[3:])
        return f"middle_block.{1 if p[1] == 'attentions' else 2 * int(p[2])}.{rest}"
    b, kind, i = int(p[1]), p[2], int(p[3])
    rest = leaf[p[4]] if kind == "resnets" else ".".join(p[4:])
    if p[0] == "down_blocks":
        n = 1 + b * unit + (layers_per_block if kind == "downsamplers" else i)
        return f"input_blocks.{n}.0.op" if kind == "downsamplers" else f"input_blocks.{n}.{int(kind == 'attentions')}.{rest}"
    if kind == "upsamplers":
        return f"output_blocks.{b * unit + layers_per_block}.2.conv"
    return f"output_blocks.{b * unit + i}.{int(kind == 'attentions')}.{rest}"


def save(name, tensors, file="pytorch_lora_weights.safetensors", dtype=torch.float16, metadata=None):
    os.makedirs(f"{SHELF}/{name}", exist_ok=True)
    path = f"{SHELF}/{name}/{file}"
    save_file({k: (v if v.ndim == 0 else v.to(dtype)).contiguous() for k, v in tensors.items()}, path,
              metadata={"format": "pt", **(metadata or {})})
    os.chmod(path, 0o644)


def make_files():
    sd, xl = load_base("sd"), load_base("xl")
    both = lambda unet, text, rank, seed: {**make_layers(sd.unet, unet, rank, seed, "unet"),
                                           **make_layers(sd.text_encoder, text, rank, seed + 1, "text_encoder")}
    save("diffusers", diffusers_naming(both(ATTENTION, TEXT[:4], 2, 1)))
    save("processor", processor_naming(both(ATTENTION, TEXT[:4], 1, 3)))
    save("kohya", kohya_naming(both(LINEAR, TEXT, 2, 5), 1.5), file="only.safetensors", dtype=torch.bfloat16)
    save("locon", kohya_naming(both(LINEAR + CONV, [], 2, 7), 1), dtype=torch.float16)
    # PEFT's names, alpha in the file's metadata, one module with its own
    own = {"r": 2, "lora_alpha": 3, "alpha_pattern": {"mid_block.attentions.0.proj_in": 5}, "rank_pattern": {},
           "target_modules": LINEAR, "use_rslora": True}
    config = {f"unet.{k}": v for k, v in own.items()}
    config.update({"text_encoder.r": 2, "text_encoder.lora_alpha": 1, "text_encoder.target_modules": TEXT})
    save("peft", peft_naming(both(LINEAR, TEXT, 2, 9)), dtype=torch.float32,
         metadata={"lora_adapter_metadata": json.dumps(config)})
    save_raw_peft(sd)
    # SDXL: three networks
    layers = {**make_layers(xl.unet, LINEAR + CONV, 1, 11, "unet"),
              **make_layers(xl.text_encoder, TEXT, 1, 12, "text_encoder"),
              **make_layers(xl.text_encoder_2, TEXT, 1, 13, "text_encoder_2")}
    save("sgm", kohya_naming(layers, 0.5, True, lambda n: to_sgm(n, xl.unet.config.layers_per_block)))
    save("xl_peft", peft_naming({k: v for k, v in layers.items() if matches(k, ["to_q", "to_v", "q_proj", "fc2"])}))


def save_raw_peft(pipe):
    """PeftModel.save_pretrained: base_model.model.… and adapter_config.json."""
    model = get_peft_model(copy.deepcopy(pipe.unet), LoraConfig(r=2, lora_alpha=3, target_modules=ATTENTION))
    g = torch.Generator().manual_seed(15)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=g) * 0.3
    model.save_pretrained(f"{SHELF}/raw_peft")
    os.remove(f"{SHELF}/raw_peft/README.md")


# ---- what diffusers computes ----

def file_of(name):
    return next(f for f in sorted(os.listdir(f"{SHELF}/{name}")) if f.endswith(".safetensors"))


def add_loras(pipe, loras):
    for name, _ in loras:
        if name == "raw_peft":  # diffusers does not read these names: given to it with the network's
            state = {k.replace("base_model.model.", "unet."): v
                     for k, v in load_file(f"{SHELF}/{name}/{file_of(name)}").items()}
            with open(f"{SHELF}/{name}/adapter_config.json", encoding="utf-8") as f:
                scale = json.load(f)["lora_alpha"] / 2
            state = {k: v * scale if "lora_B" in k else v for k, v in state.items()}
            pipe.load_lora_weights(state, adapter_name=name)
        else:
            pipe.load_lora_weights(f"{SHELF}/{name}", weight_name=file_of(name), adapter_name=name)
    pipe.set_adapters([n for n, _ in loras], [s for _, s in loras])


def outputs(pipe, inputs, dtype):
    x, text, ids, ids_2, extra = inputs
    pipe = copy.deepcopy(pipe)
    out = []
    with torch.no_grad():
        added = {k: v.to(dtype) for k, v in extra.items()} or None
        out.append(pipe.unet.to(dtype)(x.to(dtype), torch.tensor(501), text.to(dtype), added_cond_kwargs=added)
                   .sample.permute(0, 2, 3, 1))
        out.append(pipe.text_encoder.to(dtype)(input_ids=ids).last_hidden_state)
        if ids_2 is not None:
            out.append(pipe.text_encoder_2.to(dtype)(input_ids=ids_2).last_hidden_state)
    return [o.float().contiguous() for o in out]


def run_case(arrays, i, base, loras):
    pipe = load_base(base)
    c = pipe.unet.config
    g = torch.Generator().manual_seed(100 + i)
    draw_ids = lambda m: torch.randint(0, m.config.vocab_size, (1, m.config.max_position_embeddings), generator=g)
    ids_2 = draw_ids(pipe.text_encoder_2) if base == "xl" else None
    extra = {}
    if base == "xl":
        ids_count = 6
        pooled = c.projection_class_embeddings_input_dim - ids_count * c.addition_time_embed_dim
        extra = {"text_embeds": normal(40 + i, 1, pooled), "time_ids": torch.tensor([[64., 64, 0, 0, 64, 64]])}
    inputs = (normal(20 + i, 1, c.in_channels, 8, 8), normal(30 + i, 1, 7, c.cross_attention_dim),
              draw_ids(pipe.text_encoder), ids_2, extra)
    plain = outputs(pipe, inputs, torch.float32)
    if loras:
        add_loras(pipe, loras)
    want, rough = outputs(pipe, inputs, torch.float32), outputs(pipe, inputs, torch.bfloat16)
    arrays.update({f"{i}.x": inputs[0].permute(0, 2, 3, 1), f"{i}.text": inputs[1], f"{i}.ids": inputs[2].int()})
    if base == "xl":
        arrays.update({f"{i}.ids_2": ids_2.int(), f"{i}.pooled": extra["text_embeds"], f"{i}.time_ids": extra["time_ids"]})
    moved = []
    for k, a, b, p in zip(("unet", "states", "states_2"), want, rough, plain):
        arrays.update({f"{i}.{k}": a, f"{i}.{k}.error": np.float32(relative(b, a)).reshape(1)})
        moved.append(relative(a, p))
    print(f"{i} {base} {loras}: moved by {', '.join(f'{m:.2f}' for m in moved)}", flush=True)


RUNS = [("sd", []), ("sd", [("diffusers", 1.0)]), ("sd", [("processor", 1.0)]), ("sd", [("kohya", 1.0)]),
        ("sd", [("locon", 0.8)]), ("sd", [("peft", 1.0)]), ("sd", [("raw_peft", 1.0)]),
        ("sd", [("diffusers", 0.7), ("locon", 1.3)]), ("sd", [("kohya", 0.5), ("peft", 0.25), ("processor", 2.0)]),
        ("xl", [("sgm", 1.0)]), ("xl", [("xl_peft", 0.6)])]


# ---- names ----

def unet_of(**config):
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def module_names(unet):
    return [n for n, m in unet.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]


def by_converter(key, config):
    """The module that diffusers' own converters make of a kohya name; None where they fail. One name at a time:
    _maybe_map_sgm_blocks_to_diffusers takes input_blocks_10 for input_blocks_1 too."""
    state = {f"lora_unet_{key}.{h}.weight": torch.zeros(1) for h in ("lora_down", "lora_up")}
    try:
        state = _maybe_map_sgm_blocks_to_diffusers(state, config)
        state, _ = _convert_non_diffusers_lora_to_diffusers(state)
    except (ValueError, IndexError, KeyError):
        return None
    state = convert_unet_state_dict_to_peft({k.removeprefix("unet."): v for k, v in state.items()})
    return next((k.removesuffix(".lora_A.weight") for k in state if k.endswith(".lora_A.weight")), None)


def export_names(path):
    """Lines of base, SGM name, diffusers' name. Prints the names that the converters do not turn into the module's real one."""
    bases = {
        "sd15": unet_of(cross_attention_dim=768),
        "sdxl": unet_of(block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
                        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                        transformer_layers_per_block=(1, 2, 10), use_linear_projection=True,
                        addition_embed_type="text_time", addition_time_embed_dim=256,
                        projection_class_embeddings_input_dim=2816)}
    with open(path, "w", encoding="utf-8") as f:
        for base, unet in bases.items():
            names = module_names(unet)
            wrong = 0
            for n in names:
                sgm = to_sgm(n, unet.config.layers_per_block)
                found = [by_converter(k.replace(".", "_"), unet.config) for k in (sgm, n)]
                wrong += found != [n, n]
                if found != [n, n]:
                    print(f"{base}: {n}: {found}")
                f.write(f"{base}\t{sgm}\t{n}\n")
            print(f"{base}: {len(names)} names, {wrong} that diffusers' converters do not know")


# ---- whole pictures, of the tiny models of export_family_goldens.py ----

PICTURES = [("sd1", "latentd/sd1", False, [("style", 0.9)]), ("sd1_image", "latentd/sd1", True, [("style", 0.7), ("shape", 1.3)]),
            ("xl", families.XL, False, [("xl", 0.8)])]


def picture_files():
    """Under lora/pictures/test; two for SD 1.x, one of them with convolutions, one for SDXL by SGM names."""
    global SHELF
    SHELF = os.path.join(DATA, "lora", "pictures", "test")
    shelf = families.pathlib.Path(DATA) / "families"
    sd, xl = families.load(shelf, "latentd/sd1", False)[0], families.load(shelf, families.XL, False)[0]
    save("style", diffusers_naming({**make_layers(sd.unet, LINEAR, 2, 21, "unet"),
                                    **make_layers(sd.text_encoder, TEXT, 2, 22, "text_encoder")}))
    save("shape", kohya_naming(make_layers(sd.unet, CONV, 2, 23, "unet"), 1))
    layers = {**make_layers(xl.unet, LINEAR + CONV, 1, 24, "unet"), **make_layers(xl.text_encoder, TEXT, 1, 25, "text_encoder"),
              **make_layers(xl.text_encoder_2, TEXT + ["text_projection"], 1, 26, "text_encoder_2")}
    save("xl", kohya_naming(layers, 0.5, True, lambda n: to_sgm(n, xl.unet.config.layers_per_block)))


def export_pictures():
    """NAME.rgb, and pictures.txt: NAME, model, whether it starts from input.rgb, then LoRAs with strengths. All have the
    prompt "a red apple", "blue" as negative prompt, seed 3, 5 steps, guidance 5, strength 0.6."""
    folder = os.path.join(DATA, "lora", "pictures")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    picture_files()
    shelf = families.pathlib.Path(DATA) / "families"
    source = np.fromfile(shelf / "input.rgb", np.uint8).reshape(*reversed(families.INPUT), 3)
    plain_load = families.load
    lines = []
    for name, model, image, loras in PICTURES:
        def load_with_loras(*args):
            pipe, fp16 = plain_load(*args)
            add_loras(pipe, loras)
            return pipe, fp16
        families.load = load_with_loras
        case = (name, model, image, "a red apple", "blue", None, 3, 5, 5.0, 0, 0.6)
        rgb = families.make_picture(shelf, case, families.Image.fromarray(source))
        families.load = plain_load
        before = families.make_picture(shelf, case, families.Image.fromarray(source))
        print(f"{name}: moved by {np.abs(rgb.astype(float) - before).mean():.1f} of 255")
        rgb.tofile(f"{folder}/{name}.rgb")
        lines.append(" ".join([name, model, str(int(image))] + [f"test/{n} {s}" for n, s in loras]) + "\n")
    with open(f"{folder}/pictures.txt", "w", encoding="utf-8") as f:
        f.writelines(lines)


# ---- alpha that is not, or not fully, written down ----

def scale_files():
    """Under lora/scales/test: files that say alpha for some layers only, for none, by regular expressions, or beside the
    file."""
    global SHELF
    SHELF = os.path.join(DATA, "lora", "scales", "test")
    sd = load_base("sd")
    few = {**make_layers(sd.unet, ["proj_in", "proj_out", "attn1.to_q", "attn1.to_v"], 1, 31, "unet"),
           **make_layers(sd.text_encoder, TEXT[:4] + ["fc2"], 1, 32, "text_encoder")}

    def ranks(cycle):
        return {m: tuple(torch.cat([h] * cycle[i % len(cycle)], k).clone() for k, h in enumerate(halves))
                for i, (m, halves) in enumerate(few.items())}

    mixed = ranks([4, 1, 3, 2, 1])
    save("mixed", peft_naming(mixed))
    save("mixed_kohya", {k: v for k, v in kohya_naming(mixed, 1).items() if not k.endswith(".alpha")})
    # Some of the UNet's projections have alphas, 5 as often as 3. (diffusers loses those of attention layers that are not the
    # commonest: it looks for them under the processors' names.)
    part = kohya_naming(ranks([2, 1]), 1)
    projections = sorted(k for k in part if k.endswith(".alpha") and ("proj_in" in k or "proj_out" in k))
    own = dict(zip(projections, [1, 5, 3, 3, 5, 2, 5, 3]))
    save("part", {k: torch.tensor(float(own[k])) if k in own else v for k, v in part.items()
                  if k in own or not k.endswith(".alpha")})
    save("beside", peft_naming(ranks([1])))
    with open(f"{SHELF}/beside/adapter_config.json", "w", encoding="utf-8") as f:
        json.dump({"peft_type": "LORA", "r": 1, "lora_alpha": 16, "target_modules": ["to_q"]}, f)
    patterns = {"^mid_block.attentions.0.proj_in": 5, "^proj_out": 6, "attn1.to_q": 7, r"up_blocks\.[0-9]+\..*\.to_(k|v)": 8,
                r".*\.to_v": 9}
    config = {f"unet.{k}": v for k, v in {"r": 2, "lora_alpha": 3, "alpha_pattern": patterns, "rank_pattern": {},
                                          "target_modules": ["proj_in", "proj_out", "to_q", "to_v"]}.items()}
    text = {"r": 2, "lora_alpha": 4, "alpha_pattern": {"^layers.0.mlp.fc2": 5, "q_proj|layers.1.mlp.fc2": 6}, "rank_pattern": {},
            "target_modules": TEXT[:4] + ["fc2"]}
    config.update({f"text_encoder.{k}": v for k, v in text.items()})
    save("patterns", peft_naming(ranks([2])), metadata={"lora_adapter_metadata": json.dumps(config)})


def export_scales():
    """scales.txt: lines of file, network, module, alpha / rank as diffusers has it once the file is loaded."""
    shutil.rmtree(os.path.join(DATA, "lora", "scales"), ignore_errors=True)
    scale_files()
    with open(f"{SHELF}/../scales.txt", "w", encoding="utf-8") as f:
        for name in sorted(os.listdir(SHELF)):
            pipe = load_base("sd")
            pipe.load_lora_weights(f"{SHELF}/{name}", weight_name=file_of(name), adapter_name=name)
            for part in ("unet", "text_encoder"):
                for module, m in getattr(pipe, part).named_modules():
                    if name in getattr(m, "scaling", {}):
                        f.write(f"{name} {part} {module} {m.scaling[name]:.9g}\n")


def main():
    torch.set_num_threads(1)
    if "--names" in sys.argv:
        export_names(f"{DATA}/lora/names.txt")
        return
    if "--pictures" in sys.argv:
        with torch.no_grad():
            export_pictures()
        return
    if "--scales" in sys.argv:
        export_scales()
        return
    shutil.rmtree(os.path.join(DATA, "lora"), ignore_errors=True)
    os.makedirs(SHELF)
    make_files()
    arrays = {}
    for i, (base, loras) in enumerate(RUNS):
        run_case(arrays, i, base, loras)
    write_golden(f"{DATA}/lora/expected.golden", arrays)
    with open(f"{DATA}/lora/runs.txt", "w", encoding="utf-8") as f:
        f.writelines(" ".join([base] + [f"test/{n} {s}" for n, s in loras]) + "\n" for base, loras in RUNS)
    export_names(f"{DATA}/lora/names.txt")
    with torch.no_grad():
        export_pictures()
    export_scales()


if __name__ == "__main__":
    main()
