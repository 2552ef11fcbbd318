"""latentd on Modal: one web endpoint for each pair of pipeline and model, scaled by Modal, to zero too.

    pip install modal && modal setup
    modal secret create huggingface HF_TOKEN=hf_...          # may be empty: HF_TOKEN=
    modal secret create api-auth-token AUTH_TOKEN=...
    modal run scripts/modal_app.py::download_model --model-id stabilityai/sdxl-turbo
    modal deploy scripts/modal_app.py

Each endpoint is the daemon itself, behind Modal's TLS: the same routes, token and replies as anywhere. Other models: add a function at
the end. scripts/check_modal_app.sh imports this file with the real package and starts what a container would start.
"""

import os
import pathlib
import subprocess
import time
import urllib.error
import urllib.request

import modal

PORT = 8000
MODELS = "/models"
QUEUE = 8  # jobs that wait in a container besides the one that runs; more of them start another container
SOURCE = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = """g++ gcc libc6-dev libcjson-dev libcurl4-openssl-dev libffmpeg-nvenc-dev libgif-dev libjpeg-dev libmicrohttpd-dev
    libopenh264-dev libpng-dev libssl-dev libwebp-dev make pkg-config dpkg-dev zlib1g-dev""".split()


def make_image():
    """NVIDIA's CUDA image, in which latentd is built as the Dockerfile's target cuda builds it."""
    image = modal.Image.from_registry("nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04", add_python="3.12").entrypoint([])
    image = image.apt_install(*PACKAGES)
    image = image.add_local_dir(SOURCE / "deploy" / "docker", "/src/deploy/docker", copy=True)
    image = image.run_commands("/src/deploy/docker/ffmpeg.sh /usr/local --nvenc && ldconfig")
    for name in ("include", "src", "kernels", "models/latentd"):
        image = image.add_local_dir(SOURCE / name, f"/src/{name}", copy=True)
    image = image.add_local_file(SOURCE / "Makefile", "/src/Makefile", copy=True)
    return image.run_commands('make -s -C /src -j"$(nproc)" CUDA=1 WERROR=0 PREFIX=/usr install').env({"MODEL_DIR": MODELS})


app = modal.App("latentd")
# Inside of a container the image is there already, and the sources are not.
image = make_image() if modal.is_local() else modal.Image.debian_slim()
volume = modal.Volume.from_name("models", create_if_missing=True)


@app.function(image=image, volumes={MODELS: volume}, secrets=[modal.Secret.from_name("huggingface")], timeout=3600)
def download_model(model_id: str):
    """Fetches a model into the volume, with what it needs from other repositories, resumed where an earlier try broke off."""
    subprocess.run(["latentd", "pull", model_id, "--dir", MODELS], check=True)
    volume.commit()


def serve(pipeline, model_id, program="latentd", seconds=600):
    """Starts the daemon and returns when it takes requests. Its own words are in the log when it ends before."""
    env = {**os.environ, "PIPELINE": pipeline, "MODEL_ID": model_id, "HOST": "0.0.0.0", "PORT": str(PORT), "LATENTD_QUEUE": str(QUEUE)}
    daemon = subprocess.Popen([program], env=env)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if daemon.poll() is not None:
            raise RuntimeError(f"latentd ended with status {daemon.returncode} before it was ready")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health/ready", timeout=5):
                return daemon
        except OSError:
            time.sleep(0.1)
    daemon.kill()
    raise RuntimeError(f"{model_id} was not ready after {seconds} s")


def endpoint(gpu):
    """A function whose container serves HTTP on PORT, on a GPU of that kind."""

    def decorate(function):
        function = modal.web_server(PORT, startup_timeout=600)(function)
        function = modal.concurrent(max_inputs=QUEUE + 1)(function)
        return app.function(image=image, gpu=gpu, volumes={MODELS: volume}, secrets=[modal.Secret.from_name("api-auth-token")],
                            memory=1024, timeout=900, startup_timeout=600, scaledown_window=300)(function)

    return decorate


@endpoint("A10G")
def text_to_image_sdxl_lightning():
    serve("text-to-image", "ByteDance/SDXL-Lightning")


@endpoint("A10G")
def text_to_image_sdxl_lightning_4step():
    serve("text-to-image", "ByteDance/SDXL-Lightning-4step")


@endpoint("A10G")
def text_to_image_sdxl_lightning_8step():
    serve("text-to-image", "ByteDance/SDXL-Lightning-8step")


@endpoint("A10G")
def text_to_image_sdxl_turbo():
    serve("text-to-image", "stabilityai/sdxl-turbo")


@endpoint("A10G")
def image_to_image_sdxl_turbo():
    serve("image-to-image", "stabilityai/sdxl-turbo")


@endpoint("A100")
def image_to_video_svd_xt_1_1():
    serve("image-to-video", "stabilityai/stable-video-diffusion-img2vid-xt-1-1")
