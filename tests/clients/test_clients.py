#!/usr/bin/env python3
"""runner_client.py, which follows go-livepeer's worker, against real daemons of every pipeline: what it makes, and that
every error comes in a form that the worker can read."""
import json
import pathlib
import struct
import sys
import tempfile
import threading
import time
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from daemon import TOP, Count, Daemon, video_shelf  # noqa: E402
from runner_client import Crash, RunnerClient, RunnerError  # noqa: E402

EMOJI, UPSCALER = "latentd/emoji", "latentd/upscaler"


def png(width, height, colour=(250, 180, 40)):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress((b"\0" + bytes(colour) * width) * height)) + chunk(b"IEND", b""))


def refused(words, call, *given, **fields):
    try:
        call(*given, **fields)
    except RunnerError as fault:
        assert words in str(fault), fault
    else:
        raise AssertionError("accepted; expected: " + words)


def ready(client, pipeline, model):
    version = client.wait_ready(30)
    assert (version["pipeline"], version["model_id"], version["version"]) == (pipeline, model, "1.2.3"), version


def text_to_image(client):
    ready(client, "text-to-image", EMOJI)
    made = client.text_to_image(EMOJI, "a cat", width=64, height=80, num_inference_steps=2, num_images_per_prompt=2, seed=7,
                                guidance_scale=7.5, safety_check=True)
    assert [(w, h) for (w, h, _), _, _ in made] == [(64, 80)] * 2 and [m[1] for m in made] == [7, 8], made
    # the emoji model's latents are 16 pixels wide and high: sizes between are cut, as in diffusers
    cut = client.text_to_image(EMOJI, "a cat", width=72, height=88, num_inference_steps=2, guidance_scale=7.5, seed=8)
    assert cut[0][0] == made[1][0], cut
    refused("text-to-image container returned 400: Prompt must be provided.", client.text_to_image, EMOJI, "")
    refused("returned 400: pipeline configured with latentd/emoji but called with x.", client.text_to_image, "x", "a cat")
    refused("divisible by 8", client.text_to_image, EMOJI, "a cat", width=100)
    refused("returned 422: ", client.text_to_image, EMOJI, "a cat", width="wide", seed=None)
    refused("returned 500: ", client.text_to_image, EMOJI, "|")


def health_meanwhile(client):
    """Six seconds of work, polled as the worker's watch loop does, only oftener."""
    made = []
    job = threading.Thread(target=lambda: made.append(client.text_to_image(EMOJI, "a cat", width=256, height=256, num_inference_steps=40)))
    job.start()
    worst, asked = 0, 0
    while job.is_alive():
        start = time.monotonic()
        assert client.health() == "OK"
        worst, asked = max(worst, time.monotonic() - start), asked + 1
        time.sleep(0.05)
    assert made and asked > 3 and worst < 3, (asked, worst)


def image_to_image(client):
    ready(client, "image-to-image", EMOJI)
    image = png(64, 90)
    made = client.image_to_image(EMOJI, image, "a cat", strength=0.8, guidance_scale=7.5, image_guidance_scale=1.5, negative_prompt="",
                                 safety_check=True, seed=0, num_inference_steps=4, num_images_per_prompt=2)
    assert [(w, h) for (w, h, _), _, _ in made] == [(64, 80)] * 2 and [m[1] for m in made] == [0, 1], made
    refused("image-to-image container returned 400: The image cannot be read", client.image_to_image, EMOJI, b"no picture", "a cat")
    refused("returned 400: pipeline configured with", client.image_to_image, "x", image, "a cat")
    refused("returned 400: ", client.image_to_image, EMOJI, image, "a cat", strength=2.0)
    refused("returned 422: ", client.image_to_image, EMOJI, image, "a cat", strength="much")


def image_to_video(client):
    ready(client, "image-to-video", "latentd/svd")
    image = png(64, 48)
    made = client.image_to_video("latentd/svd", image, height=48, width=64, fps=6, motion_bucket_id=127, noise_aug_strength=0.02,
                                 safety_check=False, seed=3, num_inference_steps=2)
    assert len(made) == 6 and all((p[0], p[1], seed) == (64, 48, 3) for p, seed, _ in made), made
    refused("image-to-video container returned 400: `height` and `width` have to be divisible by 8", client.image_to_video, "latentd/svd", image, width=60)
    refused("returned 400: The image cannot be read", client.image_to_video, "latentd/svd", b"")


def upscale(client):
    ready(client, "upscale", UPSCALER)
    made = client.upscale(UPSCALER, png(24, 32), "a cat", safety_check=True, seed=0, num_inference_steps=2)
    assert [(w, h, seed) for (w, h, _), seed, _ in made] == [(96, 128, 0)], made
    refused("upscale container returned 400: The image cannot be read", client.upscale, UPSCALER, b"no picture", "a cat")
    refused("returned 422: ", client.upscale, UPSCALER, png(24, 32), "a cat", seed="")


def token(client):
    client.wait_ready(30)
    refused("text-to-image container returned 401: Invalid bearer token.", client.text_to_image, EMOJI, "a cat")
    client.token = "s"
    assert client.text_to_image(EMOJI, "a cat", num_inference_steps=1)


def other_routes(client):
    """What the worker never asks of this process is a crash for it, which shows that the client sees one."""
    try:
        client.image_to_image(EMOJI, png(8, 8), "a cat")
    except Crash as fault:
        assert "404" in str(fault)
    else:
        raise AssertionError("a 404 went unseen")


def main():
    count = Count()

    def against(settings, *tests):
        with Daemon(VERSION="1.2.3", **settings) as daemon:
            for test in tests:
                count.test(test.__name__, test, RunnerClient(daemon.url))

    against({}, text_to_image, health_meanwhile, other_routes)
    against({"PIPELINE": "image-to-image", "MODEL_ID": EMOJI}, image_to_image)
    with tempfile.TemporaryDirectory(prefix="latentd-clients-") as folder:
        video_shelf(folder)
        against({"PIPELINE": "image-to-video", "MODEL_ID": "latentd/svd", "MODEL_DIR": folder}, image_to_video)
    if "/upscale" in json.loads((TOP / "openapi.json").read_text())["paths"]:
        against({"PIPELINE": "upscale", "MODEL_ID": UPSCALER, "MODEL_DIR": str(TOP / "tests/golden/data/upscale")}, upscale)
    against({"AUTH_TOKEN": "s"}, token)
    return count.end()


if __name__ == "__main__":
    sys.exit(main())
