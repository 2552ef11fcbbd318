#!/usr/bin/env python3
"""Compares latentd with other programs on this CPU: the same random weights, prompt, size, steps and guidance, one after the other.

    scripts/compare_cpu.py --model MODEL_DIR/org/name --work DIR [--steps 1] [--guidance 0] [--size 512] [--runs 5] [--peers latentd,diffusers,…]

Peers: latentd (build/latentd bench), diffusers (PyTorch eager, bf16), compiled (diffusers with torch.compile over UNet and decoder), openvino (OpenVINO GenAI,
bf16, static shape), onnxruntime (fp32: its CPU provider computes nothing in bf16). Each runs in a process of its own with the same number of threads, is warmed up
once and timed RUNS times from prompt to pixels (latentd: to PNG); prints one table row a peer: median and least wall seconds, CPU seconds of a run (what other
load on the machine changes least), and the ratios to latentd. A peer that cannot run is a row with the reason.

Writes exports (OpenVINO and ONNX files, several GB) into DIR and keeps them there. Needs, from PyPI: torch 2.15.0, diffusers 0.39.0, transformers 5.5.4,
optimum-intel 2.2.0, openvino 2026.4.1, openvino-genai 2026.4.1.0, onnx 1.23.2, onnxscript, onnxruntime 1.32.0. MODEL has diffusers layout; fp16 variants
of files are taken. Run it quietly, or with the same nice value for all: nice -n -15 scripts/compare_cpu.py …
"""
import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = ["latentd", "diffusers", "openvino", "onnxruntime", "compiled"]
PROMPT = "a mountain lion"


def plain_tree(model, work):
    """MODEL with links named as exporters want them: without ".fp16"."""
    out = work / "model"
    for path in model.rglob("*"):
        if path.is_file():
            link = out / str(path.relative_to(model)).replace(".fp16", "")
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path.resolve())
    return out


def pipeline(args, dtype, **parts):
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(args.threads)
    pipe = StableDiffusionPipeline.from_pretrained(plain_tree(args.model, args.work), torch_dtype=dtype, safety_checker=None,
                                                   requires_safety_checker=False, local_files_only=True, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def timed(args, run):
    """Seconds and CPU seconds of each run after a warm one."""
    run()
    rows = []
    for _ in range(args.runs):
        cpu = resource.getrusage(resource.RUSAGE_SELF)
        start = time.monotonic()
        run()
        wall = time.monotonic() - start
        end = resource.getrusage(resource.RUSAGE_SELF)
        rows.append((wall, end.ru_utime + end.ru_stime - cpu.ru_utime - cpu.ru_stime))
    return rows


def run_latentd(args):
    env = dict(os.environ, MODEL_DIR=str(args.model.parent.parent), LATENTD_THREADS=str(args.threads), LATENTD_BACKEND="cpu")
    out = subprocess.run([ROOT / "build/latentd", "bench", "--model_id", f"{args.model.parent.name}/{args.model.name}", "--runs", str(args.runs),
                          "--warmup", "1", "--num_inference_steps", str(args.steps), "--guidance_scale", str(args.guidance),
                          "--width", str(args.size), "--height", str(args.size), "--json"], env=env, check=True, stdout=subprocess.PIPE)
    report = json.loads(out.stdout)
    rows = [(r["seconds"], r["cpu_seconds"]) for r in report["runs"]]
    return rows, f"{report['tier']}, {report['threads']} threads"


def call(pipe, args):
    return lambda: pipe(PROMPT, num_inference_steps=args.steps, guidance_scale=args.guidance, width=args.size, height=args.size)


def run_diffusers(args):
    import diffusers
    import torch

    with torch.inference_mode():
        return timed(args, call(pipeline(args, torch.bfloat16), args)), f"torch {torch.__version__}, diffusers {diffusers.__version__}"


def run_compiled(args):
    import torch

    pipe = pipeline(args, torch.bfloat16)
    pipe.unet = torch.compile(pipe.unet)
    pipe.vae.decode = torch.compile(pipe.vae.decode)
    with torch.inference_mode():
        return timed(args, call(pipe, args)), f"torch {torch.__version__}, inductor"


def run_openvino(args):
    import openvino
    import openvino_genai

    out = args.work / "openvino"
    if not (out / "vae_decoder/openvino_model.xml").exists():
        subprocess.run([sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", plain_tree(args.model, args.work),
                        "--task", "text-to-image", "--weight-format", "fp16", out], check=True, stdout=sys.stderr)
    pipe = openvino_genai.Text2ImagePipeline(str(out))
    pipe.reshape(1, args.size, args.size, args.guidance)
    pipe.compile("CPU", INFERENCE_PRECISION_HINT="bf16", INFERENCE_NUM_THREADS=args.threads, PERFORMANCE_HINT="LATENCY")
    run = lambda: pipe.generate(PROMPT, width=args.size, height=args.size, num_inference_steps=args.steps, guidance_scale=args.guidance).data
    return timed(args, run), f"OpenVINO {openvino.__version__.split('-')[0]}, bf16"


def onnx_dir(args):
    return args.work / f"onnx-{2 if args.guidance > 1 else 1}-{args.size}"


def run_export(args):
    """Three ONNX graphs with fixed shapes, fp32."""
    import torch

    pipe, out = pipeline(args, torch.float32), onnx_dir(args)

    class Text(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = pipe.text_encoder

        def forward(self, ids):
            return self.net(ids)[0]

    class Unet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = pipe.unet

        def forward(self, x, t, context):
            return self.net(x, t, encoder_hidden_states=context, return_dict=False)[0]

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = pipe.vae

        def forward(self, z):
            return self.net.decode(z, return_dict=False)[0]

    n = 2 if args.guidance > 1 else 1
    side = args.size // 8
    width = pipe.unet.config.cross_attention_dim
    graphs = {"text": (Text(), (torch.zeros(n, 77, dtype=torch.long),)),
              "unet": (Unet(), (torch.zeros(n, 4, side, side), torch.tensor(1.0), torch.zeros(n, 77, width))),
              "vae": (Decoder(), (torch.zeros(1, 4, side, side),))}
    out.mkdir(parents=True, exist_ok=True)
    for name, (net, inputs) in graphs.items():
        if not (out / name / "model.onnx").exists():
            (out / name).mkdir(exist_ok=True)
            with torch.no_grad():
                torch.onnx.export(net.eval(), inputs, str(out / name / "model.onnx"), dynamo=True, external_data=True)
    return [], "exported"


def run_onnxruntime(args):
    import numpy
    import onnxruntime
    import torch

    out = onnx_dir(args)
    if not (out / "vae/model.onnx").exists():  # in a process of its own, whose memory goes back
        subprocess.run(child(args, "export"), check=True, stdout=sys.stderr)
    pipe = pipeline(args, torch.float32, unet=None, vae=None, text_encoder=None)
    scheduler, tokenizer = pipe.scheduler, pipe.tokenizer
    scaling = json.loads((args.model / "vae/config.json").read_text()).get("scaling_factor", 0.18215)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    nets = {n: onnxruntime.InferenceSession(str(out / n / "model.onnx"), options, providers=["CPUExecutionProvider"]) for n in ("text", "unet", "vae")}

    def net(name, *values):
        inputs = {i.name: numpy.asarray(v) for i, v in zip(nets[name].get_inputs(), values)}
        return nets[name].run(None, inputs)[0]

    def run():
        prompts = ["", PROMPT] if args.guidance > 1 else [PROMPT]
        ids = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="np").input_ids
        context = net("text", ids.astype(numpy.int64))
        scheduler.set_timesteps(args.steps)
        x = torch.randn(1, 4, args.size // 8, args.size // 8) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(torch.cat([x] * len(prompts)), t).numpy()
            e = torch.from_numpy(net("unet", scaled, numpy.float32(t), context))
            if len(prompts) == 2:
                e = e[:1] + args.guidance * (e[1:] - e[:1])
            x = scheduler.step(e, t, x).prev_sample
        picture = net("vae", (x / scaling).numpy())
        return ((picture / 2 + 0.5).clip(0, 1) * 255).round().astype(numpy.uint8)

    return timed(args, run), f"ONNX Runtime {onnxruntime.__version__}, fp32"


def child(args, peer):
    words = [sys.executable, __file__, "--child", peer, "--model", args.model, "--work", args.work, "--steps", args.steps, "--guidance", args.guidance,
             "--size", args.size, "--runs", args.runs, "--threads", args.threads]
    return [str(w) for w in words]


def measure(args, peer):
    """Runs a peer in a process of its own; its last line of output is JSON."""
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    log = args.work / f"{peer}.log"
    try:
        with open(log, "w") as err:
            out = subprocess.run(child(args, peer), env=env, stdout=subprocess.PIPE, stderr=err, timeout=args.limit, text=True)
    except subprocess.TimeoutExpired:
        return None, f"not done after {args.limit} s"
    if out.returncode:
        if out.returncode < 0:
            return None, f"killed by signal {-out.returncode}: out of memory?"
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        return None, f"failed: {lines[-1][:160] if lines else out.returncode}"
    answer = json.loads(out.stdout.splitlines()[-1])
    return answer["rows"], answer["what"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="where exports are kept")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=0)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--limit", type=int, default=1800, help="seconds a peer may take in all, export and compilation included")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--child", choices=[*PEERS, "export"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.model, args.work = args.model.absolute(), args.work.absolute()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.child:
        rows, what = globals()[f"run_{args.child}"](args)
        print(json.dumps({"rows": rows, "what": what}))
        return
    print(f"{args.model.name}, {args.size}x{args.size}, {args.steps} steps, guidance {args.guidance:g}, {args.threads} threads, {args.runs} runs, "
          f"{time.strftime('%Y-%m-%d %H:%M')} UTC, {platform.machine()}, load {os.getloadavg()[0]:.1f}\n")
    print("| program | median s | least s | CPU s a run | slower than latentd by: median, least, CPU |\n| --- | --- | --- | --- | --- |", flush=True)
    base = None
    for peer in args.peers.split(","):
        rows, what = measure(args, peer)
        if not rows:
            print(f"| {peer} | | | | {what} |", flush=True)
            continue
        wall, cpu = [r[0] for r in rows], statistics.median(r[1] for r in rows)
        figures = (statistics.median(wall), min(wall), cpu)
        base = base or (figures if peer == "latentd" else None)
        ratios = ", ".join(f"{f / b:.1f}" for f, b in zip(figures, base)) if base else ""
        print(f"| {peer} ({what}) | {figures[0]:.2f} | {figures[1]:.2f} | {figures[2]:.2f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
